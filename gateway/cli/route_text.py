"""Pieces of readable text: aligned tables, percents, names, and colours where they are wanted.

Pure. What other people wrote (reasons, actors, replica names) is made printable first: it must not
be able to move the cursor of the terminal that shows it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import msgspec

from gateway.cli.route_documents import Json

NOTHING: Final = "-"
GAP: Final = "  "


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """Whether to emphasise with colours; off: the same text without them."""

    is_coloured: bool = False

    def bold(self, text: str) -> str:
        """Emphasise a heading."""
        return self._wrapped(text, "1")

    def warning(self, text: str) -> str:
        """Emphasise what needs attention."""
        return self._wrapped(text, "31")

    def good(self, text: str) -> str:
        """Emphasise that all is well."""
        return self._wrapped(text, "32")

    def _wrapped(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.is_coloured else text


PLAIN: Final = Style()


def printable(text: str) -> str:
    """Return a text on one line, control characters written out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    style: Style = PLAIN,
    right: Collection[str] = (),
) -> list[str]:
    """Return the lines of an aligned table.

    Args:
        headers: one per column.
        rows: as many cells each; an empty cell is shown as a dash.
        style: for the line of headers.
        right: headers of the columns that are aligned to the right.
    """
    cells = [[printable(cell) or NOTHING for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if header in right else cell.ljust(width)
            for header, cell, width in zip(headers, row, widths, strict=True)
        )
        return GAP.join(padded).rstrip()

    return [style.bold(line(headers)), *map(line, cells)]


def percent(share: Decimal | float | None) -> str:
    """Return a share as people write it: at most four decimals, no needless zeros."""
    if share is None:
        return NOTHING
    text = f"{Decimal(str(share)):.4f}".rstrip("0").rstrip(".")
    return f"{text} %"


def rounded(value: float | None, digits: int = 1) -> str:
    """Return a measured number with a fixed number of decimals."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def split(weights: Mapping[str, Decimal]) -> str:
    """Return weights by variant, the heaviest first."""
    ordered = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {percent(weight)}" for name, weight in ordered)


def seconds(instant: str) -> str:
    """Return an RFC 3339 instant without the parts of a second."""
    whole, dot, rest = instant.partition(".")
    return whole + (rest.lstrip("0123456789") if dot else "")


def quoted(text: str) -> str:
    """Return what somebody wrote, in quotes."""
    return f'"{printable(text)}"'


def as_json(value: Json) -> str:
    """Return a JSON value on one line; only plain texts stand without quotes."""
    return printable(msgspec.json.encode(value).decode())
