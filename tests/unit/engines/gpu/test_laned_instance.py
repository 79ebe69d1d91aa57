"""A lane engine behind its instance: two threads, whole requests in, whole answers out."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from queue import Queue

import numpy as np
import pytest

from engines.batch_queue import Batch, QueuedRequest
from engines.errors import DeviceFailed, EngineError, InstanceFailed, InvalidInput
from engines.gpu.host import WORK, HostMemory
from engines.instance import BatchResult
from engines.laned import LanedInstance
from engines.tensors import Tensor
from tests.support.batching import HANG_S, make_request
from tests.support.lanes import MAX_ROWS, NumpyExecutor, build, scaled

Outcome = Sequence[Tensor] | EngineError


class Bench:
    """An instance over a lane engine over host memory."""

    def __init__(
        self,
        *,
        lanes: int = 2,
        has_graphs: bool = False,
        buckets: tuple[int, ...] = (),
        seed: int | None = None,
    ) -> None:
        self.memory = HostMemory(haste=None if seed is None else random.Random(seed))
        self.executor = NumpyExecutor(self.memory, scaled(), refused_width=4)
        self.engine, _ = build(
            self.memory,
            lanes=lanes,
            has_graphs=has_graphs,
            buckets=buckets,
            executor=None if buckets else self.executor,
        )
        self.instance = LanedInstance(name="m/1#0", model="m", version="1", engine=self.engine)
        self._results: Queue[tuple[int, BatchResult]] = Queue()

    def start(self, number: int, *requests: QueuedRequest) -> None:
        batch = Batch(requests=requests, rows=sum(r.rows for r in requests), reason="full")
        self.instance.start(batch, lambda result: self._results.put((number, result)))

    def result(self) -> tuple[int, BatchResult]:
        return self._results.get(timeout=HANG_S)

    def run(self, *requests: QueuedRequest) -> BatchResult:
        self.start(0, *requests)
        return self.result()[1]


@pytest.fixture
def benches() -> Iterator[list[Bench]]:
    made: list[Bench] = []
    yield made
    for bench in made:
        bench.instance.close()
        assert bench.memory.leaks == ()


def bench_in(benches: list[Bench], bench: Bench) -> Bench:
    benches.append(bench)
    return bench


def is_answer(outcome: Outcome, values: Sequence[float], width: int) -> bool:
    """Whether the rows are `3 x + 1`, exactly."""
    assert not isinstance(outcome, EngineError), outcome
    expected = np.repeat(np.array(values, "<f4")[:, None], width, axis=1) * 3 + 1
    return bool(np.array_equal(outcome[0].array(), expected))


@pytest.mark.parametrize("has_graphs", [False, True], ids=["plain", "graphs"])
@pytest.mark.parametrize("seed", [None, 3], ids=["lazy", "hasty"])
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_every_request_gets_its_own_rows_in_the_order_of_the_batches(
    benches: list[Bench], lanes: int, seed: int | None, has_graphs: bool
) -> None:
    bench = bench_in(benches, Bench(lanes=lanes, seed=seed, has_graphs=has_graphs))
    draw = random.Random(lanes)
    batches = []
    for number in range(500):
        width = draw.choice((1, 2, 3, 5))
        sizes = draw.choice(((1,), (2, 1), (1, 1, 1), (3, 5), (8,)))
        values = [[float(draw.randint(-999, 999)) for _ in range(size)] for size in sizes]
        batches.append((width, values))
        bench.start(number, *(make_request(each, width=width) for each in values))
    for number, (width, values) in enumerate(batches):
        came, result = bench.result()
        assert came == number
        assert all(
            is_answer(outcome, each, width)
            for outcome, each in zip(result.outcomes, values, strict=True)
        )
    assert (bench.engine.statistics().graph_hits > 0) is has_graphs


def test_batches_are_padded_up_to_a_bucket_and_the_padding_is_cut_off(
    benches: list[Bench],
) -> None:
    bench = bench_in(benches, Bench(buckets=(4, MAX_ROWS), has_graphs=True))
    for rows in (1, 3, 4, 5, 8) * 5:
        values = [float(n) for n in range(rows)]
        result = bench.run(make_request(values, width=2))
        assert is_answer(result.outcomes[0], values, 2)
        assert result.padded_rows == (4 if rows <= 4 else 8) - rows
    assert bench.engine.statistics().graphs == 2 * 2  # per bucket and lane


def test_an_answer_is_not_changed_by_the_batches_that_follow(benches: list[Bench]) -> None:
    bench = bench_in(benches, Bench(lanes=1))
    first = bench.run(make_request([1.0, 2.0], width=5))
    for value in range(10):
        bench.run(make_request([float(value)] * 2, width=5))
    assert is_answer(first.outcomes[0], [1.0, 2.0], 5)


def test_a_runtime_error_in_a_batch_is_tried_request_by_request(benches: list[Bench]) -> None:
    bench = bench_in(benches, Bench())
    bench.executor.fails_next["enqueue"] = ValueError("once")
    result = bench.run(make_request([1.0]), make_request([2.0, 3.0]))
    assert is_answer(result.outcomes[0], [1.0], 1)
    assert is_answer(result.outcomes[1], [2.0, 3.0], 1)
    assert result.isolated


def test_shapes_that_the_model_refuses_fail_their_requests_and_no_others(
    benches: list[Bench],
) -> None:
    bench = bench_in(benches, Bench(lanes=1))
    bench.start(0, make_request([1.0], width=4), make_request([2.0], width=4))
    bench.start(1, make_request([3.0], width=4))
    bench.start(2, make_request([4.0], width=2))
    results = dict(bench.result() for _ in range(3))
    assert all(isinstance(outcome, InvalidInput) for outcome in results[0].outcomes)
    assert isinstance(results[1].outcomes[0], InvalidInput)
    assert is_answer(results[2].outcomes[0], [4.0], 2)
    assert bench.instance.failure is None


def test_a_shape_over_the_lanes_room_is_the_requests_fault(benches: list[Bench]) -> None:
    bench = bench_in(benches, Bench())
    (outcome,) = bench.run(make_request([1.0] * MAX_ROWS, width=6)).outcomes
    assert isinstance(outcome, InvalidInput)
    assert "limit is 160" in str(outcome)


def test_a_failed_device_fails_the_instance_and_all_that_comes_after(
    benches: list[Bench],
) -> None:
    bench = bench_in(benches, Bench(lanes=3))
    lost = DeviceFailed("host", "illegal address")
    bench.memory.fail_next(WORK, lost, after=40)
    for number in range(100):
        bench.start(number, make_request([float(number)]))
    results = [bench.result() for _ in range(100)]
    assert sorted(number for number, _ in results) == list(range(100))
    failed = {n for n, result in results if isinstance(result.outcomes[0], InstanceFailed)}
    answered = set(range(100)) - failed
    assert answered == set(range(len(answered)))  # all before the fault, none after it
    assert 10 <= len(answered) <= 13  # three pieces of work each, the fault in the 41st
    for number, result in results:
        if number in answered:
            assert is_answer(result.outcomes[0], [float(number)], 1)
    assert bench.instance.failure is lost


def test_close_finishes_what_was_started_and_gives_everything_back(
    benches: list[Bench],
) -> None:
    bench = bench_in(benches, Bench(lanes=2))
    for number in range(50):
        bench.start(number, make_request([float(number)]))
    bench.instance.close()
    for number in range(50):
        assert is_answer(bench.result()[1].outcomes[0], [float(number)], 1)
    assert bench.executor.closed == 1
