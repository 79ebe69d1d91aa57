"""Reading a model folder: what of a config.pbtxt is honoured, and as what."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import pytest

from engines.base import BatchPolicy, TensorSpec, VersionPolicy
from engines.errors import ModelLoadError
from engines.tensors import DATATYPES
from gateway.config import ModelsConfig
from gateway.model_config import ModelConfigs
from gateway.model_config.read import ConfiguredSpec
from gateway.model_config.tensors import DATA_TYPES
from tests.support.model_folders import ReadModel, ignored_fields, read_model

SIGNATURE = """
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_INT64 dims: [ -1, 2 ] } ]
"""


@pytest.fixture
def read(tmp_path: Path) -> ReadModel:
    return partial(read_model, tmp_path)


def policy_of(spec: ConfiguredSpec) -> BatchPolicy:
    assert spec.batching is not None
    return spec.batching


# Without a configuration.


@pytest.mark.parametrize("text", [None, "", "# only a comment\n"])
def test_a_model_without_a_configuration_leaves_everything_to_the_engine(
    read: ReadModel, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    spec = read(text)
    assert (spec.name, spec.backend, spec.filename) == ("digits", "onnxruntime", "model.onnx")
    assert spec.engine.max_batch_size is None
    assert spec.engine.default_max_batch_size == 64
    assert (spec.engine.device, spec.engine.providers) == ("cpu", ())
    assert (spec.engine.inputs, spec.engine.outputs) == ((), ())
    assert (spec.instances, spec.batching, spec.warmup_batch_sizes) == (1, None, ())
    assert spec.versions == VersionPolicy()
    assert spec.source == b""
    assert caplog.records == []


def test_the_settings_become_the_defaults(read: ReadModel) -> None:
    settings = ModelsConfig(default_max_batch_size=128, max_queue_rows=100)
    spec = read(None, settings=settings)
    assert spec.engine.default_max_batch_size == 128
    assert spec.max_queue_rows == 128, "a batch of the largest size fits into the queue"


# Backend and file.


@pytest.mark.parametrize(
    ("text", "file", "expected"),
    [
        ('backend: "onnxruntime"', "other", ("onnxruntime", "model.onnx")),
        ('platform: "onnxruntime_onnx"', "other", ("onnxruntime", "model.onnx")),
        ('backend: "fake" platform: "fake"', "other", ("fake", "model.json")),
        (None, "model.json", ("fake", "model.json")),
        ('default_model_filename: "net.onnx"', "net.onnx", ("onnxruntime", "net.onnx")),
        ('default_model_filename: "script.json"', "script.json", ("fake", "script.json")),
        ('backend: "onnxruntime" default_model_filename: "net"', "net", ("onnxruntime", "net")),
        (None, "model.plan", ("tensorrt", "model.plan")),
        ('backend: "tensorrt_rtx"', "model.plan", ("tensorrt_rtx", "model.plan")),
        ('platform: "tensorrt_rtx_plan"', "model.plan", ("tensorrt_rtx", "model.plan")),
        (
            'backend: "tensorrt" default_model_filename: "model.onnx"',
            "model.onnx",
            ("tensorrt", "model.onnx"),
        ),
        (None, "model.pt2", ("pytorch", "model.pt2")),
        (None, "model.pt", ("pytorch", "model.pt")),
        ('platform: "pytorch_libtorch"', "model.pt", ("pytorch", "model.pt")),
        ('backend: "pytorch"', "other", ("pytorch", "model.pt2")),
        ('default_model_filename: "net.pt"', "net.pt", ("pytorch", "net.pt")),
    ],
)
def test_the_backend_comes_from_the_fields_or_else_from_the_file(
    read: ReadModel, text: str | None, file: str, expected: tuple[str, str]
) -> None:
    spec = read(text, file=file)
    assert (spec.backend, spec.filename) == expected


def test_of_two_torch_files_the_exported_program_is_taken(read: ReadModel, tmp_path: Path) -> None:
    (tmp_path / "digits" / "3").mkdir(parents=True)
    (tmp_path / "digits" / "3" / "model.pt2").touch()
    assert read(None, file="model.pt").filename == "model.pt2"


def test_a_folder_without_a_known_model_file_is_refused(read: ReadModel) -> None:
    with pytest.raises(ModelLoadError, match=r"no version folder of digits holds a model\.onnx or"):
        read(None, file="model.pb")


def test_a_folder_that_went_away_is_a_load_error(tmp_path: Path) -> None:
    configs = ModelConfigs(settings=ModelsConfig(), usable_cores=1)
    with pytest.raises(ModelLoadError, match="gone cannot be read: No such file"):
        configs.read_spec(tmp_path / "gone")


# The signature.


def test_declared_tensors_keep_their_order_and_leave_the_batch_axis_out(read: ReadModel) -> None:
    engine = read(SIGNATURE + "max_batch_size: 8").engine
    assert engine.inputs == (TensorSpec(name="x", datatype="FP32", shape=(4,)),)
    assert engine.outputs == (TensorSpec(name="y", datatype="INT64", shape=(-1, 2)),)
    assert engine.max_batch_size == 8


def test_without_a_maximum_declared_dims_are_the_whole_shape(read: ReadModel) -> None:
    engine = read(SIGNATURE).engine
    assert engine.max_batch_size == 0
    assert engine.inputs[0].shape == (4,)


def test_a_declared_output_alone_means_no_batch_axis_too(read: ReadModel) -> None:
    assert read('output { name: "y" data_type: TYPE_BOOL dims: 1 }').engine.max_batch_size == 0


def test_one_value_per_row_is_declared_by_no_dims(read: ReadModel) -> None:
    spec = read('max_batch_size: 8 output { name: "label" data_type: TYPE_INT64 }')
    assert spec.engine.outputs == (TensorSpec(name="label", datatype="INT64", shape=()),)


def test_every_datatype_of_the_protocol_has_its_name_in_tritons_enum(read: ReadModel) -> None:
    assert set(DATA_TYPES) == set(DATATYPES)
    entries = (f'{{ name: "{d}" data_type: {t} dims: 1 }}' for d, t in DATA_TYPES.items())
    spec = read(f"input [ {', '.join(entries)} ]")
    assert [tensor.datatype for tensor in spec.engine.inputs] == list(DATA_TYPES)
    assert DATA_TYPES["BYTES"] == "TYPE_STRING"


# Batching.


def test_dynamic_batching_is_on_by_its_presence(read: ReadModel) -> None:
    assert policy_of(read("max_batch_size: 8 dynamic_batching {}")) == BatchPolicy(max_batch_size=8)


def test_a_maximum_alone_does_not_join_requests_and_says_so(
    read: ReadModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert policy_of(read("max_batch_size: 8")) == BatchPolicy(max_batch_size=8, dynamic=False)
    (record,) = caplog.records
    assert record.getMessage() == "dynamic batching is off"
    assert record.__dict__["model"] == "digits"


def test_the_batching_fields_become_the_policy(read: ReadModel) -> None:
    spec = read("""
        max_batch_size: 32
        dynamic_batching {
          preferred_batch_size: [ 16, 32 ]
          max_queue_delay_microseconds: 500
          priority_levels: 3
          default_priority_level: 2
          default_queue_policy {
            timeout_action: REJECT
            default_timeout_microseconds: 20000
            allow_timeout_override: true
            max_queue_size: 100
          }
        }""")
    assert policy_of(spec) == BatchPolicy(
        max_batch_size=32,
        preferred_batch_sizes=(16, 32),
        max_queue_delay_us=500,
        max_queue_requests=100,
        priority_levels=3,
        default_priority_level=2,
        default_timeout_us=20_000,
        allow_timeout_override=True,
    )


@pytest.mark.parametrize(
    ("policy", "is_allowed"),
    [
        ("default_timeout_microseconds: 10", False),
        ("default_timeout_microseconds: 10 allow_timeout_override: true", True),
        ("max_queue_size: 10", True),
    ],
)
def test_only_a_default_timeout_can_keep_a_request_from_bringing_its_own(
    read: ReadModel, policy: str, is_allowed: bool
) -> None:
    text = f"max_batch_size: 8 dynamic_batching {{ default_queue_policy {{ {policy} }} }}"
    assert policy_of(read(text)).allow_timeout_override is is_allowed


def test_dynamic_batching_without_a_maximum_takes_the_default_one(read: ReadModel) -> None:
    settings = ModelsConfig(default_max_batch_size=16)
    spec = read("dynamic_batching { max_queue_delay_microseconds: 5 }", settings=settings)
    assert policy_of(spec) == BatchPolicy(max_batch_size=16, max_queue_delay_us=5)
    assert spec.engine.max_batch_size is None


def test_without_a_batch_axis_a_queue_policy_still_bounds_the_queue(
    read: ReadModel, caplog: pytest.LogCaptureFixture
) -> None:
    text = """dynamic_batching {
        max_queue_delay_microseconds: 5 default_queue_policy { max_queue_size: 3 } }"""
    spec = read(SIGNATURE + text)
    assert policy_of(spec) == BatchPolicy(max_batch_size=1, dynamic=False, max_queue_requests=3)
    assert ignored_fields(caplog) == ["dynamic_batching.max_queue_delay_microseconds"]


def test_the_queue_holds_at_least_one_request_of_the_largest_size(read: ReadModel) -> None:
    settings = ModelsConfig(max_queue_rows=10)
    assert policy_of(read("max_batch_size: 16", settings=settings)).max_queue_rows == 16


def test_warm_up_sizes_are_those_of_the_samples(read: ReadModel) -> None:
    sample = " model_warmup { name: 'w' batch_size: %d }"
    assert read("max_batch_size: 8" + sample % 4 + sample % 1).warmup_batch_sizes == (4, 1)


# Versions.


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", VersionPolicy()),
        ("version_policy {}", VersionPolicy()),
        ("version_policy { all {} }", VersionPolicy()),
        ("version_policy { latest {} }", VersionPolicy(latest=1)),
        ("version_policy { latest { num_versions: 2 } }", VersionPolicy(latest=2)),
        ("version_policy { specific { versions: [ 2, 1 ] } }", VersionPolicy(specific=("2", "1"))),
    ],
)
def test_the_version_policy_is_read(read: ReadModel, text: str, policy: VersionPolicy) -> None:
    assert read(text).versions == policy


def test_named_versions_that_are_not_on_disk_are_warned_of(
    read: ReadModel, caplog: pytest.LogCaptureFixture
) -> None:
    read("version_policy { specific { versions: [ 10, 9, 2 ] } }")
    (record,) = caplog.records
    assert record.getMessage() == "config.pbtxt names versions that are not on disk"
    assert record.__dict__["versions"] == ["9", "10"]


# Instances, devices, threads.


@pytest.mark.parametrize(
    ("text", "instances", "device"),
    [
        ("instance_group { count: 3 }", 3, "cpu"),
        ("instance_group { count: 0 }", 1, "cpu"),
        ("instance_group [ { count: 2 kind: KIND_CPU }, { kind: KIND_MODEL } ]", 3, "cpu"),
        ("instance_group { kind: KIND_GPU }", 1, "cuda:0"),
        ("instance_group [ { gpus: 1 }, { kind: KIND_GPU gpus: 1 count: 2 } ]", 3, "cuda:1"),
    ],
)
def test_instances_and_device_come_from_the_groups(
    read: ReadModel, text: str, instances: int, device: str
) -> None:
    spec = read(text)
    assert (spec.instances, spec.engine.device) == (instances, device)


def threads_text(intra: int, inter: int) -> str:
    entry = 'parameters { key: "%s_op_thread_count" value { string_value: "%d" } }'
    return entry % ("intra", intra) + entry % ("inter", inter)


@pytest.mark.parametrize(
    ("text", "setting", "expected"),
    [
        ("", 0, (4, 1)),
        ("instance_group { count: 2 }", 0, (2, 1)),
        ("instance_group { count: 9 }", 0, (1, 1)),
        ("", 3, (3, 1)),
        (threads_text(5, 2), 3, (5, 2)),
        (threads_text(0, 0), 3, (3, 1)),
    ],
)
def test_threads_are_the_files_or_the_settings_or_a_share_of_the_cores(
    read: ReadModel, text: str, setting: int, expected: tuple[int, int]
) -> None:
    engine = read(text, settings=ModelsConfig(intra_op_threads=setting), usable_cores=4).engine
    assert (engine.intra_op_threads, engine.inter_op_threads) == expected
