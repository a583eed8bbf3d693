"""The device as WebAuthn client: vectors, properties, refusals, and two relying-party libraries as judges."""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import webauthn as py_webauthn
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key
from fido2.server import Fido2Server
from fido2.webauthn import (
    PublicKeyCredentialRpEntity,
    PublicKeyCredentialUserEntity,
    UserVerificationRequirement,
)
from hypothesis import given
from hypothesis import strategies as st
from webauthn.helpers.structs import (
    AuthenticatorSelectionCriteria,
    PublicKeyCredentialDescriptor,
    ResidentKeyRequirement,
)
from webauthn.helpers.structs import UserVerificationRequirement as PyUserVerification

from headless_passkey.errors import ExitStatus, RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.ctap2 import (
    GetAssertionRequest,
    GetAssertionResponse,
    GetInfoResponse,
    MakeCredentialRequest,
    MakeCredentialResponse,
    User,
)
from headless_passkey.hybrid.data_channel import MAX_DIRECT_MESSAGE_SIZE
from headless_passkey.hybrid.fido_url import RequestKind
from headless_passkey.hybrid.keys import CURVE, uncompressed
from headless_passkey.hybrid.messages import MessageType, frame, pad
from headless_passkey.text.base64url import from_base64url
from headless_passkey.webauthn.extensions import RegistrationExtensions
from headless_passkey.webauthn.options import (
    MAX_JSON_SIZE,
    MAX_REQUEST_SIZE,
    AuthenticationOptions,
    AuthenticatorData,
    RegistrationOptions,
    foreign_rp_id,
)
from program_parts.base64url import base64url
from tests.strategies import cbor_values
from tests.vectors_loader import Vector, name, vector, vectors

ORIGIN = "https://login.example.com"
RP_ID = "example.com"
CHALLENGE = bytes(range(32))
UP, UV, AT, ED = 0x01, 0x04, 0x40, 0x80

GET: dict[str, Any] = {"challenge": base64url(CHALLENGE), "rpId": RP_ID}
CREATE: dict[str, Any] = {
    "challenge": base64url(CHALLENGE),
    "rp": {"id": RP_ID, "name": "Example"},
    "user": {"id": base64url(b"user-1"), "name": "alice", "displayName": "Alice"},
    "pubKeyCredParams": [{"type": "public-key", "alg": -7}],
}


def authentication(**changes: Any) -> AuthenticationOptions:
    return AuthenticationOptions.parse(GET | changes, origin=ORIGIN)


def registration(**changes: Any) -> RegistrationOptions:
    return RegistrationOptions.parse(CREATE | changes, origin=ORIGIN)


@dataclass
class Phone:
    """An authenticator with one ES256 key, which can be told to misbehave."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(CURVE))
    credential_id: bytes = bytes(range(16))
    user: User = field(default_factory=lambda: User(id=b"user-1", name="alice"))

    def cose_key(self) -> dict[int, Any]:
        numbers = self.key.public_key().public_numbers()
        return {1: 2, 3: -7, -1: 1, -2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")}

    def asserts(
        self,
        request: GetAssertionRequest,
        *,
        flags: int = UP | UV,
        rp_id: str | None = None,
        extra: bytes = b"",
        **changes: Any,
    ) -> bytes:
        data = authenticator_data(rp_id or request.rp_id, flags=flags, extra=extra)
        signature = self.key.sign(data + request.client_data_hash, ec.ECDSA(SHA256()))
        values: dict[str, Any] = {"credential_id": self.credential_id, "user": self.user}
        return GetAssertionResponse(auth_data=data, signature=signature, **(values | changes)).encode()

    def makes(
        self,
        request: MakeCredentialRequest,
        *,
        flags: int = UP | UV | AT,
        rp_id: str | None = None,
        cose_key: Any = None,
        fmt: str = "none",
        att_stmt: Mapping[str, Any] | None = None,
    ) -> bytes:
        attested = bytes(16) + len(self.credential_id).to_bytes(2, "big") + self.credential_id
        attested += cbor.encode(cose_key or self.cose_key())
        data = authenticator_data(rp_id or request.rp_id, flags=flags, extra=attested if flags & AT else b"")
        return MakeCredentialResponse(fmt=fmt, auth_data=data, att_stmt=att_stmt or {}).encode()


def authenticator_data(rp_id: str, *, flags: int, extra: bytes = b"") -> bytes:
    return hashlib.sha256(rp_id.encode()).digest() + bytes([flags]) + bytes(4) + extra


# --- real browsers -----------------------------------------------------------------------------------------


def options_of(case: Vector) -> AuthenticationOptions | RegistrationOptions:
    kind = RegistrationOptions if case["page"]["kind"] == "create" else AuthenticationOptions
    return kind.parse({"publicKey": case["page"]["publicKey"]}, origin=case["page"]["origin"])


def sent(case: Vector, *, by: str, kind: str) -> bytes:
    """What one side said, without type byte and command or status."""
    (plaintext,) = (m["plaintext"] for m in case["messages"] if (m["from"], m["kind"]) == (by, kind))
    return bytes.fromhex(plaintext)[2:]


@pytest.mark.parametrize("case", vectors("chromium_sessions"), ids=name)
def test_the_command_is_byte_by_byte_the_one_a_real_browser_made_of_the_same_options(case: Vector) -> None:
    assert options_of(case).ctap_request().encode() == sent(case, by="client", kind="ctap")


@pytest.mark.parametrize("case", vectors("chromium_sessions"), ids=name)
def test_the_response_is_the_one_a_real_browser_made_of_the_same_reply(case: Vector) -> None:
    """Member by member; the signature covers client data and authenticator data, so those match bit by bit."""
    peer = GetInfoResponse(versions=(), aaguid=bytes(16), transports=("internal", "hybrid"))
    credential = options_of(case).accept(sent(case, by="phone", kind="message"), peer)
    assert json.loads(credential.to_json()) == case["page"]["credential"]


def test_the_responses_of_a_real_session_verify_in_py_webauthn() -> None:
    create, get = (vector("chromium_sessions", f"chromium156-{kind}") for kind in ("create", "get"))
    made = options_of(create).accept(sent(create, by="phone", kind="message"))
    registered = py_webauthn.verify_registration_response(
        credential=made.to_json(),
        expected_challenge=options_of(create).challenge,
        expected_rp_id="localhost",
        expected_origin="http://localhost:8000",
        require_user_verification=True,
    )
    asserted = options_of(get).accept(sent(get, by="phone", kind="message"))
    py_webauthn.verify_authentication_response(
        credential=asserted.to_json(),
        expected_challenge=options_of(get).challenge,
        expected_rp_id="localhost",
        expected_origin="http://localhost:8000",
        credential_public_key=registered.credential_public_key,
        credential_current_sign_count=0,
        require_user_verification=True,
    )
    assert (asserted.user_handle, made.user_handle) == (b"lab-user", b"lab-user")


# --- other libraries as relying party ----------------------------------------------------------------------


def test_a_whole_ceremony_satisfies_py_webauthn() -> None:
    phone = Phone()
    creation = py_webauthn.generate_registration_options(
        rp_id=RP_ID,
        rp_name="Example",
        user_name="alice",
        user_id=b"user-1",
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=ResidentKeyRequirement.REQUIRED, user_verification=PyUserVerification.REQUIRED
        ),
    )
    register = RegistrationOptions.parse(py_webauthn.options_to_json(creation), origin=ORIGIN)
    made = register.accept(phone.makes(register.ctap_request()))
    registered = py_webauthn.verify_registration_response(
        credential=made.to_json(),
        expected_challenge=creation.challenge,
        expected_rp_id=RP_ID,
        expected_origin=ORIGIN,
        require_user_verification=True,
    )
    for allowed in ([], [PublicKeyCredentialDescriptor(id=registered.credential_id)]):
        request = py_webauthn.generate_authentication_options(rp_id=RP_ID, allow_credentials=allowed)
        options = AuthenticationOptions.parse(py_webauthn.options_to_json(request), origin=ORIGIN)
        py_webauthn.verify_authentication_response(
            credential=options.accept(phone.asserts(options.ctap_request())).to_json(),
            expected_challenge=request.challenge,
            expected_rp_id=RP_ID,
            expected_origin=ORIGIN,
            credential_public_key=registered.credential_public_key,
            credential_current_sign_count=0,
        )


def test_a_whole_ceremony_satisfies_fido2() -> None:
    phone = Phone()
    server = Fido2Server(PublicKeyCredentialRpEntity(id=RP_ID, name="Example"), verify_origin=ORIGIN.__eq__)
    creation, state = server.register_begin(
        PublicKeyCredentialUserEntity(id=b"user-1", name="alice"),
        user_verification=UserVerificationRequirement.REQUIRED,
    )
    register = RegistrationOptions.parse(dict(creation), origin=ORIGIN)
    made = register.accept(phone.makes(register.ctap_request()))
    data = server.register_complete(state, json.loads(made.to_json())).credential_data
    assert data is not None
    request, state = server.authenticate_begin([data])
    options = AuthenticationOptions.parse(json.dumps(dict(request)), origin=ORIGIN)
    asserted = options.accept(phone.asserts(options.ctap_request()))
    assert server.authenticate_complete(state, [data], json.loads(asserted.to_json())) == data


# --- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "in publicKey"])
@pytest.mark.parametrize("form", [lambda value: value, json.dumps, lambda value: json.dumps(value).encode()])
def test_options_come_bare_or_wrapped_as_object_text_or_bytes(form: Any, wrapped: bool) -> None:  # noqa: FBT001
    options = AuthenticationOptions.parse(form({"publicKey": GET} if wrapped else GET), origin=ORIGIN)
    assert options == authentication()
    assert (options.rp_id, options.challenge, options.allow_list) == (RP_ID, CHALLENGE, ())
    assert (options.user_verification, options.hint) == ("preferred", RequestKind.GET_ASSERTION)


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "in publicKey"])
@pytest.mark.parametrize("form", [str, str.encode], ids=["text", "bytes"])
def test_options_may_begin_with_a_byte_order_mark(form: Any, wrapped: bool) -> None:  # noqa: FBT001
    marked = form("\ufeff" + json.dumps({"publicKey": GET} if wrapped else GET))
    assert AuthenticationOptions.parse(marked, origin=ORIGIN) == authentication()
    assert foreign_rp_id(marked, origin=ORIGIN) is None


def test_all_that_registration_options_say_is_read() -> None:
    options = registration(
        pubKeyCredParams=[
            {"type": "public-key", "alg": -7},
            {"type": "x", "alg": 1},
            {"type": "public-key", "alg": -257},
        ],
        excludeCredentials=[{"type": "public-key", "id": "AQI", "transports": ["usb"]}],
        authenticatorSelection={"residentKey": "required", "userVerification": "discouraged"},
        attestation="direct",
        hints=["new", "hybrid"],
        extensions={"credProps": True, "new": {"in": 1}},
    )
    assert options == RegistrationOptions(
        origin=ORIGIN,
        rp_id=RP_ID,
        rp_name="Example",
        user=User(id=b"user-1", name="alice", display_name="Alice"),
        challenge=CHALLENGE,
        algorithms=(-7, -257),
        exclude_list=(b"\1\2",),
        resident_key="required",
        user_verification="discouraged",
        attestation="direct",
        hints=("hybrid",),
        extensions=RegistrationExtensions(cred_props=True),
    )
    assert options.hint is RequestKind.MAKE_CREDENTIAL
    request = options.ctap_request()
    assert (request.resident_key, request.user_verification) == (True, False)


def test_names_that_are_absent_fall_back() -> None:
    """iPhones refuse an RP without name, Androids a user without display name (2024)."""
    options = registration(rp={"id": RP_ID}, user={"id": "AQ", "name": "alice"})
    assert (options.rp_name, options.user.display_name) == (RP_ID, "alice")
    empty = registration(rp={"id": RP_ID, "name": ""}, user={"id": "AQ", "name": "alice", "displayName": ""})
    assert (empty.rp_name, empty.user.display_name) == (RP_ID, "alice")


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("options", "listing"), [(authentication, "allowCredentials"), (registration, "excludeCredentials")]
)
def test_options_make_a_request_that_a_message_can_carry_or_are_refused(
    options: Callable[..., AuthenticationOptions | RegistrationOptions], listing: str
) -> None:
    def with_id(size: int) -> AuthenticationOptions | RegistrationOptions:
        return options(**{listing: [{"type": "public-key", "id": base64url(bytes(size))}]})

    longest = MAX_REQUEST_SIZE - len(with_id(60_000).ctap_request().encode()) + 60_000
    plaintext = frame(MessageType.CTAP, b"\x01" + with_id(longest).ctap_request().encode())
    assert len(pad(plaintext)) + 16 <= MAX_DIRECT_MESSAGE_SIZE
    with pytest.raises(RemoteProtocolError, match="65001 bytes"):
        with_id(longest + 1).ctap_request()


def test_an_rp_id_that_is_absent_is_the_origins_host() -> None:
    assert AuthenticationOptions.parse({"challenge": "AQ"}, origin=ORIGIN).rp_id == "login.example.com"
    assert registration(rp={"name": "Example"}).rp_id == "login.example.com"


def test_an_empty_list_of_algorithms_means_es256_and_rs256() -> None:
    assert registration(pubKeyCredParams=[]).algorithms == (-7, -257)


ES256_ENTRY: dict[str, Any] = {"type": "public-key", "alg": -7}


@pytest.mark.parametrize(
    ("alg", "read"),
    [
        (-257, -257),
        ("-257", -257),
        (" -257\n", -257),
        ("-257.9", -257),
        ("-2.57e2", -257),
        ("+6", 6),
        (-8.0, -8),
        (-8.9, -8),
        (7.0, 7),
        (4294967288, -8),
        (-4294967304, -8),
        ("4294967288", -8),
        ((1 << 53) + (1 << 32) - 7, -8),  # a float has 53 bits: it is the even number below
    ],
    ids=repr,
)
def test_an_algorithm_is_read_as_browsers_read_a_long(alg: Any, read: int) -> None:
    """WebIDL converts it: text that is a number, towards zero, modulo 2**32."""
    assert registration(pubKeyCredParams=[{"type": "public-key", "alg": alg}]).algorithms == (read,)
    assert registration(pubKeyCredParams=[ES256_ENTRY, ES256_ENTRY | {"alg": alg}]).algorithms == (-7, read)


ODD_ALGORITHMS: dict[str, Any] = {
    "of null": {"type": "public-key", "alg": None},
    "of no alg": {"type": "public-key"},
    "of a name": {"type": "public-key", "alg": "ES256"},
    "of empty text": {"type": "public-key", "alg": ""},
    "of text that is no number to a browser": {"type": "public-key", "alg": "-7_0"},
    "of digits beyond ASCII": {"type": "public-key", "alg": "\u0667"},
    "of text for no number": {"type": "public-key", "alg": "nan"},
    "of text for too much": {"type": "public-key", "alg": "1e999"},
    "of text without end": {"type": "public-key", "alg": "7" * 5000},
    "of more digits than a float has room for": {"type": "public-key", "alg": -(10**400)},
    "of true": {"type": "public-key", "alg": True},
    "of a list": {"type": "public-key", "alg": [-7]},
    "of an object": {"type": "public-key", "alg": {}},
    "of another type": {"type": "password", "alg": -8},
    "of no type": {"alg": -8},
    "of a type that is a number": {"type": 1, "alg": -8},
    "of a type that is a list": {"type": ["public-key"], "alg": -8},
    "of a type in capitals": {"type": "PUBLIC-KEY", "alg": -8},
    "that is null": None,
    "that is a number": -8,
    "that is text": "public-key",
    "that is a list": [],
}


@pytest.mark.threat("T12")
@pytest.mark.parametrize("what", ODD_ALGORITHMS)
def test_one_odd_algorithm_does_not_spoil_the_others(what: str) -> None:
    odd = ODD_ALGORITHMS[what]
    assert registration(pubKeyCredParams=[odd, ES256_ENTRY, odd]).algorithms == (-7,)
    with pytest.raises(RemoteProtocolError, match="names no public-key algorithm"):
        registration(pubKeyCredParams=[odd])


GOOD_DESCRIPTOR: dict[str, Any] = {"type": "public-key", "id": "AQ"}
ODD_DESCRIPTORS: dict[str, Any] = {
    "of another type": {"type": "password", "id": "Ag"},
    "of no type": {"id": "Ag"},
    "of type null": {"type": None, "id": "Ag"},
    "of a type that is a list": {"type": ["public-key"], "id": "Ag"},
    "without id": {"type": "public-key"},
    "with id null": {"type": "public-key", "id": None},
    "with an empty id": {"type": "public-key", "id": ""},
    "with an id of a number": {"type": "public-key", "id": 2},
    "with an id of bytes": {"type": "public-key", "id": b"Ag"},
    "with an id in plain base64": {"type": "public-key", "id": "+/+/"},
    "with an id with padding": {"type": "public-key", "id": "Ag=="},
    "that is null": None,
    "that is text": "Ag",
    "that is a list": [],
}


@pytest.mark.threat("T12")
@pytest.mark.parametrize("what", ODD_DESCRIPTORS)
def test_one_odd_credential_does_not_spoil_the_others(what: str) -> None:
    odd = ODD_DESCRIPTORS[what]
    assert authentication(allowCredentials=[odd, GOOD_DESCRIPTOR, odd]).allow_list == (b"\1",)
    assert registration(excludeCredentials=[odd, GOOD_DESCRIPTOR, odd]).exclude_list == (b"\1",)
    assert registration(excludeCredentials=[odd]).exclude_list == ()
    with pytest.raises(RemoteProtocolError, match="names no public-key credential"):
        authentication(allowCredentials=[odd])  # or any passkey would do


@pytest.mark.parametrize("transports", [None, [], "", "usb", ["warp", None, 7, "internal"], {}], ids=repr)
def test_odd_transports_do_not_matter(transports: Any) -> None:
    listed = [GOOD_DESCRIPTOR | {"transports": transports}]
    assert authentication(allowCredentials=listed).allow_list == (b"\1",)
    assert registration(excludeCredentials=listed).exclude_list == (b"\1",)


@pytest.mark.parametrize("odd", [1, None, True, "", "warp", ["hybrid"], {}], ids=repr)
def test_one_odd_hint_does_not_spoil_the_others(odd: Any) -> None:
    for options in (authentication(hints=[odd, "hybrid", odd]), registration(hints=[odd, "hybrid", odd])):
        assert options.hints == ("hybrid",)
    assert authentication(hints=[odd]).hints == ()


@pytest.mark.parametrize("odd", [None, "", [], ["warp", None, 7], "packed", {}], ids=repr)
def test_attestation_formats_are_left_to_the_phone(odd: Any) -> None:
    assert registration(attestationFormats=odd) == registration()


NOTHING = (None, "")


@pytest.mark.parametrize("nothing", NOTHING, ids=repr)
def test_nothing_is_nothing_in_a_request(nothing: Any) -> None:
    """Servers write what they have not as null, as empty text, or not at all."""
    for key in ("timeout", "allowCredentials", "userVerification", "hints", "extensions"):
        assert authentication(**{key: nothing}) == authentication(), key
    assert authentication(allowCredentials=[], hints=[], extensions={}) == authentication()
    for prf in ({"prf": nothing}, {"largeBlob": nothing}, {"prf": None, "credProps": nothing}):
        assert authentication(extensions=prf) == authentication()


@pytest.mark.parametrize("nothing", NOTHING, ids=repr)
def test_nothing_is_nothing_in_a_creation(nothing: Any) -> None:
    more = ("timeout", "excludeCredentials", "authenticatorSelection", "attestation", "attestationFormats")
    for key in (*more, "hints", "extensions"):
        assert registration(**{key: nothing}) == registration(), key
    assert registration(excludeCredentials=[], hints=[], attestationFormats=[]) == registration()
    selection = dict.fromkeys(
        ("authenticatorAttachment", "residentKey", "requireResidentKey", "userVerification"), nothing
    )
    assert registration(authenticatorSelection=selection) == registration()
    named = registration(rp={"id": RP_ID, "name": nothing}, user=CREATE["user"] | {"displayName": nothing})
    assert (named.rp_name, named.user) == (RP_ID, User(id=b"user-1", name="alice", display_name="alice"))
    blob = registration(extensions={"largeBlob": {"support": nothing, "read": None, "write": None}})
    assert blob == registration(extensions={"largeBlob": {}})


def test_an_rp_id_of_null_is_the_origins_host_and_an_empty_one_is_none() -> None:
    """As browsers have it, which refuse the empty one: it stands for no domain."""
    assert authentication(rpId=None).rp_id == "login.example.com"
    assert registration(rp={"id": None, "name": "Example"}).rp_id == "login.example.com"
    for refused in ({"rpId": ""}, {"rp": {"id": "", "name": "Example"}}):
        with pytest.raises(RemoteProtocolError, match="does not belong to the origin"):
            authentication(**refused) if "rpId" in refused else registration(**refused)


@pytest.mark.parametrize(
    ("selection", "asked"),
    [
        ({}, False),
        ({"residentKey": "discouraged"}, False),
        ({"residentKey": "preferred"}, True),
        ({"residentKey": "required"}, True),
        ({"requireResidentKey": True}, True),
        ({"requireResidentKey": False}, False),
        ({"residentKey": "discouraged", "requireResidentKey": True}, False),
        ({"residentKey": "new", "requireResidentKey": True}, True),
        ({"residentKey": "new"}, False),
        ({"authenticatorAttachment": "cross-platform"}, False),
        ({"authenticatorAttachment": "new"}, False),
    ],
)
def test_a_discoverable_credential_is_asked_for_as_webauthn_says(selection: Any, asked: bool) -> None:  # noqa: FBT001
    assert registration(authenticatorSelection=selection).ctap_request().resident_key is asked


@pytest.mark.parametrize(
    ("word", "asked"), [("required", True), ("preferred", True), ("discouraged", False), ("new", True)]
)
def test_user_verification_is_asked_for_as_webauthn_says(word: str, asked: bool) -> None:  # noqa: FBT001
    """A word that we do not know is as good as none (WebAuthn §2.1.1), and none means preferred."""
    assert authentication(userVerification=word).ctap_request().user_verification is asked
    made = registration(authenticatorSelection={"userVerification": word})
    assert made.ctap_request().user_verification is asked


def test_members_we_do_not_serve_are_left_alone() -> None:
    more = {"timeout": 1, "hints": ["new"], "extensions": {"appid": "https://x", "new": 7}, "new": None}
    assert authentication(**more) == authentication()
    assert registration(**more) == registration()
    assert authentication(allowCredentials=[], userVerification=None) == authentication()


def test_transports_and_credentials_of_other_types_stay_here() -> None:
    descriptors = [
        {"type": "new", "id": "AQ"},
        {"type": "public-key", "id": "Ag", "transports": ["usb", "internal"]},
    ]
    assert authentication(allowCredentials=descriptors).allow_list == (b"\2",)


REFUSED_GET: dict[str, Any] = {
    "no challenge": {"challenge": None},
    "an empty challenge": {"challenge": ""},
    "a challenge with padding": {"challenge": "AQ=="},
    "a challenge in plain base64": {"challenge": "+/+/"},
    "a challenge with a space": {"challenge": "AQ I"},
    "a challenge of one letter": {"challenge": "A"},
    "a challenge with bits left over": {"challenge": "AR"},
    "a challenge that is no string": {"challenge": 1},
    "a challenge of bytes": {"challenge": b"AQ"},
    "a challenge beyond ASCII": {"challenge": "\u0410Q"},
    "an RP ID of another domain": {"rpId": "example.org"},
    "an RP ID that only ends alike": {"rpId": "ample.com"},
    "an RP ID below the host": {"rpId": "a.login.example.com"},
    "a bare top-level domain": {"rpId": "com"},
    "an empty RP ID": {"rpId": ""},
    "an RP ID with a dot in front": {"rpId": ".example.com"},
    "an RP ID with a dot behind": {"rpId": "example.com."},
    "an RP ID in capitals": {"rpId": "EXAMPLE.COM"},
    "an RP ID that is a URL": {"rpId": "https://example.com"},
    "an RP ID that is no string": {"rpId": 1},
    "an allow list that is no list": {"allowCredentials": {}},
    "an allow list of strings": {"allowCredentials": ["AQ"]},
    "an allow list of nothing we can use": {"allowCredentials": [{"type": "new", "id": "AQ"}]},
    "a descriptor without id": {"allowCredentials": [{"type": "public-key"}]},
    "a descriptor with a bad id": {"allowCredentials": [{"type": "public-key", "id": "A="}]},
    "user verification that is no string": {"userVerification": True},
    "hints that are no list": {"hints": "hybrid"},
    "extensions that are no object": {"extensions": []},
}


@pytest.mark.threat("T12")
@pytest.mark.parametrize("why", REFUSED_GET)
def test_authentication_options_are_refused_that_have(why: str) -> None:
    with pytest.raises(RemoteProtocolError):
        authentication(**REFUSED_GET[why])


USER = CREATE["user"]
REFUSED_CREATE: dict[str, Any] = {
    "no challenge": {"challenge": None},
    "no rp": {"rp": None},
    "an rp that is no object": {"rp": RP_ID},
    "an rp of another domain": {"rp": {"id": "example.org"}},
    "an rp with a name that is no string": {"rp": {"id": RP_ID, "name": 1}},
    "no user": {"user": None},
    "a user without id": {"user": {"name": "alice"}},
    "a user with an empty id": {"user": USER | {"id": ""}},
    "a user with an id of 65 bytes": {"user": USER | {"id": base64url(bytes(65))}},
    "a user with an id that is no base64url": {"user": USER | {"id": "?"}},
    "a user without name": {"user": {"id": "AQ"}},
    "a user with an empty name": {"user": USER | {"name": ""}},
    "a user whose name is half a character": {"user": USER | {"name": "\ud800"}},
    "a user with a display name that is no string": {"user": USER | {"displayName": {}}},
    "no algorithms": {"pubKeyCredParams": None},
    "algorithms that are no list": {"pubKeyCredParams": {}},
    "algorithms that are numbers": {"pubKeyCredParams": [-7]},
    "algorithms of nothing we can use": {"pubKeyCredParams": [{"type": "new", "alg": -7}]},
    "an algorithm that is no number": {"pubKeyCredParams": [{"type": "public-key", "alg": "ES256"}]},
    "an algorithm that is true": {"pubKeyCredParams": [{"type": "public-key", "alg": True}]},
    "an algorithm without number": {"pubKeyCredParams": [{"type": "public-key"}]},
    "an algorithm beyond 32 bits": {"pubKeyCredParams": [{"type": "public-key", "alg": -(1 << 31)}]},
    "a platform authenticator": {"authenticatorSelection": {"authenticatorAttachment": "platform"}},
    "a selection that is no object": {"authenticatorSelection": []},
    "a resident key that is no string": {"authenticatorSelection": {"residentKey": True}},
    "attestation that is no string": {"attestation": 1},
    "extensions that are no object": {"extensions": []},
    "an exclude list that is no list": {"excludeCredentials": "AQ"},
}


@pytest.mark.threat("T12")
@pytest.mark.parametrize("why", REFUSED_CREATE)
def test_registration_options_are_refused_that_have(why: str) -> None:
    with pytest.raises(RemoteProtocolError):
        registration(**REFUSED_CREATE[why])


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "1",
        '{"publicKey": []}',
        "\ufeff\ufeff" + json.dumps(GET | CREATE),
        json.dumps(GET | CREATE).encode("utf-16"),
        "NaN",
        b"\xff{}",
        "[" * 100_000,
        '{"challenge": ' + "1" * 5000 + "}",
        '{"x": "' + "x" * MAX_JSON_SIZE + '"}',
        None,
        7,
    ],
    ids=lambda text: repr(text)[:30],
)
@pytest.mark.parametrize("kind", [AuthenticationOptions, RegistrationOptions])
def test_what_is_no_object_of_options_is_refused(
    kind: type[AuthenticationOptions | RegistrationOptions], text: Any
) -> None:
    with pytest.raises(RemoteProtocolError):
        kind.parse(text, origin=ORIGIN)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
members = st.sampled_from([*GET, *CREATE, "allowCredentials", "excludeCredentials", "authenticatorSelection"])


@pytest.mark.threat("T12")
@given(json_values | st.dictionaries(members, json_values), st.booleans())
def test_any_json_is_options_or_refused(value: Any, as_text: bool) -> None:  # noqa: FBT001
    for kind, good in ((AuthenticationOptions, GET), (RegistrationOptions, CREATE)):
        for options in (value, {"publicKey": value}, good | value if isinstance(value, dict) else value):
            with suppress(RemoteProtocolError):
                parsed = kind.parse(json.dumps(options) if as_text else options, origin=ORIGIN)
                assert len(parsed.ctap_request().encode()) > 32


@pytest.mark.threat("T12")
@given(st.text(max_size=100) | st.binary(max_size=100))
def test_any_text_is_options_or_refused(text: str | bytes) -> None:
    for kind in (AuthenticationOptions, RegistrationOptions):
        with suppress(RemoteProtocolError):
            kind.parse(text, origin=ORIGIN)


@given(st.binary(max_size=100))
def test_base64url_is_read_back_and_has_one_spelling(data: bytes) -> None:
    text = base64url(data)
    assert from_base64url(text) == data
    assert "=" not in text
    with pytest.raises(RemoteProtocolError):
        from_base64url(text + "=")


@pytest.mark.threat("T12")
@given(st.text(max_size=20))
def test_any_text_is_base64url_in_its_one_spelling_or_refused(text: str) -> None:
    with suppress(RemoteProtocolError):
        assert base64url(from_base64url(text)) == text


# --- client data -------------------------------------------------------------------------------------------


def test_client_data_is_serialised_as_webauthn_says() -> None:
    """§5.8.1.1: this order, no spaces; some relying parties verify without parsing."""
    challenge = base64url(CHALLENGE)
    assert authentication().client_data.decode() == (
        f'{{"type":"webauthn.get","challenge":"{challenge}","origin":"{ORIGIN}","crossOrigin":false}}'
    )
    assert registration().client_data.decode() == (
        f'{{"type":"webauthn.create","challenge":"{challenge}","origin":"{ORIGIN}","crossOrigin":false}}'
    )
    for options in (authentication(), registration()):
        assert options.ctap_request().client_data_hash == hashlib.sha256(options.client_data).digest()


# --- what the phone answered -------------------------------------------------------------------------------


@given(
    st.binary(min_size=1, max_size=64),
    st.binary(min_size=1, max_size=64),
    st.booleans(),
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), st.booleans(), max_size=2),
)
def test_a_right_answer_is_dressed_as_the_relying_party_expects_it(
    challenge: bytes,
    user_id: bytes,
    with_list: bool,  # noqa: FBT001
    outputs: dict[str, bool],
) -> None:
    phone = Phone(user=User(id=user_id))
    allowed = [{"type": "public-key", "id": base64url(phone.credential_id)}] if with_list else []
    options = authentication(challenge=base64url(challenge), allowCredentials=allowed)
    reply = phone.asserts(options.ctap_request(), flags=UP | UV | ED, extra=cbor.encode(outputs))
    credential = options.accept(reply)
    assert (credential.credential_id, credential.user_handle) == (phone.credential_id, user_id)
    line = credential.to_json()
    assert "\n" not in line
    assert line.isascii()
    response = json.loads(line)
    assert response["id"] == response["rawId"] == base64url(phone.credential_id)
    assert (response["type"], response["authenticatorAttachment"]) == ("public-key", "cross-platform")
    assert response["clientExtensionResults"] == {}
    assert response["response"]["userHandle"] == base64url(user_id)
    assert set(response["response"]) == {"clientDataJSON", "authenticatorData", "signature", "userHandle"}


def test_an_answer_may_leave_out_what_the_allow_list_of_one_says() -> None:
    phone = Phone()
    options = authentication(allowCredentials=[{"type": "public-key", "id": base64url(phone.credential_id)}])
    credential = options.accept(phone.asserts(options.ctap_request(), credential_id=None, user=None))
    assert (credential.credential_id, credential.user_handle) == (phone.credential_id, None)
    assert "userHandle" not in credential.response["response"]


@pytest.mark.parametrize("user", [{"id": b""}, {"id": b"", "name": "", "displayName": ""}], ids=str)
def test_a_user_without_a_handle_is_not_passed_on(user: dict[str, Any]) -> None:
    phone = Phone()
    options = authentication(allowCredentials=[{"type": "public-key", "id": base64url(phone.credential_id)}])
    reply = cbor.decode_map(phone.asserts(options.ctap_request())) | {4: user}
    credential = options.accept(cbor.encode(reply))
    assert (credential.user_handle, credential.user_name) == (None, None)
    assert "userHandle" not in credential.response["response"]
    with pytest.raises(RemoteProtocolError, match="did not name the user"):
        authentication().accept(cbor.encode(reply))


def test_empty_names_are_no_names() -> None:
    """As an iPhone sends them (2026)."""
    options = authentication()
    user = User(id=b"user-1", name="", display_name="")
    credential = options.accept(Phone().asserts(options.ctap_request(), user=user))
    assert (credential.user_handle, credential.user_name) == (b"user-1", None)


def test_a_user_who_chose_the_one_credential_there_is_has_chosen() -> None:
    options = authentication()
    reply = Phone().asserts(options.ctap_request(), number_of_credentials=1, user_selected=True)
    assert options.accept(reply).user_handle == b"user-1"


def test_verification_that_was_not_required_may_be_missing() -> None:
    for word in ("preferred", "discouraged"):
        options = authentication(userVerification=word)
        options.accept(Phone().asserts(options.ctap_request(), flags=UP))


ONE_ALLOWED = {"allowCredentials": [{"type": "public-key", "id": "AQ"}]}
TWO_ALLOWED = {"allowCredentials": [{"type": "public-key", "id": "AQ"}, {"type": "public-key", "id": "Ag"}]}
WRONG_ASSERTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "another relying party": ({}, {"rp_id": "example.org"}),
    "our host in place of our RP ID": ({}, {"rp_id": "login.example.com"}),
    "no user present": ({}, {"flags": UV}),
    "no user verified, though required": ({"userVerification": "required"}, {"flags": UP}),
    "no user, without an allow list": ({}, {"user": None}),
    "no credential, without an allow list": ({}, {"credential_id": None}),
    "no credential, with two allowed": (TWO_ALLOWED, {"credential_id": None}),
    "a credential outside the allow list": (ONE_ALLOWED, {}),
    "a credential outside an allow list of two": (TWO_ALLOWED, {"credential_id": b"\3"}),
    "bytes behind the authenticator data": ({}, {"extra": b"\0"}),
    "extensions announced, none there": ({}, {"flags": UP | UV | ED}),
    "extensions that are no map": ({}, {"flags": UP | UV | ED, "extra": b"\x80"}),
    "a credential announced, none there": ({}, {"flags": UP | UV | AT}),
}


@pytest.mark.threat("T3")
@pytest.mark.parametrize("why", WRONG_ASSERTIONS)
def test_an_assertion_is_refused_that_has(why: str) -> None:
    changes, misbehaviour = WRONG_ASSERTIONS[why]
    options = authentication(**changes)
    reply = Phone().asserts(options.ctap_request(), **misbehaviour)
    with pytest.raises(RemoteProtocolError) as refused:
        options.accept(reply)
    assert refused.value.exit_status is ExitStatus.PROTOCOL


def test_a_registration_says_what_was_made() -> None:
    phone, options = Phone(), registration(extensions={"credProps": True})
    peer = GetInfoResponse(versions=(), aaguid=bytes(16), transports=("internal", "cable", "hybrid"))
    credential = options.accept(phone.makes(options.ctap_request()), peer)
    assert (credential.user_handle, credential.user_name) == (b"user-1", "alice")
    response = json.loads(credential.to_json())
    assert response["response"]["transports"] == ["cable", "hybrid", "internal"]
    assert response["clientExtensionResults"] == {"credProps": {"rk": False}}
    spki = load_der_public_key(from_base64url(response["response"]["publicKey"]))
    assert uncompressed(cast("ec.EllipticCurvePublicKey", spki)) == uncompressed(phone.key.public_key())
    assert json.loads(options.accept(phone.makes(options.ctap_request())).to_json())["response"][
        "transports"
    ] == ["hybrid"]


@pytest.mark.parametrize("algorithm", [-8, -257])
def test_public_keys_of_the_other_algorithms_a_client_must_know(algorithm: int) -> None:
    if algorithm == -8:
        edwards = ed25519.Ed25519PrivateKey.generate().public_key()
        cose: dict[int, Any] = {1: 1, 3: -8, -1: 6, -2: edwards.public_bytes_raw()}
    else:
        numbers = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
        cose = {1: 3, 3: -257, -1: numbers.n.to_bytes(256, "big"), -2: b"\1\0\1"}
    options = registration(pubKeyCredParams=[{"type": "public-key", "alg": algorithm}])
    made = options.accept(Phone().makes(options.ctap_request(), cose_key=cose))
    key = load_der_public_key(from_base64url(made.response["response"]["publicKey"]))
    if isinstance(key, ed25519.Ed25519PublicKey):
        assert key.public_bytes_raw() == cose[-2]
    else:
        assert isinstance(key, rsa.RSAPublicKey)
        assert key.public_numbers().n.to_bytes(256, "big") == cose[-1]


def test_a_public_key_of_an_algorithm_we_do_not_know_is_left_to_the_relying_party() -> None:
    options = registration(pubKeyCredParams=[{"type": "public-key", "alg": -36}])
    made = options.accept(Phone().makes(options.ctap_request(), cose_key={1: 2, 3: -36, -1: 3}))
    assert made.response["response"]["publicKeyAlgorithm"] == -36
    assert "publicKey" not in made.response["response"]


@pytest.mark.parametrize(
    ("attestation", "passed_on"),
    [
        (None, False),
        ("none", False),
        ("new", False),
        ("indirect", True),
        ("direct", True),
        ("enterprise", True),
    ],
)
def test_attestation_is_passed_on_only_when_it_was_asked_for(
    attestation: str | None,
    passed_on: bool,  # noqa: FBT001
) -> None:
    options = registration(attestation=attestation)
    statement = {"alg": -7, "sig": b"signature", "x5c": [b"who made this phone"]}
    made = options.accept(Phone().makes(options.ctap_request(), fmt="packed", att_stmt=statement))
    attested = cbor.decode_map(from_base64url(made.response["response"]["attestationObject"]))
    assert (attested["fmt"], attested["attStmt"]) == (("packed", statement) if passed_on else ("none", {}))
    assert base64url(attested["authData"]) == made.response["response"]["authenticatorData"]


ES256 = Phone().cose_key()
WRONG_REGISTRATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "another relying party": ({}, {"rp_id": "example.org"}),
    "no user present": ({}, {"flags": UV | AT}),
    "no user verified, though required": (
        {"authenticatorSelection": {"userVerification": "required"}},
        {"flags": UP | AT},
    ),
    "no credential": ({}, {"flags": UP | UV}),
    "an algorithm that was not offered": ({}, {"cose_key": ES256 | {3: -8}}),
    "a key without algorithm": ({}, {"cose_key": {1: 2, -1: 1}}),
    "a key that is a list": ({}, {"cose_key": [1]}),
    "a key without coordinates": ({}, {"cose_key": {1: 2, 3: -7, -1: 1}}),
    "a key with a short coordinate": ({}, {"cose_key": ES256 | {-2: bytes(31)}}),
    "a key with a coordinate of text": ({}, {"cose_key": ES256 | {-2: "x" * 32}}),
    "a key off its curve": ({}, {"cose_key": ES256 | {-3: bytes(32)}}),
    "a key of another curve": ({}, {"cose_key": ES256 | {-1: 2}}),
    "a key of another type": ({}, {"cose_key": ES256 | {1: 1}}),
}


@pytest.mark.threat("T14")
@pytest.mark.parametrize("why", WRONG_REGISTRATIONS)
def test_a_registration_is_refused_that_has(why: str) -> None:
    changes, misbehaviour = WRONG_REGISTRATIONS[why]
    options = registration(**changes)
    reply = Phone().makes(options.ctap_request(), **misbehaviour)
    with pytest.raises(RemoteProtocolError) as refused:
        options.accept(reply)
    assert refused.value.exit_status is ExitStatus.PROTOCOL


@pytest.mark.parametrize(
    "cose_key",
    [
        {1: 1, 3: -8, -1: 6, -2: bytes(31)},
        {1: 1, 3: -8, -1: 6},
        {1: 3, 3: -257, -1: b"", -2: b"\1\0\1"},
        {1: 3, 3: -257, -1: b"\xff" * 256, -2: b"\2"},
        {1: 3, 3: -257, -1: 7, -2: 3},
    ],
    ids=["a short point", "no point", "no modulus", "an even exponent", "numbers for bytes"],
)
def test_a_malformed_key_of_another_algorithm_is_refused(cose_key: dict[int, Any]) -> None:
    options = registration(pubKeyCredParams=[{"type": "public-key", "alg": cose_key[3]}])
    with pytest.raises(RemoteProtocolError):
        options.accept(Phone().makes(options.ctap_request(), cose_key=cose_key))


@pytest.mark.threat("T12")
@given(st.binary(max_size=200) | cbor_values().map(cbor.encode))
def test_any_reply_is_accepted_or_refused(payload: bytes) -> None:
    for options in (authentication(), registration()):
        with pytest.raises(RemoteProtocolError):
            options.accept(payload)


@pytest.mark.threat("T12")
@given(st.integers(0, 255), st.binary(max_size=120), st.binary(max_size=36))
def test_any_authenticator_data_is_read_or_refused(flags: int, extra: bytes, short: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        AuthenticatorData.parse(short)
    with suppress(RemoteProtocolError):
        data = AuthenticatorData.parse(authenticator_data(RP_ID, flags=flags, extra=extra))
        assert (data.credential_id is not None) == bool(flags & AT)
        assert data.flags == flags


@pytest.mark.threat("T12")
def test_authenticator_data_cut_anywhere_is_refused() -> None:
    whole = MakeCredentialResponse.parse(Phone().makes(registration().ctap_request())).auth_data
    for cut in range(len(whole)):
        with pytest.raises(RemoteProtocolError):
            AuthenticatorData.parse(whole[:cut])


@pytest.mark.threat("T12")
@pytest.mark.parametrize("size", [0, 1024, 65535])
def test_a_credential_id_is_1_to_1023_bytes_long(size: int) -> None:
    extra = bytes(16) + size.to_bytes(2, "big") + bytes(size) + cbor.encode(ES256)
    with pytest.raises(RemoteProtocolError, match="credential ID"):
        AuthenticatorData.parse(authenticator_data(RP_ID, flags=UP | AT, extra=extra))


@pytest.mark.threat("T11")
def test_challenge_response_and_user_do_not_show_in_a_repr() -> None:
    options = authentication()
    credential = options.accept(Phone().asserts(options.ctap_request()))
    shown = repr((options, registration(), credential))
    for kept in (repr(CHALLENGE), base64url(CHALLENGE), "signature", repr(credential.user_handle)):
        assert kept not in repr((options, credential))
    assert repr(CHALLENGE) not in shown
