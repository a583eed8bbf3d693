"""One tunnel with its connections: each binary message is carried to the other end, within the tunnel's budget.

Back-pressure: an end is read from only while the other one takes what it is sent. What the first end says before the second one
is there waits for it. There is no task: a message is carried within the call that brought it.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import WSCloseCode

from companion_push.tunnel_service.rendezvous import Breach, End, Tunnel
from companion_push.tunnel_service.websocket import Opcode, Websocket
from headless_passkey.hybrid.tunnel_url import CONNECT_SIGNAL, SILENT, CloseReason

# seconds an end may leave a message unread, and never more than `Limits.silence`: during back-pressure the service reads
# nothing from the sender, its pongs included
SEND_TIMEOUT: Final = 20.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Why a tunnel ended, and what each end is told."""

    why: str
    first: tuple[int, str]  # a close code, and a reason: a `CloseReason` with 1001, else none
    second: tuple[int, str]

    @classmethod
    def of_both(cls, why: str, code: int, reason: str = "") -> "Ending":
        return cls(why=why, first=(code, reason), second=(code, reason))

    @classmethod
    def of_one(cls, end: End, why: str, told: tuple[int, str], other: tuple[int, str]) -> "Ending":
        """told: what the end is told to which it is due; other: what the other one is told."""
        first, second = (told, other) if end is End.FIRST else (other, told)
        return cls(why=why, first=first, second=second)


class OpenTunnel:
    """One tunnel with its connections, from the first end's arrival until both are closed."""

    __slots__ = (
        "_deadline",
        "_early",
        "_ended",
        "_hold",
        "_let_go",
        "_look",
        "_over",
        "_signal",
        "_unread",
        "_unsent",
        "_wait",
        "_websockets",
        "coming",
        "ending",
        "tunnel",
    )

    def __init__(
        self,
        tunnel: Tunnel,
        hold: Callable[[Tunnel, int], None],
        let_go: Callable[[Tunnel, int], None],
        ended: Callable[[Tunnel], None],
        over: Callable[["OpenTunnel"], None],
        *,
        wait: Callable[[Tunnel, int], None],
        signal: bool = False,
    ) -> None:
        """hold, let_go, wait: count the bytes in flight of all tunnels. ended: nobody may join any more. over: the connections are lost too.
        signal: tell the first end when the second has come.
        """
        self.tunnel = tunnel
        self._hold, self._let_go, self._wait, self._ended = hold, let_go, wait, ended
        self._over: Callable[[OpenTunnel], None] | None = over
        self._signal = signal
        self.coming = 0  # ends whose upgrade is being answered
        self._websockets: list[Websocket | None] = [None, None]  # by `End`; one that is lost stays
        self._early: list[bytes] = []  # what the first end said before the second one was there
        self._unsent = [0, 0]  # bytes that each end has not taken
        self._unread = [0, 0]  # bytes of each end that wait for the rest of their message, or to be read
        loop = asyncio.get_running_loop()
        self.ending: Ending | None = None
        self._deadline: asyncio.TimerHandle | None = loop.call_at(tunnel.deadline, self._too_late)
        self._look: asyncio.TimerHandle | None = None  # at an end that does not take what it is sent

    def take(self, end: End, websocket: Websocket) -> None:
        """Take the connection of an end."""
        self._websockets[end] = websocket
        if self.ending is not None:  # it came just too late
            websocket.close(*(self.ending.first, self.ending.second)[end])
            return
        self._settle()
        first, second = self._websockets
        if first is not None and second is not None:
            if self._signal:  # in front of everything that the second end says
                self._send(End.FIRST, first, CONNECT_SIGNAL)
            early, self._early = self._early, []
            for message in early:
                self._let_go(self.tunnel, len(message))
                self._send(End.SECOND, second, message)

    def end(self, ending: Ending) -> None:
        """End the tunnel and close its connections, unless it has ended already."""
        if self.ending is not None:
            return
        self.ending = ending
        self._ended(self.tunnel)
        for timer in (self._deadline, self._look):
            if timer is not None:
                timer.cancel()
        self._deadline = self._look = None
        self._early = []
        for websocket, told in zip(self._websockets, (ending.first, ending.second), strict=True):
            if websocket is not None:
                websocket.close(*told)
        self.over_when_lost()

    def abort(self) -> None:
        """End the tunnel's connections at once."""
        for websocket in self._websockets:
            if websocket is not None:
                websocket.abort()

    def over_when_lost(self) -> None:
        """Tell that the tunnel is over, unless a connection of it is left, or is coming."""
        if (
            self.ending is None
            or self.coming
            or not all(each is None or each.lost for each in self._websockets)
        ):
            return
        over, self._over = self._over, None
        if over is not None:
            over(self)

    def message(self, websocket: Websocket, data: bytes) -> None:
        """Carry a message to the other end. This and what follows is called by its websockets (`Listener`)."""
        end, other = self._end_of(websocket), self._other(websocket)
        breach = self.tunnel.carry(end, len(data))
        if breach is not None:
            code = WSCloseCode.MESSAGE_TOO_BIG if breach is Breach.TOO_LONG else WSCloseCode.POLICY_VIOLATION
            self.end(_broke(end, code, breach.value))
        elif other is None:
            self._early.append(data)
            self._hold(self.tunnel, len(data))
        else:
            self._send(End(1 - end), other, data)

    def control(self, websocket: Websocket) -> None:
        end = self._end_of(websocket)
        breach = self.tunnel.control(end)
        if breach is not None:
            self.end(_broke(end, WSCloseCode.POLICY_VIOLATION, breach.value))

    def broke(self, websocket: Websocket, code: int, rule: str) -> None:
        self.end(_broke(self._end_of(websocket), code, rule))

    def ended(self, _websocket: Websocket, code: int | None) -> None:
        self.end(_left() if code in _GOODBYE else vanished())
        self.over_when_lost()

    def silent(self, websocket: Websocket) -> None:
        self.end(_silent(self._end_of(websocket), "an end went silent"))
        websocket.abort()

    def waits(self, websocket: Websocket, size: int) -> None:
        end = self._end_of(websocket)
        more, self._unread[end] = size - self._unread[end], size
        self._wait(self.tunnel, more)

    def flow(self, websocket: Websocket) -> None:
        end = self._end_of(websocket)
        if not websocket.full and self._unsent[end]:
            self._let_go(self.tunnel, self._unsent[end])
            self._unsent[end] = 0
        self._settle()

    def _send(self, to: End, websocket: Websocket, message: bytes) -> None:
        """Send an end what the other one said, which is in flight until the kernel has taken it."""
        websocket.send(Opcode.BINARY, message)
        if websocket.full:
            self._unsent[to] += len(message)
            self._hold(self.tunnel, len(message))

    def _settle(self) -> None:
        """Read from each end, or do not."""
        if self.ending is not None:
            return
        first, second = self._websockets
        if first is not None:
            first.read(go_on=not (first.owes_pong or (second is not None and second.full)))
        if second is not None:
            second.read(go_on=first is not None and not (second.owes_pong or first.full))
        full = any(websocket is not None and websocket.full for websocket in self._websockets)
        if full and self._look is None and self.ending is None:
            self._look = asyncio.get_running_loop().call_later(self._patience, self._look_at_unsent)

    def _look_at_unsent(self) -> None:
        """End the tunnel when an end has not taken what it was sent for too long."""
        self._look = None
        loop = asyncio.get_running_loop()
        waits = []
        for end, websocket in zip(End, self._websockets, strict=True):
            if websocket is not None and websocket.full:
                left = websocket.full_since + self._patience - loop.time()
                if left <= 0:
                    self.end(_silent(end, "an end did not read"))
                    return
                waits.append(left)
        if waits:
            self._look = loop.call_later(min(waits), self._look_at_unsent)

    def _too_late(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() >= self.tunnel.deadline:
            self._deadline = None
            self.end(away("its time was up", CloseReason.TIME_UP))
        else:  # joining has moved it
            self._deadline = loop.call_at(self.tunnel.deadline, self._too_late)

    def _end_of(self, websocket: Websocket) -> End:
        return End.FIRST if websocket is self._websockets[End.FIRST] else End.SECOND

    def _other(self, websocket: Websocket) -> Websocket | None:
        first, second = self._websockets
        return second if websocket is first else first

    @property
    def _patience(self) -> float:
        """Seconds that an end has to take what it is sent."""
        return min(SEND_TIMEOUT, self.tunnel.limits.silence)


def log_end(tunnel: Tunnel, why: str, *, seconds: float) -> None:
    """Log that a tunnel has ended. seconds: since it was opened."""
    logger.info(
        "tunnel ended after %.1f s, because %s; %d messages of %d bytes one way, %d of %d the other",
        seconds,
        why,
        *(count[end] for end in End for count in (tunnel.messages, tunnel.sizes)),
        extra={
            "fields": {
                "seconds": round(seconds, 3),
                "reason": why,
                "messages": sum(tunnel.messages),
                "bytes": sum(tunnel.sizes),
            }
        },
    )


_GOODBYE: Final = (WSCloseCode.OK, WSCloseCode.GOING_AWAY)  # browsers close with the second


def away(why: str, reason: CloseReason) -> Ending:
    """End a tunnel for a reason that is the service's, and no end's."""
    return Ending.of_both(why, WSCloseCode.GOING_AWAY, reason)


def evicted() -> Ending:
    return Ending.of_both("others needed its place", WSCloseCode.TRY_AGAIN_LATER)


def vanished() -> Ending:
    return away("an end vanished", CloseReason.OTHER_VANISHED)


def _left() -> Ending:
    return Ending.of_both("an end left", WSCloseCode.OK)


def _silent(end: End, why: str) -> Ending:
    """Close the silent end with 1001 (going away), and tell the other one with `SILENT`."""
    return Ending.of_one(end, why, (WSCloseCode.GOING_AWAY, CloseReason.STOOD_STILL), (SILENT, ""))


def _broke(end: End, code: int, rule: str) -> Ending:
    other = WSCloseCode.GOING_AWAY, CloseReason.OTHER_BROKE_A_RULE
    return Ending.of_one(end, f"an end broke a rule ({rule})", (code, ""), other)
