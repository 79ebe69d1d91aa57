"""`python -m loadtests.gpu.caller`: one process of callers, told by its standard input what to do.

A line in is an `Order`, a line out the `Report` of what came of it. A closed loop keeps so many
calls under way; an open one begins calls at random times of an average rate, and counts a latency
from the time that a call was due, so that a slow answer hides nothing behind it.
"""

from __future__ import annotations

import asyncio
import functools
import random
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from gateway.event_loop import run_loop
from loadtests.gpu.wire import Link

GRACE_S: Final = 60.0
"""For calls that are under way when the time is over."""


class Message(msgspec.Struct, frozen=True):
    """A request, ready to send."""

    path: str
    rows: int


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A load of some seconds."""

    host: str
    port: int
    messages: list[Message]
    """Each call sends one of them, by chance."""
    settle_s: float
    """At the start, in which answers are not counted."""
    seconds: float
    """After that, in which they are."""
    in_flight: int = 0
    """Calls of a closed loop; 0: it is an open one."""
    rate: float = 0.0
    """Calls per second of an open loop."""
    seed: int = 1


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came of an order."""

    latencies_us: list[float]
    """Of the calls that were answered in the counted time."""
    rows: int
    """Of those calls."""
    all_rows: int
    """Of all that were answered, before and after as well."""
    failures: list[str]
    """The first of them."""
    failed: int


class _Load:
    """One order while it is carried out."""

    def __init__(self, order: Order, messages: list[tuple[bytes, int]]) -> None:
        self._order = order
        self._messages = messages
        self._chance = random.Random(order.seed)
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._under_way: dict[int, tuple[float, int]] = {}
        """When it was due, and its rows, by the call's number."""
        self._is_over = False
        """Whether no further call will begin."""
        self._latencies_us: list[float] = []
        self._rows = self._all_rows = 0
        self._failures: list[str] = []
        self._failed = 0

    async def run(self) -> Report:
        """Load, wait for the last answers, report."""
        order = self._order
        link: Link | None = None
        try:
            async with asyncio.timeout(order.settle_s + order.seconds + GRACE_S):
                _, link = await self._loop.create_connection(
                    lambda: Link(self._ended, self._lost), order.host, order.port
                )
                await link.ready
                self._link = link
                self._begin()
                await self._done
        except (OSError, TimeoutError) as exc:
            self._failed += len(self._under_way) or 1
            self._failures.append(f"{type(exc).__name__} {exc}: not all calls have ended")
        finally:
            if link is not None:
                link.close()
        return Report(
            latencies_us=self._latencies_us,
            rows=self._rows,
            all_rows=self._all_rows,
            failures=self._failures[:3],
            failed=self._failed,
        )

    def _begin(self) -> None:
        now_s = time.perf_counter()
        self._counts_at_s = now_s + self._order.settle_s
        self._ends_at_s = self._counts_at_s + self._order.seconds
        if not self._order.in_flight:
            self._ask_when_due(now_s)
        for _ in range(self._order.in_flight):
            self._ask(now_s)

    def _ask(self, due_s: float) -> None:
        message, rows = self._chance.choice(self._messages)
        self._under_way[self._link.ask(message)] = (due_s, rows)

    def _ask_when_due(self, due_s: float) -> None:
        """Begin every call whose time has come, and come again for the next."""
        now_s = time.perf_counter()
        while due_s <= now_s and due_s < self._ends_at_s:
            self._ask(due_s)
            due_s += self._chance.expovariate(self._order.rate)
        if due_s < self._ends_at_s:
            self._loop.call_later(due_s - now_s, self._ask_when_due, due_s)
        else:
            self._is_over = True
            self._finish()

    def _ended(self, number: int, failure: str) -> None:
        now_s = time.perf_counter()
        due_s, rows = self._under_way.pop(number)
        if failure:
            self._failed += 1
            self._failures.append(failure)
        else:
            self._all_rows += rows
            if self._counts_at_s <= now_s < self._ends_at_s:
                self._rows += rows
                self._latencies_us.append(round((now_s - due_s) * 1e6, 1))
        # Not from inside the answer: what else has come is read first.
        self._loop.call_soon(self._go_on if self._order.in_flight else self._finish)

    def _go_on(self) -> None:
        """Begin the next call of a closed loop, in place of one that has ended."""
        now_s = time.perf_counter()
        if now_s < self._ends_at_s and not self._failed:
            self._ask(now_s)
        else:
            self._is_over = True
            self._finish()

    def _finish(self) -> None:
        if self._is_over and not self._under_way and not self._done.done():
            self._done.set_result(None)

    def _lost(self, reason: str) -> None:
        if not self._done.done():
            self._failed += len(self._under_way) or 1
            self._failures.append(reason)
            self._done.set_result(None)


@functools.cache
def _read(path: str) -> bytes:
    return Path(path).read_bytes()


async def _serve() -> None:
    for line in sys.stdin:
        order = msgspec.json.decode(line, type=Order)
        messages = [(_read(message.path), message.rows) for message in order.messages]
        report = await _Load(order, messages).run()
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    run_loop(_serve())
