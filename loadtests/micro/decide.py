"""`python -m loadtests.micro.decide`: what it costs to choose the variant of a request.

Times CompiledRoute.decide, call by call, on a route with twenty rules of every kind. The facts are
those of a request over HTTP: headers are looked up in a list of pairs of bytes, as the gateway's
HTTP adapter does it. What is not in it: finding the route, reading the key, authentication.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.http_api import body as bodies
from loadtests.bench import machine
from loadtests.bench.machine import Setting
from router import document
from router.policy import CompiledRoute
from router.rules import Facts

RESULTS: Final = Path(__file__).parent.parent / "results" / "decide.json"
CALLS: Final = 200_000
WARM_UP_CALLS: Final = 10_000
LIMIT_US: Final = 20.0
"""Of the 99th percentile, in every case."""
RULES: Final = 20
KEYS: Final = 1_000
"""Different ones, asked in turn; and so many are in each rule's list."""
ROUTE: Final = "digits"
TENANT: Final = "acme"
HEADERS: Final = (
    (b"host", b"models.example.com"),
    (b"user-agent", b"python-httpx/0.28.1"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"content-type", b"application/json"),
    (b"content-length", b"112"),
    (b"authorization", b"Bearer 0123456789abcdef0123456789abcdef"),
    (b"x-request-id", b"0d0c7b2e-5f0b-4f0e-9c55-0a3c5a1f1b11"),
    (b"x-user-id", b"user-17"),
    (b"x-region", b"eu-central-1"),
    (b"x-plan", b"free"),
)


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One case; percentiles by nearest rank, so each is a call that took place."""

    name: str
    rules: int
    calls: int
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    setting: Setting
    timer_us: float
    """Median of timing nothing; it is in every figure."""
    limit_us: float
    cases: list[Case]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A route, and a request that it decides in the way that its name says."""

    name: str
    route: CompiledRoute
    facts: Facts
    reason: str
    """What the decision must give as its reason."""


def subjects() -> list[Subject]:
    """Return the cases to be timed."""
    rules = twenty_rules()
    matching = [*rules[:-1], {"name": "last", "when": {"tenant": [TENANT]}, "to": "stable"}]
    return [
        Subject(name="no rules, by slot", route=compiled([]), facts=facts(), reason="slot"),
        Subject(name="no rule holds, by slot", route=compiled(rules), facts=facts(), reason="slot"),
        Subject(
            name="the last rule holds", route=compiled(matching), facts=facts(), reason="rule:last"
        ),
        Subject(
            name="no rule holds, a stranger's request",
            route=compiled(rules),
            facts=Facts(header=header),
            reason="slot",
        ),
    ]


def facts() -> Facts:
    """Return what rules may ask of an authenticated caller's request."""
    return Facts(header=header, tenant=TENANT, roles=frozenset(("viewer",)))


def header(name: str) -> str | None:
    """Look a header up as the HTTP adapter does."""
    return bodies.header({"headers": HEADERS}, name.encode())


def compiled(rules: Sequence[dict[str, Any]]) -> CompiledRoute:  # Any: parts of a document
    """Return a route of three variants with these rules."""
    variants = {
        name: {"model": ROUTE, "version": version, "weight": weight}
        for name, version, weight in (("stable", "1", 85), ("canary", "2", 10), ("next", "3", 5))
    }
    body = {"key": ["header:x-user-id"], "variants": variants, "rules": list(rules)}
    return CompiledRoute.compile(document.read(body, name=ROUTE, revision=1))


def twenty_rules() -> list[dict[str, Any]]:  # Any: parts of a document
    """Return rules of every kind, none of which holds for `facts` and `keys`."""
    whens: list[dict[str, Any]] = []
    for n in range(4):
        many = [f"user-{n}-{number}" for number in range(KEYS)]
        whens += [
            {"header": {"x-region": {"in": [f"ap-{n}", f"us-{n}"]}}},
            {"header": {"x-plan": {"prefix": f"gold-{n}"}}},
            {"header": {"x-region": {"prefix": "eu-"}, "x-plan": f"silver-{n}"}},
            {"tenant": [f"tenant-{n}-{number}" for number in range(10)]},
            {"key": {"in": many}},
        ]
    # One rule by which testers choose for themselves: the common case of an absent header.
    choice = {"header": {"x-debug-variant": {"in": ["stable", "canary"]}}, "role": "tester"}
    whens[0] = choice
    assert len(whens) == RULES
    return [
        {"name": f"rule-{n}", "when": when, "to": "$header" if when is choice else "canary"}
        for n, when in enumerate(whens)
    ]


def keys() -> list[bytes]:
    """Return keys that are in no rule's list."""
    return [f"user-{number:04}".encode() for number in range(KEYS)]


def measure(subject: Subject, *, calls: int) -> Case:
    """Time so many decisions, one by one."""
    decide, given, asked = subject.route.decide, subject.facts, keys()
    draw = random.Random(1).random
    reasons = {decide(key, draw, given).reason for key in asked}
    if reasons != {subject.reason}:
        raise ValueError(f"{subject.name}: decided by {reasons}, not by {subject.reason!r}")

    def call(n: int) -> int:
        key = asked[n % KEYS]
        started_ns = time.perf_counter_ns()
        decide(key, draw, given)
        return time.perf_counter_ns() - started_ns

    taken_ns = _timed(call, calls)
    p50, p90, p99, p999 = (_us(taken_ns, share) for share in (0.5, 0.9, 0.99, 0.999))
    return Case(
        name=subject.name,
        rules=len(subject.route.route.rules),
        calls=calls,
        p50_us=p50,
        p90_us=p90,
        p99_us=p99,
        p999_us=p999,
        max_us=_us(taken_ns, 1),
    )


def timer_us(calls: int) -> float:
    """Return the median time of timing nothing."""

    def call(_: int) -> int:
        started_ns = time.perf_counter_ns()
        return time.perf_counter_ns() - started_ns

    return _us(_timed(call, calls), 0.5)


def _timed(call: Callable[[int], int], calls: int) -> list[int]:
    for n in range(min(calls, WARM_UP_CALLS)):
        call(n)
    return sorted(call(n) for n in range(calls))


def _us(ranked_ns: Sequence[int], share: float) -> float:
    return round(ranked_ns[math.ceil(share * len(ranked_ns)) - 1] / 1e3, 3)


def shown(results: Results) -> list[str]:
    """Return the table."""
    columns = ("p50", "p90", "p99", "p99.9", "max")
    lines = [
        f"CompiledRoute.decide, microseconds (timing nothing: {results.timer_us:.2f})",
        f"{'':38}{'rules':>6}" + "".join(f"{column:>9}" for column in columns),
    ]
    for case in results.cases:
        values = (case.p50_us, case.p90_us, case.p99_us, case.p999_us, case.max_us)
        figures = "".join(f"{value:>9.2f}" for value in values)
        lines.append(f"{case.name:38}{case.rules:>6}{figures}")
    slowest = max(case.p99_us for case in results.cases)
    verdict = "within" if slowest <= results.limit_us else "OVER"
    lines.append(f"slowest p99 {slowest:.2f}, {verdict} the limit of {results.limit_us:g}")
    return lines


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write; return 0 if every p99 is within the limit."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.micro.decide", description=__doc__)
    parser.add_argument("--calls", type=int, default=CALLS, help=f"per case; {CALLS}")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.calls < 1:
        parser.error("--calls must be positive")
    setting = machine.describe()
    results = Results(
        setting=setting,
        timer_us=timer_us(min(options.calls, WARM_UP_CALLS)),
        limit_us=LIMIT_US,
        cases=[measure(subject, calls=options.calls) for subject in subjects()],
    )
    print(f"{setting.cpu}, load {setting.load_average} (1 minute) before, Python {setting.python}")
    print(*shown(results), sep="\n")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    return 0 if all(case.p99_us <= LIMIT_US for case in results.cases) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
