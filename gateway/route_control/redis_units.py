"""Adds up the units of experiments over all replicas, in Redis sets.

Knows keys and commands; what a unit is and which are counted stands in units.py. One set per
route, epoch and variant, rt:{route}:units:<epoch>:<variant>, with 8 bytes per unit. A set takes the
same unit from several replicas, or twice from one whose answer was lost, and counts it once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from redis import exceptions as redis_errors

from gateway.redis_client import client_of
from gateway.route_control.store import StoreDown
from gateway.route_control.units import NewUnits, UnitCounter

EXPIRE_S: Final = 30 * 24 * 3600
"""After the last unit that was new to a replica."""
_BATCH_UNITS: Final = 2_000
"""Units per round trip: encoding them takes the event loop two or three milliseconds."""
_CONNECTIONS: Final = 2
"""One that shares while another counts."""


def units_key(route: str, epoch: int, variant: str) -> str:
    """Return the key of the set of a variant's units."""
    return f"rt:{{{route}}}:units:{epoch}:{variant}"


class RedisUnitBoard:
    """Where replicas put their units together.

    Tasks may call it at the same time: at most two round trips are under way at once, and each,
    waiting its turn included, takes no longer than the timeout.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        """Raises ValueError for a URL that redis-py does not understand."""
        self._client = client_of(url, timeout_s=timeout_s)
        self._timeout_s = timeout_s
        self._connections = asyncio.Semaphore(_CONNECTIONS)

    async def share(self, counter: UnitCounter) -> int:
        """Add a replica's new units to the sets; return how many went there.

        Cancellation: units whose arrival was not confirmed go back to the counter, as they do after
        an error. They may have arrived nevertheless; the next time adds nothing then.

        Raises:
            StoreDown: some are not shared and stay with the counter, bounded by its limit.
        """
        shared = 0
        while new := counter.take_new(_BATCH_UNITS):
            undelivered = new
            try:
                errors = await self._add(new)
                undelivered = [n for n, error in zip(new, errors, strict=True) if error]
            finally:
                counter.give_back(undelivered)
            shared += sum(len(n.units) for n in new) - sum(len(n.units) for n in undelivered)
            if undelivered:
                raise StoreDown(next(error for error in errors if error))
        return shared

    async def counts(self, route: str, epoch: int, variants: Sequence[str]) -> dict[str, int]:
        """Return the units of each variant, over all replicas, as far as they were shared.

        Raises:
            StoreDown: Redis cannot tell now.
        """
        pipeline = self._client.pipeline(transaction=False)
        for variant in variants:
            pipeline.scard(units_key(route, epoch, variant))
        async with self._translated():
            found = await pipeline.execute()
        return dict(zip(variants, found, strict=True))

    async def close(self) -> None:
        """Release the connection. Idempotent."""
        try:
            await self._client.aclose()
        except (redis_errors.RedisError, OSError):
            return  # it was broken already

    async def _add(self, new: Sequence[NewUnits]) -> list[str]:
        """Send one batch; return what each part of it was refused with, empty where it was not."""
        pipeline = self._client.pipeline(transaction=False)
        for route, epoch, variant, units in new:
            key = units_key(route, epoch, variant)
            pipeline.sadd(key, *units)
            pipeline.expire(key, EXPIRE_S)
        async with self._translated():
            answers = await pipeline.execute(raise_on_error=False)
        failures = [f"{type(a).__name__}: {a}" if isinstance(a, Exception) else "" for a in answers]
        return [sadd or expire for sadd, expire in zip(failures[::2], failures[1::2], strict=True)]

    @asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        """Keep a round trip to its time; turn whatever goes wrong into StoreDown."""
        try:
            async with asyncio.timeout(self._timeout_s), self._connections:
                yield
        except (redis_errors.RedisError, OSError) as exc:
            raise StoreDown(f"{type(exc).__name__}: {exc}") from exc
