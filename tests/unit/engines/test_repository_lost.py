"""A version whose devices have all failed: what its row says, and what can be done with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from engines import fake, loading, revival
from engines.base import Engine, EngineConfig
from engines.errors import DeviceUnavailable, InstanceFailed, ModelLoadError, VersionNotReady
from engines.fake import FakeEngine
from engines.repository import Repository
from engines.served import ServedVersion
from tests.support.batching import HANG_S, until
from tests.support.repositories import FAKE_FILE, Shelf, ask, open_repository

FATAL = 13.0
WHY = "cpu failed: scripted death; it is being loaded again"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """Return a repository of a model that may die, beside one that does not."""
    monkeypatch.setattr(loading, "revive", partial(revival.revive, first_delay_s=0.001))
    found = Shelf(tmp_path)
    found.add_fake("mortal", "1", die_on=FATAL)
    found.add_fake("echo", "1")
    return found


def rows(repository: Repository, model: str = "mortal") -> list[tuple[str, str, str]]:
    return [(r.version, r.state.value, r.reason) for r in repository.index() if r.model == model]


def failed_attempts(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return why attempts to load it again came to nothing."""
    return [vars(r)["reason"] for r in caplog.records if r.name == revival.logger.name]


async def kill(shelf: Shelf, repository: Repository, version: str = "1") -> ServedVersion:
    """Let the device fail; the next loads wait for `shelf.may_load`."""
    shelf.may_load.clear()
    served = repository.get("mortal", version)
    assert isinstance(await ask(served, FATAL).error(), InstanceFailed)
    return served


def test_the_index_says_that_it_is_loaded_again_and_why_and_then_that_it_is_ready(
    shelf: Shelf,
) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            served = await kill(shelf, repository)
            assert rows(repository) == [("1", "LOADING", WHY)]
            assert not served.is_ready
            assert repository.ready_versions("mortal") == []
            with pytest.raises(VersionNotReady, match=WHY):
                ask(served, 1.0)
            with pytest.raises(VersionNotReady):
                repository.highest_ready("mortal")
            assert await ask(repository.get("echo", "1"), 2.0).values() == [2.0]
            shelf.may_load.set()
            await until(lambda: served.is_ready)
            assert rows(repository) == [("1", "READY", "")]
            assert repository.get("mortal", "1") is served
            assert await ask(served, 3.0).values() == [3.0]

    asyncio.run(scenario())


def test_with_an_instance_left_the_version_stays_ready(shelf: Shelf) -> None:
    shelf.configure("mortal", instances=2)

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            served = await kill(shelf, repository)
            assert rows(repository) == [("1", "READY", "")]
            assert served.batcher.statistics().lost_instances == 1
            assert await ask(served, 1.0).values() == [1.0]
            shelf.may_load.set()
            await until(lambda: not served.batcher.statistics().lost_instances)
            assert len([engine for engine in shelf.fakes if not engine.is_closed]) == 3

    asyncio.run(scenario())


def test_attempts_go_on_until_one_comes_up(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            served = await kill(shelf, repository)
            path = shelf.root / "mortal" / "1" / FAKE_FILE
            script = path.read_text()
            path.write_text("{")
            shelf.may_load.set()
            await until(lambda: len(failed_attempts(caplog)) >= 3)
            assert rows(repository) == [("1", "LOADING", WHY)]
            path.write_text(script)
            await until(lambda: served.is_ready)

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert "does not load" in failed_attempts(caplog)[0]


def test_another_file_is_not_served_under_the_name_of_the_lost_one(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            served = await kill(shelf, repository)
            shelf.add_fake("mortal", "1", die_on=FATAL, max_batch_size=3)
            shelf.may_load.set()
            await until(lambda: len(failed_attempts(caplog)) >= 2)
            assert not served.is_ready
            mortal = [engine for engine in shelf.fakes if engine.script.die_on]
            await until(lambda: all(engine.is_closed for engine in mortal))
            await repository.load("mortal")  # which is what serves a new file
            renewed = repository.get("mortal", "1")
            assert renewed is not served
            assert renewed.metadata.max_batch_size == 3
            assert rows(repository) == [("1", "READY", "")]

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert failed_attempts(caplog)[0] == "1/model.json is not what was loaded"


def test_a_reload_takes_over_and_the_lost_copy_is_closed(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            lost = await kill(shelf, repository)
            shelf.may_load.set()
            await asyncio.wait_for(repository.load("mortal"), HANG_S)
            served = repository.get("mortal", "1")
            assert await ask(served, 1.0).values() == [1.0]
            assert lost.is_closed or lost is served  # the revival may have been first
            await until(lambda: sum(not engine.is_closed for engine in shelf.fakes) == 2)

    asyncio.run(scenario())


def test_a_reload_that_fails_leaves_the_lost_copy_to_come_back(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            lost = await kill(shelf, repository)
            path = shelf.root / "mortal" / "1" / FAKE_FILE
            script = path.read_text()
            path.write_text("{")
            shelf.may_load.set()
            await asyncio.wait_for(repository.load("mortal"), HANG_S)
            assert rows(repository) == [("1", "LOADING", WHY)]
            path.write_text(script)
            await until(lambda: lost.is_ready)
            assert repository.get("mortal", "1") is lost

    asyncio.run(scenario())


@pytest.mark.parametrize("is_released", [False, True])
def test_a_lost_version_can_be_unloaded_and_released(shelf: Shelf, is_released: bool) -> None:
    shelf.add_fake("mortal", "2", die_on=FATAL)

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            lost = await kill(shelf, repository, "2")
            await until(shelf.is_loading.is_set)
            if is_released:
                known = repository._models["mortal"]
                known.selected.discard("2")
                assert await repository.release({}) == [("mortal", "2")]
            else:
                await asyncio.wait_for(repository.unload("mortal"), HANG_S)
                assert rows(repository)[1] == ("2", "UNAVAILABLE", "unloaded")
            await until(lambda: lost.is_closed)
            shelf.may_load.set()
            await until(lambda: all(e.is_closed for e in shelf.fakes[3:]))

    asyncio.run(scenario())


def test_a_version_that_leaves_the_disk_while_it_is_lost_is_closed(shelf: Shelf) -> None:
    shelf.add_fake("mortal", "2")

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            lost = await kill(shelf, repository)
            (shelf.root / "mortal" / "1").rename(shelf.root / "elsewhere")
            shelf.may_load.set()
            await asyncio.wait_for(repository.load("mortal"), HANG_S)
            assert lost.is_closed
            assert [version for version, *_ in rows(repository)] == ["2"]

    asyncio.run(scenario())


def test_closing_the_repository_does_not_wait_for_a_lost_version(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            await kill(shelf, repository)
            await until(shelf.is_loading.is_set)
            await asyncio.wait_for(repository.close(), HANG_S)
            assert rows(repository) == [("1", "UNAVAILABLE", "shut down")]
            shelf.may_load.set()
            await until(lambda: all(engine.is_closed for engine in shelf.fakes))

    asyncio.run(scenario())


def test_a_private_copy_comes_back_too(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            copy = await repository.load_copy("mortal", "1")
            shelf.may_load.clear()
            assert isinstance(await ask(copy, FATAL).error(), InstanceFailed)
            assert not copy.is_ready
            assert rows(repository) == [("1", "READY", "")]
            shelf.may_load.set()
            await until(lambda: copy.is_ready)
            assert await ask(copy, 1.0).values() == [1.0]

    asyncio.run(scenario())


def test_an_instance_that_chose_its_device_comes_back_on_that_device_or_not_at_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "revive", partial(revival.revive, first_delay_s=0.001))
    shelf = Shelf(tmp_path)
    shelf.add_fake("mortal", "1", die_on=FATAL)
    shelf.configure("mortal", engine=EngineConfig(device="auto"))
    is_gpu_there = [True]
    asked: list[str] = []

    def load(path: Path, config: EngineConfig) -> Engine:
        asked.append(config.device)
        if config.device == "cuda:0" and not is_gpu_there[0]:
            raise DeviceUnavailable("cuda:0: there is no GPU")
        engine = shelf_load(path, replace(config, device="cpu"))
        assert isinstance(engine, FakeEngine)
        device = "cuda:0" if is_gpu_there[0] else "cpu"
        engine._metadata = replace(engine.metadata, device=device)
        return engine

    shelf_load: Callable[[Path, EngineConfig], Engine] = shelf.load_fake
    monkeypatch.setattr(shelf, "load_fake", load)

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            served = repository.get("mortal", "1")
            is_gpu_there[0] = False
            assert isinstance(await ask(served, FATAL).error(), InstanceFailed)
            await until(lambda: len(failed_attempts(caplog)) >= 2)
            assert not served.is_ready
            is_gpu_there[0] = True
            await until(lambda: served.is_ready)
            assert served.metadata.device == "cuda:0"

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert asked[0] == "auto"
    assert set(asked[1:]) == {"cuda:0"}


def test_a_device_that_fails_in_the_warm_up_is_a_load_error_whatever_the_shapes(
    tmp_path: Path,
) -> None:
    shelf = Shelf(tmp_path)
    spec = {"datatype": "FP32", "shape": [-1, -1]}
    shelf.add_fake(
        "mortal",
        "1",
        inputs=[{"name": "x", **spec}],
        outputs=[{"name": "y", **spec}],
        die_on=0.0,
    )

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            ((_, state, reason),) = rows(repository)
            assert state == "UNAVAILABLE"
            assert reason == "warm-up with 64 rows failed: cpu failed: scripted death"
            with pytest.raises(ModelLoadError):
                await repository.ensure("mortal", "1")

    asyncio.run(scenario())
    assert fake.load(tmp_path / "mortal" / "1" / FAKE_FILE, EngineConfig()).metadata.device == "cpu"
