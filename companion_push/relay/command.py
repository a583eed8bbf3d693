"""`companion-push relay`: the relay as a program of its own."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from companion_push.relay.config import RelayConfig, check_public_url
from companion_push.relay.mailbox import CEILING, LEASE, Quota, Rate
from companion_push.serving.options import add_serving
from headless_passkey.command.command_line import add_settings, example, out
from headless_passkey.errors import UsageError
from headless_passkey.process.signals import until_terminated
from headless_passkey.process.streams import talk

DEFAULT_STORE: Final = "companion-push.sqlite3"


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
    add_serving(parser, port=8470)
    parser.add_argument(
        "--public-url", metavar="URL", help="what clients call it by; default: the base URL it listens on"
    )
    parser.add_argument(
        "--store", type=Path, default=Path(DEFAULT_STORE), metavar="FILE", help=f"default: {DEFAULT_STORE}"
    )
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
        help="held requests from one network address (default: 256); 0: no limit",
    )  # fmt: skip
    add_settings(parser, section="relay", environment="COMPANION_PUSH_RELAY")
    parser.set_defaults(main=serve)


async def serve(args: argparse.Namespace) -> None:
    """Run the relay until SIGTERM."""
    from companion_push.relay.app import make_app  # noqa: PLC0415
    from companion_push.serving.listening import listening, serving  # noqa: PLC0415  --help needs none of this

    with listening(*args.listen, cert=args.cert, key=args.key) as listener:
        config = _config(args, listener.base_url())
        async with serving(
            make_app(config),
            listener,
            say=talk,
            trusted_proxies=args.trusted_proxy,
            public_url=config.public_url,
            handler_cancellation=True,
        ):
            ended = until_terminated()
            out(listener.base_url())
            await ended


def _config(args: argparse.Namespace, base_url: str) -> RelayConfig:
    if args.public_url is None and args.listen[0] in ("0.0.0.0", "::"):
        raise UsageError("listening on every address needs --public-url")
    rates = (
        Rate(count=args.requests_per_minute, seconds=60),
        Rate(count=args.requests_per_day, seconds=86_400),
    )
    return RelayConfig(
        public_url=check_public_url(args.public_url or base_url),
        store=args.store,
        ceiling=args.ceiling,
        lease=args.lease,
        quota=Quota(pending=args.pending_per_account, rates=rates),
        held_per_address=args.held_per_address,
    )


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
