"""The webhook's settings and signatures: calls of the vendor's account service as Standard Webhooks 1.0 describes them.

A call is ``POST`` with a JSON body and the headers ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature``: one
HMAC-SHA256 over id, timestamp and body for each secret, so that secrets can be replaced. Id and body of an event are the same
at each attempt; the receiver knows a repetition by the id.
"""

import base64
import binascii
import contextlib
import hmac
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from headless_passkey.errors import UsageError
from headless_passkey.net.base_url import BaseUrl

MAX_SECRETS: Final = 4
MAX_URL: Final = 2048  # characters
_SECRET: Final = re.compile(r"whsec_([A-Za-z0-9+/]{32,88}={0,2})", re.ASCII)
_KEY_SIZES: Final = range(24, 65)  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Where events are told, and the secrets that sign them. A setting that cannot be is a `UsageError` without its value."""

    url: str = field(repr=False)  # https, or http on this machine; it may have a query
    secrets: tuple[str, ...] = field(repr=False)  # each "whsec_" and base64 of 24 to 64 bytes; at most 4
    ca: Path | None = None  # a PEM file of roots to believe, instead of the system's

    def __post_init__(self) -> None:
        _check_url(self.url)
        if not isinstance(self.secrets, tuple) or not 0 < len(self.secrets) <= MAX_SECRETS:
            raise UsageError(f"webhook: expected 1 to {MAX_SECRETS} secrets")
        for secret in self.secrets:
            _key(secret)

    def headers(self, event_id: str, body: bytes, *, now: float) -> dict[str, str]:
        """The headers of one attempt. now: Unix seconds."""
        timestamp = str(int(now))
        signatures = (
            signature(_key(secret), event_id=event_id, timestamp=timestamp, body=body)
            for secret in self.secrets
        )
        return {
            "Content-Type": "application/json",
            "webhook-id": event_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": " ".join(signatures),
        }


def signature(key: bytes, *, event_id: str, timestamp: str, body: bytes) -> str:
    """Sign a call: "v1," and the base64 of the HMAC-SHA256 over id, timestamp and body, with dots between."""
    signed = f"{event_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def _key(secret: str) -> bytes:
    """Decode a secret; `UsageError`, which does not repeat it, for what is none."""
    found = _SECRET.fullmatch(secret) if isinstance(secret, str) else None
    key = b""
    if found is not None:
        with contextlib.suppress(binascii.Error):
            key = base64.b64decode(found[1], validate=True)
    if len(key) not in _KEY_SIZES or found is None or base64.b64encode(key).decode() != found[1]:
        raise UsageError("webhook: a secret is whsec_ and the base64 of 24 to 64 bytes")
    return key


def _check_url(text: str) -> None:
    wrong = UsageError(
        "webhook: expected https://HOST[:PORT][/PATH][?QUERY], without user and fragment; http only on this machine"
    )
    is_text = isinstance(text, str) and len(text) <= MAX_URL and text.isascii() and text.isprintable()
    if not is_text or set(" \\#") & set(text):
        raise wrong
    try:
        parts = urlsplit(text)
        origin = BaseUrl.parse(f"{parts.scheme}://{parts.netloc}")
    except (ValueError, UsageError):  # their messages may hold the URL
        raise wrong from None
    if origin.scheme != "https" and not origin.is_loopback:
        raise wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What became of one attempt."""

    taken: bool = False
    gone: bool = False  # the receiver wants no more of it
    retry_after: float | None = None  # seconds
    detail: str = ""  # for the log: a status, or why there is none
