"""Who is calling: a proof of the caller's own key with every request (RFC 9449; docs/protocol/relay.md).

`check_proof` is pure; that an id is taken once is the store's part (`store.take_proof`).
"""

import re
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec

from companion_push.relay.problems import Problem, Slug
from headless_passkey.errors import RemoteProtocolError
from headless_passkey.trust.signing import from_base64url, thumbprint, verify

HEADER: Final = "DPoP"
SKEW: Final = 60  # seconds by which the caller's clock may differ, either way
_MAX_SIZE: Final = 2048  # characters; ours have some 500
_JTI: Final = re.compile(r"[A-Za-z0-9_-]{22,128}", re.ASCII)  # 16 bytes or more


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A proof that holds."""

    name: str  # the caller: the thumbprint of its key
    jti: str = field(repr=False)
    until: float  # when it is too old anyhow, and need not be remembered


def check_proof(headers: list[str], *, method: str, url: str, now: float) -> Proof:
    """The caller of `method` on `url`, by the values of its header ``DPoP``.

    url: what was asked for, below the configured public URL, without query. Refuses with `proof-invalid`, or with
    `proof-clock` when nothing but the time is wrong.
    """
    if len(headers) != 1:
        raise _refused(f"expected one header {HEADER}, got {len(headers)}")
    header, claims, signature, signed = _split(headers[0])
    key = b"\x04" + _coordinate(header.jwk.x) + _coordinate(header.jwk.y)
    try:
        genuine = verify(key, signature, signed)
    except RemoteProtocolError as error:
        raise _refused("the key is not a point on P-256") from error
    if not genuine:
        raise _refused("the signature does not verify")
    if claims.htm != method:
        raise _refused("htm is not the method of this request")
    if _normal(claims.htu) != _normal(url):
        raise _refused("htu is not the URL of this request below the relay's public URL")
    if not _JTI.fullmatch(claims.jti):
        raise _refused("jti must be base64url of 16 random bytes or more")
    if abs(now - claims.iat) > SKEW:
        raise Problem(Slug.PROOF_CLOCK, now=int(now))
    return Proof(name=thumbprint(key), jti=claims.jti, until=claims.iat + SKEW + 1)


class _Jwk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A public key and nothing else: a private member is refused like any other."""

    kty: Literal["EC"]
    crv: Literal["P-256"]
    x: str
    y: str


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    typ: Literal["dpop+jwt"]
    alg: Literal["ES256"]
    jwk: _Jwk


class _Claims(msgspec.Struct, frozen=True):
    """Claims we do not know are ignored, as RFC 7519 has it."""

    htm: str
    htu: str
    iat: Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
    jti: str


def _split(compact: str) -> tuple[_Header, _Claims, bytes, bytes]:
    """Header, claims, signature, and what was signed."""
    if len(compact) > _MAX_SIZE:
        raise _refused(f"a proof has at most {_MAX_SIZE} characters")
    parts = compact.split(".")
    if len(parts) != 3:
        raise _refused("a proof has three parts")
    try:
        raw_header, raw_claims, signature = map(from_base64url, parts)
        header = msgspec.json.decode(raw_header, type=_Header)
        claims = msgspec.json.decode(raw_claims, type=_Claims)
    except (RemoteProtocolError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refused("header or claims are not what a proof has") from error
    return header, claims, signature, f"{parts[0]}.{parts[1]}".encode("ascii")


def _coordinate(text: str) -> bytes:
    try:
        value = from_base64url(text)
    except RemoteProtocolError as error:
        raise _refused("a coordinate of the key is not base64url") from error
    if len(value) != 32:
        raise _refused("a coordinate of the key does not have 32 bytes")
    return value


def _normal(url: str) -> tuple[str, str, int | None, str]:
    """What is compared of a URL: scheme, host, port and path. A query or fragment is refused."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _refused("htu is not a URL") from error
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise _refused("htu must have no query, no fragment and no user")
    if port == {"https": 443, "http": 80}.get(parts.scheme):
        port = None
    return parts.scheme, parts.hostname or "", port, parts.path


def _refused(detail: str) -> Problem:
    return Problem(Slug.PROOF_INVALID, detail)
