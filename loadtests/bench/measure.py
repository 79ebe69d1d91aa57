"""One measurement: requests, batches, wall and CPU time between two readings of a gateway.

Knows the gateway's statistics and its process tree; knows no load generator. A case is measured
once per round, the cases of a round one after the other, so that whatever else the machine does
meets all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from loadtests import asking
from loadtests.bench.process_cpu import tree_cpu_s
from loadtests.gateway_process import RunningGateway

SETTLE_S: Final = 0.3
"""Between the load's end and the reading: the last batches run, the last records are written."""


class NotMeasured(Exception):
    """A case gave no figure; the sentence says why."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in one round of one case."""

    case: str
    requests: int
    """Answered with success, as the gateway counts. In-process: calls."""
    failures: int
    """Answered with an error, or given up by the load generator when its time was over."""
    rows: int
    batches: int
    wall_s: float
    """Of the load generator's run, its start included."""
    cpu_s: float
    """User and system time of the gateway's process tree. In-process: of this process."""

    @property
    def cpu_us_per_request(self) -> float:
        """CPU microseconds per answered request."""
        return self.cpu_s / self.requests * 1e6

    @property
    def rows_per_s(self) -> float:
        """Answered rows per second; requests per second where a request is a row."""
        return self.rows / self.wall_s

    @property
    def rows_per_batch(self) -> float:
        """Mean size of the executed batches."""
        return self.rows / self.batches if self.batches else 0.0


class Case(Protocol):
    """Something that can be measured again and again."""

    @property
    def name(self) -> str:
        """Unique among the cases of a table."""

    @property
    def label(self) -> str:
        """What generates its load."""

    def measure(self, duration_s: float) -> Sample:
        """Load for this long."""


class Counts(NamedTuple):
    """A gateway's row of statistics; every number only grows."""

    requests: int
    failures: int
    rows: int
    batches: int


def read_counts(gateway: RunningGateway, name: str) -> Counts:
    """Return the counts of a route, or of a model with one version."""
    document = asking.get_json(f"{gateway.http_url}/v2/models/{name}/stats")
    (row,) = document["model_stats"]
    stages = row["inference_stats"]
    return Counts(
        stages["success"]["count"],
        stages["fail"]["count"],
        row["inference_count"],
        row["execution_count"],
    )


def measure(
    case: str, gateway: RunningGateway, name: str, load: Callable[[], None], *, in_flight: int
) -> Sample:
    """Measure a gateway under load.

    Args:
        case: the sample's name.
        gateway: under test.
        name: the route or model whose statistics count.
        load: generates the load and returns when it is over.
        in_flight: requests that the generator may give up at its end.

    Raises:
        NotMeasured: nothing was answered, or more failed than the end cut off.
    """
    before, cpu_before_s = read_counts(gateway, name), tree_cpu_s(gateway.pid)
    started_s = time.monotonic()
    load()
    wall_s = time.monotonic() - started_s
    time.sleep(SETTLE_S)
    after, cpu_after_s = read_counts(gateway, name), tree_cpu_s(gateway.pid)
    sample = Sample(
        case=case,
        requests=after.requests - before.requests,
        failures=after.failures - before.failures,
        rows=after.rows - before.rows,
        batches=after.batches - before.batches,
        wall_s=wall_s,
        cpu_s=cpu_after_s - cpu_before_s,
    )
    if not sample.requests or sample.failures > in_flight:
        raise NotMeasured(f"{case}: {sample.requests} answered, {sample.failures} failed")
    return sample


def interleaved(
    cases: Sequence[Case],
    *,
    rounds: int,
    duration_s: float,
    warm_up_s: float,
    on_round: Callable[[str], None],
) -> list[Sample]:
    """Measure every case once per round; the warm-up of each is thrown away, and left out for 0."""
    for case in cases if warm_up_s else ():
        on_round(f"warming up {case.name}")
        case.measure(warm_up_s)
    samples = []
    for number in range(1, rounds + 1):
        for case in cases:
            on_round(f"round {number} of {rounds}: {case.name}")
            samples.append(case.measure(duration_s))
    return samples
