"""A relay on real HTTP in this process, and the people who call it with real proofs."""

import asyncio
import contextlib
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from opentelemetry.trace import TracerProvider
from prometheus_client import CollectorRegistry

from companion_push.identity.authority import AccountAuthority
from companion_push.identity.settings import OpenIdSettings
from companion_push.push.channel import Channel
from companion_push.relay.account_states import StateStore
from companion_push.relay.accounts import add_account
from companion_push.relay.app import RELAY, make_app
from companion_push.relay.config import RelayConfig
from companion_push.relay.following import Following
from companion_push.relay.ladder import Ladder
from companion_push.relay.limits import Quota, Rate
from companion_push.relay.redis_place import RedisPlace
from companion_push.relay.store_place import PostgresUri, StorePlace
from companion_push.relay.stores import open_store
from companion_push.serving.http_server import Runner
from headless_passkey.net.proof import NONCE_HEADER, PROOF_HEADER, make_proof
from headless_passkey.text.base64url import from_base64url
from headless_passkey.trust.account_code import AccountCode
from headless_passkey.trust.ring import Ring
from headless_passkey.trust.word import Claim, Word
from http_serving.connections import ConnectionLimits
from program_parts.base64url import base64url
from tests.relay.front import Front
from tests.relay.stores import place_of, states_of
from tests.trust.people import Person, companion, device, found, grow

PROBLEM = "urn:headless-passkey:problem:"
HELD_PER_MEMBER = 4  # by default
NO_LIMITS = Quota(pending=1000, rates=(), account_rates=())
NO_PAUSES = Ladder(device=(), account=())
SEALED = base64url(b"sealed bytes that only look sealed")


class Clock:
    """The real time, and as much later as a test wants it."""

    def __init__(self, ahead: float = 0) -> None:
        self.ahead = ahead

    def __call__(self) -> float:
        return time.time() + self.ahead


@dataclass(frozen=True)
class Reply:
    status: int
    body: Any
    headers: Mapping[str, str]

    @property
    def problem(self) -> str | None:
        """The slug, when the reply is a problem of ours."""
        if self.headers.get("Content-Type") != "application/problem+json":
            return None
        assert self.body["status"] == self.status
        return str(self.body["type"]).removeprefix(PROBLEM)


@dataclass(frozen=True)
class Caller:
    """One key holder, who talks to one relay."""

    person: Person
    session: aiohttp.ClientSession
    url: str
    clock: Clock
    newest: Callable[[], str] | None = (
        None  # the nonce of a relay in this process; else what answers give is kept
    )
    kept: dict[str, str] = field(default_factory=dict)
    at: str | None = None  # where calls go, if not to the URL: one of several relays behind it

    @property
    def name(self) -> str:
        return self.person.name

    async def get(self, path: str) -> Reply:
        return await self.call("GET", path)

    async def put(self, path: str, body: object) -> Reply:
        return await self.call("PUT", path, body)

    async def post(self, path: str, body: object) -> Reply:
        return await self.call("POST", path, body)

    async def call(
        self, method: str, path: str, body: object = None, *, proofs: list[str] | None = None
    ) -> Reply:
        """One request. proofs: the values of the header ``DPoP``; by default one that holds, with the newest nonce."""
        reply = await self._send(method, path, body, [self.proof(method, path)] if proofs is None else proofs)
        if proofs is None and reply.problem == "use-dpop-nonce":
            reply = await self._send(method, path, body, [self.proof(method, path)])
        return reply

    async def _send(self, method: str, path: str, body: object, proofs: list[str]) -> Reply:
        headers = [(PROOF_HEADER, proof) for proof in proofs]
        data = {"data": body} if isinstance(body, bytes) else {"json": body} if body is not None else {}
        async with self.session.request(
            method, (self.at or self.url) + path, headers=headers, **data
        ) as response:
            if NONCE_HEADER in response.headers:
                self.kept["nonce"] = response.headers[NONCE_HEADER]
            is_endless = response.content_type == "text/event-stream"
            read = None if is_endless else await response.json(content_type=None)
            return Reply(response.status, read, response.headers)

    def proof(self, method: str, path: str) -> str:
        """A proof with the newest nonce of the relay that is known."""
        nonce = self.newest() if self.newest is not None else self.kept.get("nonce")
        url, now = self.url + path, self.clock()
        return make_proof(self.person.key, method=method, url=url, now=now, nonce=nonce)

    # What devices and companions do all day

    async def submit(self, *to: "Caller", name: str | None = None, expires_in: int = 300) -> Reply:
        envelopes = [{"to": recipient.name, "sealed": SEALED} for recipient in to]
        body = {"expires_in": expires_in, "envelopes": envelopes}
        return await self.put(f"/v1/requests/{name or fresh_id()}", body)

    async def tell(self, name: str, event: str, reason: str | None = None) -> Reply:
        """A device's event."""
        return await self.post(f"/v1/requests/{name}/events", {"event": event, "reason": reason})

    async def act(
        self, device: "Caller", name: str, event: str, reason: str | None = None, **more: object
    ) -> Reply:
        """A companion's event; a claim is over what `submit` sends, by the newest ring."""
        body = {"event": event, "reason": reason} | more
        if event == "claimed" and "word" not in body:
            body["word"] = await self.claim(device, name)
        return await self.post(f"/v1/inbox/{device.name}/{name}/events", body)

    async def claim(self, owner: "Caller", name: str, **changes: object) -> str:
        """A word that claims a request of `owner`. changes: fields of the claim."""
        return self._claim(await self.get("/v1/ring"), owner, name, **changes)

    def _claim(self, reply: Reply, owner: "Caller", name: str, **changes: object) -> str:
        """reply: to the question for the ring."""
        document = from_base64url(reply.body["rings"][-1]) if reply.status == 200 else b""
        ring = Ring.parse_kept(document) if document else found(companion())
        values: dict[str, Any] = {
            "device": owner.name,
            "request_id": from_base64url(name),
            "sealed": from_base64url(SEALED),
        }
        claim = Claim.of(**(values | changes))
        return base64url(Word.give(self.person.key, ring=ring, now=self.clock(), claim=claim).document)

    async def claims(self, owner: "Caller", item: Mapping[str, Any], **changes: object) -> Reply:
        """Claim an item of the inbox over the bytes that it came with. Where the ring cannot be read, that is the reply."""
        ring = await self.get("/v1/ring")
        if ring.problem == "store-unavailable":
            return ring
        changes = {"sealed": from_base64url(item["sealed"])} | changes
        word = self._claim(ring, owner, item["id"], **changes)
        return await self.act(owner, item["id"], "claimed", word=word)

    async def inbox(self) -> list[dict[str, Any]]:
        reply = await self.get("/v1/inbox")
        assert reply.status == 200
        return list(reply.body["requests"])

    async def status(self, name: str) -> dict[str, Any]:
        reply = await self.get(f"/v1/requests/{name}")
        assert reply.status == 200
        return dict(reply.body)

    async def claimer(self, name: str) -> str | None:
        """The companion that the relay names as the holder of the claim."""
        return claimer(await self.status(name))


def claimer(status: Mapping[str, Any]) -> str | None:
    """The companion that holds the claim, by the relay's status."""
    claim = status.get("claim")
    return None if claim is None else str(claim["by"])


async def all_held(caller: Caller, cursor: str, *, wait: int) -> set[asyncio.Task[Reply]]:
    """As many waiting calls as a relay with its default limits holds of one member, each of them held by now.

    One more has been sent, and was what let the relay answer one: so they have come, however slow the way is.
    """
    path = f"/v1/inbox?cursor={cursor}&wait={wait}"
    calls = [asyncio.ensure_future(caller.get(path)) for _ in range(HELD_PER_MEMBER + 1)]
    _, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    assert len(waiting) == HELD_PER_MEMBER
    return waiting


class Relay:
    """A relay that is being tested."""

    def __init__(
        self,
        app: web.Application,
        url: str,
        session: aiohttp.ClientSession,
        store: Path,
        clock: Clock,
        *,
        place: StorePlace | None = None,
        listens_at: str | None = None,
    ) -> None:
        self.listens_at = listens_at or url
        self.held_requests = app[RELAY].held_requests
        self.app = app
        self._relay = app[RELAY]
        self.url = url
        self.session = session
        self.store, self.place = store, place_of(store) if place is None else place
        self.clock = clock

    def is_held(self, member: str) -> bool:
        """Whether a call of `member` counts as held."""
        mine = self.held_requests._by_member.get(member, {})
        return any(held._waiter is not None for held in mine)

    def followed(
        self, member: Caller, *, cursor: str | None = None
    ) -> contextlib.AbstractContextManager[Following]:
        """What a connection of `member` follows, without the connection."""
        return self._relay.followed(member.name, address="127.0.0.1", cursor=cursor)

    def caller(self, person: Person) -> Caller:
        return Caller(person, self.session, self.url, self.clock, self._relay.nonce, at=self.listens_at)

    async def account_code(self, name: str) -> tuple[str, bytes]:
        """A new account's id and one-time code, as `companion-push account add` makes them."""
        async with open_store(self.place) as database:
            now = self.clock()
            added = await database.transact(
                lambda db: add_account(db, name=name, now=now, expires_at=int(now) + 3600)
            )
        assert added is not None
        return added

    async def account_line(self, name: str) -> str:
        """The account code of a new account, as its first companion gets it."""
        account, code = await self.account_code(name)
        return AccountCode(relay_url=self.url, account=account, account_name=name, code=code).encode()

    async def household(self, name: str = "alice", *, companions: int = 2, devices: int = 1) -> "Household":
        """A founded account with so many members."""
        account, code = await self.account_code(name)
        phones = [companion(f"phone {number}") for number in range(companions)]
        frames = [device(f"frame {number}") for number in range(devices)]
        first = self.caller(phones[0])
        ring = found(first.person, account=account, account_name=name, now=self.clock())
        reply = await first.post("/v1/accounts", {"code": base64url(code), "ring": base64url(ring.document)})
        assert reply.status == 201, reply
        household = Household(
            account=account,
            ring=ring,
            companions=[self.caller(person) for person in phones],
            devices=[self.caller(person) for person in frames],
        )
        if len(phones) + len(frames) > 1:
            await household.append(*phones, *frames)
        return household


@dataclass
class Household:
    """An account and its members."""

    account: str
    ring: Ring
    companions: list[Caller]
    devices: list[Caller]

    async def append(self, *members: Person) -> Ring:
        """The next ring, with exactly `members`, signed and appended by the first companion."""
        first = self.companions[0]
        ring = grow(self.ring, first.person, *members, now=first.clock())
        reply = await first.post("/v1/ring", {"ring": base64url(ring.document)})
        assert reply.status == 201, reply
        self.ring = ring
        return ring


@contextlib.asynccontextmanager
async def running_relay(
    store: Path,
    *,
    place: StorePlace | None = None,
    quota: Quota = NO_LIMITS,
    ladder: Ladder = NO_PAUSES,
    ceiling: int = 300,
    lease: int = 60,
    stream_life: int = 900,
    held_per_member: int = 4,
    held_per_address: int = 256,
    failures_per_address: int = 0,
    idle: float = 30,
    cancels: bool = True,
    ahead: float = 0,
    port: int = 0,
    channels: Sequence[Channel] = (),
    authority: AccountAuthority | None = None,
    openid: OpenIdSettings | None = None,
    admin_secret: str | None = None,
    states: StateStore | RedisPlace | None = None,
    registry: CollectorRegistry | None = None,
    tracer_provider: TracerProvider | None = None,
    front: Front | None = None,
    url: str | None = None,
    **settings: Any,
) -> AsyncIterator[Relay]:
    """A relay on loopback. Its clock may be moved, and begins `ahead` seconds ahead. place: of its store, by default of `store`.

    states: where account states are, by default in the store. cancels: whether who hangs up ends its handler. front: a proxy, by whose URL callers call the relay. url: the public one, of several
    relays. settings: others of
    `RelayConfig`.
    """
    clock = Clock(ahead)
    if states is None and (place is None or isinstance(place, PostgresUri)):
        states = states_of(store)
    listening = socket.create_server(("127.0.0.1", port))
    own_port = listening.getsockname()[1]
    listens_at = f"http://127.0.0.1:{own_port}"
    url = front.begins_at(own_port) if front is not None else url or listens_at
    config = RelayConfig(
        public_url=url,
        store=place_of(store) if place is None else place,
        states=states if isinstance(states, RedisPlace) else None,
        quota=quota,
        ladder=ladder,
        ceiling=ceiling,
        lease=lease,
        stream_life=stream_life,
        held_per_member=held_per_member,
        held_per_address=held_per_address,
        failures_per_address=failures_per_address,
        openid=openid,
        admin_secret=admin_secret,
        **{"clock": clock, **settings},
    )
    app = make_app(
        config,
        authority=authority,
        channels=channels,
        states=None if isinstance(states, RedisPlace) else states,
        registry=registry,
        tracer_provider=tracer_provider,
    )
    runner = Runner(
        app, handler_cancellation=cancels, limits=ConnectionLimits(head=idle, idle=idle), shutdown_timeout=1
    )
    try:
        await runner.setup()
        await web.SockSite(runner, listening).start()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            at = url if front is not None else listens_at
            yield Relay(app, url, session, store, clock, place=config.store, listens_at=at)
    finally:
        await runner.cleanup()
        listening.close()


def fresh_id() -> str:
    return base64url(secrets.token_bytes(16))


def rates(count: int, seconds: float) -> Quota:
    return Quota(pending=1000, rates=(Rate(count=count, seconds=seconds),), account_rates=())
