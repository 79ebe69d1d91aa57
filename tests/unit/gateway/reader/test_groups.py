"""Consumer groups on every server there is: at least once, dead letters, repeats."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from gateway.demo.redis_server import RedisBinary, RedisServer
from gateway.prediction_log import reader
from gateway.prediction_log.reader import groups
from gateway.prediction_log.reader.groups import Batch, GroupReader, GroupSettings, dead_key
from gateway.prediction_log.streams import StreamKind
from tests.support.log_streams import (
    KEY,
    STARTED_MS,
    audit,
    drop,
    label,
    prediction,
    put,
)
from tests.support.redis import redis_binaries, running_redis

pytestmark = pytest.mark.redis
LIVE, LABELS = StreamKind.LIVE, StreamKind.LABELS
AT_ONCE = GroupSettings(claim_idle_ms=0, max_deliveries=3)


@pytest.fixture(
    scope="module", params=redis_binaries(), ids=lambda binary: binary.source.split()[0]
)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    binary: RedisBinary = request.param
    with running_redis(binary, append_only=False) as running:
        yield running


def numbers(*batches: Batch) -> list[int]:
    return [record.seq for batch in batches for record in batch.records]


def member(
    client: redis.Redis, consumer: str = "one", settings: GroupSettings | None = None
) -> GroupReader:
    return GroupReader(client, "digits", "monitor", consumer, settings=settings)


def read(members: GroupReader, count: int = 100) -> Batch:
    return members.read(count, None)


def pending(client: redis.Redis) -> int:
    summary = client.xpending(KEY, "monitor")
    assert isinstance(summary, dict)
    return int(summary["pending"])


def test_each_record_is_given_to_one_consumer(client: redis.Redis) -> None:
    put(client, [prediction(n) for n in range(1, 11)])
    one, two = member(client), member(client, "two")
    first, second, third = read(one, 4), read(two, 4), read(one, 4)
    assert (numbers(first), numbers(second), numbers(third)) == (
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [9, 10],
    )
    assert pending(client) == 10
    for batch in (first, third):
        one.acknowledge(batch)
    two.acknowledge(second)
    assert pending(client) == 0
    assert not read(one)


def test_a_group_begins_where_it_is_told(client: redis.Redis) -> None:
    ids = put(client, [prediction(n) for n in range(1, 11)])
    moments: list[reader.When] = [(STARTED_MS + 8) / 1e3, str(ids[7]), f"({ids[6]}"]
    for number, since in enumerate([*moments, f"{STARTED_MS + 7}-1"]):
        members = GroupReader(client, "digits", f"monitor-{number}", "one")
        members.begin(since)
        assert numbers(read(members)) == [8, 9, 10]
    everything = GroupReader(client, "digits", "from the start", "one")
    everything.begin()
    assert len(numbers(read(everything))) == 10


def test_what_was_not_acknowledged_comes_again_after_a_restart(client: redis.Redis) -> None:
    put(client, [prediction(n) for n in range(1, 11)])
    before = member(client)
    used = read(before, 3)
    read(before, 3)
    before.acknowledge(used)
    after = member(client)
    assert numbers(read(after, 2)) == [4, 5]
    assert numbers(read(after, 2)) == [6]
    assert numbers(read(after, 9)) == [7, 8, 9, 10]


def test_what_another_consumer_left_is_taken_over_once_it_is_stale(client: redis.Redis) -> None:
    put(client, [prediction(n) for n in range(1, 7)])
    lost = read(member(client, "dead"), 4)
    patient = member(client, "patient")
    assert numbers(read(patient)) == [5, 6]
    eager = member(client, "eager", AT_ONCE)
    taken = read(eager)
    assert numbers(taken) == [1, 2, 3, 4, 5, 6]
    eager.acknowledge(taken)
    assert pending(client) == 0
    assert numbers(lost) == [1, 2, 3, 4]


def test_what_this_consumer_holds_is_not_taken_over_from_itself(client: redis.Redis) -> None:
    put(client, [prediction(1), prediction(2)])
    members = member(client, settings=AT_ONCE)
    held = read(members)
    assert numbers(held) == [1, 2]
    assert not read(members)
    members.acknowledge(held)
    assert pending(client) == 0


@pytest.mark.parametrize("names", [["one"] * 4, ["a", "b", "c", "d"]])
def test_an_entry_that_is_given_too_often_becomes_a_dead_letter(
    client: redis.Redis, names: list[str]
) -> None:
    put(client, [prediction(1), prediction(2)])
    for consumer in names[: AT_ONCE.max_deliveries]:
        crashing = member(client, consumer, AT_ONCE)
        assert numbers(*crashing.drain()) == [1, 2]
    last = member(client, names[-1], AT_ONCE)
    assert numbers(*last.drain()) == []
    assert last.dead == 2
    assert pending(client) == 0
    letters = client.xrange(dead_key("digits", "monitor")) or []
    assert [fields[b"id"] for _, fields in letters if fields] == [
        f"{STARTED_MS + n}-0".encode() for n in (1, 2)
    ]
    assert all(fields and fields[b"stream"] == KEY.encode() for _, fields in letters)


def test_repeats_are_dropped_and_acknowledged_with_the_rest(client: redis.Redis) -> None:
    put(client, [prediction(1), prediction(2)])
    put(client, [prediction(1), prediction(3)], at_ms=STARTED_MS + 9)
    members = member(client)
    batch = read(members)
    assert numbers(batch) == [1, 2, 3]
    members.acknowledge(batch)
    assert pending(client) == 0
    assert members.completeness().repeats == 1


def test_labels_and_audits_come_with_the_records(client: redis.Redis) -> None:
    put(client, [prediction(1), audit(2, 1)])
    put(client, [label(1, 5)], kind=LABELS)
    members = GroupReader(client, "digits", "monitor", "one", kinds=(LIVE, LABELS))
    batch = read(members)
    assert (numbers(batch), [x.target for x in batch.labels]) == ([1], [5])
    assert [x.kinds["live"].sequence for x in batch.audits] == [1]
    members.acknowledge(batch)
    assert pending(client) == 0


def test_completeness_grows_with_what_was_read(client: redis.Redis) -> None:
    put(client, [prediction(n) for n in range(1, 21)])
    drop(client, [6])
    members = member(client)
    read(members, 10)
    assert members.completeness().missing == 1
    put(client, [prediction(22), audit(30, 23, {"disk_full": 2})])
    read(members)
    found = members.completeness()
    assert [(str(g.numbers), g.cause) for w in found.workers for g in w.gaps] == [
        ("6", "not in the stream or disk_full"),
        ("21", "not in the stream or disk_full"),
        ("23", "not in the stream or disk_full"),
    ]
    assert found.seen == 20


def test_new_streams_are_noticed_and_read_from_their_start(client: redis.Redis) -> None:
    members = member(client)
    assert not members.read(10, 1)
    put(client, [prediction(1)])
    assert numbers(read(members)) == [1]
    put(client, [prediction(2)], replica="gw-2")
    assert numbers(read(members)) == [2]


def test_a_redis_that_forgot_everything_is_joined_again(client: redis.Redis) -> None:
    put(client, [prediction(1)])
    members = member(client)
    members.acknowledge(read(members))
    client.flushall()
    put(client, [prediction(1), prediction(2)])
    found = [read(members) for _ in range(3)]
    assert numbers(*found) == [2]  # the first one was used before


def test_entries_that_were_deleted_while_they_waited_are_counted(client: redis.Redis) -> None:
    put(client, [prediction(n) for n in (1, 2, 3)])
    read(member(client))
    drop(client, [2])
    after = member(client)
    batch = read(after)
    assert numbers(batch) == [1, 3]
    assert after.gone == 1
    after.acknowledge(batch)
    assert pending(client) == 0


def test_what_was_deleted_is_not_taken_over(client: redis.Redis) -> None:
    put(client, [prediction(n) for n in (1, 2, 3)])
    read(member(client, "dead"))
    drop(client, [2])
    eager = member(client, "eager", AT_ONCE)
    batch = read(eager)
    assert numbers(batch) == [1, 3]


def test_the_search_for_stale_entries_goes_on_behind_those_that_are_held(
    client: redis.Redis,
) -> None:
    put(client, [prediction(n) for n in range(1, 7)])
    members = member(client, settings=AT_ONCE)
    held = read(members, 3)
    read(member(client, "dead"), 3)
    found = [read(members, 3) for _ in range(3)]
    assert (numbers(held), numbers(*found)) == ([1, 2, 3], [4, 5, 6])


def test_draining_ends_with_the_stream_or_with_the_limit(client: redis.Redis) -> None:
    put(client, [prediction(n) for n in range(1, 31)])
    members = member(client)
    assert len(numbers(*members.drain(10))) == 10
    assert len(numbers(*members.drain())) == 20
    assert numbers(*members.drain()) == []


def test_any_client_will_do(server: RedisServer, client: redis.Redis) -> None:
    put(client, [prediction(1)])
    for number, protocol in enumerate((2, 3)):
        with redis.Redis.from_url(server.url, protocol=protocol, decode_responses=True) as other:
            members = GroupReader(other, "digits", f"group {number}", "one", settings=AT_ONCE)
            batch = read(members)
            assert numbers(batch) == [1]
            members.acknowledge(batch)
            again = GroupReader(other, "digits", f"group {number}", "two", settings=AT_ONCE)
            assert not read(again)


def test_other_errors_of_redis_are_not_hidden(client: redis.Redis) -> None:
    put(client, [prediction(1)])
    members = member(client)
    members.begin()
    client.delete(KEY)
    client.set(KEY, "no stream")
    with pytest.raises(redis.ResponseError, match=r"WRONGTYPE|wrong kind"):
        read(members)


@pytest.mark.parametrize(
    ("first", "before"),
    [
        ("-", "0-0"),
        ("0-0", "0-0"),
        ("$", "$"),
        ("(5-3", "5-3"),
        ("5-3", "5-2"),
        ("5-0", f"4-{2**64 - 1}"),
        ("5", f"4-{2**64 - 1}"),
        ("0", "0-0"),
    ],
)
def test_a_group_is_made_behind_the_entry_before_its_first(first: str, before: str) -> None:
    assert groups._before(first) == before


def test_groups_are_public() -> None:
    assert reader.GroupReader is GroupReader
