"""`companion-push companion page` from outside: a program, its links, and a browser that comes by one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from certificates import Certificate

from tests.companion.family import Frame, enrolled
from tests.companion.page_client import Client
from tests.companion.program import at_terminal, outcome, running
from tests.companion.test_page import one, opened
from tests.relay.household import Household

PAGE = ["companion", "page", "--listen", "127.0.0.1:0"]


@pytest.fixture
def state(home: Household, tmp_path: Path) -> Path:
    enrolled(tmp_path, home.companions[0], home)
    return tmp_path / home.companions[0].name


async def link(state: Path) -> str:
    status, stdout, said = await outcome("companion", "page", "--link", "--state", state)
    assert status == 0, said
    return stdout.strip()


@contextlib.asynccontextmanager
async def visiting(url: str, certificate: Certificate | None = None) -> AsyncIterator[Client]:
    """A browser that has come by a link."""
    tls = certificate.client_context() if certificate is not None else True
    connector = aiohttp.TCPConnector(ssl=tls)
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar, connector=connector) as session:
        origin = url.partition("/#")[0]
        client = Client(session=session, origin=origin, at=origin)
        assert await client.enter(url) == 200
        yield client


@pytest.mark.threat("T11")
@pytest.mark.threat("T18")
async def test_a_request_is_approved_on_the_page_and_no_secret_is_seen_elsewhere(
    state: Path, home: Household, frame: Frame
) -> None:
    async with running(*PAGE, "--state", state, "--log-level", "debug") as program:
        origin = await program.line()
        assert origin.startswith("http://127.0.0.1:")
        opening = await link(state)
        assert opening.startswith(f"{origin}/#")
        async with visiting(opening) as browser:
            name = await frame.ask(home.companions[0])
            (request,) = (await browser.until(one))["requests"]
            assert request["asks"] == '"frame 0" asks to sign in'
            assert await browser.answer(request["name"], "yes") == 204
            url = (await browser.until(opened))["open"]["url"]
            await program.until_said("the QR code is on the page")
            secrets = [opening.partition("#")[2], browser.key, url]
            secrets += [cookie.value for cookie in browser.session.cookie_jar]
            command_line = Path(f"/proc/{program.process.pid}/cmdline")
            argv = await asyncio.to_thread(command_line.read_text)
            await frame.caller.tell(name, "completed")
            await browser.until(lambda state: state["open"] is None)
        program.terminate()
        assert await program.ended() == 0
        everything = "\n".join([argv, *program.said])
        assert not [each for each in secrets if each in everything]
    assert not (state / "page.json").exists()
    assert not (state / "page-link.json").exists()


async def test_with_json_events_are_objects(state: Path, home: Household, frame: Frame) -> None:
    async with running(*PAGE, "--state", state, "--json") as program:
        await program.line()
        await program.until_said("page --link")
        await program.until_stage("listening")
        await frame.ask(home.companions[0])
        arrived = await program.until_stage("arrived")
        assert (arrived["device"], arrived["rp_id"]) == ("frame 0", "example.com")


async def test_at_a_terminal_the_link_is_printed(state: Path) -> None:
    async with at_terminal(*PAGE, "--state", state, stdout=True) as (program, screen):
        await screen.until("http:")
        url = "http:" + (await screen.until("\n")).strip()
        assert "/#" in url
        async with visiting(url):
            pass
        program.terminate()
        assert await program.ended() == 0


@pytest.mark.threat("T18")
async def test_with_a_certificate_the_page_is_served_over_tls(
    state: Path, loopback_certificate: Certificate
) -> None:
    files = ["--cert", loopback_certificate.cert, "--key", loopback_certificate.key]
    words = ["companion", "page", "--listen", "localhost:0", *files, "--state", state]
    async with running(*words) as program:
        assert (await program.line()).startswith("https://localhost:")
        async with visiting(await link(state), loopback_certificate) as browser:
            (cookie,) = browser.session.cookie_jar
            assert (cookie.key, cookie["secure"], cookie["httponly"]) == ("__Host-companion", True, True)


@pytest.mark.threat("T18")
async def test_a_killed_program_leaves_no_session_and_no_link(state: Path) -> None:
    async with running(*PAGE, "--state", state) as program:
        await program.line()
        async with visiting(await link(state)) as browser:
            later = await link(state)
            program.process.kill()
            await program.ended()
            assert (await outcome("companion", "page", "--link", "--state", state))[0] == 2
            port = browser.origin.rpartition(":")[2]
            async with running(
                "companion", "page", "--listen", f"127.0.0.1:{port}", "--state", state
            ) as again:
                await again.line()
                assert (await browser.call("GET", "/state?seen=")).status == 401
                assert await browser.enter(later) == 403


async def test_what_cannot_be_served_is_said(state: Path, tmp_path: Path) -> None:
    status, _, said = await outcome("companion", "page", "--link", "--state", state)
    assert (status, "serves no page" in said[-1]) == (2, True)
    for words in (PAGE, ["companion", "page", "--link"]):
        assert (await outcome(*words, "--state", tmp_path / "nothing"))[0] == 9
    async with running(*PAGE, "--state", state) as program:
        await program.line()
        for words in (PAGE, ["companion", "run", "--consent", "decline"]):
            status, _, said = await outcome(*words, "--state", state)
            assert (status, "in use by another process" in said[-1]) == (4, True), said
