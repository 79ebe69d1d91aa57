"""What stands in Redis of each name: streams, their size, who reads them, what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import redis

from gateway.prediction_log.reader import entries
from gateway.prediction_log.reader.completeness import Completeness
from gateway.prediction_log.reader.entries import Window, text_of
from gateway.prediction_log.reader.reading import Reading, What
from gateway.prediction_log.streams import EntryId, StreamKind

KINDS: Final = (StreamKind.LIVE, StreamKind.SHADOW, StreamKind.BIG, StreamKind.LABELS)
"""The kinds that have streams of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupState:
    """One consumer group of one stream."""

    name: str
    consumers: int
    pending: int
    """Given and not acknowledged."""
    lag: int | None
    """Not given yet; None: Redis cannot say (before 7.0, or entries were deleted)."""
    last_delivered: EntryId


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamState:
    """One stream."""

    key: str
    kind: StreamKind
    entries: int
    first: EntryId | None
    """None: it is empty."""
    last: EntryId | None
    used_bytes: int
    """Of memory, as Redis estimates it from samples."""
    groups: tuple[GroupState, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NameState:
    """One public name."""

    name: str
    streams: tuple[StreamState, ...]
    completeness: tuple[Completeness, ...] = ()
    """Per kind that has streams; empty: it was not asked for."""


def look(client: redis.Redis, names: Sequence[str] | None = None) -> list[NameState]:
    """Return what stands in Redis of these names, or of all; reads no records."""
    states = []
    for name in entries.known_names(client) if names is None else names:
        found = (
            _stream(client, key, kind)
            for kind in KINDS
            for key in entries.streams(client, [name], kind=kind)
        )
        streams = tuple(state for state in found if state is not None)
        states.append(NameState(name=name, streams=streams))
    return states


def examine(client: redis.Redis, state: NameState, window: Window) -> NameState:
    """Return the same with the completeness of a window, for which its records are read."""
    kinds = {stream.kind for stream in state.streams}
    found = []
    for kind in KINDS:
        if kind in kinds:
            what = What(name=state.name, kind=kind, window=window, labels=False)
            reading = Reading(client, what)
            reading.scan()
            found.append(reading.completeness())
    return replace(state, completeness=tuple(found))


def _stream(client: redis.Redis, key: str, kind: StreamKind) -> StreamState | None:
    info = entries.stream_info(client, key)
    if info is None:
        return None  # deleted since it was listed
    groups: Any = client.xinfo_groups(key)  # Any: as redis-py types it for both its clients
    first, last = info["first-entry"], info["last-entry"]
    used: Any = client.memory_usage(key)
    return StreamState(
        key=key,
        kind=kind,
        entries=info["length"],
        first=EntryId.parse(first[0]) if first else None,
        last=EntryId.parse(last[0]) if last else None,
        used_bytes=used or 0,
        groups=tuple(_group(group) for group in groups),
    )


def _group(group: Any) -> GroupState:
    return GroupState(
        name=text_of(group["name"]),
        consumers=group["consumers"],
        pending=group["pending"],
        lag=group.get("lag"),
        last_delivered=EntryId.parse(group["last-delivered-id"]),
    )
