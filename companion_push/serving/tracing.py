"""OpenTelemetry spans of a server, where the OpenTelemetry API is installed (the extra `tracing`).

They go to the tracer provider of the process, which is the embedder's, and to nobody while there is none. Their attributes
are this program's own few values: methods, route templates, statuses, slugs, kinds and outcomes. None holds a name, an id,
a token, a query or an address, and no span records an exception, whose message may hold anything.

A caller's `traceparent` (W3C Trace Context) is neither parent nor link of a span: a stranger would choose trace ids and what
is sampled, and write into the operator's traces.
"""

import contextlib
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer, TracerProvider

ERROR_TYPE: Final = "error.type"
_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


def tracing(scope: str, provider: "TracerProvider | None" = None) -> "Tracing | None":
    """Make the tracing of a server; None where the OpenTelemetry API is not installed.

    scope: the package that makes the spans. provider: None for that of the process, also when it is set later.
    """
    try:
        import opentelemetry.trace  # noqa: PLC0415  of an extra
    except ModuleNotFoundError as error:
        if error.name not in ("opentelemetry", "opentelemetry.trace"):
            raise
        return None
    return Tracing(
        opentelemetry.trace.get_tracer(scope, tracer_provider=provider), always=provider is not None
    )


class Span:
    """A span that is being made."""

    __slots__ = ("_api", "_span", "kept")

    def __init__(self, span: "trace.Span", api: ModuleType) -> None:
        """api: the module `opentelemetry.trace`."""
        self._span, self._api = span, api
        self.kept = False

    def note(self, name: str, value: str | int | bool) -> None:  # noqa: FBT001  a value
        """Set an attribute: a value of this program's own, of which there are only so many."""
        self._span.set_attribute(name, str(value) if isinstance(value, str) else value)  # of a StrEnum too

    def fail(self, kind: str) -> None:
        """Say that it has failed. kind: a slug, a status or the type of an exception."""
        self.note(ERROR_TYPE, kind)
        self._span.set_status(self._api.StatusCode.ERROR)

    def answered(self, status: int, error: str | None = None) -> None:
        """Tell the answer to a request. error: what went wrong, in a word of ours; None for nothing that has one."""
        self.note("http.response.status_code", status)
        if error is not None or status >= 400:
            self.note(ERROR_TYPE, error or str(status))
        if status >= 500:  # in a server's span, what is the caller's own fault is no failure
            self._span.set_status(self._api.StatusCode.ERROR)

    @property
    def records(self) -> bool:
        """Whether anybody will read it."""
        return bool(self._span.is_recording())

    def keep(self) -> "Span":
        """Let it last beyond the request or call that it is made for; whoever keeps it ends it."""
        self.kept = True
        return self

    def end(self) -> None:
        self._span.end()


class Tracing:
    """Makes spans, as children of the current one where no other parent is given."""

    def __init__(self, tracer: "Tracer", *, always: bool) -> None:
        """always: it has a provider of its own, whatever the process has."""
        from opentelemetry import context, trace  # noqa: PLC0415  of an extra

        self._tracer, self._api, self._context, self._always = tracer, trace, context, always

    @property
    def wanted(self) -> bool:
        """Whether there is a tracer provider: without one nobody is told of a span."""
        return self._always or not isinstance(self._api.get_tracer_provider(), self._api.ProxyTracerProvider)

    def request(self, method: str, route: str | None) -> contextlib.AbstractContextManager[Span]:
        """Make the span of an HTTP request while it is served, as the current one, in the words of OpenTelemetry's conventions.

        route: its template; None for a path that has none.
        """
        known = method in _METHODS
        attributes = {"http.request.method": method if known else "_OTHER"}
        name = method if known else "HTTP"
        if route is not None:
            attributes["http.route"] = route
            name = f"{name} {route}"
        return self._current(name, kind=self._api.SpanKind.SERVER, attributes=attributes)

    def call(
        self, name: str, attributes: Mapping[str, str], *, parent: "Context | None" = None
    ) -> contextlib.AbstractContextManager[Span]:
        """Make the span of a call to another service while it lasts, as the current one."""
        kind = self._api.SpanKind.CLIENT
        return self._current(name, kind=kind, attributes=attributes, context=parent)

    def begin(self, name: str) -> Span:
        """Begin the span of something inside the program, which whoever began it ends. It is not the current one."""
        return Span(self._tracer.start_span(name), self._api)

    def current(self) -> Span:
        """The current span, which may be one that records nothing."""
        return Span(self._api.get_current_span(), self._api)

    def parent(self) -> "Context":
        """The current span as the parent of one that begins elsewhere, without what else the current context holds."""
        return self._api.set_span_in_context(self._api.get_current_span(), self._context.Context())

    @contextlib.contextmanager
    def _current(self, name: str, **how: Any) -> Iterator[Span]:
        started = self._tracer.start_span(name, **how)
        span = Span(started, self._api)
        if (
            not started.get_span_context().is_valid
        ):  # nobody traces: there is neither this span nor one around it
            yield span
            return
        try:
            with self._api.use_span(started, record_exception=False, set_status_on_exception=False):
                yield span
        finally:
            if not span.kept:
                span.end()
