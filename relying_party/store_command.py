"""``relying-party store``: checks a store, and copies it to another place."""

import argparse
import asyncio
from collections.abc import Callable
from pathlib import Path

from relying_party.errors import ExitStatus, UsageError
from relying_party.output import out
from relying_party.place import StorePlace
from relying_party.store.copying import checked, copy_store


async def run(args: argparse.Namespace, say: Callable[[str], None]) -> ExitStatus:
    """Check or copy; returns the exit status. say: prints a line for the operator."""
    await asyncio.to_thread(_check if args.action == "check" else _copy, args, say)
    return ExitStatus.DONE


def _check(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    _expect(args.store)
    found = checked(args.store)
    for table, count in found.counts.items():
        out(f"{table} {count}\n")
    for warning in found.warnings:
        say(f"warning: {warning}")
    say(f"{found.engine}: well")


def _copy(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    _expect(args.store)
    if args.store == args.to:
        raise UsageError("--to: expected another place than --store")
    counts = copy_store(args.store, args.to)
    say(
        f"{counts['users']} users with {counts['credentials']} passkeys are copied; start no relying party with the old store any more"
    )


def _expect(place: StorePlace) -> None:
    """Refuse a file that is not there: opening it would make it."""
    if isinstance(place, Path) and not place.exists():
        raise UsageError(f"--store: there is no {place}")
