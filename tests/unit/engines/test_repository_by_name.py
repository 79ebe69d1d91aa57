"""Versions that are asked for by name, whatever the version policy says, and given back."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from shutil import rmtree

import pytest

from engines.base import VersionPolicy
from engines.errors import ModelLoadError, UnknownModel
from engines.repository import Repository
from tests.support.batching import HANG_S, until
from tests.support.repositories import Shelf, ask, open_repository


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """Three versions of a fake, of which the policy selects the highest."""
    found = Shelf(tmp_path)
    for version in ("1", "2", "3"):
        found.add_fake("echo", version)
    found.configure("echo", versions=VersionPolicy(latest=1))
    return found


def states(repository: Repository, model: str = "echo") -> list[tuple[str, str]]:
    return [(e.version, e.state.value) for e in repository.index() if e.model == model]


def ready(repository: Repository) -> list[str]:
    return [served.version for served in repository.ready_versions("echo")]


async def loading(shelf: Shelf) -> None:
    """Return when a load is under way that waits for `may_load`."""
    assert await asyncio.to_thread(shelf.is_loading.wait, HANG_S)


def test_a_version_that_the_policy_leaves_out_is_loaded_beside_the_others(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            others = repository.get("echo", "3")
            served = await repository.ensure("echo", "1")
            assert served is repository.get("echo", "1")
            assert shelf.fakes[-1].batches_run > 0  # its warm-up
            assert await ask(served, 1.0).values() == [1.0]
            assert repository.get("echo", "3") is others
            assert states(repository) == [("1", "READY"), ("3", "READY")]
            assert len(shelf.fakes) == 2
            assert [report.rows for _, report in shelf.reports] == [1]

    asyncio.run(scenario())


def test_a_version_that_is_ready_is_returned_as_it_is(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            assert await repository.ensure("echo", "3") is repository.get("echo", "3")
            assert await repository.ensure("echo", "1") is await repository.ensure("echo", "1")
            assert len(shelf.fakes) == 2

    asyncio.run(scenario())


def test_calls_for_one_version_at_the_same_time_share_one_load(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            shelf.may_load.clear()
            shelf.is_loading.clear()
            calls = [asyncio.create_task(repository.ensure("echo", "1")) for _ in range(5)]
            await loading(shelf)
            assert states(repository) == [("1", "LOADING"), ("3", "READY")]
            calls.append(asyncio.create_task(repository.ensure("echo", "1")))
            shelf.may_load.set()
            found = await asyncio.gather(*calls)
            assert set(found) == {repository.get("echo", "1")}
            assert len(shelf.fakes) == 2

    asyncio.run(scenario())


def test_calls_that_share_a_load_share_its_failure_and_the_next_call_tries_again(
    shelf: Shelf,
) -> None:
    script = shelf.add_fake("echo", "1", fail_on=0, max_batch_size=1)

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            outcomes = await asyncio.gather(
                *(repository.ensure("echo", "1") for _ in range(3)), return_exceptions=True
            )
            assert {str(outcome) for outcome in outcomes} == {
                "warm-up with 1 rows failed: scripted failure"
            }
            assert len(shelf.fakes) == 2
            script.unlink()
            shelf.add_fake("echo", "1")
            assert (await repository.ensure("echo", "1")).is_ready

    asyncio.run(scenario())


def test_a_version_that_a_load_is_bringing_up_is_waited_for(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            await repository.unload("echo")
            shelf.may_load.clear()
            shelf.is_loading.clear()
            load = asyncio.create_task(repository.load("echo"))
            await loading(shelf)
            call = asyncio.create_task(repository.ensure("echo", "3"))
            shelf.may_load.set()
            await load
            assert await call is repository.get("echo", "3")
            assert len(shelf.fakes) == 2

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("echo", "4"),
        ("echo", "01"),
        ("echo", ""),
        ("echo", ".."),
        ("echo", "\u0661"),
        ("digits", "1"),
        ("", "1"),
        (".", "1"),
        ("../root/echo", "1"),
        ("echo/.", "1"),
        (".hidden", "1"),
        ("n\0l", "1"),
        ("x" * 300, "1"),
    ],
)
def test_only_a_version_folder_of_the_repository_can_be_asked_for(
    tmp_path: Path, model: str, version: str
) -> None:
    shelf = Shelf(tmp_path / "root")
    shelf.add_fake("echo", "1")
    shelf.add_fake(".hidden", "1")

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            before = repository.index()
            assert not repository.on_disk(model, version)
            for call in (repository.ensure, repository.load_copy):
                with pytest.raises(UnknownModel, match="has no such folder"):
                    await call(model, version)
            assert repository.index() == before
            assert repository.on_disk("echo", "1")

    asyncio.run(scenario())


def test_a_model_that_appeared_after_the_start_is_known_by_the_version_asked_for(
    shelf: Shelf,
) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            for version in ("1", "2"):
                shelf.add_fake("late", version)
            await repository.ensure("late", "1")
            assert repository.has_model("late")
            assert states(repository, "late") == [("1", "READY")]

    asyncio.run(scenario())


def test_a_version_that_does_not_come_up_leaves_its_reason_in_the_index(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.add_fake("echo", "2").write_text("{")

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            with pytest.raises(ModelLoadError, match=r"model\.json does not load") as refused:
                await repository.ensure("echo", "2")
            broken, good = repository.index()
            assert (broken.version, broken.state.value) == ("2", "UNAVAILABLE")
            assert broken.reason == str(refused.value)
            assert (good.version, good.state.value, good.reason) == ("3", "READY", "")
            assert not repository.get("echo", "2").is_ready

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert [record.getMessage() for record in caplog.records] == ["version unavailable"]


def test_a_configuration_that_cannot_be_read_is_a_reason_too_and_touches_no_other_version(
    shelf: Shelf,
) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            shelf.broken["echo"] = "config.pbtxt line 3: no such field"
            with pytest.raises(ModelLoadError, match="no such field"):
                await repository.ensure("echo", "1")
            rows = [(e.version, e.state.value, e.reason) for e in repository.index()]
            assert rows == [("1", "UNAVAILABLE", shelf.broken["echo"]), ("3", "READY", "")]
            with pytest.raises(UnknownModel, match="no such field"):
                repository.get("echo", "1")
            shelf.broken.clear()
            await repository.ensure("echo", "1")
            assert states(repository) == [("1", "READY"), ("3", "READY")]
            await repository.release({})
            assert states(repository) == [("3", "READY")]

    asyncio.run(scenario())


def test_the_reason_of_a_version_that_nobody_asks_for_any_more_is_forgotten_by_the_next_load(
    shelf: Shelf,
) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            shelf.broken["echo"] = "config.pbtxt line 3: no such field"
            with pytest.raises(ModelLoadError, match="no such field"):
                await repository.ensure("echo", "1")
            await repository.release({})
            assert states(repository) == [("1", "UNAVAILABLE"), ("3", "READY")]
            shelf.broken.clear()
            await repository.load("echo")
            assert states(repository) == [("3", "READY")]

    asyncio.run(scenario())


def test_a_call_whose_caller_goes_away_is_carried_to_its_end(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            shelf.may_load.clear()
            shelf.is_loading.clear()
            call = asyncio.create_task(repository.ensure("echo", "1"))
            await loading(shelf)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert states(repository)[0] == ("1", "LOADING")
            shelf.may_load.set()
            await until(lambda: states(repository)[0] == ("1", "READY"))

    asyncio.run(scenario())


def test_a_failed_load_whose_callers_all_went_away_is_no_forgotten_exception(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.add_fake("echo", "1").write_text("{")

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            shelf.may_load.clear()
            shelf.is_loading.clear()
            call = asyncio.create_task(repository.ensure("echo", "1"))
            await loading(shelf)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            shelf.may_load.set()
            await until(lambda: states(repository)[0] == ("1", "UNAVAILABLE"))

    asyncio.run(scenario())
    assert "version unavailable" in {record.getMessage() for record in caplog.records}
    assert "asyncio" not in {record.name for record in caplog.records}


def test_loads_keep_what_was_asked_for_by_name_until_it_is_gone_from_disk(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            for version in ("1", "2"):
                await repository.ensure("echo", version)
            old = repository.get("echo", "1")
            await repository.load("echo")
            assert states(repository) == [("1", "READY"), ("2", "READY"), ("3", "READY")]
            assert repository.get("echo", "1") is not old
            rmtree(shelf.root / "echo" / "2")
            await repository.load("echo")
            assert states(repository) == [("1", "READY"), ("3", "READY")]
            shelf.add_fake("echo", "2")
            await repository.load("echo")
            assert states(repository) == [("1", "READY"), ("2", "READY"), ("3", "READY")]

    asyncio.run(scenario())


def test_what_a_load_passes_over_is_kept_if_it_is_asked_for_meanwhile(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf, echo=["1"]) as repository:
            served = repository.get("echo", "1")
            shelf.may_load.clear()
            shelf.is_loading.clear()
            load = asyncio.create_task(repository.load("echo"))
            await loading(shelf)
            assert await repository.ensure("echo", "1") is served
            shelf.may_load.set()
            await load
            assert repository.get("echo", "1") is served
            assert served.is_ready

    asyncio.run(scenario())


def test_an_unloaded_version_comes_back_when_it_is_asked_for(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            await repository.ensure("echo", "1")
            await repository.unload("echo")
            await repository.ensure("echo", "1")
            assert states(repository) == [("1", "READY"), ("3", "UNAVAILABLE")]

    asyncio.run(scenario())


def test_a_version_that_still_drains_gets_a_new_copy_beside_the_old_one(shelf: Shelf) -> None:
    shelf.add_fake("echo", "1", latency_ms=1)

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            old = await repository.ensure("echo", "1")
            running = ask(old, 1.0)
            await shelf.gate.entered()
            unload = asyncio.create_task(repository.unload("echo"))
            await until(lambda: states(repository)[0] == ("1", "UNLOADING"))
            shelf.add_fake("echo", "1")
            new = await repository.ensure("echo", "1")
            assert new is not old
            assert await ask(new, 2.0).values() == [2.0]
            assert not unload.done()
            shelf.gate.open()
            await asyncio.wait_for(unload, HANG_S)
            assert await running.values() == [1.0]
            assert old.is_closed
            assert repository.get("echo", "1") is new
            assert new.is_ready

    asyncio.run(scenario())


def test_a_release_closes_what_neither_the_policy_nor_its_caller_keeps(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            one = await repository.ensure("echo", "1")
            await repository.ensure("echo", "2")
            await repository.ensure("echo", "3")
            assert await repository.release({"echo": ["2"], "digits": ["1"]}) == [("echo", "1")]
            assert states(repository) == [("2", "READY"), ("3", "READY")]
            await until(lambda: one.is_closed)
            assert [engine.is_closed for engine in shelf.fakes] == [False, True, False]
            assert await repository.release({"echo": ["2"]}) == []
            assert await repository.release({}) == [("echo", "2")]
            assert ready(repository) == ["3"]

    asyncio.run(scenario())


def test_what_was_released_is_forgotten_by_the_next_load(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            await repository.ensure("echo", "3")
            await repository.release({})
            shelf.configure("echo", versions=VersionPolicy(specific=("2",)))
            await repository.load("echo")
            assert states(repository) == [("2", "READY")]

    asyncio.run(scenario())


def test_a_newer_folder_that_is_not_loaded_yet_costs_the_selected_version_nothing(
    shelf: Shelf,
) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            shelf.add_fake("echo", "4")
            assert await repository.release({}) == []
            assert ready(repository) == ["3"]
            await repository.ensure("echo", "4")
            assert await repository.release({}) == []
            assert ready(repository) == ["3", "4"]

    asyncio.run(scenario())


def test_a_released_version_answers_what_it_accepted_without_holding_the_caller(
    shelf: Shelf,
) -> None:
    shelf.add_fake("echo", "1", latency_ms=1)

    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            served = await repository.ensure("echo", "1")
            running = ask(served, 1.0)
            await shelf.gate.entered()
            assert await repository.release({}) == [("echo", "1")]
            assert running.outcomes == []
            shelf.gate.open()
            assert await running.values() == [1.0]
            await until(lambda: served.is_closed)

    asyncio.run(scenario())


def test_a_release_lets_be_what_is_asked_for_while_it_waits_and_what_is_being_loaded(
    shelf: Shelf,
) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            served = await repository.ensure("echo", "1")
            shelf.may_load.clear()
            shelf.is_loading.clear()
            other = asyncio.create_task(repository.ensure("echo", "2"))
            await loading(shelf)
            release = asyncio.create_task(repository.release({}))
            await asyncio.sleep(0)
            assert await repository.ensure("echo", "1") is served
            shelf.may_load.set()
            await other
            assert await release == []
            assert ready(repository) == ["1", "2", "3"]

    asyncio.run(scenario())


def test_a_closed_repository_loads_nothing_any_more(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            await repository.close()
            loaded = len(shelf.fakes)
            for call in (repository.ensure, repository.load_copy):
                with pytest.raises(ModelLoadError, match="the repository is closed"):
                    await call("echo", "1")
            await repository.load("echo")
            assert len(shelf.fakes) == loaded
            assert all(engine.is_closed for engine in shelf.fakes)

    asyncio.run(scenario())


def test_twenty_reloads_under_way_cost_no_request(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_repository(shelf) as repository:
            is_over = False
            answered = 0

            async def keep_asking(value: float) -> None:
                nonlocal answered
                while not is_over:
                    reply = ask(repository.get("echo", "3"), value)
                    assert await reply.values() == [value]
                    answered += 1

            askers = [asyncio.create_task(keep_asking(float(n))) for n in range(8)]
            for _ in range(20):
                await repository.load("echo")
                seen = answered
                await until(lambda seen=seen: answered > seen)  # type: ignore[misc]
            is_over = True
            await asyncio.gather(*askers)
            assert [engine.is_closed for engine in shelf.fakes] == [True] * 20 + [False]

    asyncio.run(scenario())
