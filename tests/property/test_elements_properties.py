"""JSON bodies: the short way and the long way, remembered and new, say the same."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any, Final

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import InvalidInput
from engines.tensors import BYTES, DATATYPES, Tensor, encode_bytes
from gateway.errors import MalformedRequest, Unrepresentable
from gateway.http_api import codec, elements
from gateway.http_api.codec import AnswerForm
from gateway.request import InferResponse

NUMBERS: Final = sorted(set(DATATYPES) - {BYTES, "BF16"})
EDGES: Final = st.sampled_from(
    [
        *(65_504, 65_519.9, 65_520.0, 65_536),  # the largest FP16, and what rounds to more
        *(3.4028235e38, 3.4028235677973366e38, 1e39),  # FP32
        *(1e-45, 5e-8, 2.98e-8, -0.0, 1.7e308),
        *(1 << 31, (1 << 32) - 1, 1 << 32, -(1 << 31), -(1 << 31) - 1),
        *((1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, -(1 << 63), 10**30, 10**400),
    ]
)
FLOATS: Final = st.one_of(
    *(st.floats(width=width, allow_nan=False, allow_infinity=False) for width in (16, 32, 64))
)
NUMERIC: Final = EDGES | FLOATS | st.integers(-300, 300)
ELEMENTS: Final = st.sampled_from(
    [
        NUMERIC,
        st.integers(0, 100),
        FLOATS,
        st.booleans(),
        NUMERIC | st.booleans() | st.none() | st.text(max_size=2) | st.just([]),
    ]
)
SHAPES: Final = st.lists(st.integers(0, 3), max_size=5).map(tuple)


def nested(flat: list[Any], shape: tuple[int, ...]) -> list[Any]:  # Any: JSON
    """Return elements nested as a shape of at least one dimension."""
    if len(shape) == 1:
        return flat
    size = math.prod(shape[1:])
    return [nested(flat[n * size : (n + 1) * size], shape[1:]) for n in range(shape[0])]


@st.composite
def data(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:  # Any: JSON
    """Return data for a shape: flat, nested, or not quite."""
    count = math.prod(shape)
    flat = draw(st.lists(draw(ELEMENTS), min_size=count, max_size=count))
    form = draw(st.sampled_from(["flat", "nested", "ragged", "short", "deeper", "scalar"]))
    if form == "short":
        return flat[1:]
    if form == "deeper":
        return [flat]
    if form == "scalar":
        return draw(NUMERIC | st.text(max_size=2) | st.dictionaries(st.just("a"), st.none()))
    if form == "flat" or not shape:
        return flat
    whole = nested(flat, shape)
    if form == "ragged" and len(shape) > 1 and whole and whole[0]:
        whole[-1].append(whole[0].pop())
    return whole


@given(st.sampled_from(sorted(DATATYPES)), SHAPES, st.data())
def test_elements_that_the_short_way_takes_are_those_of_the_long_way(
    datatype: str, shape: tuple[int, ...], draw: st.DataObject
) -> None:
    text = msgspec.Raw(json.dumps(draw.draw(data(shape))).encode())
    short = elements.pack(datatype, shape, text)
    if short is not None:
        assert elements.decode("x", datatype, shape, text) == short


@given(st.sampled_from(NUMBERS), SHAPES, st.booleans(), st.data())
def test_the_short_way_takes_all_plain_numbers(
    datatype: str, shape: tuple[int, ...], is_nested: bool, draw: st.DataObject
) -> None:
    count = math.prod(shape)
    element = st.booleans() if datatype == "BOOL" else st.integers(0, 100)
    flat = draw.draw(st.lists(element, min_size=count, max_size=count))
    deep = is_nested and 0 < len(shape) <= 4
    text = json.dumps(nested(flat, shape) if deep else flat).encode()
    assert elements.pack(datatype, shape, msgspec.Raw(text)) is not None


@st.composite
def outputs(draw: st.DrawFn) -> Tensor:
    """Return an output with any bits in it."""
    datatype = draw(st.sampled_from(sorted(DATATYPES)))
    shape = draw(SHAPES)
    count = math.prod(shape)
    if datatype == BYTES:
        each = st.binary(max_size=3) | st.text(max_size=3).map(str.encode)
        raw = encode_bytes(draw(st.lists(each, min_size=count, max_size=count)))
    else:
        size = count * DATATYPES[datatype].item_bytes
        raw = draw(st.binary(min_size=size, max_size=size))
    name = draw(st.sampled_from(["y", "", "é", '"', "%d", "{}"]) | st.text(max_size=3))
    return Tensor(name, datatype, shape, draw(st.sampled_from([bytes, memoryview]))(raw))


@given(outputs())
def test_an_output_has_one_text_in_json(tensor: Tensor) -> None:
    layout = elements.layout_of(tensor.datatype, tensor.shape)
    short = elements.unpack(tensor, layout)
    try:
        long = elements.encode(tensor)
    except Unrepresentable:
        assert short is None
        return
    assert short is None if tensor.datatype == BYTES else short == long


def plain_answer(response: InferResponse, form: AnswerForm) -> tuple[bytes, int | None]:
    """Return an answer as it was before there were templates."""
    described: list[dict[str, Any]] = []  # Any: JSON
    tail = []
    for tensor in response.outputs:
        entry: dict[str, Any] = {"name": tensor.name}  # Any: JSON
        entry |= {"datatype": tensor.datatype, "shape": tensor.shape}
        if form.is_binary(tensor.name):
            entry["parameters"] = {"binary_data_size": len(tensor.data)}
            tail.append(tensor.data)
        else:
            entry["data"] = msgspec.Raw(elements.encode(tensor))
        described.append(entry)
    whole: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        whole["id"] = response.id
    head = msgspec.json.encode({**whole, "outputs": described})
    return (b"".join([head, *tail]), len(head)) if tail else (head, None)


@given(
    st.lists(outputs(), max_size=3),
    st.booleans(),
    st.dictionaries(st.sampled_from(["y", "é", ""]), st.booleans()),
    st.lists(st.text(max_size=3), min_size=2, max_size=2),
)
def test_an_answer_is_the_same_to_the_byte_as_without_a_template(
    tensors: list[Tensor], default_binary: bool, by_output: dict[str, bool], ids: list[str]
) -> None:
    form = AnswerForm(default_binary=default_binary, by_output=by_output)
    for request_id in ids:
        response = InferResponse("m", "1", request_id, tuple(tensors))
        outcomes = []
        for encode in (plain_answer, codec.encode):
            try:
                outcomes.append(encode(response, form))
            except Unrepresentable as exc:
                outcomes.append((str(exc).encode(), None))
        assert outcomes[0] == outcomes[1]


Outcome = tuple[object, ...]
_spaces: Final = itertools.count(1)


def new_header(head: bytes) -> bytes:
    """Return the same JSON as no header was written before."""
    return head + f"{next(_spaces):b}".replace("0", " ").replace("1", "\t").encode()


def outcome(head: bytes, tail: bytes) -> Outcome:
    """Return all that a binary body says, or its error."""
    try:
        request, form = codec.decode("m", "", head + tail, len(head))
    except (MalformedRequest, InvalidInput) as exc:
        return type(exc), str(exc)
    tensors = [(t.name, t.datatype, t.shape, bytes(t.data)) for t in request.inputs]
    wishes = form.default_binary, dict(form.by_output or {})
    return request.id, request.parameters, tensors, request.outputs, request.protocol, wishes


@st.composite
def headers(draw: st.DrawFn) -> tuple[bytes, int]:
    """Return a JSON header, and how many bytes it wants behind it."""
    sizes = draw(st.lists(st.integers(0, 9), max_size=3))
    inputs: list[dict[str, Any]] = [  # Any: JSON
        {
            "name": draw(st.text(max_size=2)),
            "datatype": draw(st.sampled_from([*sorted(DATATYPES), "FLOAT"])),
            "shape": draw(st.lists(st.integers(-1, 4), max_size=3)),
            "parameters": {"binary_data_size": size},
        }
        for size in sizes
    ]
    if draw(st.integers(0, 3)) == 0:
        inputs.append({"name": "j", "datatype": "FP32", "shape": [1], "data": [1.5]})
    document: dict[str, Any] = {"inputs": inputs, "id": draw(st.text(max_size=2))}
    if draw(st.booleans()):
        document["parameters"] = {"binary_data_output": draw(st.booleans())}
    if draw(st.booleans()):
        parameter = draw(st.sampled_from(["binary_data", "classification"]))
        document["outputs"] = [{"name": "y", "parameters": {parameter: draw(st.booleans())}}]
    return json.dumps(document).encode(), sum(sizes)


@given(headers(), st.lists(st.binary(max_size=30), min_size=1, max_size=3), st.data())
def test_a_header_that_is_remembered_means_what_a_new_one_means(
    header: tuple[bytes, int], others: list[bytes], draw: st.DataObject
) -> None:
    head, size = header
    right = st.binary(min_size=size, max_size=size)
    for tail in (draw.draw(right), draw.draw(right), *others, draw.draw(right)):
        assert outcome(head, tail) == outcome(new_header(head), tail)
