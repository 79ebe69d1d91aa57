"""One column of a window against its reference."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from gateway.drift.column import Values, profile
from gateway.drift.compare import OTHER, Figures, compare
from tests.support.drift import weights


def figures(reference: Values, window: Values) -> Figures:
    made = profile("x", reference, weights(len(reference)))
    return compare(made, window, weights(len(window)))


def words(counts: dict[str, int]) -> Values:
    return np.array([word for word, count in counts.items() for _ in range(count)], np.object_)


def test_a_shift_of_one_standard_deviation_shows_in_every_figure() -> None:
    random = np.random.default_rng(0)
    before, now = random.normal(size=2_000), random.normal(size=2_000) + 1
    found = figures(before, now)
    assert found.psi == pytest.approx(1.0, abs=0.15)
    assert found.ks == pytest.approx(stats.ks_2samp(before, now).statistic, abs=1e-6)
    distance = stats.wasserstein_distance(before, now) / before.std()
    assert found.wasserstein == pytest.approx(distance, rel=1e-5)
    assert found.p < 1e-50
    assert found.out_of_range == int((now > before.max()).sum() + (now < before.min()).sum())


def test_the_reference_itself_is_no_distance_away() -> None:
    values = np.random.default_rng(1).normal(size=500)
    found = figures(values, values)
    assert (found.psi, found.ks, found.wasserstein, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert found.bars is not None
    assert found.bars.reference == pytest.approx(found.bars.current)
    assert sum(found.bars.current) == pytest.approx(1.0)


def test_a_double_precision_reference_does_not_drift_from_single_precision_traffic() -> None:
    values = np.round(np.random.default_rng(2).normal(size=1_000), 1)
    assert figures(values, values.astype(np.float32)).ks == 0.0


def test_values_that_go_missing_are_found_though_the_others_stay_the_same() -> None:
    random = np.random.default_rng(3)
    before, now = random.normal(size=1_000), random.normal(size=1_000)
    now[:300] = np.nan
    found = figures(before, now)
    assert found.missing == 300
    assert found.p < 1e-20
    assert found.psi > 0.2
    assert found.ks is not None
    assert found.ks < 0.1


def test_a_column_that_is_gone_is_missing_in_every_row() -> None:
    found = figures(np.random.default_rng(4).normal(size=500), np.full(100, np.nan))
    assert (found.missing, found.ks, found.bars) == (100, None, None)
    assert found.p < 1e-50
    assert found.psi > 1


def test_a_column_that_was_always_empty_drifts_when_it_fills() -> None:
    empty = np.full(200, np.nan)
    assert figures(empty, empty).p == 1.0
    assert figures(empty, empty).psi == 0.0
    assert figures(empty, np.ones(100)).p < 1e-20


def test_a_constant_that_changes_is_found() -> None:
    found = figures(np.zeros(300), np.full(100, 2.0))
    assert (found.ks, found.out_of_range) == (1.0, 100)
    assert found.psi > 1
    assert found.p < 1e-20


def test_category_counts_are_compared_as_scipy_does() -> None:
    before = {"a": 500, "b": 300, "c": 200}
    now = {"a": 200, "b": 150, "c": 150}
    found = figures(words(before), words(now))
    table = np.array([list(before.values()), list(now.values())])
    expected = stats.chi2_contingency(table, correction=False).pvalue
    assert found.p == pytest.approx(2 * expected, rel=1e-6)  # two questions are asked
    assert (found.ks, found.wasserstein) == (None, None)


def test_a_category_that_the_reference_does_not_know_is_out_of_range() -> None:
    found = figures(words({"a": 500, "b": 500}), words({"a": 80, "new": 120}))
    assert found.out_of_range == 120
    assert found.p < 1e-20
    assert found.bars is not None
    assert set(found.bars.labels) == {"a", "b", "new"}


def test_a_new_category_is_found_in_a_short_window() -> None:
    found = figures(words({"a": 1_000}), words({"a": 30, "new": 10}))
    assert found.out_of_range == 10
    assert found.p < 1e-10


def test_text_that_goes_missing_is_found() -> None:
    now = np.array(["a"] * 50 + [None] * 50, np.object_)
    found = figures(words({"a": 1_000}), now)
    assert (found.missing, found.out_of_range) == (50, 0)
    assert found.p < 1e-20
    assert found.psi > 0.2


def test_rare_categories_are_one_bar() -> None:
    before = words({f"c{number}": 20 for number in range(40)})
    found = figures(before, before)
    assert found.bars is not None
    assert found.bars.labels[-1] == OTHER
    assert len(found.bars.labels) == 13
    assert sum(found.bars.reference) == pytest.approx(1.0)


def test_many_rare_categories_give_no_false_alarm() -> None:
    """Telling apart those that are frequent in the reference would: they are so by chance."""
    rarely = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        before, now = (
            random.integers(0, 1_000, n).astype(str).astype(object) for n in (2_000, 1_000)
        )
        rarely += figures(before, now).p < 0.01
    assert rarely <= 6  # 2 expected


def test_weighted_rows_are_worth_less_than_their_number() -> None:
    random = np.random.default_rng(5)
    made = profile("x", random.normal(size=2_000), weights(2_000))
    window = random.normal(size=400) + 0.2
    equal = compare(made, window, weights(400))
    uneven = compare(made, window, np.where(np.arange(400) < 40, 100.0, 1.0))
    assert equal.size == pytest.approx(400)
    assert uneven.size < 50
    assert uneven.p > equal.p
