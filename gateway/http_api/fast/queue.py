"""The answers of one connection: they leave in the order of their requests.

The usual answer is the only one that is awaited, and is written at once. Where clients pipeline,
answers that are ready together leave with one write per tick of the loop. Knows no requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from gateway.http_api.fast.answers import Output

NEVER: Final = -1
MAX_PIPELINED: Final = 128
"""Unanswered requests of one connection; more stay unread."""
HEAVY_BYTES: Final = 1 << 20
"""What a connection may make us hold before its next request is read. It slows only those who
pipeline large requests or answers: who waits for an answer before it asks again is always read."""


class Awaited(Protocol):
    """An answer that is awaited or ready."""

    is_last: bool
    """Nothing is sent after it."""
    held_bytes: int
    """What the request, or its answer in the making, takes while it is not answered."""
    output: Output | None

    def drop(self) -> None:
        """Nobody waits for it any more."""


class Owner(Protocol):
    """The connection, as its queue sees it."""

    def last_sent(self) -> None:
        """The last answer was given to the transport."""

    def overflown(self) -> None:
        """The peer makes us hold more than it may."""

    def go_on(self) -> None:
        """There are no more than `wake_at` answers left. Called by the loop, not by a reply."""


class AnswerQueue:
    """Awaited answers in order.

    Invariant: an answer that is ready is first in line only until the end of the call that made it
    so; then it is with the transport, or gathered for the end of the tick.
    """

    __slots__ = (
        "_call_soon",
        "_gathered",
        "_gathered_bytes",
        "_heavy_bytes",
        "_is_flush_due",
        "_largest_bytes",
        "_max_bytes",
        "_owner",
        "_transport",
        "awaited",
        "held_bytes",
        "is_stuck",
        "ready_bytes",
        "wake_at",
    )

    def __init__(
        self,
        owner: Owner,
        transport: asyncio.Transport,
        call_soon: Callable[[Callable[[], None]], object],
        max_bytes: int,
    ) -> None:
        self._owner = owner
        self._transport = transport
        self._call_soon = call_soon
        self._max_bytes = max_bytes
        self._heavy_bytes = min(HEAVY_BYTES, max_bytes)
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._is_flush_due = False
        self._largest_bytes = 0
        """Of the answers to pipelined requests so far; the next ones may be as large."""
        self.awaited: list[Awaited] = []
        self.held_bytes = 0
        """Requests that are not answered."""
        self.ready_bytes = 0
        """Answers that the transport does not have yet."""
        self.wake_at = NEVER
        """The owner waits until no more than so many are awaited."""
        self.is_stuck = False
        """The peer does not read: the transport holds more than it likes to."""

    def add(self, answer: Awaited) -> None:
        """Put an answer last in line; `answered` is called when it is ready."""
        self.held_bytes += answer.held_bytes
        self.awaited.append(answer)

    def hold(self, answer: Awaited, held_bytes: int) -> None:
        """Note what an awaited answer holds now."""
        self.held_bytes += held_bytes - answer.held_bytes
        answer.held_bytes = held_bytes
        if self.wake_at >= 0:
            self.wake()

    def is_full(self) -> bool:
        """Whether so much is awaited, or held for it, that no more requests are to be read."""
        count = len(self.awaited)
        expected_bytes = self.held_bytes + self.ready_bytes + count * self._largest_bytes
        return count >= MAX_PIPELINED or expected_bytes > self._heavy_bytes

    def answered(self, answer: Awaited) -> None:
        """Send an answer that has its output now, if its turn has come."""
        awaited = self.awaited
        if len(awaited) > 1 or self._gathered:
            self._in_turn(answer)
        else:
            awaited.clear()
            self.held_bytes = 0
            output = answer.output
            if isinstance(output, bytes):
                self._transport.write(output)
            elif output is not None:
                self._transport.writelines(output)
            if answer.is_last:
                self._owner.last_sent()
                return
            if self.is_stuck:
                self._check_bound()
        if self.wake_at >= 0:
            self.wake()

    def _in_turn(self, answer: Awaited) -> None:
        """Gather every answer whose turn has come."""
        awaited = self.awaited
        size_bytes = _size_bytes(answer.output)
        self._largest_bytes = max(self._largest_bytes, size_bytes)
        self.ready_bytes += size_bytes
        self.held_bytes -= answer.held_bytes
        answer.held_bytes = 0
        while awaited and (output := awaited[0].output) is not None:
            first = awaited.pop(0)
            self._gathered_bytes += _size_bytes(output)
            self._gathered += _pieces(output)
            if first.is_last:
                self.flush()
                self._owner.last_sent()
                return
        if not awaited:
            self.flush()
        elif self._gathered and not self._is_flush_due:
            self._is_flush_due = True
            self._call_soon(self.flush)
        self._check_bound()

    def flush(self) -> None:
        """Write what was gathered."""
        self._is_flush_due = False
        if self._gathered and not self._transport.is_closing():
            self._transport.writelines(self._gathered)
        self._gathered = []
        self.ready_bytes -= self._gathered_bytes
        self._gathered_bytes = 0
        if self.wake_at >= 0:
            self.wake()

    def _check_bound(self) -> None:
        """Let go of a peer that asks for much and reads nothing."""
        unread_bytes = self._transport.get_write_buffer_size() + self.ready_bytes
        if unread_bytes > self._max_bytes:
            self._owner.overflown()

    def wake(self) -> None:
        """Let the owner go on, soon, if what it waits for has come."""
        if len(self.awaited) <= self.wake_at and not self.is_stuck and not self.is_full():
            self.wake_at = NEVER
            self._call_soon(self._owner.go_on)

    def clear(self) -> None:
        """The client has gone: drop everything."""
        self._gathered = []
        self._gathered_bytes = self.held_bytes = self.ready_bytes = 0
        self.wake_at = NEVER
        awaited, self.awaited = self.awaited, []
        for answer in awaited:
            answer.drop()


def _size_bytes(output: Output | None) -> int:
    return sum(map(len, _pieces(output))) if output is not None else 0


def _pieces(output: Output) -> tuple[bytes, ...]:
    return (output,) if isinstance(output, bytes) else output
