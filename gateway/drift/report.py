"""A verdict in words: for a terminal, and as a document for other programs. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from gateway.drift.decide import ColumnVerdict, Thresholds, Verdict
from gateway.drift.reference import Reference
from gateway.drift.rows import Side

TINY_P: Final = 1e-99
ODD_P: Final = 0.05
"""A large difference with at most this p, before other columns count, is worth a look."""
OK_SHOWN: Final = 20
"""Rows of a terminal's table from which on only what drifts or is odd has one."""
_NAME_WIDTH: Final = 13
_BREAK: Final = "\n"
_HEADINGS: Final = (
    "column", "kind", "psi", "ks", "wasserstein", "p", "missing", "out of range", "verdict",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One window's verdict, and what a reader needs to judge the verdict."""

    model: str
    reference: Reference
    thresholds: Thresholds
    verdict: Verdict
    records: int
    """Predictions of the window, errors included."""
    began: str
    """Arrival of the window's first request, as text; empty: not known."""
    ended: str
    completeness: str
    """What the reader says about records that are missing; empty: it cannot say."""
    notes: tuple[str, ...] = ()
    """What else a reader should know."""
    total_windows: int | None = None
    """None: this is the only one."""


def headline(report: Report) -> str:
    """Return the verdict in one line."""
    verdict = report.verdict
    features = [c for c in verdict.columns if c.side is Side.FEATURE]
    outputs = [c for c in verdict.columns if c.side is Side.OUTPUT]
    counts = [
        f"{sum(c.is_drifted for c in side)} of {len(side)} {what}"
        for side, what in ((features, "features"), (outputs, "outputs"))
        if side
    ]
    if verdict.is_drift:
        return f"DRIFT ({', '.join(verdict.kinds)}): " + (", ".join(counts) or "no column judged")
    if not verdict.is_judged:
        return f"NOT JUDGED: {verdict.rows} rows are too few"
    return "NO DRIFT: " + ", ".join(counts)


def notes(report: Report) -> Iterator[str]:
    """Yield what is known beyond the columns, one sentence each."""
    verdict = report.verdict
    if verdict.errors is not None:
        yield _errors(report)
    if verdict.concept is not None:
        yield _labels(report)
    if verdict.unknown:
        yield "not in the log, so not judged: " + _some(verdict.unknown)
    if verdict.is_new:
        yield "not in the reference, so not judged: " + _some(verdict.is_new)
    yield from report.reference.notes
    yield from report.notes


def rule(report: Report) -> str:
    """Return what the verdict means, with its level and thresholds."""
    limits, verdict = report.thresholds, report.verdict
    how_many = f"{percent(limits.share)} of the features" if limits.share else "one feature"
    watched = "" if verdict.concept is None else " Labels have the other half of it."
    return (
        f"A column drifts if psi >= {limits.psi:g} or wasserstein >= {limits.wasserstein:g}, and "
        f"p, after Holm, <= {verdict.level:.3g}; that is this window's part of the level of "
        f"{limits.level:g} for the whole run.{watched} Data drift: at least {how_many}."
    )


def facts(report: Report) -> Iterator[tuple[str, str]]:
    """Yield what was compared, by name."""
    verdict = report.verdict
    number = f"window {verdict.number}, " if report.total_windows is not None else ""
    size = "" if round(verdict.size) == verdict.rows else f" (worth {verdict.size:.0f})"
    yield "window", f"{number}{report.records} records, {verdict.rows} answered rows{size}"
    if report.began:
        yield "time", f"{report.began} to {report.ended}"
    yield "reference", f"{report.reference.source}, {report.reference.rows} rows"
    yield "completeness", report.completeness or "not known"


def text(report: Report) -> str:
    """Return the whole report for a terminal."""
    lines = [f"{report.model}: {headline(report)}", ""]
    if report.verdict.columns:
        columns = ordered(report.verdict.columns)
        shown = [c for n, c in enumerate(columns) if n < OK_SHOWN or word(c) != "ok"]
        lines += [*_table(shown), ""]
        if len(shown) < len(columns):
            lines[-1:] = [f"and {len(columns) - len(shown)} more columns that are ok", ""]
    said = [*facts(report), *(("note", note) for note in notes(report)), ("rule", rule(report))]
    behind = "\n" + " " * (_NAME_WIDTH + 1)
    lines += [f"{name:<{_NAME_WIDTH}} {value.replace(_BREAK, behind)}" for name, value in said]
    return printable("\n".join(lines))


def ordered(columns: Sequence[ColumnVerdict]) -> list[ColumnVerdict]:
    """Return the drifting columns first, outputs behind features, otherwise as they came."""
    return sorted(columns, key=lambda c: (not c.is_drifted, c.side is Side.OUTPUT))


def cells(column: ColumnVerdict) -> tuple[str, ...]:
    """Return the figures of a column, one text per heading."""
    figures = column.figures
    return (
        column.name,
        column.kind,
        f"{figures.psi:.3f}",
        _distance(figures.ks),
        _distance(figures.wasserstein),
        probability(figures.p),
        str(figures.missing),
        str(figures.out_of_range),
        word(column),
    )


def headings() -> tuple[str, ...]:
    """Return what the cells of a column are called."""
    return _HEADINGS


def word(column: ColumnVerdict) -> str:
    """Return the verdict on a column in a word."""
    if column.is_drifted:
        return "drift"
    is_odd = column.is_large and column.figures.p <= ODD_P
    return "watch" if is_odd else "ok"


def document(report: Report) -> dict[str, object]:
    """Return the report as what JSON can hold."""
    verdict = report.verdict
    return {
        "model": report.model,
        "verdict": "drift" if verdict.is_drift else "ok" if verdict.is_judged else "not judged",
        "kinds": list(verdict.kinds),
        "window": {
            "number": verdict.number,
            "records": report.records,
            "rows": verdict.rows,
            "effective_rows": verdict.size,
            "began": report.began,
            "ended": report.ended,
            "completeness": report.completeness,
        },
        "reference": {"source": report.reference.source, "rows": report.reference.rows},
        "level": {"run": report.thresholds.level, "window": verdict.level},
        "thresholds": asdict(report.thresholds),
        "columns": [_column(c) for c in verdict.columns],
        "errors": asdict(verdict.errors) if verdict.errors else None,
        "labels": asdict(verdict.concept) if verdict.concept else None,
        "not_in_log": list(verdict.unknown),
        "not_in_reference": list(verdict.is_new),
        "notes": [*report.reference.notes, *report.notes],
    }


def percent(share: float) -> str:
    """Return a share in percent."""
    return f"{share * 100:.3g} %"


def probability(p: float) -> str:
    """Return a probability in few characters."""
    if p < TINY_P:
        return "<1e-99"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def printable(lines: str) -> str:
    """Escape what a terminal would act upon: names and categories come from callers."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in lines
    )


def _table(columns: Sequence[ColumnVerdict]) -> Iterator[str]:
    rows = [_HEADINGS, *(cells(column) for column in columns)]
    rows = [tuple(printable(cell.replace("\n", "\\n")) for cell in row) for row in rows]
    widths = [max(len(row[place]) for row in rows) for place in range(len(_HEADINGS))]
    for row in rows:
        first, kind, *numbers, last = (
            f"{cell:<{w}}" if place in (0, 1) else f"{cell:>{w}}"
            for place, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join((first, kind, *numbers, last.strip()))


def _column(column: ColumnVerdict) -> dict[str, object]:
    figures = asdict(column.figures)
    del figures["bars"]
    return {
        "name": column.name,
        "side": column.side,
        "kind": column.kind,
        **figures,
        "adjusted_p": column.adjusted_p,
        "is_large": column.is_large,
        "is_drifted": column.is_drifted,
    }


def _errors(report: Report) -> str:
    errors = report.verdict.errors
    assert errors is not None
    sentence = f"errors: {errors.errors} of {errors.requests} records, {percent(errors.rate)}"
    if errors.reference is None:
        return f"{sentence}; the reference does not know its rate"
    word = "drift" if errors.is_drifted else "ok"
    before = percent(errors.reference)
    return f"{sentence}; reference {before}, p {probability(errors.p)}: {word}"


def _labels(report: Report) -> str:
    concept = report.verdict.concept
    assert concept is not None
    if concept.rate is None:
        return "labels: none in this window"
    sentence = f"labels: {concept.labelled} rows, {percent(concept.rate)} wrong"
    if concept.baseline is None or concept.since_window is None:
        return f"{sentence}; this is what later windows are compared with"
    before = "reference" if concept.is_from_reference else "first labels"
    recent = f"{percent(concept.recent_rate or 0.0)} since window {concept.since_window}"
    proof = f"evidence {concept.evidence:.3g} of {concept.needed:.3g} needed"
    verdict = "drift" if concept.is_drifted else "ok"
    return f"{sentence}, {recent}; {before} {percent(concept.baseline)}; {proof}: {verdict}"


def _distance(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 1e4 and math.isfinite(value) else f"{value:.2g}"


def _some(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
