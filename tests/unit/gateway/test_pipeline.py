"""One request through the core: answers, records and counts, and the order between them."""

from __future__ import annotations

import asyncio
import gc
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engines.base import BatchPolicy
from engines.errors import DeadlineExpired, InstanceFailed, InvalidInput, QueueFull
from engines.tensors import from_array
from gateway.errors import Code, Draining, Starting, UnknownName, Unrepresentable
from gateway.lifecycle import Lifecycle
from gateway.pipeline import deadline_ns, priority
from gateway.prediction_log.record import Origin, PredictionRecord
from gateway.request import InferRequest, InferResponse
from router.routes import EXPERIMENT, Fallback, Route, Variant
from tests.support.batching import MS, make_bench, rows_of
from tests.support.desk import Desk, open_desk, request_of, route_of
from tests.support.repositories import Shelf


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    made = Shelf(tmp_path)
    made.add_fake("echo", "1", fail_on=13, bad_on=14)
    made.add_fake("echo", "2")
    return made


SPLIT = route_of("split", ("stable", "echo", "1", 90), ("canary", "echo", "2", 10))


def record_of(desk: Desk) -> PredictionRecord:
    """Return the only record."""
    (record,) = desk.log.records
    return record


def origin_of(desk: Desk) -> Origin:
    """Return whence the only record comes."""
    return record_of(desk).origin


def test_an_answer_names_its_server_and_echoes_the_id(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_desk(shelf) as desk:
            request = request_of("echo", 1.0, 2.0)
            request.id = "order-66"
            _, answered = desk.submit(request)
            answer = await answered.answer()
            assert isinstance(answer, InferResponse)
            assert (answer.model, answer.version, answer.id) == ("echo", "2", "order-66")
            assert await answered.values() == [1.0, 2.0]
            assert answered.served_by is not None
            assert dict(answered.served_by.headers()).keys() == {
                "x-request-id",
                "x-sluice-reason",
            }

    asyncio.run(scenario())


def test_a_record_holds_the_request_its_answer_and_who_served(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_desk(shelf, SPLIT) as desk:
            desk.draws = [0.05]
            request = request_of("split", 1.5, x_request_id="from-afar")
            _, answered = desk.submit(request)
            await answered.values()
            record, origin = record_of(desk), origin_of(desk)
            assert (origin.name, origin.model, origin.version) == ("split", "echo", "2")
            assert (origin.variant, origin.served, origin.reason) == ("canary", "canary", "random")
            assert (origin.revision, origin.propensity) == (3, 0.1)
            assert (record.status, record.error, record.cid) == (200, "", "from-afar")
            assert record.inputs == request.inputs
            assert [t.array().tolist() for t in record.outputs] == [[[1.5]]]
            assert record.execution is not None
            assert record.execution.rows == 1
            assert record.total_us >= record.queue_us + record.execution.infer_ns // 1_000
            assert answered.served_by is not None
            assert answered.served_by.request_id.replace("-", "") == record.rid.hex()

    asyncio.run(scenario())


def test_a_record_and_an_answer_name_who_was_assigned_where_the_fallback_served(
    shelf: Shelf,
) -> None:
    shelf.add_fake("broken", "1").write_text("this is no script")
    variants = (
        Variant(name="stable", model="echo", version="2", slots=900_000),
        Variant(name="canary", model="broken", version="1", slots=100_000),
    )
    route = Route(
        name="r",
        revision=3,
        salt="r",
        key=(),
        variants=variants,
        fallback=Fallback(to="stable"),
    )

    async def scenario() -> None:
        async with open_desk(shelf, route) as desk:
            desk.draws = [0.05]
            _, answered = desk.submit(request_of("r", 1.5))
            assert await answered.values() == [1.5]
            origin = origin_of(desk)
            assert (origin.model, origin.version) == ("echo", "2")
            assert (origin.variant, origin.served) == ("canary", "stable")
            assert (origin.reason, origin.propensity) == ("fallback", 0.1)
            assert answered.served_by is not None
            assert dict(answered.served_by.headers()) == {
                "x-request-id": answered.served_by.request_id,
                "x-sluice-variant": "stable",
                "x-sluice-assigned": "canary",
                "x-sluice-reason": "fallback",
                "x-sluice-revision": "3",
            }

    asyncio.run(scenario())


def test_only_queued_requests_of_watched_routes_are_handed_to_the_watch(shelf: Shelf) -> None:
    watched = replace(SPLIT, name="watched", kind=EXPERIMENT)

    async def scenario() -> None:
        async with open_desk(shelf, SPLIT, watched) as desk:
            for request in (
                request_of("split", 1.0),
                request_of("watched", 1.0, x_user_id="u1"),
                request_of("watched", 1.0, version="1"),
                InferRequest(name="watched"),  # refused: it has no inputs
                request_of("echo", 1.0),
            ):
                _, answered = desk.submit(request)
                await answered.answer()
            ((target, key),) = desk.watched
            assert (target.route, key, target.reason) == ("watched", b"u1", "slot")

    asyncio.run(scenario())


def test_an_answer_that_cannot_be_written_is_counted_and_logged_as_the_error_the_caller_gets(
    shelf: Shelf,
) -> None:
    def write(_: InferResponse) -> None:
        raise Unrepresentable("no form for it")

    async def scenario() -> None:
        async with open_desk(shelf, SPLIT) as desk:
            request = request_of("split", 1.5)
            request.write = write
            _, answered = desk.submit(request)
            assert isinstance(await answered.answer(), Unrepresentable)
            record = record_of(desk)
            assert (record.status, record.error) == (400, "Unrepresentable")
            assert [t.array().tolist() for t in record.outputs] == [[[1.5]]]
            row = desk.statistics.row("split", "")
            assert (row.success.count, row.fail.count) == (0, 1)
            (cell,) = desk.metrics.cells.values()
            assert cell.by_code == {("http", int(Code.INVALID_ARGUMENT)): 1}

    asyncio.run(scenario())


def test_a_record_is_offered_before_the_reply(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_desk(shelf) as desk:
            offered_at_reply: list[int] = []
            for request in (request_of("echo", 1.0), request_of("echo", 1.0, version="9")):
                _, answered = desk.submit(
                    request, then=lambda _: offered_at_reply.append(len(desk.log.records))
                )
                await answered.answer()
            assert offered_at_reply == [1, 2]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("request_", "error", "status"),
    [
        (request_of("echo", 1.0, version="9"), UnknownName, 404),
        (InferRequest(name="echo"), InvalidInput, 400),
        (request_of("echo", 13.0, version="1"), InstanceFailed, 500),
        (request_of("echo", 14.0, version="1"), InvalidInput, 400),
    ],
)
def test_a_refused_or_failed_request_is_recorded_with_its_status(
    shelf: Shelf, request_: InferRequest, error: type[Exception], status: int
) -> None:
    async def scenario() -> None:
        async with open_desk(shelf) as desk:
            _, answered = desk.submit(request_)
            assert isinstance(await answered.answer(), error)
            record = record_of(desk)
            assert (record.status, record.error) == (status, error.__name__)
            assert record.origin.served == ""
            assert record.outputs == ()

    asyncio.run(scenario())


def test_a_name_that_is_not_ours_makes_no_record(shelf: Shelf) -> None:
    """Names make streams in Redis: callers must not be able to make as many as they like."""

    async def scenario() -> None:
        async with open_desk(shelf) as desk:
            _, answered = desk.submit(request_of("nobody", 1.0))
            assert isinstance(await answered.answer(), UnknownName)
            assert desk.log.records == []

    asyncio.run(scenario())


def test_every_answer_is_counted_under_its_route_variant_and_code(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_desk(shelf, SPLIT) as desk:
            for request in (
                request_of("split", 1.0),
                request_of("split", 13.0),
                request_of("split", 1.0, version="2"),
                request_of("echo", 1.0),
                request_of("nobody", 1.0),
            ):
                _, answered = desk.submit(request)
                await answered.answer()
            desk.pipeline.refuse(InvalidInput("no request"), "http")
            counted = {key: cell.by_code for key, cell in desk.metrics.cells.items()}
            assert counted == {
                ("split", "stable", "echo", "1"): {("http", 0): 1, ("http", 13): 1},
                ("split", "canary", "echo", "2"): {("http", 0): 1},
                ("", "", "echo", "2"): {("http", 0): 1},
                ("", "", "", ""): {("http", 5): 1, ("http", 3): 1},
            }

    asyncio.run(scenario())


def test_a_route_and_its_version_each_have_their_statistics(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_desk(shelf, SPLIT) as desk:
            for value in (1.0, 2.0, 13.0):
                _, answered = desk.submit(request_of("split", value))
                await answered.answer()
            _, answered = desk.submit(request_of("split", 1.0, version="1"))
            await answered.answer()
            route, version = desk.statistics.row("split", ""), desk.statistics.row("echo", "1")
            assert (route.success.count, route.fail.count, route.queue.count) == (2, 1, 2)
            assert (version.success.count, version.fail.count) == (3, 1)  # it bypassed the split
            assert route.inference_count == 2
            assert route.execution_count == 2

    asyncio.run(scenario())


def test_nothing_is_accepted_before_the_server_is_ready_nor_while_it_drains(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_desk(shelf) as desk:
            desk.lifecycle.__init__()  # type: ignore[misc]  # the process starts anew
            _, early = desk.submit(request_of("echo", 1.0))
            assert isinstance(await early.answer(), Starting)
            desk.lifecycle.serve()
            _, good = desk.submit(request_of("echo", 1.0))
            assert await good.values() == [1.0]
            desk.lifecycle.drain()
            _, late = desk.submit(request_of("echo", 1.0))
            assert isinstance(await late.answer(), Draining)

    asyncio.run(scenario())


def test_a_request_that_was_accepted_is_answered_though_a_drain_begins(shelf: Shelf) -> None:
    async def scenario() -> None:
        shelf.add_fake("held", "1", latency_ms=1)
        async with open_desk(shelf) as desk:
            _, executing = await desk.block("held")
            _, queued = desk.submit(request_of("held", 2.0))
            desk.lifecycle.drain()
            idle = asyncio.create_task(desk.pipeline.idle())
            await asyncio.sleep(0)
            assert not idle.done()
            shelf.gate.open()
            assert await executing.values() == [0.0]
            assert await queued.values() == [2.0]
            await asyncio.wait_for(idle, 5)

    asyncio.run(scenario())


def test_what_is_abandoned_is_answered_as_refused_and_recorded(shelf: Shelf) -> None:
    async def scenario() -> None:
        shelf.add_fake("held", "1", latency_ms=1)
        async with open_desk(shelf) as desk:
            _, executing = await desk.block("held")
            _, queued = desk.submit(request_of("held", 2.0))
            desk.lifecycle.drain()
            assert desk.pipeline.in_flight == 2
            desk.pipeline.abandon()
            for answered in (executing, queued):
                assert isinstance(await answered.answer(), Draining)
            assert desk.pipeline.in_flight == 0
            await asyncio.wait_for(desk.pipeline.idle(), 5)
            assert [record.status for record in desk.log.records] == [503, 503]
            shelf.gate.open()

    asyncio.run(scenario())


def test_a_pipeline_without_requests_is_idle_at_once(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_desk(shelf) as desk:
            await asyncio.wait_for(desk.pipeline.idle(), 5)
            _, answered = desk.submit(request_of("echo", 1.0))
            await answered.answer()
            await asyncio.wait_for(desk.pipeline.idle(), 5)

    asyncio.run(scenario())


def test_a_full_queue_refuses_and_names_its_limit(shelf: Shelf) -> None:
    async def scenario() -> None:
        shelf.add_fake("held", "1", latency_ms=1)
        shelf.configure("held", batching=BatchPolicy(max_batch_size=1, max_queue_rows=1))
        async with open_desk(shelf) as desk:
            await desk.block("held")
            desk.submit(request_of("held", 1.0))
            _, refused = desk.submit(request_of("held", 2.0))
            assert isinstance(await refused.answer(), QueueFull)
            assert record_of(desk).status == 429
            shelf.gate.open()

    asyncio.run(scenario())


def test_a_deadline_that_has_passed_is_answered_as_expired_and_recorded(shelf: Shelf) -> None:
    async def scenario() -> None:
        shelf.add_fake("held", "1", latency_ms=1)
        async with open_desk(shelf) as desk:
            await desk.block("held")
            request = request_of("held", 1.0)
            request.deadline_ns = 1  # long ago
            _, expired = desk.submit(request)
            assert isinstance(await expired.answer(), DeadlineExpired)
            assert record_of(desk).status == 504
            shelf.gate.open()

    asyncio.run(scenario())


def test_an_answered_request_is_freed_without_the_garbage_collector(shelf: Shelf) -> None:
    """Requests may hold many megabytes, and there may be few enough objects for it not to run."""

    async def scenario() -> int:
        async with open_desk(shelf) as desk:
            # It keeps nothing.
            desk.log.offer = lambda record, is_committed=False: None  # type: ignore[method-assign]
            data = rows_of([1.0]).data
            before = sys.getrefcount(data)
            for version in ("2", "9"):
                request = request_of("echo", version=version)
                request.inputs = (rows_of([1.0])._replace(data=data),)
                _, answered = desk.submit(request)
                await answered.answer()
            del request, answered, _
            for _ in range(1_000):  # until the worker thread has let go of its batch
                if sys.getrefcount(data) == before:
                    break
                await asyncio.sleep(0.001)
            return sys.getrefcount(data) - before

    gc.collect()
    gc.disable()
    try:
        assert asyncio.run(scenario()) == 0
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("policy", "timeout", "own_ns", "expected_ns"),
    [
        (BatchPolicy(max_batch_size=1), 0, None, None),
        (BatchPolicy(max_batch_size=1), 0, 7 * MS, 7 * MS),
        (BatchPolicy(max_batch_size=1), 5_000, None, 6 * MS),
        (BatchPolicy(max_batch_size=1), 5_000, 3 * MS, 3 * MS),
        (BatchPolicy(max_batch_size=1), 5_000, 9 * MS, 6 * MS),
        (BatchPolicy(max_batch_size=1, default_timeout_us=2_000), 0, None, 3 * MS),
        (BatchPolicy(max_batch_size=1, default_timeout_us=2_000), 0, 2 * MS, 2 * MS),
        (BatchPolicy(max_batch_size=1, default_timeout_us=2_000), 1_000, None, 2 * MS),
        (BatchPolicy(max_batch_size=1, default_timeout_us=2_000), 5_000, None, 3 * MS),
        (
            BatchPolicy(max_batch_size=1, default_timeout_us=2_000, allow_timeout_override=False),
            1_000,
            None,
            3 * MS,
        ),
    ],
)
def test_the_earliest_of_the_callers_deadlines_and_the_models_default_holds(
    policy: BatchPolicy, timeout: int, own_ns: int | None, expected_ns: int | None
) -> None:
    async def scenario() -> None:
        async with make_bench(policy) as bench:
            parameters = {"timeout": timeout} if timeout else {}
            request = InferRequest(name="m", parameters=parameters, deadline_ns=own_ns)
            assert deadline_ns(request, bench.batcher, MS) == expected_ns

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("asked", "expected"), [(None, 2), (0, 2), (1, 1), (3, 3), (4, None), (-1, None), (True, None)]
)
def test_a_priority_is_one_of_the_models_levels_or_its_default(
    asked: int | None, expected: int | None
) -> None:
    policy = BatchPolicy(max_batch_size=1, priority_levels=3, default_priority_level=2)

    async def scenario() -> None:
        async with make_bench(policy) as bench:
            parameters = {} if asked is None else {"priority": asked}
            request = InferRequest(name="m", parameters=parameters)
            if expected is None:
                with pytest.raises(InvalidInput, match="parameter 'priority'"):
                    priority(request, bench.batcher)
            else:
                assert priority(request, bench.batcher) == expected

    asyncio.run(scenario())


def test_the_outputs_of_the_record_are_all_whatever_the_caller_asked_for(shelf: Shelf) -> None:
    async def scenario() -> None:
        spec = {"datatype": "FP32", "shape": [-1, 1]}
        outputs = [{"name": name, **spec} for name in ("u", "v")]
        shelf.add_fake("two", "1", inputs=[{"name": "x", **spec}], outputs=outputs)
        async with open_desk(shelf) as desk:
            request = request_of("two", 1.0)
            request.outputs = ("v",)
            _, answered = desk.submit(request)
            answer = await answered.answer()
            assert isinstance(answer, InferResponse)
            assert [tensor.name for tensor in answer.outputs] == ["v"]
            assert [tensor.name for tensor in record_of(desk).outputs] == ["u", "v"]

    asyncio.run(scenario())


def test_the_phases_of_the_process_only_move_forward() -> None:
    lifecycle = Lifecycle()
    assert (lifecycle.is_ready, lifecycle.is_draining) == (False, False)
    lifecycle.serve()
    assert (lifecycle.is_ready, lifecycle.is_draining) == (True, False)
    lifecycle.drain()
    lifecycle.serve()
    assert (lifecycle.is_ready, lifecycle.is_draining) == (False, True)


def test_a_tensor_that_contradicts_itself_is_refused_before_the_queue(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_desk(shelf) as desk:
            request = request_of("echo", 1.0)
            array = rows_of([1.0, 2.0]).array()
            request.inputs = (from_array("x", "FP32", array)._replace(shape=(1, 1)),)
            _, answered = desk.submit(request)
            assert isinstance(await answered.answer(), InvalidInput)
            assert desk.repository.get("echo", "2").batcher.statistics().accepted == 0

    asyncio.run(scenario())
