"""How requests are laid into a batch, and how a batch's answer is cut into theirs.

Knows tensors and rows; knows no queue, no thread and no runtime. Small rows are joined: one copy,
and the cheapest thing per request. Large rows are written into slots, buffers that the batches of
an instance share, so that no batch allocates and first touches megabytes: one copy as well, from
where the transport put the request's bytes to where the engine reads them. A request that is a
batch of its own is not copied at all.

Where the engine runs only some row counts (its buckets), a batch is padded up to the next one by
repeating its last row, and what the padding came to is cut off again: see buckets.py.

Ownership. A slot's content is the engine's until `infer` returns. Outputs belong to the caller of
`infer`: of large ones the answers are views, of small ones they are bytes of their own. A laned
engine lends both its input buffers (`fill`) and its outputs, of which everything is copied.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from engines.base import ModelMetadata, TensorSpec
from engines.batch_queue import QueuedRequest
from engines.buckets import bucket_of
from engines.tensors import BYTES, DATATYPES, Array, Tensor, from_array, join_rows, split_rows

SLOT_FROM_BYTES: Final = 4096
"""Rows of at least this size are written into a slot; smaller ones are joined."""
VIEW_FROM_BYTES: Final = 16 << 10
"""Outputs of at least this size per batch are handed out as views, not as copies."""


class _Input:
    """One input of a model: its slot, and how its rows are laid."""

    def __init__(self, spec: TensorSpec, max_rows: int) -> None:
        self.name = spec.name
        self._datatype = spec.datatype
        self._dtype = DATATYPES[spec.datatype].dtype
        self._is_bytes = spec.datatype == BYTES
        self._max_rows = max_rows
        self._slot = bytearray()

    def lay(self, parts: list[Tensor], rows: int) -> Array:
        """Return the rows of requests as one array, (rows, *item_shape).

        Of fewer rows in the parts the last one is repeated.
        """
        if self._is_bytes:
            return _padded(join_rows(parts), rows)
        item_shape = parts[0].shape[1:]
        row_bytes = math.prod(item_shape) * self._dtype.itemsize
        if row_bytes < SLOT_FROM_BYTES:
            data = b"".join([part.data for part in parts])
            if missing := rows * row_bytes - len(data):
                data += data[-row_bytes:] * (missing // row_bytes)
            return np.frombuffer(data, self._dtype).reshape(rows, *item_shape)
        size = rows * row_bytes
        if len(self._slot) < size:
            wanted = min(1 << (rows - 1).bit_length(), max(self._max_rows, rows)) * row_bytes
            self._slot = bytearray(wanted)
        _write(parts, memoryview(self._slot)[:size], row_bytes)
        flat = np.frombuffer(self._slot, self._dtype, size // self._dtype.itemsize)
        return flat.reshape(rows, *item_shape)

    def fill(self, parts: list[Tensor], into: Array) -> None:
        """Write the rows of requests into an array that takes as many, or more: see `lay`."""
        if into.nbytes:
            rows = into.shape[0] if into.ndim else 1
            _write(parts, into.data.cast("B"), into.nbytes // rows)


class Layout:
    """Lays and cuts the batches of one instance; used by one thread at a time."""

    def __init__(self, metadata: ModelMetadata) -> None:
        self._inputs = [_Input(spec, metadata.max_batch_size) for spec in metadata.inputs]
        self._outputs = metadata.outputs
        self._is_batched = metadata.max_batch_size > 0
        self._buckets = metadata.buckets

    def run_rows(self, rows: int) -> int:
        """Return the rows that the engine is given for a batch of so many: with the padding."""
        return bucket_of(self._buckets, rows)

    def shapes(self, requests: Sequence[QueuedRequest], rows: int) -> dict[str, tuple[int, ...]]:
        """Return the whole shapes of the engine's inputs, to `fill`."""
        first = (self.run_rows(rows),) if self._is_batched else ()
        skipped = len(first)
        return {
            given.name: (*first, *tensor.shape[skipped:])
            for given, tensor in zip(self._inputs, requests[0].inputs, strict=True)
        }

    def fill(self, requests: Sequence[QueuedRequest], into: Mapping[str, Array]) -> None:
        """Write the requests' rows, and the padding, into the engine's own arrays."""
        for position, given in enumerate(self._inputs):
            given.fill([request.inputs[position] for request in requests], into[given.name])

    def lay(self, requests: Sequence[QueuedRequest], rows: int) -> Mapping[str, Array]:
        """Return the engine's inputs; valid until the next call."""
        run_rows = self.run_rows(rows)
        if len(requests) == 1 and run_rows == rows:
            tensors = requests[0].inputs
            return {
                given.name: tensor.array()
                for given, tensor in zip(self._inputs, tensors, strict=True)
            }
        return {
            given.name: given.lay([request.inputs[position] for request in requests], run_rows)
            for position, given in enumerate(self._inputs)
        }

    def cut(
        self,
        outputs: Mapping[str, Array],
        requests: Sequence[QueuedRequest],
        rows: int,
        *,
        is_lent: bool = False,
    ) -> list[tuple[Tensor, ...]]:
        """Return each request's outputs, in the model's order.

        Args:
            is_lent: whether the outputs are the engine's, so that no answer may be a view of them.

        Raises:
            ValueError: an output does not have the batch's rows.
        """
        view_from_bytes = sys.maxsize if is_lent else VIEW_FROM_BYTES
        run_rows = self.run_rows(rows)
        if len(requests) == 1 and run_rows == rows:
            return [
                tuple(_whole(spec, outputs[spec.name], view_from_bytes) for spec in self._outputs)
            ]
        columns = []
        for spec in self._outputs:
            array = outputs[spec.name]
            if array.shape[:1] != (run_rows,):
                raise ValueError(
                    f"output {spec.name!r} has shape {array.shape} for a batch of {run_rows} rows"
                )
            columns.append(_column(spec, array[:rows], requests, view_from_bytes))
        return list(zip(*columns, strict=True))


def _write(parts: Sequence[Tensor], into: memoryview, row_bytes: int) -> None:
    """Write the rows of requests one after the other; where there is room left, the last again."""
    start = 0
    for part in parts:
        end = start + len(part.data)
        into[start:end] = part.data
        start = end
    last = bytes(into[start - row_bytes : start]) if start < len(into) else b""
    while start < len(into):
        into[start : start + row_bytes] = last
        start += row_bytes


def _padded(array: Array, rows: int) -> Array:
    if len(array) == rows:
        return array
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])


def _whole(spec: TensorSpec, array: Array, view_from_bytes: int) -> Tensor:
    if array.nbytes >= view_from_bytes and spec.datatype != BYTES and array.flags.c_contiguous:
        return Tensor(spec.name, spec.datatype, array.shape, array.data.cast("B"))
    return from_array(spec.name, spec.datatype, array)


def _column(
    spec: TensorSpec, array: Array, requests: Sequence[QueuedRequest], view_from_bytes: int
) -> list[Tensor]:
    """Cut one output by the rows of the requests."""
    name, datatype, rows = spec.name, spec.datatype, len(array)
    if rows != len(requests) or datatype == BYTES:
        return split_rows(name, datatype, array, [request.rows for request in requests])
    is_viewed = array.nbytes >= view_from_bytes and array.flags.c_contiguous
    data = array.data.cast("B") if is_viewed else array.tobytes()
    shape = (1, *array.shape[1:])
    stride = len(data) // rows
    if not stride:
        return [Tensor(name, datatype, shape, b"")] * rows
    return [
        Tensor(name, datatype, shape, data[start : start + stride])
        for start in range(0, len(data), stride)
    ]
