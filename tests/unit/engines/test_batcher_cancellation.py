"""The cancellation matrix: a request given up while queued, batched, executing or responding.

In every row: the request is answered exactly once, its neighbours get their own answers, and the
counters still add up (the bench checks them at every step).
"""

from __future__ import annotations

import asyncio
import time
from random import Random

import pytest

from engines.base import BatchPolicy
from engines.batch_queue import QueuedRequest
from engines.errors import Cancelled, DeadlineExpired, QueueFull
from engines.fake import Script
from tests.support.batching import HANG_S, MS, Bench, Reply, make_bench


def test_queued_it_leaves_the_queue_and_never_reaches_the_engine() -> None:
    async def scenario() -> None:
        async with make_bench(is_gated=True) as bench:
            await bench.block()
            _, before = bench.submit(1.0)
            request, given_up = bench.submit(2.0, 3.0)
            _, behind = bench.submit(4.0)
            bench.cancel(request)
            assert isinstance(given_up.outcomes[0], Cancelled)
            assert bench.statistics().queue.queued_rows == 2
            bench.gate.open()
            assert [await before.values(), await behind.values()] == [[1.0], [4.0]]
        assert bench.engines[0].rows_run == 3
        assert len(given_up.outcomes) == 1

    asyncio.run(scenario())


def test_between_submit_and_dispatch_it_never_reaches_the_engine() -> None:
    async def scenario() -> None:
        async with make_bench() as bench:
            request, given_up = bench.submit(1.0)
            _, neighbour = bench.submit(2.0)
            bench.cancel(request)
            assert await neighbour.values() == [2.0]
            assert isinstance(await given_up.outcome(), Cancelled)
        assert bench.engines[0].rows_run == 1

    asyncio.run(scenario())


def test_alone_between_submit_and_dispatch_it_starts_no_batch() -> None:
    async def scenario() -> None:
        async with make_bench() as bench:
            request, _ = bench.submit(1.0)
            bench.cancel(request)
            await asyncio.sleep(0)
            assert bench.statistics().busy_instances == 0
        assert bench.engines[0].batches_run == 0

    asyncio.run(scenario())


def test_while_waiting_for_companions_it_leaves_and_the_others_still_go() -> None:
    async def scenario() -> None:
        policy = BatchPolicy(max_batch_size=2, max_queue_delay_us=60_000_000)
        async with make_bench(policy) as bench:
            request, _ = bench.submit(1.0)
            await asyncio.sleep(0)
            bench.cancel(request)
            replies = [bench.submit(2.0)[1], bench.submit(3.0)[1]]
            assert [await reply.values() for reply in replies] == [[2.0], [3.0]]

    asyncio.run(scenario())


def test_executing_it_is_computed_and_discarded() -> None:
    async def scenario() -> None:
        async with make_bench(is_gated=True) as bench:
            request, given_up = bench.submit(1.0)
            _, neighbour = bench.submit(2.0)
            await bench.gate.entered()
            bench.cancel(request)
            assert isinstance(given_up.outcomes[0], Cancelled)
            bench.gate.open()
            assert await neighbour.values() == [2.0]
        assert len(given_up.outcomes) == 1
        assert bench.engines[0].rows_run == 2

    asyncio.run(scenario())


def test_executing_in_a_batch_that_fails_it_is_still_only_cancelled() -> None:
    async def scenario() -> None:
        script = Script(latency_s=1.0, bad_on=13.0)
        async with make_bench(is_gated=True, script=script) as bench:
            request, given_up = bench.submit(13.0)
            _, neighbour = bench.submit(2.0)
            await bench.gate.entered()
            bench.cancel(request)
            bench.gate.open()
            assert await neighbour.values() == [2.0]
            assert [type(outcome) for outcome in given_up.outcomes] == [Cancelled]

    asyncio.run(scenario())


def test_responding_it_is_given_up_by_a_neighbours_reply() -> None:
    async def scenario() -> None:
        async with make_bench(is_gated=True) as bench:
            victims: list[QueuedRequest] = []
            _, first = bench.submit(1.0, then=lambda outcome: bench.cancel(victims[0]))
            request, given_up = bench.submit(2.0)
            _, third = bench.submit(3.0)
            victims.append(request)
            bench.gate.open()
            assert [await first.values(), await third.values()] == [[1.0], [3.0]]
            assert [type(outcome) for outcome in given_up.outcomes] == [Cancelled]
            found = bench.statistics()
            assert (found.answered, found.cancelled) == (2, 1)

    asyncio.run(scenario())


def test_expiring_it_is_given_up_by_the_reply_of_one_that_expires_with_it() -> None:
    async def scenario() -> None:
        async with make_bench(is_gated=True) as bench:
            await bench.block()
            victims: list[QueuedRequest] = []
            instant_ns = time.monotonic_ns() + 5 * MS
            _, first = bench.submit(
                1.0, deadline_ns=instant_ns, then=lambda outcome: bench.cancel(victims[0])
            )
            request, given_up = bench.submit(2.0, deadline_ns=instant_ns)
            _, third = bench.submit(3.0, deadline_ns=instant_ns)
            victims.append(request)
            assert isinstance(await first.error(), DeadlineExpired)
            assert isinstance(await third.error(), DeadlineExpired)
            assert [type(outcome) for outcome in given_up.outcomes] == [Cancelled]
            found = bench.statistics()
            assert (found.expired, found.cancelled) == (2, 1)

    asyncio.run(scenario())


def test_answered_it_stays_answered() -> None:
    async def scenario() -> None:
        async with make_bench() as bench:
            request, reply = bench.submit(1.0)
            await reply.executed()
            bench.cancel(request)
            bench.cancel(request)
            assert len(reply.outcomes) == 1
            assert bench.statistics().cancelled == 0

    asyncio.run(scenario())


def test_a_request_may_cancel_itself_in_its_own_reply_without_effect() -> None:
    async def scenario() -> None:
        async with make_bench() as bench:
            own: list[QueuedRequest] = []
            request, reply = bench.submit(1.0, then=lambda outcome: bench.cancel(own[0]))
            own.append(request)
            await reply.executed()
            assert len(reply.outcomes) == 1

    asyncio.run(scenario())


def test_cancelled_requests_free_their_share_of_the_bound_at_once() -> None:
    async def scenario() -> None:
        policy = BatchPolicy(max_batch_size=4, max_queue_rows=4)
        async with make_bench(policy, is_gated=True) as bench:
            await bench.block()
            request, _ = bench.submit(1.0, 2.0, 3.0, 4.0)
            with pytest.raises(QueueFull):
                bench.submit(5.0)
            bench.cancel(request)
            bench.submit(5.0)

    asyncio.run(scenario())


@pytest.mark.parametrize("is_early", [True, False])
def test_a_drain_ends_though_everything_that_was_executing_is_cancelled(is_early: bool) -> None:
    async def scenario() -> None:
        async with make_bench(is_gated=True) as bench:
            request, _ = await bench.block(1.0)
            if is_early:
                bench.cancel(request)
            drain = asyncio.create_task(bench.batcher.drain())
            await asyncio.sleep(0)
            if not is_early:
                bench.cancel(request)
            await asyncio.sleep(0)
            assert not drain.done()
            bench.gate.open()
            await asyncio.wait_for(drain, HANG_S)

    asyncio.run(scenario())


def test_a_drain_ends_when_the_last_queued_request_is_cancelled() -> None:
    async def scenario() -> None:
        async with make_bench(is_gated=True) as bench:
            await bench.block()
            request, _ = bench.submit(1.0)
            drain = asyncio.create_task(bench.batcher.drain())
            await asyncio.sleep(0)
            bench.cancel(request)
            bench.gate.open()
            await asyncio.wait_for(drain, HANG_S)

    asyncio.run(scenario())


async def storm(bench: Bench, rng: Random) -> list[Reply]:
    """Submit, cancel, expire and poison at random for some ticks; return the accepted replies."""
    accepted: list[tuple[QueuedRequest, Reply]] = []
    for _ in range(200):
        for _ in range(rng.randrange(4)):
            values = [float(rng.randrange(40)) for _ in range(rng.randint(1, 4))]
            is_dated = rng.random() < 0.3
            deadline_ns = time.monotonic_ns() + rng.randint(-1, 5) * MS if is_dated else None
            try:
                accepted.append(
                    bench.submit(*values, width=rng.randint(1, 2), deadline_ns=deadline_ns)
                )
            except QueueFull:
                continue
        if accepted and rng.random() < 0.4:
            bench.cancel(rng.choice(accepted)[0])
        if rng.random() < 0.7:
            bench.gate.let_go()
        await asyncio.sleep(0)
    return [reply for _, reply in accepted]


@pytest.mark.parametrize("seed", range(5))
def test_through_a_storm_of_submissions_and_cancellations_each_is_answered_once(seed: int) -> None:
    async def scenario() -> None:
        policy = BatchPolicy(max_batch_size=4, max_queue_rows=24)
        script = Script(latency_s=1.0, bad_on=13.0)
        async with make_bench(policy, instances=2, is_gated=True, script=script) as bench:
            replies = await storm(bench, Random(seed))
            bench.gate.open()
            await asyncio.wait_for(bench.batcher.drain(), HANG_S)
            assert {len(reply.outcomes) for reply in replies} == {1}
            found = bench.statistics()
            assert found.accepted == len(replies)
            assert found.in_flight == 0

    asyncio.run(scenario())
