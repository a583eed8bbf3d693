"""The Noise handshake and the cipher after it: vectors, properties, refusals."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError
from headless_passkey.hybrid.keys import CURVE, generate, parse_compressed, parse_uncompressed, uncompressed
from headless_passkey.hybrid.messages import pad, unpad
from headless_passkey.hybrid.noise import (
    KNPSK0,
    MESSAGE_SIZE,
    NKPSK0,
    CipherState,
    HandshakeState,
    Initiator,
    Pattern,
    Responder,
    SymmetricState,
)
from tests.strategies import exactly, private_keys
from tests.vectors_loader import Vector, name, vector, vectors

PSK = bytes(range(32))
STATIC = ec.derive_private_key(5, CURVE)
OTHER_STATIC = ec.derive_private_key(6, CURVE)


def private(scalar: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int(scalar, 16), CURVE)


def client_key(url_map: str) -> ec.EllipticCurvePublicKey:
    """Key 0 of a FIDO URL's map, which Chromium always begins alike."""
    return parse_compressed(bytes.fromhex(url_map)[4:37])


def opens(cipher: CipherState, key: str, plaintext: bytes = b"hello") -> bool:
    """Whether `cipher` is at its beginning and has that key."""
    return cipher.decrypt(AESGCM(bytes.fromhex(key)).encrypt(bytes(12), plaintext, None)) == plaintext


def test_the_first_message_of_chrome_151_is_accepted() -> None:
    case = vector("noise", "kn-chrome-151-msg1")
    responder = Responder.respond(
        bytes.fromhex(case["msg1"]),
        psk=bytes.fromhex(case["psk"]),
        client_static=parse_uncompressed(bytes.fromhex(case["client_static_public"])),
    )
    assert len(responder.message2) == MESSAGE_SIZE


@pytest.mark.threat("T12")
@given(st.integers(0, 8 * MESSAGE_SIZE - 1))
def test_one_changed_bit_of_it_is_refused(bit: int) -> None:
    case = vector("noise", "kn-chrome-151-msg1")
    message = bytearray.fromhex(case["msg1"])
    message[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RemoteProtocolError):
        Responder.respond(
            bytes(message),
            psk=bytes.fromhex(case["psk"]),
            client_static=parse_uncompressed(bytes.fromhex(case["client_static_public"])),
        )


@pytest.mark.parametrize("case", vectors("chromium_sessions"), ids=name)
def test_the_handshake_of_a_real_browser(case: Vector) -> None:
    handshake = case["handshake"]
    responder = Responder.respond(
        bytes.fromhex(handshake["message1"]),
        psk=bytes.fromhex(handshake["psk"]),
        client_static=client_key(case["fido_url"]["cbor"]),
        ephemeral=private(handshake["phone_ephemeral_private"]),
    )
    assert responder.message2.hex() == handshake["message2"]
    assert responder.state.h.hex() == handshake["handshake_hash"]
    to_authenticator, to_client = responder.state.split()
    assert opens(to_authenticator, handshake["client_to_phone_key"])
    assert opens(to_client, handshake["phone_to_client_key"])


@pytest.mark.parametrize("case", vectors("noise", op="noise-kn"), ids=name)
def test_a_known_handshake_from_both_sides(case: Vector) -> None:
    static, psk = private(case["client_static_private"]), bytes.fromhex(case["psk"])
    initiator = Initiator(psk=psk, static=static, ephemeral=private(case["client_ephemeral_private"]))
    assert initiator.message1.hex() == case["msg1"]
    responder = Responder.respond(
        initiator.message1,
        psk=psk,
        client_static=static.public_key(),
        ephemeral=private(case["authenticator_ephemeral_private"]),
    )
    assert responder.message2.hex() == case["msg2"]
    state = initiator.finish(responder.message2)
    assert state.h.hex() == responder.state.h.hex() == case["handshake_hash"]
    to_authenticator, to_client = state.split()
    assert opens(to_authenticator, case["client_to_authenticator_key"])
    assert opens(to_client, case["authenticator_to_client_key"])


@pytest.mark.parametrize("case", vectors("linked_sessions"), ids=name)
def test_the_state_assisted_handshake_of_a_real_browser(case: Vector) -> None:
    handshake = case["handshake"]
    responder = Responder.respond(
        bytes.fromhex(handshake["message1"]),
        psk=bytes.fromhex(handshake["psk"]),
        static=private(case["link"]["authenticator_private"]),
        ephemeral=private(handshake["phone_ephemeral_private"]),
    )
    assert responder.message2.hex() == handshake["message2"]
    assert responder.state.h.hex() == handshake["handshake_hash"]
    to_authenticator, to_client = responder.state.split()
    assert opens(to_authenticator, handshake["client_to_phone_key"])
    assert opens(to_client, handshake["phone_to_client_key"])


@pytest.mark.parametrize("case", vectors("noise", op="noise-nk"), ids=name)
def test_a_known_state_assisted_handshake_from_both_sides(case: Vector) -> None:
    static, psk = private(case["authenticator_static_private"]), bytes.fromhex(case["psk"])
    initiator = Initiator(
        psk=psk,
        authenticator_static=static.public_key(),
        ephemeral=private(case["client_ephemeral_private"]),
    )
    assert initiator.message1.hex() == case["msg1"]
    responder = Responder.respond(
        initiator.message1,
        psk=psk,
        static=static,
        ephemeral=private(case["authenticator_ephemeral_private"]),
    )
    assert responder.message2.hex() == case["msg2"]
    state = initiator.finish(responder.message2)
    assert state.h.hex() == responder.state.h.hex() == case["handshake_hash"]
    to_authenticator, to_client = state.split()
    assert opens(to_authenticator, case["client_to_authenticator_key"])
    assert opens(to_client, case["authenticator_to_client_key"])


@pytest.mark.parametrize("case", vectors("crypter", op="crypter-seal"), ids=name)
def test_a_known_message(case: Vector) -> None:
    key, message = bytes.fromhex(case["key"]), bytes.fromhex(case["message"])
    assert CipherState(key).encrypt(pad(message)).hex() == case["ciphertext"]
    assert unpad(CipherState(key).decrypt(bytes.fromhex(case["ciphertext"]))) == message


@pytest.mark.parametrize("case", vectors("crypter", op="crypter-roundtrip"), ids=name)
def test_messages_of_every_length_pass_and_a_changed_one_does_not_advance(case: Vector) -> None:
    """As Chromium tests its own: message i has i bytes, and byte 13 i is changed."""
    key = bytes.fromhex(case["key_a"])
    sender, receiver = CipherState(key), CipherState(key)
    for length in range(530):
        message = bytes(byte % 256 for byte in range(length))
        ciphertext = sender.encrypt(pad(message))
        changed = bytearray(ciphertext)
        changed[(13 * length) % len(changed)] ^= 1
        with pytest.raises(RemoteProtocolError):
            receiver.decrypt(bytes(changed))
        assert unpad(receiver.decrypt(ciphertext)) == message


@given(exactly(32), private_keys(), private_keys(), private_keys())
def test_both_sides_end_with_one_hash_and_matching_keys(
    psk: bytes,
    static: ec.EllipticCurvePrivateKey,
    client: ec.EllipticCurvePrivateKey,
    phone: ec.EllipticCurvePrivateKey,
) -> None:
    initiator = Initiator(psk=psk, static=static, ephemeral=client)
    responder = Responder.respond(
        initiator.message1, psk=psk, client_static=static.public_key(), ephemeral=phone
    )
    state = initiator.finish(responder.message2)
    assert state.h == responder.state.h
    (client_sends, client_hears), (phone_hears, phone_sends) = state.split(), responder.state.split()
    for number in range(3):
        assert phone_hears.decrypt(client_sends.encrypt(b"up %d" % number)) == b"up %d" % number
        assert client_hears.decrypt(phone_sends.encrypt(b"down %d" % number)) == b"down %d" % number


@given(exactly(32), private_keys(), private_keys(), private_keys())
def test_both_sides_of_a_state_assisted_handshake_end_alike_too(
    psk: bytes,
    static: ec.EllipticCurvePrivateKey,
    client: ec.EllipticCurvePrivateKey,
    phone: ec.EllipticCurvePrivateKey,
) -> None:
    initiator = Initiator(psk=psk, authenticator_static=static.public_key(), ephemeral=client)
    responder = Responder.respond(initiator.message1, psk=psk, static=static, ephemeral=phone)
    state = initiator.finish(responder.message2)
    assert state.h == responder.state.h
    (client_sends, client_hears), (phone_hears, phone_sends) = state.split(), responder.state.split()
    assert phone_hears.decrypt(client_sends.encrypt(b"up")) == b"up"
    assert client_hears.decrypt(phone_sends.encrypt(b"down")) == b"down"


def test_every_handshake_has_keys_of_its_own() -> None:
    messages = {Initiator(psk=PSK, static=STATIC).message1 for _ in range(3)}
    answers = {
        Responder.respond(message, psk=PSK, client_static=STATIC.public_key()).message2
        for message in [*messages, *messages]
    }
    assert (len(messages), len(answers)) == (3, 6)


@pytest.mark.threat("T9")
@given(exactly(32).filter(lambda psk: psk != PSK))
def test_another_psk_is_refused_by_both_sides_alike(psk: bytes) -> None:
    initiator = Initiator(psk=PSK, static=STATIC)
    with pytest.raises(RemoteProtocolError) as phone_says:
        Responder.respond(initiator.message1, psk=psk, client_static=STATIC.public_key())
    stranger = Responder.respond(
        Initiator(psk=psk, static=STATIC).message1, psk=psk, client_static=STATIC.public_key()
    )
    with pytest.raises(RemoteProtocolError) as client_says:
        initiator.finish(stranger.message2)
    assert str(phone_says.value) == str(client_says.value)


@pytest.mark.threat("T9")
def test_a_client_that_does_not_hold_the_urls_key_is_refused() -> None:
    """It may have heard the advert and know the secret; the key in the URL is still not its own."""
    thief = Initiator(psk=PSK, static=OTHER_STATIC)
    with pytest.raises(RemoteProtocolError):
        Responder.respond(thief.message1, psk=PSK, client_static=STATIC.public_key())


@pytest.mark.threat("T9")
def test_a_client_that_only_claims_the_urls_key_cannot_finish() -> None:
    """Message 1 needs the public half alone; what comes back needs the private one."""
    initiator = Initiator(psk=PSK, static=STATIC)
    responder = Responder.respond(initiator.message1, psk=PSK, client_static=STATIC.public_key())
    initiator._handshake._ours["s"] = OTHER_STATIC
    with pytest.raises(RemoteProtocolError):
        initiator.finish(responder.message2)


@pytest.mark.threat("T5")
def test_message_1_sent_back_is_no_message_2() -> None:
    initiator = Initiator(psk=PSK, static=STATIC)
    with pytest.raises(RemoteProtocolError):
        initiator.finish(initiator.message1)


@pytest.mark.threat("T5")
def test_message_2_of_another_handshake_is_refused() -> None:
    first, second = Initiator(psk=PSK, static=STATIC), Initiator(psk=PSK, static=STATIC)
    responder = Responder.respond(first.message1, psk=PSK, client_static=STATIC.public_key())
    with pytest.raises(RemoteProtocolError):
        second.finish(responder.message2)


@pytest.mark.threat("T9")
@given(st.integers(0, 8 * MESSAGE_SIZE - 1))
def test_one_changed_bit_of_message_2_is_refused(bit: int) -> None:
    initiator = Initiator(psk=PSK, static=STATIC)
    responder = Responder.respond(initiator.message1, psk=PSK, client_static=STATIC.public_key())
    message = bytearray(responder.message2)
    message[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RemoteProtocolError):
        initiator.finish(bytes(message))


MALFORMED: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "the point alone": lambda message: message[:65],
    "a byte short": lambda message: message[:-1],
    "a byte more": lambda message: message + b"\0",
    "the tag alone": lambda message: message[65:],
    "a compressed point": lambda message: bytes([2 + message[64] % 2]) + message[1:33] + message[65:],
    "a hybrid point": lambda message: bytes([6 + message[64] % 2]) + message[1:],
    "the point at infinity": lambda message: bytes(65) + message[65:],
    "a point off the curve": lambda message: b"\4" + bytes(63) + b"\1" + message[65:],
    "the client's own key in place of the ephemeral": lambda message: (
        uncompressed(STATIC.public_key()) + message[65:]
    ),
    "tags of zeros": lambda message: message[:65] + bytes(16),
    "a payload": lambda message: message[:65] + b"x" + message[65:],
}


BOTH = pytest.mark.parametrize("pattern", [KNPSK0, NKPSK0], ids=["KNpsk0", "NKpsk0"])


def _initiator(pattern: Pattern) -> Initiator:
    if pattern is KNPSK0:
        return Initiator(psk=PSK, static=STATIC)
    return Initiator(psk=PSK, authenticator_static=STATIC.public_key())


@pytest.mark.threat("T12")
@BOTH
@pytest.mark.parametrize("why", MALFORMED)
def test_a_handshake_message_is_refused_that_has(pattern: Pattern, why: str) -> None:
    initiator = _initiator(pattern)
    with pytest.raises(RemoteProtocolError):
        _respond_to(pattern, MALFORMED[why](initiator.message1))
    responder = _respond_to(pattern, initiator.message1)
    with pytest.raises(RemoteProtocolError):
        initiator.finish(MALFORMED[why](responder.message2))


@pytest.mark.threat("T9")
@given(st.integers(0, 8 * MESSAGE_SIZE - 1))
def test_one_changed_bit_of_a_state_assisted_handshake_is_refused(bit: int) -> None:
    def flip(message: bytes) -> bytes:
        changed = bytearray(message)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    initiator = _initiator(NKPSK0)
    with pytest.raises(RemoteProtocolError):
        _respond_to(NKPSK0, flip(initiator.message1))
    responder = _respond_to(NKPSK0, initiator.message1)
    with pytest.raises(RemoteProtocolError):
        initiator.finish(flip(responder.message2))


@pytest.mark.threat("T9")
def test_an_authenticator_without_the_long_term_key_is_refused() -> None:
    """It may know the link secret and the advert; the key in the linking information is still not its own."""
    message1 = _initiator(NKPSK0).message1
    with pytest.raises(RemoteProtocolError):
        Responder.respond(message1, psk=PSK, static=OTHER_STATIC)


@pytest.mark.threat("T9")
@given(exactly(32).filter(lambda psk: psk != PSK))
def test_another_psk_is_refused_by_both_sides_of_a_state_assisted_handshake(psk: bytes) -> None:
    initiator = _initiator(NKPSK0)
    with pytest.raises(RemoteProtocolError):
        Responder.respond(initiator.message1, psk=psk, static=STATIC)
    stranger = Initiator(psk=psk, authenticator_static=STATIC.public_key())
    with pytest.raises(RemoteProtocolError):
        initiator.finish(Responder.respond(stranger.message1, psk=psk, static=STATIC).message2)


@pytest.mark.threat("T9")
def test_the_two_patterns_do_not_meet() -> None:
    """Even with one key at both ends and one PSK."""
    for ours, theirs in ((KNPSK0, NKPSK0), (NKPSK0, KNPSK0)):
        initiator = _initiator(ours)
        with pytest.raises(RemoteProtocolError):
            _respond_to(theirs, initiator.message1)
        with pytest.raises(RemoteProtocolError):
            initiator.finish(_respond_to(theirs, _initiator(theirs).message1).message2)


def test_a_handshake_with_two_static_keys_or_none_is_a_bug_of_the_caller() -> None:
    message1 = _initiator(KNPSK0).message1
    with pytest.raises(LocalProtocolError):
        Initiator(psk=PSK)
    with pytest.raises(LocalProtocolError):
        Initiator(psk=PSK, static=STATIC, authenticator_static=STATIC.public_key())
    with pytest.raises(LocalProtocolError):
        Responder.respond(message1, psk=PSK)
    with pytest.raises(LocalProtocolError):
        Responder.respond(message1, psk=PSK, static=STATIC, client_static=STATIC.public_key())


@pytest.mark.threat("T12")
@given(st.binary(max_size=200) | exactly(MESSAGE_SIZE) | exactly(80).map(b"\4".__add__))
def test_any_bytes_are_refused_as_handshake_messages(message: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Responder.respond(message, psk=PSK, client_static=STATIC.public_key())
    with pytest.raises(RemoteProtocolError):
        Initiator(psk=PSK, static=STATIC).finish(message)


@pytest.mark.threat("T9")
@pytest.mark.parametrize("why", MALFORMED)
def test_a_handshake_that_failed_is_not_tried_again(why: str) -> None:
    initiator = Initiator(psk=PSK, static=STATIC)
    responder = Responder.respond(initiator.message1, psk=PSK, client_static=STATIC.public_key())
    with pytest.raises(RemoteProtocolError):
        initiator.finish(MALFORMED[why](responder.message2))
    with pytest.raises(LocalProtocolError):
        initiator.finish(responder.message2)


def test_a_handshake_is_finished_once() -> None:
    initiator = Initiator(psk=PSK, static=STATIC)
    responder = Responder.respond(initiator.message1, psk=PSK, client_static=STATIC.public_key())
    initiator.finish(responder.message2)
    with pytest.raises(LocalProtocolError):
        initiator.finish(responder.message2)


@BOTH
def test_other_rules_of_the_same_pattern_do_not_meet_ours(pattern: Pattern) -> None:
    """The name padded to 32 bytes, and the prologue: an implementation that forgets either is refused."""
    other = NKPSK0 if pattern is KNPSK0 else KNPSK0
    for changed in (
        replace(pattern, protocol_name=other.protocol_name),
        replace(pattern, protocol_name=pattern.protocol_name + b"\1"),
        replace(pattern, prologue=other.prologue),
        replace(pattern, prologue=b""),
    ):
        with pytest.raises(RemoteProtocolError):
            _respond_to(pattern, _begin(changed).write_message())
    assert _respond_to(pattern, _begin(pattern).write_message())


def _begin(pattern: Pattern) -> HandshakeState:
    """An initiator; `STATIC` is the one static key of either pattern."""
    ours = pattern.messages == KNPSK0.messages
    s, rs = (STATIC, None) if ours else (None, STATIC.public_key())
    return HandshakeState(pattern, initiator=True, psk=PSK, s=s, rs=rs, e=None)


def _respond_to(pattern: Pattern, message1: bytes) -> Responder:
    if pattern is KNPSK0:
        return Responder.respond(message1, psk=PSK, client_static=STATIC.public_key())
    return Responder.respond(message1, psk=PSK, static=STATIC)


def test_the_protocol_name_fills_the_first_hash_with_zeros() -> None:
    assert SymmetricState(b"Noise_KNpsk0_P256_AESGCM_SHA256").h == b"Noise_KNpsk0_P256_AESGCM_SHA256\0"


@pytest.mark.threat("T12")
@given(st.binary(max_size=100))
def test_any_bytes_are_refused_as_messages(message: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        CipherState(PSK).decrypt(message)


def test_the_counter_is_big_endian_and_stops_in_time() -> None:
    """Chromium stops at 2^24 - 1; nobody comes near it, and no nonce may ever come twice."""
    sender, receiver = CipherState(PSK), CipherState(PSK)
    sender._counter = receiver._counter = (1 << 24) - 1
    last = sender.encrypt(b"last")
    assert AESGCM(PSK).decrypt(bytes(9) + b"\xff\xff\xff", last, None) == b"last"
    assert receiver.decrypt(last) == b"last"
    with pytest.raises(LocalProtocolError, match="too many"):
        sender.encrypt(b"one more")
    with pytest.raises(RemoteProtocolError, match="too many"):
        receiver.decrypt(AESGCM(PSK).encrypt(bytes(8) + (1 << 24).to_bytes(4, "big"), b"one more", None))


@pytest.mark.threat("T11")
def test_keys_do_not_show_in_a_repr() -> None:
    initiator = Initiator(psk=PSK, static=generate())
    for thing in (CipherState(PSK), SymmetricState(b"x"), initiator):
        assert repr(thing).startswith("<headless_passkey")
