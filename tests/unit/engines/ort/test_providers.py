"""What a configuration asks of onnxruntime, and what is refused of it before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engines.base import EngineConfig
from engines.errors import ModelLoadError
from engines.ort.providers import (
    CPU,
    CUDA,
    TENSORRT,
    Wanted,
    is_strict,
    option_faults,
    profile_shapes,
    wanted,
)

PROFILE = {
    "trt_profile_min_shapes": "x:1x3x8,y:1",
    "trt_profile_opt_shapes": "x:4x3x8,y:4",
    "trt_profile_max_shapes": "x:8x3x8,y:8",
}


def test_options_are_checked_without_onnxruntime() -> None:
    script = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from engines.ort.providers import option_faults\n"
        "print(option_faults('cuda', {'gpu_mem_limit': 'much'}))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout == "[('gpu_mem_limit', \"'much' is no number from 1\")]\n", found.stderr


@pytest.mark.parametrize("provider", ["cuda", CUDA])
def test_options_that_the_provider_has_pass(provider: str) -> None:
    options = {
        "arena_extend_strategy": "kNextPowerOfTwo",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "cudnn_conv_use_max_workspace": "true",
        "do_copy_in_default_stream": "0",
        "gpu_mem_limit": str(8 << 30),
        "prefer_nhwc": "1",
        "use_tf32": "False",
    }
    assert option_faults(provider, options) == []


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("use_tf32", "yes", "'yes' is not one of 0, 1, true, false"),
        ("gpu_mem_limit", "0", "'0' is no number from 1"),
        ("gpu_mem_limit", "2GB", "'2GB' is no number from 1"),
        ("gpu_mem_limit", "9" * 30, f"'{'9' * 30}' is no number from 1"),
        ("sdpa_kernel", "-1", "'-1' is no number from 0"),
        (
            "arena_extend_strategy",
            "SameAsRequested",
            "'SameAsRequested' is not one of kNextPowerOfTwo, kSameAsRequested",
        ),
        (
            "cudnn_conv_algo_search",
            "heuristic",
            "'heuristic' is not one of HEURISTIC, EXHAUSTIVE, DEFAULT",
        ),
        ("gpu_memory_limit", "1", f"it is no option of {CUDA}; did you mean 'gpu_mem_limit'?"),
        ("colour", "red", f"it is no option of {CUDA}"),
        ("trt_fp16_enable", "1", f"it is an option of {TENSORRT}, not of {CUDA}"),
        ("device_id", "1", "it is set by the model's device"),
        (
            "user_compute_stream",
            "7",
            "it is an address in a running process and cannot be configured",
        ),
        (
            "enable_cuda_graph",
            "1",
            "it is set where the model's configuration has optimization.cuda.graphs",
        ),
    ],
)
def test_a_wrong_option_of_cuda_is_named_with_what_is_wrong(
    key: str, value: str, sentence: str
) -> None:
    assert option_faults("cuda", {key: value}) == [(key, sentence)]


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("trt_fp16_enable", "2", "'2' is not one of 0, 1, true, false"),
        ("trt_builder_optimization_level", "6", "'6' is no number from 0 to 5"),
        ("trt_auxiliary_streams", "-2", "'-2' is no number from -1"),
        ("trt_engine_cache_path", " ", "it is empty"),
        ("trt_engine_cach_path", "/x", "did you mean 'trt_engine_cache_path'?"),
        ("trt_cuda_graph_enable", "1", "use the backend tensorrt"),
        ("trt_onnx_bytestream", "1", "it is an address in a running process"),
        ("trt_profile_min_shapes", "x=1x3", "'x=1x3' is no shape such as 'input:1x3x224x224'"),
        ("trt_profile_min_shapes", "x:1,x:2", "'x' has two shapes"),
    ],
)
def test_a_wrong_option_of_tensorrt_is_named_with_what_is_wrong(
    key: str, value: str, sentence: str
) -> None:
    [(found, said)] = option_faults("tensorrt", {key: value})
    assert found == key
    assert sentence in said


def test_every_fault_is_told_in_order_of_the_keys() -> None:
    options = {"use_tf32": "?", "fuse_conv_bias": "?", "prefer_nhwc": "1"}
    assert [key for key, _ in option_faults("cuda", options)] == ["fuse_conv_bias", "use_tf32"]


def test_the_cpu_has_no_options_and_libraries_have_their_own() -> None:
    assert option_faults("cpu", {"device_id": "0"}) == [
        ("device_id", "it is no option of CPUExecutionProvider")
    ]
    assert option_faults("my_npu", {"anything": "goes"}) == []


def test_a_profile_is_whole_and_ascends() -> None:
    assert option_faults("tensorrt", PROFILE) == []
    for missing in PROFILE:
        some = {key: value for key, value in PROFILE.items() if key != missing}
        [(_, sentence)] = option_faults("tensorrt", some)
        assert sentence == f"{missing} is missing: a profile has all three or none"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("trt_profile_opt_shapes", "x:9x3x8,y:4", "the shapes of 'x' do not ascend"),
        ("trt_profile_max_shapes", "x:8x3x7,y:8", "the shapes of 'x' do not ascend"),
        ("trt_profile_max_shapes", "x:8x3x8", "it has other inputs or ranks than"),
        ("trt_profile_opt_shapes", "x:4x3x8x1,y:4", "it has other inputs or ranks than"),
    ],
)
def test_a_profile_that_contradicts_itself_is_refused(key: str, value: str, sentence: str) -> None:
    [(_, said)] = option_faults("tensorrt", PROFILE | {key: value})
    assert sentence in said


def test_the_shapes_of_a_profile_are_read_by_name() -> None:
    assert profile_shapes("input:0:1x3, scalar:4") == {"input:0": (1, 3), "scalar": (4,)}


def names(config: EngineConfig) -> list[str]:
    return [one.name for one in wanted(config)]


def test_what_is_asked_for_is_the_cpu_unless_something_else_is() -> None:
    assert wanted(EngineConfig()) == (Wanted(CPU, {}),)
    assert names(EngineConfig(providers=(("cpu", {}),))) == [CPU]
    assert names(EngineConfig(device="cuda:1")) == [CUDA]
    assert names(EngineConfig(device="cuda:0", providers=(("tensorrt", {}),))) == [TENSORRT, CUDA]
    assert names(EngineConfig(providers=(("cuda", {}), ("cpu", {})))) == [CUDA]


def test_cuda_gets_the_device_the_limit_and_our_defaults() -> None:
    config = EngineConfig(device="cuda:2", memory_limit_bytes=1 << 30)
    [one] = wanted(config)
    assert one.options == {
        "device_id": "2",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "gpu_mem_limit": str(1 << 30),
    }


def test_the_configuration_wins_over_our_defaults() -> None:
    options = {"cudnn_conv_algo_search": "DEFAULT", "gpu_mem_limit": "7"}
    [one] = wanted(EngineConfig(device="cuda", providers=(("cuda", options),)))
    assert one.options["cudnn_conv_algo_search"] == "DEFAULT"
    assert one.options["gpu_mem_limit"] == "7"
    assert one.options["device_id"] == "0"


def test_no_limit_of_ours_is_no_limit_of_the_arenas() -> None:
    [one] = wanted(EngineConfig(device="cuda"))
    assert "gpu_mem_limit" not in one.options


def test_a_wrong_option_is_a_load_error_with_its_key() -> None:
    config = EngineConfig(providers=(("cuda", {"use_tf32": "maybe"}),))
    with pytest.raises(ModelLoadError, match="option use_tf32 of execution accelerator 'cuda': 'm"):
        wanted(config)


def test_a_library_stands_alone_with_the_options_that_it_is_given() -> None:
    libraries = {"my_npu": Path("npu.so")}
    config = EngineConfig(
        device="cuda:1", libraries=libraries, providers=(("my_npu", {"speed": "high"}),)
    )
    assert wanted(config) == (Wanted("my_npu", {"speed": "high"}, is_library=True),)


def test_an_unknown_accelerator_is_told_what_is_known() -> None:
    config = EngineConfig(libraries={"my_npu": Path("npu.so")}, providers=(("tpu", {}),))
    with pytest.raises(ModelLoadError, match="'tpu' is not one of cpu, cuda, tensorrt, my_npu"):
        wanted(config)


def test_placement_is_strict_unless_the_parameter_says_otherwise() -> None:
    assert is_strict(EngineConfig())
    assert is_strict(EngineConfig(parameters={"strict": "1"}))
    assert not is_strict(EngineConfig(parameters={"strict": "0"}))
    with pytest.raises(ModelLoadError, match="parameter strict: 'no' is neither 0 nor 1"):
        is_strict(EngineConfig(parameters={"strict": "no"}))
