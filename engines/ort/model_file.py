"""What an ONNX file says of itself without being loaded: what its weights are kept in, and where.

Walks the protobuf fields of the file by their numbers, over a memory map: weights are stepped over,
never read, so the time follows from the number of nodes. Only fields that ONNX has had since
its first version are used. A file that is not such protobuf (onnxruntime's own format, a broken
file) gives None: whether it loads is the runtime's to say.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from engines.ort.datatypes import DATATYPES

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH: Final = 32
_EXTERNAL: Final = 1  # TensorProto.DataLocation

# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_FUNCTION_NODE: Final = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_OP_TYPE, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = (5, 10), (6, 11)
_TENSOR_DIMS, _TENSOR_DATA_TYPE, _TENSOR_DATA_LOCATION = 1, 2, 14

# Element types that weights are kept in; others (INT64, BOOL) are shapes and indices.
_WEIGHTS: Final = {
    **{number: name for number, name in DATATYPES.items() if name[:2] in ("FP", "BF")},
    2: "UINT8",
    3: "INT8",
    **dict.fromkeys((17, 18, 19, 20), "FP8"),
    21: "UINT4",
    22: "INT4",
    23: "FP4",
}
_QUANTIZERS: Final = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What a file says of itself."""

    precision: str
    """What most of the weights are kept in, such as FP32 or ``INT8 QDQ``; empty: it has none."""
    has_external_data: bool
    """Whether weights lie in files beside this one."""
    has_control_flow: bool = False
    """Whether nodes hold graphs (Loop, If, Scan): then values say how much there is to do."""


class _Field(NamedTuple):
    number: int
    wire: int
    value: int
    """Of a varint; else where the bytes start."""
    end: int


@dataclass(slots=True)
class _Found:
    elements: Counter[str] = field(default_factory=Counter)
    has_quantizers: bool = False
    has_external_data: bool = False
    has_control_flow: bool = False


def inspect(path: Path) -> ModelFile | None:
    """Read a file's own account of itself; None: it is no ONNX protobuf."""
    found = _Found()
    try:
        with (
            path.open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            if not _walk_model(data, found):
                return None
    except (OSError, ValueError, IndexError, RecursionError):
        return None
    return ModelFile(_precision(found), found.has_external_data, found.has_control_flow)


def _precision(found: _Found) -> str:
    if not found.elements:
        return ""
    # The name as a tie-break: the answer must not depend on the order of the file.
    name = max(found.elements, key=lambda name: (found.elements[name], name))
    return f"{name} QDQ" if found.has_quantizers else name


def _walk_model(data: mmap.mmap, found: _Found) -> bool:
    has_graph = False
    for part in _fields(data, 0, len(data)):
        if part.number == _MODEL_GRAPH and part.wire == _BYTES:
            has_graph = True
            _walk_graph(data, part, found, 0)
        elif part.number == _MODEL_FUNCTIONS and part.wire == _BYTES:
            for inner in _fields(data, part.value, part.end):
                if inner.number == _FUNCTION_NODE:
                    _walk_node(data, inner, found, 0)
    return has_graph


def _walk_graph(data: mmap.mmap, graph: _Field, found: _Found, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError("graphs are nested too deep")
    for part in _fields(data, graph.value, graph.end):
        if part.number == _GRAPH_NODE:
            _walk_node(data, part, found, depth)
        elif part.number == _GRAPH_INITIALIZER:
            _count_tensor(data, part, found)


def _walk_node(data: mmap.mmap, node: _Field, found: _Found, depth: int) -> None:
    for part in _fields(data, node.value, node.end):
        if part.number == _NODE_OP_TYPE:
            op_type = data[part.value : part.end].decode("utf-8", "replace")
            found.has_quantizers |= op_type in _QUANTIZERS
        elif part.number == _NODE_ATTRIBUTE:
            for inner in _fields(data, part.value, part.end):
                if inner.number in _ATTRIBUTE_TENSORS and inner.wire == _BYTES:
                    _count_tensor(data, inner, found)
                elif inner.number in _ATTRIBUTE_GRAPHS and inner.wire == _BYTES:
                    found.has_control_flow = True
                    _walk_graph(data, inner, found, depth + 1)


def _count_tensor(data: mmap.mmap, tensor: _Field, found: _Found) -> None:
    elements, data_type = 1, 0
    for part in _fields(data, tensor.value, tensor.end):
        if part.number == _TENSOR_DIMS and part.wire == _VARINT:
            elements *= part.value
        elif part.number == _TENSOR_DIMS:
            for dimension in _packed(data, part):
                elements *= dimension
        elif part.number == _TENSOR_DATA_TYPE:
            data_type = part.value
        elif part.number == _TENSOR_DATA_LOCATION:
            found.has_external_data |= part.value == _EXTERNAL
    if data_type in _WEIGHTS:
        found.elements[_WEIGHTS[data_type]] += elements


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of a message; ValueError or IndexError where it is none."""
    at = start
    while at < end:
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
        elif wire == _BYTES:
            size, value = _varint(data, at)
            at = value + size
        elif wire in (_FIXED64, _FIXED32):
            value, at = at, at + (8 if wire == _FIXED64 else 4)
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at > end or tag < 8:
            raise ValueError(f"a field runs past byte {end}")
        yield _Field(tag >> 3, wire, value, at)


def _packed(data: mmap.mmap, part: _Field) -> Iterator[int]:
    at = part.value
    while at < part.end:
        value, at = _varint(data, at)
        yield value


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"a number at byte {at} has no end")
