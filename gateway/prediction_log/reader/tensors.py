"""The tensors of many records to columns, and what stands for those that were not kept whole.

Records whose tensors have one name, datatype, shape and column names are one form: their bytes are
joined and read at once. A tensor whose first axis is the record's number of rows is cut into rows;
any other (a scalar, a setting) is repeated in each of the record's rows. Last axes are flattened.

    in.x                            one element per row
    in.x.3, in.x.age, in.x.2.age    several: by index, by name, by leading axes and name
    in.x.mean ... in.x.count        more than MAX_COLUMNS elements per row, or kept as statistics
    in.x.channel.0.mean, in.x.histogram.7, in.x.thumb.12, in.x.digest, in.x.uri
    in.x.kept                       why it is not whole: redacted, malformed or Reduced.kind

Statistics that the gateway took are those of the record's whole tensor and repeat in its rows; a
thumbnail is that of the first row, and stands there. Statistics of a tensor that is whole but wide
are taken here, per row. BYTES are text (UTF-8, other bytes escaped); BF16 and FP16 become float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from engines.tensors import BYTES, DATATYPES, Array, decode_bytes
from gateway.prediction_log.reader.arrays import Piece, Rows, assemble, text_array
from gateway.prediction_log.record import LoggedTensor, Reduced

MAX_COLUMNS: Final = 4_096
"""Most columns of one tensor; wider ones are given as statistics."""
KEPT: Final = "kept"
REDACTED: Final = "redacted"
MALFORMED: Final = "malformed"

ColumnNames = Mapping[bytes, Mapping[str, Sequence[str]]]
"""Digest to tensor to the names of its last axis."""
_Form = tuple[str, str, tuple[int, ...], bytes]
"""Name, datatype, shape, digest of the column names."""
_Pieces = dict[str, list[Piece]]
"""By column, in the order of the tensors."""
_Values = dict[str, tuple[list[int], list[float | str]]]
"""By column: the numbers of records, and one value for each of them."""


def tensor_columns(
    prefix: str,
    tensors: Sequence[Mapping[str, LoggedTensor]],
    digests: Sequence[bytes],
    rows: Rows,
    names: ColumnNames,
) -> dict[str, Array]:
    """Return the columns of the tensors of records; `prefix` stands before their names."""
    whole: dict[_Form, tuple[list[int], list[bytes]]] = {}
    others: list[tuple[int, str, LoggedTensor]] = []
    for index, (of_record, digest) in enumerate(zip(tensors, digests, strict=True)):
        for name, tensor in of_record.items():
            payload = tensor.payload
            if type(payload) is not bytes:
                others.append((index, name, tensor))
                continue
            form = (name, tensor.datatype, tensor.shape, digest)
            group = whole.get(form)
            if group is None:
                group = whole[form] = ([], [])
            group[0].append(index)
            group[1].append(payload)
    pieces: _Pieces = {}
    for form, (records, payloads) in whole.items():
        known = tuple(names.get(form[3], {}).get(form[0], ()))
        _add_whole(pieces, prefix + form[0], form, (records, payloads, known), rows)
    values: _Values = {}
    for index, name, tensor in others:
        _add_other(values, prefix + name, index, tensor.payload)
        _add_elements(pieces, prefix + name, rows.of_records(np.array([index])), tensor)
    for column, (indices, found) in values.items():
        with_values = np.array(indices)
        of_records = text_array(found) if isinstance(found[0], str) else np.array(found)
        repeated = np.repeat(of_records, rows.counts[with_values])
        pieces.setdefault(column, []).append((rows.of_records(with_values), repeated))
    return {column: assemble(found, rows.total) for column, found in pieces.items()}


@lru_cache(maxsize=1_024)
def element_names(column: str, tail: tuple[int, ...], names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the columns of one row's elements, shape `tail`, row-major."""
    width = math.prod(tail)
    if tail and len(names) == tail[-1]:
        if len(tail) == 1:
            return tuple(f"{column}.{name}" for name in names)
        leading = width // len(names)
        return tuple(f"{column}.{index}.{name}" for index in range(leading) for name in names)
    return (column,) if width == 1 else tuple(f"{column}.{index}" for index in range(width))


def _add_whole(
    pieces: _Pieces,
    column: str,
    form: _Form,
    group: tuple[list[int], list[bytes], tuple[str, ...]],
    rows: Rows,
) -> None:
    """Add the elements of tensors of one form, all of them whole."""
    _, datatype, shape, _ = form
    indices, payloads, names = group
    values = _elements(datatype, shape, payloads)
    records = np.array(indices)
    if values is None:  # some bytes contradict the shape: find out which
        parts = [_elements(datatype, shape, [payload]) for payload in payloads]
        sound = np.array([part is not None for part in parts])
        at = rows.of_records(records[~sound])
        pieces.setdefault(f"{column}.{KEPT}", []).append((at, text_array([MALFORMED] * len(at))))
        if not sound.any():
            return
        values = np.concatenate([part for part in parts if part is not None])
        records = records[sound]
    counts = rows.counts[records]
    is_cut = counts == shape[0] if shape else np.zeros(len(records), bool)
    for cut, chosen in ((True, is_cut), (False, ~is_cut)):
        if chosen.all():
            _add_rows(pieces, column, (values, shape, names, cut), records, rows)
        elif chosen.any():
            _add_rows(pieces, column, (values[chosen], shape, names, cut), records[chosen], rows)


def _add_rows(
    pieces: _Pieces,
    column: str,
    block: tuple[Array, tuple[int, ...], tuple[str, ...], bool],
    records: Array,
    rows: Rows,
) -> None:
    """Add the elements of records: `values` has one line per record, cut into rows or repeated."""
    values, shape, names, is_cut = block
    tail = shape[1:] if is_cut else shape
    width = math.prod(tail)
    at = None if len(records) == len(rows.counts) else rows.of_records(records)
    if is_cut:
        values = values.reshape(-1, width)
    elif rows.is_exploded:
        values = np.repeat(values, rows.counts[records], axis=0)
    if width > MAX_COLUMNS:
        for name, statistic in _statistics(values).items():
            pieces.setdefault(f"{column}.{name}", []).append((at, statistic))
        return
    # One copy makes each column contiguous, which everything behind this is faster for.
    by_column = np.ascontiguousarray(values.T)
    for index, name in enumerate(element_names(column, tail, names)):
        pieces.setdefault(name, []).append((at, by_column[index]))


def _elements(datatype: str, shape: tuple[int, ...], payloads: Sequence[bytes]) -> Array | None:
    """Return the elements of tensors of one form, one line each; None: not the form's bytes."""
    known = DATATYPES.get(datatype)
    if known is None or min(shape, default=0) < 0:
        return None
    size = math.prod(shape)
    if datatype == BYTES:
        try:
            texts = [decode_bytes(payload) for payload in payloads]
        except ValueError:
            return None
        if any(len(elements) != size for elements in texts):
            return None
        flat = text_array([text_of(e) for elements in texts for e in elements])
        return flat.reshape(len(payloads), size)
    if set(map(len, payloads)) != {size * known.item_bytes}:
        return None
    joined = np.frombuffer(b"".join(payloads), known.dtype)
    return _numbers(datatype, joined).reshape(len(payloads), size)


def text_of(element: bytes) -> str:
    """Return a BYTES element as text."""
    return element.decode(errors="backslashreplace")


def _numbers(datatype: str, flat: Array) -> Array:
    if datatype == "BF16":  # the upper half of an FP32
        return (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.astype(np.float32) if datatype == "FP16" else flat


def _statistics(values: Array) -> dict[str, Array]:
    """Return statistics per line, of finite elements; of texts those of their lengths."""
    if values.dtype == object:
        values = np.array([[len(text) for text in line] for line in values], np.float64)
    columns: dict[str, list[float]] = {}
    for line in values:
        numbers = line.astype(np.float64)
        finite = numbers[np.isfinite(numbers)]
        found = {
            "count": float(numbers.size),
            "nan": float(np.isnan(numbers).sum()),
            "inf": float(np.isinf(numbers).sum()),
            "min": float(finite.min(initial=np.inf)) if finite.size else math.nan,
            "max": float(finite.max(initial=-np.inf)) if finite.size else math.nan,
            "mean": float(finite.mean()) if finite.size else math.nan,
            "std": float(finite.std()) if finite.size else math.nan,
        }
        for name, value in found.items():
            columns.setdefault(name, []).append(value)
    return {name: np.array(found) for name, found in columns.items()}


def _add_other(values: _Values, column: str, index: int, payload: bytes | Reduced | None) -> None:
    """Add what is known of one tensor that is not whole."""
    for name, value in _known(payload):
        of_column = values.get(f"{column}.{name}")
        if of_column is None:
            of_column = values[f"{column}.{name}"] = ([], [])
        of_column[0].append(index)
        of_column[1].append(value)


def _known(payload: bytes | Reduced | None) -> Iterator[tuple[str, float | str]]:
    if not isinstance(payload, Reduced):
        yield KEPT, REDACTED
        return
    yield KEPT, payload.kind
    yield from payload.statistics.items()
    for index, (mean, std) in enumerate(payload.channels):
        yield f"channel.{index}.mean", mean
        yield f"channel.{index}.std", std
    for index, count in enumerate(payload.histogram):
        yield f"histogram.{index}", float(count)
    if payload.digest:
        yield "digest", payload.digest.hex()
    if payload.uri:
        yield "uri", payload.uri


def _add_elements(pieces: _Pieces, column: str, at: Array, tensor: LoggedTensor) -> None:
    """Add the elements that were kept of one tensor that is not whole."""
    payload = tensor.payload
    if isinstance(payload, Reduced) and payload.kind == "trunc":
        _add_start(pieces, column, tensor, at)
    elif isinstance(payload, Reduced) and payload.thumb_shape:
        _add_thumb(pieces, f"{column}.thumb", payload, at)


def _add_start(pieces: _Pieces, column: str, tensor: LoggedTensor, at: Array) -> None:
    """Add the elements from the start of a tensor that were kept; the rest is absent."""
    tail = tensor.shape[1:] if tensor.shape and tensor.shape[0] == len(at) else tensor.shape
    width = math.prod(tail)
    if width > MAX_COLUMNS or tensor.datatype not in DATATYPES:
        return
    try:
        kept = tensor.array()
    except ValueError:
        return
    if tensor.datatype == BYTES:
        start = text_array([text_of(element) for element in kept])
        table = np.full((len(at), width), None, object)
    else:
        start = _numbers(tensor.datatype, kept)
        table = np.full((len(at), width), np.nan)
    if tail is tensor.shape:
        table[:, : len(start)] = start
    else:
        table.reshape(-1)[: len(start)] = start
    for index, name in enumerate(element_names(column, tail, ())):
        pieces.setdefault(name, []).append((at, table[:, index]))


def _add_thumb(pieces: _Pieces, column: str, payload: Reduced, at: Array) -> None:
    """Add the small picture, which is that of the first row."""
    values = np.frombuffer(payload.data, np.float32) if len(payload.data) % 4 == 0 else _NOTHING
    if values.size != math.prod(payload.thumb_shape) or values.size > MAX_COLUMNS:
        return
    for index in range(values.size):
        pieces.setdefault(f"{column}.{index}", []).append((at[:1], values[index : index + 1]))


_NOTHING: Final = np.empty(0, np.float32)
