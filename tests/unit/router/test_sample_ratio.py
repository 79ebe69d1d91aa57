"""The sample-ratio test on counts whose answer is known."""

from __future__ import annotations

from fractions import Fraction
from itertools import count
from math import inf, isfinite, log

import pytest

from router.sample_ratio import LN_LIMIT, ln_bayes_factor, mismatch


def all_in_the_first_of_two(units: int) -> Fraction:
    """Return BF of (units, 0) at 50/50, unit by unit: each is (50 + i) / (100 + i) over 1/2."""
    factor = Fraction(1)
    for i in range(units):
        factor *= Fraction(50 + i, 100 + i) * 2
    return factor


def test_without_units_nothing_speaks_for_or_against_the_split() -> None:
    assert ln_bayes_factor([0, 0], [0.9, 0.1]) == 0
    assert not mismatch([0, 0], [0.9, 0.1])


@pytest.mark.parametrize("counts", [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
def test_one_unit_proves_nothing_wherever_it_falls(counts: list[int]) -> None:
    assert ln_bayes_factor(counts, [0.5, 0.3, 0.2]) == pytest.approx(0, abs=1e-12)


def test_two_units_in_one_of_two_equal_variants_have_the_factor_worked_out_by_hand() -> None:
    # 50/100 * 51/101 against 1/2 * 1/2
    assert ln_bayes_factor([2, 0], [0.5, 0.5]) == pytest.approx(log(102 / 101), abs=1e-12)
    # 50/100 * 50/101 against 1/2 * 1/2
    assert ln_bayes_factor([1, 1], [0.5, 0.5]) == pytest.approx(log(100 / 101), abs=1e-12)


def test_the_alarm_comes_with_the_unit_that_brings_the_factor_to_one_hundred() -> None:
    first = next(n for n in count() if all_in_the_first_of_two(n) >= 100)
    assert mismatch([first, 0], [0.5, 0.5])
    assert not mismatch([first - 1, 0], [0.5, 0.5])
    assert log(100) == LN_LIMIT


def test_a_unit_in_a_variant_that_should_have_none_is_a_mismatch_at_once() -> None:
    assert ln_bayes_factor([900_000, 100_000, 1], [0.9, 0.1, 0.0]) == inf
    assert mismatch([900_000, 100_000, 1], [0.9, 0.1, 0.0])
    assert mismatch([0, 1], [1.0, 0.0])


def test_a_variant_of_share_zero_without_units_is_left_out() -> None:
    with_it = ln_bayes_factor([920, 0, 80], [0.9, 0.0, 0.1])
    assert with_it == ln_bayes_factor([920, 80], [0.9, 0.1])


def test_a_single_variant_can_never_mismatch() -> None:
    assert ln_bayes_factor([1_000_000], [1.0]) == pytest.approx(0, abs=1e-6)


def test_counts_that_follow_the_plan_speak_for_it_the_more_there_are() -> None:
    factors = [ln_bayes_factor([9 * n, n], [0.9, 0.1]) for n in (10, 1_000, 100_000, 10_000_000)]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] < 0


def test_six_thousand_units_at_92_to_8_contradict_90_to_10() -> None:
    assert mismatch([5_520, 480], [0.9, 0.1])
    assert mismatch([480, 5_520], [0.1, 0.9])
    assert not mismatch([5_400, 600], [0.9, 0.1])
    assert not mismatch([552, 48], [0.9, 0.1])


def test_a_variant_that_lost_all_its_units_is_found() -> None:
    assert mismatch([200, 0], [0.9, 0.1])
    assert not mismatch([20, 0], [0.9, 0.1])


def test_the_finest_share_and_very_many_units_stay_finite() -> None:
    assert isfinite(ln_bayes_factor([999_999, 1], [0.999999, 0.000001]))
    assert isfinite(ln_bayes_factor([10**12, 10**12], [0.5, 0.5]))
    assert mismatch([10**6, 10**6], [0.999999, 0.000001])


@pytest.mark.parametrize(
    ("counts", "shares", "sentence"),
    [
        ([1, 2], [0.5, 0.3, 0.2], "2 counts do not go with 3 shares"),
        ([1, -1], [0.5, 0.5], "not all positive"),
        ([1, 1], [0.5, 0.4], "not a split"),
        ([1, 1], [90, 10], "not a split"),
        ([1, 1], [1.5, -0.5], "not a split"),
        ([1, 1], [float("nan"), 0.5], "not a split"),
        ([], [], "not a split"),
    ],
)
def test_what_is_no_split_is_refused(counts: list[int], shares: list[float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ln_bayes_factor(counts, shares)
    with pytest.raises(ValueError, match=sentence):
        mismatch(counts, shares)
