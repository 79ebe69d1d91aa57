"""Whether one model can take over the requests of another, checked against admission itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import ModelMetadata, TensorSpec
from engines.errors import InvalidInput
from engines.signature import Signature, incompatibility
from engines.tensors import DATATYPES, Tensor, from_array


def spec(name: str, *shape: int, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def model(
    *inputs: TensorSpec, rows: int = 8, outputs: Sequence[TensorSpec] = (spec("y", -1, 3),)
) -> ModelMetadata:
    return ModelMetadata(
        inputs=inputs,
        outputs=tuple(outputs),
        max_batch_size=rows,
        platform="fake",
        engine="fake 1",
        device="cpu",
    )


X4 = spec("x", -1, 4)
BASE = model(X4)


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (BASE, BASE),
        (BASE, replace(BASE, engine="other", platform="other", device="cuda:0")),
        (BASE, model(X4, rows=16)),
        (BASE, model(spec("x", -1, -1))),
        (model(X4, spec("z", -1, 1)), model(spec("z", -1, 1), X4)),
        (BASE, model(X4, outputs=(spec("more", -1), spec("y", -1, 3)))),
        (BASE, model(X4, outputs=(spec("y", -1, -1),))),
        (model(X4, outputs=(spec("y", -1, -1),)), BASE),
        (BASE, model(X4, rows=0)),
        (model(X4, rows=1), model(spec("x", 1, 4), rows=0)),
        (model(spec("x", 2, 4), rows=0), BASE),
    ],
)
def test_a_model_that_takes_and_gives_as_much_is_compatible(
    reference: ModelMetadata, candidate: ModelMetadata
) -> None:
    assert incompatibility(reference, candidate) == ""


@pytest.mark.parametrize(
    ("reference", "candidate", "sentence"),
    [
        (model(X4, spec("z", -1, 1)), BASE, "input 'z' is sent, but not taken"),
        (BASE, model(X4, spec("z", -1, 1)), "input 'z' is needed, but not sent"),
        (
            BASE,
            model(spec("x", -1, 4, datatype="FP64")),
            "input 'x': FP32 is sent, FP64 is taken",
        ),
        (BASE, model(spec("x", -1, 5)), "input 'x': shape [-1, 4] is sent, [-1, 5] is taken"),
        (BASE, model(spec("x", -1)), "input 'x': shape [-1, 4] is sent, [-1] is taken"),
        (
            model(spec("x", -1, -1)),
            BASE,
            "input 'x': shape [-1, -1] is sent, [-1, 4] is taken",
        ),
        (BASE, model(X4, rows=4), "input 'x': up to 8 rows are sent, 1 to 4 are taken"),
        (
            model(X4, rows=0),
            BASE,
            "input 'x': any number of rows are sent, 1 to 8 are taken",
        ),
        (
            model(spec("x", 2, 4), spec("z", 3, 4), rows=0),
            model(X4, spec("z", -1, 4)),
            "input 'z': 3 rows are sent where input 'x' has 2, and equally many are taken",
        ),
        (
            BASE,
            model(X4, outputs=(spec("z", -1, 3),)),
            "output 'y' is expected, but not given",
        ),
        (
            BASE,
            model(X4, outputs=(spec("y", -1, 3, datatype="INT64"),)),
            "output 'y': FP32 is expected, INT64 is given",
        ),
        (
            BASE,
            model(X4, outputs=(spec("y", -1, 2),)),
            "output 'y': shape [-1, 3] is expected, [-1, 2] is given",
        ),
        (
            BASE,
            model(X4, outputs=(spec("y", -1),)),
            "output 'y': shape [-1, 3] is expected, [-1] is given",
        ),
    ],
)
def test_the_first_trouble_is_named_with_its_tensor(
    reference: ModelMetadata, candidate: ModelMetadata, sentence: str
) -> None:
    assert incompatibility(reference, candidate) == sentence


SIZES = (1, 2, 3)
"""Of the dimensions of every request that is tried; the models below speak of no others."""


@st.composite
def models(draw: st.DrawFn) -> ModelMetadata:
    """Small models with or without a batch axis; the largest batch is among the sizes tried."""
    rows = draw(st.sampled_from((0, 1, 2, 3)))
    dimension = st.sampled_from((-1, 1, 2))
    first = st.just(-1) if rows else dimension
    inputs = tuple(
        TensorSpec(
            name=name,
            datatype=draw(st.sampled_from(("FP32", "INT8"))),
            shape=(draw(first), *draw(st.lists(dimension, max_size=1))),
        )
        for name in draw(st.sampled_from((("a",), ("a", "b"))))
    )
    return model(*inputs, rows=rows)


def all_requests(shape_of: ModelMetadata) -> list[tuple[Tensor, ...]]:
    """Return every request of these sizes that a model takes."""
    choices = []
    for wanted in shape_of.inputs:
        shapes = product(SIZES, repeat=len(wanted.shape))
        numbers = DATATYPES[wanted.datatype].dtype
        choices.append(
            [from_array(wanted.name, wanted.datatype, np.zeros(s, numbers)) for s in shapes]
        )
    return [request for request in product(*choices) if takes(shape_of, request)]


def takes(metadata: ModelMetadata, request: Sequence[Tensor]) -> bool:
    try:
        Signature("m", metadata).order(request)
    except InvalidInput:
        return False
    return True


@given(reference=models(), candidate=models())
def test_admission_agrees_on_every_request(
    reference: ModelMetadata, candidate: ModelMetadata
) -> None:
    refused = [r for r in all_requests(reference) if not takes(candidate, r)]
    sentence = incompatibility(reference, candidate)
    if sentence == "":
        assert refused == []
    elif "any number of rows" not in sentence or candidate.max_batch_size < max(SIZES):
        assert refused != [], sentence
