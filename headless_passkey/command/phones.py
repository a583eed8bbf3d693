"""``phones list|rename|forget`` as commands: the linked phones of this device (CTAP 2.2 §11.5.2)."""

import argparse
import json
from pathlib import Path

from headless_passkey.account import enrolment
from headless_passkey.account.links import LinkStore
from headless_passkey.command.command_line import expand_home, out
from headless_passkey.errors import HeadlessPasskeyError, UsageError
from headless_passkey.process.streams import talk
from program_parts.names import quoted


async def show(args: argparse.Namespace) -> None:
    """Print the linked phones, one JSON object a line, without their secrets."""
    state = expand_home(args.state)
    labels = _companions(state)
    for link in LinkStore(state).read():
        out(json.dumps({**link.to_json(), "companion_label": labels.get(link.companion or "")}))


def _companions(state: Path) -> dict[str, str]:
    """The labels of the account's members by name; empty where they are not to be had."""
    try:
        return {member.name: member.label for member in enrolment.load(state).chain.head.members}
    except HeadlessPasskeyError:
        return {}


async def rename(args: argparse.Namespace) -> None:
    store = LinkStore(expand_home(args.state))
    link = store.named(args.which)
    await store.rename(link, args.label)
    if not args.json:
        talk(f"{quoted(link.label)} is called {quoted(args.label)} from now on")


async def forget(args: argparse.Namespace) -> None:
    """Forget one link, or all. The phone is not told: the protocol has no message for that."""
    store = LinkStore(expand_home(args.state))
    if (args.which is None) != args.all:
        raise UsageError("name one linked phone, or --all")
    links = store.read() if args.all else (store.named(args.which),)
    if links:
        await store.forget(*(link.phone for link in links))
    for link in links:
        if args.json:
            talk(json.dumps({"forgotten": link.to_json()}))
        else:
            talk(f"forgot {quoted(link.label)}; the phone lists this device until it forgets it too")
