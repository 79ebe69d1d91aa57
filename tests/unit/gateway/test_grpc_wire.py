"""The codec by hand: what it cuts out, what it shares, what it leaves to protobuf, its bounds."""

from __future__ import annotations

import struct
import tracemalloc

import pytest

from engines.errors import InvalidInput
from engines.tensors import Raw, Tensor
from gateway.errors import MalformedRequest
from gateway.grpc_api import codec, wire
from gateway.pb import inference_pb2 as pb
from gateway.request import InferResponse, ServedBy, Serving


def message(
    *raws: bytes, model: str = "digits", request_id: str = "7", shape: tuple[int, ...] = (2,)
) -> bytes:
    """Return a request with an input per raw content."""
    made = pb.ModelInferRequest(model_name=model, model_version="3", id=request_id)
    for position, _ in enumerate(raws):
        made.inputs.add(name=f"x{position}", datatype="FP32", shape=shape)
    made.outputs.add(name="v")
    made.parameters["timeout"].int64_param = 5
    made.raw_input_contents.extend(raws)
    return made.SerializeToString()


def test_id_and_contents_are_each_messages_own() -> None:
    for request_id, raw in (("a", b"12345678"), ("", b"abcdefgh"), ("é" * 80, b"........")):
        request = wire.decode(message(raw, request_id=request_id))
        assert (request.name, request.version, request.id) == ("digits", "3", request_id)
        assert request.inputs == (Tensor("x0", "FP32", (2,), raw),)
        assert request.outputs == ("v",)
        assert request.parameters == {"timeout": 5}
        assert request.protocol == "grpc"
        assert request == codec.decode(message(raw, request_id=request_id))


def test_requests_of_one_description_share_what_they_have_in_common() -> None:
    wire.decode(message(b"12345678"))
    first, second = (wire.decode(message(raw)) for raw in (b"12345678", b"abcdefgh"))
    assert first.parameters is second.parameters
    assert first.outputs is second.outputs
    assert first.inputs[0].shape is second.inputs[0].shape


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_a_small_message_is_copied_and_may_change_afterwards(form: type[Raw]) -> None:
    wire.decode(message(b"12345678"))
    data = bytearray(message(b"12345678"))
    tensor = wire.decode(form(data)).inputs[0]
    data[:] = bytes(len(data))
    assert type(tensor.data) is bytes
    assert tensor.data == b"12345678"


@pytest.mark.parametrize("form", [bytes, bytearray, memoryview])
def test_contents_of_a_large_message_are_views_of_it(form: type[Raw]) -> None:
    raws = (b"1" * 3_000_000, b"2" * 128)
    data = form(message(*raws, model="images"))
    wire.decode(data)
    tensors = wire.decode(data).inputs
    assert [bytes(tensor.data) for tensor in tensors] == list(raws)
    for tensor in tensors:
        assert isinstance(tensor.data, memoryview)
        assert tensor.data.obj is (data.obj if isinstance(data, memoryview) else data)


def test_contents_without_inputs_and_inputs_without_contents_are_errors_also_of_a_known_key() -> (
    None
):
    good = pb.ModelInferRequest.FromString(message(b"12345678", b"12345678"))
    wire.decode(good.SerializeToString())
    good.raw_input_contents.append(b"")
    with pytest.raises(MalformedRequest, match="has 3 entries for 2 inputs"):
        wire.decode(good.SerializeToString())
    del good.raw_input_contents[:]
    with pytest.raises(InvalidInput, match="input 'x0': 0 elements given"):
        wire.decode(good.SerializeToString())


def test_an_id_that_is_no_text_is_refused_also_with_a_known_key() -> None:
    good = message(b"12345678", request_id="id")
    wire.decode(good)
    with pytest.raises(MalformedRequest, match="no ModelInferRequest message"):
        wire.decode(good.replace(b"id", b"\xff\xff", 1))


def test_a_message_of_a_known_key_that_ends_early_is_refused_wherever_it_ends() -> None:
    good = message(b"12345678", model="cut")
    wire.decode(good)
    for end in range(len(good) - 9, len(good)):
        with pytest.raises(MalformedRequest, match="no ModelInferRequest message"):
            wire.decode(good[:end])


def test_typed_contents_beside_raw_ones_are_refused_also_where_the_first_came_alone() -> None:
    typed = pb.ModelInferRequest(model_name="typed")
    tensor = typed.inputs.add(name="x", datatype="FP32", shape=[1])
    tensor.contents.fp32_contents.append(1.5)
    for _ in range(2):
        assert wire.decode(typed.SerializeToString()).inputs[0].data == struct.pack("<f", 1.5)
    typed.raw_input_contents.append(b"1234")
    with pytest.raises(MalformedRequest, match="typed contents beside raw_input_contents"):
        wire.decode(typed.SerializeToString())


def test_what_stands_in_an_unknown_field_is_no_field() -> None:
    long_tag = b"\x82\x01\x03\x1a\x01x"  # field 16, whose content looks like an id
    for _ in range(2):
        assert wire.decode(message(b"12345678", request_id="7") + long_tag).id == "7"


def test_the_last_id_counts_wherever_it_stands() -> None:
    good = message(b"12345678", request_id="first")
    wire.decode(good)
    assert wire.decode(good + b"\x1a\x04last").id == "last"
    assert wire.decode(b"\x1a\x04last" + good).id == "first"


def test_a_later_field_wins_also_after_the_contents() -> None:
    good = message(b"12345678")
    wire.decode(good)
    for _ in range(2):
        request = wire.decode(good + pb.ModelInferRequest(model_name="other").SerializeToString())
        assert request.name == "other"


def test_callers_whose_every_message_is_new_cost_no_memory() -> None:
    for n in range(1_000):
        wire.decode(message(b"12345678", model=f"warm {n}"))
    outputs = [pb.ModelInferRequest.InferRequestedOutputTensor(name="y" * 1_000)] * 20
    many_outputs = pb.ModelInferRequest(outputs=outputs).SerializeToString()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for n in range(2_000):
            wire.decode(message(b"12345678", model=f"{n} {'m' * 1_000}"))
            wire.decode(message(b"12345678", model=f"{n} {'m' * 100_000}"))
            wire.decode(message(b"12345678", model=f"{n}") + many_outputs)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 4 << 20


def test_messages_of_a_great_many_fields_are_protobufs() -> None:
    for filler in (b"\x32\x00", b"\x1a\x00", b"\x7a\x00"):
        data = filler * 1_000 + message(b"12345678")
        first, second = wire.decode(data), wire.decode(data)
        assert first == second == codec.decode(data)
        assert first.inputs[0].shape is not second.inputs[0].shape  # nothing is remembered


def answer(*data: Raw, request_id: str = "7", model: str = "m") -> InferResponse:
    """Return an answer with an output per piece of data."""
    outputs = tuple(Tensor(f"y{n}", "FP32", (1, 3), piece) for n, piece in enumerate(data))
    return InferResponse(model, "2", request_id, outputs)


@pytest.mark.parametrize("request_id", ["", "7", "é" * 80])
@pytest.mark.parametrize(
    "data",
    [
        (),
        (b"123456789012",),
        (memoryview(b"xx123456789012")[2:],),
        (b"",),
        (b"1" * 128,),
        (b"1" * 16_384, b"", memoryview(b"2" * 3_000_000)),
    ],
    ids=["none", "one", "a view", "empty", "two bytes of length", "three"],
)
def test_an_answer_parses_to_what_protobuf_would_have_written(
    data: tuple[Raw, ...], request_id: str
) -> None:
    response = answer(*data, request_id=request_id)
    for _ in range(2):
        assert pb.ModelInferResponse.FromString(wire.encode(response)) == codec.encode(response)


def test_a_template_serves_data_of_another_size() -> None:
    for size in (4, 200, 0, 4):
        parsed = pb.ModelInferResponse.FromString(wire.encode(answer(b"x" * size, model="resized")))
        assert list(parsed.raw_output_contents) == [b"x" * size]


def test_an_answer_of_a_stream_says_who_served_and_that_it_is_the_last() -> None:
    for serving in (Serving("stable", "canary", 4, "slot"), Serving("", "", 0, "model")):
        for rid in (bytes(range(16)), bytes(16)):
            served_by = ServedBy(rid, serving)
            response = answer(struct.pack("<3f", 1, 2, 3))
            wire_bytes = wire.encode_stream(response, served_by)
            parsed = pb.ModelStreamInferResponse.FromString(wire_bytes)
            assert parsed == codec.encode_stream(response, served_by)
            told = parsed.infer_response.parameters
            assert told["x-request-id"].string_param == served_by.request_id
            assert told["triton_final_response"].bool_param
            assert not parsed.error_message


def test_an_answer_that_protobuf_cannot_write_is_left_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "_MAX_MESSAGE_BYTES", 100_000)  # 2 GiB would take a while
    response = answer(b"1" * 70_000, b"2" * 60_000)
    served_by = ServedBy(bytes(16), Serving("", "", 0, "model"))
    assert wire.encode(response) == codec.encode(response).SerializeToString()
    streamed = codec.encode_stream(response, served_by)
    parsed = pb.ModelStreamInferResponse.FromString(wire.encode_stream(response, served_by))
    assert parsed == streamed
