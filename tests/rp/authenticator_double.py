"""Clients and a software authenticator for the relying party's tests: well-behaved until told otherwise."""

import base64
import hashlib
import json
import secrets
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from fido2 import cbor

JSON = dict[str, Any]

UP, UV, BE, BS, AT, ED = 0x01, 0x04, 0x08, 0x10, 0x40, 0x80
SYNCED: Final = UP | UV | BE | BS
AAGUID: Final = bytes.fromhex("00112233445566778899aabbccddeeff")


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What a client or an authenticator does otherwise than it should; by default, nothing."""

    type: str | None = None
    challenge: str | None = None
    origin: str | None = None
    client_data: Mapping[str, Any] = field(default_factory=dict)  # members added
    client_data_mark: bytes = b""  # in front of it
    raw_client_data: bytes | None = None
    rp_id: str | None = None
    flags: int = SYNCED
    counter: int | None = None
    algorithm: int | None = None  # what the COSE key says it is
    cose_key: Mapping[int, Any] | None = None
    client_outputs: Mapping[str, Any] = field(default_factory=dict)
    signed_outputs: Mapping[str, Any] | None = None
    named_id: bytes | None = None  # the id in the JSON, when it is not the credential's
    user_handle: bytes | str | None = "own"
    signature: bytes | None = None
    transports: Any = ("hybrid", "internal")
    raw_attestation: bytes | None = None
    raw_auth_data: bytes | None = None


NO_FAULTS: Final = Faults()


class ES256Key:
    def __init__(self, private: ec.EllipticCurvePrivateKey | None = None) -> None:
        self._private = private or ec.generate_private_key(ec.SECP256R1())

    def cose(self) -> dict[int, Any]:
        numbers = self._private.public_key().public_numbers()
        return {1: 2, 3: -7, -1: 1, -2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")}

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data, ec.ECDSA(SHA256()))


class EdDSAKey:
    def __init__(self) -> None:
        self._private = ed25519.Ed25519PrivateKey.generate()

    def cose(self) -> dict[int, Any]:
        return {1: 1, 3: -8, -1: 6, -2: self._private.public_key().public_bytes_raw()}

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)


class RS256Key:
    def __init__(self, bits: int = 2048) -> None:
        self._private = rsa.generate_private_key(65537, bits)

    def cose(self) -> dict[int, Any]:
        numbers = self._private.public_key().public_numbers()
        size = (numbers.n.bit_length() + 7) // 8
        return {1: 3, 3: -257, -1: numbers.n.to_bytes(size, "big"), -2: numbers.e.to_bytes(3, "big")}

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data, PKCS1v15(), SHA256())


Key = ES256Key | EdDSAKey | RS256Key


@dataclass
class Passkey:
    """One credential of the software authenticator."""

    rp_id: str
    user_handle: bytes
    key: Key
    credential_id: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    counter: int = 0


def create(
    options: JSON, origin: str, faults: Faults = NO_FAULTS, *, key: Key | None = None
) -> tuple[Passkey, JSON]:
    """A new passkey and its RegistrationResponseJSON."""
    passkey = Passkey(
        rp_id=options["rp"]["id"], user_handle=unb64(options["user"]["id"]), key=key or ES256Key()
    )
    return passkey, attest(passkey, options, origin, faults)


def attest(passkey: Passkey, options: JSON, origin: str, faults: Faults = NO_FAULTS) -> JSON:
    cose = dict(faults.cose_key if faults.cose_key is not None else passkey.key.cose())
    if faults.algorithm is not None:
        cose[3] = faults.algorithm
    attested = (
        AAGUID + struct.pack(">H", len(passkey.credential_id)) + passkey.credential_id + cbor.encode(cose)
    )
    auth_data = _auth_data(passkey, faults, attested)
    attestation = faults.raw_attestation or cbor.encode({"fmt": "none", "attStmt": {}, "authData": auth_data})
    response = {
        "clientDataJSON": b64(_client_data("webauthn.create", options, origin, faults)),
        "attestationObject": b64(attestation),
        "transports": faults.transports,
    }
    return _credential(passkey, response, faults)


def get(passkey: Passkey, options: JSON, origin: str, faults: Faults = NO_FAULTS) -> JSON:
    """An AuthenticationResponseJSON."""
    auth_data = _auth_data(passkey, faults, b"")
    client_data = _client_data("webauthn.get", options, origin, faults)
    signature = faults.signature or passkey.key.sign(auth_data + hashlib.sha256(client_data).digest())
    handle = passkey.user_handle if faults.user_handle == "own" else faults.user_handle
    response = {
        "clientDataJSON": b64(client_data),
        "authenticatorData": b64(auth_data),
        "signature": b64(signature),
        "userHandle": None if handle is None else b64(cast("bytes", handle)),
    }
    return _credential(passkey, response, faults)


def _client_data(kind: str, options: JSON, origin: str, faults: Faults) -> bytes:
    if faults.raw_client_data is not None:
        return faults.raw_client_data
    members = {
        "type": faults.type or kind,
        "challenge": faults.challenge if faults.challenge is not None else options["challenge"],
        "origin": faults.origin or origin,
        "crossOrigin": False,
        **faults.client_data,
    }
    return faults.client_data_mark + json.dumps(members, separators=(",", ":")).encode()


def _auth_data(passkey: Passkey, faults: Faults, attested: bytes) -> bytes:
    if faults.raw_auth_data is not None:
        return faults.raw_auth_data
    flags = faults.flags | (AT if attested else 0) | (ED if faults.signed_outputs is not None else 0)
    counter = passkey.counter if faults.counter is None else faults.counter
    outputs = b"" if faults.signed_outputs is None else cbor.encode(faults.signed_outputs)
    rp_id_hash = hashlib.sha256((faults.rp_id or passkey.rp_id).encode()).digest()
    return rp_id_hash + struct.pack(">BI", flags, counter) + attested + outputs


def _credential(passkey: Passkey, response: JSON, faults: Faults) -> JSON:
    named = b64(faults.named_id or passkey.credential_id)
    return {
        "id": named,
        "rawId": named,
        "type": "public-key",
        "authenticatorAttachment": "cross-platform",
        "response": response,
        "clientExtensionResults": dict(faults.client_outputs),
    }


@dataclass
class ProofFaults:
    """How a request proof differs from a good one."""

    header: Mapping[str, Any] = field(default_factory=dict)
    claims: Mapping[str, Any] = field(default_factory=dict)
    jwk: Mapping[str, Any] = field(default_factory=dict)
    signature: bytes | None = None


class DeviceKey:
    """A device's key and the RFC 9449 proofs it makes."""

    def __init__(self) -> None:
        self._private = ec.generate_private_key(ec.SECP256R1())
        numbers = self._private.public_key().public_numbers()
        self.jwk = {
            "kty": "EC",
            "crv": "P-256",
            "x": b64(numbers.x.to_bytes(32, "big")),
            "y": b64(numbers.y.to_bytes(32, "big")),
        }

    @property
    def thumbprint(self) -> str:
        required = json.dumps(self.jwk, sort_keys=True, separators=(",", ":"))
        return b64(hashlib.sha256(required.encode()).digest())

    def proof(
        self,
        method: str,
        url: str,
        now: float,
        token: str | None = None,
        faults: ProofFaults | None = None,
        *,
        nonce: str | None = None,
    ) -> str:
        faults = faults or ProofFaults()
        header = {"typ": "dpop+jwt", "alg": "ES256", "jwk": {**self.jwk, **faults.jwk}, **faults.header}
        claims = {"htm": method, "htu": url, "iat": int(now), "jti": secrets.token_urlsafe(16)}
        if token is not None:
            claims["ath"] = b64(hashlib.sha256(token.encode()).digest())
        if nonce is not None:
            claims["nonce"] = nonce
        claims |= faults.claims
        signed = ".".join(b64(json.dumps(part).encode()) for part in (header, claims))
        r, s = decode_dss_signature(self._private.sign(signed.encode(), ec.ECDSA(SHA256())))
        signature = faults.signature or r.to_bytes(32, "big") + s.to_bytes(32, "big")
        return f"{signed}.{b64(signature)}"
