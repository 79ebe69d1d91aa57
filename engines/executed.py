"""What a batcher says: of a request's answer, of a finished batch, and of itself.

Plain values; knows the tensors and nothing that happens.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.batch_queue import QueueStatistics
from engines.tensors import Tensor


@dataclass(slots=True, eq=False)
class Execution:
    """One batch that ran, shared by the requests in it. Compared by identity."""

    input_ns: int
    """This and the two below: of the whole batch."""
    infer_ns: int
    output_ns: int
    rows: int
    number: int
    """Counts the batches of this version."""
    counted_by: tuple[object, ...] = ()
    """Whoever counts batches by their requests, and has counted this one already."""


@dataclass(slots=True)
class Executed:
    """A request's answer and where its time went."""

    outputs: tuple[Tensor, ...]
    """In the model's order; parts of the batch's output."""
    queue_ns: int
    execution: Execution


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReport:
    """One finished batch, for metrics."""

    rows: int
    requests: int
    reason: str
    infer_ns: int
    isolated: bool
    padded_rows: int
    """Run besides `rows`, to fill the engine's bucket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherStatistics:
    """Conservation: accepted = answered + failed + expired + cancelled + in_flight."""

    queue: QueueStatistics
    accepted: int
    answered: int
    failed: int
    expired: int
    cancelled: int
    in_flight: int
    """Accepted and not yet answered: queued, or in a running batch."""
    busy_instances: int
    """Those that run a batch at least."""
    instances: int
    lost_instances: int
    """Of the instances: those whose device failed, and that are being replaced."""
    graph_hits: int
    """Batches of the present instances that replayed a CUDA graph."""
    graph_misses: int
    """Batches of theirs that ran without one, though graphs were asked for."""
