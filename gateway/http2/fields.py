"""What makes a header list a request (RFC 9113, section 8), checked once per decoded block.

Knows names and values, no connection and no gRPC. Names are judged by their sequence, which a
client repeats from call to call however much the values vary: `FieldRules` remembers the sequences
that were right. Values are judged by one search over all of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

Fields = Sequence[tuple[bytes, bytes]]

PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
REQUIRED: Final = frozenset((b":method", b":scheme", b":path"))
CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
MAX_SHAPES: Final = 256
"""Sequences of names that are remembered; when full, all are forgotten."""
MAX_SHAPE_BYTES: Final = 1_024
"""A longer sequence is judged each time."""

_is_name: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_FORBIDDEN: Final = (b"\0", b"\r", b"\n ", b"\n\t", b" \n", b"\t\n")
"""What no values joined by line ends hold: control characters, white space at an end. Six searches
for a text are ten times cheaper than one for a pattern."""
_MAX_LENGTH_DIGITS: Final = 18


class MalformedHead(Exception):
    """The header list is no request: the stream is reset with PROTOCOL_ERROR."""


class RequestHead:
    """What the connection itself must know of a request; its user adds more by subclassing.

    One is made per decoded header block and shared by every call that brings the same block, so it
    is never changed.
    """

    __slots__ = ("content_length", "is_eager", "is_malformed")

    def __init__(self) -> None:
        self.is_malformed = False
        """Answered with RST_STREAM PROTOCOL_ERROR; the user never sees it."""
        self.is_eager = False
        """`Stream.on_head` is called; otherwise the stream hears of nothing before its data."""
        self.content_length: int | None = None
        """What the DATA frames must add up to, if the client says so."""


class FieldRules:
    """Judges header lists, and remembers the sequences of names that passed."""

    __slots__ = ("_shapes",)

    def __init__(self) -> None:
        self._shapes: set[tuple[int, bytes]] = set()

    def check(self, fields: Fields) -> dict[bytes, bytes]:
        """Return the last value of each name.

        Raises:
            MalformedHead: the list is no request.
        """
        # Invariant: a remembered sequence has one comma fewer than names, so no name has one.
        shape = len(fields), b",".join([name for name, _ in fields])
        if shape not in self._shapes:
            _check_names([name for name, _ in fields])
            self._remember(shape)
        check_values(fields)
        values = dict(fields)
        if not values[b":path"] or values.get(b"te", b"trailers") != b"trailers":
            raise MalformedHead
        return values

    def _remember(self, shape: tuple[int, bytes]) -> None:
        if len(shape[1]) > MAX_SHAPE_BYTES:
            return
        if len(self._shapes) >= MAX_SHAPES:
            self._shapes.clear()
        self._shapes.add(shape)


def check_trailers(fields: Fields) -> None:
    """Refuse trailers that name what only a head may; raises MalformedHead."""
    _check_regular([name for name, _ in fields])
    check_values(fields)


def check_values(fields: Fields) -> None:
    """Refuse control characters, and white space at the ends; raises MalformedHead."""
    values = b"\n%b\n" % b"\n".join([value for _, value in fields])
    if values.count(b"\n") != max(1, len(fields)) + 1:
        raise MalformedHead
    for forbidden in _FORBIDDEN:
        if forbidden in values:
            raise MalformedHead


def content_length(values: dict[bytes, bytes]) -> int | None:
    """Return the length that a request claims; raises MalformedHead."""
    text = values.get(b"content-length")
    if text is None:
        return None
    if not text.isdigit() or len(text) > _MAX_LENGTH_DIGITS:
        raise MalformedHead
    return int(text)


def _check_names(names: list[bytes]) -> None:
    """Pseudo-header fields first, each once, the required ones there; then regular names."""
    count = 0
    while count < len(names) and names[count][:1] == b":":
        count += 1
    pseudo = frozenset(names[:count])
    if len(pseudo) != count or not REQUIRED <= pseudo <= PSEUDO:
        raise MalformedHead
    _check_regular(names[count:])


def _check_regular(names: list[bytes]) -> None:
    for name in names:
        if not _is_name(name) or name in CONNECTION_SPECIFIC:
            raise MalformedHead
