"""Windows as tables, from a real Redis: rows, labels, repeats, gaps."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import redis

from gateway.prediction_log import reader
from gateway.prediction_log.reader import entries, reading
from gateway.prediction_log.record import LoggedPrediction, LoggedTensor, Reduced
from gateway.prediction_log.streams import StreamKind, erased_key, schema_key
from tests.support.log_streams import (
    KEY,
    STARTED_MS,
    WORKER,
    audit,
    drop,
    floats,
    label,
    prediction,
    put,
)

pytestmark = pytest.mark.redis
SHADOW = StreamKind.SHADOW


def at(number: float) -> float:
    """Return the moment of a record in seconds."""
    return (STARTED_MS + number) / 1e3


def numbers(frame: reader.Frame) -> list[int]:
    return [int(number) for number in frame.columns["seq"]]


def gaps(frame: reader.Frame) -> list[tuple[str, str, str]]:
    return [
        (str(worker.kind), str(gap.numbers), gap.cause)
        for worker in frame.completeness.workers
        for gap in worker.gaps
    ]


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "PAGE", 7)
    monkeypatch.setattr(reading, "CHUNK", 20)


def test_a_gap_made_on_purpose_is_named_exactly(client: redis.Redis) -> None:
    put(client, [prediction(n) for n in range(1, 101)])
    put(client, [audit(200, 100, is_final=True)])
    drop(client, [13, 40, 41, 42, 99])
    frame = reader.read_frame(client, "digits")
    assert numbers(frame) == [n for n in range(1, 101) if n not in (13, 40, 41, 42, 99)]
    assert gaps(frame) == [
        ("live", "13", "not in the stream"),
        ("live", "40-42", "not in the stream"),
        ("live", "99", "not in the stream"),
    ]
    assert frame.completeness.percent == 95.0


def test_a_dropped_record_is_named_with_its_reason(client: redis.Redis) -> None:
    put(client, [prediction(n) for n in range(1, 31) if n not in (8, 9)])
    put(client, [audit(40, 30, {"queue_bytes": 2}, is_final=True)])
    assert gaps(reader.read_frame(client, "digits")) == [("live", "8-9", "queue_bytes")]


def test_a_window_in_the_middle_has_its_own_gaps_only(client: redis.Redis) -> None:
    put(client, [prediction(n) for n in range(1, 101)])
    drop(client, [5, 50, 95])
    frame = reader.read_frame(client, "digits", since=at(30), until=at(80))
    assert numbers(frame) == [n for n in range(30, 80) if n != 50]
    assert gaps(frame) == [("live", "50", "not in the stream")]
    assert frame.completeness.unknown_ends == ()
    again = reader.read_frame(client, "digits", since=f"{STARTED_MS + 30}-0")
    assert numbers(again)[0] == 30


def test_a_trimmed_head_is_no_gap(client: redis.Redis) -> None:
    put(client, [prediction(n) for n in range(1, 101)])
    client.xtrim(KEY, minid=f"{STARTED_MS + 61}-0", approximate=False)
    drop(client, [70])
    frame = reader.read_frame(client, "digits")
    assert numbers(frame)[0] == 61
    assert gaps(frame) == [("live", "70", "not in the stream")]
    assert reader.read_frame(client, "digits", since=at(20)).completeness.missing == 1


def test_large_records_may_come_behind_the_end_of_the_window(client: redis.Redis) -> None:
    late = prediction(10, inputs={"x": LoggedTensor("FP32", (1, 9), Reduced(kind="stat"))})
    put(client, [prediction(n) for n in range(1, 31) if n not in (10, 11)])
    put(client, [late])
    frame = reader.read_frame(client, "digits", until=at(30))
    assert 10 not in numbers(frame)
    assert gaps(frame) == [("live", "11", "not in the stream")]
    whole = reader.read_frame(client, "digits")
    assert sorted(numbers(whole)) == [n for n in range(1, 31) if n != 11]
    assert numbers(whole)[9] == 10  # rows are in order of time


def test_replicas_are_one_table_in_order_of_time(client: redis.Redis) -> None:
    for number in range(1, 61):
        replica = "ab"[number % 2]
        record = prediction(number, worker=f"{replica}@{STARTED_MS:x}", seq=(number + 1) // 2)
        put(client, [record], replica=replica)
    frame = reader.read_frame(client, "digits")
    assert frame.columns["cid"].tolist() == [f"c{n}" for n in range(1, 61)]
    assert frame.completeness.is_complete
    assert len(frame.completeness.workers) == 2


def test_what_stands_twice_is_read_once(client: redis.Redis) -> None:
    put(client, [prediction(n) for n in (1, 2, 3)])
    put(client, [prediction(2), prediction(4)], at_ms=STARTED_MS + 50)
    frame = reader.read_frame(client, "digits")
    assert numbers(frame) == [1, 2, 3, 4]
    assert frame.completeness.repeats == 1


def test_rows_are_exploded_and_columns_named(client: redis.Redis) -> None:
    client.hset(schema_key("digits"), b"d1", msgspec.json.encode({"x": ["age", "size"]}))
    client.hset(schema_key("digits"), b"d2", b"of a later version")
    put(
        client,
        [prediction(1, columns=b"d1"), prediction(2, columns=b"d1", inputs={"x": floats(2, 2)})],
    )
    frame = reader.read_frame(client, "digits")
    assert len(frame) == 3
    assert frame.columns["in.x.age"].tolist() == [1, 0, 2]
    assert frame.columns["in.x.size"].tolist() == [2, 1, 3]


def test_labels_are_joined_also_those_that_came_after_the_window(client: redis.Redis) -> None:
    put(client, [prediction(n) for n in range(1, 21)])
    corrected = label(2, 7, seq=3, version=1)
    put(client, [label(1, 5), label(2, 6), corrected], kind=StreamKind.LABELS)
    frame = reader.read_frame(client, "digits", until=at(11))
    assert frame.columns["label"][:2].tolist() == [5, 7]
    assert np.isnan(frame.columns["label"][2:]).all()
    assert (frame.coverage.records, frame.coverage.labelled) == (10, 2)
    assert frame.coverage.delay_p50_s == pytest.approx(0.5)
    assert frame.completeness.is_complete
    assert "label" not in reader.read_frame(client, "digits", labels=False).columns


def test_a_lost_label_is_named_as_one_and_is_no_lost_prediction(client: redis.Redis) -> None:
    put(client, [prediction(n) for n in (1, 2, 3)])
    put(client, [label(n, 1) for n in (1, 3)], kind=StreamKind.LABELS)
    put(client, [audit(900, 3, {"disk_full": 1}, kind=StreamKind.LABELS)])
    frame = reader.read_frame(client, "digits")
    assert gaps(frame) == [("labels", "2", "disk_full")]
    assert frame.completeness.is_complete


def test_shadows_have_a_frame_and_a_completeness_of_their_own(client: redis.Redis) -> None:
    put(client, [prediction(n) for n in (1, 2, 3)])
    shadows = [
        prediction(n, is_shadow=True, parent_rid=prediction(n).rid, rid=prediction(n + 50).rid)
        for n in (1, 3)
    ]
    put(client, shadows, kind=SHADOW)
    put(client, [label(3, 9)], kind=StreamKind.LABELS)
    put(client, [audit(90, 4, {"queue_bytes": 2}, kind=SHADOW)])
    frame = reader.read_frame(client, "digits", kind=SHADOW)
    assert numbers(frame) == [1, 3]
    assert frame.columns["label"][1] == 9
    assert ("shadow", "2", "queue_bytes") in gaps(frame)
    assert ("shadow", "4", "queue_bytes") in gaps(frame)
    assert frame.completeness.percent == 50.0


def test_an_erasure_is_no_loss(client: redis.Redis) -> None:
    put(client, [prediction(n) for n in range(1, 11)])
    drop(client, [4, 5, 7])
    client.hset(erased_key("digits"), f"{WORKER}/live", b"[[4,5]]")
    client.hset(erased_key("digits"), "of a later/version", b"[[7,7]]")
    frame = reader.read_frame(client, "digits")
    assert gaps(frame) == [("live", "4-5", "erased"), ("live", "7", "not in the stream")]
    assert frame.completeness.missing == 1


def test_entries_that_are_no_records_are_counted(client: redis.Redis) -> None:
    put(client, [prediction(1)])
    for blob in (b"\x07new", b"\x01broken", b""):
        client.xadd(KEY, {"r": blob}, id=f"{STARTED_MS + 1}-*")
    frame = reader.read_frame(client, "digits")
    assert (len(frame), frame.completeness.unreadable) == (1, 3)
    assert "3 entries were no records of a known codec" in frame.completeness.text()


def test_sealed_tensors_are_opened_by_whoever_can(client: redis.Redis) -> None:
    class Opened:
        def open(self, records: Sequence[LoggedPrediction]) -> list[LoggedPrediction]:
            return [msgspec.structs.replace(r, inputs={"x": floats(1, start=7)}) for r in records]

    put(client, [prediction(1, inputs={"x": LoggedTensor("FP32", (1,), Reduced(kind="seal"))})])
    assert reader.read_frame(client, "digits").columns["in.x.kept"].tolist() == ["seal"]
    assert reader.read_frame(client, "digits", opener=Opened()).columns["in.x"].tolist() == [7]


def test_where_there_is_nothing_the_frame_is_empty(client: redis.Redis) -> None:
    frame = reader.read_frame(client, "nobody")
    assert len(frame) == 0
    assert {"rid", "ts", "label"} <= set(frame.columns)
    assert frame.completeness.percent == 100.0
    assert len(frame.pandas()) == frame.arrow().num_rows == 0


def test_a_group_is_given_each_record_once_and_again_until_it_is_acknowledged(
    client: redis.Redis,
) -> None:
    put(client, [prediction(n) for n in range(1, 31)])
    put(client, [label(3, 9)], kind=StreamKind.LABELS)
    first = reader.read_frame(client, "digits", group="monitor", since=at(3))
    assert numbers(first) == list(range(3, 31))
    assert first.columns["label"][0] == 9
    assert first.completeness.is_complete
    assert numbers(reader.read_frame(client, "digits", group="monitor")) == list(range(3, 31))
    first.acknowledge()
    put(client, [prediction(31)])
    assert numbers(reader.read_frame(client, "digits", group="monitor")) == [31]
    with pytest.raises(ValueError, match="no `until`"):
        reader.read_frame(client, "digits", group="monitor", until=at(5))


def test_pandas_has_times_categories_and_numbers(client: redis.Redis) -> None:
    put(client, [prediction(1), prediction(2, served="stable")])
    table = reader.read_frame(client, "digits").pandas()
    assert list(table["in.x.0"]) == [1.0, 2.0]
    assert list(table["served"]) == ["canary", "stable"]
    assert str(table["served"].dtype) == "category"
    assert str(table["ts"].dtype) == "datetime64[us]"
    assert table["ts"][0].isoformat() == "2026-01-01T00:00:00.001000"
    assert table.groupby("served", observed=True)["out.y"].sum().to_dict() == {
        "canary": 1,
        "stable": 2,
    }


def test_arrow_has_the_same(client: redis.Redis) -> None:
    put(client, [prediction(1), prediction(2, served="stable")])
    put(client, [label(2, {"is": ["a"]})], kind=StreamKind.LABELS)
    table = reader.read_frame(client, "digits").arrow()
    assert table.column("in.x.0").to_pylist() == [1.0, 2.0]
    assert table.column("served").to_pylist() == ["canary", "stable"]
    assert str(table.schema.field("served").type).startswith("dictionary")
    assert table.column("label").to_pylist() == [None, '{"is":["a"]}']


@pytest.mark.parametrize("module", ["pandas", "pyarrow"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    frame = reader.read_frame(client, "digits")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        reader.MissingExtra, match=rf"needs {module}: pip install 'sluice-gateway\[reader\]'"
    ):
        frame.pandas() if module == "pandas" else frame.arrow()


def test_reading_needs_neither_pandas_nor_pyarrow(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(client, [prediction(1)])
    really = builtins.__import__

    def guarded(name: str, *arguments: Any) -> Any:  # Any: whatever __import__ takes and gives
        assert name.partition(".")[0] not in ("pandas", "pyarrow")
        return really(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", guarded)
    assert len(reader.read_frame(client, "digits")) == 1
