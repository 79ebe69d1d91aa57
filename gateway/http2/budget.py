"""The allowance for frames that do no work.

Every flood has the same shape: frames that cost this side something and the peer next to nothing
(PING, SETTINGS, RST_STREAM after HEADERS, empty DATA and CONTINUATION, WINDOW_UPDATE of one byte).
Each takes tokens; tokens come back with time and with work that was done for the peer. Time and
work are arguments: nothing is counted on the path of a request.
"""

from __future__ import annotations


class Budget:
    """Tokens of one connection. Invariant: never more than the capacity."""

    __slots__ = ("_refilled_ns", "_work", "tokens")

    def __init__(self, capacity: int, now_ns: int) -> None:
        self.tokens = capacity
        self._refilled_ns = now_ns
        self._work = 0

    def refill(self, capacity: int, per_s: int, now_ns: int, work: int) -> bool:
        """Put back what time and work since the last refill have earned.

        Args:
            capacity: the most that can be saved.
            per_s: tokens earned by a second.
            now_ns: monotonic time.
            work: tokens earned by work since the connection began.

        Returns:
            Whether the allowance holds.
        """
        earned = (now_ns - self._refilled_ns) * per_s // 1_000_000_000
        if earned > 0:  # else the fraction is kept for the next time
            self._refilled_ns = now_ns
        earned += max(0, work - self._work)
        self._work = max(work, self._work)
        self.tokens = min(capacity, self.tokens + earned)
        return self.tokens >= 0
