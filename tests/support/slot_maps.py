"""Slot maps for tests: how they are built and read, and an oracle that knows no ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from router.slot_map import COMPACTED_OVER, SlotRange, change, lay_out
from router.slots import SLOTS, KeySpace

Ranges = tuple[SlotRange, ...]
Owners = npt.NDArray[np.str_]
Slots = npt.NDArray[np.int64]


def sizes_of(weights: Mapping[str, float]) -> dict[str, int]:
    """Turn weights in percent into slots."""
    return {name: round(weight * SLOTS / 100) for name, weight in weights.items()}


def parts_of(names: Sequence[str], parts: Sequence[int]) -> dict[str, int]:
    """Divide the slots by parts, such as 9:1:1; the first takes what rounding leaves."""
    sizes = {n: SLOTS * p // sum(parts) for n, p in zip(names, parts, strict=True)}
    sizes[names[0]] += SLOTS - sum(sizes.values())
    return sizes


def after_all(*steps: Mapping[str, int]) -> Ranges:
    """Lay the first sizes out as revision 1, then change to each of the others."""
    ranges = lay_out(steps[0], 1)
    for revision, sizes in enumerate(steps[1:], start=2):
        ranges = change(ranges, sizes, revision)
    return ranges


def least_movement(before: Mapping[str, int], after: Mapping[str, int]) -> int:
    """Half the sum of the changes: no scheme can move fewer."""
    names = before.keys() | after.keys()
    changes = sum(abs(after.get(n, 0) - before.get(n, 0)) for n in names)
    assert changes % 2 == 0
    return changes // 2


def owners_of(ranges: Ranges, slots: Slots) -> Owners:
    """Look every slot up, by the ends of the ranges."""
    ends = np.array([r.end for r in ranges])
    names = np.array([r.owner for r in ranges])
    return names[np.searchsorted(ends, slots, side="right")]


def every_owner(ranges: Ranges) -> Owners:
    """Return the owner of each of the million slots."""
    names = np.array([r.owner for r in ranges])
    return np.repeat(names, [r.end - r.start for r in ranges])


def moves(before: Ranges, after: Ranges) -> set[tuple[str, str]]:
    """Return who gave slots to whom."""
    was, now = every_owner(before), every_owner(after)
    moved = was != now
    return set(zip(was[moved].tolist(), now[moved].tolist(), strict=True))


def slots_of(salt: str, keys: Sequence[bytes]) -> Slots:
    space = KeySpace(salt)
    return np.array([space.slot(key) for key in keys])


class SlotBySlot:
    """The rules of a change, applied to every slot on its own: no ranges, no merging."""

    def __init__(self, sizes: Mapping[str, int], *, is_newest_first: bool = True) -> None:
        names = sorted(sizes)
        self.owners = np.repeat(np.array(names, dtype="U8"), [sizes[n] for n in names])
        self.stamps = np.ones(SLOTS, dtype=np.int64)
        self.is_newest_first = is_newest_first

    def change(self, sizes: Mapping[str, int], revision: int) -> None:
        names = sorted({*sizes, *np.unique(self.owners).tolist()})
        assert all(len(name) <= 8 for name in names)  # longer ones would be cut off in `owners`
        grown = {n: sizes.get(n, 0) - int((self.owners == n).sum()) for n in names}
        freed = np.concatenate(
            [np.empty(0, dtype=np.int64)]
            + [self._released(n, -grown[n]) for n in names if grown[n] < 0]
        )
        freed.sort()
        at = 0
        for name in names:
            if grown[name] > 0:
                taken = freed[at : at + grown[name]]
                self.owners[taken], self.stamps[taken] = name, revision
                at += grown[name]
        pieces = 1 + int((self.stamps[1:] != self.stamps[:-1]).sum())
        if (self.owners == self.owners[0]).all() and pieces > COMPACTED_OVER:
            self.stamps[:] = revision

    def _released(self, name: str, count: int) -> Slots:
        held = np.flatnonzero(self.owners == name)
        age = self.stamps[held] if self.is_newest_first else np.zeros(len(held), dtype=np.int64)
        newest_then_highest = np.lexsort((-held, -age))
        released: Slots = held[newest_then_highest[:count]]
        return released
