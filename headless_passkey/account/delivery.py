"""Deliveries of FIDO URLs: through the push relay, or as a line on stdout."""

import asyncio
import logging
import math
import re
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Self

from headless_passkey.account import enrolment
from headless_passkey.account.enrolment import Enrolment
from headless_passkey.account.relay import RelayClient, RequestStatus, ShownClaim, log_forgotten
from headless_passkey.delivery import Ask, Notified, Progress, Unconfirmed
from headless_passkey.errors import (
    HeadlessPasskeyError,
    LocalProtocolError,
    TransportError,
    TrustError,
    TrustReason,
)
from headless_passkey.hybrid.fido_url import FidoUrl
from headless_passkey.mends import mend
from headless_passkey.net.proven_http import ProblemAnswer, ProvenHttp, open_session
from headless_passkey.request import DeviceEvent
from headless_passkey.trust.device_checks import check_claim
from headless_passkey.trust.envelope import MAX_LIFETIME, Announcement, new_request_id, seal
from headless_passkey.trust.freshness import DAY, UNCONFIRMED_AFTER, ForgottenRings, unconfirmed, withheld
from headless_passkey.trust.hpke import can_seal_to
from headless_passkey.trust.ring import Member
from headless_passkey.trust.word import Claim, Word
from program_parts.names import quoted

_LATE: Final = 1.0  # seconds for which a submission that was cut off may arrive after its end was reported
_LATE_PAUSE: Final = 0.1
_AWAY_PAUSE: Final = 5.0  # seconds until a relay that went away after the claim is asked once more

logger = logging.getLogger(__name__)


class StdoutDelivery:
    """Writes one URL as a line. It has no progress and no claims: the next event is the phone's advert."""

    needs_claim: Final = False

    def __init__(self, write_line: Callable[[str], None]) -> None:
        self._write_line = write_line

    async def recipients(self) -> Sequence[str]:
        return ("stdout",)

    async def submit(self, _ask: Ask, urls: Mapping[str, FidoUrl], *, lifetime: float) -> None:  # noqa: ARG002
        for url in urls.values():
            self._write_line(url.encode())

    async def progress(self) -> AsyncGenerator[Progress, None]:
        nothing: tuple[Progress, ...] = ()
        for progress in nothing:
            yield progress

    async def finish(self, outcome: DeviceEvent, reason: str | None = None) -> None:
        pass


class RelayDelivery:
    """Sends each companion of the account an envelope, signed by this device and sealed to the companion.

    It says that a companion holds the claim once it has verified that companion's signed word.
    """

    needs_claim: Final = True

    def __init__(
        self,
        relay: RelayClient,
        state: Path,
        *,
        require_witness: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """state: the device's state directory, whose rings are updated before each request.

        require_witness: days after which a membership that no companion has confirmed is refused (`unconfirmed-ring`); None:
        it is told only.
        """
        self._relay, self._state, self._clock = relay, state, clock
        self._require_witness = require_witness
        self._unconfirmed: Unconfirmed | None = None
        self._forgotten: ForgottenRings | None = None  # the last alarm of this request
        self._request_id: bytes | None = None  # of the current or last request
        self._envelopes: dict[str, bytes] = {}  # the same: sealed, by recipient
        self._expires_in = 0  # the same: seconds
        self._enrolment: Enrolment | None = None
        self._companions: dict[str, Member] = {}
        self._sent: dict[str, Announcement] = {}  # of the current or last request, by recipient
        self._claims: dict[str, Claim] = {}  # what each recipient has to claim
        self._verified: ShownClaim | None = None  # the last one that was verified
        self._shown: ShownClaim | None = None  # by the last status
        self._lost = False  # whether the relay has lost the request after its claim
        self._over = True  # whether the request has ended; also before the first
        self._cut_off = False  # the submission was cancelled: it may arrive at the relay still

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, state: Path, *, tls: ssl.SSLContext | None = None, require_witness: int | None = None
    ) -> AsyncIterator[Self]:
        """Open a delivery through the relay of this device's account, with a connection of its own.

        state: of a device that has joined; else `NotEnrolled`. tls: whom to believe, None for the system's roots.
        require_witness: as the constructor takes it.
        """
        joined = enrolment.load(state)
        async with open_session(tls) as http:
            relay = RelayClient(ProvenHttp(http, joined.relay_url, joined.key))
            yield cls(relay, state, require_witness=require_witness)

    async def recipients(self) -> Sequence[str]:
        """Update the rings; returns the account's companions, all of them."""
        self._refuse_a_second()
        self._forgotten = None
        await self._refresh_as_member()
        await self._look_for_a_witness()
        companions = [
            member
            for member in self._joined.chain.head.companions
            if member.hpke_key is not None and can_seal_to(member.hpke_key)
        ]
        self._companions = {member.name: member for member in companions}
        if not self._companions:
            raise TrustError(
                TrustReason.UNSUPPORTED_SUITE, "the account has no companion this device can seal to"
            )
        return tuple(self._companions)

    async def _refresh(self) -> None:
        def note(rings: ForgottenRings) -> None:
            log_forgotten(rings)  # the request may end before its progress tells it
            self._forgotten = rings

        self._enrolment = await enrolment.refresh(self._state, self._relay, on_forgotten=note)

    async def _refresh_as_member(self) -> None:
        """Update the rings; `TrustError` (not-a-member) when this device was removed."""
        await self._refresh()
        _ = self._joined.member

    async def _look_for_a_witness(self) -> None:
        """Note a membership that no companion has confirmed for a week, and ask for words; refuse it where that is asked for."""
        now, witness = self._clock(), next(iter(self._joined.witnesses), None)
        self._unconfirmed = None
        days = self._require_witness
        required = UNCONFIRMED_AFTER if days is None else min(UNCONFIRMED_AFTER, days * DAY)
        if witness is None or not witness.is_silent(now, after=required):
            return
        with suppress(HeadlessPasskeyError):  # it is asked again with the next request
            await self._relay.call_for_words()
        if days is not None and witness.is_silent(now, after=days * DAY):
            raise unconfirmed(witness, now)
        if witness.is_silent(now):
            self._unconfirmed = Unconfirmed(
                companion=witness.member.name, label=witness.member.label, days=witness.days(now)
            )

    async def submit(self, ask: Ask, urls: Mapping[str, FidoUrl], *, lifetime: float) -> None:
        joined = self._joined
        self._refuse_a_second()
        joined.check_rp(rp_id=ask.rp_id, origin=ask.origin)
        if joined.member.needs_digits and ask.digits is None:  # every companion would refuse it
            raise TrustError(
                TrustReason.DIGITS_MISSING,
                "this device was let in on the condition that it shows digits to type",
                advice=mend(TrustReason.DIGITS_MISSING),
            )
        request_id = new_request_id()
        seconds = min(MAX_LIFETIME, math.ceil(lifetime))
        envelopes: dict[str, bytes] = {}
        self._sent, self._claims, self._verified, self._shown = {}, {}, None, None
        for name, url in urls.items():
            companion = self._companions[name]
            announcement = Announcement.address(
                companion,
                ring=joined.chain.head,
                device=joined.name,
                request_id=request_id,
                confirmed=joined.confirmed,
                now=self._clock(),
                lifetime=seconds,
                kind=ask.kind,
                url=url.encode(),
                rp_id=ask.rp_id,
                rp_name=ask.rp_name,
                note=ask.note,
                digits=ask.digits,
            )
            if companion.hpke_key is None:
                raise LocalProtocolError("a recipient has no HPKE key")
            sealed = envelopes[name] = seal(announcement, joined.key, companion.hpke_key)
            self._sent[name] = announcement
            self._claims[name] = Claim.of(device=announcement.device, request_id=request_id, sealed=sealed)
        self._request_id, self._over, self._cut_off, self._lost = request_id, False, False, False
        self._envelopes, self._expires_in = envelopes, seconds
        try:
            await self._relay.submit(request_id, envelopes, expires_in=seconds)
        except asyncio.CancelledError:
            self._cut_off = True
            raise

    async def _submit_again(self) -> None:
        """Submit the same bytes again; not while a companion's claim was seen, whose phone is on its way already.

        `TrustError` (not-a-member) when this device was removed: the relay ends its requests, and answers for them no more.
        """
        await self._refresh_as_member()
        if self._request_id is None or self._verified is not None:
            self._lost = True
            raise TransportError("the relay has lost the request")
        logger.warning("the relay has lost the request, which is submitted again")
        await self._relay.submit(self._request_id, self._envelopes, expires_in=self._expires_in)

    async def progress(self) -> AsyncGenerator[Progress, None]:
        """Follow the request until it has ended, and submit it again when the relay has lost it before anybody claimed it.

        While it is claimed, an unreachable relay is waited for without end, and one that has lost the request is left: the phone
        answers by the tunnel. `TrustError` when the relay shows a claim that is none (bad-claim), or one by a ring that it does
        not show (withheld-ring, forked-ring).
        """
        if self._request_id is None:
            raise LocalProtocolError("a request is submitted before it is followed")
        claimed = False
        while True:
            try:
                async with aclosing(
                    self._relay.watch(self._request_id, on_lost=self._submit_again)
                ) as states:
                    async for status in states:
                        self._over, self._shown = status.state.terminal, status.claim
                        claimed_by = await self._claimer(status)
                        claimed = claimed_by is not None
                        yield self._progress(status, claimed_by)
                        error = status.error(self._label)
                        if error is not None:
                            break
                    else:
                        return
            except TransportError as away:
                if not claimed:
                    raise
                logger.warning("the relay went away while the phone is on its way: %s", away.explain())
                if self._lost:
                    return
                await asyncio.sleep(_AWAY_PAUSE)
            else:
                raise error

    def _progress(self, status: RequestStatus, claimed_by: str | None) -> Progress:
        return Progress(
            state=status.state,
            claimed_by=claimed_by,
            refusals=status.refusals(self._label),
            unconfirmed=self._unconfirmed,
            forgotten=self._forgotten,
            notified=tuple(
                Notified(
                    companion=push.to,
                    label=self._label(push.to),
                    channel=push.channel,
                    outcome=push.outcome,
                )
                for push in status.notified
            ),
        )

    def _refuse_a_second(self) -> None:
        if not self._over:
            raise LocalProtocolError(
                "a delivery serves one ceremony at a time: this one's request is under way"
            )

    async def _claimer(self, status: RequestStatus) -> str | None:
        """Verify the claim that the relay shows; returns whose it is, and None where there is none."""
        shown = status.claim
        if shown is None or status.state.terminal:
            return None
        if shown != self._verified:
            word = self._check_word(shown)
            await self._catch_up(word.version, word.ring_hash)
            self._verified = shown
        await self._catch_up(status.ring_version, status.ring_hash)
        self._check_still_there(shown.by)
        return shown.by

    def _check_word(self, shown: ShownClaim) -> Word:
        """Check that a companion claims this request by its signed word; `TrustError` (bad-claim)."""
        if shown.by not in self._claims:
            raise TrustError(TrustReason.BAD_CLAIM, "the relay shows a claim by nobody who was asked")
        sent = self._sent[shown.by]
        return check_claim(
            shown.word,
            by=self._companions[shown.by],
            account=self._joined.chain.head.account,
            claim=self._claims[shown.by],
            issued=sent.issued,
            expires=sent.expires,
        )

    async def _catch_up(self, version: int, ring_hash: bytes) -> None:
        """Update the rings up to one that somebody names; `TrustError` when the relay does not show it."""
        if not self._joined.chain.agrees(version, ring_hash):
            await self._refresh()
            if not self._joined.chain.agrees(version, ring_hash):
                raise withheld(version)

    def _check_still_there(self, companion: str) -> None:
        """Check that the companion holds the key that was sealed to, and that this device is still a member."""
        member, asked = self._joined.chain.head.member(companion), self._companions[companion]
        if member is None or member.hpke_key != asked.hpke_key:
            raise TrustError(
                TrustReason.STALE_RING,
                f"{quoted(asked.label)} was removed, or has another key, since the request was made",
            )
        _ = self._joined.member  # `TrustError` (not-a-member)

    @property
    def _joined(self) -> Enrolment:
        if self._enrolment is None:
            raise LocalProtocolError("recipients come before the request")
        return self._enrolment

    def _label(self, name: str) -> str | None:
        return self._companions[name].label if name in self._companions else None

    async def finish(self, outcome: DeviceEvent, reason: str | None = None) -> str | None:
        if self._over or self._request_id is None:
            return self._held_by(self._shown)
        self._over = True  # also when the report fails, since the request expires
        word = None if reason is None else re.sub(r"[^a-z0-9]+", "-", reason.lower()).strip("-")[:64]
        now = asyncio.get_running_loop().time
        until = now() + _LATE
        while True:
            try:
                status = await self._relay.report(self._request_id, outcome, word or None)
            except ProblemAnswer as problem:
                if problem.slug == "state-conflict":  # others have ended it, of which the device was not told
                    return self._held_by((await self._relay.status(self._request_id)).claim)
                if problem.slug == "not-found" and not self._cut_off:  # the relay answers no removed device
                    await self._refresh_as_member()
                # a submission that was cut off may be on its way still, and would ask people for nobody
                if problem.slug != "not-found" or not self._cut_off or now() > until:
                    raise
            else:
                return self._held_by(status.claim)
            await asyncio.sleep(_LATE_PAUSE)

    def _held_by(self, shown: ShownClaim | None) -> str | None:
        """Whose claim the relay shows; None for no claim, and for one that is none."""
        if shown is None:
            return None
        try:
            self._check_word(shown)
        except TrustError:
            return None
        return shown.by
