"""Whether and how a program goes through the lanes of a GPU, whose buffers are made once, at load.

Pure; knows no device. Lanes must be told the outputs' shapes before a run, and the largest of every
tensor. What cannot be told so (sizes that depend on values, dimensions without a bound) runs
without lanes, one batch after the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from engines import buckets
from engines.declared import Declared
from engines.errors import ModelLoadError
from engines.pytorch.program import Program
from engines.tensors import DATATYPES


@dataclass(frozen=True, slots=True)
class Plan:
    """What lanes have to know."""

    buckets: tuple[int, ...]
    """Row counts that they run; empty: any."""
    largest: Mapping[str, int]
    """Bytes of tensors with dimensions that vary besides the rows, by name."""


def plan_of(program: Program, declared: Declared) -> Plan | None:
    """Return how a program goes through lanes; None: it does not.

    Raises:
        ModelLoadError: a bucket is smaller than what the program was exported for.
    """
    if program.output_shapes is None or not program.config.lanes:
        return None
    first = 1 if declared.max_batch_size else 0
    largest = {}
    for spec in (*declared.inputs, *declared.outputs):
        if -1 not in spec.shape[first:]:
            continue
        most = program.largest.get(spec.name, spec.shape)
        sizes = [a if a >= 0 else b for a, b in zip(spec.shape[first:], most[first:], strict=True)]
        if -1 in sizes:
            return None
        rows = max(declared.max_batch_size, 1)
        largest[spec.name] = rows * math.prod(sizes) * DATATYPES[spec.datatype].item_bytes
    return Plan(_buckets(program, declared), largest)


def _buckets(program: Program, declared: Declared) -> tuple[int, ...]:
    """Return the declared ones; else, where each row count costs a graph, a few."""
    least, most = program.least_rows, declared.max_batch_size
    if declared.buckets and declared.buckets[0] < least:
        raise ModelLoadError(
            f"buckets: the program was exported for at least {least} rows, not for "
            f"{declared.buckets[0]}"
        )
    is_free = not program.config.has_graphs and least == 1
    if declared.buckets or not most or is_free:
        return declared.buckets
    return tuple(sorted({least, *(n for n in buckets.powers_of_two(most) if n > least)}))
