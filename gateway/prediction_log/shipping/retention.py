"""How long entries stand, and how many: what a trim of one stream is told.

Pure: knows neither Redis nor time. scripts.py does it, and says what a group missed by it.

    age      older than for_s: gone; with every write by whole nodes, each few seconds to the entry
    entries  more than max_entries (or what max_bytes holds of them at their mean size): the oldest
             go, by whole nodes
    groups   what a respected group was not given yet is kept beyond both limits, for at most
             for_s + grace_s
"""

from __future__ import annotations

from typing import Final, NamedTuple

from gateway.prediction_log.streams import StreamKind
from gateway.prediction_log_config import RetentionConfig

ENTRY_OVERHEAD_BYTES: Final = 45
"""What an entry costs Redis beside its record."""


class Trim(NamedTuple):
    """What one trim keeps."""

    keep_from_ms: int
    """Entries older than this go; 0: at any age they stay."""
    hold_from_ms: int
    """The same, where a respected group was not given them."""
    entries: int
    is_exact: bool
    """Whether age is enforced to the entry, or by whole nodes only."""
    groups: tuple[str, ...]

    def arguments(self) -> list[int | str]:
        """Return the arguments of the scripts."""
        is_exact = int(self.is_exact)
        return [self.keep_from_ms, self.hold_from_ms, self.entries, is_exact, *self.groups]


class Retention:
    """The configured limits, as every trim is given them."""

    def __init__(self, config: RetentionConfig) -> None:
        self._config = config
        self._groups = tuple(config.respect_groups)
        self._for_ms = config.for_s * 1000
        self._hold_ms = (config.for_s + config.grace_s) * 1000

    def entries(self, kind: StreamKind, mean_bytes: float) -> int:
        """Return how many entries a stream of a kind may have, of this mean size."""
        config = self._config
        most = config.max_big_entries if kind is StreamKind.BIG else config.max_entries
        if config.max_bytes and mean_bytes > 0:
            most = min(most, max(1, int(config.max_bytes / mean_bytes)))
        return most

    def trim(
        self, kind: StreamKind, mean_bytes: float, now_ms: int, *, is_exact: bool = False
    ) -> Trim:
        """Return what a stream of a kind is to keep now."""
        return Trim(
            max(0, now_ms - self._for_ms) if self._for_ms else 0,
            max(0, now_ms - self._hold_ms),
            self.entries(kind, mean_bytes),
            is_exact,
            self._groups,
        )

    def standing(self, kind: StreamKind, per_s: float, mean_bytes: float) -> float:
        """Return how many entries a stream has in the long run at this rate."""
        most = self.entries(kind, mean_bytes)
        return min(most, per_s * self._config.for_s) if self._config.for_s else most
