"""Why numbers are missing, as far as the audits' counts of dropped records can say. Pure.

A drop has a reason and no number. So a cause is given only where the counts leave no choice: as
many numbers are missing as were dropped. That is tried between two audits of a worker; then over
its whole life (what was spooled may be dropped long after it got its number); then over all lives
(what a successor finds damaged is counted by the successor).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.prediction_log.reader.completeness import NOT_IN_STREAM, Gap
from gateway.prediction_log.reader.numbers import Range, both, cut, total


@dataclass(slots=True)
class Unexplained:
    """Missing numbers and dropped records that may have been theirs."""

    missing: list[Range]
    dropped: Counter[str]
    gaps: list[Gap] = field(default_factory=list)

    def explain(self) -> None:
        """Give the numbers their cause, if as many were dropped as are missing."""
        if self.missing and total(self.missing) == self.dropped.total():
            self.gaps += [Gap(numbers, _reasons(self.dropped)) for numbers in self.missing]
            self.missing = []
            self.dropped = Counter()


@dataclass(frozen=True, slots=True)
class Audited:
    """What one audit says of a worker's records of a kind."""

    sequence: int
    dropped: Mapping[str, int]


def of_life(missing: Sequence[Range], audits: Sequence[Audited], first: int) -> Unexplained:
    """Explain what is missing of one worker's numbers from `first` on, by its audits in order."""
    borders = [audit.sequence for audit in audits]
    pieces = cut(missing, borders)
    life = Unexplained([], Counter())
    before: Mapping[str, int] = {}
    at = 1
    for audit in audits:
        inside = both(pieces, [Range(at, audit.sequence)])
        dropped = Counter(audit.dropped) - Counter(before)
        if first > at:  # begins before the window, and so may have what was dropped
            life.gaps += [Gap(numbers, _perhaps(dropped)) for numbers in inside]
        else:
            step = Unexplained(inside, dropped)
            step.explain()
            life.gaps += step.gaps
            life.missing += step.missing
            life.dropped += step.dropped
        before, at = audit.dropped, max(at, audit.sequence + 1)
    life.missing += both(pieces, [Range(at, pieces[-1].last)] if pieces else [])
    life.explain()
    return life


def explain_all(lives: Sequence[Unexplained]) -> None:
    """Explain what is left of all lives together, and say of the rest what can be said."""
    together = Unexplained(
        [numbers for life in lives for numbers in life.missing],
        sum((life.dropped for life in lives), Counter()),
    )
    is_explained = total(together.missing) == together.dropped.total()
    for life in lives:
        cause = _reasons(together.dropped) if is_explained else _perhaps(life.dropped)
        life.gaps += [Gap(numbers, cause) for numbers in life.missing]
        life.missing = []


def _perhaps(dropped: Counter[str]) -> str:
    return f"{NOT_IN_STREAM} or {_reasons(dropped)}" if dropped else NOT_IN_STREAM


def _reasons(dropped: Counter[str]) -> str:
    return "+".join(sorted(dropped))
