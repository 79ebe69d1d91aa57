"""Finds and destroys what one spool holds of the subjects that are sought.

Knows stores and blobs; no Redis. Blocking: both functions are for a thread, while nobody else reads
from the store. Reading costs about a second per million records.

Two steps, because what was found has to be told before it is destroyed: the request ids lead to
labels and shadows' answers elsewhere, and must outlive a kill between the two. What has come
between the two and bears a tag goes as well; it is told of afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.prediction_log.erasure.sought import Sought, uris_of
from gateway.prediction_log.erasure.tombstone import Found
from gateway.prediction_log.privacy.seal import parse_blob
from gateway.prediction_log.spool.block import START, Block, BlockKind
from gateway.prediction_log.spool.store import Store
from gateway.prediction_log.streams import StreamKind

_READ_BYTES: Final = 1 << 20
_READ_RECORDS: Final = 4_096


@dataclass(slots=True)
class Finding:
    """What one look through a spool found."""

    found: list[set[Found]]
    """Of each of the sought, in their order."""
    sought: Sequence[Sought] = ()
    needles: set[bytes] = field(default_factory=set)
    """What the blobs to be destroyed hold, and no other blob does."""
    uris_of_others: set[str] = field(default_factory=set)
    """Files that records refer to which stay."""
    key_tags: set[bytes] = field(default_factory=set)
    """Of sealing keys that were found."""


def oldest_ms(store: Store) -> int:
    """Return when the oldest record that is kept was appended; 0: there is none."""
    chunk = store.read(START, max_bytes=1, max_records=1, is_all=True)
    return chunk.blocks[0].first_id.ms if chunk.blocks else 0


def find(store: Store, sought: Sequence[Sought]) -> Finding:
    """Look through everything that a store keeps, shipped or not; widens `sought`."""
    finding = Finding([set() for _ in sought], sought)
    is_new = True
    while is_new:  # again, for what belongs to requests that were only found now
        is_new = False
        for block in _blocks(store):
            _look(store, block, finding)
        for one, found in zip(sought, finding.found, strict=True):
            before = len(one.rids)
            one.add(found)
            is_new = is_new or len(one.rids) != before
    for one in sought:
        # Also what reads do not show: intents, and what lies in damaged blocks.
        if one.tombstone.is_open and not one.tombstone.names:
            finding.needles |= one.tags
    return finding


def destroy(store: Store, finding: Finding) -> int:
    """Overwrite what was found, and what is damaged; return how many blobs were found."""
    count, erased = store.erase(sorted(finding.needles))
    for stream, blob in erased:
        if stream:  # no key
            _judge(blob, store.stream_of(stream)[1], finding)
    return count


def _blocks(store: Store) -> Iterator[Block]:
    position = START
    while True:
        chunk = store.read(position, max_bytes=_READ_BYTES, max_records=_READ_RECORDS, is_all=True)
        yield from chunk.blocks
        if not chunk.blocks and chunk.next == position:
            return
        position = chunk.next


def _look(store: Store, block: Block, finding: Finding) -> None:
    if block.kind is BlockKind.KEY:
        for blob in block.blobs():
            if any(one.seeks_key(blob) for one in finding.sought):
                finding.needles.add(blob)
                finding.key_tags.add(parse_blob(blob).tag)
        return
    _, kind = store.stream_of(block.stream)
    for blob in block.blobs():
        if not _judge(blob, kind, finding):
            finding.uris_of_others.update(uris_of(blob))


def _judge(blob: bytes, kind: StreamKind, finding: Finding) -> bool:
    """Note a blob if it is sought; return whether it is."""
    is_sought = False
    for one, found in zip(finding.sought, finding.found, strict=True):
        record = one.judge(blob, kind)
        if record is not None:
            is_sought = True
            found.add(record)
            # A label may name its request by the caller's id alone; then it is its own needle.
            finding.needles.add(record.rid or blob)
    return is_sought
