"""A call is the request that the batcher queues; what records and answers of one choice share."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from engines.batch_queue import CallbackRequest, QueuedRequest
from engines.tensors import Tensor
from gateway import pipeline as pipelines
from gateway.errors import TooMuchInFlight
from gateway.ids import as_text
from gateway.pipeline import Call
from gateway.prediction_log.record import Origin
from gateway.request import NOBODY, InferRequest, InferResponse, ServedBy, Serving
from router.policy import CompiledRoute
from tests.support.batching import rows_of
from tests.support.desk import Desk, open_desk, request_of, route_of
from tests.support.repositories import Shelf

SPLIT = route_of("split", ("stable", "echo", "1", 50), ("canary", "echo", "2", 50))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    made = Shelf(tmp_path)
    made.add_fake("echo", "1", fail_on=13)
    made.add_fake("echo", "2")
    return made


async def ask(desk: Desk, request: InferRequest, *, draw: float = 0.99) -> ServedBy:
    """Send a request and return who took it."""
    desk.draws = [draw]
    _, answered = desk.submit(request)
    await answered.answer()
    assert answered.served_by is not None
    return answered.served_by


def test_a_call_starts_as_every_request_of_a_queue_does(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_desk(shelf) as desk:
            desk.lifecycle.drain()  # so that it is refused before anything becomes of it
            request = request_of("echo", 1.0)
            call, _ = desk.submit(request)
            plain = CallbackRequest(
                inputs=request.inputs,
                rows=0,
                shape_key=(),
                enqueued_ns=call.enqueued_ns,
                on_done=lambda outcome: None,
            )
            fresh = Call(desk.pipeline, request, lambda answer, served_by: None)
            for name in set(QueuedRequest.__slots__) - {"enqueued_ns"}:
                assert getattr(fresh, name) == getattr(plain, name), name
            assert call.is_done

    asyncio.run(scenario())


def test_a_call_has_the_time_and_the_id_of_its_arrival(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_desk(shelf) as desk:
            call, answered = desk.submit(request_of("echo", 1.0))
            await answered.answer()
            assert int.from_bytes(call.rid[:6], "big") == call.ts_us // 1_000
            assert answered.served_by is not None
            assert answered.served_by.rid == call.rid == desk.log.records[0].rid

    asyncio.run(scenario())


def test_records_of_one_choice_share_their_origin_and_others_do_not(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_desk(shelf, SPLIT) as desk:
            for _ in range(2):
                for draw in (0.1, 0.9):
                    await ask(desk, request_of("split", 1.0), draw=draw)
                await ask(desk, request_of("split", 1.0, version="2"))
                await ask(desk, request_of("echo", 1.0))
            origins = [record.origin for record in desk.log.records]
            assert [id(origin) for origin in origins[4:]] == [id(origin) for origin in origins[:4]]
            assert [(o.name, o.served, o.reason) for o in origins[:4]] == [
                ("split", "canary", "random"),
                ("split", "stable", "random"),
                ("split", "canary", "version"),
                ("echo", "", "model"),
            ]

    asyncio.run(scenario())


def test_an_origin_ends_with_its_revision_and_its_copy(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_desk(shelf, SPLIT) as desk:
            await ask(desk, request_of("split", 1.0))
            newer = replace(SPLIT, revision=4)
            desk.directory.routes.put(CompiledRoute.compile(newer))
            await ask(desk, request_of("split", 1.0))
            await desk.repository.load("echo")
            await ask(desk, request_of("split", 1.0))
            origins = [record.origin for record in desk.log.records]
            assert len({id(origin) for origin in origins}) == 3
            assert [origin.revision for origin in origins] == [3, 4, 4]

    asyncio.run(scenario())


def test_the_origin_of_a_failed_request_is_its_own(shelf: Shelf) -> None:
    """It names nobody who answered, and must not be kept for those that are answered."""

    async def scenario() -> None:
        async with open_desk(shelf, SPLIT) as desk:
            for value in (1.0, 13.0, 1.0):
                await ask(desk, request_of("split", value))
            served = [record.origin.served for record in desk.log.records]
            assert served == ["stable", "", "stable"]

    asyncio.run(scenario())


def test_origins_are_bounded(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "_MAX_ORIGINS", 2)

    async def scenario() -> None:
        async with open_desk(shelf, SPLIT) as desk:
            for _ in range(2):
                for draw, version in ((0.1, ""), (0.9, ""), (0.5, "1"), (0.5, "2")):
                    await ask(desk, request_of("split", 1.0, version=version), draw=draw)
                    assert len(desk.pipeline._origins) <= 2
            versions = [record.origin.version for record in desk.log.records]
            assert versions == ["2", "1", "1", "2"] * 2

    asyncio.run(scenario())


def test_without_a_log_requests_are_answered_and_counted_and_no_record_is_offered(
    shelf: Shelf,
) -> None:
    async def scenario() -> None:
        async with open_desk(shelf, SPLIT) as desk:
            desk.log.is_on = False
            for value in (1.0, 13.0):
                _, answered = desk.submit(request_of("split", value))
                answer = await answered.answer()
                assert isinstance(answer, InferResponse) is (value == 1.0)
            assert desk.log.records == []
            row = desk.statistics.row("split", "")
            assert (row.success.count, row.fail.count) == (1, 1)

    asyncio.run(scenario())


def test_a_record_names_the_device_and_the_model_file(tmp_path: Path) -> None:
    async def scenario() -> Origin:
        shelf = Shelf(tmp_path)
        shelf.add_onnx("echo", "1")
        async with open_desk(shelf) as desk:
            await ask(desk, request_of("echo", 1.0))
            digest = desk.repository.get("echo", "1").metadata.artifact_sha256
            origin = desk.log.records[0].origin
            assert origin.artefact == bytes.fromhex(digest)[:8]
            return origin

    assert asyncio.run(scenario()).device == "cpu"


# What callers are told

RID = bytes(range(16))


@pytest.mark.parametrize(
    ("serving", "lines"),
    [
        (NOBODY, {}),
        (Serving("", "", 0, "model"), {"x-sluice-reason": "model"}),
        (
            Serving("canary", "", 7, "slot"),
            {
                "x-sluice-reason": "slot",
                "x-sluice-variant": "canary",
                "x-sluice-revision": "7",
            },
        ),
        (
            Serving("stable", "canary", 7, "fallback"),
            {
                "x-sluice-reason": "fallback",
                "x-sluice-variant": "stable",
                "x-sluice-assigned": "canary",
                "x-sluice-revision": "7",
            },
        ),
    ],
)
def test_a_caller_is_told_what_is_known(serving: Serving, lines: dict[str, str]) -> None:
    served_by = ServedBy(RID, serving)
    told = served_by.headers()
    assert told[0] == ("x-request-id", as_text(RID))
    assert dict(told[1:]) == dict(serving.lines) == lines
    assert len(told) == len(lines) + 1
    assert served_by.request_id == as_text(RID)


def test_who_was_not_found_is_told_an_id_and_nothing_else(shelf: Shelf) -> None:
    async def scenario() -> None:
        async with open_desk(shelf, SPLIT) as desk:
            served_by = await ask(desk, request_of("nobody", 1.0))
            assert served_by.serving is NOBODY
            failed = await ask(desk, request_of("split", 13.0))
            assert dict(failed.serving.lines)["x-sluice-variant"] == "stable"

    asyncio.run(scenario())


def test_large_tensors_of_all_requests_under_way_are_bounded(shelf: Shelf) -> None:
    async def scenario() -> None:
        wide = {"datatype": "FP32", "shape": [-1, -1]}
        shelf.add_fake(
            "gated", "1", inputs=[{"name": "x", **wide}], outputs=[{"name": "y", **wide}]
        )
        limit_bytes = 1 << 20
        async with open_desk(shelf, in_flight_bytes=limit_bytes) as desk:
            row = rows_of([1.0], width=limit_bytes // 3 // 4)
            small = request_of("gated", 1.0)
            submitted = [desk.submit(replace_inputs("gated", row)) for _ in range(4)]
            *taken, (_, refused) = submitted
            error = await refused.answer()
            assert isinstance(error, TooMuchInFlight)
            _, beside = desk.submit(small)
            for _, answered in [*taken, (None, beside)]:
                assert isinstance(await answered.answer(), InferResponse)
            again = [desk.submit(replace_inputs("gated", row)) for _ in range(3)]
            for _, answered in again:
                assert isinstance(await answered.answer(), InferResponse)

    asyncio.run(scenario())


def replace_inputs(name: str, tensor: Tensor) -> InferRequest:
    return InferRequest(name=name, inputs=(tensor,), protocol="http")
