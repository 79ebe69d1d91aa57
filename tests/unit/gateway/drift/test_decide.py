"""The verdict: what is found, what is not, and how often it is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from gateway.drift import decide
from gateway.drift.decide import Thresholds, Verdict
from gateway.drift.reference import Reference
from gateway.drift.rows import DriftError
from tests.support.drift import Table, mixed_table, normal_table, reference_of

USUAL = Thresholds()


def drifting(verdict: Verdict) -> set[str]:
    return {column.name for column in verdict.columns if column.is_drifted}


def digits(rows: slice, *, turns: int = 0) -> Table:
    """Return handwritten digits as a model's log has them, turned by so many right angles."""
    pictures, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(11).permutation(len(pictures))[rows]
    squares = np.rot90(pictures[order].reshape(-1, 8, 8), turns, axes=(1, 2))
    flat = squares.reshape(len(order), 64).astype(np.float32)
    table: Table = {f"in.image.{n}": flat[:, n] for n in range(64)}
    return table | {"out.label": labels[order]}


@pytest.mark.parametrize("seed", range(5))
def test_the_18_of_30_columns_that_are_shifted_are_found_and_none_of_the_others(seed: int) -> None:
    reference = reference_of(normal_table(seed, 2_000))
    window = normal_table(100 + seed, 2_000, shifted=range(18))
    verdict = decide.judge(reference, window, USUAL)
    assert drifting(verdict) == {f"in.x.{number}" for number in range(18)}
    assert verdict.kinds == ("data",)


def test_turned_digits_are_found_in_a_first_window_of_32_records() -> None:
    reference = reference_of(digits(slice(0, 1_000)))
    for start in range(1_000, 1_640, 32):
        usual = slice(start, start + 32)
        assert decide.judge(reference, digits(usual), USUAL).kinds == ()
        assert "data" in decide.judge(reference, digits(usual, turns=1), USUAL).kinds


def test_turned_digits_are_found_at_once_after_a_thousand_quiet_windows() -> None:
    reference = reference_of(digits(slice(0, 1_000)))
    verdict = decide.judge(reference, digits(slice(1_000, 1_100), turns=1), USUAL, number=1_000)
    assert len(drifting(verdict)) >= 30


def test_20_runs_over_data_that_does_not_drift_give_no_alarm() -> None:
    """20 windows of 1,000 records and 30 columns each: at this size chance is never large."""
    for seed in range(20):
        reference = reference_of(normal_table(seed, 2_000))
        for number in range(1, 21):
            window = normal_table(1_000 + 100 * seed + number, 1_000)
            verdict = decide.judge(reference, window, USUAL, number=number)
            assert not verdict.is_drift, (seed, number)


def test_in_short_windows_the_tests_alone_keep_the_level_of_a_whole_run() -> None:
    """Here chance is large as well: of 40 runs at a level of 0.05 two may alarm on average."""
    alarms = 0
    for seed in range(40):
        reference = reference_of(mixed_table(seed, 1_000))
        verdicts = [
            decide.judge(reference, mixed_table(10_000 + 100 * seed + k, 150), USUAL, number=k)
            for k in range(1, 11)
        ]
        alarms += any(
            column.adjusted_p <= verdict.level for verdict in verdicts for column in verdict.columns
        )
    assert alarms <= 6  # more has probability 0.003 at a true level of 0.05


def test_a_difference_that_is_certain_but_small_is_no_drift() -> None:
    reference = reference_of(normal_table(1, 50_000, 2))
    window = normal_table(2, 50_000, 2)
    window["in.x.0"] = window["in.x.0"] + np.float32(0.05)
    verdict = decide.judge(reference, window, USUAL)
    assert verdict.columns[0].adjusted_p < 1e-6
    assert not verdict.is_drift
    assert decide.judge(reference, window, replace(USUAL, wasserstein=0.03)).is_drift


def test_a_difference_that_is_large_but_may_be_chance_is_no_drift() -> None:
    reference = reference_of(normal_table(1, 1_000, 30))
    verdict = decide.judge(reference, normal_table(2, 40, 30), USUAL)
    assert any(column.is_large for column in verdict.columns)
    assert not verdict.is_drift


def test_data_drift_may_be_asked_to_take_a_share_of_the_features() -> None:
    reference = reference_of(normal_table(1, 1_000, 10))
    window = normal_table(2, 1_000, 10, shifted=range(4))
    assert decide.judge(reference, window, replace(USUAL, share=0.4)).is_data_drift
    assert not decide.judge(reference, window, replace(USUAL, share=0.5)).is_data_drift


def test_outputs_that_drift_are_prediction_drift_and_no_data_drift() -> None:
    table = normal_table(1, 1_000, 3)
    labels = np.arange(1_000) % 3
    reference = reference_of(table | {"out.label": labels})
    window = normal_table(2, 600, 3) | {"out.label": np.zeros(600, np.int64)}
    assert decide.judge(reference, window, USUAL).kinds == ("prediction",)


def errors(rate: float, rows: int = 1_000) -> Table:
    status = np.where(np.arange(rows) < rate * rows, 503, 200)
    return normal_table(rows, rows, 2) | {"status": status, "row": np.zeros(rows, np.int32)}


def test_more_error_statuses_are_error_drift_and_fewer_are_not() -> None:
    reference = reference_of(errors(0.02, 1_500))
    assert decide.judge(reference, errors(0.06), USUAL).kinds == ("error",)
    assert decide.judge(reference, errors(0.0), USUAL).kinds == ()
    verdict = decide.judge(reference, errors(0.025), USUAL)
    assert verdict.errors is not None
    assert (verdict.errors.errors, verdict.errors.requests) == (25, 1_000)


def test_errors_of_a_sampled_log_are_counted_as_what_they_are() -> None:
    """Every error is logged and one answer in ten: 10 errors of 1,000 requests are 1 %."""
    reference = reference_of(errors(0.01))
    status = np.array([503] * 10 + [200] * 99)
    window = normal_table(5, 109, 2) | {
        "status": status,
        "row": np.zeros(109, np.int32),
        "weight": np.where(status == 200, 10.0, 1.0),
    }
    verdict = decide.judge(reference, window, USUAL)
    assert verdict.errors is not None
    assert verdict.errors.rate == pytest.approx(0.01)
    assert verdict.kinds == ()


def test_a_window_with_too_few_rows_is_not_judged_but_its_errors_are() -> None:
    reference = reference_of(errors(0.0))
    verdict = decide.judge(reference, errors(0.9, 200), USUAL)
    assert (verdict.is_judged, verdict.rows) == (False, 20)
    assert verdict.kinds == ("error",)


def test_a_column_of_the_log_that_is_gone_is_missing_in_every_row() -> None:
    reference = reference_of(normal_table(1, 500, 3))
    window = normal_table(2, 300, 2)
    verdict = decide.judge(reference, window, USUAL)
    assert drifting(verdict) == {"in.x.2"}
    assert verdict.columns[2].figures.missing == 300


def test_a_bare_name_that_is_not_in_the_log_is_told_and_not_judged() -> None:
    table = {name.removeprefix("in.x."): values for name, values in normal_table(1).items()}
    table["target"] = np.arange(1_000.0)
    verdict = decide.judge(reference_of(table), normal_table(2), USUAL)
    assert verdict.unknown == ("target",)
    assert len(verdict.columns) == 30
    assert not verdict.is_drift


def test_a_reference_of_which_nothing_is_in_the_log_is_an_error_that_names_both() -> None:
    reference = reference_of({"height": np.arange(100.0)})
    with pytest.raises(DriftError, match=r"\(height \.\.\.\) is in the log, which has in\.x\.0"):
        decide.judge(reference, normal_table(1), USUAL)


def test_levels_of_windows_shrink_and_labels_take_half() -> None:
    reference: Reference = reference_of(normal_table(1, 200, 2))
    window = normal_table(2, 100, 2)
    first = decide.judge(reference, window, USUAL)
    second = decide.judge(reference, window, USUAL, number=2)
    assert first.level == pytest.approx(0.05 * 6 / np.pi**2)
    assert second.level == pytest.approx(first.level / 4)
