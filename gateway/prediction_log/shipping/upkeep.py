"""What shipping does besides: signs of life, trims of idle streams, and a look at Redis' memory.

Used by the shipper's task between two chunks, and by nobody else; time is the event loop's.

    every PROBE_S    if nothing was exchanged meanwhile: a PING
    every BEAT_S     per idle stream: the append script without records, which keeps the name ours,
                     trims, and notices that Redis forgot
    every ORPHANS_S  streams of replicas that are gone are trimmed, a few at a time
    every MEMORY_S   what retention needs at the rate of late; first once the rate can be told
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, NamedTuple

from gateway.prediction_log.shipping.capacity import Load, evicts_streams, need_bytes
from gateway.prediction_log.shipping.delivery import Delivery
from gateway.prediction_log.shipping.fencing import BEAT_S
from gateway.prediction_log.shipping.outlets import Outlet
from gateway.prediction_log.shipping.retention import Retention
from gateway.prediction_log.shipping.sink import RedisSink, SinkRefused
from gateway.prediction_log.streams import StreamKind, stream_key

PROBE_S: Final = 5.0
ORPHANS_S: Final = 60.0
ORPHANS_AT_ONCE: Final = 20
MEMORY_S: Final = 60.0
_FIRST_MEMORY_S: Final = 10.0
_KINDS: Final = (StreamKind.LIVE, StreamKind.SHADOW, StreamKind.BIG, StreamKind.LABELS)

_log = logging.getLogger(__name__)


class _Orphan(NamedTuple):
    name: str
    kind: StreamKind
    key: str


class Upkeep:
    """Remembers when what is due."""

    def __init__(
        self,
        *,
        sink: RedisSink,
        delivery: Delivery,
        retention: Retention,
        clock_ms: Callable[[], int],
    ) -> None:
        self._sink = sink
        self._delivery = delivery
        self._retention = retention
        self._clock_ms = clock_ms
        self._exchanged_s = 0.0
        self._orphans_due_s = 0.0
        self._memory_due_s = 0.0
        self._rates_since_s: float | None = None
        self._orphans: list[_Orphan] = []
        self._told_bytes = 0
        self._warned: tuple[str, int] | None = None

    async def begin(self, now_s: float) -> None:
        """Look at a server that was just connected to."""
        self._exchanged_s = now_s
        self._rates_since_s = self._rates_since_s or now_s
        self._memory_due_s = min(self._memory_due_s or now_s, now_s + _FIRST_MEMORY_S)
        if not self._sink.can_trim_by_age:
            _log.error("this Redis cannot trim by age (XTRIM MINID): records stand for ever")
        await self._warn_of_eviction()

    async def tend(self, now_s: float, *, has_exchanged: bool) -> None:
        """Do what is due.

        Raises:
            SinkDown, Fenced, Rewound: as Delivery.deliver.
        """
        if has_exchanged:
            self._exchanged_s = now_s
        for outlet in self._delivery.outlets:
            if now_s - outlet.contact_s >= BEAT_S:
                await self._delivery.touch(outlet)
                self._exchanged_s = now_s
        if now_s - self._exchanged_s >= PROBE_S:
            await self._sink.ping()
            self._exchanged_s = now_s
        if self._orphans or now_s >= self._orphans_due_s:
            await self._trim_orphans(now_s)
        if now_s >= self._memory_due_s:
            self._memory_due_s = now_s + MEMORY_S
            await self._tell_need(now_s)

    async def _trim_orphans(self, now_s: float) -> None:
        if not self._orphans:
            self._orphans_due_s = now_s + ORPHANS_S
            self._orphans = await self._find_orphans()
        now_ms = self._clock_ms()
        for _ in range(min(ORPHANS_AT_ONCE, len(self._orphans))):
            name, kind, key = self._orphans.pop()
            replica = key.removeprefix(stream_key(name, "", kind))
            trim = self._retention.trim(kind, 0.0, now_ms, is_exact=True)
            try:
                removed = await self._sink.trim_orphan(name, replica, key, trim)
            except SinkRefused:
                continue
            self._delivery.counts.orphans_trimmed += removed

    async def _find_orphans(self) -> list[_Orphan]:
        """Return the streams that are not among those we write: most belong to other gateways."""
        found = []
        outlets = self._delivery.outlets
        try:
            for name in sorted(await self._sink.names()):
                for kind in _KINDS:
                    keys = await self._sink.streams(name, kind)
                    found += [_Orphan(name, kind, key) for key in keys if key not in outlets]
        except SinkRefused as exc:
            self._delivery.last_error = str(exc)
        return found

    async def _warn_of_eviction(self) -> None:
        memory = await self._sink.memory()
        if memory is None or not evicts_streams(memory.policy, memory.limit_bytes):
            return
        if self._warned != (memory.policy, memory.limit_bytes):
            self._warned = memory.policy, memory.limit_bytes
            fields = {"policy": memory.policy, "maxmemory_bytes": memory.limit_bytes}
            _log.warning(
                "this Redis may evict whole streams of records when it is full: use the policy "
                "noeviction or one of the volatile ones",
                extra=fields,
            )

    async def _tell_need(self, now_s: float) -> None:
        """Work out what retention needs, and say so when it is new or has doubled."""
        elapsed_s = max(1e-3, now_s - (self._rates_since_s or now_s))
        loads = [_load(outlet, elapsed_s) for outlet in self._delivery.outlets]
        need = need_bytes(loads, self._retention)
        self._delivery.counts.memory_need_bytes = need
        if need < 2 * max(self._told_bytes, 1):
            return
        self._told_bytes = need
        memory = await self._sink.memory()
        limit = memory.limit_bytes if memory is not None else 0
        per_s = sum(load.per_s for load in loads)
        fields = {"need_bytes": need, "records_per_s": round(per_s, 1), "maxmemory_bytes": limit}
        if limit and need > limit:
            _log.warning("retention needs more memory than Redis may use", extra=fields)
        else:
            _log.info("memory that retention needs at the current rate", extra=fields)


def _load(outlet: Outlet, elapsed_s: float) -> Load:
    """Return what comes into a stream: what came before, until there is a minute of our own."""
    if elapsed_s < MEMORY_S and outlet.history_per_s:
        return Load(outlet.kind, outlet.history_per_s, float(outlet.history_bytes))
    return Load(outlet.kind, outlet.records / elapsed_s, outlet.mean_bytes)
