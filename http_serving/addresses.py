"""The client address of a request, also behind trusted proxies, and the unit that limits count. Pure."""

import functools
import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final

REMEMBERED: Final = 1 << 12  # addresses, whose parsing costs more than all else that is done with them

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_LOOPBACK: Final = (ipaddress.IPv4Network("127.0.0.0/8"), ipaddress.IPv6Network("::1/128"))


def network(text: str) -> Network:
    """Parse an address, or a network such as 10.0.0.0/8; `ValueError` for anything else."""
    return ipaddress.ip_network(text.strip(), strict=False)


def client_address(peer: str, forwarded_for: Iterable[str], trusted: Sequence[Network]) -> str:
    """The client's address: the peer's, or the one that trusted proxies report.

    forwarded_for: the values of ``X-Forwarded-For``, to which each proxy appends its peer. Read from the end, the first untrusted
    address is the client's; everything before it may be forged.
    """
    told = [address for value in forwarded_for for address in value.split(",")]
    found = peer
    while is_in(found, trusted) and told:
        address = _without_port(told.pop())
        if address is None:
            break
        found = address
    return found


@functools.lru_cache(maxsize=REMEMBERED)
def neighbourhood(address: str) -> str:
    """The unit that rate limits count: an IPv4 address, or an IPv6 /64 network."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))


def is_in(address: str, networks: Sequence[Network]) -> bool:
    if not networks:
        return False
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks)


def is_loopback(address: str) -> bool:
    """Whether an address is this machine's, where plain HTTP has no listener in between."""
    return is_in(address, _LOOPBACK)


def _without_port(told: str) -> str | None:
    """Parse an address as proxies write it: bare, in brackets, or with a port; None when malformed."""
    text = told.strip()
    host, bracket, _ = text.removeprefix("[").partition("]")
    if not bracket:
        host = text.partition(":")[0] if text.count(":") == 1 else text
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None
