"""A server's HTTP/2 connection: bytes in, calls on streams out; its life, from preface to GOAWAY.

Knows how frames are found in the input, and when a connection ends; no socket, no task, no clock
(time is an argument). What frames mean is `inbound` and `control`, what is sent is `outbound`.

Rules for this file:
  * Nothing that a peer sends raises out of `receive`: a fault of the connection becomes GOAWAY and
    `is_ended`.
  * Memory is bounded before it is used: a frame is refused by its nine first bytes, a header block
    by what has come of it, and bodies are passed on as they arrive, never collected here.
  * After `is_ended` nothing is read, and no stream exists.

Theory of operation: nearly all frames of a gRPC client are a HEADERS frame with a whole header
block, and a DATA frame on an open stream. `_frames` takes these two in line and gives everything
else to `_other`, which checks the frame against its rule and calls what FRAMES names.

What is cut off at the end of the input waits in `_tail`, but for the payload of a DATA frame of
more than SMALL_BODY_BYTES: that is a body (`_body`), and goes to its stream piece by piece, or is
read by the driver directly to where the stream wants it (`body_view`).

What must change together: FRAMES and `frames.RULES`; the two fast paths and `Inbound.headers` and
`Inbound.data`, which do the same for every other form of these frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway.http2 import control, frames, settings
from gateway.http2.control import ALIVE_PING, DRAIN_PING
from gateway.http2.frames import (
    DATA,
    END_STREAM,
    HEAD_BYTES,
    HEADERS,
    MAX_STREAM_ID,
    PREFACE,
    WHOLE_HEAD,
    ConnectionFault,
    ErrorCode,
)
from gateway.http2.inbound import Application, Inbound
from gateway.http2.limits import Limits
from gateway.http2.outbound import Owner
from gateway.http2.stream import HALF_CLOSED, OPEN, Stream

SMALL_BODY_BYTES: Final = 4_096
"""A DATA frame up to this is waited for as a whole."""
PIECE_BYTES: Final = 64 << 10
"""Input is looked at in pieces of at most this size."""


class _Body:
    """A DATA frame whose payload is arriving."""

    __slots__ = ("is_last", "left_bytes", "padding_bytes", "stream")

    def __init__(self, stream: Stream | None, left_bytes: int, padding_bytes: int) -> None:
        self.stream = stream
        """None: nobody takes it."""
        self.left_bytes = left_bytes
        self.padding_bytes = padding_bytes
        """After those that are left."""
        self.is_last = 0


class Connection(Inbound):
    """A connection of one client.

    Args:
        application: reads heads, makes streams.
        owner: is told of output.
        limits: see there.
        now_ns: monotonic time of the connection's begin.
    """

    __slots__ = (
        "_body",
        "_half_window_bytes",
        "_piece_bytes",
        "_tail",
        "drained_ns",
        "ended_ns",
        "idle_ns",
        "is_draining",
        "is_ended",
        "is_ready",
        "pinged_ns",
        "received_ns",
    )

    def __init__(self, application: Application, owner: Owner, limits: Limits, now_ns: int) -> None:
        super().__init__(application, owner, limits, now_ns)
        self._tail = b""
        self._body: _Body | None = None
        # Invariant: a frame that is whole in one piece of input is not over `frame_bytes`.
        self._piece_bytes = min(PIECE_BYTES, limits.frame_bytes)
        self._half_window_bytes = limits.stream_window_bytes >> 1
        self.is_ready = False
        """The preface has arrived."""
        self.is_ended = False
        """Nothing more is read; what is in `out` is the last."""
        self.is_draining = False
        """A drain has begun."""
        self.received_ns = now_ns
        self.idle_ns = now_ns
        """When the last look at the clock found a call, or the connection began."""
        self.pinged_ns = 0
        """When a ping was sent; 0: never."""
        self.drained_ns = 0
        """When a drain began."""
        self.ended_ns = 0

    def start(self) -> None:
        """Send the server's preface: settings, and the window of the connection."""
        limits = self.limits
        self.put(settings.announce(limits))
        self.put(frames.window_update(0, limits.connection_window_bytes - frames.DEFAULT_WINDOW))

    def receive(self, data: bytes, now_ns: int) -> None:
        """Take what has arrived. Raises nothing."""
        self.now_ns = self.received_ns = now_ns
        if self.is_ended:
            return
        try:
            if len(data) <= self._piece_bytes:
                self._take(data)
            else:
                for at in range(0, len(data), self._piece_bytes):
                    self._take(data[at : at + self._piece_bytes])
        except ConnectionFault as fault:
            self.end(fault.code, fault.text)

    def body_view(self) -> memoryview | None:
        """Return where the next bytes may be read to, if a stream waits for nothing else.

        What is read there is reported by `body_received` instead of `receive`.
        """
        body = self._body
        if body is None or body.stream is None or not body.left_bytes:
            return None
        if body.stream.state is not OPEN:
            return None
        return body.stream.body_view(body.left_bytes)

    def body_received(self, size: int, now_ns: int) -> None:
        """Take so many bytes that were written into the view."""
        self.now_ns = self.received_ns = now_ns
        body = self._body
        assert body is not None
        assert body.stream is not None
        body.left_bytes -= size
        stream = body.stream
        if self._is_last_of(body) and stream.state is OPEN:
            stream.state = HALF_CLOSED
            stream.body_filled(size)
            if stream.state is HALF_CLOSED:
                stream.take_data(b"", 0, 0, END_STREAM)
        else:
            stream.body_filled(size)

    def lost(self) -> None:
        """Hear that the transport is gone: every call is lost."""
        self.is_ended = True
        self._body = self.block = None
        for stream in list(self.streams.values()):
            self.lose(stream)
        self.out.clear()

    def end(self, code: ErrorCode, text: str) -> None:
        """End the connection with GOAWAY; every call is lost."""
        if self.is_ended:
            return
        self.is_ended = True
        self.ended_ns = self.now_ns
        self._tail = b""
        self._body = self.block = None
        for stream in list(self.streams.values()):
            self.lose(stream)
        self.put(frames.goaway(self.last_id, code, text))

    def drain(self, now_ns: int) -> None:
        """Begin to end in two steps: say that the end comes, and ask for a sign of having read it.

        Calls that the peer starts before it reads this are still served (RFC 9113, 6.8).
        """
        if self.is_draining or self.is_ended:
            return
        self.is_draining = True
        self.now_ns = self.drained_ns = now_ns
        self.put(frames.goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR))
        self.put(frames.frame(frames.PING, 0, 0, DRAIN_PING))

    def close_when_served(self) -> None:
        """Take the second step of a drain: from here on new calls are refused."""
        if self.stream_limit and not self.is_ended:
            self.stream_limit = 0
            self.put(frames.goaway(self.last_id, ErrorCode.NO_ERROR))

    def finish(self) -> None:
        """End a drain: the owner closes the connection."""
        self.is_ended = True
        self.ended_ns = self.now_ns
        self.mark()

    @property
    def is_served(self) -> bool:
        """Whether a drain has come to its end."""
        return not self.stream_limit and not self.streams

    def ping(self, now_ns: int) -> None:
        """Ask for a sign of life."""
        self.pinged_ns = now_ns
        self.put(frames.frame(frames.PING, 0, 0, ALIVE_PING))

    @property
    def is_mid_frame(self) -> bool:
        """Whether a frame, or a header block, has arrived in part."""
        return bool(self._tail or self.block or self._body)

    def _take(self, data: bytes) -> None:
        if self._tail:
            data = self._tail + data
            self._tail = b""
        at = 0
        if self._body is not None:
            at = self._take_body(self._body, data, 0)
        elif not self.is_ready:
            if not self._take_preface(data):
                return
            at = len(PREFACE)
        self._frames(data, at)
        self.return_connection_window()

    def _take_preface(self, data: bytes) -> bool:
        if not data.startswith(PREFACE):
            if not PREFACE.startswith(data):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "no HTTP/2 preface")
            self._tail = data
            return False
        self.is_ready = True
        return True

    def _frames(self, data: bytes, end: int) -> None:
        """Take the frames of a piece of input; what is cut off waits.

        The two kinds that make up a request are taken here, in their usual form.
        """
        size = len(data)
        streams = self.streams
        unpack_head = frames.unpack_head
        while size - end >= HEAD_BYTES:
            at = end
            high, low, kind, flags, stream_id = unpack_head(data, at)
            start = at + HEAD_BYTES
            end = start + (high << 8 | low)
            if end <= size and self.block is None:
                if kind == DATA:
                    stream = streams.get(stream_id)
                    if (
                        stream is not None
                        and flags <= END_STREAM
                        and start < end
                        and stream.state is OPEN
                        and not self.lengths
                    ):
                        self.unreturned_bytes += end - start
                        if flags:
                            stream.state = HALF_CLOSED
                        else:
                            stream.unreturned_bytes += end - start
                            is_due = stream.unreturned_bytes > self._half_window_bytes
                            if is_due and not self.return_window(stream):
                                continue
                        stream.take_data(data, start, end, flags)
                        continue
                elif (
                    kind == HEADERS
                    and flags | END_STREAM == WHOLE_HEAD
                    and self.last_id < stream_id <= MAX_STREAM_ID
                    and stream_id & 1
                    and len(streams) < self.stream_limit
                ):
                    block = data[start:end]
                    head = self.memo.get(block) or self.decode_head(block)
                    self.last_id = stream_id
                    self.opened += 1
                    stream = streams[stream_id] = self.open_stream(self, stream_id, head)
                    if flags == WHOLE_HEAD or head.is_eager:
                        self.begin(stream, head, flags)
                    continue
            end = self._other(data, start, end, kind, flags, stream_id)
            if end < 0:
                end = at
                break
        self._tail = data[end:]

    def _other(
        self, data: bytes, start: int, end: int, kind: int, flags: int, stream_id: int
    ) -> int:
        """Take any other frame; return where the next one begins, or -1 if it is incomplete."""
        stream_id &= MAX_STREAM_ID
        rule = frames.RULES.get(kind, frames.UNKNOWN)
        self._check_frame(rule, end - start, kind, stream_id)
        if end > len(data):
            if kind not in FRAMES and (kind != DATA or end - start > SMALL_BODY_BYTES):
                return self._begin_body(data, start, end, kind, flags, stream_id)
            return -1
        if rule.cost:
            self.spend(rule.cost)
        if kind == DATA:
            self.data(data, start, end, flags, stream_id)
        elif kind in FRAMES:
            FRAMES[kind](self, data[start:end], flags, stream_id)
        return end

    def _check_frame(self, rule: frames.Rule, size: int, kind: int, stream_id: int) -> None:
        """Refuse a frame by its first nine bytes."""
        if size > self.limits.frame_bytes:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame too large")
        block = self.block
        if block is not None and (kind != frames.CONTINUATION or stream_id != block.stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
        if rule.on_stream is not None and rule.on_stream != bool(stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "frame on the wrong stream")
        if rule.longest == 0 and size > self.block_limit:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
        if size < rule.shortest or size > rule.longest > 0:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame of a wrong size")

    def _begin_body(
        self, data: bytes, start: int, end: int, kind: int, flags: int, stream_id: int
    ) -> int:
        """Take the first part of a DATA frame (or of one to skip) that has not come whole."""
        padding = 0
        size = end - start
        if kind == DATA and flags & frames.PADDED:
            if start == len(data):
                return -1
            padding = data[start]
            start += 1
            if padding >= size:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
        body = self._body = _Body(None, end - start - padding, padding)
        if kind == DATA:
            body.stream = self.body_stream(stream_id, size, body.left_bytes, flags)
            body.is_last = flags & END_STREAM
        else:
            self.spend(frames.UNKNOWN.cost)
        return self._take_body(body, data, start)

    def _take_body(self, body: _Body, data: bytes, start: int) -> int:
        """Pass on what has come of a DATA frame; return where the next frame begins."""
        end = min(len(data), start + body.left_bytes)
        body.left_bytes -= end - start
        behind = end
        if not body.left_bytes:
            behind = min(len(data), end + body.padding_bytes)
            body.padding_bytes -= behind - end
        is_last = self._is_last_of(body)
        stream = body.stream
        if stream is not None and stream.state is OPEN:
            if is_last:
                stream.state = HALF_CLOSED
                stream.take_data(data, start, end, END_STREAM)
            elif end > start:
                stream.take_data(data, start, end, 0)
        return behind

    def _is_last_of(self, body: _Body) -> bool:
        """Let go of a body that has come whole; return whether its request ends with it."""
        if body.left_bytes or body.padding_bytes:
            return False
        self._body = None
        return bool(body.is_last)


FRAMES: Final[dict[int, Callable[[Connection, bytes, int, int], None]]] = {
    HEADERS: Inbound.headers,
    frames.CONTINUATION: Inbound.continuation,
    frames.PRIORITY: control.on_priority,
    frames.RST_STREAM: control.on_rst_stream,
    frames.SETTINGS: control.on_settings,
    frames.PUSH_PROMISE: control.on_push_promise,
    frames.PING: control.on_ping,
    frames.GOAWAY: control.on_goaway,
    frames.WINDOW_UPDATE: control.on_window_update,
}
"""Who takes a frame, but for DATA, which is not cut out of the input."""
