"""Wrapped keys in a real Redis, and readers that open what they seal."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec
import pytest
import redis

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log.capture.policy import seal_context
from gateway.prediction_log.privacy.key_store import (
    KEYS_KEY,
    KeyStore,
    destroy_keys,
    key_field,
    needed_from_ms,
)
from gateway.prediction_log.privacy.opener import Opener
from gateway.prediction_log.privacy.seal import MAX_KEY_AGE_MS, SubjectKeys, Unsealable
from gateway.prediction_log.record import SCHEMA, LoggedPrediction, LoggedTensor, Reduced
from gateway.prediction_log_config import RetentionConfig
from tests.support.privacy import MASTER_KEY, NOW_MS
from tests.support.redis import redis_binaries, running_redis

pytestmark = pytest.mark.redis

ALICE = b"\x07" + b"a" * 15
BOB = b"\x07" + b"b" * 15
PLAIN = LoggedTensor("FP32", (1,), bytes(4))


@pytest.fixture(scope="module", params=redis_binaries(), ids=lambda binary: binary.source)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with running_redis(request.param, append_only=False) as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as connected:
        connected.flushall()
        yield connected


class Writer:
    """What a gateway does: seals, and sends its new keys."""

    def __init__(self, server: RedisServer, *, now_ms: int = NOW_MS) -> None:
        self.url = server.url
        self.blobs: list[bytes] = []
        self.now_ms = now_ms
        self.keys = SubjectKeys(
            MASTER_KEY,
            on_new_key=lambda tag, key_id, blob: self.blobs.append(blob),
            clock_ms=lambda: self.now_ms,
        )

    def record(self, tag: bytes, number: int, text: bytes = b"secret") -> LoggedPrediction:
        rid = number.to_bytes(16, "big")
        sealed = self.keys.key_of(tag).seal(text, seal_context(rid, "e"))
        return LoggedPrediction(
            schema=SCHEMA,
            rid=rid,
            ts_us=0,
            name="digits",
            status=200,
            weight=1.0,
            sampled_as="base",
            worker="w",
            seq=number,
            subject=tag,
            inputs={"x": PLAIN, "e": LoggedTensor("BYTES", (1,), sealed)},
            outputs={"y": PLAIN},
        )

    def ship(self) -> int:
        """Put all blobs, as often as this is called; return how many were new."""

        async def scenario() -> int:
            async with KeyStore(self.url, timeout_s=5) as store:
                return await store.put(self.blobs)

        return asyncio.run(scenario())


def payloads(records: list[LoggedPrediction]) -> list[bytes | str]:
    found: list[bytes | str] = []
    for record in records:
        payload = record.inputs["e"].payload
        assert payload is not None
        found.append(payload.kind if isinstance(payload, Reduced) else payload)
    return found


def test_a_reader_opens_what_was_sealed_with_keys_that_were_sent(
    server: RedisServer, client: redis.Redis
) -> None:
    writer = Writer(server)
    records = [writer.record(ALICE, 1, b"one"), writer.record(BOB, 2, b"two")]
    assert writer.ship() == 2
    opened = Opener(client, MASTER_KEY).open(records)
    assert payloads(opened) == [b"one", b"two"]
    assert [each.inputs["x"] for each in opened] == [PLAIN, PLAIN]
    assert opened[0].inputs["e"].is_whole
    assert opened[0].rid == records[0].rid


def test_records_without_anything_sealed_pass_through_without_redis() -> None:
    plain = LoggedPrediction(
        schema=SCHEMA,
        rid=bytes(16),
        ts_us=0,
        name="digits",
        status=200,
        weight=1.0,
        sampled_as="base",
        worker="w",
        seq=1,
        inputs={"x": PLAIN, "gone": LoggedTensor("BYTES", (1,), None)},
    )
    nowhere = redis.Redis.from_url("redis://127.0.0.1:1/0")
    assert Opener(nowhere, MASTER_KEY).open([plain]) == [plain]


def test_a_key_sent_twice_is_kept_once(server: RedisServer, client: redis.Redis) -> None:
    writer = Writer(server)
    writer.record(ALICE, 1)
    assert [writer.ship(), writer.ship()] == [1, 0]
    assert client.hlen(KEYS_KEY) == 1


def test_what_a_destroyed_key_sealed_is_erased_and_the_others_stay(
    server: RedisServer, client: redis.Redis
) -> None:
    writers = [Writer(server), Writer(server)]  # of two gateways: two keys of one subject
    records = [writers[0].record(ALICE, 1), writers[1].record(ALICE, 2), writers[0].record(BOB, 3)]
    for writer in writers:
        writer.ship()
    opener = Opener(client, MASTER_KEY)
    assert payloads(opener.open(records)) == [b"secret"] * 3
    assert destroy_keys(client, [ALICE, b"\x01" + ALICE[1:]], NOW_MS) == 2
    opened = opener.open(records)
    assert payloads(opened) == ["erased", "erased", b"secret"]
    assert opened[0].inputs["e"].data == b""
    assert opened[0].inputs["x"] == PLAIN
    assert destroy_keys(client, [ALICE], NOW_MS) == 0
    left = repr(client.hgetall(KEYS_KEY))
    assert BOB.hex() in left
    assert ALICE.hex() not in left


def test_a_destroyed_key_does_not_come_back_when_it_is_sent_again_or_late(
    server: RedisServer, client: redis.Redis
) -> None:
    sent, late, ahead = Writer(server), Writer(server), Writer(server, now_ms=NOW_MS + 60_000)
    records = [writer.record(ALICE, n) for n, writer in enumerate((sent, late, ahead))]
    sent.ship()
    ahead.ship()
    assert destroy_keys(client, [ALICE], NOW_MS) == 2
    assert [writer.ship() for writer in (sent, late, ahead)] == [0, 0, 0]
    assert payloads(Opener(client, MASTER_KEY).open(records)) == ["erased"] * 3


def test_a_subject_that_comes_back_after_its_erasure_has_a_key_again(
    server: RedisServer, client: redis.Redis
) -> None:
    writer = Writer(server)
    before = writer.record(ALICE, 1)
    writer.ship()
    destroy_keys(client, [ALICE], NOW_MS)
    writer.keys.forget(ALICE)
    writer.now_ms = NOW_MS + 1
    after = writer.record(ALICE, 2, b"again")
    assert writer.ship() == 1
    assert payloads(Opener(client, MASTER_KEY).open([before, after])) == ["erased", b"again"]
    destroy_keys(client, [ALICE], NOW_MS - 5_000)  # by a clock behind ours
    assert writer.ship() == 0


def test_thousands_of_keys_are_looked_through(server: RedisServer, client: redis.Redis) -> None:
    writer = Writer(server)
    for number in range(3_000):
        writer.keys.key_of(number.to_bytes(16, "big"))
    with client.pipeline(transaction=False) as pipeline:
        for blob in writer.blobs:
            pipeline.hset(KEYS_KEY, key_field(blob[1:17], blob[17:25]), blob)
        pipeline.execute()
    tags = [number.to_bytes(16, "big") for number in range(0, 3_000, 2)]
    assert destroy_keys(client, tags, NOW_MS) == 1_500
    assert client.hlen(KEYS_KEY) == 1_500 + len(tags)  # the others, and the tombstones


def test_keys_whose_records_have_gone_are_deleted_and_tombstones_a_year_later(
    server: RedisServer, client: redis.Redis
) -> None:
    writer = Writer(server)
    for number in range(3_000):
        writer.now_ms = NOW_MS + number
        writer.keys.key_of(number.to_bytes(16, "big"))
    writer.ship()
    destroy_keys(client, [ALICE], NOW_MS)

    async def prune(before_ms: int) -> int:
        async with KeyStore(server.url, timeout_s=5) as store:
            return await store.prune(before_ms)

    assert asyncio.run(prune(0)) == 0
    assert asyncio.run(prune(NOW_MS + 2_000)) == 2_000
    assert client.hlen(KEYS_KEY) == 1_001
    assert asyncio.run(prune(NOW_MS + 401 * 86_400_000)) == 1_001
    assert not client.exists(KEYS_KEY)


def test_a_key_is_needed_for_as_long_as_a_record_of_its_last_moment_can_stand() -> None:
    retention = RetentionConfig(for_s=1_000, grace_s=10)
    kept_ms = MAX_KEY_AGE_MS + 1_010_000  # from its making to the end of its last record
    assert needed_from_ms(retention, NOW_MS + kept_ms) < NOW_MS
    assert needed_from_ms(retention, NOW_MS + kept_ms + MAX_KEY_AGE_MS) == NOW_MS
    assert needed_from_ms(RetentionConfig(for_s=0), NOW_MS) == 0


def test_another_master_key_is_told_and_not_taken_for_an_erasure(
    server: RedisServer, client: redis.Redis
) -> None:
    writer = Writer(server)
    record = writer.record(ALICE, 1)
    writer.ship()
    with pytest.raises(Unsealable):
        Opener(client, MASTER_KEY[::-1]).open([record])


def test_a_record_that_was_tampered_with_is_unreadable_and_the_others_are_read(
    server: RedisServer, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer(server)
    records = [writer.record(ALICE, 1), writer.record(ALICE, 2)]
    writer.ship()
    records[0] = msgspec.structs.replace(records[0], inputs=records[1].inputs)
    assert payloads(Opener(client, MASTER_KEY).open(records)) == ["unreadable", b"secret"]
    assert "a sealed tensor is not opened by the key at hand" in caplog.text


def test_what_is_no_key_is_left_out_and_told_and_stops_nothing(
    server: RedisServer, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer(server)
    writer.blobs += [b"nonsense", b""]
    record = writer.record(ALICE, 1)
    assert writer.ship() == 1
    assert caplog.text.count("a wrapped key is left out") == 2
    assert payloads(Opener(client, MASTER_KEY).open([record])) == [b"secret"]


def test_nothing_is_put_without_redis() -> None:
    async def scenario() -> int:
        async with KeyStore("redis://127.0.0.1:1/0", timeout_s=1) as store:
            return await store.put([])

    assert asyncio.run(scenario()) == 0


def test_keys_in_use_come_back_to_a_redis_that_forgot(
    server: RedisServer, client: redis.Redis
) -> None:
    writer = Writer(server)
    record = writer.record(ALICE, 1)
    writer.ship()
    client.flushall()
    writer.blobs = writer.keys.blobs()
    assert writer.ship() == 1
    assert payloads(Opener(client, MASTER_KEY).open([record])) == [b"secret"]
