"""What frames mean for streams: requests begin, bring data, and end.

Knows RFC 9113 as a server needs it; not how frames are found in the input (`connection`), and
nothing of what streams are for: that is the application's, which reads heads and makes streams.

Rules for this file:
  * Header blocks are decoded in the order of arrival, also those of streams that are refused: the
    compression state belongs to the connection.
  * A frame that does no work is paid for (`spend`; `frames.RULES` has the prices).
  * Window of the connection is given back as data arrive: it bounds what is under way. Window of a
    stream is given back as long as its user takes data.
  * A fault of the peer's ends the stream (`fault`) where RFC 9113 allows it; otherwise it is a
    ConnectionFault.

Theory of operation: a header block that left the compression table as it was means the same again,
until another one changes the table. So decoded heads are kept by their bytes (`memo`), and all
forgotten with such a change. What a frame does to a stream in which state is `stream.REACTIONS`;
`state_of` reads the state off the stream, or off its number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

from gateway.http2 import frames
from gateway.http2.budget import Budget
from gateway.http2.fields import Fields, MalformedHead, RequestHead, check_trailers
from gateway.http2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_STREAM_ID,
    ConnectionFault,
    ErrorCode,
)
from gateway.http2.hpack import Decoder, HeaderListTooLarge, HpackError
from gateway.http2.limits import Limits
from gateway.http2.outbound import Outbound, Owner
from gateway.http2.stream import HALF_CLOSED, OPEN, REACTIONS, Reaction, State, Stream

MIN_BLOCK_BYTES: Final = 32 << 10
_NO_MEMO: Final[dict[bytes, RequestHead]] = {}
"""Of every connection that has not had a request; never written to."""


class HeaderBlock:
    """A header block of which frames are missing."""

    __slots__ = ("flags", "fragments", "stream_id")

    def __init__(self, stream_id: int, flags: int, fragment: bytes) -> None:
        self.stream_id = stream_id
        self.flags = flags
        self.fragments = bytearray(fragment)


class Application(Protocol):
    """What the streams mean."""

    def read_head(self, fields: Fields) -> RequestHead:
        """Return what a request's header list means."""

    def oversized_head(self) -> RequestHead:
        """Return the head of a request whose header list is over the limit."""

    @property
    def open(self) -> Callable[[Inbound, int, Any], Stream]:  # Any: what `read_head` returned
        """Makes the object of a new request, of connection, number and head."""


class Inbound(Outbound):
    """What a connection receives, frame by frame."""

    __slots__ = (
        "_application",
        "_budget",
        "_decoder",
        "_is_table_as_before",
        "block",
        "cancelled",
        "last_id",
        "lengths",
        "memo",
        "open_stream",
        "opened",
        "returned_bytes",
        "stream_limit",
        "unreturned_bytes",
    )

    def __init__(self, application: Application, owner: Owner, limits: Limits, now_ns: int) -> None:
        super().__init__(owner, limits, now_ns)
        self._application = application
        self.open_stream = application.open
        self._decoder: Decoder | None = None
        self._is_table_as_before = False
        """The last block has not changed the table."""
        self.memo = _NO_MEMO
        self.block: HeaderBlock | None = None
        """What has come of a header block of several frames."""
        self.lengths: dict[int, int] | None = None
        """Of streams that announced a length: what is missing of it."""
        self._budget = Budget(limits.control_tokens, now_ns)
        self.unreturned_bytes = 0
        self.returned_bytes = 0
        """Window of the connection given back to the peer so far."""
        self.last_id = 0
        """The highest stream that the peer has opened."""
        self.opened = 0
        """Streams so far."""
        self.cancelled = 0
        """Streams that the peer has reset before they were answered."""
        self.stream_limit = limits.streams_per_connection

    def forget_heads(self) -> None:
        """Free what only pays while requests come."""
        self.memo = _NO_MEMO

    def state_of(self, stream_id: int) -> State:
        """Return the state of a stream's number."""
        stream = self.streams.get(stream_id)
        if stream is not None:
            return stream.state
        if stream_id > self.last_id or not stream_id & 1:
            return State.IDLE
        return State.RESET if self.was_reset(stream_id) else State.CLOSED

    @property
    def block_limit(self) -> int:
        """Largest header block: more than one that the header list's limit lets through."""
        return max(2 * self.limits.header_bytes, MIN_BLOCK_BYTES)

    def spend(self, cost: int) -> None:
        """Pay for a frame that does no work."""
        self._budget.tokens -= cost
        if self._budget.tokens >= 0:
            return
        moved = self.returned_bytes + self.granted_bytes - self.send_window
        calls = max(0, self.opened - self.cancelled - self.resets - len(self.streams))
        work = calls * frames.CALL_CREDIT + self.parts * frames.PART_CREDIT
        work += moved // frames.BYTES_PER_TOKEN
        limits = self.limits
        if not self._budget.refill(
            limits.control_tokens, limits.control_tokens_per_s, self.now_ns, work
        ):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that do no work")

    def decode_head(self, block: bytes) -> RequestHead:
        """Decode the header block of a request that is not in the memo."""
        fields = self._decode(block)
        application = self._application
        head = application.oversized_head() if fields is None else application.read_head(fields)
        if self._is_table_as_before:
            if self.memo is _NO_MEMO or len(self.memo) >= self.limits.memoised_heads:
                self.memo = {}
            self.memo[block] = head
        return head

    def _decode(self, block: bytes) -> Fields | None:
        """Return the header list of any block; None if it is too large.

        Invariant: every block passes here, so that the memo is gone whenever the table has changed.
        """
        decoder = self._decoder
        if decoder is None:
            decoder = self._decoder = Decoder(self.limits.header_bytes)
        generation = decoder.generation
        try:
            return decoder.decode(block)
        except HeaderListTooLarge:
            return None
        except HpackError as exc:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(exc)) from None
        finally:
            self._is_table_as_before = decoder.generation == generation
            if not self._is_table_as_before:
                self.memo = _NO_MEMO

    def begin(self, stream: Stream, head: RequestHead, flags: int) -> None:
        """Start a request that needs more than to be there."""
        is_last = flags & END_STREAM
        if head.is_malformed or (is_last and head.content_length):
            self.reset(stream, ErrorCode.PROTOCOL_ERROR)
            return
        if is_last:
            stream.state = HALF_CLOSED
        elif head.content_length is not None:
            if self.lengths is None:
                self.lengths = {}
            self.lengths[stream.stream_id] = head.content_length
        stream.take_head(is_last=bool(is_last))

    def headers(self, payload: bytes, flags: int, stream_id: int) -> None:
        """Take a HEADERS frame of any form."""
        start, end = _unpadded(payload, flags)
        if flags & frames.PRIORITISED:
            if end - start < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "no room for the priority")
            if frames.unpack_u32(payload, start)[0] & MAX_STREAM_ID == stream_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "stream depends on itself")
            start += 5
        if not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client's stream has an odd number")
        self.block = HeaderBlock(stream_id, flags, payload[start:end])
        if flags & END_HEADERS:
            self._end_block()

    def continuation(self, payload: bytes, flags: int, _: int) -> None:
        """Take a CONTINUATION frame; that it is of the same stream has been seen."""
        block = self.block
        if block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        if len(block.fragments) + len(payload) > self.block_limit:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
        block.fragments += payload
        if flags & END_HEADERS:
            self._end_block()

    def _end_block(self) -> None:
        """Take a header block that came in an unusual form: a request, trailers, or neither."""
        assert self.block is not None
        block, self.block = self.block, None
        stream_id, flags, fragments = block.stream_id, block.flags, bytes(block.fragments)
        reaction = REACTIONS[self.state_of(stream_id)][HEADERS]
        if reaction is Reaction.CLOSED_FAULT:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream")
        if stream_id <= self.last_id:
            fields = self._decode(fragments)
            if reaction is Reaction.TAKE:
                self._take_trailers(self.streams[stream_id], fields, flags)
            else:
                self.late(reaction, stream_id)
            return
        head = self.memo.get(fragments) or self.decode_head(fragments)
        self.last_id = stream_id
        if len(self.streams) >= self.stream_limit:
            self.spend(frames.LATE_COST)
            self.put_reset(stream_id, ErrorCode.REFUSED_STREAM)
            return
        self.opened += 1
        stream = self.streams[stream_id] = self.open_stream(self, stream_id, head)
        if flags & END_STREAM or head.is_eager:
            self.begin(stream, head, flags)

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

    def data(self, data: bytes, start: int, end: int, flags: int, stream_id: int) -> None:
        """Take a complete DATA frame of any form."""
        size = end - start
        if flags & frames.PADDED:
            first, last = _unpadded(data[start:end], flags)
            start, end = start + first, start + last
        stream = self.body_stream(stream_id, size, end - start, flags)
        if stream is None:
            return
        if flags & END_STREAM:
            stream.state = HALF_CLOSED
        elif start == end:
            self.spend(frames.EMPTY_DATA_COST)
            return
        stream.take_data(data, start, end, flags & END_STREAM)

    def body_stream(self, stream_id: int, size: int, body_bytes: int, flags: int) -> Stream | None:
        """Count a DATA frame, and return who takes it, if it may come at all."""
        self.unreturned_bytes += size
        reaction = REACTIONS[self.state_of(stream_id)][DATA]
        if reaction is not Reaction.TAKE:
            self.late(reaction, stream_id)
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
        if not self.lengths or stream.stream_id not in self.lengths:
            return False
        left = self.lengths[stream.stream_id] = self.lengths[stream.stream_id] - body_bytes
        if left < 0 or (left and flags & END_STREAM):
            self.fault(stream, ErrorCode.PROTOCOL_ERROR)
            return True
        if flags & END_STREAM:
            del self.lengths[stream.stream_id]
        return False

    def return_connection_window(self) -> None:
        """Grant again what has arrived on the connection, if that is worth a frame."""
        size = self.unreturned_bytes
        if size <= self.limits.connection_window_bytes >> 1:
            return
        self.unreturned_bytes = 0
        self.returned_bytes += size
        self.put(frames.window_update(0, size))

    def return_window(self, stream: Stream) -> bool:
        """Grant again what has arrived on a stream, unless its user takes none.

        Returns:
            False if it was more than was granted, and the stream has ended for that.
        """
        if stream.unreturned_bytes > self.limits.stream_window_bytes:
            self.fault(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return False
        if not stream.is_paused and stream.unreturned_bytes:
            self.put(frames.window_update(stream.stream_id, stream.unreturned_bytes))
            stream.unreturned_bytes = 0
        return True

    def late(self, reaction: Reaction, stream_id: int) -> None:
        """React to a frame that its stream's state does not take."""
        if reaction is Reaction.FAULT:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "frame on an idle stream")
        self.spend(frames.LATE_COST)
        if reaction is Reaction.RESET:
            stream = self.streams.get(stream_id)
            if stream is not None:
                self.fault(stream, ErrorCode.STREAM_CLOSED)
            else:
                self.put_reset(stream_id, ErrorCode.STREAM_CLOSED)

    def fault(self, stream: Stream, code: ErrorCode) -> None:
        """End a stream by its peer's fault."""
        self.lose(stream)
        self.put_reset(stream.stream_id, code)

    def lose(self, stream: Stream) -> None:
        """End a stream without a word to the peer, and tell its user."""
        self.close_stream(stream)
        if not stream.is_done:
            stream.is_done = True
            stream.lost()

    def close_stream(self, stream: Stream) -> None:
        """Forget a stream."""
        super().close_stream(stream)
        if self.lengths:
            self.lengths.pop(stream.stream_id, None)


def _unpadded(payload: bytes, flags: int) -> tuple[int, int]:
    """Return where the content of a payload begins and ends."""
    if not flags & frames.PADDED:
        return 0, len(payload)
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than payload")
    return 1, len(payload) - payload[0]
