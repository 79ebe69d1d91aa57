"""Which TensorRT it is: 10, 11 or TensorRT-RTX; and what is used of each.

All three are one Python interface with different modules; what each lacks of it is asked here and
nowhere else. Knows nothing of models. TensorRT is imported at the first load that needs it, never
before.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

from engines.errors import DeviceUnavailable
from engines.trt import surface
from engines.trt.log import Log
from engines.trt.surface import Module, RtxModule

OLDEST: Final = 10
"""Major version; TensorRT-RTX counts its own from 1."""

# Members of the enumerations: taken by name, so that no protocol shows them.
MEMBERS: Final[Mapping[str, tuple[str, ...]]] = {
    "DataType": ("FLOAT", "HALF", "BF16", "INT8", "INT32", "INT64", "BOOL", "UINT8"),
    "BuilderFlag": ("TF32", "SPARSE_WEIGHTS", "STRICT_NANS", "DISTRIBUTIVE_INDEPENDENCE"),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "MemoryPoolType": ("WORKSPACE",),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "TensorFormat": ("LINEAR",),
    "TensorIOMode": ("INPUT", "OUTPUT"),
    "TensorLocation": ("DEVICE",),
}
RTX_MEMBERS: Final[Mapping[str, tuple[str, ...]]] = {
    "ComputeCapability": ("SM75", "SM80", "SM86", "SM89", "SM120"),
    "DynamicShapesKernelSpecializationStrategy": ("EAGER",),
    "EngineInvalidityDiagnostics": (
        "VERSION_MISMATCH",
        "UNSUPPORTED_CC",
        "OLD_CUDA_DRIVER",
        "OLD_CUDA_RUNTIME",
        "INSUFFICIENT_GPU_MEMORY",
        "MALFORMED_ENGINE",
        "CUDA_ERROR",
    ),
}
CALLED_BACK: Final[Mapping[str, tuple[str, ...]]] = {
    "ILogger": ("log", "Severity"),
    "IProgressMonitor": ("phase_start", "step_complete", "phase_finish"),
}
"""What TensorRT calls of ours."""


def _own(protocol: type) -> tuple[str, ...]:
    names = {*vars(protocol), *vars(protocol).get("__annotations__", {})}
    return tuple(sorted(n for n in names if not n.startswith("_") or n == "__version__"))


USED: Final[Mapping[str, tuple[str, ...]]] = {
    **{
        protocol.__name__: _own(protocol)
        for protocol in (
            surface.IHostMemory,
            surface.ITensor,
            surface.INetworkDefinition,
            surface.ParserError,
            surface.OnnxParser,
            surface.IOptimizationProfile,
            surface.ITimingCache,
            surface.IBuilderConfig,
            surface.Builder,
            surface.IExecutionContext,
            surface.ICudaEngine,
            surface.Runtime,
        )
    },
    **CALLED_BACK,
    **MEMBERS,
}
"""By class, what every TensorRT has to have."""
RTX_USED: Final[Mapping[str, tuple[str, ...]]] = {
    "IBuilderConfig": _own(surface.RtxBuilderConfig),
    "IExecutionContext": _own(surface.RtxExecutionContext),
    "ICudaEngine": _own(surface.RtxCudaEngine),
    "Runtime": _own(surface.RtxRuntime),
    "IRuntimeConfig": _own(surface.IRuntimeConfig),
    "IRuntimeCache": _own(surface.IRuntimeCache),
    **RTX_MEMBERS,
}
"""By class, what TensorRT-RTX has to have beside those."""
MODULE_USED: Final = _own(surface.Module)
RTX_MODULE_USED: Final = _own(surface.RtxModule)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """One of the runtimes that have TensorRT's interface, imported."""

    name: str
    """tensorrt or tensorrt_rtx, which is its module's name too."""
    title: str
    """For people."""
    module: Module
    version: str
    log: Log
    tag: bytes
    """First four bytes of its plans."""
    is_rtx: bool
    has_timing_cache: bool
    """TensorRT-RTX has the functions, which do nothing and say that they are deprecated."""

    @property
    def needs_typing_flag(self) -> bool:
        """Whether networks are strongly typed only when asked: TensorRT 10."""
        return not self.is_rtx and int(self.version.partition(".")[0]) == OLDEST

    def __str__(self) -> str:
        return f"{self.title} {self.version}"

    @property
    def rtx(self) -> RtxModule:
        """The module with what only TensorRT-RTX has."""
        return cast("RtxModule", self.module)


@dataclass(frozen=True, slots=True)
class Kind:
    """What is known of a flavour before it is imported."""

    name: str
    title: str
    extra: str
    """Of this package: what to install."""
    tag: bytes
    is_rtx: bool = False


KINDS: Final[Mapping[str, Kind]] = {
    "tensorrt": Kind("tensorrt", "TensorRT", "tensorrt", b"ftrt"),
    "tensorrt_rtx": Kind("tensorrt_rtx", "TensorRT-RTX", "tensorrt-rtx", b"vtrt", is_rtx=True),
}


@functools.cache
def choose(name: str) -> Flavour:
    """Import one of them: ``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        DeviceUnavailable: it is not installed, does not import or is too old.
    """
    kind = KINDS[name]
    try:
        module = importlib.import_module(kind.name)
    except ModuleNotFoundError as exc:
        raise DeviceUnavailable(
            f"{kind.title} is not installed ({exc.name} is missing): "
            f"install sluice-gateway[{kind.extra}]"
        ) from exc
    except (ImportError, OSError) as exc:
        raise DeviceUnavailable(f"{kind.title} is installed and cannot be imported: {exc}") from exc
    return flavour(kind, cast("Module", module))


def flavour(kind: Kind, module: Module) -> Flavour:
    """Describe an imported module.

    Raises:
        DeviceUnavailable: it is too old.
    """
    version = module.__version__
    if not kind.is_rtx and int(version.partition(".")[0]) < OLDEST:
        raise DeviceUnavailable(f"{kind.title} {version} is too old: {OLDEST} is the oldest known")
    return Flavour(
        name=kind.name,
        title=kind.title,
        module=module,
        version=version,
        log=Log(module),
        tag=kind.tag,
        is_rtx=kind.is_rtx,
        has_timing_cache=not kind.is_rtx,
    )
