"""The word: a companion's signed statement of the ring that it holds, and of the request that it claims (docs/protocol/trust.md).

    document = body || signature (64 bytes)
    body     = [label, account, by, version, ring hash, at, claim | null]
    claim    = [device, request id, SHA-256 of the sealed envelope]

A word without a claim makes a ring's freshness visible: its signer knew of no other ring at that time. A word with a
claim is what a device needs before it sends its one command: a companion binds itself to the very bytes that were
sealed to it.

This module holds nothing that decrypts. The relay imports it to verify claims before it grants them.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Final

from headless_passkey.errors import (
    LocalProtocolError,
    ProtocolReason,
    RemoteProtocolError,
    TrustError,
    TrustReason,
)
from headless_passkey.hybrid import cbor
from headless_passkey.trust.fields import PROJECT, REQUEST_ID_SIZE, Fields
from headless_passkey.trust.ring import Member, Ring
from headless_passkey.trust.signing import SIGNATURE_SIZE, SigningKey, sign_document, thumbprint, verify

WORD_LABEL: Final = f"{PROJECT} word v2"
MAX_WORD: Final = 512  # bytes
_MAX_VERSION: Final = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A companion's claim of one request: whose it is, and the bytes that came."""

    device: str  # a device's name
    request_id: bytes  # 16 bytes
    sealed: bytes  # 32 bytes: SHA-256 of the sealed envelope

    @classmethod
    def of(cls, *, device: str, request_id: bytes, sealed: bytes) -> "Claim":
        """Make the claim of a request. sealed: the envelope as it came."""
        return cls(device=device, request_id=request_id, sealed=hashlib.sha256(sealed).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A companion's word. Both constructors leave one that its signer has signed."""

    account: str
    by: str  # the signing companion's name
    version: int  # of the newest ring that it holds
    ring_hash: bytes  # 32 bytes
    at: int  # Unix seconds by its clock
    claim: Claim | None
    document: bytes = field(repr=False)  # the signed bytes

    @classmethod
    def give(cls, key: SigningKey, *, ring: Ring, now: float, claim: Claim | None = None) -> "Word":
        """Make and sign a word. ring: the newest ring of the companion that holds `key`."""
        by = thumbprint(key.public_key)
        claimed = None if claim is None else [claim.device, claim.request_id, claim.sealed]
        body = cbor.encode([WORD_LABEL, ring.account, by, ring.version, ring.hash, int(now), claimed])
        try:
            return cls._parse(body + sign_document(key, body))
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"the word would be invalid: {error}") from error

    @classmethod
    def parse(cls, document: bytes, *, by: Member) -> "Word":
        """Verify and parse a word of `by`, a companion.

        Raises `TrustError` (bad-signature) when somebody else signed it or is named in it, `RemoteProtocolError` when
        it is malformed.
        """
        if not SIGNATURE_SIZE < len(document) <= MAX_WORD:
            raise RemoteProtocolError(
                f"a word has {SIGNATURE_SIZE + 1} to {MAX_WORD} bytes, got {len(document)}",
                reason=ProtocolReason.TOO_LONG
                if len(document) > MAX_WORD
                else ProtocolReason.MALFORMED_DOCUMENT,
            )
        if not verify(by.signing_key, document[-SIGNATURE_SIZE:], document[:-SIGNATURE_SIZE]):
            raise TrustError(TrustReason.BAD_SIGNATURE, "the word is not signed by that companion")
        word = cls._parse(document)
        if word.by != by.name:
            raise TrustError(TrustReason.BAD_SIGNATURE, "the word is signed in another companion's name")
        return word

    @classmethod
    def _parse(cls, document: bytes) -> "Word":
        fields = Fields.of(document[:-SIGNATURE_SIZE], WORD_LABEL, 6, limit=MAX_WORD)
        return cls(
            account=fields.account(),
            by=fields.name(),
            version=fields.integer(1, _MAX_VERSION),
            ring_hash=fields.octets(32),
            at=fields.time(),
            claim=fields.optional(lambda: _parse_claim(Fields(fields.take(), "claim", 3))),
            document=bytes(document),
        )


def _parse_claim(fields: Fields) -> Claim:
    return Claim(device=fields.name(), request_id=fields.octets(REQUEST_ID_SIZE), sealed=fields.octets(32))
