"""The BLE advert: vectors, properties, refusals."""

import hmac

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError
from headless_passkey.hybrid.eid import ADVERT_SIZE, Eid, eid_key, open_advert, seal_advert
from tests.strategies import eids, exactly
from tests.vectors_loader import Vector, name, vectors

KEY = bytes(range(64))
EID = Eid(nonce=bytes(range(10)), routing_id=b"abc", tunnel_domain=266)


def sealed(plaintext: bytes) -> bytes:
    """An advert of any 16 bytes, as somebody with our key could send it."""
    encryptor = Cipher(AES256(KEY[:32]), ECB()).encryptor()  # noqa: S305  one block, as the spec has it
    ciphertext = encryptor.update(plaintext)
    return ciphertext + hmac.digest(KEY[32:], ciphertext, "sha256")[:4]


@pytest.mark.parametrize("case", vectors("adverts", op="eid"), ids=name)
def test_a_known_advert_opens_and_is_made_again(case: Vector) -> None:
    key, service_data = eid_key(bytes.fromhex(case["secret"])), bytes.fromhex(case["service_data"])
    eid = open_advert(key, service_data)
    assert eid is not None
    assert (eid.nonce.hex(), eid.routing_id.hex(), eid.tunnel_domain) == (
        case["nonce"],
        case["routing_id"],
        case["domain"],
    )
    assert eid.encode().hex() == case["plaintext"]
    assert seal_advert(key, eid) == service_data


@pytest.mark.parametrize("case", vectors("adverts", op="eid-key"), ids=name)
def test_a_known_advert_opens_with_its_key_whatever_suffix_follows(case: Vector) -> None:
    key, service_data = bytes.fromhex(case["key"]), bytes.fromhex(case["service_data"])
    eid = open_advert(key, service_data)
    assert eid is not None
    assert eid.encode().hex() == case["plaintext"]
    assert seal_advert(key, eid) == service_data[:ADVERT_SIZE]


@pytest.mark.parametrize("case", vectors("adverts", op="eid-reject"), ids=name)
def test_a_known_bad_advert_is_for_somebody_else(case: Vector) -> None:
    assert open_advert(eid_key(bytes.fromhex(case["secret"])), bytes.fromhex(case["service_data"])) is None


@pytest.mark.parametrize("case", vectors("chromium_sessions"), ids=name)
def test_an_advert_that_a_real_browser_followed(case: Vector) -> None:
    key, advert = bytes.fromhex(case["fido_url"]["eid_key"]), case["advert"]
    eid = open_advert(key, bytes.fromhex(advert["service_data"]))
    assert eid is not None
    assert eid.encode().hex() == advert["plaintext"]
    assert eid.tunnel_domain == case["tunnel"]["number"]


@given(exactly(16), eids(), st.binary(max_size=12))
def test_an_advert_opens_to_the_eid_it_sealed(secret: bytes, eid: Eid, suffix: bytes) -> None:
    key = eid_key(secret)
    advert = seal_advert(key, eid)
    assert len(advert) == ADVERT_SIZE
    assert open_advert(key, advert + suffix) == eid


@given(eids())
def test_what_was_encoded_is_parsed_back(eid: Eid) -> None:
    assert Eid.parse(eid.encode()) == eid


@pytest.mark.threat("T9")
@given(exactly(16), exactly(16), eids())
def test_another_secret_does_not_open_it(secret: bytes, other: bytes, eid: Eid) -> None:
    opened = open_advert(eid_key(other), seal_advert(eid_key(secret), eid))
    assert opened == (eid if secret == other else None)


@pytest.mark.threat("T9")
@given(st.integers(0, 8 * ADVERT_SIZE - 1))
def test_a_flipped_bit_closes_it(bit: int) -> None:
    advert = bytearray(seal_advert(KEY, EID))
    advert[bit // 8] ^= 1 << bit % 8
    assert open_advert(KEY, bytes(advert)) is None


@pytest.mark.threat("T12")
@given(st.binary(max_size=64))
def test_any_service_data_is_ours_or_not(service_data: bytes) -> None:
    eid = open_advert(KEY, service_data)
    assert eid is None or seal_advert(KEY, eid) == service_data[:ADVERT_SIZE]


@pytest.mark.threat("T12")
@pytest.mark.parametrize("size", range(ADVERT_SIZE))
def test_an_advert_cut_short_is_not_ours(size: int) -> None:
    assert open_advert(KEY, seal_advert(KEY, EID)[:size]) is None


@pytest.mark.threat("T9")
@given(st.integers(1, 255), exactly(15))
def test_flags_we_do_not_know_close_a_well_sealed_advert(flags: int, rest: bytes) -> None:
    assert open_advert(KEY, sealed(b"\0" + rest)) is not None
    assert open_advert(KEY, sealed(bytes([flags]) + rest)) is None


@given(st.binary(max_size=20).filter(lambda data: len(data) != 16 or data[0]))
def test_what_is_no_eid_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Eid.parse(data)


@pytest.mark.parametrize(
    ("nonce", "routing_id", "domain"),
    [
        (bytes(9), b"abc", 0),
        (bytes(11), b"abc", 0),
        (bytes(10), b"ab", 0),
        (bytes(10), b"abcd", 0),
        (bytes(10), b"abc", -1),
        (bytes(10), b"abc", 65536),
    ],
)
def test_an_eid_of_wrong_sizes_is_a_bug_of_the_caller(nonce: bytes, routing_id: bytes, domain: int) -> None:
    with pytest.raises(LocalProtocolError):
        Eid(nonce=nonce, routing_id=routing_id, tunnel_domain=domain)


@pytest.mark.threat("T11")
@given(eids())
def test_what_salts_the_psk_does_not_show_in_a_repr(eid: Eid) -> None:
    assert repr(eid) == f"Eid(tunnel_domain={eid.tunnel_domain})"
