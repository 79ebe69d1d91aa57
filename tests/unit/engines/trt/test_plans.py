from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Final

import pytest

from engines.base import TensorSpec
from engines.errors import ModelLoadError
from engines.trt import plans
from engines.trt.plans import Header, Sidecar
from engines.trt.profiles import Range
from tests.support.models import write_mlp
from tests.support.trt_models import write_external

BODY: Final = b"the rest"


def plan_bytes(tag: bytes = b"vtrt", version: tuple[int, ...] = (1, 7, 1, 116)) -> bytes:
    size = plans.HEADER_BYTES + len(BODY)
    return tag + bytes(12) + struct.pack("<Q", size) + bytes(version) + BODY


def sidecar(plan: bytes = b"", *, version: str = "1.7.1.116") -> Sidecar:
    return Sidecar(
        flavour="tensorrt_rtx",
        version=version,
        model_sha256="ab",
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        built_at="2026-11-21T12:00:00+00:00",
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),),
        outputs=(TensorSpec(name="y", datatype="INT64", shape=(-1,)),),
        profiles=({"x": Range((1, 4), (8, 4), (32, 4))},),
        options={"level": 3, "flags": ["STRICT_NANS"]},
    )


def written(folder: Path, plan: bytes, beside: Sidecar | None = None) -> Path:
    path = folder / "model.plan"
    path.write_bytes(plan)
    if beside is not None:
        plans.sidecar_path(path).write_text(beside.to_json())
    return path


def fault(path: Path, flavour: str = "tensorrt_rtx", version: str = "1.7.1.116") -> str:
    return plans.fault(path.name, plans.inspect(path), flavour, version)


def test_a_sidecar_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = written(tmp_path, b"", sidecar())
    assert plans.sidecar_path(path).name == "model.plan.json"
    assert plans.read_sidecar(path) == sidecar()


def test_a_plan_needs_no_sidecar_and_one_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = written(tmp_path, b"")
    assert plans.read_sidecar(path) is None
    plans.sidecar_path(path).write_text('{"model": "somebody else\'s"}')
    assert plans.read_sidecar(path) is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"format": "sluice-plan-1"}',
        json.dumps(json.loads(sidecar().to_json()) | {"inputs": [{"name": "x"}]}),
        json.dumps(json.loads(sidecar().to_json()) | {"profiles": [{"x": {"min": "a"}}]}),
        json.dumps(
            json.loads(sidecar().to_json())
            | {"inputs": [{"name": "x", "datatype": "FP12", "shape": []}]}
        ),
    ],
)
def test_a_sidecar_that_is_broken_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, b"")
    plans.sidecar_path(path).write_text(text)
    with pytest.raises(ModelLoadError, match=r"model\.plan\.json"):
        plans.read_sidecar(path)


@pytest.mark.parametrize(
    ("start", "header"),
    [
        (plan_bytes(), Header(flavour="tensorrt_rtx", version="1.7.1.116", size_bytes=36)),
        (
            plan_bytes(b"ftrt", (10, 16, 1, 11)),
            Header(flavour="tensorrt", version="10.16.1.11", size_bytes=None),
        ),
        (b"ftrt\1\0\0\0" + bytes(20), Header(flavour="tensorrt", version="", size_bytes=None)),
        (b"ftrt", Header(flavour="tensorrt", version="", size_bytes=None)),
        (b"\x08\x09\x12", Header(flavour="", version="", size_bytes=None)),
        (b"", Header(flavour="", version="", size_bytes=None)),
    ],
)
def test_the_first_bytes_say_whose_plan_it_is(start: bytes, header: Header) -> None:
    assert plans.header_of(start) == header


def test_a_plan_that_fits_has_no_fault(tmp_path: Path) -> None:
    assert fault(written(tmp_path, plan_bytes())) == ""
    assert fault(written(tmp_path, plan_bytes(), sidecar(plan_bytes()))) == ""


def test_builds_of_one_version_are_not_told_apart(tmp_path: Path) -> None:
    assert fault(written(tmp_path, plan_bytes()), version="1.7.1.9") == ""


def test_a_plan_of_another_version_is_refused_with_both(tmp_path: Path) -> None:
    why = fault(written(tmp_path, plan_bytes(version=(1, 6, 0, 3))))
    assert why == (
        "model.plan was built by TensorRT-RTX 1.6.0.3, and this is TensorRT-RTX 1.7.1.116: "
        "a plan runs on the version that built it; build it again"
    )


def test_a_sidecar_says_the_version_where_the_header_does_not(tmp_path: Path) -> None:
    plan = b"ftrt\1\0\0\0" + bytes(30)
    path = written(tmp_path, plan, sidecar(plan, version="10.16.1.11"))
    assert "built by TensorRT 10.16.1.11" in fault(path, "tensorrt", "11.4.0.106")


def test_a_plan_of_the_other_runtime_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, plan_bytes())
    assert fault(path, "tensorrt", "11.4.0.106") == (
        "model.plan is a plan of TensorRT-RTX, and is to be run by TensorRT"
    )


def test_what_is_no_plan_is_refused(tmp_path: Path) -> None:
    assert "is no plan" in fault(write_mlp(tmp_path / "model.plan", [4, 2], 1))


def test_a_plan_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    assert "is damaged: it has 35 of 36 bytes" in fault(written(tmp_path, plan_bytes()[:-1]))


def test_a_plan_that_its_sidecar_does_not_describe_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, plan_bytes(), sidecar(plan_bytes()))
    path.write_bytes(plan_bytes()[:-1] + b"!")
    assert "was replaced" in fault(path)


def test_a_plan_that_is_not_there_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"none\.plan cannot be read: No such file"):
        plans.inspect(tmp_path / "none.plan")


def test_the_digest_of_a_model_is_that_of_its_file(tmp_path: Path) -> None:
    path = write_mlp(tmp_path / "model.onnx", [4, 2], 1)
    assert plans.external_files(path) == []
    assert plans.model_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_digest_of_a_model_covers_weights_that_lie_beside_it(tmp_path: Path) -> None:
    path = write_external(tmp_path / "model.onnx")
    assert plans.external_files(path) == ["weights.bin"]
    before = plans.model_sha256(path)
    (tmp_path / "weights.bin").write_bytes(bytes(64))
    assert plans.model_sha256(path) != before


def test_an_empty_model_has_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.touch()
    assert plans.model_sha256(path) == hashlib.sha256(b"").hexdigest()
