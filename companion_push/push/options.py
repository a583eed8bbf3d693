"""The push services that are set up by options: of the relay, and of `companion-push push check`."""

import argparse
from pathlib import Path

from companion_push.push.channel import Channel
from companion_push.serving.options import network_option
from headless_passkey.command.command_line import SettingsParser
from headless_passkey.errors import UsageError


def add_push(parser: SettingsParser) -> None:
    """Add the options of all push services."""
    web_push = parser.titled_group("Web Push, and UnifiedPush")
    web_push.add_argument(
        "--vapid-key",
        metavar="FILE",
        type=Path,
        help="the private key that `companion-push push keys` has made; with it, companions can be woken by Web Push",
    )
    web_push.add_argument(
        "--vapid-contact",
        metavar="URL",
        help="mailto:NAME@HOST or https://HOST/…, where push services write to before they block a sender; needed with a key",
    )
    web_push.add_argument(
        "--web-push-host",
        metavar="HOST",
        action="append",
        default=[],
        help="a push service besides those of the browsers: HOST, *.HOST or HOST:PORT, or any for all hosts; may be given again",
    )
    web_push.add_argument(
        "--web-push-network",
        metavar="NETWORK",
        type=network_option,
        action="append",
        default=[],
        help="private addresses that such a host may have, as 192.168.1.0/24; else a push goes to public ones only;"
        " may be given again",
    )
    web_push.add_argument(
        "--web-push-ca",
        metavar="FILE",
        type=Path,
        help="PEM file with the authorities of these push services, in place of the system's",
    )


def push_channels(args: argparse.Namespace) -> tuple[Channel, ...]:
    """Make the channels of what `add_push` has read. `UsageError` or `SetupError` for what cannot be."""
    return tuple(filter(None, (_web_push(args),)))


def _web_push(args: argparse.Namespace) -> Channel | None:
    from companion_push.push.endpoints import EndpointRules  # noqa: PLC0415  --help needs none of this
    from companion_push.push.vapid import VapidKey  # noqa: PLC0415
    from companion_push.push.web_push import WebPushChannel  # noqa: PLC0415
    from headless_passkey.net.tls import tls_context  # noqa: PLC0415

    if args.vapid_key is None:
        others = ("vapid_contact", "web_push_host", "web_push_network", "web_push_ca")
        if any(getattr(args, name) for name in others):
            raise UsageError("Web Push needs --vapid-key: `companion-push push keys FILE` makes one")
        return None
    if args.vapid_contact is None:
        raise UsageError("--vapid-key needs --vapid-contact")
    return WebPushChannel(
        VapidKey.read(args.vapid_key),
        contact=args.vapid_contact,
        rules=EndpointRules(hosts=args.web_push_host, networks=args.web_push_network),
        tls=tls_context(args.web_push_ca),
    )
