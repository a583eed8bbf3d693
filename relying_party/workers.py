"""What a worker of a relying party is told by the process that starts it (``--workers``; docs/adr/0036)."""

from dataclasses import dataclass
from typing import ClassVar

from server_workers import workers


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver(workers.HandOver):
    """What a worker is told by the process that starts it."""

    program: ClassVar[str] = "relying_party"

    folder: str  # of the files that the workers share
    store: str  # the file that the first process has locked, or a database
    shared_store: bool  # whether used proofs are in it
