"""The proxy that a service reaches the relying party through: HTTPS_PROXY, unless NO_PROXY excepts the host.

The rule is the device's (docs/how-to/proxy.md), and tests/vectors/proxies.json holds both to it. aiohttp's own
``trust_env`` is not used, since it would also send credentials out of a .netrc file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.request import (  # type: ignore[attr-defined]  # typeshed lacks the second
    getproxies_environment,
    proxy_bypass_environment,
)

import aiohttp
from aiohttp import hdrs
from yarl import URL

from relying_party.core.domains import is_this_machine
from relying_party.errors import UsageError

_TLS: Final = ("https", "wss")
_SCHEMES: Final = ("http", "https")  # of proxies
_HOST: Final = re.compile(r"[A-Za-z0-9._:%-]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """A proxy that is asked for connections (CONNECT, RFC 9110 §9.3.6)."""

    url: URL  # without credentials
    headers: Mapping[str, str] = field(repr=False)  # for the proxy alone: name and password

    @property
    def name(self) -> str:
        """Host and port, for people."""
        host = self.url.raw_host or ""
        return f"[{host}]:{self.url.port}" if ":" in host else f"{host}:{self.url.port}"

    @classmethod
    def parse(cls, text: str) -> "Proxy":
        """A proxy from its address, where ``http://`` may be left out. `UsageError`, without the address, for anything else."""
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
            headers: dict[str, str] = {}
            if url.raw_user is not None or url.raw_password is not None:
                credentials = aiohttp.encode_basic_auth(url.user or "", url.password or "", "utf-8")
                headers = {hdrs.PROXY_AUTHORIZATION: credentials}
        except ValueError:  # its words may hold the password
            raise UsageError("HTTPS_PROXY does not hold the address of a proxy") from None
        return cls(url=url.origin(), headers=headers)


def proxy_for(url: str) -> Proxy | None:
    """The proxy that a connection to `url` goes through, by the environment as it is now; None for a direct one."""
    asked = URL(url)
    if asked.scheme not in _TLS or not asked.raw_host or is_this_machine(asked.raw_host):
        return None
    settings = getproxies_environment()
    text = settings.get("https")
    if text is None:
        return None
    host = asked.raw_host.removesuffix(".")
    named = f"[{host}]" if ":" in host else host
    # with the port as well, so that NO_PROXY may name one; an IPv6 address with and without its brackets
    if any(proxy_bypass_environment(form, settings) for form in (host, named, f"{named}:{asked.port}")):
        return None
    return Proxy.parse(text.strip())
