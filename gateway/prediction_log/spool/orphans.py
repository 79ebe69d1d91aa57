"""Finds spools that nobody ships: folders of other replicas that hold records and are not locked.

Knows the folders; changes nothing in them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gateway.prediction_log.spool.block import Position
from gateway.prediction_log.spool.lock import is_locked
from gateway.prediction_log.spool.offsets import Offsets, load
from gateway.prediction_log.spool.reading import headers
from gateway.prediction_log.spool.segment import found_in


class Orphan(NamedTuple):
    """A spool without a process."""

    replica: str
    records: int
    """Not shipped, by the headers of the blocks; a process that takes the name ships them."""


def orphans(directory: Path, replica: str) -> list[Orphan]:
    """Return the orphans among the folders beside that of a replica."""
    found: list[Orphan] = []
    if not directory.is_dir():
        return found
    for folder in sorted(directory.iterdir()):
        if folder.name != replica and folder.is_dir() and not is_locked(folder):
            records = _unshipped(folder)
            if records:
                found.append(Orphan(folder.name, records))
    return found


def _unshipped(folder: Path) -> int:
    shipped: Position = (load(folder) or Offsets()).position
    records = 0
    for segment in found_in(folder):
        if segment.number >= shipped.segment and segment.size_bytes:
            start = shipped.offset if segment.number == shipped.segment else 0
            try:
                blocks = headers(segment, start, segment.size_bytes)
                records += sum(header.records for _, header in blocks)
            except FileNotFoundError:  # its process came and shipped it
                continue
    return records
