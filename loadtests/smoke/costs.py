"""What a process has consumed so far: instructions where the kernel counts them, else CPU time.

User-mode instructions hardly depend on what else the machine does, nor on its clock; CPU time does.
Both cover every thread of a process tree. Linux only: perf_event_open(2) by its number, without a
wrapper of libc, and /proc/PID/task/TID/schedstat.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from loadtests.bench.process_tree import tree_pids

_SYSCALL: Final = {"x86_64": 298, "aarch64": 241}
_ATTRIBUTES: Final = struct.Struct("=IIQQQQQIIQ")
"""perf_event_attr of version 0: type, size, config, period, sample type, read format, flags, ..."""
_HARDWARE: Final = 0
_INSTRUCTIONS: Final = 1
_INHERIT: Final = 1 << 1
_EXCLUDE_KERNEL: Final = 1 << 5
_EXCLUDE_HYPERVISOR: Final = 1 << 6
_CLOSE_ON_EXEC: Final = 8


class NotCounted(Exception):
    """The kernel counts no instructions for us; the sentence says why."""


class Meter(Protocol):
    """Reads what was consumed; only differences mean anything."""

    def read(self) -> float:
        """Return what was consumed so far."""


class InstructionMeter:
    """User-mode instructions of threads that run now, and of those that they start."""

    def __init__(self, threads: Sequence[int]) -> None:
        """Raises NotCounted."""
        self._files = []
        try:
            for thread in threads:
                with contextlib.suppress(ProcessLookupError):
                    self._files.append(_open_counter(thread))
        except OSError as exc:
            self.close()
            raise NotCounted(f"perf_event_open: {exc.strerror}") from exc

    def read(self) -> float:
        """Return the instructions so far."""
        return float(sum(struct.unpack("=Q", os.read(file, 8))[0] for file in self._files))

    def close(self) -> None:
        """Give the counters back."""
        for file in self._files:
            os.close(file)
        self._files = []


class CpuMeter:
    """Nanoseconds on a CPU of threads that run now: user and system time."""

    def __init__(self, threads: Sequence[int]) -> None:
        self._files = [Path(f"/proc/{thread}/schedstat") for thread in threads]

    def read(self) -> float:
        """Return the nanoseconds so far."""
        total = 0
        for file in self._files:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                total += int(file.read_text().split()[0])
        return float(total)


def _open_counter(thread: int) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise NotCounted(f"no perf_event_open is known for {platform.machine()}")
    flags = _INHERIT | _EXCLUDE_KERNEL | _EXCLUDE_HYPERVISOR
    attributes = _ATTRIBUTES.pack(
        _HARDWARE, _ATTRIBUTES.size, _INSTRUCTIONS, 0, 0, 0, flags, 0, 0, 0
    )
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    file: int = libc.syscall(number, buffer, thread, -1, -1, ctypes.c_ulong(_CLOSE_ON_EXEC))
    if file < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return file


def threads_of(root: int) -> list[int]:
    """Return the threads of a process tree."""
    found = []
    for pid in tree_pids(root):
        with contextlib.suppress(FileNotFoundError):
            found += [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    return found


@contextlib.contextmanager
def meters(root: int) -> Iterator[dict[str, Meter]]:
    """Meter a process tree's threads in every unit that there is here."""
    threads = threads_of(root)
    found: dict[str, Meter] = {"cpu": CpuMeter(threads)}
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(NotCounted):
            counter = InstructionMeter(threads)
            stack.callback(counter.close)
            if counter.read() > 0 or root != os.getpid():
                found["instructions"] = counter
        yield found
