"""The gRPC codec by hand and the one by protobuf: the same results and the same errors, always.

Messages are put together field by field, so that they come in any order, repeated, unknown, with
lengths written longer than they need be; and are then cut short or altered. Every message is
decoded more than once: the first time teaches the memo, the next ones use it.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.message import EncodeError
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import InvalidInput
from engines.tensors import DATATYPES, Raw, Tensor
from gateway.errors import MalformedRequest
from gateway.grpc_api import codec, wire
from gateway.pb import inference_pb2 as pb
from gateway.request import InferRequest, InferResponse, ServedBy, Serving

Outcome = tuple[object, ...]

LENGTH_DELIMITED: Final = 2
ID: Final = 3
RAW: Final = 7
NAMES: Final = st.text(max_size=6)
SIZES: Final = st.integers(0, 4) | st.sampled_from([-1, 127, 128, 1 << 40, (1 << 63) - 1])


def varint(value: int, spare: int = 0) -> bytes:
    """Return a varint, `spare` bytes longer than it need be."""
    out = bytearray()
    while value > 127 or (spare and len(out) < 9):
        spare -= value <= 127
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, content: bytes, spare: int = 0) -> bytes:
    """Return a length-delimited field."""
    return varint(number << 3 | LENGTH_DELIMITED) + varint(len(content), spare) + content


@st.composite
def parameter_maps(draw: st.DrawFn, message: Any) -> None:  # Any: a request, input or output
    """Set some parameters of a message."""
    keys = st.sampled_from(["timeout", "shared_memory_region", "classification", "", "é"])
    for key in draw(st.lists(keys, max_size=2)):
        parameter = message.parameters[key]
        choice = draw(st.sampled_from(["bool_param", "int64_param", "string_param", ""]))
        if choice == "string_param":
            parameter.string_param = draw(NAMES)
        elif choice:
            setattr(parameter, choice, draw(st.integers(0, 1)))


@st.composite
def inputs(draw: st.DrawFn) -> bytes:
    """Return the field of an input, mostly one that makes sense."""
    message = pb.ModelInferRequest()
    datatype = draw(st.sampled_from(sorted(DATATYPES)) | st.sampled_from(["", "FLOAT", "FP3"]))
    tensor = message.inputs.add(name=draw(NAMES), datatype=datatype)
    tensor.shape.extend(draw(st.lists(SIZES, max_size=4)))
    if draw(st.integers(0, 5)) == 0:
        draw(parameter_maps(tensor))
    if draw(st.integers(0, 5)) == 0:
        tensor.contents.fp32_contents.extend(draw(st.lists(st.just(1.5), max_size=2)))
        tensor.contents.SetInParent()
    return message.SerializeToString()


@st.composite
def describing(draw: st.DrawFn) -> bytes:
    """Return one field other than the id and raw contents."""
    message = pb.ModelInferRequest()
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return field(1, draw(NAMES).encode(), draw(st.integers(0, 2)))
    if kind == 1:
        return field(2, draw(NAMES).encode())
    if kind == 2:
        draw(parameter_maps(message))
    elif kind == 3:
        output = message.outputs.add(name=draw(NAMES))
        draw(parameter_maps(output))
    else:
        return draw(inputs())
    return message.SerializeToString()


def odd() -> st.SearchStrategy[bytes]:
    """Return fields that are unknown, of another wire type, or no fields at all."""
    return st.one_of(
        st.builds(field, st.sampled_from([8, 9, 15, 16, 200]), st.binary(max_size=3)),
        st.builds(lambda number, value: varint(number << 3) + varint(value), *[SIZES_UP] * 2),
        st.builds(lambda n, b: varint(n << 3 | 1) + b, SIZES_UP, st.binary(min_size=8, max_size=8)),
        st.builds(lambda n, b: varint(n << 3 | 5) + b, SIZES_UP, st.binary(min_size=4, max_size=4)),
        st.builds(lambda n, b: varint(n << 3 | 3) + b + varint(n << 3 | 4), SIZES_UP, st.just(b"")),
        st.builds(lambda b: b"\x8a\x00" + varint(len(b)) + b, st.binary(max_size=3)),  # long tag
        st.builds(field, st.sampled_from([0, 1, 2, 4, 5, 6]), st.binary(max_size=6)),
        st.binary(min_size=1, max_size=3),
    )


SIZES_UP: Final = st.integers(1, 300)
IDS: Final = st.builds(
    field,
    st.just(ID),
    NAMES.map(str.encode)
    | st.sampled_from([b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\0", b"x" * 200]),
    st.integers(0, 5),
)
RAWS: Final = st.builds(
    field,
    st.just(RAW),
    st.binary(max_size=6) | st.sampled_from([b"", b"1" * 127, b"2" * 128, b"3" * 17_000]),
    st.integers(0, 4),
)


@st.composite
def messages(draw: st.DrawFn) -> list[bytes]:
    """Return messages that agree in everything but id and raw contents, fields in any order."""
    parts = draw(st.lists(describing(), max_size=5))
    if draw(st.integers(0, 3)) == 0:
        parts.append(draw(odd()))
    made = []
    for _ in range(draw(st.integers(1, 3))):
        fields = list(parts)
        for part in draw(st.lists(IDS, max_size=2)) + draw(st.lists(RAWS, max_size=4)):
            fields.insert(draw(st.integers(0, len(fields))), part)
        made.append(b"".join(fields))
    return made


@st.composite
def plausible(draw: st.DrawFn) -> list[bytes]:
    """Return messages that are right, or nearly: as many raw contents as inputs, in their order."""
    message = pb.ModelInferRequest(model_name=draw(NAMES), model_version=draw(NAMES))
    count = draw(st.integers(0, 3))
    for _ in range(count):
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        datatype = draw(st.sampled_from(sorted(DATATYPES)))
        message.inputs.add(name=draw(NAMES), datatype=datatype, shape=shape)
    for name in draw(st.lists(NAMES, max_size=2)):
        message.outputs.add(name=name)
    made = []
    for _ in range(draw(st.integers(1, 3))):
        message.id = draw(NAMES)
        raws = st.lists(st.binary(max_size=6), min_size=count, max_size=count)
        message.raw_input_contents[:] = draw(raws)
        made.append(message.SerializeToString())
    return made


def said(request: InferRequest) -> Outcome:
    """Return all that a request says."""
    tensors = [(t.name, t.datatype, t.shape, bytes(t.data)) for t in request.inputs]
    parameters = sorted((k, type(v), v) for k, v in request.parameters.items())
    protocol = request.protocol
    return request.name, request.version, request.id, parameters, tensors, request.outputs, protocol


def by_protobuf(data: Raw) -> Outcome:
    """Return what the codec by protobuf makes of a message."""
    try:
        return said(codec.decode(data))
    except (MalformedRequest, InvalidInput) as exc:
        return type(exc), str(exc)


def by_hand(data: Raw) -> Outcome:
    """Return what the codec by hand makes of a message."""
    try:
        return said(wire.decode(data))
    except (MalformedRequest, InvalidInput) as exc:
        return type(exc), str(exc)


def assert_same(data: bytes) -> None:
    """Check a message in every form that a transport may give it, with and without the memo."""
    expected = by_protobuf(data)
    assert by_hand(data) == expected
    assert by_hand(data) == expected
    assert by_hand(bytearray(data)) == expected
    assert by_hand(memoryview(b"<" + data + b">")[1:-1]) == expected


@given(messages() | plausible())
def test_messages_that_differ_in_id_and_contents_decode_alike(made: list[bytes]) -> None:
    for data in made:
        assert_same(data)


@given(plausible() | messages(), st.data())
def test_altered_messages_decode_alike(made: list[bytes], data: st.DataObject) -> None:
    assert_same(made[0])
    altered = bytearray(made[0])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(altered)))
        action = data.draw(st.sampled_from(["cut", "insert", "alter", "repeat", "remove"]))
        if action == "cut":
            del altered[at:]
        elif action == "insert":
            altered[at:at] = data.draw(st.binary(max_size=3))
        elif action == "repeat":
            altered += altered[at:]
        elif action == "remove":
            del altered[at : at + data.draw(st.integers(1, 4))]
        elif at < len(altered):
            altered[at] = data.draw(st.integers(0, 255))
    assert_same(bytes(altered))


@given(st.binary(max_size=60))
def test_arbitrary_bytes_decode_alike(data: bytes) -> None:
    assert_same(data)


TEXTS: Final = st.text(max_size=6) | st.sampled_from(["é" * 80, "\0"])


@st.composite
def answers(draw: st.DrawFn) -> InferResponse:
    """Return an answer; what its tensors say of their data need not be so."""
    outputs = []
    for _ in range(draw(st.integers(0, 3))):
        datatype = draw(st.sampled_from(sorted(DATATYPES)))
        shape = tuple(draw(st.lists(st.integers(0, 300), max_size=3)))
        data = draw(st.binary(max_size=9) | st.sampled_from([b"1" * 128, b"2" * 70_000]))
        data_form = draw(st.sampled_from([bytes, memoryview]))
        outputs.append(Tensor(draw(TEXTS), datatype, shape, data_form(data)))
    return InferResponse(draw(TEXTS), draw(TEXTS), draw(TEXTS), tuple(outputs))


@given(answers(), st.lists(st.binary(max_size=5), min_size=3, max_size=3), TEXTS)
def test_answers_are_encoded_alike_whatever_their_id_and_data(
    answer: InferResponse, others: list[bytes], other_id: str
) -> None:
    outputs = tuple(t._replace(data=o) for t, o in zip(answer.outputs, others, strict=False))
    again = InferResponse(answer.model, answer.version, other_id, outputs)
    for each in (answer, answer, again):
        assert pb.ModelInferResponse.FromString(wire.encode(each)) == codec.encode(each)


@given(answers(), TEXTS, TEXTS, st.integers(0, 3), st.binary(min_size=16, max_size=16))
def test_answers_of_a_stream_are_encoded_alike(
    answer: InferResponse, variant: str, assigned: str, revision: int, rid: bytes
) -> None:
    served_by = ServedBy(rid, Serving(variant, assigned, revision, "slot" if variant else ""))
    message = pb.ModelStreamInferResponse.FromString(wire.encode_stream(answer, served_by))
    assert message == codec.encode_stream(answer, served_by)


@given(
    st.text(alphabet=st.characters(), max_size=4), st.lists(SIZES | st.just(1 << 63), max_size=2)
)
def test_what_protobuf_cannot_say_fails_alike(text: str, shape: list[int]) -> None:
    for model, request_id in ((text, ""), ("m", text)):
        output = Tensor("y", "FP32", tuple(shape), b"1234")
        answer = InferResponse(model, "1", request_id, (output,))
        outcomes: list[Outcome] = []
        for encode in (lambda a: codec.encode(a).SerializeToString(), wire.encode):
            try:
                outcomes.append((pb.ModelInferResponse.FromString(encode(answer)).outputs,))
            except (ValueError, EncodeError) as exc:
                outcomes.append((type(exc), str(exc)))
        assert outcomes[0] == outcomes[1]
