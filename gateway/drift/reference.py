"""What a reference is: the profiles of its columns, and its rates of errors and wrong answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.drift import column, rows
from gateway.drift.column import Profile
from gateway.drift.concept import Rate
from gateway.drift.rows import Columns, DriftError, Truth

MIN_ROWS: Final = 30
"""A reference with fewer rows is refused."""
_NO_FEATURES: Final = frozenset(
    {
        "rid", "row", "ts", "cid", "subject", "parent_rid", "name", "model", "version", "variant",
        "served", "reason", "error", "device", "sampled_as", "worker", "status", "revision",
        "propensity", "weight", "seq", "queue_us", "batch_us", "infer_us", "total_us", "batch_rows",
        "__index_level_0__",
    }
)  # fmt: skip
"""Columns of the reader that say something about a request; and what pandas leaves in files."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """What windows are compared with. Its size does not depend on the number of rows."""

    source: str
    """Where it comes from, for people."""
    rows: int
    profiles: Mapping[str, Profile]
    errors: Rate | None
    """Share of requests answered with an error; None: the table does not know statuses."""
    wrong: Rate | None
    """Share of labelled answers that were wrong; None: there are no labels."""
    notes: tuple[str, ...]
    """What was left out, and why."""


def make(columns: Columns, *, source: str, truth: Truth | None = None) -> Reference:
    """Return the reference that a table makes. `truth` None: labels are not looked at.

    Raises:
        DriftError: it has too few rows, or no column that could be a feature.
    """
    counted = rows.answered(columns)
    size = rows.length(counted)
    if size < MIN_ROWS:
        raise DriftError(f"{source} has {size} answered rows; a reference needs {MIN_ROWS}")
    names, notes = _names(counted)
    weights = rows.weights_of(counted)
    profiles = {}
    for name in names:
        kind = column.kind_of(counted[name])
        made = column.profile(name, counted[name], weights)
        if _is_identifier(made, size):
            notes.append(f"{name} is left out: nearly every row has another {kind}")
        else:
            profiles[name] = made
    if not profiles:
        raise DriftError(f"{source} has no column that could be a feature")
    rate = rows.error_rate(columns)
    return Reference(
        source=source,
        rows=size,
        profiles=profiles,
        errors=rate[0] if rate else None,
        wrong=rows.label_rate(counted, truth) if truth else None,
        notes=tuple(notes),
    )


def _names(columns: Columns) -> tuple[list[str], list[str]]:
    """Return the columns to judge, and notes on those that are not."""
    named = rows.judged(columns)
    if named:
        return named, []
    bare = [n for n in columns if n not in _NO_FEATURES and not n.startswith(rows.LABEL)]
    flat = [n for n in bare if columns[n].ndim == 1 and not _is_nested(columns, n)]
    left_out = [n for n in bare if n not in flat]
    return flat, [f"{name} is left out: its rows are lists" for name in left_out]


def _is_nested(columns: Columns, name: str) -> bool:
    values = columns[name]
    if values.dtype.kind != "O":
        return False
    first = next((value for value in values if value is not None), None)
    return hasattr(first, "__len__") and not isinstance(first, str | bytes)


def _is_identifier(made: Profile, size: int) -> bool:
    content = made.content
    if not isinstance(content, column.Categories):
        return False
    return len(content.labels) > min(column.MAX_CATEGORIES, max(column.MAX_CODES, size // 2))
