"""One segment file: how it is made, written, cut and sealed, and what is known of its content.

Knows the file; knows neither what comes into it nor when it may go. A segment is a file of its full
size from the start, so that the room is there before records need it: `Spare.make`, in a thread if
there is time. It becomes a segment when it gets its number. When it is full, or the process ends,
it is sealed: cut to what was written.

The name says the number and the salt (see block.py): 0000000042-9a3c01fe.segment.

Books and file meet in two numbers: what is `planned` will be written there, or the segment ends
where it failed; what is `written` may be read.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import randbits
from typing import Final

from gateway.prediction_log.spool.block import Position
from gateway.prediction_log.streams import EntryId

SUFFIX: Final = ".segment"
SPARE_SUFFIX: Final = ".spare"
_NAME: Final = re.compile(r"(\d{10})-([0-9a-f]{8})\.segment")
_MAX_BUFFERS: Final = 1_000
"""Fewer than IOV_MAX, which is 1024 wherever this runs."""
_MODE: Final = 0o600
_CLOSED: Final = -1
# What a file system answers that cannot allocate without writing.
_CANNOT_ALLOCATE: Final = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


@dataclass(slots=True)
class Spare:
    """An allocated file that is no segment yet."""

    path: Path
    salt: int
    size_bytes: int
    descriptor: int

    @classmethod
    def make(cls, directory: Path, size_bytes: int) -> Spare:
        """Allocate a file, or leave nothing behind. Raises OSError, such as ENOSPC."""
        salt = randbits(32)
        path = directory / f"{salt:08x}{SPARE_SUFFIX}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            _allocate(descriptor, size_bytes)
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
        return cls(path, salt, size_bytes, descriptor)

    def discard(self) -> None:
        """Remove it."""
        os.close(self.descriptor)
        self.path.unlink(missing_ok=True)


def _allocate(descriptor: int, size_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError as exc:
            if exc.errno not in _CANNOT_ALLOCATE:
                raise
        else:
            return
    os.ftruncate(descriptor, size_bytes)


@dataclass(slots=True, eq=False)
class Segment:
    """A segment and its books."""

    number: int
    salt: int
    path: Path
    size_bytes: int
    """Of the file."""
    written: int = 0
    """Up to here it may be read."""
    planned: int = 0
    """Up to here it is written or about to be."""
    pending: int = 0
    """Writes that are planned and not yet done."""
    descriptor: int = _CLOSED
    """For writing; closed once sealed."""
    is_sealed: bool = False
    """Nothing more is planned."""
    failure: OSError | None = None
    """Of a write: those planned after it fail as well."""
    records: int = 0
    """Planned: what the next header says was before it."""
    total: int = 0
    """Written records, with those that were lost since."""
    counts: dict[int, int] = field(default_factory=dict)
    """Written records by stream."""
    last_ids: dict[int, EntryId] = field(default_factory=dict)
    """Greatest id written, by stream."""
    declared: set[int] = field(default_factory=lambda: {0})
    """Streams whose STREAM block is planned; 0 needs none."""
    has_keys: bool = False
    first_ms: int = 0
    """When its first block was planned; 0: there is none but of its beginning."""
    last_ms: int = 0
    settled_damage: set[int] = field(default_factory=set)
    """Offsets of damage that is counted as lost already."""

    @classmethod
    def adopt(cls, spare: Spare, number: int) -> Segment:
        """Make a segment of a spare. Raises OSError, and the spare is as it was."""
        path = spare.path.with_name(f"{number:010d}-{spare.salt:08x}{SUFFIX}")
        spare.path.rename(path)
        return cls(number, spare.salt, path, spare.size_bytes, descriptor=spare.descriptor)

    @property
    def end(self) -> Position:
        """Behind the last block that may be read."""
        return Position(self.number, self.written)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing will be written to it any more."""
        return self.is_sealed and not self.pending

    def write(self, buffers: list[bytes], offset: int, size_bytes: int) -> None:
        """Write at an offset; all of it, or OSError and the file is cut there."""
        if len(buffers) > _MAX_BUFFERS:
            buffers = [b"".join(buffers)]
        try:
            written = os.pwritev(self.descriptor, buffers, offset)
            if written != size_bytes:  # what was missing tells why: there was no room
                raise OSError(errno.ENOSPC, "short write")
        except OSError as exc:
            self.cut(offset, exc)
            raise

    def cut(self, offset: int, failure: OSError) -> None:
        """End the file here: no half block may stand where nothing follows."""
        self.failure = failure
        os.ftruncate(self.descriptor, offset)

    def sync(self) -> None:
        """Make what is written outlive a loss of power."""
        os.fdatasync(self.descriptor)

    def seal(self) -> None:
        """Plan nothing more; close the file as soon as all that is planned was written."""
        self.is_sealed = True
        if not self.pending and self.descriptor != _CLOSED:
            descriptor, self.descriptor = self.descriptor, _CLOSED
            with suppress(OSError):  # a disk that takes no writes: the next start cuts it
                os.ftruncate(descriptor, self.written)
                self.size_bytes = self.written
            with suppress(OSError):
                os.close(descriptor)

    def truncate(self) -> None:
        """Cut a sealed segment to what may be read of it."""
        os.truncate(self.path, self.written)
        self.size_bytes = self.written

    def remove(self) -> None:
        """Delete the file of a sealed segment."""
        self.path.unlink(missing_ok=True)


def found_in(directory: Path) -> Iterator[Segment]:
    """Yield the segments of a folder, oldest first, with nothing known but their size."""
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        match = _NAME.fullmatch(path.name)
        if match is not None:
            size_bytes = path.stat().st_size
            number, salt = int(match[1]), int(match[2], 16)
            yield Segment(number, salt, path, size_bytes, is_sealed=True)


def remove_spares(directory: Path) -> None:
    """Delete what a process that was killed had allocated and not yet used."""
    for path in directory.glob(f"*{SPARE_SUFFIX}"):
        path.unlink(missing_ok=True)
