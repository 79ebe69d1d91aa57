"""The metrics of routes: every family, with labels that documents bound."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from prometheus_client.core import Metric

from gateway.directory import REASON_FALLBACK, Target
from gateway.route_control.file_store import FileRouteStore
from gateway.route_control.write import Condition
from gateway.route_metrics import RouteCollector
from gateway.route_plane import RoutePlane
from gateway.route_statistics import RouteStatistics
from router.policy import REASON_SLOT
from tests.support.batching import until
from tests.support.replicas import MODEL, NAME, held, intent, route
from tests.support.repositories import open_repository
from tests.support.route_planes import open_plane, plane_of, shelf_of
from tests.support.route_stores import change
from tests.support.shadows import mirrored
from tests.support.targets import count_answer

LABELS: Final = {
    "sluice_route_revision": {"route"},
    "sluice_route_weight_percent": {"route", "variant"},
    "sluice_route_fallbacks": {"route", "variant"},
    "sluice_route_forced": {"route", "variant"},
    "sluice_route_overrides_ignored": {"route"},
    "sluice_shadow_requests": {"route", "shadow", "result", "reason"},
    "sluice_shadow_in_flight": {"route", "shadow"},
    "sluice_route_watch_failures": set(),
    "sluice_route_store_up": set(),
    "sluice_route_config_age_seconds": set(),
    "sluice_route_emergencies": set(),
    "sluice_route_pending": {"route"},
    "sluice_route_conflict": {"route", "kind"},
}
SHADOW: Final = {"model": MODEL, "version": "3", "sample": 100}
Samples = dict[tuple[str, ...], float]


def families(plane: RoutePlane, ignored: dict[str, int] | None = None) -> dict[str, Metric]:
    """Return what a scrape shows, by family; no family and no sample may be there twice."""
    found = list(RouteCollector(plane, overrides_ignored=ignored or {}).collect())
    named = {family.name: family for family in found}
    assert len(named) == len(found)
    for family in found:
        rows = [(sample.name, tuple(sample.labels.items())) for sample in family.samples]
        assert len(set(rows)) == len(rows)
        assert all(set(sample.labels) == LABELS[family.name] for sample in family.samples)
        assert family.documentation.endswith(".")
    return named


def samples(plane: RoutePlane, family: str, ignored: dict[str, int] | None = None) -> Samples:
    """Return the values of a family by the values of its labels."""
    found = families(plane, ignored)[family].samples
    return {tuple(sample.labels.values()): sample.value for sample in found}


def run(
    folder: Path,
    scenario: Callable[[RoutePlane], Awaitable[None]],
    **fields: Any,  # Any: JSON
) -> None:
    """Run a scenario on a plane with one route, of 80 and 20 percent."""

    async def on_plane() -> None:
        shelf = shelf_of(folder / "models")
        async with open_plane(shelf, folder / "state", [route(20, **fields)]) as plane:
            await scenario(plane)

    asyncio.run(on_plane())


def test_every_family_is_there_and_no_other(tmp_path: Path) -> None:
    async def scenario(plane: RoutePlane) -> None:
        assert set(families(plane)) == set(LABELS)

    run(tmp_path, scenario, shadows={"s": SHADOW})


def test_before_the_plane_is_opened_a_scrape_shows_what_there_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_repository(shelf_of(tmp_path / "models")) as repository:
            found = families(plane_of(repository, tmp_path / "state"))
            assert "sluice_route_revision" in found
            assert "sluice_route_store_up" not in found

    asyncio.run(scenario())


def test_revision_and_weights_are_those_in_force(tmp_path: Path) -> None:
    async def scenario(plane: RoutePlane) -> None:
        assert samples(plane, "sluice_route_revision") == {(NAME,): 1}
        assert samples(plane, "sluice_route_weight_percent") == {
            (NAME, "stable"): 80,
            (NAME, "canary"): 20,
        }
        await plane.control.abort(NAME, intent())
        assert samples(plane, "sluice_route_revision") == {(NAME,): 2}
        assert samples(plane, "sluice_route_weight_percent")[(NAME, "canary")] == 0

    run(tmp_path, scenario)


def test_an_emergency_shows_the_weights_that_are_served(tmp_path: Path) -> None:
    async def scenario(plane: RoutePlane) -> None:
        assert plane.sync is not None
        await plane.sync.stores.close()  # out of reach from here on
        assert samples(plane, "sluice_route_emergencies") == {(): 0}
        await plane.control.abort(NAME, intent())
        assert samples(plane, "sluice_route_emergencies") == {(): 1}
        assert samples(plane, "sluice_route_weight_percent")[(NAME, "canary")] == 0
        await until(lambda: samples(plane, "sluice_route_store_up") == {(): 0})
        assert samples(plane, "sluice_route_config_age_seconds")[()] > 0

    run(tmp_path, scenario)


def test_a_deleted_route_leaves_no_samples_behind(tmp_path: Path) -> None:
    async def scenario(plane: RoutePlane) -> None:
        await plane.control.delete(NAME, Condition(at=(1, 1)), intent())
        for family in ("revision", "weight_percent", "fallbacks", "forced", "overrides_ignored"):
            assert samples(plane, f"sluice_route_{family}") == {}
        await until(lambda: samples(plane, "sluice_shadow_requests") == {})

    run(tmp_path, scenario, shadows={"s": SHADOW})


def test_forced_and_fallback_are_counted_by_the_variant_that_was_assigned(tmp_path: Path) -> None:
    async def scenario(plane: RoutePlane) -> None:
        for reason, by in ((REASON_FALLBACK, REASON_SLOT), ("rule:r", "rule:r")):
            for _ in range(2):
                count_answer(books(plane), target(plane, reason, by))
        assert samples(plane, "sluice_route_fallbacks") == {(NAME, "canary"): 2}
        assert samples(plane, "sluice_route_forced") == {(NAME, "canary"): 2}
        assert samples(plane, "sluice_route_overrides_ignored", {NAME: 3, "gone": 9}) == {
            (NAME,): 3
        }

    run(tmp_path, scenario)


def books(plane: RoutePlane) -> RouteStatistics:
    return plane._books


def target(plane: RoutePlane, reason: str, by: str) -> Target:
    split = plane._table.snapshot[NAME]
    served = plane._repository.get(MODEL, "1")
    return Target(served, NAME, "stable", 1, reason, 0.2, "canary", split, by)


def test_shadows_show_every_reason_and_add_up(tmp_path: Path) -> None:
    async def scenario(plane: RoutePlane) -> None:
        for is_sampled in (True, False, False):
            plane.shadows.offer(mirrored(1.0), "s", is_sampled)
        found = samples(plane, "sluice_shadow_requests")
        assert found[(NAME, "s", "eligible", "")] == 3
        assert found[(NAME, "s", "dropped", "not_sampled")] == 2
        in_flight = samples(plane, "sluice_shadow_in_flight")[(NAME, "s")]
        parts = sum(v for (*_, result, _), v in found.items() if result != "eligible")
        assert parts + in_flight == 3
        reasons = {reason for (*_, result, reason) in found if result == "dropped"}
        assert {"not_ready", "queue_full", "timeout", "shutdown"} <= reasons

    run(tmp_path, scenario, shadows={"s": SHADOW})


def test_a_conflict_is_shown_by_kind_also_of_a_route_that_never_came_into_force(
    tmp_path: Path,
) -> None:
    async def scenario(plane: RoutePlane) -> None:
        assert samples(plane, "sluice_route_conflict") == {
            (NAME, kind): 0 for kind in ("older", "split", "corrupt")
        }
        assert plane.sync is not None
        store = plane.sync.stores.routes
        assert isinstance(store, FileRouteStore)
        await store.write(change(1, name="odd", body=b"{}"))
        await until(lambda: ("odd", "corrupt") in samples(plane, "sluice_route_conflict"))
        assert samples(plane, "sluice_route_conflict")[("odd", "corrupt")] == 1
        assert samples(plane, "sluice_route_conflict")[(NAME, "corrupt")] == 0

    run(tmp_path, scenario)


def test_a_revision_that_waits_is_shown(tmp_path: Path) -> None:
    async def scenario() -> None:
        shelf = shelf_of(tmp_path / "models")
        async with open_plane(shelf, tmp_path / "state", [route(0, version="1")]) as plane:
            assert plane.sync is not None
            assert samples(plane, "sluice_route_pending") == {(NAME,): 0}
            shelf.may_load.clear()
            plane.sync.accept(held(route(0, version="1"), route(20)))
            assert samples(plane, "sluice_route_pending") == {(NAME,): 1}
            shelf.may_load.set()
            await until(lambda: samples(plane, "sluice_route_pending") == {(NAME,): 0})

    asyncio.run(scenario())


def test_a_bug_beside_the_requests_shows(tmp_path: Path) -> None:
    async def scenario(plane: RoutePlane) -> None:
        assert samples(plane, "sluice_route_watch_failures") == {(): 0}
        plane.watch.failures += 2
        assert samples(plane, "sluice_route_watch_failures") == {(): 2}

    run(tmp_path, scenario)
