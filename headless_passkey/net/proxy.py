"""Requests to servers through the environment's proxy, if any (docs/how-to/proxy.md).

The proxy opens a connection to a host and a port (CONNECT, RFC 9110 §9.3.6). It learns these two, and carries the TLS
connection with the server. Each request gets its proxy explicitly (`program_parts.proxy`).
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
from yarl import URL

from headless_passkey.errors import TransportError, TransportReason
from headless_passkey.mends import mend
from headless_passkey.net.unreachable import check_name, unreachable, what_went_wrong
from program_parts.proxy import NoProxy, Proxy
from program_parts.proxy import proxy_for as proxy_of_environment


class ProxyFailed(TransportError):  # noqa: N818  a state of affairs
    """The proxy failed, and not the server behind it."""

    def __init__(self, message: str, *, proxy: str | None, status: int | None) -> None:
        """proxy: its host and port; None when HTTPS_PROXY names none. status: of HTTP, where it answered."""
        case = "setting" if proxy is None else "credentials" if status == 407 else None
        reason = TransportReason.PROXY_FAILED
        super().__init__(message, reason=reason, advice=mend(reason, case))
        self.proxy, self.status = proxy, status

    @property
    def transient(self) -> bool:
        """Whether the failure is transient: not a refusal by the proxy, nor a malformed setting."""
        return self.proxy is not None and (self.status is None or self.status >= 500)


def proxy_for(url: URL | str) -> Proxy | None:
    """Find the proxy for a connection to `url`; None for a direct connection. `ProxyFailed` when HTTPS_PROXY names no proxy."""
    try:
        return proxy_of_environment(url)
    except NoProxy as error:
        raise ProxyFailed(str(error), proxy=None, status=None) from error


class Way:
    """The connection of one request: direct, or through a proxy."""

    def __init__(self, url: URL | str) -> None:
        """Raises `ProxyFailed` when HTTPS_PROXY names no proxy, `TransportError` for a host that nobody can look up."""
        self._host = URL(url).raw_host or ""  # as it is looked up: what A-labels stand for need not exist
        check_name(self._host)
        self._proxy = proxy_for(url)
        self._arrived = False

    @property
    def options(self) -> dict[str, Any]:
        """The arguments for aiohttp's request functions."""
        if self._proxy is None:
            return {}
        return {"proxy": self._proxy.url, "proxy_headers": self._proxy.headers}

    @property
    def through(self) -> str:
        """The words " through the proxy …" for messages; empty for a direct connection."""
        return "" if self._proxy is None else f" through the proxy {self._proxy.name}"

    def arrived(self) -> None:
        """Note that the connection to the server is open: later failures are not the proxy's."""
        self._arrived = True

    def failure(self, error: Exception, host: str) -> TransportError:
        """Translate a failure of the connection, without the URL. Raise it `from` its `cause`.

        error: what aiohttp or the system raised; host: how to call the server, with its name or address.
        """
        if self._proxy is None:
            return unreachable(error, host)
        match error:
            case aiohttp.ClientHttpProxyError(status=407):
                return self._failed("wants a name and a password, or others", 407)
            case aiohttp.ClientHttpProxyError(status=status):
                return self._failed(f"does not connect to {self._host} (HTTP status {status})", status)
            case aiohttp.ClientConnectorError() if (error.host, error.port) == self._proxy.place:
                return self._failed(f"cannot be reached: {what_went_wrong(error)[1]}")
            case aiohttp.ClientConnectorError():
                pass  # TLS with the server
            case _ if not self._arrived:
                return self._failed(f"does not connect to {self._host}: {what_went_wrong(error)[1]}")
        return unreachable(error, f"{host} (through the proxy {self._proxy.name})")

    def cause(self, error: Exception) -> Exception | None:
        """The error as a cause; None where its message holds the URL, as aiohttp's for CONNECT."""
        return None if isinstance(error, aiohttp.ClientResponseError) else error

    def _failed(self, how: str, status: int | None = None) -> ProxyFailed:
        proxy = "" if self._proxy is None else self._proxy.name
        return ProxyFailed(f"the proxy {proxy} {how}", proxy=proxy, status=status)


@asynccontextmanager
async def sending(
    session: aiohttp.ClientSession, method: str, url: URL | str, **options: Any
) -> AsyncIterator[aiohttp.ClientResponse]:
    """`session.request` on its way, without redirects; what fails, to the end of its body, is a `TransportError`.

    session: with the `tracing` of this module.
    """
    way = Way(url)
    try:
        async with session.request(
            method, url, allow_redirects=False, trace_request_ctx=way, **way.options, **options
        ) as response:
            yield response
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise way.failure(error, URL(url).host_port_subcomponent or "") from way.cause(error)


async def read_bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Read the body of an answer; of one with more than `limit` bytes, a beginning that is longer than that."""
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > limit:
            break
    return bytes(content)


def tracing(way: Way | None = None) -> aiohttp.TraceConfig:
    """What a session needs so that the way of each request, or the only one, hears when it is done."""

    async def arrived(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
        of_request = way or context.trace_request_ctx
        if isinstance(of_request, Way):
            of_request.arrived()

    config = aiohttp.TraceConfig()
    config.on_connection_create_end.append(arrived)
    config.on_connection_reuseconn.append(arrived)
    return config
