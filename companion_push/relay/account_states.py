"""Account states in a store: what a store does for them, SQL as one, and the states that one transaction works on.

A store keeps of each account one value of bytes with a version, and the envelopes of its live requests, each under a key of
its own. A value is written only over the version that was read (compare and set), together with the envelopes that come and
go with it. No rule is written in the store's language: whoever loses the race reads again and applies the rules to that.
"""

import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec
from msgspec.structs import replace

from companion_push.errors import StoreBusy, StoreUnavailable
from companion_push.relay.account_state import EMPTY, AccountState, decoded, encoded
from companion_push.relay.mailbox import Key, Request
from companion_push.relay.transaction import Transaction, ask

logger = logging.getLogger(__name__)

FENCED: Final = 60.0  # seconds; longer than any transaction, of which none may stand still for 15 s
PORTION: Final = 100  # accounts that one transaction of the sweep looks at
ABSENT: Final = 0  # in place of a version: there is no value
_VERSION_BITS: Final = 63
_CACHED: Final = 4096  # accounts
CONFIRMED: Final = 3  # times that nobody else had written a state, after which a process goes by its own


class EnvelopeKey(msgspec.Struct, frozen=True):
    """Which envelope of an account."""

    device: str
    request: str  # its id
    recipient: str


class Value(msgspec.Struct, frozen=True):
    """An account's value as a store has it."""

    version: (
        int  # random, so that a value that was made anew has no version of before; `ABSENT` without a value
    )
    data: bytes | None  # None where the reader knows this version, and without a value


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """A new value of an account, and what comes and goes with it in the same step."""

    account: str
    expected: int  # the version that was read
    version: int  # of the new one; `ABSENT` for none
    data: bytes | None
    changes_at: float  # Unix seconds at which time alone changes it; minus infinity: at any moment
    lasts: float  # seconds after which a store may forget all of it
    sealed: Mapping[EnvelopeKey, bytes]  # new envelopes
    erased: Collection[EnvelopeKey]
    # the value that was read has the same `changes_at`: a store may leave it alone
    changes_as_before: bool = False


class StateStore(Protocol):
    """What a store does for account states. It is asked in the middle of a transaction, so it answers soon."""

    def load(self, account: str, known: int = ABSENT) -> Value:
        """Read an account's value. known: the version that the reader has in mind, whose bytes it does not need."""
        ...

    def cas(self, write: Write) -> Value | None:
        """Write a value over the expected version, with its envelopes: all of it or nothing; None when it is done.

        Where there is another version, returns that.
        """
        ...

    def envelopes(self, account: str, keys: Iterable[EnvelopeKey]) -> dict[EnvelopeKey, bytes]:
        """Read envelopes; those that are not there are left out."""
        ...

    def due(self, now: float, after: str | None) -> list[str]:
        """List accounts whose value time may change by `now`, at most `PORTION` of those that come after one, in an order of the store's."""
        ...

    def ask_any(self) -> None:
        """Read anything. `StoreUnavailable` when no account can be had."""
        ...


class SqlStates:
    """The account states in SQL, as a part of one transaction on an open store, as if no other one ran beside it."""

    def __init__(self, db: Transaction) -> None:
        self._db = db
        self._seen: dict[str, int] = {}  # versions that this transaction has read or written
        self._asked: dict[tuple[str, EnvelopeKey], Callable[[], list[Any]]] = {}

    def load(self, account: str, known: int = ABSENT) -> Value:
        row = self._db.execute(
            "SELECT version, CASE WHEN version = ? THEN NULL ELSE value END FROM account_states WHERE account = ?",
            (known, account),
        ).fetchone()
        value = Value(ABSENT, None) if row is None else Value(*row)
        self._seen[account] = value.version
        return value

    def cas(self, write: Write) -> Value | None:
        if self._written(write):
            if write.erased:
                keys = [(write.account, each.device, each.request, each.recipient) for each in write.erased]
                self._db.executemany(
                    "DELETE FROM envelopes WHERE account = ? AND device = ? AND request = ? AND recipient = ?",
                    keys,
                )
            if write.sealed:
                rows = [
                    (write.account, key.device, key.request, key.recipient, sealed)
                    for key, sealed in write.sealed.items()
                ]
                self._db.executemany(
                    "INSERT INTO envelopes VALUES (?, ?, ?, ?, ?)"
                    " ON CONFLICT (account, device, request, recipient) DO UPDATE SET sealed = excluded.sealed",
                    rows,
                )
            return None
        return self.load(write.account)

    def _written(self, write: Write) -> bool:
        """Write the value over the expected version; False where there is another one."""
        statement, values = self._statement(write)
        if self._seen.get(write.account) == write.expected:
            # no other transaction was faster, so nobody waits for what the statement says
            self._db.executemany(statement, [values])
        elif self._db.execute(statement, values).rowcount == 0:
            return False
        self._seen[write.account] = write.version
        return True

    @staticmethod
    def _statement(write: Write) -> tuple[str, tuple[object, ...]]:
        if write.version == ABSENT:
            return (
                "DELETE FROM account_states WHERE account = ? AND version = ?",
                (write.account, write.expected),
            )
        if write.expected == ABSENT:
            return (
                "INSERT INTO account_states VALUES (?, ?, ?, ?) ON CONFLICT (account) DO NOTHING",
                (write.account, write.version, write.data, write.changes_at),
            )
        if write.changes_as_before:  # a page of the index less
            return (
                "UPDATE account_states SET version = ?, value = ? WHERE account = ? AND version = ?",
                (write.version, write.data, write.account, write.expected),
            )
        return (
            "UPDATE account_states SET version = ?, value = ?, changes_at = ? WHERE account = ? AND version = ?",
            (write.version, write.data, write.changes_at, write.account, write.expected),
        )

    def expect(self, account: str, keys: Iterable[EnvelopeKey]) -> None:
        """Ask for envelopes that will presumably be read after the value."""
        for key in keys:
            self._asked[account, key] = self._ask(account, key)

    def envelopes(self, account: str, keys: Iterable[EnvelopeKey]) -> dict[EnvelopeKey, bytes]:
        asked = {key: self._expected(account, key) for key in keys}
        return {key: bytes(row[0]) for key, rows in asked.items() for row in rows()}

    def _expected(self, account: str, key: EnvelopeKey) -> Callable[[], list[Any]]:
        if (account, key) in self._asked:
            return self._asked.pop((account, key))
        return self._ask(account, key)

    def _ask(self, account: str, key: EnvelopeKey) -> Callable[[], list[Any]]:
        return ask(
            self._db,
            "SELECT sealed FROM envelopes WHERE account = ? AND device = ? AND request = ? AND recipient = ?",
            (account, key.device, key.request, key.recipient),
        )

    def due(self, now: float, after: str | None) -> list[str]:
        rows = self._db.execute(
            "SELECT account FROM account_states WHERE changes_at <= ? AND account > ? ORDER BY account LIMIT ?",
            (now, after or "", PORTION),
        )
        return [account for (account,) in rows]

    def ask_any(self) -> None:
        self.load("")


@dataclass(slots=True)
class _Cached:
    """A state that a process has read or made."""

    version: int
    state: AccountState
    confirmed: int = 0  # how often in a row the store has said that nobody else had written it


class StateCache:
    """The newest states that this process has read or made, of at most `_CACHED` accounts.

    One counts only where the store says that its version is the newest, so that an old one, or one whose transaction was
    rolled back, does no harm: before it is used, or where it is written over (`is_confirmed`), with that.
    """

    def __init__(self) -> None:
        self._states: OrderedDict[str, _Cached] = OrderedDict()
        self._lock = threading.Lock()  # transactions may run in threads

    def __len__(self) -> int:
        return len(self._states)

    def get(self, account: str) -> tuple[int, AccountState]:
        """The version and the state of an account; `ABSENT` without one."""
        found = self._states.get(account)
        return (ABSENT, EMPTY) if found is None else (found.version, found.state)

    def put(self, account: str, version: int, state: AccountState, *, ours: bool = False) -> None:
        """Take a state. ours: this process has written it over the one that is here."""
        with self._lock:
            before = self._states.pop(account, None)
            if version != ABSENT:
                confirmed = before.confirmed if ours and before is not None else 0
                self._states[account] = _Cached(version, state, confirmed)
            if len(self._states) > _CACHED:
                self._states.popitem(last=False)

    def confirm(self, account: str) -> None:
        """Note that the store has said that a state is the newest."""
        found = self._states.get(account)
        if found is not None:
            found.confirmed += 1

    def is_confirmed(self, account: str) -> bool:
        """Whether nobody else seems to write the account's state: it may be written over without being read again."""
        found = self._states.get(account)
        return found is not None and found.confirmed >= CONFIRMED

    def forget(self, account: str) -> None:
        """Drop a state over which somebody else has written."""
        self.put(account, ABSENT, EMPTY)


class Unsettled(Exception):  # noqa: N818  a state of affairs
    """An account's state is older than a change of who may do what in it: `operations.settle` comes first."""

    def __init__(self, account: str) -> None:
        super().__init__("the state of an account is not settled yet")
        self.account = account


@dataclass(frozen=True, slots=True)
class Beside:
    """What a transaction goes by whose states are in a store that commits by itself, before the transaction does (docs/adr/0039)."""

    ask_authority: Callable[
        [str], Callable[[], int | None]
    ]  # as `accounts.ask_authority`, in the transaction
    tries: "Tries"

    def authority(self, account: str) -> int | None:
        """`accounts.authority`, as the transaction sees it."""
        return self.ask_authority(account)()


@dataclass(frozen=True, slots=True)
class Tries:
    """What tries of one call have met that were rolled back, by account."""

    written: dict[str, tuple[int, AccountState]] = field(
        default_factory=dict
    )  # the version, and the state of before
    seen: dict[str, int] = field(default_factory=dict)  # the authority of a state that was ahead
    # the version that a state was written over where the store has not said whether it is written
    unsure: dict[str, int] = field(default_factory=dict)

    def is_behind(self, account: str, held: int, authority: int) -> bool:
        """Whether a state of authority `held` is older than the transaction, which sees `authority`.

        `StoreBusy` where it is newer. A transaction that began after that was seen, and still sees less, is of a database that has
        lost changes (it was restored): what the state has seen of them does not count.
        """
        if held > authority and self.seen.get(account) != held:
            self.seen[account] = held
            raise StoreBusy("the transaction began before a change that the state of the account has seen")
        return held != authority


@dataclass(slots=True)
class _Held:
    """A state that a transaction works on."""

    version: int
    stored: AccountState
    state: AccountState
    is_new: bool = False  # whether it is to be written
    is_read: bool = True  # False: it is the process's own, of which the store is asked with the write
    authority: int = 0  # that it is written with


class States:
    """The account states that one transaction reads and changes; `store` writes them."""

    def __init__(
        self, store: StateStore, now: float, cache: StateCache | None = None, *, beside: Beside | None = None
    ) -> None:
        """cache: of the process; None for none. beside: None for a store that commits with the transaction."""
        self._store, self._now, self._beside = store, now, beside
        self._goes_by_cache = not isinstance(store, SqlStates)  # which is asked with the transaction
        self._cache = StateCache() if cache is None else cache
        self._held: dict[str, _Held] = {}
        self._sealed: dict[str, dict[EnvelopeKey, bytes]] = {}
        self._erased: dict[str, set[EnvelopeKey]] = {}

    def aside(self) -> "States":
        """States of the same store, for what is tried and never stored."""
        aside = States(self._store, self._now, self._cache, beside=self._beside)
        aside._goes_by_cache = False  # nobody checks it at the end
        return aside

    def of(
        self,
        account: str,
        *,
        reads: Callable[[AccountState], Iterable[EnvelopeKey]] = lambda _: (),
        writes: bool = False,
    ) -> AccountState:
        """Read the state of an account as it is now. `Unsettled` where it is older than a change of who may do what.

        reads: envelopes that are asked for next where the state is still the one that this process knows. writes: whether it will
        presumably be written, so that the store need not be asked before where this process alone seems to write it.
        """
        held = self._held.get(account)
        if held is None:
            asked = None if self._beside is None else self._beside.ask_authority(account)
            held = self._held[account] = self._load(account, reads, writes=writes)
            if self._beside is not None and asked is not None:
                held.authority = asked() or 0
                is_there = held.version != ABSENT
                tries, authority = self._beside.tries, held.stored.authority
                if is_there and tries.is_behind(account, authority, held.authority):
                    raise Unsettled(account)
        return held.state

    def settle(self, account: str) -> AccountState | None:
        """Read a state that may be older than what the transaction sees, to bring it up to that; None where it is not kept beside.

        It is written also where there was none, and stays long enough for whoever began before and saw none.
        """
        authority = None if self._beside is None else self._beside.authority(account)
        if self._beside is None or authority is None:
            return None
        held = self._load(account)
        self._beside.tries.is_behind(account, held.stored.authority, authority)
        held.state, held.is_new = replace(held.state, fenced_until=self._now + FENCED), True
        held.authority = authority
        self._held[account] = held
        return held.state

    def knows(self, account: str) -> bool:
        """Whether an account that `due` has listed is of this relay: others may keep theirs in the same place."""
        return self._beside is None or self._beside.authority(account) is not None

    def look(self) -> None:
        """Read anything, to see that the store answers."""
        self._store.ask_any()

    def _load(
        self,
        account: str,
        reads: Callable[[AccountState], Iterable[EnvelopeKey]] = lambda _: (),
        *,
        writes: bool = False,
    ) -> _Held:
        known, state = self._cache.get(account)
        goes_by_cache = writes and self._goes_by_cache and self._cache.is_confirmed(account)
        if isinstance(self._store, SqlStates):
            self._store.expect(account, reads(state))
        value = Value(known, None) if goes_by_cache else self._store.load(account, known)
        if value.version == ABSENT:
            state = EMPTY
        elif value.data is not None:
            state = self._decoded(value.data)
            self._cache.put(account, value.version, state)
        elif not goes_by_cache:
            self._cache.confirm(account)
        if self._beside is not None and value.version != ABSENT:
            version, before = self._beside.tries.written.get(account, (ABSENT, EMPTY))
            if version == value.version:  # ours, of a try that was rolled back
                state = replace(before, authority=state.authority)
        return _Held(
            version=value.version, stored=state, state=state.at(self._now), is_read=not goes_by_cache
        )

    @staticmethod
    def _decoded(data: bytes) -> AccountState:
        try:
            return decoded(data)
        except ValueError as error:
            # of minutes, and at most a day: the account goes on without it
            logger.error("the store has lost what waited for an account: %s", error)  # noqa: TRY400
            return EMPTY

    def put(self, account: str, state: AccountState) -> None:
        """Take a state in place of the one that `of` has told."""
        self.of(account)
        held = self._held[account]
        held.state, held.is_new = state, True

    def save(self, *changed: Request) -> None:
        """Take requests in place of those with their keys, and new ones. Envelopes go with the end of their request."""
        for account in {each.account for each in changed}:
            mine = [each for each in changed if each.account == account]
            self.put(account, self.of(account).with_requests(mine))

    @property
    def read(self) -> list[str]:
        """The accounts whose states this transaction has read."""
        return list(self._held)

    def due(self, after: str | None) -> list[str]:
        """List accounts of which time may have changed something, in order: a portion of those that come after one."""
        return self._store.due(self._now, after)

    def swept(self, account: str, state: AccountState) -> None:
        """Take a state as `put` does, where it is another one than is stored."""
        if state is not self._held[account].stored:
            self.put(account, state)

    # Envelopes

    def seal(self, request: Request, envelopes: Mapping[str, bytes]) -> None:
        """Store the envelopes of a new request, by recipient."""
        sealed = self._sealed.setdefault(request.account, {})
        sealed.update({EnvelopeKey(*request.key, to): envelope for to, envelope in envelopes.items()})

    def erase_envelopes(self, account: str, recipients: Collection[str]) -> None:
        """Erase every envelope of an account to these companions, which were removed."""
        erased = self._erased.setdefault(account, set())
        for request in self.of(account).requests:
            erased.update(EnvelopeKey(*request.key, to) for to in request.recipients if to in recipients)

    def sealed_to(self, companion: str, requests: Collection[Request]) -> dict[Key, bytes]:
        """Read the envelopes for `companion` of requests of one account, by request; those that are erased are left out."""
        keys = {EnvelopeKey(*each.key, companion): each.account for each in requests}
        found: dict[EnvelopeKey, bytes] = {}
        for account in set(keys.values()):
            found |= self._store.envelopes(account, keys)
        return {(key.device, key.request): sealed for key, sealed in found.items()}

    # The end of the transaction

    def store(self) -> None:
        """Write what has changed. `StoreBusy` when somebody else has changed a state since it was read: read again."""
        for account, held in self._held.items():
            is_absent = held.version == ABSENT and held.state.is_empty
            if not is_absent and (held.is_new or account in self._erased):
                self._write(account, held)
        self.check()

    def check(self) -> None:
        """Ask the store whether what was not read is the newest. `StoreBusy` where it is not: read again.

        A refusal is checked as well: it goes by a state that nobody writes.
        """
        for account, held in self._held.items():
            if not held.is_read and self._store.load(account, held.version).version != held.version:
                raise self._changed(account)
            held.is_read = True

    def _changed(self, account: str) -> StoreBusy:
        self._cache.forget(account)
        return StoreBusy("the state of the account has changed meanwhile")

    def _write(self, account: str, held: _Held) -> None:
        state = held.state
        if self._beside is not None:
            state = replace(state, authority=held.authority)
        version = ABSENT if state.is_empty else 1 + secrets.randbits(_VERSION_BITS - 1)
        changes_at = state.changes_at()
        write = Write(
            account=account,
            expected=held.version,
            version=version,
            data=None if version == ABSENT else encoded(state),
            changes_at=changes_at,
            # a value that could not be read is taken for an empty state
            changes_as_before=not held.stored.is_empty and held.stored.changes_at() == changes_at,
            lasts=max(0.0, state.ends_at() - self._now),
            sealed=self._sealed.get(account, {}),
            erased=self._erased.get(account, set()) | _over(held.stored, state),
        )
        try:
            newest = self._store.cas(write)
        except StoreUnavailable:
            if self._beside is not None:
                self._beside.tries.unsure.setdefault(account, held.version)
            raise
        if newest is not None:
            raise self._changed(account)
        held.is_read = True
        self._cache.put(account, version, state, ours=True)
        if self._beside is not None:
            self._beside.tries.written[account] = version, held.stored


def _over(before: AccountState, after: AccountState) -> set[EnvelopeKey]:
    """The envelopes of the requests that are over."""
    over: set[EnvelopeKey] = set()
    for was in before.requests:
        if was.live:
            now = after.request(was.key)
            if now is None or not now.live:
                over.update(EnvelopeKey(*was.key, recipient) for recipient in was.recipients)
    return over
