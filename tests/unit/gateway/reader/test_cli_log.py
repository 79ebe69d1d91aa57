"""`sluice log tail`, `stats` and `export`: what they print, and their exit codes."""

from __future__ import annotations

import argparse
import json
import struct
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import redis

from gateway.cli import log
from gateway.cli.log_client import moment
from gateway.demo.redis_server import RedisServer
from gateway.prediction_log.capture.policy import seal_context
from gateway.prediction_log.privacy.key_store import KEYS_KEY, key_field
from gateway.prediction_log.privacy.seal import SubjectKeys
from gateway.prediction_log.reader.show import render_line
from gateway.prediction_log.record import LoggedTensor
from gateway.prediction_log.streams import StreamKind
from tests.support.log_streams import KEY, STARTED_MS, WORKER, audit, drop, label, prediction, put
from tests.support.privacy import MASTER_KEY

pytestmark = pytest.mark.redis


def run(*words: str) -> int:
    """Run a command of `sluice log`."""
    parser = argparse.ArgumentParser(prog="sluice")
    log.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["log", *words])
    code: int = arguments.run(arguments)
    return code


@pytest.fixture
def source(server: RedisServer, client: redis.Redis) -> list[str]:
    """Return the words that name a Redis with ten records, of which one was deleted."""
    put(client, [prediction(n) for n in range(1, 11)])
    put(client, [label(3, 7, seq=1)], kind=StreamKind.LABELS)
    drop(client, [4])
    return ["--redis", server.url]


def test_tail_prints_lines_or_json(source: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tail", "--no-follow", "--count", "2", *source) == 0
    assert capsys.readouterr().out.splitlines() == [render_line(prediction(n)) for n in (9, 10)]
    assert run("tail", "digits", "--from-start", "--no-follow", "--json", *source) == 0
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [document["seq"] for document in documents] == [1, 2, 3, 5, 6, 7, 8, 9, 10]


def test_stats_tell_streams_groups_and_gaps(
    source: list[str], client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    client.xgroup_create(KEY, "drift", id=f"{STARTED_MS + 5}-0")
    client.xreadgroup("drift", "one", {KEY: ">"}, count=2)
    assert run("stats", *source) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "digits"
    assert lines[1].split() == ["STREAM", "KIND", "ENTRIES", "FIRST", "LAST", "MEMORY"]
    live = lines[2].split()
    assert live[:3] == [KEY, "live", "9"]
    assert live[3:5] == ["2026-01-01T00:00:00.001Z", "2026-01-01T00:00:00.010Z"]
    assert lines[3].split()[:3] == ["pl:{digits}:labels:gw-1", "labels", "1"]
    assert lines[4].split() == ["GROUP", "STREAM", "CONSUMERS", "PENDING", "LAG"]
    assert lines[5].split()[:4] == ["drift", KEY, "1", "2"]
    assert lines[6] == "  90.00 % complete: 9 of 10 live records"
    assert lines[7] == f"    missing 1: {WORKER} live 4, not in the stream"
    assert "  100 % complete: 1 of 1 label records" in lines


def test_stats_as_json_say_the_same_and_fast_ones_read_no_records(
    source: list[str], client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    put(client, [audit(20, 10, is_final=True)])
    assert run("stats", "digits", "nobody", "--json", *source) == 0
    digits, nobody = json.loads(capsys.readouterr().out)
    assert [(s["kind"], s["entries"]) for s in digits["streams"]] == [("live", 10), ("labels", 1)]
    assert digits["streams"][0]["first"] == f"{STARTED_MS + 1}-0"
    assert digits["streams"][0]["memory_bytes"] > 1_000
    live = digits["completeness"][0]
    assert (live["kind"], live["missing"], live["percent"]) == ("live", 1, 90.0)
    assert live["workers"][0]["end"] == "final audit"
    assert nobody == {"name": "nobody", "streams": [], "completeness": []}
    assert run("stats", "--fast", "--json", *source) == 0
    assert json.loads(capsys.readouterr().out)[0]["completeness"] == []


def test_stats_of_a_window_speak_of_its_gaps_only(
    source: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    since = f"{(STARTED_MS + 6) / 1e3:.3f}"
    assert run("stats", "--since", since, *source) == 0
    assert "100 % complete: 5 of 5 live records" in capsys.readouterr().out


def test_stats_of_an_empty_redis(
    server: RedisServer, client: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    assert client.dbsize() == 0
    assert run("stats", "--redis", server.url) == 0
    assert run("stats", "nobody", "--redis", server.url) == 0
    assert capsys.readouterr().out == "no records\nnobody\n  no records\n"


def test_export_writes_a_file_and_tells_what_is_missing(
    source: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "digits.parquet"
    words = ["export", "digits", "--parquet", str(path), "--labels", *source]
    assert run(*words) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{path}: 9 rows"
    assert told[1] == "90.00 % complete: 9 of 10 live records"
    table = parquet.read_table(path).to_pylist()
    assert [row["label"] for row in table if row["seq"] == 3] == [7]
    assert run(*words, "--since", f"{STARTED_MS + 9}-0", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["rows"], document["completeness"]["missing"]) == (2, 0)


def test_sealed_tensors_are_opened_with_the_configured_key(
    server: RedisServer,
    client: redis.Redis,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "master").write_text(f"{MASTER_KEY.hex()}\n")
    (tmp_path / "sluice.toml").write_text(
        f'[redis]\nurl = "{server.url}"\n'
        '[prediction_log.privacy]\nsubject = "header:x-user"\nkey_file = "keys"\n'
        'master_key_file = "master"\n'
    )
    tag, blobs = b"\x07" * 16, dict[str, bytes]()
    keys = SubjectKeys(
        MASTER_KEY,
        on_new_key=lambda tag, key_id, blob: blobs.update({key_field(tag, key_id): blob}),
        clock_ms=lambda: STARTED_MS,
    )
    record = prediction(1)
    data = struct.pack("<2f", 3, 4)
    sealed = keys.key_of(tag).seal(data, seal_context(record.rid, "x"))
    inputs = {"x": LoggedTensor("FP32", (1, 2), sealed)}
    put(client, [prediction(1, inputs=inputs, subject=tag)])
    path = tmp_path / "digits.parquet"
    words = ["export", "digits", "--parquet", str(path), "--config", str(tmp_path / "sluice.toml")]
    assert run(*words) == 0
    assert parquet.read_table(path).column("in.x.kept").to_pylist() == ["seal"]
    assert run(*words, "--unseal") == 0  # the key is not there: it was erased, as far as one knows
    assert parquet.read_table(path).column("in.x.kept").to_pylist() == ["erased"]
    for field, blob in blobs.items():
        client.hset(KEYS_KEY, field, blob)
    assert run(*words, "--unseal") == 0
    [row] = parquet.read_table(path).to_pylist()
    assert (row["in.x.0"], row["in.x.1"]) == (3, 4)
    capsys.readouterr()
    (tmp_path / "master").write_text(f"{'00' * 32}\n")
    assert run(*words, "--unseal") == 1
    assert "cannot write" in capsys.readouterr().err


def test_what_cannot_be_done_is_said_with_the_right_code(
    source: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = str(tmp_path / "a.parquet")
    assert run("export", "digits", "--parquet", str(tmp_path / "no" / "a"), *source) == 2
    assert f"--parquet: {tmp_path / 'no'} is not a folder" in capsys.readouterr().err
    assert run("export", "digits", "--parquet", str(tmp_path), *source) == 1
    assert "cannot write" in capsys.readouterr().err
    assert run("stats", "--redis", "redis://127.0.0.1:1") == 1
    assert "cannot read the prediction log" in capsys.readouterr().err
    assert run("stats", "--redis", "http://127.0.0.1:1") == 2
    absent = ["--config", str(tmp_path / "none.toml")]
    assert run("stats", *absent) == 2
    assert run("export", "digits", "--parquet", there, "--unseal", *absent, *source) == 2
    assert capsys.readouterr().err.count("none.toml: $: cannot read") == 2
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert run("export", "digits", "--parquet", there, *source) == 1
    assert "pip install 'sluice-gateway[reader]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["tail", "digts", "--no-follow"], 0),
        (["stats", "digts"], 0),
        (["export", "digts", "--parquet", "a.parquet"], 1),
    ],
)
def test_a_name_of_which_the_log_has_nothing_is_said(
    source: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*words, *source) == code
    assert capsys.readouterr().err == "sluice: the log has nothing of 'digts'; it has digits\n"
    assert not list(tmp_path.iterdir())


def test_a_window_without_records_is_not_called_complete(
    source: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = str(tmp_path / "a.parquet")
    assert run("export", "digits", "--parquet", there, "--until", "2020-01-01", *source) == 0
    assert capsys.readouterr().out.splitlines() == [f"{there}: 0 rows", "no live records"]


def test_moments_of_the_command_line() -> None:
    assert moment("2026-03-01T12:00") == datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert moment("2026-03-01T12:00+01:00") == datetime(2026, 3, 1, 11, tzinfo=UTC)
    assert moment("1767225600.5") == 1767225600.5
    assert moment("1767225600000-3") == "1767225600000-3"
    assert moment("(1767225600000-3") == "(1767225600000-3"
    for text, seconds in (("90s", 90), ("15m", 900), ("2h", 7_200), ("1.5d", 129_600)):
        found = moment(text)
        assert isinstance(found, float)
        assert time.time() - found == pytest.approx(seconds, abs=2)
    with pytest.raises(argparse.ArgumentTypeError, match="'yesterday' is no moment"):
        moment("yesterday")
