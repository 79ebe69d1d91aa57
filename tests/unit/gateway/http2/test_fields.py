"""What is a request, and what is not."""

from __future__ import annotations

import pytest

from gateway.http2.fields import (
    MAX_SHAPES,
    FieldRules,
    MalformedHead,
    check_trailers,
    content_length,
)

GOOD = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a/b"),
    (b":authority", b"x"),
    (b"te", b"trailers"),
    (b"x-one", b"1"),
]


def test_a_good_request_passes_with_the_value_of_each_name() -> None:
    rules = FieldRules()
    assert rules.check(GOOD)[b":path"] == b"/a/b"
    assert rules.check(GOOD) == dict(GOOD), "also when the names are remembered"


def test_the_authority_may_be_missing_and_of_a_repeated_name_the_last_value_counts() -> None:
    fields = [*GOOD[:3], (b"a", b"1"), (b"a", b"2")]
    assert FieldRules().check(fields)[b"a"] == b"2"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([], id="nothing"),
        pytest.param(GOOD[1:], id="no method"),
        pytest.param([*GOOD[:1], *GOOD[2:]], id="no scheme"),
        pytest.param([*GOOD[:2], *GOOD[3:]], id="no path"),
        pytest.param([*GOOD[:2], (b":path", b""), *GOOD[3:]], id="empty path"),
        pytest.param([*GOOD[:1], *GOOD], id="method twice"),
        pytest.param([(b":status", b"200"), *GOOD], id="pseudo-header of an answer"),
        pytest.param([*GOOD, (b":late", b"1")], id="unknown pseudo-header behind"),
        pytest.param([*GOOD[4:], *GOOD[:4]], id="pseudo-headers behind regular ones"),
        pytest.param([*GOOD, (b"X-Two", b"1")], id="capital letter"),
        pytest.param([*GOOD, (b"x two", b"1")], id="space in a name"),
        pytest.param([*GOOD, (b"", b"1")], id="empty name"),
        pytest.param([*GOOD, (b"x,y", b"1")], id="comma in a name"),
        pytest.param([*GOOD, (b"connection", b"close")], id="connection"),
        pytest.param([*GOOD, (b"transfer-encoding", b"chunked")], id="transfer-encoding"),
        pytest.param([*GOOD[:4], (b"te", b"gzip")], id="te"),
        pytest.param([*GOOD, (b"x", b"a\nb")], id="line feed in a value"),
        pytest.param([*GOOD, (b"x", b"a\rb")], id="carriage return in a value"),
        pytest.param([*GOOD, (b"x", b"a\0b")], id="null in a value"),
        pytest.param([*GOOD, (b"x", b" a")], id="space before a value"),
        pytest.param([*GOOD, (b"x", b"a\t"), (b"y", b"b")], id="tab behind a value"),
    ],
)
def test_a_list_that_is_no_request_is_refused(fields: list[tuple[bytes, bytes]]) -> None:
    rules = FieldRules()
    rules.check(GOOD)
    with pytest.raises(MalformedHead):
        rules.check(fields)


def test_names_with_commas_are_not_taken_for_a_remembered_sequence() -> None:
    rules = FieldRules()
    rules.check([*GOOD, (b"a", b"1"), (b"b", b"2")])
    with pytest.raises(MalformedHead):
        rules.check([*GOOD, (b"a,b", b"1")])


def test_a_bad_value_is_seen_where_the_names_are_remembered() -> None:
    rules = FieldRules()
    rules.check(GOOD)
    with pytest.raises(MalformedHead):
        rules.check([*GOOD[:-1], (b"x-one", b"1\n2")])


def test_remembered_sequences_are_bounded_and_stay_right() -> None:
    rules = FieldRules()
    for number in range(2 * MAX_SHAPES):
        rules.check([*GOOD, (b"x-%d" % number, b"")])
    assert rules.check(GOOD)


@pytest.mark.parametrize(("text", "length"), [(b"0", 0), (b"17", 17), (None, None)])
def test_a_content_length_is_digits_or_missing(text: bytes | None, length: int | None) -> None:
    assert content_length({} if text is None else {b"content-length": text}) == length


@pytest.mark.parametrize("text", [b"", b"-1", b"+1", b"1.0", b"1" * 19, b"x"])
def test_a_content_length_that_is_no_number_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedHead):
        content_length({b"content-length": text})


def test_trailers_are_regular_fields() -> None:
    check_trailers([(b"a", b"1")])
    with pytest.raises(MalformedHead):
        check_trailers([(b":path", b"/")])
