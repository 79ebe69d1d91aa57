"""Faults at every operation: no lane is lost, nothing leaks, and a failed device stays failed."""

from __future__ import annotations

import random

import pytest

from engines.errors import DeviceFailed, EngineError, InvalidInput, OutOfMemory
from engines.gpu.engine import LaneEngine
from engines.gpu.host import WORK, HostMemory
from tests.support.lanes import assert_answers, batch_of, build, mixed, shapes_of

MODEL = mixed()
LANES = 2
# What a batch asks of the memory, in the order of the first time.
OPERATIONS = ("copy_in", "record", "hold", "call", "copy_out", "wait")
RECORDING = ("begin_capture", "end_capture", "launch")
EXECUTOR = ("output_shapes", "bind", "enqueue")


def attempt(engine: LaneEngine, seed: int) -> EngineError | RuntimeError | None:
    """Run one batch; return what it raised, having checked the answer if there is one."""
    batch = batch_of(MODEL, 1 + seed % 3, 2, seed)
    try:
        outputs = engine.infer(batch)
    except (EngineError, RuntimeError) as exc:
        return exc
    assert_answers(outputs, MODEL, batch)
    return None


@pytest.mark.parametrize("after", range(7))
@pytest.mark.parametrize("what", OPERATIONS + RECORDING)
def test_a_fault_that_spares_the_device_loses_no_lane_and_no_memory(what: str, after: int) -> None:
    memory = HostMemory()
    engine, _ = build(memory, MODEL, lanes=LANES, has_graphs=True)
    memory.fail_next(what, OutOfMemory("host"), after=after)
    errors = [attempt(engine, seed) for seed in range(60)]
    raised = [error for error in errors if error is not None]
    assert len(raised) == (0 if what in ("begin_capture", "end_capture") else 1)
    assert not errors[-1]
    leases = [engine.acquire({"x": (1, 1), "k": (1,)}) for _ in range(LANES)]
    for lease in leases:
        engine.release(lease)
    engine.close()
    assert memory.leaks == ()


@pytest.mark.parametrize("after", range(5))
@pytest.mark.parametrize("what", [*OPERATIONS, *RECORDING, WORK])
def test_after_a_device_failed_every_call_says_the_same_and_close_still_works(
    what: str, after: int
) -> None:
    memory = HostMemory()
    engine, executor = build(memory, MODEL, lanes=LANES, has_graphs=True)
    lost = DeviceFailed("host", "illegal address")
    memory.fail_next(what, lost, after=after)
    errors = [attempt(engine, seed) for seed in range(60)]
    first = next(n for n, error in enumerate(errors) if error is not None)
    assert set(errors[first:]) == {lost}
    enqueued = executor.enqueued
    with pytest.raises(DeviceFailed):
        engine.acquire({"x": (1, 1), "k": (1,)})
    assert executor.enqueued == enqueued
    engine.close()
    engine.close()
    assert memory.leaks == ()
    # A runtime whose device is lost for good is left alone: its destructors may end the process.
    assert executor.closed == (0 if what == WORK else 1)


@pytest.mark.parametrize("what", EXECUTOR)
def test_a_runtime_that_fails_costs_its_batch_and_no_more(what: str) -> None:
    for exc in (ValueError("strange"), OutOfMemory("host"), InvalidInput("no")):
        memory = HostMemory(haste=random.Random(1))
        engine, executor = build(memory, MODEL, lanes=LANES)
        for seed in range(12):
            batch = batch_of(MODEL, 2, 2, seed)
            if seed % 3 == 2:
                executor.fails_next[what] = exc
                # Shapes of their own: what is known of seen ones is not asked again.
                with pytest.raises(type(exc)):
                    engine.infer(batch_of(MODEL, 3 + seed % 5, 1 + seed % 2, seed))
            assert_answers(engine.infer(batch), MODEL, batch)
        engine.close()
        assert memory.leaks == ()


def test_a_runtime_that_says_the_device_failed_is_believed() -> None:
    engine, executor = build(HostMemory(), MODEL)
    executor.fails_next["enqueue"] = DeviceFailed("host", "misaligned address")
    for seed in range(3):
        error = attempt(engine, seed)
        assert isinstance(error, DeviceFailed)
        assert "misaligned" in str(error)


def test_batches_under_way_fail_with_the_device_and_their_lanes_come_back() -> None:
    memory = HostMemory()
    engine, _ = build(memory, MODEL, lanes=3)
    leases = []
    for seed in range(3):
        batch = batch_of(MODEL, 2, 2, seed)
        lease = engine.acquire(shapes_of(batch))
        for name, array in batch.items():
            lease.inputs[name][...] = array
        engine.submit(lease)
        leases.append(lease)
    memory.fail_next(WORK, DeviceFailed("host", "ECC"), after=4)  # in the second batch
    engine.collect(leases[0])
    for lease in leases[1:]:
        with pytest.raises(DeviceFailed, match="ECC"):
            engine.collect(lease)
    for lease in leases:
        engine.release(lease)
        with pytest.raises(RuntimeError, match="released before"):
            engine.release(lease)
    engine.close()
    assert memory.leaks == ()


def test_a_failed_batch_is_waited_for_before_its_lane_is_another_ones() -> None:
    memory = HostMemory()
    engine, _ = build(memory, MODEL, lanes=1)
    batch = batch_of(MODEL, 2, 2, seed=1)
    memory.fail_next("copy_out", OutOfMemory("host"))
    with pytest.raises(OutOfMemory):
        engine.infer(batch)
    waits = memory.calls["wait"]
    assert waits == 2  # for what was queued to copy and to compute
    assert_answers(engine.infer(batch), MODEL, batch)


def test_a_raised_failure_does_not_grow() -> None:
    memory = HostMemory()
    engine, _ = build(memory, MODEL)
    lost = DeviceFailed("host", "gone")
    memory.fail_next("record", lost)
    depths = []
    for seed in range(5):
        assert attempt(engine, seed) is lost
        depth, trace = 0, lost.__traceback__
        while trace is not None:
            depth, trace = depth + 1, trace.tb_next
        depths.append(depth)
    assert len(set(depths[1:])) == 1


@pytest.mark.parametrize("what", ["free", "drop"])
def test_close_raises_nothing_of_a_device_that_takes_nothing_back(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    memory = HostMemory()
    engine, executor = build(memory, MODEL, lanes=2)
    attempt(engine, 1)
    memory.fail_next(what, DeviceFailed("host", "gone"))
    executor.fails_next["close"] = RuntimeError("runtime")
    engine.close()
    assert memory.live() == ()
    assert executor.closed == 1
    assert [record.message for record in caplog.records] == ["engine closed uncleanly"]
