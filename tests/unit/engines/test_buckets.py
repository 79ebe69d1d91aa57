"""Row counts that an engine runs: which can be declared, and which one holds a batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.buckets import bucket_of, fault, powers_of_two


@pytest.mark.parametrize(
    ("max_batch_size", "expected"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12))],
)
def test_who_names_no_buckets_gets_the_powers_of_two_and_the_maximum(
    max_batch_size: int, expected: tuple[int, ...]
) -> None:
    assert powers_of_two(max_batch_size) == expected


@given(st.integers(1, 5_000))
def test_the_powers_of_two_are_buckets_that_pad_by_less_than_the_rows_themselves(
    max_batch_size: int,
) -> None:
    made = powers_of_two(max_batch_size)
    assert fault(made, max_batch_size) == ""
    for rows in {1, (max_batch_size + 1) // 2, max_batch_size}:
        assert rows <= bucket_of(made, rows) < 2 * rows


@pytest.mark.parametrize(
    ("rows", "bucket"), [(1, 1), (2, 4), (4, 4), (5, 6), (6, 6), (7, 16), (16, 16)]
)
def test_a_batch_goes_into_the_smallest_bucket_that_holds_it(rows: int, bucket: int) -> None:
    assert bucket_of((1, 4, 6, 16), rows) == bucket


@given(st.integers(0, 1_000))
def test_without_buckets_every_row_count_is_its_own(rows: int) -> None:
    assert bucket_of((), rows) == rows


@given(st.sets(st.integers(1, 64), min_size=1), st.data())
def test_a_bucket_is_declared_holds_the_rows_and_no_smaller_one_does(
    declared: set[int], data: st.DataObject
) -> None:
    buckets = tuple(sorted(declared))
    rows = data.draw(st.integers(1, buckets[-1]))
    found = bucket_of(buckets, rows)
    assert found in declared
    assert found >= rows
    assert not any(rows <= other < found for other in buckets)


@pytest.mark.parametrize(
    ("buckets", "max_batch_size", "sentence"),
    [
        ((), 0, ""),
        ((), 8, ""),
        ((8,), 8, ""),
        ((1, 4, 8), 8, ""),
        ((1,), 0, "a model without a batch axis has no buckets"),
        ((0, 8), 8, "[0, 8] are not ascending row counts from 1"),
        ((-1, 8), 8, "[-1, 8] are not ascending row counts from 1"),
        ((4, 1, 8), 8, "[4, 1, 8] are not ascending row counts from 1"),
        ((1, 1, 8), 8, "[1, 1, 8] are not ascending row counts from 1"),
        ((1, 4), 8, "the last of [1, 4] is not max_batch_size 8"),
        ((1, 16), 8, "the last of [1, 16] is not max_batch_size 8"),
    ],
)
def test_what_cannot_be_the_buckets_of_a_model_is_told_in_a_sentence(
    buckets: tuple[int, ...], max_batch_size: int, sentence: str
) -> None:
    assert fault(buckets, max_batch_size) == sentence
