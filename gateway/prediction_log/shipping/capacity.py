"""How much memory the configured retention needs of Redis, and whether Redis may lose streams.

Pure: knows neither Redis nor time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from gateway.prediction_log.shipping.retention import ENTRY_OVERHEAD_BYTES, Retention
from gateway.prediction_log.streams import StreamKind


class Load(NamedTuple):
    """What comes into one stream."""

    kind: StreamKind
    per_s: float
    mean_bytes: float


def need_bytes(loads: Iterable[Load], retention: Retention) -> int:
    """Return the memory that all streams have taken once retention trims as much as comes in."""
    total = 0.0
    for kind, per_s, mean_bytes in loads:
        if per_s > 0:
            entries = retention.standing(kind, per_s, mean_bytes)
            total += entries * (mean_bytes + ENTRY_OVERHEAD_BYTES)
    return int(total)


def evicts_streams(policy: str, limit_bytes: int) -> bool:
    """Return whether a full server may drop a whole stream; they have no time to live."""
    return limit_bytes > 0 and policy.startswith("allkeys")


def history_per_s(length: int, first_ms: int, last_ms: int) -> float:
    """Return the rate at which a stream's entries came; 0: too few, or too close, to tell."""
    if length < 2 or last_ms - first_ms < 1_000:
        return 0.0
    return length / ((last_ms - first_ms) / 1000)
