"""A lane: one set of buffers, its stream and event, and where it stands between two batches.

Knows sizes and the order of its states; queues nothing (engine.py does). All inputs of a batch lie
one behind the other in one pinned block, and so do its outputs: a batch is one copy in and one copy
out, whatever its number of tensors. Where each tensor lies depends on the shapes; an `Arrangement`
is kept per lane and shapes, with the arrays over it, so that the path of a batch makes none.

    state      acquire   submit     collect    fail    release
    FREE       LEASED    -          -          -       -
    LEASED     -         SUBMITTED  -          FAILED  FREE
    SUBMITTED  -         -          COLLECTED  FAILED  -
    COLLECTED  -         -          -          FAILED  FREE
    FAILED     -         -          -          -       FREE

A dash is misuse, a RuntimeError. A submitted lane cannot be released: the device still writes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from engines.base import TensorSpec
from engines.errors import InvalidInput, ModelLoadError
from engines.gpu.memory import Graph, HostBlock, Memory
from engines.tensors import BYTES, DATATYPES, Array

ALIGN_BYTES: Final = 256
"""Tensors start at multiples of this: what cudaMalloc gives, and what kernels may rely on."""
MAX_ARRANGEMENTS: Final = 64
"""Shapes that a lane remembers, with their graphs; of more, those used longest ago are dropped."""

Shapes = Mapping[str, tuple[int, ...]]


class State(Enum):
    """Where a lane stands."""

    FREE = "free"
    LEASED = "leased"
    SUBMITTED = "submitted"
    COLLECTED = "collected"
    FAILED = "failed"


_MOVES: Final[Mapping[str, Mapping[State, State]]] = {
    "acquire": {State.FREE: State.LEASED},
    "submit": {State.LEASED: State.SUBMITTED},
    "collect": {State.SUBMITTED: State.COLLECTED},
    "fail": dict.fromkeys((State.LEASED, State.SUBMITTED, State.COLLECTED), State.FAILED),
    "release": dict.fromkeys((State.LEASED, State.COLLECTED, State.FAILED), State.FREE),
}


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of a side: what it may take of it."""

    name: str
    # Any: see tensors.Array.
    dtype: np.dtype[Any]
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one tensor of an arrangement lies."""

    tensor: _Tensor
    shape: tuple[int, ...]
    offset_bytes: int


class Side:
    """The inputs or the outputs of a lane: the most they may take, and how shapes are packed."""

    def __init__(self, kind: str, tensors: Sequence[_Tensor]) -> None:
        self._kind = kind
        self._tensors = tuple(tensors)
        self.names = tuple(tensor.name for tensor in tensors)
        limits = sum(_aligned(tensor.limit_bytes) for tensor in tensors)
        self.size_bytes = max(limits, ALIGN_BYTES)

    def pack(self, shapes: Shapes) -> tuple[list[_Place], int]:
        """Return where tensors of these whole shapes lie, and the bytes up to the last one's end.

        Raises:
            InvalidInput: one is missing, or larger than the lanes' room for it.
        """
        places: list[_Place] = []
        start = end = 0
        for tensor in self._tensors:
            shape = shapes.get(tensor.name)
            if shape is None:
                raise InvalidInput(f"{self._kind} {tensor.name!r} is missing")
            size = math.prod(shape) * tensor.dtype.itemsize
            if size > tensor.limit_bytes:
                raise InvalidInput(
                    f"{self._kind} {tensor.name!r}: shape {list(shape)} takes {size} bytes of the "
                    f"device, the limit is {tensor.limit_bytes}"
                )
            places.append(_Place(tensor, tuple(shape), start))
            end = start + size
            start += _aligned(size)
        return places, end


def side_of(
    kind: str, specs: Sequence[TensorSpec], max_batch_size: int, largest: Mapping[str, int]
) -> Side:
    """Return the side of lanes that hold batches of up to `max_batch_size` rows.

    Args:
        kind: input or output, for sentences.
        specs: the tensors, whole shapes.
        max_batch_size: 0: there is no batch axis.
        largest: bytes of the tensors with other dimensions that vary, by name; it wins.

    Raises:
        ModelLoadError: a tensor's size cannot be told, or it holds text.
    """
    tensors = []
    for spec in specs:
        if spec.datatype == BYTES:
            raise ModelLoadError(f"{kind} {spec.name!r} is BYTES: a GPU computes no text")
        dtype = DATATYPES[spec.datatype].dtype
        whole = (max_batch_size, *spec.shape[1:]) if max_batch_size else spec.shape
        limit_bytes = largest.get(spec.name, math.prod(whole) * dtype.itemsize)
        if spec.name not in largest and -1 in whole:
            raise ModelLoadError(
                f"{kind} {spec.name!r} has the shape {list(spec.shape)}: the largest size of it "
                "must be declared, for buffers are made once"
            )
        tensors.append(_Tensor(spec.name, dtype, limit_bytes))
    return Side(kind, tensors)


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGN_BYTES) * ALIGN_BYTES


class Arrangement:
    """One lane with certain shapes: its arrays, addresses and, once recorded, its graph."""

    __slots__ = (
        "copied_in_bytes",
        "copied_out_bytes",
        "graph",
        "input_addresses",
        "inputs",
        "output_addresses",
        "outputs",
        "plain_runs",
        "shapes",
    )

    def __init__(
        self,
        lane: Lane,
        shapes: Shapes,
        inputs: tuple[list[_Place], int],
        outputs: tuple[list[_Place], int],
    ) -> None:
        self.shapes: Shapes = dict(shapes)
        placed, self.copied_in_bytes = inputs
        self.inputs = _arrays(lane.pinned_in, placed)
        self.input_addresses = _addresses(lane.device_in.address, placed)
        placed, self.copied_out_bytes = outputs
        self.outputs = _arrays(lane.pinned_out, placed)
        for array in self.outputs.values():
            array.flags.writeable = False
        self.output_addresses = _addresses(lane.device_out.address, placed)
        self.plain_runs = 0
        """Batches that the executor ran, without a graph."""
        self.graph: Graph | None = None


def _arrays(block: HostBlock, places: Sequence[_Place]) -> Mapping[str, Array]:
    return MappingProxyType(
        {
            place.tensor.name: block.array(place.tensor.dtype, place.shape, place.offset_bytes)
            for place in places
        }
    )


def _addresses(start: int, places: Sequence[_Place]) -> Mapping[str, int]:
    return {place.tensor.name: start + place.offset_bytes for place in places}


class Lane:
    """One set of buffers, its stream and event. Used by one thread at a time, handed on by leases.

    Args:
        number: from 0.
        memory: where the buffers are made.
        inputs: what the buffers must hold.
        outputs: as above.
        held: takes what gives the buffers back, also if there is no room for the last of them.
    """

    def __init__(
        self, number: int, memory: Memory, inputs: Side, outputs: Side, held: ExitStack
    ) -> None:
        self.number = number
        self.state = State.FREE
        self.lease: object = None
        """Whoever has the lane; None: nobody."""
        self.arrangement: Arrangement | None = None
        """Of the batch that the lane is leased for; of the last one while it is free."""
        self.bound: Arrangement | None = None
        """What the executor was told last; None: nothing that could be relied on."""
        self._memory = memory
        self._sides = (inputs, outputs)
        self._arrangements: dict[tuple[tuple[int, ...], ...], Arrangement] = {}
        """By the input shapes in the model's order; the one used last is the last."""
        self.pinned_in = memory.pinned(inputs.size_bytes)
        held.callback(memory.free, self.pinned_in)
        self.device_in = memory.allocate(inputs.size_bytes)
        held.callback(memory.free, self.device_in)
        self.device_out = memory.allocate(outputs.size_bytes)
        held.callback(memory.free, self.device_out)
        self.pinned_out = memory.pinned(outputs.size_bytes)
        held.callback(memory.free, self.pinned_out)
        self.stream = memory.stream()
        held.callback(memory.drop, self.stream)
        self.event = memory.event()
        held.callback(memory.drop, self.event)

    def move(self, what: str) -> None:
        """Go to the next state.

        Raises:
            RuntimeError: the lane is not in a state where that can happen.
        """
        to = _MOVES[what].get(self.state)
        if to is None:
            raise RuntimeError(f"lane {self.number} is {self.state.value}: it cannot {what}")
        self.state = to

    def arrange(self, shapes: Shapes, output_shapes: Callable[[Shapes], Shapes]) -> Arrangement:
        """Return the lane with these input shapes; makes it the first time.

        Raises:
            InvalidInput: an input or an output is larger than the lane's room for it.
        """
        inputs, outputs = self._sides
        try:
            key = tuple([shapes[name] for name in inputs.names])
        except KeyError as exc:
            raise InvalidInput(f"input {exc.args[0]!r} is missing") from None
        found = self._arrangements.pop(key, None)
        if found is None:
            packed = inputs.pack(shapes)
            found = Arrangement(self, shapes, packed, outputs.pack(output_shapes(shapes)))
            if len(self._arrangements) >= MAX_ARRANGEMENTS:
                self._forget(self._arrangements.pop(next(iter(self._arrangements))))
        self._arrangements[key] = found
        self.arrangement = found
        return found

    def graphs(self) -> list[Graph]:
        """Return what was recorded for the shapes that the lane remembers."""
        return [a.graph for a in self._arrangements.values() if a.graph is not None]

    def _forget(self, arrangement: Arrangement) -> None:
        if arrangement.graph is not None:
            self._memory.drop(arrangement.graph)

    def __repr__(self) -> str:
        return f"<Lane {self.number} {self.state.value}, {len(self._arrangements)} shapes>"
