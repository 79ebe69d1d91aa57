"""Loading, as far as a machine without a GPU gets; TensorRT-RTX is real where it is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import onnx
import pytest

from engines import devices
from engines.base import EngineConfig, EngineLoader, TensorSpec
from engines.devices import Cuda, Gpu
from engines.errors import DeviceUnavailable, ModelLoadError
from engines.gpu.host import HostMemory
from engines.trt import api, build, load, load_rtx, load_tensorrt, plans, profiles
from engines.trt.api import Flavour
from engines.trt.profiles import InvalidRecipe, Range
from engines.trt.recipe import Recipe
from tests.support.fake_trt import FakeTensorRT, fake_plan
from tests.support.models import write_mlp
from tests.support.trt_models import write_conv, write_scaled

CUDA: Final = EngineConfig(device="cuda:0")
MLP: Final = Recipe(profiles=(profiles.parse("x:1x16,8x16,8x16"),))
HARDWARE: Final = {"gpu": "NVIDIA Made Up", "compute_capability": [8, 9], "driver_version": 13000}
without_gpu: Final = pytest.mark.skipif(bool(devices.cuda().gpus), reason="this machine has a GPU")


@pytest.fixture
def rtx() -> Flavour:
    pytest.importorskip("tensorrt_rtx")
    return api.choose("tensorrt_rtx")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_mlp(tmp_path / "model.onnx", [16, 4], 1)


@pytest.fixture
def plan(rtx: Flavour, model: Path, tmp_path: Path) -> Path:
    """Build a real plan, with its sidecar."""
    path = tmp_path / "model.plan"
    key = build.key(rtx, model, MLP, {})
    build.write(path, build.build(rtx, model, MLP), key, "2026-11-21T12:00:00+00:00")
    return path


def show_gpu(monkeypatch: pytest.MonkeyPatch, major: int, minor: int) -> None:
    """Let the driver show a GPU that is not there."""
    made_up = Gpu(0, "NVIDIA Made Up", (major, minor), 1 << 34, "")
    monkeypatch.setattr(devices, "cuda", lambda: Cuda(13000, (made_up,), ""))


@without_gpu
@pytest.mark.parametrize("load_it", [load_rtx, load_tensorrt])
@pytest.mark.parametrize("device", ["cuda:0", "cuda", "auto"])
@pytest.mark.parametrize("suffix", [".onnx", ".plan"])
def test_without_a_gpu_nothing_is_loaded_and_nothing_falls_back(
    load_it: EngineLoader, device: str, suffix: str, tmp_path: Path
) -> None:
    with pytest.raises(DeviceUnavailable) as caught:
        load_it(tmp_path / f"model{suffix}", EngineConfig(device=device))
    assert str(caught.value) == devices.why_not("cuda:0")


def test_the_cpu_is_no_device_for_a_plan(tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match=r"tensorrt_rtx runs on GPUs only, .* say cuda:0"):
        load_rtx(tmp_path / "model.plan", EngineConfig(device="cpu"))
    with pytest.raises(ModelLoadError, match="'gpu' is no device"):
        load_rtx(tmp_path / "model.plan", EngineConfig(device="gpu"))


@without_gpu
def test_a_plan_that_no_device_takes_is_refused_with_both_reasons(rtx: Flavour, plan: Path) -> None:
    """The real runtime returns None here, and tells its logger why."""
    with pytest.raises(DeviceUnavailable) as caught:
        load.deserialized(rtx, plan.read_bytes(), "cuda:0")
    assert devices.why_not("cuda:0") in str(caught.value)
    assert f"{rtx} does not load the plan on cuda:0: cudaError" in str(caught.value)


def test_a_plan_that_is_damaged_is_found_out_by_the_runtime_too(
    rtx: Flavour, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show_gpu(monkeypatch, 8, 9)
    damaged = b"xxxx" + plan.read_bytes()[4:]
    with pytest.raises(ModelLoadError) as caught:
        load.deserialized(rtx, damaged, "cuda:0")
    assert not isinstance(caught.value, DeviceUnavailable)
    assert "magicTag" in str(caught.value)
    assert str(caught.value).endswith("; malformed engine")


def test_a_gpu_that_tensorrt_rtx_does_not_know_is_refused_before_anything_is_built(
    rtx: Flavour, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    show_gpu(monkeypatch, 9, 0)
    with pytest.raises(DeviceUnavailable) as caught:
        load_rtx(tmp_path / "model.onnx", CUDA)
    assert str(caught.value).startswith(
        f"cuda:0 (NVIDIA Made Up): {rtx} has no support for compute capability 9.0, only for 7.5"
    )


def test_a_gpu_that_tensorrt_rtx_knows_passes(rtx: Flavour) -> None:
    load.check_support(rtx, "cuda:0", HARDWARE)
    plain = replace(rtx, is_rtx=False)
    load.check_support(plain, "cuda:0", HARDWARE | {"compute_capability": [9, 0]})


def test_a_plan_is_taken_as_it_is(rtx: Flavour, plan: Path) -> None:
    content, sha256, _ = load.plan_of(rtx, plan, CUDA, HARDWARE)
    assert content == plan.read_bytes()
    assert sha256 == plans.inspect(plan).sha256


def test_a_plan_needs_no_sidecar(rtx: Flavour, plan: Path) -> None:
    plans.sidecar_path(plan).unlink()
    assert load.plan_of(rtx, plan, CUDA, HARDWARE)[0] == plan.read_bytes()


def test_a_plan_of_another_version_is_refused_with_both(rtx: Flavour, plan: Path) -> None:
    newer = replace(rtx, version="1.8.0.5")
    with pytest.raises(ModelLoadError, match=r"built by TensorRT-RTX 1\.7.* is TensorRT-RTX 1\.8"):
        load.plan_of(newer, plan, CUDA, HARDWARE)


def test_a_plan_of_tensorrt_rtx_is_no_plan_of_tensorrt(plan: Path) -> None:
    trt = FakeTensorRT(HostMemory())
    with pytest.raises(ModelLoadError, match="is a plan of TensorRT-RTX, and is to be run by"):
        load.plan_of(trt.flavour(), plan, CUDA, HARDWARE)


def test_the_header_of_the_stand_in_is_that_of_a_plan(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(fake_plan(model, MLP.profiles))
    trt = FakeTensorRT(HostMemory())
    assert load.plan_of(trt.flavour(), path, CUDA, HARDWARE)[0] == path.read_bytes()


def test_an_onnx_file_is_built_through_the_cache(rtx: Flavour, model: Path, tmp_path: Path) -> None:
    config = replace(CUDA, cache=tmp_path / "cache", max_batch_size=8)
    content, sha256, _ = load.plan_of(rtx, model, config, HARDWARE)
    (kept,) = (tmp_path / "cache").glob("*.plan")
    assert kept.read_bytes() == content
    assert sha256 == plans.model_sha256(model), "the digest is the model's, as with other engines"
    made_ns = kept.stat().st_mtime_ns
    assert load.plan_of(rtx, model, config, HARDWARE)[0] == content
    assert kept.stat().st_mtime_ns == made_ns


def test_the_recipe_follows_the_configuration(rtx: Flavour, model: Path) -> None:
    config = replace(
        CUDA,
        max_batch_size=32,
        memory_limit_bytes=1 << 28,
        parameters={"optimization_level": "2", "builder_flags": "STRICT_NANS NO_TF32"},
    )
    assert load.recipe_of(rtx, model, config) == Recipe(
        profiles=({"x": Range((1, 16), (32, 16), (32, 16))},),
        workspace_bytes=1 << 28,
        level=2,
        flags=("STRICT_NANS", "NO_TF32"),
    )


def test_buckets_make_the_profile_or_one_each(rtx: Flavour, model: Path) -> None:
    config = replace(CUDA, buckets=(4, 16))
    assert load.recipe_of(rtx, model, config).profiles == (
        {"x": Range((4, 16), (16, 16), (16, 16))},
    )
    each = replace(config, parameters={"profiles": "bucket"})
    assert load.recipe_of(rtx, model, each).profiles == (
        profiles.parse("x:4x16"),
        profiles.parse("x:16x16"),
    )


def test_profiles_can_be_written_out(rtx: Flavour, tmp_path: Path) -> None:
    model = write_scaled(tmp_path / "model.onnx")
    with pytest.raises(InvalidRecipe, match="give the parameter `profiles`"):
        load.recipe_of(rtx, model, CUDA)
    written = "x:1x1,8x64,8x128 x:1x1,1x8,1x16"
    config = replace(CUDA, parameters={"profiles": written})
    assert load.recipe_of(rtx, model, config).profiles == tuple(
        profiles.parse(text) for text in written.split()
    )


def test_a_model_of_one_batch_size_needs_no_profile(rtx: Flavour, tmp_path: Path) -> None:
    model = write_conv(tmp_path / "model.onnx", rows=4)
    for size in (None, 0, 4):
        config = replace(CUDA, max_batch_size=size)
        assert load.recipe_of(rtx, model, config).profiles == ()


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (EngineConfig(parameters={"optimization_level": "9"}), "is '9', not one of 0 to 5"),
        (EngineConfig(parameters={"profiles": "x:1,2"}), "is no profile"),
        (
            EngineConfig(inputs=(TensorSpec(name="x", datatype="FP64", shape=(16,)),)),
            "declared FP64, the model has FP32",
        ),
    ],
)
def test_a_configuration_that_contradicts_the_model_is_refused(
    rtx: Flavour, model: Path, config: EngineConfig, why: str
) -> None:
    with pytest.raises(ModelLoadError, match=why):
        load.recipe_of(rtx, model, config)


def test_the_precision_that_a_file_says_comes_along(
    rtx: Flavour, model: Path, tmp_path: Path
) -> None:
    assert load.plan_of(rtx, model, CUDA, HARDWARE).precision == ""
    said = onnx.load_model(model)
    said.metadata_props.add(key="sluice.precision", value="INT8 QDQ")
    said.metadata_props.add(key="sluice.recipe", value="calibrated")
    model.write_bytes(said.SerializeToString())
    assert load.plan_of(rtx, model, CUDA, HARDWARE).precision == "INT8 QDQ"
    built = build.build(rtx, model, MLP)
    path = tmp_path / "model.plan"
    build.write(path, built, build.key(rtx, model, MLP, {}), "2026-11-21T12:00:00+00:00")
    assert load.plan_of(rtx, path, CUDA, HARDWARE).precision == "INT8 QDQ"
