"""What README and the SDK's page show, run as it is written against the real programs."""

import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from programs import Program
from world import World

from headless_passkey.account import enrolment
from headless_passkey.rp.key_store import KeyStore
from headless_passkey.rp.session_store import SessionStore
from headless_passkey.trust.ring import Role
from headless_passkey.trust.signing import thumbprint
from tests.end_to_end.conftest import MARKER
from tests.end_to_end.household import Home, ends
from tests.ports import reserved_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
SECRET = "a-secret-of-the-resource-server-0123456789"
STATE = ".local/state/headless-passkey"  # below HOME, as the pages have it


@pytest.fixture(scope="module")
def api() -> str:
    return f"http://localhost:{reserved_port()}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, api: str) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("world")
    (folder / "secrets.toml").touch(mode=0o600)
    (folder / "secrets.toml").write_text(f'"{api}" = "{SECRET}"\n')
    (folder / "secret.txt").write_text(SECRET)
    options = ("--resource-secrets", folder / "secrets.toml")
    async with World.start(folder, relying_party=options, environment={MARKER: "documented"}) as world:
        service = await Program.start(
            "api", sys.executable, ROOT / "examples" / "resource_server.py", "--issuer", world.relying_party,
            "--url", api, "--secret", folder / "secret.txt", *world.trust,
        )  # fmt: skip
        world.programs.append(service)
        yield world


def blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


async def run(world: World, api: str, home: Path, code: str) -> tuple[int, str, Program]:
    """The code of a page as a program of its own, with this household's addresses for the page's."""
    number, _, tunnel = world.tunnel.partition("=")
    settings = {
        "radio": world.radio, "number": int(number), "tunnel": tunnel, "ca": str(world.certificates.ca)
    }  # fmt: skip
    (home / "settings.json").write_text(json.dumps(settings))
    code = code.replace("https://login.example", world.relying_party).replace("https://api.example", api)
    program = await Program.start(
        "page", sys.executable, ROOT / "tests/end_to_end/documented.py", home / "settings.json",
        environment={"HOME": str(home), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    world.programs.append(program)
    await program.write(code)
    assert program.process.stdout is not None
    output = (await program.process.stdout.read()).decode()
    return await ends(program, timeout=120), output, program


async def test_the_readmes_ten_lines_sign_in_and_use_the_session(
    world: World, home: Home, api: str, tmp_path: Path
) -> None:
    companion = await world.companion(home.phone, "--credentials", tmp_path / "passkeys.json")
    status, _ = await world.ceremony(home.hub, "register", "--user", "grace")
    assert status == 0
    (tmp_path / STATE).parent.mkdir(parents=True)
    (tmp_path / STATE).symlink_to(world.state(home.hub))
    (code,) = blocks("README.md")
    status, output, program = await run(world, api, tmp_path, code)
    assert (status, program.said) == (0, [])
    assert output.splitlines()[-1] == "grace 200"
    assert "StageEvent(stage=<Stage.COMPLETED" in output
    assert await companion.stop() == 0


async def test_the_page_of_the_sdk_runs_from_the_first_block_to_the_last(
    world: World, home: Home, api: str, tmp_path: Path
) -> None:
    companion = await world.companion(home.phone, "--credentials", tmp_path / "passkeys.json")
    inviting = await world.run(
        home.phone, "companion-push", "companion", "invite", "--kind", "device", "--yes", "--without-number",
        "--any-rp-id", "--state", world.state(home.phone), *world.trust,
    )  # fmt: skip
    invitation = tmp_path / "invitation.txt"
    invitation.write_text(await inviting.line())
    code = blocks("docs/how-to/device-sdk.md")
    assert len(code) == 10
    code[1] = code[1].replace("invitation.txt", str(invitation))
    status, output, program = await run(world, api, tmp_path, "\n".join(code))
    assert (status, program.said) == (0, []), output
    assert await ends(inviting) == 0
    said = output.splitlines()
    joined = enrolment.load(tmp_path / STATE)
    assert f"joined {joined.account} as Kitchen hub" in said
    assert "ada has a passkey now" in said
    assert "signed in as ada" in said
    (key,) = KeyStore(tmp_path / STATE).all().values()
    assert any("'device': " in line and thumbprint(key.public_key) in line for line in said)
    assert not any("'device': " in line and joined.name in line for line in said)
    assert said[-2] == "no-session"
    assert said[-1].startswith("ada has a session until ")
    assert SessionStore(tmp_path / STATE).all() == []
    assert await companion.stop() == 0
    assert Role.DEVICE in {member.role for member in joined.chain.head.members}
