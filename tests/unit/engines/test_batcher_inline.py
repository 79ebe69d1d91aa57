"""Short batches run on the event loop: which do, which do not, and that nothing else is different.

The clock by which an instance measures its batches is the test's; an engine says how far it moves.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import instance as instances
from engines.base import BatchPolicy, Engine, EngineConfig, ModelMetadata
from engines.batcher import Batcher
from engines.errors import Cancelled, DeadlineExpired, InstanceFailed, InvalidInput
from engines.executed import BatchReport, Executed
from engines.fake import FakeEngine, Script
from engines.instance import SHORT_NS, Instance
from engines.tensors import Array
from tests.support.batching import (
    ECHO_INPUT,
    ECHO_OUTPUT,
    HANG_S,
    MS,
    Bench,
    Gate,
    Reply,
    until,
)
from tests.support.repositories import Shelf, ask, open_repository

BRIEF: Final = SHORT_NS // 10
"""What a batch takes, in nanoseconds of the test's clock, unless a test says otherwise."""
LONG: Final = 4 * SHORT_NS
HERE: Final = threading.main_thread().name
THERE: Final = "sluice-echo/1#0"


class Clock:
    """Stands in for the module `time` where batches are measured."""

    def __init__(self) -> None:
        self.now_ns = time.monotonic_ns()

    def monotonic_ns(self) -> int:
        """Return the time, which stands still unless an engine moves it."""
        return self.now_ns


class Timed(FakeEngine):
    """A fake that takes the time that it is told and remembers where it was called."""

    def __init__(self, clock: Clock, *, is_steady: bool = True, **fields: Any) -> None:
        super().__init__(**fields)  # Any: a fake's arguments
        self._clock = clock
        self._metadata = replace(self._metadata, is_steady=is_steady)
        self.takes_ns = BRIEF
        self.threads: list[str] = []
        """The thread of each batch."""

    @property
    def metadata(self) -> ModelMetadata:
        """The fake's signature, and whether it is steady."""
        return self._metadata

    def infer(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Move the clock, and do what the fake does."""
        self.threads.append(threading.current_thread().name)
        self._clock.now_ns += self.takes_ns
        return super().infer(batch)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(instances, "time", made)
    return made


class InlineBench(Bench):
    """A bench of timed engines."""

    def __init__(
        self, clock: Clock, *, policy: BatchPolicy, is_steady: bool, may: bool, script: Script
    ) -> None:
        gate = Gate()
        self.timed = Timed(
            clock,
            is_steady=is_steady,
            inputs=(ECHO_INPUT,),
            outputs=(ECHO_OUTPUT,),
            max_batch_size=policy.max_batch_size,
            script=script,
            sleep=gate,
        )
        host = Instance(
            name="echo/1#0", model="echo", version="1", engine=self.timed, may_run_inline=may
        )
        reports: list[BatchReport] = []
        batcher = Batcher(
            model="echo", version="1", policy=policy, instances=[host], on_batch=reports.append
        )
        super().__init__(batcher, [host], gate, reports)

    async def warm(self, *sizes: int) -> None:
        """Have batches of these rows measured, and forget where they ran."""
        for rows in sizes or (1,):
            _, reply = self.submit(*range(rows))
            await reply.executed()
        assert set(self.timed.threads) == {THERE}
        self.timed.threads.clear()


def run(
    clock: Clock,
    scenario: Callable[[InlineBench], Awaitable[None]],
    *,
    policy: BatchPolicy | None = None,
    is_steady: bool = True,
    may: bool = True,
    script: Script | None = None,
) -> None:
    """Run a scenario on a bench, which is drained and closed at the end."""

    async def on_bench() -> None:
        bench = InlineBench(
            clock,
            policy=policy or BatchPolicy(max_batch_size=8),
            is_steady=is_steady,
            may=may,
            script=script or Script(),
        )
        try:
            await scenario(bench)
        finally:
            bench.gate.open()
            await asyncio.wait_for(bench.batcher.close(), HANG_S)
            assert bench.statistics().in_flight == 0

    asyncio.run(on_bench())


async def ask_one_by_one(bench: InlineBench, count: int, *, rows: int = 1) -> list[str]:
    """Send requests, each after the answer to the one before; return where each batch ran."""
    bench.timed.threads.clear()
    for _ in range(count):
        _, reply = bench.submit(*range(rows))
        assert await reply.values() == list(range(rows))
    return list(bench.timed.threads)


# Which batches run where


def test_a_short_batch_runs_on_the_event_loop_once_its_like_was_measured(clock: Clock) -> None:
    async def scenario(bench: InlineBench) -> None:
        assert await ask_one_by_one(bench, 4) == [THERE, HERE, HERE, HERE]

    run(clock, scenario)


def test_batches_of_other_sizes_are_measured_on_their_own(clock: Clock) -> None:
    async def scenario(bench: InlineBench) -> None:
        await bench.warm(1)
        assert await ask_one_by_one(bench, 2, rows=4) == [THERE, HERE]
        assert await ask_one_by_one(bench, 2, rows=5) == [HERE, HERE]  # about as many
        assert await ask_one_by_one(bench, 2, rows=8) == [THERE, HERE]
        bench.timed.takes_ns = LONG
        assert await ask_one_by_one(bench, 2, rows=4) == [HERE, THERE]
        bench.timed.takes_ns = BRIEF
        assert await ask_one_by_one(bench, 2, rows=1) == [HERE, HERE]

    run(clock, scenario)


def test_a_batch_that_takes_long_moves_its_like_to_the_thread_at_once(clock: Clock) -> None:
    async def scenario(bench: InlineBench) -> None:
        await bench.warm()
        bench.timed.takes_ns = LONG
        assert await ask_one_by_one(bench, 3) == [HERE, THERE, THERE]
        bench.timed.takes_ns = BRIEF
        where = await ask_one_by_one(bench, 60)
        back = where.index(HERE)
        assert back >= 3  # after several short ones, not after the first
        assert set(where[back:]) == {HERE}

    run(clock, scenario)


def test_a_batch_that_was_long_when_it_was_measured_stays_in_the_thread(clock: Clock) -> None:
    async def scenario(bench: InlineBench) -> None:
        bench.timed.takes_ns = SHORT_NS
        assert set(await ask_one_by_one(bench, 10)) == {THERE}

    run(clock, scenario)


@pytest.mark.parametrize(("is_steady", "may"), [(False, True), (True, False), (False, False)])
def test_only_a_steady_engine_that_may_ever_runs_on_the_event_loop(
    clock: Clock, is_steady: bool, may: bool
) -> None:
    async def scenario(bench: InlineBench) -> None:
        assert set(await ask_one_by_one(bench, 20)) == {THERE}

    run(clock, scenario, is_steady=is_steady, may=may)


class SteadyShelf(Shelf):
    """A shelf whose fakes are steady."""

    def __init__(self, root: Path, clock: Clock) -> None:
        super().__init__(root)
        self._clock = clock

    def load_fake(self, path: Path, config: EngineConfig) -> Engine:
        """Load a timed fake."""
        metadata = super().load_fake(path, config).metadata
        made = Timed(
            self._clock,
            inputs=metadata.inputs,
            outputs=metadata.outputs,
            max_batch_size=metadata.max_batch_size,
        )
        self.fakes[-1] = made
        return made

    def threads(self, number: int) -> set[str]:
        """Return where a loaded fake ran its batches, but for its warm-up."""
        engine = self.fakes[number]
        assert isinstance(engine, Timed)
        return {name for name in engine.threads if not name.startswith("sluice-load")}


def test_a_shadows_copy_keeps_to_its_thread_where_its_version_does_not(
    tmp_path: Path, clock: Clock
) -> None:
    async def scenario() -> None:
        shelf = SteadyShelf(tmp_path, clock)
        shelf.add_fake("echo", "1")
        async with open_repository(shelf) as repository:
            copy = await repository.load_copy("echo", "1")
            for served in (repository.get("echo", "1"), copy):
                for _ in range(10):
                    assert await ask(served, 1.0).values() == [1.0]
            assert shelf.threads(0) == {THERE, HERE}
            assert shelf.threads(1) == {"sluice-echo/1#copy0"}

    asyncio.run(scenario())


# The event loop in between


def test_one_batch_runs_per_turn_of_the_event_loop(clock: Clock) -> None:
    async def scenario(bench: InlineBench) -> None:
        await bench.warm()
        before = bench.timed.batches_run
        replies = [bench.submit(float(n))[1] for n in range(5)]
        seen = []
        for _ in replies:
            await asyncio.sleep(0)
            seen.append(bench.timed.batches_run - before)
        assert seen == [1, 2, 3, 4, 5]
        assert [await reply.values() for reply in replies] == [[n] for n in range(5)]
        assert set(bench.timed.threads) == {HERE}

    run(clock, scenario, policy=BatchPolicy(max_batch_size=1))


def test_requests_of_one_turn_share_a_batch_as_ever(clock: Clock) -> None:
    async def scenario(bench: InlineBench) -> None:
        await bench.warm(1, 3)
        bench.reports.clear()
        replies = [bench.submit(float(n))[1] for n in range(3)]
        assert len({(await reply.executed()).execution.number for reply in replies}) == 1
        assert [(r.rows, r.requests, r.reason) for r in bench.reports] == [(3, 3, "delay")]
        assert bench.timed.threads == [HERE]

    run(clock, scenario)


def test_requests_that_come_from_a_reply_are_answered_too(clock: Clock) -> None:
    async def scenario(bench: InlineBench) -> None:
        await bench.warm()
        replies: list[Reply] = []

        def again(outcome: object) -> None:
            if len(replies) < 20:
                replies.append(bench.submit(float(len(replies)), then=again)[1])

        again(None)
        while len(replies) < 20:
            await replies[-1].executed()
        assert [await reply.values() for reply in replies] == [[n] for n in range(20)]
        assert set(bench.timed.threads) == {HERE}

    run(clock, scenario, policy=BatchPolicy(max_batch_size=1))


def test_a_wait_for_companions_is_kept(clock: Clock) -> None:
    async def scenario(bench: InlineBench) -> None:
        await bench.warm(1, 2)
        before_ns = time.monotonic_ns()
        _, early = bench.submit(1.0)
        await asyncio.sleep(0)
        assert early.outcomes == []
        _, late = bench.submit(2.0)
        one, two = await early.executed(), await late.executed()
        assert one.execution is two.execution
        assert early.at_ns - before_ns >= 20 * MS
        assert bench.timed.threads == [HERE]

    run(clock, scenario, policy=BatchPolicy(max_batch_size=8, max_queue_delay_us=20_000))


def test_draining_answers_what_is_queued_and_nothing_more(clock: Clock) -> None:
    async def scenario(bench: InlineBench) -> None:
        await bench.warm()
        replies = [bench.submit(float(n))[1] for n in range(10)]
        await asyncio.wait_for(bench.batcher.drain(), HANG_S)
        assert [len(reply.outcomes) for reply in replies] == [1] * 10
        assert set(bench.timed.threads) == {HERE}

    run(clock, scenario, policy=BatchPolicy(max_batch_size=1))


# Deadlines, cancellation, failures: as in the thread


def test_a_request_whose_deadline_has_passed_never_reaches_the_engine(clock: Clock) -> None:
    async def scenario(bench: InlineBench) -> None:
        await bench.warm()
        _, stale = bench.submit(1.0, deadline_ns=time.monotonic_ns() - 1)
        _, fresh = bench.submit(2.0, deadline_ns=time.monotonic_ns() + 600_000 * MS)
        assert isinstance(await stale.error(), DeadlineExpired)
        assert await fresh.values() == [2.0]
        assert bench.timed.rows_run == 2  # the one that was measured, and the fresh one

    run(clock, scenario)


def test_a_deadline_that_passes_while_the_loop_is_held_is_kept(clock: Clock) -> None:
    async def scenario(bench: InlineBench) -> None:
        await bench.warm()
        queued: list[Reply] = []

        def hold_the_loop(outcome: object) -> None:
            deadline_ns = time.monotonic_ns() + MS
            queued.extend(bench.submit(2.0, deadline_ns=d)[1] for d in (deadline_ns, None))
            while time.monotonic_ns() <= deadline_ns:
                pass

        bench.submit(1.0, then=hold_the_loop)
        await until(lambda: len(queued) == 2)
        error = await queued[0].error()
        assert isinstance(error, DeadlineExpired)
        assert "while the request was queued" in str(error)
        assert await queued[1].values() == [2.0]
        assert bench.timed.rows_run == 3

    run(clock, scenario)


def test_a_deadline_that_passes_inside_the_engine_is_met_by_exactly_one_outcome(
    clock: Clock,
) -> None:
    async def scenario(bench: InlineBench) -> None:
        await bench.warm()
        deadline_ns = time.monotonic_ns() + MS
        bench.gate.open()
        bench.timed.script = Script(latency_s=1.0)
        bench.timed._sleep = lambda pause_s: time.sleep(0.003)  # the loop is held as long
        _, reply = bench.submit(1.0, deadline_ns=deadline_ns)
        outcome = await reply.outcome()
        assert isinstance(outcome, Executed | DeadlineExpired)
        assert bench.timed.threads == [HERE]
        await asyncio.sleep(0.002)  # a timer that was left would fire
        assert len(reply.outcomes) == 1

    run(clock, scenario)


def test_what_is_cancelled_while_it_is_queued_never_reaches_the_engine(clock: Clock) -> None:
    async def scenario(bench: InlineBench) -> None:
        await bench.warm()
        request, given_up = bench.submit(1.0)
        _, kept = bench.submit(2.0)
        bench.cancel(request)
        assert isinstance(await given_up.error(), Cancelled)
        assert await kept.values() == [2.0]
        bench.cancel(request)
        assert len(given_up.outcomes) == 1
        assert bench.timed.rows_run == 2

    run(clock, scenario)


def test_a_reply_that_cancels_a_neighbour_of_its_batch_is_heeded(clock: Clock) -> None:
    async def scenario(bench: InlineBench) -> None:
        await bench.warm(1, 3)
        _, first = bench.submit(1.0, then=lambda _: bench.cancel(second))
        second, cancelled = bench.submit(2.0)
        _, third = bench.submit(3.0)
        assert (await first.values(), await third.values()) == ([1.0], [3.0])
        assert isinstance(await cancelled.error(), Cancelled)
        assert bench.timed.threads == [HERE]

    run(clock, scenario)


def test_a_bad_value_fails_its_request_and_the_others_are_run_alone(clock: Clock) -> None:
    async def scenario(bench: InlineBench) -> None:
        await bench.warm(1, 3)
        bench.reports.clear()
        (_, one), (_, bad), (_, two) = (bench.submit(value) for value in (1.0, 14.0, 2.0))
        assert isinstance(await bad.error(), InvalidInput)
        assert (await one.values(), await two.values()) == ([1.0], [2.0])
        assert [(r.requests, r.isolated) for r in bench.reports] == [(3, True)]
        assert set(bench.timed.threads) == {HERE}

    run(clock, scenario, script=Script(bad_on=14.0))


def test_an_engine_that_raises_is_no_end_of_the_batcher(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(bench: InlineBench) -> None:
        await bench.warm()
        _, failed = bench.submit(13.0)
        assert isinstance(await failed.error(), InstanceFailed)
        _, fine = bench.submit(1.0)
        assert await fine.values() == [1.0]
        assert set(bench.timed.threads) == {HERE}
        found = bench.statistics()
        assert (found.answered, found.failed, found.busy_instances) == (2, 1, 0)

    run(clock, scenario, script=Script(fail_on=13.0))
    assert "engine failed" in caplog.messages


def test_a_reply_that_raises_costs_its_neighbours_nothing(clock: Clock) -> None:
    async def scenario(bench: InlineBench) -> None:
        await bench.warm(1, 2)
        told: list[dict[str, Any]] = []  # Any: what asyncio tells
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

        def fail(outcome: object) -> None:
            raise RuntimeError("a bug of the caller")

        bench.submit(1.0, then=fail)
        _, neighbour = bench.submit(2.0)
        assert await neighbour.values() == [2.0]
        _, later = bench.submit(3.0)
        assert await later.values() == [3.0]
        assert [context["message"] for context in told] == ["a reply callback failed"]

    run(clock, scenario)


# Any traffic


@given(
    waves=st.lists(
        st.tuples(
            st.lists(st.integers(1, 4), min_size=1, max_size=6),
            st.sampled_from([0, BRIEF, SHORT_NS, LONG]),
            st.booleans(),
        ),
        max_size=8,
    ),
    max_batch_size=st.sampled_from([4, 8]),
)
@settings(max_examples=40, deadline=None)
def test_wherever_batches_run_each_request_gets_its_own_answer_once(
    waves: Sequence[tuple[list[int], int, bool]], max_batch_size: int
) -> None:
    clock = Clock()

    async def scenario(bench: InlineBench) -> None:
        number, replies = 0.0, []
        for sizes, takes_ns, is_awaited in waves:
            bench.timed.takes_ns = takes_ns
            for rows in sizes:
                values = [number + n for n in range(rows)]
                number += rows
                replies.append((values, bench.submit(*values)[1]))
            if is_awaited:
                await replies[-1][1].executed()
            else:
                await asyncio.sleep(0)
        for values, reply in replies:
            assert await reply.values() == values
        assert sum(report.rows for report in bench.reports) == number
        assert bench.timed.rows_run == number

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(instances, "time", clock)
        run(clock, scenario, policy=BatchPolicy(max_batch_size=max_batch_size))
