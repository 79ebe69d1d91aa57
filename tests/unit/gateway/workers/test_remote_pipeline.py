"""A front's pipeline over real links: answers, losses, deadlines, bounds, books."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.errors import Cancelled, DeadlineExpired, InvalidInput, QueueFull
from engines.tensors import Tensor
from gateway.errors import Draining, Starting, UnknownName, Unrepresentable
from gateway.http_api import codec
from gateway.pb import inference_pb2 as pb
from gateway.request import InferResponse
from gateway.workers import frames, remote_pipeline
from gateway.workers.errors import EngineAway, LinkFull, RemoteFailure
from gateway.workers.messages import HttpCall
from gateway.workers.raw_bodies import RawSignatures
from gateway.workers.tensors_shared import Arena
from tests.support.batching import until
from tests.support.models import write_fake, write_identity
from tests.support.worker_links import EngineSide, FrontSide, engine_side, front_side, request

SLOW_MS = 150
Scene = Callable[[EngineSide, FrontSide], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Scene], None]:
    """Return what plays a scene between an engine side and a front."""
    models = tmp_path / "models"
    write_fake(models / "fast" / "1" / "model.json")
    write_fake(models / "slow" / "1" / "model.json", latency_ms=SLOW_MS, max_batch_size=1)
    (models / "slow" / "config.pbtxt").write_text("max_batch_size: 1")
    write_fake(models / "failing" / "1" / "model.json", fail_on=13)
    write_identity(models / "wide" / "1" / "model.onnx", "FP32", ["n"])
    rule = {"when": {"header": {"x-tier": "gold"}}, "to": "b"}
    variants = {
        "a": {"model": "fast", "version": "1", "weight": 100},
        "b": {"model": "fast", "version": "1", "weight": 0},
    }
    document = {"routes": {"split": {"variants": variants, "rules": [{"name": "gold", **rule}]}}}

    def run(scene: Scene) -> None:
        async def both() -> None:
            async with engine_side(tmp_path, document) as side, front_side(side) as front:
                await scene(side, front)

        asyncio.run(both())

    return run


def counted(side: EngineSide) -> dict[tuple[str, int], int]:
    """Return how many requests were answered, by protocol and code."""
    found: dict[tuple[str, int], int] = {}
    for cell in side.app.accounts.metrics.cells.values():
        for key, count in cell.by_code.items():
            found[key] = found.get(key, 0) + count
    return found


def test_an_answer_is_that_of_the_pipeline_with_the_callers_id(play: Any) -> None:
    async def scene(side: EngineSide, front: FrontSide) -> None:
        values = np.arange(8, dtype=np.float32).tobytes()
        answer, served_by = await front.ask(request("split", values, id="mine"))
        assert isinstance(answer, InferResponse)
        assert (answer.model, answer.version, answer.id) == ("fast", "1", "mine")
        (output,) = answer.outputs
        assert (output.name, output.shape, bytes(output.data)) == ("y", (2, 4), values)
        lines = dict(served_by.headers())
        assert lines["x-sluice-variant"] == "a"
        assert len(lines["x-request-id"]) == 36

    play(scene)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (request("nobody"), UnknownName),
        (request("fast", inputs=()), InvalidInput),
        (request("failing", np.full(4, 13, np.float32).tobytes()), Exception),
    ],
)
def test_an_error_is_that_of_the_pipeline(play: Any, asked: Any, error: type[Exception]) -> None:
    async def scene(side: EngineSide, front: FrontSide) -> None:
        answered: list[Any] = []
        side.app.pipeline.submit(asked, lambda answer, _: answered.append(answer))
        answer, _ = await front.ask(asked)
        await until(lambda: bool(answered))
        assert isinstance(answer, error)
        assert type(answer) is type(answered[0])
        assert str(answer) == str(answered[0])

    play(scene)


def test_routing_sees_the_headers(play: Any) -> None:
    class Head:
        metadata = (("x-tier", "gold"), ("x-other-bin", b"\n\0"))

        def header(self, name: str) -> str | None:
            raise AssertionError("headers are not looked up in a front")

    async def scene(side: EngineSide, front: FrontSide) -> None:
        _, served_by = await front.ask(request("split", header=Head().header))
        assert served_by.serving.variant == "b"
        assert served_by.serving.reason == "rule:gold"

    play(scene)


def test_requests_of_a_lost_link_are_sent_once_more_and_answered_once(play: Any) -> None:
    async def scene(side: EngineSide, front: FrontSide) -> None:
        calls = [front.start(request("slow", id=str(n)))[1] for n in range(4)]
        await asyncio.sleep(0.02)
        await side.lose()
        await front.until_ready(is_ready=False)
        late = front.start(request(id="late"))[1]
        assert front.pipeline.statistics().held == 5
        side.open()
        async with asyncio.timeout(5):
            answers = [await answered for answered in (*calls, late)]
        ids = [a.id for a, _ in answers if isinstance(a, InferResponse)]
        assert ids == ["0", "1", "2", "3", "late"]
        assert front.pipeline.statistics().resent == 4
        assert front.pipeline.in_flight == 0

    play(scene)


def test_requests_that_lose_two_engine_processes_are_not_sent_to_a_third(play: Any) -> None:
    async def scene(side: EngineSide, front: FrontSide) -> None:
        answered = front.start(request("slow"))[1]
        for _ in range(2):
            await asyncio.sleep(0.02)
            await side.lose()
            await front.until_ready(is_ready=False)
            side.open()
            await front.until_ready()
        answer, _ = await answered
        assert isinstance(answer, EngineAway)
        assert isinstance((await front.ask(request()))[0], InferResponse)

    play(scene)


def test_nobody_waits_for_ever_without_an_engine_process(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(side: EngineSide, front: FrontSide) -> None:
        await side.lose()
        await front.until_ready(is_ready=False)
        patient = front.start(request())[1]
        hasty = front.start(request(deadline_ns=time.monotonic_ns() + 1_000_000))[1]
        await asyncio.sleep(0.01)
        front.pipeline.look()
        assert isinstance((await hasty)[0], DeadlineExpired)
        assert not patient.done()
        monkeypatch.setattr(remote_pipeline, "HOLD_S", 0.01)
        front.pipeline.look()
        assert isinstance((await patient)[0], EngineAway)
        assert isinstance((await front.ask(request()))[0], EngineAway)
        with pytest.raises(EngineAway):
            await front.engine.call("ServerMetadata", b"")
        side.open()
        await front.until_ready()
        assert isinstance((await front.ask(request()))[0], InferResponse)

    play(scene)


def test_before_the_first_engine_process_requests_are_told_that_it_starts(tmp_path: Path) -> None:
    async def scene() -> None:
        front = FrontSide(str(tmp_path / "nobody.sock"))
        assert isinstance((await front.ask(request()))[0], Starting)
        with pytest.raises(Starting):
            await front.engine.call("ServerMetadata", b"")
        await front.close()

    asyncio.run(scene())


def test_a_request_that_is_not_answered_after_its_deadline_is_expired_by_the_front(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_pipeline, "GRACE_S", 0.0)

    async def scene(side: EngineSide, front: FrontSide) -> None:
        call, answered = front.start(request("slow"))
        call.request.deadline_ns = time.monotonic_ns()  # which the engine side has not heard of
        front.pipeline.look()
        assert isinstance((await answered)[0], DeadlineExpired)
        await asyncio.sleep(SLOW_MS / 1e3)  # its answer comes nevertheless, and goes nowhere
        assert isinstance((await front.ask(request()))[0], InferResponse)

    play(scene)


def test_a_cancelled_request_leaves_the_queue_of_the_engine_process(play: Any) -> None:
    async def scene(side: EngineSide, front: FrontSide) -> None:
        running = front.start(request("slow"))[1]
        call, answered = front.start(request("slow"))
        await asyncio.sleep(0.02)
        call.cancel()
        assert isinstance((await answered)[0], Cancelled)
        assert not running.done()
        assert isinstance((await running)[0], InferResponse)

    play(scene)


def test_what_a_front_that_went_away_had_under_way_is_cancelled(play: Any) -> None:
    async def scene(side: EngineSide, front: FrontSide) -> None:
        other = FrontSide(side.path, 2)
        await other.until_ready()
        for _ in range(5):
            other.start(request("slow"))
        await asyncio.sleep(0.02)
        assert side.app.pipeline.in_flight == 5
        await other.close()
        async with asyncio.timeout(2):
            await side.app.pipeline.idle()
        assert isinstance((await front.ask(request()))[0], InferResponse)

    play(scene)


def test_requests_over_the_bounds_are_refused_as_a_full_queue_is(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_pipeline, "LIMIT_BYTES", 40)

    async def scene(side: EngineSide, front: FrontSide) -> None:
        first = [front.start(request("slow"))[1] for _ in range(2)]
        answer, _ = await front.ask(request("slow"))
        assert isinstance(answer, LinkFull)
        assert isinstance(answer, QueueFull)
        assert str(answer) == "the way to the engine process is full: its limit is 40 bytes"
        for answered in first:
            assert isinstance((await answered)[0], InferResponse)
        assert isinstance((await front.ask(request()))[0], InferResponse)
        assert counted(side)["grpc", 8] == 1

    play(scene)


def test_a_draining_front_finishes_and_refuses(play: Any) -> None:
    async def scene(side: EngineSide, front: FrontSide) -> None:
        accepted = front.start(request("slow"))[1]
        front.pipeline.drain()
        assert isinstance((await front.ask(request()))[0], Draining)
        await front.pipeline.idle()
        assert isinstance(accepted.result()[0], InferResponse)

    play(scene)


def test_an_abandoned_request_is_answered_at_once(play: Any) -> None:
    async def scene(side: EngineSide, front: FrontSide) -> None:
        answered = front.start(request("slow"))[1]
        front.pipeline.abandon()
        assert isinstance(answered.result()[0], Draining)
        assert front.pipeline.in_flight == 0

    play(scene)


class Writer:
    """Puts an answer into a form, as an HTTP adapter does."""

    def __init__(self, form: codec.AnswerForm) -> None:
        self.form = form
        self.written = b""

    def write(self, response: InferResponse) -> None:
        """Write it."""
        self.written = codec.encode(response, self.form)[0]


def test_an_answer_that_its_form_cannot_carry_is_counted_as_that(play: Any) -> None:
    async def scene(side: EngineSide, front: FrontSide) -> None:
        nan = np.full(4, np.nan, np.float32).tobytes()
        json_form, binary = codec.AnswerForm(), codec.AnswerForm(default_binary=True)
        mixed = codec.AnswerForm(default_binary=True, by_output={"y": False})
        for form, error in ((json_form, Unrepresentable), (binary, None), (mixed, Unrepresentable)):
            writer = Writer(form)
            asked = request("fast", nan, protocol="http", write=writer.write)
            answer, _ = await front.ask(asked)
            assert isinstance(answer, error or InferResponse)
            assert bool(writer.written) == (error is None)
        assert counted(side) == {("http", 3): 2, ("http", 0): 1}
        writer = Writer(json_form)
        await front.ask(request("fast", protocol="http", write=writer.write))
        assert json.loads(writer.written)["outputs"][0]["data"] == [0.0] * 4

    play(scene)


def test_a_body_without_a_header_is_read_by_the_models_signature(play: Any) -> None:
    async def scene(side: EngineSide, front: FrontSide) -> None:
        values = np.arange(4, dtype=np.float32).tobytes()
        for body, is_good in ((values, True), (values[:-1], False)):
            stand_in = RawSignatures().signature("fast", "")
            asked, form = codec.decode_raw("fast", "", body, stand_in)
            asked.write = Writer(form).write
            answer, _ = await front.ask(asked)
            if is_good:
                assert isinstance(answer, InferResponse)
                assert bytes(answer.outputs[0].data) == values
            else:
                assert isinstance(answer, InvalidInput)

    play(scene)


def test_refusals_of_a_front_are_in_the_books(play: Any) -> None:
    async def scene(side: EngineSide, front: FrontSide) -> None:
        front.pipeline.refuse(InvalidInput("x"), "http")
        front.pipeline.refuse(ZeroDivisionError(), "grpc")
        await front.engine.call("ServerMetadata", b"")  # what was sent before has arrived
        assert counted(side) == {("http", 3): 1, ("grpc", 13): 1}

    play(scene)


def test_large_tensors_go_through_shared_memory_and_give_their_slots_back(play: Any) -> None:
    async def scene(side: EngineSide, front: FrontSide) -> None:
        values = np.random.default_rng(1).random((1, 200_000), dtype=np.float32)
        tensor = Tensor("x", "FP32", values.shape, values.tobytes())
        for _ in range(3):
            answer, _ = await front.ask(request("wide", inputs=(tensor,)))
            assert isinstance(answer, InferResponse)
            data = answer.outputs[0].data
            assert isinstance(data, memoryview)
            assert np.array_equal(np.frombuffer(data, np.float32).reshape(1, -1), values)
        del answer, data
        (link,) = side.end._links
        wire = front.pipeline._wire
        assert wire is not None
        for end in (link.link, wire.link):
            arena, reader = end._arena, end.reader
            assert arena is not None
            assert reader is not None
            await until(partial(_is_empty, arena))
            assert reader.held_slots == 0

    play(scene)


def _is_empty(arena: Arena) -> bool:
    return arena.taken_slots == 0


def test_other_calls_are_answered_by_the_same_tables_and_application(play: Any) -> None:
    async def scene(side: EngineSide, front: FrontSide) -> None:
        for method, asked in (
            ("ServerMetadata", b""),
            ("ModelMetadata", pb.ModelMetadataRequest(name="fast").SerializeToString()),
            ("RepositoryIndex", b""),
        ):
            assert await front.engine.call(method, asked) == side.app.service.unary[method](asked)
        name = pb.ModelMetadataRequest(name="nobody").SerializeToString()
        with pytest.raises(UnknownName, match="nobody"):
            await front.engine.call("ModelMetadata", name)
        answer = await front.engine.http(
            HttpCall(
                method="GET",
                path="/v2/models/fast/ready",
                raw_path=b"/v2/models/fast/ready",
                query=b"",
                http_version="1.1",
                headers=[],
                body=b"",
            )
        )
        assert (answer.status, json.loads(answer.body)) == (200, {"name": "fast", "ready": True})

    play(scene)


def test_bytes_that_are_no_message_end_that_link_only(
    play: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(side: EngineSide, front: FrontSide) -> None:
        other = FrontSide(side.path, 2)
        await other.until_ready()
        wire = other.pipeline._wire
        assert wire is not None
        wire.link.send(frames.message(frames.Kind.INFER, 1, b"no request"))
        await until(lambda: other.ready == [True, False, True])  # it comes again, by a new link
        assert isinstance((await other.ask(request()))[0], InferResponse)
        assert isinstance((await front.ask(request()))[0], InferResponse)
        await other.close()

    play(scene)
    assert [record.message for record in caplog.records if record.exc_info] == [
        "link ended: what came is no message"
    ]


def test_a_bug_in_the_engine_process_is_in_its_log_and_only_a_sentence_leaves_it(
    play: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(side: EngineSide, front: FrontSide) -> None:
        def broken(_: bytes) -> bytes:
            raise ZeroDivisionError("secret")

        side.app.service.unary = {"ServerMetadata": broken}
        with pytest.raises(RemoteFailure, match="internal error: the server's log has"):
            await front.engine.call("ServerMetadata", b"")

    play(scene)
    assert "secret" in caplog.text
