"""Shadow lanes on real batchers and fake engines, a log that keeps what it is offered, no waiting.

Copies come from `Copies.load` in place of a repository, so that a test holds each copy's batches by
a gate of its own and each load by an event.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from engines.base import BatchPolicy, EngineConfig, ModelSpec, VersionPolicy
from engines.batcher import Batcher
from engines.executed import BatchReport, Executed
from engines.fake import FakeEngine, Script
from engines.instance import Instance
from engines.served import ServedVersion, VersionState
from engines.tensors import Tensor
from gateway import ids
from gateway.prediction_log.counts import LogStatistics
from gateway.prediction_log.labels import LabelInput
from gateway.prediction_log.record import PredictionRecord
from gateway.prediction_log.spool.store import DropReason
from gateway.request import InferRequest
from gateway.shadowing import Mirrored, Shadows, ShadowStatistics
from router.routes import Shadow
from tests.support.batching import ECHO_INPUT, ECHO_OUTPUT, HANG_S, Gate, rows_of, until

ROUTE: Final = "digits"
NAME: Final = "v3"
KEY: Final = (ROUTE, NAME)
ROW_BYTES: Final = 4
PATIENT_MS: Final = 60_000
"""A deadline that no test reaches."""
FAIL_ON: Final = 13.0
BAD_ON: Final = 14.0


def shadow(
    version: str = "3",
    *,
    name: str = NAME,
    queue_items: int = 256,
    queue_bytes: int = 1 << 20,
    deadline_ms: int = PATIENT_MS,
) -> Shadow:
    """Return a shadow of everything."""
    return Shadow(
        name=name,
        model="mnist",
        version=version,
        sample_slots=1_000_000,
        queue_items=queue_items,
        queue_bytes=queue_bytes,
        deadline_ms=deadline_ms,
    )


def mirrored(*values: float, inputs: tuple[Tensor, ...] | None = None) -> Mirrored:
    """Return a live request of one row per value."""
    return Mirrored(
        rid=ids.new_id(),
        cid=str(values[0]) if values else "",
        ts_us=1_767_225_600_000_000,
        name=ROUTE,
        revision=7,
        variant="stable",
        inputs=(rows_of(values),) if inputs is None else inputs,
    )


class Weighed(bytearray):
    """Tensor data whose end can be watched."""


class Scale:
    """Makes requests of a given size and knows which of them are still in memory."""

    def __init__(self) -> None:
        self._alive: weakref.WeakSet[Weighed] = weakref.WeakSet()
        self._references: list[weakref.ref[Weighed]] = []

    def request(self, value: float = 0.0, *, rows: int = 1) -> Mirrored:
        """Return a request of `rows` rows."""
        tensor = rows_of([value] * rows)
        data = Weighed(tensor.data)
        self._references.append(weakref.ref(data))
        return mirrored(value, inputs=(tensor._replace(data=data),))

    @property
    def alive_bytes(self) -> int:
        """Bytes of the requests that something still refers to."""
        return sum(len(data) for ref in self._references if (data := ref()) is not None)


class KeptRecords:
    """A log that keeps every record; raises instead while it is told to."""

    def __init__(self) -> None:
        self.is_on = True
        self.records: list[PredictionRecord] = []
        self.subject_of: Callable[[InferRequest], str] | None = None
        self.fault: Exception | None = None
        self.on_offer: Callable[[], None] = lambda: None

    async def start(self) -> None:
        """Do nothing."""

    def offer(self, record: PredictionRecord, is_committed: bool = False) -> None:
        """Keep the record."""
        self.on_offer()
        if self.fault is not None:
            raise self.fault
        self.records.append(record)

    def commit(self, done: Callable[[DropReason | None], None]) -> None:
        """Say that all is written."""
        done(None)

    def label(self, label: LabelInput) -> bool:
        """Refuse it."""
        return False

    def statistics(self) -> LogStatistics:
        """Return zeros."""
        return LogStatistics()

    async def close(self, timeout_s: float) -> None:
        """Do nothing."""


class CountingGate(Gate):
    """A gate that counts those who come to it."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __call__(self, pause_s: float) -> None:
        self.entries += 1
        super().__call__(pause_s)


class Copy:
    """One copy that was loaded: its version, its engine, its gate."""

    def __init__(self, model: str, version: str, policy: BatchPolicy, *, is_gated: bool) -> None:
        self.gate = CountingGate()
        self.reports: list[BatchReport] = []
        self.engine = FakeEngine(
            inputs=(ECHO_INPUT,),
            outputs=(ECHO_OUTPUT,),
            max_batch_size=policy.max_batch_size,
            script=Script(latency_s=float(is_gated), fail_on=FAIL_ON, bad_on=BAD_ON),
            sleep=self.gate,
        )
        spec = ModelSpec(
            name=model,
            directory=Path(model),
            backend="fake",
            filename="model.json",
            instances=1,
            engine=EngineConfig(),
            batching=policy,
            versions=VersionPolicy(),
        )
        self.served = ServedVersion(model=model, version=version, spec=spec)
        self.batcher = Batcher(
            model=model,
            version=version,
            policy=policy,
            instances=[
                Instance(
                    name=f"{model}/{version}", model=model, version=version, engine=self.engine
                )
            ],
            on_batch=self.reports.append,
        )
        self.served.move(VersionState.READY, batcher=self.batcher)

    @property
    def is_executing(self) -> bool:
        """Whether a batch is inside the engine."""
        return self.batcher.statistics().busy_instances > 0

    async def entered(self) -> None:
        """Wait until one more batch is inside the engine."""
        await self.gate.entered()

    async def end_batch(self) -> None:
        """Let the batch inside the engine end and its answers be given.

        A batch that fails comes to the gate again with each of its requests.
        """
        ended, let_go = len(self.reports), self.gate.entries
        self.gate.let_go()

        def has_ended() -> bool:
            nonlocal let_go
            if self.gate.entries > let_go and len(self.reports) == ended:
                let_go += 1
                self.gate.let_go()
            return len(self.reports) > ended

        await until(has_ended)


class Copies:
    """Loads copies that echo `x` as `y`, and remembers them."""

    def __init__(self, *, policy: BatchPolicy | None = None, is_gated: bool = False) -> None:
        self._policy = policy or BatchPolicy(max_batch_size=4)
        self._is_gated = is_gated
        self.loaded: list[Copy] = []
        self.asked: list[tuple[str, str]] = []
        self.fault: Exception | None = None
        """Raised instead of loading."""
        self.may_load = asyncio.Event()
        self.may_load.set()

    async def load(self, model: str, version: str) -> ServedVersion:
        """Stand in for Repository.load_copy."""
        self.asked.append((model, version))
        await self.may_load.wait()
        if self.fault is not None:
            raise self.fault
        copy = Copy(model, version, self._policy, is_gated=self._is_gated)
        self.loaded.append(copy)
        return copy.served

    @property
    def last(self) -> Copy:
        """The copy that was loaded last."""
        return self.loaded[-1]

    async def close(self) -> None:
        """Let everything end that is still held."""
        self.may_load.set()
        for copy in self.loaded:
            copy.gate.open()
            await asyncio.wait_for(copy.served.close("the test is over"), HANG_S)


class Stage:
    """Shadows under test, with one of them loaded."""

    def __init__(self, shadows: Shadows, copies: Copies, log: KeptRecords) -> None:
        self.shadows = shadows
        self.copies = copies
        self.log = log

    @property
    def copy(self) -> Copy:
        """The copy in service."""
        return self.copies.last

    def offer(self, *values: float, is_sampled: bool = True) -> Mirrored:
        """Offer a live request of one row per value."""
        request = mirrored(*(values or (0.0,)))
        self.send(request, is_sampled=is_sampled)
        return request

    def send(self, request: Mirrored, *, is_sampled: bool = True) -> None:
        """Offer a live request; the identity holds afterwards."""
        self.shadows.offer(request, NAME, is_sampled)
        self.check()

    def check(self) -> None:
        """Assert that no eligible request is lost or counted twice."""
        for found in self.shadows.statistics().values():
            assert_exact(found)

    def found(self) -> ShadowStatistics:
        """Return the counters of the shadow."""
        return self.shadows.statistics()[KEY]

    def drops(self) -> dict[str, int]:
        """Return the reasons for which something was dropped."""
        return {str(reason): n for reason, n in self.found().dropped.items() if n}

    async def idle(self) -> ShadowStatistics:
        """Wait until nothing is in flight."""
        await until(lambda: self.found().in_flight == 0)
        self.check()
        return self.found()

    async def ready(self, copies: int = 1) -> None:
        """Wait until so many copies were loaded and the last one is in service."""
        await until(lambda: len(self.copies.loaded) >= copies and self.found().is_ready)


def assert_exact(found: ShadowStatistics) -> None:
    assert found.eligible == found.sent + sum(found.dropped.values()) + found.in_flight, found
    assert found.in_flight >= 0
    assert found.held_bytes >= 0


@asynccontextmanager
async def make_stage(
    limits: Shadow | None = None,
    *,
    policy: BatchPolicy | None = None,
    is_gated: bool = False,
    on_answer: Callable[[Mirrored, Executed], None] | None = None,
) -> AsyncIterator[Stage]:
    """Put one shadow into force, wait for its copy; close everything at the end."""
    copies, log = Copies(policy=policy, is_gated=is_gated), KeptRecords()
    stage = Stage(Shadows(load_copy=copies.load, log=log, on_answer=on_answer), copies, log)
    log.on_offer = stage.check
    try:
        stage.shadows.apply({KEY: limits or shadow()})
        await stage.ready()
        yield stage
    finally:
        await stage.shadows.close()
        stage.check()
        await copies.close()
