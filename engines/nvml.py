"""How the machine's GPUs are, as the NVIDIA driver's management library tells every few seconds.

Knows the package nvidia-ml-py (module `pynvml`) and nothing of engines. All calls are made in one
thread, because a driver in trouble may take seconds to answer; readers get the last samples and
never wait. Without the package, the driver or a GPU there are no samples, and one debug line.

The library counts GPUs as nvidia-smi does, whatever CUDA_VISIBLE_DEVICES says: a sample is matched
with a device of CUDA by its UUID. What a GPU does not tell (a MIG slice has no utilisation, most
have no error-correcting memory) is None.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Final, TypeVar

logger = logging.getLogger(__name__)

INTERVAL_S: Final = 5.0
_STOP_S: Final = 1.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One GPU at one moment; None is what it does not tell."""

    index: int
    """As nvidia-smi counts."""
    uuid: str
    name: str
    utilization_ratio: float | None
    """Part of the last moments in which a kernel ran, 0 to 1; says nothing of how full it was."""
    memory_utilization_ratio: float | None
    """Part of the last moments in which memory was read or written, 0 to 1."""
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    process_memory_bytes: int | None
    """Of this process. None also where the driver sees it by another process id, as it does of a
    container with process ids of its own."""
    power_watts: float | None
    temperature_celsius: int | None
    ecc_errors: int | None
    """Memory errors that could not be corrected, since the driver was loaded."""


@dataclass(frozen=True, slots=True)
class _Gpu:
    index: int
    handle: object
    uuid: str
    name: str


class Sampler:
    """Asks every few seconds, in a daemon thread, and keeps the last answers.

    `start` and `stop` are called by one owner, in any order and number. A thread belongs to its
    stop event: one that hangs in the driver past `stop` never publishes again.
    """

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._samples: tuple[GpuSample, ...] = ()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def samples(self) -> tuple[GpuSample, ...]:
        """The last sample of every GPU; empty: none was taken, or there is none to take."""
        return self._samples

    def start(self) -> None:
        """Begin to sample; without effect where it was begun."""
        if self._thread is not None:
            return
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(self._stopped,), name="gpu-samples", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End sampling and forget the samples; waits a second for the thread at most."""
        thread, self._thread = self._thread, None
        self._stopped.set()
        self._samples = ()
        if thread is not None:
            thread.join(_STOP_S)

    def _run(self, stopped: threading.Event) -> None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            logger.debug("no GPU metrics", extra={"reason": "nvidia-ml-py is not installed"})
            return
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as exc:
            logger.debug("no GPU metrics", extra={"reason": str(exc)})
            return
        try:
            self._sample(nvml, stopped)
        except nvml.NVMLError as exc:
            logger.debug("no GPU metrics", extra={"reason": str(exc)})
        finally:
            _told(nvml, nvml.nvmlShutdown)

    def _sample(self, nvml: ModuleType, stopped: threading.Event) -> None:
        gpus = _gpus(nvml)
        while gpus and not stopped.is_set():
            samples = tuple(_sampled(nvml, gpu) for gpu in gpus)
            # The event again: asking takes time, and `stop` may have come meanwhile.
            if not stopped.is_set():
                self._samples = samples
            stopped.wait(self._interval_s)


def _gpus(nvml: ModuleType) -> list[_Gpu]:
    """Return the GPUs that can be asked; one that is lost or not ours to see is left out."""
    found = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = _told(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            logger.debug("a GPU cannot be asked", extra={"gpu": index})
            continue
        uuid = _told(nvml, nvml.nvmlDeviceGetUUID, handle)
        name = _told(nvml, nvml.nvmlDeviceGetName, handle)
        found.append(_Gpu(index, handle, uuid or "", name or ""))
    return found


def _sampled(nvml: ModuleType, gpu: _Gpu) -> GpuSample:
    handle = gpu.handle
    rates = _told(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
    memory = _told(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    milliwatts = _told(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
    uncorrected, volatile = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    return GpuSample(
        index=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        utilization_ratio=None if rates is None else rates.gpu / 100,
        memory_utilization_ratio=None if rates is None else rates.memory / 100,
        memory_used_bytes=None if memory is None else memory.used,
        memory_total_bytes=None if memory is None else memory.total,
        process_memory_bytes=_process_memory_bytes(nvml, handle),
        power_watts=None if milliwatts is None else milliwatts / 1000,
        temperature_celsius=_told(
            nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU
        ),
        ecc_errors=_told(nvml, nvml.nvmlDeviceGetTotalEccErrors, handle, uncorrected, volatile),
    )


def _process_memory_bytes(nvml: ModuleType, handle: object) -> int | None:
    pid = os.getpid()
    # The numbered form: the other raises an error of no family where the driver lacks it.
    listed = _told(nvml, nvml.nvmlDeviceGetComputeRunningProcesses_v3, handle) or []
    ours = [p.usedGpuMemory for p in listed if p.pid == pid and p.usedGpuMemory is not None]
    return sum(ours) if ours else None  # a process is listed once per MIG slice


def _told(nvml: ModuleType, ask: Callable[..., _T], *arguments: object) -> _T | None:
    """Return what the library tells, or None where it refuses (not supported, mostly)."""
    try:
        return ask(*arguments)
    except nvml.NVMLError:
        return None
