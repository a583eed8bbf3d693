"""`companion page`: a sign-in that is approved in a browser, whose QR code a phone reads."""

import aiohttp
import pytest
from programs import PROGRAMS
from world import World

from tests.companion.page_client import Client
from tests.companion.test_page import one, opened
from tests.end_to_end.household import Home, ends, session_of
from tests.end_to_end.test_qr import phone

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.threat("T4")
async def test_a_registration_is_approved_on_the_page_with_its_digits(world: World, home: Home) -> None:
    page = await world.run(
        home.phone, PROGRAMS / "companion-push", "companion", "page", "--listen", "localhost:0", "--digits",
        "--cert", world.certificates.cert, "--key", world.certificates.key, "--state", world.state(home.phone), *world.trust,
    )  # fmt: skip
    origin = await page.line()
    link = await world.run_to_end(
        "link", "companion-push", "companion", "page", "--link", "--state", world.state(home.phone)
    )
    connector = aiohttp.TCPConnector(ssl=world.certificates.client_context())
    async with aiohttp.ClientSession(connector=connector) as session:
        browser = Client(session=session, origin=origin, at=origin)
        assert await browser.enter(link.strip()) == 200
        device = await world.device(home.hub, "register", "--user", "ada on the page", "--match-digits")
        digits = (await device.stage("digits"))["digits"]
        (request,) = (await browser.until(one))["requests"]
        assert (request["asks"], request["at"]) == (f'"{home.hub}" asks to create a passkey', "localhost")
        assert await browser.answer(request["name"], digits) == 204
        url = (await browser.until(opened))["open"]["url"]
        answering = await phone(world, home, url)
        assert (await session_of(device))["user"]["name"] == "ada on the page"
        assert (await ends(answering), await ends(device)) == (0, 0)
        state = await browser.until(lambda state: state["open"] is None)
        assert state["notices"][-1]["text"] == "done"
    page.process.terminate()
    assert await ends(page) == 0
    assert not any(url in line or link.partition("#")[2].strip() in line for line in page.said)
