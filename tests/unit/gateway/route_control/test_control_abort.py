"""Aborts while the store is there: whatever is loaded, and whoever writes at the same time."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.errors import UnknownName
from gateway.route_control.control import ABORT_TRIES
from tests.support.replicas import (
    MODEL,
    NAME,
    Replica,
    Scene,
    intent,
    open_scene,
)

ALL_STABLE: Final = {"stable": 100, "canary": 0}


async def canarying(scene: Scene, **fields: Any) -> Replica:  # Any: JSON
    """Return a replica that has written a route with a canary."""
    replica = scene.replica()
    await replica.create(20, **fields)
    return replica


async def verbs(replica: Replica) -> list[tuple[str, str, str]]:
    """Return verb, actor and how the actor is known, of every audit entry."""
    found = [json.loads(raw) for raw in await replica.store.audit(NAME, limit=99)]
    return [(entry["verb"], entry["actor"], entry["auth"]) for entry in found]


def test_an_abort_sends_everything_to_stable_and_disables_rules_that_lead_elsewhere(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            rule = {"name": "r", "when": {"tenant": "acme"}, "to": "canary"}
            replica = await canarying(scene, rules=[rule])
            written = await replica.control.abort(NAME, intent())
            assert (written.is_changed, written.is_emergency) == (True, False)
            assert replica.weights() == ALL_STABLE
            assert not replica.table.snapshot[NAME].has_rules

    asyncio.run(scenario())


def test_an_abort_of_what_is_aborted_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await canarying(scene)
            await replica.control.abort(NAME, intent())
            again = await replica.control.abort(NAME, intent())
            assert not again.is_changed
            assert replica.position() == (1, 2)
            assert len(await verbs(replica)) == 2

    asyncio.run(scenario())


def test_an_abort_needs_no_version_to_be_loaded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await canarying(scene)
            await scene.repository.unload(MODEL)
            (scene.shelf.root / MODEL / "2" / "model.json").unlink()
            (scene.shelf.root / MODEL / "2").rmdir()
            await replica.control.abort(NAME, intent())
            assert replica.weights() == ALL_STABLE

    asyncio.run(scenario())


def test_an_abort_that_loses_races_wins_in_the_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await canarying(scene)
            rival = scene.replica("b")
            await rival.sync.look()
            races = 3

            async def be_quicker() -> None:
                nonlocal races
                if races:
                    races -= 1
                    await rival.sync.look()
                    await rival.change(30 + races)

            replica.store.before["write"] = be_quicker
            await replica.control.abort(NAME, intent())
            assert (replica.position(), replica.weights()) == ((1, 5), ALL_STABLE)
            assert not replica.control.emergencies

    asyncio.run(scenario())


def test_an_abort_that_loses_every_race_is_done_here(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await canarying(scene)
            rival = scene.replica("b")
            races = 0

            async def be_quicker() -> None:
                nonlocal races
                races += 1
                await rival.sync.look()
                await rival.change(30 + races)

            replica.store.before["write"] = be_quicker
            written = await replica.control.abort(NAME, intent())
            assert (written.is_emergency, races) == (True, ABORT_TRIES)
            assert replica.weights() == ALL_STABLE

    asyncio.run(scenario())


def test_an_abort_of_a_route_that_is_deleted_meanwhile_finds_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await canarying(scene)
            rival = scene.replica("b")
            await rival.sync.look()

            async def delete() -> None:
                replica.store.before.clear()
                await rival.control.delete(NAME, rival.here(), intent())

            replica.store.before["write"] = delete
            with pytest.raises(UnknownName):
                await replica.control.abort(NAME, intent())

    asyncio.run(scenario())
