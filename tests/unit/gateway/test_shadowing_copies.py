"""Shadows come, change and go: their copies, their counters, and what is in flight meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path

import pytest

from engines.base import BatchPolicy
from engines.errors import ModelLoadError
from engines.served import VersionState
from gateway.shadowing import ShadowDrop, Shadows
from tests.support.batching import HANG_S, until
from tests.support.repositories import Shelf, open_repository
from tests.support.shadows import (
    KEY,
    NAME,
    ROUTE,
    ROW_BYTES,
    Copies,
    KeptRecords,
    Scale,
    Stage,
    assert_exact,
    make_stage,
    mirrored,
    shadow,
)


def test_until_its_copy_is_loaded_a_shadow_drops_as_not_ready() -> None:
    async def scenario() -> None:
        copies, log = Copies(), KeptRecords()
        copies.may_load.clear()
        stage = Stage(Shadows(load_copy=copies.load, log=log), copies, log)
        stage.shadows.apply({KEY: shadow()})
        stage.offer(1.0)
        assert not stage.found().is_ready
        assert stage.found().reason == "it is being loaded"
        copies.may_load.set()
        await stage.ready()
        stage.offer(2.0)
        assert (await stage.idle()).sent == 1
        assert stage.drops() == {"not_ready": 1}
        assert stage.found().reason == ""
        await stage.shadows.close()
        await copies.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (ModelLoadError("3/model.onnx does not exist"), "3/model.onnx does not exist"),
        (OSError("disk on fire"), "it failed to load; the server's log has the details"),
    ],
)
def test_a_copy_that_does_not_load_says_why_and_is_tried_again_when_the_model_is_loaded(
    fault: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        copies, log = Copies(), KeptRecords()
        copies.fault = fault
        stage = Stage(Shadows(load_copy=copies.load, log=log), copies, log)
        stage.shadows.apply({KEY: shadow()})
        await until(lambda: stage.found().reason == reason)
        stage.offer(1.0)
        assert stage.drops() == {"not_ready": 1}
        copies.fault = None
        stage.shadows.reload("another")
        stage.shadows.apply({KEY: shadow()})
        await asyncio.sleep(0)
        assert copies.asked == [("mnist", "3")]
        stage.shadows.reload("mnist")
        await stage.ready()
        assert stage.found().reason == ""
        await stage.shadows.close()
        await copies.close()

    asyncio.run(scenario())
    (failure,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert failure.getMessage() == "shadow unavailable"
    assert failure.__dict__["version"] == "3"


def test_new_limits_apply_in_place() -> None:
    async def scenario() -> None:
        async with make_stage(shadow(queue_items=4), is_gated=True) as stage:
            for value in range(3):
                stage.offer(value)
            stage.shadows.apply({KEY: shadow(queue_items=2)})
            stage.offer(3.0)
            assert stage.found().in_flight == 3  # nothing is displaced
            assert stage.drops() == {"queue_full": 1}
            stage.copy.gate.open()
            assert (await stage.idle()).sent == 3
            assert len(stage.copies.loaded) == 1

    asyncio.run(scenario())


def test_a_removed_shadow_gives_up_what_is_in_flight_and_its_copy_closes() -> None:
    async def scenario() -> None:
        async with make_stage(is_gated=True) as stage:
            lane = stage.shadows._lanes[KEY]
            for value in range(4):
                stage.offer(value)
            await stage.copy.entered()
            stage.offer(4.0)
            stage.shadows.apply({})
            assert stage.shadows.statistics() == {}
            found = lane.statistics()
            assert_exact(found)
            assert (found.in_flight, found.held_bytes) == (0, 0)
            assert {k: n for k, n in found.dropped.items() if n} == {"shutdown": 5}
            stage.shadows.offer(mirrored(5.0), NAME, True)
            assert lane.statistics().eligible == 5
            assert not stage.copy.served.is_ready
            assert not stage.copy.served.is_closed
            stage.copy.gate.open()
            await until(lambda: stage.copy.served.is_closed)
            assert stage.copy.engine.rows_run == 4  # what was queued never reached the engine
            assert stage.log.records == []

    asyncio.run(scenario())


def test_a_removed_shadow_whose_engine_hangs_takes_nothing_with_it() -> None:
    async def scenario() -> None:
        async with make_stage(is_gated=True) as stage:
            stage.offer(0.0)
            await stage.copy.entered()
            stage.shadows.apply({})
            stage.shadows.apply({KEY: shadow()})
            await stage.ready(copies=2)
            assert stage.found().eligible == 0
            stage.copy.gate.open()
            stage.offer(1.0)
            assert (await stage.idle()).sent == 1
            assert stage.copies.loaded[0].served.state is VersionState.UNLOADING

    asyncio.run(scenario())


def test_another_version_is_a_new_shadow_with_counters_of_its_own() -> None:
    async def scenario() -> None:
        async with make_stage() as stage:
            stage.offer(1.0)
            await stage.idle()
            stage.shadows.apply({KEY: shadow("4")})
            assert (stage.found().eligible, stage.found().version) == (0, "4")
            await stage.ready(copies=2)
            stage.offer(2.0)
            await stage.idle()
            assert [record.origin.version for record in stage.log.records] == ["3", "4"]
            await until(lambda: stage.copies.loaded[0].served.is_closed)

    asyncio.run(scenario())


def test_the_shadows_of_a_route_are_counted_apart() -> None:
    async def scenario() -> None:
        async with make_stage() as stage:
            other = (ROUTE, "v4")
            stage.shadows.apply({KEY: shadow(), other: shadow("4", name="v4")})
            await until(lambda: stage.shadows.statistics()[other].is_ready)
            live = mirrored(1.0)
            stage.shadows.offer(live, NAME, True)
            stage.shadows.offer(live, "v4", True)
            stage.shadows.offer(mirrored(2.0), "v4", False)
            await until(lambda: len(stage.log.records) == 2)
            assert {record.origin.served for record in stage.log.records} == {NAME, "v4"}
            assert {record.parent_rid for record in stage.log.records} == {live.rid}
            assert [s.eligible for s in stage.shadows.statistics().values()] == [1, 2]

    asyncio.run(scenario())


def test_while_a_model_is_loaded_again_the_old_copy_serves_and_ends_what_it_has() -> None:
    async def scenario() -> None:
        async with make_stage(is_gated=True) as stage:
            old = stage.copy
            stage.copies.may_load.clear()
            stage.shadows.reload("mnist")
            stage.offer(0.0)
            await old.entered()
            stage.offer(1.0)
            stage.copies.may_load.set()
            await stage.ready(copies=2)
            await until(lambda: not old.served.is_ready)
            stage.offer(2.0)
            await stage.copy.entered()
            assert stage.found().in_flight == 3
            old.gate.open()
            await until(lambda: old.served.is_closed)
            assert [record.cid for record in stage.log.records] == ["0.0", "1.0"]
            await until(lambda: len(stage.shadows._lanes[KEY]._copies) == 1)
            stage.copy.gate.open()
            assert (await stage.idle()).sent == 3

    asyncio.run(scenario())


def test_a_copy_that_hangs_and_was_replaced_stays_charged() -> None:
    async def scenario() -> None:
        async with make_stage(shadow(deadline_ms=20), is_gated=True) as stage:
            old = stage.copy
            stage.offer(0.0)
            await old.entered()
            stage.shadows.reload("mnist")
            await stage.ready(copies=2)
            await stage.idle()
            assert stage.drops() == {"timeout": 1}
            assert stage.found().held_bytes == ROW_BYTES
            stage.copy.gate.open()
            stage.offer(1.0)
            assert (await stage.idle()).sent == 1
            assert stage.found().held_bytes == ROW_BYTES
            old.gate.open()
            await until(lambda: old.served.is_closed)
            await until(lambda: stage.found().held_bytes == 0)

    asyncio.run(scenario())


def test_a_reload_that_fails_leaves_the_old_copy_serving() -> None:
    async def scenario() -> None:
        async with make_stage() as stage:
            stage.copies.fault = ModelLoadError("the file is cut")
            stage.shadows.reload("mnist")
            await until(lambda: stage.found().reason == "the file is cut")
            assert stage.found().is_ready
            stage.offer(1.0)
            assert (await stage.idle()).sent == 1

    asyncio.run(scenario())


def test_a_model_that_changes_while_its_copy_loads_is_loaded_once_more() -> None:
    async def scenario() -> None:
        async with make_stage() as stage:
            stage.copies.may_load.clear()
            for _ in range(5):
                stage.shadows.reload("mnist")
                await asyncio.sleep(0)
            stage.copies.may_load.set()
            await stage.ready(copies=3)
            await until(lambda: stage.copies.loaded[1].served.is_closed)
            assert len(stage.copies.asked) == 3
            assert stage.copy.served.is_ready

    asyncio.run(scenario())


def test_a_copy_that_the_repository_has_closed_is_not_ready() -> None:
    async def scenario() -> None:
        async with make_stage() as stage:
            await stage.copy.served.close("shut down")
            stage.offer(1.0)
            assert stage.drops() == {"not_ready": 1}
            assert stage.found().held_bytes == 0

    asyncio.run(scenario())


def test_closing_with_a_full_queue_waits_for_nothing_though_the_engine_hangs() -> None:
    copies, log = Copies(policy=BatchPolicy(max_batch_size=4), is_gated=True), KeptRecords()
    stage = Stage(Shadows(load_copy=copies.load, log=log), copies, log)
    started_s = time.monotonic()

    async def scenario() -> None:
        stage.shadows.apply({KEY: shadow()})
        await stage.ready()
        for value in range(4):
            stage.offer(value)
        await stage.copy.entered()
        while stage.found().in_flight < 256:
            stage.offer(1.0)
        stage.offer(2.0)
        closing_s = time.monotonic()
        await stage.shadows.close()
        assert time.monotonic() - closing_s < 5
        found = stage.found()
        assert_exact(found)
        assert found.in_flight == found.held_bytes == 0
        assert stage.drops() == {"queue_full": 1, "shutdown": 256}
        stage.offer(3.0)
        assert stage.drops()["shutdown"] == 257
        await stage.shadows.close()
        stage.shadows.apply({KEY: shadow("4")})
        stage.shadows.reload("mnist")
        assert len(copies.asked) == 1

    asyncio.run(scenario())
    # The loop ends with a batch in the engine: its thread is a daemon and holds nobody up.
    assert time.monotonic() - started_s < 10
    assert log.records == []
    copies.last.gate.open()


def test_what_a_hung_engine_keeps_is_no_longer_charged_to_a_shadow_that_is_closed() -> None:
    async def scenario() -> None:
        async with make_stage(shadow(deadline_ms=10), is_gated=True) as stage:
            stage.offer(1.0)
            await stage.copy.entered()
            await stage.idle()
            assert stage.found().held_bytes == ROW_BYTES
            await stage.shadows.close()
            assert stage.found().held_bytes == 0
            assert not stage.found().is_ready
            assert stage.found().reason == "it is shut down"

    asyncio.run(scenario())


def test_closing_lets_the_inputs_go_but_for_the_batch_in_the_engine() -> None:
    async def scenario() -> None:
        async with make_stage(shadow(deadline_ms=40), is_gated=True) as stage:
            scale = Scale()
            for value in range(2):
                stage.send(scale.request(value))
            await stage.copy.entered()
            for _ in range(100):
                stage.send(scale.request())
            await stage.shadows.close()
            # The batcher's index of deadlines may refer to the cancelled ones until then.
            await until(lambda: scale.alive_bytes == 2 * ROW_BYTES)
            stage.copy.gate.open()
            await until(lambda: scale.alive_bytes == 0)

    asyncio.run(scenario())


def test_copies_of_a_real_repository_are_loaded_used_and_closed(tmp_path: Path) -> None:
    async def scenario() -> None:
        shelf = Shelf(tmp_path)
        shelf.add_onnx("mnist", "3")
        async with open_repository(shelf) as repository:
            log = KeptRecords()
            shadows = Shadows(load_copy=repository.load_copy, log=log)
            shadows.apply({KEY: shadow(), (ROUTE, "gone"): shadow("9", name="gone")})
            await until(lambda: shadows.statistics()[KEY].is_ready)
            await until(lambda: "'9'" in shadows.statistics()[ROUTE, "gone"].reason)
            for value in range(50):
                shadows.offer(mirrored(value), NAME, True)
            await until(lambda: shadows.statistics()[KEY].sent == 50)
            assert shelf.reports == []  # no live batch
            (record, *_) = log.records
            digest = repository.get("mnist", "3").metadata.artifact_sha256
            assert record.origin.artefact == bytes.fromhex(digest[:16])
            assert sorted(r.outputs[0].array().item() for r in log.records) == list(range(50))
            await repository.load("mnist")
            shadows.reload("mnist")
            await until(lambda: not shadows._loads)
            shadows.offer(mirrored(1.0), NAME, True)
            await until(lambda: shadows.statistics()[KEY].sent == 51)
            await shadows.close()

    asyncio.run(scenario())


def test_a_shadow_that_is_removed_while_it_loads_leaves_no_copy_behind(tmp_path: Path) -> None:
    async def scenario() -> None:
        shelf = Shelf(tmp_path)
        shelf.add_fake("mnist", "3")
        async with open_repository(shelf) as repository:
            shadows = Shadows(load_copy=repository.load_copy, log=KeptRecords())
            shelf.may_load.clear()
            shelf.is_loading.clear()
            shadows.apply({KEY: shadow()})
            await asyncio.to_thread(shelf.is_loading.wait, HANG_S)
            shadows.apply({})
            shelf.may_load.set()
            await until(lambda: len(shelf.fakes) == 2 and shelf.fakes[-1].is_closed)
            assert repository.get("mnist", "3").is_ready
            await shadows.close()

    asyncio.run(scenario())


def test_a_repository_that_closes_first_leaves_shadows_that_drop(tmp_path: Path) -> None:
    async def scenario() -> None:
        shelf = Shelf(tmp_path)
        shelf.add_fake("mnist", "3")
        log = KeptRecords()
        async with open_repository(shelf) as repository:
            shadows = Shadows(load_copy=repository.load_copy, log=log)
            shadows.apply({KEY: replace(shadow(), queue_items=2)})
            await until(lambda: shadows.statistics()[KEY].is_ready)
        shadows.offer(mirrored(1.0), NAME, True)
        assert not shadows.statistics()[KEY].is_ready
        shadows.reload("mnist")
        await until(lambda: not shadows._loads)
        await shadows.close()
        found = shadows.statistics()[KEY]
        assert_exact(found)
        assert found.dropped[ShadowDrop.NOT_READY] == found.eligible == 1

    asyncio.run(scenario())
