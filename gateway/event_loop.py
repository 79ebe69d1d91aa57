"""Runs a process's coroutine on uvloop where it is installed. Knows nothing of what it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


def run_loop(main: Coroutine[object, object, None]) -> None:
    """Run a coroutine to its end."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)
