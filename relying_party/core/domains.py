"""The rule for domains, and so for RP IDs, as browsers serialise them. The device has the same rule.

An RP ID is a valid domain string (WebAuthn Level 3 §5.1.3), and no IP address. Internationalised names are A-labels
(xn--), as a browser made them; they are not decoded, since decoding depends on the version of Unicode.
"""

import re
from typing import Final

MAX_DOMAIN: Final = 253  # characters (RFC 1035 §2.3.4, without the root's dot)
_LABELS: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*", re.ASCII)
_ADDRESS: Final = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")  # ends in a number: to browsers an IPv4 address


def is_domain(text: str) -> bool:
    """Whether `text` is a domain: lower case, letters, digits and hyphens, no dot at an end, and no address."""
    return len(text) <= MAX_DOMAIN and bool(_LABELS.fullmatch(text)) and not _ADDRESS.fullmatch(text)
