"""The companion's client of the relay (docs/protocol/relay.md).

The calls that devices make too (rings, introductions) are in `headless_passkey.account.relay.MemberClient`. Every answer
is parsed strictly; the relay is trusted for delivery only.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

import aiohttp

from companion_push.companion.sign_in import Way
from companion_push.push.channel import HANDLE_SIZE, Kind, PushOutcome
from headless_passkey.account.relay import MemberClient, request_state
from headless_passkey.errors import (
    LocalProtocolError,
    NotApproved,
    NotSignedIn,
    Outcome,
    ProtocolReason,
    RemoteProtocolError,
    SessionReason,
    TransportError,
    TrustError,
    TrustReason,
    UsageError,
)
from headless_passkey.net.proven_http import MAX_WAIT, PATIENCE, ProblemAnswer
from headless_passkey.request import InvitationState, RequestState
from headless_passkey.text.base64url import from_base64url
from headless_passkey.text.members import Members
from headless_passkey.trust.account_code import AccountCode
from headless_passkey.trust.admission import InvitationRecord
from headless_passkey.trust.envelope import MAX_SEALED
from headless_passkey.trust.fields import REQUEST_ID_SIZE
from headless_passkey.trust.introduction import MAC_SIZE, MAX_INTRODUCTION, NONCE_SIZE
from headless_passkey.trust.invitation import Invitation
from headless_passkey.trust.ring import MAX_MEMBERS, Ring
from headless_passkey.trust.signing import NAME_SIZE, SIGNATURE_SIZE
from headless_passkey.trust.word import Word
from program_parts.base64url import base64url
from program_parts.names import MAX_LABEL, is_plain, printable

EVENT_STREAM: Final = "text/event-stream"
_MAX_ITEMS: Final = 64  # requests in one answer; the relay admits three pending ones
_MAX_CHANNELS: Final = 64  # in one answer; a companion has four
_MAX_CURSOR: Final = 64  # characters


class Event(StrEnum):
    """The events that a companion reports about a request."""

    DECLINED = "declined"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One live request of the relay's list, unverified."""

    device: str
    request_id: bytes  # 16 bytes
    state: RequestState
    version: int  # grows with every change
    claimed_by: str | None
    stays: bool  # `stays` of the companion that opened it
    sealed: bytes = field(repr=False)

    @property
    def key(self) -> tuple[str, bytes]:
        return self.device, self.request_id

    @classmethod
    def parse(cls, members: Members) -> Self:
        device = members.text("device", NAME_SIZE)
        if len(device) != NAME_SIZE:
            raise RemoteProtocolError(
                "the relay names a device by something that is no name",
                reason=ProtocolReason.MALFORMED_ANSWER,
            )
        from_base64url(device)
        return cls(
            device=device,
            request_id=members.octets("id", REQUEST_ID_SIZE),
            state=request_state(members),
            version=members.integer("version"),
            claimed_by=members.optional_text("claimed_by", NAME_SIZE),
            stays=members.boolean("stays"),
            sealed=members.octets("sealed", 0, MAX_SEALED),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The content of the inbox at one time."""

    cursor: str  # for the next call, which then waits for a change
    items: tuple[Item, ...]
    word_wanted: bool  # whether a device asks for this companion's word
    muted: frozenset[str]  # the names of muted devices
    ring_version: int  # of the newest ring that the relay has

    @classmethod
    def parse(cls, members: Members) -> Self:
        items = tuple(map(Item.parse, members.objects("requests", _MAX_ITEMS)))
        if len({item.key for item in items}) != len(items):
            raise RemoteProtocolError("the relay lists a request twice", reason=ProtocolReason.CONTRADICTION)
        return cls(
            cursor=members.text("cursor", _MAX_CURSOR),
            items=items,
            word_wanted=members.boolean("word_wanted"),
            muted=frozenset(
                item for item in members.optional_items("muted", MAX_MEMBERS) if isinstance(item, str)
            ),
            ring_version=members.object("ring").integer("version"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mute:
    """A muted device, as the relay lists it."""

    device: str  # its name
    by: str  # the name of the companion that has muted it
    at: int  # Unix seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class PushChannel:
    """One of this companion's channels, as the relay lists it: without its address."""

    handle: str
    kind: str
    state: str  # good, stale or refused
    registered_at: int  # Unix seconds, the last time


@dataclass(frozen=True, slots=True, kw_only=True)
class PushChannels:
    """This companion's channels, and what the relay is set up for."""

    channels: tuple[PushChannel, ...]
    offers: Mapping[Kind, Mapping[str, str | list[str]]]  # what an app must know to get an address


@dataclass(frozen=True, slots=True, kw_only=True)
class Mine:
    """The account of who signed in, by the relay's word."""

    account: str | None  # its id; None before it is founded
    account_name: str


class CompanionRelay(MemberClient):
    """Makes a companion's calls to the relay."""

    _unknown = "the relay knows no companion with this key"

    # Requests

    async def inbox(self, *, cursor: str | None, wait: int, any_clock: bool = False) -> Page:
        """List all live requests for us; the relay holds the answer up to `wait` seconds while it equals that of `cursor`.

        any_clock: whether a clock that was turned is no failure, as where the call keeps a claim.
        """
        query = {} if cursor is None else {"cursor": cursor}
        with self._known():
            answer = await self._http.get(
                "/v1/inbox", wait=min(wait, MAX_WAIT), patience=PATIENCE, any_clock=any_clock, **query
            )
        return Page.parse(answer)

    def stream(self, cursor: str | None) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Ask for a stream of the inbox, once: the answer, of any status, with its body still to be read."""
        query = {} if cursor is None else {"cursor": cursor}
        return self._http.stream("/v1/inbox/stream", accept=EVENT_STREAM, query=query)

    async def claim(self, device: str, request_id: bytes, word: Word) -> int | None:
        """Claim a request: None when the claim is ours, else the version since which another companion holds it.

        word: with this companion's claim. `NotApproved` when the request has ended. Idempotent.
        """
        body = {"event": "claimed", "word": base64url(word.document)}
        try:
            # a word that is dated by another clock than the proof is no claim
            answer = await self._event(device, request_id, body, any_clock=False)
        except ProblemAnswer as problem:
            if problem.slug == "already-claimed":
                return problem.members.integer("version")
            raise
        if request_state(answer) not in (RequestState.CLAIMED, RequestState.OPENED):
            raise RemoteProtocolError(
                "the relay grants a claim and names another state", reason=ProtocolReason.CONTRADICTION
            )
        return None

    async def opened(self, device: str, request_id: bytes, *, stays: bool) -> None:
        """Report that a claimed request was opened. stays: whether we go on calling until it ends.

        `NotApproved` when the request had ended before, `TransportError` when the claim is not ours any more.
        """
        await self._event(device, request_id, {"event": "opened", "stays": stays})

    async def release(self, device: str, request_id: bytes) -> None:
        """Give a claim back. Idempotent, also for a claim that was never granted."""
        try:
            await self._event(device, request_id, {"event": "released"})
        except ProblemAnswer as problem:
            if problem.slug != "already-claimed":
                raise

    async def report(self, device: str, request_id: bytes, event: Event, reason: str | None = None) -> None:
        """Report an event of a request. reason: at most 64 of [a-z0-9-].

        `NotApproved` when the request had ended before, except by this same event (idempotent).
        """
        body = {"event": str(event)} if reason is None else {"event": str(event), "reason": reason}
        await self._event(device, request_id, body)

    async def _event(
        self, device: str, request_id: bytes, body: Mapping[str, str | bool], *, any_clock: bool = True
    ) -> Members:
        path = f"/v1/inbox/{device}/{base64url(request_id)}/events"
        try:
            return await self._http.post(path, body, any_clock=any_clock)
        except ProblemAnswer as problem:
            if problem.slug == "state-conflict":
                state = request_state(problem.members)
                if state == body["event"]:
                    return problem.members  # an earlier attempt arrived, and its answer was lost
                raise _ended(state) from problem
            if problem.slug == "not-found":
                raise NotApproved(Outcome.EXPIRED, "the relay has no such request any more") from problem
            raise

    async def give_word(self, word: Word) -> None:
        """Give a word about the newest ring, straight after catching up. It is tried once."""
        with self._known():
            await self._http.put("/v1/word", {"word": base64url(word.document)}, patience=0)

    # Muted devices

    async def mutes(self) -> tuple[Mute, ...]:
        """List the muted devices of the account."""
        with self._known():
            answer = await self._http.get("/v1/mutes")
        return tuple(
            Mute(device=each.text("device", NAME_SIZE), by=each.text("by", NAME_SIZE), at=each.integer("at"))
            for each in answer.objects("mutes", MAX_MEMBERS)
        )

    async def begin_mute(self, device: str) -> None:
        """Mute a device of the account. Idempotent."""
        with self._known():
            await self._http.put(f"/v1/mutes/{device}", {})

    async def end_mute(self, device: str) -> None:
        """End the mute of a device. Idempotent."""
        with self._known():
            await self._http.delete(f"/v1/mutes/{device}")

    # Channels

    async def channels(self) -> PushChannels:
        """List our channels, and the push services that the relay is set up for."""
        with self._known():
            answer = await self._http.get("/v1/channels")
        offers = answer.object("offers")
        return PushChannels(
            channels=tuple(
                PushChannel(
                    handle=base64url(each.octets("handle", HANDLE_SIZE)),
                    kind=each.word("kind"),
                    state=each.word("state"),
                    registered_at=each.integer("registered_at"),
                )
                for each in answer.objects("channels", _MAX_CHANNELS)
            ),
            offers={
                kind: _offer(offer) for kind in Kind if (offer := offers.optional_object(kind)) is not None
            },
        )

    async def register_channel(self, handle: bytes, address: Mapping[str, str | bool]) -> None:
        """Register a channel, or replace or confirm the one of this handle. address: of `parse_address`.

        `UsageError` for an address that the relay does not push to, and for a fifth channel.
        """
        try:
            with self._known():
                await self._http.put(f"/v1/channels/{base64url(handle)}", address)
        except ProblemAnswer as problem:
            match problem.slug:
                case "unsupported-channel":
                    raise UsageError(
                        f"the relay pushes to no such address: {problem.detail}",
                        advice="`companion-push companion channel list` shows what it is set up for",
                    ) from problem
                case "too-many-channels":
                    raise UsageError(
                        "this companion has as many channels as it may have",
                        advice="remove one: `companion-push companion channel remove HANDLE`",
                    ) from problem
                case "invalid-request":
                    raise UsageError(f"that is no push address: {problem.detail}") from problem
            raise

    async def remove_channel(self, handle: bytes) -> None:
        """Remove a channel. Idempotent."""
        with self._known():
            await self._http.delete(f"/v1/channels/{base64url(handle)}")

    async def test_channel(self, handle: str) -> PushOutcome:
        """Have the relay push to one of our channels; returns what became of it. handle: as `channels` lists it."""
        with self._known():
            answer = await self._http.post(f"/v1/channels/{handle}/test", {}, patience=0)
        try:
            return PushOutcome(answer.word("outcome"))
        except ValueError as error:
            raise RemoteProtocolError(
                "the relay names an outcome that a push has not", reason=ProtocolReason.MALFORMED_ANSWER
            ) from error

    # Enrolment

    async def found(self, code: AccountCode, ring: Ring) -> None:
        """Found an account with its code and first ring. Idempotent."""
        body = {"code": base64url(code.code), "ring": base64url(ring.document)}
        try:
            answer = await self._http.post("/v1/accounts", body)
        except ProblemAnswer as problem:
            if problem.slug == "not-found":
                raise TrustError(
                    TrustReason.INVITATION_USED,
                    "the relay knows no such account code: it was used, or is over",
                ) from problem
            raise
        if answer.text("account", MAX_LABEL) != code.account:
            raise RemoteProtocolError(
                "the relay founded another account", reason=ProtocolReason.CONTRADICTION
            )

    async def way(self) -> Way:
        """Ask where a token for this relay comes from; `UsageError` where the relay names no issuer."""
        try:
            answer = await self._http.get("/v1/accounts/sign-in")
        except ProblemAnswer as problem:
            if problem.slug == "not-found":
                raise UsageError(
                    "this relay names no OpenID Connect issuer: join with a code, or with the token of its account service"
                ) from problem
            raise
        return Way(
            issuer=answer.text("issuer", 1024), client=answer.text("client"), audience=answer.text("audience")
        )

    async def mine(self, token: str) -> Mine:
        """Ask which account who signed in has, and what it is called."""
        with _signed_in():
            answer = await self._http.post("/v1/accounts/mine", {"token": token})
        name = answer.text("account_name")
        if not is_plain(name):
            raise RemoteProtocolError(
                "the relay calls the account by what is no name", reason=ProtocolReason.MALFORMED_ANSWER
            )
        return Mine(account=answer.optional_text("account"), account_name=name)

    async def found_by_sign_in(self, token: str, ring: Ring, *, resets: bool) -> None:
        """Found the account of who signed in. resets: close the one that there is. Idempotent."""
        body = {"token": token, "ring": base64url(ring.document), "reset": resets}
        with _signed_in():
            answer = await self._http.post("/v1/accounts", body)
        if answer.text("account", MAX_LABEL) != ring.account:
            raise RemoteProtocolError(
                "the relay founded another account", reason=ProtocolReason.CONTRADICTION
            )

    async def announce(self, invitation: Invitation) -> None:
        """Announce an invitation: the relay then accepts one introduction with its ticket."""
        body = {"kind": str(invitation.kind), "expires_at": invitation.expires_at}
        with self._known():
            await self._http.put(f"/v1/invitations/{invitation.id}", body)

    async def introduction(self, invitation: Invitation) -> tuple[bytes, bytes, bytes]:
        """Wait for the introduction of a newcomer, without a timeout: body, signature and MAC."""
        answer = await self._invitation(invitation, InvitationState.OPEN)
        came = answer.object("introduction")
        return (
            came.octets("body", 1, MAX_INTRODUCTION),
            came.octets("signature", SIGNATURE_SIZE),
            came.octets("mac", MAC_SIZE),
        )

    async def send_nonce(self, record: InvitationRecord) -> None:
        """Send the inviter's nonce to the newcomer. Idempotent."""
        if record.nonce is None:
            raise LocalProtocolError("a nonce is sent to the newcomer of the record")
        body = {"nonce": base64url(record.nonce)}
        await self._http.post(f"/v1/invitations/{record.invitation.id}/nonce", body)

    async def newcomer_nonce(self, invitation: Invitation) -> bytes:
        """Wait until the newcomer reveals its nonce, 32 bytes, without a timeout."""
        answer = await self._invitation(invitation, InvitationState.ANSWERING)
        return answer.octets("nonce", NONCE_SIZE)

    async def answer(self, invitation: Invitation, ring: Ring, mac: bytes) -> bool:
        """Admit the newcomer that `ring`, the head, holds. False when another ring was appended meanwhile."""
        body = {"ring": base64url(ring.document), "mac": base64url(mac)}
        try:
            await self._http.post(f"/v1/invitations/{invitation.id}/answer", body)
        except ProblemAnswer as problem:
            if problem.slug == "ring-conflict":
                return False
            raise
        return True

    async def _invitation(self, invitation: Invitation, state: InvitationState) -> Members:
        """Wait until the invitation has left `state`, which it is in or will come to."""
        return await self._left_state(f"/v1/invitations/{invitation.id}", state, PATIENCE)


def _offer(members: Members) -> Mapping[str, str | list[str]]:
    """What an app must know, of the members that are known: the rest is of a newer relay."""
    offer: dict[str, str | list[str]] = {}
    vapid_key = members.optional_text("vapid_key")
    if vapid_key is not None:
        offer["vapid_key"] = vapid_key
    for name in ("apps", "topics"):
        listed = [item for item in members.optional_items(name, 64) if isinstance(item, str)]
        if listed:
            offer[name] = [printable(item) for item in listed]
    return offer


def account_exists() -> TrustError:
    """Make the error for a sign-in whose account is there already."""
    return TrustError(
        TrustReason.ACCOUNT_EXISTS,
        "who signed in has an account here, and a sign-in lets nobody into it",
        advice="ask for an invitation from one of its companions; without any, `companion-push companion reset` closes it and founds a new one",
    )


@contextlib.contextmanager
def _signed_in() -> Iterator[None]:
    """Translate what the relay refuses about a token."""
    try:
        yield
    except ProblemAnswer as problem:
        match problem.slug:
            case "token-refused":
                raise NotSignedIn(
                    f"the relay does not take the token of this sign-in: {problem.detail}",
                    reason=SessionReason.SIGN_IN_REFUSED,
                ) from problem
            case "sign-in-too-old":
                raise NotSignedIn(
                    "a reset needs a sign-in of the last five minutes",
                    reason=SessionReason.SIGN_IN_TOO_OLD,
                    advice="sign out at the account service, and begin again",
                ) from problem
            case "account-exists":
                raise account_exists() from problem
            case "not-allowed":
                raise TrustError(
                    TrustReason.CHANGE_NOT_ALLOWED,
                    f"the account service does not allow this: {problem.detail}",
                ) from problem
        raise


def _ended(state: RequestState) -> NotApproved | TransportError:
    """Make the error for a request that has ended."""
    match state:
        case RequestState.DECLINED:
            return NotApproved(Outcome.DECLINED, "it was declined on another companion")
        case RequestState.SUPERSEDED:
            return NotApproved(Outcome.SUPERSEDED, "a newer request of the device took its place")
        case RequestState.EXPIRED:
            return NotApproved(Outcome.EXPIRED, "it has expired")
        case RequestState.COMPLETED:
            return NotApproved(Outcome.CANCELLED, "the device has reported it as completed")
        case RequestState.CANCELLED | RequestState.FAILED:
            return NotApproved(Outcome.CANCELLED, "the device has given it up")
        case _:
            return TransportError(f"the relay does not allow this in state {state}")
