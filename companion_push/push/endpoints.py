"""The guard of push endpoints: which URLs, and which addresses, a push may go to (docs/adr/, The guard of push endpoints).

Whoever has an account names the endpoint that the relay sends to. So the relay sends only to hosts that its operator
lists, over TLS, and connects only to public addresses; the address is checked on the socket that is connected, since a
name may resolve differently each time (DNS rebinding).
"""

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

from aiohttp import AddrInfoType
from yarl import URL

from headless_passkey.errors import UsageError
from http_serving.addresses import Network
from program_parts.domains import is_domain

WELL_KNOWN: Final = (
    "fcm.googleapis.com",
    "updates.push.services.mozilla.com",
    "*.notify.windows.com",
    "*.push.apple.com",
)
ANY: Final = "any"
MAX_ENDPOINT: Final = 2048  # characters; those of the well-known services have a few hundred
_HTTPS: Final = 443

_IPV4_REFUSED: Final = tuple(
    map(
        ipaddress.IPv4Network,
        (
            # the registry of special-purpose addresses (RFC 6890), whatever this version of Python knows of it
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24"),
            *("192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
            *("224.0.0.0/4", "240.0.0.0/4"),
            "168.63.129.16/32",  # the metadata and health service of Azure: a public address, and not one
        ),
    )
)
_IPV6_PUBLIC: Final = ipaddress.IPv6Network("2000::/3")  # all that IANA has given out for unicast
_IPV6_REFUSED: Final = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
            "2001:db8::/32",
            "2002::/16",  # 6to4, which leads to the IPv4 address in it
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",
        ),
    )
)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052


class ForbiddenAddress(OSError):  # noqa: N818  a state of affairs
    """A connection would lead to an address that no push goes to."""

    def __init__(self) -> None:
        super().__init__("an address that no push goes to")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRule:
    """A host that the operator lists."""

    name: str  # a domain in lower case, or an address
    below: bool = False  # whether any name below it is meant, and not itself
    port: int = _HTTPS

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``HOST``, ``*.HOST`` or ``HOST:PORT``; an IPv6 address is in brackets. `UsageError` for anything else."""
        told = text.strip().lower()
        below = told.startswith("*.")
        host = told.removeprefix("*.")
        port = str(_HTTPS)
        if host.startswith("["):
            inside, bracket, after = host[1:].partition("]")
            name = _address(inside, 6) if bracket else ""
            if after:
                port = after[1:] if after[0] == ":" else ""
        else:
            host, colon, after = host.partition(":")
            name = host if is_domain(host) else _address(host, 4)
            if colon:
                port = after
        number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
        if not name or not 0 < number < 1 << 16 or (below and not ("." in name and is_domain(name))):
            raise UsageError(f"web_push_host: expected HOST, *.HOST, HOST:PORT or {ANY}, got {text!a:.80}")
        return cls(name=name, below=below, port=number)

    def matches(self, host: str, port: int) -> bool:
        named = host.endswith(f".{self.name}") if self.below else host == self.name
        return named and port == self.port


class EndpointRules:
    """The operator's rules: the well-known push services, and what is added to them."""

    def __init__(self, *, hosts: Iterable[str] = (), networks: Iterable[Network] = ()) -> None:
        """hosts: as `HostRule.parse` reads them, or ``any`` for all hosts at the port of https.

        networks: of private addresses that may be connected to all the same, for a push service of one's own. Not with
        ``any``, which would let every member send into them.
        """
        texts = tuple(hosts)
        self._any = ANY in texts
        self.hosts: Final = tuple(HostRule.parse(text) for text in (*WELL_KNOWN, *texts) if text != ANY)
        self._networks = tuple(networks)
        if self._any and self._networks:
            raise UsageError(f"web_push_network: not together with the host {ANY}: name the hosts")

    def endpoint(self, text: str) -> URL | None:
        """Parse an endpoint's URL as aiohttp will; None for one that is not https, without user and fragment."""
        if len(text) > MAX_ENDPOINT or not text.isascii() or not text.isprintable() or " " in text:
            return None
        try:
            url = URL(text)
            port = url.port
        except ValueError:
            return None
        host = url.raw_host or ""
        bare = url.raw_user is None and url.raw_password is None and "#" not in text and "\\" not in text
        if url.scheme != "https" or not port or not bare:
            return None
        return url if is_domain(host) or _is_address(host) else None

    def allows(self, url: URL) -> bool:
        """Whether an endpoint's host and port are listed."""
        host, port = url.raw_host or "", url.port or 0
        if any(rule.matches(host, port) for rule in self.hosts):
            return True
        return self._any and port == _HTTPS and is_domain(host)

    def lists(self, host: str) -> bool:
        """Whether a host is listed by its own name, so that the operator knows whose name servers are asked for it."""
        return any(rule.name == host and not rule.below for rule in self.hosts)

    def lists_above(self, host: str) -> bool:
        """Whether a name above the host is listed."""
        return any(host.endswith(f".{rule.name}") and rule.below for rule in self.hosts)

    def reaches(self, address: str) -> bool:
        """Whether a connection to this address is allowed. address: as a socket names it, perhaps with a zone."""
        parsed: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address)
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped  # the system connects to that one
        if any(parsed in network for network in self._networks):
            return True
        return is_public(parsed)

    def open_socket(self, info: AddrInfoType) -> socket.socket:
        """Make the socket for a connection (aiohttp's `socket_factory`); `ForbiddenAddress` where it must not lead."""
        family, kind, protocol, _, place = info
        if not self.reaches(str(place[0])):
            raise ForbiddenAddress
        return socket.socket(family, kind, protocol)


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is one of the public internet; of NAT64, the IPv4 address in it."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _IPV4_REFUSED)
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(address.packed[12:]))
    if address.scope_id is not None or address not in _IPV6_PUBLIC:
        return False
    return not any(address in network for network in _IPV6_REFUSED)


def _is_address(host: str) -> bool:
    return bool(_address(host, 4) or _address(host, 6))


def _address(text: str, version: int) -> str:
    """Normalise an address of this version; empty for anything else."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return ""
    return str(found) if found.version == version and "%" not in text else ""
