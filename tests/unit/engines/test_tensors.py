"""The datatype table, raw tensors, and joining and splitting along the batch axis."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from engines.errors import InvalidInput
from engines.tensors import (
    DATATYPES,
    Tensor,
    check_data,
    check_element_count,
    check_shape,
    datatype_of,
    decode_bytes,
    encode_bytes,
    from_array,
    join_rows,
    split_rows,
    to_array,
)


@pytest.mark.parametrize(
    ("name", "item_bytes"),
    [
        ("BOOL", 1),
        ("UINT8", 1),
        ("UINT16", 2),
        ("UINT32", 4),
        ("UINT64", 8),
        ("INT8", 1),
        ("INT16", 2),
        ("INT32", 4),
        ("INT64", 8),
        ("FP16", 2),
        ("FP32", 4),
        ("FP64", 8),
        ("BF16", 2),
        ("BYTES", 0),
    ],
)
def test_every_datatype_of_the_protocol_has_its_size_on_the_wire(
    name: str, item_bytes: int
) -> None:
    assert datatype_of(name, "x").item_bytes == item_bytes
    assert len(DATATYPES) == 14


def test_an_unknown_datatype_is_refused_with_the_name_of_the_input() -> None:
    with pytest.raises(InvalidInput, match=r"input 'x': unknown datatype 'FP8'"):
        datatype_of("FP8", "x")


def test_wire_data_are_little_endian() -> None:
    data = struct.pack("<3i", 1, -2, 3)
    assert to_array("INT32", (3,), data).tolist() == [1, -2, 3]
    assert from_array("x", "INT32", np.array([1, -2, 3], "<i4")).data == data


def test_a_tensor_of_an_aligned_buffer_is_a_view_and_read_only() -> None:
    data = struct.pack("<2f", 1.5, 2.5)
    array = Tensor("x", "FP32", (2, 1), data).array()
    assert array.shape == (2, 1)
    assert not array.flags.owndata
    assert not array.flags.writeable


@pytest.mark.parametrize("offset", range(1, 8))
def test_a_tensor_behind_a_header_of_odd_length_is_aligned_for_kernels(offset: int) -> None:
    body = b"h" * offset + struct.pack("<2d", 1.5, -2.5)
    array = to_array("FP64", (2,), memoryview(body)[offset:])
    assert array.flags.aligned
    assert array.tolist() == [1.5, -2.5]


def test_a_scalar_and_an_empty_tensor_keep_their_shapes() -> None:
    assert to_array("FP32", (), struct.pack("<f", 2.0)).shape == ()
    assert to_array("FP32", (3, 0, 2), b"").shape == (3, 0, 2)
    assert to_array("BYTES", (0, 2), b"").shape == (0, 2)


def test_bytes_elements_are_framed_by_their_lengths() -> None:
    wire = encode_bytes([b"ab", b"", b"c\0d"])
    assert wire == b"\x02\0\0\0ab\0\0\0\0\x03\0\0\0c\0d"
    assert decode_bytes(wire) == [b"ab", b"", b"c\0d"]
    assert decode_bytes(memoryview(wire)) == [b"ab", b"", b"c\0d"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\x02\0\0\0a", "BYTES element at byte 0 runs past the end of the data"),
        (b"\x01\0\0\0ab", "BYTES data ends inside the length at byte 5"),
        (b"\xff\xff\xff\xff", "BYTES element at byte 0 runs past the end of the data"),
    ],
)
def test_broken_bytes_framing_is_refused_with_its_place(data: bytes, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        check_data(Tensor("x", "BYTES", (1,), data))


def test_a_wrong_number_of_bytes_elements_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"input 'x': 1 elements given, shape \[2\] takes 2"):
        check_data(Tensor("x", "BYTES", (2,), encode_bytes([b"a"])))
    with pytest.raises(InvalidInput, match="3 elements given"):
        check_element_count("x", (2, 1), 3)


@pytest.mark.parametrize("size", [0, 15, 17, 32])
def test_a_byte_count_that_contradicts_the_shape_is_refused(size: int) -> None:
    with pytest.raises(InvalidInput, match=rf"{size} bytes given, shape \[2, 2\] of FP32 takes 16"):
        check_data(Tensor("x", "FP32", (2, 2), bytes(size)))


def test_a_negative_dimension_is_refused() -> None:
    with pytest.raises(InvalidInput, match="negative dimension"):
        check_shape("x", (2, -1))


@pytest.mark.parametrize(
    "shape", [(1 << 70,), (1 << 31, 1 << 31), (0, 1 << 70), (1, 0, 1 << 40, 1 << 40)]
)
def test_a_shape_that_no_array_can_have_is_refused_even_when_it_is_empty(
    shape: tuple[int, ...],
) -> None:
    with pytest.raises(InvalidInput, match="too large"):
        check_data(Tensor("x", "FP64", shape, b""))


def test_the_largest_empty_shape_that_is_accepted_can_become_an_array() -> None:
    tensor = Tensor("x", "FP64", (1, 0, (1 << 48) - 1), b"")
    check_data(tensor)
    assert tensor.array().size == 0
    assert join_rows([tensor] * 4096).shape[0] == 4096


def test_rows_of_several_requests_are_joined_in_order() -> None:
    parts = [
        from_array("x", "INT64", np.array(rows, np.int64)) for rows in ([[1]], [[2], [3]], [[4]])
    ]
    assert join_rows(parts).tolist() == [[1], [2], [3], [4]]


def test_rows_of_one_request_are_not_copied() -> None:
    data = struct.pack("<2f", 1, 2)
    assert not join_rows([Tensor("x", "FP32", (2, 1), data)]).flags.owndata


def test_an_output_is_split_into_the_rows_of_each_request() -> None:
    output = np.arange(12, dtype=np.float32).reshape(6, 2)
    parts = split_rows("y", "FP32", output, [1, 3, 2])
    assert [part.shape for part in parts] == [(1, 2), (3, 2), (2, 2)]
    assert [part.array().tolist() for part in parts] == [
        output[0:1].tolist(),
        output[1:4].tolist(),
        output[4:6].tolist(),
    ]


def test_split_tensors_do_not_change_with_the_engines_buffer() -> None:
    output = np.ones((2, 1), np.float32)
    parts = split_rows("y", "FP32", output, [1, 1])
    output[:] = 7
    assert [part.array().item() for part in parts] == [1.0, 1.0]


def test_an_output_that_is_not_contiguous_is_split_by_rows() -> None:
    output = np.arange(12, dtype=np.int32).reshape(3, 4).T
    parts = split_rows("y", "INT32", output, [1, 3])
    assert parts[0].array().tolist() == output[:1].tolist()
    assert parts[1].array().tolist() == output[1:].tolist()


def test_bytes_outputs_are_split_into_the_rows_of_each_request() -> None:
    output = np.array([[b"a", b"bb"], [b"", b"c\0"], [b"d", b"e"]], dtype=object)
    parts = split_rows("y", "BYTES", output, [2, 1])
    assert [part.array().tolist() for part in parts] == [
        [[b"a", b"bb"], [b"", b"c\0"]],
        [[b"d", b"e"]],
    ]


def test_an_output_without_elements_is_split_into_empty_tensors() -> None:
    parts = split_rows("y", "FP32", np.empty((3, 0), np.float32), [1, 2])
    assert [(part.shape, bytes(part.data)) for part in parts] == [((1, 0), b""), ((2, 0), b"")]


def test_bf16_arrays_are_bit_patterns() -> None:
    tensor = from_array("x", "BF16", np.array([0x3F80, 0xC000], np.uint16))
    assert tensor.data == b"\x80\x3f\x00\xc0"
    assert tensor.array().tolist() == [0x3F80, 0xC000]
