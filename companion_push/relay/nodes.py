"""What the processes of one relay share, beside the rows of its store (docs/adr/0038): small contracts that an engine fulfils.

A store that one process uses at a time shares nothing (`Store.nodes` is None): a commit wakes who waits in the same moment, and
used proofs are in memory. Where several processes serve, each of them may be asked anything at any time, so that a change at one
wakes who waits at another, and a proof is taken once by all of them together (`companion_push.relay.proofs.UsedProofs`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from companion_push.relay.transaction import Transaction

if TYPE_CHECKING:
    from companion_push.relay.proofs import UsedProofs  # of an extra, which `--help` does without


PUSHES_LEFT: Final = (
    "pushes-left"  # the topic of pushes that nobody has under way: for whichever process hears it first
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeUp:
    """Whose held calls read again, since a transaction has changed what they wait for. It says nothing of what has changed."""

    topics: frozenset[str] = frozenset()
    members: frozenset[str] = frozenset()  # of an account that was closed or suspended

    def __bool__(self) -> bool:
        return bool(self.topics or self.members)


class WakeUps(Protocol):
    """How the processes of one relay wake each other's held calls.

    What is heard comes after its commit can be read, once or several times. What may have been missed is said (`missed`), so that
    every held call reads again.
    """

    def in_transaction(self, db: Transaction, wake: WakeUp) -> None:
        """Tell the other processes with the commit, and nothing when there is none. It is called at the end of a transaction,
        which may run again.
        """
        ...

    def committed(self, wake: WakeUp) -> None:
        """Tell the other processes now, where `in_transaction` could not; on the event loop, after the commit. It must not wait."""
        ...

    def hear_ours(self) -> None:
        """Hear for a while what this process itself tells, too: one of its transactions may commit without its knowledge."""
        ...

    @property
    def are_heard(self) -> bool:
        """Whether this process hears at the moment what others tell."""
        ...

    def follow(
        self, woken: Callable[[WakeUp], None], missed: Callable[[], None], gone: Callable[[], None]
    ) -> None:
        """Call `woken` with what other processes tell, `missed` when something may have been lost, and `gone` when another process
        has ended without a goodbye (`leave`); all on the event loop.

        It is called once, before anybody is served.
        """
        ...

    async def leave(self) -> None:
        """Say goodbye to the other processes: this one ends, and has told all that it has changed. `StoreUnavailable` where it cannot."""
        ...


class Nodes(Protocol):
    """What the processes of one relay share."""

    @property
    def used_proofs(self) -> "UsedProofs": ...

    @property
    def wake_ups(self) -> WakeUps: ...
