"""JSON elements: what the short way takes, what it leaves, and that it never lets wrong data by."""

from __future__ import annotations

import struct

import msgspec
import pytest

from engines.errors import InvalidInput
from engines.tensors import Tensor, encode_bytes
from gateway.errors import MalformedRequest
from gateway.http_api import elements


@pytest.mark.parametrize(
    ("datatype", "shape", "text", "raw"),
    [
        ("FP32", (1, 2), b"[1.5, 2]", struct.pack("<2f", 1.5, 2)),
        ("FP32", (1, 2), b"[[1.5, 2]]", struct.pack("<2f", 1.5, 2)),
        ("FP16", (2,), b"[65504, -0.0]", struct.pack("<2e", 65_504, -0.0)),
        ("INT64", (1,), b"[9007199254740993]", struct.pack("<q", 9_007_199_254_740_993)),
        ("UINT64", (1,), b"[18446744073709551615]", b"\xff" * 8),
        ("BOOL", (2, 1, 1), b"[[[true]], [[false]]]", b"\1\0"),
        ("FP64", (), b"[0.1]", struct.pack("<d", 0.1)),
        ("INT8", (0, 3), b"[]", b""),
        ("INT8", (2, 0), b"[[], []]", b""),
    ],
)
def test_plain_data_goes_the_short_way(
    datatype: str, shape: tuple[int, ...], text: bytes, raw: bytes
) -> None:
    assert elements.pack(datatype, shape, msgspec.Raw(text)) == raw
    assert elements.decode("x", datatype, shape, msgspec.Raw(text)) == raw


@pytest.mark.parametrize(
    ("datatype", "shape", "text"),
    [
        ("FP32", (1,), b"[3.5e38]"),
        ("FP16", (1,), b"[65520]"),
        ("FP64", (1,), b"[1e400]"),
        ("INT8", (1,), b"[128]"),
        ("UINT64", (1,), b"[-1]"),
        ("INT32", (1,), b"[1.0]"),
        ("FP32", (1,), b"[true]"),
        ("BOOL", (1,), b"[1]"),
        ("FP32", (1,), b'["1"]'),
        ("FP32", (1,), b"[null]"),
        ("FP32", (2,), b"[1]"),
        ("FP32", (2,), b"[1, 2, 3]"),
        ("FP32", (2, 2), b"[[1, 2, 3], [4]]"),
        ("FP32", (2, 2), b"[[1, 2, 3, 4]]"),
        ("FP32", (1, 1), b"[[[1]]]"),
        ("FP32", (2, 0), b"[[]]"),
        ("FP32", (1,), b"1"),
        ("BF16", (1,), b"[1]"),
    ],
)
def test_wrong_data_is_left_to_the_long_way_which_says_why(
    datatype: str, shape: tuple[int, ...], text: bytes
) -> None:
    assert elements.pack(datatype, shape, msgspec.Raw(text)) is None
    with pytest.raises((InvalidInput, MalformedRequest), match="input 'x': "):
        elements.decode("x", datatype, shape, msgspec.Raw(text))


@pytest.mark.parametrize(
    ("datatype", "shape", "text"),
    [
        ("BYTES", (1, 2), b'["\x94a", "b"]'),
        ("BYTES", (1, 2), b'[["\x94a", "b"]]'),
        ("BYTES", (1, 1, 1, 1, 1), b'[[[[["\xed\xa0\x80"]]]]]'),
        ("BYTES", (1,), b'"\xff"'),
        ("FP32", (1,), b'["\xff"]'),
        ("FP32", (2,), b'[1, "\xff"]'),
        ("FP32", (1, 1), b'[["\xff"]]'),
        ("BOOL", (1,), b'[{"\xff": 1}]'),
    ],
)
def test_text_that_is_no_utf_8_is_the_callers_fault(
    datatype: str, shape: tuple[int, ...], text: bytes
) -> None:
    assert elements.pack(datatype, shape, msgspec.Raw(text)) is None
    with pytest.raises((InvalidInput, MalformedRequest), match="input 'x': "):
        elements.decode("x", datatype, shape, msgspec.Raw(text))


@pytest.mark.parametrize(
    ("datatype", "shape"),
    [("BYTES", (1,)), ("BF16", (1,)), ("X", (1,)), ("FP32", (-1,)), ("FP32", (1 << 60,))],
)
def test_nothing_is_prepared_for_what_has_no_short_way(
    datatype: str, shape: tuple[int, ...]
) -> None:
    assert elements.layout_of(datatype, shape) is None


def test_data_nested_deeper_than_the_short_way_goes_is_right_all_the_same() -> None:
    text = msgspec.Raw(b"[[[[[1, 2]]]]]")
    assert elements.pack("INT8", (1, 1, 1, 1, 2), text) is None
    assert elements.decode("x", "INT8", (1, 1, 1, 1, 2), text) == b"\1\2"


def test_text_and_numbers_that_json_lacks_are_written_the_long_way_or_not_at_all() -> None:
    layout = elements.layout_of("FP32", (1,))
    nan = Tensor("y", "FP32", (1,), struct.pack("<f", float("nan")))
    assert elements.unpack(nan, layout) is None
    tensor = Tensor("y", "BYTES", (1,), encode_bytes(["né".encode()]))
    assert elements.unpack(tensor, elements.layout_of("BYTES", (1,))) is None
    assert elements.encode(tensor) == '["né"]'.encode()


def test_numbers_are_written_as_the_double_that_their_datatype_holds() -> None:
    tensor = Tensor("y", "FP32", (2,), memoryview(struct.pack("<2f", 0.1, 1)))
    text = elements.unpack(tensor, elements.layout_of("FP32", (2,)))
    assert text == elements.encode(tensor) == b"[0.10000000149011612,1.0]"
