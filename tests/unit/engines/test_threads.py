"""Blocking work beside the event loop: its outcome, its thread, and how much of it at once."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

import pytest

from engines.threads import Places, in_daemon_thread
from tests.support.batching import HANG_S, until


def test_work_runs_in_a_daemon_thread_of_that_name_and_returns_its_result() -> None:
    async def scenario() -> None:
        thread = await in_daemon_thread("sluice-test", threading.current_thread)
        assert (thread.name, thread.daemon) == ("sluice-test", True)

    asyncio.run(scenario())


def test_what_the_work_raises_is_raised_by_the_call() -> None:
    def fail() -> None:
        raise LookupError("not there")

    async def scenario() -> None:
        with pytest.raises(LookupError, match="not there"):
            await in_daemon_thread("sluice-test", fail)

    asyncio.run(scenario())


@pytest.mark.parametrize("is_failing", [False, True])
def test_the_outcome_of_work_that_nobody_waits_for_any_more_is_dropped(is_failing: bool) -> None:
    may_end = threading.Event()
    threads: list[threading.Thread] = []
    troubles: list[object] = []

    def work() -> None:
        threads.append(threading.current_thread())
        may_end.wait(HANG_S)
        if is_failing:
            raise LookupError

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: troubles.append(context)
        )
        call = asyncio.create_task(in_daemon_thread("sluice-test", work))
        await until(lambda: bool(threads))
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        may_end.set()
        await until(lambda: not threads[0].is_alive())
        await asyncio.sleep(0)  # the loop has seen what the thread told it

    asyncio.run(scenario())
    assert troubles == []


def test_work_may_outlive_the_event_loop() -> None:
    may_end = threading.Event()
    threads: list[threading.Thread] = []

    def work() -> None:
        threads.append(threading.current_thread())
        may_end.wait(HANG_S)

    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(in_daemon_thread("sluice-test", work), 0.01)

    asyncio.run(scenario())
    may_end.set()
    threads[0].join(HANG_S)  # an exception in it would fail this test as a warning
    assert not threads[0].is_alive()


class Crowd:
    """Pieces of work that each hold a place until they are told to leave."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self.inside: set[int] = set()
        self.may_leave = [asyncio.Event() for _ in range(4)]

    async def enter(self, number: int) -> None:
        async with self._places.one():
            self.inside.add(number)
            await self.may_leave[number].wait()
            self.inside.remove(number)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_only_so_many_pieces_of_work_are_under_way_at_once() -> None:
    async def scenario() -> None:
        crowd = Crowd(Places(2, patience_s=HANG_S))
        tasks = [asyncio.create_task(crowd.enter(number)) for number in range(4)]
        await settle()
        assert crowd.inside == {0, 1}
        crowd.may_leave[1].set()
        await settle()
        assert crowd.inside == {0, 2}
        tasks[2].cancel()
        await settle()
        assert 3 in crowd.inside
        for event in crowd.may_leave:
            event.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())


def test_work_that_outlasts_the_patience_gives_its_place_up_once() -> None:
    async def scenario() -> None:
        crowd = Crowd(Places(1, patience_s=0.02))
        tasks = [asyncio.create_task(crowd.enter(number)) for number in range(2)]
        await until(lambda: crowd.inside == {0, 1})
        for event in crowd.may_leave[:2]:
            event.set()
        await asyncio.gather(*tasks)
        late = [asyncio.create_task(crowd.enter(number)) for number in (2, 3)]
        await settle()
        assert crowd.inside == {2}
        crowd.may_leave[2].set()
        crowd.may_leave[3].set()
        await asyncio.gather(*late)

    asyncio.run(scenario())
