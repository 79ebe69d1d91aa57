"""Files that outlive a crash: written whole or not at all, and used by one process at a time.

Blocking; call it in a thread. Knows paths and bytes only.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

PARTIAL: Final = ".partial"
"""Ending of a file that is being written; whoever finds one may delete it."""


def sync_folder(folder: Path) -> None:
    """Make it last which names a folder holds."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_aside(path: Path, data: bytes) -> Path:
    """Write bytes, durably, beside a file whose place they are to take; return where.

    Raises OSError; nothing is left behind then.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return partial


def replace(path: Path, data: bytes) -> None:
    """Put bytes in the place of a file; after a crash the old ones or the new ones are there.

    Raises OSError; the old file or the new one is then there.
    """
    write_aside(path, data).replace(path)
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder, with those above it, unless it is there."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)


def lock(path: Path, *, wait: bool) -> int:
    """Lock a file, made if need be, until the descriptor that is returned is closed.

    Raises:
        BlockingIOError: it is locked already, by this process or another, and `wait` is false.
        OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file for the block, waiting for it."""
    descriptor = lock(path, wait=True)
    try:
        yield
    finally:
        os.close(descriptor)
