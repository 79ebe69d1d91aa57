"""The comparison of our session settings with onnxruntime's: that it measures what it says."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from loadtests.bench import machine, models
from loadtests.micro import spinning
from loadtests.micro.spinning import NotMeasured, Results, Round


@pytest.fixture(autouse=True)
def _cores() -> Iterator[None]:
    """Give the cores back that a measurement did without."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


def test_both_kinds_of_session_give_the_same_answers(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.onnx" for number in range(2)]
    for seed, path in enumerate(paths):
        models.write_mlp(path, spinning.WIDTHS, seed=seed)
    answers = [
        [call() for call in spinning.calls(make, paths)]
        for make in (spinning.ours, spinning.default)
    ]
    for ours, theirs in zip(*answers, strict=True):
        assert isinstance(ours, list)
        assert isinstance(theirs, list)
        assert ours[0].shape == (spinning.ROWS, spinning.WIDTHS[-1])
        assert abs(ours[0] - theirs[0]).max() < 1e-4


def test_a_rate_counts_the_rows_of_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()

    def call() -> None:
        seen.add(threading.current_thread().name)
        time.sleep(0.01)

    found = spinning.rate([call, call], 0.2)
    assert len(seen) == 2
    assert 0.3 * 2 * 100 * spinning.ROWS < found < 1.1 * 2 * 100 * spinning.ROWS


def test_a_call_that_fails_makes_no_figure() -> None:
    def fail() -> None:
        raise RuntimeError("no kernel")

    with pytest.raises(NotMeasured, match="no kernel"):
        spinning.rate([fail, lambda: time.sleep(0.001)], 0.05)


def test_one_core_makes_no_figure(capsys: pytest.CaptureFixture[str]) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    assert spinning.main(["--rounds", "1", "--seconds", "0.1"]) == 1
    assert "1 core is usable, and 2 are needed" in capsys.readouterr().err


def test_the_verdict_is_the_median_of_the_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    rounds = [Round(ours=ours, default=100.0) for ours in (100.0, 250.0, 179.0)]
    results = Results(
        setting=machine.describe(), method="", widths=(3, 2), limit=1.8, rounds=rounds
    )
    assert spinning.shown(results)[-1] == "median ratio 1.79, UNDER the wanted 1.8"
    enough = msgspec.structs.replace(results, rounds=[*rounds[:2], Round(ours=181, default=100)])
    assert spinning.shown(enough)[-1] == "median ratio 1.81, at least the wanted 1.8"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_the_file_holds_what_was_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results" / "spinning.json"
    code = spinning.main(
        ["--rounds", "2", "--seconds", "0.1", "--widths", "64,32,8", "--output", str(path)]
    )
    results = msgspec.json.decode(path.read_bytes(), type=Results)
    assert code == (results.ratio < results.limit)
    printed = capsys.readouterr().out
    assert all(line in printed for line in spinning.shown(results))
    assert len(results.rounds) == 2
    assert results.widths == (64, 32, 8)
    assert results.setting.versions["onnxruntime"] in printed
