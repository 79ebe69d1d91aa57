"""Length-prefixed messages out of pieces of a body, with the fewest copies.

Knows gRPC's five-byte prefix and the connection's account of held bytes; no call and no clock. Used
for every message that is not the whole of one DATA frame.

Rules:
  * A message of which all is at hand is sliced out of the input. Any other is written, once, to
    where the handler will read it: one buffer of the message's length.
  * That buffer grows with what has come, so that a length alone takes no memory: it is at most
    AHEAD times what was received, plus MIN_BUFFER_BYTES.
  * The buffer never grows while a view of it is out (`view`): the driver reads into that.
  * What is held is counted by the connection from when it is made until `release`.
"""

from __future__ import annotations

import struct
from typing import Final

from gateway.grpc_transport import status
from gateway.grpc_transport.coding import TOO_MUCH, MessageRefused, inflate
from gateway.http2.outbound import Outbound

PREFIX_BYTES: Final = 5
SMALL_BYTES: Final = 64 << 10
"""Up to this a collected message is handed over as bytes; larger ones are not copied again."""
AHEAD: Final = 16
MIN_BUFFER_BYTES: Final = 16 << 10

unpack_prefix: Final = struct.Struct(">BI").unpack_from


class MessageReader:
    """Collects the messages of one call."""

    __slots__ = (
        "_backlog",
        "_buffer",
        "_connection",
        "_encoding",
        "_filled",
        "_held_bytes",
        "_length",
        "_limit_bytes",
        "_prefix",
        "is_inflated",
        "is_last_kept",
        "message",
        "moved_ns",
    )

    def __init__(self, connection: Outbound, encoding: bytes, limit_bytes: int) -> None:
        self._connection = connection
        self._encoding = encoding
        self._limit_bytes = limit_bytes
        self._prefix = b""
        self._buffer: bytearray | None = None
        self._length = 0
        self._filled = 0
        self.is_inflated = False
        """The message was compressed."""
        self._held_bytes = 0
        self._backlog: bytearray | None = None
        self.is_last_kept = False
        """The request has ended behind what is kept."""
        self.message: bytes | bytearray | None = None
        """A message that is complete; taken away by who asked for it."""
        self.moved_ns = connection.now_ns
        """When bytes last came."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held: neither a part of a message, nor what is kept for later."""
        return self._buffer is None and not self._prefix and not self._backlog

    def has_stalled(self, now_ns: int) -> bool:
        """Whether nothing has come for longer than the limits allow."""
        return now_ns - self.moved_ns > self._connection.limits.slow_peer_timeout_s * 1e9

    def take(self, data: bytes | bytearray, start: int, end: int) -> int:
        """Take input up to the end of a message; return how far that is.

        Raises:
            MessageRefused: the message cannot be taken.
        """
        self.moved_ns = self._connection.now_ns
        if self._buffer is None:
            start = self._take_prefix(data, start, end)
            if start < 0:
                return end
            stop = start + self._length
            if stop <= end:
                self._complete(bytes(data[start:stop]))
                return stop
            self._begin(end - start)
        size = min(end - start, self._length - self._filled)
        buffer = self._room_for(size)
        buffer[self._filled : self._filled + size] = memoryview(data)[start : start + size]
        self.fill(size)
        return start + size

    def view(self, size: int) -> memoryview | None:
        """Return where the message goes on, at most so many bytes; None between messages."""
        if self._buffer is None:
            return None
        size = min(size, self._length - self._filled)
        if self._filled == len(self._buffer):
            self._room_for(1)
        return memoryview(self._buffer)[self._filled : self._filled + size]

    def fill(self, size: int) -> None:
        """Hear that so many bytes are in the buffer now; raises MessageRefused."""
        self.moved_ns = self._connection.now_ns
        self._filled += size
        if self._filled == self._length:
            buffer, self._buffer = self._buffer, None
            assert buffer is not None
            self.release()
            self._complete(bytes(buffer) if len(buffer) <= SMALL_BYTES else buffer)

    def keep(self, data: bytes | bytearray, *, is_last: bool) -> None:
        """Put input aside until it is wanted; raises MessageRefused."""
        self.moved_ns = self._connection.now_ns
        self._hold(len(data))
        if self._backlog is None:
            self._backlog = bytearray()
        self._backlog += data
        self.is_last_kept = self.is_last_kept or is_last

    def kept(self) -> bytes:
        """Return what was put aside."""
        backlog, self._backlog = self._backlog, None
        if not backlog:
            return b""
        self._held_bytes -= len(backlog)
        self._connection.held_bytes -= len(backlog)
        return bytes(backlog)

    def release(self) -> None:
        """Give back what is held; nothing more will come of it."""
        self._connection.held_bytes -= self._held_bytes
        self._held_bytes = 0
        self._buffer = self._backlog = None

    def _take_prefix(self, data: bytes | bytearray, start: int, end: int) -> int:
        """Return where the message begins, or -1 if its prefix is not complete yet."""
        if self._prefix or end - start < PREFIX_BYTES:
            missing = PREFIX_BYTES - len(self._prefix)
            self._prefix += bytes(data[start : min(end, start + missing)])
            if len(self._prefix) < PREFIX_BYTES:
                return -1
            flags, length = unpack_prefix(self._prefix, 0)
            self._prefix = b""
            start += missing
        else:
            flags, length = unpack_prefix(data, start)
            start += PREFIX_BYTES
        if flags > 1:
            raise MessageRefused(status.INTERNAL, f"Invalid flags of a message: {flags}")
        self.is_inflated = bool(flags)
        self._length = length
        self._check()
        return start

    def _check(self) -> None:
        if self._length > self._limit_bytes:
            numbers = f"({self._length} vs. {self._limit_bytes})"
            text = f"SERVER: Received message larger than max {numbers}"
            raise MessageRefused(status.RESOURCE_EXHAUSTED, text)
        if self.is_inflated and self._encoding == b"identity":
            inflate(b"?", self._encoding, 0)

    def _begin(self, at_hand: int) -> None:
        self._filled = 0
        size = min(self._length, at_hand * AHEAD + MIN_BUFFER_BYTES)
        self._hold(size)
        self._buffer = bytearray(size)

    def _room_for(self, size: int) -> bytearray:
        """Return the buffer, with room for so many bytes of the message."""
        buffer = self._buffer
        assert buffer is not None
        needed = self._filled + size
        if needed > len(buffer):
            more = min(self._length, needed * AHEAD) - len(buffer)
            self._hold(more)
            buffer += bytes(more)
        return buffer

    def _complete(self, message: bytes | bytearray) -> None:
        if self.is_inflated:
            message = inflate(message, self._encoding, self._limit_bytes)
        self.message = message

    def _hold(self, size: int) -> None:
        if not self._connection.hold(size):
            raise MessageRefused(*TOO_MUCH)
        self._held_bytes += size


class _Spent(MessageReader):
    """Stands for the reader of a call that reads no more."""

    def __init__(self) -> None:
        """Hold nothing, on no connection."""


SPENT: Final = _Spent()
