"""Loads a plan, or builds one of an ONNX file first, and puts it behind lanes.

The order: is the device there; is the TensorRT there; does it know the GPU; is there a plan, or
what becomes one; does it fit this TensorRT; is there room. Nothing falls back to anything.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple, cast

from engines import buckets, budget, devices
from engines.artifacts import sha256_of
from engines.base import EngineConfig, LanedEngine, ModelMetadata
from engines.declared import declare
from engines.errors import DeviceUnavailable, ModelLoadError
from engines.gpu.engine import LaneEngine
from engines.gpu.memory import Memory
from engines.trt import build, parse, plans, profiles, recipe
from engines.trt.api import Flavour, choose
from engines.trt.executor import TrtExecutor
from engines.trt.kernels import KernelCache
from engines.trt.profiles import Profile
from engines.trt.recipe import Recipe
from engines.trt.surface import ICudaEngine, RtxRuntime, Runtime

logger = logging.getLogger(__name__)

ONNX: Final = ".onnx"
PER_BUCKET: Final = "bucket"
# Parameters of a model that are read here.
PROFILES: Final = "profiles"
LEVEL: Final = "optimization_level"
FLAGS: Final = "builder_flags"


class Plan(NamedTuple):
    """What is put on a device."""

    content: bytes
    sha256: str
    """Of the model file, which is the ONNX file where the plan was built of one."""
    precision: str
    """What the weights are kept in, as far as the file says."""


def load_tensorrt(path: Path, config: EngineConfig) -> LanedEngine:
    """Load a plan or an ONNX file with TensorRT. See `engines.base.EngineLoader`."""
    return _load("tensorrt", path, config)


def load_rtx(path: Path, config: EngineConfig) -> LanedEngine:
    """Load a plan or an ONNX file with TensorRT-RTX. See `engines.base.EngineLoader`."""
    return _load("tensorrt_rtx", path, config)


def _load(name: str, path: Path, config: EngineConfig) -> LanedEngine:
    device = _device(name, config.device)
    if why := devices.why_not(device):
        raise DeviceUnavailable(why)
    flavour = choose(name)
    hardware = devices.hardware_key(device)
    check_support(flavour, device, hardware)
    from engines.gpu.cuda import CudaMemory  # needs the package cuda-bindings

    # Makes the device that of this thread, for the build too.
    memory = CudaMemory(devices.parse(device)[1])
    try:
        plan = plan_of(flavour, path, config, hardware)
        kernels = _kernels(flavour, config.cache, plan, hardware) if flavour.is_rtx else None
        return engine_over(flavour, plan, config, memory, kernels)
    except BaseException:
        memory.close()
        raise


def _device(name: str, device: str) -> str:
    """Return the GPU that is meant; `auto` has no other choice here."""
    try:
        kind, index = devices.parse(device)
    except ValueError as exc:
        raise ModelLoadError(str(exc)) from exc
    if kind == "cpu":
        raise DeviceUnavailable(f"{name} runs on GPUs only, and the device is cpu: say cuda:0")
    return f"cuda:{index}"


def check_support(flavour: Flavour, device: str, hardware: Mapping[str, object]) -> None:
    """Check that this TensorRT knows the GPU, as far as it can be told beforehand.

    Raises:
        DeviceUnavailable: it does not.
    """
    found = hardware.get("compute_capability")
    if not flavour.is_rtx or not isinstance(found, list):
        return
    capability = ".".join(map(str, found))
    if capability not in recipe.capabilities(flavour):
        why = recipe.untargeted(flavour, capability)
        raise DeviceUnavailable(f"{device} ({hardware.get('gpu')}): {why}")


def plan_of(
    flavour: Flavour, path: Path, config: EngineConfig, hardware: Mapping[str, object]
) -> Plan:
    """Return the plan to load; needs no device but for a build.

    Raises:
        ModelLoadError: there is none, it does not fit, or it cannot be built.
    """
    if path.suffix == ONNX:
        plan, _ = build.kept(
            flavour,
            path,
            recipe_of(flavour, path, config),
            cache=config.cache,
            hardware=hardware,
            built_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return Plan(plan, sha256_of(path), plans.precision_of(path))
    facts = plans.inspect(path)
    if why := plans.fault(path.name, facts, flavour.name, flavour.version):
        raise ModelLoadError(why)
    precision = str(facts.sidecar.options.get("precision", "")) if facts.sidecar else ""
    return Plan(path.read_bytes(), facts.sha256, precision)


def recipe_of(flavour: Flavour, model: Path, config: EngineConfig) -> Recipe:
    """Return how an ONNX file is built for a configuration.

    Raises:
        ModelLoadError: the file or the configuration is at fault.
    """
    inputs, outputs = parse.signature(flavour, model)
    given = config.parameters
    level = given.get(LEVEL, "")
    if level and level not in map(str, recipe.LEVELS):
        raise ModelLoadError(f"parameter {LEVEL!r} is {level!r}, not one of 0 to 5")
    written = given.get(PROFILES, "").split()
    made: tuple[Profile, ...]
    if written and written != [PER_BUCKET]:
        made = tuple(profiles.parse(text) for text in written)
    else:
        declared = declare(config, inputs, outputs)
        rows = declared.max_batch_size
        sizes = declared.buckets or (buckets.powers_of_two(rows) if rows else ())
        made = profiles.from_buckets(inputs, sizes, each=bool(written))
    return Recipe(
        profiles=made,
        workspace_bytes=config.memory_limit_bytes,
        level=int(level) if level else None,
        flags=tuple(given.get(FLAGS, "").split()),
    )


def _kernels(
    flavour: Flavour, cache: Path | None, plan: Plan, hardware: Mapping[str, object]
) -> KernelCache:
    if cache is None:
        return KernelCache(flavour, None)
    key = json.dumps(dict(hardware), sort_keys=True, default=str).encode()
    name = hashlib.sha256(plan.content + key).hexdigest()[:32]
    return KernelCache(flavour, cache / f"{name}.kernels")


def engine_over(
    flavour: Flavour,
    plan: Plan,
    config: EngineConfig,
    memory: Memory,
    kernels: KernelCache | None = None,
) -> LaneEngine:
    """Put a plan on a device, behind lanes. Takes the memory over once it returns.

    Args:
        flavour: the TensorRT that built the plan.
        plan: it.
        config: of the instance.
        memory: of the device.
        kernels: those of TensorRT-RTX; None: another one.

    Raises:
        ModelLoadError: the plan cannot be served.
        DeviceUnavailable: there is no device for it, or too little room.
        OutOfMemory: the device has no room after all.
    """
    _admit(len(plan.content), config, memory)
    engine = deserialized(flavour, plan.content, memory.device)
    _admit(engine.device_memory_size_v2, config, memory)
    told = ModelMetadata(
        inputs=(),
        outputs=(),
        max_batch_size=0,
        platform=f"{flavour.name}_plan",
        engine=f"{flavour.name} {flavour.version}",
        device=memory.device,
        artifact_sha256=plan.sha256,
        precision=plan.precision,
        memory_bytes=len(plan.content),
    )
    executor = TrtExecutor(flavour, engine, config, memory, told, kernels)
    return LaneEngine(
        executor,
        memory,
        lanes=config.lanes,
        has_graphs=config.has_graphs,
        largest=executor.largest,
        compute=executor.stream,
    )


def _admit(need_bytes: int, config: EngineConfig, memory: Memory) -> None:
    free_bytes, _ = memory.memory_info()  # in any case: TensorRT uses the thread's device
    if config.memory_reserve_bytes:
        budget.admit(
            need_bytes=need_bytes,
            free_bytes=free_bytes,
            reserve_bytes=config.memory_reserve_bytes,
            what=f"the plan on {memory.device}",
        )


def deserialized(flavour: Flavour, plan: bytes, device: str) -> ICudaEngine:
    """Put a plan on the current device.

    Raises:
        DeviceUnavailable: there is no device that TensorRT can use.
        ModelLoadError: it does not take the plan.
    """
    flavour.log.forget()
    runtime = flavour.module.Runtime(flavour.log.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is not None:
        return engine
    why = "; ".join(filter(None, (flavour.log.why(), *diagnosis(flavour, runtime, plan))))
    sentence = f"{flavour} does not load the plan on {device}: {why or 'it does not say why'}"
    if missing := devices.why_not(device):
        raise DeviceUnavailable(f"{missing}: {sentence}")
    raise ModelLoadError(sentence)


def diagnosis(flavour: Flavour, runtime: Runtime, plan: bytes) -> list[str]:
    """Return what TensorRT-RTX finds wrong with a plan here; TensorRT has no such question."""
    if not flavour.is_rtx:
        return []
    _, found = cast("RtxRuntime", runtime).get_engine_validity(plan)
    members = flavour.rtx.EngineInvalidityDiagnostics.__members__
    return [name.lower().replace("_", " ") for name, bit in members.items() if found & bit.value]
