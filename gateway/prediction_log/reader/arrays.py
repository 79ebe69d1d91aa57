"""What columns are made of: arrays of one element per row, some of them absent.

Absent is NaN in floats, NaT in times and None in objects; a column of integers or booleans with
absent elements becomes float64. Knows numpy, nothing of records.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from engines.tensors import Array

_OBJECT: Final = np.dtype(object)
_DOUBLE: Final = np.dtype(np.float64)
Dtype = np.dtype[Any]  # Any: known from the column, not statically


@dataclass(frozen=True, slots=True)
class Rows:
    """How many rows each record gives, and where they begin."""

    counts: Array
    starts: Array
    total: int
    is_exploded: bool
    """Some record gives more than one row."""

    @classmethod
    def of(cls, counts: Array) -> Rows:
        """Lay the rows of the records out behind each other."""
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        return cls(counts, ends - counts, total, total != len(counts))

    def spread(self, column: Array) -> Array:
        """Repeat one element per record in each of its rows."""
        return np.repeat(column, self.counts) if self.is_exploded else column

    def within(self) -> Array:
        """Return the number of each row in its record."""
        if not self.is_exploded:
            return np.zeros(self.total, np.int32)
        within: Array = np.arange(self.total) - np.repeat(self.starts, self.counts)
        return within.astype(np.int32)

    def of_records(self, records: Array) -> Array:
        """Return the numbers of the rows of these records, one record after the other."""
        if not self.is_exploded:
            return records
        counts = self.counts[records]
        before = np.repeat(np.cumsum(counts) - counts, counts)
        firsts: Array = np.repeat(self.starts[records], counts)
        numbers: Array = firsts + np.arange(int(counts.sum())) - before
        return numbers


Piece = tuple[Array | None, Array]
"""Some elements of a column and the rows that they belong to; None: all rows in order."""


def assemble(pieces: Sequence[Piece], total: int) -> Array:
    """Put the pieces of one column together; rows that no piece has are absent."""
    if len(pieces) == 1 and pieces[0][0] is None:
        return pieces[0][1]
    covered = sum(len(values) for _, values in pieces)
    dtype = common_dtype((values.dtype for _, values in pieces), is_partial=covered < total)
    column = blank(total, dtype) if covered < total else np.empty(total, dtype)
    for rows, values in pieces:
        column[slice(None) if rows is None else rows] = values
    return column


def join(parts: Sequence[Array | None], lengths: Sequence[int]) -> Array:
    """Append parts of one column to each other; None: absent in so many rows."""
    present = [part for part in parts if part is not None]
    dtype = common_dtype((part.dtype for part in present), is_partial=len(present) < len(parts))
    return np.concatenate(
        [
            blank(length, dtype) if part is None else part.astype(dtype, copy=False)
            for part, length in zip(parts, lengths, strict=True)
        ]
    )


def blank(length: int, dtype: Dtype) -> Array:
    """Return a column whose elements are all absent."""
    if dtype == _OBJECT:
        return np.full(length, None, dtype)
    return np.full(length, "NaT" if dtype.kind == "M" else np.nan, dtype)


def common_dtype(dtypes: Iterable[Dtype], *, is_partial: bool) -> Dtype:
    """Return the type that holds all of these, and absent elements where there are some."""
    found = set(dtypes)
    kinds = {dtype.kind for dtype in found}
    if "O" in kinds or ("M" in kinds and len(kinds) > 1):
        return _OBJECT
    if kinds > {"b"}:  # truth and numbers in one column
        return _DOUBLE
    common = np.result_type(*found)
    return _DOUBLE if is_partial and common.kind in "iub" else common


def text_array(values: Sequence[object]) -> Array:
    """Return texts as an object array in which equal ones are one object, and None stays None."""
    array = np.empty(len(values), object)
    different = set(values)
    if len(different) == 1:
        array[:] = next(iter(different))
        return array
    one = dict(zip(different, different, strict=True))
    array[:] = [one[value] for value in values]
    return array
