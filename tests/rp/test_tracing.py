"""The relying party's OpenTelemetry spans: one of each request, which names nobody."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import DummyCookieJar
from aiohttp.test_utils import TestClient, TestServer
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from relying_party.http.app import make_app
from relying_party.http.tracing import tracing
from tests.rp.clients import WEB_ORIGIN, Browser, Clock, Site, make_config
from tests.test_architecture import loaded_by

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def site(tmp_path: Path, spans: InMemorySpanExporter) -> AsyncIterator[Site]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    clock, config = Clock(), make_config(tmp_path / "rp.sqlite")
    app = make_app(config, clock=clock, tracer_provider=provider)
    async with TestClient(TestServer(app), cookie_jar=DummyCookieJar()) as http:
        yield Site(http=http, app=app, clock=clock, config=config)


@pytest.mark.threat("T11")
async def test_each_request_has_a_span_that_names_nobody(site: Site, spans: InMemorySpanExporter) -> None:
    browser = Browser()
    theirs = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "Cookie": "__Host-session=their-cookie"}
    await site.begin(browser, "authentication")
    assert (await site.raw("GET", "/session?their-query", theirs)).status == 401
    assert (await site.raw("GET", "/their-path", theirs)).status == 404
    assert (await site.raw("PROPFIND", "/session", {"Origin": WEB_ORIGIN, **theirs})).status == 405
    got = {"http.request.method": "GET"}
    found = [(span.name, dict(span.attributes or {})) for span in spans.get_finished_spans()]
    route = "/webauthn/authentication/options"
    assert found == [
        (
            f"POST {route}",
            {"http.request.method": "POST", "http.route": route, "http.response.status_code": 200},
        ),
        (
            "GET /session",
            got
            | {
                "http.route": "/session",
                "http.response.status_code": 401,
                "error.type": "not-signed-in",
            },
        ),
        ("GET", got | {"http.response.status_code": 404, "error.type": "not-found"}),
        (
            "HTTP",
            {
                "http.request.method": "_OTHER",
                "http.response.status_code": 405,
                "error.type": "method-not-allowed",
            },
        ),
    ]
    for span in spans.get_finished_spans():
        assert (span.kind, span.parent, span.links, span.events) == (SpanKind.SERVER, None, (), ())
        assert span.status.status_code is StatusCode.UNSET
        text = span.to_json()
        for secret in (TRACE, "their-cookie", "their-query", "their-path", "PROPFIND", "127.0.0.1"):
            assert secret not in text


async def test_a_failure_is_an_error_without_words(
    site: Site, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(site.state.store, "session", broken)
    assert (await site.raw("GET", "/session", {"Cookie": "__Host-session=x"})).status == 500
    (span,) = spans.get_finished_spans()
    assert (span.attributes or {})["error.type"] == "internal-error"
    assert (span.status.status_code, span.status.description, span.events) == (StatusCode.ERROR, None, ())


def test_without_the_package_there_are_no_spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path / "rp.sqlite")
    with_it = len(make_app(config).middlewares)
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    assert tracing() is None
    assert len(make_app(config).middlewares) == with_it - 1


def test_nothing_of_the_extra_is_loaded_before_a_relying_party_is_made() -> None:
    assert "opentelemetry" not in loaded_by("relying_party.http.app")
