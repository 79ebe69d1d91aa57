"""Spools for tests: short to open, to fill, to read empty and to look into as files."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from gateway.prediction_log.record import (
    SCHEMA,
    LoggedAudit,
    LoggedLabel,
    LoggedPrediction,
    encode_logged,
)
from gateway.prediction_log.spool.block import Block, BlockKind, Position
from gateway.prediction_log.spool.opening import open_spool
from gateway.prediction_log.spool.recovery import Recovery
from gateway.prediction_log.spool.spool import FileSpool
from gateway.prediction_log.spool.store import DropReason, Group, Lost, Store
from gateway.prediction_log.streams import EntryId, StreamKind
from gateway.prediction_log_config import PredictionLogConfig, SpoolConfig

SEGMENT_BYTES = 65_536
NOW_MS = 1_767_225_600_000
ALL_BYTES = 1 << 30


def config_of(
    *, spool: dict[str, Any] | None = None, **fields: Any
) -> PredictionLogConfig:  # Any: of the configuration
    """Return a configuration of small segments that asks nothing of the disk."""
    limits = {"min_free_bytes": 0, "segment_bytes": SEGMENT_BYTES} | (spool or {})
    return PredictionLogConfig(spool=msgspec.convert(limits, SpoolConfig), **fields)


def blob_of(number: int, size_bytes: int = 40) -> bytes:
    """Return a blob of a size that tells its number."""
    return b"\x01" + number.to_bytes(8, "big") + b"\xaa" * (size_bytes - 9)


def number_in(blob: bytes) -> int:
    """Return the number of a blob."""
    return int.from_bytes(blob[1:9], "big")


def prediction(seq: int, *, worker: str = "w@1", name: str = "digits", **fields: Any) -> bytes:
    """Return the blob of a small record."""  # Any: fields of LoggedPrediction
    record = LoggedPrediction(
        schema=SCHEMA,
        rid=seq.to_bytes(16, "big"),
        ts_us=NOW_MS * 1_000,
        name=name,
        status=200,
        weight=1.0,
        sampled_as="base",
        worker=worker,
        seq=seq,
        **fields,
    )
    return encode_logged(record)


def label(seq: int, *, worker: str = "w@1", name: str = "digits") -> bytes:
    """Return the blob of a label."""
    us = NOW_MS * 1_000
    return encode_logged(
        LoggedLabel(
            schema=SCHEMA, worker=worker, seq=seq, ts_us=us, received_us=us, name=name, target=1
        )
    )


def final_audit(worker: str = "w@1", name: str = "digits") -> bytes:
    """Return the blob of a last audit."""
    audit = LoggedAudit(
        schema=SCHEMA, worker=worker, ts_us=NOW_MS * 1_000, name=name, is_final=True
    )
    return encode_logged(audit)


class Opened:
    """A spool with its recovery, and what became of what was appended."""

    def __init__(
        self,
        directory: Path,
        config: PredictionLogConfig | None = None,
        *,
        worker: str = "w@1",
        now_ms: int = NOW_MS,
    ) -> None:
        self.spool: FileSpool
        self.recovery: Recovery
        self.spool, self.recovery = open_spool(
            config or config_of(), directory, worker=worker, now_ms=now_ms
        )
        self.directory = directory
        self.now_ms = now_ms
        self.outcomes: list[DropReason | None] = []
        self._told = asyncio.Event()
        self.lost: list[Lost] = []
        self.spool.on_lost = self.lost.append
        self.live = self.spool.stream("digits", StreamKind.LIVE)

    def add(self, *blobs: bytes, stream: int = 0, ref: int = 0) -> None:
        """Append one block of records."""
        self.append(Group(BlockKind.RECORDS, stream or self.live, list(blobs), ref))

    def append(self, *groups: Group) -> None:
        """Append groups; `outcomes` tells how it went."""
        self.spool.append(groups, self.now_ms, self._note)

    async def have_outcomes(self, count: int) -> list[DropReason | None]:
        """Wait until so many appends were told how they went; return all."""
        async with asyncio.timeout(10):
            while len(self.outcomes) < count:
                self._told.clear()
                await self._told.wait()
        return self.outcomes

    def _note(self, reason: DropReason | None) -> None:
        self.outcomes.append(reason)
        self._told.set()

    def fill(self, count: int, size_bytes: int = 1_000, *, first: int = 0) -> None:
        """Append numbered records, one by one."""
        for number in range(first, first + count):
            self.add(blob_of(number, size_bytes))

    def blocks(self, *, after: Position | None = None, **how: bool) -> list[Block]:
        """Return all blocks from a position on, that of shipping unless one is given."""
        return read_all(self.spool, self.spool.shipped if after is None else after, **how)[0]

    def blobs(self, **how: Any) -> list[bytes]:  # Any: as of `blocks`
        """Return the blobs of all records."""
        blocks = self.blocks(**how)
        return [b for block in blocks if block.kind is BlockKind.RECORDS for b in block.blobs()]

    def numbers(self, **how: Any) -> list[int]:  # Any: as of `blocks`
        """Return the numbers of all records."""
        return [number_in(blob) for blob in self.blobs(**how)]

    def ship(self, max_records: int = 1 << 30) -> dict[int, int]:
        """Read once and settle it; return how many records by stream."""
        return ship(self.spool, max_records)

    def ship_all(self) -> int:
        """Settle everything; return how many records that were."""
        total = 0
        while shipped := self.ship():
            total += sum(shipped.values())
        return total

    @property
    def segments(self) -> list[Path]:
        """The segment files, oldest first."""
        return sorted(self.directory.glob("*.segment"))


def read_all(
    store: Store, after: Position, *, is_all: bool = False
) -> tuple[list[Block], dict[int, int]]:
    """Return all blocks from a position on, and what is corrupt."""
    blocks: list[Block] = []
    corrupt: dict[int, int] = {}
    while True:
        chunk = store.read(after, max_bytes=10_000, max_records=64, is_all=is_all)
        if not chunk.blocks and not chunk.corrupt:
            return blocks, corrupt
        blocks += chunk.blocks
        for stream, records in chunk.corrupt.items():
            corrupt[stream] = corrupt.get(stream, 0) + records
        after = chunk.next


def ship(store: Store, max_records: int = 1 << 30) -> dict[int, int]:
    """Read once from where shipping is, and settle that; return how many records by stream."""
    chunk = store.read(store.shipped, max_bytes=ALL_BYTES, max_records=max_records)
    counts = dict(chunk.corrupt)
    last_ids: dict[int, EntryId] = {}
    for block in chunk.blocks:
        if block.kind is BlockKind.RECORDS:
            counts[block.stream] = counts.get(block.stream, 0) + block.count
            last_ids[block.stream] = block.last_id
    store.mark_shipped(chunk.next, counts, last_ids)
    return counts


def copy_of(directory: Path, to: Path) -> Path:
    """Return a copy of a folder as a crash at this moment leaves it."""
    shutil.copytree(directory, to)
    return to


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def ids_of(blocks: Sequence[Block]) -> list[EntryId]:
    """Return the ids of all records in blocks, in order."""
    return [
        EntryId(block.first_id.ms, block.first_id.seq + i)
        for block in blocks
        if block.kind is BlockKind.RECORDS
        for i in range(block.count)
    ]
