"""What became of feedback as metrics, read when somebody scrapes."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.feedback import Feedback


class FeedbackCollector(Collector):
    """Writes out the counts of one Feedback. Names are those of routes and models: bounded."""

    def __init__(self, feedback: Feedback) -> None:
        self._feedback = feedback

    def collect(self) -> Iterator[Metric]:
        """Yield the family."""
        items = CounterMetricFamily(
            "sluice_feedback_items",
            "Items of ground truth by what their sender was told.",
            labels=["model", "result"],
        )
        for (name, outcome), count in self._feedback.counts.items():
            items.add_metric([name, outcome.value], count)
        yield items
