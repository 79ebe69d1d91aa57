"""Private copies of a version: nobody finds them, and they end with whoever asked for them."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from engines.errors import InstanceFailed, ModelLoadError, VersionNotReady
from tests.support.batching import HANG_S, until
from tests.support.repositories import Shelf, ask, open_repository


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    found = Shelf(tmp_path)
    found.add_fake("echo", "1")
    found.configure("echo", instances=2)
    return found


def test_a_copy_has_one_instance_and_a_queue_of_its_own_and_is_seen_by_nobody(
    shelf: Shelf,
) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            served, index = repository.get("echo", "1"), repository.index()
            copy = await repository.load_copy("echo", "1")
            assert copy.is_ready
            assert shelf.fakes[-1].batches_run > 0  # its warm-up
            assert copy.batcher.statistics().instances == 1
            assert repository.index() == index
            assert repository.versions() == [served]
            assert repository.ready_versions("echo") == [served]
            assert repository.get("echo", "1") is served
            assert await ask(copy, 4.0).values() == [4.0]
            assert shelf.reports == []
            assert served.batcher.statistics().accepted == 0
            await copy.close("no shadow any more")
            assert [engine.is_closed for engine in shelf.fakes] == [False, False, True]
            with pytest.raises(VersionNotReady, match="no shadow any more"):
                ask(copy, 4.0)
            assert await ask(served, 4.0).values() == [4.0]

    asyncio.run(scenario())


def test_the_threads_of_a_copy_are_told_from_those_of_its_version(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            copy = await repository.load_copy("echo", "1")
            names = {thread.name for thread in threading.enumerate()}
            assert {"sluice-echo/1#0", "sluice-echo/1#1", "sluice-echo/1#copy0"} <= names
            await copy.close("done")

    asyncio.run(scenario())


def test_a_copy_of_a_model_that_nobody_serves_makes_it_known_to_nobody(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            shelf.add_fake("late", "7")
            copy = await repository.load_copy("late", "7")
            assert (copy.model, copy.version) == ("late", "7")
            assert not repository.has_model("late")

    asyncio.run(scenario())


def test_copies_live_through_reloads_and_unloads_of_their_model(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            copy = await repository.load_copy("echo", "1")
            await repository.load("echo")
            await repository.unload("echo")
            assert await repository.release({}) == []
            assert await ask(copy, 1.0).values() == [1.0]

    asyncio.run(scenario())


def test_copies_are_closed_with_the_repository_and_twice_is_once(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            copies = [await repository.load_copy("echo", "1") for _ in range(3)]
            await copies[0].close("done")
            await asyncio.gather(repository.close(), copies[1].close("done"))
            await copies[2].close("done")
            assert [copy.reason for copy in copies] == ["done", "shut down", "shut down"]
            assert all(engine.is_closed for engine in shelf.fakes)

    asyncio.run(scenario())


def test_a_copy_that_does_not_come_up_says_why(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            index = repository.index()
            script = shelf.add_fake("echo", "2")
            script.write_text("{")
            with pytest.raises(ModelLoadError, match=r"model\.json does not load"):
                await repository.load_copy("echo", "2")
            shelf.broken["echo"] = "config.pbtxt line 3: no such field"
            with pytest.raises(ModelLoadError, match="no such field"):
                await repository.load_copy("echo", "1")
            assert repository.index() == index

    asyncio.run(scenario())


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_copy_whose_caller_goes_away_is_closed_when_it_is_loaded(
    shelf: Shelf, is_broken: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            if is_broken:
                shelf.add_fake("echo", "1").write_text("{")
            shelf.may_load.clear()
            shelf.is_loading.clear()
            call = asyncio.create_task(repository.load_copy("echo", "1"))
            await asyncio.to_thread(shelf.is_loading.wait, HANG_S)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            shelf.may_load.set()
            if is_broken:
                await until(lambda: bool(caplog.records))
            else:
                await until(lambda: len(shelf.fakes) == 3 and shelf.fakes[-1].is_closed)
            assert repository.get("echo", "1").is_ready

    asyncio.run(scenario())
    assert "asyncio" not in {record.name for record in caplog.records}


def test_a_copy_that_is_ready_too_late_is_closed_with_the_repository(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            shelf.may_load.clear()
            shelf.is_loading.clear()
            call = asyncio.create_task(repository.load_copy("echo", "1"))
            await asyncio.to_thread(shelf.is_loading.wait, HANG_S)
            close = asyncio.create_task(repository.close())
            await until(lambda: not repository.get("echo", "1").is_ready)
            assert not close.done()
            shelf.may_load.set()
            await asyncio.wait_for(close, HANG_S)
            with pytest.raises(ModelLoadError, match="the repository is closed"):
                await call
            assert len(shelf.fakes) == 3
            assert all(engine.is_closed for engine in shelf.fakes)

    asyncio.run(scenario())


def test_a_copy_that_raises_fails_its_own_requests_and_no_other(shelf: Shelf) -> None:
    shelf.add_fake("echo", "2", max_batch_size=1, fail_after=1)

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            copy = await repository.load_copy("echo", "2")
            assert isinstance(await ask(copy, 1.0).error(), InstanceFailed)
            assert await ask(repository.get("echo", "1"), 1.0).values() == [1.0]

    asyncio.run(scenario())
