"""What of a config.pbtxt is refused, by line or field, and what is named in a warning."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engines.errors import ModelLoadError
from gateway.model_config.fields import HONOURED, REFUSED, map_values
from gateway.pb import model_config_pb2 as pb
from tests.support.model_folders import ReadModel, ignored_fields, read_model

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "model-repository.md"

SIGNATURE = """
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_INT64 dims: [ -1, 2 ] } ]
"""
ACCELERATED = "optimization { execution_accelerators { %s } }"


@pytest.fixture
def read(tmp_path: Path) -> ReadModel:
    return partial(read_model, tmp_path)


# Refusals: the sentence names the file and the field.


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("max_batch_size 8", 'config.pbtxt, line 1, column 16: .*Expected ":"'),
        ("# two\nmax_batch: 8", 'line 2, column 1: .* has no field named "max_batch"'),
        ('max_batch_size: "8"', "line 1, column 17: .*Couldn't parse integer"),
        ("max_batch_size: 3000000000", "line 1, column 17: .*Value out of range"),
        ("input { data_type: TYPE_TEXT }", "no value named TYPE_TEXT"),
        ('name: "digits"\nname: "digits"', 'line 2, column 7: .*multiple "name"'),
        ("version_policy { all {} latest {} }", 'column 25: .*another member of oneof "policy'),
        (b'name: "\xff"', "digits/config.pbtxt is not UTF-8 text at byte 7"),
    ],
)
def test_a_file_that_does_not_parse_is_refused_with_its_line(
    read: ReadModel, text: str | bytes, sentence: str
) -> None:
    with pytest.raises(ModelLoadError, match=sentence):
        read(text)


def test_a_configuration_that_is_a_folder_is_refused(read: ReadModel, tmp_path: Path) -> None:
    (tmp_path / "digits" / "config.pbtxt").mkdir(parents=True)
    with pytest.raises(ModelLoadError, match="digits cannot be read: Is a directory"):
        read(None)


PREFERRED = "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 4, %d ] }"
WARMUP = """
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: 4 }
model_warmup { batch_size: %d inputs { key: "%s" value { %s } } }
"""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('name: "letters"', "name: 'letters' is not the folder's name, 'digits'"),
        ('backend: "openvino"', "backend: 'openvino' is not one of fake, onnxruntime, pytorch, t"),
        ('platform: "caffe2"', "platform: 'caffe2' is not one of fake, onnxruntime_onnx, pytorch"),
        ('backend: "fake" platform: "onnxruntime_onnx"', "platform: 'onnxruntime_onnx' is not 'f"),
        ('default_model_filename: "net.pb"', "default_model_filename: 'net.pb' speaks for no"),
        ('default_model_filename: "../net.onnx"', "'../net.onnx' leaves the version's folder"),
        ('default_model_filename: "/net.onnx"', "'/net.onnx' leaves the version's folder"),
        ("max_batch_size: -1", "max_batch_size: -1 is negative"),
        (PREFERRED % 9, r"preferred_batch_size\[1\]: 9 is more than max_batch_size 8"),
        (PREFERRED % 0, r"preferred_batch_size\[1\]: 0 is less than 1"),
        (
            SIGNATURE + "dynamic_batching { preferred_batch_size: 1 }",
            "1 is more than max_batch_size 0",
        ),
        (
            "dynamic_batching { preferred_batch_size: 65 }",
            "65 is more than max_batch_size 64",
        ),
        (
            "max_batch_size: 8 dynamic_batching { priority_levels: 2 }",
            "default_priority_level: 0 is not between 1 and priority_levels 2",
        ),
        (
            "max_batch_size: 8 dynamic_batching { priority_levels: 2 default_priority_level: 3 }",
            "default_priority_level: 3 is not between 1 and priority_levels 2",
        ),
        (
            "max_batch_size: 8 dynamic_batching { default_queue_policy { timeout_action: 7 } }",
            "timeout_action: 7 is neither REJECT nor DELAY",
        ),
        ("input { data_type: TYPE_FP32 dims: 4 }", r"input\[0\]\.name: is missing"),
        ('output { name: "y" dims: 4 }', r"output\[0\]\.data_type: is missing"),
        ('input { name: "x" data_type: 77 dims: 4 }', r"input\[0\]\.data_type: 77 is no data type"),
        ('input { name: "x" data_type: TYPE_FP32 }', r"input\[0\]\.dims: the shape of 'x' is miss"),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: [ 4, 0 ] }',
            r"input\[0\]\.dims\[1\]: 0 is neither a size \(>= 1\) nor -1",
        ),
        (
            'output { name: "y" data_type: TYPE_FP32 dims: -2 }',
            r"output\[0\]\.dims\[0\]: -2 is neither",
        ),
        (SIGNATURE + SIGNATURE, r"input\[1\]\.name: 'x' is declared twice"),
        ("instance_group { count: -1 }", r"instance_group\[0\]\.count: -1 is negative"),
        ("instance_group { kind: 9 }", r"instance_group\[0\]\.kind: 9 is no kind"),
        ("instance_group { gpus: -1 }", r"instance_group\[0\]\.gpus: -1 is negative"),
        (
            "instance_group { gpus: [ 0, 1 ] count: 600 }",
            r"instance_group\[0\]\.count: 1200 instances are more than 1024",
        ),
        (
            "instance_group [ { count: 1000 }, { count: 25 } ]",
            "instance_group: 1025 instances are more than 1024",
        ),
        ("instance_group { kind: KIND_CPU gpus: 0 }", "a group of KIND_CPU cannot name GPUs"),
        ("instance_group { kind: KIND_MODEL gpus: 0 }", "a group of KIND_MODEL cannot name GPUs"),
        (
            "instance_group [ { kind: KIND_GPU gpus: 1 }, { kind: KIND_CPU } ]",
            r"instance_group: instances on different kinds of device \(cuda:1, cpu\) are not supp",
        ),
        ("version_policy { specific {} }", "version_policy.specific.versions: names no version"),
        ("version_policy { specific { versions: [ 2, 0 ] } }", "versions: 0 is no version"),
        (
            'parameters { key: "intra_op_thread_count" value { string_value: "many" } }',
            r"parameters\['intra_op_thread_count'\]: 'many' is no number of threads",
        ),
        (
            'parameters { key: "inter_op_thread_count" value { string_value: "-1" } }',
            r"parameters\['inter_op_thread_count'\]: '-1' is no number of threads",
        ),
        (
            'parameters { key: "intra_op_thread_count" value { string_value: "4096" } }',
            "'4096' is no number of threads from 0 to 1024",
        ),
        (WARMUP % (9, "x", "data_type: TYPE_FP32"), r"model_warmup\[0\]\.batch_size: 9 is more"),
        (WARMUP % (0, "x", "data_type: TYPE_FP32"), r"model_warmup\[0\]\.batch_size: is missing"),
        (WARMUP % (1, "z", "data_type: TYPE_FP32"), r"inputs\['z'\]: the model declares no such"),
        (WARMUP % (1, "x", "data_type: TYPE_INT8"), "data_type: INT8 is given, .* declared FP32"),
        (WARMUP % (1, "x", "dims: 4"), r"inputs\['x'\]\.data_type: is missing"),
        (
            WARMUP % (1, "x", "data_type: TYPE_FP32 dims: [ 4, -1 ]"),
            r"inputs\['x'\]\.dims\[1\]: -1 is less than 1",
        ),
        (SIGNATURE + "model_warmup { batch_size: 2 }", "2 is more than the model takes, 1"),
        ("model_warmup { batch_size: 65 }", "65 is more than the model takes, 64"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_field(
    read: ReadModel, text: str, sentence: str
) -> None:
    with pytest.raises(ModelLoadError, match=sentence) as caught:
        read(text)
    assert str(caught.value).startswith("digits/config.pbtxt: ")


EXAMPLES = {
    "sequence_batching": "sequence_batching {}",
    "ensemble_scheduling": 'platform: "ensemble" ensemble_scheduling { step {} }',
    "batch_input": "batch_input { kind: BATCH_ELEMENT_COUNT }",
    "batch_output": "batch_output {}",
    "input.allow_ragged_batch": 'input { name: "x" allow_ragged_batch: true }',
    "input.reshape": 'input { name: "x" dims: 1 reshape {} }',
    "output.reshape": 'output { name: "x" dims: 1 reshape { shape: [ 1, 1 ] } }',
    "input.is_shape_tensor": 'input { name: "x" is_shape_tensor: true }',
    "output.is_shape_tensor": 'output { name: "x" is_shape_tensor: true }',
    "input.is_non_linear_format_io": "input { is_non_linear_format_io: true }",
    "output.is_non_linear_format_io": "output { is_non_linear_format_io: true }",
    "model_transaction_policy.decoupled": "model_transaction_policy { decoupled: true }",
    "model_repository_agents.agents": 'model_repository_agents { agents { name: "a" } }',
}


def test_every_refused_field_has_an_example() -> None:
    assert set(EXAMPLES) == set(REFUSED)


@pytest.mark.parametrize("path", EXAMPLES)
def test_what_would_change_answers_is_refused_with_its_reason(read: ReadModel, path: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        read(EXAMPLES[path])
    assert REFUSED[path] in str(caught.value)
    assert path in str(caught.value).replace("[0]", "")


# Warnings.


def test_parameters_reach_the_engine_and_those_it_has_no_use_for_are_named(
    read: ReadModel, caplog: pytest.LogCaptureFixture
) -> None:
    spec = read("""
        parameters [
          { key: "session.set_denormal_as_zero" value { string_value: "1" } },
          { key: "intra_op_thread_count" value { string_value: "2" } },
          { key: "execution_mode" value { string_value: "1" } } ]""")
    assert spec.engine.parameters == {
        "session.set_denormal_as_zero": "1",
        "intra_op_thread_count": "2",
        "execution_mode": "1",
    }
    assert ignored_fields(caplog) == ["parameters.execution_mode"]


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("response_cache { enable: true }", ["response_cache.enable"]),
        (
            "optimization { cuda { busy_wait_events: true } }",
            ["optimization.cuda.busy_wait_events"],
        ),
        ("optimization { input_pinned_memory {} }", ["optimization.input_pinned_memory"]),
        (
            ACCELERATED % 'cpu_execution_accelerator { name: "openvino" }',
            ["optimization.execution_accelerators.cpu_execution_accelerator.name"],
        ),
        ('metric_tags { key: "team" value: "a" }', ["metric_tags"]),
        (
            """input { name: "x" data_type: TYPE_FP32 dims: 1 optional: true format: FORMAT_NHWC }
               input { name: "z" data_type: TYPE_FP32 dims: 1 optional: true }""",
            ["input.format", "input.optional"],
        ),
        (
            """max_batch_size: 1
               dynamic_batching {
                 preserve_ordering: true
                 default_priority_level: 1
                 default_queue_policy { timeout_action: DELAY }
                 priority_queue_policy { key: 1 value { max_queue_size: 3 } } }""",
            [
                "dynamic_batching.default_priority_level",
                "dynamic_batching.default_queue_policy.timeout_action",
                "dynamic_batching.preserve_ordering",
                "dynamic_batching.priority_queue_policy.max_queue_size",
            ],
        ),
        (
            "instance_group { rate_limiter { priority: 2 } passive: true }",
            ["instance_group.passive", "instance_group.rate_limiter.priority"],
        ),
        (
            WARMUP % (1, "x", 'data_type: TYPE_FP32 dims: 4 input_data_file: "raw"'),
            ["model_warmup.inputs.input_data_file"],
        ),
        (
            WARMUP % (1, "x", "data_type: TYPE_FP32 dims: 5 zero_data: true"),
            ["model_warmup.inputs.dims"],
        ),
        ("model_warmup { batch_size: 1 count: 5 }", ["model_warmup.count"]),
        (
            """model_warmup {
                 batch_size: 1 inputs { key: "x" value { data_type: TYPE_INT8 dims: 4 } } }""",
            ["model_warmup.inputs.dims"],
        ),
    ],
)
def test_what_is_set_and_not_honoured_is_named_in_one_warning(
    read: ReadModel, text: str, fields: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    read(text)
    assert ignored_fields(caplog) == fields
    assert all(record.__dict__["model"] == "digits" for record in caplog.records)


@pytest.mark.parametrize(
    "text",
    [
        WARMUP % (1, "x", "data_type: TYPE_FP32 dims: 4 random_data: true"),
        "model_warmup { batch_size: 1 count: 1 }",
        "model_transaction_policy { decoupled: false }",
        "optimization { execution_accelerators {} }",
        "max_batch_size: 1 dynamic_batching { default_queue_policy { timeout_action: REJECT } }",
        "instance_group { kind: KIND_CPU name: 'all of them' }",
    ],
)
def test_what_is_honoured_or_asks_for_nothing_is_not_warned_of(
    read: ReadModel, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    read(text)
    assert caplog.records == []


# The tables.


@pytest.mark.parametrize("path", sorted(HONOURED | set(REFUSED)))
def test_every_path_of_the_tables_exists_in_the_proto(path: str) -> None:
    *parents, last = path.split(".")
    message: Any = pb.ModelConfig.DESCRIPTOR  # Any: each implementation has its own descriptors
    for name in parents:
        field = message.fields_by_name[name]
        message = (map_values(field) or field).message_type
    assert last in message.fields_by_name


def test_the_documentation_names_every_path_of_the_tables() -> None:
    text = DOCUMENTATION.read_text()
    assert [path for path in sorted(HONOURED | set(REFUSED)) if f"`{path}`" not in text] == []


def test_no_field_is_both_honoured_and_refused() -> None:
    assert not HONOURED & set(REFUSED)
