"""Metrics of a push program in Prometheus' format, on an address of their own."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry

from companion_push.serving.listening import inherited, listening, serving
from http_serving.connections import Connections
from http_serving.metrics import LIMITS, ServerMetrics, make_metrics_app

PREFIX: Final = "companion_push"


class ProgramMetrics(ServerMetrics):
    """The metrics of a program that serves, and where they are shown."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        super().__init__(self.registry, PREFIX)

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
        self.shows(connections)
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
