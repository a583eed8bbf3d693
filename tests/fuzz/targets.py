"""One fuzz target per parser: any bytes give a value or the documented error, and a value holds to its rule.

The rule of most: what was parsed encodes to the same bytes again where the format is canonical, and to
something that parses to the same value where unknown members are dropped. A target is a plain function of
bytes; whatever else it raises is a finding. Where a parser stands behind a seal or a signature, the target
seals or signs, so that the fuzzer reaches what an attacker with a key would reach.
"""

import asyncio
import dataclasses
import hashlib
import hmac
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from aiohttp import WSMsgType
from aiohttp._websocket.reader import WebSocketDataQueue, WebSocketReader
from aiohttp.base_protocol import BaseProtocol
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB

from companion_push.relay.problems import Problem
from companion_push.relay.proofs import check_proof
from companion_push.tunnel_service.websocket import Websocket
from headless_passkey.errors import LocalProtocolError, RemoteProtocolError, TrustError, UsageError
from headless_passkey.hybrid import cbor as _cbor
from headless_passkey.hybrid import noise
from headless_passkey.hybrid.channel import AuthenticatorChannel, ClientChannel
from headless_passkey.hybrid.ctap2 import (
    GetAssertionRequest,
    GetAssertionResponse,
    GetInfoResponse,
    MakeCredentialRequest,
    MakeCredentialResponse,
    User,
)
from headless_passkey.hybrid.data_channel import MAX_TRIALS, Receiver, direct_frame
from headless_passkey.hybrid.eid import (
    Eid,
    Suffix,
    open_advert,
    open_with_any,
    parse_suffix,
    seal_advert,
)
from headless_passkey.hybrid.fido_url import PREFIX, FidoUrl, decode_digits, encode_digits
from headless_passkey.hybrid.keys import CURVE, parse_uncompressed
from headless_passkey.hybrid.linking import (
    ClientPayload,
    LinkedPhone,
    LinkingInformation,
    NoLink,
    link_signature,
    read_link,
)
from headless_passkey.hybrid.messages import (
    Ctap,
    Json,
    MessageType,
    PostHandshake,
    frame,
    pad,
    parse_frame,
    unpad,
)
from headless_passkey.hybrid.noise import CipherState
from headless_passkey.hybrid.tunnel_url import (
    ConnectTunnel,
    ContactTunnel,
    NewTunnel,
    connect_url,
    contact_headers,
    contact_url,
    new_url,
    parse_client_payload_header,
    parse_path,
    parse_routing_id,
)
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.radio.pipe import parse_advert_line
from headless_passkey.rp.session import _target
from headless_passkey.text.names import name_of
from headless_passkey.trust import envelope as _envelope
from headless_passkey.trust import ring as _ring
from headless_passkey.trust.account_code import PREFIX as ACCOUNT_PREFIX
from headless_passkey.trust.account_code import AccountCode
from headless_passkey.trust.admission import InvitationRecord, Newcomer
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.envelope import Opened, open_envelope
from headless_passkey.trust.hpke import SoftwareHpkeKey
from headless_passkey.trust.introduction import INTRODUCTION_LABEL, Introduction
from headless_passkey.trust.invitation import PREFIX as INVITATION_PREFIX
from headless_passkey.trust.invitation import Invitation
from headless_passkey.trust.ring import (
    RING_LABEL,
    Member,
    Ring,
    Role,
    document_hash,
    encode_hpke_key,
    prove_possession,
)
from headless_passkey.trust.signing import SIGNATURE_SIZE, SoftwareSigningKey, sign_document
from headless_passkey.trust.text_form import to_line
from headless_passkey.trust.word import WORD_LABEL, Word
from headless_passkey.webauthn.options import AuthenticationOptions, AuthenticatorData, RegistrationOptions
from headless_passkey.webauthn.origins import RelatedOrigins
from program_parts.base64url import base64url
from program_parts.names import is_plain, plain, printable, quoted, shown_line
from relying_party.core.proofs import verify_proof
from relying_party.errors import ProofClock, ProofInvalid
from tests.tunnel_service.both_ways import outcomes

Target = Callable[[bytes], None]
Documented = type[Exception] | tuple[type[Exception], ...]
T = TypeVar("T")

TARGETS: Final[dict[str, Target]] = {}

ACCOUNT: Final = "YWRhJ3MgYWNjb3VudCwgYQ"  # base64url of 16 bytes
ORIGIN: Final = "https://login.example"
NOW: Final = 1_790_000_000
PROOF_URL: Final = "https://relay.example/v1/requests"


def private(number: int) -> ec.EllipticCurvePrivateKey:
    """A key that is the same in every run."""
    return ec.derive_private_key(number, CURVE)


COMPANION: Final = SoftwareSigningKey(private(3))
DEVICE: Final = SoftwareSigningKey(private(5))
HPKE: Final = SoftwareHpkeKey(private(7))
FOUNDED: Final = Ring.found(
    COMPANION, account=ACCOUNT, account_name="ada", hpke_key=HPKE.public, label="phone", now=NOW
)
COMPANION_MEMBER: Final = FOUNDED.members[0]
DEVICE_MEMBER: Final = Member(
    role=Role.DEVICE,
    signing_key=DEVICE.public_key,
    hpke_key=None,
    possession=prove_possession(DEVICE, account=ACCOUNT, role=Role.DEVICE),
    label="kiosk",
    rp_ids=("login.example",),
)
EID_KEY: Final = bytes(range(64))
QR_KEY: Final = private(11)
PHONE_KEY: Final = private(19)
PSK: Final = bytes(range(32))
REFUSED: Final = (RemoteProtocolError, TrustError)


def target(function: Target) -> Target:
    TARGETS[function.__name__.replace("_", "-")] = function
    return function


def attempt(parse: Callable[[], T], documented: Documented = RemoteProtocolError) -> T | None:
    """What `parse` gives, or None when it refuses in the way its docstring says."""
    try:
        return parse()
    except documented:
        return None


# CBOR, FIDO URL


@target
def cbor(data: bytes) -> None:
    value = attempt(lambda: (_cbor.decode(data),))
    if value is not None:
        assert _cbor.encode(value[0]) == data
    first = attempt(lambda: _cbor.decode_first(data))
    if first is not None:
        assert _cbor.encode(first[0]) + first[1] == data
        assert (value is not None) == (first[1] == b"")


@target
def fido_digits(data: bytes) -> None:
    assert decode_digits(encode_digits(data)) == data
    text = data.decode("utf-8", "surrogateescape")
    decoded = attempt(lambda: decode_digits(text))
    if decoded is not None:
        assert encode_digits(decoded) == text


@target
def fido_url(data: bytes) -> None:
    _check_url(data.decode("utf-8", "surrogateescape"))


@target
def fido_url_map(data: bytes) -> None:
    _check_url(PREFIX + encode_digits(data))


def _check_url(text: str) -> None:
    url = attempt(lambda: FidoUrl.parse(text))
    if url is None:
        return
    again = url.encode()
    assert FidoUrl.parse(again) == dataclasses.replace(url, unknown_keys=())
    values = _cbor.decode_map(decode_digits(text[len(PREFIX) :]))
    if not url.unknown_keys and 2 in values and not isinstance(values.get(6), bool):
        assert again.removeprefix(PREFIX) == text[len(PREFIX) :]


# Adverts, tunnel URLs


@target
def advert(data: bytes) -> None:
    """`data` as service data from the air, and as the plaintext that a holder of the key would seal."""
    heard = open_advert(EID_KEY, data)
    if heard is not None:
        assert seal_advert(EID_KEY, heard) == data[:20]
    plaintext = data[:16].ljust(16, b"\0")
    encryptor = Cipher(AES256(EID_KEY[:32]), ECB()).encryptor()  # noqa: S305  one block, as the spec has it
    ciphertext = encryptor.update(plaintext) + encryptor.finalize()
    sealed = ciphertext + hmac.digest(EID_KEY[32:], ciphertext, "sha256")[:4]
    opened = open_advert(EID_KEY, sealed + data[16:])
    assert (opened is not None) == (plaintext[0] == 0)
    if opened is not None:
        assert opened.encode() == plaintext
        assert seal_advert(EID_KEY, opened) == sealed
        assert open_with_any((bytes(64), EID_KEY), sealed) == (1, opened)


@target
def advert_suffix(data: bytes) -> None:
    suffix = attempt(lambda: Suffix.parse(data))
    assert parse_suffix(bytes(20) + data) == suffix
    if suffix is not None:
        assert Suffix.parse(suffix.encode()) == suffix


@target
def eid(data: bytes) -> None:
    parsed = attempt(lambda: Eid.parse(data))
    if parsed is not None:
        assert parsed.encode() == data


@target
def advert_line(data: bytes) -> None:
    parsed = attempt(lambda: parse_advert_line(data))
    if parsed is not None:
        assert data.lower().rstrip(b"\r\n").endswith(parsed.service_data.hex().encode())


@target
def base_url(data: bytes) -> None:
    """What a person may write as an address is kept in one form, in which no host is another than was written."""
    text = data.decode("utf-8", "surrogateescape")
    parsed = attempt(lambda: BaseUrl.parse(text), UsageError)
    if parsed is not None:
        written = str(parsed)
        assert written.isascii()
        assert BaseUrl.parse(written) == parsed
        assert (urlsplit(written).hostname, urlsplit(written).username) == (parsed.host, None)
        assert not set(written) & set(" \\?#\t\r\n")


@target
def request_url(data: bytes) -> None:
    """Where a token would be sent: what is checked against its audience is where the request goes."""
    text = data.decode("utf-8", "surrogateescape")
    parsed = attempt(lambda: _target(text), UsageError)
    if parsed is not None:
        assert str(parsed).isascii()
        assert (parsed.user, parsed.password, parsed.fragment) == (None, None, "")
        assert BaseUrl.parse(str(parsed.origin())).origin == str(parsed.origin())


@target
def tunnel_path(data: bytes) -> None:
    path = data.decode("utf-8", "surrogateescape")
    match parse_path(path):
        case NewTunnel(tunnel_id=tunnel_id):
            assert path.upper() == new_url("", tunnel_id).upper()
        case ConnectTunnel(routing_id=routing_id, tunnel_id=tunnel_id):
            assert path.upper() == connect_url("", routing_id, tunnel_id).upper()
        case ContactTunnel(contact_id=contact_id):
            assert path == contact_url("", contact_id)


@target
def routing_id_header(data: bytes) -> None:
    header = data.decode("utf-8", "surrogateescape")
    routing_id = attempt(lambda: parse_routing_id(header))
    if routing_id is not None:
        assert routing_id.hex() == header.lower()


@target
def client_payload_header(data: bytes) -> None:
    header = data.decode("utf-8", "surrogateescape")
    payload = attempt(lambda: parse_client_payload_header(header))
    if payload is not None:
        assert header.upper() in contact_headers(payload).values()


@target
def first_request(data: bytes) -> None:
    """What a connection says, behind a byte that tells where it is parted: it is answered as aiohttp's server answers it."""
    place, said = data[:1], data[1:]
    if place == b"\xff":
        parts = [bytes([byte]) for byte in said[:600]]
    else:
        cut = int.from_bytes(place) * 2
        parts = [part for part in (said[:cut], said[cut:]) if part]
    taking, by_aiohttp = asyncio.run(outcomes(parts))
    assert taking == by_aiohttp


@target
def websocket_frames(data: bytes) -> None:
    """However the bytes of an end arrive, it has said the same, and no more is kept than a message and what came last.

    aiohttp's reader hears the same, up to what it refuses, where ours has refused, or was told goodbye.
    """
    data = data[:400]
    at_once = asyncio.run(_said([data]))
    assert at_once == asyncio.run(_said([bytes([byte]) for byte in data]))
    assert at_once == asyncio.run(_said([data[:7], data[7:90], data[90:]]))
    heard, refused = asyncio.run(_heard_by_aiohttp(data))
    said = [each for each in at_once if each != "control"]  # for aiohttp a part is none
    over = [place for place, each in enumerate(said) if not isinstance(each, bytes)]
    if over and isinstance(said[over[0]], tuple):  # refused: a close code and a rule
        assert said[: over[0]] == heard[: over[0]]
    elif over:
        assert said[: over[0] + 1] == heard
    else:
        assert (said, refused) == (heard, False)


class _End(asyncio.Transport):
    """A connection that takes all that is sent, and frames it as a client would read it."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = False

    def get_extra_info(self, _name: str, default: Any = None) -> Any:
        return self if default is None else default

    def setsockopt(self, *_: int) -> None:
        """It is its own socket."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """It has none."""

    def pause_reading(self) -> None:
        """It reads nothing."""

    def resume_reading(self) -> None:
        """As above."""

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert data[0] in {0x88, 0x8A}  # a close frame, a pong
        assert data[1] == len(data) - 2

    def close(self) -> None:
        self.closing = True

    abort = close


class _Told:
    """Notes what a websocket tells, and closes it where a tunnel would."""

    def __init__(self) -> None:
        self.said: list[object] = []
        self.unread = 0

    def message(self, _websocket: Websocket, data: bytes) -> None:
        assert len(data) <= _LONGEST
        self.said.append(data)

    def control(self, _websocket: Websocket) -> None:
        self.said.append("control")

    def broke(self, websocket: Websocket, code: int, rule: str) -> None:
        self.said.append((code, rule))
        websocket.close(code)

    def ended(self, websocket: Websocket, code: int | None) -> None:
        self.said.append(code)
        websocket.close(1000)

    def silent(self, websocket: Websocket) -> None:
        raise AssertionError(websocket)

    def waits(self, _websocket: Websocket, size: int) -> None:
        assert size != self.unread
        self.unread = size

    def flow(self, websocket: Websocket) -> None:
        raise AssertionError(websocket)


_LONGEST: Final = 130  # bytes of a message


async def _said(parts: Sequence[bytes]) -> list[object]:
    told = _Told()
    websocket = Websocket(told, message_size=_LONGEST, silence=3600)
    websocket.begin(_End(), bytearray(), lambda: None)
    for part in parts:
        websocket.data_received(part)
        while websocket._looking is not None:  # noqa: ASYNC110  others have their turn
            await asyncio.sleep(0)
        assert websocket.unread == told.unread <= 2 * _LONGEST + 14
    said = list(told.said)
    websocket.connection_lost(None)
    return said


async def _heard_by_aiohttp(data: bytes) -> tuple[list[object], bool]:
    """The messages of an end, and at its goodbye the close code, as aiohttp's reader has them; and whether it refuses."""
    loop = asyncio.get_running_loop()
    queue = WebSocketDataQueue(BaseProtocol(loop), 1 << 16, loop=loop)
    reader = WebSocketReader(queue, max_msg_size=_LONGEST + 1, compress=False, decode_text=False)
    refused, _ = reader.feed_data(data)
    heard: list[object] = []
    for message, _size in queue._buffer:
        if message.type is WSMsgType.CLOSE:
            return [*heard, message.data or None], refused
        if message.type not in (WSMsgType.PING, WSMsgType.PONG):
            heard.append(message.data)
    return heard, refused


# Handshake. `data` is what the way there changed in a good message: nothing, and it is taken; a bit, and it is not.


@target
def noise_kn_message1(data: bytes) -> None:
    _check_message1(data, KN_INITIATOR, KN_RESPONDER)


@target
def noise_kn_message2(data: bytes) -> None:
    _check_message2(data, KN_INITIATOR, KN_RESPONDER)


@target
def noise_nk_message1(data: bytes) -> None:
    _check_message1(data, NK_INITIATOR, NK_RESPONDER)


@target
def noise_nk_message2(data: bytes) -> None:
    _check_message2(data, NK_INITIATOR, NK_RESPONDER)


KN_INITIATOR: Final[dict[str, Any]] = {"psk": PSK, "static": QR_KEY, "ephemeral": private(13)}
KN_RESPONDER: Final[dict[str, Any]] = {
    "psk": PSK,
    "client_static": QR_KEY.public_key(),
    "ephemeral": private(17),
}
NK_INITIATOR: Final[dict[str, Any]] = {
    "psk": PSK,
    "authenticator_static": PHONE_KEY.public_key(),
    "ephemeral": private(13),
}
NK_RESPONDER: Final[dict[str, Any]] = {"psk": PSK, "static": PHONE_KEY, "ephemeral": private(17)}


def _check_message1(change: bytes, initiator: dict[str, Any], responder: dict[str, Any]) -> None:
    good = noise.Initiator(**initiator).message1
    for message in (_changed(good, change), change):
        answer = attempt(lambda message=message: noise.Responder.respond(message, **responder))  # type: ignore[misc]
        assert (answer is not None) == (message == good)


def _check_message2(change: bytes, initiator: dict[str, Any], responder: dict[str, Any]) -> None:
    begun = noise.Initiator(**initiator)
    good = noise.Responder.respond(begun.message1, **responder).message2
    message = _changed(good, change)
    finished = attempt(lambda: begun.finish(message))
    assert (finished is not None) == (message == good)
    with suppress(LocalProtocolError):
        begun.finish(good)
        raise AssertionError("a second try was allowed")


def _changed(good: bytes, change: bytes) -> bytes:
    """`good` xor `change`, as long as the longer of them."""
    size = max(len(good), len(change))
    return bytes(a ^ b for a, b in zip(good.ljust(size, b"\0"), change.ljust(size, b"\0"), strict=True))


# Messages and the channel


@target
def padding(data: bytes) -> None:
    padded = pad(data)
    assert len(padded) % 32 == 0
    assert unpad(padded) == data
    plaintext = attempt(lambda: unpad(data))
    if plaintext is not None:
        assert data.startswith(plaintext)
        assert 1 <= len(data) - len(plaintext) <= 256


@target
def post_handshake(data: bytes) -> None:
    said = attempt(lambda: PostHandshake.parse(data))
    if said is not None:
        again = PostHandshake.parse(said.encode())
        assert (again.get_info, again.features) == (said.get_info, said.features)


@target
def message_frame(data: bytes) -> None:
    match attempt(lambda: parse_frame(data)):
        case Ctap(code=code, payload=payload):
            assert frame(MessageType.CTAP, bytes([code]) + payload) == data
        case Json(text=text):
            assert frame(MessageType.JSON, text) == data


@target
def channel_to_client(data: bytes) -> None:
    """Whatever plaintexts a phone may send, in any order: an event each, or the end of the channel."""
    channel = ClientChannel(sending=CipherState(bytes(32)), receiving=CipherState(PSK), read_link=_read_link)
    phone = CipherState(PSK)
    first, *others = _plaintexts(data)
    if attempt(lambda: channel.receive_post_handshake(phone.encrypt(first))) is None:
        _assert_spoiled(lambda: channel.receive(phone.encrypt(b"\0")))
        return
    for number, plaintext in enumerate(others):
        if number % 2:
            with suppress(LocalProtocolError):  # one request at a time
                channel.send(GetAssertionRequest(rp_id="login.example", client_data_hash=bytes(32)))
        sealed = phone.encrypt(plaintext)
        if attempt(lambda sealed=sealed: channel.receive(sealed)) is None:  # type: ignore[misc]
            _assert_spoiled(lambda: channel.receive(phone.encrypt(b"\0")))
            return


@target
def channel_to_authenticator(data: bytes) -> None:
    """Whatever plaintexts a device may send, in any order."""
    channel = AuthenticatorChannel(sending=CipherState(bytes(32)), receiving=CipherState(PSK))
    device = CipherState(PSK)
    channel.post_handshake(GetInfoResponse(versions=("FIDO_2_0",), aaguid=bytes(16)))
    for number, plaintext in enumerate(_plaintexts(data)):
        sealed = device.encrypt(plaintext)
        event = attempt(lambda sealed=sealed: channel.receive(sealed))  # type: ignore[misc]
        if event is None:
            _assert_spoiled(lambda: channel.receive(device.encrypt(b"\0")))
            return
        if isinstance(event, Ctap) and number % 2:
            channel.reply(0x2E)


@target
def channel_ciphertext(data: bytes) -> None:
    """Ciphertext from somebody without the key: refused, and nothing advances but the end of the channel."""
    channel = AuthenticatorChannel(sending=CipherState(bytes(32)), receiving=CipherState(PSK))
    assert attempt(lambda: channel.receive(data)) is None
    _assert_spoiled(lambda: channel.receive(CipherState(PSK).encrypt(pad(b"\0"))))


@target
def direct_messages(data: bytes) -> None:
    """Two messages, cut into SDUs of any sizes, with anything behind them: the first two are found."""
    cut, behind = data[:16], data[16:]
    peer, key = CipherState(PSK), CipherState(PSK)
    messages = [peer.encrypt(pad(part)) for part in (behind[:300], b"\r\n" * (len(behind) % 7))]
    stream = b"".join(map(direct_frame, messages)) + behind
    receiver, found = Receiver(), list[bytes]()
    for size in [*cut, len(stream)]:
        receiver.feed(stream[:size])
        stream = stream[size:]
        tried = 0

        def opens(part: bytes) -> bool:
            nonlocal tried
            tried += 1
            return key.opens(part)

        while (message := attempt(lambda: receiver.take(opens))) is not None:
            assert tried <= MAX_TRIALS + 1
            key.decrypt(message)
            found.append(message)
            tried = 0
    assert found[:2] == messages[: len(found)]


@target
def direct_handshake(data: bytes) -> None:
    """Anything in place of a handshake message, and of what follows it."""
    receiver = Receiver()
    for piece in _plaintexts(data):
        receiver.feed(piece)
        message = attempt(lambda: receiver.take_exactly(noise.MESSAGE_SIZE))
        assert message is None or len(message) == noise.MESSAGE_SIZE
    attempt(lambda: receiver.take(CipherState(PSK).opens))


def _plaintexts(data: bytes) -> list[bytes]:
    """`data` cut into at most 16 pieces: a length byte before each; a length of 255 means all the rest."""
    pieces: list[bytes] = []
    while data and len(pieces) < 16:
        size = len(data) if data[0] == 255 else data[0]
        pieces.append(data[1 : 1 + size])
        data = data[1 + size :]
    return pieces or [b""]


def _assert_spoiled(act: Callable[[], object]) -> None:
    try:
        act()
    except LocalProtocolError:
        return
    raise AssertionError("a spoiled channel went on")


# Links


@target
def linking_information(data: bytes) -> None:
    """`data` as the map of a link: parsed, read with whatever signature it has, and read with the right one."""
    value = attempt(lambda: _cbor.decode(data))
    if value is None:
        return
    linking = attempt(lambda: LinkingInformation.parse(value))
    assert (_read_link(value) is NoLink.MALFORMED) == (linking is None)
    if linking is None:
        return
    assert LinkingInformation.parse(linking.as_map()) == linking
    assert not linking.name or is_plain(linking.name)
    signature = link_signature(QR_KEY, parse_uncompressed(linking.public_key), HANDSHAKE_HASH)
    assert isinstance(_read_link(linking.as_map() | {6: signature}), LinkedPhone)


def _read_link(value: Any) -> LinkedPhone | NoLink:
    return read_link(value, static=QR_KEY, handshake_hash=HANDSHAKE_HASH, tunnel_domain=300)


HANDSHAKE_HASH: Final = bytes(32)


@target
def client_payload(data: bytes) -> None:
    payload = attempt(lambda: ClientPayload.parse(data))
    if payload is not None:
        assert ClientPayload.parse(payload.encode()) == payload


# CTAP2


@target
def get_info_response(data: bytes) -> None:
    _check_ctap(GetInfoResponse, data)


@target
def get_assertion_request(data: bytes) -> None:
    _check_ctap(GetAssertionRequest, data)


@target
def get_assertion_response(data: bytes) -> None:
    _check_ctap(GetAssertionResponse, data)


@target
def make_credential_request(data: bytes) -> None:
    _check_ctap(MakeCredentialRequest, data)


@target
def make_credential_response(data: bytes) -> None:
    _check_ctap(MakeCredentialResponse, data)


def _check_ctap(kind: Any, data: bytes) -> None:
    value = attempt(lambda: kind.parse(data))
    if value is not None:
        encoded = value.encode()
        assert kind.parse(encoded) == value
        assert kind.parse(encoded).encode() == encoded


# WebAuthn


@target
def authenticator_data(data: bytes) -> None:
    attempt(lambda: AuthenticatorData.parse(data))


@target
def authentication_options(data: bytes) -> None:
    options = attempt(lambda: AuthenticationOptions.parse(data, origin=ORIGIN))
    if options is not None:
        GetAssertionRequest.parse(options.ctap_request().encode())
        json.loads(options.client_data)


@target
def registration_options(data: bytes) -> None:
    options = attempt(lambda: RegistrationOptions.parse(data, origin=ORIGIN))
    if options is not None:
        MakeCredentialRequest.parse(options.ctap_request().encode())
        json.loads(options.client_data)


AUTHENTICATION: Final = AuthenticationOptions.parse(
    {"challenge": "AAAA", "rpId": "login.example", "userVerification": "required"}, origin=ORIGIN
)
WITH_EXTENSIONS: Final = AuthenticationOptions.parse(
    {
        "challenge": "AAAA",
        "rpId": "login.example",
        "allowCredentials": [{"type": "public-key", "id": "AAAA"}],
        "extensions": {"largeBlob": {"read": True}, "prf": {"eval": {"first": "AAAA", "second": "BBBB"}}},
    },
    origin=ORIGIN,
)
REGISTRATION: Final = RegistrationOptions.parse(
    {
        "challenge": "AAAA",
        "rp": {"id": "login.example", "name": "Example"},
        "user": {"id": "AAAA", "name": "ada", "displayName": "Ada"},
        "pubKeyCredParams": [{"type": "public-key", "alg": number} for number in (-7, -8, -257)],
        "attestation": "direct",
        "extensions": {
            "credProps": True,
            "prf": {"eval": {"first": "AAAA"}},
            "largeBlob": {"support": "preferred"},
        },
    },
    origin=ORIGIN,
)


@target
def related_origins(data: bytes) -> None:
    related = attempt(lambda: RelatedOrigins.parse(data, rp_id="other.example"))
    if related is not None and related.allow(ORIGIN):
        entries = (entry.translate(URL_PARSERS_IGNORE).lower() for entry in related.origins)
        assert any("https:" in entry and "login.example" in entry for entry in entries)


URL_PARSERS_IGNORE: Final = dict.fromkeys(map(ord, "\t\r\n"))


@target
def extension_outputs(data: bytes) -> None:
    """`data` as the unsigned extension outputs of an otherwise good reply."""
    outputs = attempt(lambda: _cbor.decode_map(data))
    if outputs is None:
        return
    made = GetAssertionResponse(
        auth_data=hashlib.sha256(b"login.example").digest() + b"\5" + bytes(4),
        signature=b"0\0",
        credential_id=b"\0\0\0",
        user=User(id=b"ada"),
        unsigned_extension_outputs=outputs,
    )
    payload = made.encode()
    credential = attempt(lambda: WITH_EXTENSIONS.accept(payload))
    if credential is not None:
        json.loads(credential.to_json())


@target
def authentication_reply(data: bytes) -> None:
    credential = attempt(lambda: AUTHENTICATION.accept(data))
    if credential is not None:
        json.loads(credential.to_json())


@target
def registration_reply(data: bytes) -> None:
    credential = attempt(lambda: REGISTRATION.accept(data))
    if credential is not None:
        json.loads(credential.to_json())


@target
def registered_key(data: bytes) -> None:
    """`data` as the COSE key in an otherwise good registration."""
    auth_data = hashlib.sha256(b"login.example").digest() + b"\x45" + bytes(4 + 16) + b"\x00\x01x" + data
    reply = _cbor.encode({1: "none", 2: auth_data, 3: {}})
    credential = attempt(lambda: REGISTRATION.accept(reply))
    if credential is not None:
        json.loads(credential.to_json())


# Trust


@target
def ring(data: bytes) -> None:
    """`data` as the body of a ring, signed by a companion that may."""
    parsed = attempt(lambda: Ring.parse_kept(data + bytes(SIGNATURE_SIZE)))
    attempt(lambda: Ring.parse_kept(data), REFUSED)
    if parsed is None:
        return
    members = [_ring._encode_member(member) for member in parsed.members]
    fields = [
        parsed.account,
        parsed.account_name,
        parsed.version,
        parsed.previous,
        parsed.issued,
        members,
        parsed.signer,
    ]
    assert _cbor.encode([RING_LABEL, *fields]) == data
    document = data + sign_document(COMPANION, data)
    for open_ring in (
        lambda: Ring.parse_founding(document),
        lambda: Ring.parse_vouched(document, inviter=COMPANION_MEMBER.name),
        lambda: RingChain.start(FOUNDED).extend([document], now=NOW).head,
    ):
        opened = attempt(open_ring, REFUSED)
        if opened is not None:
            assert opened.hash == document_hash(document)
            assert opened.signer == COMPANION_MEMBER.name


@target
def invitation(data: bytes) -> None:
    _check_line(Invitation, to_line(INVITATION_PREFIX, data))


@target
def account_code(data: bytes) -> None:
    _check_line(AccountCode, to_line(ACCOUNT_PREFIX, data))


@target
def text_lines(data: bytes) -> None:
    line = data.decode("utf-8", "surrogateescape")
    _check_line(Invitation, line)
    _check_line(AccountCode, line)


def _check_line(kind: Any, line: str) -> None:
    parsed = attempt(lambda: kind.parse(line))
    if parsed is not None:
        assert parsed.encode() == line.strip()


@target
def introduction(data: bytes) -> None:
    signature, mac = bytes(SIGNATURE_SIZE), bytes(32)
    parsed = attempt(lambda: Introduction.parse(body=data, signature=signature, mac=mac))
    if parsed is None:
        return
    fields = [parsed.kind, parsed.account, parsed.relay_url, parsed.inviter, parsed.signing_key]
    keys = [encode_hpke_key(parsed.hpke_key), parsed.possession]
    assert _cbor.encode([INTRODUCTION_LABEL, *fields, *keys, parsed.label, parsed.commitment]) == data
    record = InvitationRecord(invitation=INVITATION)
    mac = hmac.digest(INVITATION.k_new, data, "sha256")
    attempt(lambda: record.check(body=data, signature=sign_document(DEVICE, data), mac=mac, now=NOW), REFUSED)


INVITATION: Final = Invitation(
    relay_url="https://relay.example",
    account=ACCOUNT,
    account_name="ada",
    kind=Role.DEVICE,
    inviter=COMPANION_MEMBER.name,
    inviter_label=COMPANION_MEMBER.label,
    secret=bytes(range(16)),
    expires_at=NOW + 600,
)


@target
def invitation_record(data: bytes) -> None:
    record = attempt(
        lambda: InvitationRecord.from_bytes(data), (RemoteProtocolError, LocalProtocolError)
    )  # our own disk's: a record that binds a companion to rp ids is our own mistake
    if record is not None:
        again = record.to_bytes()
        assert InvitationRecord.from_bytes(again) == record


@target
def newcomer_record(data: bytes) -> None:
    record = attempt(lambda: Newcomer.from_bytes(data))
    if record is not None:
        assert record.to_bytes() == data


@target
def word(data: bytes) -> None:
    """`data` as a word that the companion signed."""
    said = attempt(lambda: Word.parse(data + sign_document(COMPANION, data), by=COMPANION_MEMBER), REFUSED)
    if said is not None:
        claim = said.claim and [said.claim.device, said.claim.request_id, said.claim.sealed]
        items = [WORD_LABEL, said.account, said.by, said.version, said.ring_hash, said.at, claim]
        assert _cbor.encode(items) == data


@target
def envelope(data: bytes) -> None:
    """`data` as the content of an envelope that the device signed."""
    opened = Opened(
        content=data + sign_document(DEVICE, data),
        account=ACCOUNT,
        request_id=bytes(16),
        device=DEVICE_MEMBER.name,
        recipient=COMPANION_MEMBER.name,
        hpke_key=HPKE.public,
    )
    said = attempt(lambda: opened.verified(DEVICE_MEMBER), REFUSED)
    if said is not None:
        assert _envelope._encode(said) == data


@target
def envelope_sealed(data: bytes) -> None:
    opened = attempt(
        lambda: open_envelope(
            data,
            hpke_private=HPKE,
            account=ACCOUNT,
            request_id=bytes(16),
            device=DEVICE_MEMBER.name,
            recipient=COMPANION_MEMBER.name,
        ),
        REFUSED,
    )
    if opened is not None:
        attempt(lambda: opened.verified(DEVICE_MEMBER), REFUSED)


@target
def shown_text(data: bytes) -> None:
    if not _is_utf8(data):
        return
    text = data.decode("utf-8", "surrogatepass")
    shown = f"{quoted(text)}: {printable(text)}"
    assert shown_line(shown) == shown
    fitted = plain(text)
    if fitted is not None:
        assert name_of(fitted) == plain(fitted) == fitted


def _is_utf8(data: bytes) -> bool:
    with suppress(UnicodeDecodeError):
        data.decode("utf-8", "surrogatepass")
        return True
    return False


# Proofs


@target
def relay_proof(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    attempt(lambda: check_proof([text], method="POST", url=PROOF_URL, now=NOW), Problem)


@target
def relay_proof_signed(data: bytes) -> None:
    proof = attempt(lambda: check_proof([_signed(data)], method="POST", url=PROOF_URL, now=NOW), Problem)
    if proof is not None:
        assert proof.name == DEVICE_MEMBER.name


@target
def relying_party_proof(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    attempt(lambda: _verify(text), (ProofInvalid, ProofClock))


@target
def relying_party_proof_signed(data: bytes) -> None:
    proof = attempt(lambda: _verify(_signed(data)), (ProofInvalid, ProofClock))
    if proof is not None:
        assert proof.key_thumbprint == DEVICE_MEMBER.name


def _verify(text: str) -> Any:
    return verify_proof(text, method="POST", urls=[PROOF_URL], now=NOW, access_token="token")


def _signed(data: bytes) -> str:
    """A proof signed as it should be, whose header and claims are `data`, parted by a zero byte."""
    header, _, claims = data.partition(b"\0")
    signed = f"{base64url(header)}.{base64url(claims)}"
    return f"{signed}.{base64url(DEVICE.sign(signed.encode()))}"
