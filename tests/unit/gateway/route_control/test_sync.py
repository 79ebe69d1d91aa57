"""Staying in step with the store: hints, polls, loading, reports, the copy on disk, the end."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from gateway.route_control.file_store import InProcessBoard, NoHints
from gateway.route_control.in_force import PROVISIONAL
from gateway.route_control.last_known import LastKnownGood
from gateway.route_control.sync import REPORT_S, RETRY_LOAD_S
from tests.support.batching import HANG_S, until
from tests.support.replicas import (
    MODEL,
    NAME,
    Replica,
    held,
    open_scene,
    route,
    write_row,
)

LONG_S: Final = 60.0


def hints_of(replica: Replica) -> NoHints:
    hints = replica.sync.stores.hints
    assert isinstance(hints, NoHints)
    return hints


def patient(replica: Replica) -> None:
    """Let a replica poll only once in a while."""
    replica.sync._poll_s = LONG_S


def test_what_the_store_has_is_in_force_after_a_look(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            await scene.repository.ensure(MODEL, "2")
            replica = scene.replica()
            written = await write_row(scene.store, route(10), route(20))
            await replica.sync.look()
            assert replica.in_force.held[NAME] == replace(
                written, audit_digest=replica.in_force.held[NAME].audit_digest
            )
            assert replica.canary() == 20

    asyncio.run(scenario())


def test_a_hint_makes_it_look_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            await scene.repository.ensure(MODEL, "2")
            replica = scene.replica()
            patient(replica)
            replica.sync.start()
            await until(lambda: "heads" in replica.store.calls)
            await write_row(scene.store, route(10))
            hints_of(replica).notify()
            await until(lambda: replica.position() == (1, 1))

    asyncio.run(scenario())


def test_without_a_hint_a_poll_finds_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            await scene.repository.ensure(MODEL, "2")
            replica = scene.replica()
            replica.sync.start()
            await until(lambda: replica.store.calls.count("heads") >= 2)
            await write_row(scene.store, route(10))
            await until(lambda: replica.position() == (1, 1))

    asyncio.run(scenario())


def test_only_a_newer_revision_is_fetched(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            await scene.repository.ensure(MODEL, "2")
            replica = scene.replica()
            await write_row(scene.store, route(10))
            for _ in range(3):
                await replica.sync.look()
            assert replica.store.calls == ["heads", "read", "heads", "heads"]

    asyncio.run(scenario())


def test_a_revision_waits_until_its_version_is_warm_and_the_old_one_serves_meanwhile(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            scene.shelf.may_load.clear()
            await replica.hear(route(20))
            assert replica.sync.statistics().pending == {NAME: "loading digits/2"}
            assert (replica.position(), replica.canary()) == ((1, 1), 0)
            newest = replica.sync.newest(NAME)
            assert newest is not None
            assert newest.position == (1, 2)
            scene.shelf.may_load.set()
            await until(lambda: replica.position() == (1, 2))
            assert replica.targets.is_ready(MODEL, "2")
            assert replica.canary() == 20
            assert not replica.sync.statistics().pending

    asyncio.run(scenario())


def test_a_load_under_way_holds_up_no_other_route(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            scene.shelf.may_load.clear()
            await replica.hear(route(20))
            await write_row(scene.store, route(0, name="another"))
            await replica.sync.look()
            assert replica.position("another") == (1, 1)
            assert replica.position() == (1, 1)

    asyncio.run(scenario())


def test_an_abort_overtakes_a_revision_that_is_still_loading(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            scene.shelf.may_load.clear()
            await replica.hear(route(20), route(0))
            assert (replica.position(), replica.canary()) == ((1, 3), 0)
            assert not replica.sync.statistics().pending

    asyncio.run(scenario())


def test_a_revision_that_comes_while_one_is_loading_goes_on_without_another_look(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            scene.shelf.may_load.clear()
            await replica.hear(route(20), route(30, version="3"))
            looks = replica.store.calls.count("heads")
            scene.shelf.may_load.set()
            await until(lambda: replica.position() == (1, 3))
            assert replica.targets.is_ready(MODEL, "3")
            assert replica.store.calls.count("heads") == looks

    asyncio.run(scenario())


def test_what_does_not_load_stays_out_of_force_and_is_tried_again_in_time(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            script = scene.shelf.root / MODEL / "2" / "model.json"
            good = script.read_bytes()
            script.write_text("this is no script")
            await replica.hear(route(20))
            await until(lambda: "loading" not in replica.sync.statistics().pending[NAME])
            why = replica.sync.statistics().pending[NAME]
            assert why.startswith("variants.canary.version: ")
            script.write_bytes(good)
            await replica.sync.look()
            assert replica.sync.statistics().pending == {NAME: why}
            assert replica.position() == (1, 1)
            pending = replica.sync._pending[NAME]
            pending.retry_at_s -= RETRY_LOAD_S
            await replica.sync.look()
            await until(lambda: replica.position() == (1, 2))

    asyncio.run(scenario())


def test_with_a_fallback_what_does_not_load_comes_into_force_after_it_was_tried(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            (scene.shelf.root / MODEL / "2" / "model.json").write_text("no script")
            await replica.hear(route(20, fallback={"to": "stable"}))
            assert replica.position() == (1, 1)
            await until(lambda: replica.position() == (1, 2))
            assert not replica.targets.is_ready(MODEL, "2")

    asyncio.run(scenario())


def test_a_route_that_has_nothing_else_to_serve_comes_into_force_after_it_was_tried(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            await write_row(scene.store, route(20, version="9"))
            await replica.sync.look()
            assert replica.position() is None
            await until(lambda: replica.position() == (1, 1))

    asyncio.run(scenario())


def test_before_the_models_are_loaded_nothing_comes_into_force_and_then_everything(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica(is_released=False)
            await write_row(scene.store, route(0))
            await write_row(scene.store, route(50, version="9", name="broken"))
            await replica.sync.look()
            assert not replica.in_force.held
            assert sorted(r.route.name for r in replica.sync.revisions) == ["broken", NAME]
            replica.sync.release()
            assert (replica.position(), replica.position("broken")) == ((1, 1), (1, 1))

    asyncio.run(scenario())


def test_what_this_replica_writes_is_in_force_without_a_look(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            put: list[int] = []
            replica.sync.on_put = lambda revision: put.append(revision.route.revision)
            replica.sync.accept(held(route(0)))
            replica.sync.accept(held(route(0)))
            assert put == [1]

    asyncio.run(scenario())


class NotedBoard(InProcessBoard):
    """A board that remembers every report."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[object] = []

    async def report(self, replica: str, report: bytes) -> None:
        """See ReplicaBoard."""
        self.reports.append(json.loads(report))
        await super().report(replica, report)


def test_a_replica_reports_when_something_changed_and_otherwise_once_in_a_while(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            scene.board = board = NotedBoard()
            replica = scene.replica()
            await write_row(scene.store, route(0))
            for _ in range(3):
                await replica.sync.look()
            digest = replica.in_force.held[NAME].digest
            assert board.reports == [{"routes": {NAME: [1, 1, digest, ""]}}]
            at_s, before = replica.sync._reported
            replica.sync._reported = (at_s - REPORT_S, before)
            await replica.sync.look()
            assert len(board.reports) == 2

    asyncio.run(scenario())


def test_a_replica_reports_what_waits_and_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            scene.shelf.may_load.clear()
            await replica.hear(route(20))
            await replica.sync.report()
            reports = await scene.board.replicas()
            row = json.loads(reports["a"][1])["routes"][NAME]
            assert row == [1, 1, replica.in_force.held[NAME].digest, "loading digits/2"]

    asyncio.run(scenario())


def test_the_copy_on_disk_is_written_when_something_changed_and_only_then(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica(keeps_copy=True)
            folder = tmp_path / "last-a"
            await write_row(scene.store, route(0))
            for _ in range(3):
                await replica.sync.look()
            assert len(list(folder.glob("routes-*"))) == 1
            await replica.hear(route(0, salt="other"))
            assert len(list(folder.glob("routes-*"))) == 2
            kept = LastKnownGood(folder).load()
            assert [revision.position for revision in kept] == [(1, 2)]

    asyncio.run(scenario())


def test_a_disk_that_is_full_costs_the_copy_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            (tmp_path / "last-a").write_text("a file where the folder should be")
            replica = scene.replica(keeps_copy=True)
            await write_row(scene.store, route(0))
            await replica.sync.look()
            assert replica.position() == (1, 1)
            (tmp_path / "last-a").unlink()
            await replica.sync.look()
            assert LastKnownGood(tmp_path / "last-a").load()

    asyncio.run(scenario())
    assert "routes not written down" in [record.getMessage() for record in caplog.records]


def test_what_no_store_has_numbered_is_not_written_down(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica(keeps_copy=True)
            replica.store.down = {"*"}
            replica.sync.force(held(route(0), generation=PROVISIONAL))
            await replica.sync.look()
            assert replica.canary() == 0
            assert LastKnownGood(tmp_path / "last-a").load() == []

    asyncio.run(scenario())


def test_closing_ends_the_loads_leaves_the_board_and_may_be_repeated(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            replica.sync.start()
            await until(lambda: replica.store.calls.count("heads") >= 2)
            scene.shelf.may_load.clear()
            await replica.hear(route(20))
            before = asyncio.all_tasks()
            await asyncio.wait_for(replica.sync.close(), HANG_S)
            await asyncio.wait_for(replica.sync.close(), HANG_S)
            assert await scene.board.replicas() == {}
            ended = [task for task in before if task.done()]
            assert len(ended) == 2

    asyncio.run(scenario())
