"""Prediction records for tests, small and distinguishable."""

from __future__ import annotations

import struct
from typing import Any

from engines.executed import Execution
from engines.tensors import Tensor
from gateway.ids import uuid7
from gateway.prediction_log.encoder import RecordEncoder
from gateway.prediction_log.record import Origin, PredictionRecord
from tests.support.capture import keeping

STARTED_MS = 1_767_225_600_000
ORIGIN_FIELDS = frozenset(Origin.__slots__)
_US = 1_000


def record_of(
    *,
    queue_us: int = 0,
    batch_us: int = 0,
    infer_us: int = 0,
    batch_rows: int = 0,
    **fields: Any,  # Any: a record's fields
) -> PredictionRecord:
    """Return a record of all its fields, those of its origin and its execution among them."""
    origin = Origin(**{k: v for k, v in fields.items() if k in ORIGIN_FIELDS})
    execution = None
    if batch_us or infer_us or batch_rows:
        execution = Execution(batch_us * _US, infer_us * _US, 0, batch_rows, 1)
    rest = {k: v for k, v in fields.items() if k not in ORIGIN_FIELDS}
    return PredictionRecord(origin, queue_us=queue_us, execution=execution, **rest)


def make_record(
    number: int = 1, *, name: str = "digits", inputs: tuple[Tensor, ...] | None = None
) -> PredictionRecord:
    """Return a record whose id and caller's id carry `number`."""
    if inputs is None:
        inputs = (Tensor("x", "FP32", (1, 2), struct.pack("<2f", number, 0.5)),)
    return record_of(
        rid=uuid7(STARTED_MS + number, number),
        name=name,
        ts_us=(STARTED_MS + number) * 1_000,
        status=200,
        cid=str(number),
        model=name,
        version="2",
        variant="canary",
        served="canary",
        reason="slot",
        revision=7,
        propensity=0.1,
        total_us=1_234,
        inputs=inputs,
        outputs=(Tensor("y", "INT64", (1,), struct.pack("<q", number)),),
    )


def ordinary_record() -> PredictionRecord:
    """Return a record of the kind that nearly all are: an answer out of a batch."""
    record = make_record(3)
    record.execution = Execution(1_000, 2_000, 3_000, 4, 1)
    record.queue_us = 7
    return record


def encode(record: PredictionRecord, *, worker: str, seq: int, capture_max_bytes: int) -> bytes:
    """Return the blob that a fresh encoder makes of a record; larger tensors are cut."""
    blob = RecordEncoder(worker=worker, policy=keeping(capture_max_bytes)).encode(record, seq)
    assert isinstance(blob, bytes)
    return blob
