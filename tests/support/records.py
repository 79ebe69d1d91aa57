"""Prediction records for tests, small and distinguishable."""

from __future__ import annotations

import struct

from engines.tensors import Tensor
from gateway.ids import uuid7
from gateway.prediction_log.record import PredictionRecord

STARTED_MS = 1_767_225_600_000


def make_record(
    number: int = 1, *, name: str = "digits", inputs: tuple[Tensor, ...] | None = None
) -> PredictionRecord:
    """Return a record whose id and caller's id carry `number`."""
    if inputs is None:
        inputs = (Tensor("x", "FP32", (1, 2), struct.pack("<2f", number, 0.5)),)
    return PredictionRecord(
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
