"""What a figure depends on and does not say by itself: machine, versions, revision, date, noise."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

PACKAGES: Final = ("grpcio", "uvicorn", "uvloop", "starlette", "onnxruntime", "numpy")
PROGRAMS: Final[Mapping[str, Sequence[str]]] = {
    "wrk": ("wrk", "-v"),
    "h2load": ("h2load", "--version"),
    "node": ("node", "--version"),
    "redis-server": ("redis-server", "--version"),
}
BUSY_ABOVE: Final = 0.05
"""Share of the machine's CPU time that others may take before we say so."""
_ROOT: Final = Path(__file__).parent.parent.parent
_VERSION: Final = re.compile(r"\d+(?:\.\d+)+\S*")
_IDLE, _IOWAIT, _STEAL = 3, 4, 7
"""Positions in a cpu line of /proc/stat."""


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
    busy: float = 0.0
    """Share of the machine's CPU time that others took in the second before; stolen time too."""
    programs: Mapping[str, str] = {}
    """Version of each load generator that is there, and of Redis."""


class CpuTicks(NamedTuple):
    """The first line of /proc/stat."""

    busy: int
    total: int


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


def describe_fully() -> Setting:
    """Describe this machine, its programs and how busy it is; takes a second."""
    return msgspec.structs.replace(
        describe(), busy=round(busy_share(1.0), 3), programs=program_versions()
    )


def cpu_model(cpuinfo: str) -> str:
    """Return the model name of the first core in the text of /proc/cpuinfo, empty without one."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return ""


def parse_cpu_ticks(stat: str) -> CpuTicks:
    """Read the text of /proc/stat; time that the hypervisor gave to others counts as busy."""
    values = [int(field) for field in stat.partition("\n")[0].split()[1 : _STEAL + 2]]
    total = sum(values)
    return CpuTicks(total - values[_IDLE] - values[_IOWAIT], total)


def busy_share(duration_s: float) -> float:
    """Return the share of the machine's CPU time that is in use while we only wait."""
    before = parse_cpu_ticks(Path("/proc/stat").read_text())
    time.sleep(duration_s)
    after = parse_cpu_ticks(Path("/proc/stat").read_text())
    return (after.busy - before.busy) / max(1, after.total - before.total)


def noise_warning(setting: Setting) -> str | None:
    """Return the sentence about a machine that is not ours alone, None where it seems to be."""
    if setting.busy <= BUSY_ABOVE:
        return None
    return (
        f"WARNING: this machine is busy: others take {setting.busy:.0%} of its CPU time "
        f"(load average {setting.load_average:g} on {setting.cores} cores). "
        "Costs come out higher and rates lower than they are."
    )


def program_versions() -> dict[str, str]:
    """Return the version of each program that is on PATH."""
    found = {}
    for name, command in PROGRAMS.items():
        if shutil.which(command[0]) is None:
            continue
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        version = _VERSION.search(done.stdout + done.stderr)
        found[name] = version[0] if version else "unknown"
    return found


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
