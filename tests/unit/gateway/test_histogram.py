"""Counts by bucket, and the quantiles that are read from them."""

from __future__ import annotations

from bisect import bisect_left
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.histogram import Histogram

BOUNDS = (1.0, 2.0, 4.0, 8.0)


def of(*values: float) -> Histogram:
    """Return a histogram of values."""
    made = Histogram(BOUNDS)
    for value in values:
        made.observe(value)
    return made


def test_a_value_at_a_bound_is_below_it() -> None:
    made = of(0.0, 1.0, 1.5, 2.0, 8.0, 8.1, 100.0)
    assert made.counts == [2, 2, 0, 1, 2]
    assert made.total == pytest.approx(120.6)


def test_counts_are_shown_as_prometheus_wants_them() -> None:
    assert of(0.5, 3.0, 9.0).cumulative() == [
        ("1.0", 1.0),
        ("2.0", 1.0),
        ("4.0", 2.0),
        ("8.0", 2.0),
        ("+Inf", 3.0),
    ]
    assert of().cumulative()[-1] == ("+Inf", 0.0)


@given(st.lists(st.floats(0, 100)))
def test_each_value_is_counted_in_every_bucket_that_holds_it(values: list[float]) -> None:
    made = of(*values)
    bounds = [*BOUNDS, float("inf")]
    cumulative = made.cumulative()
    assert [float(bound) for bound, _ in cumulative] == bounds
    assert [count for _, count in cumulative] == [
        sum(value <= bound for value in values) for bound in bounds
    ]
    assert made.total == sum(values)


def test_of_no_values_there_is_no_quantile() -> None:
    assert of().quantile(0.5) is None


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ((3.0,), 1.0, 4.0),
        ((3.0,), 0.5, 3.0),
        ((3.0, 3.0, 3.0, 3.0), 0.25, 2.5),
        ((0.1, 0.2), 0.5, 0.5),
        ((0.5, 3.0), 0.5, 1.0),
        ((0.5, 3.0), 0.75, 3.0),
        ((0.5, 9.0), 0.99, 8.0),  # beyond the last bound nothing more is known
        ((9.0, 9.0), 0.01, 8.0),
        ((3.0, 5.0), 0.0, 2.0),
    ],
)
def test_a_quantile_is_interpolated_in_its_bucket(
    values: tuple[float, ...], share: float, expected: float
) -> None:
    assert of(*values).quantile(share) == pytest.approx(expected)


@given(
    values=st.lists(st.floats(0, 8), min_size=1, max_size=50),
    shares=st.lists(st.floats(0.01, 1), min_size=2, max_size=5).map(sorted),
)
def test_a_quantile_is_in_the_bucket_of_the_value_of_its_rank_and_grows_with_the_share(
    values: list[float], shares: list[float]
) -> None:
    made = of(*values)
    ordered, edges = sorted(values), (0.0, *BOUNDS)
    found = []
    for share in shares:
        exact = ordered[ceil(share * len(values)) - 1]
        bucket = max(1, bisect_left(edges, exact))
        quantile = made.quantile(share)
        assert quantile is not None
        assert edges[bucket - 1] <= quantile <= edges[bucket]
        found.append(quantile)
    assert found == sorted(found)


@given(st.lists(st.lists(st.floats(0, 20) | st.sampled_from(BOUNDS), max_size=20), max_size=4))
def test_values_that_are_counted_together_are_counted_as_one_by_one(
    parts: list[list[float]],
) -> None:
    together, alone = Histogram(BOUNDS), of(*(value for part in parts for value in part))
    for part in parts:
        together.observe_all(np.array(part, np.float64))
    assert together.counts == alone.counts
    assert together.total == pytest.approx(alone.total)
    assert together.cumulative() == alone.cumulative()  # plain numbers, not numpy's
    assert {type(count) for count in together.counts} == {int}


def test_bounds_that_are_whole_numbers_count_alike() -> None:
    made = Histogram((1, 2, 4))
    made.observe_all(np.array([1.0, 1.5, 4.0, 5.0]))
    assert made.counts == [1, 1, 1, 1]
