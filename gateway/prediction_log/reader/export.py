"""A window of the log to a Parquet file, in bounded memory.

Rows are written a group at a time, as they are read: stream by stream about in order of time. A
file has one schema, and a window may show columns late (a new tensor, an integer that is absent
from now on). Then a part ends and another begins; at the end the parts are rewritten as one file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import redis

from engines.tensors import Array
from gateway.prediction_log.reader.columns import join_columns, rows_in
from gateway.prediction_log.reader.completeness import Completeness
from gateway.prediction_log.reader.extras import extra, to_arrow
from gateway.prediction_log.reader.reading import Reading, What

ROW_GROUP: Final = 65_536
"""Rows of a row group, about."""
ROW_GROUP_BYTES: Final = 128 << 20
"""Of its columns; a row group ends at either."""
COMPLETENESS_KEY: Final = b"sluice.completeness"
"""Metadata of the file: the completeness of its window, as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written."""

    rows: int
    completeness: Completeness


def export_parquet(client: redis.Redis, path: Path, what: What) -> Exported:
    """Write a window to a Parquet file, which appears when it is complete.

    Raises:
        MissingExtra: pyarrow is not installed.
        OSError: the file cannot be written.
        RedisError: Redis cannot be read.
    """
    parquet = extra("pyarrow.parquet")
    reading = Reading(client, what)
    parts = _Parts(path, parquet)
    try:
        rows = 0
        for columns in _groups(reading.chunks()):
            rows += rows_in(columns)
            parts.write(to_arrow(columns))
        if not rows:
            parts.write(to_arrow(reading.columns([])))
        completeness = reading.completeness()
        parts.finish({COMPLETENESS_KEY: msgspec.json.encode(completeness.document())})
    finally:
        parts.remove()
    return Exported(rows=rows, completeness=completeness)


def _groups(chunks: Iterator[dict[str, Array]]) -> Iterator[dict[str, Array]]:
    """Join chunks until they make a row group."""
    waiting: list[dict[str, Array]] = []
    rows = size = 0
    for chunk in chunks:
        waiting.append(chunk)
        rows += rows_in(chunk)
        size += sum(column.nbytes for column in chunk.values())
        if rows >= ROW_GROUP or size >= ROW_GROUP_BYTES:
            yield join_columns(waiting)
            waiting, rows, size = [], 0, 0
    if waiting:
        yield join_columns(waiting)


class _Parts:
    """Files of one schema each, beside the file that they become."""

    def __init__(self, path: Path, parquet: Any) -> None:  # Any: pyarrow is no dependency
        self._path = path
        self._parquet = parquet
        self._paths: list[Path] = []
        self._schemas: list[Any] = []  # Any: as above
        self._writer: Any = None

    def write(self, table: Any) -> None:  # Any: a pyarrow Table
        if not self._schemas or table.schema != self._schemas[-1]:
            self._close()
            self._paths.append(self._path.with_name(f"{self._path.name}.part{len(self._paths)}"))
            self._schemas.append(table.schema)
            self._writer = self._open(self._paths[-1], table.schema)
        self._writer.write_table(table)

    def finish(self, metadata: dict[bytes, bytes]) -> None:
        """Make one file of the parts, under its own name."""
        if len(self._paths) > 1:
            self._rewrite()
        self._writer.add_key_value_metadata(metadata)
        self._close()
        os.replace(self._paths[-1], self._path)

    def remove(self) -> None:
        """Delete what is left of the parts."""
        self._close()
        for path in self._paths:
            path.unlink(missing_ok=True)

    def _rewrite(self) -> None:
        arrow = extra("pyarrow")
        self._close()
        schema = _unified(arrow, self._schemas)
        parts = list(self._paths)
        self._paths.append(self._path.with_name(f"{self._path.name}.part{len(parts)}"))
        self._writer = self._open(self._paths[-1], schema)
        for part in parts:
            with self._parquet.ParquetFile(part) as file:
                for group in range(file.num_row_groups):
                    self._writer.write_table(_fitted(arrow, file.read_row_group(group), schema))

    def _open(self, path: Path, schema: Any) -> Any:  # Any: as above
        return self._parquet.ParquetWriter(path, schema, compression="zstd")

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


def _unified(arrow: Any, schemas: Sequence[Any]) -> Any:  # Any: pyarrow ships no types
    """Return a schema that holds what all of these hold; numbers and text together are text."""
    types: dict[str, Any] = {}
    for schema in schemas:
        for field in schema:
            types[field.name] = _wider(arrow, types.get(field.name, field.type), field.type)
    return arrow.schema(list(types.items()))


def _wider(arrow: Any, one: Any, other: Any) -> Any:  # Any: as above
    if one == other:
        return one
    if arrow.types.is_string(one) or arrow.types.is_string(other):
        return arrow.string()
    pair = (arrow.schema([("", one)]), arrow.schema([("", other)]))
    return arrow.unify_schemas(pair, promote_options="permissive").field(0).type


def _fitted(arrow: Any, table: Any, schema: Any) -> Any:  # Any: as above
    """Return a table with the columns of a schema; those that it lacks are null."""
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else arrow.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return arrow.table(columns, schema=schema)
