"""An erasure from end to end, over a real Redis and real spools."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import ConnectionError as NoConnection

from gateway.demo.redis_server import RedisServer
from gateway.ids import new_id
from gateway.prediction_log.capture.references import References
from gateway.prediction_log.erasure import gaps, tombstone
from gateway.prediction_log.erasure.eraser import Eraser, Outcome
from gateway.prediction_log.erasure.lock import AnotherRuns
from gateway.prediction_log.erasure.request import Request
from gateway.prediction_log.erasure.spools import Spools
from gateway.prediction_log.privacy.key_store import KEYS_KEY, key_field
from gateway.prediction_log.privacy.seal import SubjectKeys
from gateway.prediction_log.streams import StreamKind, stream_key
from tests.support.erasing_gateway import WatchingGateway, fill_spool
from tests.support.erasures import (
    MARK,
    blobs_in,
    files_with,
    label,
    plain_redis,
    prediction,
    put,
)
from tests.support.prediction_log import log_settings

pytestmark = pytest.mark.redis

LIVE, SHADOW, BIG, LABELS = (
    StreamKind.LIVE,
    StreamKind.SHADOW,
    StreamKind.BIG,
    StreamKind.LABELS,
)
TAG, OTHER = bytes(range(100, 116)), bytes(range(101, 117))
EVERYWHERE = [MARK, TAG, TAG.hex().encode()]


@dataclass
class World:
    """A Redis and a folder of spools."""

    server: RedisServer
    client: redis.Redis
    spools: Path

    @property
    def redis_folder(self) -> Path:
        found: Any = self.client.config_get("dir")
        return Path(found["dir"])

    def eraser(self, client: redis.Redis | None = None, **request: Any) -> Eraser:
        asked = Request(**{"tags": [TAG], "timeout_s": 5.0, **request})
        own = client or self.client
        return Eraser(own, asked, keys=own, spools=Spools(log_settings(), self.spools))

    def erase(self, **request: Any) -> Outcome:
        return self.eraser(**request).run()

    def traces(self) -> list[str]:
        """Where anything of the subject stands; Redis 7 deletes replaced files a moment later."""
        limit_s = time.monotonic() + 5
        while True:
            found = [*files_with(self.redis_folder, EVERYWHERE), *files_with(self.spools, [MARK])]
            if not found or time.monotonic() > limit_s:
                return found
            time.sleep(0.02)

    def tombstones(self) -> list[tombstone.Tombstone]:
        found: Any = self.client.hgetall(tombstone.TOMBSTONES_KEY)
        return [tombstone.decode(text) for text in found.values()]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[RedisServer, redis.Redis]]:
    with plain_redis() as started:
        yield started


@pytest.fixture
def world(server: tuple[RedisServer, redis.Redis], tmp_path: Path) -> World:
    server[1].flushall()
    return World(*server, tmp_path / "spool")


def mine(seq: int, rid: bytes, **fields: Any) -> bytes:
    return prediction(seq, rid=rid, subject=TAG, text=MARK, **fields)


def theirs(seq: int, rid: bytes | None = None, **fields: Any) -> bytes:
    return prediction(seq, rid=rid, subject=OTHER, **fields)


def fill_streams(world: World) -> tuple[bytes, dict[str, list[bytes]]]:
    """Fill streams of each kind; return the subject's request, and what of others stands where."""
    rid, other = new_id(), new_id()
    unmarked = prediction(2, parent_rid=rid, is_shadow=True, text=MARK)
    content = {
        LIVE: ([mine(1, rid)], [theirs(n, other) for n in range(2, 400)]),
        SHADOW: ([unmarked], [prediction(3, parent_rid=other, is_shadow=True)]),
        BIG: ([prediction(1, rid=rid, text=MARK * 50)], [theirs(2, other, text=b"big" * 99)]),
        LABELS: ([label(1, rid=rid, target=MARK.decode())], [label(2, rid=other)]),
    }
    left = {}
    for kind, (gone, stays) in content.items():
        key = put(world.client, [*stays, *gone, *stays], kind=kind)
        left[key] = [*stays, *stays]
    return rid, left


def test_nothing_of_the_subject_is_left_anywhere_and_all_of_the_others_is(world: World) -> None:
    rid, left = fill_streams(world)
    unshipped = [(LIVE, [mine(7, new_id()), theirs(8)]), (LABELS, [label(9, rid=rid)])]
    fill_spool(world.spools, "gw-2", unshipped)
    world.client.sadd(tombstone.REPLICAS_KEY, "gw-2")
    world.client.bgsave(schedule=False)
    here = [(LIVE, [theirs(5), mine(6, new_id())])]
    with WatchingGateway(world.server.url, world.spools, "gw-1", here) as running:
        outcome = world.erase()
    assert outcome.left == []
    assert outcome.records == {LIVE: 1, SHADOW: 1, BIG: 1, LABELS: 1}
    assert (outcome.requests, outcome.spooled) == (3, 2)
    assert (outcome.acknowledged, outcome.done_here) == ({"gw-1"}, {"gw-2"})
    assert world.traces() == []
    for key, blobs in left.items():
        assert blobs_in(world.client, key) == blobs
    assert TAG in running.forgotten
    (closed,) = world.tombstones()
    assert (closed.is_open, closed.is_complete, closed.tags) == (False, True, [])
    assert set(world.client.keys("pl:erasures:*")) <= {
        tombstone.STAMP_KEY.encode(),
        tombstone.REPLICAS_KEY.encode(),
    }


def test_the_gaps_that_an_erasure_makes_are_told_to_readers(world: World) -> None:
    fill_streams(world)
    world.erase()
    assert gaps.read(world.client, "digits") == {
        "gw-1@1/live": [(1, 1)],
        "gw-1@1/shadow": [(2, 2)],
        "gw-1@1/big": [(1, 1)],
        "gw-1@1/labels": [(1, 1)],
    }


def test_a_dry_run_counts_and_changes_nothing(world: World) -> None:
    fill_streams(world)
    before = world.client.dbsize(), world.client.xlen(stream_key("digits", "gw-1"))
    outcome = world.eraser().dry_run()
    assert outcome.records == {LIVE: 1, SHADOW: 1, BIG: 1, LABELS: 1}
    assert (world.client.dbsize(), world.client.xlen(stream_key("digits", "gw-1"))) == before


class Failing(redis.Redis):
    """Loses its connection at one of its commands, before or after it was carried out."""

    left: int = 1 << 30
    is_done_first: bool = False

    def execute_command(self, *args: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left == 0 and self.is_done_first:
            self._carry_out(*args, **options)
        if self.left <= 0:
            raise NoConnection("cut")
        return self._carry_out(*args, **options)

    def _carry_out(self, *args: Any, **options: Any) -> Any:
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("is_done_first", [False, True])
def test_an_interrupted_erasure_is_finished_by_the_next_run_wherever_it_was_cut(
    world: World, is_done_first: bool
) -> None:
    at = world.client.connection_pool.connection_kwargs
    cuts = range(1 + is_done_first, 400, 5)
    for cut in cuts:
        world.client.flushall()
        rid, left = fill_streams(world)
        folder = world.spools / str(cut)
        truth = label(9, rid=rid, target=MARK.decode())
        fill_spool(folder, "gw-2", [(LABELS, [truth]), (LIVE, [mine(7, new_id())])])
        here = World(world.server, world.client, folder)
        failing = Failing(host=at["host"], port=at["port"], protocol=2)
        failing.left, failing.is_done_first = cut, is_done_first
        try:
            here.eraser(failing).run()
        except redis.RedisError:
            pass
        else:
            assert cut > 50  # it was never cut
            break
        finally:
            failing.close()
        world.client.delete(tombstone.LOCK_KEY)  # as its expiry would, later
        outcome = here.erase()
        assert outcome.left == []
        for key, blobs in left.items():
            assert blobs_in(world.client, key) == blobs
        assert world.client.keys("*copy*") == []
        assert files_with(folder, [MARK]) == []
    else:
        pytest.fail("the erasure was cut every time")
    assert world.traces() == []


def test_a_gateway_that_does_not_acknowledge_is_named_and_the_next_run_goes_on(
    world: World,
) -> None:
    unshipped = [(LIVE, [mine(6, new_id())])]
    with WatchingGateway(world.server.url, world.spools, "gw-1", unshipped, is_deaf=True):
        first = world.erase(timeout_s=0.3)
    assert not first.is_complete
    assert first.left == ["gw-1: it runs and has not acknowledged in time"]
    (closed,) = world.tombstones()
    assert (closed.is_open, closed.is_complete) == (False, False)
    second = world.erase()
    assert second.erasure == first.erasure
    assert (second.left, second.done_here) == ([], {"gw-1"})
    assert world.traces() == []


def test_a_spool_out_of_reach_is_named_unless_it_is_said_to_be_gone(world: World) -> None:
    world.client.sadd(tombstone.REPLICAS_KEY, "gw-9")
    (sentence,) = world.erase().left
    assert sentence.startswith("gw-9: it does not run")
    outcome = world.erase(gone=["gw-9"])
    assert (outcome.left, outcome.gone) == ([], {"gw-9"})
    assert world.erase().left == []


def test_a_gateway_that_runs_cannot_be_said_to_be_gone(world: World) -> None:
    with WatchingGateway(world.server.url, world.spools, "gw-1", []):
        assert world.erase(gone=["gw-1"]).left == ["gw-1: it runs, so its disk is not gone"]


def test_a_subject_who_comes_back_is_erased_anew_and_not_before(world: World) -> None:
    key = put(world.client, [mine(1, new_id())])
    first = world.erase()
    back = mine(2, new_id())
    put(world.client, [back])
    with WatchingGateway(world.server.url, world.spools, "gw-1", [(LIVE, [back])]):
        assert blobs_in(world.client, key) == [back]
    assert len(files_with(world.spools, [MARK])) == 1
    second = world.erase()
    assert second.erasure != first.erasure
    assert blobs_in(world.client, key) == []
    assert world.traces() == []


def test_an_erasure_of_one_name_leaves_the_others_and_the_sealing_keys(world: World) -> None:
    digits = put(world.client, [mine(1, new_id()), theirs(2)])
    prices = put(world.client, [mine(1, new_id(), name="prices")], name="prices")
    world.client.hset(KEYS_KEY, key_field(TAG, b"k" * 8), b"wrapped")
    outcome = world.erase(names=["digits"])
    assert (outcome.left, outcome.records, outcome.sealing_keys) == ([], {LIVE: 1}, 0)
    assert len(blobs_in(world.client, digits)) == 1
    assert len(blobs_in(world.client, prices)) == 1
    assert world.client.hlen(KEYS_KEY) == 1


def test_sealing_keys_are_destroyed_in_their_own_redis_and_do_not_come_back(world: World) -> None:
    made: list[tuple[bytes, bytes, bytes]] = []
    maker = SubjectKeys(
        os.urandom(32),
        on_new_key=lambda tag, key_id, blob: made.append((tag, key_id, blob)),
        clock_ms=lambda: time.time_ns() // 1_000_000 - 1_000,
    )
    maker.key_of(TAG)
    maker.key_of(OTHER)
    fill_spool(world.spools, "gw-1", [(LIVE, [theirs(1)])], [blob for _, _, blob in made])
    with plain_redis() as (_, keys):
        for tag, key_id, blob in made:
            keys.hset(KEYS_KEY, key_field(tag, key_id), blob)
        eraser = Eraser(
            world.client,
            Request(tags=[TAG], timeout_s=5),
            keys=keys,
            spools=Spools(log_settings(), world.spools),
        )
        outcome = eraser.run()
        assert (outcome.left, outcome.sealing_keys, len(outcome.servers)) == ([], 1, 2)
        folder: Any = keys.config_get("dir")
        gone = [TAG, TAG.hex().encode(), made[0][2]]
        limit_s = time.monotonic() + 5
        while files_with(Path(folder["dir"]), gone) and time.monotonic() < limit_s:
            time.sleep(0.02)
        assert files_with(Path(folder["dir"]), gone) == []
        assert keys.hexists(KEYS_KEY, key_field(*made[1][:2]))
    assert files_with(world.spools, [made[0][2]]) == []
    assert len(files_with(world.spools, [made[1][2]])) == 1


def test_a_callers_id_that_others_have_as_well_leads_to_no_label(world: World) -> None:
    put(world.client, [mine(1, new_id(), cid="mine"), mine(2, new_id(), cid="both")])
    put(world.client, [theirs(3, cid="both")])
    stays = label(2, cid="both")
    labels = put(world.client, [label(1, cid="mine"), stays], kind=LABELS)
    here = [(LABELS, [label(3, cid="mine", target=MARK.decode()), label(4, cid="both")])]
    with WatchingGateway(world.server.url, world.spools, "gw-1", here):
        assert world.erase().left == []
    assert blobs_in(world.client, labels) == [stays]
    assert files_with(world.spools, [MARK]) == []
    assert len(files_with(world.spools, [b"both"])) == 1


def test_files_of_the_subject_alone_are_deleted(world: World) -> None:
    references = References(world.spools / "references", max_bytes=1 << 20)
    alone = references.keep(b"a" * 16, MARK)
    both = references.keep(b"b" * 16, b"the same picture")
    spooled = references.keep(b"c" * 16, b"another picture")
    put(world.client, [mine(1, new_id(), uri=alone), mine(2, new_id(), uri=both)])
    put(world.client, [mine(3, new_id(), uri=spooled), theirs(3, uri=both)])
    fill_spool(world.spools, "gw-2", [(LIVE, [theirs(1, uri=spooled)])])
    outcome = world.erase()
    assert (outcome.left, outcome.files) == ([], 1)
    assert world.traces() == []
    assert references.path_of(both).is_file()
    assert references.path_of(spooled).is_file()


def test_two_erasures_do_not_run_at_once(world: World) -> None:
    world.client.set(tombstone.LOCK_KEY, "another's")
    with pytest.raises(AnotherRuns):
        world.erase(timeout_s=0.1)
    assert world.tombstones() == []


def test_old_tombstones_are_forgotten(world: World) -> None:
    old = tombstone.Tombstone(id="old", begun_ms=1, until_ms=1, is_complete=True)
    world.client.hset(tombstone.TOMBSTONES_KEY, "old", tombstone.encode(old))
    world.erase()
    assert [one.id for one in world.tombstones()] != ["old"]
    assert len(world.tombstones()) == 1


def test_a_server_that_may_not_rewrite_its_files_leaves_the_erasure_incomplete(
    world: World,
) -> None:
    put(world.client, [mine(1, new_id())])
    world.client.acl_setuser("default", enabled=True, commands=["-bgrewriteaof"])
    try:
        (sentence,) = world.erase().left
    finally:
        world.client.acl_setuser("default", enabled=True, commands=["+bgrewriteaof"])
    assert sentence.startswith("Redis did not rewrite its files")
    assert world.erase().left == []
    assert world.traces() == []


def test_a_killed_gateway_whose_spool_is_at_hand_is_not_waited_for(world: World) -> None:
    fill_spool(world.spools, "gw-1", [(LIVE, [mine(1, new_id())])])
    token = Spools(log_settings(), world.spools).token("gw-1")
    world.client.sadd(tombstone.REPLICAS_KEY, "gw-1")
    world.client.set(tombstone.alive_key("gw-1"), token)
    assert world.erase(timeout_s=0.2).left == []
    world.client.set(tombstone.alive_key("gw-1"), "one of the same name elsewhere")
    assert world.erase(timeout_s=0.2).left == ["gw-1: it runs and has not acknowledged in time"]


def test_the_folder_of_a_gateway_without_files_is_left_as_it_is(world: World) -> None:
    directory = world.spools / "gw-1"
    directory.mkdir(parents=True)
    (directory / "lock").touch()
    world.client.sadd(tombstone.REPLICAS_KEY, "gw-1")
    assert world.erase().left == []
    assert [path.name for path in directory.iterdir()] == ["lock"]


def test_bytes_of_entries_that_somebody_deleted_before_go_as_well(world: World) -> None:
    key = put(world.client, [theirs(1), mine(2, new_id()), theirs(3)])
    info: Any = world.client.xinfo_stream(key)
    if "max-deleted-entry-id" not in info:
        pytest.skip("this server does not say that entries were deleted")
    entries: Any = world.client.xrange(key)
    world.client.xdel(key, entries[1][0])
    dump: Any = world.client.dump(key)
    assert MARK in dump
    assert world.erase().left == []
    assert world.traces() == []
    assert len(blobs_in(world.client, key)) == 2
