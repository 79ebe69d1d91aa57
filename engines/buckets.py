"""Buckets: the row counts that an engine runs, and how a batch of another count is padded up.

Pure; knows no engine and no queue. Engines with fixed shapes (a TensorRT profile's best sizes, a
CUDA graph, a model file whose batch axis is a number) declare buckets in their metadata; the layout
pads every batch up to the next one and cuts the answer back. The padding repeats the batch's last
row: zeros can be a value that a model divides by, a real row cannot hurt more than it does anyway.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def powers_of_two(max_batch_size: int) -> tuple[int, ...]:
    """Return 1, 2, 4 ... and the maximum itself; the buckets of who names none."""
    powers = [1 << n for n in range(max_batch_size.bit_length())]
    return tuple(sorted({*(power for power in powers if power <= max_batch_size), max_batch_size}))


def fault(buckets: Sequence[int], max_batch_size: int) -> str:
    """Return why these cannot be the buckets of such a model; empty: they can."""
    if not buckets:
        return ""
    if max_batch_size == 0:
        return "a model without a batch axis has no buckets"
    if list(buckets) != sorted(set(buckets)) or buckets[0] < 1:
        return f"{list(buckets)} are not ascending row counts from 1"
    if buckets[-1] != max_batch_size:
        return f"the last of {list(buckets)} is not max_batch_size {max_batch_size}"
    return ""


def bucket_of(buckets: Sequence[int], rows: int) -> int:
    """Return the smallest bucket that holds so many rows; without buckets, the rows themselves."""
    if not buckets:
        return rows
    return buckets[bisect_left(buckets, rows)]
