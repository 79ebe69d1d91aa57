"""The datatypes of the Open Inference Protocol, and tensors as raw bytes with a shape.

A tensor travels as its raw little-endian bytes, exactly as it stands on the wire: both protocols
hand over views, the prediction log stores them, and a batch is one `join` followed by one
`frombuffer` (six times cheaper than `np.concatenate` at 32 small rows, docs/adr/0002). numpy
arrays exist only between `join_rows` and `split_rows`.

A BYTES tensor is the concatenation of its elements, each preceded by a 4-byte little-endian length;
its arrays hold `bytes` objects. BF16 has no numpy type: its arrays are uint16 bit patterns.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from engines.errors import InvalidInput

# Any: a tensor's element type is known from its datatype string, not statically.
Array = npt.NDArray[Any]
Raw = bytes | bytearray | memoryview

BYTES: Final = "BYTES"
MAX_ELEMENTS: Final = 1 << 48
"""Bound of a shape's element count: even a batch of such shapes has a size that numpy takes."""
_LENGTH = struct.Struct("<I")


class Datatype(NamedTuple):
    """One row of the protocol's datatype table."""

    name: str
    """Protocol name, such as FP32."""
    dtype: np.dtype[Any]
    """Array element type; object for BYTES, the bit pattern for BF16."""
    item_bytes: int
    """Bytes of one element on the wire; 0 for BYTES, whose elements vary."""


def _row(name: str, dtype: str) -> Datatype:
    numpy_dtype = np.dtype(dtype)
    return Datatype(name, numpy_dtype, 0 if name == BYTES else numpy_dtype.itemsize)


DATATYPES: Final[dict[str, Datatype]] = {
    row.name: row
    for row in (
        _row("BOOL", "?"),
        _row("UINT8", "u1"),
        _row("UINT16", "<u2"),
        _row("UINT32", "<u4"),
        _row("UINT64", "<u8"),
        _row("INT8", "i1"),
        _row("INT16", "<i2"),
        _row("INT32", "<i4"),
        _row("INT64", "<i8"),
        _row("FP16", "<f2"),
        _row("FP32", "<f4"),
        _row("FP64", "<f8"),
        _row("BF16", "<u2"),
        _row(BYTES, "O"),
    )
}


class Tensor(NamedTuple):
    """A named tensor; `data` is its wire form and may be a view of a larger buffer."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Raw

    def array(self) -> Array:
        """Return the elements, shape `self.shape`; see `to_array`."""
        return to_array(self.datatype, self.shape, self.data)


def datatype_of(name: str, tensor: str) -> Datatype:
    """Look up a datatype by protocol name; `tensor` names the field in the error.

    Raises:
        InvalidInput: the protocol has no such datatype.
    """
    found = DATATYPES.get(name)
    if found is None:
        raise InvalidInput(f"input {tensor!r}: unknown datatype {name!r}")
    return found


def check_shape(tensor: str, shape: Sequence[int]) -> None:
    """Refuse negative dimensions and shapes whose element count cannot be addressed."""
    for dimension in shape:
        if dimension < 0:
            raise InvalidInput(f"input {tensor!r}: shape {list(shape)} has a negative dimension")
    # Zeros are left out: numpy also counts an empty array's other dimensions.
    if math.prod(dimension or 1 for dimension in shape) >= MAX_ELEMENTS:
        raise InvalidInput(f"input {tensor!r}: shape {list(shape)} is too large")


def check_data(tensor: Tensor) -> None:
    """Check that the bytes are exactly those the shape and datatype call for.

    Raises:
        InvalidInput: byte count or BYTES framing contradict the shape.
    """
    datatype = datatype_of(tensor.datatype, tensor.name)
    check_shape(tensor.name, tensor.shape)
    if datatype.item_bytes == 0:
        _check_bytes_elements(tensor)
        return
    expected = math.prod(tensor.shape) * datatype.item_bytes
    if len(tensor.data) != expected:
        raise InvalidInput(
            f"input {tensor.name!r}: {len(tensor.data)} bytes given, shape {list(tensor.shape)} "
            f"of {datatype.name} takes {expected}"
        )


def _check_bytes_elements(tensor: Tensor) -> None:
    try:
        found = sum(1 for _ in _bytes_bounds(tensor.data))
    except ValueError as exc:
        raise InvalidInput(f"input {tensor.name!r}: {exc}") from None
    check_element_count(tensor.name, tensor.shape, found)


def check_element_count(tensor: str, shape: Sequence[int], found: int) -> None:
    """Refuse a tensor whose number of elements is not the product of its shape."""
    expected = math.prod(shape)
    if found != expected:
        raise InvalidInput(
            f"input {tensor!r}: {found} elements given, shape {list(shape)} takes {expected}"
        )


def out_of_range(tensor: str, datatype: str) -> InvalidInput:
    """Return the error for an element that its datatype cannot hold."""
    return InvalidInput(f"input {tensor!r}: an element is out of range for {datatype}")


def _bytes_bounds(data: Raw) -> Iterable[tuple[int, int]]:
    """Yield (start, end) of each BYTES element; ValueError where the framing breaks."""
    position, size = 0, len(data)
    while position < size:
        if position + 4 > size:
            raise ValueError(f"BYTES data ends inside the length at byte {position}")
        start = position + 4
        position = start + _LENGTH.unpack_from(data, position)[0]
        if position > size:
            raise ValueError(f"BYTES element at byte {start - 4} runs past the end of the data")
        yield start, position


def encode_bytes(elements: Iterable[bytes]) -> bytes:
    """Return the wire form of BYTES elements."""
    return b"".join(part for e in elements for part in (_LENGTH.pack(len(e)), e))


def decode_bytes(data: Raw) -> list[bytes]:
    """Return the BYTES elements of a wire form; ValueError where the framing breaks."""
    view = memoryview(data)
    return [bytes(view[start:end]) for start, end in _bytes_bounds(data)]


def to_array(datatype: str, shape: Sequence[int], data: Raw) -> Array:
    """Return checked raw data as an array of `shape`; a read-only view where that can be.

    BYTES are copied, and so is data that does not start at a multiple of its element's size (a
    binary tensor behind a JSON header of odd length): compiled kernels may rely on alignment.
    """
    if datatype == BYTES:
        array = np.empty(math.prod(shape), dtype=object)
        array[:] = decode_bytes(data)
        return array.reshape(shape)
    flat = np.frombuffer(data, DATATYPES[datatype].dtype)
    return (flat if flat.flags.aligned else flat.copy()).reshape(shape)


def from_array(name: str, datatype: str, array: Array) -> Tensor:
    """Return an array of the datatype's element type as a tensor; copies the elements."""
    if datatype == BYTES:
        return Tensor(name, datatype, array.shape, encode_bytes(array.reshape(-1).tolist()))
    return Tensor(name, datatype, array.shape, array.tobytes())


def join_rows(parts: Sequence[Tensor]) -> Array:
    """Stack tensors of one name along the batch axis: (sum of rows, *item_shape)."""
    if len(parts) == 1:
        return parts[0].array()
    first = parts[0]
    rows = sum(part.shape[0] for part in parts)
    return to_array(first.datatype, (rows, *first.shape[1:]), b"".join(p.data for p in parts))


def split_rows(name: str, datatype: str, array: Array, rows: Sequence[int]) -> list[Tensor]:
    """Cut a batch output `(sum(rows), *item_shape)` into one tensor per request, in order.

    One copy of the whole output is made; the tensors are views of it.
    """
    ends = list(accumulate(rows))
    starts = [0, *ends[:-1]]
    item_shape = array.shape[1:]
    if datatype == BYTES:
        return [
            Tensor(name, datatype, (n, *item_shape), encode_bytes(array[a:b].reshape(-1).tolist()))
            for n, a, b in zip(rows, starts, ends, strict=True)
        ]
    whole = memoryview(array.tobytes())
    stride = len(whole) // ends[-1]
    return [
        Tensor(name, datatype, (n, *item_shape), whole[a * stride : b * stride])
        for n, a, b in zip(rows, starts, ends, strict=True)
    ]
