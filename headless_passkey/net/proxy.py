"""Proxies for connections to servers: HTTPS_PROXY names one, and NO_PROXY the hosts without (docs/how-to/proxy.md).

The proxy opens a connection to a host and a port (CONNECT, RFC 9110 §9.3.6). It learns these two, and carries the TLS
connection with the server. Each request gets its proxy explicitly, since aiohttp's ``trust_env`` would also send
credentials of a .netrc file. Connections to loopback never use a proxy.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Final, NamedTuple
from urllib.request import (  # type: ignore[attr-defined]  # typeshed lacks the second
    getproxies_environment,
    proxy_bypass_environment,
)

import aiohttp
from aiohttp import hdrs
from yarl import URL

from headless_passkey.errors import TransportError, TransportReason
from headless_passkey.mends import mend
from headless_passkey.net.unreachable import check_name, unreachable, what_went_wrong
from headless_passkey.text.domains import is_this_machine

_TLS: Final = ("https", "wss")
_SCHEMES: Final = ("http", "https")  # of proxies
_HOST: Final = re.compile(r"[A-Za-z0-9._:%-]+", re.ASCII)


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


class Proxy(NamedTuple):
    """A proxy, from the environment."""

    url: URL  # without credentials
    authorization: str | None  # of the header Proxy-Authorization

    def __repr__(self) -> str:
        """Leave out the authorization."""
        return f"Proxy(url={self.url!r})"

    @property
    def place(self) -> tuple[str | None, int | None]:
        """Host and port, in the form of aiohttp's errors."""
        return self.url.raw_host, self.url.port

    @property
    def name(self) -> str:
        """Host and port, for people."""
        host, port = self.place
        return f"[{host}]:{port}" if ":" in (host or "") else f"{host}:{port}"

    @classmethod
    def parse(cls, text: str) -> "Proxy":
        """Parse a proxy's URL as curl does: ``http://`` is optional. `ProxyFailed` for anything else."""
        try:
            url = URL(text if "://" in text else f"http://{text}")
            if (
                url.scheme not in _SCHEMES
                or not _HOST.fullmatch(url.raw_host or "")
                or url.raw_path not in ("", "/")
                or url.raw_query_string
            ):
                raise ValueError  # noqa: TRY301  as yarl does
            (url.raw_host or "").encode("idna")  # as it is looked up; `UnicodeError` is a `ValueError`
            authorization = None
            if url.raw_user is not None or url.raw_password is not None:
                authorization = aiohttp.encode_basic_auth(url.user or "", url.password or "", "utf-8")
        except ValueError:  # its message may hold the password
            what = "HTTPS_PROXY does not hold the address of a proxy"
            raise ProxyFailed(what, proxy=None, status=None) from None
        return cls(url=url.origin(), authorization=authorization)


def proxy_for(url: URL | str) -> Proxy | None:
    """Find the proxy for a connection to `url` in the environment; None for a direct connection."""
    url = URL(url)
    if url.scheme not in _TLS or not url.raw_host or is_this_machine(url.raw_host):
        return None
    settings = getproxies_environment()
    text = settings.get("https")
    if text is None:
        return None
    host = url.raw_host.removesuffix(".")
    named = f"[{host}]" if ":" in host else host
    # with the port as well, so that NO_PROXY may name one; an IPv6 address with and without its brackets
    if any(proxy_bypass_environment(form, settings) for form in (host, named, f"{named}:{url.port}")):
        return None
    return Proxy.parse(text.strip())


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
        authorization = self._proxy.authorization
        headers = {} if authorization is None else {hdrs.PROXY_AUTHORIZATION: authorization}
        return {"proxy": self._proxy.url, "proxy_headers": headers}

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
