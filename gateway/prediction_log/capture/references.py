"""Files of whole tensors, named by their content, of a bounded number of bytes in all.

Knows folders and bytes, no records. The same bytes are written once, however many records name
them. Several processes may share a folder: a file appears under its name only when it is whole. The
oldest files go first when there is no room; naming a file again makes it young again. Files are for
their owner alone, like segments.

Blocking; one thread per object. Nothing here raises because of the disk: a tensor that could not be
written has no address, its record says so by being without one.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from engines.tensors import Raw

_SUFFIX: Final = ".bin"
_UNFINISHED: Final = ".part"
_FILE_MODE: Final = 0o600
_FOLDER_MODE: Final = 0o700
_NS_PER_MS: Final = 1_000_000
_SLACK: Final = 16
"""One part in so many of the limit is free after old files were deleted."""

_log = logging.getLogger(__name__)


class _File(NamedTuple):
    modified_ns: int
    size: int
    path: Path


class References:
    """Keeps tensors' bytes as files of one folder.

    Args:
        folder: made when it is first needed.
        max_bytes: most bytes of all files. What other processes write is met at the next count of
            the folder, which comes at the latest when a sixteenth of the limit was written.
        min_free_bytes: the file system is left this much.
        is_synced: a file survives a loss of power once `keep` has returned.
    """

    def __init__(
        self, folder: Path, *, max_bytes: int, min_free_bytes: int = 0, is_synced: bool = False
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._is_synced = is_synced
        self._room_bytes = 0  # what may be written before the folder is counted again
        self._has_warned = False

    def keep(self, digest: bytes, data: Raw) -> str:
        """Write bytes under their digest, unless they are there, and return the file's address.

        The address is relative to the folder; empty: they could not be kept.
        """
        name = digest.hex()
        address = f"{name[:2]}/{name}{_SUFFIX}"
        path = self._folder / address
        try:
            if self._is_there(path, len(data)):
                return address
            if not self._make_room(len(data)):
                return ""
            self._write(path, data)
        except OSError as exc:
            self._warn(exc)
            return ""
        self._room_bytes -= len(data)
        self._has_warned = False
        return address

    def expire(self, before_ms: int) -> int:
        """Delete the files that were last named before a time; return how many.

        Also what was never finished, and what no record came to name because its process was
        killed: nothing else finds those.
        """
        expired = 0
        try:
            for file in self._files():
                if file.modified_ns < before_ms * _NS_PER_MS:
                    self._forget(file.path)
                    expired += 1
        except OSError as exc:
            _log.warning("old references cannot be deleted", extra={"reason": str(exc)})
        return expired

    def path_of(self, address: str) -> Path:
        """Return where the file of an address is, or was.

        Raises:
            ValueError: no address of this folder.
        """
        given = PurePosixPath(address)
        if given.is_absolute() or ".." in given.parts or given.suffix != _SUFFIX:
            raise ValueError(f"no address of a reference: {address!r}")
        return self._folder / given

    def remove(self, address: str) -> bool:
        """Delete a file, for an erasure; return whether it was there.

        Raises:
            ValueError: no address of this folder.
            OSError: it is there and cannot be deleted.
        """
        try:
            self.path_of(address).unlink()
        except FileNotFoundError:
            return False
        return True

    def _is_there(self, path: Path, size: int) -> bool:
        try:
            if path.stat().st_size != size:  # cut by a loss of power
                return False
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _write(self, path: Path, data: Raw) -> None:
        path.parent.mkdir(mode=_FOLDER_MODE, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}{_UNFINISHED}")
        try:
            with open(unfinished, "wb", buffering=0, opener=_for_owner) as file:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
                if self._is_synced:
                    os.fdatasync(file.fileno())
            unfinished.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
        if self._is_synced:
            _sync_folder(path.parent)

    def _make_room(self, size: int) -> bool:
        """Delete old files where that is needed; return whether `size` bytes may be written."""
        if size > self._max_bytes:
            return False
        if size > self._room_bytes:
            self._room_bytes = self._prune(size)
        self._folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        disk = os.statvfs(self._folder)
        return disk.f_bavail * disk.f_frsize >= size + self._min_free_bytes

    def _prune(self, size: int) -> int:
        """Count the folder; delete the oldest files if there is no room; return the room left."""
        files = sorted(self._files())
        total = sum(file.size for file in files)
        slack = max(size, self._max_bytes // _SLACK)
        if total + size > self._max_bytes:
            for file in files:
                if total + slack <= self._max_bytes:
                    break
                self._forget(file.path)
                total -= file.size
        return min(self._max_bytes - total, slack)

    def _forget(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            path.unlink()

    def _files(self) -> list[_File]:
        found = []
        for path in self._folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                found.append(_File(stat.st_mtime_ns, stat.st_size, path))
        return found

    def _warn(self, exc: OSError) -> None:
        """Say once that the disk refuses; it is said again after a write went well."""
        if not self._has_warned:
            self._has_warned = True
            _log.warning("a tensor's reference cannot be kept", extra={"reason": str(exc)})


def _for_owner(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, _FILE_MODE)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
