"""A book: counters that are noted elsewhere first, and brought up to date when somebody reads.

Knows nothing of what is counted.
"""

from __future__ import annotations

from collections.abc import Callable


class Book:
    """Counters with a hook before reading.

    Args:
        settle: brings in what is noted elsewhere; None: whoever feeds the book does so at once.
    """

    def __init__(self, settle: Callable[[], None] | None = None) -> None:
        self._bring_in = settle

    def _settle(self) -> None:
        """Bring the counters up to date; called by whatever is read."""
        if self._bring_in is not None:
            self._bring_in()
