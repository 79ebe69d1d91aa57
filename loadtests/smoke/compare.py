"""Whether requests have become dearer. Pure: ratios in, verdicts out.

A ratio is what a request costs in turns of the calibration loop of the same run. Noise only makes a
ratio larger, and not every time: a case has regressed if it is over its limit in every attempt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from loadtests.bench.machine import Setting

TOLERANCE: Final = 0.15
PREFERRED: Final = ("instructions", "cpu")
"""Units, the less noisy first."""
Ratios = Mapping[str, float]
"""By case."""


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """The committed file."""

    setting: Setting
    ratios: Mapping[str, Ratios]
    """Unit -> case -> ratio."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One case."""

    case: str
    baseline: float
    obtained: float
    """The least of the attempts."""

    @property
    def change(self) -> float:
        """Relative to the baseline."""
        return self.obtained / self.baseline - 1

    @property
    def is_over(self) -> bool:
        """Whether it has become dearer by more than noise explains."""
        return self.change > TOLERANCE


class NotComparable(Exception):
    """The baseline lacks a case or a unit; the sentence says what to do."""


def unit_for(baseline: Baseline, measured: Mapping[str, Ratios]) -> str:
    """Return the best unit that both sides have.

    Raises:
        NotComparable: there is none.
    """
    for unit in PREFERRED:
        if unit in baseline.ratios and unit in measured:
            return unit
    raise NotComparable("the baseline knows none of the units that are counted here")


def apart(baseline: Setting, here: Setting, unit: str) -> str:
    """Say why figures of two machines cannot be held against each other; empty: they can.

    A turn of the calibration loop stands for the machine only as far as the same interpreter counts
    instructions; CPU time depends on caches and kernel as well.
    """
    pairs = [("Python", _minor(baseline.python), _minor(here.python))]
    if unit != PREFERRED[0]:
        pairs += [("CPU", baseline.cpu, here.cpu), ("kernel", baseline.kernel, here.kernel)]
    for what, theirs, ours in pairs:
        if theirs != ours:
            return f"the baseline is of the {what} {theirs}, this is {ours}"
    return ""


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def judge(baseline: Ratios, attempts: Sequence[Ratios]) -> list[Verdict]:
    """Compare attempts with the baseline.

    Raises:
        NotComparable: the cases differ.
    """
    if any(set(attempt) != set(baseline) for attempt in attempts):
        raise NotComparable("the cases are not those of the baseline: make it anew with --write")
    return [
        Verdict(
            case=case,
            baseline=ratio,
            obtained=min(attempt[case] for attempt in attempts),
        )
        for case, ratio in baseline.items()
    ]


def ratios(costs: Mapping[str, Sequence[float]], calibration: Sequence[float]) -> dict[str, float]:
    """Return each case's cost in turns of the calibration loop, least of the rounds by least."""
    turn = min(calibration)
    return {case: min(rounds) / turn for case, rounds in costs.items()}
