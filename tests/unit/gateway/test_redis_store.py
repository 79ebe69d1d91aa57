"""Routes in Redis when it dies, stalls, forgets, refuses, or holds something else."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import redis
from redis.client import PubSub

from gateway.demo.redis_server import RedisServer
from gateway.route_control import frame
from gateway.route_control.redis_store import (
    CHANNEL,
    NAMES_KEY,
    REPLICAS_KEY,
    RedisRouteStore,
    audit_key,
    doc_key,
    history_key,
)
from gateway.route_control.store import CorruptRevision, Head, Stale, StoreDown
from tests.support.redis import redis_binaries, running_redis
from tests.support.route_stores import NAME, allow, change, write_row

pytestmark = pytest.mark.redis

UNREADABLE = Head(generation=0, revision=0, digest="")


@pytest.fixture(params=redis_binaries(), ids=lambda binary: binary.source)
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with running_redis(request.param) as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as connected:
        yield connected


@asynccontextmanager
async def store_at(url: str, *, timeout_s: float = 5.0) -> AsyncIterator[RedisRouteStore]:
    store = RedisRouteStore(url, timeout_s=timeout_s)
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def stalled(server: RedisServer) -> Iterator[None]:
    """Let the server read nothing; what is sent meanwhile is executed afterwards."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def everything(client: redis.Redis) -> dict[bytes, object]:
    """Return every key of the server with its dump."""
    return {key: client.dump(key) for key in client.scan_iter()}


def test_keys_and_message_are_what_others_may_rely_on(
    server: RedisServer, client: redis.Redis
) -> None:
    first, second = change(1), change(2, expected=(1, 1))

    async def scenario() -> None:
        async with store_at(server.url) as store:
            await store.write(first)
            heard = PubSub(client.connection_pool, ignore_subscribe_messages=True)
            with heard:
                heard.subscribe(CHANNEL)
                heard.get_message(timeout=5)
                await store.write(second)
                await store.write(second)  # a repeat is no news
                with pytest.raises(Stale):
                    await store.write(change(3, expected=(1, 1)))
                assert heard.get_message(timeout=5)["data"] == b"digits 1 2"
                assert heard.get_message(timeout=0.05) is None

    asyncio.run(scenario())
    assert client.hgetall("rt:{digits}:doc") == {
        b"generation": b"1",
        b"rev": b"2",
        b"digest": second.after.digest.encode(),
        b"body": second.after.body,
        b"audit": second.after.audit_digest.encode(),
    }
    kept = client.hgetall("rt:{digits}:hist")
    assert kept == {b"1-1": frame.encode(first.after), b"1-2": frame.encode(second.after)}
    entries = client.xrange("rt:{digits}:audit") or []
    assert [fields for _, fields in entries] == [{b"e": first.audit}, {b"e": second.audit}]
    assert client.smembers("rt:names") == {b"digits"}
    assert set(everything(client)) == {
        b"rt:{digits}:doc",
        b"rt:{digits}:hist",
        b"rt:{digits}:audit",
        b"rt:names",
    }


def test_a_server_that_has_forgotten_the_scripts_gets_them_again(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> None:
        async with store_at(server.url) as store:
            await write_row(store, 1)
            client.script_flush()
            await store.write(change(2, expected=(1, 1)))
            client.script_flush()
            await store.report("a", b"1")
            client.script_flush()
            assert set(await store.replicas()) == {"a"}
            assert len(await store.audit(NAME, limit=9)) == 2

    asyncio.run(scenario())


def test_a_store_goes_on_with_a_server_that_was_killed_and_started_again(
    server: RedisServer,
) -> None:
    async def scenario() -> None:
        async with store_at(server.url) as store:
            await write_row(store, 1)
            for number in range(2, 5):
                server.kill()
                for call in (
                    store.heads(),
                    store.read(NAME),
                    store.write(change(number, expected=(1, number - 1))),
                    store.revision(NAME, 1),
                    store.history(NAME, 5),
                    store.audit(NAME, limit=5),
                    store.report("a", b""),
                    store.replicas(),
                    store.withdraw("a"),
                ):
                    begun_s = time.monotonic()
                    with pytest.raises(StoreDown):
                        await call
                    # Known at once: nothing tries again behind our back.
                    assert time.monotonic() - begun_s < 1.9
                server.start()
                assert (await store.heads())[NAME].position == (1, number - 1)
                await store.write(change(number, expected=(1, number - 1)))
            assert [r.revision for r in await store.history(NAME, 9)] == [4, 3, 2, 1]
            assert len(await store.audit(NAME, limit=9)) == 4

    asyncio.run(scenario())


def test_a_server_that_does_not_answer_is_down_in_time_however_many_ask(
    server: RedisServer,
) -> None:
    async def scenario() -> None:
        async with store_at(server.url, timeout_s=0.3) as store:
            await write_row(store, 1)
            with stalled(server):
                begun_s = time.monotonic()
                outcomes = await asyncio.gather(
                    *(store.read(NAME) for _ in range(80)), return_exceptions=True
                )
                took_s = time.monotonic() - begun_s
            assert all(isinstance(outcome, StoreDown) for outcome in outcomes)
            assert all(str(outcome) for outcome in outcomes)
            assert 0.3 <= took_s < 5
            # No connection is lost for it, and no late answer is taken for another question's.
            for _ in range(30):
                assert await store.read(NAME) == change(1).after
                assert (await store.heads())[NAME].position == (1, 1)

    asyncio.run(scenario())


def test_a_change_whose_reply_was_lost_is_repeated_with_success_and_made_once(
    server: RedisServer,
) -> None:
    async def scenario() -> None:
        async with store_at(server.url, timeout_s=0.3) as store:
            await write_row(store, 1)
            second = change(2, expected=(1, 1))
            with stalled(server), pytest.raises(StoreDown):
                await store.write(second)
            await store.write(second)
            assert await store.read(NAME) == second.after
            assert len(await store.history(NAME, 9)) == len(await store.audit(NAME, limit=9)) == 2
            # Lost again, and somebody else goes on before it is repeated.
            third = change(3, expected=(1, 2))
            with stalled(server), pytest.raises(StoreDown):
                await store.write(third)
            async with store_at(server.url) as other:
                await until_at(other, (1, 3))
                fourth = change(4, expected=(1, 3), by="bob")
                await other.write(fourth)
            await store.write(third)
            assert await store.read(NAME) == fourth.after
            assert len(await store.history(NAME, 9)) == len(await store.audit(NAME, limit=9)) == 4

    asyncio.run(scenario())


@asynccontextmanager
async def cutting_replies_to_scripts(server: RedisServer) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Stand between store and server; a connection on which a script was answered breaks.

    Yields the URL to connect to, and the scripts that were asked for so far.
    """
    asked: list[bytes] = []

    async def pass_on(near: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        far, far_out = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            while command := await near.read(1 << 20):
                far_out.write(command)
                reply = await far.read(1 << 20)
                if b"EVALSHA" in command:
                    asked.append(command)
                    break
                near_out.write(reply)
        finally:
            far_out.close()
            near_out.close()

    listening = await asyncio.start_server(pass_on, "127.0.0.1", 0)
    try:
        port = listening.sockets[0].getsockname()[1]
        yield f"redis://127.0.0.1:{port}/0", asked
    finally:
        listening.close()
        await listening.wait_closed()


def test_a_change_whose_connection_broke_before_the_reply_was_sent_only_once(
    server: RedisServer,
) -> None:
    async def scenario() -> None:
        async with store_at(server.url) as store:
            await write_row(store, 1)
            second = change(2, expected=(1, 1))
            async with cutting_replies_to_scripts(server) as (url, asked), store_at(url) as cut_off:
                assert (await cut_off.heads())[NAME].position == (1, 1)
                with pytest.raises(StoreDown):
                    await cut_off.write(second)
                assert len(asked) == 1
            assert await store.read(NAME) == second.after
            await store.write(second)
            assert await store.audit(NAME, limit=9) == [change(1).audit, second.audit]

    asyncio.run(scenario())


async def until_at(store: RedisRouteStore, position: tuple[int, int]) -> None:
    """Wait until a late change was executed."""
    async with asyncio.timeout(10):
        while (await store.heads())[NAME].position != position:  # noqa: ASYNC110 - another's doing
            await asyncio.sleep(0.01)


def test_callers_that_are_cancelled_harm_nobody(server: RedisServer) -> None:
    async def scenario() -> None:
        async with store_at(server.url) as store:
            await write_row(store, 1)
            for number in range(2, 40):
                next_one = change(number, expected=(1, number - 1))
                tasks = [
                    asyncio.create_task(store.write(next_one)),
                    asyncio.create_task(store.heads()),
                ]
                for _ in range(number % 7):
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await store.write(next_one)
                assert await store.read(NAME) == next_one.after
            assert len(await store.audit(NAME, limit=99)) == 39

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "trouble",
    [("maxmemory", "1"), ("min-replicas-to-write", "1")],
    ids=["out of memory", "too few replicas"],
)
def test_a_server_that_refuses_writes_is_down_for_writes_and_changes_nothing(
    server: RedisServer, client: redis.Redis, trouble: tuple[str, str]
) -> None:
    async def scenario() -> None:
        async with store_at(server.url) as store:
            first, *_ = await write_row(store, 1)
            before = everything(client)
            client.config_set(*trouble)
            with pytest.raises(StoreDown):
                await store.write(change(2, expected=(1, 1)))
            with pytest.raises(StoreDown):
                await store.report("a", b"")
            assert await store.read(NAME) == first.after
            assert set(await store.heads()) == {NAME}
            assert await store.replicas() == {}
            assert everything(client) == before
            client.config_set(trouble[0], "0")
            await store.write(change(2, expected=(1, 1)))

    asyncio.run(scenario())


def test_a_read_only_replica_is_down_for_writes(server: RedisServer, client: redis.Redis) -> None:
    async def scenario() -> None:
        async with store_at(server.url) as store:
            first, *_ = await write_row(store, 1)
            await store.report("a", b"")
            client.replicaof("127.0.0.1", 1)  # where nobody listens
            try:
                with pytest.raises(StoreDown, match="read only"):
                    await store.write(change(2, expected=(1, 1)))
                assert await store.read(NAME) == first.after
                assert set(await store.replicas()) == {"a"}
            finally:
                client.replicaof("NO", "ONE")
            await store.write(change(2, expected=(1, 1)))

    asyncio.run(scenario())


@pytest.mark.parametrize("command", ["xadd", "hset"])
def test_without_the_right_to_a_command_of_the_script_the_route_does_not_change(
    server: RedisServer, client: redis.Redis, command: str
) -> None:
    url = server.url.replace("redis://", "redis://gateway:secret@")

    async def scenario() -> None:
        async with store_at(server.url) as store:
            first, *_ = await write_row(store, 1)
            allow(client, "gateway", f"-{command}")
            async with store_at(url) as limited:
                with pytest.raises(StoreDown):
                    await limited.write(change(2, expected=(1, 1)))
            assert await store.read(NAME) == first.after
            assert await store.history(NAME, 9) == [first.after]

    asyncio.run(scenario())


def test_without_the_right_to_read_documents_no_route_is_taken_for_a_damaged_one(
    server: RedisServer, client: redis.Redis
) -> None:
    allow(client, "gateway", "-hmget")

    async def scenario() -> None:
        async with store_at(server.url) as store:
            await write_row(store, 1)
        async with store_at(server.url.replace("redis://", "redis://gateway:secret@")) as limited:
            with pytest.raises(StoreDown):
                await limited.heads()

    asyncio.run(scenario())


def test_without_the_right_to_publish_a_change_is_made_and_only_its_hint_is_missing(
    server: RedisServer, client: redis.Redis
) -> None:
    allow(client, "gateway", "-publish")

    async def scenario() -> None:
        url = server.url.replace("redis://", "redis://gateway:secret@")
        async with store_at(url) as limited:
            _, second = await write_row(limited, 2)
            assert await limited.read(NAME) == second.after

    asyncio.run(scenario())


def test_a_wrong_password_is_a_store_that_is_down(server: RedisServer) -> None:
    async def scenario() -> None:
        url = server.url.replace("redis://", "redis://nobody:wrong@")
        async with store_at(url) as store:
            with pytest.raises(StoreDown):
                await store.heads()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("fields", "position"),
    [
        ({"rev": "two"}, (1, 0)),
        ({"rev": "-2"}, (1, 0)),
        ({"rev": "02"}, (1, 0)),
        ({"rev": ""}, (1, 0)),
        ({"rev": "9" * 16}, (1, 0)),
        ({"generation": "1.0"}, (0, 2)),
        ({"rev": None}, (1, 0)),
        ({"body": None}, (1, 2)),
        ({"digest": None}, (1, 2)),
        ({"audit": None}, (1, 2)),
        ({"generation": None, "rev": None, "digest": None}, None),
        ({"digest": b"\xff"}, (1, 2)),
        ({"body": "{}"}, (1, 2)),
    ],
    ids=str,
)
def test_a_damaged_document_is_reported_and_can_be_replaced(
    server: RedisServer,
    client: redis.Redis,
    fields: dict[str, str | bytes | None],
    position: tuple[int, int] | None,
) -> None:
    async def scenario() -> None:
        async with store_at(server.url) as store:
            await write_row(store, 2)
            await write_row(store, 1, name="other")
            for field, value in fields.items():
                if value is None:
                    client.hdel(doc_key(NAME), field)
                else:
                    client.hset(doc_key(NAME), field, value)
            with pytest.raises(CorruptRevision) as found:
                await store.read(NAME)
            assert found.value.name == NAME
            heads = await store.heads()
            assert heads["other"].position == (1, 1)
            assert (heads[NAME].position if NAME in heads else None) == position
            with pytest.raises(CorruptRevision):
                await store.write(change(9, expected=(1, 8)))
            repair = change(3, generation=2, expected=position or (0, 0))
            await store.write(repair)
            assert await store.read(NAME) == repair.after

    asyncio.run(scenario())


@pytest.mark.parametrize("key", [doc_key(NAME), history_key(NAME), audit_key(NAME), NAMES_KEY])
def test_a_key_that_holds_something_else_stops_every_change_before_it_begins(
    server: RedisServer, client: redis.Redis, key: str
) -> None:
    async def scenario() -> None:
        async with store_at(server.url) as store:
            await write_row(store, 1, name="other")
            client.set(key, "something else")
            before = everything(client)
            with pytest.raises(CorruptRevision, match="string"):
                await store.write(change(1))
            assert everything(client) == before

    asyncio.run(scenario())


def test_reading_a_key_that_holds_something_else_says_so(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> None:
        async with store_at(server.url) as store:
            await write_row(store, 1)
            await write_row(store, 1, name="other")
            for key in (doc_key(NAME), history_key(NAME), audit_key(NAME)):
                client.delete(key)
                client.set(key, "something else")
            for call in (
                store.read(NAME),
                store.revision(NAME, 1),
                store.history(NAME, 5),
                store.audit(NAME, limit=5),
            ):
                with pytest.raises(CorruptRevision, match="something else"):
                    await call
            heads = await store.heads()
            assert heads[NAME] == UNREADABLE
            assert heads["other"].position == (1, 1)
            client.delete(NAMES_KEY)
            client.set(NAMES_KEY, "something else")
            with pytest.raises(StoreDown):
                await store.heads()

    asyncio.run(scenario())


def test_names_that_are_no_routes_or_have_no_document_are_passed_over(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> None:
        async with store_at(server.url) as store:
            await write_row(store, 1)
            client.sadd(NAMES_KEY, b"\xff", "a b", "gone", "")
            for _ in range(2):
                assert set(await store.heads()) == {NAME}
            await write_row(store, 1, name="gone")
            assert set(await store.heads()) == {NAME, "gone"}
            client.srem(NAMES_KEY, "gone")
            assert set(await store.heads()) == {NAME}

    asyncio.run(scenario())


def test_a_damaged_entry_of_the_history_is_left_out_and_never_shown(
    server: RedisServer, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with store_at(server.url) as store:
            written = await write_row(store, 5)
            key = history_key(NAME)
            client.hset(key, "1-2", frame.encode(written[2].after))  # another one in its place
            client.hset(key, "1-4", frame.encode(written[3].after)[:-5])
            client.hset(key, mapping={"x": "y", "1-": "y", "1-x": "y"})
            history = await store.history(NAME, 9)
            assert [r.revision for r in history] == [5, 3, 1]
            for number in (2, 4):
                with pytest.raises(CorruptRevision, match=f"1-{number}"):
                    await store.revision(NAME, number)

    asyncio.run(scenario())
    assert [r.getMessage() for r in caplog.records] == ["corrupt revision in the history"] * 2


def test_the_audit_is_trimmed_to_about_its_size(server: RedisServer, client: redis.Redis) -> None:
    async def scenario() -> None:
        store = RedisRouteStore(server.url, kept_revisions=10, kept_audit_entries=200)
        written = await write_row(store, 700)
        newest = await store.audit(NAME, limit=200)
        assert newest == [w.audit for w in written[-200:]]
        await store.close()

    asyncio.run(scenario())
    assert 200 <= client.xlen(audit_key(NAME)) < 500
    assert client.hlen(history_key(NAME)) == 10


def test_heads_of_known_routes_take_one_round_trip(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> None:
        async with store_at(server.url) as store:
            for number in range(5):
                await store.write(change(1, name=f"route-{number}"))
            await store.heads()
            # One read of the socket takes in what one write sent: the server counts the rounds.
            before = reads(client)
            for _ in range(10):
                assert len(await store.heads()) == 5
            own = reads(client) - before
            assert 10 <= own <= 13  # three are the counting itself

    asyncio.run(scenario())


def reads(client: redis.Redis) -> int:
    found = client.info("stats")
    assert isinstance(found, dict)
    return int(found["total_reads_processed"])


def test_reports_age_by_the_servers_clock(server: RedisServer, client: redis.Redis) -> None:
    async def scenario() -> None:
        async with store_at(server.url) as store:
            seconds, micros = client.time()
            now_ms = seconds * 1_000 + micros // 1_000
            client.hset(
                REPLICAS_KEY,
                mapping={
                    "fresh": f"{now_ms - 5_000} a b",
                    "nearly gone": f"{now_ms - 55_000} x",
                    "gone": f"{now_ms - 61_000} x",
                    "ahead": f"{now_ms + 3_600_000} x",
                    "malformed": "x",
                    "empty": "",
                },
            )
            found = await store.replicas()
            assert set(found) == {"fresh", "nearly gone", "ahead"}
            assert found["fresh"][1] == b"a b"
            assert 5.0 <= found["fresh"][0] < 9.0
            assert 55.0 <= found["nearly gone"][0] < 59.0
            assert found["ahead"][0] == 0.0
            assert set(client.hkeys(REPLICAS_KEY)) == {b"fresh", b"nearly gone", b"ahead"}

    asyncio.run(scenario())


def test_a_report_carries_the_time_of_the_server_and_no_exponent(
    server: RedisServer, client: redis.Redis
) -> None:
    async def scenario() -> None:
        async with store_at(server.url) as store:
            await store.report("a", b"x")

    asyncio.run(scenario())
    stored = client.hget(REPLICAS_KEY, "a")
    assert isinstance(stored, bytes)
    ts_ms, _, report = stored.partition(b" ")
    assert report == b"x"
    seconds, _ = client.time()
    assert abs(int(ts_ms) - seconds * 1_000) < 10_000


def test_a_url_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="scheme"):
        RedisRouteStore("http://localhost")
