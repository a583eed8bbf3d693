"""Apple's provider token: who pushes to APNs, as a JWT that each push carries (ES256).

APNs takes a token for 60 minutes, and none that is replaced within 20, so all pushes of a key share one. It is dated
from the beginning of a half hour, and its signature is deterministic (RFC 6979): a process that is started again, or
another one with the same key, makes the very same token, and not one too many.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from headless_passkey.errors import SetupError, SetupReason, UsageError
from headless_passkey.process.private_file import read_private
from program_parts.base64url import base64url

STEP: Final = 1800  # seconds: a token's date is a multiple of it
BEHIND: Final = 60  # seconds after its date until a token is used: Apple's clock may be behind ours
MIN_AGE: Final = 1200.0  # seconds in which a token is not replaced
MAX_FILE: Final = 4096  # bytes; such a file has 257
ID: Final = 10  # characters of a team's and of a key's id


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderKey:
    """A key for APNs, with the ids under which Apple knows it."""

    team: str
    key_id: str
    private: ec.EllipticCurvePrivateKey = field(repr=False, compare=False)

    @classmethod
    def load(cls, path: Path, *, team: str, key_id: str) -> Self:
        """Read the .p8 file of Apple's. `SetupError` for one that others may read, or that is none; `UsageError` for an id."""
        for name, text in (("team", team), ("key", key_id)):
            if not (len(text) == ID and text.isascii() and text.isalnum() and text == text.upper()):
                raise UsageError(f"a {name} id of Apple's has {ID} capital letters and digits")
        content = read_private(path, limit=MAX_FILE)
        if content is None:
            raise SetupError(f"there is no file {path}", reason=SetupReason.STATE_UNREADABLE)
        try:
            private = load_pem_private_key(content, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):  # whose messages may hold anything
            private = None
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.curve.name != "secp256r1":
            raise SetupError(
                f"{path} holds no private key of P-256 in PEM form", reason=SetupReason.STATE_DAMAGED
            )
        return cls(team=team, key_id=key_id, private=private)

    def token(self, issued: int) -> str:
        """Make the token with this date. issued: Unix seconds."""
        header, claims = {"alg": "ES256", "kid": self.key_id}, {"iss": self.team, "iat": issued}
        signed = f"{_segment(header)}.{_segment(claims)}"
        r, s = decode_dss_signature(_sign(self.private, signed.encode()))
        return f"{signed}.{base64url(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _segment(value: dict[str, Any]) -> str:
    return base64url(json.dumps(value, separators=(",", ":")).encode())


def _sign(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    try:
        return key.sign(data, ec.ECDSA(SHA256(), deterministic_signing=True))
    except UnsupportedAlgorithm:  # of an OpenSSL before 3.2
        return key.sign(data, ec.ECDSA(SHA256()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    text: str = field(repr=False)
    issued: int
    at: float  # of the clock that people set
    at_ticks: float


class ProviderTokens:
    """The token that all pushes of one key share."""

    def __init__(
        self,
        key: ProviderKey,
        *,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        """clock: Unix seconds. ticks: seconds of a clock that nobody sets back."""
        self._key, self._clock, self._ticks = key, clock, ticks
        self._made: _Made | None = None
        self._before: _Made | None = None

    def token(self) -> str:
        """The token for a push now."""
        now = self._clock()
        issued = int(now - BEHIND) // STEP * STEP
        made = self._made
        if made is None:
            return self._make(issued)
        due = issued > made.issued or made.issued > now  # the second, when the clock was set back
        return self._make(issued) if due and self._may_be_replaced(made) else made.text

    def refused(self, text: str) -> bool:
        """Replace a token that APNs calls expired or invalid; returns whether there is another one now.

        There is none when this one is younger than 20 minutes: then it is the key, an id or this machine's clock.
        """
        if self._made is None or self._made.text != text:
            return True  # somebody else has done so
        if not self._may_be_replaced(self._made):
            return False
        return self._make(int(self._clock())) != text

    def replaced_too_soon(self, text: str) -> bool:
        """Go back to the token before, as APNs says that this one came too soon; returns whether there is one."""
        if self._made is None or self._made.text != text:
            return True
        if self._before is None or self._clock() - self._before.issued >= 2 * STEP:
            return False
        # the next one comes after 20 minutes, whatever the date of this one
        before, self._before = self._before, None
        self._made = _Made(text=before.text, issued=before.issued, at=self._clock(), at_ticks=self._ticks())
        return True

    @property
    def replaceable_in(self) -> float:
        """Seconds until the token may be replaced."""
        made = self._made
        return 0.0 if made is None else max(0.0, MIN_AGE - (self._ticks() - made.at_ticks))

    def _may_be_replaced(self, made: _Made) -> bool:
        """By either clock: one may have been set back, and the other one stands still while a machine sleeps."""
        return max(self._ticks() - made.at_ticks, self._clock() - made.at) >= MIN_AGE

    def _make(self, issued: int) -> str:
        self._before = self._made
        self._made = _Made(
            text=self._key.token(issued), issued=issued, at=self._clock(), at_ticks=self._ticks()
        )
        return self._made.text
