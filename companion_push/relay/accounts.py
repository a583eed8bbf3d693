"""Accounts in the store: one-time codes, rings, invitations and introductions.

Each function is a part of one transaction on an open store (`companion_push.relay.database`). Account codes and
tickets, which admit members, are stored as hashes only. This module holds nothing that decrypts.
"""

import contextlib
import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import floor
from typing import Final

from companion_push.relay import channels
from companion_push.relay.problems import Problem, Slug, invalid, not_found
from companion_push.relay.proofs import SKEW
from companion_push.relay.transaction import Transaction, ask
from headless_passkey.errors import RemoteProtocolError, TrustError, TrustReason
from headless_passkey.request import InvitationState
from headless_passkey.trust.account_code import CODE_SIZE
from headless_passkey.trust.fields import new_account
from headless_passkey.trust.ring import Ring, Role, document_hash
from headless_passkey.trust.word import Word
from http_serving.rate_limit import Policy, Unit
from program_parts.base64url import base64url

INVITATION_LIFE: Final = 600  # seconds, at most
MAX_INVITATIONS: Final = 16  # open ones of an account
ANSWERABLE: Final = 600  # seconds after an invitation's expiry in which an introduction may still be answered
KEPT_RINGS: Final = 256  # of an account, the newest
KEPT_BYTES: Final = 4 << 20
MAX_PAGE: Final = 192 << 10  # bytes of rings in one answer, 256 KiB in base64url
_KNOWN_RINGS: Final = 256  # that are kept parsed; a document has 48 KiB at the most
_ANY: Final = 1 << 62  # no version is as high
_FORMER_KEPT: Final = 90 * 86_400  # seconds in which a former member reads the ring that took it out
MAX_FORMER: Final = 1000  # former members of an account that are remembered, those who were removed last
_CODE_KEPT: Final = 86_400  # seconds after its expiry in which a code gets the answer "expired"
# rows of a table that one transaction of the sweep deletes: all at once would keep a file's event loop for seconds, and a database
# in one transaction for minutes
EXPIRED_AT_ONCE: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRing:
    """A ring as the store names it, unread: it was verified when it came, and who only names it reads no member."""

    version: int
    hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """The membership of a key: its account and role, by the account's newest ring."""

    name: str
    account: str
    role: Role
    suspended: bool  # the account
    head: KeptRing  # that ring


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """A newcomer's introduction, which the relay carries to the inviter unread."""

    body: bytes
    signature: bytes
    mac: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """An invitation, from its announcement to its answer."""

    account: str
    id: bytes  # 32 bytes: SHA-256 of the ticket
    inviter: str
    kind: Role
    expires_at: int
    newcomer: str | None  # the key that used the ticket
    introduction: Introduction | None
    inviter_nonce: bytes | None
    newcomer_nonce: bytes | None
    withdrawn: bool
    ring_version: int | None  # None until the inviter has answered
    answer_mac: bytes | None

    @property
    def state(self) -> InvitationState:
        """What came last."""
        for value, state in (
            (self.answer_mac, InvitationState.ANSWERED),
            (self.newcomer_nonce, InvitationState.REVEALED),
            (self.inviter_nonce, InvitationState.ANSWERING),
            (self.introduction, InvitationState.INTRODUCED),
        ):
            if value is not None:
                return state
        return InvitationState.OPEN

    @property
    def ends_at(self) -> int:
        """When time ends it, unless it is answered before: Unix seconds."""
        return self.expires_at + (0 if self.introduction is None else ANSWERABLE)

    def introduced_as(self, introduction: Introduction) -> bool:
        """Whether this is the introduction that came; it may be signed anew."""
        return self.introduction is not None and self.introduction.body == introduction.body

    def refuse_ended(self, now: float) -> None:
        """Refuse the request when the invitation is withdrawn or has expired."""
        if self.withdrawn:
            raise Problem(Slug.WITHDRAWN)
        if now >= self.ends_at:
            raise Problem(Slug.EXPIRED)

    def require(self, state: InvitationState) -> None:
        """Refuse the request when the invitation is in another state."""
        if self.state is not state:
            raise Problem(Slug.STATE_CONFLICT, state=self.state)


_ANEW: Final = (  # of who was a former member already
    "ON CONFLICT (name) DO UPDATE SET account = excluded.account, version = excluded.version, removed_at = excluded.removed_at"
)


# Accounts and their codes


def add_account(db: Transaction, *, name: str, now: float, expires_at: int) -> tuple[str, bytes] | None:
    """Add an account without members; returns its id and one-time code, or None when the name is taken.

    An account that is not founded yet gets a new code, which makes the earlier one void.
    """
    row = db.execute("SELECT id FROM accounts WHERE name = ?", (name,)).fetchone()
    account = str(row[0]) if row is not None else new_account()
    if row is None:
        db.execute("INSERT INTO accounts (id, name, created_at) VALUES (?, ?, ?)", (account, name, int(now)))
    elif _newest(db, account) is not None:
        return None
    code = secrets.token_bytes(CODE_SIZE)
    db.execute(
        "INSERT INTO account_codes VALUES (?, ?, ?) ON CONFLICT (account) DO UPDATE"
        " SET hash = excluded.hash, expires_at = excluded.expires_at",
        (account, _hash(code), expires_at),
    )
    return account, code


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """An account as its operator sees it."""

    id: str
    name: str  # of an account that belongs to a subject: what its members are shown, so two may have the same
    version: int | None  # of its newest ring; None before it is founded
    companions: int
    devices: int
    suspended: bool


def listed(db: Transaction) -> list[Listed]:
    """List the open accounts by name."""
    rows = db.execute(
        "SELECT id, coalesce(name, (SELECT label FROM subjects WHERE account = id), '') AS called,"
        " (SELECT max(version) FROM rings WHERE account = id),"
        " (SELECT count(*) FROM members WHERE account = id AND role = ?),"
        " (SELECT count(*) FROM members WHERE account = id AND role = ?),"
        " EXISTS (SELECT 1 FROM suspensions WHERE account = id)"
        " FROM accounts WHERE closed_at IS NULL ORDER BY called, id",
        (Role.COMPANION, Role.DEVICE),
    )
    return [
        Listed(
            id=row[0],
            name=row[1],
            version=row[2],
            companions=row[3],
            devices=row[4],
            suspended=bool(row[5]),
        )
        for row in rows
    ]


def named(db: Transaction, name: str) -> str | None:
    """The id of the open built-in account of this name."""
    row = db.execute("SELECT id FROM accounts WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def name_of_account(db: Transaction, account: str) -> str | None:
    """The name of a built-in account; None for that of a subject, and for a closed one."""
    row = db.execute("SELECT name FROM accounts WHERE id = ?", (account,)).fetchone()
    return None if row is None else row[0]


def opened(db: Transaction, account: str | None) -> str | None:
    """The id itself when it is an open account's."""
    row = db.execute("SELECT id FROM accounts WHERE id = ? AND closed_at IS NULL", (account,)).fetchone()
    return None if row is None else str(row[0])


def is_known(db: Transaction, account: str) -> bool:
    """Whether there is, or was, an account with this id."""
    return db.execute("SELECT 1 FROM accounts WHERE id = ?", (account,)).fetchone() is not None


def close_account(db: Transaction, *, name: str, now: float) -> frozenset[str] | None:
    """Close a built-in account, as `close` does; None when there is no such account."""
    account = named(db, name)
    return None if account is None else close(db, account, now=now)


def close(db: Transaction, account: str, *, now: float) -> frozenset[str]:
    """Close an account for good and delete what it holds; returns who is told so.

    Its id stays closed. Its members of now, and the newcomers of its invitations, are told so for as long as former
    members are remembered.
    """
    told = members_of(db, account)
    db.executemany(
        f"INSERT INTO former VALUES (?, ?, 0, ?) {_ANEW}",  # noqa: S608
        [(each, account, int(now)) for each in told],
    )
    channels.close(db, account, now)
    for table in (
        "words", "word_calls", "account_states", "envelopes", "invitations", "members", "rings", "account_codes",
        "suspensions", "mutes", "poll_only", "account_events",
    ):  # fmt: skip
        db.execute(f"DELETE FROM {table} WHERE account = ?", (account,))  # noqa: S608
    db.execute("UPDATE subjects SET account = NULL, label = NULL WHERE account = ?", (account,))
    db.execute("UPDATE accounts SET name = NULL, closed_at = ? WHERE id = ?", (int(now), account))
    change_authority(db, account)
    return told


def closed_since(db: Transaction, since: float) -> frozenset[str]:
    """The names of those whose account was closed since then (`close`), by the clock of whoever closed it."""
    rows = db.execute("SELECT name FROM former WHERE removed_at >= ? AND version = 0", (int(since),))
    return frozenset(name for (name,) in rows)


def ask_authority(db: Transaction, account: str) -> Callable[[], int | None]:
    """Ask how often it has changed who may do what in an account; None for an unknown one."""
    rows = ask(db, "SELECT authority FROM accounts WHERE id = ?", (account,))

    def read() -> int | None:
        for (authority,) in rows():
            return int(authority)
        return None

    return read


def change_authority(db: Transaction, account: str) -> None:
    """Count such a change: a state that was stored before it is brought up to it (`operations.settle`)."""
    db.execute("UPDATE accounts SET authority = authority + 1 WHERE id = ?", (account,))


def members_of(db: Transaction, account: str) -> frozenset[str]:
    """The names of all members of an account, and of the newcomers of its invitations."""
    rows = db.execute(
        "SELECT name FROM members WHERE account = ?"
        " UNION SELECT newcomer FROM invitations WHERE account = ? AND newcomer IS NOT NULL",
        (account, account),
    )
    return frozenset(name for (name,) in rows)


def refuse_closed(db: Transaction, account: str) -> None:
    """Refuse the request when the account is closed (account-closed)."""
    row = db.execute("SELECT closed_at FROM accounts WHERE id = ?", (account,)).fetchone()
    if row is not None and row[0] is not None:
        raise Problem(Slug.ACCOUNT_CLOSED)


def refuse_suspended(db: Transaction, account: str) -> None:
    """Refuse the request when the account is suspended (account-suspended)."""
    if is_suspended(db, account):
        raise Problem(Slug.ACCOUNT_SUSPENDED)


def is_suspended(db: Transaction, account: str) -> bool:
    return db.execute("SELECT 1 FROM suspensions WHERE account = ?", (account,)).fetchone() is not None


def stranger(db: Transaction, name: str) -> Problem:
    """Make the problem for a key that is no member's: its account is closed, or there is nothing (not-found)."""
    _former(db, name)  # which refuses for a closed account
    return not_found()


def found(db: Transaction, *, caller: str, code: bytes, document: bytes, now: float) -> tuple[str, bool]:
    """Found an account's ring with its code; returns the account's id, and whether this changed anything (idempotent)."""
    ring = founding_ring(document, caller=caller)
    refuse_closed(db, ring.account)
    row = db.execute(
        "SELECT hash, expires_at, name FROM account_codes JOIN accounts ON id = account WHERE account = ?",
        (ring.account,),
    ).fetchone()
    if row is None or not hmac.compare_digest(row[0], _hash(code)):
        raise not_found()
    if ring.account_name != row[2]:
        raise invalid("ring: the account has another name")
    first = _newest(db, ring.account)
    if first is not None:
        if first.hash == ring.hash:
            return ring.account, False
        raise Problem(Slug.INVITATION_USED, "the account has been founded with this code")
    if now >= row[1]:
        raise Problem(Slug.EXPIRED)
    refuse_suspended(db, ring.account)
    store_ring(db, ring, now)
    return ring.account, True


def founding_ring(document: bytes, *, caller: str) -> Ring:
    """Parse and verify a founding ring, whose only member is the caller."""
    with _refusals():
        ring = Ring.parse_founding(document)
    if ring.members[0].name != caller:
        raise invalid("the proof must be made with the key of the ring's only member")
    return ring


# Rings and members


_MEMBER: Final = (
    "SELECT members.account, role, EXISTS (SELECT 1 FROM suspensions WHERE account = members.account), version, hash"
    " FROM members JOIN rings ON rings.account = members.account"
    " AND version = (SELECT max(version) FROM rings WHERE account = members.account) WHERE name = ?"
)


def membership(db: Transaction, name: str) -> Membership | None:
    """Look up the membership of a key, by its account's newest ring."""
    return ask_membership(db, name)()


def ask_membership(db: Transaction, name: str) -> Callable[[], Membership | None]:
    """Ask for what `membership` looks up."""
    rows = ask(db, _MEMBER, (name,))

    def read() -> Membership | None:
        for account, role, suspended, version, ring_hash in rows():
            head = KeptRing(version=version, hash=ring_hash)
            return Membership(
                name=name, account=account, role=Role(role), suspended=bool(suspended), head=head
            )
        return None

    return read


def reader(db: Transaction, name: str) -> tuple[str, int | None]:
    """Look up whose rings a key may read: its account, and the last version; None for a member, who may read all.

    A former member reads the ring that took it out, which is its proof, and nothing later.
    """
    member = membership(db, name)
    if member is not None:
        if member.suspended:
            raise Problem(Slug.ACCOUNT_SUSPENDED)
        return member.account, None
    former = _former(db, name)
    if former is None:
        raise not_found()
    return former


def _former(db: Transaction, name: str) -> tuple[str, int] | None:
    """Look up the account that a key belongs to no more, and the last ring that it reads; refuses when that account is closed."""
    row = db.execute("SELECT account, version FROM former WHERE name = ?", (name,)).fetchone()
    if row is None:
        return None
    refuse_closed(db, row[0])
    return row[0], row[1]


def names_of(db: Transaction, account: str) -> frozenset[str]:
    """The names of the members of an account."""
    return frozenset(name for (name,) in db.execute("SELECT name FROM members WHERE account = ?", (account,)))


def companions(db: Transaction, account: str) -> frozenset[str]:
    return ask_companions(db, account)()


def ask_companions(db: Transaction, account: str) -> Callable[[], frozenset[str]]:
    """Ask for the names of an account's companions."""
    rows = ask(db, "SELECT name FROM members WHERE account = ? AND role = ?", (account, Role.COMPANION))
    return lambda: frozenset(name for (name,) in rows())


def newest(db: Transaction, account: str, *, last: int | None = None) -> KeptRing:
    """Read the newest ring of a founded account. last: no version after it is looked at."""
    kept = _newest(db, account, last)
    if kept is None:
        raise not_found()
    return kept


def _newest(db: Transaction, account: str, last: int | None = None) -> KeptRing | None:
    """Read the account's newest ring; None before it is founded, and after it is closed."""
    row = db.execute(
        "SELECT version, hash FROM rings WHERE account = ? AND version <= ? ORDER BY version DESC LIMIT 1",
        (account, _ANY if last is None else last),
    ).fetchone()
    return None if row is None else KeptRing(version=row[0], hash=row[1])


def ask_head(db: Transaction, member: Membership) -> Callable[[], Ring]:
    """Ask for the newest ring of a member's account, for whoever needs its members."""
    known = _known.find(member.head.hash)
    if known is not None:
        return lambda: known
    rows = ask(
        db,
        "SELECT hash, document FROM rings WHERE account = ? AND version = ?",
        (member.account, member.head.version),
    )
    return lambda: _known.parsed(*rows()[0])


def _head(db: Transaction, account: str) -> Ring:
    """Read and parse the newest ring of a founded account, for whoever needs its members."""
    head = _newest_ring(db, account)
    if head is None:
        raise not_found()
    return head


def _newest_ring(db: Transaction, account: str) -> Ring | None:
    """Read and parse the account's newest ring; None before it is founded, and after it is closed."""
    row = db.execute(
        "SELECT hash, document FROM rings WHERE account = ? ORDER BY version DESC LIMIT 1", (account,)
    ).fetchone()
    return None if row is None else _known.parsed(*row)


class _KnownRings:
    """Parsed rings of ours by their hash, of accounts that call at the moment: a hash is never another document's."""

    def __init__(self) -> None:
        self._rings: dict[bytes, Ring] = {}  # the last that was asked for is at the end
        self._lock = threading.Lock()  # transactions may run in threads

    def find(self, ring_hash: bytes) -> Ring | None:
        """Find a ring that was parsed before."""
        with self._lock:
            ring = self._rings.pop(ring_hash, None)
            if ring is not None:
                self._rings[ring_hash] = ring
            return ring

    def parsed(self, ring_hash: bytes, document: bytes) -> Ring:
        """Parse a ring of ours, unless it was parsed before."""
        ring = self.find(ring_hash)
        if ring is None:
            ring = Ring.parse_kept(bytes(document))
            with self._lock:
                self._rings[ring_hash] = ring
                if len(self._rings) > _KNOWN_RINGS:
                    del self._rings[next(iter(self._rings))]
        return ring


_known: Final = _KnownRings()


def rings_after(
    db: Transaction, account: str, version: int, limit: int, *, last: int | None = None
) -> list[bytes]:
    """Read the ring documents after `version` and up to `last`, oldest first: at most `limit`, and of several at most `MAX_PAGE` bytes."""
    rows = db.execute(
        "SELECT document FROM rings WHERE account = ? AND version > ? AND version <= ? ORDER BY version LIMIT ?",
        (account, version, _ANY if last is None else last, limit),
    )
    documents: list[bytes] = []
    size = 0
    for (document,) in rows:
        size += len(document)
        if documents and size > MAX_PAGE:
            break
        documents.append(document)
    return documents


def kept_document(db: Transaction, account: str, version: int) -> bytes | None:
    """Read a ring of the account; None when the relay has it no more, or never had it."""
    row = db.execute(
        "SELECT document FROM rings WHERE account = ? AND version = ?", (account, version)
    ).fetchone()
    return None if row is None else bytes(row[0])


def holds_ring(db: Transaction, account: str, version: int, ring_hash: bytes) -> bool:
    """Whether the relay holds this ring of the account."""
    row = db.execute(
        "SELECT 1 FROM rings WHERE account = ? AND version = ? AND hash = ?", (account, version, ring_hash)
    ).fetchone()
    return row is not None


def give_word(db: Transaction, companion: Membership, document: bytes, now: float) -> None:
    """Keep a word about the newest ring that `companion` holds, unless a newer one is kept; it is asked for no more."""
    word = take_word(db, companion, document)
    if word.claim is not None:
        raise invalid("word: a claim is reported with the event of its request")
    if abs(word.at - int(now)) > SKEW:
        raise invalid(f"word: it must be dated within {SKEW} s of the relay's clock")
    db.execute(
        "INSERT INTO words VALUES (?, ?, ?, ?) ON CONFLICT (companion) DO UPDATE"
        " SET at = excluded.at, word = excluded.word WHERE excluded.at >= words.at",
        (companion.name, companion.account, word.at, document),
    )
    db.execute("DELETE FROM word_calls WHERE companion = ?", (companion.name,))


def words(db: Transaction, account: str) -> list[tuple[str, bytes]]:
    """Read the newest word of each companion, with its name."""
    rows = db.execute("SELECT companion, word FROM words WHERE account = ? ORDER BY companion", (account,))
    return rows.fetchall()


def call_for_words(db: Transaction, account: str) -> frozenset[str]:
    """Ask each companion for a word; returns the names of those who were not asked already."""
    already = {
        name for (name,) in db.execute("SELECT companion FROM word_calls WHERE account = ?", (account,))
    }
    called = companions(db, account) - already
    db.executemany("INSERT INTO word_calls VALUES (?, ?)", [(name, account) for name in called])
    return called


def ask_word_wanted(db: Transaction, companion: str) -> Callable[[], bool]:
    """Ask whether `companion` was asked for a word that it has not given yet."""
    rows = ask(db, "SELECT 1 FROM word_calls WHERE companion = ?", (companion,))
    return lambda: bool(rows())


def take_word(db: Transaction, companion: Membership, document: bytes, *, head: Ring | None = None) -> Word:
    """Verify and parse a word of `companion` about a ring that the relay holds (`unknown-ring`). head: the newest, where it is read already."""
    ring = _head(db, companion.account) if head is None else head
    member = ring.member(companion.name)
    if member is None:
        raise not_found()
    try:
        word = Word.parse(document, by=member)
    except (RemoteProtocolError, TrustError) as error:
        raise invalid(f"word: {error}") from error
    if word.account != ring.account:
        raise invalid("word: it is about another account")
    is_head = (word.version, word.ring_hash) == (ring.version, ring.hash)
    if not is_head and not holds_ring(db, companion.account, word.version, word.ring_hash):
        raise Problem(Slug.UNKNOWN_RING)
    return word


def append_ring(db: Transaction, member: Membership, document: bytes, *, now: float) -> tuple[Ring, Ring]:
    """Append a ring that `member` signed and that extends the head (compare and set); returns the head before and after.

    The head itself is accepted again and changes nothing (idempotent).
    """
    old = _head(db, member.account)
    if old.hash == document_hash(document):
        return old, old
    with _refusals(old):
        ring = old.extend(document, now=now)
    if ring.signer != member.name:
        raise invalid("ring: it must be signed by the key that makes the proof")
    if abs(ring.issued - int(now)) > SKEW:
        raise Problem(
            Slug.BAD_RING,
            f"the ring must be dated within {SKEW} s of the relay's clock",
            reason=TrustReason.CLOCK_SKEW,
        )
    store_ring(db, ring, now)
    return old, ring


def append_links(db: Transaction, caller: str, documents: list[bytes], *, now: float) -> tuple[Ring, Ring]:
    """Append rings that the relay has lost, each of which follows the one before; returns the head before and after.

    Who hands them in is a member of the head, or of the last ring; whoever else does learns nothing (not-found). Rings
    that the relay holds are passed over.
    """
    member, account = membership(db, caller), linked_account(db, caller, documents)
    before = _newest_ring(db, account)
    if before is None:
        raise stranger(db, caller)
    if member is not None and member.suspended:
        raise Problem(Slug.ACCOUNT_SUSPENDED)
    try:
        ring = _extended(db, before, documents, now=now)
    except Problem as problem:
        if member is None:
            raise stranger(db, caller) from problem
        raise
    if member is None and ring.member(caller) is None:
        raise not_found()
    refuse_suspended(db, account)
    return before, ring


def linked_account(db: Transaction, caller: str, documents: list[bytes]) -> str:
    """The account of which `caller` hands in rings, which are not verified yet."""
    member = membership(db, caller)
    return member.account if member is not None else _account_of(documents[-1], caller)


def _extended(db: Transaction, ring: Ring, documents: list[bytes], *, now: float) -> Ring:
    """Append each document that follows the one before, and pass over those that the relay holds; returns the last ring."""
    for document in documents:
        with _refusals():
            known = Ring.parse_kept(document)
        if holds_ring(db, ring.account, known.version, known.hash):
            continue
        with _refusals(ring):
            ring = ring.extend(document, now=now)
        store_ring(db, ring, now)
    return ring


def _account_of(document: bytes, member: str) -> str:
    """The account of an unverified ring that lists `member`; the rings are verified afterwards."""
    with _refusals():
        ring = Ring.parse_kept(document)
    if ring.member(member) is None:
        raise not_found()
    return ring.account


@contextlib.contextmanager
def _refusals(old: Ring | None = None) -> Iterator[None]:
    """Translate what is wrong with a ring. old: the head that it should follow."""
    try:
        yield
    except TrustError as error:
        if old is not None and error.reason is TrustReason.FORKED_RING:
            raise ring_conflict(old) from error
        raise Problem(Slug.BAD_RING, str(error), reason=error.reason) from error
    except RemoteProtocolError as error:
        raise invalid(f"ring: {error}") from error


def _prune(db: Transaction, account: str) -> None:
    """Drop the account's oldest rings beyond the last 256, and beyond 4 MiB; never the newest."""
    kept = size = 0
    for version, length in db.execute(
        "SELECT version, length(document) FROM rings WHERE account = ? ORDER BY version DESC", (account,)
    ).fetchall():
        kept, size = kept + 1, size + length
        if kept > 1 and (kept > KEPT_RINGS or size > KEPT_BYTES):
            db.execute("DELETE FROM rings WHERE account = ? AND version <= ?", (account, version))
            return


def ring_conflict(ring: Ring | KeptRing) -> Problem:
    """Make the problem for a ring that does not extend the head, which is `ring`."""
    return Problem(Slug.RING_CONFLICT, version=ring.version, hash=base64url(ring.hash))


def store_ring(db: Transaction, ring: Ring, now: float) -> None:
    """Store a verified ring as the account's newest, and its members."""
    others = [ask_membership(db, member.name) for member in ring.members]  # in one round trip
    for membership_of in others:
        other = membership_of()
        if other is not None and other.account != ring.account:
            raise invalid("ring: a member's key belongs to another account")
    db.execute(
        "INSERT INTO rings VALUES (?, ?, ?, ?)", (ring.account, ring.version, ring.hash, ring.document)
    )
    _prune(db, ring.account)
    db.execute(
        f"INSERT INTO former SELECT name, account, ?, ? FROM members WHERE account = ? {_ANEW}",  # noqa: S608
        (ring.version, int(now), ring.account),
    )
    db.executemany("DELETE FROM former WHERE name = ?", [(member.name,) for member in ring.members])
    db.execute(
        "DELETE FROM former WHERE name IN (SELECT name FROM former WHERE account = ?"
        " ORDER BY version DESC, name LIMIT ? OFFSET ?)",
        (ring.account, _ANY, MAX_FORMER),
    )
    db.execute("DELETE FROM members WHERE account = ?", (ring.account,))
    rows = [(member.name, ring.account, member.role) for member in ring.members]
    db.executemany("INSERT INTO members VALUES (?, ?, ?)", rows)
    for table, whose in (("words", "companion"), ("word_calls", "companion"), ("mutes", "device")):
        db.execute(
            f"DELETE FROM {table} WHERE account = ?"  # noqa: S608
            f" AND {whose} NOT IN (SELECT name FROM members WHERE account = ?)",
            (ring.account, ring.account),
        )
    change_authority(db, ring.account)


# Invitations and introductions


def invite(
    db: Transaction,
    *,
    inviter: Membership,
    invitation_id: bytes,
    kind: Role,
    expires_at: int,
    now: float,
) -> bool:
    """Store an announced invitation; returns whether it is new."""
    if not now < expires_at <= now + INVITATION_LIFE + SKEW:  # by its inviter's clock
        raise invalid(f"expires_at must lie ahead, by {INVITATION_LIFE} seconds at most")
    known = _invitation(db, "account = ? AND id = ?", (inviter.account, invitation_id))
    if known is not None:
        known.refuse_ended(now)
        if (known.inviter, known.kind, known.expires_at) == (inviter.name, kind, expires_at):
            return False
        raise Problem(Slug.REQUEST_CONFLICT)
    open_ends = db.execute(
        "SELECT count(*), min(expires_at) FROM invitations WHERE account = ? AND newcomer IS NULL"
        " AND withdrawn = 0 AND expires_at > ?",
        (inviter.account, now),
    ).fetchone()
    if open_ends[0] >= MAX_INVITATIONS:
        policy = Policy(name="open-invitations", quota=MAX_INVITATIONS, unit=Unit.AT_A_TIME)
        raise Problem(Slug.TOO_MANY_PENDING, policy=policy, retry_after=max(1, int(open_ends[1] - now)))
    db.execute(
        "INSERT INTO invitations (account, id, inviter, kind, expires_at) VALUES (?, ?, ?, ?, ?)",
        (inviter.account, invitation_id, inviter.name, kind, expires_at),
    )
    return True


def introduce(
    db: Transaction,
    *,
    newcomer: str,
    account: str,
    ticket: bytes,
    introduction: Introduction,
    now: float,
) -> tuple[bytes, bool]:
    """Use up a ticket; returns the invitation's id, and whether this changed anything (idempotent)."""
    invitation_id = _hash(ticket)
    refuse_closed(db, account)
    known = _invitation(db, "account = ? AND id = ?", (account, invitation_id))
    if known is None:
        raise not_found()
    known.refuse_ended(now)
    refuse_suspended(db, account)
    if known.newcomer is not None:
        if known.newcomer == newcomer and known.introduced_as(introduction):
            return invitation_id, False
        raise Problem(Slug.INVITATION_USED)
    db.execute(
        "UPDATE invitations SET newcomer = ?, body = ?, signature = ?, mac = ? WHERE account = ? AND id = ?",
        (newcomer, introduction.body, introduction.signature, introduction.mac, account, invitation_id),
    )
    return invitation_id, True


def shown_ticket(db: Transaction, account: str, ticket: bytes, now: float) -> bytes | None:
    """The hash of a ticket whose invitation is open; None for any other."""
    known = _invitation(db, "account = ? AND id = ?", (account, _hash(ticket)))
    if known is None or known.withdrawn or known.answer_mac is not None or now >= known.ends_at:
        return None
    return known.id


def shown_code(db: Transaction, code: bytes, now: float) -> bytes | None:
    """The hash of an account code that has not expired; None for any other."""
    row = db.execute(
        "SELECT 1 FROM account_codes WHERE hash = ? AND expires_at > ?", (_hash(code), now)
    ).fetchone()
    return None if row is None else _hash(code)


def invitation_of(db: Transaction, *, inviter: Membership, invitation_id: bytes) -> Invitation:
    """Read an invitation, for its inviter only."""
    found_one = _invitation(
        db, "account = ? AND id = ? AND inviter = ?", (inviter.account, invitation_id, inviter.name)
    )
    if found_one is None:
        raise not_found()
    return found_one


def withdrawable(db: Transaction, *, caller: str, invitation_id: bytes) -> Invitation:
    """Read an invitation, for its inviter, a companion still, and for the newcomer that used it."""
    member = membership(db, caller)
    if member is not None and member.role is Role.COMPANION:
        return invitation_of(db, inviter=member, invitation_id=invitation_id)
    return introduced_by(db, newcomer=caller, invitation_id=invitation_id)


def introduced_by(db: Transaction, *, newcomer: str, invitation_id: bytes) -> Invitation:
    """Read the invitation that this key used, for this key only."""
    found_one = _invitation(db, "newcomer = ? AND id = ?", (newcomer, invitation_id))
    if found_one is None:
        raise stranger(db, newcomer)
    return found_one


def send_nonce(db: Transaction, invitation: Invitation, nonce: bytes) -> bool:
    """Store the inviter's nonce for its newcomer; returns whether this changed anything (idempotent)."""
    if invitation.inviter_nonce == nonce:
        return False
    invitation.require(InvitationState.INTRODUCED)
    return _set(db, invitation, "inviter_nonce = ?", nonce)


def reveal(db: Transaction, invitation: Invitation, nonce: bytes) -> bool:
    """Store the newcomer's nonce for the inviter; returns whether this changed anything (idempotent)."""
    if invitation.newcomer_nonce == nonce:
        return False
    invitation.require(InvitationState.ANSWERING)
    return _set(db, invitation, "newcomer_nonce = ?", nonce)


def answer(db: Transaction, invitation: Invitation, *, ring_version: int, mac: bytes) -> bool:
    """Store the answer to an introduction; returns whether this changed anything (idempotent)."""
    if invitation.answer_mac == mac:
        return False
    invitation.require(InvitationState.REVEALED)
    return _set(db, invitation, "ring_version = ?, answer_mac = ?", ring_version, mac)


def withdraw(db: Transaction, invitation: Invitation) -> bool:
    """Withdraw an unanswered invitation; returns whether this changed anything (idempotent)."""
    if invitation.withdrawn:
        return False
    if invitation.state is InvitationState.ANSWERED:
        raise Problem(Slug.STATE_CONFLICT, state=invitation.state)
    return _set(db, invitation, "withdrawn = ?", 1)


def withdraw_orphaned(db: Transaction, account: str) -> list[bytes]:
    """Withdraw the unanswered invitations whose inviter is no companion of the account any more; returns their ids.

    They would count as open until they expire, and nobody else can withdraw them.
    """
    rows = db.execute(
        "UPDATE invitations SET withdrawn = 1 WHERE account = ? AND withdrawn = 0 AND answer_mac IS NULL"
        " AND inviter NOT IN (SELECT name FROM members WHERE account = ? AND role = ?) RETURNING id",
        (account, account, Role.COMPANION),
    )
    return [invitation_id for (invitation_id,) in rows.fetchall()]


def _set(db: Transaction, invitation: Invitation, assignment: str, *values: bytes | int) -> bool:
    """Change an invitation. assignment: SQL of this module, never a caller's."""
    db.execute(
        f"UPDATE invitations SET {assignment} WHERE account = ? AND id = ?",  # noqa: S608
        (*values, invitation.account, invitation.id),
    )
    return True


def sweep_accounts(db: Transaction, now: float) -> bool:
    """Delete what has expired: invitations, former members, codes, and accounts that were never founded; `EXPIRED_AT_ONCE`
    of each. Returns whether more may be left.
    """
    # whole seconds, as the columns have them: PostgreSQL looks a fraction up in no index of them
    gone = [
        db.execute(
            "DELETE FROM invitations WHERE (account, id) IN"
            " (SELECT account, id FROM invitations WHERE expires_at <= ? LIMIT ?)",
            (floor(now - ANSWERABLE), EXPIRED_AT_ONCE),
        ),
        db.execute(
            "DELETE FROM former WHERE name IN"
            " (SELECT name FROM former WHERE removed_at <= ? ORDER BY removed_at LIMIT ?)",
            (floor(now - _FORMER_KEPT), EXPIRED_AT_ONCE),
        ),
    ]
    codes = db.execute(
        "DELETE FROM account_codes WHERE account IN"
        " (SELECT account FROM account_codes WHERE expires_at <= ? ORDER BY expires_at LIMIT ?) RETURNING account",
        (floor(now - _CODE_KEPT), EXPIRED_AT_ONCE),
    ).fetchall()
    db.executemany(
        "DELETE FROM accounts WHERE id = ? AND closed_at IS NULL"
        " AND NOT EXISTS (SELECT 1 FROM rings WHERE rings.account = accounts.id)",
        codes,
    )
    return EXPIRED_AT_ONCE in (len(codes), *(each.rowcount for each in gone))


_INVITATION_COLUMNS: Final = (
    "account, id, inviter, kind, expires_at, newcomer, body, signature, mac, inviter_nonce, newcomer_nonce, withdrawn,"
    " ring_version, answer_mac"
)


def _invitation(db: Transaction, condition: str, values: tuple[str | bytes, ...]) -> Invitation | None:
    """Read an invitation by a condition: SQL of this module, never a caller's."""
    row = db.execute(f"SELECT {_INVITATION_COLUMNS} FROM invitations WHERE {condition}", values).fetchone()  # noqa: S608
    if row is None:
        return None
    account, invitation_id, inviter, kind, expires_at, newcomer, body, signature, mac, *rest = row
    inviter_nonce, newcomer_nonce, withdrawn, version, answer_mac = rest
    introduced = newcomer is not None
    return Invitation(
        account=account,
        id=invitation_id,
        inviter=inviter,
        kind=Role(kind),
        expires_at=expires_at,
        newcomer=newcomer,
        introduction=Introduction(body=body, signature=signature, mac=mac) if introduced else None,
        inviter_nonce=inviter_nonce,
        newcomer_nonce=newcomer_nonce,
        withdrawn=bool(withdrawn),
        ring_version=version,
        answer_mac=answer_mac,
    )


def _hash(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()
