"""What the workers of one program share for as long as it runs: challenge records and used proofs, in two small SQLite files.

Strangers begin ceremonies, and every request of a device has a proof, so that nothing here waits for a disk
(``synchronous=OFF``). A killed process loses nothing, and a power cut loses all: then clients begin again, as after a restart. The
bounds are those of `Challenges` and `ProofsInMemory`.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from secrets import token_bytes
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from program_parts.base64url import base64url
from relying_party.core.challenges import KINDS, MAX_RECORDS, ChallengeRecord, Purpose
from relying_party.core.proofs import Proof
from relying_party.errors import CeremonyGone, UseDpopNonce
from relying_party.store.sql import USED_PROOFS
from relying_party.store.sqlite import Worker, all_or_nothing, taken_proof

CEREMONIES: Final = (
    """CREATE TABLE ceremonies (
        number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, share TEXT NOT NULL,
        expires_at REAL NOT NULL, purpose TEXT NOT NULL, record BLOB NOT NULL) STRICT""",
    "CREATE INDEX ceremonies_of_share ON ceremonies (share, number)",
    # the size of each share and since which change it has it, and the size of all: no call counts rows
    "CREATE TABLE shares (share TEXT PRIMARY KEY, size INTEGER NOT NULL, since INTEGER NOT NULL) STRICT",
    "CREATE INDEX shares_by_size ON shares (size DESC, since)",
    """CREATE TABLE total (
        one INTEGER PRIMARY KEY CHECK (one = 1), size INTEGER NOT NULL, changes INTEGER NOT NULL) STRICT""",
    "INSERT INTO total VALUES (1, 0, 0)",
    """CREATE TRIGGER added AFTER INSERT ON ceremonies BEGIN
        UPDATE total SET size = size + 1, changes = changes + 1;
        INSERT INTO shares SELECT new.share, 1, changes FROM total WHERE true
            ON CONFLICT (share) DO UPDATE SET size = size + 1, since = excluded.since;
    END""",
    """CREATE TRIGGER removed AFTER DELETE ON ceremonies BEGIN
        UPDATE total SET size = size - 1, changes = changes + 1;
        UPDATE shares SET size = size - 1, since = (SELECT changes FROM total) WHERE share = old.share;
        DELETE FROM shares WHERE share = old.share AND size = 0;
    END""",
)


class _SharedFile:
    """A file of mode 0600 that several processes use; an async context manager that opens and closes it."""

    def __init__(self, path: Path, name: str, schema: Sequence[str]) -> None:
        self._worker, self._schema = Worker(path, name, check=lambda: None), schema

    async def __aenter__(self) -> Self:
        try:
            await self._worker.open(self._prepare)
        except BaseException:
            await self._worker.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._worker.close()

    def _prepare(self, connection: sqlite3.Connection, _: Path) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")
        with all_or_nothing(connection, "IMMEDIATE"):
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                for statement in self._schema:
                    connection.execute(statement)


class SharedChallenges(_SharedFile):
    """A `ChallengeStore` in a file."""

    def __init__(self, path: Path, *, most: int = MAX_RECORDS) -> None:
        super().__init__(path, "ceremonies", CEREMONIES)
        self._most = most

    async def add(self, record: ChallengeRecord, *, name: bytes, share: str, now: float) -> str:
        """Remember `record`; where there are too many, the oldest of the share that has most is forgotten."""
        text, kept = base64url(name), msgspec.msgpack.encode(record)

        def work(connection: sqlite3.Connection) -> None:
            # two of the oldest, if they have expired: each call cleans up more than it adds
            connection.execute(
                """DELETE FROM ceremonies WHERE expires_at <= ? AND number IN (
                    SELECT number FROM ceremonies ORDER BY number LIMIT 2)""",
                (now,),
            )
            if connection.execute("SELECT size FROM total").fetchone()[0] >= self._most:
                connection.execute(
                    """DELETE FROM ceremonies WHERE number = (
                        SELECT min(number) FROM ceremonies WHERE share = (
                            SELECT share FROM shares ORDER BY size DESC, since LIMIT 1))"""
                )
            connection.execute(
                "INSERT INTO ceremonies (name, share, expires_at, purpose, record) VALUES (?, ?, ?, ?, ?)",
                (text, share, record.expires_at, record.purpose, kept),
            )

        await self._worker.transaction("IMMEDIATE", work)
        return text

    async def take(self, name: str, *, now: float) -> ChallengeRecord:
        """The record, which is gone afterwards; `CeremonyGone` when it already was."""

        def work(connection: sqlite3.Connection) -> Any:
            return connection.execute(
                "DELETE FROM ceremonies WHERE name = ? RETURNING expires_at, purpose, record", (name,)
            ).fetchone()

        row = await self._worker.transaction("IMMEDIATE", work) if name.isascii() else None
        if row is None or row["expires_at"] <= now:
            raise CeremonyGone("begin again")
        return msgspec.msgpack.decode(row["record"], type=KINDS[Purpose(row["purpose"])])


class SharedProofs(_SharedFile):
    """A `UsedProofs` in a file, with the key of its nonces: both live equally long (docs/adr/0016)."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path, "proofs", (*USED_PROOFS, "CREATE TABLE nonce_key (value BLOB NOT NULL) STRICT")
        )

    async def take_proof(self, proof: Proof, *, now: float) -> str:
        def work(connection: sqlite3.Connection) -> str | UseDpopNonce:
            row = connection.execute("SELECT value FROM nonce_key").fetchone()
            key = token_bytes(32) if row is None else bytes(row["value"])
            if row is None:
                connection.execute("INSERT INTO nonce_key VALUES (?)", (key,))
            return taken_proof(connection, proof, key, now)

        outcome = await self._worker.transaction("IMMEDIATE", work)
        if isinstance(outcome, UseDpopNonce):
            raise outcome
        return outcome
