"""Enrolment of a device in an account, and its state on disk: one file of mode 0600 in its state directory.

The file holds the device's signing key, the relay's URL and the verified rings (docs/protocol/trust.md). A join writes
each step to disk before it takes it, so it can resume (`headless_passkey.account.joining`).

A resumed join needs the same label and pins: others are refused, because the inviter has seen, or will see, the first
ones. `join` with another invitation gives an unfinished one up. If the first inviter still admits it, the account has a
member whose key nobody holds: it is in the list of members, and can be removed.
"""

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from headless_passkey.account.device_files import (
    damaged,
    incompatible,
    is_ours,
    lock,
    lock_within,
    private_directory,
    read_private,
    remove_private,
    write_private,
)
from headless_passkey.account.joining import (
    JOIN_TIMEOUT,
    be_admitted,
    check_account,
    check_same_words,
    go_on_anyway,
    unanswered,
)
from headless_passkey.account.relay import PAUSES, RelayClient, inconsistent, log_forgotten
from headless_passkey.errors import (
    EnrolmentReason,
    HeadlessPasskeyError,
    NotApproved,
    NotEnrolled,
    Outcome,
    ProtocolReason,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TrustError,
    TrustReason,
    UsageError,
)
from headless_passkey.mends import mend, setup_error
from headless_passkey.net.proven_http import PATIENCE, ProvenHttp, open_session
from headless_passkey.text.base64url import from_base64url
from headless_passkey.text.members import Members, file_members
from headless_passkey.text.names import name_of
from headless_passkey.trust.admission import MAX_RECORD, Newcomer
from headless_passkey.trust.chain import MAX_KEPT, RingChain
from headless_passkey.trust.freshness import ForgottenRings, Witness, witnesses
from headless_passkey.trust.invitation import Invitation
from headless_passkey.trust.ring import MAX_DOCUMENT, MAX_SKEW, Member, Role
from headless_passkey.trust.signing import SoftwareSigningKey, thumbprint
from headless_passkey.trust.text_form import MAX_RELAY_URL, check_relay_url
from program_parts.base64url import base64url
from program_parts.domains import is_domain
from program_parts.json_text import decode_json

FILE_NAME: Final = "enrolment.json"
_FORMAT: Final = 2
_MAX_FILE: Final = 2 * MAX_KEPT * MAX_DOCUMENT

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """A device's enrolment in an account."""

    key: SoftwareSigningKey = field(repr=False)
    relay_url: str
    chain: RingChain = field(repr=False)
    words: Mapping[str, int] = field(
        default_factory=dict
    )  # time of each companion's newest word, by its name
    rp_id: str | None = None  # the one relying party that this device is pinned to; None: as in the ring
    origin: str | None = None

    @property
    def name(self) -> str:
        """The device's name in the ring."""
        return thumbprint(self.key.public_key)

    @property
    def account(self) -> str:
        return self.chain.head.account

    @property
    def member(self) -> Member:
        """The device's entry in the newest ring; `TrustError` (not-a-member) when it was removed."""
        member = self.chain.head.member(self.name)
        if member is None:
            raise TrustError(
                TrustReason.NOT_A_MEMBER,
                f"this device was removed from account {self.account} {self.chain.removal(self.name) or ''}".rstrip(),
                advice=mend(TrustReason.NOT_A_MEMBER),
            )
        return member

    @property
    def label(self) -> str:
        return self.member.label

    @property
    def witnesses(self) -> tuple[Witness, ...]:
        """The companions whose words confirm the newest ring, who spoke last first; none where there is one companion."""
        return witnesses(self.chain, self.words)

    @property
    def confirmed(self) -> int:
        """The older time of the two newest witnesses, else this device's joining, for its envelopes."""
        newest = self.witnesses[:2]
        return newest[-1].at if newest else self.member.joined

    def with_news(self, chain: RingChain, words: Mapping[str, int]) -> "Enrolment":
        """The enrolment after an answer of the relay, from `MemberClient.catch_up`. Words that it takes back count on."""
        longer = chain if chain.head.version > self.chain.head.version else self.chain
        heard = {**self.words, **words}
        companions = {member.name for member in longer.head.companions}
        newest = {name: max(at, self.words.get(name, 0)) for name, at in heard.items() if name in companions}
        return replace(self, chain=longer, words=newest)

    @property
    def removed(self) -> bool:
        """Whether the newest ring holds this device no more."""
        return self.chain.head.member(self.name) is None

    def check_rp(self, *, rp_id: str, origin: str) -> None:
        """Refuse a relying party that this device may not ask for, by its ring or its own pins (T4)."""
        if not self.member.allows(rp_id) or self.rp_id not in (None, rp_id):
            raise TrustError(TrustReason.RP_NOT_ALLOWED, f"this device may not ask for {rp_id}")
        if self.origin not in (None, origin):
            raise TrustError(TrustReason.RP_NOT_ALLOWED, f"this device may not speak for {origin}")


def load(state: Path) -> Enrolment:
    """Load the enrolment; `NotEnrolled` when this device has not joined an account."""
    kept = _read(state)
    if isinstance(kept, Enrolment):
        return kept
    if isinstance(kept, _Joining):
        raise _not_enrolled("joining was not finished", EnrolmentReason.JOIN_UNFINISHED)
    raise _not_enrolled(f"this device belongs to no account ({state})")


def _not_enrolled(what: str, reason: EnrolmentReason = EnrolmentReason.NOT_ENROLLED) -> NotEnrolled:
    return NotEnrolled(what, reason=reason, advice=mend(reason))


async def join(
    state: Path,
    invitation: Invitation,
    *,
    label: str,
    tls: ssl.SSLContext | None = None,
    rp_id: str | None = None,
    origin: str | None = None,
    expect_account: str | None = None,
    timeout: float = JOIN_TIMEOUT,  # noqa: ASYNC109  a wait of ten minutes for a person is part of what a join is
    on_check_number: Callable[[str], None] = lambda _number: None,
    go_on: Callable[[], Awaitable[bool]] = go_on_anyway,
    clock: Callable[[], float] = time.time,
) -> Enrolment:
    """Join the invitation's account: introduce this device, and wait until the inviter admits it.

    label: the device's name for people, stored in normal form C; the inviter may give it another one. rp_id, origin: pin
    this device to one relying party. expect_account: the id of the account to join; `TrustError` (account-mismatch) for an
    invitation into another one, and nothing is sent. on_check_number: called with the number that this device shows or
    speaks, and that a person types at the inviter. go_on: asked after that; False gives the join up (`NotApproved`, declined).
    timeout: seconds for everything, then `NotApproved` (expired). After that or a cancellation, the same invitation,
    label and pins resume the join; others raise `JoinDiffers`. `NotApproved` (withdrawn) when the inviter
    declines or has stopped waiting.
    """
    check_invitation(invitation, expect_account=expect_account)
    label = name_of(label)
    if rp_id is not None and not is_domain(rp_id):
        raise UsageError("an rp id is a domain name in lower case")
    private_directory(state)
    with lock(state / FILE_NAME):
        joining = _begin(state, invitation, label=label, rp_id=rp_id, origin=origin, now=clock())
        async with open_session(tls) as session:
            relay = RelayClient(ProvenHttp(session, invitation.relay_url, joining.key, clock=clock))
            try:
                async with asyncio.timeout(timeout):
                    ring = await be_admitted(
                        relay,
                        joining.newcomer,
                        store=lambda newcomer: _write(state, replace(joining, newcomer=newcomer)),
                        on_check_number=on_check_number,
                        go_on=go_on,
                    )
            except TimeoutError as error:
                raise NotApproved(Outcome.EXPIRED, unanswered(timeout)) from error
            except (NotApproved, TrustError) as error:
                if error.reason is Outcome.DECLINED or (_is_final(error) and not _has_heard(state)):
                    remove_private(state / FILE_NAME)
                raise
        enrolment = Enrolment(
            key=joining.key,
            relay_url=invitation.relay_url,
            chain=RingChain.start(ring),
            rp_id=joining.rp_id,
            origin=joining.origin,
        )
        _write(state, enrolment)
    logger.info("joined the account at %s; its ring is version %d", invitation.relay_url, ring.version)
    return enrolment


def check_invitation(invitation: Invitation, *, expect_account: str | None = None) -> None:
    """Refuse an invitation that is for a companion, or into another account than the expected one. `join` does this first."""
    if invitation.kind is not Role.DEVICE:
        raise TrustError(
            TrustReason.KIND_MISMATCH, f"the invitation is for a {invitation.kind}, not for a device"
        )
    check_account(invitation, expect_account)


async def refresh(
    state: Path,
    relay: RelayClient,
    *,
    patience: float = PATIENCE,
    on_forgotten: Callable[[ForgottenRings], None] = log_forgotten,
) -> Enrolment:
    """Fetch, verify and store newer rings and words; returns the updated enrolment.

    `TrustError` (forked-ring, withheld-ring) as from `MemberClient.catch_up`; what is stored is then unchanged. After a
    fork, such as a reset of the account, the device must leave and join again. on_forgotten: as `MemberClient.catch_up`
    takes it.
    """
    enrolment = load(state)

    async def keep(chain: RingChain, words: Mapping[str, int] | None = None) -> Enrolment:
        async with lock_within(state / FILE_NAME):
            current = load(state)
            if current.key.public_key != enrolment.key.public_key:
                raise _not_enrolled("this device left its account meanwhile")
            newer = current.with_news(chain, words or {})
            if newer != current:
                _write(state, newer)
        logger.info("the account's ring is version %d now", newer.chain.head.version)
        return newer

    chain, words = await relay.catch_up(
        enrolment.chain, patience=patience, keep=keep, on_forgotten=on_forgotten
    )
    return enrolment if enrolment.with_news(chain, words) == enrolment else await keep(chain, words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What `leave` has removed."""

    account: str | None  # None: the file was not readable
    removed: tuple[Path, ...]


async def take_out(state: Path, *, tls: ssl.SSLContext | None = None, patience: float = PATIENCE) -> bool:
    """Take this device out of the account's ring, by a ring that it signs itself; its state stays until `leave`.

    False when there was nothing to take out: it has not joined, or was removed before. `TransportError` when the relay
    cannot be asked or does not know this device, `TrustError` when its rings do not verify.
    """
    try:
        joined = load(state)
    except NotEnrolled:
        return False
    async with open_session(tls) as session:
        relay = RelayClient(ProvenHttp(session, joined.relay_url, joined.key))
        for pause in (*PAUSES, None):
            joined = await refresh(state, relay, patience=patience)
            if joined.removed:
                return False
            head = joined.chain.head
            if await relay.append_ring(head.without(joined.key, joined.name, now=time.time())):
                return True
            if pause is not None:
                await asyncio.sleep(pause)
    raise inconsistent()


def leave(state: Path) -> Left:
    """Remove account and key from disk. The ring holds this device unless `take_out` came first.

    Damaged and exposed files are removed too, if they are plain files of this user, and so are temporary files of a crash.
    Files of another user or another version of the program stay.
    """
    kept = state / FILE_NAME
    try:
        found = _read(state)
        if found is None:
            raise _not_enrolled(f"this device belongs to no account ({state})")
        account = found.account if isinstance(found, Enrolment) else found.newcomer.invitation.account
    except SetupError as error:
        if error.reason not in _REMOVABLE or not is_ours(kept):
            raise
        account = None
    with lock(kept):
        leftovers = (file for file in sorted(state.glob(f".{FILE_NAME}.*")) if file.suffix != ".lock")
        removed = tuple(file for file in (kept, *leftovers) if is_ours(file))
        for file in removed:
            remove_private(file)
    return Left(account=account, removed=removed)


_REMOVABLE: Final = (SetupReason.STATE_DAMAGED, SetupReason.STATE_EXPOSED, SetupReason.STATE_UNREADABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Joining:
    """An unfinished join, with everything to resume it."""

    newcomer: Newcomer
    key: SoftwareSigningKey = field(repr=False)
    rp_id: str | None
    origin: str | None


def _begin(
    state: Path, invitation: Invitation, *, label: str, rp_id: str | None, origin: str | None, now: float
) -> _Joining:
    """Resume the stored join with this invitation, or store a new one."""
    kept = _read(state)
    if isinstance(kept, Enrolment):
        raise setup_error(
            f"this device belongs to account {kept.account} already", SetupReason.ALREADY_ENROLLED
        )
    if isinstance(kept, _Joining):
        if kept.newcomer.invitation == invitation:
            check_same_words(
                {"label": kept.newcomer.introduction.label, "rp id": kept.rp_id, "origin": kept.origin},
                {"label": label, "rp id": rp_id, "origin": origin},
            )
            logger.info("going on with a join that was interrupted")
            return kept
        logger.warning("an unfinished join is given up; should its inviter still say yes, remove that member")
    invitation.check_expiry(now, skew=MAX_SKEW)
    key = SoftwareSigningKey.generate()
    newcomer = Newcomer.make(invitation, key=key, hpke_key=None, label=label)
    joining = _Joining(newcomer=newcomer, key=key, rp_id=rp_id, origin=origin)
    _write(state, joining)
    return joining


def _is_final(error: HeadlessPasskeyError) -> bool:
    """Whether the error means that the invitation is used up, so that the join cannot be resumed."""
    return isinstance(error, NotApproved) or error.reason in (
        TrustReason.INVITATION_USED,
        TrustReason.INVITATION_EXPIRED,
    )


def _has_heard(state: Path) -> bool:
    """Whether the inviter's nonce came: then this invitation is never begun anew, whatever the relay says of its end.

    Each new beginning would be one more chance for a go-between that needs a number that fits.
    """
    kept = _read(state)
    return isinstance(kept, _Joining) and kept.newcomer.inviter_nonce is not None


def _read(state: Path) -> Enrolment | _Joining | None:
    content = read_private(state / FILE_NAME, limit=_MAX_FILE)
    if content is None:
        return None
    try:
        members = file_members(decode_json(content), FILE_NAME)
        wrote = members.integer("format")
        if wrote == _FORMAT:
            return _parse(members)
    except (ValueError, RemoteProtocolError, TrustError) as error:
        raise damaged(state / FILE_NAME) from error
    raise incompatible(state / FILE_NAME, "earlier" if wrote < _FORMAT else None)


def _parse(members: Members) -> Enrolment | _Joining:
    key = SoftwareSigningKey.from_bytes(members.octets("key", 32))
    rp_id, origin = members.optional_text("rp_id"), members.optional_text("origin")
    if members.text("state") == "joining":
        newcomer = Newcomer.from_bytes(members.octets("newcomer", 1, MAX_RECORD))
        return _Joining(newcomer=newcomer, key=key, rp_id=rp_id, origin=origin)
    documents = [from_base64url(str(item)) for item in members.items("rings", MAX_KEPT)]
    if not documents:
        raise RemoteProtocolError(f"{FILE_NAME}: there are no rings", reason=ProtocolReason.MALFORMED_RING)
    return Enrolment(
        key=key,
        relay_url=check_relay_url(members.text("relay_url", MAX_RELAY_URL)),
        chain=RingChain.restore(documents),
        words=_kept_words(members),
        rp_id=rp_id,
        origin=origin,
    )


def _kept_words(members: Members) -> dict[str, int]:
    words = members.mapping("words")
    if not all(type(at) is int and at >= 0 for at in words.values()):
        raise RemoteProtocolError(f"{FILE_NAME}: words have times", reason=ProtocolReason.MALFORMED_DOCUMENT)
    return words


def _write(state: Path, kept: Enrolment | _Joining) -> None:
    values: dict[str, Any] = {
        "format": _FORMAT,
        "key": base64url(kept.key.to_bytes()),
        "rp_id": kept.rp_id,
        "origin": kept.origin,
    }
    if isinstance(kept, _Joining):
        values |= {
            "state": "joining",
            "newcomer": base64url(kept.newcomer.to_bytes()),
        }
    else:
        values |= {
            "state": "joined",
            "relay_url": kept.relay_url,
            "rings": [base64url(document) for document in kept.chain.documents],
            "words": dict(kept.words),
        }
    write_private(state / FILE_NAME, json.dumps(values, indent=1).encode())
