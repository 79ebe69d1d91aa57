"""Laying requests into a batch and cutting its answer: slots, copies and views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import ModelMetadata, TensorSpec
from engines.batch_queue import CallbackRequest, QueuedRequest
from engines.layout import SLOT_FROM_BYTES, VIEW_FROM_BYTES, Layout
from engines.tensors import BYTES, DATATYPES, Array, Tensor, encode_bytes, from_array

FIXED = sorted(set(DATATYPES) - {BYTES})
SLOT_WIDTH = SLOT_FROM_BYTES // 4
"""Elements of an FP32 row that goes into a slot."""


def spec(name: str, *item_shape: int, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=(-1, *item_shape))


def layout(
    *inputs: TensorSpec, outputs: Sequence[TensorSpec] = (), max_batch_size: int = 8
) -> Layout:
    return Layout(
        ModelMetadata(
            inputs=inputs,
            outputs=tuple(outputs),
            max_batch_size=max_batch_size,
            platform="test",
            engine="test 1",
            device="cpu",
        )
    )


def asking(*inputs: Tensor) -> QueuedRequest:
    """Return a request of tensors that have a batch axis."""
    return CallbackRequest(
        inputs=inputs,
        rows=inputs[0].shape[0],
        shape_key=(),
        enqueued_ns=0,
        on_done=lambda outcome: None,
    )


def wide(value: float, rows: int = 1, width: int = SLOT_WIDTH, name: str = "x") -> Tensor:
    """Return rows of one value; as wide as a slot takes them."""
    return from_array(name, "FP32", np.full((rows, width), value, np.float32))


def laid(made: Layout, *requests: QueuedRequest) -> dict[str, Array]:
    return dict(made.lay(requests, sum(request.rows for request in requests)))


def slot_bytes(made: Layout) -> int:
    """Return the bytes that the slots of a layout hold."""
    return sum(len(given._slot) for given in made._inputs)


# Laying


def test_small_rows_are_joined_and_need_no_slot() -> None:
    made = layout(spec("x", 2))
    joined = laid(made, asking(wide(1, width=2)), asking(wide(2, rows=2, width=2)))["x"]
    assert joined.tolist() == [[1, 1], [2, 2], [2, 2]]
    assert slot_bytes(made) == 0


@pytest.mark.parametrize(("width", "is_slot"), [(SLOT_WIDTH - 1, False), (SLOT_WIDTH, True)])
def test_rows_go_into_a_slot_from_a_size_on(width: int, is_slot: bool) -> None:
    made = layout(spec("x", -1))
    array = laid(made, asking(wide(1, width=width)), asking(wide(2, width=width)))["x"]
    assert array.tolist() == [[1] * width, [2] * width]
    assert (slot_bytes(made) > 0) is is_slot


def test_batches_of_large_rows_share_one_slot() -> None:
    made = layout(spec("x", SLOT_WIDTH))
    first = laid(made, *(asking(wide(n)) for n in range(4)))["x"]
    assert first[:, 0].tolist() == [0, 1, 2, 3]
    second = laid(made, asking(wide(7)), asking(wide(8, rows=2)))["x"]
    assert second.shape == (3, SLOT_WIDTH)
    assert second[:, -1].tolist() == [7, 8, 8]
    assert np.shares_memory(first, second)


def test_a_slot_grows_by_powers_of_two_up_to_the_largest_batch() -> None:
    made = layout(spec("x", SLOT_WIDTH), max_batch_size=6)
    sizes = []
    for rows in (2, 3, 2, 5, 6, 6):
        laid(made, asking(wide(1)), asking(wide(2, rows=rows - 1)))
        sizes.append(slot_bytes(made) // SLOT_FROM_BYTES)
    assert sizes == [2, 4, 4, 6, 6, 6]


def test_a_slot_that_grows_leaves_the_batch_before_it_alone() -> None:
    made = layout(spec("x", SLOT_WIDTH))
    before = laid(made, asking(wide(1)), asking(wide(2)))["x"]
    laid(made, *(asking(wide(9)) for _ in range(8)))
    assert before[:, 0].tolist() == [1, 2]  # an engine may still read it: of its own memory


@given(st.lists(st.tuples(st.integers(2, 8), st.sampled_from([1, 2, 3])), min_size=1, max_size=12))
def test_slots_are_bounded_whatever_shapes_come(batches: list[tuple[int, int]]) -> None:
    made = layout(spec("x", -1))
    for rows, wideness in batches:
        width = SLOT_WIDTH * wideness
        array = laid(made, *(asking(wide(n, width=width)) for n in range(rows)))["x"]
        assert array[:, 0].tolist() == list(range(rows))
        assert slot_bytes(made) <= 8 * 3 * SLOT_FROM_BYTES


def test_each_input_has_a_slot_of_its_own() -> None:
    made = layout(spec("a", SLOT_WIDTH), spec("b", SLOT_WIDTH), spec("c", 1))
    requests = [
        asking(wide(n, name="a"), wide(-n, name="b"), wide(n, name="c", width=1)) for n in (1, 2)
    ]
    arrays = laid(made, *requests)
    assert not np.shares_memory(arrays["a"], arrays["b"])
    assert [array[:, 0].tolist() for array in arrays.values()] == [[1, 2], [-1, -2], [1, 2]]


@pytest.mark.parametrize("width", [1, SLOT_WIDTH])
def test_a_request_that_is_a_batch_of_its_own_is_not_copied(width: int) -> None:
    made = layout(spec("x", width))
    tensor = wide(3, rows=2, width=width)
    array = laid(made, asking(tensor))["x"]
    assert np.shares_memory(array, np.frombuffer(tensor.data, np.uint8))
    assert array.tolist() == [[3] * width] * 2
    assert slot_bytes(made) == 0


def test_text_is_laid_element_by_element() -> None:
    made = layout(spec("t", 2, datatype=BYTES))
    rows = [[b"a", b""], [b"\0b", b"long" * 2_000], [b"c", b"d"]]
    tensors = [Tensor("t", BYTES, (1, 2), encode_bytes(row)) for row in rows]
    assert laid(made, *map(asking, tensors))["t"].tolist() == rows
    assert slot_bytes(made) == 0


def as_view(data: bytes) -> memoryview:
    """Return data as a transport hands it over, at an odd place of a larger buffer."""
    return memoryview(b"?" + data + b"??")[1 : 1 + len(data)]


@st.composite
def batches(draw: st.DrawFn, datatype: str) -> list[Tensor]:
    """Draw the tensors of a batch: one shape per row, small or large."""
    item_bytes = DATATYPES[datatype].item_bytes
    item_shape = draw(
        st.one_of(
            st.lists(st.integers(0, 3), max_size=2).map(tuple),
            st.just((SLOT_FROM_BYTES // item_bytes,)),
            st.just((2, SLOT_FROM_BYTES // 2)),
        )
    )
    tensors = []
    for rows in draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)):
        size = rows * math.prod(item_shape) * item_bytes
        piece = draw(st.binary(min_size=1, max_size=16))
        data = (piece * (size // len(piece) + 1))[:size]
        if datatype == "BOOL":
            data = bytes(byte & 1 for byte in data)
        tensors.append(Tensor("x", datatype, (rows, *item_shape), as_view(data)))
    return tensors


@pytest.mark.parametrize("datatype", FIXED)
@given(data=st.data())
def test_a_batch_holds_the_rows_of_its_requests_one_after_another(
    datatype: str, data: st.DataObject
) -> None:
    made = layout(spec("x", datatype=datatype))
    for _ in range(2):  # the second one finds a slot that is used
        tensors = data.draw(batches(datatype))
        found = laid(made, *map(asking, tensors))["x"]
        expected = np.concatenate([tensor.array() for tensor in tensors])
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
        assert found.flags.aligned


# Cutting


def cut(array: Array, *rows: int, datatype: str = "FP32", max_batch_size: int = 64) -> list[Tensor]:
    """Cut one output among requests of so many rows."""
    made = layout(
        spec("x", 1),
        outputs=[spec("y", *array.shape[1:], datatype=datatype)],
        max_batch_size=max_batch_size,
    )
    requests = [asking(wide(0, rows=n, width=1)) for n in rows]
    return [only for (only,) in made.cut({"y": array}, requests, sum(rows))]


def is_view_of(tensor: Tensor, array: Array) -> bool:
    return bool(tensor.data) and np.shares_memory(np.frombuffer(tensor.data, np.uint8), array)


ROW = VIEW_FROM_BYTES // 4 // 4
"""Elements of an FP32 row, four of which make an output that is handed out as views."""


@pytest.mark.parametrize(("width", "is_view"), [(ROW, True), (ROW - 1, False)])
@pytest.mark.parametrize("rows", [(1, 1, 1, 1), (4,)])
def test_large_outputs_are_handed_out_as_views_and_small_ones_as_bytes(
    width: int, is_view: bool, rows: tuple[int, ...]
) -> None:
    array = np.arange(4 * width, dtype=np.float32).reshape(4, width)
    tensors = cut(array, *rows)
    assert b"".join(tensor.data for tensor in tensors) == array.tobytes()
    assert [tensor.shape for tensor in tensors] == [(n, width) for n in rows]
    assert {is_view_of(tensor, array) for tensor in tensors} == {is_view}
    assert {type(tensor.data) for tensor in tensors} == {memoryview if is_view else bytes}


def test_requests_of_several_rows_get_parts_of_one_copy() -> None:
    array = np.arange(6 * ROW, dtype=np.float32).reshape(6, ROW)
    tensors = cut(array, 1, 3, 2)
    assert [tensor.array().tolist() for tensor in tensors] == [
        array[:1].tolist(),
        array[1:4].tolist(),
        array[4:].tolist(),
    ]
    assert not any(is_view_of(tensor, array) for tensor in tensors)


def test_an_output_that_does_not_lie_in_one_piece_is_copied() -> None:
    array = np.arange(8 * ROW, dtype=np.float32).reshape(ROW, 8).T[:4]
    assert not array.flags.c_contiguous
    for rows in ((1, 1, 1, 1), (4,)):
        tensors = cut(array, *rows)
        assert b"".join(tensor.data for tensor in tensors) == array.tobytes()
        assert not any(is_view_of(tensor, array) for tensor in tensors)


def test_text_is_cut_element_by_element() -> None:
    array = np.array([[b"a"], [b"bb" * VIEW_FROM_BYTES], [b""]], object)
    for rows in ((1, 1, 1), (1, 2)):
        found = [tensor.array().tolist() for tensor in cut(array, *rows, datatype=BYTES)]
        assert [row for part in found for row in part] == array.tolist()


@pytest.mark.parametrize("rows", [(1, 1), (2, 1), (1,)])
def test_outputs_without_elements_are_cut_too(rows: tuple[int, ...]) -> None:
    tensors = cut(np.zeros((sum(rows), 0), np.float32), *rows)
    assert [(tensor.shape, bytes(tensor.data)) for tensor in tensors] == [
        ((n, 0), b"") for n in rows
    ]


@pytest.mark.parametrize("shape", [(), (0,), (1, 3), (3, 1), (4, 2)])
def test_an_output_without_the_rows_of_the_batch_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"'y' has shape .* for a batch of 2 rows"):
        cut(np.zeros(shape, np.float32), 1, 1)


def test_a_model_without_a_batch_axis_answers_with_whatever_shape_it_gives() -> None:
    for shape in ((), (3,), (1, VIEW_FROM_BYTES)):
        array = np.ones(shape, np.float32)
        (tensor,) = cut(array, 1, max_batch_size=0)
        assert (tensor.shape, bytes(tensor.data)) == (shape, array.tobytes())


def test_every_output_is_cut_in_the_models_order() -> None:
    outputs = [spec("b", 1), spec("a", 1, datatype="INT64")]
    made = layout(spec("x", 1), outputs=outputs)
    requests = [asking(wide(0, width=1)) for _ in range(2)]
    arrays = {"a": np.array([[1], [2]]), "b": np.array([[3], [4]], np.float32)}
    found = made.cut(arrays, requests, 2)
    assert [[t.name for t in tensors] for tensors in found] == [["b", "a"]] * 2
    assert [[t.array().item() for t in tensors] for tensors in found] == [[3, 1], [4, 2]]


@pytest.mark.parametrize("datatype", FIXED)
@given(
    rows=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    item_shape=st.sampled_from([(), (3,), (2, 2), (VIEW_FROM_BYTES // 2,)]),
    seed=st.integers(0, 255),
)
def test_each_request_gets_the_bytes_of_its_rows(
    datatype: str, rows: list[int], item_shape: tuple[int, ...], seed: int
) -> None:
    shape: tuple[Any, ...] = (sum(rows), *item_shape)
    dtype = DATATYPES[datatype].dtype
    array = ((np.arange(math.prod(shape)) + seed) % 251).astype(dtype).reshape(shape)
    tensors = cut(array, *rows, datatype=datatype)
    start = 0
    for count, tensor in zip(rows, tensors, strict=True):
        part = array[start : start + count]
        assert (tensor.name, tensor.datatype, tensor.shape) == ("y", datatype, part.shape)
        assert bytes(tensor.data) == part.tobytes()
        assert len(tensor.data) == part.nbytes
        start += count
