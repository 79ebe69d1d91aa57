"""Padding a batch up to the engine's bucket, cutting it off again, and a laned engine's buffers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import ModelMetadata, TensorSpec
from engines.batch_queue import CallbackRequest, QueuedRequest
from engines.buckets import bucket_of
from engines.layout import SLOT_FROM_BYTES, VIEW_FROM_BYTES, Layout
from engines.tensors import BYTES, DATATYPES, Array, Tensor, encode_bytes, from_array, join_rows

BUCKETS = (1, 4, 8)
FIXED = sorted(set(DATATYPES) - {BYTES})
SLOT_WIDTH = SLOT_FROM_BYTES // 4
"""Elements of an FP32 row that goes into a slot."""
VIEW_WIDTH = VIEW_FROM_BYTES // 4 // 4
"""Elements of an FP32 row, four of which make an output that is handed out as views."""


def spec(name: str, *item_shape: int, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=(-1, *item_shape))


def layout(
    *inputs: TensorSpec,
    outputs: Sequence[TensorSpec] = (),
    buckets: tuple[int, ...] = BUCKETS,
    max_batch_size: int = 8,
) -> Layout:
    return Layout(
        ModelMetadata(
            inputs=inputs,
            outputs=tuple(outputs),
            max_batch_size=max_batch_size,
            platform="test",
            engine="test 1",
            device="cpu",
            buckets=buckets,
        )
    )


def asking(*inputs: Tensor) -> QueuedRequest:
    """Return a request of tensors that have a batch axis."""
    return CallbackRequest(
        inputs=inputs,
        rows=inputs[0].shape[0] if inputs[0].shape else 1,
        shape_key=(),
        enqueued_ns=0,
        on_done=lambda outcome: None,
    )


def rows_of(*values: float, width: int = 1, name: str = "x") -> Tensor:
    column = np.asarray(values, np.float32).reshape(-1, 1)
    return from_array(name, "FP32", np.repeat(column, width, axis=1))


def laid(made: Layout, *requests: QueuedRequest) -> dict[str, Array]:
    return dict(made.lay(requests, sum(request.rows for request in requests)))


@pytest.mark.parametrize(
    ("rows", "run_rows"), [(1, 1), (2, 4), (3, 4), (4, 4), (5, 8), (7, 8), (8, 8)]
)
@pytest.mark.parametrize("width", [2, SLOT_WIDTH])
def test_a_batch_is_padded_up_to_its_bucket_with_its_last_row(
    rows: int, run_rows: int, width: int
) -> None:
    made = layout(spec("x", width))
    requests = [asking(rows_of(n + 1, width=width)) for n in range(rows)]
    array = laid(made, *requests)["x"]
    assert array.shape == (run_rows, width)
    expected = [*range(1, rows + 1), *[rows] * (run_rows - rows)]
    assert array[:, 0].tolist() == array[:, -1].tolist() == expected
    assert made.run_rows(rows) == run_rows


@pytest.mark.parametrize("width", [2, SLOT_WIDTH])
@pytest.mark.parametrize("rows", [2, 3, 5])
def test_a_request_that_is_alone_is_padded_too(rows: int, width: int) -> None:
    made = layout(spec("x", width))
    array = laid(made, asking(rows_of(*range(rows), width=width)))["x"]
    run_rows = bucket_of(BUCKETS, rows)
    assert array[:, 0].tolist() == [*range(rows), *[rows - 1] * (run_rows - rows)]


@pytest.mark.parametrize("width", [2, SLOT_WIDTH])
def test_a_request_that_fills_a_bucket_is_not_copied(width: int) -> None:
    made = layout(spec("x", width))
    tensor = rows_of(1, 2, 3, 4, width=width)
    array = laid(made, asking(tensor))["x"]
    assert np.shares_memory(array, np.frombuffer(tensor.data, np.uint8))


def test_the_padding_of_one_batch_does_not_show_in_the_slot_of_the_next() -> None:
    made = layout(spec("x", SLOT_WIDTH))
    laid(made, *(asking(rows_of(9, width=SLOT_WIDTH)) for _ in range(8)))
    array = laid(made, *(asking(rows_of(n, width=SLOT_WIDTH)) for n in (1, 2)))["x"]
    assert array[:, 0].tolist() == array[:, -1].tolist() == [1, 2, 2, 2]


def test_text_is_padded_with_its_last_row() -> None:
    made = layout(spec("t", 2, datatype=BYTES))
    rows = [[b"a", b""], [b"\0b", b"long" * 2_000], [b"c", b"d"]]
    tensors = [Tensor("t", BYTES, (1, 2), encode_bytes(row)) for row in rows]
    assert laid(made, *map(asking, tensors))["t"].tolist() == [*rows, rows[-1]]
    alone = Tensor("t", BYTES, (2, 2), encode_bytes([*rows[0], *rows[1]]))
    assert laid(made, asking(alone))["t"].tolist() == [*rows[:2], rows[1], rows[1]]


def test_rows_without_elements_are_padded_to_their_number() -> None:
    made = layout(spec("x", 0))
    assert laid(made, asking(Tensor("x", "FP32", (3, 0), b"")))["x"].shape == (4, 0)


def test_every_input_is_padded_to_the_same_bucket() -> None:
    made = layout(spec("a", 1), spec("b", SLOT_WIDTH), spec("t", 1, datatype=BYTES))
    text = [Tensor("t", BYTES, (1, 1), encode_bytes([value])) for value in (b"p", b"q")]
    requests = [
        asking(rows_of(n, name="a"), rows_of(-n, name="b", width=SLOT_WIDTH), text[n - 1])
        for n in (1, 2)
    ]
    arrays = laid(made, *requests)
    assert arrays["a"].reshape(-1).tolist() == [1, 2, 2, 2]
    assert arrays["b"][:, 3].tolist() == [-1, -2, -2, -2]
    assert arrays["t"].reshape(-1).tolist() == [b"p", b"q", b"q", b"q"]


def test_a_model_without_a_batch_axis_is_never_padded() -> None:
    made = layout(spec("x", 3), outputs=[spec("y")], buckets=(), max_batch_size=0)
    request = asking(Tensor("x", "FP32", (3,), np.arange(3, dtype=np.float32).tobytes()))
    assert made.lay([request], 1)["x"].tolist() == [0, 1, 2]
    assert made.shapes([request], 1) == {"x": (3,)}
    ((tensor,),) = made.cut({"y": np.ones(5, np.float32)}, [request], 1)
    assert tensor.shape == (5,)


# Cutting


def cut(array: Array, *rows: int, datatype: str = "FP32", is_lent: bool = False) -> list[Tensor]:
    made = layout(spec("x", 1), outputs=[spec("y", *array.shape[1:], datatype=datatype)])
    requests = [asking(rows_of(*[0.0] * count)) for count in rows]
    cuts = made.cut({"y": array}, requests, sum(rows), is_lent=is_lent)
    return [only for (only,) in cuts]


@pytest.mark.parametrize("width", [1, 4 * VIEW_WIDTH])
@pytest.mark.parametrize("rows", [(1, 1), (3,), (2, 1), (2, 3), (1, 1, 1, 1, 1)])
def test_what_the_padding_came_to_is_cut_off(width: int, rows: tuple[int, ...]) -> None:
    run_rows = bucket_of(BUCKETS, sum(rows))
    array = np.arange(run_rows * width, dtype=np.float32).reshape(run_rows, width)
    tensors = cut(array, *rows)
    assert [tensor.shape for tensor in tensors] == [(count, width) for count in rows]
    assert b"".join(tensor.data for tensor in tensors) == array[: sum(rows)].tobytes()


def test_text_that_came_of_padding_is_cut_off() -> None:
    array = np.array([[b"a"], [b"b"], [b"padding"], [b"padding"]], object)
    assert [tensor.array().tolist() for tensor in cut(array, 1, 1, datatype=BYTES)] == [
        [[b"a"]],
        [[b"b"]],
    ]


@pytest.mark.parametrize("shape", [(2, 1), (3, 1), (8, 1), (), (0, 1)])
@pytest.mark.parametrize("rows", [(1, 1), (2,)])
def test_an_output_without_the_rows_of_the_bucket_is_refused(
    shape: tuple[int, ...], rows: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"'y' has shape .* for a batch of 4 rows"):
        cut(np.zeros(shape, np.float32), *rows)


@pytest.mark.parametrize("rows", [(4,), (1, 1, 1, 1), (2, 2), (1, 1, 1), (3,), (1,), (8,)])
@pytest.mark.parametrize("width", [1, VIEW_WIDTH, 8 * VIEW_WIDTH])
def test_of_outputs_that_are_lent_no_answer_is_a_view(rows: tuple[int, ...], width: int) -> None:
    run_rows = bucket_of(BUCKETS, sum(rows))
    array = np.arange(run_rows * width, dtype=np.float32).reshape(run_rows, width)
    expected = array[: sum(rows)].tobytes()
    tensors = cut(array, *rows, is_lent=True)
    array[:] = -1  # the engine's next batch
    assert b"".join(tensor.data for tensor in tensors) == expected


# Filling a laned engine's own arrays


def filled(made: Layout, *requests: QueuedRequest) -> dict[str, Array]:
    """Fill arrays of the shapes that are asked for, with something in them before."""
    shapes = made.shapes(requests, sum(request.rows for request in requests))
    specs = {spec.name: spec for spec in made_specs(made)}
    into = {
        name: np.full(shape, 1, DATATYPES[specs[name].datatype].dtype)
        for name, shape in shapes.items()
    }
    made.fill(requests, into)
    return into


def made_specs(made: Layout) -> list[TensorSpec]:
    return [TensorSpec(name=g.name, datatype=g._datatype, shape=()) for g in made._inputs]


def test_the_shapes_to_fill_are_those_of_the_bucket() -> None:
    made = layout(spec("x", -1, 2), spec("n"))
    request = asking(
        Tensor("x", "FP32", (3, 5, 2), bytes(120)), Tensor("n", "FP32", (3,), bytes(12))
    )
    assert made.shapes([request], 3) == {"x": (4, 5, 2), "n": (4,)}
    assert made.shapes([request, request], 6) == {"x": (8, 5, 2), "n": (8,)}


def test_a_scalar_is_filled_in() -> None:
    made = layout(spec("x"), buckets=(), max_batch_size=0)
    request = asking(Tensor("x", "FP32", (), np.float32(7).tobytes()))
    assert made.shapes([request], 1) == {"x": ()}
    into = {"x": np.zeros((), np.float32)}
    made.fill([request], into)
    assert into["x"].item() == 7


def test_an_array_that_does_not_lie_in_one_piece_is_refused_rather_than_left_unfilled() -> None:
    made = layout(spec("x", 2), buckets=(2,), max_batch_size=2)
    into = {"x": np.zeros((2, 4), np.float32)[:, ::2]}
    with pytest.raises(TypeError):
        made.fill([asking(rows_of(1, 2, width=2))], into)


@st.composite
def batches(draw: st.DrawFn, datatype: str) -> list[Tensor]:
    """Draw the tensors of a batch of at most 8 rows: one shape per row, small or large."""
    item_bytes = DATATYPES[datatype].item_bytes
    item_shape = draw(
        st.one_of(
            st.lists(st.integers(0, 3), max_size=2).map(tuple),
            st.just((SLOT_FROM_BYTES // max(item_bytes, 1),)),
        )
    )
    tensors = []
    for rows in draw(st.lists(st.integers(1, 2), min_size=1, max_size=4)):
        count = rows * math.prod(item_shape)
        if datatype == BYTES:
            element = draw(st.binary(max_size=4))
            data = encode_bytes(element + bytes([n % 256]) for n in range(count))
        else:
            piece = draw(st.binary(min_size=1, max_size=16))
            data = (piece * (count * item_bytes // len(piece) + 1))[: count * item_bytes]
        if datatype == "BOOL":
            data = bytes(byte & 1 for byte in data)
        tensors.append(Tensor("x", datatype, (rows, *item_shape), data))
    return tensors


def row_wise(array: Array) -> Array:
    """Stand in for an engine whose row i depends on row i alone: reverses each row."""
    return np.array(np.flip(array.reshape(len(array), -1), axis=1).reshape(array.shape))


def answers(made: Layout, tensors: Sequence[Tensor], *, is_laned: bool) -> list[bytes]:
    requests = [asking(tensor) for tensor in tensors]
    rows = sum(request.rows for request in requests)
    arrays = filled(made, *requests) if is_laned else made.lay(requests, rows)
    outputs = {"y": row_wise(arrays["x"])}
    return [bytes(only.data) for (only,) in made.cut(outputs, requests, rows, is_lent=is_laned)]


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
@given(data=st.data())
def test_padded_answers_equal_those_without_padding(datatype: str, data: st.DataObject) -> None:
    buckets = (*sorted(data.draw(st.sets(st.integers(1, 7)))), 8)
    outputs = [spec("y", datatype=datatype)]
    padding = layout(spec("x", datatype=datatype), buckets=buckets, outputs=outputs)
    plain = layout(spec("x", datatype=datatype), buckets=(), outputs=outputs)
    for _ in range(2):  # the second batch finds a slot that is used
        tensors = data.draw(batches(datatype))
        expected = answers(plain, tensors, is_laned=False)
        assert answers(padding, tensors, is_laned=False) == expected
        if datatype != BYTES:
            assert answers(padding, tensors, is_laned=True) == expected


@pytest.mark.parametrize("datatype", FIXED)
@given(data=st.data())
def test_an_array_is_filled_with_what_is_laid(datatype: str, data: st.DataObject) -> None:
    buckets = (*sorted(data.draw(st.sets(st.integers(1, 7)))), 8)
    made = layout(spec("x", datatype=datatype), buckets=buckets)
    requests = [asking(tensor) for tensor in data.draw(batches(datatype))]
    found, expected = filled(made, *requests)["x"], laid(made, *requests)["x"]
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()
    given_rows = join_rows([request.inputs[0] for request in requests])
    assert found[: len(given_rows)].tobytes() == given_rows.tobytes()
