"""Servers whose calls or database meet name servers that never answer end all the same; the programs run as they are."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from companion_push.errors import StoreUnavailable
from companion_push.push.vapid import VapidKey
from companion_push.relay import redis_states
from companion_push.relay.app import RELAY, make_app
from companion_push.relay.config import RelayConfig
from companion_push.relay.postgres import _ERRORS, PostgresStore
from companion_push.relay.redis_place import RedisPlace
from companion_push.relay.store_place import PostgresUri
from name_lookups import resolver
from name_lookups.resolver import Lookups, NoAnswer
from postgres_store.database import Database
from program_parts.base64url import base64url
from tests.dead_names import dead_names
from tests.programs import running
from tests.push.receiver import Subscription
from tests.relay.account_service import new_secret
from tests.relay.household import fresh_id
from tests.relay.stores import place_of, postgres
from tests.relay.test_channels import handle
from tests.relay.test_killed_before_the_push import ProgramRelay
from tests.test_resolver import a_name_server

PATIENCE = 60.0  # seconds, a safety net: a lookup that is waited for does not end at all


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_relay_ends_while_push_services_and_webhook_are_looked_up(loop: str, tmp_path: Path) -> None:
    VapidKey.generate().write(tmp_path / "vapid.pem")
    (tmp_path / "secret").write_text(new_secret())
    (tmp_path / "secret").chmod(0o600)
    store = tmp_path / "relay.sqlite3"
    words = ("relay", "--listen", "127.0.0.1:0", "--store", str(place_of(store)), "--event-loop", loop)
    pushing = ("--vapid-key", tmp_path / "vapid.pem", "--vapid-contact", "mailto:push@example.com")
    names = (
        *("--web-push-host", "listed.dead.example", "--web-push-host", "*.dead.example"),
        *("--webhook", "https://hooks.dead.example", "--webhook-secret", tmp_path / "secret"),
    )
    async with (
        running("companion_push", *words, *pushing, *names, environment=dead_names()) as program,
        aiohttp.ClientSession() as session,
        asyncio.timeout(PATIENCE),
    ):
        relay = ProgramRelay(await program.line(), session, store)
        home = await relay.household()
        (anna, bert), (frame,) = home.companions, home.devices
        for number, host in enumerate(("listed", "below")):
            address = Subscription(f"https://{host}.dead.example/push").address
            keys = {"p256dh": base64url(address.p256dh), "auth": base64url(address.auth)}
            body = {"kind": "web-push", "endpoint": address.endpoint, **keys}
            assert (await anna.put(f"/v1/channels/{handle(number)}", body)).status == 201
        assert (await frame.submit(anna, bert, name=fresh_id())).status == 201
        for host in ("listed", "below"):
            await program.heard(f"looking up {host}.dead.example\n")
        assert (await anna.put(f"/v1/mutes/{frame.name}", {})).status == 201
        await program.heard("looking up hooks.dead.example\n")
        assert await program.end() == 0


@pytest.mark.parametrize(
    "words",
    [
        ("companion_push", "relay", "--listen", "127.0.0.1:0"),
        ("relying_party", "serve", "--listen", "127.0.0.1:0"),
    ],
    ids=lambda words: words[0],
)
async def test_a_server_whose_database_is_not_found_says_so_and_ends(words: tuple[str, ...]) -> None:
    """It does not wait for the lookup, which does not end."""
    module, *options = words
    store = ("--store", "postgresql://relay@db.dead.example,other.dead.example/relay")
    async with running(module, *options, *store, environment=dead_names()) as program:
        async with asyncio.timeout(PATIENCE):
            assert await program.process.wait() == 4
            said = await program.stderr()
    assert said.count("looking up") == 2
    assert "the database cannot be connected to: its name cannot be resolved" in said
    assert "its name server does not answer" in said


async def test_a_relay_that_ends_waits_for_no_name_of_a_database_that_it_has_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = postgres().database_for(tmp_path / "s").uri.replace("127.0.0.1", "localhost")
    relay = make_app(RelayConfig(public_url="https://relay.example", store=PostgresUri(place)))[RELAY]
    async with asyncio.timeout(PATIENCE), contextlib.AsyncExitStack() as opened:
        await opened.enter_async_context(relay.opened())
        monkeypatch.setattr(resolver, "THREAD_SECONDS", 3600.0)
        with a_name_server(monkeypatch) as names:
            store = relay._open_store
            assert isinstance(store, PostgresStore)
            while not store._idle.empty():
                store._idle.get_nowait().close()  # as when the server was away
            adding = asyncio.ensure_future(relay.new_account("alice", valid=60))
            while not names.asked:  # noqa: ASYNC110  a thread asks
                await asyncio.sleep(0.01)
            await opened.aclose()
            with pytest.raises(StoreUnavailable, match="its name server does not answer"):
                await adding


async def test_a_relay_ends_while_its_account_states_are_looked_up(tmp_path: Path) -> None:
    words = ("relay", "--listen", "127.0.0.1:0", "--store", str(postgres().database_for(tmp_path / "s").uri))
    states = ("--states", "redis://states.dead.example")
    async with (
        running("companion_push", *words, *states, environment=dead_names()) as program,
        asyncio.timeout(PATIENCE),
    ):
        await program.heard("looking up states.dead.example\n")
        await program.end()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_who_asks_for_account_states_waits_for_no_name_when_the_relay_ends(
    tls: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(redis_states, "_NAME_SECONDS", 3600.0)
    states = redis_states.RedisStates(RedisPlace(hosts=(("dead.example", 6379),), tls=tls))
    with a_name_server(monkeypatch) as server, ThreadPoolExecutor() as threads:
        opening = threads.submit(states.open)
        while not server.asked:
            time.sleep(0.01)
        states.leave()
        with pytest.raises(StoreUnavailable, match="its name server does not answer"):
            opening.result(PATIENCE)


@pytest.mark.parametrize(
    ("uri", "places"),
    [
        ("postgresql://u@a.example/d", ("a.example,a.example", "192.0.2.1,2001:db8::1", None)),
        ("postgresql://u@a.example:6432/d", ("a.example,a.example", "192.0.2.1,2001:db8::1", "6432,6432")),
        ("postgresql://u@b.example:1,192.0.2.7:2/d", ("b.example,192.0.2.7", "192.0.2.2,192.0.2.7", "1,2")),
        ("postgresql://u@dead.example:1,b.example:2/d", ("b.example", "192.0.2.2", "2")),
        ("postgresql://u@b.example/d?hostaddr=192.0.2.9", ("b.example", "192.0.2.9", None)),
        ("postgresql:///d?host=/run/postgresql,b.example", ("/run/postgresql,b.example", ",192.0.2.2", None)),
        ("postgresql:///d", (None, None, None)),
    ],
)
def test_the_driver_is_told_each_address_of_each_host(uri: str, places: tuple[str | None, ...]) -> None:
    with contextlib.closing(Database(uri, program="test", errors=_ERRORS, addresses=look_up)) as database:
        told = conninfo_to_dict(database.conninfo(uri))
    assert tuple(told.get(name) for name in ("host", "hostaddr", "port")) == places


def look_up(hosts: Sequence[str], _is_over: Callable[[], bool]) -> dict[str, Sequence[str] | Exception]:
    addresses = {
        "a.example": ["192.0.2.1", "2001:db8::1"],
        "b.example": ["192.0.2.2"],
        **{address: [address] for address in ("192.0.2.7", "127.0.0.1")},
    }
    return {host: addresses.get(host, NoAnswer("its name server does not answer")) for host in hosts}


def test_addresses_of_the_environment_go_before_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """PGHOSTADDR is where the server is; the name in the URI is the one in its certificate, which need not be in DNS."""
    monkeypatch.setenv("PGHOSTADDR", "192.0.2.9")
    uri = "postgresql://u@dead.example/d?sslmode=verify-full"
    with contextlib.closing(Database(uri, program="test", errors=_ERRORS, addresses=look_up)) as database:
        told = conninfo_to_dict(database.conninfo(uri))
    assert (told["host"], told.get("hostaddr")) == ("dead.example", None)


def test_a_server_that_is_listened_to_and_has_no_name_keeps_nobody_from_the_pooler() -> None:
    uri = postgres().url("migrated").uri
    with contextlib.closing(Database(uri, program="test", errors=_ERRORS, addresses=look_up)) as database:
        with pytest.raises(psycopg.OperationalError, match="its name server does not answer"):
            database.conninfo("postgresql://direct.example/d")  # as --store-direct
        assert database.now(lambda db: db.execute("SELECT 1").fetchone()) == (1,)


def test_a_store_that_is_closed_waits_for_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "THREAD_SECONDS", 3600.0)
    uri, lookups = "postgresql://u@dead.example/d", Lookups()
    with a_name_server(monkeypatch) as server:
        database = Database(uri, program="test", errors=_ERRORS, addresses=lookups.addresses)
        opening = database._threads.submit(database.connected)
        while not server.asked:
            time.sleep(0.01)
        closing = threading.Thread(target=database.close, daemon=True)
        closing.start()
        closing.join(PATIENCE)
        assert opening.done()
        assert isinstance(opening.exception(), StoreUnavailable)
