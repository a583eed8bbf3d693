"""``users list|add|forget`` as commands: the users whom this device expects at each relying party (T3)."""

import argparse
import json

from headless_passkey.command.command_line import expand_home, out
from headless_passkey.errors import HeadlessPasskeyError, UsageError
from headless_passkey.process.streams import talk
from headless_passkey.rp.users import PinnedUsers, all_users, parse_handle
from program_parts.names import printable


async def show(args: argparse.Namespace) -> None:
    """Print the pinned users, one JSON object a line."""
    damaged: list[HeadlessPasskeyError] = []
    for rp_id, users in all_users(expand_home(args.state), damaged.append).items():
        if args.rp_id in (None, rp_id):
            for user in users:
                out(json.dumps({"rp_id": rp_id, **user.to_json()}))
    if damaged:
        raise damaged[0]


async def add(args: argparse.Namespace) -> None:
    users = PinnedUsers(expand_home(args.state), args.rp_id)
    if not await users.pin(parse_handle(args.handle), args.name) and not args.json:
        talk("this device expects this user already")


async def forget(args: argparse.Namespace) -> None:
    handle = None if args.handle is None else parse_handle(args.handle)
    gone = await PinnedUsers(expand_home(args.state), args.rp_id).forget(handle)
    if not gone:
        raise UsageError(
            f"this device expects no {'such ' if handle else ''}user at {args.rp_id}",
            advice="`headless-passkey users list` shows whom it expects",
        )
    for user in gone:
        if args.json:
            talk(json.dumps({"forgotten": {"rp_id": args.rp_id, **user.to_json()}}))
        else:
            talk(f"forgot {printable(user.name or 'a user without a name')} at {args.rp_id}")
