"""``companion-push account add``: the built-in account system, at its simplest."""

import argparse
import time
from pathlib import Path
from typing import Any, Final

from companion_push.relay.accounts import add_account
from companion_push.relay.config import DEFAULT_STORE
from companion_push.relay.database import open_database
from headless_passkey.command.command_line import SettingsParser, add_settings, example, label_or_name, out
from headless_passkey.errors import RemoteProtocolError, UsageError
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.trust.account_code import AccountCode
from headless_passkey.trust.text_form import check_relay_url

_HOUR: Final = 3600


def add_parser(subparsers: Any) -> None:
    """Add ``account add`` to the programs of ``companion-push``."""
    account = subparsers.add_parser("account", help="add accounts to a relay's store")
    actions = account.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=SettingsParser
    )
    parser = actions.add_parser(
        "add",
        help="add an account and print its one-time code",
        description="Add an account and print its one-time code, with which the first companion joins. "
        "A name that nobody has joined yet gets a new code. The relay may be running.",
        epilog=example(
            "companion-push account add alice --relay https://push.example |",
            "    companion-push companion join --code - --label 'My phone'",
        ),
    )
    parser.add_argument("name", metavar="NAME", type=label_or_name, help="what the account is called")
    parser.add_argument(
        "--store", type=Path, default=Path(DEFAULT_STORE), metavar="FILE", help=f"default: {DEFAULT_STORE}"
    )
    parser.add_argument("--relay", required=True, metavar="URL", help="the relay's public URL")
    parser.add_argument(
        "--valid-hours",
        type=_hours,
        default=24,
        metavar="N",
        help="how long the code is good for (default: 24)",
    )
    add_settings(parser, section="account.add", environment="COMPANION_PUSH_ACCOUNT_ADD")
    parser.set_defaults(main=_add)


async def _add(args: argparse.Namespace) -> None:
    try:
        relay_url = check_relay_url(str(BaseUrl.parse(args.relay)))
    except RemoteProtocolError as error:
        raise UsageError(str(error)) from error
    now = time.time()
    expires_at = int(now) + args.valid_hours * _HOUR
    async with open_database(args.store) as database:
        added = await database.transact(
            lambda db: add_account(db, name=args.name, now=now, expires_at=expires_at)
        )
    if added is None:
        raise UsageError("the name is taken: its first companion has joined already")
    account, code = added
    out(AccountCode(relay_url=relay_url, account=account, account_name=args.name, code=code).encode())


def _hours(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 5 and int(text) > 0):
        raise argparse.ArgumentTypeError("expected a whole number of hours")
    return int(text)
