"""examples/own_radio.py against the software phone, as docs/how-to/own-radio.md runs it."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import own_radio
import pytest

from headless_passkey.errors import TransportError
from headless_passkey.hybrid.authenticator import PhoneTransaction
from headless_passkey.hybrid.client_platform import QrTransaction
from headless_passkey.hybrid.fido_url import RequestKind
from tests.programs import ROOT

PAGE = ROOT / "docs" / "how-to" / "own-radio.md"


async def test_the_page_runs_as_it_stands() -> None:
    (script,) = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *("sh", "-euc", script),
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    registration, authentication = map(json.loads, stdout.splitlines())
    assert "attestationObject" in registration["response"]
    assert "signature" in authentication["response"]
    assert registration["id"] == authentication["id"]


def test_it_loads_neither_aiohttp_nor_bleak_nor_asyncio() -> None:
    code = "import sys, own_radio; print({'aiohttp', 'asyncio', 'bleak'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}/examples"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"


def test_the_radio_skips_noise_and_other_peoples_phones() -> None:
    ours = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=0)
    theirs = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=0)

    def lines() -> Iterator[bytes]:
        yield b"not hexadecimal\n"
        for transaction in (theirs, ours):
            phone = PhoneTransaction(transaction.url)
            yield phone.advertise(routing_id=b"abc", tunnel_domain=300).service_data.hex().encode() + b"\n"

    assert own_radio.hear(ours, own_radio.adverts_from(lines())).routing_id == b"abc"


def test_a_radio_that_ends_is_an_error() -> None:
    transaction = QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=0)
    with pytest.raises(TransportError, match="radio"):
        own_radio.hear(transaction, own_radio.adverts_from([]))
