from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gateway.quantize import graphs
from gateway.quantize.faults import CannotQuantize, WrongInput
from gateway.quantize.graphs import Port, Signature
from tests.support.models import write_graph, write_identity


def nodes_of(path: Path) -> list[str]:
    return [node.name for node in graphs.read(path).model.graph.node]


def test_a_parent_is_read_with_its_signature_and_named_nodes(mlp: Path) -> None:
    parent = graphs.read(mlp)
    assert parent.signature == Signature(
        (Port("x", "FP32", (-1, 16)),), (Port("y", "FP32", (-1, 10)),)
    )
    assert parent.signature.is_batched
    assert parent.size_bytes == mlp.stat().st_size
    names = [node.name for node in parent.model.graph.node]
    assert names == ["Gemm_0", "Relu_1", "Gemm_2", "Relu_3", "Gemm_4"]


def test_nodes_that_have_a_name_keep_it_and_no_two_have_the_same(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="Relu_1"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    ports = {"inputs": {"x": ("FP32", ["n", 2])}, "outputs": {"y": ("FP32", ["n", 2])}}
    path = write_graph(tmp_path / "m.onnx", nodes=nodes, **ports)  # type: ignore[arg-type]
    assert nodes_of(path) == ["Relu_1", "Relu_1_", "Relu_2"]


def test_weights_that_lie_beside_the_file_are_read_and_counted(mlp: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(onnx.load(mlp), path, save_as_external_data=True, size_threshold=0)
    assert path.stat().st_size < mlp.stat().st_size / 2
    parent = graphs.read(path)
    assert parent.size_bytes > mlp.stat().st_size
    theirs = graphs.read(mlp).model.graph.initializer
    for ours, other in zip(parent.model.graph.initializer, theirs, strict=True):
        assert np.array_equal(numpy_helper.to_array(ours), numpy_helper.to_array(other))
    assert len(graphs.content(parent.model)) > mlp.stat().st_size  # whole, in one file


def test_what_is_no_model_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(WrongInput, match=r"cannot read .*: No such file"):
        graphs.read(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("certainly no model")
    with pytest.raises(WrongInput, match="is no ONNX model: "):
        graphs.read(tmp_path / "text.onnx")
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(WrongInput, match="is no ONNX model: "):
        graphs.read(tmp_path / "empty.onnx")


def test_an_output_that_is_no_tensor_is_refused() -> None:
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    value = helper.make_value_info("maps", helper.make_sequence_type_proto(element))
    graph = helper.make_graph([], "g", [], [value])
    with pytest.raises(WrongInput, match="'maps' is no tensor"):
        graphs.signature(helper.make_model(graph))


@pytest.mark.parametrize(
    ("item", "is_batched"), [(["rows", 4], True), ([4], False), ([1, 4], False), ([], False)]
)
def test_a_model_is_batched_if_the_first_axis_of_all_its_ports_varies(
    tmp_path: Path, item: list[int | str], is_batched: bool
) -> None:
    path = write_identity(tmp_path / "m.onnx", "FP32", item, batch_axis=False)
    assert graphs.read(path).signature.is_batched is is_batched


def test_nodes_are_chosen_by_name_or_by_a_path_above_them() -> None:
    names = ["/encoder/0/MatMul", "/encoder/0/Add", "/encoder/01/MatMul", "head"]
    nodes = [helper.make_node("Relu", ["x"], [name], name=name) for name in names]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert graphs.chosen(model, ["head"]) == ["head"]
    assert graphs.chosen(model, ["/encoder/0"]) == names[:2]
    assert graphs.chosen(model, ["/encoder/", "head"]) == names
    with pytest.raises(WrongInput, match=r"no node is called 'haed'; .* nodes are head"):
        graphs.chosen(model, ["haed"])


def test_tidy_puts_nodes_in_order_once_each_and_drops_unused_operator_sets() -> None:
    late, early = (
        helper.make_node("Relu", ["a"], ["b"], name="late"),
        helper.make_node("Cast", ["x"], ["a"], name="early", to=TensorProto.FLOAT16),
    )
    graph = helper.make_graph([late, early, early], "g", [], [])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    graphs.tidy(model)
    assert [node.name for node in model.graph.node] == ["early", "late"]
    assert [entry.domain for entry in model.opset_import] == [""]


def test_tidy_follows_what_graphs_inside_nodes_read() -> None:
    value = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])
    inner = helper.make_graph([helper.make_node("Relu", ["made"], ["out"])], "inner", [], [value])
    choice = helper.make_node("If", ["is"], ["y"], then_branch=inner, else_branch=inner)
    maker = helper.make_node("Relu", ["x"], ["made"])
    model = helper.make_model(helper.make_graph([choice, maker], "g", [], []))
    graphs.tidy(model)
    assert [node.op_type for node in model.graph.node] == ["Relu", "If"]


def test_a_circle_of_nodes_is_an_error_and_no_endless_loop() -> None:
    nodes = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Relu", ["b"], ["a"])]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    with pytest.raises(CannotQuantize, match="wait for each other"):
        graphs.tidy(model)


def test_a_child_with_another_signature_is_refused_with_both() -> None:
    parent = Signature((Port("x", "FP32", (-1, 4)),), (Port("y", "FP32", (-1, 2)),))
    graphs.check_same(parent, parent)
    with pytest.raises(CannotQuantize, match=r"inputs came out as 'x' FP16 \[-1, 4\]; .* FP32"):
        graphs.check_same(parent, parent.in_fp16())
    fixed = Signature(parent.inputs, (Port("y", "FP32", (1, 2)),))
    with pytest.raises(CannotQuantize, match=r"outputs came out as 'y' FP32 \[1, 2\]"):
        graphs.check_same(parent, fixed)


def test_a_mark_is_added_to_the_properties_that_are_there() -> None:
    model = helper.make_model(helper.make_graph([], "g", [], []))
    helper.set_model_props(model, {"author": "somebody", graphs.PRECISION: "FP32"})
    graphs.marked(model, {graphs.PRECISION: "FP16"})
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert found == {"author": "somebody", "sluice.precision": "FP16"}


def test_an_invalid_result_is_never_given_as_bytes() -> None:
    node = helper.make_node("Relu", ["nowhere"], ["y"])
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph([node], "g", [], [value]))
    with pytest.raises(CannotQuantize, match="the result is no valid ONNX file"):
        graphs.content(model)
