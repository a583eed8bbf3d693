"""The software authenticator: what it makes verifies elsewhere, and it refuses as CTAP says."""

import base64
import hashlib
import json
import os
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import webauthn
from cryptography.exceptions import InvalidSignature
from fido2.server import Fido2Server
from fido2.webauthn import (
    AttestationObject,
    AttestedCredentialData,
    AuthenticationResponse,
    AuthenticatorAttestationResponse,
    AuthenticatorData,
    CollectedClientData,
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialUserEntity,
    RegistrationResponse,
    UserVerificationRequirement,
)
from hypothesis import given
from hypothesis import strategies as st

from companion_push.companion.software_extensions import MAX_PACKED_BLOB, LargeBlob
from companion_push.companion.software_key import (
    AAGUID,
    ES256,
    MAX_BLOBS,
    MAX_CREDENTIALS,
    ML_DSA_44,
    Algorithm,
    Assertion,
    Credential,
    Registered,
    Registration,
    SoftwareKey,
)
from headless_passkey.errors import CtapError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.ctap2 import (
    Command,
    GetAssertionRequest,
    GetAssertionResponse,
    MakeCredentialRequest,
    Status,
    User,
)
from headless_passkey.webauthn.options import AuthenticationOptions, RegistrationOptions

RP_ID = "example.com"
ORIGIN = "https://example.com"
NOW = 1_800_000_000
ALICE = User(id=b"alice", name="alice@example.com", display_name="Alice")
BOB = User(id=b"bob", name="bob@example.com", display_name="Bob")


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def client_data(kind: str, challenge: bytes) -> bytes:
    values = {"type": kind, "challenge": b64(challenge), "origin": ORIGIN, "crossOrigin": False}
    return json.dumps(values).encode()


def creation(user: User = ALICE, **changes: Any) -> MakeCredentialRequest:
    values: dict[str, Any] = {
        "client_data_hash": bytes(32),
        "rp_id": RP_ID,
        "rp_name": "Example",
        "user": user,
        "algorithms": (-257, ES256),
    }
    return MakeCredentialRequest(**(values | changes))


def assertion(**changes: Any) -> GetAssertionRequest:
    values: dict[str, Any] = {"rp_id": RP_ID, "client_data_hash": bytes(32)}
    return GetAssertionRequest(**(values | changes))


def made(key: SoftwareKey, request: MakeCredentialRequest, now: int = NOW) -> Registered:
    return key.make_credential(request).approve(now=now)


def having(*users: User, **changes: Any) -> SoftwareKey:
    """A key on which these users registered one after the other."""
    key = SoftwareKey()
    for number, user in enumerate(users):
        key = key.adding(made(key, creation(user, **changes), NOW + number))
    return key


def refused(key: SoftwareKey, command: Command, payload: bytes) -> int:
    with pytest.raises(CtapError) as caught:
        key.ask(command, payload)
    return caught.value.status


# What it makes


@pytest.mark.parametrize("synced", [False, True], ids=["device-bound", "synced"])
def test_python_fido2_accepts_registration_and_assertion(*, synced: bool) -> None:
    server = Fido2Server(
        PublicKeyCredentialRpEntity(id=RP_ID, name="Example"), verify_origin=lambda origin: origin == ORIGIN
    )
    user = PublicKeyCredentialUserEntity(id=ALICE.id, name="alice", display_name="Alice")
    options, state = server.register_begin(user, user_verification=UserVerificationRequirement.REQUIRED)
    data = client_data("webauthn.create", options.public_key.challenge)
    registered = made(
        SoftwareKey(synced=synced), creation(client_data_hash=hashlib.sha256(data).digest(), user=ALICE)
    )
    auth_data = server.register_complete(
        state,
        RegistrationResponse(
            raw_id=registered.credential.credential_id,
            response=AuthenticatorAttestationResponse(
                client_data=CollectedClientData(data),
                attestation_object=AttestationObject.create(
                    registered.response.fmt,
                    AuthenticatorData(registered.response.auth_data),
                    dict(registered.response.att_stmt),
                ),
            ),
        ),
    )
    assert auth_data.credential_data is not None
    assert bytes(auth_data.credential_data.aaguid) == AAGUID
    assert auth_data.counter == 0
    assert bool(auth_data.flags & AuthenticatorData.FLAG.BE) is synced
    assert bool(auth_data.flags & AuthenticatorData.FLAG.BS) is synced

    key = SoftwareKey().adding(registered)
    challenge, login_state = server.authenticate_begin(user_verification=UserVerificationRequirement.REQUIRED)
    data = client_data("webauthn.get", challenge.public_key.challenge)
    answer = key.get_assertion(assertion(client_data_hash=hashlib.sha256(data).digest())).approve()
    verified = server.authenticate_complete(
        login_state,
        [AttestedCredentialData(auth_data.credential_data)],
        AuthenticationResponse.from_dict(authentication_json(answer, data)),
    )
    assert verified.credential_id == registered.credential.credential_id


def test_py_webauthn_accepts_registration_and_assertion() -> None:
    challenge = os.urandom(32)
    data = client_data("webauthn.create", challenge)
    registered = made(SoftwareKey(), creation(client_data_hash=hashlib.sha256(data).digest()))
    response = registered.response
    attestation = cbor.encode({"fmt": response.fmt, "authData": response.auth_data, "attStmt": {}})
    credential_id = b64(registered.credential.credential_id)
    verified = webauthn.verify_registration_response(
        credential={
            "id": credential_id,
            "rawId": credential_id,
            "type": "public-key",
            "response": {"clientDataJSON": b64(data), "attestationObject": b64(attestation)},
        },
        expected_challenge=challenge,
        expected_rp_id=RP_ID,
        expected_origin=ORIGIN,
        require_user_verification=True,
    )
    assert verified.user_verified

    data = client_data("webauthn.get", challenge)
    key = SoftwareKey().adding(registered)
    answer = key.get_assertion(assertion(client_data_hash=hashlib.sha256(data).digest())).approve()
    signed_in = webauthn.verify_authentication_response(
        credential=authentication_json(answer, data),
        expected_challenge=challenge,
        expected_rp_id=RP_ID,
        expected_origin=ORIGIN,
        credential_public_key=verified.credential_public_key,
        credential_current_sign_count=0,
        require_user_verification=True,
    )
    assert signed_in.user_verified
    assert signed_in.credential_device_type == "single_device"


def authentication_json(answer: GetAssertionResponse, data: bytes) -> dict[str, Any]:
    assert answer.credential_id is not None
    credential_id = b64(answer.credential_id)
    return {
        "id": credential_id,
        "rawId": credential_id,
        "type": "public-key",
        "response": {
            "clientDataJSON": b64(data),
            "authenticatorData": b64(answer.auth_data),
            "signature": b64(answer.signature),
        },
    }


def test_info_claims_verification_discoverable_credentials_and_the_extensions() -> None:
    info = SoftwareKey().info
    assert info.versions == ("FIDO_2_0", "FIDO_2_1")
    assert info.options == {"rk": True, "up": True, "uv": True}
    assert info.extensions == ("credProtect", "largeBlob", "prf")
    assert info.others == {}  # no PIN protocol, for one
    assert info.aaguid == AAGUID
    assert "hybrid" in info.transports


def test_without_allow_list_the_newest_account_is_first_and_the_answer_names_its_user() -> None:
    asked = having(ALICE, BOB).get_assertion(assertion())
    assert asked.accounts == (BOB, ALICE)
    answer = asked.approve()
    assert answer.user == BOB
    assert answer.user_selected
    assert asked.approve(account=1).user == ALICE


def test_with_an_allow_list_only_its_credentials_answer() -> None:
    key = having(ALICE, BOB)
    alices = key.credentials[0].credential_id
    answer = key.get_assertion(assertion(allow_list=(b"other", alices))).approve()
    assert answer.credential_id == alices
    assert not answer.user_selected


def test_a_credential_that_is_not_discoverable_answers_only_to_an_allow_list() -> None:
    key = having(ALICE, resident_key=False)
    assert refused(key, Command.GET_ASSERTION, assertion().encode()) == Status.NO_CREDENTIALS
    named = assertion(allow_list=(key.credentials[0].credential_id,))
    assert key.get_assertion(named).approve().user is None


def test_registering_an_account_again_replaces_its_discoverable_credential() -> None:
    key = having(ALICE, BOB, ALICE)
    assert [each.user for each in key.credentials] == [BOB, ALICE]


def test_long_names_are_shortened() -> None:
    registered = made(SoftwareKey(), creation(User(id=b"x", name="n" * 9999, display_name="d" * 9999)))
    user = registered.credential.user
    assert user.name is not None
    assert len(user.name) == 256


def prf_of(options: AuthenticationOptions, key: SoftwareKey) -> Any:
    """What the device passes on of the function, asked through its own WebAuthn client."""
    answer = key.get_assertion(options.ctap_request(key.info)).approve()
    return options.accept(answer.encode(), key.info).response["clientExtensionResults"]["prf"]


def evaluate(key: SoftwareKey, prf: dict[str, Any], *allowed: bytes) -> Any:
    options = {
        "challenge": "AQ",
        "rpId": RP_ID,
        "allowCredentials": [{"type": "public-key", "id": b64(each)} for each in allowed],
        "extensions": {"prf": prf},
    }
    return prf_of(AuthenticationOptions.parse(options, origin=ORIGIN), key)


def test_a_credentials_prf_is_a_function_of_credential_and_input() -> None:
    key = having(ALICE, BOB)
    alice, bob = (each.credential_id for each in key.credentials)
    first = evaluate(key, {"eval": {"first": "AQ"}}, alice)["results"]["first"]
    both = evaluate(key, {"eval": {"first": "AQ", "second": "Ag"}}, alice)["results"]
    assert both["first"] == first
    assert both["second"] == evaluate(key, {"eval": {"first": "Ag"}}, alice)["results"]["first"]
    assert (
        len({first, both["second"], evaluate(key, {"eval": {"first": "AQ"}}, bob)["results"]["first"]}) == 3
    )
    by_credential = {"eval": {"first": "AQ"}, "evalByCredential": {b64(bob): {"first": "Ag"}}}
    assert evaluate(key, by_credential, alice, bob)["results"] == evaluate(
        key, {"eval": {"first": "Ag"}}, bob
    ).get("results")
    assert evaluate(key, {"evalByCredential": {b64(bob): {"first": "Ag"}}}, alice, bob).keys() == {"results"}
    assert evaluate(key, {}) == {}


def test_a_registration_evaluates_the_prf_of_the_new_credential() -> None:
    values = {
        "challenge": "AQ",
        "rp": {"id": RP_ID},
        "user": {"id": b64(ALICE.id), "name": "alice"},
        "pubKeyCredParams": [],
        "authenticatorSelection": {"residentKey": "required"},
        "extensions": {"prf": {"eval": {"first": "AQ"}}},
    }
    options = RegistrationOptions.parse(values, origin=ORIGIN)
    key = SoftwareKey()
    registered = made(key, options.ctap_request(key.info))
    results = options.accept(registered.response.encode(), key.info).response["clientExtensionResults"]
    assert results["prf"]["enabled"]
    assert results["prf"]["results"] == evaluate(key.adding(registered), {"eval": {"first": "AQ"}})["results"]
    plain = made(key, creation(extensions={"prf": {}}))
    assert plain.response.unsigned_extension_outputs == {"prf": {"enabled": True}}
    assert not made(key, creation()).response.unsigned_extension_outputs


@pytest.mark.parametrize(
    "prf",
    [
        1,
        {"eval": 1},
        {"eval": {}},
        {"eval": {"second": bytes(32)}},
        {"eval": {"first": bytes(31)}},
        {"eval": {"first": "x" * 32}},
        {"eval": {"first": bytes(32), "second": b""}},
        {"evalByCredential": []},
        {"evalByCredential": {b"x": {"first": b""}}},
    ],
)
def test_a_prf_that_cannot_be_read_is_refused_before_the_user_is_asked(prf: Any) -> None:
    for command, request in (
        (Command.GET_ASSERTION, assertion(extensions={"prf": prf})),
        (Command.MAKE_CREDENTIAL, creation(extensions={"prf": prf})),
    ):
        status = refused(having(ALICE), command, request.encode())
        assert status in (Status.INVALID_PARAMETER, Status.CBOR_UNEXPECTED_TYPE)


# Large blobs


def large_blob(options: AuthenticationOptions, key: SoftwareKey, **how: Any) -> Any:
    """What the device passes on of the large blob, asked through its own WebAuthn client."""
    answer = key.get_assertion(options.ctap_request(key.info)).approve(**how)
    return options.accept(answer.encode(), key.info).response["clientExtensionResults"]["largeBlob"]


def asking(use: dict[str, Any], *allowed: bytes) -> AuthenticationOptions:
    options = {
        "challenge": "AQ",
        "rpId": RP_ID,
        "allowCredentials": [{"type": "public-key", "id": b64(each)} for each in allowed],
        "extensions": {"largeBlob": use},
    }
    return AuthenticationOptions.parse(options, origin=ORIGIN)


def written(key: SoftwareKey, blob: bytes) -> SoftwareKey | None:
    """The key with a blob at its newest credential, as the device's client has it stored."""
    name = key.credentials[-1].credential_id
    stage = key.get_assertion(asking({"write": b64(blob)}, name).ctap_request(key.info))
    assert stage.blob is not None
    assert stage.blob.write is not None
    return key.storing(name, stage.blob.write)


UNSHRINKABLE = 60_000  # random bytes that a message of 64 KiB can carry
PREFERRED = {"largeBlob": {"support": "preferred"}}


@given(st.binary(max_size=3000))
def test_a_large_blob_that_was_stored_is_read_back_and_may_be_stored_again(blob: bytes) -> None:
    key = written(having(ALICE, extensions=PREFERRED), blob)
    assert key is not None
    name = key.credentials[0].credential_id
    assert large_blob(asking({"read": True}, name), key) == {"blob": b64(blob)}
    assert large_blob(asking({"write": b64(blob)}, name), key, blob_written=True) == {"written": True}
    assert written(key, blob) == key


def test_a_large_blob_of_the_largest_size_is_stored_whatever_is_in_it() -> None:
    for blob in (os.urandom(UNSHRINKABLE), os.urandom(1) * (1 << 16)):
        key = written(having(ALICE, extensions=PREFERRED), blob)
        assert key is not None
        assert large_blob(asking({"read": True}), key) == {"blob": b64(blob)}


def test_no_large_blob_is_stored_where_the_registration_asked_for_none_or_there_is_no_room() -> None:
    plain = having(ALICE)
    assert written(plain, b"blob") is None
    assert large_blob(asking({"read": True}), plain) == {}
    assert large_blob(asking({"write": "AQ"}, plain.credentials[0].credential_id), plain) == {
        "written": False
    }
    assert SoftwareKey().storing(b"gone", LargeBlob(b"", 0)) is None
    key = SoftwareKey()
    for number in range(MAX_BLOBS // UNSHRINKABLE):
        user = User(id=bytes([number]))
        key = key.adding(made(key, creation(user, extensions=PREFERRED), NOW + number))
        last, key = key, written(key, os.urandom(UNSHRINKABLE)) or key
        assert key is not last
    key = key.adding(made(key, creation(BOB, extensions=PREFERRED)))
    assert written(key, os.urandom(UNSHRINKABLE)) is None


@pytest.mark.parametrize(
    ("support", "discoverable", "output"),
    [
        ("preferred", True, {"supported": True}),
        ("required", True, {"supported": True}),
        ("preferred", False, {"supported": False}),
    ],
)
def test_a_registration_says_whether_the_credential_can_have_a_large_blob(
    support: str, output: dict[str, bool], *, discoverable: bool
) -> None:
    request = creation(extensions={"largeBlob": {"support": support}}, resident_key=discoverable)
    registered = made(SoftwareKey(), request)
    assert registered.response.unsigned_extension_outputs == {"largeBlob": output}
    assert registered.credential.blob_enabled is output["supported"]


def test_a_required_large_blob_that_cannot_be_is_refused_before_a_passkey_is_made() -> None:
    request = creation(extensions={"largeBlob": {"support": "required"}}, resident_key=False)
    assert refused(SoftwareKey(), Command.MAKE_CREDENTIAL, request.encode()) == Status.INVALID_OPTION


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "use",
    [
        7,
        {},
        {"read": False},
        {"read": True, "write": b"", "originalSize": 0},
        {"write": b""},
        {"write": "text", "originalSize": 4},
        {"write": b"", "originalSize": -1},
        {"write": b"", "originalSize": (1 << 16) + 1},
        {"write": b"", "originalSize": True},
        {"write": bytes(MAX_PACKED_BLOB + 1), "originalSize": 0},
    ],
)
def test_a_large_blob_that_cannot_be_is_refused_before_the_user_is_asked(use: Any) -> None:
    key = having(ALICE, extensions=PREFERRED)
    request = assertion(allow_list=(key.credentials[0].credential_id,), extensions={"largeBlob": use})
    refused(key, Command.GET_ASSERTION, request.encode())
    support = creation(extensions={"largeBlob": {"support": use}})
    refused(key, Command.MAKE_CREDENTIAL, support.encode())


@pytest.mark.parametrize("allowed", [(), (b"a" * 32, b"b" * 32)])
def test_a_large_blob_is_stored_for_exactly_one_allowed_credential(allowed: tuple[bytes, ...]) -> None:
    key = having(ALICE, extensions=PREFERRED)
    names = (key.credentials[0].credential_id, *allowed[:1]) if allowed else ()
    request = assertion(allow_list=names, extensions={"largeBlob": {"write": b"", "originalSize": 0}})
    assert refused(key, Command.GET_ASSERTION, request.encode()) == Status.INVALID_PARAMETER


# Protection, verification, backup


PRESENCE = SoftwareKey(verifies=False)


def flags(auth_data: bytes) -> AuthenticatorData.FLAG:
    return AuthenticatorData(auth_data).flags


def test_a_protection_that_was_asked_for_is_signed() -> None:
    registered = made(SoftwareKey(), creation(extensions={"credProtect": 2}))
    assert AuthenticatorData(registered.response.auth_data).extensions == {"credProtect": 2}
    assert AuthenticatorData(made(SoftwareKey(), creation()).response.auth_data).extensions is None


@pytest.mark.threat("T10")
@pytest.mark.parametrize(
    ("level", "unnamed", "named"), [(None, True, True), (1, True, True), (2, False, True), (3, False, False)]
)
def test_without_verification_a_protected_credential_is_not_found(
    level: int | None, *, unnamed: bool, named: bool
) -> None:
    protect = {} if level is None else {"credProtect": level}
    key = having(ALICE, extensions=protect, user_verification=False)
    name = key.credentials[0].credential_id
    for verifies, by_name, found in (
        (True, False, True),
        (True, True, True),
        (False, False, unnamed),
        (False, True, named),
    ):
        asks = replace(key, verifies=verifies)
        request = assertion(allow_list=(name,) if by_name else (), user_verification=False)
        excluding = creation(BOB, exclude_list=(name,), user_verification=False)
        if found:
            assert asks.get_assertion(request).candidates == key.credentials
        else:
            assert refused(asks, Command.GET_ASSERTION, request.encode()) == Status.NO_CREDENTIALS
        if named or verifies:
            with pytest.raises(CtapError) as caught:
                made(asks, excluding)
            assert caught.value.status == Status.CREDENTIAL_EXCLUDED
        else:
            made(asks, excluding)


@pytest.mark.parametrize("level", [0, 4, -1, "3", None, True])
def test_a_protection_that_does_not_exist_is_refused(level: Any) -> None:
    refused(SoftwareKey(), Command.MAKE_CREDENTIAL, creation(extensions={"credProtect": level}).encode())


def test_a_phone_that_verifies_nobody_says_so_and_names_nobody() -> None:
    assert "uv" not in PRESENCE.info.options
    for command, request in ((Command.MAKE_CREDENTIAL, creation()), (Command.GET_ASSERTION, assertion())):
        assert refused(PRESENCE, command, request.encode()) == Status.INVALID_OPTION
    registered = made(PRESENCE, creation(user_verification=False))
    answer = PRESENCE.adding(registered).get_assertion(assertion(user_verification=False)).approve()
    for data in (registered.response.auth_data, answer.auth_data):
        assert flags(data) & AuthenticatorData.FLAG.UP
        assert not flags(data) & AuthenticatorData.FLAG.UV
    assert answer.user == User(id=ALICE.id)


def test_backup_eligibility_is_for_ever_and_backup_state_is_of_today() -> None:
    both, eligible = AuthenticatorData.FLAG.BE | AuthenticatorData.FLAG.BS, AuthenticatorData.FLAG.BE
    synced = SoftwareKey(synced=True)
    key = synced.adding(made(synced, creation()))
    assert flags(key.get_assertion(assertion()).approve().auth_data) & both == both
    key = replace(key, synced=False)
    assert flags(key.get_assertion(assertion()).approve().auth_data) & both == eligible
    bound = replace(having(ALICE), synced=True)
    assert not flags(bound.get_assertion(assertion()).approve().auth_data) & both


# ML-DSA


@pytest.mark.parametrize(
    ("ours", "wanted", "chosen"),
    [
        ((ES256,), (ML_DSA_44, ES256), ES256),
        ((ES256, ML_DSA_44), (ML_DSA_44, ES256), ML_DSA_44),
        ((ML_DSA_44, ES256), (-257, ES256, ML_DSA_44), ES256),
        ((ML_DSA_44,), (ES256, ML_DSA_44), ML_DSA_44),
    ],
)
def test_of_its_algorithms_the_relying_partys_first_choice_is_made(
    ours: tuple[Algorithm, ...], wanted: tuple[int, ...], chosen: int
) -> None:
    key = SoftwareKey(algorithms=ours)
    assert key.info.algorithms == ours
    registered = made(key, creation(algorithms=wanted))
    data = AuthenticatorData(registered.response.auth_data).credential_data
    assert data is not None
    assert data.public_key[3] == registered.credential.algorithm == chosen


def test_python_fido2_verifies_a_signature_of_ml_dsa_44() -> None:
    key = SoftwareKey(algorithms=(ML_DSA_44,))
    registered = made(key, creation(algorithms=(ML_DSA_44,)))
    data = AuthenticatorData(registered.response.auth_data).credential_data
    assert data is not None
    answer = key.adding(registered).get_assertion(assertion()).approve()
    data.public_key.verify(answer.auth_data + bytes(32), answer.signature)
    with pytest.raises(InvalidSignature):
        data.public_key.verify(answer.auth_data + b"1" * 32, answer.signature)


# Properties


@given(st.integers(0, 255), st.binary(max_size=400))
def test_any_command_and_payload_get_a_stage_or_a_ctap_status(command: int, payload: bytes) -> None:
    with suppress(CtapError):
        having_alice.ask(command, payload)


IN_EXTENSIONS = ["prf", "eval", "first", "credProtect", "largeBlob", "support", "read", "write"]
cbor_values = st.recursive(
    st.none() | st.booleans() | st.integers(-300, 300) | st.binary(max_size=40) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["id", "type", "alg", "name", "rk", "up", "uv", 1, 2, *IN_EXTENSIONS]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.sampled_from([Command.MAKE_CREDENTIAL, Command.GET_ASSERTION]),
    st.dictionaries(st.integers(0, 9), cbor_values, max_size=8),
)
def test_any_map_gets_a_stage_or_a_ctap_status(command: Command, members: dict[int, Any]) -> None:
    with suppress(CtapError):
        having_alice.ask(command, cbor.encode(members))


@given(st.binary(min_size=1, max_size=64), st.none() | st.text(), st.none() | st.text())
def test_any_user_can_register_and_sign_in(user_id: bytes, name: str | None, display: str | None) -> None:
    user = User(id=user_id, name=name, display_name=display)
    key = SoftwareKey().adding(made(SoftwareKey(), creation(user)))
    answer = key.get_assertion(assertion()).approve()
    assert answer.user is not None
    assert answer.user.id == user_id


having_alice = having(ALICE)


# Refusals


def test_no_credential_is_status_2e() -> None:
    assert refused(SoftwareKey(), Command.GET_ASSERTION, assertion().encode()) == 0x2E
    other = assertion(rp_id="other.example")
    assert refused(having(ALICE), Command.GET_ASSERTION, other.encode()) == 0x2E
    unlisted = assertion(allow_list=(b"x" * 32,))
    assert refused(having(ALICE), Command.GET_ASSERTION, unlisted.encode()) == 0x2E


def test_another_algorithm_is_status_26() -> None:
    request = creation(algorithms=(-8, -257))
    assert refused(SoftwareKey(), Command.MAKE_CREDENTIAL, request.encode()) == 0x26


def test_an_excluded_credential_is_told_only_after_the_user_agreed() -> None:
    key = having(ALICE)
    asked = key.ask(
        Command.MAKE_CREDENTIAL, creation(BOB, exclude_list=(key.credentials[0].credential_id,)).encode()
    )
    assert isinstance(asked, Registration)
    with pytest.raises(CtapError) as caught:
        asked.approve(now=NOW)
    assert caught.value.status == 0x19


def test_a_credential_of_another_rp_excludes_nothing() -> None:
    key = having(ALICE)
    request = creation(BOB, rp_id="other.example", exclude_list=(key.credentials[0].credential_id,))
    assert made(key, request).credential.rp_id == "other.example"


def test_an_assertion_behind_the_users_back_is_refused() -> None:
    silent = assertion(user_presence=False)
    assert refused(having(ALICE), Command.GET_ASSERTION, silent.encode()) == Status.UNSUPPORTED_OPTION


UNSERVED: dict[str, tuple[Command, dict[int, Any], Status]] = {
    "a proof of a PIN": (Command.MAKE_CREDENTIAL, {8: b"proof", 9: 1}, Status.INVALID_PARAMETER),
    "an empty proof of a PIN": (Command.MAKE_CREDENTIAL, {8: b"", 9: 2}, Status.INVALID_PARAMETER),
    "enterprise attestation": (Command.MAKE_CREDENTIAL, {10: 1}, Status.INVALID_PARAMETER),
    "a credential behind the user's back": (
        Command.MAKE_CREDENTIAL,
        {7: {"up": False}},
        Status.INVALID_OPTION,
    ),
    "an assertion with a proof of a PIN": (
        Command.GET_ASSERTION,
        {6: b"proof", 7: 1},
        Status.INVALID_PARAMETER,
    ),
    "an assertion with rk": (Command.GET_ASSERTION, {5: {"rk": True}}, Status.UNSUPPORTED_OPTION),
}


@pytest.mark.parametrize("name", UNSERVED)
def test_what_getinfo_does_not_offer_is_refused_as_ctap_2_1_says(name: str) -> None:
    command, more, status = UNSERVED[name]
    request = creation() if command is Command.MAKE_CREDENTIAL else assertion()
    members = cbor.decode_map(request.encode()) | more
    assert refused(having(ALICE), command, cbor.encode(members)) == status


def test_what_getinfo_offers_may_be_said_in_so_many_words() -> None:
    members = cbor.decode_map(creation().encode()) | {7: {"rk": True, "up": True, "uv": True}}
    assert isinstance(SoftwareKey().ask(Command.MAKE_CREDENTIAL, cbor.encode(members)), Registration)
    members = cbor.decode_map(assertion().encode()) | {5: {"up": True, "uv": True}}
    assert isinstance(having(ALICE).ask(Command.GET_ASSERTION, cbor.encode(members)), Assertion)


@pytest.mark.parametrize("rp_id", ["", "EXAMPLE.com", "example.com/", "exa mple", "a" * 300])
def test_an_rp_id_that_is_no_domain_name_is_refused(rp_id: str) -> None:
    request = creation(rp_id=rp_id)
    assert refused(SoftwareKey(), Command.MAKE_CREDENTIAL, request.encode()) == Status.INVALID_PARAMETER


def test_a_user_without_id_is_refused() -> None:
    request = creation(User(id=b""))
    assert refused(SoftwareKey(), Command.MAKE_CREDENTIAL, request.encode()) == Status.CBOR_UNEXPECTED_TYPE


def test_a_full_key_refuses_more() -> None:
    key = SoftwareKey(having(ALICE).credentials * MAX_CREDENTIALS)
    assert refused(key, Command.MAKE_CREDENTIAL, creation().encode()) == Status.KEY_STORE_FULL


@pytest.mark.threat("T10")
@pytest.mark.parametrize("command", [0x00, 0x04, 0x06, 0x07, 0x08, 0x0B, 0x40, 0xFF])
def test_no_other_command_exists(command: int) -> None:
    with pytest.raises(CtapError) as caught:
        SoftwareKey().ask(command, b"")
    assert caught.value.status == Status.INVALID_COMMAND


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (b"", Status.INVALID_CBOR),
        (b"\xff", Status.INVALID_CBOR),
        (cbor.encode([]), Status.INVALID_CBOR),
        (cbor.encode({}), Status.MISSING_PARAMETER),
        (cbor.encode({1: "example.com"}), Status.MISSING_PARAMETER),
        (cbor.encode({1: 7, 2: bytes(32)}), Status.CBOR_UNEXPECTED_TYPE),
    ],
)
def test_a_malformed_request_gets_the_status_that_says_why(payload: bytes, status: Status) -> None:
    assert refused(SoftwareKey(), Command.GET_ASSERTION, payload) == status


ODD_ALGORITHMS: dict[str, tuple[Any, Status | None]] = {
    "another type": ({"type": "password"}, None),
    "an algorithm of another protocol": ({"type": "public-key", "alg": -(1 << 40)}, None),
    "members that nobody knows": ({"type": "public-key", "alg": -8, "x": [None]}, None),
    "text for a number": ({"type": "public-key", "alg": "-7"}, Status.CBOR_UNEXPECTED_TYPE),
    "true for a number": ({"type": "public-key", "alg": True}, Status.CBOR_UNEXPECTED_TYPE),
    "null for a number": ({"type": "public-key", "alg": None}, Status.CBOR_UNEXPECTED_TYPE),
    "a type that is a number": ({"type": 1, "alg": -8}, Status.CBOR_UNEXPECTED_TYPE),
    "no map": (-8, Status.CBOR_UNEXPECTED_TYPE),
}


@pytest.mark.parametrize("name", ODD_ALGORITHMS)
def test_an_odd_algorithm_is_passed_over_or_refused_as_ctap_says(name: str) -> None:
    """§6.1.2 step 3: unknown ones do not matter, wrong types do, even behind one that will do."""
    odd, status = ODD_ALGORITHMS[name]
    members = cbor.decode_map(creation().encode())
    members[4] = [{"type": "public-key", "alg": ES256}, odd]
    if status is None:
        assert isinstance(SoftwareKey().ask(Command.MAKE_CREDENTIAL, cbor.encode(members)), Registration)
    else:
        assert refused(SoftwareKey(), Command.MAKE_CREDENTIAL, cbor.encode(members)) == status


@pytest.mark.threat("T11")
def test_private_keys_stay_out_of_every_repr() -> None:
    key = having(ALICE)
    private = key.credentials[0].private_key
    shown = (
        repr(key) + repr(key.credentials) + repr(key.get_assertion(assertion())) + repr(made(key, creation()))
    )
    assert private.hex() not in shown
    assert repr(private) not in shown
    assert isinstance(key.get_assertion(assertion()), Assertion)
    assert isinstance(key.credentials[0], Credential)
