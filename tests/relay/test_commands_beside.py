"""What a command beside a running relay changes in its store, and whoever waits at the relay: on a file and on a database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time

import pytest

from companion_push.errors import StoreUnavailable
from companion_push.push.channel import Kind
from companion_push.relay import app, operations
from companion_push.relay.accounts import add_account, closed_since
from companion_push.relay.database import Database, open_database
from companion_push.relay.held_requests import HeldRequest
from companion_push.relay.problems import Problem, Slug
from companion_push.relay.store_place import StorePlace
from tests.programs import run
from tests.push.recording import RecordingChannel
from tests.relay.household import Caller, Relay, fresh_id, running_relay
from tests.relay.stores import ON_POSTGRES, postgres, states_of
from tests.relay.test_nodes import at_states
from tests.relay.test_notifying import registers, token

PATIENCE = 60.0  # seconds, a safety net
LONG = 3600.0
FILE = pytest.param(
    "file", marks=pytest.mark.skipif(ON_POSTGRES, reason="one of two stores is as good as the other")
)
STORES = pytest.mark.parametrize("store", [FILE, "database"])


@dataclass
class House:
    """A running relay, and an account with a companion and a device."""

    relay: Relay
    fcm: RecordingChannel
    phone: Caller
    frame: Caller
    words: tuple[str, ...]  # of a command: where the store is

    async def inbox_that_waits(self) -> str:
        """The path of a call that is held while the inbox is as it is now."""
        seen = await self.phone.get("/v1/inbox")
        return f"/v1/inbox?cursor={seen.body['cursor']}&wait=25"

    async def held(self, *callers: Caller) -> None:
        """Wait until calls of all of them are held."""
        async with asyncio.timeout(PATIENCE):
            while not all(self.relay.is_held(each.name) for each in callers):  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.01)

    async def command(self, name: str) -> None:
        """Run `companion-push account NAME alice` in a process of its own."""
        more = ("--relay", "https://push.example") if name == "reset" else ()
        status, _, said = await run("companion_push", "account", name, "alice", *self.words, *more)
        assert status == 0, said


@asynccontextmanager
async def a_house(folder: Path, store: str) -> AsyncIterator[House]:
    place: StorePlace = folder / "relay.sqlite3" if store == "file" else postgres().database_for(folder)
    states = None if store == "file" else states_of(folder)
    fcm = RecordingChannel(Kind.FCM)
    async with running_relay(folder, place=place, states=states, channels=[fcm], clock=time) as relay:
        home = await relay.household(companions=1)
        words = ("--store", str(place), *at_states(states))
        yield House(relay, fcm, home.companions[0], home.devices[0], words)


@pytest.fixture
def nobody_hears_it_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held calls wait until they are woken, and nothing is swept."""
    wait = HeldRequest.wait

    async def waits(held: HeldRequest, _seconds: float) -> None:
        await wait(held, LONG)

    monkeypatch.setattr(HeldRequest, "wait", waits)
    monkeypatch.setattr(operations, "SWEEP_SECONDS", LONG)
    monkeypatch.setattr(operations, "PUSH_LOOKS", LONG)


@STORES
@pytest.mark.threat("T16")
@pytest.mark.parametrize("command", ["delete", "reset"])
@pytest.mark.usefixtures("nobody_hears_it_by_time")
async def test_whoever_waits_hears_that_a_command_has_closed_the_account(
    tmp_path: Path, store: str, command: str
) -> None:
    async with a_house(tmp_path, store) as house:
        name = fresh_id()
        assert (await house.frame.submit(house.phone, name=name)).status == 201
        inbox = await house.inbox_that_waits()
        shown = await house.frame.get(f"/v1/requests/{name}")
        waiting = [
            asyncio.create_task(house.phone.get(inbox)),
            asyncio.create_task(
                house.frame.get(f"/v1/requests/{name}?version={shown.body['version']}&wait=25")
            ),
        ]
        await house.held(house.phone, house.frame)
        await house.command(command)
        async with asyncio.timeout(PATIENCE):
            answers = await asyncio.gather(*waiting)
        assert [answer.problem for answer in answers] == ["account-closed"] * 2


@STORES
@pytest.mark.threat("T16")
@pytest.mark.usefixtures("nobody_hears_it_by_time")
async def test_whoever_follows_an_inbox_hears_it_and_who_sleeps_is_pushed_to(
    tmp_path: Path, store: str
) -> None:
    async with a_house(tmp_path, store) as house:
        await registers(house.phone)
        with house.relay.followed(house.phone) as inbox:
            await inbox.news(0)
            following = asyncio.create_task(inbox.news(LONG))
            await house.held(house.phone)
            await house.command("delete")
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(Problem) as told:
                    await following
                await house.fcm.came(1)
        assert told.value.slug is Slug.ACCOUNT_CLOSED
        assert house.fcm.shown() == [("reset", token(house.phone))]


# The file


async def test_what_others_commit_to_a_file_is_noticed_once_and_what_this_process_commits_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "relay.sqlite3"
    async with open_database(path) as relay, open_database(path) as command:
        relay.others_wrote()  # who opens a store says whose it is
        await add(relay, "alice")
        assert not relay.others_wrote()
        await add(command, "bob")
        await add(relay, "carol")
        assert [relay.others_wrote() for _ in range(2)] == [True, False]


async def test_accounts_that_are_added_wake_nobody(tmp_path: Path) -> None:
    async with open_database(tmp_path / "relay.sqlite3") as store:
        await add(store, "alice")
        assert await store.transact(lambda db: closed_since(db, 0)) == frozenset()


async def test_a_look_that_fails_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nobody_hears_it_by_time: None
) -> None:
    del nobody_hears_it_by_time
    wrote, failures = Database.others_wrote, [StoreUnavailable("away"), ValueError("a bug")]

    def fails_at_first(database: Database) -> bool:
        if failures:
            raise failures.pop()
        return wrote(database)

    monkeypatch.setattr(Database, "others_wrote", fails_at_first)
    monkeypatch.setattr(app, "BESIDE_LOOKS", 0.01)
    async with a_house(tmp_path, "file") as house:
        waiting = asyncio.create_task(house.phone.get(await house.inbox_that_waits()))
        await house.held(house.phone)
        await house.command("delete")
        async with asyncio.timeout(PATIENCE):
            assert (await waiting).problem == "account-closed"
        assert failures == []


async def add(store: Database, name: str) -> None:
    await store.transact(lambda db: add_account(db, name=name, now=0, expires_at=1))
