"""CudaMemory without a GPU: what it names exists, what it calls fits, and what errors become.

Nothing here runs CUDA; test_cuda_device.py does, where there is a GPU.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from engines import devices
from engines.errors import DeviceFailed, DeviceUnavailable, OutOfMemory
from engines.gpu import cuda
from engines.gpu.cuda import CONSTANTS, FUNCTIONS, LOST, MEMBERS, CudaMemory, error_of
from engines.gpu.engine import LaneEngine
from engines.gpu.host import WORK, HostMemory
from engines.gpu.memory import CaptureFailed, Graph, Memory, Stream
from tests.support.cuda_runtime import FakeRuntime
from tests.support.lanes import NumpyExecutor, assert_answers, batch_of, mixed

ALLOCATIONS = {
    "pinned": lambda memory: memory.pinned(100),
    "allocate": lambda memory: memory.allocate(100),
    "stream": lambda memory: memory.stream(),
    "event": lambda memory: memory.event(),
}


@pytest.fixture
def real() -> ModuleType:
    found: ModuleType = pytest.importorskip("cuda.bindings.runtime", reason="no cuda-bindings")
    return found


@pytest.fixture
def fake(real: ModuleType, monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    made = FakeRuntime(real, HostMemory())
    monkeypatch.setattr(cuda, "_runtime", lambda device: made)
    monkeypatch.setattr(cuda, "_threads", threading.local())
    return made


def names(fake: FakeRuntime) -> list[str]:
    """Return what was called, but for setting the device."""
    skipped = ("cudaSetDevice", "cudaGetDeviceCount", "cudaThreadExchangeStreamCaptureMode")
    return [name for name, _ in fake.called if name not in skipped]


def capture(memory: CudaMemory, stream: Stream) -> Graph:
    memory.begin_capture(stream)
    return memory.end_capture(stream)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_that_is_named_is_in_the_installed_package(
    real: ModuleType, name: str
) -> None:
    assert inspect.signature(getattr(real, name)) is not None


@pytest.mark.parametrize("name", CONSTANTS)
def test_every_constant_that_is_named_is_in_the_installed_package(
    real: ModuleType, name: str
) -> None:
    assert isinstance(getattr(real, name), int)


def test_every_member_and_every_error_that_is_named_is_in_the_installed_package(
    real: ModuleType,
) -> None:
    for enum, members in MEMBERS.items():
        assert set(members) <= set(getattr(real, enum).__members__)
    assert set(real.cudaError_t.__members__) >= LOST | {"cudaErrorMemoryAllocation"}
    assert bool(real.cudaError_t.cudaSuccess) is False


def test_the_lists_name_all_that_the_file_takes_of_the_runtime() -> None:
    source = ast.parse(Path(cuda.__file__).read_text())
    taken = {
        node.attr
        for node in ast.walk(source)
        if isinstance(node, ast.Attribute) and node.attr.startswith("cuda")
    } - {"cuda"}
    assert taken == {*FUNCTIONS, *CONSTANTS, *MEMBERS, *(m for ms in MEMBERS.values() for m in ms)}


def test_without_a_driver_it_is_unavailable_and_says_why(real: ModuleType) -> None:
    why = devices.why_not("cuda:0")
    if not why:
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceUnavailable) as caught:
        CudaMemory(0)
    assert str(caught.value) == why


def test_without_the_package_it_is_unavailable_and_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(DeviceUnavailable, match=r"^cuda:3: the package cuda-bindings is needed"):
        CudaMemory(3)


def test_a_device_that_is_not_among_those_found_is_unavailable(fake: FakeRuntime) -> None:
    with pytest.raises(DeviceUnavailable, match="cuda:2: "):
        CudaMemory(2)


def test_a_device_that_cannot_be_set_is_unavailable(fake: FakeRuntime) -> None:
    fake.answers_next["cudaSetDevice"] = fake.cudaError_t.cudaErrorDevicesUnavailable
    with pytest.raises(DeviceUnavailable, match=r"cudaSetDevice answered .*DevicesUnavailable"):
        CudaMemory(0)


@pytest.mark.parametrize(
    ("call", "name", "expected"),
    [
        ("cudaMalloc", "cudaErrorMemoryAllocation", OutOfMemory),
        ("cudaGraphInstantiate", "cudaErrorMemoryAllocation", OutOfMemory),
        ("cudaMemcpyAsync", "cudaErrorIllegalAddress", DeviceFailed),
        ("cudaMemcpyAsync", "cudaErrorInvalidValue", DeviceFailed),
        ("cudaEventSynchronize", "cudaErrorLaunchFailure", DeviceFailed),
        ("cudaStreamBeginCapture", "cudaErrorIllegalState", CaptureFailed),
        ("cudaStreamEndCapture", "cudaErrorStreamCaptureInvalidated", CaptureFailed),
        ("cudaGraphInstantiate", "cudaErrorNotSupported", CaptureFailed),
        ("cudaStreamEndCapture", "cudaErrorECCUncorrectable", DeviceFailed),
        ("cudaMalloc", "cudaErrorStreamCaptureUnsupported", CaptureFailed),
    ],
)
def test_errors_become_ours(call: str, name: str, expected: type[Exception]) -> None:
    error = error_of("cuda:1", call, name, "the reason")
    assert type(error) is expected
    if expected is not OutOfMemory:
        assert str(error).endswith(f"{call} answered {name}: the reason")
    if expected is not CaptureFailed:
        assert "cuda:1" in str(error)


def test_no_error_but_that_of_memory_leaves_a_device_in_use(real: ModuleType) -> None:
    for name in set(real.cudaError_t.__members__) - {"cudaErrorMemoryAllocation"}:
        if not name.startswith("cudaErrorStreamCapture"):
            assert isinstance(error_of("cuda:0", "cudaEventRecord", name, ""), DeviceFailed)


@pytest.mark.parametrize("make", ALLOCATIONS.values(), ids=ALLOCATIONS)
def test_what_does_not_fit_is_out_of_memory(
    fake: FakeRuntime, make: Callable[[Memory], object]
) -> None:
    memory = CudaMemory(0)
    fake.host.fail_next("pinned", OutOfMemory("x"))
    for what in ("allocate", "stream", "event"):
        fake.host.fail_next(what, OutOfMemory("x"))
    with pytest.raises(OutOfMemory, match="cuda:0"):
        make(memory)
    make(memory)


def test_copies_go_both_ways_and_their_bytes_arrive(fake: FakeRuntime) -> None:
    memory = CudaMemory(1)
    source, block, target = memory.pinned(16), memory.allocate(16), memory.pinned(16)
    stream, event = memory.stream(), memory.event()
    source.buffer[:] = bytes(range(16))
    memory.copy_in(block, source, 16, stream)
    memory.copy_out(target, block, 16, stream)
    memory.record(event, stream)
    memory.wait(event)
    assert bytes(target.buffer) == bytes(range(16))
    assert memory.memory_info() == ((1 << 30) - 16, 1 << 30)
    assert fake.devices_of == [("block", 1), ("stream", 1), ("event", 1)]


def test_a_lane_engine_runs_on_it_with_graphs_and_gives_everything_back(
    fake: FakeRuntime,
) -> None:
    model = mixed()
    executor = NumpyExecutor(fake.host, model)
    engine = LaneEngine(executor, CudaMemory(0), lanes=2, has_graphs=True, largest=model.largest)
    for seed in range(40):
        batch = batch_of(model, 1 + seed % 3, 2, seed)
        assert_answers(engine.infer(batch), model, batch)
    stats = engine.statistics()
    assert (stats.graph_hits, stats.graph_misses, stats.graphs) == (28, 12, 6)
    engine.close()
    assert fake.host.live() == ()
    assert names(fake).count("cudaGraphDestroy") == 6


def test_the_error_of_queued_work_shows_at_the_wait_with_the_runtimes_words(
    fake: FakeRuntime,
) -> None:
    model = mixed()
    engine = LaneEngine(
        NumpyExecutor(fake.host, model), CudaMemory(0), lanes=2, largest=model.largest
    )
    fake.host.fail_next(WORK, DeviceFailed("x", "y"))
    for _ in range(2):
        with pytest.raises(
            DeviceFailed, match=r"^cuda:0 failed: cudaEventSynchronize answered .*IllegalAddress: "
        ):
            engine.infer(batch_of(model, 1, 1, seed=1))
    engine.close()
    assert "cudaGetLastError" in names(fake)


def test_a_capture_that_is_refused_is_no_failure_of_the_device(fake: FakeRuntime) -> None:
    memory = CudaMemory(0)
    stream, event = memory.stream(), memory.event()
    for call in ("cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"):
        fake.answers_next[call] = fake.cudaError_t.cudaErrorNotSupported
        with pytest.raises(CaptureFailed, match=call):
            capture(memory, stream)
        if call == "cudaStreamEndCapture":  # the stand-in did nothing: end what was begun
            memory.drop(memory.end_capture(stream))
    memory.record(event, stream)
    memory.wait(event)
    assert names(fake).count("cudaGraphDestroy") == 2


def test_a_capture_that_ends_without_a_graph_has_failed(fake: FakeRuntime) -> None:
    memory = CudaMemory(0)
    fake.answers_next["cudaStreamEndCapture"] = (
        fake.cudaError_t.cudaSuccess,
        fake.cudaGraph_t(0),
    )
    with pytest.raises(CaptureFailed, match="no graph"):
        memory.end_capture(memory.stream())


def test_two_devices_may_share_a_thread(fake: FakeRuntime) -> None:
    memories = [CudaMemory(0), CudaMemory(1)]
    for memory in (*memories, *memories):
        memory.stream()
    assert fake.devices_of == [("stream", 0), ("stream", 1)] * 2


def test_a_thread_sets_the_device_and_its_capture_mode_once(fake: FakeRuntime) -> None:
    memory = CudaMemory(1)
    stream, event = memory.stream(), memory.event()
    fake.called.clear()
    threads = []

    def work() -> None:
        threads.append(threading.get_ident())
        for _ in range(3):
            memory.record(event, stream)
            memory.wait(event)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    work()
    called = [name for name, _ in fake.called]
    assert called.count("cudaSetDevice") == 1
    assert called.count("cudaThreadExchangeStreamCaptureMode") == 1
    mode = fake.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    assert {fake.capture_modes[thread] for thread in threads} == {mode}


def test_close_gives_back_graphs_first_and_streams_before_memory_and_only_once(
    fake: FakeRuntime,
) -> None:
    memory = CudaMemory(0)
    memory.allocate(1)
    memory.pinned(1)
    stream = memory.stream()
    memory.event()
    capture(memory, stream)
    fake.called.clear()
    memory.close()
    assert names(fake) == [
        "cudaGraphExecDestroy",
        "cudaEventDestroy",
        "cudaStreamDestroy",
        "cudaFree",
        "cudaFreeHost",
    ]
    assert fake.host.live() == ()
    fake.called.clear()
    memory.close()
    assert names(fake) == []


def test_close_of_a_lost_device_raises_nothing(fake: FakeRuntime) -> None:
    memory = CudaMemory(0)
    memory.allocate(1)
    memory.stream()
    fake.host.close()  # from here on every call fails
    memory.close()
    memory.close()


def test_what_was_given_back_is_not_given_back_again(fake: FakeRuntime) -> None:
    memory = CudaMemory(0)
    memory.free(memory.allocate(1))
    memory.free(memory.pinned(1))
    memory.drop(memory.event())
    fake.called.clear()
    memory.close()
    assert names(fake) == []
