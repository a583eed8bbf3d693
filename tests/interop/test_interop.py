"""Options of each library, answered by each client, verified by all; and where their answers differ."""

import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
import pytest_asyncio
from certificates import Certificate
from playwright.async_api import Browser as Chromium

from companion_push.companion.software_key import Registration, SoftwareKey
from headless_passkey.hybrid.ctap2 import Command
from headless_passkey.webauthn.options import AuthenticationOptions, RegistrationOptions
from tests.interop.differences import (
    OURS,
    PAGE,
    Row,
    libraries,
    our_site,
    page,
    registrations,
    sign_ins,
)
from tests.interop.libraries import Expected, Library, known_from
from tests.rp.authenticator_double import JSON
from tests.rp.browser import visitor
from tests.rp.browser.visitor import Visitor, visit
from tests.rp.clients import DEVICE_ORIGIN, RP_ID, Device, Site

pytestmark = pytest.mark.asyncio(loop_scope="session")

OPTIONS = [OURS, "py_webauthn", "SimpleWebAuthn", "python-fido2"]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def others() -> AsyncIterator[tuple[Library, ...]]:
    async with libraries() as running:
        yield running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with our_site(tmp_path_factory.mktemp("interop")) as site:
        yield site


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def answers(site: Site, others: tuple[Library, ...]) -> tuple[list[Row], list[Row]]:
    return await registrations(site, others), await sign_ins(site, others)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium(loopback_certificate: Certificate) -> AsyncIterator[Chromium]:
    async with visitor.chromium(loopback_certificate) as browser:
        yield browser


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def url(
    loopback_certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[str]:
    async with visitor.serving(loopback_certificate, tmp_path_factory.mktemp("rp")) as url:
        yield url


# Where they differ


async def test_the_tables_in_the_documentation_are_what_the_libraries_answer(
    answers: tuple[list[Row], list[Row]],
) -> None:
    assert page(*answers) == PAGE.read_text(), "please run: make docs"


@pytest.mark.threat("T14")
async def test_ours_answers_as_it_means_to(answers: tuple[list[Row], list[Row]]) -> None:
    for row in (*answers[0], *answers[1]):
        assert (row.answers[OURS] is None) is row.case.taken, row


async def test_what_is_right_is_taken_by_all(answers: tuple[list[Row], list[Row]]) -> None:
    right = [row for rows in answers for row in rows if row.case.what.startswith("nothing wrong")]
    assert len(right) == 8
    for row in right:
        assert set(row.answers.values()) == {None}, row


@pytest.mark.threat("T14")
async def test_where_ours_is_more_lenient_than_another_the_table_says_why(
    answers: tuple[list[Row], list[Row]],
) -> None:
    lenient = [
        row.case
        for rows in answers
        for row in rows
        if row.answers[OURS] is None and any(row.answers.values())
    ]
    assert {case.what for case in lenient} == {
        "a counter that goes back",
        "a statement where the format says none",
        "client data behind a byte order mark",
    }
    assert all(case.why for case in lenient)


# The same ceremonies, both ways


class Client(Protocol):
    """Who answers options: a WebAuthn client with an authenticator."""

    async def create(self, options: JSON) -> JSON: ...

    async def get(self, options: JSON) -> JSON: ...


class Sdk:
    """The device SDK as the client, and the software phone as the authenticator."""

    def __init__(self, *, synced: bool) -> None:
        self._phone = SoftwareKey(synced=synced)

    async def create(self, options: JSON) -> JSON:
        parsed = RegistrationOptions.parse(options, origin=DEVICE_ORIGIN)
        request = parsed.ctap_request(self._phone.info)
        stage = self._phone.ask(Command.MAKE_CREDENTIAL, request.encode())
        assert isinstance(stage, Registration)
        made = stage.approve(now=1_800_000_000)
        self._phone = self._phone.adding(made)
        return parsed.accept(made.response.encode(), self._phone.info).for_relying_party()

    async def get(self, options: JSON) -> JSON:
        parsed = AuthenticationOptions.parse(options, origin=DEVICE_ORIGIN)
        stage = self._phone.ask(Command.GET_ASSERTION, parsed.ctap_request(self._phone.info).encode())
        assert not isinstance(stage, Registration)
        return parsed.accept(stage.approve().encode(), self._phone.info).for_relying_party()


class Tab:
    """Chromium, on a document of the relying party's that has no script."""

    def __init__(self, visitor: Visitor) -> None:
        self._page = visitor.page

    async def create(self, options: JSON) -> JSON:
        script = """async (options) => (await navigator.credentials.create({
            publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(options) })).toJSON()"""
        return dict(await self._page.evaluate(script, options))

    async def get(self, options: JSON) -> JSON:
        script = """async (options) => (await navigator.credentials.get({
            publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options) })).toJSON()"""
        return dict(await self._page.evaluate(script, options))

    async def post(self, path: str, body: JSON) -> tuple[int, JSON]:
        script = """async ([path, body]) => {
            const answer = await fetch(path, { method: "POST", body: JSON.stringify(body),
                headers: { "Content-Type": "application/json" } });
            return [answer.status, await answer.json()];
        }"""
        status, answer = await self._page.evaluate(script, [path, body])
        return int(status), dict(answer)


@pytest.mark.parametrize("library", OPTIONS)
@pytest.mark.parametrize("synced", [False, True], ids=["device-bound", "synced"])
async def test_the_device_sdk_and_the_software_phone_satisfy_all(
    site: Site, others: tuple[Library, ...], library: str, *, synced: bool
) -> None:
    who = Device()

    async def post(path: str, body: JSON) -> tuple[int, JSON]:
        answer = await site.send(who, "POST", path, body)
        return answer.status, answer.body

    await _satisfies(Sdk(synced=synced), post, others, library, rp_id=RP_ID, origin=DEVICE_ORIGIN)


@pytest.mark.parametrize("library", OPTIONS)
@pytest.mark.parametrize("transport", ["internal", "cable"])
async def test_chromium_satisfies_all(
    chromium: Chromium, url: str, others: tuple[Library, ...], library: str, transport: str
) -> None:
    visitor = await visit(chromium, url, "/livez", transport=transport)
    tab = Tab(visitor)
    await _satisfies(tab, tab.post, others, library, rp_id="localhost", origin=url)
    await visitor.page.context.close()


async def _satisfies(
    client: Client,
    post: Callable[[str, JSON], Any],
    others: tuple[Library, ...],
    library: str,
    *,
    rp_id: str,
    origin: str,
) -> None:
    """Registration and sign-in with options made by `library` around our challenge, verified by everybody."""
    maker = {other.name: other for other in others}.get(library)
    status, begun = await post("/webauthn/registration/options", {"user_name": secrets.token_hex(8)})
    assert status == 200
    options = begun["publicKey"]
    expected = Expected(challenge=options["challenge"], rp_id=rp_id, origins=(origin,))
    if maker is not None:
        options = await maker.registration_options(options["challenge"], rp_id=rp_id, user=options["user"])
    made = await client.create(options)
    for other in others:
        assert await other.verify_registration(made, expected) is None, other.name
    body = {"ceremony": begun["ceremony"], "response": made}
    assert (await post("/webauthn/registration/result", body))[0] == 201

    known = known_from(made)
    for allowed in ([], [made["id"]]):
        status, begun = await post("/webauthn/authentication/options", {})
        assert status == 200
        options = begun["publicKey"]
        expected = Expected(challenge=options["challenge"], rp_id=rp_id, origins=(origin,))
        if maker is not None:
            options = await maker.authentication_options(options["challenge"], rp_id=rp_id, allowed=allowed)
        asserted = await client.get(options)
        for other in others:
            assert await other.verify_authentication(asserted, expected, known) is None, other.name
        body = {"ceremony": begun["ceremony"], "response": asserted}
        assert (await post("/webauthn/authentication/result", body))[0] == 200


async def test_a_lock_file_names_no_registry() -> None:
    text = (Path(__file__).parent / "package-lock.json").read_text()
    assert '"resolved"' not in text
    assert "://" not in text
