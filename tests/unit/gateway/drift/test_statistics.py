"""Our figures against SciPy's, and what they promise where SciPy has no word."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from gateway.drift import statistics
from gateway.drift.statistics import Floats


def steps(values: Floats) -> tuple[Floats, Floats]:
    points, counts = np.unique(values, return_counts=True)
    return points, np.cumsum(counts) / len(values)


samples = st.lists(st.integers(-20, 20), min_size=2, max_size=60).map(
    lambda found: np.array(found, np.float64)
)


@given(samples, samples)
def test_distances_are_those_of_scipy_with_all_ties(a: Floats, b: Floats) -> None:
    ks, moved = statistics.distances(*steps(a), *steps(b))
    assert ks == pytest.approx(stats.ks_2samp(a, b, method="asymp").statistic)
    assert moved == pytest.approx(stats.wasserstein_distance(a, b), abs=1e-12)


@pytest.mark.parametrize(("a", "b"), [(30, 30), (30, 200), (37, 91), (200, 200)])
def test_the_ks_probability_is_never_below_the_exact_one(a: int, b: int) -> None:
    checked = 0
    for shift in np.linspace(0, 2, 60):
        values = np.arange(a) / a, np.arange(b) / b + shift
        found = stats.ks_2samp(*values, method="exact")
        if found.pvalue < 0.1:
            checked += 1
            assert statistics.ks_p(float(found.statistic), a, b) >= found.pvalue
    assert checked > 10


@pytest.mark.parametrize("x", [0.05, 0.25, 0.6, 0.999, 1.0, 1.36, 2.5, 5.0, 20.0])
def test_kolmogorovs_limit_is_that_of_scipy(x: float) -> None:
    expected = stats.kstwobign.sf(x)
    assert statistics.kolmogorov_sf(x) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("degrees", [1, 2, 7, 50, 400])
@pytest.mark.parametrize("x", [0.01, 0.9, 6.0, 55.0, 700.0])
def test_the_chi_square_tail_is_that_of_scipy(x: float, degrees: int) -> None:
    expected = stats.chi2.sf(x, degrees)
    assert statistics.chi_square_sf(x, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-14)


def test_the_chi_square_statistic_is_that_of_scipy_where_nothing_is_rare() -> None:
    a, b = np.array([40.0, 30.0, 80.0]), np.array([50.0, 60.0, 70.0])
    expected = stats.chi2_contingency(np.array([a, b]), correction=False)
    statistic, degrees = statistics.chi_square(a, b)
    assert statistic == pytest.approx(expected.statistic)
    assert degrees == expected.dof


def test_rare_cells_are_put_together_until_they_are_frequent_enough() -> None:
    a, b = np.array([100.0, 3.0, 1.0, 0.0]), np.array([100.0, 2.0, 0.0, 1.0])
    is_rare = statistics.rare_cells(a, b)
    # The rare ones expect 3.5 together, so the frequent one has to join them: nothing is left.
    assert is_rare.tolist() == [True, True, True, True]
    assert statistics.chi_square(a, b) == (0.0, 0)


@given(st.integers(0, 1_000), st.lists(st.integers(0, 40), min_size=2, max_size=12))
def test_which_cells_are_rare_depends_on_the_pooled_counts_alone(
    seed: int, pooled: list[int]
) -> None:
    random = np.random.default_rng(seed)
    total = np.array(pooled, np.float64)
    order = random.permutation(np.repeat(np.arange(len(pooled)), pooled))
    half = len(order) // 2
    masks = []
    for part in (order[:half], order[-half:]):
        a = np.bincount(part, minlength=len(pooled)).astype(np.float64)
        if len(order) % 2 == 0:
            masks.append(statistics.rare_cells(a, total - a).tolist())
    assert all(mask == masks[0] for mask in masks)


@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 400), st.integers(1, 400))
def test_fishers_probability_is_that_of_scipy(
    a_hits: int, a_rest: int, b_hits: int, b_rest: int
) -> None:
    table = [[b_hits, b_rest], [a_hits, a_rest]]
    expected = stats.fisher_exact(table, alternative="greater").pvalue
    ours = statistics.counts_p(a_hits, a_hits + a_rest, b_hits, b_hits + b_rest)
    assert ours == pytest.approx(expected, rel=1e-6, abs=1e-300)


def test_fishers_probability_does_not_vanish_for_long_windows() -> None:
    expected = stats.hypergeom.sf(1_599, 1_000_000, 2_000, 500_000)
    ours = statistics.counts_p(400, 500_000, 1_600, 500_000)
    assert math.log(ours) == pytest.approx(math.log(expected), rel=1e-6)


def test_the_stability_index_is_the_textbooks_with_half_a_record_in_each_bin() -> None:
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.2, 0.7, 0.1])
    smooth_p = (p * 1_000 + 0.5) / 1_001.5
    smooth_q = (q * 100 + 0.5) / 101.5
    expected = sum((b - a) * math.log(b / a) for a, b in zip(smooth_p, smooth_q, strict=True))
    assert statistics.psi(p, 1_000, q, 100) == pytest.approx(expected)
    assert statistics.psi(p, 1_000, p, 1_000) == 0.0


def test_the_stability_index_of_equal_samples_is_as_small_as_it_says() -> None:
    random = np.random.default_rng(5)
    found = [
        statistics.psi(
            random.multinomial(2_000, [0.1] * 10) / 2_000, 2_000,
            random.multinomial(500, [0.1] * 10) / 500, 500,
        )
        for _ in range(400)
    ]  # fmt: skip
    assert np.mean(found) == pytest.approx(9 * (1 / 2_000 + 1 / 500), rel=0.1)


def test_holm_is_the_procedure_that_scipys_neighbours_have() -> None:
    adjusted = statistics.holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert adjusted.tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_keeps_the_order_and_never_lowers_a_probability(ps: list[float]) -> None:
    raw = np.array(ps)
    adjusted = statistics.holm(raw)
    assert (adjusted >= raw).all()
    assert (adjusted <= 1).all()
    order = np.argsort(raw, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


def test_all_windows_together_spend_the_level_and_no_more() -> None:
    parts = [statistics.spent(0.05, k) for k in range(1, 20_000)]
    assert sum(parts) < 0.05
    assert sum(parts) > 0.0499
    assert parts == sorted(parts, reverse=True)


@pytest.mark.parametrize(("wrong", "rows"), [(0, 50), (3, 200), (90, 100), (100, 100)])
def test_the_bound_of_a_rate_is_above_the_exact_one_and_not_far(wrong: int, rows: int) -> None:
    bound = statistics.rate_upper(wrong / rows, rows, 0.01)
    exact = 1.0 if wrong == rows else stats.beta.ppf(0.99, wrong + 1, rows - wrong)
    assert exact - 1e-9 <= bound <= exact + 0.1


def test_the_effective_size_is_what_equal_weights_would_be() -> None:
    assert statistics.effective_size(np.full(40, 7.0)) == pytest.approx(40)
    assert statistics.effective_size(np.array([10.0, 10.0, 0.0])) == pytest.approx(2)
    assert statistics.effective_size(np.array([])) == 0
