"""Statistics of tensors of every datatype, and odd ones; agreement with numpy is a property."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest

from engines.tensors import BYTES, DATATYPES, Array, encode_bytes
from gateway.prediction_log.capture import statistics as module
from gateway.prediction_log.capture.statistics import BINS, Summary, summarise

NUMERIC = sorted(set(DATATYPES) - {BYTES})


def summary_of(array: Array, datatype: str = "FP64") -> Summary:
    return summarise(datatype, array.shape, array.tobytes())


def bf16(values: Array) -> Array:
    """Return the upper halves of FP32 numbers."""
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2")


@pytest.mark.parametrize("datatype", NUMERIC)
def test_numbers_of_every_datatype_are_understood(datatype: str) -> None:
    values = np.array([0, 1, 1, 0, 0, 1, 1, 1])
    array = bf16(values) if datatype == "BF16" else values.astype(DATATYPES[datatype].dtype)
    found = summary_of(array, datatype)
    assert found.statistics == {
        "count": 8.0,
        "nan": 0.0,
        "inf": 0.0,
        "min": 0.0,
        "max": 1.0,
        "mean": 0.625,
        "std": pytest.approx(float(np.std(values))),
    }
    assert found.histogram == [3, *[0] * 30, 5]
    assert found.channels == []


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "BF16"])
def test_what_is_no_number_is_counted_and_left_out_of_the_rest(datatype: str) -> None:
    values = np.array([np.nan, 1, np.inf, 3, -np.inf, np.nan, np.nan])
    array = bf16(values) if datatype == "BF16" else values.astype(DATATYPES[datatype].dtype)
    found = summary_of(array, datatype)
    assert found.statistics == {
        "count": 7.0,
        "nan": 3.0,
        "inf": 2.0,
        "min": 1.0,
        "max": 3.0,
        "mean": 2.0,
        "std": 1.0,
    }
    assert (found.histogram[0], found.histogram[-1], sum(found.histogram)) == (1, 1, 2)


@pytest.mark.parametrize("values", [[], [np.nan, np.inf]])
def test_without_a_finite_number_there_are_counts_only(values: list[float]) -> None:
    found = summary_of(np.array(values))
    assert found.statistics == {
        "count": float(len(values)),
        "nan": float(len(values) > 0),
        "inf": float(len(values) > 0),
    }
    assert (found.histogram, found.channels) == ([], [])


def test_equal_numbers_have_no_deviation_and_stand_in_the_first_bin() -> None:
    found = summary_of(np.full(70_000, 0.1))
    assert found.statistics["std"] == pytest.approx(0, abs=1e-12)
    assert found.statistics["mean"] == 0.1
    assert found.histogram == [70_000, *[0] * (BINS - 1)]


@pytest.mark.parametrize("largest", [1e300, 1.7e308, 1e-300, 5e-324])
def test_numbers_whose_squares_are_not_finite_or_zero_are_understood(largest: float) -> None:
    found = summary_of(np.array([-largest, largest, -largest, largest]))
    assert found.statistics["mean"] == 0.0
    assert found.statistics["std"] == pytest.approx(largest)
    assert (found.histogram[0], found.histogram[-1]) == (2, 2)


def test_a_small_deviation_far_from_zero_is_not_lost() -> None:
    # In a difference of sums of squares nothing would be left of it.
    values = 1e9 + np.tile([0.0, 1.0], 100_000)
    assert summary_of(values).statistics["std"] == pytest.approx(0.5)


def test_the_largest_integers_lose_their_last_digits_only() -> None:
    found = summary_of(np.array([0, 2**64 - 1], "<u8"), "UINT64")
    assert found.statistics["max"] == 2.0**64


def test_each_channel_has_its_own_moments() -> None:
    rng = np.random.default_rng(5)
    array = rng.normal(size=(3, 2, 50, 40)).astype("<f4") * [[[[1]], [[9]]]] + [[[[0]], [[7]]]]
    found = summary_of(array.astype("<f4"), "FP32")
    for channel, (mean, std) in enumerate(found.channels):
        values = array.astype("<f4")[:, channel].astype("f8")
        assert mean == pytest.approx(values.mean())
        assert std == pytest.approx(values.std())
    assert len(found.channels) == 2


def test_a_channel_without_a_finite_number_has_no_mean() -> None:
    array = np.array([[[[np.nan, np.inf]], [[1.0, np.nan]]]])
    (mean, std), second = summary_of(array).channels
    assert math.isnan(mean)
    assert math.isnan(std)
    assert second == (1.0, 0.0)


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 0, 2, 2), (1, 65, 1, 2), (6, 2, 2), (1, 2)])
def test_tensors_of_other_shapes_have_no_channels(shape: tuple[int, ...]) -> None:
    assert summary_of(np.ones(shape)).channels == []


@pytest.mark.parametrize("shape", [(7, 3, 5, 4), (2, 3, 40, 50), (1, 64, 9, 9), (1, 1, 1, 1)])
def test_the_size_of_the_blocks_makes_no_difference(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(1).normal(size=shape)
    array.flat[::7] = np.nan
    whole = summary_of(array)
    monkeypatch.setattr(module, "_BLOCK", 37)
    in_blocks = summary_of(array)
    assert in_blocks.statistics == pytest.approx(whole.statistics)
    assert np.allclose(in_blocks.channels, whole.channels, equal_nan=True)
    assert in_blocks.histogram == whole.histogram


def test_texts_have_statistics_of_their_lengths() -> None:
    data = encode_bytes([b"a", b"", b"abcde"] * 500)
    found = summarise(BYTES, (1_500,), data)
    assert found.statistics == {"count": 1_500.0, "min": 0.0, "max": 5.0, "mean": 2.0}
    assert summarise(BYTES, (0,), b"").statistics == {"count": 0.0}


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "count"),
    [
        ("FP32", (1, 1, 2, 2), struct.pack("<3f", 1, 2, 3) + b"!", 3),
        ("FP64", (9,), b"1234567", 0),
        (BYTES, (2,), b"\x01\0\0\0a\x02", 1),
        (BYTES, (2,), b"\xff\xff\0\0a", 1),
    ],
)
def test_bytes_of_a_refused_request_that_contradict_the_shape_do_no_harm(
    datatype: str, shape: tuple[int, ...], data: bytes, count: int
) -> None:
    found = summarise(datatype, shape, data)
    assert (found.statistics["count"], found.channels) == (count, [])


def test_elements_that_do_not_begin_at_a_multiple_of_their_size_are_read() -> None:
    data = memoryview(b"!" + struct.pack("<2d", 1, 3))[1:]
    assert summarise("FP64", (2,), data).statistics["mean"] == 2.0
