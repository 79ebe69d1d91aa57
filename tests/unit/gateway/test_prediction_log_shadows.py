"""What shadows answered, in a real Redis: apart from the live records, joined to them by id."""

from __future__ import annotations

import asyncio
import json
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from engines.tensors import Tensor
from gateway.cli.main import run
from gateway.demo.redis_server import RedisServer
from gateway.ids import as_text, uuid7
from gateway.prediction_log import reader
from gateway.prediction_log.counts import LogStatistics
from gateway.prediction_log.reader import following
from gateway.prediction_log.record import PredictionRecord
from gateway.prediction_log.spool.store import DropReason
from gateway.prediction_log.streams import NAMES_KEY
from gateway.shadowing import ShadowDrop, Shadows
from tests.support.batching import until
from tests.support.prediction_log import (
    KEY,
    REPLICA,
    Watched,
    assert_exact,
    entries,
    make_log,
    numbers,
    watched,
)
from tests.support.records import STARTED_MS, make_record, record_of
from tests.support.redis import running_redis
from tests.support.shadows import FAIL_ON, NAME, ROUTE, Copies, mirrored, shadow

pytestmark = pytest.mark.redis

SHADOW_KEY = "pl:{digits}:shadow:gw-1"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running_redis() as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with reader.connect(server.url) as connected:
        connected.flushall()
        yield connected


def shadow_of(live: PredictionRecord, number: int) -> PredictionRecord:
    """Return the record of a shadow's answer to a live request."""
    origin = live.origin
    return record_of(
        rid=uuid7(STARTED_MS + number, 1_000 + number),
        parent_rid=live.rid,
        is_shadow=True,
        name=origin.name,
        ts_us=live.ts_us,
        status=200,
        cid=live.cid,
        variant=origin.variant,
        served="v3",
        reason="shadow",
        propensity=1.0,
        outputs=(Tensor("y", "INT64", (1,), struct.pack("<q", -number)),),
    )


def offer_pairs(running: Watched, count: int, *, name: str = "digits") -> None:
    """Offer live records and a shadow's answer to every second of them."""
    for number in range(1, count + 1):
        live = make_record(number, name=name)
        running.log.offer(live)
        if number % 2 == 0:
            running.log.offer(shadow_of(live, number))


def write_pairs(server: RedisServer, count: int, *, replica: str = REPLICA) -> LogStatistics:
    async def scenario(base: Path) -> LogStatistics:
        log = make_log(server.url, base, replica=replica, batch_records=16)
        async with watched(log) as running:
            offer_pairs(running, count)
            offer_pairs(running, 2, name="faces")
            await running.until_settled()
            return log.statistics()

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(scenario(Path(folder)))


def test_shadow_records_stand_in_a_stream_of_their_own_and_are_counted_with_the_live_ones(
    server: RedisServer, client: redis.Redis
) -> None:
    statistics = write_pairs(server, 100)
    assert statistics.total.answered == statistics.total.shipped == 153
    assert numbers(client) == list(range(1, 101))
    assert numbers(client, SHADOW_KEY) == list(range(2, 101, 2))
    assert not any(prediction.is_shadow for _, prediction in entries(client))
    assert all(prediction.is_shadow for _, prediction in entries(client, SHADOW_KEY))
    assert client.smembers("pl:{digits}:streams") == {KEY.encode()}
    assert client.smembers("pl:{digits}:shadow:streams") == {SHADOW_KEY.encode()}
    assert client.smembers(NAMES_KEY) == {b"digits", b"faces"}


def test_the_numbers_of_either_stream_have_no_gap_of_the_other_s_making(
    server: RedisServer, client: redis.Redis
) -> None:
    write_pairs(server, 60)
    assert [prediction.seq for _, prediction in entries(client)] == list(range(1, 61))
    assert [prediction.seq for _, prediction in entries(client, SHADOW_KEY)] == list(range(1, 31))


def test_a_shadow_record_joins_its_live_twin_by_id(
    server: RedisServer, client: redis.Redis
) -> None:
    write_pairs(server, 40)
    live_records = reader.tail(client, names=["digits"], from_start=True, follow=False, count=None)
    shadow_records = reader.tail(
        client, names=["digits"], from_start=True, follow=False, count=None, shadows=True
    )
    # As the documentation of the reader says.
    live = {record.rid: record for record in live_records}
    pairs = [(live[s.parent_rid], s) for s in shadow_records if s.parent_rid in live]
    assert [int(one.cid) for one, _ in pairs] == list(range(2, 41, 2))
    for one, copy in pairs:
        assert (one.cid, one.variant, one.ts_us) == (copy.cid, copy.variant, copy.ts_us)
        assert one.outputs["y"].array().item() == -copy.outputs["y"].array().item()
        assert not one.parent_rid
        assert reader.find(client, "digits", one.rid) == one
        assert reader.find(client, "digits", copy.rid) is None  # a live record is looked for


def test_a_reader_of_the_live_log_never_meets_a_shadow_and_the_other_way_round(
    server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "BLOCK_MS", 20)
    coming_records = [
        reader.tail(client, names=None, from_start=False, follow=True, count=3, shadows=shadows)
        for shadows in (False, True)
    ]
    for replica in ("a", "b"):
        write_pairs(server, 6, replica=replica)
    assert reader.streams(client, ["digits"]) == ["pl:{digits}:a", "pl:{digits}:b"]
    assert reader.streams(client, ["faces"], shadows=True) == [
        "pl:{faces}:shadow:a",
        "pl:{faces}:shadow:b",
    ]
    for from_start in (True, False):
        for shadows, each in ((False, 2 * 6 + 2 * 2), (True, 2 * 3 + 2 * 1)):
            found = list(
                reader.tail(
                    client,
                    names=None,
                    from_start=from_start,
                    follow=False,
                    count=99,
                    shadows=shadows,
                )
            )
            assert len(found) == each
            assert {prediction.is_shadow for prediction in found} == {shadows}
    assert [{p.is_shadow for p in coming} for coming in coming_records] == [{False}, {True}]


def test_a_stream_of_shadows_that_redis_refuses_costs_the_live_records_nothing(
    server: RedisServer, client: redis.Redis
) -> None:
    client.set(SHADOW_KEY, "no stream")
    statistics = write_pairs(server, 40)
    assert_exact(statistics)
    assert statistics.total.dropped[DropReason.REFUSED] == 20
    assert numbers(client) == list(range(1, 41))


def test_the_command_line_shows_live_or_shadow_records(
    server: RedisServer, client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(server, 4)
    command = ["log", "tail", "digits", "--redis", server.url, "--from-start", "--no-follow"]
    live_rid = as_text(make_record(4).rid)

    assert run(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert f"{live_rid} x FP32[1, 2] 4 0.5 -> y INT64[1] 4" in lines[-1]

    assert run([*command, "--shadows"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert " v3 shadow 200 " in lines[-1]
    assert lines[-1].endswith(f"copy of {live_rid} -> y INT64[1] -4")

    assert run([*command, "--shadows", "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (document["parent_rid"], document["is_shadow"]) == (live_rid, True)
    assert run([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (document["rid"], document["parent_rid"]) == (live_rid, "")
    assert document["is_shadow"] is False


def test_shadows_and_log_together_count_to_the_unit(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    """Real lanes over a real log: what is sent or failed is what stands in the shadow stream."""

    async def scenario() -> tuple[int, int]:
        log = make_log(server.url, tmp_path)
        copies = Copies()
        async with watched(log) as running:
            shadows = Shadows(load_copy=copies.load, log=log)
            shadows.apply({(ROUTE, NAME): shadow()})
            await until(lambda: shadows.statistics()[ROUTE, NAME].is_ready)
            for number in range(200):
                live = make_record(number)
                log.offer(live)
                value = FAIL_ON if number % 50 == 0 else 100.0 + number
                request = replace(mirrored(value), rid=live.rid)
                shadows.offer(request, NAME, number % 4 != 1)
                await asyncio.sleep(0)
            await until(lambda: shadows.statistics()[ROUTE, NAME].in_flight == 0)
            await running.until_settled()
            found = shadows.statistics()[ROUTE, NAME]
            await shadows.close()
        await copies.close()
        assert found.eligible == found.sent + sum(found.dropped.values()) == 200
        return found.sent, found.dropped[ShadowDrop.ENGINE_ERROR]

    sent, failed = asyncio.run(scenario())
    records = [prediction for _, prediction in entries(client, SHADOW_KEY)]
    assert sum(record.status == 200 for record in records) == sent == 146
    assert sum(record.status == 500 for record in records) == failed == 4
    live = {prediction.rid for _, prediction in entries(client)}
    assert {record.parent_rid for record in records} <= live
    assert len({record.parent_rid for record in records}) == 150
