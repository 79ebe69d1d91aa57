"""The messages between a front process and the engine process, as bytes.

Knows requests and answers; knows no socket and no protocol of the outside. Both ends are of one
release and of one machine: there are no versions here, and integers are little-endian.

Every message begins with `HEAD`: its whole length, its kind, flags, an index and a number. The
number is that of a request: per link, never used twice. The pair that is hot, a request and its
answer, is written by hand; what repeats from request to request (names, versions, shapes) is
described once per link, by a DEFINE message, and then only named by its index. The rest is rare and
travels as msgpack.

  INFER    index: of its description | flags: TABLE, RAW and the answer's form
           deadline, lengths | caller's headers | id | extras | table of tensors | their bytes
  ANSWER   index: of its description | flags: TABLE | rid | table | bytes
  DEFINE   number: an index | a description, in force for all that follows on the link
  FREE     offsets in the sender's peer's arena (tensors_shared.py) that are read no more

A table has one row (size, offset) per tensor: offset -1 means that the bytes follow, any other one
is a place in shared memory. A single tensor that follows needs no table: it is the rest.

Bounds: a message is at most MAX_MESSAGE_BYTES; a link has at most DESCRIPTIONS descriptions, each
of at most DESCRIPTION_BYTES, but for index 0, which takes the long ones, each for one message.
A reader raises FrameError for bytes that are no message, whatever they are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Final, TypeVar

import msgspec

from engines.tensors import Raw, Tensor

MAX_MESSAGE_BYTES: Final = 1 << 31
DESCRIPTIONS: Final = 1_024
DESCRIPTION_BYTES: Final = 4_096

HEAD: Final = struct.Struct("<IBBHQ")
"""length, kind, flags, index, number"""
HEAD_BYTES: Final = HEAD.size
_ROW: Final = struct.Struct("<qq")
_OFFSET: Final = struct.Struct("<q")
INLINE: Final = -1

TABLE: Final = 1
"""Flag: there is a table."""
RAW: Final = 2
"""Flag: the only input is a whole HTTP body, to be read by the model's signature."""
JSON: Final = 4
"""Flag: outputs are wanted as JSON, unless something else is said of one."""
BINARY: Final = 8
"""Flag: outputs are wanted as bytes, unless something else is said of one."""
Part = bytes | bytearray | memoryview


class Kind(IntEnum):
    """What a message is."""

    INFER = 1
    ANSWER = 2
    ERROR = 3
    CANCEL = 4
    DEFINE = 5
    FREE = 6
    CALL = 7
    RETURN = 8
    HTTP = 9
    HTTP_ANSWER = 10
    STATE = 11
    REFUSED = 12
    STATISTICS = 13


# Under names that are found at once: these are used once per request.
HEAD_PACK: Final = HEAD.pack
encode: Final = msgspec.msgpack.Encoder().encode
new_tuple: Final = tuple.__new__  # makes a Tensor in two thirds of its constructor's time


class FrameError(ValueError):
    """The bytes are no message: the link cannot go on."""


Form = tuple[int, Mapping[str, bool]]
"""How an answer is wanted: RAW, JSON or BINARY; and the outputs that are wanted otherwise than JSON
or BINARY says: whether as bytes."""
NO_FORM: Final[Form] = (0, {})
"""The answer's form can carry everything, as protobuf's can."""
Place = Callable[[Raw], int]
"""Puts bytes into shared memory; returns the offset, or INLINE where there is no room."""
Fetch = Callable[[int, int], Raw]
"""Takes offset and size; returns the bytes in shared memory. ValueError: there is no such place."""


def nowhere(_: Raw) -> int:
    """Place nothing: everything travels inline."""
    return INLINE


def nothing_shared(offset: int, size: int) -> Raw:
    """Refuse every place."""
    raise FrameError(f"no shared memory at {offset}, {size} bytes")


class Definitions:
    """The sender's side of a link's descriptions: which index means what to the receiver."""

    __slots__ = ("_by_key", "_next")

    def __init__(self) -> None:
        self._by_key: dict[object, int] = {}
        self._next = 1

    def find(self, key: object) -> int | None:
        """Return the index of something that was described before."""
        return self._by_key.get(key)

    def define(self, key: object, description: bytes) -> tuple[int, bytes]:
        """Return the index of something new, and the message that goes before its first use."""
        if len(description) > DESCRIPTION_BYTES:
            index = 0
        else:
            if self._next >= DESCRIPTIONS:
                self._by_key.clear()
                self._next = 1
            index = self._by_key[key] = self._next
            self._next += 1
        return index, message(Kind.DEFINE, index, description)


_T = TypeVar("_T")


def description_of(decode: Callable[[bytes], _T], number: int, data: bytes) -> _T:
    """Return a description that came; FrameError for an index or bytes that are none."""
    if number >= DESCRIPTIONS:
        raise FrameError(f"description {number} of {DESCRIPTIONS}")
    try:
        return decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise FrameError(f"a description: {exc}") from None


def table_of(tensors: tuple[Tensor, ...], place: Place, threshold: int) -> tuple[Part, ...]:
    """Return the rows of some tensors, and the bytes of those that are not in shared memory."""
    rows, tail = [], []
    for tensor in tensors:
        data = tensor.data
        offset = place(data) if len(data) >= threshold else INLINE
        rows.append(_ROW.pack(len(data), offset))
        if offset == INLINE:
            tail.append(data)
    return b"".join(rows), *tail


def read_tensors(
    is_table: bool,
    described: tuple[tuple[str, str, tuple[int, ...]], ...],
    data: bytes,
    start: int,
    end: int,
    fetch: Fetch,
) -> tuple[Tensor, ...]:
    """Return a message's tensors: those of its table, or the only one, which ends the message."""
    if is_table:
        return read_table(described, data, start, end, fetch)
    if len(described) != 1:
        raise FrameError(f"{len(described)} tensors without a table")
    name, datatype, shape = described[0]
    return (new_tuple(Tensor, (name, datatype, shape, data[start:end])),)


def read_table(
    described: tuple[tuple[str, str, tuple[int, ...]], ...],
    data: bytes,
    start: int,
    end: int,
    fetch: Fetch,
) -> tuple[Tensor, ...]:
    """Return the tensors of a table that stands at `start`, and of the bytes behind it."""
    position = start + _ROW.size * len(described)
    if position > end:
        raise FrameError("a table runs past its message")
    tensors = []
    for row, (name, datatype, shape) in enumerate(described):
        size, offset = _ROW.unpack_from(data, start + row * _ROW.size)
        if size < 0:
            raise FrameError(f"a tensor of {size} bytes")
        raw: Raw
        if offset == INLINE:
            raw = data[position : position + size]
            position += size
        else:
            raw = fetch(offset, size)
        tensors.append(Tensor(name, datatype, shape, raw))
    if position != end:
        raise FrameError(f"the tensors take {position - end} bytes more than there are")
    return tuple(tensors)


def check_size(size: int) -> None:
    """Raise FrameError for a message that would be too large."""
    if size > MAX_MESSAGE_BYTES:
        raise FrameError(f"a message of {size} bytes; {MAX_MESSAGE_BYTES} is the limit")


def message(kind: Kind, number: int, body: bytes = b"", *, index: int = 0) -> bytes:
    """Return a whole message."""
    size = HEAD_BYTES + len(body)
    check_size(size)
    return HEAD_PACK(size, kind, 0, index, number) + body


def free_message(offsets: list[int]) -> bytes:
    """Return the message that gives places in shared memory back."""
    return message(Kind.FREE, 0, b"".join(map(_OFFSET.pack, offsets)))


def read_offsets(data: bytes, start: int, end: int) -> list[int]:
    """Return the offsets of a FREE message."""
    if (end - start) % _OFFSET.size:
        raise FrameError("offsets end early")
    return [offset for (offset,) in _OFFSET.iter_unpack(data[start:end])]
