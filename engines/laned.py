"""One loaded copy of a laned engine and its two threads: one copies in, the other copies out.

Knows how batches overlap; knows no device, no queue and no deadline. The first thread takes a lane,
writes the requests' rows straight into its buffers and submits it; the second waits for the oldest
batch, cuts its answer and gives the lane back. So batch k is copied in while k-1 computes and k-2
is copied out, as far as there are lanes. Results come in the order of the batches.

A batch that fails as a whole is run again request by request, through the same lanes; a device that
fails takes all that is under way with it, and nothing is tried again.

The end. `close` puts a mark behind the batches that were started. What fails as a whole before the
mark has passed both threads comes again behind it, so the mark goes round twice: what comes again
is one request, and does not come a third time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from engines.base import LanedEngine, Lease
from engines.batch_queue import Batch
from engines.errors import DeviceFailed, EngineError
from engines.instance import LOG_EVERY_NS, BatchResult, Failures
from engines.layout import Layout
from engines.tensors import Tensor

_OnResult = Callable[[BatchResult], None]


@dataclass(slots=True)
class _Running:
    """A submitted batch."""

    batch: Batch
    on_result: _OnResult
    lease: Lease
    started_ns: int
    submitted_ns: int


class LanedInstance:
    """A laned engine behind the interface of an instance; takes as many batches as it has lanes.

    `start` hands a batch over and returns at once; `on_result` is called in one of its threads.
    """

    def __init__(
        self,
        *,
        name: str,
        model: str,
        version: str,
        engine: LanedEngine,
        log_every_ns: int = LOG_EVERY_NS,
    ) -> None:
        self.name = name
        self.engine = engine
        self.depth = engine.lanes
        self.failure: DeviceFailed | None = None
        self._layout = Layout(engine.metadata)
        self._failures = Failures(
            name=name, model=model, version=version, log_every_ns=log_every_ns
        )
        self._free = threading.Semaphore(engine.lanes)
        self._batches: SimpleQueue[tuple[Batch, _OnResult] | None] = SimpleQueue()
        self._running: SimpleQueue[_Running | None] = SimpleQueue()
        self._closing = threading.Lock()
        self._is_closing = False
        self._collected_ns = 0
        """When the last answer was there: until then the device was not only the next one's."""
        self._threads = [
            threading.Thread(target=work, name=f"sluice-{name}-{what}", daemon=True)
            for what, work in (("in", self._submit_all), ("out", self._collect_all))
        ]
        for thread in self._threads:
            thread.start()

    def start(self, batch: Batch, on_result: _OnResult) -> None:
        """Hand a batch to the threads."""
        self._batches.put((batch, on_result))

    def is_short(self, rows: int) -> bool:
        """Never: whoever waits for a device does it in a thread."""
        del rows
        return False

    def run(self, batch: Batch) -> BatchResult:
        """Refuse: see `is_short`."""
        raise NotImplementedError("a laned instance runs batches in its own threads only")

    def close(self) -> None:
        """Finish the batches under way, close the engine, end the threads. Blocks."""
        with self._closing:  # of several who close at once, one
            if not self._is_closing:
                self._is_closing = True
                self._batches.put(None)
        for thread in self._threads:
            thread.join()

    def _submit_all(self) -> None:
        for _ in ("those started", "those that come again"):
            while (job := self._batches.get()) is not None:
                self._submit(*job)
                del job  # hold no request while waiting for the next
            self._running.put(None)

    def _submit(self, batch: Batch, on_result: _OnResult) -> None:
        self._free.acquire()
        started_ns = time.monotonic_ns()
        lease = None
        try:
            if self.failure is not None:
                raise self.failure
            lease = self.engine.acquire(self._layout.shapes(batch.requests, batch.rows))
            self._layout.fill(batch.requests, lease.inputs)
            submitted_ns = time.monotonic_ns()
            self.engine.submit(lease)
        except Exception as exc:  # the engine's own exceptions are foreign: translated here
            self._give_back(lease)
            self._fail(batch, on_result, exc, started_ns)
        else:
            self._running.put(_Running(batch, on_result, lease, started_ns, submitted_ns))

    def _collect_all(self) -> None:
        self._collect_to_the_mark()
        self._batches.put(None)
        self._collect_to_the_mark()
        self.engine.close()

    def _collect_to_the_mark(self) -> None:
        while (running := self._running.get()) is not None:
            self._collect(running)
            del running

    def _collect(self, running: _Running) -> None:
        batch, started_ns = running.batch, running.started_ns
        try:
            outputs = self.engine.collect(running.lease)
            collected_ns = time.monotonic_ns()
            outcomes = self._layout.cut(outputs, batch.requests, batch.rows, is_lent=True)
            del outputs
        except Exception as exc:  # see _submit
            self._give_back(running.lease)
            self._fail(batch, running.on_result, exc, started_ns)
            return
        self._give_back(running.lease)
        began_ns = max(running.submitted_ns, self._collected_ns)
        self._collected_ns = collected_ns
        running.on_result(
            BatchResult(
                outcomes,
                started_ns,
                running.submitted_ns - started_ns,
                collected_ns - began_ns,
                time.monotonic_ns() - collected_ns,
                padded_rows=self._layout.run_rows(batch.rows) - batch.rows,
            )
        )

    def _give_back(self, lease: Lease | None) -> None:
        if lease is not None:
            self.engine.release(lease)
        self._free.release()

    def _fail(self, batch: Batch, on_result: _OnResult, exc: Exception, started_ns: int) -> None:
        """Answer a failed batch, or run its requests each alone if the device is not to blame."""
        if isinstance(exc, DeviceFailed):
            self.failure = exc
        requests = batch.requests
        if len(requests) > 1 and self.failure is None:
            gathering = _Gathering(len(requests), on_result, started_ns)
            for position, request in enumerate(requests):
                alone = Batch((request,), request.rows, batch.reason)
                self.start(alone, gathering.taker(position))
            return
        outcome = self._failures.as_error(exc)
        spent_ns = time.monotonic_ns() - started_ns
        on_result(BatchResult([outcome] * len(requests), started_ns, 0, spent_ns, 0))


class _Gathering:
    """Gathers the results of a batch whose requests are run each alone; used from both threads."""

    def __init__(self, requests: int, on_result: _OnResult, started_ns: int) -> None:
        self._outcomes: list[tuple[Tensor, ...] | EngineError | None] = [None] * requests
        self._missing = requests
        self._lock = threading.Lock()
        self._on_result = on_result
        self._started_ns = started_ns

    def taker(self, position: int) -> _OnResult:
        """Return what takes the result of the request at a position."""

        def take(result: BatchResult) -> None:
            self._outcomes[position] = result.outcomes[0]
            with self._lock:
                self._missing -= 1
                is_last = not self._missing
            if is_last:
                self._on_result(self._result())

        return take

    def _result(self) -> BatchResult:
        outcomes: Sequence[tuple[Tensor, ...] | EngineError] = [
            outcome for outcome in self._outcomes if outcome is not None
        ]
        spent_ns = time.monotonic_ns() - self._started_ns
        return BatchResult(outcomes, self._started_ns, 0, spent_ns, 0, isolated=True)
