"""The relay's OpenTelemetry spans: what a sign-in leaves, and that none of them names anybody."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import opentelemetry.trace
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from companion_push.push.channel import Delivery, Kind, PushOutcome
from companion_push.relay import operations
from companion_push.relay.app import RELAY, make_app
from companion_push.relay.config import RelayConfig
from companion_push.relay.operations import Answer, Call
from companion_push.relay.problems import Slug
from companion_push.serving.tracing import tracing
from tests.push.recording import SENT, RecordingChannel
from tests.relay.graphql_calls import submit
from tests.relay.household import SEALED, Relay, rates, running_relay
from tests.relay.test_metrics import a_whole_life
from tests.relay.test_notifying import House, registers, token
from tests.test_architecture import loaded_by

SOON = 60.0  # seconds: a safety net
TRACE = "0af7651916cd43dd8448eb211c80319c"
SUBMIT = "PUT /v1/requests/{id}"


class Traces(InMemorySpanExporter):
    """The spans that have ended. They end on the event loop."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = asyncio.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        self._ended.set()
        return result

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.get_finished_spans() if span.name == name]

    async def came(self, name: str, count: int = 1) -> list[ReadableSpan]:
        """So many spans of that name, once they have ended: a caller has its answer a little sooner."""
        async with asyncio.timeout(SOON):
            while len(self.named(name)) < count:
                self._ended.clear()
                await self._ended.wait()
        return self.named(name)

    async def one(self, name: str) -> ReadableSpan:
        (span,) = await self.came(name)
        return span

    def under(self, parent: ReadableSpan) -> list[ReadableSpan]:
        """Its children."""
        return [
            span
            for span in self.get_finished_spans()
            if span.parent is not None
            and parent.context is not None
            and span.parent.span_id == parent.context.span_id
        ]


@asynccontextmanager
async def traced(path: Path, **settings: object) -> AsyncIterator[tuple[Relay, Traces]]:
    """A relay, and the spans it makes."""
    traces, provider = Traces(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(traces))
    async with running_relay(path, tracer_provider=provider, **settings) as relay:  # type: ignore[arg-type]
        yield relay, traces


def told(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


async def test_a_sign_in_leaves_a_span_for_each_call_transaction_and_push(tmp_path: Path) -> None:
    fcm = RecordingChannel(Kind.FCM)
    async with traced(tmp_path / "s", channels=[fcm]) as (relay, traces):
        house = House(relay, fcm, await relay.household())
        for caller in house.home.companions:
            await registers(caller)
        traces.clear()
        await house.settled(await a_whole_life(house.home))
        calls = {
            "PUT /v1/requests/{id}": ("PUT", "/v1/requests/{id}", 201),
            "GET /v1/inbox": ("GET", "/v1/inbox", 200),
            "POST /v1/inbox/{device}/{id}/events": ("POST", "/v1/inbox/{device}/{id}/events", 200),
            "POST /v1/requests/{id}/events": ("POST", "/v1/requests/{id}/events", 200),
        }
        for name, (method, route, status) in calls.items():
            if name == "POST /v1/inbox/{device}/{id}/events":
                assert len(traces.named(name)) == 2  # claimed, opened
            span = traces.named(name)[0]
            assert told(span) == {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
            }
            assert (span.kind, span.parent) == (SpanKind.SERVER, None)
            assert "store transaction" in [child.name for child in traces.under(span)]
        below = traces.under(await traces.one(SUBMIT))
        assert sorted(span.name for span in below) == ["push fcm", "push fcm", "store transaction"]
        for span in below:
            if span.name == "push fcm":
                assert told(span) == {
                    "companion_push.kind": "fcm",
                    "companion_push.purpose": "request",
                    "companion_push.outcome": "sent",
                }
                assert span.kind is SpanKind.CLIENT
        assert all(span.status.status_code is StatusCode.UNSET for span in traces.get_finished_spans())
        assert {
            span.instrumentation_scope and span.instrumentation_scope.name
            for span in traces.get_finished_spans()
        } == {"companion_push.relay"}


@pytest.mark.parametrize(
    ("answer", "outcome", "error"),
    [
        (Delivery(outcome=PushOutcome.REFUSED), "refused", "refused"),
        (Delivery(outcome=PushOutcome.GONE), "gone", None),
        (ValueError("https://push.example/secret"), "failed", "failed"),
    ],
    ids=["refused", "gone", "raised"],
)
async def test_a_push_that_fails_says_how_and_nothing_else(
    tmp_path: Path, answer: Delivery | Exception, outcome: str, error: str | None
) -> None:
    fcm = RecordingChannel(Kind.FCM, answer)
    async with traced(tmp_path / "s", channels=[fcm]) as (relay, traces):
        home = await relay.household()
        await registers(home.companions[0])
        await home.devices[0].submit(home.companions[0])
        (span,) = await traces.came("push fcm")
        assert told(span)["companion_push.outcome"] == outcome
        assert told(span).get("error.type") == error
        assert span.status.status_code is (StatusCode.UNSET if error is None else StatusCode.ERROR)
        assert (span.status.description, span.events) == (None, ())


async def test_a_push_belongs_to_the_call_that_ordered_it_and_not_to_the_one_that_made_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("companion_push.push.dispatcher.RUNNING", 1)
    fcm = RecordingChannel(Kind.FCM)
    async with traced(tmp_path / "s", channels=[fcm]) as (relay, traces):
        home = await relay.household(devices=2)
        anna, _ = home.companions
        await registers(anna)
        fcm.gate.clear()
        await home.devices[0].submit(anna)
        await fcm.came(1)
        await home.devices[1].submit(anna)  # its push waits for the first one's place
        async with asyncio.timeout(SOON):
            while len(relay.app[RELAY]._notifier._dispatcher) < 2:  # noqa: ASYNC110  nothing tells of it
                await asyncio.sleep(0.001)
        fcm.gate.set()
        await fcm.came(2)
        await traces.came("push fcm", 2)
        for span in traces.named(SUBMIT):
            assert sorted(child.name for child in traces.under(span)) == ["push fcm", "store transaction"]


async def test_an_attempt_that_is_repeated_has_a_span_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("companion_push.push.dispatcher.RETRY", 0.0)
    fcm = RecordingChannel(Kind.FCM, Delivery(outcome=PushOutcome.FAILED), SENT)
    async with traced(tmp_path / "s", channels=[fcm]) as (relay, traces):
        home = await relay.household()
        await registers(home.companions[0])
        await home.devices[0].submit(home.companions[0])
        await traces.came("push fcm", 2)
        (submission,) = traces.named(SUBMIT)
        outcomes = [
            told(span).get("companion_push.outcome")
            for span in traces.under(submission)
            if span.name == "push fcm"
        ]
        assert outcomes == ["failed", "sent"]


async def test_a_refusal_is_its_slug_and_no_failure_of_the_relay(tmp_path: Path) -> None:
    async with traced(tmp_path / "s", quota=rates(1, 60)) as (relay, traces):
        home = await relay.household()
        (frame,), (anna, _) = home.devices, home.companions
        await frame.submit(anna)
        traces.clear()
        assert (await frame.submit(anna)).status == 429
        span = await traces.one(SUBMIT)
        assert (told(span)["http.response.status_code"], told(span)["error.type"]) == (429, "rate-limited")
        assert span.status.status_code is StatusCode.UNSET
        (transaction,) = traces.under(span)
        assert told(transaction) == {"error.type": "rate-limited"}
        assert transaction.status.status_code is StatusCode.UNSET


async def test_a_failure_of_the_relay_is_one_of_the_span_and_has_no_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with traced(tmp_path / "s") as (relay, traces):
        home = await relay.household()

        def broken(_call: Call) -> Answer:
            raise KeyError("a secret")

        monkeypatch.setattr(operations, "read_mutes", broken)
        traces.clear()
        assert (await home.companions[0].get("/v1/mutes")).status == 500
        span = await traces.one("GET /v1/mutes")
        assert told(span)["error.type"] == "500"
        (transaction,) = traces.under(span)
        assert told(transaction) == {"error.type": "KeyError"}
        for one in (span, transaction):
            assert one.status.status_code is StatusCode.ERROR
            assert (one.status.description, one.events) == (None, ())


@pytest.mark.parametrize(
    "path", ["/v1/inbox?cursor={cursor}&wait=25", "/v1/inbox/stream"], ids=["held call", "stream"]
)
async def test_who_hangs_up_ends_the_span_which_says_that_it_was_held(path: str, tmp_path: Path) -> None:
    async with traced(tmp_path / "s") as (relay, traces), asyncio.timeout(SOON):
        anna, _ = (await relay.household()).companions
        cursor = (await anna.get("/v1/inbox")).body["cursor"]
        target = path.format(cursor=cursor)
        traces.clear()
        _, writer = await asyncio.open_connection("127.0.0.1", int(relay.url.rpartition(":")[2]))
        route = target.partition("?")[0]
        proof = anna.proof("GET", route)
        writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nDPoP: {proof}\r\n\r\n".encode())
        while not len(relay.held_requests):  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.001)
        writer.transport.abort()
        span = await traces.one(f"GET {route}")
        assert told(span) == {
            "http.request.method": "GET",
            "http.route": route,
            "companion_push.held": True,
            "error.type": "hung-up",
        }


async def test_a_call_of_graphql_says_its_operation(tmp_path: Path) -> None:
    async with traced(tmp_path / "s", graphql=True) as (relay, traces):
        home = await relay.household()
        await submit(home.devices[0], home.companions[0])
        span = await traces.one("POST /graphql")
        assert told(span) == {
            "http.request.method": "POST",
            "http.route": "/graphql",
            "companion_push.operation": "submitRequest",
            "http.response.status_code": 200,
        }


@pytest.mark.threat("T11")
@pytest.mark.parametrize("flags", ["00", "01"], ids=["not sampled", "sampled"])
async def test_a_strangers_traceparent_moves_nothing(tmp_path: Path, flags: str) -> None:
    async with traced(tmp_path / "s") as (relay, traces):
        headers = {
            "traceparent": f"00-{TRACE}-b7ad6b7169203331-{flags}",
            "tracestate": "them=t61rcWkgMzE",
            "baggage": "who=anna",
        }
        async with relay.session.get(relay.url + "/v1/ring", headers=headers) as response:
            assert response.status == 401
            assert not {"traceparent", "tracestate", "traceresponse"} & {
                name.lower() for name in response.headers
            }
        span = await traces.one("GET /v1/ring")
        assert span.context is not None
        assert (span.parent, span.links) == (None, ())
        assert f"{span.context.trace_id:032x}" != TRACE
        assert "them" not in span.to_json()


@pytest.mark.threat("T11")
@pytest.mark.threat("T13")
async def test_no_span_names_anybody_whatever_is_asked(tmp_path: Path) -> None:
    fcm = RecordingChannel(Kind.FCM, Delivery(outcome=PushOutcome.FAILED, detail="so-said-the-service"))
    async with traced(tmp_path / "s", channels=[fcm], failures_per_address=600, graphql=True) as (
        relay,
        traces,
    ):
        house = House(relay, fcm, await relay.household())
        home = house.home
        for caller in home.companions:
            await registers(caller)
        name = await a_whole_life(home)
        anna = home.companions[0]
        for path in ("/v1/nothing-here", f"/v1/requests/{name}/other", "/v1/inbox?cursor=their-query"):
            await anna.get(path)
        for method in ("PATCH", "BREW", "PROPFIND"):
            async with relay.session.request(
                method, relay.url + "/v1/ring", headers={"User-Agent": "their-agent"}
            ):
                pass
        await submit(home.devices[0], anna)
        await traces.came("push fcm")
        spans = traces.get_finished_spans()
        assert {"HTTP", "PATCH", "GET"} <= {span.name for span in spans}  # which no endpoint has asked for
        text = "\n".join(span.to_json() for span in spans)
        assert_known(spans, relay)
        secrets = [name, home.account, SEALED, relay.url, "127.0.0.1", "alice", "nothing-here", "BREW"]
        secrets += ["their-query", "their-agent", "so-said-the-service", *map(token, home.companions)]
        secrets += [member.name for member in (*home.companions, *home.devices)]
        secrets += [member.person.label for member in (*home.companions, *home.devices)]
        for secret in secrets:
            assert secret not in text


def assert_known(spans: Sequence[ReadableSpan], relay: Relay) -> None:
    """Each attribute is one of those in docs/how-to/operate-a-relay.md, with a value of the relay's own."""
    routes = {route.resource.canonical for route in relay.app.router.routes() if route.resource is not None}
    slugs = {str(slug) for slug in Slug} | {str(outcome) for outcome in PushOutcome} | {"hung-up"}
    known: dict[str, Container[object]] = {
        "http.request.method": {"GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "_OTHER"},
        "http.route": routes,
        "http.response.status_code": {200, 201, 400, 401, 404, 405, 409},
        "error.type": slugs | {"405"},
        "companion_push.operation": {"submitRequest"},
        "companion_push.held": {True},
        "companion_push.kind": {"fcm"},
        "companion_push.purpose": {"request", "dismiss", "account"},
        "companion_push.outcome": set(PushOutcome),
    }
    for span in spans:
        for attribute, value in told(span).items():
            assert value in known[attribute], (attribute, value)
        assert span.events == ()


async def test_a_transaction_that_nobody_called_for_has_no_parent(tmp_path: Path) -> None:
    async with traced(tmp_path / "s") as (relay, traces):
        await relay.household()
        traces.clear()
        await relay.app[RELAY].run("", operations.sweep(None))
        (span,) = traces.get_finished_spans()
        assert (span.name, span.parent, told(span)) == ("store transaction", None, {})


async def test_the_spans_go_to_the_provider_of_the_process_also_when_it_is_set_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opentelemetry.trace, "_TRACER_PROVIDER", None)
    async with running_relay(tmp_path / "s") as relay:
        anna, _ = (await relay.household()).companions
        traces, provider = Traces(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(traces))
        monkeypatch.setattr(opentelemetry.trace, "_TRACER_PROVIDER", provider)
        await anna.get("/v1/mutes")
        assert told(await traces.one("GET /v1/mutes"))["http.response.status_code"] == 200


def test_without_the_package_there_are_no_spans_and_no_middleware(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    assert tracing("x") is None
    app = make_app(RelayConfig(public_url="https://relay.example", store=tmp_path / "s"))
    assert app[RELAY].traces is None
    assert len(app.middlewares) == 1


def test_nothing_of_the_extra_is_loaded_before_a_relay_is_made() -> None:
    assert "opentelemetry" not in loaded_by("companion_push.relay.command")
    assert "opentelemetry" not in loaded_by("companion_push.relay.app")


async def test_the_spans_of_a_mounted_relay_are_below_those_of_its_host(tmp_path: Path) -> None:
    traces, provider = Traces(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(traces))

    @web.middleware
    async def host(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        with provider.get_tracer("host").start_as_current_span("the host's"):
            return await handler(request)

    service = web.Application(middlewares=[host])
    config = RelayConfig(public_url="https://relay.example/push", store=tmp_path / "s")
    service.add_subapp("/push", make_app(config, tracer_provider=provider))
    async with TestClient(TestServer(service)) as client:
        assert (await client.get("/push/v1/ring")).status == 401
    above, span = await traces.one("the host's"), await traces.one("GET /push/v1/ring")
    assert traces.under(above) == [span]
