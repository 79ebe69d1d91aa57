"""Every example of docs/prediction-log-reading.md runs, in its order, against a real Redis."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path

import pandas
import pyarrow.parquet as parquet
import pytest
import redis

from gateway.cli import main
from gateway.demo.redis_server import RedisServer
from gateway.ids import new_id
from gateway.prediction_log import reader
from gateway.prediction_log.streams import StreamKind
from tests.support.log_streams import label, prediction, put

pytestmark = pytest.mark.redis
DOCS = Path(__file__).parents[4] / "docs" / "prediction-log-reading.md"
EXAMPLE = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def write_now(client: redis.Redis, count: int) -> None:
    """Write records of this minute, half of them labelled."""
    start_ms = time.time_ns() // 1_000_000 - 60_000
    worker = f"gw-1@{start_ms - 1:x}"
    records = [
        prediction(n, rid=new_id(start_ms + n), ts_us=(start_ms + n) * 1_000, worker=worker)
        for n in range(1, count + 1)
    ]
    put(client, records)
    received_us = (start_ms + 30_000) * 1_000
    labels = [
        label(n, n, rid=records[2 * n - 1].rid, ts_us=received_us, received_us=received_us)
        for n in range(1, count // 2 + 1)
    ]
    put(client, labels, kind=StreamKind.LABELS)


def test_the_examples_run(
    server: RedisServer,
    client: redis.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_now(client, 100)
    monkeypatch.chdir(tmp_path)
    examples = EXAMPLE.findall(DOCS.read_text(encoding="utf-8"))
    assert [language for language, _ in examples].count("python") >= 7
    scope: dict[str, object] = {}
    for language, text in examples:
        if language == "python":
            code = text.replace("redis://127.0.0.1:6379/0", server.url)
            code = code.replace("out.label", "out.y")  # the demo's output, and the one here
            exec(compile(code, str(DOCS), "exec"), scope)
            continue
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if words[0] == "sluice":
                assert main.run([*words[1:], "--redis", server.url]) == 0, line
    printed = capsys.readouterr().out
    assert "100 % complete: 100 of 100 live records" in printed
    assert "50.0% labelled" in printed
    assert (scope["total"], scope["requests"]) == (100, 100.0)
    assert parquet.read_table(tmp_path / "digits.parquet").num_rows == 100


def test_the_columns_of_the_table_are_those_of_a_frame(client: redis.Redis) -> None:
    write_now(client, 4)
    table = reader.read_frame(client, "digits").pandas()
    assert isinstance(table, pandas.DataFrame)
    rows = [
        line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")
    ]
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row.split("|")[1])}
    meta = {name for name in table.columns if "." not in name and not name.startswith("label_")}
    assert named - {"label_ts", "label_delay_s"} == meta
