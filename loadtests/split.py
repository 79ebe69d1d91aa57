"""Does an observed split agree with the configured weights? The arithmetic of it, and nothing else.

Every request carries a fresh random key, so the number of requests that reach a variant is
binomial. With n requests and a share p its standard deviation is sqrt(p (1 - p) / n); an honest
split leaves an interval of 3.3 of them on either side about once in a thousand runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SIGMAS: Final = 3.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The share of one variant; every share is between 0 and 1."""

    variant: str
    answered: int
    observed: float
    expected: float
    low: float
    high: float

    @property
    def is_within(self) -> bool:
        """Whether the observed share lies in its interval."""
        return self.low <= self.observed <= self.high


def interval(expected: float, requests: int, sigmas: float = SIGMAS) -> tuple[float, float]:
    """Return the shares between which `requests` random keys should fall."""
    spread = sigmas * math.sqrt(expected * (1 - expected) / requests)
    return max(0.0, expected - spread), min(1.0, expected + spread)


def shares(
    answered: Mapping[str, int], weights: Mapping[str, float], sigmas: float = SIGMAS
) -> list[Share]:
    """Compare answers per variant with weights in percent; empty without answers.

    A variant that answered and has no weight is expected at 0.
    """
    total = sum(answered.values())
    if not total:
        return []
    out = []
    for variant in [*weights, *(v for v in answered if v not in weights)]:
        expected = weights.get(variant, 0.0) / 100
        low, high = interval(expected, total, sigmas)
        count = answered.get(variant, 0)
        out.append(
            Share(
                variant=variant,
                answered=count,
                observed=count / total,
                expected=expected,
                low=low,
                high=high,
            )
        )
    return out
