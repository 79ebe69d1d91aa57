"""What one connection reads: heads, bodies, and how far it may read on.

Rules:
- Bytes are read as far as there is room: not while the peer does not read its answers, and behind
  a request that is not answered only as long as the queue is not full: in number, or in bytes of
  bodies as they are after decompression and of answers. What was read and cannot be taken yet is
  the rest, at most one read, and the transport pauses.
- Infer calls behind each other are served at the same time; any other request waits for all before
  it, and all behind it wait for its end.
- A body that is not complete with its head gets a buffer of its length, and the transport reads
  into that: from the socket to the tensor there is one copy, the kernel's. Its end is the buffer's
  end, so nothing of the next request gets into it. All other reads share one buffer per listener,
  which is copied out of before anything else can read.
- Who is refused before its body was read is answered and read on for a while (it lingers), as a
  connection that is closed with unread bytes may lose the answer.

Phases say what the next bytes are: HEAD -> BUFFER or STREAM -> HEAD; any -> ENDED, when the last
request is known. A request without a body, or whose body came with its head, never leaves HEAD.
Read next: queue.py, the order of answers; connection.py, the life of a connection.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

from uvicorn.protocols.http.flow_control import FlowControl

from engines.tensors import Raw
from gateway.errors import PayloadTooLarge
from gateway.http_api import body as bodies
from gateway.http_api.fast.answers import CONTINUE
from gateway.http_api.fast.exchange import Exchange, Notice
from gateway.http_api.fast.framing import (
    BadFraming,
    BodyBuffer,
    ChunkedFraming,
    Framing,
    LengthFraming,
    Sink,
)
from gateway.http_api.fast.heads import BadHead, Head
from gateway.http_api.fast.queue import MAX_PIPELINED, NEVER, AnswerQueue
from gateway.http_api.fast.shared import Phase, Shared
from gateway.http_api.fast.slow import SlowRequest

_HEAD_END: Final = b"\r\n\r\n"
_EMPTY_LINES: Final = re.compile(rb"[\r\n]*")
_NO_HEAD: Final = -1
_TEXT_LINE: Final = b"content-type: text/plain; charset=utf-8\r\n"
_JSON_LINE: Final = b"content-type: application/json\r\n"
_INVALID: Final = b"Invalid HTTP request received."
"""In uvicorn's words and form, which the other listeners use."""


class Reader:
    """The reading half of a connection; Connection is the other one."""

    __slots__ = (
        "_body",
        "_buffer",
        "_flow",
        "_framing",
        "_has_served",
        "_head",
        "_is_draining",
        "_lingers",
        "_owes_continue",
        "_phase",
        "_queue",
        "_quiet",
        "_rest",
        "_shared",
        "_sink",
        "_slow",
        "_transport",
    )
    _transport: asyncio.Transport
    _queue: AnswerQueue
    _head: Head
    _framing: Framing
    _sink: Sink

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._phase = Phase.HEAD
        self._rest = b""
        self._buffer: BodyBuffer | None = None
        self._body = bytearray()
        """Of a chunked infer call."""
        self._slow: SlowRequest | None = None
        self._flow: FlowControl | None = None
        self._owes_continue = False
        """The client waits for leave to send its body, behind answers that are not ready."""
        self._is_draining = False
        self._lingers = False
        self._has_served = False
        """The first head has come."""
        self._quiet = 0
        """Ticks since something happened, or since what must end in time began."""

    def _feed(self, data: bytes) -> None:
        """Take bytes in order, as far as there is room; keep the rest."""
        position, size = 0, len(data)
        while position < size:
            if self._phase is Phase.HEAD:
                if self._must_wait():
                    self._wait(MAX_PIPELINED // 2)
                    break
                taken = self._take_request(data, position)
                if taken < 0:
                    break
                position = taken
            elif self._phase is Phase.STREAM:
                position = self._stream(data, position)
            else:
                break
        self._rest = data[position:] if self._phase is Phase.HEAD else b""

    def _must_wait(self) -> bool:
        queue = self._queue
        return (
            queue.is_stuck or self._slow is not None or (len(queue.awaited) > 0 and queue.is_full())
        )

    def _may_read(self) -> bool:
        """Whether nothing keeps the transport from reading."""
        is_waiting = self._queue.wake_at != NEVER and not self._owes_continue
        is_ahead = self._flow is not None and self._flow.read_paused
        return not (is_waiting or is_ahead or self._transport.is_closing())

    def _wait(self, wake_at: int) -> None:
        """Read nothing until there are no more than so many answers left."""
        self._queue.wake_at = wake_at
        self._transport.pause_reading()

    def go_on(self) -> None:
        """Read on after a wait; called by the loop."""
        if self._transport.is_closing():
            return
        if self._owes_continue:
            self._owes_continue = False
            self._transport.write(CONTINUE)
        rest, self._rest = self._rest, b""
        self._feed(rest)
        if self._may_read():
            self._transport.resume_reading()

    def _take_request(self, data: bytes, position: int) -> int:
        """Take a head and what there is of its body; return where that ends, < 0 for no head."""
        end = data.find(_HEAD_END, position) + 4
        if end == 3 or end - position > self._shared.bounds.header_bytes:
            return self._take_no_head(data, position)
        block = data[position:end]
        known = self._shared.heads.known
        head = known.recent.get(block) or known.get(block)
        if head is None:
            if block[0] in _HEAD_END:
                return _skip_empty_lines(data, position)
            try:
                head = self._shared.heads.read(block)
            except BadHead:
                return self._refuse_invalid(data)
        if head.target is None:
            return self._begin_slow(head, data, position, end)
        self._has_served = True
        stop = end + head.length
        if stop > len(data) or head.is_chunked or head.length > self._shared.service.limit_bytes:
            return self._begin_body(head, data, end)
        self._submit(head, data[end:stop])
        return stop

    def _take_no_head(self, data: bytes, position: int) -> int:
        """Wait for the end of a head, within bounds."""
        limit_bytes = self._shared.bounds.header_bytes
        end = data.find(_HEAD_END, position)
        size_bytes = (len(data) if end < 0 else end + len(_HEAD_END)) - position
        if size_bytes <= limit_bytes:
            begin = _skip_empty_lines(data, position)
            return begin if begin == len(data) else _NO_HEAD
        self._shared.books.bad_requests += 1
        sentence = f"the head of the request is larger than the limit of {limit_bytes} bytes"
        self._refuse(431, bodies.error_body(sentence), _JSON_LINE)
        return len(data)

    def _begin_body(self, head: Head, data: bytes, position: int) -> int:
        """Prepare for a body that has not come with its head; return how far it came."""
        if head.length > self._shared.service.limit_bytes:
            return self._refuse_large(head, data)
        self._head = head
        self._quiet = 0
        if head.expects_continue:
            self._owes_continue = True
            self._queue.wake_at = 0
            self._queue.wake()
        if head.is_chunked:
            self._stream_to(self._take_chunk)
            return position
        self._buffer = BodyBuffer(head.length, memoryview(data)[position:])
        self._phase = Phase.BUFFER
        return len(data)

    def _begin_slow(self, head: Head, data: bytes, position: int, end: int) -> int:
        """Hand a request to the application, once everything before it is answered."""
        if self._queue.awaited:
            self._wait(0)
            return _NO_HEAD
        self._has_served = True
        self._head = head
        self._quiet = 0
        if self._flow is None:
            self._flow = FlowControl(self._transport)
        try:
            self._slow = SlowRequest(
                self._shared.application,
                self._transport,
                self._flow,
                head,
                date=self._shared.service.answers.date,
                on_answered=self._slow_answered,
            )
        except BadHead:
            return self._refuse_invalid(data)
        if head.is_chunked or head.length:
            self._stream_to(self._slow.take)
        else:
            self._end_slow(self._slow)
        return end

    def _stream_to(self, sink: Sink) -> None:
        head = self._head
        self._framing = (
            ChunkedFraming(trailer_bytes=self._shared.bounds.header_bytes)
            if head.is_chunked
            else LengthFraming(head.length)
        )
        self._sink = sink
        self._phase = Phase.STREAM

    def _stream(self, data: bytes, position: int) -> int:
        """Take what belongs to the body; return where that ends."""
        self._quiet = 0
        try:
            position = self._framing.take(data, position, self._sink)
        except BadFraming:
            if self._head.target is None and self._slow is None:  # it was answered before its end
                self._phase = Phase.ENDED
                self._transport.close()
                return len(data)
            return self._refuse_invalid(data)
        except PayloadTooLarge:
            return self._refuse_large(self._head, data)
        if self._framing.is_done:
            self._phase = Phase.HEAD
            if self._head.target is None:
                self._end_slow(self._slow)
            else:
                body, self._body = self._body, bytearray()
                self._submit(self._head, body)
        return position

    def _take_chunk(self, piece: bytes) -> None:
        self._body += piece
        if len(self._body) > self._shared.service.limit_bytes:
            raise PayloadTooLarge(limit_bytes=self._shared.service.limit_bytes)

    def _end_slow(self, slow: SlowRequest | None) -> None:
        """The body is complete; the answer may have been before it was."""
        if self._is_draining or not self._head.is_keep_alive:
            self._phase = Phase.ENDED
        if slow is not None:
            slow.end()
        elif self._phase is Phase.ENDED:
            self._transport.close()

    def _slow_answered(self) -> None:
        slow, self._slow = self._slow, None
        if slow is not None and not slow.is_keep_alive:
            self._phase = Phase.ENDED  # the cycle has closed the transport
        elif self._flow is not None and not self._transport.is_closing():
            self._flow.resume_reading()
            self._quiet = 0
            self._queue.wake()

    def _submit(self, head: Head, body: Raw) -> None:
        """Start an infer call whose body is complete."""
        is_last = self._is_draining or not head.is_keep_alive
        if is_last:
            self._phase = Phase.ENDED
        self._quiet = 0
        if self._owes_continue:
            self._owes_continue = False
            self._queue.wake_at = NEVER
        exchange = Exchange(self._shared.service, self._queue, head, is_last=is_last)
        exchange.held_bytes = len(body)
        self._queue.add(exchange)
        exchange.start(body)

    def _refuse_invalid(self, data: bytes) -> int:
        """Refuse what is no HTTP; return the end of the data."""
        self._shared.books.bad_requests += 1
        self._refuse(400, _INVALID, _TEXT_LINE)
        return len(data)

    def _refuse_large(self, head: Head, data: bytes) -> int:
        """Refuse an infer call whose body is not read to its end; return the end of the data."""
        self._end()
        exchange = Exchange(self._shared.service, self._queue, head, is_last=True)
        self._queue.add(exchange)
        exchange.refuse(PayloadTooLarge(limit_bytes=self._shared.service.limit_bytes))
        return len(data)

    def _refuse(self, status: int, content: bytes, line: bytes) -> None:
        """Answer something that is no request, and end."""
        self._end()
        if self._slow is not None:
            self._slow.disconnect()
            self._slow = None
        answers = self._shared.service.answers
        notice = Notice(answers.other(status, content, line, is_last=True))
        self._queue.add(notice)
        self._queue.answered(notice)

    def _end(self) -> None:
        self._phase = Phase.ENDED
        self._lingers = True
        self._owes_continue = False
        self._rest, self._body, self._buffer = b"", bytearray(), None

    def _refuse_late(self) -> None:
        """Refuse a request whose end does not come."""
        self._refuse(408, bodies.error_body("the request did not arrive in time"), _JSON_LINE)


def _skip_empty_lines(data: bytes, position: int) -> int:
    """Return where the next request begins: empty lines before it are allowed, and nothing."""
    found = _EMPTY_LINES.match(data, position)
    return position if found is None else found.end()
