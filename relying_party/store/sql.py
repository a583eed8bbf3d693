"""Users, passkeys and sessions in SQL that SQLite and PostgreSQL both take: each rule is here once, whatever the engine is.

An engine runs a piece of work as one transaction, as if transactions ran one after the other; it may run it again. In a
statement ``?`` or ``:name`` stands for a value, and a row is read by the names of its columns.
"""

import json
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from math import floor
from secrets import token_bytes
from typing import Any, Final, Protocol, TypeVar

from relying_party.core.callers import ClientKind
from relying_party.core.credentials import (
    MAX_PASSKEYS,
    MAX_SESSIONS,
    NEVER_USED_SECONDS,
    Credential,
    CredentialUse,
    Noted,
    Registered,
    User,
    counter_stands_still,
)
from relying_party.core.removals import (
    CHANGES_OF_A_KIND,
    DELAY_SECONDS,
    SHOWN_SECONDS,
    Change,
    ChangeKind,
    Removal,
    is_delayed,
    may_call_off,
    remaining,
)
from relying_party.core.sessions import Session
from relying_party.errors import (
    Check,
    LastCredential,
    NotFound,
    StoreUnavailable,
    TooManyPasskeys,
    UserExists,
    VerificationFailed,
    YoungerPasskey,
)

_Value = TypeVar("_Value")

FORGOTTEN_AT_ONCE: Final = 10  # accounts, with each new one; sessions, with each one that begins
SPENT_AT_ONCE: Final = 1_000  # spent refresh tokens of those sessions: each may have tens of thousands
GOING_SECONDS: Final = 900  # before a removal is due, in which what goes with it is forgotten in portions
USED_PROOFS: Final = (  # where several processes share them
    "CREATE TABLE proof_step (number INTEGER NOT NULL, began REAL NOT NULL, used INTEGER NOT NULL) STRICT",
    "INSERT INTO proof_step VALUES (0, 0.0, 0)",
    "CREATE TABLE used_proofs (digest BLOB PRIMARY KEY, step INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE INDEX used_proofs_by_step ON used_proofs (step)",
)
# A step that a release has is never changed, as stores have taken it: what changes later is a step of its own, below them
# (tests/test_released_schemas.py).
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE users (
            handle BLOB PRIMARY KEY, name TEXT NOT NULL UNIQUE, display_name TEXT NOT NULL,
            created_at INTEGER NOT NULL) STRICT""",
        """CREATE TABLE credentials (
            credential_id BLOB PRIMARY KEY, user_handle BLOB NOT NULL REFERENCES users (handle),
            attested_data BLOB NOT NULL, aaguid BLOB NOT NULL, algorithm INTEGER NOT NULL,
            sign_count INTEGER NOT NULL, backup_eligible INTEGER NOT NULL, backed_up INTEGER NOT NULL,
            transports TEXT NOT NULL, attestation_object BLOB NOT NULL, client_data_hash BLOB NOT NULL,
            created_at INTEGER NOT NULL, last_used_at INTEGER,
            counter_anomalies INTEGER NOT NULL DEFAULT 0) STRICT""",
        "CREATE INDEX credentials_of_user ON credentials (user_handle)",
        """CREATE TABLE sessions (
            token_hash BLOB PRIMARY KEY, user_handle BLOB NOT NULL REFERENCES users (handle),
            credential_id BLOB NOT NULL, client_kind TEXT NOT NULL, key_thumbprint TEXT,
            created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL) STRICT""",
        "CREATE INDEX sessions_of_user ON sessions (user_handle)",
        "CREATE INDEX sessions_of_key ON sessions (key_thumbprint)",
        "CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT",
    ),
    (  # session ids and refresh tokens; labels of passkeys
        "ALTER TABLE credentials ADD COLUMN label TEXT",
        "ALTER TABLE credentials ADD COLUMN discoverable INTEGER",
        "ALTER TABLE credentials ADD COLUMN prf INTEGER",
        """CREATE TABLE sessions_2 (
            session_id BLOB PRIMARY KEY, token_hash BLOB NOT NULL UNIQUE,
            user_handle BLOB NOT NULL REFERENCES users (handle), credential_id BLOB NOT NULL,
            client_kind TEXT NOT NULL, key_thumbprint TEXT, label TEXT,
            created_at INTEGER NOT NULL, auth_time INTEGER NOT NULL,
            expires_at INTEGER NOT NULL, ends_at INTEGER NOT NULL,
            refresh_hash BLOB UNIQUE, previous_refresh_hash BLOB UNIQUE) STRICT""",
        """INSERT INTO sessions_2 SELECT randomblob(16), token_hash, user_handle, credential_id, client_kind,
            key_thumbprint, NULL, created_at, created_at, expires_at, expires_at, NULL, NULL FROM sessions""",
        "DROP TABLE sessions",
        "ALTER TABLE sessions_2 RENAME TO sessions",
        "CREATE INDEX sessions_of_user ON sessions (user_handle)",
        "CREATE INDEX sessions_of_key ON sessions (key_thumbprint)",
        "CREATE INDEX sessions_by_end ON sessions (ends_at)",
        """CREATE TABLE spent_refresh_tokens (
            refresh_hash BLOB PRIMARY KEY,
            session_id BLOB NOT NULL REFERENCES sessions (session_id) ON DELETE CASCADE) STRICT""",
        "CREATE INDEX spent_of_session ON spent_refresh_tokens (session_id)",
    ),
    (  # the last spent refresh token, and its time
        "ALTER TABLE sessions ADD COLUMN confirmed_refresh_hash BLOB",
        "ALTER TABLE sessions ADD COLUMN confirmed_at INTEGER",
    ),
    (  # step-ups, each for one operation
        """CREATE TABLE step_ups (
            session_id BLOB PRIMARY KEY REFERENCES sessions (session_id) ON DELETE CASCADE,
            operation BLOB NOT NULL, until INTEGER NOT NULL) STRICT""",
    ),
    (  # removals that are delayed; changes of accounts
        """CREATE TABLE removals (
            removal_id BLOB PRIMARY KEY,
            user_handle BLOB NOT NULL REFERENCES users (handle) ON DELETE CASCADE,
            credential_id BLOB UNIQUE REFERENCES credentials (credential_id) ON DELETE CASCADE,
            asked_by BLOB NOT NULL, asked_at INTEGER NOT NULL, due_at INTEGER NOT NULL) STRICT""",
        "CREATE INDEX removals_of_user ON removals (user_handle)",
        "CREATE INDEX removals_by_due ON removals (due_at)",
        """CREATE TABLE changes (
            change_id INTEGER PRIMARY KEY,
            user_handle BLOB NOT NULL REFERENCES users (handle) ON DELETE CASCADE,
            kind TEXT NOT NULL, at INTEGER NOT NULL, name TEXT, session_id BLOB, client_kind TEXT) STRICT""",
        "CREATE INDEX changes_of_user ON changes (user_handle, kind)",
    ),
    USED_PROOFS,
    (  # accounts that were never used
        "ALTER TABLE users ADD COLUMN used INTEGER NOT NULL DEFAULT 0",
        """UPDATE users SET used = 1 WHERE EXISTS (
            SELECT 1 FROM credentials WHERE user_handle = handle AND last_used_at IS NOT NULL)""",
        "CREATE INDEX users_never_used ON users (created_at) WHERE used = 0",
    ),
)


class Rows(Protocol):
    """What a statement has found or changed."""

    @property
    def rowcount(self) -> int: ...

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...


class Transaction(Protocol):
    """A transaction on an open store."""

    def execute(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = (), /) -> Rows: ...


# what goes before sessions of a condition end in a transaction; returns whether they may: else in the next one
MakeReady = Callable[[Transaction, str, Sequence[Any] | Mapping[str, Any]], bool]


class _More:
    """What a transaction returns that is to be followed by another one of the same work."""


_MORE: Final = _More()


class SqlStore:
    """A `CredentialStore` of any engine."""

    async def user_by_name(self, name: str, *, now: float) -> User | None:
        def work(connection: Transaction) -> User | None:
            row = connection.execute("SELECT * FROM users WHERE name = ?", (name,)).fetchone()
            return None if row is None else _user(row)

        return await self._settled(work, now)

    async def credentials_of(self, user_handle: bytes, *, now: float) -> Sequence[Credential]:
        return await self._settled(lambda connection: _credentials_of(connection, user_handle), now)

    async def credential(self, credential_id: bytes, *, now: float) -> Credential | None:
        def work(connection: Transaction) -> Credential | None:
            row = connection.execute(
                "SELECT * FROM credentials WHERE credential_id = ?", (credential_id,)
            ).fetchone()
            return None if row is None else _credential(row)

        return await self._settled(work, now)

    async def register(
        self, credential: Credential, user: User, session: Session, *, ends: bytes | None
    ) -> User:
        def work(connection: Transaction) -> User | _More:
            if connection.execute("SELECT 1 FROM users WHERE name = ?", (user.name,)).fetchone():
                raise UserExists
            if not self._tidy(connection, session, ends):
                return _MORE
            _forget_never_used(connection, credential.created_at, self._make_ready)
            connection.execute(
                "INSERT INTO users (handle, name, display_name, created_at) VALUES (?, ?, ?, ?)",
                (user.handle, user.name, user.display_name, credential.created_at),
            )
            _add_credential(connection, credential)
            _open_session(connection, session, ends)
            return user

        return await self._in_portions(work)

    async def add_credential(self, credential: Credential, session: Session, *, was: bytes) -> User:
        def work(connection: Transaction) -> User:
            user = _user_by_handle(connection, credential.user_handle)
            if user is None or not _replace_session(connection, session, was):
                raise VerificationFailed(Check.SESSION)
            if len(_credentials_of(connection, user.handle)) >= MAX_PASSKEYS:
                raise TooManyPasskeys("remove another one before")
            _add_credential(connection, credential)
            _note(connection, ChangeKind.PASSKEY_ADDED, None, by=session, now=credential.created_at)
            return user

        return await self._transaction(work, writes=True)

    async def sign_in(self, use: CredentialUse, session: Session, *, ends: bytes | None) -> Noted:
        def work(connection: Transaction) -> Noted | _More:
            if not self._tidy(connection, session, ends):
                return _MORE
            noted = _note_use(connection, use, session.user_handle)
            _open_session(connection, session, ends)
            return noted

        return await self._in_portions(work)

    async def step_up(
        self, use: CredentialUse, session: Session, *, was: bytes, operation: bytes, until: int
    ) -> Noted:
        def work(connection: Transaction) -> Noted:
            noted = _note_use(connection, use, session.user_handle)
            if not _replace_session(connection, session, was):
                raise VerificationFailed(Check.SESSION)
            connection.execute(
                """INSERT INTO step_ups VALUES (?, ?, ?)
                ON CONFLICT (session_id) DO UPDATE SET operation = excluded.operation, until = excluded.until""",
                (session.session_id, operation, until),
            )
            return noted

        return await self._transaction(work, writes=True)

    async def spend_step_up(self, session_id: bytes, operation: bytes, *, now: float) -> bool:
        changed = await self._change(
            "DELETE FROM step_ups WHERE session_id = ? AND operation = ? AND until > ?",
            session_id,
            operation,
            now,
        )
        return changed > 0

    async def session(self, token_hash: bytes, *, now: float) -> tuple[Session, User] | None:
        return await self._session_where("token_hash = :hash AND expires_at > :now", token_hash, now)

    async def session_of_refresh(self, refresh_hash: bytes, *, now: float) -> tuple[Session, User] | None:
        return await self._session_where(
            """ends_at > :now AND session_id IN (
                SELECT session_id FROM sessions WHERE refresh_hash = :hash OR previous_refresh_hash = :hash
                UNION SELECT session_id FROM spent_refresh_tokens WHERE refresh_hash = :hash)""",
            refresh_hash,
            now,
        )

    async def is_signed_in(self, user_handle: bytes, key_thumbprint: str, *, now: float) -> bool:
        def work(connection: Transaction) -> bool:
            found = connection.execute(
                "SELECT 1 FROM sessions WHERE key_thumbprint = ? AND user_handle = ? AND ends_at > ?",
                (key_thumbprint, user_handle, now),
            ).fetchone()
            return found is not None

        return await self._settled(work, now)

    async def replace_session(self, session: Session, *, was: bytes) -> bool:
        return await self._transaction(
            lambda connection: _replace_session(connection, session, was), writes=True
        )

    async def end_session(self, user_handle: bytes, session_id: bytes) -> bool:
        return bool(await self._end("user_handle = ? AND session_id = ?", user_handle, session_id))

    async def end_sessions(self, session_id: bytes | None, *, by: Session, now: float) -> int:
        def note(connection: Transaction, labels: list[str | None]) -> None:
            name = labels[0] if session_id is not None else None
            _note(connection, ChangeKind.SESSIONS_ENDED, name, by=by, now=now)

        return await self._end(
            "user_handle = ? AND session_id <> ? AND session_id = coalesce(?, session_id)",
            by.user_handle,
            by.session_id,
            session_id,
            note=note,
        )

    async def rename_user(self, display_name: str, *, by: Session, now: float) -> None:
        def work(connection: Transaction) -> None:
            connection.execute(
                "UPDATE users SET display_name = ? WHERE handle = ?", (display_name, by.user_handle)
            )
            _note(connection, ChangeKind.NAME_CHANGED, display_name, by=by, now=now)

        await self._transaction(work, writes=True)

    async def rename_credential(
        self, credential_id: bytes, label: str | None, *, by: Session, now: float
    ) -> None:
        def work(connection: Transaction) -> None:
            changed = connection.execute(
                "UPDATE credentials SET label = ? WHERE user_handle = ? AND credential_id = ?",
                (label, by.user_handle, credential_id),
            )
            if changed.rowcount != 1:
                raise NotFound("no such passkey")
            _note(connection, ChangeKind.PASSKEY_RENAMED, label, by=by, now=now)

        await self._transaction(work, writes=True)

    async def remove_credential(
        self, credential_id: bytes, *, removal_id: bytes, by: Session, now: float
    ) -> Removal | None:
        def work(connection: Transaction) -> Removal | _More | None:
            if not _settle(connection, now, self._make_ready):
                return _MORE
            theirs = {one.credential_id: one for one in _credentials_of(connection, by.user_handle)}
            removed, pending = theirs.get(credential_id), _removals_of(connection, by.user_handle)
            if removed is None:
                raise NotFound("no such passkey")
            stay = remaining([one.aged() for one in theirs.values()], credential_id, pending)
            if not stay:
                raise LastCredential("add another one before")
            if is_delayed(removed.aged(), stay, now=now):
                return _ask(connection, credential_id, removed.label, removal_id=removal_id, by=by, now=now)
            if not _remove_credential(connection, credential_id, self._make_ready, but=by.session_id):
                return _MORE
            _note(connection, ChangeKind.PASSKEY_REMOVED, removed.label, by=by, now=now)
            return None

        return await self._in_portions(work)

    async def remove_user(self, *, removal_id: bytes, by: Session, now: float) -> Removal | None:
        def work(connection: Transaction) -> Removal | _More | None:
            if not _settle(connection, now, self._make_ready):
                return _MORE
            theirs = [one.aged() for one in _credentials_of(connection, by.user_handle)]
            if any(one.is_old(now) for one in theirs):
                return _ask(connection, None, None, removal_id=removal_id, by=by, now=now)
            return None if _remove_user(connection, by.user_handle, self._make_ready) else _MORE

        return await self._in_portions(work)

    async def call_off(self, removal_id: bytes, *, by: Session, now: float) -> None:
        def work(connection: Transaction) -> _More | None:
            if not _settle(connection, now, self._make_ready):
                return _MORE
            pending = {one.removal_id: one for one in _removals_of(connection, by.user_handle)}
            if removal_id not in pending:
                raise NotFound("no such removal")
            theirs = {one.credential_id: one for one in _credentials_of(connection, by.user_handle)}
            removal = pending[removal_id]
            if not may_call_off(removal, [one.aged() for one in theirs.values()], by.credential_id):
                raise YoungerPasskey(
                    "sign in with a passkey that is older than the one that asked for the removal"
                )
            connection.execute("DELETE FROM removals WHERE removal_id = ?", (removal_id,))
            target = theirs.get(removal.credential_id or b"")
            name = None if target is None else target.label
            _note(connection, ChangeKind.REMOVAL_CALLED_OFF, name, by=by, now=now)
            return None

        await self._in_portions(work)

    async def everyone(self, *, now: float, most: int) -> Sequence[Registered]:
        newest = "FROM users ORDER BY created_at DESC, name LIMIT :most"
        of_them = f"WHERE user_handle IN (SELECT handle {newest})"
        statements = (
            f"SELECT * {newest}",
            f"SELECT * FROM credentials {of_them} ORDER BY created_at, credential_id",  # noqa: S608  our words
            f"SELECT * FROM sessions {of_them} AND ends_at > :now ORDER BY created_at DESC",  # noqa: S608
        )

        def work(connection: Transaction) -> list[Registered]:
            values = {"most": most, "now": now}
            users, credentials, sessions = [
                connection.execute(each, values).fetchall() for each in statements
            ]
            passkeys_of, sessions_of = _by_user(credentials, _credential), _by_user(sessions, _session)
            return [
                Registered(
                    user=_user(row),
                    credentials=tuple(passkeys_of[row["handle"]]),
                    sessions=tuple(sessions_of[row["handle"]]),
                )
                for row in users
            ]

        return await self._settled(work, now)

    async def registered(self, user_handle: bytes, *, now: float) -> Registered | None:
        def work(connection: Transaction) -> Registered | None:
            user = _user_by_handle(connection, user_handle)
            if user is None:
                return None
            return replace(
                _with_sessions(connection, user, now),
                removals=tuple(_removals_of(connection, user_handle)),
                changes=tuple(_changes_of(connection, user_handle, now)),
            )

        return await self._settled(work, now)

    async def secret(self, name: str) -> bytes:
        def known(connection: Transaction) -> bytes | None:
            row = connection.execute("SELECT value FROM secrets WHERE name = ?", (name,)).fetchone()
            return None if row is None else bytes(row["value"])

        def made(connection: Transaction) -> bytes | None:
            connection.execute(
                "INSERT INTO secrets VALUES (?, ?) ON CONFLICT DO NOTHING", (name, token_bytes(32))
            )
            return known(connection)

        found = await self._transaction(known) or await self._transaction(made, writes=True)
        if found is None:
            raise StoreUnavailable("the store does not keep its secrets")
        return found

    async def _session_where(
        self, condition: str, token_hash: bytes, now: float
    ) -> tuple[Session, User] | None:
        def work(connection: Transaction) -> tuple[Session, User] | None:
            row = connection.execute(
                f"SELECT * FROM sessions WHERE {condition}",  # noqa: S608  our words
                {"hash": token_hash, "now": now},
            ).fetchone()
            user = None if row is None else _user_by_handle(connection, row["user_handle"])
            return None if user is None else (_session(row), user)

        return await self._settled(work, now)

    async def _change(self, statement: str, *values: Any) -> int:
        """Run a statement; returns the number of changed rows."""
        return await self._transaction(
            lambda connection: connection.execute(statement, values).rowcount, writes=True
        )

    async def _settled(self, work: Callable[[Transaction], _Value], now: float) -> _Value:
        """Read, after the removals that are due by `now`: nobody sees one that is due and not done."""

        def read(connection: Transaction) -> tuple[_Value] | None:
            due = connection.execute(
                "SELECT 1 FROM removals WHERE due_at <= ? LIMIT 1", (floor(now),)
            ).fetchone()
            return None if due else (work(connection),)

        found = await self._transaction(read)
        if found is not None:
            return found[0]
        await self._in_portions(
            lambda connection: None if _settle(connection, now, self._make_ready) else _MORE
        )
        return await self._transaction(work)

    async def _end(
        self,
        which: str,
        *values: Any,
        note: Callable[[Transaction, list[str | None]], None] = lambda _connection, _labels: None,
    ) -> int:
        """End the sessions of a condition; returns how many. note: is called with their labels, in the same transaction."""

        def work(connection: Transaction) -> int | _More:
            if not self._make_ready(connection, which, values):
                return _MORE
            ended = connection.execute(f"DELETE FROM sessions WHERE {which} RETURNING label", values)  # noqa: S608  our words
            labels = [row["label"] for row in ended.fetchall()]
            if labels:
                note(connection, labels)
            return len(labels)

        return await self._in_portions(work)

    async def _in_portions(self, work: Callable[[Transaction], _Value | _More]) -> _Value:
        """Run `work` as transactions that write, until it has done all: others have their turn between two of them.

        What it ends and removes, it ends and removes in the last one, all at once. Those before it forget nothing but spent refresh
        tokens of sessions that are about to end: one that comes back meanwhile is refused, and ends its session no more.
        """
        while isinstance(done := await self._transaction(work, writes=True), _More):
            pass
        return done

    def _tidy(self, connection: Transaction, session: Session, ends: bytes | None) -> bool:
        """Before a session begins, forget what has ended, where nothing else does it, and most of what the new one replaces.

        Returns whether the session may begin: else there is more to forget in the next transaction. ends: as of `_open_session`.
        """
        theirs = (ends, session.key_thumbprint)
        if not self._make_ready(connection, "session_id = ? OR key_thumbprint = ?", theirs):
            return False
        now = session.created_at
        spent = connection.execute(
            """DELETE FROM spent_refresh_tokens WHERE refresh_hash IN (
                SELECT refresh_hash FROM spent_refresh_tokens WHERE session_id IN (
                    SELECT session_id FROM sessions WHERE ends_at <= ? ORDER BY ends_at LIMIT ?) LIMIT ?)""",
            (floor(now), FORGOTTEN_AT_ONCE, SPENT_AT_ONCE),
        ).rowcount
        if spent < SPENT_AT_ONCE:  # else there may be more, which would go with their sessions
            forget_ended(connection, now, most=FORGOTTEN_AT_ONCE)
        return True

    @abstractmethod
    def _make_ready(
        self, connection: Transaction, which: str, values: Sequence[Any] | Mapping[str, Any]
    ) -> bool:
        """See to it that sessions can end, with millions of spent refresh tokens too. It is a `MakeReady`. which: of our words."""

    @abstractmethod
    async def _transaction(self, work: Callable[[Any], _Value], *, writes: bool = False) -> _Value:
        """Run `work` as one transaction; `StoreUnavailable` for a transient failure. writes: else it only reads."""


def _add_credential(connection: Transaction, credential: Credential) -> None:
    if connection.execute(
        "SELECT 1 FROM credentials WHERE credential_id = ?", (credential.credential_id,)
    ).fetchone():
        raise VerificationFailed(Check.CREDENTIAL_TAKEN)
    values = {item.name: getattr(credential, item.name) for item in fields(credential)}
    _insert(connection, "credentials", {**values, "transports": json.dumps(credential.transports)})


def _note_use(connection: Transaction, use: CredentialUse, user_handle: bytes) -> Noted:
    known = connection.execute(
        "SELECT sign_count FROM credentials WHERE credential_id = ?", (use.credential_id,)
    ).fetchone()
    user = _user_by_handle(connection, user_handle)
    if known is None or user is None:
        raise VerificationFailed(Check.UNKNOWN_CREDENTIAL)
    # another sign-in may have been noted since the ceremony has seen the counter
    anomaly = use.counter_anomaly or counter_stands_still(known["sign_count"], use.sign_count)
    connection.execute(
        """UPDATE credentials SET sign_count = ?, backed_up = ?, last_used_at = ?,
        counter_anomalies = counter_anomalies + ?, backup_eligible = coalesce(?, backup_eligible)
        WHERE credential_id = ?""",
        (
            max(known["sign_count"], use.sign_count),
            use.backed_up,
            use.used_at,
            anomaly,
            use.backup_eligible,
            use.credential_id,
        ),
    )
    connection.execute("UPDATE users SET used = 1 WHERE handle = ? AND used = 0", (user_handle,))
    return Noted(user=user, counter_anomaly=anomaly)


def _forget_never_used(connection: Transaction, now: float, make_ready: MakeReady) -> None:
    """Remove a few accounts that were registered long ago, never signed in to since, and have no session."""
    rows = connection.execute(
        """SELECT handle FROM users WHERE used = 0 AND created_at <= ? AND NOT EXISTS (
            SELECT 1 FROM sessions WHERE user_handle = handle AND ends_at > ?) ORDER BY created_at LIMIT ?""",
        (floor(now - NEVER_USED_SECONDS), now, FORGOTTEN_AT_ONCE),
    ).fetchall()
    for row in rows:
        if not _remove_user(connection, row["handle"], make_ready):
            return  # the next registration goes on


def forget_spent(connection: Transaction, now: float, *, most: int) -> int:
    """Forget spent refresh tokens of sessions that have ended; returns how many. A session may have thousands.

    Here and elsewhere: by whole seconds, as the columns have them. PostgreSQL looks a fraction up in no index of them.
    """
    return connection.execute(
        """DELETE FROM spent_refresh_tokens WHERE refresh_hash IN (
            SELECT spent.refresh_hash FROM sessions JOIN spent_refresh_tokens AS spent USING (session_id)
            WHERE ends_at <= ? LIMIT ?)""",
        (floor(now), most),
    ).rowcount


def forget_spent_of_going(connection: Transaction, now: float, *, most: int) -> int:
    """Forget spent refresh tokens of sessions that go with a removal which is due within `GOING_SECONDS`; returns how many.

    Nobody reads anything from when a removal is due until it is done: with a million of them everybody would wait. One that comes
    back in the meantime is refused, and ends its session no more.
    """
    return connection.execute(
        """DELETE FROM spent_refresh_tokens WHERE refresh_hash IN (
            SELECT spent.refresh_hash FROM removals JOIN sessions USING (user_handle)
            JOIN spent_refresh_tokens AS spent USING (session_id)
            WHERE due_at <= ? AND (removals.credential_id IS NULL OR removals.credential_id = sessions.credential_id)
            LIMIT ?)""",
        (floor(now + GOING_SECONDS), most),
    ).rowcount


def forget_ended(connection: Transaction, now: float, *, most: int) -> int:
    """Forget sessions that have ended, with what is left of their spent refresh tokens; returns how many."""
    return connection.execute(
        """DELETE FROM sessions WHERE session_id IN (
            SELECT session_id FROM sessions WHERE ends_at <= ? ORDER BY ends_at LIMIT ?)""",
        (floor(now), most),
    ).rowcount


def forget_spent_of(
    connection: Transaction, which: str, values: Sequence[Any] | Mapping[str, Any], *, most: int
) -> int:
    """Forget spent refresh tokens of the sessions of a condition, of our words; returns how many."""
    return connection.execute(
        f"""DELETE FROM spent_refresh_tokens WHERE refresh_hash IN (
            SELECT refresh_hash FROM spent_refresh_tokens WHERE session_id IN (
                SELECT session_id FROM sessions WHERE {which}) LIMIT {most})""",  # noqa: S608
        values,
    ).rowcount


def _open_session(connection: Transaction, session: Session, ends: bytes | None) -> None:
    """Store a session in place of the caller's earlier one: a key or a browser has one session."""
    if ends is not None:
        connection.execute("DELETE FROM sessions WHERE session_id = ?", (ends,))
    if session.key_thumbprint is not None:
        connection.execute("DELETE FROM sessions WHERE key_thumbprint = ?", (session.key_thumbprint,))
    connection.execute(
        """DELETE FROM sessions WHERE user_handle = :user AND session_id NOT IN (SELECT session_id FROM sessions
        WHERE user_handle = :user ORDER BY created_at DESC, auth_time DESC LIMIT :most)""",
        {"user": session.user_handle, "most": MAX_SESSIONS - 1},
    )
    _insert(connection, "sessions", _session_values(session))


def _settle(connection: Transaction, now: float, make_ready: MakeReady) -> bool:
    """Do the removals that are due, one after the other: each ends those that its passkey asked for.

    Returns whether all are done: else it goes on in the next transaction.
    """
    while row := connection.execute(
        """SELECT removal_id, removals.user_handle, credential_id, due_at, label
        FROM removals LEFT JOIN credentials USING (credential_id)
        WHERE due_at <= ? ORDER BY due_at, removal_id LIMIT 1""",
        (floor(now),),
    ).fetchone():
        if row["credential_id"] is None:
            if not _remove_user(connection, row["user_handle"], make_ready):
                return False
        elif not _remove_credential(connection, row["credential_id"], make_ready, but=None):
            return False
        else:
            _note_for(connection, ChangeKind.PASSKEY_REMOVED, row["label"], row["user_handle"], row["due_at"])
        connection.execute("DELETE FROM removals WHERE removal_id = ?", (row["removal_id"],))
    return True


def _ask(
    connection: Transaction,
    credential_id: bytes | None,
    name: str | None,
    *,
    removal_id: bytes,
    by: Session,
    now: float,
) -> Removal:
    """Keep a removal until it is due; one that was asked for before keeps its time."""
    for known in _removals_of(connection, by.user_handle):
        if known.credential_id == credential_id:
            return known
    removal = Removal(
        removal_id=removal_id,
        credential_id=credential_id,
        asked_by=by.credential_id,
        asked_at=int(now),
        due_at=int(now) + DELAY_SECONDS,
    )
    values = {item.name: getattr(removal, item.name) for item in fields(removal)}
    _insert(connection, "removals", {**values, "user_handle": by.user_handle})
    _note(connection, ChangeKind.REMOVAL_ASKED, name, by=by, now=now)
    return removal


def _remove_credential(
    connection: Transaction, credential_id: bytes, make_ready: MakeReady, *, but: bytes | None
) -> bool:
    """Remove a passkey, the sessions that it opened, and the removals that it asked for. but: a session that goes on.

    Returns whether it is removed: else nothing is, and it is to be removed in the next transaction.
    """
    which = """credential_id = :id AND session_id <> :but
        AND user_handle = (SELECT user_handle FROM credentials WHERE credential_id = :id)"""
    values = {"id": credential_id, "but": but or b""}  # no session has an empty id
    if not make_ready(connection, which, values):
        return False
    connection.execute("DELETE FROM removals WHERE asked_by = ?", (credential_id,))
    connection.execute(f"DELETE FROM sessions WHERE {which}", values)  # noqa: S608  our words
    connection.execute("DELETE FROM credentials WHERE credential_id = ?", (credential_id,))
    return True


def _remove_user(connection: Transaction, handle: bytes, make_ready: MakeReady) -> bool:
    """Remove a user with all that is theirs. Returns as `_remove_credential`."""
    if not make_ready(connection, "user_handle = ?", (handle,)):
        return False
    for table in ("sessions", "credentials"):
        connection.execute(f"DELETE FROM {table} WHERE user_handle = ?", (handle,))  # noqa: S608  our names
    connection.execute("DELETE FROM users WHERE handle = ?", (handle,))
    return True


def _removals_of(connection: Transaction, handle: bytes) -> list[Removal]:
    rows = connection.execute(
        """SELECT removal_id, credential_id, asked_by, asked_at, due_at FROM removals WHERE user_handle = ?
        ORDER BY due_at, removal_id""",
        (handle,),
    ).fetchall()
    return [Removal(**dict(row)) for row in rows]


def _changes_of(connection: Transaction, handle: bytes, now: float) -> list[Change]:
    rows = connection.execute(
        """SELECT kind, at, name, session_id, client_kind FROM changes WHERE user_handle = ? AND at > ?
        ORDER BY at DESC, change_id DESC""",
        (handle, now - SHOWN_SECONDS),
    ).fetchall()
    return [
        Change(
            kind=ChangeKind(row["kind"]),
            at=row["at"],
            name=row["name"],
            session_id=row["session_id"],
            client_kind=None if row["client_kind"] is None else ClientKind(row["client_kind"]),
        )
        for row in rows
    ]


def _note(connection: Transaction, kind: ChangeKind, name: str | None, *, by: Session, now: float) -> None:
    """Note a change for the user's other sessions."""
    _note_for(connection, kind, name, by.user_handle, int(now), by=by)


def _note_for(
    connection: Transaction,
    kind: ChangeKind,
    name: str | None,
    handle: bytes,
    at: int,
    *,
    by: Session | None = None,
) -> None:
    values = {
        "user_handle": handle,
        "kind": str(kind),
        "at": at,
        "name": name,
        "session_id": None if by is None else by.session_id,
        "client_kind": None if by is None else str(by.client_kind),
    }
    _insert(connection, "changes", values)
    connection.execute(
        """DELETE FROM changes WHERE user_handle = :user_handle AND kind = :kind AND change_id NOT IN (
            SELECT change_id FROM changes WHERE user_handle = :user_handle AND kind = :kind
            ORDER BY change_id DESC LIMIT :most)""",
        {"user_handle": handle, "kind": str(kind), "most": CHANGES_OF_A_KIND},
    )


def _replace_session(connection: Transaction, session: Session, was: bytes) -> bool:
    row = connection.execute(
        "SELECT * FROM sessions WHERE session_id = ? AND token_hash = ?", (session.session_id, was)
    ).fetchone()
    if row is None:
        return False
    connection.execute(
        """UPDATE sessions SET token_hash = :token_hash, credential_id = :credential_id, auth_time = :auth_time,
        expires_at = :expires_at, ends_at = :ends_at, refresh_hash = :refresh_hash,
        previous_refresh_hash = :previous_refresh_hash, confirmed_refresh_hash = :confirmed_refresh_hash,
        confirmed_at = :confirmed_at WHERE session_id = :session_id""",
        _session_values(session),
    )
    for spent in (row["refresh_hash"], row["previous_refresh_hash"]):
        if spent not in (None, session.refresh_hash, session.previous_refresh_hash):
            connection.execute("INSERT INTO spent_refresh_tokens VALUES (?, ?)", (spent, session.session_id))
    return True


def _session_values(session: Session) -> dict[str, Any]:
    values = {item.name: getattr(session, item.name) for item in fields(session)}
    values["client_kind"] = str(session.client_kind)
    return values


def _insert(connection: Transaction, table: str, values: dict[str, Any]) -> None:
    names, marks = ", ".join(values), ", ".join(f":{name}" for name in values)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", values)  # noqa: S608  our names


def _user_by_handle(connection: Transaction, handle: bytes) -> User | None:
    row = connection.execute("SELECT * FROM users WHERE handle = ?", (handle,)).fetchone()
    return None if row is None else _user(row)


def _credentials_of(connection: Transaction, handle: bytes) -> list[Credential]:
    rows = connection.execute(
        "SELECT * FROM credentials WHERE user_handle = ? ORDER BY created_at, credential_id", (handle,)
    ).fetchall()
    return [_credential(row) for row in rows]


def _with_sessions(connection: Transaction, user: User, now: float) -> Registered:
    rows = connection.execute(
        "SELECT * FROM sessions WHERE user_handle = ? AND ends_at > ? ORDER BY created_at DESC",
        (user.handle, now),
    ).fetchall()
    return Registered(
        user=user,
        credentials=tuple(_credentials_of(connection, user.handle)),
        sessions=tuple(_session(row) for row in rows),
    )


def _by_user(rows: list[Any], made: Callable[[Any], _Value]) -> defaultdict[bytes, list[_Value]]:
    """What is made of rows, by the user whose they are."""
    found: defaultdict[bytes, list[_Value]] = defaultdict(list)
    for row in rows:
        found[row["user_handle"]].append(made(row))
    return found


def _user(row: Any) -> User:
    return User(handle=row["handle"], name=row["name"], display_name=row["display_name"])


def _credential(row: Any) -> Credential:
    values: dict[str, Any] = dict(row)
    values["backup_eligible"] = bool(values["backup_eligible"])
    values["backed_up"] = bool(values["backed_up"])
    for name in ("discoverable", "prf"):
        values[name] = None if values[name] is None else bool(values[name])
    values["transports"] = tuple(json.loads(values["transports"]))
    return Credential(**values)


def _session(row: Any) -> Session:
    values: dict[str, Any] = dict(row)
    values["client_kind"] = ClientKind(values["client_kind"])
    return Session(**values)
