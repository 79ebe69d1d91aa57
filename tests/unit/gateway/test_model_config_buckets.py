"""Buckets, CUDA graphs and the parameters of a GPU: what a configuration makes of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from engines.errors import ModelLoadError
from engines.trt import load as trt
from gateway.model_config.parameters import OF_A_BUILD
from tests.support.model_folders import ReadModel, ignored_fields, read_model

GPU = " instance_group { kind: KIND_GPU } "


@pytest.fixture
def read(tmp_path: Path) -> ReadModel:
    return partial(read_model, tmp_path)


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


@pytest.mark.parametrize(
    ("text", "maximum", "default", "buckets"),
    [
        ("max_batch_size: 8 " + parameter("batch_buckets", "1, 4,8"), 8, 8, (1, 4, 8)),
        (parameter("batch_buckets", "2,16"), None, 16, (2, 16)),
        (parameter("batch_buckets", " "), None, 64, ()),
        ("max_batch_size: 8 ", 8, 64, ()),
    ],
)
def test_buckets_are_a_parameter_and_the_last_is_the_largest_batch(
    read: ReadModel,
    text: str,
    maximum: int | None,
    default: int,
    buckets: tuple[int, ...],
) -> None:
    engine = read(text).engine
    assert engine.buckets == buckets
    assert (engine.max_batch_size, engine.default_max_batch_size) == (maximum, default)


def test_without_a_maximum_the_last_bucket_bounds_the_policy_and_the_warm_up(
    read: ReadModel,
) -> None:
    text = parameter("batch_buckets", "4,128")
    spec = read(
        text + "dynamic_batching { preferred_batch_size: 100 } model_warmup { batch_size: 128 }"
    )
    assert spec.batching is not None
    assert spec.batching.max_batch_size == 128
    assert spec.warmup_batch_sizes == (128,)


GRAPHS = "optimization { cuda { graphs: true %s } }"
SPEC = "graph_spec { batch_size: %d }"


@pytest.mark.parametrize(
    ("text", "buckets"),
    [
        ("max_batch_size: 8 " + GRAPHS % (SPEC % 4 + SPEC % 1), (1, 4, 8)),
        ("max_batch_size: 8 " + GRAPHS % (SPEC % 8), (8,)),
        ("max_batch_size: 8 " + GRAPHS % "", ()),
        (GRAPHS % (SPEC % 16), (16, 64)),
        ("max_batch_size: 8 " + parameter("batch_buckets", "2,8") + GRAPHS % (SPEC % 8), (2, 8)),
    ],
)
def test_cuda_graphs_are_recorded_for_buckets_of_their_own_or_those_given(
    read: ReadModel, text: str, buckets: tuple[int, ...]
) -> None:
    engine = read(text + GPU).engine
    assert engine.has_graphs
    assert engine.buckets == buckets


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (
            "max_batch_size: 8 " + GRAPHS % (SPEC % 4),
            ["optimization.cuda.graph_spec.batch_size", "optimization.cuda.graphs"],
        ),
        (
            GPU + "max_batch_size: 8 optimization { cuda { " + SPEC % 4 + " } }",
            ["optimization.cuda.graph_spec.batch_size"],
        ),
        (
            GPU
            + "max_batch_size: 8 "
            + parameter("batch_buckets", "2,8")
            + GRAPHS % "graph_spec { batch_size: 2 graph_lower_bound { batch_size: 1 } }",
            [
                "optimization.cuda.graph_spec.batch_size",
                "optimization.cuda.graph_spec.graph_lower_bound.batch_size",
            ],
        ),
        (
            parameter("lanes", "3")
            + parameter("memory_limit_bytes", "9")
            + parameter("strict", "0"),
            ["parameters.lanes", "parameters.memory_limit_bytes", "parameters.strict"],
        ),
        (
            'backend: "tensorrt"' + parameter("strict", "1") + parameter("profiles", "bucket"),
            ["parameters.strict"],
        ),
        (parameter("profiles", "bucket") + GPU, ["parameters.profiles"]),
        (
            GPU + 'backend: "pytorch"' + parameter("memory_limit_bytes", "1"),
            ["parameters.memory_limit_bytes"],
        ),
        (
            'backend: "pytorch"' + parameter("session.x", "1") + parameter("sluice.device", "cpu"),
            ["parameters.session.x"],
        ),
    ],
)
def test_what_asks_for_a_gpu_or_another_engine_in_vain_is_named(
    read: ReadModel, text: str, fields: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    spec = read(text)
    assert spec.engine.has_graphs == (GPU in text and "graphs: true" in text)
    assert ignored_fields(caplog) == fields == list(spec.ignored)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "max_batch_size: 8 " + parameter("batch_buckets", "1,4"),
            r"parameters\['batch_buckets'\]: the last of \[1, 4\] is not max_batch_size 8",
        ),
        (
            parameter("batch_buckets", "4,1"),
            r"parameters\['batch_buckets'\]: \[4, 1\] are not ascending row counts from 1",
        ),
        (parameter("batch_buckets", "0"), r"\[0\] are not ascending row counts from 1"),
        (parameter("batch_buckets", "1;4"), r"'1;4' is no list of row counts such as '1,4,8'"),
        (parameter("batch_buckets", "1,9999999999"), "is no list of row counts"),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: 1 }' + parameter("batch_buckets", "1"),
            "a model without a batch axis has no buckets",
        ),
        (
            "max_batch_size: 8 " + GRAPHS % (SPEC % 9),
            r"graph_spec\[0\]\.batch_size: 9 is not between 1 and the largest batch, 8",
        ),
        (
            "max_batch_size: 8 " + GRAPHS % (SPEC % 4 + "graph_spec {}"),
            r"graph_spec\[1\]\.batch_size: 0 is not between 1 and the largest batch, 8",
        ),
        (
            'input { name: "x" data_type: TYPE_FP32 dims: 1 }' + GRAPHS % (SPEC % 1),
            r"graph_spec\[0\]\.batch_size: 1 is not 0: the model has no batch axis",
        ),
        (parameter("lanes", "0"), r"parameters\['lanes'\]: '0' is no number of lanes from 1 to 8"),
        (parameter("lanes", "9"), r"parameters\['lanes'\]: '9' is no number of lanes from 1 to 8"),
        (parameter("lanes", "²"), r"parameters\['lanes'\]: '²' is no number of lanes"),
        (parameter("memory_limit_bytes", "2GB"), r"'2GB' is no number of bytes from 0"),
        (parameter("strict", "yes"), r"parameters\['strict'\]: 'yes' is no switch from 0 to 1"),
    ],
)
def test_a_parameter_of_ours_that_cannot_be_is_refused_by_its_field(
    read: ReadModel, text: str, sentence: str
) -> None:
    with pytest.raises(ModelLoadError, match=sentence):
        read(text + GPU)


def test_the_parameters_of_a_gpu_reach_the_engine(
    read: ReadModel, caplog: pytest.LogCaptureFixture
) -> None:
    text = parameter("lanes", "3") + parameter("memory_limit_bytes", "1024")
    engine = read(GPU + text + parameter("strict", "0")).engine
    assert (engine.lanes, engine.memory_limit_bytes) == (3, 1024)
    assert engine.parameters["strict"] == "0", "the engine looks at it itself"
    assert ignored_fields(caplog) == []


def test_the_parameters_of_a_build_are_those_that_tensorrt_looks_at() -> None:
    assert set(OF_A_BUILD) == {trt.PROFILES, trt.LEVEL, trt.FLAGS}


def test_a_model_without_parameters_has_two_lanes_and_no_limit(read: ReadModel) -> None:
    engine = read(GPU).engine
    assert (engine.lanes, engine.memory_limit_bytes, engine.has_graphs) == (2, 0, False)


def test_a_graph_of_no_rows_is_that_of_a_model_without_a_batch_axis(
    read: ReadModel, caplog: pytest.LogCaptureFixture
) -> None:
    text = 'input { name: "x" data_type: TYPE_FP32 dims: 1 }' + GRAPHS % "graph_spec {}"
    engine = read(GPU + text).engine
    assert (engine.has_graphs, engine.buckets) == (True, ())
    assert ignored_fields(caplog) == []
