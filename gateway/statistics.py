"""Counts and nanoseconds per name and version, in the shape that Triton's ModelStatistics reports.

Fed by the pipeline on the event loop, once per answered request; perf_analyzer reads the
differences. A route has a row of its own, as if it were a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engines.batcher import Executed


@dataclass(slots=True)
class Duration:
    """How often a stage was passed, and its time in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count one passage."""
        self.count += 1
        self.ns += ns


@dataclass(slots=True)
class BatchSizeStatistics:
    """The executions of one batch size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class InferenceStatistics:
    """The row of one name and version; every number only grows.

    `queue` and the compute stages count successful requests, each with the time of the batch that
    it shared, as Triton counts them. The queue stage counts every success, also without batching:
    perf_analyzer finds the version at work by it.
    """

    inference_count: int = 0
    """Rows answered."""
    execution_count: int = 0
    """Batches run."""
    last_inference_ms: int = 0
    """Unix time of the last request."""
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batches: dict[int, BatchSizeStatistics] = field(default_factory=dict)
    """By rows."""
    _last_batch: dict[str, int] = field(default_factory=dict)

    def add_success(
        self, executed: Executed, *, rows: int, total_ns: int, now_ms: int, source: str
    ) -> None:
        """Count an answered request.

        Args:
            executed: its times.
            rows: its own rows.
            total_ns: from arrival to answer.
            now_ms: Unix time.
            source: the version that ran it: batches are counted once per version and number.
        """
        self.inference_count += rows
        self.last_inference_ms = now_ms
        # Written out: ten calls per request would cost more than all else here.
        stage = self.success
        stage.count += 1
        stage.ns += total_ns
        stage = self.queue
        stage.count += 1
        stage.ns += executed.queue_ns
        stage = self.compute_input
        stage.count += 1
        stage.ns += executed.input_ns
        stage = self.compute_infer
        stage.count += 1
        stage.ns += executed.infer_ns
        stage = self.compute_output
        stage.count += 1
        stage.ns += executed.output_ns
        if self._last_batch.get(source, 0) != executed.batch_number:
            self._last_batch[source] = executed.batch_number
            self._add_batch(executed)

    def _add_batch(self, executed: Executed) -> None:
        self.execution_count += 1
        batch = self.batches.get(executed.batch_rows)
        if batch is None:
            batch = self.batches[executed.batch_rows] = BatchSizeStatistics()
        batch.compute_input.add(executed.input_ns)
        batch.compute_infer.add(executed.infer_ns)
        batch.compute_output.add(executed.output_ns)

    def add_failure(self, *, total_ns: int, now_ms: int) -> None:
        """Count a request that was answered with an error."""
        self.fail.add(total_ns)
        self.last_inference_ms = now_ms


class StatisticsBook:
    """The rows by (name, version); a route's row has the version ''."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], InferenceStatistics] = {}

    def row(self, name: str, version: str) -> InferenceStatistics:
        """Return a row, made on first use."""
        found = self._rows.get((name, version))
        if found is None:
            found = self._rows[name, version] = InferenceStatistics()
        return found
