"""The part of TensorRT's Python interface that is used here, as protocols; TensorRT ships no types.

Named as in TensorRT, and said in its words. TensorRT 10, 11 and TensorRT-RTX all have what stands
here, but for the classes named Rtx. mypy lets the package use nothing else, and a test holds every
name against the bindings of all three (api.py lists them).
"""

# ruff: noqa: D102  (TensorRT's own names, documented by TensorRT)
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol


class Enumerated(Protocol):
    """A member of one of the enumerations."""

    @property
    def name(self) -> str:
        """As in Python, such as FLOAT."""

    @property
    def value(self) -> int:
        """As in C++."""


class Enumeration(Protocol):
    """An enumeration, of which members are taken by name because not every version has each."""

    @property
    def __members__(self) -> Mapping[str, Enumerated]:
        """All of them."""


class Dims(Protocol):
    """A shape."""

    def __iter__(self) -> Iterator[int]: ...


class Logger(Protocol):
    """What TensorRT says goes to one of these, which has to be of the module's class ILogger."""


class ProgressMonitor(Protocol):
    """What hears how far a build is; has to be of the module's class IProgressMonitor."""


class IHostMemory(Protocol):
    """Bytes that TensorRT owns; `bytes` copies them."""

    @property
    def nbytes(self) -> int: ...

    def __buffer__(self, flags: int, /) -> memoryview: ...


class ITensor(Protocol):
    """An input or output of a network that is being built."""

    name: str
    dtype: Enumerated

    @property
    def shape(self) -> Dims: ...

    @property
    def is_shape_tensor(self) -> bool: ...


class INetworkDefinition(Protocol):
    """A network that is being built."""

    @property
    def num_inputs(self) -> int: ...

    @property
    def num_outputs(self) -> int: ...

    def get_input(self, index: int) -> ITensor: ...

    def get_output(self, index: int) -> ITensor: ...


class ParserError(Protocol):
    """Why the parser refused a model."""

    def code(self) -> Enumerated: ...

    def desc(self) -> str: ...

    def node(self) -> int: ...

    def node_name(self) -> str: ...

    def node_operator(self) -> str: ...


class OnnxParser(Protocol):
    """Makes a network of an ONNX file."""

    @property
    def num_errors(self) -> int: ...

    def get_error(self, index: int) -> ParserError: ...

    def parse(self, model: bytes) -> bool: ...

    def parse_from_file(self, model: str) -> bool: ...


class IOptimizationProfile(Protocol):
    """Ranges of the inputs' shapes that a plan is made for."""

    def set_shape(
        self, name: str, least: tuple[int, ...], best: tuple[int, ...], most: tuple[int, ...], /
    ) -> None: ...


class ITimingCache(Protocol):
    """How long kernels took, so that the next build need not measure again."""

    def serialize(self) -> IHostMemory: ...


class IBuilderConfig(Protocol):
    """How a plan is built."""

    builder_optimization_level: int
    progress_monitor: ProgressMonitor

    def set_memory_pool_limit(self, pool: Enumerated, pool_size: int) -> None: ...

    def set_flag(self, flag: Enumerated) -> None: ...

    def clear_flag(self, flag: Enumerated) -> None: ...

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None: ...

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...

    def get_timing_cache(self) -> ITimingCache | None: ...


class RtxBuilderConfig(IBuilderConfig, Protocol):
    """What TensorRT-RTX adds: it builds for GPUs that are not there."""

    num_compute_capabilities: int

    def set_compute_capability(self, compute_capability: Enumerated, index: int) -> bool: ...


class Builder(Protocol):
    """Builds plans."""

    def create_network(self, flags: int = 0) -> INetworkDefinition | None: ...

    def create_builder_config(self) -> IBuilderConfig | None: ...

    def create_optimization_profile(self) -> IOptimizationProfile: ...

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None: ...


class IRuntimeCache(Protocol):
    """Kernels that TensorRT-RTX compiled for this GPU."""

    def serialize(self) -> IHostMemory | None: ...

    def deserialize(self, blob: bytes) -> bool: ...


class IRuntimeConfig(Protocol):
    """How TensorRT-RTX runs an engine."""

    dynamic_shapes_kernel_specialization_strategy: Enumerated

    def create_runtime_cache(self) -> IRuntimeCache: ...

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool: ...

    def set_execution_context_allocation_strategy(self, strategy: Enumerated, /) -> None: ...


class IExecutionContext(Protocol):
    """What one batch at a time runs in."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...

    def get_tensor_shape(self, name: str) -> Dims: ...

    def set_device_memory(self, memory: int, size: int) -> None: ...

    def set_tensor_address(self, name: str, memory: int) -> bool: ...

    def execute_async_v3(self, stream_handle: int) -> bool: ...


class RtxExecutionContext(IExecutionContext, Protocol):
    """What TensorRT-RTX adds: not every context can be recorded in a CUDA graph."""

    def is_stream_capturable(self, stream: int) -> bool: ...


class ICudaEngine(Protocol):
    """A plan on a device."""

    @property
    def num_io_tensors(self) -> int: ...

    @property
    def num_optimization_profiles(self) -> int: ...

    @property
    def device_memory_size_v2(self) -> int: ...

    def get_tensor_name(self, index: int) -> str: ...

    def get_tensor_mode(self, name: str) -> Enumerated: ...

    def get_tensor_dtype(self, name: str) -> Enumerated: ...

    def get_tensor_shape(self, name: str) -> Dims: ...

    def get_tensor_format(self, name: str) -> Enumerated: ...

    def get_tensor_location(self, name: str) -> Enumerated: ...

    def is_shape_inference_io(self, name: str) -> bool: ...

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]: ...

    def create_execution_context(
        self, how: Enumerated | IRuntimeConfig = ..., /
    ) -> IExecutionContext | None: ...


class RtxCudaEngine(ICudaEngine, Protocol):
    """What is used of it with TensorRT-RTX only."""

    def create_runtime_config(self) -> IRuntimeConfig | None: ...


class Runtime(Protocol):
    """Puts plans on the current device."""

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None: ...


class RtxRuntime(Runtime, Protocol):
    """What TensorRT-RTX adds: a look at a plan's header."""

    def get_engine_validity(self, buffer: bytes) -> tuple[Enumerated, int]: ...


class Module(Protocol):
    """The module itself."""

    __version__: str
    ILogger: type[Logger]
    IProgressMonitor: type[ProgressMonitor]
    Builder: Callable[[Logger], Builder]
    OnnxParser: Callable[[INetworkDefinition, Logger], OnnxParser]
    Runtime: Callable[[Logger], Runtime]
    BuilderFlag: Enumeration
    ExecutionContextAllocationStrategy: Enumeration
    MemoryPoolType: Enumeration
    NetworkDefinitionCreationFlag: Enumeration
    TensorFormat: Enumeration
    TensorIOMode: Enumeration
    TensorLocation: Enumeration


class RtxModule(Module, Protocol):
    """What TensorRT-RTX adds to it."""

    ComputeCapability: Enumeration
    DynamicShapesKernelSpecializationStrategy: Enumeration
    EngineInvalidityDiagnostics: Enumeration
