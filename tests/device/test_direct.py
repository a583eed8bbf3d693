"""The direct channel: messages over an L2CAP channel in memory."""

import asyncio

import pytest

from headless_passkey.errors import LocalProtocolError, ProtocolReason, RemoteProtocolError, TransportError
from headless_passkey.hybrid.data_channel import MAX_DIRECT_MESSAGE_SIZE
from headless_passkey.hybrid.noise import MESSAGE_SIZE
from headless_passkey.radio.direct import DirectChannel
from tests.l2cap import pair


@pytest.mark.parametrize("mtu", [23, 512, 4096])
async def test_messages_arrive_whole_and_in_order(mtu: int) -> None:
    one, other = (DirectChannel(end) for end in pair(mtu=mtu))
    handshake, messages = bytes(MESSAGE_SIZE), [b"\r\n" + bytes([n]) * 2000 for n in range(3)]
    for message in (handshake, *messages):
        await one.send(message)
    assert await other.receive() == handshake
    for message in messages:
        assert await other.receive(message.__eq__) == message


async def test_a_message_is_one_sdu_where_it_fits() -> None:
    end, _ = pair(mtu=512)
    await DirectChannel(end).send(bytes(510))
    await DirectChannel(end).send(bytes(511))
    assert [len(sdu) for sdu in end.sent] == [512, 512, 1]


@pytest.mark.threat("T12")
async def test_bytes_without_end_are_refused() -> None:
    end, hostile = pair()
    for _ in range(MAX_DIRECT_MESSAGE_SIZE // 4096 + 2):
        await hostile.send(b"\xff" * 4096)
    with pytest.raises(RemoteProtocolError) as caught:
        await DirectChannel(end).receive(lambda _: False)
    assert caught.value.reason is ProtocolReason.TOO_LONG


async def test_what_was_sent_before_the_close_arrives_and_then_the_end() -> None:
    near, far = pair()
    await DirectChannel(near).send(bytes(MESSAGE_SIZE))
    await near.close()
    receiving = DirectChannel(far)
    assert await receiving.receive() == bytes(MESSAGE_SIZE)
    with pytest.raises(TransportError):
        await receiving.receive()
    with pytest.raises(TransportError):
        await receiving.send(b"x")


async def test_a_cancelled_call_loses_nothing() -> None:
    near, far = pair()
    receiving = DirectChannel(far)
    await near.send(bytes(MESSAGE_SIZE - 1))
    waiting = asyncio.create_task(receiving.receive())
    while not far._arrived.empty():  # noqa: ASYNC110  the first part is read
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await near.send(b"\0\r\n")
    assert await receiving.receive() == bytes(MESSAGE_SIZE)


@pytest.mark.threat("T12")
async def test_a_peer_that_never_reads_holds_only_its_sender() -> None:
    near, far = pair(room=1)
    sending = DirectChannel(near)
    await sending.send(b"x")
    stuck = asyncio.create_task(sending.send(b"y"))
    await asyncio.sleep(0)
    assert not stuck.done()
    stuck.cancel()
    await asyncio.wait([stuck])
    assert await far.receive() == b"x\r\n"


async def test_a_message_that_nobody_would_take_is_not_sent() -> None:
    near, _ = pair()
    with pytest.raises(LocalProtocolError):
        await DirectChannel(near).send(bytes(MAX_DIRECT_MESSAGE_SIZE + 1))
    assert near.sent == []
