"""onnxruntime's element types as protocol datatypes, and what numpy cannot say of them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from engines.base import TensorSpec
from engines.errors import InvalidInput, ModelLoadError
from engines.tensors import BYTES, Array


class ElementType(NamedTuple):
    """One element type of ONNX."""

    number: int
    """As in TensorProto.DataType."""
    datatype: str
    """Protocol name."""


ELEMENT_TYPES: Final[dict[str, ElementType]] = {
    "tensor(float)": ElementType(1, "FP32"),
    "tensor(uint8)": ElementType(2, "UINT8"),
    "tensor(int8)": ElementType(3, "INT8"),
    "tensor(uint16)": ElementType(4, "UINT16"),
    "tensor(int16)": ElementType(5, "INT16"),
    "tensor(int32)": ElementType(6, "INT32"),
    "tensor(int64)": ElementType(7, "INT64"),
    "tensor(string)": ElementType(8, BYTES),
    "tensor(bool)": ElementType(9, "BOOL"),
    "tensor(float16)": ElementType(10, "FP16"),
    "tensor(double)": ElementType(11, "FP64"),
    "tensor(uint32)": ElementType(12, "UINT32"),
    "tensor(uint64)": ElementType(13, "UINT64"),
    "tensor(bfloat16)": ElementType(16, "BF16"),
}
"""onnxruntime's words for what can be served."""
ONNX_NUMBERS: Final = {row.datatype: row.number for row in ELEMENT_TYPES.values()}
DATATYPES: Final = {row.number: row.datatype for row in ELEMENT_TYPES.values()}


def specs(nodes: Sequence[Any], kind: str) -> tuple[TensorSpec, ...]:  # Any: untyped NodeArg
    """Return a session's inputs or outputs; -1 is a dimension that varies.

    Raises:
        ModelLoadError: the protocol has no such type.
    """
    out = []
    for node in nodes:
        element_type = ELEMENT_TYPES.get(node.type)
        if element_type is None:
            raise ModelLoadError(f"{kind} {node.name!r} is a {node.type}, which cannot be served")
        shape = tuple(d if isinstance(d, int) and d >= 0 else -1 for d in node.shape)
        out.append(TensorSpec(name=node.name, datatype=element_type.datatype, shape=shape))
    return tuple(out)


def as_text(name: str, array: Array) -> Array:
    """Return BYTES elements as the str objects that onnxruntime takes.

    Raises:
        InvalidInput: an element is not UTF-8.
    """
    try:
        text = [element.decode() for element in array.reshape(-1).tolist()]
    except UnicodeDecodeError:
        raise InvalidInput(f"input {name!r}: an element is not UTF-8 text") from None
    out = np.empty(len(text), dtype=object)
    out[:] = text
    return out.reshape(array.shape)


def as_bytes(array: Array) -> Array:
    """Return onnxruntime's str objects as BYTES elements."""
    out = np.empty(array.size, dtype=object)
    out[:] = [element.encode() for element in array.reshape(-1).tolist()]
    return out.reshape(array.shape)


def bf16_bits(value: Any) -> Array:  # Any: untyped OrtValue
    """Copy a BF16 tensor out of the runtime as bit patterns: numpy has no type for it."""
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, np.uint16).reshape(value.shape())
