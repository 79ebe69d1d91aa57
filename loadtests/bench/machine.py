"""What a figure depends on and does not say by itself: machine, versions, revision, date."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec

PACKAGES: Final = ("grpcio", "uvicorn", "uvloop", "starlette", "onnxruntime", "numpy")
_ROOT: Final = Path(__file__).parent.parent.parent


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """Where and with what a measurement was taken."""

    cpu: str
    cores: int
    """Those that this process may use; the gateway and the load share them."""
    kernel: str
    load_average: float
    """Of the minute before: over 0.5 somebody else was working on the machine."""
    python: str
    versions: Mapping[str, str]
    sluice: str
    revision: str
    """Git's; with -dirty where the tree differs from it."""
    date: str


def describe() -> Setting:
    """Describe this machine, now."""
    return Setting(
        cpu=cpu_model(Path("/proc/cpuinfo").read_text()) or platform.processor() or "unknown",
        cores=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        load_average=round(os.getloadavg()[0], 2),
        python=platform.python_version(),
        versions={name: metadata.version(name) for name in PACKAGES},
        sluice=metadata.version("sluice-gateway"),
        revision=_revision(),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def cpu_model(cpuinfo: str) -> str:
    """Return the model name of the first core in the text of /proc/cpuinfo, empty without one."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return ""


def _revision() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
