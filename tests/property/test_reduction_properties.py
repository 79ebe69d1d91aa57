"""What is said of large tensors agrees with what numpy says of the same elements in FP64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from engines.tensors import BYTES, DATATYPES, Array, encode_bytes
from gateway.prediction_log.capture import statistics as module
from gateway.prediction_log.capture.statistics import BINS, summarise
from gateway.prediction_log.capture.thumbnail import MAX_CHANNELS, SIDE, thumbnail

NUMERIC = sorted(set(DATATYPES) - {BYTES})
shapes = st.lists(st.integers(0, 7), max_size=4).map(tuple) | st.tuples(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 20), st.integers(1, 20)
)


def in_fp64(datatype: str, array: Array) -> Array:
    if datatype == "BF16":
        array = (array.astype("<u4") << 16).view("<f4")
    with np.errstate(all="ignore"):
        return array.astype("f8")


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, Array]:
    datatype = draw(st.sampled_from(NUMERIC))
    return datatype, draw(arrays.arrays(DATATYPES[datatype].dtype, draw(shapes)))


@pytest.mark.parametrize("block", [1 << 16, 5])
@given(tensors())
def test_statistics_are_those_of_numpy(block: int, drawn: tuple[str, Array]) -> None:
    datatype, array = drawn
    values = in_fp64(datatype, array)
    finite = values[np.isfinite(values)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        found = summarise(datatype, array.shape, array.tobytes())
    statistics = found.statistics
    assert statistics["count"] == values.size
    assert statistics["nan"] == np.isnan(values).sum()
    assert statistics["inf"] == np.isinf(values).sum()
    if not finite.size:
        assert len(statistics) == 3
        return
    assert (statistics["min"], statistics["max"]) == (finite.min(), finite.max())
    unit = np.abs(finite).max() or 1.0
    scaled = finite / unit
    assert statistics["mean"] / unit == pytest.approx(scaled.mean(), abs=1e-9)
    assert statistics["std"] / unit == pytest.approx(scaled.std(), abs=1e-7)
    has_channels = array.ndim == 4 and array.size > 0
    assert len(found.channels) == (array.shape[1] if has_channels else 0)
    for channel, (mean, std) in enumerate(found.channels):
        part = values[:, channel]
        part = part[np.isfinite(part)] / unit
        assert math.isnan(mean) is math.isnan(std) is (part.size == 0)
        if part.size:
            assert mean / unit == pytest.approx(part.mean(), abs=1e-9)
            assert std / unit == pytest.approx(part.std(), abs=1e-7)


@given(tensors())
def test_the_histogram_is_that_of_numpy_but_for_elements_on_an_edge(
    drawn: tuple[str, Array],
) -> None:
    datatype, array = drawn
    values = in_fp64(datatype, array)
    finite = values[np.isfinite(values)]
    counts = summarise(datatype, array.shape, array.tobytes()).histogram
    if not finite.size:
        assert counts == []
        return
    assert (len(counts), sum(counts), min(counts) >= 0) == (BINS, finite.size, True)
    low, high = finite.min(), finite.max()
    if low == high:
        assert counts[0] == finite.size
        return
    # In shares of the range, which cannot overflow; the last digits of an edge are anybody's.
    shares = (finite / 4 - low / 4) / (high / 4 - low / 4)
    if not np.isfinite(shares).all():  # a range of the smallest numbers there are
        return
    running = np.cumsum(counts)
    for edge in range(1, BINS):
        surely = np.count_nonzero(shares < edge / BINS - 1e-9)
        perhaps = np.count_nonzero(shares < edge / BINS + 1e-9)
        assert surely <= running[edge - 1] <= perhaps
    edges = np.abs(shares * BINS - np.round(shares * BINS)) < 1e-9
    if not edges[(shares > 0) & (shares < 1)].any():
        assert counts == np.histogram(shares, BINS, (0.0, 1.0))[0].tolist()


@given(tensors())
def test_a_thumbnail_is_the_mean_of_each_part(drawn: tuple[str, Array]) -> None:
    datatype, array = drawn
    found = thumbnail(datatype, array.shape, array.tobytes())
    if array.ndim not in (2, 3, 4) or array.size == 0:
        assert found is None
        return
    assert found is not None
    values = in_fp64(datatype, array)
    pictures = values[0, :MAX_CHANNELS] if array.ndim == 4 else values
    pictures = pictures.reshape(-1, *array.shape[-2:])
    kept = np.frombuffer(found.data, "<f4").reshape(-1, *found.shape[-2:])
    rows, columns = bounds(array.shape[-2]), bounds(array.shape[-1])
    assert kept.shape[1:] == (len(rows), len(columns))
    for channel, picture in enumerate(kept):
        for y, (top, bottom) in enumerate(rows):
            for x, (left, right) in enumerate(columns):
                part = pictures[channel][top:bottom, left:right]
                part = part[np.isfinite(part)]
                with np.errstate(all="ignore"):
                    mean = np.float32(part.mean()) if part.size else np.float32(np.nan)
                assert np.isclose(picture[y, x], mean, rtol=1e-5, atol=1e-30, equal_nan=True)


def bounds(length: int) -> list[tuple[int, int]]:
    parts = min(SIDE, length)
    return [(n * length // parts, (n + 1) * length // parts) for n in range(parts)]


@given(st.lists(st.binary(max_size=30), max_size=50))
def test_statistics_of_texts_are_those_of_their_lengths(texts: list[bytes]) -> None:
    found = summarise(BYTES, (len(texts),), encode_bytes(texts)).statistics
    lengths = [len(text) for text in texts]
    assert found.pop("count") == len(texts)
    if texts:
        assert (found.pop("min"), found.pop("max")) == (min(lengths), max(lengths))
        assert found.pop("mean") == pytest.approx(sum(lengths) / len(lengths))
    assert found == {}
