"""The tunnel service's metrics: how many tunnels there are, what they carry, why they end, who is refused, and how many phones wait.

No label holds an id or an address: their values are the refusals and endings of this program.
"""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from companion_push.tunnel_service.phones import Phones
from companion_push.tunnel_service.rendezvous import Rendezvous, Tunnel, TunnelRefusal
from http_serving.metrics import LoopLag


class TunnelMetrics:
    """The metrics of one tunnel service in one registry, which has room for one only."""

    def __init__(self, registry: CollectorRegistry, rendezvous: Rendezvous, phones: Phones | None) -> None:
        """phones: those that can be woken; None where the service wakes none."""
        self.loop_lag = LoopLag(registry, "companion_push")
        place: Any = {"namespace": "companion_push", "subsystem": "tunnels", "registry": registry}
        Gauge("open", "Open tunnels, with one end or two.", **place).set_function(lambda: len(rendezvous))
        Gauge(
            "in_flight_bytes",
            "Bytes that ends have sent and others not yet taken, parts of messages too.",
            **place,
        ).set_function(lambda: rendezvous.in_flight)
        self._refused = Counter("refused", "Connections that were refused, by reason.", ["reason"], **place)
        self._ended = Counter("ended", "Tunnels that have ended, by reason.", ["reason"], **place)
        self._messages = Counter("messages", "Messages that ended tunnels have carried.", **place)
        self._bytes = Counter("bytes", "Bytes of those messages.", **place)
        if phones is not None:
            Gauge("phones", "Linked phones that wait to be woken.", **place).set_function(lambda: len(phones))
            gave_way = "Waiting phones that gave their place to one of an address with fewer."
            phones.gave_way = Counter("phones_evicted", gave_way, **place).inc

    def refused(self, refusal: TunnelRefusal) -> None:
        self._refused.labels(refusal.value).inc()

    def ended(self, tunnel: Tunnel, why: str) -> None:
        """Count a tunnel that has ended. why: one of the few sentences of the log."""
        self._ended.labels(why).inc()
        self._messages.inc(sum(tunnel.messages))
        self._bytes.inc(sum(tunnel.sizes))
