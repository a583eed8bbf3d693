"""Request proofs, checked with another JOSE implementation."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey

from headless_passkey.net.proof import make_proof
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.signing import SoftwareSigningKey, thumbprint
from program_parts.base64url import base64url

KEY = SoftwareSigningKey.generate()
URL = "https://relay.example:8443/v1/inbox?cursor=3&wait=25#top"


def claims_of(proof: str, key: SoftwareSigningKey = KEY) -> dict[str, Any]:
    """The claims, after an independent check of signature and header."""
    header = json.loads(from_base64url(proof.split(".", maxsplit=1)[0]))
    assert header == {"typ": "dpop+jwt", "alg": "ES256", "jwk": header["jwk"]}
    assert set(header["jwk"]) == {"kty", "crv", "x", "y"}
    public = ECKey.import_key(header["jwk"])
    assert public.thumbprint() == thumbprint(key.public_key)
    registry = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)
    verified = jws.deserialize_compact(proof, public, registry=registry)
    claims: dict[str, Any] = json.loads(verified.payload)
    return claims


def test_a_proof_names_method_url_and_time() -> None:
    claims = claims_of(make_proof(KEY, method="GET", url=URL, now=1_800_000_000.9))
    assert claims.pop("jti")
    assert claims == {"htm": "GET", "htu": "https://relay.example:8443/v1/inbox", "iat": 1_800_000_000}


def test_a_proof_that_goes_with_a_token_names_its_hash() -> None:
    claims = claims_of(make_proof(KEY, method="GET", url=URL, now=1, access_token="sesame"))
    assert claims["ath"] == base64url(hashlib.sha256(b"sesame").digest())


@pytest.mark.threat("T13")
def test_no_two_proofs_have_the_same_id() -> None:
    ids = {claims_of(make_proof(KEY, method="GET", url=URL, now=1))["jti"] for _ in range(50)}
    assert len(ids) == 50
    assert all(len(from_base64url(jti)) == 16 for jti in ids)


@given(st.sampled_from(["GET", "POST", "PUT"]), st.integers(0, 1 << 40))
def test_every_proof_verifies_elsewhere(method: str, now: int) -> None:
    key = SoftwareSigningKey.generate()
    claims = claims_of(make_proof(key, method=method, url="https://rp.example/x", now=now), key)
    assert (claims["htm"], claims["iat"]) == (method, now)
