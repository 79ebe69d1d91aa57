"""Triton's perf_analyzer, unmodified: where it comes from, and what this machine lacks to run it.

Its binary travels in tritonclient's wheel of version 2.41.0, in none of the later ones. It links
the CUDA runtime, which comes as a wheel too and needs no GPU, and a few libraries of the system,
which only the system's package manager can install. All of it lives in an environment of its own:
that tritonclient is old, and its dependencies are of no use here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ENVIRONMENT: Final = Path(__file__).parent.parent / ".venv-perf"
REQUIREMENTS: Final = ("tritonclient==2.41.0", "nvidia-cuda-runtime-cu12==12.*")
_INSTALL_LIMIT_S: Final = 600.0
_LAST_LINES: Final = 10
# Library -> the package of Debian 12 and Ubuntu 22.04 that has it; Ubuntu 24.04 says libssl3t64.
_PACKAGES: Final = {
    "libb64.so.0d": "libb64-0d",
    "libssl.so.3": "libssl3",
    "libcrypto.so.3": "libssl3",
    "libz.so.1": "zlib1g",
    "libstdc++.so.6": "libstdc++6",
}


class NotAvailable(Exception):
    """perf_analyzer cannot run here; the sentence says what to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PerfAnalyzer:
    """The binary, and the folder of the CUDA runtime that it needs."""

    path: Path
    library_folder: Path

    @property
    def environ(self) -> dict[str, str]:
        """The environment to run it in."""
        folders = [str(self.library_folder), os.environ.get("LD_LIBRARY_PATH", "")]
        return os.environ | {"LD_LIBRARY_PATH": ":".join(folder for folder in folders if folder)}

    def version(self) -> str:
        """Return what it says of itself."""
        command = [str(self.path), "--version"]
        finished = subprocess.run(
            command, env=self.environ, capture_output=True, text=True, check=False
        )
        return finished.stdout.strip() or finished.stderr.strip()

    def missing(self) -> list[str]:
        """Return the libraries that it needs and that are not there.

        Raises:
            NotAvailable: nobody can say, because it is not for this machine at all.
        """
        command = ["ldd", str(self.path)]
        try:
            asked = subprocess.run(
                command, env=self.environ, capture_output=True, text=True, check=False
            )
        except OSError as exc:
            raise NotAvailable(f"ldd, which tells what is missing, does not run: {exc}") from None
        if asked.returncode:
            raise NotAvailable(f"{self.path} does not run on this machine: {asked.stderr.strip()}")
        return missing_libraries(asked.stdout + asked.stderr)


def prepare(environment: Path = ENVIRONMENT) -> PerfAnalyzer:
    """Return a perf_analyzer that can run, installed first where it is not there yet.

    Raises:
        NotAvailable: it cannot be installed, or a library is missing.
    """
    found = find(environment)
    if found is None:
        _install(environment)
        found = find(environment)
    if found is None:
        raise NotAvailable(
            f"{REQUIREMENTS[0]} has no perf_analyzer for {sys.platform} on this processor: "
            "its wheels for Linux on x86_64 and aarch64 carry one"
        )
    if missing := found.missing():
        raise NotAvailable(advice(missing))
    return found


def find(environment: Path) -> PerfAnalyzer | None:
    """Return the binary of an environment, None where it is not whole."""
    path = environment / "bin" / "perf_analyzer"
    runtimes = sorted(environment.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib"))
    if not path.is_file() or not runtimes:
        return None
    return PerfAnalyzer(path=path, library_folder=runtimes[0])


def _install(environment: Path) -> None:
    print(f"installing {' and '.join(REQUIREMENTS)} into {environment.name} (once)", flush=True)
    python = str(environment / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    for command in ([sys.executable, "-m", "venv", str(environment)], [*pip, *REQUIREMENTS]):
        try:
            made = subprocess.run(
                command, capture_output=True, text=True, timeout=_INSTALL_LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise NotAvailable(f"not done after {_INSTALL_LIMIT_S:.0f} s: {command}") from None
        if made.returncode:
            lines = (made.stdout + made.stderr).strip().splitlines()[-_LAST_LINES:]
            raise NotAvailable("\n".join([f"{' '.join(command)} failed:", *lines]))


def missing_libraries(ldd: str) -> list[str]:
    """Return the libraries, or versions of them, that ldd's output says are not found."""
    missing = []
    for line in ldd.splitlines():
        subject, found, _ = line.partition(" not found")
        if found:
            missing.append(subject.removesuffix("=>").strip())
    return missing


def advice(missing: list[str]) -> str:
    """Return the sentence that says what is missing and which packages bring it."""
    packages = sorted({_PACKAGES[name] for name in missing if name in _PACKAGES})
    sentence = f"perf_analyzer needs what this machine does not have: {', '.join(missing)}"
    if packages:
        sentence += f". On Debian and Ubuntu: sudo apt-get install {' '.join(packages)}"
    return sentence
