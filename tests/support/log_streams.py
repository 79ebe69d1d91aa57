"""Streams of the prediction log as a gateway writes them, for tests of those that read them."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Final

import msgspec
import numpy as np
import redis

from gateway.ids import uuid7
from gateway.prediction_log.record import (
    AuditCounts,
    Logged,
    LoggedAudit,
    LoggedLabel,
    LoggedPrediction,
    LoggedTensor,
    encode_logged,
)
from gateway.prediction_log.streams import NAMES_KEY, EntryId, StreamKind, stream_key, streams_key

STARTED_MS: Final = 1_767_225_600_000
WORKER: Final = f"gw-1@{STARTED_MS:x}"
NAME: Final = "digits"
REPLICA: Final = "gw-1"
KEY: Final = stream_key(NAME, REPLICA)


def floats(*shape: int, start: float = 0.0) -> LoggedTensor:
    """Return an FP32 tensor that counts up from `start`."""
    values = np.arange(start, start + np.prod(shape), dtype="<f4")
    return LoggedTensor("FP32", shape, values.tobytes())


def prediction(number: int, **changes: Any) -> LoggedPrediction:  # Any: fields of the record
    """Return a record of one row, made and answered in the millisecond of its number."""
    record = LoggedPrediction(
        schema=1,
        rid=uuid7(STARTED_MS + number, number),
        ts_us=(STARTED_MS + number) * 1_000,
        name=NAME,
        status=200,
        weight=1.0,
        sampled_as="base",
        worker=WORKER,
        seq=number,
        cid=f"c{number}",
        model=NAME,
        version="2",
        variant="canary",
        served="canary",
        reason="slot",
        total_us=500,
        inputs={"x": floats(1, 2, start=number)},
        outputs={"y": LoggedTensor("INT64", (1,), struct.pack("<q", number))},
    )
    return msgspec.structs.replace(record, **changes)


def label(number: int, target: object, **changes: Any) -> LoggedLabel:  # Any: as above
    """Return a label for the prediction of a number, half a second after it."""
    made = LoggedLabel(
        schema=1,
        worker=WORKER,
        seq=number,
        ts_us=(STARTED_MS + number + 400) * 1_000,
        received_us=(STARTED_MS + number + 500) * 1_000,
        name=NAME,
        target=target,
        rid=uuid7(STARTED_MS + number, number),
    )
    return msgspec.structs.replace(made, **changes)


def audit(
    at: int,
    sequence: int,
    dropped: dict[str, int] | None = None,
    *,
    worker: str = WORKER,
    kind: StreamKind = StreamKind.LIVE,
    is_final: bool = False,
) -> LoggedAudit:
    """Return an audit made in a millisecond, of a worker that has given so many numbers."""
    counts = AuditCounts(answered=sequence, dropped=dropped or {}, sequence=sequence)
    return LoggedAudit(
        schema=1,
        worker=worker,
        ts_us=(STARTED_MS + at) * 1_000,
        name=NAME,
        kinds={str(kind): counts},
        is_final=is_final,
    )


def put(
    client: redis.Redis,
    documents: Iterable[Logged],
    *,
    kind: StreamKind = StreamKind.LIVE,
    replica: str = REPLICA,
    at_ms: int = 0,
) -> list[EntryId]:
    """Write documents at their own time, or later than those before; or all `at_ms`."""
    key = stream_key(NAME, replica, kind)
    client.sadd(streams_key(NAME, kind), key)
    client.sadd(NAMES_KEY, NAME)
    last = (
        EntryId.parse(client.xinfo_stream(key)["last-generated-id"]) if client.exists(key) else None
    )
    ids = []
    with client.pipeline(transaction=False) as pipeline:
        for document in documents:
            ms = at_ms or document.ts_us // 1_000
            last = EntryId(ms, 0) if last is None or ms > last.ms else last.after()
            pipeline.xadd(key, {b"r": encode_logged(document)}, id=str(last))
            ids.append(last)
        pipeline.execute()
    return ids


def drop(client: redis.Redis, numbers: Iterable[int], key: str = KEY) -> None:
    """Delete the entries of records that `put` wrote at their own time."""
    client.xdel(key, *[f"{STARTED_MS + number}-0" for number in numbers])
