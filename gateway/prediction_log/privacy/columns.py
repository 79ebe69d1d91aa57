"""What rules do to numbers: columns blanked, values rounded down. Bytes in, bytes out.

Pure: knows datatypes, and nothing of names or keys. One copy of the tensor is made, and numpy works
in it. A rounded value depends on the number of its step alone, so nothing of what was below it
remains, whatever the datatype.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from engines.tensors import DATATYPES, Array, Raw

BF16: Final = "BF16"
_BOOL: Final = "BOOL"
_BF16_NAN: Final = 0x7FC0
_BF16_SHIFT: Final = 16
_FP64_BYTES: Final = 8
_SMALL_STEP: Final = 1e-200
"""Steps above it fit into the greatest FP32 a finite number of times."""


def blank(flat: Array, datatype: str) -> None:
    """Overwrite elements: NaN for floats, 0 for integers, false for BOOL."""
    if datatype == BF16:
        flat[...] = _BF16_NAN
    else:
        flat[...] = np.nan if flat.dtype.kind == "f" else 0


def floor_to(elements: Array, datatype: str, step: float) -> Array:
    """Return elements rounded down to a multiple of `step`, of the same element type.

    What a datatype cannot hold becomes its smallest value. NaN and infinities stay. A float that is
    too large for the step to matter stays as it is.
    """
    if datatype == _BOOL:
        return floor_to(elements.view(np.uint8), "UINT8", step).astype(np.bool_)
    # Overflows end in an infinity: no FP16 is a multiple of 1000 below -65504.
    with np.errstate(over="ignore", invalid="ignore"):
        if datatype == BF16:
            return _to_bf16(_floor_floats(_from_bf16(elements), step))
        if elements.dtype.kind == "f":
            return _floor_floats(elements, step).astype(elements.dtype)
        return _floor_integers(elements, step)


def writable(data: Raw, datatype: str) -> tuple[bytearray, Array]:
    """Copy raw elements: the copy, and a flat array that writes into it."""
    copy = bytearray(data)
    return copy, np.frombuffer(copy, DATATYPES[datatype].dtype)


def _floor_floats(elements: Array, step: float) -> Array:
    """Return FP64."""
    wide = elements.astype(np.float64)
    steps = np.floor(wide / step)
    rounded = steps * step
    if elements.dtype.itemsize < _FP64_BYTES and step > _SMALL_STEP:
        return np.asarray(rounded)  # the number of the step is finite where the element is
    return np.where(np.isfinite(steps), rounded, wide)


def _floor_integers(elements: Array, step: float) -> Array:
    limits = np.iinfo(elements.dtype)
    if step != int(step):
        rounded = np.floor(_floor_floats(elements, step))
        # A 64-bit integer may have been rounded up, on its way through FP64, to beyond the end.
        end = 2.0 ** (8 * elements.dtype.itemsize - (limits.min < 0))
        return np.clip(rounded, limits.min, np.nextafter(end, 0)).astype(elements.dtype)
    if step > limits.max:
        return np.where(elements < 0, limits.min, 0).astype(elements.dtype)
    floored = elements - elements % elements.dtype.type(int(step))
    floored[floored > elements] = limits.min  # went round the end of the datatype
    return np.asarray(floored, elements.dtype)


def _from_bf16(elements: Array) -> Array:
    return (elements.astype(np.uint32) << _BF16_SHIFT).view(np.float32)


def _to_bf16(floats: Array) -> Array:
    bits = np.asarray(floats, np.float32).view(np.uint32)
    # Cut, not rounded to the nearest: a multiple that BF16 cannot hold is one below or above it
    # either way. NaN keeps its quiet bit, which is among the upper ones.
    return np.asarray(bits >> _BF16_SHIFT, np.uint16)
