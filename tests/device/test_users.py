"""Pinned users: who is pinned when, who is refused before the relying party hears of it, and files that are not in order."""

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headless_passkey.command.cli import main
from headless_passkey.errors import (
    HeadlessPasskeyError,
    SetupError,
    SetupReason,
    TransportError,
    TransportReason,
    TrustError,
    TrustReason,
    UsageError,
)
from headless_passkey.rp.conduit import OpenedSession
from headless_passkey.rp.users import MAX_USERS, PinnedUsers, all_users, is_users_file, parse_handle
from headless_passkey.webauthn.options import Credential
from program_parts.base64url import base64url
from tests.device.test_conduit import BEGUN, SESSION, conduit
from tests.device.test_proven_http import Step, ok, problem, serving, talking_to
from tests.device.test_session_store import OPENED

RP_ID = "login.example"
ADA, EVE, BOB = b"ada's handle", b"eve's handle", b"bob's handle"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def answered(handle: bytes | None, name: str | None = "ada") -> Credential:
    """What a phone answers with a passkey of this user."""
    return Credential(response={}, credential_id=b"credential", user_handle=handle, user_name=name)


def session_of(handle: bytes, name: str = "ada") -> OpenedSession:
    return replace(OPENED, user_handle=base64url(handle), user_name=name)


class RelyingParty:
    """What `settle` calls: it accepts with a result, or raises."""

    def __init__(self, result: object = None) -> None:
        self.result, self.heard_of = result, 0

    async def __call__(self, _credential: Credential) -> object:
        self.heard_of += 1
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


async def settle(
    users: PinnedUsers,
    handle: bytes | None,
    *,
    result: object = None,
    expected: bool = False,
    name: str | None = "ada",
) -> None:
    await users.settle(answered(handle, name), RelyingParty(result), expected=expected)


def handles(state: Path, rp_id: str = RP_ID) -> list[bytes]:
    return [user.handle for user in PinnedUsers(state, rp_id).read()]


async def is_refused(users: PinnedUsers, handle: bytes | None) -> TrustError:
    party = RelyingParty()
    with pytest.raises(TrustError) as refused:
        await users.settle(answered(handle), party, expected=False)
    assert party.heard_of == 0
    assert refused.value.reason is TrustReason.UNEXPECTED_USER
    if handle is not None:
        with pytest.raises(TrustError):
            users.check(handle)
    return refused.value


# Who is pinned


@pytest.mark.threat("T3")
async def test_the_first_user_whom_the_relying_party_accepts_is_pinned_and_others_are_refused(
    state: Path,
) -> None:
    users = PinnedUsers(state, RP_ID, clock=lambda: 1_800_000_000.9)
    assert users.check(EVE) is False
    await settle(users, ADA)
    assert users.newly_pinned
    (user,) = users.read()
    assert user.to_json() == {
        "user_handle": "YWRhJ3MgaGFuZGxl",
        "user_name": "ada",
        "pinned_at": 1_800_000_000,
    }
    assert users.path.stat().st_mode & 0o777 == 0o600
    assert users.path.parent.stat().st_mode & 0o777 == 0o700
    later = PinnedUsers(state, RP_ID)
    assert later.check(ADA) is True
    await settle(later, ADA)
    assert not later.newly_pinned
    error = await is_refused(later, EVE)
    assert "headless-passkey users list" in str(error.advice)
    assert handles(state) == [ADA]


@pytest.mark.threat("T3")
@pytest.mark.parametrize(
    "failure",
    [
        TrustError(TrustReason.RP_REFUSED, "no"),
        TransportError("503", reason=TransportReason.SERVER_FAILED),
        TransportError("the answer was lost", reason=TransportReason.WENT_SILENT),
        ZeroDivisionError(),
    ],
    ids=["refused", "503", "lost", "bug"],
)
async def test_nobody_is_pinned_without_the_relying_partys_yes(state: Path, failure: Exception) -> None:
    users = PinnedUsers(state, RP_ID)
    with pytest.raises(type(failure)):
        await settle(users, EVE, result=failure)
    assert handles(state) == []
    await settle(users, ADA)
    assert handles(state) == [ADA]


@pytest.mark.threat("T3")
async def test_nobody_is_pinned_by_a_sign_in_that_is_cancelled_at_the_relying_party(state: Path) -> None:
    asked = asyncio.Event()

    async def hang(_credential: Credential) -> None:
        asked.set()
        await asyncio.Event().wait()

    signing_in = asyncio.create_task(PinnedUsers(state, RP_ID).settle(answered(EVE), hang, expected=False))
    await asked.wait()
    signing_in.cancel()
    with pytest.raises(asyncio.CancelledError):
        await signing_in
    assert handles(state) == []
    await settle(PinnedUsers(state, RP_ID), ADA)


async def hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


@pytest.mark.threat("T3")
async def test_what_the_relying_party_sends_decides_who_is_pinned(state: Path) -> None:
    """A server that fails, refuses, hangs up or names somebody else has accepted nobody, as far as is known here."""
    user = bytes(3)  # as in `SESSION`
    answers: dict[str, Step] = {
        "503": problem(503, "store-unavailable"),
        "refused": problem(403, "verification-failed"),
        "no session": ok(),
        "another user": ok(**{**SESSION, "user": {"name": "eve", "display_name": "Eve", "handle": "AAAB"}}),
        "hangs up": hang_up,
    }
    for name, step in answers.items():
        async with serving(BEGUN, step) as server, talking_to(server.url) as http:
            begun = await conduit(http).begin()
            with pytest.raises(HeadlessPasskeyError):
                await PinnedUsers(state, RP_ID).settle(answered(user), begun.complete, expected=False)
        assert handles(state) == [], name
    async with serving(BEGUN, ok(**SESSION)) as server, talking_to(server.url) as http:
        begun = await conduit(http).begin()
        await PinnedUsers(state, RP_ID).settle(answered(user), begun.complete, expected=False)
    assert handles(state) == [user]


@pytest.mark.threat("T3")
async def test_the_users_of_one_rp_id_say_nothing_of_another(state: Path) -> None:
    await settle(PinnedUsers(state, RP_ID), ADA)
    await settle(PinnedUsers(state, "other.example"), EVE)
    assert (handles(state), handles(state, "other.example")) == ([ADA], [EVE])
    assert list(all_users(state)) == [RP_ID, "other.example"]


@pytest.mark.threat("T3")
async def test_one_more_user_is_pinned_on_demand_and_no_more_than_sixteen(state: Path) -> None:
    several = [f"user {number}".encode() for number in range(MAX_USERS)]
    for handle in several:
        users = PinnedUsers(state, RP_ID, add=True)
        assert users.check(handle) is False
        await settle(users, handle)
        assert users.newly_pinned
    assert handles(state) == several
    full = PinnedUsers(state, RP_ID, add=True)
    error = await is_refused(full, EVE)
    assert "has 16 already" in str(error)
    assert "users forget" in str(error.advice)
    await settle(full, several[3])
    assert not full.newly_pinned
    await is_refused(PinnedUsers(state, RP_ID), EVE)


@pytest.mark.threat("T3")
async def test_a_user_who_is_expected_otherwise_is_taken_and_pinned_only_where_nobody_is(
    state: Path,
) -> None:
    """An allow list or a handle said whom this sign-in is for; that says nothing of the next one."""
    await settle(PinnedUsers(state, RP_ID), BOB, expected=True)
    await settle(PinnedUsers(state, RP_ID), EVE, expected=True)
    assert handles(state) == [BOB]
    await settle(PinnedUsers(state, RP_ID, add=True), ADA, expected=True)
    assert handles(state) == [BOB, ADA]


@pytest.mark.threat("T3")
async def test_a_response_without_a_user_handle_pins_the_sessions_user_or_nobody(state: Path) -> None:
    await settle(PinnedUsers(state, RP_ID), None, expected=True)
    assert handles(state) == []
    await settle(PinnedUsers(state, RP_ID), None, result=session_of(ADA), expected=True)
    assert handles(state) == [ADA]
    await is_refused(PinnedUsers(state, RP_ID), None)


@pytest.mark.threat("T3")
async def test_a_registration_is_refused_before_anybody_is_asked_where_others_are_expected(
    state: Path,
) -> None:
    PinnedUsers(state, RP_ID).check_new()
    await settle(PinnedUsers(state, RP_ID), ADA)
    with pytest.raises(TrustError):
        PinnedUsers(state, RP_ID).check_new()
    PinnedUsers(state, RP_ID, add=True).check_new()


async def test_the_name_is_what_the_relying_party_told_last(state: Path) -> None:
    await settle(PinnedUsers(state, RP_ID), ADA, result=session_of(ADA, "ada"))
    await settle(PinnedUsers(state, RP_ID), ADA, result=session_of(ADA, "ada king"))
    users = PinnedUsers(state, RP_ID)
    assert [user.name for user in users.read()] == ["ada king"]
    assert (users.named("ada king"), users.named("ada")) == (ADA, None)
    assert PinnedUsers(state, RP_ID, add=True).named("ada king") is None
    await settle(PinnedUsers(state, RP_ID, add=True), BOB, result=session_of(BOB, "ada king"))
    assert users.named("ada king") is None


async def test_a_name_of_a_phone_is_cut_where_it_is_long(state: Path) -> None:
    await settle(PinnedUsers(state, RP_ID), ADA, name="a" * 1000)
    await settle(PinnedUsers(state, RP_ID, add=True), BOB, name=None)
    assert [user.name for user in PinnedUsers(state, RP_ID).read()] == ["a" * 256, None]


# At once


@pytest.mark.threat("T3")
async def test_of_two_first_sign_ins_at_once_one_pins_and_the_other_is_refused_unheard(state: Path) -> None:
    at_the_party, may_answer = asyncio.Event(), asyncio.Event()

    async def slow(_credential: Credential) -> str:
        at_the_party.set()
        await may_answer.wait()
        return "accepted"

    first, second = PinnedUsers(state, RP_ID), PinnedUsers(state, RP_ID)
    assert (first.check(ADA), second.check(EVE)) == (False, False)
    party = RelyingParty("accepted")
    one = asyncio.create_task(first.settle(answered(ADA), slow, expected=False))
    await at_the_party.wait()
    two = asyncio.create_task(second.settle(answered(EVE), party, expected=False))
    await asyncio.sleep(0)
    may_answer.set()
    assert await one == "accepted"
    with pytest.raises(TrustError):
        await two
    assert party.heard_of == 0
    assert handles(state) == [ADA]


# Adding and forgetting


@pytest.mark.threat("T3")
async def test_a_user_who_is_added_before_the_first_sign_in_is_the_only_one(state: Path) -> None:
    assert await PinnedUsers(state, RP_ID).pin(ADA, "ada") is True
    assert await PinnedUsers(state, RP_ID).pin(ADA) is False
    await is_refused(PinnedUsers(state, RP_ID), EVE)
    assert PinnedUsers(state, RP_ID).check(ADA) is True
    for number in range(MAX_USERS - 1):
        assert await PinnedUsers(state, RP_ID).pin(f"user {number}".encode())
    with pytest.raises(TrustError, match="has 16 already"):
        await PinnedUsers(state, RP_ID).pin(BOB)
    assert await PinnedUsers(state, RP_ID).pin(ADA) is False


async def test_a_forgotten_user_is_a_stranger_and_with_the_last_one_the_file_goes(state: Path) -> None:
    users = PinnedUsers(state, RP_ID, add=True)
    assert await users.forget() == ()
    assert not users.path.parent.exists()
    await settle(users, ADA)
    await settle(users, BOB)
    assert await users.forget(EVE) == ()
    assert [user.handle for user in await users.forget(ADA)] == [ADA]
    await is_refused(PinnedUsers(state, RP_ID), ADA)
    assert [user.handle for user in await users.forget()] == [BOB]
    assert not users.path.exists()
    assert PinnedUsers(state, RP_ID).check(EVE) is False


# What is not in order


@pytest.fixture
def pinned(state: Path) -> PinnedUsers:
    users = PinnedUsers(state, RP_ID)
    asyncio.run(settle(users, ADA))
    return users


def _open_to_others(path: Path) -> None:
    path.chmod(0o666)


def _a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _somebody_elses(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root may give a file away")
    os.chown(path, 65534, 65534)


DAMAGES: dict[str, tuple[Callable[[Path], object], SetupReason]] = {
    "0666": (_open_to_others, SetupReason.STATE_EXPOSED),
    "a symlink": (_a_link, SetupReason.STATE_UNREADABLE),
    "of another user": (_somebody_elses, SetupReason.STATE_FOREIGN),
    "a directory": (_a_directory, SetupReason.STATE_DAMAGED),
    "empty": (lambda path: path.write_bytes(b""), SetupReason.STATE_DAMAGED),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-9]), SetupReason.STATE_DAMAGED),
    "too long": (lambda path: path.write_bytes(b" " * 65_537), SetupReason.STATE_DAMAGED),
    "no users": (lambda path: _with(path, users=[]), SetupReason.STATE_DAMAGED),
    "another rp id": (lambda path: _with(path, rp_id="other.example"), SetupReason.STATE_DAMAGED),
    "another format": (lambda path: _with(path, format=2), SetupReason.STATE_INCOMPATIBLE),
}


def _with(path: Path, **members: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **members}))


@pytest.mark.threat("T3")
@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_file_that_is_not_in_order_never_counts_as_nobody(pinned: PinnedUsers, damage: str) -> None:
    do, reason = DAMAGES[damage]
    do(pinned.path)
    party = RelyingParty()
    for attempt in (
        lambda: pinned.check(EVE),
        lambda: pinned.check(ADA),
        pinned.check_new,
        lambda: pinned.named("ada"),
    ):
        with pytest.raises(SetupError) as refused:
            attempt()
        assert refused.value.reason is reason
        assert refused.value.advice
    for expected in (True, False):
        with pytest.raises(SetupError):
            await pinned.settle(answered(EVE), party, expected=expected)
    with pytest.raises(SetupError):
        await pinned.forget()
    assert party.heard_of == 0


async def test_a_damaged_file_says_what_to_do_and_hides_no_other(state: Path, pinned: PinnedUsers) -> None:
    await settle(PinnedUsers(state, "other.example"), ADA)
    pinned.path.write_text("{")
    told: list[HeadlessPasskeyError] = []
    assert list(all_users(state, told.append)) == ["other.example"]
    (error,) = told
    assert error.explain() == (
        f"{pinned.path} is damaged: `rm {pinned.path}`, then sign in with the user whom this device is to expect"
    )


@pytest.mark.threat("T12")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(
    name=st.sampled_from(["format", "rp_id", "users", "user_handle", "user_name", "pinned_at"]),
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=9)
    | st.lists(st.text(max_size=3), max_size=2),
)
def test_any_member_is_read_or_refused(state: Path, name: str, value: Any) -> None:
    async def pin() -> None:
        await settle(PinnedUsers(state, RP_ID), ADA)

    users = PinnedUsers(state, RP_ID)
    if not users.path.exists():
        asyncio.run(pin())
    content = users.path.read_text()
    values = json.loads(content)
    (values if name in values else values["users"][0])[name] = value
    users.path.write_text(json.dumps(values))
    reason: str | None = None
    try:
        assert len(users.read()) == 1
    except SetupError as error:
        reason = error.reason
    finally:
        users.path.write_text(content)
    assert reason in (None, SetupReason.STATE_DAMAGED, SetupReason.STATE_INCOMPATIBLE)


@pytest.mark.parametrize("rp_id", ["", "Login.example", "../../etc/passwd", "login.example/x", "192.0.2.1"])
def test_an_rp_id_that_is_none_names_no_file(state: Path, rp_id: str) -> None:
    with pytest.raises(UsageError):
        PinnedUsers(state, rp_id)


def test_an_rp_id_as_long_as_they_get_has_a_file(state: Path) -> None:
    assert len(PinnedUsers(state, ".".join(["a" * 62] * 4)).path.name) < 100


def test_what_holds_users_is_told_by_its_name(pinned: PinnedUsers) -> None:
    assert is_users_file(pinned.path)
    assert is_users_file(pinned.path.with_name(f".{pinned.path.name}.lock"))
    assert not is_users_file(pinned.path.with_name("enrolment.json"))


@pytest.mark.parametrize("text", ["", "not base64url!", "AA==", base64url(bytes(65))])
def test_a_text_that_is_no_user_handle_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_handle(text)


# The commands


@pytest.fixture
def household(state: Path) -> Path:
    async def pin() -> None:
        await settle(PinnedUsers(state, RP_ID), ADA)
        await settle(PinnedUsers(state, RP_ID, add=True), BOB, name="b\x1b[2Job")
        await settle(PinnedUsers(state, "other.example"), EVE)

    asyncio.run(pin())
    return state


def run(state: Path, *words: str) -> int:
    return main(["users", words[0], "--state", str(state), *words[1:]])


def test_each_user_is_a_line(household: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(household, "list") == 0
    lines = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [(line["rp_id"], line["user_handle"]) for line in lines] == [
        (RP_ID, base64url(ADA)),
        (RP_ID, base64url(BOB)),
        ("other.example", base64url(EVE)),
    ]
    assert run(household, "list", "--rp-id", "other.example") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_where_nobody_is_pinned_there_is_no_line(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(state, "list") == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_one_user_is_forgotten_or_all_of_a_relying_party(
    household: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(household, "forget", "--rp-id", RP_ID, "--handle", base64url(BOB)) == 0
    said = capsys.readouterr().err
    assert said == "forgot b<U+001B>[2Job at login.example\n"
    assert handles(household) == [ADA]
    assert run(household, "forget", "--rp-id", RP_ID, "--json") == 0
    assert json.loads(capsys.readouterr().err)["forgotten"]["user_handle"] == base64url(ADA)
    assert handles(household) == []
    assert handles(household, "other.example") == [EVE]


def test_a_user_is_added_once(household: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("add", "--rp-id", "third.example", "--handle", base64url(BOB), "--name", "bob")
    assert run(household, *words) == 0
    assert capsys.readouterr().err == ""
    assert run(household, *words) == 0
    assert "already" in capsys.readouterr().err
    (user,) = PinnedUsers(household, "third.example").read()
    assert (user.handle, user.name) == (BOB, "bob")


@pytest.mark.parametrize(
    "words",
    [
        ("add", "--rp-id", "Not.Example", "--handle", base64url(EVE)),
        ("add", "--rp-id", RP_ID, "--handle", ""),
        ("forget", "--rp-id", "nobody.example"),
        ("forget", "--rp-id", "../x"),
        ("forget", "--rp-id", RP_ID, "--handle", base64url(EVE)),
        ("forget", "--rp-id", RP_ID, "--handle", "?"),
    ],
    ids=["no domain", "an empty handle", "no rp id", "a path", "no user", "no handle"],
)
def test_words_that_name_no_user_change_nothing(
    household: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert run(household, *words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert handles(household) == [ADA, BOB]


def test_a_file_that_is_damaged_is_told_and_the_others_are_shown(
    household: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PinnedUsers(household, RP_ID).path.write_text("{")
    assert run(household, "list") == 10
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert "is damaged" in captured.err
