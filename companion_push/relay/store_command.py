"""``companion-push store``: checks a relay's store, migrates it, and copies it to another place."""

import argparse
import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from companion_push.relay.config import DEFAULT_STORE
from companion_push.relay.redis_place import RedisPlace, redis_place
from companion_push.relay.store_place import PostgresUri, StorePlace, store_place
from companion_push.relay.stores import open_store
from companion_push.serving.options import key_file
from headless_passkey.command.command_line import SettingsParser, add_settings, example, out, say
from headless_passkey.errors import UsageError
from headless_passkey.process.private_file import read_private

if TYPE_CHECKING:
    from companion_push.relay.redis_states import Looked
    from postgres_store.copying import Checked


def add_parser(subparsers: Any) -> None:
    """Add ``store`` and its commands to the programs of ``companion-push``."""
    store = subparsers.add_parser("store", help="check, migrate or copy a relay's store")
    actions = store.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=SettingsParser
    )
    check = actions.add_parser(
        "check",
        help="check a store, and count what is in it",
        description="Check a store: whether it can be read, and whether what it acknowledges is on a disk. Prints how many rows "
        "each table has. The relay may be running, also an older version of it.",
        epilog=example("companion-push store check --store postgresql://relay@db.example/relay"),
    )
    add_store(check, "--store", "the store")
    add_states(check)
    add_settings(check, section="store.check", environment="COMPANION_PUSH_STORE_CHECK")
    check.set_defaults(main=_check)
    migrate = actions.add_parser(
        "migrate",
        help="bring a store to the newest schema",
        description="Bring a store to the newest schema, as the first start of a newer relay does; no relay may be running on it. "
        "With --dry-run, print the statements that are missing, and change nothing.",
        epilog=example(
            "companion-push store migrate --dry-run \\",
            "    --store postgresql://relay@db.example/relay",
        ),
    )
    add_store(migrate, "--store", "the store")
    migrate.add_argument("--dry-run", action="store_true", help="only print what would be done")
    add_settings(migrate, section="store.migrate", environment="COMPANION_PUSH_STORE_MIGRATE")
    migrate.set_defaults(main=_migrate)
    copy = actions.add_parser(
        "copy",
        help="copy a store into an empty one",
        description="Copy all of a store into an empty one, or nothing: a copy that is broken off can be begun again. No relay "
        "may be running on either. The old store stays as it was: start no relay with it any more.",
        epilog=example(
            "companion-push store copy --store companion-push.sqlite3 \\",
            "    --to postgresql://relay@db.example/relay",
        ),
    )
    add_store(copy, "--store", "the store to copy")
    copy.add_argument("--to", type=store_option, required=True, metavar="PLACE", help="an empty or new one")
    add_settings(copy, section="store.copy", environment="COMPANION_PUSH_STORE_COPY")
    copy.set_defaults(main=_copy)


def add_store(parser: argparse.ArgumentParser, option: str, what: str) -> None:
    """Add the option that says where a store is."""
    parser.add_argument(
        option,
        type=store_option,
        default=Path(DEFAULT_STORE),
        metavar="PLACE",
        help=f"{what}: a file (default: {DEFAULT_STORE}), or postgresql://[USER@]HOST/DATABASE, whose password is in PGPASSWORD or"
        " PGPASSFILE",
    )


def add_states(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the account states are."""
    parser.add_argument(
        "--states",
        metavar="URI",
        help="where what lives minutes is (requests, their envelopes, limits): Valkey or Redis 7 beside a store in PostgreSQL, "
        "redis://[USER@]HOST[:PORT][,HOST...], or rediss:// for TLS, with ?ca=FILE, cert=FILE, key=FILE; default: in the store",
    )
    parser.add_argument(
        "--states-password",
        type=key_file,
        metavar="FILE",
        help="file of mode 0600 with the password for --states; default: that in REDISCLI_AUTH",
    )


def states_place(args: argparse.Namespace) -> RedisPlace | None:
    """Where the account states are, with the password; None: in the store."""
    if args.states is None:
        if args.states_password is not None:
            raise UsageError("--states-password needs --states")
        return None
    if not isinstance(args.store, PostgresUri):
        raise UsageError("--states needs a --store in PostgreSQL")
    password = os.environ.get("REDISCLI_AUTH")
    if args.states_password is not None:
        content = read_private(args.states_password, limit=1024)
        if content is None:
            raise UsageError(f"--states-password: there is no file {args.states_password}")
        password = content.decode("utf-8", errors="replace").strip()
    return redis_place(args.states, password)


def store_option(text: str) -> StorePlace:
    """Read where a store is. Nothing of a text that is none is repeated: it may hold a password."""
    try:
        return store_place(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("store: ")) from error


async def _check(args: argparse.Namespace) -> None:
    from companion_push.relay.store_copy import checked  # noqa: PLC0415  --help needs none of this

    _expect(args.store)
    place = states_place(args)
    found = await checked(args.store)
    for table, count in found.counts.items():
        out(f"{table} {count}")
    _tell(args, found)
    if place is not None:
        from companion_push.relay.redis_states import open_redis  # noqa: PLC0415  it needs an extra

        async with open_redis(place) as states:
            _tell(args, await asyncio.to_thread(states.look))


def _tell(args: argparse.Namespace, found: "Checked | Looked") -> None:
    for warning in found.warnings:
        say(args, f"warning: {warning}", stage="warning", message=warning)
    say(args, f"{found.engine}: well", stage="checked", engine=found.engine)


async def _migrate(args: argparse.Namespace) -> None:
    from companion_push.relay.store_migration import planned  # noqa: PLC0415  --help needs none of this

    _expect(args.store)
    plan = await planned(args.store)
    details = {"version": plan.version, "newest": plan.newest}
    if not plan.steps:
        say(args, f"the store has the newest schema, version {plan.version}", stage="migrated", **details)
        return
    if args.dry_run:
        for line in plan.lines():
            out(line)
        said = f"the store has version {plan.version} of the schema, and would be brought to version {plan.newest}"
        say(args, said, stage="planned", **details)
        return
    async with open_store(args.store, alone=True):
        pass  # that is all it takes
    said = f"the store is brought from version {plan.version} of the schema to version {plan.newest}"
    say(args, said, stage="migrated", **details)


async def _copy(args: argparse.Namespace) -> None:
    from companion_push.relay.store_copy import copy_store  # noqa: PLC0415  --help needs none of this

    _expect(args.store)
    if args.store == args.to:
        raise UsageError("--to: expected another place than --store")
    async with open_store(args.store, alone=True) as source, open_store(args.to, alone=True) as target:
        counts = await copy_store(source, target)
    said = f"{counts['accounts']} accounts with {counts['members']} members are copied; start no relay with the old store any more"
    say(args, said, stage="copied", accounts=counts["accounts"], members=counts["members"])


def _expect(place: StorePlace) -> None:
    """Refuse a file that is not there: opening it would make it."""
    if isinstance(place, Path) and not place.exists():
        raise UsageError(f"--store: there is no {place}")
