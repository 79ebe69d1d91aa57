"""Versions that come, go and are replaced while requests are under way."""

from __future__ import annotations

import asyncio
from pathlib import Path
from shutil import rmtree

import pytest

from engines.base import VersionPolicy
from engines.errors import UnknownModel, VersionNotReady
from engines.repository import Repository
from tests.support.batching import HANG_S, until
from tests.support.repositories import Shelf, ask, open_repository


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def states(repository: Repository) -> list[tuple[str, str, str]]:
    return [(e.version, e.state.value, e.reason) for e in repository.index()]


async def until_not_ready(repository: Repository) -> None:
    await until(lambda: not repository.get("echo", "1").is_ready)


def test_a_reload_serves_new_requests_while_the_old_copy_answers_its_own(shelf: Shelf) -> None:
    shelf.add_fake("echo", "1", latency_ms=1)

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            old = repository.get("echo", "1")
            running = ask(old, 1.0)
            await shelf.gate.entered()
            queued = ask(old, 2.0)
            shelf.add_fake("echo", "1")
            reload = asyncio.create_task(repository.load("echo"))
            await until(lambda: repository.get("echo", "1") is not old)
            new = repository.get("echo", "1")
            assert await ask(new, 3.0).values() == [3.0]
            assert running.outcomes == []
            with pytest.raises(VersionNotReady, match="replaced by a reload"):
                ask(old, 4.0)
            assert not reload.done()
            shelf.gate.open()
            await asyncio.wait_for(reload, HANG_S)
            assert [await running.values(), await queued.values()] == [[1.0], [2.0]]
            assert shelf.fakes[0].is_closed
            assert states(repository) == [("1", "READY", "")]

    asyncio.run(scenario())


def test_a_reload_that_fails_leaves_the_old_copy_serving_and_says_why(shelf: Shelf) -> None:
    path = shelf.add_onnx("digits", "1")

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            served = repository.get("digits", "1")
            intact = path.read_bytes()
            path.write_bytes(intact[: len(intact) // 2])
            await repository.load("digits")
            ((version, state, reason),) = states(repository)
            assert (version, state) == ("1", "READY")
            assert reason.startswith("the last reload failed: model.onnx does not load")
            assert repository.get("digits", "1") is served
            assert await ask(served, 6.0).values() == [6.0]
            path.write_bytes(intact)
            await repository.load("digits")
            assert states(repository) == [("1", "READY", "")]

    asyncio.run(scenario())


def test_a_configuration_that_breaks_leaves_every_version_serving_and_says_why(
    shelf: Shelf,
) -> None:
    shelf.add_fake("echo", "1")
    shelf.add_fake("echo", "2")

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            shelf.broken["echo"] = "config.pbtxt line 3: no such field"
            await repository.load("echo")
            why = "the last reload failed: config.pbtxt line 3: no such field"
            assert states(repository) == [("1", "READY", why), ("2", "READY", why)]
            assert await ask(repository.highest_ready("echo"), 1.0).values() == [1.0]
            shelf.broken.clear()
            await repository.load("echo")
            assert [reason for _, _, reason in states(repository)] == ["", ""]

    asyncio.run(scenario())


def test_an_unload_waits_for_the_queue_and_refuses_what_comes(shelf: Shelf) -> None:
    shelf.add_fake("echo", "1", latency_ms=1, max_batch_size=1)

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            served = repository.get("echo", "1")
            replies = [ask(served, float(n)) for n in range(3)]
            await shelf.gate.entered()
            unload = asyncio.create_task(repository.unload("echo"))
            await until_not_ready(repository)
            assert states(repository) == [("1", "UNLOADING", "unloaded")]
            with pytest.raises(VersionNotReady, match="is not ready: unloaded"):
                ask(served, 9.0)
            assert not unload.done()
            assert not shelf.fakes[0].is_closed
            shelf.gate.open()
            await asyncio.wait_for(unload, HANG_S)
            assert [await reply.values() for reply in replies] == [[0.0], [1.0], [2.0]]
            assert states(repository) == [("1", "UNAVAILABLE", "unloaded")]
            assert shelf.fakes[0].is_closed

    asyncio.run(scenario())


def test_what_was_unloaded_or_broken_can_be_loaded_again(shelf: Shelf) -> None:
    shelf.add_fake("echo", "1")
    shelf.add_fake("echo", "2").write_text("{")

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            await repository.unload("echo")
            assert [state for _, state, _ in states(repository)] == ["UNAVAILABLE"] * 2
            shelf.add_fake("echo", "2")
            await repository.load("echo")
            assert states(repository) == [("1", "READY", ""), ("2", "READY", "")]
            assert await ask(repository.highest_ready("echo"), 1.0).values() == [1.0]

    asyncio.run(scenario())


def test_a_version_that_is_no_longer_on_disk_is_drained_and_forgotten(shelf: Shelf) -> None:
    shelf.add_fake("echo", "1", latency_ms=1)
    shelf.add_fake("echo", "2")

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            running = ask(repository.get("echo", "1"), 1.0)
            await shelf.gate.entered()
            rmtree(shelf.root / "echo" / "1")
            reload = asyncio.create_task(repository.load("echo"))
            await until(lambda: len(repository.versions()) == 1)
            with pytest.raises(UnknownModel):
                repository.get("echo", "1")
            assert not reload.done()
            shelf.gate.open()
            await asyncio.wait_for(reload, HANG_S)
            assert await running.values() == [1.0]
            assert shelf.fakes[0].is_closed

    asyncio.run(scenario())


def test_a_version_that_is_no_longer_selected_is_retired_unless_it_is_pinned(
    shelf: Shelf,
) -> None:
    shelf.add_fake("echo", "1")
    shelf.configure("echo", versions=VersionPolicy(latest=1))

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            shelf.add_fake("echo", "2")
            await repository.load("echo", ["1"])
            assert [version for version, _, _ in states(repository)] == ["1", "2"]
            await repository.load("echo")
            assert [version for version, _, _ in states(repository)] == ["2"]

    asyncio.run(scenario())


def test_a_model_that_appears_on_disk_is_loaded_on_request(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            with pytest.raises(UnknownModel, match="has no such folder"):
                await repository.load("echo")
            assert not repository.has_model("echo")
            shelf.add_fake("echo", "1")
            await repository.load("echo")
            assert await ask(repository.get("echo", "1"), 1.0).values() == [1.0]

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["..", ".", "", "../outside", "echo/1", ".hidden"])
def test_only_the_name_of_a_model_folder_can_be_loaded(tmp_path: Path, name: str) -> None:
    shelf = Shelf(tmp_path / "root")
    shelf.add_fake("echo", "1")
    shelf.add_fake(".hidden", "1")
    Shelf(tmp_path).add_fake("outside", "1")

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            with pytest.raises(UnknownModel):
                await repository.load(name)
            with pytest.raises(UnknownModel):
                await repository.unload(name)

    asyncio.run(scenario())


def test_loads_of_one_model_run_one_after_the_other(shelf: Shelf) -> None:
    shelf.add_fake("echo", "1")

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            await asyncio.gather(*(repository.load("echo") for _ in range(4)))
            assert states(repository) == [("1", "READY", "")]
            assert [engine.is_closed for engine in shelf.fakes] == [True] * 4 + [False]
            assert await ask(repository.get("echo", "1"), 1.0).values() == [1.0]

    asyncio.run(scenario())


def test_a_load_whose_caller_goes_away_is_carried_to_its_end(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            shelf.add_fake("echo", "1")
            shelf.may_load.clear()
            load = asyncio.create_task(repository.load("echo"))
            await asyncio.to_thread(shelf.is_loading.wait)
            load.cancel()
            with pytest.raises(asyncio.CancelledError):
                await load
            assert states(repository) == [("1", "LOADING", "")]
            shelf.may_load.set()
            await until(lambda: states(repository) == [("1", "READY", "")])
            assert await ask(repository.get("echo", "1"), 1.0).values() == [1.0]

    asyncio.run(scenario())


def test_closing_answers_what_was_accepted_and_waits_for_a_load_under_way(shelf: Shelf) -> None:
    shelf.add_fake("echo", "1", latency_ms=1)

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            running = ask(repository.get("echo", "1"), 1.0)
            await shelf.gate.entered()
            shelf.add_fake("late", "1")
            shelf.may_load.clear()
            shelf.is_loading.clear()
            load = asyncio.create_task(repository.load("late"))
            await asyncio.to_thread(shelf.is_loading.wait)
            close = asyncio.create_task(repository.close())
            await until_not_ready(repository)
            shelf.gate.open()
            assert await running.values() == [1.0]
            assert not close.done()
            shelf.may_load.set()
            await asyncio.wait_for(asyncio.gather(load, close), HANG_S)
            assert all(engine.is_closed for engine in shelf.fakes)
            assert {e.reason for e in repository.index()} == {"shut down"}

    asyncio.run(scenario())
