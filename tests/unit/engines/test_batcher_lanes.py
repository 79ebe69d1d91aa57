"""A batcher over instances that take several batches at once: capacity, draining, statistics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from engines.base import BatchPolicy
from engines.batcher import Batcher
from engines.errors import Cancelled, DeadlineExpired, InstanceFailed, VersionNotReady
from engines.executed import BatchReport, Executed
from engines.instance import Host, Instance
from engines.laned import LanedInstance
from tests.support.batching import HANG_S, MS, Gate, Reply, make_request, until
from tests.support.laned import LanedScript, ScriptedLaned

ONE_ROW = BatchPolicy(max_batch_size=1)


class LanedBench:
    """A batcher over scripted laned engines whose batches a gate holds."""

    def __init__(self, policy: BatchPolicy, engines: Sequence[ScriptedLaned], gate: Gate) -> None:
        self.engines = engines
        self.gate = gate
        self.reports: list[BatchReport] = []
        self.hosts: list[Host] = [
            LanedInstance(name=f"m/1#{n}", model="m", version="1", engine=engine)
            for n, engine in enumerate(engines)
        ]
        self.batcher = Batcher(
            model="m",
            version="1",
            policy=policy,
            instances=self.hosts,
            on_batch=self.reports.append,
        )

    def submit(self, *values: float, deadline_ns: int | None = None) -> Reply:
        reply = Reply()
        self.batcher.submit(make_request(values, deadline_ns=deadline_ns, on_done=reply))
        return reply

    @property
    def under_way(self) -> int:
        """Batches that a lane holds."""
        calls = [name for engine in self.engines for name in engine.calls.names]
        return calls.count("acquire") - calls.count("release")


@asynccontextmanager
async def open_bench(
    *lanes: int,
    policy: BatchPolicy | None = None,
    is_gated: bool = True,
    script: LanedScript | None = None,
    buckets: tuple[int, ...] = (),
) -> AsyncIterator[LanedBench]:
    gate = Gate()
    engines = [
        ScriptedLaned(
            count, script=script, buckets=buckets, wait=gate if is_gated else lambda _: None
        )
        for count in lanes
    ]
    bench = LanedBench(policy or BatchPolicy(max_batch_size=8), engines, gate)
    try:
        yield bench
    finally:
        gate.open()
        await asyncio.wait_for(bench.batcher.close(), HANG_S)
        assert all(engine.is_closed and engine.broken == [] for engine in engines)


def test_an_instance_gets_as_many_batches_as_it_has_lanes_and_the_rest_wait() -> None:
    async def scenario() -> None:
        async with open_bench(2, policy=ONE_ROW) as bench:
            replies = [bench.submit(float(n)) for n in range(5)]
            await until(lambda: bench.under_way == 2)
            found = bench.batcher.statistics()
            assert (found.in_flight, found.queue.queued_requests) == (5, 3)
            assert (found.instances, found.busy_instances, found.lost_instances) == (1, 1, 0)
            bench.gate.let_go()
            assert await replies[0].values() == [0.0]
            await until(lambda: bench.batcher.statistics().queue.queued_requests == 2)
            bench.gate.open()
            assert [await reply.values() for reply in replies[1:]] == [[1.0], [2.0], [3.0], [4.0]]
            assert bench.engines[0].most_leases == 2

    asyncio.run(scenario())


def test_an_instance_with_a_lane_left_counts_as_busy_and_still_takes_a_batch() -> None:
    async def scenario() -> None:
        async with open_bench(3, policy=ONE_ROW) as bench:
            assert bench.batcher.statistics().busy_instances == 0
            bench.submit(1.0)
            await bench.gate.entered()
            assert bench.batcher.statistics().busy_instances == 1
            bench.submit(2.0)
            await until(lambda: bench.under_way == 2)
            bench.gate.open()
            await until(lambda: bench.batcher.statistics().busy_instances == 0)

    asyncio.run(scenario())


def test_the_first_batches_go_to_different_instances() -> None:
    async def scenario() -> None:
        async with open_bench(2, 1, 2, policy=ONE_ROW) as bench:
            for n in range(3):
                bench.submit(float(n))
            await until(lambda: bench.under_way == 3)
            assert [engine.calls.names.count("submit") for engine in bench.engines] == [1, 1, 1]
            for n in range(9):
                bench.submit(float(n))
            await until(lambda: bench.under_way == 5)
            assert [engine.most_leases for engine in bench.engines] == [2, 1, 2]
            assert bench.batcher.statistics().busy_instances == 3

    asyncio.run(scenario())


def test_requests_that_wait_for_a_lane_share_the_next_batch_and_are_padded_together() -> None:
    async def scenario() -> None:
        async with open_bench(2, buckets=(1, 4, 8)) as bench:
            first = [bench.submit(1.0)]
            await until(lambda: bench.under_way == 1)
            first.append(bench.submit(2.0))
            await until(lambda: bench.under_way == 2)
            waiting = [bench.submit(float(n)) for n in (3, 4, 5)]
            bench.gate.open()
            assert [await reply.values() for reply in (*first, *waiting)] == [
                [float(n)] for n in range(1, 6)
            ]
            assert bench.engines[0].rows == [1, 1, 4]
            assert [(r.rows, r.padded_rows) for r in bench.reports] == [(1, 0), (1, 0), (3, 1)]

    asyncio.run(scenario())


def test_draining_waits_for_every_lane() -> None:
    async def scenario() -> None:
        async with open_bench(2, policy=ONE_ROW) as bench:
            replies = [bench.submit(float(n)) for n in range(4)]
            await until(lambda: bench.under_way == 2)
            draining = asyncio.create_task(bench.batcher.drain())
            await asyncio.sleep(0)
            with pytest.raises(VersionNotReady, match="it is being unloaded"):
                bench.submit(9.0)
            bench.gate.let_go(3)
            assert [await reply.values() for reply in replies[:3]] == [[0.0], [1.0], [2.0]]
            await asyncio.sleep(0.01)
            assert not draining.done()
            bench.gate.let_go()
            await asyncio.wait_for(draining, HANG_S)
            assert await replies[3].values() == [3.0]
            found = bench.batcher.statistics()
            assert (found.answered, found.in_flight, found.busy_instances) == (4, 0, 0)

    asyncio.run(scenario())


def test_draining_waits_for_a_lane_whose_request_is_cancelled() -> None:
    async def scenario() -> None:
        async with open_bench(2) as bench:
            reply = Reply()
            request = make_request([1.0], on_done=reply)
            bench.batcher.submit(request)
            await bench.gate.entered()
            bench.batcher.cancel(request)
            assert isinstance(await reply.error(), Cancelled)
            draining = asyncio.create_task(bench.batcher.drain())
            await asyncio.sleep(0.01)
            assert not draining.done()
            bench.gate.open()
            await asyncio.wait_for(draining, HANG_S)

    asyncio.run(scenario())


def test_a_deadline_passes_while_all_lanes_are_taken() -> None:
    async def scenario() -> None:
        async with open_bench(2, policy=ONE_ROW) as bench:
            held = [bench.submit(float(n)) for n in range(2)]
            await until(lambda: bench.under_way == 2)
            now_ns = make_request().enqueued_ns
            late = bench.submit(9.0, deadline_ns=now_ns + 5 * MS)
            error = await late.error()
            assert isinstance(error, DeadlineExpired)
            assert error.stage == "queued"
            bench.gate.open()
            assert [await reply.values() for reply in held] == [[0.0], [1.0]]
            assert bench.engines[0].rows == [1, 1]

    asyncio.run(scenario())


def test_one_requests_value_fails_it_alone_and_the_lanes_go_on() -> None:
    async def scenario() -> None:
        script = LanedScript(collect_fails_on=13)
        async with open_bench(2, is_gated=False, script=script) as bench:
            replies = [bench.submit(value) for value in (1.0, 13.0, 2.0)]
            assert await replies[0].values() == [1.0]
            assert isinstance(await replies[1].error(), InstanceFailed)
            assert await replies[2].values() == [2.0]
            assert [(report.rows, report.isolated) for report in bench.reports] == [(3, True)]
            assert await bench.submit(3.0).values() == [3.0]
            assert bench.batcher.statistics().lost_instances == 0

    asyncio.run(scenario())


def test_laned_and_plain_instances_share_a_queue() -> None:
    async def scenario() -> None:
        async with open_bench(2, policy=ONE_ROW, is_gated=False) as bench:
            plain = Instance(
                name="m/1#9", model="m", version="1", engine=ScriptedLaned(max_batch_size=8)
            )
            reports: list[BatchReport] = []
            batcher = Batcher(
                model="m",
                version="1",
                policy=ONE_ROW,
                instances=[plain, *bench.hosts],
                on_batch=reports.append,
            )
            replies = [Reply() for _ in range(50)]
            for n, reply in enumerate(replies):
                batcher.submit(make_request([float(n)], on_done=reply))
            assert [await reply.values() for reply in replies] == [[float(n)] for n in range(50)]
            await batcher.drain()
            assert len(reports) == 50
            await asyncio.to_thread(plain.close)

    asyncio.run(scenario())


@pytest.mark.parametrize("lanes", [(1,), (2,), (3, 2)])
def test_of_many_requests_each_gets_its_own_rows(lanes: tuple[int, ...]) -> None:
    async def scenario() -> None:
        async with open_bench(*lanes, is_gated=False, buckets=(1, 2, 4, 8)) as bench:
            replies = []
            for n in range(400):
                replies.append(bench.submit(*[n + row / 8 for row in range(1 + n % 3)]))
                if n % 7 == 0:
                    await asyncio.sleep(0)
            for n, reply in enumerate(replies):
                assert await reply.values() == [n + row / 8 for row in range(1 + n % 3)]
                assert isinstance(reply.outcomes[0], Executed)
            assert all(e.most_leases <= e.lanes for e in bench.engines)
            assert {rows for engine in bench.engines for rows in engine.rows} <= {1, 2, 4, 8}

    asyncio.run(scenario())
