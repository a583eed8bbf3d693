"""The operation of each endpoint: one transaction, from typed input to an answer.

An operation looks up the caller's membership in the transaction in which it acts, so that a removed member cannot act
(time of check to time of use). It runs on the event loop, so it is short. Its answer says what it has changed; with the commit
the HTTP shell wakes the held requests of these topics, and once the change is on the disk whoever else follows the relay
(`RelayEndpoints.follow`).
"""

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from companion_push.identity.authority import RingChange, SignIn, Subject
from companion_push.push.channel import Channel, Delivery, Kind, Purpose, PushOutcome
from companion_push.push.dispatcher import Order, kind_of
from companion_push.relay import account_events, account_states, accounts, channels, mutes, subjects, turns
from companion_push.relay.account_events import Event, EventType, Step
from companion_push.relay.account_state import AccountState
from companion_push.relay.account_states import EnvelopeKey, States
from companion_push.relay.accounts import Invitation, KeptRing, Membership
from companion_push.relay.ladder import End, Ladder, end_of
from companion_push.relay.limits import CEILING, Quota, Rate, take_all
from companion_push.relay.mailbox import INBOX, CompanionEvent, Leases, Request
from companion_push.relay.messages import (
    Announcement,
    AnswerBody,
    ChannelBody,
    CompanionReport,
    DeviceReport,
    Founding,
    IntroductionBody,
    LinksBody,
    NonceBody,
    RingBody,
    Submission,
    WordBody,
)
from companion_push.relay.nodes import PUSHES_LEFT
from companion_push.relay.problems import Problem, Slug, invalid, not_found
from companion_push.relay.transaction import Transaction
from companion_push.serving.webhook import Attempt
from headless_passkey.request import MUTED, NOT_ME, InvitationState, RequestState
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.ring import Ring, Role, document_hash
from headless_passkey.trust.word import Claim
from program_parts.base64url import base64url

MAX_RINGS: Final = 32  # ring documents in one answer
# ring versions of one signer, without those that only take members out
_RING_RATES: Final = (Rate(count=30, seconds=3600), Rate(count=100, seconds=86_400))

_WORD_RATE: Final = Rate(count=10, seconds=600)  # words of one companion; a claim is free
# of an account, fewer than the rings that are kept: whoever is in time is led past no gap
_LINK_RATE: Final = Rate(count=128, seconds=3600)
_INVITATION_RATE: Final = Rate(count=60, seconds=3600)  # invitations of one companion, the withdrawn ones too
_FOUNDING_RATE: Final = Rate(count=5, seconds=86_400)  # accounts of one subject, each reset one more
_CALL_RATE: Final = Rate(count=3, seconds=60)  # calls for words of one device
_WORD_PUSHES: Final = "word pushes"
_WORD_PUSH_RATE: Final = Rate(count=4, seconds=3600)  # of an account; beyond it a call is in the inboxes only
_TEST_RATE: Final = Rate(count=10, seconds=3600)  # tests of channels, of one companion
PUSH_LEASE: Final = 20.0  # seconds for which a push is of the process that has taken it
PUSH_LOOKS: Final = 5.0  # seconds until it says so again, and looks for those of others that have not
EVENT_LEASE: Final = (
    30.0  # seconds for which an event is of the process that tells it: longer than one attempt takes
)
SWEEP_SECONDS: Final = 30.0  # between two sweeps, of whichever process
MORE_OF_EXPIRED: Final = 50  # further portions of what has expired, in one sweep
_BESIDE_SECONDS: Final = 60.0  # between a command's look at the clock and its commit, at most
_CHANNEL_RATE: Final = Rate(
    count=30, seconds=3600
)  # channels that one companion registers anew; the same again is free


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation has done to one request."""

    was: RequestState | None  # None: it was submitted
    request: Request  # as it is now
    by: str | None = None  # the member who did it; None: time, or the relay


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to the caller, and what else the operation has changed."""

    body: Mapping[str, Any]
    status: int = 200
    news: bool = True  # False: nothing has changed, so the request may be held
    durable: bool = (
        True  # False: the caller may read what is not on the disk yet, and would be lost with a power cut
    )
    changes_at: float = math.inf  # Unix seconds at which time alone changes the answer
    changed: tuple[Change, ...] = ()  # each request at most once
    pushes: tuple[Order, ...] = ()  # to hand over now
    test: Order | None = None  # to be sent while the caller waits
    outcomes: tuple[tuple[Kind, Purpose, PushOutcome], ...] = ()  # of pushes that are over
    events: tuple[Step, ...] = ()  # steps of what the account service is told
    event: Event | None = None  # to be told now
    mutes: bool | None = None  # True: a device was muted; False: a companion has ended that
    muted: int | None = None  # how many devices are, where the operation has counted them
    woken: frozenset[str] = frozenset()  # topics beside those of the changed requests
    shown: str | None = (
        None  # the topic that this answer is about: its reader is not woken by what reading has changed
    )
    told: frozenset[str] = (
        frozenset()
    )  # members of an account that was closed or suspended, whose held calls end
    rings: tuple[Ring, Ring] | None = None  # the head before and after a change of the account
    unsettled: str | None = None  # the account in which it has changed who may do what

    @property
    def topics(self) -> frozenset[str]:
        """Of the held requests to wake: see below."""
        return (self.woken | concerned(change.request for change in self.changed)) - {self.shown}


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call: its caller and its time."""

    db: Transaction
    caller: str  # the name of the key that made the proof
    now: float
    leases: Leases  # of all members' claims
    states: States  # of all accounts; they are stored in the same transaction
    kinds: frozenset[Kind] = frozenset()  # of channels that the relay is set up for
    in_flight: Collection[int] = ()  # the pushes under way
    tells_account: bool = False  # whether an account service is told of mutes
    awaits: Callable[[str], bool] = lambda _topic: False  # whether a held request waits for the topic
    several: bool = False  # whether other processes may be serving too
    ask_member: Callable[[], Membership | None] | None = (
        None  # where the caller's membership is asked for already
    )

    def current(self, request: Request) -> Request:
        """The state of a stored request at the time of the call."""
        return request.at(self.now, self.leases.end_of(request, self.now)) if request.live else request

    def changes_at(self, request: Request) -> float:
        """When time alone changes the request."""
        return request.changes_at(self.leases.end_of(request, self.now))

    def member(self, role: Role | None = None) -> Membership:
        """Authorise the caller; `not-found` when it is no member, or not of this role."""
        found = accounts.membership(self.db, self.caller) if self.ask_member is None else self.ask_member()
        if found is None:
            raise accounts.stranger(self.db, self.caller)
        if found.suspended:
            raise Problem(Slug.ACCOUNT_SUSPENDED)
        if role is not None and found.role is not role:
            raise not_found()
        return found


Operation = Callable[[Call], Answer]


class Who(msgspec.Struct, frozen=True, kw_only=True):
    """Which account is meant, by one of these."""

    account: str | None = None  # its id
    name: str | None = None  # of a built-in account
    subject: Subject | None = None  # whose account it is, or will be

    def find(self, db: Transaction) -> tuple[str | None, Subject | None]:
        """The open account, and the subject to whom it belongs; `not-found` when there is neither."""
        if self.subject is not None:
            return subjects.account_of(db, self.subject), self.subject
        account = accounts.opened(db, self.account) if self.name is None else accounts.named(db, self.name)
        if account is None:
            raise not_found()
        return account, subjects.subject_of(db, account)


# Topics that a held request waits for. The names never leave the process.


def request_topic(device: str, request_id: str) -> str:
    return f"request {device} {request_id}"


def inbox_topic(companion: str) -> str:
    return f"inbox {companion}"


def invitation_topic(invitation_id: bytes) -> str:
    return f"invitation {base64url(invitation_id)}"


def counted(call: Call, answer: Answer) -> Answer:
    """Count in the same transaction which of the changed requests ended with an approval, and which without."""
    for change in answer.changed:
        end, at = _end(change, call.now)
        if end is not None:
            account = change.request.account
            call.states.put(
                account, call.states.of(account).counting(account, change.request.device, end, at)
            )
    return answer


def _end(change: Change, now: float) -> tuple[End | None, float]:
    """Say how a change ended its request, and when."""
    request = change.request
    end = end_of(
        change.was,
        request.state,
        by_device=change.by == request.device,
        claimed=request.claimed_by is not None,
    )
    return end, min(now, request.ends_at) if request.state is RequestState.EXPIRED else now


def with_pushes(call: Call, answer: Answer) -> Answer:
    """The answer with the pushes that follow from what it has changed. They are stored in the same transaction."""
    if not call.kinds or not answer.changed:
        return answer
    pushes = tuple(
        push
        for change in answer.changed
        for push in channels.follow_up(
            call.db,
            call.states,
            change.request,
            was=change.was,
            by=change.by,
            now=call.now,
            kinds=call.kinds,
        )
    )
    return replace(answer, pushes=(*answer.pushes, *pushes))


def among_several(call: Call, answer: Answer, *, called: bool) -> Answer:
    """The answer of one of several processes, which keeps the pushes for itself, and notes in the caller's claims that it has
    called. While the caller holds a claim, an answer changes before that has to be noted again.
    """
    if answer.pushes:
        channels.keep(call.db, [order.number for order in answer.pushes], call.now + PUSH_LEASE)
    every = call.leases.noted_every
    if every is None or not called or not call.caller:
        return answer
    accounts_read = call.states.read
    if not accounts_read:
        member = accounts.membership(call.db, call.caller)
        if member is None or member.role is not Role.COMPANION:
            return answer
        accounts_read = [member.account]
    held = [
        request
        for account in accounts_read
        for request in call.states.of(account).requests
        if request.leased and request.claimed_by == call.caller
    ]
    if not held:
        return answer
    call.states.save(*(after for each in held if (after := each.heard(call.now, every)) is not each))
    return replace(answer, changes_at=min(answer.changes_at, call.now + every))


def concerned(requests: Iterable[Request]) -> frozenset[str]:
    """The topics of a change of these requests."""
    return frozenset(
        topic
        for request in requests
        for topic in (request_topic(request.device, request.id), *map(inbox_topic, request.recipients))
    )


# Rings and accounts


def found_account(body: Founding) -> Operation:
    code, document = body.secret(), body.document()

    def operation(call: Call) -> Answer:
        account, news = accounts.found(
            call.db, caller=call.caller, code=code, document=document, now=call.now
        )
        return Answer(body={"account": account}, status=201 if news else 200)

    return operation


def read_mine(sign_in: SignIn) -> Operation:
    """Tell who signed in what its account is called, and its id where it has one."""

    def operation(call: Call) -> Answer:
        account = subjects.standing(call.db, sign_in)
        return Answer(body={"account": account, "account_name": sign_in.account_name})

    return operation


def found_by_sign_in(body: Founding, sign_in: SignIn) -> Operation:
    document = body.document()

    def operation(call: Call) -> Answer:
        founded = subjects.found(
            call.db,
            caller=call.caller,
            sign_in=sign_in,
            document=document,
            resets=body.reset,
            now=call.now,
        )
        if founded.news:
            subjects.count_founding(call.db, sign_in.subject, _FOUNDING_RATE, call.now)
        return replace(
            take_up_pushes(call),
            body={"account": founded.account},
            status=201 if founded.news else 200,
            told=founded.told,
        )

    return operation


def close_account(who: Who, *, again: bool, valid: int) -> Operation:
    """Close an account for good, and refuse the tokens that its subject has.

    again: a built-in account gets a code for a new one of the same name, for `valid` seconds; a subject may found a new one
    with the token that it has.
    """

    def operation(call: Call) -> Answer:
        account, subject = who.find(call.db)
        if account is None and again:
            raise not_found()
        name = None if account is None else accounts.name_of_account(call.db, account)
        told = frozenset() if account is None else accounts.close(call.db, account, now=call.now)
        if subject is not None:
            subjects.refuse_tokens(call.db, subject, until=None if again else call.now)
        added = None
        if again and name is not None:
            added = accounts.add_account(call.db, name=name, now=call.now, expires_at=int(call.now) + valid)
        return replace(
            take_up_pushes(call),
            body={"account": account, "name": name, "members": len(told), "added": added},
            told=told,
            unsettled=account,
        )

    return operation


def closed_beside(call: Call) -> Answer:
    """Tell the members of accounts that a command has closed, as `close_account` does, and hand over the pushes that it has left."""
    told = accounts.closed_since(call.db, call.now - _BESIDE_SECONDS)
    return replace(take_up_pushes(call), told=told)


def suspend_account(who: Who) -> Operation:
    """Suspend an account: its live requests end, and its members get no answer but that."""

    def operation(call: Call) -> Answer:
        account, subject = who.find(call.db)
        told: frozenset[str] = frozenset()
        changed = []
        if account is not None:
            told = accounts.members_of(call.db, account)
            for request in _current(call, account):
                if request.live:
                    after = request.withdrawn("suspended")
                    call.states.save(after)
                    changed.append(Change(was=request.state, request=after))
        subjects.suspend(call.db, account=account, subject=subject, now=call.now)
        return Answer(
            body={"account": account, "members": len(told)},
            changed=tuple(changed),
            told=told,
            unsettled=account,
        )

    return operation


def set_poll_only(who: Who, *, on: bool) -> Operation:
    """Let an account's companions be woken by no push, or by pushes again."""

    def operation(call: Call) -> Answer:
        account, _ = who.find(call.db)
        if account is None:
            raise not_found()
        channels.set_poll_only(call.db, account, on=on)
        return Answer(body={"account": account})

    return operation


def settle(account: str) -> Operation:
    """Bring an account's state up to its members, mutes and suspension, where it is in a store beside the database.

    What has changed these is committed there first, and may have been broken off before it came to the state.
    """

    def operation(call: Call) -> Answer:
        state = call.states.settle(account)
        if state is None:
            return Answer(body={})
        members = accounts.names_of(call.db, account)
        muted = {each.device for each in mutes.mutes_of(call.db, account)}
        suspended = accounts.is_suspended(call.db, account)
        changed = []
        for request in _current(call, account):
            gone = members.isdisjoint([request.device])
            reason = "removed" if gone else "suspended" if suspended else MUTED
            ends = gone or suspended or request.device in muted
            after = request.withdrawn(reason) if ends else request
            after = after.without(frozenset(request.recipients) - members, call.now)
            if after is not request:
                call.states.save(after)
                changed.append(Change(was=request.state, request=after))
        strangers = {name for request in state.requests for name in request.recipients} - members
        call.states.erase_envelopes(account, strangers)
        left = state.streaks.keys() - members - {account}
        call.states.put(account, call.states.of(account).without_streaks_of(left))
        return Answer(body={}, changed=tuple(changed))

    return operation


def lift_suspension(who: Who) -> Operation:
    def operation(call: Call) -> Answer:
        account, subject = who.find(call.db)
        subjects.lift(call.db, account=account, subject=subject)
        return Answer(body={"account": account})

    return operation


def read_ring(after: int) -> Operation:
    def operation(call: Call) -> Answer:
        account, last = accounts.reader(call.db, call.caller)
        head = accounts.newest(call.db, account, last=last)
        documents = accounts.rings_after(call.db, account, after, MAX_RINGS, last=last)
        gap = after < head.version and accounts.kept_document(call.db, account, after + 1) is None
        if gap:
            documents = accounts.rings_after(call.db, account, head.version - 1, 1, last=last)
        rings = [base64url(document) for document in documents]
        newest = accounts.words(call.db, account) if last is None else ()  # they name rings of later
        words = [{"by": by, "word": base64url(word)} for by, word in newest]
        return Answer(body={**_named(head), "rings": rings, "words": words, "gap": gap})

    return operation


def append_ring(body: RingBody) -> Operation:
    document = body.parse()

    def operation(call: Call) -> Answer:
        member = call.member()
        state = call.states.of(member.account)  # as it was before
        before, ring = accounts.append_ring(call.db, member, document, now=call.now)
        if not _is_free(before, ring):
            used = take_all(_RING_RATES, state.spent_by(member.name), call.now, of="rings")
            call.states.put(member.account, state.spending({member.name: used}, call.now))
        return _changed_ring(call, before, ring)

    return operation


def _named(ring: Ring | KeptRing) -> dict[str, Any]:
    """Name a ring as answers do."""
    return {"version": ring.version, "hash": base64url(ring.hash)}


def _is_free(before: Ring, ring: Ring) -> bool:
    """Whether nothing is new in the ring: it is the head again, or only takes members out."""
    if ring.hash == before.hash:
        return True
    return bool(_removed(before, ring)) and all(before.member(each.name) == each for each in ring.members)


def _removed(before: Ring, ring: Ring) -> frozenset[str]:
    """The names of the members that are not in the ring any more."""
    return frozenset(each.name for each in before.members if ring.member(each.name) is None)


def preview(operation: Operation) -> Operation:
    """An operation that changes nothing, and whose answer holds the change of the ring that `operation` would make.

    The change is None where nothing is new in the ring: nobody may keep a member from taking another one out.
    """

    def previewed(call: Call) -> Answer:
        call.db.execute("SAVEPOINT preview")
        try:
            rings = operation(replace(call, states=call.states.aside())).rings
            return Answer(body={"change": None if rings is None else _change(call, *rings)})
        finally:
            call.db.execute("ROLLBACK TO preview")
            call.db.execute("RELEASE preview")

    return previewed


def _change(call: Call, before: Ring, after: Ring) -> RingChange | None:
    if _is_free(before, after):
        return None
    return RingChange(
        account=after.account,
        subject=subjects.subject_of(call.db, after.account),
        version=after.version,
        signer=after.signer,
        added=tuple(
            (str(member.role), member.label) for member in after.members if before.member(member.name) is None
        ),
        removed=tuple(
            (str(member.role), member.label) for member in before.members if after.member(member.name) is None
        ),
    )


def give_word(body: WordBody) -> Operation:
    document = body.parse()

    def operation(call: Call) -> Answer:
        companion = call.member(Role.COMPANION)
        _spend(call, companion, "words", _WORD_RATE)
        accounts.give_word(call.db, companion, document, call.now)
        return Answer(body={})

    return operation


def call_for_words(call: Call) -> Answer:
    """Ask all companions of the calling device's account for a word."""
    device = call.member(Role.DEVICE)
    mutes.refuse_muted(call.db, device.name)()
    _spend(call, device, "calls for words", _CALL_RATE)
    called = accounts.call_for_words(call.db, device.account)
    pushes: tuple[Order, ...] = ()
    state = call.states.of(device.account)
    pushed = state.spent_by(device.account).get(_WORD_PUSHES)
    if called and call.kinds and _WORD_PUSH_RATE.left(pushed, call.now):
        used = {_WORD_PUSHES: _WORD_PUSH_RATE.take_up_to(pushed, call.now)}
        call.states.put(device.account, state.spending({device.account: used}, call.now))
        pushes = channels.tell(
            call.db, device.account, Purpose.WORD, call.now, kinds=call.kinds, companions=called
        )
    return Answer(body={}, status=202, woken=frozenset(map(inbox_topic, called)), pushes=pushes)


def _spend(call: Call, member: Membership, what: str, rate: Rate) -> None:
    """Take one of a member's rate (`rate-limited`)."""
    _spend_of(call, member.account, member.name, what, rate)


def _spend_of(call: Call, account: str, whose: str, what: str, rate: Rate) -> None:
    """Take one of a rate (`rate-limited`). whose: a member's name, or the account's id."""
    state = call.states.of(account)
    used = rate.take(state.spent_by(whose).get(what), call.now, of=what.replace(" ", "-"))
    call.states.put(account, state.spending({whose: {what: used}}, call.now))


def append_links(body: LinksBody) -> Operation:
    documents = body.parse()

    def operation(call: Call) -> Answer:
        call.states.of(accounts.linked_account(call.db, call.caller, documents))  # as it was before
        before, ring = accounts.append_links(call.db, call.caller, documents, now=call.now)
        for _ in range(ring.version - before.version):
            _spend_of(call, ring.account, ring.account, "links", _LINK_RATE)
        return _changed_ring(call, before, ring)

    return operation


def _changed_ring(call: Call, before: Ring, ring: Ring) -> Answer:
    """End what the removed members had under way, push the change to all companions, and answer with the head. Nobody is woken for the head that was there."""
    if ring.hash == before.hash:
        return Answer(body=_named(ring), status=201, unsettled=ring.account)  # by a try of before, perhaps
    removed = _removed(before, ring)
    changed = []
    for request in _current(call, ring.account):
        after = request.withdrawn("removed") if request.device in removed else request
        after = after.without(removed, call.now)
        if after is not request:
            call.states.save(after)
            changed.append(Change(was=request.state, request=after, by=call.caller))
    call.states.erase_envelopes(ring.account, removed)
    call.states.put(ring.account, call.states.of(ring.account).without_streaks_of(removed))
    withdrawn = accounts.withdraw_orphaned(call.db, ring.account)
    tell = partial(channels.tell, call.db, ring.account, now=call.now, kinds=call.kinds)
    staying = frozenset(member.name for member in ring.companions)
    pushes = (*tell(Purpose.REMOVED, companions=removed), *tell(Purpose.RING, companions=staying))
    channels.forget(call.db, removed)
    told = removed.union(member.name for member in ring.companions)  # of the change
    return Answer(
        body=_named(ring),
        status=201,
        changed=tuple(changed),
        woken=frozenset([*map(inbox_topic, told), *map(invitation_topic, withdrawn)]),
        pushes=pushes,
        rings=(before, ring),
        unsettled=ring.account,
    )


# Invitations and introductions


def announce_invitation(invitation_id: bytes, body: Announcement) -> Operation:
    def operation(call: Call) -> Answer:
        inviter = call.member(Role.COMPANION)
        news = accounts.invite(
            call.db,
            inviter=inviter,
            invitation_id=invitation_id,
            kind=body.role,
            expires_at=body.expires_at,
            now=call.now,
        )
        if news:
            _spend(call, inviter, "invitations", _INVITATION_RATE)
        return Answer(body={}, status=201 if news else 200)

    return operation


def introduce(body: IntroductionBody) -> Operation:
    ticket, introduction = body.parse()

    def operation(call: Call) -> Answer:
        invitation_id, news = accounts.introduce(
            call.db,
            newcomer=call.caller,
            account=body.account,
            ticket=ticket,
            introduction=introduction,
            now=call.now,
        )
        return Answer(
            body={"id": base64url(invitation_id)},
            status=201 if news else 200,
            woken=frozenset({invitation_topic(invitation_id)}),
        )

    return operation


def read_invitation(invitation_id: bytes, state: InvitationState | None) -> Operation:
    """Read an invitation as its inviter; there is no news while it is in `state`."""

    def operation(call: Call) -> Answer:
        invitation = _invited(call, invitation_id)
        introduction = invitation.introduction
        came = introduction and {
            "body": base64url(introduction.body),
            "signature": base64url(introduction.signature),
            "mac": base64url(introduction.mac),
        }
        nonce = invitation.newcomer_nonce
        return _stage(invitation, state, introduction=came, nonce=nonce and base64url(nonce))

    return operation


def read_introduction(invitation_id: bytes, state: InvitationState | None) -> Operation:
    """Read an invitation as its newcomer; there is no news while it is in `state`."""

    def operation(call: Call) -> Answer:
        invitation = _introduced(call, invitation_id)
        nonce, mac, version = invitation.inviter_nonce, invitation.answer_mac, invitation.ring_version
        ring = None if version is None else accounts.kept_document(call.db, invitation.account, version)
        if version is not None and ring is None:
            raise Problem(Slug.EXPIRED)
        return _stage(
            invitation,
            state,
            nonce=nonce and base64url(nonce),
            ring=ring and base64url(ring),
            mac=mac and base64url(mac),
        )

    return operation


def _stage(invitation: Invitation, state: InvitationState | None, **members: Any) -> Answer:
    """The answer to who waits until the invitation has left `state`."""
    return Answer(
        body={"state": invitation.state, **members},
        news=invitation.state is not state,
        changes_at=invitation.ends_at,
    )


def _invited(call: Call, invitation_id: bytes) -> Invitation:
    """Authorise the caller as the inviter of an invitation that has not ended."""
    inviter = call.member(Role.COMPANION)
    invitation = accounts.invitation_of(call.db, inviter=inviter, invitation_id=invitation_id)
    invitation.refuse_ended(call.now)
    return invitation


def _introduced(call: Call, invitation_id: bytes) -> Invitation:
    """Authorise the caller as the newcomer of an invitation that has not ended."""
    invitation = accounts.introduced_by(call.db, newcomer=call.caller, invitation_id=invitation_id)
    accounts.refuse_suspended(call.db, invitation.account)
    invitation.refuse_ended(call.now)
    return invitation


def send_nonce(invitation_id: bytes, body: NonceBody) -> Operation:
    nonce = body.parse()
    return _advance(
        invitation_id, lambda call: accounts.send_nonce(call.db, _invited(call, invitation_id), nonce)
    )


def reveal(invitation_id: bytes, body: NonceBody) -> Operation:
    nonce = body.parse()
    return _advance(
        invitation_id, lambda call: accounts.reveal(call.db, _introduced(call, invitation_id), nonce)
    )


def answer_introduction(invitation_id: bytes, body: AnswerBody) -> Operation:
    document, mac = body.parse()

    def admit(call: Call) -> bool:
        invitation = _invited(call, invitation_id)
        head = accounts.newest(call.db, invitation.account)
        if invitation.answer_mac is None and head.hash != document_hash(document):
            raise accounts.ring_conflict(head)
        return accounts.answer(call.db, invitation, ring_version=head.version, mac=mac)

    return _advance(invitation_id, admit)


def withdraw_invitation(invitation_id: bytes) -> Operation:
    def withdraw(call: Call) -> bool:
        invitation = accounts.withdrawable(call.db, caller=call.caller, invitation_id=invitation_id)
        return accounts.withdraw(call.db, invitation)

    return _advance(invitation_id, withdraw)


def _advance(invitation_id: bytes, change: Callable[[Call], bool]) -> Operation:
    """An operation that changes an invitation, and wakes who waits for it. change: returns whether it did."""

    def operation(call: Call) -> Answer:
        changed = change(call)
        woken = frozenset({invitation_topic(invitation_id)}) if changed else frozenset()
        return Answer(body={}, woken=woken)

    return operation


# Requests


def submit(request_id: str, body: Submission, *, quota: Quota, ladder: Ladder, ceiling: int) -> Operation:
    envelopes = body.parse()
    fingerprint = body.fingerprint()
    recipients = tuple(sorted(envelopes))
    digests = tuple(hashlib.sha256(envelopes[name]).digest() for name in recipients)

    def operation(call: Call) -> Answer:
        device = call.member(Role.DEVICE)
        refuse_muted = mutes.refuse_muted(call.db, device.name)
        companions = accounts.ask_companions(call.db, device.account)
        state = call.states.of(device.account, writes=True)
        known = state.request((device.name, request_id))
        if known is not None:
            if known.fingerprint != fingerprint:
                raise Problem(Slug.REQUEST_CONFLICT)
            current = _now(call, known)
            return Answer(
                body=_status(call, current, device),
                changed=_changes(known, current),
                pushes=channels.lacking(call.db, current, kinds=call.kinds),
            )
        refuse_muted()
        if not envelopes.keys() <= companions():
            raise Problem(Slug.UNKNOWN_RECIPIENT)
        kept = [call.current(request) for request in state.requests]
        over = [
            Change(was=before.state, request=now)
            for before, now in zip(state.requests, kept, strict=True)
            if before.live and not now.live
        ]
        _admit(call, ladder, state, device, over)
        others = [request for request in kept if request.device != device.name]
        of_device, of_account = quota.admit(
            others, state.spent_by(device.name), state.spent_by(device.account), call.now
        )
        state = state.spending({device.name: of_device, device.account: of_account}, call.now)
        superseded = [
            Change(was=request.state, request=request.superseded(), by=device.name)
            for request in kept
            if request.device == device.name and request.live
        ]
        new = Request(
            account=device.account,
            device=device.name,
            id=request_id,
            recipients=recipients,
            digests=digests,
            fingerprint=fingerprint,
            submitted_at=int(call.now),
            expires_at=int(call.now) + min(body.expires_in, ceiling, CEILING),
        )
        waiting = [name for name in new.recipients if call.awaits(inbox_topic(name))]
        new, pushes = channels.notify(
            call.db,
            new,
            kinds=call.kinds,
            waiting=waiting,
            may_wait=new.recipients if call.several else (),
        )
        ended = [change.request for change in (*over, *superseded)]
        call.states.put(device.account, state.with_requests([*ended, new]))
        call.states.seal(new, envelopes)
        return Answer(
            body=_status(call, new, device),
            status=201,
            changed=(Change(was=None, request=new, by=device.name), *over, *superseded),
            pushes=pushes,
        )

    return operation


def _admit(
    call: Call, ladder: Ladder, state: AccountState, device: Membership, over: Iterable[Change]
) -> None:
    """Refuse a device that is to pause (`rate-limited`). over: what has ended with time, and is not counted yet."""
    of_device, of_account = state.streak(device.name), state.streak(device.account)
    for change in over:
        end, at = _end(change, call.now)
        if end is not None and change.request.device == device.name:
            of_device, of_account = of_device.after(end, at), of_account.after(end, at)
    ladder.admit(of_device, of_account, call.now)


def read_request(request_id: str, version: int | None) -> Operation:
    def operation(call: Call) -> Answer:
        device, stored = _own(call, request_id)
        current = _now(call, stored)
        status = _status(call, current, device)
        return Answer(
            body=status,
            news=status["version"] != version or not current.live,
            durable=False,
            changes_at=call.changes_at(current) if current.live else math.inf,
            changed=_changes(stored, current),
        )

    return operation


def device_event(request_id: str, report: DeviceReport) -> Operation:
    def operation(call: Call) -> Answer:
        device, stored = _own(call, request_id, writes=True)
        after = call.current(stored).device_says(report.event, report.reason)
        if after is not stored:
            call.states.save(after)
        return Answer(body=_status(call, after, device), changed=_changes(stored, after, call.caller))

    return operation


def read_inbox(cursor: str | None) -> Operation:
    def operation(call: Call) -> Answer:
        companion = call.member(Role.COMPANION)
        items: list[dict[str, Any]] = []
        changed: list[Change] = []
        changes_at = math.inf
        word_asked = accounts.ask_word_wanted(call.db, companion.name)
        muted_asked = mutes.ask_mutes(call.db, companion.account)
        state = call.states.of(
            companion.account,
            reads=lambda known: [
                EnvelopeKey(*each.key, companion.name) for each in _live_to(companion.name, known)
            ],
        )
        mine = _live_to(companion.name, state)
        envelopes = call.states.sealed_to(companion.name, mine) if mine else {}
        for stored in mine:
            request = call.current(stored)
            sealed = envelopes.get(stored.key)
            if sealed is not None and request.waits_for(companion.name):
                request = request.fetched(companion.name)
                items.append(_item(request, sealed))
                changes_at = min(changes_at, call.changes_at(request))
            if request is not stored:
                call.states.save(request)
            if request.version != stored.version:
                changed += _changes(stored, request, companion.name if request.live else None)
        head, word_wanted = companion.head, word_asked()
        muted = [each.device for each in muted_asked()]
        new_cursor = _cursor(items, head.version, word_wanted=word_wanted, muted=muted)
        return Answer(
            body={
                "cursor": new_cursor,
                "requests": items,
                "word_wanted": word_wanted,
                "muted": muted,
                "ring": _named(head),
            },
            news=new_cursor != cursor,
            durable=False,
            changes_at=changes_at,
            changed=tuple(changed),
            shown=inbox_topic(companion.name),
        )

    return operation


def _live_to(companion: str, state: AccountState) -> list[Request]:
    """The live requests with an envelope to this companion."""
    return [each for each in state.requests if each.live and companion in each.recipients]


def companion_event(device: str, request_id: str, report: CompanionReport) -> Operation:
    word = report.claim()

    def operation(call: Call) -> Answer:
        companion = call.member(Role.COMPANION)
        head = None if word is None else accounts.ask_head(call.db, companion)
        stored = call.states.of(companion.account, writes=True).request((device, request_id))
        if stored is None or companion.name not in stored.recipients:
            raise not_found()
        if word is not None and head is not None:
            _check_claim(call, companion, stored, word, head())
        after = call.current(stored).companion_says(
            companion.name, report.event, report.reason, now=call.now, stays=bool(report.stays), word=word
        )
        if after is not stored:
            call.states.save(after)
        changed = _changes(stored, after, companion.name)
        muted = (
            report.event is CompanionEvent.DECLINED
            and report.reason == NOT_ME  # also where another companion's no was there before
            and mutes.mute(call.db, companion.account, device, by=companion.name, now=call.now)
        )
        return Answer(
            body={
                "state": after.state,
                "version": after.version,
                "expires_at": after.expires_at,
                "now": int(call.now),
            },
            changed=(*changed, *_end_of_device(call, after.account, device)) if muted else changed,
            woken=_inboxes(call, companion.account) if muted else frozenset(),
            events=_muted(call, companion, device) if muted else (),
            mutes=True if muted else None,
            unsettled=companion.account if muted else None,
        )

    return operation


def _end_of_device(call: Call, account: str, device: str) -> Iterable[Change]:
    """End what is live of a device that was muted."""
    for request in _current(call, account):
        if request.device == device and request.live:
            after = request.withdrawn(MUTED)
            call.states.save(after)
            yield Change(was=request.state, request=after, by=call.caller)


def _check_claim(call: Call, companion: Membership, request: Request, document: bytes, head: Ring) -> None:
    """Verify that the word claims this request, over the very bytes that were sealed to `companion`. head: the newest ring."""
    claim = accounts.take_word(call.db, companion, document, head=head).claim
    expected = Claim(
        device=request.device,
        request_id=from_base64url(request.id),
        sealed=request.digest_for(companion.name) or b"",
    )
    if request.live and claim != expected:  # of one that is over the event says so
        raise invalid("word: it does not claim this request as it was sealed to this companion")


# Muted devices


def read_mutes(call: Call) -> Answer:
    """List the muted devices of the calling companion's account."""
    companion = call.member(Role.COMPANION)
    muted = mutes.mutes_of(call.db, companion.account)
    return Answer(body={"mutes": [{"device": each.device, "by": each.by, "at": each.at} for each in muted]})


def begin_mute(device: str) -> Operation:
    """Mute a device of the calling companion's account, which says "not me" of no request of it; all companions are told."""

    def operation(call: Call) -> Answer:
        companion = call.member(Role.COMPANION)
        muted = accounts.membership(call.db, device)
        if muted is None or muted.account != companion.account or muted.role is not Role.DEVICE:
            raise not_found()
        call.states.of(companion.account)  # as it was before
        if not mutes.mute(call.db, companion.account, device, by=companion.name, now=call.now):
            return Answer(body={}, unsettled=companion.account)  # by a try of before, perhaps
        return Answer(
            body={},
            status=201,
            changed=tuple(_end_of_device(call, companion.account, device)),
            woken=_inboxes(call, companion.account),
            events=_muted(call, companion, device),
            mutes=True,
            unsettled=companion.account,
        )

    return operation


def end_mute(device: str) -> Operation:
    """Take requests of a device again; all companions are told."""

    def operation(call: Call) -> Answer:
        companion = call.member(Role.COMPANION)
        muted = {each.device: each for each in mutes.mutes_of(call.db, companion.account)}
        if not mutes.unmute(call.db, companion.account, device):
            return Answer(body={})
        return Answer(
            body={},
            woken=_inboxes(call, companion.account),
            events=_unmuted(call, companion, muted[device]),
            mutes=False,
        )

    return operation


def _muted(call: Call, companion: Membership, device: str) -> tuple[Step, ...]:
    """Let the account service be told that a companion has muted a device."""
    if not call.tells_account:
        return ()
    return account_events.add(
        call.db, companion.account, device, EventType.MUTED, by=companion.name, now=call.now
    )


def _unmuted(call: Call, companion: Membership, mute: mutes.Mute) -> tuple[Step, ...]:
    """Let it be told that a mute has ended, and of the mute itself: this takes the place of an event that still waits."""
    if not call.tells_account:
        return ()
    return account_events.add(
        call.db,
        companion.account,
        mute.device,
        EventType.UNMUTED,
        by=companion.name,
        muted_by=mute.by,
        muted_at=account_events.timestamp(mute.at),
        now=call.now,
    )


def _inboxes(call: Call, account: str) -> frozenset[str]:
    """The topics of the inboxes of all companions of an account."""
    return frozenset(map(inbox_topic, accounts.companions(call.db, account)))


# Channels


def read_channels(offered: Mapping[Kind, Channel]) -> Operation:
    """List the calling companion's channels, and what the relay is set up for."""

    def operation(call: Call) -> Answer:
        companion = call.member(Role.COMPANION)
        registered = channels.registered(call.db, companion.name)
        return Answer(
            body={
                "channels": [
                    {
                        "handle": each.handle,
                        "kind": each.kind,
                        "state": each.state,
                        "registered_at": each.registered_at,
                    }
                    for each in registered
                ],
                "offers": {}
                if channels.is_poll_only(call.db, companion.account)
                else {str(kind): dict(channel.offer) for kind, channel in offered.items()},
            }
        )

    return operation


def register_channel(handle: str, body: ChannelBody, offered: Mapping[Kind, Channel]) -> Operation:
    """Register a channel of the calling companion, or confirm it. offered: what the relay is set up for."""
    address = body.parse()

    def operation(call: Call) -> Answer:
        companion = call.member(Role.COMPANION)
        channel = offered.get(kind_of(address))
        if channel is None:
            raise Problem(Slug.UNSUPPORTED_CHANNEL, "the relay is not set up for this kind")
        if channels.is_poll_only(call.db, companion.account):
            raise Problem(Slug.UNSUPPORTED_CHANNEL, "the relay wakes no companion of this account")
        refusal = channel.refusal(address)
        if refusal is not None:
            raise Problem(Slug.UNSUPPORTED_CHANNEL, refusal)
        news = channels.register(
            call.db,
            companion=companion.name,
            account=companion.account,
            handle=handle,
            address=address,
            now=call.now,
        )
        if news:
            _spend(call, companion, "channels", _CHANNEL_RATE)
        return Answer(body={}, status=201 if news else 200)

    return operation


def remove_channel(handle: str) -> Operation:
    def operation(call: Call) -> Answer:
        channels.remove(call.db, call.member(Role.COMPANION).name, handle)
        return Answer(body={})

    return operation


def test_channel(handle: str) -> Operation:
    """Make a push that tests a channel of the calling companion; `tested_channel` ends the test."""

    def operation(call: Call) -> Answer:
        companion = call.member(Role.COMPANION)
        order = channels.test(call.db, companion.name, handle, call.now)
        if order is None:
            raise Problem(Slug.NOT_FOUND)
        _spend(call, companion, "tests", _TEST_RATE)
        return Answer(body={}, test=order)

    return operation


def tested_channel(order: Order, delivery: Delivery) -> Operation:
    """Store what the test of a channel shows, and tell its outcome."""

    def operation(call: Call) -> Answer:
        channels.tested(call.db, call.caller, order, delivery, call.now)
        return Answer(
            body={"outcome": delivery.outcome},
            outcomes=((order.kind, order.push.purpose, delivery.outcome),),
        )

    return operation


def record_pushes(ends: Sequence[tuple[Order, Delivery]]) -> Operation:
    """Store the outcomes of pushes; their devices are told."""

    def operation(call: Call) -> Answer:
        numbered = [(order.number, delivery) for order, delivery in ends]
        changed = channels.record(call.db, call.states, numbered, call.now)
        return Answer(
            body={},
            woken=frozenset(request_topic(*request) for request in changed),
            outcomes=tuple((order.kind, order.push.purpose, delivery.outcome) for order, delivery in ends),
        )

    return operation


def take_up_pushes(call: Call, *, apart: bool = False) -> Answer:
    """Hand over the pushes that are stored and not under way: a relay was killed, or an account closed. apart: as for `channels.collect`."""
    pushes, told = channels.collect(
        call.db, call.states, call.now, in_flight=call.in_flight, kinds=call.kinds, apart=apart
    )
    return Answer(body={}, pushes=pushes, woken=frozenset(request_topic(*request) for request in told))


def keep_pushes(call: Call, *, apart: bool = False) -> Answer:
    """Keep the pushes that this process has under way, and take up those that another one has not kept. apart: as for `channels.collect`."""
    channels.keep(call.db, call.in_flight, call.now + PUSH_LEASE)
    return take_up_pushes(call, apart=apart)


def let_pushes_go(call: Call) -> Answer:
    """Leave the pushes that this process has under way to the others."""
    channels.keep(call.db, call.in_flight, 0)
    return Answer(body={}, woken=frozenset({PUSHES_LEFT}))


def renew_leases(after: str | None, *, alone: bool = False) -> Operation:
    """Renew the leases of a portion of the accounts, since nobody could call for a while. after, alone, and its answer: as `sweep`."""

    def operation(call: Call) -> Answer:
        due = call.states.due(after)
        if not alone:
            for account in due:
                renew_leases_of(account)(call)
        return Answer(body={"changed": 0, "next": _next(due), "accounts": due, "more": False})

    return operation


def renew_leases_of(account: str) -> Operation:
    """Renew the leases of an account, as `renew_leases` does."""

    def operation(call: Call) -> Answer:
        leased = [request for request in call.states.of(account).requests if request.leased]
        call.states.save(*(replace(request, heard_at=call.now) for request in leased))
        return Answer(body={"changed": 0})

    return operation


def _next(due: list[str]) -> str | None:
    """After which account the next portion begins; None after the last one."""
    return due[-1] if len(due) == account_states.PORTION else None


def was_away(call: Call) -> Answer:
    """Say whether no process has served for a while: none has swept."""
    return Answer(body={"away": turns.age(call.db, "sweep", call.now) > 2 * SWEEP_SECONDS})


def take_event(call: Call) -> Answer:
    """Take up the next event that the account service is to be told."""
    event = account_events.take(call.db, call.states, call.now, lease=EVENT_LEASE if call.several else 0)
    waiting, due = account_events.waiting(call.db)
    return Answer(body={"waiting": waiting, "due": due}, event=event)


def record_event(event: Event, attempt: Attempt, *, chance: float) -> Operation:
    """Store what became of telling it. chance: 0 to 1, to spread attempts."""

    def operation(call: Call) -> Answer:
        step = account_events.record(call.db, event, attempt, chance=chance, now=call.now)
        return Answer(body={}, events=() if step is None else (step,))

    return operation


def sweep(after: str | None, *, alone: bool = False) -> Operation:
    """Store what time has changed of a portion of the accounts; its answer says which these are, and after which the next one
    begins, or None; and whether more has expired than it has deleted (`sweep_expired`).

    alone: leave the accounts as they are, since each has a transaction of its own afterwards. The first portion, with None, also deletes what has expired, counts the muted devices, and takes up the pushes that nobody has handed over.
    Of several processes one sweeps at a time.
    """

    def operation(call: Call) -> Answer:
        if after is None and call.several and not turns.take(call.db, "sweep", SWEEP_SECONDS, call.now):
            return Answer(
                body={"changed": 0, "next": None, "accounts": [], "more": False}, muted=mutes.count(call.db)
            )
        due = call.states.due(after)
        changed = [] if alone else [change for account in due for change in _swept(call, account)]
        taken, more = Answer(body={}), False
        if after is None:
            more = accounts.sweep_accounts(call.db, call.now)
            if not call.tells_account:
                account_events.clear(call.db)
            # `keep_pushes` looks for them too, and what they are about may be in a state that cannot be had
            taken = replace(taken if alone else take_up_pushes(call), muted=mutes.count(call.db))
        body = {"changed": len(changed), "next": _next(due), "accounts": due, "more": more}
        return replace(taken, body=body, changed=tuple(changed))

    return operation


def sweep_expired(call: Call) -> Answer:
    """Delete a further portion of what has expired, as the first one of `sweep` does; says whether more may be left."""
    return Answer(body={"more": accounts.sweep_accounts(call.db, call.now)})


def sweep_of(account: str) -> Operation:
    """Store what time has changed of an account, as `sweep` does."""

    def operation(call: Call) -> Answer:
        changed = _swept(call, account)
        return Answer(body={"changed": len(changed)}, changed=tuple(changed))

    return operation


def _swept(call: Call, account: str) -> list[Change]:
    """Store what time has changed of an account's state."""
    if not call.states.knows(account):
        return []
    stored = call.states.of(account)
    changed = [
        change
        for request in stored.requests
        if request.live
        for change in _changes(request, call.current(request))
    ]
    call.states.swept(
        account, stored.with_requests([change.request for change in changed]) if changed else stored
    )
    return changed


def read_store(call: Call) -> Answer:
    """Read anything, to see that the store answers. On a file it waits for the disk, as changes do."""
    call.db.execute("SELECT 1 FROM accounts LIMIT 1").fetchone()
    call.states.look()
    return Answer(body={})


def _own(call: Call, request_id: str, *, writes: bool = False) -> tuple[Membership, Request]:
    """Read the calling device's membership, and its request as it is stored. writes: as with `States.of`."""
    device = call.member(Role.DEVICE)
    stored = call.states.of(device.account, writes=writes).request((device.name, request_id))
    if stored is None:
        raise not_found()
    return device, stored


def _now(call: Call, stored: Request) -> Request:
    """Read the request in its current state, and store what time has changed."""
    current = call.current(stored)
    if current is not stored:
        call.states.save(current)
    return current


def _changes(stored: Request, after: Request, by: str | None = None) -> tuple[Change, ...]:
    """Say what has changed of a request; nothing where it is as it was stored. by: as with `Change`."""
    return () if after is stored else (Change(was=stored.state, request=after, by=by),)


def _current(call: Call, account: str) -> list[Request]:
    """Read the account's requests in their current state; the sweep stores what time has changed."""
    return [call.current(request) for request in call.states.of(account).requests]


def _status(call: Call, request: Request, device: Membership) -> dict[str, Any]:
    word = request.word
    notified = channels.notified(request)
    # of an inbox, what is not known at once: that a companion was away
    known = {channels.PENDING, PushOutcome.SENT}
    pushed = sum(
        each.outcome not in known if each.channel == INBOX else each.outcome != channels.PENDING
        for each in notified
    )
    return {
        "id": request.id,
        "state": request.state,
        "version": request.version + pushed,  # each outcome is news to the device
        "expires_at": request.expires_at,
        "now": int(call.now),
        "claim": None if word is None else {"by": request.claimed_by, "word": base64url(word)},
        "ring": _named(device.head),
        "reason": request.reason,
        "failures": [{"by": failure.by, "reason": failure.reason} for failure in request.failures],
        "notified": [{"to": each.to, "channel": each.channel, "outcome": each.outcome} for each in notified],
    }


def _item(request: Request, sealed: bytes) -> dict[str, Any]:
    return {
        "device": request.device,
        "id": request.id,
        "state": request.state,
        "version": request.version,
        "sealed": base64url(sealed),
        "submitted_at": request.submitted_at,
        "expires_at": request.expires_at,
        "claimed_by": request.claimed_by,
        "stays": request.stays,
    }


def _cursor(items: list[dict[str, Any]], ring: int, *, word_wanted: bool, muted: Sequence[str]) -> str:
    """A hash of the content, which needs no counter and survives restarts."""
    content = ";".join([f"{ring}", *(f"{item['device']} {item['id']} {item['version']}" for item in items)])
    content += ";word" if word_wanted else ""
    content += "".join(f";muted {device}" for device in muted)
    return base64url(hashlib.sha256(content.encode()).digest()[:16])
