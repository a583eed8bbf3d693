"""What lives minutes, in PostgreSQL: challenge records, and used proofs with the key of their nonces.

The tables are unlogged: nobody waits for a disk. A crash of the server, and a fail-over to another one, empties all of them
together; then clients begin again, as after a restart, and the new key takes no proof of before (docs/adr/0016). No row is
changed by every call, so that processes do not wait for each other.
"""

from contextlib import suppress
from dataclasses import replace
from secrets import randbits
from typing import Any, Final

import msgspec

from http_serving.proofs import MAX_IDS
from postgres_store.database import Database, Isolation
from program_parts.base64url import base64url
from relying_party.core.challenges import KINDS, MAX_RECORDS, ChallengeRecord, Purpose
from relying_party.core.proofs import Proof, Step
from relying_party.errors import CeremonyGone, ProofInvalid, StoreUnavailable, UseDpopNonce

MINUTES: Final = (
    """CREATE UNLOGGED TABLE ceremonies (
        number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, share TEXT NOT NULL,
        expires_at REAL NOT NULL, purpose TEXT NOT NULL, record BLOB NOT NULL) STRICT""",
    """CREATE UNLOGGED TABLE proof_step (
        one INTEGER UNIQUE CHECK (one = 1), number INTEGER NOT NULL, began REAL NOT NULL, key BLOB NOT NULL) STRICT""",
    "CREATE UNLOGGED TABLE used_proofs (digest BLOB PRIMARY KEY, step INTEGER NOT NULL) STRICT",
    "CREATE INDEX used_proofs_by_step ON used_proofs (step)",
)
PORTIONS: Final = (
    256  # of the most records that may be; after each of them a process looks how many there are
)
KEPT_STEPS: Final = (
    3  # of used proofs; nonces of two are taken, so none is forgotten while a transaction runs
)
FORGOTTEN: Final = 10_000  # used proofs, by one statement
ATTEMPTS: Final = 5


class PostgresChallenges:
    """A `ChallengeStore` in a database."""

    def __init__(self, database: Database, *, most: int = MAX_RECORDS) -> None:
        self._database, self._most = database, most
        self._portion = max(1, most // PORTIONS)
        self._added = 0

    async def add(self, record: ChallengeRecord, *, name: bytes, share: str, now: float) -> str:
        """Remember `record`; where there are too many, the oldest of the share that has most is forgotten.

        Each process looks now and then, so that of several each may add a portion more.
        """
        text, kept = base64url(name), msgspec.msgpack.encode(record)
        looks = self._added % self._portion == 0
        self._added += 1

        def work(db: Any) -> None:
            if looks:
                self._make_room(db, now)
            db.execute(
                "INSERT INTO ceremonies (name, share, expires_at, purpose, record) VALUES (?, ?, ?, ?, ?)",
                (text, share, record.expires_at, record.purpose, kept),
            )

        await self._database.run(work, isolation=Isolation.READ_COMMITTED)
        return text

    async def take(self, name: str, *, now: float) -> ChallengeRecord:
        """The record, which is gone afterwards; `CeremonyGone` when it already was."""

        def work(db: Any) -> Any:
            return db.execute(
                "DELETE FROM ceremonies WHERE name = ? RETURNING expires_at, purpose, record", (name,)
            ).fetchone()

        is_text = (
            name.isascii() and name.isprintable()
        )  # else it is none of ours, nor a value for the database
        row = await self._database.run(work, isolation=Isolation.READ_COMMITTED) if is_text else None
        if row is None or row["expires_at"] <= now:
            raise CeremonyGone("begin again")
        return msgspec.msgpack.decode(row["record"], type=KINDS[Purpose(row["purpose"])])

    def _make_room(self, db: Any, now: float) -> None:
        """Make room for a portion, where there is none: the oldest of the largest shares go.

        Each share is a pile with its newest record on top: those go that lie deepest.
        """
        db.execute("DELETE FROM ceremonies WHERE expires_at <= ?", (now,))
        size = db.execute("SELECT count(*) AS size FROM ceremonies").fetchone()["size"]
        if size > self._most - self._portion:
            db.execute(
                """DELETE FROM ceremonies WHERE number IN (
                    SELECT number FROM (
                        SELECT number, row_number() OVER (PARTITION BY share ORDER BY number DESC) AS depth
                        FROM ceremonies) AS piles
                    ORDER BY depth DESC, number LIMIT ?)""",
                (size - (self._most - self._portion),),
            )


class PostgresProofs:
    """A `UsedProofs` in a database.

    A process remembers the step and its key, which hold while the database has a step of that number. The first number is
    random, so that two keys do not meet at one.
    """

    def __init__(self, database: Database, *, most: int = MAX_IDS) -> None:
        """most: proofs that this process takes in one step; then the next one begins."""
        self._database, self._most = database, most
        self._step, self._key = Step(), b""

    async def take_proof(self, proof: Proof, *, now: float) -> str:
        is_known = bool(self._key) and self._step.at(now, most=self._most) is self._step
        for _ in range(ATTEMPTS):
            if not is_known:
                await self._read(now)
            step, key = self._step, self._key
            try:
                nonce = step.check(proof, key)
            except UseDpopNonce:
                if not is_known:
                    raise
            else:
                if await self._take(proof.digest, step):
                    return nonce
            is_known = False  # another process may have begun the next step
        raise StoreUnavailable("the steps of the nonces change too fast")

    async def _take(self, digest: bytes, step: Step) -> bool:
        """Use up a proof in a step; returns whether that is still the step. `ProofInvalid` for a replay."""

        def work(db: Any) -> bool:
            taken = db.execute(
                "INSERT INTO used_proofs SELECT ?, number FROM proof_step WHERE number = ? ON CONFLICT DO NOTHING",
                (digest, step.number),
            )
            if taken.rowcount:
                return True
            if db.execute("SELECT 1 FROM used_proofs WHERE digest = ?", (digest,)).fetchone():
                raise ProofInvalid("the proof was used before")
            return False

        taken = await self._database.run(work, isolation=Isolation.READ_COMMITTED)
        if taken and self._step.number == step.number:
            self._step = replace(self._step, used=self._step.used + 1)
        return taken

    async def _read(self, now: float) -> None:
        """Read the step at `now` and its key, and begin it where nobody has."""
        mine = self._step

        def known(db: Any, more: str = "") -> tuple[Step, bytes] | None:
            row = db.execute(f"SELECT number, began, key FROM proof_step{more}").fetchone()  # noqa: S608  our words
            if row is None:
                return None
            used = mine.used if row["number"] == mine.number else 0
            return Step(number=row["number"], began=row["began"], used=used), row["key"]

        def work(db: Any) -> tuple[Step, bytes, bool]:
            found = known(db)
            if found is not None and found[0].at(now, most=self._most) is found[0]:
                return *found, False
            # the key is made in the database: a value of a statement may be in its log
            db.execute(
                """INSERT INTO proof_step SELECT 1, ?, ?, uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
                WHERE NOT EXISTS (SELECT 1 FROM proof_step) ON CONFLICT DO NOTHING""",
                (randbits(48), now),
            )
            found = known(db, " FOR UPDATE")
            if found is None:
                raise StoreUnavailable("the database does not keep the step of the nonces")
            step = found[0].at(now, most=self._most)
            if step is not found[0]:
                db.execute("UPDATE proof_step SET number = ?, began = ?", (step.number, step.began))
            return step, found[1], step is not found[0]

        step, self._key, begun = await self._database.run(work, isolation=Isolation.READ_COMMITTED)
        used = self._step.used if self._step.number == step.number else 0  # others may be taken meanwhile
        self._step = replace(step, used=used)
        if begun:
            with suppress(StoreUnavailable):  # the next step tries again
                await self._forget(step.number - KEPT_STEPS)

    async def _forget(self, last: int) -> None:
        """Forget the used proofs of the steps up to `last`, in portions: no statement may take as long as for all of them."""

        def work(db: Any) -> int:
            forgotten: int = db.execute(
                "DELETE FROM used_proofs WHERE digest IN (SELECT digest FROM used_proofs WHERE step <= ? LIMIT ?)",
                (last, FORGOTTEN),
            ).rowcount
            return forgotten

        while await self._database.run(work, isolation=Isolation.READ_COMMITTED) == FORGOTTEN:
            pass
