"""Codecs: every wire form of a tensor decodes to the same tensor, encoding loses nothing, and no
bytes make a decoder raise anything but an error of the caller's."""

from __future__ import annotations

import json
import math
import struct
from typing import Any, Final

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engines.base import ModelMetadata, TensorSpec
from engines.errors import InvalidInput
from engines.signature import Signature
from engines.tensors import DATATYPES, Tensor
from gateway.errors import MalformedRequest, PayloadTooLarge
from gateway.grpc_api import codec as grpc_codec
from gateway.http_api import body as bodies
from gateway.http_api import codec as http_codec
from gateway.http_api.codec import AnswerForm
from gateway.pb import inference_pb2 as pb
from gateway.request import InferRequest, InferResponse
from tests.support.transports import Ask, Given, from_raw, infer_message, raw_bytes, read_message

CALLERS_FAULT: Final = (MalformedRequest, InvalidInput, PayloadTooLarge)
LIMIT_BYTES: Final = 4_096
ELEMENTS: Final[dict[str, st.SearchStrategy[Any]]] = {  # Any: of the datatype
    "BOOL": st.booleans(),
    **{f"UINT{bits}": st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64)},
    **{
        f"INT{bits}": st.integers(-(1 << bits - 1), (1 << bits - 1) - 1) for bits in (8, 16, 32, 64)
    },
    **{
        f"FP{bits}": st.floats(width=bits, allow_nan=False, allow_infinity=False)
        for bits in (16, 32, 64)
    },
    "BF16": st.integers(0, (1 << 16) - 1),
    "BYTES": st.text(max_size=8).map(str.encode),
}
NAMES: Final = st.text(min_size=1, max_size=8)


@st.composite
def tensors(draw: st.DrawFn) -> Given:
    """Return an input that is as it says: up to three dimensions of up to three."""
    datatype = draw(st.sampled_from(sorted(DATATYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    count = math.prod(shape)
    elements = draw(st.lists(ELEMENTS[datatype], min_size=count, max_size=count))
    return Given(name=draw(NAMES), datatype=datatype, shape=shape, elements=elements)


def json_elements(given_: Given) -> list[Any]:  # Any: JSON
    """Return the elements as JSON has them."""
    return [e.decode() if isinstance(e, bytes) else e for e in given_.elements]


def nested(elements: list[Any], shape: tuple[int, ...]) -> Any:  # Any: JSON
    """Return flat elements nested as a shape."""
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape).tolist()


def by_json(given_: Given, *, is_nested: bool) -> InferRequest:
    """Decode a tensor from a JSON body."""
    data = json_elements(given_)
    if is_nested and given_.shape:
        data = nested(data, given_.shape)
    entry = {
        "name": given_.name,
        "datatype": given_.datatype,
        "shape": list(given_.shape),
        "data": data,
    }
    content = json.dumps({"inputs": [entry]}).encode()
    return http_codec.decode("m", "", content, None)[0]


def by_binary(given_: Given) -> InferRequest:
    """Decode a tensor from a body with the binary extension."""
    entry = {
        "name": given_.name,
        "datatype": given_.datatype,
        "shape": list(given_.shape),
        "parameters": {"binary_data_size": len(given_.wire())},
    }
    head = json.dumps({"inputs": [entry]}).encode()
    return http_codec.decode("m", "", head + given_.wire(), len(head))[0]


def by_grpc(given_: Given, *, is_raw: bool) -> InferRequest:
    """Decode a tensor from a ModelInferRequest."""
    message = infer_message(Ask(model="m", inputs=(given_,)), is_raw=is_raw)
    return grpc_codec.decode(message.SerializeToString())


def checked(request: InferRequest) -> tuple[str, str, tuple[int, ...], bytes]:
    """Return the only tensor of a request, after the check that every request passes."""
    (tensor,) = request.inputs
    spec = TensorSpec(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    metadata = ModelMetadata(
        inputs=(spec,), outputs=(), max_batch_size=0, platform="", engine="", device=""
    )
    Signature("m", metadata).order(request.inputs)
    return tensor.name, tensor.datatype, tensor.shape, bytes(tensor.data)


@given(tensors(), st.booleans())
def test_every_form_of_a_tensor_decodes_to_the_same_tensor(given_: Given, is_nested: bool) -> None:
    expected = given_.name, given_.datatype, given_.shape, given_.wire()
    assert checked(by_binary(given_)) == expected
    assert checked(by_grpc(given_, is_raw=True)) == expected
    if given_.datatype != "BF16":
        assert checked(by_json(given_, is_nested=is_nested)) == expected
    if given_.datatype not in ("BF16", "FP16"):
        assert checked(by_grpc(given_, is_raw=False)) == expected


@given(st.lists(tensors(), min_size=1, max_size=4, unique_by=lambda t: t.name))
def test_several_binary_tensors_are_cut_where_they_end(givens: list[Given]) -> None:
    entries = [
        {
            "name": g.name,
            "datatype": g.datatype,
            "shape": list(g.shape),
            "parameters": {"binary_data_size": len(g.wire())},
        }
        for g in givens
    ]
    head = json.dumps({"inputs": entries}).encode()
    content = head + b"".join(g.wire() for g in givens)
    request, _ = http_codec.decode("m", "", content, len(head))
    assert [bytes(tensor.data) for tensor in request.inputs] == [g.wire() for g in givens]


def answer_of(given_: Given) -> InferResponse:
    """Return an answer whose output is a tensor."""
    tensor = Tensor(given_.name, given_.datatype, given_.shape, memoryview(given_.wire()))
    return InferResponse(model="m", version="1", id="7", outputs=(tensor,))


@given(tensors())
def test_an_answer_reads_back_as_it_was_in_every_form(given_: Given) -> None:
    answer = answer_of(given_)
    content, json_bytes = http_codec.encode(answer, AnswerForm(default_binary=True))
    (entry,) = json.loads(content[:json_bytes])["outputs"]
    assert (entry["name"], entry["datatype"]) == (given_.name, given_.datatype)
    assert tuple(entry["shape"]) == given_.shape
    assert content[json_bytes:] == given_.wire()
    wire = grpc_codec.encode(answer).SerializeToString()
    received = read_message(pb.ModelInferResponse.FromString(wire), {})
    assert received.outputs[given_.name].elements == list(given_.elements)
    if given_.datatype != "BF16":
        content, json_bytes = http_codec.encode(answer, AnswerForm())
        assert json_bytes is None
        (entry,) = json.loads(content)["outputs"]
        assert entry["data"] == json_elements(given_)


@given(tensors())
def test_an_answer_in_json_can_be_sent_back_as_a_request(given_: Given) -> None:
    if given_.datatype == "BF16":
        return
    content, _ = http_codec.encode(answer_of(given_), AnswerForm())
    entry = json.loads(content)["outputs"][0]
    request, _ = http_codec.decode("m", "", json.dumps({"inputs": [entry]}).encode(), None)
    assert checked(request)[3] == given_.wire()


@given(st.binary(max_size=200), st.none() | st.integers(0, 200))
def test_arbitrary_bytes_over_http_are_at_worst_the_callers_fault(
    content: bytes, json_bytes: int | None
) -> None:
    try:
        http_codec.decode("m", "", content, min(json_bytes or 0, len(content)) or None)
    except CALLERS_FAULT:
        return


@given(st.binary(max_size=200))
def test_arbitrary_bytes_over_grpc_are_at_worst_the_callers_fault(data: bytes) -> None:
    try:
        grpc_codec.decode(data)
    except CALLERS_FAULT:
        return


SCALARS: Final = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
)
VALUES: Final = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
PARAMETERS: Final = st.dictionaries(
    st.sampled_from(
        ["binary_data_size", "binary_data", "shared_memory_region", "classification", "other"]
    ),
    SCALARS,
    max_size=2,
)
ENTRIES: Final = st.fixed_dictionaries(
    {
        "name": NAMES,
        "datatype": st.sampled_from(sorted(DATATYPES)) | st.text(max_size=4),
        "shape": st.lists(st.integers(-2, 4) | st.integers(), max_size=4) | VALUES,
    },
    optional={"data": VALUES, "parameters": PARAMETERS},
)
DOCUMENTS: Final = st.fixed_dictionaries(
    {"inputs": st.lists(ENTRIES, max_size=3)},
    optional={
        "id": SCALARS,
        "parameters": PARAMETERS,
        "outputs": st.lists(st.fixed_dictionaries({"name": NAMES, "parameters": PARAMETERS})),
    },
)


@given(DOCUMENTS, st.binary(max_size=32))
def test_documents_that_look_right_are_at_worst_the_callers_fault(
    document: dict[str, Any], tail: bytes
) -> None:  # Any: JSON
    head = json.dumps(document).encode()
    try:
        request, _ = http_codec.decode("m", "", head + tail, len(head))
        for tensor in request.inputs:
            checked(InferRequest(name="m", inputs=(tensor,)))
    except CALLERS_FAULT:
        return


@st.composite
def messages(draw: st.DrawFn) -> pb.ModelInferRequest:
    """Return a message whose parts need not agree with each other."""
    message = pb.ModelInferRequest()
    for _ in range(draw(st.integers(0, 3))):
        datatype = draw(st.sampled_from(sorted(DATATYPES)) | st.text(max_size=4))
        shape = draw(st.lists(st.integers(-2, 4) | st.integers(-(1 << 63), (1 << 63) - 1)))
        tensor = message.inputs.add(name=draw(NAMES), datatype=datatype, shape=shape)
        tensor.contents.int_contents.extend(draw(st.lists(ELEMENTS["INT32"], max_size=4)))
        tensor.contents.fp32_contents.extend(draw(st.lists(ELEMENTS["FP32"], max_size=2)))
        if draw(st.booleans()):
            tensor.ClearField("contents")
    message.raw_input_contents.extend(draw(st.lists(st.binary(max_size=16), max_size=3)))
    return message


@given(messages())
def test_messages_that_contradict_themselves_are_at_worst_the_callers_fault(
    message: pb.ModelInferRequest,
) -> None:
    try:
        for tensor in grpc_codec.decode(message.SerializeToString()).inputs:
            checked(InferRequest(name="m", inputs=(tensor,)))
    except CALLERS_FAULT:
        return


@given(st.sampled_from(["gzip", "deflate", "identity", "br"]), st.binary(max_size=200))
def test_arbitrary_bytes_decompress_or_are_the_callers_fault(encoding: str, data: bytes) -> None:
    try:
        assert len(bodies.decompress(data, encoding, LIMIT_BYTES)) <= LIMIT_BYTES
    except CALLERS_FAULT:
        return


@given(st.sampled_from(["gzip", "deflate"]), st.binary(max_size=2 * LIMIT_BYTES))
def test_what_is_compressed_decompresses_to_itself_within_the_limit(
    encoding: str, data: bytes
) -> None:
    compressed = bodies.compress(data, encoding)
    if len(data) <= LIMIT_BYTES:
        assert bodies.decompress(compressed, encoding, LIMIT_BYTES) == data
        return
    try:
        bodies.decompress(compressed, encoding, LIMIT_BYTES)
    except PayloadTooLarge:
        return
    raise AssertionError("more than the limit came out")


@given(st.text() | st.integers().map(str), st.integers(0, 1 << 32))
def test_a_header_length_is_within_the_body_or_refused(text: str, body_bytes: int) -> None:
    try:
        length = http_codec.header_length(text, body_bytes)
    except MalformedRequest:
        return
    assert length is not None
    assert 0 <= length <= body_bytes
    assert int(text) == length


@given(st.integers(0, 64), st.lists(st.integers(-1, 3), max_size=3), st.sampled_from([0, 8]))
def test_a_raw_request_decodes_or_is_the_callers_fault(
    body_bytes: int, item_shape: list[int], rows: int
) -> None:
    shape = (-1, *item_shape) if rows else tuple(item_shape)
    spec = TensorSpec(name="x", datatype="FP32", shape=shape)
    metadata = ModelMetadata(
        inputs=(spec,), outputs=(), max_batch_size=rows, platform="", engine="", device=""
    )
    data = struct.pack(f"<{body_bytes}B", *range(body_bytes))
    try:
        request, _ = http_codec.decode_raw("m", "", data, metadata)
        ordered, found_rows = Signature("m", metadata).order(request.inputs)
    except CALLERS_FAULT:
        return
    assert found_rows == 1
    assert raw_bytes("FP32", from_raw("FP32", bytes(ordered[0].data))) == data
