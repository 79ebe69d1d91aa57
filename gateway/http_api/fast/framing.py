"""Where a body ends: by its length, or chunk by chunk (RFC 9112, section 7.1).

Sans-IO: a framing is given bytes and says how far they belong to the body; what follows belongs to
the next request. Strict, because whatever is read otherwise here than in a proxy before us lets one
client put words into another's mouth: sizes are plain hexadecimal, lines end with CRLF, extensions
and trailers are checked, bounded and dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol

import numpy as np

from engines.tensors import Raw

Sink = Callable[[bytes], None]
"""Takes the next piece of a body."""

MAX_CHUNK_LINE_BYTES: Final = 1_024
FIRST_STEP_BYTES: Final = 4 << 20
"""Memory for a body is taken in steps, so that a large length alone takes little; the system gives
pages only as they are written."""
_GROWTH: Final = 4
_LINE_END: Final = b"\r\n"
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED: Final = rb'"[^"\\\x00-\x08\x0a-\x1f\x7f]*"'
_SIZE: Final = rb"([0-9A-Fa-f]{1,15})(?:;%b(?:=(?:%b|%b))?)*" % (_TOKEN, _TOKEN, _QUOTED)
_SIZE_LINE: Final = re.compile(_SIZE)
_WHOLE_SIZE_LINE: Final = re.compile(_SIZE + _LINE_END)
"""Spaces and escapes, which the grammar of extensions allows, are refused: parsers differ there."""
_TRAILER_LINE: Final = re.compile(
    rb"(?!content-length:|transfer-encoding:)%b:[\t\x20-\x7e\x80-\xff]*" % _TOKEN, re.IGNORECASE
)
"""What says where a body ends has no place behind it."""


class BadFraming(Exception):
    """The bytes are no chunked body."""


class Framing(Protocol):
    """Finds the end of one body."""

    is_done: bool

    def take(self, data: bytes, position: int, sink: Sink) -> int:
        """Give the body's bytes from a position on to a sink; return where they end.

        It returns a position before the end of the data only if the body is done.
        """


class LengthFraming:
    """A body of a length that was declared; not 0."""

    __slots__ = ("_left_bytes", "is_done")

    def __init__(self, length: int) -> None:
        self._left_bytes = length
        self.is_done = False

    def take(self, data: bytes, position: int, sink: Sink) -> int:
        """As Framing."""
        piece = data[position : position + self._left_bytes]
        self._left_bytes -= len(piece)
        self.is_done = not self._left_bytes
        sink(piece)
        return position + len(piece)


class _Expects(Enum):
    SIZE = "the line with a chunk's size"
    DATA = "a chunk's data"
    DATA_END = "the line end after a chunk's data"
    TRAILER = "a trailer line, or the empty one that ends the body"


class ChunkedFraming:
    """A chunked body; extensions and trailers are dropped."""

    __slots__ = ("_expects", "_left_bytes", "_line", "_trailer_bytes", "is_done")

    def __init__(self, *, trailer_bytes: int) -> None:
        self._expects = _Expects.SIZE
        self._left_bytes = 0
        self._line = b""
        self._trailer_bytes = trailer_bytes
        self.is_done = False

    def take(self, data: bytes, position: int, sink: Sink) -> int:
        """As Framing; raises BadFraming."""
        while position < len(data) and not self.is_done:
            if self._expects is _Expects.SIZE and not self._line:
                position = _take_whole_chunks(data, position, sink)
                if position == len(data):
                    break
            if self._expects is _Expects.DATA:
                piece = data[position : position + self._left_bytes]
                position += len(piece)
                self._left_bytes -= len(piece)
                if not self._left_bytes:
                    self._expects = _Expects.DATA_END
                sink(piece)
            else:
                position = self._take_line(data, position)
        return position

    def _take_line(self, data: bytes, position: int) -> int:
        """Gather a line, and act on it when it is whole; return where it ends."""
        end = data.find(b"\n", position) + 1
        self._line += data[position : end or len(data)]
        if self._expects is _Expects.DATA_END and not _LINE_END.startswith(self._line):
            raise BadFraming("a chunk that is longer than its size")
        if len(self._line) > self._max_line_bytes():
            raise BadFraming("a line that is too long")
        if not end:
            return len(data)
        line, self._line = self._line, b""
        if not line.endswith(_LINE_END):
            raise BadFraming("a line that does not end with CRLF")
        self._act(line[: -len(_LINE_END)])
        return end

    def _max_line_bytes(self) -> int:
        return self._trailer_bytes if self._expects is _Expects.TRAILER else MAX_CHUNK_LINE_BYTES

    def _act(self, line: bytes) -> None:
        if self._expects is _Expects.SIZE:
            found = _SIZE_LINE.fullmatch(line)
            if found is None:
                raise BadFraming("a chunk without a size")
            self._left_bytes = int(found[1], 16)
            self._expects = _Expects.DATA if self._left_bytes else _Expects.TRAILER
        elif self._expects is _Expects.DATA_END:
            self._expects = _Expects.SIZE
        elif not line:
            self.is_done = True
        else:
            if _TRAILER_LINE.fullmatch(line) is None:
                raise BadFraming("a trailer that is no header")
            self._trailer_bytes -= len(line) + len(_LINE_END)


def _take_whole_chunks(data: bytes, position: int, sink: Sink) -> int:
    """Take chunks that are there from size to line end; return where the first other thing is.

    Clients that send a byte per chunk cost a fifth of what they would piece by piece.
    """
    while found := _WHOLE_SIZE_LINE.match(data, position):
        begin = found.end()
        end = begin + int(found[1], 16)
        if end == begin or begin - position > MAX_CHUNK_LINE_BYTES:
            break
        if data[end : end + 2] != _LINE_END:
            break
        sink(data[begin:end])
        position = end + 2
    return position


class BodyBuffer:
    """A body of known length, into which the transport reads: no copy between it and a tensor.

    Args:
        length: what was declared.
        first: what came with the head; less than the whole.
    """

    __slots__ = ("_filled_bytes", "_length", "_view")

    def __init__(self, length: int, first: Raw) -> None:
        self._length = length
        self._view = memoryview(b"")
        self._filled_bytes = 0
        self._grow(max(FIRST_STEP_BYTES, len(first)))
        self._view[: len(first)] = first
        self._filled_bytes = len(first)

    @property
    def is_full(self) -> bool:
        """Whether the whole body has come."""
        return self._filled_bytes == self._length

    def space(self) -> memoryview:
        """Return where the next bytes go: not empty, and never beyond the body's end."""
        if self._filled_bytes == len(self._view):
            self._grow(self._filled_bytes * _GROWTH)
        return self._view[self._filled_bytes :]

    def add(self, count: int) -> None:
        """Note that so many bytes were written into `space`."""
        self._filled_bytes += count

    def whole(self) -> memoryview:
        """Return the body, to be read only."""
        return self._view.toreadonly()

    def _grow(self, size_bytes: int) -> None:
        # Not a bytearray: that would be filled with zeros first.
        grown = np.empty(min(size_bytes, self._length), np.uint8).data
        grown[: self._filled_bytes] = self._view[: self._filled_bytes]
        self._view = grown
