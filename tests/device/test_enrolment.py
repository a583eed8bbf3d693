"""Joining, leaving, and what the device keeps: against the real relay, through crashes and lies."""

import asyncio
import contextlib
import json
import logging
import os
import re
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from companion_push.relay.app import close_account
from headless_passkey.account import enrolment
from headless_passkey.account.enrolment import (
    FILE_NAME,
    Enrolment,
    Left,
    join,
    leave,
    load,
    refresh,
    take_out,
)
from headless_passkey.account.relay import RelayClient
from headless_passkey.errors import (
    EnrolmentReason,
    ExitStatus,
    JoinDiffers,
    NotApproved,
    NotEnrolled,
    Outcome,
    SetupError,
    SetupReason,
    TransportError,
    TrustReason,
    UsageError,
)
from headless_passkey.net.proven_http import ProvenHttp, open_session
from headless_passkey.process import private_file
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.admission import Newcomer
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.introduction import Introduction
from headless_passkey.trust.ring import Ring, Role
from program_parts.base64url import base64url
from tests.device.inviter import Inviter
from tests.device.test_proven_http import answer, ok, serving
from tests.ports import reserved_port
from tests.relay import household
from tests.relay.household import Household
from tests.trust.people import ACCOUNT, NOW, device, forge, grow
from tests.trust.refusal import refused


@pytest_asyncio.fixture
async def home(relay: household.Relay) -> Household:
    return await relay.household(devices=0)


@pytest_asyncio.fixture
async def inviter(relay: household.Relay, home: Household) -> Inviter:
    return await Inviter.invite(relay, home)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "device"


async def joined(state: Path, inviter: Inviter, label: str = "frame") -> Enrolment:
    """A whole join: the device asks, and its number is typed at the inviter."""
    async with asyncio.TaskGroup() as tasks:
        joining = tasks.create_task(
            join(state, inviter.invitation, label=label, on_check_number=inviter.numbers.append)
        )
        await inviter.admit(await inviter.introduced())
    return joining.result()


@contextlib.asynccontextmanager
async def speaking(enrolled: Enrolment) -> AsyncIterator[RelayClient]:
    async with open_session(None) as session:
        yield RelayClient(ProvenHttp(session, enrolled.relay_url, enrolled.key))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def files(state: Path) -> list[Path]:
    return list(state.iterdir()) if state.exists() else []


# Joining and leaving


async def test_a_device_joins_and_is_what_the_inviter_admitted(state: Path, inviter: Inviter) -> None:
    enrolled = await joined(state, inviter, "kitchen frame")
    assert enrolled.chain.head == inviter.home.ring
    assert enrolled.member == inviter.home.ring.member(enrolled.name)
    assert (enrolled.account, enrolled.label) == (inviter.home.account, "kitchen frame")
    kept = load(state)
    assert (kept.name, kept.chain, kept.relay_url) == (enrolled.name, enrolled.chain, enrolled.relay_url)
    assert kept.key.to_bytes() == enrolled.key.to_bytes()


@pytest.mark.threat("T2")
async def test_the_number_that_the_device_shows_is_the_one_that_the_inviter_expects(
    state: Path, inviter: Inviter
) -> None:
    shown: list[str] = []
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(join(state, inviter.invitation, label="frame", on_check_number=shown.append))
        introduction = await inviter.introduced()
        assert shown == [], "there is no number before the inviter's nonce"
        candidate = await inviter.candidate(introduction)
        (number,) = shown
        wrong = f"{(int(number.replace(' ', '')) + 1) % 1_000_000:06d}"
        with refused(TrustReason.WRONG_NUMBER):
            candidate.agree(wrong)
        inviter.numbers.append(number)
        await inviter.admit(introduction)


async def test_the_inviter_may_give_the_device_another_label(state: Path, inviter: Inviter) -> None:
    async with asyncio.TaskGroup() as tasks:
        joining = tasks.create_task(join(state, inviter.invitation, label="frame"))
        await inviter.admit(await inviter.introduced(), label="second frame")
    assert joining.result().label == "second frame"
    assert load(state).label == "second frame"


@pytest.mark.threat("T2")
async def test_an_invitation_into_another_account_than_expected_is_refused_and_nothing_is_sent(
    state: Path, inviter: Inviter
) -> None:
    with refused(TrustReason.ACCOUNT_MISMATCH, saying=inviter.home.account):
        await join(state, inviter.invitation, label="frame", expect_account=ACCOUNT)
    with pytest.raises(UsageError, match="22 characters"):
        await join(state, inviter.invitation, label="frame", expect_account="home")
    assert files(state) == []
    reply = await inviter.phone.get(f"/v1/invitations/{inviter.invitation.id}")
    assert reply.body["state"] == "open"
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(join(state, inviter.invitation, label="frame", expect_account=inviter.home.account))
        await inviter.admit(await inviter.introduced())


async def test_a_person_who_does_not_go_on_gives_the_join_up_before_the_nonce_is_revealed(
    state: Path, inviter: Inviter
) -> None:
    async def no() -> bool:
        return False

    joining = asyncio.ensure_future(join(state, inviter.invitation, label="frame", go_on=no))
    await inviter.introduced()
    await inviter.send_nonce()
    with pytest.raises(NotApproved) as caught:
        await joining
    assert (caught.value.reason, caught.value.exit_status) == (Outcome.DECLINED, 6)
    reply = await inviter.phone.get(f"/v1/invitations/{inviter.invitation.id}?state=answering&wait=20")
    assert reply.problem == "withdrawn"
    with pytest.raises(NotEnrolled, match="no account"):
        load(state)


async def test_what_is_kept_is_for_its_owner_alone(state: Path, inviter: Inviter) -> None:
    await joined(state, inviter)
    assert mode(state) == 0o700
    assert set(map(mode, files(state))) == {0o600}


async def test_a_device_that_has_joined_takes_another_invitation_only_after_leaving(
    state: Path, relay: household.Relay, home: Household, inviter: Inviter
) -> None:
    first = await joined(state, inviter)
    second = await Inviter.invite(relay, home)
    for invitation in (inviter.invitation, second.invitation):
        with pytest.raises(SetupError, match="already"):
            await join(state, invitation, label="frame")
    assert load(state).name == first.name
    leave(state)
    with pytest.raises(NotEnrolled):
        load(state)
    assert (await joined(state, second)).name != first.name


def test_who_has_not_joined_can_neither_be_loaded_nor_leave(state: Path) -> None:
    for act in (load, leave):
        with pytest.raises(NotEnrolled, match="no account"):
            act(state)


async def test_leaving_says_what_it_removes_and_takes_what_a_crash_left(
    state: Path, inviter: Inviter
) -> None:
    enrolled = await joined(state, inviter)
    half_written = state / f".{FILE_NAME}.0123456789abcdef"
    half_written.write_bytes(b"half of a key")
    (state / "of-somebody-else").touch()
    left = leave(state)
    assert left == Left(account=enrolled.account, removed=(state / FILE_NAME, half_written))
    assert {file.name for file in files(state)} == {f".{FILE_NAME}.lock", "of-somebody-else"}


DAMAGE: dict[str, Callable[[Path], object]] = {
    "nothing in it": lambda file: file.write_bytes(b""),
    "half of it": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "something else in it": lambda file: file.write_bytes(b'{"format": 2}'),
    "another key": lambda file: file.write_text(
        json.dumps(json.loads(file.read_bytes()) | {"key": base64url(bytes(32))})
    ),
    "no end": lambda file: os.truncate(file, 1 << 40),
    "others who may read it": lambda file: file.chmod(0o644),
}


@pytest.mark.parametrize("how", DAMAGE)
async def test_what_is_damaged_can_be_left_and_joined_anew(
    state: Path, relay: household.Relay, home: Household, inviter: Inviter, how: str
) -> None:
    await joined(state, inviter)
    DAMAGE[how](state / FILE_NAME)
    with pytest.raises(SetupError):
        load(state)
    assert leave(state) == Left(account=None, removed=(state / FILE_NAME,))
    with pytest.raises(NotEnrolled):
        load(state)
    assert (await joined(state, await Inviter.invite(relay, home))).member


@pytest.mark.threat("T12")
async def test_what_is_not_this_devices_to_remove_stays(
    state: Path, inviter: Inviter, tmp_path: Path
) -> None:
    await joined(state, inviter)
    kept, elsewhere = state / FILE_NAME, tmp_path / "elsewhere"
    newer = json.dumps(json.loads(kept.read_bytes()) | {"format": 3}).encode()
    kept.write_bytes(newer)
    with pytest.raises(SetupError, match="another version"):
        leave(state)
    assert kept.read_bytes() == newer
    kept.rename(elsewhere)
    kept.symlink_to(elsewhere)
    with pytest.raises(SetupError):
        leave(state)
    assert (kept.is_symlink(), elsewhere.read_bytes()) == (True, newer)
    kept.unlink()
    kept.mkdir()
    with pytest.raises(SetupError):
        leave(state)
    assert kept.is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
async def test_what_belongs_to_another_user_stays(state: Path, inviter: Inviter) -> None:
    await joined(state, inviter)
    os.chown(state / FILE_NAME, 65534, 65534)
    with pytest.raises(SetupError) as refused:
        leave(state)
    assert refused.value.reason is SetupReason.STATE_FOREIGN
    assert (state / FILE_NAME).exists()


async def test_the_inviter_may_bind_the_device_to_relying_parties(
    state: Path, relay: household.Relay, home: Household
) -> None:
    enrolled = await joined(state, await Inviter.invite(relay, home, rp_ids=("example.com",)))
    enrolled.check_rp(rp_id="example.com", origin="https://example.com")
    with refused(TrustReason.RP_NOT_ALLOWED):
        enrolled.check_rp(rp_id="evil.example", origin="https://evil.example")


@pytest.mark.threat("T4")
async def test_the_device_may_be_pinned_to_one_relying_party(state: Path, inviter: Inviter) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(
            join(
                state, inviter.invitation, label="f", rp_id="example.com", origin="https://login.example.com"
            )
        )
        await inviter.admit(await inviter.introduced())
    enrolled = load(state)
    enrolled.check_rp(rp_id="example.com", origin="https://login.example.com")
    for rp_id, origin in (
        ("login.example.com", "https://login.example.com"),
        ("example.com", "https://www.example.com"),
    ):
        with refused(TrustReason.RP_NOT_ALLOWED):
            enrolled.check_rp(rp_id=rp_id, origin=origin)


# Crashes


STEPS = ["introduce", "inviter_nonce", "reveal", "admission"]


@pytest.mark.threat("T2")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_join_that_a_crash_interrupts_at_any_step_goes_on_with_the_same_bytes(
    state: Path, inviter: Inviter, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    genuine = getattr(RelayClient, step)

    async def power_fails(self: RelayClient, *words: Any) -> None:
        if when == "after":
            await genuine(self, *words)
        raise asyncio.CancelledError

    async def invite() -> None:
        introductions.append(await inviter.introduced())
        await inviter.admit(introductions[0])

    introductions: list[Introduction] = []
    shown = inviter.numbers
    inviting = asyncio.ensure_future(invite())
    with monkeypatch.context() as crash:
        crash.setattr(RelayClient, step, power_fails)
        with pytest.raises(asyncio.CancelledError):
            await join(state, inviter.invitation, label="frame", on_check_number=shown.append)
    with pytest.raises(NotEnrolled) as unfinished:
        load(state)
    assert "same invitation" in str(unfinished.value.advice)
    enrolled = await join(state, inviter.invitation, label="frame", on_check_number=shown.append)
    await inviting
    assert enrolled.member.signing_key == introductions[0].signing_key
    assert len(set(shown)) == 1, "the number stays"
    assert len(shown) == (2 if step in ("reveal", "admission") else 1)


@pytest.mark.threat("T2")
async def test_a_device_that_crashed_after_a_nonce_came_takes_no_other_one(
    state: Path, inviter: Inviter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A go-between could try one nonce after the other, until the number fits."""

    async def power_fails(*_words: object) -> None:
        raise asyncio.CancelledError

    async def another(*_words: object) -> bytes:
        return b"another nonce of thirty-two byte"

    numbers: list[str] = []
    monkeypatch.setattr(RelayClient, "reveal", power_fails)
    joining = asyncio.ensure_future(
        join(state, inviter.invitation, label="frame", on_check_number=numbers.append)
    )
    await inviter.introduced()
    await inviter.send_nonce()
    with pytest.raises(asyncio.CancelledError):
        await joining
    before = (state / FILE_NAME).read_bytes()
    monkeypatch.setattr(RelayClient, "inviter_nonce", another)
    with refused(TrustReason.REPLAYED):
        await join(state, inviter.invitation, label="frame", on_check_number=numbers.append)
    assert len(numbers) == 1, "no other number is shown"
    assert (state / FILE_NAME).read_bytes() == before


@pytest.mark.threat("T2")
@pytest.mark.parametrize("outcome", [Outcome.WITHDRAWN, Outcome.EXPIRED], ids=["withdrawn", "expired"])
async def test_a_device_that_is_told_that_its_invitation_is_over_begins_no_second_time_with_it(
    state: Path, inviter: Inviter, monkeypatch: pytest.MonkeyPatch, outcome: Outcome
) -> None:
    """A go-between at the relay could end one try after the other, until the number fits."""

    async def over(*_words: object) -> None:
        raise NotApproved(outcome, "the inviter has withdrawn this invitation")

    async def another(*_words: object) -> bytes:
        return b"another nonce of thirty-two byte"

    numbers: list[str] = []
    monkeypatch.setattr(RelayClient, "admission", over)
    joining = asyncio.ensure_future(
        join(state, inviter.invitation, label="frame", on_check_number=numbers.append)
    )
    await inviter.introduced()
    await inviter.send_nonce()
    with pytest.raises(NotApproved):
        await joining
    with pytest.raises(NotApproved):
        await join(state, inviter.invitation, label="frame", on_check_number=numbers.append)
    monkeypatch.setattr(RelayClient, "inviter_nonce", another)
    with refused(TrustReason.REPLAYED):
        await join(state, inviter.invitation, label="frame", on_check_number=numbers.append)
    assert len(set(numbers)) == 1, "no other number is shown"


@pytest.mark.threat("T2")
async def test_the_inviters_nonce_is_on_disk_before_a_number_is_shown(state: Path, inviter: Inviter) -> None:
    on_disk: list[bool] = []

    def shown(_number: str) -> None:
        kept = json.loads((state / FILE_NAME).read_bytes())
        on_disk.append(Newcomer.from_bytes(from_base64url(kept["newcomer"])).inviter_nonce is not None)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(join(state, inviter.invitation, label="frame", on_check_number=shown))
        await inviter.admit(await inviter.introduced())
    assert on_disk == [True]


WORDS: dict[str, Any] = {
    "label": "frame",
    "rp_id": "example.com",
    "origin": "https://login.example.com",
}


@pytest.mark.threat("T4")
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"label": "Frame"}, "the label 'frame'"),
        ({"rp_id": "login.example.com"}, "the rp id 'example.com'"),
        ({"rp_id": None}, "the rp id 'example.com'"),
        ({"origin": "https://example.com"}, "the origin 'https://login.example.com'"),
        ({"origin": None}, "the origin 'https://login.example.com'"),
    ],
    ids=["label", "rp id", "no rp id", "origin", "no origin"],
)
async def test_an_interrupted_join_does_not_go_on_in_other_words(
    state: Path, inviter: Inviter, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(NotApproved):
        await join(state, inviter.invitation, **WORDS, timeout=0)
    before = (state / FILE_NAME).read_bytes()
    with pytest.raises(JoinDiffers, match=re.escape(said)) as caught:
        await join(state, inviter.invitation, **(WORDS | changed))
    assert caught.value.exit_status == 2
    assert (state / FILE_NAME).read_bytes() == before
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(join(state, inviter.invitation, **WORDS))
        await inviter.admit(await inviter.introduced())
    load(state).check_rp(rp_id="example.com", origin="https://login.example.com")


@pytest.mark.threat("T4")
@pytest.mark.parametrize(
    ("pin", "value"),
    [("rp_id", "example.com"), ("origin", "https://login.example.com")],
    ids=["rp id", "origin"],
)
async def test_a_join_that_was_begun_without_a_pin_gets_none_later(
    state: Path, inviter: Inviter, pin: str, value: str
) -> None:
    with pytest.raises(NotApproved):
        await join(state, inviter.invitation, label="frame", timeout=0)
    before = (state / FILE_NAME).read_bytes()
    with pytest.raises(JoinDiffers, match=f"begun with no {pin.replace('_', ' ')}"):
        await join(state, inviter.invitation, label="frame", **{pin: value})  # type: ignore[arg-type]
    assert (state / FILE_NAME).read_bytes() == before


async def test_a_join_waits_so_long_and_goes_on_later(state: Path, inviter: Inviter) -> None:
    with pytest.raises(NotApproved, match="goes on waiting") as caught:
        await join(state, inviter.invitation, label="frame", timeout=0)
    assert caught.value.reason is Outcome.EXPIRED
    enrolled = await joined(state, inviter)
    assert enrolled.label == "frame"


async def test_an_inviter_that_waits_no_longer_ends_the_join_at_once(state: Path, inviter: Inviter) -> None:
    joining = asyncio.ensure_future(join(state, inviter.invitation, label="frame"))
    await inviter.introduced()
    await inviter.phone.call("DELETE", f"/v1/invitations/{inviter.invitation.id}")
    with pytest.raises(NotApproved, match="has withdrawn this invitation") as caught:
        await joining
    assert (caught.value.reason, caught.value.exit_status) == (Outcome.WITHDRAWN, 7)
    with pytest.raises(NotEnrolled, match="no account"):
        load(state)


async def test_no_check_number_is_shown_when_nobody_waits_for_it(state: Path, inviter: Inviter) -> None:
    await inviter.phone.call("DELETE", f"/v1/invitations/{inviter.invitation.id}")
    shown: list[str] = []
    with pytest.raises(NotApproved) as caught:
        await join(state, inviter.invitation, label="frame", on_check_number=shown.append)
    assert caught.value.reason is Outcome.WITHDRAWN
    assert shown == []


async def test_a_relay_that_is_away_loses_nothing(
    state: Path, inviter: Inviter, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = replace(inviter.invitation, relay_url=f"http://127.0.0.1:{reserved_port()}")
    monkeypatch.setattr(ProvenHttp, "_pause", lambda *_args: 1000.0)
    with pytest.raises(TransportError):
        await join(state, away, label="frame")
    with pytest.raises(NotEnrolled) as unfinished:
        load(state)
    assert "same invitation" in str(unfinished.value.advice)


async def test_another_invitation_gives_an_unfinished_join_up_and_says_so(
    state: Path, relay: household.Relay, home: Household, inviter: Inviter, caplog: pytest.LogCaptureFixture
) -> None:
    joining = asyncio.ensure_future(join(state, inviter.invitation, label="frame"))
    lost = await inviter.introduced()
    joining.cancel()
    await asyncio.wait([joining])
    enrolled = await joined(state, await Inviter.invite(relay, home))
    assert enrolled.member.signing_key != lost.signing_key
    assert "given up" in caplog.text


async def test_an_unfinished_join_can_be_forgotten(state: Path, inviter: Inviter) -> None:
    joining = asyncio.ensure_future(join(state, inviter.invitation, label="frame"))
    await inviter.introduced()
    joining.cancel()
    await asyncio.wait([joining])
    leave(state)
    with pytest.raises(NotEnrolled, match="no account"):
        load(state)


async def test_two_processes_do_not_join_at_once(state: Path, inviter: Inviter) -> None:
    joining = asyncio.ensure_future(join(state, inviter.invitation, label="frame"))
    introduction = await inviter.introduced()
    with pytest.raises(TransportError, match="another process"):
        await join(state, inviter.invitation, label="frame")
    with pytest.raises(TransportError, match="another process"):
        leave(state)
    await inviter.admit(introduction)
    await joining


async def test_a_full_disk_keeps_what_was_there(
    state: Path, inviter: Inviter, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrolled = await joined(state, inviter)
    before = (state / FILE_NAME).read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SetupError, match="No space left"):
        enrolment._write(state, enrolled)
    assert (state / FILE_NAME).read_bytes() == before
    assert {path.name for path in files(state)} == {FILE_NAME, f".{FILE_NAME}.lock"}


# Invitations that are no good


@pytest.mark.threat("T2")
async def test_the_loser_of_a_stolen_invitation_race_is_told_what_to_do(
    state: Path, tmp_path: Path, inviter: Inviter
) -> None:
    thief = asyncio.ensure_future(join(tmp_path / "thief", inviter.invitation, label="frame"))
    await inviter.introduced()
    with refused(TrustReason.INVITATION_USED, saying="look at the account's members"):
        await join(state, inviter.invitation, label="frame")
    with pytest.raises(NotEnrolled, match="no account"):
        load(state)
    thief.cancel()
    await asyncio.wait([thief])


async def test_an_invitation_that_is_over_is_refused_by_our_clock_and_by_the_relays(
    state: Path, relay: household.Relay, inviter: Inviter
) -> None:
    with refused(TrustReason.INVITATION_EXPIRED, saying="120 s ago"):
        await join(state, inviter.invitation, label="f", clock=lambda: inviter.invitation.expires_at + 120)
    relay.clock.ahead += 601
    with refused(TrustReason.INVITATION_EXPIRED, saying="relay's clock"):
        await join(state, inviter.invitation, label="f", clock=_skewed(relay, inviter))
    unknown = replace(inviter.invitation, secret=bytes(16))
    with refused(TrustReason.INVITATION_EXPIRED, saying="no such invitation"):
        await join(state, unknown, label="f", clock=_skewed(relay, inviter))
    with pytest.raises(NotEnrolled, match="no account"):
        load(state)


class _skewed:  # noqa: N801  a clock
    """A clock that is right for the relay's proofs, and one second before the end for the invitation."""

    def __init__(self, relay: household.Relay, inviter: Inviter) -> None:
        self._relay, self._first, self._inviter = relay, True, inviter

    def __call__(self) -> float:
        if self._first:
            self._first = False
            return self._inviter.invitation.expires_at - 1.0
        return self._relay.clock()


async def test_an_invitation_for_a_companion_and_a_label_that_makes_no_sense_are_refused(
    state: Path, relay: household.Relay, home: Household, inviter: Inviter
) -> None:
    with refused(TrustReason.KIND_MISMATCH):
        await join(state, (await Inviter.invite(relay, home, Role.COMPANION)).invitation, label="frame")
    for label in ("", "two\nlines", "a" * 65, "\u200djoins nothing"):
        with pytest.raises(UsageError, match="a name has"):
            await join(state, inviter.invitation, label=label)
    with pytest.raises(UsageError):
        await join(state, inviter.invitation, label="frame", rp_id="https://example.com")
    assert files(state) == []


@pytest.mark.threat("T2")
async def test_a_relay_cannot_answer_in_the_inviters_place(
    state: Path, home: Household, inviter: Inviter
) -> None:
    """It has the ring, its own key and everything that went through it, but not the invitation."""
    ring = forge(home.ring, device("relay"), device("frame"), signer=inviter.invitation.inviter)
    nonce = ok(state="answering", nonce=base64url(bytes(32)))
    admitted = ok(state="answered", ring=base64url(ring), mac=base64url(bytes(32)))
    async with serving(answer(b'{"id": "x"}', status=201), nonce, ok(), admitted) as server:
        invitation = replace(inviter.invitation, relay_url=server.url)
        with refused(TrustReason.BAD_MAC):
            await join(state, invitation, label="frame")
    with pytest.raises(NotEnrolled):
        load(state)


# Rings that come later


async def test_newer_rings_are_taken_over_and_kept(state: Path, inviter: Inviter) -> None:
    enrolled = await joined(state, inviter)
    home = inviter.home
    people = [caller.person for caller in home.companions]
    async with speaking(enrolled) as relay:
        assert (await refresh(state, relay)).chain == enrolled.chain
        me = enrolled.member
        ring = home.ring.next(people[0].key, members=[*home.ring.companions, me], now=inviter.phone.clock())
        assert (await home.companions[0].post("/v1/ring", {"ring": base64url(ring.document)})).status == 201
        assert (await refresh(state, relay)).chain.head == ring
    assert load(state).chain == RingChain.start(home.ring).extend([ring.document], now=ring.issued)


@pytest.mark.threat("T2")
async def test_a_forked_ring_changes_nothing(state: Path, inviter: Inviter) -> None:
    enrolled = await joined(state, inviter)
    people = [caller.person for caller in inviter.home.companions]
    stranger = device("relay")
    fork = forge(inviter.home.ring, stranger, *people, stranger)
    lie = ok(version=enrolled.chain.head.version + 1, hash=base64url(bytes(32)), rings=[base64url(fork)])
    async with serving(lie) as server, open_session(None) as session:
        with refused(TrustReason.FORKED_RING):
            await refresh(state, RelayClient(ProvenHttp(session, server.url, enrolled.key)))
    assert load(state).chain == enrolled.chain


async def test_a_device_that_was_removed_is_told_so(state: Path, inviter: Inviter) -> None:
    enrolled = await joined(state, inviter)
    people = [caller.person for caller in inviter.home.companions]
    without = grow(enrolled.chain.head, people[0], *people)
    removed = replace(enrolled, chain=enrolled.chain.extend([without.document], now=without.issued))
    with refused(TrustReason.NOT_A_MEMBER, saying="removed"):
        _ = removed.member
    inviter.home.ring = enrolled.chain.head
    proof = await inviter.home.append(*people)
    async with speaking(enrolled) as relay:
        refreshed = await refresh(state, relay)
    assert refreshed.chain.head == proof
    with refused(TrustReason.NOT_A_MEMBER, saying='by "phone 0" in ring 4') as caught:
        _ = load(state).member
    assert caught.value.exit_status is ExitStatus.NOT_ENROLLED


@pytest.mark.threat("T16")
async def test_a_device_takes_itself_out_before_it_forgets(state: Path, inviter: Inviter) -> None:
    enrolled = await joined(state, inviter)
    phone = inviter.home.companions[0]
    assert await take_out(state)
    ring = Ring.parse_kept(from_base64url((await phone.get("/v1/ring")).body["rings"][-1]))
    assert (ring.member(enrolled.name), ring.signer) == (None, enrolled.name)
    assert not await take_out(state), "it is out"
    leave(state)
    assert not await take_out(state), "it has forgotten"


@pytest.mark.threat("T16")
async def test_a_device_of_a_closed_account_says_so_and_keeps_all(
    state: Path, inviter: Inviter, relay: household.Relay
) -> None:
    enrolled = await joined(state, inviter)
    await close_account(relay.app, "alice")
    async with speaking(enrolled) as client:
        with pytest.raises(NotEnrolled) as caught:
            await refresh(state, client)
    assert caught.value.reason is EnrolmentReason.ACCOUNT_CLOSED
    assert caught.value.exit_status is ExitStatus.NOT_ENROLLED
    assert caught.value.advice
    assert load(state).chain == enrolled.chain


async def test_a_device_that_is_put_back_works_again(state: Path, inviter: Inviter) -> None:
    enrolled = await joined(state, inviter)
    home = inviter.home
    people = [caller.person for caller in home.companions]
    home.ring = enrolled.chain.head
    await home.append(*people)
    async with speaking(enrolled) as relay:
        assert (await refresh(state, relay)).removed
        head = home.ring.next(
            people[0].key, members=[*home.ring.members, enrolled.member], now=inviter.phone.clock()
        )
        reply = await home.companions[0].post("/v1/ring", {"ring": base64url(head.document)})
        assert reply.status == 201
        assert not (await refresh(state, relay)).removed
    assert load(state).member.introduced_by == people[0].name


async def test_a_device_that_left_meanwhile_is_not_brought_back(state: Path, inviter: Inviter) -> None:
    enrolled = await joined(state, inviter)
    people = [caller.person for caller in inviter.home.companions]
    head = enrolled.chain.head
    ring = head.next(people[0].key, members=[*head.companions[:1], enrolled.member], now=head.issued)

    class Leaving(RelayClient):
        async def catch_up(self, chain: RingChain, **_options: Any) -> tuple[RingChain, Mapping[str, int]]:
            leave(state)
            return chain.extend([ring.document], now=ring.issued), {}

    async with open_session(None) as session:
        with pytest.raises(NotEnrolled):
            await refresh(state, Leaving(ProvenHttp(session, enrolled.relay_url, enrolled.key)))
    with pytest.raises(NotEnrolled):
        load(state)


@pytest.mark.threat("T2")
async def test_the_newest_word_of_each_companion_is_kept_whatever_the_relay_takes_back(
    state: Path, inviter: Inviter
) -> None:
    enrolled = await joined(state, inviter)
    phone = inviter.home.companions[0]

    async def say(at: float) -> Mapping[str, int]:
        class Saying(RelayClient):
            async def catch_up(
                self, chain: RingChain, **_options: Any
            ) -> tuple[RingChain, Mapping[str, int]]:
                return chain, {phone.name: int(at)} if at else {}

        async with open_session(None) as session:
            await refresh(state, Saying(ProvenHttp(session, enrolled.relay_url, enrolled.key)))
        return load(state).words

    assert load(state).words == {}
    assert await say(NOW) == {phone.name: NOW}
    assert await say(NOW + 5) == {phone.name: NOW + 5}
    assert await say(NOW) == {phone.name: NOW + 5}
    assert await say(0) == {phone.name: NOW + 5}


# What is on disk


@pytest.mark.threat("T11")
async def test_a_file_that_others_can_read_is_refused(state: Path, inviter: Inviter, tmp_path: Path) -> None:
    await joined(state, inviter)
    (state / FILE_NAME).chmod(0o640)
    with pytest.raises(SetupError, match="open to others"):
        load(state)
    (state / FILE_NAME).chmod(0o600)
    load(state)
    elsewhere = tmp_path / "elsewhere"
    (state / FILE_NAME).rename(elsewhere)
    (state / FILE_NAME).symlink_to(elsewhere)
    with pytest.raises(SetupError):
        load(state)
    (state / FILE_NAME).unlink()
    (state / FILE_NAME).mkdir()
    with pytest.raises(SetupError, match="not a plain file"):
        load(state)


def test_a_directory_that_others_can_enter_is_refused(state: Path) -> None:
    state.mkdir(mode=0o755)
    with pytest.raises(SetupError, match="mode 0700"):
        private_file.private_directory(state)
    state.rmdir()
    state.write_text("")
    with pytest.raises(SetupError, match="not a directory"):
        private_file.private_directory(state)
    with pytest.raises(SetupError):
        private_file.private_directory(state / "below a file")


def kept(state: Path, content: bytes) -> Path:
    private_file.private_directory(state)
    private_file.write_private(state / FILE_NAME, content)
    return state


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 3},
        {"format": True},
        {"key": None},
        {"key": base64url(bytes(32))},
        {"key": base64url(bytes(31))},
        {"relay_url": "http://relay.example"},
        {"rings": []},
        {"rings": [1]},
        {"rings": ["AAAA"]},
        {"rings": None},
        {"words": None},
        {"words": {"phone": "yesterday"}},
        {"words": {"phone": -1}},
        {"state": 7},
        {"state": "joining"},
        {"rp_id": 7},
    ],
    ids=lambda changes: next(iter(changes.items())),
)
async def test_a_damaged_file_is_refused(state: Path, inviter: Inviter, changes: dict[str, object]) -> None:
    await joined(state, inviter)
    values = json.loads((state / FILE_NAME).read_bytes())
    kept(state, json.dumps(values | changes).encode())
    with pytest.raises(SetupError):
        load(state)


async def test_an_editors_byte_order_mark_is_read_over(state: Path, inviter: Inviter) -> None:
    enrolled = await joined(state, inviter)
    kept(state, b"\xef\xbb\xbf" + (state / FILE_NAME).read_bytes())
    assert load(state).name == enrolled.name


@given(
    st.binary(max_size=200)
    | st.text(max_size=100).map(lambda text: json.dumps({"format": 2, "key": text}).encode())
)
@pytest.mark.threat("T12")
def test_any_bytes_on_disk_are_refused_politely(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        state = kept(Path(folder) / "state", content)
        with pytest.raises(SetupError):
            load(state)


SPOILT: dict[str, tuple[Callable[[Path], object], SetupReason, str]] = {
    "damaged": (
        lambda file: file.write_bytes(b"{"),
        SetupReason.STATE_DAMAGED,
        "{file} is damaged: `headless-passkey leave`, or `rm {file}`, then `headless-passkey join` with a new invitation",
    ),
    "of another version": (
        lambda file: file.write_bytes(b'{"format": 3}'),
        SetupReason.STATE_INCOMPATIBLE,
        "{file} was written by another version: use the version of this program that wrote it, or a newer one",
    ),
    "of an earlier version": (
        lambda file: file.write_bytes(b'{"format": 1}'),
        SetupReason.STATE_INCOMPATIBLE,
        "{file} was written by another version: `rm {file}`, then `headless-passkey join` with a new invitation",
    ),
    "open to others": (
        lambda file: file.chmod(0o644),
        SetupReason.STATE_EXPOSED,
        (
            "{file} is open to others (mode 0644); it must be yours alone, mode 0600: `chmod 600 {file}`;"
            " if somebody may have read it, `headless-passkey leave` and join again"
        ),
    ),
    "not to be read": (
        lambda file: file.rename(file.with_name("key")).with_name(file.name).symlink_to("key"),
        SetupReason.STATE_UNREADABLE,
        "cannot read {file}: Too many levels of symbolic links: see to it that this user can read it: `ls -ld {file}`",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
async def test_an_error_about_what_is_kept_ends_with_its_mend(
    state: Path, inviter: Inviter, how: str
) -> None:
    await joined(state, inviter)
    spoil, reason, message = SPOILT[how]
    spoil(state / FILE_NAME)
    with pytest.raises(SetupError) as refused:
        load(state)
    assert refused.value.reason is reason
    assert refused.value.explain() == message.format(file=state / FILE_NAME)


@pytest.mark.parametrize("mode", [0o755, 0o710])
async def test_a_directory_that_cannot_be_used_is_told_with_its_mend(
    state: Path, inviter: Inviter, mode: int
) -> None:
    private_file.private_directory(state / ".")
    (state / ".").chmod(mode)
    with pytest.raises(SetupError) as refused:
        await join(state, inviter.invitation, label="frame")
    assert refused.value.reason is SetupReason.STATE_EXPOSED
    assert f"`chmod 700 {state}`" in str(refused.value.advice)
    (state / "passwd").touch()  # which is not this device's: nobody is told to close /etc
    with pytest.raises(SetupError) as refused:
        await join(state, inviter.invitation, label="frame")
    assert refused.value.advice == "name a directory for this device alone with `--state`"
    with pytest.raises(SetupError) as failed:
        await join(state / "passwd" / "below", inviter.invitation, label="frame")
    assert failed.value.reason is SetupReason.STATE_UNWRITABLE
    assert f"`ls -ld {state / 'passwd'}`" in str(failed.value.advice)
    with pytest.raises(SetupError) as refused:
        await join(state / "passwd", inviter.invitation, label="frame")
    assert refused.value.explain() == (
        f"{state / 'passwd'} is not a directory: name a directory for this device alone with `--state`"
    )


def test_an_endless_file_is_not_read(state: Path) -> None:
    private_file.private_directory(state)
    with (state / FILE_NAME).open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(1 << 40)
    with pytest.raises(SetupError, match="longer"):
        load(state)


@pytest.mark.threat("T11")
async def test_no_secret_shows_in_logs_or_reprs(
    state: Path, inviter: Inviter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    enrolled = await joined(state, inviter)
    text = caplog.text + repr(enrolled) + str(enrolled)
    assert "joined the account" in text
    invitation = inviter.invitation
    for secret in (
        enrolled.key.to_bytes(),
        invitation.secret,
        invitation.ticket,
        invitation.k_new,
        invitation.k_inv,
    ):
        for form in (secret.hex(), base64url(secret), repr(secret), str(int.from_bytes(secret, "big"))):
            assert form not in text
    assert invitation.encode() not in text
