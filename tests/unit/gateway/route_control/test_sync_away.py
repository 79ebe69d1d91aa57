"""A store that is away, loads that go wrong, code that raises: the next look comes all the same."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from gateway.errors import StoreUnavailable
from gateway.route_control.store import StoreDown
from tests.support.batching import HANG_S, until
from tests.support.replicas import MODEL, NAME, open_scene, route, write_row


def messages(caplog: pytest.LogCaptureFixture, level: int = logging.ERROR) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


def test_a_store_that_is_away_changes_nothing_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            replica.store.down = {"*"}
            for _ in range(3):
                await replica.sync.look()
            assert not replica.sync.statistics().is_store_up
            assert replica.canary() == 0
            replica.store.down = set()
            await replica.sync.look()
            assert replica.sync.statistics().is_store_up
            assert 0 <= replica.sync.statistics().age_s < HANG_S

    caplog.set_level(logging.INFO)
    asyncio.run(scenario())
    store = [r for r in caplog.records if r.getMessage() == "route store"]
    assert [(r.levelno, vars(r)["is_up"]) for r in store] == [
        (logging.ERROR, False),
        (logging.INFO, True),
    ]


def test_the_age_of_a_store_that_never_answered_is_told_apart(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            replica.store.down = {"heads"}
            await replica.sync.look()
            assert replica.sync.statistics().age_s == -1

    asyncio.run(scenario())


def test_while_the_store_is_away_what_was_loading_still_comes_into_force(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            scene.shelf.may_load.clear()
            await replica.hear(route(20))
            replica.store.down = {"*"}
            scene.shelf.may_load.set()
            await until(lambda: replica.position() == (1, 2))

    asyncio.run(scenario())


def test_the_task_survives_whatever_a_look_raises(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            replica.store.fault = RuntimeError("a bug")
            replica.sync.start()
            await until(lambda: "looking at the route store failed" in messages(caplog))
            replica.store.fault = None
            await write_row(scene.store, route(0))
            await until(lambda: replica.position() == (1, 1))

    asyncio.run(scenario())


def test_what_follows_a_look_fails_on_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica(keeps_copy=True)
            done: list[str] = []

            async def fail() -> None:
                raise RuntimeError("a bug")

            async def follow() -> None:
                done.append("done")

            replica.sync.on_round += [fail, follow]
            await write_row(scene.store, route(0))
            await replica.sync.look()
            assert done == ["done"]
            assert list((tmp_path / "last-a").glob("routes-*"))
            assert replica.sync.statistics().is_store_up

    asyncio.run(scenario())
    assert messages(caplog) == ["what follows a look at the route store failed"]


@pytest.mark.parametrize("error", [StoreDown("gone"), StoreUnavailable("gone")])
def test_a_store_that_goes_away_after_the_look_is_noted(tmp_path: Path, error: Exception) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica(keeps_copy=True)

            async def fail() -> None:
                raise error

            replica.sync.on_round.append(fail)
            await write_row(scene.store, route(0))
            await replica.sync.look()
            assert not replica.sync.statistics().is_store_up
            assert list((tmp_path / "last-a").glob("routes-*"))

    asyncio.run(scenario())


def test_a_load_that_raises_something_odd_waits_to_be_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            scene.shelf.configure(MODEL, no_such_field=1)  # a TypeError, deep inside a load
            await replica.hear(route(20))
            await until(lambda: "no_such_field" in replica.sync.statistics().pending[NAME])
            assert replica.position() == (1, 1)
            del scene.shelf.changes[MODEL]["no_such_field"]
            replica.sync._pending[NAME].retry_at_s = 1.0
            await replica.sync.look()
            await until(lambda: replica.position() == (1, 2))

    asyncio.run(scenario())
    assert messages(caplog) == ["versions of a route could not be loaded"]
