"""Verification of proofs of possession (DPoP, RFC 9449; docs/protocol/relying-party.md).

`verify_proof` keeps nothing but the keys in `KnownKeys`, which spare it work and change no result; time is passed in. A `UsedProofs` detects replay: each proof carries a nonce of the server (RFC 9449 §8),
and its id is remembered for as long as its nonce is taken (docs/adr/0016).
"""

import hashlib
import hmac
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Literal, Protocol, Self

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from http_serving.proofs import MAX_IDS, REGISTRY, KnownKeys, normal_url
from program_parts.base64url import base64url, from_base64url
from relying_party.errors import ProofClock, ProofInvalid, UseDpopNonce

CLOCK_TOLERANCE: Final = 60  # seconds, ahead or behind
MAX_PROOF_CHARACTERS: Final = 4096
STEP_SECONDS: Final = 300  # how long a nonce is given out; it is taken for one step more


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
    nonce: str | None = None

    def __repr__(self) -> str:
        return "_Claims()"  # it holds a secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A verified proof, whose id is not checked for replay yet."""

    key_thumbprint: str
    id: str
    nonce: str | None = field(repr=False)

    @property
    def digest(self) -> bytes:
        """What is remembered of a used proof: 16 bytes, however long its id is."""
        return hashlib.sha256(f"{self.key_thumbprint} {self.id}".encode()).digest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of the nonce. Steps are counted: a clock that jumps can only begin the next one."""

    number: int = 0
    began: float = 0.0  # Unix seconds
    used: int = 0  # proofs taken in it

    def at(self, now: float, *, most: int = MAX_IDS) -> Self:
        """The step at `now`: this one, until its time is over or `most` proofs were taken in it.

        The one after the next, when a whole step was left out: the proofs of both earlier ones have ended.
        """
        age = abs(now - self.began)
        if age < STEP_SECONDS and self.used < most:
            return self
        recent = age < 2 * STEP_SECONDS
        on_time = recent and now >= self.began + STEP_SECONDS
        began = self.began + STEP_SECONDS if on_time else now
        return type(self)(number=self.number + (1 if recent else 2), began=began)

    def nonce(self, key: bytes, *, back: int = 0) -> str:
        """The nonce of this step, or of so many before. key: 32 secret bytes."""
        step = b"headless-passkey dpop nonce %d" % (self.number - back)
        return base64url(hmac.digest(key, step, "sha256")[:16])

    def check(self, proof: Proof, key: bytes) -> str:
        """Check that the proof has the nonce of this step or of the one before (`UseDpopNonce`); returns this step's."""
        newest, given = self.nonce(key), (proof.nonce or "").encode()
        if not any(hmac.compare_digest(given, one.encode()) for one in (newest, self.nonce(key, back=1))):
            raise UseDpopNonce(nonce=newest)
        return newest


class UsedProofs(Protocol):
    """The interface of a memory for used proofs, which several processes may share."""

    async def take_proof(self, proof: Proof, *, now: float) -> str:
        """Use up a proof; returns the newest nonce, for the answer.

        `UseDpopNonce` when it lacks a recent nonce, `ProofInvalid` for a replay. It is atomic: of two concurrent calls
        with one proof one succeeds.
        """


class ProofsInMemory:
    """The used proofs of one process. The key of its nonces lives as long as this memory: no proof from before is taken."""

    def __init__(self, *, most: int = MAX_IDS) -> None:
        """most: proofs in one step. When there are more, the next step begins, so that no caller is refused for others."""
        self._most, self._key = most, secrets.token_bytes(32)
        self._step = Step()
        self._used: dict[int, set[bytes]] = {0: set()}  # by step: the current one, and the one before

    def nonce(self, *, now: float) -> str:
        """The newest nonce."""
        step = self._step.at(now, most=self._most)
        if step.number != self._step.number:
            before = self._used.get(step.number - 1, set())
            self._used = {step.number - 1: before, step.number: set()}
        self._step = step
        return step.nonce(self._key)

    async def take_proof(self, proof: Proof, *, now: float) -> str:
        self.nonce(now=now)
        nonce, digest = self._step.check(proof, self._key), proof.digest
        if any(digest in used for used in self._used.values()):
            raise ProofInvalid("the proof was used before")
        self._used[self._step.number].add(digest)
        self._step = replace(self._step, used=self._step.used + 1)
        return nonce


def verify_proof(
    text: str,
    *,
    method: str,
    urls: Collection[str],
    now: float,
    access_token: str | None = None,
    known: KnownKeys | None = None,
) -> Proof:
    """Verify the proof in the header ``DPoP``; `ProofInvalid`, or `ProofClock` when only its time is wrong.

    urls: the addresses under which this request may have been sent, without query and fragment.
    access_token: the session token that goes with the request, if any. known: keys that need not be parsed.
    """
    if len(text) > MAX_PROOF_CHARACTERS:
        raise ProofInvalid("the proof is too long")
    thumbprint, claims = _verified(text, KnownKeys() if known is None else known)
    if claims.htm != method:
        raise ProofInvalid("the proof is for another method")
    if claims.htu not in urls and not _is_one_of(claims.htu, urls):
        raise ProofInvalid("the proof is for another address")
    if access_token is not None:
        expected = base64url(hashlib.sha256(access_token.encode("utf-8", "surrogateescape")).digest())
        if claims.ath is None or not hmac.compare_digest(claims.ath.encode(), expected.encode()):
            raise ProofInvalid("the proof is for another token")
    if abs(claims.iat - now) > CLOCK_TOLERANCE:
        raise ProofClock("the proof was made at another time than now", now=int(now))
    return Proof(key_thumbprint=thumbprint, id=claims.jti, nonce=claims.nonce)


def _verified(text: str, known: KnownKeys) -> tuple[str, _Claims]:
    """Verify a compact JWS with the key in its header; returns the key's thumbprint and the claims."""
    segments = text.split(".")
    if len(segments) != 3 or not text.isascii():
        raise ProofInvalid("the proof is not a compact JWS")
    raw = [from_base64url(segment) for segment in segments]
    if raw[0] is None or raw[1] is None or raw[2] is None:
        raise ProofInvalid("the proof is not base64url")
    try:
        claims = msgspec.json.decode(raw[1], type=_Claims)
        found = known.find(segments[0])
        key, thumbprint = _key_of(raw[0]) if found is None else found
        jws.deserialize_compact(text, key, registry=REGISTRY)
    except (JoseError, ValueError, RecursionError) as error:  # msgspec's and cryptography's are ValueErrors
        raise ProofInvalid("the proof did not verify") from error
    known.keep(segments[0], key, thumbprint)
    return thumbprint, claims


def _key_of(raw: bytes) -> tuple[ECKey, str]:
    """Parse the key in a JWS header; returns it with its thumbprint."""
    header = msgspec.json.decode(raw, type=_Header)
    if header.crit is not msgspec.UNSET:
        raise ProofInvalid("the proof has critical extensions")
    if any(len(from_base64url(coordinate) or b"") != 32 for coordinate in (header.jwk.x, header.jwk.y)):
        raise ProofInvalid("the proof's key is not a P-256 key")
    key = ECKey.import_key(msgspec.to_builtins(header.jwk))
    return key, key.thumbprint()


def _is_one_of(htu: str, urls: Iterable[str]) -> bool:
    normal = normal_url(htu)
    return normal is not None and normal in map(normal_url, urls)
