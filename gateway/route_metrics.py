"""Metrics of routes, shadows and the route store, written out when somebody scrapes.

Every label is bounded: names of routes, variants and shadows come from documents that were checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.route_plane import RoutePlane
from router.document import percent

_CONFLICTS: Final = ("older", "split", "corrupt")


class RouteCollector(Collector):
    """Writes the route metrics out, on the event loop.

    Args:
        plane: what is known of routes.
        overrides_ignored: by route, counted by the directory.
    """

    def __init__(self, plane: RoutePlane, *, overrides_ignored: Mapping[str, int]) -> None:
        self._plane = plane
        self._overrides_ignored = overrides_ignored

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        yield from self._route_families()
        yield from self._shadow_families()
        yield from self._store_families()

    def _route_families(self) -> Iterator[Metric]:
        revision = GaugeMetricFamily(
            "sluice_route_revision", "Revision in force at this replica.", labels=["route"]
        )
        weight = GaugeMetricFamily(
            "sluice_route_weight_percent", "Weight in force.", labels=["route", "variant"]
        )
        fallbacks = CounterMetricFamily(
            "sluice_route_fallbacks",
            "Requests whose assigned variant could not serve, and that the fallback served.",
            labels=["route", "variant"],
        )
        forced = CounterMetricFamily(
            "sluice_route_forced", "Requests that a rule assigned.", labels=["route", "variant"]
        )
        ignored = CounterMetricFamily(
            "sluice_route_overrides_ignored",
            "Requests that asked for a variant without a tester's key.",
            labels=["route"],
        )
        for held in self._plane.in_force.held.values():
            route = held.revision.route
            if held.revision.is_deleted:
                continue
            revision.add_metric([route.name], route.revision)
            ignored.add_metric([route.name], self._overrides_ignored.get(route.name, 0))
            served = self._plane.in_force.overridden(route.name) or route
            for variant in served.variants:
                weight.add_metric([route.name, variant.name], float(percent(variant.slots)))
            for name, totals in self._plane.insight.totals(route.name).items():
                fallbacks.add_metric([route.name, name], totals.fallback)
                forced.add_metric([route.name, name], totals.forced)
        yield from (revision, weight, fallbacks, forced, ignored)

    def _shadow_families(self) -> Iterator[Metric]:
        labels = ["route", "shadow"]
        results = CounterMetricFamily(
            "sluice_shadow_requests",
            "Requests that a shadow was eligible for: eligible = sent + dropped + in flight.",
            labels=[*labels, "result", "reason"],
        )
        in_flight = GaugeMetricFamily(
            "sluice_shadow_in_flight", "Copies queued or executing.", labels=labels
        )
        for key, counts in self._plane.shadows.statistics().items():
            results.add_metric([*key, "eligible", ""], counts.eligible)
            results.add_metric([*key, "sent", ""], counts.sent)
            for reason, count in counts.dropped.items():
                results.add_metric([*key, "dropped", str(reason)], count)
            in_flight.add_metric(key, counts.in_flight)
        yield from (results, in_flight)
        yield CounterMetricFamily(
            "sluice_route_watch_failures",
            "Requests that were served, but neither mirrored nor counted, because of a bug.",
            value=self._plane.watch.failures,
        )

    def _store_families(self) -> Iterator[Metric]:
        sync = self._plane.sync
        if sync is None:
            return
        known = sync.statistics()
        for name, text, value in (
            ("store_up", "1 while the route store answers.", float(known.is_store_up)),
            ("config_age_seconds", "Since the route store last answered; -1: never.", known.age_s),
            (
                "emergencies",
                "Routes aborted on this replica alone, unknown to the store.",
                float(len(self._plane.control.emergencies)),
            ),
        ):
            gauge = GaugeMetricFamily(f"sluice_route_{name}", text)
            gauge.add_metric([], value)
            yield gauge
        pending = GaugeMetricFamily(
            "sluice_route_pending", "1 while a newer revision waits.", labels=["route"]
        )
        conflict = GaugeMetricFamily(
            "sluice_route_conflict",
            "1 while the store's revision cannot follow the one in force.",
            labels=["route", "kind"],
        )
        # A revision that waits, or cannot be read, may be the first of its route.
        for route in sorted({*self._plane.in_force.held, *known.pending, *known.conflicts}):
            pending.add_metric([route], float(route in known.pending))
            for kind in _CONFLICTS:
                conflict.add_metric([route, kind], float(known.conflicts.get(route) == kind))
        yield from (pending, conflict)
