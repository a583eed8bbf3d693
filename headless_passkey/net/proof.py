"""Proofs of possession for requests (DPoP, RFC 9449; docs/protocol/relay.md).

A proof is a compact JWS for one method, URL and time, with a random id, which servers accept once (replay), and with
the newest nonce that the server has given (RFC 9449 §8). There are no bearer tokens, so an eavesdropped request is of no use.
"""

import hashlib
import json
import secrets
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from headless_passkey.trust.signing import SigningKey
from program_parts.base64url import base64url

PROOF_HEADER: Final = "DPoP"
NONCE_HEADER: Final = "DPoP-Nonce"


def make_proof(
    key: SigningKey,
    *,
    method: str,
    url: str,
    now: float,
    access_token: str | None = None,
    nonce: str | None = None,
) -> str:
    """Make a proof of possession of `key` for one request: the value of the header ``DPoP``.

    url: as requested; query and fragment are left out of the proof. now: Unix seconds.
    access_token: the session token that goes with the request, if any; bound as ``ath``. nonce: the server's, if known.
    """
    x, y = key.public_key[1:33], key.public_key[33:65]
    jwk = {"kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y)}
    header = {"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk}
    claims: dict[str, Any] = {
        "htm": method,
        "htu": urlunsplit(urlsplit(url)._replace(query="", fragment="")),
        "iat": int(now),
        "jti": base64url(secrets.token_bytes(16)),
    }
    if access_token is not None:
        claims["ath"] = base64url(hashlib.sha256(access_token.encode("ascii")).digest())
    if nonce is not None:
        claims["nonce"] = nonce
    signing_input = f"{_segment(header)}.{_segment(claims)}"
    return f"{signing_input}.{base64url(key.sign(signing_input.encode('ascii')))}"


def _segment(value: dict[str, Any]) -> str:
    return base64url(json.dumps(value, separators=(",", ":")).encode())
