"""Windows one after another, without Redis: what is judged when, and what is remembered."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.drift import monitor
from gateway.drift.decide import Thresholds
from gateway.drift.monitor import Monitor
from gateway.drift.report import Report
from gateway.drift.rows import Truth
from gateway.prediction_log.record import LoggedLabel, LoggedPrediction
from tests.support.drift import label_of, normal_table, prediction, predictions, reference_of


def made(records: int = 100, *, truth: Truth | None = None, columns: int = 4) -> Monitor:
    return Monitor(
        model="digits",
        reference=reference_of(normal_table(1, 1_000, columns)),
        thresholds=Thresholds(),
        window_records=records,
        truth=truth,
    )


def judged(watcher: Monitor, records: list[LoggedPrediction]) -> Report:
    watcher.add(records)
    assert watcher.room == 0
    return watcher.judge({}, "100 %")


def test_a_window_is_full_at_its_number_of_records_and_the_next_one_begins_empty() -> None:
    watcher = made()
    watcher.add(predictions(1, 60))
    assert watcher.room == 40
    report = judged(watcher, predictions(2, 40, first=61))
    assert (report.records, report.verdict.number, watcher.room) == (100, 1, 100)
    assert judged(watcher, predictions(3, 100)).verdict.number == 2
    assert watcher.windows == 2


def test_every_row_of_a_request_counts_and_the_times_are_those_of_the_requests() -> None:
    rows = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    records = [prediction(n, rows, rows=50) for n in range(1, 11)]
    report = judged(made(10), records)
    assert (report.records, report.verdict.rows) == (10, 500)
    assert (report.began, report.ended) == ("2026-01-01 00:00:00 UTC", "2026-01-01 00:00:00 UTC")


def test_a_window_of_large_requests_is_closed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "WINDOW_BYTES", 60 * (4 * 4 + 8))
    watcher = made()
    report = judged(watcher, predictions(1, 60))
    assert report.records == 60
    assert "the window was closed early: it reached 0 MiB" in report.notes


def test_the_first_window_says_how_many_errors_are_usual() -> None:
    watcher = made()
    usual = [
        prediction(n, [0.1 * n, 1, 2, 3], status=500 if n % 50 == 0 else 200) for n in range(1, 101)
    ]
    first = judged(watcher, usual)
    assert first.verdict.errors is not None
    assert first.verdict.errors.reference is None
    assert "errors are compared with window 1" in " ".join(first.notes)
    many = [prediction(n, [0, 0, 0, 0], status=503) for n in range(101, 201)]
    second = judged(watcher, many)
    assert second.verdict.is_error_drift
    assert not second.verdict.is_judged


def labelled(first: int, wrong: float) -> tuple[list[LoggedPrediction], list[LoggedLabel]]:
    random = np.random.default_rng(first)
    records = predictions(first, 100, first=first)
    labels = []
    for number, record in enumerate(records):
        truth = int(np.frombuffer(record.outputs["label"].data, "<i8")[0])
        target = truth + 1 if random.random() < wrong else truth
        labels.append(label_of(record, target, seq=number + 1))
    return records, labels


def test_labels_that_come_after_their_window_are_counted_in_a_later_one() -> None:
    watcher = made(truth=Truth())
    reports = []
    late: list[LoggedLabel] = []
    for number in range(12):
        records, labels = labelled(1 + 100 * number, 0.05 if number < 6 else 0.6)
        watcher.add_labels(late)
        reports.append(judged(watcher, records))
        late = labels
    concepts = [report.verdict.concept for report in reports]
    assert all(concept is not None for concept in concepts)
    assert [concept.labelled for concept in concepts if concept] == [0] + [100] * 11
    assert not any(report.verdict.is_concept_drift for report in reports[:7])
    assert reports[-1].verdict.kinds == ("concept",)


def test_columns_get_half_of_the_level_while_labels_are_watched() -> None:
    with_labels = judged(made(truth=Truth()), predictions(1, 100))
    without = judged(made(), predictions(1, 100))
    assert with_labels.verdict.level == pytest.approx(without.verdict.level / 2)


def test_labels_that_cannot_be_held_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "MAX_LABELS", 10)
    watcher = made(truth=Truth())
    records, labels = labelled(1, 0.0)
    watcher.add_labels(labels)
    report = judged(watcher, records)
    assert "90 labels so far found no answer to be held against" in report.notes


def test_a_monitor_without_labels_keeps_none() -> None:
    watcher = made()
    records, labels = labelled(1, 1.0)
    watcher.add_labels(labels)
    assert judged(watcher, records).verdict.concept is None
