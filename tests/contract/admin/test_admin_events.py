"""The event stream of the admin API, read over real connections."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway.route_control.events import QUEUE_EVENTS
from tests.support.admin import Admin, administered
from tests.support.gateway import LoopThread

EVENT = {"$ref": "#/components/schemas/Event"}
Json = Any  # Any: a JSON document


class Listening:
    """An open stream; whatever comes is held against the description."""

    def __init__(self, admin: Admin, lines: Iterator[str]) -> None:
        self._admin = admin
        self._lines = lines

    def next(self) -> tuple[str, Json]:
        """Return kind and data of the next event."""
        kind = next(line for line in self._lines if line.startswith("event: "))
        data = json.loads(next(self._lines).removeprefix("data: "))
        assert next(self._lines) == ""
        assert self._admin.contract.faults(EVENT, data) == []
        return kind.removeprefix("event: "), data

    def until(self, kind: str, route: str) -> Json:
        """Return the data of the next event of a kind and route."""
        while True:
            found, data = self.next()
            if found == kind and data["route"] == route:
                return data


@contextmanager
def listening(admin: Admin, **query: str) -> Iterator[Listening]:
    """Listen for the length of a block; the greeting is read already."""
    with admin.http.stream("GET", "/v1/events", params=query) as response:
        assert response.headers["cache-control"] == "no-store"
        stream = Listening(admin, response.iter_lines())
        kind, data = stream.next()
        assert kind == "hello"
        assert data["routes"] == [d["name"] for d in admin.get("/v1/routes")["routes"]]
        yield stream


def test_a_listener_hears_of_a_change_that_is_made_after_the_greeting(admin: Admin) -> None:
    name = admin.create()
    with listening(admin) as stream:
        body = {"canary": 20, "stable": 80, "reason": "more"}
        admin.write("POST", f"{name}:setWeights", body, headers={"x-actor": "ann"})
        heard = stream.until("route", name)
    assert heard == {
        "route": name,
        "revision": 2,
        "generation": 1,
        "verb": "setWeights",
        "actor": "ann",
        "reason": "more",
    }


def test_a_listener_of_one_route_hears_of_no_other(admin: Admin) -> None:
    mine, other = admin.create(), admin.create()
    with listening(admin, route=mine) as stream:
        for name in (other, mine):
            admin.patch(name, {"rollback_window_s": 1})
        admin.write("DELETE", mine)
        heard = [stream.next() for _ in range(2)]
    assert [(kind, data["route"], data["verb"]) for kind, data in heard] == [
        ("route", mine, "patch"),
        ("route", mine, "delete"),
    ]


def test_a_listener_that_was_too_slow_is_told_how_much_it_lost(admin: Admin) -> None:
    hub = admin.gateway.app.plane.events
    burst = QUEUE_EVENTS + 44

    def publish() -> None:  # all at once: no listener gets a turn in between
        for number in range(burst):
            hub.publish("pending", "slow", revision=number, why="")

    with listening(admin, route="slow") as stream:
        admin.gateway.loop.call(publish)
        assert stream.next() == ("gap", {"route": "", "lost": 44})
        heard = [stream.next()[1]["revision"] for _ in range(QUEUE_EVENTS)]
    assert heard == list(range(44, burst))


def test_a_listener_that_leaves_disturbs_nobody(admin: Admin) -> None:
    name = admin.create()
    with listening(admin) as staying:
        with listening(admin):
            pass
        for seconds in range(1, 6):
            admin.patch(name, {"rollback_window_s": seconds})
        assert [staying.until("route", name)["revision"] for _ in range(5)] == [2, 3, 4, 5, 6]


def test_the_stream_ends_when_the_gateway_stops(loop_thread: LoopThread, digits_root: Path) -> None:
    with administered(loop_thread, digits_root, {}) as admin:
        name = admin.create()
        with admin.http.stream("GET", "/v1/events") as response:
            lines = response.iter_lines()
            assert next(lines) == "event: hello"
            admin.patch(name, {"rollback_window_s": 1})
            started_s = time.monotonic()
            admin.gateway.stop()
            rest = list(lines)  # to its proper end: a connection that is cut raises
        assert "event: route" in rest
        assert time.monotonic() - started_s < 10
