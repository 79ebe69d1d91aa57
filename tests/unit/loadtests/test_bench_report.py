from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from loadtests.bench import machine, report
from loadtests.bench.__main__ import RESULTS, main, read_options
from loadtests.bench.machine import Setting
from loadtests.bench.measure import Sample
from loadtests.bench.report import Plan, Results

SETTING = Setting(
    cpu="A CPU @ 2 GHz",
    cores=2,
    kernel="6.1",
    load_average=0.25,
    python="3.11.7",
    versions={"grpcio": "1.85.1", "numpy": "2.4.6"},
    sluice="0.1.0",
    revision="abc1234-dirty",
    date="2026-11-21 03:05 UTC",
)
PLAN = Plan(
    rounds=3,
    round_s=2.0,
    warm_up_s=1.0,
    threads=1,
    redis="redis-server on PATH",
    drivers={"gRPC": "h2load", "HTTP JSON": "wrk"},
)
CPU_TABLE = """\
CPU per request in microseconds, concurrency 32, tiny model
                 median      min      max   requests/s  rows/batch
gRPC              210.0    200.0    290.0        4,000         2.0
HTTP JSON          90.0     80.0     95.0       10,000         8.0
"""
BATCHING_TABLE = """\
rows per second, concurrency 32, medium model
                 median      min      max   rows/batch
batching on       9,000    8,000   10,000         25.0
batching off      3,000    2,000    4,000          1.0
in-process       45,000   44,000   46,000         32.0
batching on is 3.00 x batching off, and 0.20 x in-process
"""


def samples(case: str, *rounds: tuple[float, int, float]) -> list[Sample]:
    """Return one sample per (CPU microseconds per request, rows per second, rows per batch)."""
    return [
        Sample(
            case=case,
            requests=rate * 2,
            failures=0,
            rows=rate * 2,
            batches=round(rate * 2 / rows_per_batch),
            wall_s=2.0,
            cpu_s=cost_us * rate * 2 / 1e6,
        )
        for cost_us, rate, rows_per_batch in rounds
    ]


CPU = [
    *samples("gRPC", (210, 4_000, 2), (200, 5_000, 2), (290, 3_000, 1)),
    *samples("HTTP JSON", (95, 10_000, 8), (80, 11_000, 8), (90, 9_000, 8)),
]
BATCHING = [
    *samples("batching on", (1, 8_000, 25), (1, 10_000, 25), (1, 9_000, 25)),
    *samples("batching off", (1, 4_000, 1), (1, 3_000, 1), (1, 2_000, 1)),
    *samples("in-process", (1, 44_000, 32), (1, 45_000, 32), (1, 46_000, 32)),
]


def test_the_cost_of_a_request_is_the_median_of_the_rounds_with_the_least_and_the_most() -> None:
    assert report.cpu_table(CPU) == CPU_TABLE.splitlines()


def test_batching_is_compared_with_none_and_with_the_engine_alone() -> None:
    assert report.batching_table(BATCHING) == BATCHING_TABLE.splitlines()


def test_interleaved_rounds_come_to_the_same_tables() -> None:
    mixed = [CPU[n] for n in (0, 3, 1, 4, 2, 5)]
    assert report.cpu_table(mixed) == CPU_TABLE.splitlines()


def test_the_header_states_machine_versions_date_method_and_bias() -> None:
    text = " ".join(" ".join(report.header(SETTING, PLAN)).split())
    for fact in (
        "A CPU @ 2 GHz, 2 cores, Linux 6.1",
        "Python 3.11.7, grpcio 1.85.1, numpy 2.4.6",
        "0.1.0, revision abc1234-dirty",
        "2026-11-21 03:05 UTC",
        "3 rounds of 2 s",
        "1 s of warm-up",
        "into redis-server on PATH",
        "gRPC: h2load, HTTP JSON: wrk",
        "known bias the load generator runs on the same cores",
    ):
        assert fact in text
    assert all(len(line) <= 100 for line in report.header(SETTING, PLAN))


def test_every_round_can_be_read_back_from_the_results_file() -> None:
    results = Results(setting=SETTING, plan=PLAN, cpu=CPU, batching=BATCHING)
    assert msgspec.json.decode(msgspec.json.encode(results), type=Results) == results


def test_this_machine_is_described() -> None:
    here = machine.describe()
    assert here.cpu
    assert here.cores >= 1
    assert set(here.versions) >= {"grpcio", "uvicorn", "onnxruntime", "numpy"}
    assert all(here.versions.values())
    assert here.revision


def test_the_cpu_is_the_first_model_name() -> None:
    cpuinfo = "processor\t: 0\nmodel name\t: Fast: 9000\n\nprocessor\t: 1\nmodel name\t: Slow\n"
    assert machine.cpu_model(cpuinfo) == "Fast: 9000"
    assert machine.cpu_model("processor : 0\n") == ""


def test_a_smoke_run_is_short_and_leaves_the_results_file_alone() -> None:
    assert read_options([]).output == RESULTS
    smoke = read_options(["--smoke", "--rounds", "9"])
    assert (smoke.rounds, smoke.warm_up_s, smoke.output) == (1, 0.0, None)
    assert smoke.round_s < 1
    assert read_options(["--smoke", "--output", "x.json"]).output == Path("x.json")


def test_without_any_redis_the_bench_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("loadtests.bench.__main__.find_redis", lambda: None)
    assert main(["--smoke"]) == 1
    assert "no Redis was found: install one" in capsys.readouterr().err
