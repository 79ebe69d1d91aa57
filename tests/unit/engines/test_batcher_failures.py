"""One request's trouble stays its own: bad values, failing engines, replies that raise."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from engines.base import BatchPolicy
from engines.batcher import Batcher
from engines.errors import InstanceFailed, InvalidInput
from engines.fake import Script
from tests.support.batching import Reply, make_bench, make_request


def test_a_value_that_the_model_cannot_take_fails_only_the_request_that_brought_it() -> None:
    async def scenario() -> None:
        async with make_bench(script=Script(bad_on=13.0)) as bench:
            _, before = bench.submit(1.0, 2.0)
            _, poisoned = bench.submit(3.0, 13.0)
            _, behind = bench.submit(4.0)
            assert [await before.values(), await behind.values()] == [[1.0, 2.0], [4.0]]
            error = await poisoned.error()
            assert isinstance(error, InvalidInput)
            assert str(error) == "the model cannot take the value 13"
            assert [(r.rows, r.isolated) for r in bench.reports] == [(5, True)]
            found = bench.statistics()
            assert (found.answered, found.failed) == (2, 1)

    asyncio.run(scenario())


def test_a_foreign_exception_fails_only_its_request_and_says_nothing_of_its_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        async with make_bench(script=Script(fail_on=13.0)) as bench:
            replies = [bench.submit(value)[1] for value in (1.0, 13.0, 2.0)]
            assert [await replies[0].values(), await replies[2].values()] == [[1.0], [2.0]]
            error = await replies[1].error()
            assert isinstance(error, InstanceFailed)
            assert str(error) == "model 'echo' version 1 failed to execute the request"

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    (record,) = caplog.records
    assert record.getMessage() == "engine failed"
    assert record.exc_info is not None
    assert "scripted failure" in str(record.exc_info[1])


def test_an_instance_goes_on_after_a_batch_that_failed() -> None:
    async def scenario() -> None:
        async with make_bench(script=Script(bad_on=13.0)) as bench:
            _, bad = bench.submit(13.0)
            assert isinstance(await bad.error(), InvalidInput)
            assert [r.isolated for r in bench.reports] == [False]
            _, good = bench.submit(1.0)
            assert await good.values() == [1.0]

    asyncio.run(scenario())


def test_a_batch_of_only_bad_requests_fails_each_of_them() -> None:
    async def scenario() -> None:
        async with make_bench(script=Script(bad_on=13.0)) as bench:
            replies = [bench.submit(13.0)[1] for _ in range(3)]
            for reply in replies:
                assert isinstance(await reply.error(), InvalidInput)
            assert bench.statistics().failed == 3

    asyncio.run(scenario())


def test_a_reply_that_raises_costs_its_neighbours_nothing_and_is_reported() -> None:
    contexts: list[dict[str, Any]] = []  # Any: asyncio's own type of a context

    def fail(outcome: object) -> None:
        raise LookupError("the caller's own fault")

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: contexts.append(context)
        )
        async with make_bench() as bench:
            _, first = bench.submit(1.0)
            bench.submit(2.0, then=fail)
            _, third = bench.submit(3.0)
            assert [await first.values(), await third.values()] == [[1.0], [3.0]]
            assert bench.statistics().answered == 3
            _, next_one = bench.submit(4.0)
            assert await next_one.values() == [4.0]

    asyncio.run(scenario())
    (context,) = contexts
    assert context["message"] == "a reply callback failed"
    assert isinstance(context["exception"], LookupError)


def test_a_report_that_raises_loses_no_answer() -> None:
    def fail(report: object) -> None:
        raise LookupError("a fault in the metrics")

    async def scenario() -> None:
        contexts: list[dict[str, Any]] = []  # Any: asyncio's own type of a context
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: contexts.append(context)
        )
        async with make_bench() as bench:
            batcher = Batcher(
                model="echo",
                version="1",
                policy=BatchPolicy(max_batch_size=8),
                instances=bench.instances,
                on_batch=fail,
            )
            for _ in range(2):
                reply = Reply()
                batcher.submit(make_request([1.0], on_done=reply))
                await reply.executed()
                await asyncio.sleep(0)
            assert batcher.statistics().answered == 2
            assert len(contexts) == 2

    asyncio.run(scenario())
