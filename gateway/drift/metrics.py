"""The last verdict as Prometheus metrics, in a registry of their own.

Labels are the names of the reference's columns: bounded by a file, never by a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from gateway.drift.compare import Figures
from gateway.drift.report import Report

MAX_COLUMNS: Final = 500
"""Columns with series of their own, in the reference's order."""
KINDS: Final = ("data", "prediction", "error", "concept")
_FIGURES: Final[dict[str, tuple[str, Callable[[Figures], float | None]]]] = {
    "psi": ("Population stability index", lambda f: f.psi),
    "ks": ("Kolmogorov-Smirnov distance", lambda f: f.ks),
    "wasserstein": ("Distance in standard deviations", lambda f: f.wasserstein),
    "p_value": ("Probability without drift, one column", lambda f: f.p),
    "missing_ratio": ("Share of rows without a value", lambda f: f.missing / f.rows),
    "out_of_range_ratio": ("Share of rows out of range", lambda f: f.out_of_range / f.rows),
}


class DriftMetrics(Collector):
    """Counts windows, and holds the last report until the next scrape."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._windows = 0
        self._records = 0
        self._repeats = 0
        self._last: Report | None = None
        self._judged_s = 0.0

    def judged(self, report: Report, now_s: float) -> None:
        """Take in a window's report; `now_s` is the time since the epoch."""
        self._last = report
        self._windows += 1
        self._judged_s = now_s

    def read(self, records: int, repeats: int) -> None:
        """Note how many records were read so far, and how many of them twice."""
        self._records, self._repeats = records, repeats

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        model = [self._model]
        yield from self._counters(model)
        report = self._last
        if report is None:
            return
        verdict = report.verdict
        gauge = GaugeMetricFamily(
            "sluice_drift", "1 if the last window drifts, by kind", labels=("model", "kind")
        )
        for kind in KINDS:
            gauge.add_metric([*model, kind], float(kind in verdict.kinds))
        yield gauge
        yield _single(
            "judged_timestamp_seconds", "When the last window ended", model, self._judged_s
        )
        yield _single("window_rows", "Answered rows of the last window", model, verdict.rows)
        if verdict.errors is not None:
            yield _single("error_ratio", "Share of error statuses", model, verdict.errors.rate)
        if verdict.concept is not None:
            evidence = verdict.concept.evidence / verdict.concept.needed
            yield _single("concept_evidence", "Evidence of wrong answers, of 1", model, evidence)
            if verdict.concept.rate is not None:
                yield _single("wrong_ratio", "Share of wrong answers", model, verdict.concept.rate)
        yield from self._columns(report)

    def _counters(self, model: list[str]) -> Iterator[Metric]:
        for name, what, value in (
            ("windows", "Windows judged", self._windows),
            ("records", "Records read", self._records),
            ("repeats", "Records that came again and were dropped", self._repeats),
        ):
            family = CounterMetricFamily(f"sluice_drift_{name}", what, labels=("model",))
            family.add_metric(model, value)
            yield family

    def _columns(self, report: Report) -> Iterator[Metric]:
        labels = ("model", "column")
        drifted = GaugeMetricFamily(
            "sluice_drift_column_drifted", "1 if the column drifts", labels=labels
        )
        families = {
            name: GaugeMetricFamily(f"sluice_drift_column_{name}", what, labels=labels)
            for name, (what, _) in _FIGURES.items()
        }
        for column in islice(report.verdict.columns, MAX_COLUMNS):
            at = [self._model, column.name]
            drifted.add_metric(at, float(column.is_drifted))
            for name, (_, figure) in _FIGURES.items():
                value = figure(column.figures)
                if value is not None:
                    families[name].add_metric(at, value)
        yield drifted
        yield from families.values()


def registry(metrics: DriftMetrics) -> CollectorRegistry:
    """Return a registry that has these metrics and nothing else."""
    made = CollectorRegistry()
    made.register(metrics)
    return made


def _single(name: str, what: str, model: list[str], value: float) -> Metric:
    family = GaugeMetricFamily(f"sluice_drift_{name}", what, labels=("model",))
    family.add_metric(model, value)
    return family
