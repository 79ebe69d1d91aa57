"""What numbers say about a large tensor: moments, counts of what is no number, a histogram.

Pure; in FP64 throughout. A tensor is read twice in blocks that stay in a processor's cache, so the
memory taken does not grow with the tensor, and numpy lets other threads run meanwhile. Only finite
elements enter into anything but the counts.

Moments of blocks are joined as Chan, Golub and LeVeque do (1979, "Updating formulae and a pairwise
algorithm for computing sample variances"): no difference of large sums is ever taken.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from engines.tensors import BYTES, DATATYPES, Array, Raw

BINS: Final = 32
MAX_CHANNELS: Final = 64
"""A tensor with more channels than that has no statistics per channel: they would be large."""
_BLOCK: Final = 1 << 16
"""Elements read at once: 512 KiB as FP64."""
_BLOCK_TEXTS: Final = 1_024
# Beyond these a square of an FP64 number is infinite or zero, so such tensors are scaled first.
_LARGEST: Final = 1e150
_SMALLEST: Final = 1e-150
_NO_NUMBERS_BUT_FINITE: Final = frozenset("biu")
_LENGTH: Final = struct.Struct("<I")

Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class Summary:
    """The statistics of one tensor; fields as in record.py's Reduced."""

    statistics: dict[str, float]
    channels: list[tuple[float, float]] = field(default_factory=list)
    histogram: list[int] = field(default_factory=list)


class _Range(NamedTuple):
    nan: int
    inf: int
    finite: int
    low: float
    high: float

    @property
    def unit(self) -> float:
        """What to divide by before squaring."""
        largest = max(abs(self.low), abs(self.high))
        return 1.0 if _SMALLEST <= largest <= _LARGEST or not largest else largest


def elements(datatype: str, data: Raw) -> Array:
    """Return the elements of a numeric tensor as they stand, shape (n,); BOOL as 0 and 1 bytes."""
    dtype = np.dtype(np.uint8) if datatype == "BOOL" else DATATYPES[datatype].dtype
    return np.frombuffer(data, dtype, count=len(data) // dtype.itemsize)


def as_fp64(datatype: str, array: Array) -> Floats:
    """Return elements of `elements` as FP64, in their shape."""
    if datatype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    if datatype == "BOOL":
        array = array != 0
    values: Floats = array.astype(np.float64)
    return values


def summarise(datatype: str, shape: tuple[int, ...], data: Raw) -> Summary:
    """Return the statistics of a tensor.

    A refused request's bytes may contradict its shape: then they are those of the bytes.
    """
    if datatype == BYTES:
        return Summary(_of_lengths(data))
    # A signalling NaN, or an overflow of the last digit, is no reason to warn.
    with np.errstate(all="ignore"):
        return _of_numbers(datatype, shape, elements(datatype, data))


def _of_numbers(datatype: str, shape: tuple[int, ...], flat: Array) -> Summary:
    found = _range(datatype, flat)
    statistics = {
        "count": float(len(flat)),
        "nan": float(found.nan),
        "inf": float(found.inf),
    }
    if not found.finite:
        return Summary(statistics)
    by_channel = _has_channels(shape) and math.prod(shape) == len(flat)
    laid_out = flat.reshape(shape[0], shape[1], -1) if by_channel else flat.reshape(1, 1, -1)
    moments = _Moments(laid_out.shape[1])
    counts = np.zeros(BINS, np.int64)
    for block in _blocks(laid_out):
        values = as_fp64(datatype, block)
        finite = _finite(datatype, values)
        counts += _count(values if finite is None else values[finite], found)
        moments.add(values if found.unit == 1.0 else values / found.unit, finite)
    mean, std = moments.joined()
    statistics |= {"min": found.low, "max": found.high}
    statistics["mean"] = min(max(mean * found.unit, found.low), found.high)
    statistics["std"] = std * found.unit
    channels = moments.channels(found.unit) if by_channel else []
    return Summary(statistics, channels, counts.tolist())


def _has_channels(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and min(shape) > 0 and shape[1] <= MAX_CHANNELS


def _range(datatype: str, flat: Array) -> _Range:
    """Read a tensor for the first time: where its finite elements lie, and how many are not."""
    nan = inf = finite_count = 0
    low, high = math.inf, -math.inf
    for start in range(0, len(flat), _BLOCK):
        values = as_fp64(datatype, flat[start : start + _BLOCK])
        finite = _finite(datatype, values)
        if finite is not None:
            block_nan = int(np.count_nonzero(np.isnan(values)))
            nan += block_nan
            inf += len(values) - int(np.count_nonzero(finite)) - block_nan
            values = values[finite]
        if len(values):
            finite_count += len(values)
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return _Range(nan, inf, finite_count, low, high)


def _finite(datatype: str, values: Floats) -> npt.NDArray[np.bool_] | None:
    """Return which elements are finite; None: all of them."""
    if DATATYPES[datatype].dtype.kind in _NO_NUMBERS_BUT_FINITE and datatype != "BF16":
        return None
    finite = np.isfinite(values)
    return None if finite.all() else finite


def _blocks(laid_out: Array) -> Iterator[Array]:
    """Cut [rows, channels, elements] into blocks of about `_BLOCK` elements, all channels each."""
    rows, channels, width = laid_out.shape
    step = max(1, _BLOCK // channels)
    if width > step:
        for row in range(rows):
            for start in range(0, width, step):
                yield laid_out[row : row + 1, :, start : start + step]
        return
    many = max(1, step // max(1, width))
    for row in range(0, rows, many):
        yield laid_out[row : row + many]


def _count(values: Floats, found: _Range) -> npt.NDArray[np.int64]:
    """Return the counts of equal bins from low to high; all in the first one where they meet."""
    low, high = found.low, found.high
    # The difference of two finite numbers need not be finite; halves of the smallest are zero.
    factor = 1.0 if math.isfinite(high - low) else 0.5
    width = high * factor - low * factor
    if not width:
        places = np.zeros(values.size, np.int64)
    else:
        shares = (values.reshape(-1) * factor - low * factor) / width
        places = np.minimum(shares * BINS, BINS - 1).astype(np.int64)
    return np.bincount(places, minlength=BINS)


class _Moments:
    """Mean and sum of squared deviations per channel, of blocks added one after the other."""

    __slots__ = ("_counts", "_means", "_squares")

    def __init__(self, channels: int) -> None:
        self._counts = np.zeros(channels)
        self._means = np.zeros(channels)
        self._squares = np.zeros(channels)

    def add(self, block: Floats, finite: npt.NDArray[np.bool_] | None) -> None:
        """Add [rows, channels, elements]; `finite` says which of them count."""
        if finite is None:
            counts = np.full(block.shape[1], float(block.shape[0] * block.shape[2]))
        else:
            block = np.where(finite, block, 0.0)
            counts = finite.sum(axis=(0, 2), dtype=np.float64)
        means = block.sum(axis=(0, 2)) / np.maximum(counts, 1.0)
        deviations = block - means[None, :, None]
        if finite is not None:
            deviations *= finite
        squares = np.einsum("rce,rce->c", deviations, deviations)
        total = self._counts + counts
        apart = means - self._means
        share = counts / np.maximum(total, 1.0)
        self._squares += squares + apart * apart * self._counts * share
        self._means += apart * share
        self._counts = total

    def joined(self) -> tuple[float, float]:
        """Return mean and standard deviation over all channels; there is a finite element."""
        total = self._counts.sum()
        mean = float((self._means * self._counts).sum() / total)
        apart = self._means - mean
        squares = self._squares.sum() + (apart * apart * self._counts).sum()
        return mean, math.sqrt(squares / total)

    def channels(self, unit: float) -> list[tuple[float, float]]:
        """Return mean and standard deviation of each; NaN where no element is finite."""
        counts = np.where(self._counts, self._counts, np.nan)
        means = np.where(self._counts, self._means, np.nan) * unit
        deviations = np.sqrt(self._squares / counts) * unit
        return list(zip(means.tolist(), deviations.tolist(), strict=True))


def _of_lengths(data: Raw) -> dict[str, float]:
    """Return count, min, max and mean of the lengths of BYTES elements.

    A loop in Python over what may be millions: it lets others run now and then.
    """
    count, low, high, position, size = 0, math.inf, 0, 0, len(data)
    unpack = _LENGTH.unpack_from
    while position + _LENGTH.size <= size:
        (length,) = unpack(data, position)
        position += _LENGTH.size + length
        low, high = min(low, length), max(high, length)
        count += 1
        if count % _BLOCK_TEXTS == 0:
            time.sleep(0)
    statistics = {"count": float(count)}
    if count:
        mean = (position - _LENGTH.size * count) / count
        statistics |= {"min": float(low), "max": float(high), "mean": mean}
    return statistics
