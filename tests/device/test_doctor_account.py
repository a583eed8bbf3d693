"""The doctor on what the device keeps and on its relay: the real relay, broken in one way at a time."""

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from certificates import Certificate

from headless_passkey.account import device_files, enrolment
from headless_passkey.account.enrolment import FILE_NAME, Enrolment
from headless_passkey.account.links import LinkStore
from headless_passkey.account.relay import RelayClient
from headless_passkey.doctor import account, servers
from headless_passkey.doctor.account import (
    NOTEWORTHY,
    TOLERANCE,
    examine_account,
    examine_state,
    examine_users,
)
from headless_passkey.doctor.finding import Check, Finding, Status
from headless_passkey.errors import (
    EnrolmentReason,
    ExitStatus,
    HeadlessPasskeyError,
    SetupReason,
    TransportReason,
    TrustReason,
)
from headless_passkey.mends import mend
from headless_passkey.net.proven_http import ProvenHttp, open_session
from headless_passkey.net.tls import tls_context
from headless_passkey.process.private_file import private_directory, write_private
from headless_passkey.rp.key_store import KeyStore
from headless_passkey.rp.users import PinnedUsers
from headless_passkey.trust.chain import RingChain
from program_parts.base64url import base64url
from tests.device.inviter import Inviter
from tests.device.test_doctor_servers import answering, nobody, saying, silent
from tests.device.test_enrolment import joined
from tests.device.test_links import a_phone
from tests.device.test_links import kept as keep_link
from tests.device.test_users import settle
from tests.relay import household
from tests.relay.household import Household
from tests.trust.people import NOW, Home, Person, forge, grow

Found = dict[Check, Finding]


@pytest_asyncio.fixture
async def home(relay: household.Relay) -> Household:
    return await relay.household(devices=0)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "device"


@pytest_asyncio.fixture
async def enrolled(relay: household.Relay, home: Household, state: Path) -> Enrolment:
    return await joined(state, await Inviter.invite(relay, home), "kitchen frame")


def at(state: Path, relay_url: str) -> Enrolment:
    """A device that has joined at a relay which is not there to be asked."""
    home = Home()
    words = {home.tablet.name: AT}
    kept = Enrolment(key=home.frame.key, relay_url=relay_url, chain=home.chain, words=words)
    private_directory(state)
    enrolment._write(state, kept)
    return kept


async def examined(state: Path, ca: Path | None = None, clock: Callable[[], float] | None = None) -> Found:
    """What is found, by check; every check once and in its order."""
    findings = await examine_account(state, tls_context(ca), **({} if clock is None else {"clock": clock}))
    found = {finding.check: finding for finding in findings}
    assert list(found) == [Check.STATE, Check.ENROLMENT, Check.RELAY, Check.CLOCK, Check.MEMBERSHIP]
    assert len(found) == len(findings)
    return found


def problems(found: Found) -> dict[Check, str | None]:
    return {check: one.reason for check, one in found.items() if one.status is Status.PROBLEM}


def not_checked(found: Found) -> dict[Check, str]:
    return {check: one.message for check, one in found.items() if one.status is Status.NOT_CHECKED}


async def test_a_device_that_is_well_has_no_problem_and_keeps_its_files(
    state: Path, enrolled: Enrolment, home: Household
) -> None:
    before = (state / FILE_NAME).read_bytes()
    found = await examined(state)
    assert {one.status for one in found.values()} == {Status.OK}, found
    assert enrolled.account in found[Check.ENROLMENT].message
    assert "kitchen frame" in found[Check.ENROLMENT].message
    assert "2 companions can approve" in found[Check.MEMBERSHIP].message
    # a newer ring is told, and left to the next sign-in
    await home.append(*(caller.person for caller in home.companions), newcomer(enrolled, home))
    found = await examined(state)
    assert "newer than version" in found[Check.MEMBERSHIP].message
    assert (state / FILE_NAME).read_bytes() == before


def newcomer(enrolled: Enrolment, home: Household) -> Person:
    """The device as its household lists it."""
    member = enrolled.member
    return Person(member.role, member.label, member.rp_ids, key=enrolled.key)


# What is kept here


async def test_a_device_that_never_joined_is_told_how(state: Path) -> None:
    found = await examined(state)
    assert problems(found) == {Check.ENROLMENT: EnrolmentReason.NOT_ENROLLED}
    assert found[Check.ENROLMENT].exit_status is ExitStatus.NOT_ENROLLED
    assert "headless-passkey join" in str(found[Check.ENROLMENT].mend)
    assert "headless-passkey join" not in found[Check.ENROLMENT].message
    assert set(not_checked(found).values()) == {"because of enrolment"}
    assert "is not there yet" in found[Check.STATE].message
    assert examine_state(state) == [found[Check.STATE]], "looking makes nothing"


async def test_a_join_that_was_interrupted_is_named_as_such(
    relay: household.Relay, home: Household, state: Path
) -> None:
    inviter = await Inviter.invite(relay, home)
    private_directory(state)
    enrolment._begin(state, inviter.invitation, label="frame", rp_id=None, origin=None, now=relay.clock())
    found = await examined(state)
    assert problems(found) == {Check.ENROLMENT: EnrolmentReason.JOIN_UNFINISHED}
    assert found[Check.ENROLMENT].exit_status is ExitStatus.NOT_ENROLLED


@pytest.mark.usefixtures("enrolled")
async def test_a_key_file_that_others_may_read_is_a_problem(state: Path) -> None:
    (state / FILE_NAME).chmod(0o644)
    found = await examined(state)
    assert problems(found) == {Check.STATE: SetupReason.STATE_EXPOSED}
    assert found[Check.STATE].exit_status is ExitStatus.SETUP
    assert f"chmod 600 {state / FILE_NAME}" in str(found[Check.STATE].mend)
    assert set(not_checked(found).values()) == {"because of state"}
    with pytest.raises(HeadlessPasskeyError) as refused:
        enrolment.load(state)
    assert refused.value.reason is SetupReason.STATE_EXPOSED


@pytest.mark.usefixtures("enrolled")
async def test_a_state_directory_that_others_may_enter_is_a_warning(state: Path) -> None:
    (state / FILE_NAME).parent.chmod(0o755)
    found = await examined(state)
    assert (found[Check.STATE].status, found[Check.STATE].reason) == (
        Status.WARNING,
        SetupReason.STATE_EXPOSED,
    )
    assert f"chmod 700 {state}" in str(found[Check.STATE].mend)
    assert found[Check.MEMBERSHIP].status is Status.OK


def test_files_that_are_not_this_devices_are_let_be(state: Path) -> None:
    state.mkdir(mode=0o755)
    (state / "passwd").touch(mode=0o644)
    (finding,) = examine_state(state)
    assert (finding.status, finding.error and finding.error.reason) == (
        Status.WARNING,
        SetupReason.STATE_EXPOSED,
    )
    assert finding.mend == mend(SetupReason.STATE_EXPOSED, "directory")
    assert "chmod" not in str(finding.mend)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.usefixtures("enrolled")
async def test_a_key_file_of_another_user_is_a_problem(state: Path) -> None:
    os.chown(state / FILE_NAME, 65534, 65534)
    found = await examined(state)
    assert problems(found) == {Check.STATE: SetupReason.STATE_FOREIGN}


@pytest.mark.parametrize("content", [b"{", b"{}", b"\xff"])
@pytest.mark.usefixtures("enrolled")
async def test_a_damaged_key_file_is_a_problem(state: Path, content: bytes) -> None:
    (state / FILE_NAME).write_bytes(content)
    found = await examined(state)
    assert problems(found) == {Check.ENROLMENT: SetupReason.STATE_DAMAGED}
    assert found[Check.ENROLMENT].exit_status is ExitStatus.SETUP
    assert f"rm {state / FILE_NAME}" in str(found[Check.ENROLMENT].mend)


@pytest.mark.usefixtures("enrolled")
async def test_a_key_file_of_another_version_is_not_to_be_thrown_away(state: Path) -> None:
    (state / FILE_NAME).write_bytes(b'{"format": 3}')
    found = await examined(state)
    assert problems(found) == {Check.ENROLMENT: SetupReason.STATE_INCOMPATIBLE}
    assert found[Check.ENROLMENT].exit_status is ExitStatus.SETUP
    assert "rm " not in str(found[Check.ENROLMENT].mend)


@pytest.mark.usefixtures("enrolled")
async def test_a_ring_that_does_not_verify_any_more_is_damage_too(state: Path) -> None:
    values = json.loads((state / FILE_NAME).read_bytes())
    home = Home()
    values["rings"].append(base64url(forge(home.ring, home.frame, home.phone)))
    (state / FILE_NAME).write_text(json.dumps(values))
    assert problems(await examined(state)) == {Check.ENROLMENT: SetupReason.STATE_DAMAGED}


@pytest.mark.usefixtures("enrolled")
async def test_a_key_file_that_cannot_be_read_is_a_problem(state: Path, tmp_path: Path) -> None:
    (state / FILE_NAME).rename(tmp_path / "elsewhere")
    (state / FILE_NAME).symlink_to(tmp_path / "elsewhere")
    found = await examined(state)
    assert problems(found) == {Check.ENROLMENT: SetupReason.STATE_UNREADABLE}
    assert found[Check.ENROLMENT].exit_status is ExitStatus.SETUP


@pytest.mark.usefixtures("enrolled")
async def test_a_file_that_goes_while_it_is_looked_at_is_none(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sign-in that runs meanwhile writes a file beside the one it replaces."""
    monkeypatch.setattr(Path, "iterdir", lambda _: iter([state / FILE_NAME, state / f".{FILE_NAME}.gone"]))
    assert not problems(await examined(state))


async def test_a_file_in_the_state_directorys_place_is_a_problem(state: Path) -> None:
    write_private(state, b"")
    found = await examined(state)
    assert problems(found)[Check.STATE] is SetupReason.STATE_DAMAGED
    assert "rm " not in str(found[Check.STATE].mend)


@contextlib.contextmanager
def unwritable_home() -> Iterator[Path]:
    """A directory that this user can look into and not write into: root becomes somebody else for it."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.chmod(0o755 if root else 0o555)
        if root:
            os.seteuid(65534)
        try:
            yield home
        finally:
            if root:
                os.seteuid(0)
            home.chmod(0o755)


@pytest.mark.parametrize("below", ["device", ".local/state/headless-passkey"])
def test_a_home_that_cannot_be_written_is_a_problem(below: str) -> None:
    with unwritable_home() as home:
        (finding,) = examine_state(home / below)
        with pytest.raises(HeadlessPasskeyError) as refused:
            device_files.private_directory(home / below)
    assert (finding.status, finding.reason) == (Status.PROBLEM, SetupReason.STATE_UNWRITABLE)
    assert finding.message == f"cannot write {home / below}: Permission denied"
    assert f"`ls -ld {home}`" in str(finding.mend)
    assert finding.exit_status is ExitStatus.SETUP
    assert refused.value.reason is SetupReason.STATE_UNWRITABLE
    assert refused.value.explain().endswith(f"Permission denied: {finding.mend}")


def test_a_file_on_the_way_to_the_state_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (finding,) = examine_state(tmp_path / "file" / "device")
    assert (finding.status, finding.reason) == (Status.PROBLEM, SetupReason.STATE_UNREADABLE)


@pytest.mark.parametrize("joined", [False, True], ids=["not joined", "joined"])
def test_a_state_that_cannot_be_written_is_a_problem(*, joined: bool) -> None:
    """A join writes there, and so does each sign-in."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "device"
        state.mkdir(mode=0o700)
        if joined:
            write_private(state / FILE_NAME, b"{}")
        user = 65534 if os.geteuid() == 0 else os.geteuid()
        if os.geteuid() == 0:
            Path(folder).chmod(0o755)
            for each in (state, *state.iterdir()):
                os.chown(each, user, user)
            os.seteuid(user)
        try:
            state.chmod(0o500)
            (finding,) = examine_state(state)
        finally:
            state.chmod(0o700)
            if user == 65534:
                os.seteuid(0)
    assert (finding.status, finding.reason) == (Status.PROBLEM, SetupReason.STATE_UNWRITABLE)


async def test_a_state_directory_that_cannot_be_looked_into_is_a_problem(state: Path) -> None:
    (state.parent / state.name).symlink_to(state)  # a name for itself
    found = await examined(state)
    assert problems(found) == {Check.STATE: SetupReason.STATE_UNREADABLE}
    assert f"ls -ld {state}" in str(found[Check.STATE].mend)


async def test_a_key_for_a_relying_party_that_is_not_in_order_is_a_problem(state: Path) -> None:
    keys = KeyStore(state)
    await keys.key("https://login.example")
    await keys.key("https://other.example")
    assert [finding.status for finding in examine_state(state)] == [Status.OK]
    keys.path("https://login.example").write_text("{")
    (finding,) = examine_state(state)
    assert (finding.status, finding.reason) == (Status.PROBLEM, SetupReason.STATE_DAMAGED)
    assert f"`rm {keys.path('https://login.example')}`, then sign in again" == finding.mend
    keys.path("https://login.example").chmod(0o640)
    assert [finding.reason for finding in examine_state(state)] == [SetupReason.STATE_EXPOSED]


@pytest.mark.parametrize("what", ["damaged", "open to others"])
async def test_a_file_of_links_that_is_not_in_order_is_a_problem(state: Path, what: str) -> None:
    store = LinkStore(state)
    await keep_link(state, a_phone())
    assert [finding.status for finding in examine_state(state)] == [Status.OK]
    if what == "damaged":
        store.path.write_text("{")
    else:
        store.path.chmod(0o644)
    (finding,) = examine_state(state)
    assert (finding.check, finding.status) == (Check.STATE, Status.PROBLEM)
    assert finding.reason == ("state-damaged" if what == "damaged" else "state-exposed")
    assert str(store.path) in finding.message


# Pinned users


async def test_whom_the_device_expects_is_told(state: Path) -> None:
    (finding,) = examine_users(state)
    assert (finding.status, finding.message[:8]) == (Status.OK, "none yet")
    await settle(PinnedUsers(state, "login.example"), b"ada")
    await settle(PinnedUsers(state, "login.example", add=True), b"bob", name=None)
    await settle(PinnedUsers(state, "other.example"), b"ada")
    (finding,) = examine_users(state)
    assert finding.message == "expects ada, one without a name at login.example; ada at other.example"


async def test_a_file_of_users_that_is_not_in_order_is_a_problem(state: Path) -> None:
    users = PinnedUsers(state, "login.example")
    await settle(users, b"ada")
    users.path.write_text("{")
    (finding,) = examine_users(state)
    assert (finding.status, finding.reason) == (Status.PROBLEM, SetupReason.STATE_DAMAGED)
    assert finding.mend is not None
    assert f"rm {users.path}" in finding.mend
    users.path.chmod(0o644)
    assert [each.reason for each in examine_state(state)] == [SetupReason.STATE_EXPOSED]
    (finding,) = examine_users(state)
    assert finding.status is Status.NOT_CHECKED


# The relay


async def test_where_no_relay_listens_it_is_unreachable(state: Path) -> None:
    at(state, f"https://{nobody()}")
    found = await examined(state)
    assert problems(found) == {Check.RELAY: TransportReason.UNREACHABLE}
    assert found[Check.RELAY].exit_status is ExitStatus.TRANSPORT
    assert not_checked(found) == dict.fromkeys((Check.CLOCK, Check.MEMBERSHIP), "because of relay")


async def test_a_relays_name_that_does_not_resolve_is_named_as_such(state: Path) -> None:
    at(state, "https://relay.invalid")
    found = await examined(state)
    assert problems(found) == {Check.RELAY: TransportReason.NAME_NOT_RESOLVED}
    assert found[Check.RELAY].subject == "relay.invalid"


async def test_a_silent_relay_is_given_up(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "LIMIT", 0.2)
    async with silent() as host:
        at(state, f"https://{host}")
        found = await examined(state)
    assert problems(found) == {Check.RELAY: TransportReason.UNREACHABLE}


async def test_a_relay_that_falls_silent_after_its_first_answer_is_given_up(
    state: Path, monkeypatch: pytest.MonkeyPatch, loopback_certificate: Certificate
) -> None:
    async def only_livez(request: web.Request) -> web.StreamResponse:
        if request.path != "/livez":
            await asyncio.get_running_loop().create_future()
        return web.Response()

    monkeypatch.setattr(account, "LIMIT", 0.2)
    async with answering(only_livez, loopback_certificate) as host:
        at(state, f"https://{host}")
        found = await examined(state, loopback_certificate.ca)
    assert problems(found) == {Check.RELAY: TransportReason.UNREACHABLE}
    assert found[Check.RELAY].message == f"{host} does not answer in time"


async def test_a_relays_certificate_that_is_not_to_be_trusted_is_named_as_such(
    state: Path, loopback_certificate: Certificate
) -> None:
    async with answering(saying(200), loopback_certificate) as host:
        at(state, f"https://{host}")
        found = await examined(state)
    assert problems(found) == {Check.RELAY: TransportReason.UNTRUSTED_CERTIFICATE}


async def test_a_relay_that_cannot_serve_is_named_as_such(
    state: Path, loopback_certificate: Certificate
) -> None:
    async with answering(saying(503), loopback_certificate) as host:
        at(state, f"https://{host}")
        found = await examined(state, loopback_certificate.ca)
    assert problems(found) == {Check.RELAY: TransportReason.SERVER_FAILED}


async def test_a_relay_that_drains_is_not_waited_for(
    state: Path, enrolled: Enrolment, loopback_certificate: Certificate
) -> None:
    async def draining(request: web.Request) -> web.StreamResponse:
        return web.Response(status=200 if request.path == "/livez" else 503)

    async with answering(draining, loopback_certificate) as host:
        enrolment._write(
            state, Enrolment(key=enrolled.key, relay_url=f"https://{host}", chain=enrolled.chain)
        )
        found = await examined(state, loopback_certificate.ca)
    assert problems(found) == {Check.RELAY: TransportReason.SERVER_FAILED}


@pytest.mark.parametrize("status", [200, 404])
async def test_another_web_server_is_no_relay(
    state: Path, loopback_certificate: Certificate, status: int
) -> None:
    async with answering(saying(status), loopback_certificate) as host:
        at(state, f"https://{host}")
        found = await examined(state, loopback_certificate.ca)
    assert problems(found) == {Check.RELAY: SetupReason.WRONG_SERVER}


async def test_a_relay_under_another_url_than_it_knows_is_the_wrong_one(
    state: Path, enrolled: Enrolment
) -> None:
    other_name = enrolled.relay_url.replace("127.0.0.1", "localhost")
    enrolment._write(state, Enrolment(key=enrolled.key, relay_url=other_name, chain=enrolled.chain))
    found = await examined(state)
    assert problems(found) == {Check.RELAY: SetupReason.WRONG_SERVER}
    assert "proof-invalid" in found[Check.RELAY].message


# Clocks


@pytest.mark.usefixtures("enrolled")
@pytest.mark.parametrize(("ahead", "words"), [(TOLERANCE + 30, "behind"), (-TOLERANCE - 30, "ahead of")])
async def test_a_clock_that_the_relay_refuses_is_a_problem(
    state: Path, relay: household.Relay, ahead: float, words: str
) -> None:
    relay.clock.ahead = ahead
    found = await examined(state)
    assert problems(found) == {Check.CLOCK: TrustReason.CLOCK_SKEW}
    assert words in found[Check.CLOCK].message
    assert found[Check.CLOCK].exit_status is ExitStatus.NOT_TRUSTED
    assert found[Check.RELAY].status is Status.OK
    assert not_checked(found) == {Check.MEMBERSHIP: "because of clock"}


@pytest.mark.usefixtures("enrolled")
@pytest.mark.parametrize(("ahead", "words"), [(40, "ahead of"), (-40, "behind")])
async def test_a_clock_that_is_on_its_way_there_is_a_warning(
    state: Path, relay: household.Relay, ahead: int, words: str
) -> None:
    assert NOTEWORTHY < abs(ahead) < TOLERANCE
    found = await examined(state, clock=lambda: relay.clock() + ahead)
    assert problems(found) == {}
    assert (found[Check.CLOCK].status, found[Check.CLOCK].reason) == (Status.WARNING, TrustReason.CLOCK_SKEW)
    assert words in found[Check.CLOCK].message


WITHIN = f"within {TOLERANCE} s of the relay's"
AT = 1_795_736_340  # Thu, 26 Nov 2026 23:39:00 GMT


@pytest.mark.parametrize(
    ("date", "said"),
    [
        ("Thu, 26 Nov 2026 23:39:00 GMT", "agrees with the relay's (+0 s)"),
        ("Thursday, 26-Nov-26 23:39:00 GMT", "agrees with the relay's (+0 s)"),
        ("Thu Nov 26 23:39:00 2026", "agrees with the relay's (+0 s)"),
        ("Sat Jun  6 23:39:00 2026", "this clock is 14947200 s ahead of the relay's"),
        ("Fri, 27 Nov 2026 00:39:00 +0100", "agrees with the relay's (+0 s)"),
        ("Thu, 26 Nov 2026 23:39:00", WITHIN),
        ("Thu, 26 Nov 2026 23:39:00 CET", WITHIN),
        ("Thu, 26 Nov 2026 23:39:00 -0000", WITHIN),
        ("Thu, 26 Nov 99999 23:39:00 GMT", WITHIN),
        ("2026-11-26T23:39:00Z", WITHIN),
        ("tomorrow", WITHIN),
        ("", WITHIN),
    ],
)
async def test_a_date_counts_in_the_forms_of_http_alone_wherever_the_device_is(
    state: Path, loopback_certificate: Certificate, monkeypatch: pytest.MonkeyPatch, date: str, said: str
) -> None:
    """RFC 9110 §5.6.7. Without a date, that the relay takes the proof says enough."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()

    async def dated(request: web.Request) -> web.StreamResponse:
        if request.path == "/livez":
            return web.Response(headers={"Date": date})
        head = kept.chain.head
        body = {"version": head.version, "hash": base64url(head.hash), "rings": [], "words": []}
        return web.json_response(body)

    try:
        async with answering(dated, loopback_certificate) as host:
            kept = at(state, f"https://{host}")
            found = await examined(state, loopback_certificate.ca, clock=lambda: AT)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found[Check.CLOCK].message.startswith(said)
    assert found[Check.MEMBERSHIP].status is Status.OK


async def test_a_clock_that_never_was_set_is_a_problem_without_any_relay(state: Path) -> None:
    found = await examined(state, clock=lambda: 86400.0)
    assert problems(found)[Check.CLOCK] is TrustReason.CLOCK_SKEW
    assert "1970-01-02" in found[Check.CLOCK].message
    at(state, f"https://{nobody()}")
    found = await examined(state, clock=lambda: 86400.0)
    assert problems(found)[Check.CLOCK] is TrustReason.CLOCK_SKEW


# Membership


@pytest.mark.threat("T2")
@pytest.mark.usefixtures("enrolled")
async def test_a_membership_that_nobody_has_confirmed_for_a_week_is_told(
    state: Path, home: Household
) -> None:
    enrolled = enrolment.load(state)
    witness = enrolled.witnesses[0]
    enrolment._write(state, replace(enrolled, words={witness.member.name: witness.at}))
    found = await examined(state, clock=lambda: time.time() + 30)
    assert found[Check.MEMBERSHIP].status is Status.OK
    finding = account._membership(enrolled, enrolled.chain, {}, witness.at + 9 * 86_400)
    assert (finding.status, finding.reason) == (Status.WARNING, TrustReason.UNCONFIRMED_RING)
    assert f'no word from "{witness.member.label}" for 9 days' in finding.message
    confirmed = account._membership(
        enrolled, enrolled.chain, {witness.member.name: witness.at + 3 * 86_400}, witness.at + 9 * 86_400
    )
    assert confirmed.status is Status.OK


@pytest.mark.usefixtures("enrolled")
async def test_a_device_that_was_removed_is_told(state: Path, home: Household) -> None:
    await home.append(*(caller.person for caller in home.companions))
    found = await examined(state)
    assert problems(found) == {Check.MEMBERSHIP: TrustReason.NOT_A_MEMBER}
    assert found[Check.MEMBERSHIP].exit_status is ExitStatus.NOT_ENROLLED
    assert "headless-passkey leave" in str(found[Check.MEMBERSHIP].mend)
    assert found[Check.CLOCK].status is Status.OK


async def test_a_device_that_was_removed_and_knows_it_is_told(
    state: Path, enrolled: Enrolment, home: Household, relay: household.Relay
) -> None:
    people = [caller.person for caller in home.companions]
    ring = await home.append(*people)
    kept = Enrolment(
        key=enrolled.key, relay_url=relay.url, chain=enrolled.chain.extend([ring.document], now=ring.issued)
    )
    enrolment._write(state, kept)
    found = await examined(state)
    assert problems(found) == {Check.MEMBERSHIP: TrustReason.NOT_A_MEMBER}
    assert found[Check.ENROLMENT].status is Status.OK


async def test_a_relay_whose_newest_ring_is_without_this_device_is_told(
    state: Path, loopback_certificate: Certificate
) -> None:
    people = Home()

    async def shows_it(request: web.Request) -> web.StreamResponse:
        if request.path == "/livez":
            return web.Response()
        body = {
            "version": newest.version,
            "hash": base64url(newest.hash),
            "rings": [base64url(newest.document)],
            "words": [],
        }
        return web.json_response(body)

    newest = grow(people.ring, people.phone, people.phone, people.tablet)
    async with answering(shows_it, loopback_certificate) as host:
        private_directory(state)
        kept = Enrolment(key=people.frame.key, relay_url=f"https://{host}", chain=people.chain)
        enrolment._write(state, kept)
        found = await examined(state, loopback_certificate.ca)
    assert problems(found) == {Check.MEMBERSHIP: TrustReason.NOT_A_MEMBER}


async def test_a_relay_that_shows_another_ring_is_told(
    state: Path, enrolled: Enrolment, home: Household
) -> None:
    person = home.companions[0].person
    other = Home(phone=person, account=home.account)
    chain = RingChain.start(other.chain.rings[0])
    me = newcomer(enrolled, home)
    while chain.head.version < enrolled.chain.head.version + 1:
        ring = grow(chain.head, person, person, me)
        chain = chain.extend([ring.document], now=NOW)
    enrolment._write(state, Enrolment(key=enrolled.key, relay_url=enrolled.relay_url, chain=chain))
    found = await examined(state)
    assert problems(found) == {Check.MEMBERSHIP: TrustReason.FORKED_RING}
    assert found[Check.MEMBERSHIP].mend is not None
    async with open_session(None) as session:
        with pytest.raises(HeadlessPasskeyError) as failed:
            await enrolment.refresh(state, RelayClient(ProvenHttp(session, enrolled.relay_url, enrolled.key)))
    assert failed.value.reason is TrustReason.FORKED_RING


@pytest.mark.threat("T16")
async def test_rings_that_the_relay_has_forgotten_are_a_warning_and_not_handed_in(
    state: Path, loopback_certificate: Certificate
) -> None:
    people = Home()
    newest = grow(people.ring, people.phone, people.phone, people.tablet, people.frame)
    asked: list[str] = []

    async def as_a_backup_has_it(request: web.Request) -> web.StreamResponse:
        asked.append(request.method)
        old = people.ring
        return web.json_response(
            {"version": old.version, "hash": base64url(old.hash), "rings": [], "words": [], "gap": False}
        )

    async with answering(as_a_backup_has_it, loopback_certificate) as host:
        private_directory(state)
        chain = people.chain.extend([newest.document], now=NOW)
        enrolment._write(state, Enrolment(key=people.frame.key, relay_url=f"https://{host}", chain=chain))
        found = await examined(state, loopback_certificate.ca)
    told = found[Check.MEMBERSHIP]
    assert (told.status, told.reason) == (Status.WARNING, "relay-forgot-rings")
    assert told.message == f"the relay has forgotten ring {newest.version}"
    assert set(asked) == {"GET"}
