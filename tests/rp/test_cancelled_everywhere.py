"""The relying party's handlers, cancelled at every point where they wait, once and twice, as when a client hangs up: nothing stays open."""

import contextlib
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import DummyCookieJar
from aiohttp.test_utils import TestClient, TestServer

from relying_party.http.app import make_app
from tests.open_things import Handlers, Interruption, cancel_everywhere
from tests.rp.authenticator_double import Passkey
from tests.rp.clients import Answer, Browser, Clock, Device, Site, make_config

NUMBERS = itertools.count()

Call = Callable[[Site, Passkey], Awaitable[Answer]]


async def register(site: Site, _passkey: Passkey) -> Answer:
    return (await site.register(Device(), f"user-{next(NUMBERS)}"))[1]


async def sign_in(site: Site, passkey: Passkey) -> Answer:
    return await site.sign_in(Device(), passkey)


async def refresh(site: Site, passkey: Passkey) -> Answer:
    device = Device()
    token = (await site.sign_in(device, passkey)).body["refresh_token"]
    return await site.send(device, "POST", "/session/refresh", {"refresh_token": token})


async def rename(site: Site, passkey: Passkey) -> Answer:
    browser = Browser()
    await site.sign_in(browser, passkey)
    await site.step_up(browser, passkey, "rename-user", name="Ada")
    return await site.send(browser, "PATCH", "/me", {"display_name": "Ada"})


@pytest.mark.parametrize("again", [None, 1, 2], ids=["once", "and at once", "and two later"])
@pytest.mark.parametrize(
    ("call", "path"),
    [
        (register, "/webauthn/registration/result"),
        (sign_in, "/webauthn/authentication/result"),
        (refresh, "/session/refresh"),
        (rename, "/me"),
    ],
    ids=["registration", "authentication", "refresh", "account"],
)
async def test_a_handler(tmp_path: Path, call: Call, path: str, again: int | None) -> None:
    handlers, clock, config = Handlers(), Clock(), make_config(tmp_path / "rp.sqlite")
    app = handlers.added_to(make_app(config, clock=clock))
    async with TestClient(TestServer(app), cookie_jar=DummyCookieJar()) as http:
        site = Site(http=http, app=app, clock=clock, config=config)
        passkey, _ = await site.register(Device(), "ada")

        async def one(interruption: Interruption) -> Interruption:
            handlers.interrupt(path, interruption)
            with contextlib.suppress(aiohttp.ClientError):
                await call(site, passkey)
            handlers.interrupt(path, Interruption(at=0))
            return interruption

        await one(Interruption(at=0))
        assert await cancel_everywhere(one, again=(again,)) >= 1
        assert (await call(site, passkey)).status in (200, 201)
