"""Enrolment: how a companion joins an account, and lets others join (docs/protocol/trust.md).

A join writes its messages to disk before it sends them. After a crash or a lost connection, the same code or
invitation resumes it with the same bytes (idempotent). The inviter checks a newcomer by its own record and clock, and
its user types the newcomer's number before the ring is changed. After a crash the inviter finishes what its user has agreed to,
and withdraws its other invitations.
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from companion_push.companion.cancelling import CANCEL_TIMEOUT, finish_when_cancelled
from companion_push.companion.keys import CompanionState, Identity, Joining, KeyPair
from companion_push.companion.members import refuse_removed
from companion_push.companion.relay_client import CompanionRelay
from companion_push.companion.twins import refuse_a_twin
from headless_passkey.account.joining import (
    JOIN_TIMEOUT,
    be_admitted,
    check_account,
    check_same_words,
    go_on_anyway,
    unanswered,
)
from headless_passkey.account.relay import PAUSES, inconsistent, log_forgotten
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
from headless_passkey.text.names import name_of
from headless_passkey.trust.account_code import PREFIX as ACCOUNT_CODE
from headless_passkey.trust.account_code import AccountCode
from headless_passkey.trust.admission import Candidate, InvitationRecord, Newcomer
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.freshness import ForgottenRings
from headless_passkey.trust.introduction import Introduction
from headless_passkey.trust.invitation import PREFIX as INVITATION
from headless_passkey.trust.invitation import Invitation
from headless_passkey.trust.ring import MAX_SKEW, Member, Ring, Role

Consent = Callable[[Candidate], Awaitable[InvitationRecord | None]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Joining and inviting with one state directory."""

    state: CompanionState
    tls: ssl.SSLContext | None
    clock: Callable[[], float] = time.time
    on_forgotten: Callable[[ForgottenRings], None] = log_forgotten  # told of rings that the relay had lost

    async def join(
        self,
        line: str,
        *,
        label: str,
        seconds: float = JOIN_TIMEOUT,
        expect_account: str | None = None,
        on_check_number: Callable[[str], None] = lambda _number: None,
        go_on: Callable[[], Awaitable[bool]] = go_on_anyway,
    ) -> Identity:
        """Found an account (`line` is an account code) or join one (`line` is an invitation).

        label: what people will call this companion; its normal form C is kept, and the inviter may give it another one.
        expect_account: the id of the account to join; `TrustError` (account-mismatch) for a line of another one, and
        nothing is sent. on_check_number: is given the number that a person types at the inviter. go_on: asked after that;
        False gives the join up. seconds: for all of it, then `NotApproved` (expired). After that, and after cancelling,
        the same line and label go on; another label is `JoinDiffers`.
        """
        means, label = parse_means(line), name_of(label)
        check_account(means, expect_account)
        self.state.create()
        with self.state.sole_joiner():
            refuse_enrolled(self.state)
            joining = self._begin(line.strip(), means, label)
            try:
                async with asyncio.timeout(seconds):
                    return await self._say(means, joining, on_check_number, go_on)
            except TimeoutError as error:
                by_relay = (
                    f"the relay did not answer within {round(seconds, 1):g} s; the same command goes on"
                )
                why = by_relay if isinstance(means, AccountCode) else unanswered(seconds)
                raise NotApproved(Outcome.EXPIRED, why) from error
            except (NotApproved, TrustError) as error:
                if error.reason is Outcome.DECLINED:  # by its own user
                    self.state.forget_joining()
                elif _is_spent(error):
                    self.state.give_up_joining()
                raise

    async def invite(
        self,
        kind: Role,
        *,
        rp_ids: tuple[str, ...] | None,
        needs_digits: bool = False,
        seconds: float,
        show: Callable[[str], None],
        consent: Consent,
    ) -> Member:
        """Let one newcomer in.

        rp_ids: the relying parties that a device is bound to; None for any. needs_digits: whether companions refuse what the
        device asks without match digits. show: called with the invitation, a secret.
        consent: called with the newcomer, which it agrees to (`Candidate.agree`); None refuses the newcomer. seconds: for
        everything until the consent.

        An end before the consent withdraws the invitation, so that no newcomer waits for it. After the consent the
        newcomer gets its answer in any case: now, or by `finish_answers`.
        """
        me, now = self.state.identity(), self.clock()
        until = time.monotonic() + seconds
        async with CompanionRelay.connect(
            me.relay_url, me.keys.signing, tls=self.tls, clock=self.clock
        ) as relay:
            await self._finish_answers(relay, me.keys)
            head = (await self._catch_up(relay)).head
            record = InvitationRecord(
                invitation=Invitation.make(
                    relay_url=me.relay_url, ring=head, kind=kind, inviter=me.keys.name, now=now
                ),
                rp_ids=rp_ids,
                needs_digits=needs_digits,
            )
            return await self._invite(relay, record, keys=me.keys, until=until, show=show, consent=consent)

    async def _invite(
        self,
        relay: CompanionRelay,
        record: InvitationRecord,
        *,
        keys: KeyPair,
        until: float,
        show: Callable[[str], None],
        consent: Consent,
    ) -> Member:
        with self.state.inviting():
            await self.state.remember_invitation(record, self.clock())
            try:
                await relay.announce(record.invitation)
                show(record.invitation.encode())
                introduction, agreed = await self._agreed(relay, record, until - time.monotonic(), consent)
            except BaseException:
                await finish_when_cancelled(self._take_back(relay, record))
                raise
            try:
                member = await finish_when_cancelled(
                    self._admit(relay, agreed, introduction, keys, until=until)
                )
            except (NotApproved, TrustError, RemoteProtocolError):
                await finish_when_cancelled(self._take_back(relay, record))
                raise
            await self.state.forget_invitation(record, self.clock())
            return member

    async def finish_answers(self) -> None:
        """Finish what a crash has interrupted: admit whom the user agreed to, and withdraw other invitations."""
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
                said: Ring | Newcomer = Ring.found(
                    keys.signing,
                    account=means.account,
                    account_name=means.account_name,
                    hpke_key=keys.hpke.public,
                    label=label,
                    now=self.clock(),
                )
            case Invitation():
                means.check_expiry(self.clock(), skew=MAX_SKEW)
                said = Newcomer.make(means, key=keys.signing, hpke_key=keys.hpke.public, label=label)
        joining = Joining(line=line, keys=keys, said=said)
        self.state.begin_joining(joining)
        return joining

    async def _say(
        self,
        means: AccountCode | Invitation,
        joining: Joining,
        on_check_number: Callable[[str], None],
        go_on: Callable[[], Awaitable[bool]],
    ) -> Identity:
        keys, said = joining.keys, joining.said
        async with CompanionRelay.connect(
            means.relay_url, keys.signing, tls=self.tls, clock=self.clock
        ) as relay:
            if isinstance(means, AccountCode) and isinstance(said, Ring):
                await relay.found(means, said)
                ring = said
            elif isinstance(said, Newcomer):
                ring = await be_admitted(
                    relay,
                    said,
                    store=lambda newcomer: self.state.begin_joining(replace(joining, said=newcomer)),
                    on_check_number=on_check_number,
                    go_on=go_on,
                )
        identity = Identity(relay_url=means.relay_url, account=means.account, keys=keys)
        self.state.finish_joining(identity, RingChain.start(ring))
        return identity

    async def _agreed(
        self, relay: CompanionRelay, record: InvitationRecord, seconds: float, consent: Consent
    ) -> tuple[Introduction, InvitationRecord]:
        """Wait for the newcomer, and for the user's consent to it, which is written to disk."""
        try:
            async with asyncio.timeout(seconds):
                introduction, record = await self._newcomer(relay, record)
                await relay.send_nonce(record)
                nonce = await relay.newcomer_nonce(record.invitation)
                agreed = await consent(record.candidate(introduction, nonce))
        except TimeoutError as error:
            raise NotApproved(Outcome.EXPIRED, f"nobody was let in within {round(seconds, 1):g} s") from error
        if agreed is None:
            raise NotApproved(Outcome.DECLINED, "the newcomer was not let in")
        await self.state.remember_invitation(agreed, self.clock())
        return introduction, agreed

    async def _take_back(self, relay: CompanionRelay, record: InvitationRecord) -> None:
        """Withdraw the invitation at the relay: the user declined, or the inviter has stopped waiting."""
        try:
            async with asyncio.timeout(CANCEL_TIMEOUT):
                await relay.withdraw(record.invitation)
        except (HeadlessPasskeyError, TimeoutError) as failure:  # it expires by itself
            logger.info("the end of the invitation was not told (%s)", type(failure).__name__)
        finally:
            await self.state.forget_invitation(record, self.clock())

    async def _finish_answers(self, relay: CompanionRelay, keys: KeyPair) -> None:
        for record in self.state.left_invitations(self.clock()):
            await self._take_back(relay, record)
        for record in self.state.invitations(self.clock()):
            if record.agreed is None:
                continue  # of a process that is inviting now
            with suppress(HeadlessPasskeyError, TimeoutError):  # its failure must not stop the others
                async with asyncio.timeout(CANCEL_TIMEOUT):
                    body, signature, mac = await relay.introduction(record.invitation)
                introduction = record.check(body=body, signature=signature, mac=mac, now=self.clock())
                await self._admit(relay, record, introduction, keys)
                await self.state.forget_invitation(record, self.clock())

    async def _newcomer(
        self, relay: CompanionRelay, record: InvitationRecord
    ) -> tuple[Introduction, InvitationRecord]:
        """Wait for the newcomer, verify it, and record it with a nonce for it."""
        body, signature, mac = await relay.introduction(record.invitation)
        introduction = record.check(body=body, signature=signature, mac=mac, now=self.clock())
        record = record.taken_by(introduction)
        await self.state.remember_invitation(record, self.clock())
        return introduction, record

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
            label = introduction.label if record.agreed is None else record.agreed.label
            refuse_a_twin(label, head.members, but=introduction.name)
            ring, mac = record.admit(introduction, ring=head, key=keys.signing, now=self.clock())
            if ring is not head:
                if not await relay.append_ring(ring):
                    continue
                await self.state.extend([ring.document], now=self.clock())
            if await relay.answer(record.invitation, ring, mac):
                return next(member for member in ring.members if member.name == introduction.name)
        raise inconsistent()

    async def _catch_up(self, relay: CompanionRelay) -> RingChain:
        async def keep(newer: RingChain) -> None:
            await self.state.adopt(newer, now=self.clock())

        await relay.bring_up_to_date(self.state.chain(), keep=keep, on_forgotten=self.on_forgotten)
        return self.state.chain()


def refuse_enrolled(state: CompanionState) -> None:
    """Refuse a state directory that holds an account (already-enrolled)."""
    if state.is_enrolled():
        account = state.identity().account
        raise SetupError(
            f"this companion belongs to account {account} already",
            reason=SetupReason.ALREADY_ENROLLED,
            advice=ELSEWHERE,
        )


def parse_means(line: str) -> AccountCode | Invitation:
    """Parse what a companion joins with: an account code, or an invitation of a companion."""
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
