"""The verdict on one window: which columns drift, and whether the model's data does.

A column drifts if the difference is large AND would be too unlikely without drift. Large: an index
or a distance over its threshold. Too unlikely: Holm's procedure over all columns of the window and
the rate of errors, at the window's part of the level. The k-th window of a watch gets
6 / (pi k)^2 of the level, so that all windows together, however many, give a false alarm with at
most probability `level`. Where labels are watched as well, they get half of the level.

Pure: no clock, no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from gateway.drift import compare, rows, statistics
from gateway.drift.column import Kind, Profile
from gateway.drift.compare import Figures
from gateway.drift.concept import ConceptVerdict, Rate
from gateway.drift.reference import Reference
from gateway.drift.rows import Columns, DriftError, Side
from gateway.drift.statistics import Floats

MIN_ROWS: Final = 30
"""Windows with fewer effective rows are not judged by their columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What counts as drift."""

    level: float = 0.05
    """Most probability of any false alarm in a whole run."""
    psi: float = 0.2
    """A stability index from here on is large."""
    wasserstein: float = 0.2
    """So is a distance of this many standard deviations: what Cohen calls a small effect."""
    share: float = 0.0
    """Share of the features that must drift for data drift; 0: one does."""
    error_rise: float = 0.01
    """Rise of the rate of error statuses that is large."""
    wrong_rise: float = 0.02
    """Rise of the rate of wrong answers that is large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnVerdict:
    """One column of a window."""

    name: str
    """As the reference has it."""
    side: Side
    kind: Kind
    figures: Figures
    adjusted_p: float
    """After Holm: drift needs it to be at most the window's level."""
    is_large: bool
    is_drifted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorVerdict:
    """The rate of error statuses of a window."""

    errors: int
    requests: int
    rate: float
    reference: float | None
    """None: not known, so that there is no verdict."""
    p: float
    adjusted_p: float
    is_drifted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One window."""

    number: int
    rows: int
    size: float
    """Effective number of rows."""
    level: float
    """The window's part."""
    columns: tuple[ColumnVerdict, ...]
    """Empty: too few rows to judge."""
    errors: ErrorVerdict | None
    concept: ConceptVerdict | None
    """None: labels are not watched."""
    is_data_drift: bool
    unknown: tuple[str, ...]
    """Columns of the reference that are not in the window."""
    is_new: tuple[str, ...]
    """Columns of the window that the reference does not know."""

    @property
    def is_judged(self) -> bool:
        """Whether there were rows enough."""
        return bool(self.columns)

    @property
    def is_prediction_drift(self) -> bool:
        """Whether an output drifts."""
        return any(c.is_drifted for c in self.columns if c.side is Side.OUTPUT)

    @property
    def is_error_drift(self) -> bool:
        """Whether there are more error statuses."""
        return self.errors is not None and self.errors.is_drifted

    @property
    def is_concept_drift(self) -> bool:
        """Whether more answers are wrong."""
        return self.concept is not None and self.concept.is_drifted

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return which kinds of drift there are."""
        found = {
            "data": self.is_data_drift,
            "prediction": self.is_prediction_drift,
            "error": self.is_error_drift,
            "concept": self.is_concept_drift,
        }
        return tuple(kind for kind, is_there in found.items() if is_there)

    @property
    def is_drift(self) -> bool:
        """Whether there is any."""
        return bool(self.kinds)


def judge(
    reference: Reference,
    window: Columns,
    thresholds: Thresholds,
    *,
    number: int = 1,
    concept: ConceptVerdict | None = None,
) -> Verdict:
    """Return the verdict on a window, the `number`-th of its run, from 1 on.

    Raises:
        DriftError: the window has none of the reference's columns.
    """
    level = thresholds.level / (2 if concept is not None else 1)
    level = statistics.spent(level, number)
    counted = rows.answered(window)
    weights = rows.weights_of(counted)
    size = statistics.effective_size(weights)
    compared: list[tuple[Profile, Side, Figures]] = []
    places = rows.match(reference.profiles, window)
    if size >= MIN_ROWS:
        if not places:
            raise DriftError(_nothing_fits(reference, window))
        compared = _compared(reference, counted, places, weights)
    errors, errors_p = _errors(reference, window)
    family = np.array([errors_p] + [figures.p for _, _, figures in compared])
    adjusted = statistics.holm(family).tolist()
    columns = tuple(
        _column(row, p, level, thresholds) for row, p in zip(compared, adjusted[1:], strict=True)
    )
    return Verdict(
        number=number,
        rows=rows.length(counted),
        size=size,
        level=level,
        columns=columns,
        errors=_error_verdict(reference, errors, (errors_p, adjusted[0]), level, thresholds),
        concept=concept,
        is_data_drift=_is_data_drift(columns, thresholds.share),
        unknown=tuple(n for n in reference.profiles if n not in places and not _has_side(n)),
        is_new=tuple(sorted(set(rows.judged(window)) - set(places.values()))),
    )


def _compared(
    reference: Reference, window: Columns, places: dict[str, str], weights: Floats
) -> list[tuple[Profile, Side, Figures]]:
    """Compare each column; one that the log should have and has not is missing in every row."""
    found = []
    absent = np.full(len(weights), np.nan)
    for name, profile in reference.profiles.items():
        if name in places:
            figures = compare.compare(profile, window[places[name]], weights)
        elif _has_side(name):
            figures = compare.compare(profile, absent, weights)
        else:
            continue
        found.append((profile, rows.side_of(places.get(name, name)), figures))
    return found


def _column(
    compared: tuple[Profile, Side, Figures], adjusted_p: float, level: float, limits: Thresholds
) -> ColumnVerdict:
    profile, side, figures = compared
    is_large = figures.psi >= limits.psi or (figures.wasserstein or 0.0) >= limits.wasserstein
    return ColumnVerdict(
        name=profile.name,
        side=side,
        kind=profile.kind,
        figures=figures,
        adjusted_p=adjusted_p,
        is_large=is_large,
        is_drifted=is_large and adjusted_p <= level,
    )


def _is_data_drift(columns: tuple[ColumnVerdict, ...], share: float) -> bool:
    features = [c.is_drifted for c in columns if c.side is Side.FEATURE]
    return any(features) and sum(features) >= share * len(features)


_Found = tuple[Rate, int, int] | None


def _errors(reference: Reference, window: Columns) -> tuple[_Found, float]:
    """Return the window's error rate, and how probable so many errors are at the old rate."""
    found = rows.error_rate(window)
    if found is None or reference.errors is None:
        return found, 1.0
    before, now = reference.errors, found[0]
    counts = (
        round(before.share * before.size),
        round(before.size),
        round(now.share * now.size),
        round(now.size),
    )
    return found, statistics.counts_p(*counts)


def _error_verdict(
    reference: Reference, found: _Found, ps: tuple[float, float], level: float, limits: Thresholds
) -> ErrorVerdict | None:
    if found is None:
        return None
    rate, errors, requests = found
    before = reference.errors
    p, adjusted_p = ps
    has_risen = before is not None and rate.share - before.share >= limits.error_rise
    return ErrorVerdict(
        errors=errors,
        requests=requests,
        rate=rate.share,
        reference=before.share if before else None,
        p=p,
        adjusted_p=adjusted_p,
        is_drifted=has_risen and adjusted_p <= level,
    )


def _has_side(name: str) -> bool:
    return name.startswith((rows.IN, rows.OUT))


def _nothing_fits(reference: Reference, window: Columns) -> str:
    wanted, here = list(reference.profiles)[:5], rows.judged(window)[:5]
    return (
        f"none of the columns of {reference.source} ({', '.join(wanted)} ...) is in the log, "
        f"which has {', '.join(here) or 'none'} ...; name the columns of the model's tensors in "
        "[prediction_log.names.<model>.columns], or those of the table as the log does"
    )
