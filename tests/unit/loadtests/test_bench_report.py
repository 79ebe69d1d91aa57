from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from loadtests.bench import machine, report
from loadtests.bench.__main__ import main
from loadtests.bench.machine import CpuTicks, Setting
from loadtests.bench.measure import Sample
from loadtests.bench.results import Book, Idle, PeerNote, Plan, Results, StageCost, Start
from loadtests.bench.targets import GOALS, shown

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
    busy=0.01,
    programs={"wrk": "4.1.0"},
)
PLAN = Plan(rounds=3, round_s=2.0, warm_up_s=1.0, threads=1, redis="redis-server on PATH")
H2, PA = "tiny: tiny grpc h2load 32", "tiny: tiny grpc perf_analyzer 32"
JSON, ALONE = "costs: tiny json wrk 32 route", "costs: tiny json wrk 32 route (no log)"


def samples(case: str, *cpu_us: float, requests: int = 10_000) -> list[Sample]:
    """Return one sample per figure of CPU microseconds per request."""
    return [
        Sample(
            case=case,
            requests=requests,
            client_requests=requests,
            failures=0,
            rows=requests,
            batches=requests // 10,
            seconds=2.0,
            cpu_s=us * requests / 1e6,
            p50_us=1_500,
            p99_us=4_250,
            pss_bytes=90_000_000,
            rss_bytes=100_000_000,
        )
        for us in cpu_us
    ]


RESULTS = Results(
    setting=SETTING,
    plan=PLAN,
    samples=[
        *samples(H2, 24, 20, 29),
        *samples(PA, 44, 41, 60),
        *samples(f"{PA} (grpcio)", 300, 320, 340),
        *samples(JSON, 40, 60, 50),
        *samples(ALONE, 38, 57, 46),
        *samples("peers: tiny json wrk 32 version", 30, 30, 30),
        *samples("peers: tiny json wrk 32 (MLServer)", 430, 440, 450),
    ],
    skipped={
        "tls: tiny json wrk 32 (TLS)": "the gateway does not start: no certificate\nmore",
        "peers: tiny json wrk 32 (KServe)": "KServe is not installed (make bench-peers)",
    },
    starts=[Start(seconds=s, pss_bytes=1, rss_bytes=100_000_000) for s in (0.4, 0.5, 2.0)],
    idle=[Idle(protocol="HTTP/2", connections=10_000, bytes_each=3_456.7)],
    pipeline=[
        StageCost(stage="full", rounds_us=[20, 21, 22]),
        StageCost(stage="metrics", rounds_us=[2.5, 1.5, 3.5]),
    ],
    peers={"MLServer": PeerNote(version="1.7.1", how="batching on")},
)


def rows(lines: list[str], start: str) -> list[list[str]]:
    """Return the cells of the table rows that begin with this."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith(f"| {start}")
    ]


def test_a_target_is_judged_by_the_median_of_the_rounds() -> None:
    lines = report.targets_section(RESULTS)
    (met,) = rows(lines, "gRPC unary, h2load")
    assert met[1:] == ["CPU per request", "≤ 25.0 µs", "24.0 µs", "met"]
    missed, ratio = rows(lines, "gRPC unary, perf_analyzer")
    assert missed[1:] == ["CPU per request", "≤ 40.0 µs", "44.0 µs", "**missed**"]
    assert ratio[1:] == ["of grpc.aio, same core", "≤ 1/8", "1/7.3", "**missed**"]


def test_a_cost_is_the_median_of_the_rounds_differences() -> None:
    assert Book(RESULTS).difference(JSON, ALONE, "cpu_us") == pytest.approx(3.0)
    (log,) = rows(report.targets_section(RESULTS), "log, HTTP JSON")
    assert log[3:] == ["3.0 µs", "met"]
    (metrics,) = rows(report.targets_section(RESULTS), "metrics, pipeline alone")
    assert metrics[3:] == ["2.5 µs", "**missed**"]


def test_starts_are_judged_by_their_median() -> None:
    seconds, memory = rows(report.targets_section(RESULTS), "start, tiny model")
    assert seconds[3:] == ["0.50 s", "met"]
    assert memory[3:] == ["100 MB", "met"]


def test_a_target_without_figures_is_not_guessed_and_says_why() -> None:
    lines = report.targets_section(RESULTS)
    assert len(lines) == len(GOALS) + 2
    (skipped,) = rows(lines, "TLS: HTTP JSON")
    assert skipped[3:] == ["not measured", "the gateway does not start: no certificate"]
    stream = rows(lines, "gRPC stream")
    assert stream[0][3:] == ["not measured", ""]


def test_a_case_is_shown_with_its_spread_and_the_skipped_with_their_reason() -> None:
    lines = report.cases_section(RESULTS)
    (row,) = rows(lines, f"{H2} |")
    assert row[1:] == ["24.0 (20.0 to 29.0)", "5,000", "1.50", "4.25", "10.0", "90"]
    assert "not measured: the gateway does not start: no certificate" in "\n".join(lines)
    assert "MLServer" not in "\n".join(lines)


def test_peers_stand_beside_sluice_with_version_and_set_up() -> None:
    lines = report.peers_section(RESULTS)
    assert rows(lines, "MLServer 1.7.1")[0][1] == "440.0 (430.0 to 450.0)"
    assert rows(lines, "MLServer 1.7.1")[0][-1] == "batching on"
    assert rows(lines, "Sluice")[0][1] == "30.0 (30.0 to 30.0)"
    assert "KServe is not installed (make bench-peers)" in "\n".join(lines)


def test_costs_show_stages_starts_and_idle_connections() -> None:
    text = "\n".join(report.costs_section(RESULTS))
    assert "| metrics | 2.50 (1.50 to 3.50) |" in text
    assert "| until ready, s | 0.50 (0.40 to 2.00) |" in text
    assert "| HTTP/2 | 10,000 | 3,457 |" in text


def test_machine_and_method_are_told_before_any_table() -> None:
    text = " ".join("\n".join(report.everything(RESULTS)).split())
    for fact in (
        "A CPU @ 2 GHz, 2 cores",
        "grpcio 1.85.1, numpy 2.4.6, wrk 4.1.0",
        "revision abc1234-dirty; 2026-11-21 03:05 UTC",
        "medians of 3 rounds of 2 s",
        "Known bias: the load generator runs on the same cores",
    ):
        assert text.index(fact) < text.index("| path | figure |")


def test_marked_sections_of_a_document_are_replaced_and_the_rest_is_kept() -> None:
    document = (
        "# Title\n<!-- bench:machine -->\nold\n<!-- bench:end -->\nprose\n"
        "<!-- bench:peers -->\n<!-- bench:end -->\nend\n"
    )
    made = report.replaced(document, RESULTS)
    assert "old" not in made
    assert "A CPU @ 2 GHz" in made
    assert made.index("prose") < made.index("MLServer 1.7.1") < made.index("end\n")
    assert report.replaced(made, RESULTS) == made


def test_a_marker_for_no_section_is_told() -> None:
    with pytest.raises(report.UnknownSection, match="'nonsense' is none of machine"):
        report.replaced("<!-- bench:nonsense -->\n<!-- bench:end -->", RESULTS)


def test_every_round_can_be_read_back_from_the_results_file(tmp_path: Path) -> None:
    report.write(RESULTS, tmp_path / "bench.json")
    assert report.read(tmp_path / "bench.json") == msgspec.convert(
        msgspec.to_builtins(RESULTS), Results
    )


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (24.04, "µs", "24.0 µs"),
        (110, "µs", "110 µs"),
        (0.5, "µs", "0.5 µs"),
        (0.35, "ms", "0.35 ms"),
        (0.125, "ratio", "1/8"),
        (0.137, "ratio", "1/7.3"),
        (0.9, "ratio", "0.90"),
        (1.5, "s", "1.5 s"),
    ],
)
def test_figures_are_shown_with_the_digits_that_mean_something(
    value: float, unit: str, text: str
) -> None:
    assert shown(value, unit) == text


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


def test_stolen_time_is_busy_and_waiting_for_disks_is_not() -> None:
    stat = "cpu  100 1 50 800 40 2 3 4 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
    assert machine.parse_cpu_ticks(stat) == CpuTicks(busy=160, total=1_000)


def test_a_busy_machine_is_warned_about_with_its_figures() -> None:
    busy = msgspec.structs.replace(SETTING, busy=0.51, load_average=1.39)
    warning = machine.noise_warning(busy)
    assert warning is not None
    assert "51% of its CPU time (load average 1.39 on 2 cores)" in warning
    assert machine.noise_warning(SETTING) is None


def test_without_any_redis_the_bench_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("loadtests.bench.__main__.find_redis", lambda: None)
    assert main(["--smoke"]) == 1
    assert "no Redis was found: install one" in capsys.readouterr().err
