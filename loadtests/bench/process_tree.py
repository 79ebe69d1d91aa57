"""CPU time and memory of a process and all that descends from it, from Linux's /proc.

Times count in ticks of a hundredth of a second, so a measurement of two busy seconds is good to
half a percent. A child that has ended counts on in its parent once the parent has waited for it,
so a front process that died during a measurement is not forgotten. A process that leaves its
parent (a daemon) still counts while it is in the root's process group.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

_PROC: Final = Path("/proc")
# Positions behind the name's closing parenthesis, where field 3 of proc_pid_stat(5) is the first.
_PARENT: Final = 4 - 3
_GROUP: Final = 5 - 3
_UTIME: Final = 14 - 3
_CSTIME: Final = 17 - 3


class ProcessTimes(NamedTuple):
    """One process, as its stat file tells it."""

    parent: int
    group: int
    ticks: int
    """User and system time of its own and of the children that it has waited for."""


class Memory(NamedTuple):
    """What a process tree holds."""

    pss_bytes: int
    """Each shared page divided among those that share it: a sum over processes is honest."""
    rss_bytes: int
    """Each shared page counted once per process."""


def parse_stat(text: str) -> ProcessTimes:
    """Read a /proc/PID/stat; the name inside its parentheses may hold spaces and parentheses."""
    fields = text[text.rindex(")") + 1 :].split()
    ticks = sum(map(int, fields[_UTIME : _CSTIME + 1]))
    return ProcessTimes(int(fields[_PARENT]), int(fields[_GROUP]), ticks)


def tree(processes: Mapping[int, ProcessTimes], root: int) -> list[int]:
    """Return a process, its descendants, and what else is in its process group.

    Raises:
        KeyError: there is no such process.
    """
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    is_leader = processes[root].group == root
    pending = [root]
    if is_leader:
        pending += [pid for pid, process in processes.items() if process.group == root]
    found: dict[int, None] = {}
    while pending:
        pid = pending.pop()
        if pid not in found:
            found[pid] = None
            pending += children.get(pid, [])
    return list(found)


def tree_ticks(processes: Mapping[int, ProcessTimes], root: int) -> int:
    """Return the ticks of a process tree; raises KeyError if there is no such process."""
    return sum(processes[pid].ticks for pid in tree(processes, root))


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


def tree_pids(root: int) -> list[int]:
    """Return the ids of a process tree's processes."""
    return tree(read_processes(), root)


def tree_cpu_s(root: int) -> float:
    """Return the CPU seconds of a process tree so far."""
    return tree_ticks(read_processes(), root) / os.sysconf("SC_CLK_TCK")


def parse_rollup(text: str) -> Memory:
    """Read a /proc/PID/smaps_rollup."""
    values = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            values[name] = int(rest.split()[0]) << 10
    return Memory(values["Pss"], values["Rss"])


def tree_memory(root: int, proc: Path = _PROC) -> Memory:
    """Return the memory of a process tree now."""
    pss_bytes = rss_bytes = 0
    for pid in tree(read_processes(proc), root):
        try:
            held = parse_rollup((proc / str(pid) / "smaps_rollup").read_text())
        except (FileNotFoundError, ProcessLookupError):  # as above
            continue
        pss_bytes += held.pss_bytes
        rss_bytes += held.rss_bytes
    return Memory(pss_bytes, rss_bytes)
