"""Values of every type, and the profiles that references make of them."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.drift import column
from gateway.drift.column import Categories, Kind, Numbers, Values, numbers, profile, texts
from tests.support.drift import weights


def content(values: Values) -> Numbers:
    found = profile("x", values, weights(len(values))).content
    assert isinstance(found, Numbers)
    return found


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.zeros(3, np.float32), Kind.NUMBER),
        (np.zeros(3, "datetime64[us]"), Kind.NUMBER),
        (np.arange(20), Kind.CATEGORY),
        (np.arange(21), Kind.NUMBER),
        (np.array([True, False]), Kind.CATEGORY),
        (np.array(["a", None], np.object_), Kind.CATEGORY),
        (np.array(["a", "b"]), Kind.CATEGORY),
    ],
    ids=["float", "time", "few codes", "many whole numbers", "bool", "text", "fixed text"],
)
def test_the_type_of_a_reference_decides_how_a_column_is_compared(
    values: Values, kind: Kind
) -> None:
    assert column.kind_of(values) is kind


def test_what_is_not_finite_is_missing() -> None:
    assert np.isnan(numbers(np.array([np.inf, -np.inf, np.nan]))).all()
    assert np.isnan(numbers(np.array(["x", None], np.object_))).all()
    assert np.isnan(numbers(np.array(["NaT"], "datetime64[us]"))).all()
    assert np.isnan(numbers(np.array([1e300]))).all()  # more than single precision holds
    assert numbers(np.array(["2.5", 3], np.object_)).tolist() == [2.5, 3.0]


def test_double_and_single_precision_give_the_same_numbers() -> None:
    doubles = np.array([0.1, 0.2, 1 / 3])
    assert numbers(doubles).tolist() == numbers(doubles.astype(np.float32)).tolist()


def test_a_code_is_the_same_category_whatever_type_holds_it() -> None:
    expected = ["3", None, "0"]
    assert texts(np.array([3.0, np.nan, 0.0])).tolist() == expected
    assert texts(np.array([3, None, 0.0], np.object_)).tolist() == expected
    assert texts(np.array([3, 0])).tolist() == ["3", "0"]
    assert texts(np.array([b"a\xff", "b"], np.object_)).tolist() == ["a\\xff", "b"]


def test_a_profile_has_ten_equally_filled_bins() -> None:
    found = content(np.random.default_rng(1).normal(size=5_000))
    assert len(found.bins) == 10
    assert found.bins == pytest.approx(0.1, abs=1e-3)
    assert found.scale == pytest.approx(1.0, abs=0.05)


def test_a_value_that_most_rows_have_is_a_bin_of_its_own() -> None:
    values = np.concatenate((np.zeros(700), np.arange(1, 301)))
    found = content(values)
    # Below zero, zero, and what three tenths of the rows have above it.
    assert found.bins[:2].tolist() == [0.0, 0.7]
    assert found.edges[1] == 0.0


def test_a_constant_has_a_bin_below_it_and_one_above_it() -> None:
    found = content(np.full(50, -4.0))
    assert found.bins.tolist() == [0.0, 1.0, 0.0]
    assert found.scale == 4.0
    assert content(np.zeros(50)).scale == 1.0


def test_a_long_reference_is_kept_as_quantiles_and_its_ends() -> None:
    values = np.random.default_rng(2).normal(size=100_000)
    found = content(values)
    assert len(found.points) <= column.MAX_POINTS + 2
    assert [found.low, found.high] == [numbers(values).min(), numbers(values).max()]
    exact = np.searchsorted(np.sort(numbers(values)), found.points, side="right") / len(values)
    assert np.abs(found.cdf - exact).max() < 1e-9


def test_weights_count_as_so_many_rows() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0] * 10)
    heavy = np.array([3.0, 1.0, 1.0, 5.0] * 10)
    weighted = profile("x", values, heavy).content
    repeated = profile("x", np.repeat(values, heavy.astype(int)), weights(100)).content
    assert isinstance(weighted, Numbers)
    assert isinstance(repeated, Numbers)
    assert weighted.cdf == pytest.approx(repeated.cdf)
    assert weighted.bins == pytest.approx(repeated.bins)
    assert weighted.scale == pytest.approx(repeated.scale)


def test_categories_stand_by_their_frequency() -> None:
    labels = np.array(["b"] * 3 + ["a"] * 5 + [None] * 2, np.object_)
    found = profile("x", labels, weights(10))
    assert isinstance(found.content, Categories)
    assert found.content.labels == ("a", "b")
    assert found.content.shares == pytest.approx([0.625, 0.375])
    assert found.missing == pytest.approx(0.2)


def test_a_column_without_any_value_has_a_profile_too() -> None:
    found = profile("x", np.full(10, np.nan), weights(10))
    assert (found.content, found.missing, found.kind) == (None, 1.0, Kind.NUMBER)
