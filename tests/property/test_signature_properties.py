"""Admission remembers kinds of requests: what it says must not depend on who came before."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from engines import signature as signatures
from engines.base import ModelMetadata, TensorSpec
from engines.errors import InvalidInput
from engines.signature import ShapeKey, Signature
from engines.tensors import BYTES, DATATYPES, Tensor, encode_bytes

NAMES = ("x", "y", "")
TYPES = ("FP32", "INT64", "UINT8", BYTES)

SAME_SIZE = {"FP32": "INT32", "INT32": "FP32", "INT64": "FP64", "UINT8": "INT8"}

Admitted = tuple[tuple[Tensor, ...], int, ShapeKey] | str


@st.composite
def models(draw: st.DrawFn) -> ModelMetadata:
    """Draw a signature of one or two inputs, with or without a batch axis."""
    max_batch_size = draw(st.sampled_from([0, 1, 4]))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True))
    inputs = []
    for name in names:
        item_shape = tuple(draw(st.lists(st.sampled_from([-1, 1, 2]), max_size=2)))
        shape = (-1, *item_shape) if max_batch_size else item_shape
        datatype = draw(st.sampled_from(TYPES))
        inputs.append(TensorSpec(name=name, datatype=datatype, shape=shape))
    return ModelMetadata(
        inputs=tuple(inputs),
        outputs=(),
        max_batch_size=max_batch_size,
        platform="fake",
        engine="fake 1",
        device="cpu",
    )


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Draw a tensor that may fit: of right and wrong names, types, shapes and sizes."""
    datatype = draw(st.sampled_from([*TYPES, "FP33"]))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    count = math.prod(shape) + draw(st.sampled_from([0, 0, 0, 0, 1]))
    if datatype == BYTES:
        data = encode_bytes([b"e"] * count) + draw(st.sampled_from([b"", b"", b"\1"]))
    else:
        item_bytes = DATATYPES[datatype].item_bytes if datatype in DATATYPES else 4
        data = bytes(count * item_bytes + draw(st.sampled_from([0, 0, 0, 1])))
    as_given = draw(st.sampled_from([bytes, bytearray, memoryview]))
    return Tensor(draw(st.sampled_from(NAMES)), datatype, shape, as_given(data))


@st.composite
def fitting(draw: st.DrawFn, model: ModelMetadata) -> tuple[Tensor, ...]:
    """Draw a request that fits the model."""
    rows = draw(st.integers(1, max(1, model.max_batch_size)))
    found = []
    for spec in model.inputs:
        first = 1 if model.max_batch_size else 0
        item_shape = [draw(st.integers(1, 3)) if n == -1 else n for n in spec.shape[first:]]
        shape = (*([rows] * first), *item_shape)
        size = math.prod(shape) * DATATYPES[spec.datatype].item_bytes
        data = encode_bytes([b"e"] * math.prod(shape)) if spec.datatype == BYTES else bytes(size)
        found.append(Tensor(spec.name, spec.datatype, shape, data))
    return tuple(draw(st.permutations(found)))


@st.composite
def histories(draw: st.DrawFn) -> tuple[ModelMetadata, list[tuple[Tensor, ...]]]:
    """Draw a model and requests to it; some come again, a byte shorter or of another type."""
    model = draw(models())
    some = fitting(model) | st.lists(tensors(), max_size=3).map(tuple)
    requests = draw(st.lists(some, min_size=1, max_size=6))
    again = draw(st.lists(st.sampled_from(requests), max_size=6))
    cut = [tuple(t._replace(data=t.data[:-1]) for t in inputs) for inputs in again[:2]]
    odd = [tuple(t._replace(datatype=SAME_SIZE.get(t.datatype, BYTES)) for t in i) for i in again]
    return model, requests + again + cut + odd + requests


def admit(made: Signature, inputs: tuple[Tensor, ...]) -> Admitted:
    try:
        return made.admit(inputs)
    except InvalidInput as refused:
        return str(refused)


def check(model: ModelMetadata, inputs: Sequence[Tensor]) -> Admitted:
    """Admit a request as one that has never seen another does, without remembering."""
    fresh = Signature("m", model)
    try:
        ordered, rows = fresh.order(inputs)
    except InvalidInput as refused:
        return str(refused)
    return ordered, rows, fresh.shape_key(ordered)


@given(histories())
def test_a_request_is_admitted_or_refused_whoever_came_before_it(
    drawn: tuple[ModelMetadata, list[tuple[Tensor, ...]]],
) -> None:
    model, requests = drawn
    made = Signature("m", model)
    for inputs in requests:
        assert admit(made, inputs) == check(model, inputs)


def test_text_is_looked_at_every_time() -> None:
    """Its size tells nothing about its framing."""
    spec = TensorSpec(name="t", datatype=BYTES, shape=(-1, 1))
    model = ModelMetadata(
        inputs=(spec,), outputs=(), max_batch_size=4, platform="", engine="", device=""
    )
    made = Signature("m", model)
    good = Tensor("t", BYTES, (1, 1), encode_bytes([b"four"]))
    broken = good._replace(data=b"\x09\0\0\0four")
    assert made.admit((good,)) == ((good,), 1, ())
    assert admit(made, (broken,)) == check(model, (broken,))
    assert isinstance(admit(made, (broken,)), str)
    assert made.admit((good,)) == ((good,), 1, ())


def test_the_kinds_that_are_remembered_are_bounded() -> None:
    spec = TensorSpec(name="x", datatype="UINT8", shape=(-1, -1))
    model = ModelMetadata(
        inputs=(spec,), outputs=(), max_batch_size=4, platform="", engine="", device=""
    )
    made = Signature("m", model)
    for width in range(2 * signatures._MAX_KINDS):
        tensor = Tensor("x", "UINT8", (2, width), bytes(2 * width))
        assert made.admit((tensor,)) == ((tensor,), 2, ((width,),))
        assert 0 < len(made._admitted) <= signatures._MAX_KINDS
