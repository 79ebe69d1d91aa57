"""Loads an ONNX file onto the device that is asked for, or says why it cannot be there.

    device   what it runs on
    cpu      the CPU, by way of the kept optimised model (cache.py)
    cuda:N   that GPU, and nothing else: lanes (cuda.py) if the model's shapes are fixed and
             all of its tensors there, else plain runs (engine.py)
    auto     cuda:0 if a session comes up there, else the CPU, with the reason in the metadata

onnxruntime takes a provider that is not there for a line in its log and runs on the CPU. Here the
GPU is looked for first (presence.py), the session must have been made on the providers that were
asked for, and no node may be left to the CPU unless the parameter ``strict`` is 0.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

from engines import artifacts, budget
from engines.base import Engine, EngineConfig, ModelMetadata
from engines.errors import DeviceUnavailable, EngineError, ModelLoadError
from engines.gpu.memory import Memory
from engines.ort import cuda, libraries, presence, tensorrt
from engines.ort.cache import open_kept
from engines.ort.description import Artifact, describe
from engines.ort.engine import OrtEngine
from engines.ort.failures import first_line, is_of_device
from engines.ort.model_file import inspect
from engines.ort.providers import CPU, TENSORRT, Wanted, device_of, is_strict, wanted
from engines.ort.session import (
    NO_CPU_NODES,
    RECORD_PLACEMENT,
    does_not_load,
    open_session,
    placement,
    session_options,
)

logger = logging.getLogger(__name__)

_NODES_ON_CPU: Final = "fallback to CPU EP has been explicitly disabled"


def load(path: Path, config: EngineConfig) -> Engine:
    """Load an ONNX file; see `engines.ort.load`."""
    kind, index = device_of(config)
    strict = is_strict(config)
    if kind == "auto":
        return _load_auto(path, config)
    chosen = wanted(config)
    if [one.name for one in chosen] == [CPU]:
        return _load_cpu(path, config)
    return _Accelerated(path, config, chosen, (kind, index), strict).load()


def _load_auto(path: Path, config: EngineConfig) -> Engine:
    """Load onto the first GPU, or onto the CPU with the reason why not."""
    try:
        return load(path, replace(config, device="cuda:0"))
    except ModelLoadError as exc:  # whatever it is: a file that is broken is so on the CPU as well
        reason = str(exc)
    extra = {"model": path.name, "reason": reason}
    logger.warning("runs on the CPU, as device auto allows", extra=extra)
    return _load_cpu(path, replace(config, device="cpu", providers=()), fallback=reason)


def _load_cpu(path: Path, config: EngineConfig, fallback: str = "") -> OrtEngine:
    artifact = _read(path)
    session = open_kept(path, config, artifact.sha256, artifact.file)
    metadata = describe(session, config, artifact, device="cpu", fallback=fallback)
    return OrtEngine(session, metadata)


def _read(path: Path) -> Artifact:
    try:
        return Artifact(artifacts.sha256_of(path), inspect(path))
    except OSError as exc:
        raise ModelLoadError(f"{path.name} does not load: {exc.strerror or exc}") from exc


class _Accelerated:
    """One load onto something other than the CPU alone.

    Args:
        device: kind and number as configured; an accelerator of the CPU's models has a GPU of its
            own, the first.
    """

    def __init__(
        self,
        path: Path,
        config: EngineConfig,
        chosen: Sequence[Wanted],
        device: tuple[str, int],
        strict: bool,
    ) -> None:
        self._path = path
        self._config = config
        self._chosen = tuple(chosen)
        self._device = device
        self._strict = strict
        self._has_library = any(one.is_library for one in chosen)
        is_gpu = device[0] == "cuda" or not self._has_library
        self._place = f"cuda:{device[1]}" if is_gpu else "cpu"
        self._is_gpu = is_gpu

    def load(self) -> Engine:
        """Load; see `engines.ort.load`."""
        if self._is_gpu:
            presence.require(self._chosen, self._device[1])
        artifact = _read(self._path)
        self._chosen = tuple(
            Wanted(
                TENSORRT, tensorrt.completed(one.options, self._path, self._config, artifact.sha256)
            )
            if one.name == TENSORRT and not one.is_library
            else one
            for one in self._chosen
        )
        memory = self._memory()
        if memory is None:
            return OrtEngine(*self._open(artifact, self._chosen))
        try:
            self._admit(artifact, memory)
            return self._on_memory(artifact, memory)
        except BaseException as exc:
            # A session in the frames that failed must not outlive the stream that it runs on.
            traceback.clear_frames(exc.__traceback__)
            memory.close()
            raise

    def _memory(self) -> Memory | None:
        """Return the GPU's memory for lanes; None where they cannot be had."""
        if not self._is_gpu or self._has_library or self._config.lanes < 1:
            return None
        if not _has_bindings():
            logger.warning("copies and computation take turns: cuda-bindings is not installed")
            return None
        from engines.gpu.cuda import CudaMemory

        return CudaMemory(self._device[1])

    def _admit(self, artifact: Artifact, memory: Memory) -> None:
        size_bytes = self._path.stat().st_size
        if artifact.file is not None and artifact.file.has_external_data:
            size_bytes = sum(f.stat().st_size for f in self._path.parent.iterdir() if f.is_file())
        free_bytes, _ = memory.memory_info()
        budget.admit(
            need_bytes=budget.estimate_bytes(size_bytes, 0, 0),
            free_bytes=free_bytes,
            reserve_bytes=self._config.memory_reserve_bytes,
            what=f"{self._path.name} on {self._place}",
        )

    def _on_memory(self, artifact: Artifact, memory: Memory) -> Engine:
        """Make lanes of the session if they can drive it, else plain runs on its stream."""
        from engines.gpu.engine import LaneEngine

        compute = memory.stream()
        has_graphs = self._config.has_graphs and self._chosen[0].name != TENSORRT
        on_stream = [cuda.on_stream(one, compute, has_graphs=has_graphs) for one in self._chosen]
        session, metadata = self._open(artifact, on_stream)
        why = cuda.why_no_lanes(session, metadata)
        if not why:
            executor = cuda.OrtExecutor(
                session, metadata, device=("cuda", self._device[1]), has_graphs=has_graphs
            )
            return LaneEngine(executor, memory, lanes=self._config.lanes, compute=compute)
        extra = {"model": self._path.name, "reason": why}
        logger.info("copies and computation take turns", extra=extra)
        if has_graphs:  # plain runs have new addresses every time: nothing to replay
            logger.warning("CUDA graphs are not used", extra=extra)
            del session
            on_stream = [cuda.on_stream(one, compute, has_graphs=False) for one in self._chosen]
            session, metadata = self._open(artifact, on_stream)
        return OrtEngine(session, metadata, on_close=memory.close)

    # Any: untyped session.
    def _open(self, artifact: Artifact, chosen: Sequence[Wanted]) -> tuple[Any, ModelMetadata]:
        session = open_strictly(
            self._path, self._config, chosen, device=self._device, strict=self._strict
        )
        counts = {name: sum(nodes.values()) for name, nodes in placement(session).items()}
        extra = {"model": self._path.name, "device": self._place, "nodes": counts}
        logger.info("onnxruntime placed the model", extra=extra)
        return session, describe(session, self._config, artifact, device=self._place)


def _has_bindings() -> bool:
    try:
        return util.find_spec("cuda.bindings.runtime") is not None
    except ModuleNotFoundError:
        return False


def open_strictly(
    path: Path,
    config: EngineConfig,
    chosen: Sequence[Wanted],
    *,
    device: tuple[str, int],
    strict: bool,
) -> Any:  # Any: untyped session
    """Make a session that runs on these providers and, if strict, on nothing else.

    Raises:
        ModelLoadError: the file does not load, or has nodes for the CPU only.
        DeviceUnavailable: a provider does not come up.
    """
    entries = {RECORD_PLACEMENT: "1", **({NO_CPU_NODES: "1"} if strict else {})}
    options = session_options(config, entries)
    names = [one.name for one in chosen]
    is_built_in = all(one.name in ort.get_available_providers() for one in chosen)
    try:
        if not is_built_in:
            names = libraries.add_to(options, chosen, config.libraries, device)
            session = open_session(path, options)
        else:
            session = open_session(path, options, chosen)
    except EngineError:
        raise
    except Exception as exc:  # foreign: see session.open_session
        if _NODES_ON_CPU in str(exc):
            raise _why_not_strict(path, config, chosen, device) from exc
        if is_of_device(exc):
            raise _unavailable(names[0], first_line(exc)) from exc
        raise does_not_load(path, exc) from exc
    active = session.get_providers()
    if active[: len(names)] != names:
        raise _unavailable(names[0], f"the session runs on {active[0]}")
    return session


def _unavailable(provider: str, why: str) -> DeviceUnavailable:
    missing = presence.missing_libraries()
    return DeviceUnavailable(f"{provider} was asked for: {missing or why}")


def _why_not_strict(
    path: Path, config: EngineConfig, chosen: Sequence[Wanted], device: tuple[str, int]
) -> ModelLoadError:
    """Find out why nodes ended up on the CPU, by letting them once."""
    try:
        session = open_strictly(path, config, chosen, device=device, strict=False)
    except ModelLoadError as exc:
        return exc
    nodes = placement(session)
    on_cpu = nodes.get(CPU)
    if not on_cpu:
        return ModelLoadError(f"{path.name}: nodes are left to the CPU: see the parameter strict")
    total = sum(sum(counts.values()) for counts in nodes.values())
    return ModelLoadError(
        f"{path.name}: {sum(on_cpu.values())} of {total} nodes can only run on the CPU "
        f"({', '.join(sorted(on_cpu))}) and {chosen[0].name} was asked for: "
        "the parameter strict with the value 0 allows it"
    )
