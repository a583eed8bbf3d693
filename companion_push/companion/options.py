"""The options of ``companion-push phone`` and ``companion-push companion``.

What these programs do is in `command`, which is imported when one of them runs: their ``--help`` needs nothing
that the bare core does not have.
"""

import argparse
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from companion_push.companion.advertiser.choose import DEFAULT
from companion_push.push.channel import HANDLE_SIZE
from companion_push.serving.options import add_listening
from headless_passkey.command.command_line import (
    Options,
    SettingsParser,
    add_settings,
    example,
    expect_account_option,
    label_or_name,
)
from headless_passkey.errors import RemoteProtocolError
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.invitation import LIFETIME
from headless_passkey.trust.ring import Role
from program_parts.domains import is_domain

if TYPE_CHECKING:
    from companion_push.companion.phone import TunnelService

DEFAULT_STATE: Final = "~/.local/state/companion-push"
PAGE_PORT: Final = 8472
DEFAULT_TIMEOUT: Final = 120.0  # seconds for the phone: what tunnel services allow a transaction

_ONCE: Final = """Exit status with --once or --pending:
  0  the request was opened (and, with --opener phone, answered), or another
     companion has it, or nothing was pending; --json tells these apart by
     their stages
  5  the phone said no        7  withdrawn or expired
  6  declined                 8  refused by a check
Without either it waits until SIGTERM or SIGINT, and ends with 0. What it has claimed
by then is left to the account's other companions. At a question Ctrl-C is a no.
"""


def add_parser(subparsers: Any) -> None:
    """Add ``phone`` and ``companion`` to the programs of ``companion-push``."""
    phone = subparsers.add_parser(
        "phone",
        help="a software phone, for demos and tests",
        description="A phone in software: serves one FIDO URL, or the devices that it is linked with, with passkeys in a file, "
        "for demonstrations and tests, or with a security key. With --radio stdout it prints its advert, one line every half second. "
        "At a question Ctrl-D is a no, and Ctrl-C ends the program, which answers nothing.",
        epilog=example(
            "companion-push phone --url - --radio stdout --credentials passkeys.json \\",
            "    --tunnel 300=wss://localhost:8443 --ca ca.pem --uv accept",
        ),
    )
    add_settings(phone, section="phone", environment="COMPANION_PUSH_PHONE")
    phone.add_argument("--url", metavar="FILE", help="file with the FIDO URL, or - for stdin")
    phone.add_argument(
        "--linked",
        action="store_true",
        help="in place of --url: wait for the linked devices, and answer them, until SIGTERM or SIGINT",
    )
    phone.add_argument(
        "--list-links",
        action="store_true",
        help="in place of --url: print the linked devices, a line of JSON each, and end",
    )
    phone.add_argument(
        "--forget",
        metavar="LINK",
        help="in place of --url: forget the device with this link, as --list-links names it, and end",
    )
    phone.add_argument(
        "--seal",
        action="store_true",
        help="in place of --url: seal the file of passkeys with a new passphrase, whether it is there, plain or sealed, and end",
    )
    phone.add_argument(
        "--unseal",
        action="store_true",
        said_only=(True,),
        help="in place of --url: leave the file of passkeys plain, and end",
    )
    phone.add_argument(
        "--new-passphrase-file",
        metavar="FILE",
        help="with --seal: file with the new passphrase, as for --passphrase-file (default: asked at the terminal)",
    )
    _phone_options(phone)
    phone.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        default=DEFAULT_TIMEOUT,
        help=f"seconds for everything, with --linked for each device's request (default: {DEFAULT_TIMEOUT:g})",
    )
    _ca_option(phone, "tunnel service")
    phone.set_defaults(main=_act("phone"), waits=lambda args: args.linked)

    companion = subparsers.add_parser(
        "companion",
        help="the companion app: join, reset, invite, run, page, members, remove, rename, restore, mute, channel",
        description="The companion: shows what a device asks for, takes consent, and brings the FIDO URL to a phone.",
        epilog="companion-push companion COMMAND --help tells a command's options.",
    )
    commands = companion.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_join(commands)
    _add_reset(commands)
    _add_invite(commands)
    _add_run(commands)
    _add_page(commands)
    _add_members(commands)
    _add_changes(commands)
    _add_mute(commands)
    _add_channel(commands)


def _add_join(commands: Any) -> None:
    join = _command(
        commands,
        "join",
        "found an account with its code or a sign-in, or join one with an invitation",
        "companion-push companion join --code code.txt --label 'My phone'",
    )
    join.add_argument(
        "--code",
        metavar="FILE",
        help="file with the account code or invitation, or - for stdin",
    )
    join.add_argument(
        "--relay", metavar="URL", help="the relay to found an account at by a sign-in, without a code"
    )
    _sign_in_options(join)
    _label_option(join)
    expect_account_option(join)
    join.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        default=float(LIFETIME),
        help=f"seconds to wait for the inviter, or for the sign-in (default: {LIFETIME}); the same command goes on after that",
    )


def _add_reset(commands: Any) -> None:
    reset = _command(
        commands,
        "reset",
        "close the account for good by a fresh sign-in at the account service, and found a new one, with this companion alone",
        "companion-push companion reset --oidc --label 'My phone'",
    )
    reset.add_argument(
        "--relay",
        metavar="URL",
        help="the relay of the account (default: the one that this companion has joined at)",
    )
    _label_option(reset)
    _sign_in_options(reset)
    reset.add_argument(
        "--confirm",
        metavar="NAME",
        help="the account's name, which is otherwise to be typed at the terminal: for automation",
    )
    reset.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        default=float(LIFETIME),
        help=f"seconds for the sign-in and your answer (default: {LIFETIME}); the same command goes on after that",
    )


def _label_option(parser: SettingsParser) -> None:
    parser.add_argument(
        "--label",
        type=label_or_name,
        required=True,
        help="what people will call this companion, such as 'My phone'",
    )


def _sign_in_options(parser: SettingsParser) -> None:
    how = parser.exclusive_group()
    how.add_argument(
        "--oidc",
        action="store_true",
        help="sign in at the OpenID Connect issuer that the relay names, with a code to type on its page",
    )
    how.add_argument(
        "--browser",
        action="store_true",
        help="sign in there with a browser of this machine: its page is printed, and there is nothing to type here",
    )
    how.add_argument(
        "--token-file", metavar="FILE", help="file with a token of the account service, or - for stdin"
    )
    parser.add_argument(
        "--issuer-ca",
        metavar="FILE",
        type=Path,
        help="PEM file of roots to believe for the issuer, instead of the system's",
    )


def _add_invite(commands: Any) -> None:
    invite = _command(
        commands,
        "invite",
        "let a device or another companion in; the first line on stdout is the invitation, a secret",
        "companion-push companion invite --kind device --rp-id login.example",
    )
    invite.add_argument("--kind", choices=[str(role) for role in Role], required=True)
    invite.add_argument(
        "--rp-id",
        metavar="ID",
        action="append",
        type=_rp_id,
        help="a relying party that the device may ask for; repeatable (default: asked at the terminal)",
    )
    invite.add_argument("--any-rp-id", action="store_true", help="let the device ask for every relying party")
    invite.add_argument(
        "--needs-digits",
        action="store_true",
        help="let every companion refuse what the device asks without a number to type (sign-in --match-digits)",
    )
    invite.add_argument(
        "--yes",
        action="store_true",
        said_only=(True,),
        help="ask nothing at the terminal: for automation, with --number or --without-number",
    )
    invite.add_argument(
        "--number",
        metavar="FILE",
        help="with --yes: where the newcomer's number comes from, a file or - for stdin, read when it has come",
    )
    invite.add_argument(
        "--without-number",
        action="store_true",
        said_only=(True,),
        help="for a newcomer that can neither show nor speak its number: whoever has seen the invitation can get in",
    )
    invite.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        default=float(LIFETIME),
        help=f"seconds to wait for the newcomer and your answer (default: {LIFETIME}); "
        "then, as after Ctrl-C, the invitation is taken back",
    )


def _add_run(commands: Any) -> None:
    run = _command(
        commands,
        "run",
        "wait for requests, ask, and bring what is approved to a phone",
        "companion-push companion run --opener qr",
    )
    run.epilog = f"{run.epilog}\n\n{_ONCE}"
    run.set_defaults(waits=lambda args: not (args.once or args.pending))
    run.add_argument(
        "--opener",
        choices=("qr", "system", "command", "phone"),
        default="qr",
        help="how the FIDO URL gets to a phone: a QR code on the terminal, or in a file where it does not fit "
        "(default), the system's URL launcher "
        "(in whose arguments every user of this machine can read the URL), a command with the URL on stdin, or the software phone",
    )
    run.add_argument(
        "--opener-command",
        metavar="CMD",
        help="for --opener command: what to start, and to end 5 s after its request has ended",
    )
    run.add_argument(
        "--consent",
        choices=("ask", "accept", "decline"),
        default="ask",
        said_only=("accept",),
        help="ask at the terminal (default), or answer every request alike, without digits: for tests; accept "
        "is taken from the command line only",
    )
    run.add_argument(
        "--digits",
        action="store_true",
        help="refuse every request for which the device shows no number to type here (sign-in --match-digits)",
    )
    run.add_argument("--once", action="store_true", help="end when one request has ended")
    run.add_argument(
        "--pending", action="store_true", help="ask once what is pending, deal with that, and end"
    )
    phone = run.titled_group("for --opener phone, which is for demonstrations and tests")
    _phone_options(phone)


def _add_page(commands: Any) -> None:
    page = _command(
        commands,
        "page",
        "wait for requests, and ask on a page in a browser, which shows the QR code too",
        "companion-push companion page",
    )
    add_listening(page, port=PAGE_PORT)
    page.add_argument(
        "--public-url",
        metavar="URL",
        help="what browsers call the page by, without a path; default: where it listens",
    )
    page.add_argument(
        "--digits",
        action="store_true",
        help="refuse every request for which the device shows no number to type here (sign-in --match-digits)",
    )
    page.add_argument(
        "--link",
        action="store_true",
        said_only=(True,),
        help="in place of serving: print a link that opens the page that runs, once and within 5 minutes, and end; a secret",
    )
    page.set_defaults(waits=lambda args: not args.link)


def _add_changes(commands: Any) -> None:
    remove = _command(
        commands,
        "remove",
        "take a member out of the account; what it had let in is shown, and offered for removal too",
        "companion-push companion remove 'Old phone'",
    )
    _who(remove, "member")
    introduced = remove.exclusive_group()
    introduced.add_argument(
        "--introduced",
        action="store_true",
        said_only=(True,),
        help="with all that it let in, without asking about them",
    )
    introduced.add_argument(
        "--only",
        action="store_true",
        said_only=(True,),
        help="alone, without asking about what it let in",
    )
    _confirm_option(remove)
    rename = _command(
        commands,
        "rename",
        "give a member another label",
        "companion-push companion rename 'Phone' 'Phone of Ada'",
    )
    _who(rename, "member")
    rename.add_argument("label", metavar="LABEL", type=label_or_name, help="its new label")
    _confirm_option(rename)
    restore = _command(
        commands,
        "restore",
        "put back a member that was taken out and still has its state: it need not join again",
        "companion-push companion restore 'Kitchen hub'",
    )
    _who(restore, "former member")
    _confirm_option(restore)


def _who(parser: SettingsParser, what: str) -> None:
    parser.add_argument(
        "who", metavar="WHO", help=f"the {what}'s label, or the start of its name (6 characters or more)"
    )


def _confirm_option(parser: SettingsParser) -> None:
    parser.add_argument(
        "--confirm",
        metavar="LABEL",
        help="the member's label, which is otherwise to be typed at the terminal: for automation",
    )


def _add_members(commands: Any) -> None:
    _command(
        commands,
        "members",
        "list who belongs to the account; with --json as one object",
        "companion-push companion members",
    )


def _add_mute(commands: Any) -> None:
    muted = commands.add_parser("mute", help="the devices of which the relay takes no requests")
    actions = muted.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=SettingsParser
    )
    _command(
        actions,
        "mute list",
        "list the muted devices, and by whom they are muted; with --json as one object",
        "companion-push companion mute list",
    )
    add = _command(
        actions,
        "mute add",
        "let the relay take no requests of a device, until a companion ends that",
        "companion-push companion mute add kitchen",
    )
    remove = _command(
        actions,
        "mute remove",
        "let the relay take requests of a device again",
        "companion-push companion mute remove kitchen",
    )
    for command in (add, remove):
        command.add_argument(
            "who", metavar="WHO", help="the device's label, or the start of its name (6 characters or more)"
        )


def _add_channel(commands: Any) -> None:
    channel = commands.add_parser("channel", help="the ways in which this companion is woken while it sleeps")
    actions = channel.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=SettingsParser
    )
    add = _command(
        actions,
        "channel add",
        "let the relay wake this companion through a push service; stdout is the channel's handle",
        "companion-push companion channel add subscription.json",
    )
    add.add_argument(
        "file",
        metavar="FILE",
        help="file with the push address as JSON, or - for stdin: a browser's PushSubscription, or kind and its members; a secret",
    )
    add.add_argument(
        "--handle",
        metavar="HANDLE",
        type=_handle,
        help="the channel that gets this address, or is confirmed with it (default: a new one)",
    )
    _command(
        actions,
        "channel list",
        "list this companion's channels, and what the relay is set up for",
        "companion-push companion channel list",
    )
    remove = _command(
        actions,
        "channel remove",
        "remove a channel",
        "companion-push companion channel remove AbCdEfGhIjKlMnOpQrStUg",
    )
    remove.add_argument("handle", metavar="HANDLE", type=_handle, help="as `channel list` shows it")


def _command(
    commands: Any,
    name: str,
    summary_text: str,
    called: str,
) -> SettingsParser:
    """Make the parser of a command. name: of all words after ``companion``."""
    parser: SettingsParser = commands.add_parser(
        name.rpartition(" ")[2],
        help=summary_text,
        description=f"{summary_text[0].upper()}{summary_text[1:]}.",
        epilog=example(called),
    )
    add_settings(
        parser,
        section="companion." + name.replace(" ", "."),
        environment="COMPANION_PUSH_COMPANION_" + name.upper().replace(" ", "_"),
    )
    _member_options(parser)
    parser.set_defaults(main=_act(name))
    return parser


def add_push_test(commands: Any) -> None:
    """Add ``test`` to the commands of ``companion-push push``."""
    parser: SettingsParser = commands.add_parser(
        "test",
        help="have the relay push to this companion",
        description="Have the relay push to the channels of this companion, to each once, and tell what became of it.",
        epilog=example("companion-push push test"),
    )
    parser.add_argument(
        "handle",
        metavar="HANDLE",
        nargs="?",
        type=_handle,
        help="one channel, as `companion channel list` shows it (default: all of them)",
    )
    add_settings(parser, section="push.test", environment="COMPANION_PUSH_PUSH_TEST")
    _member_options(parser)
    parser.set_defaults(main=_act("push test"))


def _member_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state",
        metavar="DIR",
        default=DEFAULT_STATE,
        help=f"where this companion keeps its keys (default: {DEFAULT_STATE})",
    )
    _ca_option(parser, "relay")


def _ca_option(parser: argparse.ArgumentParser, whose: str) -> None:
    parser.add_argument(
        "--ca",
        metavar="FILE",
        type=Path,
        help=f"PEM file of roots to believe for the {whose}, instead of the system's",
    )


def _phone_options(parser: Options) -> None:
    parser.add_argument(
        "--credentials", metavar="FILE", type=Path, help="file of software passkeys, plain or sealed"
    )
    parser.add_argument(
        "--security-key",
        action="store_true",
        help="in place of --credentials: have a security key answer that is plugged in, with its PIN asked for at the terminal",
    )
    parser.add_argument(
        "--passphrase-file",
        metavar="FILE",
        help="file with the passphrase of sealed passkeys, - for stdin, /dev/fd/N for a descriptor (default: asked at the terminal)",
    )
    parser.add_argument(
        "--radio",
        metavar="RADIO",
        default=DEFAULT,
        help=f"bluez[:ADAPTER], bumble:TRANSPORT or stdout (default: {DEFAULT})",
    )
    parser.add_argument(
        "--tunnel",
        metavar="N=wss://HOST:PORT",
        type=_tunnel_service,
        action="append",
        help="tunnel service to use, and the number to name it by; the first counts",
    )
    parser.add_argument(
        "--uv",
        choices=("ask", "presence", "accept", "decline"),
        default="ask",
        help="user verification: ask at the terminal (default); presence asks there too, and tells relying parties that it verifies nobody; "
        "accept and decline are policies for tests",
    )
    parser.add_argument(
        "--algorithm",
        choices=("es256", "ml-dsa-44"),
        action="append",
        help="what new passkeys sign with (default: es256); repeatable, and of several the relying party's first choice counts",
    )
    parser.add_argument(
        "--synced",
        action="store_true",
        help="tell relying parties that this phone backs its passkeys up, as most phones do: flag BS, and BE of new ones",
    )
    parser.add_argument(
        "--links",
        metavar="FILE",
        type=Path,
        help="file of links: a device whose FIDO URL asks for it is linked when the user approves, and can ask again without a URL. "
        "Without it no device is linked",
    )


def _act(name: str) -> Callable[[argparse.Namespace], Coroutine[Any, Any, None]]:
    def act(args: argparse.Namespace) -> Coroutine[Any, Any, None]:
        from companion_push.companion.command import ACTS  # noqa: PLC0415

        return ACTS[name](args)

    return act


def _tunnel_service(text: str) -> "TunnelService":
    from companion_push.companion.phone import TunnelService  # noqa: PLC0415

    try:
        return TunnelService.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("expected a number of seconds") from error
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError("expected a number of seconds, at most a day")
    return seconds


def _handle(text: str) -> bytes:
    try:
        handle = from_base64url(text)
    except RemoteProtocolError as error:
        raise argparse.ArgumentTypeError("expected the handle of a channel") from error
    if len(handle) != HANDLE_SIZE:
        raise argparse.ArgumentTypeError("expected the handle of a channel")
    return handle


def _rp_id(text: str) -> str:
    if not is_domain(text):
        raise argparse.ArgumentTypeError("expected a domain name in lower case")
    return text
