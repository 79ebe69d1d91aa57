"""Pages of entries: windows, order, and clients of every setting."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest
import redis

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log.reader import entries
from gateway.prediction_log.reader.entries import Window
from gateway.prediction_log.streams import EntryId, StreamKind
from tests.support.log_streams import KEY, STARTED_MS, prediction, put

pytestmark = pytest.mark.redis


def test_moments_are_datetimes_seconds_or_ids() -> None:
    noon = datetime(2026, 1, 1, 12)
    noon_ms = 1_767_268_800_000
    assert Window.of(None, None) == ("-", "+")
    assert Window.of(noon, noon) == (str(noon_ms), f"({noon_ms}-0")
    assert Window.of(noon.replace(tzinfo=UTC), None).first == str(noon_ms)
    paris = noon.replace(tzinfo=timezone(timedelta(hours=1)))
    assert Window.of(paris, None).first == str(noon_ms - 3_600_000)
    assert Window.of(noon_ms / 1e3, noon_ms // 1_000) == (str(noon_ms), f"({noon_ms}-0")
    assert Window.of("5-1", "(7-2") == ("5-1", "(7-2")
    assert Window.of(-5, None).first == "0"
    assert entries.epoch_ms("(17-3") == 17
    assert entries.epoch_ms("-") is None


def test_a_stream_is_read_page_by_page_and_nothing_is_read_twice(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "PAGE", 4)
    ids = put(client, [prediction(n) for n in range(1, 13)])
    pages = list(entries.pages(client, KEY))
    assert [len(page.ids) for page in pages] == [4, 4, 4]
    assert [EntryId.parse(i) for page in pages for i in page.ids] == ids
    assert [page.last for page in pages] == [ids[3], ids[7], ids[11]]
    assert all(len(page.blobs) == 4 for page in pages)
    window = Window.of((STARTED_MS + 3) / 1e3, (STARTED_MS + 9) / 1e3)
    found = [i for page in entries.pages(client, KEY, window) for i in page.ids]
    assert [EntryId.parse(i) for i in found] == ids[2:8]


def test_pages_of_large_entries_are_small(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "PAGE", 10)
    monkeypatch.setattr(entries, "PAGE_BYTES", 1_500)
    put(client, [prediction(n, cid="x" * 400) for n in range(1, 31)])
    sizes = [len(page.ids) for page in entries.pages(client, KEY)]
    assert sizes[0] == 10
    assert set(sizes[1:-1]) == {2}
    assert sum(sizes) == 30


def test_entries_that_are_not_ours_are_left_out_and_passed(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "PAGE", 2)
    put(client, [prediction(1)])
    for number in (2, 3, 4):
        client.xadd(KEY, {"other": "field"}, id=f"{STARTED_MS + number}-0")
    put(client, [prediction(5)])
    pages = list(entries.pages(client, KEY))
    assert [len(page.ids) for page in pages] == [1, 0, 1]


def test_several_streams_are_read_side_by_side(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "PAGE", 5)
    for number in range(1, 101):
        put(client, [prediction(number)], replica="ab"[number % 2])
    keys = entries.streams(client, ["digits"])
    pages = list(entries.interleaved(client, keys))
    assert sum(len(page.ids) for page in pages) == 100
    # No page begins before the end of the page before the last of its own stream and the other.
    lasts = [page.last.ms for page in pages]
    assert all(later > earlier - 15 for earlier, later in pairwise(lasts))


@pytest.mark.parametrize("settings", [{}, {"decode_responses": True}, {"protocol": 3}])
def test_any_client_will_do_and_keeps_its_settings(
    client: redis.Redis, server: RedisServer, settings: dict[str, Any]
) -> None:
    put(client, [prediction(1)])
    with redis.Redis.from_url(server.url, **settings) as other:
        [page] = entries.pages(other, KEY)
        assert page.ids == [f"{STARTED_MS + 1}-0".encode()]
        assert page.blobs[0][:1] == b"\x01"
        if not settings.get("decode_responses"):
            [(entry_id, fields)] = other.xrange(KEY)
            assert entry_id == page.ids[0]
            assert fields == {b"r": page.blobs[0]}


def test_each_kind_has_streams_of_its_own(client: redis.Redis) -> None:
    for kind in (StreamKind.LIVE, StreamKind.SHADOW, StreamKind.BIG, StreamKind.LABELS):
        put(client, [prediction(1)], kind=kind)
    assert entries.streams(client, ["digits"]) == [KEY]
    assert entries.streams(client, shadows=True) == ["pl:{digits}:shadow:gw-1"]
    assert entries.streams(client, kind=StreamKind.BIG) == ["pl:{digits}:big:gw-1"]
    assert entries.streams(client, kind=StreamKind.LABELS) == ["pl:{digits}:labels:gw-1"]
    assert entries.last_id(client, KEY) == EntryId(STARTED_MS + 1, 0)
    assert entries.last_id(client, "nothing") == EntryId(0, 0)
