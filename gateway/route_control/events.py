"""Tells listeners what happens to routes: a bounded queue per listener, nothing kept.

A listener that does not keep up loses its oldest events and is told so by a `gap` event; the truth
is in the routes themselves, events only say when to look.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

QUEUE_EVENTS: Final = 256
"""Most events that wait for one listener."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened at this replica."""

    kind: str
    """route, conflict, pending, store, or gap."""
    route: str
    """Empty: not about one route."""
    data: Mapping[str, Any]  # Any: JSON


class _Listener:
    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.woken = asyncio.Event()
        self.lost = 0

    def put(self, event: Event) -> None:
        if len(self.events) >= QUEUE_EVENTS:
            self.events.popleft()
            self.lost += 1
        self.events.append(event)
        self.woken.set()


class EventHub:
    """Hands every event to every listener. Use from the event loop's thread only."""

    def __init__(self) -> None:
        self._listeners: set[_Listener] = set()
        self._is_closed = False

    def publish(self, kind: str, route: str = "", **data: object) -> None:
        """Tell everybody; never waits."""
        event = Event(kind=kind, route=route, data=data)
        for listener in self._listeners:
            listener.put(event)

    async def listen(self, route: str, idle_s: float) -> AsyncIterator[Event | None]:
        """Yield events of a route (empty: of all) from now on; None after every idle spell.

        Ends when the hub is closed.
        """
        listener = _Listener()
        self._listeners.add(listener)
        try:
            while not self._is_closed:
                while listener.events:
                    if listener.lost:
                        lost, listener.lost = listener.lost, 0
                        yield Event(kind="gap", route="", data={"lost": lost})
                    event = listener.events.popleft()
                    if not route or event.route in ("", route):
                        yield event
                listener.woken.clear()
                try:
                    async with asyncio.timeout(idle_s):
                        await listener.woken.wait()
                except TimeoutError:
                    yield None
        finally:
            self._listeners.discard(listener)

    def close(self) -> None:
        """End every listening, so that no connection holds up the end of the process."""
        self._is_closed = True
        for listener in self._listeners:
            listener.woken.set()
