"""What tests of the prediction log share: settings that do not wait, and looking into Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import redis

from gateway.prediction_log.counts import KindCounts, LogStatistics
from gateway.prediction_log.log import PredictionLog
from gateway.prediction_log.record import LoggedAudit, LoggedPrediction, decode_any
from gateway.prediction_log.streams import EntryId, StreamKind
from gateway.prediction_log_config import PredictionLogConfig, SpoolConfig
from tests.support.records import make_record

REPLICA: Final = "gw-1"
KEY: Final = "pl:{digits}:gw-1"
WAIT_S: Final = 15.0
SPOOL: Final = SpoolConfig(segment_bytes=1 << 20, max_bytes=16 << 20, min_free_bytes=0)


def log_settings(**changes: Any) -> PredictionLogConfig:  # Any: fields of the settings
    """Return settings that write at once into small segments, but for these changes."""
    return msgspec.structs.replace(PredictionLogConfig(linger_ms=1, spool=SPOOL), **changes)


def make_log(url: str, base: Path, *, replica: str = REPLICA, **changes: Any) -> PredictionLog:
    """Return a log with `log_settings`, whose spool is under `base`."""
    return PredictionLog(log_settings(**changes), url=url, replica=replica, base=base)


def assert_exact(statistics: LogStatistics) -> None:
    """Assert that no record is lost or counted twice, of any name and kind."""
    for at, counts in statistics.kinds.items():
        assert counts.difference == 0, (at, counts)


@dataclass
class Watched:
    """A running prediction log whose counters are checked at every turn of the event loop."""

    log: PredictionLog
    turns: int = 0
    offered: int = 0

    def offer(self, count: int, *, name: str = "digits") -> None:
        """Offer records numbered on from those offered before."""
        for _ in range(count):
            self.offered += 1
            self.log.offer(make_record(self.offered, name=name))

    async def until(self, condition: Callable[[LogStatistics], bool]) -> LogStatistics:
        """Wait for the counters to be so."""
        async with asyncio.timeout(WAIT_S):
            while not condition(statistics := self.log.statistics()):  # noqa: ASYNC110  # no event
                await asyncio.sleep(0.002)
        return statistics

    async def until_shipped(self, count: int) -> LogStatistics:
        """Wait until Redis has so many records."""
        return await self.until(lambda s: s.total.shipped >= count)

    async def until_settled(self) -> LogStatistics:
        """Wait until nothing is spooled."""
        return await self.until(lambda s: s.total.spooled == 0)

    async def _watch(self) -> None:
        while True:
            assert_exact(self.log.statistics())
            self.turns += 1
            await asyncio.sleep(0)


@asynccontextmanager
async def watched(log: PredictionLog, *, close_s: float = WAIT_S) -> AsyncIterator[Watched]:
    """Start a log, watch its counters all the time, close it."""
    inside = Watched(log)
    await log.start()
    watch = asyncio.create_task(inside._watch())
    try:
        yield inside
    finally:
        await log.close(close_s)
        assert not watch.done() or watch.exception() is None, watch.exception()
        watch.cancel()
        await asyncio.wait({watch})
        assert_exact(log.statistics())


def live(statistics: LogStatistics, name: str = "digits") -> KindCounts:
    """Return the counts of a name's live records."""
    return statistics.kinds.get((name, StreamKind.LIVE), KindCounts())


def entries(client: redis.Redis, key: str = KEY) -> list[tuple[EntryId, LoggedPrediction]]:
    """Return the predictions in a stream, oldest first."""
    found = []
    for entry_id, fields in client.xrange(key) or []:
        assert entry_id is not None
        assert fields is not None
        blob = fields[b"r"]
        assert isinstance(blob, bytes)
        logged = decode_any(blob)
        if isinstance(logged, LoggedPrediction):
            found.append((EntryId.parse(entry_id), logged))
    return found


def audits(client: redis.Redis, key: str = KEY) -> list[LoggedAudit]:
    """Return the audits in a stream, oldest first."""
    page: Any = client.xrange(key)  # Any: redis-py's reply
    found = (decode_any(fields[b"r"]) for _, fields in page)
    return [logged for logged in found if isinstance(logged, LoggedAudit)]


def numbers(client: redis.Redis, key: str = KEY) -> list[int]:
    """Return the numbers of the records in a stream, in their order."""
    return [int(prediction.cid) for _, prediction in entries(client, key)]


def calls(client: redis.Redis, command: str) -> int:
    """Return how often the server executed a command."""
    statistics = client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})
    assert isinstance(statistics, dict)
    return int(statistics["calls"])
