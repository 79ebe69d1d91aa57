"""Overwrites blobs in segment files. Knows the file's form and what to look for, nothing else.

A blob that holds a needle becomes zeros of the same length: a reader knows it by its first byte,
and nothing else moves. The block is written again in one call, with its checks. What is damaged can
be read by nobody and may hold anything: an erasure makes zeros of all of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Final

from gateway.prediction_log.spool.block import (
    HEADER_BYTES,
    UNKNOWN,
    Block,
    BlockKind,
    Scanner,
    header_at,
    make_header,
    make_payload,
    split_payload,
)
from gateway.prediction_log.spool.segment import Segment
from gateway.prediction_log.spool.store import Erased

_MANY: Final = 32
"""More needles than this, all of 16 bytes, are looked up instead of searched for."""
_ID_BYTES: Final = 16
# Every place where msgpack has 16 bytes; they may overlap, so only the mark is consumed.
_ID: Final = re.compile(rb"\xc4\x10(?=(.{16}))", re.DOTALL)
_ERASABLE: Final = (BlockKind.RECORDS, BlockKind.INTENT, BlockKind.KEY)


class Needles:
    """What to look for in blobs."""

    def __init__(self, needles: Sequence[bytes]) -> None:
        needles = [needle for needle in needles if needle]
        ids = [needle for needle in needles if len(needle) == _ID_BYTES]
        self._ids = frozenset(ids) if len(ids) > _MANY else frozenset()
        self._others = [needle for needle in needles if needle not in self._ids]

    def are_in(self, data: bytes) -> bool:
        """Whether one of them is in the data."""
        for needle in self._others:
            if needle in data:
                return True
        ids = self._ids
        return bool(ids) and any(match[1] in ids for match in _ID.finditer(data))


def erase_blobs(blobs: list[bytes], needles: Needles) -> tuple[list[bytes], list[bytes]]:
    """Return the blobs with zeros in place of those that hold a needle, and these."""
    kept: list[bytes] = []
    erased: list[bytes] = []
    for blob in blobs:
        if needles.are_in(blob):
            erased.append(blob)
            kept.append(bytes(len(blob)))
        else:
            kept.append(blob)
    return kept, erased


def erase_in(segment: Segment, needles: Needles) -> list[Erased]:
    """Overwrite blobs in what is written of a segment, and sync it; return what they were.

    Raises FileNotFoundError if the segment is gone.
    """
    descriptor = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        end = segment.written
        data = os.pread(descriptor, end, 0)
        erased: list[Erased] = []
        is_changed = False
        scanner = Scanner(data, segment=segment.number, salt=segment.salt, before=0)
        for item in scanner.walk(0, len(data)):
            offset = item.at.offset
            if isinstance(item, Block):
                found = _erase_block(descriptor, segment.salt, item, needles)
                erased += (Erased(item.stream, blob) for blob in found)
                is_changed |= bool(found)
            else:
                start = offset if item.stream == UNKNOWN else offset + HEADER_BYTES
                os.pwrite(descriptor, bytes(offset + item.size_bytes - start), start)
                is_changed = True
        if is_changed:
            os.fdatasync(descriptor)
        return erased
    finally:
        os.close(descriptor)


def _erase_block(descriptor: int, salt: int, block: Block, needles: Needles) -> list[bytes]:
    if block.kind not in _ERASABLE or not needles.are_in(block.data):
        return []
    kept, erased = erase_blobs(split_payload(block.data, HEADER_BYTES), needles)
    old = header_at(block.data, 0, salt)
    if not erased or old is None:  # the needle lies across two blobs, or in a header
        return []
    payload = make_payload(kept)
    rest = old.ref, old.before, salt
    header = make_header(old.kind, old.stream, old.first_id, old.blobs, payload, rest)
    os.pwrite(descriptor, header + payload, block.at.offset)
    return erased
