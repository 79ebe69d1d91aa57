"""What is done with the requests of watched routes, beside answering them: mirror and count.

Called by the pipeline once the live request is queued. Knows the route that decided, shadows and
units; never raises and never waits, so that nothing here can touch the live request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from gateway.directory import Target
from gateway.pipeline import Call
from gateway.request import InferRequest, correlation_id
from gateway.route_control.units import UnitCounter
from gateway.shadowing import Mirrored, Shadows
from router.policy import REASON_SLOT, CompiledRoute
from router.routes import EXPERIMENT

logger = logging.getLogger(__name__)


class RouteWatch:
    """Offers admitted requests to their route's shadows, and counts the units of experiments."""

    def __init__(
        self,
        *,
        shadows: Shadows,
        units: UnitCounter,
        draw: Callable[[], float],
        subject_of: Callable[[InferRequest], str] | None = None,
    ) -> None:
        self._shadows = shadows
        self._units = units
        self._draw = draw
        self._subject_of = subject_of
        self.failures = 0
        """Requests that were not mirrored or counted because of a bug here."""

    def admitted(self, call: Call, target: Target) -> None:
        """Mirror and count a request that was queued."""
        try:
            split = target.split
            if split is None:
                return
            route = split.route
            if route.kind == EXPERIMENT and call.key and target.assigned_by == REASON_SLOT:
                self._units.see(route.name, split.epoch, route.salt, target.assigned, call.key)
            if route.shadows:
                self._mirror(call, target, split)
        except Exception:  # the live request is queued: nothing here may reach its caller
            self.failures += 1
            if self.failures == 1:
                logger.exception("a request could not be mirrored")

    def _mirror(self, call: Call, target: Target, split: CompiledRoute) -> None:
        mirrors = split.mirrors(target.assigned, call.key, self._draw)
        if not mirrors:
            return
        mirrored = Mirrored(
            rid=call.rid,
            cid=correlation_id(call.request),
            ts_us=call.ts_us,
            name=target.route,
            revision=target.revision,
            variant=target.assigned,
            inputs=call.inputs,
            # A record of its own may be kept where the live one is not, and has to be found.
            subject="" if self._subject_of is None else self._subject_of(call.request),
        )
        for shadow, is_sampled in mirrors:
            self._shadows.offer(mirrored, shadow.name, is_sampled)
