"""What tests of shipping share: a real spool and shipper, and books that must always balance."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import redis

from gateway.prediction_log.shipping.fencing import Producer
from gateway.prediction_log.shipping.hooks import Hooks
from gateway.prediction_log.shipping.retention import Trim
from gateway.prediction_log.shipping.shipper import Shipper
from gateway.prediction_log.shipping.sink import RedisSink
from gateway.prediction_log.shipping.statistics import ShipStatistics
from gateway.prediction_log.spool.block import BlockKind
from gateway.prediction_log.spool.memory import MemoryStore
from gateway.prediction_log.spool.opening import open_store
from gateway.prediction_log.spool.spool import FileSpool
from gateway.prediction_log.spool.store import DropReason, Group, Lost
from gateway.prediction_log.streams import EntryId, StreamKind
from gateway.prediction_log_config import PredictionLogConfig, RetentionConfig, SpoolConfig

REPLICA: Final = "gw-1"
KEY: Final = "pl:{digits}:gw-1"
OWNER: Final = "pl:{digits}:owner:gw-1"
WAIT_S: Final = 15.0
START_MS: Final = 1_800_000_000_000
EVERYTHING: Final = Trim(0, 0, 10_000_000, is_exact=False, groups=())
"""A trim that removes nothing."""


def settings(**changes: Any) -> PredictionLogConfig:  # Any: fields of the settings
    """Return settings that ship at once, keep entries of any age, and have a small spool."""
    retention = changes.pop("retention", RetentionConfig(for_s=0))
    small = SpoolConfig(segment_bytes=1 << 20, max_bytes=256 << 20, min_free_bytes=0)
    spool = changes.pop("spool", small)
    config = PredictionLogConfig(linger_ms=1, retention=retention, spool=spool)
    return msgspec.structs.replace(config, **changes)


def blob_of(number: int) -> bytes:
    """Return a record that carries a number."""
    return b"\x01%d" % number


@dataclass
class Ledger:
    """Books as the log keeps them: appended = shipped + spooled + lost, at every instant."""

    appended: Counter[int] = field(default_factory=Counter)
    counted: Counter[int] = field(default_factory=Counter)
    drops: Counter[DropReason] = field(default_factory=Counter)
    dropped: Counter[int] = field(default_factory=Counter)

    def shipped(self, stream: int, records: int) -> None:
        self.counted[stream] += records

    def respooled(self, stream: int, records: int) -> None:
        self.counted[stream] -= records

    def lost(self, lost: Lost) -> None:
        self.drops[lost.reason] += lost.records
        self.dropped[lost.stream] += lost.records


@dataclass
class Rig:
    """One gateway's spool and shipper."""

    store: FileSpool | MemoryStore
    shipper: Shipper
    ledger: Ledger
    clock_ms: Callable[[], int]
    offered: int = 0
    expected: int = 0
    """Records put here or found in the spool."""
    turns: int = 0

    def offer(
        self, count: int, *, name: str = "digits", kind: StreamKind = StreamKind.LIVE
    ) -> None:
        """Append one block of records numbered on from those before."""
        blobs = [blob_of(self.offered + n + 1) for n in range(count)]
        self.offered += count
        self.put(blobs, name=name, kind=kind)

    def put(
        self, blobs: list[bytes], *, name: str = "digits", kind: StreamKind = StreamKind.LIVE
    ) -> None:
        """Append one block of these records."""
        stream = self.store.stream(name, kind)
        self.expected += len(blobs)

        def done(reason: DropReason | None) -> None:
            self.ledger.appended[stream] += len(blobs)
            if reason is not None:
                self.ledger.lost(Lost(stream, len(blobs), reason))

        self.store.append([Group(BlockKind.RECORDS, stream, blobs)], self.clock_ms(), done)

    @property
    def statistics(self) -> ShipStatistics:
        return self.shipper.statistics()

    @property
    def spooled(self) -> int:
        return sum(self.store.spooled(stream) for stream in self.ledger.appended)

    @property
    def shipped(self) -> int:
        return sum(self.ledger.counted.values())

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to be so."""
        async with asyncio.timeout(WAIT_S):
            while not condition():  # noqa: ASYNC110  # what is waited for has no event
                await asyncio.sleep(0.002)

    async def until_shipped(self) -> None:
        """Wait until nothing is spooled."""
        everything = self.ledger.appended.total
        await self.until(lambda: everything() == self.expected and not self.spooled)

    async def until_down(self) -> None:
        """Wait until the sink is known to be down."""
        await self.until(lambda: not self.statistics.is_sink_up)

    def check(self) -> None:
        """Assert that the books balance, stream by stream."""
        for stream, appended in self.ledger.appended.items():
            settled = self.ledger.counted[stream] + self.ledger.dropped[stream]
            assert appended == settled + self.store.spooled(stream), (stream, self.ledger)

    async def watch(self) -> None:
        while True:
            self.check()
            self.turns += 1
            await asyncio.sleep(0)


@dataclass
class Setting:
    """What a rig is made of."""

    url: str
    directory: Path
    config: PredictionLogConfig = field(default_factory=settings)
    replica: str = REPLICA
    hooks: Hooks = field(default_factory=Hooks)
    clock_ms: Callable[[], int] | None = None
    is_watched: bool = True


@asynccontextmanager
async def running(setting: Setting, *, close_s: float = WAIT_S) -> AsyncIterator[Rig]:
    """Open a spool, ship it, close both; the books are checked at every turn of the loop."""
    ticking = Producer(replica="", token="").clock_ms
    clock_ms = setting.clock_ms or ticking
    opened, recovery = open_store(
        setting.config, setting.directory, worker=f"w@{ticking():x}", now_ms=clock_ms()
    )
    store = cast("FileSpool | MemoryStore", opened)
    ledger = Ledger(appended=Counter(recovery.records))
    store.on_lost = ledger.lost
    shipper = Shipper(
        store=store,
        sink=RedisSink(setting.url, timeout_s=setting.config.timeout_s),
        books=ledger,
        config=setting.config,
        producer=Producer(replica=setting.replica, token=store.token, clock_ms=clock_ms),
        hooks=setting.hooks,
    )
    rig = Rig(store, shipper, ledger, clock_ms, expected=ledger.appended.total())
    watch = asyncio.create_task(rig.watch()) if setting.is_watched else None
    shipper.start()
    try:
        yield rig
    finally:
        await shipper.close(close_s)
        if watch is not None:
            assert not watch.done() or watch.exception() is None, watch.exception()
            watch.cancel()
            await asyncio.wait({watch})
        rig.check()
        await store.close()


def beat(client: redis.Redis, key: str = OWNER) -> tuple[str, int]:
    """Return whose a name is, and the time of the last sign of life."""
    value = client.get(key)
    token, _, at_ms = (value if isinstance(value, bytes) else b":0").decode().rpartition(":")
    return token, int(at_ms)


def group_read(client: redis.Redis, group: str, count: int) -> int:
    """Have a group be given entries; return how many it was given."""
    answer = cast("Any", client.xreadgroup(group, "c", {KEY: ">"}, count=count))
    return sum(len(entries) for _, entries in answer or [])


def standing(client: redis.Redis, key: str = KEY) -> list[tuple[EntryId, bytes]]:
    """Return what stands in a stream: ids and records."""
    found = []
    for entry_id, fields in client.xrange(key) or []:
        assert entry_id is not None
        assert fields is not None
        blob = fields[b"r"]
        assert isinstance(blob, bytes)
        found.append((EntryId.parse(entry_id), blob))
    return found


def numbers(client: redis.Redis, key: str = KEY) -> list[int]:
    """Return the numbers of the records in a stream, in their order."""
    return [int(blob[1:]) for _, blob in standing(client, key)]


def calls(client: redis.Redis, command: str) -> int:
    """Return how often the server executed a command."""
    statistics = client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})
    assert isinstance(statistics, dict)
    return int(statistics["calls"])
