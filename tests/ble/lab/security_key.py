"""Plugs a virtual security key into the guest: CTAPHID (CTAP 2.2 §11.2) behind the kernel's /dev/uhid.

The kernel and python-fido2 see a USB key at /dev/hidrawN. What it answers is `VirtualKey`'s; here are the reports: one message in
several, channels, keep-alives while it works, and a cancellation.
"""

import contextlib
import os
import secrets
import struct
import threading
from collections.abc import Iterator
from typing import Final

from fido2.ctap import STATUS
from fido2.hid import CAPABILITY, CTAPHID

from tests.companion.virtual_key import VirtualKey

_DESTROY, _OUTPUT, _CREATE2, _INPUT2 = 1, 6, 11, 12  # linux/uhid.h
_EVENT_SIZE: Final = 4380
_USB: Final = 3
_REPORT_SIZE: Final = 64
_BROADCAST: Final = 0xFFFFFFFF
_INITIAL: Final = 0x80
_KEEP_ALIVE: Final = 0.05  # seconds
# one report of 64 bytes in, one out, on the usage page of FIDO
_DESCRIPTOR: Final = bytes.fromhex("06d0f10901a1010920150026ff007508954081020921150026ff00750895409102c0")


class PluggedKey:
    """A key that is plugged in until it is pulled out."""

    def __init__(self, key: VirtualKey, name: str) -> None:
        self.key = key
        self._uhid = os.open("/dev/uhid", os.O_RDWR | os.O_CLOEXEC)
        self._writing = threading.Lock()
        self._cancelled = threading.Event()
        self._message, self._expected, self._command, self._channel = b"", 0, 0, 0
        create = struct.pack(
            "<I128s64s64sHHIIII4096s",
            *(_CREATE2, name.encode(), b"", b"", len(_DESCRIPTOR), _USB, 0x1209, 0x0001, 0, 0, _DESCRIPTOR),
        )
        os.write(self._uhid, create)
        self._reader = threading.Thread(target=self._read, name="uhid", daemon=True)
        self._reader.start()

    def pull_out(self) -> None:
        """Pull it out; once is enough."""
        if self._uhid >= 0:
            self._cancelled.set()
            with self._writing:
                os.write(self._uhid, struct.pack("<I", _DESTROY).ljust(_EVENT_SIZE, b"\0"))
                os.close(self._uhid)
                self._uhid = -1

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # pulled out
            while True:
                event = os.read(self._uhid, _EVENT_SIZE)
                if struct.unpack_from("<I", event)[0] == _OUTPUT:
                    size = struct.unpack_from("<H", event, 4 + 4096)[0]
                    self._take(event[4 : 4 + size][-_REPORT_SIZE:])  # without the report's number

    def _take(self, report: bytes) -> None:
        channel, kind = struct.unpack_from(">IB", report)
        if kind & _INITIAL:
            if kind == _INITIAL | CTAPHID.CANCEL:
                self._cancelled.set()
                return
            self._channel, self._command = channel, kind & ~_INITIAL
            self._expected, self._message = struct.unpack_from(">H", report, 5)[0], report[7:]
        else:
            self._message += report[5:]
        if len(self._message) >= self._expected:
            message = self._message[: self._expected]
            if self._command == CTAPHID.INIT:
                fresh = (
                    secrets.token_bytes(3) + b"\1" if channel == _BROADCAST else struct.pack(">I", channel)
                )
                self._send(channel, CTAPHID.INIT, message + fresh + bytes([2, 1, 0, 0, CAPABILITY.CBOR]))
            else:
                self._cancelled = threading.Event()
                work = (channel, self._command, message, self._cancelled)
                threading.Thread(target=self._work, args=work, daemon=True).start()

    def _work(self, channel: int, command: int, message: bytes, cancelled: threading.Event) -> None:
        done, status = threading.Event(), [STATUS.PROCESSING]

        def keep_alive() -> None:
            while not done.wait(_KEEP_ALIVE):
                self._send(channel, CTAPHID.KEEPALIVE, bytes([status[0]]))

        beating = threading.Thread(target=keep_alive, daemon=True)
        beating.start()
        try:
            reply = self.key.call(command, message, cancelled, lambda now: status.__setitem__(0, now))
        finally:
            done.set()
            beating.join()
        self._send(channel, command, reply)

    def _send(self, channel: int, command: int, message: bytes) -> None:
        first = struct.pack(">IBH", channel, _INITIAL | command, len(message))
        reports = [first + message[: _REPORT_SIZE - 7]]
        rest = message[_REPORT_SIZE - 7 :]
        while rest:
            reports.append(struct.pack(">IB", channel, len(reports) - 1) + rest[: _REPORT_SIZE - 5])
            rest = rest[_REPORT_SIZE - 5 :]
        with self._writing, contextlib.suppress(OSError):
            for report in reports:
                content = report.ljust(_REPORT_SIZE, b"\0")
                os.write(self._uhid, struct.pack("<IH4096s", _INPUT2, _REPORT_SIZE, content))


@contextlib.contextmanager
def plugged(key: VirtualKey, name: str = "Virtual Key") -> Iterator[PluggedKey]:
    """Plug a key in, and pull it out at the end."""
    there = PluggedKey(key, name)
    try:
        yield there
    finally:
        there.pull_out()
