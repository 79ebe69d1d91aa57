"""Counts distinct units of experiments: how many keys were assigned to each variant.

Knows routes, epochs and variants by name only; knows no Redis (redis_units.py), no statistics
(router/sample_ratio.py) and no time. Use from the event loop's thread only.

Requests of one key all go the same way, so a sample-ratio test needs keys, each counted once, and
exactly: an estimate of distinct keys is wrong by more than the test must see. To stay affordable
the counting is confined to one 64th of the keys, chosen by a hash under a salt of its own, salt +
"/unit": independent of the variants, the same on every replica, and stable, so that a key is
either always counted or never. What is kept of a key is that hash, 8 bytes; two different keys of
200 000 share one with a probability below 1e-7.

A unit that is seen in two variants of one epoch counts in both: that is itself a sign of trouble.

Cost of `see`: one hash; for one key in 64 a look into a set. Memory: about 100 bytes per unit, and
never more than `limit_units` units in each of two epochs per route.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

from router.slots import SLOTS, KeySpace

SAMPLED_PART: Final = 64
"""One key in so many is counted."""
_SAMPLED_SLOTS: Final = SLOTS // SAMPLED_PART
_SAMPLED_BELOW: Final = (_SAMPLED_SLOTS << 64) // SLOTS
"""The hash of a key is below this exactly where its slot is below _SAMPLED_SLOTS: 2**58."""
UNIT_BYTES: Final = 8
KEPT_EPOCHS: Final = 2
"""Per route: the one in force, and the one that late requests still belong to."""


class NewUnits(NamedTuple):
    """Units of one variant that other replicas have not been told of."""

    route: str
    epoch: int
    variant: str
    units: list[bytes]
    """The hashes, big-endian."""


class _Epoch:
    """The units of one route from one revision on, by variant."""

    __slots__ = ("found", "fresh", "salt", "size", "space")

    def __init__(self, salt: str) -> None:
        self.salt = salt
        self.space = KeySpace(salt + "/unit")
        self.found: dict[str, set[int]] = {}
        self.fresh: dict[str, list[int]] = {}
        """The part of `found` that `take_new` has not handed out."""
        self.size = 0
        """Units in all of `found`."""


class UnitCounter:
    """Distinct units per route, epoch and variant, for one replica.

    At the limit: units beyond `limit_units` of one route and epoch are not counted; units known
    already are of course still known. That stops the counting for every variant at once, so it
    does not bend the ratio.

    Only the newest two epochs of a route are kept; requests of an older one are not counted.
    """

    def __init__(self, *, limit_units: int = 200_000) -> None:
        self._limit_units = limit_units
        self._routes: dict[str, dict[int, _Epoch]] = {}

    def __repr__(self) -> str:
        sizes = {
            f"{route}@{epoch}": kept.size
            for route, epochs in self._routes.items()
            for epoch, kept in epochs.items()
        }
        return f"<UnitCounter {sizes} of {self._limit_units} each>"

    def see(self, route: str, epoch: int, salt: str, variant: str, key: bytes) -> None:
        """Count the unit of a request unless it is known; for the request path, never raises.

        Args:
            route: public name; the caller sees to it that there are few of them (`retain`).
            epoch: revision since which salt and split are the same.
            salt: of the route in that epoch.
            variant: the one that the split assigned. Do not call for forced requests.
            key: as received; an empty one is a missing one and is not counted.
        """
        if not key:
            return
        epochs = self._routes.get(route)
        kept = epochs.get(epoch) if epochs is not None else None
        if kept is None or kept.salt != salt:
            kept = self._open(route, epoch, salt)
            if kept is None:
                return
        unit = kept.space.hash(key)
        if unit < _SAMPLED_BELOW:
            self._add(kept, variant, unit)

    def counts(self, route: str, epoch: int) -> dict[str, int]:
        """Return the distinct units per variant, of those seen so far; empty: none, or too old."""
        kept = self._routes.get(route, {}).get(epoch)
        return {} if kept is None else {name: len(units) for name, units in kept.found.items()}

    @property
    def is_saturated(self) -> bool:
        """Whether some epoch has as many units as may be counted."""
        return bool(self.saturated())

    def saturated(self) -> list[tuple[str, int]]:
        """Return the routes and epochs that have as many units as may be counted."""
        return [
            (route, epoch)
            for route, epochs in self._routes.items()
            for epoch, kept in epochs.items()
            if kept.size >= self._limit_units
        ]

    def take_new(self, at_most: int = sys.maxsize) -> list[NewUnits]:
        """Hand out units that were not handed out before, for other replicas; empty: none left.

        Whoever cannot deliver them says so by `give_back`.

        Args:
            at_most: bounds the time that a call takes. It is divided among all that have new units
                (each gets at least one unit), so that none of them has to wait for another.
        """
        waiting = [
            (route, epoch, variant, units)
            for route, epochs in self._routes.items()
            for epoch, kept in epochs.items()
            for variant, units in kept.fresh.items()
            if units
        ]
        part = max(1, at_most // max(1, len(waiting)))
        taken = []
        for route, epoch, variant, units in waiting:
            blobs = [unit.to_bytes(UNIT_BYTES, "big") for unit in units[-part:]]
            del units[-part:]
            taken.append(NewUnits(route, epoch, variant, blobs))
        return taken

    def give_back(self, undelivered: Iterable[NewUnits]) -> None:
        """Take units back that `take_new` handed out, for the next time.

        Bounded like the counting itself: a unit is handed out once, and one whose epoch has gone
        meanwhile is forgotten.
        """
        for route, epoch, variant, units in undelivered:
            kept = self._routes.get(route, {}).get(epoch)
            known = kept.found.get(variant) if kept is not None else None
            if kept is None or known is None:
                continue
            # An epoch that began anew under another salt does not know the old one's units.
            numbers = (int.from_bytes(unit, "big") for unit in units)
            kept.fresh.setdefault(variant, []).extend(n for n in numbers if n in known)

    def retain(self, routes: Collection[str]) -> None:
        """Forget every route that is not among these: deleted, or no experiment any more."""
        for route in [name for name in self._routes if name not in routes]:
            del self._routes[route]

    def _open(self, route: str, epoch: int, salt: str) -> _Epoch | None:
        """Begin an epoch, the oldest of three making room; None: it is too old itself."""
        epochs = self._routes.setdefault(route, {})
        newer = sum(known > epoch for known in epochs)
        if newer >= KEPT_EPOCHS:
            return None
        kept = epochs[epoch] = _Epoch(salt)
        if len(epochs) > KEPT_EPOCHS:
            del epochs[min(epochs)]
        return kept

    def _add(self, kept: _Epoch, variant: str, unit: int) -> None:
        known = kept.found.get(variant)
        if known is not None and unit in known:
            return
        if kept.size >= self._limit_units:
            return
        if known is None:
            known = kept.found[variant] = set()
        known.add(unit)
        kept.size += 1
        kept.fresh.setdefault(variant, []).append(unit)
