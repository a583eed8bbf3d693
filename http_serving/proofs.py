"""What servers share that verify proofs of possession (DPoP, RFC 9449): known keys, and how addresses are compared.

Claims, nonces and refusals are each server's own (docs/protocol/relay.md, docs/protocol/relying-party.md).
"""

import re
import string
from typing import Final
from urllib.parse import urlsplit

from joserfc import jws
from joserfc.jwk import ECKey

MAX_KEYS: Final = 512  # parsed keys that are kept, about 2 KiB each
MAX_IDS: Final = 100_000  # used proofs in one step of the nonce, which then ends early: about 10 MB
REGISTRY: Final = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)  # of what is verified
_UNRESERVED: Final = frozenset(string.ascii_letters + string.digits + "-._~")
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}


class KnownKeys:
    """Parsed keys whose signature held, by the text of the JWS header: the same text is the same key.

    Who makes no good signature fills no place in it.
    """

    def __init__(self, *, most: int = MAX_KEYS) -> None:
        """most: keys that are kept; beyond it the one that was used longest ago is forgotten."""
        self._most = most
        self._keys: dict[str, tuple[ECKey, str]] = {}  # with their thumbprints; the last used is at the end

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, header: str) -> tuple[ECKey, str] | None:
        """Find the key of a header, and its thumbprint."""
        return self._keys.get(header)

    def keep(self, header: str, key: ECKey, thumbprint: str) -> None:
        """Keep the key of a header with which a signature has held."""
        self._keys.pop(header, None)
        self._keys[header] = key, thumbprint
        if len(self._keys) > self._most:
            del self._keys[next(iter(self._keys))]


def normal_url(url: str) -> tuple[str, str, int | None, str] | None:
    """Normalise a URL for comparison: scheme, host, port and path (RFC 3986 §6.2.2, §6.2.3).

    None for what is no ``htu``: malformed, without a host, or with a user, query or fragment.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.query or parts.fragment or parts.username is not None or parts.hostname is None:
        return None
    return parts.scheme, parts.hostname, port or _DEFAULT_PORTS.get(parts.scheme), _normal_path(parts.path)


def _normal_path(path: str) -> str:
    """Normalise a path: unreserved characters are decoded, other percent-encodings upper case."""

    def decoded(found: re.Match[str]) -> str:
        character = chr(int(found[1], 16))
        return character if character in _UNRESERVED else found[0].upper()

    return re.sub("%([0-9A-Fa-f]{2})", decoded, path) or "/"
