"""Mutes are told to the account service, once each and in order, whatever that does meanwhile."""

import asyncio
import contextlib
import json
import logging
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from companion_push.identity.authority import AccountAuthority, SignIn, Subject
from companion_push.relay import account_events
from companion_push.relay.account_events import KEPT, MAX_WAITING, PAUSES, Event, EventType, Step
from companion_push.relay.app import RELAY, close_account
from companion_push.relay.database import open_database
from companion_push.relay.operations import Answer, sweep
from companion_push.serving.webhook import Attempt
from program_parts.base64url import base64url
from tests.relay.account_service import PATIENCE, AccountService, account_service, silent, status
from tests.relay.household import Caller, Household, Relay, fresh_id, running_relay
from tests.relay.states import in_rows
from tests.relay.stores import of_files, place_of, query
from tests.relay.test_mutes import muted_by
from tests.trust.people import companion, device, found

HERS = Subject(issuer="https://login.example", id="17")


class Issuer(AccountAuthority):
    """Signs in one subject, whatever the token."""

    async def sign_in(self, token: str, *, key: str) -> SignIn:
        return SignIn(subject=HERS, account_name="alice", issued_at=int(datetime.now().timestamp()) + 60)  # noqa: DTZ005


@dataclass
class Office:
    """A relay, the account service that it tells, and what becomes of events."""

    relay: Relay
    service: AccountService
    steps: "asyncio.Queue[Step]"

    async def until(self, *steps: Step) -> None:
        """Wait for these steps, and no others between."""
        for step in steps:
            async with asyncio.timeout(PATIENCE):
                assert await self.steps.get() is step

    def passes(self, seconds: float) -> None:
        """So much time has gone by, and the sender looks."""
        self.relay.clock.ahead += seconds
        self.look()

    def look(self) -> None:
        sender = self.relay.app[RELAY].webhook_sender
        assert sender is not None
        sender.look()

    @property
    def waiting(self) -> list[str]:
        """The devices of the events that are stored."""
        rows = query(place_of(self.relay.store), "SELECT device FROM account_events ORDER BY at")
        return [name for (name,) in rows]


@contextlib.asynccontextmanager
async def office(path: Path, **settings: Any) -> AsyncIterator[Office]:
    async with account_service() as service, told_by(service, path, **settings) as one:
        yield one


@contextlib.asynccontextmanager
async def told_by(service: AccountService, path: Path, **settings: Any) -> AsyncIterator[Office]:
    """A relay that tells this account service."""
    async with running_relay(path, **({"webhook": service.webhook()} | settings)) as relay:
        steps: asyncio.Queue[Step] = asyncio.Queue()

        def follow(answer: Answer) -> None:
            for step in answer.events:
                steps.put_nowait(step)

        relay.app[RELAY].follow(follow)
        yield Office(relay, service, steps)


async def mute(phone: Caller, frame: Caller) -> None:
    assert (await phone.put(f"/v1/mutes/{frame.name}", {})).status == 201


async def unmute(phone: Caller, frame: Caller) -> None:
    assert (await phone.call("DELETE", f"/v1/mutes/{frame.name}")).status == 200


def seconds(text: str) -> float:
    """Unix seconds of a time as RFC 3339 writes it."""
    assert text.endswith("Z")
    return datetime.fromisoformat(text).timestamp()


# What is told


@pytest.mark.threat("T6")
async def test_not_me_and_its_end_are_told_to_the_account_service(tmp_path: Path) -> None:
    async with office(tmp_path / "s") as one:
        home = await one.relay.household()
        (anna, bert), (frame,) = home.companions, home.devices
        before = one.relay.clock()
        await muted_by(anna, frame)
        told = await one.service.next()
        await one.until(Step.MADE, Step.SENT)
        assert set(told.content) == {"type", "timestamp", "data"}
        assert told.content["type"] == "device.muted"
        assert told.content["data"] == {
            "account": home.account,
            "name": "alice",
            "device": frame.name,
            "by": anna.name,
        }
        assert before - 1 <= seconds(told.content["timestamp"]) <= one.relay.clock()
        await unmute(bert, frame)
        ended = await one.service.next()
        await one.until(Step.MADE, Step.SENT)
        assert ended.content["type"] == "device.unmuted"
        muted_at = ended.content["data"].pop("muted_at")
        assert ended.content["data"] == {
            "account": home.account,
            "name": "alice",
            "device": frame.name,
            "by": bert.name,
            "muted_by": anna.name,
        }
        assert int(seconds(told.content["timestamp"])) == seconds(muted_at)
        assert ended.id != told.id
        assert one.waiting == []


async def test_a_mute_without_a_request_is_told_and_what_changes_nothing_is_not(tmp_path: Path) -> None:
    async with office(tmp_path / "s") as one:
        home = await one.relay.household(devices=2)
        (anna, _), (frame, lamp) = home.companions, home.devices
        await mute(anna, frame)
        assert (await anna.put(f"/v1/mutes/{frame.name}", {})).status == 200
        await unmute(anna, lamp)
        await one.until(Step.MADE, Step.SENT)
        await mute(anna, lamp)
        assert (await one.service.next()).content["data"]["device"] == frame.name
        assert (await one.service.next()).content["data"]["device"] == lamp.name


async def test_an_account_of_a_subject_is_named_by_issuer_and_subject(tmp_path: Path) -> None:
    async with office(tmp_path / "s", authority=Issuer()) as one:
        anna, frame = one.relay.caller(companion()), one.relay.caller(device())
        ring = found(anna.person, account=fresh_id(), account_name="alice", now=anna.clock())
        body = {"token": "any", "ring": base64url(ring.document)}
        assert (await anna.post("/v1/accounts", body)).status == 201
        home = Household(account=ring.account, ring=ring, companions=[anna], devices=[frame])
        await home.append(anna.person, frame.person)
        await mute(anna, frame)
        assert (await one.service.next()).content["data"] == {
            "account": ring.account,
            "issuer": HERS.issuer,
            "subject": HERS.id,
            "device": frame.name,
            "by": anna.name,
        }


@pytest.mark.threat("T6")
async def test_a_mute_is_told_though_the_device_is_removed_and_that_is_no_end_of_it(tmp_path: Path) -> None:
    async with office(tmp_path / "s") as one:
        home = await one.relay.household()
        (anna, bert), (frame,) = home.companions, home.devices
        one.service.answers = [status(503)]
        await mute(anna, frame)
        await one.until(Step.MADE, Step.FAILED)
        await home.append(anna.person, bert.person)
        one.passes(6)
        await one.until(Step.SENT)
        assert await one.service.types(2) == ["device.muted"] * 2
        assert one.service.calls.empty()


async def test_nothing_of_a_closed_account_is_told(tmp_path: Path) -> None:
    async with office(tmp_path / "s") as one:
        home, other = await one.relay.household(), await one.relay.household("bob")
        one.service.answers = [status(503)]
        await mute(home.companions[0], home.devices[0])
        await one.until(Step.MADE, Step.FAILED)
        await close_account(one.relay.app, "alice")
        assert one.waiting == []
        await mute(other.companions[0], other.devices[0])
        one.passes(6)
        first, second = [await one.service.next() for _ in range(2)]
        assert first.content["data"]["name"] == "alice"
        assert second.content["data"]["name"] == "bob"


@pytest.mark.threat("T2")
async def test_without_a_webhook_nothing_is_stored_and_what_was_there_is_deleted(tmp_path: Path) -> None:
    async with office(tmp_path / "s") as one:
        home = await one.relay.household()
        (anna, _), (frame,) = home.companions, home.devices
        one.service.answers = [status(503)]
        await mute(anna, frame)
        await one.until(Step.MADE, Step.FAILED)
        assert one.waiting == [frame.name]
    async with running_relay(tmp_path / "s") as relay:
        assert relay.app[RELAY].webhook_sender is None
        anna, frame = relay.caller(anna.person), relay.caller(frame.person)
        await unmute(anna, frame)
        await mute(anna, frame)
        # of several processes one sweeps at a time, and the one of before may just have done it
        relay.clock.ahead = 60
        await relay.app[RELAY].run("", sweep(None))  # the first one may still be under way
        assert query(place_of(relay.store), "SELECT count(*) FROM account_events") == [(0,)]


# Again


async def test_an_event_is_tried_again_with_the_same_id_and_bytes_and_a_new_time(tmp_path: Path) -> None:
    async with office(tmp_path / "s") as one:
        home = await one.relay.household()
        one.service.answers = [status(500), status(302), status(404)]
        await mute(home.companions[0], home.devices[0])
        await one.until(Step.MADE, Step.FAILED)
        for pause, step in ((5, Step.FAILED), (60, Step.FAILED), (300, Step.SENT)):
            one.passes(pause + 1)
            await one.until(step)
        told = [await one.service.next() for _ in range(4)]
        assert len({(each.id, each.body) for each in told}) == 1
        assert told[-1].timestamp - told[0].timestamp >= 6 + 61 + 301 - 1
        assert [each.id for each in one.service.told] == [told[0].id]
        assert one.waiting == []


async def test_an_account_service_that_asks_for_a_pause_gets_it(tmp_path: Path) -> None:
    async with office(tmp_path / "s") as one:
        home = await one.relay.household(devices=2)
        (anna, _), (frame, lamp) = home.companions, home.devices
        one.service.answers = [status(429, {"Retry-After": "1000"})]
        await mute(anna, frame)
        await one.until(Step.MADE, Step.FAILED)
        one.passes(900)
        await mute(anna, lamp)  # after which the sender has looked
        await one.until(Step.MADE, Step.SENT)
        one.passes(101)
        await one.until(Step.SENT)
        told = [(await one.service.next()).content["data"]["device"] for _ in range(3)]
        assert told == [frame.name, lamp.name, frame.name]


async def test_an_event_that_was_not_taken_in_three_days_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with office(tmp_path / "s") as one:
        home = await one.relay.household()
        one.service.answers = [status(500)] * 3
        await mute(home.companions[0], home.devices[0])
        await one.until(Step.MADE, Step.FAILED)
        one.passes(KEPT - 10)
        await one.until(Step.FAILED)
        one.passes(11)
        await one.until(Step.GIVEN_UP)
        assert one.waiting == []
        assert one.service.told == []
    assert [record.levelname for record in caplog.records if "event" in record.message] == [
        "WARNING",
        "ERROR",
    ]


async def test_who_wants_no_more_of_an_event_is_not_asked_again(tmp_path: Path) -> None:
    async with office(tmp_path / "s") as one:
        home = await one.relay.household()
        one.service.answers = [status(410)]
        await mute(home.companions[0], home.devices[0])
        await one.until(Step.MADE, Step.GIVEN_UP)
        assert one.waiting == []


# One event for a device


@pytest.mark.threat("T17")
async def test_a_newer_event_takes_the_place_of_one_that_waits_and_says_what_that_said(
    tmp_path: Path,
) -> None:
    async with office(tmp_path / "s") as one:
        home = await one.relay.household()
        (anna, bert), (frame,) = home.companions, home.devices
        one.service.answers = [status(503)]
        await mute(anna, frame)
        await one.until(Step.MADE, Step.FAILED)
        await unmute(bert, frame)
        await one.until(Step.MADE, Step.REPLACED, Step.SENT)
        first, second = [await one.service.next() for _ in range(2)]
        assert (first.content["type"], second.content["type"]) == ("device.muted", "device.unmuted")
        assert second.content["data"]["muted_by"] == anna.name
        one.passes(1000)
        await mute(anna, frame)
        assert (await one.service.next()).content["type"] == "device.muted"
        assert one.service.calls.empty(), "the first one is not told again"


async def test_the_outcome_of_an_event_says_nothing_of_a_newer_one(tmp_path: Path) -> None:
    async with office(tmp_path / "s") as one:
        home = await one.relay.household()
        (anna, _), (frame,) = home.companions, home.devices
        one.service.answers = [silent(one.service)]
        await mute(anna, frame)
        first = await one.service.next()
        await unmute(anna, frame)
        await one.until(Step.MADE, Step.MADE, Step.REPLACED)
        assert one.waiting == [frame.name]
        one.service.released.set()  # it has not taken the first one
        second = await one.service.next()
        await one.until(Step.SENT)
        assert (first.content["type"], second.content["type"]) == ("device.muted", "device.unmuted")
        assert one.waiting == []


async def test_a_relay_that_ends_in_the_midst_tells_it_after_its_next_start(tmp_path: Path) -> None:
    async with account_service() as service:
        async with told_by(service, tmp_path / "s") as one:
            home = await one.relay.household()
            service.answers = [silent(service)]
            await mute(home.companions[0], home.devices[0])
            first = await service.next()
        async with told_by(service, tmp_path / "s", ahead=6) as one:
            second = await service.next()
            await one.until(Step.SENT)
        assert (first.id, first.body) == (second.id, second.body)


# Whatever the account service does, no call waits for it


@pytest.mark.threat("T17")
async def test_an_account_service_that_does_not_answer_keeps_no_call_waiting(tmp_path: Path) -> None:
    async with office(tmp_path / "s") as one:
        home = await one.relay.household(devices=3)
        (anna, _), devices = home.companions, home.devices
        one.service.answers = [silent(one.service)]
        for each in devices:
            await muted_by(anna, each)
        await one.service.next()
        assert one.service.calls.empty(), "one at a time"
        assert sorted(one.waiting) == sorted(each.name for each in devices)
        async with one.relay.session.get(one.relay.url + "/readyz") as response:
            assert response.status == 200


# What one account can cost


class Store:
    """The events of a store in memory, without a relay."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.now = 1_800_000_000.0

    def account(self, name: str) -> str:
        self.db.execute("INSERT INTO accounts (id, name, created_at) VALUES (?, ?, 1)", (name, name))
        return name

    def add(self, account: str, device: str) -> tuple[Step, ...]:
        return account_events.add(self.db, account, device, EventType.MUTED, by="a companion", now=self.now)

    def take(self) -> str | None:
        """The device of the next event, which is taken by the account service."""
        states = in_rows(self.db, self.now)
        event = account_events.take(self.db, states, self.now)
        states.store()
        if event is None:
            return None
        attempt = Attempt(taken=True)
        assert account_events.record(self.db, event, attempt, chance=0, now=self.now) is Step.SENT
        return str(json.loads(event.body)["data"]["device"])

    def begun(self) -> Event:
        event = account_events.take(self.db, in_rows(self.db, self.now), self.now)
        assert event is not None
        return event

    def fails(self, event: Event, *, chance: float = 0, retry_after: float | None = None) -> Step | None:
        attempt = Attempt(retry_after=retry_after)
        return account_events.record(self.db, event, attempt, chance=chance, now=self.now)

    @property
    def due_in(self) -> float:
        """Seconds until the first event is due."""
        due = account_events.waiting(self.db)[1]
        assert due is not None
        return round(due - self.now, 3)


@contextlib.asynccontextmanager
async def stored(path: Path) -> AsyncIterator[Store]:
    async with open_database(path):
        pass
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        yield Store(db)


@pytest.mark.threat("T17")
async def test_an_account_has_so_many_events_and_a_new_one_takes_the_place_of_its_oldest(
    tmp_path: Path,
) -> None:
    async with stored(tmp_path / "s") as store:
        mallory, alice = store.account("mallory"), store.account("alice")
        store.add(alice, "frame")
        for number in range(MAX_WAITING + 5):
            store.now += 1
            gone = (Step.GIVEN_UP,) if number >= MAX_WAITING else ()
            assert store.add(mallory, f"{number:03}") == (Step.MADE, *gone)
        rows = store.db.execute("SELECT device FROM account_events ORDER BY at").fetchall()
        assert [name for (name,) in rows] == ["frame", *(f"{number:03}" for number in range(5, 37))]


@pytest.mark.threat("T17")
async def test_who_mutes_and_unmutes_all_the_time_makes_twenty_calls_an_hour_and_delays_nobody(
    tmp_path: Path,
) -> None:
    async with stored(tmp_path / "s") as store:
        mallory, alice = store.account("mallory"), store.account("alice")
        taken = 0
        for _ in range(200):
            store.now += 0.1
            store.add(mallory, "one")
            store.add(mallory, "two")
            while store.take() is not None:
                taken += 1
        assert taken == 20
        store.add(alice, "frame")
        assert store.take() == "frame"
        assert account_events.waiting(store.db)[0] == 2
        assert 0 < store.due_in <= 180
        store.now += 180
        assert store.take() in ("one", "two")
        assert store.take() is None
        store.now += 180
        assert store.take() in ("one", "two")
        assert account_events.waiting(store.db) == (0, None)


async def test_pauses_grow_to_six_hours_and_the_last_attempt_is_after_three_days(tmp_path: Path) -> None:
    async with stored(tmp_path / "s") as store:
        store.add(store.account("alice"), "frame")
        began, pauses = store.now, []
        while True:
            event = store.begun()
            if store.fails(event) is Step.GIVEN_UP:
                break
            pauses.append(store.due_in)
            store.now += store.due_in
        assert pauses[: len(PAUSES)] == [5, 60, 300, 1800, 7200, 14_400, 21_600]
        assert set(pauses[len(PAUSES) : -1]) == {21_600}
        assert store.now - began == 3 * 86_400
        assert account_events.waiting(store.db) == (0, None)


async def test_chance_takes_a_fifth_off_a_pause_at_most(tmp_path: Path) -> None:
    async with stored(tmp_path / "s") as store:
        store.add(store.account("alice"), "frame")
        store.fails(store.begun(), chance=1)
        assert store.due_in == 4


@pytest.mark.parametrize(("asked", "due"), [(None, 5), (1.0, 5), (3600.0, 3600), (86_400.0, 86_400)])
async def test_a_pause_is_the_longer_one_of_the_plan_and_of_what_was_asked_for(
    asked: float | None, due: float, tmp_path: Path
) -> None:
    async with stored(tmp_path / "s") as store:
        store.add(store.account("alice"), "frame")
        store.fails(store.begun(), retry_after=asked)
        assert store.due_in == due


async def test_an_attempt_is_counted_before_it_begins(tmp_path: Path) -> None:
    async with stored(tmp_path / "s") as store:
        store.add(store.account("alice"), "frame")
        event = store.begun()
        assert store.take() is None
        assert store.due_in == 5
        store.now += 5  # the relay was killed, and has been started again
        assert store.begun() == event
        store.fails(event)
        assert store.due_in == 60


async def test_new_events_go_before_those_that_have_failed(tmp_path: Path) -> None:
    async with stored(tmp_path / "s") as store:
        alice = store.account("alice")
        store.add(alice, "old")
        store.fails(store.begun())
        store.now += 100
        store.add(alice, "new")
        assert [store.take(), store.take()] == ["new", "old"]


async def test_a_clock_that_goes_back_holds_no_event_up(tmp_path: Path) -> None:
    async with stored(tmp_path / "s") as store:
        store.add(store.account("alice"), "frame")
        store.now -= 30 * 86_400
        assert store.take() == "frame"


# Operation


async def test_the_log_says_once_that_it_fails_and_once_that_it_goes_on_and_names_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with office(tmp_path / "s") as one:
        home = await one.relay.household(devices=3)
        (anna, _), devices = home.companions, home.devices
        one.service.answers = [status(500), status(500)]
        for each in devices:
            await mute(anna, each)
        done = [Step.MADE] * 3 + [Step.FAILED] * 2 + [Step.SENT]
        assert sorted([await one.steps.get() for _ in range(6)]) == sorted(done)
    said = [
        record.getMessage()
        for record in caplog.records
        if record.name == "companion_push.relay.webhook_sender"
    ]
    assert len(said) == 2
    assert said[0].startswith("the account service does not take an event, which is tried again: status 500")
    assert said[1] == "the account service takes events again"
    secrets = (
        one.service.secret,
        "/hooks",
        "tenant",
        home.account,
        anna.name,
        *(each.name for each in devices),
    )
    for secret in secrets:
        assert secret not in caplog.text


async def test_events_are_counted_by_what_becomes_of_them(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    async with office(tmp_path / "s", registry=registry) as one:
        assert counted(registry) == {"made": 0, "sent": 0, "failed": 0, "given-up": 0, "replaced": 0}
        home = await one.relay.household()
        (anna, _), (frame,) = home.companions, home.devices
        one.service.answers = [status(500), status(410)]
        await mute(anna, frame)
        await one.until(Step.MADE, Step.FAILED)
        assert registry.get_sample_value("companion_push_relay_account_events_waiting") == 1
        await unmute(anna, frame)
        await one.until(Step.MADE, Step.REPLACED, Step.GIVEN_UP)
        await mute(anna, frame)
        await one.until(Step.MADE, Step.SENT)
        assert counted(registry) == {"made": 3, "sent": 1, "failed": 1, "given-up": 1, "replaced": 1}
        assert frame.name not in generate_latest(registry).decode()


def counted(registry: CollectorRegistry) -> dict[str, float | None]:
    name = "companion_push_relay_account_events_total"
    return {str(step): registry.get_sample_value(name, {"step": str(step)}) for step in Step}


class Heard(logging.Handler):
    """Waits for a line of the log."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        self.said = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self.said.set()


@of_files
async def test_a_store_that_is_locked_for_a_while_loses_no_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("companion_push.relay.webhook_sender._AGAIN", 0.0)
    monkeypatch.setattr("companion_push.relay.database._BUSY_SECONDS", 0.0)
    heard = Heard("the outcome of a webhook could not be stored: another process keeps the store")
    log = logging.getLogger("companion_push.relay.webhook_sender")
    async with office(tmp_path / "s") as one:
        home = await one.relay.household()
        taken = asyncio.Event()

        async def answer(_request: web.Request) -> web.StreamResponse:
            await taken.wait()
            return web.Response(status=200)

        one.service.answers = [answer]
        await mute(home.companions[0], home.devices[0])
        await one.service.next()
        log.addHandler(heard)
        try:
            with contextlib.closing(sqlite3.connect(one.relay.store, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                taken.set()
                async with asyncio.timeout(PATIENCE):
                    await heard.said.wait()
                other.execute("ROLLBACK")
        finally:
            log.removeHandler(heard)
        await one.until(Step.MADE, Step.SENT)
        assert one.waiting == []
        assert one.service.calls.empty()
