"""The routes that a replica last served, on its own disk: for a start while the store is down.

Knows files and frames, no store. Blocking: call it in a thread. Each save is a file of its own; the
newest few are kept, and the newest one that is intact counts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from gateway.route_control import durable, frame
from gateway.route_control.revision import StoredRevision, digest_of

KEPT_FILES: Final = 3
_LOCK: Final = "snapshots.lock"
_FILE: Final = re.compile(r"routes-(\d{12})\.snapshot")
_LINE: Final = re.compile(rb"sluice-routes/1 (\d{1,9}) ([0-9a-f]{64})")
_LONGEST_LINE: Final = 128

_log = logging.getLogger(__name__)


class LastKnownGood:
    """Snapshots of routes in one folder. Processes may share it: they take turns."""

    def __init__(self, folder: Path) -> None:
        """Touches nothing yet; the folder is made by the first save."""
        self._folder = folder

    def save(self, revisions: Iterable[StoredRevision]) -> None:
        """Write a snapshot of these routes and let older ones than the newest few go.

        Raises OSError; earlier snapshots are then still there.
        """
        frames = [frame.encode(revision) for revision in revisions]
        content = b"".join(frames)
        line = f"sluice-routes/1 {len(frames)} {digest_of(content)}\n".encode()
        durable.make_folder(self._folder)
        with durable.locked(self._folder / _LOCK):
            numbers = self._numbers()
            durable.replace(self._path(max(numbers, default=0) + 1), line + content)
            for number in numbers[: -(KEPT_FILES - 1)]:
                self._path(number).unlink(missing_ok=True)

    def load(self) -> list[StoredRevision]:
        """Return the routes of the newest snapshot that is intact; broken ones are logged.

        Empty where there is none. Never raises: who calls this has nothing else left.
        """
        try:
            numbers = self._numbers() if self._folder.is_dir() else []
        except OSError as exc:
            _log.warning("route snapshots cannot be listed", extra={"why": str(exc)})
            return []
        for number in reversed(numbers):
            path = self._path(number)
            try:
                return _read(path.read_bytes())
            except (OSError, frame.Broken) as exc:
                fields = {"path": str(path), "why": str(exc)}
                _log.warning("route snapshot skipped", extra=fields)
        return []

    def _numbers(self) -> list[int]:
        """Return the numbers of the snapshots that are there, oldest first."""
        found = (_FILE.fullmatch(path.name) for path in self._folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def _path(self, number: int) -> Path:
        return self._folder / f"routes-{number:012}.snapshot"


def _read(data: bytes) -> list[StoredRevision]:
    """Return what a snapshot holds. Raises frame.Broken."""
    end = data.find(b"\n", 0, _LONGEST_LINE)
    line = _LINE.fullmatch(data[: max(0, end)])
    if line is None:
        raise frame.Broken("its first line is damaged")
    content = data[end + 1 :]
    if digest_of(content) != line[2].decode():
        raise frame.Broken("its content contradicts its digest")
    revisions = []
    offset = 0
    while offset < len(content):
        try:
            found = frame.frame_at(content, offset)
        except frame.Torn as exc:
            raise frame.Broken("a revision in it is cut off") from exc
        if found.revision is None:
            raise frame.Broken("a revision in it has no body")
        revisions.append(found.revision)
        offset += found.header.frame_bytes
    if len(revisions) != int(line[1]):
        raise frame.Broken("it holds another number of routes than it says")
    return revisions
