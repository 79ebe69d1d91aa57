"""Which of the numbers 1, 2, 3 ... were seen, as ranges. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple


class Range(NamedTuple):
    """Numbers from `first` to `last`, both included."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """How many they are."""
        return self.last - self.first + 1

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


class NumberSet:
    """Numbers, most of which come in order: memory grows with the gaps, not with the numbers.

    Invariant: `_starts` and `_ends` (not included) ascend, and no two ranges touch.
    """

    __slots__ = ("_ends", "_starts", "came_late", "count", "following")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.following = 0
        """One above the greatest number; 0: there is none."""
        self.count = 0
        self.came_late = False
        """Whether a number came after a greater one."""

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._starts, number) - 1
        return at >= 0 and number < self._ends[at]

    def add(self, number: int) -> bool:
        """Add a number; return False where it is there already."""
        if number == self.following and self.count:
            self._ends[-1] = self.following = number + 1
            self.count += 1
            return True
        if number in self:
            return False
        self.count += 1
        if number < self.following:
            self.came_late = True
        else:
            self.following = number + 1
        self._insert(number)
        return True

    def ranges(self) -> list[Range]:
        """Return the numbers, in order."""
        pairs = zip(self._starts, self._ends, strict=True)
        return [Range(start, end - 1) for start, end in pairs]

    def missing(self, first: int, last: int) -> list[Range]:
        """Return what is not there of the numbers from `first` to `last`."""
        return without([Range(first, last)], self.ranges()) if first <= last else []

    def _insert(self, number: int) -> None:
        starts, ends = self._starts, self._ends
        at = bisect_right(starts, number)
        touches_left = at > 0 and ends[at - 1] == number
        touches_right = at < len(starts) and starts[at] == number + 1
        if touches_left and touches_right:
            ends[at - 1] = ends[at]
            del starts[at], ends[at]
        elif touches_left:
            ends[at - 1] = number + 1
        elif touches_right:
            starts[at] = number
        else:
            starts.insert(at, number)
            ends.insert(at, number + 1)


def without(ranges: Iterable[Range], taken: Iterable[Range]) -> list[Range]:
    """Return what remains of ranges; both are in order."""
    left: list[Range] = []
    holes = list(taken)
    begin = 0
    for first, last in ranges:
        at = first
        while begin < len(holes) and holes[begin].last < at:
            begin += 1
        for hole in holes[begin:]:
            if hole.first > last:
                break
            if hole.first > at:
                left.append(Range(at, hole.first - 1))
            at = max(at, hole.last + 1)
        if at <= last:
            left.append(Range(at, last))
    return left


def both(ranges: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """Return what two lists of ranges, both in order, have in common."""
    found: list[Range] = []
    left, right = list(ranges), list(others)
    i = j = 0
    while i < len(left) and j < len(right):
        first, last = max(left[i].first, right[j].first), min(left[i].last, right[j].last)
        if first <= last:
            found.append(Range(first, last))
        if left[i].last < right[j].last:
            i += 1
        else:
            j += 1
    return found


def cut(ranges: Iterable[Range], borders: Iterable[int]) -> list[Range]:
    """Split ranges behind these numbers, which ascend."""
    pieces: list[Range] = []
    ordered = list(borders)
    for first, last in ranges:
        at = first
        for border in ordered:
            if at <= border < last:
                pieces.append(Range(at, border))
                at = border + 1
        pieces.append(Range(at, last))
    return pieces


def total(ranges: Iterable[Range]) -> int:
    """Return how many numbers ranges have."""
    return sum(numbers.size for numbers in ranges)
