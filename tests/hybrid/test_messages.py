"""Padding, the post-handshake message and framing: vectors, properties, refusals."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.ctap2 import GetInfoResponse
from headless_passkey.hybrid.linking import LinkedPhone, LinkingInformation, NoLink
from headless_passkey.hybrid.messages import (
    Ctap,
    Json,
    MessageType,
    PostHandshake,
    Shutdown,
    Update,
    frame,
    pad,
    parse_frame,
    unpad,
    update_payload,
)
from tests.strategies import cbor_values, get_info_responses
from tests.vectors_loader import Vector, name, vector, vectors

GET_INFO = GetInfoResponse(versions=("FIDO_2_0",), aaguid=bytes(16), options={"uv": True})
LINK = LinkedPhone(
    contact_id=b"SECRET",
    link_id=bytes(8),
    link_secret=b"SECRET" * 5,
    public_key=bytes(65),
    name="phone",
    tunnel_domain=1,
)


@pytest.mark.parametrize("case", vectors("padding", op="pad"), ids=name)
def test_known_padding(case: Vector) -> None:
    assert pad(bytes.fromhex(case["message"])).hex() == case["expected"]


@pytest.mark.parametrize("case", vectors("padding", op="unpad"), ids=name)
def test_known_padding_of_another_total_is_taken_off(case: Vector) -> None:
    assert unpad(bytes.fromhex(case["padded"])).hex() == case["expected"]


@pytest.mark.parametrize("case", vectors("padding", op="unpad-reject"), ids=name)
def test_known_bad_padding(case: Vector) -> None:
    with pytest.raises(RemoteProtocolError):
        unpad(bytes.fromhex(case["padded"]))


@pytest.mark.parametrize("case", vectors("framing"), ids=name)
def test_a_known_frame(case: Vector) -> None:
    payload = bytes.fromhex(case["payload"])
    assert frame(MessageType(case["type"]), payload).hex() == case["frame"]
    assert parse_frame(bytes.fromhex(case["frame"])) == Json(text=payload)


@pytest.mark.parametrize("case", vectors("linking", op="update-message"), ids=name)
def test_a_known_update_has_512_bytes_whatever_it_brings(case: Vector) -> None:
    linking = None
    if case["linking_cbor"] is not None:
        linking = LinkingInformation.parse(cbor.decode(bytes.fromhex(case["linking_cbor"])))
    update = frame(MessageType.UPDATE, update_payload(linking))
    assert update.hex() == case["plaintext"]
    assert len(pad(update)) == case["padded_length"]


def test_an_update_of_a_real_phone_is_made_again() -> None:
    session = vector("chromium_sessions", "chromium120-link")
    (update,) = (message for message in session["messages"] if message["kind"] == "update")
    plaintext = bytes.fromhex(update["plaintext"])
    linking = LinkingInformation.parse(cbor.decode_map(plaintext[1:])[1])
    assert frame(MessageType.UPDATE, update_payload(linking)) == plaintext


def test_an_update_is_a_multiple_of_512_bytes_however_long_the_contact_id() -> None:
    for size in [*range(1, 1200), 4096]:
        linking = LinkingInformation(
            contact_id=bytes(size),
            link_id=bytes(8),
            link_secret=bytes(32),
            public_key=bytes(65),
            name="phone",
            signature=bytes(32),
        )
        update = pad(frame(MessageType.UPDATE, update_payload(linking)))
        assert len(update) % 512 == 0
        assert len(update) <= 512 * (2 + size // 512)
        assert cbor.decode_map(unpad(update)[1:])[1] == linking.as_map()


@pytest.mark.parametrize("case", vectors("post_handshake"), ids=name)
def test_a_known_post_handshake_message(case: Vector) -> None:
    message = PostHandshake.parse(bytes.fromhex(case["plaintext"]))
    assert message.revision == case["revision"]
    assert message.features == tuple(case.get("features", ["ctap"]))
    assert message.get_info is not None
    assert (message.get_info.options["rk"], message.get_info.options["uv"]) == (True, True)


def test_what_an_iphone_says_of_itself() -> None:
    case = vector("post_handshake", "iphone-session-2026")
    message = PostHandshake.parse(bytes.fromhex(case["plaintext"]))
    assert message.get_info == GetInfoResponse(
        versions=("FIDO_2_0", "FIDO_2_1"),
        extensions=("largeBlob", "prf"),
        aaguid=bytes.fromhex("f24a8e70d0d3f82c293732523cc4de5a"),
        options={"rk": True, "uv": True, "jsonMessages": True},
        transports=("internal", "hybrid"),
    )
    assert message.get_info.encode().hex() == case["get_info"]
    assert message.encode().hex() == case["plaintext"]


@pytest.mark.parametrize("case", vectors("padding", op="rev0-pad"), ids=name)
def test_known_padding_of_revision_0_is_recognised(case: Vector) -> None:
    """A map without getInfo is refused in either revision; what is tested is what was read."""
    padded = bytes.fromhex(case["expected"])
    assert len(padded) == case["expected_length"]
    assert old_padding(bytes.fromhex(case["cbor"]), 512, 2) == padded
    message = old_padding(cbor.encode({1: GET_INFO.encode()}), 512, 2)
    assert PostHandshake.parse(message) == PostHandshake(get_info=GET_INFO, revision=0)


@pytest.mark.parametrize("width", [1, 2])
def test_a_message_of_every_length_in_the_older_paddings_is_recognised(width: int) -> None:
    """As Chromium tests its own: the map grows byte by byte, and always comes out as it went in."""
    for length in range(512):
        plaintext = cbor.encode({0: bytes(length), 1: GET_INFO.encode()})
        padded = old_padding(plaintext, 256 * width, width)
        assert PostHandshake.parse(padded) == PostHandshake(get_info=GET_INFO, revision=0)
        assert PostHandshake.parse(plaintext) == PostHandshake(get_info=GET_INFO, revision=1)


def old_padding(plaintext: bytes, granularity: int, width: int) -> bytes:
    """Revision 0: zeros and their number, as one byte or two, behind the map."""
    zeros = -(len(plaintext) + width) % granularity
    return plaintext + bytes(zeros) + zeros.to_bytes(width, "little")


@given(st.binary(max_size=200))
def test_padding_comes_off_and_is_as_short_as_can_be(plaintext: bytes) -> None:
    padded = pad(plaintext)
    assert unpad(padded) == plaintext
    assert len(padded) % 32 == 0
    assert 1 <= len(padded) - len(plaintext) <= 32


@given(st.binary(max_size=100), st.binary(max_size=255))
def test_padding_of_any_length_and_content_comes_off(plaintext: bytes, padding: bytes) -> None:
    """libwebauthn pads before it puts the type in front, so totals differ."""
    assert unpad(plaintext + padding + bytes([len(padding)])) == plaintext


@pytest.mark.threat("T12")
@given(st.binary(max_size=300))
def test_any_bytes_are_unpadded_or_refused(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        assert data.startswith(unpad(data))


@pytest.mark.threat("T12")
@pytest.mark.parametrize("data", [b"", b"\1", b"\0\2", b"\xff" * 255])
def test_a_count_beyond_the_message_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="padding"):
        unpad(data)


@given(get_info_responses(), st.lists(st.sampled_from(["dc", "x", "ctap"]), max_size=3))
def test_a_post_handshake_message_is_read_back(get_info: GetInfoResponse, features: list[str]) -> None:
    message = PostHandshake(get_info=get_info, features=("ctap", *features))
    assert PostHandshake.parse(message.encode()) == message


def test_a_phone_without_ctap_is_read_too() -> None:
    message = PostHandshake(get_info=None, features=("dc",))
    assert PostHandshake.parse(message.encode()) == message


def test_features_we_do_not_know_are_kept_out_of_the_way() -> None:
    message = cbor.encode(
        {0: bytes(9), 1: GET_INFO.encode(), 2: {1: b"malformed"}, 3: ["ctap", 7, "new"], 99: []}
    )
    parsed = PostHandshake.parse(message)
    assert parsed.features == ("ctap", "new")
    assert parsed.link is NoLink.OUT_OF_PLACE
    assert PostHandshake.parse(message, lambda value: NoLink(value[1].decode())).link is NoLink.MALFORMED


REFUSED: dict[str, Any] = {
    "no getInfo": {},
    "no getInfo, but the feature": {3: ["ctap"]},
    "getInfo without the feature": {1: GET_INFO.encode(), 3: ["dc"]},
    "getInfo and no features at all": {1: GET_INFO.encode(), 3: []},
    "features that are no list": {1: GET_INFO.encode(), 3: "ctap"},
    "features of null": {1: GET_INFO.encode(), 3: None},
    "getInfo as a map": {1: {3: bytes(16)}},
    "getInfo that is not CBOR": {1: b"\xff"},
    "getInfo with its status byte": {1: b"\0" + GET_INFO.encode()},
    "getInfo that is not a map": {1: b"\0"},
    "getInfo without an AAGUID": {1: cbor.encode({1: ["FIDO_2_0"]})},
    "an AAGUID of 15 bytes": {1: cbor.encode({3: bytes(15)})},
    "versions that are not texts": {1: cbor.encode({1: [2], 3: bytes(16)})},
    "a list": [],
    "a number": 0,
}


@pytest.mark.threat("T12")
@pytest.mark.parametrize("why", REFUSED)
@pytest.mark.parametrize("width", [0, 1, 2])
def test_a_post_handshake_message_is_refused_that_has(why: str, width: int) -> None:
    message = cbor.encode(REFUSED[why])
    if width:
        message = old_padding(message, 256 * width, width)
    with pytest.raises(RemoteProtocolError):
        PostHandshake.parse(message)


@pytest.mark.threat("T12")
@given(st.binary(max_size=100) | cbor_values().map(cbor.encode))
def test_any_bytes_are_a_post_handshake_message_or_refused(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        assert PostHandshake.parse(data).revision in (0, 1)


@given(st.binary(max_size=60), st.integers(0, 255), cbor_values())
def test_frames_say_what_they_carry(payload: bytes, code: int, link: Any) -> None:
    assert parse_frame(frame(MessageType.SHUTDOWN)) == Shutdown()
    assert parse_frame(frame(MessageType.JSON, payload)) == Json(text=payload)
    assert parse_frame(frame(MessageType.CTAP, bytes([code]) + payload)) == Ctap(code=code, payload=payload)
    update = frame(MessageType.UPDATE, cbor.encode({0: payload, 1: link, 7: None}))
    assert parse_frame(update) == Update(link=NoLink.OUT_OF_PLACE)
    assert parse_frame(frame(MessageType.UPDATE, b"\xa0")) == Update(link=NoLink.NOT_OFFERED)
    read = {True: NoLink.MALFORMED}
    assert parse_frame(update, lambda value: read[value == link]) == Update(link=NoLink.MALFORMED)


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "plaintext",
    ["", "01", "02", "0200", "02a0a0", "02a1", "0280", "04", "0400", "ff", "ff00"],
)
def test_an_empty_message_an_unknown_type_and_a_bad_update_are_refused(plaintext: str) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_frame(bytes.fromhex(plaintext))


@pytest.mark.threat("T12")
@given(st.binary(max_size=60))
def test_any_bytes_are_an_event_or_refused(data: bytes) -> None:
    with suppress(RemoteProtocolError):
        assert isinstance(parse_frame(data), Shutdown | Ctap | Update | Json)


@pytest.mark.threat("T11")
def test_what_was_said_does_not_show_in_a_repr() -> None:
    events = (
        Ctap(code=2, payload=b"SECRET"),
        Json(text=b"SECRET"),
        Update(link=LINK),
        PostHandshake(get_info=GET_INFO, link=LINK),
    )
    assert "SECRET" not in repr(events)
