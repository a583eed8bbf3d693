"""The relying party's store in PostgreSQL: several processes, races between them, and a database that goes away and comes back."""

import asyncio
import errno
import gc
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from secrets import token_bytes, token_hex
from time import time
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from postgres_store import database as postgres_database
from postgres_store.pipeline import Told
from relying_party.core.credentials import User
from relying_party.core.proofs import STEP_SECONDS, Proof
from relying_party.errors import CeremonyGone, ProofInvalid, SetupError, StoreUnavailable, UseDpopNonce
from relying_party.http.app import make_app
from relying_party.http.request import STATE
from relying_party.place import PostgresUri, store_place
from relying_party.store import minutes, sql
from relying_party.store import postgres as postgres_module
from relying_party.store.postgres import STEPS, PostgresStore
from tests.pgbouncer import pooled
from tests.ports import reserved_port
from tests.programs import run, running
from tests.relay.states import OpeningThatWaits
from tests.relay.stores import ON_POSTGRES, PostgresServer, postgres
from tests.rp.authenticator_double import create, get
from tests.rp.clients import Clock, Device, Site, make_config
from tests.rp.records import ADA, EVE, credential, session, use
from tests.rp.stores import new_database, query
from tests.rp.test_challenges import record
from tests.rp.test_program import Visitor
from tests.rp.test_workers import OPTIONS, PATIENCE, clients, served, stopped

ROUNDS = 1000 if ON_POSTGRES else 100
NOW = 1_800_000_000.0


@pytest.fixture
def place() -> PostgresUri:
    return new_database()


def own_server() -> PostgresServer:
    """A server that the test may stop."""
    postgres()  # which leaves the test out where there is none
    return PostgresServer()


async def both(*calls: Awaitable[Any]) -> list[Any]:
    """What calls at once return or raise."""
    return await asyncio.gather(*calls, return_exceptions=True)


def proof(nonce: str | None, identifier: str = "a") -> Proof:
    return Proof(key_thumbprint="key", id=identifier, nonce=nonce)


async def newest(store: PostgresStore, now: float = NOW) -> str:
    with pytest.raises(UseDpopNonce) as refusal:
        await store.take_proof(proof(None), now=now)
    return refusal.value.nonce


# Places


@pytest.mark.threat("T11")
@pytest.mark.parametrize("url", ["postgresql://rp:s3cret@db/rp", "postgresql://db/rp?password=s3cret"])
async def test_a_password_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    status, stdout, stderr = await run("relying_party", "serve", "--store", url)
    assert (status, stdout) == (2, "")
    assert "PGPASSFILE" in stderr
    assert "s3cret" not in stderr


@pytest.mark.threat("T11")
async def test_a_database_that_is_away_is_said_in_one_line_without_the_password() -> None:
    url = f"postgresql://rp@127.0.0.1:{reserved_port()}/rp"
    for more in ((), ("--workers", "2")):
        status, stdout, stderr = await run(
            "relying_party", "serve", "--listen", "127.0.0.1:0", "--store", url, *more,
            environment={"PGPASSWORD": "s3cret"},
        )  # fmt: skip
        assert (status, stdout) == (4, "")
        (line,) = stderr.splitlines()
        assert "the database cannot be connected to" in line
        assert "s3cret" not in line


@pytest.mark.threat("T11")
async def test_no_value_is_in_the_log_of_the_server() -> None:
    """It writes each statement that fails, as those do that meet others."""
    server = own_server()
    try:
        async with PostgresStore(new_database(server)) as store:
            user = replace(ADA, name="nobody may read this")
            await store.register(credential(user), user, session(user), ends=None)
            with pytest.raises(StoreUnavailable):
                await store._transaction(
                    lambda db: db.execute("SELECT 1 FROM users WHERE name = ? AND 1 / 0 = 1", (user.name,)),
                    writes=True,
                )
        log = (server.folder / "log").read_text()
        assert "division by zero" in log
        assert "WHERE name = $1" in log
        assert user.name not in log
    finally:
        server.end()


def test_a_url_is_a_database_and_everything_else_a_file() -> None:
    assert store_place("postgresql://rp@db.example/rp") == PostgresUri("postgresql://rp@db.example/rp")
    assert store_place("rp.sqlite") == Path("rp.sqlite")


async def test_a_database_of_a_newer_version_is_refused(place: PostgresUri) -> None:
    query(place, "UPDATE headless_passkey_relying_party SET version = version + 1")
    with pytest.raises(SetupError, match="newer version"):
        async with PostgresStore(place):
            pytest.fail("opened")


async def test_a_database_of_another_program_is_left_as_it_is() -> None:
    place = new_database(empty=True)
    query(place, "CREATE TABLE users (theirs INTEGER)")
    with pytest.raises(SetupError, match="already exists"):
        async with PostgresStore(place):
            pytest.fail("opened")
    assert query(place, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == [("users",)]


async def test_many_that_start_at_once_make_the_tables_once() -> None:
    place = new_database(empty=True)
    async with AsyncExitStack() as stack:
        opened = await both(*(stack.enter_async_context(PostgresStore(place)) for _ in range(4)))
    assert [type(one) for one in opened] == [PostgresStore] * 4
    assert query(place, "SELECT version FROM headless_passkey_relying_party") == [(len(STEPS),)]


# Time


async def test_who_uses_a_database_counts_by_its_clock(
    place: PostgresUri, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that jumps on one machine ends nobody's session, and does no removal that is due in three days."""
    monkeypatch.setattr("time.time", lambda: time() + 10 * 86400)
    app = make_app(make_config(place))
    async with TestClient(TestServer(app)):
        ((before,),) = query(place, "SELECT extract(epoch FROM clock_timestamp())::float8")
        shown = app[STATE].clock()
        ((after,),) = query(place, "SELECT extract(epoch FROM clock_timestamp())::float8")
    assert before - 60 < shown < after + 60


async def test_a_database_whose_clock_is_set_right_refuses_nobody_until_it_is_looked_at_again() -> None:
    postgres()  # which leaves the test out where there is none
    server = PostgresServer(jumps=True)
    try:
        server.jump(86400)
        config = make_config(new_database(server))
        app = make_app(config)
        async with TestClient(TestServer(app)) as http:
            clock = Clock(time())
            site = Site(http, app, clock, config)
            await asyncio.to_thread(server.jump, 0)
            assert (await site.send(Device(), "GET", "/session")).slug == "not-signed-in"
            clock.now += 86400
            answer = await site.send(Device(), "GET", "/session")
            assert (answer.slug, abs(answer.body["now"] - time()) < 60) == ("proof-clock", True)
    finally:
        server.end()


async def test_sessions_that_have_ended_are_forgotten_by_the_clock_of_the_database(
    place: PostgresUri,
) -> None:
    async with PostgresStore(place) as store:
        await store.register(credential(), ADA, session(), ends=None)  # it has ended long ago
        live = replace(session(token=b"live"), expires_at=2**40, ends_at=2**40)
        await store.sign_in(use(), live, ends=None)
        await store.keep_house()
        assert query(place, "SELECT token_hash FROM sessions") == [(b"live",)]


def let_a_statement_delete(place: PostgresUri, most: int, *tables: str) -> None:
    """Break every statement off that deletes more rows, as the server does with one that takes too long."""
    raises = f"IF (SELECT count(*) FROM gone) > {most} THEN RAISE query_canceled; END IF; RETURN NULL;"  # noqa: S608
    query(
        place,
        f"CREATE FUNCTION count_deleted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {raises} END $$",
    )
    for table in tables:
        query(
            place,
            f"CREATE TRIGGER counted AFTER DELETE ON {table} REFERENCING OLD TABLE AS gone"
            " FOR EACH STATEMENT EXECUTE FUNCTION count_deleted()",
        )


async def test_a_connection_for_which_no_file_is_left_is_no_answer_of_the_database(
    place: PostgresUri, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with PostgresStore(place) as store:
        while not store.database._idle.empty():
            store.database._idle.get_nowait().close()
        with monkeypatch.context() as patch:
            patch.setattr(os, "dup", none_left)
            with pytest.raises(StoreUnavailable, match="Too many open files"):  # which housekeeping outlives
                await store.keep_house()
        await store.keep_house()
        gc.collect()  # a connection that is not closed warns
        assert store.database._idle.qsize() == 1


async def test_what_has_ended_in_a_night_is_forgotten_in_portions(
    place: PostgresUri, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "FORGOTTEN", 2)
    async with PostgresStore(place) as store:
        await store.register(credential(), ADA, session(), ends=None)
        for number in range(5):
            await store.sign_in(use(), session(token=b"ended %d" % number), ends=None)
        query(
            place,
            "INSERT INTO spent_refresh_tokens SELECT sha256(number::text::bytea), session_id"
            " FROM sessions, generate_series(1, 5) AS number WHERE token_hash = 'ended 1'",
        )
        live = replace(session(token=b"live"), expires_at=2**40, ends_at=2**40)
        await store.sign_in(use(), live, ends=None)
        query(
            place,
            "INSERT INTO spent_refresh_tokens SELECT 'of live', session_id FROM sessions WHERE ends_at > 100",
        )
        let_a_statement_delete(place, 2, "sessions", "spent_refresh_tokens")
        await store.keep_house()
        assert query(place, "SELECT token_hash FROM sessions") == [(b"live",)]
        assert query(place, "SELECT refresh_hash FROM spent_refresh_tokens") == [(b"of live",)]


CYD = User(handle=b"c" * 32, name="cyd", display_name="Cyd")


async def test_what_goes_with_a_removal_that_is_soon_due_is_forgotten_in_portions_before(
    place: PostgresUri, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "FORGOTTEN", 2)
    async with PostgresStore(place) as store:
        for user, name in ((ADA, b"ada's"), (EVE, b"eve's"), (CYD, b"cyd's")):
            opened = replace(session(user, name), credential_id=name, expires_at=2**40, ends_at=2**40)
            await store.register(credential(user, name), user, opened, ends=None)
        query(place, "UPDATE sessions SET credential_id = 'another' WHERE token_hash = 'eve''s'")
        query(
            place,
            "INSERT INTO spent_refresh_tokens SELECT token_hash || number::text::bytea, session_id"
            " FROM sessions, generate_series(1, 5) AS number",
        )
        due = int(store.clock()) + 60
        asked = "INSERT INTO removals SELECT name::bytea, handle, {}, 'x', 0, {} FROM users WHERE name = '{}'"
        query(place, asked.format("NULL", due, "ada"))  # an account
        query(place, asked.format("'eve''s'", due, "eve"))  # a passkey that has opened no session
        query(place, asked.format("NULL", due + sql.GOING_SECONDS, "cyd"))  # not soon
        let_a_statement_delete(place, 2, "spent_refresh_tokens")
        with pytest.raises(StoreUnavailable):
            await store.user_by_name("cyd", now=due)  # as it was for everybody
        await store.keep_house()
        assert Counter(
            hash_[:5] for (hash_,) in query(place, "SELECT refresh_hash FROM spent_refresh_tokens")
        ) == {
            b"eve's": 5,
            b"cyd's": 5,
        }
        assert await store.user_by_name("cyd", now=due) == CYD
        assert await store.user_by_name("ada", now=due) is None


def let_a_statement_delete_no_spent_tokens_in_the_usual_time(place: PostgresUri) -> None:
    """Break such a statement off, as the server does with one that has millions to delete in 5 s."""
    usual = "current_setting('statement_timeout') = '5s' AND EXISTS (SELECT 1 FROM gone)"
    raises = f"IF {usual} THEN RAISE query_canceled; END IF; RETURN NULL;"
    query(place, f"CREATE FUNCTION no_time() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {raises} END $$")
    query(
        place,
        "CREATE TRIGGER timed AFTER DELETE ON spent_refresh_tokens REFERENCING OLD TABLE AS gone"
        " FOR EACH STATEMENT EXECUTE FUNCTION no_time()",
    )


async def test_who_ends_sessions_is_not_kept_from_it_by_their_spent_refresh_tokens(
    place: PostgresUri,
) -> None:
    async with PostgresStore(place) as store:
        await spend(store, place)
        let_a_statement_delete_no_spent_tokens_in_the_usual_time(place)
        assert await store.end_session(ADA.handle, b"id of one")
        assert await store.end_sessions(None, by=KEPT, now=NOW) == 2
        assert query(place, "SELECT session_id FROM sessions") == [(KEPT.session_id,)]


@pytest.mark.parametrize("what", ["passkey", "account", "overdue"])
async def test_what_is_removed_goes_with_any_number_of_spent_refresh_tokens(
    place: PostgresUri, what: str
) -> None:
    async with PostgresStore(place) as store:
        await spend(store, place)
        let_a_statement_delete_no_spent_tokens_in_the_usual_time(place)
        if what == "passkey":
            await store.remove_credential(b"young", removal_id=b"r", by=KEPT, now=NOW)
        elif what == "account":
            await store.remove_user(removal_id=b"r", by=KEPT, now=NOW)
        else:  # as when no relying party was running in the quarter of an hour before
            query(place, "INSERT INTO removals SELECT 'r', handle, 'young', 'x', 0, 1 FROM users")
            assert await store.user_by_name("ada", now=NOW) == ADA
        kept = [] if what == "account" else [(KEPT.session_id,)]
        assert query(place, "SELECT session_id FROM sessions") == kept
        assert query(place, "SELECT refresh_hash FROM spent_refresh_tokens") == []


KEPT = replace(session(), created_at=int(NOW), auth_time=int(NOW), expires_at=2**40, ends_at=2**40)


async def spend(store: PostgresStore, place: PostgresUri) -> None:
    """Three sessions of a young passkey, each with spent refresh tokens, beside one that is kept."""
    made = replace(credential(), created_at=int(NOW))
    await store.register(made, ADA, KEPT, ends=None)
    await store.add_credential(replace(made, credential_id=b"young"), KEPT, was=KEPT.token_hash)
    for name in (b"one", b"two", b"three"):
        opened = replace(KEPT, session_id=b"id of " + name, token_hash=name, credential_id=b"young")
        await store.sign_in(use(b"young"), opened, ends=None)
    query(
        place,
        "INSERT INTO spent_refresh_tokens SELECT token_hash || number::text::bytea, session_id"
        " FROM sessions, generate_series(1, 5) AS number WHERE credential_id = 'young'",
    )


async def test_the_used_proofs_of_steps_that_are_over_are_forgotten_in_portions(
    place: PostgresUri, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minutes, "FORGOTTEN", 2)
    async with PostgresStore(place) as store:
        await newest(store)
        let_a_statement_delete(place, 2, "used_proofs")
        ((step,),) = query(place, "SELECT number FROM proof_step")
        query(
            place,
            "INSERT INTO used_proofs SELECT sha256(each::text::bytea), number - CASE WHEN each <= 5 THEN 2 ELSE 1 END"
            " FROM proof_step, generate_series(1, 7) AS each",
        )
        await newest(store, NOW + STEP_SECONDS)  # the next step begins
        assert query(place, "SELECT step FROM used_proofs") == [(step - 1,)] * 2


async def test_a_house_that_is_not_kept_is_told(
    place: PostgresUri, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(postgres_module, "HOUSE_SECONDS", 0.01)
    async with asyncio.timeout(60), PostgresStore(place) as store:
        await store.register(credential(), ADA, session(), ends=None)
        let_a_statement_delete(place, 0, "sessions")
        while "what has ended could not be forgotten" not in caplog.text:  # noqa: ASYNC110  a line of the log
            await asyncio.sleep(0.01)


async def test_everyone_is_read_in_as_many_round_trips_as_one_user(
    place: PostgresUri, monkeypatch: pytest.MonkeyPatch
) -> None:
    trips = 0
    tell = postgres_database.Connection.tell

    def told(connection: postgres_database.Connection, statements: Sequence[Told]) -> Any:
        nonlocal trips
        trips += 1
        return tell(connection, statements)

    monkeypatch.setattr(postgres_database.Connection, "tell", told)
    async with PostgresStore(place) as store:
        users = [replace(ADA, handle=bytes([number]) * 32, name=f"ada {number}") for number in range(9)]
        taken = []
        for user in users:
            name = user.handle[:4]
            await store.register(credential(user, name), user, session(user, name), ends=None)
            trips = 0
            found = await store.everyone(now=50, most=8)
            taken.append(trips)
        assert len(set(taken)) == 1
        assert [one.user for one in found] == users[:8]  # registered at one time, so by their names
        for one in found:
            assert one == await store.registered(one.user.handle, now=50)
        assert [len(one.sessions) for one in await store.everyone(now=100, most=8)] == [0] * 8


# Several processes


@asynccontextmanager
async def two_parties(place: PostgresUri) -> AsyncIterator[tuple[Visitor, Visitor, Any]]:
    """Two programs as on two machines, behind one name, and one device at each; it is the same device."""
    listen = ("--listen", "127.0.0.1:0", "--store", str(place), "--origin", "http://localhost:7777")
    async with (
        asyncio.timeout(PATIENCE),
        running("relying_party", "serve", *listen) as one,
        running("relying_party", "serve", *listen) as two,
        clients() as http,
    ):
        first, second = Visitor(await one.line(), http), Visitor(await two.line(), http)
        second._key = first._key
        yield first, second, one


async def test_what_begins_on_one_machine_ends_on_another_and_a_killed_one_takes_nothing_with_it(
    place: PostgresUri,
) -> None:
    async with two_parties(place) as (first, second, one):
        ceremony, options = await first.begin("registration", user_name="ada")
        passkey, response = create(options, "http://localhost:7777")
        body = {"ceremony": ceremony, "response": response}
        assert (await second.post("/webauthn/registration/result", body))[0] == 201
        assert (await first.post("/webauthn/registration/result", body))[0] == 410
        ceremony, options = await first.begin("authentication")
        one.process.kill()
        await one.process.wait()
        body = {"ceremony": ceremony, "response": get(passkey, options, "http://localhost:7777")}
        status, answer = await second.post("/webauthn/authentication/result", body)
        assert (status, answer["user"]["name"]) == (200, "ada")


@pytest.mark.threat("T13")
async def test_parties_go_through_a_pooler_with_fewer_connections_than_they_have(
    place: PostgresUri, tmp_path: Path
) -> None:
    """PgBouncer in transaction mode: two programs, and then as many sign-ins at once as there are users."""
    async with pooled(str(place), tmp_path) as pooler:
        async with two_parties(PostgresUri(pooler)) as (first, second, _):
            ceremony, options = await first.begin("registration", user_name="ada")
            _, response = create(options, "http://localhost:7777")
            body = {"ceremony": ceremony, "response": response}
            assert (await second.post("/webauthn/registration/result", body))[0] == 201
            assert (await first.post("/webauthn/registration/result", body))[0] == 410
        async with two_stores(PostgresUri(pooler)) as (one, other):
            nonce = await newest(one)
            proofs = [proof(nonce, token_hex(8)) for _ in range(40)]
            taken = await asyncio.gather(
                *(store.take_proof(each, now=NOW) for each in proofs for store in (one, other)),
                return_exceptions=True,
            )
            refused = [each for each in taken if isinstance(each, ProofInvalid)]
            assert (len(refused), len(taken)) == (40, 80)
            assert not [each for each in taken if isinstance(each, Exception) and each not in refused]


@pytest.mark.threat("T13")
async def test_workers_share_ceremonies_and_proofs_in_the_database(
    place: PostgresUri, tmp_path: Path
) -> None:
    async with served(tmp_path, "--store", str(place)) as party, clients() as http:
        first, second = await party.pid(1), await party.pid(2)
        visitor = Visitor(party.url, http)
        async with stopped(second):
            ceremony, options = await visitor.begin("registration", user_name="ada")
            proof_text = visitor._key.proof("POST", party.url + OPTIONS, time(), nonce=visitor._nonce)
            async with http.post(party.url + OPTIONS, json={}, headers={"DPoP": proof_text}) as answer:
                assert answer.status == 200
        async with stopped(first):
            _, response = create(options, party.url)
            body = {"ceremony": ceremony, "response": response}
            assert (await visitor.post("/webauthn/registration/result", body))[0] == 201
            async with http.post(party.url + OPTIONS, json={}, headers={"DPoP": proof_text}) as answer:
                assert answer.status == 401
                assert (await answer.json(content_type=None))["type"].endswith(":proof-invalid")
        os.kill(first, signal.SIGKILL)
        await party.pid(1, but=first)
        assert await party.program.end() == 0


# Races


@asynccontextmanager
async def two_stores(place: PostgresUri) -> AsyncIterator[tuple[PostgresStore, PostgresStore]]:
    async with PostgresStore(place) as one, PostgresStore(place) as two:
        yield one, two


@pytest.mark.threat("T5")
async def test_of_two_processes_one_gets_a_challenge(place: PostgresUri) -> None:
    async with two_stores(place) as stores:
        for _ in range(ROUNDS):
            name = await stores[0].challenges.add(record(), name=token_bytes(8), share="a", now=0)
            outcomes = await both(*(store.challenges.take(name, now=0) for store in stores))
            assert sorted(type(one).__name__ for one in outcomes) == ["CeremonyGone", "RegistrationRecord"]


@pytest.mark.threat("T13")
async def test_of_two_processes_one_takes_a_proof(place: PostgresUri) -> None:
    async with two_stores(place) as stores:
        nonce = await newest(stores[0])
        for number in range(ROUNDS):
            outcomes = await both(*(store.take_proof(proof(nonce, f"{number}"), now=NOW) for store in stores))
            assert Counter(map(type, outcomes)) == {str: 1, ProofInvalid: 1}


@pytest.mark.threat("T5")
async def test_a_session_that_is_ended_while_it_is_refreshed_or_stepped_up_stays_ended(
    place: PostgresUri,
) -> None:
    async with two_stores(place) as (one, two):
        await one.register(credential(), ADA, session(), ends=None)
        for number in range(ROUNDS // 2):
            first = session(token=b"%d" % number, key="key")
            await one.sign_in(use(), first, ends=None)
            second = replace(first, token_hash=b"next %d" % number)
            used: Awaitable[Any] = (
                two.step_up(use(), second, was=first.token_hash, operation=b"o", until=9)
                if number % 2
                else two.replace_session(second, was=first.token_hash)
            )
            ended, _ = await both(one.end_session(ADA.handle, first.session_id), used)
            assert ended is True
            for token in (first.token_hash, second.token_hash):
                assert await two.session(token, now=2) is None


@pytest.mark.threat("T13")
async def test_of_two_sign_ins_with_one_counter_one_is_an_anomaly(place: PostgresUri) -> None:
    """Both ceremonies have seen the counter of before: whose counter stands still is found where it is stored."""
    async with two_stores(place) as stores:
        await stores[0].register(credential(), ADA, session(), ends=None)
        for number in range(1, ROUNDS // 10):
            noted = await both(*(
                store.sign_in(replace(use(), sign_count=number), session(token=token_bytes(8)), ends=None)
                for store in stores
            ))  # fmt: skip
            assert sorted(one.counter_anomaly for one in noted) == [False, True]
        kept = await stores[0].credential(b"credential", now=2)
        assert kept is not None
        assert (kept.sign_count, kept.counter_anomalies) == (ROUNDS // 10 - 1, ROUNDS // 10 - 1)


async def test_a_step_up_is_spent_by_one_of_two_processes(place: PostgresUri) -> None:
    async with two_stores(place) as stores:
        await stores[0].register(credential(), ADA, session(), ends=None)
        for _ in range(ROUNDS // 10):
            await stores[0].step_up(use(), session(), was=b"token", operation=b"o", until=9)
            spent = await both(*(store.spend_step_up(b"id of token", b"o", now=2) for store in stores))
            assert sorted(spent) == [False, True]


async def test_many_who_sign_in_at_once_on_several_machines_all_get_in(place: PostgresUri) -> None:
    async with two_stores(place) as stores:
        users = [replace(ADA, handle=bytes([n]) * 32, name=f"user {n}") for n in range(16)]
        for user in users:
            await stores[0].register(
                credential(user, user.handle), user, session(user, user.handle), ends=None
            )
        noted = await both(*(
            stores[n % 2].sign_in(use(user.handle), session(user, token_bytes(8)), ends=None)
            for n, user in enumerate(users * 4)
        ))  # fmt: skip
        assert [one for one in noted if isinstance(one, Exception)] == []


# A database that goes away and comes back


@pytest.mark.parametrize("crash", ["immediate", "killed"])
async def test_a_restart_keeps_what_is_stored_and_a_crash_forgets_ceremonies_and_proofs_together(
    crash: str,
) -> None:
    server = own_server()
    try:
        async with PostgresStore(new_database(server)) as store:
            await store.register(credential(), ADA, session(), ends=None)
            nonce = await newest(store)
            await store.take_proof(proof(nonce), now=NOW)
            kept = await store.challenges.add(record(), name=b"kept", share="a", now=0)
            lost = await store.challenges.add(record(), name=b"lost", share="a", now=0)
            server.stop("fast")
            server.start()
            assert await store.session(b"token", now=2) == (session(), ADA)
            with pytest.raises(ProofInvalid):
                await store.take_proof(proof(nonce), now=NOW)
            assert await store.challenges.take(kept, now=0) == record()
            if crash == "killed":
                server.kill()
            else:
                server.stop(crash)
            server.start()
            assert await store.session(b"token", now=2) == (session(), ADA)
            for again in (proof(nonce), proof(nonce, "held back")):
                with pytest.raises(UseDpopNonce):
                    await store.take_proof(again, now=NOW)
            await store.take_proof(proof(await newest(store)), now=NOW)
            with pytest.raises(CeremonyGone):
                await store.challenges.take(lost, now=0)
    finally:
        server.end()


class Wire:
    """A way to the server that can be cut in two: then nothing gets through, and nobody is told."""

    def __init__(self, port: int) -> None:
        self._port, self._open = port, asyncio.Event()
        self._open.set()
        self._ends: list[asyncio.StreamWriter] = []
        self._carriers: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        try:
            yield int(server.sockets[0].getsockname()[1])
        finally:
            server.close()
            for carrier in self._carriers:
                carrier.cancel()
            for end in self._ends:
                end.transport.abort()
            await asyncio.gather(
                *self._carriers, *(end.wait_closed() for end in self._ends), return_exceptions=True
            )

    def cut(self) -> None:
        self._open.clear()

    def heal(self) -> None:
        self._open.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._ends += writer, back
        self._carriers += (
            asyncio.create_task(self._carry(reader, back)),
            asyncio.create_task(self._carry(there, writer)),
        )

    async def _carry(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(1 << 16):
                await self._open.wait()
                to.write(data)
                await to.drain()
        to.close()


async def test_who_is_cut_off_from_the_database_says_so_and_goes_on_when_it_heals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(postgres_database, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(postgres_database, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(postgres_database, "BUSY_SECONDS", 0.0)
    place = new_database()
    server = postgres()
    wire = Wire(server.port)
    async with asyncio.timeout(PATIENCE), wire.listening() as port:
        through = PostgresUri(f"{place.uri.replace(f':{server.port}/', f':{port}/')}?connect_timeout=2")
        async with PostgresStore(through) as cut_off, PostgresStore(place) as other:
            await cut_off.register(credential(), ADA, session(), ends=None)
            wire.cut()
            outcomes = await both(*(cut_off.session(b"token", now=2) for _ in range(4)))
            assert {isinstance(one, StoreUnavailable) for one in outcomes} == {True}
            outcomes.clear()
            await other.end_session(
                ADA.handle, b"id of token"
            )  # revoked meanwhile, where the database is reached
            wire.heal()
            while True:
                try:
                    found = await cut_off.session(b"token", now=2)
                    break
                except StoreUnavailable:
                    continue
            assert found is None
            await cut_off.register(credential(EVE, b"c2"), EVE, session(EVE, b"t2"), ends=None)
    gc.collect()  # psycopg closes the socket of a connection that was never made when it forgets it


async def test_who_takes_time_is_not_cut_off(place: PostgresUri, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a command does that reads all of a large store."""
    monkeypatch.setattr(postgres_database, "LOOK_SECONDS", 0.01)
    tries: list[bool] = []

    def work(db: Any) -> None:
        tries.append(True)
        db._connection._patience = 0.0  # as if the server should have answered long ago
        db.take_time()
        db.execute("SELECT pg_sleep(0.2)")

    async with PostgresStore(place) as store:
        await store.database.run(work)
        monkeypatch.undo()
    assert tries == [True]


async def test_an_opening_that_is_cancelled_leaves_nothing_open(
    place: PostgresUri, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = OpeningThatWaits(postgres_module, "migrate", monkeypatch)
    await opening.cancelled(PostgresStore(place))
    assert connections(place) == 0


async def test_who_closes_waits_for_what_is_under_way_also_when_it_is_cancelled(place: PostgresUri) -> None:
    began, goes_on = threading.Event(), threading.Event()

    def work(db: Any) -> None:
        db.execute("SELECT 1")
        began.set()
        assert goes_on.wait(30)

    store = PostgresStore(place)
    await store.__aenter__()
    running_one = asyncio.ensure_future(store.database.run(work))
    assert await asyncio.to_thread(began.wait, 30)
    closing = asyncio.ensure_future(store.__aexit__(None, None, None))
    for _ in range(3):
        await asyncio.sleep(0)
        closing.cancel()
    assert not closing.done()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await running_one
    assert not [each.name for each in threading.enumerate() if each.name.startswith("store")]
    assert connections(place) == 0


def connections(place: PostgresUri) -> int:
    """How many a store has to the database, once the server has heard of their ends."""
    asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'relying-party'"
    for _ in range(200):
        ((count,),) = query(place, asked)
        if not count:
            break
    return int(count)


async def test_a_closed_database_says_so(place: PostgresUri) -> None:
    async with PostgresStore(place) as store:
        await store.take_proof(proof(await newest(store), token_hex(8)), now=NOW)
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.user_by_name("ada", now=2)


class Explained:
    """A transaction of which the plans are kept."""

    def __init__(self, db: Any) -> None:
        self._db, self.plans = db, ""

    def execute(self, statement: str, values: Sequence[Any]) -> Any:
        rows = self._db.execute(f"EXPLAIN {statement}", values)
        self.plans += "\n".join(line for row in rows for line in row.values())
        return self._db.execute(statement, values)


@pytest.mark.parametrize(
    ("work", "column"),
    [
        (partial(sql.forget_ended, most=5), "ends_at"),
        (partial(sql.forget_spent, most=5), "ends_at"),
        (partial(sql.forget_spent_of_going, most=5), "due_at"),
        (partial(sql._forget_never_used, make_ready=lambda *_: True), "created_at"),
        (partial(sql._settle, make_ready=lambda *_: True), "due_at"),
    ],
    ids=["sessions", "refresh tokens", "refresh tokens that go", "users", "removals"],
)
async def test_what_is_over_is_looked_up_in_an_index_though_the_clock_has_fractions(
    place: PostgresUri, work: Callable[..., Any], column: str
) -> None:
    async with PostgresStore(place) as store:

        def explained(db: Any) -> str:
            wrapped = Explained(db)
            work(wrapped, now=NOW + 0.5)
            return wrapped.plans

        plans = (await store.database.run(explained)).replace("sessions.", "")
        assert re.search(rf"Index Cond: \({column} <= '1\d{{9}}'", plans)
