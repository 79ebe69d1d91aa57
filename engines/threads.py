"""Blocking work beside the event loop: in daemon threads, and so much of it at once.

Knows neither engines nor folders. Daemon threads, because whatever a runtime blocks in, for ever if
it likes, must not keep the process from exiting; the threads of an executor are joined at exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TypeVar

_T = TypeVar("_T")


async def in_daemon_thread(name: str, work: Callable[[], _T]) -> _T:
    """Run blocking work in a thread of its own and return what it returns, or raise what it raises.

    Cancellation: the work goes on and its outcome is dropped.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[_T] = loop.create_future()

    def settle(report: Callable[[], None]) -> None:
        if not ended.done():
            report()

    def run() -> None:
        try:
            report = partial(ended.set_result, work())
        except BaseException as exc:  # the caller's to judge: it is raised there
            report = partial(ended.set_exception, exc)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, report)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await ended


class Places:
    """Limits how many pieces of work are under way at once.

    Work that takes longer than the patience no longer counts: one that hangs holds up those that
    wait for its place so long, and not for ever.
    """

    def __init__(self, places: int, *, patience_s: float) -> None:
        self._free = asyncio.Semaphore(places)
        self._patience_s = patience_s

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it until the work ends or the patience does."""
        await self._free.acquire()
        is_held = True

        def give_back() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                self._free.release()

        timer = asyncio.get_running_loop().call_later(self._patience_s, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()
