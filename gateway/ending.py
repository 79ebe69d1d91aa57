"""Ends tasks, also those that lose a cancellation. Knows nothing of what they do."""

from __future__ import annotations

import asyncio
from typing import Any, Final

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
