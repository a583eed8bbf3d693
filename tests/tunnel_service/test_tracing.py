"""The tunnel service's OpenTelemetry spans: one for each end, and none has an ID."""

from typing import Any

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from companion_push.serving.http_server import Runner
from companion_push.tunnel_service.app import make_app
from companion_push.tunnel_service.rendezvous import Limits
from headless_passkey.hybrid.tunnel_url import SUBPROTOCOL
from tests.test_architecture import loaded_by
from tests.tunnel_service.by_program import listen

TUNNEL_ID = "0123456789ABCDEF0123456789ABCDEF"
TRACE = "0af7651916cd43dd8448eb211c80319c"
UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Protocol": SUBPROTOCOL,
    "traceparent": f"00-{TRACE}-b7ad6b7169203331-01",
}


def told(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pytest.mark.threat("T11")
@pytest.mark.parametrize("prefix", ["", "/tunnels"], ids=["at the root", "mounted"])
async def test_each_request_has_a_span_that_names_no_tunnel(prefix: str) -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    app = make_app(Limits(rate=4), tracer_provider=provider)
    if prefix:
        host = web.Application()
        host.add_subapp(prefix, app)
        app = host
    runner = Runner(app)
    await runner.setup()
    url = f"http://127.0.0.1:{await listen(runner)}{prefix}/cable"
    try:
        async with aiohttp.ClientSession() as session:
            first = await session.ws_connect(f"{url}/new/{TUNNEL_ID}", protocols=(SUBPROTOCOL,))
            routing_id = first._response.headers["X-caBLE-Routing-ID"]
            second = await session.ws_connect(
                f"{url}/connect/{routing_id}/{TUNNEL_ID}", protocols=(SUBPROTOCOL,)
            )
            await first.close()
            await second.receive()
            await second.close()
            for path, status in (
                (f"/connect/{routing_id}/{TUNNEL_ID}", 404),
                ("/contact/AAAA", 404),
                (f"/connect/{routing_id}/{TUNNEL_ID}", 429),
            ):
                async with session.get(url + path, headers=UPGRADE) as response:
                    assert response.status == status
    finally:
        await runner.cleanup()
    new, connect = f"{prefix}/cable/new/{{id}}", f"{prefix}/cable/connect/{{routing}}/{{id}}"
    got = {"http.request.method": "GET"}
    found = sorted(
        ((span.name, told(span)) for span in spans.get_finished_spans()),
        key=lambda one: (one[0], one[1]["http.response.status_code"]),
    )
    assert found == [
        ("GET", got | {"http.response.status_code": 404, "error.type": "404"}),
        (f"GET {connect}", got | {"http.route": connect, "http.response.status_code": 101}),
        (
            f"GET {connect}",
            got
            | {
                "http.route": connect,
                "http.response.status_code": 404,
                "error.type": "404",
                "companion_push.outcome": "no such tunnel",
            },
        ),
        (
            f"GET {connect}",
            got
            | {
                "http.route": connect,
                "http.response.status_code": 429,
                "error.type": "429",
                "companion_push.outcome": "too many arrivals from this address",
            },
        ),
        (
            f"GET {new}",
            got
            | {
                "http.route": new,
                "http.response.status_code": 101,
                "companion_push.outcome": "an end left",
            },
        ),
    ]
    for span in spans.get_finished_spans():
        assert (span.kind, span.parent, span.links, span.events) == (SpanKind.SERVER, None, (), ())
        for secret in (TUNNEL_ID, routing_id, TRACE, "127.0.0.1"):
            assert f'"{secret}' not in span.to_json()
            assert secret not in str(told(span))


def test_nothing_of_the_extra_is_loaded_before_a_service_is_made() -> None:
    assert "opentelemetry" not in loaded_by("companion_push.tunnel_service.app")
