"""Signatures that a file does not tell, taken from the model's configuration instead.

Knows specs; knows no file. What is declared wrongly shows when the model runs, at its warm-up: the
engine checks what comes out against the declaration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engines.base import EngineConfig, TensorSpec
from engines.errors import ModelLoadError
from engines.pytorch import names
from engines.pytorch.arrays import DTYPES


def check(kind: str, config: EngineConfig, inputs: Sequence[str]) -> None:
    """Refuse a configuration that does not declare the signature.

    Args:
        kind: of file, for the sentence.
        inputs: what the file calls its inputs; empty: it has no names for them.
    """
    for side, declared in (("inputs", config.inputs), ("outputs", config.outputs)):
        if not declared:
            called = f" ({', '.join(filter(None, inputs))})" if any(inputs) else ""
            raise ModelLoadError(
                f"{kind} tells neither datatypes nor shapes, and the {side} are not declared: "
                f"write input and output with name, data_type and dims into the model's "
                f"configuration, named as in the model{called} or by position, INPUT__0, OUTPUT__0"
            )
    for spec in (*config.inputs, *config.outputs):
        if spec.datatype not in DTYPES:
            raise ModelLoadError(
                f"{spec.name!r} is declared {spec.datatype}: torch has no such type"
            )


def whole_shapes(config: EngineConfig, declared: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return declared specs with the batch axis, if there is to be one."""
    first = (-1,) if config.max_batch_size else ()
    return tuple(replace(spec, shape=(*first, *spec.shape)) for spec in declared)


def positions(declared: Sequence[TensorSpec], count: int | None) -> list[int]:
    """Return the position of each declared output: by the numbers in the names, else in order.

    Args:
        count: how many outputs the model has; None: only a run can tell.

    Raises:
        ModelLoadError: there are not so many.
    """
    numbered = [names.position_of(spec.name) for spec in declared]
    found = [n for n in numbered if n is not None]
    if found and len(found) < len(declared):
        other = next(s.name for s, n in zip(declared, numbered, strict=True) if n is None)
        raise ModelLoadError(f"output {other!r} has no position, unlike the others: OUTPUT__0")
    if not found:
        found = list(range(len(declared)))
        if count is not None and len(declared) != count:
            raise ModelLoadError(
                f"{len(declared)} outputs are declared, the model has {count}: declare all, or "
                "name them by position, OUTPUT__0"
            )
    if count is not None and max(found) >= count:
        raise ModelLoadError(f"output {max(found)} is declared, the model has {count}")
    if len(set(found)) < len(found):
        raise ModelLoadError("two declared outputs have the same position")
    return found
