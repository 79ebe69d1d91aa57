"""Requests at an average rate over HTTP, whether or not earlier ones have been answered.

An open loop: a slow answer delays no later request, so a stall of the server shows in as many
latencies as there were requests meanwhile. Connections are kept, and opened when none is idle.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from random import Random
from types import TracebackType
from typing import Final, Self

from loadtests.http_loop import HttpAddress, LoopFailed
from loadtests.paced import Connection

SEED: Final = 1
"""Of the gaps between requests."""


class OpenLoop:
    """A load of so many requests per second, for as long as it is asked to run.

    Args:
        address: of the listener.
        make_request: returns the next request, ready to send.
        rate: requests per second.
    """

    def __init__(
        self, address: HttpAddress, make_request: Callable[[], bytes], *, rate: float
    ) -> None:
        self.failures: list[str] = []
        """Requests without a good answer: what came instead."""
        self._address = address
        self._make_request = make_request
        self._rate = rate
        self._chance = Random(SEED)
        self._idle: list[Connection] = []

    async def run(self, duration_s: float) -> list[float]:
        """Load for this long; return the latency of each good answer, in seconds."""
        latencies: list[float] = []
        async with asyncio.TaskGroup() as group:
            due_s = time.monotonic()
            for _ in range(max(1, round(duration_s * self._rate))):
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                # As independent callers come: at even spaces their times would lock into those of
                # whatever else repeats in the server.
                due_s += self._chance.expovariate(self._rate)
                group.create_task(self._ask(latencies))
        return latencies

    async def _ask(self, latencies: list[float]) -> None:
        sent_s = time.monotonic()
        connection = self._idle.pop() if self._idle else None
        try:
            if connection is None:
                connection = await Connection.open(self._address)
            answer = await connection.ask(self._make_request())
        except (OSError, LoopFailed, TimeoutError) as exc:
            self.failures.append(f"{type(exc).__name__}: {exc}")
            if connection is not None:
                connection.close()
            return
        took_s = time.monotonic() - sent_s
        self._idle.append(connection)
        if answer.status == 200:
            latencies.append(took_s)
        else:
            self.failures.append(f"{answer.status}: {answer.body[:200]!r}")

    async def __aenter__(self) -> Self:
        """Nothing is connected yet."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()
