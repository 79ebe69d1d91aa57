"""The last verdict as Prometheus metrics."""

from __future__ import annotations

from prometheus_client import generate_latest

from gateway.drift import metrics
from gateway.drift.metrics import DriftMetrics
from tests.support.drift import mixed_table, normal_table, reference_of, report_of


def scraped(measured: DriftMetrics) -> dict[str, float]:
    lines = generate_latest(metrics.registry(measured)).decode().splitlines()
    pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name: float(value) for name, _, value in pairs}


def test_before_the_first_window_there_are_counters_only() -> None:
    assert scraped(DriftMetrics("digits")) == {
        'sluice_drift_windows_total{model="digits"}': 0,
        'sluice_drift_records_total{model="digits"}': 0,
        'sluice_drift_repeats_total{model="digits"}': 0,
    }


def test_a_window_is_there_with_its_verdict_and_every_column() -> None:
    measured = DriftMetrics("digits")
    reference = reference_of(mixed_table(1, 1_000))
    window = mixed_table(2, 400)
    window["in.income"] = window["in.income"] * 3
    measured.judged(report_of(reference, window), 1_000.5)
    measured.read(410, 10)
    found = scraped(measured)
    at = 'column="in.income",model="digits"'
    assert found[f"sluice_drift_column_drifted{{{at}}}"] == 1
    assert found[f"sluice_drift_column_psi{{{at}}}"] > 0.2
    assert found['sluice_drift{kind="data",model="digits"}'] == 1
    assert found['sluice_drift{kind="prediction",model="digits"}'] == 0
    assert found['sluice_drift_judged_timestamp_seconds{model="digits"}'] == 1_000.5
    assert found['sluice_drift_repeats_total{model="digits"}'] == 10
    assert 0 < found['sluice_drift_error_ratio{model="digits"}'] < 0.1
    assert 'sluice_drift_column_ks{column="in.city",model="digits"}' not in found
    assert found['sluice_drift_column_missing_ratio{column="in.gaps",model="digits"}'] > 0


def test_a_reference_of_very_many_columns_has_a_bounded_number_of_series() -> None:
    measured = DriftMetrics("digits")
    reference = reference_of(normal_table(1, 40, 600))
    measured.judged(report_of(reference, normal_table(2, 40, 600)), 0.0)
    drifted = [name for name in scraped(measured) if name.startswith("sluice_drift_column_psi")]
    assert len(drifted) == metrics.MAX_COLUMNS
