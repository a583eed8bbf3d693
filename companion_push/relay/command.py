"""`companion-push relay`: the relay as a program of its own."""

import argparse
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from companion_push.relay.config import RelayConfig, check_public_url, is_loopback
from companion_push.relay.mailbox import CEILING, LEASE, Quota, Rate
from headless_passkey.command_line import (
    UsageError,
    add_settings,
    example,
    host_port,
    out,
    talk,
    until_terminated,
)
from headless_passkey.errors import LocalProtocolError, TransportError

DEFAULT_STORE: Final = "companion-push.sqlite3"
_LAST_ANSWERS_SECONDS: Final = 0.5  # for requests under way when the relay is asked to end
_IDLE_SECONDS: Final = 30.0  # a connection on which nothing is asked


def add_parser(subparsers: Any) -> None:
    """Add ``relay`` to the programs of ``companion-push``."""
    parser = subparsers.add_parser(
        "relay",
        help="carry sealed requests from devices to companions",
        description="Carry sealed requests from devices to companions, and open none. "
        "The first line on stdout is the base URL it listens on.",
        epilog=example(
            "companion-push relay --listen 0.0.0.0:443 --public-url https://push.example \\",
            "    --cert cert.pem --key key.pem",
        ),
    )
    parser.add_argument(
        "--listen", type=host_port, default=("127.0.0.1", 8470), metavar="HOST:PORT",
        help="default: 127.0.0.1:8470; port 0 takes a free one",
    )  # fmt: skip
    parser.add_argument(
        "--public-url", metavar="URL", help="what clients call it by; default: the base URL it listens on"
    )
    parser.add_argument(
        "--store", type=Path, default=Path(DEFAULT_STORE), metavar="FILE", help=f"default: {DEFAULT_STORE}"
    )
    parser.add_argument("--cert", metavar="FILE", type=Path, help="TLS certificate chain, PEM")
    parser.add_argument("--key", metavar="FILE", type=Path, help="its private key, PEM")
    parser.add_argument(
        "--ceiling", type=_at_most(CEILING), default=CEILING, metavar="S",
        help=f"seconds a request may wait for a claim, {CEILING} at the most (default)",
    )  # fmt: skip
    parser.add_argument(
        "--lease", type=_at_most(LEASE), default=LEASE, metavar="S",
        help=f"seconds without a call after which a companion loses its claim, {LEASE} at the most (default)",
    )  # fmt: skip
    parser.add_argument(
        "--pending-per-account", type=_count, default=3, metavar="N",
        help="unclaimed requests at a time, one per device (default: 3)",
    )  # fmt: skip
    parser.add_argument(
        "--requests-per-minute", type=_count, default=5, metavar="N", help="of one account (default: 5)"
    )
    parser.add_argument(
        "--requests-per-day", type=_count, default=30, metavar="N", help="of one account (default: 30)"
    )
    parser.add_argument(
        "--held-per-address", type=_count_or_none, default=256, metavar="N",
        help="held requests from one network address (default: 256); 0: no limit, behind a proxy",
    )  # fmt: skip
    add_settings(parser, section="relay", environment="COMPANION_PUSH_RELAY")
    parser.set_defaults(main=serve)


async def serve(args: argparse.Namespace) -> None:
    """Run the relay until the process is asked to end."""
    from aiohttp import web  # noqa: PLC0415  --help needs none of this

    from companion_push.http_server import Runner, tls_context  # noqa: PLC0415
    from companion_push.relay.app import make_app  # noqa: PLC0415

    if (args.cert is None) != (args.key is None):
        raise UsageError("--cert and --key go together")
    tls = None if args.cert is None else tls_context(args.cert, args.key)
    host, port = args.listen
    if tls is None and not is_loopback(host):
        raise UsageError("without --cert and --key the relay listens on this machine only, such as 127.0.0.1")
    with _listening_socket(host, port) as listening:
        base_url = _base_url(host, listening.getsockname()[1], secure=tls is not None)
        config = _config(args, base_url)
        runner = Runner(
            make_app(config),
            handler_cancellation=True,
            idle_timeout=_IDLE_SECONDS,
            shutdown_timeout=_LAST_ANSWERS_SECONDS,
        )
        try:
            await runner.setup()
            await web.SockSite(runner, listening, ssl_context=tls).start()
            if tls is None:
                talk("without --cert and --key there is no TLS: this relay is for this machine only")
            ended = until_terminated()
            out(base_url)
            await ended
        finally:
            await runner.cleanup()


def _config(args: argparse.Namespace, base_url: str) -> RelayConfig:
    if args.public_url is None and args.listen[0] in ("0.0.0.0", "::"):
        raise UsageError("listening on every address needs --public-url")
    rates = (
        Rate(count=args.requests_per_minute, seconds=60),
        Rate(count=args.requests_per_day, seconds=86_400),
    )
    try:
        public_url = check_public_url(args.public_url or base_url)
    except LocalProtocolError as error:
        raise UsageError(str(error)) from error
    return RelayConfig(
        public_url=public_url,
        store=args.store,
        ceiling=args.ceiling,
        lease=args.lease,
        quota=Quota(pending=args.pending_per_account, rates=rates),
        held_per_address=args.held_per_address,
    )


def _listening_socket(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise TransportError(f"cannot listen on {host} port {port}: {error.strerror}") from error


def _base_url(host: str, port: int, *, secure: bool) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if secure else 'http'}://{name}:{port}"


def _at_most(highest: int) -> Callable[[str], int]:
    def seconds(text: str) -> int:
        number = _count(text)
        if number > highest:
            raise argparse.ArgumentTypeError(f"at most {highest} seconds")
        return number

    return seconds


def _count(text: str) -> int:
    number = _count_or_none(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected 1 or more")
    return number


def _count_or_none(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError("expected a whole number")
    return int(text)
