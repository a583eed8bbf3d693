"""Metrics of a server program in Prometheus' format, on an address of their own that only the operator reaches.

What every server of this package has is here: its connections, and how late its event loop runs. Each label has a few values
of our own, so that nobody else can make time series (cardinality).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector

from companion_push.serving.listening import inherited, listening, serving
from http_serving.connections import ConnectionLimits, Connections
from http_serving.runner import http_logger

PREFIX: Final = "companion_push"
SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
LAG_SECONDS: Final = 0.5  # between two looks at the event loop
LIMITS: Final = ConnectionLimits(total=32, per_address=32)


class ProgramMetrics:
    """The metrics of a program that serves: its connections, and what the system says of the process (memory, time, files)."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._closed = Counter(
            "connections_closed",
            "Connections that the server closed (handshake, head, idle, evicted), and what it refused, by reason.",
            ["reason"],
            namespace=PREFIX,
            registry=registry,
        )
        self._open = Gauge(
            "connections", "Open connections, TLS handshakes too.", namespace=PREFIX, registry=registry
        )

    def closed(self, reason: str) -> None:
        """Count one connection. reason: one of a few words of `serving`."""
        self._closed.labels(reason).inc()

    @contextlib.asynccontextmanager
    async def served(
        self,
        address: tuple[str, int],
        connections: Connections,
        *,
        say: Callable[[str], None],
        descriptors: Sequence[int] = (),
    ) -> AsyncIterator[None]:
        """Serve them over plain HTTP at `address` while the context is open.

        connections: of the program's server. say: prints a line for the operator. descriptors: of the sockets that listen
        there already, in a worker.
        """
        self._open.set_function(lambda: len(connections))
        host, port = address
        with (
            inherited(host, descriptors, cert=None, key=None)
            if descriptors
            else listening(host, port, cert=None, key=None, anywhere=True)
        ) as listener:
            app = make_metrics_app(self.registry)
            async with serving(app, listener, say=lambda _: None, limits=LIMITS):
                say(f"metrics at {listener.base_url()}/metrics")
                yield


class LoopLag:
    """How late the event loop runs what is due: the time for which everybody waits, whatever they asked for."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lag = Histogram(
            "loop_lag_seconds",
            f"How late the event loop was, looked at every {LAG_SECONDS} s.",
            namespace=PREFIX,
            buckets=SECONDS,
            registry=registry,
        )

    async def watch(self) -> None:
        """Look regularly, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self._lag.observe(max(0.0, loop.time() - due))


def make_metrics_app(registry: CollectorRegistry) -> web.Application:
    """Make the application that shows the metrics of `registry`."""

    async def get_metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get(hdrs.ACCEPT, ""))
        headers = {hdrs.CONTENT_TYPE: content_type, hdrs.CACHE_CONTROL: "no-store"}
        return web.Response(body=encode(registry), headers=headers)

    app = web.Application(handler_args={"logger": http_logger})
    app.router.add_get("/metrics", get_metrics, allow_head=False)
    return app
