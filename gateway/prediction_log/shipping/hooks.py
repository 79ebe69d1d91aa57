"""What shipping asks of others: to count with it, and to do things at certain moments of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from gateway.prediction_log.shipping.sink import SinkDown
from gateway.prediction_log.spool.store import Lost


class ShipBooks(Protocol):
    """Who counts the records; called in the same step in which the store counts them."""

    def shipped(self, stream: int, records: int) -> None:
        """Records stand in Redis, or are settled otherwise without being lost."""

    def respooled(self, stream: int, records: int) -> None:
        """Records that were shipped count as spooled again: Redis forgot them."""

    def lost(self, lost: Lost) -> None:
        """Spooled records are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What others want done at certain moments of shipping, in the shipper's own task.

    A hook that fails makes the sink count as down: nothing is sent before it succeeds.
    """

    on_connected: Callable[[], Awaitable[object]] | None = None
    """After each connection, before anything is sent."""
    on_keys: Callable[[list[bytes]], Awaitable[object]] | None = None
    """For the blobs of each KEY block, before any record after it is sent; may come again."""
    on_tick: Callable[[], Awaitable[object]] | None = None
    """Every two seconds, with no record under way; while fenced too."""
    schemas: Callable[[str], Mapping[bytes, bytes]] | None = None
    """The column names of a public name, JSON by digest."""


async def run_hook(work: Awaitable[object]) -> None:
    """Await a hook.

    Raises:
        SinkDown: it failed.
    """
    try:
        await work
    except SinkDown:
        raise
    except Exception as exc:
        raise SinkDown(f"{type(exc).__name__}: {exc}") from exc
