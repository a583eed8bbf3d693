"""The device's calls against the real relay, and against relays that lie."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from companion_push.relay import accounts, operations
from companion_push.relay.app import make_app
from companion_push.relay.config import RelayConfig
from companion_push.relay.database import open_database
from headless_passkey.account import relay as relay_module
from headless_passkey.account.relay import RelayClient, RequestStatus
from headless_passkey.errors import (
    ExitStatus,
    HeadlessPasskeyError,
    NotApproved,
    Outcome,
    RemoteProtocolError,
    TransportError,
    TransportReason,
    TrustError,
    TrustReason,
)
from headless_passkey.net.proven_http import MAX_WAIT, ProblemAnswer, ProvenHttp, open_session
from headless_passkey.request import DeviceEvent, RequestState
from headless_passkey.text.base64url import from_base64url
from headless_passkey.text.members import answer_members
from headless_passkey.trust.admission import Newcomer
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.envelope import new_request_id
from headless_passkey.trust.freshness import ForgottenRings
from headless_passkey.trust.invitation import Invitation
from headless_passkey.trust.ring import Ring, Role
from headless_passkey.trust.word import Word
from program_parts.base64url import base64url
from tests.device.test_proven_http import Pauses, Step, answer, ok, problem, serving
from tests.relay import household
from tests.relay.household import Caller, Household, running_relay
from tests.trust.people import NOW, Home, Person, device, forge, grow
from tests.trust.refusal import refused

SEALED = b"sealed"


@contextlib.asynccontextmanager
async def speaking(person: Person, relay: household.Relay) -> AsyncIterator[RelayClient]:
    """The relay, as `person` calls it."""
    async with open_session(None) as session:
        yield RelayClient(ProvenHttp(session, relay.url, person.key, clock=relay.clock))


@contextlib.asynccontextmanager
async def lied_to(*script: Step, pauses: Pauses | None = None) -> AsyncIterator[RelayClient]:
    """A relay that answers what the script says."""
    pauses = pauses or Pauses()
    async with serving(*script) as server, open_session(None) as session:
        http = ProvenHttp(session, server.url, HOME.frame.key, sleep=pauses)
        yield RelayClient(http, sleep=pauses, chance=lambda: 0.5)


HOME = Home()


@pytest_asyncio.fixture
async def home(relay: household.Relay) -> Household:
    return await relay.household()


@pytest_asyncio.fixture
async def frame(relay: household.Relay, home: Household) -> AsyncIterator[RelayClient]:
    """The real relay, as the household's device calls it."""
    async with speaking(home.devices[0].person, relay) as speaks:
        yield speaks


def sealed_to(*companions: Caller) -> dict[str, bytes]:
    return {companion.name: SEALED for companion in companions}


# Requests


async def test_the_device_follows_its_request_to_the_end(home: Household, frame: RelayClient) -> None:
    request_id = new_request_id()
    name, (phone, tablet), device_ = base64url(request_id), home.companions, home.devices[0]
    submitted = await frame.submit(request_id, sealed_to(phone, tablet), expires_in=300)
    assert (submitted.state, submitted.version) == (RequestState.PENDING, 1)
    seen = []
    async for status in frame.watch(request_id):
        seen.append((status.state, status.claim and status.claim.by))
        match status.state:
            case RequestState.PENDING:
                await phone.inbox()
            case RequestState.DELIVERED:
                await phone.claims(device_, (await phone.inbox())[0])
            case RequestState.CLAIMED:
                await phone.act(device_, name, "opened")
            case RequestState.OPENED:
                assert (await frame.report(request_id, DeviceEvent.COMPLETED)).error() is None
    assert seen == [
        ("pending", None),
        ("delivered", None),
        ("claimed", phone.name),
        ("opened", phone.name),
        ("completed", phone.name),
    ]


async def test_the_same_submission_again_is_fine_and_another_is_a_conflict(
    home: Household, frame: RelayClient
) -> None:
    request_id = new_request_id()
    first = await frame.submit(request_id, sealed_to(*home.companions), expires_in=300)
    again = await frame.submit(request_id, sealed_to(*home.companions), expires_in=300)
    assert (first.state, first.version) == (again.state, again.version)
    with pytest.raises(ProblemAnswer) as caught:
        await frame.submit(request_id, {home.companions[0].name: b"other"}, expires_in=300)
    assert caught.value.slug == "request-conflict"


async def test_an_envelope_to_nobody_is_a_problem(home: Household, frame: RelayClient) -> None:
    with pytest.raises(ProblemAnswer) as caught:
        await frame.submit(new_request_id(), {home.devices[0].name: SEALED}, expires_in=300)
    assert caught.value.slug == "unknown-recipient"


async def test_a_decline_is_seen_with_its_reason(home: Household, frame: RelayClient) -> None:
    request_id = new_request_id()
    phone = home.companions[0]
    await frame.submit(request_id, sealed_to(phone), expires_in=300)
    await phone.inbox()
    await phone.act(home.devices[0], base64url(request_id), "declined", "on-the-phone")
    async for status in frame.watch(request_id):
        last = status
    error = last.error()
    assert isinstance(error, NotApproved)
    assert error.reason is Outcome.DECLINED
    assert "on-the-phone" in str(error)


async def test_a_companions_refusal_comes_back_as_its_own_reason(home: Household, frame: RelayClient) -> None:
    request_id = new_request_id()
    phone = home.companions[0]
    await frame.submit(request_id, sealed_to(phone), expires_in=300)
    await phone.inbox()
    await phone.act(home.devices[0], base64url(request_id), "failed", "stale-ring")
    status = await frame.status(request_id)
    assert [(failure.by, failure.reason) for failure in status.failures] == [(phone.name, "stale-ring")]
    error = status.error()
    assert isinstance(error, TrustError)
    assert error.reason is TrustReason.STALE_RING


async def test_an_expired_request_says_so(
    relay: household.Relay, home: Household, frame: RelayClient
) -> None:
    request_id = new_request_id()
    await frame.submit(request_id, sealed_to(*home.companions), expires_in=5)
    relay.clock.ahead += 6
    states = [status.state async for status in frame.watch(request_id)]
    assert states == [RequestState.EXPIRED]


async def test_reporting_twice_is_fine_and_too_late_is_a_problem(home: Household, frame: RelayClient) -> None:
    request_id = new_request_id()
    await frame.submit(request_id, sealed_to(*home.companions), expires_in=300)
    for _ in range(2):
        status = await frame.report(request_id, DeviceEvent.CANCELLED, "deadline")
        assert (status.state, status.reason) == (RequestState.CANCELLED, "deadline")
    with pytest.raises(ProblemAnswer) as caught:
        await frame.report(request_id, DeviceEvent.COMPLETED)
    assert caught.value.slug == "state-conflict"


async def test_a_request_nobody_knows_is_lost(home: Household, frame: RelayClient) -> None:
    with pytest.raises(TransportError, match="lost"):
        async for _ in frame.watch(new_request_id()):
            pass


@pytest.mark.threat("T13")
@pytest.mark.threat("T16")
async def test_a_removed_device_reads_the_ring_that_took_it_out_and_nothing_later(
    home: Household, frame: RelayClient
) -> None:
    chain = RingChain.start(home.ring)
    people = [caller.person for caller in home.companions]
    proof = await home.append(*people)
    await home.append(*people, device("another"))
    removed = await frame.bring_up_to_date(chain)
    assert removed.head == proof
    assert removed.removal(home.devices[0].name) == 'by "phone 0" in ring 3'
    with pytest.raises(TransportError) as unknown:
        await frame.submit(new_request_id(), sealed_to(*home.companions), expires_in=300)
    assert unknown.value.reason is TransportReason.UNKNOWN_TO_RELAY


@pytest.mark.threat("T16")
async def test_a_relay_that_knows_no_such_key_removes_nobody(relay: household.Relay, home: Household) -> None:
    async with speaking(device("stranger"), relay) as stranger:
        for call in (
            stranger.bring_up_to_date(RingChain.start(home.ring)),
            stranger.submit(new_request_id(), sealed_to(*home.companions), expires_in=300),
        ):
            with pytest.raises(TransportError) as unknown:
                await call
            assert unknown.value.reason is TransportReason.UNKNOWN_TO_RELAY
            assert unknown.value.exit_status is ExitStatus.TRANSPORT


async def test_a_relay_that_restarts_is_waited_for(tmp_path: Path) -> None:
    """The store, the address and the request stay; the process that served them goes and comes back."""
    store, request_id = tmp_path / "relay.sqlite3", new_request_id()
    async with running_relay(store) as relay:
        home = await relay.household()
        async with speaking(home.devices[0].person, relay) as frame:
            await frame.submit(request_id, sealed_to(home.companions[0]), expires_in=300)
    async with aiohttp.ClientSession() as session, speaking(home.devices[0].person, relay) as frame:
        phone = replace(home.companions[0], session=session, newest=None)
        watched = frame.watch(request_id)
        first = asyncio.ensure_future(anext(watched))
        await asyncio.sleep(0)
        async with _serving_at(relay.url, store):
            assert (await first).state is RequestState.PENDING
            second = asyncio.ensure_future(anext(watched))
        async with _serving_at(relay.url, store):
            await phone.inbox()
            assert (await second).state is RequestState.DELIVERED
        await watched.aclose()


@contextlib.asynccontextmanager
async def _serving_at(url: str, store: Path) -> AsyncIterator[None]:
    app = make_app(RelayConfig(public_url=url, store=store))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", int(url.rpartition(":")[2])).start()
        yield
    finally:
        await runner.cleanup()


# Rings


async def test_newer_rings_are_taken_over_however_many(
    home: Household, frame: RelayClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "_RING_RATES", ())  # one companion signs more than in an hour
    chain = RingChain.start(home.ring)
    people = [caller.person for caller in (*home.companions, *home.devices)]
    assert await frame.bring_up_to_date(chain) == chain
    for _ in range(40):
        await home.append(*people)
    longer = await frame.bring_up_to_date(chain)
    assert longer.head == home.ring
    assert longer.head.version == chain.head.version + 40


@pytest.mark.threat("T16")
async def test_a_relay_that_has_forgotten_rings_gets_them_again(
    relay: household.Relay, home: Household, frame: RelayClient, caplog: pytest.LogCaptureFixture
) -> None:
    people = [caller.person for caller in (*home.companions, *home.devices)]
    for name in ("one", "two"):
        await home.append(*people, device(name))
    chain = await frame.bring_up_to_date(RingChain.start(home.ring))
    held = await frame.bring_up_to_date(chain)
    kept = (await home.companions[0].get("/v1/ring")).body["rings"]
    long = RingChain.restore(from_base64url(ring) for ring in kept)
    async with open_database(relay.store) as database:  # as a backup has it
        await database.transact(lambda db: db.execute("DELETE FROM rings WHERE version > 2"))
    told: list[ForgottenRings] = []
    await frame.catch_up(long, links=False, on_forgotten=told.append)
    assert str(told.pop()) == "the relay has forgotten rings 3 to 4"
    assert (await frame.bring_up_to_date(long)).head == held.head
    assert (await home.companions[1].get("/v1/ring")).body["rings"] == kept
    assert "relay-forgot-rings: the relay has forgotten rings 3 to 4 and was given them again" in caplog.text
    await frame.catch_up(long, on_forgotten=told.append)
    assert told == [], "it has them again"


@pytest.mark.threat("T16")
async def test_a_relay_that_does_not_take_the_rings_it_has_forgotten_stops_nobody(
    relay: household.Relay, home: Household, frame: RelayClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await home.append(*(caller.person for caller in (*home.companions, *home.devices)), device("one"))
    kept = (await home.companions[0].get("/v1/ring")).body["rings"]
    long = RingChain.restore(from_base64url(ring) for ring in kept)
    async with open_database(relay.store) as database:  # as a backup has it
        await database.transact(lambda db: db.execute("DELETE FROM rings WHERE version > 2"))

    async def away(*_args: object) -> None:
        raise TransportError("the relay cannot be reached", reason=TransportReason.UNREACHABLE)

    monkeypatch.setattr(ProvenHttp, "post", away)
    told: list[ForgottenRings] = []
    longer, _ = await frame.catch_up(long, on_forgotten=told.append)
    assert longer.head == home.ring
    assert told == [ForgottenRings(first=3, last=3, given=False, why_not="unreachable")]
    assert str(told[0]) == "the relay has forgotten ring 3 and does not take it again (unreachable)"


@pytest.mark.threat("T16")
@pytest.mark.parametrize("vouching", [2, 1, 0])
async def test_over_a_gap_the_newest_ring_is_taken_by_the_words_of_two_companions(
    home: Household, frame: RelayClient, monkeypatch: pytest.MonkeyPatch, vouching: int
) -> None:
    monkeypatch.setattr(accounts, "KEPT_RINGS", 3)
    people = [caller.person for caller in (*home.companions, *home.devices)]
    start = RingChain.start(home.ring)
    for number in range(5):
        await home.append(*people, device(f"hub {number}"))
    for caller in home.companions[:vouching]:
        word = Word.give(caller.person.key, ring=home.ring, now=caller.clock())
        assert (await caller.put("/v1/word", {"word": base64url(word.document)})).status == 200
    if vouching == 2:
        chain = await frame.bring_up_to_date(start)
        assert chain == RingChain.start(home.ring)
        return
    with refused(TrustReason.RING_GAP, saying=f"between 2 and 7, and {vouching} of 2 companions"):
        await frame.bring_up_to_date(start)


@pytest.mark.threat("T17")
async def test_a_relay_keeps_the_last_rings_and_shows_who_is_behind_them_the_newest(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna = home.companions[0]
    people = [caller.person for caller in (*home.companions, *home.devices)]
    size = len(home.ring.document)
    for name, limit in (("KEPT_RINGS", 3), ("KEPT_BYTES", 4 * size)):
        with monkeypatch.context() as limits:
            limits.setattr(accounts, name, limit)
            for _ in range(5):
                await home.append(*people)
        newest = home.ring.version
        kept = (await anna.get(f"/v1/ring?after={newest - 3}")).body
        assert (kept["gap"], len(kept["rings"])) == (False, 3)
        behind = (await anna.get("/v1/ring?after=1")).body
        assert (behind["gap"], behind["rings"]) == (True, [base64url(home.ring.document)])


@pytest.mark.threat("T17")
async def test_rings_are_kept_after_every_answer(
    home: Household, frame: RelayClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "_RING_RATES", ())
    people = [caller.person for caller in (*home.companions, *home.devices)]
    start = RingChain.start(home.ring)
    for _ in range(40):
        await home.append(*people)
    kept: list[int] = []

    async def keep(chain: RingChain) -> None:
        kept.append(chain.head.version)
        if len(kept) == 1:
            raise asyncio.CancelledError  # interrupted, right after the first answer

    with pytest.raises(asyncio.CancelledError):
        await frame.bring_up_to_date(start, keep=keep)
    await frame.bring_up_to_date(start, keep=keep)
    assert kept == [34, 34, 42]


def rings(*documents: bytes, version: int, ring_hash: bytes, words: Sequence[Word] = ()) -> Step:
    return ok(
        version=version,
        hash=base64url(ring_hash),
        rings=[base64url(document) for document in documents],
        words=[{"by": word.by, "word": base64url(word.document)} for word in words],
    )


def word_of(who: Person, ring: Ring, *, ago: float = 0) -> Word:
    return Word.give(who.key, ring=ring, now=time.time() - ago)


async def test_words_come_with_the_rings() -> None:
    said = [word_of(HOME.phone, HOME.ring), word_of(HOME.tablet, HOME.chain.rings[0], ago=1000)]
    async with lied_to(rings(version=2, ring_hash=HOME.ring.hash, words=said)) as relay:
        chain, at = await relay.catch_up(HOME.chain)
    assert chain == HOME.chain
    assert at == {word.by: word.at for word in said}


@pytest.mark.threat("T2")
async def test_a_ring_that_a_companion_names_and_the_relay_does_not_show_is_withheld() -> None:
    third = grow(HOME.ring, HOME.phone, HOME.phone, HOME.tablet)
    withheld = rings(version=2, ring_hash=HOME.ring.hash, words=[word_of(HOME.tablet, third)])
    async with lied_to(withheld) as relay:
        with refused(TrustReason.WITHHELD_RING, saying="ring version 3"):
            await relay.bring_up_to_date(HOME.chain)


async def test_a_ring_that_was_appended_between_the_answer_and_the_word_is_fetched() -> None:
    third = grow(HOME.ring, HOME.phone, HOME.phone, HOME.tablet)
    words = [word_of(HOME.tablet, third)]
    steps = [
        rings(version=2, ring_hash=HOME.ring.hash, words=words),
        rings(third.document, version=3, ring_hash=third.hash, words=words),
    ]
    async with lied_to(*steps) as relay:
        chain, at = await relay.catch_up(HOME.chain)
    assert chain.head.hash == third.hash
    assert at == {words[0].by: words[0].at}


@pytest.mark.threat("T2")
async def test_a_word_of_another_ring_than_ours_is_a_fork() -> None:
    fork = grow(HOME.chain.rings[0], HOME.phone, HOME.phone, HOME.tablet)
    async with lied_to(
        rings(version=2, ring_hash=HOME.ring.hash, words=[word_of(HOME.tablet, fork)])
    ) as relay:
        with refused(TrustReason.FORKED_RING):
            await relay.bring_up_to_date(HOME.chain)


@pytest.mark.threat("T2")
async def test_a_relay_with_a_forked_ring_is_refused() -> None:
    chain, first = HOME.chain, HOME.chain.rings[0]
    fork = grow(first, HOME.phone, HOME.phone, HOME.frame)
    longer = grow(fork, HOME.phone, HOME.phone, HOME.frame)
    forged = forge(HOME.ring, device("relay"), HOME.phone, HOME.frame)
    for lie in (
        rings(fork.document, version=2, ring_hash=fork.hash),
        rings(version=2, ring_hash=fork.hash),
        rings(longer.document, version=3, ring_hash=longer.hash),
        rings(fork.document, longer.document, version=3, ring_hash=longer.hash),
        rings(forged, version=3, ring_hash=bytes(32)),
    ):
        async with lied_to(lie) as relay:
            with refused(TrustReason.FORKED_RING):
                await relay.bring_up_to_date(chain)


@pytest.mark.threat("T2")
async def test_a_relay_that_shows_another_ring_than_it_names_is_refused() -> None:
    third = grow(HOME.ring, HOME.phone, HOME.phone, HOME.frame)
    async with lied_to(rings(third.document, version=3, ring_hash=bytes(32))) as relay:
        with refused(TrustReason.FORKED_RING):
            await relay.bring_up_to_date(HOME.chain)
    async with lied_to(rings(version=9, ring_hash=bytes(32))) as relay:
        with pytest.raises(RemoteProtocolError):
            await relay.bring_up_to_date(HOME.chain)


async def test_a_relay_that_is_behind_changes_nothing() -> None:
    first = HOME.chain.rings[0]
    async with lied_to(rings(version=1, ring_hash=first.hash)) as relay:
        assert await relay.bring_up_to_date(HOME.chain) == HOME.chain


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"version": 3, "hash": "", "rings": []},
        {"version": "3", "hash": base64url(bytes(32)), "rings": []},
        {"version": 3, "hash": base64url(bytes(32)), "rings": [7]},
        {"version": 3, "hash": base64url(bytes(32)), "rings": ["====="]},
        {"version": 3, "hash": base64url(bytes(32)), "rings": ["AAAA"]},
        {"version": 3, "hash": base64url(bytes(32)), "rings": ["A" * 100_000]},
        {"version": 2, "hash": base64url(HOME.ring.hash), "rings": []},
        {"version": 2, "hash": base64url(HOME.ring.hash), "rings": [], "words": ["A"]},
        {"version": 2, "hash": base64url(HOME.ring.hash), "rings": [], "words": [{"by": "x"}]},
        {"version": 2, "hash": base64url(HOME.ring.hash), "rings": [], "words": [{}] * 65},
    ],
    ids=range(11),
)
async def test_rings_out_of_shape_are_a_protocol_error(body: dict[str, object]) -> None:
    async with lied_to(ok(**body)) as relay:
        with pytest.raises(RemoteProtocolError):
            await relay.bring_up_to_date(HOME.chain)


# What a relay may say of a request

STATUS: Mapping[str, Any] = {
    "id": "x",
    "state": "pending",
    "version": 1,
    "expires_at": NOW + 300,
    "now": NOW,
    "claim": None,
    "ring": {"version": 1, "hash": base64url(bytes(32))},
    "reason": None,
    "failures": [],
    "notified": [],
}


def status(**changes: Any) -> RequestStatus:
    return RequestStatus.parse(answer_members({**STATUS, **changes}, "test"))


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({"state": "declined"}, NotApproved, "declined"),
        ({"state": "expired"}, NotApproved, "expired"),
        ({"state": "cancelled"}, NotApproved, "cancelled"),
        ({"state": "superseded"}, NotApproved, "superseded"),
        ({"state": "failed", "reason": "bad-url"}, TrustError, "bad-url"),
        ({"state": "failed", "failures": [{"by": "x", "reason": "clock-skew"}]}, TrustError, "clock-skew"),
        ({"state": "failed", "reason": "no-opener"}, TransportError, None),
        ({"state": "failed"}, TransportError, None),
    ],
)
def test_each_end_is_a_branch_of_the_error_tree(
    changes: dict[str, Any], kind: type[HeadlessPasskeyError], reason: str | None
) -> None:
    ended = status(**changes)
    assert ended.state.terminal
    error = ended.error()
    assert type(error) is kind
    assert error.reason == reason


def test_a_companion_that_refuses_for_the_clocks_says_what_to_do() -> None:
    error = status(state="failed", reason="clock-skew").error()
    assert error is not None
    assert error.explain() == (
        "a companion refuses the request: its clock and this device's are too far apart: "
        "set both clocks, here with `sudo timedatectl set-ntp true`"
    )


@pytest.mark.threat("T6")
def test_a_request_that_ends_because_its_device_was_muted_says_so() -> None:
    muted, removed = (status(state="cancelled", reason=reason).error() for reason in ("muted", "removed"))
    assert muted is not None
    assert (
        str(muted)
        == 'somebody who was asked said "not me", and the relay takes no requests of this device now'
    )
    assert (muted.reason, "companion mute remove" in str(muted.advice)) == ("cancelled", True)
    assert removed is not None
    assert removed.explain() == "the request was cancelled (removed)"
    by_a_member = status(state="declined", reason="muted").error()  # whose words a reason is
    assert by_a_member is not None
    assert by_a_member.explain() == "the request was declined (muted)"


@pytest.mark.threat("T11")
@pytest.mark.parametrize("reason", ["\x1b[2J", "a\u202eb", "a\nb", "Declined", "x" * 65, ""], ids=ascii)
def test_a_reason_that_is_no_word_is_refused_and_reaches_no_terminal(reason: str) -> None:
    for changes in (
        {"reason": reason},
        {"failures": [{"by": "x", "reason": reason}]},
        {"notified": [{"to": "x", "channel": reason, "outcome": "sent"}]},
        {"notified": [{"to": "x", "channel": "fcm", "outcome": reason}]},
    ):
        with pytest.raises(RemoteProtocolError) as caught:
            status(state="failed", **changes)
        assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("state", ["pending", "delivered", "claimed", "opened", "completed"])
def test_what_lives_or_went_well_is_no_error(state: str) -> None:
    assert status(state=state).error() is None
    assert status(state=state).state.terminal == (state == "completed")


@given(
    st.dictionaries(
        st.sampled_from(list(STATUS)),
        st.none() | st.integers() | st.text(max_size=80) | st.lists(st.dictionaries(st.text(), st.text())),
    )
)
@pytest.mark.threat("T12")
def test_any_status_is_a_status_or_refused_politely(changes: dict[str, Any]) -> None:
    with contextlib.suppress(RemoteProtocolError):
        status(**changes).error()


@pytest.mark.threat("T9")
async def test_a_relay_that_does_not_hold_us_is_not_asked_in_a_hurry() -> None:
    pauses = Pauses()
    unchanged = ok(**STATUS)
    done = ok(**{**STATUS, "state": "expired", "version": 2})
    async with lied_to(unchanged, unchanged, unchanged, done, pauses=pauses) as relay:
        states = [status.state async for status in relay.watch(new_request_id())]
    assert states == ["pending", "expired"]
    assert pauses.slept == [1.5, 1.5]


@pytest.mark.threat("T9")
@pytest.mark.threat("T17")
async def test_a_relay_that_changes_the_version_in_every_answer_is_asked_with_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_module, "time", SimpleNamespace(monotonic=lambda: 0.0))  # all come at once
    pauses = Pauses()
    live = [ok(**{**STATUS, "state": "delivered", "version": version}) for version in range(1, 30)]
    done = ok(**{**STATUS, "state": "expired", "version": 30})
    async with lied_to(*live, done, pauses=pauses) as relay:
        seen = [status.version async for status in relay.watch(bytes(16))]
    assert seen == [*range(1, 31)]
    assert pauses.slept == [1.5] * 21, "after all but the first eight"


async def test_a_held_request_says_how_long_it_may_be_held_and_what_we_know() -> None:
    done = ok(**{**STATUS, "state": "expired", "version": 2})
    async with serving(ok(**STATUS), done) as server, open_session(None) as session:
        relay = RelayClient(ProvenHttp(session, server.url, HOME.frame.key))
        async for _ in relay.watch(bytes(16)):
            pass
    assert [seen[1] for seen in server.seen] == [
        "/v1/requests/AAAAAAAAAAAAAAAAAAAAAA",
        f"/v1/requests/AAAAAAAAAAAAAAAAAAAAAA?version=1&wait={MAX_WAIT}",
    ]


async def test_a_report_whose_answer_was_lost_is_not_an_error() -> None:
    completed = {**STATUS, "state": "completed", "version": 5}
    script = (
        answer(status=503),
        problem(409, "state-conflict", state="completed", version=5),
        ok(**completed),
    )
    async with lied_to(*script) as relay:
        assert (await relay.report(bytes(16), DeviceEvent.COMPLETED)).version == 5


# Introductions


INVITATION = Invitation.make(
    relay_url="https://relay.example", ring=HOME.ring, kind=Role.DEVICE, inviter=HOME.phone.name, now=NOW
)
NEWCOMER = Newcomer.make(INVITATION, key=HOME.frame.key, hpke_key=None, label="frame")
NONCE = base64url(bytes(32))


async def test_a_newcomer_waits_for_the_nonce_and_for_the_answer_with_pauses() -> None:
    introduced = ok(state="introduced", nonce=None, ring=None, mac=None)
    answering = ok(state="answering", nonce=NONCE, ring=None, mac=None)
    revealed = ok(state="revealed", nonce=NONCE, ring=None, mac=None)
    answered = ok(state="answered", nonce=NONCE, ring="AAAA", mac=base64url(bytes(32)))
    pauses = Pauses()
    async with lied_to(introduced, introduced, answering, pauses=pauses) as relay:
        assert await relay.inviter_nonce(INVITATION) == bytes(32)
    assert pauses.slept == [1.5, 1.5]
    async with lied_to(revealed, answered, pauses=pauses) as relay:
        assert (await relay.admission(INVITATION)).ring == bytes(3)
    for later in (revealed, answered):  # after a crash
        async with lied_to(later) as relay:
            assert await relay.inviter_nonce(INVITATION) == bytes(32)


async def test_an_introduction_that_the_relay_no_longer_has_is_over() -> None:
    gone = problem(404, "not-found")
    async with lied_to(gone, gone, gone) as relay:
        for call in (
            relay.inviter_nonce(INVITATION),
            relay.reveal(NEWCOMER),
            relay.admission(INVITATION),
        ):
            with pytest.raises(NotApproved) as caught:
                await call
            assert caught.value.reason is Outcome.EXPIRED


@pytest.mark.threat("T13")
@pytest.mark.parametrize(
    "nonsense",
    [
        ok(state="lost"),
        ok(),
        ok(state="answered"),
        ok(state="answered", nonce=NONCE, ring="AAAA", mac="AAAA"),
        ok(state="introduced", nonce=NONCE),
        problem(400, "invalid-request"),
    ],
    ids=["another state", "none", "nothing else", "a short MAC", "an earlier state", "a problem"],
)
async def test_what_a_relay_may_not_say_of_an_introduction(nonsense: Any) -> None:
    async with lied_to(nonsense) as relay:
        with pytest.raises(RemoteProtocolError):
            await relay.admission(INVITATION)


async def test_a_problem_that_has_no_other_meaning_is_told_as_it_is() -> None:
    bad = problem(400, "invalid-request")
    async with lied_to(bad, bad) as relay:
        with pytest.raises(ProblemAnswer):
            await relay.introduce(NEWCOMER)
        with pytest.raises(ProblemAnswer):
            await anext(relay.watch(bytes(16)))
