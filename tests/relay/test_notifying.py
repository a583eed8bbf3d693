"""What companions are pushed and when, what the device is told of it, and that nothing is lost with a relay."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from companion_push.push.channel import Delivery, Kind, Purpose, Push, PushOutcome
from companion_push.relay.app import RELAY, close_account
from companion_push.relay.channels import MAX_AGAIN, STALE_KEPT
from companion_push.relay.operations import sweep
from companion_push.relay.stores import open_store
from headless_passkey.trust.word import Word
from program_parts.base64url import base64url
from tests.push.recording import RecordingChannel
from tests.relay.household import Caller, Household, Relay, fresh_id, running_relay
from tests.relay.states import change_requests, outcomes, unknown_outcomes
from tests.relay.stores import of_one_process, of_rows, place_of
from tests.relay.test_channels import handle, rows

SOON: Final = 20.0  # seconds: less than the 25 of a hold


@dataclass
class House:
    """A relay that pushes through a recording channel, and an account with two companions and a device."""

    relay: Relay
    fcm: RecordingChannel
    home: Household

    @property
    def people(self) -> tuple[Caller, Caller, Caller]:
        (anna, bert), (frame,) = self.home.companions, self.home.devices
        return anna, bert, frame

    async def notified(self, name: str) -> list[tuple[str, str]]:
        """Label and outcome of each push of the request, as its device sees it."""
        status = await self.home.devices[0].status(name)
        labels = {caller.name: caller.person.label for caller in self.home.companions}
        return sorted((labels[each["to"]], each["outcome"]) for each in status["notified"])

    async def settled(self, name: str) -> dict[str, Any]:
        """The request's status, when no push for it is under way."""
        frame, version = self.home.devices[0], 0
        async with asyncio.timeout(SOON):
            while True:
                status = (await frame.get(f"/v1/requests/{name}?version={version}&wait=20")).body
                if all(each["outcome"] != "pending" for each in status["notified"]):
                    return dict(status)
                version = status["version"]

    async def recorded(self) -> None:
        """Wait until every outcome is stored."""
        async with asyncio.timeout(SOON):
            while rows(self.relay, "SELECT id FROM pushes"):  # noqa: ASYNC110  the store has no event
                await asyncio.sleep(0.01)


@asynccontextmanager
async def a_house(store: Path, *answers: Delivery | Exception, channels: bool = True) -> AsyncIterator[House]:
    fcm = RecordingChannel(Kind.FCM, *answers)
    async with running_relay(store / "relay.sqlite3", channels=[fcm]) as relay:
        house = House(relay, fcm, await relay.household())
        if channels:
            for caller in house.home.companions:
                await registers(caller)
        try:
            yield house
        finally:
            fcm.gate.set()


async def registers(caller: Caller, number: int = 0) -> None:
    """Register the caller's channel of this number; its token is the label."""
    body = {"kind": "fcm", "app": "app.example", "token": token(caller, number)}
    assert (await caller.put(f"/v1/channels/{handle_of(caller, number)}", body)).status in (200, 201)


def token(caller: Caller, number: int = 0) -> str:
    return f"{caller.person.label}.{number}".replace(" ", "-")


def handle_of(caller: Caller, number: int = 0) -> str:
    return handle(int(caller.person.label.split()[1]) * 10 + number)


# A request


async def test_every_recipient_is_pushed_and_the_device_hears_of_it(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        name = fresh_id()
        submitted = (await frame.submit(anna, bert, name=name)).body
        assert submitted["notified"] == [
            {"to": to, "channel": "fcm", "outcome": "pending"} for to in sorted([anna.name, bert.name])
        ]
        pushes = await house.fcm.came(2)
        assert sorted(house.fcm.shown()) == [("request", "phone-0.0"), ("request", "phone-1.0")]
        assert {push.handle for push in pushes} == {handle_of(anna), handle_of(bert)}
        assert {(push.request_id, push.expires_at) for push in pushes} == {(name, submitted["expires_at"])}
        assert len({push.account for push in pushes}) == 1
        settled = await house.settled(name)
        assert [each["outcome"] for each in settled["notified"]] == ["sent", "sent"]
        assert (settled["state"], settled["version"]) == ("pending", 3)


async def test_only_the_recipients_are_pushed_and_accounts_have_different_tags(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        anna, _, frame = house.people
        other = await house.relay.household("carol", companions=1)
        (cleo,) = other.companions
        body = {"kind": "fcm", "app": "app.example", "token": "of-cleo"}
        await cleo.put(f"/v1/channels/{handle(99)}", body)
        await frame.submit(anna)
        await other.devices[0].submit(cleo)
        first, second = await house.fcm.came(2)
        assert sorted(house.fcm.shown()) == [("request", "of-cleo"), ("request", "phone-0.0")]
        assert first.account != second.account
        assert len(first.account) == len(second.account) == 16


async def test_each_channel_of_a_companion_is_pushed_and_each_outcome_is_told(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        anna, _, frame = house.people
        await registers(anna, 1)
        name = fresh_id()
        await frame.submit(anna, name=name)
        await house.settled(name)
        assert await house.notified(name) == [("phone 0", "sent"), ("phone 0", "sent")]


@of_one_process
async def test_a_device_without_a_companion_to_notify_is_told_so_at_once(tmp_path: Path) -> None:
    async with a_house(tmp_path, channels=False) as house:
        anna, bert, frame = house.people
        submitted = (await frame.submit(anna, bert)).body
        assert (submitted["notified"], submitted["version"]) == ([], 1)


@of_one_process
async def test_a_companion_that_waits_at_its_inbox_is_told_so_to_the_device(tmp_path: Path) -> None:
    async with a_house(tmp_path, channels=False) as house:
        anna, bert, frame = house.people
        cursor = (await anna.get("/v1/inbox")).body["cursor"]
        waiting = asyncio.ensure_future(anna.get(f"/v1/inbox?cursor={cursor}&wait=25"))
        async with asyncio.timeout(SOON):
            while not house.relay.is_held(anna.name):  # noqa: ASYNC110  nor has a held call
                await asyncio.sleep(0.01)
        submitted = (await frame.submit(anna, bert)).body
        assert submitted["notified"] == [{"to": anna.name, "channel": "inbox", "outcome": "sent"}]
        assert submitted["version"] == 1
        await waiting


async def test_an_outcome_is_news_to_the_device_and_to_no_companion(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        house.fcm.gate.clear()
        name = fresh_id()
        await frame.submit(anna, bert, name=name)
        await house.fcm.came(2)
        cursor = (await anna.get("/v1/inbox")).body["cursor"]
        version = (await frame.status(name))["version"]
        held = asyncio.ensure_future(frame.get(f"/v1/requests/{name}?version={version}&wait=25"))
        house.fcm.gate.set()
        async with asyncio.timeout(SOON):
            assert (await held).body["version"] > version
        await house.settled(name)
        assert (await anna.get("/v1/inbox")).body["cursor"] == cursor


# What a push service does


@pytest.mark.parametrize(
    "answer", [RuntimeError("boom"), Delivery(outcome=PushOutcome.REFUSED)], ids=["raises", "refuses"]
)
async def test_a_channel_that_fails_costs_no_request(tmp_path: Path, answer: Delivery | Exception) -> None:
    async with a_house(tmp_path, answer, answer) as house:
        anna, _, frame = house.people
        name = fresh_id()
        assert (await frame.submit(anna, name=name)).status == 201
        await house.fcm.came(1)
        assert [item["id"] for item in await anna.inbox()] == [name]


async def test_a_slow_push_service_delays_no_submission(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        house.fcm.gate.clear()
        name = fresh_id()
        async with asyncio.timeout(SOON):
            assert (await frame.submit(anna, bert, name=name)).status == 201
            await house.fcm.came(2)
            assert await house.notified(name) == [("phone 0", "pending"), ("phone 1", "pending")]


async def test_a_dead_address_is_deleted_unless_it_was_registered_since(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        before = house.relay.clock() - 3600
        house.fcm.answers = [
            Delivery(outcome=PushOutcome.GONE, since=before),
            Delivery(outcome=PushOutcome.GONE),
        ]
        for caller in (anna, bert):
            name = fresh_id()
            await frame.submit(caller, name=name)
            assert [each["outcome"] for each in (await house.settled(name))["notified"]] == ["gone"]
        assert len((await anna.get("/v1/channels")).body["channels"]) == 1
        assert (await bert.get("/v1/channels")).body["channels"] == []


async def test_a_stale_channel_is_marked_and_confirmed_by_its_companion(tmp_path: Path) -> None:
    async with a_house(tmp_path, Delivery(outcome=PushOutcome.STALE)) as house:
        anna, _, frame = house.people
        name = fresh_id()
        await frame.submit(anna, name=name)
        await house.settled(name)
        assert await states(anna) == ["stale"]
        await registers(anna)
        assert await states(anna) == ["good"]
        house.relay.clock.ahead += STALE_KEPT + 1
        await swept(house.relay)
        assert await states(anna) == ["good"]


async def test_a_stale_channel_is_still_tried_and_success_clears_it(tmp_path: Path) -> None:
    async with a_house(tmp_path, Delivery(outcome=PushOutcome.STALE)) as house:
        anna, _, frame = house.people
        for _ in range(2):
            name = fresh_id()
            await frame.submit(anna, name=name)
            await house.settled(name)
        assert await states(anna) == ["good"]


async def test_a_stale_channel_that_nobody_confirms_is_deleted_after_a_week(tmp_path: Path) -> None:
    async with a_house(tmp_path, Delivery(outcome=PushOutcome.STALE)) as house:
        anna, _, frame = house.people
        name = fresh_id()
        await frame.submit(anna, name=name)
        await house.settled(name)
        house.relay.clock.ahead += STALE_KEPT - 60
        await swept(house.relay)
        assert await states(anna) == ["stale"]
        house.relay.clock.ahead += 120
        await swept(house.relay)
        assert await states(anna) == []


async def test_a_refused_channel_is_shown_to_its_owner(tmp_path: Path) -> None:
    async with a_house(tmp_path, Delivery(outcome=PushOutcome.REFUSED)) as house:
        anna, _, frame = house.people
        name = fresh_id()
        await frame.submit(anna, name=name)
        await house.settled(name)
        assert await states(anna) == ["refused"]


async def test_an_outcome_of_the_address_before_says_nothing_of_the_one_now(tmp_path: Path) -> None:
    async with a_house(tmp_path, Delivery(outcome=PushOutcome.GONE)) as house:
        anna, _, frame = house.people
        house.fcm.gate.clear()
        name = fresh_id()
        await frame.submit(anna, name=name)
        await house.fcm.came(1)
        body = {"kind": "fcm", "app": "app.example", "token": "newer"}
        await anna.put(f"/v1/channels/{handle_of(anna)}", body)
        house.fcm.gate.set()
        await house.settled(name)
        assert await states(anna) == ["good"]


# Dismissal


@pytest.mark.parametrize("how", ["claimed", "declined", "cancelled", "superseded", "expired"])
async def test_what_the_others_show_is_dismissed(tmp_path: Path, how: str) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        name = fresh_id()
        await frame.submit(anna, bert, name=name)
        await house.settled(name)
        match how:
            case "claimed" | "declined":
                await anna.act(frame, name, how)
            case "cancelled":
                await frame.tell(name, how)
            case "superseded":
                await frame.submit(anna)
            case _:
                house.relay.clock.ahead += 301
                await swept(house.relay)
        both = [("dismiss", token(anna)), ("dismiss", token(bert))]
        expected = both[1:] if how in ("claimed", "declined") else both
        await house.fcm.came(2 + len(expected) + (how == "superseded"))
        await house.recorded()
        dismissed = [
            (str(push.purpose), address.token)  # type: ignore[union-attr]
            for address, push in house.fcm.pushes
            if push.purpose is Purpose.DISMISS
        ]
        assert sorted(dismissed) == expected
        assert {push.request_id for _, push in house.fcm.pushes if push.purpose is Purpose.DISMISS} == {name}


async def test_nobody_is_dismissed_twice_and_the_claimer_not_at_all(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        name = fresh_id()
        await frame.submit(anna, bert, name=name)
        await house.settled(name)
        await anna.act(frame, name, "claimed")
        await anna.act(frame, name, "opened")
        await frame.tell(name, "completed")
        await house.fcm.came(3)
        await house.recorded()
        assert house.fcm.shown()[2:] == [("dismiss", token(bert))]


async def test_a_claim_that_is_given_back_notifies_the_others_again(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        name = fresh_id()
        await frame.submit(anna, bert, name=name)
        await house.settled(name)
        await anna.act(frame, name, "claimed")
        await house.fcm.came(3)
        await house.recorded()
        await anna.act(frame, name, "released")
        await house.fcm.came(4)
        await house.recorded()
        await bert.act(frame, name, "claimed")
        await house.fcm.came(5)
        await house.recorded()
        assert house.fcm.shown()[2:] == [
            ("dismiss", token(bert)),
            ("request", token(bert)),
            ("dismiss", token(anna)),
        ]


@pytest.mark.threat("T6")
async def test_a_companion_that_claims_and_gives_back_without_end_rings_nobody_without_end(
    tmp_path: Path,
) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        name = fresh_id()
        await frame.submit(anna, bert, name=name)
        await house.settled(name)
        for _ in range(5):
            for event in ("claimed", "released"):
                await anna.act(frame, name, event)
                await house.recorded()
        assert house.fcm.shown()[2:] == [
            ("dismiss", token(bert)),
            *[("request", token(bert)), ("dismiss", token(bert))] * MAX_AGAIN,
        ]
        assert [item["id"] for item in await bert.inbox()] == [name]


async def test_whom_no_push_has_reached_is_not_dismissed(tmp_path: Path) -> None:
    async with a_house(tmp_path, Delivery(outcome=PushOutcome.REFUSED)) as house:
        anna, _, frame = house.people
        name = fresh_id()
        await frame.submit(anna, name=name)
        await house.settled(name)
        await frame.tell(name, "cancelled")
        await house.recorded()
        assert house.fcm.shown() == [("request", token(anna))]


# The account


async def test_a_ring_change_wakes_all_companions_and_the_same_ring_again_nobody(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        await house.home.append(anna.person, bert.person)
        await house.fcm.came(2)
        again = {"ring": base64url(house.home.ring.document)}
        assert (await anna.post("/v1/ring", again)).status == 201
        await house.recorded()
        assert sorted(house.fcm.shown()) == [("ring", token(anna)), ("ring", token(bert))]
        assert {push.request_id for _, push in house.fcm.pushes} == {None}
        assert (await frame.get("/v1/ring")).status == 200


@pytest.mark.threat("T16")
async def test_a_removed_companion_is_told_too_and_its_channel_is_gone(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        await house.home.append(anna.person, frame.person)
        await house.fcm.came(2)
        await house.recorded()
        assert sorted(house.fcm.shown()) == [("removed", token(bert)), ("ring", token(anna))]
        await house.home.append(anna.person)
        await house.fcm.came(3)
        assert house.fcm.shown()[2:] == [("ring", token(anna))]


@pytest.mark.threat("T16")
async def test_a_closed_account_wakes_all_its_companions(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, _ = house.people
        await close_account(house.relay.app, "alice", again=True)
        await house.fcm.came(2)
        await house.recorded()
        assert sorted(house.fcm.shown()) == [("reset", token(anna)), ("reset", token(bert))]


async def test_a_wanted_word_wakes_each_companion_once(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        for _ in range(2):
            assert (await frame.post("/v1/words/call", {})).status == 202
        await house.fcm.came(2)
        await house.recorded()
        assert sorted(house.fcm.shown()) == [("word", token(anna)), ("word", token(bert))]


@pytest.mark.threat("T6")
async def test_a_device_wakes_nobody_for_words_without_end(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        for _ in range(6):
            assert (await frame.post("/v1/words/call", {})).status == 202
            for caller in (anna, bert):
                word = Word.give(caller.person.key, ring=house.home.ring, now=caller.clock())
                assert (await caller.put("/v1/word", {"word": base64url(word.document)})).status == 200
            await house.recorded()
            house.relay.clock.ahead += 61
        assert (await frame.post("/v1/words/call", {})).status == 202
        assert (await anna.get("/v1/inbox")).body["word_wanted"]  # where it looks, it is told
        await house.recorded()
        assert sorted(house.fcm.shown()) == [("word", token(anna))] * 4 + [("word", token(bert))] * 4


# A relay that ends


async def test_a_relay_that_ends_waits_a_little_and_the_next_one_goes_on(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        house.fcm.gate.clear()
        name = fresh_id()
        await frame.submit(anna, bert, name=name)
        await house.fcm.came(2)
    # its end found the pushes unanswered at first, and answered as the gate opened
    assert house.fcm.closed == 1
    later = RecordingChannel(Kind.FCM)
    async with running_relay(tmp_path / "relay.sqlite3", channels=[later]) as relay:
        await swept(relay)
        assert later.pushes == []
        assert outcomes(relay.store) == ["sent", "sent"]


@of_rows
async def test_pushes_of_a_relay_that_was_killed_go_out_with_the_next_one(tmp_path: Path) -> None:
    """The rows are there as a kill leaves them; `tests/end_to_end/test_killed_before_the_push.py` kills a program."""
    async with a_house(tmp_path) as house:
        anna, bert, frame = house.people
        kept: list[Push] = []
        house.relay.app[RELAY].follow(lambda answer: kept.extend(order.push for order in answer.pushes))
        house.fcm.gate.clear()
        name = fresh_id()
        await frame.submit(anna, bert, name=name)
        await house.fcm.came(2)
        await bert.inbox()  # has it without the push
        before = rows(house.relay, "SELECT * FROM pushes")
        columns = ", ".join("?" * len(before[0]))
    await restored(tmp_path / "relay.sqlite3", before, columns)
    later = RecordingChannel(Kind.FCM)
    async with running_relay(tmp_path / "relay.sqlite3", channels=[later]) as relay:
        (push,) = await later.came(1)
        assert push in kept  # the same again: it collapses with one that went out
        assert later.shown() == [("request", token(anna))]
        house = House(relay, later, house.home)
        await house.recorded()
        assert sorted(map(str, outcomes(relay.store))) == ["late", "sent"]


async def restored(store: Path, before: list[Any], columns: str) -> None:
    async with open_store(place_of(store)) as database:
        await database.transact(lambda db: change_requests(db, unknown_outcomes))
        await database.transact(lambda db: db.executemany(f"INSERT INTO pushes VALUES ({columns})", before))  # noqa: S608
        await database.transact(
            lambda db: db.execute("UPDATE pushes SET taken_until = 0")
        )  # some seconds later


async def states(caller: Caller) -> list[str]:
    return [each["state"] for each in (await caller.get("/v1/channels")).body["channels"]]


async def swept(relay: Relay) -> None:
    await relay.app[RELAY].run("", sweep(None))
