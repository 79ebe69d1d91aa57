"""A prediction record for a person and for a program."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

from engines.tensors import Tensor, encode_bytes
from gateway.ids import as_text
from gateway.prediction_log import reader
from gateway.prediction_log.record import (
    LoggedPrediction,
    LoggedTensor,
    PredictionRecord,
    Reduced,
    decode,
)
from tests.support.log_streams import prediction
from tests.support.records import encode, make_record


def logged(record: PredictionRecord, *, capture_max_bytes: int = 64) -> LoggedPrediction:
    return decode(encode(record, worker="a", seq=1, capture_max_bytes=capture_max_bytes))


def test_a_line_says_when_what_who_how_and_what_for() -> None:
    record = make_record(3)
    line = reader.render_line(logged(record))
    assert line == (
        f"2026-01-01T00:00:00.003Z digits digits/2 canary slot 200 1.2ms {as_text(record.rid)} "
        "x FP32[1, 2] 3 0.5 -> y INT64[1] 3"
    )


def test_a_line_about_an_error_names_it() -> None:
    record = make_record(1)
    record.status, record.error = 429, "QueueFull"
    record.origin = replace(record.origin, model="", served="")
    line = reader.render_line(logged(record))
    assert " digits - canary slot 429 " in line
    assert line.endswith("-> QueueFull")


def test_a_line_is_short_and_one_line_whatever_the_tensors_hold() -> None:
    record = make_record(
        inputs=(
            Tensor("wide", "FP64", (100,), bytes(800)),
            Tensor("text", "BYTES", (1,), encode_bytes([b"\x1b[2J\n" + b"x" * 40])),
            Tensor("none", "FP32", (0,), b""),
        )
    )
    line = reader.render_line(logged(record))
    assert "wide FP64[100] 0 0 0 0 0 0 …, text" in line
    assert "\\x1b[2J\\nxxx" in line
    assert line.isprintable()
    assert len(line) < 300
    assert "none FP32[0] -> " in line


def test_json_has_every_value_that_was_kept() -> None:
    record = make_record(
        inputs=(
            Tensor("cut", "INT32", (20,), struct.pack("<20i", *range(20))),
            Tensor("odd", "FP32", (3,), struct.pack("<3f", 1.5, float("nan"), float("inf"))),
            Tensor("half", "BF16", (1, 2), struct.pack("<2H", 0x3F80, 0xC000)),
            Tensor("text", "BYTES", (2,), encode_bytes(["é".encode(), b"\xff"])),
            Tensor("flag", "BOOL", (2,), b"\x01\x00"),
        )
    )
    record.origin = replace(record.origin, artefact=bytes(range(8)))
    document = json.loads(reader.render_json(logged(record)))
    assert document["rid"] == as_text(record.rid)
    assert document["artefact"] == "0001020304050607"
    assert document["time"] == "2026-01-01T00:00:00.001Z"
    assert (document["name"], document["version"], document["status"]) == ("digits", "2", 200)
    inputs = document["inputs"]
    assert inputs["cut"] == {
        "datatype": "INT32",
        "shape": [20],
        "is_whole": False,
        "values": list(range(16)),
        "kept": "trunc",
    }
    assert inputs["odd"]["values"] == [1.5, None, None]
    assert inputs["half"]["values"] == [1.0, -2.0]
    assert inputs["text"]["values"] == ["é", "\\xff"]
    assert inputs["flag"]["values"] == [True, False]


def test_a_tensor_that_contradicts_itself_spoils_only_its_own_place() -> None:
    record = make_record(inputs=(Tensor("x", "FP32", (2,), b"\0\0\0"),))
    assert "x FP32[2] (unreadable) -> y INT64[1] 1" in reader.render_line(logged(record))
    assert json.loads(reader.render_json(logged(record)))["inputs"]["x"]["values"] is None


def test_what_stands_for_a_tensor_is_told_instead_of_values() -> None:
    statistics = Reduced(kind="stat", statistics={"mean": 0.5}, digest=b"\xab" * 16)
    inputs = {"x": LoggedTensor("FP32", (9,), statistics), "t": LoggedTensor("BYTES", (1,), None)}
    record = prediction(1, inputs=inputs)
    assert "x FP32[9] (stat), t BYTES[1] (redacted) -> " in reader.render_line(record)
    told = json.loads(reader.render_json(record))["inputs"]
    assert told["x"] == {
        "datatype": "FP32",
        "shape": [9],
        "is_whole": False,
        "values": None,
        "statistics": {"mean": 0.5},
        "digest": "ab" * 16,
        "kept": "stat",
    }
    assert told["t"]["kept"] == "redacted"


def test_subject_and_schema_are_hex_in_json() -> None:
    told = json.loads(reader.render_json(prediction(1, subject=b"\x01\xff", columns=b"\xee")))
    assert (told["subject"], told["columns"]) == ("01ff", "ee")
