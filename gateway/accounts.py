"""Counts every answered request in the three books that people and tools read.

`metrics` for Prometheus, `statistics` in Triton's shape, `routes` per variant and revision. Knows
no protocol and nothing of how an answer came about.
"""

from __future__ import annotations

from engines.batcher import Executed
from gateway.directory import Target
from gateway.metrics import RequestMetrics
from gateway.route_statistics import RouteStatistics
from gateway.statistics import StatisticsBook


class Accounts:
    """The books. Added to on the event loop, once per answered request."""

    def __init__(self) -> None:
        self.metrics = RequestMetrics()
        self.statistics = StatisticsBook()
        self.routes = RouteStatistics()

    def refused(self, protocol: str, code: int) -> None:
        """Count a request that an adapter answered with an error without submitting it."""
        self.metrics.count_refused(protocol, code)

    def answered(  # noqa: PLR0913 - a value object would cost an allocation per request
        self,
        target: Target | None,
        executed: Executed | None,
        *,
        protocol: str,
        code: int,
        rows: int,
        total_ns: int,
        now_ms: int,
    ) -> None:
        """Count an answered request.

        Args:
            target: None: nothing answered to its name.
            executed: its times; None: it was not executed.
            protocol: http or grpc.
            code: gRPC status, on either protocol.
            rows: its own rows.
            total_ns: from arrival to answer.
            now_ms: Unix time of its arrival.
        """
        self.metrics.observe(target, protocol, code, total_ns, executed)
        if target is None:
            return
        served, route = target.served, target.route
        row = self.statistics.row(served.model, served.version)
        route_row = None
        if target.split is not None:
            self.routes.observe(target, total_ns, is_error=code != 0)
            route_row = self.statistics.row(route, "")
        if executed is None or code:
            row.add_failure(total_ns=total_ns, now_ms=now_ms)
            if route_row is not None:
                route_row.add_failure(total_ns=total_ns, now_ms=now_ms)
            return
        source = f"{served.model}/{served.version}"
        row.add_success(executed, rows=rows, total_ns=total_ns, now_ms=now_ms, source=source)
        if route_row is not None:
            route_row.add_success(
                executed, rows=rows, total_ns=total_ns, now_ms=now_ms, source=source
            )
