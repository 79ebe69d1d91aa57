"""How far one column of a window is from its reference.

Numbers are compared by quantile bins, by their whole distribution and by their missing values;
categories by their counts. Whether that is drift is decided in decide.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from gateway.drift import column, statistics
from gateway.drift.column import Categories, Kind, Numbers, Profile, Texts, Values
from gateway.drift.statistics import Floats

BARS: Final = 24
"""Bars of a histogram of numbers, with one more at each side for what is out of range."""
BARS_OF_CATEGORIES: Final = 12
"""Bars of a histogram of categories, with one more for all others."""
MAX_CELLS: Final = 50
"""Categories that the figures tell apart, the most frequent of both sides; the others are one."""
EXACT_CELLS: Final = 10
"""Categories that are compared one by one as well."""
OTHER: Final = "(other)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Two histograms over the same bins, as shares of the rows that have a value."""

    labels: tuple[str, ...]
    """Of categories; of numbers empty: the first and the last bar are what is out of range."""
    reference: tuple[float, ...]
    current: tuple[float, ...]
    low: float = 0.0
    high: float = 0.0
    """Where the bars of numbers begin and end, those out of range left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How far a window's column is from its reference."""

    rows: int
    missing: int
    """Rows without a finite value."""
    reference_missing: float
    """The same in the reference, as a share."""
    out_of_range: int
    """Rows outside the reference's smallest and largest value, or of a category unknown to it."""
    size: float
    """Effective number of rows."""
    psi: float
    ks: float | None
    """Kolmogorov-Smirnov distance; None: categories."""
    wasserstein: float | None
    """Mean distance that values moved, in standard deviations of the reference; None: categories.
    """
    p: float
    """How probable figures like these are without drift, before other columns are considered."""
    bars: Bars | None


def compare(reference: Profile, values: Values, weights: Floats) -> Figures:
    """Return how far a window's column is from its reference. At least one row."""
    size = statistics.effective_size(weights)
    if reference.kind is Kind.NUMBER:
        return _compare_numbers(reference, column.numbers(values), weights, size)
    return _compare_categories(reference, column.texts(values), weights, size)


def _compare_numbers(reference: Profile, values: Floats, weights: Floats, size: float) -> Figures:
    content = reference.content
    present = ~np.isnan(values)
    missing = column.share_of(weights, ~present)
    missing_p = _rate_p(reference.missing, reference.size, missing, size)
    is_gone = not isinstance(content, Numbers) or not present.any()
    found, kept = values[present], weights[present]
    ks = moved = None
    outside, bars, p = 0, None, missing_p
    here = there = np.zeros(0)
    if isinstance(content, Numbers) and not is_gone:
        points, cdf = column.steps(found, kept)
        ks, distance = statistics.distances(content.points, content.cdf, points, cdf)
        moved = distance / content.scale
        p = statistics.ks_p(
            ks, reference.size * (1 - reference.missing), statistics.effective_size(kept)
        )
        if reference.missing > 0 or missing > 0:  # two questions were asked
            p = min(1.0, 2 * min(p, missing_p))
        here, there = column.binned(found, kept, content.edges), content.bins
        outside = int(((found < content.low) | (found > content.high)).sum())
        bars = _number_bars(content, found, kept)
    return Figures(
        rows=len(values),
        missing=int((~present).sum()),
        reference_missing=reference.missing,
        out_of_range=outside,
        size=size,
        psi=_psi(reference, there, here, missing, size),
        ks=ks,
        wasserstein=moved,
        p=p,
        bars=bars,
    )


def _compare_categories(reference: Profile, labels: Texts, weights: Floats, size: float) -> Figures:
    content = reference.content
    known = content.labels if isinstance(content, Categories) else ()
    present = column.present_flags(labels)
    found, codes = np.unique(labels[present].astype(str), return_inverse=True)
    # By their text: an order by frequency would let the reference decide between ties below.
    labels_of_both = sorted({*known, *found.tolist()})
    places = {label: place for place, label in enumerate(labels_of_both)}
    cells = np.array([places[label] for label in found.tolist()], np.intp)[codes.reshape(-1)]
    is_unknown = ~np.isin(found, np.array(known, str))
    missing = column.share_of(weights, ~present)
    here = np.bincount(cells, weights[present], minlength=len(places)) * (size / weights.sum())
    there = np.zeros(len(places))
    if isinstance(content, Categories):
        at = [places[label] for label in known]
        there[at] = content.shares * (reference.size * (1 - reference.missing))
    is_rare = np.ones(len(places), np.bool_)
    is_rare[column.by_frequency(there + here)[:MAX_CELLS]] = False
    # Missing values are a cell of their own, which is not put together with others for the index.
    here_cells = np.append(statistics.together(here, is_rare), missing * size)
    there_cells = np.append(statistics.together(there, is_rare), reference.missing * reference.size)
    shares = there_cells / reference.size, here_cells / size
    return Figures(
        rows=len(labels),
        missing=int((~present).sum()),
        reference_missing=reference.missing,
        out_of_range=int(is_unknown[codes.reshape(-1)].sum()),
        size=size,
        psi=statistics.psi(shares[0], reference.size, shares[1], size),
        ks=None,
        wasserstein=None,
        p=_cells_p(shares[0], reference.size, shares[1], size),
        bars=_category_bars(labels_of_both, there, here),
    )


def _psi(reference: Profile, there: Floats, here: Floats, missing: float, size: float) -> float:
    """Return the stability index over the bins and one more for missing values."""
    if not len(there):  # one side has no value at all: present and missing are the bins
        there = here = np.ones(1)
    return statistics.psi(
        np.append(there * (1 - reference.missing), reference.missing),
        reference.size,
        np.append(here * (1 - missing), missing),
        size,
    )


def _cells_p(there: Floats, there_size: float, here: Floats, here_size: float) -> float:
    """Return the probability of two samples over the same cells.

    Two questions: whether all cells together differ, which the chi-square test answers but for rare
    ones; and whether one of the most frequent does, which is answered exactly, so that a new
    category is found in a short window too. Both samples together say which are most frequent:
    those that are so in one of them alone may be so by chance, and would differ from the other.
    """
    counts = there * there_size, here * here_size
    together = statistics.chi_square_sf(*statistics.chi_square(*counts))
    asked = column.by_frequency(counts[0] + counts[1])[:EXACT_CELLS].tolist()
    single = [_rate_p(there[cell], there_size, here[cell], here_size) for cell in asked]
    return min(1.0, 2 * min(together, len(asked) * min(single)))


def _rate_p(a_share: float, a_size: float, b_share: float, b_size: float) -> float:
    """Return the two-sided exact probability of two shares, of sizes rounded down."""
    a, b = int(a_size), int(b_size)
    a_hits, b_hits = round(a_share * a), round(b_share * b)
    more = statistics.counts_p(a_hits, a, b_hits, b)
    less = statistics.counts_p(b_hits, b, a_hits, a)
    return min(1.0, 2 * min(more, less))


def _number_bars(content: Numbers, values: Floats, weights: Floats) -> Bars:
    edges = np.linspace(content.low, content.high, BARS + 1)
    edges[0] = np.nextafter(content.low, -np.inf)  # the smallest value is inside
    here = column.binned(values, weights, edges)
    own = np.diff(content.cdf, prepend=0.0)
    there = column.binned(content.points, own, edges)
    return Bars(
        labels=(),
        reference=tuple(there.tolist()),
        current=tuple(here.tolist()),
        low=content.low,
        high=content.high,
    )


def _category_bars(labels: list[str], there: Floats, here: Floats) -> Bars | None:
    """Show the categories that are the most frequent on both sides together, and all others."""
    if there.sum() <= 0 or here.sum() <= 0:
        return None
    shares = there / there.sum(), here / here.sum()
    order = np.argsort(-(shares[0] + shares[1]), kind="stable")
    shown, rest = order[:BARS_OF_CATEGORIES], order[BARS_OF_CATEGORIES:]
    names = [labels[place] for place in shown.tolist()]
    heights = [side[shown].tolist() for side in shares]
    if len(rest):
        names.append(OTHER)
        for values, side in zip(heights, shares, strict=True):
            values.append(float(side[rest].sum()))
    return Bars(labels=tuple(names), reference=tuple(heights[0]), current=tuple(heights[1]))
