"""Tables in files: references read from Parquet and written to it. The only user of pyarrow here.

pyarrow is optional (`sluice-gateway[drift]`) and large: it is imported when a file is.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from gateway.drift import column, rows
from gateway.drift.column import Values
from gateway.drift.rows import Columns, DriftError

_KEPT: Final = ("row", "status", "weight")
"""What a reference needs beside its features, outputs and labels: no ids, no subjects."""


def read(path: Path) -> dict[str, Values]:
    """Return the columns of a Parquet file.

    Raises:
        DriftError: it cannot be read, or pyarrow is not installed.
    """
    arrow, parquet = _arrow()
    try:
        # Not by its path: a folder, or a name with =, would be read as a partitioned data set.
        with path.open("rb") as file:
            table = parquet.read_table(file)
    except OSError as exc:
        raise DriftError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except arrow.ArrowException as exc:
        raise DriftError(f"{path} is no Parquet file: {exc}") from exc
    return {name: _values(arrow, table.column(name)) for name in table.column_names}


def write(path: Path, columns: Columns) -> None:
    """Write columns to a Parquet file, in place at once.

    Raises:
        DriftError: it cannot be written, or pyarrow is not installed.
    """
    arrow, parquet = _arrow()
    part = path.with_name(path.name + ".part")
    try:
        made = {
            name: arrow.array(_plain(values), from_pandas=True) for name, values in columns.items()
        }
        parquet.write_table(arrow.table(made), part, compression="zstd")
        os.replace(part, path)
    except OSError as exc:
        part.unlink(missing_ok=True)
        raise DriftError(f"cannot write {path}: {exc.strerror or exc}") from exc
    except arrow.ArrowException as exc:
        part.unlink(missing_ok=True)
        raise DriftError(f"cannot write {path}: {exc}") from exc


def for_reference(columns: Columns) -> dict[str, Values]:
    """Return what a reference needs of the columns of the log, and nothing that names anybody."""
    judged = set(rows.judged(columns))
    return {
        name: values
        for name, values in columns.items()
        if name in judged or name in _KEPT or name == rows.LABEL
    }


def _plain(values: Values) -> Values:
    """Return objects, which labels may be, as text."""
    return column.texts(values) if values.dtype.kind == "O" else values


def _values(arrow: Any, found: Any) -> Values:  # Any: pyarrow ships no types
    kinds = arrow.types
    if kinds.is_dictionary(found.type):
        found = found.cast(found.type.value_type)
    if kinds.is_decimal(found.type) or kinds.is_null(found.type):
        found = found.cast(arrow.float64())
    if kinds.is_date(found.type):
        found = found.cast(arrow.timestamp("us"))
    values = np.asarray(found.to_numpy())
    return values if values.flags.writeable else values.copy()


def _arrow() -> tuple[Any, Any]:  # Any: pyarrow ships no types
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as exc:
        sentence = "Parquet needs pyarrow: pip install 'sluice-gateway[drift]'"
        raise DriftError(sentence) from exc
