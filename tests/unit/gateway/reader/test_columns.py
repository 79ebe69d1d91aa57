"""Records to columns: rows, names, types, and what is absent."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest

from engines.tensors import BYTES, DATATYPES, encode_bytes
from gateway.ids import as_text
from gateway.prediction_log.reader import tensors
from gateway.prediction_log.reader.columns import META, join_columns, take_rows, to_columns
from gateway.prediction_log.record import LoggedTensor
from tests.support.log_streams import STARTED_MS, floats, prediction


def test_a_record_of_one_row_is_one_row() -> None:
    record = prediction(7, subject=b"\x01" * 16, parent_rid=prediction(6).rid)
    columns = to_columns([record])
    assert list(columns)[: len(META)] == list(META)
    row = {name: column[0] for name, column in columns.items()}
    assert row["rid"] == as_text(record.rid)
    assert row["parent_rid"] == as_text(prediction(6).rid)
    assert row["ts"] == np.datetime64(STARTED_MS + 7, "ms")
    assert (row["row"], row["seq"], row["worker"]) == (0, 7, record.worker)
    assert (row["name"], row["model"], row["version"], row["served"]) == (
        "digits",
        "digits",
        "2",
        "canary",
    )
    assert (row["status"], row["weight"], row["cid"], row["total_us"]) == (200, 1.0, "c7", 500)
    assert row["subject"] == "01" * 16
    assert (row["in.x.0"], row["in.x.1"], row["out.y"]) == (7.0, 8.0, 7)
    assert columns["out.y"].dtype == np.int64
    assert columns["in.x.0"].dtype == np.float32


def test_a_record_of_several_rows_is_exploded_and_the_rest_repeats() -> None:
    many = prediction(2, inputs={"x": floats(3, 2)}, outputs={"y": floats(3, 1, start=10)})
    columns = to_columns([prediction(1, outputs={}), many, prediction(3, outputs={})])
    assert columns["row"].tolist() == [0, 0, 1, 2, 0]
    assert columns["seq"].tolist() == [1, 2, 2, 2, 3]
    assert columns["in.x.0"].tolist() == [1, 0, 2, 4, 3]
    assert columns["in.x.1"].tolist() == [2, 1, 3, 5, 4]
    assert columns["out.y"][1:4].tolist() == [10, 11, 12]
    assert np.isnan(columns["out.y"][[0, 4]]).all()


def test_a_tensor_with_another_first_axis_is_given_whole_to_every_row() -> None:
    inputs = {"x": floats(2, 1), "limits": floats(3), "scalar": floats()}
    columns = to_columns([prediction(1, inputs=inputs, outputs={})])
    assert columns["in.x"].tolist() == [0, 1]
    assert [columns[f"in.limits.{i}"].tolist() for i in range(3)] == [[0, 0], [1, 1], [2, 2]]
    assert columns["in.scalar"].tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(0, 2), ()])
def test_no_record_vanishes(shape: tuple[int, ...]) -> None:
    records = [
        prediction(1, inputs={"x": floats(*shape)}, outputs={}),
        prediction(2, inputs={}, outputs={}, error="QueueFull", status=429),
        prediction(3, inputs={}, outputs={"y": floats(2, 1)}),
    ]
    columns = to_columns(records)
    assert columns["seq"].tolist() == [1, 2, 3, 3]
    assert columns["error"].tolist() == ["", "QueueFull", "", ""]


def test_columns_have_the_names_that_their_record_s_schema_gives_them() -> None:
    names = {b"a": {"x": ["age", "height"]}, b"b": {"x": ["age"]}}
    image = prediction(4, inputs={"x": floats(1, 2, 2)}, columns=b"a")
    records = [prediction(1, columns=b"a"), prediction(2, columns=b"b"), prediction(3), image]
    columns = to_columns(records, names=names)
    assert columns["in.x.age"][0] == 1
    assert columns["in.x.height"][0] == 2
    assert columns["in.x.0"][1:3].tolist() == [2, 3]
    assert np.isnan(columns["in.x.age"][1:]).all()
    of_image = [columns[f"in.x.{at}"][3] for at in ("0.age", "0.height", "1.age", "1.height")]
    assert of_image == [0, 1, 2, 3]


@pytest.mark.parametrize("datatype", sorted(set(DATATYPES) - {BYTES}))
def test_every_datatype_becomes_its_values(datatype: str) -> None:
    wanted = [0, 1, 1, 0]
    data = np.array(wanted).astype(DATATYPES[datatype].dtype)
    if datatype == "BF16":
        data = (np.array(wanted, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    tensor = LoggedTensor(datatype, (4, 1), data.tobytes())
    column = to_columns([prediction(1, inputs={"x": tensor}, outputs={})])["in.x"]
    assert column.tolist() == wanted
    kept = np.float32 if datatype in ("BF16", "FP16") else DATATYPES[datatype].dtype
    assert column.dtype == kept


def test_bytes_become_text() -> None:
    elements = ["é".encode(), b"\xff", b"", b"a"]
    text = LoggedTensor(BYTES, (2, 2), encode_bytes(elements))
    columns = to_columns([prediction(1, inputs={"t": text}, outputs={}), prediction(2)])
    assert columns["in.t.0"].tolist() == ["é", "", None]
    assert columns["in.t.1"].tolist() == ["\\xff", "a", None]


def test_absent_numbers_are_nan_and_integers_with_absent_ones_are_floats() -> None:
    count = LoggedTensor("INT32", (1,), struct.pack("<i", 3))
    flag = LoggedTensor("BOOL", (1,), b"\x01")
    records = [prediction(1, inputs={"n": count, "f": flag}), prediction(2)]
    columns = to_columns(records)
    assert columns["in.n"].dtype == columns["in.f"].dtype == np.float64
    assert columns["in.n"][0] == 3
    assert columns["in.f"][0] == 1
    assert math.isnan(columns["in.n"][1])
    assert columns["in.x.0"].dtype == np.float32


def test_a_column_whose_datatype_changes_holds_both() -> None:
    narrow = LoggedTensor("INT8", (1,), b"\x05")
    text = LoggedTensor(BYTES, (1,), encode_bytes([b"five"]))
    records = [prediction(1, outputs={"y": narrow}), prediction(2)]
    assert to_columns(records)["out.y"].tolist() == [5, 2]
    mixed = to_columns([*records, prediction(3, outputs={"y": text})])["out.y"]
    assert mixed.tolist() == [5, 2, "five"]


def test_chunks_are_joined_and_what_one_lacks_is_absent() -> None:
    text = LoggedTensor(BYTES, (1,), encode_bytes([b"a"]))
    chunks = [
        to_columns([prediction(1), prediction(2)]),
        to_columns([prediction(3, inputs={"t": text})]),
    ]
    columns = join_columns(chunks)
    assert columns["seq"].tolist() == [1, 2, 3]
    assert columns["in.t"].tolist() == [None, None, "a"]
    assert columns["in.x.0"][:2].tolist() == [1, 2]
    assert math.isnan(columns["in.x.0"][2])
    assert columns["out.y"].dtype == np.int64
    assert columns["ts"].dtype == np.dtype("datetime64[us]")
    assert take_rows(columns, np.array([2, 0]))["seq"].tolist() == [3, 1]


def test_no_records_are_no_rows_of_the_usual_columns() -> None:
    columns = to_columns([])
    assert set(columns) == set(META)
    assert all(len(column) == 0 for column in columns.values())


def test_an_id_that_is_no_uuid_is_hex_and_equal_texts_are_one_object() -> None:
    columns = to_columns([prediction(1, rid=b"short"), prediction(2), prediction(3)])
    assert columns["rid"].tolist() == [
        b"short".hex(),
        as_text(prediction(2).rid),
        as_text(prediction(3).rid),
    ]
    assert columns["worker"][0] is columns["worker"][2]
    assert columns["parent_rid"].tolist() == ["", "", ""]


def test_a_wide_tensor_is_given_as_statistics_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MAX_COLUMNS", 3)
    values = np.array([[1, 2, 3, np.nan], [4, np.inf, 4, 4]], "<f4")
    wide = LoggedTensor("FP32", (2, 4), values.tobytes())
    columns = to_columns([prediction(1, inputs={"x": wide}, outputs={})])
    assert "in.x.0" not in columns
    assert columns["in.x.count"].tolist() == [4, 4]
    assert columns["in.x.nan"].tolist() == [1, 0]
    assert columns["in.x.inf"].tolist() == [0, 1]
    assert columns["in.x.min"].tolist() == [1, 4]
    assert columns["in.x.max"].tolist() == [3, 4]
    assert columns["in.x.mean"].tolist() == [2, 4]
    assert columns["in.x.std"] == pytest.approx([math.sqrt(2 / 3), 0])
    text = LoggedTensor(BYTES, (1, 4), encode_bytes([b"a", b"bb", b"", b"c"]))
    lengths = to_columns([prediction(1, inputs={"x": text}, outputs={})])
    assert (lengths["in.x.mean"][0], lengths["in.x.max"][0]) == (1, 2)
