"""Instances whose device fails: who is told, who serves meanwhile, and what takes their place."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
from typing import Any

import pytest

from engines import revival
from engines.base import BatchPolicy
from engines.batcher import Batcher
from engines.errors import DeviceFailed, InstanceFailed, VersionNotReady
from engines.fake import FakeEngine, Script
from engines.instance import Instance
from tests.support.batching import (
    ECHO_INPUT,
    ECHO_OUTPUT,
    HANG_S,
    Reply,
    make_request,
    until,
)
from tests.support.wards import FATAL, open_ward

each_kind = pytest.mark.parametrize("lanes", [0, 1, 2], ids=["plain", "one lane", "two lanes"])


@each_kind
def test_a_lost_instance_is_replaced_and_its_version_serves_again(lanes: int) -> None:
    async def scenario() -> None:
        async with open_ward(lanes) as ward:
            ward.may_load.set()
            await ward.kill()
            await until(lambda: not ward.batcher.statistics().lost_instances)
            assert await ward.submit(1.0, 2.0).values() == [1.0, 2.0]
            assert [engine.is_closed for engine in ward.engines] == [True, False]
            found = ward.batcher.statistics()
            assert (found.instances, found.answered, found.failed) == (1, 1, 1)
            assert ward.troubles[0].endswith("; it is being loaded again")
            assert ward.troubles[1:] == [""]

    asyncio.run(scenario())


@each_kind
def test_a_replacement_that_is_lost_is_replaced_too_again_and_again(lanes: int) -> None:
    async def scenario() -> None:
        async with open_ward(lanes) as ward:
            ward.may_load.set()
            for death in range(1, 5):
                await ward.kill()
                await until(lambda: not ward.batcher.statistics().lost_instances)
                assert await ward.submit(float(death)).values() == [float(death)]
            await until(lambda: [e.is_closed for e in ward.engines] == [True] * 4 + [False])

    asyncio.run(scenario())


@each_kind
def test_without_an_instance_nothing_is_accepted_and_the_refusal_says_why(
    lanes: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with open_ward(lanes) as ward:
            await ward.kill()
            for _ in range(2):
                with pytest.raises(VersionNotReady) as refused:
                    ward.submit(1.0)
                device = ward.engines[0].metadata.device
                assert str(refused.value).startswith(
                    f"model 'm' version 1 is not ready: {device} failed: scripted death"
                )
                assert str(refused.value).endswith("; it is being loaded again")
            found = ward.batcher.statistics()
            assert (found.instances, found.lost_instances, found.busy_instances) == (1, 1, 0)

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    names = [record.getMessage() for record in caplog.records]
    assert names.count("instance lost") == 1


@each_kind
def test_what_is_queued_fails_only_when_no_instance_is_left(lanes: int) -> None:
    async def scenario() -> None:
        async with open_ward(lanes, max_batch_size=1, is_gated=True) as ward:
            fatal = ward.submit(FATAL)
            await ward.gate.entered()
            queued = [ward.submit(float(n)) for n in range(2, 6)]
            await asyncio.sleep(0)
            ward.gate.let_go()
            assert isinstance(await fatal.error(), InstanceFailed)
            ward.gate.open()  # what had a lane beside the fatal one
            for reply in queued:
                assert isinstance(await reply.error(), InstanceFailed)
            assert ward.batcher.statistics().queue.queued_requests == 0

    asyncio.run(scenario())


@each_kind
def test_with_another_instance_what_is_queued_is_served_by_it(lanes: int) -> None:
    async def scenario() -> None:
        async with open_ward(lanes, lanes, max_batch_size=1, is_gated=True) as ward:
            fatal = ward.submit(FATAL)
            await ward.gate.entered()
            held = [ward.submit(float(n)) for n in range(1, 1 + max(lanes, 1))]
            await ward.gate.entered()
            queued = [ward.submit(float(n)) for n in range(20, 26)]
            ward.gate.open()
            assert isinstance(await fatal.error(), InstanceFailed)
            assert [await reply.values() for reply in queued] == [[n] for n in range(20, 26)]
            await asyncio.gather(*(reply.outcome() for reply in held))
            found = ward.batcher.statistics()
            assert (found.instances, found.lost_instances) == (2, 1)
            assert ward.troubles == []
            assert await ward.submit(7.0).values() == [7.0]
            ward.may_load.set()
            await until(lambda: not ward.batcher.statistics().lost_instances)
            replies = [ward.submit(float(n)) for n in range(12)]
            assert [await reply.values() for reply in replies] == [[n] for n in range(12)]
            assert len(ward.engines) == 3

    asyncio.run(scenario())


def test_a_fatal_batch_is_not_tried_again_request_by_request() -> None:
    async def scenario() -> None:
        async with open_ward(0) as ward:
            replies = [ward.submit(value) for value in (1.0, FATAL, 2.0)]
            for reply in replies:
                assert isinstance(await reply.error(), InstanceFailed)
            (engine,) = ward.engines
            assert isinstance(engine, FakeEngine)
            assert engine.batches_run == 1
            assert [report.isolated for report in ward.reports] == [True]

    asyncio.run(scenario())


def test_two_lanes_of_one_lost_instance_count_as_one_loss() -> None:
    async def scenario() -> None:
        async with open_ward(2, max_batch_size=1, is_gated=True) as ward:
            replies = [ward.submit(FATAL), ward.submit(1.0)]
            await ward.gate.entered()
            ward.gate.open()
            for reply in replies:
                assert isinstance(await reply.error(), InstanceFailed)
            ward.may_load.set()
            await until(lambda: not ward.batcher.statistics().lost_instances)
            assert len(ward.engines) == 2
            assert ward.engines[0].is_closed
            assert await ward.submit(1.0).values() == [1.0]

    asyncio.run(scenario())


def test_a_batch_that_hung_in_a_lost_instance_changes_nothing_when_it_ends_at_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its other lane does not come back, so it is replaced before it is closed."""
    monkeypatch.setattr(revival, "CLOSE_S", 0.05)

    async def scenario() -> None:
        async with open_ward(2, max_batch_size=1, is_gated=True) as ward:
            fatal, hung = ward.submit(FATAL), ward.submit(1.0)
            await ward.gate.entered()
            ward.gate.let_go()
            assert isinstance(await fatal.error(), InstanceFailed)
            await ward.gate.entered()  # the other one, which hangs
            ward.is_gated = False
            ward.may_load.set()
            await until(lambda: not ward.batcher.statistics().lost_instances)
            assert len(ward.engines) == 2
            assert not ward.engines[0].is_closed
            assert await ward.submit(2.0).values() == [2.0]
            ward.gate.open()
            assert isinstance(await hung.error(), InstanceFailed)
            await until(lambda: ward.engines[0].is_closed)
            found = ward.batcher.statistics()
            assert (found.instances, found.lost_instances, found.in_flight) == (1, 0, 0)
            replies = [ward.submit(float(n)) for n in range(10)]
            assert [await reply.values() for reply in replies] == [[n] for n in range(10)]

    asyncio.run(scenario())


def test_a_batch_run_on_the_event_loop_can_lose_its_instance_too() -> None:
    class Short(Instance):
        def is_short(self, rows: int) -> bool:
            return True

    async def scenario() -> None:
        engine = FakeEngine(
            inputs=(ECHO_INPUT,), outputs=(ECHO_OUTPUT,), script=Script(die_on=FATAL)
        )
        batcher = Batcher(
            model="m",
            version="1",
            policy=BatchPolicy(max_batch_size=8),
            instances=[Short(name="m/1#0", model="m", version="1", engine=engine)],
        )
        reply = Reply()
        batcher.submit(make_request([FATAL], on_done=reply))
        assert isinstance(await reply.error(), InstanceFailed)
        assert batcher.statistics().lost_instances == 1
        with pytest.raises(VersionNotReady, match="cpu failed: scripted death"):
            batcher.submit(make_request([1.0]))
        await asyncio.wait_for(batcher.close(), HANG_S)
        assert engine.is_closed

    asyncio.run(scenario())


# The end


@each_kind
def test_draining_does_not_wait_for_a_lost_instance(lanes: int) -> None:
    async def scenario() -> None:
        async with open_ward(lanes) as ward:
            await ward.kill()
            await asyncio.wait_for(ward.batcher.drain(), HANG_S)

    asyncio.run(scenario())


@each_kind
def test_an_instance_lost_while_draining_is_not_replaced(lanes: int) -> None:
    async def scenario() -> None:
        async with open_ward(lanes, max_batch_size=1, is_gated=True) as ward:
            fatal = ward.submit(FATAL)
            await ward.gate.entered()
            queued = [ward.submit(float(n)) for n in range(1, 4)]
            draining = asyncio.create_task(ward.batcher.drain())
            await asyncio.sleep(0)
            ward.gate.open()
            assert isinstance(await fatal.error(), InstanceFailed)
            for reply in queued:
                assert isinstance(await reply.error(), InstanceFailed)
            await asyncio.wait_for(draining, HANG_S)
            assert not ward.is_loading.is_set()
            assert len(ward.engines) == 1

    asyncio.run(scenario())


@each_kind
def test_closing_while_a_load_hangs_does_not_wait_for_it_and_what_it_makes_is_closed(
    lanes: int,
) -> None:
    async def scenario() -> None:
        async with open_ward(lanes) as ward:
            await ward.kill()
            await until(ward.is_loading.is_set)
            await asyncio.wait_for(ward.batcher.close(), HANG_S)
            assert len(ward.engines) == 1
            ward.may_load.set()
            await until(lambda: len(ward.engines) == 2 and ward.engines[1].is_closed)

    asyncio.run(scenario())


def test_closing_in_the_very_step_of_a_loss_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        async with open_ward(0, max_batch_size=1, is_gated=True) as ward:
            closing: list[asyncio.Task[None]] = []

            def close_at_once(_: Any) -> None:  # Any: whatever the outcome is
                closing.append(asyncio.create_task(ward.batcher.close()))

            ward.submit(FATAL)
            await ward.gate.entered()
            # Failed with the last instance, before it is being replaced: the close runs first.
            ward.batcher.submit(make_request([1.0], on_done=close_at_once))
            ward.gate.open()
            await until(lambda: bool(closing))
            await asyncio.wait_for(closing[0], HANG_S)
            assert len(ward.engines) == 1

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(scenario())
        gc.collect()  # a coroutine that was never awaited would be reported now


def test_without_anyone_to_revive_it_a_lost_instance_stays_lost() -> None:
    async def scenario() -> None:
        async with open_ward(0, 0, is_revived=False) as ward:
            for _ in range(2):
                await ward.kill()
            with pytest.raises(VersionNotReady):
                ward.submit(1.0)
            assert ward.batcher.statistics().lost_instances == 2
            assert len(ward.engines) == 2

    asyncio.run(scenario())


def test_a_request_submitted_from_the_reply_of_one_that_was_lost_is_refused_not_lost() -> None:
    async def scenario() -> None:
        async with open_ward(0, max_batch_size=1, is_gated=True) as ward:
            refusals: list[Exception] = []

            def again(outcome: object) -> None:
                assert isinstance(outcome, InstanceFailed)
                try:
                    ward.submit(1.0)
                except VersionNotReady as exc:
                    refusals.append(exc)

            fatal = ward.submit(FATAL)
            await ward.gate.entered()
            for n in range(3):
                ward.batcher.submit(make_request([float(n)], on_done=again))
            ward.gate.open()
            await fatal.error()
            await until(lambda: len(refusals) == 3)
            assert ward.batcher.statistics().in_flight == 0

    asyncio.run(scenario())


def test_the_loss_is_logged_with_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with open_ward(0) as ward:
            ward.may_load.set()
            await ward.kill()
            await until(lambda: not ward.batcher.statistics().lost_instances)

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    by_name = {record.getMessage(): vars(record) for record in caplog.records}
    assert by_name["instance lost"]["instance"] == "m/1#0"
    assert by_name["instance lost"]["reason"] == "cpu failed: scripted death"
    assert by_name["instance revived"]["instance"] == "m/1#0"
    exc_info = by_name["engine failed"]["exc_info"]
    assert isinstance(exc_info[1], DeviceFailed)
