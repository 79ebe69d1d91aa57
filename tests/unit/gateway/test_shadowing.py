"""One shadow: what becomes of a copied request, what is logged, what is held and for how long."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Iterator
from typing import cast

import pytest

from engines.base import BatchPolicy
from engines.executed import Executed
from engines.tensors import Tensor
from gateway.shadowing import Mirrored
from tests.support.batching import rows_of, until
from tests.support.shadows import (
    BAD_ON,
    FAIL_ON,
    KEY,
    NAME,
    ROW_BYTES,
    Scale,
    make_stage,
    mirrored,
    shadow,
)


@pytest.fixture
def without_collector() -> Iterator[None]:
    """Nothing may depend on the garbage collector to let tensors go."""
    gc.collect()
    gc.disable()
    # A log record with a trace, which pytest keeps, refers to the engine's frames.
    logging.getLogger("engines.instance").disabled = True
    yield
    logging.getLogger("engines.instance").disabled = False
    gc.enable()


def test_the_reasons_are_those_of_the_contract_and_all_of_them_are_always_told() -> None:
    async def scenario() -> None:
        async with make_stage() as stage:
            assert {str(reason) for reason in stage.found().dropped} == {
                "not_sampled",
                "not_ready",
                "queue_full",
                "bytes_full",
                "expired",
                "timeout",
                "engine_error",
                "bad_input",
                "shutdown",
                "internal",
            }

    asyncio.run(scenario())


def test_an_answer_is_logged_as_a_copy_of_the_live_request_and_counted_as_sent() -> None:
    async def scenario() -> None:
        async with make_stage() as stage:
            live = stage.offer(1.5, 2.5)
            assert stage.found().in_flight == 1
            assert stage.found().held_bytes == 2 * ROW_BYTES
            found = await stage.idle()
            assert (found.eligible, found.sent, found.held_bytes) == (1, 1, 0)
            assert not stage.drops()
            (record,) = stage.log.records
            assert record.parent_rid == live.rid != record.rid
            assert len(record.rid) == 16
            origin, execution = record.origin, record.execution
            assert origin.is_shadow
            assert (record.cid, record.ts_us) == (live.cid, live.ts_us)
            assert (origin.name, origin.revision, origin.variant) == ("digits", 7, "stable")
            assert (origin.model, origin.version, origin.served) == ("mnist", "3", NAME)
            assert (origin.reason, origin.propensity) == ("shadow", 1.0)
            assert (record.status, record.error) == (200, "")
            assert execution is not None
            assert (execution.rows, origin.device) == (2, "cpu")
            assert record.total_us >= execution.infer_ns // 1_000
            assert record.inputs == ()
            assert record.outputs[0].array().reshape(-1).tolist() == [1.5, 2.5]

    asyncio.run(scenario())


def test_copies_share_batches_of_their_own() -> None:
    async def scenario() -> None:
        async with make_stage(is_gated=True) as stage:
            stage.offer(0.0)
            await stage.copy.entered()
            for value in (1.0, 2.0, 3.0):
                stage.offer(value)
            stage.copy.gate.open()
            assert (await stage.idle()).sent == 4
            executions = [record.execution for record in stage.log.records]
            assert [execution and execution.rows for execution in executions] == [1, 3, 3, 3]

    asyncio.run(scenario())


def test_what_is_outside_the_sample_is_eligible_and_goes_nowhere() -> None:
    async def scenario() -> None:
        async with make_stage() as stage:
            stage.offer(is_sampled=False)
            assert stage.drops() == {"not_sampled": 1}
            assert stage.found().in_flight == stage.copy.batcher.statistics().accepted == 0

    asyncio.run(scenario())


def test_a_shadow_that_is_not_in_force_is_not_counted() -> None:
    async def scenario() -> None:
        async with make_stage() as stage:
            stage.shadows.offer(mirrored(1.0), "another", True)
            assert set(stage.shadows.statistics()) == {KEY}
            assert stage.found().eligible == 0

    asyncio.run(scenario())


def test_inputs_that_the_version_does_not_take_are_bad_input() -> None:
    async def scenario() -> None:
        async with make_stage() as stage:
            stage.send(mirrored(inputs=(Tensor("x", "INT32", (1, 1), bytes(4)),)))
            stage.send(mirrored(inputs=(Tensor("other", "FP32", (1, 1), bytes(4)),)))
            stage.send(mirrored(*range(5)))  # more rows than its largest batch
            stage.offer(BAD_ON)
            found = await stage.idle()
            assert stage.drops() == {"bad_input": 4}
            assert found.held_bytes == 0
            assert stage.log.records == []

    asyncio.run(scenario())


def test_an_engine_that_raises_is_counted_and_logged_and_the_next_one_is_answered() -> None:
    async def scenario() -> None:
        async with make_stage() as stage:
            live = stage.offer(FAIL_ON)
            await stage.idle()
            stage.offer(1.0)
            assert (await stage.idle()).sent == 1
            assert stage.drops() == {"engine_error": 1}
            failed, answered = stage.log.records
            assert failed.parent_rid == live.rid
            assert failed.origin.is_shadow
            assert (failed.status, failed.error, failed.outputs) == (500, "InstanceFailed", ())
            assert (failed.origin.served, failed.origin.reason) == (NAME, "shadow")
            assert answered.status == 200

    asyncio.run(scenario())


def test_at_the_limit_of_items_what_is_new_is_dropped() -> None:
    async def scenario() -> None:
        async with make_stage(shadow(queue_items=3), is_gated=True) as stage:
            for value in range(5):
                stage.offer(value)
            assert stage.drops() == {"queue_full": 2}
            stage.copy.gate.open()
            assert (await stage.idle()).sent == 3
            assert [record.cid for record in stage.log.records] == ["0", "1", "2"]
            stage.offer(5.0)
            assert (await stage.idle()).sent == 4

    asyncio.run(scenario())


def test_at_the_limit_of_bytes_what_does_not_fit_is_dropped_and_smaller_ones_still_go() -> None:
    async def scenario() -> None:
        async with make_stage(shadow(queue_bytes=5 * ROW_BYTES), is_gated=True) as stage:
            stage.offer(*range(3))
            stage.offer(*range(3))
            stage.offer(*range(2))
            assert stage.drops() == {"bytes_full": 1}
            assert stage.found().held_bytes == 5 * ROW_BYTES
            stage.copy.gate.open()
            assert (await stage.idle()).held_bytes == 0

    asyncio.run(scenario())


def test_the_copy_s_own_queue_being_full_is_queue_full_too() -> None:
    async def scenario() -> None:
        policy = BatchPolicy(max_batch_size=1, max_queue_rows=2)
        async with make_stage(policy=policy, is_gated=True) as stage:
            stage.offer(0.0)
            await stage.copy.entered()
            for value in (1.0, 2.0, 3.0):
                stage.offer(value)
            assert stage.drops() == {"queue_full": 1}
            assert stage.found().held_bytes == 3 * ROW_BYTES
            stage.copy.gate.open()
            assert (await stage.idle()).sent == 3

    asyncio.run(scenario())


def test_behind_an_engine_that_hangs_the_deadline_tells_the_queued_from_the_executing() -> None:
    async def scenario() -> None:
        async with make_stage(shadow(deadline_ms=20), is_gated=True) as stage:
            for value in range(4):
                stage.offer(value)
            await stage.copy.entered()
            for value in range(4, 7):
                stage.offer(value)
            await stage.idle()
            assert stage.drops() == {"timeout": 4, "expired": 3}
            assert stage.copy.engine.rows_run == 4
            await stage.copy.end_batch()
            assert stage.found().sent == 0  # an answer that comes too late is none
            assert stage.log.records == []

    asyncio.run(scenario())


def test_a_model_that_bears_the_name_of_a_stage_does_not_confuse_the_two() -> None:
    async def scenario() -> None:
        async with make_stage(
            shadow(deadline_ms=20, version="3 was queued"), is_gated=True
        ) as stage:
            stage.offer(0.0)
            await stage.copy.entered()
            await stage.idle()
            assert stage.drops() == {"timeout": 1}

    asyncio.run(scenario())


def test_what_a_hung_engine_has_stays_charged_until_it_gives_it_back(
    without_collector: None,
) -> None:
    async def scenario() -> None:
        limits = shadow(deadline_ms=20, queue_bytes=6 * ROW_BYTES)
        async with make_stage(limits, is_gated=True) as stage:
            scale = Scale()
            for value in range(4):
                stage.send(scale.request(value))
            await stage.copy.entered()
            for value in range(2):
                stage.send(scale.request(value))
            await stage.idle()
            assert stage.drops() == {"timeout": 4, "expired": 2}
            # The batch is in the engine, the rest is gone: counted and in truth.
            assert stage.found().held_bytes == scale.alive_bytes == 4 * ROW_BYTES
            stage.send(scale.request(rows=3))
            assert stage.drops()["bytes_full"] == 1
            stage.send(scale.request(rows=2))
            await stage.idle()
            assert stage.found().held_bytes == 4 * ROW_BYTES
            await stage.copy.end_batch()
            await until(lambda: scale.alive_bytes == 0)
            assert stage.found().held_bytes == 0
            stage.copy.gate.open()
            stage.send(scale.request(rows=3))
            assert (await stage.idle()).sent == 1

    asyncio.run(scenario())


def test_an_engine_that_is_always_too_late_holds_one_batch_not_one_after_another(
    without_collector: None,
) -> None:
    async def scenario() -> None:
        async with make_stage(shadow(deadline_ms=15), is_gated=True) as stage:
            scale = Scale()
            for _ in range(4):
                for rows in (2, 1):
                    stage.send(scale.request(rows=rows))
                await stage.copy.entered()
                await stage.idle()
                assert stage.found().held_bytes == scale.alive_bytes == 3 * ROW_BYTES
                await stage.copy.end_batch()
            assert stage.drops() == {"timeout": 8}
            await until(lambda: scale.alive_bytes == 0)
            assert stage.found().held_bytes == 0

    asyncio.run(scenario())


def test_a_late_batch_is_charged_alone_though_nobody_looked_when_the_one_before_it_ended() -> None:
    async def scenario() -> None:
        async with make_stage(shadow(deadline_ms=10), is_gated=True) as stage:
            for value in range(4):
                stage.offer(value)
            await stage.copy.entered()
            stage.shadows.apply({KEY: shadow(deadline_ms=100)})
            for value in range(2):
                stage.offer(value)
            await until(lambda: stage.copy.batcher.statistics().expired == 4)
            await stage.copy.end_batch()
            await stage.copy.entered()
            await until(lambda: stage.copy.batcher.statistics().expired == 6)
            assert stage.found().held_bytes == 2 * ROW_BYTES

    asyncio.run(scenario())


def test_under_a_steady_load_a_hung_engine_holds_no_more_than_the_limit(
    without_collector: None,
) -> None:
    limit = 8 * ROW_BYTES

    async def scenario() -> None:
        limits = shadow(deadline_ms=5, queue_bytes=limit)
        async with make_stage(limits, is_gated=True) as stage:
            scale = Scale()
            until_ns = time.monotonic_ns() + 100_000_000
            while time.monotonic_ns() < until_ns:
                for _ in range(5):
                    stage.send(scale.request())
                assert scale.alive_bytes <= limit
                assert stage.found().held_bytes <= limit
                await asyncio.sleep(0)
            drops = stage.drops()
            assert drops["timeout"] <= 4
            assert drops["expired"] > 8
            assert drops["bytes_full"] > 8

    asyncio.run(scenario())


@pytest.mark.parametrize("value", [1.0, FAIL_ON, BAD_ON], ids=["sent", "engine", "input"])
def test_an_outcome_lets_the_inputs_go_at_once(without_collector: None, value: float) -> None:
    async def scenario() -> None:
        async with make_stage() as stage:
            scale = Scale()
            for _ in range(3):
                stage.send(scale.request(value))
            await stage.idle()
            # The engine's thread may still be on its way out of the batch.
            await until(lambda: scale.alive_bytes == 0)
            assert stage.found().held_bytes == 0

    asyncio.run(scenario())


def test_what_is_dropped_at_once_is_not_held(without_collector: None) -> None:
    async def scenario() -> None:
        async with make_stage(shadow(queue_items=1), is_gated=True) as stage:
            scale = Scale()
            stage.offer(0.0)
            stage.send(scale.request())
            stage.send(scale.request(), is_sampled=False)
            assert scale.alive_bytes == 0
            assert stage.drops() == {"queue_full": 1, "not_sampled": 1}

    asyncio.run(scenario())


def test_a_log_that_raises_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with make_stage() as stage:
            stage.log.fault = RuntimeError("no log today")
            for value in (1.0, 2.0, FAIL_ON):
                stage.offer(value)
                await stage.idle()
            assert stage.drops() == {"internal": 3}
            assert stage.found().held_bytes == 0
            stage.log.fault = None
            stage.offer(3.0)
            assert (await stage.idle()).sent == 1

    asyncio.run(scenario())
    assert [r.getMessage() for r in caplog.records].count("shadow failed") == 1


def test_a_request_that_breaks_its_type_is_counted_and_raises_nothing() -> None:
    async def scenario() -> None:
        async with make_stage() as stage:
            broken = mirrored(1.0)
            object.__setattr__(broken, "inputs", None)
            stage.send(broken)
            object.__setattr__(
                broken, "inputs", (rows_of([1.0])._replace(shape=cast("tuple[int, ...]", None)),)
            )
            stage.send(broken)
            assert stage.drops() == {"internal": 2}
            assert stage.found().held_bytes == stage.found().in_flight == 0

    asyncio.run(scenario())


def test_an_observer_sees_each_answer_beside_its_request() -> None:
    seen: list[tuple[Mirrored, Executed]] = []

    async def scenario() -> None:
        async with make_stage(on_answer=lambda *pair: seen.append(pair)) as stage:
            live = [stage.offer(value) for value in (1.0, FAIL_ON, 2.0)]
            await stage.idle()
            assert [request for request, _ in seen] == [live[0], live[2]]
            assert seen[1][0].inputs[0].array().tolist() == seen[1][1].outputs[0].array().tolist()

    asyncio.run(scenario())


def test_an_observer_that_raises_costs_nothing_but_a_line(caplog: pytest.LogCaptureFixture) -> None:
    def observe(live: Mirrored, executed: Executed) -> None:
        raise ValueError("cannot compare")

    async def scenario() -> None:
        async with make_stage(on_answer=observe) as stage:
            for value in (1.0, 2.0):
                stage.offer(value)
            assert (await stage.idle()).sent == 2
            assert len(stage.log.records) == 2
            assert not stage.drops()

    asyncio.run(scenario())
    assert [r.getMessage() for r in caplog.records].count("shadow failed") == 1
