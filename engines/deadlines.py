"""The deadlines of requests in flight, earliest first: pure, handed the time.

Knows instants and nothing else. A request leaves when it expires or is discarded; discarded entries
stay in the heap until their turn or until they outnumber the live ones, so memory stays within
twice the number of requests in flight.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Final

from engines.batch_queue import QueuedRequest

_COMPACT_ABOVE: Final = 64


class DeadlineIndex:
    """Requests by deadline. Requests without one are never added."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, QueuedRequest]] = []
        self._sequence = 0
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def add(self, request: QueuedRequest) -> None:
        """Watch a request that has a deadline."""
        if request.deadline_ns is None:
            raise ValueError("a request without a deadline cannot expire")
        self._sequence += 1
        self._live += 1
        heappush(self._heap, (request.deadline_ns, self._sequence, request))

    def discard(self, request: QueuedRequest) -> None:
        """Forget a watched request, which the caller has marked `is_done`."""
        if request.deadline_ns is None:
            return
        self._live -= 1
        if len(self._heap) > 2 * self._live + _COMPACT_ABOVE:
            self._heap = [entry for entry in self._heap if not entry[2].is_done]
            heapify(self._heap)

    def expired(self, now_ns: int) -> list[QueuedRequest]:
        """Return the watched requests whose deadline is at or before `now_ns`; keep them watched.

        The caller marks each `is_done` and discards it, as it does with every other request.
        """
        out = []
        while self._heap and (self._heap[0][0] <= now_ns or self._heap[0][2].is_done):
            request = heappop(self._heap)[2]
            if not request.is_done:
                out.append(request)
        return out

    def next_ns(self) -> int | None:
        """Return the earliest deadline of a live request, or None."""
        while self._heap and self._heap[0][2].is_done:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None
