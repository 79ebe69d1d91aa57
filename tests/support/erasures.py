"""What tests of erasures share: records of subjects, with a marker in them, and where to look."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import redis

from gateway.demo.redis_server import RedisBinary, RedisServer
from gateway.ids import new_id
from gateway.prediction_log.privacy.keyring import Keyring, create
from gateway.prediction_log.record import (
    SCHEMA,
    LoggedLabel,
    LoggedPrediction,
    LoggedTensor,
    Reduced,
    encode_logged,
)
from gateway.prediction_log.streams import NAMES_KEY, StreamKind, stream_key, streams_key
from tests.support.redis import running_redis

MARK: Final = b"MARK-of-the-subject-4711"
"""Stands in the subject's records, and in nobody else's."""
WORKER: Final = "gw-1@1"


def keyring_in(directory: Path) -> Keyring:
    """Return a keyring of a fresh key file."""
    path = directory / "keys"
    create(path)
    return Keyring.load(path)


def prediction(
    seq: int,
    *,
    rid: bytes | None = None,
    subject: bytes = b"",
    text: bytes = b"ordinary",
    uri: str = "",
    **fields: Any,  # Any: fields of the document
) -> bytes:
    """Return the blob of a prediction with a text in it."""
    payload = Reduced(kind="ref", uri=uri) if uri else len(text).to_bytes(4, "little") + text
    document = LoggedPrediction(
        schema=SCHEMA,
        rid=rid or new_id(),
        ts_us=fields.pop("ts_us", time.time_ns() // 1_000),
        name=fields.pop("name", "digits"),
        status=200,
        weight=1.0,
        sampled_as="base",
        worker=fields.pop("worker", WORKER),
        seq=seq,
        subject=subject,
        inputs={"note": LoggedTensor("BYTES", (1,), payload)},
        **fields,
    )
    return encode_logged(document)


def label(seq: int, *, rid: bytes = b"", cid: str = "", target: str = "7") -> bytes:
    """Return the blob of a label."""
    now_us = time.time_ns() // 1_000
    document = LoggedLabel(
        schema=SCHEMA,
        worker=WORKER,
        seq=seq,
        ts_us=now_us,
        received_us=now_us,
        name="digits",
        target=target,
        rid=rid,
        cid=cid,
    )
    return encode_logged(document)


def put(
    client: redis.Redis,
    blobs: list[bytes],
    *,
    kind: StreamKind = StreamKind.LIVE,
    name: str = "digits",
    replica: str = "gw-1",
) -> str:
    """Write blobs into a stream as a gateway does, and return its key."""
    key = stream_key(name, replica, kind)
    client.sadd(NAMES_KEY, name)
    client.sadd(streams_key(name, kind), key)
    for blob in blobs:
        client.xadd(key, {"r": blob})
    return key


def blobs_in(client: redis.Redis, key: str) -> list[bytes]:
    """Return the blobs of a stream."""
    entries: Any = client.xrange(key)  # Any: as redis-py types it
    return [fields[b"r"] for _, fields in entries]


@contextmanager
def plain_redis(binary: RedisBinary | None = None) -> Iterator[tuple[RedisServer, redis.Redis]]:
    """Start a server that compresses nothing, so that its files can be searched."""
    with running_redis(binary) as server:
        client = redis.Redis.from_url(server.url, protocol=2)
        client.config_set("rdbcompression", "no")
        yield server, client
        client.close()


def files_with(folder: Path, needles: list[bytes]) -> list[str]:
    """Return the files under a folder in which one of the needles stands."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                data = path.read_bytes()
            except FileNotFoundError:  # a file that Redis replaced meanwhile
                continue
            found += [f"{path.name}: {needle!r}" for needle in needles if needle in data]
    return found
