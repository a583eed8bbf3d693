from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import DummyCookieJar
from aiohttp.test_utils import TestClient, TestServer

from relying_party.core.proofs import ProofsInMemory
from relying_party.http.app import make_app
from tests.rp.clients import Browser, Clock, Device, Site, Who, make_config
from tests.rp.stores import ENGINES, Engine, place_of
from tests.rp.stores import engine as new_engine


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A relying party on a port of its own, with a clock that stands still."""
    clock, config = Clock(), make_config(place_of(tmp_path / "rp.sqlite"))
    app = make_app(config, clock=clock, used_proofs=ProofsInMemory())
    async with TestClient(TestServer(app), cookie_jar=DummyCookieJar()) as http:
        yield Site(http=http, app=app, clock=clock, config=config)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    """Each engine of a store in turn."""
    return new_engine(request.param, tmp_path)


@pytest.fixture(params=["browser", "device"])
def who(request: pytest.FixtureRequest) -> Who:
    """Each kind of client in turn."""
    return Browser() if request.param == "browser" else Device()
