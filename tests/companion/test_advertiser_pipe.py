"""The advert as lines of a pipe."""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Iterator

import pytest

from companion_push.companion.advertiser import pipe as pipe_module
from companion_push.companion.advertiser.choose import open_advertiser
from companion_push.companion.advertiser.pipe import PipeAdvertiser
from headless_passkey.errors import SetupError, SetupReason, TransportError, UsageError
from headless_passkey.radio.pipe import PipeRadio
from tests.programs import ROOT

SENT = bytes(range(0xE0, 0xF4))


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """A pipe, and adverts in quick succession."""
    monkeypatch.setattr(pipe_module, "INTERVAL", 0.01)
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        with contextlib.suppress(OSError):  # the test has closed it
            os.close(descriptor)


async def test_the_line_is_printed_at_once_and_again_until_left(ends: tuple[int, int]) -> None:
    reading, writing = ends
    line = SENT.hex().encode() + b"\n"
    async with PipeAdvertiser(writing).advertise(SENT):
        assert os.read(reading, 1000) == line
        async with PipeRadio(reading).adverts() as adverts, asyncio.timeout(60):
            assert {(await anext(adverts)).service_data for _ in range(3)} == {SENT}
    os.close(writing)
    printed = b""
    while chunk := os.read(reading, 4096):
        printed += chunk
    assert printed == line * (len(printed) // len(line))


async def test_a_reader_that_stands_still_stops_nothing_and_reads_on_later(ends: tuple[int, int]) -> None:
    reading, writing = ends
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"\n")
    os.set_blocking(writing, True)
    too_late = threading.Timer(30, os.read, (reading, 1 << 20))  # a safety net, so that a hang is a failure
    too_late.start()
    try:
        async with PipeAdvertiser(writing).advertise(SENT):
            await asyncio.sleep(0.1)  # it is to be printed again meanwhile
            assert too_late.is_alive()
            os.read(reading, 1 << 20)
            async with PipeRadio(reading).adverts() as adverts, asyncio.timeout(60):
                assert (await anext(adverts)).service_data == SENT
    finally:
        too_late.cancel()


async def test_half_a_second_lies_between_two_lines() -> None:
    assert pipe_module.INTERVAL == 0.5


async def test_when_nobody_reads_any_more_what_runs_inside_ends_with_a_transport_error(
    ends: tuple[int, int],
) -> None:
    reading, writing = ends

    async def phone() -> None:
        async with PipeAdvertiser(writing).advertise(SENT):
            os.close(reading)
            await asyncio.Event().wait()

    async with asyncio.timeout(60):
        with pytest.raises(TransportError, match="nobody reads"):
            await phone()


async def test_an_error_that_nobody_expected_while_printing_is_raised_as_it_is(
    ends: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    async def phone() -> None:
        async with PipeAdvertiser(ends[1]).advertise(SENT):
            monkeypatch.setattr(PipeAdvertiser, "_write", broken)
            await asyncio.Event().wait()

    async with asyncio.timeout(60):
        with pytest.raises(ValueError, match="a bug"):
            await phone()


async def test_when_nobody_reads_to_begin_with_it_is_a_transport_error(ends: tuple[int, int]) -> None:
    reading, writing = ends
    os.close(reading)
    with pytest.raises(TransportError, match="cannot print"):
        async with PipeAdvertiser(writing).advertise(SENT):
            pass


async def test_cancelling_ends_the_printing(ends: tuple[int, int]) -> None:
    _reading, writing = ends
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.03), PipeAdvertiser(writing).advertise(SENT):
            await asyncio.Event().wait()
    assert len(asyncio.all_tasks()) == 1


async def test_a_broken_stdout_costs_no_second_error_when_the_program_ends() -> None:
    advertises = (
        "import asyncio, sys\n"
        "from companion_push.companion.advertiser.choose import open_advertiser\n"
        "from headless_passkey.errors import TransportError\n"
        "async def main():\n"
        "    print('first')\n"
        "    async with open_advertiser('stdout').advertise(bytes(20)):\n"
        "        await asyncio.Event().wait()\n"
        "try: asyncio.run(main())\n"
        "except TransportError: sys.exit(4)\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        advertises,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert await process.stdout.readline() == b"first\n"
    assert await process.stdout.readline() == b"00" * 20 + b"\n"
    process.stdout._transport.close()  # type: ignore[attr-defined]
    async with asyncio.timeout(60):
        assert await process.wait() == 4
        assert await process.stderr.read() == b""


@pytest.mark.parametrize("spec", ["", "bumble", "bumble:", "stdin", "stdout:"])
def test_another_name_is_a_usage_error(spec: str) -> None:
    with pytest.raises(UsageError, match="no such radio"):
        open_advertiser(spec)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "companion_push.companion.advertiser.bumble", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "bumble"] or ["bumble"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SetupError, match="is not installed") as missing:
        open_advertiser("bumble:usb:0")
    assert missing.value.reason is SetupReason.MISSING_PACKAGE
    assert missing.value.advice == "`pip install '.[emulation]'` in the clone of headless-passkey"
