"""What bad input gets, over every transport: the right code and the same sentence on both
protocols, no stack trace in the log, and a server that goes on serving."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import pytest

from tests.support.served import BATCH_ROWS
from tests.support.transports import Answer, Ask, Given, Outcome, Transport


def given(**fields: Any) -> Given:  # Any: fields of Given
    """Return a good row of the model `pair`'s input a, with some fields changed."""
    return Given(
        **{
            "name": "a",
            "datatype": "FP32",
            "shape": (1, 2),
            "elements": [1.0, 2.0],
            **fields,
        }
    )


A: Final = given()
B: Final = Given(name="b", datatype="INT64", shape=(1, 1), elements=[3])


def to_pair(*inputs: Given, **fields: Any) -> Ask:  # Any: fields of Ask
    """Return a request to the model `pair`."""
    return Ask(model="pair", inputs=inputs, **fields)


BAD: Final[Mapping[str, tuple[Ask, str]]] = {
    "no inputs": (to_pair(), "input 'a' is missing: 'pair' needs it"),
    "missing input": (to_pair(A), "input 'b' is missing: 'pair' needs it"),
    "wrong input name": (
        to_pair(A, given(name="c")),
        "unexpected input 'c': 'pair' takes 'a', 'b'",
    ),
    "one input too many": (
        to_pair(A, B, given(name="é")),
        "unexpected input 'é': 'pair' takes 'a', 'b'",
    ),
    "input given twice": (to_pair(A, A, B), "input 'a' is given twice"),
    "wrong datatype": (
        to_pair(given(datatype="FP64"), B),
        "input 'a': datatype FP64 given, FP32 expected",
    ),
    "too many dimensions": (
        to_pair(given(shape=(1, 2, 1)), B),
        "input 'a': shape [1, 2, 1] given, [-1, 2] expected",
    ),
    "wrong dimension": (
        to_pair(given(shape=(1, 3), elements=[0.0] * 3), B),
        "input 'a': shape [1, 3] given, [-1, 2] expected",
    ),
    "no dimensions": (
        to_pair(given(shape=(), elements=[0.0]), B),
        "input 'a': shape [] given, [-1, 2] expected",
    ),
    "negative dimension": (
        to_pair(given(shape=(-1, 2)), B),
        "input 'a': shape [-1, 2] has a negative dimension",
    ),
    "huge dimension": (
        to_pair(given(shape=(1 << 40, 1 << 20)), B),
        f"input 'a': shape [{1 << 40}, {1 << 20}] is too large",
    ),
    "no rows": (
        to_pair(given(shape=(0, 2), elements=[]), B),
        "input 'a': shape [0, 2] has no rows",
    ),
    "uneven rows": (
        to_pair(given(shape=(2, 2), elements=[0.0] * 4), B),
        "input 'b': 1 rows given where the other inputs have 2",
    ),
    "too many rows": (
        Ask(
            model="lookup",
            inputs=(
                Given(
                    name="x",
                    datatype="INT64",
                    shape=(BATCH_ROWS + 1, 1),
                    elements=[0] * (BATCH_ROWS + 1),
                ),
            ),
        ),
        (
            f"input 'x': a batch of {BATCH_ROWS + 1} rows is larger than "
            f"max_batch_size {BATCH_ROWS} of 'lookup'"
        ),
    ),
    "unknown output": (
        to_pair(A, B, outputs=("u", "w")),
        "unknown output 'w': 'pair' gives 'u', 'v'",
    ),
    "output asked for twice": (
        to_pair(A, B, outputs=("u", "u")),
        "output 'u' is requested twice",
    ),
    "timeout is text": (
        to_pair(A, B, parameters={"timeout": "soon"}),
        "parameter 'timeout': 'soon' is not a whole number of microseconds",
    ),
    "timeout is negative": (
        to_pair(A, B, parameters={"timeout": -5}),
        "parameter 'timeout': -5 is not a whole number of microseconds",
    ),
    "timeout is a flag": (
        to_pair(A, B, parameters={"timeout": True}),
        "parameter 'timeout': True is not a whole number of microseconds",
    ),
    "timeout is a fraction": (
        to_pair(A, B, parameters={"timeout": 0.5}),
        "parameter 'timeout': 0.5 is not a whole number of microseconds",
    ),
    "priority is text": (
        to_pair(A, B, parameters={"priority": "high"}),
        "parameter 'priority': 'high' is not a whole number of levels",
    ),
    "priority beyond the levels": (
        Ask(
            model="graded",
            inputs=(Given(name="x", datatype="FP32", shape=(1, 4), elements=[0.0] * 4),),
            parameters={"priority": 3},
        ),
        "parameter 'priority': 3 given, the model has 2 levels",
    ),
}


def assert_serves(transport: Transport) -> None:
    """Check that a good request is still answered."""
    answer = transport.infer(to_pair(A, B))
    assert answer.came_to(Outcome.OK), answer.error


def assert_refused(answer: Answer, sentence: str, caplog: pytest.LogCaptureFixture) -> None:
    """Check code and sentence, and that nobody logged anything about it."""
    assert answer.came_to(Outcome.INVALID)
    assert answer.error == sentence
    assert [r for r in caplog.records if r.exc_info or r.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_the_same_sentence_on_every_transport(
    transport: Transport, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    ask, sentence = BAD[case]
    assert_refused(transport.infer(ask), sentence, caplog)
    assert_serves(transport)


def test_an_unknown_datatype_is_refused_by_name(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    ask = to_pair(given(datatype="FP31", raw=b"\0" * 8), B)
    assert_refused(transport.infer(ask), "input 'a': unknown datatype 'FP31'", caplog)


def test_data_that_contradict_the_shape_are_counted(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    ask = to_pair(given(elements=[1.0, 2.0, 3.0]), B)
    sentence = (
        "input 'a': 12 bytes given, shape [1, 2] of FP32 takes 8"
        if transport.is_raw
        else "input 'a': 3 elements given, shape [1, 2] takes 2"
    )
    assert_refused(transport.infer(ask), sentence, caplog)
    assert_serves(transport)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"\x02\0\0\0ok\x09\0\0\0cut", "BYTES element at byte 6 runs past the end of the data"),
        (b"\x02\0\0\0ok\x02\0", "BYTES data ends inside the length at byte 6"),
        (b"\x02\0\0\0ok", "1 elements given, shape [1, 2] takes 2"),
    ],
)
def test_broken_framing_of_bytes_is_refused(
    raw_transport: Transport, raw: bytes, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = Given(name="x", datatype="BYTES", shape=(1, 2), elements=[], raw=raw)
    answer = raw_transport.infer(Ask(model="echo_bytes", inputs=(text,)))
    assert_refused(answer, f"input 'x': {sentence}", caplog)


@pytest.mark.parametrize(
    ("datatype", "element"),
    [("INT8", 128), ("INT8", -129), ("UINT8", 256), ("INT16", 1 << 15), ("UINT16", 1 << 16)],
)
def test_an_element_out_of_range_is_refused(
    typed_transport: Transport, datatype: str, element: int, caplog: pytest.LogCaptureFixture
) -> None:
    number = Given(name="x", datatype=datatype, shape=(1, 1), elements=[element])
    answer = typed_transport.infer(Ask(model=f"echo_{datatype.lower()}", inputs=(number,)))
    assert_refused(answer, f"input 'x': an element is out of range for {datatype}", caplog)


def test_a_sentence_that_quotes_something_huge_is_cut(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """A status message beyond a few kilobytes would never arrive over gRPC."""
    answer = transport.infer(to_pair(A, B, outputs=("w" * 100_000,)))
    assert answer.came_to(Outcome.INVALID)
    assert answer.error.startswith("unknown output 'www")
    assert len(answer.error) < 1_000
    long_shape = transport.infer(to_pair(given(shape=(1,) * 50_000), B))
    assert long_shape.came_to(Outcome.INVALID)
    assert len(long_shape.error) < 1_000
    assert caplog.records == []


def test_the_longest_timeout_of_the_protocol_is_taken(transport: Transport) -> None:
    answer = transport.infer(to_pair(A, B, parameters={"timeout": (1 << 63) - 1}))
    assert answer.came_to(Outcome.OK), answer.error
