"""A network as a list of operations over named values: what ONNX and torch files are written from.

Pure; knows no runtime. Weights are random, and the same for every runtime: each is drawn from the
network's seed and its own position, so that a file of them can be made again where it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from engines.tensors import Array

INPUT: Final = "x"
OUTPUT: Final = "y"
WEIGHTS_FILE: Final = "weights.bin"
_ALIGN_BYTES: Final = 4_096
_ITEM_BYTES: Final = 4
_UNFINISHED: Final = ".part"


@dataclass(frozen=True, slots=True)
class Operation:
    """One step. `kind` is a word of this package; onnx_file.py and torch_file.py say what it is."""

    kind: str
    inputs: tuple[str, ...]
    """Of values and of weights, as the kind has them."""
    output: str
    attributes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant tensor of FP32, normally distributed."""

    shape: tuple[int, ...]
    deviation: float
    mean: float = 0.0

    @property
    def elements(self) -> int:
        """How many numbers it is."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a weight lies in the file of them."""

    offset_bytes: int
    size_bytes: int


class Graph:
    """A network while it is written down, and afterwards.

    Args:
        datatype: of the one input, protocol name.
        shape: of one row of it.
        classes: width of the one output, which is FP32 [rows, classes].
        below: bound of the values of an INT64 input.
        seed: of the weights.
    """

    def __init__(
        self, datatype: str, shape: tuple[int, ...], classes: int, *, below: int = 0, seed: int = 1
    ) -> None:
        self.datatype = datatype
        self.shape = shape
        self.classes = classes
        self.below = below
        self.operations: list[Operation] = []
        self.weights: dict[str, Weight] = {}
        self._seed = seed

    def weight(self, *shape: int, deviation: float, mean: float = 0.0) -> str:
        """Add a weight; return its name."""
        name = f"w{len(self.weights)}"
        self.weights[name] = Weight(shape, deviation, mean)
        return name

    def add(self, kind: str, *inputs: str, **attributes: int) -> str:
        """Add an operation; return its output's name."""
        output = f"v{len(self.operations)}"
        self.operations.append(Operation(kind, inputs, output, attributes))
        return output

    @property
    def result(self) -> str:
        """The value that is the network's answer: the last one."""
        return self.operations[-1].output

    @property
    def parameters(self) -> int:
        """Numbers in all weights."""
        return sum(weight.elements for weight in self.weights.values())

    def value(self, name: str) -> Array:
        """Draw a weight."""
        weight = self.weights[name]
        draw = np.random.default_rng([self._seed, int(name[1:])])
        values = draw.standard_normal(weight.shape, np.float32)
        values *= np.float32(weight.deviation)
        values += np.float32(weight.mean)
        return values

    def places(self) -> Iterator[tuple[str, Place]]:
        """Yield where each weight lies in the file of them."""
        offset = 0
        for name, weight in self.weights.items():
            size = weight.elements * _ITEM_BYTES
            yield name, Place(offset, size)
            offset += -(-size // _ALIGN_BYTES) * _ALIGN_BYTES

    def write_weights(self, folder: Path) -> Path:
        """Write the file of weights, whole or not at all; one that is there is left alone."""
        path = folder / WEIGHTS_FILE
        if path.exists():
            return path
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(_UNFINISHED)
        with unfinished.open("wb") as file:
            for name, place in self.places():
                file.seek(place.offset_bytes)
                file.write(self.value(name).astype("<f4", copy=False).tobytes())
        return unfinished.replace(path)

    def batch(self, rows: int, seed: int = 1) -> dict[str, Array]:
        """Return a random input of so many rows, which a network answers differently."""
        draw = np.random.default_rng(seed)
        whole = (rows, *self.shape)
        if self.datatype == "INT64":
            return {INPUT: draw.integers(self.below, size=whole)}
        values = draw.standard_normal(whole, np.float32)
        # Each row as large as no other: averages over a picture would hardly tell them apart.
        values *= draw.uniform(0.5, 2.0, (rows, *[1] * len(self.shape))).astype(np.float32)
        return {INPUT: values}
