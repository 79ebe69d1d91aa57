"""What stands for tensors that were not kept whole."""

from __future__ import annotations

import numpy as np
import pytest

from engines.tensors import BYTES, encode_bytes
from gateway.prediction_log.reader import tensors
from gateway.prediction_log.reader.columns import to_columns
from gateway.prediction_log.record import LoggedTensor, Reduced
from tests.support.log_streams import floats, prediction


def of(tensor: LoggedTensor, *, rows: int = 2) -> dict[str, list[object]]:
    """Return the columns of a tensor of a record of two rows, beside a record without it."""
    inputs = {"rows": floats(rows, 1), "x": tensor}
    columns = to_columns([prediction(1, inputs=inputs, outputs={}), prediction(2, inputs={})])
    return {
        name.removeprefix("in.x"): [None if value != value else value for value in column.tolist()]
        for name, column in columns.items()
        if name.startswith("in.x")
    }


def test_a_redacted_tensor_is_said_to_be_redacted() -> None:
    assert of(LoggedTensor("FP32", (2, 4), None)) == {".kept": ["redacted", "redacted", None]}


def test_statistics_stand_in_every_row_of_their_record() -> None:
    reduced = Reduced(
        kind="stat",
        statistics={"count": 8.0, "mean": 0.5},
        channels=[(1.0, 2.0), (3.0, 4.0)],
        histogram=[5, 6],
        digest=b"\xab" * 16,
        uri="ab/cd",
    )
    found = of(LoggedTensor("FP32", (2, 4), reduced))
    assert found == {
        ".kept": ["stat", "stat", None],
        ".count": [8.0, 8.0, None],
        ".mean": [0.5, 0.5, None],
        ".channel.0.mean": [1.0, 1.0, None],
        ".channel.0.std": [2.0, 2.0, None],
        ".channel.1.mean": [3.0, 3.0, None],
        ".channel.1.std": [4.0, 4.0, None],
        ".histogram.0": [5.0, 5.0, None],
        ".histogram.1": [6.0, 6.0, None],
        ".digest": ["ab" * 16, "ab" * 16, None],
        ".uri": ["ab/cd", "ab/cd", None],
    }


def test_the_start_of_a_cut_tensor_stands_where_it_belongs_and_the_rest_is_absent() -> None:
    kept = np.array([1, 2, 3], "<f4").tobytes()
    found = of(LoggedTensor("FP32", (2, 2), Reduced(kind="trunc", kept_bytes=12, data=kept)))
    assert found == {
        ".kept": ["trunc", "trunc", None],
        ".0": [1.0, 3.0, None],
        ".1": [2.0, None, None],
    }
    text = Reduced(kind="trunc", data=encode_bytes([b"a"]))
    assert of(LoggedTensor(BYTES, (2,), text))[""] == ["a", None, None]
    halves = Reduced(kind="trunc", data=(0x3F80).to_bytes(2, "little"))
    assert of(LoggedTensor("BF16", (2,), halves))[""] == [1.0, None, None]


def test_a_thumbnail_is_that_of_the_first_row() -> None:
    pixels = np.arange(4, dtype="<f4").tobytes()
    for shape in ((1, 2, 2), (2, 2)):
        picture = Reduced(kind="thumb", thumb_shape=shape, data=pixels)
        found = of(LoggedTensor("FP32", (2, 1, 99, 99), picture))
        assert [found[f".thumb.{i}"] for i in range(4)] == [
            [float(i), None, None] for i in range(4)
        ]


@pytest.mark.parametrize("kind", ["seal", "erased", "skipped", "lost", "later"])
def test_whatever_else_stands_for_a_tensor_is_named(kind: str) -> None:
    assert of(LoggedTensor("FP32", (2, 2), Reduced(kind=kind))) == {".kept": [kind, kind, None]}


def test_bytes_that_contradict_their_shape_are_malformed_and_the_others_are_read() -> None:
    short = LoggedTensor("FP32", (1, 2), b"123")
    records = [prediction(1), prediction(2, inputs={"x": short}), prediction(3)]
    columns = to_columns(records)
    assert columns["in.x.kept"].tolist() == [None, "malformed", None]
    assert columns["in.x.0"][[0, 2]].tolist() == [1, 3]
    assert np.isnan(columns["in.x.0"][1])
    for broken in (
        LoggedTensor("FP99", (1, 2), b"12345678"),
        LoggedTensor("FP32", (1, -2), b""),
        LoggedTensor(BYTES, (1,), b"\x09\x00\x00\x00a"),
        LoggedTensor(BYTES, (2,), encode_bytes([b"a"])),
    ):
        columns = to_columns([prediction(1, inputs={"x": broken}, outputs={})])
        assert columns["in.x.kept"].tolist() == ["malformed"] * len(columns["seq"])
        assert "in.x" not in columns


def test_errors_of_length_that_cancel_out_are_found() -> None:
    long, short = LoggedTensor("INT8", (1, 2), b"123"), LoggedTensor("INT8", (1, 2), b"1")
    records = [prediction(n, inputs={"x": t}, outputs={}) for n, t in ((1, long), (2, short))]
    columns = to_columns(records)
    assert columns["in.x.kept"].tolist() == ["malformed", "malformed"]


def test_what_was_kept_and_cannot_be_read_leaves_its_kind() -> None:
    for reduced in (
        Reduced(kind="trunc", data=b"123"),
        Reduced(kind="thumb", thumb_shape=(2, 2), data=b"123"),
        Reduced(kind="thumb", thumb_shape=(2, 2), data=bytes(12)),
    ):
        assert of(LoggedTensor("FP32", (2, 2), reduced)) == {
            ".kept": [reduced.kind, reduced.kind, None]
        }


def test_the_start_of_a_setting_repeats_in_every_row() -> None:
    start = Reduced(kind="trunc", data=np.array([1, 2], "<f4").tobytes())
    found = of(LoggedTensor("FP32", (3,), start))
    assert [found[f".{i}"] for i in range(3)] == [[1, 1, None], [2, 2, None], [None, None, None]]


def test_the_start_of_a_wide_tensor_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MAX_COLUMNS", 3)
    start = Reduced(kind="trunc", data=bytes(8))
    assert of(LoggedTensor("FP32", (2, 4), start)) == {".kept": ["trunc", "trunc", None]}
    pixels = Reduced(kind="thumb", thumb_shape=(2, 2), data=bytes(16))
    assert of(LoggedTensor("FP32", (2, 4), pixels)) == {".kept": ["thumb", "thumb", None]}


def test_a_form_with_cut_and_with_repeated_tensors_gives_each_its_own() -> None:
    inputs = {"rows": floats(2, 1), "x": floats(2, start=5)}
    setting = {"rows": floats(3, 1), "x": floats(2, start=5)}
    columns = to_columns([prediction(1, inputs=inputs), prediction(2, inputs=setting)])
    assert columns["in.x"][:2].tolist() == [5, 6]
    assert columns["in.x.0"][2:].tolist() == [5, 5, 5]
    assert columns["in.x.1"][2:].tolist() == [6, 6, 6]
