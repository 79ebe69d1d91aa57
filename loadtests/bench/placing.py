"""Which cores servers and load generators run on, where that is wanted (--pin)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from loadtests.bench.process_tree import tree_pids


@contextlib.contextmanager
def generators_aside(*, is_wanted: bool) -> Iterator[None]:
    """Keep this process, and what it starts, off the first core while the context lasts."""
    before = os.sched_getaffinity(0)
    rest = before - {min(before)}
    if is_wanted and rest:
        os.sched_setaffinity(0, rest)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def on_core(root: int, core: int) -> None:
    """Put every thread of a process tree on one core."""
    for pid in tree_pids(root):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), {core})
