"""OpenTelemetry spans of the requests, where the OpenTelemetry API is installed (the extra `tracing`).

They go to the tracer provider of the process, which is the embedder's, and to nobody while there is none. Their attributes
are method, route template, status and slug: no name, id, token, query or address, and no exception's message. A caller's
`traceparent` (W3C Trace Context) is neither parent nor link: a stranger would choose trace ids and what is sampled.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.trace import Tracer, TracerProvider

METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


def tracing(provider: "TracerProvider | None" = None) -> "Tracing | None":
    """Make the relying party's tracing; None where the OpenTelemetry API is not installed.

    provider: None for that of the process, also when it is set later.
    """
    try:
        import opentelemetry.trace  # noqa: PLC0415  of an extra
    except ModuleNotFoundError as error:
        if error.name not in ("opentelemetry", "opentelemetry.trace"):
            raise
        return None
    return Tracing(opentelemetry.trace.get_tracer("relying_party", tracer_provider=provider))


class Tracing:
    """Makes spans, as children of the current one."""

    def __init__(self, tracer: "Tracer") -> None:
        from opentelemetry import trace  # noqa: PLC0415  of an extra

        self._tracer, self._api = tracer, trace

    @contextlib.contextmanager
    def request(self, method: str, route: str | None) -> Iterator["trace.Span"]:
        """Make the span of a request while it is served, as the current one. route: its template; None where there is none."""
        attributes = {"http.request.method": method if method in METHODS else "_OTHER"}
        name = method if method in METHODS else "HTTP"
        if route is not None:
            attributes["http.route"] = route
            name = f"{name} {route}"
        span = self._tracer.start_span(name, kind=self._api.SpanKind.SERVER, attributes=attributes)
        with self._api.use_span(
            span, end_on_exit=True, record_exception=False, set_status_on_exception=False
        ):
            yield span

    def answered(self, span: "trace.Span", status: int, slug: str | None) -> None:
        """Tell a span its answer. slug: of the problem; None for none."""
        span.set_attribute("http.response.status_code", status)
        if slug is not None:
            span.set_attribute("error.type", slug)
        if status >= 500:
            span.set_status(self._api.StatusCode.ERROR)
