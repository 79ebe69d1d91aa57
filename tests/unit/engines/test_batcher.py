"""The asyncio driver of the queue: batching, order, bounds and draining.

Deadlines, cancellation and failure have files of their own beside this one. Where a test needs a
busy instance, a gate holds the batch inside the engine: no test waits for a latency to pass.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from engines.base import BatchPolicy
from engines.errors import QueueFull, VersionNotReady
from tests.support.batching import HANG_S, MS, Bench, Reply, build_bench, make_bench

A_MINUTE_US = 60_000_000


def test_requests_submitted_in_one_tick_share_a_batch() -> None:
    async def scenario() -> None:
        async with make_bench() as bench:
            replies = [bench.submit(float(n))[1] for n in range(5)]
            assert [await reply.values() for reply in replies] == [[float(n)] for n in range(5)]
            assert [(r.rows, r.requests, r.reason) for r in bench.reports] == [(5, 5, "delay")]

    asyncio.run(scenario())


def test_requests_that_arrive_while_the_instance_is_busy_go_together_when_it_is_free() -> None:
    async def scenario() -> None:
        async with make_bench(is_gated=True) as bench:
            await bench.block()
            replies = []
            for n in range(3):
                replies.append(bench.submit(float(n))[1])
                await asyncio.sleep(0)
            assert bench.statistics().queue.queued_requests == 3
            bench.gate.open()
            numbers = {(await reply.executed()).execution.number for reply in replies}
            assert len(numbers) == 1
            assert [r.rows for r in bench.reports] == [1, 3]

    asyncio.run(scenario())


def test_the_answer_tells_where_the_time_went_and_who_rode_along() -> None:
    async def scenario() -> None:
        async with make_bench(is_gated=True) as bench:
            _, first = await bench.block(1.0, 2.0)
            before_ns = time.monotonic_ns()
            _, second = bench.submit(3.0)
            bench.gate.open()
            one, two = await first.executed(), await second.executed()
            assert (one.execution.rows, one.execution.number) == (2, 1)
            assert (two.execution.rows, two.execution.number) == (1, 2)
            assert 0 <= two.queue_ns <= time.monotonic_ns() - before_ns
            assert min(one.execution.input_ns, one.execution.infer_ns, one.execution.output_ns) >= 0
            assert [r.infer_ns for r in bench.reports] == [
                one.execution.infer_ns,
                two.execution.infer_ns,
            ]

    asyncio.run(scenario())


def test_no_batch_exceeds_the_maximum_and_every_row_returns_to_its_request() -> None:
    async def scenario() -> None:
        async with make_bench(BatchPolicy(max_batch_size=4)) as bench:
            sizes = [1, 3, 2, 4, 1, 1, 2, 3, 3, 1, 4, 2]
            asked = [[float(10 * n + row) for row in range(size)] for n, size in enumerate(sizes)]
            replies = [bench.submit(*values)[1] for values in asked]
            assert [await reply.values() for reply in replies] == asked
            assert max(report.rows for report in bench.reports) <= 4
            assert sum(report.rows for report in bench.reports) == sum(sizes)

    asyncio.run(scenario())


def test_shapes_are_never_mixed() -> None:
    async def scenario() -> None:
        async with make_bench(is_gated=True) as bench:
            await bench.block()
            replies = {
                width: [bench.submit(1.0, width=width)[1] for _ in range(2)] for width in (1, 2, 3)
            }
            bench.gate.open()
            for width, pair in replies.items():
                answers = [await reply.executed() for reply in pair]
                assert {answer.execution.number for answer in answers} == {
                    answers[0].execution.number
                }
                assert [answer.outputs[0].shape for answer in answers] == [(1, width)] * 2
            assert [r.rows for r in bench.reports] == [1, 2, 2, 2]

    asyncio.run(scenario())


def test_a_preferred_size_does_not_wait_for_the_delay() -> None:
    async def scenario() -> None:
        policy = BatchPolicy(
            max_batch_size=8, preferred_batch_sizes=(3,), max_queue_delay_us=A_MINUTE_US
        )
        async with make_bench(policy) as bench:
            replies = [bench.submit(float(n))[1] for n in range(3)]
            await asyncio.gather(*(reply.executed() for reply in replies))
            assert [r.reason for r in bench.reports] == ["preferred"]

    asyncio.run(scenario())


def test_a_full_batch_does_not_wait_for_the_delay() -> None:
    async def scenario() -> None:
        policy = BatchPolicy(max_batch_size=2, max_queue_delay_us=A_MINUTE_US)
        async with make_bench(policy) as bench:
            _, first = bench.submit(1.0)
            await asyncio.sleep(0)
            assert first.outcomes == []
            _, second = bench.submit(2.0)
            await asyncio.gather(first.executed(), second.executed())
            assert [r.reason for r in bench.reports] == ["full"]

    asyncio.run(scenario())


def test_requests_of_several_ticks_share_a_batch_within_the_delay() -> None:
    async def scenario() -> None:
        policy = BatchPolicy(max_batch_size=8, max_queue_delay_us=30_000)
        async with make_bench(policy) as bench:
            started_ns = time.monotonic_ns()
            replies = []
            for n in range(3):
                replies.append(bench.submit(float(n))[1])
                await asyncio.sleep(0)
            await asyncio.gather(*(reply.executed() for reply in replies))
            assert replies[0].at_ns - started_ns >= 30 * MS
            assert bench.reports[0].reason == "delay"

    asyncio.run(scenario())


def in_order_of_answer(replies: dict[str, Reply]) -> list[str]:
    return sorted(replies, key=lambda name: replies[name].at_ns)


def test_equal_requests_are_answered_in_order_of_arrival() -> None:
    async def scenario() -> None:
        async with make_bench(BatchPolicy(max_batch_size=1), is_gated=True) as bench:
            await bench.block()
            replies = {str(n): bench.submit(float(n))[1] for n in range(8)}
            bench.gate.open()
            for reply in replies.values():
                await reply.executed()
            assert in_order_of_answer(replies) == [str(n) for n in range(8)]

    asyncio.run(scenario())


def test_the_earliest_deadline_runs_first() -> None:
    async def scenario() -> None:
        async with make_bench(BatchPolicy(max_batch_size=1), is_gated=True) as bench:
            await bench.block()
            now_ns = time.monotonic_ns()
            replies = {
                "undated": bench.submit(0.0)[1],
                "late": bench.submit(1.0, deadline_ns=now_ns + 900_000 * MS)[1],
                "soon": bench.submit(2.0, deadline_ns=now_ns + 900 * MS)[1],
            }
            bench.gate.open()
            for reply in replies.values():
                await reply.executed()
            assert in_order_of_answer(replies) == ["soon", "undated", "late"]

    asyncio.run(scenario())


def test_priorities_run_in_their_order() -> None:
    async def scenario() -> None:
        policy = BatchPolicy(max_batch_size=1, priority_levels=3)
        async with make_bench(policy, is_gated=True) as bench:
            await bench.block()
            replies = {str(level): bench.submit(1.0, priority=level)[1] for level in (3, 1, 2)}
            bench.gate.open()
            for reply in replies.values():
                await reply.executed()
            assert in_order_of_answer(replies) == ["1", "2", "3"]

    asyncio.run(scenario())


def test_instances_work_side_by_side_on_one_queue() -> None:
    async def scenario() -> None:
        policy = BatchPolicy(max_batch_size=1)
        async with make_bench(policy, instances=2, is_gated=True) as bench:
            replies = [bench.submit(float(n))[1] for n in range(3)]
            await bench.gate.entered()
            await bench.gate.entered()
            found = bench.statistics()
            assert (found.busy_instances, found.queue.queued_requests) == (2, 1)
            bench.gate.open()
            assert [await reply.values() for reply in replies] == [[0.0], [1.0], [2.0]]
            assert all(engine.batches_run for engine in bench.engines)

    asyncio.run(scenario())


def test_a_request_over_the_bound_in_rows_is_refused_and_harms_nobody() -> None:
    async def scenario() -> None:
        policy = BatchPolicy(max_batch_size=4, max_queue_rows=5)
        async with make_bench(policy, is_gated=True) as bench:
            _, running = await bench.block()
            waiting = [bench.submit(1.0, 2.0)[1], bench.submit(3.0, 4.0)[1]]
            with pytest.raises(QueueFull) as full:
                bench.submit(5.0, 6.0)
            assert str(full.value) == (
                "the queue of model 'echo' version 1 is full: its limit is 5 rows"
            )
            waiting.append(bench.submit(7.0)[1])
            bench.gate.open()
            assert [await r.values() for r in (running, *waiting)] == [
                [0.0],
                [1.0, 2.0],
                [3.0, 4.0],
                [7.0],
            ]
            found = bench.statistics()
            assert (found.accepted, found.answered, found.queue.refused) == (4, 4, 1)

    asyncio.run(scenario())


def test_a_request_over_the_bound_in_requests_is_refused() -> None:
    async def scenario() -> None:
        policy = BatchPolicy(max_batch_size=4, max_queue_requests=1)
        async with make_bench(policy, is_gated=True) as bench:
            await bench.block()
            bench.submit(1.0)
            with pytest.raises(QueueFull, match="its limit is 1 requests"):
                bench.submit(2.0)

    asyncio.run(scenario())


def test_a_drain_answers_what_was_accepted_and_refuses_what_comes() -> None:
    async def scenario() -> None:
        policy = BatchPolicy(max_batch_size=2, max_queue_delay_us=A_MINUTE_US)
        async with make_bench(policy, is_gated=True) as bench:
            replies = [bench.submit(float(n))[1] for n in range(5)]
            await bench.gate.entered()
            drain = asyncio.create_task(bench.batcher.drain())
            await asyncio.sleep(0)
            with pytest.raises(VersionNotReady, match="'echo' version 1 is not ready: it is being"):
                bench.submit(9.0)
            assert not drain.done()
            bench.gate.open()
            await asyncio.wait_for(drain, HANG_S)
            assert [reply.outcomes != [] for reply in replies] == [True] * 5
            assert [r.reason for r in bench.reports] == ["full", "full", "drain"]
            assert bench.statistics().queue.queued_rows == 0

    asyncio.run(scenario())


def test_a_drain_sends_what_waits_for_companions_at_once_and_waits_for_it() -> None:
    async def scenario() -> None:
        policy = BatchPolicy(max_batch_size=8, max_queue_delay_us=A_MINUTE_US)
        async with make_bench(policy, is_gated=True) as bench:
            _, waiting = bench.submit(1.0)
            await asyncio.sleep(0)
            drain = asyncio.create_task(bench.batcher.drain())
            await bench.gate.entered()
            assert not drain.done()
            bench.gate.open()
            await asyncio.wait_for(drain, HANG_S)
            assert await waiting.values() == [1.0]

    asyncio.run(scenario())


def test_an_idle_batcher_is_drained_at_once_and_may_be_drained_twice() -> None:
    async def scenario() -> None:
        async with make_bench() as bench:
            await asyncio.wait_for(bench.batcher.drain(), HANG_S)
            await asyncio.wait_for(bench.batcher.drain(), HANG_S)

    asyncio.run(scenario())


def test_closing_drains_and_then_closes_every_engine() -> None:
    async def scenario() -> None:
        async with make_bench(instances=2, is_gated=True) as bench:
            _, running = await bench.block()
            closing = asyncio.create_task(bench.batcher.close())
            await asyncio.sleep(0)
            assert not any(engine.is_closed for engine in bench.engines)
            bench.gate.open()
            await asyncio.wait_for(closing, HANG_S)
            assert len(running.outcomes) == 1
            assert all(engine.is_closed for engine in bench.engines)

    asyncio.run(scenario())


def test_a_result_that_comes_after_the_loop_has_gone_is_dropped_quietly() -> None:
    async def abandon() -> Bench:
        bench = build_bench(is_gated=True)
        await bench.block()
        return bench

    bench = asyncio.run(abandon())
    bench.gate.open()
    for instance in bench.instances:
        instance.close()  # would hang if the thread had died of the closed loop
    assert bench.engines[0].rows_run == 1


def test_its_repr_names_the_version_and_the_queue() -> None:
    async def scenario() -> None:
        async with make_bench() as bench:
            expected = "<Batcher echo/1 <BatchQueue 0 requests, 0 rows, 0 shapes>>"
            assert repr(bench.batcher) == expected

    asyncio.run(scenario())
