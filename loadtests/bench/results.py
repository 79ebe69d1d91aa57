"""The results file: every round of every case, and what stood around them; and its figures.

Pure. `Book` answers what the tables and the targets ask: medians, spreads, ratios, differences.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from loadtests.bench.machine import Setting
from loadtests.bench.measure import Sample

Figure = Literal["cpu_us", "per_s", "p50_ms", "p99_ms", "pss_mb", "rows_per_batch"]
FIGURES: Final[Mapping[Figure, Callable[[Sample], float]]] = {
    "cpu_us": lambda s: s.cpu_us_per_request,
    "per_s": lambda s: s.requests_per_s,
    "p50_ms": lambda s: s.p50_us / 1e3,
    "p99_ms": lambda s: s.p99_us / 1e3,
    "pss_mb": lambda s: s.pss_bytes / 1e6,
    "rows_per_batch": lambda s: s.rows_per_batch,
}


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How the measurement was taken."""

    rounds: int
    round_s: float
    warm_up_s: float
    threads: int
    """Of onnxruntime, per session, in the gateway as in-process."""
    redis: str
    """Which server took the prediction log."""
    is_pinned: bool = False
    """Whether servers had the first core to themselves, and generators and Redis the others."""
    is_quick: bool = False
    generators: Mapping[str, str] = {}
    """Case -> what generated its load."""


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """One start of a gateway with the tiny model."""

    seconds: float
    pss_bytes: int
    rss_bytes: int


class Idle(msgspec.Struct, frozen=True, kw_only=True):
    """Memory of open connections without a request."""

    protocol: str
    connections: int
    bytes_each: float
    """Growth of the server's process tree (PSS) per connection."""


class StageCost(msgspec.Struct, frozen=True, kw_only=True):
    """What one stage of the pipeline costs: CPU per request with it less that without it."""

    stage: str
    """full: of the whole; log, metrics, routing: the difference that switching it off makes."""
    rounds_us: Sequence[float]

    @property
    def median_us(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.rounds_us)


class StageCosts(msgspec.Struct, frozen=True, kw_only=True):
    """The file of loadtests/micro/pipeline.py."""

    setting: Setting
    requests: int
    """Of each variation in each round."""
    in_flight: int
    stages: Sequence[StageCost]


class PeerNote(msgspec.Struct, frozen=True, kw_only=True):
    """A peer that was measured."""

    version: str
    how: str


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    setting: Setting
    plan: Plan
    samples: Sequence[Sample]
    skipped: Mapping[str, str] = {}
    """Case -> why there is no figure."""
    starts: Sequence[Start] = ()
    idle: Sequence[Idle] = ()
    pipeline: Sequence[StageCost] = ()
    peers: Mapping[str, PeerNote] = {}
    warnings: Sequence[str] = ()


class Book:
    """The figures of a results file."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.by_case: dict[str, list[Sample]] = {}
        for sample in results.samples:
            self.by_case.setdefault(sample.case, []).append(sample)

    def values(self, case: str, figure: Figure) -> list[float]:
        """Return a figure of each round; empty where the case was not measured."""
        of = FIGURES[figure]
        return [of(sample) for sample in self.by_case.get(case, ())]

    def median(self, case: str, figure: Figure) -> float | None:
        """Return the median of the rounds; None where the case was not measured."""
        values = self.values(case, figure)
        return statistics.median(values) if values else None

    def ratio(self, case: str, against: str, figure: Figure) -> float | None:
        """Return the ratio of two medians; None where one was not measured."""
        above, below = self.median(case, figure), self.median(against, figure)
        return above / below if above is not None and below else None

    def difference(self, case: str, against: str, figure: Figure) -> float | None:
        """Return the median of the rounds' differences; None where one was not measured."""
        pairs = list(zip(self.values(case, figure), self.values(against, figure), strict=False))
        return statistics.median(a - b for a, b in pairs) if pairs else None

    def stage_us(self, stage: str) -> float | None:
        """Return what a stage of the pipeline costs; None where it was not measured."""
        found = [cost.median_us for cost in self.results.pipeline if cost.stage == stage]
        return found[0] if found else None

    def start(self, of: Callable[[Start], float]) -> float | None:
        """Return the median of the starts; None without any."""
        values = [of(start) for start in self.results.starts]
        return statistics.median(values) if values else None
