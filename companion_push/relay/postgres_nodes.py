"""What the processes of one relay share in PostgreSQL: wake-ups by NOTIFY, and the used proofs in tables (docs/adr/0038).

Each process LISTENs on one connection of its own, which goes to the server itself: behind a pooler in transaction mode nobody
hears anything. Used proofs and nonces are in unlogged tables, which a crash of the server empties together.
"""

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import psycopg

from companion_push.errors import StoreUnavailable, StoreUnusable
from companion_push.relay.nodes import WakeUp
from companion_push.relay.problems import Problem, Slug
from companion_push.relay.proofs import STEP, Proof
from companion_push.relay.transaction import Transaction
from headless_passkey.process.tasks import end, to_its_end
from http_serving.proofs import MAX_IDS
from program_parts.base64url import base64url

if TYPE_CHECKING:
    from companion_push.relay.postgres import PostgresStore

CHANNEL: Final = "companion_push_relay"
MAX_PAYLOAD: Final = 7900  # bytes; the server takes less than 8000
BEAT_SECONDS: Final = 5.0  # between two looks whether the listening connection is alive, and for the answer
UNKNOWN_SECONDS: Final = 60.0  # in which a commit may still be done whose connection was lost
_PAUSES: Final = (0.2, 0.5, 1.0)  # seconds before each try to listen again; the last one again and again
_KEPT_STEPS: Final = (
    3  # whose ids are kept: of the two that are taken, and of one that a slow statement may still see
)
_REFRESH_SECONDS: Final = 1.0  # between two looks at the nonces because of one that is not known
_PORTION: Final = 10_000  # ids that one statement deletes
_STEPPING: Final = 0x68704B32_73746570  # "hpK2step": the advisory lock of the process that begins a step
_TOPIC, _MEMBER, _LEAVES = "topic ", "member ", "leaves "
# of the listening connection: the server notices that a relay's machine has vanished, which says nothing, and ends its session
_KEEPALIVES: Final = ", ".join(
    f"set_config('{name}', '{value}', false)"
    for name, value in (
        ("tcp_keepalives_idle", "5"),
        ("tcp_keepalives_interval", "2"),
        ("tcp_keepalives_count", "3"),
        ("tcp_user_timeout", "10000"),
    )
)

logger = logging.getLogger(__name__)


class PostgresWakeUps:
    """Wake-ups by NOTIFY, which the server hands on with the commit."""

    def __init__(self, store: "PostgresStore") -> None:
        self._store = store
        self._name = secrets.token_urlsafe(6)  # of this process, which needs not to hear itself
        self._hears_ours_until = 0.0  # by the monotonic clock
        self._woken: Callable[[WakeUp], None] = lambda _: None
        self._missed: Callable[[], None] = lambda: None
        self._gone: Callable[[], None] = lambda: None
        self._relays: frozenset[str] = frozenset()  # those that listened at the last look, by their sessions
        self._leaving: set[str] = (
            set()
        )  # those of them that have said goodbye, and what others have said in that form
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self.are_heard = False

    def in_transaction(self, db: Transaction, wake: WakeUp) -> None:
        notify(db, self._name, wake)

    def committed(self, wake: WakeUp) -> None:
        """The server has told it with the commit."""

    def hear_ours(self) -> None:
        self._hears_ours_until = monotonic() + UNKNOWN_SECONDS

    def follow(
        self, woken: Callable[[WakeUp], None], missed: Callable[[], None], gone: Callable[[], None]
    ) -> None:
        self._woken, self._missed, self._gone = woken, missed, gone

    async def leave(self) -> None:
        if self._connection is not None:
            payload = f"{self._name}\n{_LEAVES}{self._connection.info.backend_pid}"
            await self._store.one("SELECT pg_notify(?, ?)", (CHANNEL, payload))

    async def begin(self, place: str) -> None:
        """Begin to listen at `PostgresStore.listening_place`, as one of the relays that use the database.

        Raises `StoreUnavailable`, `StoreBusy` where a command has the database alone, and `StoreUnusable` where nothing is heard.
        """
        await self.close()
        self._connection = connection = await self._store.listening_connection(place)
        try:
            await connection.execute(f"SELECT {_KEEPALIVES}".encode())
            await self._store.share(connection)
            await connection.execute(f"LISTEN {CHANNEL}".encode())
            await self._check(connection)
            self._relays, self._leaving = await self._store.sharing(connection), set()
        except psycopg.Error as error:
            raise StoreUnavailable("the database cannot be listened to") from error
        self.are_heard = True

    async def _check(self, connection: "psycopg.AsyncConnection[Any]") -> None:
        """See that what a transaction tells is heard on this connection."""
        payload = secrets.token_urlsafe(9)  # as from a process that tells nothing
        await self._store.one("SELECT pg_notify(?, ?)", (CHANNEL, payload))
        async for heard in connection.notifies(timeout=BEAT_SECONDS):
            if heard.payload == payload:
                return
            self._hear(heard.payload)
        error = StoreUnusable(
            "the database's notifications do not arrive on the connection that listens for them"
        )
        error.advice = "a pooler in transaction mode is between: name the server itself with --store-direct"
        raise error

    async def listen(self) -> None:
        """Hear what others tell, for ever. After a lost connection everything counts as changed."""
        while True:
            try:
                await self._hear_on()
            except (psycopg.Error, OSError) as error:  # TimeoutError is an OSError
                logger.warning("the database is not listened to any more: %s", type(error).__name__)
            await self.close()
            await self._begin_again()
            logger.warning("the database is listened to again")
            self._missed()

    async def _hear_on(self) -> None:
        connection = self._connection
        assert connection is not None  # noqa: S101  for mypy
        while True:
            async for heard in connection.notifies(timeout=BEAT_SECONDS):
                self._hear(heard.payload)
            async with asyncio.timeout(BEAT_SECONDS):  # a peer that is gone says nothing
                # psycopg cancels a statement that runs by asking the server: one that is nearly done is waited for
                relays = await to_its_end(self._store.sharing(connection), seconds=1.0)
            async for heard in connection.notifies(timeout=0):  # a goodbye comes before its relay is gone
                self._hear(heard.payload)
            self._see(relays)

    def _see(self, relays: frozenset[str]) -> None:
        """See which relays listen now. One that is gone without a goodbye may have changed something that it could not tell any more."""
        if self._relays - relays - self._leaving:
            logger.warning("another relay has ended without a goodbye")
            self._gone()
        self._relays = relays
        self._leaving &= relays

    async def _begin_again(self) -> None:
        pauses = iter(_PAUSES)
        while True:
            await asyncio.sleep(next(pauses, _PAUSES[-1]))
            with contextlib.suppress(StoreUnavailable, StoreUnusable):
                place = await self._store.listening_place()  # which the relay's end does not wait for
                return await to_its_end(self.begin(place), seconds=2 * BEAT_SECONDS)  # as above

    async def close(self) -> None:
        """Hear nothing more."""
        self.are_heard = False
        if self._connection is not None:
            await self._connection.close()

    def _hear(self, payload: str) -> None:
        teller, *lines = payload.split("\n")
        self._leaving.update(line.removeprefix(_LEAVES) for line in lines if line.startswith(_LEAVES))
        if teller != self._name or monotonic() < self._hears_ours_until:
            topics, members = (
                frozenset(line.removeprefix(kind) for line in lines if line.startswith(kind))
                for kind in (_TOPIC, _MEMBER)
            )
            self._woken(WakeUp(topics=topics, members=members))


def notify(db: Transaction, teller: str, wake: WakeUp) -> None:
    """Tell all processes but `teller` of a wake-up, with the commit of this transaction."""
    db.executemany("SELECT pg_notify(?, ?)", [(CHANNEL, payload) for payload in payloads(teller, wake)])


def payloads(teller: str, wake: WakeUp) -> Iterator[str]:
    """What tells a wake-up, in payloads that the server takes. teller: the process' name."""
    lines = [_TOPIC + topic for topic in sorted(wake.topics)] + [
        _MEMBER + name for name in sorted(wake.members)
    ]
    payload = teller
    for line in lines:
        if len(payload) + 1 + len(line) > MAX_PAYLOAD:
            yield payload
            payload = teller
        payload += "\n" + line
    yield payload


class PostgresProofs:
    """The used proofs of all processes, in the database: a `UsedProofs`.

    A nonce is random, and a row of its own. A proof is taken by one statement, which sees to it that the nonce is still taken:
    so the memory of nonces and proofs is one, whatever a process keeps in mind. Steps are counted, as in `ProofsInMemory`, and
    timed by the server's clock alone.
    """

    def __init__(self, store: "PostgresStore", *, most: int = MAX_IDS) -> None:
        """most: ids that this process takes in one step. When there are more, the next step begins."""
        self._store, self._most = store, most
        self._nonces: tuple[str, ...] = ()  # that are taken, the newest first
        self._due_at = 0.0  # by the monotonic clock: when the next step may begin
        self._looked_at = -_REFRESH_SECONDS
        self._counts = [0, 0]  # proofs that this process has taken in this step and in the one before
        self._looking: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return sum(self._counts)

    def nonce(self, now: float) -> str:  # noqa: ARG002  the server's clock counts
        return self._nonces[0] if self._nonces else ""

    def check_nonce(self, given: str | None, now: float) -> Awaitable[None] | None:  # noqa: ARG002
        return None if given in self._nonces and not self._is_due() else self._check(given)

    def _is_due(self) -> bool:
        return monotonic() >= self._due_at or self._counts[0] >= self._most

    async def _check(self, given: str | None) -> None:
        if self._is_due() or monotonic() >= self._looked_at + _REFRESH_SECONDS:
            await self.look()
        if given not in self._nonces:
            raise Problem(Slug.USE_DPOP_NONCE)

    async def look(self) -> None:
        """Read the nonces that are taken, and begin the next step when it is time; once for all who ask meanwhile."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look())
        await asyncio.shield(self._looking)

    async def _look(self) -> None:
        newest = self._nonces[0] if self._nonces else None
        spent = newest if self._counts[0] >= self._most else None
        nonces, age = await self._newest(spent)
        self._nonces, self._looked_at = nonces, monotonic()
        self._due_at = self._looked_at + STEP - age
        if nonces[0] != newest:
            self._counts = [0, self._counts[0]]

    async def _newest(self, spent: str | None) -> tuple[tuple[str, ...], float]:
        """The nonces that are taken, and the age of the newest in seconds. spent: one that must not be the newest."""
        found = await self._store.one(_NEWEST)
        if not found or abs(found[0][1]) >= STEP or found[0][0] == spent:
            await self._store.one(_BEGIN_STEP, (_STEPPING, base64url(secrets.token_bytes(16)), spent or ""))
            found = await self._store.one(_NEWEST)
            await self._forget()
        return tuple(nonce for nonce, age in found if abs(age) < 2 * STEP), abs(found[0][1])

    async def _forget(self) -> None:
        """Delete the ids of steps that are over."""
        while len(await self._store.one(_FORGET, (_PORTION,))) == _PORTION:
            pass

    async def take(self, proof: Proof, now: float) -> None:  # noqa: ARG002  as above
        used = hashlib.sha256(f"{proof.name} {proof.jti}".encode()).digest()[:16]
        values = (used, secrets.token_bytes(8), proof.nonce or "")
        if await self._store.one(_TAKE, values):
            self._counts[0] += 1
            return
        await self.look()
        if proof.nonce in self._nonces:
            raise Problem(Slug.PROOF_INVALID, "the proof has been used before")
        raise Problem(Slug.USE_DPOP_NONCE)


class PostgresNodes:
    """What the processes of one relay share in PostgreSQL."""

    def __init__(self, store: "PostgresStore") -> None:
        self._store = store
        self.wake_ups = PostgresWakeUps(store)
        self.used_proofs = PostgresProofs(store)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Listen, and know the nonces."""
        try:
            await self.wake_ups.begin(await self._store.listening_place())
            listening = asyncio.create_task(self.wake_ups.listen())
            try:
                await self.used_proofs.look()
                yield
            finally:
                await end(listening)
        finally:
            await self.wake_ups.close()


# nothing of these comes from outside
_NOW: Final = "extract(epoch FROM clock_timestamp())::float8"
_NEWEST: Final = f"SELECT nonce, {_NOW} - began FROM proof_nonces ORDER BY step DESC LIMIT 2"  # noqa: S608
# of those who want to begin a step one does: the others find that it has begun. Values: the lock, the nonce, and one that is spent
_BEGIN_STEP: Final = f"""
    SELECT pg_advisory_xact_lock(?);
    INSERT INTO proof_nonces (step, nonce, began) SELECT coalesce(max(step), 0) + 1, ?, {_NOW} FROM proof_nonces
        HAVING NOT EXISTS (
            SELECT 1 FROM proof_nonces WHERE step = (SELECT max(step) FROM proof_nonces)
            AND abs({_NOW} - began) < {STEP} AND nonce <> ?);
    DELETE FROM proof_nonces WHERE step <= (SELECT max(step) - {_KEPT_STEPS} FROM proof_nonces)
"""  # noqa: S608
_FORGET: Final = """
    DELETE FROM used_proofs WHERE (step, id) IN (
        SELECT step, id FROM used_proofs WHERE step < (SELECT min(step) FROM proof_nonces) LIMIT ?)
    RETURNING 1
"""
# values: the id, the taker, the nonce
_TAKE: Final = f"""
    INSERT INTO used_proofs (step, id, taker)
        SELECT step, ?, ? FROM proof_nonces
        WHERE nonce = ? AND step > (SELECT max(step) - 2 FROM proof_nonces) AND abs({_NOW} - began) < {2 * STEP}
    ON CONFLICT (step, id) DO UPDATE SET taker = excluded.taker WHERE used_proofs.taker = excluded.taker
    RETURNING step
"""  # noqa: S608
