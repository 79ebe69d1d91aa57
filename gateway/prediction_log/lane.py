"""One kind of one public name's records, as this process makes them: numbered, encoded, counted.

Knows no file and no Redis; the log (log.py) writes what is pending here and tells what became of
it. Event loop's thread only.

Invariant: a record that gets a sequence number is pending, deferred, on its way to the store, in
the store, shipped, or dropped and counted. The gap that a dropped one leaves is how a reader sees
the loss, and the audits say why.
"""

from __future__ import annotations

from gateway.prediction_log.capture.policy import NamePolicy
from gateway.prediction_log.counts import KindCounts
from gateway.prediction_log.encoder import RecordEncoder
from gateway.prediction_log.spool.store import DropReason
from gateway.prediction_log.streams import StreamKind


class Lane:
    """The records of one name and kind. Identity matters, so it is no value."""

    __slots__ = (
        "answered",
        "dropped",
        "encode",
        "is_partial",
        "kind",
        "name",
        "number",
        "pending",
        "policy",
        "recovered",
        "sampled_out",
        "seq",
        "shipped",
        "under_way",
    )

    def __init__(
        self, name: str, kind: StreamKind, number: int, *, worker: str, policy: NamePolicy
    ) -> None:
        self.name = name
        self.kind = kind
        self.number = number
        """Of its stream in the store."""
        self.policy = policy
        self.encode = RecordEncoder(worker=worker, policy=policy).encode
        self.is_partial = policy.sampler.is_partial
        """Whether some records are sampled out."""
        self.seq = 0
        self.pending: list[bytes] = []
        """Encoded, not yet given to the store."""
        self.under_way = 0
        """Deferred, or given to the store and not yet written."""
        self.answered = self.recovered = self.sampled_out = self.shipped = 0
        self.dropped: dict[DropReason, int] = dict.fromkeys(DropReason, 0)

    def __repr__(self) -> str:
        return f"<Lane {self.name} {self.kind} at {self.seq}, {len(self.pending)} pending>"

    def counts(self, spooled: int) -> KindCounts:
        """Return a frozen copy of the counters; `spooled` is what the store has of it."""
        return KindCounts(
            answered=self.answered,
            recovered=self.recovered,
            sampled_out=self.sampled_out,
            shipped=self.shipped,
            spooled=spooled + len(self.pending) + self.under_way,
            dropped=dict(self.dropped),
            sequence=self.seq,
        )
