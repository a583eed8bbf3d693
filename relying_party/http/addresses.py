"""Where a request comes from: what counts as one network address, behind proxies too. Pure."""

import ipaddress
from collections.abc import Iterable, Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def network(text: str) -> Network:
    """An address, or a network such as 10.0.0.0/8; `ValueError` for anything else."""
    return ipaddress.ip_network(text.strip(), strict=False)


def client_address(peer: str, forwarded_for: Iterable[str], trusted: Sequence[Network]) -> str:
    """The client's address: the peer's, or the one that proxies which are trusted tell.

    forwarded_for: the values of ``X-Forwarded-For``, to which each proxy adds its peer at the end. What stands before
    the first address that is not trusted may be anybody's invention.
    """
    told = [address for value in forwarded_for for address in value.split(",")]
    found = peer
    while is_in(found, trusted) and told:
        address = _without_port(told.pop())
        if address is None:
            break
        found = address
    return found


def neighbourhood(address: str) -> str:
    """What counts as one address: an IPv4 address, or an IPv6 network of 64 bits."""
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
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks)


def _without_port(told: str) -> str | None:
    """An address as proxies write it: bare, in brackets, or with a port; None for what is none."""
    text = told.strip()
    host, bracket, _ = text.removeprefix("[").partition("]")
    if not bracket:
        host = text.partition(":")[0] if text.count(":") == 1 else text
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None
