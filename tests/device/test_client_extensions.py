"""credProps, prf and largeBlob: what goes to the phone in Chromium's form, and what of the answer is passed on."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest
from fido2.ctap2.extensions import (
    AuthenticatorExtensionsPRFInputs,
    _hmac_prepare_salts,  # the same rules in other hands
)
from fido2.webauthn import PublicKeyCredentialDescriptor, PublicKeyCredentialType
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.ctap2 import (
    GetAssertionRequest,
    GetAssertionResponse,
    GetInfoResponse,
    MakeCredentialRequest,
    MakeCredentialResponse,
    User,
)
from headless_passkey.webauthn.extensions import MAX_BLOB_SIZE
from headless_passkey.webauthn.options import AuthenticationOptions, RegistrationOptions
from program_parts.base64url import base64url
from tests.strategies import cbor_values, exactly, texts
from tests.vectors_loader import vector

ORIGIN, RP_ID = "https://login.example.com", "example.com"
ONE, TWO = b"credential one", b"credential two"
GET: dict[str, Any] = {"challenge": "AQ", "rpId": RP_ID}
CREATE: dict[str, Any] = {
    "challenge": "AQ",
    "rp": {"id": RP_ID},
    "user": {"id": "dQ", "name": "n"},
    "pubKeyCredParams": [{"type": "public-key", "alg": -36}],
}
IPHONE = GetInfoResponse.parse(bytes.fromhex(vector("post_handshake", "iphone-session-2026")["get_info"]))
OLD_PHONE = GetInfoResponse(versions=("FIDO_2_0",), aaguid=bytes(16), options={"rk": True, "uv": True})


def allowing(*credential_ids: bytes) -> list[dict[str, str]]:
    return [{"type": "public-key", "id": base64url(each)} for each in credential_ids]


def asking(extensions: Any, *allowed: bytes, **changes: Any) -> AuthenticationOptions:
    values = GET | {"extensions": extensions, "allowCredentials": allowing(*allowed)} | changes
    return AuthenticationOptions.parse(json.dumps(values), origin=ORIGIN)


def making(extensions: Any, **changes: Any) -> RegistrationOptions:
    return RegistrationOptions.parse(CREATE | {"extensions": extensions} | changes, origin=ORIGIN)


def authenticator_data(flags: int = 5, rest: bytes = b"") -> bytes:
    return hashlib.sha256(RP_ID.encode()).digest() + bytes([flags]) + bytes(4) + rest


def asserted(
    options: AuthenticationOptions, outputs: Mapping[str, Any], credential_id: bytes = ONE
) -> dict[str, Any]:
    """The client extension results of an assertion with these unsigned outputs."""
    reply = GetAssertionResponse(
        auth_data=authenticator_data(),
        signature=b"signature",
        credential_id=credential_id,
        user=User(id=b"u"),
        unsigned_extension_outputs=outputs,
    )
    results: dict[str, Any] = options.accept(reply.encode(), IPHONE).response["clientExtensionResults"]
    return results


def made(options: RegistrationOptions, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """The client extension results of a registration with these unsigned outputs."""
    credential = bytes(16) + len(ONE).to_bytes(2, "big") + ONE + cbor.encode({1: 2, 3: -36, -1: 3})
    reply = MakeCredentialResponse(
        fmt="none", auth_data=authenticator_data(0x45, credential), unsigned_extension_outputs=outputs
    )
    results: dict[str, Any] = options.accept(reply.encode(), IPHONE).response["clientExtensionResults"]
    return results


def salt(value: bytes) -> bytes:
    return hashlib.sha256(b"WebAuthn PRF\0" + value).digest()


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


FIRST, SECOND = bytes(range(32)), bytes(range(32, 64))

# --- what goes to the phone --------------------------------------------------------------------------------


def test_a_prf_of_an_assertion_goes_out_byte_by_byte_as_chromium_writes_it() -> None:
    """AsCTAPRequestValuePair in device/fido/ctap_get_assertion_request.cc: credential IDs are byte strings."""
    options = asking(
        {
            "prf": {
                "eval": {"first": base64url(b"in 1")},
                "evalByCredential": {
                    base64url(TWO): {"first": base64url(b"in 2"), "second": base64url(b"in 3")}
                },
            }
        },
        ONE,
        TWO,
    )
    eval_map = b"\xa1\x65first\x58\x20" + salt(b"in 1")
    by_credential = b"\xa1\x4e" + TWO + b"\xa2\x65first\x58\x20" + salt(b"in 2")
    by_credential += b"\x66second\x58\x20" + salt(b"in 3")
    expected = b"\xa1\x63prf\xa2\x64eval" + eval_map + b"\x70evalByCredential" + by_credential
    for phone in (None, IPHONE):
        request = options.ctap_request(phone)
        assert cbor.encode(request.extensions) == expected
        assert b"\x04" + expected in request.encode()
        assert GetAssertionRequest.parse(request.encode()) == request


def test_a_prf_of_a_registration_goes_out_as_chromium_writes_it() -> None:
    """AsCTAPRequestValuePair in device/fido/ctap_make_credential_request.cc: present even without inputs."""
    assert making({"prf": {}}).ctap_request(IPHONE).extensions == {"prf": {}}
    request = making({"prf": {"eval": {"first": "", "second": "AQ"}}}).ctap_request(IPHONE)
    assert request.extensions == {"prf": {"eval": {"first": salt(b""), "second": salt(b"\1")}}}
    assert MakeCredentialRequest.parse(request.encode()) == request


def test_large_blobs_go_out_as_chromium_writes_them() -> None:
    for support, said in ((None, "preferred"), ("preferred", "preferred"), ("required", "required")):
        request = making({"largeBlob": {"support": support}}).ctap_request(IPHONE)
        assert request.extensions == {"largeBlob": {"support": said}}
    assert making({"largeBlob": {"support": "new"}}).extensions.large_blob == "preferred"
    assert asking({"largeBlob": {"read": True}}).ctap_request(IPHONE).extensions == {
        "largeBlob": {"read": True}
    }
    blob = b"a blob " * 99
    written = asking({"largeBlob": {"write": base64url(blob)}}, ONE).ctap_request(IPHONE).extensions
    assert written["largeBlob"]["originalSize"] == len(blob)
    assert zlib.decompress(written["largeBlob"]["write"], wbits=-15) == blob


@pytest.mark.parametrize(
    "extensions",
    [
        {},
        {"credProps": True},
        {"credProps": 1, "prf": None, "largeBlob": None},
        {"appid": "https://example.com", "uvm": True, "new": {"deeply": []}},
    ],
)
def test_nothing_else_goes_to_the_phone(extensions: dict[str, Any]) -> None:
    assert asking(extensions).ctap_request() == asking({}).ctap_request()
    assert making(extensions).ctap_request() == making({}).ctap_request()


def test_a_phone_is_not_sent_what_it_does_not_know() -> None:
    prf, blob = {"prf": {"eval": {"first": "AQ"}}}, {"largeBlob": {"read": True}}
    assert asking(prf | blob).ctap_request(OLD_PHONE).extensions == {}
    assert making(prf | {"largeBlob": {}}).ctap_request(OLD_PHONE).extensions == {}
    assert asking({"prf": {}}).ctap_request(IPHONE).extensions == {}  # nothing to evaluate


def test_what_is_required_and_the_phone_has_not_is_an_error_before_anything_is_sent() -> None:
    with pytest.raises(RemoteProtocolError, match="large blob"):
        making({"largeBlob": {"support": "required"}}).ctap_request(OLD_PHONE)
    plain = GetInfoResponse(versions=(), aaguid=bytes(16))
    with pytest.raises(RemoteProtocolError, match="user verification"):
        asking({}, userVerification="required").ctap_request(plain)
    for selection in ({"userVerification": "required"}, {"residentKey": "required"}):
        with pytest.raises(RemoteProtocolError, match="require"):
            making({}, authenticatorSelection=selection).ctap_request(plain)


def test_what_is_preferred_is_asked_of_phones_that_can_do_it() -> None:
    plain = GetInfoResponse(versions=(), aaguid=bytes(16))
    for phone, able in ((None, True), (IPHONE, True), (plain, False)):
        assert asking({}).ctap_request(phone).user_verification is able
        request = making({}, authenticatorSelection={"residentKey": "preferred"}).ctap_request(phone)
        assert (request.resident_key, request.user_verification) == (able, able)


def test_user_verification_is_asked_for_where_a_prf_or_the_phone_needs_it() -> None:
    """Of the two functions that a credential has, WebAuthn shows the one that needs the user verified."""
    discouraged = {"userVerification": "discouraged"}
    assert not asking({}, **discouraged).ctap_request(IPHONE).user_verification
    assert asking({"prf": {"eval": {"first": "AQ"}}}, **discouraged).ctap_request(IPHONE).user_verification
    assert making({}, authenticatorSelection=discouraged).ctap_request(IPHONE).user_verification
    lenient = GetInfoResponse(versions=(), aaguid=bytes(16), options={"uv": True, "makeCredUvNotRqd": True})
    assert not making({}, authenticatorSelection=discouraged).ctap_request(lenient).user_verification


_inputs = st.fixed_dictionaries(
    {"first": st.binary(max_size=40)}, optional={"second": st.binary(max_size=40)}
)


@given(
    st.none() | _inputs, st.dictionaries(st.sampled_from([ONE, TWO]), _inputs), st.sampled_from([ONE, TWO])
)
def test_python_fido2_evaluates_the_same_salts(
    everywhere: dict[str, bytes] | None, by_credential: dict[bytes, dict[str, bytes]], used: bytes
) -> None:
    """Which inputs count for the credential that answers, and how they are hashed."""

    def written(inputs: dict[str, bytes]) -> dict[str, str]:
        return {name: base64url(value) for name, value in inputs.items()}

    prf: dict[str, Any] = {} if everywhere is None else {"eval": written(everywhere)}
    if by_credential:
        prf["evalByCredential"] = {base64url(key): written(value) for key, value in by_credential.items()}
    options = asking({"prf": prf}, ONE, TWO)
    allowed = [
        PublicKeyCredentialDescriptor(type=PublicKeyCredentialType.PUBLIC_KEY, id=each) for each in (ONE, TWO)
    ]
    chosen = next(each for each in allowed if each.id == used)
    inputs = AuthenticatorExtensionsPRFInputs.from_dict(prf)
    theirs = _hmac_prepare_salts(allowed, chosen, inputs, None)  # type: ignore[no-untyped-call]
    sent = options.ctap_request().extensions.get("prf", {})
    ours = sent.get("evalByCredential", {}).get(used) or sent.get("eval")
    assert (None if ours is None else (ours["first"], ours.get("second", b""))) == theirs


# --- what comes back ---------------------------------------------------------------------------------------

EVAL: dict[str, Any] = {"prf": {"eval": {"first": "AQ"}}}
EVAL_TWO: dict[str, Any] = {"prf": {"eval": {"first": "AQ", "second": "Ag"}}}
ONE_RESULT = {"prf": {"results": {"first": FIRST}}}
TWO_RESULTS = {"prf": {"results": {"first": FIRST, "second": SECOND}}}


@pytest.mark.parametrize(
    ("extensions", "outputs", "results"),
    [
        ({}, TWO_RESULTS | {"largeBlob": {"written": True}, "new": 1}, {}),
        (EVAL, {}, {"prf": {}}),
        ({"prf": {}}, TWO_RESULTS, {"prf": {}}),
        (EVAL, ONE_RESULT, {"prf": {"results": {"first": base64url(FIRST)}}}),
        (EVAL, TWO_RESULTS, {"prf": {"results": {"first": base64url(FIRST)}}}),
        (EVAL, {"prf": {"enabled": True}}, {"prf": {}}),
        (EVAL, {"prf": {"results": {}}}, {"prf": {}}),
        (EVAL, {"prf": {"results": None}}, {"prf": {}}),
        (
            EVAL_TWO,
            TWO_RESULTS,
            {"prf": {"results": {"first": base64url(FIRST), "second": base64url(SECOND)}}},
        ),
        ({"largeBlob": {"read": True}}, {}, {"largeBlob": {}}),
        ({"largeBlob": {"read": True}}, {"largeBlob": {"blob": b"", "originalSize": 0}}, {"largeBlob": {}}),
        (
            {"largeBlob": {"read": True}},
            {"largeBlob": {"blob": deflated(b"blob"), "originalSize": 4}},
            {"largeBlob": {"blob": base64url(b"blob")}},
        ),
        (
            {"largeBlob": {"read": True}},
            {"largeBlob": {"blob": deflated(b""), "originalSize": 0}},
            {"largeBlob": {"blob": ""}},
        ),
        ({"largeBlob": {"write": "AQ"}}, {"largeBlob": {"written": True}}, {"largeBlob": {"written": True}}),
        ({"largeBlob": {"write": "AQ"}}, {}, {"largeBlob": {"written": False}}),
        ({"largeBlob": {"read": False}}, {"largeBlob": {"blob": deflated(b""), "originalSize": 0}}, {}),
    ],
)
def test_an_assertions_results_are_what_was_asked_and_came(
    extensions: dict[str, Any], outputs: dict[str, Any], results: dict[str, Any]
) -> None:
    assert asserted(asking(extensions, ONE), outputs) == results


def test_the_inputs_of_the_credential_that_answered_say_how_many_results_there_are() -> None:
    by_credential = {"evalByCredential": {base64url(TWO): {"first": "AQ", "second": "Ag"}}}
    only = asking({"prf": by_credential}, ONE, TWO)
    both = asking({"prf": by_credential | {"eval": {"first": "AQ"}}}, ONE, TWO)
    assert asserted(only, ONE_RESULT, ONE) == {"prf": {}}
    assert asserted(both, ONE_RESULT, ONE)["prf"]["results"] == {"first": base64url(FIRST)}
    for options in (only, both):
        assert set(asserted(options, TWO_RESULTS, TWO)["prf"]["results"]) == {"first", "second"}
        with pytest.raises(RemoteProtocolError):
            asserted(options, ONE_RESULT, TWO)


@pytest.mark.parametrize(
    ("extensions", "outputs", "results"),
    [
        ({}, {"prf": {"enabled": True}, "largeBlob": {"supported": True}}, {}),
        ({"credProps": True}, {}, {"credProps": {"rk": False}}),
        ({"prf": {}}, {}, {"prf": {"enabled": False}}),
        ({"prf": {}}, {"prf": {"enabled": True}}, {"prf": {"enabled": True}}),
        ({"prf": {}}, {"prf": {"enabled": True, **ONE_RESULT["prf"]}}, {"prf": {"enabled": True}}),
        (EVAL, {"prf": {"enabled": True}}, {"prf": {"enabled": True}}),
        (EVAL, {"prf": {"enabled": False, **ONE_RESULT["prf"]}}, {"prf": {"enabled": False}}),
        (
            EVAL,
            {"prf": {"enabled": True, **TWO_RESULTS["prf"]}},
            {"prf": {"enabled": True, "results": {"first": base64url(FIRST)}}},
        ),
        ({"largeBlob": {}}, {}, {"largeBlob": {"supported": False}}),
        ({"largeBlob": {}}, {"largeBlob": {"supported": True}}, {"largeBlob": {"supported": True}}),
    ],
)
def test_a_registrations_results_are_what_was_asked_and_came(
    extensions: dict[str, Any], outputs: dict[str, Any], results: dict[str, Any]
) -> None:
    assert made(making(extensions), outputs) == results


@pytest.mark.parametrize(("word", "rk"), [("required", True), ("preferred", True), ("discouraged", False)])
def test_credprops_says_what_was_asked_of_the_phone(word: str, rk: bool) -> None:  # noqa: FBT001
    options = making({"credProps": True}, authenticatorSelection={"residentKey": word})
    assert made(options, {}) == {"credProps": {"rk": rk}}


# --- refusals ----------------------------------------------------------------------------------------------

REFUSED_OUTPUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "prf of a list": (EVAL, {"prf": []}),
    "results of a list": (EVAL, {"prf": {"results": []}}),
    "results without the first": (EVAL, {"prf": {"results": {"second": SECOND}}}),
    "one result of two": (EVAL_TWO, ONE_RESULT),
    "a result of 31 bytes": (EVAL, {"prf": {"results": {"first": bytes(31)}}}),
    "a result of text": (EVAL, {"prf": {"results": {"first": "x" * 32}}}),
    "a large blob of text": ({"largeBlob": {"read": True}}, {"largeBlob": {"blob": "x", "originalSize": 1}}),
    "a large blob without size": ({"largeBlob": {"read": True}}, {"largeBlob": {"blob": deflated(b"x")}}),
    "a size without large blob": ({"largeBlob": {"read": True}}, {"largeBlob": {"originalSize": 1}}),
    "a size below nothing": (
        {"largeBlob": {"read": True}},
        {"largeBlob": {"blob": deflated(b"x"), "originalSize": -1}},
    ),
    "a blob that is shorter than it says": (
        {"largeBlob": {"read": True}},
        {"largeBlob": {"blob": deflated(b"x"), "originalSize": 2}},
    ),
    "a blob that unfolds into more than it says": (
        {"largeBlob": {"read": True}},
        {"largeBlob": {"blob": deflated(bytes(1 << 24)), "originalSize": 9}},
    ),
    "a blob that is too large": (
        {"largeBlob": {"read": True}},
        {"largeBlob": {"blob": deflated(bytes(MAX_BLOB_SIZE + 1)), "originalSize": MAX_BLOB_SIZE + 1}},
    ),
    "a blob that is not deflated": (
        {"largeBlob": {"read": True}},
        {"largeBlob": {"blob": b"\xff", "originalSize": 1}},
    ),
    "a blob with bytes behind it": (
        {"largeBlob": {"read": True}},
        {"largeBlob": {"blob": deflated(b"x") + b"\0", "originalSize": 1}},
    ),
    "a blob that is cut": (
        {"largeBlob": {"read": True}},
        {"largeBlob": {"blob": deflated(bytes(range(99)))[:-1], "originalSize": 99}},
    ),
    "written of 1": ({"largeBlob": {"write": "AQ"}}, {"largeBlob": {"written": 1}}),
}


@pytest.mark.threat("T12")
@pytest.mark.parametrize("why", REFUSED_OUTPUTS)
def test_an_assertion_is_refused_that_comes_with(why: str) -> None:
    extensions, outputs = REFUSED_OUTPUTS[why]
    with pytest.raises(RemoteProtocolError):
        asserted(asking(extensions, ONE), outputs)


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("extensions", "outputs"),
    [
        ({"prf": {}}, {"prf": {"enabled": 1}}),
        ({"prf": {}}, {"prf": True}),
        (EVAL, {"prf": {"enabled": True, "results": {"first": bytes(33)}}}),
        ({"largeBlob": {}}, {"largeBlob": {"supported": "yes"}}),
        ({"largeBlob": {"support": "required"}}, {}),
        ({"largeBlob": {"support": "required"}}, {"largeBlob": {"supported": False}}),
    ],
)
def test_a_registration_is_refused_that_comes_with(
    extensions: dict[str, Any], outputs: dict[str, Any]
) -> None:
    with pytest.raises(RemoteProtocolError):
        made(making(extensions), outputs)


BY_ONE = {base64url(ONE): {"first": "AQ"}}
REFUSED_INPUTS: dict[str, dict[str, Any]] = {
    "a prf that is no object": {"prf": True},
    "an eval that is no object": {"prf": {"eval": "AQ"}},
    "an eval without first": {"prf": {"eval": {"second": "AQ"}}},
    "an input that is no base64url": {"prf": {"eval": {"first": "?"}}},
    "an input of bytes": {"prf": {"eval": {"first": 1}}},
    "an input that is too long": {"prf": {"eval": {"first": "AAAA" * 22_000}}},
    "a large blob that is no object": {"largeBlob": 7},
    "a blob to write that is no base64url": {"largeBlob": {"write": "?"}},
}
REFUSED_TO_GET = REFUSED_INPUTS | {
    "evalByCredential that is no object": {"prf": {"evalByCredential": []}},
    "inputs for a credential that is not allowed": {"prf": {"evalByCredential": {"AQ": {"first": "AQ"}}}},
    "inputs for no credential": {"prf": {"evalByCredential": {"": {"first": "AQ"}}}},
    "inputs for what is no credential ID": {"prf": {"evalByCredential": {"?": {"first": "AQ"}}}},
    "inputs that are no object": {"prf": {"evalByCredential": {base64url(ONE): 1}}},
    "support for a large blob": {"largeBlob": {"support": "preferred"}},
    "reading and writing at once": {"largeBlob": {"read": True, "write": "AQ"}},
    "too much to write": {"largeBlob": {"write": "A" * (4 * MAX_BLOB_SIZE // 3 + 4)}},
}
REFUSED_TO_CREATE = REFUSED_INPUTS | {
    "evalByCredential": {"prf": {"evalByCredential": {}}},
    "a large blob to read": {"largeBlob": {"read": False}},
    "a large blob to write": {"largeBlob": {"write": "AQ"}},
}


@pytest.mark.threat("T12")
@pytest.mark.parametrize("why", REFUSED_TO_GET)
def test_options_for_an_assertion_are_refused_that_have(why: str) -> None:
    with pytest.raises(RemoteProtocolError):
        AuthenticationOptions.parse(
            GET | {"extensions": REFUSED_TO_GET[why], "allowCredentials": allowing(ONE)}, origin=ORIGIN
        )


@pytest.mark.threat("T12")
@pytest.mark.parametrize("why", REFUSED_TO_CREATE)
def test_options_for_a_registration_are_refused_that_have(why: str) -> None:
    with pytest.raises(RemoteProtocolError):
        making(REFUSED_TO_CREATE[why])


def test_what_needs_one_allowed_credential_is_refused_without() -> None:
    for allowed in ((), (ONE, TWO)):
        with pytest.raises(RemoteProtocolError):
            asking({"largeBlob": {"write": "AQ"}}, *allowed)
    with pytest.raises(RemoteProtocolError):
        asking({"prf": {"evalByCredential": BY_ONE}})


_member_names = st.sampled_from(
    ["eval", "evalByCredential", "first", "second", "read", "write", "support", base64url(ONE)]
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | texts(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_member_names | texts(), inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.threat("T12")
@given(st.fixed_dictionaries({"prf": _json, "largeBlob": _json, "credProps": _json}))
def test_any_extensions_are_read_or_refused(extensions: dict[str, Any]) -> None:
    with suppress(RemoteProtocolError):
        asking(extensions, ONE).ctap_request(IPHONE).encode()
    with suppress(RemoteProtocolError):
        making(extensions).ctap_request(IPHONE).encode()


ALL = {"prf": {"eval": {"first": "AQ"}}, "largeBlob": {"read": True}}


@pytest.mark.threat("T12")
@given(st.dictionaries(st.sampled_from(["prf", "largeBlob", "new"]), cbor_values()))
def test_any_outputs_are_passed_on_or_refused(outputs: dict[str, Any]) -> None:
    with suppress(RemoteProtocolError):
        assert set(asserted(asking(ALL, ONE), outputs)) == {"prf", "largeBlob"}
    with suppress(RemoteProtocolError):
        assert set(made(making({"prf": {}, "largeBlob": {}}), outputs)) == {"prf", "largeBlob"}


@given(st.binary(max_size=2000))
def test_a_blob_that_was_written_is_read_back(blob: bytes) -> None:
    sent = asking({"largeBlob": {"write": base64url(blob)}}, ONE).ctap_request().extensions["largeBlob"]
    kept = {"largeBlob": {"blob": sent["write"], "originalSize": sent["originalSize"]}}
    assert asserted(asking({"largeBlob": {"read": True}}), kept) == {"largeBlob": {"blob": base64url(blob)}}


@pytest.mark.threat("T11")
def test_what_a_prf_evaluated_to_is_not_for_the_relying_party() -> None:
    reply = GetAssertionResponse(
        auth_data=authenticator_data(),
        signature=b"s",
        credential_id=ONE,
        unsigned_extension_outputs=ONE_RESULT,
    )
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [(EVAL, {"prf": {}}), ({}, {})]
    for extensions, kept in cases:
        credential = asking(extensions, ONE).accept(reply.encode())
        for_server = credential.for_relying_party()
        assert for_server["clientExtensionResults"] == kept
        assert base64url(FIRST) not in json.dumps(for_server)
        assert (base64url(FIRST) in credential.to_json()) is bool(extensions)
        assert for_server | {"clientExtensionResults": 0} == {
            **credential.response,
            "clientExtensionResults": 0,
        }


@pytest.mark.threat("T11")
@given(exactly(32), exactly(32))
def test_neither_inputs_nor_results_show_in_a_repr(value: bytes, result: bytes) -> None:
    options = asking({"prf": {"eval": {"first": base64url(value)}}}, ONE)
    reply = GetAssertionResponse(
        auth_data=authenticator_data(),
        signature=b"s",
        credential_id=ONE,
        unsigned_extension_outputs={"prf": {"results": {"first": result}}},
    )
    credential = options.accept(reply.encode())
    shown = repr((options, options.ctap_request(), reply, credential))
    for secret in (value, salt(value), result):
        assert repr(secret)[2:-1] not in shown
        assert base64url(secret) not in shown
