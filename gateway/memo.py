"""A bounded memo for what recurs in requests: descriptions of tensors, heads of answers.

Knows neither protocol nor keys. There are two generations: what is looked up stays in the recent
one; when that is full it becomes the old one, and the old one is dropped. So an entry that is used
once per generation stays, whatever else passes through, and a caller whose every key is new costs
an insertion per request and no memory beyond the bound. One thread at a time.
"""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(Generic[K, V]):
    """At most `2 * max_entries` entries; the caller bounds the size of one. No value is None."""

    __slots__ = ("_max_entries", "_old", "recent")

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._old: dict[K, V] = {}
        self.recent: dict[K, V] = {}
        """Where a call matters: `memo.recent.get(key) or memo.get(key)`. Replaced at times."""

    def get(self, key: K) -> V | None:
        """Return what was put under a key, unless it has been forgotten."""
        value = self.recent.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: K, value: V) -> V:
        """Remember a value, and return it."""
        if len(self.recent) >= self._max_entries:
            self._old = self.recent
            self.recent = {}
        self.recent[key] = value
        return value

    def __len__(self) -> int:
        return len(self.recent.keys() | self._old.keys())
