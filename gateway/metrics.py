"""Every metric: its name, labels and buckets, and how it is counted.

The request path adds to plain numbers (no lock: one event loop counts); prometheus_client only
writes them out when somebody scrapes. Labels are bounded: routes and models come from the
configuration, never from a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from engines.executed import BatcherStatistics, BatchReport, Executed
from engines.served import ServedVersion, VersionState
from gateway.books import Book
from gateway.directory import Target
from gateway.errors import Code
from gateway.histogram import Floats, Histogram
from gateway.prediction_log.counts import LogStatistics

# Seconds. From an in-process tiny model to a large image model on a CPU.
LATENCY_BUCKETS: Final = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
STAGE_BUCKETS: Final = (0.0001, 0.0002, *LATENCY_BUCKETS)
ROWS_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_LABELS: Final = ("route", "variant", "model", "version")
_VERSION_LABELS: Final = ("model", "version")


class _Cell:
    """The numbers of one (route, variant, model, version)."""

    __slots__ = ("by_code", "infer", "latency", "queue")

    def __init__(self) -> None:
        self.by_code: dict[tuple[str, int], int] = {}
        self.latency = Histogram(LATENCY_BUCKETS)
        self.queue = Histogram(STAGE_BUCKETS)
        self.infer = Histogram(STAGE_BUCKETS)

    def count(self, protocol: str, code: int, requests: int = 1) -> None:
        by_code = (protocol, code)
        self.by_code[by_code] = self.by_code.get(by_code, 0) + requests


_CellKey = tuple[str, str, str, str]
_NOWHERE: Final[_CellKey] = ("", "", "", "")
"""Of requests whose name or version was not resolved, and of those that could not be read."""


class RequestMetrics(Book):
    """What the pipeline counts per request, and the repository per batch.

    Args:
        settle: called before the cells are read: brings in what is noted elsewhere.
    """

    def __init__(self, settle: Callable[[], None] | None = None) -> None:
        super().__init__(settle)
        self._cells: dict[_CellKey, _Cell] = {}
        self.batch_rows: dict[tuple[str, str], Histogram] = {}
        self.batch_requests: dict[tuple[str, str], int] = {}
        self.padded_rows: dict[tuple[str, str], int] = {}

    @property
    def cells(self) -> Mapping[_CellKey, _Cell]:
        """The counters of requests, to read."""
        self._settle()
        return self._cells

    def observe(
        self, target: Target, protocol: str, total_s: Floats, queue_s: Floats, infer_s: Floats
    ) -> None:
        """Count requests answered with their outputs: their times, one each."""
        cell = self._cell(_key(target))
        cell.count(protocol, 0, len(total_s))
        cell.latency.observe_all(total_s)
        cell.queue.observe_all(queue_s)
        cell.infer.observe_all(infer_s)

    def observe_failure(
        self,
        target: Target | None,
        protocol: str,
        code: int,
        total_ns: int,
        executed: Executed | None,
    ) -> None:
        """Count a request answered with an error; `code` is its gRPC status on either protocol."""
        cell = self._cell(_NOWHERE if target is None else _key(target))
        cell.count(protocol, code)
        cell.latency.observe(total_ns / 1e9)
        if executed is not None:
            cell.queue.observe(executed.queue_ns / 1e9)
            cell.infer.observe(executed.execution.infer_ns / 1e9)

    def count_refused(self, protocol: str, code: int) -> None:
        """Count a request that never became one: broken JSON, a body over the limit."""
        self._cell(_NOWHERE).count(protocol, code)

    def _cell(self, key: _CellKey) -> _Cell:
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = _Cell()
        return cell

    def observe_batch(self, served: ServedVersion, report: BatchReport) -> None:
        """Count one executed batch."""
        key = (served.model, served.version)
        histogram = self.batch_rows.get(key)
        if histogram is None:
            histogram = self.batch_rows[key] = Histogram(ROWS_BUCKETS)
        histogram.observe(report.rows)
        self.batch_requests[key] = self.batch_requests.get(key, 0) + report.requests
        self.padded_rows[key] = self.padded_rows.get(key, 0) + report.padded_rows


def _key(target: Target) -> _CellKey:
    served = target.served
    return target.route, target.variant, served.model, served.version


class MetricsCollector(Collector):
    """Writes all metrics out, at scrape time, on the event loop.

    Args:
        version: of this software.
        requests: the counters of the request path.
        versions: returns the repository's versions now.
        log: returns the prediction log's counters now, or None without a log.
        is_ready: returns the process's readiness now.
    """

    def __init__(
        self,
        *,
        version: str,
        requests: RequestMetrics,
        versions: Callable[[], Iterable[ServedVersion]],
        log: Callable[[], LogStatistics | None],
        is_ready: Callable[[], bool],
    ) -> None:
        self._version = version
        self._requests = requests
        self._versions = versions
        self._log = log
        self._is_ready = is_ready

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        build = GaugeMetricFamily("sluice_build_info", "Version of Sluice.", labels=["version"])
        build.add_metric([self._version], 1)
        yield build
        ready = GaugeMetricFamily("sluice_ready", "1 while new requests are accepted.")
        ready.add_metric([], float(self._is_ready()))
        yield ready
        yield from self._request_families()
        yield from self._batch_families()
        yield from self._version_families()
        statistics = self._log()
        if statistics is not None:
            yield from _log_families(statistics)

    def _request_families(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "sluice_requests",
            "Answered prediction requests; code is the gRPC status name on either protocol.",
            labels=[*_LABELS, "protocol", "code"],
        )
        errors = CounterMetricFamily(
            "sluice_errors",
            "Prediction requests answered with an error.",
            labels=[*_LABELS, "protocol", "code"],
        )
        latency, queue, infer = (
            HistogramMetricFamily(f"sluice_{name}_seconds", text, labels=_LABELS)
            for name, text in (
                ("request_latency", "From the decoded request to its answer."),
                ("queue_delay", "From admission to the start of the batch."),
                ("inference", "Execution of the batch that the request shared."),
            )
        )
        for key, cell in self._requests.cells.items():
            for (protocol, code), count in cell.by_code.items():
                requests.add_metric([*key, protocol, Code(code).name], count)
                if code:
                    errors.add_metric([*key, protocol, Code(code).name], count)
            for family, histogram in (
                (latency, cell.latency),
                (queue, cell.queue),
                (infer, cell.infer),
            ):
                family.add_metric(key, histogram.cumulative(), histogram.total)
        yield from (requests, errors, latency, queue, infer)

    def _batch_families(self) -> Iterator[Metric]:
        rows = HistogramMetricFamily(
            "sluice_batch_rows", "Rows of the executed batches.", labels=_VERSION_LABELS
        )
        requests = CounterMetricFamily(
            "sluice_batched_requests", "Requests in the executed batches.", labels=_VERSION_LABELS
        )
        padded = CounterMetricFamily(
            "sluice_padded_rows",
            "Rows run beside those of the requests, to fill the engine's buckets.",
            labels=_VERSION_LABELS,
        )
        for key, histogram in self._requests.batch_rows.items():
            rows.add_metric(key, histogram.cumulative(), histogram.total)
            requests.add_metric(key, self._requests.batch_requests[key])
            padded.add_metric(key, self._requests.padded_rows[key])
        yield from (rows, requests, padded)

    def _version_families(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily(
            "sluice_version_ready", "1 while the version serves.", labels=_VERSION_LABELS
        )
        gauges = {
            name: GaugeMetricFamily(f"sluice_{name}", text, labels=_VERSION_LABELS)
            for name, text in (
                ("queued_rows", "Rows waiting for a batch."),
                ("busy_instances", "Instances executing a batch."),
                ("instances", "Loaded instances, lost ones among them."),
                ("lost_instances", "Instances whose device failed, and that are being replaced."),
            )
        }
        batches = CounterMetricFamily(
            "sluice_batches",
            "Batches by the reason that closed them.",
            labels=[*_VERSION_LABELS, "reason"],
        )
        refused = CounterMetricFamily(
            "sluice_queue_refused", "Requests refused by a full queue.", labels=_VERSION_LABELS
        )
        fallback = GaugeMetricFamily(
            "sluice_device_fallback",
            "1 where a GPU would have been taken and could not be had; device is the one in use.",
            labels=[*_VERSION_LABELS, "device"],
        )
        graphs = CounterMetricFamily(
            "sluice_graph_batches",
            "Batches on a GPU for which CUDA graphs were asked: replayed, or run plainly.",
            labels=[*_VERSION_LABELS, "result"],
        )
        for served in self._versions():
            key = [served.model, served.version]
            ready.add_metric(key, float(served.state is VersionState.READY))
            batcher = served.loaded
            if batcher is None:
                continue
            statistics: BatcherStatistics = batcher.statistics()
            gauges["queued_rows"].add_metric(key, statistics.queue.queued_rows)
            gauges["busy_instances"].add_metric(key, statistics.busy_instances)
            gauges["instances"].add_metric(key, statistics.instances)
            gauges["lost_instances"].add_metric(key, statistics.lost_instances)
            if batcher.metadata.fallback:
                fallback.add_metric([*key, batcher.metadata.device], 1)
            refused.add_metric(key, statistics.queue.refused)
            for reason, count in statistics.queue.batches_by_reason.items():
                batches.add_metric([*key, reason], count)
            if statistics.graph_hits or statistics.graph_misses:
                graphs.add_metric([*key, "replayed"], statistics.graph_hits)
                graphs.add_metric([*key, "plain"], statistics.graph_misses)
        yield from (ready, *gauges.values(), fallback, batches, refused, graphs)


def _log_families(statistics: LogStatistics) -> Iterator[Metric]:
    yield from _record_families(statistics)
    for name, text, gauge_value in (
        ("spool_bytes", "Bytes of records that Redis does not have yet.", statistics.spooled_bytes),
        ("ship_lag_seconds", "Age of the oldest of them.", statistics.oldest_unshipped_s),
        ("sink_up", "1 while Redis takes records.", int(statistics.is_sink_up)),
        (
            "fenced",
            "1 while another process writes this replica's streams.",
            int(statistics.is_fenced),
        ),
        (
            "memory_estimate_bytes",
            "What the configured retention needs in Redis at the present rate; 0: not known yet.",
            statistics.memory_estimate_bytes,
        ),
    ):
        gauge = GaugeMetricFamily(f"sluice_log_{name}", text)
        gauge.add_metric([], gauge_value)
        yield gauge
    for name, text, count in (
        ("duplicates", "Records sent again that Redis had.", statistics.duplicates),
        ("rewound", "Records sent again because Redis had forgotten them.", statistics.rewound),
        ("collisions", "Records that met another writer's ids.", statistics.collisions),
        ("ship_batches", "Writes to Redis.", statistics.ship_batches),
        ("ship_batch_seconds", "Time of those writes.", statistics.ship_seconds),
    ):
        counter = CounterMetricFamily(f"sluice_log_{name}", text)
        counter.add_metric([], count)
        yield counter


def _record_families(statistics: LogStatistics) -> Iterator[Metric]:
    records = CounterMetricFamily(
        "sluice_log_records",
        "Prediction records: answered + recovered = sampled_out + shipped + dropped"
        " + sluice_log_spooled_records.",
        labels=["name", "kind", "result", "reason"],
    )
    spooled = GaugeMetricFamily(
        "sluice_log_spooled_records",
        "Records written here and not yet known to stand in Redis.",
        labels=["name", "kind"],
    )
    for (name, kind), counts in statistics.kinds.items():
        for result in ("answered", "recovered", "sampled_out", "shipped"):
            records.add_metric([name, kind, result, ""], getattr(counts, result))
        for reason, count in counts.dropped.items():
            records.add_metric([name, kind, "dropped", reason], count)
        spooled.add_metric([name, kind], counts.spooled)
    unread = CounterMetricFamily(
        "sluice_log_trimmed_unread",
        "Entries trimmed before every known consumer group had read them.",
        labels=["name", "kind"],
    )
    for (name, kind), count in statistics.trimmed_unread.items():
        unread.add_metric([name, kind], count)
    yield from (records, spooled, unread)
