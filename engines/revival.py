"""Makes a new instance of one whose device failed.

Knows how long to wait between attempts; knows neither what fails nor the batcher that waits. There
is no last attempt: a GPU that was reset outside comes back, and until then the log says what every
attempt came to.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Final

from engines.instance import Host
from engines.threads import in_daemon_thread

logger = logging.getLogger(__name__)

FIRST_DELAY_S: Final = 1.0
LONGEST_DELAY_S: Final = 60.0
CLOSE_S: Final = 10.0
"""Longest wait for the lost engine to let go of its device."""


async def revive(
    lost: Host,
    load: Callable[[], Host],
    *,
    first_delay_s: float = FIRST_DELAY_S,
    on_failure: Callable[[Exception], None] = lambda _: None,
) -> Host:
    """Close an instance and load another, again and again until one comes up.

    Args:
        lost: closed first, because the new one may need its memory.
        load: blocking; called in a thread of its own.
        first_delay_s: before the first attempt; doubles with each further one.
        on_failure: told why an attempt came to nothing.

    Cancellation: an instance that still comes up then is closed.
    """
    closing = asyncio.ensure_future(in_daemon_thread(f"sluice-close-{lost.name}", lost.close))
    closing.add_done_callback(_look_at)
    await asyncio.wait({closing}, timeout=CLOSE_S)
    for delay_s in _delays(first_delay_s):
        await asyncio.sleep(delay_s)
        try:
            return await _attempt(lost.name, load)
        except Exception as exc:  # also when no thread can be had: there is a next attempt
            extra = {"instance": lost.name, "reason": str(exc)}
            logger.warning("instance does not come up again", extra=extra)
            on_failure(exc)
    raise AssertionError("the delays do not end")


async def _attempt(name: str, load: Callable[[], Host]) -> Host:
    attempt = _Attempt(load)
    try:
        return await in_daemon_thread(f"sluice-revive-{name}", attempt.run)
    except asyncio.CancelledError:
        attempt.give_up(f"sluice-close-{name}")
        raise


class _Attempt:
    """A load that may be given up at any moment; then what it makes is closed, by one or the other.

    Cancellation can come after the load and before the caller has its result: whoever is second to
    take the lock sees what the first has done.
    """

    def __init__(self, load: Callable[[], Host]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._is_wanted = True
        self._made: Host | None = None

    def run(self) -> Host:
        """Load, in a thread of its own."""
        made = self._load()
        with self._lock:
            self._made = made
            is_wanted = self._is_wanted
        if not is_wanted:
            made.close()
        return made

    def give_up(self, thread_name: str) -> None:
        """Close what was made, or will be; does not wait."""
        with self._lock:
            self._is_wanted = False
            made = self._made
        if made is not None:
            threading.Thread(target=made.close, name=thread_name, daemon=True).start()


def _look_at(closing: asyncio.Future[None]) -> None:
    """Take note of an exception that nobody else will: the lost one is gone either way."""
    if not closing.cancelled() and (exc := closing.exception()) is not None:
        logger.warning("lost instance does not close", extra={"reason": repr(exc)})


def _delays(first_s: float) -> Iterator[float]:
    delay_s = first_s
    while True:
        yield delay_s
        delay_s = min(2 * delay_s, LONGEST_DELAY_S)
