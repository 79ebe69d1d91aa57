"""What shipping counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.prediction_log.streams import StreamKind


@dataclass(slots=True)
class ShipCounts:
    """Counters that only grow; whoever does the thing counts it."""

    batches: int = 0
    batch_s: float = 0.0
    duplicates: int = 0
    collisions: int = 0
    rewound: int = 0
    forgotten: int = 0
    trimmed: int = 0
    orphans_trimmed: int = 0
    memory_need_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShipStatistics:
    """A frozen copy of the counters."""

    is_sink_up: bool = False
    """Whether the last exchange with Redis went well."""
    is_fenced: bool = False
    """Another gateway writes under our replica's name; nothing is sent."""
    reconnects: int = 0
    """Connections made after the first."""
    batches: int = 0
    """Calls that wrote records."""
    batch_s: float = 0.0
    """Sum of their durations."""
    duplicates: int = 0
    """Records that stood in Redis already when they were sent."""
    collisions: int = 0
    """Records that met another writer's ids and were given new ones."""
    rewound: int = 0
    """Records sent again because Redis had forgotten them."""
    forgotten: int = 0
    """Times that a stream was found with less than it had confirmed."""
    trimmed: int = 0
    """Entries that retention removed."""
    trimmed_unread: Mapping[tuple[str, StreamKind], int] = field(default_factory=dict)
    """Of those, by name and kind: entries that some consumer group had not been given."""
    orphans_trimmed: int = 0
    """Entries removed from streams of replicas that are gone."""
    memory_need_bytes: int = 0
    """What the configured retention needs at the rate so far; 0: not known yet."""
    last_error: str = ""
    """Empty: none so far."""
