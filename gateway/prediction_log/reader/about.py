"""What Redis knows about the streams of a name, beside their entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import redis

from gateway.prediction_log.reader.entries import Window, command, epoch_ms, stream_info, text_of
from gateway.prediction_log.reader.numbers import Range
from gateway.prediction_log.reader.tally import Tally
from gateway.prediction_log.streams import EntryId, StreamKind, erased_key, schema_key

_ranges: Final = msgspec.json.Decoder(list[tuple[int, int]]).decode
_names: Final = msgspec.json.Decoder(dict[str, list[str]]).decode


def begin(
    client: redis.Redis, tally: Tally, kind: StreamKind, keys: Sequence[str], window: Window
) -> None:
    """Tell a tally when the window begins in each of the streams."""
    since_ms = epoch_ms(window.first) or 0
    for key in keys:
        tally.begin(kind, key, max(since_ms, _trimmed_until_ms(client, key)))


def column_names(client: redis.Redis, name: str) -> dict[bytes, dict[str, list[str]]]:
    """Return the names of the columns of a name's tensors, by digest."""
    found = command(client, "HGETALL", schema_key(name))
    names = {}
    for digest, columns in found.items():
        try:
            names[digest] = _names(columns)
        except msgspec.DecodeError:
            continue  # of a later version
    return names


def erased_numbers(client: redis.Redis, name: str) -> Mapping[tuple[str, StreamKind], list[Range]]:
    """Return the sequence numbers that erasures took, by worker and kind, in order."""
    found = command(client, "HGETALL", erased_key(name))
    erased = {}
    for field, ranges in found.items():
        worker, _, kind = text_of(field).rpartition("/")
        try:
            erased[worker, StreamKind(kind)] = [Range(*pair) for pair in _ranges(ranges)]
        except ValueError:
            continue  # of a later version
    return erased


def _trimmed_until_ms(client: redis.Redis, key: str) -> int:
    """Return from when on a stream has its entries; 0: from its first on, which Redis 7 knows."""
    info = stream_info(client, key)
    if info is None:
        return 0  # deleted since it was listed
    if info.get("entries-added") == info["length"]:
        return 0
    first = info.get("first-entry")
    return EntryId.parse(first[0] if first else info["last-generated-id"]).ms
