"""What tests of the prediction log share: settings that do not wait, and looking into Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import msgspec
import redis

from gateway.config import PredictionLogConfig
from gateway.prediction_log.record import LoggedPrediction, decode
from gateway.prediction_log.streams import EntryId
from gateway.prediction_log.writer import LogStatistics, PredictionLog
from tests.support.records import make_record

REPLICA: Final = "gw-1"
KEY: Final = "pl:{digits}:gw-1"
WAIT_S: Final = 15.0


def log_settings(**changes: float) -> PredictionLogConfig:
    """Return settings that write at once, but for these changes."""
    return msgspec.structs.replace(PredictionLogConfig(linger_ms=1), **changes)


def assert_exact(statistics: LogStatistics) -> None:
    settled = statistics.written + sum(statistics.dropped.values())
    assert statistics.offered == settled + statistics.buffered, statistics


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

    async def until_written(self, count: int) -> LogStatistics:
        """Wait until so many records are written."""
        return await self.until(lambda s: s.written >= count)

    async def until_settled(self) -> LogStatistics:
        """Wait until nothing is buffered."""
        return await self.until(lambda s: s.buffered == 0)

    async def _watch(self) -> None:
        while True:
            assert_exact(self.log.statistics())
            self.turns += 1
            await asyncio.sleep(0)


@asynccontextmanager
async def watched(log: PredictionLog, *, close_s: float = WAIT_S) -> AsyncIterator[Watched]:
    """Start a log, watch its counters all the time, close it."""
    inside = Watched(log)
    watch = asyncio.create_task(inside._watch())
    log.start()
    try:
        yield inside
    finally:
        await log.close(close_s)
        assert not watch.done() or watch.exception() is None, watch.exception()
        watch.cancel()
        await asyncio.wait({watch})
        assert_exact(log.statistics())


def entries(client: redis.Redis, key: str = KEY) -> list[tuple[EntryId, LoggedPrediction]]:
    """Return a stream's entries, oldest first."""
    found = []
    for entry_id, fields in client.xrange(key) or []:
        assert entry_id is not None
        assert fields is not None
        blob = fields[b"r"]
        assert isinstance(blob, bytes)
        found.append((EntryId.parse(entry_id), decode(blob)))
    return found


def numbers(client: redis.Redis, key: str = KEY) -> list[int]:
    """Return the numbers of the records in a stream, in their order."""
    return [int(prediction.cid) for _, prediction in entries(client, key)]


def calls(client: redis.Redis, command: str) -> int:
    """Return how often the server executed a command."""
    statistics = client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})
    assert isinstance(statistics, dict)
    return int(statistics["calls"])
