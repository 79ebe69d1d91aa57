"""One loaded copy of a version and its worker thread: one hop per batch, results by callback.

Knows how to lay requests into a batch, run the engine and cut the answer; knows no queue and no
deadline. The thread lives as long as the instance. Cancellation: a running batch runs to its end
and its answer is dropped by the batcher.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final

from engines.base import Engine, ModelMetadata
from engines.batch_queue import Batch, QueuedRequest
from engines.errors import EngineError, InstanceFailed
from engines.tensors import Array, Tensor, from_array, join_rows, split_rows

logger = logging.getLogger(__name__)

LOG_EVERY_NS: Final = 1_000_000_000
"""Least time between two logged failures of one instance."""


@dataclass(slots=True, kw_only=True)
class BatchResult:
    """What a batch came to: one outcome per request, and where its time went."""

    outcomes: Sequence[tuple[Tensor, ...] | EngineError]
    """Outputs in the model's order, or the error, in the order of the batch's requests."""
    started_ns: int
    input_ns: int
    """Laying the inputs into the batch."""
    infer_ns: int
    output_ns: int
    """Cutting the outputs per request."""
    isolated: bool = False
    """The batch failed as a whole, so each request was run alone."""


class Instance:
    """An engine and the thread that calls it.

    `start` hands a batch over and returns at once; `on_result` is called in the worker thread.
    At most one batch is under way: the batcher starts the next one after the result.
    """

    def __init__(
        self,
        *,
        name: str,
        model: str,
        version: str,
        engine: Engine,
        log_every_ns: int = LOG_EVERY_NS,
    ) -> None:
        self.name = name
        self._log_every_ns = log_every_ns
        self.engine = engine
        self._model = model
        self._version = version
        self._next_log_ns = 0
        self._unlogged = 0
        """Failures since the last one that was logged."""
        self._batches: SimpleQueue[tuple[Batch, Callable[[BatchResult], None]] | None]
        self._batches = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"sluice-{name}", daemon=True)
        self._thread.start()

    def start(self, batch: Batch, on_result: Callable[[BatchResult], None]) -> None:
        """Hand a batch to the worker thread."""
        self._batches.put((batch, on_result))

    def close(self) -> None:
        """Finish the batch under way, close the engine in its thread, end the thread. Blocks."""
        self._batches.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._batches.get()) is not None:
            batch, on_result = job
            on_result(self._execute(batch.requests))
            del job, batch, on_result  # hold no request while waiting for the next
        self.engine.close()

    def _execute(self, requests: Sequence[QueuedRequest]) -> BatchResult:
        """Run the batch; if it fails and holds several requests, run each alone.

        A value that only one of them carries (an index out of range, text that is no UTF-8) must
        not fail its neighbours.
        """
        started_ns = time.monotonic_ns()
        try:
            return self._run(requests, started_ns)
        except Exception as exc:  # the engine's own exceptions are foreign: translated here
            if len(requests) == 1:
                outcomes: list[tuple[Tensor, ...] | EngineError] = [self._as_error(exc)]
            else:
                outcomes = [self._run_alone(request) for request in requests]
            spent_ns = time.monotonic_ns() - started_ns
            return BatchResult(
                outcomes=outcomes,
                started_ns=started_ns,
                input_ns=0,
                infer_ns=spent_ns,
                output_ns=0,
                isolated=len(requests) > 1,
            )

    def _run_alone(self, request: QueuedRequest) -> tuple[Tensor, ...] | EngineError:
        try:
            outcome = self._run([request], time.monotonic_ns()).outcomes[0]
        except Exception as exc:  # see _execute
            return self._as_error(exc)
        return outcome

    def _as_error(self, exc: Exception) -> EngineError:
        if isinstance(exc, EngineError):
            return exc
        self._log_failure(exc)
        return InstanceFailed(model=self._model, version=self._version)

    def _log_failure(self, exc: Exception) -> None:
        """Log a failure with its trace; of a series one per LOG_EVERY_NS, with their number."""
        self._unlogged += 1
        now_ns = time.monotonic_ns()
        if now_ns < self._next_log_ns:
            return  # a trace costs more than most requests, and the next one says the same
        extra: dict[str, object] = {"model": self._model, "version": self._version}
        extra |= {"instance": self.name, "failures": self._unlogged}
        logger.error("engine failed", exc_info=exc, extra=extra)
        self._next_log_ns = now_ns + self._log_every_ns
        self._unlogged = 0

    def _run(self, requests: Sequence[QueuedRequest], started_ns: int) -> BatchResult:
        metadata = self.engine.metadata
        batch = {
            spec.name: join_rows([request.inputs[position] for request in requests])
            for position, spec in enumerate(metadata.inputs)
        }
        laid_ns = time.monotonic_ns()
        outputs = self.engine.infer(batch)
        inferred_ns = time.monotonic_ns()
        outcomes = _cut(metadata, outputs, requests)
        return BatchResult(
            outcomes=outcomes,
            started_ns=started_ns,
            input_ns=laid_ns - started_ns,
            infer_ns=inferred_ns - laid_ns,
            output_ns=time.monotonic_ns() - inferred_ns,
        )


def _cut(
    metadata: ModelMetadata, outputs: dict[str, Array], requests: Sequence[QueuedRequest]
) -> list[tuple[Tensor, ...]]:
    if metadata.max_batch_size == 0 or len(requests) == 1:
        return [tuple(from_array(s.name, s.datatype, outputs[s.name]) for s in metadata.outputs)]
    rows = [request.rows for request in requests]
    total = sum(rows)
    columns = []
    for spec in metadata.outputs:
        array = outputs[spec.name]
        if array.shape[:1] != (total,):
            raise ValueError(
                f"output {spec.name!r} has shape {array.shape} for a batch of {total} rows"
            )
        columns.append(split_rows(spec.name, spec.datatype, array, rows))
    return list(zip(*columns, strict=True))
