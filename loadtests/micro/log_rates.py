"""`python -m loadtests.micro.log_rates`: what a record costs the gateway, and how fast it is read.

The prediction log alone (PredictionLog, with a spool in a temporary folder and a real Redis), in
this process, without a gateway around it. For each durability, by turns:

  whole           records come in as fast as they are shipped: CPU per record until Redis has all
  offer + commit  the same with Redis stopped (SIGSTOP), so that nothing is shipped
  shipping        Redis is continued, and takes what has piled up

CPU is that of this process with all its threads; Redis' own is not counted, but it shares the
cores. Records are made before the clock runs.

Then a reader that starts late, in a process of its own, reads a million records into a frame. Some
are deleted on purpose, and the report of the next reading has to name exactly these.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec
import numpy as np
import redis as redis_py
import uvloop

from engines.batcher import Execution
from engines.tensors import Tensor
from gateway.demo.redis_server import INSTALL_HINT, RedisServer, find_redis
from gateway.garbage import spare_the_collector
from gateway.ids import new_id
from gateway.prediction_log import reader
from gateway.prediction_log.log import PredictionLog
from gateway.prediction_log.reader.completeness import NOT_IN_STREAM
from gateway.prediction_log.record import LoggedPrediction, Origin, PredictionRecord, decode_any
from gateway.prediction_log.spool.store import DropReason
from gateway.prediction_log.streams import stream_key
from gateway.prediction_log_config import PredictionLogConfig, RetentionConfig
from loadtests.bench import machine
from loadtests.bench.machine import Setting

RESULTS: Final = Path(__file__).parents[1] / "results" / "log-rates.json"
ROUNDS: Final = 5
RECORDS: Final = 200_000
"""Of one phase of one round."""
READ: Final = 1_000_000
DELETED: Final = 100
LIMIT_US: Final = 5.0
"""Of the whole, with the default settings."""
DEFAULT: Final = "process, loop"
DURABILITIES: Final[Mapping[str, Mapping[str, str]]] = {
    "memory": {"durability": "memory"},
    DEFAULT: {"durability": "process", "append": "loop"},
    "process, thread": {"durability": "process", "append": "thread"},
    "disk": {"durability": "disk"},
}
BATCH: Final = 32
CALLERS: Final = 8
"""Batches at once: each comes when the one before it in its row is written."""
FEATURES, CLASSES = 30, 3
NAME, REPLICA = "digits", "rates"
METHOD: Final = (
    f"batches of {BATCH} records of {FEATURES} FP32 in and {CLASSES} FP32 out, one commit each, "
    f"{CALLERS} batches at a time, each after the one before it in its row is written; CPU of the "
    "process and its threads until all is shipped, without making the records, which are used "
    "again; Redis without persistence on the same cores, its CPU not counted; the stream is "
    "trimmed meanwhile; replays not paced; rates by the wall clock"
)
_POOL: Final = 128
"""Batches that are made before."""
_TRIMMED_TO: Final = 100_000
_MOST_SPOOLED: Final = 8_192
"""Records that may wait to be shipped before the next are offered."""
_LOOK_EVERY: Final = 32
_PAUSE_S: Final = 0.002
_POLL_S: Final = 0.01
_PATIENT_S: Final = 600.0
"""Longer than Redis is ever stopped here."""
_PAGE: Final = 5_000


class NotMeasured(Exception):
    """The sentence says why there are no figures."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One durability in one round."""

    whole_us: float
    records_per_s: float
    """Sustained: offered and shipped."""
    intake_us: float
    """Offer and commit alone, the spool's own work in it."""
    shipping_us: float
    shipped_per_s: float
    """Of what had piled up."""
    shipped_at_once: float
    """Records per exchange with Redis, of those."""
    spool_bytes: float
    """Per record."""


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """One durability."""

    durability: str
    samples: list[Sample]

    def median(self, field: str) -> float:
        """Return the median of the rounds."""
        return statistics.median(getattr(sample, field) for sample in self.samples)


class Read(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of everything into a frame."""

    rows: int
    columns: int
    seconds: float
    pandas_s: float | None
    """From the frame to a DataFrame; None: pandas is not installed."""
    before_mib: float
    """Of the reading process, everything imported."""
    peak_mib: float
    completeness: str
    is_complete: bool
    unknown_ends: int
    gaps: list[tuple[int, int, str]]
    """First, last, cause."""


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """A reader that started late."""

    records: int
    read: Read
    deleted: int
    after: Read
    expected: list[tuple[int, int, str]]
    """The gaps that were made."""

    @property
    def is_exact(self) -> bool:
        """Whether it was complete before, and exactly what was deleted is named after."""
        before, after = self.read, self.after
        counts = (before.rows, after.rows + self.deleted) == (self.records, self.records)
        ends = before.unknown_ends + after.unknown_ends == 0
        return counts and ends and before.is_complete and after.gaps == self.expected


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    setting: Setting
    redis: str
    filesystem: str
    """Under the segment files; where it is tmpfs nothing can be said of durability disk."""
    method: str
    records: int
    limit_us: float
    rates: list[Rate]
    reading: Reading | None = None

    @property
    def is_within(self) -> bool:
        """Whether the default settings keep to the limit."""
        default = [rate for rate in self.rates if rate.durability == DEFAULT]
        return all(rate.median("whole_us") <= self.limit_us for rate in default)


def make_batches() -> list[list[PredictionRecord]]:
    """Return batches of records as the pipeline makes them: the outputs are views of a batch's."""
    rows = np.random.default_rng(1).standard_normal((_POOL, BATCH, FEATURES), np.float32)
    answers = np.random.default_rng(2).random((_POOL, BATCH, CLASSES), np.float32)
    origin = Origin(
        name=NAME, model=NAME, version="1", artefact=b"artefact", revision=7, variant="stable",
        served="stable", propensity=0.9, reason="slot", device="cpu",
    )  # fmt: skip
    return [
        [_record(origin, Execution(9_000, 80_000, 9_000, BATCH, n), rows[n, r], answers[n], r)
         for r in range(BATCH)]
        for n in range(_POOL)
    ]  # fmt: skip


def _record(
    origin: Origin, execution: Execution, row: Any, answers: Any, number: int
) -> PredictionRecord:  # Any: arrays
    size = 4 * CLASSES
    out = memoryview(answers.tobytes())[number * size : (number + 1) * size]
    return PredictionRecord(
        origin, new_id(), time.time_ns() // 1_000, 200, 1_234, queue_us=321, execution=execution,
        inputs=(Tensor("x", "FP32", (1, FEATURES), row.tobytes()),),
        outputs=(Tensor("y", "FP32", (1, CLASSES), out),),
    )  # fmt: skip


class Feed:
    """Offers so many records in batches, from CALLERS at a time, and commits each batch.

    Args:
        most_spooled: while more records wait to be shipped, none is offered; 0: no bound.
        is_fresh: every record gets an id and a time of its own.
    """

    def __init__(
        self, log: PredictionLog, records: int, *, most_spooled: int = 0, is_fresh: bool = False
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self._loop.create_future()
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
        await self.done

    def _offer(self) -> None:
        if not self._left or self.done.done():
            self._running -= 1
            if not self._running and not self.done.done():
                self.done.set_result(None)
            return
        if self._most_spooled and not self._left % _LOOK_EVERY and self._is_ahead():
            self._loop.call_later(_PAUSE_S, self._offer)
            return
        self._left -= 1
        batch = next(self._batches)
        if self._is_fresh:
            for record in batch:
                record.ts_us = ts_us = time.time_ns() // 1_000
                record.rid = new_id(ts_us // 1_000)
        for record in batch:
            self._log.offer(record)
        self._log.commit(self._committed)

    def _is_ahead(self) -> bool:
        return self._log.statistics().total.spooled > self._most_spooled

    def _committed(self, reason: DropReason | None) -> None:
        if reason is not None and not self.done.done():
            self.done.set_exception(NotMeasured(f"records were dropped: {reason}"))
        # Not from inside the write: a transport reads first.
        self._loop.call_soon(self._offer)


class Stopwatch:
    """CPU time of this process and wall time, from when it is made."""

    def __init__(self, records: int) -> None:
        self._records = records
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()

    def read(self) -> tuple[float, float]:
        """Return CPU microseconds per record, and records per second."""
        cpu_s, wall_s = time.process_time() - self._cpu_s, time.perf_counter() - self._wall_s
        return round(cpu_s / self._records * 1e6, 3), round(self._records / wall_s)


def settings(durability: str, records: int) -> PredictionLogConfig:
    """Return the defaults, but for what is measured and room for what piles up."""
    changes: dict[str, Any] = {  # Any: fields of the settings
        **DURABILITIES[durability],
        "buffer_records": 2 * records + 65_536,
        "buffer_bytes": 8 << 30,
        "replay_factor": 1e9,
        "timeout_s": _PATIENT_S,
        "retention": RetentionConfig(max_entries=_TRIMMED_TO),
    }
    return msgspec.structs.replace(PredictionLogConfig(), **changes)


@contextmanager
def stopped(server: RedisServer) -> Iterator[None]:
    """Stop Redis for the length of a block."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def _emptied(log: PredictionLog) -> None:
    # Polled: the log tells nobody that it is empty.
    while log.statistics().total.spooled:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_S)


async def measure(durability: str, base: Path, server: RedisServer, records: int) -> Sample:
    """Measure a fresh log once.

    Raises:
        NotMeasured: records were lost, or sent twice.
    """
    log = PredictionLog(
        settings(durability, records), url=server.url, replica=REPLICA, base=base
    )
    await log.start()
    warm_up = max(BATCH, records // 4 // BATCH * BATCH)
    try:
        spare_the_collector()
        await Feed(log, warm_up, most_spooled=_MOST_SPOOLED).run()
        await _emptied(log)
        feed, watch = Feed(log, records, most_spooled=_MOST_SPOOLED), Stopwatch(records)
        await feed.run()
        await _emptied(log)
        whole_us, records_per_s = watch.read()
        with stopped(server):
            feed, watch = Feed(log, records), Stopwatch(records)
            await feed.run()
            intake_us, _ = watch.read()
            before = log.statistics()
        watch = Stopwatch(records)
        await _emptied(log)
        shipping_us, shipped_per_s = watch.read()
        exchanges = log.statistics().ship_batches - before.ship_batches
    finally:
        await log.close(_PATIENT_S)
    _check(log, offered=warm_up + 2 * records)
    return Sample(
        whole_us=whole_us,
        records_per_s=records_per_s,
        intake_us=intake_us,
        shipping_us=shipping_us,
        shipped_per_s=shipped_per_s,
        shipped_at_once=round(records / exchanges, 1),
        spool_bytes=round(before.spooled_bytes / records, 1),
    )


def _check(log: PredictionLog, *, offered: int) -> None:
    """Raise NotMeasured unless every record stands in Redis and was sent once."""
    found = log.statistics()
    if (found.total.answered, found.total.shipped, found.duplicates) != (offered, offered, 0):
        raise NotMeasured(f"{offered} records were offered: {found}")


async def fill(base: Path, server: RedisServer, records: int) -> None:
    """Have so many different records written and shipped, and end the log."""
    retention = RetentionConfig(max_entries=2 * records + 1_000)
    config = msgspec.structs.replace(PredictionLogConfig(), retention=retention)
    log = PredictionLog(config, url=server.url, replica=REPLICA, base=base)
    await log.start()
    try:
        await Feed(log, records, most_spooled=_MOST_SPOOLED, is_fresh=True).run()
        await _emptied(log)
    finally:
        await log.close(_PATIENT_S)
    _check(log, offered=records)


def read(url: str) -> Read:
    """Read everything into a frame; meant for a fresh process, whose memory is measured."""
    with reader.connect(url) as client:
        before_mib = _memory_mib("VmRSS")
        began_s = time.perf_counter()
        frame = reader.read_frame(client, NAME)
        seconds = time.perf_counter() - began_s
    peak_mib = _memory_mib("VmHWM")
    pandas_s, began_s = None, time.perf_counter()
    try:
        frame.pandas()
        pandas_s = round(time.perf_counter() - began_s, 3)
    except reader.MissingExtra:
        pass
    found = frame.completeness
    return Read(
        rows=len(frame),
        columns=len(frame.columns),
        seconds=round(seconds, 3),
        pandas_s=pandas_s,
        before_mib=before_mib,
        peak_mib=peak_mib,
        completeness=found.text(),
        is_complete=found.is_complete,
        unknown_ends=len(found.unknown_ends),
        gaps=[
            (gap.numbers.first, gap.numbers.last, gap.cause)
            for worker in found.of(found.kind)
            for gap in worker.gaps
        ],
    )


def _memory_mib(field: str) -> float:
    """Return a line of /proc/self/status. getrusage would begin with what the parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return round(int(value) / 1024, 1)
