"""Rebuilding a stream: the bytes go, everything else stays, whoever writes or reads meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from gateway.demo.redis_server import RedisBinary
from gateway.prediction_log.erasure.rebuild import (
    RebuildFailed,
    Rebuilt,
    _Copy,
    drop_leftovers,
    pages,
    rebuild,
)
from gateway.prediction_log.erasure.tombstone import copies_key
from tests.support.erasures import MARK, plain_redis
from tests.support.redis import redis_binaries

pytestmark = pytest.mark.redis

NAME = "m"
KEY = "pl:{m}:gw-1"


@pytest.fixture(
    params=redis_binaries(), ids=lambda binary: binary.source.split()[0], scope="module"
)
def server(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    binary: RedisBinary = request.param
    with plain_redis(binary) as (_, client):
        yield client


@pytest.fixture
def client(server: redis.Redis) -> redis.Redis:
    server.flushall()
    return server


def is_marked(blob: bytes) -> bool:
    return MARK in blob


def fill(client: redis.Redis, count: int, *, marked_each: int = 10) -> None:
    pipeline = client.pipeline(transaction=False)
    for number in range(count):
        blob = b"%08d" % number + (MARK if number % marked_each == 0 else b"")
        pipeline.xadd(KEY, {"r": blob}, id=f"{number // 3 + 1}-{number % 3}")
    pipeline.execute()


def entries(client: redis.Redis) -> list[tuple[bytes, bytes]]:
    found: Any = client.xrange(KEY)
    return [(entry_id, fields[b"r"]) for entry_id, fields in found]


def info(client: redis.Redis) -> dict[str, Any]:
    found: Any = client.xinfo_stream(KEY)
    return dict(found)


def test_the_entries_that_stay_keep_their_ids_and_the_bytes_of_the_others_are_gone(
    client: redis.Redis,
) -> None:
    fill(client, 1_000)
    before = entries(client)
    assert rebuild(client, NAME, KEY, is_marked) == Rebuilt(kept=900, left_out=100)
    assert entries(client) == [entry for entry in before if MARK not in entry[1]]
    dump: Any = client.dump(KEY)
    assert MARK not in dump
    assert client.keys("*") == [KEY.encode()]


def test_deleting_the_entries_would_have_left_their_bytes(client: redis.Redis) -> None:
    fill(client, 1_000)
    for entry_id, blob in entries(client):
        if MARK in blob:
            client.xdel(KEY, entry_id)
    dump: Any = client.dump(KEY)
    assert MARK in dump
    rebuild(client, NAME, KEY, is_marked)
    dump = client.dump(KEY)
    assert MARK not in dump


def test_redis_refuses_the_same_ids_as_before(client: redis.Redis) -> None:
    fill(client, 31)  # the last entry is marked
    last = info(client)["last-generated-id"]
    added = info(client).get("entries-added")
    rebuild(client, NAME, KEY, is_marked)
    assert info(client)["last-generated-id"] == last
    assert info(client).get("entries-added") == added
    if added is not None:
        assert info(client)["max-deleted-entry-id"] == last
    with pytest.raises(redis.ResponseError, match="equal or smaller"):
        client.xadd(KEY, {"r": b"again"}, id=last)


def test_groups_consumers_and_what_is_pending_go_on_where_they_were(client: redis.Redis) -> None:
    fill(client, 100)
    client.xgroup_create(KEY, "monitor", id="0")
    client.xgroup_create(KEY, "idle", id="$")
    client.xreadgroup("monitor", "a", {KEY: ">"}, count=15)
    client.xreadgroup("monitor", "b", {KEY: ">"}, count=6)
    client.xgroup_createconsumer(KEY, "monitor", "c")
    first: Any = client.xpending_range(KEY, "monitor", "-", "+", 1)
    client.xclaim(KEY, "monitor", "b", 0, ["1-1"], idle=500_000, retrycount=4)
    assert first[0]["consumer"] == b"a"
    groups_before: Any = client.xinfo_groups(KEY)

    rebuild(client, NAME, KEY, is_marked)

    groups: Any = client.xinfo_groups(KEY)
    for before, after in zip(groups_before, groups, strict=True):
        for field in ("name", "consumers", "last-delivered-id", "entries-read"):
            assert after.get(field) == before.get(field)
    pending: Any = client.xpending_range(KEY, "monitor", "-", "+", 100)
    standing = {entry_id for entry_id, _ in entries(client)}
    assert len(pending) == 18  # 21 were delivered, three of them marked
    assert {one["message_id"] for one in pending} <= standing
    claimed = next(one for one in pending if one["message_id"] == b"1-1")
    assert (claimed["consumer"], claimed["times_delivered"]) == (b"b", 4)
    assert claimed["time_since_delivered"] >= 500_000
    consumers: Any = client.xinfo_consumers(KEY, "monitor")
    assert sorted(one["name"] for one in consumers) == [b"a", b"b", b"c"]

    unread: Any = client.xreadgroup("monitor", "a", {KEY: ">"}, count=1_000)
    assert len(unread[0][1]) == 79 - 7
    assert client.xack(KEY, "monitor", *(one["message_id"] for one in pending)) == 18


def test_thousands_of_pending_entries_are_taken_over(client: redis.Redis) -> None:
    fill(client, 2_500)
    client.xgroup_create(KEY, "monitor", id="0")
    client.xreadgroup("monitor", "a", {KEY: ">"}, count=2_500)
    rebuild(client, NAME, KEY, is_marked)
    pending: Any = client.xpending(KEY, "monitor")
    assert pending["pending"] == 2_250


def test_the_time_to_live_is_kept(client: redis.Redis) -> None:
    fill(client, 10)
    client.pexpire(KEY, 60_000)
    rebuild(client, NAME, KEY, is_marked)
    ttl: Any = client.pttl(KEY)
    assert 50_000 < ttl <= 60_000


def test_a_stream_of_which_nothing_stays_is_an_empty_stream(client: redis.Redis) -> None:
    fill(client, 20, marked_each=1)
    last = info(client)["last-generated-id"]
    assert rebuild(client, NAME, KEY, is_marked) == Rebuilt(kept=0, left_out=20)
    assert info(client)["length"] == 0
    assert info(client)["last-generated-id"] == last


def test_a_stream_that_is_not_there_is_not_made(client: redis.Redis) -> None:
    assert rebuild(client, NAME, KEY, is_marked) == Rebuilt(kept=0, left_out=0)
    assert client.keys("*") == []


def test_what_was_trimmed_meanwhile_is_not_brought_back(client: redis.Redis) -> None:
    fill(client, 1_000)
    pages_seen = 0

    def trim() -> None:
        nonlocal pages_seen
        pages_seen += 1
        if pages_seen == 3:
            client.xtrim(KEY, minid="101-0", approximate=False)

    rebuild(client, NAME, KEY, is_marked, each_page=trim)
    assert entries(client)[0][0] == b"101-1"  # 101-0 is a marked one


def test_a_writer_loses_nothing_and_is_refused_nothing(client: redis.Redis) -> None:
    fill(client, 3_000)
    seen: set[bytes] = {blob for _, blob in entries(client) if MARK not in blob}
    pool = client.connection_pool
    stop, written = threading.Event(), 0

    def write() -> None:
        nonlocal written
        own = redis.Redis.from_url(
            f"redis://{pool.connection_kwargs['host']}:{pool.connection_kwargs['port']}/0",
            protocol=2,
        )
        while not stop.is_set():
            written += 1  # an id that is refused raises, and the count below is wrong
            own.xadd(KEY, {"r": b"new-%d" % written}, id=f"9000000-{written}")
        own.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            rebuild(client, NAME, KEY, is_marked)
    finally:
        stop.set()
        writer.join()
    seen |= {b"new-%d" % number for number in range(1, written + 1)}
    assert written > 50
    assert [blob for _, blob in entries(client) if blob.startswith(b"new-")] == [
        b"new-%d" % number for number in range(1, written + 1)
    ]
    assert {blob for _, blob in entries(client)} == seen


def test_a_consumer_that_waits_meanwhile_is_given_what_comes_next(client: redis.Redis) -> None:
    fill(client, 300)
    client.xgroup_create(KEY, "monitor", id="$")
    pool = client.connection_pool
    url = f"redis://{pool.connection_kwargs['host']}:{pool.connection_kwargs['port']}/0"
    given: list[Any] = []

    def wait() -> None:
        own = redis.Redis.from_url(url, protocol=2)
        given.append(own.xreadgroup("monitor", "a", {KEY: ">"}, block=10_000))
        own.close()

    waiter = threading.Thread(target=wait)
    waiter.start()
    while not any(b"xreadgroup" in str(c["cmd"]).encode() for c in client.client_list()):
        pass
    rebuild(client, NAME, KEY, is_marked)
    client.xadd(KEY, {"r": b"next"})
    waiter.join()
    assert given[0][0][1][0][1] == {b"r": b"next"}


def test_an_interrupted_rebuild_leaves_the_stream_and_its_copy_is_found(
    client: redis.Redis,
) -> None:
    fill(client, 1_000)
    before = entries(client)
    copy = _Copy(client, NAME, KEY, 100)
    copy.begin()
    copy.follow(is_marked, lambda: None)  # and then the process is killed
    assert entries(client) == before
    assert len(client.keys("*")) == 3
    assert drop_leftovers(client, NAME) == 1
    assert client.keys("*") == [KEY.encode()]
    assert rebuild(client, NAME, KEY, is_marked).left_out == 100


def test_a_command_that_was_thought_dead_cannot_swap_its_copy_in(client: redis.Redis) -> None:
    fill(client, 1_000)
    slow = _Copy(client, NAME, KEY, 100)
    slow.begin()
    slow.follow(lambda blob: False, lambda: None)  # it knows nothing of the marked ones
    drop_leftovers(client, NAME)
    rebuild(client, NAME, KEY, is_marked)
    with pytest.raises(RebuildFailed, match="deleted by another"):
        slow.is_swapped()
    with pytest.raises(RebuildFailed, match="deleted by another"):
        slow._copied(slow._last, slow._last, [])
    assert not any(MARK in blob for _, blob in entries(client))


def test_a_failure_between_pages_leaves_the_stream_and_no_copy(client: redis.Redis) -> None:
    fill(client, 1_000)
    before = entries(client)

    def fail() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        rebuild(client, NAME, KEY, is_marked, each_page=fail)
    assert entries(client) == before
    assert client.keys("*") == [KEY.encode()]
    assert client.scard(copies_key(NAME)) == 0


def test_a_server_without_memory_for_the_copy_is_told_of_and_the_stream_stays(
    client: redis.Redis,
) -> None:
    fill(client, 1_000)
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "1")
    try:
        with pytest.raises(RebuildFailed, match=r"OOM|memory"):
            rebuild(client, NAME, KEY, is_marked)
    finally:
        client.config_set("maxmemory", "0")
    assert info(client)["length"] == 1_000
    assert client.keys("*") == [KEY.encode()]


def test_a_stream_that_began_anew_is_not_overwritten(client: redis.Redis) -> None:
    fill(client, 600)
    pages_seen = 0

    def begin_anew() -> None:
        nonlocal pages_seen
        pages_seen += 1
        if pages_seen == 3:
            client.delete(KEY)
            client.xadd(KEY, {"r": b"fresh"}, id="1-1")

    with pytest.raises(RebuildFailed, match="began anew"):
        rebuild(client, NAME, KEY, is_marked, each_page=begin_anew)
    assert [blob for _, blob in entries(client)] == [b"fresh"]


def test_pages_skip_nothing_and_repeat_nothing(client: redis.Redis) -> None:
    fill(client, 1_000)
    read = [entry for page in pages(client, KEY, size=64) for entry in page]
    assert [blob for _, blob in read] == [blob for _, blob in entries(client)]
