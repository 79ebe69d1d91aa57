"""A gateway as an erasure sees it: a spool, and somebody who watches over it in a thread."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import redis.asyncio

from gateway.prediction_log.capture.references import References
from gateway.prediction_log.erasure.watch import Erasures
from gateway.prediction_log.spool.block import BlockKind
from gateway.prediction_log.spool.opening import open_spool
from gateway.prediction_log.spool.spool import FileSpool
from gateway.prediction_log.spool.store import Group
from gateway.prediction_log.streams import StreamKind
from tests.support.prediction_log import log_settings

_LOOK_S: Final = 0.02
_WAIT_S: Final = 10.0

Content = list[tuple[StreamKind, list[bytes]]]


def fill_spool(
    folder: Path, replica: str, content: Content, keys: list[bytes] | None = None
) -> None:
    """Leave a spool behind as a gateway does that ends before it has shipped anything."""

    async def fill() -> None:
        store = _opened(folder / replica)
        try:
            _append(store, content, keys or [])
        finally:
            await store.close()

    asyncio.run(fill())


class WatchingGateway:
    """Holds a spool and looks for erasures; use with `with`.

    Args:
        url: of Redis.
        folder: of all spools.
        replica: names it.
        content: what stands in its spool from the start.
        is_deaf: it never looks, as a gateway that hangs.
    """

    def __init__(
        self, url: str, folder: Path, replica: str, content: Content, *, is_deaf: bool = False
    ) -> None:
        self._url = url
        self._directory = folder / replica
        self._replica = replica
        self._content = content
        self._is_deaf = is_deaf
        self._stop = threading.Event()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.forgotten: list[bytes] = []

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_up.wait(_WAIT_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(_WAIT_S)

    async def _run(self) -> None:
        store = _opened(self._directory)
        client = redis.asyncio.Redis.from_url(self._url, protocol=2)
        watched = Erasures(
            client,
            replica=self._replica,
            store=store,
            on_forget=self.forgotten.append,
            references=References(self._directory.parent / "references", max_bytes=1),
        )
        try:
            _append(store, self._content, [])
            await watched.apply()
            self._is_up.set()
            while not self._stop.is_set():
                await asyncio.sleep(_LOOK_S)
                if not self._is_deaf:
                    await watched.apply()
            await watched.leave(keeps_spool=True)
        finally:
            await client.aclose()
            await store.close()


def _opened(directory: Path) -> FileSpool:
    now_ms = time.time_ns() // 1_000_000
    return open_spool(log_settings(), directory, worker=os.urandom(4).hex(), now_ms=now_ms)[0]


def _append(store: FileSpool, content: Content, keys: list[bytes]) -> None:
    now_ms = time.time_ns() // 1_000_000
    groups = [
        Group(BlockKind.RECORDS, store.stream("digits", kind), blobs) for kind, blobs in content
    ]
    if keys:
        groups.insert(0, Group(BlockKind.KEY, 0, keys))
    store.append(groups, now_ms, lambda reason: None)
