"""Metrics of a server in Prometheus' format, on an address of their own that only the operator reaches.

What every server has is here: its connections, how late its event loop runs, and what the system says of the process. Each label
has a few values of ours, so that nobody else can make time series (cardinality).
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector

from http_serving.connections import ConnectionLimits, Connections
from http_serving.runner import http_logger

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
LAG_SECONDS: Final = 0.5  # between two looks at the event loop
LIMITS: Final = ConnectionLimits(total=32, per_address=32)


class ServerMetrics:
    """The metrics of a program that serves: its connections, and what the system says of the process (memory, time, files)."""

    def __init__(self, registry: CollectorRegistry, namespace: str) -> None:
        """namespace: how each name begins, but for those of the process."""
        ProcessCollector(registry=registry)
        self._closed = Counter(
            "connections_closed",
            "Connections that the server closed (handshake, head, idle, evicted), and what it refused, by reason.",
            ["reason"],
            namespace=namespace,
            registry=registry,
        )
        self._open = Gauge(
            "connections", "Open connections, TLS handshakes too.", namespace=namespace, registry=registry
        )

    def closed(self, reason: str) -> None:
        """Count one connection. reason: one of a few words of `http_serving.listening.serving`."""
        self._closed.labels(reason).inc()

    def shows(self, connections: Connections) -> None:
        """Count the connections of a server from now on."""
        self._open.set_function(lambda: len(connections))


class LoopLag:
    """How late the event loop runs what is due: the time for which everybody waits, whatever they asked for."""

    def __init__(self, registry: CollectorRegistry, namespace: str) -> None:
        self._lag = Histogram(
            "loop_lag_seconds",
            f"How late the event loop was, looked at every {LAG_SECONDS} s.",
            namespace=namespace,
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

    async def watched(self, _app: web.Application) -> AsyncIterator[None]:
        """Look regularly while an application is served: for its `cleanup_ctx`."""
        watching = asyncio.create_task(self.watch())
        yield
        watching.cancel()
        await asyncio.wait({watching})


def make_metrics_app(registry: CollectorRegistry) -> web.Application:
    """Make the application that shows the metrics of `registry`."""

    async def get_metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get(hdrs.ACCEPT, ""))
        headers = {hdrs.CONTENT_TYPE: content_type, hdrs.CACHE_CONTROL: "no-store"}
        return web.Response(body=encode(registry), headers=headers)

    app = web.Application(handler_args={"logger": http_logger})
    app.router.add_get("/metrics", get_metrics, allow_head=False)
    return app
