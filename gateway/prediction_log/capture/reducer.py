"""The thread that finishes deferred records, and the bound of what may wait for it.

Knows what a Deferred offers and nothing of tensors. One daemon thread: a reduction cannot be
interrupted, and one that takes long must not keep the process from exiting. Outcomes come in the
order of `submit`, on the event loop that the first one was made on.

At the limit: `submit` answers False and keeps nothing. Closing: what is not finished by then has no
outcome, and is told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from gateway.prediction_log.capture.deferred import Deferred, Finished

Done = Callable[[Finished | None], None]
"""Told what became of a record; None: it could not be finished, or not in time."""

_log = logging.getLogger(__name__)


class Reducer:
    """Finishes deferred records beside the event loop; used from the loop's thread only.

    Invariant: `held_bytes` is the sum over the records submitted and not yet told of, and at most
    `limit_bytes`. Each `done` is called once.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._waiting: deque[tuple[Deferred, Done]] = deque()
        self._queue: SimpleQueue[Deferred | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._is_closing = False
        self._is_closed = False
        self._has_warned = False
        self.held_bytes = 0

    def __repr__(self) -> str:
        return f"<Reducer {len(self._waiting)} waiting, {self.held_bytes} bytes>"

    def submit(self, deferred: Deferred, done: Done) -> bool:
        """Take a record to be finished; False: there is no room, and `done` is never called."""
        if self._is_closing or self.held_bytes + deferred.held_bytes > self._limit_bytes:
            return False
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            threading.Thread(target=self._work, name="reducer", daemon=True).start()
        self.held_bytes += deferred.held_bytes
        self._waiting.append((deferred, done))
        self._queue.put(deferred)
        return True

    async def close(self, timeout_s: float) -> None:
        """Refuse new records, finish what waits for at most so long, and stop. Idempotent.

        Cancellation: ends the wait; what is left has no outcome, as at the limit.
        """
        self._is_closing = True
        try:
            if self._waiting:
                emptied = self._emptied = asyncio.get_running_loop().create_future()
                await asyncio.wait({emptied}, timeout=timeout_s)
        finally:
            self._is_closed = True
            self._queue.put(None)
            while self._waiting:
                self._settle(None)

    def _work(self) -> None:
        """Finish records until `close`; runs in the thread."""
        while (deferred := self._queue.get()) is not None and not self._is_closed:
            try:
                finished = deferred.finish()
            except Exception as exc:  # whatever it is, it must cost this record only
                finished = None
                self._note(exc)
            del deferred  # else its tensors would stay for as long as nothing else comes
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._deliver, finished)

    def _deliver(self, finished: Finished | None) -> None:
        # What comes in after the end was told of already.
        if not self._is_closed:
            self._settle(finished)

    def _settle(self, finished: Finished | None) -> None:
        """Tell the outcome of the record that has waited longest."""
        deferred, done = self._waiting.popleft()
        self.held_bytes -= deferred.held_bytes
        if not self._waiting and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)
        done(finished)

    def _note(self, exc: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.error("a large tensor cannot be reduced", exc_info=exc)
