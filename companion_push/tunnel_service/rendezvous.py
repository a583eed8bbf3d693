"""The rendezvous of a tunnel's two ends, with its limits. Pure: time is passed in.

An authenticator opens a tunnel under a tunnel ID and gets a routing ID for it. The client that names both IDs joins
it, once. A tunnel has exactly two ends, a deadline, and a budget of messages and bytes. This module sees the size of a
message and never its bytes.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from companion_push.serving.bounds import check_bounds
from companion_push.tunnel_service.buckets import Buckets
from http_serving.addresses import neighbourhood


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one tunnel, one address and the whole service may use.

    A setting that cannot be is a `UsageError` with its name.
    """

    waiting: float = 180  # seconds until the second end has joined
    life: float = 600  # seconds from opening to the end, whatever happens
    message_size: int = 1 << 16  # clients send less than that
    messages: int = 256  # from one end, while the tunnel lives
    size: int = 4 << 20  # bytes from one end, over the whole life
    early_messages: int = 16  # that wait for the second end
    early_size: int = 1 << 16  # their bytes
    in_flight: int = (
        1 << 17
    )  # bytes of one tunnel that one end has sent and the other has not taken, in both directions
    in_flight_of_all: int = 32 << 20  # the same of all tunnels together, parts of messages too
    silence: float = (
        20  # seconds without a message after which an end is pinged; it has half as many to answer
    )
    controls: int = 1024  # pings and unasked pongs from one end, over the whole life
    tunnels: int = 960  # two connections each: some of those that a server has are left
    tunnels_per_address: int = 256
    rate: float = 600  # token bucket: arrivals a minute from one address, and the size of a burst

    def __post_init__(self) -> None:
        check_bounds(self, "waiting", "life", "silence", "rate", lowest=0, whole=False)
        check_bounds(self, "message_size", "messages", "size", "early_messages", "early_size", lowest=1)
        check_bounds(self, "in_flight", "in_flight_of_all", lowest=1)
        check_bounds(self, "controls", lowest=0)
        check_bounds(self, "tunnels", "tunnels_per_address", lowest=1)


class TunnelRefusal(Enum):
    """Why the tunnel service lets a connection neither open nor join a tunnel."""

    TOO_OFTEN = "too many arrivals from this address"
    FULL = "no room for another tunnel"
    STOPPING = "the service stops"
    TAKEN = "this tunnel exists already"
    UNKNOWN = "no such tunnel"
    ELSEWHERE = "a tunnel of another node"
    GONE = "this contact ID is not known, and will not be"
    UNREACHABLE = "the phone cannot be reached now"
    CONTACTED_TOO_OFTEN = "too many requests for this contact ID"
    TOO_MANY_PHONES = "too many phones"


class Breach(Enum):
    """Which limit a message exceeds."""

    TOO_LONG = "message too long"
    TOO_MANY = "too many messages"
    TOO_MUCH = "too many bytes"
    TOO_BUSY = "too many pings and pongs"
    TOO_EARLY = "too much before the other end has joined"
    TOO_MUCH_AT_ONCE = "too much at once"


class End(IntEnum):
    """The two ends, in the order of their arrival."""

    FIRST = 0
    SECOND = 1


@dataclass(slots=True, kw_only=True, eq=False)
class Tunnel:
    """One tunnel and what has been used of its budget."""

    tunnel_id: bytes = field(repr=False)  # 16 bytes
    routing_id: bytes  # 3 bytes
    neighbourhood: str
    opened: float
    limits: Limits = field(repr=False)
    joined: bool = False
    messages: list[int] = field(default_factory=lambda: [0, 0])
    sizes: list[int] = field(default_factory=lambda: [0, 0])
    controls: list[int] = field(default_factory=lambda: [0, 0])
    held: int = 0  # bytes in flight, of messages
    unread: int = 0  # bytes that have come and are no whole message yet, or wait their turn
    ended: bool = False  # nothing of it counts any more

    @property
    def deadline(self) -> float:
        """When the tunnel ends at the latest, by the caller's clock. Joining moves it."""
        life = self.limits.life if self.joined else min(self.limits.waiting, self.limits.life)
        return self.opened + life

    def carry(self, sender: End, size: int) -> Breach | None:
        """Charge the sender for a message of `size` bytes; a `Breach` when it must not be carried."""
        if size > self.limits.message_size:
            return Breach.TOO_LONG
        messages, total = self.messages[sender] + 1, self.sizes[sender] + size
        if messages > self.limits.messages:
            return Breach.TOO_MANY
        if total > self.limits.size:
            return Breach.TOO_MUCH
        if not self.joined and (messages > self.limits.early_messages or total > self.limits.early_size):
            return Breach.TOO_EARLY
        if self.held + size > self.limits.in_flight:
            return Breach.TOO_MUCH_AT_ONCE
        self.messages[sender], self.sizes[sender] = messages, total
        return None

    def control(self, sender: End) -> Breach | None:
        """Charge the sender for a ping or a pong; a `Breach` when that was one too many."""
        self.controls[sender] += 1
        asked = self.limits.life / self.limits.silence  # pongs at the most
        return Breach.TOO_BUSY if self.controls[sender] > self.limits.controls + asked else None


class Rendezvous:
    """All tunnels of one service."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._tunnels: dict[bytes, Tunnel] = {}
        self._arrivals = Buckets(limits.rate, 60)
        self.in_flight = 0  # bytes, of all tunnels
        self.evicted: list[Tunnel] = []  # those whose ends must be told

    def __len__(self) -> int:
        return len(self._tunnels)

    def arrive(self, address: str, *, now: float) -> TunnelRefusal | None:
        """Take a token of the address's bucket; refuse where none is left."""
        allowed = self._arrivals.take(neighbourhood(address), now=now)
        return None if allowed else TunnelRefusal.TOO_OFTEN

    def turn_back(self, address: str) -> None:
        """Give back the token of an arrival that is going to be repeated."""
        self._arrivals.give_back(neighbourhood(address))

    def open(
        self, tunnel_id: bytes, *, routing_id: bytes, address: str, now: float
    ) -> Tunnel | TunnelRefusal:
        """Open a tunnel for the first end, or refuse. The caller must `end` it.

        At a cap a tunnel that waits for its second end is evicted (`evicted`): of the same address at that address' cap, else of
        the address that has most; there the one that has waited longest. A tunnel that has both ends stays.
        """
        if self._alive(tunnel_id, now) is not None:
            return TunnelRefusal.TAKEN
        place = neighbourhood(address)
        counts: Counter[str] = Counter()
        longest_waiting: dict[str, Tunnel] = {}  # for the second end, of each address that has any
        for tunnel in self._tunnels.values():  # the oldest first
            counts[tunnel.neighbourhood] += 1
            if not tunnel.joined:
                longest_waiting.setdefault(tunnel.neighbourhood, tunnel)
        alone = counts[place] >= self._limits.tunnels_per_address
        if alone or len(self._tunnels) >= self._limits.tunnels:
            places = [place] if alone else [each for each, _ in counts.most_common()]
            evicted = next((longest_waiting[each] for each in places if each in longest_waiting), None)
            if evicted is None:
                return TunnelRefusal.FULL
            self.end(evicted)
            self.evicted.append(evicted)
        tunnel = Tunnel(
            tunnel_id=tunnel_id, routing_id=routing_id, neighbourhood=place, opened=now, limits=self._limits
        )
        self._tunnels[tunnel_id] = tunnel
        return tunnel

    def has_room(self) -> bool:
        """Whether another tunnel may be opened, of an address that has few; at the cap in the place of one that waits."""
        full = len(self._tunnels) >= self._limits.tunnels
        return not full or not all(tunnel.joined for tunnel in self._tunnels.values())

    def join(self, routing_id: bytes, tunnel_id: bytes, *, now: float) -> Tunnel | TunnelRefusal:
        """Join the second end to its tunnel. A tunnel that ended, is taken or never was gives the same refusal."""
        tunnel = self._alive(tunnel_id, now)
        if tunnel is None or tunnel.joined or tunnel.routing_id != routing_id:
            return TunnelRefusal.UNKNOWN
        tunnel.joined = True
        return tunnel

    def hold(self, tunnel: Tunnel, size: int) -> None:
        """Count the bytes of a message that is in flight from now on.

        When all tunnels together hold too much, one is evicted: of the address that holds most, the one that holds most.
        """
        if not tunnel.ended:
            tunnel.held += size
            self._count(size)

    def wait(self, tunnel: Tunnel, more: int) -> None:
        """Count so many more bytes as unread, or fewer; a tunnel may be evicted for them as for a message (`hold`)."""
        if not tunnel.ended:
            tunnel.unread += more
            self._count(more)

    def let_go(self, tunnel: Tunnel, size: int) -> None:
        """Count the bytes of a message that its receiver has taken."""
        if tunnel.ended:
            return
        tunnel.held -= size
        self.in_flight -= size

    def end(self, tunnel: Tunnel) -> None:
        """Remove a tunnel. Its ID may be used again, and what it holds counts no more."""
        if tunnel.ended:
            return
        del self._tunnels[tunnel.tunnel_id]
        self.in_flight -= tunnel.held + tunnel.unread
        tunnel.ended = True

    def _count(self, more: int) -> None:
        self.in_flight += more
        if self.in_flight > self._limits.in_flight_of_all:
            by_address: Counter[str] = Counter()
            for each in self._tunnels.values():
                by_address[each.neighbourhood] += each.held + each.unread
            ((busiest, _),) = by_address.most_common(1)
            evicted = max(
                (each for each in self._tunnels.values() if each.neighbourhood == busiest),
                key=lambda each: each.held + each.unread,
            )
            self.end(evicted)
            self.evicted.append(evicted)

    def _alive(self, tunnel_id: bytes, now: float) -> Tunnel | None:
        tunnel = self._tunnels.get(tunnel_id)
        if tunnel is not None and now >= tunnel.deadline:
            self.end(tunnel)
            return None
        return tunnel
