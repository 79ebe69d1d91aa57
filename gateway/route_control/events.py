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
    """route, conflict, pending, store, gap, or hello."""
    route: str
    """Empty: not about one route."""
    data: Mapping[str, Any]  # Any: JSON


class _Listener:
    def __init__(self, route: str) -> None:
        self.events: deque[Event] = deque()
        self.woken = asyncio.Event()
        self.lost = 0
        self._route = route

    def put(self, event: Event) -> None:
        if self._route and event.route not in ("", self._route):
            return
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

    def __repr__(self) -> str:
        return f"<EventHub {len(self._listeners)} listeners>"

    def publish(self, kind: str, route: str = "", **data: object) -> None:
        """Tell everybody; never waits."""
        event = Event(kind=kind, route=route, data=data)
        for listener in self._listeners:
            listener.put(event)

    async def listen(
        self, route: str, idle_s: float, *, hello: Event | None = None
    ) -> AsyncIterator[Event | None]:
        """Yield `hello`, then events of a route (empty: of all); None after every idle spell.

        Nothing is missed between `hello`, which is yielded while the listener is there already, and
        the events. Ends when the hub is closed.
        """
        listener = _Listener(route)
        self._listeners.add(listener)
        try:
            if hello is not None:
                yield hello
            while not self._is_closed:
                while listener.events:
                    if listener.lost:
                        lost, listener.lost = listener.lost, 0
                        yield Event(kind="gap", route="", data={"lost": lost})
                        continue
                    yield listener.events.popleft()
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
