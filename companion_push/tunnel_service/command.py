"""``companion-push tunnel-service``: the tunnel service as a program."""

import argparse
import contextlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from companion_push.serving.options import (
    add_serving,
    connection_limits,
    count,
    count_or_none,
    key_file,
    program_metrics,
    webhook_of,
)
from companion_push.tunnel_service.rendezvous import Limits
from headless_passkey.command.command_line import add_settings, example, expand_home, out, teller
from headless_passkey.errors import UsageError
from headless_passkey.process.signals import until_terminated

DRAIN: Final = 5  # seconds, what other servers give to running requests; Docker kills after 10


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
    add_serving(parser, port=8471)
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
        type=count,
        default=defaults.tunnels,
        help="tunnels at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--tunnels-per-address",
        metavar="N",
        type=count,
        default=defaults.tunnels_per_address,
        help="tunnels at a time opened from one address (default: %(default)s)",
    )
    parser.add_argument(
        "--in-flight",
        metavar="MIB",
        type=count,
        default=defaults.in_flight_of_all >> 20,
        help="MiB that ends have sent and others not yet taken, in all tunnels together, parts of messages too; one tunnel may hold"
        " 128 KiB of whole ones (default: %(default)s)",
    )
    parser.add_argument(
        "--rate",
        metavar="N",
        type=_positive,
        default=defaults.rate,
        help="requests a minute from one address (default: %(default)s)",
    )
    parser.add_argument(
        "--node",
        metavar="N",
        type=_node,
        help="0 to 255: the first byte of the routing IDs that it gives, by which a proxy finds it among several",
    )
    parser.add_argument(
        "--drain",
        metavar="S",
        type=count_or_none,
        default=DRAIN,
        help="seconds that open tunnels have to end at SIGTERM, while new ones are refused; a second signal ends them at once"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--contacts",
        metavar="FOLDER",
        type=Path,
        help="wake linked phones, and remember in this folder which there are; without it no phone can be linked",
    )
    parser.add_argument(
        "--wake-hook",
        metavar="URL",
        help="https URL that is called, signed, to wake a linked phone that holds no connection; default: it is not reached",
    )
    parser.add_argument(
        "--wake-hook-secret",
        metavar="FILE",
        type=key_file,
        help="file of mode 0600 with the secret that signs these calls: whsec_ and base64; on further lines the secrets of before",
    )
    parser.add_argument(
        "--wake-hook-ca",
        metavar="FILE",
        type=Path,
        help="PEM file of roots to believe for the hook, instead of the system's",
    )
    parser.set_defaults(main=serve, waits=lambda _args: True)


def serve(args: argparse.Namespace) -> Coroutine[Any, Any, None]:
    """Load the tunnel service; what is returned runs it until the process is asked to end."""
    import companion_push.tunnel_service.app  # noqa: F401, PLC0415  --help needs none of this

    return _serve(args)


async def _serve(args: argparse.Namespace) -> None:
    from companion_push.serving.listening import listening, serving  # noqa: PLC0415  --help needs none of this
    from companion_push.tunnel_service.app import drain, make_app  # noqa: PLC0415
    from companion_push.tunnel_service.contacts import ContactLimits, KnownContacts  # noqa: PLC0415

    limits = Limits(
        waiting=args.waiting,
        life=args.life,
        silence=args.silence,
        tunnels=args.tunnels,
        tunnels_per_address=args.tunnels_per_address,
        rate=args.rate,
        in_flight_of_all=args.in_flight << 20,
    )
    hook = webhook_of("--wake-hook", args.wake_hook, args.wake_hook_secret, args.wake_hook_ca)
    if hook is not None and args.contacts is None:
        raise UsageError("--wake-hook needs --contacts")
    metrics, say = program_metrics(args), teller(args)
    contacts = None if args.contacts is None else KnownContacts(expand_home(args.contacts), ContactLimits())
    app = make_app(
        limits,
        node=args.node,
        contacts=contacts,
        hook=hook,
        registry=None if metrics is None else metrics.registry,
    )
    with listening(*args.listen, cert=args.cert, key=args.key, anywhere=bool(args.trusted_proxy)) as listener:
        async with (
            serving(
                app,
                listener,
                say=say,
                trusted_proxies=args.trusted_proxy,
                limits=connection_limits(args),
                closed=(lambda _: None) if metrics is None else metrics.closed,
            ) as connections,
            contextlib.AsyncExitStack() as inside,
        ):
            if metrics is not None:
                await inside.enter_async_context(metrics.served(args.metrics, connections, say=say))
            ended = until_terminated()
            out(listener.base_url("ws"))
            await ended
            await drain(app, args.drain, cut=until_terminated())


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("expected a positive number")
    return value


def _node(text: str) -> int:
    node = count_or_none(text)
    if node > 255:
        raise argparse.ArgumentTypeError("expected 255 or less")
    return node
