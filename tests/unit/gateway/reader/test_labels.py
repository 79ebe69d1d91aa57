"""Ground truth joined to predictions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from engines.tensors import Array
from gateway.prediction_log.reader.columns import rows_of, to_columns
from gateway.prediction_log.reader.labels import Labels, coverage
from gateway.prediction_log.record import LoggedLabel, LoggedPrediction
from tests.support.log_streams import STARTED_MS, floats, label, prediction


def joined(labels: list[LoggedLabel], records: list[LoggedPrediction]) -> dict[str, Array]:
    known = Labels()
    for one in labels:
        known.add(one)
    return known.columns(records, rows_of(records))


def targets(labels: list[LoggedLabel], records: list[LoggedPrediction]) -> list[Any]:
    found = joined(labels, records)["label"].tolist()
    return [None if value != value else value for value in found]


def test_a_label_finds_its_prediction_by_request_id_else_by_the_caller_s_id() -> None:
    records = [prediction(1), prediction(2), prediction(3)]
    by_cid = label(9, 7, rid=b"", cid="c2")
    assert targets([label(1, 5), by_cid, label(8, 1)], records) == [5, 7, None]
    both = [label(2, 6), by_cid]
    assert targets(both, records) == [None, 6, None]
    assert targets(both[::-1], records) == [None, 6, None]


def test_the_highest_version_holds_then_the_latest() -> None:
    old, new = label(1, 1, version=1), label(1, 2, version=2)
    late = label(1, 3, version=2, ts_us=new.ts_us + 1)
    received_late = label(1, 4, version=2, received_us=new.received_us + 1)
    records = [prediction(1)]
    assert targets([new, old], records) == [2]
    assert targets([late, new, old], records) == [3]
    assert targets([received_late, new], records) == [4]
    assert targets([new, label(1, {"a": 9}, version=2)], records) == [{"a": 9}]  # the same, later


def test_a_list_as_long_as_the_record_gives_each_row_its_target() -> None:
    many = prediction(2, inputs={"x": floats(3, 1)})
    records = [prediction(1), many]
    assert targets([label(2, [4, 5, 6])], records) == [None, 4, 5, 6]
    assert targets([label(2, 9)], records) == [None, 9, 9, 9]
    assert targets([label(2, [4, 5])], records) == [None, None, None, None]
    assert targets([label(2, ["a", "b"])], records)[1] == ["a", "b"]


def test_numbers_are_numbers_and_anything_else_is_kept_as_it_is() -> None:
    records = [prediction(1), prediction(2)]
    assert joined([label(1, 3), label(2, True)], records)["label"].dtype == np.float64
    assert targets([label(1, "cat"), label(2, 3)], records) == ["cat", 3]
    assert targets([label(1, {"x": [1]})], records) == [{"x": [1]}, None]


def test_times_and_the_rest_of_a_label_stand_beside_it() -> None:
    records = [prediction(1), prediction(2)]
    found = joined([label(1, 3, source="desk", weight=0.5, version=4)], records)
    assert found["label_ts"][0] == np.datetime64(STARTED_MS + 401, "ms")
    assert np.isnat(found["label_ts"][1])
    assert found["label_delay_s"][0] == pytest.approx(0.5)
    assert (found["label_source"][0], found["label_weight"][0]) == ("desk", 0.5)
    assert found["label_version"][0] == 4
    assert (found["label_source"][1], math.isnan(found["label_version"][1])) == (None, True)


def test_without_labels_the_columns_are_there_and_empty() -> None:
    records = [prediction(1), prediction(2, inputs={"x": floats(2, 1)})]
    found, some = joined([], records), joined([label(1, 3)], records)
    assert {name: column.dtype for name, column in found.items()} == {
        name: column.dtype for name, column in some.items()
    }
    assert {len(column) for column in found.values()} == {3}
    assert np.isnan(found["label"]).all()


def test_a_shadow_s_answer_is_held_against_the_label_of_the_live_request() -> None:
    shadow = prediction(9, parent_rid=prediction(1).rid, is_shadow=True, cid="")
    assert targets([label(1, 5)], [shadow]) == [5]


def test_coverage_counts_records_not_rows() -> None:
    records = [prediction(1), prediction(2, inputs={"x": floats(3, 1)}), prediction(3)]
    labels = [label(2, 1), label(3, 1, received_us=(STARTED_MS + 3 + 2_500) * 1_000)]
    found = coverage(to_columns(records) | joined(labels, records))
    assert (found.records, found.labelled) == (3, 2)
    assert found.share == pytest.approx(2 / 3)
    assert found.delay_p50_s == pytest.approx(1.5)
    assert found.delay_p90_s == pytest.approx(2.3)
    nothing = coverage(to_columns([]))
    assert (nothing.records, nothing.share) == (0, 0.0)
    assert math.isnan(nothing.delay_p50_s)
