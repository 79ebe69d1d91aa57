"""The signature that is served: what a model file holds against what its configuration declares.

Knows specs; knows no runtime. Every engine asks this once, at load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engines import buckets
from engines.base import EngineConfig, TensorSpec
from engines.errors import ModelLoadError


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What is served of a model file."""

    inputs: tuple[TensorSpec, ...]
    """All of the file's, with -1 for the batch axis if there is one."""
    outputs: tuple[TensorSpec, ...]
    """Those declared, in that order; nothing declared: all."""
    max_batch_size: int
    """Rows; 0: no batch axis."""
    buckets: tuple[int, ...]
    """Row counts to pad batches up to; empty: any number of rows runs."""


def declare(
    config: EngineConfig, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> Declared:
    """Check the declared signature against the file's; declared fixed dimensions narrow it.

    A file whose first axes are all the same number N, declared with `max_batch_size` N or the one
    bucket N, is served with a batch axis and that bucket.

    Args:
        inputs: as the file has them, whole shapes; -1 is a dimension that varies.
        outputs: as above.

    Raises:
        ModelLoadError: declaration and file contradict each other.
    """
    if config.max_batch_size is None and config.buckets:
        config = replace(config, default_max_batch_size=config.buckets[-1])
    wanted = config.max_batch_size
    if wanted is None:
        wanted = config.buckets[-1] if config.buckets else 0
    fixed = wanted > 0 and bool(inputs) and all(s.shape[:1] == (wanted,) for s in inputs + outputs)
    if fixed:
        inputs, outputs = _with_free_rows(inputs), _with_free_rows(outputs)
    rows = _max_batch_size(config, inputs, outputs)
    chosen = config.buckets or ((rows,) if fixed else ())
    if why := buckets.fault(chosen, rows):
        raise ModelLoadError(f"buckets: {why}")
    if fixed and chosen != (rows,):
        raise ModelLoadError(f"buckets: the model's batch axis is {rows} and no other number")
    has_batch_axis = rows > 0
    declared_inputs = _match("input", config.inputs, inputs, has_batch_axis)
    if config.inputs and (missing := {s.name for s in inputs} - {s.name for s in config.inputs}):
        raise ModelLoadError(f"the model's input {min(missing)!r} is not declared")
    return Declared(
        inputs=declared_inputs,
        outputs=_match("output", config.outputs, outputs, has_batch_axis),
        max_batch_size=rows,
        buckets=chosen,
    )


def _with_free_rows(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, shape=(-1, *spec.shape[1:])) for spec in specs)


def _max_batch_size(
    config: EngineConfig, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> int:
    """Return the configured size, or what the first axes allow: all must vary to be batched."""
    is_batchable = bool(inputs) and all(spec.shape[:1] == (-1,) for spec in (*inputs, *outputs))
    if config.max_batch_size is None:
        return config.default_max_batch_size if is_batchable else 0
    if config.max_batch_size > 0 and not inputs:
        raise ModelLoadError(f"max_batch_size is {config.max_batch_size}, but there are no inputs")
    if config.max_batch_size > 0 and not is_batchable:
        fixed = next(s for s in (*inputs, *outputs) if s.shape[:1] != (-1,))
        raise ModelLoadError(
            f"max_batch_size is {config.max_batch_size}, but {fixed.name!r} has the shape "
            f"{list(fixed.shape)} without a first axis that varies"
        )
    return config.max_batch_size


def _match(
    kind: str, declared: Sequence[TensorSpec], found: Sequence[TensorSpec], with_batch_axis: bool
) -> tuple[TensorSpec, ...]:
    by_name = {spec.name: spec for spec in found}
    out = []
    for spec in declared:
        actual = by_name.get(spec.name)
        if actual is None:
            raise ModelLoadError(f"declared {kind} {spec.name!r} is not in the model")
        if actual.datatype != spec.datatype:
            raise ModelLoadError(
                f"{kind} {spec.name!r} is declared {spec.datatype}, the model has {actual.datatype}"
            )
        shape = (-1, *spec.shape) if with_batch_axis else spec.shape
        fits = len(shape) == len(actual.shape) and all(
            -1 in (a, b) or a == b for a, b in zip(shape, actual.shape, strict=True)
        )
        if not fits:
            raise ModelLoadError(
                f"{kind} {spec.name!r} is declared with the shape {list(shape)}, "
                f"the model has {list(actual.shape)}"
            )
        narrowed = tuple(a if b == -1 else b for a, b in zip(shape, actual.shape, strict=True))
        out.append(TensorSpec(name=spec.name, datatype=spec.datatype, shape=narrowed))
    return tuple(out) or tuple(found)
