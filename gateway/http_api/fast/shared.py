"""What the connections of a listener share: bounds, counts, services and memory.

Times are counted in ticks of the listener, so that no clock is read and no timer made per request.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from gateway.config import LimitsConfig
from gateway.http_api.fast.exchange import Service
from gateway.http_api.fast.heads import Heads
from gateway.http_api.fast.slow import Application

READ_BYTES: Final = 32 << 10
"""Most bytes of one read of anything but a body that has a buffer of its own: what is read of a
large body together with its head is copied."""


class Phase(Enum):
    """What the next bytes are."""

    HEAD = "a request's head, or the begin of one"
    BUFFER = "a body whose length is known, read into its own buffer"
    STREAM = "a body that goes through a framing, piece by piece"
    ENDED = "nothing: they are dropped"


class WaitsFor(Enum):
    """What must happen next on a quiet connection."""

    US = "an answer, or room for more requests"
    FIRST_HEAD = "the first head"
    REQUEST = "the first byte of another request"
    SENDER = "the rest of a request"
    READER = "the peer, who does not read its answer"
    CLOSE = "the peer's end of the connection, after the last answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What one connection may take, and for how many ticks it may be quiet."""

    connections: int
    header_bytes: int
    connection_bytes: int
    ticks: Mapping[WaitsFor, int | None]
    """None: for ever."""
    least_ticks: int
    """Who was quiet for no longer than this is not looked at."""


def bounds_of(limits: LimitsConfig, *, keep_alive_s: float, tick_s: float) -> Bounds:
    """Return the bounds of a connection, with times in ticks."""
    timeouts_s = {
        WaitsFor.FIRST_HEAD: limits.handshake_timeout_s,
        WaitsFor.REQUEST: keep_alive_s,
        WaitsFor.SENDER: limits.slow_peer_timeout_s,
        WaitsFor.READER: limits.slow_peer_timeout_s,
        WaitsFor.CLOSE: limits.slow_peer_timeout_s,
    }
    ticks = {waits_for: math.ceil(s / tick_s) for waits_for, s in timeouts_s.items()}
    return Bounds(
        connections=limits.connections,
        header_bytes=limits.header_bytes,
        connection_bytes=limits.connection_bytes,
        ticks={**ticks, WaitsFor.US: None},
        least_ticks=min(ticks.values()),
    )


@dataclass(slots=True, kw_only=True)
class Books:
    """Counts of one listener since its start."""

    refused_connections: int = 0
    """Closed at once, as there were too many."""
    bad_requests: int = 0
    """Answered with 400 or 431: no HTTP, or too much of a head."""
    timeouts: int = 0
    """Connections closed because the peer was too slow, not because it was idle."""
    overflows: int = 0
    """Connections closed because too many bytes waited for the peer."""


class Peer(Protocol):
    """A connection, as its listener sees it."""

    def tick(self) -> None:
        """Note that a tick has passed."""

    def drain(self) -> None:
        """Take no new request; close when what was begun is answered."""

    def abort(self) -> None:
        """Close at once, and give up what is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all connections of a listener share."""

    service: Service
    application: Application
    bounds: Bounds
    heads: Heads = field(default_factory=Heads)
    books: Books = field(default_factory=Books)
    connections: set[Peer] = field(default_factory=set)
    emptied: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last connection is lost."""
    scratch: memoryview = field(default_factory=lambda: memoryview(bytearray(READ_BYTES)))
