"""The connections of a server: a deadline for each of their phases, a cap for each address, and a cap for all.

A connection is *in use* while the application answers a request on it: a held call is in use, and so is a websocket. Every
other one is idle, from its first byte on: a TLS handshake, an unfinished head, the time between two requests. Where a cap is
reached, the connection that has been idle longest is closed, of the address that has most; so nobody is refused because
of strangers, unless all connections are in use. An IPv6 /64 network counts as one address.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from http_serving.addresses import Network, is_in, neighbourhood
from http_serving.log_limit import LogLimit

CONNECTIONS: Final = 2048  # over TLS each takes about 0.3 MiB
CONNECTIONS_PER_ADDRESS: Final = 512
IDLE_SECONDS: Final = 75.0
HEAD_SECONDS: Final = 10.0  # for a TLS handshake, and then for a request's head, from its first byte
MAX_CONNECTIONS: Final = 1_000_000
MAX_SECONDS: Final = 86_400

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What the connections of one server, and of one address, may use. `ValueError` names a setting that cannot be."""

    total: int = CONNECTIONS
    per_address: int = CONNECTIONS_PER_ADDRESS
    head: float = HEAD_SECONDS  # seconds
    idle: float = (
        IDLE_SECONDS  # seconds from an answer to the end of the next head; the answer is sent by then too
    )

    def __post_init__(self) -> None:
        for name, kind, highest in (
            ("total", int, MAX_CONNECTIONS),
            ("per_address", int, MAX_CONNECTIONS),
            ("head", int | float, MAX_SECONDS),
            ("idle", int | float, MAX_SECONDS),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value <= highest:
                what = "a whole number" if kind is int else "a number"
                raise ValueError(f"{name}: expected {what} above 0, and at most {highest}")


@dataclass(slots=True, kw_only=True, eq=False)
class Slot:
    """The place of one connection among all."""

    address: str | None  # the neighbourhood; None for a trusted proxy, whose clients are counted by request
    end: Callable[[], object] = field(repr=False)  # closes the connection at once
    in_use: bool = False


class Connections:
    """All connections of one server. It keeps no time."""

    def __init__(
        self,
        limits: ConnectionLimits,
        *,
        trusted_proxies: Sequence[Network] = (),
        closed: Callable[[str], None] = lambda _: None,
    ) -> None:
        """closed: is told why a connection was closed or refused, in one of a few words."""
        self.limits, self.closed = limits, closed
        self._proxies = trusted_proxies
        self._slots: dict[str | None, dict[Slot, None]] = {}  # by address; the longest idle first
        self._requests: dict[str, int] = {}  # those behind proxies
        self._number = 0

    def __len__(self) -> int:
        return self._number

    def admit(self, address: str, end: Callable[[], object] = lambda: None) -> Slot | None:
        """Give a new connection its slot, in the place of another one at a cap; None when it must be closed.

        end: closes the connection at once; it may be set later. The caller must `release` the slot.
        """
        place = None if is_in(address, self._proxies) else neighbourhood(address)
        if place is not None and len(self._slots.get(place, ())) >= self.limits.per_address:
            allowed = self._evict(place)
        else:
            allowed = self._number < self.limits.total or self.evict()
        if not allowed:
            self._tell("refused", "connections are refused: as many as may be are in use")
            return None
        slot = Slot(address=place, end=end)
        self._slots.setdefault(place, {})[slot] = None
        self._number += 1
        return slot

    def release(self, slot: Slot) -> None:
        """Take a connection that is closed out of the books. A second time does nothing."""
        slots = self._slots.get(slot.address, {})
        if slot in slots:
            del slots[slot]
            self._number -= 1
            if not slots:
                del self._slots[slot.address]

    def use(self, slot: Slot, *, in_use: bool) -> None:
        """Note that a request begins on a connection, or has been answered."""
        slot.in_use = in_use
        slots = self._slots.get(slot.address, {})
        if slot in slots:
            del slots[slot]
            slots[slot] = None  # at the end: idle for the shortest time

    def evict(self) -> bool:
        """Close the connection that has been idle longest, of the address that has most; False when none is idle."""
        return any(self._evict(place) for place in sorted(self._slots, key=self._size, reverse=True))

    def begin_request(self, slot: Slot, client: str) -> bool:
        """Count a request that a proxy passes on for the address `client`, until `end_request`; False, and it is not counted, when
        that address has too many.
        """
        if slot.address is not None:
            return True
        place = neighbourhood(client)
        number = self._requests.get(place, 0)
        if number >= self.limits.per_address:
            self._tell("refused", "requests behind a proxy are refused: their address has as many as may be")
            return False
        self._requests[place] = number + 1
        return True

    def end_request(self, slot: Slot, client: str) -> None:
        """Count a request no more for which `begin_request` was True."""
        if slot.address is not None:
            return
        place = neighbourhood(client)
        self._requests[place] -= 1
        if not self._requests[place]:
            del self._requests[place]

    def _size(self, place: str | None) -> int:
        return -1 if place is None else len(self._slots[place])  # a proxy's are closed last

    def _evict(self, place: str | None) -> bool:
        oldest = next((slot for slot in self._slots.get(place, ()) if not slot.in_use), None)
        if oldest is None:
            return False
        self._tell("evicted", "idle connections are closed for new ones: there are as many as may be")
        self.release(oldest)
        oldest.end()
        return True

    def _tell(self, kind: str, line: str) -> None:
        self.closed(kind)
        if _limit.allows(line):
            logger.warning("%s", line)


def _left_out(what: str, count: int) -> None:
    logger.warning("%d more times within a minute %s", count, what.partition(":")[0])


_limit: Final = LogLimit(tell=_left_out, most=1)


def tell_the_rest() -> None:
    """Log at once how many lines were left out, as when the program ends."""
    _limit.end()
