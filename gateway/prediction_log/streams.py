"""Where entries stand: the keys of streams, and entry ids.

A name has streams of several kinds per replica, each kind found through a set of its own.

Pure: knows no Redis, no event loop and no clock; the wall time is handed in.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

NAMES_KEY: Final = "pl:names"
"""Set of the public names that have streams."""


class EntryId(NamedTuple):
    """Id of a stream entry; orders as Redis orders."""

    ms: int
    seq: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"

    @classmethod
    def parse(cls, raw: bytes | str) -> EntryId:
        """Read the form ``ms-seq``."""
        ms, _, seq = (raw.decode() if isinstance(raw, bytes) else raw).partition("-")
        return cls(int(ms), int(seq))

    def after(self) -> EntryId:
        """Return the smallest id above this one."""
        return EntryId(self.ms, self.seq + 1)


BEFORE_ALL: Final = EntryId(0, 0)


class StreamKind(StrEnum):
    """What a stream holds. Each kind of a name has streams of its own."""

    LIVE = "live"
    """Predictions that callers were given."""
    AUDIT = "audit"
    """What the worker counted: stands in the live streams, and is counted apart from them."""
    SHADOW = "shadow"
    """What shadows answered: no reader of the live records meets it."""
    BIG = "big"
    """Whole records of a sample of those whose large tensors are otherwise reduced."""
    LABELS = "labels"
    """Ground truth."""


def stream_key(name: str, replica: str, kind: StreamKind = StreamKind.LIVE) -> str:
    """Return the key of a name's records of a kind, written by one replica."""
    return f"pl:{{{name}}}:{_infix(kind)}{replica}"


def streams_key(name: str, kind: StreamKind = StreamKind.LIVE) -> str:
    """Return the key of the set that holds the keys of a name's streams of a kind."""
    return f"pl:{{{name}}}:{_infix(kind)}streams"


def owner_key(name: str, replica: str) -> str:
    """Return the key of the fencing token of a replica's streams of a name."""
    return f"pl:{{{name}}}:owner:{replica}"


def schema_key(name: str) -> str:
    """Return the key of the hash that holds the column names of a name's tensors by digest."""
    return f"pl:{{{name}}}:schema"


def erased_key(name: str) -> str:
    """Return the key of the hash that holds a name's tombstones of erased subjects."""
    return f"pl:{{{name}}}:erased"


def _infix(kind: StreamKind) -> str:
    return "" if kind in (StreamKind.LIVE, StreamKind.AUDIT) else f"{kind}:"
