"""A program of torch as an `Executor`: run on the addresses of a GPU's lanes, on their stream.

Knows programs and addresses; knows no copies and no graphs (engines/gpu). The program reads a
lane's inputs where they are; what it returns is torch's own memory and is copied on the device to
where the lane wants it, on the same stream.

Memory. torch's allocator gives a run's scratch memory back as soon as the run is queued, to be used
by what is queued on that stream later: right as long as everything runs in the stream's order. A
recorded graph breaks that order, since it uses its addresses at every replay. So what is allocated
while a graph is recorded comes from a pool of its own, which nobody else allocates from and which
lives until `close`. All graphs share it: they are replayed on one stream, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch

from engines.base import ModelMetadata
from engines.errors import EngineClosed
from engines.gpu.memory import Stream
from engines.pytorch.arrays import DTYPES
from engines.pytorch.engine import Output, served_outputs
from engines.pytorch.failures import translated
from engines.pytorch.program import Program


class Place(Protocol):
    """Where tensors are and work is queued: a GPU, or what stands for one."""

    def tensor(self, address: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return what lies at an address as a tensor, which does not own it."""

    def queue(self, stream: Stream, work: Callable[[], None]) -> None:
        """Let what torch computes in `work` be queued on a stream."""

    def close(self) -> None:
        """Give back what was allocated for recorded graphs."""


class _Span:
    """Bytes of a GPU, in the form in which libraries show theirs to each other."""

    def __init__(self, address: int, size_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
        }


class CudaPlace:
    """One GPU, through torch.

    Args:
        device: such as cuda:0.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._streams: dict[int, torch.cuda.ExternalStream] = {}
        self._pool: torch.cuda.MemPool | None = None

    def tensor(self, address: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return device memory as a tensor; as bytes first, which every datatype can be seen in."""
        size_bytes = math.prod(shape) * dtype.itemsize
        if not size_bytes:
            return torch.empty(shape, dtype=dtype, device=self._device)
        flat = torch.as_tensor(_Span(address, size_bytes), device=self._device)
        return flat.view(dtype).view(shape)

    def queue(self, stream: Stream, work: Callable[[], None]) -> None:
        """Compute on the stream; while it is recorded, out of the graphs' own pool."""
        queue = self._streams.get(stream.handle)
        if queue is None:
            make: Any = torch.cuda.ExternalStream  # untyped
            queue = make(stream.handle, device=self._device)
            self._streams[stream.handle] = queue
        with torch.cuda.device(self._device), torch.cuda.stream(queue):
            if not torch.cuda.is_current_stream_capturing():
                work()
                return
            if self._pool is None:
                self._pool = torch.cuda.MemPool()
            with torch.cuda.use_mem_pool(self._pool, device=self._device):
                work()

    def close(self) -> None:
        """Give the graphs' memory back."""
        self._pool = None
        self._streams.clear()


class TorchExecutor:
    """One program behind `engines.gpu.executor.Executor`."""

    def __init__(self, program: Program, metadata: ModelMetadata, place: Place) -> None:
        self._program: Program | None = program
        self._metadata = metadata
        self._place = place
        self._outputs = served_outputs(program, metadata.outputs)
        self._bound: dict[int, Callable[[], None]] = {}

    @property
    def metadata(self) -> ModelMetadata:
        """What the model takes and gives."""
        return self._metadata

    @property
    def can_capture(self) -> bool:
        """Whether a run may be recorded, as far as the file's format tells."""
        return self._opened().can_capture

    def output_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Return the outputs' whole shapes, computed from the program's own sizes."""
        tell = self._opened().output_shapes
        if tell is None:
            raise TypeError("only a run can tell the output shapes of this program")
        return tell(shapes)

    def bind(
        self,
        lane: int,
        shapes: Mapping[str, tuple[int, ...]],
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        stream: Stream,
    ) -> None:
        """Make tensors over a lane's addresses."""
        del stream
        program = self._opened()
        given = [
            self._place.tensor(inputs[spec.name], shapes[spec.name], DTYPES[spec.datatype])
            for spec in program.inputs
        ]
        whole = self.output_shapes(shapes)
        wanted = [
            (output, self._place.tensor(outputs[output.name], whole[output.name], output.dtype))
            for output in self._outputs
        ]
        self._bound[lane] = partial(_compute, program, given, wanted)

    def enqueue(self, lane: int, stream: Stream) -> None:
        """Queue a lane's computation."""
        try:
            self._place.queue(stream, self._bound[lane])
        except Exception as exc:
            known = translated(exc, self._metadata.device)
            if known is None or known is exc:
                raise
            raise known from exc

    def close(self) -> None:
        """Drop the program and what was allocated for it."""
        program, self._program = self._program, None
        self._bound.clear()
        self._place.close()
        if program is not None:
            program.close()

    def _opened(self) -> Program:
        if self._program is None:
            raise EngineClosed
        return self._program


def _compute(
    program: Program, inputs: list[torch.Tensor], outputs: list[tuple[Output, torch.Tensor]]
) -> None:
    """Run the program on a lane's inputs and leave what it returns in the lane's outputs."""
    with torch.inference_mode():
        results = program.run(inputs.copy())
        for output, into in outputs:
            result = results[output.position]
            output.check(result)
            if result.shape != into.shape:  # copy_ would repeat it to fit
                raise ValueError(
                    f"output {output.name!r} has the shape {list(result.shape)}, and "
                    f"{list(into.shape)} was expected"
                )
            into.copy_(result, non_blocking=True)
