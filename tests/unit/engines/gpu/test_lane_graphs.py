"""Recorded graphs: when they are made, that they answer the same, and what happens without them."""

from __future__ import annotations

import logging

import pytest

from engines.errors import DeviceFailed, OutOfMemory
from engines.gpu.engine import PLAIN_RUNS, LaneEngine
from engines.gpu.host import HostMemory
from engines.gpu.lanes import MAX_ARRANGEMENTS
from engines.gpu.memory import CaptureFailed, Stream
from tests.support.lanes import NumpyExecutor, assert_answers, batch_of, build, scaled

MODEL = scaled()
LANES = 2


def run(engine: LaneEngine, *, rows: int = 2, times: int = 1, seed: int = 0) -> None:
    for number in range(times):
        batch = batch_of(MODEL, rows, 3, seed=seed + number)
        assert_answers(engine.infer(batch), MODEL, batch)


def counted(engine: LaneEngine) -> tuple[int, int, int]:
    stats = engine.statistics()
    return stats.graph_hits, stats.graph_misses, stats.graphs


def graphed(
    memory: HostMemory, *, can_capture: bool = True, allocates: bool = False
) -> tuple[LaneEngine, NumpyExecutor]:
    executor = NumpyExecutor(memory, MODEL, can_capture=can_capture, allocates=allocates)
    return build(memory, lanes=LANES, has_graphs=True, executor=executor)


def test_each_lane_runs_a_shape_twice_and_replays_it_from_then_on() -> None:
    memory = HostMemory()
    engine, executor = graphed(memory)
    seen = []
    for seed in range(6):
        run(engine, seed=seed)
        seen.append((*counted(engine), memory.calls["launch"]))
    assert seen == [
        (0, 1, 0, 0),
        (0, 2, 0, 0),
        (0, 3, 1, 0),
        (0, 4, 2, 0),
        (1, 4, 2, 1),
        (2, 4, 2, 2),
    ]
    assert executor.enqueued == LANES * (PLAIN_RUNS + 1)  # the last time into the graph


def test_warmup_runs_are_enough_for_every_lane_to_have_replayed_its_graph() -> None:
    memory = HostMemory()
    engine, _ = graphed(memory)
    run(engine, times=engine.warmup_runs)
    assert counted(engine) == (LANES, 2 * LANES, LANES)
    leases = [engine.acquire({"x": (2, 3)}) for _ in range(LANES)]
    for lease in leases:
        engine.submit(lease)
    assert counted(engine) == (2 * LANES, 2 * LANES, LANES)


def test_every_shape_has_a_graph_of_its_own() -> None:
    engine, _ = graphed(HostMemory())
    for rows in (1, 4, 8):
        run(engine, rows=rows, times=engine.warmup_runs)
    for seed in range(5):
        for rows in (8, 1, 4, 1):
            run(engine, rows=rows, times=LANES, seed=seed)
    replayed = 5 * 4 * LANES + 3 * LANES  # the warm-up's last runs are replays too
    assert counted(engine) == (replayed, 3 * LANES * PLAIN_RUNS, 3 * LANES)


def test_a_plain_run_after_a_replay_of_other_shapes_is_bound_again() -> None:
    memory = HostMemory()
    executor = NumpyExecutor(memory, MODEL)
    engine, _ = build(memory, lanes=1, has_graphs=True, executor=executor)
    for rows in (1, 1, 1, 2, 1, 2, 1, 2, 3, 2, 3):
        run(engine, rows=rows)
    rows_bound = [shapes["x"][0] for _, shapes in executor.binds]
    assert rows_bound == [1, 2, 3]  # replays need none, and the runs between them none again
    assert counted(engine) == (5, 6, 3)


def test_a_shape_whose_two_runs_lie_apart_is_recorded_as_it_was_bound_last() -> None:
    memory = HostMemory()
    executor = NumpyExecutor(memory, MODEL)
    engine, _ = build(memory, lanes=1, has_graphs=True, executor=executor)
    for rows in (1, 2, 1, 2, 1, 2):
        run(engine, rows=rows)
    assert [shapes["x"][0] for _, shapes in executor.binds] == [1, 2, 1, 2]
    assert counted(engine) == (2, 4, 2)


def test_copies_stay_outside_of_the_graph() -> None:
    memory = HostMemory()
    engine, _ = graphed(memory)
    run(engine, times=10)
    assert memory.calls["copy_in"] == memory.calls["copy_out"] == 10
    assert memory.calls["call"] == LANES * (PLAIN_RUNS + 1)


def test_an_executor_that_cannot_be_captured_never_is_and_the_misses_show_it() -> None:
    memory = HostMemory()
    engine, _ = graphed(memory, can_capture=False)
    run(engine, times=10)
    assert memory.calls["begin_capture"] == 0
    assert counted(engine) == (0, 10, 0)


def test_graphs_that_nobody_asked_for_are_neither_made_nor_missed() -> None:
    memory = HostMemory()
    engine, _ = build(memory, lanes=LANES, has_graphs=False)
    run(engine, times=10)
    assert memory.calls["begin_capture"] == 0
    assert counted(engine) == (0, 0, 0)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        str(getattr(record, "reason", ""))
        for record in caplog.records
        if record.levelno >= logging.WARNING
    ]


def test_a_runtime_that_allocates_is_run_plainly_after_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory = HostMemory()
    engine, _ = graphed(memory, allocates=True)
    run(engine, times=20)
    assert warned(caplog) == ["allocate cannot be recorded"]
    assert memory.calls["begin_capture"] == 1
    assert counted(engine) == (0, 20, 0)
    engine.close()
    assert memory.leaks == ()


@pytest.mark.parametrize("exc", [CaptureFailed("no"), OutOfMemory("host")], ids=repr)
@pytest.mark.parametrize("what", ["begin_capture", "end_capture"])
def test_a_capture_that_fails_harms_no_batch_and_leaves_what_was_recorded(
    what: str, exc: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    memory = HostMemory()
    engine, _ = graphed(memory)
    run(engine, rows=1, times=engine.warmup_runs)
    memory.fail_next(what, exc)
    run(engine, rows=2, times=10)
    run(engine, rows=3, times=10)
    assert warned(caplog) == [str(exc)]
    assert engine.statistics().graphs == LANES
    hits = engine.statistics().graph_hits
    run(engine, rows=1, times=10)
    assert engine.statistics().graph_hits == hits + 10


@pytest.mark.parametrize("exc", [RuntimeError("capture?"), DeviceFailed("host", "?")], ids=repr)
def test_a_runtime_that_raises_while_it_is_captured_is_bound_again_and_run_plainly(
    exc: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    class Spoiling(HostMemory):
        def begin_capture(self, stream: Stream) -> None:
            super().begin_capture(stream)
            executor.fails_next["enqueue"] = exc

    memory = Spoiling()
    executor = NumpyExecutor(memory, MODEL)
    engine, _ = build(memory, lanes=1, has_graphs=True, executor=executor)
    run(engine, times=10)
    assert warned(caplog) == [str(exc)]
    assert len(executor.binds) == 2
    engine.close()
    assert memory.leaks == ()


@pytest.mark.parametrize("what", ["begin_capture", "end_capture"])
def test_a_device_that_fails_in_a_capture_has_failed(what: str) -> None:
    memory = HostMemory()
    engine, _ = graphed(memory)
    run(engine, times=LANES)
    memory.fail_next(what, DeviceFailed("host", "fell off the bus"))
    for _ in range(2):
        with pytest.raises(DeviceFailed, match="bus"):
            run(engine)
    engine.close()


def test_shapes_without_end_keep_as_many_graphs_as_arrangements() -> None:
    memory = HostMemory()
    model = scaled()
    executor = NumpyExecutor(memory, model)
    engine = LaneEngine(
        executor, memory, lanes=1, has_graphs=True, largest=dict.fromkeys("xy", 4 * 200)
    )
    for width in range(1, 101):
        batch = batch_of(model, 1, width, seed=width)
        for _ in range(3):
            assert_answers(engine.infer(batch), model, batch)
    assert memory.live().count("Graph") == MAX_ARRANGEMENTS
    engine.close()
    assert memory.leaks == ()
