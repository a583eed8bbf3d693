"""Which proxy a connection goes through: HTTPS_PROXY names one, and NO_PROXY the hosts without (docs/how-to/proxy.md).

aiohttp's own ``trust_env`` is not used, since it would also send credentials of a .netrc file.
"""

import re
from typing import Final, NamedTuple
from urllib.request import (  # type: ignore[attr-defined]  # typeshed lacks the second
    getproxies_environment,
    proxy_bypass_environment,
)

import aiohttp
from aiohttp import hdrs
from yarl import URL

from program_parts.domains import is_this_machine

_TLS: Final = ("https", "wss")
_SCHEMES: Final = ("http", "https")  # of proxies
_HOST: Final = re.compile(r"[A-Za-z0-9._:%-]+", re.ASCII)


class NoProxy(ValueError):  # noqa: N818  a state of affairs
    """HTTPS_PROXY does not hold the address of a proxy. The message does not repeat it: it may hold a password."""


# no dataclass: a start of the device waits for it, and a NamedTuple is made sooner (docs/adr/0043)
class Proxy(NamedTuple):
    """A proxy, from the environment. It opens connections to a host and a port (CONNECT, RFC 9110 §9.3.6)."""

    url: URL  # without credentials
    authorization: str | None  # of the header Proxy-Authorization

    def __repr__(self) -> str:
        """Leave out the authorization."""
        return f"Proxy(url={self.url!r})"

    @property
    def headers(self) -> dict[str, str]:
        """The headers for the proxy alone."""
        return {} if self.authorization is None else {hdrs.PROXY_AUTHORIZATION: self.authorization}

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
        """Parse a proxy's URL as curl does: ``http://`` is optional. `NoProxy` for anything else."""
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
            raise NoProxy("HTTPS_PROXY does not hold the address of a proxy") from None
        return cls(url=url.origin(), authorization=authorization)


def proxy_for(url: URL | str) -> Proxy | None:
    """Find the proxy for a connection to `url` in the environment as it is now; None for a direct connection, as to this machine."""
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
