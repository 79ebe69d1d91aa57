"""`python -m loadtests.bench.report [--write]`: the tables from the results file.

Setting, method and bias first, then the tables. With --write they replace what stands between the
markers `<!-- bench:SECTION -->` and `<!-- bench:end -->` in README.md and docs/performance.md;
without it they are printed. SECTION is one of machine, method, targets, cases, costs, peers.
Rendering is pure: results in, lines out.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from loadtests.bench import machine
from loadtests.bench.measure import SETTLE_S
from loadtests.bench.results import Book, Figure, Results
from loadtests.bench.targets import GOALS, Goal, shown

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = ROOT / "loadtests" / "results" / "bench.json"
DOCUMENTS: Final = (ROOT / "README.md", ROOT / "docs" / "performance.md")
_WIDTH: Final = 100
_MARKED: Final = re.compile(
    r"(?P<begin><!-- bench:(?P<section>[a-z]+) -->\n).*?(?P<end><!-- bench:end -->)", re.DOTALL
)
_NONE: Final = "not measured"


class UnknownSection(Exception):
    """A marker in a document names no section; the sentence says which there are."""


def machine_section(results: Results) -> list[str]:
    """Return machine, versions, revision and date."""
    s = results.setting
    versions = ", ".join(f"{n} {v}" for n, v in (*s.versions.items(), *s.programs.items()))
    text = (
        f"{s.cpu}, {s.cores} cores (shared by server, load generator and Redis), "
        f"Linux {s.kernel}; Python {s.python}, {versions}; sluice {s.sluice}, revision "
        f"{s.revision}; {s.date}; load average before {s.load_average:g}, CPU time of others "
        f"{s.busy:.0%}."
    )
    return textwrap.wrap(text, _WIDTH) + [f"\n**{warning}**" for warning in results.warnings]


def method_section(results: Results) -> list[str]:
    """Return method and bias."""
    p = results.plan
    placed = (
        "Servers of one process have the first core to themselves, the others the rest."
        if p.is_pinned
        else "Nothing is pinned to a core."
    )
    method = (
        f"Closed loop, one row a request, the same row again and again; medians of {p.rounds} "
        f"rounds of {p.round_s:g} s (least and most beside them), the cases of a group one after "
        f"the other in each round, after {p.warm_up_s:g} s of warm-up each. CPU is user and system "
        "time of the server's whole process tree from /proc (ticks of 10 ms), read before and "
        f"{SETTLE_S:g} s after the load. Requests are those that the server counts as answered "
        "with success; the count of the load generator must agree, and before each case one "
        "answer is compared with onnxruntime's. Metrics, routing (a split of 90/10 by the header "
        "x-user-id) and the prediction log are on unless said otherwise; the log goes to "
        f"{p.redis}, whose own CPU time is not counted. onnxruntime has {p.threads} thread(s) per "
        f"session, not spinning. {placed}"
    )
    bias = (
        "Known bias: the load generator runs on the same cores as the server, so rates are those "
        "of both together; CPU per request suffers less. h2load cannot vary a header and has one "
        "connection per 64 streams, which lets a server write many answers at once: it is the "
        "best case; perf_analyzer and grpc-js are closer to clients of the field. A slow "
        "generator leaves a server half idle: batches are smaller then, and each request dearer. "
        "The in-process loop is spared what any server must do, and has its cores to itself."
    )
    return [*textwrap.wrap(method, _WIDTH), "", *textwrap.wrap(bias, _WIDTH)]


def targets_section(results: Results) -> list[str]:
    """Return each target with what was obtained and the verdict."""
    book = Book(results)
    lines = ["| path | figure | target | obtained | |", "|---|---|---|---|---|"]
    return lines + [_goal_line(goal, book) for goal in GOALS]


def _goal_line(goal: Goal, book: Book) -> str:
    value = goal.obtained(book)
    if value is None:
        why = next((book.results.skipped[c] for c in goal.cases if c in book.results.skipped), "")
        obtained, verdict = _NONE, why.partition("\n")[0]
    else:
        obtained = shown(value, goal.unit)
        verdict = "met" if goal.is_met(value) else "**missed**"
    return f"| {goal.path} | {goal.what} | {goal.shown_limit} | {obtained} | {verdict} |"


def cases_section(results: Results) -> list[str]:
    """Return every case that was measured, by group."""
    book = Book(results)
    lines = [
        "| case | CPU µs per request | requests/s | p50 ms | p99 ms | rows/batch | MB |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_case_line(c, c, book) for c in book.by_case if not c.startswith("peers:")]
    lines += [f"| {case} | {_NONE}: {_first(why)} | | | | | |" for case, why in _skipped(results)]
    return lines


def _skipped(results: Results) -> list[tuple[str, str]]:
    return [(case, why) for case, why in results.skipped.items() if not case.startswith("peers:")]


def _case_line(case: str, title: str, book: Book) -> str:
    cells = [
        title,
        spread(book.values(case, "cpu_us"), 1),
        f"{statistics.median(book.values(case, 'per_s')):,.0f}",
        _known(book, case, "p50_ms", 2),
        _known(book, case, "p99_ms", 2),
        _known(book, case, "rows_per_batch", 1),
        _known(book, case, "pss_mb", 0),
    ]
    return f"| {' | '.join(cells)} |"


def _known(book: Book, case: str, figure: Figure, digits: int) -> str:
    """Return a median; a dash where it is 0, which none of these figures can be."""
    median = book.median(case, figure)
    return f"{median:,.{digits}f}" if median else "-"


def spread(values: Sequence[float], digits: int) -> str:
    """Return the median, the least and the most."""
    median, least, most = statistics.median(values), min(values), max(values)
    return f"{median:,.{digits}f} ({least:,.{digits}f} to {most:,.{digits}f})"


def costs_section(results: Results) -> list[str]:
    """Return what stages of the pipeline, starts and idle connections cost."""
    lines = ["| stage, pipeline alone | CPU µs per request |", "|---|---|"]
    lines += [f"| {cost.stage} | {spread(cost.rounds_us, 2)} |" for cost in results.pipeline]
    if results.starts:
        lines += ["", "| start, tiny model | |", "|---|---|"]
        starts = results.starts
        lines.append(f"| until ready, s | {spread([s.seconds for s in starts], 2)} |")
        lines.append(f"| resident, MB | {spread([s.rss_bytes / 1e6 for s in starts], 0)} |")
    if results.idle:
        lines += ["", "| idle connections | number | bytes each |", "|---|---|---|"]
        lines += [
            f"| {i.protocol} | {i.connections:,} | {i.bytes_each:,.0f} |" for i in results.idle
        ]
    return lines


def peers_section(results: Results) -> list[str]:
    """Return the peers beside Sluice, from the same rounds; those without a figure, too."""
    book = Book(results)
    lines = [
        "| server | CPU µs per request | requests/s | p50 ms | p99 ms | rows/batch | MB | set-up |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in book.by_case:
        if not case.startswith("peers:"):
            continue
        name = case[case.index("(") + 1 : -1] if "(" in case else "Sluice"
        note = results.peers.get(name)
        title = f"{name} {note.version}" if note else name
        lines.append(f"{_case_line(case, title, book)} {note.how if note else 'log, metrics on'} |")
    for case, why in results.skipped.items():
        if case.startswith("peers:"):
            lines.append(f"| {case.removeprefix('peers: ')} | {_NONE}: {_first(why)} | | | | | | |")
    return lines


def _first(sentence: str) -> str:
    return sentence.partition("\n")[0].replace("|", "/")


SECTIONS: Final[Mapping[str, Callable[[Results], list[str]]]] = {
    "machine": machine_section,
    "method": method_section,
    "targets": targets_section,
    "cases": cases_section,
    "costs": costs_section,
    "peers": peers_section,
}


def replaced(document: str, results: Results) -> str:
    """Return a document with every marked section made anew.

    Raises:
        UnknownSection: a marker names none.
    """

    def render(match: re.Match[str]) -> str:
        section = SECTIONS.get(match["section"])
        if section is None:
            raise UnknownSection(f"{match['section']!r} is none of {', '.join(SECTIONS)}")
        return "\n".join([match["begin"] + "\n".join(section(results)), match["end"]])

    return _MARKED.sub(render, document)


def header(setting: machine.Setting) -> list[str]:
    """Return machine and versions for the screen, before anything is measured."""
    versions = ", ".join(f"{name} {version}" for name, version in setting.versions.items())
    facts = [
        ("machine", f"{setting.cpu}, {setting.cores} cores, Linux {setting.kernel}"),
        ("load before", f"{setting.load_average} (1 minute), others take {setting.busy:.0%}"),
        ("versions", f"Python {setting.python}, {versions}"),
        ("programs", ", ".join(f"{n} {v}" for n, v in setting.programs.items()) or "none"),
        ("sluice", f"{setting.sluice}, revision {setting.revision}"),
        ("date", setting.date),
    ]
    lines = []
    for name, text in facts:
        lines += textwrap.wrap(
            text, _WIDTH, initial_indent=f"{name:13}", subsequent_indent=" " * 13
        )
    return lines


def read(path: Path) -> Results:
    """Return a results file."""
    return msgspec.json.decode(path.read_bytes(), type=Results)


def write(results: Results, path: Path) -> None:
    """Write a results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")


def everything(results: Results) -> list[str]:
    """Return all sections for the screen, without targets that nothing was measured for."""
    nothing = f"| {_NONE} |  |"
    lines = []
    for name, section in SECTIONS.items():
        shown_lines = [line for line in section(results) if not line.endswith(nothing)]
        lines += [f"## {name}", "", *shown_lines, ""]
    return lines


def main(arguments: Sequence[str]) -> int:
    """Print the tables, or write them into the documents; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench.report", description=__doc__)
    parser.add_argument("--write", action="store_true", help="into README.md and docs/")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args(arguments)
    results = read(options.results)
    if not options.write:
        print("\n".join(everything(results)))
        return 0
    for path in DOCUMENTS:
        if not path.exists():
            continue
        before = path.read_text(encoding="utf-8")
        after = replaced(before, results)
        path.write_text(after, encoding="utf-8")
        print(f"{path.name}: {'rewritten' if after != before else 'as it was'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
