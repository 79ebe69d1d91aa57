"""What is served of a model file: its own signature against the one that is declared for it."""

from __future__ import annotations

import pytest

from engines.base import EngineConfig, TensorSpec
from engines.declared import Declared, declare
from engines.errors import ModelLoadError


def spec(name: str, *shape: int, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


X, Y = spec("x", -1, 3), spec("y", -1, 2)
FIXED_X, FIXED_Y = spec("x", 4, 3), spec("y", 4, 2)


def of(
    *,
    inputs: tuple[TensorSpec, ...] = (X,),
    outputs: tuple[TensorSpec, ...] = (Y,),
    max_batch_size: int | None = 8,
    declared: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] = ((), ()),
    buckets: tuple[int, ...] = (),
) -> Declared:
    config = EngineConfig(
        max_batch_size=max_batch_size,
        default_max_batch_size=64,
        inputs=declared[0],
        outputs=declared[1],
        buckets=buckets,
    )
    return declare(config, inputs, outputs)


def test_a_file_that_nothing_is_declared_of_is_served_as_it_is() -> None:
    found = of(max_batch_size=None)
    assert found == Declared(inputs=(X,), outputs=(Y,), max_batch_size=64, buckets=())


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ((FIXED_X,), (Y,)),
        ((X,), (FIXED_Y,)),
        ((X, spec("z", 3)), (Y,)),
        ((X,), (Y, spec("loss"))),
        ((spec("x"),), (Y,)),
        ((), (Y,)),
    ],
)
def test_a_model_is_batched_on_its_own_only_where_every_first_axis_varies(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    found = of(inputs=inputs, outputs=outputs, max_batch_size=None)
    assert (found.max_batch_size, found.inputs, found.outputs) == (0, inputs, outputs)


def test_a_declared_batch_size_rules_and_zero_means_no_batch_axis() -> None:
    assert of(max_batch_size=8).max_batch_size == 8
    assert of(max_batch_size=0) == Declared(inputs=(X,), outputs=(Y,), max_batch_size=0, buckets=())


def test_a_fixed_batch_axis_of_the_declared_size_becomes_one_bucket() -> None:
    found = of(inputs=(FIXED_X,), outputs=(FIXED_Y,), max_batch_size=4)
    assert found == Declared(inputs=(X,), outputs=(Y,), max_batch_size=4, buckets=(4,))


def test_a_fixed_batch_axis_may_be_declared_with_its_one_bucket_and_its_items() -> None:
    found = of(
        inputs=(FIXED_X,),
        outputs=(FIXED_Y,),
        max_batch_size=4,
        declared=((spec("x", 3),), (spec("y", 2),)),
        buckets=(4,),
    )
    assert (found.inputs, found.outputs, found.buckets) == ((X,), (Y,), (4,))


def test_buckets_alone_declare_a_fixed_batch_axis_as_well() -> None:
    found = of(inputs=(FIXED_X,), outputs=(FIXED_Y,), max_batch_size=None, buckets=(4,))
    assert found == Declared(inputs=(X,), outputs=(Y,), max_batch_size=4, buckets=(4,))


def test_a_fixed_batch_axis_runs_no_other_number_of_rows() -> None:
    with pytest.raises(ModelLoadError, match="the model's batch axis is 4 and no other number"):
        of(inputs=(FIXED_X,), outputs=(FIXED_Y,), max_batch_size=4, buckets=(1, 4))


@pytest.mark.parametrize("max_batch_size", [3, 5])
def test_a_fixed_batch_axis_of_another_size_than_declared_is_no_batch_axis(
    max_batch_size: int,
) -> None:
    with pytest.raises(ModelLoadError, match=r"'x' has the shape \[4, 3\] without a first axis"):
        of(inputs=(FIXED_X,), outputs=(FIXED_Y,), max_batch_size=max_batch_size)


def test_one_tensor_without_the_fixed_axis_makes_it_no_batch_axis() -> None:
    with pytest.raises(ModelLoadError, match=r"max_batch_size is 4, but 'x' has the shape \[4, 3"):
        of(inputs=(FIXED_X,), outputs=(FIXED_Y, spec("loss")), max_batch_size=4)


def test_without_inputs_nothing_can_be_batched() -> None:
    with pytest.raises(ModelLoadError, match="max_batch_size is 8, but there are no inputs"):
        of(inputs=())


def test_buckets_are_taken_over_where_they_fit() -> None:
    assert of(buckets=(1, 4, 8)).buckets == (1, 4, 8)


@pytest.mark.parametrize(
    ("max_batch_size", "buckets", "sentence"),
    [
        (8, (1, 4), "buckets: the last of [1, 4] is not max_batch_size 8"),
        (8, (4, 2, 8), "buckets: [4, 2, 8] are not ascending row counts from 1"),
        (0, (1,), "buckets: a model without a batch axis has no buckets"),
    ],
)
def test_buckets_that_do_not_fit_are_a_load_error(
    max_batch_size: int, buckets: tuple[int, ...], sentence: str
) -> None:
    with pytest.raises(ModelLoadError) as refused:
        of(max_batch_size=max_batch_size, buckets=buckets)
    assert str(refused.value) == sentence


def test_declared_dimensions_narrow_those_that_vary_and_the_files_own_fill_in_the_rest() -> None:
    found = of(
        inputs=(spec("x", -1, -1, 5),),
        outputs=(spec("y", -1, 2),),
        declared=((spec("x", 7, -1),), (spec("y", -1),)),
    )
    assert found.inputs == (spec("x", -1, 7, 5),)
    assert found.outputs == (spec("y", -1, 2),)


def test_declared_outputs_are_those_served_in_their_order() -> None:
    outputs = (Y, spec("a", -1), spec("b", -1))
    found = of(outputs=outputs, declared=((), (spec("b"), spec("y", 2))))
    assert [output.name for output in found.outputs] == ["b", "y"]


def test_without_a_batch_axis_whole_shapes_are_declared() -> None:
    found = of(inputs=(FIXED_X,), max_batch_size=0, declared=((spec("x", 4, 3),), ()))
    assert found.inputs == (FIXED_X,)
    with pytest.raises(ModelLoadError, match=r"declared with the shape \[3\], the model has"):
        of(inputs=(FIXED_X,), max_batch_size=0, declared=((spec("x", 3),), ()))


@pytest.mark.parametrize(
    ("inputs", "outputs", "sentence"),
    [
        ((spec("z", 3),), (), "declared input 'z' is not in the model"),
        ((), (spec("z", 3),), "declared output 'z' is not in the model"),
        (
            (spec("x", 3, datatype="FP64"),),
            (),
            "input 'x' is declared FP64, the model has FP32",
        ),
        (
            (spec("x", 4),),
            (),
            "input 'x' is declared with the shape [-1, 4], the model has [-1, 3]",
        ),
        ((spec("x"),), (), "input 'x' is declared with the shape [-1], the model has [-1, 3]"),
        (
            (),
            (spec("y", 2, 1),),
            "output 'y' is declared with the shape [-1, 2, 1], the model has [-1, 2]",
        ),
    ],
)
def test_a_declaration_that_contradicts_the_file_is_a_load_error(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], sentence: str
) -> None:
    with pytest.raises(ModelLoadError) as refused:
        of(declared=(inputs, outputs))
    assert str(refused.value) == sentence


def test_an_input_of_the_file_that_is_not_declared_is_a_load_error() -> None:
    with pytest.raises(ModelLoadError, match="the model's input 'mask' is not declared"):
        of(inputs=(X, spec("mask", -1)), declared=((spec("x", 3),), ()))
