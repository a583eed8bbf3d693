"""Adverts from a pipe: every kind of line, every kind of descriptor."""

import asyncio
import contextlib
import os
import pty
import sys
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headless_passkey.errors import RemoteProtocolError, TransportError
from headless_passkey.radio.pipe import MAX_LINE, PipeRadio, parse_advert_line
from headless_passkey.radio.source import Advert
from tests.programs import ROOT

SENT = bytes(range(0xE0, 0xF4))


class Pipe:
    """The writing end of a pipe whose other end is a radio that keeps its reports."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self.reports: list[str] = []
        self.radio = PipeRadio(self.reading, report=self.reports.append)

    def write(self, data: bytes) -> None:
        os.write(self.writing, data)

    def close(self) -> None:
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()
    os.close(pipe.reading)


@pytest.mark.parametrize(
    "line",
    [
        SENT.hex(),
        SENT.hex().upper(),
        SENT.hex() + "\n",
        SENT.hex() + "\r\n",
        "fff9:" + SENT.hex(),
        "FFF9:" + SENT.hex(),
        "fde2:" + SENT.hex() + "\r\n",
    ],
)
def test_a_line_is_the_service_data_in_hexadecimal(line: str) -> None:
    assert parse_advert_line(line.encode()) == Advert(service_data=SENT)


@pytest.mark.parametrize("size", [20, 24, MAX_LINE // 2])
def test_service_data_may_be_longer_than_an_advert_proper(size: int) -> None:
    assert parse_advert_line(bytes(size).hex().encode()).service_data == bytes(size)


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "got 0"),
        (b"\n", "got 0"),
        (b"fff9:", "got 0"),
        (bytes(19).hex().encode(), "got 19"),
        (bytes(20).hex().encode() + b"0", "hexadecimal"),
        (b"hello", "hexadecimal"),
        (b" " + bytes(20).hex().encode(), "hexadecimal"),
        (b"00 " * 20, "hexadecimal"),
        (b"0x" + bytes(20).hex().encode(), "hexadecimal"),
        (b"fff8:" + bytes(20).hex().encode(), "hexadecimal"),
        (b"fff9:fff9:" + bytes(20).hex().encode(), "hexadecimal"),
        (bytes(20).hex().encode() + b"\r\r\n", "hexadecimal"),
        ("\N{ARABIC-INDIC DIGIT ZERO}".encode() * 40, "hexadecimal"),
        (b"\xff\xfe\x00", "hexadecimal"),
        (bytes(MAX_LINE // 2 + 1).hex().encode(), "longer than"),
    ],
)
def test_any_other_line_is_refused_without_being_repeated(line: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason) as refused:
        parse_advert_line(line)
    assert "00000" not in str(refused.value)


@pytest.mark.threat("T12")
@given(st.binary(max_size=100) | st.text("0123456789abcdefABCDEF:\r\n fF9", max_size=100).map(str.encode))
def test_any_line_parses_or_is_refused_politely(line: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        assert len(parse_advert_line(line).service_data) >= 20


@given(st.binary(min_size=20, max_size=MAX_LINE // 2))
def test_any_service_data_survives_being_a_line(service_data: bytes) -> None:
    assert parse_advert_line(service_data.hex().encode() + b"\r\n").service_data == service_data


async def test_a_bad_line_is_reported_and_skipped_and_the_end_ends(pipe: Pipe) -> None:
    lines = [b"nonsense", SENT.hex().encode() + b"\r", b"", bytes(19).hex().encode(), SENT.hex().encode()]
    pipe.write(b"\n".join(lines))  # the last one without an end of line
    pipe.close()
    async with pipe.radio.adverts() as adverts:
        assert [advert.service_data async for advert in adverts] == [SENT, SENT]
    assert [report.split(":")[0] for report in pipe.reports] == [
        f"advert line {number} skipped" for number in (1, 3, 4)
    ]


async def test_a_line_is_heard_as_soon_as_it_is_complete(pipe: Pipe) -> None:
    async with pipe.radio.adverts() as adverts:
        hearing = asyncio.ensure_future(anext(adverts))
        for byte in SENT.hex().encode():
            pipe.write(bytes([byte]))
            await asyncio.sleep(0)
            assert not hearing.done()
        pipe.write(b"\n")
        async with asyncio.timeout(60):
            assert (await hearing).service_data == SENT


@pytest.mark.threat("T12")
async def test_an_endless_line_is_reported_once_and_costs_no_memory(pipe: Pipe) -> None:
    async with pipe.radio.adverts() as adverts:
        hearing = asyncio.ensure_future(anext(adverts))
        for _ in range(100):
            pipe.write(b"0" * 4096)
            await asyncio.sleep(0.001)
        pipe.write(b"\n" + SENT.hex().encode() + b"\n")
        async with asyncio.timeout(60):
            assert (await hearing).service_data == SENT
    assert pipe.reports == [f"advert line 1 skipped: longer than {MAX_LINE} characters"]


async def test_many_adverts_at_once_are_all_heard(pipe: Pipe) -> None:
    sent = [number.to_bytes(20, "big") for number in range(1000)]
    pipe.write(b"".join(service_data.hex().encode() + b"\n" for service_data in sent))
    pipe.close()
    async with pipe.radio.adverts() as adverts:
        assert [advert.service_data async for advert in adverts] == sent
    assert pipe.reports == []


async def test_listening_can_be_cancelled(pipe: Pipe) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), pipe.radio.adverts() as adverts:
            await anext(adverts)
    assert asyncio.get_running_loop().remove_reader(pipe.reading) is False
    assert os.get_blocking(pipe.reading)


async def test_a_regular_file_is_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "adverts"
    file.write_bytes(SENT.hex().encode() + b"\n" + SENT.hex().encode() + b"\n")
    with file.open("rb") as opened:
        async with PipeRadio(opened.fileno()).adverts() as adverts:
            assert len([advert async for advert in adverts]) == 2


async def test_dev_null_ends_at_once() -> None:
    descriptor = os.open(os.devnull, os.O_RDONLY)
    try:
        async with PipeRadio(descriptor).adverts() as adverts:
            assert [advert async for advert in adverts] == []
    finally:
        os.close(descriptor)


async def test_a_terminal_can_be_typed_at() -> None:
    ours, theirs = pty.openpty()
    try:
        tty.setraw(theirs)
        async with PipeRadio(theirs).adverts() as adverts:
            os.write(ours, SENT.hex().encode() + b"\n")
            async with asyncio.timeout(60):
                assert (await anext(adverts)).service_data == SENT
    finally:
        os.close(ours)
        os.close(theirs)


async def test_a_descriptor_that_is_not_open_is_a_transport_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    async with PipeRadio(reading).adverts() as adverts:
        with pytest.raises(TransportError, match="cannot read adverts"):
            await anext(adverts)


async def test_a_program_that_listens_to_stdin_can_end_while_nothing_comes() -> None:
    listens = (
        "import asyncio\n"
        "from headless_passkey.radio.choose import open_radio\n"
        "async def main():\n"
        "    async with asyncio.timeout(0.05), open_radio('stdin').adverts() as adverts:\n"
        "        await anext(adverts)\n"
        "try: asyncio.run(main())\n"
        "except TimeoutError: print('ended')\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", listens, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    async with asyncio.timeout(60):
        assert await process.stdout.read() == b"ended\n"
        assert await process.wait() == 0
    process.stdin.close()


async def test_without_a_report_the_log_tells_of_a_bad_line(
    pipe: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    pipe.write(b"nonsense\n")
    pipe.close()
    async with PipeRadio(pipe.reading).adverts() as adverts:
        assert [advert async for advert in adverts] == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "line 1" in caplog.text
    assert "nonsense" not in caplog.text
