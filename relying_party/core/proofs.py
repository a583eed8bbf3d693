"""Verification of proofs of possession (DPoP, RFC 9449; docs/protocol/relying-party.md).

Pure: time is passed in, and the caller holds `SeenProofs`, which detects replay.
"""

import hashlib
import hmac
import math
import re
import string
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from relying_party.core.encoding import base64url, from_base64url
from relying_party.errors import ProofClock, ProofInvalid, RateLimited

CLOCK_TOLERANCE: Final = 60  # seconds, ahead or behind
MAX_PROOF_CHARACTERS: Final = 4096
MAX_IDS: Final = 100_000
SWEEP_PAUSE: Final = (
    1.0  # seconds: looking through all ids is work, and may not be asked for with each request
)
_UNRESERVED: Final = frozenset(string.ascii_letters + string.digits + "-._~")
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}
_REGISTRY: Final = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)


class _PublicKey(msgspec.Struct, forbid_unknown_fields=True):
    kty: Literal["EC"]
    crv: Literal["P-256"]
    x: str
    y: str


class _Header(msgspec.Struct):
    """The JWS header. Unknown parameters are ignored unless critical (RFC 7515)."""

    typ: Literal["dpop+jwt"]
    alg: Literal["ES256"]
    jwk: _PublicKey
    crit: Any = msgspec.UNSET


class _Claims(msgspec.Struct):
    htm: str
    htu: str
    iat: Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
    jti: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{22,128}\Z")]  # 16 random bytes or more
    ath: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A verified proof, whose id is not checked for replay yet."""

    key_thumbprint: str
    id: str
    issued_at: int


@dataclass(slots=True)
class SeenProofs:
    """The ids of used proofs, each stored until its proof has expired."""

    most: int = MAX_IDS
    _until: dict[tuple[str, str], float] = field(default_factory=dict, repr=False)
    _swept_at: float = -math.inf

    def take(self, proof: Proof, *, now: float) -> None:
        """Use up a proof; `ProofInvalid` for a replay."""
        key = (proof.key_thumbprint, proof.id)
        if self._until.get(key, now) > now:
            raise ProofInvalid("the proof was used before")
        if len(self._until) >= self.most and abs(now - self._swept_at) >= SWEEP_PAUSE:
            self._until = {known: until for known, until in self._until.items() if until > now}
            self._swept_at = now
        if len(self._until) >= self.most:
            raise RateLimited(retry_after=CLOCK_TOLERANCE)
        self._until[key] = proof.issued_at + CLOCK_TOLERANCE + 1


def verify_proof(
    text: str, *, method: str, urls: Collection[str], now: float, access_token: str | None = None
) -> Proof:
    """Verify the proof in the header ``DPoP``; `ProofInvalid`, or `ProofClock` when only its time is wrong.

    urls: the addresses under which this request may have been sent, without query and fragment.
    access_token: the session token that goes with the request, if any.
    """
    if len(text) > MAX_PROOF_CHARACTERS:
        raise ProofInvalid("the proof is too long")
    key, claims = _verified(text)
    if claims.htm != method:
        raise ProofInvalid("the proof is for another method")
    if _normal(claims.htu) not in set(_each_normal(urls)):
        raise ProofInvalid("the proof is for another address")
    if access_token is not None:
        expected = base64url(hashlib.sha256(access_token.encode("utf-8", "surrogateescape")).digest())
        if claims.ath is None or not hmac.compare_digest(claims.ath.encode(), expected.encode()):
            raise ProofInvalid("the proof is for another token")
    if abs(claims.iat - now) > CLOCK_TOLERANCE:
        raise ProofClock("the proof was made at another time than now", now=int(now))
    return Proof(key_thumbprint=key.thumbprint(), id=claims.jti, issued_at=claims.iat)


def _verified(text: str) -> tuple[ECKey, _Claims]:
    """Verify a compact JWS with the key in its header; returns the key and the claims."""
    segments = text.split(".")
    if len(segments) != 3 or not text.isascii():
        raise ProofInvalid("the proof is not a compact JWS")
    raw = [from_base64url(segment) for segment in segments]
    if raw[0] is None or raw[1] is None or raw[2] is None:
        raise ProofInvalid("the proof is not base64url")
    try:
        header = msgspec.json.decode(raw[0], type=_Header)
        claims = msgspec.json.decode(raw[1], type=_Claims)
        if header.crit is not msgspec.UNSET:
            raise ProofInvalid("the proof has critical extensions")
        if any(len(from_base64url(coordinate) or b"") != 32 for coordinate in (header.jwk.x, header.jwk.y)):
            raise ProofInvalid("the proof's key is not a P-256 key")
        key = ECKey.import_key(msgspec.to_builtins(header.jwk))
        jws.deserialize_compact(text, key, registry=_REGISTRY)
    except (JoseError, ValueError, RecursionError) as error:  # msgspec's and cryptography's are ValueErrors
        raise ProofInvalid("the proof did not verify") from error
    return key, claims


def _each_normal(urls: Iterable[str]) -> Iterable[tuple[str, str, int | None, str]]:
    return (parts for parts in map(_normal, urls) if parts is not None)


def _normal(url: str) -> tuple[str, str, int | None, str] | None:
    """Normalise a URL to scheme, host, port and path; None with query or fragment, or when malformed."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.query or parts.fragment or parts.username is not None or parts.hostname is None:
        return None
    return parts.scheme, parts.hostname, port or _DEFAULT_PORTS.get(parts.scheme), _normal_path(parts.path)


def _normal_path(path: str) -> str:
    """Normalise a path (RFC 3986 §6.2.2.2): unreserved characters are decoded, other percent-encodings upper case."""

    def decoded(found: re.Match[str]) -> str:
        character = chr(int(found[1], 16))
        return character if character in _UNRESERVED else found[0].upper()

    return re.sub("%([0-9A-Fa-f]{2})", decoded, path) or "/"
