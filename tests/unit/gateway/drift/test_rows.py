"""Which columns are judged, which rows count, and which answers are right."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.drift import rows
from gateway.drift.rows import DriftError, Side, Truth


def test_names_of_the_log_are_matched_exactly_and_bare_names_by_what_they_mean() -> None:
    log = ["in.x.age", "in.x.height", "in.y.height", "in.city", "out.label", "rid"]
    wanted = ["in.x.age", "age", "city", "label", "height", "in.gone", "nothing"]
    assert rows.match(wanted, log) == {
        "in.x.age": "in.x.age",
        "age": "in.x.age",
        "city": "in.city",
        "label": "out.label",
    }


def test_digests_and_addresses_of_tensors_are_not_judged() -> None:
    assert rows.judged(["in.x.digest", "in.x.uri", "in.x.mean", "status", "out.y"]) == [
        "in.x.mean",
        "out.y",
    ]
    assert rows.side_of("out.y") is Side.OUTPUT
    assert rows.side_of("age") is Side.FEATURE


def test_rows_of_errors_are_not_judged_and_a_request_counts_once() -> None:
    table = {
        "in.x": np.arange(5.0),
        "row": np.array([0, 1, 2, 0, 0]),
        "status": np.array([200, 200, 200, 500, 404]),
    }
    assert rows.answered(table)["in.x"].tolist() == [0, 1, 2]
    found = rows.error_rate(table)
    assert found is not None
    rate, errors, requests = found
    assert (errors, requests) == (2, 3)
    assert rate.share == pytest.approx(2 / 3)
    assert rows.error_rate({"in.x": np.zeros(2)}) is None


def test_rows_without_a_weight_count_once() -> None:
    table = {"in.x": np.zeros(3), "weight": np.array([10.0, np.nan, 0.0])}
    assert rows.weights_of(table).tolist() == [10, 1, 1]
    assert rows.weights_of({"in.x": np.zeros(2)}).tolist() == [1, 1]


def test_labels_are_held_against_the_only_output_that_is_a_category() -> None:
    table = {
        "out.label": np.array([1, 2, 3, 4]),
        "out.score.0": np.zeros(4),
        "label": np.array([1.0, 5.0, np.nan, 4.0]),
        "weight": np.array([1.0, 2.0, 3.0, 4.0]),
    }
    wrong, weights = rows.wrong_answers(table, Truth())
    assert (wrong.tolist(), weights.tolist()) == ([0, 1, 0], [1, 2, 4])
    rate = rows.label_rate(table, Truth())
    assert rate is not None
    assert rate.share == pytest.approx(2 / 7)


def test_numbers_are_right_within_a_tolerance() -> None:
    table = {"out.price": np.array([10.0, 20.0, 30.0]), "label": np.array([10.4, 22.0, 30.0])}
    wrong, _ = rows.wrong_answers(table, Truth(tolerance=0.5))
    assert wrong.tolist() == [0, 1, 0]
    exact, _ = rows.wrong_answers(table, Truth())
    assert exact.tolist() == [1, 1, 0]


def test_text_labels_are_compared_as_text() -> None:
    labels = np.array(["cat", None, "dog"], np.object_)
    table = {"out.kind": np.array(["cat", "cat", "cat"], np.object_), "label": labels}
    assert rows.wrong_answers(table, Truth())[0].tolist() == [0, 1]


def test_which_output_is_meant_has_to_be_said_where_it_is_not_clear() -> None:
    table = {"out.a": np.zeros(2), "out.b": np.zeros(2), "label": np.zeros(2)}
    with pytest.raises(DriftError, match=r"name one of out\.a, out\.b"):
        rows.wrong_answers(table, Truth())
    assert rows.wrong_answers(table, Truth(predicted="out.b"))[0].tolist() == [0, 0]
    assert rows.predicted_column(table, Truth(predicted="a")) == "out.a"
    with pytest.raises(DriftError, match="no column 'c'"):
        rows.wrong_answers(table, Truth(predicted="c"))


def test_without_labels_nothing_is_wrong_and_nothing_is_asked() -> None:
    table = {"out.a": np.zeros(2), "out.b": np.zeros(2)}
    assert rows.wrong_answers(table, Truth())[0].tolist() == []
    assert rows.label_rate(table | {"label": np.full(2, np.nan)}, Truth()) is None
