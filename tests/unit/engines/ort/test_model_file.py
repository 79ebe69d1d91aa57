"""What an ONNX file says of itself, read without loading it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from engines.ort.model_file import ModelFile, inspect
from tests.support.models import write_graph, write_identity, write_mlp

ROWS: tuple[str, list[int | str]] = ("FP32", ["rows", 4])


def write_weights(path: Path, weights: dict[str, int]) -> Path:
    """Write a graph with constants of these element types and a row of four each."""
    tensors = [
        TensorProto(name=name, data_type=TensorProto.DataType.Value(name), dims=[count, 1])
        for name, count in weights.items()
    ]
    node = helper.make_node("Identity", ["x"], ["y"])
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows"]) for n in ("x", "y")]
    graph = helper.make_graph([node], "g", value[:1], value[1:], tensors)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


@pytest.mark.parametrize(
    ("weights", "precision"),
    [
        ({}, ""),
        ({"FLOAT": 4}, "FP32"),
        ({"FLOAT16": 4, "FLOAT": 3}, "FP16"),
        ({"BFLOAT16": 4}, "BF16"),
        ({"DOUBLE": 4}, "FP64"),
        ({"INT8": 9, "FLOAT": 2}, "INT8"),
        ({"FLOAT8E4M3FN": 9}, "FP8"),
        ({"INT64": 400, "FLOAT": 1}, "FP32"),
        ({"INT64": 400, "BOOL": 3, "STRING": 0}, ""),
    ],
)
def test_precision_is_what_most_weights_are_kept_in(
    tmp_path: Path, weights: dict[str, int], precision: str
) -> None:
    path = write_weights(tmp_path / "model.onnx", weights)
    assert inspect(path) == ModelFile(precision, has_external_data=False)


def test_quantise_nodes_are_told_with_the_precision(tmp_path: Path) -> None:
    path = write_graph(
        tmp_path / "model.onnx",
        nodes=[
            helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["wide"]),
            helper.make_node("Mul", ["x", "wide"], ["y"]),
        ],
        inputs={"x": ROWS},
        outputs={"y": ROWS},
        constants={
            "w": np.arange(4, dtype=np.int8),
            "scale": np.array(0.5, np.float32),
            "zero": np.array(0, np.int8),
        },
    )
    assert inspect(path) == ModelFile("INT8 QDQ", has_external_data=False)


def test_constants_in_nodes_and_in_branches_count(tmp_path: Path) -> None:
    def constant(name: str, count: int) -> onnx.NodeProto:
        value = numpy_helper.from_array(np.ones(count, np.float16), "v")
        return helper.make_node("Constant", [], [name], value=value)

    branch = helper.make_graph(
        [constant("b", 4)], "b", [], [helper.make_tensor_value_info("b", 10, [4])]
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [node, constant("top", 2)],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [4])],
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert inspect(path) == ModelFile("FP16", has_external_data=False, has_control_flow=True)


def test_weights_beside_the_file_are_seen(tmp_path: Path) -> None:
    model = onnx.load(write_mlp(tmp_path / "inside.onnx", [64, 64], seed=1))
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, size_threshold=0)
    assert inspect(path) == ModelFile("FP32", has_external_data=True)


def test_a_file_in_onnxruntimes_own_format_says_nothing(tmp_path: Path) -> None:
    path = write_mlp(tmp_path / "model.onnx", [8, 8], seed=1)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert (tmp_path / "model.ort").stat().st_size > 0
    assert inspect(tmp_path / "model.ort") is None


def test_what_is_no_file_or_no_model_says_nothing(tmp_path: Path) -> None:
    assert inspect(tmp_path / "nothing.onnx") is None
    assert inspect(tmp_path) is None
    (tmp_path / "empty.onnx").touch()
    assert inspect(tmp_path / "empty.onnx") is None
    (tmp_path / "text.onnx").write_text("not a model at all\n" * 100)
    assert inspect(tmp_path / "text.onnx") is None


def test_no_cut_through_a_file_is_an_exception(tmp_path: Path) -> None:
    whole = write_identity(tmp_path / "model.onnx", "FP32", [2]).read_bytes()
    cut = tmp_path / "cut.onnx"
    for size in range(len(whole)):
        cut.write_bytes(whole[:size])
        assert inspect(cut) in (None, ModelFile("", has_external_data=False))


@given(data=st.binary(max_size=200))
def test_no_bytes_at_all_are_an_exception(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(data)
    inspect(path)
