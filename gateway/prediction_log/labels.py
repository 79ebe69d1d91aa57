"""One label as the gateway takes it from a caller, before the log gives it a number.

Knows the document that it becomes (record.py) and nothing of protocols, checks or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gateway.prediction_log.record import SCHEMA, LoggedLabel


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelInput:
    """Ground truth for one prediction, checked. Either `rid` or `cid` says which prediction."""

    name: str
    """Public name that was asked; names the stream."""
    rid: bytes = b""
    cid: str = ""
    target: Any  # Any: a JSON value of the sender's, which msgpack can carry
    ts_us: int
    """When the truth was known."""
    received_us: int
    source: str = ""
    weight: float = 1.0
    version: int = 0
    idempotency_key: str = ""

    def to_logged(self, worker: str, seq: int) -> LoggedLabel:
        """Return the document for the stream, as this worker's label of this number."""
        return LoggedLabel(
            schema=SCHEMA,
            worker=worker,
            seq=seq,
            ts_us=self.ts_us,
            received_us=self.received_us,
            name=self.name,
            target=self.target,
            rid=self.rid,
            cid=self.cid,
            source=self.source,
            weight=self.weight,
            version=self.version,
            idempotency_key=self.idempotency_key,
        )
