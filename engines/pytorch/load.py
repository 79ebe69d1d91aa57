"""Loads a model file of torch: finds out what it is, where it may run, and what runs it there.

Knows the formats, the devices and the configuration. On a GPU batches go through lanes where the
shapes of the outputs can be told before a run and are bounded; else one after the other.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch

from engines import budget, devices
from engines.artifacts import sha256_of
from engines.base import Engine, EngineConfig, ModelMetadata
from engines.declared import declare
from engines.errors import DeviceUnavailable, ModelLoadError
from engines.pytorch import arrays, compiled
from engines.pytorch.engine import TorchEngine
from engines.pytorch.executor import CudaPlace, TorchExecutor
from engines.pytorch.exported import open_exported
from engines.pytorch.formats import Format, ModelFile, identify
from engines.pytorch.plan import Plan, plan_of
from engines.pytorch.program import Program
from engines.pytorch.script import open_script

_OPENERS: Final[Mapping[Format, Callable[[ModelFile, EngineConfig, str], Program]]] = {
    Format.EXPORTED: open_exported,
    Format.COMPILED: compiled.open_compiled,
    Format.SCRIPT: open_script,
}
_once = threading.Lock()
"""Held for ever by the first load: torch takes its inter-op threads once per process."""


def load(path: Path, config: EngineConfig) -> Engine:
    """Load a program of torch.export, a package of AOTInductor or TorchScript. Blocking.

    Raises:
        ModelLoadError: the file is broken, a pickle, or contradicts the declared signature.
        DeviceUnavailable: the device that the configuration asks for is not there.
    """
    if config.providers:
        raise ModelLoadError(f"torch has no execution accelerator {config.providers[0][0]!r}")
    file = identify(path)
    device, fallback = _device(config.device, file)
    if device != "cpu":
        _admit(file, config, device)
    _prepare(config)
    program = _OPENERS[file.format](file, config, device)
    try:
        return _engine(program, file, device, fallback)
    except BaseException:
        program.close()
        raise


def _device(wanted: str, file: ModelFile) -> tuple[str, str]:
    """Return where to run, and why not on a GPU if that was free to choose."""
    try:
        kind, index = devices.parse(wanted)
    except ValueError as exc:
        raise ModelLoadError(str(exc)) from None
    if kind == "cpu":
        return "cpu", ""
    device = f"cuda:{index}"
    why = devices.why_not(device) or _why_torch_cannot(index) or _why_file_cannot(file, device)
    if not why:
        return device, ""
    if kind == "auto":
        return "cpu", why
    raise DeviceUnavailable(f"{device} was asked for and cannot be used: {why}")


def _why_torch_cannot(index: int) -> str:
    if torch.version.cuda is None:
        return f"this torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} does not find the GPU"
    count = torch.cuda.device_count()
    return "" if index < count else f"torch finds {count} GPUs"


def _why_file_cannot(file: ModelFile, device: str) -> str:
    return compiled.why_not_on(file, device) if file.format is Format.COMPILED else ""


def _admit(file: ModelFile, config: EngineConfig, device: str) -> None:
    free_bytes, _ = torch.cuda.mem_get_info(device)
    budget.admit(
        need_bytes=budget.estimate_bytes(file.path.stat().st_size, 0, config.lanes),
        free_bytes=free_bytes,
        reserve_bytes=config.memory_reserve_bytes,
        what=f"{file.path.name} on {device}",
    )


def _prepare(config: EngineConfig) -> None:
    """Set what torch has once per process."""
    arrays.accept_read_only_arrays()
    if _once.acquire(blocking=False):
        with contextlib.suppress(RuntimeError):  # something else in the process has used them
            torch.set_num_interop_threads(config.inter_op_threads)


def _engine(program: Program, file: ModelFile, device: str, fallback: str) -> Engine:
    config = program.config
    declared = declare(config, program.inputs, program.outputs)
    plan = None if device == "cpu" else plan_of(program, declared)
    is_fixed = all(-1 not in s.shape[declared.max_batch_size > 0 :] for s in declared.inputs)
    metadata = ModelMetadata(
        inputs=declared.inputs,
        outputs=declared.outputs,
        max_batch_size=declared.max_batch_size,
        buckets=declared.buckets if plan is None else plan.buckets,
        platform="pytorch_libtorch",
        engine=f"pytorch {torch.__version__}",
        device=device,
        artifact_sha256=sha256_of(file.path),
        precision=arrays.precision(program.held),
        memory_bytes=arrays.memory_bytes(program.held),
        fallback=fallback,
        is_steady=device == "cpu" and is_fixed and program.is_steady,
    )
    if plan is not None:
        return _on_lanes(program, metadata, plan)
    return TorchEngine(program, metadata, threads=config.intra_op_threads)


def _on_lanes(program: Program, metadata: ModelMetadata, plan: Plan) -> Engine:
    # Imported here: only a GPU needs the bindings of CUDA.
    from engines.gpu.cuda import CudaMemory
    from engines.gpu.engine import LaneEngine

    index = int(metadata.device.partition(":")[2])
    return LaneEngine(
        TorchExecutor(program, metadata, CudaPlace(metadata.device)),
        CudaMemory(index),
        lanes=program.config.lanes,
        has_graphs=program.config.has_graphs,
        largest=plan.largest,
    )
