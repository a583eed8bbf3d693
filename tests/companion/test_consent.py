"""What a person is shown, and that nothing in it can lie."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from companion_push.companion.attend import Outcomes, put_pending
from companion_push.companion.consent import Answer, Policy, describe, summary
from companion_push.companion.inbox import CheckedRequest, Notice, NoticeKind
from companion_push.companion.wording import known_as, must_say
from headless_passkey.errors import NotApproved, Outcome, TransportError, TrustError, TrustReason
from headless_passkey.trust.envelope import Announcement
from headless_passkey.trust.ring import Member
from headless_passkey.trust.word import Claim
from program_parts.names import quoted
from tests.companion.family import Companion, Frame, Hands
from tests.relay.household import Household, Relay
from tests.trust.people import NOW, Home, device

HOME = Home()
CLAIM = Claim.of(device=HOME.frame.name, request_id=bytes(16), sealed=b"sealed")


def request(**changes: Any) -> CheckedRequest:
    return checked(HOME.say(**changes), HOME.frame.member)


def checked(announcement: Announcement, member: Member) -> CheckedRequest:
    shown = known_as(member, [member])
    return CheckedRequest(announcement=announcement, claim=CLAIM, device=member, known_as=shown)


def test_everything_needed_to_decide_is_shown() -> None:
    shown = "\n".join(describe(request(rp_name="Example Inc", note="by the window", digits="42"), NOW + 10))
    for text in ('"frame" asks to sign in', "example.com", '"Example Inc"', '"by the window"', "290 s left"):
        assert text in shown
    assert "create a passkey" in summary(request(kind="mc"))


@pytest.mark.threat("T11")
def test_neither_url_nor_digits_are_shown() -> None:
    asked = request(digits="31415926")
    shown = "\n".join([*describe(asked, NOW), summary(asked), repr(asked)])
    assert "31415926" not in shown
    assert "FIDO" not in shown


NASTY = [
    "\x1b[2J\x1b[HSign in to your bank? y or n:",
    "frame\rbank",
    "frame\nApproved",
    "frame\u202ekcats",
    "a\u0000b",
    "a\x9b31m",
    "\u2066x\u2069",
    "tab\tbell\a",
    "line\u2028separator",
]


@pytest.mark.threat("T4")
@pytest.mark.parametrize("text", NASTY)
def test_nothing_that_others_wrote_moves_the_cursor_or_the_reading_order(text: str) -> None:
    """The formats refuse such text already; what is shown does not rely on it."""
    asked = request()
    object.__setattr__(asked.device, "label", text)
    try:
        hostile = checked(replace(asked.announcement, rp_name=text, note=text, rp_id=text), asked.device)
    finally:
        object.__setattr__(asked.device, "label", "frame")
    for line in [*describe(hostile, NOW), summary(hostile)]:
        assert line.isprintable()


def test_names_are_shown_as_people_write_them() -> None:
    label, note, rp_name = (
        "Ada \U0001f469\u200d\U0001f4bb",
        "\u0639\u0644\u06cc\u200c\u0631\u0636\u0627",
        "\u2764\ufe0f \U0001fae9",
    )
    asked = request(rp_name=rp_name, note=note)
    named = checked(asked.announcement, replace(asked.device, label=label))
    shown = "\n".join(describe(named, NOW))
    assert f'"{label}" asks to sign in' in shown
    assert f'"\u2068{note}\u2069"' in shown  # isolated: it is right to left
    assert f'"{rp_name}"' in shown


@pytest.mark.threat("T4")
@pytest.mark.parametrize(
    "twin", ["frame", "FRAME", "fr\u0430me", "fr\u034fame"], ids=["same", "capitals", "Cyrillic", "U+034F"]
)
def test_of_two_that_are_called_the_same_each_is_shown_with_what_nobody_can_choose(twin: str) -> None:
    phone, frame = HOME.phone.member, HOME.ring.member(HOME.frame.name)
    assert frame is not None
    day = time.strftime("%Y-%m-%d", time.localtime(NOW))
    other = replace(device("lamp").member, joined=NOW + 40 * 86400, introduced_by="removed-one")
    object.__setattr__(other, "label", twin)
    members = [phone, frame, other]
    assert known_as(phone, members) == '"phone"'
    assert known_as(frame, members) == (
        f'"frame" ({frame.name[:10]}, joined {day}, introduced by "phone" ({phone.name[:10]}))'
    )
    later = time.strftime("%Y-%m-%d", time.localtime(other.joined))
    assert known_as(other, members) == (
        f"{quoted(twin)} ({other.name[:10]}, joined {later}, introduced by removed-on, which was removed)"
    )


@pytest.mark.threat("T4")
def test_a_twin_of_the_first_member_is_told_from_it() -> None:
    first = HOME.ring.members[0]
    other = replace(device("phone").member, joined=NOW, introduced_by=first.name)
    assert known_as(first, [first, other]).endswith(", the first member)")


@pytest.mark.threat("T4")
def test_the_user_is_told_what_the_phone_must_name() -> None:
    assert must_say("home.example") == (
        'Your phone must now say "home.example". If it names anything else, cancel.'
    )
    assert (
        must_say("a\x1b[2J") == 'Your phone must now say "a<U+001B>[2J". If it names anything else, cancel.'
    )


# One act per request


class Scripted:
    """A person who takes the given requests in turn, by the device's name; an empty one means all of them."""

    def __init__(self, *answers: tuple[str, Answer]) -> None:
        self.answers = list(answers)
        self.shown: list[list[str]] = []
        self.asked = asyncio.Event()

    async def ask(self, pending: Sequence[CheckedRequest]) -> tuple[Sequence[CheckedRequest], Answer]:
        self.shown.append([each.device.label for each in pending])
        self.asked.set()
        if not self.answers:
            await asyncio.Future()
        label, answer = self.answers.pop(0)
        return [each for each in pending if label in ("", each.device.label)], answer


@pytest.fixture
async def second_frame(home: Household, relay: Relay) -> Frame:
    newcomer = relay.caller(device("frame 1"))
    await home.append(*(each.person for each in (*home.companions, *home.devices, newcomer)))
    return Frame(caller=newcomer, home=home)


@pytest.mark.threat("T4")
async def test_several_requests_take_an_act_each(anna: Companion, frame: Frame, second_frame: Frame) -> None:
    await frame.ask(anna.caller)
    await second_frame.ask(anna.caller)
    await anna.inbox.poll()
    person, hands = Scripted(("frame 1", Answer.YES), ("frame 0", Answer.NO)), Hands()
    await put_pending(anna.inbox, person, hands, Outcomes(), once=False)
    assert [sorted(each) for each in person.shown] == [["frame 0", "frame 1"], ["frame 0"]]
    assert len(hands.opened) == 1


@pytest.mark.parametrize("once", [True, False])
async def test_a_no_to_all_that_wait_declines_each(
    anna: Companion, frame: Frame, second_frame: Frame, *, once: bool
) -> None:
    names = [(each, await each.ask(anna.caller)) for each in (frame, second_frame)]
    await anna.inbox.poll()
    await put_pending(anna.inbox, Scripted(("", Answer.NO)), Hands(), Outcomes(), once=once)
    assert [await each.state_of(name) for each, name in names] == ["declined", "declined"]


class Gone:
    """Nobody can be asked."""

    async def ask(self, pending: Sequence[CheckedRequest]) -> tuple[Sequence[CheckedRequest], Answer]:
        raise TransportError("the terminal has gone")


async def test_when_nobody_can_be_asked_the_request_is_left_to_others_with_the_reason(
    anna: Companion, bert: Companion, frame: Frame
) -> None:
    name = await frame.ask(anna.caller, bert.caller)
    await anna.inbox.poll()
    with pytest.raises(TransportError, match="terminal"):
        await put_pending(anna.inbox, Gone(), Hands(), Outcomes(), once=False)
    status = await frame.caller.status(name)
    assert status["state"] == "delivered"
    assert status["failures"] == [{"by": anna.caller.name, "reason": "unreachable"}]


async def test_when_nobody_can_be_asked_a_request_that_has_ended_is_not_in_the_way_of_the_others(
    anna: Companion, frame: Frame, second_frame: Frame
) -> None:
    asked = {each.caller.name: (each.caller, await each.ask(anna.caller)) for each in (frame, second_frame)}
    await anna.inbox.poll()
    (ending, ended), (caller, name) = (asked[each.key[0]] for each in anna.inbox.pending)
    await ending.tell(ended, "cancelled")
    with pytest.raises(TransportError, match="terminal"):
        await put_pending(anna.inbox, Gone(), Hands(), Outcomes(), once=False)
    status = await caller.status(name)
    assert status["reason"] == "unreachable"


async def test_who_cannot_be_asked_is_the_error_also_where_the_relay_is_away(
    anna: Companion, frame: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise TransportError("the relay did not answer")

    await frame.ask(anna.caller)
    await anna.inbox.poll()
    monkeypatch.setattr(anna.inbox._relay, "report", away)
    with pytest.raises(TransportError, match="terminal"):
        await put_pending(anna.inbox, Gone(), Hands(), Outcomes(), once=False)


@pytest.mark.threat("T4")
async def test_a_request_that_arrives_meanwhile_takes_the_question_back(
    anna: Companion, frame: Frame, second_frame: Frame
) -> None:
    await frame.ask(anna.caller)
    await anna.inbox.poll()
    person = Scripted()
    putting = asyncio.create_task(put_pending(anna.inbox, person, Hands(), Outcomes(), once=False))
    await person.asked.wait()
    person.asked.clear()
    await second_frame.ask(anna.caller)
    await anna.inbox.poll()
    await person.asked.wait()
    assert [len(each) for each in person.shown] == [1, 2]
    putting.cancel()
    await asyncio.wait([putting])


@pytest.mark.threat("T5")
async def test_a_question_does_not_outlive_its_request_by_our_own_clock(
    anna: Companion, frame: Frame, relay: Relay
) -> None:
    await frame.ask(anna.caller)
    await anna.inbox.poll()
    relay.clock.ahead = 400
    outcomes = Outcomes()
    async with asyncio.timeout(60):
        await put_pending(anna.inbox, Scripted(), Hands(), outcomes, once=False)
    assert anna.inbox.pending == ()
    assert anna.notices[-1].kind is NoticeKind.GONE


async def test_wrong_digits_end_it_here(anna: Companion, frame: Frame) -> None:
    await frame.ask(anna.caller, digits="42")
    await anna.inbox.poll()
    outcomes, hands = Outcomes(), Hands()
    await put_pending(anna.inbox, Policy(Answer.WRONG_DIGITS), hands, outcomes, once=True)
    assert isinstance(outcomes.error, TrustError)
    assert outcomes.error.reason is TrustReason.WRONG_DIGITS
    assert hands.opened == []


# What the program ends with

REFUSED = TrustError(TrustReason.BAD_SIGNATURE, "x")
GONE = NotApproved(Outcome.EXPIRED, "x")


def test_an_answer_counts_more_than_what_was_refused_before_it() -> None:
    outcomes = Outcomes()
    outcomes.note(Notice(kind=NoticeKind.REFUSED, message="x", error=REFUSED))
    assert outcomes.error is REFUSED
    outcomes.answered(None)
    assert outcomes.error is None
    outcomes.note(Notice(kind=NoticeKind.GONE, message="x", error=GONE))
    assert outcomes.error is None


def test_of_several_answers_the_first_that_went_wrong_counts() -> None:
    outcomes = Outcomes()
    first = TransportError("x")
    for error in (None, first, GONE):
        outcomes.answered(error)
    assert outcomes.error is first


def test_notices_that_end_nothing_do_not_end_the_program() -> None:
    outcomes = Outcomes()
    for kind in NoticeKind:
        if kind not in (NoticeKind.REFUSED, NoticeKind.GONE):
            outcomes.note(Notice(kind=kind, message="x"))
    assert not outcomes.ended.is_set()
