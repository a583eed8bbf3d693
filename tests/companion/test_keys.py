"""What a companion keeps on disk: it comes back, changes under a lock, and nothing else is read."""

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from companion_push.companion.keys import HPKE_KEY_LIFE, CompanionState, Identity, Joining, KeyPair
from headless_passkey.errors import (
    HeadlessPasskeyError,
    NotEnrolled,
    SetupError,
    SetupReason,
    TransportError,
    TrustError,
    TrustReason,
)
from headless_passkey.trust.admission import InvitationRecord, Newcomer
from headless_passkey.trust.chain import RingChain
from headless_passkey.trust.hpke import SoftwareHpkeKey
from headless_passkey.trust.invitation import LIFETIME, Invitation
from headless_passkey.trust.ring import Role
from tests.trust.people import ACCOUNT, NOW, companion, device, forge, found, grow

PHONE, FRAME = companion("phone"), device("frame")
RING = found(PHONE)
NEXT = grow(RING, PHONE, PHONE, FRAME)
NEWCOMER = Newcomer.make(
    Invitation.make(
        relay_url="https://relay.example", ring=RING, kind=Role.COMPANION, inviter=PHONE.name, now=NOW
    ),
    key=PHONE.key,
    hpke_key=PHONE.hpke_key,
    label="new phone",
)
KEYS = KeyPair(signing=PHONE.key, hpke=PHONE.hpke_private)
IDENTITY = Identity(relay_url="https://relay.example", account=ACCOUNT, keys=KEYS)


@pytest.fixture
def empty(tmp_path: Path) -> CompanionState:
    state = CompanionState(tmp_path / "state")
    state.create()
    return state


@pytest.fixture
def state(empty: CompanionState) -> CompanionState:
    empty.finish_joining(IDENTITY, RingChain.start(RING))
    return empty


def record(expires_in: int = LIFETIME) -> InvitationRecord:
    invitation = Invitation.make(
        relay_url="https://relay.example",
        ring=RING,
        kind=Role.DEVICE,
        inviter=PHONE.name,
        now=NOW + expires_in - LIFETIME,
    )
    return InvitationRecord(invitation=invitation, rp_ids=("example.com",))


def test_who_has_not_joined_is_told_so(empty: CompanionState) -> None:
    with pytest.raises(NotEnrolled):
        empty.identity()
    with pytest.raises(NotEnrolled):
        empty.chain()
    assert not empty.is_enrolled()


def test_keys_and_rings_come_back(state: CompanionState, tmp_path: Path) -> None:
    again = CompanionState(tmp_path / "state")
    identity = again.identity()
    assert (identity.relay_url, identity.account) == (IDENTITY.relay_url, ACCOUNT)
    assert identity.keys.name == PHONE.name
    assert identity.keys.hpke.public == PHONE.hpke_private.public
    assert again.chain().head.document == RING.document
    assert again.is_enrolled()


async def test_everything_is_its_owners_alone(state: CompanionState, tmp_path: Path) -> None:
    await state.record_opened(FRAME.name, bytes(16), until=NOW, now=0)
    await state.remember_invitation(record(), NOW)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    for file in (tmp_path / "state").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


@pytest.mark.threat("T11")
def test_private_keys_stay_out_of_reprs(state: CompanionState) -> None:
    identity = state.identity()
    joining = Joining(line="hpk-account:secret", keys=KEYS, said=RING)
    shown = repr(identity) + repr(joining)
    assert "hpk-account" not in shown
    assert PHONE.key.to_bytes().hex() not in shown


@pytest.mark.parametrize("how", ["founding", "introduced"])
def test_an_attempt_to_join_is_kept_until_it_is_over(empty: CompanionState, how: str) -> None:
    assert empty.joining() is None
    said = RING if how == "founding" else NEWCOMER
    empty.begin_joining(Joining(line="hpk-account:x", keys=KEYS, said=said))
    kept = empty.joining()
    assert kept is not None
    assert (kept.line, kept.said, kept.keys.name) == ("hpk-account:x", said, PHONE.name)
    assert kept.label == ("phone" if how == "founding" else "new phone")
    empty.finish_joining(IDENTITY, RingChain.start(RING))
    assert empty.joining() is None


@pytest.mark.threat("T2")
def test_an_invitation_by_which_a_nonce_came_is_not_begun_anew(empty: CompanionState) -> None:
    heard = NEWCOMER.hears(bytes(32))
    for said, stays in ((NEWCOMER, False), (RING, False), (heard, True)):
        empty.begin_joining(Joining(line="a line", keys=KEYS, said=said))
        empty.give_up_joining()
        assert (empty.joining() is not None) == stays
    empty.forget_joining()
    assert empty.joining() is None


def test_one_state_joins_once(state: CompanionState) -> None:
    with pytest.raises(SetupError):
        state.finish_joining(IDENTITY, RingChain.start(RING))


async def test_a_ring_that_extends_ours_is_kept(state: CompanionState, tmp_path: Path) -> None:
    await state.extend([NEXT.document], now=NOW)
    assert CompanionState(tmp_path / "state").chain().head.version == 2
    await state.extend([NEXT.document], now=NOW)  # known already
    await state.adopt(RingChain.start(RING).extend([NEXT.document], now=NOW), now=NOW)
    assert state.chain().head.version == 2


@pytest.mark.threat("T2")
async def test_a_ring_that_does_not_extend_ours_changes_nothing(state: CompanionState) -> None:
    with pytest.raises(TrustError) as caught:
        await state.extend([forge(RING, FRAME, PHONE, FRAME)], now=NOW)
    assert caught.value.reason in (TrustReason.FORKED_RING, TrustReason.BAD_SIGNATURE)
    assert state.chain().head.document == RING.document


@pytest.mark.threat("T5")
async def test_a_request_is_recorded_once_and_forgotten_when_it_is_too_old_to_be_replayed(
    state: CompanionState,
) -> None:
    assert await state.record_opened(FRAME.name, bytes(16), until=NOW + 10, now=NOW)
    assert not await state.record_opened(FRAME.name, bytes(16), until=NOW + 10, now=NOW)
    assert await state.record_opened("another device", bytes(16), until=NOW + 10, now=NOW)
    assert (FRAME.name, bytes(16)) in state.opened_before()
    assert await state.record_opened(FRAME.name, b"\1" * 16, until=NOW + 100, now=NOW + 11)
    assert state.opened_before() == {(FRAME.name, b"\1" * 16)}


async def test_the_record_of_opened_requests_is_bounded(
    state: CompanionState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("companion_push.companion.keys._MAX_OPENED", 2)
    for number in range(2):
        assert await state.record_opened(FRAME.name, bytes([number]), until=NOW, now=NOW)
    with pytest.raises(TransportError, match="wait"):
        await state.record_opened(FRAME.name, b"\2", until=NOW, now=NOW)


async def test_invitations_are_kept_while_they_are_open_and_longer_when_a_newcomer_came(
    state: CompanionState,
) -> None:
    first, second = record(), record(expires_in=10)
    for each in (first, second):
        await state.remember_invitation(each, NOW)
    assert state.invitations(NOW) == (first, second)
    assert state.invitations(NOW + 20) == (first,)
    await state.forget_invitation(first, NOW + 20)
    assert state.invitations(NOW) == ()
    taken = second.taken_by(NEWCOMER.introduction)
    await state.remember_invitation(taken, NOW)
    assert state.invitations(NOW + 609) == (taken,)
    assert state.invitations(NOW + 610) == ()


async def test_what_nobody_agreed_to_is_left_behind_when_nobody_invites_any_more(
    state: CompanionState,
) -> None:
    waiting, agreed = record(), record().taken_by(NEWCOMER.introduction)
    agreed = agreed.candidate(NEWCOMER.introduction, NEWCOMER.nonce).agree_without_number()
    for each in (waiting, agreed):
        await state.remember_invitation(each, NOW)
    with state.inviting(), state.inviting():
        assert state.left_invitations(NOW) == ()
    assert state.left_invitations(NOW) == (waiting,)


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "name", ["companion.json", "ring.json", "opened.json", "invitations.json", "joining.json"]
)
@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b"[" * 50_000, b'{"version": "2"}'])
def test_a_damaged_file_is_refused(state: CompanionState, tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / "state" / name
    file.touch(mode=0o600)
    file.write_bytes(content)
    if name in ("opened.json", "invitations.json") and content == b"{}":
        return  # which says that there is nothing
    with pytest.raises(SetupError) as caught:
        _ = [state.identity(), state.chain(), state.opened_before(), state.invitations(NOW), state.joining()]
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "name", ["companion.json", "ring.json", "opened.json", "invitations.json", "joining.json"]
)
@pytest.mark.parametrize("version", [1, 3])
def test_a_file_of_another_version_is_refused_with_what_to_do(
    state: CompanionState, tmp_path: Path, name: str, version: int
) -> None:
    file = tmp_path / "state" / name
    file.touch(mode=0o600)
    file.write_text(json.dumps({"version": version, "what": "nobody knows"}))
    with pytest.raises(SetupError) as caught:
        _ = [state.identity(), state.chain(), state.opened_before(), state.invitations(NOW), state.joining()]
    assert caught.value.reason is SetupReason.STATE_INCOMPATIBLE
    assert f"{file} was written by another version" in str(caught.value)
    assert f"`rm {file.parent}" in str(caught.value.advice)


@pytest.mark.parametrize(
    ("name", "removed"),
    [
        ("companion.json", ["companion.json", "ring.json"]),
        ("ring.json", ["companion.json", "ring.json"]),
        ("joining.json", ["joining.json"]),
        ("opened.json", ["opened.json"]),
        ("invitations.json", ["invitations.json"]),
    ],
)
def test_a_damaged_file_is_told_with_what_to_do(
    state: CompanionState, tmp_path: Path, name: str, removed: list[str]
) -> None:
    folder = tmp_path / "state"
    (folder / name).touch(mode=0o600)
    (folder / name).write_bytes(b"{")
    with pytest.raises(SetupError) as caught:
        _ = [state.identity(), state.chain(), state.opened_before(), state.invitations(NOW), state.joining()]
    assert caught.value.reason is SetupReason.STATE_DAMAGED
    assert f"`rm {' '.join(str(folder / each) for each in removed)}`" in str(caught.value.advice)
    for each in removed:
        (folder / each).unlink()
    assert state.is_enrolled() == ("companion.json" not in removed)
    assert (state.opened_before(), state.invitations(NOW), state.joining()) == (frozenset(), (), None)


async def test_an_editors_byte_order_mark_is_read_over(state: CompanionState, tmp_path: Path) -> None:
    invited = record()
    await state.remember_invitation(invited, NOW)
    assert await state.record_opened("device", b"request", until=NOW + 300, now=NOW)
    files = [file for file in (tmp_path / "state").iterdir() if file.suffix == ".json"]
    assert len(files) == 4
    for file in files:
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert state.identity().keys.name == PHONE.name
    assert state.chain().head.document == RING.document
    assert state.invitations(NOW) == (invited,)
    assert state.opened_before() == {("device", b"request")}


@pytest.mark.threat("T11")
def test_what_is_wrong_with_a_file_is_said_without_its_content(state: CompanionState, tmp_path: Path) -> None:
    file = tmp_path / "state" / "companion.json"
    content = json.loads(file.read_bytes())
    file.write_text(json.dumps(content | {"signing_key": content["signing_key"][:-4] + "!!!!"}))
    with pytest.raises(SetupError) as caught:
        state.identity()
    assert content["signing_key"][:20] not in str(caught.value)


async def test_only_one_process_runs_on_a_state(state: CompanionState, tmp_path: Path) -> None:
    with state.sole_runner():
        with pytest.raises(TransportError, match="in use"), CompanionState(tmp_path / "state").sole_runner():
            pass
        await state.record_opened(
            FRAME.name, bytes(16), until=NOW, now=NOW
        )  # while others may still change it
    with state.sole_runner():
        pass


async def test_what_is_known_already_is_adopted_without_a_lock_or_a_write(
    state: CompanionState, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(fcntl, "flock", refuses)
    assert (await state.adopt(RingChain.start(RING), now=NOW)).head.version == 1
    with pytest.raises(HeadlessPasskeyError, match="Read-only"):
        await state.adopt(RingChain.start(RING).extend([NEXT.document], now=NOW), now=NOW)


RECORD = """
import asyncio, sys
from pathlib import Path
from companion_push.companion.keys import CompanionState
state = CompanionState(Path(sys.argv[1]))
sys.stdin.read(1)

async def record():
    return [await state.record_opened("device", bytes([n]) * 16, until=2e9, now=1e9) for n in range(40)]

print(sum(asyncio.run(record())))
"""


@pytest.mark.threat("T5")
def test_of_two_processes_that_record_a_request_exactly_one_may_open_it(
    state: CompanionState, tmp_path: Path
) -> None:
    root = Path(__file__).parents[2]
    words = [sys.executable, "-c", RECORD, str(tmp_path / "state")]
    processes = [
        subprocess.Popen(words, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    counts = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    for process in processes:
        stdout, _ = process.communicate(timeout=60)
        counts.append(int(stdout))
    assert sum(counts) == 40


async def test_a_crash_while_writing_leaves_the_old_rings(
    state: CompanionState, monkeypatch: pytest.MonkeyPatch
) -> None:
    def power_fails(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", power_fails)
    with pytest.raises(SetupError):
        await state.extend([NEXT.document], now=NOW)
    monkeypatch.undo()
    assert state.chain().head.version == 1


async def test_a_chain_that_was_taken_over_after_a_gap_takes_the_place_of_the_one_before(
    state: CompanionState,
) -> None:
    later = grow(grow(NEXT, PHONE, PHONE, FRAME), PHONE, PHONE, FRAME)
    assert (await state.adopt(RingChain.start(later), now=NOW)).rings == (later,)
    assert state.chain().rings == (later,)
    assert (await state.adopt(RingChain.start(RING), now=NOW)).head == later, "nothing goes back"


# The HPKE keys


async def renewed(state: CompanionState, now: float) -> SoftwareHpkeKey:
    """The next key, and the ring that names it."""
    key = await state.next_hpke_key()
    ring = state.chain().head.with_hpke_key(PHONE.key, key.public, now=now)
    await state.extend([ring.document], now=now)
    return key


@pytest.mark.threat("T16")
async def test_the_previous_key_is_kept_for_600_seconds_and_then_erased(
    state: CompanionState, tmp_path: Path
) -> None:
    file = tmp_path / "state" / "companion.json"
    now = NOW + HPKE_KEY_LIFE
    old = json.loads(file.read_bytes())["hpke_key"]
    assert not state.wants_new_hpke_key(now - 1)
    assert state.wants_new_hpke_key(now)
    new = await renewed(state, now)
    assert [key.public for key in state.hpke_keys(now)] == [PHONE.hpke_key, new.public]
    assert await state.settle_hpke_keys(now) == now + 600
    assert not state.wants_new_hpke_key(now + HPKE_KEY_LIFE - 1)
    assert state.wants_new_hpke_key(now + HPKE_KEY_LIFE)
    assert state.identity().keys.hpke.public == new.public
    assert [key.public for key in state.hpke_keys(now + 599)] == [new.public, PHONE.hpke_key]
    assert [key.public for key in state.hpke_keys(now + 600)] == [new.public]
    assert await state.settle_hpke_keys(now + 599) == now + 600
    assert old in file.read_text()
    assert await state.settle_hpke_keys(now + 600) is None
    assert old not in file.read_text()


@pytest.mark.threat("T16")
async def test_a_clock_that_is_set_back_keeps_no_previous_key_for_longer(state: CompanionState) -> None:
    await renewed(state, NOW + HPKE_KEY_LIFE)
    await state.settle_hpke_keys(NOW + HPKE_KEY_LIFE)
    assert await state.settle_hpke_keys(NOW) == NOW + 600
    assert await state.settle_hpke_keys(NOW + 600) is None


async def test_the_next_key_stays_the_same_until_a_ring_names_it(
    state: CompanionState, tmp_path: Path
) -> None:
    first = await state.next_hpke_key()
    again = await CompanionState(tmp_path / "state").next_hpke_key()
    assert again.public == first.public
    await state.extend([NEXT.document], now=NOW)  # which does not name it
    assert await state.settle_hpke_keys(NOW) is None
    assert (await state.next_hpke_key()).public == first.public
    assert state.identity().keys.hpke.public == PHONE.hpke_key


async def test_an_entry_with_a_key_that_is_not_kept_here_wants_a_new_one(state: CompanionState) -> None:
    elsewhere = SoftwareHpkeKey.generate().public
    await state.extend([RING.with_hpke_key(PHONE.key, elsewhere, now=NOW).document], now=NOW)
    assert state.wants_new_hpke_key(NOW)
    await renewed(state, NOW)
    assert not state.wants_new_hpke_key(NOW)
