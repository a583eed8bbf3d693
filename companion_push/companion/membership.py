"""Enrolment: how a companion joins an account, and lets others join (docs/protocol/trust.md).

A join writes its messages to disk before it sends them. After a crash or a lost connection, the same code or
invitation resumes it with the same bytes (idempotent). The inviter checks a newcomer by its own record and clock, and
asks the user before it changes the ring.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from companion_push.companion.cancelling import CANCEL_TIMEOUT, finish_when_cancelled
from companion_push.companion.keys import CompanionState, Identity, Joining, KeyPair
from companion_push.companion.members import refuse_removed
from companion_push.companion.relay_client import CompanionRelay
from companion_push.companion.twins import refuse_a_twin
from headless_passkey.account.enrolment import JOIN_TIMEOUT, check_same_words, unanswered
from headless_passkey.account.relay import PAUSES, inconsistent
from headless_passkey.errors import (
    HeadlessPasskeyError,
    NotApproved,
    Outcome,
    ProtocolReason,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TrustError,
    TrustReason,
)
from headless_passkey.mends import ELSEWHERE
from headless_passkey.net.proven_http import MAX_WAIT
from headless_passkey.text.names import name_of
from headless_passkey.trust.account_code import PREFIX as ACCOUNT_CODE
from headless_passkey.trust.account_code import AccountCode
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.invitation import PREFIX as INVITATION
from headless_passkey.trust.invitation import Introduction, Invitation, InvitationRecord, accept
from headless_passkey.trust.ring import MAX_SKEW, Member, Ring, Role

_QUICK: Final = 1.0  # seconds: the relay did not hold an unchanged answer that came sooner

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Joining and inviting with one state directory."""

    state: CompanionState
    tls: ssl.SSLContext | None
    clock: Callable[[], float] = time.time

    async def join(
        self,
        line: str,
        *,
        label: str,
        seconds: float = JOIN_TIMEOUT,
        on_check_number: Callable[[str], None] = lambda _number: None,
    ) -> Identity:
        """Found an account (`line` is an account code) or join one (`line` is an invitation).

        label: what people will call this companion; its normal form C is kept. on_check_number: is given the six
        digits that the inviter sees too, once the relay has taken the introduction and the wait for the inviter begins.
        seconds: for all of it, then `NotApproved` (expired). After that, and after cancelling, the same line and label
        go on; another label is `JoinDiffers`.
        """
        means, label = _parse(line), name_of(label)
        self.state.create()
        with self.state.sole_joiner():
            if self.state.is_enrolled():
                account = self.state.identity().account
                raise SetupError(
                    f"this companion belongs to account {account} already",
                    reason=SetupReason.ALREADY_ENROLLED,
                    advice=ELSEWHERE,
                )
            joining = self._begin(line.strip(), means, label)
            try:
                async with asyncio.timeout(seconds):
                    return await self._say(means, joining, on_check_number)
            except TimeoutError as error:
                by_relay = (
                    f"the relay did not answer within {round(seconds, 1):g} s; the same command goes on"
                )
                why = by_relay if isinstance(means, AccountCode) else unanswered(seconds)
                raise NotApproved(Outcome.EXPIRED, why) from error
            except (NotApproved, TrustError) as error:
                if _is_spent(error):
                    self.state.give_up_joining()
                raise

    async def invite(
        self,
        kind: Role,
        *,
        rp_ids: tuple[str, ...] | None,
        seconds: float,
        show: Callable[[str], None],
        consent: Callable[[Introduction], Awaitable[bool]],
    ) -> Member:
        """Let one newcomer in.

        rp_ids: the relying parties that a device is bound to; None for any. show: called with the invitation, a secret.
        consent: called with the newcomer's verified introduction. seconds: for everything until the consent.

        An end before the consent withdraws the invitation, so that no newcomer waits for it. After the consent the
        newcomer gets its answer in any case: now, or by `finish_answers`.
        """
        me, now = self.state.identity(), self.clock()
        until = time.monotonic() + seconds
        record = InvitationRecord(
            invitation=Invitation.make(
                relay_url=me.relay_url, account=me.account, kind=kind, inviter=me.keys.name, now=now
            ),
            rp_ids=rp_ids,
        )
        async with CompanionRelay.connect(
            me.relay_url, me.keys.signing, tls=self.tls, clock=self.clock
        ) as relay:
            await self._finish_answers(relay, me.keys)
            await self._catch_up(relay)
            await self.state.remember_invitation(record, now)
            try:
                await relay.announce(record.invitation)
                show(record.invitation.encode())
                introduction, taken = await self._agreed(relay, record, seconds, consent)
            except BaseException as error:
                await finish_when_cancelled(self._take_back(relay, record, error))
                raise
            try:
                member = await finish_when_cancelled(
                    self._admit(relay, taken, introduction, me.keys, until=until)
                )
            except (NotApproved, TrustError, RemoteProtocolError) as error:
                await finish_when_cancelled(self._take_back(relay, record, error))
                raise
            await self.state.forget_invitation(record, self.clock())
            return member

    async def finish_answers(self) -> None:
        """Send the answers that a crash prevented: to newcomers that are in the ring already."""
        me = self.state.identity()
        if self.state.invitations(self.clock()):
            async with CompanionRelay.connect(
                me.relay_url, me.keys.signing, tls=self.tls, clock=self.clock
            ) as relay:
                await self._finish_answers(relay, me.keys)

    async def members(self) -> tuple[Ring, HeadlessPasskeyError | None]:
        """The newest known ring, and the error when the relay could not be asked for newer ones."""
        me = self.state.identity()
        try:
            async with CompanionRelay.connect(
                me.relay_url, me.keys.signing, tls=self.tls, clock=self.clock
            ) as relay:
                return (await self._catch_up(relay)).head, None
        except HeadlessPasskeyError as error:
            return self.state.chain().head, error

    async def change(self, make: Callable[[RingChain], Ring | None]) -> Ring:
        """Change the account by a ring that this companion signs, and return it.

        make: makes the next ring from our chain, up to date with the relay; None when nothing is left to do. It is called
        again when another ring was appended meanwhile.
        """
        me = self.state.identity()
        async with CompanionRelay.connect(
            me.relay_url, me.keys.signing, tls=self.tls, clock=self.clock
        ) as relay:
            for pause in (*PAUSES, None):
                chain = await self._catch_up(relay)
                refuse_removed(chain, me.keys.name)
                ring = make(chain)
                if ring is None:
                    return chain.head
                if await relay.append_ring(ring):
                    await self.state.extend([ring.document], now=self.clock())
                    return ring
                if pause is not None:
                    await asyncio.sleep(pause)
        raise inconsistent()

    async def remove(self, *names: str) -> Ring:
        """Take members out of the account, all by one ring; those that are gone already are passed over."""
        key = self.state.identity().keys.signing

        def make(chain: RingChain) -> Ring | None:
            if not any(chain.head.member(name) for name in names):
                return None
            return chain.head.without(key, *names, now=self.clock())

        return await self.change(make)

    async def rename(self, name: str, label: str) -> Ring:
        """Give a member another label. `TrustError` (label-taken) when it looks like another member's."""
        key, label = self.state.identity().keys.signing, name_of(label)

        def make(chain: RingChain) -> Ring:
            refuse_a_twin(label, chain.head.members, but=name)
            members = [
                replace(member, label=label) if member.name == name else member
                for member in chain.head.members
            ]
            return chain.head.next(key, members=members, now=self.clock())

        return await self.change(make)

    async def restore(self, former: Member) -> Ring:
        """Put back a member that was taken out, as an earlier ring had it; it is new, and let in by this companion.

        `TrustError` (label-taken) when another member's label looks like its own by now.
        """
        key = self.state.identity().keys.signing

        def make(chain: RingChain) -> Ring | None:
            if chain.head.member(former.name) is not None:
                return None
            refuse_a_twin(former.label, chain.head.members)
            return chain.head.next(key, members=[*chain.head.members, former], now=self.clock())

        return await self.change(make)

    def _begin(self, line: str, means: AccountCode | Invitation, label: str) -> Joining:
        """Resume the stored join of this line, or make and store a new one."""
        joining = self.state.joining()
        if joining is not None and joining.line == line:
            check_same_words({"label": joining.label}, {"label": label})
            return joining
        keys = KeyPair()
        match means:
            case AccountCode():
                ring = Ring.found(
                    keys.signing,
                    account=means.account,
                    account_name=means.account_name,
                    hpke_key=keys.hpke.public,
                    label=label,
                    now=self.clock(),
                )
                said: tuple[bytes, ...] = (ring.document,)
            case Invitation():
                means.check_expiry(self.clock(), skew=MAX_SKEW)
                introduction = Introduction.make(
                    means, key=keys.signing, hpke_key=keys.hpke.public, label=label
                )
                said = (introduction.body, introduction.signature, introduction.mac)
        joining = Joining(line=line, keys=keys, said=said)
        self.state.begin_joining(joining)
        return joining

    async def _say(
        self, means: AccountCode | Invitation, joining: Joining, on_check_number: Callable[[str], None]
    ) -> Identity:
        keys = joining.keys
        async with CompanionRelay.connect(
            means.relay_url, keys.signing, tls=self.tls, clock=self.clock
        ) as relay:
            match means:
                case AccountCode():
                    ring = Ring.parse_founding(joining.said[0])
                    await relay.found(means, ring)
                case Invitation():
                    body, signature, mac = joining.said
                    introduction = Introduction.parse(body=body, signature=signature, mac=mac)
                    await relay.introduce(means, introduction)
                    on_check_number(introduction.check_number)
                    admission = await relay.admission(means)
                    ring = accept(means, introduction, ring=admission.ring, mac=admission.mac)
        identity = Identity(relay_url=means.relay_url, account=means.account, keys=keys)
        self.state.finish_joining(identity, RingChain.start(ring))
        return identity

    async def _agreed(
        self,
        relay: CompanionRelay,
        record: InvitationRecord,
        seconds: float,
        consent: Callable[[Introduction], Awaitable[bool]],
    ) -> tuple[Introduction, InvitationRecord]:
        """Wait for the newcomer, and for the user's consent to it."""
        try:
            async with asyncio.timeout(seconds):
                introduction, record = await self._newcomer(relay, record)
                agreed = await consent(introduction)
        except TimeoutError as error:
            raise NotApproved(Outcome.EXPIRED, f"nobody was let in within {seconds:g} s") from error
        if not agreed:
            raise NotApproved(Outcome.DECLINED, "the newcomer was not let in")
        return introduction, record

    async def _take_back(self, relay: CompanionRelay, record: InvitationRecord, error: BaseException) -> None:
        """Withdraw the invitation at the relay: the user declined, or the inviter has stopped waiting."""
        declined = isinstance(error, NotApproved) and error.reason is Outcome.DECLINED
        tell = relay.turn_away if declined else relay.withdraw
        try:
            async with asyncio.timeout(CANCEL_TIMEOUT):
                await tell(record.invitation)
        except (HeadlessPasskeyError, TimeoutError) as failure:  # it expires by itself
            logger.info("the end of the invitation was not told (%s)", type(failure).__name__)
        finally:
            await self.state.forget_invitation(record, self.clock())

    async def _finish_answers(self, relay: CompanionRelay, keys: KeyPair) -> None:
        for record in self.state.invitations(self.clock()):
            if record.newcomer is None:
                continue  # of a process that is inviting now, or that ended before the consent
            with suppress(HeadlessPasskeyError):  # its failure must not stop the others
                came = await relay.introduction(record.invitation, wait=0)
                head = (await self._catch_up(relay)).head
                if came is None:
                    continue
                body, signature, mac = came
                introduction = record.check(body=body, signature=signature, mac=mac, now=self.clock())
                if head.member(introduction.member(record.rp_ids).name) is not None:
                    await self._admit(relay, record, introduction, keys)
                    await self.state.forget_invitation(record, self.clock())

    async def _newcomer(
        self, relay: CompanionRelay, record: InvitationRecord
    ) -> tuple[Introduction, InvitationRecord]:
        """Wait for the newcomer, verify it, and record it."""
        while True:
            record.invitation.check_expiry(self.clock())
            asked = time.monotonic()
            came = await relay.introduction(record.invitation, wait=MAX_WAIT)
            if came is not None:
                body, signature, mac = came
                introduction = record.check(body=body, signature=signature, mac=mac, now=self.clock())
                record = record.taken_by(introduction)
                await self.state.remember_invitation(record, self.clock())
                return introduction, record
            if time.monotonic() < asked + _QUICK:
                await asyncio.sleep(_QUICK)

    async def _admit(
        self,
        relay: CompanionRelay,
        record: InvitationRecord,
        introduction: Introduction,
        keys: KeyPair,
        *,
        until: float | None = None,
    ) -> Member:
        """Append a ring with the newcomer, and send the answer; retried when another ring was appended meanwhile.

        until: no try begins after it, of the monotonic clock; `TransportError` (relay-inconsistent) then.
        """
        for pause in (0.0, *PAUSES):
            if pause and until is not None and time.monotonic() + pause > until:
                break
            await asyncio.sleep(pause)
            head = (await self._catch_up(relay)).head
            ring, mac = record.admit(introduction, ring=head, key=keys.signing, now=self.clock())
            if ring is not head:
                if not await relay.append_ring(ring):
                    continue
                await self.state.extend([ring.document], now=self.clock())
            if await relay.answer(record.invitation, ring, mac):
                return introduction.member(record.rp_ids)
        raise inconsistent()

    async def _catch_up(self, relay: CompanionRelay) -> RingChain:
        async def keep(newer: RingChain) -> None:
            await self.state.adopt(newer, now=self.clock())

        await relay.bring_up_to_date(self.state.chain(), keep=keep)
        return self.state.chain()


def _parse(line: str) -> AccountCode | Invitation:
    line = line.strip()
    if line.startswith(ACCOUNT_CODE):
        return AccountCode.parse(line)
    if not line.startswith(INVITATION):
        raise RemoteProtocolError(
            f"expected an account code ({ACCOUNT_CODE}…) or an invitation ({INVITATION}…)",
            reason=ProtocolReason.MALFORMED_INVITATION,
        )
    invitation = Invitation.parse(line)
    if invitation.kind is not Role.COMPANION:
        raise TrustError(TrustReason.KIND_MISMATCH, "this invitation is for a device, not for a companion")
    return invitation


def _is_spent(error: HeadlessPasskeyError) -> bool:
    """Whether the error means that the code or invitation cannot be used again."""
    return isinstance(error, NotApproved) or error.reason in (
        TrustReason.INVITATION_USED,
        TrustReason.INVITATION_EXPIRED,
    )
