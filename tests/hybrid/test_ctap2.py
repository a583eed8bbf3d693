"""The CTAP2 commands: vectors, properties, refusals."""

from contextlib import suppress
from dataclasses import fields, replace
from typing import Any, Protocol

import pytest
from fido2.ctap import CtapError as Fido2Error
from fido2.ctap2.base import AssertionResponse, AttestationResponse, Info
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.ctap2 import (
    Command,
    GetAssertionRequest,
    GetAssertionResponse,
    GetInfoResponse,
    MakeCredentialRequest,
    MakeCredentialResponse,
    Status,
    User,
    status_name,
)
from tests.strategies import (
    cbor_values,
    exactly,
    get_assertion_requests,
    get_assertion_responses,
    get_info_responses,
    make_credential_requests,
    make_credential_responses,
)
from tests.vectors_loader import Vector, name, vector, vectors


class Message(Protocol):
    @classmethod
    def parse(cls, payload: bytes) -> "Message": ...
    def encode(self) -> bytes: ...


MESSAGES: tuple[type[Message], ...] = (
    GetAssertionRequest,
    GetAssertionResponse,
    MakeCredentialRequest,
    MakeCredentialResponse,
    GetInfoResponse,
)

messages = st.one_of(
    get_assertion_requests(),
    get_assertion_responses(),
    make_credential_requests(),
    make_credential_responses(),
    get_info_responses(),
)


def sent(case: Vector, *, by: str, kind: str) -> bytes:
    """What one side of a recorded session said, without type byte and command or status."""
    (plaintext,) = (m["plaintext"] for m in case["messages"] if (m["from"], m["kind"]) == (by, kind))
    return bytes.fromhex(plaintext)[2:]


@pytest.mark.parametrize("case", vectors("chromium_sessions"), ids=name)
def test_the_command_of_a_real_browser_and_its_answer_are_written_back(case: Vector) -> None:
    creating = case["page"]["kind"] == "create"
    request, reply = sent(case, by="client", kind="ctap"), sent(case, by="phone", kind="message")
    ask: type[Message] = MakeCredentialRequest if creating else GetAssertionRequest
    answer: type[Message] = MakeCredentialResponse if creating else GetAssertionResponse
    assert ask.parse(request).encode() == request
    assert answer.parse(reply).encode() == reply


def test_what_a_real_browser_asks() -> None:
    get, create, link = (
        vector("chromium_sessions", key)
        for key in ("chromium156-get", "chromium156-create", "chromium120-link")
    )
    assertion = GetAssertionRequest.parse(sent(get, by="client", kind="ctap"))
    assert (assertion.rp_id, assertion.allow_list) == ("localhost", ())
    assert (assertion.user_presence, assertion.user_verification) == (True, True)
    assert GetAssertionRequest.parse(sent(link, by="client", kind="ctap")).allow_list == (
        bytes.fromhex("e779853213eecb4dcb3c63077fbbad08"),
    )
    registration = MakeCredentialRequest.parse(sent(create, by="client", kind="ctap"))
    assert (registration.rp_id, registration.rp_name) == ("localhost", "Lab")
    assert registration.user == User(id=b"lab-user", name="lab@example", display_name="Lab User")
    assert registration.algorithms == (-7, -257)
    assert (registration.resident_key, registration.user_verification) == (True, True)


def test_what_an_iphone_answers() -> None:
    case = vector("iphone_session", "iphone-session-2026")
    payload = bytes.fromhex(case["ctap_response"])[1:]
    reply = GetAssertionResponse.parse(payload)
    assert reply.credential_id is not None
    assert len(reply.credential_id) == 54
    assert reply.user is not None
    assert (len(reply.user.id), reply.user.name, reply.user.display_name) == (32, "", "")
    assert reply.user_selected
    assert reply.encode() == payload
    request = bytes.fromhex(case["ctap_request"])
    assert request[0] == Command.GET_ASSERTION
    assert GetAssertionRequest.parse(request[1:]).encode() == request[1:]


@given(messages)
def test_what_was_written_is_read_back(message: Any) -> None:
    assert type(message).parse(message.encode()) == message


@given(get_assertion_responses(), exactly(32), exactly(4))
def test_fido2_reads_the_same_assertion(
    reply: GetAssertionResponse, rp_id_hash: bytes, counter: bytes
) -> None:
    reply = replace(reply, credential_id=reply.credential_id or b"id", auth_data=rp_id_hash + b"\5" + counter)
    theirs = AssertionResponse.from_dict(cbor.decode_map(reply.encode()))
    assert (bytes(theirs.auth_data), theirs.signature) == (reply.auth_data, reply.signature)
    assert theirs.credential["id"] == reply.credential_id
    assert (None if theirs.user is None else theirs.user["id"]) == (
        None if reply.user is None else reply.user.id
    )
    assert bool(theirs.user_selected) == reply.user_selected


@given(make_credential_responses(), get_info_responses())
def test_fido2_reads_the_same_members_that_are_rare(
    made: MakeCredentialResponse, info: GetInfoResponse
) -> None:
    data = bytes(32) + b"\1" + bytes(4)
    theirs = AttestationResponse.from_dict(cbor.decode_map(replace(made, auth_data=data).encode()))
    assert (bool(theirs.ep_att), theirs.large_blob_key) == (made.enterprise_attestation, made.large_blob_key)
    assert theirs.unsigned_extension_outputs == made.unsigned_extension_outputs
    their_info = Info.from_dict(cbor.decode_map(info.encode()))
    names = [field.name for field in fields(Info)]  # python-fido2 numbers members by their place
    for key, value in info.others.items():
        assert getattr(their_info, names[key - 1]) == value


def test_fido2_reads_the_same_registration_and_info() -> None:
    case = vector("chromium_sessions", "chromium156-create")
    payload = sent(case, by="phone", kind="message")
    theirs = AttestationResponse.from_dict(cbor.decode_map(payload))
    ours = MakeCredentialResponse.parse(payload)
    assert (theirs.fmt, bytes(theirs.auth_data), theirs.att_stmt) == (ours.fmt, ours.auth_data, ours.att_stmt)
    info = vector("post_handshake", "iphone-session-2026")["get_info"]
    their_info = Info.from_dict(cbor.decode_map(bytes.fromhex(info)))
    our_info = GetInfoResponse.parse(bytes.fromhex(info))
    assert tuple(their_info.versions) == our_info.versions
    assert tuple(their_info.transports) == our_info.transports
    assert (bytes(their_info.aaguid), their_info.options) == (our_info.aaguid, our_info.options)


@pytest.mark.threat("T12")
@given(st.binary(max_size=100) | cbor_values().map(cbor.encode))
def test_any_bytes_are_a_message_or_refused(payload: bytes) -> None:
    for message in MESSAGES:
        with suppress(RemoteProtocolError):
            assert message.parse(message.parse(payload).encode()) == message.parse(payload)


@pytest.mark.threat("T12")
@given(messages, st.integers(1, 12), cbor_values())
def test_any_value_in_place_of_any_member_is_read_or_refused(message: Any, key: int, value: Any) -> None:
    payload = cbor.encode(cbor.decode_map(message.encode()) | {key: value})
    with suppress(RemoteProtocolError):
        parsed = type(message).parse(payload)
        assert type(message).parse(parsed.encode()) == parsed


HASH = bytes(32)
KEY_TYPE = "public-key"
USER = {"id": b"u", "name": "n", "displayName": "d"}
GET = {1: "example.com", 2: HASH}
MAKE = {1: HASH, 2: {"id": "example.com"}, 3: USER, 4: [{"alg": -7, "type": KEY_TYPE}]}
ASSERTED = {2: bytes(37), 3: b"signature"}
MADE = {1: "none", 2: bytes(37)}
INFO = {1: ["FIDO_2_0"], 3: bytes(16)}

REFUSED: dict[str, tuple[type[Message], dict[Any, Any]]] = {
    "get: no RP ID": (GetAssertionRequest, {2: HASH}),
    "get: an RP ID of bytes": (GetAssertionRequest, GET | {1: b"example.com"}),
    "get: an RP ID of null": (GetAssertionRequest, GET | {1: None}),
    "get: no client data hash": (GetAssertionRequest, {1: "example.com"}),
    "get: a client data hash of 31 bytes": (GetAssertionRequest, GET | {2: bytes(31)}),
    "get: an allow list that is a map": (GetAssertionRequest, GET | {3: {}}),
    "get: an allow list of bytes": (GetAssertionRequest, GET | {3: [b"id"]}),
    "get: a descriptor without type": (GetAssertionRequest, GET | {3: [{"id": b"id"}]}),
    "get: a descriptor without id": (GetAssertionRequest, GET | {3: [{"type": KEY_TYPE}]}),
    "get: a descriptor with an id of text": (
        GetAssertionRequest,
        GET | {3: [{"type": KEY_TYPE, "id": "id"}]},
    ),
    "get: options that are a list": (GetAssertionRequest, GET | {5: []}),
    "get: uv of 1": (GetAssertionRequest, GET | {5: {"uv": 1}}),
    "get: up of text": (GetAssertionRequest, GET | {5: {"up": "true"}}),
    "get: extensions that are a list": (GetAssertionRequest, GET | {4: []}),
    "get: extensions by number": (GetAssertionRequest, GET | {4: {1: True}}),
    "asserted: no signature": (GetAssertionResponse, {2: bytes(37)}),
    "asserted: no authenticator data": (GetAssertionResponse, {3: b"signature"}),
    "asserted: a credential of bytes": (GetAssertionResponse, ASSERTED | {1: b"id"}),
    "asserted: a credential of another type": (
        GetAssertionResponse,
        ASSERTED | {1: {"id": b"", "type": "x"}},
    ),
    "asserted: a credential without id": (GetAssertionResponse, ASSERTED | {1: {"type": KEY_TYPE}}),
    "asserted: a user of text": (GetAssertionResponse, ASSERTED | {4: "u"}),
    "asserted: a user without id": (GetAssertionResponse, ASSERTED | {4: {"name": "n"}}),
    "asserted: a user with an empty text for an id": (GetAssertionResponse, ASSERTED | {4: {"id": ""}}),
    "asserted: a user with an id of 65 bytes": (GetAssertionResponse, ASSERTED | {4: {"id": bytes(65)}}),
    "asserted: a user with a name of bytes": (
        GetAssertionResponse,
        ASSERTED | {4: {"id": b"u", "name": b"n"}},
    ),
    "asserted: userSelected of 1": (GetAssertionResponse, ASSERTED | {6: 1}),
    "asserted: outputs that are a list": (GetAssertionResponse, ASSERTED | {8: []}),
    "asserted: outputs by number": (GetAssertionResponse, ASSERTED | {8: {1: True}}),
    "asserted: a count of text": (GetAssertionResponse, ASSERTED | {5: "1"}),
    "asserted: a count of true": (GetAssertionResponse, ASSERTED | {5: True}),
    "asserted: a count below nothing": (GetAssertionResponse, ASSERTED | {5: -1}),
    "asserted: chosen by the user, and more to come": (GetAssertionResponse, ASSERTED | {5: 2, 6: True}),
    "asserted: a largeBlobKey of 31 bytes": (GetAssertionResponse, ASSERTED | {7: bytes(31)}),
    "asserted: a largeBlobKey of text": (GetAssertionResponse, ASSERTED | {7: "k" * 32}),
    "make: no client data hash": (MakeCredentialRequest, {2: MAKE[2], 3: USER, 4: MAKE[4]}),
    "make: no RP": (MakeCredentialRequest, {1: HASH, 3: USER, 4: MAKE[4]}),
    "make: an RP of text": (MakeCredentialRequest, MAKE | {2: "example.com"}),
    "make: an RP without id": (MakeCredentialRequest, MAKE | {2: {"name": "Example"}}),
    "make: an RP with a name of bytes": (
        MakeCredentialRequest,
        MAKE | {2: {"id": "example.com", "name": b""}},
    ),
    "make: no user": (MakeCredentialRequest, {1: HASH, 2: MAKE[2], 4: MAKE[4]}),
    "make: no algorithms": (MakeCredentialRequest, {1: HASH, 2: MAKE[2], 3: USER}),
    "make: an algorithm of text": (MakeCredentialRequest, MAKE | {4: [{"alg": "ES256", "type": KEY_TYPE}]}),
    "make: an algorithm without type": (MakeCredentialRequest, MAKE | {4: [{"alg": -7}]}),
    "make: a bare algorithm": (MakeCredentialRequest, MAKE | {4: [-7]}),
    "make: rk of 1": (MakeCredentialRequest, MAKE | {7: {"rk": 1}}),
    "made: no format": (MakeCredentialResponse, {2: bytes(37)}),
    "made: no authenticator data": (MakeCredentialResponse, {1: "none"}),
    "made: a statement that is a list": (MakeCredentialResponse, MADE | {3: []}),
    "made: epAtt of 1": (MakeCredentialResponse, MADE | {4: 1}),
    "made: a largeBlobKey of 33 bytes": (MakeCredentialResponse, MADE | {5: bytes(33)}),
    "made: outputs that are a list": (MakeCredentialResponse, MADE | {6: []}),
    "info: no AAGUID": (GetInfoResponse, {1: ["FIDO_2_0"]}),
    "info: an AAGUID of 17 bytes": (GetInfoResponse, INFO | {3: bytes(17)}),
    "info: a version of bytes": (GetInfoResponse, INFO | {1: [b"FIDO_2_0"]}),
    "info: versions of text": (GetInfoResponse, INFO | {1: "FIDO_2_0"}),
    "info: an algorithm without alg": (GetInfoResponse, INFO | {10: [{"type": KEY_TYPE}]}),
    "info: options that are a list": (GetInfoResponse, INFO | {4: []}),
    "info: a message size of text": (GetInfoResponse, INFO | {5: "1024"}),
    "info: a message size below nothing": (GetInfoResponse, INFO | {5: -1}),
    "info: certifications that are a list": (GetInfoResponse, INFO | {0x13: []}),
    "info: a forced change of 1": (GetInfoResponse, INFO | {0x0C: 1}),
}


@pytest.mark.threat("T12")
@pytest.mark.parametrize("why", REFUSED)
def test_it_refuses(why: str) -> None:
    message, values = REFUSED[why]
    with pytest.raises(RemoteProtocolError):
        message.parse(cbor.encode(values))


@pytest.mark.parametrize(
    ("members", "selected"),
    [
        ({5: 1, 6: True}, True),
        ({5: 0, 6: True}, True),
        ({6: True}, True),
        ({5: 1, 6: False}, False),
        ({5: 2, 6: False}, False),
        ({5: 2}, False),
        ({5: None, 6: None}, False),
    ],
    ids=str,
)
def test_a_user_may_have_chosen_where_there_is_one_credential_to_choose(
    members: dict[int, Any],
    selected: bool,  # noqa: FBT001
) -> None:
    """CTAP 2.2 §6.2: userSelected is not for replies of which there are more, as numberOfCredentials says."""
    reply = GetAssertionResponse.parse(cbor.encode(ASSERTED | members))
    assert (reply.number_of_credentials, reply.user_selected) == (members.get(5), selected)


def test_a_credential_with_an_empty_id_is_not_named() -> None:
    assert (
        GetAssertionResponse.parse(cbor.encode(ASSERTED | {1: {"id": b"", "type": KEY_TYPE}})).credential_id
        is None
    )


def test_a_user_with_an_empty_handle_is_no_user() -> None:
    reply = GetAssertionResponse.parse(
        cbor.encode(ASSERTED | {4: {"id": b"", "name": "", "displayName": ""}})
    )
    assert reply.user is None


@pytest.mark.threat("T12")
@pytest.mark.parametrize("payload", [b"", b"\0", b"\x80", b"\xa0\0", b"\xff", b"\x40"])
@pytest.mark.parametrize("message", MESSAGES)
def test_what_is_not_one_map_is_refused(message: type[Message], payload: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        message.parse(payload)


def test_a_map_that_has_all_it_needs_is_read() -> None:
    """So that the refusals above are about what they say."""
    assert GetAssertionRequest.parse(cbor.encode(GET)).rp_id == "example.com"
    assert GetAssertionResponse.parse(cbor.encode(ASSERTED)).credential_id is None
    assert MakeCredentialRequest.parse(cbor.encode(MAKE)).algorithms == (-7,)
    assert MakeCredentialResponse.parse(cbor.encode(MADE)).fmt == "none"
    assert GetInfoResponse.parse(cbor.encode(INFO)).versions == ("FIDO_2_0",)


def test_absent_options_have_the_values_of_the_specification() -> None:
    get, make = GetAssertionRequest.parse(cbor.encode(GET)), MakeCredentialRequest.parse(cbor.encode(MAKE))
    assert (get.user_presence, get.user_verification) == (True, False)
    assert (make.resident_key, make.user_verification) == (False, False)
    explicit = cbor.encode(GET | {5: {"up": False, "uv": False, "new": 7}})
    assert not GetAssertionRequest.parse(explicit).user_presence


def test_members_we_do_not_know_are_ignored() -> None:
    for message, values in (
        (GetAssertionRequest, GET),
        (GetAssertionResponse, ASSERTED),
        (MakeCredentialRequest, MAKE),
        (MakeCredentialResponse, MADE),
        (GetInfoResponse, INFO),
    ):
        extended = cbor.encode(values | {200: [None], "text": {}})
        assert message.parse(extended) == message.parse(cbor.encode(values))


def test_descriptors_and_algorithms_of_other_types_are_skipped() -> None:
    others = [{"id": b"1", "type": "x"}, {"id": b"2", "type": KEY_TYPE, "transports": ["usb"]}]
    assert GetAssertionRequest.parse(cbor.encode(GET | {3: others})).allow_list == (b"2",)
    assert MakeCredentialRequest.parse(cbor.encode(MAKE | {5: others})).exclude_list == (b"2",)
    algorithms = [{"alg": -8, "type": "x"}, {"alg": -7, "type": KEY_TYPE}]
    assert MakeCredentialRequest.parse(cbor.encode(MAKE | {4: algorithms})).algorithms == (-7,)


def test_options_that_are_no_booleans_are_not_options() -> None:
    info = GetInfoResponse.parse(cbor.encode(INFO | {4: {"uv": True, "rk": False, "new": 3}}))
    assert info.options == {"uv": True, "rk": False}


@pytest.mark.threat("T11")
def test_neither_signature_nor_user_show_in_a_repr() -> None:
    user = User(id=b"USER", name="NAME", display_name="DISPLAY")
    outputs = {"prf": {"results": {"first": b"SECRET" * 6}}}
    reply = GetAssertionResponse(
        auth_data=b"",
        signature=b"SIGNATURE",
        user=user,
        large_blob_key=b"BLOBKEY",
        unsigned_extension_outputs=outputs,
    )
    made = MakeCredentialResponse(fmt="none", auth_data=b"", unsigned_extension_outputs=outputs)
    request = MakeCredentialRequest(
        client_data_hash=HASH,
        rp_id="example.com",
        rp_name=None,
        user=user,
        algorithms=(),
        extensions={"prf": {"eval": {"first": b"INPUT"}}},
    )
    shown = repr((reply, made, request))
    kept = ("USER", "NAME", "DISPLAY", "SIGNATURE", "SECRET", "BLOBKEY", "INPUT")
    assert not [word for word in kept if word in shown]


def test_what_getinfo_says_of_things_that_hybrid_does_not_have_is_kept() -> None:
    members = INFO | {0x05: 1200, 0x06: [1, 2], 0x13: {"FIDO": 1}, 0x20: "unknown", "text": 1}
    info = GetInfoResponse.parse(cbor.encode(members))
    assert info.others == {0x05: 1200, 0x06: [1, 2], 0x13: {"FIDO": 1}}
    assert cbor.decode_map(info.encode()) == INFO | dict(info.others)


@pytest.mark.parametrize("status", [status for status in Status if status != Status.SUCCESS])
def test_a_status_has_the_name_that_fido2_gives_it(status: Status) -> None:
    """Two were renamed after fido2 took its names; the number is what counts."""
    renamed = {"PUAT_REQUIRED": "PUAT_REQUIRED", "ACTION_TIMEOUT": "ACTION_TIMEOUT"}
    try:
        theirs = Fido2Error.ERR(status).name
    except ValueError:
        pytest.fail(f"fido2 does not know 0x{status:02X}")
    assert status_name(status).split("_ERR_")[1] == renamed.get(theirs, theirs)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (0x01, "CTAP1_ERR_INVALID_COMMAND"),
        (0x27, "CTAP2_ERR_OPERATION_DENIED"),
        (0x2E, "CTAP2_ERR_NO_CREDENTIALS"),
        (0x30, "CTAP2_ERR_NOT_ALLOWED"),
        (0x7F, "CTAP1_ERR_OTHER"),
        (0xE0, "CTAP2_ERR_0xE0"),
    ],
)
def test_statuses_are_spelled_as_the_specification_spells_them(status: int, expected: str) -> None:
    assert status_name(status) == expected


def test_every_status_byte_has_a_name() -> None:
    assert len({status_name(status) for status in range(256)}) == 256
