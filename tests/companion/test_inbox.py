"""The companion's inbox against the real relay, and against one that lies."""

import asyncio
import base64
import contextlib
import json
import re
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from companion_push.companion import inbox as inbox_module
from companion_push.companion.inbox import NoticeKind
from companion_push.companion.keys import CompanionState
from companion_push.companion.openers import Opening
from companion_push.companion.relay_client import CompanionRelay
from companion_push.relay.app import close_account, suspend_account
from companion_push.relay.database import open_database
from headless_passkey.errors import (
    CtapError,
    EnrolmentReason,
    ExitStatus,
    HeadlessPasskeyError,
    NotApproved,
    NotEnrolled,
    Outcome,
    ProtocolReason,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TransportError,
    TransportReason,
    TrustError,
    TrustReason,
)
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.envelope import new_request_id, open_envelope
from headless_passkey.trust.hpke import SoftwareHpkeKey
from headless_passkey.trust.ring import Ring
from headless_passkey.trust.word import Word
from program_parts.base64url import base64url
from tests.companion.family import Companion, Frame, Hands, awake, awake_again, enrolled
from tests.relay.household import Household, Relay, claimer
from tests.relay.states import recipients_of_envelopes
from tests.trust.people import REQUEST_ID, device, forge, grow, reseal

# What arrives


async def test_a_request_arrives_checked_and_with_the_name_the_ring_has(
    anna: Companion, frame: Frame
) -> None:
    await frame.ask(anna.caller, note="by the window")
    await anna.inbox.poll()
    (request,) = anna.inbox.pending
    assert request.device.label == "frame 0"
    assert request.announcement.note == "by the window"
    assert request.announcement.rp_id == "example.com"
    assert anna.kinds == [NoticeKind.LISTENING, NoticeKind.ARRIVED]


async def test_what_was_sent_before_the_companion_started_is_found(anna: Companion, frame: Frame) -> None:
    name = await frame.ask(anna.caller)
    await anna.inbox.poll()
    assert len(anna.inbox.pending) == 1
    assert await frame.state_of(name) == "delivered"


async def test_a_held_connection_brings_a_request_at_once(anna: Companion, frame: Frame) -> None:
    listening = asyncio.create_task(anna.inbox.listen())
    begun = time.monotonic()
    await frame.ask(anna.caller)
    await anna.inbox.changed()
    assert time.monotonic() - begun < 20  # a connection is held for 25
    assert len(anna.inbox.pending) == 1
    listening.cancel()
    await asyncio.wait([listening])


async def test_a_withdrawn_request_is_dismissed(anna: Companion, frame: Frame) -> None:
    name = await frame.ask(anna.caller)
    await anna.inbox.poll()
    (request,) = anna.inbox.pending
    await frame.caller.tell(name, "cancelled")
    await anna.inbox.poll()
    assert anna.inbox.pending == ()
    assert request.over.is_set()
    assert anna.notices[-1].kind is NoticeKind.GONE
    assert isinstance(anna.notices[-1].error, NotApproved)


async def test_a_request_that_another_companion_claims_is_dismissed(
    anna: Companion, bert: Companion, frame: Frame
) -> None:
    await frame.ask(anna.caller, bert.caller)
    await anna.inbox.poll()
    await bert.inbox.poll()
    assert await anna.inbox.approve(anna.inbox.pending[0], Hands())
    await bert.inbox.poll()
    assert bert.inbox.pending == ()
    assert bert.notices[-1].reason == "already-claimed"
    assert bert.notices[-1].error is None


async def test_an_expired_request_is_dropped_by_our_own_clock(
    anna: Companion, frame: Frame, relay: Relay
) -> None:
    await frame.ask(anna.caller)
    await anna.inbox.poll()
    assert 0 < (anna.inbox.drop_expired() or 0) <= 300  # after that its FIDO URL is too old
    relay.clock.ahead = 301
    assert anna.inbox.drop_expired() is None
    assert anna.inbox.pending == ()
    error = anna.notices[-1].error
    assert isinstance(error, NotApproved)
    assert error.reason is Outcome.EXPIRED


async def test_newer_rings_are_taken_over_before_a_request_is_checked(
    anna: Companion, home: Household, relay: Relay
) -> None:
    newcomer = relay.caller(device("new frame"))
    members = [caller.person for caller in (*home.companions, *home.devices, newcomer)]
    await home.append(*members)
    await Frame(caller=newcomer, home=home).ask(anna.caller)
    await anna.inbox.poll()
    assert [request.device.label for request in anna.inbox.pending] == ["new frame"]
    assert anna.state.chain().head.version == 3


# Deciding


async def test_an_approved_request_is_claimed_recorded_opened_and_reported(
    anna: Companion, frame: Frame
) -> None:
    name = await frame.ask(anna.caller)
    await anna.inbox.poll()
    (request,) = anna.inbox.pending
    hands = Hands()
    assert await anna.inbox.approve(request, hands)
    assert [opening.url for opening in hands.opened] == [request.announcement.url]
    assert hands.opened[0].announced.rp_id == "example.com"
    assert 300 < hands.opened[0].seconds <= 420
    assert await frame.state_of(name) == "opened"
    assert request.key in anna.state.opened_before()
    (opened,) = [notice.message for notice in anna.notices if notice.kind is NoticeKind.OPENED]
    assert opened == Hands.handed_over  # what the opener knows, and no more
    await anna.inbox.poll()
    assert anna.inbox.pending == ()


@pytest.mark.threat("T4")
async def test_where_nobody_else_does_the_companion_says_what_the_phone_must_name(
    anna: Companion, frame: Frame
) -> None:
    await frame.ask(anna.caller)
    await anna.inbox.poll()
    (request,) = anna.inbox.pending
    hands = Hands()
    hands.phone_checks = False
    assert await anna.inbox.approve(request, hands)
    (opened,) = [notice.message for notice in anna.notices if notice.kind is NoticeKind.OPENED]
    assert opened == (
        f'{Hands.handed_over}. Your phone must now say "example.com". If it names anything else, cancel.'
    )


@pytest.mark.threat("T4")
async def test_a_companion_that_demands_digits_asks_nobody_without_them(
    anna: Companion, frame: Frame
) -> None:
    anna.inbox._needs_digits = True
    name = await frame.ask(anna.caller)
    await anna.inbox.poll()
    assert anna.inbox.pending == ()
    assert anna.refusals == ["digits-missing"]
    failures = (await frame.caller.status(name))["failures"]
    assert failures == [{"by": anna.caller.name, "reason": "digits-missing"}]
    await frame.ask(anna.caller, digits="42")
    await anna.inbox.poll()
    assert len(anna.inbox.pending) == 1


async def test_the_request_is_recorded_before_the_opener_runs(anna: Companion, frame: Frame) -> None:
    await frame.ask(anna.caller)
    await anna.inbox.poll()
    (request,) = anna.inbox.pending

    class Looks(Hands):
        @contextlib.asynccontextmanager
        async def open(self, opening: Any) -> AsyncIterator[None]:
            assert request.key in anna.state.opened_before()
            async with super().open(opening):
                yield

    hands = Looks()
    await anna.inbox.approve(request, hands)
    assert len(hands.opened) == 1


async def test_losing_the_claim_is_said_plainly_and_opens_nothing(
    anna: Companion, bert: Companion, frame: Frame
) -> None:
    await frame.ask(anna.caller, bert.caller)
    await anna.inbox.poll()
    await bert.inbox.poll()
    late, hands = bert.inbox.pending[0], Hands()
    await anna.inbox.approve(anna.inbox.pending[0], Hands())
    assert not await bert.inbox.approve(late, hands)
    assert hands.opened == []
    assert bert.notices[-1].kind is NoticeKind.CLAIM_LOST
    assert "another companion" in bert.notices[-1].message


async def test_a_claim_that_is_being_lost_is_told_once(
    anna: Companion, bert: Companion, frame: Frame
) -> None:
    await frame.ask(anna.caller, bert.caller)
    await anna.inbox.poll()
    await bert.inbox.poll()
    late = bert.inbox.pending[0]
    await anna.inbox.approve(anna.inbox.pending[0], Hands())
    with bert.inbox._in_hands(late):
        await bert.inbox.poll()  # the news of the other's claim comes before the answer to our own
    assert NoticeKind.GONE not in bert.kinds


async def test_a_request_that_another_claimed_before_we_saw_it_is_told_once(
    anna: Companion, bert: Companion, frame: Frame
) -> None:
    await bert.inbox.poll()
    await frame.ask(anna.caller, bert.caller)
    await anna.inbox.poll()
    await anna.inbox.approve(anna.inbox.pending[0], Hands())
    await bert.inbox.poll()
    await bert.inbox.poll()
    assert bert.kinds == [NoticeKind.LISTENING, NoticeKind.GONE]
    async with awake_again(bert.state, bert.caller) as later:
        await later.inbox.poll()
        assert later.kinds == [NoticeKind.LISTENING]  # after a restart it is old news


async def test_of_two_companions_that_approve_at_once_exactly_one_opens(
    anna: Companion, bert: Companion, frame: Frame
) -> None:
    for _ in range(20):
        await frame.ask(anna.caller, bert.caller)
        await anna.inbox.poll()
        await bert.inbox.poll()
        hands = Hands()
        won = await asyncio.gather(
            *(each.inbox.approve(each.inbox.pending[0], hands) for each in (anna, bert))
        )
        assert sorted(won) == [False, True]
        assert len(hands.opened) == 1


async def test_declining_ends_the_request_for_everybody(
    anna: Companion, bert: Companion, frame: Frame
) -> None:
    name = await frame.ask(anna.caller, bert.caller)
    await anna.inbox.poll()
    await bert.inbox.poll()
    await anna.inbox.decline(anna.inbox.pending[0])
    assert await frame.state_of(name) == "declined"
    await bert.inbox.poll()
    assert bert.inbox.pending == ()


@pytest.mark.threat("T6", "T16")
async def test_who_says_not_me_mutes_the_device_and_every_companion_says_so(
    anna: Companion, bert: Companion, frame: Frame
) -> None:
    await frame.ask(anna.caller)
    for companion in (anna, bert):
        await companion.inbox.poll()
    await anna.inbox.decline(anna.inbox.pending[0], not_me=True)
    assert (anna.notices[-1].kind, anna.notices[-1].reason) == (NoticeKind.DECLINED, "not-me")
    for _ in range(2):  # once
        for companion in (anna, bert):
            await companion.inbox.poll()
            assert companion.notices[-1].kind is NoticeKind.MUTED
            assert companion.notices[-1].message == '"frame 0" is muted: the relay takes no requests of it'
    assert bert.kinds.count(NoticeKind.MUTED) == 1
    await bert.caller.call("DELETE", f"/v1/mutes/{frame.caller.name}")
    await anna.inbox.poll()
    assert anna.notices[-1].message == '"frame 0" is not muted any more'


async def test_a_request_cancelled_while_the_user_thought_is_not_opened(
    anna: Companion, frame: Frame
) -> None:
    name = await frame.ask(anna.caller)
    await anna.inbox.poll()
    (request,) = anna.inbox.pending
    await frame.caller.tell(name, "cancelled")
    hands = Hands()
    with pytest.raises(NotApproved) as caught:
        await anna.inbox.approve(request, hands)
    assert caught.value.reason is Outcome.CANCELLED
    assert hands.opened == []


@pytest.mark.threat("T5")
async def test_consent_that_took_too_long_opens_nothing_and_says_so(
    anna: Companion, frame: Frame, relay: Relay
) -> None:
    name = await frame.ask(anna.caller, now=time.time() - 200, lifetime=30)
    relay_time = relay.clock.ahead
    relay.clock.ahead = -160  # when it arrives, it is still within the skew
    anna.inbox._clock = lambda: time.time() - 160
    await anna.inbox.poll()
    (request,) = anna.inbox.pending
    relay.clock.ahead = relay_time
    anna.inbox._clock = time.time
    hands = Hands()
    with pytest.raises(TrustError) as caught:
        await anna.inbox.approve(request, hands)
    assert caught.value.reason is TrustReason.EXPIRED
    assert hands.opened == []
    status = await frame.caller.status(name)
    assert (status["state"], status["reason"]) == ("failed", "expired")


async def test_an_opener_that_fails_is_reported_to_the_device(anna: Companion, frame: Frame) -> None:
    name = await frame.ask(anna.caller)
    await anna.inbox.poll()
    with pytest.raises(TransportError):
        await anna.inbox.approve(anna.inbox.pending[0], Hands(TransportError("no phone")))
    status = await frame.caller.status(name)
    assert (status["state"], status["reason"]) == ("failed", "unreachable")


async def test_a_user_who_declines_on_the_phone_declines_the_request(anna: Companion, frame: Frame) -> None:
    name = await frame.ask(anna.caller)
    await anna.inbox.poll()
    with pytest.raises(NotApproved):
        await anna.inbox.approve(
            anna.inbox.pending[0], Hands(NotApproved(Outcome.DECLINED, "the user declined"))
        )
    assert await frame.state_of(name) == "declined"


async def test_a_wrong_number_is_reported_for_this_companion_alone(
    anna: Companion, bert: Companion, frame: Frame
) -> None:
    name = await frame.ask(anna.caller, bert.caller, digits="42")
    await anna.inbox.poll()
    error = TrustError(TrustReason.WRONG_DIGITS, "wrong")
    await anna.inbox.reject(anna.inbox.pending[0], error)
    status = await frame.caller.status(name)
    assert status["state"] == "delivered"
    assert status["failures"] == [{"by": anna.caller.name, "reason": "wrong-digits"}]
    await bert.inbox.poll()
    assert len(bert.inbox.pending) == 1


# Crashes


@pytest.mark.threat("T5")
async def test_after_a_crash_between_record_and_opener_nothing_is_opened_twice(
    anna: Companion, frame: Frame
) -> None:
    name = await frame.ask(anna.caller)
    await anna.inbox.poll()
    (request,) = anna.inbox.pending
    await anna.claim(request)
    await anna.inbox._prepare(request)  # and here the power fails
    async with awake_again(anna.state, anna.caller) as later:
        await later.inbox.poll()
        assert later.inbox.pending == ()
        assert later.refusals == ["replayed"]
    status = await frame.caller.status(name)
    assert (status["state"], status["reason"]) == ("failed", "replayed")


async def test_after_a_crash_between_claim_and_record_the_user_is_asked_again(
    anna: Companion, frame: Frame
) -> None:
    name = await frame.ask(anna.caller)
    await anna.inbox.poll()
    await anna.claim(anna.inbox.pending[0])
    async with awake_again(anna.state, anna.caller) as later:
        await later.inbox.poll()
        hands = Hands()
        assert await later.inbox.approve(later.inbox.pending[0], hands)
        assert len(hands.opened) == 1
    assert await frame.state_of(name) == "opened"


async def test_a_request_that_is_open_already_is_left_alone_after_a_restart(
    anna: Companion, frame: Frame
) -> None:
    name = await frame.ask(anna.caller)
    await anna.inbox.poll()
    await anna.inbox.approve(anna.inbox.pending[0], Hands())
    async with awake_again(anna.state, anna.caller) as later:
        await later.inbox.poll()
        assert later.inbox.pending == ()
        assert later.refusals == []
    assert await frame.state_of(name) == "opened"


@pytest.mark.threat("T5")
async def test_a_claim_that_a_crashed_run_cannot_use_is_left_to_the_others(
    anna: Companion, bert: Companion, frame: Frame
) -> None:
    name = await frame.ask(anna.caller, bert.caller)
    await anna.inbox.poll()
    (request,) = anna.inbox.pending
    await anna.claim(request)
    await anna.inbox._prepare(request)
    async with awake_again(anna.state, anna.caller) as later:
        await later.inbox.poll()
        assert later.refusals == ["replayed"]
    status = await frame.caller.status(name)
    assert (status["state"], status["failures"]) == ("delivered", failures(anna, "replayed"))
    await bert.inbox.poll()
    assert await bert.inbox.approve(bert.inbox.pending[0], Hands())


async def test_what_a_crashed_run_showed_is_left_to_the_others_as_soon_as_it_is_back(
    anna: Companion, bert: Companion, frame: Frame
) -> None:
    name = await frame.ask(anna.caller, bert.caller)
    await anna.inbox.poll()
    await anna.inbox.approve(anna.inbox.pending[0], Hands(stays=True))
    assert await frame.state_of(name) == "opened"
    async with awake_again(anna.state, anna.caller) as later:
        await later.inbox.poll()
        assert (later.inbox.pending, later.kinds[-1]) == ((), NoticeKind.GIVEN_BACK)
        await later.inbox.poll()
        assert later.kinds.count(NoticeKind.GIVEN_BACK) == 1
    status = await frame.caller.status(name)
    assert (status["state"], status["failures"]) == ("delivered", failures(anna, "interrupted"))


# Claims that are given back, or whose holder has vanished


def failures(companion: Companion, reason: str) -> list[dict[str, str]]:
    return [{"by": companion.caller.name, "reason": reason}]


class Waiting(Hands):
    """An opener that waits for what comes of it."""

    def __init__(self, *, stays: bool = True) -> None:
        super().__init__(stays=stays)
        self.waits = asyncio.Event()

    @contextlib.asynccontextmanager
    async def open(self, opening: Opening) -> AsyncIterator[None]:
        self.opened.append(opening)
        yield
        self.waits.set()
        await opening.over.wait()


async def cancelled(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_companion_that_is_ended_while_the_phone_is_asked_leaves_it_to_the_others(
    anna: Companion, bert: Companion, frame: Frame
) -> None:
    name = await frame.ask(anna.caller, bert.caller)
    await anna.inbox.poll()
    hands = Waiting()
    approving = asyncio.create_task(anna.inbox.approve(anna.inbox.pending[0], hands))
    await hands.waits.wait()
    assert await frame.state_of(name) == "opened"
    await cancelled(approving)
    assert anna.kinds[-1] is NoticeKind.GIVEN_BACK
    status = await frame.caller.status(name)
    assert (status["state"], claimer(status)) == ("delivered", None)
    assert status["failures"] == failures(anna, "interrupted")
    await bert.inbox.poll()
    assert await bert.inbox.approve(bert.inbox.pending[0], Hands())


async def test_the_only_companion_that_is_ended_while_the_phone_is_asked_ends_the_request(
    anna: Companion, frame: Frame
) -> None:
    name = await frame.ask(anna.caller)
    await anna.inbox.poll()
    hands = Waiting()
    approving = asyncio.create_task(anna.inbox.approve(anna.inbox.pending[0], hands))
    await hands.waits.wait()
    await cancelled(approving)
    status = await frame.caller.status(name)
    assert (status["state"], status["reason"]) == ("failed", "interrupted")


@pytest.mark.threat("T16")
@pytest.mark.parametrize("end", [close_account, suspend_account], ids=["closed", "suspended"])
async def test_a_companion_whose_account_is_no_more_leaves_a_request_to_nobody(
    anna: Companion, bert: Companion, frame: Frame, relay: Relay, end: Callable[..., Awaitable[Any]]
) -> None:
    await frame.ask(anna.caller, bert.caller)
    await anna.inbox.poll()
    hands = Waiting()
    approving = asyncio.create_task(anna.inbox.approve(anna.inbox.pending[0], hands))
    await hands.waits.wait()
    await end(relay.app, "alice")
    with pytest.raises(NotEnrolled) as caught:
        await anna.inbox.listen()
    assert caught.value.exit_status == 9
    assert caught.value.advice
    await cancelled(approving)
    assert anna.kinds[-1] is NoticeKind.OPENED  # and neither given back nor failed
    assert recipients_of_envelopes(relay.store) == []


async def test_a_companion_that_is_ended_while_it_claims_gives_the_claim_back(
    anna: Companion, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await frame.ask(anna.caller)
    await anna.inbox.poll()
    claim, granted = anna.inbox._relay.claim, asyncio.Event()

    async def answer_is_on_its_way(*key: Any) -> int | None:
        await claim(*key)
        granted.set()
        await asyncio.Future()
        return None

    monkeypatch.setattr(anna.inbox._relay, "claim", answer_is_on_its_way)
    approving = asyncio.create_task(anna.inbox.approve(anna.inbox.pending[0], Hands()))
    await granted.wait()
    assert await frame.state_of(name) == "claimed"
    await cancelled(approving)
    assert await frame.state_of(name) == "delivered"
    async with awake_again(anna.state, anna.caller) as later:  # it was not opened, so it may be asked again
        await later.inbox.poll()
        assert await later.inbox.approve(later.inbox.pending[0], Hands())


async def test_a_fault_of_ours_is_told_too(anna: Companion, bert: Companion, frame: Frame) -> None:
    name = await frame.ask(anna.caller, bert.caller)
    await anna.inbox.poll()
    with pytest.raises(ZeroDivisionError):
        await anna.inbox.approve(anna.inbox.pending[0], Hands(ZeroDivisionError()))
    status = await frame.caller.status(name)
    assert (status["state"], status["failures"]) == ("delivered", failures(anna, "failed"))


async def test_a_no_is_told_to_its_end_although_the_companion_is_ended(
    anna: Companion, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await frame.ask(anna.caller)
    await anna.inbox.poll()
    report, begun, go_on = anna.inbox._relay.report, asyncio.Event(), asyncio.Event()

    async def slowly(*what: Any) -> None:
        begun.set()
        await go_on.wait()
        await report(*what)

    monkeypatch.setattr(anna.inbox._relay, "report", slowly)
    declining = asyncio.create_task(anna.inbox.decline(anna.inbox.pending[0]))
    await begun.wait()
    declining.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await declining
    assert await frame.state_of(name) == "declined"


async def test_a_request_whose_holder_vanished_is_put_to_the_others_again(
    anna: Companion, bert: Companion, frame: Frame, relay: Relay
) -> None:
    await frame.ask(anna.caller, bert.caller)
    await anna.inbox.poll()
    await bert.inbox.poll()
    await anna.claim(anna.inbox.pending[0])
    await bert.inbox.poll()
    assert not bert.inbox.pending
    relay.clock.ahead += 61
    await bert.inbox.poll()
    assert bert.kinds == [NoticeKind.LISTENING, NoticeKind.ARRIVED, NoticeKind.GONE, NoticeKind.ARRIVED]
    assert await bert.inbox.approve(bert.inbox.pending[0], Hands())


async def test_who_lost_the_claim_is_asked_again_when_it_is_given_back(
    anna: Companion, bert: Companion, frame: Frame
) -> None:
    await frame.ask(anna.caller, bert.caller)
    for each in (anna, bert):
        await each.inbox.poll()
    (request,) = anna.inbox.pending
    await anna.claim(request)
    assert not await bert.inbox.approve(bert.inbox.pending[0], Hands())
    await bert.inbox.poll()
    assert not bert.inbox.pending
    await anna.inbox._relay.release(*request.key)
    await bert.inbox.poll()
    assert bert.kinds.count(NoticeKind.ARRIVED) == 2
    assert NoticeKind.GONE not in bert.kinds
    assert await bert.inbox.approve(bert.inbox.pending[0], Hands())


async def test_an_answer_from_before_the_lost_claim_puts_nothing_to_the_person_again(
    bert: Companion, anna: Companion, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    await frame.ask(anna.caller, bert.caller)
    for each in (anna, bert):
        await each.inbox.poll()
    stale = await bert.inbox._relay.inbox(cursor=None, wait=0)
    await anna.claim(anna.inbox.pending[0])
    assert not await bert.inbox.approve(bert.inbox.pending[0], Hands())

    async def late(**_: Any) -> Any:
        return stale

    with monkeypatch.context() as answered:
        answered.setattr(bert.inbox._relay, "inbox", late)
        await bert.inbox.poll()
    await bert.inbox.poll()
    assert bert.inbox.pending == ()
    assert bert.kinds == [NoticeKind.LISTENING, NoticeKind.ARRIVED, NoticeKind.CLAIM_LOST]


async def test_a_holder_that_the_relay_could_not_hear_has_its_claim_back(
    anna: Companion, bert: Companion, frame: Frame, relay: Relay
) -> None:
    name = await frame.ask(anna.caller, bert.caller)
    await anna.inbox.poll()
    hands = Waiting()
    approving = asyncio.create_task(anna.inbox.approve(anna.inbox.pending[0], hands))
    await hands.waits.wait()
    relay.clock.ahead += 61
    assert (await frame.caller.status(name))["failures"] == failures(anna, "vanished")
    await anna.inbox.poll()
    status = await frame.caller.status(name)
    assert (status["state"], claimer(status), status["failures"]) == ("opened", anna.caller.name, [])
    relay.clock.ahead += 61
    assert await frame.state_of(name) == "delivered"  # as before, since it stays
    await cancelled(approving)


async def test_a_holder_that_lost_its_claim_meanwhile_shows_nothing_any_more(
    anna: Companion, bert: Companion, frame: Frame, relay: Relay
) -> None:
    name = await frame.ask(anna.caller, bert.caller)
    await anna.inbox.poll()
    hands = Waiting()
    approving = asyncio.create_task(anna.inbox.approve(anna.inbox.pending[0], hands))
    await hands.waits.wait()
    relay.clock.ahead += 61
    await bert.inbox.poll()
    assert await bert.inbox.approve(bert.inbox.pending[0], Hands())
    await anna.inbox.poll()
    assert not await approving
    assert anna.kinds[-1] is NoticeKind.CLAIM_LOST
    status = await frame.caller.status(name)
    assert (status["state"], claimer(status)) == ("opened", bert.caller.name)


@pytest.mark.parametrize("granted", [False, True], ids=["it is another's", "it is ours"])
async def test_an_opener_that_ends_while_its_claim_is_made_again_ends_nothing_else(
    anna: Companion, bert: Companion, frame: Frame, relay: Relay, monkeypatch: pytest.MonkeyPatch, *, granted: bool
) -> None:  # fmt: skip
    name = await frame.ask(anna.caller, bert.caller)
    await anna.inbox.poll()
    hands = Waiting()
    approving = asyncio.create_task(anna.inbox.approve(anna.inbox.pending[0], hands))
    await hands.waits.wait()
    relay.clock.ahead += 61
    await bert.inbox.poll()
    claim = anna.inbox._relay.claim

    async def late(*about: Any) -> int | None:
        if not granted:
            assert await bert.inbox.approve(bert.inbox.pending[0], Hands())
        hands.opened[0].over.set()
        assert await approving
        return await claim(*about)

    monkeypatch.setattr(anna.inbox._relay, "claim", late)
    await anna.inbox.poll()
    status = await frame.caller.status(name)
    holder = anna if granted else bert
    assert (status["state"], claimer(status)) == ("opened", holder.caller.name)
    assert anna.kinds[-1] is NoticeKind.FINISHED


# What is refused, shown with its reason and reported for this companion


async def test_the_device_hears_of_a_refusal_before_the_program_that_refused_may_end(
    anna: Companion, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = new_request_id()
    report, order = anna.inbox._relay.report, []

    async def noted(*what: Any) -> None:
        await report(*what)
        order.append("told the relay")

    monkeypatch.setattr(anna.inbox._relay, "report", noted)
    monkeypatch.setattr(anna.inbox, "_on_notice", lambda notice: order.append(str(notice.kind)))
    await frame.submit(request_id, {anna.caller.name: b"not sealed to her at all" * 6})
    await anna.inbox.poll()
    assert order == ["listening", "told the relay", "refused"]


async def test_a_failed_check_on_one_companion_leaves_the_request_to_the_others(
    anna: Companion, bert: Companion, frame: Frame
) -> None:
    request_id = new_request_id()
    sealed = {
        anna.caller.name: b"not sealed to her at all, but long enough for an HPKE envelope" * 3,
        bert.caller.name: frame.seal(bert.caller.person, request_id),
    }
    name = await frame.submit(request_id, sealed)
    await anna.inbox.poll()
    await bert.inbox.poll()
    assert anna.refusals == ["cannot-open"]
    assert len(bert.inbox.pending) == 1
    assert (await frame.caller.status(name))["failures"] == [
        {"by": anna.caller.name, "reason": "cannot-open"}
    ]


NO_SPACE = "cannot write: No space left on device"


@pytest.mark.parametrize(
    ("broken", "error", "word", "ends"),
    [
        ("adopt", SetupError(NO_SPACE, reason=SetupReason.DISK_FULL), "disk-full", False),
        ("chain", SetupError("x", reason=SetupReason.STATE_DAMAGED), "state-damaged", True),
        ("chain", NotEnrolled("x", reason=EnrolmentReason.NOT_ENROLLED), "not-enrolled", True),
        ("opened_before", SetupError(NO_SPACE, reason=SetupReason.DISK_FULL), "disk-full", False),
        (
            "opened_before",
            RemoteProtocolError("x", reason=ProtocolReason.MALFORMED_ANSWER),
            "malformed",
            False,
        ),
    ],
    ids=["disk full", "rings damaged", "state gone", "disk broken", "record damaged"],
)
async def test_a_companion_that_cannot_check_says_so_at_once(  # noqa: PLR0917  what varies
    anna: Companion,
    frame: Frame,
    home: Household,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    error: HeadlessPasskeyError,
    word: str,
    ends: bool,  # noqa: FBT001
) -> None:
    # something to adopt
    await home.append(*(each.person for each in (*home.companions, *home.devices)))
    name = await frame.ask(anna.caller)

    def fails(*_: Any, **_named: Any) -> Any:
        raise error

    monkeypatch.setattr(anna.state, broken, fails)
    with contextlib.nullcontext() if not ends else pytest.raises(type(error)):
        await anna.inbox.poll()
    assert anna.refusals == [word]
    status = await frame.caller.status(name)
    assert (status["state"], status["failures"]) == ("failed", failures(anna, word))


async def test_a_notice_keeps_what_is_wrong_and_what_to_do_apart(
    anna: Companion, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    await frame.ask(anna.caller)

    def damaged() -> None:
        raise SetupError("it is damaged", reason=SetupReason.STATE_DAMAGED, advice="remove it")

    monkeypatch.setattr(anna.state, "chain", damaged)
    with pytest.raises(SetupError):
        await anna.inbox.poll()
    notice = anna.notices[-1]
    assert (notice.kind, notice.message, notice.reason, notice.advice) == (
        NoticeKind.REFUSED,
        "it is damaged",
        "state-damaged",
        "remove it",
    )


async def test_a_relay_that_goes_away_between_is_asked_again_and_nothing_is_refused(
    anna: Companion, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    await frame.ask(anna.caller)

    async def away(*_: Any, **_options: Any) -> Any:
        raise TransportError("gone", reason=TransportReason.UNREACHABLE)

    with monkeypatch.context() as gone:
        gone.setattr(anna.inbox._relay, "catch_up", away)
        with pytest.raises(TransportError):
            await anna.inbox.poll()
    assert anna.refusals == []
    await anna.inbox.poll()
    assert len(anna.inbox.pending) == 1


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (NotApproved(Outcome.EXPIRED, "the user did not answer in time"), "unanswered"),
        (TransportError("no phone", reason=TransportReason.NO_ADAPTER), "no-adapter"),
        (CtapError(0x2E, "CTAP2_ERR_NO_CREDENTIALS"), "ctap2-err-no-credentials"),
        (RemoteProtocolError("x", reason=ProtocolReason.MALFORMED_ANSWER), "malformed"),
        (TrustError(TrustReason.OPTIONS_DIFFER, "x"), "options-differ"),
    ],
    ids=["no answer", "no adapter", "no passkey", "malformed", "options"],
)
async def test_what_an_opener_ends_with_reaches_the_device(
    anna: Companion, frame: Frame, error: HeadlessPasskeyError, word: str
) -> None:
    name = await frame.ask(anna.caller)
    await anna.inbox.poll()
    with pytest.raises(type(error)):
        await anna.inbox.approve(anna.inbox.pending[0], Hands(error))
    status = await frame.caller.status(name)
    assert (status["state"], status["reason"]) == ("failed", word)


@pytest.mark.threat("T2")
async def test_an_envelope_signed_by_an_unknown_key_is_refused(anna: Companion, frame: Frame) -> None:
    request_id = new_request_id()
    said = frame.say(anna.caller.person, request_id)
    forged = reseal(said, by=device("stranger"), to=anna.caller.person)
    await frame.submit(request_id, {anna.caller.name: forged})
    await anna.inbox.poll()
    assert anna.inbox.pending == ()
    assert anna.refusals == ["bad-signature"]


@pytest.mark.threat("T2")
async def test_a_request_from_a_device_of_another_account_is_refused(
    anna: Companion, relay: Relay, home: Household
) -> None:
    others = await relay.household("mallory", companions=1)
    stranger = Frame(caller=others.devices[0], home=home)
    request_id = new_request_id()
    async with rogue_relay(anna, home) as rogue:
        rogue.list(stranger.caller.name, request_id, stranger.seal(anna.caller.person, request_id))
        async with rogue.companion() as companion:
            await companion.inbox.poll()
            assert companion.inbox.pending == ()
            assert companion.refusals == ["unknown-device"]
            assert rogue.events == [{"event": "failed", "reason": "unknown-device"}]


@pytest.mark.threat("T2")
async def test_an_envelope_moved_to_another_request_or_recipient_is_refused(
    anna: Companion, bert: Companion, frame: Frame, home: Household
) -> None:
    request_id = new_request_id()
    async with rogue_relay(anna, home) as rogue:
        rogue.list(frame.caller.name, new_request_id(), frame.seal(anna.caller.person, request_id))
        rogue.list(frame.caller.name, request_id, frame.seal(bert.caller.person, request_id))
        async with rogue.companion() as companion:
            await companion.inbox.poll()
            assert companion.inbox.pending == ()
            assert companion.refusals == ["cannot-open", "cannot-open"]


@pytest.mark.threat("T5")
async def test_a_replayed_request_is_refused(anna: Companion, frame: Frame, home: Household) -> None:
    request_id = new_request_id()
    sealed = frame.seal(anna.caller.person, request_id)
    async with rogue_relay(anna, home) as rogue:
        rogue.list(frame.caller.name, request_id, sealed)
        async with rogue.companion() as companion:
            await companion.inbox.poll()
            await companion.inbox.approve(companion.inbox.pending[0], Hands())
        async with rogue.companion() as companion:
            await companion.inbox.poll()
            assert companion.inbox.pending == ()
            assert companion.refusals == ["replayed"]


@pytest.mark.threat("T2")
async def test_a_forked_ring_refuses_what_comes_with_it(
    anna: Companion, frame: Frame, home: Household
) -> None:
    stranger = device("stranger")
    members = [caller.person for caller in (*home.companions, *home.devices)]
    forked = forge(home.ring, stranger, *members, stranger)
    request_id = new_request_id()
    async with rogue_relay(anna, home) as rogue:
        rogue.rings = {"version": 3, "hash": base64url(bytes(32)), "rings": [base64url(forked)], "words": []}
        rogue.list(frame.caller.name, request_id, frame.seal(anna.caller.person, request_id))
        async with rogue.companion() as companion:
            await companion.inbox.poll()
            assert companion.inbox.pending == ()
            assert companion.refusals == ["forked-ring"]
            assert companion.state.chain().head.version == home.ring.version
            assert rogue.events == [{"event": "failed", "reason": "forked-ring"}]


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "answer",
    [
        [],
        "",
        None,
        {},
        {"cursor": 7, "requests": []},
        {"cursor": "c", "requests": {}},
        {"cursor": "c" * 65, "requests": []},
        {"cursor": "c", "requests": [7]},
        {"cursor": "c", "requests": [{}] * 65},
        {"cursor": "c", "requests": [{"device": "d", "id": "", "state": "pending", "sealed": ""}]},
    ],
)
async def test_an_answer_that_is_not_the_contracts_is_a_protocol_error(
    anna: Companion, home: Household, answer: Any
) -> None:
    async with rogue_relay(anna, home) as rogue:
        rogue.inbox = answer
        async with rogue.companion() as companion:
            with pytest.raises(RemoteProtocolError):
                await companion.inbox.poll()


@pytest.mark.threat("T12")
async def test_any_item_is_refused_or_a_protocol_error(
    anna: Companion, home: Household, frame: Frame
) -> None:
    request_id = new_request_id()
    item = {
        "device": frame.caller.name,
        "id": base64url(request_id),
        "state": "pending",
        "version": 1,
        "sealed": base64url(frame.seal(anna.caller.person, request_id)),
        "claimed_by": None,
    }
    values: list[Any] = [None, 7, "", "x", "=" * 43, "A" * 43, [], {}, "A" * 9000]
    async with rogue_relay(anna, home) as rogue, rogue.companion() as companion:
        for name in item:
            for value in values:
                rogue.inbox = {"cursor": "c", "requests": [item | {name: value}], "ring": RING_1}
                with contextlib.suppress(HeadlessPasskeyError):
                    await companion.inbox.poll()
        assert all(request.announcement.device == frame.caller.name for request in companion.inbox.pending)


async def test_a_relay_that_answers_too_fast_is_not_asked_without_pause(
    anna: Companion, home: Household
) -> None:
    async with rogue_relay(anna, home) as rogue, rogue.companion() as companion:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.5):
                await companion.inbox.listen()
        assert 1 <= rogue.asked < 10


async def test_a_companion_that_was_removed_is_told_so(anna: Companion, home: Household) -> None:
    bert = home.companions[1]
    ring = grow(home.ring, bert.person, bert.person, *(caller.person for caller in home.devices))
    assert (await bert.post("/v1/ring", {"ring": base64url(ring.document)})).status == 201
    with pytest.raises(TrustError) as caught:
        await anna.inbox.listen()
    assert caught.value.reason is TrustReason.NOT_A_MEMBER
    assert f'by "{bert.person.label}" in ring 3' in str(caught.value)
    assert caught.value.exit_status is ExitStatus.NOT_ENROLLED


@pytest.mark.threat("T16")
async def test_a_companion_of_a_closed_account_is_told_so_while_it_waits(
    anna: Companion, relay: Relay
) -> None:
    await anna.inbox.poll()
    listening = asyncio.ensure_future(anna.inbox.listen())
    await close_account(relay.app, "alice")
    with pytest.raises(NotEnrolled) as caught:
        await listening
    assert caught.value.reason is EnrolmentReason.ACCOUNT_CLOSED


@pytest.mark.threat("T16")
async def test_every_change_of_the_account_is_told_at_once(anna: Companion, home: Household) -> None:
    await anna.inbox.poll()
    bert = home.companions[1]
    people = [bert.person, anna.caller.person, *(caller.person for caller in home.devices)]
    listening = asyncio.ensure_future(anna.inbox.poll(wait=20))
    ring = grow(home.ring, bert.person, *people, device("new hub"), now=bert.clock())
    assert (await bert.post("/v1/ring", {"ring": base64url(ring.document)})).status == 201
    await listening
    told = [notice for notice in anna.notices if notice.kind is NoticeKind.RING_CHANGED]
    assert [notice.message for notice in told] == [
        f'the membership is now version 3: "new hub" came, by "{bert.person.label}"'
    ]


@pytest.mark.threat("T16")
async def test_a_relay_that_was_restored_from_a_backup_has_the_lost_ring_after_the_next_call(
    anna: Companion, home: Household, relay: Relay
) -> None:
    bert = home.companions[1]
    people = [bert.person, anna.caller.person, *(caller.person for caller in home.devices)]
    ring = grow(home.ring, bert.person, *people, device("new hub"), now=bert.clock())
    assert (await bert.post("/v1/ring", {"ring": base64url(ring.document)})).status == 201
    await anna.inbox.poll()
    await anna.inbox.poll()
    async with open_database(relay.store) as database:
        await database.transact(lambda db: db.execute("DELETE FROM rings WHERE version > 2"))
    await anna.inbox.poll()
    assert (await bert.get("/v1/ring")).body["version"] == 3
    assert NoticeKind.RELAY_FORGOT_RINGS in anna.kinds


async def test_a_relay_that_cannot_be_reached_is_told_and_asked_again(
    anna: Companion, home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([TransportError("gone"), TransportError("gone")])
    real, asked = anna.inbox._relay.inbox, asyncio.Event()

    async def flaky(**kwargs: Any) -> Any:
        for failure in failures:
            raise failure
        asked.set()
        return await real(**kwargs)

    monkeypatch.setattr(anna.inbox._relay, "inbox", flaky)
    listening = asyncio.create_task(anna.inbox.listen())
    await asked.wait()
    listening.cancel()
    await asyncio.wait([listening])
    assert anna.kinds.count(NoticeKind.UNREACHABLE) == 1


async def test_a_clock_that_is_wrong_for_a_while_does_not_end_the_listening(
    anna: Companion, home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = iter([TrustError(TrustReason.CLOCK_SKEW, "this clock is 86400 s ahead")])
    real, asked = anna.inbox._relay.inbox, asyncio.Event()

    async def skewed(**kwargs: Any) -> Any:
        for error in wrong:
            raise error
        asked.set()
        return await real(**kwargs)

    monkeypatch.setattr(anna.inbox._relay, "inbox", skewed)
    listening = asyncio.create_task(anna.inbox.listen())
    await asyncio.wait([listening, asyncio.ensure_future(asked.wait())], return_when=asyncio.FIRST_COMPLETED)
    assert asked.is_set(), "it has ended"
    listening.cancel()
    await asyncio.wait([listening])
    assert anna.kinds.count(NoticeKind.UNREACHABLE) == 1


def turn(anna: Companion, ahead: float) -> None:
    """Turn the clock of anna's machine."""

    def clock() -> float:
        return time.time() + ahead

    anna.inbox._clock = anna.inbox._relay._http._clock = clock


@pytest.mark.threat("T6")
@pytest.mark.parametrize("ahead", [-600, 600])
async def test_a_companion_whose_clock_is_turned_before_it_claims_says_so_at_both_ends(
    anna: Companion, bert: Companion, frame: Frame, ahead: float
) -> None:
    name = await frame.ask(anna.caller, bert.caller)
    await bert.inbox.poll()
    await anna.inbox.poll()
    turn(anna, ahead)
    hands = Hands()
    with pytest.raises(TrustError) as caught:
        await anna.inbox.approve(anna.inbox.pending[0], hands)
    assert caught.value.reason is TrustReason.CLOCK_SKEW
    assert hands.opened == []
    assert anna.refusals == ["clock-skew"]
    assert (await frame.caller.status(name))["failures"] == failures(anna, "clock-skew")
    assert await bert.inbox.approve(bert.inbox.pending[0], Hands())


@pytest.mark.threat("T6")
async def test_a_no_counts_by_whatever_clock(anna: Companion, frame: Frame) -> None:
    name = await frame.ask(anna.caller)
    await anna.inbox.poll()
    turn(anna, -600)
    await anna.inbox.decline(anna.inbox.pending[0], not_me=True)
    assert await frame.state_of(name) == "declined"


@pytest.mark.threat("T5")
@pytest.mark.threat("T6")
async def test_a_companion_whose_clock_is_turned_while_the_phone_is_asked_keeps_its_claim_and_gives_it_back(
    anna: Companion, bert: Companion, frame: Frame, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_module, "_MIN_PAUSE", 0.01)
    name = await frame.ask(anna.caller, bert.caller)
    await anna.inbox.poll()
    hands = Waiting()
    approving = asyncio.create_task(anna.inbox.approve(anna.inbox.pending[0], hands))
    while await frame.state_of(name) != "opened":
        pass
    turn(anna, 600)
    called = 0
    real = anna.inbox._relay.inbox

    async def counted(**how: Any) -> Any:
        nonlocal called
        page = await real(**how)
        called += 1
        return page

    monkeypatch.setattr(anna.inbox._relay, "inbox", counted)
    listening = asyncio.create_task(anna.inbox.listen())
    for _ in range(2):  # a lease is 60 s
        called = 0
        relay.clock.ahead += 40
        anna.inbox._relay._http._clock = lambda: relay.clock() + 600
        async with asyncio.timeout(30):
            while not called:  # noqa: ASYNC110  a call that was counted tells nobody
                await asyncio.sleep(0.01)
        assert await frame.state_of(name) == "opened"
    assert anna.kinds.count(NoticeKind.UNREACHABLE) == 1
    await cancelled(approving)
    status = await frame.caller.status(name)
    assert (status["state"], status["failures"]) == ("delivered", failures(anna, "interrupted"))
    listening.cancel()
    await asyncio.wait([listening])


RING_1 = {"version": 1, "hash": base64url(bytes(32))}  # older than what a companion holds


class RogueRelay:
    """A relay that says what it is told to say."""

    def __init__(self, anna: Companion, home: Household, url: str, folder: Path) -> None:
        ring = home.ring
        self.rings: Any = {"version": ring.version, "hash": base64url(ring.hash), "rings": [], "words": []}
        self.inbox: Any = {"cursor": "c", "requests": [], "word_wanted": False, "ring": RING_1}
        self.events: list[Any] = []
        self.asked = 0
        self.stream: Callable[[web.Request], Awaitable[web.StreamResponse]] = self._no_stream
        self._caller = anna.caller
        self._state = enrolled(folder, anna.caller, home, url=url)

    def list(self, device: str, request_id: bytes, sealed: bytes) -> None:
        item = {
            "device": device,
            "id": base64url(request_id),
            "state": "pending",
            "version": 1,
            "sealed": base64url(sealed),
            "submitted_at": 0,
            "expires_at": 1 << 40,
            "claimed_by": None,
        }
        self.inbox["requests"].append(item)

    @contextlib.asynccontextmanager
    async def companion(self) -> AsyncIterator[Companion]:
        """Anna, had she joined through this relay."""
        async with awake_again(self._state, self._caller) as companion:
            yield companion

    async def _no_stream(self, _request: web.Request) -> web.Response:
        return web.Response(status=404)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/inbox/stream":
            return await self.stream(request)
        if request.path == "/v1/ring":
            return web.json_response(self.rings)
        if request.path == "/v1/inbox":
            self.asked += 1
            return web.json_response(self.inbox)
        if request.path == "/v1/word":
            return web.json_response({})
        event = json.loads(await request.text())
        self.events.append(event)
        return web.json_response(
            {"state": event["event"], "version": 2, "expires_at": 1 << 40, "now": int(time.time())}
        )


@contextlib.asynccontextmanager
async def rogue_relay(anna: Companion, home: Household) -> AsyncIterator[RogueRelay]:
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    folder = Path(tempfile.mkdtemp())
    rogue = RogueRelay(anna, home, url, folder)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", rogue.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        yield rogue
    finally:
        await runner.cleanup()
        listening.close()
        shutil.rmtree(folder)


# The HPKE key

MONTH = 30 * 86_400


@pytest.mark.threat("T16")
async def test_a_state_that_is_copied_after_the_erasure_opens_no_envelope_of_before(
    anna: Companion, frame: Frame, home: Household, relay: Relay, tmp_path: Path
) -> None:
    sealed = frame.seal(anna.caller.person, REQUEST_ID)
    await anna.inbox.poll()
    assert NoticeKind.KEY_REPLACED not in anna.kinds
    before, within, after = (tmp_path / name for name in ("before", "within", "after"))
    folder = tmp_path / anna.caller.name
    shutil.copytree(folder, before)
    relay.clock.ahead += MONTH
    await anna.inbox.poll()
    shutil.copytree(folder, within)
    assert anna.kinds.count(NoticeKind.KEY_REPLACED) == 1
    relay.clock.ahead += 601
    await anna.inbox.poll()
    shutil.copytree(folder, after)

    def opens(copy: Path) -> bool:
        return any(opened(sealed, key, anna, frame) for key in keys_in(copy))

    assert (opens(before), opens(within), opens(after)) == (True, True, False)


@pytest.mark.threat("T16")
async def test_a_replaced_key_is_told_to_the_others_and_opens_what_is_sealed_to_it(
    anna: Companion, bert: Companion, frame: Frame, home: Household, relay: Relay
) -> None:
    old = frame.entry(anna.caller.person)
    relay.clock.ahead += MONTH - 60
    await anna.inbox.poll()
    assert anna.state.chain().head.version == 2
    await bert.inbox.poll()
    relay.clock.ahead += 86_400
    await anna.inbox.poll()
    home.ring = anna.state.chain().head
    new = frame.entry(anna.caller.person)
    assert home.ring.version == 3
    assert new.hpke_key != old.hpke_key
    assert (new.label, new.joined, new.introduced_by) == (old.label, old.joined, old.introduced_by)
    await frame.ask(anna.caller, bert.caller, now=relay.clock())
    await anna.inbox.poll()
    await bert.inbox.poll()
    assert len(anna.inbox.pending) == len(bert.inbox.pending) == 1
    assert [each.message for each in bert.notices if each.kind is NoticeKind.RING_CHANGED] == [
        'the membership is now version 3: "phone 0" was given a new key for requests, by "phone 0"'
    ]


async def test_no_key_is_replaced_while_requests_of_two_devices_are_under_way(
    relay: Relay, tmp_path: Path
) -> None:
    home = await relay.household("bob", companions=1, devices=2)
    async with awake(tmp_path, home.companions[0], home) as companion:
        relay.clock.ahead += MONTH
        frames = [Frame(caller=caller, home=home) for caller in home.devices]
        names = [await frame.ask(companion.caller, now=relay.clock()) for frame in frames]
        for left, (frame, name) in zip((2, 1), zip(frames, names, strict=True), strict=True):
            await companion.inbox.poll()
            assert len(companion.inbox.pending) == left
            assert companion.state.chain().head.version == 2
            (request,) = (each for each in companion.inbox.pending if each.device.name == frame.caller.name)
            assert await companion.inbox.approve(request, Hands())
            await companion.inbox.poll()
            assert companion.state.chain().head.version == 2
            await frame.caller.tell(name, "completed")
        await companion.inbox.poll()
        assert companion.state.chain().head.version == 3
        assert companion.refusals == []


async def test_a_request_that_was_sealed_just_before_says_that_the_key_was_replaced(
    anna: Companion, frame: Frame, relay: Relay
) -> None:
    relay.clock.ahead += MONTH
    await anna.inbox.poll()
    assert anna.state.chain().head.version == 3
    await frame.ask(anna.caller, now=anna.caller.clock())  # from ring 2
    await anna.inbox.poll()
    assert anna.refusals == ["stale-ring"]
    relay.clock.ahead += 601
    await anna.inbox.poll()
    await frame.ask(anna.caller, now=anna.caller.clock())
    await anna.inbox.poll()
    assert anna.refusals == ["stale-ring", "cannot-open"]


async def test_a_companion_that_slept_for_90_days_replaces_its_key_once(
    anna: Companion, relay: Relay
) -> None:
    relay.clock.ahead += 90 * 86_400
    async with awake_again(anna.state, anna.caller) as woken:
        for _ in range(3):
            await woken.inbox.poll()
        assert woken.kinds.count(NoticeKind.KEY_REPLACED) == 1
        assert anna.state.chain().head.version == 3
        relay.clock.ahead += MONTH
        await woken.inbox.poll()
        assert anna.state.chain().head.version == 4


class PowerFailure(BaseException):
    """The end of a process at some point."""


@pytest.mark.threat("T16")
@pytest.mark.parametrize(
    "where",
    [
        "before next_hpke_key",
        "after next_hpke_key",
        "before append_ring",
        "after append_ring",
        "before extend",
        "after extend",
        "after settle_hpke_keys",
    ],
)
async def test_a_crash_while_the_key_is_replaced_loses_no_request(
    anna: Companion, frame: Frame, relay: Relay, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    await anna.inbox.poll()
    relay.clock.ahead += MONTH
    when, step = where.split()
    owner = CompanionRelay if step == "append_ring" else CompanionState
    real = getattr(owner, step)

    async def fails(*args: Any, **kwargs: Any) -> None:
        if when == "after":
            await real(*args, **kwargs)
        raise PowerFailure

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, fails)
        with pytest.raises(PowerFailure):
            await anna.inbox.poll()
    async with awake_again(anna.state, anna.caller) as again:
        for document in (await frame.caller.get("/v1/ring?after=2")).body["rings"]:
            frame.home.ring = frame.home.ring.extend(from_base64url(document), now=relay.clock())
        await frame.ask(anna.caller, now=relay.clock())
        await again.inbox.poll()
        assert again.refusals == []
        assert len(again.inbox.pending) == 1
        assert await again.inbox.approve(again.inbox.pending[0], Hands())
        relay.clock.ahead += 600
        for _ in range(3):
            await again.inbox.poll()
            relay.clock.ahead += 600
        assert anna.state.chain().head.version == 3
        entry = anna.state.chain().head.member(anna.caller.name)
        assert entry is not None
        assert [key.public for key in anna.state.hpke_keys(relay.clock())] == [entry.hpke_key]


async def test_a_replacement_that_fails_is_tried_again_an_hour_later_with_the_same_key(
    anna: Companion, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay.clock.ahead += MONTH
    sent: list[object] = []

    async def limited(_: CompanionRelay, ring: Ring) -> bool:
        entry = ring.member(anna.caller.name)
        assert entry is not None
        sent.append(entry.hpke_key)
        if len(sent) == 1:
            raise TransportError("not now (rate-limited)")
        return False

    with monkeypatch.context() as patch:
        patch.setattr(CompanionRelay, "append_ring", limited)
        for _ in range(2):
            await anna.inbox.poll()
            await anna.inbox.poll()
            relay.clock.ahead += 3601
    assert len(sent) == 2
    assert NoticeKind.KEY_REPLACED not in anna.kinds
    await anna.inbox.poll()
    assert anna.kinds.count(NoticeKind.KEY_REPLACED) == 1
    entry = anna.state.chain().head.member(anna.caller.name)
    assert entry is not None
    assert [entry.hpke_key, entry.hpke_key] == sent


async def test_a_state_of_before_a_replacement_gets_a_key_of_its_own_at_once(
    anna: Companion, frame: Frame, home: Household, relay: Relay, tmp_path: Path
) -> None:
    """A companion is restored from a backup: its entry names a key that it does not hold."""
    backup = tmp_path / "backup"
    shutil.copytree(tmp_path / anna.caller.name, backup)
    relay.clock.ahead += MONTH
    await anna.inbox.poll()
    async with awake_again(CompanionState(backup), anna.caller) as restored:
        await restored.inbox.poll()
        home.ring = restored.state.chain().head
        assert home.ring.version == 4
        await frame.ask(anna.caller, now=relay.clock())
        await restored.inbox.poll()
        assert len(restored.inbox.pending) == 1


async def test_two_that_run_with_one_state_replace_a_key_once_an_hour_at_most(
    anna: Companion, relay: Relay, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / anna.caller.name, copy)
    relay.clock.ahead += MONTH
    async with awake_again(CompanionState(copy), anna.caller) as other:
        for _ in range(5):
            await anna.inbox.poll()
            await other.inbox.poll()
        assert other.state.chain().head.version == 4  # one each
        relay.clock.ahead += 3601
        for _ in range(5):
            await anna.inbox.poll()
            await other.inbox.poll()
        assert other.state.chain().head.version == 6


def keys_in(folder: Path) -> list[SoftwareHpkeKey]:
    """Each HPKE key in the files of a state, whatever they say of it."""
    words = re.findall(r'"([A-Za-z0-9+/=]+)"', (folder / "companion.json").read_text())
    keys = []
    for word in words:
        with contextlib.suppress(ValueError, HeadlessPasskeyError):
            octets = base64.b64decode(word)
            if len(octets) == 34:
                keys.append(SoftwareHpkeKey.from_bytes(octets))
    return keys


def opened(sealed: bytes, key: SoftwareHpkeKey, to: Companion, by: Frame) -> bool:
    try:
        open_envelope(
            sealed,
            hpke_private=key,
            account=by.home.account,
            request_id=REQUEST_ID,
            device=by.caller.name,
            recipient=to.caller.name,
        )
    except TrustError:
        return False
    return True


# Words


async def test_a_companion_says_which_ring_it_holds_at_first_and_once_a_day(
    anna: Companion, home: Household, relay: Relay
) -> None:
    await anna.inbox.poll()
    first = await words(home)
    assert {by: word.ring_hash for by, word in first.items()} == {anna.caller.name: home.ring.hash}
    relay.clock.ahead += 3600
    await anna.inbox.poll()
    assert await words(home) == first
    relay.clock.ahead += 86_400
    await anna.inbox.poll()
    assert (await words(home))[anna.caller.name].at >= first[anna.caller.name].at + 86_400


async def test_a_companion_gives_its_word_when_it_is_asked_and_at_most_once_a_minute(
    anna: Companion, home: Household, relay: Relay
) -> None:
    await anna.inbox.poll()
    first = (await words(home))[anna.caller.name].at
    await home.devices[0].post("/v1/words/call", {})
    relay.clock.ahead += 59
    await anna.inbox.poll()
    assert (await words(home))[anna.caller.name].at == first
    relay.clock.ahead += 2
    await anna.inbox.poll()
    assert (await words(home))[anna.caller.name].at > first


@pytest.mark.threat("T2")
async def test_a_companion_that_adopted_a_ring_says_so(
    anna: Companion, frame: Frame, home: Household, relay: Relay
) -> None:
    await anna.inbox.poll()
    ring = await home.append(*(each.person for each in (*home.companions, *home.devices)))
    relay.clock.ahead += 61
    await frame.ask(anna.caller)
    await anna.inbox.poll()
    assert (await words(home))[anna.caller.name].ring_hash == ring.hash


@pytest.mark.threat("T2")
async def test_a_companion_warns_when_no_other_one_has_given_a_word_for_a_week(
    anna: Companion, home: Household, relay: Relay
) -> None:
    relay.clock.ahead += 7 * 86_400 + 60
    await anna.inbox.poll()
    assert [notice.message for notice in anna.notices if notice.kind is NoticeKind.RING_UNCONFIRMED] == (
        ['no word from "phone 1" for 7 days'] if home.ring.signer == anna.caller.name else []
    )


@pytest.mark.threat("T16")
async def test_rings_that_the_relay_has_forgotten_are_told(
    anna: Companion, home: Household, relay: Relay
) -> None:
    await home.append(*(each.person for each in (*home.companions, *home.devices)))
    await anna.inbox.catch_up()
    async with open_database(relay.store) as database:  # as a backup has it
        await database.transact(
            lambda db: db.execute("DELETE FROM rings WHERE version = ?", (home.ring.version,))
        )
    for _ in range(2):
        await anna.inbox.catch_up()
    (told,) = (notice for notice in anna.notices if notice.kind is NoticeKind.RELAY_FORGOT_RINGS)
    assert told.message == f"the relay has forgotten ring {home.ring.version} and was given it again"


@pytest.mark.threat("T2")
async def test_a_device_that_was_not_told_of_a_ring_is_named_and_may_go_on(
    anna: Companion, frame: Frame, home: Household
) -> None:
    before = home.ring
    await home.append(*(each.person for each in (*home.companions, *home.devices)))
    label, ahead = home.devices[0].person.label, home.ring.issued + 601
    await frame.ask(anna.caller, ring=before, now=ahead - 500)
    await anna.inbox.poll()
    assert NoticeKind.DEVICE_BEHIND not in anna.kinds
    anna.caller.clock.ahead += 601
    await frame.ask(anna.caller, ring=before, now=ahead)
    await anna.inbox.poll()
    (behind,) = (notice for notice in anna.notices if notice.kind is NoticeKind.DEVICE_BEHIND)
    assert behind.message == f'the relay has not told "{label}" of ring version {home.ring.version}'
    assert len(anna.inbox.pending) == 1
    assert anna.refusals == []


@pytest.mark.threat("T2")
async def test_a_device_whose_membership_nobody_has_confirmed_for_a_week_is_named(
    anna: Companion, frame: Frame
) -> None:
    now = int(anna.caller.clock())
    await frame.ask(anna.caller, confirmed=now - 9 * 86_400)
    await anna.inbox.poll()
    (told,) = (notice for notice in anna.notices if notice.kind is NoticeKind.RING_UNCONFIRMED)
    assert "no word that confirms the membership for 9 days" in told.message
    assert len(anna.inbox.pending) == 1


async def words(home: Household) -> dict[str, Word]:
    """What the relay hands out, by signer."""
    body = (await home.devices[0].get("/v1/ring")).body
    members = {member.name: member for member in home.ring.members}
    return {
        each["by"]: Word.parse(from_base64url(each["word"]), by=members[each["by"]]) for each in body["words"]
    }
