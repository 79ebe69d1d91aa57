"""What TensorRT-RTX can keep of the contract without a GPU: parse, build, keep, look at, refuse.

What runs a plan is asked in the other files of this folder, marked `gpu`. Nothing here shows that a
plan computes the right thing: that takes a GPU.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from engines import devices
from engines.base import EngineConfig, TensorSpec
from engines.errors import DeviceUnavailable, ModelLoadError
from engines.tensors import DATATYPES
from engines.trt import api, build, parse, plans
from engines.trt import load as loading
from engines.trt.api import Flavour
from engines.trt.plans import PlanFacts
from engines.trt.profiles import Range
from tests.support import engine_cases as cases
from tests.support.batching import HANG_S
from tests.support.broken_files import FILES
from tests.support.engine_cases import BUCKETS, MAX_BATCH, ORT_CPU, TENSORRT_RTX

HARDWARE = {"gpu": "none: a test", "compute_capability": [8, 9]}
SERVED = sorted(set(DATATYPES) - set(TENSORRT_RTX.cannot))
ROWS = {cases.UNBATCHED: 0, cases.FIXED: cases.FIXED_ROWS}


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    return api.choose("tensorrt_rtx")


def config(kind: str = cases.IDENTITY, **changes: Any) -> EngineConfig:  # Any: see EngineCase
    return TENSORRT_RTX.config(**({"max_batch_size": ROWS.get(kind, MAX_BATCH)} | changes))


def kept(flavour: Flavour, model: Path, cache: Path | None, **changes: Any) -> tuple[bytes, Any]:
    """Build the plan of a model as a load does. Any: fields of EngineConfig."""
    settings = config(**changes)
    recipe = loading.recipe_of(flavour, model, settings)
    return build.kept(
        flavour, model, recipe, cache=cache, hardware=HARDWARE, built_at="2026-01-01T00:00:00+00:00"
    )


def facts_of(flavour: Flavour, folder: Path, kind: str = cases.IDENTITY) -> PlanFacts:
    model = TENSORRT_RTX.written(folder, kind)
    _, path = kept(flavour, model, folder / "cache", max_batch_size=ROWS.get(kind, MAX_BATCH))
    assert path is not None
    return plans.inspect(path)


@pytest.mark.parametrize("kind", cases.KINDS)
def test_the_signature_is_what_onnxruntime_says_of_the_same_file(
    flavour: Flavour, tmp_path: Path, kind: str
) -> None:
    model = TENSORRT_RTX.written(tmp_path, kind)
    rows = 0 if kind in ROWS else MAX_BATCH
    metadata = ORT_CPU.load(model, EngineConfig(max_batch_size=rows)).metadata
    assert parse.signature(flavour, model) == (metadata.inputs, metadata.outputs)


@pytest.mark.parametrize("kind", sorted(set(cases.KINDS) - set(TENSORRT_RTX.cannot)))
def test_every_kind_of_model_becomes_a_plan_that_says_what_it_is(
    flavour: Flavour, tmp_path: Path, kind: str
) -> None:
    facts = facts_of(flavour, tmp_path, kind)
    assert facts.header.flavour == "tensorrt_rtx"
    assert facts.header.version == flavour.version
    assert facts.header.size_bytes == facts.size_bytes
    assert facts.sidecar is not None
    assert facts.sidecar.plan_sha256 == facts.sha256
    signature = parse.signature(flavour, tmp_path / "model.onnx")
    assert (facts.sidecar.inputs, facts.sidecar.outputs) == signature
    assert plans.fault("model.plan", facts, flavour.name, flavour.version) == ""


@pytest.mark.parametrize("datatype", SERVED)
def test_every_datatype_that_it_has_is_in_the_plans_signature(
    flavour: Flavour, tmp_path: Path, datatype: str
) -> None:
    model = TENSORRT_RTX.written(tmp_path, datatype=datatype)
    _, path = kept(flavour, model, tmp_path / "cache")
    sidecar = plans.read_sidecar(path)
    assert sidecar is not None
    assert sidecar.inputs == (TensorSpec(name="x", datatype=datatype, shape=(-1, 3)),)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [((1, 3), (8, 3), (8, 3))]),
        ({"buckets": BUCKETS}, [((1, 3), (8, 3), (8, 3))]),
        ({"buckets": (4, 8)}, [((4, 3), (8, 3), (8, 3))]),
        (
            {"buckets": BUCKETS, "parameters": {"profiles": "bucket"}},
            [((rows, 3),) * 3 for rows in BUCKETS],
        ),
        (
            {"parameters": {"profiles": "x:1x3,2x3,8x3"}},
            [((1, 3), (2, 3), (8, 3))],
        ),
    ],
    ids=["none", "buckets", "from four", "each bucket", "written"],
)
def test_buckets_and_profiles_become_what_the_plan_is_built_for(
    flavour: Flavour, tmp_path: Path, changes: dict[str, Any], expected: list[Any]
) -> None:
    model = TENSORRT_RTX.written(tmp_path)
    _, path = kept(flavour, model, tmp_path / "cache", **changes)
    sidecar = plans.read_sidecar(path)
    assert sidecar is not None
    assert list(sidecar.profiles) == [{"x": Range(*shapes)} for shapes in expected]


def test_a_dimension_that_varies_needs_a_profile_that_says_how(
    flavour: Flavour, tmp_path: Path
) -> None:
    model = TENSORRT_RTX.written(tmp_path, cases.WIDE)
    with pytest.raises(ModelLoadError, match="give the parameter `profiles`"):
        loading.recipe_of(flavour, model, config())
    parameters = {"profiles": "x:1x1,8x16,8x64"}
    plan, _ = kept(flavour, model, tmp_path / "cache", parameters=parameters)
    assert plan


# Keeping


def test_a_plan_is_built_once_and_found_again(flavour: Flavour, tmp_path: Path) -> None:
    model = TENSORRT_RTX.written(tmp_path)
    first, path = kept(flavour, model, tmp_path / "cache")
    built_ns = path.stat().st_mtime_ns
    again, same = kept(flavour, model, tmp_path / "cache")
    assert (again, same, same.stat().st_mtime_ns) == (first, path, built_ns)


def test_another_model_or_another_recipe_is_another_plan(flavour: Flavour, tmp_path: Path) -> None:
    paths = [
        kept(flavour, TENSORRT_RTX.written(tmp_path / folder, kind), tmp_path / "cache", **changes)[
            1
        ]
        for folder, kind, changes in (
            ("a", cases.IDENTITY, {}),
            ("b", cases.SOFTMAX, {}),
            ("a", cases.IDENTITY, {"buckets": (2, 8)}),
            ("a", cases.IDENTITY, {"parameters": {"optimization_level": "1"}}),
            ("a", cases.IDENTITY, {"max_batch_size": 4}),
        )
    ]
    assert len(set(paths)) == len(paths)


def test_without_a_folder_a_plan_is_built_and_not_kept(flavour: Flavour, tmp_path: Path) -> None:
    plan, path = kept(flavour, TENSORRT_RTX.written(tmp_path), None)
    assert path is None
    assert plans.header_of(plan[: plans.HEADER_BYTES]).flavour == "tensorrt_rtx"


def test_of_several_who_want_a_plan_one_builds_it(flavour: Flavour, tmp_path: Path) -> None:
    model = TENSORRT_RTX.written(tmp_path)
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(kept(flavour, model, tmp_path / "cache")[0]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(list((tmp_path / "cache").glob("*.plan"))) == 1


def test_a_plan_that_was_damaged_is_told_from_a_whole_one(flavour: Flavour, tmp_path: Path) -> None:
    plan, path = kept(flavour, TENSORRT_RTX.written(tmp_path), tmp_path / "cache")
    for damaged in (plan[:-1], plan[:100], b"", b"ftrt", plan[:-1] + b"\0" + plan[-1:]):
        path.write_bytes(damaged)
        assert plans.fault("model.plan", plans.inspect(path), flavour.name, flavour.version)


# What is refused


@pytest.mark.parametrize("put", FILES)
def test_what_is_no_onnx_file_is_a_load_error_that_names_it(
    flavour: Flavour, tmp_path: Path, put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.onnx"
    put(path)
    with pytest.raises(ModelLoadError, match=r"model\.onnx") as refused:
        loading.recipe_of(flavour, path, config())
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_batch_size": 0, "buckets": (1,)}, "a model without a batch axis has no buckets"),
        ({"buckets": (1, 4)}, r"the last of \[1, 4\] is not max_batch_size 8"),
        ({"inputs": (TensorSpec(name="x", datatype="INT64", shape=(3,)),)}, "declared INT64"),
        ({"outputs": (TensorSpec(name="z", datatype="FP32", shape=(3,)),)}, "'z' is not in the"),
        ({"parameters": {"optimization_level": "9"}}, "not one of 0 to 5"),
        ({"parameters": {"profiles": "x=1"}}, "x=1"),
    ],
)
def test_a_configuration_that_contradicts_the_file_is_a_load_error(
    flavour: Flavour, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ModelLoadError, match=sentence):
        loading.recipe_of(flavour, TENSORRT_RTX.written(tmp_path), config(**changes))


@pytest.mark.parametrize("device", ["cpu", "cuda:99"])
def test_a_device_that_it_cannot_use_is_refused(tmp_path: Path, device: str) -> None:
    model = TENSORRT_RTX.written(tmp_path)
    with pytest.raises(DeviceUnavailable) as refused:
        TENSORRT_RTX.load(model, config(device=device))
    assert device in str(refused.value)


def test_without_a_gpu_a_plan_is_not_put_anywhere_and_the_reason_is_said(
    flavour: Flavour, tmp_path: Path
) -> None:
    why = devices.why_not("cuda:0")
    if not why:
        pytest.skip("there is a GPU: plans are run in the other files of this folder")
    plan, _ = kept(flavour, TENSORRT_RTX.written(tmp_path), None)
    with pytest.raises(DeviceUnavailable, match=why):
        loading.deserialized(flavour, plan, "cuda:0")
