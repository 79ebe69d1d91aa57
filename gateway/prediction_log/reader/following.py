"""Records one at a time, as they come, and one by its id: for screens, not for sums.

No state in Redis, so that nobody is disturbed; consumers that must not miss anything use a group
(groups.py). Entries that are no records of a known codec are passed over and logged.

What shadows answered stands in streams of its own, which `shadows=True` reads instead of the live
ones. A shadow's record joins that of the request it copies by id, live.rid == shadow.parent_rid:

    live = {record.rid: record for record in live_records}
    pairs = [(live[s.parent_rid], s) for s in shadow_records if s.parent_rid in live]

One request has one record per shadow that answered it or failed at it; `served` names the shadow,
`variant` the live variant that the request was assigned, and the inputs are in the live record.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Final

import redis

from gateway.prediction_log.reader import entries
from gateway.prediction_log.reader.entries import Fields, Window, blob_of, entry_id, text_of
from gateway.prediction_log.record import (
    CODEC_AUDIT,
    LoggedPrediction,
    MalformedRecord,
    decode,
)
from gateway.prediction_log.streams import BEFORE_ALL, EntryId

BLOCK_MS: Final = 1_000
"""Longest wait inside one command: new streams are noticed, and Ctrl-C works, this often."""
SHOWN_BY_DEFAULT: Final = 10
_SLOWEST_REQUEST_MS: Final = 3_600_000
"""A record is written when its request is answered; none is assumed to take longer than this."""
_CLOCK_SLACK_MS: Final = 5_000
"""How far a clock may have been set back between the making of an id and that of the entry."""

_log = logging.getLogger(__name__)

_Found = tuple[EntryId, str, LoggedPrediction]
_Entries = Sequence[tuple[bytes | str | None, Fields]]


def tail(
    client: redis.Redis,
    *,
    names: Sequence[str] | None,
    from_start: bool,
    follow: bool,
    count: int | None,
    shadows: bool = False,
) -> Iterator[LoggedPrediction]:
    """Yield the records of these names (None: all), of all replicas, in order of entry id.

    The live records, or those of the shadows instead.

    `from_start` begins at the oldest entry. Without it, `follow` begins at what comes now, and
    without `follow` too it is the last `count` entries (10 unless told). `follow` does not end by
    itself; it merges replicas as their entries come in. At most `count` records are yielded.
    """
    keys = entries.streams(client, names, shadows=shadows)
    if not from_start and not follow:
        return iter(_last(client, keys, SHOWN_BY_DEFAULT if count is None else count))
    # Read now and not at the first `next`: what is written from here on belongs to the answer.
    positions = {k: BEFORE_ALL if from_start else entries.last_id(client, k) for k in keys}
    past = _history(client, positions) if from_start else iter(())
    coming = _coming(client, positions, names, shadows) if follow else iter(())
    return islice(chain(past, coming), count)


def find(client: redis.Redis, name: str, rid: bytes) -> LoggedPrediction | None:
    """Return the live record of a request id under a public name, or None.

    The time in the id bounds the search: an entry is never older than its request.
    """
    rid_ms = int.from_bytes(rid[:6], "big")
    window = Window(str(max(0, rid_ms - _CLOCK_SLACK_MS)))
    for key in entries.streams(client, [name]):
        for page in entries.pages(client, key, window):
            for blob in page.blobs:
                # Cheap, and true of nearly nothing but the record looked for.
                if rid in blob and (found := _decoded(blob, key)) and found.rid == rid:
                    return found
            if any(_answered_ms(blob) > rid_ms + _SLOWEST_REQUEST_MS for blob in page.blobs[-1:]):
                break
    return None


def _history(client: redis.Redis, positions: dict[str, EntryId]) -> Iterator[LoggedPrediction]:
    """Yield what stands in the streams, merged; moves the positions along."""
    scans = [_records(client, key) for key in positions]
    for at, key, prediction in heapq.merge(*scans, key=lambda found: found[:2]):
        positions[key] = at
        yield prediction


def _coming(
    client: redis.Redis, positions: dict[str, EntryId], names: Sequence[str] | None, shadows: bool
) -> Iterator[LoggedPrediction]:
    """Yield what comes in behind the positions, for ever, of new streams too."""
    while True:
        for key, found in _read_new(client, positions):
            positions[key] = entry_id(found[-1][0])
            for _, fields in found:
                prediction = _prediction(fields, key)
                if prediction is not None:
                    yield prediction
        for key in entries.streams(client, names, shadows=shadows):
            positions.setdefault(key, BEFORE_ALL)  # it did not exist when we began


def _read_new(
    client: redis.Redis, positions: Mapping[str, EntryId]
) -> Iterator[tuple[str, _Entries]]:
    """Wait for entries behind the positions, at most for BLOCK_MS."""
    if not positions:
        time.sleep(BLOCK_MS / 1e3)
        return
    after: dict[Any, Any] = {key: str(position) for key, position in positions.items()}
    # Any: redis-py's stubs make the mapping's key type invariant, and the reply a union by protocol
    reply: Any = client.xread(after, count=entries.PAGE, block=BLOCK_MS)
    for key, found in reply.items() if isinstance(reply, dict) else reply or ():
        yield text_of(key), found[0] if isinstance(reply, dict) else found


def _last(client: redis.Redis, keys: Sequence[str], count: int) -> list[LoggedPrediction]:
    found: list[_Found] = []
    for key in keys if count > 0 else ():
        found += islice(_backwards(client, key, count), count)
    found.sort(key=lambda item: item[:2])
    return [prediction for _, _, prediction in found[-count:]]


def _backwards(client: redis.Redis, key: str, count: int) -> Iterator[_Found]:
    """Yield the records of a stream, newest first; there are other entries among them."""
    before = "+"
    while page := client.xrevrange(key, max=before, count=count):
        for raw_id, fields in page:
            prediction = _prediction(fields, key)
            if prediction is not None:
                yield entry_id(raw_id), key, prediction
        before = f"({entry_id(page[-1][0])}"


def _records(client: redis.Redis, key: str) -> Iterator[_Found]:
    for page in entries.pages(client, key):
        for raw_id, blob in zip(page.ids, page.blobs, strict=True):
            found = _decoded(blob, key)
            if found is not None:
                yield entry_id(raw_id), key, found


def _answered_ms(blob: bytes) -> int:
    """Return when the request of a record was answered; 0: no record."""
    try:
        prediction = decode(blob)
    except MalformedRecord:
        return 0
    return (prediction.ts_us + prediction.total_us) // 1_000


def _prediction(fields: Fields, key: str) -> LoggedPrediction | None:
    blob = blob_of(fields)
    return _decoded(blob, key) if blob is not None else None


def _decoded(blob: bytes, key: str) -> LoggedPrediction | None:
    if blob[:1] == CODEC_AUDIT:  # what a worker counted
        return None
    try:
        return decode(blob)
    except MalformedRecord as exc:
        _log.warning("entry is no prediction record", extra={"stream": key, "error": str(exc)})
        return None
