from __future__ import annotations

from pathlib import Path

import msgspec

from loadtests import figures
from loadtests.figures import Entry, Errors, Figures

WEIGHTS = {"stable": 90.0, "canary": 10.0}
FIGURES = Figures(
    elapsed_s=30.4,
    entries=(
        Entry(
            name="grpc ModelInfer digits",
            requests=20_000,
            failures=0,
            per_second=657.9,
            p50_ms=5.0,
            p95_ms=11.0,
            p99_ms=25.0,
            max_ms=49.91,
        ),
        Entry(
            name="http json digits",
            requests=100_000,
            failures=0,
            per_second=3289.4,
            p50_ms=2.0,
            p95_ms=4.0,
            p99_ms=6.0,
            max_ms=31.5,
        ),
    ),
    errors=(),
    answered={
        "http": {"stable": 90_074, "canary": 9_926},
        "grpc": {"canary": 2_010, "stable": 17_990},
    },
)


REPORT = """\
                              requests  failed    per s   p50 ms   p95 ms   p99 ms   max ms
grpc ModelInfer digits          20,000       0      658      5.0     11.0     25.0     49.9
http json digits               100,000       0    3,289      2.0      4.0      6.0     31.5

split over HTTP, random keys, interval of 3.3 sigma
  stable         90,074 answers, 90.074%; expected 90.00%, within 89.687% to 90.313%
  canary          9,926 answers, 9.926%; expected 10.00%, within 9.687% to 10.313%

split over gRPC, random keys, interval of 3.3 sigma
  stable         17,990 answers, 89.950%; expected 90.00%, within 89.300% to 90.700%
  canary          2,010 answers, 10.050%; expected 10.00%, within 9.300% to 10.700%
"""


def test_the_report_gives_rates_percentiles_failures_and_the_split_of_each_protocol() -> None:
    assert figures.report(FIGURES, WEIGHTS) == REPORT.splitlines()
    assert figures.faults(FIGURES, WEIGHTS) == []


def test_a_split_outside_its_interval_is_reported_and_a_fault() -> None:
    answered = {"http": FIGURES.answered["http"], "grpc": {"stable": 16_000, "canary": 4_000}}
    skewed = msgspec.structs.replace(FIGURES, answered=answered)
    lines = figures.report(skewed, WEIGHTS)
    assert (
        "  canary          4,000 answers, 20.000%; expected 10.00%, OUTSIDE 9.300% to 10.700%"
        in lines
    )
    assert figures.faults(skewed, WEIGHTS) == [
        "over gRPC 'stable' got 80.000%, outside 89.300% to 90.700%",
        "over gRPC 'canary' got 20.000%, outside 9.300% to 10.700%",
    ]


def test_failures_are_reported_with_their_sentences_and_a_fault() -> None:
    http = msgspec.structs.replace(FIGURES.entries[1], failures=7)
    errors = tuple(
        Errors(name="http json digits", sentence=f"HTTP 50{n}", occurrences=1) for n in range(7)
    )
    failed = msgspec.structs.replace(FIGURES, entries=(FIGURES.entries[0], http), errors=errors)
    lines = figures.report(failed, WEIGHTS)
    assert "  1 x http json digits: HTTP 500" in lines
    assert "  1 x http json digits: HTTP 505" not in lines
    assert "  and 2 other sentences" in lines
    assert figures.faults(failed, WEIGHTS) == ["7 requests failed"]


def test_a_protocol_that_answered_nothing_is_a_fault() -> None:
    silent = msgspec.structs.replace(FIGURES, answered={"http": FIGURES.answered["http"]})
    assert "  no answers" in figures.report(silent, WEIGHTS)
    assert figures.faults(silent, WEIGHTS) == ["nothing was answered over gRPC"]


def test_progress_tells_the_requests_of_each_protocol() -> None:
    line = figures.progress_line(FIGURES, 60)
    assert line == "    30 s of 60: HTTP 100,000, gRPC 20,000, failed 0"


def test_figures_survive_their_file_and_are_none_before_it(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    assert figures.read(path) is None
    figures.write(FIGURES, path)
    assert figures.read(path) == FIGURES
    assert list(tmp_path.iterdir()) == [path]
