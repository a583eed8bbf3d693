"""How fast the protocol core is, compared with the cryptography that it needs in any case.

    make bench                                         measure, print, write benchmarks/RESULTS.md
    PYTHONPATH=examples python benchmarks/core.py      measure and print

Everything runs in one process on one thread; subject and baseline run in turns (`measure`). Ratios can be
compared between machines; times cannot.
"""

import argparse
import asyncio
import datetime as dt
import hmac
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from shutil import which
from statistics import median
from typing import Any, Final

import cryptography
from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from measure import HEADINGS, Row, compare, shown, table, timed
from whole_sign_in import direct_sign_ins, sign_ins

from headless_passkey.hybrid.client_platform import QrTransaction
from headless_passkey.hybrid.eid import Eid, open_with_any, seal_advert
from headless_passkey.hybrid.fido_url import FidoUrl, RequestKind
from headless_passkey.hybrid.messages import MessageType, frame, pad, parse_frame, unpad
from headless_passkey.hybrid.noise import CipherState, Initiator, Responder

ROOT: Final = Path(__file__).parent.parent
RESULTS: Final = ROOT / "benchmarks" / "RESULTS.md"
COMMAND: Final = "make bench"
HEADING: Final = "# How fast the core is"
SNOW: Final = "snow 0.10.0"
BUILDING: Final = 1200.0  # seconds
BEGAN: Final = os.getloadavg()[0]  # the load when the benchmark began
NOW: Final = 1_790_000_000
CURVE: Final = ec.SECP256R1()
UNWANTED: Final = ("asyncio", "socket", "ssl", "logging", "aiohttp", "bleak", "fido2", "fido2.hid", "hid")
BENEATH: Final = (
    "import dataclasses, enum, hashlib, hmac, secrets, typing; from cryptography.hazmat.primitives.asymmetric import ec;"
    "from cryptography.hazmat.primitives import ciphers, serialization;"
    "from cryptography.hazmat.primitives.ciphers import aead; from cryptography.hazmat.primitives.kdf import hkdf"
)

Call = tuple[int, str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the protocol core.")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--note", default="", help="a sentence about the circumstances, for the page")
    args = parser.parse_args()
    for name in ("bumble", "companion_push.companion.phone"):  # which tells that there is no tunnel service
        logging.getLogger(name).setLevel(logging.CRITICAL)
    page = "\n".join(_page(args.note)) + "\n"
    print(page)
    if args.write:
        put_section(HEADING, page)


def put_section(heading: str, page: str) -> None:
    """Put `page`, which begins with `heading`, in the place of that section of the results, or at their end."""
    before, _, after = RESULTS.read_text(encoding="utf-8").partition(heading + "\n")
    _, _, others = after.partition("\n# ")
    RESULTS.write_text(
        before.rstrip() + "\n\n" + page + (f"\n# {others}" if others else ""), encoding="utf-8"
    )


def _page(note: str) -> list[str]:
    kn, nk = handshake_calls(), handshake_calls()
    peer = snow()
    not_run = f" {SNOW} was not run: {peer}." if isinstance(peer, str) else ""
    rows = [
        compare("handshake KNpsk0, both roles", kn_handshake(), "its OpenSSL calls", in_a_row(kn), aim=1.5),
        compare("handshake NKpsk0, both roles", nk_handshake(), "its OpenSSL calls", in_a_row(nk), aim=1.5),
        *handshakes_of_snow(peer),
        *foreign_adverts(),
        *one_kibibyte(),
        *fido_urls(),
    ]
    imports, loaded, unwanted = fresh_import()
    times = asyncio.run(sign_ins())
    directly = asyncio.run(direct_sign_ins(in_a_row(kn)))
    rows += [
        *imports,
        Row(what=f"sign-in, {len(times)} in one process", seconds=median(times)),
        Row.of_pairs(
            f"sign-in over the direct channel, {len(directly)} in one process",
            "its radio and OpenSSL calls",
            directly,
            aim=2,
        ),
    ]
    return [
        HEADING,
        "",
        made(),
        *([note] if note else []),
        "",
        f"- {platform.system()} {platform.machine()}; Python {platform.python_version()}, cryptography {cryptography.__version__} with {backend.openssl_version_text()}",
        "",
        table(HEADINGS, [row.cells for row in rows]),
        "",
        "Medians of turns; a ratio is the median of the turns' ratios. A sign-in is a device and a software phone on loopback:",
        "a FIDO URL, an advert, two websockets over TLS through a tunnel service, the handshake, getAssertion, hanging up.",
        "Over the direct channel there are no websockets: two emulated controllers are started, one sends an advert each 100 ms,",
        "the other one hears it and connects; against it stands the same with SDUs of the same sizes and no sign-in.",
        f"{SNOW} is a library for Noise in Rust, whose P-256 is Rust's too, where ours is OpenSSL's; its handshakes are both roles as well.{not_run}",
        "",
        "## The calls of a handshake",
        "",
        "Both roles together make these, and no protocol can have the same messages with fewer. NKpsk0 has as many as KNpsk0.",
        "",
        table(
            ("calls", "what", "each"),
            [
                (str(count), name, shown(median(timed(call, 50) for _ in range(21))))
                for count, name, call in kn
            ],
        ),
        "",
        "## What `import headless_passkey.hybrid.client_platform` loads",
        "",
        f"{loaded} modules more than Python alone, of them unwanted ({', '.join(UNWANTED)}): **{', '.join(unwanted) or 'none'}**.",
    ]


# Handshake


def kn_handshake() -> Callable[[], object]:
    """One QR-initiated handshake: fresh ephemeral keys, three ends of two channels."""
    psk, static = bytes(range(32)), ec.generate_private_key(CURVE)
    public = static.public_key()

    def run() -> None:
        initiator = Initiator(psk=psk, static=static)
        responder = Responder.respond(initiator.message1, psk=psk, client_static=public)
        initiator.finish(responder.message2).split()
        responder.state.split()

    return run


def nk_handshake() -> Callable[[], object]:
    """One handshake with a linked phone's key."""
    psk, static = bytes(range(32)), ec.generate_private_key(CURVE)
    public = static.public_key()

    def run() -> None:
        initiator = Initiator(psk=psk, authenticator_static=public)
        responder = Responder.respond(initiator.message1, psk=psk, static=static)
        initiator.finish(responder.message2).split()
        responder.state.split()

    return run


def handshake_calls() -> list[Call]:
    """The OpenSSL calls of a handshake, with arguments of the same sizes."""
    private, peer = ec.generate_private_key(CURVE), ec.generate_private_key(CURVE).public_key()
    point = peer.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    key, zeros, text = bytes(range(32)), bytes(12), bytes(97)
    empty = AESGCM(key).encrypt(zeros, b"", key)

    def hkdf(length: int) -> bytes:
        return HKDF(algorithm=SHA256(), length=length, salt=key, info=b"").derive(key)

    return [
        (2, "P-256 key pair", lambda: ec.generate_private_key(CURVE)),
        (4, "P-256 ECDH", lambda: private.exchange(ec.ECDH(), peer)),
        (
            2,
            "P-256 point to key, checked",
            lambda: ec.EllipticCurvePublicKey.from_encoded_point(CURVE, point),
        ),
        (4, "P-256 key to point", lambda: peer.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)),
        (3, "P-256 public half of a private key", private.public_key),
        (10, "HKDF-SHA256, 64 bytes", lambda: hkdf(64)),
        (2, "HKDF-SHA256, 96 bytes", lambda: hkdf(96)),
        (14, "SHA-256 of 97 bytes", lambda: sha256(text).digest()),
        (2, "AES-256-GCM: set the key, seal nothing", lambda: AESGCM(key).encrypt(zeros, b"", key)),
        (2, "AES-256-GCM: set the key, open nothing", lambda: AESGCM(key).decrypt(zeros, empty, key)),
        (4, "AES-256-GCM: set the key of a channel", lambda: AESGCM(key)),
    ]


def in_a_row(calls: list[Call]) -> Callable[[], object]:
    flat = [call for count, _, call in calls for _ in range(count)]

    def run() -> None:
        for call in flat:
            call()

    return run


def snow() -> Path | str:
    """The program that makes the handshakes of the crate `snow`, compiled at the first call; or why there is none."""
    cargo = which("cargo")
    if cargo is None:
        return "cargo is not installed"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headless-passkey" / "snow"
    manifest = ROOT / "benchmarks" / "snow" / "Cargo.toml"
    words = [
        "build",
        "--quiet",
        "--release",
        "--manifest-path",
        str(manifest),
        "--target-dir",
        str(cache),
    ]
    try:
        subprocess.run([cargo, *words], check=True, capture_output=True, timeout=BUILDING)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[-1].strip()
        return f"cargo build ended with {error.returncode}: {last}"
    except subprocess.TimeoutExpired:
        return f"cargo build took longer than {BUILDING:.0f} s"
    return cache / "release" / "snow-handshakes"


def handshakes_of_snow(program: Path | str, *, rounds: int = 41, number: int = 20) -> list[Row]:
    """Our handshakes and those of `snow`, in turns; no row when there is no such program."""
    if isinstance(program, str):
        return []
    ours, pairs = kn_handshake(), []
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for turn in range(rounds + 1):
            mine = timed(ours, number)
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            theirs = float(process.stdout.readline()) / number
            if turn:  # the first one is for warming up
                pairs.append((mine, theirs))
        process.stdin.close()
    return [Row.of_pairs("handshake KNpsk0, both roles", SNOW, pairs)]


# Adverts, messages, URLs


def foreign_adverts() -> list[Row]:
    """Adverts of other people's phones, of which there may be many, against the HMAC that recognises each."""
    rows = []
    foreign = seal_advert(bytes(range(64, 128)), Eid(nonce=bytes(10), routing_id=bytes(3), tunnel_domain=300))
    for count in (1, 4, 8):
        keys = [bytes([number]) * 64 for number in range(count)]

        def refuse(keys: list[bytes] = keys) -> None:
            assert open_with_any(keys, foreign) is None

        def digest(keys: list[bytes] = keys) -> None:
            for key in keys:
                hmac.digest(key[32:], foreign[:16], "sha256")

        name = "1 key" if count == 1 else f"{count} keys"
        rows.append(compare(f"foreign advert, {name}", refuse, f"HMAC-SHA256, {name}", digest, aim=1.5))
    return rows


def one_kibibyte() -> list[Row]:
    """A CTAP message of 1 KiB as the channel seals and opens it: framing, padding, counter, AES-256-GCM."""
    key, payload = bytes(range(32)), bytes(range(256)) * 4
    bare, nonce = AESGCM(key), bytes(12)
    padded = pad(frame(MessageType.CTAP, payload))
    sealed = bare.encrypt(nonce, padded, None)
    sending = CipherState(key)

    def opened() -> None:
        receiving._counter = 0  # the same message again
        parse_frame(unpad(receiving.decrypt(sealed)))

    receiving = CipherState(key)
    return [
        compare(
            "seal 1 KiB",
            lambda: sending.encrypt(pad(frame(MessageType.CTAP, payload))),
            "AESGCM.encrypt",
            lambda: bare.encrypt(nonce, padded, None),
        ),
        compare("open 1 KiB", opened, "AESGCM.decrypt", lambda: bare.decrypt(nonce, sealed, None)),
    ]


def fido_urls() -> list[Row]:
    def make() -> str:
        return QrTransaction.create(hint=RequestKind.GET_ASSERTION, time=NOW).url.encode()

    text = make()
    point = FidoUrl.parse(text).public_key
    return [
        compare(
            "FIDO URL, made with its key",
            make,
            "P-256 key pair",
            lambda: ec.generate_private_key(CURVE),
        ),
        compare(
            "FIDO URL, parsed",
            lambda: FidoUrl.parse(text),
            "P-256 compressed point to key",
            lambda: ec.EllipticCurvePublicKey.from_encoded_point(CURVE, point),
        ),
    ]


# Start-up


def fresh_import(rounds: int = 15) -> tuple[list[Row], int, list[str]]:
    """A new process that imports the client platform, against one without and one with its libraries only."""
    importing = "import headless_passkey.hybrid.client_platform"
    rows = [
        compare(
            "`import …hybrid.client_platform`, whole process",
            lambda: _python(importing),
            name,
            lambda code=code: _python(code),  # type: ignore[misc]
            rounds=rounds,
        )
        for name, code in (("`python -c pass`", "pass"), ("`import` of cryptography's parts", BENEATH))
    ]
    show = "import sys, json; print(json.dumps(sorted(sys.modules)))"
    before = set(json.loads(_python(show)))
    after = set(json.loads(_python(f"{importing}; {show}"))) - before
    return rows, len(after), [name for name in UNWANTED if name in after]


def _python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


# The machine


def made(command: str = COMMAND) -> str:
    """By what, when, from what and where a part of the page was made."""
    return (
        f"Made by `{command}` on {dt.datetime.now(dt.UTC):%Y-%m-%d}, commit {_commit()}; {_processor()}, {os.cpu_count()} processors, "
        f"load {BEGAN:.1f} at the begin and {os.getloadavg()[0]:.1f} at the end."
    )


def _commit() -> str:
    program = which("git")
    if program is None:
        return "unknown"

    def git(*words: str) -> str:
        done = subprocess.run([program, *words], cwd=ROOT, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "headless_passkey", "companion_push")
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def _processor() -> str:
    with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        names: list[Any] = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "processor unknown"


if __name__ == "__main__":
    main()
