"""What is to be done at certain moments of shipping: erasures, subjects' keys, names of columns.

Knows privacy, erasure and the shipper's hooks; knows no record. One per log; close it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final

from gateway.prediction_log.capture.policy import Policies
from gateway.prediction_log.capture.references import References
from gateway.prediction_log.erasure.watch import Erasures
from gateway.prediction_log.privacy.key_store import KeyStore, needed_from_ms
from gateway.prediction_log.privacy.tap import Privacy
from gateway.prediction_log.shipping.hooks import Hooks
from gateway.prediction_log.shipping.sink import DOWN
from gateway.prediction_log.spool.store import Store
from gateway.prediction_log_config import PredictionLogConfig
from gateway.redis_client import client_of

PRUNE_S: Final = 3_600.0


class Duties:
    """Made when the store is open.

    Args:
        config: of the log.
        url: of the Redis that the log is shipped to.
        privacy: the keys in use.
        policies: the names of columns.
    """

    def __init__(
        self, config: PredictionLogConfig, *, url: str, privacy: Privacy, policies: Policies
    ) -> None:
        self._privacy = privacy
        self._policies = policies
        self._client = client_of(url, timeout_s=config.timeout_s)
        self._keys: KeyStore | None = None
        if config.privacy.master_key_file:
            self._keys = KeyStore(config.privacy.keys_url or url, timeout_s=config.timeout_s)
        self._erasures: Erasures | None = None
        self._references: References | None = None
        self._retention = config.retention
        self._keeps_spool = config.durability != "memory"
        self._prune_at_s = 0.0

    def hooks(
        self,
        *,
        replica: str,
        store: Store,
        settle: Callable[[], Awaitable[None]],
        references: References,
    ) -> Hooks:
        """Return what the shipper is to call."""
        self._references = references
        self._erasures = Erasures(
            self._client,
            replica=replica,
            store=store,
            on_forget=self._privacy.forget,
            settle=settle,
            references=references,
        )
        return Hooks(
            on_connected=self._connected,
            on_keys=self._keys.put if self._keys is not None else None,
            on_tick=self._tick,
            schemas=self._schemas,
        )

    async def close(self) -> None:
        """Say that we end, and close the connections."""
        if self._erasures is not None:
            with suppress(*DOWN):
                await self._erasures.leave(keeps_spool=self._keeps_spool)
        await self._client.aclose()
        if self._keys is not None:
            await self._keys.close()

    async def _connected(self) -> None:
        """Before anything is shipped: what was erased goes, and the keys in use are there."""
        if self._erasures is not None:
            await self._erasures.apply()
        if self._keys is not None:
            await self._keys.put(self._privacy.key_blobs())

    async def _tick(self) -> None:
        """Every two seconds: erasures; once an hour: what no record can need any more goes."""
        if self._erasures is not None:
            await self._erasures.apply()
        now_s = time.monotonic()
        if now_s >= self._prune_at_s:
            self._prune_at_s = now_s + PRUNE_S
            await self._prune(needed_from_ms(self._retention, time.time_ns() // 1_000_000))

    async def _prune(self, before_ms: int) -> None:
        """Delete the keys that were made, and the files that were last named, before a time."""
        if before_ms <= 0:
            return
        if self._references is not None:
            await asyncio.to_thread(self._references.expire, before_ms)
        if self._keys is not None:
            await self._keys.prune(before_ms)

    def _schemas(self, name: str) -> Mapping[bytes, bytes]:
        policy = self._policies.of(name)
        return {policy.columns_digest: policy.columns_json} if policy.columns_digest else {}
