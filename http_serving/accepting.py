"""Accepting connections: each gets its slot before its TLS handshake, within what the system gives the process."""

import asyncio
import contextlib
import errno
import logging
import resource
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from aiohttp import web

from http_serving.connections import ConnectionLimits, Connections, Slot
from http_serving.log_limit import LogLimit

CLOSE_SECONDS: Final = (
    2.0  # for the farewell of a connection that is closed, such as what TLS says at its end
)
RESERVED_FILES: Final = 64  # descriptors for the store, the sockets that listen, and what Python itself opens
MIN_CONNECTIONS: Final = 16
ACCEPTS: Final = 16  # connections accepted in a row, before others have their turn
ACCEPT_PAUSE: Final = 1.0  # seconds until the next try when the system gives no more descriptors
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

logger = logging.getLogger(__name__)


def fit(limits: ConnectionLimits) -> ConnectionLimits:
    """The limits that fit under the process' limit of open files, which is raised first, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.total + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        highest = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return limits
    total = min(limits.total, max(MIN_CONNECTIONS, soft - RESERVED_FILES))
    logger.warning(
        "at most %d connections, not %d: the system gives this process %d files", total, limits.total, soft
    )
    return replace(limits, total=total)


class Site(web.BaseSite):
    """Accepts connections from one listening socket, each into a slot of its own, before the TLS handshake.

    asyncio's server would tell of a connection only after the handshake: strangers could hold any number before it.
    """

    def __init__(
        self,
        runner: web.BaseRunner,
        listener: socket.socket,
        *,
        connections: Connections,
        protocol: Callable[[Slot], asyncio.Protocol],
        tls: ssl.SSLContext | None,
    ) -> None:
        super().__init__(runner, ssl_context=tls)
        self._listener, self._tls, self._protocol = listener, tls, protocol
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._beginning: dict[asyncio.Task[None], tuple[Slot, socket.socket | None]] = {}
        self._pause: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"{'https' if self._tls else 'http'}://{host}:{port}"

    async def start(self) -> None:
        await super().start()
        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, self._accept)

    def accept_no_more(self) -> None:
        """Leave new connections to other processes that listen on the socket; those that were accepted go on."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)

    async def stop(self) -> None:
        """Stop accepting; a handshake that is not done is cut off."""
        self.accept_no_more()
        self._listener.close()
        for task in list(self._beginning):
            task.cancel()
        await super().stop()

    def _accept(self) -> None:
        for _ in range(ACCEPTS):
            try:
                connection, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                self._exhausted(error)
                return
            slot = self._connections.admit(str(address[0]))
            if slot is None:
                connection.close()
                continue
            task = self._loop.create_task(self._begin(slot, connection))
            slot.end = task.cancel
            self._beginning[task] = slot, connection
            task.add_done_callback(self._begun)

    def _exhausted(self, error: OSError) -> None:
        """Make room for the connections that wait, and pause: the system would call at once again."""
        if _limit.allows("connections could not be accepted"):
            logger.error("no more connections are accepted for now: %s", error.strerror)
        self._loop.remove_reader(self._listener)
        for _ in range(ACCEPTS):
            self._connections.evict()
        self._pause = self._loop.call_later(ACCEPT_PAUSE, self._loop.add_reader, self._listener, self._accept)

    async def _begin(self, slot: Slot, connection: socket.socket) -> None:
        """Begin a connection: the TLS handshake, and then HTTP."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  for mypy: this is one
        self._beginning[task] = slot, None  # from here on its transport closes the socket
        head = self._connections.limits.head
        try:
            await self._loop.connect_accepted_socket(
                lambda: self._protocol(slot),
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=head if self._tls else None,
                ssl_shutdown_timeout=CLOSE_SECONDS if self._tls else None,
            )
        except OSError as error:  # of TLS too, which has told the peer what there is to tell
            self._connections.release(slot)
            if isinstance(error, ConnectionAbortedError):  # what asyncio makes of its time-out
                self._connections.closed("handshake")
            logger.debug("a connection did not begin: %s", type(error).__name__)

    def _begun(self, task: "asyncio.Task[None]") -> None:
        slot, unbegun = self._beginning.pop(task)
        if task.cancelled():
            self._connections.release(slot)
            if unbegun is not None:
                unbegun.close()


def _left_out(what: str, count: int) -> None:
    logger.error("%d more times within a minute %s", count, what)


_limit: Final = LogLimit(tell=_left_out, most=1)


def tell_the_rest() -> None:
    """Log at once how many lines were left out, as when the program ends."""
    _limit.end()
