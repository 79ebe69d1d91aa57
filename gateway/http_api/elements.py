"""The elements of a tensor: JSON text <-> raw bytes, and what of it JSON cannot carry.

Knows elements, not the bodies around them. Each direction has two ways with one result. The short
way is a typed decoder of msgspec and one `struct` call, prepared once per datatype and shape; it
says nothing about what is wrong with data, only that it is not for it. The long way, through numpy,
takes what the short one leaves (text elements, odd nestings) and names every fault.

Data may be nested as the shape or flat. Numbers decode strictly: no text, no booleans; integers are
fine where floats are wanted.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from types import GenericAlias
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from engines.errors import InvalidInput
from engines.tensors import (
    BYTES,
    DATATYPES,
    Raw,
    Tensor,
    check_element_count,
    check_shape,
    encode_bytes,
    out_of_range,
)
from gateway.errors import MalformedRequest, Unrepresentable
from gateway.memo import Memo

# Any, here and below: types as values, decoders of different types, JSON elements.
_ELEMENT: Final[Mapping[str, Any]] = {"b": bool, "i": int, "u": int, "f": float, "O": str}


def _lists(element: Any, depth: int) -> Any:
    """Return the type of lists in lists."""
    for _ in range(depth):
        element = GenericAlias(list, (element,))
    return element


_DECODERS: Final[Mapping[tuple[str, int], Any]] = {
    (kind, depth): msgspec.json.Decoder(_lists(element, depth)).decode
    for kind, element in _ELEMENT.items()
    for depth in (1, 2, 3, 4)
}
_LETTERS: Final[Mapping[str, str]] = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
"""Of struct, by datatype; BYTES and BF16 have none."""
_MAX_DIMENSIONS: Final = 32
_BRACKET: Final = ord("[")
_encode: Final = msgspec.json.Encoder().encode
_WRONG: Final = (msgspec.MsgspecError, struct.error, ValueError, OverflowError, IndexError)
"""What the short way raises for data that it is not for."""


class Layout(NamedTuple):
    """What is prepared for the tensors of one datatype and shape."""

    decode: Callable[[msgspec.Raw], list[Any]]
    decode_nested: Callable[[msgspec.Raw], list[Any]] | None
    """None where data of this shape has no nested form, or a very deep one."""
    pack: Callable[..., bytes]
    unpack: Callable[[Raw], tuple[Any, ...]]


_layouts: Final[Memo[tuple[str, tuple[int, ...]], Layout]] = Memo(256)


def layout_of(datatype: str, shape: tuple[int, ...]) -> Layout | None:
    """Return what is prepared for a datatype and shape; None if the short way is not for them."""
    key = (datatype, shape)
    return _layouts.recent.get(key) or _layouts.get(key) or _prepare(datatype, shape)


def _prepare(datatype: str, shape: tuple[int, ...]) -> Layout | None:
    letter = _LETTERS.get(datatype)
    if letter is None or len(shape) > _MAX_DIMENSIONS:
        return None
    try:
        check_shape("", shape)
    except InvalidInput:
        return None
    kind = DATATYPES[datatype].dtype.kind
    packer = struct.Struct(f"<{math.prod(shape)}{letter}")
    nested = _DECODERS.get((kind, len(shape))) if len(shape) > 1 else None
    layout = Layout(_DECODERS[kind, 1], nested, packer.pack, packer.unpack)
    return _layouts.put((datatype, shape), layout)


def pack(datatype: str, shape: tuple[int, ...], data: msgspec.Raw) -> bytes | None:
    """Return JSON elements as raw bytes; None if the short way is not for them.

    Whatever it returns, a tensor of this datatype and shape is right.
    """
    layout = layout_of(datatype, shape)
    if layout is None:
        return None
    decode, decode_nested, pack_all, _ = layout
    try:
        if decode_nested is None or memoryview(data)[1] != _BRACKET:
            return pack_all(*decode(data))
        return pack_all(*_flat(decode_nested(data), shape))
    except _WRONG:
        return None


def _flat(level: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Return the elements of lists nested as deep as a shape; ValueError for other lengths."""
    if len(level) != shape[0]:
        raise ValueError
    for size in shape[1:]:
        if not set(map(len, level)) <= {size}:
            raise ValueError
        level = list(chain.from_iterable(level))
    return level


def decode(name: str, datatype: str, shape: Sequence[int], data: msgspec.Raw) -> bytes:
    """Return JSON elements as raw bytes: the long way.

    Raises:
        MalformedRequest, InvalidInput: an element of the wrong kind or out of range, the wrong
            number of them, or a nesting that is not the shape's.
    """
    row = DATATYPES[datatype]
    if datatype == "BF16":
        raise InvalidInput(f"input {name!r}: BF16 has no JSON form, send it as binary data")
    try:
        elements = _DECODERS[row.dtype.kind, 1](data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        elements = _flatten(name, datatype, shape, data)
    check_element_count(name, shape, len(elements))
    if datatype == BYTES:
        return encode_bytes(element.encode() for element in elements)
    try:
        with np.errstate(over="ignore"):
            array = np.array(elements, dtype=row.dtype)
    except (OverflowError, ValueError):
        raise out_of_range(name, datatype) from None
    if row.dtype.kind == "f" and not np.isfinite(array).all():
        raise out_of_range(name, datatype)
    return array.tobytes()


def _flatten(name: str, datatype: str, shape: Sequence[int], data: msgspec.Raw) -> list[Any]:
    """Flatten nested data, whose nesting must be that of the shape."""
    try:
        level: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise MalformedRequest(f"input {name!r}: data: {exc}") from None
    if not isinstance(level, list):
        raise InvalidInput(f"input {name!r}: data is no array")
    if any(isinstance(item, list) for item in level):
        level = [level]
        for size in shape:
            if not all(isinstance(item, list) and len(item) == size for item in level):
                raise InvalidInput(f"input {name!r}: data is not nested as shape {list(shape)}")
            level = [element for item in level for element in item]
    try:
        flat: list[Any] = msgspec.convert(
            level, _lists(_ELEMENT[DATATYPES[datatype].dtype.kind], 1)
        )
    except msgspec.ValidationError as exc:
        raise InvalidInput(f"input {name!r}: data for {datatype}: {exc}") from None
    return flat


def unpack(tensor: Tensor, layout: Layout | None) -> bytes | None:
    """Return a tensor's elements as JSON; None if the short way is not for them."""
    if layout is None:
        return None
    try:
        text = _encode(layout.unpack(tensor.data))
    except struct.error:
        return None
    # NaN and infinity are written as null; no number and no boolean has an n.
    return None if b"n" in text else text


def encode(tensor: Tensor) -> bytes:
    """Return a tensor's elements as JSON: the long way.

    Raises:
        Unrepresentable: JSON cannot carry them.
    """
    advice = "ask for it with binary_data"
    if tensor.datatype == "BF16":
        raise Unrepresentable(f"output {tensor.name!r}: BF16 has no JSON form, {advice}")
    array = tensor.array()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Unrepresentable(
            f"output {tensor.name!r} holds NaN or infinity, which JSON cannot carry: {advice}"
        )
    elements = array.reshape(-1).tolist()
    if tensor.datatype == BYTES:
        try:
            elements = [element.decode() for element in elements]
        except UnicodeDecodeError:
            raise Unrepresentable(
                f"output {tensor.name!r} holds bytes that are no UTF-8 text: {advice}"
            ) from None
    return _encode(elements)
