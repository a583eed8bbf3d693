"""The Noise handshakes KNpsk0 and NKpsk0 with P-256, AES-GCM and SHA-256 (CTAP 2.2 §11.5.1.2, §11.5.2).

    KNpsk0:  -> s            before the first message: the client platform's key in the FIDO URL
             ...
             -> psk, e
             <- e, ee, se

    NKpsk0:  <- s            before the first message: the authenticator's key in the linking information
             ...
             -> psk, e, es
             <- e, ee

Objects are named as in the Noise specification (revision 34, section 5): `HandshakeState` processes the tokens of a
pattern, `SymmetricState` mixes keys and hashes, `CipherState` encrypts. The client platform is the initiator and sends
message 1. The PSK depends on the advert, so message 1 proves that the client platform received the advert. Each handshake
key encrypts one message only, so its nonce is always zero.
"""

from dataclasses import dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from headless_passkey.errors import LocalProtocolError, ProtocolReason, RemoteProtocolError
from headless_passkey.hybrid.keys import ecdh, generate, parse_uncompressed, uncompressed

MESSAGE_SIZE: Final = 81  # 65 bytes of point, 16 of tag

_POINT_SIZE: Final = 65
_MAX_COUNTER: Final = (1 << 24) - 1  # Chromium's limit; no session comes near it


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

    def opens(self, ciphertext: bytes) -> bool:
        """Whether this is the next message. The counter stays."""
        try:
            self._aead.decrypt(self._nonce(), ciphertext, None)
        except InvalidTag:
            return False
        return True

    def decrypt(self, ciphertext: bytes) -> bytes:
        """Decrypt a message; the counter advances only after a valid tag."""
        if self._counter > _MAX_COUNTER:
            raise RemoteProtocolError(
                "too many messages on one channel", reason=ProtocolReason.TOO_MANY_MESSAGES
            )
        try:
            plaintext = self._aead.decrypt(self._nonce(), ciphertext, None)
        except InvalidTag as error:
            raise RemoteProtocolError(
                "a message does not decrypt", reason=ProtocolReason.UNDECRYPTABLE
            ) from error
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
            raise RemoteProtocolError(
                "the peer does not hold our pre-shared key", reason=ProtocolReason.WRONG_PSK
            ) from error
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        """Derive the two directions: client platform to authenticator, and authenticator to client platform."""
        derived = _hkdf(self._ck, b"", 64)
        return CipherState(derived[:32]), CipherState(derived[32:])


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A handshake pattern: its name says whose static key is known before, its tokens what each message does."""

    protocol_name: bytes
    prologue: bytes
    messages: tuple[tuple[str, ...], ...]  # the tokens of each message


KNPSK0: Final = Pattern(
    protocol_name=b"Noise_KNpsk0_P256_AESGCM_SHA256",
    prologue=b"\x01",  # QR-initiated
    messages=(("psk", "e"), ("e", "ee", "se")),
)
NKPSK0: Final = Pattern(
    protocol_name=b"Noise_NKpsk0_P256_AESGCM_SHA256",
    prologue=b"\x00",  # state-assisted
    messages=(("psk", "e", "es"), ("e", "ee")),
)


class HandshakeState:
    """One side of a handshake: writes and reads its messages by processing their tokens."""

    __slots__ = ("_initiator", "_ours", "_psk", "_symmetric", "_theirs", "_unread")

    def __init__(
        self,
        pattern: Pattern,
        *,
        initiator: bool,
        psk: bytes,
        s: EllipticCurvePrivateKey | None,
        rs: EllipticCurvePublicKey | None,
        e: EllipticCurvePrivateKey | None,
    ) -> None:
        """psk: 32 bytes. s, rs: our static key or theirs, exactly one. e: for tests; fresh otherwise."""
        self._initiator, self._psk, self._unread = initiator, psk, list(pattern.messages)
        self._ours, self._theirs = {"e": e or generate()}, dict[str, EllipticCurvePublicKey]()
        if s is not None and rs is None:
            self._ours["s"] = s
            static = s.public_key()
        elif rs is not None and s is None:
            self._theirs["s"] = static = rs
        else:
            raise LocalProtocolError("a handshake has one static key, ours or theirs")
        self._symmetric = SymmetricState(pattern.protocol_name)
        self._symmetric.mix_hash(pattern.prologue)
        self._symmetric.mix_hash(uncompressed(static))  # 65 bytes, although the FIDO URL carries 33

    def write_message(self) -> bytes:
        """Write the next message, 81 bytes: our ephemeral key, and the encrypted empty payload."""
        point = uncompressed(self._ours["e"].public_key())
        self._mix(point)
        return point + self._symmetric.encrypt_and_hash(b"")

    def read_message(self, message: bytes) -> None:
        """Read the peer's next message; `RemoteProtocolError` when it does not authenticate."""
        if len(message) != MESSAGE_SIZE:
            raise RemoteProtocolError(
                f"a handshake message has {MESSAGE_SIZE} bytes, got {len(message)}",
                reason=ProtocolReason.MALFORMED_HANDSHAKE,
            )
        point = message[:_POINT_SIZE]
        self._theirs["e"] = parse_uncompressed(point)
        self._mix(point)
        self._symmetric.decrypt_and_hash(message[_POINT_SIZE:])

    def finished(self) -> SymmetricState:
        """The state after the last message, whose `split` gives the channel's two keys."""
        return self._symmetric

    def _mix(self, e: bytes) -> None:
        """Process the tokens of the next message. e: its ephemeral key, 65 bytes."""
        for token in self._unread.pop(0):
            match token:
                case "psk":
                    self._symmetric.mix_key_and_hash(self._psk)
                case "e":
                    self._symmetric.mix_hash(e)
                    self._symmetric.mix_key(e)  # because the pattern has a PSK
                case _:
                    self._symmetric.mix_key(self._dh(token))

    def _dh(self, token: str) -> bytes:
        """Compute the ECDH of a token such as ``es``, which names the initiator's key and then the responder's."""
        initiators, responders = token[0], token[1]
        if self._initiator:
            return ecdh(self._ours[initiators], self._theirs[responders])
        return ecdh(self._ours[responders], self._theirs[initiators])


class Initiator:
    """The client platform's half of the handshake: it makes `message1`, and `finish` takes message 2.

    With `static`, our key in the FIDO URL, the pattern is KNpsk0; with `authenticator_static`, the key in the
    linking information, it is NKpsk0.
    """

    __slots__ = ("_finished", "_handshake", "message1")

    def __init__(
        self,
        *,
        psk: bytes,
        static: EllipticCurvePrivateKey | None = None,
        authenticator_static: EllipticCurvePublicKey | None = None,
        ephemeral: EllipticCurvePrivateKey | None = None,
    ) -> None:
        self._handshake = HandshakeState(
            KNPSK0 if authenticator_static is None else NKPSK0,
            initiator=True,
            psk=psk,
            s=static,
            rs=authenticator_static,
            e=ephemeral,
        )
        self._finished = False
        self.message1 = self._handshake.write_message()

    def finish(self, message2: bytes) -> SymmetricState:
        """Take message 2 and return the final state; `RemoteProtocolError` when the peer lacks the PSK or its static key.

        A handshake is finished once, also when it fails: one tunnel, one handshake.
        """
        if self._finished:
            raise LocalProtocolError("a handshake is finished once")
        self._finished = True
        self._handshake.read_message(message2)
        return self._handshake.finished()


class Responder:
    """The authenticator's half of the handshake: it reads message 1 and makes `message2` in one step.

    With `client_static`, the key in the FIDO URL, the pattern is KNpsk0; with `static`, our key in the
    linking information, it is NKpsk0.
    """

    __slots__ = ("message2", "state")

    def __init__(self, *, message2: bytes, state: SymmetricState) -> None:
        self.message2, self.state = message2, state

    @classmethod
    def respond(
        cls,
        message1: bytes,
        *,
        psk: bytes,
        client_static: EllipticCurvePublicKey | None = None,
        static: EllipticCurvePrivateKey | None = None,
        ephemeral: EllipticCurvePrivateKey | None = None,
    ) -> Self:
        """Answer message 1; `RemoteProtocolError` when its sender does not hold the PSK, which takes our secret and our advert."""
        handshake = HandshakeState(
            KNPSK0 if static is None else NKPSK0,
            initiator=False,
            psk=psk,
            s=static,
            rs=client_static,
            e=ephemeral,
        )
        handshake.read_message(message1)
        return cls(message2=handshake.write_message(), state=handshake.finished())


def _hkdf(chaining_key: bytes, material: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=chaining_key, info=b"").derive(material)


def _sha256(data: bytes) -> bytes:
    digest = Hash(SHA256())
    digest.update(data)
    return digest.finalize()
