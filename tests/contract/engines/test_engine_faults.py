"""What engines refuse, in one sentence each: broken files, wrong declarations, absent devices."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from engines.base import EngineConfig, TensorSpec
from engines.errors import DeviceUnavailable, EngineError, InvalidInput, ModelLoadError
from engines.tensors import BYTES, Array
from tests.support import engine_cases as cases
from tests.support.broken_files import FILES
from tests.support.engine_cases import (
    FAKE,
    MAX_BATCH,
    ORT_CPU,
    EngineCase,
    able,
    assert_same,
    values,
)

every = pytest.mark.parametrize("case", able())
ABSENT: Final = "cuda:99"


@pytest.fixture(autouse=True)
def _here(case: EngineCase) -> None:
    if why := case.why_not_here():
        pytest.skip(f"{case.name}: {why}")


def refused(case: EngineCase, path: Path, config: EngineConfig) -> ModelLoadError:
    """Load what cannot be; the refusal is one line and no foreign exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ModelLoadError) as caught:
            case.load(path, config)
    assert "\n" not in str(caught.value)
    return caught.value


# Files


@pytest.mark.parametrize("put", FILES)
@every
def test_what_cannot_be_loaded_is_a_load_error_that_names_the_file(
    case: EngineCase,
    tmp_path: Path,
    put: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / case.filename
    put(path)
    error = refused(case, path, EngineConfig(device=case.device))
    assert path.name in str(error)
    assert not isinstance(error, DeviceUnavailable)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 0.999])
@every
def test_a_file_cut_short_is_a_load_error(case: EngineCase, tmp_path: Path, share: float) -> None:
    path = case.written(tmp_path, cases.SUM)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(case, path, case.config())


# Declarations


@pytest.mark.parametrize("case", able(cases.UNBATCHED))
def test_a_batch_size_that_the_model_has_no_axis_for_is_a_load_error(
    case: EngineCase, tmp_path: Path
) -> None:
    path = case.written(tmp_path, cases.UNBATCHED)
    assert "without a first axis that varies" in str(refused(case, path, case.config()))


X: Final = TensorSpec(name="x", datatype="FP32", shape=(3,))
Y: Final = TensorSpec(name="y", datatype="FP32", shape=(3,))


@pytest.mark.parametrize(
    ("declared", "sentence"),
    [
        ({"inputs": (TensorSpec(name="x", datatype="FP64", shape=(3,)),)}, "declared FP64"),
        ({"inputs": (TensorSpec(name="x", datatype="FP32", shape=(4,)),)}, "shape [-1, 4]"),
        ({"inputs": (TensorSpec(name="x", datatype="FP32", shape=(3, 1)),)}, "shape [-1, 3, 1]"),
        ({"outputs": (TensorSpec(name="y", datatype="INT64", shape=(3,)),)}, "declared INT64"),
        ({"outputs": (TensorSpec(name="y", datatype="FP32", shape=(2,)),)}, "shape [-1, 2]"),
        ({"inputs": (X, TensorSpec(name="mask", datatype="FP32", shape=(3,)))}, "'mask'"),
        ({"outputs": (Y, TensorSpec(name="loss", datatype="FP32", shape=()))}, "'loss'"),
        ({"buckets": (1, 4)}, "the last of [1, 4] is not max_batch_size 8"),
        ({"buckets": (4, 1, 8)}, "[4, 1, 8] are not ascending row counts from 1"),
    ],
)
@every
def test_a_declaration_that_contradicts_the_file_is_a_load_error_that_says_where(
    case: EngineCase, tmp_path: Path, declared: dict[str, object], sentence: str
) -> None:
    path = case.written(tmp_path)
    assert sentence in str(refused(case, path, case.config(**declared)))


@pytest.mark.parametrize("case", able(cases.SUM))
def test_an_input_that_is_not_declared_is_a_load_error(case: EngineCase, tmp_path: Path) -> None:
    path = case.written(tmp_path, cases.SUM)
    refused(case, path, case.config(inputs=(X,)))


@every
def test_a_declaration_that_fits_is_served(case: EngineCase, tmp_path: Path) -> None:
    engine = case.loaded(tmp_path, inputs=(X,), outputs=(Y,))
    assert engine.metadata.inputs == (TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),)
    assert_same(engine.infer({"x": values("FP32", 2)})["y"], values("FP32", 2))


# Devices


@every
def test_a_device_that_is_asked_for_and_not_there_is_never_replaced(
    case: EngineCase, tmp_path: Path
) -> None:
    path = case.written(tmp_path)
    error = refused(case, path, EngineConfig(max_batch_size=MAX_BATCH, device=ABSENT))
    assert isinstance(error, DeviceUnavailable)
    assert ABSENT in str(error) or "CUDAExecutionProvider" in str(error)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "tpu:0", ""])
@every
def test_a_device_that_is_none_is_a_load_error(
    case: EngineCase, tmp_path: Path, device: str
) -> None:
    refused(case, case.written(tmp_path), EngineConfig(max_batch_size=MAX_BATCH, device=device))


# Calls


WRONG: Final[dict[str, Callable[[], dict[str, Array]]]] = {
    "no input": dict,
    "another name": lambda: {"z": values("FP32", 2)},
}


@pytest.mark.parametrize("wrong", list(WRONG))
@every
def test_an_engine_that_was_called_wrongly_raises_and_goes_on(
    case: EngineCase, tmp_path: Path, wrong: str
) -> None:
    """Requests are checked before (engines/signature.py): this is the last line of defence."""
    engine = case.loaded(tmp_path)
    for _ in range(3):
        with pytest.raises(Exception, match=r".") as caught:
            engine.infer(WRONG[wrong]())
        assert not isinstance(caught.value, EngineError) or isinstance(caught.value, InvalidInput)
        assert_same(engine.infer({"x": values("FP32", 2)})["y"], values("FP32", 2))


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((2, 4), np.float32), np.zeros((2, 3, 1), np.float32), np.zeros(3, np.float32)],
)
@pytest.mark.parametrize("case", able(cases.SOFTMAX))
def test_a_shape_that_the_model_does_not_take_raises_and_the_engine_goes_on(
    case: EngineCase, tmp_path: Path, wrong: Array
) -> None:
    engine = case.loaded(tmp_path, cases.SOFTMAX)
    x = values("FP32", 2)
    before = engine.infer({"x": x})["y"]
    with pytest.raises(Exception, match=r"."):
        engine.infer({"x": wrong})
    assert_same(engine.infer({"x": x})["y"], before)


@pytest.mark.parametrize("case", [FAKE, ORT_CPU], ids=lambda case: case.name)
def test_a_value_that_the_model_cannot_take_is_the_callers_mistake(
    case: EngineCase, tmp_path: Path
) -> None:
    if case is FAKE:
        path = tmp_path / case.filename
        spec = {"datatype": "FP32", "shape": [-1, 3]}
        sides = {"inputs": [{"name": "x", **spec}], "outputs": [{"name": "y", **spec}]}
        path.write_text(json.dumps({**sides, "bad_on": 13}))
        engine, bad = case.load(path, case.config()), np.full((1, 3), 13, np.float32)
    else:
        engine = case.loaded(tmp_path, datatype=BYTES)
        bad = np.array([[b"\xff"] * 3], dtype=object)
    with pytest.raises(InvalidInput):
        engine.infer({"x": bad})
