"""Events: who hears what, in which order, and what happens to those who do not keep up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from gateway.route_control.events import QUEUE_EVENTS, Event, EventHub
from tests.support.batching import HANG_S

PATIENT_S: Final = 60.0
SOON_S: Final = 0.005
HELLO: Final = Event(kind="hello", route="", data={})


class Ear:
    """One listener; `next` waits for what it hears next."""

    def __init__(self, events: AsyncIterator[Event | None]) -> None:
        self._events = events

    async def next(self) -> Event | None:
        """Return the next event."""
        return await asyncio.wait_for(anext(self._events), HANG_S)


@asynccontextmanager
async def listening(
    hub: EventHub, route: str = "", idle_s: float = PATIENT_S
) -> AsyncIterator[Ear]:
    """Listen for the block; the listener is there when the block begins."""
    events = hub.listen(route, idle_s, hello=HELLO)
    assert await anext(events) is HELLO
    try:
        yield Ear(events)
    finally:
        await events.aclose()  # type: ignore[attr-defined]  # it is an async generator


def numbered(hub: EventHub, count: int, route: str = "digits") -> None:
    for number in range(count):
        hub.publish("route", route, number=number)


def test_every_listener_hears_every_event_in_order() -> None:
    async def scenario() -> None:
        hub = EventHub()
        async with listening(hub) as one, listening(hub) as two:
            numbered(hub, 5)
            for ear in (one, two):
                heard = [await ear.next() for _ in range(5)]
                assert [event and event.data["number"] for event in heard] == [0, 1, 2, 3, 4]

    asyncio.run(scenario())


def test_an_event_wakes_a_listener_that_waits() -> None:
    async def scenario() -> None:
        hub = EventHub()
        async with listening(hub) as ear:
            waiting = asyncio.ensure_future(ear.next())
            await asyncio.sleep(0)
            assert not waiting.done()
            hub.publish("store", is_up=False, why="gone")
            event = await waiting
            assert event == Event(kind="store", route="", data={"is_up": False, "why": "gone"})

    asyncio.run(scenario())


def test_nothing_is_missed_between_hello_and_the_first_event() -> None:
    async def scenario() -> None:
        hub = EventHub()
        async with listening(hub) as ear:  # hello has been heard, and nobody has asked since
            numbered(hub, 1)
            event = await ear.next()
            assert event is not None
            assert event.kind == "route"

    asyncio.run(scenario())


def test_a_listener_of_one_route_hears_that_one_and_what_is_about_none() -> None:
    async def scenario() -> None:
        hub = EventHub()
        async with listening(hub, "digits") as ear:
            hub.publish("route", "other")
            hub.publish("pending", "digits")
            hub.publish("store")
            hub.publish("route", "digitsx")
            hub.publish("conflict", "digits")
            assert [await ear.next() for _ in range(3)] == [
                Event(kind="pending", route="digits", data={}),
                Event(kind="store", route="", data={}),
                Event(kind="conflict", route="digits", data={}),
            ]

    asyncio.run(scenario())


def test_a_listener_that_does_not_keep_up_loses_the_oldest_and_is_told_how_many() -> None:
    async def scenario() -> None:
        hub = EventHub()
        async with listening(hub) as ear:
            numbered(hub, QUEUE_EVENTS + 3)
            assert await ear.next() == Event(kind="gap", route="", data={"lost": 3})
            heard = [await ear.next() for _ in range(QUEUE_EVENTS)]
            assert [event and event.data["number"] for event in heard] == list(
                range(3, QUEUE_EVENTS + 3)
            )

    asyncio.run(scenario())


def test_what_is_lost_while_a_gap_is_told_is_told_before_what_follows_it() -> None:
    async def scenario() -> None:
        hub = EventHub()
        async with listening(hub) as ear:
            numbered(hub, QUEUE_EVENTS + 1)
            assert await ear.next() == Event(kind="gap", route="", data={"lost": 1})
            numbered(hub, 2)
            assert await ear.next() == Event(kind="gap", route="", data={"lost": 2})
            event = await ear.next()
            assert event is not None
            assert event.data["number"] == 3

    asyncio.run(scenario())


def test_other_routes_push_nothing_out_of_a_listeners_queue() -> None:
    async def scenario() -> None:
        hub = EventHub()
        async with listening(hub, "digits") as ear:
            hub.publish("route", "digits", number=7)
            numbered(hub, QUEUE_EVENTS * 2, "other")
            event = await ear.next()
            assert event == Event(kind="route", route="digits", data={"number": 7})

    asyncio.run(scenario())


def test_silence_is_reported_again_and_again() -> None:
    async def scenario() -> None:
        hub = EventHub()
        async with listening(hub, idle_s=SOON_S) as ear:
            assert await ear.next() is None
            assert await ear.next() is None
            hub.publish("store")
            assert await ear.next() == Event(kind="store", route="", data={})

    asyncio.run(scenario())


def test_the_noise_of_other_routes_is_silence_to_a_listener_of_one() -> None:
    async def scenario() -> None:
        hub = EventHub()
        async with listening(hub, "digits", idle_s=0.02) as ear:
            waiting = asyncio.ensure_future(ear.next())
            while not waiting.done():
                hub.publish("route", "other")
                await asyncio.sleep(0.001)
            assert waiting.result() is None

    asyncio.run(scenario())


def test_closing_ends_those_who_wait_and_those_who_come_later() -> None:
    async def scenario() -> None:
        hub = EventHub()

        async def hear_all() -> list[Event | None]:
            return [event async for event in hub.listen("", PATIENT_S)]

        waiting = [asyncio.ensure_future(hear_all()) for _ in range(3)]
        await asyncio.sleep(0)
        hub.close()
        assert await asyncio.wait_for(asyncio.gather(*waiting), HANG_S) == [[], [], []]
        assert await asyncio.wait_for(hear_all(), HANG_S) == []

    asyncio.run(scenario())


def test_a_listener_that_leaves_is_forgotten() -> None:
    async def scenario() -> None:
        hub = EventHub()
        async with listening(hub):
            assert repr(hub) == "<EventHub 1 listeners>"
        assert repr(hub) == "<EventHub 0 listeners>"
        numbered(hub, 2)

    asyncio.run(scenario())
