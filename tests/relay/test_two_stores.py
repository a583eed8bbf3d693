"""Account states in Redis beside a database: what is left where a call ends between the two commits, and who repairs it.

A transaction writes the state of its account first, and then commits in the database. What changes who may do what is
committed there, and then comes to the state in a transaction of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

import pytest
from psycopg.errors import SerializationFailure

from companion_push.cli import make_parser
from companion_push.errors import StoreUnavailable
from companion_push.push.channel import Kind
from companion_push.relay import accounts, redis_states
from companion_push.relay.account_state import AccountState, decoded
from companion_push.relay.account_states import States
from companion_push.relay.app import RELAY, RelayEndpoints, close_account, suspend_account
from companion_push.relay.config import RelayConfig
from companion_push.relay.operations import sweep
from companion_push.relay.redis_place import RedisPlace
from companion_push.relay.transaction import Transaction
from headless_passkey.errors import UsageError
from headless_passkey.trust.account_code import AccountCode
from program_parts.base64url import base64url
from tests.programs import run
from tests.push.recording import RecordingChannel
from tests.relay import redis_servers
from tests.relay.household import NO_LIMITS, Caller, Household, Relay, fresh_id, rates, running_relay
from tests.relay.stores import STATES, postgres, query
from tests.relay.test_notifying import registers, token
from tests.trust.people import grow

ANSWERED: Final = 30.0  # seconds, a safety net


@dataclass
class House:
    """A relay whose account states are in Redis, and an account with two companions and a device."""

    relay: Relay
    fcm: RecordingChannel
    home: Household
    states: RedisPlace

    @property
    def people(self) -> tuple[Caller, Caller, Caller]:
        (anna, bert), (frame,) = self.home.companions, self.home.devices
        return anna, bert, frame

    def state(self, account: str | None = None) -> AccountState | None:
        """The state of an account, as another program reads it."""
        with redis_servers.client(self.states) as client:
            (key,) = redis_servers.keys(
                client, f"{self.states.prefix}:*:v:{account or self.home.account}"
            ) or [b""]
            value = client.get(key)
        return None if value is None else decoded(value[8:])

    def envelopes(self) -> list[str]:
        """To whom the envelopes are."""
        with redis_servers.client(self.states) as client:
            keys = redis_servers.keys(client, f"{self.states.prefix}:*:e:*")
            return sorted(name.decode().split()[-1] for key in keys for name in client.hkeys(key))


@asynccontextmanager
async def a_house(folder: Path, states: RedisPlace | None = None, **settings: Any) -> AsyncIterator[House]:
    place = postgres().database_for(folder)
    states = states or redis_servers.place(STATES or "redis", prefix=f"test-{token_hex(8)}")
    fcm = RecordingChannel(Kind.FCM)
    async with running_relay(folder, place=place, states=states, channels=[fcm], **settings) as relay:
        yield House(relay, fcm, await relay.household(), states)


class Stops:
    """Ends calls between their two commits: once for each of `errors`, where a state was written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> None:
        self.errors = list(errors)
        store = States.store

        def stored(states: States) -> None:
            store(states)
            if states._beside is not None and states._beside.tries.written and self.errors:
                raise self.errors.pop(0)

        monkeypatch.setattr(States, "store", stored)


def killed() -> Exception:
    """What is left is the same as of a process that is killed there."""
    return StoreUnavailable("it was killed")


class Meanwhile:
    """Does something in the middle of a transaction, once, and lets it go on when that has ended."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act, self._loop, self.is_over = act, asyncio.get_running_loop(), False

    def __call__(self) -> None:
        if not self.is_over:
            self.is_over = True
            asyncio.run_coroutine_threadsafe(self._act(), self._loop).result(ANSWERED)


# A call that ends between its two commits


@pytest.mark.threat("T5")
async def test_a_submission_that_was_not_answered_is_pushed_when_its_device_submits_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        await registers(anna)
        name = fresh_id()
        Stops(monkeypatch, killed())
        assert (await frame.submit(anna, bert, name=name)).problem == "store-unavailable"
        assert [item["id"] for item in await bert.inbox()] == [name]
        assert house.fcm.pushes == []
        for _ in range(2):
            assert (await frame.submit(anna, bert, name=name)).status == 200
        await house.fcm.came(1)
        await frame.status(name)
        assert house.fcm.shown() == [("request", token(anna))]


@pytest.mark.threat("T5")
async def test_a_claim_that_was_not_answered_is_its_companions_who_claims_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        name = fresh_id()
        await frame.submit(anna, bert, name=name)
        Stops(monkeypatch, killed())
        assert (await anna.act(frame, name, "claimed")).problem == "store-unavailable"
        assert (await bert.act(frame, name, "claimed")).problem == "already-claimed"
        assert (await anna.act(frame, name, "claimed")).status == 200
        assert await frame.claimer(name) == anna.name


@pytest.mark.threat("T6")
async def test_a_not_me_that_was_not_answered_mutes_when_it_is_said_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_house(tmp_path) as house:
        anna, _, frame = house.people
        name = fresh_id()
        await frame.submit(anna, name=name)
        Stops(monkeypatch, killed())
        assert (await anna.act(frame, name, "declined", "not-me")).problem == "store-unavailable"
        assert (await anna.get("/v1/mutes")).body["mutes"] == []
        assert (await anna.act(frame, name, "declined", "not-me")).status == 200
        assert (await frame.submit(anna)).problem == "device-muted"


@pytest.mark.threat("T5")
async def test_a_call_whose_commit_fails_is_run_again_over_what_it_found_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_house(tmp_path, quota=rates(2, 3600)) as house:
        anna, bert, frame = house.people
        old, new = fresh_id(), fresh_id()
        await frame.submit(anna, bert, name=old)
        await registers(anna)
        stops = Stops(monkeypatch, SerializationFailure(), SerializationFailure())
        submitted = await frame.submit(anna, bert, name=new)
        assert (submitted.status, submitted.body["version"], stops.errors) == (201, 1, [])
        assert (await frame.status(old))["state"] == "superseded"
        assert [item["id"] for item in await bert.inbox()] == [new]
        state = house.state()
        assert state is not None
        assert len(state.requests) == 2
        await house.fcm.came(1)
        stops.errors = [SerializationFailure()]
        claimed = await anna.act(frame, new, "claimed")
        assert (claimed.status, claimed.body["version"]) == (200, 3)
        assert (await frame.submit(anna)).problem == "rate-limited"  # two are spent, and no more


# A member that is removed


@pytest.mark.threat("T16")
async def test_a_removed_companion_whose_call_began_before_cannot_claim_after_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        name = fresh_id()
        await frame.submit(anna, bert, name=name)
        word = await bert.claim(frame, name)
        removal = began_before(monkeypatch, bert, lambda: house.home.append(anna.person, frame.person))
        claimed = await bert.act(frame, name, "claimed", word=word)
        assert removal.is_over
        assert claimed.problem == "not-found"
        assert (await frame.status(name))["state"] == "pending"


@pytest.mark.threat("T16")
async def test_a_removed_device_whose_call_began_before_cannot_submit_after_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The account has no state before."""
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        with redis_servers.client(house.states) as client:
            client.delete(*redis_servers.keys(client, f"{house.states.prefix}:*"))
        began_before(monkeypatch, frame, lambda: house.home.append(anna.person, bert.person))
        assert (await frame.submit(anna, bert)).problem == "not-found"
        assert await anna.inbox() == []
        state = house.state()
        assert state is not None
        assert state.requests == ()


@pytest.mark.parametrize(
    ("change", "problem"), [("mute", "device-muted"), ("suspend", "account-suspended")], ids=str
)
@pytest.mark.threat("T6")
async def test_a_device_whose_call_began_before_a_mute_or_a_suspension_cannot_submit_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, problem: str
) -> None:
    async with a_house(tmp_path) as house:
        anna, _, frame = house.people

        async def changed() -> None:
            if change == "mute":
                assert (await anna.put(f"/v1/mutes/{frame.name}", {})).status == 201
            else:
                await suspend_account(house.relay.app, "alice")

        began_before(monkeypatch, frame, changed)
        assert (await frame.submit(anna)).problem == problem
        state = house.state()
        assert state is not None
        assert state.requests == ()


def began_before(monkeypatch: pytest.MonkeyPatch, caller: Caller, change: Callable[[], Any]) -> Meanwhile:
    """Let the next call of `caller` find its membership, and then go on when `change` was made and answered."""
    meanwhile, ask = Meanwhile(change), accounts.ask_membership

    def asked(db: Transaction, name: str) -> Callable[[], accounts.Membership | None]:
        read = ask(db, name)

        def found() -> accounts.Membership | None:
            result = read()
            if name == caller.name:
                meanwhile()
            return result

        return found

    monkeypatch.setattr(accounts, "ask_membership", asked)
    return meanwhile


@pytest.mark.threat("T16")
async def test_what_removed_members_do_until_their_removal_is_committed_is_undone_by_whoever_looks_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay is killed after that commit: the state hears of the removal from the next call."""
    async with a_house(tmp_path) as house:
        name, late = fresh_id(), fresh_id()
        others = await house.relay.household("carol", devices=2)
        cleo, dora = others.companions
        gone, stays = others.devices

        async def meanwhile() -> None:
            assert (await gone.submit(cleo, name=late)).status == 201
            assert (await stays.submit(cleo, dora, name=name)).status == 201
            assert (await dora.act(stays, name, "claimed")).status == 200

        written(monkeypatch, Meanwhile(meanwhile), by="append_ring")
        monkeypatch.setattr(RelayEndpoints, "_settle", dies(RelayEndpoints._settle))
        with pytest.raises(AssertionError, match="store-unavailable"):
            await others.append(cleo.person, stays.person)
        state = house.state(others.account)
        assert state is not None
        assert {each.claimed_by for each in state.requests} == {None, dora.name}
        monkeypatch.undo()
        assert [(item["id"], item["state"]) for item in await cleo.inbox()] == [(name, "delivered")]
        assert (await stays.status(name))["failures"] == [{"by": dora.name, "reason": "removed"}]
        assert (await cleo.act(stays, name, "claimed")).status == 200
        assert house.envelopes() == [cleo.name]


def written(monkeypatch: pytest.MonkeyPatch, meanwhile: Meanwhile, *, by: str) -> None:
    """Let `meanwhile` happen between the two commits of the first call that comes to `accounts.<by>`."""
    store, does, has_come = States.store, getattr(accounts, by), []

    def come(*args: Any, **named: Any) -> Any:
        has_come.append(by)
        return does(*args, **named)

    def stored(states: States) -> None:
        store(states)
        if has_come:
            meanwhile()

    monkeypatch.setattr(accounts, by, come)
    monkeypatch.setattr(States, "store", stored)


def dies(settle: Any) -> Any:
    """A relay that is killed before the first settling, and starts again."""
    left = [killed()]

    async def settled(relay: RelayEndpoints, account: str) -> None:
        if left:
            raise left.pop()
        await settle(relay, account)

    return settled


async def test_a_removal_that_was_not_answered_is_settled_when_the_same_ring_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        await frame.submit(anna, bert)
        monkeypatch.setattr(RelayEndpoints, "_settle", dies(RelayEndpoints._settle))
        ring = grow(house.home.ring, anna.person, anna.person, frame.person, now=house.relay.clock())
        body = {"ring": base64url(ring.document)}
        assert (await anna.post("/v1/ring", body)).problem == "store-unavailable"
        before = house.state()
        assert (await anna.post("/v1/ring", body)).status == 201
        after = house.state()
        assert before is not None
        assert after is not None
        assert after.authority == before.authority + 1
        assert house.envelopes() == [anna.name]


@pytest.mark.threat("T17")
async def test_a_database_that_has_lost_changes_locks_nobody_out(tmp_path: Path) -> None:
    """It was restored, and Redis was not."""
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        await house.home.append(anna.person, bert.person, frame.person)
        query(postgres().database_for(tmp_path), "UPDATE accounts SET authority = 1")
        name = fresh_id()
        assert (await frame.submit(anna, name=name)).status == 201
        assert [item["id"] for item in await anna.inbox()] == [name]
        state = house.state()
        assert state is not None
        assert state.authority == 1


@pytest.mark.threat("T11")
async def test_of_an_account_that_is_closed_no_envelope_is_left(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        await frame.submit(anna, bert)
        assert house.envelopes() == sorted([anna.name, bert.name])
        await close_account(house.relay.app, "alice")
        assert house.envelopes() == []


@pytest.mark.threat("T11")
@pytest.mark.parametrize("command", ["delete", "reset"])
async def test_a_command_beside_the_relay_closes_an_account_and_erases_what_waits_for_it(
    tmp_path: Path, command: str
) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        await frame.submit(anna, bert)
        status, said = await of_account(command, tmp_path, house.states)
        assert status == 0, said
        assert house.envelopes() == []
        state = house.state()
        assert state is None or not any(each.live for each in state.requests)
        assert (await anna.get("/v1/inbox")).problem == "account-closed"


async def test_a_command_closes_nothing_where_the_states_do_not_answer(tmp_path: Path) -> None:
    server = redis_servers.RedisServer("redis")
    server.end()
    async with a_house(tmp_path) as house:
        anna, _, _ = house.people
        status, said = await of_account("delete", tmp_path, server.place())
        assert (status, "do not answer" in said) == (4, True)
        assert (await anna.get("/v1/ring")).status == 200


async def test_a_command_whose_states_are_gone_in_the_middle_has_closed_the_account_and_says_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with a_house(tmp_path) as house:
        anna, _, frame = house.people
        await frame.submit(anna)
        monkeypatch.setattr(redis_states, "open_redis", away_after_opening)
        words = of_account_words("reset", tmp_path, house.states)
        args = make_parser("account").parse_args(words)
        await args.main(args)
        shown = capsys.readouterr()
        assert AccountCode.parse(shown.out.strip()).account_name == "alice"
        assert "warning: it is away: a running relay erases" in shown.err
        assert (await anna.get("/v1/inbox")).problem == "account-closed"
        assert house.envelopes() == [anna.name]
        house.relay.clock.ahead += 300
        await house.relay.app[RELAY].run("", sweep(None))
        assert house.envelopes() == []


@asynccontextmanager
async def away_after_opening(_place: RedisPlace) -> AsyncIterator[object]:
    class Away:
        def load(self, *_: object) -> None:
            raise StoreUnavailable("it is away")

    yield Away()


async def of_account(command: str, folder: Path, states: RedisPlace) -> tuple[int, str]:
    """Exit status, and what `companion-push account COMMAND alice` has said."""
    status, _, said = await run("companion_push", *of_account_words(command, folder, states))
    return status, said


def of_account_words(command: str, folder: Path, states: RedisPlace) -> list[str]:
    words = ["account", command, "alice", "--store", str(postgres().database_for(folder))]
    words += ["--states", redis_servers.uri(states)]
    return words if command == "delete" else [*words, "--relay", "https://push.example"]


async def test_the_sweep_settles_what_a_command_beside_the_relay_has_closed(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        anna, _, frame = house.people
        await frame.submit(anna)
        place = postgres().database_for(tmp_path)
        for statement in (
            "DELETE FROM members", "UPDATE accounts SET closed_at = 1, authority = authority + 1"
        ):  # fmt: skip
            query(place, statement)
        house.relay.clock.ahead += 300
        await house.relay.app[RELAY].run("", sweep(None))
        assert house.envelopes() == []


async def test_the_sweep_leaves_alone_what_another_relay_keeps_in_the_same_place(tmp_path: Path) -> None:
    async with a_house(tmp_path / "one") as house:
        anna, _, frame = house.people
        await frame.submit(anna)
        async with a_house(tmp_path / "other", house.states, ahead=1000) as other:
            await other.relay.app[RELAY].run("", sweep(None))
        assert house.envelopes() == [anna.name]
        assert len(await anna.inbox()) == 1


async def test_what_has_ended_is_forgotten_and_so_is_the_list_of_it(tmp_path: Path) -> None:
    async with a_house(tmp_path, quota=NO_LIMITS) as house:
        anna, _, frame = house.people
        await frame.submit(anna)
        house.relay.clock.ahead += 100_000
        await house.relay.app[RELAY].run("", sweep(None))
        with redis_servers.client(house.states) as client:
            assert redis_servers.keys(client, f"{house.states.prefix}:*") == []


# A server that is away


async def test_while_the_server_is_away_calls_are_refused_and_nothing_that_was_acknowledged_is_lost(
    tmp_path: Path,
) -> None:
    server = redis_servers.RedisServer("redis", "appendfsync always")
    try:
        async with a_house(tmp_path, server.place()) as house:
            anna, bert, frame = house.people
            name = fresh_id()
            await frame.submit(anna, bert, name=name)
            server.kill()
            assert (await anna.act(frame, name, "claimed")).problem == "store-unavailable"
            assert (await bert.get("/v1/inbox")).problem == "store-unavailable"
            async with house.relay.session.get(house.relay.url + "/readyz") as ready:
                assert ready.status == 503
            server.start()
            async with asyncio.timeout(ANSWERED):
                while (await bert.get("/v1/inbox")).status == 503:  # noqa: ASYNC110  as a client does
                    await asyncio.sleep(0.05)
            assert [item["id"] for item in await bert.inbox()] == [name]
            assert (await bert.act(frame, name, "claimed")).status == 200
    finally:
        server.end()


@pytest.mark.threat("T5")
async def test_what_was_lost_with_the_server_is_there_again_when_the_device_submits_the_same_bytes(
    tmp_path: Path,
) -> None:
    async with a_house(tmp_path) as house:
        anna, _, frame = house.people
        name = fresh_id()
        await frame.submit(anna, name=name)
        with redis_servers.client(house.states) as client:
            client.delete(*redis_servers.keys(client, f"{house.states.prefix}:*"))
        assert (await frame.get(f"/v1/requests/{name}")).problem == "not-found"
        assert (await frame.submit(anna, name=name)).status == 201
        assert [item["id"] for item in await anna.inbox()] == [name]


# Settings


def test_states_beside_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="PostgreSQL"):
        RelayConfig(
            public_url="https://push.example",
            store=tmp_path / "relay.sqlite3",
            states=RedisPlace(hosts=(("localhost", 6379),)),
        )
