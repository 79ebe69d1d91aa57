"""The predict listeners' connections as metrics, read when somebody scrapes."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.front_door import FrontDoor


class ListenerCollector(Collector):
    """Writes out what the listeners of this process have."""

    def __init__(self, front_door: FrontDoor) -> None:
        self._front_door = front_door

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        open_now = GaugeMetricFamily(
            "sluice_connections", "Open connections of a predict listener.", labels=["listener"]
        )
        refused = CounterMetricFamily(
            "sluice_connections_refused",
            "Connections over the limit of open ones.",
            labels=["listener"],
        )
        for listener, counts in self._front_door.counts().items():
            open_now.add_metric([listener], counts.connections)
            refused.add_metric([listener], counts.refused)
        yield from (open_now, refused)
