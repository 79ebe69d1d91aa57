"""How requests are laid into a batch, and how a batch's answer is cut into theirs.

Knows tensors and rows; knows no queue, no thread and no runtime. Small rows are joined: one copy,
and the cheapest thing per request. Large rows are written into slots, buffers that the batches of
an instance share, so that no batch allocates and first touches megabytes: one copy as well, from
where the transport put the request's bytes to where the engine reads them. A request that is a
batch of its own is not copied at all.

Ownership. A slot's content is the engine's until `infer` returns. Outputs belong to the caller of
`infer`: of large ones the answers are views, of small ones they are bytes of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from engines.base import ModelMetadata, TensorSpec
from engines.batch_queue import QueuedRequest
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
        """Return the rows of several requests as one array, (rows, *item_shape)."""
        if self._is_bytes:
            return join_rows(parts)
        item_shape = parts[0].shape[1:]
        row_bytes = math.prod(item_shape) * self._dtype.itemsize
        if row_bytes < SLOT_FROM_BYTES:
            flat = np.frombuffer(b"".join([part.data for part in parts]), self._dtype)
            return flat.reshape(rows, *item_shape)
        size = rows * row_bytes
        if len(self._slot) < size:
            wanted = min(1 << (rows - 1).bit_length(), max(self._max_rows, rows)) * row_bytes
            self._slot = bytearray(wanted)
        start, view = 0, memoryview(self._slot)
        for part in parts:
            end = start + len(part.data)
            view[start:end] = part.data
            start = end
        flat = np.frombuffer(self._slot, self._dtype, size // self._dtype.itemsize)
        return flat.reshape(rows, *item_shape)


class Layout:
    """Lays and cuts the batches of one instance; used by one thread at a time."""

    def __init__(self, metadata: ModelMetadata) -> None:
        self._inputs = [_Input(spec, metadata.max_batch_size) for spec in metadata.inputs]
        self._outputs = metadata.outputs
        self._is_batched = metadata.max_batch_size > 0

    def lay(self, requests: Sequence[QueuedRequest], rows: int) -> Mapping[str, Array]:
        """Return the engine's inputs; valid until the next call."""
        if len(requests) == 1:
            tensors = requests[0].inputs
            return {
                given.name: tensor.array()
                for given, tensor in zip(self._inputs, tensors, strict=True)
            }
        return {
            given.name: given.lay([request.inputs[position] for request in requests], rows)
            for position, given in enumerate(self._inputs)
        }

    def cut(
        self, outputs: Mapping[str, Array], requests: Sequence[QueuedRequest], rows: int
    ) -> list[tuple[Tensor, ...]]:
        """Return each request's outputs, in the model's order.

        Raises:
            ValueError: an output does not have the batch's rows.
        """
        if len(requests) == 1 or not self._is_batched:
            return [tuple(_whole(spec, outputs[spec.name]) for spec in self._outputs)]
        columns = []
        for spec in self._outputs:
            array = outputs[spec.name]
            if array.shape[:1] != (rows,):
                raise ValueError(
                    f"output {spec.name!r} has shape {array.shape} for a batch of {rows} rows"
                )
            columns.append(_column(spec, array, requests, rows))
        return list(zip(*columns, strict=True))


def _whole(spec: TensorSpec, array: Array) -> Tensor:
    if array.nbytes >= VIEW_FROM_BYTES and spec.datatype != BYTES and array.flags.c_contiguous:
        return Tensor(spec.name, spec.datatype, array.shape, array.data.cast("B"))
    return from_array(spec.name, spec.datatype, array)


def _column(
    spec: TensorSpec, array: Array, requests: Sequence[QueuedRequest], rows: int
) -> list[Tensor]:
    """Cut one output by the rows of the requests."""
    name, datatype = spec.name, spec.datatype
    if rows != len(requests) or datatype == BYTES:
        return split_rows(name, datatype, array, [request.rows for request in requests])
    is_viewed = array.nbytes >= VIEW_FROM_BYTES and array.flags.c_contiguous
    data = array.data.cast("B") if is_viewed else array.tobytes()
    shape = (1, *array.shape[1:])
    stride = len(data) // rows
    if not stride:
        return [Tensor(name, datatype, shape, b"")] * rows
    return [
        Tensor(name, datatype, shape, data[start : start + stride])
        for start in range(0, len(data), stride)
    ]
