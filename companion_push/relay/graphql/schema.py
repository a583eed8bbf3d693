"""The GraphQL schema: each root field converts its arguments to the message of the HTTP contract, and runs its operation.

The members of an answer are those of the HTTP contract, in camel case. docs/reference/relay.graphql is made from here.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NewType, cast

import strawberry
from aiohttp import web
from graphql import DocumentNode, GraphQLError, GraphQLString
from strawberry.schema.config import StrawberryConfig
from strawberry.types import Info
from strawberry.types.execution import ExecutionContext

from companion_push.push.channel import Kind
from companion_push.relay import operations
from companion_push.relay.channels import ChannelState
from companion_push.relay.following import Following
from companion_push.relay.mailbox import CompanionEvent
from companion_push.relay.messages import (
    ChannelBody,
    CompanionReport,
    DeviceReport,
    LinksBody,
    RingBody,
    Submission,
    WordBody,
    body_of,
    channel_id,
    member_name,
    request_id,
)
from companion_push.relay.messages import Query as Parameters
from companion_push.relay.operations import Answer
from headless_passkey.request import DeviceEvent, RequestState

if TYPE_CHECKING:
    from companion_push.relay.app import RelayEndpoints

HIGHEST: Final = (1 << 31) - 1  # GraphQL's Int


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request: the context of its fields."""

    relay: "RelayEndpoints"
    request: web.Request  # for its network address
    name: str  # of the key that made the proof
    document: DocumentNode
    # of a subscription: is told what it follows, when the caller has been authorised; and when a new proof is due
    follows: Callable[[Following], None] | None = None
    until: float | None = None


CallInfo = Info[Caller, None]

Base64Url = NewType("Base64Url", str)
UnixTime = NewType("UnixTime", int)

_SCALARS: Final[dict[object, Any]] = {
    Base64Url: strawberry.scalar(
        name="Base64Url",
        description="Bytes, in base64url without padding.",
        serialize=GraphQLString.serialize,
        parse_value=GraphQLString.parse_value,
    ),
    UnixTime: strawberry.scalar(
        name="UnixTime",
        description="Whole seconds since 1970 by the relay's clock, in UTC. It outgrows an Int in 2038.",
        serialize=int,
    ),
}

strawberry.enum(RequestState, description="The state of a request; the last six are terminal.")
strawberry.enum(Kind, name="ChannelKind", description="The push services.")
strawberry.enum(ChannelState, description="The state of a channel.")
strawberry.enum(DeviceEvent, description="How a request ended, as its device reports it.")


@strawberry.type(description="The account's newest ring, as the relay has it.")
class RingHead:
    version: int
    hash: Base64Url


@strawberry.type(description="The claim as the relay shows it; the device verifies the word.")
class Claim:
    by: strawberry.ID
    word: Base64Url


@strawberry.type(
    description="A companion's failure: it cannot take the request, has vanished or was removed."
)
class Failure:
    by: strawberry.ID
    reason: str


@strawberry.type(description="What has become of one push for a request.")
class Notified:
    to: strawberry.ID
    channel: str = strawberry.field(
        description="Its kind, or `inbox` for a companion that was calling already."
    )
    outcome: str


@strawberry.type(description="The status of a request, for its device.")
class RequestStatus:
    id: strawberry.ID
    state: RequestState
    version: int = strawberry.field(description="Starts at 1, and grows with every change.")
    expires_at: UnixTime
    now: UnixTime
    claim: Claim | None
    ring: RingHead
    reason: str | None
    failures: list[Failure]
    notified: list[Notified]


@strawberry.type(description="A live request with an envelope for the calling companion.")
class InboxItem:
    device: strawberry.ID
    id: strawberry.ID
    state: RequestState
    version: int
    sealed: Base64Url
    submitted_at: UnixTime
    expires_at: UnixTime
    claimed_by: strawberry.ID | None
    stays: bool


@strawberry.type(
    description="All live requests with an envelope for the calling companion, and the head of its rings."
)
class Inbox:
    cursor: str = strawberry.field(description="Opaque; for the next call or subscription.")
    requests: list[InboxItem]
    word_wanted: bool = strawberry.field(description="Whether a device asks for this companion's word.")
    muted: list[strawberry.ID] = strawberry.field(description="The devices that are muted.")
    ring: RingHead


@strawberry.type(description="A device of which a companion's user has said that a request was not theirs.")
class Mute:
    device: strawberry.ID
    by: strawberry.ID
    at: UnixTime


@strawberry.type(description="A request after a companion's event.")
class RequestChange:
    state: RequestState
    version: int
    expires_at: UnixTime
    now: UnixTime


@strawberry.type(description="A companion's newest word about the rings.")
class Word:
    by: strawberry.ID
    word: Base64Url


@strawberry.type(description="Rings of the account, oldest first, and each companion's newest word.")
class Rings:
    version: int = strawberry.field(
        description="Of the head; ask again after the last ring until it is reached."
    )
    hash: Base64Url
    rings: list[Base64Url]
    words: list[Word]
    gap: bool = strawberry.field(description="The next ring is no longer kept: `rings` is the head alone.")


@strawberry.input(description="A request, sealed to one companion.")
class EnvelopeInput:
    to: strawberry.ID = strawberry.field(description="The companion's name.")
    sealed: Base64Url = strawberry.field(description="At most 3072 bytes.")


@strawberry.type(
    description="An address at which the calling companion is woken; the address itself is in no answer."
)
class Channel:
    handle: strawberry.ID
    kind: Kind
    state: ChannelState
    registered_at: UnixTime


@strawberry.type(description="What a companion needs for a subscription of Web Push.")
class WebPushOffer:
    vapid_key: Base64Url


@strawberry.type(description="The apps whose registration tokens the relay can use.")
class FcmOffer:
    apps: list[str]


@strawberry.type(description="The topics (bundle ids) whose device tokens the relay can use.")
class ApnsOffer:
    topics: list[str]


@strawberry.type(description="What the relay is set up for.")
class Offers:
    web_push: WebPushOffer | None
    fcm: FcmOffer | None
    apns: ApnsOffer | None


@strawberry.type(description="The calling companion's channels, and what the relay is set up for.")
class Channels:
    channels: list[Channel]
    offers: Offers


@strawberry.input(
    description="An address at a push service: the members of its kind, and no others. It is a secret."
)
class AddressInput:
    kind: Kind
    endpoint: str | None = field(default=None, repr=False)
    p256dh: Base64Url | None = field(default=None, repr=False)
    auth: Base64Url | None = field(default=None, repr=False)
    app: str | None = None
    topic: str | None = None
    token: str | None = field(default=None, repr=False)
    sandbox: bool | None = None


@strawberry.type
class Query:
    @strawberry.field(
        description="The status of the calling device's request; held while its version is `version`."
    )
    async def request(
        self, info: CallInfo, id: strawberry.ID, version: int | None = None, wait: int | None = None
    ) -> RequestStatus:
        caller, name = info.context, request_id(id)
        query = Parameters.of(version=version, wait=wait)
        answer = await caller.relay.hold(
            caller.request,
            caller.name,
            operations.read_request(name, query.number("version", HIGHEST)),
            topic=operations.request_topic(caller.name, name),
            wait=query.wait(),
        )
        return cast("RequestStatus", answer.body)

    @strawberry.field(
        description="What waits for the calling companion, such as when its app is opened; held while nothing of it "
        "changed since `cursor`. Reading marks pending requests as delivered."
    )
    async def inbox(self, info: CallInfo, cursor: str | None = None, wait: int | None = None) -> Inbox:
        caller, query = info.context, Parameters.of(cursor=cursor, wait=wait)
        answer = await caller.relay.hold(
            caller.request,
            caller.name,
            operations.read_inbox(query.cursor()),
            topic=operations.inbox_topic(caller.name),
            wait=query.wait(),
        )
        return cast("Inbox", answer.body)

    @strawberry.field(description="The account's rings after version `after`, at most 32.")
    async def rings(self, info: CallInfo, after: int = 0) -> Rings:
        caller = info.context
        number = Parameters.of(after=after).number("after", HIGHEST)
        return cast("Rings", (await caller.relay.rings(caller.name, number or 0)).body)

    @strawberry.field(description="The muted devices of the calling companion's account.")
    async def mutes(self, info: CallInfo) -> list[Mute]:
        return cast("list[Mute]", (await _run(info, operations.read_mutes)).body["mutes"])

    @strawberry.field(description="The calling companion's channels, and what the relay is set up for.")
    async def channels(self, info: CallInfo) -> Channels:
        body = (await _run(info, operations.read_channels(info.context.relay.channels))).body
        offers = {kind.name.lower(): body["offers"].get(kind) for kind in Kind}
        return cast("Channels", {**body, "offers": offers})


@strawberry.type
class Mutation:
    @strawberry.mutation(description="A device submits a request. The same again changes nothing.")
    async def submit_request(
        self, info: CallInfo, id: strawberry.ID, expires_in: int, envelopes: list[EnvelopeInput]
    ) -> RequestStatus:
        caller = info.context
        caller.relay.received()
        sealed = [{"to": envelope.to, "sealed": envelope.sealed} for envelope in envelopes]
        body = body_of(Submission, {"expires_in": expires_in, "envelopes": sealed})
        answer = await caller.relay.run(caller.name, caller.relay.submission(request_id(id), body))
        return cast("RequestStatus", answer.body)

    @strawberry.mutation(description="A device reports the end of its request.")
    async def report_request(
        self, info: CallInfo, id: strawberry.ID, event: DeviceEvent, reason: str | None = None
    ) -> RequestStatus:
        report = body_of(DeviceReport, {"event": event, "reason": reason})
        answer = await _run(info, operations.device_event(request_id(id), report))
        return cast("RequestStatus", answer.body)

    @strawberry.mutation(description="A companion claims a request by its signed word, before it opens it.")
    async def claim_request(
        self, info: CallInfo, device: strawberry.ID, id: strawberry.ID, word: Base64Url
    ) -> RequestChange:
        return await _tell(info, device, id, CompanionEvent.CLAIMED, word=word)

    @strawberry.mutation(
        description="The claimer has opened the request. stays: whether it goes on calling until the end."
    )
    async def open_request(
        self, info: CallInfo, device: strawberry.ID, id: strawberry.ID, stays: bool = False
    ) -> RequestChange:
        return await _tell(info, device, id, CompanionEvent.OPENED, stays=stays)

    @strawberry.mutation(description="The claimer gives its claim back.")
    async def release_request(
        self, info: CallInfo, device: strawberry.ID, id: strawberry.ID
    ) -> RequestChange:
        return await _tell(info, device, id, CompanionEvent.RELEASED)

    @strawberry.mutation(description="A companion mutes a device of its account; returns true.")
    async def begin_mute(self, info: CallInfo, device: strawberry.ID) -> bool:
        await _run(info, operations.begin_mute(member_name(device, "device")))
        return True

    @strawberry.mutation(description="A companion ends the mute of a device; returns true.")
    async def end_mute(self, info: CallInfo, device: strawberry.ID) -> bool:
        await _run(info, operations.end_mute(member_name(device, "device")))
        return True

    @strawberry.mutation(
        description="The user said no: the request ends for everybody. The reason `not-me` also mutes the device."
    )
    async def decline_request(
        self, info: CallInfo, device: strawberry.ID, id: strawberry.ID, reason: str | None = None
    ) -> RequestChange:
        return await _tell(info, device, id, CompanionEvent.DECLINED, reason=reason)

    @strawberry.mutation(description="This companion cannot take the request; others may.")
    async def fail_request(
        self, info: CallInfo, device: strawberry.ID, id: strawberry.ID, reason: str | None = None
    ) -> RequestChange:
        return await _tell(info, device, id, CompanionEvent.FAILED, reason=reason)

    @strawberry.mutation(description="A companion gives its word about a ring; returns true.")
    async def give_word(self, info: CallInfo, word: Base64Url) -> bool:
        await _run(info, operations.give_word(body_of(WordBody, {"word": word})))
        return True

    @strawberry.mutation(description="A device asks the account's companions for their words; returns true.")
    async def call_for_words(self, info: CallInfo) -> bool:
        await _run(info, operations.call_for_words)
        return True

    @strawberry.mutation(description="A member appends the ring that it signed, which extends the head.")
    async def append_ring(self, info: CallInfo, ring: Base64Url) -> RingHead:
        operation = operations.append_ring(body_of(RingBody, {"ring": ring}))
        return cast("RingHead", (await _change(info, operation)).body)

    @strawberry.mutation(description="A member hands in rings that the relay has lost.")
    async def append_rings(self, info: CallInfo, rings: list[Base64Url]) -> RingHead:
        operation = operations.append_links(body_of(LinksBody, {"rings": rings}))
        return cast("RingHead", (await _change(info, operation)).body)

    @strawberry.mutation(
        description="A companion registers an address at a push service, or confirms it; returns true."
    )
    async def register_channel(self, info: CallInfo, handle: strawberry.ID, address: AddressInput) -> bool:
        body = body_of(ChannelBody, vars(address))
        await _run(info, operations.register_channel(channel_id(handle), body, info.context.relay.channels))
        return True

    @strawberry.mutation(description="A companion removes a channel; returns true.")
    async def remove_channel(self, info: CallInfo, handle: strawberry.ID) -> bool:
        await _run(info, operations.remove_channel(channel_id(handle)))
        return True


@strawberry.type
class Subscription:
    @strawberry.subscription(
        description="The calling companion's inbox, now and after every change, from the moment a request is submitted. "
        "Nothing is sent at once when it equals that of `cursor`."
    )
    async def inbox(self, info: CallInfo, cursor: str | None = None) -> AsyncGenerator[Inbox, None]:
        caller, known = info.context, Parameters.of(cursor=cursor).cursor()
        address = caller.request.remote or ""
        with caller.relay.followed(
            caller.name, address=address, cursor=known, until=caller.until
        ) as following:
            first = await following.news(0)
            if caller.follows is not None:
                caller.follows(following)
            if first is not None:
                yield cast("Inbox", first.body)
            async for answer in following:
                yield cast("Inbox", answer.body)


async def _run(info: CallInfo, operation: operations.Operation) -> Answer:
    return await info.context.relay.run(info.context.name, operation)


async def _change(info: CallInfo, operation: operations.Operation) -> Answer:
    return await info.context.relay.change(info.context.name, operation)


async def _tell(
    info: CallInfo, device: str, name: str, event: CompanionEvent, **more: str | bool | None
) -> RequestChange:
    report = body_of(CompanionReport, {"event": event, **more})
    operation = operations.companion_event(member_name(device, "device"), request_id(name), report)
    return cast("RequestChange", (await _run(info, operation)).body)


def _member(answer: Mapping[str, Any], name: str) -> Any:
    """A member of an answer of the operations, by its name there."""
    return answer[name]


class _Schema(strawberry.Schema):
    def process_errors(
        self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None
    ) -> None:
        """Log nothing: the shell does, and an error's message may hold anything."""


def make_schema(extensions: Any = ()) -> strawberry.Schema:
    return _Schema(
        query=Query,
        mutation=Mutation,
        subscription=Subscription,
        extensions=extensions,
        config=StrawberryConfig(default_resolver=_member, scalar_map=_SCALARS),
    )
