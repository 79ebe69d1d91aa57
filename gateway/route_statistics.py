"""What each variant of a route did, per revision: the numbers that operators compare.

Counted by the variant that was assigned, also where a fallback served: that is what keeps a
comparison fair. Requests that a rule chose are counted apart, because nobody drew them. Fed by the
pipeline on the event loop; kept for the newest revisions of each route.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gateway.directory import REASON_FALLBACK, Target
from gateway.histogram import Histogram
from router.policy import RULE_PREFIX

KEPT_REVISIONS: Final = 50
"""Of each route; the oldest is forgotten first."""
# Seconds, 25 % apart from 0.1 ms to 30 s: a quantile read from them is off by at most that.
_BOUNDS: Final = tuple(0.0001 * 1.25**n for n in range(57))


class VariantCounts:
    """The numbers of one variant in one revision."""

    __slots__ = ("errors", "fallback", "forced", "latency", "requests")

    def __init__(self) -> None:
        self.requests = 0
        """Answered requests that slot or draw assigned, errors included."""
        self.errors = 0
        """Of those."""
        self.fallback = 0
        """Of those: served by the fallback."""
        self.forced = 0
        """Beside those: assigned by a rule."""
        self.latency = Histogram(_BOUNDS)
        """Seconds from the decoded request to its answer, of `requests`."""

    def add(self, other: VariantCounts) -> None:
        """Add another's counts, without its latencies."""
        self.requests += other.requests
        self.errors += other.errors
        self.fallback += other.fallback
        self.forced += other.forced


class RouteStatistics:
    """Counts by route, revision and assigned variant."""

    def __init__(self) -> None:
        self._routes: dict[str, dict[int, dict[str, VariantCounts]]] = {}
        self._forgotten: dict[str, dict[str, VariantCounts]] = {}
        """Sums of the revisions that are no longer kept, so that totals only grow."""

    def observe(self, target: Target, total_ns: int, *, is_error: bool) -> None:
        """Count one answered request of a route's split."""
        try:
            counts = self._routes[target.route][target.revision][target.assigned]
        except KeyError:
            counts = self._new(target)
        if target.assigned_by.startswith(RULE_PREFIX):
            counts.forced += 1
            return
        counts.requests += 1
        counts.errors += is_error
        counts.fallback += target.reason == REASON_FALLBACK
        counts.latency.observe(total_ns / 1e9)

    def of(self, route: str) -> Iterator[tuple[int, str, VariantCounts]]:
        """Yield revision, variant and counts, the newest revision first."""
        revisions = self._routes.get(route, {})
        for revision in sorted(revisions, reverse=True):
            for variant in sorted(revisions[revision]):
                yield revision, variant, revisions[revision][variant]

    def _new(self, target: Target) -> VariantCounts:
        """Return counts that are not there yet; room is made by forgetting the oldest revision."""
        revisions = self._routes.setdefault(target.route, {})
        if target.revision not in revisions and len(revisions) >= KEPT_REVISIONS:
            oldest = min(revisions)
            forgotten = self._forgotten.setdefault(target.route, {})
            if target.revision < oldest:  # a late answer: its revision is forgotten already
                return forgotten.setdefault(target.assigned, VariantCounts())
            for variant, old in revisions.pop(oldest).items():
                forgotten.setdefault(variant, VariantCounts()).add(old)
        counts = revisions.setdefault(target.revision, {})
        return counts.setdefault(target.assigned, VariantCounts())

    def totals(self, route: str) -> dict[str, VariantCounts]:
        """Return the sums over all revisions by variant, without latencies."""
        sums: dict[str, VariantCounts] = {}
        revisions = [*self._routes.get(route, {}).values(), self._forgotten.get(route, {})]
        for variants in revisions:
            for variant, counts in variants.items():
                sums.setdefault(variant, VariantCounts()).add(counts)
        return sums
