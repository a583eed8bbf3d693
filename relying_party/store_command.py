"""``relying-party store``: checks a store, migrates it, and copies it to another place."""

import argparse
import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from relying_party.errors import ExitStatus, UsageError
from relying_party.output import out
from relying_party.place import StorePlace
from relying_party.store.copying import checked, copy_store
from relying_party.store.migration import migrate, planned


async def run(
    args: argparse.Namespace, say: Callable[[str], None], *, interrupted: Callable[[], ExitStatus]
) -> ExitStatus:
    """Check, migrate or copy; returns the exit status. say: prints a line for the operator.

    interrupted: says that this was broken off. The process ends at once then: the thread of a database cannot be told to
    stop, and the database takes back what was not committed.
    """
    act = {"check": _check, "migrate": _migrate, "copy": _copy}[args.action]
    try:
        await asyncio.shield(asyncio.to_thread(act, args, say))
    except asyncio.CancelledError:
        os._exit(interrupted())
    return ExitStatus.DONE


def _check(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    _expect(args.store)
    found = checked(args.store)
    for table, count in found.counts.items():
        out(f"{table} {count}\n")
    for warning in found.warnings:
        say(f"warning: {warning}")
    say(f"{found.engine}: well")


def _migrate(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    _expect(args.store)
    plan = planned(args.store)
    if not plan.steps:
        say(f"the store has the newest schema, version {plan.version}")
        return
    if args.dry_run:
        for line in plan.lines():
            out(f"{line}\n")
        say(
            f"the store has version {plan.version} of the schema, and would be brought to version {plan.newest}"
        )
        return
    migrate(args.store)
    say(f"the store is brought from version {plan.version} of the schema to version {plan.newest}")


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
