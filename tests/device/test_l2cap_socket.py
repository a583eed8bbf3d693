"""Channels over the kernel's sockets, as far as they go without Bluetooth; `tests/ble` has the rest."""

import asyncio
import ctypes
import errno
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from headless_passkey.errors import TransportError
from headless_passkey.radio.l2cap import MIN_MTU, MTU
from headless_passkey.radio.source import AddressType

if sys.platform != "linux":
    pytest.skip("the kernel's Bluetooth sockets are Linux's", allow_module_level=True)

from headless_passkey.radio import l2cap_socket
from headless_passkey.radio.l2cap_socket import (
    SocketChannel,
    SocketListener,
    _port,
    open_socket_channel,
    open_socket_listener,
)

NOBODY: tuple[str, AddressType] = ("00:00:5E:00:53:FF", "public")


def ends() -> tuple[SocketChannel, int]:
    """A channel over a socket that keeps SDUs apart as L2CAP does, and the peer's descriptor."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.setblocking(False)
    far.setblocking(False)
    return SocketChannel(near.detach(), MTU), far.detach()


async def test_sdus_stay_apart() -> None:
    channel, peer = ends()
    for sdu in (b"one", bytes(MTU)):
        os.write(peer, sdu)
    assert [await channel.receive(), await channel.receive()] == [b"one", bytes(MTU)]
    await channel.send(b"two")
    await channel.send(b"three")
    assert os.read(peer, MTU) == b"two"
    os.close(peer)
    await channel.close()


async def test_whoever_waits_is_woken_or_cancelled() -> None:
    channel, peer = ends()
    waiting = asyncio.create_task(channel.receive())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    waiting = asyncio.create_task(channel.receive())
    await asyncio.sleep(0)
    os.write(peer, b"late")
    assert await waiting == b"late"
    os.close(peer)
    await channel.close()


async def test_the_peers_close_and_our_own_are_the_end() -> None:
    channel, peer = ends()
    os.write(peer, b"last")
    os.close(peer)
    assert await channel.receive() == b"last"
    with pytest.raises(TransportError, match="closed"):
        await channel.receive()
    with pytest.raises(TransportError, match="closed"):
        await channel.send(b"x")
    await channel.close()
    await channel.close()
    with pytest.raises(TransportError, match="closed"):
        await channel.send(b"x")


async def test_our_close_wakes_whoever_waits_and_leaves_the_next_file_of_that_number_alone() -> None:
    near, far = socket.socketpair()
    with near, far:
        channel, peer = ends()
        descriptor = channel._descriptor
        assert descriptor is not None
        waiting = [asyncio.create_task(channel.receive()), asyncio.create_task(flooding(channel))]
        for _ in range(10):
            await asyncio.sleep(0)
        await channel.close()
        os.dup2(near.fileno(), descriptor)
        heard = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, heard.set)
        for task in waiting:
            with pytest.raises(TransportError, match="closed"):
                await task
        far.send(b"x")
        await heard.wait()
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        os.close(peer)


async def flooding(channel: SocketChannel) -> None:
    while True:
        await channel.send(bytes(MTU))


@pytest.mark.threat("T12")
async def test_a_peer_that_never_reads_holds_only_its_sender() -> None:
    channel, peer = ends()
    sending = asyncio.create_task(flooding(channel))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not sending.done()
    sending.cancel()
    await asyncio.wait([sending])
    os.close(peer)
    await channel.close()


async def test_a_peer_cannot_ask_for_pieces_smaller_than_any() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = SocketChannel(near.detach(), 0)
    assert channel.mtu == MIN_MTU
    far.close()
    await channel.close()


async def test_an_adapter_that_is_not_there_is_a_typed_error() -> None:
    with pytest.raises(TransportError):
        async with open_socket_channel(NOBODY, NOBODY, 0x80):
            pass
    with pytest.raises(TransportError):
        async with open_socket_listener(NOBODY):
            pass


class BluetoothsOptions:
    """The C library, of which sockets without Bluetooth have Bluetooth's options too, as the kernel answers for them: one after the other."""

    def __init__(self, *errors: int) -> None:
        """errors: of each call, 0 for none."""
        self._errors = list(errors)
        self.accept4: Any = l2cap_socket._libc.accept4

    def getsockopt(self, _descriptor: int, _level: int, _name: int, value: Any, _size: Any) -> int:
        ctypes.set_errno(error := self._errors.pop(0))
        value._obj.value = MTU
        return -1 if error else 0


@pytest.mark.threat("T12")
async def test_a_stranger_who_leaves_at_once_ends_no_listening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has no MTU of a peer that hung up between two calls; the listener goes on to the next."""
    monkeypatch.setattr(l2cap_socket, "_libc", BluetoothsOptions(errno.ENOTCONN, 0, errno.ENODEV))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(tmp_path / "channels"))
        listening.listen()
        listening.setblocking(False)
        listener = SocketListener(listening.fileno(), 0x80)
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as device,
        ):
            for peer in (stranger, device):
                peer.connect(str(tmp_path / "channels"))
            channel = await listener.accept()
            assert stranger.recv(1) == b""
            device.send(b"message 1")
            assert await channel.receive() == b"message 1"
            await channel.close()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as device:
            device.connect(str(tmp_path / "channels"))
            with pytest.raises(TransportError):  # of the adapter
                await listener.accept()


@pytest.mark.threat("T12")
@pytest.mark.parametrize("address", ["", "00:00:5E:00:53", "zz:00:5E:00:53:FF", "00:00:5E:00:53:FF:00"])
async def test_what_is_no_address_leads_nowhere(address: str) -> None:
    with pytest.raises(ValueError, match=r"address|hex"):
        _port(address, "public", 0x80)
    with pytest.raises(TransportError):
        async with open_socket_channel(NOBODY, (address, "random"), 0x80):
            pass


def test_an_address_is_as_the_kernel_takes_it() -> None:
    assert (
        _port("01:02:03:04:05:06", "random", 0x80)
        == (31).to_bytes(2, sys.byteorder) + b"\x80\0" + bytes([6, 5, 4, 3, 2, 1]) + b"\0\0\2\0"
    )
