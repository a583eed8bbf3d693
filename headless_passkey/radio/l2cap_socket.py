"""L2CAP channels over the kernel's sockets (Linux).

Python before 3.14 cannot name the type of a Low Energy address, and many builds know no Bluetooth sockets at all, so the
calls that take an address go to the C library ([ADR 41](docs/adr/0041-the-direct-channel.md)). The descriptor is used with `os.read` and
`os.write`: a read gives one SDU, and a write sends one.
"""

import asyncio
import ctypes
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from headless_passkey.errors import TransportError, TransportReason
from headless_passkey.mends import transport_error
from headless_passkey.radio.l2cap import CONNECT_TIMEOUT, MIN_MTU, MTU, L2capChannel
from headless_passkey.radio.source import AddressType

BACKLOG: Final = 4

_FAMILY: Final = 31  # AF_BLUETOOTH
_L2CAP: Final = 0  # BTPROTO_L2CAP
_SOL_BLUETOOTH: Final = 274
_SNDMTU: Final = 12
_RCVMTU: Final = 13
_TYPES: Final[dict[AddressType, int]] = {"public": 1, "random": 2}  # BDADDR_LE_PUBLIC, BDADDR_LE_RANDOM
_PORT_SIZE: Final = 14  # bytes of struct sockaddr_l2

_T = TypeVar("_T")


class SocketChannel:
    """A channel of the kernel."""

    def __init__(self, descriptor: int, mtu: int) -> None:
        """descriptor: of a connected socket, which this object owns. mtu: of the peer."""
        self._descriptor: int | None = descriptor
        self._mtu = max(mtu, MIN_MTU)
        self._waiting: set[asyncio.Future[None]] = set()  # of calls that wait for the descriptor

    @property
    def mtu(self) -> int:
        return self._mtu

    async def send(self, sdu: bytes) -> None:
        await self._when_ready(lambda descriptor: os.write(descriptor, sdu), writing=True)

    async def receive(self) -> bytes:
        sdu = await self._when_ready(lambda descriptor: os.read(descriptor, MTU), writing=False)
        if not sdu:
            raise _closed()
        return sdu

    async def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(descriptor)  # before its number is another file's
        loop.remove_writer(descriptor)
        os.close(descriptor)
        for ready in self._waiting:
            if not ready.done():
                ready.set_result(None)
        self._waiting.clear()

    async def _when_ready(self, use: Callable[[int], _T], *, writing: bool) -> _T:
        while self._descriptor is not None:
            try:
                return use(self._descriptor)
            except BlockingIOError:
                await _ready(self._descriptor, writing=writing, waiting=self._waiting)
            except OSError as error:
                raise _broken(error) from error
        raise _closed()


class SocketListener:
    """A socket that takes channels from anybody near."""

    def __init__(self, descriptor: int, psm: int) -> None:
        self._descriptor = descriptor
        self.psm = psm

    async def accept(self) -> L2capChannel:
        """The next channel, which the caller closes; `TransportError` when the adapter is lost."""
        try:
            while True:
                descriptor = await _when_ready(self._descriptor, _accept, writing=False)
                try:
                    return _channel(descriptor)
                except OSError as error:
                    if error.errno != errno.ENOTCONN:  # whoever came has left already
                        raise
        except OSError as error:
            raise _broken(error) from error


@asynccontextmanager
async def open_socket_channel(
    own: tuple[str, AddressType], peer: tuple[str, AddressType], psm: int
) -> AsyncIterator[L2capChannel]:
    """Open a channel from the adapter with the address `own` to whoever listens at `peer`. `TransportError`."""
    try:
        descriptor = _new(own)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await _connect(descriptor, _port(*peer, psm))
        except BaseException:
            os.close(descriptor)
            raise
        channel = _channel(descriptor)
    except TimeoutError as error:
        raise TransportError(
            "the phone cannot be reached over Bluetooth", reason=TransportReason.UNREACHABLE
        ) from error
    except (OSError, struct.error, ValueError) as error:
        raise _broken(error) from error
    try:
        yield channel
    finally:
        await channel.close()


@asynccontextmanager
async def open_socket_listener(own: tuple[str, AddressType]) -> AsyncIterator[SocketListener]:
    """Listen at the adapter with the address `own`, at a PSM that the kernel chooses. `TransportError`."""
    try:
        descriptor = _new(own)
        try:
            _call_plain(_libc.listen, descriptor, BACKLOG)
            psm = _own_psm(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
    except (OSError, ValueError) as error:
        raise _broken(error) from error
    try:
        yield SocketListener(descriptor, psm)
    finally:
        os.close(descriptor)


_libc: Final = ctypes.CDLL(None, use_errno=True)


def _new(own: tuple[str, AddressType]) -> int:
    """A socket at an adapter, for one channel or for a listener, which takes SDUs of `MTU` bytes."""
    kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    # detached: methods of the object fail, or worse, where Python was built without Bluetooth
    descriptor = socket.socket(_FAMILY, kind, _L2CAP).detach()
    try:
        _call(_libc.bind, descriptor, _port(*own, 0))
        value = struct.pack("=H", MTU)  # after the address, which says that this is Low Energy
        _call_plain(_libc.setsockopt, descriptor, _SOL_BLUETOOTH, _RCVMTU, value, len(value))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _port(address: str, kind: AddressType, psm: int) -> bytes:
    """Make a struct sockaddr_l2; `ValueError` for a malformed address."""
    octets = bytes.fromhex(address.replace(":", ""))
    if len(octets) != 6:
        raise ValueError("a Bluetooth address has six bytes")
    return struct.pack("=H", _FAMILY) + struct.pack("<H6sHBx", psm, octets[::-1], 0, _TYPES[kind])


def _own_psm(descriptor: int) -> int:
    port, size = ctypes.create_string_buffer(_PORT_SIZE), ctypes.c_uint32(_PORT_SIZE)
    _call_plain(_libc.getsockname, descriptor, port, ctypes.byref(size))
    psm: int = struct.unpack_from("<H", port.raw, 2)[0]
    return psm


def _channel(descriptor: int) -> SocketChannel:
    """The channel of a connected socket, which is closed when this fails."""
    mtu, size = ctypes.c_uint16(0), ctypes.c_uint32(2)
    try:
        _call_plain(
            _libc.getsockopt,
            descriptor,
            _SOL_BLUETOOTH,
            _SNDMTU,
            ctypes.byref(mtu),
            ctypes.byref(size),
        )
    except OSError:
        os.close(descriptor)
        raise
    return SocketChannel(descriptor, mtu.value)


async def _connect(descriptor: int, port: bytes) -> None:
    try:
        _call(_libc.connect, descriptor, port)
    except OSError as error:
        if error.errno != errno.EINPROGRESS:
            raise
        await _ready(descriptor, writing=True)
        value, size = ctypes.c_int(0), ctypes.c_uint32(4)
        _call_plain(
            _libc.getsockopt,
            descriptor,
            socket.SOL_SOCKET,
            socket.SO_ERROR,
            ctypes.byref(value),
            ctypes.byref(size),
        )
        if value.value:
            raise OSError(value.value, os.strerror(value.value)) from None


def _accept(descriptor: int) -> int:
    flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    return _call_plain(_libc.accept4, descriptor, None, None, flags)


def _call(function: Callable[..., int], descriptor: int, port: bytes) -> int:
    return _call_plain(function, descriptor, port, len(port))


def _call_plain(function: Callable[..., int], *arguments: object) -> int:
    """Call the C library; `OSError` as its errno says."""
    result = function(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


async def _when_ready(descriptor: int, use: Callable[[int], _T], *, writing: bool) -> _T:
    while True:
        try:
            return use(descriptor)
        except BlockingIOError:
            await _ready(descriptor, writing=writing)


async def _ready(
    descriptor: int, *, writing: bool, waiting: "set[asyncio.Future[None]] | None" = None
) -> None:
    """Wait until a descriptor is ready. waiting: holds a future meanwhile; whoever closes the descriptor takes it out."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    waiting = set() if waiting is None else waiting
    waiting.add(ready)

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    (loop.add_writer if writing else loop.add_reader)(descriptor, wake)
    try:
        await ready
    finally:
        if ready in waiting:
            waiting.remove(ready)
            (loop.remove_writer if writing else loop.remove_reader)(descriptor)


def _closed() -> TransportError:
    what = "the other end closed the direct channel"
    return transport_error(what, TransportReason.UNREACHABLE, "hung up")


def _broken(error: Exception) -> TransportError:
    """Translate an error of a socket."""
    match error:
        case OSError(errno=errno.ECONNRESET | errno.EPIPE | errno.ENOTCONN | errno.ESHUTDOWN):
            return _closed()
        case OSError(errno=errno.EACCES | errno.EPERM):
            return transport_error("this program may not use Bluetooth", TransportReason.BLUETOOTH_FORBIDDEN)
        case OSError(errno=errno.EAFNOSUPPORT | errno.EPROTONOSUPPORT):
            return TransportError(
                "this kernel has no Bluetooth sockets", reason=TransportReason.ADAPTER_UNABLE
            )
    why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    what = f"the direct channel over Bluetooth failed ({why})"
    return transport_error(what, TransportReason.UNREACHABLE, "Bluetooth")
