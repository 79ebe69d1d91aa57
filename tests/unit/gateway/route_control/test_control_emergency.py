"""Aborts without the store: done here, over a restart, and made known in the end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.errors import UnknownName
from gateway.route_control.write import Written
from tests.support.batching import until
from tests.support.replicas import (
    NAME,
    Replica,
    Scene,
    held,
    intent,
    open_scene,
    route,
    write,
)
from tests.support.route_stores import change

ALL_STABLE: Final = {"stable": 100, "canary": 0}


async def canarying(scene: Scene, **fields: Any) -> Replica:  # Any: JSON
    """Return a replica that has written a route with a canary."""
    replica = scene.replica()
    await replica.create(20, **fields)
    return replica


async def abort_without_store(replica: Replica) -> Written:
    """Cut the line, and abort."""
    replica.store.down = {"*"}
    return await replica.control.abort(NAME, intent("it burns"))


async def verbs(replica: Replica) -> list[tuple[str, str, str]]:
    """Return verb, actor and how the actor is known, of every audit entry."""
    found = [json.loads(raw) for raw in await replica.store.audit(NAME, limit=99)]
    return [(entry["verb"], entry["actor"], entry["auth"]) for entry in found]


def test_without_the_store_an_abort_is_done_here_and_written_down(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await canarying(scene)
            written = await abort_without_store(replica)
            assert (written.is_emergency, written.is_changed) == (True, True)
            assert written.document()["emergency"]
            assert replica.weights() == ALL_STABLE
            assert replica.table.snapshot[NAME].route.revision == 1
            (kept,) = replica.journal.load()
            assert (kept.route, kept.revision, kept.reason) == (NAME, 1, "it burns")
            assert replica.control.emergencies == {NAME: kept}

    asyncio.run(scenario())


def test_a_dry_run_of_an_abort_without_the_store_does_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await canarying(scene)
            replica.store.down = {"*"}
            written = await replica.control.abort(NAME, intent(is_dry_run=True))
            assert (written.is_emergency, written.is_dry_run) == (True, True)
            assert replica.canary() == 20
            assert not replica.control.emergencies

    asyncio.run(scenario())


def test_without_the_store_an_unknown_route_cannot_be_aborted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            with pytest.raises(UnknownName):
                await abort_without_store(replica)

    asyncio.run(scenario())


def test_when_the_stored_route_is_not_intact_an_abort_is_done_here_until_a_restore(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await canarying(scene)
            await scene.store.write(change(2, expected=(1, 1), body=b"{}"))
            written = await replica.control.abort(NAME, intent())
            assert written.is_emergency
            for _ in range(2):
                await replica.sync.look()
            assert replica.weights() == ALL_STABLE
            await replica.control.restore(NAME, intent())
            assert (replica.position(), replica.weights()) == ((2, 3), ALL_STABLE)
            assert not replica.control.emergencies
            await replica.sync.look()
            assert replica.sync.statistics().conflicts == {}

    asyncio.run(scenario())
    assert "what follows a look at the route store failed" not in caplog.messages


def test_the_store_learns_of_an_abort_when_it_is_back_and_others_follow(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica, other = await canarying(scene), scene.replica("b")
            await other.sync.look()
            await abort_without_store(replica)
            assert other.canary() == 20
            replica.store.down = set()
            await replica.sync.look()
            await other.sync.look()
            for each in (replica, other):
                assert (each.position(), each.weights()) == ((1, 2), ALL_STABLE)
            assert replica.in_force.overridden(NAME) is None
            assert replica.journal.load() == []
            assert await verbs(replica) == [("create", "ann", "token"), ("abort", "ann", "journal")]
            entry = json.loads((await replica.store.audit(NAME, limit=1))[0])
            assert entry["reason"].startswith("it burns (emergency abort of a at 20")

    asyncio.run(scenario())


def test_at_no_moment_of_the_reconciliation_does_the_canary_get_traffic(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await canarying(scene)
            await abort_without_store(replica)
            seen: set[float | None] = set()
            is_over = asyncio.Event()

            async def watch() -> None:
                while not is_over.is_set():
                    seen.add(replica.canary())
                    await asyncio.sleep(0)

            watching = asyncio.ensure_future(watch())
            replica.store.down = set()
            await replica.sync.look()
            is_over.set()
            await watching
            assert seen == {0}
            assert replica.position() == (1, 2)

    asyncio.run(scenario())


@pytest.mark.parametrize("down", ["write", "read", "heads"])
def test_an_abort_goes_on_when_the_store_leaves_again_before_it_has_learned_of_it(
    tmp_path: Path, down: str
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await canarying(scene)
            await abort_without_store(replica)
            (kept,) = replica.journal.load()
            replica.store.down = {down}
            for _ in range(2):
                await replica.sync.look()
                assert replica.weights() == ALL_STABLE
                assert replica.journal.load() == [kept]
                assert not replica.sync.statistics().is_store_up
            replica.store.down = set()
            await replica.sync.look()
            assert (replica.position(), replica.weights()) == ((1, 2), ALL_STABLE)
            assert not replica.control.emergencies

    asyncio.run(scenario())


def test_an_abort_whose_reply_was_lost_is_made_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await canarying(scene)
            replica.store.loses_replies = True
            written = await replica.control.abort(NAME, intent())
            assert written.is_emergency
            replica.store.loses_replies = False
            for _ in range(2):
                await replica.sync.look()
            assert (replica.position(), replica.weights()) == ((1, 2), ALL_STABLE)
            assert not replica.control.emergencies
            assert len(await verbs(replica)) == 2

    asyncio.run(scenario())


def test_an_abort_outlives_a_restart_without_the_store(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            before = await canarying(scene)
            await abort_without_store(before)
            after = scene.replica("a")
            after.store.down = {"*"}
            after.sync.force(before.in_force.held[NAME])  # from the copy on disk
            assert after.canary() == 20
            await after.control.load_emergencies()
            assert after.weights() == ALL_STABLE
            after.store.down = set()
            await after.sync.look()
            assert (after.position(), after.weights()) == ((1, 2), ALL_STABLE)
            assert after.journal.load() == []

    asyncio.run(scenario())


def test_a_later_decision_of_somebody_else_wins_over_an_abort(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica, other = await canarying(scene), scene.replica("b")
            await other.sync.look()
            await abort_without_store(replica)
            await asyncio.sleep(0.002)  # the clock of revisions counts milliseconds
            await other.change(50)
            replica.store.down = set()
            await replica.sync.look()
            assert (replica.position(), replica.canary()) == ((1, 2), 50)
            assert not replica.control.emergencies

    asyncio.run(scenario())


def test_a_later_decision_takes_over_only_when_it_is_in_force(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await canarying(scene)
            await abort_without_store(replica)
            scene.shelf.may_load.clear()
            later = held(route(20), route(50, version="3"), created_ms=4_000_000_000_000)
            await write(scene.store, later, at=(1, 1))
            replica.store.down = set()
            for _ in range(2):
                await replica.sync.look()
                assert replica.sync.statistics().pending
                assert replica.weights() == ALL_STABLE
            scene.shelf.may_load.set()
            await until(lambda: not replica.sync.statistics().pending)
            await replica.sync.look()
            assert (replica.position(), replica.canary()) == ((1, 2), 50)
            assert not replica.control.emergencies

    asyncio.run(scenario())


def test_an_older_decision_that_this_replica_had_not_seen_is_aborted_as_well(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica, other = await canarying(scene), scene.replica("b")
            await other.sync.look()
            await other.change(50)
            await asyncio.sleep(0.002)
            await abort_without_store(replica)
            replica.store.down = set()
            await replica.sync.look()
            assert (replica.position(), replica.weights()) == ((1, 3), ALL_STABLE)
            assert not replica.control.emergencies

    asyncio.run(scenario())


def test_a_deletion_while_the_store_was_away_ends_an_abort(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica, other = await canarying(scene), scene.replica("b")
            await other.sync.look()
            await abort_without_store(replica)
            await other.control.delete(NAME, other.here(), intent())
            replica.store.down = set()
            await replica.sync.look()
            assert (replica.position(), replica.weights()) == ((1, 2), {})
            assert not replica.control.emergencies

    asyncio.run(scenario())


def test_an_abort_survives_a_store_that_comes_back_empty(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await canarying(scene)
            await abort_without_store(replica)
            await scene.another_store("empty")
            replica.store.down = set()
            for _ in range(2):
                await replica.sync.look()
                assert replica.weights() == ALL_STABLE
            assert replica.position() == (1, 2)
            assert not replica.control.emergencies
            assert [verb for verb, *_ in await verbs(replica)] == ["create", "abort"]

    asyncio.run(scenario())


def test_an_abort_goes_on_while_the_store_is_older_than_what_is_served(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await canarying(scene)
            for canary in (30, 40):
                await replica.change(canary)
            first = replica.in_force.held[NAME]
            assert first.position == (1, 3)
            await abort_without_store(replica)
            older = await scene.another_store("older")
            await write(older, held(route(20)))
            replica.store.down = set()
            for _ in range(2):
                await replica.sync.look()
                assert replica.weights() == ALL_STABLE
            assert replica.sync.statistics().conflicts == {NAME: "older"}
            await replica.control.restore(NAME, intent())
            assert (replica.position(), replica.weights()) == ((2, 5), ALL_STABLE)
            assert not replica.control.emergencies

    asyncio.run(scenario())


def test_a_write_through_this_replica_takes_over_from_an_abort(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await canarying(scene)
            await abort_without_store(replica)
            replica.store.down = set()
            await replica.change(30)
            assert (replica.position(), replica.canary()) == ((1, 2), 30)
            assert not replica.control.emergencies
            assert replica.journal.load() == []

    asyncio.run(scenario())
