"""Whether there is room on the disk for one more segment. Knows limits; decides nothing else."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from gateway.prediction_log.spool.store import DropReason

# EFBIG: a limit on the size of files, as of a quota.
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Room:
    """The limits of a spool's folder: its own, and that of the file system."""

    def __init__(self, directory: Path, *, max_bytes: int, min_free_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes

    def refusal(self, held_bytes: int, wanted_bytes: int) -> DropReason | None:
        """Return why no file of this size may be made; None: it may."""
        if held_bytes + wanted_bytes > self._max_bytes:
            return DropReason.SPOOL_CAP
        try:
            disk = os.statvfs(self._directory)
        except OSError as exc:
            return reason_of(exc)
        if disk.f_bavail * disk.f_frsize - wanted_bytes < self._min_free_bytes:
            return DropReason.DISK_FULL
        return None


def reason_of(error: OSError) -> DropReason:
    """Return what an error of the file system means for a record."""
    return DropReason.DISK_FULL if error.errno in _NO_ROOM else DropReason.WRITE_ERROR
