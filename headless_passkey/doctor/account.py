"""Checks of the device's account: files, enrolment, relay, clocks, membership.

They are read-only: newer rings are verified, as before a sign-in, and not stored.
"""

import asyncio
import os
import ssl
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from headless_passkey.account import enrolment, links
from headless_passkey.account.device_files import mend_names
from headless_passkey.account.enrolment import Enrolment
from headless_passkey.account.links import LinkStore
from headless_passkey.account.relay import RelayClient
from headless_passkey.doctor.finding import Check, Finding, Status
from headless_passkey.doctor.servers import LIMIT, ask, server_trouble
from headless_passkey.errors import (
    HeadlessPasskeyError,
    NotEnrolled,
    ProtocolReason,
    RemoteProtocolError,
    SetupError,
    SetupReason,
    TransportError,
    TransportReason,
    TrustError,
    TrustReason,
)
from headless_passkey.net.proven_http import ProblemAnswer, ProvenHttp, open_session
from headless_passkey.net.proxy import Way
from headless_passkey.process.private_file import nearest, refuse_others, why_not_writable
from headless_passkey.rp.key_store import KeyStore, is_key_file
from headless_passkey.rp.session_store import is_session_file
from headless_passkey.rp.users import all_users, is_users_file
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.freshness import ForgottenRings, unconfirmed
from program_parts.names import quoted

TOLERANCE: Final = 60  # seconds by which our clock may differ from the relay's (docs/protocol/relay.md)
NOTEWORTHY: Final = 20  # seconds of difference that give a warning
WRITTEN: Final = 1_767_225_600  # Unix seconds: the year of this code (2026); an earlier clock is wrong

# what `examine_state` finds without reading a file
_BY_STAT: Final = (SetupReason.STATE_EXPOSED, SetupReason.STATE_FOREIGN)
_AT_RELAY: Final = (Check.RELAY, Check.CLOCK, Check.MEMBERSHIP)


async def examine_account(
    state: Path, tls: ssl.SSLContext | None, *, clock: Callable[[], float] = time.time
) -> list[Finding]:
    """state: the directory. tls: trusted roots, None for the system's. clock: this machine's, in Unix seconds."""
    findings = examine_state(state)
    try:
        enrolled = enrolment.load(state)
    except NotEnrolled as error:
        findings.append(Finding.of(Check.ENROLMENT, error))
    except HeadlessPasskeyError as error:
        if any(finding.status is Status.PROBLEM for finding in findings):
            findings.append(Finding.not_checked(Check.ENROLMENT, f"because of {Check.STATE}"))
        else:
            findings.append(_unusable(state, error))
    else:
        findings.append(Finding.ok(Check.ENROLMENT, _describe(enrolled)))
        return findings + await _examine_relay(enrolled, tls, clock)
    because = f"because of {Check.STATE if findings[-1].status is Status.NOT_CHECKED else Check.ENROLMENT}"
    rest = [Finding.not_checked(check, because) for check in _AT_RELAY]
    return findings + _with_impossible_clock(rest, clock())


def examine_state(state: Path) -> list[Finding]:
    """Check that the state directory and its files are private to this user."""
    try:
        status = state.stat()
    except FileNotFoundError:
        return _unwritable(state) or [Finding.ok(Check.STATE, f"{state} is not there yet; joining makes it")]
    except OSError as error:
        return [_unreadable(state, error)]
    if not stat.S_ISDIR(status.st_mode):
        no_directory = SetupError(f"{state} is not a directory", reason=SetupReason.STATE_DAMAGED)
        return [Finding.of(Check.STATE, no_directory, case="directory")]
    findings: list[Finding] = []
    case = None
    try:
        files = sorted(state.iterdir())
        # and what is written beside them
        ours = [
            file
            for file in files
            if enrolment.FILE_NAME in file.name
            or links.FILE_NAME in file.name
            or is_session_file(file)
            or is_users_file(file)
            or is_key_file(file)
        ]
        # only our own files: the directory may hold others, as with `--state /etc`
        case = "directory" if files and not ours else None
        for file in ours:
            with suppress(FileNotFoundError):  # a sign-in writes a temporary file beside the one it replaces
                kept = file.lstat()
                if stat.S_ISREG(kept.st_mode):
                    findings += _exposed(file, kept, 0o600, Status.PROBLEM)
    except OSError as error:
        findings.append(_unreadable(state, error))
    # the files are private, but other users can list or replace them
    findings += _exposed(state, status, 0o700, Status.WARNING, case)
    findings += _unwritable(state)
    damaged: list[HeadlessPasskeyError] = []
    KeyStore(state).all(damaged.append)
    try:
        LinkStore(state).read()
    except HeadlessPasskeyError as error:
        damaged.append(error)
    findings += [Finding.of(Check.STATE, error) for error in damaged if error.reason not in _BY_STAT]
    return findings or [Finding.ok(Check.STATE, f"{state} is for this user alone")]


def examine_users(state: Path) -> list[Finding]:
    """Check that the files of pinned users are in order; as information, whom this device expects where."""
    damaged: list[HeadlessPasskeyError] = []
    pinned = all_users(state, damaged.append)
    if damaged and all(error.reason in _BY_STAT for error in damaged):
        return [Finding.not_checked(Check.USERS, f"because of {Check.STATE}")]
    if damaged:
        return [Finding.of(Check.USERS, error) for error in damaged if error.reason not in _BY_STAT]
    if not pinned:
        return [
            Finding.ok(Check.USERS, "none yet: the first who signs in or registers is expected from then on")
        ]
    names = "; ".join(
        f"{', '.join(user.name or 'one without a name' for user in users)} at {rp_id}"
        for rp_id, users in pinned.items()
    )
    return [Finding.ok(Check.USERS, f"expects {names}")]


def _exposed(
    path: Path, status: os.stat_result, mode: int, severity: Status, case: str | None = None
) -> list[Finding]:
    try:
        refuse_others(status, path, mode)
    except SetupError as error:
        return [Finding.of(Check.STATE, error, case=case, names=mend_names(path, mode), status=severity)]
    return []


def _unreadable(path: Path, error: OSError) -> Finding:
    unreadable = SetupError(f"cannot read {path}: {error.strerror}", reason=SetupReason.STATE_UNREADABLE)
    return Finding.of(Check.STATE, unreadable, names=mend_names(path))


def _unwritable(state: Path) -> list[Finding]:
    """Check that a join, or what a sign-in stores, could be written there."""
    error = why_not_writable(state)
    if error is None:
        return []
    names = mend_names(nearest(state))
    return [Finding.of(Check.STATE, error, names=names)]


def _unusable(state: Path, error: HeadlessPasskeyError) -> Finding:
    names = mend_names(state / enrolment.FILE_NAME)
    return Finding.of(Check.ENROLMENT, error, names=names)


def _describe(enrolled: Enrolment) -> str:
    label = ""
    with suppress(TrustError):  # removed: the check of membership reports it
        label = f" as {quoted(enrolled.label)}"
    return f"belongs to account {enrolled.account}{label}, relay {enrolled.relay_url}"


async def _examine_relay(
    enrolled: Enrolment, tls: ssl.SSLContext | None, clock: Callable[[], float]
) -> list[Finding]:
    url, host = enrolled.relay_url, urlsplit(enrolled.relay_url).netloc
    forgotten: list[ForgottenRings] = []
    async with open_session(tls) as session:
        try:
            # first without a proof: a failure is the network's, and is not retried
            answer = await ask(session, f"{url}/livez")
            ahead = None if answer.date is None else clock() - answer.date
            relay = RelayClient(ProvenHttp(session, url, enrolled.key, clock=clock))
            async with asyncio.timeout(LIMIT):
                chain, words = await relay.catch_up(
                    enrolled.chain, patience=0, links=False, on_forgotten=forgotten.append
                )
        except TrustError as error:
            return _refused(error, url, ahead)
        except NotEnrolled as error:  # the account is closed
            return [_answers(url), _clock(ahead), Finding.of(Check.MEMBERSHIP, error)]
        except ProblemAnswer as problem:
            what = f"the relay {host} refuses this device's requests ({problem.slug})"
            return _relay_failed(RemoteProtocolError(what, reason=ProtocolReason.REFUSED), url, clock())
        except (TransportError, RemoteProtocolError, SetupError) as error:
            return _relay_failed(error, url, clock())
        except TimeoutError:
            slow = TransportError(
                f"{host}{Way(url).through} does not answer in time", reason=TransportReason.UNREACHABLE
            )
            return _relay_failed(slow, url, clock())
    membership = _membership(enrolled, chain, words, clock())
    if forgotten and membership.status is not Status.PROBLEM:
        membership = _forgotten(forgotten[-1])
    return [_answers(url), _clock(ahead), membership]


def _refused(error: TrustError, url: str, ahead: float | None) -> list[Finding]:
    """Findings for an answer that fails a check. A relay that refuses our clock answers nothing else, so the clock comes first."""
    if error.reason is TrustReason.CLOCK_SKEW:
        skewed = Finding.of(Check.CLOCK, error)
        return [
            _answers(url),
            skewed,
            Finding.not_checked(Check.MEMBERSHIP, f"because of {Check.CLOCK}"),
        ]
    return [_answers(url), _clock(ahead), Finding.of(Check.MEMBERSHIP, error)]


def _relay_failed(error: HeadlessPasskeyError, url: str, now: float) -> list[Finding]:
    failed = server_trouble(Check.RELAY, error, url)
    rest = [Finding.not_checked(check, f"because of {Check.RELAY}") for check in _AT_RELAY[1:]]
    return [failed, *_with_impossible_clock(rest, now)]


def _with_impossible_clock(findings: Sequence[Finding], now: float) -> list[Finding]:
    """Add a finding for a clock before 2026, where there is no relay's clock to compare."""
    if now >= WRITTEN:
        return list(findings)
    said = f"this machine's clock says {datetime.fromtimestamp(now, UTC):%Y-%m-%d}, which is long over"
    wrong = Finding.of(Check.CLOCK, TrustError(TrustReason.CLOCK_SKEW, said))
    return [wrong if finding.check is Check.CLOCK else finding for finding in findings]


def _answers(url: str) -> Finding:
    host = urlsplit(url).netloc
    return Finding.ok(Check.RELAY, f"{host} answers{Way(url).through}", subject=host)


def _clock(ahead: float | None) -> Finding:
    """The finding for a clock within the relay's tolerance. ahead: seconds, by the relay's `Date` header."""
    if ahead is None:
        return Finding.ok(Check.CLOCK, f"within {TOLERANCE} s of the relay's")
    if abs(ahead) <= NOTEWORTHY:
        return Finding.ok(Check.CLOCK, f"agrees with the relay's ({ahead:+.0f} s)")
    direction = "ahead of" if ahead > 0 else "behind"
    said = f"this clock is {abs(ahead):.0f} s {direction} the relay's, which refuses more than {TOLERANCE} s"
    return Finding.of(Check.CLOCK, TrustError(TrustReason.CLOCK_SKEW, said), status=Status.WARNING)


def _forgotten(rings: ForgottenRings) -> Finding:
    return Finding(
        check=Check.MEMBERSHIP,
        status=Status.WARNING,
        message=str(rings),
        reason="relay-forgot-rings",
        mend="ask the relay's operator whether it was restored from a backup; the next sign-in hands in what it lacks",
    )


def _membership(enrolled: Enrolment, chain: RingChain, words: Mapping[str, int], now: float) -> Finding:
    ring = chain.head
    if ring.member(enrolled.name) is None:
        by = chain.removal(enrolled.name) or "in a ring that is not kept here"
        removed = TrustError(TrustReason.NOT_A_MEMBER, f"this device was removed from the account {by}")
        return Finding.of(Check.MEMBERSHIP, removed)
    witness = next(iter(enrolled.with_news(chain, words).witnesses), None)
    if witness is not None and witness.is_silent(now):
        return Finding.of(Check.MEMBERSHIP, unconfirmed(witness, now), status=Status.WARNING)
    companions = len(ring.companions)
    newer = ""
    if ring.version > enrolled.chain.head.version:
        newer = f" (newer than version {enrolled.chain.head.version} here: the next sign-in takes it over)"
    can = "1 companion can approve" if companions == 1 else f"{companions} companions can approve"
    return Finding.ok(Check.MEMBERSHIP, f"a member by ring version {ring.version}{newer}; {can}")
