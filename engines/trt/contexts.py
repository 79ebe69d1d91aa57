"""Execution contexts: how many, with which memory, and how one is set up for certain shapes.

Knows contexts; knows no lane engine. Rules of TensorRT that this file keeps:
 - a context runs one batch at a time, and contexts are not thread safe; engines are;
 - profile, then shapes, then addresses, then work: each may undo what comes after it;
 - a recorded graph holds on to its context: one that was recorded from is never set up again, or
   replaying the graph is undefined. So with graphs there is a context for each lane and its shapes.
   Source: TensorRT's developer guide, "CUDA Graphs".

All contexts share one block of scratch memory, because all batches of an engine compute on one
stream, one after the other (engines/gpu/executor.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

from engines.errors import DeviceFailed, ModelLoadError, OutOfMemory
from engines.gpu.memory import Memory, Stream
from engines.trt.api import Flavour
from engines.trt.kernels import KernelCache
from engines.trt.surface import (
    Enumerated,
    ICudaEngine,
    IExecutionContext,
    IRuntimeConfig,
    RtxCudaEngine,
    RtxExecutionContext,
)

logger = logging.getLogger(__name__)

_NOT_CHOSEN: Final = -1
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(slots=True)
class _Held:
    """A context, and the profile that it was set to."""

    context: IExecutionContext
    profile: int


class Contexts:
    """The contexts of one engine, made when they are first needed.

    Raises:
        OutOfMemory: the device has no room for the scratch memory.
    """

    def __init__(
        self,
        flavour: Flavour,
        engine: ICudaEngine,
        memory: Memory,
        *,
        is_static: bool,
        has_graphs: bool,
        kernels: KernelCache | None,
    ) -> None:
        self._flavour = flavour
        self._memory = memory
        self._has_graphs = has_graphs
        self._profile = 0 if is_static else _NOT_CHOSEN
        strategies = flavour.module.ExecutionContextAllocationStrategy.__members__
        how: Enumerated | IRuntimeConfig = strategies["USER_MANAGED"]
        if kernels is not None:
            settings = kernels.settings(cast("RtxCudaEngine", engine))
            settings.set_execution_context_allocation_strategy(strategies["USER_MANAGED"])
            how = settings
        # No other reference to the engine: it has to end with `close`.
        self._create: Callable[[], IExecutionContext | None] | None = partial(
            engine.create_execution_context, how
        )
        self.scratch_bytes = engine.device_memory_size_v2
        """Of the block that all contexts share."""
        self._scratch = memory.allocate(self.scratch_bytes) if self.scratch_bytes else None
        self._held: dict[tuple[int, tuple[tuple[int, ...], ...]], _Held] = {}
        self._bound: dict[int, IExecutionContext] = {}

    def make(self) -> IExecutionContext:
        """Return a context of its own, with the shared scratch memory.

        Raises:
            ModelLoadError: the runtime makes none.
        """
        self._flavour.log.forget()
        context = self._create() if self._create is not None else None
        if context is None:
            why = self._flavour.log.why() or "it does not say why"
            raise ModelLoadError(f"{self._flavour} makes no execution context: {why}")
        if self._scratch is not None:
            context.set_device_memory(self._scratch.address, self._scratch.size_bytes)
        return context

    def bind(
        self, lane: int, profile: int, shapes: Shapes, addresses: Mapping[str, int], stream: Stream
    ) -> None:
        """Set a lane's context up; `of` returns it from now on.

        Raises:
            OutOfMemory: the device has no room for one more context.
            DeviceFailed: the runtime refuses what it was asked about at load.
        """
        held = self._of(lane, shapes)
        context = held.context
        if held.profile != profile:
            self._done(context.set_optimization_profile_async(profile, stream.handle))
            held.profile = profile
        for name, shape in shapes.items():
            self._done(context.set_input_shape(name, shape))
        for name, address in addresses.items():
            self._done(context.set_tensor_address(name, address))
        self._bound[lane] = context

    def enqueue(self, lane: int, stream: Stream) -> None:
        """Queue the computation that a lane's context was set up for.

        Raises:
            DeviceFailed: the runtime did not.
        """
        self._done(self._bound[lane].execute_async_v3(stream.handle))

    def can_capture(self, context: IExecutionContext, stream: Stream) -> bool:
        """Whether what this context queues can be recorded as a graph."""
        if not self._flavour.is_rtx:
            return True
        return cast("RtxExecutionContext", context).is_stream_capturable(stream.handle)

    def close(self) -> None:
        """Drop all contexts, then give the scratch memory back."""
        self._bound.clear()
        self._held.clear()
        self._create = None
        if self._scratch is not None:
            self._memory.free(self._scratch)

    def _of(self, lane: int, shapes: Shapes) -> _Held:
        key = (lane, tuple(shapes.values()) if self._has_graphs else ())
        held = self._held.get(key)
        if held is None:
            try:
                held = self._held[key] = _Held(self.make(), self._profile)
            except ModelLoadError as exc:
                logger.warning("no execution context", extra={"reason": str(exc)})
                raise OutOfMemory(self._memory.device) from exc
        return held

    def _done(self, is_done: bool) -> None:
        if not is_done:
            why = self._flavour.log.why() or "it does not say why"
            self._flavour.log.forget()
            raise DeviceFailed(self._memory.device, f"{self._flavour} refuses: {why}")
