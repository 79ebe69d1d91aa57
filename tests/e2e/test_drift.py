"""`sluice drift` as a person runs it: one process, a real Redis, files and exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pytest
import redis

from gateway.demo.redis_server import RedisServer
from gateway.drift import tables
from gateway.prediction_log.record import LoggedPrediction
from gateway.prediction_log.streams import StreamKind
from tests.support.drift import label_of, prediction, predictions, write
from tests.support.redis import running_redis

pytestmark = [pytest.mark.redis]

ROOT: Final = Path(__file__).parents[2]
LIMIT_S: Final = 20.0
COMMAND: Final = (
    "import argparse, sys; from gateway.cli import drift; top = argparse.ArgumentParser('sluice');"
    "drift.add_parser(top.add_subparsers(required=True)); given = top.parse_args(sys.argv[1:]);"
    "sys.exit(given.run(given))"
)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with running_redis(append_only=False) as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url, protocol=2) as connected:
        yield connected


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """Return a file of standard normal features under their bare names."""
    random = np.random.default_rng(99)
    path = tmp_path / "ref.parquet"
    tables.write(path, {f"in.x.{n}": random.normal(size=2_000) for n in range(4)})
    return path


def words(server: RedisServer, *arguments: object) -> list[str]:
    given = ["drift", "--model", "digits", "--redis", server.url, *map(str, arguments)]
    return [sys.executable, "-c", COMMAND, *given]


def finished(server: RedisServer, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words(server, *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@contextmanager
def following(server: RedisServer, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a monitor that has begun."""
    process = subprocess.Popen(
        words(server, "--follow", *arguments),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=LIMIT_S)


def said(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """Return what a line on standard error says, when it comes."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        found = re.search(pattern, line)
        if found is not None:
            return found
    raise AssertionError(f"{pattern!r} is not in {seen}")


def document(process: subprocess.Popen[str]) -> Any:  # Any: JSON
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def test_the_same_data_is_no_drift_and_shifted_data_is(
    server: RedisServer, client: redis.Redis, reference: Path, tmp_path: Path
) -> None:
    write(client, predictions(1, 500))
    page = tmp_path / "drift.html"
    quiet = finished(server, "--reference", reference, "--html", page)
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert quiet.stdout.startswith("digits: NO DRIFT: 0 of 4 features\n")
    assert "100 % complete: 500 of 500 live records" in quiet.stdout
    assert "not in the reference, so not judged: out.label" in quiet.stdout
    assert "NO DRIFT" in page.read_text()
    write(client, predictions(2, 500, first=501, shift=1.0))
    loud = finished(server, "--reference", reference, "--html", page, "--json")
    assert loud.returncode == 3
    found = json.loads(loud.stdout)
    assert (found["verdict"], found["kinds"]) == ("drift", ["data"])
    assert [column["is_drifted"] for column in found["columns"]] == [True] * 4
    assert "DRIFT (data)" in page.read_text()


def test_a_reference_is_made_from_the_log_and_names_nobody(
    server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    write(client, predictions(1, 400))
    path = tmp_path / "ref.parquet"
    made = subprocess.run(
        [
            sys.executable, "-c", COMMAND, "drift", "reference",
            "--model", "digits", "--redis", server.url, "--out", str(path),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert (made.returncode, made.stderr) == (0, "")
    assert f"{path}: 400 rows, 5 columns\n100 % complete" in made.stdout
    assert set(tables.read(path)) == {
        "in.x.0", "in.x.1", "in.x.2", "in.x.3", "out.label", "row", "status", "weight",
    }  # fmt: skip
    write(client, predictions(2, 300, first=401))
    judged = finished(server, "--reference", path)
    assert judged.returncode == 0
    assert "0 of 4 features, 0 of 1 outputs" in judged.stdout


def test_a_gap_in_the_log_is_named_in_the_report(
    server: RedisServer, client: redis.Redis, reference: Path
) -> None:
    records = predictions(1, 200)
    write(client, [*records[:50], *records[53:]])
    found = finished(server, "--reference", reference)
    assert found.returncode == 0
    assert "98.50 % complete: 197 of 200 live records" in found.stdout
    assert "missing 3: w1 live 51-53, not in the stream" in found.stdout


def test_a_monitor_follows_window_after_window_and_says_when_the_verdict_turns(
    server: RedisServer, client: redis.Redis, reference: Path, tmp_path: Path
) -> None:
    page = tmp_path / "drift.html"
    options = ("--reference", reference, "--window", 100, "--html", page, "--windows", 4)
    with following(server, *options, "--metrics", "127.0.0.1:0") as process:
        at = said(process, r"metrics at (http://\S+)")[1]
        said(process, "following 'digits'")
        write(client, predictions(1, 200))
        assert process.stdout is not None
        assert process.stdout.readline() == "digits: NO DRIFT: 0 of 4 features\n"
        write(client, predictions(2, 100, first=201, shift=1.0))
        text = ""
        while "DRIFT (data): 4 of 4 features" not in text:
            line = process.stdout.readline()
            assert line
            text += line
        # The second window had the same verdict as the first: nothing was said of it.
        assert text.count("digits: ") == 1
        samples = _scraped(at, "sluice_drift_records_total", 300.0)
        assert samples['sluice_drift{kind="data",model="digits"}'] == 1.0
        assert samples['sluice_drift_column_drifted{column="in.x.0",model="digits"}'] == 1.0
        assert samples['sluice_drift_windows_total{model="digits"}'] == 3.0
        assert "DRIFT (data)" in page.read_text()
        write(client, predictions(3, 100, first=301))
        rest, errors = process.communicate(timeout=LIMIT_S)
        assert "digits: NO DRIFT" in rest
        assert (process.returncode, errors) == (0, "")


def test_a_monitor_that_is_killed_reads_its_open_window_again_and_nothing_twice(
    server: RedisServer, client: redis.Redis, reference: Path
) -> None:
    options = ("--reference", reference, "--window", 100, "--json")
    with following(server, *options) as process:
        said(process, "following")
        write(client, predictions(1, 150))
        assert document(process)["window"]["records"] == 100
        _until_pending(client, 50)
        os.kill(process.pid, signal.SIGKILL)
    again = predictions(2, 50, first=151)
    # A gateway that resends after an outage may write a record twice.
    write(client, [*again[:20], *again[:20], *again[20:]])
    with following(server, *options, "--windows", 1) as process:
        found = document(process)
        assert found["window"]["records"] == 100
        assert found["window"]["rows"] == 100
        assert "20 repeats were left out" in found["window"]["completeness"]
        process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0
    assert _pending(client) == 0


def test_windows_of_several_replicas_are_full_and_nothing_is_read_twice(
    server: RedisServer, client: redis.Redis, reference: Path
) -> None:
    options = ("--reference", reference, "--window", 99, "--json", "--since", "2026-01-01")
    for replica in ("r1", "r2", "r3"):
        records = [
            msgspec.structs.replace(record, worker=replica, rid=record.rid[:14] + replica.encode())
            for record in predictions(1, 44)
        ]
        write(client, records, replica=replica)
    with following(server, *options, "--windows", 1) as process:
        assert document(process)["window"]["records"] == 99
        process.communicate(timeout=LIMIT_S)
    with following(server, *options, "--windows", 1) as process:
        write(client, predictions(2, 66, first=45))
        found = document(process)["window"]
        assert found["records"] == 99
        assert "repeats" not in found["completeness"]


def test_a_window_that_cannot_be_judged_does_not_end_a_monitor_that_worked(
    server: RedisServer, client: redis.Redis, reference: Path
) -> None:
    options = ("--reference", _bare(reference), "--window", 50, "--json", "--windows", 3)
    with following(server, *options) as process:
        said(process, "following")
        write(client, predictions(1, 50))
        assert document(process)["window"]["number"] == 1
        strange = [
            msgspec.structs.replace(record, inputs={"other": record.inputs["x"]}, outputs={})
            for record in predictions(2, 50, first=51, columns=7)
        ]
        write(client, strange)
        said(process, "window 2: none of the columns of bare.parquet")
        write(client, predictions(3, 50, first=101))
        assert document(process)["window"]["number"] == 3
        process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0


def test_sigterm_ends_a_monitor_with_the_last_verdict(
    server: RedisServer, client: redis.Redis, reference: Path
) -> None:
    options = ("--reference", reference, "--window", 50, "--json")
    with following(server, *options) as process:
        said(process, "following")
        write(client, predictions(1, 50, shift=2.0))
        assert document(process)["kinds"] == ["data"]
        process.terminate()
        _, errors = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, errors) == (3, "")


def test_a_redis_that_is_killed_and_comes_back_is_followed_on(reference: Path) -> None:
    with (
        running_redis() as server,
        redis.Redis.from_url(server.url, protocol=2) as client,
        following(server, "--reference", reference, "--window", 50, "--json") as process,
    ):
        said(process, "following")
        write(client, predictions(1, 80))
        assert document(process)["window"]["number"] == 1
        server.kill()
        said(process, "Redis is away, trying on")
        server.start()
        write(client, predictions(2, 20, first=81))
        found = document(process)
        assert (found["window"]["number"], found["window"]["records"]) == (2, 50)
        assert "100 % complete: 100 of 100 live records" in found["window"]["completeness"]


def test_labels_turn_into_concept_drift_one_shot_and_followed(
    server: RedisServer, client: redis.Redis, reference: Path
) -> None:
    records, truths = _judged_by_labels(1, 600, wrong_from=1_000)
    write(client, records)
    write(client, truths, kind=StreamKind.LABELS)
    path = reference.with_name("labelled.parquet")
    made = subprocess.run(
        [
            sys.executable, "-c", COMMAND, "drift", "reference", "--labels",
            "--model", "digits", "--redis", server.url, "--out", str(path),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    good = finished(server, "--reference", path, "--labels")
    assert good.returncode == 0, good.stdout
    assert "600 of 600 records have a label" in good.stdout
    options = ("--reference", path, "--labels", "--window", 100, "--json", "--windows", 3)
    with following(server, *options) as process:
        said(process, "following")
        records, truths = _judged_by_labels(601, 300, wrong_from=701)
        write(client, truths, kind=StreamKind.LABELS)
        write(client, records)
        kinds = [document(process)["kinds"] for _ in range(3)]
        process.communicate(timeout=LIMIT_S)
        assert process.returncode == 3
    assert kinds[0] == []
    assert kinds[-1] == ["concept"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--reference", "/nowhere.parquet"), 2, "cannot read /nowhere.parquet: No such file"),
        ((), 2, "say what it is compared with: --reference FILE"),
        (("--reference", __file__), 2, "is no Parquet file"),
        (("--reference", "REF", "--evidently", "x.html"), 2, "needs --evidently-python"),
        (("--reference", "REF", "--follow", "--until", "1h"), 2, "do not go with --follow"),
        (("--reference", "REF"), 1, "the log has nothing of 'digits'; it has no name at all"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    server: RedisServer, reference: Path, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    given = [str(reference) if word == "REF" else word for word in arguments]
    ran = finished(server, *given)
    assert ran.returncode == code
    assert sentence in ran.stderr
    assert "Traceback" not in ran.stderr


def test_too_few_records_are_not_judged(
    server: RedisServer, client: redis.Redis, reference: Path
) -> None:
    write(client, predictions(1, 20))
    ran = finished(server, "--reference", reference)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "20 rows are too few to judge; it takes 30" in ran.stderr


def _bare(reference: Path) -> Path:
    """Return a reference of names that other logs do not have."""
    path = reference.with_name("bare.parquet")
    table = tables.read(reference)
    tables.write(path, {f"x.{n}": table[f"in.x.{n}"] for n in range(4)})
    return path


def _judged_by_labels(
    first: int, count: int, *, wrong_from: int
) -> tuple[list[LoggedPrediction], list[Any]]:
    """Return records and labels: one in twenty is wrong, and every second from a number on."""
    random = np.random.default_rng(first)
    values = random.normal(size=(count, 4)).astype(np.float32)
    records = [prediction(first + n, values[n], int(values[n, 0] > 0)) for n in range(count)]
    truths = []
    for n, record in enumerate(records):
        is_wrong = (first + n) % (2 if first + n >= wrong_from else 20) == 0
        truths.append(label_of(record, int(values[n, 0] > 0) ^ is_wrong, seq=first + n))
    return records, truths


def _scraped(url: str, name: str, value: float) -> dict[str, float]:
    """Return all samples, when one of them has its value."""
    samples: dict[str, float] = {}
    for _ in range(100):
        with urllib.request.urlopen(url, timeout=5) as answer:
            lines = [line for line in answer.read().decode().splitlines() if line[0] != "#"]
        samples = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}
        if samples.get(f'{name}{{model="digits"}}') == value:
            return samples
    raise AssertionError(samples)


def _pending(client: redis.Redis) -> int:
    found: Any = client.xpending("pl:{digits}:r1", "drift")  # Any: as redis-py types it
    return int(found["pending"])


def _until_pending(client: redis.Redis, count: int) -> None:
    for _ in range(2_000):
        if _pending(client) == count:
            return
    raise AssertionError(_pending(client))
