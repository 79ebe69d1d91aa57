"""Which sequence numbers an erasure took, so that a reader can tell them from losses.

Of each public name a hash: "worker/kind" -> ascending ranges of sequence numbers, as JSON. They say
how many records of which process went, and nothing of whose they were or what stood in them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
import redis

from gateway.prediction_log.erasure.tombstone import KEPT_S, Found
from gateway.prediction_log.streams import StreamKind, erased_key

Ranges = list[tuple[int, int]]
"""First and last of each."""

_decode: Final = msgspec.json.Decoder(list[tuple[int, int]]).decode


def field(worker: str, kind: StreamKind) -> str:
    """Return the field of a worker's sequence of a kind."""
    return f"{worker}/{kind}"


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return ranges in order, joined where they touch or overlap."""
    joined: Ranges = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def note(client: redis.Redis, found: Iterable[Found]) -> None:
    """Add erased records to the hashes of their names; adding one twice is the same as once.

    For one caller at a time.
    """
    numbers: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for one in found:
        if one.worker and one.seq:
            place = one.name, field(one.worker, one.kind)
            numbers.setdefault(place, []).append((one.seq, one.seq))
    for (name, at), ranges in numbers.items():
        key = erased_key(name)
        before: Any = client.hget(key, at)  # Any: as redis-py types it for both its clients
        joined = merged(ranges + (_decode(before) if before else []))
        client.hset(key, at, msgspec.json.encode(joined))
        client.expire(key, KEPT_S)


def read(client: redis.Redis, name: str) -> dict[str, Ranges]:
    """Return the ranges of a public name by `field`."""
    found: Any = client.hgetall(erased_key(name))  # Any: as above
    return {at.decode(): _decode(ranges) for at, ranges in found.items()}
