"""A stand-in for TensorRT's runtime, to test the logic around it. It proves nothing of TensorRT.

It has the names that engines/trt uses of the runtime, reads plans that `fake_plan` makes of an ONNX
file, and computes with onnxruntime on the CPU, on the addresses that it is given, when the stream
of its `HostMemory` gets there. It is stricter than TensorRT: what is done in the wrong order is
noted in `violations` and refused. It builds nothing.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, cast

import onnx
import onnxruntime as ort

from engines.gpu.host import HostMemory
from engines.gpu.memory import Stream
from engines.tensors import DATATYPES
from engines.trt import api
from engines.trt.api import KINDS, Flavour
from engines.trt.profiles import Profile, Range
from engines.trt.surface import Module

VERSION: Final = "11.4.0.106"
SCRATCH_BYTES: Final = 4096
_TYPES: Final = {1: "FLOAT", 10: "HALF", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 2: "UINT8"}
_NAMES: Final = {
    "FLOAT": "FP32",
    "HALF": "FP16",
    "INT8": "INT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "BOOL": "BOOL",
    "UINT8": "UINT8",
}


def _enumeration(name: str, members: Sequence[str]) -> type[Enum]:
    return cast("type[Enum]", Enum(name, {member: at for at, member in enumerate(members)}))


DataType: Final = _enumeration("DataType", [*_NAMES, "BF16"])
TensorFormat: Final = _enumeration("TensorFormat", ["LINEAR", "CHW32"])
TensorIOMode: Final = _enumeration("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
TensorLocation: Final = _enumeration("TensorLocation", ["DEVICE", "HOST"])
Strategy: Final = _enumeration("Strategy", ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"])
Specialization: Final = _enumeration("Specialization", ["LAZY", "EAGER", "NONE"])
Severity: Final = _enumeration("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO"])
Diagnostics: Final = Enum("Diagnostics", {"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2})
Capability: Final = _enumeration("Capability", ["NONE", "CURRENT", "SM75", "SM89", "SM120"])


def fake_plan(model: Path, profiles: Sequence[Profile], *, name: str = "tensorrt") -> bytes:
    """Return what stands for a plan of an ONNX file: with the header of a real one."""
    ranges = [
        {
            tensor: [list(given.least), list(given.best), list(given.most)]
            for tensor, given in p.items()
        }
        for p in profiles
    ]
    described = json.dumps(ranges).encode()
    content = model.read_bytes()
    numbers = bytes(int(number) for number in VERSION.split("."))
    size = 28 + 4 + len(described) + len(content)
    header = KINDS[name].tag + bytes(4) + bytes(8) + struct.pack("<Q", size) + numbers
    return header + struct.pack("<I", len(described)) + described + content


class FakeLogger:
    """Stands for ILogger."""


class FakeTensorRT:
    """Stands for the module.

    Args:
        memory: where it computes.
        name: tensorrt or tensorrt_rtx.
    """

    __version__ = VERSION
    ILogger = FakeLogger
    DataType = DataType
    TensorFormat = TensorFormat
    TensorIOMode = TensorIOMode
    TensorLocation = TensorLocation
    ExecutionContextAllocationStrategy = Strategy
    ComputeCapability = Capability
    DynamicShapesKernelSpecializationStrategy = Specialization
    EngineInvalidityDiagnostics = Diagnostics

    def __init__(self, memory: HostMemory, name: str = "tensorrt") -> None:
        self.memory = memory
        self.name = name
        self.violations: list[str] = []
        """What was done that must not be."""
        self.streams: set[int] = set()
        """Handles that something was queued on."""
        self.contexts = 0
        """Made so far."""
        self.alive = 0
        """Engines that were made and are not gone yet."""
        self.refusal = ""
        """Why no plan is taken; empty: they are."""
        self.max_contexts = 1_000
        self.host_tensors: set[str] = set()
        self.packed_tensors: set[str] = set()
        self.is_capturable = True
        self.kernels: list[bytes] = []
        """What compiled kernels were taken up from."""
        self.runs: list[dict[str, tuple[int, ...]]] = []
        """Input shapes of each computation, in order."""
        self.chosen: list[int] = []
        """Profiles, in the order in which contexts were set to them."""

    def Runtime(self, logger: object) -> FakeRuntime:  # noqa: N802  (TensorRT's name)
        """Return a runtime."""
        return FakeRuntime(self, logger)

    def flavour(self) -> Flavour:
        """Return it as what the package under test takes."""
        # The class knows neither a builder nor a parser: cast, where a loader never asks for them.
        return api.flavour(KINDS[self.name], cast("Module", self))


class FakeRuntime:
    """Stands for Runtime."""

    def __init__(self, module: FakeTensorRT, logger: object) -> None:
        self._module = module
        self._logger: Any = logger  # Any: of a class that is made at run time

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> FakeEngine | None:
        """Take a plan, or say why not and return None."""
        if self._module.refusal:
            self.say("ERROR", self._module.refusal)
            return None
        return FakeEngine(self._module, self, serialized_engine)

    def get_engine_validity(self, buffer: bytes) -> tuple[Enum, int]:
        """Find fault with a plan."""
        del buffer
        return Severity.ERROR, 1 if self._module.refusal else 0  # type: ignore[attr-defined]

    def say(self, severity: str, message: str) -> None:
        """Say something to the logger."""
        self._logger.log(Severity[severity], message)


class FakeEngine:
    """Stands for ICudaEngine."""

    device_memory_size_v2 = SCRATCH_BYTES

    def __init__(self, module: FakeTensorRT, runtime: FakeRuntime, plan: bytes) -> None:
        self.module = module
        self.runtime = runtime
        size = struct.unpack_from("<I", plan, 28)[0]
        ranges = json.loads(plan[32 : 32 + size])
        self.profiles: list[dict[str, Range]] = [
            {name: Range(*(tuple(end) for end in ends)) for name, ends in profile.items()}
            for profile in ranges
        ]
        content = plan[32 + size :]
        model = onnx.load_model_from_string(content)
        initial = {tensor.name for tensor in model.graph.initializer}
        self.inputs = {v.name: v for v in model.graph.input if v.name not in initial}
        self.outputs = {v.name: v for v in model.graph.output}
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        module.alive += 1

    def __del__(self) -> None:
        self.module.alive -= 1

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    @property
    def num_optimization_profiles(self) -> int:
        return max(len(self.profiles), 1)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> Enum:
        return TensorIOMode["INPUT" if name in self.inputs else "OUTPUT"]

    def get_tensor_dtype(self, name: str) -> Enum:
        return DataType[_TYPES[self._value(name).type.tensor_type.elem_type]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(d, str) else d for d in self.dims(name))

    def get_tensor_format(self, name: str) -> Enum:
        return TensorFormat["CHW32" if name in self.module.packed_tensors else "LINEAR"]

    def get_tensor_location(self, name: str) -> Enum:
        return TensorLocation["HOST" if name in self.module.host_tensors else "DEVICE"]

    def is_shape_inference_io(self, name: str) -> bool:
        return name in self.module.host_tensors

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        given = self.range_of(name, profile_index)
        return [given.least, given.best, given.most]

    def create_execution_context(self, how: object) -> FakeContext | None:
        """Make a context with memory of the caller's, or none."""
        if self.module.contexts >= self.module.max_contexts:
            self.runtime.say("ERROR", "no memory for one more")
            return None
        strategy = how.strategy if isinstance(how, FakeSettings) else how
        if strategy is not Strategy["USER_MANAGED"]:
            self.module.violations.append("a context was made with memory of its own")
        self.module.contexts += 1
        return FakeContext(self)

    def create_runtime_config(self) -> FakeSettings:
        return FakeSettings(self.module)

    def range_of(self, name: str, profile: int) -> Range:
        """Return what a profile says of an input, or its shape that never varies."""
        found = self.profiles[profile].get(name) if self.profiles else None
        return found or Range(*[self.get_tensor_shape(name)] * 3)

    def dims(self, name: str) -> list[int | str]:
        """Return a tensor's shape, with the names of what varies."""
        found = self._value(name).type.tensor_type.shape.dim
        return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in found]

    def datatype(self, name: str) -> str:
        """Return the protocol's name of a tensor's type."""
        return _NAMES[self.get_tensor_dtype(name).name]

    def _value(self, name: str) -> onnx.ValueInfoProto:
        return self.inputs.get(name) or self.outputs[name]


class FakeContext:
    """Stands for IExecutionContext: profile, shapes, addresses, work; in that order."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._module = engine.module
        self._profile = -1 if engine.profiles else 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch_bytes = 0
        self._setups = 0
        """Times that something was set: what was queued before is undefined if it runs again."""

    def set_device_memory(self, memory: int, size: int) -> None:
        self._scratch_bytes = size if memory else 0

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not stream_handle or profile_index >= len(self._engine.profiles):
            return self._refuse(f"profile {profile_index} on stream {stream_handle}")
        self._profile = profile_index
        self._shapes.clear()
        self._addresses.clear()
        self._setups += 1
        self._module.chosen.append(profile_index)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._profile < 0:
            return self._refuse("a shape was set before a profile")
        if not self._engine.range_of(name, self._profile).covers(shape):
            self._engine.runtime.say("ERROR", f"{name} {shape} is not in profile {self._profile}")
            return False
        self._shapes[name] = shape
        self._addresses.clear()
        self._setups += 1
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = {
            dim: size
            for given, shape in self._shapes.items()
            for dim, size in zip(self._engine.dims(given), shape, strict=True)
        }
        return tuple(
            sizes.get(dim, -1) if isinstance(dim, str) else dim for dim in self._engine.dims(name)
        )

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if set(self._shapes) != set(self._engine.inputs):
            return self._refuse("an address was set before the shapes")
        self._addresses[name] = memory
        self._setups += 1
        return bool(memory)

    def is_stream_capturable(self, stream: int) -> bool:
        return bool(stream) and self._module.is_capturable

    def execute_async_v3(self, stream_handle: int) -> bool:
        if set(self._addresses) != {*self._engine.inputs, *self._engine.outputs}:
            return self._refuse("work was queued before all addresses were set")
        if self._scratch_bytes < self._engine.device_memory_size_v2:
            return self._refuse("work was queued without scratch memory")
        self._module.streams.add(stream_handle)
        shapes = {name: self.get_tensor_shape(name) for name in self._addresses}
        work = partial(self._compute, dict(self._addresses), shapes, self._setups)
        self._module.memory.call(Stream(stream_handle), work)
        return True

    def _compute(
        self, addresses: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], setups: int
    ) -> None:
        if setups != self._setups:
            self._module.violations.append("a context was set up again under work, or a graph")
        arrays = {
            name: self._module.memory.array_at(
                address, DATATYPES[self._engine.datatype(name)].dtype, shapes[name]
            )
            for name, address in addresses.items()
        }
        feed = {name: arrays[name] for name in self._engine.inputs}
        outputs = self._engine.session.run(list(self._engine.outputs), feed)
        for name, array in zip(self._engine.outputs, outputs, strict=True):
            arrays[name][...] = array
        self._module.runs.append({name: shapes[name] for name in self._engine.inputs})

    def _refuse(self, what: str) -> bool:
        self._module.violations.append(what)
        self._engine.runtime.say("ERROR", what)
        return False


class FakeSettings:
    """Stands for IRuntimeConfig, of TensorRT-RTX."""

    dynamic_shapes_kernel_specialization_strategy: Enum = Specialization["LAZY"]

    def __init__(self, module: FakeTensorRT) -> None:
        self._module = module
        self.strategy: object = Strategy["STATIC"]

    def create_runtime_cache(self) -> FakeKernels:
        if self.dynamic_shapes_kernel_specialization_strategy is not Specialization["EAGER"]:
            self._module.violations.append("kernels would come after the graphs")
        return FakeKernels(self._module)

    def set_runtime_cache(self, cache: FakeKernels) -> bool:
        return cache is not None

    def set_execution_context_allocation_strategy(self, strategy: object) -> None:
        self.strategy = strategy


class FakeKernels:
    """Stands for IRuntimeCache: holds how many computations there were."""

    TAG: ClassVar = b"kernels of "

    def __init__(self, module: FakeTensorRT) -> None:
        self._module = module

    def serialize(self) -> bytes:
        return self.TAG + str(len(self._module.runs)).encode()

    def deserialize(self, blob: bytes) -> bool:
        self._module.kernels.append(blob)
        return blob.startswith(self.TAG)
