"""What every engine promises (engines/base.py), asked of each engine in the same words.

Engines: the shipped fake, ONNX Runtime on the CPU, and ONNX Runtime on CUDA where there is one
(mark `gpu`). Each serves the identity, so an answer proves which rows it belongs to.

BF16 on ONNX Runtime: numpy has no such type, so its tensors travel as bit patterns (uint16) both
ways. onnxruntime's CPU provider runs Identity on BF16, as is seen here, and Cast (test_ort.py);
other operators were not tried, and a model that needs one without a kernel is a load error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
import pytest

from engines import fake, ort
from engines.base import Engine, EngineConfig, EngineLoader, TensorSpec
from engines.errors import DeviceUnavailable, EngineClosed, InvalidInput, ModelLoadError
from engines.tensors import BYTES, DATATYPES, Array, from_array, join_rows, split_rows
from tests.support.models import write_fake, write_identity

MAX_BATCH: Final = 8
CUDA: Final = "CUDAExecutionProvider"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCase:
    """One engine under contract."""

    name: str
    load: EngineLoader
    filename: str
    write: Callable[[Path, str, bool], object]
    """Writes an identity: path, datatype, whether it has a batch axis; items have 3 elements."""
    device: str = "cpu"
    cannot_serve: frozenset[str] = frozenset()
    """Datatypes that the runtime has no identity for on that device."""


def write_onnx(path: Path, datatype: str, batch_axis: bool) -> object:
    return write_identity(path, datatype, [3], batch_axis)


def write_script(path: Path, datatype: str, batch_axis: bool) -> object:
    shape = [-1, 3] if batch_axis else [3]
    return write_fake(
        path,
        inputs=[{"name": "x", "datatype": datatype, "shape": shape}],
        outputs=[{"name": "y", "datatype": datatype, "shape": shape}],
    )


FAKE: Final = EngineCase(name="fake", load=fake.load, filename="model.json", write=write_script)
ORT_CPU: Final = EngineCase(
    name="onnxruntime-cpu", load=ort.load, filename="model.onnx", write=write_onnx
)
ORT_CUDA: Final = EngineCase(
    name="onnxruntime-cuda",
    load=ort.load,
    filename="model.onnx",
    write=write_onnx,
    device="cuda:0",
    cannot_serve=frozenset({BYTES}),  # text never leaves the host, and a CPU node is refused
)


@pytest.fixture(
    params=[FAKE, ORT_CPU, pytest.param(ORT_CUDA, marks=pytest.mark.gpu)],
    ids=lambda case: case.name,
)
def case(request: pytest.FixtureRequest) -> EngineCase:
    chosen: EngineCase = request.param
    if chosen.device != "cpu" and CUDA not in onnxruntime.get_available_providers():
        has = ", ".join(onnxruntime.get_available_providers())
        pytest.skip(f"no GPU run: this onnxruntime {onnxruntime.__version__} has only {has}")
    return chosen


def load(case: EngineCase, folder: Path, datatype: str = "FP32", *, batched: bool = True) -> Engine:
    path = folder / case.filename
    case.write(path, datatype, batched)
    rows = MAX_BATCH if batched else 0
    return case.load(path, EngineConfig(max_batch_size=rows, device=case.device))


def values(datatype: str, rows: int, first: int = 0) -> Array:
    """Return rows of 3 elements, every element of every row different as far as the type goes."""
    count = np.arange(first, first + rows * 3).reshape(rows, 3)
    if datatype == "BOOL":
        return np.asarray(count % 2 == 0)
    if datatype == BYTES:
        out = np.empty(count.shape, dtype=object)
        out.reshape(-1)[:] = [f"é{n}\0{n}".encode() for n in count.reshape(-1).tolist()]
        return out
    if datatype == "BF16":
        # The high halves of float32 numbers: valid patterns, among them negative ones.
        bits = (count.astype(np.float32) - 5).view(np.uint32) >> 16
        return bits.astype(np.uint16)
    if datatype.startswith("FP"):
        return (count - 5.5).astype(DATATYPES[datatype].dtype)
    return count.astype(DATATYPES[datatype].dtype)


def assert_same(found: Array, expected: Array) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tolist() == expected.tolist()


def test_metadata_tell_the_signature_and_where_it_really_runs(
    case: EngineCase, tmp_path: Path
) -> None:
    metadata = load(case, tmp_path).metadata
    assert metadata.inputs == (TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),)
    assert metadata.outputs == (TensorSpec(name="y", datatype="FP32", shape=(-1, 3)),)
    assert metadata.max_batch_size == MAX_BATCH
    assert metadata.device == case.device
    assert metadata.platform
    assert metadata.engine.split()[0] in case.name
    assert case.device == "cpu" or metadata.providers[0] == CUDA


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_every_datatype_comes_back_bit_for_bit(
    case: EngineCase, tmp_path: Path, datatype: str
) -> None:
    if datatype in case.cannot_serve:
        pytest.skip(f"{case.name} has no {datatype} on its device")
    engine = load(case, tmp_path, datatype)
    assert engine.metadata.inputs[0].datatype == datatype
    rows = values(datatype, 4)
    (answer,) = engine.infer({"x": rows}).values()
    assert_same(answer, rows)


@pytest.mark.parametrize("datatype", ["BF16", BYTES, "FP16", "BOOL", "FP32"])
def test_rows_that_arrived_as_bytes_of_a_body_come_back_as_these_bytes(
    case: EngineCase, tmp_path: Path, datatype: str
) -> None:
    if datatype in case.cannot_serve:
        pytest.skip(f"{case.name} has no {datatype} on its device")
    engine = load(case, tmp_path, datatype)
    parts = [from_array("x", datatype, values(datatype, n, first=10 * n)) for n in (1, 3, 2)]
    odd = [p._replace(data=memoryview(b"\n" + bytes(p.data))[1:]) for p in parts]
    for group in (parts, odd, odd[:1]):
        answer = engine.infer({"x": join_rows(group)})["y"]
        cut = split_rows("y", datatype, answer, [p.shape[0] for p in group])
        assert [bytes(t.data) for t in cut] == [bytes(p.data) for p in group]


@pytest.mark.parametrize("rows", range(1, MAX_BATCH + 1))
def test_row_i_of_the_answer_belongs_to_row_i_of_the_batch(
    case: EngineCase, tmp_path: Path, rows: int
) -> None:
    engine = load(case, tmp_path)
    batch = values("FP32", rows)
    answer = engine.infer({"x": batch})["y"]
    assert_same(answer, batch)
    for row in range(rows):
        assert_same(engine.infer({"x": batch[row : row + 1]})["y"], answer[row : row + 1])


def test_a_model_without_a_batch_axis_takes_and_gives_its_own_shape(
    case: EngineCase, tmp_path: Path
) -> None:
    engine = load(case, tmp_path, batched=False)
    assert engine.metadata.max_batch_size == 0
    assert engine.metadata.inputs[0].shape == (3,)
    assert_same(engine.infer({"x": values("FP32", 1)[0]})["y"], values("FP32", 1)[0])


@pytest.mark.parametrize("datatype", ["FP32", "BF16", "BYTES", "BOOL"])
def test_an_answer_is_not_changed_by_the_next_call_nor_by_its_input(
    case: EngineCase, tmp_path: Path, datatype: str
) -> None:
    if datatype in case.cannot_serve:
        pytest.skip(f"{case.name} has no {datatype} on its device")
    engine = load(case, tmp_path, datatype)
    first = values(datatype, 3)
    answer = engine.infer({"x": first})["y"]
    kept = answer.copy()
    for start in range(20):
        engine.infer({"x": values(datatype, 3, first=start + 1)})
    first[:] = values(datatype, 3, first=1)
    assert_same(answer, kept)
    assert answer is not engine.infer({"x": kept})["y"]


def test_a_closed_engine_refuses_to_run_and_may_be_closed_again(
    case: EngineCase, tmp_path: Path
) -> None:
    engine = load(case, tmp_path)
    engine.infer({"x": values("FP32", 1)})
    engine.close()
    engine.close()
    with pytest.raises(EngineClosed):
        engine.infer({"x": values("FP32", 1)})
    assert engine.metadata.max_batch_size == MAX_BATCH


def test_a_model_can_be_loaded_again_beside_and_after_itself(
    case: EngineCase, tmp_path: Path
) -> None:
    first, second = load(case, tmp_path), load(case, tmp_path)
    first.close()
    third = load(case, tmp_path)
    for engine in (second, third):
        assert_same(engine.infer({"x": values("FP32", 2)})["y"], values("FP32", 2))


def no_file(path: Path) -> None:
    """Leave the place empty."""


def folder(path: Path) -> None:
    path.mkdir()


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 8)


def other_json(path: Path) -> None:
    path.write_text(json.dumps({"hello": "world"}))


@pytest.mark.parametrize("put", [no_file, folder, empty_file, garbage, other_json])
def test_what_cannot_be_loaded_is_a_load_error_that_names_the_file(
    case: EngineCase, tmp_path: Path, put: Callable[[Path], None]
) -> None:
    path = tmp_path / case.filename
    put(path)
    with pytest.raises(ModelLoadError, match=path.name) as refused:
        case.load(path, EngineConfig(device=case.device))
    assert not isinstance(refused.value, DeviceUnavailable)
    assert "\n" not in str(refused.value)


def test_a_file_cut_short_is_a_load_error(case: EngineCase, tmp_path: Path) -> None:
    path = tmp_path / case.filename
    case.write(path, "FP32", True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelLoadError):
        case.load(path, EngineConfig(device=case.device))


def test_a_batch_size_that_the_model_has_no_axis_for_is_a_load_error(
    case: EngineCase, tmp_path: Path
) -> None:
    path = tmp_path / case.filename
    case.write(path, "FP32", False)
    with pytest.raises(ModelLoadError, match="without a first axis that varies"):
        case.load(path, EngineConfig(max_batch_size=MAX_BATCH, device=case.device))


def test_a_device_that_is_asked_for_and_not_there_is_never_replaced(
    case: EngineCase, tmp_path: Path
) -> None:
    if case.load is ort.load and CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA: which of its devices are missing is not known")
    path = tmp_path / case.filename
    case.write(path, "FP32", True)
    with pytest.raises(DeviceUnavailable, match="was asked for"):
        case.load(path, EngineConfig(device="cuda:0"))


def test_a_value_that_the_model_cannot_take_is_the_callers_mistake(tmp_path: Path) -> None:
    path = write_fake(tmp_path / "model.json", bad_on=13)
    with pytest.raises(InvalidInput):
        fake.load(path, EngineConfig()).infer({"x": np.full((1, 4), 13, np.float32)})
    engine = ort.load(write_identity(tmp_path / "model.onnx", BYTES, [1]), EngineConfig())
    with pytest.raises(InvalidInput):
        engine.infer({"x": np.array([[b"\xff"]], dtype=object)})
