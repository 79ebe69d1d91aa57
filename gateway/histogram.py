"""Counts of values by bucket: cheap to add to, good enough to read quantiles from."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@lru_cache(maxsize=64)
def _as_array(bounds: Sequence[float]) -> Floats:
    return np.array(bounds, np.float64)


class Histogram:
    """Counts by bucket and a sum; O(log buckets) to add to."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def observe_all(self, values: Floats) -> None:
        """Count many values."""
        places = np.searchsorted(_as_array(self._bounds), values)
        for place, count in zip(*np.unique_counts(places), strict=True):
            self.counts[place] += int(count)
        self.total += float(values.sum())

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (upper bound, values at or below it) as Prometheus wants them."""
        out, running = [], 0
        for bound, count in zip((*self._bounds, float("inf")), self.counts, strict=True):
            running += count
            out.append(("+Inf" if bound == float("inf") else str(float(bound)), float(running)))
        return out

    def quantile(self, share: float) -> float | None:
        """Return the value below which a share of the values lies; None where there are none.

        Interpolated inside its bucket: off by at most the bucket's width. Beyond the last bound it
        is that bound.
        """
        total = sum(self.counts)
        if not total:
            return None
        rank, below = share * total, 0
        for n, bound in enumerate(self._bounds):
            here = self.counts[n]
            if here and below + here >= rank:
                low = self._bounds[n - 1] if n else 0.0
                return low + (bound - low) * (rank - below) / here
            below += here
        return self._bounds[-1]
