"""What the scripts make of blocks, on every server that this machine has."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

import pytest
import redis

from gateway.demo.redis_server import RedisServer
from gateway.prediction_log.shipping import fencing
from gateway.prediction_log.shipping.fencing import Claim, Outcome
from gateway.prediction_log.shipping.scripts import MAX_ID_PART
from gateway.prediction_log.shipping.sink import (
    Appended,
    RedisSink,
    SinkDown,
    SinkRefused,
    Target,
    Verdict,
)
from gateway.prediction_log.spool.block import BlockKind, make_block
from gateway.prediction_log.streams import BEFORE_ALL, EntryId
from tests.support.redis import redis_binaries, running_redis
from tests.support.shipping import EVERYTHING, KEY, OWNER, beat, standing

pytestmark = pytest.mark.redis

T = TypeVar("T")
OURS = Target(KEY, OWNER, "our-token")
THEIRS = Target(KEY, OWNER, "their:token")


@pytest.fixture(scope="module", params=redis_binaries(), ids=lambda binary: binary.source)
def module_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with running_redis(request.param) as running:
        yield running


@pytest.fixture
def server(module_server: RedisServer) -> RedisServer:
    with redis.Redis.from_url(module_server.url) as client:
        client.flushall()
    return module_server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as connected:
        yield connected


def ask(server: RedisServer, *questions: Callable[[RedisSink], Awaitable[T]]) -> list[T]:
    """Ask one connected sink several things."""

    async def scenario() -> list[T]:
        sink = RedisSink(server.url, timeout_s=10)
        try:
            await sink.connect()
            return [await question(sink) for question in questions]
        finally:
            await sink.close()

    return asyncio.run(scenario())


def claim(target: Target = OURS) -> Callable[[RedisSink], Awaitable[Claim]]:
    return lambda sink: sink.claim(target)


def append(
    *blocks: bytes, target: Target = OURS, expected: EntryId = BEFORE_ALL
) -> Callable[[RedisSink], Awaitable[Appended | Verdict]]:
    data = b"".join(blocks)
    return lambda sink: sink.append(target, data, expected=expected, trim=EVERYTHING)


def block(first: EntryId, *blobs: bytes) -> bytes:
    return make_block(BlockKind.RECORDS, 3, first, blobs, 99)


def write(server: RedisServer, *blocks: bytes) -> Appended:
    """Claim the name and write blocks with one call."""
    ask(server, claim())
    answer = ask(server, append(*blocks))[0]
    assert isinstance(answer, Appended)
    return answer


ALL_BYTES = bytes(range(1, 256))


def test_records_of_any_bytes_and_sizes_stand_there_under_their_ids(
    server: RedisServer, client: redis.Redis
) -> None:
    blobs = [b"\x01", b"\x01" + b"\0" * 7, ALL_BYTES, b"", ALL_BYTES * 300, b"\xff\r\n$-1\r\n"]
    first, second = EntryId(1_800_000_000_000, 3), EntryId(1_800_000_000_001, 0)
    answer = write(server, block(first, *blobs[:2]), block(second, *blobs[2:]))
    assert (answer.added, answer.processed, answer.failure) == (6, 6, None)
    ids = [first, first.after(), *(EntryId(second.ms, n) for n in range(4))]
    assert standing(client) == list(zip(ids, blobs, strict=True))


def test_ids_are_exact_as_far_as_the_script_can_count(
    server: RedisServer, client: redis.Redis
) -> None:
    firsts = [
        EntryId(0, 1),
        EntryId(1, (1 << 32) - 1),
        EntryId((1 << 48) - 1, 7),
        EntryId(MAX_ID_PART - 1, (1 << 32) - 1),
        EntryId(MAX_ID_PART, 0),
    ]
    write(server, *(block(first, b"a") for first in firsts))
    assert [entry_id for entry_id, _ in standing(client)] == firsts


def test_what_is_sent_again_stands_there_once_and_the_rest_is_added(
    server: RedisServer, client: redis.Redis
) -> None:
    blobs = [b"%d" % n for n in range(6)]
    write(server, block(EntryId(5, 0), *blobs[:4]))
    answer = write(server, block(EntryId(5, 0), *blobs))
    assert (answer.doubled, answer.added, answer.overtaken) == (4, 2, ())
    assert answer.last == EntryId(5, 3)
    assert [blob for _, blob in standing(client)] == blobs


def test_erased_records_are_passed_over(server: RedisServer, client: redis.Redis) -> None:
    answer = write(server, block(EntryId(5, 0), b"one", b"\0\0\0", b"three"))
    assert (answer.added, answer.erased, answer.processed) == (2, 1, 3)
    assert standing(client) == [(EntryId(5, 0), b"one"), (EntryId(5, 2), b"three")]


def test_refused_records_that_do_not_stand_there_are_named(
    server: RedisServer, client: redis.Redis
) -> None:
    client.xadd(KEY, {"r": b"ours"}, id="5-0")
    client.xadd(KEY, {"r": b"another's"}, id="5-1")
    client.xadd(KEY, {"r": b"third", "more": "fields"}, id="5-2")
    client.xadd(KEY, {"r": b"foreign"}, id="5-4")
    answer = write(
        server, block(EntryId(5, 0), b"ours", b"second", b"third", b"\0", b"fifth", b"sixth")
    )
    assert (answer.added, answer.doubled, answer.erased) == (1, 1, 1)
    assert answer.overtaken == (1, 2, 4)
    assert answer.last == EntryId(5, 4)


def test_an_error_ends_the_call_and_says_how_far_it_came(
    server: RedisServer, client: redis.Redis
) -> None:
    good, bad = block(EntryId(5, 0), b"one"), block(EntryId((1 << 64) - 1, 0), b"two")
    answer = write(server, good, bad, block(EntryId(6, 0), b"three"))
    assert (answer.added, answer.processed) == (1, 1)
    assert isinstance(answer.failure, SinkRefused)
    assert [blob for _, blob in standing(client)] == [b"one"]


def test_nothing_is_written_without_the_name(server: RedisServer, client: redis.Redis) -> None:
    (answer,) = ask(server, append(block(EntryId(5, 0), b"one")))
    assert answer == Verdict("unowned", "")
    ask(server, claim(THEIRS))
    (answer,) = ask(server, append(block(EntryId(5, 0), b"one")))
    assert isinstance(answer, Verdict)
    assert answer.outcome == "fenced"
    assert not client.exists(KEY)


def test_a_stream_that_ends_too_low_is_not_written(
    server: RedisServer, client: redis.Redis
) -> None:
    write(server, block(EntryId(5, 0), b"one"))
    for expected in (EntryId(5, 1), EntryId(6, 0)):
        (answer,) = ask(server, append(block(EntryId(7, 0), b"two"), expected=expected))
        assert answer == Verdict("forgot", "5-0")
    (answer,) = ask(server, append(block(EntryId(7, 0), b"two"), expected=EntryId(5, 0)))
    assert isinstance(answer, Appended)
    client.xtrim(KEY, maxlen=0)
    (answer,) = ask(server, append(expected=EntryId(7, 0)))
    assert isinstance(answer, Appended), "what is trimmed is not forgotten"


def test_a_name_is_claimed_kept_taken_over_and_given_up(
    server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcomes(*targets: Target) -> Sequence[Outcome]:
        return [answer.outcome for answer in ask(server, *map(claim, targets))]

    assert outcomes(OURS, OURS, THEIRS) == [Outcome.ABSENT, Outcome.OURS, Outcome.FENCED]
    monkeypatch.setattr(fencing, "STALE_MS", 0)
    assert outcomes(THEIRS, THEIRS) == [Outcome.STALE, Outcome.OURS]
    monkeypatch.undo()
    assert outcomes(OURS) == [Outcome.FENCED]
    ask(server, lambda sink: sink.release(OWNER, OURS.token))
    assert outcomes(OURS) == [Outcome.FENCED], "only its owner gives a name up"
    ask(server, lambda sink: sink.release(OWNER, THEIRS.token))
    assert outcomes(OURS) == [Outcome.ABSENT]


def test_a_claim_tells_what_stands_there(server: RedisServer, client: redis.Redis) -> None:
    assert ask(server, claim())[0] == Claim(Outcome.ABSENT, -1, BEFORE_ALL, 0, None, 0)
    client.xadd(KEY, {"r": b"12345"}, id="5-1")
    client.xadd(KEY, {"r": b"1"}, id="7-0")
    found = ask(server, claim())[0]
    assert found == Claim(Outcome.OURS, -1, EntryId(7, 0), 2, EntryId(5, 1), 6)


def test_every_append_is_a_sign_of_life(server: RedisServer, client: redis.Redis) -> None:
    ask(server, claim())
    client.set(OWNER, f"{OURS.token}:5")
    ask(server, append())
    token, at_ms = beat(client)
    seconds, _ = client.time()
    assert token == OURS.token
    assert abs(at_ms / 1000 - seconds) < 5


@pytest.mark.parametrize("key", [KEY, OWNER])
def test_a_key_of_another_type_is_refused_and_a_server_in_trouble_is_down(
    server: RedisServer, client: redis.Redis, key: str
) -> None:
    ask(server, claim())
    client.delete(key)
    client.sadd(key, "in the way")
    questions = claim(), append(block(EntryId(5, 0), b"one"))
    for question in questions:
        with pytest.raises(SinkRefused, match="WRONGTYPE"):
            ask(server, question)
    client.delete(key)
    client.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(SinkDown, match="READONLY"):
            ask(server, claim())
    finally:
        client.replicaof("NO", "ONE")


def test_a_sink_probes_what_the_server_can_do(server: RedisServer, client: redis.Redis) -> None:
    client.config_set("proto-max-bulk-len", 5 << 20)
    try:

        async def look(sink: RedisSink) -> tuple[int, bool]:
            return sink.max_bulk_bytes, sink.can_trim_by_age

        assert ask(server, look) == [(5 << 20, True)]
    finally:
        client.config_set("proto-max-bulk-len", 512 << 20)
