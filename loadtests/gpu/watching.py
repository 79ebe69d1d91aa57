"""How busy the GPU is while something is measured, and what machine and versions that was on."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from engines import devices, nvml
from gateway import __version__
from loadtests.bench import machine
from loadtests.gpu.results import Setting

PACKAGES: Final = (
    "onnxruntime", "onnxruntime-gpu", "torch", "cuda-bindings", "nvidia-ml-py", "numpy", "grpcio",
    "uvloop", "msgspec", "onnx",
)  # fmt: skip
_OF_VENDOR: Final = "nvidia-"
_EVERY_S: Final = 0.1
_ROOT: Final = Path(__file__).parents[2]


class Watch:
    """Samples of one device's utilisation, for as long as the context lasts.

    There are none of a CPU, nor where the driver or nvidia-ml-py tells none.
    """

    def __init__(self, device: str) -> None:
        kind, index = devices.parse(device)
        gpus = devices.cuda().gpus
        self._uuid = gpus[index].uuid if kind == "cuda" and index < len(gpus) else None
        self._sampler = nvml.Sampler(_EVERY_S)
        self._taken: list[tuple[float, float]] = []
        """Time and utilisation."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        if self._uuid is not None:
            self._sampler.start()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End."""
        self._stopped.set()
        self._sampler.stop()

    def busy(self, seconds: float) -> float | None:
        """Return the mean utilisation over the last seconds; None: nothing is known."""
        since_s = time.monotonic() - seconds
        values = [value for at_s, value in self._taken if at_s >= since_s]
        return sum(values) / len(values) if values else None

    def _run(self) -> None:
        while not self._stopped.wait(_EVERY_S):
            for sample in self._sampler.samples:
                if sample.uuid == self._uuid and sample.utilization_ratio is not None:
                    self._taken.append((time.monotonic(), sample.utilization_ratio))


def setting(device: str, arguments: Sequence[str]) -> Setting:
    """Describe this machine and what is installed, now.

    Args:
        device: the one that is measured.
        arguments: of the command.
    """
    kind, index = devices.parse(device)
    gpus = devices.cuda().gpus
    gpu = ""
    if kind == "cuda" and index < len(gpus):
        found = gpus[index]
        major, minor = found.compute_capability
        gpu = f"{found.name}, {found.memory_bytes / (1 << 30):.0f} GiB, sm_{major}{minor}"
    return Setting(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=shlex.join(["python", "-m", "loadtests.gpu", *arguments]),
        device=device,
        gpu=gpu,
        driver=_driver(),
        cpu=machine.cpu_model(Path("/proc/cpuinfo").read_text()) or "unknown",
        cores=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        python=platform.python_version(),
        sluice=__version__,
        revision=_revision(),
        versions=dict(_versions()),
    )


def _driver() -> str:
    """Return the driver's own version and the CUDA that it supports; empty: there is none."""
    parts = []
    with contextlib.suppress(Exception):  # of whatever nvidia-ml-py raises without a driver
        library = importlib.import_module("pynvml")
        library.nvmlInit()
        parts.append(str(library.nvmlSystemGetDriverVersion()))
        library.nvmlShutdown()
    version = devices.cuda().driver_version
    if version is not None:
        parts.append(f"CUDA {version // 1000}.{version % 1000 // 10}")
    return ", ".join(parts)


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)
    found = {str(one.metadata["Name"]): one.version for one in metadata.distributions()}
    for name in sorted(found):
        if name.startswith(_OF_VENDOR) and name not in PACKAGES:
            yield name, found[name]


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "revision unknown"
    return done.stdout.strip()
