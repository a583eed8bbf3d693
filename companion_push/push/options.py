"""The push services that are set up by options: of the relay, and of `companion-push push check`."""

import argparse
import re
from pathlib import Path
from typing import Final, TypeVar

from companion_push.push.channel import Channel
from companion_push.serving.options import key_file, network_option
from headless_passkey.command.command_line import SettingsParser
from headless_passkey.errors import UsageError

_NAME: Final = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)

_T = TypeVar("_T")


def add_push(parser: SettingsParser) -> None:
    """Add the options of all push services."""
    web_push = parser.titled_group("Web Push, and UnifiedPush")
    web_push.add_argument(
        "--vapid-key",
        metavar="FILE",
        type=key_file,
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
    vendors = parser.titled_group("FCM and APNs")
    vendors.add_argument(
        "--fcm",
        metavar="[APP=]FILE",
        type=_app,
        action="append",
        default=[],
        help="the key of a service account of Firebase, JSON; with it, the Android app APP of its project is woken,"
        " by default one with the project's name; may be given again",
    )
    vendors.add_argument(
        "--apns",
        metavar="TOPIC:TEAM:KEY=FILE",
        type=_topic,
        action="append",
        default=[],
        help="the key for APNs, .p8, with the ids of key and team; with it, the app with the bundle id TOPIC is woken;"
        " may be given again",
    )


def push_channels(args: argparse.Namespace) -> tuple[Channel, ...]:
    """Make the channels of what `add_push` has read. `UsageError` or `SetupError` for what cannot be."""
    return tuple(filter(None, (_web_push(args), _fcm(args), _apns(args))))


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


def _app(text: str) -> tuple[str | None, Path]:
    """Parse the name of an app, if there is one, and its file."""
    name, separator, file = text.partition("=")
    if separator and _NAME.fullmatch(name) and file:
        return name, Path(file)
    return None, Path(text)


def _topic(text: str) -> tuple[str, str, str, Path]:
    """Parse topic, team, key id and file."""
    ids, _, file = text.partition("=")
    parts = ids.split(":")
    if len(parts) != 3 or not all(parts) or not file:
        raise argparse.ArgumentTypeError("expected TOPIC:TEAM:KEY=FILE, with the ids of team and key")
    topic, team, key = parts
    return topic, team, key, Path(file)


def _fcm(args: argparse.Namespace) -> Channel | None:
    from companion_push.push.fcm import FcmChannel  # noqa: PLC0415
    from companion_push.push.service_account import ServiceAccount  # noqa: PLC0415

    apps: dict[str, ServiceAccount] = {}
    for name, file in args.fcm:
        account = ServiceAccount.load(file)
        _once(apps, name or account.project, account, "--fcm")
    return FcmChannel(apps) if apps else None


def _apns(args: argparse.Namespace) -> Channel | None:
    from companion_push.push.apns import ApnsChannel  # noqa: PLC0415
    from companion_push.push.provider_token import ProviderKey  # noqa: PLC0415

    topics: dict[str, ProviderKey] = {}
    for topic, team, key_id, file in args.apns:
        _once(topics, topic, ProviderKey.load(file, team=team, key_id=key_id), "--apns")
    return ApnsChannel(topics) if topics else None


def _once(known: dict[str, _T], name: str, value: _T, option: str) -> None:
    if name in known:
        raise UsageError(f"{option}: {name} is there twice")
    known[name] = value
