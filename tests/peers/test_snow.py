"""Our Noise handshakes with the crate snow, an implementation of the Noise framework by others (in Rust).

`make interop` builds the program around the crate and runs this.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pytest

from headless_passkey.errors import RemoteProtocolError
from headless_passkey.hybrid.keys import generate, uncompressed
from headless_passkey.hybrid.noise import KNPSK0, NKPSK0, CipherState, HandshakeState, Pattern

SNOW: Final = os.environ.get("SNOW_PEER", "")
PSK: Final = bytes(range(32))
ROUNDS: Final = 3

pytestmark = pytest.mark.skipif(not SNOW, reason="the peer is not built: make interop")


@dataclass
class Snow:
    """The program, by the lines that it reads and prints."""

    process: subprocess.Popen[str]

    def write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().rstrip("\n")
        assert not line.startswith("failed"), line
        return line

    def message(self) -> bytes:
        return bytes.fromhex(self.read())

    def asked(self, what: str, message: bytes) -> bytes:
        self.write(f"{what} {message.hex()}")
        return self.message()


@contextmanager
def shaking(pattern: Pattern, *, initiates: bool, psk: bytes = PSK) -> Iterator[tuple[Snow, HandshakeState]]:
    """Both ends, before the first message. initiates: whether we do. psk: snow's."""
    static = generate()
    ours = initiates is (pattern is KNPSK0)  # whether the one static key is ours
    words = [
        SNOW,
        "responder" if initiates else "initiator",
        pattern.protocol_name.decode(),
        pattern.prologue.hex(),
    ]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        snow = Snow(process)
        snow.write(psk.hex())
        scalar = static.private_numbers().private_value.to_bytes(32, "big")
        snow.write(f"rs {uncompressed(static.public_key()).hex()}" if ours else f"s {scalar.hex()}")
        yield (
            snow,
            HandshakeState(
                pattern,
                initiator=initiates,
                psk=PSK,
                s=static if ours else None,
                rs=None if ours else static.public_key(),
                e=None,
            ),
        )


def exchange(snow: Snow, sending: CipherState, receiving: CipherState) -> None:
    for number in range(ROUNDS):
        plaintext = bytes([number]) * (number * 1000)
        assert snow.asked("open", sending.encrypt(plaintext)) == plaintext
        assert receiving.decrypt(snow.asked("seal", plaintext)) == plaintext


@pytest.mark.parametrize("pattern", [KNPSK0, NKPSK0], ids=["KNpsk0", "NKpsk0"])
def test_snow_answers_our_handshake_and_opens_what_we_seal(pattern: Pattern) -> None:
    with shaking(pattern, initiates=True) as (snow, state):
        snow.write(state.write_message().hex())
        state.read_message(snow.message())
        assert snow.read() == f"hash {state.finished().h.hex()}"
        sending, receiving = state.finished().split()
        exchange(snow, sending, receiving)


@pytest.mark.parametrize("pattern", [KNPSK0, NKPSK0], ids=["KNpsk0", "NKpsk0"])
def test_snow_begins_a_handshake_that_we_answer(pattern: Pattern) -> None:
    with shaking(pattern, initiates=False) as (snow, state):
        state.read_message(snow.message())
        snow.write(state.write_message().hex())
        assert snow.read() == f"hash {state.finished().h.hex()}"
        receiving, sending = state.finished().split()
        exchange(snow, sending, receiving)


def test_snow_and_we_refuse_each_other_with_another_psk() -> None:
    with shaking(KNPSK0, initiates=False, psk=bytes(32)) as (snow, state):
        message = snow.message()
        with pytest.raises(RemoteProtocolError, match="pre-shared key"):
            state.read_message(message)
        snow.process.kill()
    with shaking(KNPSK0, initiates=True, psk=bytes(32)) as (snow, state):
        snow.write(state.write_message().hex())
        assert snow.process.wait() == 1
