"""``companion-push tunnel-service``: the tunnel service as a program."""

import argparse
import logging
from pathlib import Path
from typing import Any, Final

from companion_push.tunnel_service.rendezvous import Limits
from headless_passkey.command_line import add_settings, example, host_port, out, until_terminated
from headless_passkey.errors import TransportError

SHUTDOWN_TIMEOUT: Final = 3.0  # seconds the tunnels have to close when the program is asked to end

logger = logging.getLogger(__name__)


def add_parser(subparsers: Any) -> None:
    """Add ``tunnel-service`` to the program's commands."""
    defaults = Limits()
    parser = subparsers.add_parser(
        "tunnel-service",
        help="carry messages between a device and a phone, unread",
        description="The hybrid transport's tunnel service: pairs two websockets and carries what they say, unread.",
        epilog=example(
            "companion-push tunnel-service --listen 0.0.0.0:443 \\",
            "    --cert cert.pem --key key.pem",
        ),
    )
    add_settings(parser, section="tunnel-service", environment="COMPANION_PUSH_TUNNEL_SERVICE")
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        type=host_port,
        required=True,
        help="where to listen; port 0 picks one",
    )
    parser.add_argument("--cert", metavar="FILE", type=Path, required=True, help="certificate chain, PEM")
    parser.add_argument("--key", metavar="FILE", type=Path, required=True, help="its private key, PEM")
    parser.add_argument(
        "--waiting",
        metavar="S",
        type=_positive,
        default=defaults.waiting,
        help="seconds a tunnel waits for its second end (default: %(default)s)",
    )
    parser.add_argument(
        "--life",
        metavar="S",
        type=_positive,
        default=defaults.life,
        help="seconds after which a tunnel ends in any case (default: %(default)s)",
    )
    parser.add_argument(
        "--silence",
        metavar="S",
        type=_positive,
        default=defaults.silence,
        help="seconds until an end that says nothing is pinged; it has half as many to answer (default: %(default)s)",
    )
    parser.add_argument(
        "--tunnels",
        metavar="N",
        type=_count,
        default=defaults.tunnels,
        help="tunnels at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--tunnels-per-address",
        metavar="N",
        type=_count,
        default=defaults.tunnels_per_address,
        help="tunnels at a time opened from one address (default: %(default)s)",
    )
    parser.add_argument(
        "--rate",
        metavar="N",
        type=_positive,
        default=defaults.rate,
        help="requests a minute from one address (default: %(default)s)",
    )
    parser.set_defaults(main=serve)


async def serve(args: argparse.Namespace) -> None:
    """Run the tunnel service until the process is asked to end."""
    from aiohttp import web  # noqa: PLC0415  --help needs none of this

    from companion_push.http_server import Runner, tls_context  # noqa: PLC0415
    from companion_push.tunnel_service.app import make_app  # noqa: PLC0415

    tls = tls_context(args.cert, args.key)
    limits = Limits(
        waiting=args.waiting,
        life=args.life,
        silence=args.silence,
        tunnels=args.tunnels,
        tunnels_per_address=args.tunnels_per_address,
        rate=args.rate,
    )
    host, port = args.listen
    runner = Runner(make_app(limits), shutdown_timeout=SHUTDOWN_TIMEOUT)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, ssl_context=tls).start()
        except OSError as error:
            raise TransportError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        name = f"[{host}]" if ":" in host else host
        ended = until_terminated()
        out(f"wss://{name}:{runner.addresses[0][1]}")
        await ended
    finally:
        await runner.cleanup()


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("expected a positive number")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected a positive integer")
    return value
