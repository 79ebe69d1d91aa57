"""A plan for the lanes: shapes in and out, profiles, contexts. See engines/gpu/executor.py.

Level of proof: its logic runs in the tests on a stand-in for TensorRT, named fake, that checks the
order of the calls and computes on the host. It has not been run on TensorRT itself by us.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from engines.base import EngineConfig, ModelMetadata, TensorSpec
from engines.declared import declare
from engines.errors import InvalidInput, ModelLoadError
from engines.gpu.memory import Memory, Stream
from engines.tensors import DATATYPES
from engines.trt import profiles
from engines.trt.api import Flavour
from engines.trt.contexts import Contexts, Shapes
from engines.trt.facts import Facts, config_of, facts_of
from engines.trt.kernels import KernelCache
from engines.trt.profiles import Profile
from engines.trt.surface import ICudaEngine, IExecutionContext

MAX_REMEMBERED: Final = 256
"""Shapes whose outputs' shapes are remembered."""


class TrtExecutor:
    """A `gpu.Executor` over an ICudaEngine.

    Args:
        flavour: the TensorRT that the engine is of.
        engine: it; ends with `close` if nobody else keeps it.
        config: of the instance.
        memory: of the device; scratch memory is taken from it and ends with it.
        told: metadata of which the tensors, rows and memory are still to be filled in.
        kernels: of TensorRT-RTX; None: another one.

    Raises:
        ModelLoadError: the engine cannot be served, or contradicts its declaration.
        OutOfMemory: the device has no room.
    """

    def __init__(
        self,
        flavour: Flavour,
        engine: ICudaEngine,
        config: EngineConfig,
        memory: Memory,
        told: ModelMetadata,
        kernels: KernelCache | None = None,
    ) -> None:
        facts = facts_of(flavour, engine)
        self._profiles = facts.profiles
        self._kernels = kernels
        self._is_closed = False
        item = [spec.shape[1:] if spec.shape[:1] == (-1,) else spec.shape for spec in facts.inputs]
        has_graphs = config.has_graphs and all(-1 not in shape for shape in item)
        self._held = ExitStack()
        self._is_static = facts.is_static
        self._contexts = Contexts(
            flavour,
            engine,
            memory,
            is_static=facts.is_static,
            has_graphs=has_graphs,
            kernels=kernels,
        )
        self._remembered: dict[tuple[tuple[int, ...], ...], dict[str, tuple[int, ...]]] = {}
        self._all_outputs = tuple(spec.name for spec in facts.outputs)
        self._held.callback(self._contexts.close)
        self.stream: Stream = memory.stream()
        """Where all lanes have to compute."""
        self._held.callback(memory.drop, self.stream)
        self._asked = [self._asking(number) for number in range(len(self._profiles))]
        outputs = tuple(self._narrowed(spec) for spec in facts.outputs)
        declared = declare(config_of(config, facts), facts.inputs, outputs)
        self.largest = self._largest(facts)
        """Most bytes of each tensor."""
        unserved = {spec.name for spec in facts.outputs} - {spec.name for spec in declared.outputs}
        self._unserved = {name: self._room(memory, name) for name in unserved}
        self._metadata = replace(
            told,
            inputs=declared.inputs,
            outputs=declared.outputs,
            max_batch_size=declared.max_batch_size,
            buckets=declared.buckets,
            memory_bytes=told.memory_bytes + self._contexts.scratch_bytes,
        )
        # The profile that was asked last has its largest shapes set.
        self._can_capture = has_graphs and self._contexts.can_capture(self._asked[-1], self.stream)

    @property
    def metadata(self) -> ModelMetadata:
        """What the plan takes and gives."""
        return self._metadata

    @property
    def can_capture(self) -> bool:
        """Whether graphs are wanted, and possible: of shapes that are all known by the rows."""
        return self._can_capture

    def output_shapes(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """Return the outputs' shapes, as the runtime infers them.

        Raises:
            InvalidInput: no profile takes such inputs.
        """
        key = tuple(shapes.values())
        found = self._remembered.get(key)
        if found is None:
            found = self._inferred(self._profile_of(shapes), shapes)
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[key] = found
        return found

    def bind(
        self,
        lane: int,
        shapes: Shapes,
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        stream: Stream,
    ) -> None:
        """Set the lane's context up for these shapes and addresses."""
        addresses = {**inputs, **outputs, **self._unserved}
        self._contexts.bind(lane, self._profile_of(shapes), shapes, addresses, stream)

    def enqueue(self, lane: int, stream: Stream) -> None:
        """Queue the computation."""
        self._contexts.enqueue(lane, stream)

    def close(self) -> None:
        """Keep the compiled kernels; drop the contexts and then the engine."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._kernels is not None:
            self._kernels.save()
        self._asked.clear()
        self._held.close()

    def _room(self, memory: Memory, name: str) -> int:
        """Return where an output goes that nobody asks for: the runtime writes it all the same."""
        block = memory.allocate(self.largest[name])
        self._held.callback(memory.free, block)
        return block.address

    def _asking(self, profile: int) -> IExecutionContext:
        """Return a context that is only ever asked for shapes; its largest ones are set.

        One per profile, so that no request makes one switch.
        """
        context = self._contexts.make()
        stream = self.stream.handle
        if not self._is_static and not context.set_optimization_profile_async(profile, stream):
            raise ModelLoadError(f"profile {profile} of the plan cannot be chosen")
        for name, given in self._profiles[profile].items():
            context.set_input_shape(name, given.most)
        return context

    def _profile_of(self, shapes: Shapes) -> int:
        found = profiles.covering(self._profiles, shapes)
        if found is None:
            given = ", ".join(f"{name!r} {list(shape)}" for name, shape in shapes.items())
            raise InvalidInput(f"inputs {given}: no profile of the plan takes these shapes")
        return found

    def _inferred(self, profile: int, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        context = self._asked[profile]
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise InvalidInput(f"input {name!r}: the plan does not take {list(shape)}")
        return {name: tuple(context.get_tensor_shape(name)) for name in self._all_outputs}

    def _narrowed(self, spec: TensorSpec) -> TensorSpec:
        """Return an output with numbers for what the inputs' shapes do not change."""
        if -1 not in spec.shape:
            return spec
        seen = [
            self._inferred(number, {name: getattr(given, end) for name, given in profile.items()})
            for number, profile in enumerate(self._profiles)
            for end in ("least", "most")
        ]
        shapes = [found[spec.name] for found in seen]
        if any(-1 in shape for shape in shapes):
            raise ModelLoadError(
                f"output {spec.name!r} has a shape that depends on the inputs' values, which "
                "cannot be served"
            )
        axes = [set(sizes) for sizes in zip(*shapes, strict=True)]
        narrowed = tuple(sizes.pop() if len(sizes) == 1 else -1 for sizes in axes)
        return replace(spec, shape=narrowed)

    def _largest(self, facts: Facts) -> dict[str, int]:
        largest: dict[str, int] = {}
        types = {spec.name: spec.datatype for spec in (*facts.inputs, *facts.outputs)}
        for number, profile in enumerate(self._profiles):
            shapes = _most(profile)
            for name, shape in {**shapes, **self._inferred(number, shapes)}.items():
                size = math.prod(shape) * DATATYPES[types[name]].item_bytes
                largest[name] = max(size, largest.get(name, 0))
        return largest


def _most(profile: Profile) -> dict[str, tuple[int, ...]]:
    return {name: given.most for name, given in profile.items()}
