"""A loaded model of torch as one function of flat tensors: what all three file formats become.

Knows specs and tensors; knows no file and no numpy. `exported.py`, `compiled.py` and `script.py`
make programs; `engine.py` runs them on arrays, `executor.py` on the addresses of a GPU's lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from engines.base import EngineConfig, TensorSpec

Tensors = Sequence[torch.Tensor]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One model on one device. Not thread safe."""

    run: Callable[[list[torch.Tensor]], Tensors]
    """Takes what `inputs` says, in that order, on the program's device; gives what `outputs` says.
    The list that it is given is its own."""
    inputs: tuple[TensorSpec, ...]
    """Under the names that are served; whole shapes."""
    outputs: tuple[TensorSpec, ...]
    config: EngineConfig
    """As it was asked for, with what the file itself says of batches."""
    least_rows: int = 1
    """Fewer make a batch that the program was not exported for."""
    written: frozenset[str] = frozenset()
    """Inputs that it may write to."""
    held: tuple[torch.Tensor, ...] = ()
    """Its parameters, buffers and constants, as far as they can be told."""
    output_shapes: Callable[[Shapes], dict[str, tuple[int, ...]]] | None = None
    """Whole shapes of the outputs by those of the inputs; None: only a run can tell."""
    largest: Shapes = field(default_factory=dict)
    """The largest shapes of tensors with dimensions that vary; -1: a dimension is not bounded."""
    is_steady: bool = False
    """Whether it is known that values have no say in how much there is to do: no loops."""
    can_capture: bool = False
    """Whether a run on a GPU may be recorded as a graph."""
    close: Callable[[], None] = lambda: None
    """Gives the memory back."""
