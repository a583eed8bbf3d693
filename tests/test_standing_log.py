"""No server stands still because of its log: not where nobody reads it, nor where who read it has gone, nor on a full disk."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import aiohttp
import pytest

from program_parts import log_thread
from program_parts.log_thread import LineWriter
from tests.programs import ROOT, fill, nobody_reads
from tests.test_servers import PATIENCE, PROGRAMS
from tests.test_serving import port_of, words


@contextlib.contextmanager
def who_read_has_gone() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@contextlib.contextmanager
def full_disk() -> Iterator[int]:
    with Path("/dev/full").open("wb") as full:
        yield full.fileno()


@pytest.mark.threat("T17")
@pytest.mark.parametrize("name", PROGRAMS)
async def test_a_server_answers_and_ends_whatever_becomes_of_its_log(name: str, tmp_path: Path) -> None:
    async def answers(log: Callable[[], AbstractContextManager[int]]) -> None:
        folder = tmp_path / log.__name__
        folder.mkdir()
        with log() as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *words(name, folder, "--log-level=info"), "--connections=20",
                cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=stderr,
            )  # fmt: skip
            try:
                assert process.stdout is not None
                port = port_of((await process.stdout.readline()).decode().strip())
                for _ in range(2):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.write(b"this is not HTTP\r\n\r\n")  # which is a line of log
                    assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
                    writer.close()
                    await writer.wait_closed()
                async with (
                    aiohttp.ClientSession() as session,
                    session.get(f"http://127.0.0.1:{port}/livez") as response,
                ):
                    assert response.status in (200, 204)
                process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    async with asyncio.timeout(PATIENCE * 3):
        await asyncio.gather(*map(answers, (nobody_reads, who_read_has_gone, full_disk)))


# The thread


def left_out(count: int) -> str:
    return f"{count} left out\n"


def test_lines_that_nobody_takes_are_left_out_and_counted_when_somebody_does() -> None:
    reader, writer = os.pipe()
    fill(writer)
    writing = LineWriter(writer, left_out=left_out)
    for number in range(log_thread.MAX_LINES + 500):
        writing.write(f"line {number}\n")
    heard = bytearray()

    def read() -> None:
        while more := os.read(reader, 1 << 16):
            heard.extend(more)

    reading = threading.Thread(target=read)
    reading.start()
    writing._lines.put(None)
    writing._thread.join()
    os.close(writer)
    reading.join()
    os.close(reader)
    *lines, last = heard.decode().lstrip("x").splitlines()
    assert lines == [f"line {number}" for number in range(len(lines))]
    assert log_thread.MAX_LINES <= len(lines) <= log_thread.MAX_LINES + 1
    assert last == f"{log_thread.MAX_LINES + 500 - len(lines)} left out"


def test_after_a_disk_was_full_the_log_goes_on_with_whole_lines_and_says_how_many_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, write = [4], os.write

    def with_room(descriptor: int, data: bytes) -> int:
        if threading.current_thread().name != "log" or not room:
            return write(descriptor, data)
        if room[0] == 0:
            raise OSError(28, "No space left on device")
        done = write(descriptor, bytes(data[: room[0]]))
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", with_room)
    with (tmp_path / "log").open("wb") as file:
        writing = LineWriter(file.fileno(), left_out=left_out)
        for number in range(3):
            writing.write(f"line {number}\n")
        while writing._missing != 3:
            pass
        room.clear()
        writing.write("line 3\n")
        writing.end()
    assert (tmp_path / "log").read_text() == "line\nline 3\n3 left out\n"


def test_the_end_does_not_wait_for_who_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_thread, "END_SECONDS", 0.0)
    reader, writer = os.pipe()
    fill(writer)
    writing = LineWriter(writer, left_out=left_out)
    writing.write("line\n")
    writing.end()
    os.write(writer, b"at the end of the program")
    os.close(writer)
    os.close(reader)  # which ends the thread
    writing._thread.join()


def test_what_is_left_out_is_said_in_the_format_of_the_log() -> None:
    handler = log_thread._ThreadHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    assert handler._left_out(7) == "WARNING 7 lines of the log were left out, since nobody took them\n"
    handler.writer.end()
