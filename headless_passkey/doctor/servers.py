"""Checks of servers from this device: whether they are reachable, and are the expected kind of server."""

import asyncio
import contextlib
import re
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from headless_passkey.doctor.finding import Check, Finding, Status
from headless_passkey.errors import (
    HeadlessPasskeyError,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TransportError,
    TransportReason,
)
from headless_passkey.hybrid.tunnel_url import (
    ASSIGNED_DOMAINS,
    ROUTING_ID_SIZE,
    TUNNEL_ID_SIZE,
    connect_url,
    new_url,
)
from headless_passkey.mends import setup_error
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.net.proven_http import open_session
from headless_passkey.net.proxy import Way, sending
from headless_passkey.net.tunnel import TunnelRefused, open_tunnel
from headless_passkey.net.unreachable import unreachable
from headless_passkey.rp.finding import find_relying_party
from headless_passkey.trust.signing import SoftwareSigningKey

LIMIT: Final = 10.0  # seconds for one request
_ASCTIME: Final = re.compile(r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The head of an HTTP answer."""

    status: int
    date: float | None  # whole Unix seconds, by the clock of the server or its proxy


async def ask(session: aiohttp.ClientSession, url: str) -> Answer:
    """GET `url`; `TransportError` when the server does not answer, or answers with a transient failure."""
    host = urlsplit(url).netloc
    async with sending(session, "GET", url, timeout=aiohttp.ClientTimeout(total=LIMIT)) as response:
        answer = Answer(status=response.status, date=_date(response.headers.get("Date", "")))
    if answer.status >= 500:
        raise TransportError(
            f"{host} answers, and cannot serve (HTTP status {answer.status})",
            reason=TransportReason.SERVER_FAILED,
        )
    return answer


def server_trouble(
    check: Check,
    error: HeadlessPasskeyError,
    url: str,
    status: Status = Status.PROBLEM,
    *,
    case: str | None = None,
) -> Finding:
    """The finding for a server that cannot be used, as exact as the error allows.

    case: as for `headless_passkey.mends.mend`. A server that breaks the protocol is another one than was looked for.
    """
    where = URL(url)
    web_url = str(where.with_scheme("https") if where.scheme == "wss" else where)
    names = {"host": urlsplit(url).netloc if case == "path" else where.raw_host or "", "url": web_url}
    if isinstance(error, RemoteProtocolError):
        other = SetupError(str(error), reason=SetupReason.WRONG_SERVER)
        other.__cause__, error = error, other
    return Finding.of(check, error, case=case, names=names, status=status, subject=urlsplit(url).netloc)


async def examine_relying_party(base: BaseUrl, tls: ssl.SSLContext | None) -> list[Finding]:
    """Check that a relying party answers at `base`, or where `base` refers to. It opens no ceremony.

    The request's proof is by a key of its own, so that the relying party learns nothing about this device.
    """
    async with open_session(tls) as session:
        try:
            async with asyncio.timeout(LIMIT):
                found = await find_relying_party(session, base, SoftwareSigningKey.generate(), patience=0)
        except TimeoutError as error:
            slow = unreachable(error, f"{base.authority}{Way(str(base)).through}")
            return [server_trouble(Check.RELYING_PARTY, slow, str(base))]
        except HeadlessPasskeyError as error:
            return [server_trouble(Check.RELYING_PARTY, error, str(base), case="path")]
    where = "" if found == base else f", mounted at {found.path}"
    through = Way(str(base)).through
    return [
        Finding.ok(Check.RELYING_PARTY, f"{base.authority} answers{through}{where}", subject=base.authority)
    ]


async def examine_tunnel_services(tunnels: Mapping[int, str], tls: ssl.SSLContext | None) -> list[Finding]:
    """Check the assigned tunnel services, which stock phones use, and those of `tunnels`, base URLs by domain number.

    An unreachable assigned service is a problem for a device without tunnel services of its own, and else a warning.
    """
    severity = Status.WARNING if tunnels else Status.PROBLEM
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_examine_assigned(f"wss://{domain}", tls, severity))
            for number, domain in enumerate(ASSIGNED_DOMAINS)
            if number not in tunnels
        ]
        tasks += [group.create_task(_examine_own(base, tls)) for base in tunnels.values()]
    return [task.result() for task in tasks]


async def _examine_assigned(base: str, tls: ssl.SSLContext | None, severity: Status) -> Finding:
    """Ask an assigned service for a tunnel that does not exist, which leaves no state there."""
    url = connect_url(base, secrets.token_bytes(ROUTING_ID_SIZE), secrets.token_bytes(TUNNEL_ID_SIZE))
    host = urlsplit(base).netloc
    try:
        async with open_tunnel(url, tls=tls, connect_timeout=LIMIT):
            pass
    except TunnelRefused as refused:
        if refused.status >= 500:
            return server_trouble(Check.TUNNEL_SERVICE, refused, base, severity)
        if refused.status < 400:
            return _no_tunnel_service(host, refused.status, severity)
    except HeadlessPasskeyError as error:
        return server_trouble(Check.TUNNEL_SERVICE, error, base, severity)
    return Finding.ok(Check.TUNNEL_SERVICE, f"{host} answers{Way(base).through}", subject=host)


async def _examine_own(base: str, tls: ssl.SSLContext | None) -> Finding:
    """Open a tunnel as a phone does, and close it at once, to prove that the server is a tunnel service."""
    host = urlsplit(base).netloc
    try:
        async with open_tunnel(
            new_url(base, secrets.token_bytes(TUNNEL_ID_SIZE)), tls=tls, connect_timeout=LIMIT
        ):
            return Finding.ok(Check.TUNNEL_SERVICE, f"{host} opens tunnels{Way(base).through}", subject=host)
    except TunnelRefused as refused:
        if refused.status >= 500 or refused.status == 429:
            return server_trouble(Check.TUNNEL_SERVICE, refused, base)
        return _no_tunnel_service(host, refused.status, Status.PROBLEM)
    except HeadlessPasskeyError as error:
        return server_trouble(Check.TUNNEL_SERVICE, error, base)


def _no_tunnel_service(host: str, http_status: int, severity: Status) -> Finding:
    what = f"{host} answers, but not as a tunnel service (HTTP status {http_status})"
    other = setup_error(what, SetupReason.WRONG_SERVER)
    return Finding.of(Check.TUNNEL_SERVICE, other, status=severity, subject=host)


def _date(header: str) -> float | None:
    """Parse a ``Date`` header in one of the three forms of RFC 9110 §5.6.7; None for any other text.

    Python takes a date without a zone that it knows for local time. The form of asctime has none, and means UTC.
    """
    with contextlib.suppress(ValueError, OverflowError):
        date = parsedate_to_datetime(header)
        if date.tzinfo is not None:
            return date.timestamp()
        if _ASCTIME.fullmatch(header):
            return date.replace(tzinfo=UTC).timestamp()
    return None
