"""The processes of callers as one load: orders out, one measurement back.

Knows caller.py's two messages; knows neither models nor what is compared.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from loadtests.bench.latencies import percentile
from loadtests.gpu.caller import Message, Order, Report

_ROOT: Final = Path(__file__).parents[2]
_STOP_S: Final = 10.0

Address = tuple[str, int]


class LoadFailed(Exception):
    """Requests failed, or a caller did; the sentence says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What all callers together do to one name."""

    messages: tuple[Message, ...]
    in_flight: int = 0
    """Calls under way at any time; 0: they come at `rows_per_s`, whatever is under way."""
    rows_per_s: float = 0.0

    @property
    def mean_rows(self) -> float:
        """Rows of a call, on the average."""
        return sum(message.rows for message in self.messages) / len(self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What came of a load."""

    requests: int
    rows: int
    """In the counted time."""
    all_rows: int
    """With those before and after it."""
    p50_ms: float
    p99_ms: float


class Callers:
    """So many processes, for as long as the context lasts."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._processes: list[subprocess.Popen[str]] = []
        self._asked: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        """Start them."""
        for _ in range(self._count):
            process = subprocess.Popen(
                [sys.executable, "-m", "loadtests.gpu.caller"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=_ROOT,
                process_group=0,
            )
            self._processes.append(process)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End them."""
        for process in self._processes:
            process.kill() if exc is not None else _closed(process)
        for process in self._processes:
            process.wait(_STOP_S)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None and not pipe.closed:
                    pipe.close()

    def begin(self, address: Address, load: Load, *, settle_s: float, seconds: float) -> None:
        """Let all begin; returns at once."""
        count = min(self._count, load.in_flight or self._count)
        self._asked = self._processes[:count]
        for number, process in enumerate(self._asked):
            order = Order(
                host=address[0],
                port=address[1],
                messages=list(load.messages),
                settle_s=settle_s,
                seconds=seconds,
                in_flight=len(range(number, load.in_flight, count)),
                rate=load.rows_per_s / load.mean_rows / count,
                seed=number + 1,
            )
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(order).decode() + "\n")
            process.stdin.flush()

    def end(self) -> Answered:
        """Wait until all have their last answer.

        Raises:
            LoadFailed: a request failed, or nothing was answered.
        """
        reports = []
        for process in self._asked:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise LoadFailed(f"a caller ended with code {process.wait(_STOP_S)}")
            reports.append(msgspec.json.decode(line, type=Report))
        return merged(reports)


def merged(reports: Sequence[Report]) -> Answered:
    """Return what callers saw together; raises LoadFailed."""
    failures = [failure for report in reports for failure in report.failures]
    if failures:
        count = sum(report.failed for report in reports)
        raise LoadFailed(f"{count} requests failed, the first: {failures[0]}")
    ranked = sorted(us for report in reports for us in report.latencies_us)
    if not ranked:
        raise LoadFailed("nothing was answered in the time that counts")
    return Answered(
        requests=len(ranked),
        rows=sum(report.rows for report in reports),
        all_rows=sum(report.all_rows for report in reports),
        p50_ms=round(percentile(ranked, 0.5) / 1e3, 3),
        p99_ms=round(percentile(ranked, 0.99) / 1e3, 3),
    )


def _closed(process: subprocess.Popen[str]) -> None:
    """Tell a caller that there is nothing more to do."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended by itself
        process.stdin.close()
