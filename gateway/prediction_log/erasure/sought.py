"""Which records are a data subject's: judged blob by blob, by tag, by request id, by caller's id.

Pure. Knows blobs and tombstones; knows neither Redis nor files. Of a blob only the few fields that
decide are decoded: below 1 us for a record of 330 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from gateway.prediction_log.erasure.tombstone import Found, Tombstone, digest
from gateway.prediction_log.privacy.seal import CODEC_KEY, Unsealable, parse_blob
from gateway.prediction_log.record import (
    CODEC_LABEL,
    CODEC_MSGPACK,
    MalformedRecord,
    Reduced,
    decode,
)
from gateway.prediction_log.streams import StreamKind

_REFERENCE: Final = b"\xa3ref"
"""In every blob with a tensor whose bytes are in a file: the kind of its Reduced."""
_MAX_OTHERS: Final = 65_536
"""Tags of others that are remembered, to spare their digests."""


class Marks(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The fields of a prediction or a label that say whose it is."""

    rid: bytes = b""
    prid: bytes = b""
    cid: str = ""
    sub: bytes = b""
    n: str = ""
    wk: str = ""
    seq: int = 0
    ts: int = 0


_marks: Final = msgspec.msgpack.Decoder(Marks).decode
_RECORDS: Final = (CODEC_MSGPACK, CODEC_LABEL)


def marks_of(blob: bytes) -> Marks | None:
    """Return the deciding fields of a blob; None: it is no record (an audit, a key, erased)."""
    if blob[:1] not in _RECORDS:
        return None
    try:
        return _marks(memoryview(blob)[1:])
    except msgspec.DecodeError:
        return None  # no reader can make a record of it either


def uris_of(blob: bytes) -> tuple[str, ...]:
    """Return the files that a prediction's tensors refer to."""
    if blob[:1] != CODEC_MSGPACK or _REFERENCE not in blob:
        return ()
    try:
        record = decode(blob)
    except MalformedRecord:
        return ()
    payloads = (t.payload for side in (record.inputs, record.outputs) for t in side.values())
    return tuple(p.uri for p in payloads if isinstance(p, Reduced) and p.uri)


class Sought:
    """What one erasure is after. `add` widens it by what was found.

    A record is sought that bears one of the tags, or that is of a request which is: the shadow's
    answer to it, its whole tensors, its labels.
    """

    def __init__(self, tombstone: Tombstone) -> None:
        self.tombstone = tombstone
        self.tags: set[bytes] = set(tombstone.tags)
        """Those known as they are: of an open tombstone, or met in a record."""
        self.rids: set[bytes] = set()
        self.cids: set[str] = set()
        """Labels that name their requests by one of these alone are sought. Callers choose these
        ids, and other subjects' requests may have the same: they are for the command to give."""
        self._digests = frozenset(tombstone.digests)
        self._others: set[bytes] = set()
        self._names = frozenset(tombstone.names)
        self._until_us = tombstone.until_ms * 1_000

    def add(self, found: Iterable[Found]) -> None:
        """Seek also what belongs to the requests of these records."""
        self.rids.update(one.rid for one in found if one.rid)

    def judge(self, blob: bytes, kind: StreamKind) -> Found | None:
        """Return what a blob is, if it is sought."""
        marks = marks_of(blob)
        if marks is None or not self._is_sought(marks, blob[:1]):
            return None
        rid = marks.prid or marks.rid
        return Found(marks.n, kind, marks.wk, marks.seq, rid, marks.cid, uris_of(blob))

    def seeks_key(self, blob: bytes) -> bool:
        """Whether a blob is a wrapped sealing key of the subject.

        A key opens the subject's records of all names, so an erasure of some names leaves it.
        """
        if blob[:1] != CODEC_KEY or self._names:
            return False
        try:
            key = parse_blob(blob)
        except Unsealable:
            return False
        return self._covers(key.made_ms * 1_000) and self._is_tag(key.tag)

    def _is_sought(self, marks: Marks, codec: bytes) -> bool:
        if self._names and marks.n not in self._names:
            return False
        if marks.sub and self._covers(marks.ts) and self._is_tag(marks.sub):
            return True
        if (marks.prid or marks.rid) in self.rids:
            return True
        return codec == CODEC_LABEL and not marks.rid and marks.cid in self.cids

    def _covers(self, made_us: int) -> bool:
        return not self._until_us or made_us <= self._until_us

    def _is_tag(self, tag: bytes) -> bool:
        if tag in self.tags:
            return True
        if tag in self._others:
            return False
        is_ours = digest(tag) in self._digests
        if len(self._others) >= _MAX_OTHERS:
            self._others.clear()
        (self.tags if is_ours else self._others).add(tag)
        return is_ours
