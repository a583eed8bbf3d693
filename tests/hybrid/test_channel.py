"""The encrypted channel: vectors, properties, refusals, and whole sessions under attack."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.authenticator import (
    Advertised,
    LinkedAdvertised,
    LinkedPhoneTransaction,
    PhoneTransaction,
)
from headless_passkey.hybrid.channel import AuthenticatorChannel, ClientChannel
from headless_passkey.hybrid.client_platform import QrTransaction, StateAssistedTransaction
from headless_passkey.hybrid.ctap2 import (
    Command,
    GetAssertionRequest,
    GetInfoResponse,
    MakeCredentialRequest,
)
from headless_passkey.hybrid.fido_url import FidoUrl, RequestKind
from headless_passkey.hybrid.keys import generate, uncompressed
from headless_passkey.hybrid.linking import LinkedPhone, NoLink, OfferedLink
from headless_passkey.hybrid.messages import (
    Ctap,
    Event,
    Json,
    MessageType,
    Shutdown,
    Update,
    frame,
    pad,
)
from headless_passkey.hybrid.noise import CipherState
from tests.strategies import get_assertion_requests, get_info_responses, make_credential_requests
from tests.vectors_loader import Vector, name, vectors

UP, DOWN = bytes(range(32)), bytes(range(32, 64))
GET_INFO = GetInfoResponse(versions=("FIDO_2_0",), aaguid=bytes(16), options={"uv": True})
REQUEST = GetAssertionRequest(rp_id="example.com", client_data_hash=bytes(32))


def client() -> ClientChannel:
    return ClientChannel(sending=CipherState(UP), receiving=CipherState(DOWN))


def phone() -> AuthenticatorChannel:
    return AuthenticatorChannel(sending=CipherState(DOWN), receiving=CipherState(UP))


def met() -> tuple[ClientChannel, AuthenticatorChannel]:
    """Both ends, the post-handshake message delivered."""
    device, authenticator = client(), phone()
    device.receive_post_handshake(authenticator.post_handshake(GET_INFO))
    return device, authenticator


def assert_spoiled(channel: ClientChannel | AuthenticatorChannel, next_message: bytes) -> None:
    """Nothing goes in or out any more, not even what would have been right."""
    with pytest.raises(LocalProtocolError, match="spoiled"):
        channel.receive(next_message)
    with pytest.raises(LocalProtocolError, match="spoiled"):
        channel._seal(b"")


@pytest.mark.parametrize("case", vectors("chromium_sessions"), ids=name)
def test_a_real_session_from_the_phones_end(case: Vector) -> None:
    """What the browser sent is understood; what is said here is byte by byte what it took."""
    keys = case["handshake"]
    channel = AuthenticatorChannel(
        sending=CipherState(bytes.fromhex(keys["phone_to_client_key"])),
        receiving=CipherState(bytes.fromhex(keys["client_to_phone_key"])),
    )
    events: list[Event] = []
    for message in case["messages"]:
        plaintext, ciphertext = bytes.fromhex(message["plaintext"]), bytes.fromhex(message["ciphertext"])
        match message["from"], message["kind"]:
            case "client", _:
                events.append(channel.receive(ciphertext))
            case _, "post-handshake":
                get_info = GetInfoResponse.parse(cbor.decode_map(plaintext)[1])
                assert channel.post_handshake(get_info) == ciphertext
            case _, "message":
                assert channel.reply(plaintext[1], plaintext[2:]) == ciphertext
            case _:
                assert channel._seal(plaintext) == ciphertext
    command = Command.MAKE_CREDENTIAL if case["page"]["kind"] == "create" else Command.GET_ASSERTION
    assert isinstance(events[0], Ctap)
    assert events[0].code == command
    assert events[1:] == [Shutdown()]


@pytest.mark.parametrize("case", vectors("chromium_sessions"), ids=name)
def test_a_real_session_from_the_clients_end(case: Vector) -> None:
    """What the browser took is understood; what is said here is byte by byte what it sent."""
    keys = case["handshake"]
    channel = ClientChannel(
        sending=CipherState(bytes.fromhex(keys["client_to_phone_key"])),
        receiving=CipherState(bytes.fromhex(keys["phone_to_client_key"])),
    )
    parse: Callable[[bytes], GetAssertionRequest | MakeCredentialRequest] = (
        MakeCredentialRequest.parse if case["page"]["kind"] == "create" else GetAssertionRequest.parse
    )
    events: list[Event] = []
    for message in case["messages"]:
        plaintext, ciphertext = bytes.fromhex(message["plaintext"]), bytes.fromhex(message["ciphertext"])
        match message["from"], message["kind"]:
            case "client", "ctap":
                assert channel.send(parse(plaintext[2:])) == ciphertext
            case "client", "shutdown":
                assert channel.shutdown() == ciphertext
            case _, "post-handshake":
                assert channel.receive_post_handshake(ciphertext).encode() == plaintext
            case _:
                events.append(channel.receive(ciphertext))
    assert isinstance(events[-1], Ctap)
    assert events[-1].code == 0
    # nothing to check a link with: the key in the FIDO URL is the browser's own
    assert all(event == Update(link=NoLink.OUT_OF_PLACE) for event in events[:-1])


@given(
    get_info_responses(),
    st.lists(get_assertion_requests() | make_credential_requests(), max_size=3),
    st.integers(0, 255),
    st.binary(max_size=100),
)
def test_both_ends_understand_each_other(
    get_info: GetInfoResponse,
    requests: list[GetAssertionRequest | MakeCredentialRequest],
    status: int,
    payload: bytes,
) -> None:
    device, authenticator = client(), phone()
    assert device.receive_post_handshake(authenticator.post_handshake(get_info)).get_info == get_info
    for request in requests:
        event = authenticator.receive(device.send(request))
        assert isinstance(event, Ctap)
        parse: Any = GetAssertionRequest if event.code == Command.GET_ASSERTION else MakeCredentialRequest
        assert parse.parse(event.payload) == request
        assert device.receive(authenticator.reply(status, payload)) == Ctap(code=status, payload=payload)
    goodbye = device.shutdown()
    assert goodbye is not None
    assert authenticator.receive(goodbye) == Shutdown()


def test_messages_are_a_multiple_of_32_and_a_tag() -> None:
    device, authenticator = met()
    request = device.send(REQUEST)
    assert len(request) % 32 == 16
    authenticator.receive(request)
    assert len(authenticator.reply(0x27)) == 48


def test_updates_may_come_at_any_moment() -> None:
    device, authenticator = met()
    nothing = Update(link=NoLink.NOT_OFFERED)
    assert device.receive(authenticator.update()) == nothing
    authenticator.receive(device.send(REQUEST))
    assert device.receive(authenticator.update()) == nothing
    assert device.receive(authenticator.reply(0)) == Ctap(code=0, payload=b"")
    goodbye = device.shutdown()
    assert goodbye is not None
    assert authenticator.receive(goodbye) == Shutdown()
    assert device.receive(authenticator.update()) == nothing
    link = frame(MessageType.UPDATE, cbor.encode({1: {5: "phone"}}))
    assert authenticator.receive(device._seal(link)) == Update(link=NoLink.OUT_OF_PLACE)


def test_a_shutdown_from_the_phone_after_its_reply_is_tolerated() -> None:
    """One published authenticator says goodbye too."""
    device, authenticator = met()
    authenticator.receive(device.send(REQUEST))
    device.receive(authenticator.reply(0))
    assert device.receive(authenticator._seal(frame(MessageType.SHUTDOWN))) == Shutdown()


def test_a_phone_of_revision_0_is_served_without_type_bytes() -> None:
    device, old_phone = client(), phone()
    zeros = 512 - 2 - len(cbor.encode({1: GET_INFO.encode()}))
    device.receive_post_handshake(
        old_phone._seal(cbor.encode({1: GET_INFO.encode()}) + bytes(zeros) + zeros.to_bytes(2, "little"))
    )
    request = old_phone._open(device.send(REQUEST), bytes)
    assert request == bytes([Command.GET_ASSERTION]) + REQUEST.encode()
    assert device.receive(old_phone._seal(b"\x2e")) == Ctap(code=0x2E, payload=b"")
    assert device.shutdown() is None
    with pytest.raises(RemoteProtocolError, match="nobody asked"):
        device.receive(old_phone._seal(b"\0"))


@pytest.mark.threat("T10")
@pytest.mark.parametrize("kind", [MessageType.SHUTDOWN, MessageType.JSON])
def test_the_client_takes_nothing_in_place_of_the_reply(kind: MessageType) -> None:
    device, authenticator = met()
    authenticator.receive(device.send(REQUEST))
    with pytest.raises(RemoteProtocolError, match="a CTAP reply was expected"):
        device.receive(authenticator._seal(frame(kind)))
    assert_spoiled(device, authenticator.reply(0))


@pytest.mark.threat("T10")
@pytest.mark.parametrize(("message", "kind"), [(b"\1\0", "CTAP"), (b"\3{}", "JSON")])
def test_the_client_takes_no_reply_that_nobody_asked_for(message: bytes, kind: str) -> None:
    device, authenticator = met()
    with pytest.raises(RemoteProtocolError, match=f"a {kind} message nobody asked for"):
        device.receive(authenticator._seal(message))
    assert_spoiled(device, authenticator._seal(b"\2\xa0"))


@pytest.mark.threat("T10")
def test_the_client_takes_one_reply_to_one_request() -> None:
    device, authenticator = met()
    authenticator.receive(device.send(REQUEST))
    device.receive(authenticator.reply(0))
    with pytest.raises(RemoteProtocolError, match="nobody asked"):
        device.receive(authenticator._seal(b"\1\0"))


@pytest.mark.threat("T10")
def test_the_phone_takes_one_request_at_a_time() -> None:
    device, authenticator = met()
    authenticator.receive(device.send(REQUEST))
    with pytest.raises(RemoteProtocolError, match="before the last one"):
        authenticator.receive(device._seal(b"\1\4"))
    assert_spoiled(authenticator, device._seal(b"\0"))
    with pytest.raises(LocalProtocolError, match="spoiled"):
        authenticator.reply(0)


@pytest.mark.threat("T10")
def test_the_phone_takes_no_request_after_the_shutdown() -> None:
    device, authenticator = met()
    goodbye = device.shutdown()
    assert goodbye is not None
    authenticator.receive(goodbye)
    with pytest.raises(RemoteProtocolError, match="after the shutdown"):
        authenticator.receive(device._seal(b"\1\4"))


UNREADABLE = ["", "01", "02", "02ff", "0280", "04", "ff00"]


@pytest.mark.threat("T9")
@pytest.mark.parametrize("plaintext", UNREADABLE)
def test_a_well_sealed_message_that_says_nothing_spoils_either_end(plaintext: str) -> None:
    device, authenticator = met()
    with pytest.raises(RemoteProtocolError):
        device.receive(authenticator._seal(bytes.fromhex(plaintext)))
    assert_spoiled(device, authenticator._seal(b"\2\xa0"))
    device, authenticator = met()
    with pytest.raises(RemoteProtocolError):
        authenticator.receive(device._seal(bytes.fromhex(plaintext)))
    assert_spoiled(authenticator, device._seal(b"\0"))


@pytest.mark.threat("T9")
@pytest.mark.parametrize("padded", [b"", b"\1", b"\xff" * 32], ids=["empty", "one byte", "too much"])
def test_a_well_sealed_message_with_bad_padding_spoils_the_channel(padded: bytes) -> None:
    device, authenticator = met()
    with pytest.raises(RemoteProtocolError, match="padding"):
        device.receive(authenticator._sending.encrypt(padded))
    assert_spoiled(device, authenticator._seal(b"\2\xa0"))


@pytest.mark.threat("T9")
@pytest.mark.parametrize("plaintext", [b"", b"\xa0", b"\1\0", b"\x80", b"\xa1\1\x41\xff", b"\xff" * 40])
def test_a_bad_post_handshake_message_spoils_the_channel(plaintext: bytes) -> None:
    device, authenticator = client(), phone()
    with pytest.raises(RemoteProtocolError):
        device.receive_post_handshake(authenticator._seal(plaintext))
    assert device.peer is None
    with pytest.raises(LocalProtocolError, match="spoiled"):
        device.receive_post_handshake(authenticator.post_handshake(GET_INFO))


@pytest.mark.threat("T5")
def test_a_message_sent_back_to_its_sender_is_refused() -> None:
    device, authenticator = met()
    request = device.send(REQUEST)
    with pytest.raises(RemoteProtocolError, match="does not decrypt"):
        device.receive(request)
    authenticator.receive(request)
    with pytest.raises(RemoteProtocolError, match="does not decrypt"):
        authenticator.receive(authenticator.reply(0))


def test_what_our_own_caller_may_not_do_yet_or_any_more_is_a_local_error() -> None:
    device, authenticator = client(), phone()
    for too_early in (
        lambda: device.send(REQUEST),
        lambda: device.receive(bytes(48)),
        lambda: authenticator.reply(0),
        authenticator.update,
    ):
        with pytest.raises(LocalProtocolError):
            too_early()
    assert device.shutdown() is None
    first = authenticator.post_handshake(GET_INFO)
    device.receive_post_handshake(first)
    for twice in (
        lambda: device.receive_post_handshake(first),
        lambda: authenticator.post_handshake(GET_INFO),
        lambda: authenticator.reply(0),
    ):
        with pytest.raises(LocalProtocolError):
            twice()
    authenticator.receive(device.send(REQUEST))
    with pytest.raises(LocalProtocolError):
        device.send(REQUEST)
    device.receive(authenticator.reply(0))
    with pytest.raises(LocalProtocolError):
        authenticator.reply(0)
    assert device.shutdown() is not None
    with pytest.raises(LocalProtocolError):
        device.send(REQUEST)


def test_a_phone_that_has_not_introduced_itself_does_not_reply() -> None:
    authenticator = phone()
    authenticator.receive(CipherState(UP).encrypt(pad(b"\1\2\xa0")))
    with pytest.raises(LocalProtocolError):
        authenticator.reply(0)


def test_an_end_says_whether_bytes_are_its_next_message_and_stays_as_it_is() -> None:
    device, authenticator = client(), phone()
    message = authenticator.post_handshake(GET_INFO)
    for _ in range(2):
        assert device.opens(message)
        assert not device.opens(message[:-1])
        assert not device.opens(b"")
    device.receive_post_handshake(message)
    assert not device.opens(message)


def test_a_mistake_of_our_caller_changes_nothing() -> None:
    device, authenticator = met()
    unsayable = GetAssertionRequest(rp_id="\ud800", client_data_hash=bytes(32))
    with pytest.raises(LocalProtocolError):
        device.send(unsayable)
    assert isinstance(authenticator.receive(device.send(REQUEST)), Ctap)


@pytest.mark.threat("T12")
@given(st.binary(max_size=200))
def test_any_bytes_spoil_either_end(message: bytes) -> None:
    device, authenticator = met()
    for channel in (device, authenticator):
        with pytest.raises(RemoteProtocolError):
            channel.receive(message)
        with pytest.raises(LocalProtocolError):
            channel.receive(message)


IDENTITY = generate()
OFFERED = OfferedLink.create(contact_id=b"contact", identity=IDENTITY, name="A phone")
KEPT = LinkedPhone(
    contact_id=OFFERED.contact_id,
    link_id=OFFERED.link_id,
    link_secret=OFFERED.link_secret,
    public_key=uncompressed(IDENTITY.public_key()),
    name=OFFERED.name,
    tunnel_domain=300,
)
OF_ANOTHER_SESSION = OFFERED.sign(client_static=IDENTITY.public_key(), handshake_hash=bytes(32)).as_map()


class Sessions(RuleBasedStateMachine):
    """Both roles from FIDO URL or link to goodbye, with an attacker who owns the tunnel.

    A model keeps book of what each end must do. Messages wait in `up` and `down` until they are delivered,
    in order, or attacked; an attack must be refused and spoil the channel, and a new session begins.
    """

    @initialize(state_assisted=st.booleans(), linking=st.booleans())
    def begin(self, state_assisted: bool, linking: bool) -> None:  # noqa: FBT001
        self.kind = (state_assisted, linking)
        self.may_link = linking and not state_assisted
        transaction: QrTransaction | StateAssistedTransaction
        advertised: Advertised | LinkedAdvertised
        if state_assisted:
            transaction = StateAssistedTransaction.create(KEPT, hint=RequestKind.GET_ASSERTION)
            advertised = LinkedPhoneTransaction(OFFERED, transaction.payload).advertise()
        else:
            transaction = QrTransaction.create(
                hint=RequestKind.GET_ASSERTION, time=1_800_000_000, linking=linking
            )
            advertised = PhoneTransaction(FidoUrl.parse(transaction.url.encode())).advertise(
                routing_id=b"abc", tunnel_domain=KEPT.tunnel_domain
            )
        eid = transaction.open_advert(advertised.service_data)
        assert eid is not None
        pending = transaction.handshake(eid)
        message2, self.phone = advertised.respond(pending.message)
        self.client = pending.finish(message2)
        self.up: list[tuple[bytes, Event]] = []
        self.down: list[tuple[bytes, Event | None]] = []
        self.old_up: list[bytes] = []
        self.old_down: list[bytes] = []
        self.introduced = self.known = self.waiting = self.asked = self.over = False

    @rule()
    def introduce(self) -> None:
        if self.introduced:
            with pytest.raises(LocalProtocolError):
                self.phone.post_handshake(GET_INFO)
        else:
            self.introduced = True
            self.down.append((self.phone.post_handshake(GET_INFO), None))

    @rule(request=get_assertion_requests())
    def ask(self, request: GetAssertionRequest) -> None:
        if not self.known or self.waiting or self.over:
            with pytest.raises(LocalProtocolError):
                self.client.send(request)
        else:
            self.waiting = True
            said = Ctap(code=Command.GET_ASSERTION, payload=request.encode())
            self.up.append((self.client.send(request), said))

    @rule(status=st.integers(0, 255), payload=st.binary(max_size=70))
    def reply(self, status: int, payload: bytes) -> None:
        if not self.asked:
            with pytest.raises(LocalProtocolError):
                self.phone.reply(status, payload)
        else:
            self.asked = False
            self.down.append((self.phone.reply(status, payload), Ctap(code=status, payload=payload)))

    @rule(link=st.none() | st.just(OFFERED))
    def update(self, link: OfferedLink | None) -> None:
        if not self.introduced or (link is not None and not self.may_link):
            with pytest.raises(LocalProtocolError):
                self.phone.update(link)
        else:
            says = Update(link=NoLink.NOT_OFFERED if link is None else KEPT)
            self.down.append((self.phone.update(link), says))

    @precondition(lambda self: self.introduced)
    @rule(link=st.none() | st.binary(max_size=9) | st.just(OF_ANOTHER_SESSION))
    def update_badly(self, link: object) -> None:
        message = self.phone._seal(frame(MessageType.UPDATE, cbor.encode({1: link})))
        why = NoLink.BAD_SIGNATURE if isinstance(link, dict) else NoLink.MALFORMED
        self.down.append((message, Update(link=why if self.may_link else NoLink.OUT_OF_PLACE)))

    @precondition(lambda self: self.known and not self.over)
    @rule()
    def say_goodbye(self) -> None:
        goodbye = self.client.shutdown()
        assert goodbye is not None
        self.over = True
        self.up.append((goodbye, Shutdown()))

    @precondition(lambda self: self.up)
    @rule()
    def deliver_up(self) -> None:
        message, said = self.up.pop(0)
        assert self.phone.receive(message) == said
        self.old_up.append(message)
        self.asked = self.asked or isinstance(said, Ctap)

    @precondition(lambda self: self.down)
    @rule()
    def deliver_down(self) -> None:
        message, said = self.down.pop(0)
        if self.known:
            assert self.client.receive(message) == said
        else:
            assert self.client.receive_post_handshake(message).get_info == GET_INFO
        self.known = True
        self.old_down.append(message)
        self.waiting = self.waiting and not isinstance(said, Ctap)

    @precondition(lambda self: self.up or self.down)
    @rule(data=st.data())
    def attack(self, data: st.DataObject) -> None:
        upwards = not self.down or (bool(self.up) and data.draw(st.booleans(), "upwards"))
        flying = [message for message, _ in (self.up if upwards else self.down)]
        delivered = self.old_up if upwards else self.old_down
        others = [message for message, _ in (self.down if upwards else self.up)]
        attacked = data.draw(attacks(flying, delivered, others), "attacked message")
        if attacked == flying[0]:
            return
        receive = self.phone.receive if upwards else self._client_receives
        with pytest.raises(RemoteProtocolError):
            receive(attacked)
        for message in (flying[0], attacked):  # what was right is too late now, and nothing more is said
            with pytest.raises(LocalProtocolError, match="spoiled"):
                receive(message)
        with pytest.raises(LocalProtocolError, match="spoiled"):
            (self.phone if upwards else self.client)._seal(b"")
        self.begin(*self.kind)

    def _client_receives(self, message: bytes) -> object:
        return self.client.receive(message) if self.known else self.client.receive_post_handshake(message)

    @invariant()
    def what_is_known_of_the_phone_is_what_it_said(self) -> None:
        assert (self.client.peer is not None) == self.known


def attacks(flying: list[bytes], delivered: list[bytes], others: list[bytes]) -> st.SearchStrategy[bytes]:
    """What somebody who sees every message can make of them, in place of the first that is in flight."""
    first = flying[0]

    def flip(bit: int) -> bytes:
        changed = bytearray(first)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    choices = [
        st.integers(0, 8 * len(first) - 1).map(flip),
        st.integers(0, len(first) - 1).map(lambda end: first[:end]),
        st.binary(min_size=1, max_size=40).map(lambda more: first + more),
        st.binary(max_size=100),
        st.just(first + first),
    ]
    known = [*flying[1:], *delivered, *others]  # reordered, replayed, reflected
    return st.one_of([*choices, st.sampled_from(known)] if known else choices)


TestSessions = pytest.mark.threat("T5")(Sessions.TestCase)
TestSessions.settings = settings(max_examples=60, stateful_step_count=30)


@pytest.mark.threat("T10")
def test_an_unexpected_json_message_reaches_the_caller_as_what_it_is() -> None:
    device, authenticator = met()
    assert authenticator.receive(device._seal(b"\3{}")) == Json(text=b"{}")
