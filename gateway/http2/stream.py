"""One stream: its state, its share of the windows, its output that waits.

Knows its connection and what a user of it must offer; nothing of what the bytes mean. A user
subclasses `Stream`, so that one request is one object.

Rules:
  * A stream is in `Connection.streams` exactly while its state is OPEN or HALF_CLOSED.
  * `is_done` is about the user: it has nothing more to send. The state stays until the last queued
    byte is handed over, so that the peer can still grant window to it, or reset it.
  * The user's methods (`take_head` to `body_filled`) are called by the connection only, and never
    after `lost`.

Theory of operation: this side is a server that never pushes, and it resets a stream whose answer is
complete while the peer still sends (RFC 9113, 8.1). So of the seven states of the RFC three need an
object or a memory; IDLE and CLOSED are what the stream's number says, RESET is the connection's
short memory of streams that it has reset itself: what a peer had sent before it could know is
no mistake. REACTIONS is the whole table of what a frame does in which state, for the frames that
are not on the connection's fast paths; it and `Connection.state_of` change together.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from gateway.http2.fields import RequestHead
from gateway.http2.frames import DATA, HEADERS, RST_STREAM, WINDOW_UPDATE

if TYPE_CHECKING:
    from gateway.http2.inbound import Inbound


class State(Enum):
    """Of a stream's number, as this side sees it."""

    IDLE = auto()
    """Not opened yet."""
    OPEN = auto()
    """The peer may still send."""
    HALF_CLOSED = auto()
    """The peer has ended its side; this side has not."""
    RESET = auto()
    """Reset by this side a short while ago."""
    CLOSED = auto()
    """Ended by both sides, reset by the peer, or skipped."""


OPEN: Final = State.OPEN
HALF_CLOSED: Final = State.HALF_CLOSED
CLOSED: Final = State.CLOSED


class Reaction(Enum):
    """What a frame does."""

    TAKE = auto()
    IGNORE = auto()
    RESET = auto()
    """The stream is reset with STREAM_CLOSED."""
    FAULT = auto()
    """The connection ends with PROTOCOL_ERROR."""
    CLOSED_FAULT = auto()
    """The connection ends with STREAM_CLOSED."""


REACTIONS: Final[dict[State, dict[int, Reaction]]] = {
    State.IDLE: {
        DATA: Reaction.FAULT,
        HEADERS: Reaction.TAKE,
        RST_STREAM: Reaction.FAULT,
        WINDOW_UPDATE: Reaction.FAULT,
    },
    State.OPEN: {
        DATA: Reaction.TAKE,
        HEADERS: Reaction.TAKE,
        RST_STREAM: Reaction.TAKE,
        WINDOW_UPDATE: Reaction.TAKE,
    },
    State.HALF_CLOSED: {
        DATA: Reaction.RESET,
        HEADERS: Reaction.RESET,
        RST_STREAM: Reaction.TAKE,
        WINDOW_UPDATE: Reaction.TAKE,
    },
    State.RESET: {
        DATA: Reaction.IGNORE,
        HEADERS: Reaction.IGNORE,
        RST_STREAM: Reaction.IGNORE,
        WINDOW_UPDATE: Reaction.IGNORE,
    },
    State.CLOSED: {
        DATA: Reaction.RESET,
        HEADERS: Reaction.CLOSED_FAULT,
        RST_STREAM: Reaction.IGNORE,
        WINDOW_UPDATE: Reaction.IGNORE,
    },
}


class OutputQueue:
    """Output of a stream that waits for window, for its turn, or for the socket."""

    __slots__ = ("moved_ns", "pieces", "size_bytes", "trailers", "was_full")

    def __init__(self, now_ns: int) -> None:
        self.pieces: deque[memoryview] = deque()
        self.size_bytes = 0
        self.trailers: bytes | None = None
        """The header block that ends the stream once the pieces are gone."""
        self.was_full = False
        """The user was told to wait, and has not been called back."""
        self.moved_ns = now_ns
        """When bytes last left, or the first came."""

    def take(self, size: int, out: list[bytes | memoryview]) -> None:
        """Move so many bytes, of those that are there, to the output. Copies nothing."""
        self.size_bytes -= size
        pieces = self.pieces
        while size:
            piece = pieces[0]
            if len(piece) > size:
                out.append(piece[:size])
                pieces[0] = piece[size:]
                return
            size -= len(piece)
            out.append(pieces.popleft())


class Stream:
    """A request and its answer. A subclass says what they mean."""

    __slots__ = (
        "connection",
        "head",
        "is_done",
        "is_head_sent",
        "is_paused",
        "queue",
        "state",
        "stream_id",
        "unreturned_bytes",
        "window_bytes",
    )

    def __init__(self, connection: Inbound, stream_id: int, head: RequestHead) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.head = head
        self.state = OPEN
        self.is_done = False
        """The user has nothing more to send."""
        self.is_head_sent = False
        self.is_paused = False
        """The user takes no data for now; the peer gets no new window."""
        self.queue: OutputQueue | None = None
        self.window_bytes = 0
        """What the peer has granted beyond its initial window, less what was sent."""
        self.unreturned_bytes = 0
        """What has arrived and has not been granted again."""

    def take_head(self, *, is_last: bool) -> None:
        """Take the head; only called if it is eager, or if the request ends with it."""
        raise NotImplementedError

    def take_data(self, data: bytes, start: int, end: int, is_last: int) -> None:
        """Take a part of the body; it may be empty if it is the last."""
        raise NotImplementedError

    def lost(self) -> None:
        """Hear that the stream has ended before its answer did: reset, or connection lost."""
        raise NotImplementedError

    def drained(self) -> None:
        """Hear that a full output has room again."""

    def overflowed(self) -> None:
        """Hear that the connection holds too much: the last piece was not queued."""

    def sweep(self, now_ns: int) -> None:
        """Look at the clock; called now and then."""

    def body_view(self, size: int) -> memoryview | None:
        """Return where the next bytes of the body, at most so many, may be written directly."""
        return None

    def body_filled(self, size: int) -> None:
        """Hear that so many bytes were written there."""
