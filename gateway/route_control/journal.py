"""One route in one file: its revisions with their audit entries, in the order of their making.

Blocking, and used by one thread at a time; knows no lock and no other route. In memory is where
each revision stands in the file; bodies are read, and checked, when they are asked for.

What is found at the end when the file is opened tells how it came to be. An entry that was being
written when the machine stopped is cut off, or ends in the zero bytes that some file systems leave:
nobody was told that it was kept, so it is dropped. Anything else that is wrong was damaged later:
it is kept, what stands around it can still be read, and the route is corrupt where it was the
newest revision.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.route_control import durable, frame
from gateway.route_control.frame import Frame, Header
from gateway.route_control.revision import Change, Position, StoredRevision, etag_of
from gateway.route_control.store import CorruptRevision, Head, Stale, StoreDown

SUFFIX: Final = ".journal"
_FILE: Final = re.compile(r"(.+)\.([0-9a-f]{8})\.journal")
_COMPACTED_AT: Final = 2
"""A journal is written anew when it holds this many times the bodies that are to be kept."""

_log = logging.getLogger(__name__)


def file_name(name: str) -> str:
    """Return the file of a route; the hash keeps ``a`` and ``A`` apart where a disk does not."""
    return f"{name}.{hashlib.sha256(name.encode()).hexdigest()[:8]}{SUFFIX}"


def route_of(file: str) -> str | None:
    """Return the route whose journal has this name; None: not a journal."""
    found = _FILE.fullmatch(file)
    return found[1] if found and file_name(found[1]) == file else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How much of a route its journal keeps."""

    revisions: int
    audit_entries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    header: Header
    offset: int


class Journal:
    """What one file says about one route.

    Invariants: positions ascend; `_length` is where the next entry begins, and what stands behind
    it in the file is an attempt that failed; no entry is confirmed before the file's name is kept.
    """

    def __init__(self, folder: Path, name: str, kept: Kept) -> None:
        """Read the file, if it is there, and cut off what was half-written. Raises OSError."""
        self._path = folder / file_name(name)
        self._name = name
        self._kept = kept
        self._entries: list[_Entry] = []
        self._length = 0
        self._is_end_corrupt = False
        self._is_name_kept = False
        """Whether the folder was made to remember, durably, that this file has this name."""
        if self._path.exists():
            self._open(self._path.read_bytes())

    @property
    def head(self) -> Head | None:
        """Where the route stands; None: nothing was ever kept."""
        if self._is_end_corrupt:
            return Head(generation=0, revision=0, digest="")
        if not self._entries:
            return None
        header = self._entries[-1].header
        return Head(generation=header.generation, revision=header.revision, digest=header.digest)

    def current(self) -> StoredRevision | None:
        """Return the newest revision. Raises CorruptRevision, OSError."""
        if self._is_end_corrupt:
            raise CorruptRevision(self._name, "the end of its journal is damaged")
        return self._revision(self._entries[-1]) if self._entries else None

    def write(self, change: Change) -> None:
        """Compare and append; return when it is on the disk.

        Raises:
            Stale, CorruptRevision: as RouteStore.
            StoreDown: the file is shorter than it was left.
            OSError: and the change was not made.
        """
        data = frame.encode(change.after, audit=change.audit)
        if self._is_made(change.after.position, data):
            return
        head = self.head
        if (head and head.position) != change.expected:
            raise Stale(self.current())
        header = frame.header_at(data, 0)
        if self._entries and header.position <= self._entries[-1].header.position:
            last = etag_of(self._entries[-1].header.position)
            raise CorruptRevision(self._name, f"only a revision after {last} can repair it")
        self._append(data)
        self._entries.append(_Entry(header=header, offset=self._length))
        self._length += len(data)
        self._is_end_corrupt = False
        self._compact_if_due()

    def revision(self, number: int) -> StoredRevision | None:
        """Return a kept revision of the newest generation. Raises CorruptRevision, OSError."""
        found = [entry for entry in self._with_bodies() if entry.header.revision == number]
        return self._revision(found[-1]) if found else None

    def history(self, limit: int) -> list[StoredRevision]:
        """Return the newest revisions, newest first, without the corrupt ones. Raises OSError."""
        frames = self._intact(self._with_bodies()[-limit:] if limit > 0 else [])
        return [found.revision for found in reversed(frames) if found.revision is not None]

    def audit(self, limit: int) -> list[bytes]:
        """Return the newest audit entries, oldest first, without the corrupt. Raises OSError."""
        newest = min(limit, self._kept.audit_entries)
        frames = self._intact(self._entries[-newest:] if limit > 0 else [])
        return [found.audit for found in frames if found.audit is not None]

    # Opening.

    def _open(self, data: bytes) -> None:
        while self._length < len(data):
            start = self._length
            try:
                entry = _Entry(header=self._next_header(data), offset=start)
            except frame.Torn:
                self._cut(data, start)
                return
            except frame.Broken as exc:
                if not self._skip_damage(data, exc):
                    return
                continue
            self._entries.append(entry)
            self._length += entry.header.frame_bytes
            self._is_end_corrupt = False

    def _next_header(self, data: bytes) -> Header:
        """Read the line of the next entry, all of which is there. Raises frame.Torn, .Broken."""
        header = frame.header_at(data, self._length)
        end = self._length + header.frame_bytes
        # Whole in length, and yet its end never reached the disk.
        is_zero = end <= len(data) and data[end - 1] == 0 and not data[end - 1 :].strip(b"\0")
        if end > len(data) or is_zero:
            raise frame.Torn
        last = self._entries[-1].header.position if self._entries else (0, 0)
        if header.name != self._name or header.position <= last:
            raise frame.Broken("it is not the next revision of this route")
        return header

    def _skip_damage(self, data: bytes, exc: frame.Broken) -> bool:
        """Go on to the next entry behind damage; return whether there is one, or more damage."""
        start = self._length
        following = data.find(b"\n" + frame.MARK, start)
        if following < 0 and data.endswith(b"\0"):
            self._cut(data, start)
            return False
        self._note("route journal is damaged", offset=start, why=str(exc), is_error=True)
        self._length = len(data) if following < 0 else following + 1
        self._is_end_corrupt = True
        return True

    def _cut(self, data: bytes, length: int) -> None:
        self._note("half-written route revision dropped", offset=length, bytes=len(data) - length)
        self._length = length
        with self._path.open("r+b") as file:
            file.truncate(length)
            os.fsync(file.fileno())

    # Reading and writing.

    def _with_bodies(self) -> list[_Entry]:
        found = [entry for entry in self._entries if entry.header.body_bytes is not None]
        return found[-self._kept.revisions :]

    def _is_made(self, position: Position, data: bytes) -> bool:
        """Whether just this entry is in the file: somebody repeats what has succeeded."""
        for entry in reversed(self._entries):
            if entry.header.position <= position:
                return entry.header.position == position and self._bytes(entry) == data
        return False

    def _bytes(self, entry: _Entry) -> bytes:
        return self._between(entry.offset, entry.offset + entry.header.frame_bytes)

    def _between(self, start: int, end: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def _intact(self, entries: Sequence[_Entry]) -> list[Frame]:
        """Read entries in one go; corrupt ones are logged and left out. Raises OSError."""
        start = entries[0].offset if entries else self._length
        data = self._between(start, self._length)
        found = []
        for entry in entries:
            try:
                found.append(self._checked(entry, data, entry.offset - start))
            except CorruptRevision as exc:
                self._note("corrupt route revision left out", why=exc.why)
        return found

    def _checked(self, entry: _Entry, data: bytes, offset: int) -> Frame:
        try:
            found = frame.frame_at(data, offset)
            if found.header != entry.header:
                raise frame.Broken("another one stands in its place")
        except (frame.Torn, frame.Broken) as exc:
            why = f"{etag_of(entry.header.position)} in its journal: {exc}"
            raise CorruptRevision(self._name, why) from exc
        return found

    def _revision(self, entry: _Entry) -> StoredRevision:
        revision = self._checked(entry, self._bytes(entry), 0).revision
        if revision is None:
            raise CorruptRevision(self._name, "its journal has lost a body")
        return revision

    def _append(self, data: bytes) -> None:
        with self._path.open("r+b" if self._length else "wb") as file:
            if os.fstat(file.fileno()).st_size < self._length:
                raise StoreDown(f"{self._path} was shortened by somebody else")
            if not self._is_name_kept:
                durable.sync_folder(self._path.parent)
                self._is_name_kept = True
            try:
                _write_at(file.fileno(), self._length, data)
            except OSError:
                # Not there for whoever opens it next, as far as that can be said now; the next
                # attempt writes over it in any case.
                file.truncate(self._length)
                raise

    def _compact_if_due(self) -> None:
        bodies = sum(entry.header.body_bytes is not None for entry in self._entries)
        if bodies < _COMPACTED_AT * self._kept.revisions:
            return
        try:
            self._compact()
        except OSError as exc:  # the change itself is kept
            self._note("route journal could not be compacted", why=str(exc))

    def _compact(self) -> None:
        """Write the journal anew: old revisions without their bodies, the oldest not at all."""
        bodies_from = self._entries[-self._kept.revisions].header.position
        parts: list[bytes] = []
        entries: list[_Entry] = []
        length = 0
        kept = max(self._kept.revisions, self._kept.audit_entries)
        for found in self._intact(self._entries[-kept:]):
            revision = found.revision
            if revision is None or revision.position < bodies_from:
                data = frame.encode_audit(found)
            else:
                data = frame.encode(revision, audit=found.audit)
            parts.append(data)
            entries.append(_Entry(header=frame.header_at(data, 0), offset=length))
            length += len(data)
        durable.write_aside(self._path, b"".join(parts)).replace(self._path)
        self._entries, self._length, self._is_name_kept = entries, length, False

    def _note(self, event: str, *, is_error: bool = False, **fields: object) -> None:
        level = logging.ERROR if is_error else logging.WARNING
        _log.log(level, event, extra={"route": self._name, "path": str(self._path), **fields})


def _write_at(descriptor: int, offset: int, data: bytes) -> None:
    """Write bytes at the end of a file and wait until they are on the disk."""
    os.ftruncate(descriptor, offset)
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
    os.fsync(descriptor)
