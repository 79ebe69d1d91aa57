"""Where a model runs by its configuration and the settings: devices and accelerators."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from engines.errors import ModelLoadError
from gateway.config import ModelsConfig
from gateway.model_config import ModelConfigs
from gateway.model_config.read import ConfiguredSpec
from tests.support.model_folders import ReadModel, ignored_fields, read_model, write_model

ACCELERATED = "optimization { execution_accelerators { %s } }"
CUDA = ACCELERATED % 'gpu_execution_accelerator { name: "cuda" }'
GPU = "instance_group { kind: KIND_GPU }"


@pytest.fixture
def read(tmp_path: Path) -> ReadModel:
    return partial(read_model, tmp_path)


def devices_of(spec: ConfiguredSpec) -> list[str]:
    """Return the device that each instance is loaded on."""
    return [spec.engine_of(number).device for number in range(spec.instances)]


# Devices.


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("instance_group { gpus: [ 0, 1 ] }", ["cuda:0", "cuda:1"]),
        ("instance_group { gpus: [ 1, 0 ] count: 2 }", ["cuda:1", "cuda:0", "cuda:1", "cuda:0"]),
        (
            "instance_group [ { gpus: 2 count: 2 }, { kind: KIND_GPU } ]",
            ["cuda:2", "cuda:2", "cuda:0"],
        ),
        ("instance_group { gpus: [ 3, 3 ] }", ["cuda:3", "cuda:3"]),
    ],
)
def test_each_gpu_that_a_group_names_gets_its_count_of_instances_in_turn(
    read: ReadModel, text: str, devices: list[str]
) -> None:
    spec = read(text, settings=ModelsConfig(device="auto"))
    assert devices_of(spec) == devices
    assert spec.engine.device == devices[0]
    assert (spec.devices == ()) == (len(set(devices)) == 1)


@pytest.mark.parametrize(
    ("text", "default", "device", "asked_by"),
    [
        (None, "cpu", "cpu", ""),
        (None, "auto", "auto", ""),
        (None, "cuda", "cuda:0", ""),
        ("instance_group { count: 1 }", "cuda:3", "cuda:3", ""),
        ("instance_group { kind: KIND_CPU }", "cuda:3", "cpu", "instance_group[0].kind"),
        (GPU, "cuda:3", "cuda:0", "instance_group[0].kind"),
        ("instance_group { gpus: 1 }", "cpu", "cuda:1", "instance_group[0].gpus"),
        (CUDA, "cpu", "cuda:0", "ACCELERATOR"),
        (CUDA, "auto", "cuda:0", "ACCELERATOR"),
        (CUDA, "cuda:2", "cuda:2", "ACCELERATOR"),
        ('backend: "tensorrt"', "cpu", "cuda:0", "backend"),
        ('backend: "tensorrt_rtx"', "auto", "cuda:0", "backend"),
        ('backend: "tensorrt"', "cuda:1", "cuda:1", ""),
        ('backend: "pytorch"', "cpu", "cpu", ""),
    ],
)
def test_where_the_file_names_no_device_the_settings_do_unless_something_else_needs_a_gpu(
    read: ReadModel, text: str | None, default: str, device: str, asked_by: str
) -> None:
    spec = read(text, settings=ModelsConfig(device=default))
    accelerator = "optimization.execution_accelerators.gpu_execution_accelerator[0].name"
    assert spec.engine.device == device
    assert spec.asked_by == {device: asked_by.replace("ACCELERATOR", accelerator)}


def test_groups_on_one_kind_of_device_are_joined_with_those_of_the_settings(
    read: ReadModel,
) -> None:
    text = "instance_group [ { gpus: 1 }, { count: 2 } ]"
    spec = read(text, settings=ModelsConfig(device="cuda"))
    assert devices_of(spec) == ["cuda:1", "cuda:0", "cuda:0"]
    assert spec.asked_by == {"cuda:1": "instance_group[0].gpus", "cuda:0": ""}


@pytest.mark.parametrize("kind", ["KIND_CPU", "KIND_MODEL"])
def test_a_backend_without_a_cpu_is_refused_on_one(read: ReadModel, kind: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        read(f'backend: "tensorrt" instance_group {{ kind: {kind} }}')
    assert str(caught.value) == (
        "digits/config.pbtxt: instance_group[0].kind: the backend 'tensorrt' runs on a GPU only"
    )


def test_a_choice_of_the_settings_does_not_mix_with_a_gpu_of_the_file(read: ReadModel) -> None:
    with pytest.raises(ModelLoadError, match=r"kinds of device \(cuda:1, auto\) are not supported"):
        read("instance_group [ { gpus: 1 }, {} ]", settings=ModelsConfig(device="auto"))


def test_threads_are_shared_by_the_instances_of_all_gpus(read: ReadModel) -> None:
    assert read("instance_group { gpus: [ 0, 1 ] count: 2 }").engine.intra_op_threads == 1


# The settings of the engines.


def test_paths_of_the_settings_are_relative_to_the_configuration_file(tmp_path: Path) -> None:
    settings = ModelsConfig(libraries={"rtx": "libs/rtx.so"}, gpu_reserve_bytes=512)
    configs = ModelConfigs(settings=settings, usable_cores=1, base=tmp_path / "etc")
    engine = configs.read_spec(write_model(tmp_path, None)).engine
    assert engine.cache == tmp_path / "etc" / ".sluice" / "engines"
    assert engine.libraries == {"rtx": tmp_path / "etc" / "libs" / "rtx.so"}
    assert engine.memory_reserve_bytes == 512


def test_without_a_cache_nothing_is_kept(read: ReadModel) -> None:
    assert read(None, settings=ModelsConfig(cache="")).engine.cache is None


# Accelerators.

TENSORRT = (
    ACCELERATED
    % """
    gpu_execution_accelerator { name: "cuda" }
    gpu_execution_accelerator {
      name: "tensorrt"
      parameters { key: "precision_mode" value: "FP16" }
      parameters { key: "max_workspace_size_bytes" value: "1024" }
      parameters { key: "trt_engine_cache_enable" value: "true" }
    }"""
)


def test_accelerators_become_providers_with_tensorrt_first_and_its_options_translated(
    read: ReadModel,
) -> None:
    engine = read(TENSORRT).engine
    options = {
        "trt_fp16_enable": "1",
        "trt_max_workspace_size": "1024",
        "trt_engine_cache_enable": "true",
    }
    assert engine.providers == (("tensorrt", options), ("cuda", {}))
    assert engine.device == "cuda:0", "an accelerator is a request for a GPU"


def test_gpu_accelerators_of_a_cpu_instance_are_not_used_and_named(
    read: ReadModel, caplog: pytest.LogCaptureFixture
) -> None:
    engine = read(TENSORRT + "instance_group { kind: KIND_CPU }").engine
    assert (engine.device, engine.providers) == ("cpu", ())
    assert ignored_fields(caplog) == [
        "optimization.execution_accelerators.gpu_execution_accelerator"
    ]


def test_a_library_of_the_settings_is_an_accelerator_whose_options_pass_as_they_are(
    read: ReadModel,
) -> None:
    text = ACCELERATED % (
        """gpu_execution_accelerator { name: "cuda" }
           gpu_execution_accelerator { name: "rtx" parameters { key: "nv_x" value: "y" } }"""
    )
    engine = read(text, settings=ModelsConfig(libraries={"rtx": "rtx.so"})).engine
    assert engine.providers == (("rtx", {"nv_x": "y"}), ("cuda", {}))


def option(accelerator: str, key: str, value: str) -> str:
    return ACCELERATED % (
        f'gpu_execution_accelerator {{ name: "cpu_bound" }} gpu_execution_accelerator {{ '
        f'name: "{accelerator}" parameters {{ key: "{key}" value: "{value}" }} }}'
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            ACCELERATED % 'gpu_execution_accelerator { name: "openvino" }',
            r"gpu_execution_accelerator\[0\]\.name: 'openvino' is not one of cpu_bound, tensorrt",
        ),
        (
            ACCELERATED % ('gpu_execution_accelerator { name: "cuda" }' * 2),
            r"gpu_execution_accelerator\[1\]\.name: 'cuda' is given twice",
        ),
        (
            option("tensorrt", "precision_mode", "FP4"),
            r"\[1\]\.parameters\['precision_mode'\]: 'FP4' is not one of FP32, FP16, INT8",
        ),
        (
            option("tensorrt", "max_workspace_size_bytes", "lots"),
            r"\[1\]\.parameters\['max_workspace_size_bytes'\]: 'lots' is no number",
        ),
        (
            option("cuda", "cudnn_conv_algo_search", "BEST"),
            r"\[1\]\.parameters\['cudnn_conv_algo_search'\]: 'BEST' is not one of HEURISTIC",
        ),
        (
            option("cuda", "gpu_memory_limit", "1"),
            r"\[1\]\.parameters\['gpu_memory_limit'\]: it is no option of CUDAExecutionProvider",
        ),
        (
            option("cuda", "device_id", "1"),
            r"\[1\]\.parameters\['device_id'\]: it is set by the model's device",
        ),
        (
            'backend: "pytorch"' + CUDA,
            r"gpu_execution_accelerator\[0\]\.name: the backend 'pytorch' has no accelerators",
        ),
    ],
)
def test_an_accelerator_or_an_option_that_cannot_be_is_refused_by_its_field(
    read: ReadModel, text: str, sentence: str
) -> None:
    settings = ModelsConfig(libraries={"cpu_bound": "libcpu.so"})
    with pytest.raises(ModelLoadError, match=sentence):
        read(text, settings=settings)


def test_an_option_is_checked_though_the_model_runs_on_the_cpu(read: ReadModel) -> None:
    text = ACCELERATED % (
        """gpu_execution_accelerator {
             name: "cuda" parameters { key: "gpu_mem_limit" value: "-1" } }"""
    )
    with pytest.raises(ModelLoadError, match=r"parameters\['gpu_mem_limit'\]"):
        read(text + "instance_group { kind: KIND_CPU }")
