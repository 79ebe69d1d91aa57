from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.tensors import Array
from gateway.quantize import fp16, graphs, int8
from gateway.quantize.comparison import Sessions
from gateway.quantize.faults import WrongInput
from tests.support.models import write_graph


def drawn(*shape: int) -> Array:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def run(model: onnx.ModelProto, rows: Array) -> Array:
    session = ort.InferenceSession(graphs.content(model), providers=["CPUExecutionProvider"])
    answers: list[Array] = session.run(None, {"x": rows})
    return answers[0]


def halves(model: onnx.ModelProto) -> set[str]:
    """Return the constants that are FP16."""
    constants = model.graph.initializer
    return {c.name for c in constants if c.data_type == TensorProto.FLOAT16}


@pytest.mark.parametrize("shape", [(3, 12, 12), (16,)], ids=["convolutional", "mlp"])
def test_the_copy_has_fp16_weights_and_the_signature_of_its_parent(
    shape: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue("mlp" if shape == (16,) else "convolutional")
    parent = graphs.read(path)
    before = parent.model.SerializeToString()
    child = fp16.quantize(parent.model)
    graphs.check_same(parent.signature, graphs.signature(child))
    assert halves(child) == {constant.name for constant in parent.model.graph.initializer}
    onnx.checker.check_model(child, full_check=True)
    assert len(graphs.content(child)) < 0.65 * path.stat().st_size
    assert parent.model.SerializeToString() == before
    for rows in (1, 7):  # the batch axis still varies
        given = drawn(rows, *shape)
        theirs = run(parent.model, given)
        apart = np.abs(run(child, given) - theirs).max()
        assert 0 < apart < 0.01 * np.abs(theirs).max()


def test_without_keeping_the_signature_callers_send_fp16(mlp: Path) -> None:
    parent = graphs.read(mlp)
    child = fp16.quantize(parent.model, keep_io=False)
    graphs.check_same(parent.signature.in_fp16(), graphs.signature(child))
    rows = drawn(4, 16)
    sessions = Sessions(
        graphs.content(parent.model), graphs.content(child), graphs.signature(child)
    )
    (output,) = sessions.compare([{"x": rows}])
    assert output.relative < 0.01
    assert run(child, rows.astype(np.float16)).dtype == np.float16


def test_excluded_nodes_keep_their_weights(mlp: Path) -> None:
    parent = graphs.read(mlp)
    child = fp16.quantize(parent.model, exclude=["Gemm_2"])
    assert halves(child) == {"weight0", "bias0", "weight2", "bias2"}
    apart = np.abs(run(child, drawn(5, 16)) - run(parent.model, drawn(5, 16))).max()
    assert apart < 0.01
    with pytest.raises(WrongInput, match="no node is called 'Gemm_3'"):
        fp16.quantize(parent.model, exclude=["Gemm_3"])


def test_an_excluded_output_is_computed_in_fp32_to_the_end(mlp: Path) -> None:
    parent = graphs.read(mlp)
    child = fp16.quantize(parent.model, exclude=[node.name for node in parent.model.graph.node])
    assert {node.op_type for node in child.graph.node} == {"Gemm", "Relu", "Identity"}
    graphs.check_same(parent.signature, graphs.signature(child))
    assert np.array_equal(run(child, drawn(3, 16)), run(parent.model, drawn(3, 16)))


def test_a_cast_of_the_model_itself_is_no_short_cut(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["n"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("CumSum", ["a", "axis"], ["b"]),
        helper.make_node("Mul", ["b", "w"], ["y"]),
    ]
    path = write_graph(
        tmp_path / "model.onnx",
        nodes=nodes,
        inputs={"n": ("INT64", ["rows", 4])},
        outputs={"y": ("FP32", ["rows", 4])},
        constants={"w": drawn(4), "axis": np.array(1)},
    )
    parent = graphs.read(path)
    child = fp16.quantize(parent.model)
    graphs.check_same(parent.signature, graphs.signature(child))
    contents = graphs.content(parent.model), graphs.content(child)
    rows = np.arange(8).reshape(2, 4)
    (output,) = Sessions(*contents, parent.signature).compare([{"n": rows}])
    assert 0 < output.relative < 0.01


def test_operators_without_an_fp16_form_stay_as_they_are(tmp_path: Path) -> None:
    """Two of them read one value: the converter makes the same Cast twice."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("TopK", ["a", "k"], ["best", "where"]),
        helper.make_node("CumSum", ["a", "axis"], ["sums"]),
    ]
    path = write_graph(
        tmp_path / "model.onnx",
        nodes=nodes,
        inputs={"x": ("FP32", ["n", 4])},
        outputs={"best": ("FP32", ["n", 2]), "sums": ("FP32", ["n", 4])},
        constants={"w": drawn(4, 4), "k": np.array([2]), "axis": np.array(1)},
    )
    parent = graphs.read(path)
    child = fp16.quantize(parent.model)
    names = [name for node in child.graph.node for name in node.output]
    assert len(names) == len(set(names))
    assert halves(child) == {"w"}
    assert np.abs(run(child, drawn(3, 4)) - run(parent.model, drawn(3, 4))).max() < 0.01


def test_models_with_nothing_to_convert_are_refused(mlp: Path, tmp_path: Path) -> None:
    parent = graphs.read(mlp)
    with pytest.raises(WrongInput, match="quantised already: it has FP16 weights"):
        fp16.quantize(fp16.quantize(parent.model))
    child = int8.quantize(parent.model, [{"x": drawn(16, 16)}], int8.Recipe())
    with pytest.raises(WrongInput, match="quantised already: it has DequantizeLinear nodes"):
        fp16.quantize(child)
    node = helper.make_node("Add", ["x", "one"], ["y"])
    path = write_graph(
        tmp_path / "model.onnx",
        nodes=[node],
        inputs={"x": ("INT64", ["n"])},
        outputs={"y": ("INT64", ["n"])},
        constants={"one": np.array(1)},
    )
    with pytest.raises(WrongInput, match="nothing in the model is FP32"):
        fp16.quantize(graphs.read(path).model)


def test_weights_are_rounded_and_not_cut(mlp: Path) -> None:
    parent = graphs.read(mlp)
    child = fp16.quantize(parent.model)
    theirs = {c.name: numpy_helper.to_array(c) for c in parent.model.graph.initializer}
    for constant in child.graph.initializer:
        ours = numpy_helper.to_array(constant)
        assert np.array_equal(ours, theirs[constant.name].astype(np.float16))
