"""Deadlines in the batcher: on time, whatever the instances are doing, and exactly once.

The instants are real, because the timers are the event loop's; every bound leaves room for a
loaded machine, and an instance that is held shows that no answer could have come instead.
"""

from __future__ import annotations

import asyncio
import sys
import time

from engines.errors import DeadlineExpired
from tests.support.batching import MS, Bench, make_bench, make_request


def test_a_deadline_fires_at_its_instant_while_the_instance_is_busy() -> None:
    async def scenario() -> None:
        async with make_bench(is_gated=True) as bench:
            _, running = await bench.block()
            deadline_ns = time.monotonic_ns() + 10 * MS
            _, queued = bench.submit(1.0, deadline_ns=deadline_ns)
            error = await queued.error()
            assert isinstance(error, DeadlineExpired)
            assert "while the request was queued" in str(error)
            assert 0 <= queued.at_ns - deadline_ns < 1_000 * MS
            assert running.outcomes == []
            assert bench.statistics().queue.queued_rows == 0
            bench.gate.open()
            await running.executed()
        assert bench.engines[0].rows_run == 1

    asyncio.run(scenario())


def test_an_earlier_deadline_that_comes_later_is_not_missed() -> None:
    async def scenario() -> None:
        async with make_bench(is_gated=True) as bench:
            await bench.block()
            now_ns = time.monotonic_ns()
            _, distant = bench.submit(1.0, deadline_ns=now_ns + 600_000 * MS)
            replies = [bench.submit(2.0, deadline_ns=now_ns + ms * MS)[1] for ms in (30, 10, 20)]
            for reply in replies:
                assert isinstance(await reply.error(), DeadlineExpired)
            assert replies[1].at_ns <= replies[2].at_ns <= replies[0].at_ns
            assert distant.outcomes == []

    asyncio.run(scenario())


def test_a_deadline_also_fires_while_the_request_is_executing_and_its_answer_is_dropped() -> None:
    async def scenario() -> None:
        async with make_bench(is_gated=True) as bench:
            _, expiring = bench.submit(1.0, deadline_ns=time.monotonic_ns() + 500 * MS)
            _, neighbour = bench.submit(2.0)
            await bench.gate.entered()
            assert "while the request was executing" in str(await expiring.error())
            bench.gate.open()
            assert await neighbour.values() == [2.0]
            assert len(expiring.outcomes) == 1
            assert (bench.statistics().expired, bench.statistics().answered) == (1, 1)

    asyncio.run(scenario())


def test_a_request_whose_deadline_has_passed_never_reaches_the_engine() -> None:
    async def scenario() -> None:
        async with make_bench() as bench:
            _, stale = bench.submit(1.0, deadline_ns=time.monotonic_ns() - 1)
            _, fresh = bench.submit(2.0)
            assert isinstance(await stale.error(), DeadlineExpired)
            assert await fresh.values() == [2.0]
        assert bench.engines[0].rows_run == 1

    asyncio.run(scenario())


def test_a_late_event_loop_does_not_send_expired_requests_to_the_engine() -> None:
    def be_late(bench: Bench) -> None:
        # The batch ends while the loop is held up, and so both its result and the deadline are
        # due at once when the loop goes on.
        bench.gate.let_go()
        time.sleep(0.1)

    async def scenario() -> None:
        async with make_bench(is_gated=True) as bench:
            _, running = await bench.block()
            _, queued = bench.submit(1.0, deadline_ns=time.monotonic_ns() + 50 * MS)
            be_late(bench)
            await running.executed()
            assert isinstance(await queued.error(), DeadlineExpired)
        assert bench.engines[0].rows_run == 1

    asyncio.run(scenario())


def test_answered_requests_are_not_kept_until_their_distant_deadlines() -> None:
    def on_done(outcome: object) -> None:
        """Referred to by every request, so its reference count tells how many are alive."""

    async def scenario() -> None:
        async with make_bench() as bench:
            unused = sys.getrefcount(on_done)
            distant_ns = time.monotonic_ns() + 600_000 * MS
            for _ in range(50):
                for _ in range(8):
                    bench.batcher.submit(make_request(deadline_ns=distant_ns, on_done=on_done))
                await bench.submit(1.0)[1].executed()
            assert bench.statistics().answered == 450
            assert sys.getrefcount(on_done) - unused < 100

    asyncio.run(scenario())


def test_an_answered_request_does_not_expire_later() -> None:
    async def scenario() -> None:
        async with make_bench() as bench:
            _, answered = bench.submit(1.0, deadline_ns=time.monotonic_ns() + 2_000 * MS)
            await answered.executed()
            _, expiring = bench.submit(2.0, deadline_ns=time.monotonic_ns() - 1)
            await expiring.error()
            assert len(answered.outcomes) == 1

    asyncio.run(scenario())
