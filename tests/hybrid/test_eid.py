"""The BLE advert: vectors, properties, refusals."""

import hmac

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.eid import (
    ADVERT_SIZE,
    Eid,
    Suffix,
    eid_key,
    open_advert,
    open_with_any,
    parse_suffix,
    psk,
    seal_advert,
)
from tests.strategies import cbor_values, eids, exactly
from tests.vectors_loader import Vector, name, vector, vectors

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


@pytest.mark.parametrize("case", vectors("adverts", op="linked-eid"), ids=name)
def test_a_known_state_assisted_advert_opens_and_is_made_again(case: Vector) -> None:
    key = eid_key(bytes.fromhex(case["secret"]), bytes.fromhex(case["salt"]))
    eid = open_advert(key, bytes.fromhex(case["service_data"]))
    assert eid is not None
    assert eid.encode().hex() == case["plaintext"]
    assert seal_advert(key, eid).hex() == case["service_data"]


@pytest.mark.parametrize("case", vectors("linked_sessions"), ids=name)
def test_a_state_assisted_advert_that_a_real_browser_followed(case: Vector) -> None:
    secret = bytes.fromhex(case["link"]["link_secret"])
    key = eid_key(secret, bytes.fromhex(case["client_payload"]["client_nonce"]))
    assert key.hex() == case["eid_key"]
    eid = open_advert(key, bytes.fromhex(case["advert"]["service_data"]))
    assert eid is not None
    assert eid.encode().hex() == case["advert"]["plaintext"]
    assert psk(secret, eid).hex() == case["handshake"]["psk"]


@pytest.mark.parametrize("case", vectors("chromium_sessions"), ids=name)
def test_the_psk_of_a_real_session(case: Vector) -> None:
    secret = cbor.decode_map(bytes.fromhex(case["fido_url"]["cbor"]))[1]
    assert (
        psk(secret, Eid.parse(bytes.fromhex(case["advert"]["plaintext"]))).hex() == case["handshake"]["psk"]
    )


@pytest.mark.parametrize("case", vectors("advert_suffixes", op="suffix"), ids=name)
def test_a_known_suffix(case: Vector) -> None:
    suffix = parse_suffix(bytes(ADVERT_SIZE) + bytes.fromhex(case["suffix"]))
    assert suffix == Suffix(psm=case["psm"])


@pytest.mark.parametrize("case", vectors("advert_suffixes", op="suffix-bad"), ids=name)
def test_a_known_bad_suffix_is_none(case: Vector) -> None:
    assert parse_suffix(bytes(ADVERT_SIZE) + bytes.fromhex(case["suffix"])) is None


def test_a_known_advert_with_its_suffix() -> None:
    case = vector("adverts", "libwebauthn-with-suffix")
    advert = bytes.fromhex(case["service_data"])
    assert advert[ADVERT_SIZE:].hex() == case["suffix"]
    assert parse_suffix(advert) == Suffix(psm=case["psm"])
    assert open_advert(bytes.fromhex(case["key"]), advert) is not None


@given(exactly(16), eids(), st.binary(max_size=12))
def test_an_advert_opens_to_the_eid_it_sealed(secret: bytes, eid: Eid, suffix: bytes) -> None:
    key = eid_key(secret)
    advert = seal_advert(key, eid)
    assert len(advert) == ADVERT_SIZE
    assert open_advert(key, advert + suffix) == eid


@given(eids())
def test_what_was_encoded_is_parsed_back(eid: Eid) -> None:
    assert Eid.parse(eid.encode()) == eid


@given(st.lists(exactly(64), max_size=8, unique=True), eids(), st.integers(0, 7))
def test_of_several_keys_the_one_that_sealed_it_opens_it(keys: list[bytes], eid: Eid, number: int) -> None:
    assert open_with_any(keys, seal_advert(KEY, eid)) is None
    keys.insert(number, KEY)
    assert open_with_any(keys, seal_advert(KEY, eid)) == (min(number, len(keys) - 1), eid)
    assert open_with_any(keys, b"") is None


@pytest.mark.threat("T9")
def test_flags_under_one_key_do_not_keep_the_next_from_being_tried() -> None:
    assert open_with_any([KEY, KEY], sealed(b"\1" + bytes(15))) is None
    assert open_with_any([bytes(64), KEY], sealed(bytes(16))) == (1, Eid.parse(bytes(16)))


def test_what_a_linked_phone_sends_looks_like_no_unassigned_domain() -> None:
    """Chromium 120 ignores 2-255 there, which one draw in 256 would otherwise be."""
    eids = [Eid.state_assisted() for _ in range(2000)]
    assert all(256 <= eid.tunnel_domain <= 0xFFFF for eid in eids)
    assert len({eid.nonce for eid in eids}) == len(eids)
    assert len({eid.routing_id for eid in eids}) > 1900
    assert len({eid.tunnel_domain for eid in eids}) > 1900


@given(exactly(32), exactly(16), exactly(16), eids())
def test_another_client_nonce_does_not_open_it(secret: bytes, nonce: bytes, other: bytes, eid: Eid) -> None:
    opened = open_advert(eid_key(secret, other), seal_advert(eid_key(secret, nonce), eid))
    assert opened == (eid if nonce == other else None)


@given(exactly(20), st.none() | st.integers(0, 0xFFFF))
def test_a_suffix_is_read_back(service_data: bytes, psm: int | None) -> None:
    suffix = Suffix(psm=psm)
    assert parse_suffix(service_data + suffix.encode()) == suffix


@pytest.mark.threat("T12")
@given(exactly(20), cbor_values().map(cbor.encode) | st.binary(max_size=20))
def test_any_suffix_is_read_or_none(service_data: bytes, more: bytes) -> None:
    suffix = parse_suffix(service_data + more)
    assert suffix is None or suffix.psm is None or 0 <= suffix.psm <= 0xFFFF


@pytest.mark.threat("T12")
@pytest.mark.parametrize("value", [-1, 65536, True, None, "128", b"\x80", [128], {}])
def test_what_is_no_16_bit_number_is_no_channel(value: object) -> None:
    assert parse_suffix(bytes(20) + cbor.encode({0: 7, 1: value})) == Suffix(psm=None)


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
