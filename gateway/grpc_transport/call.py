"""One call: a stream of HTTP/2 that carries gRPC messages, as a handler sees it.

Knows the protocol and its connection; not what methods do, no socket, no task.

Rules:
  * A handler answers once: the first of `reply`, `fail` and `finish` counts, later ones do nothing.
    So a handler need not know whether the client has gone, or the deadline has passed, meanwhile.
  * `on_cancel` is called at most once, and only if the call ends without the handler's answer:
    reset by the client, connection lost, refused in the middle, or too late. Never by `reply`.
  * An exception of a handler costs its own call and nothing else.
  * A unary method is started by its first message, as grpcio does it; what follows is dropped.
  * While reading is paused no message is handed over; what arrives is kept, and counted.

Theory of operation: nearly every message is the whole of one DATA frame; `take_data` takes it by
comparing the prefix with the frame's size, without any buffer. All else goes through a
MessageReader, which exists only while it holds something, or while reading is paused. SPENT stands
in its place when nothing more is to be read. Nearly every answer is one message with status OK that
the windows let through: `reply` writes its three frames in one piece, after the three comparisons
that `outbound` prescribes. All else goes through the connection's methods.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from typing import Final, cast

from gateway.grpc_transport import status
from gateway.grpc_transport.coding import TOO_MUCH, MessageRefused, deflate
from gateway.grpc_transport.head import CallHead, Raw, Sink
from gateway.grpc_transport.messages import PREFIX_BYTES, SPENT, MessageReader, unpack_prefix
from gateway.http2 import frames
from gateway.http2.frames import END_HEADERS, HEADERS, WHOLE_HEAD
from gateway.http2.inbound import Inbound
from gateway.http2.outbound import BULKY_BYTES
from gateway.http2.stream import CLOSED, HALF_CLOSED, OPEN, Stream

logger = logging.getLogger(__name__)

DEADLINE_GRACE_NS: Final = 20_000_000
"""The transport's own answer to a late call comes so much later, for handlers say more."""

_HEAD_FRAME: Final = frames.frame_head(len(status.HEAD), HEADERS, END_HEADERS, 0)[:5]
_pack_answer: Final = struct.Struct(f">5sI{len(status.HEAD)}sHBHIBI").pack
"""The head's frame, the head of a DATA frame, and the message's prefix."""
_pack_end: Final = struct.Struct(f">HBBBI{len(status.OK_TRAILERS)}s").pack
"""The frame of trailers of status OK, but for what a handler adds."""
_pack_prefix: Final = struct.Struct(">BI").pack
_HEAD: Final = status.HEAD
_OK: Final = status.OK_TRAILERS
_OK_BYTES: Final = len(_OK)


class Call(Stream):
    """One RPC."""

    __slots__ = (
        "_inflated_bytes",
        "_reader",
        "_sink",
        "deadline_ns",
        "on_cancel",
        "on_drained",
    )

    head: CallHead
    connection: Inbound

    def __init__(self, connection: Inbound, stream_id: int, head: CallHead) -> None:
        # The fields of Stream are set here as well: this runs once per request.
        self.connection = connection
        self.stream_id = stream_id
        self.head = head
        self.state = OPEN
        self.is_done = self.is_head_sent = self.is_paused = False
        self.queue = None
        self.window_bytes = self.unreturned_bytes = 0
        self._reader: MessageReader | None = None
        self._sink: Sink | None = None
        self._inflated_bytes = 0
        """Held until the call is answered: a small message may inflate to a large one."""
        timeout_ns = head.timeout_ns
        self.deadline_ns = None if timeout_ns is None else connection.now_ns + timeout_ns
        """Absolute, monotonic."""
        self.on_cancel: Callable[[], None] | None = None
        """Set by the handler: called if the call ends without its answer."""
        self.on_drained: Callable[[], None] | None = None
        """Set by the handler: called when a full output has room again."""

    # What a handler does.

    def reply(self, message: bytes, trailers: bytes = b"") -> None:
        """Answer with one message and status OK.

        Args:
            message: the answer.
            trailers: more fields for the trailers, from `encode_metadata`.
        """
        connection = self.connection
        size = len(message) + PREFIX_BYTES
        tail = _OK_BYTES + len(trailers)
        if (
            self.state is HALF_CLOSED
            and not self.is_head_sent
            and size <= connection.direct_bytes
            and size <= connection.send_window
            and size <= connection.initial_window + self.window_bytes
            and tail <= frames.DEFAULT_FRAME_BYTES
            and self._sink is None
            and not self.head.coding
            and not self._inflated_bytes
        ):
            stream_id = self.stream_id
            connection.send_window -= size
            high, low = size >> 8, size & 0xFF
            connection.out += (
                _pack_answer(_HEAD_FRAME, stream_id, _HEAD, high, low, 0, stream_id, 0, size - 5),
                message,
                _pack_end(tail >> 8, tail & 0xFF, HEADERS, WHOLE_HEAD, stream_id, _OK),
                trailers,
            )
            if size > BULKY_BYTES:
                connection.is_bulky = True
            self.is_done = True
            self.state = CLOSED
            self.on_cancel = None
            del connection.streams[stream_id]
            if not connection.is_dirty:
                connection.mark()
        else:
            self.send(message)
            self.finish(trailers)

    def send(self, message: bytes) -> None:
        """Send one message of several."""
        if self.is_done:
            return
        if not self.is_head_sent:
            self.connection.send_head(self, self.head.response_head)
        compressed = deflate(message, self.head.coding) if self.head.coding else None
        if compressed is None:
            self.connection.send_data(self, _pack_prefix(0, len(message)), message)
        else:
            self.connection.send_data(self, _pack_prefix(1, len(compressed)), compressed)

    def send_metadata(self, metadata: bytes) -> None:
        """Send the initial metadata, from `encode_metadata`, ahead of the first message."""
        if not self.is_done and not self.is_head_sent:
            self.connection.send_head(self, self.head.response_head + metadata)

    def finish(self, trailers: bytes = b"") -> None:
        """End with status OK."""
        self.fail(status.OK, "", trailers)

    def fail(self, code: int, text: str, trailers: bytes = b"") -> None:
        """End with a status.

        Args:
            code: the status.
            text: for people; any characters.
            trailers: more fields for the trailers, from `encode_metadata`.
        """
        if self.is_done:
            return
        block = status.trailers(code, text, trailers)
        if not self.is_head_sent:
            block = status.ONLY_TRAILERS + block
        self._leave()
        self.connection.send_end(self, block)

    def pause_reading(self) -> None:
        """Take no more messages for now; the client gets no new window either."""
        self.is_paused = True
        if self._reader is None:
            self._reader = self._new_reader()

    def resume_reading(self) -> None:
        """Take messages again, those first that came meanwhile."""
        if not self.is_paused:
            return
        self.is_paused = False
        if self.is_done:
            return
        reader = self._reader
        if reader is not None and reader is not SPENT:
            data = reader.kept()
            self._gather(data, 0, len(data), is_last=reader.is_last_kept)
        if not self.is_paused and not self.is_done:
            self.connection.return_window(self)

    @property
    def is_full(self) -> bool:
        """Whether the client reads too slowly: wait for `on_drained` before sending more."""
        queue = self.queue
        return queue is not None and queue.was_full

    # What the connection tells.

    def take_head(self, *, is_last: bool) -> None:
        """Refuse the call, or start a streaming one."""
        head = self.head
        if head.http_refusal is not None:
            self._leave()
            self.connection.send_end(self, head.http_refusal)
        elif head.refusal is not None:
            self.fail(*head.refusal)
        else:
            if head.is_streaming:
                self._start()
            if is_last and not self.is_done:
                self._end_of_request()

    def take_data(self, data: bytes, start: int, end: int, is_last: int) -> None:
        """Take a part of the request; the whole of one message is the usual case."""
        size = end - start - PREFIX_BYTES
        if (
            self._reader is None
            and size >= 0
            and unpack_prefix(data, start) == (0, size)
            and size <= self.head.max_message_bytes
        ):
            message = data[start + PREFIX_BYTES : end]
            if self._sink is None:
                self._reader = SPENT
                try:
                    self.head.start(self, message)
                except Exception as exc:  # a handler's bug costs its call only
                    self._broken(exc)
            else:
                self._deliver(message, is_last)
        elif self._reader is not SPENT:
            self._gather(data, start, end, is_last=bool(is_last))

    def lost(self) -> None:
        """Hear that the client has given up."""
        self._cancelled(self._leave())

    def drained(self) -> None:
        """Tell the handler that there is room."""
        if self.on_drained is not None:
            self._guard(self.on_drained)

    def overflowed(self) -> None:
        """Refuse an answer that the client does not read."""
        self.connection.drop_queue(self)
        self._refuse(*TOO_MUCH)

    def sweep(self, now_ns: int) -> None:
        """Answer if it is too late, or if the request has stopped in the middle."""
        if self.is_done:
            return
        deadline_ns = self.deadline_ns
        if deadline_ns is not None and now_ns > deadline_ns + DEADLINE_GRACE_NS:
            self._refuse(status.DEADLINE_EXCEEDED, "Deadline Exceeded")
        elif self.state is OPEN and self._reader is not SPENT and not self.is_paused:
            if self._reader is None:
                if not self.head.is_streaming:
                    self._reader = self._new_reader()
            elif self._reader.has_stalled(now_ns) and not (
                self.head.is_streaming and self._reader.is_empty
            ):
                self._refuse(status.UNAVAILABLE, "the request has stopped arriving")

    def body_view(self, size: int) -> memoryview | None:
        """Return where a message under way goes on."""
        if self._reader is None or self._reader is SPENT or self.is_paused:
            return None
        try:
            return self._reader.view(size)
        except MessageRefused as refused:
            self._refuse(refused.code, refused.text)
            return None

    def body_filled(self, size: int) -> None:
        """Hand over the message if that was its last part."""
        reader = self._reader
        if reader is None or reader is SPENT:
            return
        try:
            reader.fill(size)
            if reader.message is not None and self._hand_over(reader) and not self.is_paused:
                self._reader = None
        except MessageRefused as refused:
            self._refuse(refused.code, refused.text)

    # How it gets there.

    def _start(self) -> None:
        """Begin a streaming call; its handler returns what takes the messages."""
        try:
            self._sink = cast("Sink", self.head.start(self))
        except Exception as exc:  # a handler's bug costs its call only
            self._broken(exc)
        if self.is_done:
            self._sink = None

    def _deliver(self, message: Raw, is_last: int) -> None:
        """Hand a message to the handler; `take_data` does the same for a unary call."""
        try:
            if self._sink is not None:
                self._sink(message)
                if is_last and self._sink is not None:
                    self._sink(None)
            else:
                self._reader = SPENT
                self.head.start(self, message)
        except Exception as exc:  # a handler's bug costs its call only
            self._broken(exc)

    def _gather(self, data: bytes, start: int, end: int, *, is_last: bool) -> None:
        """Take a part of the request that is not one message."""
        reader = self._reader
        if reader is None:
            reader = self._reader = self._new_reader()
        try:
            while start < end:
                if self.is_paused:
                    reader.keep(data[start:end], is_last=is_last)
                    return
                start = reader.take(data, start, end)
                if reader.message is not None and not self._hand_over(reader):
                    return
        except MessageRefused as refused:
            self._refuse(refused.code, refused.text)
            return
        if reader.is_empty and not self.is_paused:
            self._reader = None
        if not is_last:
            return
        if self.is_paused:
            reader.is_last_kept = True
        else:
            self._end_of_request()

    def _hand_over(self, reader: MessageReader) -> bool:
        """Hand over the message that is complete; false if the call reads no more."""
        message, reader.message = reader.message, None
        assert message is not None
        if reader.is_inflated and not self.head.is_streaming:
            if not self.connection.hold(len(message)):
                raise MessageRefused(*TOO_MUCH)
            self._inflated_bytes = len(message)
        self._deliver(message, 0)
        return self._reader is not SPENT

    def _end_of_request(self) -> None:
        """Hear that the client has sent everything."""
        reader = self._reader
        if reader is SPENT:
            return
        if reader is not None and not reader.is_empty:
            self._refuse(status.INTERNAL, "the request ended in the middle of a message")
        elif self._sink is not None:
            try:
                self._sink(None)
            except Exception as exc:  # a handler's bug costs its call only
                self._broken(exc)
        else:
            self.fail(status.UNIMPLEMENTED, "the call came without a message")

    def _new_reader(self) -> MessageReader:
        head = self.head
        return MessageReader(self.connection, head.encoding, head.max_message_bytes)

    def _broken(self, exc: Exception) -> None:
        path = self.head.path.decode("latin-1")
        logger.error("the handler of a call has failed", exc_info=exc, extra={"path": path})
        self.fail(status.INTERNAL, status.INTERNAL_TEXT)

    def _refuse(self, code: int, text: str) -> None:
        """End the call in place of its handler, which is told."""
        if not self.is_done:
            on_cancel = self.on_cancel
            self.fail(code, text)
            self._cancelled(on_cancel)

    def _leave(self) -> Callable[[], None] | None:
        """Let go of what belongs to a call under way; return whom to tell of a cancellation."""
        reader, self._reader = self._reader, SPENT
        if reader is not None and reader is not SPENT:
            reader.release()
        self.connection.held_bytes -= self._inflated_bytes
        self._inflated_bytes = 0
        on_cancel, self.on_cancel = self.on_cancel, None
        self._sink = self.on_drained = None
        return on_cancel

    def _cancelled(self, on_cancel: Callable[[], None] | None) -> None:
        if on_cancel is not None:
            self._guard(on_cancel)

    def _guard(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as exc:  # a handler's bug costs its call only
            self._broken(exc)
