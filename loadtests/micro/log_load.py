"""A load of records for a prediction log that runs in this process, without a gateway around it."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any, Final

import numpy as np

from engines.executed import Execution
from engines.tensors import Tensor
from gateway.ids import new_id
from gateway.prediction_log.log import PredictionLog
from gateway.prediction_log.record import Origin, PredictionRecord
from gateway.prediction_log.spool.store import DropReason

BATCH: Final = 32
CALLERS: Final = 8
"""Batches at once: each comes when the one before it in its row is written."""
FEATURES, CLASSES = 30, 3
NAME, REPLICA = "digits", "rates"
MOST_SPOOLED: Final = 8_192
"""Records that may wait to be shipped before the next are offered, where there is a bound."""
_POOL: Final = 128
"""Batches that are made before, and used again and again."""
_LOOK_EVERY: Final = 32
_PAUSE_S: Final = 0.002
_POLL_S: Final = 0.01


class NotMeasured(Exception):
    """The sentence says why there are no figures."""


def make_batches() -> list[list[PredictionRecord]]:
    """Return batches of records as the pipeline makes them: outputs are views of the batch's."""
    rows = np.random.default_rng(1).standard_normal((_POOL, BATCH, FEATURES), np.float32)
    answers = np.random.default_rng(2).random((_POOL, BATCH, CLASSES), np.float32)
    origin = Origin(
        name=NAME,
        model=NAME,
        version="1",
        artefact=b"artefact",
        revision=7,
        variant="stable",
        served="stable",
        propensity=0.9,
        reason="slot",
        device="cpu",
    )
    batches = []
    for number, (batch, answer) in enumerate(zip(rows, answers, strict=True)):
        execution = Execution(9_000, 80_000, 9_000, BATCH, number)
        out = memoryview(answer.tobytes())
        batches.append([_record(origin, execution, batch[n], out, n) for n in range(BATCH)])
    return batches


def _record(
    origin: Origin, execution: Execution, row: Any, out: memoryview, number: int
) -> PredictionRecord:  # Any: an array
    size = 4 * CLASSES
    return PredictionRecord(
        origin,
        new_id(),
        time.time_ns() // 1_000,
        status=200,
        total_us=1_234,
        queue_us=321,
        execution=execution,
        inputs=(Tensor("x", "FP32", (1, FEATURES), row.tobytes()),),
        outputs=(Tensor("y", "FP32", (1, CLASSES), out[number * size : (number + 1) * size]),),
    )


class Feed:
    """Offers so many records in batches, CALLERS at a time, and commits each batch.

    Args:
        most_spooled: while more records wait to be shipped, none is offered; 0: no bound.
        is_fresh: every record gets an id and a time of its own.
    """

    def __init__(
        self, log: PredictionLog, records: int, *, most_spooled: int = 0, is_fresh: bool = False
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._log = log
        self._left = records // BATCH
        self._most_spooled = most_spooled
        self._is_fresh = is_fresh
        self._batches = itertools.cycle(make_batches())
        self._running = CALLERS

    async def run(self) -> None:
        """Begin, and return when all are written.

        Raises:
            NotMeasured: some were dropped.
        """
        for _ in range(CALLERS):
            self._loop.call_soon(self._offer)
        await self._done

    def _offer(self) -> None:
        """Offer the next batch of one caller."""
        if not self._left or self._done.done():
            self._running -= 1
            if not self._running and not self._done.done():
                self._done.set_result(None)
            return
        if self._most_spooled and not self._left % _LOOK_EVERY and self._is_ahead():
            self._loop.call_later(_PAUSE_S, self._offer)
            return
        self._left -= 1
        batch = next(self._batches)
        if self._is_fresh:
            _renew(batch)
        offer = self._log.offer
        for record in batch:
            offer(record)
        self._log.commit(self._committed)

    def _is_ahead(self) -> bool:
        return self._log.statistics().total.spooled > self._most_spooled

    def _committed(self, reason: DropReason | None) -> None:
        if reason is not None and not self._done.done():
            self._done.set_exception(NotMeasured(f"records were dropped: {reason}"))
        # Not from inside the write: a transport reads first.
        self._loop.call_soon(self._offer)


def _renew(batch: list[PredictionRecord]) -> None:
    for record in batch:
        record.ts_us = ts_us = time.time_ns() // 1_000
        record.rid = new_id(ts_us // 1_000)


async def emptied(log: PredictionLog) -> None:
    """Return when all is shipped."""
    # Polled: the log tells nobody that it is empty.
    while log.statistics().total.spooled:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)


def check(log: PredictionLog, *, offered: int) -> None:
    """Raise NotMeasured unless every record stands in Redis and was sent once."""
    found = log.statistics()
    if (found.total.answered, found.total.shipped, found.duplicates) != (offered, offered, 0):
        raise NotMeasured(f"{offered} records were offered: {found}")
