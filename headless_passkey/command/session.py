"""``session show|refresh|fetch|sign-out`` as commands: stdout is what came, the exit status says how it went.

``fetch`` ends with 0 for an answer of 2xx, with 11 for a 401, with 4 for an answer that may be another one later (408,
425, 429 and 5xx), and with 12 for any other; the body of the answer is on stdout in all of these cases. Without a
session it ends with 11 and prints no body.
"""

import argparse
import asyncio
import json
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from headless_passkey.command.command_line import expand_home, out, out_bytes, read_input
from headless_passkey.errors import (
    ExitStatus,
    HeadlessPasskeyError,
    UsageError,
)
from headless_passkey.net.proven_http import TRANSIENT, open_session
from headless_passkey.net.tls import tls_or_default
from headless_passkey.net.unreachable import by
from headless_passkey.process.streams import talk
from headless_passkey.rp.session import MAX_BODY, Answer, Session, no_session
from headless_passkey.rp.session_store import SessionStore
from program_parts.names import printable

_MAX_SHOWN: Final = 200  # characters of a redirect's target


class Refused(HeadlessPasskeyError):  # noqa: N818  an answer
    """The service answered with a status that is not 2xx."""

    def __init__(self, answer: Answer, host: str) -> None:
        why = f"{host} answered with status {answer.status}"
        if 300 <= answer.status < 400:
            to = printable(answer.headers.get("location", "nowhere"))[:_MAX_SHOWN]
            why += f"; redirects are not followed, this one is to {to}"
        super().__init__(why)
        self.answer, self.host = answer, host

    @property
    def reason(self) -> str:
        return f"http-{self.answer.status}"

    @property
    def exit_status(self) -> ExitStatus:  # type: ignore[override]  # finer than its class
        if self.answer.status == 401:
            return ExitStatus.NOT_SIGNED_IN
        return (
            ExitStatus.TRANSPORT
            if self.answer.status in TRANSIENT or self.answer.status >= 500
            else ExitStatus.REFUSED
        )


async def show(args: argparse.Namespace) -> None:
    """Print the stored session, without tokens."""
    store = SessionStore(expand_home(args.state))
    damaged: list[HeadlessPasskeyError] = []
    kept = store.all(damaged.append)
    if args.rp is not None:
        kept = [one for one in kept if str(args.rp) in (one.relying_party, one.audience[0])]
    for session in kept:
        out(json.dumps({**session.public(), "file": str(store.path(session.relying_party))}))
    for error in damaged:
        if args.json:
            talk(json.dumps({"warning": str(error), "reason": error.reason, "advice": error.advice}))
        else:
            talk(error.explain())
    if not kept:
        if damaged:
            raise damaged[0]
        raise no_session(None if args.rp is None else str(args.rp))


async def refresh(args: argparse.Namespace) -> None:
    async with open_session(tls_or_default(args.ca)) as http:
        session = _load(args, http)
        await session.refresh()
    out(json.dumps(session.to_json()))


async def fetch(args: argparse.Namespace) -> None:
    headers = dict(map(_header, args.header))
    data = None if args.data is None else await _data(args.data)
    if data is not None and "content-type" not in map(str.lower, headers):
        headers["Content-Type"] = "application/json"
    async with open_session(tls_or_default(args.ca)) as http:
        session = _load(args, http, url=None if args.audience else args.url)
        deadline = asyncio.get_running_loop().time() + args.timeout  # for a refresh before the request too
        request = session.fetch(
            args.url,
            method=(args.method or ("GET" if data is None else "POST")).upper(),
            data=data,
            headers=headers,
            audience=args.audience,
            timeout=args.timeout,
        )
        answer = await by(deadline, request, f"no answer within {args.timeout:g} seconds")
    out_bytes(answer.body)
    if not 200 <= answer.status < 300:
        raise Refused(answer, printable(urlsplit(args.url).netloc))


async def sign_out(args: argparse.Namespace) -> None:
    async with open_session(tls_or_default(args.ca)) as http:
        session = _load(args, http)
        await session.sign_out(anyway=args.anyway)
    if not args.json:
        talk(f"signed out at {session.relying_party}")


def _load(args: argparse.Namespace, http: aiohttp.ClientSession, url: str | None = None) -> Session:
    """Load the session of --rp, or the one whose token may be sent to `url`."""
    named = None if args.rp is None else str(args.rp)
    try:
        return Session.load(expand_home(args.state), named, url=url, http=http)
    except UsageError as error:
        if args.rp is None:
            error.advice = "name one with `--rp URL`"
        raise


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition(":")
    if not separator:
        raise UsageError("--header takes 'NAME: VALUE'")
    return name.strip(), value.strip()


async def _data(text: str) -> bytes:
    if not text.startswith("@"):
        return text.encode()
    data = await read_input(text[1:], limit=MAX_BODY + 1)
    if len(data) > MAX_BODY:
        raise UsageError(f"at most {MAX_BODY} bytes are sent")
    return data
