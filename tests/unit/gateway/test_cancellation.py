"""Cancelling a call at every stage: queued, waiting for companions, executing, responding.

Each test checks the same four things: the caller's reply comes once and says Cancelled, the engine
saw no row that it need not have seen, the neighbours got their answers, and no record was made.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engines.base import BatchPolicy
from engines.errors import Cancelled
from gateway.pipeline import Call
from gateway.request import InferResponse
from tests.support.desk import Answered, Desk, open_desk, request_of
from tests.support.repositories import Shelf

WARMED_ROWS = 1


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    made = Shelf(tmp_path)
    made.add_fake("held", "1", latency_ms=1)
    made.configure("held", warmup_batch_sizes=(WARMED_ROWS,))
    return made


def rows_run(desk: Desk) -> int:
    """Return the rows that the engine has seen since its warm-up."""
    (engine,) = desk.shelf.fakes
    return engine.rows_run - WARMED_ROWS


def cancelled(desk: Desk) -> int:
    """Return how many requests the batcher counts as cancelled."""
    return desk.repository.get("held", "1").batcher.statistics().cancelled


async def assert_gone(answered: Answered, desk: Desk, records: int) -> None:
    """Check that a reply said Cancelled, once, and that only the neighbours were recorded."""
    assert isinstance(await answered.answer(), Cancelled)
    await asyncio.sleep(0)
    assert len(answered.answers) == 1
    assert cancelled(desk) == 1
    assert len(desk.log.records) == records
    await asyncio.wait_for(desk.pipeline.idle(), 5)


def test_a_queued_call_leaves_the_queue_and_never_reaches_the_engine(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_desk(shelf) as desk:
            _, executing = await desk.block("held")
            _, before = desk.submit(request_of("held", 1.0))
            call, answered = desk.submit(request_of("held", 2.0, 2.0))
            _, behind = desk.submit(request_of("held", 3.0))
            call.cancel()
            assert isinstance(await answered.answer(), Cancelled)  # at once
            shelf.gate.open()
            assert await executing.values() == [0.0]
            assert await before.values() == [1.0]
            assert await behind.values() == [3.0]
            await assert_gone(answered, desk, records=3)
            assert rows_run(desk) == 3

    asyncio.run(scenario())


def test_a_call_that_waits_for_companions_leaves_them_to_go_without_it(shelf: Shelf) -> None:
    async def scenario() -> None:
        policy = BatchPolicy(max_batch_size=3, max_queue_delay_us=60_000_000)
        shelf.configure("held", batching=policy)
        shelf.add_fake("held", "1", latency_ms=1, max_batch_size=3)
        shelf.gate.open()
        async with open_desk(shelf) as desk:
            call, answered = desk.submit(request_of("held", 1.0))
            await asyncio.sleep(0)  # the dispatch has run; the batch is not full
            neighbours = [desk.submit(request_of("held", v))[1] for v in (2.0, 3.0)]
            call.cancel()
            neighbours.append(desk.submit(request_of("held", 4.0))[1])
            assert [await n.values() for n in neighbours] == [[2.0], [3.0], [4.0]]
            await assert_gone(answered, desk, records=3)
            assert rows_run(desk) == 3

    asyncio.run(scenario())


def test_a_call_that_is_cancelled_in_the_tick_of_its_submission_never_runs(shelf: Shelf) -> None:
    async def scenario() -> None:
        shelf.gate.open()
        async with open_desk(shelf) as desk:
            call, answered = desk.submit(request_of("held", 1.0))
            _, neighbour = desk.submit(request_of("held", 2.0))
            call.cancel()
            assert await neighbour.values() == [2.0]
            await assert_gone(answered, desk, records=1)
            assert rows_run(desk) == 1

    asyncio.run(scenario())


def test_an_executing_call_is_answered_at_once_and_its_result_is_dropped(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_desk(shelf) as desk:
            call, answered = desk.submit(request_of("held", 1.0))
            _, neighbour = desk.submit(request_of("held", 2.0))
            await shelf.gate.entered()  # both are in the batch
            call.cancel()
            assert isinstance(await answered.answer(), Cancelled)  # though the batch still runs
            assert neighbour.answers == []
            shelf.gate.open()
            assert await neighbour.values() == [2.0]
            await assert_gone(answered, desk, records=1)
            assert rows_run(desk) == 2

    asyncio.run(scenario())


def test_a_call_whose_batch_is_being_answered_gets_its_answer(shelf: Shelf) -> None:
    """The first of two replies of a batch cancels the second call, whose record is written."""

    async def scenario() -> None:
        async with open_desk(shelf) as desk:
            calls: list[Call] = []
            _, first = desk.submit(request_of("held", 1.0), then=lambda _: calls[0].cancel())
            call, answered = desk.submit(request_of("held", 2.0))
            calls.append(call)
            shelf.gate.open()
            assert await first.values() == [1.0]
            assert await answered.values() == [2.0]
            await asyncio.sleep(0)
            assert len(answered.answers) == 1
            assert len(desk.log.records) == 2

    asyncio.run(scenario())


def test_cancelling_an_answered_call_changes_nothing(shelf: Shelf) -> None:
    async def scenario() -> None:
        shelf.gate.open()
        async with open_desk(shelf) as desk:
            calls: list[Call] = []
            call, answered = desk.submit(request_of("held", 1.0), then=lambda _: calls[0].cancel())
            calls.append(call)
            assert await answered.values() == [1.0]
            call.cancel()
            await asyncio.sleep(0)
            assert [type(a) for a in answered.answers] == [InferResponse]
            assert cancelled(desk) == 0
            assert len(desk.log.records) == 1

    asyncio.run(scenario())


def test_cancelling_twice_answers_once(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_desk(shelf) as desk:
            await desk.block("held")
            call, answered = desk.submit(request_of("held", 1.0))
            call.cancel()
            call.cancel()
            await answered.answer()
            await asyncio.sleep(0)
            assert [type(a) for a in answered.answers] == [Cancelled]
            shelf.gate.open()

    asyncio.run(scenario())


def test_cancelling_a_call_that_was_refused_changes_nothing(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_desk(shelf) as desk:
            call, answered = desk.submit(request_of("nobody", 1.0))
            call.cancel()
            assert not isinstance(await answered.answer(), Cancelled)
            await asyncio.sleep(0)
            assert len(answered.answers) == 1

    asyncio.run(scenario())
