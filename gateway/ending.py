"""Ends tasks, also those that lose a cancellation, and waits for threads, which nothing can cancel.

Knows nothing of what they do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")

AGAIN_S: Final = 0.1
"""Pause before a task that has not ended is cancelled once more."""


async def end(*tasks: asyncio.Task[Any]) -> None:  # Any: results do not matter here
    """Cancel tasks and return when all have ended, however they do.

    A cancellation can be lost: before Python 3.12 asyncio.wait_for swallows one that comes just
    when what it waits for is done, and redis-py waits like that for every command that it sends.
    So it is repeated. Cancellation: our own is not mistaken for theirs.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        ended, left = await asyncio.wait(left, timeout=AGAIN_S)
        for task in ended:
            if not task.cancelled():
                task.exception()  # nobody waits for it any more


async def in_thread(job: Callable[[], T]) -> T:
    """Run a job in a thread and return its result.

    Cancellation: a thread cannot be cancelled, and what it uses must not be closed under it; so
    this ends when the job has, and is cancelled then.
    """
    work = asyncio.ensure_future(asyncio.to_thread(job))
    is_cancelled = False
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            is_cancelled = True
    if is_cancelled:
        work.exception()  # nobody waits for it any more
        raise asyncio.CancelledError
    return work.result()
