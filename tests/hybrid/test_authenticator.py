"""The phone's role: whole sessions of real browsers, properties, refusals."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.authenticator import Advertised, LinkedPhoneTransaction, PhoneTransaction
from headless_passkey.hybrid.channel import AuthenticatorChannel, ClientChannel
from headless_passkey.hybrid.client_platform import QrTransaction, StateAssistedTransaction
from headless_passkey.hybrid.ctap2 import GetAssertionRequest, GetInfoResponse
from headless_passkey.hybrid.eid import ADVERT_SIZE, Eid, Suffix, parse_suffix, psk
from headless_passkey.hybrid.fido_url import FidoUrl, RequestKind
from headless_passkey.hybrid.keys import CURVE, generate, uncompressed
from headless_passkey.hybrid.linking import ClientPayload, LinkedPhone, NoLink, OfferedLink
from headless_passkey.hybrid.messages import Ctap, Shutdown, Update
from headless_passkey.hybrid.noise import Initiator
from tests.strategies import exactly
from tests.vectors_loader import Vector, name, vector, vectors

INFO = GetInfoResponse(versions=("FIDO_2_0",), aaguid=bytes(16))


def private(scalar: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int(scalar, 16), CURVE)


def offered(session: str) -> OfferedLink:
    """The link that our phone offered in a recorded session."""
    case = vector("linking", session)
    return OfferedLink(
        contact_id=bytes.fromhex(case["contact_id"]),
        link_id=bytes.fromhex(case["link_id"]),
        link_secret=bytes.fromhex(case["link_secret"]),
        identity=private(case["authenticator_private"]),
        name=case["device_name"],
    )


@pytest.mark.parametrize("case", vectors("chromium_sessions"), ids=name)
def test_a_ceremony_with_a_real_browser_is_followed_byte_by_byte(case: Vector) -> None:
    transaction = PhoneTransaction(FidoUrl.parse(case["fido_url"]["url"]))
    assert transaction.tunnel_id.hex() == case["fido_url"]["tunnel_id"]
    eid = Eid.parse(bytes.fromhex(case["advert"]["plaintext"]))
    advertised = transaction.advertise(
        routing_id=eid.routing_id, tunnel_domain=eid.tunnel_domain, nonce=eid.nonce
    )
    assert advertised.service_data.hex() == case["advert"]["service_data"]
    handshake = case["handshake"]
    message2, channel = advertised.respond(
        bytes.fromhex(handshake["message1"]),
        ephemeral=ec.derive_private_key(int(handshake["phone_ephemeral_private"], 16), CURVE),
    )
    assert message2.hex() == handshake["message2"]
    for message in case["messages"]:
        plaintext, ciphertext = bytes.fromhex(message["plaintext"]), bytes.fromhex(message["ciphertext"])
        match message["kind"]:
            case "post-handshake":
                get_info = GetInfoResponse.parse(cbor.decode_map(plaintext)[1])
                assert channel.post_handshake(get_info) == ciphertext
            case "ctap":
                assert channel.receive(ciphertext) == Ctap(code=plaintext[1], payload=plaintext[2:])
            case "message":
                assert channel.reply(plaintext[1], plaintext[2:]) == ciphertext
            case "update":
                assert channel.may_link
                assert channel.update(offered(case["name"])) == ciphertext
            case "shutdown":
                assert channel.receive(ciphertext) == Shutdown()


@pytest.mark.parametrize("case", vectors("linked_sessions"), ids=name)
def test_a_state_assisted_ceremony_with_a_real_browser_is_followed_byte_by_byte(case: Vector) -> None:
    link = offered("chromium120-link")
    assert uncompressed(link.identity.public_key()).hex() == case["link"]["authenticator_public"]
    payload = ClientPayload.parse(bytes.fromhex(case["client_payload"]["header"]))
    eid = Eid.parse(bytes.fromhex(case["advert"]["plaintext"]))
    advertised = LinkedPhoneTransaction(link, payload).advertise(eid=eid)
    assert advertised.service_data.hex() == case["advert"]["service_data"]
    handshake = case["handshake"]
    message2, channel = advertised.respond(
        bytes.fromhex(handshake["message1"]), ephemeral=private(handshake["phone_ephemeral_private"])
    )
    assert message2.hex() == handshake["message2"]
    for message in case["messages"]:
        plaintext, ciphertext = bytes.fromhex(message["plaintext"]), bytes.fromhex(message["ciphertext"])
        match message["kind"]:
            case "post-handshake":
                get_info = GetInfoResponse.parse(cbor.decode_map(plaintext)[1])
                assert channel.post_handshake(get_info) == ciphertext
            case "ctap":
                assert channel.receive(ciphertext) == Ctap(code=plaintext[1], payload=plaintext[2:])
            case "message":
                assert channel.reply(plaintext[1], plaintext[2:]) == ciphertext
            case "shutdown":
                assert channel.receive(ciphertext) == Shutdown()


def session(*, linking: bool) -> tuple[ClientChannel, AuthenticatorChannel]:
    """Both ends of a QR-initiated session. linking: whether the device would keep a link."""
    transaction = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1, linking=linking)
    advertised = advertise(transaction)
    eid = transaction.open_advert(advertised.service_data)
    assert eid is not None
    pending = transaction.handshake(eid)
    message2, authenticator = advertised.respond(pending.message)
    return pending.finish(message2), authenticator


@pytest.mark.parametrize("place", ["update", "post-handshake message"])
def test_a_link_offered_in_one_session_leads_to_the_next(place: str) -> None:
    """From FIDO URL to link, and from link to a second session without any FIDO URL."""
    device, authenticator = session(linking=True)
    link = OfferedLink.create(contact_id=b"contact", identity=generate(), name="A phone")
    kept: LinkedPhone | NoLink
    if place == "update":
        device.receive_post_handshake(authenticator.post_handshake(INFO))
        event = device.receive(authenticator.update(link))
        assert isinstance(event, Update)
        kept = event.link
    else:
        kept = device.receive_post_handshake(authenticator.post_handshake(INFO, link)).link
    assert isinstance(kept, LinkedPhone)
    assert (kept.name, kept.tunnel_domain) == ("A phone", 300)

    call = StateAssistedTransaction.create(kept, hint=RequestKind.GET_ASSERTION)
    advertised = LinkedPhoneTransaction(link, ClientPayload.parse(call.payload.encode())).advertise()
    eid = call.open_advert(advertised.service_data)
    assert eid is not None
    pending = call.handshake(eid)
    message2, authenticator = advertised.respond(pending.message)
    device = pending.finish(message2)
    device.receive_post_handshake(authenticator.post_handshake(INFO))
    request = GetAssertionRequest(rp_id="example.com", client_data_hash=bytes(32))
    assert authenticator.receive(device.send(request)) == Ctap(code=2, payload=request.encode())
    assert device.receive(authenticator.reply(0, b"\xa0")) == Ctap(code=0, payload=b"\xa0")


def test_an_update_has_one_size_with_a_link_and_without() -> None:
    device, authenticator = session(linking=True)
    device.receive_post_handshake(authenticator.post_handshake(INFO))
    link = OfferedLink.create(contact_id=b"contact", identity=generate(), name="A phone")
    updates = [authenticator.update(), authenticator.update(link)]
    assert [len(update) for update in updates] == [528, 528]
    assert device.receive(updates[0]) == Update(link=NoLink.NOT_OFFERED)


def test_a_link_is_offered_only_where_one_is_wanted() -> None:
    """Not to a device whose FIDO URL says that it keeps none, and not in a session that came from a link."""
    link = OfferedLink.create(contact_id=b"contact", identity=generate(), name="A phone")
    device, unwanted = session(linking=False)
    linked = LinkedPhoneTransaction(
        link, ClientPayload(link_id=link.link_id, client_nonce=bytes(16), hint=RequestKind.GET_ASSERTION)
    ).advertise()
    call = Initiator(psk=linked._psk, authenticator_static=link.identity.public_key())
    for authenticator in (unwanted, linked.respond(call.message1)[1]):
        assert not authenticator.may_link
        with pytest.raises(LocalProtocolError):
            authenticator.post_handshake(INFO, link)
        first = authenticator.post_handshake(INFO)
        with pytest.raises(LocalProtocolError):
            authenticator.update(link)
        if authenticator is unwanted:
            device.receive_post_handshake(first)
            assert device.receive(authenticator.update()) == Update(link=NoLink.NOT_OFFERED)


@pytest.mark.threat("T9")
def test_a_link_that_nobody_wanted_is_discarded_unread() -> None:
    device, authenticator = session(linking=False)
    device.receive_post_handshake(authenticator.post_handshake(INFO))
    update = authenticator._seal(b"\2" + cbor.encode({1: {5: b"not even a name"}}))
    assert device.receive(update) == Update(link=NoLink.OUT_OF_PLACE)


@pytest.mark.threat("T9")
def test_a_link_made_for_another_session_is_dropped_and_the_session_goes_on() -> None:
    sessions = [session(linking=True) for _ in range(2)]
    link = OfferedLink.create(contact_id=b"contact", identity=generate(), name="A phone")
    for device, authenticator in sessions:
        device.receive_post_handshake(authenticator.post_handshake(INFO))
    (device, authenticator), (_, other) = sessions
    authenticator._sign_link = other._sign_link
    assert device.receive(authenticator.update(link)) == Update(link=NoLink.BAD_SIGNATURE)
    assert device.receive(authenticator.update()) == Update(link=NoLink.NOT_OFFERED)


def test_a_client_payload_for_another_link_is_a_bug_of_the_caller() -> None:
    link = OfferedLink.create(contact_id=b"contact", identity=generate(), name="")
    payload = ClientPayload(link_id=bytes(8), client_nonce=bytes(16), hint=RequestKind.GET_ASSERTION)
    with pytest.raises(LocalProtocolError):
        LinkedPhoneTransaction(link, payload)


@pytest.mark.threat("T9")
def test_whoever_did_not_hear_the_advert_of_a_linked_phone_is_refused() -> None:
    link = OfferedLink.create(contact_id=b"contact", identity=generate(), name="")
    payload = ClientPayload(link_id=link.link_id, client_nonce=bytes(16), hint=RequestKind.GET_ASSERTION)
    advertised = LinkedPhoneTransaction(link, payload).advertise()
    guess = psk(link.link_secret, Eid.state_assisted())
    with pytest.raises(RemoteProtocolError):
        advertised.respond(Initiator(psk=guess, authenticator_static=link.identity.public_key()).message1)


@given(exactly(3), st.integers(0, 0xFFFF))
def test_an_advert_says_where_the_tunnel_is(routing_id: bytes, domain: int) -> None:
    transaction = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1)
    phone = PhoneTransaction(FidoUrl.parse(transaction.url.encode()))
    eid = transaction.open_advert(phone.advertise(routing_id=routing_id, tunnel_domain=domain).service_data)
    assert eid is not None
    assert (eid.routing_id, eid.tunnel_domain) == (routing_id, domain)


def advertise(transaction: QrTransaction) -> Advertised:
    return PhoneTransaction(transaction.url).advertise(routing_id=b"abc", tunnel_domain=300)


def test_every_advert_has_a_nonce_of_its_own() -> None:
    transaction = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1)
    assert len({advertise(transaction).service_data for _ in range(5)}) == 5


@pytest.mark.threat("T9")
def test_whoever_did_not_hear_the_advert_is_refused() -> None:
    transaction = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1)
    advertised = advertise(transaction)
    guess = transaction.handshake(Eid(nonce=bytes(10), routing_id=b"abc", tunnel_domain=300))
    with pytest.raises(RemoteProtocolError):
        advertised.respond(guess.message)


@pytest.mark.threat("T3")
def test_whoever_heard_the_advert_but_does_not_hold_the_urls_key_is_refused() -> None:
    """The secret alone does not make a client platform: its key is in the URL."""
    transaction = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1)
    advertised = advertise(transaction)
    eid = transaction.open_advert(advertised.service_data)
    assert eid is not None
    thief = QrTransaction.create(
        hint=RequestKind.GET_ASSERTION, time=1, private=generate(), secret=transaction.url.secret
    )
    assert thief.open_advert(advertised.service_data) == eid
    with pytest.raises(RemoteProtocolError):
        advertised.respond(thief.handshake(eid).message)


@pytest.mark.threat("T5")
def test_a_session_that_was_recorded_does_not_open_the_next_one() -> None:
    transaction = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1)
    first, second = advertise(transaction), advertise(transaction)
    eid = transaction.open_advert(first.service_data)
    assert eid is not None
    message1 = transaction.handshake(eid).message
    first.respond(message1)
    with pytest.raises(RemoteProtocolError):
        second.respond(message1)


@pytest.mark.threat("T5")
def test_a_replayed_first_message_gives_a_channel_that_only_its_maker_could_use() -> None:
    transaction = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1)
    advertised = advertise(transaction)
    eid = transaction.open_advert(advertised.service_data)
    assert eid is not None
    pending = transaction.handshake(eid)
    message2, _ = advertised.respond(pending.message)
    _, replayed = advertised.respond(pending.message)
    client = pending.finish(message2)
    info = GetInfoResponse(versions=("FIDO_2_0",), aaguid=bytes(16))
    with pytest.raises(RemoteProtocolError):
        client.receive_post_handshake(replayed.post_handshake(info))


@pytest.mark.threat("T12")
@given(st.binary(max_size=120) | exactly(80).map(b"\4".__add__))
def test_any_bytes_are_refused_as_a_first_message(message: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        advertise(QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1)).respond(message)


@pytest.mark.parametrize(("routing_id", "domain"), [(b"ab", 300), (b"abcd", 300), (b"abc", 65536)])
def test_an_advert_that_cannot_be_is_a_bug_of_the_caller(routing_id: bytes, domain: int) -> None:
    transaction = PhoneTransaction(QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1).url)
    with pytest.raises(LocalProtocolError):
        transaction.advertise(routing_id=routing_id, tunnel_domain=domain)


def test_an_advert_names_the_direct_channel_where_the_url_offers_it() -> None:
    transaction = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1, direct=True)
    advertised = PhoneTransaction(transaction.url).advertise(routing_id=b"abc", tunnel_domain=300, psm=0x80)
    assert parse_suffix(advertised.service_data) == Suffix(psm=0x80)
    eid = transaction.open_advert(advertised.service_data)
    assert eid is not None
    assert (eid.routing_id, eid.tunnel_domain) == (b"abc", 300)
    pending = transaction.handshake(eid)
    message2, _ = advertised.respond(pending.message)
    pending.finish(message2)


def test_an_advert_that_older_clients_would_not_hear_is_a_bug_of_the_caller() -> None:
    """Their URLs do not offer the direct channel, and they ignore adverts of more than 20 bytes."""
    transaction = PhoneTransaction(QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1).url)
    assert len(transaction.advertise(routing_id=b"abc", tunnel_domain=300).service_data) == ADVERT_SIZE
    with pytest.raises(LocalProtocolError, match="does not offer"):
        transaction.advertise(routing_id=b"abc", tunnel_domain=300, psm=0x80)


@pytest.mark.threat("T11")
def test_secrets_and_keys_do_not_show_in_a_repr() -> None:
    transaction = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1)
    phone, advertised = PhoneTransaction(transaction.url), advertise(transaction)
    shown = repr((phone, advertised))
    link = OfferedLink.create(contact_id=b"CONTACT", identity=generate(), name="")
    payload = ClientPayload(link_id=link.link_id, client_nonce=b"n" * 16, hint=RequestKind.GET_ASSERTION)
    linked = LinkedPhoneTransaction(link, payload)
    shown += repr((linked, linked.advertise()))
    for kept in (
        transaction.url.secret,
        advertised._psk,
        link.contact_id,
        link.link_secret,
        payload.client_nonce,
        linked.advertise()._psk,
    ):
        assert repr(kept) not in shown
        assert kept.hex() not in shown
