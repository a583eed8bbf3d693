"""The device's role: a whole published session, properties, refusals."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError
from headless_passkey.hybrid import noise
from headless_passkey.hybrid.authenticator import LinkedPhoneTransaction, PhoneTransaction
from headless_passkey.hybrid.client_platform import (
    PendingHandshake,
    QrTransaction,
    StateAssistedTransaction,
    open_for_any,
)
from headless_passkey.hybrid.ctap2 import GetAssertionRequest, GetAssertionResponse, GetInfoResponse
from headless_passkey.hybrid.data_channel import DataChannel
from headless_passkey.hybrid.eid import eid_key
from headless_passkey.hybrid.fido_url import FidoUrl, RequestKind
from headless_passkey.hybrid.keys import CURVE, KeyPurpose, compressed, derive, uncompressed
from headless_passkey.hybrid.linking import ClientPayload, LinkedPhone, OfferedLink
from headless_passkey.hybrid.messages import Ctap
from headless_passkey.hybrid.tunnel_url import connect_url, parse_client_payload_header, tunnel_domain
from tests.strategies import exactly, private_keys
from tests.vectors_loader import Vector, name, vector, vectors


def test_a_sign_in_with_an_iphone_is_followed_byte_by_byte() -> None:
    case = vector("iphone_session", "iphone-session-2026")
    private = ec.derive_private_key(int(case["client_static_private"], 16), CURVE)
    url = FidoUrl.parse(case["url"])
    assert url.public_key == compressed(private.public_key())
    transaction = QrTransaction(url=url, _private=private, _eid_key=eid_key(url.secret))

    eid = transaction.open_advert(bytes.fromhex(case["service_data"]))
    assert eid is not None
    assert eid.encode().hex() == case["eid"]
    base = "wss://" + tunnel_domain(eid.tunnel_domain)
    assert connect_url(base, eid.routing_id, url.tunnel_id).lower() == case["connect_url"]

    psk = derive(url.secret, eid.encode(), KeyPurpose.PSK, 32)
    ephemeral = ec.derive_private_key(int(case["client_ephemeral_private"], 16), CURVE)
    pending = PendingHandshake(
        _initiator=noise.Initiator(psk=psk, static=private, ephemeral=ephemeral),
    )
    assert pending.message.hex() == case["message1"]
    channel = pending.finish(bytes.fromhex(case["message2"]))

    peer = channel.receive_post_handshake(bytes.fromhex(case["post_handshake"]))
    assert (peer.revision, peer.features) == (1, ("ctap", "dc"))
    assert peer.get_info is not None
    request = GetAssertionRequest(
        rp_id="example.com", client_data_hash=bytes.fromhex(case["client_data_hash"])
    )
    assert channel.send(request).hex() == case["request"]
    reply = channel.receive(bytes.fromhex(case["reply"]))
    assert isinstance(reply, Ctap)
    assert (bytes([reply.code]) + reply.payload).hex() == case["ctap_response"]
    assert len(GetAssertionResponse.parse(reply.payload).signature) == 72


@given(st.sampled_from(RequestKind), st.integers(0, 1 << 40), private_keys(), exactly(16))
def test_a_fido_url_says_what_it_was_made_for(
    hint: RequestKind, time: int, private: ec.EllipticCurvePrivateKey, secret: bytes
) -> None:
    url = QrTransaction.create(hint=hint, time=time, private=private, secret=secret).url
    assert FidoUrl.parse(url.encode()) == url
    assert (url.hint, url.time, url.secret) == (hint, time, secret)
    assert url.public_key == compressed(private.public_key())
    # key 4 is sent although false, key 6 is not sent: some phones read its list as an error
    assert (url.assigned_domains, url.linking, url.channels, url.unknown_keys) == (2, False, None, ())


def test_a_fido_url_may_offer_the_direct_channel() -> None:
    url = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1, direct=True).url
    assert FidoUrl.parse(url.encode()).channels == (0, 1)
    assert all(url.offers(channel) for channel in DataChannel)


def test_a_fido_url_may_ask_for_a_link() -> None:
    url = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1, linking=True).url
    assert FidoUrl.parse(url.encode()).linking is True


def test_every_transaction_has_a_key_and_a_secret_of_its_own() -> None:
    urls = [QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1).url for _ in range(3)]
    assert len({url.public_key for url in urls}) == len({url.secret for url in urls}) == 3
    assert all(len(url.secret) == 16 for url in urls)


def test_the_advert_of_the_phone_that_read_the_url_opens() -> None:
    transaction = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1)
    advertised = PhoneTransaction(transaction.url).advertise(routing_id=b"abc", tunnel_domain=300)
    opened = transaction.open_advert(advertised.service_data)
    assert opened is not None
    assert (opened.routing_id, opened.tunnel_domain) == (b"abc", 300)


@pytest.mark.threat("T9")
def test_the_advert_of_a_phone_that_read_another_url_is_ignored() -> None:
    ours, theirs = (QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1) for _ in range(2))
    advertised = PhoneTransaction(theirs.url).advertise(routing_id=b"abc", tunnel_domain=300)
    assert ours.open_advert(advertised.service_data) is None
    assert theirs.open_advert(advertised.service_data) is not None


@pytest.mark.threat("T9")
def test_a_phone_that_knows_the_secret_but_sent_another_advert_is_refused() -> None:
    """The PSK takes in every bit of the advert: what one phone sent does not lead another one in."""
    transaction = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1)
    phone = PhoneTransaction(transaction.url)
    heard = phone.advertise(routing_id=b"abc", tunnel_domain=300, nonce=bytes(10))
    for other in (
        phone.advertise(routing_id=b"abc", tunnel_domain=300, nonce=bytes(9) + b"\1"),
        phone.advertise(routing_id=b"abd", tunnel_domain=300, nonce=bytes(10)),
        phone.advertise(routing_id=b"abc", tunnel_domain=301, nonce=bytes(10)),
    ):
        eid = transaction.open_advert(heard.service_data)
        assert eid is not None
        pending = transaction.handshake(eid)
        with pytest.raises(RemoteProtocolError):
            other.respond(pending.message)


@pytest.mark.threat("T11")
def test_secrets_and_keys_do_not_show_in_a_repr() -> None:
    secret = bytes(range(16))
    transaction = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1, secret=secret)
    advertised = PhoneTransaction(transaction.url).advertise(routing_id=b"abc", tunnel_domain=300)
    eid = transaction.open_advert(advertised.service_data)
    assert eid is not None
    shown = repr((transaction, transaction.handshake(eid), eid))
    for kept in (secret, eid_key(secret), eid.encode(), eid.nonce):
        assert repr(kept) not in shown
        assert kept.hex() not in shown
    assert transaction.url.encode() not in shown


# State-assisted

IDENTITY = ec.derive_private_key(6, CURVE)


def linked() -> tuple[LinkedPhone, OfferedLink]:
    """Both ends of a link, as if a session had made it."""
    offered = OfferedLink.create(contact_id=b"contact", identity=IDENTITY, name="A phone")
    phone = LinkedPhone(
        contact_id=offered.contact_id,
        link_id=offered.link_id,
        link_secret=offered.link_secret,
        public_key=uncompressed(IDENTITY.public_key()),
        name=offered.name,
        tunnel_domain=300,
    )
    return phone, offered


@pytest.mark.parametrize("case", vectors("linked_sessions"), ids=name)
def test_what_a_real_browser_did_with_a_link_we_would_do(case: Vector) -> None:
    """All but the handshake, whose private key the browser kept; it is followed from the phone's end."""
    link = case["link"]
    phone = LinkedPhone(
        contact_id=bytes.fromhex(link["contact_id"]),
        link_id=bytes.fromhex(link["link_id"]),
        link_secret=bytes.fromhex(link["link_secret"]),
        public_key=bytes.fromhex(link["authenticator_public"]),
        name="",
        tunnel_domain=link["tunnel_domain"],
    )
    sent = case["client_payload"]
    transaction = StateAssistedTransaction.create(
        phone, hint=RequestKind(sent["hint"]), client_nonce=bytes.fromhex(sent["client_nonce"])
    )
    base = "wss://" + tunnel_domain(phone.tunnel_domain)
    assert transaction.contact_url(base) == base + case["tunnel"]["path"]
    assert transaction.headers.items() <= case["tunnel"]["headers"].items()
    eid = transaction.open_advert(bytes.fromhex(case["advert"]["service_data"]))
    assert eid is not None
    assert eid.encode().hex() == case["advert"]["plaintext"]
    assert len(transaction.handshake(eid).message) == 81


def test_a_linked_phone_is_asked_for_and_found() -> None:
    phone, offered = linked()
    transaction = StateAssistedTransaction.create(phone, hint=RequestKind.MAKE_CREDENTIAL)
    assert transaction.contact_url("wss://localhost:8443") == "wss://localhost:8443/cable/contact/Y29udGFjdA"
    header = transaction.headers["X-caBLE-Client-Payload"]
    payload = ClientPayload.parse(parse_client_payload_header(header))
    assert payload == transaction.payload
    assert payload.hint is RequestKind.MAKE_CREDENTIAL
    advertised = LinkedPhoneTransaction(offered, payload).advertise()
    eid = transaction.open_advert(advertised.service_data)
    assert eid is not None
    pending = transaction.handshake(eid)
    message2, authenticator = advertised.respond(pending.message)
    device = pending.finish(message2)
    info = GetInfoResponse(versions=("FIDO_2_0",), aaguid=bytes(16))
    assert device.receive_post_handshake(authenticator.post_handshake(info)).get_info == info


def test_every_call_has_a_nonce_of_its_own() -> None:
    phone, _ = linked()
    calls = [StateAssistedTransaction.create(phone, hint=RequestKind.GET_ASSERTION) for _ in range(3)]
    assert len({call.payload.client_nonce for call in calls}) == 3


@pytest.mark.threat("T9")
def test_the_advert_of_another_link_or_another_call_is_ignored() -> None:
    (phone, offered), (other, _) = linked(), linked()
    call, again, for_other = (
        StateAssistedTransaction.create(whom, hint=RequestKind.GET_ASSERTION)
        for whom in (phone, phone, other)
    )
    advert = LinkedPhoneTransaction(offered, call.payload).advertise().service_data
    assert call.open_advert(advert) is not None
    assert again.open_advert(advert) is None
    assert for_other.open_advert(advert) is None


def test_of_several_transactions_the_one_whose_phone_is_near_hears_it() -> None:
    calls = [StateAssistedTransaction.create(linked()[0], hint=RequestKind.GET_ASSERTION) for _ in range(3)]
    asked = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=1)
    advert = PhoneTransaction(asked.url).advertise(routing_id=b"abc", tunnel_domain=300).service_data
    waiting: list[QrTransaction | StateAssistedTransaction] = [*calls, asked]
    opened = open_for_any(waiting, advert)
    assert opened == (asked, asked.open_advert(advert))
    assert open_for_any(calls, advert) is None
    assert open_for_any([], advert) is None


@pytest.mark.threat("T9")
def test_a_phone_that_knows_the_link_secret_but_not_the_key_is_refused() -> None:
    phone, offered = linked()
    transaction = StateAssistedTransaction.create(phone, hint=RequestKind.GET_ASSERTION)
    thief = replace(offered, identity=ec.derive_private_key(7, CURVE))
    advertised = LinkedPhoneTransaction(thief, transaction.payload).advertise()
    eid = transaction.open_advert(advertised.service_data)
    assert eid is not None
    with pytest.raises(RemoteProtocolError):
        advertised.respond(transaction.handshake(eid).message)


@pytest.mark.threat("T11")
def test_what_a_link_is_made_of_does_not_show_in_a_repr() -> None:
    phone, offered = linked()
    transaction = StateAssistedTransaction.create(phone, hint=RequestKind.GET_ASSERTION)
    advertised = LinkedPhoneTransaction(offered, transaction.payload).advertise()
    eid = transaction.open_advert(advertised.service_data)
    assert eid is not None
    shown = repr((transaction, transaction.handshake(eid), eid))
    secrets = (phone.contact_id, phone.link_secret, transaction.payload.client_nonce, eid.nonce)
    assert not [secret for secret in secrets if repr(secret) in shown or secret.hex() in shown]
