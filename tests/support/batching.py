"""A batcher on fake engines whose batches end when a test says so, and replies that are counted.

Nothing here waits by the clock: a `Gate` holds a batch inside the engine, a `Reply` is awaited. The
timeouts only turn a hang into a failure.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, cast

import numpy as np

from engines.base import BatchPolicy, TensorSpec
from engines.batch_queue import CallbackRequest, QueuedRequest
from engines.batcher import Batcher
from engines.errors import EngineError
from engines.executed import BatcherStatistics, BatchReport, Executed
from engines.fake import FakeEngine, Script
from engines.instance import Instance
from engines.tensors import Tensor, from_array

HANG_S: Final = 10.0
MS: Final = 1_000_000
"""Nanoseconds in a millisecond."""
ECHO_INPUT: Final = TensorSpec(name="x", datatype="FP32", shape=(-1, -1))
ECHO_OUTPUT: Final = TensorSpec(name="y", datatype="FP32", shape=(-1, -1))


async def until(is_so: Callable[[], bool]) -> None:
    """Return when something is so that the code under test announces to nobody."""
    async with asyncio.timeout(HANG_S):
        while not is_so():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)


class Gate:
    """Stands in for a fake engine's `sleep`: holds each batch until it is let go."""

    def __init__(self) -> None:
        self._entered = threading.Semaphore(0)
        self._let_go = threading.Semaphore(0)
        self._is_open = False

    def __call__(self, pause_s: float) -> None:
        self._entered.release()
        if not self._is_open and not self._let_go.acquire(timeout=HANG_S):
            raise TimeoutError("the test never let this batch go")

    async def entered(self) -> None:
        """Return when one more batch is inside the engine."""
        if not await asyncio.to_thread(self._entered.acquire, timeout=HANG_S):
            raise TimeoutError("no batch reached the engine")

    def let_go(self, batches: int = 1) -> None:
        """Let so many batches end, now or when they come."""
        self._let_go.release(batches)

    def open(self) -> None:
        """Hold nothing any more."""
        self._is_open = True
        self._let_go.release(1_000)


class Reply:
    """The `on_done` of one request: keeps every outcome, so that a second one shows."""

    def __init__(self) -> None:
        self.outcomes: list[object] = []
        self.at_ns = 0
        self._came = asyncio.Event()

    def __call__(self, outcome: object) -> None:
        self.at_ns = time.monotonic_ns()
        self.outcomes.append(outcome)
        self._came.set()

    async def outcome(self) -> object:
        """Wait for the outcome; there must be only one."""
        await asyncio.wait_for(self._came.wait(), HANG_S)
        (only,) = self.outcomes
        return only

    async def executed(self) -> Executed:
        """Wait for an answer that is no error."""
        outcome = await self.outcome()
        assert isinstance(outcome, Executed), outcome
        return outcome

    async def values(self) -> list[float]:
        """Wait for the answer and return the elements of its first output."""
        return [float(v) for v in (await self.executed()).outputs[0].array().reshape(-1)]

    async def error(self) -> EngineError:
        """Wait for an outcome that is an error."""
        outcome = await self.outcome()
        assert isinstance(outcome, EngineError), outcome
        return outcome


def rows_of(values: Sequence[float], width: int = 1) -> Tensor:
    """Return an FP32 tensor `x` of one row per value, each value repeated `width` times."""
    column = np.asarray(values, dtype=np.float32).reshape(-1, 1)
    return from_array("x", "FP32", np.repeat(column, width, axis=1))


def make_request(
    values: Sequence[float] = (0.0,),
    *,
    width: int = 1,
    enqueued_ns: int | None = None,
    deadline_ns: int | None = None,
    priority: int = 0,
    on_done: Callable[[object], None] = lambda outcome: None,
) -> QueuedRequest:
    """Return a request of one row per value; `width` makes its shape."""
    return CallbackRequest(
        inputs=(rows_of(values, width),),
        rows=len(values),
        shape_key=((width,),),
        enqueued_ns=time.monotonic_ns() if enqueued_ns is None else enqueued_ns,
        deadline_ns=deadline_ns,
        priority=priority,
        on_done=on_done,
    )


class Bench:
    """A batcher under test, its engines, and everything that it reported."""

    def __init__(
        self,
        batcher: Batcher,
        instances: Sequence[Instance],
        gate: Gate,
        reports: list[BatchReport],
    ) -> None:
        self.batcher = batcher
        self.instances = instances
        self.engines = [cast("FakeEngine", instance.engine) for instance in instances]
        self.gate = gate
        self.reports = reports

    def submit(
        self,
        *values: float,
        width: int = 1,
        deadline_ns: int | None = None,
        priority: int = 0,
        then: Callable[[object], None] | None = None,
    ) -> tuple[QueuedRequest, Reply]:
        """Submit one request; `then` runs inside its reply callback, after it was recorded."""
        reply = Reply()

        def on_done(outcome: object) -> None:
            reply(outcome)
            self.statistics()
            if then is not None:
                then(outcome)

        request = make_request(
            values, width=width, deadline_ns=deadline_ns, priority=priority, on_done=on_done
        )
        self.batcher.submit(request)
        self.statistics()
        return request, reply

    def cancel(self, request: QueuedRequest) -> None:
        """Cancel a request."""
        self.batcher.cancel(request)
        self.statistics()

    def statistics(self) -> BatcherStatistics:
        """Return the batcher's counters, checking that no request was lost or counted twice."""
        found = self.batcher.statistics()
        settled = found.answered + found.failed + found.expired + found.cancelled
        assert found.accepted == settled + found.in_flight
        assert found.in_flight >= found.queue.queued_requests >= 0
        assert 0 <= found.busy_instances <= found.instances
        return found

    async def block(self, *values: float, width: int = 1) -> tuple[QueuedRequest, Reply]:
        """Occupy an instance: submit a request and return when it is inside the engine."""
        submitted = self.submit(*(values or (0.0,)), width=width)
        await self.gate.entered()
        return submitted


def build_bench(
    policy: BatchPolicy | None = None,
    *,
    instances: int = 1,
    is_gated: bool = False,
    script: Script | None = None,
) -> Bench:
    """Make a batcher over fakes that echo `x` as `y`; on a running loop."""
    policy = policy or BatchPolicy(max_batch_size=8)
    gate = Gate()
    engines = [
        FakeEngine(
            inputs=(ECHO_INPUT,),
            outputs=(ECHO_OUTPUT,),
            max_batch_size=policy.max_batch_size,
            script=script or Script(latency_s=1.0 if is_gated else 0.0),
            sleep=gate,
        )
        for _ in range(instances)
    ]
    hosts = [
        Instance(name=f"echo/1#{n}", model="echo", version="1", engine=engine)
        for n, engine in enumerate(engines)
    ]
    reports: list[BatchReport] = []
    batcher = Batcher(
        model="echo", version="1", policy=policy, instances=hosts, on_batch=reports.append
    )
    return Bench(batcher, hosts, gate, reports)


@asynccontextmanager
async def make_bench(
    policy: BatchPolicy | None = None,
    *,
    instances: int = 1,
    is_gated: bool = False,
    script: Script | None = None,
) -> AsyncIterator[Bench]:
    """Make a bench; let go of every batch, drain and close at the end."""
    bench = build_bench(policy, instances=instances, is_gated=is_gated, script=script)
    try:
        yield bench
    finally:
        bench.gate.open()
        await asyncio.wait_for(bench.batcher.close(), HANG_S)
        assert bench.statistics().in_flight == 0
