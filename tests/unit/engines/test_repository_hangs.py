"""Engines that never return: they hold up who waits for their own end, and nothing else."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

import pytest

from engines.repository import Repository
from tests.support.batching import HANG_S, until
from tests.support.repositories import Shelf, ask, open_repository

HANGS: Final = {"max_batch_size": 1, "hang_after": 1}


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    found = Shelf(tmp_path)
    found.add_fake("echo", "1")
    return found


async def hang_up(shelf: Shelf, repository: Repository, version: str) -> None:
    """Bring a version up and have one batch of it hang."""
    shelf.add_fake("echo", version, **HANGS)
    served = await repository.ensure("echo", version)
    ask(served, 1.0)
    engine = shelf.fakes[-1]
    await until(lambda: engine.batches_run > 1)


def test_a_copy_that_hangs_keeps_its_closing_waiting_only_as_long_as_the_caller_likes(
    shelf: Shelf,
) -> None:
    shelf.add_fake("echo", "2", **HANGS)

    async def scenario() -> None:
        async with open_repository(shelf, echo=["1"]) as repository:
            copy = await repository.load_copy("echo", "2")
            hung = shelf.fakes[-1]
            reply = ask(copy, 1.0)
            await until(lambda: hung.batches_run > 1)
            live = repository.get("echo", "1")
            for close in (copy.close("left behind"), repository.close()):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(close, 0.05)
            assert live.is_closed  # what can be closed is, in spite of the other
            assert copy.state.value == "UNLOADING"
            assert reply.outcomes == []
            shelf.end_hangs()
            await until(lambda: copy.is_closed)

    asyncio.run(scenario())


def test_a_version_that_hangs_while_it_drains_holds_up_no_change_of_its_model(
    shelf: Shelf,
) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            await hang_up(shelf, repository, "2")
            assert await repository.release({"echo": []}) == []  # the policy selects it
            shelf.add_fake("echo", "2")
            reload = asyncio.create_task(repository.load("echo"))
            old = repository.get("echo", "2")
            await until(lambda: repository.get("echo", "2") is not old)
            assert await ask(repository.get("echo", "2"), 5.0).values() == [5.0]
            await until(lambda: old.state.value == "UNLOADING")
            shelf.add_fake("echo", "3")
            await asyncio.wait_for(repository.ensure("echo", "3"), HANG_S)
            await asyncio.wait_for(repository.load("echo"), HANG_S)
            await asyncio.wait_for(repository.unload("echo"), HANG_S)
            await asyncio.wait_for(repository.ensure("echo", "2"), HANG_S)
            assert not reload.done()
            assert not old.is_closed
            shelf.end_hangs()
            await asyncio.wait_for(reload, HANG_S)
            assert old.is_closed

    asyncio.run(scenario())


def test_loads_that_hang_give_their_places_up_to_others_in_the_end(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.loading.PATIENCE_S", 0.05)
    for version in ("2", "3"):
        shelf.add_fake("stuck", version, hang_on=0)  # already in its warm-up

    async def scenario() -> None:
        repository = Repository(
            root=shelf.root, read_spec=shelf.read_spec, loaders={"fake": shelf.load_fake}
        )
        start = asyncio.create_task(repository.load("stuck"))
        await until(lambda: len(shelf.fakes) == 2)
        served = await asyncio.wait_for(repository.ensure("echo", "1"), HANG_S)
        assert await ask(served, 1.0).values() == [1.0]
        assert not start.done()
        shelf.end_hangs()
        await asyncio.wait_for(start, HANG_S)
        await asyncio.wait_for(repository.close(), HANG_S)

    asyncio.run(scenario())


EXITS: Final = """
import asyncio, sys
from pathlib import Path
from engines import fake
from engines.repository import Repository
from tests.support.batching import until
from tests.support.repositories import Shelf, ask

async def main(shelf):
    repository = Repository(root=shelf.root, read_spec=shelf.read_spec, loaders={"fake": fake.load})
    served = await repository.ensure("batch", "1")
    copy = await repository.load_copy("batch", "1")
    for hung in (served, copy):
        ask(hung, 1.0)
        await until(lambda: hung.batcher.statistics().busy_instances == 1)
    loads = [asyncio.create_task(repository.ensure("load", v)) for v in ("1", "2")]
    await until(lambda: [e.state.value for e in repository.index()].count("LOADING") == 1)
    try:
        await asyncio.wait_for(repository.close(), 0.05)
    except TimeoutError:
        print("left behind", flush=True)

asyncio.run(main(Shelf(Path(sys.argv[1]))))
"""


def test_engines_that_hang_in_batches_and_in_loads_do_not_keep_the_process_from_exiting(
    tmp_path: Path,
) -> None:
    shelf = Shelf(tmp_path)
    shelf.add_fake("batch", "1", **HANGS)
    for version in ("1", "2"):
        shelf.add_fake("load", version, hang_on=0)
    ran = subprocess.run(
        [sys.executable, "-c", EXITS, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "left behind\n", "")


def test_every_thread_of_a_repository_is_a_daemon(shelf: Shelf) -> None:
    async def scenario() -> None:
        before = set(threading.enumerate())
        async with open_repository(shelf) as repository:
            shelf.may_load.clear()
            shelf.is_loading.clear()
            load = asyncio.create_task(repository.load("echo"))
            while not shelf.is_loading.is_set():  # noqa: ASYNC110 - a thread sets it
                await asyncio.sleep(0.001)
            started = set(threading.enumerate()) - before
            names = {thread.name.partition("/")[0] for thread in started}
            assert {"sluice-echo", "sluice-load-echo"} <= names
            assert all(thread.daemon for thread in started)
            shelf.may_load.set()
            await load

    asyncio.run(scenario())
