"""``companion-push push``: keys of the relay's operator for push services, whether the services take them, and a test.

The test is the companion's, so this module is in neither room.
"""

import argparse
import asyncio
from pathlib import Path
from typing import Any

from companion_push.companion.options import add_push_test
from companion_push.push.channel import Channel
from companion_push.push.options import add_push, push_channels
from headless_passkey.command.command_line import (
    SettingsParser,
    add_settings,
    example,
    expand_home,
    out,
    refuse_secret,
)
from headless_passkey.errors import HeadlessPasskeyError, UsageError
from headless_passkey.process.streams import talk


def add_parser(subparsers: Any) -> None:
    """Add ``push`` and its commands to the programs of ``companion-push``."""
    push = subparsers.add_parser("push", help="make and check what the relay needs to push, and test it")
    actions = push.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=SettingsParser
    )
    keys = actions.add_parser(
        "keys",
        help="make a key pair for Web Push",
        description="Make a key pair for Web Push (VAPID), write the private key into a new file that nobody else can read, "
        "and print the public key as browsers want it (applicationServerKey). Keep it: a subscription is good for the key "
        "it was made with.",
        epilog=example("companion-push push keys vapid.pem"),
    )
    keys.add_argument("file", metavar="FILE", type=Path, help="where the private key is written; a new file")
    add_settings(keys, section="push.keys", environment="COMPANION_PUSH_PUSH_KEYS")
    keys.set_defaults(main=_keys)
    check = actions.add_parser(
        "check",
        help="ask each push service that is set up whether it takes the credentials",
        description="Ask each push service that is set up whether it takes the credentials, with the relay's own settings: "
        "its options, its table in the configuration file, and its environment. It pushes to nobody.",
        epilog=example(
            "companion-push push check --vapid-key vapid.pem \\",
            "    --vapid-contact mailto:push@example.com",
        ),
    )
    add_push(check)
    add_settings(check, section="relay", environment="COMPANION_PUSH_RELAY", shares=True)
    check.set_defaults(main=_check)
    add_push_test(actions)


async def _keys(args: argparse.Namespace) -> None:
    from companion_push.push.vapid import VapidKey  # noqa: PLC0415  --help needs none of this

    refuse_secret(str(args.file))
    key = VapidKey.generate()
    key.write(expand_home(args.file))
    out(key.public)


async def _found(channel: Channel) -> str | HeadlessPasskeyError:
    """What a check of a channel finds, or why it fails."""
    try:
        return await channel.check()
    except HeadlessPasskeyError as error:
        return error


async def _check(args: argparse.Namespace) -> None:
    channels = push_channels(args)
    if not channels:
        raise UsageError("no push service is set up: see the options")
    failures: list[HeadlessPasskeyError] = []
    try:
        for found in await asyncio.gather(*(_found(channel) for channel in channels)):
            if isinstance(found, str):
                out(found)
            else:
                failures.append(found)
    finally:
        for channel in channels:
            await channel.close()
    if failures:
        for failure in failures[:-1]:
            talk(failure.explain())
        raise failures[-1]
