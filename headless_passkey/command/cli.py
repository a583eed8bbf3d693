"""The program ``headless-passkey``: its options and its small commands.

stdout is data, stderr is for people, and the exit status tells the branch of the error tree.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from headless_passkey.command.command_line import (
    Options,
    SettingsParser,
    add_completion,
    add_settings,
    example,
    expand_home,
    expect_account_option,
    label_or_name,
    out,
    read_secret_line,
    run,
    say,
)
from headless_passkey.errors import (
    EnrolmentReason,
    HeadlessPasskeyError,
    ProtocolReason,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TransportReason,
    UsageError,
)
from headless_passkey.mends import transport_error
from headless_passkey.net.base_url import WEB, BaseUrl
from headless_passkey.process.streams import talk
from headless_passkey.request import CEREMONY_TIMEOUT
from headless_passkey.webauthn.origins import check_origin
from program_parts.command_line import add_version
from program_parts.names import quoted

if TYPE_CHECKING:
    from headless_passkey.hybrid.fido_url import FidoUrl

ENVIRONMENT: Final = "HEADLESS_PASSKEY"
DEFAULT_STATE: Final = "~/.local/state/headless-passkey"
MAX_DAYS: Final = 365
JOIN_TIMEOUT: Final = 600.0  # seconds: as long as an invitation lives
_Act: TypeAlias = Callable[[argparse.Namespace], Coroutine[Any, Any, None]]  # as `run` takes it


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    words = sys.argv[1:] if argv is None else argv
    args = make_parser(*words[:1]).parse_args(words)
    return run(args.command, args)


def make_parser(command: str = "") -> argparse.ArgumentParser:
    """Make the parser of all commands, or of one alone: a start waits for the options of no other."""
    parser = SettingsParser(
        prog="headless-passkey",
        description="Sign in with a passkey on a device that has no screen.",
        epilog=example("headless-passkey sign-in --rp https://login.example"),
    )
    add_version(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in [_COMMANDS[command]] if command in _COMMANDS else _COMMANDS.values():
        add(commands)
    return parser


def _add_join(commands: Any) -> None:
    join = _command(
        commands,
        "join",
        _join,
        "join an account with an invitation",
        "headless-passkey join --invitation invitation.txt --label 'Kitchen hub'",
    )
    join.add_argument(
        "--invitation", required=True, metavar="FILE", help="file with the invitation, or - for stdin"
    )
    join.add_argument(
        "--label",
        type=label_or_name,
        required=True,
        help="what people will call this device, such as 'Kitchen hub'",
    )
    expect_account_option(join)
    join.add_argument("--rp-id", metavar="ID", help="let this device ask for this relying party only")
    join.add_argument(
        "--origin", metavar="ORIGIN", type=_origin, help="let this device speak for this origin only"
    )
    join.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        default=JOIN_TIMEOUT,
        help="seconds to wait for the inviter (default: 600); the same command goes on after that",
    )
    _state_option(join)
    _ca_option(join)


def _add_leave(commands: Any) -> None:
    leave = _command(
        commands,
        "leave",
        _leave,
        "take this device out of its account, and forget account, keys and sessions",
        "headless-passkey leave",
    )
    _state_option(leave)
    _ca_option(leave)
    leave.add_argument(
        "--anyway",
        action="store_true",
        help="forget it here also when the relay cannot take this device out of the account's list",
    )


def _add_status(commands: Any) -> None:
    status = _command(
        commands,
        "status",
        _status,
        "show what account this device belongs to, as JSON",
        "headless-passkey status | python3 -m json.tool",
    )
    _state_option(status)


def _add_sign_in(commands: Any) -> None:
    called = "headless-passkey sign-in --rp https://login.example"
    _ceremony_options(_command(commands, "sign-in", _sign_in, "sign in with a passkey on a phone", called))


def _add_register(commands: Any) -> None:
    called = "headless-passkey register --rp https://login.example --user ada"
    _ceremony_options(_command(commands, "register", _register, "make a passkey on a phone", called))


def _add_doctor(commands: Any) -> None:
    doctor = _command(
        commands,
        "doctor",
        _doctor,
        "say what would keep a sign-in from working, and what to do about it; with --json in one object",
        "headless-passkey doctor --rp https://login.example",
    )
    doctor.add_argument("--rp", metavar="URL", type=_relying_party, help="look at this relying party too")
    _radio_options(doctor)
    _tunnel_option(doctor)
    _state_option(doctor)
    _ca_option(doctor)


def _add_inspect(commands: Any) -> None:
    inspect = _command(
        commands,
        "inspect",
        _inspect,
        "show what the FIDO URL on stdin holds, without its secrets",
        "headless-passkey inspect < url.txt",
    )
    inspect.add_argument("--advert", metavar="HEX", help="service data of an advert to open with it")


def _add_tunnel_domain(commands: Any) -> None:
    domain = _command(
        commands,
        "tunnel-domain",
        _tunnel_domain,
        "print the host of a tunnel domain number",
        "headless-passkey tunnel-domain 0",
    )
    domain.add_argument("number", metavar="N", type=_number)


def _add_completion(commands: Any) -> None:
    add_completion(commands, package="headless_passkey", program="headless-passkey")


def _add_session(commands: Any) -> None:
    """``session show|refresh|fetch|sign-out``: the commands for the session of a sign-in."""
    what = "use the session of a sign-in"
    session = commands.add_parser("session", help=what, description=what)
    actions = session.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=SettingsParser
    )
    show = _command(
        actions,
        "show",
        _session("show"),
        "show the sessions that are kept, one JSON object a line, without their tokens",
        "headless-passkey session show",
        section="session.show",
    )
    refresh = _command(
        actions,
        "refresh",
        _session("refresh"),
        "get new tokens from the relying party, and show the session; fetch does it by itself",
        "headless-passkey session refresh",
        section="session.refresh",
    )
    fetch = _command(
        actions,
        "fetch",
        _session("fetch"),
        "send a request with the session's token and print the answer's body; status 12 when the answer is no,"
        " 11 when there is no session",
        "headless-passkey session fetch https://api.example/me",
        section="session.fetch",
    )
    sign_out = _command(
        actions,
        "sign-out",
        _session("sign_out"),
        "end the session at the relying party, and forget it",
        "headless-passkey session sign-out",
        section="session.sign-out",
    )
    for parser in (show, refresh, fetch, sign_out):
        parser.add_argument(
            "--rp",
            metavar="URL",
            type=_relying_party,
            help="the session of this relying party; needed where several are kept"
            + (" that may be used at the URL" if parser is fetch else ""),
        )
        _state_option(parser)
    for parser in (refresh, fetch, sign_out):
        _ca_option(parser)
    fetch.add_argument("url", metavar="URL", help="what to ask for, over https")
    fetch.add_argument("--method", metavar="METHOD", help="default: GET, and POST with --data")
    fetch.add_argument(
        "--data",
        metavar="DATA",
        help="what to send: @FILE, @- for stdin, or the text itself where it is no secret",
    )
    fetch.add_argument(
        "--header",
        metavar="'NAME: VALUE'",
        action="append",
        default=[],
        help="a header to send; repeatable. With --data, Content-Type is application/json unless it is given",
    )
    _audience_option(fetch, "may have the token for this request")
    fetch.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        default=30.0,
        help="deadline in seconds, a refresh of the token included (default: 30)",
    )
    sign_out.add_argument(
        "--anyway", action="store_true", help="forget it also when the relying party cannot be told"
    )


def _session(action: str) -> _Act:
    def command(args: argparse.Namespace) -> Coroutine[Any, Any, None]:
        from headless_passkey.command import session  # noqa: PLC0415

        work: Coroutine[Any, Any, None] = getattr(session, action)(args)
        return work

    return command


def _add_users(commands: Any) -> None:
    """``users list|add|forget``: the commands for the users whom this device expects."""
    what = "list, add or forget the users whom this device expects at relying parties"
    users = commands.add_parser("users", help=what, description=what)
    actions = users.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=SettingsParser
    )
    show = _command(
        actions,
        "list",
        _users("show"),
        "show the users whom this device expects, one JSON object a line",
        "headless-passkey users list",
        section="users.list",
    )
    show.add_argument("--rp-id", metavar="ID", help="at this relying party only")
    add = _command(
        actions,
        "add",
        _users("add"),
        "expect a user, before the first sign-in or beside those who are expected",
        "headless-passkey users add --rp-id login.example --handle YWRh --name ada",
        section="users.add",
    )
    add.add_argument("--rp-id", metavar="ID", required=True, help="the RP ID of the relying party")
    add.add_argument("--handle", metavar="HANDLE", required=True, help="base64url user handle")
    add.add_argument("--name", metavar="NAME", type=label_or_name, help="the user name, for people")
    forget = _command(
        actions,
        "forget",
        _users("forget"),
        "forget a user; when none is left, the next who signs in or registers is expected from then on",
        "headless-passkey users forget --rp-id login.example",
        section="users.forget",
    )
    forget.add_argument("--rp-id", metavar="ID", required=True, help="the RP ID of the relying party")
    forget.add_argument("--handle", metavar="HANDLE", help="base64url user handle (default: all users there)")
    for parser in (show, add, forget):
        _state_option(parser)


def _users(action: str) -> _Act:
    def command(args: argparse.Namespace) -> Coroutine[Any, Any, None]:
        from headless_passkey.command import users  # noqa: PLC0415

        work: Coroutine[Any, Any, None] = getattr(users, action)(args)
        return work

    return command


def _add_phones(commands: Any) -> None:
    """``phones list|rename|forget``: the commands for the linked phones."""
    what = "list, rename or forget the phones that this device is linked with, by `sign-in --link`"
    phones = commands.add_parser("phones", help=what, description=what)
    actions = phones.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=SettingsParser
    )
    show = _command(
        actions,
        "list",
        _phones("show"),
        "show the linked phones, one JSON object a line, without their secrets",
        "headless-passkey phones list",
        section="phones.list",
    )
    rename = _command(
        actions,
        "rename",
        _phones("rename"),
        "call a linked phone something else than it calls itself",
        "headless-passkey phones rename 'Software phone' \"Ada's phone\"",
        section="phones.rename",
    )
    rename.add_argument("which", metavar="PHONE", help="its label, or its link as `phones list` names it")
    rename.add_argument("label", metavar="LABEL", type=label_or_name, help="what it is called from now on")
    forget = _command(
        actions,
        "forget",
        _phones("forget"),
        "forget a linked phone: this device asks for it by requests again",
        'headless-passkey phones forget "Ada\'s phone"',
        section="phones.forget",
    )
    forget.add_argument(
        "which", metavar="PHONE", nargs="?", help="its label, or its link as `phones list` names it"
    )
    forget.add_argument("--all", action="store_true", help="forget all of them")
    for parser in (show, rename, forget):
        _state_option(parser)


def _phones(action: str) -> _Act:
    def command(args: argparse.Namespace) -> Coroutine[Any, Any, None]:
        from headless_passkey.command import phones  # noqa: PLC0415

        work: Coroutine[Any, Any, None] = getattr(phones, action)(args)
        return work

    return command


def _audience_option(options: Options, what: str) -> None:
    options.add_argument(
        "--audience",
        metavar="ORIGIN",
        type=_service,
        action="append",
        default=[],
        help=f"a service that {what}, beside those the relying party names; repeatable",
    )


def _command(
    commands: Any,
    name: str,
    act: _Act,
    help_text: str,
    called: str,
    *,
    section: str | None = None,
) -> SettingsParser:
    """Add a command. called: an example. section: of settings; default: `name`."""
    parser: SettingsParser = commands.add_parser(
        name, help=help_text, description=help_text, epilog=example(called)
    )
    section = section or name
    environment = section.replace("-", "_").replace(".", "_").upper()
    add_settings(parser, section=section, environment=f"{ENVIRONMENT}_{environment}")
    parser.set_defaults(command=act)
    return parser


def _state_option(options: Options) -> None:
    options.add_argument(
        "--state",
        metavar="DIR",
        default=DEFAULT_STATE,
        help=f"where this device keeps its keys (default: {DEFAULT_STATE})",
    )


def _ca_option(options: Options) -> None:
    options.add_argument(
        "--ca", metavar="FILE", type=Path, help="PEM file of roots to believe instead of the system's"
    )


def _radio_options(options: Options) -> None:
    options.add_argument(
        "--radio",
        metavar="RADIO",
        default="bleak",
        help="bleak[:ADAPTER], bumble:TRANSPORT or stdin (default: bleak)",
    )
    options.add_argument(
        "--scan",
        choices=("active", "passive"),
        default="active",
        help="passive only listens: less power, where the Bluetooth service can do it (default: active)",
    )


def _tunnel_option(options: Options) -> None:
    options.add_argument(
        "--tunnel",
        metavar="N=wss://HOST:PORT",
        type=_tunnel,
        action="append",
        default=[],
        help="the tunnel service of domain number N; repeatable",
    )


def _ceremony_options(parser: SettingsParser) -> None:
    what = parser.titled_group("what is asked (--rp, or --options with --origin)")
    what.add_argument(
        "--rp",
        metavar="URL",
        type=_relying_party,
        help="relying party to begin and complete at, with the path it is mounted at; keeps the session, and prints it without its tokens",
    )
    _audience_option(what, "may have the session's token")
    what.add_argument(
        "--no-keep",
        action="store_true",
        help="with --rp: print the session with its tokens, and do not keep it in the state directory",
    )
    what.add_argument("--rp-id", metavar="ID", help="with --rp: its RP ID (default: the host of URL)")
    what.add_argument(
        "--user",
        metavar="NAME",
        type=label_or_name,
        help="with --rp: the user name to register or sign in",
    )
    what.add_argument(
        "--options", metavar="FILE", help="WebAuthn options JSON, or - for stdin; prints the response JSON"
    )
    what.add_argument(
        "--origin", metavar="ORIGIN", type=_origin, help="with --options: the origin to speak for"
    )
    what.add_argument(
        "--expect-user", metavar="HANDLE", help="base64url user handle; refuse any other account"
    )
    what.add_argument(
        "--add-user",
        action="store_true",
        help="with --rp: expect the user who answers from now on too; without it, only the first is, and others are refused",
    )
    what.add_argument(
        "--any-user", action="store_true", help="whoever answers, this once, and expect nobody in future"
    )
    how = parser.titled_group("how it travels")
    how.add_argument("--delivery", choices=("relay", "stdout"), default="relay", help="default: relay")
    how.add_argument(
        "--link",
        action="store_true",
        help="ask the phone for a link; a linked phone is asked first from then on, without a request (`phones list`)",
    )
    _radio_options(how)
    how.add_argument(
        "--min-rssi",
        metavar="DBM",
        type=_dbm,
        help="do not hear adverts weaker than this, such as -70; makes relaying harder, proves nothing",
    )
    how.add_argument(
        "--join-within",
        metavar="S",
        type=_seconds,
        help="seconds from a phone's advert until its secure channel must be open; as --min-rssi",
    )
    how.add_argument(
        "--direct",
        action="store_true",
        help="offer the phone the direct Bluetooth channel of CTAP 2.3, which needs no tunnel service; some older phones refuse such a URL",
    )
    how.add_argument(
        "--require-witness",
        metavar="DAYS",
        type=_days,
        help="refuse when no other companion than the last one that changed the members has confirmed them for so many days",
    )
    _tunnel_option(how)
    how.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        default=CEREMONY_TIMEOUT,
        help=f"deadline in seconds (default: {CEREMONY_TIMEOUT:g})",
    )
    how.add_argument("--note", help="a line to show on the companion")
    how.add_argument(
        "--match-digits", action="store_true", help="show two digits here that must be typed on the companion"
    )
    how.add_argument(
        "--digits-by",
        choices=("show", "speak", "blink", "vibrate"),
        default="show",
        help="how this device tells the digits, for the program that reads the stage (default: %(default)s)",
    )
    _state_option(how)
    _ca_option(how)


def _sign_in(args: argparse.Namespace) -> Coroutine[Any, Any, None]:
    return _ceremony(args, registers=False)


def _register(args: argparse.Namespace) -> Coroutine[Any, Any, None]:
    return _ceremony(args, registers=True)


def _ceremony(args: argparse.Namespace, *, registers: bool) -> Coroutine[Any, Any, None]:
    """Load what a sign-in or registration begins with. Imports are here, so that small commands load neither radio nor network."""
    from headless_passkey.command import sign_in  # noqa: PLC0415

    sign_in.check_options(args, registers=registers)
    return sign_in.run(args, registers=registers)


def _doctor(args: argparse.Namespace) -> Coroutine[Any, Any, None]:
    from headless_passkey.command.doctor import diagnose  # noqa: PLC0415

    return diagnose(args)


async def _join(args: argparse.Namespace) -> None:
    from headless_passkey.account import enrolment  # noqa: PLC0415
    from headless_passkey.command.joining import (  # noqa: PLC0415
        details,
        go_on,
        number_line,
        terminal_to_ask,
        waiting_line,
        whereto,
    )
    from headless_passkey.net.tls import tls_context  # noqa: PLC0415
    from headless_passkey.trust.invitation import Invitation  # noqa: PLC0415

    until = time.monotonic() + args.timeout
    try:
        async with asyncio.timeout(args.timeout):
            line = await read_secret_line(args.invitation)
    except TimeoutError as error:
        what = f"no invitation came within {args.timeout:g} s"
        raise transport_error(what, TransportReason.NO_INPUT) from error
    seconds = max(0.01, until - time.monotonic())
    invitation = Invitation.parse(line)
    enrolment.check_invitation(invitation, expect_account=args.expect_account)
    say(args, whereto(invitation), stage="account", **details(invitation))
    say(args, waiting_line(seconds), stage="waiting", seconds=round(seconds))
    with contextlib.ExitStack() as stack:
        terminal = terminal_to_ask(stack, json=args.json, expected=args.expect_account)
        joined = await enrolment.join(
            _state(args),
            invitation,
            label=args.label,
            tls=tls_context(args.ca),
            rp_id=args.rp_id,
            origin=args.origin,
            expect_account=args.expect_account,
            timeout=seconds,
            on_check_number=lambda number: say(
                args, number_line(number), stage="number", check_number=number
            ),
            go_on=lambda: go_on(terminal),
        )
    say(
        args,
        f"joined account {quoted(invitation.account_name)} as {quoted(joined.label)}",
        stage="joined",
        account=joined.account,
        name=joined.name,
        label=joined.label,
    )


# without a usable key file there is nothing to sign with, and `leave` says what it may remove
_NOTHING_TO_SIGN_WITH: Final = (
    SetupReason.STATE_DAMAGED,
    SetupReason.STATE_EXPOSED,
    SetupReason.STATE_FOREIGN,
    SetupReason.STATE_INCOMPATIBLE,
    SetupReason.STATE_UNREADABLE,
)


async def _leave(args: argparse.Namespace) -> None:
    from headless_passkey.account import enrolment  # noqa: PLC0415
    from headless_passkey.account.links import LinkStore  # noqa: PLC0415
    from headless_passkey.net.tls import tls_context  # noqa: PLC0415
    from headless_passkey.rp.key_store import KeyStore  # noqa: PLC0415
    from headless_passkey.rp.session_store import SessionStore  # noqa: PLC0415
    from headless_passkey.rp.users import all_users  # noqa: PLC0415

    state, taken_out = _state(args), False
    try:
        taken_out = await enrolment.take_out(state, tls=tls_context(args.ca))
    except HeadlessPasskeyError as error:
        closed = error.reason is EnrolmentReason.ACCOUNT_CLOSED
        unusable = closed or (isinstance(error, SetupError) and error.reason in _NOTHING_TO_SIGN_WITH)
        if not args.anyway and not unusable:
            talk(
                "the account still lists this device, so nothing was removed: `leave --anyway` forgets it here only"
            )
            raise
    left = enrolment.leave(state)
    KeyStore(_state(args)).remove_all()
    if LinkStore(_state(args)).remove_all():
        talk("forgot the linked phones, which list this device until they forget it too")
    if gone := SessionStore(_state(args)).remove_all():
        talk(
            f"forgot the sessions at {', '.join(gone)}, where they last to their end: sign out before leaving"
        )
    if pinned := all_users(_state(args)):
        talk(
            f"still expects its users at {', '.join(pinned)}: `headless-passkey users forget` before somebody else gets this device"
        )
    files = " and ".join(map(str, left.removed))
    if left.account is None:
        talk(
            f"removed {files}, which could not be used any more; an account that lists this device does so until a companion removes it"
        )
    else:
        still = "" if taken_out else "; the account may list this device until a companion removes it"
        talk(f"left, and removed {files}{still}")


async def _status(args: argparse.Namespace) -> None:
    from headless_passkey.account import enrolment  # noqa: PLC0415
    from headless_passkey.account.links import LinkStore  # noqa: PLC0415
    from headless_passkey.rp.key_store import KeyStore  # noqa: PLC0415
    from headless_passkey.rp.users import all_users  # noqa: PLC0415
    from headless_passkey.trust.signing import thumbprint  # noqa: PLC0415

    joined = enrolment.load(_state(args))
    ring = joined.chain.head
    users = all_users(_state(args), _tell_damage)
    keys = KeyStore(_state(args)).all(_tell_damage)
    try:
        links = LinkStore(_state(args)).read()
    except HeadlessPasskeyError as error:
        _tell_damage(error)
        links = ()
    out(
        json.dumps(
            {
                "account": joined.account,
                "device": joined.name,
                "label": joined.label,
                "relay": joined.relay_url,
                "ring": {"version": ring.version, "hash": ring.hash.hex(), "number": ring.number},
                "members": [
                    {"name": member.name, "role": member.role, "label": member.label}
                    for member in ring.members
                ],
                "keys": {origin: thumbprint(key.public_key) for origin, key in keys.items()},
                "witnesses": [
                    {"name": each.member.name, "label": each.member.label, "at": each.at}
                    for each in joined.witnesses
                ],
                "users": [
                    {"rp_id": rp_id, **user.to_json()} for rp_id, pinned in users.items() for user in pinned
                ],
                "phones": [link.to_json() for link in links],
            }
        )
    )


def _tell_damage(error: HeadlessPasskeyError) -> None:
    talk(error.explain())


def _state(args: argparse.Namespace) -> Path:
    return expand_home(args.state)


async def _inspect(args: argparse.Namespace) -> None:
    from headless_passkey.hybrid.fido_url import MAX_LENGTH, FidoUrl  # noqa: PLC0415

    url = FidoUrl.parse(await read_secret_line("-", limit=MAX_LENGTH))
    shown: dict[str, Any] = {
        "public_key": url.public_key.hex(),
        "assigned_domains": url.assigned_domains,
        "time": url.time,
        "linking": url.linking,
        "hint": url.hint.value,
        "channels": None if url.channels is None else list(url.channels),
        "unknown_keys": [key.hex() if isinstance(key, bytes) else key for key in url.unknown_keys],
        "tunnel_id": url.tunnel_id.hex(),
    }
    if url.hint_raw != url.hint:
        shown["hint_raw"] = url.hint_raw
    if args.advert is not None:
        shown["advert"] = _opened_advert(url, args.advert)
    out(json.dumps(shown))


def _opened_advert(url: "FidoUrl", advert: str) -> dict[str, Any]:
    from headless_passkey.hybrid import eid  # noqa: PLC0415
    from headless_passkey.hybrid.tunnel_url import connect_url, tunnel_domain  # noqa: PLC0415
    from headless_passkey.radio.pipe import parse_advert_line  # noqa: PLC0415

    service_data = parse_advert_line(os.fsencode(advert)).service_data
    opened = eid.open_advert(eid.eid_key(url.secret), service_data)
    if opened is None:
        raise RemoteProtocolError(
            "the advert was not sealed for this FIDO URL", reason=ProtocolReason.OTHER_KEY
        )
    try:
        base = f"wss://{tunnel_domain(opened.tunnel_domain)}"
    except RemoteProtocolError:
        base = None  # an unassigned number, for which only --tunnel has a service
    return {
        "nonce": opened.nonce.hex(),
        "routing_id": opened.routing_id.hex(),
        "tunnel_domain": opened.tunnel_domain,
        "tunnel_url": base and connect_url(base, opened.routing_id, url.tunnel_id),
    }


async def _tunnel_domain(args: argparse.Namespace) -> None:
    from headless_passkey.hybrid.tunnel_url import tunnel_domain  # noqa: PLC0415

    try:
        out(tunnel_domain(args.number))
    except RemoteProtocolError as error:
        raise UsageError(str(error)) from error


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise argparse.ArgumentTypeError("expected a whole number")
    return int(text)


def _days(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:5]) <= MAX_DAYS):
        raise argparse.ArgumentTypeError(f"expected 1 to {MAX_DAYS} days")
    return int(text)


def _dbm(text: str) -> int:
    try:
        dbm = int(text)
    except ValueError:
        dbm = 0
    if not -127 < dbm < 0:
        raise argparse.ArgumentTypeError("expected dBm, from -126 to -1")
    return dbm


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError("expected seconds, more than 0 and at most 3600")
    return seconds


def _tunnel(text: str) -> tuple[int, str]:
    number, _, base = text.partition("=")
    if not (number.isascii() and number.isdigit() and len(number) <= 5 and int(number) <= 0xFFFF):
        raise argparse.ArgumentTypeError("expected N=wss://HOST:PORT with N from 0 to 65535")
    return int(number), str(_url(base, schemes=("wss",)))


def _relying_party(text: str) -> BaseUrl:
    """Parse a relying party's address, whose origin a device must be allowed to use."""
    base = _url(text)
    try:
        check_origin(base.origin)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return base


def _origin(text: str) -> str:
    base = _url(text)
    if base.path:
        raise argparse.ArgumentTypeError("an origin has no path")
    return _relying_party(text).origin


def _service(text: str) -> str:
    """Parse the origin of a service that may get a token."""
    base = _url(text)
    if base.path or (base.scheme != "https" and not base.is_loopback):
        raise argparse.ArgumentTypeError("expected an origin: https://HOST[:PORT], or http on this machine")
    return base.origin


def _url(text: str, *, schemes: tuple[str, ...] = WEB) -> BaseUrl:
    try:
        return BaseUrl.parse(text, schemes=schemes)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


_COMMANDS: Final[Mapping[str, Callable[[Any], None]]] = {
    "join": _add_join,
    "leave": _add_leave,
    "status": _add_status,
    "sign-in": _add_sign_in,
    "register": _add_register,
    "session": _add_session,
    "users": _add_users,
    "phones": _add_phones,
    "doctor": _add_doctor,
    "inspect": _add_inspect,
    "tunnel-domain": _add_tunnel_domain,
    "completion": _add_completion,
}
