"""The delivery of FIDO URLs: through a real relay to companions that open them, and on stdout."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from companion_push.relay import accounts, subjects
from companion_push.relay.database import open_database
from companion_push.relay.transaction import Transaction
from headless_passkey.account import enrolment
from headless_passkey.account.delivery import RelayDelivery, StdoutDelivery
from headless_passkey.account.enrolment import Enrolment
from headless_passkey.account.relay import RESUBMISSIONS, RelayClient, RequestStatus, ShownClaim
from headless_passkey.delivery import Ask, Progress, Unconfirmed
from headless_passkey.errors import (
    HeadlessPasskeyError,
    LocalProtocolError,
    NotApproved,
    NotEnrolled,
    Outcome,
    TransportError,
    TrustError,
    TrustReason,
)
from headless_passkey.hybrid.client_platform import QrTransaction
from headless_passkey.hybrid.fido_url import FidoUrl, RequestKind
from headless_passkey.net.proven_http import ProblemAnswer, ProvenHttp, open_session
from headless_passkey.refusals import Refusal
from headless_passkey.request import DeviceEvent, RequestState
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.envelope import open_envelope
from headless_passkey.trust.freshness import ForgottenRings
from headless_passkey.trust.ring import Ring
from headless_passkey.trust.word import Claim, Word
from program_parts.base64url import base64url
from tests.loop_clock import LoopClock
from tests.relay.household import Household, running_relay
from tests.trust.people import Person, companion, device, found, grow
from tests.trust.refusal import refused

ASK = Ask(
    kind=RequestKind.GET_ASSERTION,
    origin="https://login.example",
    rp_id="login.example",
    note="by the window",
    digits="42",
)


def fresh_urls(*recipients: str) -> dict[str, FidoUrl]:
    return {
        name: QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=int(time.time())).url
        for name in recipients
    }


@contextlib.asynccontextmanager
async def delivering(
    folder: Path,
    *,
    companions: int = 2,
    rp_id: str | None = None,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[tuple[RelayDelivery, Household]]:
    """A device that has joined a household on a real relay. clock: the device's."""
    async with running_relay(folder / "relay.db") as server, open_session(None) as session:
        home = await server.household(companions=companions)
        frame = home.devices[0]
        joined = Enrolment(
            key=frame.person.key, relay_url=server.url, chain=RingChain.start(home.ring), rp_id=rp_id
        )
        state = folder / "state"
        state.mkdir(mode=0o700)
        enrolment._write(state, joined)
        http = ProvenHttp(session, server.url, frame.person.key, clock=clock)
        yield RelayDelivery(RelayClient(http), state, clock=clock), home


async def test_stdout_gets_one_url_and_nothing_else() -> None:
    lines: list[str] = []
    delivery = StdoutDelivery(lines.append)
    urls = fresh_urls(*await delivery.recipients())
    await delivery.submit(ASK, urls, lifetime=300)
    await delivery.finish(DeviceEvent.COMPLETED)
    assert lines == [url.encode() for url in urls.values()]
    assert [progress async for progress in delivery.progress()] == []


@pytest.mark.threat("T2")
async def test_each_companion_gets_an_envelope_that_it_alone_opens(tmp_path: Path) -> None:
    async with delivering(tmp_path) as (delivery, home):
        names = await delivery.recipients()
        assert set(names) == {companion.name for companion in home.companions}
        urls = fresh_urls(*names)
        await delivery.submit(ASK, urls, lifetime=300)
        for companion in home.companions:
            (item,) = await companion.inbox()
            opened = open_envelope(
                from_base64url(item["sealed"]),
                hpke_private=companion.person.hpke_private,
                account=home.account,
                request_id=from_base64url(item["id"]),
                device=home.devices[0].name,
                recipient=companion.name,
            )
            said = opened.verified(home.devices[0].person.member)
            assert said.url == urls[companion.name].encode()
            assert (said.rp_id, said.note, said.digits) == ("login.example", "by the window", "42")


async def test_a_companion_that_has_come_since_is_found(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, home):
        assert len(await delivery.recipients()) == 1
        second = home.companions[0].person.__class__(home.companions[0].person.role, "tablet")
        await home.append(home.companions[0].person, home.devices[0].person, second)
        assert second.name in await delivery.recipients()


@pytest.mark.threat("T16")
async def test_of_as_many_companions_as_an_account_may_have_all_are_asked(tmp_path: Path) -> None:
    longest = Ask(
        kind=RequestKind.GET_ASSERTION,
        origin="https://login.example",
        rp_id=".".join(["a" * 61] * 4),
        rp_name="\N{FAMILY}" * 64,
        note="\N{FAMILY}" * 140,
        digits="12345678",
    )
    async with delivering(tmp_path, companions=16) as (delivery, home):
        names = await delivery.recipients()
        assert set(names) == {companion.name for companion in home.companions}
        await delivery.submit(longest, fresh_urls(*names), lifetime=300)
        for companion in home.companions:
            assert len(await companion.inbox()) == 1


async def cut_off(
    delivery: RelayDelivery, monkeypatch: pytest.MonkeyPatch, on_report: Callable[[Callable[[], Any]], Any]
) -> None:
    """Cancel a submission on its way. on_report: called with what lets it arrive, after the relay has answered a report."""
    relay, sent = delivery._relay, asyncio.Event()
    submit, report = relay.submit, relay.report
    calls: list[Callable[[], Any]] = []

    async def on_its_way(*args: Any, **kwargs: Any) -> None:
        calls.append(lambda: submit(*args, **kwargs))
        sent.set()
        await asyncio.Event().wait()

    async def reported(*args: Any) -> RequestStatus:
        try:
            return await report(*args)
        finally:
            await on_report(calls[0])

    monkeypatch.setattr(relay, "submit", on_its_way)
    monkeypatch.setattr(relay, "report", reported)
    names = await delivery.recipients()
    submitting = asyncio.create_task(delivery.submit(ASK, fresh_urls(*names), lifetime=300))
    await sent.wait()
    submitting.cancel()
    await asyncio.wait({submitting})


@pytest.mark.threat("T6")
async def test_a_request_that_arrives_after_its_end_was_reported_is_called_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, home):
        arrived: list[bool] = []

        async def late(arrives: Callable[[], Any]) -> None:
            if not arrived:
                arrived.append(True)
                await arrives()

        await cut_off(delivery, monkeypatch, late)
        await delivery.finish(DeviceEvent.CANCELLED)
        assert arrived
        assert await home.companions[0].inbox() == []


async def test_a_request_that_never_arrives_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop_clock: LoopClock
) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, _):

        async def never(_arrives: Callable[[], Any]) -> None:
            loop_clock.passes(1)

        await cut_off(delivery, monkeypatch, never)
        with pytest.raises(ProblemAnswer):
            await delivery.finish(DeviceEvent.CANCELLED)


@pytest.mark.threat("T6")
@pytest.mark.parametrize("turned", [-600, 600])
async def test_a_device_whose_clock_is_turned_follows_its_request_and_calls_it_off(
    tmp_path: Path, turned: int
) -> None:
    ahead = 0
    async with delivering(tmp_path, companions=1, clock=lambda: time.time() + ahead) as (delivery, home):
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=60)
        ahead = turned
        async with contextlib.aclosing(delivery.progress()) as states:
            assert (await anext(states)).state is RequestState.PENDING
        assert len(await home.companions[0].inbox()) == 1
        await delivery.finish(DeviceEvent.CANCELLED)
        assert await home.companions[0].inbox() == []
        # what it begins is of this time, or is not begun
        with pytest.raises(TrustError) as caught:
            await delivery.recipients()
        assert caught.value.reason is TrustReason.CLOCK_SKEW


@pytest.mark.threat("T4")
async def test_a_relying_party_the_device_may_not_ask_for_is_refused(tmp_path: Path) -> None:
    async with delivering(tmp_path, rp_id="other.example") as (delivery, home):
        names = await delivery.recipients()
        with pytest.raises(TrustError) as refusal:
            await delivery.submit(ASK, fresh_urls(*names), lifetime=300)
        assert refusal.value.reason is TrustReason.RP_NOT_ALLOWED
        assert await home.companions[0].inbox() == []


@pytest.mark.threat("T4")
async def test_a_device_that_must_show_digits_asks_for_nothing_without_them(tmp_path: Path) -> None:
    async with delivering(tmp_path) as (_, home):
        strict = device("strict frame")
        strict.needs_digits = True
        await home.append(*(each.person for each in (*home.companions, *home.devices)), strict)
        state = tmp_path / "strict"
        state.mkdir(mode=0o700)
        joined = Enrolment(
            key=strict.key, relay_url=home.devices[0].url, chain=RingChain.start(home.ring), rp_id=None
        )
        enrolment._write(state, joined)
        async with RelayDelivery.connect(state) as delivery:
            names = await delivery.recipients()
            with pytest.raises(TrustError) as refusal:
                await delivery.submit(replace(ASK, digits=None), fresh_urls(*names), lifetime=300)
            assert refusal.value.reason is TrustReason.DIGITS_MISSING
            assert await home.companions[0].inbox() == []
            await delivery.submit(ASK, fresh_urls(*names), lifetime=300)
            assert len(await home.companions[0].inbox()) == 1


async def test_progress_tells_the_states_and_their_claimer(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, home):
        phone, frame = home.companions[0], home.devices[0]
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        (item,) = await phone.inbox()
        await phone.claims(frame, item)
        await phone.act(frame, item["id"], "opened")
        async with contextlib.aclosing(delivery.progress()) as states:
            first = await anext(states)
        assert (first.state, first.claimed_by) == ("opened", phone.name)
        await delivery.finish(DeviceEvent.COMPLETED)
        assert (await frame.status(item["id"]))["state"] == "completed"


async def loses_its_requests(folder: Path) -> None:
    async with open_database(folder / "relay.db") as database:
        await database.transact(lambda db: db.execute("DELETE FROM account_states"))
        await database.transact(lambda db: db.execute("DELETE FROM envelopes"))


async def test_a_request_that_the_relay_has_lost_is_submitted_again_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, home):
        phone, frame = home.companions[0], home.devices[0]
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        (before,) = await phone.inbox()
        await loses_its_requests(tmp_path)
        async with contextlib.aclosing(delivery.progress()) as states:
            first = await anext(states)
            assert (first.state, first.claimed_by) == ("pending", None)
            (after,) = await phone.inbox()
            assert (after["id"], after["sealed"]) == (before["id"], before["sealed"])
            await phone.claims(frame, after)
            while first.claimed_by is None:
                first = await anext(states)
        assert first.claimed_by == phone.name
        await delivery.finish(DeviceEvent.COMPLETED)


@pytest.mark.threat("T13")
async def test_a_relay_that_loses_a_request_again_and_again_is_left(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, _):
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        submitted = 0

        async def lost_again() -> None:
            nonlocal submitted
            submitted += 1

        await loses_its_requests(tmp_path)
        assert delivery._request_id is not None
        with pytest.raises(TransportError, match="lost the request"):
            async for _ in delivery._relay.watch(delivery._request_id, on_lost=lost_again):
                pass
        assert submitted == RESUBMISSIONS


async def test_a_request_that_is_lost_after_its_claim_is_not_submitted_again(tmp_path: Path) -> None:
    """The phone is on its way, and answers through the tunnel."""
    async with delivering(tmp_path, companions=1) as (delivery, home):
        phone, frame = home.companions[0], home.devices[0]
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        (item,) = await phone.inbox()
        await phone.claims(frame, item)
        async with contextlib.aclosing(delivery.progress()) as states:
            assert (await anext(states)).claimed_by == phone.name
            await loses_its_requests(tmp_path)
            assert [state async for state in states] == []
        assert await phone.inbox() == []


@pytest.mark.threat("T2")
@pytest.mark.parametrize("claimed", [False, True], ids=["waiting", "claimed"])
async def test_a_device_that_is_removed_in_the_middle_of_its_request_hears_by_whom(
    tmp_path: Path, *, claimed: bool
) -> None:
    async with delivering(tmp_path, companions=2) as (delivery, home):
        phone, frame = home.companions[0], home.devices[0]
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        (item,) = await phone.inbox()
        if claimed:
            await phone.claims(frame, item)
        async with contextlib.aclosing(delivery.progress()) as states:
            assert (await anext(states)).claimed_by == (phone.name if claimed else None)
            await home.append(*(each.person for each in home.companions))
            with refused(TrustReason.NOT_A_MEMBER, saying="this device was removed from account"):
                async for _ in states:
                    pass


async def test_a_relay_that_was_away_after_the_claim_tells_who_has_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headless_passkey.account.delivery._AWAY_PAUSE", 0)
    async with delivering(tmp_path, companions=2) as (delivery, home):
        phone, tablet, frame = *home.companions, home.devices[0]
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        (item,), (other,) = await phone.inbox(), await tablet.inbox()
        await phone.claims(frame, item)
        watch = delivery._relay.watch

        async def goes_away(*request: Any, **options: Any) -> AsyncIterator[RequestStatus]:
            async with contextlib.aclosing(watch(*request, **options)) as states:
                yield await anext(states)
            monkeypatch.setattr(delivery._relay, "watch", watch)
            raise TransportError("away")

        monkeypatch.setattr(delivery._relay, "watch", goes_away)
        async with contextlib.aclosing(delivery.progress()) as states:
            assert (await anext(states)).claimed_by == phone.name
            await phone.act(frame, item["id"], "released")
            await tablet.claims(frame, other)
            assert (await anext(states)).claimed_by == tablet.name
        await delivery.finish(DeviceEvent.CANCELLED)


async def elsewhere(folder: Path, does: Callable[[Transaction], object]) -> None:
    """Change the relay's store, as another program does."""
    async with open_database(folder / "relay.db") as database:
        await database.transact(does)


@pytest.mark.threat("T16")
@pytest.mark.parametrize("how", ["removed", "closed", "suspended"])
async def test_a_device_that_may_ask_no_more_hears_why_when_it_tells_the_end(
    tmp_path: Path, how: str
) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, home):
        (phone,), (frame,) = home.companions, home.devices
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        (item,) = await phone.inbox()
        await phone.claims(frame, item)
        match how:
            case "removed":
                await home.append(phone.person)
            case "closed":
                await elsewhere(tmp_path, lambda db: accounts.close(db, home.account, now=time.time()))
            case "suspended":
                await elsewhere(
                    tmp_path,
                    lambda db: subjects.suspend(db, account=home.account, subject=None, now=time.time()),
                )
        with pytest.raises(HeadlessPasskeyError) as caught:
            await delivery.finish(DeviceEvent.FAILED, "unreachable")
        assert (caught.value.reason, caught.value.exit_status) == {
            "removed": ("not-a-member", 9),
            "closed": ("account-closed", 9),
            "suspended": ("account-suspended", 9),
        }[how]


@pytest.mark.threat("T16")
@pytest.mark.parametrize("opened", [False, True], ids=["claimed", "opened"])
async def test_a_companion_that_is_removed_with_its_claim_has_refused_for_good(
    tmp_path: Path, *, opened: bool
) -> None:
    async with delivering(tmp_path, companions=2) as (delivery, home):
        tablet, phone, frame = *home.companions, home.devices[0]
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        (item,), (other,) = await phone.inbox(), await tablet.inbox()
        await phone.claims(frame, item)
        if opened:
            await phone.act(frame, item["id"], "opened")
        async with contextlib.aclosing(delivery.progress()) as states:
            assert (await anext(states)).claimed_by == phone.name
            await home.append(tablet.person, frame.person)
            lost = await anext(states)
            assert (lost.state, lost.claimed_by) == ("delivered", None)
            assert [(each.companion, each.reason, each.may_change) for each in lost.refusals] == [
                (phone.name, "removed", False)
            ]
            await tablet.claims(frame, other)
            assert (await anext(states)).claimed_by == tablet.name


# Witnesses


@pytest.mark.threat("T2")
async def test_a_membership_that_nobody_has_confirmed_for_a_week_is_told_and_words_are_asked_for(
    tmp_path: Path,
) -> None:
    async with delivering(tmp_path) as (delivery, home):
        one, two = home.companions
        joined = home.ring.members[1].joined
        delivery._clock = lambda: joined + 7 * 86_400
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        async with contextlib.aclosing(delivery.progress()) as states:
            assert (await anext(states)).unconfirmed is None
        await delivery.finish(DeviceEvent.CANCELLED)
        assert not (await two.get("/v1/inbox")).body["word_wanted"]
        delivery._clock = lambda: joined + 9 * 86_400
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        async with contextlib.aclosing(delivery.progress()) as states:
            told = (await anext(states)).unconfirmed
        assert told == Unconfirmed(companion=two.name, label=two.person.label, days=9)
        assert (await two.get("/v1/inbox")).body["word_wanted"]
        await delivery.finish(DeviceEvent.CANCELLED)
        word = Word.give(two.person.key, ring=home.ring, now=time.time())
        await two.put("/v1/word", {"word": base64url(word.document)})
        delivery._clock = lambda: word.at + 7 * 86_400
        await delivery.recipients()
        assert delivery._unconfirmed is None
        assert enrolment.load(tmp_path / "state").words == {two.name: word.at}
        assert one.name == home.ring.signer


@pytest.mark.threat("T16")
async def test_rings_that_the_relay_has_forgotten_are_told_with_the_request(tmp_path: Path) -> None:
    async with delivering(tmp_path) as (delivery, home):
        await home.append(*(each.person for each in (*home.companions, *home.devices)), device("one"))
        await delivery.recipients()
        async with open_database(tmp_path / "relay.db") as database:  # as a backup has it
            await database.transact(
                lambda db: db.execute("DELETE FROM rings WHERE version = ?", (home.ring.version,))
            )
        for expected in (ForgottenRings(first=3, last=3, given=True), None):
            await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
            async with contextlib.aclosing(delivery.progress()) as states:
                assert (await anext(states)).forgotten == expected
            await delivery.finish(DeviceEvent.CANCELLED)


@pytest.mark.threat("T2")
async def test_a_membership_that_nobody_has_confirmed_is_refused_where_a_witness_is_required(
    tmp_path: Path,
) -> None:
    async with delivering(tmp_path) as (delivery, home):
        joined = home.ring.members[1].joined
        delivery._require_witness = 2
        delivery._clock = lambda: joined + 2 * 86_400
        assert len(await delivery.recipients()) == 2
        delivery._clock = lambda: joined + 2 * 86_400 + 1
        with refused(TrustReason.UNCONFIRMED_RING, saying="for 2 days"):
            await delivery.recipients()
        assert (await home.companions[1].get("/v1/inbox")).body["word_wanted"]


@pytest.mark.threat("T2")
async def test_an_account_with_one_companion_needs_no_witness(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, home):
        delivery._require_witness = 1
        delivery._clock = lambda: home.ring.issued + 90 * 86_400
        assert len(await delivery.recipients()) == 1
        assert delivery._unconfirmed is None


# Claims, whatever the relay shows


class LyingRelay(RelayClient):
    """The relay's answers, with a claim and a ring that it invented."""

    def __init__(self, http: ProvenHttp) -> None:
        super().__init__(http)
        self.lies: dict[str, Any] = {}

    async def status(self, *arguments: Any, **more: Any) -> RequestStatus:
        return replace(await super().status(*arguments, **more), **self.lies)

    async def report(self, *arguments: Any, **more: Any) -> RequestStatus:
        return replace(await super().report(*arguments, **more), **self.lies)


@dataclass
class Asked:
    """A request that was submitted through a lying relay: one companion, whose inbox has the item."""

    delivery: RelayDelivery
    relay: LyingRelay
    home: Household
    item: Mapping[str, Any]

    def word(
        self, by: Person | None = None, ring: Ring | None = None, now: float = 0, **changes: Any
    ) -> bytes:
        """A word of `by` with the claim of the item, at `now` seconds from now. changes: fields of the claim."""
        values = {
            "device": self.home.devices[0].name,
            "request_id": from_base64url(self.item["id"]),
            "sealed": from_base64url(self.item["sealed"]),
        }
        key = (by or self.home.companions[0].person).key
        claim = Claim.of(**(values | changes))
        return Word.give(key, ring=ring or self.home.ring, now=time.time() + now, claim=claim).document

    async def shown(self, word: bytes, by: str | None = None, **lies: Any) -> Progress:
        """What the delivery says of the first status with this claim."""
        claim = ShownClaim(by=by or self.home.companions[0].name, word=word)
        self.relay.lies = {"claim": claim, "state": RequestState.CLAIMED, **lies}
        async with contextlib.aclosing(self.delivery.progress()) as states:
            return await anext(states)


@pytest.fixture
async def asked(tmp_path: Path) -> AsyncIterator[Asked]:
    async with delivering(tmp_path) as (_, home), open_session(None) as session:
        joined = enrolment.load(tmp_path / "state")
        relay = LyingRelay(ProvenHttp(session, joined.relay_url, joined.key))
        delivery = RelayDelivery(relay, tmp_path / "state")
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=60)
        (item,) = await home.companions[0].inbox()
        yield Asked(delivery, relay, home, item)


@pytest.mark.threat("T3")
async def test_a_claim_that_the_companion_signed_is_told_whoever_shows_it(asked: Asked) -> None:
    assert (await asked.shown(asked.word())).claimed_by == asked.home.companions[0].name
    assert (await asked.shown(asked.word(now=-100))).claimed_by is not None
    assert (await asked.shown(asked.word(now=170))).claimed_by is not None
    first = Ring.parse_kept(asked.home.ring.document)
    assert (await asked.shown(asked.word(ring=first))).claimed_by is not None


INVENTED: Mapping[str, Callable[[Asked], tuple[bytes, str | None]]] = {
    "no word": lambda _asked: (b"word", None),
    "nothing signed": lambda asked: (asked.word()[:-64] + bytes(64), None),
    "a stranger's": lambda asked: (asked.word(companion("eve")), None),
    "a stranger's in its own name": lambda asked: (asked.word(eve := companion("eve")), eve.name),
    "the other companion's": lambda asked: (asked.word(asked.home.companions[1].person), None),
    "the device's own": lambda asked: (asked.word(asked.home.devices[0].person), asked.home.devices[0].name),
    "other bytes": lambda asked: (asked.word(sealed=b"other bytes"), None),
    "another device's request": lambda asked: (asked.word(device=asked.home.companions[0].name), None),
    "another request": lambda asked: (asked.word(request_id=bytes(16)), None),
    "another account": lambda asked: (asked.word(ring=found(asked.home.companions[0].person)), None),
    "an earlier request": lambda asked: (asked.word(now=-130), None),
    "a later one": lambda asked: (asked.word(now=200), None),
    "a word without a claim": lambda asked: (
        Word.give(asked.home.companions[0].person.key, ring=asked.home.ring, now=time.time()).document,
        None,
    ),
}


@pytest.mark.threat("T3")
@pytest.mark.parametrize("invented", INVENTED.values(), ids=INVENTED.keys())
async def test_a_claim_that_the_relay_invents_is_refused(
    asked: Asked, invented: Callable[[Asked], tuple[bytes, str | None]]
) -> None:
    word, by = invented(asked)
    with refused(TrustReason.BAD_CLAIM):
        await asked.shown(word, by)
    assert await asked.delivery.finish(DeviceEvent.CANCELLED, "deadline") is None


@pytest.mark.threat("T3")
async def test_a_claim_of_which_the_device_heard_nothing_is_learnt_when_it_tells_the_end(
    asked: Asked,
) -> None:
    phone, frame = asked.home.companions[0], asked.home.devices[0]
    await phone.claims(frame, asked.item)
    assert await asked.delivery.finish(DeviceEvent.CANCELLED, "deadline") == phone.name


@pytest.mark.threat("T3")
@pytest.mark.parametrize("end", [("failed", "unreachable"), ("declined", None)], ids=["failed", "declined"])
async def test_a_claim_that_is_heard_of_with_the_end_is_told_too(
    asked: Asked, end: tuple[str, str | None]
) -> None:
    """The relay has ended the request, and shows who had it."""
    phone, frame = asked.home.companions[0], asked.home.devices[0]
    await phone.claims(frame, asked.item)
    assert (await phone.act(frame, asked.item["id"], *end)).status == 200
    with pytest.raises((NotApproved, TransportError)):
        await _followed(asked.delivery)
    assert await asked.delivery.finish(DeviceEvent.FAILED, end[0]) == phone.name


@pytest.mark.threat("T3")
@pytest.mark.parametrize("claims", [True, False])
async def test_of_an_end_of_which_the_device_was_not_told_it_learns_whose_claim_it_was(
    asked: Asked, *, claims: bool
) -> None:
    """As with a relay that hides a claim and the end that the companion reports: the report of the device comes too late."""
    phone, frame = asked.home.companions[0], asked.home.devices[0]
    if claims:
        await phone.claims(frame, asked.item)
    assert (await phone.act(frame, asked.item["id"], "declined")).status == 200
    expected = phone.name if claims else None
    assert await asked.delivery.finish(DeviceEvent.CANCELLED, "deadline") == expected


async def _followed(delivery: RelayDelivery) -> None:
    async for progress in delivery.progress():
        assert progress.claimed_by is None


async def test_a_request_that_nobody_claimed_has_no_claim_at_its_end(tmp_path: Path) -> None:
    async with delivering(tmp_path) as (delivery, _):
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=60)
        assert await delivery.finish(DeviceEvent.CANCELLED, "deadline") is None


@pytest.mark.threat("T3")
async def test_the_other_companions_claim_over_its_own_bytes_does_not_pass_for_this_ones(
    asked: Asked,
) -> None:
    _, two = asked.home.companions
    (item,) = await two.inbox()
    word = asked.word(two.person, sealed=from_base64url(item["sealed"]))
    assert (await asked.shown(word, two.name)).claimed_by == two.name
    with refused(TrustReason.BAD_CLAIM):
        await asked.shown(word, asked.home.companions[0].name)


@pytest.mark.threat("T2")
async def test_a_claim_by_a_ring_that_the_relay_does_not_show_is_a_withheld_ring(asked: Asked) -> None:
    one, _ = asked.home.companions
    withheld = grow(asked.home.ring, one.person, one.person, asked.home.devices[0].person)
    with refused(TrustReason.WITHHELD_RING):
        await asked.shown(asked.word(ring=withheld))
    with refused(TrustReason.WITHHELD_RING):
        await asked.shown(asked.word(), ring_version=withheld.version, ring_hash=withheld.hash)


@pytest.mark.threat("T2")
async def test_a_claim_by_another_ring_of_a_version_that_the_device_holds_is_a_fork(asked: Asked) -> None:
    one, _ = asked.home.companions
    other = found(one.person, account=asked.home.account)
    other = grow(other, one.person, one.person, asked.home.devices[0].person)
    assert other.version == asked.home.ring.version
    with refused(TrustReason.FORKED_RING):
        await asked.shown(asked.word(ring=other))
    with refused(TrustReason.FORKED_RING):
        await asked.shown(asked.word(), ring_version=other.version, ring_hash=other.hash)


@pytest.mark.threat("T2")
async def test_the_device_catches_up_with_the_ring_of_the_claim_and_looks_who_is_left(asked: Asked) -> None:
    (one, two), frame = asked.home.companions, asked.home.devices[0]
    (item,) = await two.inbox()
    await asked.home.append(one.person, two.person, frame.person, device("new"))
    assert (await asked.shown(asked.word())).claimed_by == one.name
    before = asked.home.ring
    await asked.home.append(one.person, frame.person)
    word = asked.word(two.person, ring=before, sealed=from_base64url(item["sealed"]))
    with refused(TrustReason.STALE_RING, saying="was removed"):
        await asked.shown(word, two.name)


async def test_progress_tells_who_refused_by_label_and_ends_with_the_reason(tmp_path: Path) -> None:
    async with delivering(tmp_path) as (delivery, home):
        (one, two), frame = home.companions, home.devices[0]
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        (item,) = await one.inbox()
        await two.inbox()
        await one.act(frame, item["id"], "failed", "clock-skew")
        states = delivery.progress()
        told = [await anext(states)]
        await two.act(frame, item["id"], "failed", "clock-skew")
        told.append(await anext(states))
        with pytest.raises(TrustError) as end:
            await anext(states)
        assert end.value.reason is TrustReason.CLOCK_SKEW
        first, second = (
            Refusal(companion=each.name, label=each.person.label, reason="clock-skew") for each in (one, two)
        )
        assert [progress.refusals for progress in told] == [(first,), (first, second)]
        for each in (one, two):
            assert f'"{each.person.label}" refuses' in str(end.value)


async def test_what_was_completed_after_the_claim_had_ended_is_over_for_the_others_too(
    tmp_path: Path,
) -> None:
    async with delivering(tmp_path) as (delivery, home):
        (one, two), frame = home.companions, home.devices[0]
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        (item,) = await one.inbox()
        await one.claims(frame, item)
        await one.act(frame, item["id"], "released")
        await delivery.finish(DeviceEvent.COMPLETED)
        status = await frame.status(item["id"])
        assert (status["state"], status["reason"]) == ("cancelled", "completed")
        assert await two.inbox() == []


async def test_a_decline_ends_the_progress_and_needs_no_farewell(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, home):
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        (item,) = await home.companions[0].inbox()
        await home.companions[0].act(home.devices[0], item["id"], "declined")
        with pytest.raises(NotApproved) as end:
            async for _ in delivery.progress():
                pass
        assert end.value.reason is Outcome.DECLINED
        await delivery.finish(DeviceEvent.FAILED)


@pytest.mark.threat("T6")
async def test_a_device_of_which_somebody_said_not_me_says_so_then_and_with_its_next_request(
    tmp_path: Path,
) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, home):
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        (item,) = await home.companions[0].inbox()
        await home.companions[0].act(home.devices[0], item["id"], "declined", "not-me")
        with pytest.raises(NotApproved, match='said "not me"') as end:
            async for _ in delivery.progress():
                pass
        assert (end.value.reason, end.value.exit_status) == (Outcome.DECLINED, 6)
        with pytest.raises(NotEnrolled, match='said "not me"') as refused:
            await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        assert (refused.value.reason, refused.value.exit_status) == ("device-muted", 9)
        for error in (end.value, refused.value):
            assert "companion mute remove" in str(error.advice)


async def test_a_reason_is_reported_as_a_word(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, home):
        await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
        (item,) = await home.companions[0].inbox()
        await delivery.finish(DeviceEvent.FAILED, "CTAP2_ERR_OPERATION_DENIED")
        status = await home.devices[0].status(item["id"])
        assert (status["state"], status["reason"]) == ("failed", "ctap2-err-operation-denied")


async def test_a_delivery_serves_one_ceremony_after_the_other(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, home):
        phone, frame = home.companions[0], home.devices[0]
        states = []
        for outcome in (DeviceEvent.CANCELLED, DeviceEvent.FAILED):
            await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
            (item,) = await phone.inbox()
            await delivery.finish(outcome)
            states.append((await frame.status(item["id"]))["state"])
        assert states == ["cancelled", "failed"]


async def test_a_delivery_says_that_it_serves_one_ceremony_at_a_time(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=1) as (delivery, home):
        names = await delivery.recipients()
        await delivery.submit(ASK, fresh_urls(*names), lifetime=300)
        with pytest.raises(LocalProtocolError, match="one ceremony at a time"):
            await delivery.recipients()
        with pytest.raises(LocalProtocolError, match="one ceremony at a time"):
            await delivery.submit(ASK, fresh_urls(*names), lifetime=300)
        assert len(await home.companions[0].inbox()) == 1


async def test_a_delivery_over_a_connection_of_its_own(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=1) as (_, home):
        async with RelayDelivery.connect(tmp_path / "state") as delivery:
            await delivery.submit(ASK, fresh_urls(*await delivery.recipients()), lifetime=300)
            (item,) = await home.companions[0].inbox()
            await delivery.finish(DeviceEvent.CANCELLED)
        assert (await home.devices[0].status(item["id"]))["state"] == "cancelled"


async def test_a_delivery_of_a_device_that_has_not_joined_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotEnrolled):
        async with RelayDelivery.connect(tmp_path / "state"):
            pass


async def test_a_relay_that_is_not_there_is_a_transport_error(tmp_path: Path) -> None:
    async with delivering(tmp_path, companions=1):
        pass
    async with open_session(None) as session:
        joined = enrolment.load(tmp_path / "state")
        relay = RelayClient(ProvenHttp(session, joined.relay_url, joined.key, sleep=_no_pause))
        with pytest.raises(TransportError):
            await RelayDelivery(relay, tmp_path / "state").recipients()


async def _no_pause(_seconds: float) -> None:
    pass
