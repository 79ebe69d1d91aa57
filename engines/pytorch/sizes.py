"""Sizes of an exported program: numbers, and expressions of the dimensions that vary.

Knows torch's symbolic sizes; knows no file. An expression is one of sympy's, used through its own
methods. The rows of a batch are the dimension that all inputs and outputs begin with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from engines.base import EngineConfig
from engines.errors import InvalidInput, ModelLoadError

# Any: sympy, whose expressions these are, ships no types.
Size = int | Any
Sizes = tuple[Size, ...]
Ranges = Mapping[Any, Any]


def sizes_of(value: torch.Tensor) -> Sizes:
    """Return the sizes of a traced tensor."""
    return tuple(d.node.expr if isinstance(d, torch.SymInt) else d for d in value.shape)


def shape_of(sizes: Sizes) -> tuple[int, ...]:
    """Return them as a shape, -1 for what varies."""
    return tuple(size if isinstance(size, int) else -1 for size in sizes)


@dataclass(frozen=True, slots=True)
class Rows:
    """Which batches a program takes."""

    is_batched: bool
    """Whether all its tensors begin with a dimension that varies with the batch."""
    least: int = 1
    most: int | None = None
    """None: any number."""


def rows_of(inputs: Sequence[Sizes], outputs: Sequence[Sizes], ranges: Ranges) -> Rows:
    """Return which batches a program of such inputs and outputs takes."""
    first = [sizes[0] if sizes else 1 for sizes in inputs]
    is_batched = bool(first) and not any(isinstance(size, int) for size in first)
    if not is_batched or any(not sizes or sizes[0] not in first for sizes in outputs):
        return Rows(False)
    bounds = [_bounds(size, ranges) for size in first]
    limits = [most for _, most in bounds if most is not None]
    return Rows(True, max(least for least, _ in bounds), min(limits, default=None))


def bounded(config: EngineConfig, rows: Rows, *, is_varying: bool) -> EngineConfig:
    """Return the configuration with what the program says of batches.

    Args:
        is_varying: whether all first dimensions vary, if only each for itself.

    Raises:
        ModelLoadError: the configuration asks for what the program was not exported for.
    """
    wanted = config.max_batch_size
    if not rows.is_batched:
        if wanted and is_varying:
            raise ModelLoadError(
                f"max_batch_size is {wanted}, but the outputs' first axes are not those of the "
                "inputs: rows would not come back as they went in"
            )
        return replace(config, max_batch_size=0) if wanted is None else config
    if wanted and rows.most is not None and wanted > rows.most:
        raise ModelLoadError(
            f"max_batch_size is {wanted}, but the program was exported for at most {rows.most} "
            f"rows: export it with Dim(..., max={wanted}), or lower max_batch_size"
        )
    default = config.default_max_batch_size
    most = default if rows.most is None else min(default, rows.most)
    limit = most if wanted is None else wanted
    if wanted != 0 and limit < rows.least:
        raise ModelLoadError(
            f"the program was exported for at least {rows.least} rows, more than max_batch_size "
            f"{limit}"
        )
    return replace(config, default_max_batch_size=most)


class OutputShapes:
    """Tells the shapes of a program's outputs by those of its inputs, without running it."""

    def __init__(self, inputs: Mapping[str, Sizes], outputs: Mapping[str, Sizes]) -> None:
        self._inputs = inputs
        self._outputs = outputs

    @property
    def are_known(self) -> bool:
        """Whether every output's size follows from the inputs' in a way that can be told."""
        symbols = {size for sizes in self._inputs.values() for size in sizes if _is_symbol(size)}
        used = [
            size
            for sizes in (*self._inputs.values(), *self._outputs.values())
            for size in sizes
            if not isinstance(size, int)
        ]
        return all(size.free_symbols <= symbols for size in used)

    def __call__(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Return the outputs' whole shapes.

        Raises:
            InvalidInput: the program does not take such inputs.
        """
        values = self._solved(shapes)
        return {
            name: tuple(_value(size, values) for size in sizes)
            for name, sizes in self._outputs.items()
        }

    # Any: see Size.
    def _solved(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[Any, int]:
        values: dict[Any, int] = {}
        for name, sizes in self._inputs.items():
            shape = shapes[name]
            for size, given in zip(sizes, shape, strict=True):
                if _is_symbol(size):
                    values.setdefault(size, given)
        for name, sizes in self._inputs.items():
            expected = tuple(_value(size, values) for size in sizes)
            if expected != tuple(shapes[name]):
                raise InvalidInput(
                    f"input {name!r}: shape {list(shapes[name])} does not fit the other sizes, "
                    f"which make it {list(expected)}"
                )
        return values

    def largest(self, ranges: Ranges) -> dict[str, tuple[int, ...]]:
        """Return the largest shapes of all tensors; -1: that dimension is not bounded."""
        found = {size for sizes in self._inputs.values() for size in sizes if _is_symbol(size)}
        bounds = {size: _bounds(size, ranges)[1] for size in found}
        values = {size: most for size, most in bounds.items() if most is not None}
        return {
            name: tuple(
                _value(size, values)
                if isinstance(size, int) or size.free_symbols <= values.keys()
                else -1
                for size in sizes
            )
            for name, sizes in (*self._inputs.items(), *self._outputs.items())
        }


def _is_symbol(size: Size) -> bool:
    return not isinstance(size, int) and bool(size.is_Symbol)


# Any: see Size.
def _value(size: Size, values: Mapping[Any, int]) -> int:
    return size if isinstance(size, int) else int(size.subs(values))


def _bounds(size: Size, ranges: Ranges) -> tuple[int, int | None]:
    """Return the least and the most that a size may be."""
    found = ranges.get(size)
    if found is None:
        return 1, None
    least = int(found.lower) if found.lower.is_Integer else 1
    # What has no bound has torch's own infinity here, which is no Integer.
    return max(least, 1), int(found.upper) if found.upper.is_Integer else None
