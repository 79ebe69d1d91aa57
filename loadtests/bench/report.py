"""The bench's report: setting, method and bias first, then the tables. Pure: samples in, lines out.

The file that it goes with (results/bench.json) holds every round, so that a table can be redone.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from loadtests.bench.cases import CONCURRENCY, IN_PROCESS, OFF, ON
from loadtests.bench.machine import Setting
from loadtests.bench.measure import SETTLE_S, Sample

_WIDTH: Final = 100


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How the measurement was taken."""

    rounds: int
    round_s: float
    warm_up_s: float
    threads: int
    """Of onnxruntime, per session, in the gateway as in-process."""
    redis: str
    """Which server took the prediction log."""
    drivers: Mapping[str, str]
    """Case -> what generated its load."""


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    setting: Setting
    plan: Plan
    cpu: Sequence[Sample]
    """Every round of the tiny route, by protocol."""
    batching: Sequence[Sample]
    """Every round of the medium model."""


def header(setting: Setting, plan: Plan) -> list[str]:
    """Return machine, versions, method and bias."""
    versions = ", ".join(f"{name} {version}" for name, version in setting.versions.items())
    used = ", ".join(f"{case}: {driver}" for case, driver in plan.drivers.items())
    facts = [
        ("machine", f"{setting.cpu}, {setting.cores} cores, Linux {setting.kernel}"),
        ("load before", f"{setting.load_average} (1 minute)"),
        ("versions", f"Python {setting.python}, {versions}"),
        ("sluice", f"{setting.sluice}, revision {setting.revision}"),
        ("date", setting.date),
        ("method", _method(plan)),
        ("load from", used),
        ("known bias", _bias(plan)),
    ]
    lines = []
    for name, text in facts:
        lines += textwrap.wrap(
            text, _WIDTH, initial_indent=f"{name:13}", subsequent_indent=" " * 13
        )
    return lines


def _method(plan: Plan) -> str:
    return (
        f"closed loop, {CONCURRENCY} requests under way, one row each, the same row again and "
        f"again; {plan.rounds} rounds of {plan.round_s:g} s, the cases of a round one after the "
        f"other, after {plan.warm_up_s:g} s of warm-up each. CPU is user and system time of the "
        f"gateway and its children from /proc (ticks of 10 ms), read before and {SETTLE_S:g} s "
        "after the load; requests are those that the gateway counts as answered. Median of the "
        "rounds, least and most beside it. Metrics are on, and the prediction log is, into "
        f"{plan.redis}, whose own CPU time is not counted. Tiny: an MLP of 30-64-3 behind a "
        "route that splits 90/10 between two versions. Medium: an MLP of 256-1024x3-10 asked "
        f"over HTTP binary, onnxruntime with {plan.threads} thread(s) per session, not spinning; "
        f"in-process is the same engine on the same file, called with batches of {CONCURRENCY}."
    )


def _bias(plan: Plan) -> str:
    return (
        "the load generator runs on the same cores as the gateway: requests per second are those "
        "of both together, CPU per request suffers less. HTTP requests carry a random x-user-id. "
        "gRPC requests carry none, as h2load cannot vary a header: the route draws at random, one "
        "hash less, and header compression is at its best. They share one connection, which lets "
        "a server write many answers at once; HTTP has 32. The in-process loop is spared what any "
        "server must do, and has its cores to itself."
    )


def cpu_table(samples: Sequence[Sample]) -> list[str]:
    """Return CPU per request by protocol."""
    lines = [
        f"CPU per request in microseconds, concurrency {CONCURRENCY}, tiny model",
        f"{'':14}{'median':>9}{'min':>9}{'max':>9}{'requests/s':>13}{'rows/batch':>12}",
    ]
    for case, rounds in by_case(samples).items():
        cost = _values(rounds, lambda sample: sample.cpu_us_per_request)
        lines.append(
            f"{case:14}{statistics.median(cost):>9.1f}{min(cost):>9.1f}{max(cost):>9.1f}"
            f"{_median(rounds, lambda s: s.rows_per_s):>13,.0f}"
            f"{_median(rounds, lambda s: s.rows_per_batch):>12.1f}"
        )
    return lines


def batching_table(samples: Sequence[Sample]) -> list[str]:
    """Return rows per second with and without batching and in-process, and their ratios."""
    cases = by_case(samples)
    lines = [
        f"rows per second, concurrency {CONCURRENCY}, medium model",
        f"{'':14}{'median':>9}{'min':>9}{'max':>9}{'rows/batch':>13}",
    ]
    for case, rounds in cases.items():
        rate = _values(rounds, lambda sample: sample.rows_per_s)
        lines.append(
            f"{case:14}{statistics.median(rate):>9,.0f}{min(rate):>9,.0f}{max(rate):>9,.0f}"
            f"{_median(rounds, lambda s: s.rows_per_batch):>13.1f}"
        )
    on, off, alone = (
        _median(cases[name], lambda s: s.rows_per_s) for name in (ON, OFF, IN_PROCESS)
    )
    lines.append(f"{ON} is {on / off:.2f} x {OFF}, and {on / alone:.2f} x {IN_PROCESS}")
    return lines


def by_case(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Return the rounds of each case, in the order of their first round."""
    found: dict[str, list[Sample]] = {}
    for sample in samples:
        found.setdefault(sample.case, []).append(sample)
    return found


def _values(rounds: Sequence[Sample], of: Callable[[Sample], float]) -> list[float]:
    return [of(sample) for sample in rounds]


def _median(rounds: Sequence[Sample], of: Callable[[Sample], float]) -> float:
    return statistics.median(_values(rounds, of))
