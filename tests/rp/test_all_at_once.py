"""Every limit of the relying party, at fifty times its size and all at once."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aiohttp import DummyCookieJar
from aiohttp.test_utils import TestClient, TestServer

from relying_party.core.challenges import Challenges
from relying_party.core.proofs import ProofsInMemory
from relying_party.http.app import make_app
from tests.rp.authenticator_double import create, get
from tests.rp.clients import Answer, Browser, Clock, Device, Site, make_config

PATIENCE = 120.0  # seconds: a safety net, so that a hang is a failure
TIMES = 50


@contextlib.asynccontextmanager
async def serving(store: Path, *, per_minute: int = 100_000, most: int = 20_000) -> AsyncIterator[Site]:
    clock, config = Clock(), make_config(store, requests_per_minute=per_minute)
    app = make_app(config, clock=clock, challenges=Challenges(most=most))
    async with TestClient(TestServer(app), cookie_jar=DummyCookieJar()) as http:
        yield Site(http=http, app=app, clock=clock, config=config)


async def outcomes(*calls: Coroutine[Any, Any, Answer]) -> Counter[tuple[int, str | None]]:
    async with asyncio.timeout(PATIENCE):
        answers = await asyncio.gather(*calls)
    return Counter((answer.status, None if answer.status < 400 else answer.slug) for answer in answers)


def options(site: Site, who: Browser | Device) -> Coroutine[Any, Any, Answer]:
    return site.send(who, "POST", "/webauthn/authentication/options", {})


@pytest.mark.threat("T12")
async def test_of_five_hundred_requests_of_one_address_at_once_ten_are_answered(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", per_minute=10) as site:
        calls = [
            options(site, who) for _ in range(5 * TIMES) for who in (Browser(), Device(nonce=site.nonce))
        ]
        assert await outcomes(*calls) == {(200, None): 10, (429, "rate-limited"): 490}
        site.clock.now += 60
        assert await outcomes(*(options(site, Browser()) for _ in range(10 * TIMES))) == {
            (200, None): 10,
            (429, "rate-limited"): 490,
        }


@pytest.mark.threat("T12")
@pytest.mark.threat("T17")
async def test_of_five_hundred_ceremonies_at_once_ten_are_under_way_and_nobody_is_refused(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "s", most=10) as site:
        calls = [options(site, who) for _ in range(5 * TIMES) for who in (Browser(), Device())]
        assert await outcomes(*calls) == {(200, None): 500}
        assert len(site.state.challenges) == 10


@pytest.mark.threat("T17")
async def test_who_is_signed_in_steps_up_whatever_strangers_begin(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", most=10) as site:
        owner = Browser()
        passkey, _ = await site.register(owner, "ada")
        ceremony, public_key = await site.begin(owner, "step-up", operation="end-other-sessions")
        assert await outcomes(*(options(site, Browser()) for _ in range(5 * TIMES))) == {(200, None): 250}
        response = get(passkey, public_key, owner.client_origin)
        assert (await site.finish(owner, "step-up", ceremony, response)).status == 200


@pytest.mark.threat("T17")
async def test_five_hundred_proofs_at_once_refuse_nobody_where_ten_are_remembered(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as site:
        site.state.used_proofs = ProofsInMemory(most=10)
        for _ in range(TIMES):
            calls = [options(site, Device(nonce=site.nonce)) for _ in range(10)]
            assert await outcomes(*calls) == {(200, None): 10}
        assert (await options(site, Device())).status == 200


@pytest.mark.threat("T5")
async def test_a_proof_that_comes_fifty_times_at_once_is_taken_once(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as site:
        path = "/webauthn/authentication/options"
        headers = Device(nonce=site.nonce).headers("POST", path, site.clock.now)
        calls = [site.raw("POST", path, headers, b"{}") for _ in range(TIMES)]
        assert await outcomes(*calls) == {(200, None): 1, (401, "proof-invalid"): 49}


@pytest.mark.threat("T5")
async def test_a_ceremony_that_ends_fifty_times_at_once_ends_once(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as site:
        browser = Browser()
        ceremony, public_key = await site.begin(browser, "registration", user_name="ada")
        _, response = create(public_key, browser.client_origin)
        calls = [site.finish(Browser(), "registration", ceremony, response) for _ in range(TIMES)]
        assert await outcomes(*calls) == {(201, None): 1, (410, "ceremony-gone"): 49}


async def test_of_fifty_who_register_one_name_at_once_one_gets_it(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as site:
        begun = [await site.begin(Browser(), "registration", user_name="ada") for _ in range(TIMES)]
        calls = [
            site.finish(Browser(), "registration", ceremony, create(public_key, Browser().client_origin)[1])
            for ceremony, public_key in begun
        ]
        assert await outcomes(*calls) == {(201, None): 1, (409, "user-exists"): 49}
