"""JSON over HTTPS with proofs, against small servers that behave and misbehave."""

import asyncio
import contextlib
import gzip
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from certificates import Certificate
from multidict import CIMultiDict

from headless_passkey.errors import (
    HeadlessPasskeyError,
    LocalProtocolError,
    NotApproved,
    Outcome,
    RemoteProtocolError,
    SetupError,
    TransportError,
    TransportReason,
    TrustError,
    TrustReason,
)
from headless_passkey.net.proven_http import (
    MAX_ANSWER,
    ProblemAnswer,
    ProvenHttp,
    _demands_nonce,
    open_session,
)
from headless_passkey.trust.signing import SoftwareSigningKey
from tests.device.test_proof import claims_of

KEY = SoftwareSigningKey.generate()
NOW = 1_800_000_000
PROBLEM = "urn:headless-passkey:problem:"

Step = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Server:
    """Answers one step of its script after the other, the last one again and again."""

    script: list[Step]
    url: str = ""
    seen: list[tuple[str, str, bytes, str, dict[str, str]]] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        proof = request.headers["DPoP"]
        self.seen.append((request.method, request.path_qs, body, proof, dict(request.headers)))
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return await step(request)

    @property
    def proofs(self) -> list[dict[str, Any]]:
        return [claims_of(proof, KEY) for _, _, _, proof, _ in self.seen]


@contextlib.asynccontextmanager
async def serving(*script: Step, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(list(script))
    app = web.Application(client_max_size=1 << 24)
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    server.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"
    try:
        yield server
    finally:
        await runner.cleanup()


@dataclass
class Pauses:
    """A sleep that does not, and remembers."""

    slept: list[float] = field(default_factory=list)

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)


@contextlib.asynccontextmanager
async def talking_to(
    url: str, *, tls: ssl.SSLContext | None = None, pauses: Pauses | None = None
) -> AsyncIterator[ProvenHttp]:
    async with open_session(tls) as session:
        yield ProvenHttp(session, url, KEY, clock=lambda: NOW, sleep=pauses or Pauses(), chance=lambda: 0.5)


def answer(body: bytes = b"", *, kind: str = "application/json", **more: Any) -> Step:
    async def respond(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type=kind, **more)

    return respond


def ok(**members: object) -> Step:
    return answer(json.dumps(members).encode())


def problem(status: int, slug: str, *, retry_after: int | None = None, **members: object) -> Step:
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    body = json.dumps({"type": PROBLEM + slug, "status": status, "title": slug, **members}).encode()
    return answer(body, kind="application/problem+json", status=status, headers=headers)


# What is sent


async def test_every_request_carries_a_proof_for_its_method_and_url() -> None:
    async with serving(ok(answer=42)) as server, talking_to(server.url) as http:
        assert (await http.get("/v1/ring", after=3)).integer("answer") == 42
        await http.put("/v1/requests/x", {"a": 1})
        await http.post("/v1/ring", {})
    assert [(proof["htm"], proof["htu"]) for proof in server.proofs] == [
        ("GET", f"{server.url}/v1/ring"),
        ("PUT", f"{server.url}/v1/requests/x"),
        ("POST", f"{server.url}/v1/ring"),
    ]
    assert all(proof["iat"] == NOW for proof in server.proofs)
    assert len({proof["jti"] for proof in server.proofs}) == 3
    assert [seen[1] for seen in server.seen] == ["/v1/ring?after=3", "/v1/requests/x", "/v1/ring"]


async def test_a_token_goes_along_bound_to_the_proof() -> None:
    async with serving(answer(status=204)) as server, talking_to(server.url) as http:
        await http.call("DELETE", "/session", access_token="sesame")
    assert server.seen[0][4]["Authorization"] == "DPoP sesame"
    assert "ath" in server.proofs[0]


# Nonces of the server (RFC 9449 §8)


def demand(nonce: str, **more: Any) -> Step:
    body = json.dumps(
        {"type": PROBLEM + "use-dpop-nonce", "status": 401, "title": "a nonce, please"}
    ).encode()
    headers = {"WWW-Authenticate": 'DPoP algs="ES256", error="use_dpop_nonce"', "DPoP-Nonce": nonce, **more}
    return answer(body, kind="application/problem+json", status=401, headers=headers)


def gives(nonce: str) -> Step:
    return answer(b"{}", headers={"DPoP-Nonce": nonce})


@pytest.mark.threat("T13")
async def test_a_nonce_that_is_demanded_is_given_at_once_with_a_new_proof_and_the_same_bytes() -> None:
    pauses = Pauses()
    async with serving(demand("n1"), ok(done=1)) as server, talking_to(server.url, pauses=pauses) as http:
        assert (await http.post("/v1/ring", {"a": 1})).integer("done") == 1
    assert [proof.get("nonce") for proof in server.proofs] == [None, "n1"]
    assert [seen[2] for seen in server.seen] == [b'{"a":1}'] * 2
    assert len({proof["jti"] for proof in server.proofs}) == 2
    assert pauses.slept == []


@pytest.mark.threat("T12")
@pytest.mark.parametrize(("end", "demanded"), [("", False), ('error="use_dpop_nonce"', True)])
def test_a_challenge_is_read_in_a_time_that_grows_with_its_length_and_not_with_its_square(
    end: str, *, demanded: bool
) -> None:
    headers = CIMultiDict({"WWW-Authenticate": "DPoP " * 200_000 + end})
    response = SimpleNamespace(status=401, headers=headers)
    assert _demands_nonce(cast("aiohttp.ClientResponse", response)) is demanded


async def test_the_newest_nonce_of_each_answer_is_used_by_all_clients_of_the_session() -> None:
    async with serving(demand("n1"), gives("n2"), gives("n3"), ok()) as server, open_session(None) as session:
        for _ in range(3):
            await ProvenHttp(session, server.url, KEY).get("/v1/ring")
    assert [proof.get("nonce") for proof in server.proofs] == [None, "n1", "n2", "n3"]


async def test_each_server_is_given_its_own_nonce() -> None:
    async with serving(gives("n1")) as one, serving(gives("n2")) as two, open_session(None) as session:
        for server in (one, two, one, two):
            await ProvenHttp(session, server.url, KEY).get("/x")
        for path in ("/push", "/passkeys"):  # two servers behind one address
            await ProvenHttp(session, one.url + path, KEY).get("/x")
    assert [proof.get("nonce") for proof in one.proofs] == [None, "n1", None, None]
    assert [proof.get("nonce") for proof in two.proofs] == [None, "n2"]


async def test_a_server_whose_nonces_are_not_taken_yet_is_asked_again_after_a_pause() -> None:
    pauses = Pauses()
    async with (
        serving(*(demand(f"n{number}") for number in range(3)), ok(done=1)) as server,
        talking_to(server.url, pauses=pauses) as http,
    ):
        assert (await http.get("/x")).integer("done") == 1
    assert [proof.get("nonce") for proof in server.proofs] == [None, "n0", "n1", "n2"]
    assert len(pauses.slept) == 1


async def test_a_server_that_is_never_content_with_its_nonces_has_failed() -> None:
    async with (
        serving(*(demand(f"n{number}") for number in range(9))) as server,
        talking_to(server.url) as http,
    ):
        with pytest.raises(TransportError, match="takes none of the nonces") as failure:
            await http.get("/x", patience=0)
    assert failure.value.reason is TransportReason.SERVER_FAILED
    assert [proof.get("nonce") for proof in server.proofs] == [None, "n0", "n1"]


@pytest.mark.parametrize(
    "nonce",
    ["", "a b", 'a"b', "a\\b", "\u00e4", "x" * 257],
    ids=["empty", "space", "quote", "slash", "latin", "long"],
)
async def test_what_is_no_nonce_is_not_repeated(nonce: str) -> None:
    async with serving(demand(nonce), ok()) as server, talking_to(server.url) as http:
        with pytest.raises(ProblemAnswer):
            await http.get("/x")
        await http.get("/x")
    assert [proof.get("nonce") for proof in server.proofs] == [None, None]


async def test_an_answer_that_refuses_something_else_is_no_demand_for_its_nonce() -> None:
    async with serving(problem(401, "proof-invalid"), ok()) as server, talking_to(server.url) as http:
        with pytest.raises(ProblemAnswer):
            await http.get("/x")
    assert len(server.seen) == 1


async def test_a_demand_may_be_the_answer_and_its_nonce_is_kept() -> None:
    async with serving(demand("n1"), ok()) as server, talking_to(server.url) as http:
        with pytest.raises(ProblemAnswer, match="use-dpop-nonce"):
            await http.call("GET", "/session", meets_nonce=False)
        await http.get("/x")
    assert [proof.get("nonce") for proof in server.proofs] == [None, "n1"]


async def test_no_cookie_is_kept() -> None:
    baker = answer(b"{}", headers={"Set-Cookie": "who=you; Path=/"})
    async with serving(baker, ok()) as server, talking_to(server.url) as http:
        await http.get("/")
        await http.get("/")
    assert all("Cookie" not in headers for *_, headers in server.seen)


# What is tried again


DOCUMENT = "application/problem+json"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (DOCUMENT, b""),
        (DOCUMENT, b'{"type": "urn:headless-passkey:prob'),
        (DOCUMENT, b"[]"),
        (DOCUMENT, b'{"type": 503}'),
        (DOCUMENT, b'{"type": "' + b"x" * 300 + b'"}'),
        (DOCUMENT, b'{"type": "about:blank", "retry_after": "soon"}'),
        (DOCUMENT, b"\xff\xfe"),
        (DOCUMENT, b"[" * 100_000),
        (DOCUMENT, b" " * (MAX_ANSWER + 1)),
        ("text/html", b"<h1>Bad Gateway</h1>"),
        ("application/json", b"{"),
    ],
    ids=["empty", "cut", "list", "number", "long", "pause", "utf-16", "deep", "large", "page", "json"],
)
async def test_a_transient_failure_is_tried_again_however_broken_its_body_is(
    status: int, kind: str, body: bytes
) -> None:
    broken = answer(body, status=status, kind=kind)
    pauses = Pauses()
    async with serving(broken, ok(done=True)) as server, talking_to(server.url, pauses=pauses) as http:
        assert (await http.get("/x")).boolean("done")
    assert len(pauses.slept) == 1
    async with serving(broken) as server, talking_to(server.url) as http:
        with pytest.raises(TransportError, match="not now") as refused:
            await http.get("/x", patience=0)
    assert refused.value.reason is TransportReason.SERVER_FAILED


@pytest.mark.parametrize("status", [400, 404, 409, 413])
async def test_a_refusal_that_cannot_be_read_is_not_tried_again(status: int) -> None:
    pauses = Pauses()
    broken = answer(b"{", status=status, kind=DOCUMENT)
    async with serving(broken) as server, talking_to(server.url, pauses=pauses) as http:
        with pytest.raises(RemoteProtocolError):
            await http.get("/x")
    assert pauses.slept == []


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_what_may_pass_is_sent_again_in_the_same_bytes_with_a_new_proof(status: int) -> None:
    busy = answer(b"busy", kind="text/plain", status=status)
    async with serving(busy, busy, ok(done=1)) as server, talking_to(server.url) as http:
        assert (await http.put("/x", {"b": 1, "a": [2]})).integer("done") == 1
    assert {body for _, _, body, _, _ in server.seen} == {b'{"b":1,"a":[2]}'}
    assert len({proof["jti"] for proof in server.proofs}) == 3


async def test_an_error_after_which_nobody_waits_says_how_long_it_would_be() -> None:
    body = b'{"type": "urn:headless-passkey:problem:rate-limited", "retry_after": 3600}'
    async with serving(answer(body, status=429, kind=DOCUMENT)) as server, talking_to(server.url) as http:
        with pytest.raises(TransportError, match=r"says: not now \(rate-limited\), but in 3600 s"):
            await http.get("/x")


async def test_the_server_says_how_long_to_wait() -> None:
    pauses = Pauses()
    script = (
        problem(503, "draining", retry_after=3),
        problem(503, "store-unavailable"),
        answer(b'{"retry_after": 7}', kind="application/problem+json", status=429),
        ok(),
    )
    async with serving(*script) as server, talking_to(server.url, pauses=pauses) as http:
        await http.get("/")
    assert pauses.slept == [3.5, pytest.approx(0.3), 7.5]


async def test_a_wait_beyond_our_patience_is_not_begun() -> None:
    pauses = Pauses()
    async with (
        serving(problem(429, "too-many-pending", retry_after=240)) as server,
        talking_to(server.url, pauses=pauses) as http,
    ):
        with pytest.raises(TransportError, match="too-many-pending") as caught:
            await http.get("/")
        assert caught.value.reason is TransportReason.SERVER_FAILED
    assert pauses.slept == []
    assert len(server.seen) == 1


async def test_who_was_stopped_for_longer_than_patience_lasts_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a process is by SIGSTOP or a debugger: its held call is over when it goes on."""
    monotonic = time.monotonic

    async def held(_request: web.Request) -> web.StreamResponse:
        monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 240)  # the event loop's clock, too
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(held, ok(answer=42)) as server, talking_to(server.url) as http:
        assert (await http.get("/", wait=25, patience=60)).integer("answer") == 42
    assert len(server.seen) == 2


async def test_a_server_that_is_away_is_a_transport_error_when_patience_ends() -> None:
    async with serving(ok()) as server:
        url = server.url
    pauses = Pauses()
    async with talking_to(url, pauses=pauses) as http:
        with pytest.raises(TransportError, match="cannot be reached") as caught:
            await http.get("/", patience=20)
    assert caught.value.reason is TransportReason.UNREACHABLE
    assert 3 <= len(pauses.slept) <= 12
    assert pauses.slept == sorted(pauses.slept), "pauses grow"
    assert sum(pauses.slept) <= 20


@pytest.mark.parametrize(
    "host", ["a" * 64 + ".example", "a..example", ".example", "xn--a.example", "xn--" + "a" * 60 + ".example"]
)
async def test_a_name_that_nobody_can_look_up_is_a_typed_error(host: str) -> None:
    async with open_session(None) as session:
        http = ProvenHttp(session, f"https://{host}", SoftwareSigningKey.generate())
        with pytest.raises(TransportError) as caught:
            await http.get("/v1/ring", patience=0)
    assert caught.value.reason is TransportReason.NAME_NOT_RESOLVED


@pytest.mark.parametrize(
    "base", ["https://" + "ü" * 60 + ".example", "https://h:65536", "https://["], ids=ascii
)
async def test_a_base_url_that_is_none_is_the_callers_mistake(base: str) -> None:
    async with open_session(None) as session:
        with pytest.raises(LocalProtocolError):
            ProvenHttp(session, base, SoftwareSigningKey.generate())


async def test_a_kept_connection_that_died_is_replaced_with_a_new_proof() -> None:
    proofs: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            proofs.append(head.split("DPoP: ")[1].split("\r\n")[0])
            if len(proofs) == 2:
                break  # taken in, and no answer
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, talking_to(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as http:
        await http.get("/")
        await http.get("/")
    ids = [claims_of(proof, KEY)["jti"] for proof in proofs]
    assert len(ids) == len(set(ids)) == 3


async def test_cancelling_is_prompt_and_leaves_nothing_behind() -> None:
    arrived = asyncio.Event()

    async def hold(_request: web.Request) -> web.StreamResponse:
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(hold) as server, talking_to(server.url) as http:
        task = asyncio.create_task(http.get("/", wait=25))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# What is refused


@pytest.mark.parametrize(
    ("status", "slug", "expected"),
    [
        (400, "invalid-request", ProblemAnswer),
        (400, "unknown-recipient", ProblemAnswer),
        (401, "proof-invalid", ProblemAnswer),
        (404, "not-found", ProblemAnswer),
        (409, "ring-conflict", ProblemAnswer),
        (409, "request-conflict", ProblemAnswer),
        (409, "already-claimed", ProblemAnswer),
        (409, "state-conflict", ProblemAnswer),
        (409, "invitation-used", TrustError),
        (410, "expired", NotApproved),
        (413, "payload-too-large", ProblemAnswer),
        (503, "draining", TransportError),
        (503, "store-unavailable", TransportError),
    ],
)
async def test_each_refusal_is_a_branch_of_the_error_tree(
    status: int, slug: str, expected: type[HeadlessPasskeyError]
) -> None:
    async with serving(problem(status, slug, state="claimed")) as server, talking_to(server.url) as http:
        with pytest.raises(expected) as caught:
            await http.get("/", patience=0)
    if isinstance(caught.value, ProblemAnswer):
        assert (caught.value.slug, caught.value.reason, caught.value.status) == (slug, slug, status)
        assert caught.value.members.text("state") == "claimed"
    if isinstance(caught.value, NotApproved):
        assert caught.value.reason is Outcome.EXPIRED
    if slug == "invitation-used":
        assert "look at the account's members" in str(caught.value)


@pytest.mark.threat("T5")
@pytest.mark.parametrize(("relays", "saying"), [(NOW - 90, "90 s ahead of"), (NOW + 3600, "3600 s behind")])
async def test_a_clock_that_is_wrong_is_told_by_how_much(relays: int, saying: str) -> None:
    async with serving(problem(401, "proof-clock", now=relays)) as server, talking_to(server.url) as http:
        with pytest.raises(TrustError, match=saying) as caught:
            await http.get("/")
    assert caught.value.reason is TrustReason.CLOCK_SKEW
    assert caught.value.explain().endswith(
        ": set this machine's clock with `sudo timedatectl set-ntp true`; if it is right, the server's is wrong"
    )
    assert len(server.seen) == 1


@pytest.mark.threat("T6")
@pytest.mark.parametrize("turned", [-3600, 3600])
async def test_what_was_begun_goes_on_by_the_servers_clock(turned: int) -> None:
    said = problem(401, "proof-clock", now=NOW + turned)
    async with serving(said, ok(answer=42)) as server, talking_to(server.url) as http:
        assert (await http.post("/", {}, any_clock=True)).integer("answer") == 42
    assert [proof["iat"] for proof in server.proofs] == [NOW, NOW + turned]
    assert len({proof["jti"] for proof in server.proofs}) == 2


@pytest.mark.threat("T9")
async def test_a_server_that_takes_no_date_is_not_asked_again_and_again() -> None:
    async with serving(problem(401, "proof-clock", now=NOW + 90)) as server, talking_to(server.url) as http:
        with pytest.raises(TrustError) as caught:
            await http.post("/", {}, any_clock=True)
    assert caught.value.reason is TrustReason.CLOCK_SKEW
    assert len(server.seen) == 2


@pytest.mark.threat("T9")
async def test_an_answer_may_begin_with_a_byte_order_mark() -> None:
    async with serving(answer(b'\xef\xbb\xbf{"answer": 42}')) as server, talking_to(server.url) as http:
        assert (await http.get("/")).integer("answer") == 42


async def test_a_redirect_is_not_followed() -> None:
    for status in (301, 302, 303, 307, 308):
        moved = answer(status=status, headers={"Location": "https://evil.example/"})
        async with serving(moved) as server, talking_to(server.url) as http:
            with pytest.raises(RemoteProtocolError, match=f"HTTP status {status}, and not as") as caught:
                await http.get("/")
        assert caught.value.reason == f"http-{status}"
        assert "whether this network wants a login first" in caught.value.explain()
        assert len(server.seen) == 1


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    "response",
    [
        answer(b""),
        answer(b"[]"),
        answer(b"null"),
        answer(b"{"),
        answer(b'{"a": NaN}'),
        answer('{"a": 1}'.encode("utf-16")),
        answer(b'{"a": Infinity}'),
        answer(b"\xff\xfe"),
        answer(b"[" * 100_000),
        answer(b"{}", kind="text/html"),
        answer(b"{}", kind="application/problem+json"),
        answer(b'{"a": "' + b"a" * MAX_ANSWER + b'"}'),
        answer(gzip.compress(b" " * (1 << 26) + b"{}"), headers={"Content-Encoding": "gzip"}),
        answer(b"[", kind="application/problem+json", status=400),
        answer(b'{"type": 7}', kind="application/problem+json", status=400),
        answer(
            json.dumps({"type": PROBLEM + "proof-clock"}).encode(),
            kind="application/problem+json",
            status=401,
        ),
        answer(b"<h1>not here</h1>", kind="text/html", status=404),
        answer(status=418),
    ],
    ids=range(18),
)
async def test_an_answer_out_of_shape_is_a_protocol_error_or_another_servers(response: Step) -> None:
    async with serving(response) as server, talking_to(server.url) as http:
        with pytest.raises((RemoteProtocolError, SetupError)):
            await http.get("/")
    assert len(server.seen) == 1, "it is not tried again"


@pytest.mark.threat("T12")
async def test_an_answer_without_end_is_cut_off() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" " * 65_536)
        return response

    async with serving(endless) as server, talking_to(server.url) as http:
        with pytest.raises(RemoteProtocolError, match="more than"):
            await http.get("/")


async def test_half_an_answer_is_no_answer() -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.close()
        return response

    async with serving(half, ok(done=1)) as server, talking_to(server.url) as http:
        assert (await http.get("/")).integer("done") == 1


# TLS


@pytest.mark.threat("T9")
async def test_the_server_is_verified(loopback_certificate: Certificate) -> None:
    pauses = Pauses()
    async with serving(ok(), tls=loopback_certificate.server_context()) as server:
        async with talking_to(server.url, tls=loopback_certificate.client_context()) as http:
            await http.get("/")
        async with talking_to(server.url, pauses=pauses) as http:
            with pytest.raises(TransportError, match="certificate"):
                await http.get("/")
        other_name = server.url.replace("127.0.0.1", "127.0.0.2")
        async with talking_to(other_name, tls=loopback_certificate.client_context(), pauses=pauses) as http:
            with pytest.raises(TransportError):
                await http.get("/", patience=0)
    assert pauses.slept == []
    assert len(server.seen) == 1


@pytest.mark.threat("T11")
async def test_the_log_tells_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    script = (answer(status=503), problem(404, "not-found"))
    async with serving(*script) as server, talking_to(server.url) as http:
        with pytest.raises(ProblemAnswer) as caught:
            await http.call("POST", "/v1/x", body={"ticket": "s3cret"}, access_token="sesame")
    said = caplog.text + str(caught.value) + repr(caught.value)
    assert "/v1/x" in caplog.text
    for secret in ("s3cret", "sesame", server.seen[0][3]):
        assert secret not in said


def test_a_session_is_made_for_this() -> None:
    async def made() -> aiohttp.ClientSession:
        session = open_session(None)
        await session.close()
        return session

    assert not asyncio.run(made()).trust_env
