"""CPU time of a process and all that descends from it, from Linux's /proc.

The files count in ticks of a hundredth of a second, so a measurement of two busy seconds is good to
half a percent. A child that has ended counts on in its parent once the parent has waited for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

_PROC: Final = Path("/proc")
# Positions behind the name's closing parenthesis, where field 3 of proc_pid_stat(5) is the first.
_PARENT: Final = 4 - 3
_UTIME: Final = 14 - 3
_CSTIME: Final = 17 - 3


class ProcessTimes(NamedTuple):
    """One process, as its stat file tells it."""

    parent: int
    ticks: int
    """User and system time of its own and of the children that it has waited for."""


def parse_stat(text: str) -> ProcessTimes:
    """Read a /proc/PID/stat; the name inside its parentheses may hold spaces and parentheses."""
    fields = text[text.rindex(")") + 1 :].split()
    return ProcessTimes(int(fields[_PARENT]), sum(map(int, fields[_UTIME : _CSTIME + 1])))


def tree_ticks(processes: Mapping[int, ProcessTimes], root: int) -> int:
    """Return the ticks of a process and its descendants.

    Raises:
        KeyError: there is no such process.
    """
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    total, pending = 0, [root]
    while pending:
        pid = pending.pop()
        total += processes[pid].ticks
        pending += children.get(pid, [])
    return total


def read_processes(proc: Path = _PROC) -> dict[int, ProcessTimes]:
    """Return every process that runs now, by its id."""
    found = {}
    for pid, path in _stat_files(proc):
        try:
            text = path.read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):  # it ended between the listing and now
            continue
        found[pid] = parse_stat(text)
    return found


def _stat_files(proc: Path) -> Iterable[tuple[int, Path]]:
    return ((int(p.name), p / "stat") for p in proc.iterdir() if p.name.isdecimal())


def tree_cpu_s(root: int) -> float:
    """Return the CPU seconds of a process tree so far."""
    return tree_ticks(read_processes(), root) / os.sysconf("SC_CLK_TCK")
