"""The audits that stand among the records: what one worker has counted of one public name.

Pure: makes documents of counts, and knows neither who counts nor where documents go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.prediction_log.record import SCHEMA, AuditCounts, LoggedAudit
from gateway.prediction_log.streams import StreamKind


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolState:
    """What an audit says about the worker as a whole, and about what readers missed."""

    trimmed_unread: int = 0
    spool_bytes: int = 0
    oldest_unshipped_ms: int = 0
    """When that record was appended; 0: there is none."""


def imbalance(counts: AuditCounts) -> int:
    """Return how many records are not accounted for: 0, or there is a bug."""
    settled = counts.sampled_out + counts.shipped + counts.spooled + sum(counts.dropped.values())
    return counts.answered + counts.recovered - settled


def make_audit(
    worker: str,
    name: str,
    now_ms: int,
    *,
    kinds: Mapping[StreamKind, AuditCounts],
    state: SpoolState,
    is_final: bool = False,
) -> LoggedAudit:
    """Return the audit of a name; kinds of which nothing was counted are left out."""
    age_ms = max(0, now_ms - state.oldest_unshipped_ms) if state.oldest_unshipped_ms else 0
    nothing = AuditCounts()
    return LoggedAudit(
        schema=SCHEMA,
        worker=worker,
        ts_us=now_ms * 1000,
        name=name,
        kinds={str(kind): counts for kind, counts in kinds.items() if counts != nothing},
        trimmed_unread=state.trimmed_unread,
        spool_bytes=state.spool_bytes,
        oldest_unshipped_us=age_ms * 1000,
        is_final=is_final,
    )


def final_audits(
    worker: str, sequences: Mapping[tuple[str, StreamKind], int], now_ms: int
) -> list[LoggedAudit]:
    """Return the audits that a worker did not live to write, from what its files show.

    Only the last sequence numbers can be told: what it counted beside them is gone with it.
    """
    kinds: dict[str, dict[str, AuditCounts]] = {}
    for (name, kind), sequence in sequences.items():
        kinds.setdefault(name, {})[str(kind)] = AuditCounts(sequence=sequence)
    return [
        LoggedAudit(
            schema=SCHEMA,
            worker=worker,
            ts_us=now_ms * 1000,
            name=name,
            kinds=by_kind,
            is_final=True,
        )
        for name, by_kind in kinds.items()
    ]
