"""Reads prediction records back from Redis and shows them: for `sluice log` and the demo.

Synchronous, over a plain redis-py client; knows keys and entries, nothing of the gateway's process.
Consumers that must not miss anything use a consumer group of their own; this reader has no state in
Redis and disturbs nobody. Entries that are no records of a known codec are skipped and logged.

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
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Any, Final

import msgspec
import numpy as np
import redis
from redis.exceptions import ResponseError

from gateway.ids import as_text
from gateway.prediction_log.record import LoggedPrediction, LoggedTensor, MalformedRecord, decode
from gateway.prediction_log.sink import blob_of
from gateway.prediction_log.streams import BEFORE_ALL, NAMES_KEY, EntryId, streams_key

PAGE: Final = 500
"""Entries read per command."""
BLOCK_MS: Final = 1_000
"""Longest wait inside one command: new streams are noticed, and Ctrl-C works, this often."""
SHOWN_BY_DEFAULT: Final = 10
VALUES_SHOWN: Final = 6
"""Elements of each tensor on a line."""
CHARACTERS_SHOWN: Final = 24
"""Of each BYTES element on a line."""
_SLOWEST_REQUEST_MS: Final = 3_600_000
"""A record is written when its request is answered; none is assumed to take longer than this."""
_CLOCK_SLACK_MS: Final = 5_000
"""How far a clock may have been set back between the making of an id and that of the entry."""

_log = logging.getLogger(__name__)

_Found = tuple[EntryId, str, LoggedPrediction]
_Fields = Mapping[bytes | str, bytes | str] | None
_Entries = Sequence[tuple[bytes | str | None, _Fields]]


def connect(url: str) -> redis.Redis:
    """Return a client fit for the functions below; it connects at its first command.

    Raises:
        ValueError: not a URL that redis-py understands.
    """
    return redis.Redis.from_url(
        url, decode_responses=False, protocol=2, socket_timeout=5 * BLOCK_MS / 1e3
    )


def known_names(client: redis.Redis) -> list[str]:
    """Return the public names that have streams, sorted."""
    return sorted(_text(member) for member in client.smembers(NAMES_KEY))


def streams(
    client: redis.Redis, names: Sequence[str] | None = None, *, shadows: bool = False
) -> list[str]:
    """Return the keys of the live or shadow streams of these names, or of all names, sorted."""
    keys: set[str] = set()
    for name in known_names(client) if names is None else names:
        registry = streams_key(name, is_shadow=shadows)
        keys.update(_text(member) for member in client.smembers(registry))
    return sorted(keys)


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
    keys = streams(client, names, shadows=shadows)
    if not from_start and not follow:
        return iter(_last(client, keys, SHOWN_BY_DEFAULT if count is None else count))
    # Read now and not at the first `next`: what is written from here on belongs to the answer.
    positions = {key: BEFORE_ALL if from_start else _last_id(client, key) for key in keys}
    past = _history(client, positions) if from_start else iter(())
    coming = _coming(client, positions, names, shadows) if follow else iter(())
    return islice(chain(past, coming), count)


def find(client: redis.Redis, name: str, rid: bytes) -> LoggedPrediction | None:
    """Return the live record of a request id under a public name, or None.

    The time in the id bounds the search: an entry is never older than its request.
    """
    rid_ms = int.from_bytes(rid[:6], "big")
    start = EntryId(max(0, rid_ms - _CLOCK_SLACK_MS), 0)
    for key in streams(client, [name]):
        for _, blob in _scan(client, key, start):
            if rid in blob:  # cheap, and true of nearly nothing but the record looked for
                prediction = _decoded(blob, key)
                if prediction is not None and prediction.rid == rid:
                    return prediction
            elif _answered_ms(blob) > rid_ms + _SLOWEST_REQUEST_MS:
                break
    return None


def render_line(prediction: LoggedPrediction) -> str:
    """Return one line for a person: when, what, who answered and how, first values in and out.

    The line of a shadow names the request that it copies in the place of the inputs.
    """
    who = f"{prediction.model}/{prediction.version}" if prediction.model else "-"
    question = _summary(prediction.inputs)
    if prediction.is_shadow:
        question = f"copy of {as_text(prediction.parent_rid)}"
    outcome = prediction.error or _summary(prediction.outputs)
    words = [
        _time(prediction.ts_us),
        prediction.name,
        who,
        prediction.served or prediction.variant or "-",
        prediction.reason or "-",
        str(prediction.status),
        f"{prediction.total_us / 1e3:.1f}ms",
        as_text(prediction.rid),
        f"{question} -> {outcome}",
    ]
    return _printable(" ".join(words))


def render_json(prediction: LoggedPrediction) -> str:
    """Return one JSON object on one line, with every value that was kept; NaN becomes null."""
    document = msgspec.structs.asdict(prediction)
    document |= {
        "time": _time(prediction.ts_us),
        "rid": as_text(prediction.rid),
        "artefact": prediction.artefact.hex(),
        "parent_rid": as_text(prediction.parent_rid) if prediction.parent_rid else "",
        "inputs": {name: _tensor_json(tensor) for name, tensor in prediction.inputs.items()},
        "outputs": {name: _tensor_json(tensor) for name, tensor in prediction.outputs.items()},
    }
    return msgspec.json.encode(document).decode()


def _history(client: redis.Redis, positions: dict[str, EntryId]) -> Iterator[LoggedPrediction]:
    """Yield what stands in the streams, merged; moves the positions along."""
    scans = [_records(client, key) for key in positions]
    for entry_id, key, prediction in heapq.merge(*scans, key=lambda found: found[:2]):
        positions[key] = entry_id
        yield prediction


def _coming(
    client: redis.Redis, positions: dict[str, EntryId], names: Sequence[str] | None, shadows: bool
) -> Iterator[LoggedPrediction]:
    """Yield what comes in behind the positions, for ever, of new streams too."""
    while True:
        for key, entries in _read_new(client, positions):
            positions[key] = _id(entries[-1][0])
            for _, fields in entries:
                prediction = _prediction(fields, key)
                if prediction is not None:
                    yield prediction
        for key in streams(client, names, shadows=shadows):
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
    reply: Any = client.xread(after, count=PAGE, block=BLOCK_MS)
    for key, entries in reply.items() if isinstance(reply, dict) else reply or ():
        yield _text(key), entries[0] if isinstance(reply, dict) else entries


def _last(client: redis.Redis, keys: Sequence[str], count: int) -> list[LoggedPrediction]:
    found: list[_Found] = []
    for key in keys:
        for raw_id, fields in client.xrevrange(key, count=count) or () if count > 0 else ():
            prediction = _prediction(fields, key)
            if prediction is not None:
                found.append((_id(raw_id), key, prediction))
    found.sort(key=lambda item: item[:2])
    return [prediction for _, _, prediction in found[-count:]]


def _records(client: redis.Redis, key: str) -> Iterator[_Found]:
    for entry_id, blob in _scan(client, key, BEFORE_ALL):
        found = _decoded(blob, key)
        if found is not None:
            yield entry_id, key, found


def _scan(client: redis.Redis, key: str, start: EntryId) -> Iterator[tuple[EntryId, bytes]]:
    """Yield the blobs of a stream from an id on, a page at a time."""
    while True:
        page = client.xrange(key, min=str(start), count=PAGE) or []
        for raw_id, fields in page:
            blob = blob_of(fields)
            if blob is not None:
                yield _id(raw_id), blob
        if len(page) < PAGE:
            return
        start = _id(page[-1][0]).after()


def _last_id(client: redis.Redis, key: str) -> EntryId:
    try:
        return EntryId.parse(client.xinfo_stream(key)["last-generated-id"])
    except ResponseError:
        return BEFORE_ALL  # deleted since it was listed


def _answered_ms(blob: bytes) -> int:
    """Return when the request of a record was answered; 0: no record."""
    try:
        prediction = decode(blob)
    except MalformedRecord:
        return 0
    return (prediction.ts_us + prediction.total_us) // 1_000


def _prediction(fields: _Fields, key: str) -> LoggedPrediction | None:
    blob = blob_of(fields)
    return _decoded(blob, key) if blob is not None else None


def _decoded(blob: bytes, key: str) -> LoggedPrediction | None:
    try:
        return decode(blob)
    except MalformedRecord as exc:
        _log.warning("entry is no prediction record", extra={"stream": key, "error": str(exc)})
        return None


def _id(raw: bytes | str | None) -> EntryId:
    return EntryId.parse(raw or b"0-0")


def _text(raw: bytes | str) -> str:
    return raw.decode() if isinstance(raw, bytes) else raw


def _time(ts_us: int) -> str:
    seconds, us = divmod(ts_us, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{us // 1_000:03d}Z"


def _summary(tensors: Mapping[str, LoggedTensor]) -> str:
    return ", ".join(_tensor_line(name, tensor) for name, tensor in tensors.items()) or "-"


def _tensor_line(name: str, tensor: LoggedTensor) -> str:
    head = f"{name} {tensor.datatype}{list(tensor.shape)}"
    try:
        values = _values(tensor, VALUES_SHOWN)
    except MalformedRecord:
        return f"{head} (unreadable)"
    shown = [f"{v:.4g}" if isinstance(v, float) else str(v)[:CHARACTERS_SHOWN] for v in values]
    if math.prod(tensor.shape) > len(values):
        shown.append("…")
    return " ".join((head, *shown))


def _tensor_json(tensor: LoggedTensor) -> dict[str, object]:
    try:
        values: list[object] | None = _values(tensor, None)
    except MalformedRecord:
        values = None
    return {
        "datatype": tensor.datatype,
        "shape": tensor.shape,
        "is_whole": tensor.is_whole,
        "values": values,
    }


def _values(tensor: LoggedTensor, limit: int | None) -> list[object]:
    """Return the first elements, row-major, as Python values; BYTES as text."""
    flat = tensor.array().reshape(-1)[:limit]
    if tensor.datatype == "BF16":  # the upper half of an FP32
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    values: list[object] = flat.tolist()
    return [v.decode(errors="backslashreplace") if isinstance(v, bytes) else v for v in values]


def _printable(line: str) -> str:
    """Escape what a terminal would act upon: names and BYTES come from callers."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
