"""A picture of 8 by 8 averages of a large tensor. Pure; computed in FP64, kept as FP32.

The last two axes are the picture. Of four axes [rows, channels, height, width] the first row is
taken, of three [rows, height, width] too, two are a picture themselves. Only finite elements enter
into an average; one of none is NaN.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from engines.tensors import BYTES, Array, Raw
from gateway.prediction_log.capture.statistics import Floats, as_fp64, elements

SIDE: Final = 8
MAX_CHANNELS: Final = 16
"""Of more channels than that, the first ones."""


class Thumbnail(NamedTuple):
    """Averages; `shape` is (channels, height, width), or (height, width) without channels."""

    shape: tuple[int, ...]
    data: bytes


def thumbnail(datatype: str, shape: tuple[int, ...], data: Raw) -> Thumbnail | None:
    """Return the picture of a tensor's first row; None: it has none."""
    if datatype == BYTES or len(shape) not in (2, 3, 4) or min(shape) <= 0:
        return None
    flat = elements(datatype, data)
    if math.prod(shape) != len(flat):  # of a request that was refused
        return None
    array = flat.reshape(shape)
    pictures = array[0, :MAX_CHANNELS] if len(shape) == 4 else _lone(array)
    with np.errstate(all="ignore"):  # averages beyond FP32 are infinite
        pooled = np.stack([_pool(datatype, picture) for picture in pictures]).astype("<f4")
    kept = pooled if len(shape) == 4 else pooled[0]
    return Thumbnail(kept.shape, kept.tobytes())


def _lone(array: Array) -> Array:
    return array[:1] if array.ndim == 3 else array[None]


def _pool(datatype: str, picture: Array) -> Floats:
    """Return the averages of a picture, band after band, so that little of it is FP64 at once."""
    height, width = picture.shape
    bands, across = min(SIDE, height), min(SIDE, width)
    columns = np.arange(across) * width // across
    pooled = np.empty((bands, across))
    for band in range(bands):
        top, bottom = band * height // bands, (band + 1) * height // bands
        values = as_fp64(datatype, picture[top:bottom])
        finite = np.isfinite(values)
        sums = np.where(finite, values, 0.0).sum(axis=0)
        counts = finite.sum(axis=0)
        pooled[band] = np.add.reduceat(sums, columns) / np.add.reduceat(counts, columns)
    return pooled
