"""Counts every answered request in the three books that people and tools read.

`metrics` for Prometheus, `statistics` in Triton's shape, `routes` per variant and revision. Knows
no protocol and nothing of how an answer came about.

Cost. Ten counters and four histograms per request, one by one, cost more than routing and batching
together. So an answered request is only noted, in the tally of its target; every `SETTLE_EVERY`
notes of a tally, and whenever somebody reads a book, the notes are taken into the books in bulk.
A reader sees every request that was answered before it asked: the books call `settle` first.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np

from engines.executed import Executed, Execution
from gateway.directory import Target
from gateway.metrics import RequestMetrics
from gateway.route_statistics import RouteStatistics
from gateway.statistics import StatisticsBook, Successes

SETTLE_EVERY: Final = 512
"""Notes of one tally; a bound of its memory, and of the pause that settling makes (0.2 ms)."""
MAX_TALLIES: Final = 1024
"""Tallies kept; over it all are settled and forgotten."""
_NS_PER_S: Final = 1e9


class Tally:
    """The answered requests of one target on one protocol that are not in the books yet."""

    __slots__ = ("executions", "last_ms", "protocol", "queue_ns", "rows", "target", "total_ns")

    def __init__(self, target: Target, protocol: str) -> None:
        self.target = target
        self.protocol = protocol
        self.total_ns: list[int] = []
        """This and the two below: one entry per request."""
        self.queue_ns: list[int] = []
        self.executions: list[Execution] = []
        self.rows = 0
        self.last_ms = 0


class Accounts:
    """The books. Added to on the event loop, once per answered request."""

    def __init__(self) -> None:
        self.metrics = RequestMetrics(settle=self.settle)
        self.statistics = StatisticsBook(settle=self.settle)
        self.routes = RouteStatistics(settle=self.settle)
        self._tallies: dict[tuple[Target, str], Tally] = {}

    def refused(self, protocol: str, code: int) -> None:
        """Count a request that an adapter answered with an error without submitting it."""
        self.metrics.count_refused(protocol, code)

    def answered(
        self,
        target: Target,
        executed: Executed,
        protocol: str,
        rows: int,
        total_ns: int,
        now_ms: int,
    ) -> None:
        """Note a request that was answered with its outputs.

        Args:
            target: who answered.
            executed: its times.
            protocol: http or grpc.
            rows: its own rows.
            total_ns: from arrival to answer.
            now_ms: Unix time of its arrival.
        """
        tally = self._tallies.get((target, protocol))
        if tally is None:
            tally = self._tally(target, protocol)
        tally.total_ns.append(total_ns)
        tally.queue_ns.append(executed.queue_ns)
        tally.executions.append(executed.execution)
        tally.rows += rows
        if now_ms > tally.last_ms:  # requests are not answered in the order of their arrival
            tally.last_ms = now_ms
        if len(tally.total_ns) >= SETTLE_EVERY:
            self._settle(tally)

    def failed(
        self,
        target: Target | None,
        executed: Executed | None,
        protocol: str,
        code: int,
        total_ns: int,
        now_ms: int,
    ) -> None:
        """Count a request that was answered with an error.

        Args:
            target: None: nothing answered to its name.
            executed: its times; None: it was not executed.
            protocol: http or grpc.
            code: gRPC status, on either protocol.
            total_ns: from arrival to answer.
            now_ms: Unix time of its arrival.
        """
        self.metrics.observe_failure(target, protocol, code, total_ns, executed)
        if target is None:
            return
        served = target.served
        self.statistics.open(served.model, served.version).add_failure(total_ns, now_ms)
        if target.split is not None:
            self.routes.observe_failure(target, total_ns)
            self.statistics.open(target.route, "").add_failure(total_ns, now_ms)

    def settle(self) -> None:
        """Take what was noted into the books."""
        for tally in self._tallies.values():
            if tally.total_ns:
                self._settle(tally)

    def _tally(self, target: Target, protocol: str) -> Tally:
        if len(self._tallies) >= MAX_TALLIES:
            self.settle()
            self._tallies.clear()
        tally = self._tallies[target, protocol] = Tally(target, protocol)
        return tally

    def _settle(self, tally: Tally) -> None:
        target, executions = tally.target, tally.executions
        total_ns = np.array(tally.total_ns, np.int64)
        queue_ns = np.array(tally.queue_ns, np.int64)
        infer_ns = np.array([execution.infer_ns for execution in executions], np.int64)
        total_s = total_ns / _NS_PER_S
        self.metrics.observe(
            target, tally.protocol, total_s, queue_ns / _NS_PER_S, infer_ns / _NS_PER_S
        )
        successes = Successes(
            requests=len(executions),
            rows=tally.rows,
            last_ms=tally.last_ms,
            total_ns=int(total_ns.sum()),
            queue_ns=int(queue_ns.sum()),
            executions=Counter(executions),
        )
        served = target.served
        self.statistics.open(served.model, served.version).add(successes)
        if target.split is not None:
            self.routes.observe(target, total_s)
            self.statistics.open(target.route, "").add(successes)
        tally.total_ns, tally.queue_ns, tally.executions = [], [], []
        tally.rows = 0
