"""``companion-push``: every program of this package under one command.

The module of each program adds its options (`add_parser`). Only the module of the requested program is imported, and
its dependencies only when it runs. So no program waits for or needs the dependencies of another one, and ``--help``
needs none.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headless_passkey.command.command_line import SettingsParser, missing, run, told
from program_parts.command_line import add_version


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program: the first word after ``companion-push``."""

    module: str  # has add_parser(subparsers), which sets `main`
    extra: str  # of the distribution, to install for it
    help: str


PROGRAMS: Final = {
    "relay": Program(
        module="companion_push.relay.command",
        extra="push",
        help="carry sealed requests from devices to companions",
    ),
    "account": Program(
        module="companion_push.relay.account_command", extra="push", help="add accounts to a relay's store"
    ),
    "store": Program(
        module="companion_push.relay.store_command",
        extra="push",
        help="check, migrate or copy a relay's store",
    ),
    "push": Program(
        module="companion_push.push_command",
        extra="push",
        help="make and check what the relay needs to push, and test it",
    ),
    "tunnel-service": Program(
        module="companion_push.tunnel_service.command",
        extra="push",
        help="carry messages between a device and a phone, unread",
    ),
    "companion": Program(
        module="companion_push.companion.options",
        extra="push",
        help="the companion app: join, invite, run, members",
    ),
    "phone": Program(
        module="companion_push.companion.options", extra="push", help="a software phone, for demos and tests"
    ),
    "ether": Program(
        module="companion_push.emulation.ether",
        extra="emulation",
        help="emulated Bluetooth controllers on one link",
    ),
    "completion": Program(
        module="companion_push.completion",
        extra="push",
        help="print the script that lets a shell complete this command line",
    ),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run one program to its exit status."""
    words = list(sys.argv[1:] if words is None else words)
    name = words[0] if words and words[0] in PROGRAMS else None
    try:
        args = make_parser(*([] if name is None else [name])).parse_args(words)
    except ModuleNotFoundError as error:
        what = None if name is None else missing(error, PROGRAMS[name].extra)
        if what is None:
            raise
        return told(what, as_json="--json" in words)
    args.words = tuple(words)  # for workers, which read file and environment themselves
    return run(args.main, args, extra=PROGRAMS[words[0]].extra)


def make_parser(*names: str) -> argparse.ArgumentParser:
    """Make the parser of these programs with their options; without names, of the bare list of all programs."""
    parser = SettingsParser(
        prog="companion-push",
        description="Push relay, tunnel service, companion, software phone and emulated radio.",
        epilog="companion-push PROGRAM --help tells a program's options.",
    )
    add_version(parser)
    subparsers = parser.add_subparsers(title="programs", metavar="PROGRAM", required=True)
    for module in dict.fromkeys(PROGRAMS[name].module for name in names):  # a module may add several programs
        importlib.import_module(module).add_parser(subparsers)
    if not names:
        for name, program in PROGRAMS.items():
            subparsers.add_parser(name, help=program.help)
    return parser
