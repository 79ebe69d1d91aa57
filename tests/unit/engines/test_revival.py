"""Making a new instance of a lost one: when it is tried, and what becomes of what is not wanted."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import threading
from collections.abc import Callable

import pytest

from engines import revival
from engines.errors import DeviceUnavailable, ModelLoadError
from engines.fake import FakeEngine
from engines.instance import Host, Instance
from engines.revival import revive
from tests.support.batching import ECHO_INPUT, ECHO_OUTPUT, HANG_S, until


def hold(until_set: threading.Event) -> None:
    assert until_set.wait(HANG_S)


class Workshop:
    """Makes instances as it is told; every load can be held."""

    def __init__(self, *faults: Exception) -> None:
        self.faults = list(faults)
        """Of the loads to come, in order; then they succeed."""
        self.made: list[Host] = []
        self.loads = 0
        self.may_load = threading.Event()
        self.may_load.set()
        self.is_loading = threading.Event()

    def load(self) -> Host:
        self.loads += 1
        self.is_loading.set()
        assert self.may_load.wait(HANG_S)
        if self.faults:
            raise self.faults.pop(0)
        self.made.append(an_instance())
        return self.made[-1]

    def close(self) -> None:
        for host in self.made:
            host.close()


def an_instance(close: Callable[[], None] = lambda: None) -> Instance:
    class Closing(FakeEngine):
        def close(self) -> None:
            close()
            super().close()

    engine = Closing(inputs=(ECHO_INPUT,), outputs=(ECHO_OUTPUT,))
    return Instance(name="m/1#0", model="m", version="1", engine=engine)


def is_closed(host: Host) -> bool:
    assert isinstance(host.engine, FakeEngine)
    return host.engine.is_closed


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Note how long is waited, and do not wait; event loops of other threads go on as they do."""
    found: list[float] = []
    sleep, ours = asyncio.sleep, threading.current_thread()

    async def note(delay_s: float) -> None:
        if threading.current_thread() is ours:
            found.append(delay_s)
            delay_s = 0
        await sleep(delay_s)

    monkeypatch.setattr(asyncio, "sleep", note)
    return found


def test_the_lost_one_is_closed_before_another_is_loaded(pauses: list[float]) -> None:
    workshop = Workshop()
    lost = an_instance(lambda: order.append(f"closed after {workshop.loads} loads"))
    order: list[str] = []

    async def scenario() -> None:
        revived = await revive(lost, workshop.load)
        assert revived is workshop.made[0]

    asyncio.run(scenario())
    workshop.close()
    assert order == ["closed after 0 loads"]
    assert pauses == [revival.FIRST_DELAY_S]


def test_attempts_are_further_and_further_apart_up_to_a_minute(
    pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    faults = [DeviceUnavailable(f"attempt {n}") for n in range(9)]
    workshop = Workshop(*faults)
    told: list[Exception] = []

    async def scenario() -> None:
        await revive(an_instance(), workshop.load, on_failure=told.append)

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    workshop.close()
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert told == faults
    assert [vars(record)["reason"] for record in caplog.records] == [str(f) for f in faults]


def test_the_first_delay_is_a_setting(pauses: list[float]) -> None:
    workshop = Workshop(ModelLoadError("no"), ModelLoadError("no"))

    async def scenario() -> None:
        await revive(an_instance(), workshop.load, first_delay_s=0.5)

    asyncio.run(scenario())
    workshop.close()
    assert pauses == [0.5, 1, 2]


def test_an_attempt_that_fails_for_a_foreign_reason_is_not_the_last(pauses: list[float]) -> None:
    workshop = Workshop(RuntimeError("can't start new thread"), MemoryError())

    async def scenario() -> None:
        revived = await revive(an_instance(), workshop.load)
        assert revived is workshop.made[0]

    asyncio.run(scenario())
    workshop.close()
    assert workshop.loads == 3


def test_a_lost_engine_that_does_not_let_go_is_waited_for_and_then_left_behind(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revival, "CLOSE_S", 0.02)
    may_close = threading.Event()
    lost = an_instance(lambda: hold(may_close))
    workshop = Workshop()

    async def scenario() -> None:
        await asyncio.wait_for(revive(lost, workshop.load), HANG_S)
        assert not is_closed(lost)
        may_close.set()
        await until(lambda: is_closed(lost))

    asyncio.run(scenario())
    workshop.close()


class FailsToClose(Instance):
    def close(self) -> None:
        super().close()
        raise OSError("the device is gone")


def test_a_lost_engine_that_fails_to_close_is_replaced_all_the_same(
    pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    engine = FakeEngine(inputs=(ECHO_INPUT,), outputs=(ECHO_OUTPUT,))
    lost = FailsToClose(name="m/1#0", model="m", version="1", engine=engine)
    workshop = Workshop()

    async def scenario() -> None:
        await revive(lost, workshop.load)
        gc.collect()  # an exception that nobody looked at would be reported now

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    workshop.close()
    assert [record.getMessage() for record in caplog.records] == ["lost instance does not close"]


def start(workshop: Workshop) -> asyncio.Task[Host]:
    return asyncio.create_task(revive(an_instance(), workshop.load, first_delay_s=0))


async def cancelled(task: asyncio.Task[Host]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_an_instance_that_comes_up_when_nobody_waits_any_more_is_closed() -> None:
    workshop = Workshop()
    workshop.may_load.clear()

    async def scenario() -> None:
        task = start(workshop)
        await asyncio.to_thread(workshop.is_loading.wait, HANG_S)
        await cancelled(task)
        workshop.may_load.set()
        await until(lambda: len(workshop.made) == 1 and is_closed(workshop.made[0]))

    asyncio.run(scenario())
    assert workshop.loads == 1


def test_an_instance_that_came_up_and_was_not_yet_handed_over_is_closed() -> None:
    """The load is over, its result is on the way through the event loop, and then it is given up.

    The loop is held by the test from before the load ends, so the cancellation is always first.
    """
    workshop = Workshop()
    workshop.may_load.clear()

    async def scenario() -> None:
        others = set(threading.enumerate())
        task = start(workshop)
        await asyncio.to_thread(workshop.is_loading.wait, HANG_S)
        started = set(threading.enumerate()) - others
        (thread,) = (t for t in started if t.name == "sluice-revive-m/1#0")
        workshop.may_load.set()
        thread.join(HANG_S)  # blocks the loop on purpose
        assert len(workshop.made) == 1
        await cancelled(task)
        await until(lambda: is_closed(workshop.made[0]))

    asyncio.run(scenario())


def test_at_whatever_step_of_the_loop_it_is_cancelled_no_instance_is_left_open() -> None:
    async def scenario(steps: int) -> bool:
        """Cancel after so many turns of the loop; return whether it was over before that."""
        workshop = Workshop()
        task = start(workshop)
        for _ in range(steps):
            await asyncio.sleep(0.0005)
        if task.done():
            workshop.close()
            return True
        await cancelled(task)
        for thread in threading.enumerate():
            if thread.name.startswith(("sluice-revive", "sluice-close")):
                await asyncio.to_thread(thread.join, HANG_S)
        await until(lambda: all(is_closed(host) for host in workshop.made))
        return False

    for steps in itertools.count():
        if asyncio.run(scenario(steps)):
            break
        assert steps < 2_000


def test_between_two_attempts_it_can_be_given_up_at_once() -> None:
    workshop = Workshop(ModelLoadError("no"))

    async def scenario() -> None:
        task = asyncio.create_task(revive(an_instance(), workshop.load, first_delay_s=0.001))
        await until(lambda: not workshop.faults)
        await asyncio.wait_for(cancelled(task), 1.0)

    asyncio.run(scenario())
    assert workshop.loads <= 2
    workshop.close()
