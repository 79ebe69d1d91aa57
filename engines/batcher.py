"""The asyncio driver of one BatchQueue and the instances behind it.

Knows time, timers and threads; knows no protocol and no route. Every decision is the queue's:
this file asks it at the right moments and hands batches to instances. Read first: batch_queue.py.

A request is answered exactly once, through `on_done`, on the event loop: with an `Executed`, or
with an exception. Everything happens in callbacks: no coroutine, task or future per request.

When the queue is asked: once per loop tick after submissions (so that requests read from the
sockets in one tick can share a batch), when an instance becomes free, and when the oldest request's
delay passes. When deadlines are looked at: by one timer, set to the earliest.

Where a batch runs: in the event loop if the instance knows it to be short, else in the instance's
own thread. The thread costs some 40 us per batch, and the loop is held for as long as a batch runs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial

from engines.base import BatchPolicy, LanedEngine, ModelMetadata
from engines.batch_queue import Batch, BatchQueue, QueuedRequest, QueueIsFull
from engines.deadlines import DeadlineIndex
from engines.errors import (
    Cancelled,
    DeadlineExpired,
    EngineError,
    InstanceFailed,
    QueueFull,
    VersionNotReady,
)
from engines.executed import BatcherStatistics, BatchReport, Executed, Execution
from engines.instance import BatchResult, Host
from engines.signature import Signature
from engines.threads import in_daemon_thread

logger = logging.getLogger(__name__)


class Batcher:
    """Batches the requests of one model version and runs them on its instances.

    Latency contract: a request accepted by `submit` starts after at most
    ``max(max_queue_delay_us, time of ceil(max_queue_rows / max_batch_size / instances) batches)``,
    or fails with DeadlineExpired at its deadline, queued or executing.

    At the limit: `submit` raises QueueFull; nothing that was accepted is dropped.

    Invariants: queued rows <= max_queue_rows; an instance runs at most as many batches as its
    depth; each accepted request is answered exactly once, also on cancellation, expiry and drain.

    An instance whose device failed gets no further batch. `revive` makes another one of it; until
    then the others serve, and where there are none, what is queued fails and nothing is accepted.

    Cancellation: a queued request leaves the queue and never reaches the engine; one that is
    executing is computed and its answer discarded. Neighbours are never affected.

    Use from the event loop's thread only. Source of the semantics: Triton core,
    dynamic_batch_scheduler.cc; TensorFlow basic_batch_scheduler.h for the form of this contract.
    """

    def __init__(
        self,
        *,
        model: str,
        version: str,
        policy: BatchPolicy,
        instances: Sequence[Host],
        on_batch: Callable[[BatchReport], None] | None = None,
        revive: Callable[[Host], Coroutine[None, None, Host]] | None = None,
    ) -> None:
        self.policy = policy
        self._model = model
        self._version = version
        self._loop = asyncio.get_running_loop()
        self._queue = BatchQueue(policy)
        self._deadlines = DeadlineIndex()
        self._instances = list(instances)
        self._revive = revive
        self._lost: dict[Host, asyncio.Task[None] | None] = {}
        """Instances that failed, with what replaces them."""
        self.metadata: ModelMetadata = self._instances[0].engine.metadata
        self.artefact = bytes.fromhex(self.metadata.artifact_sha256[:16])
        """First 8 bytes of the model file's digest, for whoever names it in every answer."""
        self.signature = Signature(model, self.metadata)
        self._idle: deque[Host] = deque()
        """Instances that can take a batch, once for each that they can take."""
        self._capacity = 0
        """Batches that the instances take at once; all are in `_idle` when nothing runs."""
        for instance in self._instances:
            self._capacity += instance.depth
        for turn in range(max(instance.depth for instance in self._instances)):
            self._idle.extend(i for i in self._instances if turn < i.depth)
        self._on_batch = on_batch
        self._is_dispatch_scheduled = False
        self._delay_timer: asyncio.TimerHandle | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._deadline_timer_ns = 0
        self._drained: asyncio.Event | None = None
        self.on_trouble: Callable[[str], None] = lambda why: None
        """Told why nothing is accepted, when the last instance is lost; of "" when one is back."""
        self._batch_number = 0
        self._accepted = self._answered = self._failed = self._expired = self._cancelled = 0

    def __repr__(self) -> str:
        return f"<Batcher {self._model}/{self._version} {self._queue!r}>"

    def submit(self, request: QueuedRequest) -> None:
        """Accept a request, whose `on_done` will be called once, or refuse it.

        Raises:
            QueueFull: the queue's bound would be exceeded.
            VersionNotReady: the batcher is draining, or all its instances are lost.
        """
        if self._drained is not None:
            why = "it is being unloaded"
            raise VersionNotReady(model=self._model, version=self._version, why=why)
        if not self._capacity:
            raise VersionNotReady(model=self._model, version=self._version, why=self._trouble())
        try:
            self._queue.push(request)
        except QueueIsFull as full:
            raise QueueFull(
                model=self._model, version=self._version, limit=full.limit, unit=full.unit
            ) from None
        self._accepted += 1
        if request.deadline_ns is not None:
            self._deadlines.add(request)
            self._set_deadline_timer(request.deadline_ns)
        if self._idle and not self._is_dispatch_scheduled:
            self._is_dispatch_scheduled = True
            self._loop.call_soon(self._dispatch)

    def cancel(self, request: QueuedRequest) -> None:
        """Give up a request: `on_done` is called with Cancelled, unless it is already answered."""
        if not request.is_done:
            self._queue.remove(request)
            self._resolve(request, Cancelled())

    async def drain(self) -> None:
        """Refuse new requests and return when every accepted one is answered."""
        if self._drained is None:
            self._drained = asyncio.Event()
            self._queue.is_draining = True
        self._check_drained()
        self._dispatch()
        await self._drained.wait()

    async def close(self) -> None:
        """Drain, then close the instances, each in its own thread."""
        await self.drain()
        self._stop_timers()
        await self._stop_reviving()
        for instance in self._instances:
            await in_daemon_thread(f"sluice-close-{instance.name}", instance.close)

    def statistics(self) -> BatcherStatistics:
        """Return a frozen copy of the counters."""
        settled = self._answered + self._failed + self._expired + self._cancelled
        idle = Counter(self._idle)
        live = [instance for instance in self._instances if instance not in self._lost]
        engines = [i.engine for i in live]
        lanes = [e.statistics() for e in engines if isinstance(e, LanedEngine)]
        return BatcherStatistics(
            queue=self._queue.statistics(),
            accepted=self._accepted,
            answered=self._answered,
            failed=self._failed,
            expired=self._expired,
            cancelled=self._cancelled,
            in_flight=self._accepted - settled,
            busy_instances=sum(idle[i] < i.depth for i in live),
            instances=len(self._instances),
            lost_instances=len(self._lost),
            graph_hits=sum(found.graph_hits for found in lanes),
            graph_misses=sum(found.graph_misses for found in lanes),
        )

    def _dispatch(self) -> None:
        """Start every batch that is due while an instance is idle; set the timer for the rest.

        A batch that is known to be short runs right here, between two turns of the event loop:
        handing it to a thread would cost more than running it. One per turn, so that the loop gets
        to its sockets in between.
        """
        self._is_dispatch_scheduled = False
        if self._deadline_timer is not None and self._deadline_timer_ns <= time.monotonic_ns():
            # The loop is late: what has expired must not reach the engine before the timer runs.
            self._deadline_timer.cancel()
            self._expire()
        while self._idle:
            batch = self._queue.take(time.monotonic_ns())
            if batch is None:
                self._set_delay_timer()
                return
            instance = self._idle.popleft()
            if instance.is_short(batch.rows):
                result = instance.run(batch)
                if instance.failure is None:
                    self._idle.append(instance)
                else:
                    self._lose(instance)
                if len(self._queue) and not self._is_dispatch_scheduled:
                    self._is_dispatch_scheduled = True
                    self._loop.call_soon(self._dispatch)
                self._settle(batch, result)
                return
            instance.start(batch, partial(self._hand_back, instance, batch))

    def _hand_back(self, instance: Host, batch: Batch, result: BatchResult) -> None:
        """Bring a result to the event loop. Runs in the instance's thread."""
        try:
            self._loop.call_soon_threadsafe(self._finish, instance, batch, result)
        except RuntimeError:
            # The loop is closed: the process is past its drain limit and nobody waits any more.
            return

    def _finish(self, instance: Host, batch: Batch, result: BatchResult) -> None:
        """Take a result from the instance's thread."""
        if instance.failure is None:
            self._idle.append(instance)
        else:
            self._lose(instance)
        self._dispatch()  # the instance works on while the answers are sent
        self._settle(batch, result)

    def _settle(self, batch: Batch, result: BatchResult) -> None:
        """Answer the requests of a batch."""
        self._batch_number += 1
        execution = Execution(
            result.input_ns, result.infer_ns, result.output_ns, batch.rows, self._batch_number
        )
        started_ns = result.started_ns
        for request, outcome in zip(batch.requests, result.outcomes, strict=True):
            if request.is_done:
                continue
            if isinstance(outcome, EngineError):
                self._resolve(request, outcome)
            else:
                queue_ns = started_ns - request.enqueued_ns
                self._resolve(request, Executed(outcome, queue_ns, execution))
        self._check_drained()  # nobody may have been left to answer
        if self._on_batch is not None:
            report = BatchReport(
                rows=batch.rows,
                requests=len(batch.requests),
                reason=batch.reason,
                infer_ns=result.infer_ns,
                isolated=result.isolated,
                padded_rows=result.padded_rows,
            )
            self._on_batch(report)

    def _resolve(self, request: QueuedRequest, outcome: Executed | EngineError) -> None:
        """Answer a request that is not yet answered; the only place that calls `on_done`."""
        request.is_done = True
        if request.deadline_ns is not None:
            self._deadlines.discard(request)
        if outcome.__class__ is Executed:
            self._answered += 1
        else:
            self._count_error(outcome)
        try:
            request.on_done(outcome)
        except Exception as exc:  # a caller's fault must not cost its neighbours their answers
            context = {"message": "a reply callback failed", "exception": exc}
            self._loop.call_exception_handler(context)
        if self._drained is not None:
            self._check_drained()

    def _count_error(self, outcome: object) -> None:
        if isinstance(outcome, DeadlineExpired):
            self._expired += 1
        elif isinstance(outcome, Cancelled):
            self._cancelled += 1
        else:
            self._failed += 1

    def _check_drained(self) -> None:
        if self._drained is not None:
            settled = self._answered + self._failed + self._expired + self._cancelled
            if settled == self._accepted and len(self._idle) == self._capacity:
                self._drained.set()

    def _lose(self, instance: Host) -> None:
        """Give an instance that failed no further batch, and have it replaced."""
        if instance in self._lost or instance not in self._instances:
            return  # another of the batches that it had under way; it may be replaced by now
        self._capacity -= instance.depth
        self._idle = deque(other for other in self._idle if other is not instance)
        self._lost[instance] = None
        extra = {"model": self._model, "version": self._version, "instance": instance.name}
        logger.error("instance lost", extra=extra | {"reason": str(instance.failure)})
        if not self._capacity:
            self.on_trouble(self._trouble())
            for request in self._queue.clear():
                failed = InstanceFailed(model=self._model, version=self._version)
                self._resolve(request, failed)
        if self._revive is not None and self._drained is None:
            replacing = self._replace(instance, self._revive)
            self._lost[instance] = self._loop.create_task(replacing, name=f"revive {instance.name}")

    async def _replace(
        self, lost: Host, revive: Callable[[Host], Coroutine[None, None, Host]]
    ) -> None:
        revived = await revive(lost)
        self._instances[self._instances.index(lost)] = revived
        del self._lost[lost]
        was_trouble = not self._capacity
        self._capacity += revived.depth
        self._idle.extend([revived] * revived.depth)
        extra = {"model": self._model, "version": self._version, "instance": revived.name}
        logger.info("instance revived", extra=extra)
        if was_trouble:
            self.on_trouble("")
        self._dispatch()

    def _trouble(self) -> str:
        """Say why nothing is accepted, where there is no instance left."""
        return f"{next(iter(self._lost)).failure}; it is being loaded again"

    async def _stop_reviving(self) -> None:
        tasks = [task for task in self._lost.values() if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _set_delay_timer(self) -> None:
        due_ns = self._queue.next_due_ns()
        if self._delay_timer is not None:
            self._delay_timer.cancel()
            self._delay_timer = None
        if due_ns is not None:
            self._delay_timer = self._call_at(due_ns, self._dispatch)

    def _set_deadline_timer(self, deadline_ns: int) -> None:
        if self._deadline_timer is not None:
            if self._deadline_timer_ns <= deadline_ns:
                return
            self._deadline_timer.cancel()
        self._deadline_timer_ns = deadline_ns
        self._deadline_timer = self._call_at(deadline_ns, self._expire)

    def _expire(self) -> None:
        self._deadline_timer = None
        now_ns = time.monotonic_ns()
        for request in self._deadlines.expired(now_ns):
            if request.is_done:  # cancelled by the reply callback of one before it
                continue
            stage = "queued" if self._queue.remove(request) else "executing"
            waited_ns = now_ns - request.enqueued_ns
            self._resolve(
                request,
                DeadlineExpired(
                    model=self._model, version=self._version, stage=stage, waited_ns=waited_ns
                ),
            )
        next_ns = self._deadlines.next_ns()
        if next_ns is not None:
            self._set_deadline_timer(next_ns)

    def _call_at(self, instant_ns: int, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Set a timer for a monotonic instant, never early: loop timers may round down."""
        delay_s = max(0, instant_ns - time.monotonic_ns()) / 1e9
        return self._loop.call_later(delay_s + 0.0005 if delay_s else 0.0, callback)

    def _stop_timers(self) -> None:
        for timer in (self._delay_timer, self._deadline_timer):
            if timer is not None:
                timer.cancel()
