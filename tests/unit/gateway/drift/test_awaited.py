"""Answers and labels, in whatever order they come."""

from __future__ import annotations

import pytest

from gateway.drift import awaited
from gateway.drift.awaited import AwaitedLabels
from gateway.drift.rows import Truth
from gateway.prediction_log.reader.columns import to_columns
from gateway.prediction_log.record import LoggedLabel, LoggedPrediction
from tests.support.drift import label_of, prediction


def waiting(records: list[LoggedPrediction]) -> AwaitedLabels:
    made = AwaitedLabels(Truth())
    made.expect(to_columns(records))
    return made


def by_cid(record: LoggedPrediction, target: object) -> LoggedLabel:
    return LoggedLabel(
        schema=1,
        worker="w1",
        seq=1,
        ts_us=0,
        received_us=0,
        name="digits",
        target=target,
        cid=record.cid,
    )


def test_a_label_finds_its_answer_by_request_id_or_by_the_callers_id() -> None:
    first, second = prediction(1, [0.0], 3), prediction(2, [0.0], 4, cid="order 2", weight=10.0)
    made = waiting([first, second])
    wrong, weights = made.settle([label_of(first, 3), by_cid(second, 5)])
    assert wrong.tolist() == [0, 1]
    assert weights.tolist() == [1, 10]
    assert len(made) == 0


def test_a_second_label_for_the_same_answer_changes_nothing() -> None:
    record = prediction(1, [0.0], 3)
    made = waiting([record])
    assert made.settle([label_of(record, 3), label_of(record, 9)])[0].tolist() == [0]
    assert made.settle([])[0].tolist() == []
    assert made.lost == 1


def test_a_label_that_is_early_waits_for_one_window() -> None:
    record = prediction(1, [0.0], 3)
    made = AwaitedLabels(Truth())
    assert made.settle([label_of(record, 3)])[0].tolist() == []
    made.expect(to_columns([record]))
    assert made.settle([])[0].tolist() == [0]
    assert made.lost == 0


def test_each_row_of_a_request_has_its_label() -> None:
    record = prediction(1, [0.0] * 6, 2, rows=3)
    made = waiting([record])
    assert made.settle([label_of(record, [2, 0, 2])])[0].tolist() == [0, 1, 0]
    made = waiting([record])
    assert made.settle([label_of(record, [2, 0])])[0].tolist() == []
    assert made.lost == 1


def test_a_list_may_be_the_label_of_one_row() -> None:
    record = prediction(1, [0.0], 2)
    made = waiting([record])
    assert made.settle([label_of(record, [[1, 2]])])[0].tolist() == [1]


def test_the_oldest_answers_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awaited, "MAX_ANSWERS", 2)
    records = [prediction(number, [0.0], 1) for number in range(1, 5)]
    made = waiting(records)
    assert len(made) == 2
    wrong, _ = made.settle([label_of(record, 1) for record in records])
    assert wrong.tolist() == [0, 0]
