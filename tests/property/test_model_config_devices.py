"""Any instance groups mean the same devices as text, as a specification and as an answer."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import event, given
from hypothesis import strategies as st

from engines.base import ModelMetadata, ModelSpec
from engines.errors import ModelLoadError
from gateway.config import ModelsConfig
from gateway.model_config import ModelConfigs
from gateway.pb import model_config_pb2 as pb

KINDS = pb.ModelInstanceGroup
PLATFORMS = {
    "onnxruntime": "onnxruntime_onnx",
    "tensorrt": "tensorrt_plan",
    "tensorrt_rtx": "tensorrt_rtx_plan",
    "pytorch": "pytorch_libtorch",
    "fake": "fake",
}
ON_A_GPU_ONLY = {"tensorrt", "tensorrt_rtx"}
numbers = st.integers(0, 15)
defaults = st.one_of(st.sampled_from(["cpu", "auto", "cuda"]), numbers.map("cuda:{}".format))


@st.composite
def groups(draw: st.DrawFn) -> pb.ModelInstanceGroup:
    """Draw a group that is no contradiction in itself."""
    kind = draw(st.sampled_from([KINDS.KIND_AUTO, KINDS.KIND_GPU, KINDS.KIND_CPU]))
    gpus = [] if kind == KINDS.KIND_CPU else draw(st.lists(numbers, max_size=3))
    return pb.ModelInstanceGroup(kind=kind, gpus=gpus, count=draw(st.integers(0, 3)))


def expected_devices(
    backend: str, default: str, has_accelerator: bool, found: list[pb.ModelInstanceGroup]
) -> list[str]:
    """Say for each instance where it is to run, by the documentation's rules."""
    default = "cuda:0" if default == "cuda" else default
    if (has_accelerator or backend in ON_A_GPU_ONLY) and not default.startswith("cuda"):
        default = "cuda:0"
    devices = []
    for group in found or [pb.ModelInstanceGroup()]:
        for _ in range(group.count or 1):
            if group.kind == KINDS.KIND_CPU:
                devices.append("cpu")
            elif group.gpus:
                devices += [f"cuda:{gpu}" for gpu in group.gpus]
            else:
                devices.append("cuda:0" if group.kind == KINDS.KIND_GPU else default)
    return devices


def read(config: pb.ModelConfig, default: str) -> ModelSpec:
    """Read a configuration from its text, under a default device."""
    configs = ModelConfigs(settings=ModelsConfig(device=default), usable_cores=4)
    with tempfile.TemporaryDirectory() as root:
        directory = Path(root) / "model"
        directory.mkdir()
        (directory / "config.pbtxt").write_text(text_format.MessageToString(config))
        return configs.read_spec(directory)


def devices_of(spec: ModelSpec) -> list[str]:
    return [spec.engine_of(number).device for number in range(spec.instances)]


@given(
    backend=st.sampled_from(sorted(PLATFORMS)),
    default=defaults,
    other_default=defaults,
    found=st.lists(groups(), max_size=4),
    has_accelerator=st.booleans(),
    chosen=st.sampled_from(["cpu", "cuda:0"]),
)
def test_groups_mean_their_devices_and_a_saved_description_means_them_under_any_settings(
    backend: str,
    default: str,
    other_default: str,
    found: list[pb.ModelInstanceGroup],
    has_accelerator: bool,
    chosen: str,
) -> None:
    has_accelerator = has_accelerator and backend == "onnxruntime"
    config = pb.ModelConfig(backend=backend, instance_group=found, max_batch_size=4)
    if has_accelerator:
        accelerators = config.optimization.execution_accelerators
        accelerators.gpu_execution_accelerator.add(name="cuda")
    devices = expected_devices(backend, default, has_accelerator, found)
    kinds = {device.partition(":")[0] for device in devices}
    can_be = len(kinds) == 1 and not (backend in ON_A_GPU_ONLY and "cpu" in kinds)
    event(" ".join(sorted(kinds)) if can_be else "refused")
    if not can_be:
        with pytest.raises(ModelLoadError, match="instance_group"):
            read(config, default)
        return
    spec = read(config, default)
    assert devices_of(spec) == devices
    assert (spec.engine.providers != ()) == (has_accelerator and "cpu" not in kinds)

    metadata = ModelMetadata(
        inputs=(),
        outputs=(),
        max_batch_size=4,
        platform=PLATFORMS[backend],
        engine="engine 1",
        device=chosen if devices[0] == "auto" else devices[0],
    )
    configs = ModelConfigs(settings=ModelsConfig(), usable_cores=4)
    described = pb.ModelConfig.FromString(configs.describe(spec, metadata, "1").wire)
    again = read(described, other_default)
    assert devices_of(again) == [chosen if device == "auto" else device for device in devices]
    assert again.engine.providers == spec.engine.providers
