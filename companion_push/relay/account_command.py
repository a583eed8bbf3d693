"""``companion-push account``: the built-in account system, at its simplest."""

import argparse
import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from companion_push.errors import StoreUnavailable
from companion_push.relay.nodes import PUSHES_LEFT, WakeUp
from companion_push.relay.store_command import add_states, add_store, states_place
from companion_push.relay.stores import Store, open_store
from companion_push.relay.transaction import Transaction
from headless_passkey.command.command_line import (
    SettingsParser,
    add_settings,
    example,
    label_or_name,
    out,
    say,
)
from headless_passkey.errors import LocalProtocolError, RemoteProtocolError, UsageError
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.trust.account_code import AccountCode
from headless_passkey.trust.text_form import check_relay_url
from program_parts.names import printable

if TYPE_CHECKING:
    from companion_push.relay.account_states import StateStore

_HOUR: Final = 3600


def add_parser(subparsers: Any) -> None:
    """Add ``account`` and its commands to the programs of ``companion-push``."""
    account = subparsers.add_parser("account", help="add, list, reset and delete accounts of a relay's store")
    actions = account.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=SettingsParser
    )
    add = _action(
        actions,
        "add",
        "add an account and print its one-time code",
        "Add an account and print its one-time code, with which the first companion joins. "
        "A name that nobody has joined yet gets a new code. The relay may be running.",
        example(
            "companion-push account add alice --relay https://push.example |",
            "    companion-push companion join --code - --label 'My phone'",
        ),
    )
    _code_options(add)
    add.set_defaults(main=_add)
    reset = _action(
        actions,
        "reset",
        "close an account for good, and print a one-time code for a new one of the same name",
        "Close an account for good, and print the one-time code of a new account with the same name and another id: for "
        "whoever was shut out of it. Its companions and devices are told that it is closed; they follow nobody, and join "
        "again with new invitations. The relay may be running.",
        example("companion-push account reset alice --relay https://push.example"),
    )
    _code_options(reset)
    add_states(reset)
    reset.set_defaults(main=_reset)
    delete = _action(
        actions,
        "delete",
        "close an account for good",
        "Close an account for good. Its companions and devices are told so. The relay may be running.",
        example("companion-push account delete alice"),
    )
    add_states(delete)
    delete.set_defaults(main=_delete)
    poll_only = _action(
        actions,
        "poll-only",
        "wake the companions of an account by no push",
        "Wake the companions of an account by no push: their channels are removed, and no others are taken. They get requests "
        "when they ask. The relay may be running.",
        example("companion-push account poll-only alice"),
    )
    poll_only.add_argument("--end", action="store_true", help="let companions have channels again")
    poll_only.set_defaults(main=_poll_only)
    listing = _action(
        actions,
        "list",
        "list the accounts",
        "List the accounts: name, id, and how many companions and devices they have.",
        example("companion-push account list"),
        named=False,
    )
    listing.set_defaults(main=_list)


def _action(
    actions: Any, name: str, summary: str, description: str, epilog: str, *, named: bool = True
) -> SettingsParser:
    parser: SettingsParser = actions.add_parser(name, help=summary, description=description, epilog=epilog)
    if named:
        parser.add_argument("name", metavar="NAME", type=label_or_name, help="what the account is called")
    add_store(parser, "--store", "the store")
    add_settings(parser, section=f"account.{name}", environment=f"COMPANION_PUSH_ACCOUNT_{name.upper()}")
    return parser


def _code_options(parser: SettingsParser) -> None:
    parser.add_argument("--relay", required=True, metavar="URL", help="the relay's public URL")
    parser.add_argument(
        "--valid-hours",
        type=_hours,
        default=24,
        metavar="N",
        help="how long the code is good for (default: 24)",
    )


async def _add(args: argparse.Namespace) -> None:
    relay_url, now = _relay_url(args), time.time()
    async with open_store(args.store) as database:
        added = await database.transact(lambda db: _added(db, args, now))
    if added is None:
        raise UsageError("the name is taken: its first companion has joined already")
    said = f"the account's id is {added[0]}: newcomers can be told to expect it"
    say(args, said, stage="added", account=added[0])
    _print_code(relay_url, args.name, *added)


async def _reset(args: argparse.Namespace) -> None:
    from companion_push.relay.accounts import close_account, named  # noqa: PLC0415  --help needs none of this

    relay_url, now = _relay_url(args), time.time()

    def reset(db: Transaction) -> tuple[str, tuple[str, bytes] | None]:
        account, told = named(db, args.name), close_account(db, name=args.name, now=now)
        if account is None or told is None:
            raise _unknown()
        database.tell(db, WakeUp(members=told, topics=frozenset({PUSHES_LEFT})))
        return account, _added(db, args, now)

    async with open_store(args.store) as database, _opened_states(args) as states:
        closed, added = await database.transact(reset)
        if added is None:
            raise LocalProtocolError("a closed account still has its name")
        _print_code(relay_url, args.name, *added)
        await _settle(args, database, states, closed)
    said = (
        f"the account's id is now {added[0]}; the one before is closed: its companions and devices are told so, and join "
        "again by invitation"
    )
    say(args, said, stage="reset", account=added[0])


async def _delete(args: argparse.Namespace) -> None:
    from companion_push.relay.accounts import close_account, named  # noqa: PLC0415  --help needs none of this

    def delete(db: Transaction) -> tuple[str, frozenset[str]]:
        account, told = named(db, args.name), close_account(db, name=args.name, now=time.time())
        if account is None or told is None:
            raise _unknown()
        database.tell(db, WakeUp(members=told, topics=frozenset({PUSHES_LEFT})))
        return account, told

    async with open_store(args.store) as database, _opened_states(args) as states:
        closed, told = await database.transact(delete)
        await _settle(args, database, states, closed)
    said = f"the account is closed, and {len(told)} members and newcomers are told so"
    say(args, said, stage="deleted", told=len(told))


@contextlib.asynccontextmanager
async def _opened_states(args: argparse.Namespace) -> "AsyncIterator[StateStore | None]":
    """Open the account states beside the database; None where they are in the store."""
    place = states_place(args)
    if place is None:
        yield None
        return
    from companion_push.relay.redis_states import open_redis  # noqa: PLC0415  it needs an extra

    async with open_redis(place) as states:
        yield states


async def _settle(
    args: argparse.Namespace, database: Store, states: "StateStore | None", account: str
) -> None:
    """Erase what waits for a closed account in the states beside the database, as a relay does when it closes one."""
    if states is None:
        return
    from companion_push.relay import accounts, operations  # noqa: PLC0415  --help needs none of this
    from companion_push.relay.account_states import Beside, States, Tries  # noqa: PLC0415
    from companion_push.relay.limits import LEASE  # noqa: PLC0415
    from companion_push.relay.mailbox import LeasesInRecords  # noqa: PLC0415

    tries = Tries()

    def work(db: Transaction) -> None:
        now = database.time_of(db)
        mine = States(states, now, beside=Beside(lambda each: accounts.ask_authority(db, each), tries))
        operations.settle(account)(
            operations.Call(db=db, caller="", now=now, leases=LeasesInRecords(LEASE), states=mine)
        )
        mine.store()

    try:
        await database.transact(work)
    except StoreUnavailable as error:
        said = f"{error}: a running relay erases what waited for the account in some minutes"
        say(args, f"warning: {said}", stage="warning", message=said)


async def _poll_only(args: argparse.Namespace) -> None:
    from companion_push.relay.accounts import named  # noqa: PLC0415  --help needs none of this
    from companion_push.relay.channels import set_poll_only  # noqa: PLC0415

    def change(db: Transaction) -> str:
        account = named(db, args.name)
        if account is None:
            raise _unknown()
        set_poll_only(db, account, on=not args.end)
        return account

    async with open_store(args.store) as database:
        account = await database.transact(change)
    said = "its companions may have channels again" if args.end else "its companions are woken by no push"
    say(args, said, stage="push" if args.end else "poll-only", account=account)


async def _list(args: argparse.Namespace) -> None:
    from companion_push.relay.accounts import listed  # noqa: PLC0415  --help needs none of this

    async with open_store(args.store) as database:
        found = await database.transact(listed)
    for account in found:
        members = (
            "not founded yet"
            if account.version is None
            else f"companions {account.companions}, devices {account.devices}, ring {account.version}"
        )
        suspended = ", suspended" if account.suspended else ""
        out(f"{account.id}  {printable(account.name)}  {members}{suspended}")


def _added(db: Transaction, args: argparse.Namespace, now: float) -> tuple[str, bytes] | None:
    from companion_push.relay.accounts import add_account  # noqa: PLC0415  --help needs none of this

    return add_account(db, name=args.name, now=now, expires_at=int(now) + args.valid_hours * _HOUR)


def _print_code(relay_url: str, name: str, account: str, code: bytes) -> None:
    out(AccountCode(relay_url=relay_url, account=account, account_name=name, code=code).encode())


def _unknown() -> UsageError:
    return UsageError("there is no account of this name: `companion-push account list`")


def _relay_url(args: argparse.Namespace) -> str:
    try:
        return check_relay_url(str(BaseUrl.parse(args.relay)))
    except RemoteProtocolError as error:
        raise UsageError(str(error)) from error


def _hours(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 5 and int(text) > 0):
        raise argparse.ArgumentTypeError("expected a whole number of hours")
    return int(text)
