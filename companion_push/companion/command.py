"""``companion-push phone`` and ``companion-push companion``: what the programs do; `options` has their options.

stdout is data (adverts, an invitation, the members), stderr is talk, and with ``--json`` one JSON object per
line, never a secret. Account codes, invitations and FIDO URLs come from files or stdin.
"""

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import sys
import time
from codecs import BOM_UTF8
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from companion_push.companion.advertiser.choose import open_advertiser
from companion_push.companion.attend import Outcomes, answer_pending, wait_for_requests
from companion_push.companion.authenticator import Authenticator
from companion_push.companion.consent import (
    UNASKED,
    Answer,
    AtTerminal,
    Consent,
    Policy,
    describe,
    summary,
    told,
)
from companion_push.companion.credential_file import CredentialFile
from companion_push.companion.founding import Agree, found_by_sign_in
from companion_push.companion.inbox import CheckedRequest, Inbox, Notice, NoticeKind
from companion_push.companion.keys import CompanionState, Identity, KeyPair
from companion_push.companion.link_file import LinkFile
from companion_push.companion.linked import LinkedWaiting, forget_link
from companion_push.companion.members import (
    described,
    find,
    find_former,
    introduced,
    is_called,
    is_same_name,
    short_name,
)
from companion_push.companion.membership import Membership, parse_means
from companion_push.companion.openers import BuiltInPhone, Command, Opener, QrPicture, SystemLauncher
from companion_push.companion.options import DEFAULT_TIMEOUT
from companion_push.companion.phone import (
    WARNING,
    SoftwarePhone,
    TunnelService,
    UserVerification,
    accept,
    ask,
    decline,
)
from companion_push.companion.push_address import MAX_ADDRESS, parse_address
from companion_push.companion.relay_client import CompanionRelay
from companion_push.companion.seal import LONGEST, parse_passphrase
from companion_push.companion.sealing import OpenTerminal, new_key, open_file
from companion_push.companion.sign_in import MAX_TOKEN, Prompt, sign_in
from companion_push.companion.software_key import ES256, ML_DSA_44, Algorithm, SoftwareKey, has_ml_dsa
from companion_push.companion.twins import twin_of
from companion_push.companion.wording import known_as, must_say
from companion_push.push.channel import HANDLE_SIZE, PushOutcome
from headless_passkey.account.joining import check_account
from headless_passkey.command.command_line import (
    MAX_SECRET_LINE,
    expand_home,
    out,
    progress,
    read_input,
    read_secret_line,
    refuse_secret,
    say,
    show_progress,
)
from headless_passkey.command.joining import (
    details,
    go_on,
    number_line,
    terminal_to_ask,
    waiting_line,
    whereto,
)
from headless_passkey.errors import (
    HeadlessPasskeyError,
    NotApproved,
    Outcome,
    SetupError,
    SetupReason,
    TransportReason,
    UsageError,
)
from headless_passkey.hybrid.fido_url import MAX_LENGTH
from headless_passkey.mends import setup_error, transport_error
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.net.tls import tls_context
from headless_passkey.process.signals import until_terminated
from headless_passkey.process.streams import talk
from headless_passkey.process.tasks import end
from headless_passkey.process.terminal import Terminal
from headless_passkey.text.base64url import new_id
from headless_passkey.text.names import name_of
from headless_passkey.trust.admission import Candidate, InvitationRecord
from headless_passkey.trust.freshness import ForgottenRings
from headless_passkey.trust.introduction import Introduction, digits_of
from headless_passkey.trust.invitation import Invitation
from headless_passkey.trust.ring import MAX_RP_IDS, Member, Ring, Role
from headless_passkey.trust.text_form import check_relay_url
from program_parts.base64url import base64url
from program_parts.domains import is_domain
from program_parts.json_text import without_mark
from program_parts.names import printable, quoted

_ANOTHER_LINK: Final = "`companion-push companion page --link` prints a link that opens the page"
_NO_NUMBER: Final = "That is no number of six digits."

# The software phone


async def phone(args: argparse.Namespace) -> None:
    if args.url is not None:
        refuse_secret(args.url)
    acts = [args.linked, args.list_links, args.forget is not None, args.seal, args.unseal]
    if [args.url is not None, *acts].count(True) != 1:
        raise UsageError("name one of --url, --linked, --list-links, --forget, --seal and --unseal")
    if args.new_passphrase_file is not None and not args.seal:
        raise UsageError("--new-passphrase-file goes with --seal")
    if [args.url, args.passphrase_file, args.new_passphrase_file].count("-") > 1:
        raise UsageError(
            "stdin holds one of FIDO URL and passphrases: name a file or /dev/fd/N for the others"
        )
    if not args.security_key:
        say(args, WARNING, warning=WARNING)
    if args.seal or args.unseal:
        await _seal(args)
        return
    if args.list_links or args.forget is not None:
        await _linked_devices(args)
        return
    with contextlib.ExitStack() as stack:
        if args.linked:
            _links(args)  # before a passphrase or a key is asked for
        phone = _software_phone(args, stack, await _authenticator(args, _phone_terminal), _phone_terminal)
        if args.linked:
            await _wait_for_devices(args, phone)
            return
        until = time.monotonic() + args.timeout
        url = await _line_within(args.url, args.timeout, "FIDO URL", limit=MAX_LENGTH)
        await phone.answer(url, timeout=max(0.01, until - time.monotonic()))


def _phone_terminal() -> contextlib.AbstractContextManager[Terminal]:
    """Open the terminal of a program that is the phone alone: Ctrl-C ends it at a question too, and is no answer to the device."""
    return Terminal.open(interrupts=True)


async def _seal(args: argparse.Namespace) -> None:
    """Seal the file of passkeys, or leave it plain."""
    file = _credential_file(args)
    file = await open_file(file, await _passphrase(args.passphrase_file), _phone_terminal)
    if args.unseal:
        if file.key is None:
            raise UsageError(f"{args.credentials} is not sealed")
        await file.reseal(None)
        say(args, f"{args.credentials} is plain now", stage="phone-unsealed")
        return
    file.load()
    key = await new_key(await _passphrase(args.new_passphrase_file), _phone_terminal)
    await file.reseal(key)
    say(args, f"{args.credentials} is sealed now", stage="phone-sealed")


async def _passphrase(source: str | None) -> str | None:
    """Read a passphrase from a file or descriptor; None where none is named. No message repeats what was named: it may be the passphrase."""
    if source is None:
        return None
    try:
        line = (await read_input(source, limit=LONGEST + 2 + len(BOM_UTF8), first_line=True)).partition(
            b"\n"
        )[0]
        passphrase = parse_passphrase(without_mark(line).decode())
    except UsageError as error:
        raise UsageError(
            "cannot read the file that --passphrase-file or --new-passphrase-file names"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError("the passphrase is not UTF-8") from error
    if passphrase is None:
        raise UsageError(f"the passphrase's file begins with a line of 1 to {LONGEST} bytes")
    return passphrase


async def _authenticator(args: argparse.Namespace, terminal: OpenTerminal) -> Authenticator:
    """What the phone's answers come from. What cannot be used is said before anybody waits."""
    if args.security_key:
        return await _security_key(args, terminal)
    file = await open_file(_credential_file(args), await _passphrase(args.passphrase_file), terminal)
    file.load()
    return file


async def _security_key(args: argparse.Namespace, terminal: OpenTerminal) -> Authenticator:
    if args.credentials or args.passphrase_file or args.algorithm or args.synced:
        raise UsageError("--security-key goes without the options for passkeys in a file")
    if args.uv == "presence":
        raise UsageError(
            "--uv presence is for passkeys in a file: a security key says itself what it has verified"
        )
    try:
        from companion_push.companion.security_key import (  # noqa: PLC0415  it needs an extra
            AtTerminal as AtKey,
        )
        from companion_push.companion.security_key import SecurityKey, wait_for_key  # noqa: PLC0415
    except ImportError as error:
        raise setup_error(
            "a security key needs python-fido2", SetupReason.MISSING_PACKAGE, extra="fido2"
        ) from error

    def tell(stage: str, text: str) -> None:
        say(args, text, stage=f"phone-{stage}")

    person = AtKey(terminal=terminal, on_tell=tell, first=args.uv == "accept")
    seconds = getattr(args, "timeout", DEFAULT_TIMEOUT)  # a companion waits for requests without one
    found = await wait_for_key(person, timeout=seconds)
    key = SecurityKey(found=found, person=person)
    await key.info()
    return key


async def _linked_devices(args: argparse.Namespace) -> None:
    """List the linked devices, or forget one."""
    links = _links(args)
    if args.list_links:
        for link in links.load():
            told = {"link": link.name, "device": link.device, "linked_at": link.linked_at}
            out(json.dumps(told | {"tunnel_domain": link.tunnel_domain}))
    else:
        link = await forget_link(links, args.forget, _tunnel_service(args), tls_context(args.ca))
        say(args, f"forgotten: {printable(link.device)}", stage="phone-forgotten", link=link.name)


async def _wait_for_devices(args: argparse.Namespace, phone: SoftwarePhone) -> None:
    waiting = LinkedWaiting(
        phone=phone, links=_links(args), timeout=args.timeout, on_end=partial(_say_end, args)
    )
    await _until_terminated(waiting.run())


def _links(args: argparse.Namespace) -> LinkFile:
    if args.links is None:
        raise UsageError("linked devices need --links")
    return LinkFile(path=expand_home(args.links))


def _tunnel_service(args: argparse.Namespace) -> TunnelService:
    if not args.tunnel:
        raise UsageError("the software phone needs --tunnel")
    service: TunnelService = args.tunnel[0]
    return service


def _say_end(args: argparse.Namespace, error: HeadlessPasskeyError | None) -> None:
    if error is not None:
        say(args, f"phone: {error}", stage="phone-ended", why=str(error))


def _software_phone(
    args: argparse.Namespace,
    stack: contextlib.ExitStack,
    credentials: Authenticator,
    terminal: OpenTerminal,
) -> SoftwarePhone:
    """Make the software phone that the options describe; `UsageError` when one of them is missing or wrong."""
    return SoftwarePhone(
        credentials=credentials,
        advertiser=open_advertiser(args.radio),
        tunnel_service=_tunnel_service(args),
        tls=tls_context(args.ca),
        verify_user=_user_verification(args.uv, stack, terminal),
        links=None if args.links is None else LinkFile(path=expand_home(args.links)),
        on_stage=lambda stage: (
            say(args, "", stage=f"phone-{stage}") if args.json else show_progress(f"phone: {stage}")
        ),
    )


def _credential_file(args: argparse.Namespace) -> CredentialFile:
    if not args.credentials:
        raise UsageError("the software phone needs --credentials")
    path = expand_home(args.credentials)
    if not path.resolve().parent.is_dir():
        raise UsageError(f"there is no directory for {args.credentials}")
    return CredentialFile(path=path, model=_model(args))


def _model(args: argparse.Namespace) -> SoftwareKey:
    """What the software phone can do, by the options."""
    names: Mapping[str, Algorithm] = {"es256": ES256, "ml-dsa-44": ML_DSA_44}
    algorithms = tuple(names[each] for each in dict.fromkeys(args.algorithm or ["es256"]))
    if ML_DSA_44 in algorithms and not has_ml_dsa():
        raise UsageError(
            "--algorithm ml-dsa-44: the OpenSSL of the cryptography that is installed has no ML-DSA"
        )
    return SoftwareKey(synced=args.synced, verifies=args.uv != "presence", algorithms=algorithms)


def _user_verification(how: str, stack: contextlib.ExitStack, terminal: OpenTerminal) -> UserVerification:
    match how:
        case "accept":
            return accept
        case "decline":
            return decline
    return ask(stack.enter_context(terminal()))


async def _line_within(source: str, seconds: float, what: str, *, limit: int = MAX_SECRET_LINE) -> str:
    """A line that holds a secret. what: as in "no … came within 5 s". limit: bytes."""
    try:
        async with asyncio.timeout(seconds):
            return await read_secret_line(source, limit=limit)
    except TimeoutError as error:
        why = f"no {what} came within {seconds:g} s"
        raise transport_error(why, TransportReason.NO_INPUT) from error


# The companion


async def join(args: argparse.Namespace) -> None:
    if args.code is None:
        await _join_by_sign_in(args)
        return
    if args.relay or args.oidc or args.browser or args.token_file:
        raise UsageError("--code goes without --relay, --oidc, --browser and --token-file")
    until = time.monotonic() + args.timeout
    line = await _line_within(args.code, args.timeout, "code or invitation")
    means, seconds = parse_means(line), max(0.01, until - time.monotonic())
    check_account(means, args.expect_account)
    say(args, whereto(means), stage="account", **details(means))
    if isinstance(means, Invitation):
        say(args, waiting_line(seconds), stage="waiting", seconds=round(seconds))
    with contextlib.ExitStack() as stack:
        terminal = terminal_to_ask(stack, json=args.json, expected=args.expect_account)
        identity = await _membership(args).join(
            line,
            label=args.label,
            expect_account=args.expect_account,
            seconds=seconds,
            on_check_number=lambda number: say(
                args, number_line(number), stage="number", check_number=number
            ),
            go_on=lambda: go_on(terminal),
        )
    _joined(args, identity)


def _joined(args: argparse.Namespace, identity: Identity) -> None:
    head = _state(args).chain().head
    member = head.member(identity.keys.name)
    label = args.label if member is None else member.label
    say(
        args,
        f"joined account {quoted(head.account_name)} as {quoted(label)}",
        stage="joined",
        account=identity.account,
        name=identity.keys.name,
        label=label,
    )


async def _join_by_sign_in(args: argparse.Namespace) -> None:
    if args.relay is None:
        raise UsageError("name --code FILE, or --relay URL with --oidc, --browser or --token-file FILE")
    if args.expect_account is not None:
        raise UsageError(
            "--expect-account goes with --code: a sign-in founds an account with an id of its own"
        )
    _joined(args, await _founded(args, args.relay))


async def reset(args: argparse.Namespace) -> None:
    relay_url = args.relay or _state(args).identity().relay_url
    with contextlib.ExitStack() as stack:
        terminal = stack.enter_context(Terminal.open()) if args.confirm is None else None

        async def agree(name: str) -> bool:
            typed = args.confirm
            if terminal is not None:
                talk(
                    f"The account {quoted(name)} will be closed for good. All its companions and devices are told so, "
                    "and join the new one by invitation."
                )
                typed = await terminal.ask("To close it, type its name:", lambda line: line or None)
            return typed is not None and is_same_name(typed, name)

        identity = await _founded(args, relay_url, agree)
    _joined(args, identity)


async def _founded(args: argparse.Namespace, relay_url: str, agree: Agree | None = None) -> Identity:
    """Found an account by a sign-in, as the options say."""
    if not args.oidc and not args.browser and args.token_file is None:
        raise UsageError("say with --oidc, --browser or --token-file how to sign in")
    until = time.monotonic() + args.timeout
    given = None
    if args.token_file is not None:
        given = await _line_within(args.token_file, args.timeout, "token", limit=MAX_TOKEN)

    def show(prompt: Prompt) -> None:
        if prompt.code is None:
            how = f"sign in with a browser of this machine at {prompt.page}"
        else:
            how = f"sign in at {prompt.page} and type {printable(prompt.code)}"
        said = f"{how} (account service {prompt.issuer})"
        say(args, said, stage="sign-in", issuer=prompt.issuer, page=prompt.page, code=prompt.code)

    async def token(relay: CompanionRelay, keys: KeyPair) -> str:
        if given is not None:
            return given
        return await sign_in(
            await relay.way(),
            key=keys.signing,
            tls=tls_context(args.issuer_ca),
            show=show,
            browser=args.browser,
            fresh=agree is not None,
        )

    return await found_by_sign_in(
        _state(args),
        check_relay_url(str(BaseUrl.parse(relay_url))),
        label=args.label,
        token=token,
        agree=agree,
        tls=tls_context(args.ca),
        seconds=max(0.01, until - time.monotonic()),
    )


async def invite(args: argparse.Namespace) -> None:
    kind = Role(args.kind)
    if args.yes and args.number is None and not args.without_number:
        raise UsageError(
            "--yes needs --number FILE, with the number that the newcomer shows, or --without-number"
        )
    if args.needs_digits and kind is not Role.DEVICE:
        raise UsageError("--needs-digits is for devices")
    if args.number is not None and args.without_number:
        raise UsageError("--number and --without-number exclude each other")
    if args.number is not None and not args.yes:
        raise UsageError("--number goes with --yes: without it the number is asked for at the terminal")
    with contextlib.ExitStack() as stack:
        terminal = None if args.yes else stack.enter_context(Terminal.open())
        rp_ids = await _rp_ids(args, kind, terminal)

        def show(line: str) -> None:
            out(line)
            if args.without_number:
                danger = (
                    "without a number, whoever has seen the line above can get in: show it to nobody else"
                )
                say(args, danger, stage="invited", without_number=True)
            else:
                say(args, "the line above invites one newcomer", stage="invited")

        member = await _membership(args).invite(
            kind,
            rp_ids=rp_ids,
            needs_digits=args.needs_digits,
            seconds=args.timeout,
            show=show,
            consent=lambda candidate: _agree(args, candidate, terminal),
        )
    say(
        args,
        f"{quoted(member.label)} belongs to the account now",
        stage="admitted",
        name=member.name,
        label=member.label,
    )


async def _rp_ids(args: argparse.Namespace, kind: Role, terminal: Terminal | None) -> tuple[str, ...] | None:
    """The relying parties that a device is bound to, by the options or asked for; None for any."""
    if kind is not Role.DEVICE:
        if args.rp_id or args.any_rp_id:
            raise UsageError("--rp-id and --any-rp-id are for devices")
        return None
    if args.rp_id and args.any_rp_id:
        raise UsageError("--rp-id and --any-rp-id exclude each other")
    if args.any_rp_id:
        return None
    if args.rp_id:
        return _at_most(tuple(dict.fromkeys(args.rp_id)))
    if terminal is None:
        raise UsageError("say with --rp-id which relying parties the device may ask for, or --any-rp-id")

    def meaning(line: str) -> tuple[str, ...] | None:
        words = tuple(dict.fromkeys(line.replace(",", " ").lower().split()))
        if words == ("any",):
            return ()
        return words if 0 < len(words) <= MAX_RP_IDS and all(map(is_domain, words)) else None

    rp_ids = await terminal.ask(
        "Which relying parties may the device ask for? Domains such as login.example, or any:",
        meaning,
        slip=f"That is not 1 to {MAX_RP_IDS} domains, and not any.",
    )
    if rp_ids is None:
        raise NotApproved(Outcome.DECLINED, "nobody was invited")
    return rp_ids or None


def _at_most(rp_ids: tuple[str, ...]) -> tuple[str, ...]:
    if len(rp_ids) > MAX_RP_IDS:
        raise UsageError(f"a device is bound to at most {MAX_RP_IDS} relying parties")
    return rp_ids


async def _agree(
    args: argparse.Namespace, candidate: Candidate, terminal: Terminal | None
) -> InvitationRecord | None:
    """Ask the person, or the options, about the newcomer. It is shown by kind and label; its number is typed."""
    came = candidate.introduction
    said = f"a {came.kind} has come that calls itself {quoted(came.label)}"
    say(args, said, stage="introduced", kind=str(came.kind), label=came.label)
    if terminal is None:
        if args.without_number:
            return candidate.agree_without_number()
        return candidate.agree(await _number(args))
    label = await _free_label(args, came, terminal)
    if label is None:
        return None
    if args.without_number:
        agreed = await terminal.yes(f"Let {quoted(label)} in without a number? y or n:")
        return candidate.agree_without_number(label=label) if agreed else None
    typed = await terminal.ask(
        "Type the six digits that it shows, or n to refuse it:",
        lambda line: "" if line.lower() in ("n", "no") else digits_of(line),
        slip=_NO_NUMBER,
    )
    return candidate.agree(typed, label=label) if typed else None


async def _free_label(args: argparse.Namespace, came: Introduction, terminal: Terminal) -> str | None:
    """The newcomer's label, or another one where a member has it already; None to refuse the newcomer."""
    members = _state(args).chain().head.members
    twin = twin_of(came.label, members, but=came.name)
    if twin is None:
        return came.label

    def meaning(line: str) -> str | None:
        with contextlib.suppress(UsageError):
            label = name_of(line)
            return None if twin_of(label, members) else label
        return None

    return await terminal.ask(
        f"A member is called {quoted(twin.label)} already. Type another name for the newcomer:",
        meaning,
        slip="That name is taken too, or is no name.",
    )


async def _number(args: argparse.Namespace) -> str:
    """The number of `--number`: the first line that is one."""
    while True:
        digits = digits_of(await read_secret_line(args.number))
        if digits is not None:
            return digits
        say(args, _NO_NUMBER, stage="no-number")
        if args.number != "-":
            raise UsageError("--number: the file does not begin with a number of six digits")


async def members(args: argparse.Namespace) -> None:
    ring, why = await _membership(args).members()
    if why is not None:
        message = f"{why}; this is the membership as last seen, version {ring.version}"
        say(args, message, stage="not-refreshed", reason=why.reason)
    if args.json:
        members = [
            {
                "name": member.name,
                "role": str(member.role),
                "label": member.label,
                "joined": member.joined,
                "introduced_by": member.introduced_by,
                "needs_digits": member.needs_digits,
                "rp_ids": None if member.rp_ids is None else list(member.rp_ids),
            }
            for member in ring.members
        ]
        out(
            json.dumps(
                {
                    "account": ring.account,
                    "account_name": ring.account_name,
                    "version": ring.version,
                    "hash": ring.hash.hex(),
                    "number": ring.number,
                    "members": members,
                }
            )
        )
        return
    me = _state(args).identity().keys.name
    for member in ring.members:
        bound = "" if member.rp_ids is None else f"  only {', '.join(member.rp_ids)}"
        bound += "  needs digits" if member.needs_digits else ""
        this = "  (this one)" if member.name == me else ""
        out(f"{member.role!s:9}  {member.name}  {known_as(member, ring.members)}{bound}{this}")
    talk(
        f"ring version {ring.version}, number {ring.number}: `headless-passkey status` on a device shows the same"
    )


async def remove(args: argparse.Namespace) -> None:
    membership = _membership(args)
    ring = await _newest(membership)
    subject = find(ring, args.who)
    guests = introduced(ring, subject.name)
    with _asking(args) as terminal:
        _show(args, "removing", subject, ring)
        for guest in guests:
            _show(args, "introduced", guest, ring)
        also = args.introduced
        if guests and not args.introduced and not args.only:
            if terminal is None:
                raise UsageError("it let others in: say --introduced or --only")
            answer = await terminal.yes("It let these in. Take them out too? y or n:")
            if answer is None:  # Ctrl-C: a no to all of it
                raise NotApproved(Outcome.DECLINED, "nothing has changed")
            also = answer
        await _verify_user(args, terminal, subject, "take it out")
    names = [subject.name, *(guest.name for guest in guests if also)]
    newest = await membership.remove(*names)
    said = quoted(subject.label)
    said += " is" if len(names) == 1 else f" and {len(names) - 1} more are"
    say(
        args,
        f"{said} out of the account; the membership is version {newest.version}",
        stage="removed",
        names=names,
        version=newest.version,
    )


async def rename(args: argparse.Namespace) -> None:
    membership = _membership(args)
    ring = await _newest(membership)
    subject = find(ring, args.who)
    with _asking(args) as terminal:
        _show(args, "renaming", subject, ring)
        await _verify_user(args, terminal, subject, "rename it")
    newest = await membership.rename(subject.name, args.label)
    say(
        args,
        f"{quoted(subject.label)} is called {quoted(args.label)} now",
        stage="renamed",
        name=subject.name,
        label=args.label,
        version=newest.version,
    )


async def restore(args: argparse.Namespace) -> None:
    membership = _membership(args)
    ring = await _newest(membership)
    former = find_former(_state(args).chain(), args.who)
    with _asking(args) as terminal:
        _show(args, "restoring", former, ring)
        await _verify_user(args, terminal, former, "put it back")
    newest = await membership.restore(former)
    say(
        args,
        f"{quoted(former.label)} belongs to the account again",
        stage="restored",
        name=former.name,
        version=newest.version,
    )


async def add_channel(args: argparse.Namespace) -> None:
    refuse_secret(args.file)
    if "://" in args.file or args.file.lstrip().startswith("{"):
        raise UsageError(
            "a push address is no argument, which all users of this machine can read: give a file that holds it, or - for stdin"
        )
    address = parse_address(await read_input(args.file, limit=MAX_ADDRESS + 1))
    handle = new_id(lambda: secrets.token_bytes(HANDLE_SIZE)) if args.handle is None else args.handle
    async with _connect(args, _state(args)) as relay:
        await relay.register_channel(handle, address)
    out(base64url(handle))
    say(args, f"this companion is woken by {address['kind']}", stage="registered", kind=address["kind"])


async def list_channels(args: argparse.Namespace) -> None:
    async with _connect(args, _state(args)) as relay:
        found = await relay.channels()
    if args.json:
        channels = [
            {
                "handle": each.handle,
                "kind": each.kind,
                "state": each.state,
                "registered_at": each.registered_at,
            }
            for each in found.channels
        ]
        out(json.dumps({"channels": channels, "offers": found.offers}))
        return
    for each in found.channels:
        out(f"{each.handle}  {each.kind:8}  {each.state}")
    if not found.channels:
        talk("this companion has no channel: nothing wakes it while it sleeps")
    offered = "; ".join(
        " ".join([kind, *(f"{name} {_listed(value)}" for name, value in offer.items())])
        for kind, offer in found.offers.items()
    )
    talk(f"the relay pushes through {offered}" if offered else "the relay pushes through nothing")


def _listed(value: str | list[str]) -> str:
    return printable(value) if isinstance(value, str) else ", ".join(value)


async def list_mutes(args: argparse.Namespace) -> None:
    state = _state(args)
    async with _connect(args, state) as relay:
        found = await relay.mutes()
    members = state.chain().head.members
    labels = {member.name: known_as(member, members) for member in members}
    if args.json:
        out(json.dumps({"mutes": [{"device": each.device, "by": each.by, "at": each.at} for each in found]}))
        return
    for each in found:
        device, by = (labels.get(name) or quoted(name) for name in (each.device, each.by))
        out(f"{device}  muted by {by}")
    if not found:
        talk("no device is muted")


async def _to_mute(args: argparse.Namespace) -> Member:
    """Find the device that is meant."""
    device = find(await _newest(_membership(args)), args.who)
    if device.role is not Role.DEVICE:
        raise UsageError(f"{quoted(device.label)} is a companion, and only devices are muted")
    return device


async def add_mute(args: argparse.Namespace) -> None:
    device = await _to_mute(args)
    async with _connect(args, _state(args)) as relay:
        await relay.begin_mute(device.name)
    say(args, f"{quoted(device.label)} is muted", stage="muted", name=device.name)


async def remove_mute(args: argparse.Namespace) -> None:
    device = await _to_mute(args)
    async with _connect(args, _state(args)) as relay:
        await relay.end_mute(device.name)
    say(args, f"{quoted(device.label)} is not muted any more", stage="unmuted", name=device.name)


async def remove_channel(args: argparse.Namespace) -> None:
    async with _connect(args, _state(args)) as relay:
        await relay.remove_channel(args.handle)
    say(args, "the channel is removed", stage="removed", handle=base64url(args.handle))


async def test_channels(args: argparse.Namespace) -> None:
    """Test this companion's channels. One that was not reached is an error, after all were tried."""
    wanted = None if args.handle is None else base64url(args.handle)
    async with _connect(args, _state(args)) as relay:
        outcomes = []
        for each in (await relay.channels()).channels:
            if wanted in (None, each.handle):
                outcomes.append((each.kind, await relay.test_channel(each.handle)))
                out(f"{each.handle}  {each.kind:8}  {outcomes[-1][1]}")
    if not outcomes:
        raise UsageError(
            "this companion has no channel" if wanted is None else "this companion has no such channel",
            advice="`companion-push companion channel add` registers one, and `channel list` shows those there are",
        )
    for kind, outcome in outcomes:
        if outcome is not PushOutcome.SENT:
            raise _not_pushed(kind, outcome)


def _not_pushed(kind: str, outcome: PushOutcome) -> HeadlessPasskeyError:
    """The error for a push that a push service has not taken."""
    match outcome:
        case PushOutcome.GONE | PushOutcome.STALE:
            return SetupError(
                f"{kind} knows this address no more",
                reason=SetupReason.CREDENTIALS_REFUSED,
                advice="let the app subscribe again, and `companion-push companion channel add` what it gets",
            )
        case PushOutcome.REFUSED:
            return SetupError(
                f"{kind} does not take this relay's pushes",
                reason=SetupReason.CREDENTIALS_REFUSED,
                advice="ask its operator, whose log says why; `companion-push push check` there",
            )
        case _:
            return transport_error(f"{kind} could not be reached: {outcome}", TransportReason.SERVER_FAILED)


async def _newest(membership: Membership) -> Ring:
    """The newest ring, which a change needs: what the relay cannot show is an error."""
    ring, why = await membership.members()
    if why is not None:
        raise why
    return ring


def _show(args: argparse.Namespace, stage: str, member: Member, ring: Ring) -> None:
    say(
        args,
        described(member, ring),
        stage=stage,
        name=member.name,
        role=str(member.role),
        label=member.label,
        joined=member.joined,
        introduced_by=member.introduced_by,
    )


def _asking(args: argparse.Namespace) -> contextlib.AbstractContextManager[Terminal | None]:
    """The terminal that asks; None where the answer is an option."""
    return Terminal.open() if args.confirm is None else contextlib.nullcontext()


async def _verify_user(
    args: argparse.Namespace, terminal: Terminal | None, subject: Member, act: str
) -> None:
    """Verify that the user means this member and this moment: its label is typed, or the start of its name where nobody can type the
    label. `NotApproved` when it is not.
    """
    typed = args.confirm
    if terminal is not None:
        typed = await terminal.ask(
            f"To {act}, type its label (or {short_name(subject.name)}):", lambda line: line or None
        )
    if typed is None or not is_called(subject, typed):
        raise NotApproved(Outcome.DECLINED, "the label was not typed; nothing has changed")


async def run(args: argparse.Namespace) -> None:
    state, outcomes = _state(args), Outcomes()
    state.identity()  # `NotEnrolled` comes first; no HPKE key is held here beyond its erasure
    with contextlib.ExitStack() as stack:
        stack.enter_context(state.sole_runner())
        await _membership(args).finish_answers()
        terminal = stack.enter_context(Terminal.open()) if args.consent == "ask" else None
        picture = _picture(args, stack, terminal, state)
        opener, consent = await _opener(args, stack) or picture, _consent(args, terminal)
        later: list[Notice] = []  # what would be written over the picture on the terminal
        async with _connect(args, state) as relay:

            def on_notice(notice: Notice) -> None:
                outcomes.note(notice)
                later.append(notice)
                if not (picture.showing and sys.stderr.isatty()):
                    catch_up()

            def catch_up() -> None:
                while later:
                    _tell(args, later.pop(0))

            picture.on_end = catch_up

            inbox = Inbox(state, relay, on_notice=on_notice, needs_digits=args.digits)
            if args.pending:
                await answer_pending(inbox, consent, opener, outcomes, once=args.once)
                if not outcomes.ended.is_set():
                    say(args, "nothing is pending", stage="nothing-pending")
            elif args.once:
                await wait_for_requests(inbox, consent, opener, outcomes, once=True)
            else:
                await _until_terminated(wait_for_requests(inbox, consent, opener, outcomes, once=False))
                return
    if outcomes.error is not None:
        raise outcomes.error


def page(args: argparse.Namespace) -> Coroutine[Any, Any, None]:
    """Load the page's server, which no other command needs; what is returned runs it."""
    import companion_push.companion.page.serving  # noqa: F401, PLC0415

    return _page(args)


async def _page(args: argparse.Namespace) -> None:
    from companion_push.companion.page.asking import AtPage  # noqa: PLC0415
    from companion_push.companion.page.serving import link_to, serving_page  # noqa: PLC0415
    from companion_push.companion.page.sessions import Sessions  # noqa: PLC0415

    state, outcomes, asking = _state(args), Outcomes(), AtPage()
    state.identity()  # `NotEnrolled` comes first
    if args.link:
        out(link_to(state, now=time.time()))
        return

    def on_notice(notice: Notice) -> None:
        asking.note(notice)
        _tell(args, notice)

    async def serve(relay: CompanionRelay) -> None:
        inbox = Inbox(state, relay, on_notice=on_notice, needs_digits=args.digits)
        async with serving_page(
            asking,
            state,
            Sessions(),
            at=args.listen,
            cert=args.cert,
            key=args.key,
            trusted_proxies=args.trusted_proxy,
            public_url=args.public_url,
            say=lambda line: say(args, line, stage="page", message=line),
            clock=time.time,
        ) as origin:
            # a link is a secret, and what is no terminal may keep it
            out(link_to(state, now=time.time()) if sys.stdout.isatty() else origin)
            say(args, _ANOTHER_LINK, stage="page", message=_ANOTHER_LINK)
            await wait_for_requests(inbox, asking, asking, outcomes, once=False)

    with state.sole_runner():
        await _membership(args).finish_answers()
        async with _connect(args, state) as relay:
            await _until_terminated(serve(relay))


async def _until_terminated(work: Coroutine[Any, Any, None]) -> None:
    """Run `work`, which ends by itself only when it fails, until the process is asked to end."""
    working = asyncio.ensure_future(work)
    terminated = asyncio.ensure_future(until_terminated())
    try:
        await asyncio.wait({working, terminated}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        await end(working, terminated)


def _picture(
    args: argparse.Namespace, stack: contextlib.ExitStack, terminal: Terminal | None, state: CompanionState
) -> QrPicture:
    """A QR code where the person is: at the terminal that asks, or else at the one that stderr is."""

    def on_file(file: Path, rp_id: str) -> None:
        message = f"the QR code is in {file}, which is removed when the request ends: scan it with the phone's camera"
        compare = must_say(rp_id)
        say(args, f"{message}. {compare}", stage="qr-file", file=str(file), message=compare, rp_id=rp_id)

    if terminal is None and not args.json:
        terminal = stack.enter_context(Terminal.of_stderr())
    draws = os.environ.get("TERM", "dumb") != "dumb"
    picture = QrPicture(screen=terminal if draws else None, file=state.picture, on_file=on_file)
    picture.forget()
    return picture


async def _opener(args: argparse.Namespace, stack: contextlib.ExitStack) -> Opener | None:
    """The opener that the options name; None for the QR code."""
    if (args.opener_command is not None) != (args.opener == "command"):
        raise UsageError("--opener command and --opener-command go together")
    match args.opener:
        case "system":
            return SystemLauncher.find()
        case "command":
            return Command.parse(args.opener_command)
        case "phone":
            if not args.security_key:
                say(args, WARNING, warning=WARNING)
            credentials = await _authenticator(args, Terminal.open)
            return BuiltInPhone(phone=_software_phone(args, stack, credentials, Terminal.open))
    return None


def _consent(args: argparse.Namespace, terminal: Terminal | None) -> Consent:
    match args.consent:
        case "accept":
            if args.digits:
                raise UsageError("--digits wants somebody to type them, and --consent accept asks nobody")
            say(args, UNASKED, warning=UNASKED)

            def on_use(request: CheckedRequest) -> None:
                said = f"WARNING: approved without asking anybody: {summary(request)}"
                say(args, said, warning=said, request=request.short_id)

            return Policy(Answer.YES, on_use)
        case "decline":
            return Policy(Answer.NO)
    if terminal is None:
        raise UsageError("there is no terminal to ask at: choose a policy instead of ask")
    return AtTerminal(terminal=terminal)


def _tell(args: argparse.Namespace, notice: Notice) -> None:
    """A notice of the inbox, for people or for programs."""
    request = notice.arrived
    if args.json:
        details: dict[str, Any] = {
            "request": notice.request,
            "reason": notice.reason,
            "message": notice.message,
            "advice": notice.advice,
        }
        if request is not None:
            asked = request.announcement
            details |= {"device": request.device.label, "kind": str(asked.kind), "rp_id": asked.rp_id}
            details |= {"expires": asked.expires, "digits": asked.digits is not None}
        talk(progress(stage=notice.kind, **details))
    elif request is not None and getattr(args, "consent", "ask") != "ask":  # the page asks too
        talk(*describe(request, time.time()))
    else:
        talk(told(notice))


def _connect(
    args: argparse.Namespace, state: CompanionState
) -> contextlib.AbstractAsyncContextManager[CompanionRelay]:
    me = state.identity()
    return CompanionRelay.connect(me.relay_url, me.keys.signing, tls=tls_context(args.ca))


def _state(args: argparse.Namespace) -> CompanionState:
    return CompanionState(expand_home(args.state))


def _membership(args: argparse.Namespace) -> Membership:
    def tell(rings: ForgottenRings) -> None:
        kind, said = NoticeKind.RELAY_FORGOT_RINGS, str(rings)
        say(args, f"{said} [{kind}]", stage=kind, message=said)

    return Membership(state=_state(args), tls=tls_context(args.ca), on_forgotten=tell)


ACTS: Final[Mapping[str, Callable[[argparse.Namespace], Coroutine[Any, Any, None]]]] = {
    "phone": phone,
    "join": join,
    "reset": reset,
    "invite": invite,
    "run": run,
    "page": page,
    "members": members,
    "remove": remove,
    "rename": rename,
    "restore": restore,
    "channel add": add_channel,
    "channel list": list_channels,
    "channel remove": remove_channel,
    "mute list": list_mutes,
    "mute add": add_mute,
    "mute remove": remove_mute,
    "push test": test_channels,
}
