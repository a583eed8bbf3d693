"""The data channels of the hybrid transport, and the messages of the direct one (CTAP 2.3 §11.5.1.1).

Key 6 of a FIDO URL and the suffix of an advert name the channels by number. The tunnel keeps the boundaries of messages. The
direct channel, an LE credit-based L2CAP channel, carries SDUs, and implementations do not agree about what is a message:

    message || 0D 0A          in one SDU or in several; message bytes can hold 0D 0A too, and nothing is escaped
    message                   in one SDU
    length || message         length: 4 bytes, big-endian, of the message

`Receiver` takes all of them. A handshake message has a known size, and begins with 04, so that a length before it is told from
it; then each message of this peer has one. Every other message is authenticated, so whoever
holds the key can say where it ends: each ``0D 0A`` is tried, and the end of the first SDU.
"""

from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Final

from headless_passkey.errors import LocalProtocolError, ProtocolReason, RemoteProtocolError

MAX_DIRECT_MESSAGE_SIZE: Final = 0xFFFF  # of a Noise message
MAX_TRIALS: Final = (
    32  # ends that do not open; of 64 KiB of ciphertext, one place on average looks like an end
)
_END: Final = b"\r\n"
_LENGTH: Final = 4  # bytes

Opens = Callable[[bytes], bool]  # whether these bytes are the next message


class DataChannel(IntEnum):
    """The channels that can carry a transaction's messages."""

    WEBSOCKET = 0  # the tunnel, which every client platform and authenticator has
    BLE_L2CAP = 1  # the direct channel


def direct_frame(message: bytes, *, counted: bool = False) -> bytes:
    """Put the end behind a message of the direct channel. counted: its length before it instead, as `Receiver.counted` says."""
    if len(message) > MAX_DIRECT_MESSAGE_SIZE:
        raise LocalProtocolError(f"a message of {len(message)} bytes is too long for the direct channel")
    return len(message).to_bytes(_LENGTH, "big") + message if counted else message + _END


class Receiver:
    """Finds messages in the SDUs of a direct channel.

    The caller feeds an SDU only when there is no message to take, so the memory in use is one message and one SDU. The work is
    bounded too: a peer whose bytes have many ends that do not open is refused.
    """

    __slots__ = ("_buffer", "_scanned", "_sdus", "_tried", "counted")

    def __init__(self) -> None:
        self.counted = False  # whether the peer puts a length before each message
        self._buffer = bytearray()
        self._sdus: list[int] = []  # where each SDU in the buffer ends
        self._scanned = 0  # no end begins before
        self._tried: set[tuple[int, int]] = set()  # starts and ends of what did not open

    def feed(self, sdu: bytes) -> None:
        """Append an SDU, in the order of arrival."""
        if sdu:
            self._buffer += sdu
            self._sdus.append(len(self._buffer))

    def take_exactly(self, size: int) -> bytes | None:
        """Take a message of a known size; None when there are fewer bytes.

        `RemoteProtocolError` when the peer puts lengths before its messages, and this one has another.
        """
        if len(self._buffer) < size:
            return None
        self.counted = self.counted or self._buffer.startswith(size.to_bytes(_LENGTH, "big"))
        message = self._take_counted() if self.counted else self._cut(0, size)
        if message is not None and len(message) != size:
            raise RemoteProtocolError(
                f"a message of {len(message)} bytes came over the direct channel in place of one of {size}",
                reason=ProtocolReason.MALFORMED_HANDSHAKE,
            )
        return message

    def take(self, opens: Opens) -> bytes | None:
        """Take the next message, which `opens` recognises; None when it has not come yet.

        `RemoteProtocolError` when there are more bytes than a message has, or too many ends that do not open.
        """
        if self.counted:
            message = self._take_counted()
            if message is not None and not opens(message):
                raise _undecryptable()
            return message
        for start, end in self._candidates():
            if opens(bytes(self._buffer[start:end])):
                return self._cut(start, end)
            self._tried.add((start, end))
            if len(self._tried) > MAX_TRIALS:
                raise _undecryptable()
        if len(self._buffer) > MAX_DIRECT_MESSAGE_SIZE + 2 * len(_END):
            raise _too_long()
        return None

    def _take_counted(self) -> bytes | None:
        """Take the message behind a length; None when it has not come yet."""
        if len(self._buffer) < _LENGTH:
            return None
        end = _LENGTH + int.from_bytes(self._buffer[:_LENGTH], "big")
        if end > _LENGTH + MAX_DIRECT_MESSAGE_SIZE:
            raise _too_long()
        return self._cut(_LENGTH, end) if len(self._buffer) >= end else None

    def _candidates(self) -> Iterator[tuple[int, int]]:
        """Yield the start and end of each part of the buffer that can be the next message and was not tried.

        Before it there may be the end of the last message.
        """
        starts = (0, len(_END)) if self._buffer.startswith(_END) else (0,)
        while (end := self._buffer.find(_END, self._scanned)) >= 0:
            self._scanned = end + 1
            yield from ((start, end) for start in starts if _may_be_message(end - start))
        self._scanned = max(self._scanned, len(self._buffer) - 1)
        for start in starts:
            whole = (start, next((end for end in self._sdus if end > start), 0))
            if _may_be_message(whole[1] - start) and whole not in self._tried:
                yield whole

    def _cut(self, start: int, end: int) -> bytes:
        message = bytes(self._buffer[start:end])
        del self._buffer[:end]
        self._sdus = [sdu - end for sdu in self._sdus if sdu > end]
        self._scanned = 0
        self._tried.clear()
        return message


def _undecryptable() -> RemoteProtocolError:
    return RemoteProtocolError(
        "nothing that came over the direct channel decrypts", reason=ProtocolReason.UNDECRYPTABLE
    )


def _too_long() -> RemoteProtocolError:
    return RemoteProtocolError(
        f"a message over {MAX_DIRECT_MESSAGE_SIZE} bytes came over the direct channel",
        reason=ProtocolReason.TOO_LONG,
    )


def _may_be_message(size: int) -> bool:
    return 0 < size <= MAX_DIRECT_MESSAGE_SIZE
