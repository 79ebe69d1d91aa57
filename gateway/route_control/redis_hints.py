"""Hears through Redis pub/sub that a route was changed: a hint to look, never what to apply.

A task of its own holds one connection and listens, so that whoever waits for a hint may give up
waiting at any moment. Pub/sub delivers at most once: what is said while the connection is down is
lost. Therefore every connection made counts as a hint, and the store is polled besides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Final

from redis import exceptions as redis_errors
from redis.asyncio.client import PubSub

from gateway.ending import end
from gateway.redis_client import client_of
from gateway.route_control.redis_store import CHANNEL

FIRST_RETRY_S: Final = 0.05
LONGEST_RETRY_S: Final = 1.0
_JITTER: Final = 0.5
"""The share of a pause that chance may take off it: replicas do not come back all at once."""
_MOST_DOUBLINGS: Final = 10
_KEEPALIVE_S: Final = 5.0
"""After this much silence the server is asked for a sign of life, and has as long to give one."""

_random: Final = Random()
_log = logging.getLogger(__name__)


class RedisChangeHints:
    """Implements ChangeHints. Starts to listen at the first `next`; close it in the same loop."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 1.0,
        keepalive_s: float = _KEEPALIVE_S,
        chance: Callable[[], float] = _random.random,
    ) -> None:
        """Raises ValueError for a URL that redis-py does not know.

        Args:
            url: of one Redis server.
            timeout_s: the longest that connecting, or sending, may take.
            keepalive_s: silence after which the server is asked whether it is still there.
            chance: numbers in [0, 1), for the pauses between attempts.
        """
        self._client = client_of(url, timeout_s=timeout_s)
        self._keepalive_s = keepalive_s
        self._chance = chance
        self._hinted = asyncio.Event()
        self._listener: asyncio.Task[None] | None = None
        self._is_closed = False
        self.connections = 0
        """Connections made so far."""
        self.is_connected = False
        """Whether hints come in now."""

    async def next(self, timeout_s: float) -> bool:
        """See ChangeHints. After `close` it only sleeps."""
        if self._listener is None and not self._is_closed:
            self._listener = asyncio.create_task(self._listen(), name="route change hints")
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await self._hinted.wait()
        except TimeoutError:
            return False
        self._hinted.clear()
        return True

    async def close(self) -> None:
        """Stop listening and release the connection. Idempotent."""
        self._is_closed = True
        listener, self._listener = self._listener, None
        if listener is not None:
            await end(listener)
        await self._client.aclose()

    async def _listen(self) -> None:
        """Hold a connection for ever; only cancellation ends it."""
        failures = 0
        while True:
            made = self.connections
            try:
                await self._hear_until_lost()
            except Exception as exc:
                # Whatever a broken connection makes the library raise: the answer is another one.
                failures = 0 if self.connections > made else failures + 1
                if failures in (0, 1):
                    _log.warning("route change hints lost", extra={"why": _why(exc)})
            await asyncio.sleep(self._pause_s(failures))

    async def _hear_until_lost(self) -> None:
        """Connect, subscribe and pass on what is heard. Always ends by raising."""
        heard = self._client.pubsub()
        try:
            await heard.subscribe(CHANNEL)
            is_asked = False
            while True:
                message = await heard.get_message(timeout=self._keepalive_s)
                if message is not None:
                    is_asked = False
                    self._take(str(message["type"]))
                elif is_asked:
                    raise redis_errors.TimeoutError(f"silent for {2 * self._keepalive_s:g} s")
                else:
                    is_asked = True
                    await heard.ping()
        finally:
            self.is_connected = False
            await self._drop(heard)

    def _take(self, kind: str) -> None:
        if kind == "subscribe":  # confirmed: from here on nothing is missed
            self.connections += 1
            self.is_connected = True
            _log.info("route change hints up", extra={"connections": self.connections})
        if kind in ("subscribe", "message"):
            self._hinted.set()

    async def _drop(self, heard: PubSub) -> None:
        # Cancellation: closes without waiting for the peer, so this also ends when cancelled.
        with suppress(redis_errors.RedisError, OSError):
            await heard.aclose()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped

    def _pause_s(self, failures: int) -> float:
        longest_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(failures, _MOST_DOUBLINGS))
        return longest_s * (1 - _JITTER * self._chance())


def _why(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}"
