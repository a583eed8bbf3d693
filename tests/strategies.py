"""Hypothesis strategies for the values that travel between device and phone."""

from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import strategies as st

from headless_passkey.hybrid.ctap2 import (
    GetAssertionRequest,
    GetAssertionResponse,
    GetInfoResponse,
    MakeCredentialRequest,
    MakeCredentialResponse,
    User,
)
from headless_passkey.hybrid.eid import Eid
from headless_passkey.hybrid.fido_url import FidoUrl
from headless_passkey.hybrid.keys import CURVE, compressed

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def exactly(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


def private_keys() -> st.SearchStrategy[ec.EllipticCurvePrivateKey]:
    """P-256 keys; those at both ends of the range included."""
    return st.integers(1, P256_ORDER - 1).map(lambda number: ec.derive_private_key(number, CURVE))


def texts() -> st.SearchStrategy[str]:
    """Any text that UTF-8 can say."""
    return st.text(st.characters(codec="utf-8"), max_size=40)


def integers() -> st.SearchStrategy[int]:
    """What a CBOR integer can say, its edges often."""
    edges = [0, 23, 24, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32, (1 << 64) - 1]
    return st.one_of(
        st.sampled_from(edges + [-1 - edge for edge in edges]), st.integers(-(1 << 64), (1 << 64) - 1)
    )


def cbor_values() -> st.SearchStrategy[Any]:
    """Whatever CTAP2 CBOR can say, up to a few levels deep."""
    scalars = st.none() | st.booleans() | integers() | st.binary(max_size=300) | texts()
    keys = integers() | st.binary(max_size=30) | texts()
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=6) | st.dictionaries(keys, inner, max_size=6),
        max_leaves=20,
    )


def fido_urls() -> st.SearchStrategy[FidoUrl]:
    sizes = st.integers(0, (1 << 64) - 1)
    return st.builds(
        FidoUrl,
        public_key=private_keys().map(lambda key: compressed(key.public_key())),
        secret=exactly(16),
        assigned_domains=sizes,
        time=st.none() | sizes,
        linking=st.none() | st.booleans(),
        hint_raw=st.none() | st.sampled_from(["ga", "mc", "dcp", "dci"]) | texts(),
        channels=st.none() | st.lists(sizes, max_size=4).map(tuple),
    )


def eids() -> st.SearchStrategy[Eid]:
    return st.builds(Eid, nonce=exactly(10), routing_id=exactly(3), tunnel_domain=st.integers(0, 0xFFFF))


def users() -> st.SearchStrategy[User]:
    return st.builds(
        User,
        id=st.binary(min_size=1, max_size=64),
        name=st.none() | texts(),
        display_name=st.none() | texts(),
    )


_ids = st.lists(st.binary(min_size=1, max_size=64), max_size=4).map(tuple)
_extensions = st.dictionaries(texts(), st.booleans() | st.binary(max_size=40), max_size=3)
_algorithms = st.lists(st.integers(-70000, 70000), max_size=4).map(tuple)
_words = st.lists(texts(), max_size=3).map(tuple)


def get_assertion_requests() -> st.SearchStrategy[GetAssertionRequest]:
    return st.builds(
        GetAssertionRequest,
        rp_id=texts(),
        client_data_hash=exactly(32),
        allow_list=_ids,
        extensions=_extensions,
        user_presence=st.booleans(),
        user_verification=st.booleans(),
    )


def get_assertion_responses() -> st.SearchStrategy[GetAssertionResponse]:
    """The user chose the one, or there may be more, or neither is said."""
    parts: dict[str, st.SearchStrategy[Any]] = {
        "auth_data": st.binary(max_size=200),
        "signature": st.binary(max_size=80),
        "credential_id": st.none() | st.binary(min_size=1, max_size=64),
        "user": st.none() | users(),
        "large_blob_key": st.none() | exactly(32),
        "unsigned_extension_outputs": _extensions,
    }
    return st.builds(
        GetAssertionResponse,
        **parts,
        number_of_credentials=st.none() | st.integers(0, 1),
        user_selected=st.booleans(),
    ) | st.builds(GetAssertionResponse, **parts, number_of_credentials=st.integers(0, 1 << 32))


def make_credential_requests() -> st.SearchStrategy[MakeCredentialRequest]:
    return st.builds(
        MakeCredentialRequest,
        client_data_hash=exactly(32),
        rp_id=texts(),
        rp_name=st.none() | texts(),
        user=users(),
        algorithms=_algorithms,
        exclude_list=_ids,
        extensions=_extensions,
        resident_key=st.booleans(),
        user_verification=st.booleans(),
    )


def make_credential_responses() -> st.SearchStrategy[MakeCredentialResponse]:
    return st.builds(
        MakeCredentialResponse,
        fmt=texts(),
        auth_data=st.binary(max_size=200),
        att_stmt=_extensions,
        enterprise_attestation=st.booleans(),
        large_blob_key=st.none() | exactly(32),
        unsigned_extension_outputs=_extensions,
    )


def get_info_responses() -> st.SearchStrategy[GetInfoResponse]:
    return st.builds(
        GetInfoResponse,
        versions=_words,
        aaguid=exactly(16),
        extensions=_words,
        options=st.dictionaries(texts(), st.booleans(), max_size=4),
        transports=_words,
        algorithms=_algorithms,
        others=st.fixed_dictionaries(
            {},
            optional={
                0x05: st.integers(0, 1 << 32),
                0x06: st.lists(st.integers(0, 3), max_size=3),
                0x0C: st.booleans(),
                0x13: st.dictionaries(texts(), st.integers(0, 9), max_size=3),
                0x19: st.binary(max_size=40),
                0x1F: st.lists(st.integers(0, 9), max_size=3),
            },
        ),
    )
