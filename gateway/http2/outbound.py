"""The sending half of a connection: windows, queues, and the list of what goes to the socket.

Knows frames and streams; no clock of its own, no socket. The driver takes `out` when it was told
that there is some, and says when the socket is full.

Rules for this file:
  * What is in `out` is as good as sent: the windows have paid for it, and nothing takes it back.
  * `send_window` and a stream's window never go below zero by a DATA frame, and never above
    MAX_WINDOW; a stream's own may be negative after a SETTINGS frame (RFC 9113, 6.9.2).
  * `held_bytes` is the sum of all queues, and of the incomplete messages that users have reported
    by `hold`. It is zero when there are no streams.
  * A stream with queued output is in `ready` exactly while its own window is positive.

Theory of operation: an answer usually fits, and goes straight to `out`; whoever writes it there
looks at three numbers first (`direct_bytes`, `send_window`, the stream's window) and pays the last
two. `direct_bytes` is the peer's frame limit or MAX_DIRECT_BYTES, and negative while anything is
ready to go or the socket is full: then everything queues behind what waits. Queues leave in turns
of a frame each, at most `burst_bytes` between two flushes, so that what is handed to a slow socket
is bounded. Data are sliced as views; no byte is copied here.
"""

from __future__ import annotations

import struct
from typing import Final, Protocol

from gateway.http2 import frames
from gateway.http2.frames import DATA, END_HEADERS, END_STREAM, HEADERS
from gateway.http2.limits import Limits
from gateway.http2.stream import CLOSED, OPEN, OutputQueue, Stream

MAX_RESETS: Final = 256
"""Own resets that are remembered; the oldest is forgotten."""
BULKY_BYTES: Final = 32 << 10
"""From here on, a piece is handed to the socket as it is, rather than joined with the others."""
MAX_DIRECT_BYTES: Final = 64 << 10
"""A larger piece is queued first, so that it is counted and leaves in bursts."""
_BLOCKED: Final = -1

_pack_frame: Final = struct.Struct(">HBBBI").pack


class Owner(Protocol):
    """What drives a connection."""

    def output_ready(self) -> None:
        """Take the connection's `out` soon."""


class Outbound:
    """What a connection sends."""

    __slots__ = (
        "_burst_left_bytes",
        "_owner",
        "_resets",
        "direct_bytes",
        "frame_bytes",
        "granted_bytes",
        "held_bytes",
        "initial_window",
        "is_bulky",
        "is_dirty",
        "is_full",
        "limits",
        "now_ns",
        "out",
        "parts",
        "ready",
        "resets",
        "send_window",
        "streams",
    )

    def __init__(self, owner: Owner, limits: Limits, now_ns: int) -> None:
        self._owner = owner
        self.limits = limits
        self.now_ns = now_ns
        """When bytes last arrived, or the clock was last looked at."""
        self.out: list[bytes | memoryview] = []
        self.is_dirty = False
        """The owner knows that there is output."""
        self.is_bulky = False
        """There is a piece in `out` that is not worth joining."""
        self.is_full = False
        """The socket takes no more for now."""
        self.streams: dict[int, Stream] = {}
        self.ready: dict[int, Stream] = {}
        """Streams with queued output and with window of their own; the first one's turn is next."""
        self.send_window = frames.DEFAULT_WINDOW
        self.granted_bytes = frames.DEFAULT_WINDOW
        """All that the peer ever granted to the connection."""
        self.initial_window = frames.DEFAULT_WINDOW
        """What the peer grants to a new stream."""
        self.frame_bytes = frames.DEFAULT_FRAME_BYTES
        """Largest frame that the peer takes."""
        self.direct_bytes = self.frame_bytes
        self.held_bytes = 0
        self.parts = 0
        """Messages of streams that were sent, or as many as left a queue together."""
        self.resets = 0
        """Streams that this side has reset."""
        self._burst_left_bytes = limits.burst_bytes
        self._resets: dict[int, None] | None = None

    def put(self, piece: bytes) -> None:
        """Send a piece, and tell the owner."""
        self.out.append(piece)
        if not self.is_dirty:
            self.mark()

    def mark(self) -> None:
        """Tell the owner that there is output."""
        self.is_dirty = True
        self._owner.output_ready()

    def hold(self, size: int) -> bool:
        """Count bytes that are held for this connection; false, and not counted, if too many."""
        held = self.held_bytes + size
        if held > self.limits.connection_bytes:
            return False
        self.held_bytes = held
        return True

    def send_head(self, stream: Stream, block: bytes) -> None:
        """Send the head of an answer that goes on."""
        stream.is_head_sent = True
        self._put_block(stream.stream_id, END_HEADERS, block)

    def send_data(self, stream: Stream, prefix: bytes, payload: bytes) -> None:
        """Send or queue a part of the answer: both pieces, one after the other.

        Calls `overflowed` instead if the connection holds too much already.
        """
        size = len(prefix) + len(payload)
        if (
            size <= self.direct_bytes
            and size <= self.send_window
            and size <= self.initial_window + stream.window_bytes
            and stream.queue is None
        ):
            self.send_window -= size
            stream.window_bytes -= size
            self.parts += 1
            self.out += (_pack_frame(size >> 8, size & 0xFF, DATA, 0, stream.stream_id), prefix)
            self.out.append(payload)
            if size > BULKY_BYTES:
                self.is_bulky = True
            if not self.is_dirty:
                self.mark()
        else:
            self._enqueue(stream, prefix, payload, size)

    def send_end(self, stream: Stream, block: bytes) -> None:
        """End the answer with trailers, behind what is queued; the stream is done."""
        stream.is_done = True
        queue = stream.queue
        if queue is None:
            self._put_block(stream.stream_id, END_HEADERS | END_STREAM, block)
            self._leave(stream)
        else:
            queue.trailers = block

    def reset(self, stream: Stream, code: int) -> None:
        """End a stream at once, whatever waits."""
        stream.is_done = True
        self.close_stream(stream)
        self.put_reset(stream.stream_id, code)

    def put_reset(self, stream_id: int, code: int) -> None:
        """Send RST_STREAM, and remember that we did."""
        self.resets += 1
        if self._resets is None:
            self._resets = {}
        elif len(self._resets) >= MAX_RESETS:
            del self._resets[next(iter(self._resets))]
        self._resets[stream_id] = None
        self.put(frames.rst_stream(stream_id, code))

    def was_reset(self, stream_id: int) -> bool:
        """Whether this side has reset the stream a short while ago."""
        return self._resets is not None and stream_id in self._resets

    def close_stream(self, stream: Stream) -> None:
        """Forget a stream and what is queued for it."""
        stream.state = CLOSED
        self.streams.pop(stream.stream_id, None)
        self.drop_queue(stream)

    def drop_queue(self, stream: Stream) -> None:
        """Forget what is queued for a stream."""
        if stream.queue is not None:
            self.held_bytes -= stream.queue.size_bytes
            stream.queue = None
            if self.ready.pop(stream.stream_id, None) is not None:
                self._set_direct()

    def window_grown(self, stream: Stream) -> None:
        """Let a stream go on whose own window has grown."""
        if stream.queue is not None and self.initial_window + stream.window_bytes > 0:
            self.ready[stream.stream_id] = stream
            self.pump()

    def socket_full(self) -> None:
        """Queue everything until `socket_drained`."""
        self.is_full = True
        self._set_direct()

    def socket_drained(self) -> None:
        """Go on."""
        self.is_full = False
        self.pump()

    def flushed(self) -> None:
        """Go on with what is queued: `out` was taken."""
        self.pump()

    def pump(self) -> None:
        """Move queued output to `out`, a frame of each stream in turn, as far as it may go."""
        if not self.out:  # the last burst was taken
            self._burst_left_bytes = self.limits.burst_bytes
        while self.ready and self.send_window > 0 and self._burst_left_bytes > 0:
            if self.is_full:
                break
            stream_id = next(iter(self.ready))
            self._send_turn(self.ready.pop(stream_id))
        self._set_direct()

    def _send_turn(self, stream: Stream) -> None:
        """Send a frame's worth of a stream's queue; its own window is positive."""
        queue = stream.queue
        assert queue is not None
        room = min(self.frame_bytes, self.send_window, self.initial_window + stream.window_bytes)
        size = min(room, queue.size_bytes)
        self.out.append(_pack_frame(size >> 8, size & 0xFF, DATA, 0, stream.stream_id))
        queue.take(size, self.out)
        queue.moved_ns = self.now_ns
        self.is_bulky = self.is_bulky or size > BULKY_BYTES
        self.send_window -= size
        stream.window_bytes -= size
        self.held_bytes -= size
        self._burst_left_bytes -= size
        if queue.size_bytes:
            if self.initial_window + stream.window_bytes > 0:
                self.ready[stream.stream_id] = stream
        else:
            self.parts += 1  # but not for each byte that a peer grants window for
            stream.queue = None
            if queue.trailers is not None:
                self._put_block(stream.stream_id, END_HEADERS | END_STREAM, queue.trailers)
                self._leave(stream)
        if not self.is_dirty:
            self.mark()
        if queue.was_full and queue.size_bytes <= self.limits.stream_output_bytes >> 1:
            queue.was_full = False
            if not stream.is_done:
                stream.drained()

    def _enqueue(self, stream: Stream, prefix: bytes, payload: bytes, size: int) -> None:
        if not self.hold(size):
            stream.overflowed()
            return
        queue = stream.queue
        if queue is None:
            queue = stream.queue = OutputQueue(self.now_ns)
            if self.initial_window + stream.window_bytes > 0:
                self.ready[stream.stream_id] = stream
        queue.pieces += [memoryview(piece) for piece in (prefix, payload) if piece]
        queue.size_bytes += size
        if queue.size_bytes >= self.limits.stream_output_bytes:
            queue.was_full = True
        self.pump()

    def _leave(self, stream: Stream) -> None:
        """Close a stream whose answer is complete; a peer that still sends is told to stop."""
        is_open = stream.state is OPEN
        self.close_stream(stream)
        if is_open:
            self.put_reset(stream.stream_id, frames.ErrorCode.NO_ERROR)

    def _put_block(self, stream_id: int, flags: int, block: bytes) -> None:
        """Send a header block, in more than one frame if it must be."""
        limit = self.frame_bytes
        if len(block) <= limit:
            self.put(frames.frame(HEADERS, flags, stream_id, block))
            return
        self.put(frames.frame(HEADERS, flags & END_STREAM, stream_id, block[:limit]))
        for at in range(limit, len(block), limit):
            part = block[at : at + limit]
            is_last = END_HEADERS if at + limit >= len(block) else 0
            self.put(frames.frame(frames.CONTINUATION, is_last, stream_id, part))

    def _set_direct(self) -> None:
        """Say what may be written without queueing."""
        is_blocked = self.is_full or self.ready
        self.direct_bytes = _BLOCKED if is_blocked else min(self.frame_bytes, MAX_DIRECT_BYTES)
