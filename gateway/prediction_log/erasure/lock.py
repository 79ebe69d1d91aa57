"""Only one erasure runs at a time: a key with an expiry, held by whoever has its token.

Knows one key. A holder that was stopped for longer than the expiry has lost it, and is told so at
its next step; what it had begun is harmless, see scripts.py.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import redis

from gateway.prediction_log.erasure.tombstone import LOCK_KEY

HELD_MS: Final = 60_000
_EXTEND_EACH_S: Final = 5.0
_PAUSE_S: Final = 0.1

_EXTEND: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_RELEASE: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""


class AnotherRuns(Exception):
    """Another erasure holds the lock, or took it over."""


class Lock:
    """Use with `with`, and call `extend` between the steps of what is locked."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        wait_s: float,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._wait_s = wait_s
        self._clock_s = clock_s
        self._token = secrets.token_hex(16)
        self._extended_s = 0.0

    def __enter__(self) -> Self:
        """Wait for the lock. Raises AnotherRuns."""
        limit_s = self._clock_s() + self._wait_s
        while not self._client.set(LOCK_KEY, self._token, nx=True, px=HELD_MS):
            if self._clock_s() >= limit_s:
                raise AnotherRuns("another erasure runs on this Redis")
            time.sleep(_PAUSE_S)
        self._extended_s = self._clock_s()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._client.eval(_RELEASE, 1, LOCK_KEY, self._token)
        except redis.RedisError:
            return  # it ends by itself

    def extend(self) -> None:
        """Hold it for another while; cheap to call often. Raises AnotherRuns."""
        now_s = self._clock_s()
        if now_s - self._extended_s < _EXTEND_EACH_S:
            return
        # Any: redis-py types a script's reply as that of both its clients
        is_ours: Any = self._client.eval(_EXTEND, 1, LOCK_KEY, self._token, str(HELD_MS))
        if not is_ours:
            raise AnotherRuns("another erasure took over: this one was stopped for too long")
        self._extended_s = now_s
