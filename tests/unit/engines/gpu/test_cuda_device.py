"""CudaMemory and the lane engine on a real GPU; skipped where there is none.

The model is a copy on the device, queued by the runtime itself: no kernel has to be compiled.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from engines.base import Lease, ModelMetadata, TensorSpec
from engines.errors import DeviceUnavailable, OutOfMemory
from engines.gpu.cuda import CudaMemory
from engines.gpu.engine import LaneEngine
from engines.gpu.memory import Stream
from engines.tensors import Array

pytestmark = pytest.mark.gpu

MAX_ROWS = 64
WIDTH = 1024


@pytest.fixture
def memory() -> Iterator[CudaMemory]:
    try:
        made = CudaMemory(0)
    except DeviceUnavailable as exc:
        pytest.skip(str(exc))
    yield made
    made.close()


class Copies:
    """An executor whose model answers its input."""

    can_capture = True
    metadata = ModelMetadata(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, WIDTH)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, WIDTH)),),
        max_batch_size=MAX_ROWS,
        platform="test",
        engine="cudaMemcpyAsync",
        device="cuda:0",
    )

    def __init__(self) -> None:
        self._runtime = importlib.import_module("cuda.bindings.runtime")
        self._bound: dict[int, tuple[int, int, int]] = {}

    def output_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {"y": shapes["x"]}

    def bind(
        self,
        lane: int,
        shapes: Mapping[str, tuple[int, ...]],
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        stream: Stream,
    ) -> None:
        del stream
        self._bound[lane] = (outputs["y"], inputs["x"], shapes["x"][0] * WIDTH * 4)

    def enqueue(self, lane: int, stream: Stream) -> None:
        to, source, size = self._bound[lane]
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        (error,) = self._runtime.cudaMemcpyAsync(to, source, size, kind, stream.handle)
        assert not error

    def close(self) -> None:
        self._bound.clear()


def batch_of(seed: int) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    rows = int(draw.choice((1, 8, MAX_ROWS)))
    return {"x": draw.random((rows, WIDTH), dtype=np.float32)}


def test_bytes_go_to_the_device_and_come_back(memory: CudaMemory) -> None:
    size = 1 << 20
    source, block, target = memory.pinned(size), memory.allocate(size), memory.pinned(size)
    stream, event = memory.stream(), memory.event()
    given = source.array(np.dtype("u1"), (size,))
    given[...] = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
    memory.copy_in(block, source, size, stream)
    memory.copy_out(target, block, size, stream)
    memory.record(event, stream)
    memory.wait(event)
    np.testing.assert_array_equal(target.array(np.dtype("u1"), (size,)), given)


def test_a_held_stream_sees_what_the_other_one_copied(memory: CudaMemory) -> None:
    size = 32 << 20
    source, block, target = memory.pinned(size), memory.allocate(size), memory.pinned(size)
    first, second, event = memory.stream(), memory.stream(), memory.event()
    shown = target.array(np.dtype("u1"), (size,))
    for value in range(1, 6):
        source.array(np.dtype("u1"), (size,))[...] = value
        memory.copy_in(block, source, size, first)
        memory.record(event, first)
        memory.hold(second, event)
        memory.copy_out(target, block, size, second)
        memory.record(event, second)
        memory.wait(event)
        assert (shown == value).all()


def test_a_recorded_copy_is_replayed_with_new_bytes(memory: CudaMemory) -> None:
    source, block, target = memory.pinned(16), memory.allocate(16), memory.pinned(16)
    stream, event = memory.stream(), memory.event()
    memory.begin_capture(stream)
    memory.copy_in(block, source, 16, stream)
    memory.copy_out(target, block, 16, stream)
    graph = memory.end_capture(stream)
    for value in (b"a" * 16, b"b" * 16):
        source.buffer[:] = value
        memory.launch(graph, stream)
        memory.record(event, stream)
        memory.wait(event)
        assert bytes(target.buffer) == value


def test_more_than_the_device_has_is_out_of_memory_and_harms_nothing(memory: CudaMemory) -> None:
    _, total_bytes = memory.memory_info()
    with pytest.raises(OutOfMemory):
        memory.allocate(2 * total_bytes)
    memory.free(memory.allocate(1 << 20))


@pytest.mark.parametrize("has_graphs", [False, True], ids=["plain", "graphs"])
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_pipelined_batches_get_their_own_answers(
    memory: CudaMemory, lanes: int, has_graphs: bool
) -> None:
    engine = LaneEngine(Copies(), memory, lanes=lanes, has_graphs=has_graphs)
    running: deque[tuple[Lease, Array]] = deque()
    for seed in range(1_000):
        if len(running) == lanes:
            lease, given = running.popleft()
            np.testing.assert_array_equal(engine.collect(lease)["y"], given)
            engine.release(lease)
        batch = batch_of(seed)
        lease = engine.acquire({"x": batch["x"].shape})
        lease.inputs["x"][...] = batch["x"]
        engine.submit(lease)
        running.append((lease, batch["x"]))
    for lease, given in running:
        np.testing.assert_array_equal(engine.collect(lease)["y"], given)
        engine.release(lease)
    stats = engine.statistics()
    assert stats.graphs == (3 * lanes if has_graphs else 0)
    assert stats.graph_hits == (1_000 - 6 * lanes if has_graphs else 0)
    engine.close()


def test_a_closed_engine_gives_its_memory_back(memory: CudaMemory) -> None:
    def free_after_a_life() -> int:
        engine = LaneEngine(Copies(), CudaMemory(0), lanes=3, has_graphs=True)
        for seed in range(30):
            engine.infer(batch_of(seed))
        engine.close()
        return memory.memory_info()[0]

    first = free_after_a_life()  # what the context keeps for itself is there now
    for _ in range(20):
        last = free_after_a_life()
    assert first - last < 8 << 20
