"""The guest's air: emulated controllers behind the kernel's Bluetooth adapters, and for hosts that come by TCP.

``python -m tests.ble.lab.controllers FOLDER COUNT`` plugs in COUNT adapters and then takes orders on the Unix
socket FOLDER/controllers. An order is a line and so is its answer: ``plug``, ``unplug hci1``, ``rssi hci1 -90``
(dBm at which everybody hears that adapter), ``adverts hci1`` (see `adverts`) and ``list``. FOLDER/air holds the
name of bumble's transport to one more controller.
"""

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from companion_push.emulation.controllers import Air, Host

CONTROLLERS: Final = 64
VHCI: Final = "/dev/vhci"
VENDOR: Final = b"\xff"  # opens the packets between this program and the kernel's driver
PRIMARY: Final = b"\x00"
PACKET: Final = 4096  # bytes, more than any


class Adapter(asyncio.Transport):
    """One of the kernel's adapters: what it sends to its controller is read here, a packet at a time."""

    def __init__(self, air: Air) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._file = os.open(VHCI, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        os.write(self._file, VENDOR + PRIMARY)
        answer = os.read(self._file, PACKET)
        self.name = f"hci{int.from_bytes(answer[2:4], 'little')}"
        self.host = Host(air)
        self._loop.add_reader(self._file, self._read)
        self._open = True
        self.host.connection_made(self)

    def _read(self) -> None:
        try:
            packet = os.read(self._file, PACKET)
        except BlockingIOError:
            return
        if packet and not packet.startswith(VENDOR):
            self.host.data_received(packet)

    def write(self, data: Any) -> None:
        """A packet for the kernel."""
        os.write(self._file, data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return not self._open

    def abort(self) -> None:
        """Pull the adapter out."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._file)
            os.close(self._file)
            self.host.connection_lost(None)


class Bench:
    """The adapters that are plugged in."""

    def __init__(self) -> None:
        self.air = Air(CONTROLLERS)
        self._adapters: dict[str, Adapter] = {}

    def plug(self) -> str:
        adapter = Adapter(self.air)
        self._adapters[adapter.name] = adapter
        return adapter.name

    def obey(self, order: str) -> str:
        """The answer to an order; `LookupError` or `ValueError` for one that cannot be followed."""
        match order.split():
            case ["plug"]:
                return self.plug()
            case ["unplug", name]:
                self._adapters.pop(name).abort()
                return name
            case ["rssi", name, dbm]:
                self._adapters[name].host.rssi = int(dbm)
                return name
            case ["adverts", name]:
                return " ".join(adverts(self._adapters[name].host))
            case ["list"]:
                return " ".join(sorted(self._adapters))
        raise ValueError(order)


def adverts(host: Host) -> Iterator[str]:
    """What a controller was told to send: interval (0.625 ms), properties and data, each in hexadecimal."""
    controller = host._controller
    for advertising_set in controller.advertising_sets.values() if controller is not None else ():
        told = advertising_set.parameters
        if advertising_set.enabled and told is not None:
            interval = told.primary_advertising_interval_min
            yield f"{interval:x}:{told.advertising_event_properties:x}:{advertising_set.data.hex()}"


async def main(folder: Path, count: int) -> None:
    bench = Bench()
    for _ in range(count):
        bench.plug()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            try:
                answer = bench.obey(line.decode())
            except (LookupError, ValueError, OSError) as error:
                answer = f"! {error!r}"
            writer.write(f"{answer}\n".encode())
        writer.close()

    server = await asyncio.get_running_loop().create_server(lambda: Host(bench.air), "127.0.0.1", 0)
    (folder / "air").write_text(f"tcp-client:127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    async with server, await asyncio.start_unix_server(serve, folder / "controllers") as orders:
        await orders.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
