"""A laned engine and its two threads: overlap, order, isolation, and a device that fails."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from queue import Queue

import pytest

from engines.base import LanedEngine
from engines.batch_queue import Batch, QueuedRequest
from engines.errors import DeviceFailed, EngineError, InstanceFailed, OutOfMemory
from engines.instance import BatchResult
from engines.laned import LanedInstance
from engines.tensors import Tensor
from tests.support.batching import HANG_S, make_request
from tests.support.laned import DEVICE, Hold, LanedScript, ScriptedLaned

Outcome = Sequence[Tensor] | EngineError


class Bench:
    """Laned instances under test, and the results of their batches in the order they came."""

    def __init__(self) -> None:
        self.hold = Hold()
        self.results: Queue[tuple[str, BatchResult]] = Queue()
        self._made: list[LanedInstance] = []
        self._engines: list[ScriptedLaned] = []

    def make(
        self,
        lanes: int = 2,
        *,
        is_held: bool = False,
        script: LanedScript | None = None,
        buckets: tuple[int, ...] = (),
        log_every_ns: int = 0,
    ) -> tuple[LanedInstance, ScriptedLaned]:
        wait = self.hold if is_held else lambda _: None
        engine = ScriptedLaned(lanes, buckets=buckets, script=script, wait=wait)
        made = LanedInstance(
            name="m/1#0", model="m", version="1", engine=engine, log_every_ns=log_every_ns
        )
        self._made.append(made)
        self._engines.append(engine)
        return made, engine

    def start(self, instance: LanedInstance, name: str, *requests: QueuedRequest) -> None:
        batch = Batch(requests=requests, rows=sum(r.rows for r in requests), reason="full")
        instance.start(batch, lambda result: self.results.put((name, result)))

    def result(self) -> tuple[str, BatchResult]:
        return self.results.get(timeout=HANG_S)

    def run(self, instance: LanedInstance, *requests: QueuedRequest) -> BatchResult:
        self.start(instance, "only", *requests)
        return self.result()[1]

    def close(self) -> None:
        self.hold.open()
        for made in self._made:
            closed = threading.Thread(target=made.close)
            closed.start()
            closed.join(HANG_S)
            assert not closed.is_alive(), "close hangs"
        for engine in self._engines:
            assert engine.is_closed
            assert engine.broken == []
            assert engine.most_leases <= engine.lanes


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def asking(*values: float) -> QueuedRequest:
    return make_request(values)


def told(outcome: Outcome) -> object:
    """Return the values of an answer, or the class of an error."""
    if isinstance(outcome, EngineError):
        return type(outcome)
    return [float(value) for value in outcome[0].array().reshape(-1)]


def all_told(result: BatchResult) -> list[object]:
    return [told(outcome) for outcome in result.outcomes]


def until(is_so: Callable[[], bool]) -> None:
    """Return when something is so that the code under test announces to nobody."""
    limit = time.monotonic() + HANG_S
    while not is_so():
        assert time.monotonic() < limit
        time.sleep(0.001)


def test_the_scripted_engine_is_one_of_the_family() -> None:
    assert isinstance(ScriptedLaned(), LanedEngine)


# Rows


def test_each_request_gets_the_rows_that_it_brought(bench: Bench) -> None:
    instance, _ = bench.make()
    result = bench.run(instance, asking(1), asking(2, 3), asking(4))
    assert all_told(result) == [[1], [2, 3], [4]]
    assert (result.isolated, result.padded_rows) == (False, 0)
    assert min(result.input_ns, result.infer_ns, result.output_ns) >= 0
    assert result.started_ns > 0


def test_no_answer_is_changed_by_the_lane_being_used_again(bench: Bench) -> None:
    instance, _ = bench.make(lanes=1)
    results = [bench.run(instance, asking(*[n] * 8)) for n in range(20)]
    assert [all_told(result) for result in results] == [[[n] * 8] for n in range(20)]


def test_a_batch_is_padded_up_to_the_bucket_and_cut_back(bench: Bench) -> None:
    instance, engine = bench.make(buckets=(1, 4, 8))
    results = [
        bench.run(instance, asking(1)),
        bench.run(instance, asking(1), asking(2)),
        bench.run(instance, asking(1, 2, 3, 4, 5)),
    ]
    assert [all_told(result) for result in results] == [[[1]], [[1], [2]], [[1, 2, 3, 4, 5]]]
    assert [result.padded_rows for result in results] == [0, 2, 3]
    assert engine.rows == [1, 4, 8]


# Overlap and order


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_as_many_batches_are_under_way_as_there_are_lanes_and_no_more(
    bench: Bench, lanes: int
) -> None:
    instance, engine = bench.make(lanes, is_held=True)
    assert instance.depth == lanes
    for n in range(lanes + 3):
        bench.start(instance, str(n), asking(n))
    bench.hold.wait_entered()
    until(lambda: engine.calls.names.count("submit") == lanes)
    threading.Event().wait(0.02)  # for one too many to show itself
    assert engine.calls.names.count("acquire") == engine.most_leases == lanes
    bench.hold.open()
    assert [bench.result()[0] for _ in range(lanes + 3)] == [str(n) for n in range(lanes + 3)]


def test_the_next_batch_is_submitted_while_the_one_before_it_is_waited_for(bench: Bench) -> None:
    instance, engine = bench.make(lanes=2, is_held=True)
    bench.start(instance, "first", asking(1))
    bench.hold.wait_entered()
    bench.start(instance, "second", asking(2))
    until(lambda: engine.calls.names.count("submit") == 2)
    assert bench.results.empty()
    bench.hold.open()
    assert [bench.result()[0], bench.result()[0]] == ["first", "second"]


def test_results_come_in_the_order_of_the_batches_each_with_its_own_rows(bench: Bench) -> None:
    instance, engine = bench.make(lanes=3)
    for n in range(200):
        bench.start(instance, str(n), asking(n), asking(n + 0.5, -n))
    found = [bench.result() for _ in range(200)]
    assert [name for name, _ in found] == [str(n) for n in range(200)]
    assert [all_told(result) for _, result in found] == [[[n], [n + 0.5, -n]] for n in range(200)]
    assert engine.most_leases <= 3


def test_one_thread_brings_batches_in_and_another_one_out(bench: Bench) -> None:
    others = set(threading.enumerate())  # of other tests, which may have the same names
    instance, engine = bench.make()
    bench.run(instance, asking(1))
    instance.close()
    threads = engine.calls.threads
    assert threads["acquire"] == threads["submit"] == {"sluice-m/1#0-in"}
    assert threads["collect"] == threads["release"] == threads["close"] == {"sluice-m/1#0-out"}
    left = {thread.name for thread in set(threading.enumerate()) - others}
    assert not left & {"sluice-m/1#0-in", "sluice-m/1#0-out"}


def test_it_runs_nothing_in_the_callers_thread(bench: Bench) -> None:
    instance, _ = bench.make()
    assert not instance.is_short(1)
    with pytest.raises(NotImplementedError):
        instance.run(Batch(requests=(asking(1),), rows=1, reason="full"))


# What fails


@pytest.mark.parametrize(
    "script",
    [LanedScript(submit_fails_on=13), LanedScript(collect_fails_on=13)],
    ids=["in submit", "in collect"],
)
def test_what_one_request_brings_fails_it_alone_and_the_others_are_run_each_alone(
    bench: Bench, script: LanedScript, caplog: pytest.LogCaptureFixture
) -> None:
    instance, engine = bench.make(script=script)
    with caplog.at_level(logging.ERROR):
        result = bench.run(instance, asking(1), asking(13, 2), asking(3))
    assert all_told(result) == [[1], InstanceFailed, [3]]
    assert result.isolated
    assert engine.rows == [4, 1, 2, 1]
    assert [record.getMessage() for record in caplog.records] == ["engine failed"]
    assert instance.failure is None
    assert all_told(bench.run(instance, asking(5))) == [[5]]


def test_a_request_that_is_alone_is_not_run_twice(bench: Bench) -> None:
    instance, engine = bench.make(script=LanedScript(collect_fails_on=13))
    result = bench.run(instance, asking(13))
    assert (all_told(result), result.isolated) == ([InstanceFailed], False)
    assert engine.rows == [1]


@pytest.mark.parametrize(
    "script",
    [LanedScript(most_rows=1), LanedScript(no_memory_on=2)],
    ids=["no lane", "while it runs"],
)
def test_a_batch_that_has_no_room_is_run_request_by_request(
    bench: Bench, script: LanedScript, caplog: pytest.LogCaptureFixture
) -> None:
    instance, _ = bench.make(script=script)
    with caplog.at_level(logging.DEBUG):
        result = bench.run(instance, asking(1), asking(2), asking(3))
    assert (all_told(result), result.isolated) == ([[1], [2], [3]], True)
    assert caplog.records == []


def test_a_request_that_has_no_room_even_alone_is_told_so(bench: Bench) -> None:
    instance, _ = bench.make(script=LanedScript(most_rows=1))
    result = bench.run(instance, asking(1), asking(2, 3))
    assert all_told(result) == [[1], OutOfMemory]
    assert str(result.outcomes[1]) == f"{DEVICE} has no memory for a batch of this size"


def test_batches_behind_one_that_is_run_again_keep_their_rows(bench: Bench) -> None:
    instance, engine = bench.make(is_held=True, script=LanedScript(collect_fails_on=13))
    bench.start(instance, "bad", asking(1), asking(13))
    bench.start(instance, "good", asking(4), asking(5))
    bench.hold.open()
    found = dict([bench.result(), bench.result()])
    assert all_told(found["good"]) == [[4], [5]]
    assert all_told(found["bad"]) == [[1], InstanceFailed]
    assert engine.most_leases <= 2


@pytest.mark.parametrize("seed", range(5))
def test_many_failing_batches_at_once_are_each_answered_once(bench: Bench, seed: int) -> None:
    instance, _ = bench.make(
        lanes=1 + seed % 3, script=LanedScript(submit_fails_on=13, collect_fails_on=17)
    )
    bad = {0: 13, 1: 17}
    for n in range(60):
        middle = bad.get((n * (seed + 3)) % 5, n)
        bench.start(instance, str(n), asking(n / 64), asking(middle), asking(-n, n))
    found = [bench.result() for _ in range(60)]
    assert sorted(int(name) for name, _ in found) == list(range(60))
    for name, result in found:
        n = int(name)
        middle = bad.get((n * (seed + 3)) % 5, n)
        failed = middle in (13, 17)
        first, second, third = all_told(result)
        assert first == [n / 64]
        assert second == (InstanceFailed if failed else [n])
        if n not in (13, 17):
            assert third == [-n, n]
    assert bench.results.empty()


# A device that fails


@pytest.mark.parametrize(
    "script",
    [LanedScript(dies_in_submit_on=13), LanedScript(dies_in_collect_on=13)],
    ids=["in submit", "in collect"],
)
def test_a_device_that_fails_takes_what_is_under_way_with_it_and_nothing_is_tried_again(
    bench: Bench, script: LanedScript, caplog: pytest.LogCaptureFixture
) -> None:
    instance, engine = bench.make(lanes=2, is_held=True, script=script)
    with caplog.at_level(logging.ERROR):
        bench.start(instance, "fatal", asking(1), asking(13))
        bench.start(instance, "next", asking(2), asking(3))
        bench.start(instance, "last", asking(4))
        bench.hold.open()
        found = [bench.result() for _ in range(3)]
    assert {name for name, _ in found} == {"fatal", "next", "last"}
    for _, result in found:
        assert set(all_told(result)) == {InstanceFailed}
        assert not result.isolated
    assert isinstance(instance.failure, DeviceFailed)
    assert len(engine.rows) <= 3
    assert caplog.records[0].exc_info is not None
    assert "scripted death" in str(caplog.records[0].exc_info[1])


def test_the_failure_is_there_before_the_result_that_shows_it(bench: Bench) -> None:
    instance, _ = bench.make(script=LanedScript(dies_in_collect_on=13))
    seen: Queue[DeviceFailed | None] = Queue()
    batch = Batch(requests=(asking(13),), rows=1, reason="full")
    instance.start(batch, lambda _: seen.put(instance.failure))
    assert isinstance(seen.get(timeout=HANG_S), DeviceFailed)


def test_a_device_that_dies_amid_a_batch_run_again_answers_every_request(bench: Bench) -> None:
    instance, engine = bench.make(script=LanedScript(collect_fails_on=13, die_after=2))
    result = bench.run(instance, asking(1), asking(13), asking(2))
    assert (all_told(result), result.isolated) == ([[1], InstanceFailed, InstanceFailed], True)
    assert isinstance(instance.failure, DeviceFailed)
    assert len(engine.rows) <= 4


def test_a_lost_device_is_not_touched_again(bench: Bench) -> None:
    instance, engine = bench.make(script=LanedScript(dies_in_collect_on=13))
    bench.run(instance, asking(13))
    before = list(engine.calls.names)
    assert all_told(bench.run(instance, asking(1))) == [InstanceFailed]
    assert engine.calls.names == before


# The end


def test_close_lets_what_is_under_way_end_first(bench: Bench) -> None:
    instance, engine = bench.make(lanes=2, is_held=True)
    for n in range(5):
        bench.start(instance, str(n), asking(n))
    bench.hold.wait_entered()
    closing = threading.Thread(target=instance.close)
    closing.start()
    assert not engine.is_closed
    bench.hold.open()
    closing.join(HANG_S)
    assert engine.is_closed
    assert [all_told(bench.result()[1]) for _ in range(5)] == [[[n]] for n in range(5)]
    assert bench.results.empty()


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize(
    "script",
    [
        LanedScript(collect_fails_on=13),
        LanedScript(submit_fails_on=13),
        LanedScript(most_rows=1),
        LanedScript(dies_in_collect_on=13),
    ],
)
def test_batches_that_fail_while_it_is_being_closed_are_answered_too(
    bench: Bench, lanes: int, script: LanedScript
) -> None:
    instance, engine = bench.make(lanes, is_held=True, script=script)
    for n in range(3):
        bench.start(instance, str(n), asking(n), asking(13))
    closing = threading.Thread(target=instance.close)
    closing.start()
    bench.hold.open()
    closing.join(HANG_S)
    assert not closing.is_alive()
    assert sorted(bench.result()[0] for _ in range(3)) == ["0", "1", "2"]
    assert engine.is_closed


def test_several_may_close_it_at_once_and_again(bench: Bench) -> None:
    instance, engine = bench.make(is_held=True, script=LanedScript(collect_fails_on=13))
    bench.start(instance, "only", asking(1), asking(13))
    bench.hold.wait_entered()
    closing = [threading.Thread(target=instance.close) for _ in range(4)]
    for thread in closing:
        thread.start()
    bench.hold.open()
    for thread in closing:
        thread.join(HANG_S)
        assert not thread.is_alive()
    assert all_told(bench.result()[1]) == [[1], InstanceFailed]
    instance.close()
    assert engine.calls.names.count("close") == 1


def test_an_instance_that_ran_nothing_closes(bench: Bench) -> None:
    instance, engine = bench.make()
    instance.close()
    assert engine.calls.names == ["close"]
