"""The relay as an aiohttp application: mountable in an existing service, or served by `companion-push relay`.

This shell does I/O and timing. `proofs` authenticates the caller, `messages` parses the request, and `operations`
executes it; every refusal is a `Problem`. The log holds stages, counts and durations, and neither names nor ids nor
content.

    host.add_subapp("/push", make_app(RelayConfig(public_url="https://host/push", store=Path("relay.db"))))
"""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import math
import random
import time
import traceback
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from companion_push.errors import StoreBusy, StoreUnavailable, StoreUnusable
from companion_push.identity.authority import (
    AccountAuthority,
    AuthorityUnavailable,
    BuiltInAccounts,
    SignIn,
    Subject,
    TokenRefused,
)
from companion_push.identity.openid import OpenIdConnect
from companion_push.push.channel import Channel, Kind
from companion_push.relay import accounts, operations
from companion_push.relay.account_states import (
    Beside,
    SqlStates,
    StateCache,
    States,
    StateStore,
    Tries,
    Unsettled,
)
from companion_push.relay.config import RelayConfig
from companion_push.relay.following import Following
from companion_push.relay.held_requests import HeldRequests
from companion_push.relay.inbox_stream import REFUSED, stream
from companion_push.relay.mailbox import Leases, LeasesInMemory, LeasesInRecords
from companion_push.relay.messages import (
    MAX_BODY,
    AccountBody,
    Announcement,
    AnswerBody,
    ChannelBody,
    CompanionReport,
    DeviceReport,
    Founding,
    IntroductionBody,
    LinksBody,
    NonceBody,
    Query,
    RingBody,
    Submission,
    TokenBody,
    WordBody,
    channel_id,
    invitation_id,
    member_name,
    parse_body,
    request_id,
)
from companion_push.relay.nodes import PUSHES_LEFT, Nodes, WakeUp
from companion_push.relay.notifier import Notifier
from companion_push.relay.operations import Answer, Call, Operation, Who
from companion_push.relay.problems import Problem, Slug, not_found
from companion_push.relay.proofs import (
    HEADER,
    NONCE_HEADER,
    Proof,
    ProofsInMemory,
    UsedProofs,
    check_proof,
    claimed_in,
)
from companion_push.relay.public_documents import PublicDocuments
from companion_push.relay.readiness import Readiness
from companion_push.relay.stores import Store, open_store
from companion_push.relay.strangers import CALLS, RING_BYTES, Budget, Strangers
from companion_push.relay.transaction import Transaction
from companion_push.relay.unsure_writes import UnsureWrites
from companion_push.relay.webhook_sender import WebhookSender
from companion_push.serving.http_server import problem as untyped
from companion_push.serving.tracing import ERROR_TYPE, Span, Tracing, tracing
from companion_push.serving.webhook import Webhook
from companion_push.serving.webhook_client import WebhookClient
from headless_passkey.errors import SetupReason, UsageError
from headless_passkey.mends import setup_error
from headless_passkey.process.tasks import end, to_its_end, until_done
from headless_passkey.text.names import name_of
from headless_passkey.trust.account_code import AccountCode
from http_serving.log_limit import PERIOD, LogLimit
from http_serving.proofs import KnownKeys
from http_serving.rate_limit import Unit, limit_headers
from http_serving.runner import http_logger

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry

    from companion_push.relay.metrics import RelayMetrics

logger = logging.getLogger(__name__)

_LIVEZ: Final = "livez"
BODY_SECONDS: Final = 10.0  # after which an incomplete body is refused
REFUSAL_SECONDS: Final = 1.0  # before a key that has had its share is told so
_SETTLINGS: Final = 8  # times that one call may find a state unsettled
BESIDE_LOOKS: Final = 1.0  # seconds between two looks whether a command has changed the file
_HIGHEST_VERSION: Final = 1 << 32
_SHOWN: Final = web.RequestKey("relay_shown", str)  # the name of the key that the proof shows
_HELD: Final = web.RequestKey("relay_held", str)  # the same, of a proof that was verified
WAITS: Final = web.RequestKey("relay_waits", bool)  # it may be held
_SPAN: Final = web.RequestKey("relay_span", Span)
OPERATION: Final = web.RequestKey("relay_operation", str)  # what is asked for, where the path does not say it
# of 401 answers, for the header WWW-Authenticate
_ERRORS: Final = {
    Slug.USE_DPOP_NONCE: "use_dpop_nonce",
    Slug.TOKEN_REFUSED: "invalid_token",
    Slug.SIGN_IN_TOO_OLD: "insufficient_user_authentication",  # RFC 9470 §3
}
_CODE_VALID: Final = 24 * 3600  # seconds
_MAX_WHY: Final = 200  # characters of a veto
_AUTHORITY_SECONDS: Final = 15.0  # for one answer of the account authority; an issuer's keys take 10 at most
_FAILURES: Final = frozenset({400, 401, 404, 413, 415})  # statuses that cost an address
_HUNG_UP: Final = 499  # in log and metrics, as nginx has it: nobody was there to be answered

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Body = TypeVar("Body", bound=msgspec.Struct)


def make_app(
    config: RelayConfig,
    *,
    authority: AccountAuthority | None = None,
    channels: Sequence[Channel] = (),
    states: StateStore | None = None,
    registry: "CollectorRegistry | None" = None,
    tracer_provider: "TracerProvider | None" = None,
) -> web.Application:
    """Make the relay of docs/protocol/relay.md. It opens its store when the application starts.

    authority: who knows the people to whom accounts belong; by default the issuer of the configuration, or without one
    `BuiltInAccounts`, which founds accounts with one-time codes only. channels: the push services that it wakes companions
    by, at most one of a kind; it closes them when the application ends. Without any, companions poll. states: where requests
    and what else lives minutes are kept; by default in the store. registry: prometheus-client's, to which the relay adds its
    metrics; one relay for each. tracer_provider: OpenTelemetry's, for the relay's spans; by default that of the process, where
    the API is installed. Starting raises `StoreUnusable`, or `StoreUnavailable` (PostgreSQL that does not answer), of which
    `StoreBusy` is one (another relay uses the store). Making it raises `SetupError` (missing-package) when it should speak
    GraphQL, and cannot.
    """
    if authority is not None and config.openid is not None:
        raise UsageError("openid: there is another authority")
    if authority is None:
        authority = (
            BuiltInAccounts()
            if config.openid is None
            else OpenIdConnect(config.openid, clock=lambda: app[RELAY].clock())  # noqa: PLW0108  it is not there yet
        )
    traces = tracing("companion_push.relay", tracer_provider)
    middlewares = [_answer_problems] if traces is None else [_trace, _answer_problems]
    app = web.Application(middlewares=middlewares, handler_args={"logger": http_logger})
    app[RELAY] = relay = RelayEndpoints(config, channels, authority=authority, states=states, traces=traces)
    app.cleanup_ctx.append(_opened_store)
    if registry is not None:
        app.cleanup_ctx.append(relay.measure(registry).loop_lag.watched)
    app.on_shutdown.append(_let_go)
    app.add_routes(
        [
            web.get("/livez", _livez, name=_LIVEZ, allow_head=False),
            web.get("/readyz", relay.read_readiness, allow_head=False),
            web.post("/v1/accounts", relay.found_account),
            web.get("/v1/accounts/sign-in", relay.read_way, allow_head=False),
            web.post("/v1/accounts/mine", relay.read_mine),
            web.get("/v1/ring", relay.read_ring, allow_head=False),
            web.post("/v1/ring", relay.append_ring),
            web.post("/v1/ring/links", relay.append_links),
            web.put("/v1/word", relay.give_word),
            web.post("/v1/words/call", relay.call_for_words),
            web.put("/v1/invitations/{id}", relay.announce_invitation),
            web.get("/v1/invitations/{id}", relay.read_invitation, allow_head=False),
            web.delete("/v1/invitations/{id}", relay.withdraw_invitation),
            web.post("/v1/invitations/{id}/nonce", relay.send_nonce),
            web.post("/v1/invitations/{id}/answer", relay.answer_introduction),
            web.post("/v1/introductions", relay.introduce),
            web.get("/v1/introductions/{id}", relay.read_introduction, allow_head=False),
            web.post("/v1/introductions/{id}/nonce", relay.reveal),
            web.put("/v1/requests/{id}", relay.submit),
            web.get("/v1/requests/{id}", relay.read_request, allow_head=False),
            web.post("/v1/requests/{id}/events", relay.device_event),
            web.get("/v1/inbox", relay.read_inbox, allow_head=False),
            web.get("/v1/inbox/stream", relay.stream_inbox, allow_head=False),
            web.post("/v1/inbox/{device}/{id}/events", relay.companion_event),
            web.get("/v1/mutes", relay.read_mutes, allow_head=False),
            web.put("/v1/mutes/{device}", relay.begin_mute),
            web.delete("/v1/mutes/{device}", relay.end_mute),
            web.get("/v1/channels", relay.read_channels, allow_head=False),
            web.put("/v1/channels/{id}", relay.register_channel),
            web.delete("/v1/channels/{id}", relay.remove_channel),
            web.post("/v1/channels/{id}/test", relay.test_channel),
            *relay.documents.routes(),
        ]
    )
    relay.documents.features["stream"] = {"endpoint": f"{config.public_url}/v1/inbox/stream"}
    relay.documents.features["push"] = {"kinds": sorted(relay.channels)}
    way = authority.way()
    if way is not None:
        relay.documents.features["oidc"] = {
            "endpoint": f"{config.public_url}/v1/accounts/sign-in",
            **asdict(way),
        }
    if config.graphql:
        _add_graphql(app, relay, config)
    if config.admin_secret is not None:
        app.router.add_post("/admin/v1/accounts/{act}", relay.administer_account)
    return app


def _add_graphql(app: web.Application, relay: "RelayEndpoints", config: RelayConfig) -> None:
    try:
        from companion_push.relay.graphql.shell import add_graphql  # noqa: PLC0415  it needs an extra
    except ModuleNotFoundError as error:
        if error.name not in ("graphql", "strawberry"):
            raise
        raise setup_error(
            "GraphQL needs strawberry-graphql", SetupReason.MISSING_PACKAGE, extra="graphql"
        ) from error
    add_graphql(app, relay, config)
    relay.documents.features["graphql"] = {"endpoint": f"{config.public_url}/graphql"}


async def new_account(relay: web.Application, name: str, *, valid: int = _CODE_VALID) -> AccountCode | None:
    """A one-time code with which the first companion of an account joins; None when the name is taken.

    relay: of `make_app`, after it has started. name: how the operator knows the account; one that nobody has joined
    yet gets a new code, and the one before is void. valid: seconds. The code is a secret (`AccountCode.encode`).
    `UsageError` for what is no name, `StoreUnavailable` when the store does not answer.
    """
    return await relay[RELAY].new_account(name, valid=valid)


async def close_account(
    relay: web.Application, who: str | Subject, *, again: bool = False, valid: int = _CODE_VALID
) -> AccountCode | None:
    """Close an account for good: members and newcomers are told so (account-closed), and follow nobody.

    who: the name of a built-in account, or the subject whose account it is. again: it may be set up anew, with another id.
    A built-in account then gets a one-time code under the same name, which is returned, as by `new_account`; a subject founds
    it with the token that it has. Without `again`, a subject's earlier tokens found nothing any more.
    `UsageError` where there is no such account, `StoreUnavailable` when the store does not answer; nothing has changed then.
    """
    return await relay[RELAY].close_account(who, again=again, valid=valid)


async def suspend_account(relay: web.Application, who: str | Subject) -> None:
    """Suspend an account until `lift_suspension`: its live requests end, and each call of its members is answered
    ``account-suspended``. A suspended subject founds nothing, and resets nothing.

    who: as for `close_account`; a subject may be suspended before it has an account. `UsageError` where there is no such
    account.
    """
    await relay[RELAY].administer(operations.suspend_account(_who(who)))


async def set_poll_only(relay: web.Application, who: str | Subject, *, on: bool = True) -> None:
    """Let the companions of an account be woken by no push: their channels are removed, and none is taken. on=False ends that.

    who: as for `close_account`. `UsageError` where there is no such account. A reset account begins without it.
    """
    await relay[RELAY].administer(operations.set_poll_only(_who(who), on=on))


async def lift_suspension(relay: web.Application, who: str | Subject) -> None:
    """Let an account, and its subject, go on."""
    await relay[RELAY].administer(operations.lift_suspension(_who(who)))


def _who(who: str | Subject) -> Who:
    return Who(subject=who) if isinstance(who, Subject) else Who(name=name_of(who))


class RelayEndpoints:
    """The endpoints: each parses its request and runs an operation.

    `authenticate`, `run`, `hold`, `followed`, `change`, `rings` and `submission` are for other shells over the same operations.
    """

    def __init__(
        self,
        config: RelayConfig,
        channels: Sequence[Channel] = (),
        *,
        authority: AccountAuthority,
        states: StateStore | None = None,
        traces: Tracing | None = None,
    ) -> None:
        self._config = config
        self._own_states = states
        self.log_limit = LogLimit(tell=_left_out)  # while the store is away, members poll on
        self._look: Callable[[], object] | None = None  # at the servers of states beside the database
        self._leave_states: Callable[[], None] = lambda: None
        self._unusable = ""  # what it has found wrong, as was logged last
        self._states_beside = config.states is not None  # their store commits by itself
        self.traces = traces
        self._authority = authority
        self._database: Store | None = None
        self._leases: Leases  # set when the store is open
        self._state_cache = StateCache()
        self._nodes: Nodes | None = None  # of the store, when it is open
        self._missed = asyncio.Event()  # something that other processes have told may be lost
        self._pushes_left = asyncio.Event()  # another process has left some
        self._unsure = UnsureWrites(look=self._versions, tell=self._wake_everywhere)
        self._used_proofs: UsedProofs = ProofsInMemory()
        self._known_keys = KnownKeys()
        self._ring_bytes = Budget(name="ring-bytes", per_minute=RING_BYTES, unit=Unit.BYTES)
        self._calls = Budget(name="calls", per_minute=CALLS)
        self._strangers = Strangers(per_minute=config.failures_per_address)
        self._transactions: set[asyncio.Future[Answer]] = set()  # running
        self._looking_at_clock: asyncio.Future[Answer] | None = None
        self._notifier = Notifier(
            channels, run=lambda operation: self.run("", operation), clock=self.clock, traces=traces
        )
        self._followers: list[Callable[[Answer], None]] = [self._notifier.follow]
        self.webhook_sender = None if config.webhook is None else self._webhook_sender(config.webhook)
        self.metrics: RelayMetrics | None = None
        self.documents = PublicDocuments(config)
        self._readiness = Readiness(lambda: self._begin("", operations.read_store))
        self.held_requests = HeldRequests(
            per_member=config.held_per_member, per_address=config.held_per_address
        )

    def _webhook_sender(self, webhook: Webhook) -> WebhookSender:
        client = WebhookClient(webhook, clock=self.clock)
        sender = WebhookSender(client, run=lambda operation: self.run("", operation), clock=self.clock)
        self.follow(sender.follow)
        return sender

    @property
    def public_url(self) -> str:
        return self._config.public_url

    @property
    def channels(self) -> Mapping[Kind, Channel]:
        """The push services that companions can be woken by."""
        return self._notifier.channels

    # The relay itself

    def measure(self, registry: "CollectorRegistry") -> "RelayMetrics":
        """Add the relay's metrics to `registry`."""
        from companion_push.relay.metrics import RelayMetrics  # noqa: PLC0415  of an extra

        self.metrics = metrics = RelayMetrics(
            registry,
            clock=self.clock,
            held_calls=lambda: len(self.held_requests),
            transactions=lambda: len(self._transactions),
            log_bytes=lambda: 0 if self._database is None else self._database.log_bytes,
            used_proofs=lambda: len(self._used_proofs),
            pushes=lambda: len(self._notifier.in_flight),
            failing_services=lambda: sum(self._notifier.failing.values()),
            events_waiting=lambda: 0 if self.webhook_sender is None else self.webhook_sender.waiting,
        )
        self.follow(metrics.follow)
        return metrics

    async def read_readiness(self, _request: web.Request) -> web.Response:
        """Answer whether the relay can do its work: it is not shutting down, and its store answers."""
        if self.held_requests.closing:
            raise Problem(Slug.DRAINING, retry_after=1)
        await self._readiness.check()
        if self._nodes is not None and not self._nodes.wake_ups.are_heard:
            raise Problem(Slug.STORE_UNAVAILABLE, "the database is not listened to", retry_after=2)
        channels = {kind: "failing" if failing else "ok" for kind, failing in self._notifier.failing.items()}
        return json_response({"status": "ready", "channels": channels}, 200)

    # Rings and accounts

    async def found_account(self, request: web.Request) -> web.Response:
        def shown(db: Transaction, body: Founding) -> bytes | None:
            if body.code is None:
                return None
            return accounts.shown_code(db, body.secret(), self.clock())

        caller, body = await self._newcomer(request, Founding, shown)
        if body.token is None:
            return await self._act(caller, operations.found_account(body))
        sign_in = await self._sign_in(caller, body.token)
        return await self._act(caller, operations.found_by_sign_in(body, sign_in))

    async def read_way(self, request: web.Request) -> web.Response:
        """Tell a companion where it gets a token."""
        await self._caller(request)
        way = self._authority.way()
        if way is None:
            raise not_found()
        return json_response(asdict(way), 200)

    async def read_mine(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        body = await _body(request, TokenBody)
        return await self._act(caller, operations.read_mine(await self._sign_in(caller, body.token)))

    async def _sign_in(self, caller: str, token: str) -> SignIn:
        """Ask the authority who signed in."""
        try:
            async with _asking_authority():
                return await self._authority.sign_in(token, key=caller)
        except TokenRefused as refused:
            raise Problem(Slug.TOKEN_REFUSED, refused.detail) from refused

    async def read_ring(self, request: web.Request) -> web.Response:
        caller = await self._caller(request, self._ring_bytes)
        after = _query(request, "after").number("after", _HIGHEST_VERSION)
        return _response(await self.rings(caller, after or 0))

    async def rings(self, caller: str, after: int) -> Answer:
        """Read the rings after `after`, for which the caller pays."""
        await self._admit(caller, self._ring_bytes)
        answer = await self.run(caller, operations.read_ring(after))
        self._ring_bytes.count(caller, sum(map(len, answer.body["rings"])), _ticks())
        return answer

    async def append_ring(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        return _response(await self.change(caller, operations.append_ring(await _body(request, RingBody))))

    async def give_word(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        return await self._act(caller, operations.give_word(await _body(request, WordBody)))

    async def call_for_words(self, request: web.Request) -> web.Response:
        return await self._act(await self._caller(request), operations.call_for_words)

    async def append_links(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        return _response(await self.change(caller, operations.append_links(await _body(request, LinksBody))))

    async def change(self, caller: str, operation: Operation) -> Answer:
        """Change a ring, unless the authority vetoes it. It follows the head that the authority was shown, or is refused."""
        if self._authority.vetoes:
            change = (await self.run(caller, operations.preview(operation))).body["change"]
            if change is not None:
                async with _asking_authority():
                    why = await self._authority.veto(change)
                if why is not None:
                    raise Problem(Slug.NOT_ALLOWED, why[:_MAX_WHY])
        return await self.run(caller, operation)

    async def new_account(self, name: str, *, valid: int) -> AccountCode | None:
        """As the function of that name."""
        name, now = name_of(name), self.clock()
        added = await self._started.transact(
            lambda db: accounts.add_account(db, name=name, now=now, expires_at=int(now) + valid)
        )
        return self._code(name, added)

    async def close_account(self, who: str | Subject, *, again: bool, valid: int) -> AccountCode | None:
        """As the function of that name."""
        operation = operations.close_account(_who(who), again=again, valid=valid)
        added = (await self.administer(operation)).body["added"]
        return self._code(who, added) if isinstance(who, str) else None

    def _code(self, name: str, added: tuple[str, bytes] | None) -> AccountCode | None:
        """The account code for an id and its one-time secret; None where nothing was added."""
        if added is None:
            return None
        account, code = added
        return AccountCode(relay_url=self._config.public_url, account=account, account_name=name, code=code)

    async def administer_account(self, request: web.Request) -> web.Response:
        """Close, reset, suspend or lift, or end and allow pushes, for the account service, which shows its secret."""
        given = request.headers.getall(hdrs.AUTHORIZATION, [])
        known = f"Bearer {self._config.admin_secret}".encode()
        # over hashes: the time tells nothing of the length either
        digests = [hashlib.sha256(each).digest() for each in (known, "".join(given).encode(errors="replace"))]
        if not hmac.compare_digest(*digests):
            raise web.HTTPUnauthorized(headers={hdrs.WWW_AUTHENTICATE: "Bearer"})
        if self.held_requests.closing:
            raise Problem(Slug.DRAINING, retry_after=1)
        body = await _body(request, AccountBody)
        subject = None
        if body.issuer is not None and body.subject is not None:
            subject = Subject(issuer=body.issuer, id=body.subject)
        who = Who(account=body.account, name=body.name, subject=subject)
        match request.match_info["act"]:
            case "close" | "reset" as act:
                operation = operations.close_account(who, again=act == "reset", valid=_CODE_VALID)
            case "suspend":
                operation = operations.suspend_account(who)
            case "lift":
                operation = operations.lift_suspension(who)
            case "poll-only" | "push" as act:
                operation = operations.set_poll_only(who, on=act == "poll-only")
            case _:
                raise not_found()
        answer = await self.run("", operation, called=False)
        code = self._code(answer.body.get("name") or "", answer.body.get("added"))
        return json_response(
            {"account": answer.body["account"], "code": None if code is None else code.encode()},
            answer.status,
        )

    async def administer(self, operation: Operation) -> Answer:
        """Run an operation of the host. `UsageError` where there is no such account."""
        _ = self._started
        try:
            return await self.run("", operation, called=False)
        except Problem as problem:
            if problem.slug is not Slug.NOT_FOUND:
                raise
            raise UsageError("there is no such account") from problem

    @property
    def _started(self) -> Store:
        """The store, for calls of the host."""
        if self._database is None:
            raise StoreUnavailable("the relay has not been started, or has ended")
        return self._database

    # Invitations and introductions

    async def announce_invitation(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        invitation = invitation_id(request.match_info["id"])
        body = await _body(request, Announcement)
        return await self._act(caller, operations.announce_invitation(invitation, body))

    async def read_invitation(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        invitation = invitation_id(request.match_info["id"])
        query = _query(request, "state", "wait")
        return await self._hold(
            request,
            caller,
            operations.read_invitation(invitation, query.invitation_state()),
            topic=operations.invitation_topic(invitation),
            wait=query.wait(),
        )

    async def withdraw_invitation(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        return await self._act(
            caller, operations.withdraw_invitation(invitation_id(request.match_info["id"]))
        )

    async def send_nonce(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        invitation = invitation_id(request.match_info["id"])
        return await self._act(caller, operations.send_nonce(invitation, await _body(request, NonceBody)))

    async def reveal(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        invitation = invitation_id(request.match_info["id"])
        return await self._act(caller, operations.reveal(invitation, await _body(request, NonceBody)))

    async def answer_introduction(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        invitation = invitation_id(request.match_info["id"])
        body = await _body(request, AnswerBody)
        return await self._act(caller, operations.answer_introduction(invitation, body))

    async def introduce(self, request: web.Request) -> web.Response:
        def shown(db: Transaction, body: IntroductionBody) -> bytes | None:
            return accounts.shown_ticket(db, body.account, body.parse()[0], self.clock())

        caller, body = await self._newcomer(request, IntroductionBody, shown)
        return await self._act(caller, operations.introduce(body))

    async def read_introduction(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        invitation = invitation_id(request.match_info["id"])
        query = _query(request, "state", "wait")
        return await self._hold(
            request,
            caller,
            operations.read_introduction(invitation, query.invitation_state()),
            topic=operations.invitation_topic(invitation),
            wait=query.wait(),
        )

    # Requests

    async def submit(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        self.received()
        name = request_id(request.match_info["id"])
        body = await _body(request, Submission)
        return await self._act(caller, self.submission(name, body))

    def received(self) -> None:
        """Count a submission by an authenticated caller, before any other check."""
        if self.metrics is not None:
            self.metrics.received()

    def submission(self, name: str, body: Submission) -> Operation:
        """The operation that submits a request, within this relay's limits."""
        config = self._config
        return operations.submit(name, body, quota=config.quota, ladder=config.ladder, ceiling=config.ceiling)

    async def read_request(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        name = request_id(request.match_info["id"])
        query = _query(request, "version", "wait")
        return await self._hold(
            request,
            caller,
            operations.read_request(name, query.number("version", _HIGHEST_VERSION)),
            topic=operations.request_topic(caller, name),
            wait=query.wait(),
        )

    async def device_event(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        name = request_id(request.match_info["id"])
        report = await _body(request, DeviceReport)
        return await self._act(caller, operations.device_event(name, report))

    async def read_inbox(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        query = _query(request, "cursor", "wait")
        return await self._hold(
            request,
            caller,
            operations.read_inbox(query.cursor()),
            topic=operations.inbox_topic(caller),
            wait=query.wait(),
        )

    async def stream_inbox(self, request: web.Request) -> web.StreamResponse:
        caller = await self._caller(request)
        cursor = _query(request, "cursor").cursor(request.headers.getall("Last-Event-ID", ()))
        request[WAITS] = True
        with self.followed(caller, address=request.remote or "", cursor=cursor) as inbox:
            first = await inbox.news(0)
            self.answered(request, 200, None)  # the middleware hears of it in a quarter of an hour
            return await stream(request, inbox, first, headers={NONCE_HEADER: self.nonce()})

    async def companion_event(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        device = member_name(request.match_info["device"], "device")
        name = request_id(request.match_info["id"])
        report = await _body(request, CompanionReport)
        return await self._act(caller, operations.companion_event(device, name, report))

    # Muted devices

    async def read_mutes(self, request: web.Request) -> web.Response:
        return await self._act(await self._caller(request), operations.read_mutes)

    async def begin_mute(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        return await self._act(
            caller, operations.begin_mute(member_name(request.match_info["device"], "device"))
        )

    async def end_mute(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        return await self._act(
            caller, operations.end_mute(member_name(request.match_info["device"], "device"))
        )

    # Channels

    async def read_channels(self, request: web.Request) -> web.Response:
        return await self._act(await self._caller(request), operations.read_channels(self.channels))

    async def register_channel(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        handle = channel_id(request.match_info["id"])
        body = await _body(request, ChannelBody)
        return await self._act(caller, operations.register_channel(handle, body, self.channels))

    async def remove_channel(self, request: web.Request) -> web.Response:
        caller = await self._caller(request)
        return await self._act(caller, operations.remove_channel(channel_id(request.match_info["id"])))

    async def test_channel(self, request: web.Request) -> web.Response:
        """Push a test to one of the caller's channels; the answer says what became of it."""
        caller = await self._caller(request)
        order = (await self.run(caller, operations.test_channel(channel_id(request.match_info["id"])))).test
        if order is None:
            raise Problem(Slug.NOT_FOUND)
        delivery = await self._notifier.test(order)
        return await self._act(caller, operations.tested_channel(order, delivery))

    # What they share

    def clock(self) -> float:
        """The time that counts here, Unix seconds: the configuration's, or the store's."""
        if self._config.clock is not None:
            return self._config.clock()
        return time.time() if self._database is None else self._database.clock()

    def nonce(self) -> str:
        """The newest nonce for proofs (RFC 9449 §8)."""
        return self._used_proofs.nonce(self.clock())

    async def _caller(self, request: web.Request, *budgets: Budget, secret: bytes | None = None) -> str:
        """Authenticate the request by its header, as `authenticate` does."""
        # without the prefix that the host or a proxy put before it; no path of ours has /v1/ twice
        path = "/v1/" + request.rel_url.raw_path.rpartition("/v1/")[2]
        return await self.authenticate(
            request, request.headers.getall(HEADER, []), path, budgets=budgets, secret=secret
        )

    async def authenticate(
        self,
        request: web.Request,
        proofs: list[str],
        path: str,
        *,
        budgets: Collection[Budget] = (),
        secret: bytes | None = None,
    ) -> str:
        """Authenticate the request: the name of its key. The proof is used up (replay).

        path: of the request, below the public URL. budgets: of the caller, which it must not have spent. secret: the hash
        of the open ticket or code that the request shows.
        """
        if self.held_requests.closing:
            raise Problem(Slug.DRAINING, retry_after=1)
        shown = claimed_in(proofs, self._known_keys)
        if shown is not None:
            request[_SHOWN] = shown.name
            if (checked := self._used_proofs.check_nonce(shown.nonce, self.clock())) is not None:
                await checked
            await self._admit(request[_SHOWN], self._calls, *budgets)
        # before a signature is verified
        self._strangers.admit(request.remote or "", request.get(_SHOWN), secret, _ticks())

        def verified() -> Proof:
            return check_proof(
                proofs,
                method=request.method,
                url=self._config.public_url + path,
                now=self.clock(),
                known=self._known_keys,
                shown=shown,
            )

        try:
            proof = verified()
        except Problem as problem:
            if problem.slug is not Slug.PROOF_CLOCK or self._nodes is None:
                raise
            await self._look_at_clock()
            proof = verified()
        request[_HELD] = proof.name
        if (taken := self._used_proofs.take(proof, self.clock())) is not None:
            await taken
        self._calls.count(proof.name, 1, _ticks())
        return proof.name

    async def _look_at_clock(self) -> None:
        """Read the clock of a database that is shared, once for all who ask meanwhile: it may have been set since the last transaction."""
        if self._looking_at_clock is None or self._looking_at_clock.done():
            self._looking_at_clock = self._begin("", operations.read_store, called=False)
        await asyncio.shield(self._looking_at_clock)

    async def _admit(self, key: str, *budgets: Budget) -> None:
        """Refuse a key that has spent one of the budgets, after a second: who asks on at once has few answers to wait for."""
        try:
            for budget in budgets:
                budget.admit(key, _ticks())
        except Problem:
            await asyncio.sleep(REFUSAL_SECONDS)
            raise

    async def count_call(self, caller: str, calls: int = 1) -> None:
        """Count a call of an authenticated caller that came without a request of its own, or costs as much as several."""
        await self._admit(caller, self._calls)
        self._calls.count(caller, calls, _ticks())

    async def _newcomer(
        self,
        request: web.Request,
        kind: type[Body],
        shown: Callable[[Transaction, Body], bytes | None],
    ) -> tuple[str, Body]:
        """Authenticate a request that shows a ticket or code, also where strangers have spent its address's failures.

        shown: looks up the hash of the ticket or code.
        """
        if not self._strangers.is_spent(request.remote or "", _ticks()):
            return await self._caller(request), await _body(request, kind)
        body = await _body(request, kind)
        secret = await self._open_store.transact(lambda db: shown(db, body))
        return await self._caller(request, secret=secret), body

    def answered(self, request: web.Request, status: int, slug: Slug | None) -> None:
        """Count the outcome of a request with a proof, for those that come after it."""
        name = request.get(_HELD)
        if status < 400 and name is not None:
            self._strangers.succeeded(name)
        elif status in _FAILURES and slug is not Slug.USE_DPOP_NONCE:
            self._strangers.failed(request.remote or "", name, _ticks())

    async def _act(self, caller: str, operation: Operation) -> web.Response:
        return _response(await self.run(caller, operation))

    async def _hold(
        self, request: web.Request, caller: str, operation: Operation, *, topic: str, wait: int
    ) -> web.Response:
        return _response(await self.hold(request, caller, operation, topic=topic, wait=wait))

    async def hold(
        self, request: web.Request, caller: str, operation: Operation, *, topic: str, wait: int
    ) -> Answer:
        """Run the operation until it has news, at most `wait` seconds (long polling)."""
        if not wait:
            return await self.run(caller, operation)
        request[WAITS] = True
        loop = asyncio.get_running_loop()
        end = loop.time() + wait
        with self.held_requests.hold(topic=topic, member=caller, address=request.remote or "") as held:
            while True:
                held.reset()
                answer = await self.run(caller, operation)
                left = end - loop.time()
                if answer.news or held.released or left <= 0:
                    return answer
                # no call wakes a held request for what changes with time alone
                pause = min(left, max(0.01, answer.changes_at - self.clock()))
                del answer  # not to be kept while thousands wait
                self._leases.hold(caller)
                try:
                    await held.wait(pause)
                finally:
                    self._leases.let_go(caller, self.clock())

    @contextlib.contextmanager
    def followed(
        self, caller: str, *, address: str, cursor: str | None = None, until: float | None = None
    ) -> Iterator[Following]:
        """Follow the inbox of an authenticated companion on one connection, which counts as a held call while it is open.

        address: the caller's. cursor: of the answer that the caller has; None for none. until: as `proof_until` said when the
        connection began; None where it begins now. Refuses with `rate-limited` when too much is held for the address. The connection's beginning is a call of the caller, and what it is sent is none:
        the system of a phone acknowledges for an app that sleeps. A sign of life is (`Following.heard`).
        """
        was_heard = False

        def heard() -> None:
            nonlocal was_heard
            was_heard = self._leases.noted_every is not None
            self._leases.called(caller, self.clock())

        async def read(newest: str | None) -> Answer:
            nonlocal was_heard
            called, was_heard = was_heard or not inbox.has_read, False
            return await self.run(caller, operations.read_inbox(newest), called=called)

        topic = operations.inbox_topic(caller)
        with self.held_requests.hold(topic=topic, member=caller, address=address) as held:
            inbox = Following(
                read,
                held,
                among=self.held_requests,
                cursor=cursor,
                until=self.proof_until() if until is None else until,
                lease=self._config.lease,
                clock=self.clock,
                heard=heard,
            )
            yield inbox

    def proof_until(self) -> float:
        """Until when a connection that begins now may go by its proof, by the event loop's clock."""
        # those who came together do not all go together
        return _ticks() + self._config.stream_life * random.uniform(0.8, 1)  # noqa: S311

    async def run(
        self, caller: str, operation: Operation, *, called: bool = True, tries: Tries | None = None
    ) -> Answer:
        """One transaction, and the held requests it wakes. It is shielded: a client's disconnect stops neither.

        called: whether it is a call of the caller, which renews its leases. tries: of transactions that failed, which it repeats.
        """
        transaction = self._begin(caller, operation, called=called, tries=tries)
        if transaction.done():
            return transaction.result()
        if not isinstance(transaction, asyncio.Task):
            return await transaction  # who stops waiting for the disk stops nothing: see `_on_disk`
        try:
            return await asyncio.shield(transaction)
        except asyncio.CancelledError:
            transaction.add_done_callback(_unheard)
            raise

    def _begin(
        self, caller: str, operation: Operation, *, called: bool = True, tries: Tries | None = None
    ) -> "asyncio.Future[Answer]":
        """Begin a transaction, which is done before the store is closed: at once, where it has to wait for nothing."""
        began, own_states = _ticks(), self._own_states
        span = None if self.traces is None else self.traces.begin("store transaction")
        tries = Tries() if tries is None else tries
        made: list[Answer] = []  # by tries, before it is known whether that is stored

        def work(db: Transaction) -> Answer:
            if not self._states_beside:  # else what an earlier try has written stays
                made.clear()
            asked = (
                accounts.ask_membership(db, caller) if caller else None
            )  # before the time, in its round trip
            now = store.time_of(db) if self._config.clock is None else self._config.clock()
            beside = None
            if self._states_beside:
                beside = Beside(lambda account: accounts.ask_authority(db, account), tries)
            call = Call(
                db=db,
                caller=caller,
                now=now,
                leases=self._leases,
                states=States(
                    SqlStates(db) if own_states is None else own_states, now, self._state_cache, beside=beside
                ),
                kinds=self._notifier.kinds,
                in_flight=self._notifier.in_flight,
                tells_account=self.webhook_sender is not None,
                awaits=self.held_requests.awaits,
                several=self._nodes is not None,
                ask_member=asked,
            )
            try:
                answer = operations.with_pushes(call, operations.counted(call, operation(call)))
                if call.several:
                    answer = operations.among_several(call, answer, called=called)
            except Problem:
                call.states.check()
                raise
            made.append(answer)
            call.states.store()
            if self._nodes is not None and (wake := _wake_up(answer)):
                self._nodes.wake_ups.in_transaction(db, wake)
            return answer

        def committed(answer: Answer) -> None:
            if called:
                self._leases.called(caller, self.clock())
            self._wake(answer)

        done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        try:
            store = self._open_store
            answer = None if store.is_remote else store.now(work)
        except StoreBusy:
            answer = None
        except Exception as error:  # noqa: BLE001  whoever waits for the future gets it
            self._transacted(began, span, error)
            done.set_exception(error)
            return done
        if answer is None:
            rest = self._wait_for_turn(store, work, committed, made, tries)
            return self._kept(asyncio.ensure_future(self._rest(rest, began, span)))
        if answer.durable and not store.is_on_disk:
            # before others are woken, and without a task of its own: it is what a submit and a claim wait for
            on_disk = self._until_on_disk(store, answer, began, span)
            committed(answer)
            return on_disk
        committed(answer)
        self._transacted(began, span)
        self._tell(answer)
        done.set_result(answer)
        return done

    def _kept(self, transaction: "asyncio.Future[Answer]") -> "asyncio.Future[Answer]":
        """Keep a transaction until it is done."""
        self._transactions.add(transaction)
        transaction.add_done_callback(self._transactions.discard)
        return transaction

    async def _wait_for_turn(
        self,
        store: Store,
        work: Callable[[Transaction], Answer],
        committed: Callable[[Answer], None],
        made: Sequence[Answer],
        tries: Tries,
    ) -> Answer:
        """Run `work` where it may have to wait, and may be run again. made: has its answers that may be stored."""
        for _ in range(_SETTLINGS):
            try:
                answer = await store.transact(
                    work, committed=committed, durable=lambda answer: answer.durable
                )
                break
            except Unsettled as behind:
                await self._settle(behind.account)
            except StoreUnavailable as error:
                is_undone = isinstance(error, StoreBusy) and not self._states_beside
                if made and store.is_remote and not is_undone:
                    self._may_be_stored(made, tries)
                raise
        else:
            raise StoreBusy("who may do what in the account changes again and again")
        if self._states_beside and answer.unsettled is not None:
            await self._settle(answer.unsettled)
        return answer

    async def _settle(self, account: str) -> None:
        """Bring an account's state up to what the database says, in a transaction of its own."""
        await self.run("", operations.settle(account), called=False)

    def _until_on_disk(
        self, store: Store, answer: Answer, began: float, span: Span | None
    ) -> "asyncio.Future[Answer]":
        """Wait for the disk with an answer. began: by the event loop's clock."""
        on_disk = store.on_disk(answer)
        on_disk.add_done_callback(partial(self._on_disk, store, answer, began, span))
        return self._kept(on_disk)

    def _on_disk(
        self, store: Store, answer: Answer, began: float, span: Span | None, on_disk: "asyncio.Future[Answer]"
    ) -> None:
        """End a transaction that waited for the disk, before whoever waits for it goes on."""
        if on_disk.cancelled():  # who waited has gone
            self._until_on_disk(store, answer, began, span).add_done_callback(_unheard)
            return
        error = on_disk.exception()
        self._transacted(began, span, error)
        if error is None:
            self._tell(answer)

    async def _rest(self, rest: Coroutine[Any, Any, Answer], began: float, span: Span | None) -> Answer:
        """What of a transaction waits for something. began: by the event loop's clock."""
        try:
            answer = await rest
        except BaseException as error:
            self._transacted(began, span, error)
            raise
        self._transacted(began, span)
        self._tell(answer)
        return answer

    def _transacted(self, began: float, span: Span | None, error: BaseException | None = None) -> None:
        if self.metrics is not None:
            self.metrics.transacted(_ticks() - began)
        if span is not None:
            if isinstance(error, Problem):  # which the caller is told
                span.note(ERROR_TYPE, error.slug)
            elif error is not None:
                span.fail(type(error).__name__)
            span.end()

    def _tell(self, answer: Answer) -> None:
        """Tell whoever follows the relay."""
        for follower in self._followers:
            try:
                follower(answer)
            except Exception as error:  # noqa: BLE001  what follows the relay never fails a call of it
                logger.error("a follower failed: %s", place_of(error))  # noqa: TRY400

    def _wake(self, answer: Answer) -> None:
        """Wake whoever waits for what an operation has changed, before that is on the disk.

        They read no sooner than that by a power cut, after which the operation's caller, who was not answered, asks again.
        """
        self.held_requests.wake(answer.topics)
        self.held_requests.wake_members(answer.told)
        if self._nodes is not None and (wake := _wake_up(answer)):
            self._nodes.wake_ups.committed(wake)

    def _may_be_stored(self, answers: Collection[Answer], tries: Tries) -> None:
        """Wake whoever waits for a change of which the store has not said whether it is there: its caller asks again, which
        changes nothing then, and would wake nobody.

        answers: of tries. The database tells the other processes when it commits; of a state beside it that was written this process does.
        """
        for answer in answers:
            self._wake(answer)
        if self._nodes is None:
            return
        self._nodes.wake_ups.hear_ours()
        whose: dict[str, int | None] = {**tries.unsure, **dict.fromkeys(tries.written)}
        for wake in filter(None, map(_wake_up, answers)):
            self._unsure.note(whose, wake)

    async def _versions(self, whose: Collection[str]) -> dict[str, int]:
        """The versions of accounts' states beside the database, of those that can be had."""
        states = self._own_states
        assert states is not None  # noqa: S101  for mypy

        def looked() -> dict[str, int]:
            found = {}
            for account in whose:
                with contextlib.suppress(StoreUnavailable):
                    found[account] = states.load(account).version
            return found

        return await to_its_end(asyncio.to_thread(looked))

    async def _wake_everywhere(self, wake: WakeUp) -> None:
        """Wake whoever waits here, and at the other processes, by a transaction of its own."""
        nodes = self._nodes
        assert nodes is not None  # noqa: S101  for mypy
        self._woken(wake)
        await self._open_store.transact(lambda db: nodes.wake_ups.in_transaction(db, wake))

    def _woken(self, wake: WakeUp) -> None:
        """Wake whoever waits here for what another process has changed."""
        self.held_requests.wake(wake.topics)
        self.held_requests.wake_members(wake.members)
        if PUSHES_LEFT in wake.topics:
            self._pushes_left.set()

    def follow(self, follower: Callable[[Answer], None]) -> None:
        """Call `follower` with each operation's answer, on the event loop, after its change is durable and before the caller is answered.

        It must not wait. It sees what the operation has changed (`Answer.changed`), never one that was rolled back.
        """
        self._followers.append(follower)

    @property
    def _open_store(self) -> Store:
        if self._database is None:
            raise Problem(Slug.STORE_UNAVAILABLE, retry_after=1)
        return self._database

    # Lifetime

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open the store, and sweep it regularly while it is open."""
        async with (
            self._opened_states(),
            open_store(self._config.store, serves=True) as database,
            self._authority.opened(),
        ):
            self._database = database
            if database.nodes is None:
                self._leases = LeasesInMemory(self._config.lease, began=self.clock())
            else:
                await self._share(database.nodes)
            tasks = [asyncio.create_task(self._sweep())]
            if self._nodes is not None:
                tasks += [asyncio.create_task(self._keep_pushes()), asyncio.create_task(self._read_again())]
                if self._states_beside:
                    tasks.append(asyncio.create_task(self._unsure.run()))
            else:
                tasks.append(asyncio.create_task(self._look_beside()))
            self._notifier.start()
            if self.webhook_sender is not None:
                self.webhook_sender.start()
            try:
                yield
            finally:
                self.leave()
                try:
                    await end(*tasks)
                    if self.webhook_sender is not None:
                        await self.webhook_sender.close()
                    await self._notifier.close()
                    if self._nodes is not None and self._notifier.in_flight:
                        await self._let_pushes_go()
                finally:
                    try:
                        await until_done(*self._transactions)
                        await self._say_goodbye()
                    finally:
                        self._database = None
                        self.log_limit.end()

    def leave(self) -> None:
        """Wait for no name servers any more, of the store and of what is beside it: the relay ends."""
        self._leave_states()
        if self._database is not None:
            self._database.leave()

    @contextlib.asynccontextmanager
    async def _opened_states(self) -> AsyncIterator[None]:
        """Open the account states beside the database, where they are there."""
        if self._config.states is None:
            yield
            return
        from companion_push.relay.redis_states import open_redis  # noqa: PLC0415  it needs an extra

        async with open_redis(self._config.states) as states:
            self._own_states, self._look, self._leave_states = states, states.look, states.leave
            yield

    async def _share(self, nodes: Nodes) -> None:
        """Take part in what the processes of this relay share."""
        self._nodes = nodes
        self._leases = LeasesInRecords(self._config.lease)
        self._used_proofs = nodes.used_proofs
        # whose states are beside the database, which alone tells the others, may be killed between the two commits
        gone = self._missed.set if self._states_beside else _nothing
        nodes.wake_ups.follow(self._woken, self._missed.set, gone)
        await self._renew_leases()

    async def _read_again(self) -> None:
        """Let every held call read again whenever something may have been missed, as while the database was away."""
        while True:
            await self._missed.wait()
            self._missed.clear()
            try:
                await self._renew_leases()
            except Exception as error:  # noqa: BLE001  they read all the same
                logger.warning("leases could not be renewed: %s", type(error).__name__)
            self.held_requests.wake_all()

    async def _look_beside(self) -> None:
        """Wake whoever waits in an account that a command closes beside the relay: a file tells nobody that it was written to."""
        is_new = False
        while True:
            await asyncio.sleep(BESIDE_LOOKS)
            try:
                is_new |= self._open_store.others_wrote()
                if is_new:
                    await self.run("", operations.closed_beside, called=False)
                    is_new = False
            except StoreUnavailable as error:
                logger.warning("what was changed beside the relay could not be looked for: %s", error)
            except Exception as error:  # noqa: BLE001  as with the sweep
                logger.error("what was changed beside the relay could not be looked for: %s", place_of(error))  # noqa: TRY400

    async def _renew_leases(self) -> None:
        """Renew the leases of all claims where nobody has served for a while: no holder could call."""
        if not (await self.run("", operations.was_away)).body["away"]:
            return
        await self._in_portions(operations.renew_leases, operations.renew_leases_of)

    async def _in_portions(
        self, work: Callable[..., Operation], of_account: Callable[[str], Operation]
    ) -> tuple[int, bool]:
        """Do what is to be done to all accounts, in portions, each of them short for the event loop's sake; returns how many
        requests it has changed, and whether more is to be deleted than a portion may.

        Of a store beside the database some accounts may not be had, as while a slot is moved: then each account of the portion
        has a transaction of its own, and these are left out, so that the others do not wait for them.
        """
        changed, after, first, more = 0, None, True, False
        left_out: list[StoreUnavailable] = []
        while first or after is not None:
            tries = Tries()
            try:
                answer = await self.run("", work(after), tries=tries)
            except StoreUnavailable as error:
                if not self._states_beside or isinstance(error, StoreBusy):
                    raise
                answer = await self.run("", work(after, alone=True))
                # with those that it had written before it failed: what has changed of them is not stored yet
                for account in sorted({*tries.written, *answer.body["accounts"]}):
                    try:
                        changed += (await self.run("", of_account(account), tries=tries)).body["changed"]
                    except StoreUnavailable as refused:
                        left_out.append(refused)
            changed, after, first = changed + answer.body["changed"], answer.body["next"], False
            more = more or answer.body["more"]
        if left_out:
            logger.warning("%d accounts could not be looked at: %s", len(left_out), left_out[0])
        return changed, more

    async def _keep_pushes(self) -> None:
        """Keep this process' pushes regularly, and take up those of processes that were killed; at once those that are left to it."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(operations.PUSH_LOOKS):
                    await self._pushes_left.wait()
            self._pushes_left.clear()
            try:
                await self._keep_pushes_once()
            except StoreUnavailable as error:
                logger.warning("pushes could not be looked for: %s", error)
            except Exception as error:  # noqa: BLE001  as with the sweep
                logger.error("pushes could not be looked for: %s", place_of(error))  # noqa: TRY400

    async def _keep_pushes_once(self) -> None:
        try:
            await self.run("", operations.keep_pushes)
        except StoreUnavailable as error:
            if not self._states_beside or isinstance(error, StoreBusy):
                raise
            await self.run("", partial(operations.keep_pushes, apart=True))

    async def _let_pushes_go(self) -> None:
        try:
            await self.run("", operations.let_pushes_go)
        except (StoreUnavailable, Problem) as error:  # the others take them up a little later
            logger.warning("pushes could not be left to others: %s", error)

    async def _say_goodbye(self) -> None:
        """Tell the others that nothing which they were not told is left, where that is so."""
        if self._nodes is None or len(self._unsure):
            return
        try:
            await self._nodes.wake_ups.leave()
        except StoreUnavailable as error:  # their held calls read again
            logger.debug("the others could not be told of the end: %s", error)

    async def _sweep(self) -> None:
        """Sweep the store regularly; a failure is logged and does not end the loop."""
        while True:
            try:
                changed, more = await self._in_portions(operations.sweep, operations.sweep_of)
                for _ in range(operations.MORE_OF_EXPIRED):
                    if not more:
                        break
                    more = (await self.run("", operations.sweep_expired)).body["more"]
                self._leases.forget(self.clock())
                await self.look_at_states()
                logger.debug("swept: %d requests changed, %d held", changed, len(self.held_requests))
            except StoreUnavailable as error:
                logger.warning("the store could not be swept: %s", error)
            except Exception as error:  # noqa: BLE001  one that is a bug must not end the sweeping
                logger.error("the store could not be swept: %s", place_of(error))  # noqa: TRY400
            await asyncio.sleep(operations.SWEEP_SECONDS)

    async def look_at_states(self) -> None:
        """Log it when the servers of the account states are set up to lose them, once, and once when they no longer are.

        A relay that is running goes on with them, with which none would start: what is there is not lost yet.
        """
        if self._look is None:
            return
        try:
            await to_its_end(asyncio.to_thread(self._look))
            unusable = ""
        except StoreUnusable as error:
            unusable = str(error)
        except StoreUnavailable:
            return  # whoever asks them says so
        if unusable and unusable != self._unusable:
            logger.error("%s", unusable)
        if self._unusable and not unusable:
            logger.warning("the servers of the account states are set up as is needed again")
        self._unusable = unusable


_NO_STORE: Final = "calls were refused since the store does not answer"
RELAY: Final = web.AppKey("relay", RelayEndpoints)


@contextlib.asynccontextmanager
async def _asking_authority() -> AsyncIterator[None]:
    """Ask the account authority: whatever it is, it does not keep a caller waiting for ever."""
    try:
        async with asyncio.timeout(_AUTHORITY_SECONDS):
            yield
    except (AuthorityUnavailable, TimeoutError) as error:
        away = error if isinstance(error, AuthorityUnavailable) else AuthorityUnavailable("no answer in time")
        logger.warning("the account authority cannot be asked: %s", away.detail)
        raise Problem(Slug.AUTHORITY_UNAVAILABLE, retry_after=away.retry_after) from error


def _left_out(kind: str, count: int) -> None:
    logger.error("%d more %s within %d s", count, kind, PERIOD)


def _wake_up(answer: Answer) -> WakeUp:
    return WakeUp(topics=answer.topics, members=answer.told)


def _nothing() -> None:
    """Nobody reads again."""


def _ticks() -> float:
    """Seconds for budgets that are kept in memory: they must not stand still when somebody sets the clock back."""
    return asyncio.get_running_loop().time()


def _unheard(transaction: asyncio.Future[Answer]) -> None:
    """Log the error of a transaction whose client has disconnected."""
    error = None if transaction.cancelled() else transaction.exception()
    if isinstance(error, Exception) and not isinstance(error, Problem):
        logger.error("%s", error if isinstance(error, StoreUnavailable) else place_of(error))


async def _opened_store(app: web.Application) -> AsyncIterator[None]:
    mounted_at = app.router[_LIVEZ].url_for().raw_path.removesuffix("/livez")
    public_url = app[RELAY].public_url
    if not public_url.endswith(mounted_at):
        logger.warning(
            "mounted at %s, and the public URL %s ends otherwise: a proxy has to make one into the other",
            mounted_at,
            public_url,
        )
    async with app[RELAY].opened():
        yield


async def _let_go(app: web.Application) -> None:
    relay = app[RELAY]
    logger.info("closing: %d held requests are answered now", len(relay.held_requests))
    relay.held_requests.close()
    relay.leave()


async def _livez(_request: web.Request) -> web.Response:
    """Answer that the process is alive; the store is not asked."""
    return json_response({"status": "ok"}, 200)


@web.middleware
async def _trace(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Make a span of each request; `_tell` tells it the answer."""
    traces, resource = request.app[RELAY].traces, request.match_info.route.resource
    assert traces is not None  # noqa: S101  for mypy
    with traces.request(request.method, None if resource is None else resource.canonical) as span:
        request[_SPAN] = span
        return await handler(request)


@web.middleware
async def _answer_problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every failure into a problem document, and log one line an answer."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    problem: Problem | None = None
    try:
        response = await handler(request)
    except Problem as refusal:
        problem = refusal
        response = problem_response(refusal)
    except web.HTTPNotFound:
        problem = Problem(Slug.NOT_FOUND)
        response = problem_response(problem)
    except web.HTTPException as error:  # for instance a wrong method: about:blank (RFC 9457 §4.2.1)
        response = untyped(error.status)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        if hdrs.WWW_AUTHENTICATE in error.headers:
            response.headers[hdrs.WWW_AUTHENTICATE] = error.headers[hdrs.WWW_AUTHENTICATE]
    except StoreUnavailable as error:
        if request.app[RELAY].log_limit.allows(_NO_STORE):
            logger.error("%s", error)  # noqa: TRY400  the message says it all
        problem = Problem(Slug.STORE_UNAVAILABLE, retry_after=2)
        response = problem_response(problem)
    except Exception as error:  # noqa: BLE001  the edge of the application
        logger.error("%s", place_of(error))  # noqa: TRY400
        response = untyped(500)
    except asyncio.CancelledError:  # who asked has hung up, or the server does not wait for the answer
        _tell(request, _HUNG_UP, request.get(REFUSED), loop.time() - start, at_once=False)
        raise
    problem = request.get(REFUSED, problem)
    if (
        HEADER in request.headers and response.status != 101
    ):  # whose calls were counted each when it was answered
        if not response.prepared:
            response.headers[NONCE_HEADER] = request.app[RELAY].nonce()
        status, slug = (response.status, None) if problem is None else (problem.status, problem.slug)
        request.app[RELAY].answered(request, status, slug)
    at_once = WAITS not in request and not response.prepared
    _tell(request, response.status, problem, loop.time() - start, at_once=at_once)
    return response


def _tell(
    request: web.Request, status: int, problem: Problem | None, seconds: float, *, at_once: bool
) -> None:
    """Count and log one answer. at_once: whether the call was not willing to wait."""
    endpoint = _endpoint(request)
    metrics = request.app[RELAY].metrics
    if metrics is not None:
        metrics.answered(endpoint, status, problem, seconds if at_once else None)
    outcome = "hung-up" if status == _HUNG_UP else "ok"
    if problem is not None:
        outcome = str(problem.slug)
    span = request.get(_SPAN)
    if span is not None:
        _note(span, request, status, problem)
    milliseconds = math.ceil(seconds * 1000)
    fields = {"endpoint": endpoint, "status": status, "outcome": outcome, "milliseconds": milliseconds}
    if problem is not None and problem.policy is not None:
        fields["limit"] = problem.policy.name
    line = "%s: %d %s in %d ms"
    logger.info(line, endpoint, status, outcome, milliseconds, extra={"fields": fields})


def _note(span: Span, request: web.Request, status: int, problem: Problem | None) -> None:
    """Note an answer in the span of its request."""
    if OPERATION in request:
        span.note("companion_push.operation", request[OPERATION])
    if WAITS in request:
        span.note("companion_push.held", True)
    if status == _HUNG_UP:
        span.note(ERROR_TYPE, "hung-up")
    else:
        span.answered(status, None if problem is None else problem.slug)


def _endpoint(request: web.Request) -> str:
    """Method and route of a request: of these there are only so many, whatever is asked."""
    method = request.method if request.method in ("GET", "PUT", "POST", "DELETE") else "other"
    resource = request.match_info.route.resource
    path = resource.canonical if resource is not None else "elsewhere"
    return " ".join([method, path, *([request[OPERATION]] if OPERATION in request else [])])


def place_of(error: Exception) -> str:
    """Type and place of an error, without its message, which may hold anything."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__} at {Path(place.filename).name}:{place.lineno}"


async def _body(request: web.Request, kind: type[Body]) -> Body:
    return parse_body(await read_body(request), kind)


async def read_body(request: web.Request) -> bytes:
    """Read the body. A slow one is refused, and so is a compressed one."""
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise web.HTTPUnsupportedMediaType
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read(request)
    except TimeoutError as error:
        raise Problem(Slug.INVALID_REQUEST, "the body did not come in time") from error
    except (web.RequestPayloadError, HttpProcessingError, ConnectionError) as error:
        logger.debug("a body could not be read: %s", type(error).__name__)
        raise Problem(Slug.INVALID_REQUEST, "the body does not come as its headers say") from error


async def _read(request: web.Request) -> bytes:
    """Read at most `MAX_BODY` bytes: aiohttp's own limit is the host's, for all applications mounted in it."""
    if not request.can_read_body:  # no body, or a middleware of the host has read it
        data = await request.read()
    else:
        body = bytearray()
        while len(body) <= MAX_BODY and (chunk := await request.content.readany()):
            body += chunk
        data = bytes(body)
    if len(data) > MAX_BODY:
        raise Problem(Slug.PAYLOAD_TOO_LARGE, limit=MAX_BODY)
    return data


def _query(request: web.Request, *allowed: str) -> Query:
    return Query(dict(request.query), len(request.query), *allowed)


def _response(answer: Answer) -> web.Response:
    return json_response(answer.body, answer.status)


def problem_response(problem: Problem) -> web.Response:
    response = json_response(problem.body(), problem.status, content_type="application/problem+json")
    if problem.retry_after is not None:
        response.headers.update(limit_headers(problem.policy, problem.retry_after))
    if problem.status == 401:
        error = _ERRORS.get(problem.slug, "invalid_dpop_proof")
        response.headers["WWW-Authenticate"] = f'DPoP algs="ES256", error="{error}"'
    return response


def json_response(body: object, status: int, content_type: str = "application/json") -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body),
        status=status,
        content_type=content_type,
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
    )
