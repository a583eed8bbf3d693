"""Letting others in, against the real relay, with newcomers and relays that do not keep to the rules."""

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from companion_push.companion.keys import CompanionState
from companion_push.companion.membership import Consent, Membership
from companion_push.companion.relay_client import CompanionRelay
from headless_passkey.errors import (
    HeadlessPasskeyError,
    JoinDiffers,
    NotApproved,
    Outcome,
    ProtocolReason,
    RemoteProtocolError,
    TransportError,
    TransportReason,
    TrustError,
    TrustReason,
)
from headless_passkey.trust.account_code import AccountCode
from headless_passkey.trust.admission import Candidate, InvitationRecord, Newcomer
from headless_passkey.trust.hpke import SoftwareHpkeKey
from headless_passkey.trust.introduction import Introduction
from headless_passkey.trust.invitation import Invitation
from headless_passkey.trust.ring import HpkeKey, Member, Ring, Role
from headless_passkey.trust.signing import SoftwareSigningKey
from program_parts.base64url import base64url
from tests.relay.household import Relay
from tests.trust.people import ACCOUNT, device


@dataclass
class Inviter:
    """A first companion, and the invitation that it makes."""

    membership: Membership
    invitation: "asyncio.Future[Invitation]"
    numbers: list[str] = field(default_factory=list)  # that newcomers have shown

    def invite(
        self,
        kind: Role = Role.DEVICE,
        *,
        seconds: float = 20,
        consent: Consent | None = None,
    ) -> "asyncio.Task[Member]":
        async def agree(candidate: Candidate) -> InvitationRecord:
            return candidate.agree(self.numbers[-1])

        self.invitation = asyncio.get_running_loop().create_future()
        return asyncio.create_task(
            self.membership.invite(
                kind,
                rp_ids=None,
                seconds=seconds,
                show=lambda line: self.invitation.set_result(Invitation.parse(line)),
                consent=consent or agree,
            )
        )

    @property
    def version(self) -> int:
        return self.membership.state.chain().head.version


@pytest.fixture
async def first(relay: Relay, tmp_path: Path) -> Inviter:
    account, code = await relay.account_code("family")
    membership = Membership(state=CompanionState(tmp_path / "first"), tls=None, clock=relay.clock)
    line = AccountCode(relay_url=relay.url, account=account, account_name="family", code=code).encode()
    await membership.join(line, label="My phone")
    return Inviter(membership, asyncio.get_running_loop().create_future())


async def nobody_is_asked(candidate: Candidate) -> InvitationRecord | None:
    raise AssertionError(candidate.introduction.label)


def made(invitation: Invitation, key: SoftwareSigningKey, hpke_key: HpkeKey | None = None) -> Introduction:
    return Newcomer.make(invitation, key=key, hpke_key=hpke_key, label="Frame").introduction


async def introduce(
    relay: Relay, invitation: Invitation, introduction: Introduction, key: SoftwareSigningKey
) -> Any:
    caller = relay.caller(device("newcomer"))
    caller.person.key = key
    body = {
        "account": invitation.account,
        "ticket": base64url(invitation.ticket),
        "body": base64url(introduction.body),
        "signature": base64url(introduction.signature),
        "mac": base64url(introduction.mac),
    }
    return await caller.post("/v1/introductions", body)


async def test_a_second_companion_joins_and_both_know_the_same_ring(
    relay: Relay, first: Inviter, tmp_path: Path
) -> None:
    inviting = first.invite(Role.COMPANION)
    second = Membership(state=CompanionState(tmp_path / "second"), tls=None, clock=relay.clock)
    await second.join((await first.invitation).encode(), label="Tablet", on_check_number=first.numbers.append)
    assert (await inviting).label == "Tablet"
    assert second.state.chain().head.hash == first.membership.state.chain().head.hash
    assert len(first.numbers[0]) == 7
    assert first.membership.state.invitations(relay.clock()) == ()
    ring, why = await second.members()
    assert [member.label for member in ring.members] == ["My phone", "Tablet"]
    assert why is None


async def test_a_ring_that_moves_meanwhile_is_rebased_on(
    relay: Relay, first: Inviter, tmp_path: Path
) -> None:
    """Two companions admit at the same time: both newcomers end up in the ring."""
    inviting = first.invite(Role.COMPANION)
    second = Membership(state=CompanionState(tmp_path / "second"), tls=None, clock=relay.clock)
    await second.join((await first.invitation).encode(), label="Tablet", on_check_number=first.numbers.append)
    await inviting
    other = Inviter(second, first.invitation)
    both = [first.invite(Role.COMPANION), other.invite(Role.COMPANION)]
    newcomers = [
        Membership(state=CompanionState(tmp_path / str(n)), tls=None, clock=relay.clock) for n in range(2)
    ]
    lines = [(await each.invitation).encode() for each in (first, other)]
    await asyncio.gather(
        *(
            each.join(line, label=f"x {number}", on_check_number=inviter.numbers.append)
            for number, (each, line, inviter) in enumerate(zip(newcomers, lines, (first, other), strict=True))
        ),
        *both,
    )
    ring, _ = await first.membership.members()
    assert len(ring.members) == 4


@pytest.mark.parametrize("how", ["refused", "wrong number"])
@pytest.mark.threat("T2")
async def test_a_newcomer_that_is_refused_or_whose_number_is_wrong_is_withdrawn_at_once(
    relay: Relay, first: Inviter, tmp_path: Path, how: str
) -> None:
    async def refuse(candidate: Candidate) -> InvitationRecord | None:
        return candidate.agree("not the number") if how == "wrong number" else None

    inviting = first.invite(Role.COMPANION, consent=refuse)
    second, _ = await joining(relay, first, tmp_path)
    await withdrawn(second)
    with pytest.raises(HeadlessPasskeyError) as caught:
        await inviting
    assert caught.value.reason == ("wrong-number" if how == "wrong number" else "declined")
    assert first.version == 1
    assert heard(tmp_path / "second"), "the same invitation is not begun anew"
    assert first.membership.state.invitations(relay.clock()) == ()


@pytest.mark.threat("T4")
async def test_a_newcomer_with_the_label_of_a_member_gets_another_one_or_does_not_get_in(
    relay: Relay, first: Inviter, tmp_path: Path
) -> None:
    inviting = first.invite(Role.COMPANION)
    second = Membership(state=CompanionState(tmp_path / "second"), tls=None, clock=relay.clock)
    with pytest.raises(NotApproved):
        await second.join(
            (await first.invitation).encode(), label="my PHONE", on_check_number=first.numbers.append
        )
    with pytest.raises(TrustError) as caught:
        await inviting
    assert caught.value.reason is TrustReason.LABEL_TAKEN
    assert first.version == 1

    async def rename(candidate: Candidate) -> InvitationRecord:
        return candidate.agree(first.numbers[-1], label="Second phone")

    inviting = first.invite(Role.COMPANION, consent=rename)
    await second.join(
        (await first.invitation).encode(), label="my PHONE", on_check_number=first.numbers.append
    )
    assert (await inviting).label == "Second phone"
    assert [member.label for member in second.state.chain().head.members] == ["My phone", "Second phone"]


@pytest.mark.threat("T2")
async def test_a_line_of_another_account_than_expected_is_refused_and_nothing_is_kept(
    relay: Relay, first: Inviter, tmp_path: Path
) -> None:
    inviting = first.invite(Role.COMPANION)
    second = Membership(state=CompanionState(tmp_path / "second"), tls=None, clock=relay.clock)
    for line in ((await first.invitation).encode(), await relay.account_line("another")):
        with pytest.raises(TrustError) as caught:
            await second.join(line, label="Tablet", expect_account=ACCOUNT)
        assert caught.value.reason is TrustReason.ACCOUNT_MISMATCH
    assert not (tmp_path / "second").exists()
    inviting.cancel()
    await asyncio.wait([inviting])


async def joining(relay: Relay, first: Inviter, folder: Path) -> tuple["asyncio.Task[Any]", asyncio.Event]:
    """A second companion that waits for the first, and when it shows its number."""
    numbered = asyncio.Event()

    def shown(number: str) -> None:
        first.numbers.append(number)
        numbered.set()

    second = Membership(state=CompanionState(folder / "second"), tls=None, clock=relay.clock)
    line = (await first.invitation).encode()
    task = asyncio.create_task(second.join(line, label="Tablet", on_check_number=shown))
    return task, numbered


def heard(state: Path) -> bool:
    """Whether a newcomer keeps the inviter's nonce."""
    joining = CompanionState(state).joining()
    return (
        joining is not None and isinstance(joining.said, Newcomer) and joining.said.inviter_nonce is not None
    )


async def withdrawn(task: "asyncio.Task[Any]") -> None:
    with pytest.raises(NotApproved) as caught:
        await task
    assert caught.value.reason is Outcome.WITHDRAWN


async def test_an_inviter_whose_time_is_over_takes_the_invitation_back(
    relay: Relay, first: Inviter, tmp_path: Path
) -> None:
    over = asyncio.Event()

    async def nobody_answers(_candidate: Candidate) -> InvitationRecord | None:
        await over.wait()
        raise TimeoutError  # as the deadline does

    inviting = first.invite(Role.COMPANION, consent=nobody_answers)
    second, introduced = await joining(relay, first, tmp_path)
    await introduced.wait()
    over.set()
    with pytest.raises(NotApproved) as caught:
        await inviting
    assert caught.value.reason is Outcome.EXPIRED
    await withdrawn(second)
    assert heard(tmp_path / "second")
    assert first.membership.state.invitations(relay.clock()) == ()
    again, _ = await joining(relay, first, tmp_path)
    await withdrawn(again)


async def test_an_inviter_that_is_cancelled_takes_the_invitation_back(
    relay: Relay, first: Inviter, tmp_path: Path
) -> None:
    asked = asyncio.Event()

    async def nobody_answers(_candidate: Candidate) -> InvitationRecord | None:
        asked.set()
        await asyncio.Future()
        return None

    inviting = first.invite(Role.COMPANION, consent=nobody_answers)
    second, _ = await joining(relay, first, tmp_path)
    await asked.wait()
    inviting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await inviting
    await withdrawn(second)
    assert first.version == 1


async def test_an_inviter_that_is_cancelled_twice_still_withdraws_its_invitation(
    relay: Relay, first: Inviter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, withdrawing, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    withdraw = CompanionRelay.withdraw

    async def nobody_answers(_candidate: Candidate) -> InvitationRecord | None:
        asked.set()
        await asyncio.Future()
        return None

    async def slowly(self: CompanionRelay, invitation: Invitation) -> None:
        withdrawing.set()
        await go_on.wait()
        await withdraw(self, invitation)

    monkeypatch.setattr(CompanionRelay, "withdraw", slowly)
    inviting = first.invite(Role.COMPANION, consent=nobody_answers)
    second, _ = await joining(relay, first, tmp_path)
    await asked.wait()
    inviting.cancel()
    await withdrawing.wait()
    inviting.cancel()
    await asyncio.wait({inviting}, timeout=0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await inviting
    await withdrawn(second)


async def test_an_inviter_that_cannot_show_its_invitation_takes_it_back(
    relay: Relay, first: Inviter, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[Invitation] = []
    announce = CompanionRelay.announce

    async def remember(self: CompanionRelay, invitation: Invitation) -> None:
        announced.append(invitation)
        await announce(self, invitation)

    def gone(_line: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(CompanionRelay, "announce", remember)
    with pytest.raises(BrokenPipeError):
        await first.membership.invite(
            Role.DEVICE, rp_ids=None, seconds=20, show=gone, consent=nobody_is_asked
        )
    key = SoftwareSigningKey.generate()
    introduction = made(announced[0], key)
    assert (await introduce(relay, announced[0], introduction, key)).problem == "withdrawn"


async def test_an_inviter_that_is_cancelled_after_the_yes_still_tells_the_newcomer(
    relay: Relay, first: Inviter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    appended, go_on = asyncio.Event(), asyncio.Event()
    append = CompanionRelay.append_ring

    async def slowly(self: CompanionRelay, ring: Ring) -> bool:
        done = await append(self, ring)
        appended.set()
        await go_on.wait()
        return done

    monkeypatch.setattr(CompanionRelay, "append_ring", slowly)
    inviting = first.invite(Role.COMPANION)
    second, _ = await joining(relay, first, tmp_path)
    await appended.wait()
    inviting.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await inviting
    assert (await second).account == first.membership.state.identity().account
    assert first.version == 2


@pytest.mark.threat("T4")
async def test_a_join_that_was_interrupted_goes_on_with_the_same_label_only(
    relay: Relay, first: Inviter, tmp_path: Path
) -> None:
    inviting = first.invite(Role.COMPANION)
    second = Membership(state=CompanionState(tmp_path / "second"), tls=None, clock=relay.clock)
    line = (await first.invitation).encode()
    with pytest.raises(NotApproved, match="goes on waiting"):
        await second.join(line, label="Tablet", seconds=0)
    with pytest.raises(JoinDiffers, match="'Tablet'"):
        await second.join(line, label="tablet")
    await second.join(line, label="Tablet", on_check_number=first.numbers.append)
    assert (await inviting).label == "Tablet"


@pytest.mark.threat("T4")
async def test_a_founding_that_was_interrupted_goes_on_with_the_same_label_only(
    relay: Relay, tmp_path: Path
) -> None:
    account, code = await relay.account_code("family")
    membership = Membership(state=CompanionState(tmp_path / "x"), tls=None, clock=relay.clock)
    line = AccountCode(relay_url=relay.url, account=account, account_name="family", code=code).encode()
    with pytest.raises(NotApproved, match="the relay did not answer"):
        await membership.join(line, label="My phone", seconds=0)
    with pytest.raises(JoinDiffers, match="'My phone'"):
        await membership.join(line, label="Your phone")
    await membership.join(line, label="My phone")


@pytest.mark.threat("T2")
async def test_a_newcomer_that_does_not_hold_the_invitation_is_not_even_shown(
    relay: Relay, first: Inviter
) -> None:
    """What a relay can do that has the ticket, but not the secret it comes from."""

    inviting = first.invite(consent=nobody_is_asked)
    invitation = await first.invitation
    key = SoftwareSigningKey.generate()
    honest = made(invitation, key)
    forged = Introduction.parse(body=honest.body, signature=honest.signature, mac=bytes(32))
    assert (await introduce(relay, invitation, forged, key)).status == 201
    with pytest.raises(TrustError) as caught:
        await inviting
    assert caught.value.reason is TrustReason.BAD_MAC
    assert first.version == 1


async def test_a_newcomer_of_another_kind_is_refused(relay: Relay, first: Inviter) -> None:
    inviting = first.invite(Role.DEVICE)
    invitation = await first.invitation
    key, hpke = SoftwareSigningKey.generate(), SoftwareHpkeKey.generate()
    forged = made(replace(invitation, kind=Role.COMPANION), key, hpke.public)
    await introduce(relay, invitation, forged, key)
    with pytest.raises(TrustError) as caught:
        await inviting
    assert caught.value.reason is TrustReason.KIND_MISMATCH


async def test_an_invitation_ends_by_our_own_clock(relay: Relay, first: Inviter) -> None:
    inviting = first.invite(seconds=20)
    invitation = await first.invitation
    key = SoftwareSigningKey.generate()
    introduction = made(invitation, key)
    relay.clock.ahead = 601  # which is the inviter's clock too
    reply = await introduce(relay, invitation, introduction, key)
    assert reply.status in (201, 410)
    with pytest.raises(HeadlessPasskeyError):
        await inviting
    assert first.version == 1


async def test_a_device_invitation_is_not_taken_by_a_companion(
    relay: Relay, first: Inviter, tmp_path: Path
) -> None:
    inviting = first.invite(Role.DEVICE)
    second = Membership(state=CompanionState(tmp_path / "second"), tls=None, clock=relay.clock)
    with pytest.raises(TrustError) as caught:
        await second.join((await first.invitation).encode(), label="Tablet")
    assert caught.value.reason is TrustReason.KIND_MISMATCH
    inviting.cancel()
    await asyncio.wait([inviting])


async def test_inviting_can_be_cancelled_and_leaves_nothing_open(relay: Relay, first: Inviter) -> None:
    inviting = first.invite()
    await first.invitation
    inviting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await inviting
    assert first.membership.state.invitations(relay.clock()) == ()


STEPS = ["announce", "introduction", "send_nonce", "newcomer_nonce", "append_ring", "answer"]


@pytest.mark.threat("T2")
@pytest.mark.parametrize("at", [f"{when} {step}" for step in STEPS for when in ("before", "after")])
async def test_an_inviter_that_crashes_at_any_step_finishes_what_was_agreed_and_withdraws_the_rest(
    relay: Relay, first: Inviter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    when, step = at.split()
    genuine = getattr(CompanionRelay, step)

    async def power_fails(self: CompanionRelay, *words: Any) -> None:
        if when == "after":
            await genuine(self, *words)
        raise asyncio.CancelledError

    async def is_not_reached(*_: Any) -> None:
        pass

    invited = asyncio.get_running_loop().create_future()
    remember = CompanionState.remember_invitation

    async def remembered(self: CompanionState, record: InvitationRecord, now: float) -> None:
        if not invited.done():
            invited.set_result(record.invitation)
        await remember(self, record, now)

    with monkeypatch.context() as crash:
        crash.setattr(CompanionRelay, step, power_fails)
        crash.setattr(CompanionRelay, "withdraw", is_not_reached)
        crash.setattr(CompanionState, "forget_invitation", is_not_reached)
        crash.setattr(CompanionState, "remember_invitation", remembered)
        inviting = first.invite(Role.COMPANION)
        second = Membership(state=CompanionState(tmp_path / "second"), tls=None, clock=relay.clock)
        line = (await invited).encode()
        if step != "announce":
            await first.invitation
        joining = asyncio.create_task(second.join(line, label="Tablet", on_check_number=first.numbers.append))
        await asyncio.wait({inviting})
        assert inviting.cancelled()
    assert len(first.membership.state.invitations(relay.clock())) == 1
    await first.membership.finish_answers()
    if step in ("append_ring", "answer"):
        await joining
        assert first.version == 2
    else:
        with pytest.raises(HeadlessPasskeyError):
            await joining
        assert first.version == 1
        again = asyncio.create_task(second.join(line, label="Tablet"))
        with pytest.raises(HeadlessPasskeyError) as caught:
            await again
        assert caught.value.reason in ("withdrawn", "invitation-expired")
    assert first.membership.state.invitations(relay.clock()) == ()


async def test_an_inviter_that_is_waiting_is_not_disturbed_by_another_process(
    relay: Relay, first: Inviter, tmp_path: Path
) -> None:
    inviting = first.invite(Role.COMPANION)
    await first.invitation
    await first.membership.finish_answers()
    second, _ = await joining(relay, first, tmp_path)
    assert (await inviting).label == "Tablet"
    await second


@pytest.mark.threat("T2")
async def test_the_agreement_is_on_disk_before_the_ring_is_appended(
    relay: Relay, first: Inviter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk: list[bool] = []
    append = CompanionRelay.append_ring

    async def watched(self: CompanionRelay, ring: Ring) -> bool:
        (record,) = first.membership.state.invitations(relay.clock())
        on_disk.append(record.agreed is not None)
        return await append(self, ring)

    monkeypatch.setattr(CompanionRelay, "append_ring", watched)
    inviting = first.invite(Role.COMPANION)
    second, _ = await joining(relay, first, tmp_path)
    await inviting
    await second
    assert on_disk == [True]


async def test_members_are_shown_as_last_seen_when_the_relay_is_away(
    first: Inviter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any, **__: Any) -> Any:
        raise RemoteProtocolError("not a relay", reason=ProtocolReason.MALFORMED_ANSWER)

    monkeypatch.setattr(CompanionRelay, "catch_up", away)
    ring, why = await first.membership.members()
    assert ring.version == 1
    assert isinstance(why, RemoteProtocolError)


async def test_a_lost_answer_to_founding_is_asked_for_again_with_the_same_keys(
    relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account, code = await relay.account_code("family")
    membership = Membership(state=CompanionState(tmp_path / "x"), tls=None, clock=relay.clock)
    line = AccountCode(relay_url=relay.url, account=account, account_name="family", code=code).encode()
    found = CompanionRelay.found

    async def answer_gets_lost(self: CompanionRelay, *words: Any) -> None:
        await found(self, *words)
        raise asyncio.CancelledError

    monkeypatch.setattr(CompanionRelay, "found", answer_gets_lost)
    with pytest.raises(asyncio.CancelledError):
        await membership.join(line, label="My phone")
    monkeypatch.undo()
    identity = await membership.join(line, label="My phone")
    ring, why = await membership.members()
    assert why is None
    assert [member.name for member in ring.members] == [identity.keys.name]


@pytest.mark.threat("T16")
async def test_a_relay_that_says_conflict_for_ever_is_left_within_the_inviters_time(
    first: Inviter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    async def conflict(_relay: CompanionRelay, ring: Ring) -> bool:
        tries.append(ring.version)
        return False

    monkeypatch.setattr(CompanionRelay, "append_ring", conflict)
    inviting = first.invite(Role.COMPANION, seconds=10)
    newcomer = Membership(state=CompanionState(tmp_path / "new"), tls=None, clock=first.membership.clock)
    line = (await first.invitation).encode()
    joining = asyncio.ensure_future(newcomer.join(line, label="Tablet", on_check_number=first.numbers.append))
    with pytest.raises(TransportError) as caught:
        await inviting
    assert caught.value.reason is TransportReason.RELAY_INCONSISTENT
    assert 1 <= len(tries) <= 6
    joining.cancel()
