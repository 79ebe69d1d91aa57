"""Configured routes, routes that a store has lost, and several replicas that bring them at once."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from gateway.route_control.control import GIVEN_BACK
from gateway.route_control.in_force import PROVISIONAL
from gateway.route_control.redis_store import RedisRouteStore
from gateway.route_control.revision import Change
from tests.support.redis import running_redis
from tests.support.replicas import (
    NAME,
    Replica,
    Scene,
    intent,
    open_scene,
    route,
    write_row,
)

DIFFERS: Final = "the stored route differs from the configured one, and is in force"


async def started(replica: Replica, *canaries: float) -> Replica:
    """Start a replica with a configured route, as the gateway does."""
    await replica.sync.look()
    await replica.control.seed([route(canary) for canary in canaries])
    replica.sync.release()
    await replica.control.load_emergencies()
    return replica


def fresh(scene: Scene, name: str = "a") -> Replica:
    return scene.replica(name, is_released=False)


async def entries(replica: Replica) -> list[dict[str, Any]]:  # Any: JSON
    return [json.loads(raw) for raw in await replica.store.audit(NAME, limit=99)]


def test_a_configured_route_is_stored_once_and_in_force(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await started(fresh(scene), 20)
            assert (replica.position(), replica.canary()) == ((1, 1), 20)
            (entry,) = await entries(replica)
            assert (entry["actor"], entry["verb"], entry["reason"]) == (
                "sluice.toml",
                "create",
                "configured",
            )
            again = await started(fresh(scene), 20)
            assert again.position() == (1, 1)
            assert len(await entries(again)) == 1

    asyncio.run(scenario())


def test_the_store_wins_over_the_configuration_and_the_difference_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            await write_row(scene.store, route(10), route(30))
            replica = await started(fresh(scene), 20)
            assert (replica.position(), replica.canary()) == ((1, 2), 30)
            assert replica.store.calls.count("write") == 0

    asyncio.run(scenario())
    (record,) = [r for r in caplog.records if r.getMessage() == DIFFERS]
    assert {change["path"] for change in vars(record)["diff"]} == {
        "/variants/canary/weight",
        "/variants/stable/weight",
    }


def test_the_same_route_in_store_and_configuration_is_nothing_to_talk_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            await write_row(scene.store, route(20))
            await started(fresh(scene), 20)

    asyncio.run(scenario())
    assert DIFFERS not in caplog.messages


def test_a_configured_route_that_was_deleted_stays_deleted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            first = await started(fresh(scene), 20)
            await first.control.delete(NAME, first.here(), intent())
            replica = await started(fresh(scene), 20)
            assert (replica.position(), replica.weights()) == ((1, 2), {})

    asyncio.run(scenario())
    assert "a configured route was deleted" in caplog.messages


def test_without_the_store_it_is_served_provisionally_and_stored_when_the_store_is_back(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = fresh(scene)
            replica.store.down = {"*"}
            await started(replica, 20)
            assert (replica.position(), replica.canary()) == ((PROVISIONAL, 1), 20)
            replica.store.down = set()
            await replica.sync.look()
            assert (replica.position(), replica.canary()) == ((1, 1), 20)
            stored = await replica.store.read(NAME)
            assert stored is not None
            assert stored.position == (1, 1)
            await replica.sync.look()
            assert replica.sync.missing == []
            assert not replica.sync.statistics().conflicts

    asyncio.run(scenario())


def test_what_is_served_provisionally_gives_way_to_what_the_store_turns_out_to_have(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            await write_row(scene.store, route(0))
            replica = fresh(scene)
            replica.store.down = {"*"}
            await started(replica, 20)
            replica.store.down = set()
            await replica.sync.look()
            assert (replica.position(), replica.canary()) == ((1, 1), 0)

    asyncio.run(scenario())


def test_an_abort_of_a_provisional_route_is_stored_with_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = fresh(scene)
            replica.store.down = {"*"}
            await started(replica, 20)
            await asyncio.sleep(0.002)
            await replica.control.abort(NAME, intent())
            replica.store.down = set()
            await replica.sync.look()
            assert (replica.position(), replica.canary()) == ((1, 2), 0)
            assert not replica.control.emergencies

    asyncio.run(scenario())


def test_a_stored_route_that_cannot_be_read_does_not_keep_the_gateway_from_starting(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            bad = Change.of(NAME, (1, 5), b"{}", expected=None, audit=b"x")
            await scene.store.write(bad)
            replica = await started(fresh(scene), 20)
            assert (replica.position(), replica.canary()) == ((PROVISIONAL, 1), 20)
            assert replica.sync.statistics().conflicts == {NAME: "corrupt"}
            await replica.control.restore(NAME, intent())
            await replica.sync.look()
            assert replica.position() == (2, 6)
            assert not replica.sync.statistics().conflicts

    asyncio.run(scenario())


def test_of_replicas_that_start_at_once_one_stores_the_route_and_all_serve_it(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replicas = [fresh(scene, name) for name in "abc"]
            await asyncio.gather(*(started(r, 20 + n) for n, r in enumerate(replicas)))
            assert len(await entries(replicas[0])) == 1
            held = [replica.in_force.held[NAME] for replica in replicas]
            assert {h.digest for h in held} == {held[0].digest}
            for replica in replicas:
                await replica.sync.look()
                assert not replica.sync.statistics().conflicts

    asyncio.run(scenario())


def test_a_store_that_comes_back_empty_is_given_what_is_served(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replicas = [scene.replica(name) for name in "ab"]
            await replicas[0].create(20)
            await replicas[0].change(30)
            await replicas[1].sync.look()
            before = await scene.store.read(NAME)
            assert before is not None
            empty = await scene.another_store("empty")
            await asyncio.gather(*(replica.sync.look() for replica in replicas))
            after = await empty.read(NAME)
            assert after is not None
            assert (after.position, after.body) == (before.position, before.body)
            (entry,) = await entries(replicas[0])
            assert (entry["reason"], entry["previous"]) == (GIVEN_BACK, before.audit_digest)
            for replica in replicas:
                await replica.sync.look()
                assert (replica.position(), replica.canary()) == ((1, 2), 30)
                assert not replica.sync.statistics().conflicts
            await replicas[1].change(40)
            assert replicas[1].position() == (1, 3)

    asyncio.run(scenario())


def test_a_redis_that_was_emptied_is_given_what_is_served_deletions_too(tmp_path: Path) -> None:
    async def scenario(url: str) -> None:
        async with open_scene(tmp_path) as scene:
            store = RedisRouteStore(url)
            replica = scene.replica()
            replica.store.store = store
            try:
                await replica.create(20)
                await replica.create(0, name="gone")
                await replica.control.delete("gone", replica.here("gone"), intent())
                with redis.Redis.from_url(url) as client:
                    client.flushall()
                await replica.sync.look()
                heads = await store.heads()
                assert {name: head.position for name, head in heads.items()} == {
                    NAME: (1, 1),
                    "gone": (1, 2),
                }
                calls = replica.store.calls.count("write")
                await replica.sync.look()
                assert replica.store.calls.count("write") == calls
            finally:
                await store.close()

    with running_redis(append_only=False) as server:
        asyncio.run(scenario(server.url))


def test_a_store_that_leaves_while_it_is_given_something_is_only_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            await replica.create(20)
            await scene.another_store("empty")
            replica.store.down = {"write"}
            await replica.sync.look()
            assert not replica.sync.statistics().is_store_up
            replica.store.down = set()
            await replica.sync.look()
            assert replica.sync.statistics().is_store_up
            assert NAME in await scene.store.heads()

    asyncio.run(scenario())
    raised = [r for r in caplog.records if r.levelno >= logging.ERROR and r.exc_info]
    assert not raised
