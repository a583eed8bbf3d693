"""A session in use, at the real relying party: what is sent where, when tokens are renewed, and how it ends."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from headless_passkey.errors import (
    HeadlessPasskeyError,
    NotSignedIn,
    RemoteProtocolError,
    SessionReason,
    SetupError,
    TransportError,
    TransportReason,
    TrustError,
    TrustReason,
    UsageError,
)
from headless_passkey.net.base_url import BaseUrl
from headless_passkey.net.proven_http import ProvenHttp, open_session
from headless_passkey.rp import session, session_store
from headless_passkey.rp.conduit import OpenedSession
from headless_passkey.rp.key_store import KeyStore
from headless_passkey.rp.session import MAX_BODY, Session
from headless_passkey.rp.session_store import KeptSession, SessionStore
from headless_passkey.text.base64url import from_base64url
from headless_passkey.text.members import answer_members
from headless_passkey.trust.signing import SoftwareSigningKey, thumbprint
from relying_party.config import Config
from relying_party.core.proofs import Proof, ProofsInMemory
from relying_party.core.sessions import LATE_SECONDS, Lifetimes
from relying_party.errors import UseDpopNonce
from relying_party.http.app import make_app
from relying_party.http.request import STATE
from tests.device.test_proof import claims_of
from tests.ports import reserved_port
from tests.rp.authenticator_double import Passkey, create, get
from tests.rp.clients import Clock, make_config

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Party:
    """A relying party on loopback, and a device that has signed in at it."""

    url: str
    config: Config
    state: Path
    http: aiohttp.ClientSession
    clock: Clock
    key: SoftwareSigningKey  # of the device for this origin
    passkey: Passkey | None = None
    seen: list[str] = field(default_factory=list)  # requests, as METHOD path
    before: Callable[[web.Request], Awaitable[web.StreamResponse | None]] | None = None
    after: Callable[[web.Request, web.StreamResponse], Awaitable[web.StreamResponse]] | None = None

    @property
    def store(self) -> SessionStore:
        return SessionStore(self.state)

    @property
    def kept(self) -> KeptSession:
        kept = self.store.read(self.url)
        assert kept is not None
        return kept

    def session(self, **how: Any) -> Session:
        return Session.load(self.state, self.url, http=self.http, clock=self.clock, **how)

    async def sign_in(self, *, told: tuple[str, ...] = (), name: str = "ada") -> KeptSession:
        """A new session, kept as a sign-in keeps it; the phone's part is played by a double."""
        party = ProvenHttp(self.http, self.url, self.key, clock=self.clock)
        kind = "registration" if self.passkey is None else "authentication"
        body = {"user_name": name} if self.passkey is None else {}
        begun = await party.post(f"/webauthn/{kind}/options", body)
        if self.passkey is None:
            self.passkey, response = create(begun.mapping("publicKey"), self.url)
        else:
            response = get(self.passkey, begun.mapping("publicKey"), self.url)
        answer = await party.post(
            f"/webauthn/{kind}/result", {"ceremony": begun.text("ceremony"), "response": response}
        )
        kept = KeptSession(
            relying_party=self.url,
            opened=OpenedSession.parse(answer),
            key_name=thumbprint(self.key.public_key),
            told=told,
            received_at=int(self.clock()),
        )
        self.store.write(kept)
        self.seen.clear()
        return kept

    async def status_of(self, kept: KeptSession) -> str:
        """What the relying party says to these tokens: ok, or the refusal's slug."""
        try:
            await ProvenHttp(self.http, self.url, self.key, clock=self.clock).call(
                "GET", "/session", access_token=kept.opened.token
            )
        except RemoteProtocolError as error:
            return str(error.reason)
        return "ok"


@asynccontextmanager
async def a_party(folder: Path, **changes: Any) -> AsyncIterator[Party]:
    url, clock = f"http://localhost:{reserved_port()}", Clock()
    config = make_config(
        folder / "rp.sqlite",
        rp_id="localhost",
        web_origins=(url,),
        device_origins=(),
        public_url=url,
        **changes,
    )
    app = make_app(config, clock=clock)
    async with open_session(None) as http:
        key = await KeyStore(folder / "state").key(url)
        party = Party(url=url, config=config, state=folder / "state", http=http, clock=clock, key=key)

        @web.middleware
        async def watch(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            if lacks_nonce(request, app, clock):
                return await handler(request)  # the demand; what is watched is the request that meets it
            party.seen.append(f"{request.method} {request.path}")
            early = None if party.before is None else await party.before(request)
            response = await handler(request) if early is None else early
            return response if party.after is None else await party.after(request, response)

        app.middlewares.insert(0, watch)
        async with TestServer(app, host="localhost", port=int(url.rpartition(":")[2])):
            yield party


def lacks_nonce(request: web.Request, app: web.Application, clock: Clock) -> bool:
    """Whether the proof of a request has no recent nonce of the relying party."""
    memory = app[STATE].used_proofs
    assert isinstance(memory, ProofsInMemory)
    memory.nonce(now=clock())
    _, claims, _ = request.headers["DPoP"].split(".")
    nonce = json.loads(from_base64url(claims)).get("nonce")
    try:
        memory._step.check(Proof(key_thumbprint="", id="", nonce=nonce), memory._key)
    except UseDpopNonce:
        return True
    return False


@pytest.fixture
async def party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Party]:
    async with a_party(tmp_path) as running:
        yield running


@dataclass
class Service:
    """A service that takes whatever it is sent, and remembers it."""

    url: str
    seen: list[web.Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def a_service(handler: Handler | None = None) -> AsyncIterator[Service]:
    app = web.Application(client_max_size=2 * MAX_BODY)
    service = Service("")

    async def handle(request: web.Request) -> web.StreamResponse:
        service.seen.append(request)
        service.bodies.append(await request.read())
        return web.json_response({"fine": True}) if handler is None else await handler(request)

    app.router.add_route("*", "/{path:.*}", handle)
    async with TestServer(app) as server:
        service.url = str(server.make_url("/")).rstrip("/")
        yield service


def saying(status: int, body: bytes = b"", **headers: str) -> Handler:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers=headers)

    return handle


# What is sent


async def test_a_request_carries_the_token_and_a_proof_of_the_key(party: Party) -> None:
    async with a_service() as service:
        kept = await party.sign_in(told=(service.url,))
        answer = await party.session().fetch(f"{service.url}/a%2Fb/ä?x=1 2#fragment")
        assert (answer.status, answer.json()) == (200, {"fine": True})
    (request,) = service.seen
    assert request.headers["Authorization"] == f"DPoP {kept.opened.token}"
    assert request.rel_url.raw_path == "/a%2Fb/%C3%A4"
    assert request.headers["Accept"] == "*/*"
    proof = claims_of(request.headers["DPoP"], party.key)
    assert (proof["htm"], proof["htu"]) == ("GET", f"{service.url}/a%2Fb/%C3%A4")
    assert "ath" in proof


async def test_method_body_and_headers_are_the_callers(party: Party) -> None:
    async with a_service() as service:
        await party.sign_in(told=(service.url,))
        await party.session().fetch(
            f"{service.url}/x", method="PUT", data=b"\0\xff", headers={"content-type": "text/x", "X-A": "b"}
        )
    (request,) = service.seen
    assert (request.method, service.bodies) == ("PUT", [b"\0\xff"])
    assert request.headers["X-A"] == "b"
    assert request.headers.getall("Content-Type") == ["text/x"]
    assert claims_of(request.headers["DPoP"], party.key)["htm"] == "PUT"


@pytest.mark.parametrize("status", [200, 204, 304, 400, 403, 404, 409, 418, 500, 503])
async def test_any_answer_is_the_callers_and_nothing_is_repeated(party: Party, status: int) -> None:
    async with a_service(saying(status, b"" if status in (204, 304) else b"body")) as service:
        await party.sign_in(told=(service.url,))
        answer = await party.session().fetch(service.url)
        assert answer.status == status
        assert len(service.seen) == 1
    assert party.seen == []


# Where the token goes


@pytest.mark.threat("T13")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_takes_the_token_along(party: Party, status: int) -> None:
    async with a_service() as thief, a_service(saying(status, Location=thief.url)) as service:
        await party.sign_in(told=(service.url, thief.url))
        answer = await party.session().fetch(service.url)
        assert (answer.status, answer.headers["location"]) == (status, thief.url)
        assert thief.seen == []


@pytest.mark.threat("T13")
async def test_the_token_goes_to_no_other_origin(party: Party) -> None:
    async with a_service() as service:
        await party.sign_in(told=("https://told.example",))
        port = service.url.rpartition(":")[2]
        for url in (
            service.url,
            f"http://localhost:{port}",
            party.url.replace("http:", "https:"),
            party.url.replace("localhost", "127.0.0.1"),
            "https://told.example:8443/",
            "https://evil.told.example/",
            "https://told.example.evil.example/",
        ):
            with pytest.raises(TrustError) as refused:
                await party.session().fetch(url)
            assert refused.value.reason is TrustReason.NOT_ITS_AUDIENCE, url
        assert service.seen == []
        assert (await party.session().fetch(service.url, audience=(service.url,))).status == 200
        with pytest.raises(TrustError):
            await party.session().fetch(service.url)
    assert party.seen == []


@pytest.mark.threat("T13")
@pytest.mark.parametrize(
    "url",
    [
        "http://told.example/",
        "ftp://told.example/",
        "//told.example/",
        "told.example",
        "",
        "https://ada:secret@told.example/",
        "https://told.example\\@evil.example/",
        "https://evil.example\\.told.example/",
        "https://told.example\t.evil.example/",
        "https://told.example:0/",
        "file:///etc/passwd",
    ],
    ids=[f"case-{number}" for number in range(11)],
)
async def test_what_is_no_address_to_send_a_token_to_is_refused(party: Party, url: str) -> None:
    await party.sign_in(told=("https://told.example",))
    with pytest.raises(UsageError):
        await party.session().fetch(url)


@pytest.mark.threat("T13")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Authorization", "Bearer x"),
        ("dpop", "x"),
        ("Host", "evil.example"),
        ("Content-Length", "5"),
        ("Transfer-Encoding", "chunked"),
        ("Cookie", "a=b"),
        ("Accept-Encoding", "gzip"),
        ("X-A", "a\r\nHost: evil.example"),
        ("X-A", "a\nb"),
        ("X-A", "ä"),
        ("X A", "b"),
        ("X:A", "b"),
        ("", "b"),
        ("X-A", "b" * 4097),
    ],
    ids=[f"case-{number}" for number in range(14)],
)
async def test_a_header_that_would_change_what_is_proved_is_refused(
    party: Party, name: str, value: str
) -> None:
    await party.sign_in()
    with pytest.raises(UsageError):
        await party.session().fetch(f"{party.url}/session", headers={name: value})
    assert party.seen == []


@pytest.mark.parametrize("method", ["get", "GE T", "", "CONNECT", "TRACE", "GET\r\n", "X" * 33])
async def test_a_method_is_a_word_in_capitals(party: Party, method: str) -> None:
    await party.sign_in()
    with pytest.raises(UsageError):
        await party.session().fetch(f"{party.url}/session", method=method)


# Bounds


async def test_an_answer_is_bounded_in_size(party: Party) -> None:
    async with a_service(saying(200, b"x" * 1001)) as service:
        await party.sign_in(told=(service.url,))
        assert len((await party.session().fetch(service.url, limit=1001)).body) == 1001
        with pytest.raises(RemoteProtocolError, match="more than 1000 bytes"):
            await party.session().fetch(service.url, limit=1000)


async def test_what_is_sent_is_bounded_in_size(party: Party) -> None:
    await party.sign_in()
    with pytest.raises(UsageError):
        await party.session().fetch(f"{party.url}/session", method="POST", data=bytes(MAX_BODY + 1))


async def test_an_answer_is_bounded_in_time(party: Party) -> None:
    over = asyncio.Event()

    async def hold(_: web.Request) -> web.Response:
        await over.wait()
        return web.Response()

    async with a_service(hold) as service:
        await party.sign_in(told=(service.url,))
        with pytest.raises(TransportError, match="did not answer in time"):
            await party.session().fetch(service.url, timeout=0.1)
        over.set()


async def test_what_was_not_asked_for_compressed_is_refused(party: Party) -> None:
    handler = saying(200, b"x", **{"Content-Encoding": "gzip"})
    async with a_service(handler) as service:
        await party.sign_in(told=(service.url,))
        with pytest.raises(RemoteProtocolError, match="compressed"):
            await party.session().fetch(service.url)


async def test_a_service_that_is_away_is_a_transport_error(party: Party) -> None:
    url = f"http://127.0.0.1:{reserved_port()}"
    await party.sign_in(told=(url,))
    with pytest.raises(TransportError) as failed:
        await party.session().fetch(url)
    assert failed.value.reason is TransportReason.UNREACHABLE


async def test_a_clock_that_is_wrong_is_named_and_not_taken_for_a_session_that_is_over(party: Party) -> None:
    body = json.dumps(
        {"type": "urn:headless-passkey:problem:proof-clock", "status": 401, "now": 1_800_000_100}
    )
    challenge = {
        "WWW-Authenticate": 'DPoP error="invalid_dpop_proof"',
        "Content-Type": "application/problem+json",
    }
    async with a_service(saying(401, body.encode(), **challenge)) as service:
        await party.sign_in(told=(service.url,))
        with pytest.raises(TrustError, match="100 s behind") as refused:
            await party.session().fetch(service.url)
        assert refused.value.reason is TrustReason.CLOCK_SKEW
    assert party.seen == []


@pytest.mark.threat("T5")
@pytest.mark.parametrize("due", [False, True], ids=["as it is", "after a refresh"])
async def test_a_device_whose_clock_is_turned_signs_out(party: Party, *, due: bool) -> None:
    kept = await party.sign_in()
    if due:
        party.clock.now = kept.opened.expires_at + 1
    turned = party.clock.now + 600
    with pytest.raises(TrustError, match="600 s ahead"):
        await Session.load(party.state, party.url, http=party.http, clock=lambda: turned).fetch(party.url)
    await Session.load(party.state, party.url, http=party.http, clock=lambda: turned).sign_out()
    assert party.store.read(party.url) is None
    party.store.write(kept)
    with pytest.raises(NotSignedIn):
        await party.session().refresh()


# Refreshing


async def test_a_token_near_its_end_is_refreshed_first_and_kept_before_it_is_used(party: Party) -> None:
    old = await party.sign_in()
    on_disk: list[str] = []

    async def look(request: web.Request) -> None:
        if request.path == "/session":
            on_disk.append(party.kept.opened.token)
            assert request.headers["Authorization"] == f"DPoP {on_disk[-1]}"

    party.before = look
    party.clock.now = old.opened.expires_at - 61
    assert (await party.session().fetch(f"{party.url}/session")).status == 200
    assert party.seen == ["GET /session"]
    party.clock.now += 1
    assert (await party.session().fetch(f"{party.url}/session")).status == 200
    assert party.seen[1:] == ["POST /session/refresh", "GET /session"]
    assert on_disk == [old.opened.token, party.kept.opened.token]
    assert party.kept.opened.refresh_token != old.opened.refresh_token
    assert party.kept.opened.expires_at == int(party.clock.now) + 12 * 3600


async def test_a_token_that_lasts_for_seconds_is_not_refreshed_at_every_use(tmp_path: Path) -> None:
    async with a_party(tmp_path, lifetimes=Lifetimes(token=20)) as party:
        await party.sign_in()
        for _ in range(3):
            await party.session().fetch(f"{party.url}/session")
        assert party.seen == ["GET /session"] * 3


async def test_a_token_that_ended_long_ago_is_refreshed(party: Party) -> None:
    await party.sign_in()
    party.clock.now += 20 * 24 * 3600
    assert (await party.session().fetch(f"{party.url}/session")).status == 200


async def test_a_refresh_on_demand_renews_and_says_nothing_secret(party: Party) -> None:
    old = await party.sign_in()
    session = party.session()
    await session.refresh()
    assert party.kept.opened.token != old.opened.token
    shown = json.dumps(session.to_json()) + repr(session)
    assert party.kept.opened.token not in shown
    assert (session.user_name, session.path.exists()) == ("ada", True)


@pytest.mark.parametrize("challenge", ['DPoP error="invalid_token"', "DPoP", ""])
async def test_a_token_that_a_service_refuses_is_renewed_once(party: Party, challenge: str) -> None:
    async with a_service(saying(401, b"no", **{"WWW-Authenticate": challenge})) as service:
        await party.sign_in(told=(service.url,))
        party.clock.now += session.FRESH
        answer = await party.session().fetch(service.url)
        assert (answer.status, answer.body) == (401, b"no")
        assert len({request.headers["Authorization"] for request in service.seen}) == 2
    assert party.seen == ["POST /session/refresh"]


async def test_a_service_that_refuses_every_token_takes_no_refresh_from_the_others(party: Party) -> None:
    async with a_service(saying(401, b"no", **{"WWW-Authenticate": 'DPoP error="invalid_token"'})) as service:
        await party.sign_in(told=(service.url,))
        for _ in range(240):  # an hour, with a request every 15 seconds
            party.clock.now += 15
            assert (await party.session().fetch(service.url)).status == 401
    assert party.seen.count("POST /session/refresh") == 3600 / session.FRESH
    await party.session().refresh()


async def test_a_service_that_refuses_the_new_token_of_a_session_that_has_ended_shows_its_end(
    party: Party,
) -> None:
    async with a_service(saying(401, b"no", **{"WWW-Authenticate": 'DPoP error="invalid_token"'})) as service:
        kept = await party.sign_in(told=(service.url,))
        await ProvenHttp(party.http, party.url, party.key, clock=party.clock).call(
            "DELETE", "/session", access_token=kept.opened.token
        )
        with pytest.raises(NotSignedIn) as refused:
            await party.session().fetch(service.url)
    assert refused.value.reason is SessionReason.SESSION_OVER
    assert party.store.all() == []


async def test_a_new_token_that_the_relying_party_itself_refuses_is_replaced(party: Party) -> None:
    kept = await party.sign_in()
    await party.session().refresh()
    party.store.write(replace(kept, opened=replace(party.kept.opened, token="A" * 43)))
    assert (await party.session().fetch(f"{party.url}/session")).status == 200


async def test_a_clock_that_is_far_ahead_costs_one_refresh(party: Party) -> None:
    await party.sign_in()

    def turned() -> float:
        return party.clock.now + 86_400

    for _ in range(100):
        with pytest.raises(TrustError) as refused:
            await Session.load(party.state, party.url, http=party.http, clock=turned).fetch(f"{party.url}/me")
        assert refused.value.reason is TrustReason.CLOCK_SKEW
    assert party.kept.opened.expires_at < party.kept.received_at
    # twice: the proof is made again with the relying party's clock
    assert party.seen.count("POST /session/refresh") == 2
    # right again, the token is used until it is refused
    party.clock.now += 12 * 3600
    assert (await party.session().fetch(f"{party.url}/session")).status == 200
    assert party.seen[-3:] == ["GET /session", "POST /session/refresh", "GET /session"]


@pytest.mark.parametrize(
    "error", ["invalid_dpop_proof", "insufficient_user_authentication", "use_dpop_nonce"]
)
async def test_a_refusal_that_new_tokens_would_not_mend_costs_none(party: Party, error: str) -> None:
    async with a_service(
        saying(401, b"", **{"WWW-Authenticate": f'DPoP algs="ES256", error="{error}"'})
    ) as service:
        await party.sign_in(told=(service.url,))
        assert (await party.session().fetch(service.url)).status == 401
        assert len(service.seen) == 1
    assert party.seen == []


async def test_two_that_find_the_token_ended_refresh_it_once(party: Party) -> None:
    await party.sign_in()
    party.clock.now += 13 * 3600
    sessions = [party.session() for _ in range(4)]
    answers = await asyncio.gather(*(one.fetch(f"{party.url}/session") for one in sessions))
    assert [answer.status for answer in answers] == [200] * 4
    assert party.seen.count("POST /session/refresh") == 1


async def test_a_token_that_another_process_has_replaced_is_picked_up(party: Party) -> None:
    await party.sign_in()
    slow = party.session()
    await party.session().refresh()
    assert (await slow.fetch(f"{party.url}/session")).status == 200
    assert party.seen == ["POST /session/refresh", "GET /session", "GET /session"]


async def test_a_relying_party_that_is_away_does_not_keep_a_good_token_from_being_used(
    party: Party, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PATIENCE", 0)

    async def away(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=503) if request.path == "/session/refresh" else None

    old = await party.sign_in()
    party.before = away
    party.clock.now = old.opened.expires_at - 30
    assert (await party.session().fetch(f"{party.url}/session")).status == 200
    party.clock.now = old.opened.expires_at
    with pytest.raises(TransportError):
        await party.session().fetch(f"{party.url}/session")
    assert party.kept.opened == old.opened


# Answers that are lost


@pytest.mark.parametrize("where", ["on-the-way", "before-the-write", "while-writing"])
async def test_a_refresh_whose_answer_is_lost_is_asked_for_again(
    party: Party, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The process dies, or the answer does; the next one presents the same refresh token, days later."""
    old = await party.sign_in()
    monkeypatch.setattr(session, "PATIENCE", 0)
    if where == "on-the-way":

        async def drop(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
            if request.transport is not None and request.path == "/session/refresh":
                request.transport.abort()
            return response

        party.after = drop
    else:
        place, name, error = (
            (session_store, "write_private", TransportError("killed"))
            if where == "before-the-write"
            else (os, "fsync", OSError(28, "No space left on device"))
        )

        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(place, name, fail)
    with pytest.raises(SetupError if where == "while-writing" else TransportError):
        await party.session().refresh()
    assert "POST /session/refresh" in party.seen
    monkeypatch.undo()
    party.after = None
    assert party.kept.opened == old.opened
    assert sorted(path.name for path in party.state.iterdir() if not path.name.endswith(".lock")) == [
        KeyStore(party.state).path(party.url).name,
        party.store.path(party.url).name,
    ]
    party.clock.now += 3 * 24 * 3600
    assert (await party.session().fetch(f"{party.url}/session")).status == 200
    await party.session().refresh()
    assert (await party.session().fetch(f"{party.url}/session")).status == 200


async def test_a_refresh_that_is_cancelled_leaves_a_session_that_works(party: Party) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def hold(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        if request.path == "/session/refresh":
            asked.set()
            await go_on.wait()
        return response

    old = await party.sign_in()
    party.after = hold
    refreshing = asyncio.create_task(party.session().refresh())
    await asked.wait()
    refreshing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await refreshing
    go_on.set()
    assert party.kept.opened == old.opened
    party.after = None
    await party.session().refresh()
    assert (await party.session().fetch(f"{party.url}/session")).status == 200


# The end


async def test_a_session_that_was_ended_elsewhere_is_over_and_forgotten(party: Party) -> None:
    kept = await party.sign_in()
    await ProvenHttp(party.http, party.url, party.key, clock=party.clock).call(
        "DELETE", "/session", access_token=kept.opened.token
    )
    with pytest.raises(NotSignedIn) as over:
        await party.session().fetch(f"{party.url}/session")
    assert over.value.reason is SessionReason.SESSION_OVER
    assert party.store.read(party.url) is None
    with pytest.raises(NotSignedIn) as none:
        party.session()
    assert none.value.reason is SessionReason.NO_SESSION


async def test_a_session_ends_with_its_time(party: Party) -> None:
    await party.sign_in()
    party.clock.now += 31 * 24 * 3600
    with pytest.raises(NotSignedIn):
        await party.session().fetch(f"{party.url}/session")
    assert party.store.read(party.url) is None


@pytest.mark.threat("T5")
async def test_a_refresh_token_that_a_thief_has_used_ends_the_session_and_says_so(party: Party) -> None:
    """The thief has a copy of the state directory, key and all."""
    stolen = await party.sign_in()
    shutil.copytree(party.state, party.state.parent / "copy")
    thief = Session(SessionStore(party.state.parent / "copy"), stolen, http=party.http, clock=party.clock)
    await thief.refresh()
    assert (await thief.fetch(f"{party.url}/session")).status == 200
    party.clock.now += LATE_SECONDS + 1
    with pytest.raises(TrustError) as reused:
        await party.session().fetch(f"{party.url}/session")
    assert reused.value.reason is TrustReason.SESSION_REUSED
    assert "a copy of its key" in str(reused.value)
    assert party.store.read(party.url) is None
    with pytest.raises(NotSignedIn):
        await thief.fetch(f"{party.url}/session")


async def test_within_the_minute_for_late_copies_it_says_to_try_again(
    party: Party, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PATIENCE", 0)
    stolen = await party.sign_in()
    shutil.copytree(party.state, party.state.parent / "copy")
    thief = Session(SessionStore(party.state.parent / "copy"), stolen, http=party.http, clock=party.clock)
    await thief.refresh()
    await thief.fetch(f"{party.url}/session")
    with pytest.raises(TransportError, match="a moment ago"):
        await party.session().fetch(f"{party.url}/session")
    assert party.kept.opened == stolen.opened


async def test_signing_out_ends_the_session_at_the_relying_party_and_here(party: Party) -> None:
    kept = await party.sign_in()
    assert await party.status_of(kept) == "ok"
    await party.session().sign_out()
    assert await party.status_of(kept) == "not-signed-in"
    assert party.store.read(party.url) is None


async def test_signing_out_with_a_token_that_has_ended_ends_the_session_too(party: Party) -> None:
    await party.sign_in()
    party.clock.now += 13 * 3600
    await party.session().sign_out()
    assert party.seen == ["POST /session/refresh", "DELETE /session"]
    assert party.store.read(party.url) is None


async def test_signing_out_after_a_refresh_whose_answer_was_lost_ends_the_session(
    party: Party, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PATIENCE", 0)

    async def lose(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        if request.path == "/session/refresh" and request.transport is not None:
            request.transport.close()
        return response

    kept = await party.sign_in()
    party.after = lose
    with pytest.raises(TransportError):
        await party.session().refresh()
    party.after = None
    party.seen.clear()
    await party.session().sign_out()
    assert party.seen == ["DELETE /session", "POST /session/refresh", "DELETE /session"]
    assert party.store.read(party.url) is None
    party.store.write(kept)
    with pytest.raises(NotSignedIn):
        await party.session().refresh()


async def test_signing_out_with_an_ended_token_by_a_clock_that_is_behind_ends_the_session(
    party: Party,
) -> None:
    kept = await party.sign_in()
    party.clock.now = kept.opened.expires_at + 60
    behind = party.clock.now - 7200
    await Session.load(party.state, party.url, http=party.http, clock=lambda: behind).sign_out()
    assert party.store.read(party.url) is None
    party.store.write(kept)
    with pytest.raises(NotSignedIn):
        await party.session().refresh()


async def test_signing_out_of_what_is_over_is_fine(party: Party) -> None:
    kept = await party.sign_in()
    await ProvenHttp(party.http, party.url, party.key, clock=party.clock).call(
        "DELETE", "/session", access_token=kept.opened.token
    )
    await party.session().sign_out()
    assert party.store.read(party.url) is None


async def test_a_relying_party_that_cannot_be_told_keeps_the_session_here_unless_it_is_forgotten_anyway(
    party: Party, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PATIENCE", 0)

    async def away(_: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    await party.sign_in()
    party.before = away
    with pytest.raises(TransportError):
        await party.session().sign_out()
    assert party.store.read(party.url) is not None
    await party.session().sign_out(anyway=True)
    assert party.store.read(party.url) is None


class InHardware:
    """Keys that are not in files."""

    def __init__(self) -> None:
        self.made: dict[str, SoftwareSigningKey] = {}

    async def key(self, origin: str) -> SoftwareSigningKey:
        return self.made.setdefault(origin, SoftwareSigningKey.generate())


async def test_a_session_of_a_key_that_is_in_no_file_is_used_with_the_programs_own_keys(party: Party) -> None:
    keys = InHardware()
    party.key = await keys.key(party.url)
    await party.sign_in()
    answer = await party.session(keys=keys).fetch(f"{party.url}/session")
    assert answer.status == 200
    await party.session(keys=keys).refresh()
    assert list(keys.made) == [party.url]
    with pytest.raises(NotSignedIn):
        await party.session().refresh()
    await party.session(keys=keys).sign_out()


async def test_a_session_of_a_key_that_is_gone_can_only_be_forgotten(party: Party) -> None:
    await party.sign_in()
    KeyStore(party.state).remove_all()
    for use in (
        lambda: party.session().fetch(f"{party.url}/session"),
        lambda: party.session().refresh(),
        lambda: party.session().sign_out(),
    ):
        with pytest.raises(NotSignedIn) as refused:
            await use()
        assert refused.value.reason is SessionReason.SESSION_KEY_GONE
    await party.session().sign_out(anyway=True)
    assert party.store.read(party.url) is None


@pytest.mark.threat("T3")
async def test_a_refresh_that_gives_another_users_session_is_refused(party: Party) -> None:
    async def swap(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        if request.path != "/session/refresh":
            return response
        assert isinstance(response, web.Response)
        assert isinstance(response.body, bytes)
        body = json.loads(response.body)
        body["user"]["handle"] = "AAAA"
        return web.json_response(body)

    old = await party.sign_in()
    party.after = swap
    with pytest.raises(TrustError) as refused:
        await party.session().refresh()
    assert refused.value.reason is TrustReason.UNEXPECTED_USER
    assert party.kept.opened == old.opened


@pytest.mark.threat("T3")
async def test_a_session_in_use_does_not_become_another_users(party: Party) -> None:
    kept = await party.sign_in()
    in_use = party.session()
    party.passkey = None
    other = await party.sign_in(name="grace")
    assert other.opened.user_handle != kept.opened.user_handle
    with pytest.raises(NotSignedIn, match="another user's"):
        await in_use.fetch(f"{party.url}/session")
    assert party.kept.opened == other.opened


async def test_signing_out_does_not_end_the_session_of_who_has_signed_in_since(party: Party) -> None:
    await party.sign_in()
    in_use = party.session()
    party.passkey = None
    other = await party.sign_in(name="grace")
    for anyway in False, True:
        with pytest.raises(NotSignedIn, match="another user's"):
            await in_use.sign_out(anyway=anyway)
    assert party.kept.opened == other.opened
    assert await party.status_of(other) == "ok"


@pytest.mark.parametrize(
    "answer",
    [{}, {"token": 5}, {"token": "a b"}, {"user": None}, {"expires_at": "soon"}],
    ids=["empty", "type", "token", "user", "time"],
)
async def test_a_malformed_answer_changes_nothing(party: Party, answer: dict[str, Any]) -> None:
    async def lie(request: web.Request) -> web.StreamResponse | None:
        if request.path != "/session/refresh":
            return None
        return web.json_response({**old.opened.to_json(), **answer} if answer else {})

    old = await party.sign_in()
    party.before = lie
    with pytest.raises(RemoteProtocolError):
        await party.session().refresh()
    assert party.kept.opened == old.opened


# Which session


async def keep(state: Path, rp: str, *audience: str, expires_at: int = 1) -> None:
    opened = OpenedSession.parse(
        answer_members(
            {
                "token": "t",
                "expires_at": expires_at,
                "refresh_token": "r",
                "ends_at": expires_at + 1,
                "user": {"name": "ada", "display_name": "Ada", "handle": "AAAA"},
                "credential_id": "BBBB",
                "audience": list(audience),
            },
            "a session",
        )
    )
    key = await KeyStore(state).key(BaseUrl.parse(rp).origin)
    kept = KeptSession(relying_party=rp, opened=opened, key_name=thumbprint(key.public_key), received_at=0)
    SessionStore(state).write(kept)


async def test_a_session_is_found_by_its_relying_party_or_by_where_it_may_be_used(tmp_path: Path) -> None:
    await keep(tmp_path / "s", "https://a.example/passkeys", "https://api.example", "https://both.example")
    await keep(tmp_path / "s", "https://b.example", "https://both.example")
    async with open_session(None) as http:

        def found(rp: str | None = None, url: str | None = None) -> str:
            return Session.load(tmp_path / "s", rp, url=url, http=http).relying_party

        assert found("https://B.example:443/") == "https://b.example"
        assert found("https://a.example/passkeys/") == "https://a.example/passkeys"
        assert found("https://a.example") == "https://a.example/passkeys"
        assert found(url="https://api.example/me?x=1") == "https://a.example/passkeys"
        assert found(url="https://b.example/anything") == "https://b.example"
        with pytest.raises(UsageError, match="several"):
            found()
        with pytest.raises(UsageError, match="several"):
            found(url="https://both.example/")
        with pytest.raises(NotSignedIn):
            found("https://a.example/elsewhere")
        with pytest.raises(NotSignedIn):
            found("https://c.example")
        with pytest.raises(TrustError) as refused:
            found(url="https://evil.example/")
        assert refused.value.reason is TrustReason.NOT_ITS_AUDIENCE


async def test_where_none_is_kept_a_sign_in_is_the_mend(tmp_path: Path) -> None:
    async with open_session(None) as http:
        with pytest.raises(NotSignedIn) as missing:
            Session.load(tmp_path / "nothing", http=http)
        assert missing.value.advice == "`headless-passkey sign-in --rp URL`"
        with pytest.raises(NotSignedIn) as missing:
            Session.load(tmp_path / "nothing", "https://a.example", http=http)
        assert missing.value.advice == "`headless-passkey sign-in --rp https://a.example`"


# Several processes


USER = """
import asyncio, sys, time
from pathlib import Path
from headless_passkey.net.proven_http import open_session
from headless_passkey.rp.session import Session

async def use():
    async with open_session(None) as http:
        session = Session.load(Path(sys.argv[1]), sys.argv[2], http=http, clock=lambda: float(sys.argv[3]))
        answer = await session.fetch(sys.argv[2] + "/session")
        print(answer.status, flush=True)

asyncio.run(use())
"""


async def test_processes_that_find_the_token_ended_refresh_it_once(party: Party) -> None:
    await party.sign_in()
    party.clock.now += 13 * 3600
    words = [sys.executable, "-c", USER, str(party.state), party.url, str(party.clock.now)]
    processes = await asyncio.gather(
        *(asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE) for _ in range(3))
    )
    said = await asyncio.gather(*(process.communicate() for process in processes))
    assert [out for out, _ in said] == [b"200\n"] * 3
    assert party.seen.count("POST /session/refresh") == 1
    assert party.seen.count("GET /session") == 3


def test_every_error_of_a_session_is_in_the_tree() -> None:
    assert issubclass(NotSignedIn, HeadlessPasskeyError)
    assert NotSignedIn("x", reason=SessionReason.SESSION_OVER).exit_status == 11
    assert TrustError(TrustReason.SESSION_REUSED, "x").exit_status == 8
