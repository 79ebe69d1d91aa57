"""The bytes of the spool: blocks of records, one after the other, and how they are found again.

Pure: knows neither files nor time. A block is a header and a payload, all numbers big-endian, so
that a Lua script in Redis can read it:

    offset  0  magic         4 bytes
            4  payload       u32, bytes after the header
            8  kind          u8, see BlockKind
            9  version       u8, 1
           10  stream        u16, 0: none
           12  count         u32, blobs in the payload
           16  first id      ms u64, seq u32: blob i has the id (ms, seq + i)
           28  before        u32, records in this segment before this block
           32  ref           u64, see BlockKind
           40  payload crc   u32
           44  header crc    u32, of the 44 bytes before it, begun with the segment's salt
           48  payload       count times: length u32, then the blob

Rules of finding blocks again, in bytes that a crash or a bad disk may have changed:
  - A header that is intact says how long its payload is. If the payload's crc is wrong, the block
    is lost, and the loss is known to the unit.
  - Where no intact header is, the next intact one is searched for; its `before` says how many
    records are missing. The salt is random per segment: bytes that a caller sent, which stand in
    payloads, cannot pass for a header.
  - Where no intact header follows at all the data end. What then is not zero was torn off.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from mmap import mmap
from typing import Final, NamedTuple
from zlib import crc32

from gateway.prediction_log.streams import EntryId

MAGIC: Final = b"\xf5SLB"
VERSION: Final = 1
HEADER: Final = struct.Struct(">4sIBBHIQIIQII")
HEADER_BYTES: Final = HEADER.size
UNKNOWN: Final = -1
"""In place of a stream's number or a count: not known."""
MAX_SEQ: Final = (1 << 32) - 1
_CHECKED_BYTES: Final = HEADER_BYTES - 4
_CHECKED: Final = struct.Struct(">4sIBBHIQIIQI")
_pack_checked: Final = _CHECKED.pack
_length: Final = struct.Struct(">I")
_pack_length: Final = _length.pack


class BlockKind(IntEnum):
    """What a block holds."""

    RECORDS = 1
    """Blobs of one stream. A ref other than 0: they settle the intent of that ref."""
    INTENT = 2
    """What is to be written if the process ends before a RECORDS block of the same ref."""
    STREAM = 3
    """One blob: the name and kind of the stream of this number."""
    LIFE = 4
    """One blob: the worker that wrote this segment. Its ref: records in the segment before."""
    KEY = 5
    """Wrapped keys of subjects, needed to read sealed records that follow."""


_KINDS: Final = frozenset(BlockKind)
SHIPPED_KINDS: Final = (BlockKind.RECORDS, BlockKind.KEY)


class Position(NamedTuple):
    """A place in the spool; orders as blocks were appended."""

    segment: int
    offset: int


START: Final = Position(0, 0)


Rest = tuple[int, int, int]
"""Of a header: ref, before, and the salt of the segment."""


class Header(NamedTuple):
    """The fields of an intact header."""

    payload_bytes: int
    kind: BlockKind
    stream: int
    blobs: int
    first_id: EntryId
    before: int
    ref: int
    payload_crc: int

    @property
    def block_bytes(self) -> int:
        """Of header and payload."""
        return HEADER_BYTES + self.payload_bytes

    @property
    def records(self) -> int:
        """How many records the block holds."""
        return self.blobs if self.kind is BlockKind.RECORDS else 0

    @property
    def last_id(self) -> EntryId:
        """Id of the last blob."""
        return EntryId(self.first_id.ms, self.first_id.seq + self.blobs - 1)


class Block(NamedTuple):
    """A block whose every byte was checked, or that was just made."""

    kind: BlockKind
    stream: int
    first_id: EntryId
    count: int  # type: ignore[assignment]  # hides the tuple's own method
    ref: int
    data: bytes
    """All of it, with its header."""
    at: Position

    @property
    def end(self) -> Position:
        """Where the next block begins."""
        return Position(self.at.segment, self.at.offset + len(self.data))

    @property
    def last_id(self) -> EntryId:
        """Id of the last blob."""
        return EntryId(self.first_id.ms, self.first_id.seq + self.count - 1)

    def blobs(self) -> list[bytes]:
        """Return the blobs, oldest first; an erased one begins with ERASED."""
        return split_payload(self.data, HEADER_BYTES)


class Damage(NamedTuple):
    """Bytes between blocks that are no intact block."""

    at: Position
    size_bytes: int
    stream: int
    """UNKNOWN where the header is broken."""
    records: int
    """Lost; UNKNOWN where nothing tells."""
    is_tail: bool = False
    """The end of what was written is missing, as a crash in the middle of a write leaves it."""


def payload_bytes(blobs: Sequence[bytes]) -> int:
    """Return the size of a payload."""
    return _length.size * len(blobs) + sum(map(len, blobs))


def records_up_to(last: EntryId, block: Block) -> int:
    """Return how many records of a block have an id up to this one."""
    first = block.first_id
    if first > last:
        return 0
    return min(block.count, last.seq - first.seq + 1) if first.ms == last.ms else block.count


def make_payload(blobs: Sequence[bytes]) -> bytes:
    """Return blobs with their lengths."""
    if len(blobs) == 1:
        return _pack_length(len(blobs[0])) + blobs[0]
    parts: list[bytes] = [b""] * (2 * len(blobs))
    parts[::2] = map(_pack_length, map(len, blobs))
    parts[1::2] = blobs
    return b"".join(parts)


def make_header(  # positional and flat: once per append, on the way of an answer
    kind: int, stream: int, first_id: tuple[int, int], count: int, payload: bytes, rest: Rest
) -> bytes:
    """Return the header of a payload."""
    ref, before, salt = rest
    ms, seq = first_id
    checked = _pack_checked(
        MAGIC, len(payload), kind, VERSION, stream, count, ms, seq, before, ref, crc32(payload)
    )
    return checked + _pack_length(crc32(checked, salt))


def make_block(
    kind: BlockKind,
    stream: int,
    first_id: EntryId,
    blobs: Sequence[bytes],
    ref: int = 0,
) -> bytes:
    """Return a whole block that stands in no segment."""
    payload = make_payload(blobs)
    return make_header(kind, stream, first_id, len(blobs), payload, (ref, 0, 0)) + payload


def make_note(kind: BlockKind, blob: bytes, rest: Rest) -> bytes:
    """Return a STREAM or LIFE block."""
    payload = make_payload([blob])
    return make_header(kind, 0, (0, 0), 1, payload, rest) + payload


def split_payload(data: bytes, offset: int = 0) -> list[bytes]:
    """Return the blobs of an intact payload that begins at an offset and ends with the data."""
    blobs: list[bytes] = []
    end = len(data)
    unpack_from = _length.unpack_from
    while offset < end:
        start = offset + 4
        offset = start + unpack_from(data, offset)[0]
        blobs.append(data[start:offset])
    return blobs


def header_at(data: bytes | mmap, offset: int, salt: int) -> Header | None:
    """Return the header at an offset; None: there is no intact one."""
    raw = data[offset : offset + HEADER_BYTES]
    if len(raw) < HEADER_BYTES or raw[:4] != MAGIC:
        return None
    fields = HEADER.unpack(raw)
    _, payload_bytes, kind, version, stream, count, ms, seq, before, ref, payload_crc, crc = fields
    if crc != crc32(raw[:_CHECKED_BYTES], salt) or version != VERSION or kind not in _KINDS:
        return None
    first_id = EntryId(ms, seq)
    return Header(payload_bytes, BlockKind(kind), stream, count, first_id, before, ref, payload_crc)


def next_header(data: bytes | mmap, offset: int, end: int, salt: int) -> int:
    """Return where the first intact header at or after an offset is; -1: nowhere."""
    while (offset := data.find(MAGIC, offset, end)) >= 0:
        if header_at(data, offset, salt) is not None:
            return offset
        offset += 1
    return -1


class Scanner:
    """Walks over the blocks in bytes of one segment, from `start` to `end`, damage included.

    `data[0]` stands at the offset `base` of the segment. `before` is the number of records in front
    of `start`, UNKNOWN where nobody counted. With `is_partial` the bytes may end in the middle of a
    block, and what is not intact is left to whoever looks at more of them: the walk then stops.

    After the walk `offset` is the place in the segment where it stopped.
    """

    def __init__(
        self, data: bytes | mmap, *, segment: int, salt: int, base: int = 0, before: int = UNKNOWN
    ) -> None:
        self._data = data
        self._segment = segment
        self._salt = salt
        self._base = base
        self.offset = base
        self.before = before
        """Records in front of `offset`; UNKNOWN: nobody counted."""

    def walk(self, start: int, end: int, *, is_partial: bool = False) -> Iterator[Block | Damage]:
        """Yield what is between two offsets of the segment."""
        data, base, salt = self._data, self._base, self._salt
        self.offset = start
        while self.offset < end:
            at = self.offset - base
            header = header_at(data, at, salt)
            fits = header is not None and self.offset + header.block_bytes <= end
            if header is not None and fits:
                yield from self._known(header, at)
            elif is_partial:
                return
            else:
                found = next_header(data, at + 1, end - base, salt)
                if found < 0:
                    yield from self._tail(at, end - base)
                    return
                yield self._gap(at, found)

    def _known(self, header: Header, at: int) -> Iterator[Block | Damage]:
        """Yield the block or what was it, and what is missing before it."""
        size = header.block_bytes
        place = Position(self._segment, self.offset)
        records = header.records
        self.before = header.before + records
        self.offset += size
        payload = self._data[at + HEADER_BYTES : at + size]
        if crc32(payload) != header.payload_crc:
            is_tail = self._is_torn(payload, at + size)
            yield Damage(place, size, header.stream, records, is_tail)
            return
        data = self._data[at : at + size]
        kind, stream, first_id, count = header.kind, header.stream, header.first_id, header.blobs
        yield Block(kind, stream, first_id, count, header.ref, data, place)

    def _gap(self, at: int, found: int) -> Damage:
        """Step over bytes without a header; the next one says how many records they were."""
        place = Position(self._segment, self.offset)
        self.offset = self._base + found
        following = header_at(self._data, found, self._salt)
        records = UNKNOWN
        if following is not None and self.before != UNKNOWN:
            records = max(0, following.before - self.before)
            self.before = following.before
        return Damage(place, found - at, UNKNOWN, records)

    def _tail(self, at: int, end: int) -> Iterator[Damage]:
        left = self._data[at:end].rstrip(b"\x00")
        if left:
            place = Position(self._segment, self.offset)
            yield Damage(place, len(left), UNKNOWN, UNKNOWN, is_tail=True)

    def _is_torn(self, payload: bytes, end: int) -> bool:
        """Whether a payload was cut short by zeros and nothing was written after it."""
        if payload[-1:] != b"\x00":
            return False
        return next_header(self._data, end, len(self._data), self._salt) < 0
