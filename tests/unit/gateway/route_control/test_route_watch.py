"""Mirroring and counting beside the live request: never raises, units only by slot."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.directory import REASON_FALLBACK, Target
from gateway.pipeline import Call
from gateway.route_control.units import UnitCounter
from gateway.route_statistics import RouteStatistics
from gateway.route_watch import RouteWatch
from gateway.shadowing import Shadows, ShadowStatistics
from router.routes import Route
from tests.support.batching import until
from tests.support.desk import Desk, open_desk, request_of
from tests.support.replicas import MODEL, NAME, route
from tests.support.repositories import Shelf
from tests.support.shadows import Copies, KeptRecords
from tests.support.targets import count_answer, like

KEYS: Final = range(4_000)
FORCE: Final = {"name": "force", "when": {"header": {"x-beta": "yes"}}, "to": "canary"}


class Watching:
    """A watch of a desk's requests, with real shadows whose copies are fakes."""

    def __init__(self, desk: Desk, draws: list[float]) -> None:
        self.desk = desk
        self.copies = Copies()
        self.log = KeptRecords()
        self.shadows = Shadows(load_copy=self.copies.load, log=self.log)
        self.units = UnitCounter()
        self.watch = RouteWatch(
            shadows=self.shadows,
            units=self.units,
            draw=lambda: draws.pop(0) if draws else 0.5,
            subject_of=lambda request: request.header("x-customer") or "",
        )

    async def apply(self, watched: Route) -> None:
        """Have the shadows of a route ready."""
        self.shadows.apply({(watched.name, s.name): s for s in watched.shadows})
        await until(lambda: all(s.is_ready for s in self.shadows.statistics().values()))

    async def ask(self, key: str = "", **headers: str) -> tuple[Call, Target]:
        """Send a request; return it, once it was answered, and what the watch is told."""
        if key:
            headers["x_user_id"] = key
        told = len(self.desk.watched)
        call, answered = self.desk.submit(request_of(NAME, 1.0, **headers))
        await answered.answer()
        assert len(self.desk.watched) == told + 1
        target, told_key = self.desk.watched[-1]
        assert told_key == (key.encode() or None)
        return call, target

    def found(self, shadow: str) -> ShadowStatistics:
        """Return the counters of a shadow."""
        return self.shadows.statistics()[(NAME, shadow)]


def run(
    folder: Path,
    watched: Route,
    scenario: Callable[[Watching], Awaitable[None]],
    *,
    missing: tuple[str, ...] = (),
    draws: tuple[float, ...] = (),
) -> None:
    """Run a scenario on a desk with one route; the versions `missing` are not on disk."""

    async def at_desk() -> None:
        shelf = Shelf(folder)
        for version in {"1", "2", "3"} - set(missing):
            shelf.add_fake(MODEL, version)
        async with open_desk(shelf, watched) as desk:
            watching = Watching(desk, list(draws))
            await watching.apply(watched)
            try:
                await scenario(watching)
            finally:
                await watching.shadows.close()
                await watching.copies.close()

    asyncio.run(at_desk())


def experiment(canary: float = 50, **fields: Any) -> Route:  # Any: JSON
    return route(canary, kind="experiment", key=["header:x-user-id"], **fields)


def shadowed(sample: float, *of: str, key: bool = True) -> Route:
    shadow = {"model": MODEL, "version": "3", "sample": sample, "of": list(of)}
    return route(50, key=["header:x-user-id"] if key else [], shadows={"s": shadow})


def test_a_request_is_offered_to_the_shadows_of_its_variant_under_its_own_ids(
    tmp_path: Path,
) -> None:
    async def scenario(watching: Watching) -> None:
        call, target = await watching.ask("u1", x_request_id="cid-1", x_customer="alice")
        watching.watch.admitted(call, target)
        await until(lambda: len(watching.log.records) == 1)
        (record,) = watching.log.records
        assert record.subject == "alice"
        assert (record.parent_rid, record.cid, record.origin.name) == (call.rid, "cid-1", NAME)
        assert (record.origin.variant, record.origin.served) == (target.assigned, "s")
        assert record.origin.is_shadow
        assert watching.found("s").sent == 1

    run(tmp_path, shadowed(100), scenario)


def test_a_shadow_of_one_variant_is_not_offered_the_requests_of_another(tmp_path: Path) -> None:
    async def scenario(watching: Watching) -> None:
        variants: list[str] = []
        for n in range(20):
            call, target = await watching.ask(f"u{n}")
            variants.append(target.assigned)
            watching.watch.admitted(call, target)
        assert 0 < variants.count("canary") < 20
        assert watching.found("s").eligible == variants.count("canary")

    run(tmp_path, shadowed(100, "canary"), scenario)


def test_a_key_is_always_mirrored_or_never_and_what_is_not_is_counted(tmp_path: Path) -> None:
    async def scenario(watching: Watching) -> None:
        for _ in range(3):
            for n in range(10):
                watching.watch.admitted(*await watching.ask(f"u{n}"))
        found = watching.found("s")
        dropped = {str(reason): n for reason, n in found.dropped.items()}
        assert found.eligible == 30
        assert 0 < dropped["not_sampled"] < 30
        assert dropped["not_sampled"] % 3 == 0

    run(tmp_path, shadowed(50), scenario)


def test_without_a_key_the_sample_is_drawn(tmp_path: Path) -> None:
    async def scenario(watching: Watching) -> None:
        for _ in range(3):
            watching.watch.admitted(*await watching.ask())
        dropped = {str(reason): n for reason, n in watching.found("s").dropped.items()}
        assert dropped["not_sampled"] == 2

    run(tmp_path, shadowed(25, key=False), scenario, draws=(0.1, 0.25, 0.9))


def count_units(watching: Watching, told: list[tuple[Call, Target]]) -> dict[str, int]:
    """Tell the watch of one request under many keys, as it would be told; return the units."""
    for call, target in told:
        for key in KEYS:
            call.key = f"{target.assigned}-{key}".encode()
            watching.watch.admitted(call, target)
    assert watching.watch.failures == 0
    return watching.units.counts(NAME, told[0][1].split.epoch)  # type: ignore[union-attr]


def test_units_of_an_experiment_are_counted_by_the_variant_of_their_slot(tmp_path: Path) -> None:
    async def scenario(watching: Watching) -> None:
        told = [await watching.ask(f"u{n}") for n in range(8)]
        both = {target.assigned: (call, target) for call, target in told}
        found = count_units(watching, list(both.values()))
        assert set(found) == {"stable", "canary"}
        assert all(20 < units < 120 for units in found.values())

    run(tmp_path, experiment(), scenario)


@pytest.mark.parametrize("fallback", [False, True])
def test_requests_that_a_rule_chose_are_no_units_even_where_a_fallback_serves(
    tmp_path: Path, fallback: bool
) -> None:
    async def scenario(watching: Watching) -> None:
        told = await watching.ask("u1", x_beta="yes")
        assert told[1].reason == (REASON_FALLBACK if fallback else "rule:force")
        assert count_units(watching, [told]) == {}

    watched = experiment(rules=[FORCE], fallback={"to": "stable"})
    run(tmp_path, watched, scenario, missing=("2",) if fallback else ())


def test_where_a_fallback_serves_the_unit_is_that_of_the_variant_it_was_assigned(
    tmp_path: Path,
) -> None:
    async def scenario(watching: Watching) -> None:
        call, target = await watching.ask("u1")
        assert (target.reason, target.variant, target.assigned) == (
            REASON_FALLBACK,
            "stable",
            "canary",
        )
        assert set(count_units(watching, [(call, target)])) == {"canary"}
        books = RouteStatistics()
        count_answer(books, target)
        ((_, variant, counts),) = books.of(NAME)
        assert (variant, counts.requests, counts.fallback, counts.forced) == ("canary", 1, 1, 0)

    run(tmp_path, experiment(100, fallback={"to": "stable"}), scenario, missing=("2",))


def test_requests_without_a_key_are_no_units(tmp_path: Path) -> None:
    async def scenario(watching: Watching) -> None:
        call, target = await watching.ask()
        watching.watch.admitted(call, target)
        assert call.key is None
        assert repr(watching.units) == repr(UnitCounter())

    run(tmp_path, experiment(), scenario)


def test_a_rollout_counts_no_units(tmp_path: Path) -> None:
    async def scenario(watching: Watching) -> None:
        assert count_units(watching, [await watching.ask("u1")]) == {}

    run(tmp_path, shadowed(0), scenario)


def test_a_request_without_a_split_is_left_alone(tmp_path: Path) -> None:
    async def scenario(watching: Watching) -> None:
        call, target = await watching.ask("u1")
        watching.watch.admitted(call, like(target, split=None))
        assert watching.found("s").eligible == 0
        assert watching.watch.failures == 0

    run(tmp_path, shadowed(100), scenario)


def test_whatever_goes_wrong_is_counted_and_said_once_and_never_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(watching: Watching) -> None:
        call, target = await watching.ask("u1")
        unknown = like(target, assigned="nobody")
        for _ in range(3):
            watching.watch.admitted(call, unknown)
        assert watching.watch.failures == 3
        watching.watch.admitted(call, target)
        assert watching.found("s").eligible == 1

    run(tmp_path, shadowed(100), scenario)
    raised = [record for record in caplog.records if record.exc_info]
    assert [record.getMessage() for record in raised] == ["a request could not be mirrored"]
