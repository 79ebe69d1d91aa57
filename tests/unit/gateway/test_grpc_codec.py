"""ModelInferRequest to a request and back, without a server."""

from __future__ import annotations

import struct

import pytest

from engines.errors import InvalidInput
from engines.tensors import Tensor, encode_bytes
from gateway.errors import MalformedRequest
from gateway.grpc_api import codec
from gateway.pb import inference_pb2 as pb
from gateway.request import InferResponse


def message(datatype: str = "FP32", shape: tuple[int, ...] = (2,)) -> pb.ModelInferRequest:
    """Return a request with one input and no contents."""
    made = pb.ModelInferRequest(model_name="digits", model_version="3", id="7")
    made.inputs.add(name="x", datatype=datatype, shape=shape)
    return made


def test_raw_contents_pass_through_as_they_stand() -> None:
    request = message()
    request.raw_input_contents.append(b"12345678")
    request.outputs.add(name="v")
    request.outputs.add(name="u")
    decoded = codec.decode(request.SerializeToString())
    assert (decoded.name, decoded.version, decoded.id) == ("digits", "3", "7")
    assert decoded.inputs == (Tensor("x", "FP32", (2,), b"12345678"),)
    assert decoded.outputs == ("v", "u")
    assert decoded.protocol == "grpc"


def test_every_kind_of_parameter_becomes_a_plain_value() -> None:
    request = message()
    request.raw_input_contents.append(b"12345678")
    request.parameters["flag"].bool_param = True
    request.parameters["signed"].int64_param = -5
    request.parameters["text"].string_param = "u"
    request.parameters["share"].double_param = 0.5
    request.parameters["large"].uint64_param = (1 << 64) - 1
    request.parameters["false"].bool_param = False
    request.parameters["nothing"].SetInParent()
    assert codec.decode(request.SerializeToString()).parameters == {
        "flag": True,
        "signed": -5,
        "text": "u",
        "share": 0.5,
        "large": (1 << 64) - 1,
        "false": False,
    }


@pytest.mark.parametrize(
    ("datatype", "field", "elements", "raw"),
    [
        ("BOOL", "bool_contents", [True, False], b"\1\0"),
        ("INT8", "int_contents", [-128, 127], struct.pack("<2b", -128, 127)),
        ("INT16", "int_contents", [-5, 5], struct.pack("<2h", -5, 5)),
        ("INT32", "int_contents", [-5, 5], struct.pack("<2i", -5, 5)),
        ("INT64", "int64_contents", [-5, 5], struct.pack("<2q", -5, 5)),
        ("UINT8", "uint_contents", [0, 255], b"\0\xff"),
        ("UINT16", "uint_contents", [0, 65_535], b"\0\0\xff\xff"),
        ("UINT32", "uint_contents", [0, 5], struct.pack("<2I", 0, 5)),
        ("UINT64", "uint64_contents", [0, (1 << 64) - 1], struct.pack("<2Q", 0, (1 << 64) - 1)),
        ("FP32", "fp32_contents", [1.5, float("inf")], struct.pack("<2f", 1.5, float("inf"))),
        ("FP64", "fp64_contents", [0.1, -0.0], struct.pack("<2d", 0.1, -0.0)),
        ("BYTES", "bytes_contents", [b"", b"\xff"], encode_bytes([b"", b"\xff"])),
    ],
)
def test_typed_contents_become_raw_bytes(
    datatype: str, field: str, elements: list[object], raw: bytes
) -> None:
    request = message(datatype)
    getattr(request.inputs[0].contents, field).extend(elements)
    assert codec.decode(request.SerializeToString()).inputs[0].data == raw


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_a_datatype_without_typed_contents_is_refused(datatype: str) -> None:
    request = message(datatype)
    request.inputs[0].contents.fp32_contents.extend([1.0, 2.0])
    with pytest.raises(InvalidInput, match=f"input 'x': {datatype} has only a raw form"):
        codec.decode(request.SerializeToString())


@pytest.mark.parametrize(
    ("datatype", "field", "element"),
    [
        ("INT8", "int_contents", 128),
        ("INT16", "int_contents", -32_769),
        ("UINT8", "uint_contents", 256),
        ("UINT16", "uint_contents", 1 << 31),
    ],
)
def test_an_element_that_the_datatype_cannot_hold_is_refused_and_never_wrapped(
    datatype: str, field: str, element: int
) -> None:
    request = message(datatype)
    getattr(request.inputs[0].contents, field).extend([1, element])
    with pytest.raises(InvalidInput, match=f"an element is out of range for {datatype}"):
        codec.decode(request.SerializeToString())


def test_a_request_without_inputs_is_decoded_and_left_to_the_signature() -> None:
    request = pb.ModelInferRequest(model_name="m")
    assert codec.decode(request.SerializeToString()).inputs == ()


def test_more_raw_entries_than_inputs_are_refused() -> None:
    request = message()
    request.raw_input_contents.extend([b"12345678", b""])
    with pytest.raises(MalformedRequest, match="has 2 entries for 1 inputs"):
        codec.decode(request.SerializeToString())


def test_an_answer_is_raw_with_one_entry_per_output() -> None:
    outputs = (
        Tensor("u", "FP32", (1, 2), memoryview(b"xx12345678")[2:]),
        Tensor("v", "BYTES", (0,), b""),
    )
    answer = codec.encode(InferResponse(model="m", version="2", id="7", outputs=outputs))
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "2", "7")
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
        ("u", "FP32", [1, 2]),
        ("v", "BYTES", [0]),
    ]
    assert list(answer.raw_output_contents) == [b"12345678", b""]
    assert not any(output.HasField("contents") for output in answer.outputs)
