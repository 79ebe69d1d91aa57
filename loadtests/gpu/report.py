"""The results as Markdown, for people and docs/gpu-results.md. Pure: results in, lines out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

from loadtests.gpu.results import TARGET, Comparison, Figure, Pair, Results

GATEWAY: Final = "gateway"
"""The comparison that has a target."""
_NONE: Final = "-"
_HEAD: Final = (
    "comparison", "side", "rows/s", "p50 ms", "p99 ms", "GPU busy", "CPU cores", "rows/batch",
    "padded", "ratio rows/s", "ratio p50", "ratio p99",
)  # fmt: skip
_RATIOS: Final[tuple[Figure, ...]] = ("rows_per_s", "p50_ms", "p99_ms")


def shown(results: Results) -> list[str]:
    """Return the whole report."""
    lines = [*_setting(results)]
    for pair in results.pairs:
        lines += ["", f"### {pair.network}, {pair.engine}", "", *_pair(pair)]
        if not results.is_quick:
            lines += _verdict(pair)
    if results.skipped:
        lines += ["", "Not measured:", ""]
        lines += [f"* {what}: {why}" for what, why in results.skipped.items()]
    return lines


def _setting(results: Results) -> list[str]:
    s = results.setting
    versions = ", ".join(f"{name} {version}" for name, version in s.versions.items())
    method = (
        f"{results.rounds} rounds, the sides of a comparison by turns of {results.turn_s:g} s "
        f"(after {results.settle_s:g} s uncounted), their order reversed in every other round; "
        f"{results.callers} processes of callers on the same machine; batches of up to "
        f"{results.max_batch} rows. Figures are medians of the rounds; a ratio is the median of "
        "the rounds' ratios to the comparison's first side"
    )
    lines = [
        f"## {s.date}, {s.gpu or f'no GPU ({s.device})'}",
        "",
        f"* Command: `{s.command}`",
        f"* Machine: {s.cpu}, {s.cores} cores, Linux {s.kernel}; driver: {s.driver or 'none'}",
        f"* Versions: sluice {s.sluice} ({s.revision}), Python {s.python}, {versions}",
        f"* Method: {method}.",
    ]
    if results.is_quick:
        lines.append(
            "* **Quick: small networks. It shows that the script runs, and nothing else.**"
        )
    return lines


def _pair(pair: Pair) -> list[str]:
    loaded = ", ".join(f"{key} {value}" for key, value in pair.loaded.items() if value)
    sizes = list(pair.buckets)
    rates = [f"{statistics.median(pair.buckets[rows]):,.0f}" for rows in sizes]
    lines = [f"{pair.about}; {loaded}.", ""]
    lines += _table(["in-process, batch of", *map(str, sizes)], [["rows/s", *rates]])
    if pair.comparisons:
        rows = [row for found in pair.comparisons for row in _rows(found)]
        lines += ["", *_table(_HEAD, rows), ""]
        lines += [f"* {found.name}: {found.about}; {found.load}." for found in pair.comparisons]
    lines += _copies(pair)
    lines += [f"* the gateway warned: {warning}" for warning in pair.warnings]
    return lines


def _rows(found: Comparison) -> list[list[str]]:
    rows = []
    for side in found.sides:
        is_first = side == found.sides[0]
        padded = found.total(side, lambda turn: turn.padded_rows)
        run = found.total(side, lambda turn: turn.batch_rows)
        form = ".0f" if is_first else ".3f"
        ratios = [_number(found.ratio(side, figure), form) for figure in _RATIOS]
        row = [
            found.name if is_first else "",
            side,
            _number(found.median(side, "rows_per_s"), ",.0f"),
            _number(found.median(side, "p50_ms"), ",.2f"),
            _number(found.median(side, "p99_ms"), ",.2f"),
            _number(found.median(side, "gpu_busy"), ".0%"),
            _number(found.median(side, "cpu_cores"), ".2f"),
            _number(found.median(side, "rows_per_batch"), ".1f"),
            f"{padded / (run + padded):.1%}" if run else _NONE,
        ]
        rows.append(row + ratios)
    return rows


def _verdict(pair: Pair) -> list[str]:
    found = pair.comparison(GATEWAY)
    if found is None:
        return []
    ratio = found.ratio(found.sides[-1], "rows_per_s")
    if ratio is None:
        return []
    verdict = "met" if ratio >= TARGET else "**missed**"
    of_what = f"of those in-process at the best batch ({pair.best})"
    figure = f"rows/s through the gateway are {ratio:.3f} {of_what}"
    return [f"* {figure}; target {TARGET:g}: {verdict}"]


def _copies(pair: Pair) -> list[str]:
    lines = []
    for found in pair.comparisons:
        for side in found.sides:
            copies = found.total(side, lambda turn: turn.copies)
            if copies:
                answered = found.total(side, lambda turn: turn.copies_answered)
                lines.append(f"* {found.name}, {side}: {answered} of {copies} copies answered")
    return lines


def _number(value: float | None, form: str) -> str:
    return _NONE if value is None else format(value, form)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
