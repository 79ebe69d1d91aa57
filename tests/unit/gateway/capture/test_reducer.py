"""The thread that finishes deferred records: its bound, its order, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from engines.tensors import Raw, Tensor
from gateway.prediction_log.capture.deferred import Deferred, Finished
from gateway.prediction_log.capture.policy import Plain
from gateway.prediction_log.capture.reducer import Reducer
from gateway.prediction_log.encoder import RecordEncoder
from gateway.prediction_log.record import decode
from gateway.prediction_log_config import CaptureConfig
from tests.support.capture import Treatments, policy_of
from tests.support.records import ordinary_record

SIZE = 1_000


def deferred(number: int, work: Callable[[], None] = lambda: None) -> Deferred:
    """Return a record of so many bytes to be worked on, its number in the caller's id."""

    def change(data: Raw) -> tuple[str, tuple[int, ...], Raw]:
        work()
        return "UINT8", (SIZE,), data

    policy = policy_of(CaptureConfig(max_bytes=10), privacy=Treatments({"x": Plain(change=change)}))
    record = ordinary_record()
    record.cid = str(number)
    record.inputs = (Tensor("x", "UINT8", (SIZE,), bytes(SIZE)),)
    made = RecordEncoder(worker="w", policy=policy).encode(record, number)
    assert isinstance(made, Deferred)
    return made


@dataclass
class Outcomes:
    """What was told of the records, in order."""

    told: list[tuple[int, str | None]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def of(self, number: int) -> Callable[[Finished | None], None]:
        def done(finished: Finished | None) -> None:
            self.told.append((number, None if finished is None else decode(finished.blob).cid))
            self.changed.set()

        return done

    async def count(self, count: int) -> None:
        while len(self.told) < count:
            self.changed.clear()
            await asyncio.wait_for(self.changed.wait(), 10)


def test_outcomes_are_told_on_the_loop_in_the_order_of_submission() -> None:
    threads: set[int] = set()

    async def main() -> None:
        reducer, outcomes = Reducer(100 * SIZE), Outcomes()
        for n in range(20):
            work = deferred(n, lambda: threads.add(threading.get_ident()))
            assert reducer.submit(work, outcomes.of(n))
        assert outcomes.told == []
        await outcomes.count(20)
        assert outcomes.told == [(n, str(n)) for n in range(20)]
        assert reducer.held_bytes == 0
        await reducer.close(1)

    asyncio.run(main())
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_what_does_not_fit_is_refused_and_never_told_of() -> None:
    async def main() -> None:
        gate = threading.Event()
        reducer, outcomes = Reducer(3 * SIZE), Outcomes()
        taken = [reducer.submit(deferred(n, gate_wait(gate)), outcomes.of(n)) for n in range(5)]
        assert taken == [True, True, True, False, False]
        assert reducer.held_bytes == 3 * SIZE
        gate.set()
        await outcomes.count(3)
        assert reducer.submit(deferred(5), outcomes.of(5))
        await reducer.close(10)
        assert outcomes.told == [(0, "0"), (1, "1"), (2, "2"), (5, "5")]

    asyncio.run(main())


def gate_wait(gate: threading.Event) -> Callable[[], None]:
    """Return work that lasts until the gate opens."""

    def work() -> None:
        assert gate.wait(10)

    return work


def test_a_record_that_fails_is_told_of_and_costs_the_others_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise ValueError("of the change")

    async def main() -> None:
        reducer, outcomes = Reducer(100 * SIZE), Outcomes()
        for n, work in enumerate([fail, lambda: None, fail, lambda: None]):
            reducer.submit(deferred(n, work), outcomes.of(n))
        await outcomes.count(4)
        assert outcomes.told == [(0, None), (1, "1"), (2, None), (3, "3")]
        await reducer.close(1)

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert [record.getMessage() for record in caplog.records] == [
        "a large tensor cannot be reduced"
    ]


def test_closing_finishes_what_waits() -> None:
    async def main() -> None:
        reducer, outcomes = Reducer(100 * SIZE), Outcomes()
        for n in range(10):
            reducer.submit(deferred(n), outcomes.of(n))
        await reducer.close(10)
        assert outcomes.told == [(n, str(n)) for n in range(10)]
        assert not reducer.submit(deferred(10), outcomes.of(10))
        await reducer.close(10)

    asyncio.run(main())


def test_at_the_limit_of_closing_what_is_left_is_told_once_that_it_is_not_finished() -> None:
    async def main() -> None:
        troubles: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: troubles.append(context))
        gate = threading.Event()
        reducer, outcomes = Reducer(100 * SIZE), Outcomes()
        for n in range(3):
            reducer.submit(deferred(n, gate_wait(gate)), outcomes.of(n))
        await reducer.close(0.01)
        assert outcomes.told == [(0, None), (1, None), (2, None)]
        assert reducer.held_bytes == 0
        thread = next(t for t in threading.enumerate() if t.name == "reducer")
        gate.set()
        await asyncio.to_thread(thread.join, 10)
        await asyncio.sleep(0)  # what the thread had still finished is delivered, and ignored
        assert len(outcomes.told) == 3
        assert troubles == []

    asyncio.run(main())


def test_a_cancelled_close_leaves_nobody_waiting() -> None:
    async def main() -> None:
        gate = threading.Event()
        reducer, outcomes = Reducer(100 * SIZE), Outcomes()
        reducer.submit(deferred(0, gate_wait(gate)), outcomes.of(0))
        closing = asyncio.create_task(reducer.close(10))
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert outcomes.told == [(0, None)]
        gate.set()

    asyncio.run(main())


def test_a_reducer_that_was_never_needed_has_no_thread() -> None:
    async def main() -> None:
        before = threading.active_count()
        reducer = Reducer(SIZE)
        assert threading.active_count() == before
        await reducer.close(1)

    asyncio.run(main())
