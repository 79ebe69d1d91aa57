"""What each variant of a route did, per revision: the numbers that operators compare.

Counted by the variant that was assigned, also where a fallback served: that is what keeps a
comparison fair. Requests that a rule chose are counted apart, because nobody drew them. Fed by the
pipeline on the event loop; kept for the newest revisions of each route.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from gateway.books import Book
from gateway.directory import REASON_FALLBACK, Target
from gateway.histogram import Floats, Histogram
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


class RouteStatistics(Book):
    """Counts by route, revision and assigned variant.

    Args:
        settle: called before counts are read: brings in what is noted elsewhere.
    """

    def __init__(self, settle: Callable[[], None] | None = None) -> None:
        super().__init__(settle)
        self._routes: dict[str, dict[int, dict[str, VariantCounts]]] = {}
        self._forgotten: dict[str, dict[str, VariantCounts]] = {}
        """Sums of the revisions that are no longer kept, so that totals only grow."""

    def observe(self, target: Target, total_s: Floats) -> None:
        """Count answered requests of a route's split: their times, one each."""
        counts = self._counts(target)
        if target.assigned_by.startswith(RULE_PREFIX):
            counts.forced += len(total_s)
            return
        counts.requests += len(total_s)
        if target.reason == REASON_FALLBACK:
            counts.fallback += len(total_s)
        counts.latency.observe_all(total_s)

    def observe_failure(self, target: Target, total_ns: int) -> None:
        """Count a request of a route's split that was answered with an error."""
        counts = self._counts(target)
        if target.assigned_by.startswith(RULE_PREFIX):
            counts.forced += 1
            return
        counts.requests += 1
        counts.errors += 1
        counts.fallback += target.reason == REASON_FALLBACK
        counts.latency.observe(total_ns / 1e9)

    def _counts(self, target: Target) -> VariantCounts:
        try:
            return self._routes[target.route][target.revision][target.assigned]
        except KeyError:
            return self._new(target)

    def of(self, route: str) -> Iterator[tuple[int, str, VariantCounts]]:
        """Yield revision, variant and counts, the newest revision first."""
        self._settle()
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
        self._settle()
        sums: dict[str, VariantCounts] = {}
        revisions = [*self._routes.get(route, {}).values(), self._forgotten.get(route, {})]
        for variants in revisions:
            for variant, counts in variants.items():
                sums.setdefault(variant, VariantCounts()).add(counts)
        return sums
