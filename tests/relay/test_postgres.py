"""The relay's store in PostgreSQL: transactions that meet, connections that break, and one relay at a time."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from psycopg import connect
from psycopg.errors import OperationalError, SerializationFailure

from companion_push.errors import StoreBusy, StoreUnavailable, StoreUnusable
from companion_push.push.channel import Delivery, Fcm, Kind, Purpose, PushOutcome
from companion_push.relay import accounts, channels
from companion_push.relay import postgres as postgres_module
from companion_push.relay.account_states import SqlStates, States
from companion_push.relay.app import RELAY
from companion_push.relay.database import MIGRATIONS
from companion_push.relay.mailbox import RENEWED
from companion_push.relay.operations import Answer
from companion_push.relay.postgres import PostgresStore, migrate
from companion_push.relay.store_place import PostgresUri, store_place
from companion_push.relay.stores import Store, open_store
from companion_push.relay.transaction import Transaction
from headless_passkey.errors import SetupReason, UsageError
from postgres_store import database
from postgres_store.pipeline import Told
from tests.ports import reserved_port
from tests.relay.household import fresh_id, running_relay
from tests.relay.states import OpeningThatWaits
from tests.relay.stores import PostgresServer, postgres, query
from tests.relay.test_app import answer, eventually_held
from tests.trust.people import companion, device, found, grow


def own_server() -> PostgresServer:
    """A server that the test may stop."""
    postgres()  # which leaves the test out where there is none
    return PostgresServer()


@pytest.fixture
def place(tmp_path: Path) -> PostgresUri:
    return postgres().database_for(tmp_path)


@pytest_asyncio.fixture
async def store(place: PostgresUri) -> AsyncIterator[Store]:
    async with open_store(place) as opened:
        yield opened


def add(db: Transaction, name: str) -> None:
    db.execute("INSERT INTO accounts (id, name, created_at) VALUES (?, ?, 1)", (name, name))


def names(db: Transaction) -> list[str]:
    return [name for (name,) in db.execute("SELECT name FROM accounts ORDER BY name")]


# Round trips


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many statements went in each round trip of transactions."""
    went: list[int] = []
    tell = database.Connection.tell

    def told(connection: database.Connection, statements: Sequence[Told]) -> Any:
        went.append(len(statements))
        return tell(connection, statements)

    monkeypatch.setattr(database.Connection, "tell", told)
    return went


async def test_pushes_and_their_outcomes_take_no_round_trip_each(store: Store, trips: list[int]) -> None:
    tokens = [f"{owner} {number}" for owner in ("anna", "bert") for number in range(channels.MAX_CHANNELS)]

    def register(db: Transaction) -> None:
        add(db, "ada")
        for token in tokens:
            address, owner = Fcm(app="app.example", token=token), token.split()[0]
            channels.register(db, companion=owner, account="ada", handle=token, address=address, now=1.0)

    await store.transact(register)
    trips.clear()
    kinds = frozenset(Kind)
    orders = await store.transact(lambda db: channels.tell(db, "ada", Purpose.RING, 1.0, kinds=kinds))
    assert [order.push.handle for order in orders] == tokens
    assert len(trips) == 3  # the channels, the pushes, the commit
    trips.clear()
    ends = [(order.number, Delivery(outcome=PushOutcome.SENT)) for order in orders]
    await store.transact(lambda db: channels.record(db, States(SqlStates(db), 1.0), ends, 1.0))
    assert len(trips) == 2
    assert await store.transact(lambda db: db.execute("SELECT count(*) FROM pushes").fetchone()[0]) == 0


async def test_a_ring_takes_no_round_trip_for_each_member(store: Store, trips: list[int]) -> None:
    anna = companion()
    first = found(anna)
    second = grow(first, anna, anna, *(device(f"lamp {number}") for number in range(40)))

    def founded(db: Transaction) -> None:
        add(db, first.account)
        accounts.store_ring(db, first, 1.0)

    await store.transact(founded)
    trips.clear()
    await store.transact(lambda db: accounts.store_ring(db, second, 1.0))
    assert len(trips) < 5
    assert await store.transact(lambda db: len(accounts.names_of(db, first.account))) == 41


# Places


def test_a_url_is_a_database_and_everything_else_a_file() -> None:
    assert store_place("postgresql://relay@db.example/relay") == PostgresUri(
        "postgresql://relay@db.example/relay"
    )
    assert store_place("postgres://db/relay") == PostgresUri("postgres://db/relay")
    assert store_place("relay.sqlite3") == Path("relay.sqlite3")
    several = "postgres://relay@one:5432,[2001:db8::1]:5433,two/relay?target_session_attrs=read-write"
    assert store_place(several) == PostgresUri(several)


@pytest.mark.threat("T11")
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://relay:s3cret@db/relay",
        "postgresql://relay:s3cret@one,[::1]:5433/relay",
        "postgresql://:s3cret@db/relay",
        "postgresql://db/relay?password=s3cret",
        "postgresql://db/relay?sslpassword=s3cret",
    ],
    ids=["user info", "of several hosts", "without a name", "parameter", "of a key"],
)
def test_a_password_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError, match="PGPASSFILE") as refused:
        store_place(url)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["postgresql://", "postgresql://db", "postgresql://db/", "postgresql://[::1/relay"]
)
def test_a_url_without_a_database_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="expected postgresql://"):
        store_place(url)


# Transactions


async def test_a_transaction_that_fails_leaves_nothing_behind(store: Store) -> None:
    def half(db: Transaction) -> None:
        add(db, "alice")
        raise KeyError("alice")

    with pytest.raises(KeyError):
        await store.transact(half)
    assert await store.transact(names) == []


async def test_of_two_transactions_that_meet_one_is_run_again_over_what_the_other_has_left(
    store: Store,
) -> None:
    """Each reads how many there are and adds the next one; both have read before one writes."""
    both = threading.Barrier(2, timeout=30)
    tries: list[int] = []

    def next_one(db: Transaction) -> None:
        number = len(names(db))
        tries.append(number)
        if len(tries) <= 2:
            both.wait()
        add(db, f"{number}")

    await asyncio.gather(store.transact(next_one), store.transact(next_one))
    assert await store.transact(names) == ["0", "1"]
    assert sorted(tries) == [0, 0, 1]


async def test_a_transaction_that_always_meets_others_is_busy_in_the_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)

    def meets(_db: Transaction) -> None:
        raise SerializationFailure

    with pytest.raises(StoreBusy):
        await store.transact(meets)


async def test_who_waits_is_woken_after_the_commit(store: Store, place: PostgresUri) -> None:
    seen: list[object] = []
    await store.transact(
        lambda db: add(db, "alice"),
        committed=lambda _: seen.extend(query(place, "SELECT name FROM accounts")),
    )
    assert seen == [("alice",)]


async def test_a_fault_of_ours_is_told_without_values(store: Store) -> None:
    await store.transact(lambda db: add(db, "alice"))
    with pytest.raises(StoreUnavailable, match="duplicate key") as refused:
        await store.transact(lambda db: add(db, "alice"))
    assert "alice" not in str(refused.value)
    assert await store.transact(names) == ["alice"]


# Calls that are committed later, again, or not at all


def fails_to_commit(place: PostgresUri, *, times: int) -> None:
    """So many commits of changes to states fail from now on, as those do that meet others."""
    query(
        place,
        f"""
        CREATE SEQUENCE tries;
        CREATE FUNCTION meet() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('tries') <= {times} THEN
                RAISE SQLSTATE '40001';
            END IF;
            RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER meets AFTER INSERT OR UPDATE ON account_states
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION meet()
        """,
    )


async def test_a_call_that_is_run_again_counts_once(place: PostgresUri, tmp_path: Path) -> None:
    async with running_relay(tmp_path, place=place) as relay:
        home = await relay.household()
        (anna, _), (frame,) = home.companions, home.devices
        name = fresh_id()
        await frame.submit(anna, name=name)
        answers: list[Answer] = []
        relay.app[RELAY].follow(answers.append)
        fails_to_commit(place, times=2)
        assert (await anna.act(frame, name, "claimed")).status == 200
        assert query(place, "SELECT last_value FROM tries") == [(3,)]
        assert len([answer for answer in answers if answer.changed]) == 1
        assert await frame.claimer(name) == anna.name


async def test_a_call_that_was_rolled_back_renews_no_lease(
    place: PostgresUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_relay(tmp_path, place=place) as relay:
        home = await relay.household()
        (anna, _), (frame,) = home.companions, home.devices
        name = fresh_id()
        await frame.submit(anna, name=name)
        await anna.inbox()
        assert (await anna.act(frame, name, "claimed")).status == 200
        fails_to_commit(place, times=1_000_000)
        monkeypatch.setattr(database, "BUSY_SECONDS", 0.0)
        relay.clock.ahead += 50
        assert (await anna.act(frame, name, "opened")).problem == "store-unavailable"
        assert (await frame.status(name))["state"] == "claimed"
        query(place, "DROP TRIGGER meets ON account_states")
        relay.clock.ahead += 11 + RENEWED
        assert (await frame.status(name))["state"] == "delivered"


@pytest.mark.threat("T5")
async def test_a_claim_is_nobody_elses_while_its_commit_is_not_known_to_the_relay(
    place: PostgresUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder has not called for longer than a lease, until it claims."""
    committed, goes_on = threading.Event(), threading.Event()
    once = PostgresStore._once

    def hesitate(store: PostgresStore, *words: Any, **more: Any) -> Any:
        result = once(store, *words, **more)
        if not committed.is_set():
            committed.set()
            assert goes_on.wait(30)
        return result

    async with running_relay(tmp_path, place=place, lease=10) as relay:
        home = await relay.household()
        (anna, bert), (frame,) = home.companions, home.devices
        name = fresh_id()
        await frame.submit(anna, bert, name=name)
        word = await anna.claim(frame, name)
        relay.clock.ahead += 14
        monkeypatch.setattr(PostgresStore, "_once", hesitate)
        claiming = asyncio.ensure_future(anna.act(frame, name, "claimed", word=word))
        try:
            assert await asyncio.to_thread(committed.wait, 30)
            assert await frame.claimer(name) == anna.name
            assert (await bert.act(frame, name, "claimed")).problem == "already-claimed"
        finally:
            goes_on.set()
        assert (await claiming).status == 200
        assert await frame.claimer(name) == anna.name


async def test_a_change_that_is_there_without_the_relays_knowledge_wakes_those_who_wait(
    place: PostgresUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is lost before the server has said that it has committed."""
    tell = database.Connection.tell

    def tell_and_lose(connection: database.Connection, statements: Sequence[Told]) -> Any:
        told = tell(connection, statements)
        if any("INTO envelopes" in each.statement for each in statements):
            connection.close()
            raise OperationalError("the connection is lost")
        return told

    async with running_relay(tmp_path, place=place) as relay:
        home = await relay.household()
        (anna, _), (frame,) = home.companions, home.devices
        cursor = (await anna.get("/v1/inbox")).body["cursor"]
        waiting = await eventually_held(relay, f"/v1/inbox?cursor={cursor}&wait=25", anna)
        monkeypatch.setattr(database.Connection, "tell", tell_and_lose)
        assert (await frame.submit(anna, name=fresh_id())).problem == "store-unavailable"
        assert len((await answer(waiting)).body["requests"]) == 1


async def test_a_change_that_is_there_later_without_the_relays_knowledge_wakes_those_who_wait(
    place: PostgresUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is lost while the server commits."""
    unhurried = database._BEGINNING.replace("'statement_timeout', '5000'", "'statement_timeout', '60000'")
    assert unhurried != database._BEGINNING
    monkeypatch.setattr(database, "_BEGINNING", unhurried)
    waiting_for_it = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    waits = "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
    query(place, f"{waits} 'BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END'")
    query(
        place,
        "CREATE CONSTRAINT TRIGGER waits AFTER INSERT ON envelopes DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION wait()",
    )
    async with running_relay(tmp_path, place=place) as relay:
        home = await relay.household()
        (anna, _), (frame,) = home.companions, home.devices
        cursor = (await anna.get("/v1/inbox")).body["cursor"]
        waiting = await eventually_held(relay, f"/v1/inbox?cursor={cursor}&wait=25", anna)
        with closing(connect(place.uri, autocommit=True)) as other:
            other.execute("SELECT pg_advisory_lock(7)")
            submitting = asyncio.ensure_future(frame.submit(anna, name=fresh_id()))
            async with asyncio.timeout(60):
                while not query(place, waiting_for_it):  # noqa: ASYNC110  it is the server that waits
                    await asyncio.sleep(0.01)
            store = relay.app[RELAY]._database
            assert isinstance(store, PostgresStore)
            for connection in list(store._used):
                connection.cut()
            assert (await submitting).problem == "store-unavailable"
            assert not waiting.done()
        assert len((await answer(waiting)).body["requests"]) == 1


# Connections


async def test_an_opening_that_is_cancelled_leaves_nothing_open(
    place: PostgresUri, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = OpeningThatWaits(postgres_module, "migrate", monkeypatch)
    await opening.cancelled(open_store(place))  # a socket that is open fails the test


async def test_connections_that_were_cut_are_made_anew(store: Store, place: PostgresUri) -> None:
    await store.transact(lambda db: add(db, "alice"))
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    assert query(place, cut)
    assert await store.transact(names) == ["alice"]


async def test_a_transaction_whose_connection_is_cut_in_the_middle_is_run_again(
    store: Store, place: PostgresUri
) -> None:
    cuts = iter([True, False])

    def cut_once(db: Transaction) -> None:
        add(db, "alice")
        if next(cuts):
            (pid,) = db.execute("SELECT pg_backend_pid()").fetchone()
            query(place, f"SELECT pg_terminate_backend({pid})")
        names(db)

    await store.transact(cut_once)
    assert await store.transact(names) == ["alice"]


async def test_a_server_that_is_away_is_said_and_the_store_goes_on_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = [100.0]
    monkeypatch.setattr(database, "monotonic", lambda: sum(ticks))
    server = own_server()
    try:
        async with open_store(server.database_for(tmp_path)) as store:
            await store.transact(lambda db: add(db, "alice"))
            server.stop()
            with pytest.raises(StoreUnavailable, match="cannot be connected to"):
                await store.transact(names)
            server.start()
            with pytest.raises(
                StoreUnavailable, match="a moment ago"
            ):  # nobody waits for the server meanwhile
                await store.transact(names)
            ticks.append(database.AWAY_SECONDS)
            assert await store.transact(names) == ["alice"]
    finally:
        server.end()


async def test_a_server_that_is_not_there_is_said_without_the_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGPASSWORD", "s3cret")
    with pytest.raises(StoreUnavailable, match="cannot be connected to") as refused:
        async with open_store(PostgresUri(f"postgresql://relay@127.0.0.1:{reserved_port()}/relay")):
            pass
    assert "s3cret" not in str(refused.value)


# Relays


async def test_relays_share_a_database_and_a_command_that_copies_it_has_it_alone(place: PostgresUri) -> None:
    async with open_store(place, serves=True), open_store(place, serves=True):
        with pytest.raises(StoreBusy, match="a relay is using"):
            async with open_store(place, alone=True):
                pass
        async with open_store(place) as beside:
            await beside.transact(lambda db: add(db, "alice"))
    async with open_store(place, alone=True) as copied:
        assert await copied.transact(names) == ["alice"]
        for words in ({"serves": True}, {"alone": True}):
            with pytest.raises(StoreBusy):
                async with open_store(place, **words):
                    pass


@pytest.mark.parametrize("how", ["immediate", "killed", "backend killed"])
async def test_a_request_survives_a_relay_and_its_server(tmp_path: Path, how: str) -> None:
    server = own_server()
    try:
        place = server.database_for(tmp_path)
        async with running_relay(tmp_path, place=place) as relay:
            home = await relay.household()
            (anna, _), (frame,) = home.companions, home.devices
            name = fresh_id()
            await frame.submit(anna, name=name)
            match how:
                case "immediate":
                    server.stop("immediate")
                    server.start()
                case "killed":
                    server.kill()
                    assert (await anna.get("/v1/inbox")).problem == "store-unavailable"
                    server.start()
                case _:
                    server.kill_backend(urlsplit(place.uri).path[1:])
            async with asyncio.timeout(30):  # the relay's sweep may have met the server that was away
                while (await anna.get("/v1/inbox")).status == 503:  # noqa: ASYNC110  as a client does
                    await asyncio.sleep(0.05)
            assert [item["id"] for item in await anna.inbox()] == [name]
            assert (await anna.claims(frame, (await anna.inbox())[0])).status == 200
        async with running_relay(tmp_path, place=place) as relay:
            again = relay.caller(frame.person)
            assert (await again.status(name))["state"] == "claimed"
            assert relay.app[RELAY].public_url == relay.url
    finally:
        server.end()


# The schema


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    place = postgres().database_for(tmp_path)
    query(place, "UPDATE headless_passkey_relay SET version = version + 1")
    with (
        closing(PostgresStore(place).connected()) as connection,
        pytest.raises(StoreUnusable, match="newer version") as refused,
    ):
        migrate(connection)
    assert refused.value.reason is SetupReason.STATE_INCOMPATIBLE


def test_a_step_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = postgres().database_for(tmp_path)
    monkeypatch.setattr(
        postgres_module,
        "MIGRATIONS",
        (*MIGRATIONS, "CREATE TABLE more (a INTEGER);\nCREATE TABLE more (a INTEGER)"),
    )
    with closing(PostgresStore(place)) as store, pytest.raises(StoreUnusable, match="already exists"):
        store.open()
    assert query(place, "SELECT version FROM headless_passkey_relay") == [(len(MIGRATIONS),)]
    assert query(place, "SELECT to_regclass('more')") == [(None,)]
