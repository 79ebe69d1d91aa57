"""What only gRPC has: malformed messages, contents, message sizes, compression, cancellation,
health and reflection. Streams are in test_grpc_stream.py."""

from __future__ import annotations

import logging
import struct
from typing import Any, Final

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gateway.pb import inference_pb2 as pb
from tests.support.gateway import GatewayInProcess, wait_until
from tests.support.served import LIMIT_BYTES
from tests.support.transports import METHOD, Ask, Given, infer_message, unary

ROW: Final = Given(name="x", datatype="FP32", shape=(1, 2), elements=[1.0, 2.0])
SERVICE: Final = "inference.GRPCInferenceService"


def message(*inputs: Given, model: str = "echo_fp32", is_raw: bool = True) -> pb.ModelInferRequest:
    """Return an infer request."""
    return infer_message(Ask(model=model, inputs=inputs or (ROW,)), is_raw=is_raw)


def infer(channel: grpc.Channel, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    """Call ModelInfer."""
    answer: pb.ModelInferResponse
    answer = unary(channel, "ModelInfer", pb.ModelInferResponse)(request, timeout=15)
    return answer


def refusal(channel: grpc.Channel, request: pb.ModelInferRequest) -> tuple[str, str]:
    """Call ModelInfer and return the code's name and the details of its error."""
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel, request)
    return caught.value.code().name, caught.value.details() or ""


def bare(channel: grpc.Channel, method: str) -> Any:  # Any: grpcio's callable
    """Return a callable that sends and returns bytes."""
    return channel.unary_unary(METHOD + method)


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x0a\x02\xff\xfe"])
@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "ModelStatistics"])
def test_bytes_that_are_no_message_are_an_invalid_argument(
    channel: grpc.Channel, method: str, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut-off fields, and text that is no UTF-8."""
    with pytest.raises(grpc.RpcError) as caught:
        bare(channel, method)(data, timeout=15)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == f"the request is no {method}Request message"
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_raw_and_typed_contents_may_not_be_mixed(channel: grpc.Channel) -> None:
    request = message(ROW)
    request.inputs[0].contents.fp32_contents.extend([1.0, 2.0])
    assert refusal(channel, request) == (
        "INVALID_ARGUMENT",
        "input 'x': has typed contents beside raw_input_contents",
    )


def test_one_raw_entry_is_needed_per_input(channel: grpc.Channel) -> None:
    a = Given(name="a", datatype="FP32", shape=(1, 2), elements=[1.0, 2.0])
    b = Given(name="b", datatype="INT64", shape=(1, 1), elements=[3])
    request = message(a, b, model="pair")
    del request.raw_input_contents[1]
    assert refusal(channel, request) == (
        "INVALID_ARGUMENT",
        "raw_input_contents has 1 entries for 2 inputs",
    )


def test_the_contents_field_of_another_datatype_is_refused(channel: grpc.Channel) -> None:
    request = message(ROW, is_raw=False)
    request.inputs[0].ClearField("contents")
    request.inputs[0].contents.fp64_contents.extend([1.0, 2.0])
    assert refusal(channel, request) == (
        "INVALID_ARGUMENT",
        "input 'x': fp64_contents given, FP32 takes fp32_contents",
    )


def test_a_tensor_said_to_lie_in_shared_memory_is_refused(channel: grpc.Channel) -> None:
    request = message(ROW, is_raw=False)
    request.inputs[0].ClearField("contents")
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    assert refusal(channel, request) == (
        "INVALID_ARGUMENT",
        "input 'x': shared memory is not supported",
    )


@pytest.mark.parametrize(
    ("parameter", "sentence"),
    [
        ("classification", "output 'y': the classification extension is not supported"),
        ("shared_memory_region", "output 'y': shared memory is not supported"),
    ],
)
def test_an_output_that_would_be_answered_wrongly_is_refused(
    channel: grpc.Channel, parameter: str, sentence: str
) -> None:
    request = message(ROW)
    request.outputs.add(name="y").parameters[parameter].int64_param = 3
    assert refusal(channel, request) == ("INVALID_ARGUMENT", sentence)


@pytest.mark.parametrize("choice", ["int64_param", "uint64_param"])
def test_numbers_in_parameters_may_be_signed_or_not(channel: grpc.Channel, choice: str) -> None:
    row = Given(name="x", datatype="FP32", shape=(1, 4), elements=[0.0] * 4)
    request = message(row, model="graded")
    setattr(request.parameters["priority"], choice, 3)
    assert refusal(channel, request) == (
        "INVALID_ARGUMENT",
        "parameter 'priority': 3 given, the model has 2 levels",
    )


def test_a_parameter_without_a_value_is_as_good_as_none(channel: grpc.Channel) -> None:
    request = message(ROW)
    request.parameters["timeout"].SetInParent()
    assert infer(channel, request).model_name == "echo_fp32"


def test_a_message_over_the_limit_is_refused(
    channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    count = LIMIT_BYTES // 4
    big = Given(name="x", datatype="FP32", shape=(1, count), elements=[], raw=b"\0" * LIMIT_BYTES)
    code, _ = refusal(channel, message(big))
    assert code == "RESOURCE_EXHAUSTED"
    assert infer(channel, message()).model_name == "echo_fp32"
    assert caplog.records == []


def test_a_message_that_decompresses_to_too_much_is_refused(channel: grpc.Channel) -> None:
    count = LIMIT_BYTES // 4
    big = Given(name="x", datatype="FP32", shape=(1, count), elements=[], raw=b"\0" * LIMIT_BYTES)
    call = unary(channel, "ModelInfer", pb.ModelInferResponse)
    with pytest.raises(grpc.RpcError) as caught:
        call(message(big), timeout=15, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_message_of_twenty_megabytes_goes_both_ways(channel: grpc.Channel) -> None:
    data = np.arange((20 << 20) // 4, dtype="<f4").tobytes()
    shape = (1, len(data) // 4)
    big = Given(name="x", datatype="FP32", shape=shape, elements=[], raw=data)
    answer = infer(channel, message(big))
    assert answer.raw_output_contents[0] == data


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_compressed_message_is_read(channel: grpc.Channel, compression: grpc.Compression) -> None:
    values = [1.0] * 10_000
    row = Given(name="x", datatype="FP32", shape=(1, 10_000), elements=values)
    call = unary(channel, "ModelInfer", pb.ModelInferResponse)
    answer = call(message(row), timeout=15, compression=compression)
    assert answer.raw_output_contents[0] == struct.pack("<10000f", *values)


def test_a_cancelled_call_takes_its_request_out_of_the_queue(
    channel: grpc.Channel, gateway: GatewayInProcess
) -> None:
    wait_until(lambda: gateway.busy("slow") == (0, 0), "slow is idle")
    row = Given(name="x", datatype="FP32", shape=(1, 4), elements=[1.0] * 4)
    call = unary(channel, "ModelInfer", pb.ModelInferResponse)
    executing = call.future(message(row, model="slow"), timeout=15)
    wait_until(lambda: gateway.busy("slow") == (0, 1), "one executes")
    queued = call.future(message(row, model="slow"), timeout=15)
    wait_until(lambda: gateway.busy("slow") == (1, 1), "one is queued")
    queued.cancel()
    wait_until(lambda: gateway.busy("slow") == (0, 1), "the queue is empty")
    assert executing.result().model_name == "slow"


def test_methods_that_are_not_implemented_say_so(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        bare(channel, "SystemSharedMemoryStatus")(b"", timeout=15)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def check(channel: grpc.Channel, service: str) -> Any:  # Any: generated without types
    """Call health's Check."""
    stub: Any = health_pb2_grpc.HealthStub(channel)  # Any: generated without types
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=15).status


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_is_serving_for_the_server_and_for_its_service(
    channel: grpc.Channel, service: str
) -> None:
    assert check(channel, service) == health_pb2.HealthCheckResponse.SERVING


def test_health_of_an_unknown_service_is_not_found(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        check(channel, "someone.Else")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_can_be_watched(channel: grpc.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)  # Any: generated without types
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=15)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_reflection_lists_the_services_and_describes_them(channel: grpc.Channel) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # Any: as above
    asked = reflection_pb2.ServerReflectionRequest
    answers = list(
        stub.ServerReflectionInfo(
            iter([asked(list_services=""), asked(file_containing_symbol=SERVICE)]), timeout=15
        )
    )
    names = {service.name for service in answers[0].list_services_response.service}
    beside = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert names == {SERVICE, "sluice.v1.Feedback", *beside}
    files = answers[1].file_descriptor_response.file_descriptor_proto
    assert any(b"GRPCInferenceService" in file for file in files)
