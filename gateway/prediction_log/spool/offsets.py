"""The offset file: how far a spool is shipped, and what outlives its segments.

Knows the file's form and nothing of blocks. Written beside and renamed, so that there is always an
old one or a new one; a crc line tells one that a bad disk has changed. It may be a second old: what
was shipped since is shipped again, and Redis refuses it. Without it everything that is kept is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

from gateway.prediction_log.spool.block import START, Position
from gateway.prediction_log.streams import BEFORE_ALL, EntryId, StreamKind

FILE: Final = "offsets"
_BESIDE: Final = "offsets.new"


class StreamState(msgspec.Struct, frozen=True):
    """What is kept of one stream."""

    number: int
    name: str
    kind: StreamKind
    last_shipped: tuple[int, int]
    """Greatest id that Redis confirmed."""
    settled: tuple[int, int]
    """After a rewind: its blocks before this position are settled; (0, 0): nothing to know."""


class Offsets(msgspec.Struct, frozen=True):
    """The content of the file."""

    shipped: tuple[int, int] = START
    last_id: tuple[int, int] = BEFORE_ALL
    """Greatest id given or seen: the floor of the next."""
    next_segment: int = 1
    streams: list[StreamState] = []

    @property
    def position(self) -> Position:
        """Where shipping goes on."""
        return Position(*self.shipped)

    @property
    def floor(self) -> EntryId:
        """Ids go on above it."""
        return EntryId(*self.last_id)


class StreamTable:
    """The streams of one store by number, and how far Redis has confirmed each."""

    def __init__(self) -> None:
        self.names: dict[int, tuple[str, StreamKind]] = {}
        self.numbers: dict[tuple[str, StreamKind], int] = {}
        self.last_shipped: dict[int, EntryId] = {}
        self.settled: dict[int, Position] = {}
        """After a rewind: where the blocks of a stream begin that are to be shipped again."""
        self._highest = 0

    def number(self, name: str, kind: StreamKind) -> int:
        """Return the number of a stream, the next one for a new one."""
        number = self.numbers.get((name, kind))
        if number is None:
            number = self._highest + 1
            self.learn(number, name, kind)
        return number

    def learn(self, number: int, name: str, kind: StreamKind) -> None:
        """Take in a number that was given before."""
        self.reserve(number)
        self.names[number] = name, kind
        self.numbers[name, kind] = number

    def reserve(self, number: int) -> None:
        """Never give this number: records of an unknown stream have it."""
        self._highest = max(self._highest, number)

    def restore(self, offsets: Offsets) -> None:
        """Take in what the file says."""
        for state in offsets.streams:
            self.learn(state.number, state.name, state.kind)
            self.last_shipped[state.number] = EntryId(*state.last_shipped)
            if state.settled != START:
                self.settled[state.number] = Position(*state.settled)

    def states(self) -> list[StreamState]:
        """Return what the file is to say."""
        confirmed, settled = self.last_shipped, self.settled
        return [
            StreamState(
                number, name, kind, confirmed.get(number, BEFORE_ALL), settled.get(number, START)
            )
            for number, (name, kind) in self.names.items()
        ]


def load(directory: Path) -> Offsets | None:
    """Read the file; None: there is none, or it is not what was written."""
    try:
        check, _, body = (directory / FILE).read_bytes().partition(b"\n")
        if int(check, 16) != crc32(body):
            return None
        return msgspec.json.decode(body, type=Offsets)
    except (FileNotFoundError, ValueError):  # msgspec's errors are ValueErrors
        return None


def save(directory: Path, offsets: Offsets, *, is_synced: bool = False) -> None:
    """Write the file in place of the last. Raises OSError, and the last one stays."""
    body = msgspec.json.encode(offsets)
    beside = directory / _BESIDE
    with beside.open("wb") as file:
        file.write(b"%08x\n%b" % (crc32(body), body))
        if is_synced:
            file.flush()
            os.fsync(file.fileno())
    beside.rename(directory / FILE)
    if is_synced:
        sync_folder(directory)


def sync_folder(directory: Path) -> None:
    """Make the names in a folder outlive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
