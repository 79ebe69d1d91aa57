"""One HTTP/1 connection of the predict port: its begin and end, and how long it may be quiet.

What it reads is in reader.py, the order of its answers in queue.py. A client that goes away takes
its requests out of their queues; one that is quiet for too long, by the ticks of the listener, is
told so if a request of its is incomplete, and closed. One that sends more than is read at a time
gives way to the others after each read, or after the body that it began: the event loop would go on
reading here, for a megabyte and all the requests in it, before it looks at another socket.
"""

from __future__ import annotations

import asyncio
from typing import cast

from gateway.http_api.fast.queue import AnswerQueue
from gateway.http_api.fast.reader import Reader
from gateway.http_api.fast.shared import READ_BYTES, Phase, Shared, WaitsFor


class Connection(Reader, asyncio.BufferedProtocol):
    """The protocol of one connection."""

    __slots__ = ("_loop", "_unsent_bytes")

    def __init__(self, shared: Shared, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(shared)
        self._loop = loop
        self._unsent_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless there are too many."""
        shared = self._shared
        self._transport = cast("asyncio.Transport", transport)  # uvloop's derives from nothing
        self._queue = AnswerQueue(
            self, self._transport, self._loop.call_soon, shared.bounds.connection_bytes
        )
        if len(shared.connections) >= shared.bounds.connections:
            shared.books.refused_connections += 1
            self._phase = Phase.ENDED
            self._transport.abort()
        else:
            shared.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up what the client waited for."""
        shared = self._shared
        shared.connections.discard(self)
        if not shared.connections:
            shared.emptied.set()
        self._phase = Phase.ENDED
        self._rest, self._body, self._buffer = b"", bytearray(), None
        self._queue.clear()
        if self._slow is not None:
            self._slow.disconnect()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go."""
        return self._shared.scratch if self._buffer is None else self._buffer.space()

    def buffer_updated(self, nbytes: int) -> None:
        """Take the bytes that were read."""
        buffer = self._buffer
        if buffer is None:
            data = bytes(self._shared.scratch[:nbytes])
            if self._rest:
                self._feed(self._rest + data)
            else:
                self._feed(data)
                if self._rest and self._has_served:
                    self._quiet = 0  # the time of a head counts from its first byte
            if nbytes == READ_BYTES:
                self._give_way()
            return
        self._quiet = 0
        buffer.add(nbytes)
        if buffer.is_full:
            self._buffer = None
            self._phase = Phase.HEAD
            self._submit(self._head, buffer.whole())
            self._give_way()

    def _give_way(self) -> None:
        """Read on in the next turn of the loop; a body that has a buffer is read to its end."""
        if self._buffer is None and self._may_read():
            self._transport.pause_reading()
            self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        if self._may_read():
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        """Read nothing more until the peer has read some of its answers."""
        self._queue.is_stuck = True
        if self._flow is not None:
            self._flow.pause_writing()

    def resume_writing(self) -> None:
        """Go on."""
        self._queue.is_stuck = False
        if self._flow is not None:
            self._flow.resume_writing()
        self._queue.wake()

    def last_sent(self) -> None:
        """Close, or let the peer close when it has read why."""
        self._quiet = 0
        if not self._lingers:
            self._transport.close()
        elif self._transport.can_write_eof():
            self._transport.write_eof()

    def overflown(self) -> None:
        """Close at once."""
        self._shared.books.overflows += 1
        self.abort()

    def drain(self) -> None:
        """Take no new request; close when what was begun is answered."""
        self._is_draining = True
        if self._slow is not None:
            self._slow.close_after()
        if self._phase in (Phase.BUFFER, Phase.STREAM):
            return  # the request that is arriving is the last
        self._phase = Phase.ENDED
        if self._queue.awaited:
            self._queue.awaited[-1].is_last = True
        elif self._slow is None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, and give up what is under way."""
        self._queue.clear()
        self._transport.abort()

    def tick(self) -> None:
        """Note that a tick has passed; end what has been quiet for too long."""
        unsent_bytes = self._transport.get_write_buffer_size()
        if unsent_bytes != self._unsent_bytes:
            self._unsent_bytes = unsent_bytes
            self._quiet = 0
            return
        self._quiet += 1
        if self._quiet <= self._shared.bounds.least_ticks:
            return
        waits_for = self._waits_for()
        limit = self._shared.bounds.ticks[waits_for]
        if limit is None:
            self._quiet = 0
        elif self._quiet > limit:
            self._give_up(waits_for)

    def _waits_for(self) -> WaitsFor:
        """Say who has to move."""
        if self._unsent_bytes:
            return WaitsFor.READER
        if self._phase is Phase.ENDED:
            is_answered = not self._queue.awaited and self._slow is None
            return WaitsFor.CLOSE if is_answered else WaitsFor.US
        if self._phase is Phase.HEAD:
            if self._queue.awaited or self._slow is not None or self._queue.wake_at >= 0:
                return WaitsFor.US
            if not self._has_served:
                return WaitsFor.FIRST_HEAD
            return WaitsFor.SENDER if self._rest else WaitsFor.REQUEST
        is_paused = self._flow is not None and self._flow.read_paused
        return WaitsFor.US if self._owes_continue or is_paused else WaitsFor.SENDER

    def _give_up(self, waits_for: WaitsFor) -> None:
        """End a connection on which the peer did not do in time what it had to."""
        if waits_for is WaitsFor.REQUEST:
            self._transport.close()
        elif waits_for is WaitsFor.CLOSE:
            self.abort()
        else:
            self._shared.books.timeouts += 1
            if waits_for is WaitsFor.SENDER or self._rest:
                self._refuse_late()
            else:
                self.abort()
