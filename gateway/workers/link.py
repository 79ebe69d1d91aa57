"""One end of the connection between a front and the engine process: messages in, messages out.

Knows asyncio and the head of a message (frames.py), nothing of what is in one. What is sent within
one turn of the event loop leaves in one write. What arrives is handed on in place, message by
message; bytes that are no message end the link, and whoever sent them is then a peer that is gone.

Memory: an incomplete message is kept as the pieces that came, up to frames.MAX_MESSAGE_BYTES. What
the peer does not read is bounded by who sends: `is_full` says that WRITE_LIMIT_BYTES wait, and with
`reads_when_full=False` the link reads nothing more meanwhile (the engine's side: a front that does
not read its answers is given no more work). The front's side always reads, so the two cannot wait
for each other.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Final, cast

from gateway.workers import frames
from gateway.workers.frames import HEAD, HEAD_BYTES, FrameError, Kind, Part
from gateway.workers.tensors_shared import Arena, SharedReader

logger = logging.getLogger(__name__)

WRITE_LIMIT_BYTES: Final = 8 << 20
SOCKET_BUFFER_BYTES: Final = 1 << 20
TRIM_S: Final = 10.0


Take = Callable[[int, int, int, bytes, int, int], None]
"""Takes a message: flags, index, number, and where its body stands: data[start:end]."""


class Link(asyncio.Protocol):
    """A link on a connected socket.

    Args:
        take: by kind, who takes a message; a kind without an entry ends the link.
        on_made: called once, before the first message is taken.
        on_lost: called once, when the link has ended.
        arena: where this side puts large tensors; closed with the link.
        reads_when_full: whether to go on reading while the peer does not.
    """

    def __init__(
        self,
        take: Mapping[Kind, Take],
        on_made: Callable[[], None],
        on_lost: Callable[[], None],
        *,
        arena: Arena | None,
        reads_when_full: bool,
    ) -> None:
        self._take: list[Take | None] = [None, *(take.get(kind) for kind in Kind)]
        self._take[Kind.FREE] = self._take_back
        self._on_made = on_made
        self._on_lost = on_lost
        self._arena = arena
        self._reads_when_full = reads_when_full
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._transport: asyncio.Transport | None = None
        self.out: list[Part] = []
        """What the next write sends; whoever appends calls `schedule`."""
        self._is_scheduled = False
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._needed_bytes = HEAD_BYTES
        self._trimming: asyncio.TimerHandle | None = None
        self.reader: SharedReader | None = None
        self.is_full = False
        self.is_lost = False

    # --- out --------------------------------------------------------------------------------------

    def send(self, part: Part) -> None:
        """Send a message at the end of this turn."""
        self.out.append(part)
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)

    def schedule(self) -> None:
        """Send what was appended to `out` at the end of this turn."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_scheduled = False
        if self.reader is not None and self.reader.freed:
            freed = self.reader.freed
            count = len(freed)  # others may be appending
            self.out.append(frames.free_message(freed[:count]))
            del freed[:count]
        out = self.out
        if out and self._transport is not None and not self.is_lost:
            self._transport.write(b"".join(out))
        out.clear()

    def freed(self) -> None:
        """Give slots back; meant for SharedReader, from any thread."""
        if self.is_lost:
            return
        if threading.get_ident() == self._thread:
            self.schedule()
        else:
            try:
                self._loop.call_soon_threadsafe(self.schedule)
            except RuntimeError:  # the loop has ended, and the link with it
                return

    # --- in ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        # uvloop's transports are those of asyncio in all but their ancestry.
        self._transport = transport = cast("asyncio.Transport", transport)
        transport.set_write_buffer_limits(high=WRITE_LIMIT_BYTES)
        if self._arena is not None:
            self._trimming = self._loop.call_later(TRIM_S, self._trim)
        self._on_made()

    def data_received(self, data: bytes) -> None:
        """Hand on what is complete."""
        if self._pieces:
            self._pieces.append(data)
            self._pieces_bytes += len(data)
            if self._pieces_bytes < self._needed_bytes:
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
        try:
            position = self._hand_on(data)
        except Exception:  # whatever it is: the peer's bytes must not end this process
            logger.exception("link ended: what came is no message")
            self.abort()
            return
        if position < len(data) and not self.is_lost:
            rest = data[position:]
            self._pieces.append(rest)
            self._pieces_bytes = len(rest)

    def _hand_on(self, data: bytes) -> int:
        """Return where the first message starts that is not complete."""
        position, size = 0, len(data)
        unpack, take = HEAD.unpack_from, self._take
        kinds = len(take)
        while size - position >= HEAD_BYTES:
            length, kind, flags, index, number = unpack(data, position)
            end = position + length
            taken_by = take[kind] if kind < kinds else None
            if taken_by is None or not HEAD_BYTES <= length <= frames.MAX_MESSAGE_BYTES:
                raise FrameError(f"nobody takes a message of kind {kind}, {length} bytes")
            if end > size:
                self._needed_bytes = length
                return position
            taken_by(flags, index, number, data, position + HEAD_BYTES, end)
            position = end
        self._needed_bytes = HEAD_BYTES
        return position

    def _take_back(
        self, flags: int, index: int, number: int, data: bytes, start: int, end: int
    ) -> None:
        if self._arena is None:
            raise FrameError("a slot of no arena")
        for offset in frames.read_offsets(data, start, end):
            self._arena.free(offset)

    # --- states -----------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """The peer does not read."""
        self.is_full = True
        if not self._reads_when_full and self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The peer has read."""
        self.is_full = False
        if not self._reads_when_full and self._transport is not None:
            self._transport.resume_reading()

    def abort(self) -> None:
        """End the link now; `on_lost` is called later."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """End the link when what was sent has been written."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the link; messages of it that were not yet handed on are lost with it."""
        if self.is_lost:
            return
        self.is_lost = True
        self._pieces.clear()
        self.out.clear()
        if self._trimming is not None:
            self._trimming.cancel()
        if self._arena is not None:
            self._arena.close()
        self.reader = None  # views of it live on, and the memory with them
        self._on_lost()

    def _trim(self) -> None:
        if self._arena is not None and not self.is_lost:
            self._arena.trim()
            self._trimming = self._loop.call_later(TRIM_S, self._trim)


def widen(sock: socket.socket) -> None:
    """Give a socket buffers for what gathers in a turn of the event loop."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
