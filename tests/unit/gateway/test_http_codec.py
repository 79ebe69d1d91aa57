"""HTTP bodies to requests and back, without a server: views, forms, raw requests."""

from __future__ import annotations

import json
import struct
import tracemalloc
from typing import Any

import pytest

from engines.base import ModelMetadata, TensorSpec
from engines.errors import InvalidInput
from engines.tensors import Tensor, encode_bytes
from gateway.errors import MalformedRequest, Unrepresentable
from gateway.http_api import codec
from gateway.http_api.codec import AnswerForm
from gateway.request import InferResponse


def body(*inputs: dict[str, Any], **fields: Any) -> bytes:  # Any: JSON
    """Return a JSON body."""
    return json.dumps({"inputs": list(inputs), **fields}).encode()


def response(*outputs: Tensor, request_id: str = "") -> InferResponse:
    """Return an answer of some outputs."""
    return InferResponse(model="m", version="2", id=request_id, outputs=outputs)


def metadata(*shapes: tuple[int, ...], datatype: str = "FP32", rows: int = 8) -> ModelMetadata:
    """Return the metadata of a model with inputs of these shapes."""
    inputs = tuple(
        TensorSpec(name=f"x{n}", datatype=datatype, shape=shape) for n, shape in enumerate(shapes)
    )
    return ModelMetadata(
        inputs=inputs,
        outputs=(),
        max_batch_size=rows,
        platform="p",
        engine="e",
        device="cpu",
    )


def test_a_json_body_becomes_a_request() -> None:
    content = body(
        {"name": "a", "datatype": "INT32", "shape": [2], "data": [1, 2]},
        id="7",
        parameters={"timeout": 5, "user": "u", "flag": False, "share": 0.5},
        outputs=[{"name": "v"}, {"name": "u"}],
    )
    request, form = codec.decode("digits", "3", content, None)
    assert (request.name, request.version, request.id) == ("digits", "3", "7")
    assert request.parameters == {"timeout": 5, "user": "u", "flag": False, "share": 0.5}
    assert request.inputs == (Tensor("a", "INT32", (2,), struct.pack("<2i", 1, 2)),)
    assert request.outputs == ("v", "u")
    assert request.protocol == "http"
    assert not form.is_binary("v")


def test_a_binary_tensor_is_a_view_of_the_body_and_no_copy() -> None:
    head = body(
        {"name": "a", "datatype": "UINT8", "shape": [3], "parameters": {"binary_data_size": 3}},
        {"name": "b", "datatype": "UINT8", "shape": [2], "parameters": {"binary_data_size": 2}},
    )
    whole = head + b"abcde"
    request, _ = codec.decode("m", "", whole, len(head))
    for tensor, expected in zip(request.inputs, (b"abc", b"de"), strict=True):
        assert isinstance(tensor.data, memoryview)
        assert tensor.data.obj is whole
        assert tensor.data == expected


def test_binary_tensors_of_one_header_are_each_bodys_own() -> None:
    head = body(
        {"name": "a", "datatype": "UINT8", "shape": [3], "parameters": {"binary_data_size": 3}},
        id="7",
        outputs=[{"name": "y", "parameters": {"binary_data": True}}],
    )
    for tail in (b"abc", b"def", b"ghi"):
        request, form = codec.decode("m", "1", head + tail, len(head))
        assert request.inputs == (Tensor("a", "UINT8", (3,), tail),)
        assert isinstance(request.inputs[0].data, memoryview)
        assert (request.name, request.version, request.id) == ("m", "1", "7")
        assert request.outputs == ("y",)
        assert form.is_binary("y")
        assert not form.is_binary("z")


def test_a_known_header_does_not_excuse_a_body_of_another_size() -> None:
    head = body(
        {"name": "a", "datatype": "UINT8", "shape": [3], "parameters": {"binary_data_size": 3}}
    )
    codec.decode("m", "1", head + b"abc", len(head))
    with pytest.raises(MalformedRequest, match="the body has 2 bytes left"):
        codec.decode("m", "1", head + b"ab", len(head))
    with pytest.raises(MalformedRequest, match="1 bytes follow the last binary tensor"):
        codec.decode("m", "1", head + b"abcd", len(head))


def test_a_header_with_json_data_is_read_each_time() -> None:
    for element in (1, 2):
        head = body(
            {"name": "a", "datatype": "UINT8", "shape": [1], "data": [element]},
            {"name": "b", "datatype": "UINT8", "shape": [1], "parameters": {"binary_data_size": 1}},
        )
        request, _ = codec.decode("m", "1", head + b"x", len(head))
        assert [bytes(tensor.data) for tensor in request.inputs] == [bytes([element]), b"x"]
        with pytest.raises(MalformedRequest, match="1 bytes follow the last binary tensor"):
            codec.decode("m", "1", head + b"xy", len(head))


def test_headers_that_are_ever_new_cost_no_memory() -> None:
    def ask(n: int, padding: str) -> None:
        size = {"binary_data_size": 0}
        entry = {"name": padding, "datatype": "UINT8", "shape": [0], "parameters": size}
        head = body(entry, id=str(n))
        codec.decode("m", "1", head, len(head))

    for n in range(1_000):
        ask(n, "warm")
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for n in range(2_000):
            ask(n, "p" * 1_000)
            ask(n, "p" * 100_000)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 4 << 20


def test_an_answer_has_its_own_id_and_data_whatever_was_answered_before() -> None:
    for value, request_id in ((1.5, "a"), (2.5, ""), (3.5, "\N{SNOWMAN}")):
        tensor = Tensor("y", "FP32", (1,), struct.pack("<f", value))
        answer = json.loads(codec.encode(response(tensor, request_id=request_id), AnswerForm())[0])
        assert answer["outputs"][0]["data"] == [value]
        assert answer.get("id", "") == request_id


def test_a_binary_size_is_that_of_the_data_also_where_it_varies() -> None:
    form = AnswerForm(default_binary=True)
    for element in (b"", b"long enough for two digits", b"x"):
        tensor = Tensor("y", "BYTES", (1,), encode_bytes([element]))
        content, json_bytes = codec.encode(response(tensor), form)
        (entry,) = json.loads(content[:json_bytes])["outputs"]
        assert entry["parameters"] == {"binary_data_size": len(tensor.data)}
        assert content[json_bytes:] == tensor.data


@pytest.mark.parametrize(
    ("parameters", "outputs", "binary"),
    [
        ({}, [], {"u": False, "v": False}),
        ({"binary_data_output": True}, [], {"u": True, "v": True}),
        ({"binary_data_output": False}, [], {"u": False}),
        ({"binary_data_output": 1}, [], {"u": False}),  # it is a flag, not a number
        (
            {"binary_data_output": True},
            [{"name": "u", "parameters": {"binary_data": False}}, {"name": "v"}],
            {"u": False, "v": True},
        ),
        (
            {},
            [{"name": "u", "parameters": {"binary_data": True}}, {"name": "v"}],
            {"u": True, "v": False},
        ),
    ],
)
def test_the_form_of_an_output_is_its_own_wish_or_the_requests(
    parameters: dict[str, Any], outputs: list[dict[str, Any]], binary: dict[str, bool]
) -> None:  # Any: JSON
    content = body(parameters=parameters, outputs=outputs)
    _, form = codec.decode("m", "", content, None)
    assert {name: form.is_binary(name) for name in binary} == binary


@pytest.mark.parametrize(
    ("text", "length"), [(None, None), ("0", 0), ("7", 7), ("10", 10), ("0007", 7)]
)
def test_a_header_length_is_a_number_within_the_body(text: str | None, length: int | None) -> None:
    assert codec.header_length(text, 10) == length


@pytest.mark.parametrize("text", ["11", "", "-1", "+1", "1.0", "0x1", "\xb2", "9" * 5_000, " 7"])
def test_anything_else_is_no_header_length(text: str) -> None:
    with pytest.raises(MalformedRequest, match="Inference-Header-Content-Length"):
        codec.header_length(text, 10)


def test_an_answer_in_json_has_flat_data_and_no_parameters() -> None:
    tensor = Tensor("y", "FP32", (2, 2), struct.pack("<4f", 1.0, 2.5, -3.0, 0.0))
    content, json_bytes = codec.encode(response(tensor, request_id="7"), AnswerForm())
    assert json_bytes is None
    assert json.loads(content) == {
        "model_name": "m",
        "model_version": "2",
        "id": "7",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [1.0, 2.5, -3.0, 0.0]}
        ],
    }


def test_an_answer_without_an_id_has_no_such_key() -> None:
    content, _ = codec.encode(response(), AnswerForm())
    assert json.loads(content) == {"model_name": "m", "model_version": "2", "outputs": []}


def test_binary_outputs_follow_the_header_in_order() -> None:
    tensors = (
        Tensor("a", "UINT8", (3,), b"abc"),
        Tensor("b", "BOOL", (1,), b"\1"),
        Tensor("c", "UINT8", (2,), memoryview(b"xxde")[2:]),
    )
    form = AnswerForm(default_binary=True, by_output={"b": False})
    content, json_bytes = codec.encode(response(*tensors), form)
    assert json_bytes is not None
    outputs = json.loads(content[:json_bytes])["outputs"]
    assert content[json_bytes:] == b"abcde"
    assert [o.get("parameters") for o in outputs] == [
        {"binary_data_size": 3},
        None,
        {"binary_data_size": 2},
    ]
    assert outputs[1]["data"] == [True]
    assert "data" not in outputs[0]


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("FP16", struct.pack("<e", float("nan"))),
        ("FP32", struct.pack("<f", float("inf"))),
        ("FP64", struct.pack("<d", float("-inf"))),
        ("BF16", b"\0\0"),
        ("BYTES", encode_bytes([b"\xff"])),
    ],
)
def test_what_json_cannot_carry_is_refused_with_advice(datatype: str, data: bytes) -> None:
    tensor = Tensor("y", datatype, (1,), data)
    with pytest.raises(Unrepresentable, match=r"output 'y'.* ask for it with binary_data"):
        codec.encode(response(tensor), AnswerForm())
    content, json_bytes = codec.encode(response(tensor), AnswerForm(default_binary=True))
    assert content[json_bytes:] == data


@pytest.mark.parametrize(
    ("shape", "rows", "body_bytes", "expected"),
    [
        ((-1, 4), 8, 16, (1, 4)),
        ((-1, 4), 8, 12, (1, 4)),  # the byte count is refused later, against this shape
        ((-1, -1), 8, 12, (1, 3)),
        ((-1, 2, -1), 8, 24, (1, 2, 3)),
        ((3,), 0, 12, (3,)),
        ((-1,), 0, 12, (3,)),
        ((-1, 0, -1), 8, 12, (1, 0, 0)),
        ((-1,), 8, 4, (1,)),
    ],
)
def test_a_raw_request_guesses_the_dimension_left_open(
    shape: tuple[int, ...], rows: int, body_bytes: int, expected: tuple[int, ...]
) -> None:
    found = metadata(shape, rows=rows)
    request, form = codec.decode_raw("m", "1", b"\0" * body_bytes, found)
    assert request.inputs[0].shape == expected
    assert (request.name, request.version, request.protocol) == ("m", "1", "http")
    assert form.is_binary("anything")


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (metadata((-1, 1), (-1, 1)), "a raw request needs a model with one input, 'm' has several"),
        (metadata((-1, -1, -1)), "input 'x0': a raw request leaves several dimensions open"),
        (
            metadata((-1, 2), datatype="BYTES"),
            "input 'x0': a raw request carries one BYTES element",
        ),
    ],
)
def test_a_raw_request_that_cannot_be_guessed_is_refused(
    found: ModelMetadata, sentence: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        codec.decode_raw("m", "", b"\0" * 8, found)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("shape", "rows", "expected"),
    [((-1, 1), 8, (1, 1)), ((-1, -1), 8, (1, 1)), ((-1,), 8, (1,)), ((1,), 0, (1,)), ((), 0, ())],
)
def test_a_raw_request_of_bytes_is_one_element(
    shape: tuple[int, ...], rows: int, expected: tuple[int, ...]
) -> None:
    found = metadata(shape, datatype="BYTES", rows=rows)
    request, _ = codec.decode_raw("m", "", b"hello", found)
    assert request.inputs == (Tensor("x0", "BYTES", expected, encode_bytes([b"hello"])),)
