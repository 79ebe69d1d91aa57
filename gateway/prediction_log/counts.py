"""What the prediction log has counted, as values: for metrics, audits and tests.

Pure: knows no store, no Redis and no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gateway.prediction_log.record import AuditCounts
from gateway.prediction_log.spool.store import DropReason
from gateway.prediction_log.streams import StreamKind


@dataclass(frozen=True, slots=True, kw_only=True)
class KindCounts:
    """Conservation, at every instant, of one kind of records:

    answered + recovered = sampled_out + shipped + spooled + sum(dropped)
    """

    answered: int = 0
    """Records offered by this process."""
    recovered: int = 0
    """Found in the spool at start, written by an earlier process and not known to be shipped; or
    shipped and to be shipped once more, because Redis forgot them."""
    sampled_out: int = 0
    shipped: int = 0
    """Redis has them."""
    spooled: int = 0
    """Written or about to be, and not yet known to stand in Redis."""
    dropped: Mapping[DropReason, int] = field(default_factory=dict)
    sequence: int = 0
    """The last number given."""

    @property
    def difference(self) -> int:
        """What the equation above is out by: 0."""
        settled = self.sampled_out + self.shipped + self.spooled + sum(self.dropped.values())
        return self.answered + self.recovered - settled

    def audited(self) -> AuditCounts:
        """Return the counts as an audit has them."""
        return AuditCounts(
            answered=self.answered,
            recovered=self.recovered,
            sampled_out=self.sampled_out,
            shipped=self.shipped,
            spooled=self.spooled,
            dropped={str(reason): n for reason, n in self.dropped.items() if n},
            sequence=self.sequence,
        )


def add(all_counts: Iterable[KindCounts]) -> KindCounts:
    """Return the sum of counts; its sequence is 0."""
    dropped = dict.fromkeys(DropReason, 0)
    answered = recovered = sampled_out = shipped = spooled = 0
    for counts in all_counts:
        answered += counts.answered
        recovered += counts.recovered
        sampled_out += counts.sampled_out
        shipped += counts.shipped
        spooled += counts.spooled
        for reason, n in counts.dropped.items():
            dropped[reason] += n
    return KindCounts(
        answered=answered,
        recovered=recovered,
        sampled_out=sampled_out,
        shipped=shipped,
        spooled=spooled,
        dropped=dropped,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogStatistics:
    """The counters of a prediction log, and the state of its way to Redis."""

    kinds: Mapping[tuple[str, StreamKind], KindCounts] = field(default_factory=dict)
    """By public name and kind of record."""
    spooled_bytes: int = 0
    oldest_unshipped_s: float = 0.0
    """Age of the oldest record that Redis does not have; 0: it has all."""
    is_sink_up: bool = False
    """Whether the last exchange with Redis went well."""
    is_fenced: bool = False
    """Another process writes this replica's streams; nothing is shipped."""
    reconnects: int = 0
    """Connections made after the first."""
    duplicates: int = 0
    """Records that Redis was sent again and had already."""
    rewound: int = 0
    """Records sent again because Redis had forgotten them."""
    collisions: int = 0
    """Records that met another writer's ids and were given new ones."""
    trimmed_unread: Mapping[tuple[str, StreamKind], int] = field(default_factory=dict)
    """Entries that retention removed before every known consumer group had read them."""
    ship_batches: int = 0
    ship_seconds: float = 0.0
    """Time of all exchanges that shipped records."""
    memory_estimate_bytes: int = 0
    """What the configured retention needs in Redis at the present rate; 0: not known yet."""
    last_error: str = ""
    """Empty: none so far."""

    @property
    def total(self) -> KindCounts:
        """The sum over names and kinds; audits, which nobody asked for, are left out."""
        return add(c for (_, kind), c in self.kinds.items() if kind is not StreamKind.AUDIT)

    def by_name(self) -> dict[str, dict[StreamKind, AuditCounts]]:
        """Return the counts as the audits of the names have them."""
        found: dict[str, dict[StreamKind, AuditCounts]] = {}
        for (name, kind), counts in self.kinds.items():
            if kind is not StreamKind.AUDIT:
                found.setdefault(name, {})[kind] = counts.audited()
        return found

    def trimmed_unread_of(self, name: str) -> int:
        """Return the entries of a name that were trimmed unread."""
        return sum(n for (other, _), n in self.trimmed_unread.items() if other == name)
