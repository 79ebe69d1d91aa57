"""Prediction records to columns: one numpy array per column, one element per row.

A request of N rows is one record and gives N rows: N is the first axis of its first input, or of
its first output where no inputs were logged (shadows, some errors); never less than one, so that
no record vanishes. Three families of columns:

    rid, row, ts, name, model ...   what META lists, of every record
    in.<tensor>, in.<tensor>.<x>    inputs; x is the name of a column, or its index
    out.<tensor>, out.<tensor>.<x>  outputs

Times are UTC. Text is `str` in object arrays, equal texts being one object; empty where a record
has none. Absent numbers are NaN (see arrays.py).

Knows documents and numpy, nothing of Redis. Read next: tensors.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Final

import numpy as np

from engines.tensors import Array
from gateway.prediction_log.reader.arrays import Rows, join, text_array
from gateway.prediction_log.reader.tensors import ColumnNames, tensor_columns
from gateway.prediction_log.record import LoggedPrediction

IN: Final = "in."
OUT: Final = "out."
TIME: Final = np.dtype("datetime64[us]")
_TEXTS: Final = (
    "name",
    "model",
    "version",
    "variant",
    "served",
    "reason",
    "error",
    "device",
    "sampled_as",
    "worker",
)
_NUMBERS: Final = {
    "status": np.int16,
    "revision": np.int64,
    "propensity": np.float64,
    "weight": np.float64,
    "seq": np.int64,
    "queue_us": np.int64,
    "batch_us": np.int64,
    "infer_us": np.int64,
    "total_us": np.int64,
    "batch_rows": np.int64,
}
CATEGORIES: Final = frozenset(_TEXTS)
"""Text columns of few different values."""
META: Final = ("rid", "row", "ts", *_TEXTS, *_NUMBERS, "cid", "subject", "parent_rid")
"""The columns that every frame has, in their order."""
_RID_BYTES: Final = 16
_RID_CHARACTERS: Final = 36
_DASHES: Final = (8, 13, 18, 23)
_DIGITS: Final = [place for place in range(_RID_CHARACTERS) if place not in _DASHES]
_HEX: Final = np.frombuffer(b"0123456789abcdef", np.uint8)


def to_columns(
    records: Sequence[LoggedPrediction],
    *,
    names: ColumnNames | None = None,
    rows: Rows | None = None,
) -> dict[str, Array]:
    """Return the rows of these records as columns, in the order of the records.

    `names` gives the names of tensors' columns by the digest that a record carries: digest to
    tensor to names (see `schema_key`); without them a column is its index. `rows` is what
    `rows_of` says of the records, where it is known.
    """
    rows = rows or rows_of(records)
    columns = {name: rows.spread(column) for name, column in _meta(records).items()}
    columns["row"] = rows.within()
    columns = {name: columns[name] for name in META}
    digests = [record.columns for record in records]
    known = names or {}
    columns |= tensor_columns(IN, [r.inputs for r in records], digests, rows, known)
    columns |= tensor_columns(OUT, [r.outputs for r in records], digests, rows, known)
    return columns


def rows_of(records: Sequence[LoggedPrediction]) -> Rows:
    """Return how many rows each record gives."""
    return Rows.of(np.fromiter(map(_rows_of, records), np.int64, len(records)))


def join_columns(chunks: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """Append chunks of rows to each other; what a chunk lacks is absent in its rows.

    The chunks are emptied on the way, so that the memory is not needed twice.
    """
    if len(chunks) == 1:
        return chunks[0]
    wanted = dict.fromkeys(name for chunk in chunks for name in chunk)
    lengths = [rows_in(chunk) for chunk in chunks]
    return {name: join([chunk.pop(name, None) for chunk in chunks], lengths) for name in wanted}


def take_rows(columns: Mapping[str, Array], index: Array) -> dict[str, Array]:
    """Return these rows of all columns: positions, or a mask."""
    return {name: column[index] for name, column in columns.items()}


def rows_in(columns: Mapping[str, Array]) -> int:
    """Return the number of rows of columns."""
    return next((len(column) for column in columns.values()), 0)


def rid_texts(rids: Sequence[bytes]) -> Array:
    """Return request ids in the form with dashes, all at once; an empty id is an empty text."""
    array = np.empty(len(rids), object)
    if not any(rids):
        array[:] = ""
        return array
    is_id = [len(rid) == _RID_BYTES for rid in rids]
    blank = bytes(_RID_BYTES)
    joined = b"".join([rid if ok else blank for rid, ok in zip(rids, is_id, strict=True)])
    digits = np.frombuffer(joined, np.uint8).reshape(-1, _RID_BYTES)
    characters = np.full((len(rids), _RID_CHARACTERS), ord("-"), np.uint8)
    characters[:, _DIGITS[::2]] = _HEX[digits >> 4]
    characters[:, _DIGITS[1::2]] = _HEX[digits & 15]
    text = characters.tobytes().decode("ascii")
    starts = range(0, len(text), _RID_CHARACTERS)
    array[:] = [text[start : start + _RID_CHARACTERS] for start in starts]
    for index, ok in enumerate(is_id):
        if not ok:
            array[index] = rids[index].hex()
    return array


def _meta(records: Sequence[LoggedPrediction]) -> dict[str, Array]:
    """Return what META lists, but for `row`: one element per record."""
    columns: dict[str, Array] = {
        "rid": rid_texts([r.rid for r in records]),
        "ts": np.array([r.ts_us for r in records], np.int64).view(TIME),
        "cid": text_array([r.cid for r in records]),
        "subject": text_array([r.subject.hex() for r in records]),
        "parent_rid": rid_texts([r.parent_rid for r in records]),
    }
    for name in _TEXTS:
        columns[name] = text_array(list(map(attrgetter(name), records)))
    for name, dtype in _NUMBERS.items():
        columns[name] = np.fromiter(map(attrgetter(name), records), dtype, len(records))
    return columns


def _rows_of(record: LoggedPrediction) -> int:
    """Return how many rows a record gives."""
    for tensors in (record.inputs, record.outputs):
        for tensor in tensors.values():
            shape = tensor.shape
            return shape[0] or 1 if shape else 1
    return 1
