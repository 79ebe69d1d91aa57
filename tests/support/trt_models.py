"""Writes the models that the tests of engines/trt build: small, and some of them hard to build."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.support.models import BATCH_AXIS, IR_VERSION, ONNX_TYPES, OPSET, write_graph

IMAGE: Final = (3, 16, 16)


def write_conv(path: Path, *, rows: int | str = BATCH_AXIS, seed: int = 3) -> Path:
    """Write two convolutions with a shortcut, from `image` (rows, 3, 16, 16) to `y` (rows, 5)."""
    rng = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return rng.normal(0, 0.2, shape).astype(np.float32)

    nodes = [
        helper.make_node("Conv", ["image", "w0"], ["c0"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c0", "s", "b", "m", "v"], ["n0"]),
        helper.make_node("Relu", ["n0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c1", "r0"], ["a1"]),
        helper.make_node("GlobalAveragePool", ["a1"], ["p1"]),
        helper.make_node("Flatten", ["p1"], ["f1"]),
        helper.make_node("Gemm", ["f1", "w2"], ["y"]),
    ]
    constants = {
        "w0": weights(8, 3, 3, 3),
        "s": np.abs(weights(8)),
        "b": weights(8),
        "m": weights(8),
        "v": np.abs(weights(8)) + 0.5,
        "w1": weights(8, 8, 3, 3),
        "w2": weights(8, 5),
    }
    return write_graph(
        path,
        nodes=nodes,
        inputs={"image": ("FP32", [rows, *IMAGE])},
        outputs={"y": ("FP32", [rows, 5])},
        constants=constants,
    )


def write_scaled(path: Path, axis: str = "length") -> Path:
    """Write `y` = 2 * `x` of (rows, length), where both vary."""
    shape: list[int | str] = [BATCH_AXIS, axis]
    return write_graph(
        path,
        nodes=[helper.make_node("Mul", ["x", "two"], ["y"])],
        inputs={"x": ("FP32", shape)},
        outputs={"y": ("FP32", shape)},
        constants={"two": np.array(2, np.float32)},
    )


def write_two_outputs(path: Path) -> Path:
    """Write `sum` = a + b and `difference` = a - b of two inputs (rows, 4)."""
    shape: list[int | str] = [BATCH_AXIS, 4]
    return write_graph(
        path,
        nodes=[
            helper.make_node("Add", ["a", "b"], ["sum"]),
            helper.make_node("Sub", ["a", "b"], ["difference"]),
        ],
        inputs={"a": ("FP32", shape), "b": ("FP32", shape)},
        outputs={"sum": ("FP32", shape), "difference": ("FP32", shape)},
    )


def write_nonzero(path: Path) -> Path:
    """Write a model whose output's shape depends on the values of its input."""
    return write_graph(
        path,
        nodes=[helper.make_node("NonZero", ["x"], ["y"], name="finds")],
        inputs={"x": ("FP32", [BATCH_AXIS, 4])},
        outputs={"y": ("INT64", [2, "found"])},
    )


def write_typed(path: Path, datatype: str) -> Path:
    """Write the identity of one datatype, (rows, 4)."""
    return write_graph(
        path,
        nodes=[helper.make_node("Identity", ["x"], ["y"])],
        inputs={"x": (datatype, [BATCH_AXIS, 4])},
        outputs={"y": (datatype, [BATCH_AXIS, 4])},
    )


def write_unknown_operator(path: Path) -> Path:
    """Write a node of an operator that nobody has: node 0, named `odd`."""
    return _unchecked(
        path, [helper.make_node("Frobnicate", ["x"], ["y"], domain="acme", name="odd")]
    )


def write_external(path: Path) -> Path:
    """Write an MLP-like model whose weights lie in `weights.bin` beside it."""
    weight = np.arange(16, dtype=np.float32).reshape(4, 4)
    tensor = numpy_helper.from_array(weight, "w")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("offset", "0"), ("length", "64")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "weights.bin").write_bytes(weight.tobytes())
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return _unchecked(path, nodes, [tensor])


def _unchecked(
    path: Path, nodes: Sequence[onnx.NodeProto], constants: Sequence[onnx.TensorProto] = ()
) -> Path:
    shape: list[int | str] = [BATCH_AXIS, 4]
    graph = helper.make_graph(
        list(nodes),
        path.stem,
        [helper.make_tensor_value_info("x", ONNX_TYPES["FP32"], shape)],
        [helper.make_tensor_value_info("y", ONNX_TYPES["FP32"], shape)],
        list(constants),
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("acme", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = IR_VERSION
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path
