"""Linking information, its signature and the client payload: vectors, properties, refusals."""

from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.hybrid.keys import CURVE, parse_uncompressed, uncompressed
from headless_passkey.hybrid.linking import (
    ClientPayload,
    LinkedPhone,
    LinkingInformation,
    NoLink,
    OfferedLink,
    discard_link,
    link_signature,
    read_link,
)
from headless_passkey.hybrid.tunnel_url import MAX_CONTACT_ID_SIZE, parse_client_payload_header
from program_parts.names import is_plain
from tests.strategies import cbor_values, exactly, private_keys
from tests.vectors_loader import Vector, name, vector, vectors

CLIENT = ec.derive_private_key(5, CURVE)
IDENTITY = ec.derive_private_key(6, CURVE)
HASH = bytes(range(32))
OFFERED = OfferedLink(
    contact_id=b"contact", link_id=bytes(8), link_secret=bytes(32), identity=IDENTITY, name="A phone"
)
LINKING = OFFERED.sign(client_static=CLIENT.public_key(), handshake_hash=HASH)


def private(scalar: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int(scalar, 16), CURVE)


def read(value: Any) -> LinkedPhone | NoLink:
    return read_link(value, static=CLIENT, handshake_hash=HASH, tunnel_domain=300)


@pytest.mark.parametrize("case", vectors("linking", op="link-signature"), ids=name)
def test_a_known_signature_is_made_by_either_end(case: Vector) -> None:
    authenticator, client = private(case["authenticator_private"]), private(case["client_private"])
    handshake_hash = bytes.fromhex(case["handshake_hash"])
    assert uncompressed(authenticator.public_key()).hex() == case["authenticator_public"]
    assert uncompressed(client.public_key()).hex() == case["client_public"]
    for ours, theirs in ((authenticator, client), (client, authenticator)):
        assert link_signature(ours, theirs.public_key(), handshake_hash).hex() == case["signature"]
    other = bytes([handshake_hash[0] ^ 1]) + handshake_hash[1:]
    assert link_signature(client, authenticator.public_key(), other).hex() != case["signature"]


@pytest.mark.parametrize("case", vectors("linking", op="link-session"), ids=name)
def test_a_signature_that_a_real_browser_accepted(case: Vector) -> None:
    offered = OfferedLink(
        contact_id=bytes.fromhex(case["contact_id"]),
        link_id=bytes.fromhex(case["link_id"]),
        link_secret=bytes.fromhex(case["link_secret"]),
        identity=private(case["authenticator_private"]),
        name=case["device_name"],
    )
    linking = offered.sign(
        client_static=parse_uncompressed(bytes.fromhex(case["client_public"])),
        handshake_hash=bytes.fromhex(case["handshake_hash"]),
    )
    assert linking.signature.hex() == case["signature"]
    (update,) = (
        message
        for message in vector("chromium_sessions", case["name"])["messages"]
        if message["kind"] == "update"
    )
    sent = cbor.decode_map(bytes.fromhex(update["plaintext"])[1:])[1]
    assert linking.as_map() == sent
    assert LinkingInformation.parse(sent) == linking


@pytest.mark.parametrize("case", vectors("linking", op="linking-map"), ids=name)
def test_known_linking_information_becomes_a_link(case: Vector) -> None:
    value = cbor.decode(bytes.fromhex(case["cbor"]))
    link = read_link(
        value,
        static=private(case["client_private"]),
        handshake_hash=bytes.fromhex(case["handshake_hash"]),
        tunnel_domain=1,
    )
    assert link == LinkedPhone(
        contact_id=bytes.fromhex(case["contact_id"]),
        link_id=bytes.fromhex(case["link_id"]),
        link_secret=bytes.fromhex(case["link_secret"]),
        public_key=bytes.fromhex(case["authenticator_public"]),
        name=case["device_name"],
        tunnel_domain=1,
    )
    linking = LinkingInformation.parse(value)
    assert linking.signature.hex() == case["signature"]
    assert cbor.encode(linking.as_map()).hex() == case["cbor"]


@pytest.mark.threat("T12")
@pytest.mark.parametrize("case", vectors("linking", op="linking-reject"), ids=name)
def test_known_bad_linking_information_is_no_link(case: Vector) -> None:
    link = read_link(
        cbor.decode(bytes.fromhex(case["cbor"])),
        static=private(case["client_private"]),
        handshake_hash=bytes.fromhex(case["handshake_hash"]),
        tunnel_domain=1,
    )
    assert isinstance(link, NoLink)


@pytest.mark.parametrize("case", vectors("linking", op="client-payload"), ids=name)
def test_a_known_client_payload(case: Vector) -> None:
    payload = ClientPayload(
        link_id=bytes.fromhex(case["link_id"]),
        client_nonce=bytes.fromhex(case["client_nonce"]),
        hint=RequestKind(case["hint"]),
    )
    assert payload.encode().hex() == case["cbor"]
    assert payload.encode().hex().upper() == case["header_value"]
    for header in (case["header_value"], case["header_value"].lower()):
        assert ClientPayload.parse(parse_client_payload_header(header)) == payload


@pytest.mark.parametrize("case", vectors("linked_sessions"), ids=name)
def test_the_client_payload_of_a_real_browser(case: Vector) -> None:
    sent = case["client_payload"]
    payload = ClientPayload.parse(parse_client_payload_header(sent["header"]))
    assert payload.link_id.hex() == case["link"]["link_id"]
    assert (payload.client_nonce.hex(), payload.hint) == (sent["client_nonce"], sent["hint"])
    assert payload.encode().hex().upper() == sent["header"]


@given(
    st.binary(min_size=1, max_size=60), private_keys(), private_keys(), exactly(32), st.integers(0, 0xFFFF)
)
def test_what_an_authenticator_offers_a_client_platform_keeps(
    contact_id: bytes,
    identity: ec.EllipticCurvePrivateKey,
    client: ec.EllipticCurvePrivateKey,
    handshake_hash: bytes,
    tunnel_domain: int,
) -> None:
    offered = OfferedLink.create(contact_id=contact_id, identity=identity, name="Phone")
    linking = offered.sign(client_static=client.public_key(), handshake_hash=handshake_hash)
    value = cbor.decode(cbor.encode(linking.as_map()))
    assert LinkingInformation.parse(value) == linking
    link = read_link(value, static=client, handshake_hash=handshake_hash, tunnel_domain=tunnel_domain)
    assert link == LinkedPhone(
        contact_id=contact_id,
        link_id=offered.link_id,
        link_secret=offered.link_secret,
        public_key=uncompressed(identity.public_key()),
        name="Phone",
        tunnel_domain=tunnel_domain,
    )


def test_every_new_link_has_an_id_and_a_secret_of_its_own() -> None:
    links = [OfferedLink.create(contact_id=b"c", identity=IDENTITY, name="") for _ in range(3)]
    assert len({link.link_id for link in links}) == len({link.link_secret for link in links}) == 3


def test_keys_we_do_not_know_are_ignored() -> None:
    """Google Play services marks its newer implementation with 999."""
    assert isinstance(read(LINKING.as_map() | {999: True, 0: b"", -1: [], "x": None}), LinkedPhone)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("Pixel 6a", "Pixel 6a"),
        ("  two\n lines\t", "two lines"),
        ("\x1b[31mred\x1b[0m", "[31mred [0m"),
        ("abc\u202edef\u2066", "abc def"),
        ("\u2028\u2029\x85\xa0", ""),
        ("", ""),
        ("Jürgens Telefon \U0001f4f1", "Jürgens Telefon \U0001f4f1"),
        ("x" * 65, "x" * 63 + "…"),
        ("x" * 63 + " y", "x" * 63 + "…"),
        ("\0" * 2000 + "x", ""),
        ("Ada's \U0001f469\u200d\U0001f4bb", "Ada's \U0001f469\u200d\U0001f4bb"),
    ],
)
def test_a_name_is_cleaned_before_anybody_shows_it(sent: str, shown: str) -> None:
    link = read(LINKING.as_map() | {5: sent})
    assert isinstance(link, LinkedPhone)
    assert link.name == shown


@pytest.mark.threat("T12")
@given(st.text(max_size=100))
def test_any_name_becomes_one_short_printable_line(sent: str) -> None:
    with suppress(LocalProtocolError):  # half a surrogate pair
        cbor.encode(sent)
        link = read(LINKING.as_map() | {5: sent})
        assert isinstance(link, LinkedPhone)
        assert not link.name or is_plain(link.name)


@pytest.mark.threat("T9")
@given(st.integers(0, 255))
def test_a_signature_with_a_changed_bit_is_refused(bit: int) -> None:
    signature = bytearray(LINKING.signature)
    signature[bit // 8] ^= 1 << bit % 8
    assert read(LINKING.as_map() | {6: bytes(signature)}) is NoLink.BAD_SIGNATURE


@pytest.mark.threat("T9")
def test_a_link_of_another_session_is_refused() -> None:
    """Its hash differs, or the key in its FIDO URL, or whoever sends it has not the long-term key."""
    stranger = ec.derive_private_key(7, CURVE)
    value = LINKING.as_map()
    for link in (
        read_link(value, static=CLIENT, handshake_hash=bytes(32), tunnel_domain=1),
        read_link(value, static=stranger, handshake_hash=HASH, tunnel_domain=1),
        read(value | {4: uncompressed(stranger.public_key())}),
    ):
        assert link is NoLink.BAD_SIGNATURE


MALFORMED: dict[str, Any] = {
    "no contact ID": {1: None},
    "an empty contact ID": {1: b""},
    "a contact ID too long for a URL": {1: bytes(MAX_CONTACT_ID_SIZE + 1)},
    "a contact ID that is text": {1: "contact"},
    "no link ID": {2: None},
    "a link ID of 7 bytes": {2: bytes(7)},
    "a link ID of 9 bytes": {2: bytes(9)},
    "no link secret": {3: None},
    "a link secret of 31 bytes": {3: bytes(31)},
    "a link secret that is text": {3: "x" * 32},
    "no key": {4: None},
    "a compressed key": {4: LINKING.public_key[:33]},
    "a hybrid key": {4: b"\6" + LINKING.public_key[1:]},
    "a key off the curve": {4: b"\4" + bytes(63) + b"\1"},
    "the point at infinity": {4: bytes(65)},
    "no name": {5: None},
    "a name of bytes": {5: b"phone"},
    "no signature": {6: None},
    "a signature of 31 bytes": {6: LINKING.signature[:31]},
    "a signature of 33 bytes": {6: LINKING.signature + b"\0"},
}


@pytest.mark.threat("T12")
@pytest.mark.parametrize("why", MALFORMED)
def test_linking_information_is_refused_that_has(why: str) -> None:
    value = LINKING.as_map() | MALFORMED[why]
    with pytest.raises(RemoteProtocolError):
        LinkingInformation.parse(value)
    assert read(value) is NoLink.MALFORMED
    (key,) = MALFORMED[why]
    del value[key]
    assert read(value) is NoLink.MALFORMED


@pytest.mark.threat("T12")
@given(cbor_values() | st.dictionaries(st.integers(1, 6), cbor_values()))
def test_anything_else_is_no_link(value: Any) -> None:
    assert read(value) is NoLink.MALFORMED
    assert discard_link(value) is NoLink.OUT_OF_PLACE


@pytest.mark.threat("T12")
@given(st.integers(1, 6), cbor_values())
def test_a_link_with_one_value_replaced_is_checked_all_the_same(key: int, value: Any) -> None:
    link = read(LINKING.as_map() | {key: value})
    assert isinstance(link, LinkedPhone | NoLink)


@given(exactly(8), exactly(16), st.sampled_from([RequestKind.GET_ASSERTION, RequestKind.MAKE_CREDENTIAL]))
def test_a_client_payload_is_read_back(link_id: bytes, nonce: bytes, hint: RequestKind) -> None:
    payload = ClientPayload(link_id=link_id, client_nonce=nonce, hint=hint)
    assert ClientPayload.parse(payload.encode()) == payload
    with_more = cbor.decode_map(payload.encode()) | {4: "new", 999: True}
    assert ClientPayload.parse(cbor.encode(with_more)) == payload


GOOD_PAYLOAD: dict[int, Any] = {1: bytes(8), 2: bytes(16), 3: "ga"}


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        0,
        GOOD_PAYLOAD | {1: bytes(7)},
        GOOD_PAYLOAD | {1: "12345678"},
        GOOD_PAYLOAD | {2: bytes(15)},
        GOOD_PAYLOAD | {2: bytes(17)},
        GOOD_PAYLOAD | {3: "dcp"},
        GOOD_PAYLOAD | {3: "GA"},
        GOOD_PAYLOAD | {3: b"ga"},
        GOOD_PAYLOAD | {3: None},
        {2: bytes(16), 3: "ga"},
        {1: bytes(8), 3: "ga"},
        {1: bytes(8), 2: bytes(16)},
    ],
)
def test_a_client_payload_that_says_something_else_is_refused(value: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        ClientPayload.parse(cbor.encode(value))


@pytest.mark.threat("T12")
@given(st.binary(max_size=60))
def test_any_bytes_are_a_client_payload_or_refused(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        ClientPayload.parse(data)


def test_what_cannot_be_sent_is_a_bug_of_the_caller() -> None:
    for wrong in (
        {"contact_id": b""},
        {"contact_id": bytes(MAX_CONTACT_ID_SIZE + 1)},
        {"link_id": bytes(7)},
        {"link_secret": bytes(33)},
    ):
        parts: dict[str, Any] = {"contact_id": b"c", "link_id": bytes(8), "link_secret": bytes(32)} | wrong
        with pytest.raises(LocalProtocolError):
            OfferedLink(**parts, identity=IDENTITY, name="")
    for size, nonce, hint in (
        (7, 16, RequestKind.GET_ASSERTION),
        (8, 15, RequestKind.GET_ASSERTION),
        (8, 16, RequestKind.DIGITAL_PRESENTATION),
    ):
        with pytest.raises(LocalProtocolError):
            ClientPayload(link_id=bytes(size), client_nonce=bytes(nonce), hint=hint)


@pytest.mark.threat("T11")
def test_what_is_a_credential_does_not_show_in_a_repr() -> None:
    offered = OfferedLink(
        contact_id=b"CONTACT", link_id=bytes(8), link_secret=b"S" * 32, identity=IDENTITY, name=""
    )
    linking = offered.sign(client_static=CLIENT.public_key(), handshake_hash=HASH)
    payload = ClientPayload(link_id=bytes(8), client_nonce=b"N" * 16, hint=RequestKind.GET_ASSERTION)
    shown = repr((offered, linking, read(linking.as_map()), payload))
    assert "LinkedPhone" in shown
    assert not [secret for secret in ("CONTACT", "SSSS", "NNNN", repr(linking.signature)) if secret in shown]
