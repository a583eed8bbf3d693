"""Listening and shutdown of a server: sockets, certificate, deadlines, drain."""

import contextlib
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web
from yarl import URL

from http_serving import accepting, connections
from http_serving.accepting import fit
from http_serving.addresses import Network, is_loopback
from http_serving.connections import ConnectionLimits, Connections
from http_serving.errors import Errors
from http_serving.runner import Runner
from http_serving.tls import tls_context

BACKLOG: Final = 1024  # connections that wait to be accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Listening sockets, with their certificate."""

    host: str
    sockets: Sequence[socket.socket]
    tls: ssl.SSLContext | None

    @property
    def port(self) -> int:
        return int(self.sockets[0].getsockname()[1])

    def base_url(self, scheme: str = "http") -> str:
        """The URL of the first socket. scheme: without TLS; an "s" is added with it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}{'s' if self.tls else ''}://{host}:{self.port}"


@contextlib.contextmanager
def listening(
    host: str, port: int, *, cert: Path | None, key: Path | None, errors: Errors, anywhere: bool = False
) -> Iterator[Listener]:
    """Listen at each address of `host`, on the same port, also for port 0.

    cert, key: PEM files; without them only this machine is listened to, unless `anywhere`. errors: what is raised where something
    is wrong with them, or `host` and `port` cannot be had.
    """
    if (cert is None) != (key is None):
        raise errors.usage("--cert and --key go together")
    tls = None if cert is None or key is None else tls_context(cert, key, errors)
    with contextlib.ExitStack() as stack:
        only_loopback = not (tls or anywhere)
        found = _sockets(host, port, errors, only_loopback=only_loopback)
        sockets = [stack.enter_context(one) for one in found]
        yield Listener(host=host, sockets=sockets, tls=tls)


def plain(trusted_proxies: Sequence[Network]) -> str:
    """The line for the operator of a server without a certificate."""
    return f"no certificate: plain HTTP, {'for trusted proxies and loopback' if trusted_proxies else 'on loopback'} only"


@contextlib.contextmanager
def inherited(
    host: str, descriptors: Sequence[int], *, cert: Path | None, key: Path | None, errors: Errors
) -> Iterator[Listener]:
    """Take over the sockets on which the process that started this one listens. cert, key, errors: as for `listening`."""
    tls = None if cert is None or key is None else tls_context(cert, key, errors)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(fileno=number)) for number in descriptors]
        yield Listener(host=host, sockets=sockets, tls=tls)


@contextlib.asynccontextmanager
async def serving(
    runner_of: type[Runner],
    app: web.Application,
    listener: Listener,
    *,
    say: Callable[[str], None],
    trusted_proxies: Sequence[Network] = (),
    public_url: str = "",
    handler_cancellation: bool = False,
    limits: ConnectionLimits | None = None,
    closed: Callable[[str], None] = lambda _: None,
    linger: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[Connections]:
    """Serve `app` while the context is open; then stop accepting, and give running requests `DRAIN_SECONDS`.

    Yields the connections.

    say: prints a line for the operator. public_url: what clients call `app` by; a proxy may take its path off.
    handler_cancellation: whether a client's disconnect cancels its handler. limits: of connections; they are lowered to what the
    system gives this process. closed: is told why a connection was closed or refused. linger: as of `Runner`.
    """
    runner = runner_of(
        app,
        trusted_proxies=trusted_proxies,
        prefix=URL(public_url).raw_path.rstrip("/"),
        handler_cancellation=handler_cancellation,
        limits=fit(limits if limits is not None else ConnectionLimits()),
        closed=closed,
        linger=linger,
    )
    try:
        await runner.setup()
        if listener.tls is None:
            say(plain(trusted_proxies))
        for one in listener.sockets:
            await runner.site(one, listener.tls).start()
        yield runner.connections
    finally:
        await runner.cleanup()
        accepting.tell_the_rest()
        connections.tell_the_rest()


def _sockets(host: str, port: int, errors: Errors, *, only_loopback: bool) -> Iterator[socket.socket]:
    listening = False
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            if family not in (socket.AF_INET, socket.AF_INET6):
                continue
            if only_loopback and not is_loopback(str(address[0])):
                raise errors.usage(
                    "without --cert and --key only loopback addresses are listened on, unless --trusted-proxy names who may come"
                )
            one = socket.socket(family, kind, protocol)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                one.bind((address[0], port, *address[2:]))
                one.listen(BACKLOG)
            except OSError as error:
                one.close()
                if error.errno == errno.EADDRNOTAVAIL:
                    continue  # for instance ::1 without IPv6
                raise
            port, listening = one.getsockname()[1], True
            yield one
    except OSError as error:
        raise errors.address(host, port, error) from error
    except UnicodeError as error:  # of the codec that names are looked up with
        raise errors.address(host, port, OSError(errno.EADDRNOTAVAIL, "not a host's name")) from error
    if not listening:
        raise errors.address(host, port, OSError(errno.EADDRNOTAVAIL, "not an address of this machine"))
