"""The phone's role: whole sessions of real browsers, properties, refusals."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError
from headless_passkey.hybrid import cbor
from headless_passkey.hybrid.authenticator import Advertised, PhoneTransaction
from headless_passkey.hybrid.client_platform import QrTransaction
from headless_passkey.hybrid.ctap2 import GetInfoResponse
from headless_passkey.hybrid.eid import Eid
from headless_passkey.hybrid.fido_url import FidoUrl, Hint
from headless_passkey.hybrid.keys import CURVE, generate
from headless_passkey.hybrid.messages import Ctap, Shutdown
from tests.strategies import exactly
from tests.vectors_loader import Vector, name, vectors


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
                assert channel._seal(plaintext) == ciphertext
            case "shutdown":
                assert channel.receive(ciphertext) == Shutdown()


@given(exactly(3), st.integers(0, 0xFFFF))
def test_an_advert_says_where_the_tunnel_is(routing_id: bytes, domain: int) -> None:
    transaction = QrTransaction.create(hint=Hint.GET_ASSERTION, time=1)
    phone = PhoneTransaction(FidoUrl.parse(transaction.url.encode()))
    eid = transaction.open_advert(phone.advertise(routing_id=routing_id, tunnel_domain=domain).service_data)
    assert eid is not None
    assert (eid.routing_id, eid.tunnel_domain) == (routing_id, domain)


def advertise(transaction: QrTransaction) -> Advertised:
    return PhoneTransaction(transaction.url).advertise(routing_id=b"abc", tunnel_domain=300)


def test_every_advert_has_a_nonce_of_its_own() -> None:
    transaction = QrTransaction.create(hint=Hint.GET_ASSERTION, time=1)
    assert len({advertise(transaction).service_data for _ in range(5)}) == 5


@pytest.mark.threat("T9")
def test_whoever_did_not_hear_the_advert_is_refused() -> None:
    transaction = QrTransaction.create(hint=Hint.GET_ASSERTION, time=1)
    advertised = advertise(transaction)
    guess = transaction.handshake(Eid(nonce=bytes(10), routing_id=b"abc", tunnel_domain=300))
    with pytest.raises(RemoteProtocolError):
        advertised.respond(guess.message)


@pytest.mark.threat("T3")
def test_whoever_heard_the_advert_but_does_not_hold_the_urls_key_is_refused() -> None:
    """The secret alone does not make a client platform: its key is in the URL."""
    transaction = QrTransaction.create(hint=Hint.GET_ASSERTION, time=1)
    advertised = advertise(transaction)
    eid = transaction.open_advert(advertised.service_data)
    assert eid is not None
    thief = QrTransaction.create(
        hint=Hint.GET_ASSERTION, time=1, private=generate(), secret=transaction.url.secret
    )
    assert thief.open_advert(advertised.service_data) == eid
    with pytest.raises(RemoteProtocolError):
        advertised.respond(thief.handshake(eid).message)


@pytest.mark.threat("T5")
def test_a_session_that_was_recorded_does_not_open_the_next_one() -> None:
    transaction = QrTransaction.create(hint=Hint.GET_ASSERTION, time=1)
    first, second = advertise(transaction), advertise(transaction)
    eid = transaction.open_advert(first.service_data)
    assert eid is not None
    message1 = transaction.handshake(eid).message
    first.respond(message1)
    with pytest.raises(RemoteProtocolError):
        second.respond(message1)


@pytest.mark.threat("T5")
def test_a_replayed_first_message_gives_a_channel_that_only_its_maker_could_use() -> None:
    transaction = QrTransaction.create(hint=Hint.GET_ASSERTION, time=1)
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
        advertise(QrTransaction.create(hint=Hint.GET_ASSERTION, time=1)).respond(message)


@pytest.mark.parametrize(("routing_id", "domain"), [(b"ab", 300), (b"abcd", 300), (b"abc", 65536)])
def test_an_advert_that_cannot_be_is_a_bug_of_the_caller(routing_id: bytes, domain: int) -> None:
    transaction = PhoneTransaction(QrTransaction.create(hint=Hint.GET_ASSERTION, time=1).url)
    with pytest.raises(LocalProtocolError):
        transaction.advertise(routing_id=routing_id, tunnel_domain=domain)


@pytest.mark.threat("T11")
def test_secrets_and_keys_do_not_show_in_a_repr() -> None:
    transaction = QrTransaction.create(hint=Hint.GET_ASSERTION, time=1)
    phone, advertised = PhoneTransaction(transaction.url), advertise(transaction)
    shown = repr((phone, advertised))
    for kept in (transaction.url.secret, advertised._psk):
        assert repr(kept) not in shown
        assert kept.hex() not in shown
