"""Rounding down and blanking, for every datatype."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.tensors import DATATYPES
from gateway.prediction_log.privacy.columns import blank, floor_to

INTEGERS = [name for name, row in DATATYPES.items() if row.dtype.kind in "iu" and name != "BF16"]
FLOATS = ["FP16", "FP32", "FP64"]


def bf16(*values: float) -> npt.NDArray[np.uint16]:
    return (np.array(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("datatype", FLOATS)
def test_floats_are_rounded_down_and_what_is_no_number_stays(datatype: str) -> None:
    dtype = DATATYPES[datatype].dtype
    given_ = np.array([0, 4.9, 5, 12.5, -0.1, -5, np.nan, np.inf, -np.inf], dtype)
    expected = np.array([0, 0, 5, 10, -5, -5, np.nan, np.inf, -np.inf], dtype)
    floored = floor_to(given_, datatype, 5)
    assert floored.dtype == dtype
    np.testing.assert_array_equal(floored, expected)


def test_bf16_is_rounded_down_as_the_number_that_its_bits_are() -> None:
    floored = floor_to(bf16(0, 4.9, 5, 12.5, -0.1, math.nan, math.inf), "BF16", 5)
    assert floored.dtype == np.uint16
    expected = bf16(0, 0, 5, 10, -5, math.nan, math.inf)
    np.testing.assert_array_equal(floored, expected)


def test_a_float_beyond_the_smallest_multiple_becomes_an_infinity_without_a_warning() -> None:
    floored = floor_to(np.array([-65_500, 65_500], "<f2"), "FP16", 1_000)
    np.testing.assert_array_equal(floored, np.array([-np.inf, 65_000], "<f2"))


def test_a_float_too_large_for_the_step_to_matter_stays() -> None:
    values = np.array([1e308, -1e308, 3.0])
    np.testing.assert_array_equal(floor_to(values, "FP64", 1e-10)[:2], values[:2])


@pytest.mark.parametrize("datatype", INTEGERS)
@pytest.mark.parametrize("step", [1.0, 5.0, 100.0, 2.5, 1_000.0, 1e30])
def test_integers_are_rounded_down_or_are_their_smallest_value(datatype: str, step: float) -> None:
    dtype = DATATYPES[datatype].dtype
    limits = np.iinfo(dtype)
    values = [limits.min, limits.min + 1, 0, 1, 4, 5, 99, 100, 101, 126, 127]
    floored = floor_to(np.array(values, dtype), datatype, step)
    assert floored.dtype == dtype
    for value, found in zip(values, floored.tolist(), strict=True):
        if step == int(step):
            expected = max(value - value % int(step), limits.min)
        elif abs(value) < 1 << 52:
            expected = max(math.floor(math.floor(value / step) * step), limits.min)
        else:
            continue  # beyond what FP64 tells apart
        assert found == expected, value


@pytest.mark.parametrize("datatype", ["INT64", "UINT64"])
def test_the_greatest_integers_do_not_go_round_the_end(datatype: str) -> None:
    limits = np.iinfo(DATATYPES[datatype].dtype)
    values = np.array([limits.max, limits.min], DATATYPES[datatype].dtype)
    floored = floor_to(values, datatype, 2.5)
    assert int(floored[0]) > limits.max - 4_096
    assert int(floored[1]) == limits.min


def test_truth_is_kept_by_a_step_of_one_and_hidden_by_a_greater_one() -> None:
    values = np.array([True, False])
    assert floor_to(values, "BOOL", 1).tolist() == [True, False]
    assert floor_to(values, "BOOL", 2).tolist() == [False, False]
    assert floor_to(values, "BOOL", 2).dtype == np.bool_


@given(
    number=st.integers(-1_000, 1_000),
    within=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)),
    step=st.sampled_from([0.5, 1.0, 5.0, 7.0, 0.1]),
    datatype=st.sampled_from(["FP32", "FP64"]),
)
def test_two_values_of_one_step_cannot_be_told_apart(
    number: int, within: tuple[float, float], step: float, datatype: str
) -> None:
    values = np.array([(number + part) * step for part in within], DATATYPES[datatype].dtype)
    first, second = floor_to(values, datatype, step)
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("datatype", sorted(set(DATATYPES) - {"BYTES"}))
def test_a_blank_is_no_number_or_zero(datatype: str) -> None:
    dtype = DATATYPES[datatype].dtype
    values = np.ones(4, dtype)
    blank(values[1::2], datatype)
    assert values[::2].tolist() == np.ones(2, dtype).tolist()
    blanked = values[1::2]
    if datatype == "BF16":
        assert np.isnan((blanked.astype(np.uint32) << 16).view(np.float32)).all()
    elif dtype.kind == "f":
        assert np.isnan(blanked).all()
    else:
        assert not blanked.any()
