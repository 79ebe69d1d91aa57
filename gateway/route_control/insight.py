"""What a route's variants, shadows and units did, put together for people.

Reads the books that the request path fills; knows no HTTP. Numbers of variants and shadows are this
replica's; units of experiments are those of all replicas that share a Redis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gateway.errors import UnknownName
from gateway.route_control.in_force import InForce
from gateway.route_control.targets import Targets
from gateway.route_statistics import RouteStatistics, VariantCounts
from gateway.shadowing import Shadows
from router.document import percent
from router.policy import CompiledRoute
from router.routes import EXPERIMENT, Route
from router.sample_ratio import ln_bayes_factor, mismatch
from router.slots import SLOTS
from router.table import RouteTable


class UnitCounts(Protocol):
    """Distinct units of experiments by variant."""

    async def counts(self, route: str, epoch: int, variants: Sequence[str]) -> dict[str, int]:
        """Return the units of each variant in an epoch, zeros included."""


class RouteInsight:
    """Statistics of routes."""

    def __init__(
        self,
        *,
        table: RouteTable,
        in_force: InForce,
        targets: Targets,
        routes: RouteStatistics,
        shadows: Shadows,
        units: UnitCounts,
    ) -> None:
        self._table = table
        self._in_force = in_force
        self._targets = targets
        self._routes = routes
        self._shadows = shadows
        self._units = units

    def compiled(self, name: str) -> CompiledRoute:
        """Return a route as requests see it now; raises UnknownName."""
        compiled = self._table.snapshot.get(name)
        if compiled is None:
            raise UnknownName(f"there is no route {name!r}")
        return compiled

    def is_ready(self, model: str, version: str) -> bool:
        """Whether a version serves now."""
        return self._targets.is_ready(model, version)

    def totals(self, name: str) -> Mapping[str, VariantCounts]:
        """Return the counts of each variant of a route, over all revisions since the start."""
        return self._routes.totals(name)

    async def statistics(self, name: str) -> dict[str, Any]:  # Any: JSON
        """Return what `GET /v1/routes/{name}/stats` answers; raises UnknownName."""
        compiled = self.compiled(name)
        route = compiled.route
        rows = list(self._routes.of(name))
        totals: dict[int, int] = {}
        for revision, _, counts in rows:
            totals[revision] = totals.get(revision, 0) + counts.requests
        return {
            "route": name,
            "revision": route.revision,
            "epoch": compiled.epoch,
            "variants": [
                _variant_row(route, revision, variant, counts, totals[revision])
                for revision, variant, counts in rows
            ],
            "shadows": {
                shadow: {
                    "eligible": counts.eligible,
                    "sent": counts.sent,
                    "in_flight": counts.in_flight,
                    "dropped": dict(counts.dropped),
                }
                for (of, shadow), counts in self._shadows.statistics().items()
                if of == name
            },
            "experiment": await self._experiment(compiled),
        }

    async def _experiment(self, compiled: CompiledRoute) -> dict[str, Any] | None:  # Any: JSON
        route = compiled.route
        if route.kind != EXPERIMENT:
            return None
        arms = list(route.sizes)
        units = await self._units.counts(route.name, compiled.epoch, arms)
        counts = [units.get(arm, 0) for arm in arms]
        shares = [route.sizes[arm] / SLOTS for arm in arms]
        factor = ln_bayes_factor(counts, shares)
        held = self._in_force.held.get(route.name)
        return {
            "units": dict(zip(arms, counts, strict=True)),
            "sample_ratio": {
                # JSON has no infinity: a unit in a variant of weight 0.
                "ln_bayes_factor": factor if factor != float("inf") else None,
                "mismatch": mismatch(counts, shares),
            },
            "carryover": list(held.revision.carryover) if held else [],
        }


def _variant_row(
    route: Route, revision: int, variant: str, counts: VariantCounts, total: int
) -> dict[str, Any]:  # Any: JSON
    latency = {
        name: None if value is None else round(value * 1e3, 3)
        for name, value in (
            (f"p{share}", counts.latency.quantile(share / 100)) for share in (50, 95, 99)
        )
    }
    weight = percent(route.sizes[variant]) if variant in route.sizes else None
    return {
        "revision": revision,
        "variant": variant,
        "weight": weight if revision == route.revision else None,
        "requests": counts.requests,
        "share_percent": round(100 * counts.requests / total, 4) if total else None,
        "errors": counts.errors,
        "forced": counts.forced,
        "fallback": counts.fallback,
        "latency_ms": latency,
    }
