"""The results file: every turn of every comparison, and the figures that come of them.

Pure. A ratio is the median over the rounds of one side's figure over the baseline's of the same
round; medians of both stand beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import msgspec

TARGET: Final = 0.95
"""Rows per second through the gateway over those in-process: at least this."""

Figure = Literal["rows_per_s", "p50_ms", "p99_ms", "gpu_busy", "cpu_cores", "rows_per_batch"]
FIGURES: Final[Mapping[Figure, Callable[[Turn], float | None]]] = {
    "rows_per_s": lambda turn: turn.rows / turn.seconds,
    "p50_ms": lambda turn: turn.p50_ms,
    "p99_ms": lambda turn: turn.p99_ms,
    "gpu_busy": lambda turn: turn.gpu_busy,
    "cpu_cores": lambda turn: turn.cpu_s / turn.seconds,
    "rows_per_batch": lambda turn: turn.batch_rows / turn.batches if turn.batches else None,
}


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """Where and with what it was measured."""

    date: str
    command: str
    device: str
    """As asked for."""
    gpu: str
    """Name, memory and compute capability; empty: it ran on the CPU."""
    driver: str
    cpu: str
    cores: int
    kernel: str
    python: str
    sluice: str
    revision: str
    versions: Mapping[str, str]
    """Of installed packages."""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """Some seconds of one side."""

    side: str
    rows: int
    seconds: float
    cpu_s: float
    """Of the gateway's process tree, or of this process where there is no gateway."""
    requests: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    gpu_busy: float | None = None
    """Mean of what the driver told: part of the time in which a kernel ran."""
    batches: int = 0
    """These three: from before the turn until after it."""
    batch_rows: int = 0
    padded_rows: int = 0
    copies: int | None = None
    """Requests that a shadow was to copy; None: there is no shadow."""
    copies_answered: int = 0


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Sides that were measured by turns."""

    name: str
    about: str
    load: str
    """What the callers did."""
    turns: list[Turn]
    """Round by round, each side once a round; the first side is the baseline."""

    @property
    def sides(self) -> list[str]:
        """In the order of the first round."""
        return list(dict.fromkeys(turn.side for turn in self.turns))

    def values(self, side: str, figure: Figure) -> list[float]:
        """Return a figure of each round; empty where there is none."""
        found = [FIGURES[figure](turn) for turn in self.turns if turn.side == side]
        return [value for value in found if value is not None]

    def median(self, side: str, figure: Figure) -> float | None:
        """Return the median of the rounds."""
        values = self.values(side, figure)
        return statistics.median(values) if values else None

    def ratio(self, side: str, figure: Figure) -> float | None:
        """Return the median over the rounds of a side over the baseline."""
        above, below = self.values(side, figure), self.values(self.sides[0], figure)
        if len(above) != len(below) or not above or 0.0 in below:
            return None
        return statistics.median(a / b for a, b in zip(above, below, strict=True))

    def total(self, side: str, count: Callable[[Turn], int | None]) -> int:
        """Return the sum of a count over the rounds."""
        return sum(count(turn) or 0 for turn in self.turns if turn.side == side)


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """One engine with one network."""

    engine: str
    network: str
    about: str
    """What the network is."""
    loaded: Mapping[str, str]
    """What the engine in this process says of itself."""
    buckets: Mapping[int, list[float]]
    """Rows per second in-process, one batch after the other, by the batch's rows; each round's."""
    comparisons: list[Comparison]
    warnings: list[str]
    """Of the gateway's log."""

    @property
    def best(self) -> int:
        """The batch of most rows per second in-process."""
        return best(self.buckets)

    def comparison(self, name: str) -> Comparison | None:
        """Return one by its name; None: it was not measured."""
        return next((found for found in self.comparisons if found.name == name), None)


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    setting: Setting
    rounds: int
    turn_s: float
    settle_s: float
    callers: int
    """Processes."""
    max_batch: int
    is_quick: bool
    """Small networks, short turns: shows that the measurement runs, and nothing else."""
    pairs: list[Pair]
    skipped: dict[str, str]
    """What was not measured -> why."""


def best(buckets: Mapping[int, Sequence[float]]) -> int:
    """Return the batch of most rows per second."""
    return max(buckets, key=lambda rows: statistics.median(buckets[rows]))
