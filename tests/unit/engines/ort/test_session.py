"""Sessions: where nodes end up, what strict means, what is said of a GPU that is not there."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from engines import devices
from engines.base import EngineConfig
from engines.errors import DeviceFailed, DeviceUnavailable, ModelLoadError, OutOfMemory
from engines.ort import load, presence
from engines.ort.failures import first_line, is_of_device, of_run
from engines.ort.loading import open_strictly
from engines.ort.providers import CPU, CUDA, TENSORRT, Wanted
from engines.ort.session import RECORD_PLACEMENT, open_session, placement, session_options
from engines.ort.tensorrt import completed, profile_of
from tests.support.models import write_identity, write_mlp

AZURE = "AzureExecutionProvider"
"""In every build of onnxruntime, and never given a node: a provider beside the CPU, without one."""
HAS_NO_GPU = devices.why_not("cuda:0")
without_gpu = pytest.mark.skipif(not HAS_NO_GPU, reason="this machine has a GPU")
with_azure = pytest.mark.skipif(
    AZURE not in onnxruntime.get_available_providers(), reason=f"no {AZURE} in this onnxruntime"
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_mlp(tmp_path / "model.onnx", [4, 8, 3], seed=1)


def test_the_placement_is_told_by_provider_and_operator(model: Path) -> None:
    options = session_options(EngineConfig(), {RECORD_PLACEMENT: "1"})
    session = open_session(model, options, [Wanted(CPU, {})])
    found = placement(session)
    assert set(found) == {CPU}
    assert sum(found[CPU].values()) == 3
    assert found[CPU]["Relu"] == 1


def test_a_session_that_did_not_record_its_placement_tells_nothing(model: Path) -> None:
    assert placement(open_session(model, session_options(EngineConfig()), [Wanted(CPU, {})])) == {}


@with_azure
def test_nodes_that_only_the_cpu_runs_are_refused_by_name(model: Path) -> None:
    wanted = [Wanted(AZURE, {})]
    with pytest.raises(ModelLoadError) as refused:
        open_strictly(model, EngineConfig(), wanted, device=("cpu", 0), strict=True)
    assert str(refused.value) == (
        "model.onnx: 3 of 3 nodes can only run on the CPU (Gemm, Relu) and "
        f"{AZURE} was asked for: the parameter strict with the value 0 allows it"
    )
    assert not isinstance(refused.value, DeviceUnavailable)


@with_azure
def test_nodes_may_run_on_the_cpu_where_that_is_allowed(model: Path) -> None:
    session = open_strictly(
        model, EngineConfig(), [Wanted(AZURE, {})], device=("cpu", 0), strict=False
    )
    assert session.get_providers() == [AZURE, CPU]
    assert sum(placement(session)[CPU].values()) == 3


@pytest.mark.skipif(
    CUDA in onnxruntime.get_available_providers(), reason="this onnxruntime has the provider"
)
@pytest.mark.parametrize("strict", [False, True])
def test_a_provider_that_is_nowhere_makes_no_session_at_all(
    model: Path, strict: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """onnxruntime itself would make it on the CPU, with a warning."""
    with pytest.raises(DeviceUnavailable, match=f"{CUDA}' has nothing to run on at cuda:0"):
        open_strictly(model, EngineConfig(), [Wanted(CUDA, {})], device=("cuda", 0), strict=strict)
    assert capfd.readouterr() == ("", "")


def test_a_broken_model_is_not_the_devices_fault(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x00" * 64)
    with pytest.raises(ModelLoadError) as refused:
        open_strictly(path, EngineConfig(), [Wanted(CPU, {})], device=("cpu", 0), strict=False)
    assert not isinstance(refused.value, DeviceUnavailable)
    assert str(refused.value).startswith("model.onnx does not load: ")
    assert "ONNXRuntimeError" not in str(refused.value)


@without_gpu
def test_auto_takes_the_cpu_and_says_why(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = EngineConfig(device="auto", providers=(("cuda", {"use_tf32": "0"}),))
    with caplog.at_level(logging.WARNING):
        engine = load(model, config)
    metadata = engine.metadata
    assert metadata.device == "cpu"
    assert metadata.providers == (CPU,)
    assert metadata.fallback.startswith(f"{CUDA} was asked for")
    assert [r.message for r in caplog.records] == ["runs on the CPU, as device auto allows"]
    rows = np.ones((2, 4), np.float32)
    expected = load(model, EngineConfig()).infer({"x": rows})["y"]
    np.testing.assert_array_equal(engine.infer({"x": rows})["y"], expected)


def test_a_model_on_the_cpu_by_configuration_has_fallen_back_from_nothing(model: Path) -> None:
    assert load(model, EngineConfig()).metadata.fallback == ""


@without_gpu
def test_a_model_that_is_broken_is_so_with_auto_as_well(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x00")
    with pytest.raises(ModelLoadError, match=r"^model.onnx does not load: "):
        load(tmp_path / "model.onnx", EngineConfig(device="auto"))


@without_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_a_gpu_that_is_not_there_is_refused_with_what_is_missing(model: Path, device: str) -> None:
    config = EngineConfig(device=device)
    with pytest.raises(DeviceUnavailable) as refused:
        load(model, config)
    said = str(refused.value)
    index = device.partition(":")[2] or "0"
    assert devices.why_not(f"cuda:{index}") in said
    if CUDA not in onnxruntime.get_available_providers():
        assert "install onnxruntime-gpu in place of onnxruntime" in said
    with pytest.raises(DeviceUnavailable):
        load(model, replace(config, parameters={"strict": "0"}))


def test_a_parameter_strict_that_says_nothing_is_a_load_error(model: Path) -> None:
    with pytest.raises(ModelLoadError, match="parameter strict: 'maybe' is neither 0 nor 1"):
        load(model, EngineConfig(parameters={"strict": "maybe"}))


def test_what_is_available_is_what_a_session_can_be_made_on() -> None:
    found = presence.available()
    assert CPU in found
    assert set(onnxruntime.get_available_providers()) <= set(found)


def test_libraries_that_do_not_load_are_named_with_what_to_install() -> None:
    said = (
        "Failed to load /opt/x/libcublas.so.13: libcublas.so.13: cannot open shared object file\n"
        "Failed to load libcublas.so.13: libcublas.so.13: cannot open shared object file\n"
        "Failed to load libcudart.so.13: cannot open shared object file: No such file\n"
        "Please follow somebody's page to install CUDA.\n"
    )
    assert presence.sentence_on(said).startswith(
        "libcublas.so.13, libcudart.so.13 cannot be loaded: install the CUDA and cuDNN libraries"
    )
    assert presence.sentence_on("") == ""


def test_looking_for_libraries_writes_nothing_to_standard_output(
    capfd: pytest.CaptureFixture[str],
) -> None:
    presence.missing_libraries.cache_clear()
    presence.missing_libraries()
    assert capfd.readouterr().out == ""


def test_tensorrt_is_asked_for_by_the_version_that_the_provider_is_linked_with(
    tmp_path: Path,
) -> None:
    library = tmp_path / "libonnxruntime_providers_tensorrt.so"
    library.write_bytes(b"\x7fELF..\0libnvonnxparser.so.97\0libnvinfer.so.97\0libc.so.6\0")
    said = presence.why_no_tensorrt(library)
    assert said.startswith(f"{TENSORRT} of onnxruntime {onnxruntime.__version__} needs TensorRT 97")
    assert "libnvinfer.so.97, libnvonnxparser.so.97" in said
    assert "install tensorrt-cu13<98" in said


def test_a_provider_that_is_linked_with_no_tensorrt_needs_none(tmp_path: Path) -> None:
    library = tmp_path / "provider.so"
    library.write_bytes(b"\x7fELF")
    assert presence.why_no_tensorrt(library) == ""
    assert "is not there" in presence.why_no_tensorrt(tmp_path / "missing.so")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc(...)", OutOfMemory),
        ("Failed to allocate memory for requested buffer of size 17179869184", OutOfMemory),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", OutOfMemory),
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", DeviceFailed),
        ("CUDA error 719: unspecified launch failure", DeviceFailed),
        ("CUDA failure 214: uncorrectable ECC error encountered", DeviceFailed),
        ("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0", DeviceFailed),
        ("CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0", DeviceFailed),
        ("CUDA failure 1: invalid argument ; GPU=0", RuntimeError),
        ("indices element out of data bounds, idx=2 must be within [-2,1]", RuntimeError),
        ("Failed 700 times", RuntimeError),
    ],
)
def test_what_a_failed_run_means_is_told_by_its_text(text: str, expected: type[Exception]) -> None:
    raised = RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : Non-zero status code: {text}\nmore")
    meant = of_run("cuda:1", raised)
    assert type(meant) is expected
    assert (meant is raised) == (expected is RuntimeError)
    if expected is DeviceFailed:
        assert str(meant).startswith("cuda:1 failed: Non-zero status code: ")
        assert "\n" not in str(meant)


def test_what_onnxruntime_says_is_shortened_to_its_first_line() -> None:
    raised = ValueError("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load failed.\n at 0x1")
    assert first_line(raised) == "Load failed."
    assert not is_of_device(raised)
    assert is_of_device(ValueError("Invalid device ID: 3, must be between 0 and 1"))
    assert is_of_device(ValueError("libcublasLt.so.13: cannot open shared object file"))


def test_a_profile_goes_from_the_smallest_to_the_largest_batch(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx", "FP32", [3, 8])
    metadata = load(path, EngineConfig(max_batch_size=8)).metadata
    assert profile_of(metadata.inputs, 8, ()) == {
        "trt_profile_min_shapes": "x:1x3x8",
        "trt_profile_opt_shapes": "x:4x3x8",
        "trt_profile_max_shapes": "x:8x3x8",
    }
    assert profile_of(metadata.inputs, 8, (8,))["trt_profile_opt_shapes"] == "x:8x3x8"
    assert profile_of(metadata.inputs, 1, ())["trt_profile_max_shapes"] == "x:1x3x8"


def test_tensorrt_gets_a_profile_unless_one_is_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a folder: what goes into one depends on a GPU."""
    config = EngineConfig(max_batch_size=4)
    fixed = write_identity(tmp_path / "fixed.onnx", "FP32", [3])
    out = completed({"device_id": "0"}, fixed, config, "a" * 64)
    assert out["trt_profile_max_shapes"] == "x:4x3"
    given = {"device_id": "0", "trt_profile_min_shapes": "x:2x3"}
    assert completed(given, fixed, config, "a" * 64) == given
    caplog.clear()
    varying = write_identity(tmp_path / "varying.onnx", "FP32", ["n"])
    assert completed({"device_id": "0"}, varying, config, "a" * 64) == {"device_id": "0"}
    assert any("first request of each new shape" in r.message for r in caplog.records)


def test_tensorrt_gets_flags_in_the_words_that_it_takes(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx", "FP32", [3])
    flags = {"trt_fp16_enable": "1", "trt_int8_enable": "0", "trt_dla_enable": "true"}
    numbers = {"device_id": "0", "trt_ep_context_embed_mode": "1", "trt_min_subgraph_size": "1"}
    out = completed({**flags, **numbers}, path, EngineConfig(max_batch_size=4), "a" * 64)
    assert [out[key] for key in flags] == ["True", "False", "True"]
    assert {key: out[key] for key in numbers} == numbers


@pytest.mark.parametrize("key", ["session.set_denormal_as_zero", "optimization.made_up", "ep.x.y"])
def test_entries_of_every_documented_prefix_reach_the_session(key: str) -> None:
    options = session_options(EngineConfig(parameters={key: "1", "lanes": "2"}))
    assert options.get_session_config_entry(key) == "1"
