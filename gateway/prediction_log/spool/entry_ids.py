"""Gives the ids of entries, which only ever grow. Knows no clock: the wall time is handed in."""

from __future__ import annotations

from gateway.prediction_log.spool.block import MAX_SEQ
from gateway.prediction_log.streams import BEFORE_ALL, EntryId

_new = tuple.__new__
"""Makes a named tuple without the function that knows its fields' names."""


class EntryIds:
    """Ids of one store: the time, or that of the last id where time stands still or went back."""

    __slots__ = ("_ms", "_seq")

    def __init__(self, last: EntryId = BEFORE_ALL) -> None:
        self._ms, self._seq = last

    @property
    def last(self) -> EntryId:
        """The greatest id given or seen."""
        return EntryId(self._ms, self._seq)

    def give(self, count: int, now_ms: int) -> EntryId:
        """Return the first of `count` ids with the same milliseconds."""
        ms, seq = self._ms, self._seq + 1
        if now_ms > ms:
            ms, seq = now_ms, 0
        if seq + count > MAX_SEQ:
            ms, seq = ms + 1, 0
        self._ms, self._seq = ms, seq + count - 1
        return _new(EntryId, (ms, seq))

    def raise_floor(self, floor: EntryId) -> None:
        """Give only greater ids from now on."""
        self._ms, self._seq = max(self.last, floor)
