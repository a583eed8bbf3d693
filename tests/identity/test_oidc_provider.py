"""Accounts by the tokens of a real OpenID provider, `oidc-provider` of npm: sign-in, key rotation, and tokens of other clients."""

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path
from urllib.parse import urljoin

import aiohttp
import pytest

from companion_push.companion.founding import found_by_sign_in
from companion_push.companion.keys import CompanionState, KeyPair
from companion_push.companion.relay_client import CompanionRelay
from companion_push.companion.sign_in import Prompt, Way, sign_in
from companion_push.identity.settings import OpenIdSettings
from headless_passkey.errors import NotSignedIn, SessionReason
from tests.ports import reserved_port
from tests.relay.household import running_relay

FOLDER = Path(__file__).parent
INSTALLED = FOLDER.parent / "interop" / "node_modules" / "oidc-provider"
NODE = shutil.which("node")
RELAY = "urn:example:relay"  # the relay's name as a resource
PATIENCE = 60.0  # seconds: a safety net, so that a hang is a failure

pytestmark = pytest.mark.skipif(
    NODE is None or not INSTALLED.exists(), reason="not run: needs scripts/install-test-packages libraries"
)


@contextlib.asynccontextmanager
async def provider(port: int) -> AsyncIterator[str]:
    """The provider as a process; its issuer's URL."""
    process = await asyncio.create_subprocess_exec(
        NODE or "node", str(FOLDER / "provider.mjs"), str(port),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            while b"ready" not in (line := await process.stdout.readline()):
                assert line, "the provider ended"
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def type_in(prompt: Prompt) -> None:
    """What a person does: type the code where there is one, confirm, sign in as anna, consent."""
    said = {"user_code": prompt.code or "", "login": "anna", "password": "x"}
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        page = await session.get(prompt.page)
        for _ in range(6):
            html = await page.text()
            form = re.search(r"<form[^>]*>.*?</form>", html, re.DOTALL)
            if form is None:
                return
            found = re.search(r'action="([^"]*)"', form[0])
            action = urljoin(str(page.url), unescape(found[1]) if found else "")
            fields = dict(said)
            for field in re.findall(r"<input[^>]*>", form[0]):
                name, value = (re.search(rf'\b{each}="([^"]*)"', field) for each in ("name", "value"))
                if name is not None and value is not None:
                    fields[name[1]] = unescape(value[1])
            page = await session.post(action, data=fields)
        pytest.fail("the provider asks for more and more")


async def token_of(
    issuer: str,
    keys: KeyPair,
    *,
    client: str = "companion",
    audience: str | None = None,
    browser: bool = False,
) -> str:
    typing: list[asyncio.Task[None]] = []
    async with asyncio.timeout(PATIENCE):
        token = await sign_in(
            Way(issuer=issuer, client=client, audience=audience or client),
            key=keys.signing,
            tls=None,
            show=lambda prompt: typing.append(asyncio.create_task(type_in(prompt))),
            browser=browser,
            fresh=True,
            sleep=lambda _seconds: asyncio.sleep(0.2),
        )
        await asyncio.gather(*typing)
    return token


async def founds(relay_url: str, folder: Path, token: str, keys: KeyPair) -> str:
    """Found an account with a token; its name."""
    state = CompanionState(folder)

    async def source(_relay: CompanionRelay, _keys: KeyPair) -> str:
        return token

    await found_by_sign_in(state, relay_url, label="phone", token=source)
    return state.chain().head.account_name


@pytest.mark.threat("T14")
async def test_a_real_providers_id_tokens_found_accounts_over_a_rotation_and_another_clients_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("companion_push.identity.issuer.PAUSE", 0.0)  # until the new key is asked for
    port, keys = reserved_port(), KeyPair()
    openid = OpenIdSettings(issuer=f"http://127.0.0.1:{port}", audience="companion", clients=("companion",))
    async with running_relay(tmp_path / "relay.sqlite3", openid=openid) as relay:
        async with provider(port) as issuer:
            token = await token_of(issuer, keys)
            other = await token_of(issuer, keys, client="other")
            assert await founds(relay.url, tmp_path / "first", token, keys) == "anna"
            with pytest.raises(NotSignedIn, match="another audience") as caught:
                await founds(relay.url, tmp_path / "second", other, keys)
            assert caught.value.reason is SessionReason.SIGN_IN_REFUSED
        async with provider(port) as issuer:  # with another key
            token = await token_of(issuer, keys)
            state = CompanionState(tmp_path / "third")

            async def again(_relay: CompanionRelay, _keys: KeyPair) -> str:
                return token

            async def agree(name: str) -> bool:
                return name == "anna"

            await found_by_sign_in(state, relay.url, label="phone", token=again, agree=agree)


@pytest.mark.threat("T13")
async def test_a_real_providers_access_token_is_bound_to_the_companions_key(tmp_path: Path) -> None:
    port = reserved_port()
    openid = OpenIdSettings(
        issuer=f"http://127.0.0.1:{port}", audience=RELAY, clients=("companion",), require_bound=True
    )
    async with running_relay(tmp_path / "relay.sqlite3", openid=openid) as relay, provider(port) as issuer:
        taken: list[str] = []

        async def source(client: CompanionRelay, keys: KeyPair) -> str:
            assert await client.way() == Way(issuer=issuer, client="companion", audience=RELAY)
            taken.append(await token_of(issuer, keys, audience=RELAY))
            return taken[0]

        state = CompanionState(tmp_path / "first")
        await found_by_sign_in(state, relay.url, label="phone", token=source)
        with pytest.raises(NotSignedIn, match="bound to another key"):
            await founds(relay.url, tmp_path / "thief", taken[0], KeyPair())


@pytest.mark.threat("T16")
async def test_a_real_provider_gives_an_id_token_by_a_browsers_redirect_also_for_a_reset(
    tmp_path: Path,
) -> None:
    port = reserved_port()
    openid = OpenIdSettings(issuer=f"http://127.0.0.1:{port}", audience="companion", clients=("companion",))
    async with running_relay(tmp_path / "relay.sqlite3", openid=openid) as relay, provider(port) as issuer:

        async def source(_client: CompanionRelay, keys: KeyPair) -> str:
            return await token_of(issuer, keys, browser=True)

        async def agree(name: str) -> bool:
            return name == "anna"

        state = CompanionState(tmp_path / "state")
        await found_by_sign_in(state, relay.url, label="phone", token=source)
        first = state.identity().account
        await found_by_sign_in(state, relay.url, label="phone", token=source, agree=agree)
        assert state.chain().head.account_name == "anna"
        assert state.identity().account != first


@pytest.mark.threat("T13")
async def test_an_access_token_by_a_browsers_redirect_is_bound_to_the_companions_key(tmp_path: Path) -> None:
    port = reserved_port()
    openid = OpenIdSettings(
        issuer=f"http://127.0.0.1:{port}", audience=RELAY, clients=("companion",), require_bound=True
    )
    async with running_relay(tmp_path / "relay.sqlite3", openid=openid) as relay, provider(port) as issuer:
        taken: list[str] = []

        async def source(_client: CompanionRelay, keys: KeyPair) -> str:
            taken.append(await token_of(issuer, keys, audience=RELAY, browser=True))
            return taken[0]

        await found_by_sign_in(CompanionState(tmp_path / "first"), relay.url, label="phone", token=source)
        with pytest.raises(NotSignedIn, match="bound to another key"):
            await founds(relay.url, tmp_path / "thief", taken[0], KeyPair())
