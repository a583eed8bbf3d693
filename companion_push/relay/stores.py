"""The relay's store, wherever it is."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from companion_push.relay.database import open_database, sole_user
from companion_push.relay.nodes import WakeUp
from companion_push.relay.store_migration import planned
from companion_push.relay.store_place import StorePlace
from companion_push.relay.transaction import Transaction

if TYPE_CHECKING:  # --help needs none of what that needs
    from companion_push.relay.nodes import Nodes

T = TypeVar("T")


class Store(Protocol):
    """An open store."""

    async def transact(
        self,
        work: Callable[[Transaction], T],
        *,
        committed: Callable[[T], None] = ...,
        durable: Callable[[T], bool] = ...,
    ) -> T:
        """Run `work` as one transaction, rolled back when it raises; see `Database.transact`."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether a transaction waits for a network, so that `now` has no place on the event loop."""
        ...

    def now(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` as one transaction in this thread; it may be lost until `on_disk`. `StoreBusy` where others are in its way."""
        ...

    @property
    def is_on_disk(self) -> bool:
        """Whether every commit is on the disk."""
        ...

    def on_disk(self, result: T) -> "asyncio.Future[T]":
        """Wait until every commit of before is on the disk: from now on, whenever the future is awaited. It has the result then."""
        ...

    @property
    def log_bytes(self) -> int:
        """The length of a file's write-ahead log; 0 of a database, which has its own."""
        ...

    def time_of(self, db: Transaction) -> float:
        """The time at which a transaction acts, Unix seconds: the same clock for all processes."""
        ...

    def clock(self) -> float:
        """The time by that clock, now."""
        ...

    def others_wrote(self) -> bool:
        """Whether another process has committed to a file since the last call. False of a database, where each process tells it.

        `StoreUnavailable` when the store does not answer.
        """
        ...

    def tell(self, db: Transaction, wake: WakeUp) -> None:
        """Tell the relays that serve on this store of a command's change, with its commit."""
        ...

    def leave(self) -> None:
        """Wait for no name server any more: the relay ends."""
        ...

    @property
    def nodes(self) -> "Nodes | None":
        """What the processes of one relay share here; None where it has one process."""
        ...


@contextlib.asynccontextmanager
async def open_store(
    place: StorePlace, *, alone: bool = False, serves: bool = False, migrates: bool = True
) -> AsyncIterator[Store]:
    """Open the store at `place`, and make a missing one. One of an older version is brought to the newest schema.

    serves: as a relay, of which a file has one at a time, and a database any number. alone: as a command beside which no relay
    may run. Without both: as a command beside relays, unless the store is older: a relay of that version would not start again
    then. migrates: else it is left as it is. Raises `StoreUnusable` and `StoreUnavailable`; `SetupError`
    (missing-package) for PostgreSQL without the extra ``postgres``.
    """
    if migrates and not serves:
        plan = await planned(place)
        alone = alone or bool(plan.version and plan.steps)
    if isinstance(place, Path):
        with sole_user(place) if alone or serves else contextlib.nullcontext():
            async with open_database(place, migrates=migrates) as database:
                yield database
        return
    from companion_push.relay.postgres import open_postgres  # noqa: PLC0415  it needs an extra

    async with open_postgres(place, alone=alone, serves=serves, migrates=migrates) as postgres:
        yield postgres
