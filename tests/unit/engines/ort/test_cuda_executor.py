"""The executor for lanes, on onnxruntime's CPU provider over host memory that keeps CUDA's rules.

What is shown: addresses, shapes, order, and which runs may be recorded. What is not: CUDA. The
tests marked gpu run the same on a GPU.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from engines import devices
from engines.base import EngineConfig, LanedEngine, ModelMetadata
from engines.errors import DeviceFailed, EngineClosed, OutOfMemory
from engines.gpu.engine import LaneEngine
from engines.gpu.host import WORK, HostMemory
from engines.gpu.memory import Stream
from engines.ort import OrtEngine, load
from engines.ort.cuda import OrtExecutor, is_for_lanes, on_host, on_stream, why_no_lanes
from engines.ort.providers import CPU, CUDA, TENSORRT, Wanted
from engines.ort.session import open_session, session_options
from engines.tensors import DATATYPES, Array
from tests.support.models import write_graph, write_identity, write_mlp

HASTE = [None, random.Random(1), random.Random(2)]


class Told:
    """A session that notes the options of its runs and how often it was given new bindings."""

    # Any: untyped session, bindings and options.
    def __init__(self, session: Any) -> None:
        self._session = session
        self.graph_ids: list[str] = []
        self.bindings = 0

    def io_binding(self) -> Any:
        self.bindings += 1
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        try:
            self.graph_ids.append(options.get_run_config_entry("gpu_graph_id"))
        except RuntimeError:  # there is no such entry
            self.graph_ids.append("")
        self._session.run_with_iobinding(binding, options)


def told(path: Path) -> Told:
    return Told(open_session(path, session_options(EngineConfig()), [Wanted(CPU, {})]))


def metadata_of(path: Path, config: EngineConfig) -> ModelMetadata:
    return load(path, config).metadata


def lanes_over(
    path: Path,
    config: EngineConfig,
    *,
    lanes: int = 2,
    haste: random.Random | None = None,
    has_graphs: bool = False,
) -> tuple[LaneEngine, HostMemory, Told]:
    memory = HostMemory(haste=haste)
    session = told(path)
    executor = OrtExecutor(
        session,
        metadata_of(path, config),
        device=("cpu", 0),
        has_graphs=has_graphs,
        start=memory.call,
    )
    return LaneEngine(executor, memory, lanes=lanes), memory, session


def rows_of(count: int, width: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


@pytest.mark.parametrize("haste", HASTE)
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_lanes_give_the_answers_of_plain_runs(
    tmp_path: Path, lanes: int, haste: random.Random | None
) -> None:
    path = write_mlp(tmp_path / "model.onnx", [5, 16, 3], seed=1)
    config = EngineConfig(max_batch_size=8)
    plain = load(path, config)
    engine, memory, _ = lanes_over(path, config, lanes=lanes, haste=haste)
    for seed, rows in enumerate([8, 1, 3, 3, 8, 2]):
        batch = {"x": rows_of(rows, 5, seed)}
        np.testing.assert_array_equal(engine.infer(batch)["y"], plain.infer(batch)["y"])
    engine.close()
    assert memory.leaks == ()


@pytest.mark.parametrize("haste", HASTE)
def test_batches_under_way_at_once_do_not_mix(tmp_path: Path, haste: random.Random | None) -> None:
    path = write_mlp(tmp_path / "model.onnx", [4, 8, 4], seed=2)
    config = EngineConfig(max_batch_size=8)
    plain = load(path, config)
    engine, _, _ = lanes_over(path, config, lanes=3, haste=haste)
    assert isinstance(engine, LanedEngine)
    waiting: deque[tuple[Any, Array]] = deque()
    for step in range(24):
        rows = rows_of(step % 5 + 1, 4, step)
        lease = engine.acquire({"x": rows.shape})
        lease.inputs["x"][:] = rows
        engine.submit(lease)
        waiting.append((lease, rows))
        while len(waiting) == 3 or (step == 23 and waiting):
            done, given = waiting.popleft()
            answer = engine.collect(done)["y"].copy()
            engine.release(done)
            np.testing.assert_array_equal(answer, plain.infer({"x": given})["y"])
    engine.close()


def test_several_tensors_of_several_types_keep_their_places(tmp_path: Path) -> None:
    path = write_graph(
        tmp_path / "model.onnx",
        nodes=[
            helper.make_node("Identity", ["a"], ["d"]),
            helper.make_node("Not", ["b"], ["e"]),
            helper.make_node("Cast", ["c"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["wide", "wide"], ["doubled"]),
            helper.make_node("Cast", ["doubled"], ["f"], to=TensorProto.BFLOAT16),
        ],
        inputs={
            "a": ("INT64", ["rows", 2]),
            "b": ("BOOL", ["rows"]),
            "c": ("BF16", ["rows", 3]),
        },
        outputs={
            "f": ("BF16", ["rows", 3]),
            "d": ("INT64", ["rows", 2]),
            "e": ("BOOL", ["rows"]),
        },
    )
    engine, _, _ = lanes_over(path, EngineConfig(max_batch_size=4))
    batch: dict[str, Array] = {
        "a": np.array([[1, -2], [3, 1 << 40]]),
        "b": np.array([True, False]),
        "c": np.array([[0x3F80, 0x4000, 0xC000]] * 2, np.uint16),  # 1, 2, -2
    }
    answer = engine.infer(batch)
    assert answer["d"].tolist() == batch["a"].tolist()
    assert answer["e"].tolist() == [False, True]
    assert answer["f"].tolist() == [[0x4000, 0x4080, 0xC080]] * 2  # 2, 4, -4
    engine.close()


@pytest.mark.parametrize("datatype", sorted(set(DATATYPES) - {"BYTES"}))
def test_every_type_with_a_size_goes_through_lanes(tmp_path: Path, datatype: str) -> None:
    path = write_identity(tmp_path / "model.onnx", datatype, [3])
    engine, _, _ = lanes_over(path, EngineConfig(max_batch_size=4))
    rows = np.array([[0, 1, 1], [1, 0, 1]]).astype(DATATYPES[datatype].dtype)
    answer = engine.infer({"x": rows})["y"]
    assert answer.dtype == rows.dtype
    assert answer.tobytes() == rows.tobytes()
    engine.close()


def test_a_model_without_a_batch_axis_has_its_one_shape(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx", "FP32", [2, 3], batch_axis=False)
    engine, _, session = lanes_over(path, EngineConfig(), has_graphs=True)
    rows = rows_of(2, 3, 1)
    for _ in range(4):
        np.testing.assert_array_equal(engine.infer({"x": rows})["y"], rows)
    assert session.graph_ids == ["1", "2", "1", "2"]
    engine.close()


def test_a_lane_keeps_one_binding_and_points_it_anew(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx", "FP32", [4])
    engine, _, session = lanes_over(path, EngineConfig(max_batch_size=8), lanes=2)
    for rows in (8, 8, 4, 4, 1, 8, 2):
        batch = rows_of(rows, 4, rows)
        np.testing.assert_array_equal(engine.infer({"x": batch})["y"], batch)
    assert session.bindings == 2
    assert set(session.graph_ids) == {""}
    engine.close()


def test_each_lane_and_bucket_has_a_graph_of_its_own_and_others_none(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx", "FP32", [4])
    config = EngineConfig(max_batch_size=8, buckets=(2, 8))
    engine, _, session = lanes_over(path, config, lanes=2, has_graphs=True)
    for rows in (8, 8, 2, 2, 8, 8, 5, 5, 2, 2, 5):
        batch = rows_of(rows, 4, rows)
        np.testing.assert_array_equal(engine.infer({"x": batch})["y"], batch)
    ids = session.graph_ids
    assert ids == ["1", "2", "3", "4", "1", "2", "-1", "-1", "3", "4", "-1"][: len(ids)]
    engine.close()


def test_other_addresses_make_another_graph(tmp_path: Path) -> None:
    """A graph has its addresses built in."""
    path = write_identity(tmp_path / "model.onnx", "FP32", [1])
    session = told(path)
    config = EngineConfig(max_batch_size=2, buckets=(2,))
    executor = OrtExecutor(session, metadata_of(path, config), device=("cpu", 0), has_graphs=True)
    stream, shapes = Stream(0), {"x": (2, 1)}
    x = np.array([[1.0], [2.0]], np.float32)
    first, second = np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32)
    for y in (first, second, second):
        executor.bind(0, shapes, {"x": x.ctypes.data}, {"y": y.ctypes.data}, stream)
        executor.enqueue(0, stream)
    assert session.graph_ids == ["1", "2", "2"]
    assert first.tolist() == second.tolist() == x.tolist()
    executor.close()


def test_a_closed_executor_runs_nothing(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx", "FP32", [1])
    config = EngineConfig(max_batch_size=2)
    executor = OrtExecutor(told(path), metadata_of(path, config), device=("cpu", 0))
    executor.close()
    with pytest.raises(EngineClosed):
        executor.bind(0, {"x": (1, 1)}, {"x": 0}, {"y": 0}, Stream(0))


class Failing(Told):
    """A session whose runs raise what CUDA's provider would."""

    said = ""

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        raise RuntimeError(f"Error in execution: {self.said}")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("CUDA failure 700: an illegal memory access was encountered", DeviceFailed),
        ("CUDA failure 2: out of memory", OutOfMemory),
        ("indices element out of data bounds", RuntimeError),
    ],
)
def test_what_a_run_raises_is_told_apart(
    tmp_path: Path, said: str, expected: type[Exception]
) -> None:
    path = write_identity(tmp_path / "model.onnx", "FP32", [1])
    session = Failing(open_session(path, session_options(EngineConfig()), [Wanted(CPU, {})]))
    session.said = said
    metadata = metadata_of(path, EngineConfig(max_batch_size=2))
    executor = OrtExecutor(session, metadata, device=("cpu", 0))
    row = np.zeros((1, 1), np.float32)
    at = row.ctypes.data
    executor.bind(0, {"x": (1, 1)}, {"x": at}, {"y": at}, Stream(0))
    with pytest.raises(Exception, match=r".") as raised:
        executor.enqueue(0, Stream(0))
    assert type(raised.value) is expected


def test_a_device_that_fails_takes_the_engine_with_it(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx", "FP32", [1])
    engine, memory, _ = lanes_over(path, EngineConfig(max_batch_size=2))
    memory.fail_next(WORK, DeviceFailed("host", "an illegal access"))
    rows = np.zeros((1, 1), np.float32)
    for _ in range(2):
        with pytest.raises(DeviceFailed, match="an illegal access"):
            engine.infer({"x": rows})
    engine.close()


@pytest.mark.parametrize(
    ("datatype", "item_shape", "is_fit"),
    [("FP32", [4], True), ("BF16", [2, 2], True), ("FP32", ["n"], False), ("BYTES", [1], False)],
)
def test_lanes_are_for_models_whose_rows_alone_tell_their_size(
    tmp_path: Path, datatype: str, item_shape: list[int | str], is_fit: bool
) -> None:
    path = write_identity(tmp_path / "model.onnx", datatype, item_shape)
    assert is_for_lanes(metadata_of(path, EngineConfig(max_batch_size=4))) is is_fit


def write_cumsum(path: Path) -> Path:
    """Write a model whose second input is read on the CPU, by CUDA's kernel too."""
    return write_graph(
        path,
        nodes=[helper.make_node("CumSum", ["x", "axis"], ["y"])],
        inputs={"x": ("FP32", [3, 4]), "axis": ("INT64", [])},
        outputs={"y": ("FP32", [3, 4])},
    )


def test_tensors_on_the_host_keep_a_model_from_the_lanes(tmp_path: Path) -> None:
    """A session of the CPU has all of them there."""
    path = write_cumsum(tmp_path / "model.onnx")
    session = open_session(path, session_options(EngineConfig()), [Wanted(CPU, {})])
    assert on_host(session) == ["x", "axis", "y"]
    metadata = metadata_of(path, EngineConfig(max_batch_size=0))
    assert why_no_lanes(session, metadata) == "it has x, axis, y on the CPU"
    varying = write_identity(tmp_path / "varying.onnx", "FP32", ["n"])
    metadata = metadata_of(varying, EngineConfig(max_batch_size=4))
    assert why_no_lanes(session, metadata) == "it has dimensions that vary, or text"


def test_a_session_is_told_the_stream_of_the_lanes() -> None:
    given = Wanted(CUDA, {"use_tf32": "0"})
    made = on_stream(given, Stream(0xABC), has_graphs=False)
    assert made.options == {
        "use_tf32": "0",
        "user_compute_stream": "2748",
    }
    assert on_stream(given, Stream(1), has_graphs=True).options["enable_cuda_graph"] == "1"
    # Whether graphs of TensorRT tell shapes apart is not documented: they are never asked for.
    tensorrt = on_stream(Wanted(TENSORRT, {}), Stream(1), has_graphs=True)
    assert set(tensorrt.options) == {"user_compute_stream"}
    library = Wanted("CUDAExecutionProvider", {}, is_library=True)
    assert on_stream(library, Stream(1), has_graphs=True) is library


needs_gpu = pytest.mark.skipif(
    bool(devices.why_not("cuda:0")) or CUDA not in onnxruntime.get_available_providers(),
    reason=devices.why_not("cuda:0") or "this onnxruntime has no CUDA provider",
)


@pytest.mark.gpu
@needs_gpu
def test_an_input_that_a_gpus_session_reads_on_the_cpu_is_never_an_old_one(tmp_path: Path) -> None:
    path = write_cumsum(tmp_path / "model.onnx")
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    engine = load(path, EngineConfig(device="cuda:0", max_batch_size=0))
    for axis in (1, 0, 0, 1):
        answer = engine.infer({"x": x, "axis": np.array(axis, np.int64)})["y"]
        np.testing.assert_array_equal(answer, x.cumsum(axis))
    engine.close()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("has_graphs", [False, True])
def test_a_gpu_gives_the_answers_of_the_cpu(tmp_path: Path, has_graphs: bool) -> None:
    path = write_mlp(tmp_path / "model.onnx", [64, 256, 10], seed=3)
    config = EngineConfig(max_batch_size=8, buckets=(1, 4, 8))
    plain = load(path, config)
    engine = load(
        path,
        EngineConfig(device="cuda:0", max_batch_size=8, buckets=(1, 4, 8), has_graphs=has_graphs),
    )
    assert not isinstance(engine, OrtEngine)
    assert engine.metadata.device == "cuda:0"
    for seed, rows in enumerate([8, 4, 1, 8, 8, 4, 1, 1, 8]):
        batch: Mapping[str, Array] = {"x": rows_of(rows, 64, seed)}
        answer = engine.infer(batch)["y"]
        np.testing.assert_allclose(answer, plain.infer(batch)["y"], rtol=1e-2, atol=1e-3)
    engine.close()
