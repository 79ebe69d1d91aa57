"""Our own load generators, in this process: for machines without wrk and h2load, and for tests.

Dearer than the programs, and on the same interpreter as whatever else this process does.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from loadtests import grpc_loop, http_loop
from loadtests.bench import content
from loadtests.bench.generator import Address, GeneratorFailed, Load
from loadtests.bench.latencies import percentile
from loadtests.bench.questions import Question

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLoop:
    """Our own HTTP client, one request per connection."""

    asked: Question
    address: Address
    concurrency: int
    label: str = field(default="asyncio loop", init=False)
    slack: int | None = field(default=0, init=False)

    def run(self, duration_s: float) -> Load:
        """Ask for this long."""
        refused: list[str] = []
        taken_us: list[float] = []

        def on_answer(asked_s: float, answer: http_loop.Answer) -> None:
            taken_us.append((time.perf_counter() - asked_s) * 1e6)
            if answer.status != 200:
                refused.append(f"{answer.status}: {answer.body[:200].decode(errors='replace')}")

        def request() -> tuple[float, bytes]:
            headers = self.asked.headers | {content.KEY_HEADER: f"{random.getrandbits(64):016x}"}
            return time.perf_counter(), http_loop.post(self.asked.path, self.asked.body, headers)

        running = http_loop.closed_loop(
            self.address, until(duration_s, request), on_answer, connections=self.concurrency
        )
        started_s = time.perf_counter()
        try:
            asyncio.run(running)
        except (OSError, http_loop.LoopFailed) as exc:
            raise GeneratorFailed(f"{self.label}: {exc}") from exc
        if refused:
            raise GeneratorFailed(f"{self.label}: {len(refused)} refused, first with {refused[0]}")
        return _load(taken_us, time.perf_counter() - started_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcLoop:
    """grpcio's client, one channel."""

    asked: Question
    address: Address
    concurrency: int
    label: str = field(default="grpc.aio loop", init=False)
    slack: int | None = field(default=0, init=False)

    def run(self, duration_s: float) -> Load:
        """Ask for this long."""
        taken_us: list[float] = []

        def on_answer(asked_s: float, answer: bytes, trailers: Mapping[str, str]) -> None:
            taken_us.append((time.perf_counter() - asked_s) * 1e6)

        running = grpc_loop.closed_loop(
            self.address,
            until(duration_s, lambda: (time.perf_counter(), self.asked.body, ())),
            on_answer,
            concurrency=self.concurrency,
        )
        started_s = time.perf_counter()
        try:
            asyncio.run(running)
        except grpc_loop.CallFailed as exc:
            raise GeneratorFailed(f"{self.label}: {exc.code().name}: {exc.details()}") from exc
        return _load(taken_us, time.perf_counter() - started_s)


def _load(taken_us: list[float], seconds: float) -> Load:
    if not taken_us:
        return Load(0, seconds, 0.0, 0.0)
    taken_us.sort()
    return Load(len(taken_us), seconds, percentile(taken_us, 0.5), percentile(taken_us, 0.99))


def until(duration_s: float, make: Callable[[], T]) -> Iterator[T]:
    """Yield what `make` makes until the time is over."""
    end_s = time.monotonic() + duration_s
    while time.monotonic() < end_s:
        yield make()
