"""Writes a network as an ONNX file that leaves its weights to a file beside it.

The only file here that needs the package onnx, and only to write: the graph without its weights
takes kilobytes, travels easily, and is read by onnxruntime alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from loadtests.gpu.graph import INPUT, OUTPUT, WEIGHTS_FILE, Graph, Operation

FILE: Final = "model.onnx"
_OPSET: Final = 17
_IR_VERSION: Final = 8
_TYPES: Final = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64}


def write(graph: Graph, folder: Path) -> Path:
    """Write model.onnx and the weights' file into a folder; return the former."""
    graph.write_weights(folder)
    written = _Written(graph)
    for operation in graph.operations:
        _KINDS[operation.kind](written, operation)
    written.node("Identity", [graph.result], OUTPUT)
    describe = helper.make_tensor_value_info
    made = helper.make_graph(
        written.nodes,
        "network",
        [describe(INPUT, _TYPES[graph.datatype], ["rows", *graph.shape])],
        [describe(OUTPUT, TensorProto.FLOAT, ["rows", graph.classes])],
        [*_outside(graph), *written.constants],
    )
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    path = folder / FILE
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(path)
    return path


def _outside(graph: Graph) -> list[onnx.TensorProto]:
    """Return the weights as references into their file."""
    tensors = []
    for name, place in graph.places():
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT)
        tensor.dims.extend(graph.weights[name].shape)
        tensor.data_location = TensorProto.EXTERNAL
        entries = {
            "location": WEIGHTS_FILE,
            "offset": place.offset_bytes,
            "length": place.size_bytes,
        }
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    return tensors


class _Written:
    """Nodes and small constants as they come."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    # Any: what ONNX has attributes of.
    def node(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node; return its output's name."""
        output = output or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def numbers(self, values: Sequence[int] | float | int) -> str:
        """Add a constant: INT64 of whole numbers, else FP32."""
        dtype = np.float32 if isinstance(values, float) else np.int64
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name


def _convolution(to: _Written, operation: Operation) -> None:
    stride, padding = operation.attributes["stride"], operation.attributes["padding"]
    size = to.graph.weights[operation.inputs[1]].shape[2:]
    to.node(
        "Conv",
        operation.inputs,
        operation.output,
        kernel_shape=list(size),
        strides=[stride, stride],
        pads=[padding] * 4,
    )


def _max_pool(to: _Written, operation: Operation) -> None:
    size, stride, padding = (operation.attributes[key] for key in ("size", "stride", "padding"))
    to.node(
        "MaxPool",
        operation.inputs,
        operation.output,
        kernel_shape=[size, size],
        strides=[stride, stride],
        pads=[padding] * 4,
    )


def _mean_of_channels(to: _Written, operation: Operation) -> None:
    pooled = to.node("GlobalAveragePool", operation.inputs)
    to.node("Flatten", [pooled], operation.output, axis=1)


def _linear(to: _Written, operation: Operation) -> None:
    value, weight, bias = operation.inputs
    to.node("Add", [to.node("MatMul", [value, weight]), bias], operation.output)


def _attention(to: _Written, operation: Operation) -> None:
    heads = operation.attributes["heads"]
    width = to.graph.classes
    apart = to.numbers([0, 0, heads, width // heads])
    query, key, content = (
        to.node("Transpose", [to.node("Reshape", [value, apart])], perm=perm)
        for value, perm in zip(
            operation.inputs, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True
        )
    )
    scores = to.node("MatMul", [query, key])
    scaled = to.node("Div", [scores, to.numbers(math.sqrt(width // heads))])
    mixed = to.node("MatMul", [to.node("Softmax", [scaled], axis=-1), content])
    together = to.node("Transpose", [mixed], perm=[0, 2, 1, 3])
    to.node("Reshape", [together, to.numbers([0, 0, width])], operation.output)


def _gelu(to: _Written, operation: Operation) -> None:
    (value,) = operation.inputs
    error = to.node("Erf", [to.node("Div", [value, to.numbers(math.sqrt(2.0))])])
    raised = to.node("Mul", [value, to.node("Add", [error, to.numbers(1.0)])])
    to.node("Mul", [raised, to.numbers(0.5)], operation.output)


def _first_place(to: _Written, operation: Operation) -> None:
    to.node("Gather", [*operation.inputs, to.numbers(0)], operation.output, axis=1)


# Any: see _Written.node.
def _same(kind: str, **attributes: Any) -> Callable[[_Written, Operation], None]:
    """Return what writes a kind that ONNX has as it is."""

    def write_same(to: _Written, operation: Operation) -> None:
        to.node(kind, operation.inputs, operation.output, **attributes)

    return write_same


_KINDS: Final[Mapping[str, Callable[[_Written, Operation], None]]] = {
    "add": _same("Add"),
    "attention": _attention,
    "convolution": _convolution,
    "embed": _same("Gather", axis=0),
    "first_place": _first_place,
    "gelu": _gelu,
    "layer_norm": _same("LayerNormalization", axis=-1, epsilon=1e-5),
    "linear": _linear,
    "max_pool": _max_pool,
    "mean_of_channels": _mean_of_channels,
    "relu": _same("Relu"),
    "tanh": _same("Tanh"),
}
