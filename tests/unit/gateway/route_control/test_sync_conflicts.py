"""A store that went back, split, is corrupt or invalid: one alarm, and nothing changes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from gateway.route_control.file_store import FileRouteStore
from gateway.route_control.in_force import Held
from gateway.route_control.journal import file_name
from gateway.route_control.redis_store import RedisRouteStore, doc_key
from gateway.route_control.revision import Change, digest_of
from router.revisions import Revision
from tests.support.redis import running_redis
from tests.support.replicas import (
    NAME,
    Replica,
    Scene,
    held,
    open_scene,
    revisions,
    route,
    write,
    write_row,
)
from tests.support.route_stores import FilePlace

CONFLICT: Final = "route_conflict"


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.ERROR) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


def kinds(replica: Replica) -> dict[str, str]:
    return dict(replica.sync.statistics().conflicts)


async def put(scene: Scene, body: bytes, *, at: int = 2) -> None:
    """Write a body into the store as it is, as the next revision."""
    change = Change.of(NAME, (1, at), body, expected=(1, at - 1), audit=body[:99])
    await scene.store.write(change)


def changed(revision: Revision, **fields: Any) -> bytes:  # Any: JSON
    """Return a revision's body with other fields."""
    return json.dumps(json.loads(revision.body()) | fields).encode()


SECOND: Final = revisions(route(0), route(20))[1]
INVALID: Final = {
    "no JSON": b"\x00\xff",
    "no text": b'"\xff"',
    "a list": b"[]",
    "too deep": b"[" * 100_000,
    "no variants": changed(SECOND, variants={}),
    "a weight too much": changed(SECOND, variants={"a": {"model": "m", "version": "1"}}),
    "slots that contradict the weights": changed(
        SECOND, derived={"slots": [[0, 1_000_000, "stable", 1]], "epoch": 1}
    ),
    "another revision": revisions(route(0), route(20), route(30))[2].body(),
    "another route": changed(SECOND, name="other"),
    "an unknown field": changed(SECOND, surprise=1),
}


@pytest.mark.parametrize("body", INVALID.values(), ids=INVALID)
def test_an_invalid_body_raises_the_alarm_once_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            await write_row(scene.store, route(0, name="zz"))
            await put(scene, body)
            for _ in range(3):
                await replica.sync.look()
            assert (replica.position(), replica.canary()) == ((1, 1), 0)
            assert kinds(replica) == {NAME: "corrupt"}
            assert replica.sync.statistics().conflicts_total == 1
            assert replica.position("zz") == (1, 1)
            assert replica.sync.statistics().is_store_up

    asyncio.run(scenario())
    assert messages(caplog) == [CONFLICT]


def test_the_alarm_ends_when_a_valid_revision_follows(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            await put(scene, b"{}")
            await replica.sync.look()
            assert kinds(replica) == {NAME: "corrupt"}
            third = Held.of(revisions(route(0), route(0), route(0))[-1])
            await write(scene.store, third, at=(1, 2))
            await replica.sync.look()
            assert kinds(replica) == {}
            assert replica.position() == (1, 3)
            assert replica.sync.statistics().conflicts_total == 1

    asyncio.run(scenario())


def test_a_damaged_body_is_an_alarm_for_who_needs_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            newcomer = scene.replica("b")
            FilePlace(tmp_path / "routes").damage(NAME)
            for _ in range(2):
                await newcomer.sync.look()
                await replica.sync.look()
            assert kinds(newcomer) == {NAME: "corrupt"}
            assert newcomer.position() is None
            assert (replica.position(), kinds(replica)) == ((1, 1), {})

    asyncio.run(scenario())
    assert messages(caplog) == [CONFLICT]


def test_a_route_whose_place_in_the_store_cannot_be_read_is_corrupt_and_not_older(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            path = tmp_path / "routes" / file_name(NAME)
            path.write_bytes(path.read_bytes().replace(b"sluice", b"sluicf", 1))
            await scene.another_store("routes")
            for _ in range(2):
                await replica.sync.look()
            assert kinds(replica) == {NAME: "corrupt"}
            assert replica.position() == (1, 1)
            assert replica.sync.missing == []

    asyncio.run(scenario())
    assert messages(caplog) == ["route journal is damaged", CONFLICT]


def test_an_older_store_is_an_alarm_until_it_is_right_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            await write_row(scene.store, route(0), route(0), route(0))
            await replica.sync.look()
            good = scene.store
            replica.store.store = older = await FileRouteStore.open(tmp_path / "older")
            await write_row(older, route(0), route(0))
            for _ in range(3):
                await replica.sync.look()
            assert kinds(replica) == {NAME: "older"}
            assert replica.position() == (1, 3)
            replica.store.store = good
            await replica.sync.look()
            assert kinds(replica) == {}
            await older.close()

    asyncio.run(scenario())
    assert messages(caplog) == [CONFLICT]


def test_the_same_number_with_another_content_is_a_split_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            before = replica.in_force.held[NAME]
            other = await scene.another_store("other")
            await write_row(other, route(50))
            for _ in range(3):
                await replica.sync.look()
            assert kinds(replica) == {NAME: "split"}
            assert replica.in_force.held[NAME] is before
            assert replica.canary() == 0

    asyncio.run(scenario())
    assert messages(caplog) == [CONFLICT]


def test_an_alarm_that_becomes_another_one_is_raised_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            await write_row(scene.store, route(0), route(0))
            await replica.sync.look()
            other = await scene.another_store("other")
            await write_row(other, route(50))
            await replica.sync.look()
            assert kinds(replica) == {NAME: "older"}
            await write(other, held(route(50), route(40)), at=(1, 1))
            await replica.sync.look()
            assert kinds(replica) == {NAME: "split"}
            assert replica.sync.statistics().conflicts_total == 2

    asyncio.run(scenario())


def test_a_conflict_about_a_route_that_the_store_no_longer_has_is_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            bad = replace(held(route(0)), body=b"{}", digest=digest_of(b"{}"))
            await write(scene.store, bad)
            await replica.sync.look()
            assert kinds(replica) == {NAME: "corrupt"}
            await scene.another_store("empty")
            await replica.sync.look()
            assert kinds(replica) == {}

    asyncio.run(scenario())


def test_what_is_written_here_while_the_store_answers_is_no_alarm(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()

            async def write_meanwhile() -> None:
                del replica.store.after["heads"]
                await replica.create(0, name="new")
                await replica.change(0, salt="other")

            replica.store.after["heads"] = write_meanwhile
            await replica.sync.look()
            assert replica.position() == (1, 2)
            assert kinds(replica) == {}
            assert replica.sync.missing == []
            assert replica.store.calls.count("write") == 2

    asyncio.run(scenario())
    assert CONFLICT not in messages(caplog)


def test_what_was_written_here_after_the_store_answered_is_not_fetched_again(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            await write(scene.store, held(route(0), route(0)), at=(1, 1))

            async def accept_meanwhile() -> None:
                replica.sync.accept(held(route(0), route(0)))

            replica.store.calls.clear()
            replica.store.after["heads"] = accept_meanwhile
            await replica.sync.look()
            assert replica.store.calls == ["heads"]
            assert kinds(replica) == {}

    asyncio.run(scenario())


async def _closing(store: RedisRouteStore, use: Callable[[], Awaitable[None]]) -> None:
    try:
        await use()
    finally:
        await store.close()


def test_a_document_that_is_damaged_in_redis_is_never_applied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(url: str) -> None:
        async with open_scene(tmp_path) as scene:
            store = RedisRouteStore(url)
            replica = scene.replica()
            replica.store.store = store

            async def use() -> None:
                await write_row(store, route(0))
                await replica.sync.look()
                with redis.Redis.from_url(url) as client:
                    client.hset(doc_key(NAME), mapping={"rev": 2, "body": b"{ha", "digest": "0"})
                for _ in range(2):
                    await replica.sync.look()
                assert kinds(replica) == {NAME: "corrupt"}
                assert replica.position() == (1, 1)

            await _closing(store, use)

    with running_redis(append_only=False) as server:
        asyncio.run(scenario(server.url))
    assert messages(caplog) == [CONFLICT]
