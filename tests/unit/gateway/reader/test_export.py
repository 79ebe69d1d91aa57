"""Windows as Parquet files, in bounded memory."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
import redis

from engines.tensors import encode_bytes
from gateway.prediction_log import reader
from gateway.prediction_log.reader import export, reading
from gateway.prediction_log.reader.entries import Window
from gateway.prediction_log.record import LoggedTensor
from gateway.prediction_log.streams import StreamKind
from tests.support.log_streams import STARTED_MS, drop, label, prediction, put

pytestmark = pytest.mark.redis


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", 10)
    monkeypatch.setattr(reader.entries, "PAGE", 10)
    monkeypatch.setattr(export, "ROW_GROUP", 20)


def what(**changes: Any) -> reader.What:  # Any: fields of What
    fields: dict[str, Any] = {"name": "digits", "labels": False}  # Any: as above
    return reader.What(**fields | changes)


def rows(path: Path) -> list[dict[str, Any]]:  # Any: values of a table
    found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return found


def test_a_file_has_the_rows_of_the_window_in_groups(client: redis.Redis, tmp_path: Path) -> None:
    put(client, [prediction(n) for n in range(1, 101)])
    drop(client, [50])
    path = tmp_path / "digits.parquet"
    window = Window.of((STARTED_MS + 11) / 1e3, None)
    exported = reader.export_parquet(client, path, what(window=window))
    assert exported.rows == 89
    found = rows(path)
    assert [row["seq"] for row in found] == [n for n in range(11, 101) if n != 50]
    assert found[0]["in.x.0"] == 11.0
    assert found[0]["ts"].isoformat() == "2026-01-01T00:00:00.011000"
    with parquet.ParquetFile(path) as file:
        assert file.num_row_groups == 5
        told = json.loads(file.metadata.metadata[export.COMPLETENESS_KEY])
    assert told["missing"] == 1
    assert told["workers"][0]["gaps"] == [{"first": 50, "last": 50, "cause": "not in the stream"}]
    assert [p.name for p in tmp_path.iterdir()] == ["digits.parquet"]


def test_labels_are_joined_if_they_are_wanted(client: redis.Redis, tmp_path: Path) -> None:
    put(client, [prediction(n) for n in range(1, 31)])
    put(client, [label(25, 7)], kind=StreamKind.LABELS)
    path = tmp_path / "digits.parquet"
    reader.export_parquet(client, path, what(labels=True))
    assert [row["seq"] for row in rows(path) if row["label"] == 7] == [25]


def test_columns_that_come_late_or_change_are_in_one_file(
    client: redis.Redis, tmp_path: Path
) -> None:
    text = LoggedTensor("BYTES", (1,), encode_bytes([b"a"]))
    narrow = LoggedTensor("INT8", (1,), struct.pack("<b", -3))
    put(client, [prediction(n) for n in range(1, 31)])
    put(client, [prediction(n, inputs={"t": text}) for n in range(31, 61)])
    put(client, [prediction(n, outputs={"y": narrow}) for n in range(61, 81)])
    put(client, [prediction(n, outputs={}) for n in range(81, 91)])
    path = tmp_path / "digits.parquet"
    exported = reader.export_parquet(client, path, what())
    assert exported.rows == 90
    found = rows(path)
    assert [row["seq"] for row in found] == list(range(1, 91))
    assert [row["in.t"] for row in found] == [None] * 30 + ["a"] * 30 + [None] * 30
    assert [row["out.y"] for row in found[:80]] == [*range(1, 61), *[-3] * 20]
    assert all(row["out.y"] is None or row["out.y"] != row["out.y"] for row in found[80:])
    assert found[35]["in.x.0"] is None or found[35]["in.x.0"] != found[35]["in.x.0"]
    assert [p.name for p in tmp_path.iterdir()] == ["digits.parquet"]


def test_numbers_that_become_text_are_text_throughout(client: redis.Redis, tmp_path: Path) -> None:
    text = LoggedTensor("BYTES", (1,), encode_bytes([b"five"]))
    put(client, [prediction(n) for n in range(1, 31)])
    put(client, [prediction(n, outputs={"y": text}) for n in range(31, 61)])
    path = tmp_path / "digits.parquet"
    assert reader.export_parquet(client, path, what()).rows == 60
    found = [row["out.y"] for row in rows(path)]
    assert found == [*map(str, range(1, 31)), *["five"] * 30]


def test_a_window_of_nothing_is_a_file_of_no_rows(client: redis.Redis, tmp_path: Path) -> None:
    path = tmp_path / "none.parquet"
    assert reader.export_parquet(client, path, what(name="nobody")).rows == 0
    assert rows(path) == []


def test_what_fails_leaves_the_earlier_file_and_no_parts(
    client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(client, [prediction(n) for n in range(1, 61)])
    path = tmp_path / "digits.parquet"
    path.write_bytes(b"earlier")
    real, calls = reading.Reading.columns, []

    def failing(self: reading.Reading, records: Any) -> Any:  # Any: as the real one's
        calls.append(len(records))
        if len(calls) > 4:
            raise redis.ConnectionError("gone")
        return real(self, records)

    monkeypatch.setattr(reading.Reading, "columns", failing)
    with pytest.raises(redis.ConnectionError):
        reader.export_parquet(client, path, what())
    assert path.read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["digits.parquet"]


def test_a_folder_that_is_not_there_is_an_error(client: redis.Redis, tmp_path: Path) -> None:
    put(client, [prediction(1)])
    with pytest.raises(OSError, match="nowhere"):
        reader.export_parquet(client, tmp_path / "nowhere" / "a.parquet", what())
