"""A junction between the programs and one server, or several that do the same: it carries TCP, and cuts, delays and swallows what one of the programs sends.

Who has connected is found in ``/proc``: the programs call a server by one address, as its clients do in the world, since their proofs and
origins name it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

PIECE: Final = 1 << 16  # bytes
EVENT: Final = 0x04  # HCI packet types of UART transport (H4)
ACL: Final = 0x02
LE_META: Final = 0x3E
REPORTS: Final = (0x02, 0x0D)  # LE advertising report, LE extended advertising report


@dataclass(slots=True)
class Trouble:
    """What is wrong with a link now."""

    cut: bool = False
    swallows: bool = False
    deaf: bool = False  # adverts do not come through
    delay: float = 0.0  # seconds
    met: int = 0  # connections, pieces and adverts that it has broken, held up or dropped


@dataclass(slots=True, eq=False)
class _Call:
    """A connection that is carried."""

    party: str
    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    swallowed: bool = False

    def abort(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


@dataclass(slots=True)
class Junction:
    """In front of one server, or of several that do the same, to which calls go in turn."""

    pids: Callable[[], Mapping[int, str]]  # the programs' names by process id
    targets: tuple[int, ...] = ()  # the servers' ports
    port: int = 0
    hci: bool = False  # what is carried is HCI, as to an emulated controller
    troubles: dict[str, Trouble] = field(default_factory=dict)  # by program
    calls: set[_Call] = field(default_factory=set)
    _turn: int = 0  # calls that were made

    @classmethod
    @asynccontextmanager
    async def open(cls, pids: Callable[[], Mapping[int, str]]) -> AsyncIterator["Junction"]:
        """Listen; set `targets` before anybody calls."""
        junction = cls(pids)
        carrying: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(junction._carry(reader, writer))
            carrying.add(task)
            task.add_done_callback(carrying.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        junction.port = server.sockets[0].getsockname()[1]
        try:
            yield junction
        finally:
            server.close()
            for task in [*carrying]:
                task.cancel()
            if carrying:
                await asyncio.wait([*carrying])

    def break_calls(self, party: str, *, swallowed_only: bool = False) -> None:
        """Break the connections of a program. swallowed_only: those that have lost bytes."""
        for call in [*self.calls]:
            if call.party == party and (call.swallowed or not swallowed_only):
                self._trouble(party).met += 1
                call.abort()

    async def _carry(self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        try:
            pids = self.pids()
            process = caller(to_near.get_extra_info("peername")[1], self.port, pids)
            party = "" if process is None else pids[process]
            trouble = self._trouble(party)
            if trouble.cut:
                trouble.met += 1
                return
            far, to_far = await self._reached()
        except OSError:  # the server is not there
            return
        else:
            await self._carry_both(_Call(party, (to_near, to_far)), near, far)
        finally:
            to_near.transport.abort()

    async def _reached(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect with the server whose turn it is, or with the next that is there; `OSError` when none is."""
        for _ in self.targets[1:]:
            with suppress(OSError):
                return await self._connected()
        return await self._connected()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._turn += 1
        return await asyncio.open_connection("127.0.0.1", self.targets[self._turn % len(self.targets)])

    async def _carry_both(self, call: _Call, near: asyncio.StreamReader, far: asyncio.StreamReader) -> None:
        """Carry both directions, until both have ended or one breaks."""
        to_near, to_far = call.writers
        self.calls.add(call)
        both = [
            asyncio.ensure_future(self._pump(call, near, to_far)),
            asyncio.ensure_future(self._pump(call, far, to_near, reports=True)),
        ]
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
            if all(task.exception() is None for task in done):
                for writer in call.writers:  # which have still to send what was written
                    writer.close()
                    with suppress(OSError):
                        await writer.wait_closed()
        finally:
            call.abort()
            for task in both:
                task.cancel()
            await asyncio.wait(both)
            for task in both:
                _ = task.cancelled() or task.exception()  # retrieved, so that asyncio logs no warning
            self.calls.discard(call)

    async def _pump(
        self,
        call: _Call,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        reports: bool = False,
    ) -> None:
        """Carry one direction to its end. reports: this is the one in which adverts come."""
        hearing = _Hearing()
        while data := await reader.read(PIECE):
            trouble = self._trouble(call.party)
            if trouble.delay:
                trouble.met += 1
                await asyncio.sleep(trouble.delay)
            if trouble.swallows:
                trouble.met += 1
                call.swallowed = True
                continue
            if reports and self.hci:
                data, dropped = hearing.take(data, deaf=trouble.deaf)
                trouble.met += dropped
            writer.write(data)
            await writer.drain()
        if call.swallowed:
            raise ConnectionResetError
        if writer.can_write_eof():
            writer.write_eof()

    def _trouble(self, party: str) -> Trouble:
        return self.troubles.get(party) or Trouble()


@dataclass(slots=True)
class _Hearing:
    """HCI packets of a controller, and with deaf ears all but its reports of adverts."""

    rest: bytes = b""

    def take(self, data: bytes, *, deaf: bool) -> tuple[bytes, int]:
        """What is carried on of `data`, whole packets; and how many reports are not."""
        self.rest += data
        heard, dropped = b"", 0
        while (size := _packet_size(self.rest)) is not None and len(self.rest) >= size:
            packet, self.rest = self.rest[:size], self.rest[size:]
            is_report = packet[0] == EVENT and packet[1] == LE_META and packet[3] in REPORTS
            if deaf and is_report:
                dropped += 1
            else:
                heard += packet
        return heard, dropped


def _packet_size(data: bytes) -> int | None:
    """The size of the packet at the beginning of `data`, None while that is not known."""
    if len(data) < 5:
        return 3 + data[2] if len(data) >= 3 and data[0] == EVENT else None
    return 3 + data[2] if data[0] == EVENT else 5 + int.from_bytes(data[3:5], "little")


def caller(port: int, to: int, pids: Mapping[int, str]) -> int | None:
    """Which of the processes `pids` has connected from a port of this machine to another; None when it has gone, or is none of them."""
    socket = _socket(port, to)
    return next((pid for pid in pids if socket is not None and socket in descriptors(pid)), None)


def _socket(port: int, to: int) -> str | None:
    return next((socket for socket, near, far in _connections() if (near, far) == (port, to)), None)


def _connections() -> Iterator[tuple[str, int, int]]:
    """The sockets of TCP, as descriptors name them, with the ports of both ends."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, near, far, *rest = line.split()
        yield f"socket:[{rest[6]}]", int(near.rpartition(":")[2], 16), int(far.rpartition(":")[2], 16)


def descriptors(pid: int) -> list[str]:
    """What the descriptors of a process are."""
    found = []
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.append(str(entry.readlink()))
    return found


def sockets(*pids: int, but_to: Collection[int] = ()) -> int:
    """How many sockets processes have open; one that several descriptors are of counts once. but_to: not those to these ports."""
    left_out = {socket for socket, _, far in _connections() if far in but_to}
    return len({each for pid in pids for each in descriptors(pid) if each.startswith("socket:")} - left_out)


def family(*pids: int) -> dict[int, int]:
    """These processes, and all that run and were started by one of them or by theirs; each with the one of `pids` it belongs to."""
    born: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended
                # the name of the program, in parentheses, may hold anything
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                born.setdefault(int(parent), []).append(int(entry.name))
    found, waiting = {pid: pid for pid in pids}, [*pids]
    for each in waiting:
        for child in born.get(each, []):
            found[child] = found[each]
            waiting.append(child)
    return found
