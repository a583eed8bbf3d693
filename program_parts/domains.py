"""The rule for domains, and so for RP IDs, as browsers serialise them; and for loopback hosts.

An RP ID is a valid domain string (WebAuthn Level 3 §5.1.3), and no IP address. Internationalised names are A-labels
(xn--), as a browser made them; they are not decoded, since decoding depends on the version of Unicode.
"""

import ipaddress
import re
from typing import Final

MAX_DOMAIN: Final = 253  # characters (RFC 1035 §2.3.4, without the root's dot)
_LABELS: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*", re.ASCII)
_ADDRESS: Final = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")  # ends in a number: to browsers an IPv4 address


def is_domain(text: str) -> bool:
    """Whether `text` is a domain: lower case, letters, digits and hyphens, no dot at an end, and no address."""
    return len(text) <= MAX_DOMAIN and bool(_LABELS.fullmatch(text)) and not _ADDRESS.fullmatch(text)


def is_localhost(host: str) -> bool:
    """Whether a host's name is ``localhost``, or ends in it (RFC 6761 §6.3): browsers resolve it to this machine."""
    name = host.removesuffix(".").lower()
    return is_domain(name) and (name == "localhost" or name.endswith(".localhost"))


def is_this_machine(host: str) -> bool:
    """Whether a host's name or address says that it is this machine, where plain HTTP has no listener in between.

    host: without brackets; an IPv6 address may have a zone.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return is_localhost(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
