"""``companion-push phone`` and ``companion-push companion``: the software phone and the companion as programs.

stdout is data (adverts, an invitation, the members), stderr is talk, and with ``--json`` one JSON object per
line, never a secret. Account codes, invitations and FIDO URLs come from files or stdin.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from companion_push.companion.advertiser.choose import DEFAULT, open_advertiser
from companion_push.companion.attend import Outcomes, answer_pending, wait_for_requests
from companion_push.companion.consent import Answer, AtTerminal, Consent, Policy, describe, summary
from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.inbox import Inbox, Notice, Stage
from companion_push.companion.keys import CompanionState
from companion_push.companion.membership import Membership
from companion_push.companion.openers import BuiltInPhone, Command, Opener, QrPicture, SystemLauncher
from companion_push.companion.phone import (
    WARNING,
    SoftwarePhone,
    TunnelService,
    UserVerification,
    accept,
    ask,
    decline,
)
from companion_push.companion.relay_client import CompanionRelay
from companion_push.companion.terminal import Terminal
from headless_passkey.command_line import (
    UsageError,
    add_settings,
    expand_home,
    label_or_name,
    out,
    read_secret_line,
    show_progress,
    talk,
    until_terminated,
)
from headless_passkey.errors import NotApproved, Outcome
from headless_passkey.hybrid.fido_url import MAX_LENGTH, PREFIX
from headless_passkey.names import printable
from headless_passkey.tls import tls_context
from headless_passkey.trust.invitation import LIFETIME, Introduction
from headless_passkey.trust.ring import MAX_RP_IDS, Role, is_rp_id

DEFAULT_STATE: Final = "~/.local/state/companion-push"
DEFAULT_TIMEOUT: Final = 120.0  # seconds for the phone: what tunnel services allow a transaction

_ONCE: Final = """exit status with --once or --pending:
  0  the request was opened (and, with --opener phone, answered), or another companion
     has it, or nothing was pending; --json tells these apart by their stages
  5  the phone said no        7  withdrawn or expired
  6  declined                 8  refused by a check
Without either it waits until SIGTERM or SIGINT, and ends with 0.
"""


def add_parser(subparsers: Any) -> None:
    """Add ``phone`` and ``companion`` to the programs of ``companion-push``."""
    phone = subparsers.add_parser(
        "phone",
        help="a software phone, for demos and tests",
        description="A phone in software, for demonstrations and tests: serves one FIDO URL, with passkeys in a file. "
        "With --radio stdout it prints its advert, one line every half second.",
        epilog="Example: companion-push phone --url - --radio stdout --tunnel 300=wss://localhost:8443"
        " --credentials passkeys.json --ca ca.pem --uv accept",
    )
    add_settings(phone, section="phone", environment="COMPANION_PUSH_PHONE")
    phone.add_argument("--url", metavar="FILE", required=True, help="file with the FIDO URL, or - for stdin")
    _phone_options(phone, required=True)
    phone.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        default=DEFAULT_TIMEOUT,
        help=f"seconds for everything (default: {DEFAULT_TIMEOUT:g})",
    )
    _ca_option(phone, "tunnel service")
    phone.set_defaults(main=_phone)

    companion = subparsers.add_parser(
        "companion",
        help="the companion app: join, invite, run, members",
        description="The companion: shows what a device asks for, takes consent, and brings the FIDO URL to a phone.",
        epilog="companion-push companion COMMAND --help tells a command's options.",
    )
    commands = companion.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_join(commands)
    _add_invite(commands)
    _add_run(commands)
    _add_members(commands)


def _add_join(commands: Any) -> None:
    join = _command(
        commands,
        "join",
        _join,
        "found an account with its code, or join one with an invitation",
        "companion-push companion join --code code.txt --label 'My phone'",
    )
    join.add_argument(
        "--code",
        metavar="FILE",
        required=True,
        help="file with the account code or invitation, or - for stdin",
    )
    join.add_argument(
        "--label",
        type=label_or_name,
        required=True,
        help="what people will call this companion, such as 'My phone'",
    )


def _add_invite(commands: Any) -> None:
    invite = _command(
        commands,
        "invite",
        _invite,
        "let a device or another companion in; the first line on stdout is the invitation, a secret",
        "companion-push companion invite --kind device --rp-id login.example",
    )
    invite.add_argument("--kind", choices=[str(role) for role in Role], required=True)
    invite.add_argument(
        "--rp-id",
        metavar="ID",
        action="append",
        type=_rp_id,
        help="a relying party that the device may ask for; repeatable (default: any)",
    )
    invite.add_argument(
        "--yes", action="store_true", help="let the newcomer in without asking: for automation"
    )
    invite.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        default=float(LIFETIME),
        help=f"seconds to wait for the newcomer (default: {LIFETIME})",
    )


def _add_run(commands: Any) -> None:
    run = _command(
        commands,
        "run",
        _run,
        "wait for requests, ask, and bring what is approved to a phone",
        f"companion-push companion run --opener qr\n\n{_ONCE}",
    )
    run.formatter_class = argparse.RawDescriptionHelpFormatter
    run.add_argument(
        "--opener",
        choices=("qr", "system", "command", "phone"),
        default="qr",
        help="how the FIDO URL gets to a phone: a QR code on the terminal (default), the system's URL launcher "
        "(which sees the URL in its arguments), a command with the URL on stdin, or the software phone",
    )
    run.add_argument("--opener-command", metavar="CMD", help="for --opener command: what to start")
    run.add_argument(
        "--consent",
        choices=("ask", "accept", "decline"),
        default="ask",
        help="ask at the terminal (default), or answer every request alike: for tests",
    )
    run.add_argument("--once", action="store_true", help="end when one request has ended")
    run.add_argument(
        "--pending", action="store_true", help="ask once what is pending, deal with that, and end"
    )
    phone = run.add_argument_group("for --opener phone, which is for demonstrations and tests")
    _phone_options(phone, required=False)


def _add_members(commands: Any) -> None:
    _command(
        commands,
        "members",
        _members,
        "list who belongs to the account; with --json as one object",
        "companion-push companion members",
    )


def _command(
    commands: Any,
    name: str,
    main: Callable[[argparse.Namespace], Coroutine[Any, Any, None]],
    summary_text: str,
    example: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary_text,
        description=f"{summary_text[0].upper()}{summary_text[1:]}.",
        epilog=f"Example: {example}",
    )
    add_settings(parser, section=f"companion.{name}", environment=f"COMPANION_PUSH_COMPANION_{name.upper()}")
    parser.add_argument(
        "--state",
        metavar="DIR",
        default=DEFAULT_STATE,
        help=f"where this companion keeps its keys (default: {DEFAULT_STATE})",
    )
    _ca_option(parser, "relay")
    parser.set_defaults(main=main)
    return parser


def _ca_option(parser: argparse.ArgumentParser, whose: str) -> None:
    parser.add_argument(
        "--ca",
        metavar="FILE",
        type=Path,
        help=f"PEM file of roots to believe for the {whose}, instead of the system's",
    )


def _phone_options(parser: Any, *, required: bool) -> None:
    parser.add_argument(
        "--credentials", metavar="FILE", type=Path, required=required, help="file of software passkeys"
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
        required=required,
        help="tunnel service to use, and the number to name it by; the first counts",
    )
    parser.add_argument(
        "--uv",
        choices=("ask", "accept", "decline"),
        default="ask",
        help="user verification: ask at the terminal (default), or a policy for tests",
    )


# The software phone


async def _phone(args: argparse.Namespace) -> None:
    if args.url.upper().startswith(PREFIX):
        raise UsageError("the FIDO URL is a secret: give a file that holds it, or - for stdin")
    until = time.monotonic() + args.timeout
    talk(_line(args, WARNING, warning=WARNING))
    with contextlib.ExitStack() as stack:
        phone = _software_phone(args, stack)
        phone.credentials.load()  # a file that cannot be used is said before anybody waits
        url = await _line_within(args.url, args.timeout)
        await phone.answer(url, timeout=max(0.01, until - time.monotonic()))


def _software_phone(args: argparse.Namespace, stack: contextlib.ExitStack) -> SoftwarePhone:
    """The phone that the options describe. `UsageError` when they do not do."""
    for option, value in (("credentials", args.credentials), ("tunnel", args.tunnel)):
        if not value:
            raise UsageError(f"the software phone needs --{option}")
    credentials = expand_home(args.credentials)
    if not credentials.resolve().parent.is_dir():
        raise UsageError(f"there is no directory for {args.credentials}")
    return SoftwarePhone(
        credentials=CredentialFile(path=credentials),
        advertiser=open_advertiser(args.radio),
        tunnel_service=args.tunnel[0],
        tls=tls_context(args.ca),
        verify_user=_user_verification(args.uv, stack),
        on_stage=lambda stage: (talk if args.json else show_progress)(
            _line(args, f"phone: {stage}", stage=f"phone-{stage}")
        ),
    )


def _user_verification(how: str, stack: contextlib.ExitStack) -> UserVerification:
    match how:
        case "accept":
            return accept
        case "decline":
            return decline
    return ask(stack.enter_context(Terminal.open()))


async def _line_within(source: str, seconds: float) -> str:
    try:
        async with asyncio.timeout(seconds):
            return await read_secret_line(source, limit=MAX_LENGTH)
    except TimeoutError as error:
        raise NotApproved(Outcome.EXPIRED, f"no FIDO URL came within {seconds:g} s") from error


# The companion


async def _join(args: argparse.Namespace) -> None:
    line = await read_secret_line(args.code)

    def show_check_number(number: str) -> None:
        talk(
            _line(
                args,
                f"check number: {number}; the inviter must see the same",
                stage="introduced",
                check_number=number,
            )
        )

    identity = await _membership(args).join(line, label=args.label, on_check_number=show_check_number)
    talk(
        _line(
            args,
            f"joined account {printable(identity.account)} as {args.label}",
            stage="joined",
            account=identity.account,
            name=identity.keys.name,
        )
    )


async def _invite(args: argparse.Namespace) -> None:
    kind = Role(args.kind)
    if args.rp_id and kind is not Role.DEVICE:
        raise UsageError("--rp-id is for devices")
    rp_ids = tuple(dict.fromkeys(args.rp_id)) if args.rp_id else None
    if rp_ids is not None and len(rp_ids) > MAX_RP_IDS:
        raise UsageError(f"a device is bound to at most {MAX_RP_IDS} relying parties")
    with contextlib.ExitStack() as stack:
        terminal = None if args.yes else stack.enter_context(Terminal.open())

        def show(line: str) -> None:
            out(line)
            talk(_line(args, "the line above lets one newcomer in: show it to nobody else", stage="invited"))

        async def consent(introduction: Introduction) -> bool:
            label, number = printable(introduction.label), introduction.check_number
            talk(
                _line(
                    args,
                    f"a {introduction.kind} called {label} has come; its check number is {number}",
                    stage="introduced",
                    kind=str(introduction.kind),
                    label=introduction.label,
                    check_number=number,
                )
            )
            return terminal is None or await _yes(terminal, f"Let {label} in? y or n:")

        member = await _membership(args).invite(
            kind,
            rp_ids=rp_ids,
            seconds=args.timeout,
            show=show,
            consent=consent,
        )
    label = printable(member.label)
    talk(
        _line(
            args,
            f"{label} belongs to the account now",
            stage="admitted",
            name=member.name,
            label=member.label,
        )
    )


async def _yes(terminal: Terminal, question: str) -> bool:
    while True:
        answer = (await terminal.ask(question)).lower()
        if answer in ("y", "yes", "n", "no"):
            return answer in ("y", "yes")


async def _members(args: argparse.Namespace) -> None:
    ring, why = await _membership(args).members()
    if why is not None:
        message = f"{why}; this is the membership as last seen, version {ring.version}"
        talk(_line(args, message, stage="not-refreshed", reason=why.reason))
    if args.json:
        members = [
            {
                "name": member.name,
                "role": str(member.role),
                "label": member.label,
                "rp_ids": None if member.rp_ids is None else list(member.rp_ids),
            }
            for member in ring.members
        ]
        out(json.dumps({"account": ring.account, "version": ring.version, "members": members}))
        return
    me = _state(args).identity().keys.name
    for member in ring.members:
        bound = "" if member.rp_ids is None else f"  only {', '.join(member.rp_ids)}"
        this = "  (this one)" if member.name == me else ""
        out(f"{member.role!s:9}  {member.name}  {printable(member.label)}{bound}{this}")


async def _run(args: argparse.Namespace) -> None:
    state, outcomes = _state(args), Outcomes()
    me = state.identity()
    with contextlib.ExitStack() as stack:
        stack.enter_context(state.sole_runner())
        await _membership(args).finish_answers()
        opener, consent = _opener(args, stack), _consent(args, stack)
        async with CompanionRelay.connect(me.relay_url, me.keys.signing, tls=tls_context(args.ca)) as relay:

            def on_notice(notice: Notice) -> None:
                _tell(args, notice)
                outcomes.note(notice)

            inbox = Inbox(state, relay, on_notice=on_notice)
            if args.pending:
                await answer_pending(inbox, consent, opener, outcomes, once=args.once)
                if not outcomes.ended.is_set():
                    talk(_line(args, "nothing is pending", stage="nothing-pending"))
            elif args.once:
                await wait_for_requests(inbox, consent, opener, outcomes, once=True)
            else:
                await _until_terminated(wait_for_requests(inbox, consent, opener, outcomes, once=False))
                return
    if outcomes.error is not None:
        raise outcomes.error


async def _until_terminated(work: Coroutine[Any, Any, None]) -> None:
    """Run `work`, which ends by itself only when it fails, until the process is asked to end."""
    working = asyncio.ensure_future(work)
    terminated = asyncio.ensure_future(until_terminated())
    try:
        await asyncio.wait({working, terminated}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (working, terminated):
            task.cancel()
        await asyncio.wait({working, terminated})


def _opener(args: argparse.Namespace, stack: contextlib.ExitStack) -> Opener:
    if (args.opener_command is not None) != (args.opener == "command"):
        raise UsageError("--opener command and --opener-command go together")
    match args.opener:
        case "system":
            return SystemLauncher.find()
        case "command":
            return Command.parse(args.opener_command)
        case "phone":
            talk(_line(args, WARNING, warning=WARNING))
            phone = _software_phone(args, stack)
            phone.credentials.load()
            return BuiltInPhone(make_phone=lambda: phone)
    return QrPicture(screen=sys.stderr)


def _consent(args: argparse.Namespace, stack: contextlib.ExitStack) -> Consent:
    match args.consent:
        case "accept":
            return Policy(Answer.YES)
        case "decline":
            return Policy(Answer.NO)
    return AtTerminal(terminal=stack.enter_context(Terminal.open()))


def _tell(args: argparse.Namespace, notice: Notice) -> None:
    """A notice of the inbox, for people or for programs."""
    request = notice.arrived
    if args.json:
        details: dict[str, Any] = {
            "request": notice.request,
            "reason": notice.reason,
            "message": notice.message,
        }
        if request is not None:
            said = request.announcement
            details |= {"device": request.device.label, "kind": str(said.kind), "rp_id": said.rp_id}
            details |= {"expires": said.expires, "digits": said.digits is not None}
        talk(json.dumps({"stage": str(notice.stage), **details}))
    elif request is not None and args.consent != "ask":
        talk("\n".join(describe(request, time.time())))
    elif request is not None:
        talk(summary(request))
    elif notice.stage is Stage.REFUSED:
        talk(f"refused a request: {printable(notice.message, 400)} [{notice.reason}]")
    elif notice.stage is not Stage.FAILED:  # which the program ends with, or tells below
        talk(printable(notice.message, 400))
    else:
        talk(f"failed: {printable(notice.message, 400)}")


def _line(args: argparse.Namespace, text: str, **details: object) -> str:
    """A line of talk: text for people, an object for programs."""
    return json.dumps(details) if args.json else text


def _state(args: argparse.Namespace) -> CompanionState:
    return CompanionState(expand_home(args.state))


def _membership(args: argparse.Namespace) -> Membership:
    return Membership(state=_state(args), tls=tls_context(args.ca))


def _tunnel_service(text: str) -> TunnelService:
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


def _rp_id(text: str) -> str:
    if not is_rp_id(text):
        raise argparse.ArgumentTypeError("expected a domain name in lower case")
    return text
