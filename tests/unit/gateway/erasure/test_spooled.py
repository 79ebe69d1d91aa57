"""What one spool holds of a subject: found in all of it, and destroyed where it lies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.ids import new_id
from gateway.prediction_log.erasure import spooled
from gateway.prediction_log.erasure.sought import Sought
from gateway.prediction_log.erasure.tombstone import Tombstone, digest
from gateway.prediction_log.privacy.seal import SubjectKeys
from gateway.prediction_log.spool.block import START, BlockKind
from gateway.prediction_log.spool.opening import open_memory, open_spool
from gateway.prediction_log.spool.store import DropReason, Group, Store
from gateway.prediction_log.streams import StreamKind
from tests.support.erasures import MARK, files_with, label, prediction
from tests.support.prediction_log import log_settings

NOW_MS = 1_800_000_000_000
TAG, OTHER = bytes(range(16)), bytes(range(1, 17))
Check = Callable[[Store], None]


def in_store(directory: Path, check: Check, *, durability: str = "process") -> None:
    """Run a check with a store, which is closed afterwards."""

    async def run() -> None:
        config = log_settings(durability=durability)
        opening = open_memory if durability == "memory" else open_spool
        worker = os.urandom(4).hex()
        opened = opening(config, directory, worker=worker, now_ms=NOW_MS)
        store: Store = opened[0] if isinstance(opened, tuple) else opened
        try:
            check(store)
        finally:
            await store.close()

    asyncio.run(run())


def append(store: Store, kind: StreamKind, *blobs: bytes) -> None:
    outcome: list[DropReason | None] = []
    number = store.stream("digits", kind)
    store.append([Group(BlockKind.RECORDS, number, list(blobs))], NOW_MS, outcome.append)
    assert outcome == [None]


def open_sought(*names: str) -> Sought:
    tombstone = Tombstone(
        id="e", begun_ms=NOW_MS, tags=[TAG], digests=[digest(TAG)], names=list(names)
    )
    return Sought(tombstone)


def blobs_of(store: Store) -> list[bytes]:
    chunk = store.read(START, max_bytes=1 << 24, max_records=1 << 16, is_all=True)
    return [blob for block in chunk.blocks for blob in block.blobs()]


@pytest.mark.parametrize("durability", ["process", "memory"])
def test_a_subjects_records_are_destroyed_and_the_others_stay_whole(
    tmp_path: Path, durability: str
) -> None:
    others = [prediction(number, subject=OTHER) for number in range(50)]
    mine = [prediction(number, subject=TAG, text=MARK) for number in range(50, 55)]

    def check(store: Store) -> None:
        append(store, StreamKind.LIVE, *others[:25], *mine, *others[25:])
        finding = spooled.find(store, [open_sought()])
        assert {one.seq for one in finding.found[0]} == set(range(50, 55))
        assert spooled.destroy(store, finding) == 5
        left = blobs_of(store)
        assert [blob for blob in left if blob[0] != 0] == others
        assert [len(blob) for blob in left if blob[0] == 0] == [len(blob) for blob in mine]
        assert files_with(tmp_path, [MARK, TAG]) == []

    in_store(tmp_path, check, durability=durability)


def test_what_belongs_to_a_request_goes_with_it_wherever_it_stands(tmp_path: Path) -> None:
    rid = new_id()
    shadow = prediction(1, parent_rid=rid, is_shadow=True, text=MARK)
    whole, truth = prediction(1, rid=rid, text=MARK), label(1, rid=rid, target="MARK")
    strange = label(2, rid=new_id())

    def check(store: Store) -> None:
        append(store, StreamKind.SHADOW, shadow)  # before the record that leads to it
        append(store, StreamKind.LIVE, prediction(1, rid=rid, subject=TAG))
        append(store, StreamKind.BIG, whole)
        append(store, StreamKind.LABELS, truth, strange)
        finding = spooled.find(store, [open_sought()])
        assert {one.kind for one in finding.found[0]} == {
            StreamKind.LIVE,
            StreamKind.SHADOW,
            StreamKind.BIG,
            StreamKind.LABELS,
        }
        assert spooled.destroy(store, finding) == 4
        assert [blob for blob in blobs_of(store) if blob[0] != 0] == [strange]

    in_store(tmp_path, check)


def test_what_is_shipped_and_kept_for_a_redis_that_forgot_goes_too(tmp_path: Path) -> None:
    def check(store: Store) -> None:
        append(store, StreamKind.LIVE, prediction(1, subject=TAG, text=MARK))
        chunk = store.read(store.shipped, max_bytes=1 << 20, max_records=100)
        store.mark_shipped(chunk.next, {chunk.blocks[0].stream: 1}, {})
        assert files_with(tmp_path, [MARK]) != []
        assert spooled.destroy(store, spooled.find(store, [open_sought()])) == 1
        assert files_with(tmp_path, [MARK]) == []

    in_store(tmp_path, check)


def test_an_intent_goes_as_well(tmp_path: Path) -> None:
    blob = prediction(1, subject=TAG, text=MARK)

    def check(store: Store) -> None:
        number = store.stream("digits", StreamKind.LIVE)
        store.append([Group(BlockKind.INTENT, number, [blob], 1)], NOW_MS, lambda reason: None)
        spooled.destroy(store, spooled.find(store, [open_sought()]))
        assert files_with(tmp_path, [MARK, TAG]) == []

    in_store(tmp_path, check)


def test_what_comes_between_the_look_and_the_destruction_is_known_too(tmp_path: Path) -> None:
    rid = new_id()
    mine = prediction(3, rid=rid, subject=TAG, text=MARK, is_shadow=True)

    def check(store: Store) -> None:
        append(store, StreamKind.LIVE, prediction(1, subject=TAG))
        finding = spooled.find(store, [open_sought()])
        append(store, StreamKind.SHADOW, mine)
        append(store, StreamKind.LIVE, prediction(2, subject=OTHER))
        assert spooled.destroy(store, finding) == 2
        late = {(one.kind, one.rid, one.seq) for one in finding.found[0] if one.seq != 1}
        assert late == {(StreamKind.SHADOW, rid, 3)}

    in_store(tmp_path, check)


def test_a_label_without_a_request_id_goes_and_its_neighbour_with_the_same_words_stays(
    tmp_path: Path,
) -> None:
    mine, theirs = label(1, cid="mine"), label(2, cid="theirs")

    def check(store: Store) -> None:
        append(store, StreamKind.LABELS, mine, theirs)
        sought = open_sought()
        sought.cids = {"mine"}
        assert spooled.destroy(store, spooled.find(store, [sought])) == 1
        assert [blob for blob in blobs_of(store) if blob[0] != 0] == [theirs]

    in_store(tmp_path, check)


def test_a_subjects_sealing_keys_go_and_those_of_others_stay(tmp_path: Path) -> None:
    keys: list[bytes] = []
    maker = SubjectKeys(
        os.urandom(32), on_new_key=lambda tag, key_id, blob: keys.append(blob), clock_ms=lambda: 1
    )
    maker.key_of(TAG)
    maker.key_of(OTHER)

    def check(store: Store) -> None:
        store.append([Group(BlockKind.KEY, 0, keys)], NOW_MS, lambda reason: None)
        of_a_name = spooled.find(store, [open_sought("digits")])
        assert spooled.destroy(store, of_a_name) == 0
        finding = spooled.find(store, [open_sought()])
        assert finding.key_tags == {TAG}
        assert spooled.destroy(store, finding) == 1
        assert files_with(tmp_path, [keys[0], TAG]) == []
        assert len(files_with(tmp_path, [keys[1]])) == 1

    in_store(tmp_path, check)


def test_a_closed_tombstone_spares_what_came_after_it(tmp_path: Path) -> None:
    before = prediction(1, subject=TAG, ts_us=NOW_MS * 1_000)
    after = prediction(2, subject=TAG, ts_us=NOW_MS * 1_000 + 1)

    def check(store: Store) -> None:
        append(store, StreamKind.LIVE, before, after)
        closed = Sought(open_sought().tombstone.closed(NOW_MS, is_complete=True))
        assert spooled.destroy(store, spooled.find(store, [closed])) == 1
        assert [blob for blob in blobs_of(store) if blob[0] != 0] == [after]

    in_store(tmp_path, check)


def test_several_erasures_are_told_apart(tmp_path: Path) -> None:
    other = Tombstone(id="o", begun_ms=NOW_MS, tags=[OTHER], digests=[digest(OTHER)])

    def check(store: Store) -> None:
        blobs = [prediction(1, subject=TAG), prediction(2, subject=OTHER), prediction(3)]
        append(store, StreamKind.LIVE, *blobs)
        finding = spooled.find(store, [open_sought(), Sought(other)])
        assert [{one.seq for one in found} for found in finding.found] == [{1}, {2}]
        assert spooled.destroy(store, finding) == 2

    in_store(tmp_path, check)


def test_a_thousand_requests_are_found_among_many(tmp_path: Path) -> None:
    mine = [prediction(n, subject=TAG, text=MARK) for n in range(1_000)]
    others = [prediction(n, subject=OTHER) for n in range(9_000)]

    def check(store: Store) -> None:
        for at in range(1_000):
            append(store, StreamKind.LIVE, mine[at], *others[9 * at : 9 * at + 9])
        assert spooled.destroy(store, spooled.find(store, [open_sought()])) == 1_000
        assert files_with(tmp_path, [MARK, TAG]) == []

    in_store(tmp_path, check)


def test_an_empty_spool_has_nothing(tmp_path: Path) -> None:
    def check(store: Store) -> None:
        finding = spooled.find(store, [open_sought()])
        assert finding.found == [set()]
        assert spooled.destroy(store, finding) == 0
        assert spooled.oldest_ms(store) == 0
        append(store, StreamKind.LIVE, prediction(1))
        assert spooled.oldest_ms(store) == NOW_MS

    in_store(tmp_path, check)


def test_files_of_others_are_known(tmp_path: Path) -> None:
    def check(store: Store) -> None:
        mine = prediction(1, subject=TAG, uri="aa/mine.bin")
        theirs = prediction(2, subject=OTHER, uri="bb/theirs.bin")
        append(store, StreamKind.LIVE, mine, theirs)
        finding = spooled.find(store, [open_sought()])
        assert finding.uris_of_others == {"bb/theirs.bin"}
        assert {uri for one in finding.found[0] for uri in one.uris} == {"aa/mine.bin"}

    in_store(tmp_path, check)
