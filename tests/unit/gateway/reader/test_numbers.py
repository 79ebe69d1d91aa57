"""Ranges of numbers against sets of numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.prediction_log.reader.numbers import (
    NumberSet,
    Range,
    both,
    cut,
    total,
    without,
)

_NUMBERS = st.lists(st.integers(1, 60), max_size=60)


def ranges_of(numbers: list[int]) -> list[Range]:
    found = NumberSet()
    for number in numbers:
        found.add(number)
    return found.ranges()


def numbers_in(ranges: list[Range]) -> list[int]:
    return [number for first, last in ranges for number in range(first, last + 1)]


@given(_NUMBERS)
def test_a_number_set_is_a_set_whatever_the_order(numbers: list[int]) -> None:
    found, expected = NumberSet(), set[int]()
    for number in numbers:
        assert found.add(number) == (number not in expected)
        expected.add(number)
        assert found.count == len(expected)
        assert found.following == max(expected) + 1
    assert numbers_in(found.ranges()) == sorted(expected)
    assert [number in found for number in range(62)] == [n in expected for n in range(62)]
    assert all(
        a.last + 1 < b.first for a, b in zip(found.ranges(), found.ranges()[1:], strict=False)
    )
    assert numbers_in(found.missing(5, 50)) == [n for n in range(5, 51) if n not in expected]


@given(_NUMBERS)
def test_only_numbers_below_a_greater_one_are_late(numbers: list[int]) -> None:
    found = NumberSet()
    for number in numbers:
        found.add(number)
    firsts = list(dict.fromkeys(numbers))
    assert found.came_late == (firsts != sorted(firsts))


@given(_NUMBERS, _NUMBERS)
def test_ranges_are_subtracted_and_intersected_as_sets_are(
    left: list[int], right: list[int]
) -> None:
    one, other = ranges_of(left), ranges_of(right)
    assert numbers_in(without(one, other)) == sorted(set(left) - set(right))
    assert numbers_in(both(one, other)) == sorted(set(left) & set(right))
    assert total(one) == len(set(left))


@given(_NUMBERS, st.lists(st.integers(0, 60), max_size=5))
def test_cutting_moves_no_number_and_no_piece_crosses_a_border(
    numbers: list[int], borders: list[int]
) -> None:
    pieces = cut(ranges_of(numbers), sorted(borders))
    assert numbers_in(pieces) == sorted(set(numbers))
    assert not any(first <= border < last for first, last in pieces for border in borders)


def test_memory_is_that_of_the_gaps() -> None:
    found = NumberSet()
    for number in range(1, 100_001):
        if number % 20_000:
            found.add(number)
    assert found.ranges() == [
        Range(1, 19_999),
        Range(20_001, 39_999),
        Range(40_001, 59_999),
        Range(60_001, 79_999),
        Range(80_001, 99_999),
    ]
    assert str(Range(7, 7)) == "7"
    assert str(Range(7, 9)) == "7-9"
