"""Statistics of routes: shares, experiments, shadows, and answers that JSON can hold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.directory import REASON_FALLBACK, Target
from gateway.errors import UnknownName
from gateway.route_control.in_force import Held
from gateway.route_control.insight import RouteInsight
from gateway.route_control.units import SAMPLED_PART, UnitCounter
from gateway.route_plane import Units
from gateway.route_statistics import RouteStatistics
from gateway.shadowing import Shadows
from router.policy import REASON_SLOT
from router.revisions import Revision
from tests.support.batching import until
from tests.support.desk import KeptRecords
from tests.support.replicas import MODEL, NAME, Replica, Scene, open_scene, revisions, route
from tests.support.shadows import mirrored
from tests.support.targets import count_answer

MS: Final = 1_000_000
SHADOW: Final = {"model": MODEL, "version": "1", "sample": 100}


class Books:
    """What insight reads, filled by hand."""

    def __init__(self, scene: Scene, replica: Replica) -> None:
        self.replica = replica
        self.routes = RouteStatistics()
        self.units = UnitCounter()
        self.shadows = Shadows(load_copy=scene.repository.load_copy, log=KeptRecords())
        self.served = scene.repository.get(MODEL, "1")
        self.insight = RouteInsight(
            table=replica.table,
            in_force=replica.in_force,
            targets=replica.targets,
            routes=self.routes,
            shadows=self.shadows,
            units=Units(self.units, None),
        )

    def put(self, *revisions_: Revision) -> None:
        """Bring revisions into force."""
        for revision in revisions_:
            self.replica.sync.force(Held.of(revision))

    def answered(
        self, variant: str, times: int = 1, *, reason: str = REASON_SLOT, is_error: bool = False
    ) -> None:
        """Count answered requests of the revision in force."""
        split = self.replica.table.snapshot[NAME]
        target = Target(
            self.served,
            NAME,
            variant,
            split.route.revision,
            reason,
            1.0,
            variant,
            split,
            REASON_SLOT if reason == REASON_FALLBACK else reason,
        )
        for _ in range(times):
            count_answer(self.routes, target, 3 * MS, is_error=is_error)

    def saw(self, variant: str, keys: range) -> None:
        """Count units of the revision in force."""
        split = self.replica.table.snapshot[NAME]
        for key in keys:
            self.units.see(NAME, split.epoch, split.route.salt, variant, str(key).encode())

    async def asked(self) -> dict[str, Any]:  # Any: JSON
        """Return the statistics, as the caller of the admin API would read them."""
        answer = await self.insight.statistics(NAME)
        return dict(json.loads(json.dumps(answer, default=float, allow_nan=False)))


def run(folder: Path, scenario: Callable[[Books], Awaitable[None]]) -> None:
    """Run a scenario with the books of one replica."""

    async def in_scene() -> None:
        async with open_scene(folder) as scene:
            books = Books(scene, scene.replica())
            try:
                await scenario(books)
            finally:
                await books.shadows.close()

    asyncio.run(in_scene())


def test_a_route_that_is_not_in_force_has_no_statistics(tmp_path: Path) -> None:
    async def scenario(books: Books) -> None:
        with pytest.raises(UnknownName, match="there is no route 'digits'"):
            await books.insight.statistics(NAME)

    run(tmp_path, scenario)


def test_a_route_without_requests_has_no_rows_and_no_experiment(tmp_path: Path) -> None:
    async def scenario(books: Books) -> None:
        books.put(*revisions(route(10)))
        assert await books.asked() == {
            "route": NAME,
            "revision": 1,
            "epoch": 1,
            "variants": [],
            "shadows": {},
            "experiment": None,
        }

    run(tmp_path, scenario)


def test_rows_are_per_revision_and_variant_the_newest_first(tmp_path: Path) -> None:
    async def scenario(books: Books) -> None:
        first, second = revisions(route(10), route(40))
        books.put(first)
        books.answered("stable", 9)
        books.answered("canary", 1, is_error=True)
        books.put(second)
        books.answered("canary", 3)
        books.answered("canary", 2, reason="rule:internal")
        books.answered("stable", 1, reason=REASON_FALLBACK)
        answer = await books.asked()
        rows = [
            (r["revision"], r["variant"], r["requests"], r["share_percent"], r["weight"])
            for r in answer["variants"]
        ]
        assert rows == [
            (2, "canary", 3, 75, 40),
            (2, "stable", 1, 25, 60),
            (1, "canary", 1, 10, None),
            (1, "stable", 9, 90, None),
        ]
        newest, *_, oldest = answer["variants"]
        assert (newest["forced"], newest["errors"], newest["fallback"]) == (2, 0, 0)
        assert answer["variants"][1]["fallback"] == 1
        assert answer["variants"][2]["errors"] == 1
        assert set(oldest["latency_ms"]) == {"p50", "p95", "p99"}
        assert all(2 < value < 4 for value in oldest["latency_ms"].values())

    run(tmp_path, scenario)


def test_a_variant_that_only_rules_chose_has_no_share_and_no_latency(tmp_path: Path) -> None:
    async def scenario(books: Books) -> None:
        books.put(*revisions(route(10)))
        books.answered("canary", 2, reason="rule:internal")
        (row,) = (await books.asked())["variants"]
        assert (row["requests"], row["forced"], row["share_percent"]) == (0, 2, None)
        assert row["latency_ms"] == {"p50": None, "p95": None, "p99": None}

    run(tmp_path, scenario)


@pytest.mark.parametrize("counts", [(1, 2), (1, 0), (333, 667), (1, 6), (299, 1)])
def test_the_shares_of_a_revision_add_up_to_100(tmp_path: Path, counts: tuple[int, int]) -> None:
    async def scenario(books: Books) -> None:
        first, second = revisions(route(10), route(20))
        for revision in (first, second):
            books.put(revision)
            for variant, count in zip(("stable", "canary"), counts, strict=True):
                books.answered(variant, count)
                books.answered(variant, 5, reason="rule:internal")
        rows = (await books.asked())["variants"]
        for number in (1, 2):
            shares = [row["share_percent"] for row in rows if row["revision"] == number]
            assert sum(shares) == pytest.approx(100, abs=2e-4)
            assert max(shares) == pytest.approx(100 * max(counts) / sum(counts), abs=1e-4)

    run(tmp_path, scenario)


def test_an_experiment_tells_its_units_and_whether_they_fit_the_weights(tmp_path: Path) -> None:
    async def scenario(books: Books) -> None:
        books.put(*revisions(route(50, kind="experiment")))
        books.saw("stable", range(20_000))
        books.saw("canary", range(20_000, 40_000))
        experiment = (await books.asked())["experiment"]
        expected = 20_000 / SAMPLED_PART
        assert set(experiment["units"]) == {"stable", "canary"}
        assert all(0.7 * expected < n < 1.3 * expected for n in experiment["units"].values())
        assert experiment["sample_ratio"]["ln_bayes_factor"] < 0
        assert not experiment["sample_ratio"]["mismatch"]
        books.saw("canary", range(40_000, 100_000))
        experiment = (await books.asked())["experiment"]
        assert experiment["sample_ratio"]["ln_bayes_factor"] > 10
        assert experiment["sample_ratio"]["mismatch"]

    run(tmp_path, scenario)


def test_an_infinite_factor_is_null_and_a_mismatch(tmp_path: Path) -> None:
    async def scenario(books: Books) -> None:
        books.put(*revisions(route(0, kind="experiment")))
        books.saw("canary", range(2_000))
        experiment = (await books.asked())["experiment"]
        assert experiment["sample_ratio"] == {"ln_bayes_factor": None, "mismatch": True}
        assert experiment["units"]["stable"] == 0

    run(tmp_path, scenario)


def test_an_experiment_that_nobody_has_visited_is_no_mismatch(tmp_path: Path) -> None:
    async def scenario(books: Books) -> None:
        books.put(*revisions(route(50, kind="experiment")))
        experiment = (await books.asked())["experiment"]
        assert experiment["units"] == {"stable": 0, "canary": 0}
        assert isfinite(experiment["sample_ratio"]["ln_bayes_factor"])
        assert not experiment["sample_ratio"]["mismatch"]

    run(tmp_path, scenario)


def test_units_are_those_of_the_epoch_in_force_and_a_carryover_is_told(tmp_path: Path) -> None:
    async def scenario(books: Books) -> None:
        first, second = revisions(route(50, kind="experiment"), route(40, kind="experiment"))
        books.put(first)
        books.saw("stable", range(5_000))
        books.put(replace(second))
        answer = await books.asked()
        assert answer["epoch"] == 2
        assert answer["experiment"]["units"] == {"stable": 0, "canary": 0}
        assert answer["experiment"]["carryover"] == [2]

    run(tmp_path, scenario)


def test_shadows_tell_every_drop_by_reason(tmp_path: Path) -> None:
    async def scenario(books: Books) -> None:
        books.put(*revisions(route(0, shadows={"s": SHADOW})))
        shadows = books.replica.table.snapshot[NAME].route.shadows
        books.shadows.apply({(NAME, shadows[0].name): shadows[0], ("other", "s"): shadows[0]})
        books.shadows.offer(mirrored(1.0), "s", False)
        books.shadows.offer(mirrored(1.0), "s", True)
        found = (await books.asked())["shadows"]
        assert set(found) == {"s"}
        counts = found["s"]
        assert counts["eligible"] == 2
        assert counts["dropped"]["not_sampled"] == 1
        assert counts["eligible"] == counts["sent"] + counts["in_flight"] + sum(
            counts["dropped"].values()
        )
        await until(lambda: books.shadows.statistics()[(NAME, "s")].is_ready)

    run(tmp_path, scenario)
