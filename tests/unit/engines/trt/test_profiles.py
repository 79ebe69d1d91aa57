from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import TensorSpec
from engines.trt import profiles
from engines.trt.profiles import InvalidRecipe, Range


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype="FP32", shape=shape)


def rows(least: int, best: int, most: int) -> Range:
    return Range((least, 4), (best, 4), (most, 4))


def test_a_profile_is_read_input_by_input() -> None:
    assert profiles.parse("x:1x4,8x4,32x4; ids:1,8,32") == {
        "x": Range((1, 4), (8, 4), (32, 4)),
        "ids": Range((1,), (8,), (32,)),
    }


def test_one_shape_stands_for_all_three() -> None:
    assert profiles.parse("x:8x4") == {"x": rows(8, 8, 8)}


def test_a_colon_may_be_part_of_a_name() -> None:
    assert list(profiles.parse("serving:x:0:1x4,8x4,32x4")) == ["serving:x:0"]


@given(
    st.lists(
        st.tuples(st.integers(1, 99), st.integers(0, 99), st.integers(0, 99)),
        min_size=1,
        max_size=4,
    )
)
def test_what_is_written_is_what_is_read(axes: list[tuple[int, int, int]]) -> None:
    ends = zip(*[(low, low + more, low + more + most) for low, more, most in axes], strict=True)
    made = Range(*(tuple(end) for end in ends))
    assert profiles.parse(f"x:{made}") == {"x": made}


@pytest.mark.parametrize(
    "text",
    ["", ";", "x", "x:", ":1x4", "x:1x4,8x4", "x:1x4,8x4,9x4,9x4", "x:1xn", "x:-1x4", "x:1x٣"],
)
def test_what_is_no_profile_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidRecipe, match="is no profile: NAME:SMALLEST,BEST,LARGEST"):
        profiles.parse(text)


def test_an_input_that_is_named_twice_is_refused() -> None:
    with pytest.raises(InvalidRecipe, match="names 'x' twice"):
        profiles.parse("x:1;x:2")


@pytest.mark.parametrize("text", ["x:8,2,4", "x:1,8,4", "x:0,1,2", "x:1,2x2,4"])
def test_shapes_that_do_not_rise_are_refused(text: str) -> None:
    with pytest.raises(InvalidRecipe, match="does not rise"):
        profiles.parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("z:1x4,8x4,32x4", "profile 0: the model has no input 'z'"),
        ("x:1,8,32", "profile 0: x:1,8,32 does not fit the input's shape"),
        ("x:1x5,8x5,32x5", r"does not fit the input's shape \[-1, 4\]"),
        ("x:1x4,8x4,32x5", "does not fit"),
        ("mask:1x4,8x4,32x4", "profile 0 leaves out 'x', whose shape varies"),
    ],
)
def test_a_profile_that_does_not_fit_the_model_is_refused(text: str, why: str) -> None:
    inputs = (spec("x", -1, 4), spec("mask", -1, 4), spec("fixed", 3))
    with pytest.raises(InvalidRecipe, match=why):
        profiles.check([profiles.parse(text)], inputs)


def test_a_model_that_varies_needs_a_profile_and_one_that_does_not_needs_none() -> None:
    with pytest.raises(InvalidRecipe, match=r"'x' has the shape .* which varies: a profile"):
        profiles.check([], (spec("x", -1, 4),))
    profiles.check([], (spec("x", 8, 4),))


def test_buckets_make_one_profile_best_at_the_largest() -> None:
    inputs = (spec("x", -1, 4), spec("fixed", 3))
    assert profiles.from_buckets(inputs, (1, 8, 32)) == ({"x": rows(1, 32, 32)},)


def test_buckets_make_a_profile_each_where_asked() -> None:
    made = profiles.from_buckets((spec("x", -1, 4),), (1, 8), each=True)
    assert made == ({"x": rows(1, 1, 1)}, {"x": rows(8, 8, 8)})


def test_a_model_of_one_shape_needs_no_profile() -> None:
    assert profiles.from_buckets((spec("x", 8, 4),), ()) == ()


def test_buckets_say_nothing_of_other_axes() -> None:
    for unknown, sizes in ((spec("x", -1, -1), (1, 8)), (spec("x", -1, 4), ())):
        with pytest.raises(InvalidRecipe, match="give the parameter `profiles`"):
            profiles.from_buckets((unknown,), sizes)


def test_the_profile_for_a_shape_is_the_one_that_was_built_nearest_to_it() -> None:
    two = ({"x": rows(1, 2, 32)}, {"x": rows(8, 32, 32)})
    assert profiles.covering(two, {"x": (1, 4)}) == 0
    assert profiles.covering(two, {"x": (8, 4)}) == 0
    assert profiles.covering(two, {"x": (30, 4)}) == 1
    assert profiles.covering(two, {"x": (33, 4)}) is None
    assert profiles.covering(two, {"x": (8, 5)}) is None
    assert profiles.covering(two, {"x": (8,)}) is None


def test_the_rows_of_a_profile_are_those_of_its_narrowest_input() -> None:
    given = ({"a": rows(1, 2, 8), "b": rows(1, 2, 4)}, {"a": rows(1, 1, 2), "b": rows(1, 1, 2)})
    assert profiles.most_rows(given, ["a", "b"]) == 4
    assert profiles.most_rows(given, []) == 0
    assert profiles.most_rows((), ["a"]) == 0


def test_an_axis_that_every_profile_holds_to_one_number_does_not_vary() -> None:
    ranges = ({"x": Range((1, 5), (2, 5), (4, 5))}, {"x": Range((8, 5), (8, 5), (8, 5))})
    assert profiles.fixed_by(ranges, spec("x", -1, -1)) == (-1, 5)
    assert profiles.fixed_by(ranges[1:], spec("x", -1, -1)) == (8, 5)
