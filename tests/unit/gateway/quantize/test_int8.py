from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.tensors import Array
from gateway.quantize import graphs, int8, samples
from gateway.quantize.faults import WrongInput
from gateway.quantize.int8 import Recipe, Target
from gateway.quantize.samples import Sample
from tests.support.models import write_graph, write_identity, write_mlp

TARGETS: tuple[Target, ...] = ("cpu", "tensorrt")


def drawn(*shape: int) -> Array:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def calibration(*item: int) -> list[Sample]:
    return samples.batches([{"x": drawn(96, *item)}], is_batched=True)


def constants(model: onnx.ModelProto, suffix: str) -> dict[str, Array]:
    found = model.graph.initializer
    return {c.name: numpy_helper.to_array(c) for c in found if c.name.endswith(suffix)}


def run(model: onnx.ModelProto, rows: Array) -> Array:
    session = ort.InferenceSession(graphs.content(model), providers=["CPUExecutionProvider"])
    answers: list[Array] = session.run(None, {"x": rows})
    return answers[0]


def executed(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Return the operators that onnxruntime runs on the CPU, after all of its optimising."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(graphs.content(model), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("network", ["mlp", "convolutional"])
def test_the_copy_answers_nearly_as_its_parent_for_any_number_of_rows(
    network: str, per_channel: bool, target: Target, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(network)
    item = (16,) if network == "mlp" else (3, 12, 12)
    parent = graphs.read(path)
    before = parent.model.SerializeToString()
    recipe = Recipe(target=target, per_channel=per_channel)
    child = int8.quantize(parent.model, calibration(*item), recipe)
    graphs.check_same(parent.signature, graphs.signature(child))
    onnx.checker.check_model(child, full_check=True)
    assert parent.model.SerializeToString() == before
    for rows in (1, 50):
        given = drawn(rows, *item)
        theirs = run(parent.model, given)
        apart = np.abs(run(child, given) - theirs).max() / np.abs(theirs).max()
        assert 0 < apart < 0.1


def test_for_the_cpu_weights_take_seven_bits_and_activations_a_zero_point(mlp: Path) -> None:
    child = int8.quantize(graphs.read(mlp).model, calibration(16), Recipe())
    weights = [w for name, w in constants(child, "_quantized").items() if "weight" in name]
    assert [w.dtype for w in weights] == [np.int8] * 3
    assert all(np.abs(w.astype(int)).max() in (63, 64) for w in weights)
    points = constants(child, "_zero_point")
    assert {points[f"{name}_zero_point"].dtype for name in ("x", "relu0", "relu1")} == {
        np.dtype("uint8")
    }
    assert points["x_zero_point"] > 0
    assert points["relu0_zero_point"] == 0  # the whole range is for what passes ReLU


def test_for_tensorrt_zero_points_are_zero_weights_take_eight_bits_and_biases_stay(
    convolutional: Path,
) -> None:
    recipe = Recipe(target="tensorrt", per_channel=True)
    child = int8.quantize(graphs.read(convolutional).model, calibration(3, 12, 12), recipe)
    points = constants(child, "_zero_point")
    assert points
    assert {point.dtype for point in points.values()} == {np.dtype("int8")}
    assert not any(point.any() for point in points.values())
    weights = constants(child, "_quantized")
    assert len(weights) == 3
    assert all(np.abs(w.astype(int)).max() == 127 for w in weights.values())
    assert constants(child, "offset")["offset"].dtype == np.float32


def test_only_the_file_for_the_cpu_has_all_its_convolutions_computed_in_eight_bits(
    convolutional: Path, tmp_path: Path
) -> None:
    """The other half is why there are two targets: drop one when this changes."""
    model = graphs.read(convolutional).model
    found = executed(int8.quantize(model, calibration(3, 12, 12), Recipe()), tmp_path)
    assert (found["QLinearConv"], found["QGemm"]) == (2, 1)
    assert not found.keys() & {"Conv", "FusedConv", "Gemm", "FusedGemm"}
    other = int8.quantize(model, calibration(3, 12, 12), Recipe(target="tensorrt"))
    assert executed(other, tmp_path)["QLinearConv"] < 2


def test_the_scores_of_a_last_product_are_not_rounded(mlp: Path, tmp_path: Path) -> None:
    child = int8.quantize(graphs.read(mlp).model, calibration(16), Recipe())
    assert executed(child, tmp_path)["QGemm"] == 3
    last = child.graph.node[-1]
    assert (last.op_type, list(last.output)) == ("Gemm", ["y"])
    scores = run(child, drawn(200, 16))
    assert len(np.unique(scores)) > 1_000  # of 8 bits there would be 256


def test_results_that_something_reads_in_eight_bits_stay_rounded(tmp_path: Path) -> None:
    """One product is read by another and is an output, one by a node of FP32 alone."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Softmax", ["b"], ["y"]),
    ]
    path = write_graph(
        tmp_path / "model.onnx",
        nodes=nodes,
        inputs={"x": ("FP32", ["n", 16])},
        outputs={"a": ("FP32", ["n", 16]), "y": ("FP32", ["n", 16])},
        constants={"w": drawn(16, 16)},
    )
    parent = graphs.read(path)
    child = int8.quantize(parent.model, calibration(16), Recipe())
    graphs.check_same(parent.signature, graphs.signature(child))
    rounded = [n.input[0] for n in child.graph.node if n.op_type == "QuantizeLinear"]
    assert len(rounded) == 2  # x and a, but not b
    rows = drawn(40, 16)
    assert np.abs(run(child, rows) - run(parent.model, rows)).max() < 0.3


def test_excluded_nodes_stay_fp32_by_name_or_path(mlp: Path) -> None:
    parent = graphs.read(mlp)
    for node, name in zip(parent.model.graph.node, "abcde", strict=True):
        node.name = f"/{'head' if name == 'e' else 'body'}/{name}"
    child = int8.quantize(parent.model, calibration(16), Recipe(exclude=["/head"]))
    kept = {c.name for c in child.graph.initializer if c.data_type == TensorProto.FLOAT}
    assert {"weight2", "bias2"} <= kept
    assert not kept & {"weight0", "weight1"}
    with pytest.raises(WrongInput, match="--exclude leaves nothing to quantise"):
        int8.quantize(parent.model, calibration(16), Recipe(exclude=["/head", "/body"]))
    with pytest.raises(WrongInput, match="no node is called '/tail'"):
        int8.quantize(parent.model, calibration(16), Recipe(exclude=["/tail"]))


def test_a_model_without_products_is_refused_with_what_it_has(tmp_path: Path) -> None:
    model = graphs.read(write_identity(tmp_path / "model.onnx", "FP32", [4])).model
    with pytest.raises(WrongInput, match=r"none of Conv, .*MatMul, only Identity"):
        int8.quantize(model, calibration(4), Recipe())


def test_a_model_that_is_quantised_is_not_quantised_again(mlp: Path) -> None:
    child = int8.quantize(graphs.read(mlp).model, calibration(16), Recipe())
    with pytest.raises(WrongInput, match="quantised already"):
        int8.quantize(child, calibration(16), Recipe())


def test_a_model_without_a_batch_axis_is_calibrated_run_by_run(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = write_graph(
        tmp_path / "model.onnx",
        nodes=nodes,
        inputs={"x": ("FP32", [5, 16])},
        outputs={"y": ("FP32", [5, 8])},
        constants={"w": drawn(16, 8)},
    )
    parent = graphs.read(path)
    runs = [{"x": rows} for rows in drawn(20, 5, 16)]
    child = int8.quantize(parent.model, samples.batches(runs, is_batched=False), Recipe())
    graphs.check_same(parent.signature, graphs.signature(child))
    assert np.abs(run(child, runs[0]["x"]) - run(parent.model, runs[0]["x"])).max() < 0.5


def test_large_weights_shrink_to_a_quarter(tmp_path: Path) -> None:
    path = write_mlp(tmp_path / "model.onnx", [16, 400, 400, 8], seed=1)
    child = int8.quantize(graphs.read(path).model, calibration(16), Recipe())
    assert 0.24 < len(graphs.content(child)) / path.stat().st_size < 0.28


@pytest.mark.parametrize("network", ["mlp", "convolutional"])
def test_tensorrt_rtx_builds_a_plan_of_the_file_that_is_made_for_it(
    network: str, request: pytest.FixtureRequest
) -> None:
    """Building needs no GPU; of the file for the CPU the parser refuses the 32-bit biases."""
    trt = pytest.importorskip("tensorrt_rtx")
    path: Path = request.getfixturevalue(network)
    item = (16,) if network == "mlp" else (3, 12, 12)
    quiet = trt.Logger(trt.Logger.INTERNAL_ERROR)
    parses = {}
    for target in TARGETS:
        recipe = Recipe(target=target, per_channel=True)
        child = int8.quantize(graphs.read(path).model, calibration(*item), recipe)
        builder = trt.Builder(quiet)
        network_of = builder.create_network(0)
        parser = trt.OnnxParser(network_of, quiet)
        parses[target] = parser.parse(graphs.content(child))
        if target == "tensorrt":
            config = builder.create_builder_config()
            profile = builder.create_optimization_profile()
            profile.set_shape("x", (1, *item), (8, *item), (32, *item))
            config.add_optimization_profile(profile)
            plan = builder.build_serialized_network(network_of, config)
            assert plan is not None
            assert plan.nbytes > 0
    assert parses == {"cpu": False, "tensorrt": True}
