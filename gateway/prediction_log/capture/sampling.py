"""Which answers are logged: a share of them by a hash of the request id, errors and slow ones all.

Pure. The hash is of the id alone, so everything that is known of one request is logged or none: a
shadow's record goes by the id of the live request that it copies, and so does a retry inside the
gateway. Ids that callers make are not random, so all 16 bytes are mixed: two finalised products
over a CRC-32, which tells any two ids apart that differ in their last four bytes.

A record's weight is one over the probability that it was logged. Summed over the records of a
window, the weights estimate how many requests there were.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

from gateway.prediction_log.record import BASE, ERROR, SLOW

ALWAYS: Final = 1.0
NEVER: Final = 0.0
"""Weight of what is not logged."""
_FIRST_ERROR: Final = 400
_RANGE: Final = 1 << 32
_MASK: Final = _RANGE - 1
# Odd numbers that spread each bit of the factor over the upper half of the product. Another pair
# makes a hash that is independent of the first for all practical purposes.
_KEPT: Final = (0x7FEB352D, 0x846CA68B)
_WHOLE: Final = (0x9E3779B1, 0x85EBCA6B)


def place(request_id: bytes, factors: tuple[int, int] = _KEPT) -> int:
    """Return the place of an id in the range of 32 bits, uniform over ids of any pattern."""
    first, second = factors
    mixed = crc32(request_id)
    mixed = ((mixed ^ mixed >> 16) * first) & _MASK
    mixed = ((mixed ^ mixed >> 15) * second) & _MASK
    return mixed ^ mixed >> 16


class Sampler:
    """The rules of one public name.

    Args:
        share: of the answers that are neither errors nor slow.
        slower_than_us: answers that took longer are slow; 0: none is.
    """

    __slots__ = ("_base", "_limit", "_slower_than_us", "is_partial", "share")

    def __init__(self, share: float, slower_than_us: int) -> None:
        self.share = share
        self.is_partial = share < 1 or slower_than_us > 0
        """False: what is no error has a weight of 1 and is `base`, so `weigh` need not be asked."""
        self._base = (1.0 / max(share, 1.0 / _RANGE), BASE)
        self._limit = _limit(share)
        self._slower_than_us = slower_than_us or 1 << 62

    def weigh(self, request_id: bytes, status: int, total_us: int) -> tuple[float, str]:
        """Return the weight of a record and why it is logged; a weight of 0: it is not.

        Args:
            request_id: 16 bytes; of a shadow's record that of its live twin.
            status: HTTP status number of the answer.
            total_us: how long it took.
        """
        if status >= _FIRST_ERROR:
            return ALWAYS, ERROR
        if total_us > self._slower_than_us:
            return ALWAYS, SLOW
        if self._limit == _RANGE or place(request_id) < self._limit:
            return self._base
        return NEVER, BASE


class WholeShare:
    """Which of the records with reduced tensors are also kept whole; drawn apart from the above."""

    __slots__ = ("_limit", "share")

    def __init__(self, share: float) -> None:
        self.share = share
        self._limit = _limit(share)

    def takes(self, request_id: bytes) -> bool:
        """Return whether the record of a request is kept whole."""
        return self._limit != 0 and place(request_id, _WHOLE) < self._limit


def _limit(share: float) -> int:
    """Return below which place an id is taken; a share that is not 0 takes at least one place."""
    return min(_RANGE, max(1, round(share * _RANGE))) if share else 0
