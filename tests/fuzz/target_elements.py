"""Elements of JSON tensors: the short way and the long one agree, there and back.

An input is the datatype, the number of dimensions, the dimensions, a byte each, then data: taken
once as JSON text and once as raw bytes.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from random import Random
from typing import Final

import msgspec

from engines.tensors import BYTES, DATATYPES, Tensor, check_shape
from gateway.errors import Unrepresentable
from gateway.http_api import elements
from tests.fuzz.target_http_codec import CALLERS_FAULT

NAMES: Final = sorted(DATATYPES)
MAX_DIMENSIONS: Final = 5
WORDS: Final = (
    b"[[",
    b"]]",
    b"],[",
    b"[]",
    b"1e308",
    b"1e999",
    b"3.4028235677973366e38",
    b"65519.99999",
    b"5.960464477539063e-8",
    b"-0.0",
    b"1.0",
    b"true",
    b"null",
    b"18446744073709551615",
    b"-9223372036854775808",
    b'"a"',
    b" ",
)


def seeds() -> list[bytes]:
    """Return data of each datatype, flat and nested, right, short and out of range."""
    random = Random(3)
    made = []
    for number in range(len(NAMES)):
        for shape in ((2,), (2, 2), (1, 2, 2), (0,), (2, 0), (1, 1, 1, 1, 1)):
            count = math.prod(shape)
            flat: list[object] = [
                random.choice((0, 1, True, 0.5, -1, 300, 70_000, "a", 1e30))
                if random.random() < 0.1
                else random.choice((0, 1))
                for _ in range(count)
            ]
            nested: object = flat
            for size in shape[:0:-1]:
                if isinstance(nested, list) and size:
                    nested = [nested[at : at + size] for at in range(0, len(nested), size)]
            for data in (flat, nested):
                head = bytes((number, len(shape), *shape))
                made.append(head + json.dumps(data, separators=(",", ":")).encode())
        made.append(bytes((number, 1, 2)) + random.randbytes(16))
    return made


def one(data: bytes) -> None:
    """Decode and encode an input in both ways."""
    if len(data) < 2:
        return
    datatype = NAMES[data[0] % len(NAMES)]
    end = 2 + data[1] % (MAX_DIMENSIONS + 1)
    shape = tuple(data[2:end])
    try:
        check_shape("x", shape)
    except CALLERS_FAULT:
        return
    try_decoding(datatype, shape, data[end:])
    item_bytes = DATATYPES[datatype].item_bytes
    size = math.prod(shape) * item_bytes
    if datatype != BYTES and size <= len(data) - end:
        try_encoding(Tensor("x", datatype, shape, data[end : end + size]))


def try_decoding(datatype: str, shape: tuple[int, ...], text: bytes) -> None:
    """Compare the ways from JSON."""
    try:
        raw = msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return  # the body's decoder has refused it
    short = elements.pack(datatype, shape, raw)
    long: bytes | None = None
    with suppress(*CALLERS_FAULT):
        long = elements.decode("x", datatype, shape, raw)
    assert short is None or short == long, f"{short!r} is not {long!r}"


def try_encoding(tensor: Tensor) -> None:
    """Compare the ways to JSON."""
    short = elements.unpack(tensor, elements.layout_of(tensor.datatype, tensor.shape))
    long: bytes | None = None
    with suppress(Unrepresentable):
        long = elements.encode(tensor)
    assert short is None or short == long, f"{short!r} is not {long!r}"
