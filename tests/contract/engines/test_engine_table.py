"""The table of what engines cannot serve: each line still true, and refused, not garbled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines import devices
from engines.base import LanedEngine
from engines.errors import DeviceUnavailable, ModelLoadError
from engines.tensors import BYTES, DATATYPES
from engines.trt import api, parse
from tests.support import engine_cases as cases
from tests.support.engine_cases import ON_CPU, ON_GPU, TENSORRT_RTX, EngineCase, able, pairs

ALL = (*ON_CPU, *ON_GPU)


def test_the_table_names_nothing_that_is_neither_a_kind_nor_a_datatype() -> None:
    for case in ALL:
        assert set(case.cannot) <= {*DATATYPES, *cases.KINDS}
        assert all(case.cannot.values())


def test_every_kind_and_datatype_is_asked_of_some_engine_on_the_cpu() -> None:
    for kind in cases.KINDS:
        assert any(kind not in case.cannot for case in ON_CPU)
    asked = [param.values for param in pairs(sorted(DATATYPES))]
    assert {datatype for case, datatype in asked if case in ON_CPU} == set(DATATYPES)
    assert len([case for case, _ in asked if case is cases.ORT_CPU]) == len(DATATYPES)
    assert len([case for case, _ in asked if case is cases.TORCH_CPU]) == len(DATATYPES) - 1


def test_engines_that_need_a_gpu_are_marked_and_say_why_they_do_not_run_here() -> None:
    def is_marked(param: Any) -> bool:  # Any: pytest's parameter
        return [mark.name for mark in param.marks] == ["gpu"]

    marked = {param.values[0].name for param in able() if is_marked(param)}
    assert marked == {case.name for case in ON_GPU}
    for case in ON_CPU:
        assert case.why_not_here() == ""
    if why := devices.why_not("cuda:0"):
        for case in ON_GPU:
            assert case.why_not_here()
        assert TENSORRT_RTX.why_not_here() == why


@pytest.mark.parametrize("case", [c for c in ON_GPU if c.why_not_here()], ids=lambda c: c.name)
def test_an_engine_that_does_not_run_here_is_refused_with_the_reason(
    case: EngineCase, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadError) as refused:
        case.loaded(tmp_path)
    said = str(refused.value)
    assert "\n" not in said
    # A package that is missing is a ModelLoadError that names the extra to install.
    assert isinstance(refused.value, DeviceUnavailable) or "install sluice-gateway[" in said


def test_torch_has_no_text() -> None:
    from engines.pytorch.arrays import DTYPES

    assert set(DATATYPES) - set(DTYPES) == {BYTES} == set(cases.TORCH_CPU.cannot)


@pytest.mark.parametrize("datatype", sorted(set(TENSORRT_RTX.cannot) & set(DATATYPES) - {"FP64"}))
def test_a_datatype_that_tensorrt_has_not_is_refused(tmp_path: Path, datatype: str) -> None:
    flavour = api.choose("tensorrt_rtx")
    model = TENSORRT_RTX.written(tmp_path, datatype=datatype)
    with pytest.raises(ModelLoadError, match=r"model\.onnx is not understood by TensorRT-RTX"):
        parse.signature(flavour, model)


def test_what_tensorrt_makes_fp32_of_is_said_to_be_fp32(tmp_path: Path) -> None:
    flavour = api.choose("tensorrt_rtx")
    inputs, outputs = parse.signature(flavour, TENSORRT_RTX.written(tmp_path, datatype="FP64"))
    assert {spec.datatype for spec in inputs + outputs} == {"FP32"}


def test_the_fake_echoes_and_computes_nothing(tmp_path: Path) -> None:
    engine = cases.FAKE.loaded(tmp_path, cases.SUM)
    x = cases.values("FP32", 2)
    assert engine.infer({"x": x, "z": x})["y"].tolist() == x.tolist()


@pytest.mark.parametrize("case", ON_CPU, ids=lambda case: case.name)
def test_engines_on_the_cpu_take_one_batch_at_a_time(case: EngineCase, tmp_path: Path) -> None:
    assert not isinstance(case.loaded(tmp_path), LanedEngine)
