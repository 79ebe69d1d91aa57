"""The engine over lanes, on host memory that keeps a device's order: answers, misuse, the end."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest

from engines.base import LanedEngine, Lease
from engines.errors import (
    DeviceFailed,
    EngineClosed,
    InvalidInput,
    ModelLoadError,
    OutOfMemory,
)
from engines.gpu.engine import LaneEngine
from engines.gpu.host import HostMemory
from tests.support.lanes import (
    MAX_ROWS,
    MAX_WIDTH,
    Arrays,
    Model,
    NumpyExecutor,
    assert_answers,
    batch_of,
    build,
    mixed,
    scaled,
    shapes_of,
)

BATCHES = 2_000
MODELS = {"one tensor": scaled, "several tensors": mixed}
# What takes memory or makes something on the device; graphs aside.
MAKES = ("pinned", "allocate", "stream", "event")


def submitted(engine: LaneEngine, batch: Arrays) -> Lease:
    lease = engine.acquire(shapes_of(batch))
    for name, array in batch.items():
        lease.inputs[name][...] = array
    engine.submit(lease)
    return lease


def collected(engine: LaneEngine, lease: Lease, model: Model, batch: Arrays) -> None:
    assert_answers(engine.collect(lease), model, batch)
    engine.release(lease)


def pipelined(engine: LaneEngine, model: Model, batches: int) -> None:
    """Run batches of ever other shapes with as many under way as there are lanes."""
    draw = random.Random(5)
    running: deque[tuple[Lease, Arrays]] = deque()
    for seed in range(batches):
        if len(running) == engine.lanes:
            lease, given = running.popleft()
            collected(engine, lease, model, given)
        batch = batch_of(model, draw.randint(1, MAX_ROWS), draw.randint(1, MAX_WIDTH), seed)
        running.append((submitted(engine, batch), batch))
    while running:
        lease, given = running.popleft()
        collected(engine, lease, model, given)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_infer_answers_what_the_model_says_and_the_answer_is_the_callers(
    model: Callable[[], Model],
) -> None:
    made = model()
    engine, _ = build(HostMemory(), made)
    first = batch_of(made, 3, 2, seed=1)
    outputs = engine.infer(first)
    engine.infer(batch_of(made, 3, 2, seed=2))
    engine.infer(batch_of(made, 3, 2, seed=3))
    assert_answers(outputs, made, first)


@pytest.mark.parametrize("has_graphs", [False, True], ids=["plain", "graphs"])
@pytest.mark.parametrize("is_hasty", [False, True], ids=["lazy", "hasty"])
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_pipelined_batches_get_their_own_answers(
    lanes: int, is_hasty: bool, has_graphs: bool
) -> None:
    memory = HostMemory(haste=random.Random(lanes) if is_hasty else None)
    model = mixed()
    engine, _ = build(memory, model, lanes=lanes, has_graphs=has_graphs)
    pipelined(engine, model, BATCHES)
    engine.close()
    assert memory.leaks == ()


def test_a_batch_is_computed_no_earlier_than_it_is_waited_for_and_alone() -> None:
    memory = HostMemory()
    model = scaled()
    engine, _ = build(memory, model, lanes=2)
    first, second = (batch_of(model, 2, 2, seed) for seed in (1, 2))
    lease, later = submitted(engine, first), submitted(engine, second)
    collected(engine, lease, model, first)
    lease = submitted(engine, first)  # the first lane again, the second is still under way
    collected(engine, later, model, second)
    collected(engine, lease, model, first)


def test_views_of_a_collected_batch_hold_while_other_lanes_run() -> None:
    model = scaled()
    engine, _ = build(HostMemory(haste=random.Random(1)), model, lanes=2)
    batch, other = batch_of(model, 4, 3, seed=1), batch_of(model, 4, 3, seed=2)
    lease = submitted(engine, batch)
    outputs = engine.collect(lease)
    for _ in range(10):
        following = submitted(engine, other)
        collected(engine, following, model, other)
        assert_answers(outputs, model, batch)
    engine.release(lease)


def test_outputs_are_views_of_pinned_memory() -> None:
    model = scaled()
    engine, _ = build(HostMemory(), model, lanes=1)
    batch = batch_of(model, 2, 2, seed=1)
    addresses = set()
    for _ in range(3):
        lease = submitted(engine, batch)
        outputs = engine.collect(lease)
        addresses.add((lease.inputs["x"].ctypes.data, outputs["y"].ctypes.data))
        engine.release(lease)
    assert len(addresses) == 1


def test_nothing_is_allocated_after_construction() -> None:
    memory = HostMemory()
    engine, _ = build(memory, lanes=3)
    made = {what: memory.calls[what] for what in MAKES}
    pipelined(engine, scaled(), 200)
    assert (
        {what: memory.calls[what] for what in MAKES}
        == made
        == {
            "pinned": 6,
            "allocate": 6,
            "stream": 4,
            "event": 3,
        }
    )


def test_a_batch_is_one_copy_each_way_whatever_its_tensors() -> None:
    memory = HostMemory()
    model = mixed()
    engine, _ = build(memory, model)
    engine.infer(batch_of(model, 2, 2, seed=1))
    assert (memory.calls["copy_in"], memory.calls["copy_out"]) == (1, 1)


def test_all_lanes_compute_on_one_stream_that_may_be_given() -> None:
    memory = HostMemory()
    model = scaled()
    stream = memory.stream()
    executor = NumpyExecutor(memory, model)
    engine = LaneEngine(executor, memory, lanes=3, largest=model.largest, compute=stream)
    pipelined(engine, model, 20)
    assert executor.streams == {stream.handle}


def test_a_lane_is_bound_once_for_batches_of_the_same_shapes() -> None:
    engine, executor = build(HostMemory(), lanes=2)
    model = scaled()
    for width in (1, 1, 1, 1, 2, 2, 1, 1):
        engine.infer(batch_of(model, 2, width, seed=width))
    widths = [(lane, shapes["x"][1]) for lane, shapes in executor.binds]
    assert widths == [(0, 1), (1, 1), (0, 2), (1, 2), (0, 1), (1, 1)]


def test_empty_tensors_pass() -> None:
    model = scaled()
    engine, _ = build(HostMemory(), model)
    assert engine.infer({"x": np.zeros((3, 0), "<f4")})["y"].shape == (3, 0)


def test_shapes_vary_up_to_the_room_and_more_is_refused_without_losing_a_lane() -> None:
    model = scaled()
    engine, _ = build(HostMemory(), model, lanes=1)
    for rows, width in ((1, MAX_ROWS * MAX_WIDTH), (MAX_ROWS, MAX_WIDTH), (1, 1)):
        batch = batch_of(model, rows, width, seed=rows)
        assert_answers(engine.infer(batch), model, batch)
    with pytest.raises(InvalidInput, match="limit is 160"):
        engine.acquire({"x": (MAX_ROWS, MAX_WIDTH + 1)})
    engine.infer(batch_of(model, 1, 1, seed=1))


def test_shapes_that_the_model_refuses_lose_no_lane() -> None:
    memory = HostMemory()
    model = scaled()
    executor = NumpyExecutor(memory, model, refused_width=3)
    engine, _ = build(memory, model, lanes=1, executor=executor)
    for _ in range(3):
        with pytest.raises(InvalidInput, match="width 3"):
            engine.infer(batch_of(model, 1, 3, seed=1))
    engine.infer(batch_of(model, 1, 2, seed=1))


def test_an_input_of_another_datatype_is_not_converted() -> None:
    engine, _ = build(HostMemory(), lanes=1)
    with pytest.raises(TypeError):
        engine.infer({"x": np.zeros((1, 1), "<f8")})
    engine.infer({"x": np.zeros((1, 1), "<f4")})


def test_misuse_is_refused() -> None:
    model = scaled()
    engine, _ = build(HostMemory(), model, lanes=1)
    batch = batch_of(model, 1, 1, seed=1)
    lease = engine.acquire(shapes_of(batch))
    with pytest.raises(RuntimeError, match="all 1 lanes are in use"):
        engine.acquire(shapes_of(batch))
    with pytest.raises(RuntimeError, match="leased: it cannot collect"):
        engine.collect(lease)
    lease.inputs["x"][...] = batch["x"]
    engine.submit(lease)
    with pytest.raises(RuntimeError, match="submitted: it cannot submit"):
        engine.submit(lease)
    with pytest.raises(RuntimeError, match="submitted: it cannot release"):
        engine.release(lease)
    collected(engine, lease, model, batch)
    for again in (engine.submit, engine.collect, engine.release):
        with pytest.raises(RuntimeError, match="released before"):
            again(lease)
    following = engine.acquire(shapes_of(batch))
    with pytest.raises(RuntimeError, match="released before"):
        engine.release(lease)  # the lane is another's now
    engine.release(following)


def test_a_lease_that_was_never_submitted_is_given_back() -> None:
    engine, _ = build(HostMemory(), lanes=1)
    for _ in range(3):
        engine.release(engine.acquire({"x": (1, 1)}))


def test_a_lease_of_something_else_is_refused() -> None:
    class Other:
        @property
        def inputs(self) -> Arrays:
            return {}

    engine, _ = build(HostMemory())
    with pytest.raises(TypeError, match="no lease of a lane engine"):
        engine.submit(Other())


def test_close_gives_everything_back_once_and_ends_the_engine() -> None:
    memory = HostMemory()
    engine, executor = build(memory, lanes=2, has_graphs=True)
    model = scaled()
    pipelined(engine, model, 50)
    engine.close()
    engine.close()
    assert (memory.leaks, memory.live(), executor.closed) == ((), (), 1)
    with pytest.raises(EngineClosed):
        engine.acquire({"x": (1, 1)})
    with pytest.raises(EngineClosed):
        engine.infer(batch_of(model, 1, 1, seed=1))


def test_close_with_batches_under_way_waits_for_them_and_leases_end_quietly() -> None:
    memory = HostMemory()
    model = scaled()
    engine, executor = build(memory, model, lanes=3)
    batch = batch_of(model, 1, 1, seed=1)
    running, waiting = submitted(engine, batch), engine.acquire({"x": (1, 1)})
    assert executor.computed == 0
    engine.close()
    assert executor.computed_at_close == 1
    assert memory.leaks == ()
    for call, lease in ((engine.collect, running), (engine.submit, waiting)):
        with pytest.raises(EngineClosed):
            call(lease)
        engine.release(lease)


def test_an_engine_that_cannot_be_made_gives_back_what_it_took() -> None:
    for what, calls in (("pinned", 4), ("allocate", 4), ("stream", 3), ("event", 2)):
        for after in range(calls):
            memory = HostMemory()
            memory.fail_next(what, OutOfMemory("host"), after=after)
            executor = NumpyExecutor(memory, scaled())
            with pytest.raises(OutOfMemory):
                build(memory, lanes=2, executor=executor)
            assert (memory.leaks, memory.live(), executor.closed) == ((), (), 1)


def test_a_size_that_cannot_be_told_fails_the_load() -> None:
    memory = HostMemory()
    with pytest.raises(ModelLoadError, match="declared"):
        LaneEngine(NumpyExecutor(memory, scaled()), memory, lanes=1)
    with pytest.raises(DeviceFailed, match="closed"):
        memory.stream()


def test_an_engine_has_at_least_one_lane() -> None:
    with pytest.raises(ValueError, match="at least one lane"):
        build(HostMemory(), lanes=0)


def test_it_is_a_laned_engine_that_tells_what_it_holds() -> None:
    engine, _ = build(HostMemory(), lanes=2)
    assert isinstance(engine, LanedEngine)
    assert engine.metadata.memory_bytes == 0
    assert engine.warmup_runs == 2 * 3
    assert engine.statistics().device_bytes == engine.statistics().pinned_bytes == 2 * 2 * 256
