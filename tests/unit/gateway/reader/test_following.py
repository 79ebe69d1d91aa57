"""Records one at a time: their order, what follows, what is found."""

from __future__ import annotations

import threading

import pytest
import redis

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log import reader
from gateway.prediction_log.reader import entries, following
from gateway.prediction_log.record import PredictionRecord
from gateway.prediction_log.streams import NAMES_KEY, stream_key, streams_key
from tests.support.log_streams import audit, prediction, put
from tests.support.records import STARTED_MS, encode, make_record

pytestmark = pytest.mark.redis


def write(
    client: redis.Redis,
    number: int,
    *,
    name: str = "digits",
    replica: str = "a",
    record: PredictionRecord | None = None,
) -> None:
    """Write a record as the gateway does, one millisecond after its request arrived."""
    key = stream_key(name, replica)
    client.sadd(streams_key(name), key)
    client.sadd(NAMES_KEY, name)
    made = record or make_record(number, name=name)
    blob = encode(made, worker=replica, seq=number, capture_max_bytes=64)
    client.xadd(key, {"r": blob}, id=f"{STARTED_MS + number + 1}-0")


def read(
    client: redis.Redis,
    *,
    names: list[str] | None = None,
    from_start: bool = True,
    count: int | None = None,
) -> list[str]:
    """Return the numbers of what is there."""
    found = reader.tail(client, names=names, from_start=from_start, follow=False, count=count)
    return [prediction.cid for prediction in found]


def test_streams_are_found_by_name(client: redis.Redis) -> None:
    write(client, 1)
    write(client, 2, replica="b")
    write(client, 3, name="faces")
    assert reader.known_names(client) == ["digits", "faces"]
    assert reader.streams(client, ["digits"]) == ["pl:{digits}:a", "pl:{digits}:b"]
    assert reader.streams(client) == ["pl:{digits}:a", "pl:{digits}:b", "pl:{faces}:a"]
    assert reader.streams(client, ["nobody"]) == []


def test_from_the_start_all_streams_are_merged_in_order(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "PAGE", 4)
    for number in range(1, 31):
        write(client, number, replica="ab"[number % 2], name="digits" if number % 3 else "faces")
    assert read(client) == [str(n) for n in range(1, 31)]
    assert read(client, names=["faces"]) == [str(n) for n in range(3, 31, 3)]
    assert read(client, count=7) == [str(n) for n in range(1, 8)]


def test_the_last_ones_are_those_of_all_streams_together(client: redis.Redis) -> None:
    for number in range(1, 31):
        write(client, number, replica="ab"[number > 20])
    assert read(client, from_start=False, count=12) == [str(n) for n in range(19, 31)]
    assert read(client, from_start=False) == [str(n) for n in range(21, 31)]
    assert read(client, from_start=False, count=0) == []


def test_nothing_is_read_where_there_is_nothing(client: redis.Redis) -> None:
    assert read(client) == []
    assert read(client, from_start=False) == []


@pytest.mark.parametrize("protocol", [2, 3])
def test_following_begins_now_and_notices_new_streams(
    client: redis.Redis, server: RedisServer, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    monkeypatch.setattr(following, "BLOCK_MS", 20)
    write(client, 1)
    with redis.Redis.from_url(server.url, protocol=protocol) as other:
        coming = reader.tail(other, names=None, from_start=False, follow=True, count=4)
        write(client, 2)
        write(client, 3)
        assert [next(coming).cid, next(coming).cid] == ["2", "3"]
        write(client, 4, replica="new")
        assert next(coming).cid == "4"
        write(client, 5, name="faces", replica="new")
        assert next(coming).cid == "5"
        assert next(coming, None) is None


def test_following_from_the_start_reads_nothing_twice(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "BLOCK_MS", 20)
    for number in (1, 2):
        write(client, number)
    coming = reader.tail(client, names=["digits"], from_start=True, follow=True, count=None)
    assert [next(coming).cid, next(coming).cid] == ["1", "2"]
    write(client, 3)
    assert next(coming).cid == "3"


def test_following_waits_where_there_is_no_stream_yet(
    client: redis.Redis, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "BLOCK_MS", 20)
    coming = reader.tail(client, names=None, from_start=False, follow=True, count=1)

    def write_later() -> None:
        with reader.connect(server.url) as other:
            write(other, 1)

    writing = threading.Timer(0.1, write_later)
    writing.start()
    try:
        assert next(coming).cid == "1"
    finally:
        writing.join()


def test_entries_that_are_no_records_are_passed_over(
    client: redis.Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "BLOCK_MS", 20)
    coming = reader.tail(client, names=["digits"], from_start=True, follow=True, count=2)
    write(client, 1)
    key = stream_key("digits", "a")
    client.xadd(key, {"r": b"\x07nonsense"}, id=f"{STARTED_MS + 3}-0")
    client.xadd(key, {"other": b"field"}, id=f"{STARTED_MS + 4}-0")
    write(client, 5)
    assert read(client) == ["1", "5"]
    assert read(client, from_start=False) == ["1", "5"]
    assert [prediction.cid for prediction in coming] == ["1", "5"]
    assert "unknown codec tag 07" in caplog.records[0].__dict__["error"]
    assert reader.find(client, "digits", make_record(5).rid) is not None


def test_audits_are_no_predictions_and_no_trouble(
    client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    put(client, [prediction(1), audit(2, 1), prediction(3)], replica="a")
    assert read(client) == ["c1", "c3"]
    assert read(client, from_start=False, count=2) == ["c1", "c3"]
    assert not caplog.records


def test_a_record_is_found_by_its_request_id_in_whichever_replica_s_stream(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "PAGE", 5)
    for number in range(1, 41):
        write(client, number, replica="ab"[number % 2])
    for number in (1, 2, 23, 40):
        found = reader.find(client, "digits", make_record(number).rid)
        assert found is not None
        assert found.cid == str(number)
    assert reader.find(client, "digits", make_record(41).rid) is None
    assert reader.find(client, "faces", make_record(1).rid) is None


def test_the_search_covers_what_an_outage_delayed_and_ends_where_it_must(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "PAGE", 1)
    hour_ms = 3_600_000
    delayed = make_record(1)
    delayed.total_us = 1_000
    for number in range(5 * hour_ms, 5 * hour_ms + 4):
        write(client, number, record=delayed if number == 5 * hour_ms + 1 else None)
    # Entered five hours late, behind a record that was answered five hours after its own request:
    # no request takes that long, so what is wanted cannot stand behind it.
    assert reader.find(client, "digits", delayed.rid) is None
    client.flushall()
    write(client, 5 * hour_ms, record=delayed)
    found = reader.find(client, "digits", delayed.rid)
    assert found is not None
    assert found.rid == delayed.rid
