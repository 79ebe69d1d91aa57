"""The plane: what is in force after a start, with and without a store, and what follows a route."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from engines.errors import UnknownModel
from engines.served import VersionState
from gateway.demo.redis_server import RedisServer
from gateway.errors import StoreUnavailable
from gateway.http_api.admin_routes import _stream
from gateway.route_control.file_store import StoreLocked
from gateway.route_control.in_force import PROVISIONAL
from gateway.route_control.last_known import LastKnownGood
from gateway.route_control.write import Condition
from gateway.route_plane import NoStore, RoutePlane
from tests.support.batching import HANG_S, until
from tests.support.redis import running_redis
from tests.support.replicas import MODEL, NAME, body, intent, route
from tests.support.repositories import open_repository
from tests.support.route_planes import open_plane, plane_of, shelf_of
from tests.support.route_stores import change

SHADOW: Final = {"model": MODEL, "version": "3", "sample": 100}


def canary(plane: RoutePlane) -> float | None:
    compiled = plane._table.snapshot.get(NAME)
    return float(compiled.route.variant("canary").weight) if compiled else None


def position(plane: RoutePlane) -> tuple[int, int] | None:
    held = plane.in_force.held.get(NAME)
    return held.position if held else None


async def put(plane: RoutePlane, weight: float, **fields: Any) -> None:  # Any: JSON
    """Replace the route in force."""
    at = Condition(at=position(plane))
    await plane.control.put(NAME, body(weight, **fields), at, intent())


def run(
    folder: Path,
    scenario: Callable[[RoutePlane], Awaitable[None]],
    weight: float = 20,
    **fields: Any,  # Any: JSON
) -> None:
    """Run a scenario on a plane whose routes are kept in a folder, with one configured route."""

    async def on_plane() -> None:
        shelf = shelf_of(folder / "models")
        async with open_plane(shelf, folder / "state", [route(weight, **fields)]) as plane:
            await scenario(plane)

    asyncio.run(on_plane())


def test_after_the_start_configured_routes_are_in_force_and_their_versions_warm(
    tmp_path: Path,
) -> None:
    async def scenario(plane: RoutePlane) -> None:
        assert (position(plane), canary(plane)) == ((1, 1), 20)
        assert plane.targets.is_ready(MODEL, "2")
        assert plane.pins() == {MODEL: {"1", "2"}}

    run(tmp_path, scenario)


def test_what_was_changed_outlives_a_restart(tmp_path: Path) -> None:
    async def change_it(plane: RoutePlane) -> None:
        await put(plane, 30)

    async def look(plane: RoutePlane) -> None:
        assert (position(plane), canary(plane)) == ((1, 2), 30)

    run(tmp_path, change_it)
    run(tmp_path, look)


def test_two_gateways_cannot_keep_their_routes_in_one_folder(tmp_path: Path) -> None:
    async def scenario(plane: RoutePlane) -> None:
        second = plane_of(plane._repository, tmp_path / "state")
        with pytest.raises(StoreLocked):
            await second.open([])
        await second.close()

    run(tmp_path, scenario)


def test_without_a_folder_to_write_to_routes_are_served_and_cannot_be_changed(
    tmp_path: Path,
) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")

    async def scenario(plane: RoutePlane) -> None:
        assert (position(plane), canary(plane)) == ((PROVISIONAL, 1), 20)
        with pytest.raises(StoreUnavailable):
            await put(plane, 30)
        written = await plane.control.abort(NAME, intent())
        assert written.is_emergency
        assert canary(plane) == 0

    run(tmp_path, scenario)


def test_a_store_that_is_none_refuses_everything() -> None:
    async def scenario() -> None:
        store = NoStore("the disk is read-only")
        calls: list[Callable[[], Awaitable[object]]] = [
            store.heads,
            lambda: store.read(NAME),
            lambda: store.write(change(1)),
            lambda: store.revision(NAME, 1),
            lambda: store.history(NAME, 1),
            lambda: store.audit(NAME, limit=1),
        ]
        for call in calls:
            with pytest.raises(Exception, match="the disk is read-only"):
                await call()

    asyncio.run(scenario())


def test_versions_without_traffic_are_loaded_as_well_but_nobody_waits_for_them(
    tmp_path: Path,
) -> None:
    async def scenario(plane: RoutePlane) -> None:
        await until(lambda: plane.targets.is_ready(MODEL, "2"))
        assert position(plane) == (1, 1)

    run(tmp_path, scenario, 0)


def test_a_version_without_traffic_that_does_not_come_up_is_said_and_holds_up_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(plane: RoutePlane) -> None:
        said = "a route names a version that is unavailable"
        await until(lambda: said in caplog.messages)
        assert canary(plane) == 0

    run(tmp_path, scenario, 0, version="9")


def test_a_change_right_after_the_hello_of_an_event_stream_is_not_missed(tmp_path: Path) -> None:
    async def scenario(plane: RoutePlane) -> None:
        stream = _stream(plane, NAME)
        assert (await anext(stream)).startswith(b"event: hello\n")
        await put(plane, 40)
        async with asyncio.timeout(5):
            assert (await anext(stream)).startswith(b"event: route\n")

    run(tmp_path, scenario)


def test_shadows_come_and_go_with_the_route(tmp_path: Path) -> None:
    async def scenario(plane: RoutePlane) -> None:
        await until(lambda: all(s.is_ready for s in plane.shadows.statistics().values()))
        assert set(plane.shadows.statistics()) == {(NAME, "s")}
        await put(plane, 20, shadows={"t": SHADOW})
        assert set(plane.shadows.statistics()) == {(NAME, "t")}
        await plane.control.delete(NAME, Condition(at=position(plane)), intent())
        assert plane.shadows.statistics() == {}

    run(tmp_path, scenario, shadows={"s": SHADOW})


def test_the_units_of_a_deleted_route_are_forgotten(tmp_path: Path) -> None:
    async def scenario(plane: RoutePlane) -> None:
        for key in range(500):
            plane.units.counter.see(NAME, 1, NAME, "stable", str(key).encode())
        assert await plane.units.counts(NAME, 1, ["stable"])
        await plane.control.delete(NAME, Condition(at=position(plane)), intent())
        assert await plane.units.counts(NAME, 1, ["stable"]) == {}

    run(tmp_path, scenario, kind="experiment")


def test_a_version_that_no_route_needs_any_more_is_let_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(plane: RoutePlane) -> None:
        served = plane._repository.get(MODEL, "2")
        await put(plane, 20, version="3", rollback_window_s=0)
        plane._released_s = 0.0  # as if some seconds had gone by
        await until(lambda: served.state is VersionState.UNAVAILABLE)
        with pytest.raises(UnknownModel):
            plane._repository.get(MODEL, "2")
        assert plane.targets.is_ready(MODEL, "1")
        assert plane.targets.is_ready(MODEL, "3")

    run(tmp_path, scenario, rollback_window_s=0)


def test_a_version_that_is_kept_warm_is_not_let_go(tmp_path: Path) -> None:
    async def scenario(plane: RoutePlane) -> None:
        assert plane.sync is not None
        await put(plane, 20, version="3", rollback_window_s=60)
        plane._released_s = 0.0
        await until(lambda: plane._released_s > 0)
        assert plane.targets.is_ready(MODEL, "2")
        assert plane.pins() == {MODEL: {"1", "2", "3"}}

    run(tmp_path, scenario, rollback_window_s=60)


def test_closing_ends_listeners_and_every_task_and_may_be_repeated(tmp_path: Path) -> None:
    async def scenario() -> None:
        shelf = shelf_of(tmp_path / "models")
        async with open_repository(shelf) as repository:
            before = asyncio.all_tasks()
            plane = plane_of(repository, tmp_path / "state")
            await plane.open([route(0)])
            shelf.may_load.clear()  # version 2 is being loaded when the plane is closed
            await plane.start()

            async def listen() -> list[object]:
                return [event async for event in plane.events.listen("", HANG_S)]

            listening = asyncio.ensure_future(listen())
            await asyncio.sleep(0)
            await plane.close_shadows()
            for _ in range(2):
                await asyncio.wait_for(plane.close(), HANG_S)
            assert await listening == []
            left = asyncio.all_tasks() - before
            assert all("Repository" in repr(task) for task in left)  # a load goes on to its end
            shelf.may_load.set()
            await until(lambda: asyncio.all_tasks() == before)

    asyncio.run(scenario())


def test_a_plane_that_was_never_opened_can_be_closed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_repository(shelf_of(tmp_path / "models")) as repository:
            plane = plane_of(repository, tmp_path / "state", url="redis://127.0.0.1:1/0")
            assert plane.pins() == {}
            await plane.close_shadows()
            await plane.close()

    asyncio.run(scenario())


def with_redis(scenario: Callable[[RedisServer], Awaitable[None]]) -> None:
    """Run a scenario with a Redis of its own."""

    async def served(server: RedisServer) -> None:
        await scenario(server)

    with running_redis(append_only=False) as server:
        asyncio.run(served(server))


def test_a_change_reaches_the_other_gateway_and_both_say_that_they_have_it(
    tmp_path: Path,
) -> None:
    async def scenario(server: RedisServer) -> None:
        shelves = [shelf_of(tmp_path / f"models-{name}") for name in "ab"]
        async with (
            open_plane(shelves[0], tmp_path / "a", [route(0)], url=server.url) as one,
            open_plane(shelves[1], tmp_path / "b", [route(0)], url=server.url, replica="b") as two,
        ):
            await put(one, 20)
            laggards = await one.questions.converged(NAME, one.in_force.held[NAME], HANG_S)
            assert laggards == []
            assert (position(two), canary(two)) == ((1, 2), 20)
            assert two.targets.is_ready(MODEL, "2")
            states = await two.questions.convergence(NAME)
            assert [(s.replica, s.revision, s.pending) for s in states] == [
                ("a", 2, ""),
                ("b", 2, ""),
            ]
            await two.close()
            assert [s.replica for s in await one.questions.convergence(NAME)] == ["a"]

    with_redis(scenario)


def test_a_start_without_redis_serves_what_was_served_last(tmp_path: Path) -> None:
    async def before(server: RedisServer) -> None:
        shelf = shelf_of(tmp_path / "models")
        async with open_plane(shelf, tmp_path / "state", [route(0)], url=server.url) as plane:
            await put(plane, 20)
            kept = LastKnownGood(tmp_path / "state" / "last-known-good")
            await until(lambda: [each.position for each in kept.load()] == [(1, 2)])

    async def after() -> None:
        shelf = shelf_of(tmp_path / "models2")
        url = "redis://127.0.0.1:1/0"
        async with open_plane(shelf, tmp_path / "state", [route(0)], url=url) as plane:
            assert (position(plane), canary(plane)) == ((1, 2), 20)
            assert plane.targets.is_ready(MODEL, "2")
            with pytest.raises(StoreUnavailable):
                await put(plane, 30)

    with_redis(before)
    asyncio.run(after())


def test_units_are_those_of_this_gateway_while_redis_is_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_repository(shelf_of(tmp_path / "models")) as repository:
            plane = plane_of(repository, tmp_path / "state", url="redis://127.0.0.1:1/0")
            for key in range(500):
                plane.units.counter.see(NAME, 1, NAME, "stable", str(key).encode())
            found = await plane.units.counts(NAME, 1, ["stable", "canary"])
            assert found["stable"] > 0
            await plane.close()

    asyncio.run(scenario())
