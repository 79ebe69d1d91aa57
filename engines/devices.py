"""What this machine has to run models on: the CPU, and the GPUs that the NVIDIA driver shows.

Knows the driver's library (by ctypes) and the names of devices; knows no runtime and needs no
package. Asking creates no context and takes no GPU memory. The driver answers once per process: a
GPU that is added or lost later is not seen. Asking initialises the driver, and CUDA does not work
in a process forked after that: processes are spawned here.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engines.errors import DeviceUnavailable

_LIBRARY: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_CUDA: Final = re.compile(r"cuda(?::(0|[1-9][0-9]{0,3}))?")
_CPU_INFO: Final = Path("/proc/cpuinfo")
_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_MAJOR: Final = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
_MINOR: Final = 76
_NAME_BYTES: Final = 256
_NO_DEVICE: Final = 100

# What the driver's codes mean to the person who has to do something about them.
_REASONS: Final[Mapping[int, str]] = {
    2: "the NVIDIA driver found no memory to start with",
    34: "the library is the CUDA toolkit's stub, not an NVIDIA driver",
    35: "the NVIDIA driver is older than its CUDA library",
    36: "the NVIDIA driver is older than its CUDA library",
    46: "the GPU is busy or in exclusive use by another process",
    _NO_DEVICE: "the NVIDIA driver finds no GPU",
    304: "the operating system refused the driver: in a container its devices may be missing",
    802: "the GPUs are not ready: the fabric manager of their switches does not run",
    803: "the NVIDIA driver's kernel module and its library differ in version: restart the machine",
    804: "CUDA's compatibility libraries do not support this GPU: use the driver's own library",
    999: "the NVIDIA driver failed for an unknown reason; its kernel module may not be loaded",
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one slice of a GPU, as the driver shows it to this process."""

    index: int
    """As in cuda:N, after CUDA_VISIBLE_DEVICES."""
    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int
    uuid: str
    """As nvidia-smi writes it; empty where the driver does not tell."""


@dataclass(frozen=True, slots=True)
class Cuda:
    """What the NVIDIA driver says of this machine."""

    driver_version: int | None
    """Newest CUDA that the driver supports, such as 13000; None: there is no driver."""
    gpus: tuple[Gpu, ...]
    why: str
    """Why there is no GPU, in one sentence; empty: there is."""


def parse(device: str) -> tuple[str, int]:
    """Return the kind of a device and its number: ``cuda:1`` is ("cuda", 1).

    Raises:
        ValueError: with a sentence, for what is no device.
    """
    if device in ("cpu", "auto"):
        return device, 0
    found = _CUDA.fullmatch(device)
    if found is None:
        raise ValueError(f"{device!r} is no device: cpu, auto, cuda or cuda:N")
    return "cuda", int(found[1] or 0)


@functools.cache
def cuda() -> Cuda:
    """Return what the driver says; asked once per process. Never raises."""
    return _ask(_LIBRARY, os.environ.get(_VISIBLE))


def why_not(device: str) -> str:
    """Return why this device cannot be used, in one sentence; empty: it is there."""
    try:
        kind, index = parse(device)
    except ValueError as exc:
        return str(exc)
    return _why_no_gpu(index, cuda()) if kind == "cuda" else ""


def hardware_key(device: str) -> dict[str, object]:
    """Return what a file made for this device depends on; ``auto`` is cuda:0 if there is one.

    Raises:
        DeviceUnavailable: the device is not there.
    """
    kind, index = parse(device)
    found = cuda()
    if kind == "cpu" or (kind == "auto" and not found.gpus):
        return _processor(_CPU_INFO)
    why = _why_no_gpu(index, found)
    if why:
        raise DeviceUnavailable(why)
    gpu = found.gpus[index]
    return {
        "gpu": gpu.name,
        "compute_capability": list(gpu.compute_capability),
        "driver_version": found.driver_version,
    }


def _why_no_gpu(index: int, found: Cuda) -> str:
    if not found.gpus:
        return f"cuda:{index}: {found.why}"
    if index < len(found.gpus):
        return ""
    count = len(found.gpus)
    return f"cuda:{index}: there {'is 1 GPU' if count == 1 else f'are {count} GPUs'}"


class _Refused(Exception):
    """A call of the driver failed."""

    def __init__(self, code: int) -> None:
        reason = _REASONS.get(code, "the NVIDIA driver failed")
        super().__init__(f"{reason} (CUDA error {code})")
        self.code = code


def _ask(library: str, visible: str | None) -> Cuda:
    """Ask the driver in that library; `visible` is CUDA_VISIBLE_DEVICES, to explain its effect."""
    try:
        driver = ctypes.CDLL(library)
    except OSError as exc:
        if "No such file" in str(exc) or sys.platform == "win32":
            return Cuda(None, (), f"there is no NVIDIA driver: {library} is not found")
        return Cuda(None, (), f"the NVIDIA driver cannot be loaded: {exc}")
    version: int | None = None
    try:
        version = _number(driver, "cuDriverGetVersion")
        _call(driver, "cuInit", ctypes.c_uint(0))
        gpus = tuple(_gpu(driver, i) for i in range(_number(driver, "cuDeviceGetCount")))
    except _Refused as exc:
        hidden = _hidden(visible) if exc.code == _NO_DEVICE else ""
        return Cuda(version, (), hidden or str(exc))
    except AttributeError as exc:
        return Cuda(version, (), f"the NVIDIA driver is too old or incomplete: {exc}")
    return Cuda(version, gpus, "" if gpus else _hidden(visible) or _REASONS[_NO_DEVICE])


def _hidden(visible: str | None) -> str:
    if visible is None:
        return ""
    if not visible.strip():
        return f"{_VISIBLE} is empty, which hides every GPU"
    return f"{_VISIBLE} is {visible!r}, and the NVIDIA driver finds no GPU of that name"


def _call(driver: ctypes.CDLL, name: str, *arguments: object) -> None:
    function = getattr(driver, name)
    function.restype = ctypes.c_int
    code = function(*arguments)
    if code:
        raise _Refused(code)


def _number(driver: ctypes.CDLL, name: str) -> int:
    number = ctypes.c_int()
    _call(driver, name, ctypes.byref(number))
    return number.value


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    device = ctypes.c_int()
    _call(driver, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _call(driver, "cuDeviceGetName", name, ctypes.c_int(_NAME_BYTES), device)
    memory_bytes = ctypes.c_size_t()
    _call(driver, "cuDeviceTotalMem_v2", ctypes.byref(memory_bytes), device)
    capability = (_attribute(driver, _MAJOR, device), _attribute(driver, _MINOR, device))
    shown = name.value.decode("utf-8", "replace")
    return Gpu(index, shown, capability, memory_bytes.value, _uuid(driver, device, shown))


def _attribute(driver: ctypes.CDLL, attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), device)
    return value.value


def _uuid(driver: ctypes.CDLL, device: ctypes.c_int, name: str) -> str:
    # The second form (CUDA 11.4) gives the UUID of a MIG slice, the first that of its GPU.
    for function in ("cuDeviceGetUuid_v2", "cuDeviceGetUuid"):
        found = ctypes.create_string_buffer(16)
        try:
            _call(driver, function, found, device)
        except AttributeError:
            continue
        except _Refused:
            return ""
        return f"{'MIG' if ' MIG ' in name else 'GPU'}-{uuid.UUID(bytes=found.raw)}"
    return ""


def _processor(path: Path) -> dict[str, object]:
    """Describe the CPU: its model, and a digest of the instruction sets that it has."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    # "Features", "CPU part" and "CPU implementer": what an Arm kernel writes instead.
    lines = (line.partition(":") for line in text.partition("\n\n")[0].split("\n"))
    facts = {name.strip(): value.strip() for name, _, value in lines}
    flags = " ".join(sorted((facts.get("flags") or facts.get("Features") or "").split()))
    arm = f"{facts.get('CPU implementer', '')} {facts.get('CPU part', '')}".strip()
    return {
        "machine": platform.machine(),
        "cpu": facts.get("model name") or arm or platform.processor(),
        "cpu_flags": hashlib.sha256(flags.encode()).hexdigest()[:16],
    }
