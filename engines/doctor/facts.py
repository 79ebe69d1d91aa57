"""What is installed here and what of it runs, as values; judged in rules.py."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from engines import devices
from engines.devices import Cuda

PROBE_LIMIT_S: Final = 120.0

# Distributions that say something about engines; everybody else's are none of our business.
_OURS: Final = re.compile(
    r"(onnxruntime|tensorrt|torch|nvidia|cuda|cupy)(-.*)?|pynvml|ort-.*|numpy"
)
_PROBED: Final[Mapping[str, str]] = {
    "onnxruntime": r"onnxruntime(-(?!ep-|extensions|genai|tools).*)?",
    "torch": r"torch",
    "tensorrt": r"tensorrt|tensorrt-cu\d+(-bindings)?",
    "tensorrt_rtx": r"tensorrt-rtx(-cu\d+)?(-bindings)?",
    "cuda_bindings": r"cuda-bindings",
}
_MISSING_LIBRARY: Final = re.compile(r"([\w.+-]+\.so[\w.]*): cannot open shared object file")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came of importing a package and of computing something with it."""

    version: str = ""
    fault: str = ""
    """Why it cannot be imported; empty: it can."""
    built_for_cuda: str = ""
    """Version of CUDA; empty: a build for the CPU, or the package does not tell."""
    available: tuple[str, ...] = ()
    """Execution providers that the build has."""
    works: tuple[str, ...] = ()
    """Providers (onnxruntime) or devices (torch) that computed something."""
    faults: tuple[str, ...] = ()
    """Why the others did not, in the package's words."""
    missing_libraries: tuple[str, ...] = ()
    """That the loader did not find on the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that `judge` looks at."""

    python: tuple[int, int]
    system: str
    """Such as 'Linux x86_64'."""
    cores: int
    """Usable by this process."""
    packages: Mapping[str, str]
    """Version by normalised name of every installed distribution that concerns engines."""
    cuda: Cuda
    tried: Mapping[str, Tried] = field(default_factory=dict)
    """By module: onnxruntime, torch, tensorrt, tensorrt_rtx, cuda_bindings; only what is
    installed."""


def gather(limit_s: float = PROBE_LIMIT_S) -> Facts:
    """Look at this machine. Takes seconds: every runtime that is installed is started once.

    Args:
        limit_s: longest that one runtime may take.
    """
    packages = installed(importlib.metadata.distributions())
    return Facts(
        python=sys.version_info[:2],
        system=f"{platform.system()} {platform.machine()}",
        cores=_usable_cores(),
        packages=packages,
        cuda=devices.cuda(),
        tried={module: _try(module, limit_s) for module in probed(packages)},
    )


def installed(found: Iterable[importlib.metadata.Distribution]) -> dict[str, str]:
    """Return version by normalised name of the distributions that concern engines."""
    packages = {}
    for distribution in found:
        # A broken installation may have left metadata without a name.
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if _OURS.fullmatch(name):
            packages[name] = distribution.version
    return dict(sorted(packages.items()))


def probed(packages: Iterable[str]) -> list[str]:
    """Return the modules to try, by the distributions that are installed."""
    names = tuple(packages)
    return [m for m, pattern in _PROBED.items() if any(re.fullmatch(pattern, n) for n in names)]


def _usable_cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _try(module: str, limit_s: float) -> Tried:
    # -P: the script's folder stays off the path, so that nothing of ours is imported by its name.
    command = [sys.executable, "-P", str(Path(__file__).with_name("probe.py")), module]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return Tried(fault=f"it did not start within {limit_s:g} s")
    if done.returncode:
        return Tried(fault=f"it ended the process ({_ending(done.returncode)})")
    return read(done.stdout, done.stderr)


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def read(stdout: str, stderr: str) -> Tried:
    """Return what a probe wrote; its errors name the libraries that were not found."""
    lines = stdout.strip().splitlines()
    if not lines:
        return Tried(fault="it ended without a word")
    said = json.loads(lines[-1])
    text = "\n".join((said.get("fault", ""), *said.get("faults", ()), stderr))
    return Tried(
        version=said.get("version", ""),
        fault=said.get("fault", ""),
        built_for_cuda=said.get("built_for_cuda", ""),
        available=tuple(said.get("available", ())),
        works=tuple(said.get("works", ())),
        faults=tuple(said.get("faults", ())),
        missing_libraries=tuple(dict.fromkeys(_MISSING_LIBRARY.findall(text))),
    )
