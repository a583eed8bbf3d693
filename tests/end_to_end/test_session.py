"""What a device does with its session, by programs: sign in, fetch, refresh, sign out, and a thief with a copy."""

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from programs import PROGRAMS, Program
from world import World

from headless_passkey.rp.session_store import SessionStore
from tests.end_to_end.conftest import MARKER
from tests.end_to_end.household import Home, Session, ends, page
from tests.ports import reserved_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "a-secret-of-the-resource-server-0123456789"
EXAMPLE = Path(__file__).parents[2] / "examples" / "resource_server.py"


@pytest.fixture(scope="module")
def api() -> str:
    """Where the resource server is."""
    return f"http://localhost:{reserved_port()}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, api: str) -> AsyncIterator[World]:
    """The servers, and the example of a resource server that asks the relying party about tokens."""
    folder = tmp_path_factory.mktemp("world")
    secrets = folder / "secrets.toml"
    secrets.touch(mode=0o600)
    secrets.write_text(f'"{api}" = "{SECRET}"\n')
    (folder / "secret.txt").write_text(f"{SECRET}\n")
    options = ("--resource-secrets", secrets)
    async with World.start(folder, relying_party=options, environment={MARKER: "session"}) as world:
        service = await Program.start(
            "api", sys.executable, EXAMPLE, "--issuer", world.relying_party, "--url", api,
            "--secret", folder / "secret.txt", *world.trust,
        )  # fmt: skip
        world.programs.append(service)
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def hub(world: World, home: Home) -> Home:
    """A home whose hub has registered and is signed in."""
    companion = await world.companion(
        home.phone, "--once", "--credentials", world.folder / f"{home.account}.json"
    )
    status, session = await world.ceremony(home.hub, "register", "--user", home.account)
    assert (status, await companion.wait()) == (0, 0)
    assert session is not None
    assert (session["token"], session["refresh_token"]) == (None, None)
    return home


async def run(
    world: World, state: Path, action: str, *words: str | Path, stdin: str = ""
) -> tuple[int, str, Program]:
    """``headless-passkey session ACTION``: status, stdout, and what it said."""
    program = await world.run(
        f"session {action}", "headless-passkey", "session", action, *words, "--state", state,
        *(() if action == "show" else world.trust),
    )  # fmt: skip
    await program.write(stdin)
    assert program.process.stdout is not None
    output = (await program.process.stdout.read()).decode()
    return await ends(program), output, program


async def fetched(world: World, state: Path, *words: str | Path, stdin: str = "") -> tuple[int, str]:
    status, output, _ = await run(world, state, "fetch", *words, stdin=stdin)
    return status, output


async def test_a_sign_in_leaves_a_session_that_a_shell_script_uses(world: World, hub: Home, api: str) -> None:
    state = world.state(hub.hub)
    status, body = await fetched(world, state, f"{world.relying_party}/session")
    assert status == 0
    assert json.loads(body)["user"]["name"] == hub.account
    status, body = await fetched(world, state, f"{api}/me")
    assert status == 0
    me = json.loads(body)
    assert me["device"] == Session.of(hub, hub.hub).kept.key_name != hub.enrolment(hub.hub).name
    assert me["user"] == Session.of(hub, hub.hub).kept.opened.user_handle


async def test_what_is_sent_comes_from_a_file_or_a_pipe(world: World, hub: Home, api: str) -> None:
    state, file = world.state(hub.hub), world.folder / "body.json"
    file.write_text('{"from": "a file"}')
    echo = f"{api}/echo"
    assert await fetched(world, state, echo, "--data", f"@{file}") == (0, '{"from": "a file"}')
    assert await fetched(world, state, echo, "--data", "@-", stdin="from a pipe") == (0, "from a pipe")
    words = (echo, "--data", "text", "--header", "Content-Type: text/plain", "--method", "post")
    assert await fetched(world, state, *words) == (0, "text")


async def test_the_exit_status_says_what_the_answer_is(world: World, hub: Home, api: str) -> None:
    state = world.state(hub.hub)
    status, body = await fetched(world, state, f"{world.relying_party}/nowhere")
    assert (status, json.loads(body)["status"]) == (12, 404)
    status, body = await fetched(world, state, f"{world.relying_party}/me")  # not from a device
    assert (status, json.loads(body)["status"]) == (12, 403)
    assert (await fetched(world, state, f"http://localhost:{reserved_port()}/", "--audience", api))[0] == 8
    away = f"http://localhost:{reserved_port()}"
    assert await fetched(world, state, away, "--audience", away) == (4, "")
    assert await fetched(world, world.folder / "nothing", f"{api}/me") == (11, "")
    for wrong in ("api.example", "http://api.example/", "https://u@api.example/"):
        assert await fetched(world, state, wrong) == (2, "")


@pytest.mark.threat("T13")
async def test_the_token_is_sent_nowhere_else(world: World, hub: Home) -> None:
    async with await asyncio.start_server(lambda *_: pytest.fail("somebody came"), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        status, output, program = await run(
            world, world.state(hub.hub), "fetch", f"https://localhost:{port}/"
        )
    assert (status, output) == (8, "")
    assert program.failure is not None
    assert program.failure["reason"] == "not-its-audience"


async def test_a_session_is_shown_without_its_tokens_and_refreshed(world: World, hub: Home, api: str) -> None:
    state, kept = world.state(hub.hub), Session.of(hub, hub.hub).kept
    status, shown, _ = await run(world, state, "show")
    assert status == 0
    said: dict[str, Any] = json.loads(shown)
    assert said["relying_party"] == world.relying_party
    assert said["audience"] == [world.relying_party, api]
    assert said["user"]["name"] == hub.account
    assert _mode(said["file"]) == 0o600
    status, refreshed, program = await run(world, state, "refresh")
    assert status == 0
    new = Session.of(hub, hub.hub).kept
    assert new.opened.token != kept.opened.token
    for secret in (kept.opened, new.opened):
        assert secret.refresh_token is not None
        for place in (shown, refreshed, *program.said):
            assert secret.token not in place
            assert secret.refresh_token not in place
    assert (await fetched(world, state, f"{api}/me"))[0] == 0


def _mode(file: str) -> int:
    return Path(file).stat().st_mode & 0o777


async def test_scripts_that_refresh_at_once_leave_a_session_that_works(
    world: World, hub: Home, api: str
) -> None:
    state = world.state(hub.hub)
    done = await asyncio.gather(*(run(world, state, "refresh") for _ in range(3)))
    assert [status for status, _, _ in done] == [0, 0, 0]
    assert (await fetched(world, state, f"{api}/me"))[0] == 0


async def test_an_answer_that_cannot_be_written_down_is_asked_for_again(
    world: World, hub: Home, api: str
) -> None:
    """No byte may be written to a file, as on a full disk: the relying party has refreshed, the device has nothing of it."""
    state, kept = world.state(hub.hub), Session.of(hub, hub.hub).kept
    program = await world.run(
        "refresh", "/bin/sh", "-c", 'ulimit -f 0; exec "$@"', "sh", PROGRAMS / "headless-passkey", "session", "refresh",
        "--state", state, *world.trust,
    )  # fmt: skip
    assert await ends(program) == 10
    assert program.failure is not None
    assert "cannot write" in program.failure["message"]
    assert Session.of(hub, hub.hub).kept.opened == kept.opened
    assert (await fetched(world, state, f"{world.relying_party}/session"))[0] == 0
    assert Session.of(hub, hub.hub).kept.opened.token != kept.opened.token
    assert (await fetched(world, state, f"{api}/me"))[0] == 0


async def test_signing_out_ends_it_everywhere(world: World, hub: Home, api: str) -> None:
    state, session = world.state(hub.hub), Session.of(hub, hub.hub)
    assert (await session.get())["user"]["name"] == hub.account
    shown = (await page(world)).count("on a device")
    status, output, _ = await run(world, state, "sign-out")
    assert (status, output) == (0, "")
    assert (await page(world)).count("on a device") == shown - 1
    assert await fetched(world, state, f"{api}/me") == (11, "")
    assert (await run(world, state, "show"))[0] == 11
    assert (await run(world, state, "sign-out"))[0] == 11


@pytest.mark.threat("T5")
async def test_a_thief_with_a_copy_of_the_state_is_found_out(world: World, hub: Home, api: str) -> None:
    state, copy = world.state(hub.hub), world.folder / f"copy of {hub.account}"
    shutil.copytree(state, copy)
    copy.chmod(0o700)
    assert (await run(world, copy, "refresh"))[0] == 0
    assert (await run(world, copy, "refresh"))[0] == 0
    assert (await fetched(world, copy, f"{api}/me"))[0] == 0
    status, output, program = await run(world, state, "fetch", f"{api}/me")
    assert (status, output) == (8, "")
    assert program.failure is not None
    assert program.failure["reason"] == "session-reused"
    assert SessionStore(state).all() == []
    status, output, program = await run(world, copy, "fetch", f"{api}/me")
    assert (status, output) == (11, "")
    assert program.failure is not None
    assert program.failure["reason"] == "session-over"
    assert SessionStore(copy).all() == []


async def test_leaving_the_account_forgets_its_sessions(world: World, hub: Home, api: str) -> None:
    state = world.state(hub.hub)
    leaving = await world.run("leave", "headless-passkey", "leave", "--state", state, *world.trust)
    assert await ends(leaving) == 0
    assert any(world.relying_party in line for line in leaving.said)
    assert await fetched(world, state, f"{api}/me") == (11, "")


async def test_a_session_that_is_not_to_be_kept_is_printed_whole(world: World, home: Home) -> None:
    credentials = world.folder / f"{home.account}.json"
    companion = await world.companion(home.phone, "--once", "--credentials", credentials)
    status, session = await world.ceremony(home.hub, "register", "--user", home.account, "--no-keep")
    assert (status, await companion.wait()) == (0, 0)
    assert session is not None
    assert session["token"]
    assert session["refresh_token"]
    assert session["relying_party"] == world.relying_party
    assert SessionStore(world.state(home.hub)).all() == []
