"""The options that every server program of this package has, in the same words as the relying party's; and numbers."""

import argparse
import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from companion_push.serving.allocator import give_back_memory
from companion_push.serving.webhook import Webhook
from headless_passkey.command.command_line import missing
from headless_passkey.errors import UsageError
from headless_passkey.process.private_file import read_private
from http_serving.addresses import Network, network
from http_serving.connections import (
    CONNECTIONS,
    CONNECTIONS_PER_ADDRESS,
    IDLE_SECONDS,
    MAX_CONNECTIONS,
    MAX_SECONDS,
    ConnectionLimits,
)
from program_parts.command_line import host_port
from program_parts.secret_words import without_keys

if TYPE_CHECKING:
    from companion_push.serving.metrics import ProgramMetrics


def add_listening(parser: argparse.ArgumentParser, *, port: int) -> None:
    """Where to listen, with which certificate, behind whom. port: the default one."""
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        type=host_port,
        default=("127.0.0.1", port),
        help=f"default: 127.0.0.1:{port}; port 0 takes a free one",
    )
    parser.add_argument(
        "--cert",
        metavar="FILE",
        type=Path,
        help="certificate chain, PEM; without it plain HTTP on loopback, or for --trusted-proxy",
    )
    parser.add_argument("--key", metavar="FILE", type=Path, help="its private key, PEM")
    parser.add_argument(
        "--trusted-proxy",
        metavar="NETWORK",
        type=network_option,
        action="append",
        default=[],
        help="a proxy in front, whose X-Forwarded-For tells a client's address; may be given again",
    )


def add_serving(parser: argparse.ArgumentParser, *, port: int) -> None:
    """All options of a server: those of `add_listening`, connections, event loop, log and metrics."""
    add_listening(parser, port=port)
    parser.add_argument(
        "--connections",
        metavar="N",
        type=at_most(MAX_CONNECTIONS),
        default=CONNECTIONS,
        help="connections at a time, and fewer where the system allows fewer open files; beyond them the longest"
        f" idle one of the busiest address is closed; default: {CONNECTIONS}",
    )
    parser.add_argument(
        "--connections-per-address",
        metavar="N",
        type=at_most(MAX_CONNECTIONS),
        default=CONNECTIONS_PER_ADDRESS,
        help="of those from one address, or requests at a time of one address behind a trusted proxy;"
        f" default: {CONNECTIONS_PER_ADDRESS}",
    )
    parser.add_argument(
        "--idle-seconds",
        metavar="N",
        type=at_most(MAX_SECONDS),
        default=int(IDLE_SECONDS),
        help=f"until a connection without a request is closed; default: {IDLE_SECONDS:.0f}",
    )
    parser.add_argument(
        "--event-loop",
        choices=("auto", "asyncio", "uvloop"),
        default="auto",
        metavar="LOOP",
        help="asyncio, uvloop, or auto (default): uvloop where it is installed",
    )
    parser.set_defaults(choose_loop=_choose_loop)
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        metavar="FORMAT",
        help="text (default), or json: log and failures as JSON, one object a line, with time, level and fields",
    )
    parser.add_argument(
        "--metrics",
        metavar="HOST:PORT",
        type=host_port,
        help="serve /metrics there, for Prometheus, over plain HTTP; without it nowhere",
    )


def connection_limits(args: argparse.Namespace) -> ConnectionLimits:
    """The limits of connections that `add_serving` has read."""
    return ConnectionLimits(
        total=args.connections, per_address=args.connections_per_address, idle=args.idle_seconds
    )


def program_metrics(args: argparse.Namespace) -> "ProgramMetrics | None":
    """Make the metrics of a program that is asked for them; `SetupError` when what they need is not installed."""
    if args.metrics is None:
        return None
    try:
        from companion_push.serving.metrics import ProgramMetrics  # noqa: PLC0415  of an extra
    except ModuleNotFoundError as error:
        what = missing(error, "metrics")
        if what is None:
            raise
        raise what from error
    return ProgramMetrics()


def at_most(highest: int, unit: str = "") -> Callable[[str], int]:
    """Make the parser of a whole number from 1 to `highest`. unit: such as "seconds", for the error."""

    def number(text: str) -> int:
        value = count(text)
        if value > highest:
            raise argparse.ArgumentTypeError(f"at most {highest} {unit}".rstrip())
        return value

    return number


def count(text: str) -> int:
    """Parse a whole number, 1 or more."""
    number = count_or_none(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected 1 or more")
    return number


def count_or_none(text: str) -> int:
    """Parse a whole number, 0 or more."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError("expected a whole number")
    return int(text)


def _choose_loop(args: argparse.Namespace) -> Callable[[], asyncio.AbstractEventLoop]:
    """Choose what makes the program's event loop. `SetupError` when it is not installed."""
    new_event_loop = _loop_of(args.event_loop)

    def made() -> asyncio.AbstractEventLoop:
        loop = new_event_loop()
        give_back_memory(loop)
        return loop

    return made


def _loop_of(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop  # noqa: PLC0415  of an extra
    except ModuleNotFoundError as error:
        if name == "auto":
            return asyncio.new_event_loop
        what = missing(error, "uvloop")
        if what is None:
            raise
        raise what from error
    return uvloop.new_event_loop


def key_file(text: str) -> Path:
    """Take the path of a key's file, and not the key itself, which a message about a missing file would repeat."""
    path = Path(text)
    if without_keys(text) != text and not path.exists():
        raise argparse.ArgumentTypeError("a key is no argument, which all users can read: give its file")
    return path


def network_option(text: str) -> Network:
    """Parse an address or a network."""
    try:
        return network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("expected an address or a network, such as 10.0.0.0/8") from error


def secret_line(option: str, path: Path) -> str:
    """Read a file of mode 0600 that holds a secret. option: names it in errors."""
    content = read_private(path, limit=1024)
    if content is None:
        raise UsageError(f"{option}: there is no file {path}")
    return content.decode("ascii", errors="replace").strip()


def webhook_of(option: str, url: str | None, secret: Path | None, ca: Path | None) -> Webhook | None:
    """The webhook that the options name: `option`, and those of its secret and roots; None without it."""
    if url is None:
        if secret or ca:
            raise UsageError(f"the other options of the webhook need {option}")
        return None
    if secret is None:
        raise UsageError(f"{option} needs {option}-secret")
    return Webhook(url=url, secrets=tuple(secret_line(f"{option}-secret", secret).split()), ca=ca)
