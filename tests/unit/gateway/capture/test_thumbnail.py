"""Averages of 8 by 8 parts: which part of a tensor is the picture, and what odd elements do."""

from __future__ import annotations

import numpy as np
import pytest

from engines.tensors import BYTES, Array
from gateway.prediction_log.capture.thumbnail import thumbnail


def picture_of(array: Array, datatype: str = "FP32") -> Array:
    found = thumbnail(datatype, array.shape, array.tobytes())
    assert found is not None
    return np.frombuffer(found.data, "<f4").reshape(found.shape).copy()


def test_parts_of_equal_size_are_averaged() -> None:
    array = np.arange(2 * 3 * 32 * 24, dtype="<f4").reshape(2, 3, 32, 24)
    expected = array[0].reshape(3, 8, 4, 8, 3).mean(axis=(2, 4), dtype=np.float64)
    assert picture_of(array).shape == (3, 8, 8)
    assert np.allclose(picture_of(array), expected)


def test_parts_cover_each_element_once_where_sides_are_no_multiple_of_eight() -> None:
    array = np.zeros((1, 1, 13, 9), "<f4")
    sizes = np.diff(np.arange(9) * 13 // 8)[:, None] * np.diff(np.arange(9) * 9 // 8)[None]
    total = 0.0
    for place in range(13 * 9):
        array[...] = 0
        array.flat[place] = 1
        total += float((picture_of(array)[0] * sizes).sum())
    assert total == pytest.approx(13 * 9)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 3, 16, 16), (3, 8, 8)),
        ((2, 17, 8, 8), (16, 8, 8)),
        ((2, 1, 3, 5), (1, 3, 5)),
        ((2, 16, 16), (8, 8)),
        ((16, 16), (8, 8)),
        ((1, 9), (1, 8)),
    ],
)
def test_the_last_two_axes_are_the_picture_and_of_rows_the_first(
    shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    array = np.ones(shape, "<f4")
    if len(shape) > 2:
        array[1:] = 9
    found = picture_of(array)
    assert found.shape == expected
    assert (found == 1).all()


@pytest.mark.parametrize("shape", [(), (4,), (1, 1, 2, 2, 2), (0, 3, 8, 8), (1, 3, 0, 8), (0, 0)])
def test_other_shapes_have_no_picture(shape: tuple[int, ...]) -> None:
    array = np.ones(shape, "<f4")
    assert thumbnail("FP32", shape, array.tobytes()) is None


def test_text_and_bytes_that_contradict_their_shape_have_no_picture() -> None:
    assert thumbnail(BYTES, (1, 1), b"\x01\0\0\0a") is None
    assert thumbnail("FP32", (8, 8), bytes(255)) is None


def test_what_is_not_finite_is_left_out_of_the_averages() -> None:
    array = np.ones((16, 16), "<f8")
    array[0, 0], array[15, 15] = np.nan, np.inf
    array[:2, 2:4] = np.nan
    found = picture_of(array, "FP64")
    assert np.isnan(found[0, 1])
    found[0, 1] = 1
    assert (found == 1).all()


@pytest.mark.parametrize(
    ("datatype", "array"),
    [
        ("UINT8", np.full((8, 8), 200, "u1")),
        ("BOOL", np.ones((8, 8), "?")),
        ("INT64", np.full((8, 8), -5, "<i8")),
        ("FP16", np.full((8, 8), 1.5, "<f2")),
        ("BF16", np.full((8, 8), 0x3FC0, "<u2")),
    ],
)
def test_every_numeric_datatype_has_a_picture(datatype: str, array: Array) -> None:
    expected = 1.5 if datatype == "BF16" else float(array[0, 0])
    assert (picture_of(array, datatype) == expected).all()


def test_averages_beyond_fp32_are_infinite_and_no_reason_to_warn() -> None:
    assert (picture_of(np.full((8, 8), 1e300), "FP64") == np.inf).all()
