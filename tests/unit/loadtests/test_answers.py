from __future__ import annotations

import msgspec
import numpy as np
import pytest

from engines.tensors import Tensor, from_array
from gateway.grpc_api import codec as grpc_codec
from gateway.http_api import codec as http_codec
from gateway.http_api.codec import AnswerForm
from gateway.request import InferResponse
from loadtests.answers import fault_of_binary, fault_of_grpc, fault_of_json
from loadtests.payloads import Signature, TensorShape

PROMISED = Signature(
    name="m",
    inputs=(),
    outputs=(
        TensorShape(name="p", datatype="FP32", shape=(-1, 3)),
        TensorShape(name="words", datatype="BYTES", shape=(-1, -1)),
    ),
)
GOOD = (
    from_array("p", "FP32", np.ones((1, 3), np.float32)),
    from_array("words", "BYTES", np.array([[b"one", b"two"]], dtype=object)),
)
P, WORDS = GOOD
BAD = [
    ((P,), "outputs ['p'] instead of ['p', 'words']"),
    ((WORDS, P), "outputs ['words', 'p'] instead of ['p', 'words']"),
    (
        (from_array("p", "FP64", np.ones((1, 3))), WORDS),
        "output 'p' is FP64 instead of FP32",
    ),
    (
        (from_array("p", "FP32", np.ones((2, 3), np.float32)), WORDS),
        "output 'p' has the shape [2, 3], not [-1, 3]",
    ),
    (
        (from_array("p", "FP32", np.ones((1, 4), np.float32)), WORDS),
        "output 'p' has the shape [1, 4], not [-1, 3]",
    ),
    (
        (from_array("p", "FP32", np.ones(3, np.float32)), WORDS),
        "output 'p' has the shape [3], not [-1, 3]",
    ),
    (
        (Tensor("p", "FP32", (1, 3), b"\0" * 8), WORDS),
        "output 'p' has 2 elements in shape [1, 3]",
    ),
]


def response(outputs: tuple[Tensor, ...]) -> InferResponse:
    return InferResponse(model="m", version="1", id="", outputs=outputs)


def binary(outputs: tuple[Tensor, ...]) -> tuple[bytes, str]:
    body, json_bytes = http_codec.encode(response(outputs), AnswerForm(default_binary=True))
    return body, str(json_bytes)


def grpc(outputs: tuple[Tensor, ...]) -> bytes:
    return grpc_codec.encode(response(outputs)).SerializeToString()


def test_what_the_gateway_answers_has_no_fault() -> None:
    body, _ = http_codec.encode(response(GOOD), AnswerForm())
    assert fault_of_json(200, body, PROMISED) is None
    assert fault_of_binary(200, *binary(GOOD), PROMISED) is None
    assert fault_of_grpc(grpc(GOOD), PROMISED) is None


@pytest.mark.parametrize(("outputs", "sentence"), BAD)
def test_an_answer_of_another_form_is_a_fault_in_binary_and_over_grpc(
    outputs: tuple[Tensor, ...], sentence: str
) -> None:
    assert fault_of_binary(200, *binary(outputs), PROMISED) == sentence
    assert fault_of_grpc(grpc(outputs), PROMISED) == sentence


@pytest.mark.parametrize(("outputs", "sentence"), BAD[:-1])
def test_an_answer_of_another_form_is_a_fault_in_json(
    outputs: tuple[Tensor, ...], sentence: str
) -> None:
    body, _ = http_codec.encode(response(outputs), AnswerForm())
    assert fault_of_json(200, body, PROMISED) == sentence


def test_too_few_numbers_are_a_fault_in_json() -> None:
    body, _ = http_codec.encode(response(GOOD), AnswerForm())
    document = msgspec.json.decode(body)
    document["outputs"][0]["data"].pop()
    fault = fault_of_json(200, msgspec.json.encode(document), PROMISED)
    assert fault == "output 'p' has 2 elements in shape [1, 3]"


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (503, b'{"error":"draining"}', 'HTTP 503: {"error":"draining"}'),
        (200, b"<html>", "the answer is no JSON: JSON is malformed: invalid character (byte 0)"),
        (200, b"[]", "the answer has no outputs"),
        (200, b'{"outputs":7}', "the answer has no outputs"),
    ],
)
def test_what_is_no_answer_is_a_fault(status: int, body: bytes, sentence: str) -> None:
    assert fault_of_json(status, body, PROMISED) == sentence
    assert fault_of_binary(status, body, str(len(body)), PROMISED) == sentence


def test_sizes_that_do_not_add_up_are_a_fault() -> None:
    body, json_bytes = binary(GOOD)
    fault = fault_of_binary(200, body[:-1], json_bytes, PROMISED)
    assert fault == "25 bytes follow the JSON header, its sizes add up to 26"


@pytest.mark.parametrize("json_bytes", [None, "", "-1"])
def test_a_binary_answer_needs_the_length_of_its_header(json_bytes: str | None) -> None:
    fault = fault_of_binary(200, b"", json_bytes, PROMISED)
    assert fault == f"Inference-Header-Content-Length is {json_bytes!r}"


def test_outputs_without_contents_are_a_fault_over_grpc() -> None:
    message = grpc_codec.encode(response(GOOD))
    del message.raw_output_contents[:]
    assert fault_of_grpc(message.SerializeToString(), PROMISED) == "2 outputs with 0 raw contents"
