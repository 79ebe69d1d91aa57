"""Counts and nanoseconds per name and version, in the shape that Triton's ModelStatistics reports.

Fed by the pipeline on the event loop, once per answered request; perf_analyzer reads the
differences. A route has a row of its own, as if it were a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from engines.executed import Execution
from gateway.books import Book


@dataclass(slots=True)
class Duration:
    """How often a stage was passed, and its time in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count passages that took so long in all."""
        self.count += count
        self.ns += ns


@dataclass(slots=True)
class BatchSizeStatistics:
    """The executions of one batch size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(frozen=True, slots=True, kw_only=True)
class Successes:
    """Answered requests of one row, to be counted together."""

    requests: int
    rows: int
    last_ms: int
    """Unix time of the last one's arrival."""
    total_ns: int
    """This and the next: sums."""
    queue_ns: int
    executions: Mapping[Execution, int]
    """The batches that they were in, and how many of them were in each."""


@dataclass(slots=True, eq=False)
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

    def add(self, successes: Successes) -> None:
        """Count answered requests; a batch counts once per row, whoever was in it."""
        self.inference_count += successes.rows
        self.last_inference_ms = max(self.last_inference_ms, successes.last_ms)
        requests = successes.requests
        self.success.add(successes.total_ns, requests)
        self.queue.add(successes.queue_ns, requests)
        input_ns = infer_ns = output_ns = 0
        for execution, count in successes.executions.items():
            input_ns += execution.input_ns * count
            infer_ns += execution.infer_ns * count
            output_ns += execution.output_ns * count
            if self not in execution.counted_by:
                execution.counted_by = (*execution.counted_by, self)
                self._add_batch(execution)
        self.compute_input.add(input_ns, requests)
        self.compute_infer.add(infer_ns, requests)
        self.compute_output.add(output_ns, requests)

    def _add_batch(self, execution: Execution) -> None:
        self.execution_count += 1
        batch = self.batches.get(execution.rows)
        if batch is None:
            batch = self.batches[execution.rows] = BatchSizeStatistics()
        batch.compute_input.add(execution.input_ns)
        batch.compute_infer.add(execution.infer_ns)
        batch.compute_output.add(execution.output_ns)

    def add_failure(self, total_ns: int, now_ms: int) -> None:
        """Count a request that was answered with an error."""
        self.fail.add(total_ns)
        self.last_inference_ms = max(self.last_inference_ms, now_ms)


class StatisticsBook(Book):
    """The rows by (name, version); a route's row has the version ''.

    Args:
        settle: called before a row is read: brings in what is noted elsewhere.
    """

    def __init__(self, settle: Callable[[], None] | None = None) -> None:
        super().__init__(settle)
        self._rows: dict[tuple[str, str], InferenceStatistics] = {}

    def row(self, name: str, version: str) -> InferenceStatistics:
        """Return a row to read, made on first use."""
        self._settle()
        return self.open(name, version)

    def open(self, name: str, version: str) -> InferenceStatistics:
        """Return a row to add to, made on first use."""
        found = self._rows.get((name, version))
        if found is None:
            found = self._rows[name, version] = InferenceStatistics()
        return found
