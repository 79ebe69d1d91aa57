"""A program of torch behind the Engine contract: arrays in, arrays out, one batch at a time.

Knows one program and numpy; knows no file and no lanes (executor.py). Inputs are tensors over the
caller's memory, outputs arrays over torch's; neither is copied, with these exceptions. A read-only
input that the program may write to is copied: it may be the bytes of a request. An output is
copied if its memory is also an input's, another output's or the model's own, since it belongs to
the caller. A batch of fewer rows than the program was exported for is filled up with its last row,
and what that came to is cut off.

Threads: torch counts them per thread that computes, so `infer` sets its own number where the
thread's is another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from engines.base import ModelMetadata, TensorSpec
from engines.errors import EngineClosed
from engines.pytorch.arrays import DTYPES, array_of, storage_of, tensor_of
from engines.pytorch.failures import translated
from engines.pytorch.program import Program, Tensors
from engines.tensors import Array


@dataclass(frozen=True, slots=True)
class _Input:
    name: str
    dtype: torch.dtype
    is_written: bool


@dataclass(frozen=True, slots=True)
class Output:
    """One output that is served."""

    name: str
    position: int
    """Among the program's."""
    dtype: torch.dtype
    shape: tuple[int, ...]

    def check(self, tensor: torch.Tensor) -> None:
        """Refuse what is not as declared; a file may not tell, and a declaration may be wrong.

        Raises:
            ValueError: with what it is and what it should be.
        """
        shape = tensor.shape
        is_right = tensor.dtype is self.dtype and len(shape) == len(self.shape)
        if not is_right or any(
            want not in (-1, has) for want, has in zip(self.shape, shape, strict=True)
        ):
            raise ValueError(
                f"output {self.name!r} is a {tensor.dtype} of shape {list(shape)}, and served as "
                f"{self.dtype} of shape {list(self.shape)}"
            )


def served_outputs(program: Program, served: tuple[TensorSpec, ...]) -> tuple[Output, ...]:
    """Return where the served outputs are among the program's."""
    positions = {spec.name: position for position, spec in enumerate(program.outputs)}
    return tuple(
        Output(spec.name, positions[spec.name], DTYPES[spec.datatype], spec.shape)
        for spec in served
    )


class TorchEngine:
    """One program, on the CPU, or on a GPU where its batches cannot go through lanes.

    Args:
        threads: that one batch may use, on the CPU.
    """

    def __init__(self, program: Program, metadata: ModelMetadata, *, threads: int) -> None:
        self._program: Program | None = program
        self._metadata = metadata
        self._threads = threads
        self._is_on_gpu = metadata.device != "cpu"
        self._inputs = tuple(
            _Input(spec.name, DTYPES[spec.datatype], spec.name in program.written)
            for spec in program.inputs
        )
        self._outputs = served_outputs(program, metadata.outputs)
        self._held = frozenset(map(storage_of, program.held))

    @property
    def metadata(self) -> ModelMetadata:
        """What the model takes and gives, with the batch axis as -1."""
        return self._metadata

    def infer(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch; see `engines.base.Engine.infer`."""
        program = self._program
        if program is None:
            raise EngineClosed
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        rows = next(iter(batch.values())).shape[0] if program.least_rows > 1 else 0
        missing = max(program.least_rows - rows, 0) if rows else 0
        try:
            with torch.inference_mode():
                tensors = [
                    self._tensor(given, batch[given.name], missing) for given in self._inputs
                ]
                outputs = self._arrays(tensors, program.run(tensors))
        except Exception as exc:
            known = translated(exc, self._metadata.device)
            if known is None or known is exc:
                raise
            raise known from exc
        if missing:
            return {name: array[:rows] for name, array in outputs.items()}
        return outputs

    def _tensor(self, given: _Input, array: Array, missing: int) -> torch.Tensor:
        if missing:
            array = np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
        elif given.is_written and not array.flags.writeable:
            array = array.copy()
        tensor = tensor_of(array, given.dtype)
        return tensor.to(self._metadata.device) if self._is_on_gpu else tensor

    def _arrays(self, tensors: list[torch.Tensor], outputs: Tensors) -> dict[str, Array]:
        arrays = {}
        taken = set(map(storage_of, tensors))
        for output in self._outputs:
            tensor = outputs[output.position]
            output.check(tensor)
            storage = storage_of(tensor)
            if self._is_on_gpu:
                tensor = tensor.cpu()
            elif storage in taken or storage in self._held:
                tensor = tensor.clone()
            taken.add(storage)
            arrays[output.name] = array_of(tensor)
        return arrays

    def close(self) -> None:
        """Drop the program and give its memory back."""
        program, self._program = self._program, None
        if program is not None:
            program.close()
