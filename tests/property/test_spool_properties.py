"""The spool under any sequence of appends, reads, ships, rewinds, restarts and crashes.

The oracle is a list: what was acknowledged, in order, and how far it is settled. Records carry
their number, so that what comes out can be compared one by one.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.prediction_log.record import LoggedLabel, LoggedPrediction, decode_any
from gateway.prediction_log.spool.block import START, BlockKind
from gateway.prediction_log.spool.store import Group
from gateway.prediction_log.streams import BEFORE_ALL, EntryId, StreamKind
from tests.support.spools import (
    ALL_BYTES,
    NOW_MS,
    Opened,
    copy_of,
    flip,
    ids_of,
    label,
    prediction,
    read_all,
)

KINDS = (StreamKind.LIVE, StreamKind.SHADOW, StreamKind.LABELS)
SIZES = st.sampled_from((20, 350, 3_000, 30_000))
GROUPS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(1, 5), SIZES), min_size=1, max_size=3
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), GROUPS),
        st.tuples(st.just("append"), GROUPS),
        st.tuples(st.just("ship"), st.integers(1, 40)),
        st.tuples(st.just("rewind"), st.sampled_from(KINDS), st.floats(0, 1)),
        st.tuples(st.just("clock"), st.integers(-5_000, 5_000)),
        st.tuples(st.just("house")),
        st.tuples(st.just("reopen")),
        st.tuples(st.just("crash"), st.floats(0, 1), GROUPS),
    ),
    max_size=25,
)
Groups = Sequence[tuple[StreamKind, int, int]]


def record_blob(kind: StreamKind, number: int, size_bytes: int) -> bytes:
    """Return a real record of about a size, which tells its stream where nothing else does."""
    if kind is StreamKind.LABELS:
        return label(number)
    return prediction(number, is_shadow=kind is StreamKind.SHADOW, cid="c" * size_bytes)


def number_in(blob: bytes) -> int:
    """Return the number of such a record."""
    logged = decode_any(blob)
    assert isinstance(logged, LoggedPrediction | LoggedLabel)
    return logged.seq


class Model:
    """A spool beside what it should hold."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.acknowledged: dict[StreamKind, list[int]] = {kind: [] for kind in KINDS}
        self.settled: Counter[StreamKind] = Counter()
        self.saved: Counter[StreamKind] = Counter()
        """What is settled as the offset file knows it."""
        self.lives = 0
        self.appended = 0
        self.now_ms = NOW_MS
        self.directory = folder / "0"
        self.opened = self.open()

    def open(self) -> Opened:
        self.lives += 1
        return Opened(self.directory, worker=f"w@{self.lives}", now_ms=self.now_ms)

    def groups(self, wanted: Groups) -> list[Group]:
        made: list[Group] = []
        for kind, count, size_bytes in wanted:
            numbers = range(self.appended, self.appended + count)
            self.appended += count
            stream = self.opened.spool.stream("digits", kind)
            made.append(
                Group(
                    BlockKind.RECORDS, stream, [record_blob(kind, n, size_bytes) for n in numbers]
                )
            )
        return made

    def append(self, wanted: Groups) -> None:
        groups = self.groups(wanted)
        self.opened.now_ms = self.now_ms
        self.opened.append(*groups)
        assert self.opened.outcomes[-1] is None
        for (kind, _, _), group in zip(wanted, groups, strict=True):
            self.acknowledged[kind] += map(number_in, group.blobs)

    def ship(self, max_records: int) -> bool:
        """Settle some; what comes is what is next of each stream."""
        spool = self.opened.spool
        chunk = spool.read(spool.shipped, max_bytes=ALL_BYTES, max_records=max_records)
        assert chunk.corrupt == {}
        counts: Counter[int] = Counter()
        last_ids: dict[int, EntryId] = {}
        for block in chunk.blocks:
            kind = spool.stream_of(block.stream)[1]
            at = self.settled[kind]
            numbers = [number_in(blob) for blob in block.blobs()]
            assert numbers == self.acknowledged[kind][at : at + block.count]
            self.settled[kind] += block.count
            counts[block.stream] += block.count
            last_ids[block.stream] = block.last_id
        spool.mark_shipped(chunk.next, counts, last_ids)
        return bool(chunk.blocks)

    def rewind(self, kind: StreamKind, share: float) -> None:
        """Let Redis forget a stream from some block on."""
        spool = self.opened.spool
        stream = spool.stream("digits", kind)
        found, _ = read_all(spool, START, is_all=True)
        blocks = [block for block in found if block.stream == stream]
        starts = [0]
        for block in blocks:
            starts.append(starts[-1] + block.count)
        starts = [start for start in starts if start <= self.settled[kind]]
        kept = starts[int(share * (len(starts) - 1))]
        above = ids_of(blocks)[kept - 1] if kept else BEFORE_ALL
        assert spool.rewind(stream, above) == self.settled[kind] - kept
        self.settled[kind] = kept

    async def house(self) -> None:
        await self.opened.spool.housekeeping(self.now_ms)
        self.saved = self.settled.copy()

    async def reopen(self) -> None:
        await self.opened.spool.close()
        self.opened = self.open()
        assert self.opened.recovery.torn_bytes == 0

    async def crash(self, share: float, wanted: Groups) -> None:
        """End within a write: nobody is told of it, and all before it is there."""
        crashed = copy_of(self.directory, self.folder / str(self.lives))
        groups = self.groups(wanted)
        self.opened.append(*groups)
        torn = self.opened.segments[-1]
        await self.opened.spool.close()
        _tear(torn, crashed / torn.name, share)
        self.directory = crashed
        self.opened = self.open()
        self.settled = self.saved.copy()
        for (kind, _, _), group in zip(wanted, groups, strict=True):
            if self.left(kind) == 0:  # the blocks before the one that was torn are whole
                break
            self.acknowledged[kind] += map(number_in, group.blobs)

    def left(self, kind: StreamKind) -> int:
        """Return how many records the spool has more than it should."""
        spooled = self.opened.spool.spooled(self.opened.spool.stream("digits", kind))
        return spooled - len(self.acknowledged[kind]) + self.settled[kind]

    def check(self) -> None:
        spool = self.opened.spool
        assert self.opened.recovery.corrupt == {}
        assert self.opened.lost == []
        assert [self.left(kind) for kind in KINDS] == [0, 0, 0]
        assert bool(spool.oldest_unshipped_ms) == any(
            len(self.acknowledged[kind]) > self.settled[kind] for kind in KINDS
        )

    async def run(self, steps: Sequence[tuple[object, ...]]) -> None:
        for name, *arguments in steps:
            if name == "clock":
                self.now_ms += int(str(arguments[0]))
                continue
            outcome = getattr(self, str(name))(*arguments)
            if asyncio.iscoroutine(outcome):
                await outcome
            if name == "reopen":
                self.saved = self.settled.copy()
            self.check()
        while self.ship(1_000):
            pass
        for kind in KINDS:
            assert self.settled[kind] == len(self.acknowledged[kind])
        self.check()
        ids = ids_of(read_all(self.opened.spool, START, is_all=True)[0])
        assert ids == sorted(set(ids))
        await self.opened.spool.close()


def _tear(whole: Path, torn: Path, share: float) -> None:
    """Leave a part of what the last write added to a file."""
    data = whole.read_bytes()
    start = len(torn.read_bytes().rstrip(b"\x00")) if torn.exists() else 0
    cut = start + int(share * max(0, len(data) - 1 - start))
    torn.write_bytes(data[:cut] + bytes(200))


@settings(max_examples=120, deadline=None)
@given(STEPS)
def test_what_was_acknowledged_comes_out_once_in_order(steps: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:

        async def scenario() -> None:
            await Model(Path(folder)).run(steps)

        asyncio.run(scenario())


@settings(max_examples=80, deadline=None)
@given(
    st.lists(GROUPS, min_size=1, max_size=12),
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=2
    ),
    st.booleans(),
)
def test_flipped_bits_lose_only_what_is_counted(
    appends: list[Groups], flips: list[tuple[float, float, int]], is_restarted: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_flip_and_read(Path(folder), appends, flips, is_restarted))


async def _flip_and_read(
    folder: Path,
    appends: list[Groups],
    flips: list[tuple[float, float, int]],
    is_restarted: bool,
) -> None:
    model = Model(folder)
    for groups in appends:
        model.append(groups)
    opened = model.opened
    ends = {block.at.segment: block.end.offset for block in opened.blocks()}
    for which, where, bit in flips:
        number = sorted(ends)[int(which * (len(ends) - 1))]
        flip(opened.segments[number - 1], int(where * (ends[number] - 1)), bit)
    if is_restarted:
        crashed = copy_of(model.directory, folder / "crashed")
        await opened.spool.close()
        opened = Opened(crashed, worker="w@2")
    spool = opened.spool
    blocks, corrupt = read_all(spool, spool.shipped)
    found: dict[StreamKind, list[int]] = {kind: [] for kind in KINDS}
    for block in blocks:
        found[spool.stream_of(block.stream)[1]] += map(number_in, block.blobs())
    missing = 0
    for kind, numbers in model.acknowledged.items():
        kept = set(found[kind])
        assert found[kind] == [number for number in numbers if number in kept]
        missing += len(numbers) - len(kept)
    counted = sum(corrupt.values()) + sum(opened.recovery.corrupt.values())
    if opened.recovery.torn_bytes:  # the end of the last segment: only its size is known
        assert counted <= missing
    else:
        assert counted == missing
    while opened.ship():
        pass
    assert not any(spool.spooled(spool.stream("digits", kind)) for kind in KINDS)
    await spool.close()
