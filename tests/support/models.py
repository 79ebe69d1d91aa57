"""Writes small model files for tests: real ONNX graphs, and scripts for the shipped fake engine.

Every helper takes the path of the file to write and makes its folders, so that a repository is laid
out by ``write_identity(root / "echo" / "1" / "model.onnx", "FP32", [4])``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET: Final = 17
IR_VERSION: Final = 9
BATCH_AXIS: Final = "rows"

# Protocol datatypes -> ONNX element types; all that the protocol knows.
ONNX_TYPES: Final[dict[str, int]] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}


def write_identity(
    path: Path, datatype: str, item_shape: Sequence[int | str], batch_axis: bool = True
) -> Path:
    """Write a model whose output `y` is its input `x`.

    A dimension of `item_shape` given as a name varies.
    """
    shape = [BATCH_AXIS, *item_shape] if batch_axis else list(item_shape)
    node = helper.make_node("Identity", ["x"], ["y"])
    return write_graph(
        path,
        nodes=[node],
        inputs={"x": (datatype, shape)},
        outputs={"y": (datatype, shape)},
    )


def write_mlp(path: Path, sizes: Sequence[int], seed: int) -> Path:
    """Write a multi-layer perceptron from `x` to `y`, FP32, ReLU between the layers.

    ``sizes`` are the widths from input to output; `seed` draws the weights.
    """
    rng = np.random.default_rng(seed)
    nodes, constants, value = [], {}, "x"
    for layer, (width_in, width_out) in enumerate(pairwise(sizes)):
        weight, bias = f"weight{layer}", f"bias{layer}"
        scale = 1 / np.sqrt(width_in)
        constants[weight] = rng.normal(0, scale, (width_in, width_out)).astype(np.float32)
        constants[bias] = rng.normal(0, scale, width_out).astype(np.float32)
        is_last = layer == len(sizes) - 2
        summed = "y" if is_last else f"sum{layer}"
        nodes.append(helper.make_node("Gemm", [value, weight, bias], [summed]))
        if not is_last:
            value = f"relu{layer}"
            nodes.append(helper.make_node("Relu", [summed], [value]))
    return write_graph(
        path,
        nodes=nodes,
        inputs={"x": ("FP32", [BATCH_AXIS, sizes[0]])},
        outputs={"y": ("FP32", [BATCH_AXIS, sizes[-1]])},
        constants=constants,
    )


def write_lookup(path: Path, table: Sequence[float]) -> Path:
    """Write a model whose `y` is ``table[x]``; an index out of range makes the whole batch fail."""
    return write_graph(
        path,
        nodes=[helper.make_node("Gather", ["table", "x"], ["y"])],
        inputs={"x": ("INT64", [BATCH_AXIS, 1])},
        outputs={"y": ("FP32", [BATCH_AXIS, 1])},
        constants={"table": np.asarray(table, dtype=np.float32)},
    )


def write_countdown(path: Path) -> Path:
    """Write a model whose `y` is its `x`, after as many turns of a loop as the largest value says.

    A million turns take a third of a second, more or less.
    """
    shape: Sequence[int | str] = [BATCH_AXIS, 1]
    going, goes_on = (_value(name, "BOOL", []) for name in ("going", "goes_on"))
    turn = helper.make_graph(
        [helper.make_node("Identity", [a], [b]) for a, b in (("going", "goes_on"), ("in", "out"))],
        "turn",
        [_value("turns", "INT64", []), going, _value("in", "FP32", shape)],
        [goes_on, _value("out", "FP32", shape)],
    )
    return write_graph(
        path,
        nodes=[
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["count"], to=TensorProto.INT64),
            helper.make_node("Loop", ["count", "", "x"], ["y"], body=turn),
        ],
        inputs={"x": ("FP32", shape)},
        outputs={"y": ("FP32", shape)},
    )


def write_graph(
    path: Path,
    *,
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[str, Sequence[int | str]]],
    outputs: dict[str, tuple[str, Sequence[int | str]]],
    constants: dict[str, npt.NDArray[Any]] | None = None,  # Any: each constant has its own type
) -> Path:
    """Write a checked ONNX model of some nodes; inputs and outputs are name: (datatype, shape)."""
    graph = helper.make_graph(
        list(nodes),
        path.stem,
        [_value(name, *spec) for name, spec in inputs.items()],
        [_value(name, *spec) for name, spec in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION  # of the oldest onnxruntime that we support
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def write_fake(path: Path, **script: object) -> Path:
    """Write a script of the fake engine; without `inputs` and `outputs` FP32 rows of 4 are echoed.

    Other keys (latency_ms, fail_on, max_batch_size ...) are those of engines/fake.py.
    """
    document: dict[str, object] = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document | script))
    return path


def _value(name: str, datatype: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, ONNX_TYPES[datatype], list(shape))
