"""The messages of the direct channel: vectors, properties, refusals."""

from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headless_passkey.errors import LocalProtocolError, ProtocolReason, RemoteProtocolError
from headless_passkey.hybrid.data_channel import (
    MAX_DIRECT_MESSAGE_SIZE,
    MAX_TRIALS,
    Opens,
    Receiver,
    direct_frame,
)
from headless_passkey.hybrid.messages import pad
from headless_passkey.hybrid.noise import MESSAGE_SIZE, CipherState
from tests.vectors_loader import Vector, name, vectors

KEY = bytes(range(32))


def nothing_opens(_: bytes) -> bool:
    return False


class Key:
    """The receiving end's key: it counts what it was tried on."""

    def __init__(self) -> None:
        self._cipher = CipherState(KEY)
        self.tried = 0

    def opens(self, message: bytes) -> bool:
        self.tried += 1
        return self._cipher.opens(message)

    def turn(self, message: bytes) -> None:
        self._cipher.decrypt(message)


def received(sdus: Sequence[bytes], key: Key) -> list[bytes]:
    """All that `sdus` bring, taken as a channel does: an SDU is read when there is no message."""
    receiver, messages = Receiver(), list[bytes]()
    for sdu in sdus:
        receiver.feed(sdu)
        while (message := receiver.take(key.opens)) is not None:
            key.turn(message)
            messages.append(message)
    return messages


def sealed(*plaintexts: bytes) -> list[bytes]:
    cipher = CipherState(KEY)
    return [cipher.encrypt(pad(plaintext)) for plaintext in plaintexts]


def cut(stream: bytes, sizes: Sequence[int]) -> list[bytes]:
    pieces = []
    for size in sizes:
        pieces.append(stream[:size])
        stream = stream[size:]
    return [*pieces, stream]


@pytest.mark.parametrize("case", vectors("direct_messages", op="split"), ids=name)
def test_a_known_stream_is_split(case: Vector) -> None:
    """The published splitter splits at each end; here what is empty is no message, because nothing empty opens."""
    messages = [bytes.fromhex(message) for message in case["messages"]]
    receiver, found = Receiver(), []
    receiver.feed(bytes.fromhex(case["stream"]))
    opens: Opens = messages.__contains__
    while (message := receiver.take(opens)) is not None:
        found.append(message)
    assert found == [message for message in messages if message]
    rest = bytes.fromhex(case["remainder"])
    receiver.feed(b"\r\n")
    assert receiver.take(rest.__eq__) == (rest or None)


@given(
    st.lists(st.binary(max_size=400), max_size=5),
    st.lists(st.integers(0, 60), max_size=40),
    st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_messages_are_found_however_they_are_cut(
    plaintexts: list[bytes], sizes: list[int], ended: list[bool]
) -> None:
    messages = sealed(*plaintexts)
    stream = b"".join(map(direct_frame, messages))
    assert received(cut(stream, sizes), Key()) == messages
    # or each in an SDU of its own, with an end and without
    sdus = [direct_frame(message) if end else message for message, end in zip(messages, ended, strict=False)]
    assert received(sdus, Key()) == messages


@given(st.integers(0, 200), st.binary(max_size=4))
@example(0, b"\r\n")
@example(100, b"\r\n\r\n")
def test_an_end_inside_a_message_is_none(place: int, inside: bytes) -> None:
    message = bytearray(200)
    message[place : place + len(inside)] = inside
    found = bytes(message)
    receiver = Receiver()
    receiver.feed(direct_frame(found) + b"ne")
    assert receiver.take(found.__eq__) == found
    assert receiver.take(b"next".__eq__) is None
    receiver.feed(b"xt\r\n")
    assert receiver.take(b"next".__eq__) == b"next"


def test_a_message_that_begins_like_an_end_is_found() -> None:
    message = b"\r\nhello"
    for sdus in ([message], [direct_frame(message)], [b"\r\n", message], [b"\r\n" + direct_frame(message)]):
        receiver = Receiver()
        for sdu in sdus:
            receiver.feed(sdu)
        assert receiver.take(message.__eq__) == message


def test_a_handshake_message_has_its_size_with_an_end_and_without() -> None:
    (message,) = sealed(b"first")
    for end in (b"", b"\r\n"):
        receiver = Receiver()
        receiver.feed(bytes(MESSAGE_SIZE - 1))
        assert receiver.take_exactly(MESSAGE_SIZE) is None
        receiver.feed(b"\1" + end)
        assert receiver.take_exactly(MESSAGE_SIZE) == bytes(MESSAGE_SIZE - 1) + b"\1"
        receiver.feed(message)
        assert receiver.take(Key().opens) == message


HANDSHAKE = b"\4" + bytes(MESSAGE_SIZE - 1)


@given(st.lists(st.integers(1, 100), max_size=20))
@example([3, 1, 90, 2])
def test_a_peer_that_puts_lengths_before_its_messages_is_understood_however_they_are_cut(
    sizes: list[int],
) -> None:
    messages = sealed(b"one", b"two")
    stream = b"".join(direct_frame(message, counted=True) for message in (HANDSHAKE, *messages))
    receiver, key, found = Receiver(), Key(), list[bytes]()
    for sdu in cut(stream, sizes):
        receiver.feed(sdu)
        if not found and (first := receiver.take_exactly(MESSAGE_SIZE)) is not None:
            found.append(first)
        while found and (message := receiver.take(key.opens)) is not None:
            key.turn(message)
            found.append(message)
    assert found == [HANDSHAKE, *messages]
    assert receiver.counted


def counting() -> Receiver:
    """The receiver of a peer that puts lengths before its messages, after the handshake."""
    receiver = Receiver()
    receiver.feed(direct_frame(HANDSHAKE, counted=True))
    assert receiver.take_exactly(MESSAGE_SIZE) == HANDSHAKE
    return receiver


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("sdu", "reason"),
    [
        (bytes(4), ProtocolReason.UNDECRYPTABLE),
        (b"\0\0\0\3abc", ProtocolReason.UNDECRYPTABLE),
        (b"\0\1\0\0", ProtocolReason.TOO_LONG),
        (b"\xff" * 4, ProtocolReason.TOO_LONG),
    ],
    ids=["of nothing", "of rubbish", "of 64 KiB", "of the most"],
)
def test_a_length_is_bounded_and_what_is_behind_it_has_to_decrypt(sdu: bytes, reason: ProtocolReason) -> None:
    receiver = counting()
    receiver.feed(sdu)
    with pytest.raises(RemoteProtocolError) as caught:
        receiver.take(Key().opens)
    assert caught.value.reason is reason


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("length", "reason"),
    [
        (MESSAGE_SIZE - 1, ProtocolReason.MALFORMED_HANDSHAKE),
        (0, ProtocolReason.MALFORMED_HANDSHAKE),
        (0xFFFF0041, ProtocolReason.TOO_LONG),
    ],
)
def test_a_handshake_message_has_its_size_behind_a_length_too(length: int, reason: ProtocolReason) -> None:
    receiver = counting()
    receiver.feed(length.to_bytes(4, "big") + bytes(MESSAGE_SIZE))
    with pytest.raises(RemoteProtocolError) as caught:
        receiver.take_exactly(MESSAGE_SIZE)
    assert caught.value.reason is reason


def test_a_message_without_a_length_is_none_after_one_with_a_length() -> None:
    receiver = counting()
    receiver.feed(b"\0\0\0")
    assert receiver.take(nothing_opens) is None
    receiver.feed(b"\1")
    assert receiver.take(nothing_opens) is None
    receiver.feed(b"x")
    assert receiver.take(b"x".__eq__) == b"x"


def test_half_an_end_waits_for_the_other_half() -> None:
    (message,) = sealed(b"x")
    assert received([message[:20], message[20:] + b"\r", b"\n"], Key()) == [message]


def test_the_longest_message_goes_through_and_a_longer_one_is_not_sent() -> None:
    longest = bytes(MAX_DIRECT_MESSAGE_SIZE)
    receiver = Receiver()
    for sdu in (direct_frame(longest)[:40000], direct_frame(longest)[40000:]):
        assert receiver.take(longest.__eq__) is None
        receiver.feed(sdu)
    assert receiver.take(longest.__eq__) == longest
    with pytest.raises(LocalProtocolError, match="too long"):
        direct_frame(longest + b"\0")


@pytest.mark.threat("T12")
def test_bytes_without_an_end_are_refused_beyond_a_message() -> None:
    receiver, key = Receiver(), Key()
    for _ in range(MAX_DIRECT_MESSAGE_SIZE // 1000):
        receiver.feed(b"\xff" * 1000)
        assert receiver.take(key.opens) is None
    receiver.feed(b"\xff" * 1000)
    with pytest.raises(RemoteProtocolError) as caught:
        receiver.take(key.opens)
    assert caught.value.reason is ProtocolReason.TOO_LONG
    assert key.tried == 1


@pytest.mark.threat("T12")
def test_many_ends_cost_a_bounded_number_of_trials() -> None:
    receiver, key = Receiver(), Key()
    receiver.feed(b"x\r\n" * 20000)
    with pytest.raises(RemoteProtocolError) as caught:
        receiver.take(key.opens)
    assert caught.value.reason is ProtocolReason.UNDECRYPTABLE
    assert key.tried == MAX_TRIALS + 1


@pytest.mark.threat("T12")
@given(st.lists(st.binary(max_size=50) | st.just(b"\r\n"), max_size=30))
def test_whatever_comes_is_a_message_or_refused(sdus: list[bytes]) -> None:
    key = Key()
    with suppress(RemoteProtocolError):
        assert received(sdus, key) == []
    assert key.tried <= MAX_TRIALS + 1


def test_nothing_is_tried_twice() -> None:
    receiver, key = Receiver(), Key()
    for sdu in (b"one\r\n", b"two", b"", b"three"):
        receiver.feed(sdu)
        receiver.take(key.opens)
    # before the end, and the end of the first SDU
    assert key.tried == 2
    assert receiver.take(nothing_opens) is None
