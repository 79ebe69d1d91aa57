"""What clients are told of a served version: the file's configuration, completed by the engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from onnx import helper

from engines import fake, ort
from engines.base import EngineLoader, ModelMetadata, ModelSpec, TensorSpec
from engines.repository import Repository
from gateway.config import ModelsConfig
from gateway.model_config import ModelConfigDocument, ModelConfigs
from gateway.pb import model_config_pb2 as pb
from tests.support.models import BATCH_AXIS, write_fake, write_graph, write_identity

CONFIGS = ModelConfigs(settings=ModelsConfig(cache=""), usable_cores=1)
LOADERS: dict[str, EngineLoader] = {"onnxruntime": ort.load, "fake": fake.load}


def write_classifier(path: Path, item_shape: Sequence[int | str] = (4,)) -> None:
    """Write a model of two outputs, one of them with a single value per row."""
    write_graph(
        path,
        nodes=[
            helper.make_node("Identity", ["x"], ["scores"]),
            helper.make_node("ArgMax", ["x"], ["label"], axis=1, keepdims=0),
        ],
        inputs={"x": ("FP32", [BATCH_AXIS, *item_shape])},
        outputs={"scores": ("FP32", [BATCH_AXIS, *item_shape]), "label": ("INT64", [BATCH_AXIS])},
    )


def load(directory: Path, text: str | None = None) -> tuple[ModelSpec, ModelMetadata]:
    """Read and load version 1 of a model folder, in the engine that its configuration chooses."""
    if text is not None:
        (directory / "config.pbtxt").write_text(text)
    spec = CONFIGS.read_spec(directory)
    engine = LOADERS[spec.backend](directory / "1" / spec.filename, spec.engine)
    engine.close()
    return spec, engine.metadata


def describe(directory: Path, text: str | None = None) -> ModelConfigDocument:
    spec, metadata = load(directory, text)
    return CONFIGS.describe(spec, metadata, "1")


def message(document: ModelConfigDocument) -> pb.ModelConfig:
    return pb.ModelConfig.FromString(document.wire)


def as_json(document: ModelConfigDocument) -> dict[str, Any]:  # Any: free JSON
    found: dict[str, Any] = json.loads(document.json)
    return found


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    write_classifier(tmp_path / "digits" / "1" / "model.onnx")
    return tmp_path / "digits"


def test_a_model_without_a_configuration_is_described_in_full(digits: Path) -> None:
    spec, metadata = load(digits)
    document = CONFIGS.describe(spec, metadata, "1")
    assert (document.name, document.version) == ("digits", "1")
    expected = text_format.Parse(
        """
        name: "digits" platform: "onnxruntime_onnx" backend: "onnxruntime"
        default_model_filename: "model.onnx"
        max_batch_size: 64
        version_policy { all {} }
        input { name: "x" data_type: TYPE_FP32 dims: 4 }
        output { name: "scores" data_type: TYPE_FP32 dims: 4 }
        output { name: "label" data_type: TYPE_INT64 }
        instance_group { name: "digits" kind: KIND_CPU count: 1 }
        dynamic_batching {}
        parameters { key: "sluice.device" value { string_value: "cpu" } }
        parameters { key: "sluice.providers" value { string_value: "CPUExecutionProvider" } }
        """,
        pb.ModelConfig(),
    )
    expected.parameters["sluice.engine"].string_value = metadata.engine
    assert message(document) == expected


def test_the_json_form_has_every_field_that_clients_look_for(digits: Path) -> None:
    document = as_json(describe(digits, "model_transaction_policy {} response_cache {}"))
    assert document["max_batch_size"] == 64
    assert document["input"] == [
        {
            "name": "x",
            "data_type": "TYPE_FP32",
            "format": "FORMAT_NONE",
            "dims": [4],
            "is_shape_tensor": False,
            "allow_ragged_batch": False,
            "optional": False,
            "is_non_linear_format_io": False,
        }
    ]
    assert document["dynamic_batching"]["max_queue_delay_microseconds"] == 0
    assert document["model_transaction_policy"] == {"decoupled": False}
    assert document["response_cache"] == {"enable": False}
    assert document["version_policy"] == {"all": {}}
    assert not {"sequence_batching", "ensemble_scheduling"} & set(document)
    assert document["batch_input"] == []


def test_the_json_form_says_what_the_bytes_say(digits: Path) -> None:
    document = describe(
        digits,
        """
        max_batch_size: 8
        dynamic_batching { max_queue_delay_microseconds: 9007199254740993 preferred_batch_size: 4 }
        version_policy { specific { versions: [ 1 ] } }
        parameters { key: "a" value { string_value: "b" } }
        metric_tags { key: "team" value: "\\303\\244" }
        input { name: "x" data_type: TYPE_FP32 dims: 4 format: 9 }
        model_metrics { metric_control { histogram_options { buckets: [ 0.1, inf, -inf ] } } }
        """,
    )
    parsed = json_format.Parse(document.json, pb.ModelConfig())
    assert parsed == message(document)
    assert as_json(document)["version_policy"] == {"specific": {"versions": [1]}}


def test_without_dynamic_batching_the_document_has_none(digits: Path) -> None:
    document = describe(digits, "max_batch_size: 8")
    assert not message(document).HasField("dynamic_batching")
    assert "dynamic_batching" not in as_json(document)
    assert as_json(document)["max_batch_size"] == 8


def test_without_a_batch_axis_dims_are_whole_shapes(tmp_path: Path) -> None:
    path = tmp_path / "fixed" / "1" / "model.onnx"
    write_identity(path, "INT8", [2, "n"], batch_axis=False)
    document = as_json(describe(tmp_path / "fixed"))
    assert document["max_batch_size"] == 0
    assert [tensor["dims"] for tensor in document["input"]] == [[2, -1]]
    assert "dynamic_batching" not in document


def test_declared_tensors_keep_what_the_file_says_of_them_and_get_the_models_shape(
    tmp_path: Path,
) -> None:
    write_identity(tmp_path / "wide" / "1" / "model.onnx", "FP32", ["n", 3])
    document = describe(
        tmp_path / "wide",
        """
        max_batch_size: 2
        input { name: "x" data_type: TYPE_FP32 dims: [ 5, -1 ] optional: true }
        output { name: "y" data_type: TYPE_FP32 dims: [ -1, -1 ] label_filename: "labels.txt" }
        """,
    )
    (taken,), (given,) = message(document).input, message(document).output
    assert (list(taken.dims), taken.optional) == ([5, 3], True)
    assert (list(given.dims), given.label_filename) == ([-1, 3], "labels.txt")


def test_only_the_declared_outputs_are_described(digits: Path) -> None:
    text = 'max_batch_size: 4 output { name: "label" data_type: TYPE_INT64 }'
    assert [output.name for output in message(describe(digits, text)).output] == ["label"]


def test_instance_groups_are_completed_with_counts_and_kinds(digits: Path) -> None:
    groups = "instance_group [ { count: 2 kind: KIND_MODEL }, { name: 'b' } ]"
    found = message(describe(digits, groups)).instance_group
    assert [(g.name, g.count, g.kind) for g in found] == [
        ("", 2, pb.ModelInstanceGroup.KIND_MODEL),
        ("b", 1, pb.ModelInstanceGroup.KIND_CPU),
    ]


def test_a_model_on_a_gpu_is_described_with_its_number(digits: Path) -> None:
    _, metadata = load(digits)
    (digits / "config.pbtxt").write_text("instance_group { gpus: 1 count: 2 }")
    document = CONFIGS.describe(CONFIGS.read_spec(digits), metadata, "1")
    (group,) = message(document).instance_group
    assert (group.kind, list(group.gpus), group.count) == (pb.ModelInstanceGroup.KIND_GPU, [1], 2)


def test_instances_on_several_gpus_are_described_by_group(digits: Path) -> None:
    _, metadata = load(digits)
    (digits / "config.pbtxt").write_text(
        "instance_group [ { gpus: [ 2, 1 ] count: 2 }, {}, { kind: KIND_GPU } ]"
    )
    configs = ModelConfigs(settings=ModelsConfig(device="cuda:3"), usable_cores=1)
    spec = configs.read_spec(digits)
    document = configs.describe(spec, metadata, "1")
    found = message(document).instance_group
    assert [(g.count, list(g.gpus)) for g in found] == [(2, [2, 1]), (1, [3]), (1, [0])]
    assert {group.kind for group in found} == {pb.ModelInstanceGroup.KIND_GPU}
    assert answers(document)["device"] == "cuda:2,cuda:1,cuda:3,cuda:0"

    (digits / "config.pbtxt").write_text(text_format.MessageToString(message(document)))
    again = CONFIGS.read_spec(digits)
    assert again.devices == spec.devices, "saved, it means the same whatever the settings say"


def answers(document: ModelConfigDocument) -> dict[str, str]:
    """Return what a description says of the engine."""
    found = message(document).parameters
    return {k.removeprefix("sluice."): v.string_value for k, v in found.items() if "sluice." in k}


AUTO = ModelConfigs(settings=ModelsConfig(device="auto", cache=""), usable_cores=1)


@pytest.mark.parametrize(
    ("device", "why", "kind", "gpus"),
    [
        ("cpu", "cuda:0: there is no NVIDIA driver", pb.ModelInstanceGroup.KIND_CPU, []),
        ("cuda:0", "", pb.ModelInstanceGroup.KIND_GPU, [0]),
    ],
)
def test_a_choice_is_described_by_what_it_came_to(
    digits: Path, device: str, why: str, kind: int, gpus: list[int]
) -> None:
    _, metadata = load(digits)
    chosen = replace(metadata, device=device, fallback=why, precision="FP16")
    document = AUTO.describe(AUTO.read_spec(digits), chosen, "1")
    (group,) = message(document).instance_group
    assert (group.kind, list(group.gpus)) == (kind, gpus)
    expected = {
        "engine": metadata.engine,
        "device": device,
        "providers": "CPUExecutionProvider",
        "precision": "FP16",
    }
    assert answers(document) == (expected | {"fallback": why} if why else expected)


def test_buckets_are_described_as_the_engine_has_them(digits: Path) -> None:
    text = 'parameters { key: "batch_buckets" value { string_value: "2, 8" } }'
    document = describe(digits, text)
    assert answers(document)["buckets"] == "2,8"
    assert message(document).max_batch_size == 8
    again = describe(digits, text_format.MessageToString(message(document)))
    assert again == document


def test_what_is_said_of_the_engine_is_not_read_back(
    digits: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = 'parameters { key: "sluice.%s" value { string_value: "a guess" } }'
    document = describe(digits, text % "device" + text % "precision")
    assert answers(document)["device"] == "cpu"
    assert "precision" not in answers(document)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("version_policy { latest {} }", {"latest": {"num_versions": 1}}),
        ("version_policy { specific { versions: [ 1, 3 ] } }", {"specific": {"versions": [1, 3]}}),
        ("version_policy {}", {"all": {}}),
    ],
)
def test_the_version_policy_is_described_as_it_is_meant(
    digits: Path, text: str, policy: dict[str, object]
) -> None:
    assert as_json(describe(digits, text))["version_policy"] == policy


def test_a_route_is_described_under_its_own_name(digits: Path) -> None:
    spec, metadata = load(digits)
    document = CONFIGS.describe(spec, metadata, "1", name="public")
    assert document.name == message(document).name == as_json(document)["name"] == "public"
    own = message(CONFIGS.describe(spec, metadata, "1"))
    own.name = "public"
    assert message(document) == own


def test_a_description_can_be_saved_as_the_configuration_and_says_the_same_again(
    digits: Path,
) -> None:
    first = describe(digits)
    again = describe(digits, text_format.MessageToString(message(first)))
    assert again == first


def test_a_version_that_outlives_a_reload_is_described_by_its_own_configuration(
    digits: Path,
) -> None:
    spec, metadata = load(digits, "max_batch_size: 8 metric_tags { key: 'v' value: 'old' }")
    load(digits, "max_batch_size: 16 metric_tags { key: 'v' value: 'new' }")
    assert message(CONFIGS.describe(spec, metadata, "1")).metric_tags["v"] == "old"


def test_a_specification_made_by_hand_is_described_too(digits: Path) -> None:
    configured, metadata = load(digits)
    values = {field.name: getattr(configured, field.name) for field in fields(ModelSpec)}
    document = CONFIGS.describe(ModelSpec(**values), metadata, "1")
    assert document == CONFIGS.describe(configured, metadata, "1")


def test_a_repository_serves_and_describes_what_the_folders_say(tmp_path: Path) -> None:
    write_classifier(tmp_path / "digits" / "1" / "model.onnx")
    write_fake(tmp_path / "echo" / "1" / "model.json", max_batch_size=8)
    write_fake(tmp_path / "echo" / "2" / "model.json", max_batch_size=8)
    (tmp_path / "echo" / "config.pbtxt").write_text("version_policy { latest {} }")
    write_fake(tmp_path / "odd" / "1" / "model.json")
    (tmp_path / "odd" / "config.pbtxt").write_text("sequence_batching {}")
    documents, reasons = asyncio.run(serve(tmp_path))
    assert [(d.name, d.version, message(d).max_batch_size) for d in documents] == [
        ("digits", "1", 64),
        ("echo", "2", 8),
    ]
    assert reasons["odd"].startswith("odd/config.pbtxt: sequence_batching: sequence batching is")


async def serve(root: Path) -> tuple[list[ModelConfigDocument], dict[str, str]]:
    repository = Repository(root=root, read_spec=CONFIGS.read_spec, loaders=LOADERS)
    await repository.start({})
    documents = [
        CONFIGS.describe(served.spec, served.metadata, served.version)
        for served in repository.versions()
    ]
    reasons = {entry.model: entry.reason for entry in repository.index()}
    await repository.close()
    return documents, reasons


def test_a_tensor_that_the_file_does_not_know_is_described_from_the_engine_alone(
    digits: Path,
) -> None:
    spec, metadata = load(digits)
    (only,) = metadata.inputs
    assert only == TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    (entry,) = message(CONFIGS.describe(spec, metadata, "1")).input
    assert (entry.name, entry.data_type, list(entry.dims)) == ("x", pb.TYPE_FP32, [4])
