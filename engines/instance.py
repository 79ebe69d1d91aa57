"""One loaded copy of a version and its worker thread: one hop per batch, results by callback.

Knows how to run a batch and how long batches take; knows no queue and no deadline. The thread lives
as long as the instance. Cancellation: a running batch runs to its end and its answer is dropped by
the batcher. Read next: layout.py (how requests are laid into a batch and the answer is cut).

Short batches. Handing a batch to a thread and its result back costs some 40 us, more than a small
model takes. So an instance learns what batches of about so many rows take (a moving average per
power of two), and those under `SHORT_NS` may be run by the caller itself, on the event loop, with
`run`. Only engines that say of themselves that they are steady are trusted with that: one that can
wait for a device, or whose time depends on what it is given, keeps to its thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, Protocol

from engines.base import Engine
from engines.batch_queue import Batch, QueuedRequest
from engines.errors import DeviceFailed, EngineError, InstanceFailed
from engines.layout import Layout
from engines.tensors import Tensor

logger = logging.getLogger(__name__)

LOG_EVERY_NS: Final = 1_000_000_000
"""Least time between two logged failures of one instance."""
SHORT_NS: Final = 250_000
"""A batch that takes less than this is cheaper to run where it is than to hand to a thread."""


@dataclass(slots=True)
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
    padded_rows: int = 0
    """Rows that were run besides those of the requests, to fill the engine's bucket."""


class Host(Protocol):
    """What a batcher gives its batches to: an engine with whatever calls it."""

    name: str
    failure: DeviceFailed | None
    """Why it can run no further batch and is to be replaced; set before the result shows it."""

    @property
    def engine(self) -> Engine:
        """What runs the batches."""

    @property
    def depth(self) -> int:
        """Batches that it takes at once."""

    def start(self, batch: Batch, on_result: Callable[[BatchResult], None]) -> None:
        """Run a batch elsewhere and return at once; `on_result` is called in another thread."""

    def is_short(self, rows: int) -> bool:
        """Whether a batch of so many rows may and should be run by the caller."""

    def run(self, batch: Batch) -> BatchResult:
        """Run a batch in the caller's thread, where `is_short` says so."""

    def close(self) -> None:
        """Finish what is under way and close the engine. Blocks."""


class Failures:
    """Turns what an engine raises into what a request is told; logs what is nobody's fault.

    Args:
        name: the instance's, for the log.
    """

    def __init__(self, *, name: str, model: str, version: str, log_every_ns: int) -> None:
        self._name = name
        self._model = model
        self._version = version
        self._log_every_ns = log_every_ns
        self._next_log_ns = 0
        self._unlogged = 0
        """Failures since the last one that was logged."""

    def as_error(self, exc: Exception) -> EngineError:
        """Return what the request is told."""
        if isinstance(exc, EngineError) and not isinstance(exc, DeviceFailed):
            return exc
        self._log(exc)
        return InstanceFailed(model=self._model, version=self._version)

    def _log(self, exc: Exception) -> None:
        """Log a failure with its trace; of a series one per `log_every_ns`, with their number."""
        self._unlogged += 1
        now_ns = time.monotonic_ns()
        if now_ns < self._next_log_ns:
            return  # a trace costs more than most requests, and the next one says the same
        extra: dict[str, object] = {"model": self._model, "version": self._version}
        extra |= {"instance": self._name, "failures": self._unlogged}
        logger.error("engine failed", exc_info=exc, extra=extra)
        self._next_log_ns = now_ns + self._log_every_ns
        self._unlogged = 0


class Instance:
    """An engine and the thread that calls it.

    `start` hands a batch over and returns at once; `on_result` is called in the worker thread.
    `run` runs a batch in the caller's thread. At most one batch is under way, whichever way: the
    batcher starts the next one after the result.

    Args:
        may_run_inline: whether batches may be run by the caller; False: only in the thread.
    """

    def __init__(
        self,
        *,
        name: str,
        model: str,
        version: str,
        engine: Engine,
        log_every_ns: int = LOG_EVERY_NS,
        may_run_inline: bool = False,
    ) -> None:
        self.name = name
        self.engine = engine
        self.depth = 1
        self.failure: DeviceFailed | None = None
        self._failures = Failures(
            name=name, model=model, version=version, log_every_ns=log_every_ns
        )
        self._may_run_inline = may_run_inline and engine.metadata.is_steady
        self._layout = Layout(engine.metadata)
        self._cost_ns: dict[int, int] = {}
        """By the number of bits of a batch's rows: a moving average of its time."""
        self._batches: SimpleQueue[tuple[Batch, Callable[[BatchResult], None]] | None]
        self._batches = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"sluice-{name}", daemon=True)
        self._thread.start()

    def start(self, batch: Batch, on_result: Callable[[BatchResult], None]) -> None:
        """Hand a batch to the worker thread."""
        self._batches.put((batch, on_result))

    def is_short(self, rows: int) -> bool:
        """Whether a batch of so many rows may and should be run by the caller."""
        if not self._may_run_inline:
            return False
        return self._cost_ns.get(rows.bit_length(), SHORT_NS) < SHORT_NS

    def _learn(self, rows: int, spent_ns: int) -> None:
        """Take a batch's time into the average; a longer one counts at once, a shorter slowly."""
        bits = rows.bit_length()
        known_ns = self._cost_ns.get(bits, spent_ns)
        weight = 2 if spent_ns > known_ns else 8
        self._cost_ns[bits] = known_ns + (spent_ns - known_ns) // weight

    def close(self) -> None:
        """Finish the batch under way, close the engine in its thread, end the thread. Blocks."""
        self._batches.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._batches.get()) is not None:
            batch, on_result = job
            on_result(self.run(batch))
            del job, batch, on_result  # hold no request while waiting for the next
        self.engine.close()

    def run(self, batch: Batch) -> BatchResult:
        """Run a batch in the caller's thread; if it fails and has several requests, each alone.

        A value that only one of them carries (an index out of range, text that is no UTF-8) must
        not fail its neighbours.
        """
        requests = batch.requests
        started_ns = time.monotonic_ns()
        try:
            result = self._run(requests, batch.rows, started_ns)
        except Exception as exc:  # the engine's own exceptions are foreign: translated here
            outcomes: list[tuple[Tensor, ...] | EngineError]
            if len(requests) == 1 or isinstance(exc, DeviceFailed):
                outcomes = [self._as_error(exc)] * len(requests)
            else:
                outcomes = [self._run_alone(request) for request in requests]
            spent_ns = time.monotonic_ns() - started_ns
            result = BatchResult(outcomes, started_ns, 0, spent_ns, 0, len(requests) > 1)
        if self._may_run_inline:
            self._learn(batch.rows, result.input_ns + result.infer_ns + result.output_ns)
        return result

    def _run_alone(self, request: QueuedRequest) -> tuple[Tensor, ...] | EngineError:
        try:
            outcome = self._run([request], request.rows, time.monotonic_ns()).outcomes[0]
        except Exception as exc:  # see run
            return self._as_error(exc)
        return outcome

    def _as_error(self, exc: Exception) -> EngineError:
        if isinstance(exc, DeviceFailed):
            self.failure = exc
        return self._failures.as_error(exc)

    def _run(self, requests: Sequence[QueuedRequest], rows: int, started_ns: int) -> BatchResult:
        arrays = self._layout.lay(requests, rows)
        laid_ns = time.monotonic_ns()
        outputs = self.engine.infer(arrays)
        inferred_ns = time.monotonic_ns()
        outcomes = self._layout.cut(outputs, requests, rows)
        cut_ns = time.monotonic_ns() - inferred_ns
        padded_rows = self._layout.run_rows(rows) - rows
        return BatchResult(
            outcomes,
            started_ns,
            laid_ns - started_ns,
            inferred_ns - laid_ns,
            cut_ns,
            padded_rows=padded_rows,
        )
