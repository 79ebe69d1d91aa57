"""References from tables of the log, and from anybody's tables."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.drift.column import Kind
from gateway.drift.reference import make
from gateway.drift.rows import DriftError, Truth
from tests.support.drift import normal_table, reference_of


def test_a_table_of_the_log_gives_its_features_and_outputs_and_nothing_else() -> None:
    table = normal_table(1, 100, 2) | {
        "out.label": np.zeros(100, np.int64),
        "rid": np.array([f"id {n}" for n in range(100)], np.object_),
        "label": np.zeros(100),
    }
    made = reference_of(table)
    assert list(made.profiles) == ["in.x.0", "in.x.1", "out.label"]
    assert made.profiles["out.label"].kind is Kind.CATEGORY
    assert (made.rows, made.errors, made.wrong, made.notes) == (100, None, None, ())


def test_any_table_gives_all_its_columns_but_those_that_say_who_and_when() -> None:
    count = 200
    table = {
        "age": np.arange(count, dtype=np.float64),
        "city": np.array(["a", "b"] * 100, np.object_),
        "customer": np.array([f"c{n}" for n in range(count)], np.object_),
        "pixels": np.array([[1, 2]] * count + [None], np.object_)[:count],
        "ts": np.arange(count).astype("datetime64[us]"),
        "__index_level_0__": np.arange(count),
    }
    made = reference_of(table)
    assert list(made.profiles) == ["age", "city"]
    assert sorted(made.notes) == [
        "customer is left out: nearly every row has another category",
        "pixels is left out: its rows are lists",
    ]


def test_rows_of_errors_make_no_profile_but_a_rate() -> None:
    table = normal_table(1, 100, 1) | {"status": np.array([500] * 10 + [200] * 90)}
    table["in.x.0"][:10] = 1e6
    made = reference_of(table)
    assert made.rows == 90
    assert made.errors is not None
    assert made.errors.share == pytest.approx(0.1)
    assert made.profiles["in.x.0"].content is not None


def test_labels_give_a_rate_only_if_they_are_asked_for() -> None:
    labels = np.arange(100) % 10
    table = normal_table(1, 100, 1) | {
        "out.label": labels,
        "label": np.where(np.arange(100) < 20, -1.0, labels),
    }
    with_labels = make(table, source="x", truth=Truth())
    assert with_labels.wrong is not None
    assert (with_labels.wrong.share, with_labels.wrong.size) == (0.2, 100)
    assert make(table, source="x").wrong is None


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (normal_table(1, 29, 1), "ref.parquet has 29 answered rows; a reference needs 30"),
        ({}, "ref.parquet has 0 answered rows"),
        ({"rid": np.zeros(50)}, "has no column that could be a feature"),
    ],
)
def test_what_makes_no_reference_is_refused(
    table: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]], sentence: str
) -> None:
    with pytest.raises(DriftError, match=sentence):
        reference_of(dict(table))
