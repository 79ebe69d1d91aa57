"""A reader that starts late: all records into a frame, in a process of its own; and gaps made.

Fills a stream by a prediction log that has ended, reads it, deletes entries here and there, reads
it again: the second report has to name exactly what was deleted, the first one nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import msgspec
import redis

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log import reader
from gateway.prediction_log.log import PredictionLog
from gateway.prediction_log.reader.completeness import NOT_IN_STREAM, Completeness
from gateway.prediction_log.record import LoggedPrediction, decode_any
from gateway.prediction_log.streams import stream_key
from gateway.prediction_log_config import PredictionLogConfig, RetentionConfig
from loadtests.micro.log_load import BATCH, MOST_SPOOLED, NAME, REPLICA, Feed, check, emptied

DELETED: Final = 100
SMALLEST: Final = 10 * DELETED
"""Records that there have to be."""
_RUN: Final = 37
"""Of them in a row; the others are the last one and some in between. Not the first: what goes at
the front of a stream is taken for trimmed, and no longer in any reader's window."""
_CLOSE_S: Final = 60.0
_PAGE: Final = 5_000
_LINES: Final = 4
"""Of the second report that are printed; the file has all that it shows."""

Gap = tuple[int, int, str]
"""First and last number, and cause."""


class Read(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of everything into a frame."""

    rows: int
    columns: int
    seconds: float
    pandas_s: float | None
    """From the frame to a DataFrame; None: pandas is not installed."""
    before_mib: float
    """Resident memory of the reading process, with everything imported."""
    peak_mib: float
    """Most of it while the frame was made."""
    report: str
    is_complete: bool
    """And nobody's end is unknown."""
    gaps: list[Gap]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Before and after the deletion."""

    records: int
    before: Read
    deleted: int
    made: list[Gap]
    after: Read

    @property
    def is_exact(self) -> bool:
        """Whether it was complete before, and after it exactly what was deleted is named."""
        before, after = self.before, self.after
        rows = (before.rows, after.rows + self.deleted) == (self.records, self.records)
        return rows and before.is_complete and not before.gaps and after.gaps == self.made

    def shown(self) -> list[str]:
        """Return the table."""
        one = self.before
        pandas = "" if one.pandas_s is None else f"; as a DataFrame {one.pandas_s:.2f} s more"
        verdict = "exactly these are named" if self.is_exact else "OTHERS ARE NAMED"
        per_s = one.rows / one.seconds
        return [
            f"a reader that starts late: {one.rows:,} rows of {one.columns} columns",
            f"{one.seconds:.2f} s, {per_s:,.0f} rows/s{pandas}",
            f"memory {one.before_mib:,.0f} MiB before, {one.peak_mib:,.0f} MiB at most",
            *one.report.splitlines(),
            f"{self.deleted} entries deleted in {len(self.made)} places: {verdict}",
            *self.after.report.splitlines()[:_LINES],
        ]


async def fill(base: Path, url: str, records: int) -> None:
    """Have so many records written and shipped, each with an id of its own; end the log.

    Raises:
        NotMeasured: one was lost.
    """
    config = PredictionLogConfig(retention=RetentionConfig(max_entries=2 * records))
    log = PredictionLog(config, url=url, replica=REPLICA, base=base)
    await log.start()
    try:
        await Feed(log, records, most_spooled=MOST_SPOOLED, is_fresh=True).run()
        await emptied(log)
    finally:
        await log.close(_CLOSE_S)
    check(log, offered=records)


def measure(server: RedisServer, records: int) -> Reading:
    """Read, delete, read again."""
    # Not forked: the memory of the child is to be its own.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        before = other.submit(read, server.url).result()
        numbers = chosen(records)
        with reader.connect(server.url) as client:
            delete(client, numbers)
        after = other.submit(read, server.url).result()
    return Reading(
        records=records,
        before=before,
        deleted=len(numbers),
        made=[(first, last, NOT_IN_STREAM) for first, last in ranges(numbers)],
        after=after,
    )


def read(url: str) -> Read:
    """Read everything into a frame."""
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
        report=found.text(),
        is_complete=found.is_complete and not found.unknown_ends,
        gaps=list(_gaps(found)),
    )


def _gaps(found: Completeness) -> Iterator[Gap]:
    for worker in found.of(found.kind):
        for gap in worker.gaps:
            yield gap.numbers.first, gap.numbers.last, gap.cause


def _memory_mib(field: str) -> float:
    """Return a line of /proc/self/status; getrusage would begin with what the parent had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return round(int(value) / 1024, 1)


def chosen(records: int) -> list[int]:
    """Return the numbers to be deleted, in order."""
    chance = random.Random(1)
    begin = chance.randrange(2, records - _RUN)
    numbers = {records, *range(begin, begin + _RUN)}
    while len(numbers) < DELETED:
        numbers.add(chance.randrange(2, records))
    return sorted(numbers)


def ranges(numbers: Collection[int]) -> list[tuple[int, int]]:
    """Return ascending numbers as ranges, both ends included."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def delete(client: redis.Redis, numbers: Collection[int]) -> None:
    """Delete the entries of the records with these numbers."""
    key, wanted = stream_key(NAME, REPLICA), set(numbers)
    doomed = [entry_id for entry_id, number in _numbered(client, key) if number in wanted]
    if client.xdel(key, *doomed) != len(wanted):
        raise RuntimeError(f"{len(doomed)} of {len(wanted)} entries were found")


def _numbered(client: redis.Redis, key: str) -> Iterator[tuple[bytes, int]]:
    """Yield the id and the number of every prediction in a stream."""
    start = "-"
    while True:
        page: Any = client.xrange(key, min=start, count=_PAGE)  # Any: redis-py's reply
        for entry_id, fields in page:
            logged = decode_any(fields[b"r"])
            if isinstance(logged, LoggedPrediction):
                yield entry_id, logged.seq
        if len(page) < _PAGE:
            return
        start = "(" + page[-1][0].decode()


def whole_batches(records: int) -> int:
    """Return how many records can be asked for: whole batches."""
    return records // BATCH * BATCH
