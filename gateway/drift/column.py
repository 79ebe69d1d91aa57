"""Values of one column, and what is kept of a reference's column.

A profile is small, however long the reference is. Numbers are rounded to single precision on both
sides: a reference in double precision and a model that is sent FP32 would otherwise differ in every
value that is not a sum of powers of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gateway.drift import statistics
from gateway.drift.statistics import Flags, Floats

Values = npt.NDArray[Any]  # Any: columns come in every element type

QUANTILE_BINS: Final = 10
MAX_POINTS: Final = 16_384
"""Distinct values that are kept of a reference's column; of more, as many quantiles."""
MAX_CATEGORIES: Final = 10_000
"""Most categories of a column; one with more is taken for an identifier, which has no drift."""
MAX_CODES: Final = 20
"""Whole numbers with at most so many distinct values are codes of categories."""
Texts = npt.NDArray[np.object_]


class Kind(StrEnum):
    """How a column is compared; its reference decides."""

    NUMBER = "number"
    CATEGORY = "category"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Numbers:
    """How the numbers of a reference's column are distributed."""

    points: Floats
    """Distinct values, sorted."""
    cdf: Floats
    """Share of the values at or below each point."""
    mean: float
    scale: float
    """The standard deviation; of a constant its size, or 1."""
    edges: Floats
    """Upper edges of all bins but the last, which has none; an edge belongs to the bin below it."""
    bins: Floats
    """Share of the values in each bin."""

    @property
    def low(self) -> float:
        """The smallest value."""
        return float(self.points[0])

    @property
    def high(self) -> float:
        """The largest value."""
        return float(self.points[-1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Categories:
    """How often each category of a reference's column occurs."""

    labels: tuple[str, ...]
    """All of them, the most frequent first."""
    shares: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Profile:
    """What is kept of one column of a reference."""

    name: str
    kind: Kind
    size: float
    """Effective number of rows, those without a value included."""
    missing: float
    """Share of the rows without a value."""
    content: Numbers | Categories | None
    """None: no row has a value."""


def numbers(values: Values) -> Floats:
    """Return values as numbers of single precision; NaN where there is none that is finite."""
    if values.dtype.kind == "M":
        seconds = values.astype("datetime64[us]").astype(np.int64) / 1e6
        found = np.where(np.isnat(values), np.nan, seconds)
    elif values.dtype.kind in "fiub":
        found = values.astype(np.float64)
    else:
        found = np.array([_number(value) for value in values.tolist()], np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        found = found.astype(np.float32).astype(np.float64)
    found[~np.isfinite(found)] = np.nan
    return np.asarray(found, np.float64)


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]  # what is no number ends in the next line
    except (TypeError, ValueError):
        return float("nan")


def texts(values: Values) -> Texts:
    """Return values as labels of categories; None where there is none. 3 and 3.0 are one."""
    if values.dtype.kind in "fiu":
        found, places = np.unique(values, return_inverse=True)
        labels = [_label(value) for value in found.tolist()]
    else:
        labels = [_label(value) for value in values.tolist()]
        places = np.arange(len(labels))
    table = np.empty(len(labels), np.object_)
    table[:] = labels
    return np.asarray(table[places.reshape(-1)], np.object_)


def _label(value: object) -> str | None:
    if value is None or (isinstance(value, float) and value != value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return str(value)


def kind_of(values: Values) -> Kind:
    """Return how a reference's column is compared.

    Floating point and time are numbers; text and truth values are categories; so are whole numbers
    with few distinct values, as they are mostly labels. Whole numbers that a table with gaps holds
    as floating point are numbers.
    """
    if values.dtype.kind in "fM":
        return Kind.NUMBER
    if values.dtype.kind in "iu":
        return Kind.CATEGORY if len(np.unique(values)) <= MAX_CODES else Kind.NUMBER
    return Kind.CATEGORY


def profile(name: str, values: Values, weights: Floats) -> Profile:
    """Return what is kept of a reference's column. Any number of rows."""
    kind = kind_of(values)
    size = statistics.effective_size(weights)
    if kind is Kind.NUMBER:
        found = numbers(values)
        present = ~np.isnan(found)
        content: Numbers | Categories | None = None
        if present.any():
            content = _numbers(found[present], weights[present])
    else:
        labels = texts(values)
        present = present_flags(labels)
        content = _categories(labels[present], weights[present]) if present.any() else None
    missing = share_of(weights, ~present)
    return Profile(name=name, kind=kind, size=size, missing=missing, content=content)


def _numbers(values: Floats, weights: Floats) -> Numbers:
    points, cdf = steps(values, weights)
    mean = float(np.average(values, weights=weights))
    spread = float(np.sqrt(np.average(np.square(values - mean), weights=weights)))
    is_constant = len(points) == 1
    edges = np.unique(points[_quantile_places(cdf, QUANTILE_BINS)])
    if edges[0] == points[0]:  # many rows have the smallest value: below it is a bin of its own
        edges = np.concatenate(([np.nextafter(edges[0], -np.inf)], edges))
    bins = binned(values, weights, edges)
    if len(points) > MAX_POINTS:
        kept = np.unique(np.append(_quantile_places(cdf, MAX_POINTS), (0, len(points) - 1)))
        points, cdf = points[kept], cdf[kept]
    return Numbers(
        points=points,
        cdf=cdf,
        mean=mean,
        scale=(abs(mean) or 1.0) if is_constant else spread,
        edges=edges,
        bins=bins,
    )


def _quantile_places(cdf: Floats, parts: int) -> npt.NDArray[np.intp]:
    """Return the places of the quantiles that cut a distribution into so many parts."""
    wanted = np.arange(1, parts) / parts
    # Sums of shares are off by some last bits, which must not push a quantile to the next value.
    return np.minimum(np.searchsorted(cdf, wanted - 1e-12), len(cdf) - 1)


def steps(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return the distinct values, sorted, and the share of the weight at or below each."""
    points, places = np.unique(values, return_inverse=True)
    sums = np.cumsum(np.bincount(places.reshape(-1), weights))
    return points, np.asarray(sums / sums[-1], np.float64)


def binned(values: Floats, weights: Floats, edges: Floats) -> Floats:
    """Return the share of the weight in each bin; an edge belongs to the bin below it."""
    places = np.searchsorted(edges, values, side="left")
    counts = np.bincount(places, weights, minlength=len(edges) + 1)
    return np.asarray(counts / counts.sum(), np.float64)


def _categories(labels: Texts, weights: Floats) -> Categories:
    found, places = np.unique(labels.astype(str), return_inverse=True)
    sums = np.bincount(places.reshape(-1), weights)
    order = np.argsort(-sums, kind="stable")
    shares = np.asarray(sums[order] / sums.sum(), np.float64)
    return Categories(labels=tuple(found[order].tolist()), shares=shares)


def by_frequency(counts: Floats) -> npt.NDArray[np.intp]:
    """Return places, the most frequent first; equal counts stay in order, whatever rounding did."""
    return np.argsort(-np.round(counts, 6), kind="stable")


def present_flags(labels: Texts) -> Flags:
    """Return where there is a label."""
    return np.array([label is not None for label in labels], np.bool_)


def share_of(weights: Floats, where: Flags) -> float:
    """Return the share of the weight that is there."""
    total = float(weights.sum())
    return float(weights[where].sum()) / total if total > 0 else 0.0
