"""The lock and the identity of a spool's folder: one process at a time, always the same token."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from typing import Final

LOCK_FILE: Final = "lock"
IDENTITY_FILE: Final = "identity"
_TOKEN_BYTES: Final = 16


class SpoolInUse(Exception):
    """Another process has this spool."""

    def __init__(self, directory: Path, holder: str) -> None:
        by = f" by process {holder}" if holder else ""
        super().__init__(
            f"the spool {directory} is in use{by}; each replica needs a name of its own"
        )


class FolderLock:
    """Held from construction to `release`; the system releases it when the process ends."""

    def __init__(self, directory: Path) -> None:
        """Make the folder if there is none. Raises SpoolInUse."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        path = directory / LOCK_FILE
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise SpoolInUse(directory, holder) from exc
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others have the folder."""
        os.close(self._descriptor)


def token_of(directory: Path) -> str:
    """Return the identity of a folder that is locked, made the first time."""
    path = directory / IDENTITY_FILE
    try:
        token = path.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        token = ""
    if len(token) != 2 * _TOKEN_BYTES:
        token = secrets.token_hex(_TOKEN_BYTES)
        beside = path.with_suffix(".new")
        beside.write_text(token + "\n", encoding="ascii")
        beside.rename(path)
    return token


def is_locked(directory: Path) -> bool:
    """Whether a process holds the lock of a folder; takes it for a moment if none does."""
    try:
        descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
