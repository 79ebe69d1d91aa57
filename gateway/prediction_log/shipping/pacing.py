"""How fast records that had to wait are sent: a replay must not crowd out what is new.

Pure: knows neither Redis nor a clock; time is handed in.

While the oldest record is younger than BEHIND_MS nothing is held back. Once it is older, records
are sent at `factor` times the rate at which they come in, and at FLOOR_PER_S at least.
"""

from __future__ import annotations

from typing import Final

BEHIND_MS: Final = 1_000
"""Records that waited for this long are a backlog."""
FLOOR_PER_S: Final = 10_000.0
_WINDOW_S: Final = 1.0
_BURST_S: Final = 0.1
"""What was not sent in time is made up for, up to this much of it."""
_NEWEST: Final = 0.3
"""Weight of the latest window in the rate that is kept."""


class Pace:
    """One shipper's rates. `seen` is what has ever come in, in records."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._window_began_s = 0.0
        self._seen: float | None = None
        self._next_s = 0.0
        self.incoming_per_s = 0.0

    def note(self, seen: float, now_s: float) -> None:
        """Take in how many records there have been."""
        if self._seen is None:
            self._seen, self._window_began_s = seen, now_s
            return
        elapsed_s = now_s - self._window_began_s
        if elapsed_s >= _WINDOW_S:
            latest = max(0.0, seen - self._seen) / elapsed_s
            self.incoming_per_s += _NEWEST * (latest - self.incoming_per_s)
            self._seen, self._window_began_s = seen, now_s

    def rebase(self, seen: float, now_s: float) -> None:
        """Begin to count anew: what was just added is not new."""
        self._seen, self._window_began_s = seen, now_s

    def delay_s(self, records: int, age_ms: int, now_s: float) -> float:
        """Return how long to wait after these were sent, the oldest left being so old."""
        if age_ms < BEHIND_MS:
            self._next_s = now_s
            return 0.0
        per_s = max(FLOOR_PER_S, self._factor * self.incoming_per_s)
        self._next_s = max(self._next_s, now_s - _BURST_S) + records / per_s
        return max(0.0, self._next_s - now_s)
