"""Raw tensors: what goes in comes out, for every datatype of the protocol."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import InvalidInput
from engines.tensors import (
    BYTES,
    DATATYPES,
    Array,
    Tensor,
    check_data,
    decode_bytes,
    encode_bytes,
    from_array,
    join_rows,
    split_rows,
    to_array,
)

FIXED = sorted(set(DATATYPES) - {BYTES})
elements = st.lists(st.binary(max_size=12), max_size=20)
item_shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
row_counts = st.lists(st.integers(1, 4), min_size=1, max_size=6)


@st.composite
def tensors(
    draw: st.DrawFn,
    datatype: str,
    rows: int | None = None,
    item_shape: tuple[int, ...] | None = None,
) -> Tensor:
    """Draw a tensor of any bits; a drawn shape may be a scalar's or have no elements."""
    if item_shape is None:
        item_shape = draw(item_shapes)
    shape = item_shape if rows is None else (rows, *item_shape)
    count = math.prod(shape)
    if datatype == BYTES:
        cells = draw(st.lists(st.binary(max_size=6), min_size=count, max_size=count))
        return Tensor("x", datatype, shape, encode_bytes(cells))
    if datatype == "BOOL":
        bits = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        return Tensor("x", datatype, shape, bytes(bits))
    size = count * DATATYPES[datatype].item_bytes
    return Tensor("x", datatype, shape, draw(st.binary(min_size=size, max_size=size)))


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_a_tensor_survives_the_way_to_an_array_and_back(datatype: str, data: st.DataObject) -> None:
    tensor = data.draw(tensors(datatype))
    check_data(tensor)
    array = tensor.array()
    assert array.shape == tensor.shape
    assert from_array("x", datatype, array) == tensor


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
@settings(deadline=None, max_examples=50)
@given(rows=row_counts, item_shape=item_shapes, data=st.data())
def test_joined_requests_split_into_themselves(
    datatype: str, rows: list[int], item_shape: tuple[int, ...], data: st.DataObject
) -> None:
    parts = [data.draw(tensors(datatype, n, item_shape)) for n in rows]
    whole = join_rows(parts)
    assert whole.shape == (sum(rows), *item_shape)
    back = split_rows("x", datatype, whole, rows)
    assert [(p.name, p.datatype, p.shape, bytes(p.data)) for p in back] == [
        (p.name, p.datatype, p.shape, bytes(p.data)) for p in parts
    ]


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
@settings(deadline=None, max_examples=30)
@given(rows=row_counts, data=st.data())
def test_row_i_of_a_batch_is_row_i_of_its_request(
    datatype: str, rows: list[int], data: st.DataObject
) -> None:
    parts = [data.draw(tensors(datatype, n, (2,))) for n in rows]
    whole = join_rows(parts)
    position = 0
    for part in parts:
        for row in part.array():
            assert row.tobytes() == whole[position].tobytes() or same(row, whole[position])
            position += 1
    assert position == len(whole)


def same(a: Array, b: Array) -> bool:
    return bool(a.dtype == object and a.tolist() == b.tolist())


@pytest.mark.parametrize("datatype", FIXED)
@settings(deadline=None, max_examples=30)
@given(offset=st.integers(0, 9), data=st.data())
def test_where_a_tensor_lies_in_a_body_changes_nothing(
    datatype: str, offset: int, data: st.DataObject
) -> None:
    tensor = data.draw(tensors(datatype))
    body = b"\xee" * offset + bytes(tensor.data) + b"\xee"
    view = memoryview(body)[offset : offset + len(tensor.data)]
    array = to_array(datatype, tensor.shape, view)
    assert array.flags.aligned
    assert array.tobytes() == bytes(tensor.data)


@pytest.mark.parametrize("datatype", FIXED)
@settings(deadline=None, max_examples=30)
@given(shape=st.lists(st.integers(0, 5), max_size=3), size=st.integers(0, 1_200))
def test_exactly_the_byte_count_of_the_shape_is_accepted(
    datatype: str, shape: list[int], size: int
) -> None:
    expected = math.prod(shape) * DATATYPES[datatype].item_bytes
    check_data(Tensor("x", datatype, tuple(shape), bytes(expected)))
    if size != expected:
        with pytest.raises(InvalidInput):
            check_data(Tensor("x", datatype, tuple(shape), bytes(size)))


@settings(deadline=None)
@given(elements)
def test_bytes_elements_survive_their_framing(cells: list[bytes]) -> None:
    wire = encode_bytes(cells)
    assert decode_bytes(wire) == cells
    assert len(wire) == sum(4 + len(cell) for cell in cells)


@settings(deadline=None, max_examples=300)
@given(data=st.binary(max_size=40), count=st.integers(0, 6))
def test_any_bytes_are_either_refused_or_frame_exactly_the_elements_of_the_shape(
    data: bytes, count: int
) -> None:
    tensor = Tensor("x", BYTES, (count,), data)
    try:
        check_data(tensor)
    except InvalidInput:
        return
    cells = tensor.array().tolist()
    assert len(cells) == count
    assert b"".join(struct.pack("<I", len(cell)) + cell for cell in cells) == data


@settings(deadline=None)
@given(cells=st.lists(st.binary(max_size=5), min_size=1, max_size=5), cut=st.integers(1, 9))
def test_bytes_cut_short_are_always_refused(cells: list[bytes], cut: int) -> None:
    wire = encode_bytes(cells)
    tensor = Tensor("x", BYTES, (len(cells),), wire[: max(0, len(wire) - cut)])
    with pytest.raises(InvalidInput):
        check_data(tensor)


@settings(deadline=None)
@given(shape=st.lists(st.integers(0, 1 << 64), min_size=1, max_size=5))
def test_every_empty_shape_that_is_accepted_can_become_an_array(shape: list[int]) -> None:
    tensor = Tensor("x", "FP64", (*shape, 0), b"")
    try:
        check_data(tensor)
    except InvalidInput:
        return
    assert np.size(tensor.array()) == 0
