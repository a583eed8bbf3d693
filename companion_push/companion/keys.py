"""A companion's state on disk: its keys, its verified rings, the requests that it opened, and its open invitations.

The directory has mode 0700; each file has mode 0600, and is replaced atomically::

    companion.json    relay URL, account, signing key, and the HPKE keys: the current, the next and the previous one
    joining.json      the same until `join` has its answer, so that it can resume after a crash
    ring.json         the chain of rings, the newest last
    opened.json       requests handed to an opener, until they have expired (replay)
    invitations.json  invitations that are still open

Several processes may use it: one waits for requests, another invites. Each change takes a lock, and reads the file
again under it.
"""

import contextlib
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Self, TypeVar

import msgspec

from headless_passkey.errors import (
    EnrolmentReason,
    NotEnrolled,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TransportError,
)
from headless_passkey.mends import ELSEWHERE
from headless_passkey.process.private_file import (
    lock,
    lock_within,
    private_directory,
    read_private,
    remove_private,
    write_private,
)
from headless_passkey.trust.admission import InvitationRecord, Newcomer
from headless_passkey.trust.chain import MAX_KEPT, RingChain
from headless_passkey.trust.hpke import SoftwareHpkeKey
from headless_passkey.trust.ring import MAX_DOCUMENT, HpkeKey, Member, Ring
from headless_passkey.trust.signing import SoftwareSigningKey, thumbprint
from headless_passkey.trust.text_form import check_relay_url
from program_parts.json_text import without_mark

_VERSION: Final = 2
_LIMIT: Final = 2 * MAX_KEPT * MAX_DOCUMENT  # bytes of one file
_MAX_OPENED: Final = 4096
_MAX_INVITATIONS: Final = 64
HPKE_KEY_LIFE: Final = 30 * 86_400  # seconds until a companion replaces its HPKE key
KEEP_PREVIOUS: Final = 600  # seconds until the one before is erased: no request to it lives longer

_Version = Annotated[int, msgspec.Meta(ge=_VERSION, le=_VERSION)]


class _AnyVersion(msgspec.Struct, frozen=True):
    version: int


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: _Version = _VERSION


class _Previous(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    hpke_key: bytes
    until: int  # Unix seconds: when it is erased

    def __repr__(self) -> str:
        return "_Previous()"  # it holds a secret


class _Keys(_File, frozen=True, kw_only=True):
    relay_url: str
    account: str
    signing_key: bytes
    hpke_key: bytes
    hpke_since: int | None = None  # Unix seconds: when a ring named it; None: when the companion joined
    next_hpke_key: bytes | None = None  # written before the ring that names it is sent
    previous_hpke_key: _Previous | None = None

    def __repr__(self) -> str:
        return "_Keys()"  # it holds a secret


class _Joining(_File, frozen=True, kw_only=True):
    line: str
    signing_key: bytes
    hpke_key: bytes
    founds: bool
    said: bytes

    def __repr__(self) -> str:
        return "_Joining()"  # it holds a secret


class _Rings(_File, frozen=True, kw_only=True):
    documents: Annotated[list[bytes], msgspec.Meta(min_length=1, max_length=MAX_KEPT)]


class _Opened(_File, frozen=True, kw_only=True):
    requests: Annotated[list[tuple[str, bytes, int]], msgspec.Meta(max_length=_MAX_OPENED)] = []


class _Invitations(_File, frozen=True, kw_only=True):
    records: Annotated[list[bytes], msgspec.Meta(max_length=_MAX_INVITATIONS)] = []


F = TypeVar("F", bound=_File)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A companion's signing key and HPKE key, which never leave this machine."""

    signing: SoftwareSigningKey = field(default_factory=SoftwareSigningKey.generate, repr=False)
    hpke: SoftwareHpkeKey = field(default_factory=SoftwareHpkeKey.generate, repr=False)

    @property
    def name(self) -> str:
        """The companion's name in the ring."""
        return thumbprint(self.signing.public_key)

    @classmethod
    def from_bytes(cls, signing: bytes, hpke: bytes) -> Self:
        return cls(signing=SoftwareSigningKey.from_bytes(signing), hpke=SoftwareHpkeKey.from_bytes(hpke))


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The companion's account, relay and keys."""

    relay_url: str
    account: str
    keys: KeyPair


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """A join that has no answer yet, with its exact bytes, so that it can be repeated (idempotent)."""

    line: str = field(repr=False)  # the account code or invitation
    keys: KeyPair
    said: Ring | Newcomer = field(repr=False)  # the founding ring, or the record of a newcomer

    @property
    def label(self) -> str:
        """The label that this companion introduced itself with."""
        if isinstance(self.said, Ring):
            return self.said.members[0].label
        return self.said.introduction.label


class CompanionState:
    """The state directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def create(self) -> None:
        """Make the directory, or refuse one that others may enter."""
        private_directory(self._directory)

    @property
    def picture(self) -> Path:
        """The file for a QR code that fits no terminal."""
        return self._directory / "fido-url.png"

    @property
    def page(self) -> Path:
        """The file that says where this companion's page is, while it is served."""
        return self._directory / "page.json"

    @property
    def page_link(self) -> Path:
        """The file of the link that opens the page next."""
        return self._directory / "page-link.json"

    # Identity

    def identity(self) -> Identity:
        """Read the identity; `NotEnrolled` when this companion has not joined."""
        kept = self._kept()
        with self._strict("companion.json"):
            return Identity(
                relay_url=check_relay_url(kept.relay_url),
                account=kept.account,
                keys=KeyPair.from_bytes(kept.signing_key, kept.hpke_key),
            )

    def _not_enrolled(self) -> NotEnrolled:
        return NotEnrolled(
            f"no companion has joined in {self._directory}",
            reason=EnrolmentReason.NOT_ENROLLED,
            advice="`companion-push companion join` with an account code or an invitation",
        )

    def is_enrolled(self) -> bool:
        return self._read("companion.json", _Keys) is not None

    # HPKE keys

    def hpke_keys(self, now: float) -> tuple[SoftwareHpkeKey, ...]:
        """Read the keys that an envelope may be sealed to: current, next, and the previous one until its time."""
        kept, previous = self._kept(), None
        if kept.previous_hpke_key is not None and now < kept.previous_hpke_key.until:
            previous = kept.previous_hpke_key.hpke_key
        with self._strict("companion.json"):
            keys = (kept.hpke_key, kept.next_hpke_key, previous)
            return tuple(SoftwareHpkeKey.from_bytes(key) for key in keys if key is not None)

    def wants_new_hpke_key(self, now: float) -> bool:
        """Whether the HPKE key has had its time, or our entry in the newest ring names none that we hold (an old copy)."""
        kept, entry = self._kept(), self._entry()
        if entry is None:
            return False
        if entry.hpke_key != self._public(kept.hpke_key):
            return entry.hpke_key != self._public(kept.next_hpke_key)
        since = entry.joined if kept.hpke_since is None else kept.hpke_since
        return now - since >= HPKE_KEY_LIFE

    async def next_hpke_key(self) -> SoftwareHpkeKey:
        """Read the key that replaces the current one, or make and write it.

        A key that was sent to the relay once is never made anew: its ring may have arrived, although the answer was lost.
        """
        async with self._locked():
            kept = self._kept()
            with self._strict("companion.json"):
                if kept.next_hpke_key is not None:
                    return SoftwareHpkeKey.from_bytes(kept.next_hpke_key)
            key = SoftwareHpkeKey.generate()
            self._write("companion.json", msgspec.structs.replace(kept, next_hpke_key=key.to_bytes()))
            return key

    async def settle_hpke_keys(self, now: float) -> int | None:
        """Make the next key the current one when our entry in the newest ring names it, and erase a previous one whose time is up.

        Returns when the previous key is to be erased, in Unix seconds; None without one.
        """
        kept = self._kept()
        if kept.next_hpke_key is None and kept.previous_hpke_key is None:
            return None
        async with self._locked():
            kept, entry = self._kept(), self._entry()
            settled, previous = kept, kept.previous_hpke_key
            named = None if entry is None else entry.hpke_key
            if kept.next_hpke_key is not None and named == self._public(kept.next_hpke_key):
                previous = _Previous(hpke_key=kept.hpke_key, until=int(now) + KEEP_PREVIOUS)
                settled = msgspec.structs.replace(
                    kept,
                    hpke_key=kept.next_hpke_key,
                    hpke_since=self.chain().head.issued,
                    next_hpke_key=None,
                )
            if previous is not None and now >= previous.until:
                previous = None
            elif previous is not None and previous.until > now + KEEP_PREVIOUS:  # the clock was set back
                previous = msgspec.structs.replace(previous, until=int(now) + KEEP_PREVIOUS)
            settled = msgspec.structs.replace(settled, previous_hpke_key=previous)
            if settled != kept:
                self._write("companion.json", settled)
            return None if previous is None else previous.until

    def _kept(self) -> _Keys:
        kept = self._read("companion.json", _Keys)
        if kept is None:
            raise self._not_enrolled()
        return kept

    def _entry(self) -> Member | None:
        """Read our own entry in the newest ring."""
        return self.chain().head.member(self.identity().keys.name)

    def _public(self, kept: bytes | None) -> HpkeKey | None:
        with self._strict("companion.json"):
            return None if kept is None else SoftwareHpkeKey.from_bytes(kept).public

    # Joining

    def joining(self) -> Joining | None:
        """Read the join that has no answer yet; None without one."""
        kept = self._read("joining.json", _Joining)
        if kept is None:
            return None
        with self._strict("joining.json"):
            return Joining(
                line=kept.line,
                keys=KeyPair.from_bytes(kept.signing_key, kept.hpke_key),
                said=Ring.parse_kept(kept.said) if kept.founds else Newcomer.from_bytes(kept.said),
            )

    def begin_joining(self, joining: Joining) -> None:
        """Write a join, or its next step, before it is sent."""
        keys, said = joining.keys, joining.said
        self._write(
            "joining.json",
            _Joining(
                line=joining.line,
                signing_key=keys.signing.to_bytes(),
                hpke_key=keys.hpke.to_bytes(),
                founds=isinstance(said, Ring),
                said=said.document if isinstance(said, Ring) else said.to_bytes(),
            ),
        )

    def finish_joining(self, identity: Identity, chain: RingChain, *, replaces: bool = False) -> None:
        """Write the identity, which completes the join. The caller holds `sole_joiner`.

        replaces: in place of another one, of an account that is closed. It stays until then, so that the command that was
        interrupted finds the relay.
        """
        with lock(self._directory / "state"):
            if replaces:
                for name in ("invitations.json", "opened.json"):
                    remove_private(self._directory / name)
            elif self.is_enrolled():
                raise SetupError(
                    "another process has joined here meanwhile",
                    reason=SetupReason.ALREADY_ENROLLED,
                    advice=ELSEWHERE,
                )
            self._write("ring.json", _Rings(documents=list(chain.documents)))
            self._write(
                "companion.json",
                _Keys(
                    relay_url=identity.relay_url,
                    account=identity.account,
                    signing_key=identity.keys.signing.to_bytes(),
                    hpke_key=identity.keys.hpke.to_bytes(),
                ),
            )
            self.forget_joining()

    def give_up_joining(self) -> None:
        """Remove a join whose code or invitation is used up.

        One in which the inviter's nonce came stays until another invitation takes its place: each new beginning with the same
        one would be one more chance for a go-between that needs a number that fits.
        """
        joining = self.joining()
        if joining is None or not isinstance(joining.said, Newcomer) or joining.said.inviter_nonce is None:
            self.forget_joining()

    def forget_joining(self) -> None:
        """Remove a join."""
        remove_private(self._directory / "joining.json")

    # Rings

    def chain(self) -> RingChain:
        """Read the chain of verified rings."""
        kept = self._read("ring.json", _Rings)
        if kept is None:
            raise self._not_enrolled()
        with self._strict("ring.json"):
            return RingChain.restore(kept.documents)

    async def adopt(self, newer: RingChain, *, now: float) -> RingChain:
        """Extend the stored chain by the rings of `newer`, itself an extension of the chain as it was, or taken over after a gap."""
        chain = self.chain()
        if newer.rings[0].version > chain.head.version + 1:
            async with self._locked():
                if newer.head.version > self.chain().head.version:
                    self._write("ring.json", _Rings(documents=list(newer.documents)))
                return self.chain()
        further = [ring.document for ring in newer.rings if ring.version > chain.head.version]
        return await self.extend(further, now=now) if further else chain

    async def extend(self, documents: Iterable[bytes], *, now: float) -> RingChain:
        """Verify and store rings that extend the chain. A `TrustError` (`ring.check_next`) leaves it unchanged."""
        async with self._locked():
            chain = self.chain()
            extended = chain.extend(documents, now=now)
            if extended.head is not chain.head:
                self._write("ring.json", _Rings(documents=list(extended.documents)))
            return extended

    # Opened requests

    def opened_before(self) -> frozenset[tuple[str, bytes]]:
        """Device and id of each request that was handed to an opener and has not expired."""
        return frozenset((device, request_id) for device, request_id, _ in self._opened())

    async def record_opened(self, device: str, request_id: bytes, *, until: float, now: float) -> bool:
        """Record a request before it is opened; False when it is recorded already (replay). until, now: Unix seconds."""
        async with self._locked():
            kept = [each for each in self._opened() if each[2] >= now]
            if any((device, request_id) == each[:2] for each in kept):
                return False
            kept.append((device, request_id, int(until)))
            if len(kept) > _MAX_OPENED:
                raise TransportError(f"{_MAX_OPENED} requests were opened in a few minutes; wait a little")
            self._write("opened.json", _Opened(requests=kept))
            return True

    # Invitations

    def invitations(self, now: float) -> tuple[InvitationRecord, ...]:
        """Read the invitations that are not over by our clock."""
        kept = self._read("invitations.json", _Invitations) or _Invitations()
        with self._strict("invitations.json"):
            records = [InvitationRecord.from_bytes(data) for data in kept.records]
        return tuple(record for record in records if record.ends_at > now)

    def left_invitations(self, now: float) -> tuple[InvitationRecord, ...]:
        """Read the invitations to which nobody has agreed, and for which no process waits any more."""
        try:
            with lock(self._directory / "inviting"):
                return tuple(record for record in self.invitations(now) if record.agreed is None)
        except TransportError:
            return ()  # a process is inviting now

    def inviting(self) -> contextlib.AbstractContextManager[None]:
        """Lock the state as one of the processes that wait for a newcomer."""
        return lock(self._directory / "inviting", shared=True)

    async def remember_invitation(self, record: InvitationRecord, now: float) -> None:
        """Write the record of an invitation, and replace its earlier record."""
        await self._change_invitations(now, lambda others: [*others, record], record)

    async def forget_invitation(self, record: InvitationRecord, now: float) -> None:
        await self._change_invitations(now, lambda others: others, record)

    def sole_joiner(self) -> contextlib.AbstractContextManager[None]:
        """Lock the state for one process that joins; `TransportError` when another process holds it."""
        return lock(self._directory / "joining")

    def sole_runner(self) -> contextlib.AbstractContextManager[None]:
        """Lock the state for one process that waits for requests; `TransportError` when another process holds it."""
        return lock(self._directory / "running")

    async def _change_invitations(
        self,
        now: float,
        change: Callable[[list[InvitationRecord]], list[InvitationRecord]],
        record: InvitationRecord,
    ) -> None:
        async with self._locked():
            others = [each for each in self.invitations(now) if each.invitation.id != record.invitation.id]
            records = change(others)
            if len(records) > _MAX_INVITATIONS:
                raise TransportError(
                    f"{_MAX_INVITATIONS} invitations are open already: wait until one has expired"
                )
            self._write("invitations.json", _Invitations(records=[each.to_bytes() for each in records]))

    def _opened(self) -> list[tuple[str, bytes, int]]:
        return (self._read("opened.json", _Opened) or _Opened()).requests

    def _locked(self) -> contextlib.AbstractAsyncContextManager[None]:
        return lock_within(self._directory / "state")

    def _read(self, name: str, kind: type[F]) -> F | None:
        content = read_private(self._directory / name, limit=_LIMIT)
        if content is None:
            return None
        with self._strict(name):
            if msgspec.json.decode(without_mark(content), type=_AnyVersion).version != _VERSION:
                raise SetupError(
                    f"{self._directory / name} was written by another version",
                    reason=SetupReason.STATE_INCOMPATIBLE,
                    advice=f"use the version of this program that wrote it; for this one, {self._mend(name)}",
                )
            return msgspec.json.decode(without_mark(content), type=kind)

    def _write(self, name: str, content: _File) -> None:
        write_private(self._directory / name, msgspec.json.encode(content) + b"\n")

    @contextlib.contextmanager
    def _strict(self, name: str) -> Iterator[None]:
        try:
            yield
        except (
            msgspec.DecodeError,
            UnicodeDecodeError,
            RecursionError,
            RemoteProtocolError,
            ValueError,
        ) as error:
            # not the decoder's message: it may quote a key
            what = f"{self._directory / name} is not as this program left it"
            raise SetupError(what, reason=SetupReason.STATE_DAMAGED, advice=self._mend(name)) from error

    def _mend(self, name: str) -> str:
        """The mend for a damaged file. Keys and rings can be removed only together."""
        names, then = {
            "opened.json": ([name], ""),
            "invitations.json": ([name], ", and invite again"),
            "joining.json": ([name], ", and join again"),
        }.get(name, (["companion.json", "ring.json"], ", then `companion-push companion join` anew"))
        return f"`rm {' '.join(shlex.quote(str(self._directory / each)) for each in names)}`{then}"
