"""The report as one HTML page that needs nothing else: no script, no font, no picture from afar.

Every name, label and note is escaped: they come from callers and from files. Readable without
colours, with a dark screen, and by a screen reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Final

from gateway.drift import histogram, report
from gateway.drift.decide import ColumnVerdict
from gateway.drift.report import Report
from gateway.drift.rows import Side

MAX_PICTURES: Final = 200
"""Columns with a picture, the drifting ones first; the others have their row in the table."""
_STYLE: Final = """\
:root{color-scheme:light dark;--ink:#1c2024;--soft:#5b6570;--back:#fff;--line:#d5dae0;
--area:#c3cad3;--now:#0b62c4;--bad:#b3261e;--good:#1a7a3c;--unsure:#8a5a00;--row:#f5f7f9}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#a2acb6;--back:#15181b;--line:#363d44;
--area:#4a535d;--now:#6db3ff;--bad:#ff8a80;--good:#6fd08c;--unsure:#f0b95b;--row:#1c2024}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem;max-width:76rem;color:var(--ink);background:var(--back);
font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2rem 0 .5rem}
.verdict{font-size:1.25rem;font-weight:600;margin:.5rem 0 1rem;padding:.6rem .9rem;
border:1px solid var(--line);border-left:.5rem solid var(--good)}
.verdict.drift{border-left-color:var(--bad)}.verdict.unsure{border-left-color:var(--unsure)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;margin:0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere;white-space:pre-line}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding:.3rem 0}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,th:nth-child(2),td:nth-child(2){text-align:left}tbody th{font-weight:500}
tbody tr:nth-child(even){background:var(--row)}
.drift .w,.w.drift{color:var(--bad);font-weight:700}.w.ok{color:var(--good)}
.w.unsure{color:var(--unsure)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(17.5rem,1fr));gap:1rem;padding:0;
list-style:none}
.grid li{border:1px solid var(--line);padding:.6rem;min-width:0}
.grid h3{font-size:.95rem;margin:0 0 .3rem;overflow-wrap:anywhere}
.grid p{margin:.2rem 0 0;font-size:.85rem;color:var(--soft)}
svg{display:block;width:100%;height:auto}
svg .r{fill:var(--area)}svg .c{fill:none;stroke:var(--now);stroke-width:2;stroke-linejoin:round}
svg .a{fill:none;stroke:var(--soft)}svg text{fill:var(--soft);font:11px system-ui,sans-serif}
.key{display:inline-block;width:1.6rem;height:.8rem;vertical-align:baseline;background:var(--area)}
.key.now{background:none;border:2px solid var(--now);border-bottom:0}
"""
_CLASSES: Final = {"drift": "drift", "ok": "ok", "watch": "unsure"}
_MEANINGS: Final = (
    ("psi", "population stability index: how far the shares of ten reference quantiles have moved"),
    ("ks", "largest gap between the two cumulative distributions, from 0 to 1"),
    ("wasserstein", "mean distance that values moved, in standard deviations of the reference"),
    ("p", "probability of a difference like this without drift, before other columns count"),
    ("missing", "rows without a finite value"),
    ("out of range", "rows outside the reference's range, or of a category unknown to it"),
    ("watch", "large, but among so many columns and windows it may well be chance"),
)


def page(made: Report) -> str:
    """Return the page."""
    verdict = made.verdict
    title = f"Drift of {made.model}"
    state = "drift" if verdict.is_drift else "ok" if verdict.is_judged else "unsure"
    columns = report.ordered(verdict.columns)
    return "".join(
        (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            f"<title>{escape(title)}: {escape(report.headline(made))}</title>\n",
            f"<style>\n{_STYLE}</style>\n</head>\n<body>\n<main>\n",
            f"<h1>{escape(title)}</h1>\n",
            f'<p class="verdict {state}" role="status">{escape(report.headline(made))}</p>\n',
            _definitions(report.facts(made)),
            _notes(made),
            "".join(_pictures(columns)),
            _table(columns) if columns else "",
            "<h2>What the figures mean</h2>\n",
            _definitions(iter(_MEANINGS)),
            f"<p>{escape(report.rule(made))}</p>\n",
            "</main>\n</body>\n</html>\n",
        )
    )


def _definitions(pairs: Iterator[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>\n" for name, value in pairs)
    return f"<dl>\n{rows}</dl>\n"


def _notes(made: Report) -> str:
    items = "".join(f"<li>{escape(note)}</li>\n" for note in report.notes(made))
    return f"<h2>Notes</h2>\n<ul>\n{items}</ul>\n" if items else ""


def _table(columns: Sequence[ColumnVerdict]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in report.headings())
    body = "".join(_row(column) for column in columns)
    return (
        '<h2>Columns</h2>\n<div class="scroll" tabindex="0" role="region" aria-label="Columns">'
        "<table>\n<caption>Drifting columns first.</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n"
    )


def _row(column: ColumnVerdict) -> str:
    first, *middle, last = report.cells(column)
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in middle)
    return (
        f'<tr><th scope="row">{escape(first)}</th>{cells}'
        f'<td class="w {_CLASSES[last]}">{escape(last)}</td></tr>\n'
    )


def _pictures(columns: Sequence[ColumnVerdict]) -> Iterator[str]:
    shown = [c for c in columns if c.figures.bars is not None]
    if not shown:
        return
    yield (
        '<h2>Distributions</h2>\n<p><span class="key"></span> reference &nbsp; '
        '<span class="key now"></span> this window. Heights are shares of the rows that have a '
        "value; the first and the last bar of numbers are what is outside the reference's "
        "range.</p>\n"
    )
    for side, heading in ((Side.FEATURE, "Features"), (Side.OUTPUT, "Outputs")):
        of_side = [c for c in shown[:MAX_PICTURES] if c.side is side]
        if of_side:
            items = "".join(_picture(column) for column in of_side)
            yield f'<h2>{heading}</h2>\n<ul class="grid">\n{items}</ul>\n'
    if len(shown) > MAX_PICTURES:
        yield f"<p>{len(shown) - MAX_PICTURES} more columns are in the table only.</p>\n"


def _picture(column: ColumnVerdict) -> str:
    bars = column.figures.bars
    assert bars is not None
    word = report.word(column)
    title = (
        f"Histograms of {column.name}: psi {column.figures.psi:.3f}, "
        f"{column.figures.out_of_range} out of range, {word}"
    )
    return (
        f'<li><h3>{escape(column.name)} <span class="w {_CLASSES[word]}">{word}</span></h3>'
        f"{histogram.svg(bars, title)}"
        f"<p>psi {column.figures.psi:.3f}, p {report.probability(column.figures.p)}</p></li>\n"
    )
