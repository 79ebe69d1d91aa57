from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from loadtests import shadow
from loadtests.shadow import NotMeasured, Results, Summary, Window


def found(p50_ms: float, p99_ms: float, *, is_on: bool) -> Window:
    return Window(
        is_on=is_on, requests=600, p50_ms=p50_ms, p99_ms=p99_ms, max_ms=9.0, eligible=0, sent=0
    )


def test_the_turns_are_balanced_against_a_drift_of_the_machine() -> None:
    turns = shadow.order(8)
    assert turns == [False, True, True, False, False, True, True, False]
    places = [n for n, is_on in enumerate(turns) if is_on]
    assert 2 * sum(places) == sum(range(8))  # on the average, on and off are at the same time


def test_percentiles_of_a_window_are_latencies_that_were_measured() -> None:
    latencies_s = [n / 1e3 for n in range(1, 201)]
    taken = shadow.window(latencies_s, is_on=True, eligible=200, sent=198)
    assert (taken.requests, taken.p50_ms, taken.p99_ms, taken.max_ms) == (200, 100.0, 198.0, 200.0)
    assert (taken.eligible, taken.sent) == (200, 198)
    with pytest.raises(NotMeasured):
        shadow.window([], is_on=True, eligible=0, sent=0)


def test_medians_of_the_windows_are_compared_and_neighbours_with_each_other() -> None:
    windows = [
        found(1.0, 10.0, is_on=False),
        found(1.1, 11.0, is_on=True),
        found(1.2, 24.0, is_on=True),
        found(1.0, 20.0, is_on=False),
        found(1.0, 40.0, is_on=False),
        found(1.3, 60.0, is_on=True),
    ]
    assert shadow.summary(windows) == Summary(
        off_p50_ms=1.0,
        on_p50_ms=1.2,
        off_p99_ms=20.0,
        on_p99_ms=24.0,
        ratio_p50=1.2,
        ratio_p99=1.2,
        paired_ratio_p99=1.2,
    )


@pytest.mark.parametrize("arguments", [["--windows", "3"], ["--windows", "0"], ["--rate", "0"]])
def test_windows_that_cannot_be_compared_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        shadow.main(arguments)
    assert exit_code.value.code == 2


@pytest.mark.redis
@pytest.mark.slow
def test_a_short_run_measures_a_shadow_that_works_and_one_that_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results" / "shadow.json"
    arguments = ["--windows", "2", "--seconds", "0.5", "--rate", "100", "--output", str(path)]
    code = shadow.main([*arguments, "--latency-ms", "5"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    results = msgspec.json.decode(path.read_bytes(), type=Results)
    assert results.failed_requests == 0
    off, on = results.windows
    assert not off.is_on
    assert (off.requests, off.eligible, off.sent) == (50, 0, 0)
    assert on.is_on
    assert on.eligible == on.requests == 50
    assert on.sent > 0
    assert all(line in printed.out for line in shadow.shown(results.summary))
