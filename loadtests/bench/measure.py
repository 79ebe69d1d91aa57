"""One measurement: requests, CPU time, latency and memory between two readings of a server.

Knows servers and generators by their interfaces. A case is measured once per round, the cases of a
round one after the other, so that whatever else the machine does meets all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from loadtests.bench.cases import Case
from loadtests.bench.content import Target
from loadtests.bench.generator import Generator
from loadtests.bench.in_process import InProcess
from loadtests.bench.process_tree import tree_cpu_s, tree_memory
from loadtests.bench.servers import Counts, Running

SETTLE_S: Final = 0.3
"""Between the load's end and the reading: the last batches run, the last records are written."""


class NotMeasured(Exception):
    """A case gave no figure; the sentence says why."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in one round of one case."""

    case: str
    requests: int
    """Answered with success, as the server counts; of a peer, the client. In-process: rows."""
    client_requests: int
    """Answered with success, as the client counts."""
    failures: int
    """Answered with an error, or given up by the load generator when its time was over."""
    rows: int
    batches: int
    seconds: float
    """In which the client's requests were answered, by the client's clock."""
    cpu_s: float
    """User and system time of the server's whole process tree."""
    p50_us: float = 0.0
    p99_us: float = 0.0
    pss_bytes: int = 0
    rss_bytes: int = 0

    @property
    def cpu_us_per_request(self) -> float:
        """CPU microseconds per answered request."""
        return self.cpu_s / self.requests * 1e6

    @property
    def requests_per_s(self) -> float:
        """Answered requests per second, as the client saw it; a request is a row."""
        return self.client_requests / self.seconds

    @property
    def rows_per_batch(self) -> float:
        """Mean size of the executed batches; 0: not known."""
        return self.rows / self.batches if self.batches else 0.0


class Measurable(Protocol):
    """Something that can be measured again and again."""

    @property
    def name(self) -> str:
        """Unique among the cases."""

    @property
    def label(self) -> str:
        """What generates its load."""

    def measure(self, duration_s: float) -> Sample:
        """Load for this long."""


class ServerCase:
    """A case of a server under load."""

    def __init__(self, case: Case, running: Running, generator: Generator, asked: Target) -> None:
        self.name = case.name
        self.label = generator.label
        self._case = case
        self._running = running
        self._generator = generator
        self._asked = asked

    def measure(self, duration_s: float) -> Sample:
        """Load for this long.

        Raises:
            NotMeasured: nothing was answered, more failed than the end cut off, or the server's
                count does not agree with the client's.
        """
        running, count = self._running, self._running.count
        before = count(self._asked) if count else None
        cpu_before_s = tree_cpu_s(running.pid)
        load = self._generator.run(duration_s)
        time.sleep(SETTLE_S)
        cpu_s = tree_cpu_s(running.pid) - cpu_before_s
        memory = tree_memory(running.pid)
        if count and before:
            moved = Counts(*(b - a for a, b in zip(before, count(self._asked), strict=True)))
            check_counts(
                moved,
                load.requests,
                slack=self._generator.slack,
                in_flight=self._case.in_flight,
            )
        else:
            moved = Counts(load.requests, 0, 0, 0)
        return Sample(
            case=self.name,
            requests=moved.requests,
            client_requests=load.requests,
            failures=moved.failures,
            rows=moved.rows,
            batches=moved.batches,
            seconds=load.seconds,
            cpu_s=cpu_s,
            p50_us=load.p50_us,
            p99_us=load.p99_us,
            pss_bytes=memory.pss_bytes,
            rss_bytes=memory.rss_bytes,
        )


def check_counts(moved: Counts, client_requests: int, *, slack: int | None, in_flight: int) -> None:
    """Raise NotMeasured unless the server's count agrees with the client's.

    Args:
        moved: by how much the server's counts grew.
        client_requests: what the client calls answered.
        slack: how many more the server may have; None: any number.
        in_flight: requests that the client's end may make failures.
    """
    if not client_requests:
        raise NotMeasured("nothing was answered")
    if moved.failures > in_flight:
        raise NotMeasured(f"{moved.requests} answered, {moved.failures} failed")
    surplus = moved.requests - client_requests
    if surplus < 0 or (slack is not None and surplus > slack):
        raise NotMeasured(
            f"the server counts {moved.requests} successes, the client {client_requests}"
        )


class InProcessCase:
    """A case of the limit."""

    def __init__(self, case: Case, session: InProcess) -> None:
        self.name = case.name
        self.label = "a loop around InferenceSession.run"
        self._rows = case.in_flight
        self._session = session

    def measure(self, duration_s: float) -> Sample:
        """Run batches for this long."""
        rows, wall_s, cpu_s = self._session.run(self._rows, duration_s)
        per_batch = self._rows or self._session.best_rows()
        return Sample(
            case=self.name,
            requests=rows,
            client_requests=rows,
            failures=0,
            rows=rows,
            batches=rows // per_batch,
            seconds=wall_s,
            cpu_s=cpu_s,
        )


def interleaved(
    cases: Sequence[Measurable],
    *,
    rounds: int,
    duration_s: float,
    on_round: Callable[[str], None],
    on_failure: Callable[[Measurable, Exception], bool] = lambda case, exc: False,
) -> list[Sample]:
    """Measure every case once per round; all are warm already.

    Args:
        cases: in the order in which each round measures them.
        rounds: how many.
        duration_s: of one case in one round.
        on_round: told what comes next.
        on_failure: asked about an exception of a case; True: go on without the case, whose
            samples are dropped.
    """
    samples: list[Sample] = []
    left = list(cases)
    for number in range(1, rounds + 1):
        for case in tuple(left):
            on_round(f"round {number} of {rounds}: {case.name}")
            try:
                samples.append(case.measure(duration_s))
            except Exception as exc:  # the caller knows which are reasons and which are bugs
                if not on_failure(case, exc):
                    raise
                left.remove(case)
                samples = [sample for sample in samples if sample.case != case.name]
    return samples
