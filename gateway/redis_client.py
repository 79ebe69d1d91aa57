"""Clients of Redis that send nothing twice: redis-py's own retries would, without anybody knowing.

Knows nothing of what is stored. They connect at their first command.
"""

from __future__ import annotations

from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry


def client_of(
    url: str, *, timeout_s: float, max_connections: int | None = None
) -> redis.asyncio.Redis:
    """Return a client for an event loop.

    Args:
        url: redis://, rediss:// or unix://.
        timeout_s: longest wait for a connection, and for an answer.
        max_connections: None: as many as are asked for at once.

    Raises:
        ValueError: not a URL that redis-py understands.
    """
    return redis.asyncio.Redis.from_url(
        url,
        retry=AsyncRetry(NoBackoff(), 0),
        socket_connect_timeout=timeout_s,
        max_connections=max_connections,
        **_shared(timeout_s),
    )


def blocking_client_of(url: str, *, timeout_s: float) -> redis.Redis:
    """Return a client for a command line; as above, but a connection may take its time."""
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **_shared(timeout_s))


def _shared(timeout_s: float) -> dict[str, Any]:  # Any: redis-py's keywords
    return {"decode_responses": False, "protocol": 2, "socket_timeout": timeout_s}
