"""The receiving half of a server's HTTP/2 connection: bytes in, calls on streams out.

Knows RFC 9113 as a server needs it; no socket, no task, no clock (time is an argument), and nothing
of what streams mean: that is the application's, which reads heads and makes streams.

Rules for this file:
  * Nothing that a peer sends raises out of `receive`: a fault of the connection becomes GOAWAY and
    `is_ended`, a fault of a stream becomes RST_STREAM.
  * Memory is bounded before it is used: a frame is refused by its nine first bytes, a header block
    by what has come of it, and bodies are passed on as they arrive, never collected here.
  * Header blocks are decoded in the order of arrival, also those of streams that are refused: the
    compression state belongs to the connection.
  * A frame that does no work is paid for (`budget`, `frames.RULES`).
  * Window of the connection is given back as data arrive: it bounds what is under way. Window of a
    stream is given back as long as its user takes data.

Theory of operation: nearly all frames of a gRPC client are a HEADERS frame with a whole header block
and a DATA frame on an open stream. `_frames` takes these two in line and gives everything else to
`_other`, which checks the frame against its rule and calls the method that FRAMES names. A header
block that neither changed the compression table nor could be changed by it means the same again:
it is looked up in `_memo` by its bytes, and all entries go when a block changes the table.

What is cut off at the end of the input waits in `_tail`, but for the payload of a DATA frame of more
than SMALL_BODY_BYTES: that is a body (`_body`) and goes to its stream piece by piece, or is read by
the driver directly to where the stream wants it (`body_view`).

What must change together: FRAMES and `frames.RULES`; `state_of` and `stream.REACTIONS`; the two fast
paths and `_on_headers`, `_on_data`, which do the same for every other form of these frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from gateway.http2 import frames, settings
from gateway.http2.budget import Budget
from gateway.http2.fields import Fields, MalformedHead, RequestHead, check_trailers
from gateway.http2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEAD_BYTES,
    HEADERS,
    MAX_STREAM_ID,
    PREFACE,
    WHOLE_HEAD,
    ConnectionFault,
    ErrorCode,
)
from gateway.http2.hpack import Decoder, HeaderListTooLarge, HpackError
from gateway.http2.limits import Limits
from gateway.http2.outbound import Outbound, Owner
from gateway.http2.stream import HALF_CLOSED, OPEN, REACTIONS, Reaction, State, Stream

SMALL_BODY_BYTES: Final = 4_096
"""A DATA frame up to this is waited for as a whole."""
PIECE_BYTES: Final = 64 << 10
"""Input is looked at in pieces of at most this size, so no frame in one is over `frame_bytes`."""
MIN_BLOCK_BYTES: Final = 32 << 10
_DRAIN_PING: Final = b"drained?"
_ALIVE_PING: Final = b"alive?\0\0"
_NO_MEMO: Final[dict[bytes, RequestHead]] = {}
"""Of every connection that has not had a request; never written to."""


class Application(Protocol):
    """What the streams mean."""

    def read_head(self, fields: Fields) -> RequestHead:
        """Return what a request's header list means."""

    def oversized_head(self) -> RequestHead:
        """Return the head of a request whose header list is over the limit."""

    def open(self, connection: Outbound, stream_id: int, head: RequestHead, /) -> Stream:
        """Return the object of a new request; called once per request."""


class _Block:
    """A header block of which frames are missing."""

    __slots__ = ("flags", "fragments", "stream_id")

    def __init__(self, stream_id: int, flags: int, fragment: bytes) -> None:
        self.stream_id = stream_id
        self.flags = flags
        self.fragments = bytearray(fragment)


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


class Connection(Outbound):
    """A connection of one client.

    Args:
        application: reads heads, makes streams.
        owner: is told of output.
        limits: see there.
        now_ns: monotonic time of the connection's begin.
    """

    __slots__ = (
        "_application",
        "_block",
        "_body",
        "_budget",
        "_decoder",
        "_lengths",
        "_memo",
        "_open",
        "_tail",
        "_unreturned_bytes",
        "drained_ns",
        "ended_ns",
        "idle_ns",
        "is_draining",
        "is_ended",
        "is_ready",
        "last_id",
        "opened",
        "pinged_ns",
        "received_ns",
        "returned_bytes",
        "stream_limit",
    )

    def __init__(self, application: Application, owner: Owner, limits: Limits, now_ns: int) -> None:
        super().__init__(owner, limits, now_ns)
        self._application = application
        self._open = application.open
        self._tail = b""
        self._block: _Block | None = None
        self._body: _Body | None = None
        self._budget = Budget(limits.control_tokens, now_ns)
        self._decoder: Decoder | None = None
        self._memo = _NO_MEMO
        self._lengths: dict[int, int] | None = None
        """Of streams that announced a length: what is missing of it."""
        self._unreturned_bytes = 0
        self.returned_bytes = 0
        """Window given back to the peer so far."""
        self.is_ready = False
        """The preface has arrived."""
        self.is_ended = False
        """Nothing more is read; what is in `out` is the last."""
        self.is_draining = False
        """A drain has begun."""
        self.last_id = 0
        """The highest stream that the peer has opened."""
        self.opened = 0
        """Calls so far."""
        self.stream_limit = limits.streams_per_connection
        self.received_ns = now_ns
        self.idle_ns = now_ns
        """When the last look at the clock found a call, or the connection began."""
        self.pinged_ns = 0
        """When an unanswered ping was sent; 0: there is none."""
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
            if len(data) <= PIECE_BYTES:
                self._take(data)
            else:
                for at in range(0, len(data), PIECE_BYTES):
                    self._take(data[at : at + PIECE_BYTES])
        except ConnectionFault as fault:
            self.end(fault.code, fault.text)

    def body_view(self) -> memoryview | None:
        """Return where the next bytes may be read to, if a stream waits for nothing else.

        What is read there is reported by `body_received` instead of `receive`.
        """
        body = self._body
        if body is None or body.stream is None or not body.left_bytes:
            return None
        return body.stream.body_view(body.left_bytes)

    def body_received(self, size: int, now_ns: int) -> None:
        """Take so many bytes that were written into the view."""
        self.now_ns = self.received_ns = now_ns
        body = self._body
        assert body is not None
        assert body.stream is not None
        body.left_bytes -= size
        if not self.is_ended:
            body.stream.body_filled(size)
            if not body.left_bytes and not body.padding_bytes:
                self._end_body(body)

    def lost(self) -> None:
        """Hear that the transport is gone: every call is lost."""
        self.is_ended = True
        self._body = self._block = None
        for stream in list(self.streams.values()):
            self._lose(stream)
        self.out.clear()

    def end(self, code: ErrorCode, text: str) -> None:
        """End the connection with GOAWAY; every call is lost."""
        if self.is_ended:
            return
        self.is_ended = True
        self.ended_ns = self.now_ns
        self._tail = b""
        self._body = self._block = None
        for stream in list(self.streams.values()):
            self._lose(stream)
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
        self.put(frames.frame(frames.PING, 0, 0, _DRAIN_PING))

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
        self.put(frames.frame(frames.PING, 0, 0, _ALIVE_PING))

    @property
    def is_mid_frame(self) -> bool:
        """Whether a frame, or a header block, has arrived in part."""
        return bool(self._tail or self._block or self._body)

    def forget_heads(self) -> None:
        """Free what only pays while requests come."""
        self._memo = _NO_MEMO

    def state_of(self, stream_id: int) -> State:
        """Return the state of a stream's number."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            return stream.state
        if stream_id > self.last_id or not stream_id & 1:
            return State.IDLE
        return State.RESET if self.was_reset(stream_id) else State.CLOSED

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
            high, low, kind, flags, stream_id = unpack_head(data, end)
            at = end
            start = end + HEAD_BYTES
            end = start + (high << 8 | low)
            if kind > HEADERS or end > size or self._block is not None:
                end = self._other(data, start, end, kind, flags, stream_id)
                if end < 0:
                    self._tail = data[at:]
                    return
            elif kind == DATA:
                stream = streams.get(stream_id)
                if (
                    stream is None
                    or flags > END_STREAM
                    or start == end
                    or stream.state is not OPEN
                    or self._lengths
                ):
                    self._on_data(data, start, end, flags, stream_id)
                    continue
                self._unreturned_bytes += end - start
                if self._unreturned_bytes > self.limits.connection_window_bytes >> 1:
                    self._return_window()
                if flags:
                    stream.state = HALF_CLOSED
                else:
                    stream.unreturned_bytes += end - start
                    if stream.unreturned_bytes > self.limits.stream_window_bytes >> 1:
                        self.return_window(stream)
                stream.take_data(data, start, end, flags)
            elif (
                flags | END_STREAM == WHOLE_HEAD
                and self.last_id < stream_id <= MAX_STREAM_ID
                and stream_id & 1
                and len(streams) < self.stream_limit
            ):
                block = data[start:end]
                head = self._memo.get(block) or self._read_head(block)
                self.last_id = stream_id
                self.opened += 1
                stream = streams[stream_id] = self._open(self, stream_id, head)
                if flags == WHOLE_HEAD or head.is_eager:
                    self._begin(stream, head, flags)
            else:
                self._on_headers(data[start:end], flags, stream_id)
        if end < size:
            self._tail = data[end:] if end else data

    def _other(
        self, data: bytes, start: int, end: int, kind: int, flags: int, stream_id: int
    ) -> int:
        """Take any other frame; return where the next one begins, or -1 if it is incomplete."""
        stream_id &= MAX_STREAM_ID
        rule = frames.RULES.get(kind, frames.UNKNOWN)
        self._check_frame(rule, end - start, kind, stream_id)
        if end > len(data):
            if kind not in (DATA, *FRAMES) or (kind == DATA and end - start > SMALL_BODY_BYTES):
                return self._begin_body(data, start, end, kind, flags, stream_id)
            return -1
        if rule.cost:
            self._spend(rule.cost)
        if kind == DATA:
            self._on_data(data, start, end, flags, stream_id)
        elif kind in FRAMES:
            FRAMES[kind](self, data[start:end], flags, stream_id)
        return end

    def _check_frame(self, rule: frames.Rule, size: int, kind: int, stream_id: int) -> None:
        """Refuse a frame by its first nine bytes."""
        if size > self.limits.frame_bytes:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame too large")
        block = self._block
        if block is not None and (kind != frames.CONTINUATION or stream_id != block.stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
        if rule.on_stream is not None and rule.on_stream != bool(stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "frame on the wrong stream")
        if rule.longest == 0 and size > self._block_limit:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
        if size < rule.shortest or size > rule.longest > 0:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame of a wrong size")

    @property
    def _block_limit(self) -> int:
        """Largest header block: more than one that the header list's limit lets through."""
        return max(2 * self.limits.header_bytes, MIN_BLOCK_BYTES)

    def _spend(self, cost: int) -> None:
        """Pay for a frame that does no work."""
        self._budget.tokens -= cost
        if self._budget.tokens >= 0:
            return
        moved = self.returned_bytes + self.granted_bytes - self.send_window
        calls = max(0, self.opened - self.resets - len(self.streams))
        work = calls * frames.CALL_CREDIT + moved // frames.BYTES_PER_TOKEN
        limits = self.limits
        if not self._budget.refill(
            limits.control_tokens, limits.control_tokens_per_s, self.now_ns, work
        ):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that do no work")

    # Requests: heads, bodies, and their end.

    def _read_head(self, block: bytes) -> RequestHead:
        """Decode a header block that is not in the memo."""
        generation, fields = self._decode(block)
        application = self._application
        head = application.oversized_head() if fields is None else application.read_head(fields)
        assert self._decoder is not None
        if self._decoder.generation != generation:
            self._memo = _NO_MEMO
        else:
            if self._memo is _NO_MEMO or len(self._memo) >= self.limits.memoised_heads:
                self._memo = {}
            self._memo[block] = head
        return head

    def _decode(self, block: bytes) -> tuple[int, Fields | None]:
        """Return the table's generation before the block, and the list unless it is too large."""
        decoder = self._decoder
        if decoder is None:
            decoder = self._decoder = Decoder(self.limits.header_bytes)
        generation = decoder.generation
        try:
            return generation, decoder.decode(block)
        except HeaderListTooLarge:
            return generation, None
        except HpackError as exc:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(exc)) from None

    def _begin(self, stream: Stream, head: RequestHead, flags: int) -> None:
        """Start a request that needs more than to be there."""
        is_last = flags & END_STREAM
        if head.is_malformed or (is_last and head.content_length):
            self.reset(stream, ErrorCode.PROTOCOL_ERROR)
            return
        if is_last:
            stream.state = HALF_CLOSED
        elif head.content_length is not None:
            if self._lengths is None:
                self._lengths = {}
            self._lengths[stream.stream_id] = head.content_length
        stream.take_head(is_last=bool(is_last))

    def _on_headers(self, payload: bytes, flags: int, stream_id: int) -> None:
        """Take a HEADERS frame of any form."""
        stream_id &= MAX_STREAM_ID
        self._check_frame(frames.RULES[HEADERS], len(payload), HEADERS, stream_id)
        start, end = _unpadded(payload, flags)
        if flags & frames.PRIORITISED:
            if end - start < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "no room for the priority")
            if frames.unpack_u32(payload, start)[0] & MAX_STREAM_ID == stream_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "stream depends on itself")
            start += 5
        if not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client's stream has an odd number")
        self._block = _Block(stream_id, flags, payload[start:end])
        if flags & END_HEADERS:
            self._end_block()

    def _on_continuation(self, payload: bytes, flags: int, stream_id: int) -> None:
        block = self._block
        if block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        if len(block.fragments) + len(payload) > self._block_limit:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
        block.fragments += payload
        if flags & END_HEADERS:
            self._end_block()

    def _end_block(self) -> None:
        """Take a header block that came in an unusual form: a request, trailers, or neither."""
        assert self._block is not None
        block, self._block = self._block, None
        stream_id, flags, fragments = block.stream_id, block.flags, bytes(block.fragments)
        reaction = REACTIONS[self.state_of(stream_id)][HEADERS]
        if reaction is Reaction.CLOSED_FAULT:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream")
        if stream_id <= self.last_id:
            _, fields = self._decode(fragments)
            if reaction is Reaction.TAKE:
                self._take_trailers(self.streams[stream_id], fields, flags)
            else:
                self._late(reaction, stream_id)
            return
        head = self._memo.get(fragments) or self._read_head(fragments)
        self.last_id = stream_id
        if len(self.streams) >= self.stream_limit:
            self._spend(frames.LATE_COST)
            self.put_reset(stream_id, ErrorCode.REFUSED_STREAM)
            return
        self.opened += 1
        stream = self.streams[stream_id] = self._open(self, stream_id, head)
        if flags & END_STREAM or head.is_eager:
            self._begin(stream, head, flags)

    def _take_trailers(self, stream: Stream, fields: Fields | None, flags: int) -> None:
        """End a request with a header block; what the fields say is nobody's business here."""
        try:
            if fields is None or not flags & END_STREAM:
                raise MalformedHead
            check_trailers(fields)
        except MalformedHead:
            self.fault(stream, ErrorCode.PROTOCOL_ERROR)
            return
        if self._is_short(stream, 0, END_STREAM):
            return
        stream.state = HALF_CLOSED
        stream.take_data(b"", 0, 0, END_STREAM)

    def _on_data(self, data: bytes, start: int, end: int, flags: int, stream_id: int) -> None:
        """Take a complete DATA frame of any form."""
        stream_id &= MAX_STREAM_ID
        self._check_frame(frames.RULES[DATA], end - start, DATA, stream_id)
        size = end - start
        if flags & frames.PADDED:
            first, last = _unpadded(data[start:end], flags)
            start, end = start + first, start + last
        stream = self._body_stream(stream_id, size, end - start, flags)
        if stream is None:
            return
        if flags & END_STREAM:
            stream.state = HALF_CLOSED
        elif start == end:
            self._spend(frames.EMPTY_DATA_COST)
            return
        stream.take_data(data, start, end, flags & END_STREAM)

    def _body_stream(self, stream_id: int, size: int, body_bytes: int, flags: int) -> Stream | None:
        """Count a DATA frame, and return who takes it, if it may come at all."""
        self._unreturned_bytes += size
        if self._unreturned_bytes > self.limits.connection_window_bytes >> 1:
            self._return_window()
        reaction = REACTIONS[self.state_of(stream_id)][DATA]
        if reaction is not Reaction.TAKE:
            self._late(reaction, stream_id)
            return None
        stream = self.streams[stream_id]
        if not flags & END_STREAM:
            stream.unreturned_bytes += size
            if stream.unreturned_bytes > self.limits.stream_window_bytes >> 1:
                self.return_window(stream)
        if stream.state is not OPEN or self._is_short(stream, body_bytes, flags):
            return None
        return stream

    def _is_short(self, stream: Stream, body_bytes: int, flags: int) -> bool:
        """Whether the body differs from its announced length; the stream has been reset then."""
        if not self._lengths or stream.stream_id not in self._lengths:
            return False
        left = self._lengths[stream.stream_id] = self._lengths[stream.stream_id] - body_bytes
        if left < 0 or (left and flags & END_STREAM):
            self.fault(stream, ErrorCode.PROTOCOL_ERROR)
            return True
        if flags & END_STREAM:
            del self._lengths[stream.stream_id]
        return False

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
            body.stream = self._body_stream(stream_id, size, body.left_bytes, flags)
            body.is_last = flags & END_STREAM
        else:
            self._spend(frames.UNKNOWN.cost)
        return self._take_body(body, data, start)

    def _take_body(self, body: _Body, data: bytes, start: int) -> int:
        """Pass on what has come of a DATA frame; return where the next frame begins."""
        end = min(len(data), start + body.left_bytes)
        body.left_bytes -= end - start
        stream = body.stream
        if end > start and stream is not None and stream.state is OPEN:
            stream.take_data(data, start, end, 0)
        start = end
        if not body.left_bytes:
            end = min(len(data), start + body.padding_bytes)
            body.padding_bytes -= end - start
            if not body.padding_bytes:
                self._end_body(body)
        return end

    def _end_body(self, body: _Body) -> None:
        self._body = None
        stream = body.stream
        if body.is_last and stream is not None and stream.state is OPEN:
            stream.state = HALF_CLOSED
            stream.take_data(b"", 0, 0, END_STREAM)

    def _return_window(self) -> None:
        """Grant again what has arrived on the connection."""
        size = self._unreturned_bytes
        self._unreturned_bytes = 0
        self.returned_bytes += size
        self.put(frames.window_update(0, size))

    def return_window(self, stream: Stream) -> None:
        """Grant again what has arrived on a stream, unless its user takes none."""
        if stream.unreturned_bytes > self.limits.stream_window_bytes:
            self.fault(stream, ErrorCode.FLOW_CONTROL_ERROR)
        elif not stream.is_paused and stream.unreturned_bytes:
            self.put(frames.window_update(stream.stream_id, stream.unreturned_bytes))
            stream.unreturned_bytes = 0

    # The other frames.

    def _on_priority(self, payload: bytes, flags: int, stream_id: int) -> None:
        """Priorities are not used; a broken one ends its stream."""
        is_short = len(payload) != 5
        if is_short or frames.unpack_u32(payload, 0)[0] & MAX_STREAM_ID == stream_id:
            code = ErrorCode.FRAME_SIZE_ERROR if is_short else ErrorCode.PROTOCOL_ERROR
            stream = self.streams.get(stream_id)
            if stream is not None:
                self.fault(stream, code)
            else:
                self.put_reset(stream_id, code)

    def _on_rst_stream(self, payload: bytes, flags: int, stream_id: int) -> None:
        reaction = REACTIONS[self.state_of(stream_id)][frames.RST_STREAM]
        if reaction is Reaction.TAKE:
            stream = self.streams[stream_id]
            if not stream.is_done:
                self._spend(frames.CANCEL_COST)
            self._lose(stream)
        else:
            self._late(reaction, stream_id)

    def _on_settings(self, payload: bytes, flags: int, stream_id: int) -> None:
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "an answer with settings")
            return
        settings.apply(self, settings.read(payload))
        self.put(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self.pump()

    def _on_push_promise(self, payload: bytes, flags: int, stream_id: int) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client does not push")

    def _on_ping(self, payload: bytes, flags: int, stream_id: int) -> None:
        if not flags & frames.ACK:
            self.put(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif payload == _DRAIN_PING and self.is_draining:
            self.close_when_served()

    def _on_goaway(self, payload: bytes, flags: int, stream_id: int) -> None:
        """The peer starts no more calls; those under way go on."""

    def _on_window_update(self, payload: bytes, flags: int, stream_id: int) -> None:
        size = frames.unpack_u32(payload)[0] & MAX_STREAM_ID
        if stream_id:
            self._grow_stream_window(stream_id, size)
            return
        self.granted_bytes += size
        self.send_window += size
        if not size:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a window update of nothing")
        if self.send_window > frames.MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "window too large")
        if self.ready:
            self.pump()

    def _grow_stream_window(self, stream_id: int, size: int) -> None:
        reaction = REACTIONS[self.state_of(stream_id)][frames.WINDOW_UPDATE]
        if reaction is not Reaction.TAKE:
            self._late(reaction, stream_id)
            return
        stream = self.streams[stream_id]
        stream.window_bytes += size
        if not size:
            self.fault(stream, ErrorCode.PROTOCOL_ERROR)
        elif self.initial_window + stream.window_bytes > frames.MAX_WINDOW:
            self.fault(stream, ErrorCode.FLOW_CONTROL_ERROR)
        else:
            self.window_grown(stream)

    def _late(self, reaction: Reaction, stream_id: int) -> None:
        """React to a frame that its stream's state does not take."""
        if reaction is Reaction.FAULT:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "frame on an idle stream")
        self._spend(frames.LATE_COST)
        if reaction is Reaction.RESET:
            stream = self.streams.get(stream_id)
            if stream is not None:
                self.fault(stream, ErrorCode.STREAM_CLOSED)
            else:
                self.put_reset(stream_id, ErrorCode.STREAM_CLOSED)

    def fault(self, stream: Stream, code: ErrorCode) -> None:
        """End a stream by its peer's fault."""
        self._lose(stream)
        self.put_reset(stream.stream_id, code)

    def _lose(self, stream: Stream) -> None:
        """End a stream without a word to the peer, and tell its user."""
        self.close_stream(stream)
        if not stream.is_done:
            stream.is_done = True
            stream.lost()

    def close_stream(self, stream: Stream) -> None:
        """Forget a stream."""
        super().close_stream(stream)
        if self._lengths:
            self._lengths.pop(stream.stream_id, None)


def _unpadded(payload: bytes, flags: int) -> tuple[int, int]:
    """Return where the content of a payload begins and ends."""
    if not flags & frames.PADDED:
        return 0, len(payload)
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return 1, len(payload) - payload[0]


FRAMES: Final[dict[int, Callable[[Connection, bytes, int, int], None]]] = {
    HEADERS: Connection._on_headers,
    frames.PRIORITY: Connection._on_priority,
    frames.RST_STREAM: Connection._on_rst_stream,
    frames.SETTINGS: Connection._on_settings,
    frames.PUSH_PROMISE: Connection._on_push_promise,
    frames.PING: Connection._on_ping,
    frames.GOAWAY: Connection._on_goaway,
    frames.WINDOW_UPDATE: Connection._on_window_update,
    frames.CONTINUATION: Connection._on_continuation,
}
"""Who takes a frame, but for DATA, which is not cut out of the input."""
