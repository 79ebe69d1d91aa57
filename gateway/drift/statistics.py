"""Figures that compare two samples, and the probability of such figures without any drift.

numpy only. Distributions are handed in as shares, as step functions or as counts; nothing here
knows columns, windows or thresholds. Every p-value may be too large, which costs power; none may be
systematically too small, which would cost the stated level: the Kolmogorov limit is used without
the usual correction for small samples, and rare counts are tested exactly.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

PSEUDO_COUNT: Final = 0.5
"""Added to every bin, so that an empty one has a logarithm: half a record."""
MIN_EXPECTED: Final = 5.0
"""Smallest expected count of a cell of a chi-square test; cells below it are put together."""
_KOLMOGOROV_TERMS: Final = 8
_GAMMA_STEPS: Final = 1_000
_BISECTIONS: Final = 60


def effective_size(weights: Floats) -> float:
    """Return how many equally weighted records tell as much as these: (sum w)^2 / sum w^2."""
    squares = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def smoothed(shares: Floats, size: float) -> Floats:
    """Return shares of `size` records with half a record more in every bin."""
    counts = shares * size + PSEUDO_COUNT
    return np.asarray(counts / counts.sum(), np.float64)


def psi(reference: Floats, reference_size: float, current: Floats, current_size: float) -> float:
    """Return the population stability index of two distributions over the same bins.

    Without drift about (bins - 1) * (1/reference_size + 1/current_size).
    """
    p, q = smoothed(reference, reference_size), smoothed(current, current_size)
    return float(((q - p) * np.log(q / p)).sum())


def distances(
    a_points: Floats, a_cdf: Floats, b_points: Floats, b_cdf: Floats
) -> tuple[float, float]:
    """Return the Kolmogorov-Smirnov and the Wasserstein distance of two step functions.

    Points are sorted, none twice; `cdf` is the share of the sample at or below each. Neither is
    empty.
    """
    grid = np.union1d(a_points, b_points)
    gaps = np.abs(_at(grid, a_points, a_cdf) - _at(grid, b_points, b_cdf))
    return float(gaps.max()), float((gaps[:-1] * np.diff(grid)).sum())


def _at(grid: Floats, points: Floats, cdf: Floats) -> Floats:
    places = np.searchsorted(points, grid, side="right")
    return np.asarray(np.concatenate(([0.0], cdf))[places], np.float64)


def ks_p(distance: float, a_size: float, b_size: float) -> float:
    """Return how probable a two-sample KS distance at least this large is without drift.

    The limit for continuous distributions; with ties, and for small samples, it is too large.
    """
    if a_size <= 0 or b_size <= 0:
        return 1.0
    return kolmogorov_sf(math.sqrt(a_size * b_size / (a_size + b_size)) * distance)


def kolmogorov_sf(x: float) -> float:
    """Return the probability that Kolmogorov's limit variable exceeds x."""
    if x < 0.2:
        return 1.0
    if x < 1.0:  # the other form of the same theta function, which converges here
        terms = (
            math.exp(-(((2 * k - 1) * math.pi / x) ** 2) / 8)
            for k in range(1, _KOLMOGOROV_TERMS + 1)
        )
        return 1.0 - math.sqrt(2 * math.pi) / x * math.fsum(terms)
    signed = (
        (-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, _KOLMOGOROV_TERMS + 1)
    )
    return min(1.0, max(0.0, 2.0 * math.fsum(signed)))


def chi_square(a_counts: Floats, b_counts: Floats) -> tuple[float, int]:
    """Return Pearson's statistic of two samples over the same cells, and its degrees of freedom.

    Cells with few expected records are put together first. 0 degrees: there is nothing to compare.
    """
    is_rare = rare_cells(a_counts, b_counts)
    a, b = together(a_counts, is_rare), together(b_counts, is_rare)
    is_used = a + b > 0
    a, b = a[is_used], b[is_used]
    if len(a) < 2 or min(a.sum(), b.sum()) <= 0:
        return 0.0, 0
    pooled = (a + b) / (a.sum() + b.sum())
    expected_a, expected_b = pooled * a.sum(), pooled * b.sum()
    statistic = ((a - expected_a) ** 2 / expected_a).sum()
    statistic += ((b - expected_b) ** 2 / expected_b).sum()
    return float(statistic), len(a) - 1


def rare_cells(a_counts: Floats, b_counts: Floats) -> Flags:
    """Return which cells expect less than MIN_EXPECTED records in the smaller sample.

    And one more, if all of them together are still rare. Which ones depends on the pooled counts
    alone: choosing by one sample's counts would make that sample look different from the other.
    """
    pooled = a_counts + b_counts
    total = float(pooled.sum())
    if total <= 0:
        return np.zeros(len(pooled), np.bool_)
    expected = pooled * (min(a_counts.sum(), b_counts.sum()) / total)
    order = np.argsort(np.round(pooled, 6), kind="stable")  # ties stay ties, whatever rounding did
    rare = int(np.searchsorted(expected[order], MIN_EXPECTED))
    if rare < len(order) and 0 < expected[order[:rare]].sum() < MIN_EXPECTED:
        rare += 1
    found = np.zeros(len(pooled), np.bool_)
    found[order[:rare]] = True
    return found


def together(counts: Floats, is_rare: Flags) -> Floats:
    """Return the counts of the cells that are not rare, and of all rare ones in one."""
    return np.append(counts[~is_rare], counts[is_rare].sum())


def chi_square_sf(x: float, degrees: int) -> float:
    """Return the probability that a chi-square variable exceeds x."""
    if degrees <= 0 or x <= 0:
        return 1.0
    return _upper_gamma(degrees / 2, x / 2)


def _upper_gamma(a: float, x: float) -> float:
    """Return the regularised upper incomplete gamma function."""
    scale = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        for n in range(1, _GAMMA_STEPS):
            term *= x / (a + n)
            total += term
            if term < total * 1e-16:
                break
        return max(0.0, 1.0 - total * scale)
    # Lentz's way to evaluate the continued fraction.
    b = x + 1 - a
    c, d = 1e300, 1 / b
    fraction = d
    for n in range(1, _GAMMA_STEPS):
        factor = -n * (n - a)
        b += 2
        d = 1 / (factor * d + b)
        c = b + factor / c
        fraction *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return min(1.0, fraction * scale)


def counts_p(a_hits: int, a_size: int, b_hits: int, b_size: int) -> float:
    """Return Fisher's exact probability that b has at least so many of all the hits, without drift.

    One-sided: small where `b` has relatively more hits than `a`.
    """
    hits, total = a_hits + b_hits, a_size + b_size
    top = min(hits, b_size)
    if hits <= 0 or b_hits > top or b_hits <= max(0, hits - a_size):
        return 1.0
    k = np.arange(b_hits, top + 1, dtype=np.float64)
    logs = _log_choose(float(b_size), k) + _log_choose(float(a_size), hits - k)
    logs -= _log_choose(float(total), np.array([float(hits)]))
    peak = float(logs.max())
    return min(1.0, math.exp(peak) * float(np.exp(logs - peak).sum()))


def _log_choose(n: float, k: Floats) -> Floats:
    whole = _log_gamma(np.array([n + 1]))
    return np.asarray(whole - _log_gamma(k + 1) - _log_gamma(n - k + 1), np.float64)


def _log_gamma(x: Floats) -> Floats:
    """Return log(gamma(x)) for x >= 1: Stirling's series, from x + 8 downwards."""
    y = x + 8.0
    below = np.zeros_like(x)
    for n in range(8):
        below += np.log(x + n)
    series = 1 / (12 * y) - 1 / (360 * y**3) + 1 / (1260 * y**5) - 1 / (1680 * y**7)
    half_log = 0.5 * math.log(2 * math.pi)
    return np.asarray((y - 0.5) * np.log(y) - y + half_log + series - below, np.float64)


def rate_upper(rate: float, size: float, level: float) -> float:
    """Return a bound that a true rate exceeds with at most probability `level`.

    Chernoff's bound: holds for every size, and for means of values between 0 and 1.
    """
    if size <= 0:
        return 1.0
    limit = math.log(1 / level) / size
    low, high = rate, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _divergence(rate, middle) > limit:
            high = middle
        else:
            low = middle
    return high


def _divergence(p: float, q: float) -> float:
    """Return the Kullback-Leibler divergence of two coins."""
    total = 0.0
    if p > 0:
        total += p * math.log(p / q) if q > 0 else math.inf
    if p < 1:
        total += (1 - p) * math.log((1 - p) / (1 - q)) if q < 1 else math.inf
    return total


def holm(p_values: Floats) -> Floats:
    """Return Holm's adjusted p-values: at most `level` wrong rejections of the whole family."""
    count = len(p_values)
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(count, 0, -1))
    adjusted = np.empty(count, np.float64)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def spent(level: float, window: int) -> float:
    """Return the share of `level` for the window of this number, from 1 on; all together: level."""
    return level * 6 / (math.pi * window) ** 2
