"""Tables and records for the tests of drift: small, seeded, in the form of the log's reader."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import redis

from gateway.drift.column import Values
from gateway.drift.decide import Thresholds, judge
from gateway.drift.reference import Reference, make
from gateway.drift.report import Report
from gateway.drift.statistics import Floats
from gateway.ids import uuid7
from gateway.prediction_log.record import (
    LoggedLabel,
    LoggedPrediction,
    LoggedTensor,
    encode_logged,
)
from gateway.prediction_log.streams import NAMES_KEY, StreamKind, stream_key, streams_key

STARTED_MS = 1_767_225_600_000
Table = dict[str, Values]


def normal_table(
    seed: int, rows: int = 1_000, columns: int = 30, *, shifted: Collection[int] = ()
) -> Table:
    """Return standard normal features, some of them moved by one standard deviation."""
    random = np.random.default_rng(seed)
    return {
        f"in.x.{number}": (random.normal(size=rows) + (number in shifted)).astype(np.float32)
        for number in range(columns)
    }


def mixed_table(seed: int, rows: int = 500) -> Table:
    """Return columns of every kind: skewed, with ties, with gaps, text of few and of many words."""
    random = np.random.default_rng(seed)
    gaps = random.normal(size=rows)
    gaps[random.random(rows) < 0.05] = np.nan
    cities = np.array(list("abcdef"), np.object_)
    words = np.array([f"word {rank}" for rank in range(500)], np.object_)
    return {
        "in.age": np.round(random.exponential(30, rows)).astype(np.float32),
        "in.income": random.lognormal(10, 1, rows).astype(np.float32),
        "in.gaps": gaps.astype(np.float32),
        "in.pixel": np.clip(np.round(random.normal(0, 6, rows)), 0, 16).astype(np.float32),
        "in.city": random.choice(cities, rows, p=[0.5, 0.2, 0.1, 0.1, 0.06, 0.04]),
        "in.word": words[np.minimum(random.zipf(1.7, rows) - 1, 499)],
        "out.label": random.integers(0, 10, rows),
        "out.score": random.beta(2, 5, rows).astype(np.float32),
        "status": np.where(random.random(rows) < 0.02, 500, 200),
        "row": np.zeros(rows, np.int32),
    }


def report_of(
    reference: Reference, window: Table, *, model: str = "digits", number: int = 1
) -> Report:
    """Return the report on a window at the usual thresholds."""
    thresholds = Thresholds()
    verdict = judge(reference, window, thresholds, number=number)
    return Report(
        model=model,
        reference=reference,
        thresholds=thresholds,
        verdict=verdict,
        records=verdict.rows,
        began="2026-01-01 00:00:00 UTC",
        ended="2026-01-01 00:10:00 UTC",
        completeness="100 %",
    )


def reference_of(table: Table, source: str = "ref.parquet") -> Reference:
    """Return the reference that a table makes."""
    return make(table, source=source)


def weights(rows: int) -> Floats:
    """Return rows that count once."""
    return np.ones(rows)


def prediction(
    number: int,
    values: Sequence[float] | npt.NDArray[np.float32],
    label: int = 0,
    *,
    status: int = 200,
    rows: int = 1,
    **fields: Any,  # Any: further fields of the record
) -> LoggedPrediction:
    """Return the record of a request of some rows; numbers tell records apart, from 1."""
    data = np.asarray(values, "<f4").reshape(rows, -1)
    outputs = {}
    if status < 400:
        answers = np.full((rows, 1), label, "<i8")
        outputs = {"label": LoggedTensor("INT64", answers.shape, answers.tobytes())}
    usual: dict[str, Any] = {  # Any: fields of several types
        "name": "digits", "weight": 1.0, "sampled_as": "base", "worker": "w1", "seq": number,
    }  # fmt: skip
    return LoggedPrediction(
        schema=1,
        rid=uuid7(STARTED_MS + number, number),
        ts_us=(STARTED_MS + number) * 1_000,
        status=status,
        inputs={"x": LoggedTensor("FP32", data.shape, data.tobytes())},
        outputs=outputs,
        **usual | fields,
    )


def label_of(record: LoggedPrediction, target: object, *, seq: int = 1) -> LoggedLabel:
    """Return ground truth for a record."""
    return LoggedLabel(
        schema=1,
        worker="w1",
        seq=seq,
        ts_us=record.ts_us + 1_000_000,
        received_us=record.ts_us + 2_000_000,
        name=record.name,
        target=target,
        rid=record.rid,
    )


def predictions(
    seed: int, count: int, *, first: int = 1, columns: int = 4, shift: float = 0.0
) -> list[LoggedPrediction]:
    """Return records of standard normal features, numbered from `first` on."""
    random = np.random.default_rng(seed)
    table = (random.normal(size=(count, columns)) + shift).astype(np.float32)
    labels = random.integers(0, 3, count)
    return [prediction(first + place, table[place], int(labels[place])) for place in range(count)]


def write(
    client: redis.Redis,
    records: Iterable[LoggedPrediction | LoggedLabel],
    *,
    kind: StreamKind = StreamKind.LIVE,
    replica: str = "r1",
) -> None:
    """Put records into the streams of the name that they carry, as a gateway does."""
    pipe = client.pipeline(transaction=False)
    for record in records:
        key = stream_key(record.name, replica, kind)
        pipe.sadd(NAMES_KEY, record.name)
        pipe.sadd(streams_key(record.name, kind), key)
        pipe.xadd(key, {"r": encode_logged(record)})
    pipe.execute()
