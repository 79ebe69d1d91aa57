"""Percentiles of sorted values; nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(ranked: Sequence[float], share: float) -> float:
    """Return the least value that so large a share of the sorted values does not exceed.

    Raises:
        IndexError: there are none.
    """
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]
