"""What admission refuses, and the sentence it refuses it with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from engines.base import ModelMetadata, TensorSpec
from engines.errors import InvalidInput
from engines.signature import Signature
from engines.tensors import Tensor, encode_bytes, from_array


def spec(name: str, shape: tuple[int, ...], datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def signature(
    *inputs: TensorSpec, max_batch_size: int = 8, outputs: Sequence[str] = ("y",)
) -> Signature:
    metadata = ModelMetadata(
        inputs=inputs,
        outputs=tuple(spec(name, (-1, 1)) for name in outputs),
        max_batch_size=max_batch_size,
        platform="fake",
        engine="fake 1",
        device="cpu",
    )
    return Signature("digits", metadata)


def floats(name: str, *shape: int) -> Tensor:
    return from_array(name, "FP32", np.zeros(shape, np.float32))


def test_inputs_are_put_into_the_models_order_and_their_rows_counted() -> None:
    checked = signature(spec("a", (-1, 2)), spec("b", (-1, 3)))
    b, a = floats("b", 4, 3), floats("a", 4, 2)
    assert checked.order([b, a]) == ((a, b), 4)


def test_a_model_without_a_batch_axis_counts_one_row() -> None:
    checked = signature(spec("a", (5,)), max_batch_size=0)
    assert checked.order([floats("a", 5)])[1] == 1


def test_a_model_without_inputs_takes_none() -> None:
    assert signature(max_batch_size=0).order([]) == ((), 1)


TWO = (spec("a", (-1, 2)), spec("b", (-1, 3)))


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([], "input 'a' is missing: 'digits' needs it"),
        ([floats("a", 1, 2)], "input 'b' is missing: 'digits' needs it"),
        ([floats("a", 1, 2), floats("a", 1, 2)], "input 'a' is given twice"),
        (
            [floats("a", 1, 2), floats("b", 1, 3), floats("c", 1)],
            "unexpected input 'c': 'digits' takes 'a', 'b'",
        ),
        (
            [floats("a", 1, 2), floats("b", 2, 3)],
            "input 'b': 2 rows given where the other inputs have 1",
        ),
        ([floats("a", 0, 2), floats("b", 0, 3)], "input 'a': shape [0, 2] has no rows"),
        (
            [floats("a", 9, 2), floats("b", 9, 3)],
            "input 'a': a batch of 9 rows is larger than max_batch_size 8 of 'digits'",
        ),
        ([floats("a", 1, 3), floats("b", 1, 3)], "input 'a': shape [1, 3] given, [-1, 2] expected"),
        ([floats("a", 2), floats("b", 1, 3)], "input 'a': shape [2] given, [-1, 2] expected"),
        (
            [Tensor("a", "FP64", (1, 2), bytes(16)), floats("b", 1, 3)],
            "input 'a': datatype FP64 given, FP32 expected",
        ),
        (
            [Tensor("a", "FP32", (1, 2), bytes(7)), floats("b", 1, 3)],
            "input 'a': 7 bytes given, shape [1, 2] of FP32 takes 8",
        ),
        (
            [Tensor("a", "FP32", (-1, 2), b""), floats("b", 1, 3)],
            "input 'a': shape [-1, 2] has a negative dimension",
        ),
    ],
)
def test_a_request_that_contradicts_the_signature_is_refused_by_name(
    inputs: list[Tensor], sentence: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        signature(*TWO).order(inputs)
    assert str(refused.value) == sentence


def test_a_single_input_of_another_name_is_refused() -> None:
    with pytest.raises(InvalidInput, match="unexpected input 'b': 'digits' takes 'a'"):
        signature(spec("a", (-1, 2))).order([floats("b", 1, 2)])


def test_broken_bytes_are_refused_at_admission() -> None:
    checked = signature(spec("a", (-1, 1), "BYTES"))
    with pytest.raises(InvalidInput, match="runs past the end"):
        checked.order([Tensor("a", "BYTES", (1, 1), b"\x09\0\0\0")])
    assert checked.order([Tensor("a", "BYTES", (1, 1), encode_bytes([b"\0"]))])[1] == 1


def test_the_largest_batch_is_accepted() -> None:
    assert signature(*TWO).order([floats("a", 8, 2), floats("b", 8, 3)])[1] == 8


def test_a_dimension_that_varies_takes_any_size_and_makes_the_shape_key() -> None:
    checked = signature(spec("a", (-1, -1)))
    keys = {
        checked.shape_key(checked.order([floats("a", rows, width)])[0])
        for rows, width in [(1, 3), (2, 3), (1, 4)]
    }
    assert keys == {((3,),), ((4,),)}


def test_requests_of_a_fixed_shape_all_share_one_key() -> None:
    checked = signature(spec("a", (-1, 2)))
    assert checked.shape_key([floats("a", 1, 2)]) == checked.shape_key([floats("a", 5, 2)])


def test_requested_outputs_must_exist_and_be_named_once() -> None:
    checked = signature(spec("a", (-1, 2)), outputs=("y", "z"))
    checked.check_outputs([])
    checked.check_outputs(["z", "y"])
    with pytest.raises(InvalidInput, match="unknown output 'w': 'digits' gives 'y', 'z'"):
        checked.check_outputs(["y", "w"])
    with pytest.raises(InvalidInput, match="output 'y' is requested twice"):
        checked.check_outputs(["y", "z", "y"])
