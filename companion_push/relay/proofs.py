"""Authentication of callers: each request has a proof of possession of the caller's key (DPoP, RFC 9449; docs/protocol/relay.md).

`check_proof` keeps nothing but the keys in `KnownKeys`, which spare it work and change no result. `UsedProofs` detects replay: each proof carries a nonce of the relay, and its id is remembered for
as long as its nonce is taken (docs/adr/0016). `ProofsInMemory` is that of one process.
"""

import hashlib
import hmac
import secrets
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from companion_push.relay.problems import Problem, Slug
from headless_passkey.errors import RemoteProtocolError
from headless_passkey.text.base64url import from_base64url
from http_serving.proofs import MAX_IDS, REGISTRY, KnownKeys, normal_url
from program_parts.base64url import base64url

HEADER: Final = "DPoP"
NONCE_HEADER: Final = "DPoP-Nonce"
SKEW: Final = 60  # seconds by which the caller's clock may be ahead or behind
STEP: Final = 300  # seconds: how long a nonce is given out; it is taken for one step more
_MAX_SIZE: Final = 4096  # characters; a proof of ours has about 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A verified proof."""

    name: str  # the caller: the thumbprint of its key
    jti: str = field(repr=False)
    nonce: str | None = field(repr=False)


def check_proof(
    headers: list[str],
    *,
    method: str,
    url: str,
    now: float,
    known: KnownKeys | None = None,
    shown: "Shown | None" = None,
) -> Proof:
    """Verify the proof of a request; returns the caller. headers: the values of its header ``DPoP``.

    url: of the request, below the configured public URL, without query. known: keys that need not be parsed. shown: what
    `claimed_in` has found in these headers. Refuses with `proof-invalid`, or with `proof-clock` when only the time is wrong.
    """
    if len(headers) != 1:
        raise _refused(f"expected one header {HEADER}, got {len(headers)}")
    name, claims = _verified(headers[0], KnownKeys() if known is None else known, shown)
    if claims.htm != method:
        raise _refused("htm is not the method of this request")
    if claims.htu != url and _normal(claims.htu) != _normal(url):
        raise _refused("htu is not the URL of this request below the relay's public URL")
    if abs(now - claims.iat) > SKEW:
        raise Problem(Slug.PROOF_CLOCK, now=int(now))
    return Proof(name=name, jti=claims.jti, nonce=claims.nonce)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a proof shows, **not verified**."""

    name: str  # of the caller
    claims: "_Claims"

    @property
    def nonce(self) -> str | None:
        return self.claims.nonce


def claimed_in(headers: list[str], known: KnownKeys | None = None) -> Shown | None:
    """What a proof shows, **not verified**; None for what is no proof. It costs no signature check.

    known: keys whose headers need not be parsed.
    """
    if len(headers) != 1 or len(headers[0]) > _MAX_SIZE:
        return None
    try:
        header, raw_claims, signature = headers[0].split(".")
        from_base64url(signature)
        claims = msgspec.json.decode(from_base64url(raw_claims), type=_Claims)
        found = None if known is None else known.find(header)
        if found is not None:
            return Shown(name=found[1], claims=claims)
        jwk = msgspec.json.decode(from_base64url(header), type=_Header).jwk
    except (RemoteProtocolError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None
    members = f'{{"crv":"{jwk.crv}","kty":"{jwk.kty}","x":"{jwk.x}","y":"{jwk.y}"}}'  # RFC 7638
    return Shown(name=base64url(hashlib.sha256(members.encode()).digest()), claims=claims)


class UsedProofs(Protocol):
    """The proofs that a relay has taken, each once. The key of its nonces lives exactly as long as this memory.

    What returns an awaitable has to wait for others, and is done when that is; None: it is done. `now` is in Unix seconds.
    """

    def __len__(self) -> int:
        """How many ids are remembered, by this process."""
        ...

    def nonce(self, now: float) -> str:
        """The nonce for proofs from now on, as far as this process knows."""
        ...

    def check_nonce(self, given: str | None, now: float) -> Awaitable[None] | None:
        """Refuse with `use-dpop-nonce` what is no nonce that is taken, before a signature is verified."""
        ...

    def take(self, proof: Proof, now: float) -> Awaitable[None] | None:
        """Use up a proof: of those who show it one is served, at whatever process. Refuses with `use-dpop-nonce` when it lacks
        a nonce that is taken, with `proof-invalid` for a replay.
        """
        ...


class ProofsInMemory:
    """The proofs that this process has taken: a `UsedProofs` that waits for nobody.

    A nonce is a MAC over the number of a step, with a key that this object makes. So no proof that was made before it
    existed is taken, whatever the clocks said, and what it must remember are the ids of two steps. The steps are counted:
    a clock that jumps can only begin the next one.
    """

    def __init__(self, *, most: int = MAX_IDS) -> None:
        """most: ids in one step. When there are more, the next step begins, so that no caller is refused for others."""
        self._most = most
        self._key = secrets.token_bytes(32)
        self._step, self._began = 0, 0.0
        self._taken = self._nonce_of(0), self._nonce_of(-1)  # the nonces of this step and of the one before
        self._now: set[bytes] = set()  # ids of this step, and of the one before
        self._before: set[bytes] = set()

    def __len__(self) -> int:
        """How many ids are remembered."""
        return len(self._now) + len(self._before)

    def nonce(self, now: float) -> str:
        """The nonce for proofs from now on."""
        age = abs(now - self._began)
        if age >= STEP or len(self._now) >= self._most:
            recent = age < 2 * STEP
            self._before, self._now = (self._now if recent else set()), set()
            self._step += 1 if recent else 2  # a nonce ends with the memory of its proofs
            self._began = self._began + STEP if recent and now >= self._began + STEP else now
            self._taken = self._nonce_of(self._step), self._nonce_of(self._step - 1)
        return self._taken[0]

    def take(self, proof: Proof, now: float) -> None:
        """Use up a proof. Refuses with `use-dpop-nonce` when it lacks a recent nonce, with `proof-invalid` for a replay."""
        self.check_nonce(proof.nonce, now)
        # of one size, however long the jti is; the nonce is in what was signed, so a replay is of the same step
        used = hashlib.sha256(f"{proof.name} {proof.jti}".encode()).digest()[:16]
        if used in self._now or used in self._before:
            raise _refused("the proof has been used before")
        self._now.add(used)

    def check_nonce(self, given: str | None, now: float) -> None:
        """Refuse with `use-dpop-nonce` what is no nonce of this step or the one before."""
        self.nonce(now)  # which begins the next step when it is time
        if not any(hmac.compare_digest((given or "").encode(), nonce.encode()) for nonce in self._taken):
            raise Problem(Slug.USE_DPOP_NONCE)

    def _nonce_of(self, step: int) -> str:
        return base64url(hmac.digest(self._key, b"headless-passkey dpop nonce %d" % step, "sha256")[:16])


class _Jwk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A public key; every other member is refused, those of a private key included."""

    kty: Literal["EC"]
    crv: Literal["P-256"]
    x: str
    y: str


class _Header(msgspec.Struct, frozen=True):
    """The JWS header. Unknown parameters are ignored unless critical (RFC 7515)."""

    typ: Literal["dpop+jwt"]
    alg: Literal["ES256"]
    jwk: _Jwk
    crit: Any = msgspec.UNSET


class _Claims(msgspec.Struct, frozen=True):
    """The claims. Unknown ones are ignored (RFC 7519)."""

    htm: str
    htu: str
    iat: Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
    jti: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{22,128}\Z")]  # 16 random bytes or more
    nonce: str | None = None

    def __repr__(self) -> str:
        return "_Claims()"  # it holds a secret


def _verified(compact: str, known: KnownKeys, shown: Shown | None) -> tuple[str, _Claims]:
    """Verify a compact JWS with the key in its header; returns the key's name and the claims."""
    if len(compact) > _MAX_SIZE:
        raise _refused(f"a proof has at most {_MAX_SIZE} characters")
    parts = compact.split(".")
    if len(parts) != 3:
        raise _refused("a proof has three parts")
    claims = _claims_in(parts) if shown is None else shown.claims
    found = known.find(parts[0])
    key, name = _key_of(parts[0]) if found is None else found
    try:
        jws.deserialize_compact(compact, key, registry=REGISTRY)
    except (JoseError, ValueError) as error:
        raise _refused("the signature does not verify") from error
    known.keep(parts[0], key, name)
    return name, claims


def _claims_in(parts: list[str]) -> _Claims:
    """Parse the claims of a JWS. parts: its three."""
    try:
        _, raw_claims, _ = map(from_base64url, parts)
        return msgspec.json.decode(raw_claims, type=_Claims)
    except (RemoteProtocolError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refused("the claims are not what a proof has") from error


def _key_of(encoded: str) -> tuple[ECKey, str]:
    """Parse the key in a JWS header; returns it with its name."""
    try:
        header = msgspec.json.decode(from_base64url(encoded), type=_Header)
        sizes = {len(from_base64url(coordinate)) for coordinate in (header.jwk.x, header.jwk.y)}
    except (RemoteProtocolError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refused("the header is not what a proof has") from error
    if header.crit is not msgspec.UNSET:
        raise _refused("no critical header parameter is known here")
    if sizes != {32}:
        raise _refused("the coordinates of the key have 32 bytes each")
    try:
        key = ECKey.import_key(msgspec.to_builtins(header.jwk))
    except (JoseError, ValueError) as error:
        raise _refused("the key is not a point on P-256") from error
    return key, key.thumbprint()


def _normal(url: str) -> tuple[str, str, int | None, str]:
    normal = normal_url(url)
    if normal is None:
        raise _refused("htu must be a URL with a host, and without query, fragment and user")
    return normal


def _refused(detail: str) -> Problem:
    return Problem(Slug.PROOF_INVALID, detail)
