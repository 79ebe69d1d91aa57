"""ModelStreamInfer: answers in the order of the requests, errors as messages, many under way."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import pytest

from gateway.directory import Directory, Target
from gateway.errors import INTERNAL_SENTENCE
from gateway.pb import inference_pb2 as pb
from tests.support.gateway import GatewayInProcess, LoopThread, in_process, wait_until
from tests.support.models import write_fake
from tests.support.served import FAIL_ON
from tests.support.transports import METHOD, UNLIMITED, Ask, Given, infer_message

ROW: Final = Given(name="x", datatype="FP32", shape=(1, 4), elements=[1.0] * 4)


def message(
    model: str = "echo_fp32", value: float = 1.0, request_id: str = ""
) -> pb.ModelInferRequest:
    """Return a request for one row of four equal elements."""
    given = Given(name="x", datatype="FP32", shape=(1, 4), elements=[value] * 4)
    return infer_message(Ask(model=model, inputs=(given,), id=request_id), is_raw=True)


def stream(
    channel: grpc.Channel, requests: Iterable[Any]
) -> Any:  # Any: grpcio's call; requests are messages or bytes
    """Open a stream; what is sent may be bytes."""
    open_stream = channel.stream_stream(
        METHOD + "ModelStreamInfer",
        request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    return open_stream(iter(requests), timeout=15)


class Outbox:
    """Requests that a test sends one by one; iterating it blocks until it sends or ends."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[pb.ModelInferRequest | None] = queue.SimpleQueue()

    def send(self, request: pb.ModelInferRequest) -> None:
        """Send a request."""
        self._queue.put(request)

    def end(self) -> None:
        """Close the sending half."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[pb.ModelInferRequest]:
        return iter(self._queue.get, None)


def test_many_requests_are_answered_in_their_order(channel: grpc.Channel) -> None:
    """Also where a later one is ready first: every tenth goes to a model that is slower."""
    requests = [
        message("failing" if n % 10 == 0 else "echo_fp32", 1_000.0 + n, str(n)) for n in range(200)
    ]
    answers = list(stream(channel, requests))
    assert [answer.infer_response.id for answer in answers] == [str(n) for n in range(200)]
    assert {answer.error_message for answer in answers} == {""}
    for request, answer in zip(requests, answers, strict=True):
        response = answer.infer_response
        assert list(response.raw_output_contents) == list(request.raw_input_contents)


def test_an_answer_says_who_served_in_its_parameters(channel: grpc.Channel) -> None:
    (answer,) = stream(channel, [message("split")])
    parameters = answer.infer_response.parameters
    assert parameters["x-sluice-variant"].string_param in ("stable", "canary")
    assert parameters["x-sluice-revision"].string_param == "1"
    assert parameters["x-sluice-reason"].string_param == "random"
    assert parameters["x-request-id"].string_param


def test_errors_are_messages_and_the_stream_goes_on(
    channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [
        message(request_id="first"),
        message("nobody", request_id="second"),
        b"\xff",
        message(request_id="last"),
    ]
    first, unknown, malformed, last = stream(channel, requests)
    assert first.infer_response.id == "first"
    assert unknown.error_message == "no route and no model is named 'nobody'"
    assert unknown.infer_response.id == "second"
    assert malformed.error_message == "the request is no ModelInferRequest message"
    assert last.infer_response.id == "last"
    assert last.error_message == ""
    assert caplog.records == []


def test_an_engine_failure_in_a_stream_is_a_message_too(channel: grpc.Channel) -> None:
    bad = message("failing", FAIL_ON)
    (answer,) = stream(channel, [bad])
    assert answer.error_message == "model 'failing' version 1 failed to execute the request"


def test_a_bug_of_ours_in_a_stream_answers_fixed_words_and_logs_one_trace(
    channel: grpc.Channel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Target:
        raise ZeroDivisionError("a secret of ours")

    monkeypatch.setattr(Directory, "resolve", broken)
    (answer,) = stream(channel, [message()])
    assert answer.error_message == INTERNAL_SENTENCE
    (record,) = caplog.records
    assert record.exc_info is not None


def test_a_stop_ends_open_streams_after_their_answers(
    loop_thread: LoopThread, tmp_path: Path
) -> None:
    write_fake(tmp_path / "echo" / "1" / "model.json", latency_ms=200)
    (tmp_path / "echo" / "config.pbtxt").write_text("max_batch_size: 1 dynamic_batching {}")
    outbox = Outbox()
    with in_process(loop_thread, {}, tmp_path) as running:
        with grpc.insecure_channel(running.at.grpc, options=UNLIMITED) as channel:
            call = stream(channel, outbox)
            outbox.send(message("echo", request_id="last"))
            wait_until(lambda: running.busy("echo") == (0, 1), "it executes")
            running.stop()
            assert next(call).infer_response.id == "last"
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert caught.value.details() == "the server is shutting down"
        outbox.end()


def test_an_answer_comes_while_the_stream_is_open(channel: grpc.Channel) -> None:
    outbox = Outbox()
    call = stream(channel, outbox)
    for number in range(3):
        outbox.send(message(request_id=str(number)))
        assert next(call).infer_response.id == str(number)
    outbox.end()
    assert list(call) == []
    assert call.code() is grpc.StatusCode.OK


def test_what_was_sent_before_the_half_close_is_answered(channel: grpc.Channel) -> None:
    requests = [message("slow", request_id=str(n)) for n in range(2)]
    answers = list(stream(channel, requests))  # sends all and closes its half at once
    assert [answer.infer_response.id for answer in answers] == ["0", "1"]


def test_an_empty_stream_ends_well(channel: grpc.Channel) -> None:
    call = stream(channel, [])
    assert list(call) == []
    assert call.code() is grpc.StatusCode.OK


def test_a_cancelled_stream_takes_its_requests_out_of_the_queue(
    channel: grpc.Channel, gateway: GatewayInProcess
) -> None:
    wait_until(lambda: gateway.busy("slow") == (0, 0), "slow is idle")
    outbox = Outbox()
    call = stream(channel, outbox)
    for _ in range(4):
        outbox.send(message("slow"))
    wait_until(lambda: gateway.busy("slow") == (3, 1), "one executes, three are queued")
    call.cancel()
    wait_until(lambda: gateway.busy("slow")[0] == 0, "the queue is empty")
    outbox.end()
