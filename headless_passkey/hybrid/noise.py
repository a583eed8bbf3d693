"""The Noise handshake ``Noise_KNpsk0_P256_AESGCM_SHA256`` (CTAP 2.2 §11.5.1.2, Noise revision 34).

    KNpsk0:  -> s            before the first message: the client platform's key in the FIDO URL
             -> psk, e
             <- e, ee, se

Objects are named as in the Noise text: `SymmetricState` mixes, `CipherState` encrypts. The client platform
is the initiator and speaks first, which proves that it heard the advert, because the PSK depends on it.
Each handshake key encrypts one message only, so there the nonce is always zero.
"""

from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from headless_passkey.errors import LocalProtocolError, RemoteProtocolError
from headless_passkey.hybrid.keys import ecdh, generate, parse_uncompressed, uncompressed

PROTOCOL_NAME: Final = b"Noise_KNpsk0_P256_AESGCM_SHA256"
PROLOGUE: Final = b"\x01"  # this is a QR-initiated transaction
MESSAGE_SIZE: Final = 81  # 65 bytes of point, 16 of tag

_POINT_SIZE: Final = 65
_MAX_COUNTER: Final = (1 << 24) - 1  # where Chromium stops, far beyond any session


class CipherState:
    """One direction of the encrypted channel: AES-256-GCM with a counter, no additional data."""

    __slots__ = ("_aead", "_counter")

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)
        self._counter = 0

    def encrypt(self, plaintext: bytes) -> bytes:
        if self._counter > _MAX_COUNTER:
            raise LocalProtocolError("too many messages for one channel")
        ciphertext = self._aead.encrypt(self._nonce(), plaintext, None)
        self._counter += 1
        return ciphertext

    def decrypt(self, ciphertext: bytes) -> bytes:
        """The plaintext; the counter moves only when the tag was right."""
        if self._counter > _MAX_COUNTER:
            raise RemoteProtocolError("too many messages on one channel")
        try:
            plaintext = self._aead.decrypt(self._nonce(), ciphertext, None)
        except InvalidTag as error:
            raise RemoteProtocolError("a message does not decrypt") from error
        self._counter += 1
        return plaintext

    def _nonce(self) -> bytes:
        return self._counter.to_bytes(12, "big")


class SymmetricState:
    """The chaining key ``ck``, the handshake hash ``h`` and the current key."""

    __slots__ = ("_ck", "_key", "h")

    def __init__(self, protocol_name: bytes) -> None:
        self.h = self._ck = protocol_name.ljust(32, b"\0")
        self._key = b""

    def mix_hash(self, data: bytes) -> None:
        self.h = _sha256(self.h + data)

    def mix_key(self, material: bytes) -> None:
        derived = _hkdf(self._ck, material, 64)
        self._ck, self._key = derived[:32], derived[32:]

    def mix_key_and_hash(self, material: bytes) -> None:
        derived = _hkdf(self._ck, material, 96)
        self._ck, self._key = derived[:32], derived[64:]
        self.mix_hash(derived[32:64])

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = AESGCM(self._key).encrypt(bytes(12), plaintext, self.h)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        try:
            plaintext = AESGCM(self._key).decrypt(bytes(12), ciphertext, self.h)
        except InvalidTag as error:
            raise RemoteProtocolError("the peer does not hold our pre-shared key") from error
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        """Client platform to authenticator, and authenticator to client platform."""
        derived = _hkdf(self._ck, b"", 64)
        return CipherState(derived[:32]), CipherState(derived[32:])


class Initiator:
    """The client platform's half: make `message1`, then `finish` with what came back."""

    __slots__ = ("_ephemeral", "_finished", "_state", "_static", "message1")

    def __init__(
        self, *, psk: bytes, static: EllipticCurvePrivateKey, ephemeral: EllipticCurvePrivateKey | None = None
    ) -> None:
        """psk: 32 bytes. static: the key whose public half is in the FIDO URL."""
        self._static, self._ephemeral, self._finished = static, ephemeral or generate(), False
        self._state = _begin(psk, static.public_key())
        point = uncompressed(self._ephemeral.public_key())
        self._state.mix_hash(point)
        self._state.mix_key(point)
        self.message1 = point + self._state.encrypt_and_hash(b"")

    def finish(self, message2: bytes) -> SymmetricState:
        """The finished state; `RemoteProtocolError` when the peer is not who scanned the FIDO URL.

        Whatever came, there is no second try: one tunnel, one handshake.
        """
        if self._finished:
            raise LocalProtocolError("a handshake is finished once")
        self._finished = True
        peer, tag = _split_message(message2)
        self._state.mix_hash(message2[:_POINT_SIZE])
        self._state.mix_key(message2[:_POINT_SIZE])
        self._state.mix_key(ecdh(self._ephemeral, peer))
        self._state.mix_key(ecdh(self._static, peer))
        self._state.decrypt_and_hash(tag)
        return self._state


class Responder:
    """The authenticator's half: reads message 1 and makes `message2` in one step."""

    __slots__ = ("message2", "state")

    def __init__(self, *, message2: bytes, state: SymmetricState) -> None:
        self.message2, self.state = message2, state

    @classmethod
    def respond(
        cls,
        message1: bytes,
        *,
        psk: bytes,
        client_static: EllipticCurvePublicKey,
        ephemeral: EllipticCurvePrivateKey | None = None,
    ) -> Self:
        """`RemoteProtocolError` when whoever sent `message1` does not know the FIDO URL and the advert."""
        peer, tag = _split_message(message1)
        ephemeral = ephemeral or generate()
        state = _begin(psk, client_static)
        state.mix_hash(message1[:_POINT_SIZE])
        state.mix_key(message1[:_POINT_SIZE])
        state.decrypt_and_hash(tag)
        point = uncompressed(ephemeral.public_key())
        state.mix_hash(point)
        state.mix_key(point)
        state.mix_key(ecdh(ephemeral, peer))
        state.mix_key(ecdh(ephemeral, client_static))
        return cls(message2=point + state.encrypt_and_hash(b""), state=state)


def _begin(psk: bytes, client_static: EllipticCurvePublicKey) -> SymmetricState:
    state = SymmetricState(PROTOCOL_NAME)
    state.mix_hash(PROLOGUE)
    state.mix_hash(uncompressed(client_static))  # 65 bytes, although the FIDO URL carries 33
    state.mix_key_and_hash(psk)
    return state


def _split_message(message: bytes) -> tuple[EllipticCurvePublicKey, bytes]:
    """The peer's ephemeral key and the encrypted empty payload."""
    if len(message) != MESSAGE_SIZE:
        raise RemoteProtocolError(f"a handshake message has {MESSAGE_SIZE} bytes, got {len(message)}")
    return parse_uncompressed(message[:_POINT_SIZE]), message[_POINT_SIZE:]


def _hkdf(chaining_key: bytes, material: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=chaining_key, info=b"").derive(material)


def _sha256(data: bytes) -> bytes:
    digest = Hash(SHA256())
    digest.update(data)
    return digest.finalize()
