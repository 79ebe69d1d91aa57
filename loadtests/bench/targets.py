"""What must be shown, as data: each target, the cases that it needs, and the verdict.

Pure: figures in, verdicts out. A target whose case was not measured has none; it is never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from loadtests.bench.results import Book, Figure

PA: Final = "perf_analyzer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One target."""

    path: str
    """What is measured, for a reader; goals of one path share a row of thought."""
    what: str
    unit: str
    limit: float
    is_least: bool = False
    """Whether more is better."""
    obtained: Callable[[Book], float | None]
    cases: tuple[str, ...] = ()
    """The cases that it is made of; empty: of something else."""

    @property
    def shown_limit(self) -> str:
        """The target, with its direction."""
        return f"{'≥' if self.is_least else '≤'} {shown(self.limit, self.unit)}"

    def is_met(self, value: float) -> bool:
        """Whether a value reaches the target."""
        return value >= self.limit if self.is_least else value <= self.limit


def shown(value: float, unit: str) -> str:
    """Return a value as the tables show it."""
    if unit == "ratio":
        return f"{value:.2f}" if value >= 0.5 else f"1/{1 / value:.1f}".removesuffix(".0")
    digits = 0 if value >= 100 else 1 if value >= 1 or unit == "µs" else 2
    return f"{value:.{digits}f} {unit}"


def value(path: str, case: str, figure: Figure, limit: float) -> Goal:
    """Return the goal that a case's median is at most this."""
    what, unit = _SHOWN[figure]
    return Goal(
        path=path,
        what=what,
        unit=unit,
        limit=limit,
        obtained=lambda book: book.median(case, figure),
        cases=(case,),
    )


def ratio(path: str, what: str, case: str, against: str, limit: float) -> Goal:
    """Return the goal that a case's CPU per request is at most this share of another's."""
    return Goal(
        path=path,
        what=what,
        unit="ratio",
        limit=limit,
        obtained=lambda book: book.ratio(case, against, "cpu_us"),
        cases=(case, against),
    )


def rate(path: str, case: str, against: str, limit: float) -> Goal:
    """Return the goal that a case reaches at least this share of another's rows per second."""
    return Goal(
        path=path,
        what="rows/s of those in-process at the best batch",
        unit="ratio",
        limit=limit,
        is_least=True,
        obtained=lambda book: book.ratio(case, against, "per_s"),
        cases=(case, against),
    )


def cost(path: str, case: str, without: str, limit: float) -> Goal:
    """Return the goal that a case costs at most so much more than another."""
    return Goal(
        path=path,
        what="difference when switched off",
        unit="µs",
        limit=limit,
        obtained=lambda book: book.difference(case, without, "cpu_us"),
        cases=(case, without),
    )


def stage(name: str, limit: float) -> Goal:
    """Return the goal that a stage of the pipeline costs at most this."""
    return Goal(
        path=f"{name}, pipeline alone",
        what="difference when switched off",
        unit="µs",
        limit=limit,
        obtained=lambda book: book.stage_us(name),
    )


_SHOWN: Final[dict[Figure, tuple[str, str]]] = {
    "cpu_us": ("CPU per request", "µs"),
    "p50_ms": ("p50 latency", "ms"),
    "p99_ms": ("p99 latency", "ms"),
}
_BEST: Final = "mid: mid in-process best batch"


def _tiny() -> list[Goal]:
    pa, h2 = f"tiny: tiny grpc {PA} 32", "tiny: tiny grpc h2load 32"
    js, one = "tiny: tiny grpc grpc-js 32 varying", "tiny: tiny grpc h2load 1"
    json, binary = "tiny: tiny json wrk 32", "tiny: tiny binary wrk 32"
    paths = {
        pa: "gRPC unary, perf_analyzer, 32 in flight",
        h2: "gRPC unary, h2load, 32 streams",
        js: "gRPC unary, deadline and traceparent varying, grpc-js, 32",
        one: "gRPC unary, 1 in flight (h2load)",
        json: "HTTP JSON, wrk, 32",
        binary: "HTTP binary 30 floats, wrk, 32",
    }
    return [
        value(paths[pa], pa, "cpu_us", 40),
        ratio(paths[pa], "of grpc.aio, same core", pa, f"{pa} (grpcio)", 1 / 8),
        value(paths[h2], h2, "cpu_us", 25),
        value(paths[js], js, "cpu_us", 75),
        ratio(paths[js], "of grpc.aio, same core", js, f"{js} (grpcio)", 1 / 5),
        value(paths[one], one, "cpu_us", 110),
        value(paths[one], one, "p50_ms", 0.35),
        value("gRPC stream, per message, 32", f"tiny: tiny stream {PA} 32", "cpu_us", 30),
        value(paths[json], json, "cpu_us", 50),
        ratio(
            paths[json],
            "of Starlette, JSONResponse, batching with futures",
            json,
            f"{json} (starlette batching)",
            1 / 3,
        ),
        ratio(
            paths[json],
            "of Starlette, JSONResponse, a model run per request",
            json,
            f"{json} (starlette)",
            1 / 3,
        ),
        value(paths[binary], binary, "cpu_us", 45),
        value("602 KB image, HTTP binary, 8", "image: image binary wrk 8", "cpu_us", 800),
        value("602 KB image, gRPC, 8", "image: image grpc h2load 8", "cpu_us", 800),
    ]


def _mid() -> list[Goal]:
    goals = []
    for many in (32, 64):
        for shown_as, case, limit in (
            ("HTTP JSON", f"mid: mid json wrk {many}", 110),
            ("gRPC", f"mid: mid grpc h2load {many}", 95),
        ):
            path = f"mid model, {shown_as}, {many} in flight"
            goals.append(value(path, case, "cpu_us", limit))
            goals.append(rate(path, case, _BEST, 0.9))
    return goals


def _rest() -> list[Goal]:
    grpc, json = "costs: tiny grpc h2load 32", "costs: tiny json wrk 32"
    many = "in flight: tiny json wrk 1024"
    pa = f"tls: tiny grpc {PA} 32 (TLS)"
    start = "start, tiny model"
    return [
        Goal(
            path=start,
            what="until ready",
            unit="s",
            limit=1.5,
            obtained=lambda book: book.start(lambda s: s.seconds),
        ),
        Goal(
            path=start,
            what="resident memory",
            unit="MB",
            limit=120,
            obtained=lambda book: book.start(lambda s: s.rss_bytes / 1e6),
        ),
        value("HTTP JSON, 1,024 in flight, nothing lost", many, "p99_ms", 70),
        cost("log, gRPC", f"{grpc} route", f"{grpc} route (no log)", 5),
        cost("log, HTTP JSON", f"{json} route", f"{json} route (no log)", 5),
        cost("routing, gRPC", f"{grpc} route", f"{grpc} version", 5),
        cost("routing, HTTP JSON", f"{json} route", f"{json} version", 5),
        stage("log", 5),
        stage("metrics", 2),
        stage("routing", 5),
        value("TLS: gRPC unary, perf_analyzer, 32", pa, "cpu_us", 40),
        ratio(
            "TLS: gRPC unary, perf_analyzer, 32",
            "of grpc.aio with TLS, same core",
            pa,
            f"tls: tiny grpc {PA} 32 (grpcio, TLS)",
            1 / 8,
        ),
        value("TLS: HTTP JSON, wrk, 32", "tls: tiny json wrk 32 (TLS)", "cpu_us", 50),
    ]


GOALS: Final[Sequence[Goal]] = (*_tiny(), *_mid(), *_rest())
