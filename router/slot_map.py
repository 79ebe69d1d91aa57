"""Who owns which slots of a route, and how ownership changes when weights do.

The ranges are stored with the route, not derived from its weights: that is what keeps a change
minimal and a way back exact. A change of weights

  1. takes slots from the variants that shrink: those acquired last first, then the highest first;
  2. gives them to the variants that grow, in the order of their names, from the lowest slot up,
     stamped with the revision that acquires them;
  3. merges neighbours of the same owner and stamp; and all of them where one variant owns
     everything and there are more than COMPACTED_OVER.

So the share of keys that move is exactly half the sum of the changes of the weights, the least that
any scheme can reach; and because the newest slots go back first, 10 -> 20 -> 10 returns the same
people, and so does 10 -> 0 -> 10 (an abort, then the canary again). Knows no route, no key and no
weight in percent: sizes are numbers of slots.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final, Generic, NamedTuple, TypeVar

from router.slots import SLOTS

_T = TypeVar("_T")

COMPACTED_OVER: Final = 64
"""Ranges that a single owner of all slots may keep; they are the memory of who had what before."""


class SlotRange(NamedTuple):
    """The slots from `start` up to but not including `end`."""

    start: int
    end: int
    owner: str
    """Name of a variant."""
    revision: int
    """In which the owner acquired them."""


class SlotMap(Generic[_T]):
    """Looks the owner of a slot up; one bisection.

    Args:
        ranges: in order, without a gap.
        owners: what to return for each owner's name.
    """

    __slots__ = ("_ends", "_owners")

    def __init__(self, ranges: Sequence[SlotRange], owners: Mapping[str, _T]) -> None:
        self._ends = [r.end for r in ranges]
        self._owners = [owners[r.owner] for r in ranges]

    def owner(self, slot: int) -> _T:
        """Return the owner of a slot."""
        return self._owners[bisect_right(self._ends, slot)]


def lay_out(sizes: Mapping[str, int], revision: int) -> tuple[SlotRange, ...]:
    """Return the ranges of a route that had none: variants by name, from the lowest slot up."""
    return _merged(_fill([(0, SLOTS)], sizes, revision))


def change(
    ranges: Sequence[SlotRange], sizes: Mapping[str, int], revision: int
) -> tuple[SlotRange, ...]:
    """Return the ranges after a change of sizes, by the steps in the module's documentation.

    Args:
        ranges: those in force.
        sizes: of every variant from now on; an owner that is not among them gives up everything.
        revision: stamps what is acquired.
    """
    owned = owned_slots(ranges)
    kept, freed = list(ranges), list[tuple[int, int]]()
    for owner, size in owned.items():
        surplus = size - sizes.get(owner, 0)
        if surplus > 0:
            kept, given = _release(kept, owner, surplus)
            freed += given
    grown = {name: size - owned.get(name, 0) for name, size in sizes.items()}
    acquired = _fill(sorted(freed), {n: g for n, g in grown.items() if g > 0}, revision)
    return _merged([*kept, *acquired])


def owned_slots(ranges: Iterable[SlotRange]) -> dict[str, int]:
    """Return how many slots each owner has."""
    owned: dict[str, int] = {}
    for r in ranges:
        owned[r.owner] = owned.get(r.owner, 0) + r.end - r.start
    return owned


def moved_slots(before: Sequence[SlotRange], after: Sequence[SlotRange]) -> int:
    """Return how many slots have another owner afterwards."""
    old = SlotMap(before, {r.owner: r.owner for r in before})
    new = SlotMap(after, {r.owner: r.owner for r in after})
    edges = sorted({0, SLOTS, *(r.start for r in before), *(r.start for r in after)})
    return sum(
        end - start for start, end in pairwise(edges) if old.owner(start) != new.owner(start)
    )


def check(ranges: Sequence[SlotRange], sizes: Mapping[str, int]) -> str:
    """Return what is wrong with stored ranges: a gap, an overlap, an owner's total; or nothing."""
    at = 0
    for r in ranges:
        if r.start != at or r.end <= r.start:
            return f"slots {r.start} to {r.end} do not follow slot {at}"
        at = r.end
    if at != SLOTS:
        return f"slots {at} to {SLOTS} belong to nobody"
    owned = owned_slots(ranges)
    for name in sorted(owned.keys() | sizes.keys()):
        if owned.get(name, 0) != sizes.get(name, 0):
            return f"{name!r} owns {owned.get(name, 0)} slots, its weight is {sizes.get(name, 0)}"
    return ""


def _release(
    ranges: Sequence[SlotRange], owner: str, surplus: int
) -> tuple[list[SlotRange], list[tuple[int, int]]]:
    """Take slots from an owner; return the ranges that are left of all, and what was freed."""
    newest_first = sorted(
        (r for r in ranges if r.owner == owner), key=lambda r: (r.revision, r.start), reverse=True
    )
    kept = [r for r in ranges if r.owner != owner]
    freed: list[tuple[int, int]] = []
    for r in newest_first:
        taken = min(surplus, r.end - r.start)
        surplus -= taken
        if taken:
            freed.append((r.end - taken, r.end))
        if r.end - taken > r.start:
            kept.append(r._replace(end=r.end - taken))
    return kept, freed


def _fill(
    free: Sequence[tuple[int, int]], wanted: Mapping[str, int], revision: int
) -> list[SlotRange]:
    """Hand free slots out, from the lowest up, to names in their order."""
    ranges: list[SlotRange] = []
    left = list(reversed(free))
    for name in sorted(wanted):
        missing = wanted[name]
        while missing:
            start, end = left.pop()
            taken = min(missing, end - start)
            ranges.append(SlotRange(start, start + taken, name, revision))
            missing -= taken
            if start + taken < end:
                left.append((start + taken, end))
    return ranges


def _merged(ranges: Iterable[SlotRange]) -> tuple[SlotRange, ...]:
    """Join neighbours of one owner and stamp; all of them where one owner has too many."""
    ordered = sorted(ranges)
    merged: list[SlotRange] = []
    for r in ordered:
        if merged and (merged[-1].owner, merged[-1].revision) == (r.owner, r.revision):
            merged[-1] = merged[-1]._replace(end=r.end)
        else:
            merged.append(r)
    if len(merged) > COMPACTED_OVER and len({r.owner for r in merged}) == 1:
        return (SlotRange(0, SLOTS, merged[0].owner, max(r.revision for r in merged)),)
    return tuple(merged)
