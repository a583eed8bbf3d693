"""The one-line text form of account codes and invitations, and the relay URL in it."""

import re
from typing import Final
from urllib.parse import urlsplit

from headless_passkey.errors import ProtocolReason, RemoteProtocolError
from headless_passkey.text.base64url import from_base64url
from program_parts.base64url import base64url
from program_parts.domains import is_this_machine

MAX_TEXT: Final = 2048  # characters
MAX_RELAY_URL: Final = 256  # characters
_RELAY_URL: Final = re.compile(r"https?://[a-z0-9.:\[\]-]+(/[A-Za-z0-9._~-]+)*", re.ASCII)


def to_line(prefix: str, data: bytes) -> str:
    """Encode `prefix` and `data` as one line of ASCII."""
    return prefix + base64url(data)


def from_line(prefix: str, line: str, what: str, reason: ProtocolReason) -> bytes:
    """Decode a line of `to_line`; spaces around it are ignored. what, reason: of a line that starts otherwise."""
    if len(line) > MAX_TEXT:
        raise RemoteProtocolError(
            f"{what}: {len(line)} characters, more than {MAX_TEXT}", reason=ProtocolReason.TOO_LONG
        )
    line = line.strip()
    if not line.startswith(prefix):
        raise RemoteProtocolError(f"{what}: expected a line that starts with {prefix}", reason=reason)
    return from_base64url(line.removeprefix(prefix))


def check_relay_url(url: str) -> str:
    """`url`, when a relay can be reached there: https, in lower case, no slash at its end.

    Plain http is taken on loopback only, where nobody else listens.
    """
    if len(url) > MAX_RELAY_URL or not _RELAY_URL.fullmatch(url):
        raise RemoteProtocolError(
            "a relay URL is https://host[:port][/path], lower case, without a slash at its end",
            reason=ProtocolReason.MALFORMED_RELAY_URL,
        )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise RemoteProtocolError(
            "the relay URL has no valid host and port", reason=ProtocolReason.MALFORMED_RELAY_URL
        ) from error
    if parts.scheme != "https" and not is_this_machine(host):
        raise RemoteProtocolError("a relay is reached over https", reason=ProtocolReason.MALFORMED_RELAY_URL)
    return url
