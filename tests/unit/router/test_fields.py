"""Fields one by one: what is taken, and that a fault names the field and reading goes on."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime, timedelta, timezone

import pytest

from router.faults import Fault
from router.fields import FieldReader


def told(reader: FieldReader) -> list[tuple[str, str]]:
    """Return pointer and sentence of each fault."""
    return [(fault.pointer, fault.sentence) for fault in reader.faults]


@pytest.mark.parametrize(
    ("path", "pointer", "dotted"),
    [
        ((), "", ""),
        (("variants", "canary", "weight"), "/variants/canary/weight", "variants.canary.weight"),
        (("key", 1), "/key/1", "key[1]"),
        (("rules", 0, "when"), "/rules/0/when", "rules[0].when"),
        (("a/b", "c~d"), "/a~1b/c~0d", "a/b.c~d"),
    ],
)
def test_a_fault_names_its_field_as_a_json_pointer_and_as_the_configuration_does(
    path: tuple[str | int, ...], pointer: str, dotted: str
) -> None:
    fault = Fault(path, "wrong")
    assert (fault.pointer, fault.dotted) == (pointer, dotted)


@pytest.mark.parametrize(("value", "least"), [(0, 0), (1, 1), (2**53, 1)])
def test_a_whole_number_is_taken_from_its_least_to_what_json_keeps_exact(
    value: int, least: int
) -> None:
    reader = FieldReader()
    assert reader.whole({"n": value}, (), "n", 7, least=least) == value
    assert reader.whole({}, (), "n", 7, least=least) == 7
    assert reader.faults == []


@pytest.mark.parametrize("value", [0, 9])
def test_a_whole_number_may_have_limits_on_both_sides(value: int) -> None:
    reader = FieldReader()
    assert reader.whole({"n": 8}, (), "n", 1, least=1, most=8) == 8
    assert reader.whole({"n": value}, (), "n", 1, least=1, most=8) is None
    assert told(reader) == [("/n", f"{value} is not a whole number from 1 to 8")]


@pytest.mark.parametrize("value", [-1, 2**53 + 1, 1.0, "1", True, None, [1]])
def test_anything_else_is_no_whole_number(value: object) -> None:
    reader = FieldReader()
    assert reader.whole({"n": value}, ("limits",), "n", 7, least=0) is None
    assert told(reader) == [("/limits/n", f"{value!r} is not a whole number from 0 on")]


@pytest.mark.parametrize(
    ("value", "unix_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-12-01T00:00:00Z", 1_796_083_200_000),
        ("2026-12-01T01:00:00+01:00", 1_796_083_200_000),
        ("2026-12-01T00:00:00.0019Z", 1_796_083_200_001),
        ("9998-12-31T23:59:59.999Z", 253_370_764_799_999),
        (datetime(2026, 12, 1, tzinfo=UTC), 1_796_083_200_000),
        (datetime(2026, 12, 1, 2, tzinfo=timezone(timedelta(hours=2))), 1_796_083_200_000),
        (tomllib.loads("t = 2026-12-01T00:00:00Z")["t"], 1_796_083_200_000),
    ],
)
def test_an_instant_is_a_text_or_a_time_with_its_zone(value: object, unix_ms: int) -> None:
    reader = FieldReader()
    assert reader.instant(value, ("expires",)) == unix_ms
    assert reader.faults == []


@pytest.mark.parametrize(
    "value",
    [
        "tomorrow",
        "2026-12-01",
        "2026-12-01T00:00:00",
        "",
        1_796_083_200,
        True,
        datetime(2026, 12, 1),
        tomllib.loads("t = 2026-12-01")["t"],
    ],
)
def test_a_time_without_a_zone_is_no_instant(value: object) -> None:
    reader = FieldReader()
    assert reader.instant(value, ("expires",)) is None
    sentence = f"{value!r} is no time with a zone, such as 2026-12-01T00:00:00Z"
    assert told(reader) == [("/expires", sentence)]


@pytest.mark.parametrize(
    "value",
    [
        "1969-12-31T23:59:59Z",
        "0001-01-01T00:00:00+12:00",
        "9999-01-01T00:00:00Z",
        "9999-12-31T23:59:59-12:00",
    ],
)
def test_a_time_that_could_not_be_written_again_is_refused(value: str) -> None:
    reader = FieldReader()
    assert reader.instant(value, ("expires",)) is None
    assert told(reader) == [("/expires", f"{value!r} is not between the years 1970 and 9998")]


def test_no_instant_is_no_fault() -> None:
    reader = FieldReader()
    assert reader.instant(None, ("expires",)) is None
    assert reader.faults == []


def test_every_unknown_key_of_a_table_is_told_and_the_known_ones_are_read() -> None:
    reader = FieldReader()
    table = reader.table({"b": 1, "a": 2, "known": 3}, ("rules", 0), ("known",))
    assert table["known"] == 3
    assert told(reader) == [("/rules/0/a", "unknown key"), ("/rules/0/b", "unknown key")]


def test_a_table_may_take_any_keys() -> None:
    reader = FieldReader()
    assert reader.table({"anything": 1}, (), None) == {"anything": 1}
    assert reader.faults == []


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (None, "expected a table, got nothing"),
        ([], "expected a table, got a value of type list"),
        ("{}", "expected a table, got a value of type str"),
        ({1: 2}, "expected a table, got a value of type dict"),
        ({"\ud800": 1}, "a key is no Unicode text"),
    ],
)
def test_what_is_no_table_is_told_and_taken_for_an_empty_one(value: object, sentence: str) -> None:
    reader = FieldReader()
    assert reader.table(value, ("when",), None) == {}
    assert told(reader) == [("/when", sentence)]


def test_a_list_of_texts_tells_each_that_is_none() -> None:
    reader = FieldReader()
    assert reader.texts(["a", 1, "", "b", None, "\ud800"], ("of",)) == ["a", "b"]
    assert told(reader) == [
        ("/of/1", "expected a text, got a value of type int"),
        ("/of/2", "an empty text"),
        ("/of/4", "expected a text, got nothing"),
        ("/of/5", "it is no Unicode text"),
    ]


@pytest.mark.parametrize("value", ["abc", {"a": 1}, 7, None])
def test_what_is_no_list_is_told(value: object) -> None:
    reader = FieldReader()
    assert list(reader.sequence(value, ("of",))) == []
    ((pointer, sentence),) = told(reader)
    assert (pointer, sentence.partition(",")[0]) == ("/of", "expected a list")


def test_a_list_may_need_one_text_at_least() -> None:
    reader = FieldReader()
    assert reader.texts([], ("in",), least=1) == []
    assert told(reader) == [("/in", "the list is empty")]


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({}, "this key is required"),
        ({"to": ""}, "an empty text"),
        ({"to": None}, "expected a text, got nothing"),
        ({"to": 1}, "expected a text, got a value of type int"),
    ],
)
def test_a_required_text_is_there_and_not_empty(table: dict[str, object], sentence: str) -> None:
    reader = FieldReader()
    assert reader.required(table, ("fallback",), "to") is None
    assert told(reader) == [("/fallback/to", sentence)]


@pytest.mark.parametrize("name", ["a", "_", "0", "a.b-c_d", "A" * 128])
def test_a_name_is_letters_digits_and_three_signs(name: str) -> None:
    reader = FieldReader()
    reader.name(name, ("name",))
    assert reader.faults == []


@pytest.mark.parametrize("name", ["", ".", "-a", "a b", "a/b", "é", "a\n", "$header", "A" * 129])
def test_anything_else_is_no_name(name: str) -> None:
    reader = FieldReader()
    reader.name(name, ("name",))
    sentence = f"{name!r} is no name: letters, digits, '_', '.' and '-', 128 at most"
    assert told(reader) == [("/name", sentence)]


def test_a_mismatch_never_quotes_the_value() -> None:
    reader = FieldReader()
    reader.text(["x" * 100_000], ("salt",))
    assert told(reader) == [("/salt", "expected a text, got a value of type list")]
