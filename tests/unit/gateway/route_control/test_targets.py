"""Versions that routes need: on disk, loaded, compatible, pinned, and let go in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.route_control.targets import Targets, needed
from router.faults import RouteError
from router.revisions import Warm
from router.routes import Route
from tests.support.batching import until
from tests.support.models import write_fake
from tests.support.replicas import MODEL, NAME, T0_MS, Scene, open_scene, revisions, route

WIDE: Final = {"datatype": "FP32", "shape": [-1, 2]}
ROWS: Final = {"datatype": "FP32", "shape": [-1, 1]}


def run(folder: Path, scenario: Callable[[Scene, Targets], Awaitable[None]]) -> None:
    """Run a scenario with the targets of a repository that has versions 1 to 3; 1 is loaded."""

    async def in_scene() -> None:
        async with open_scene(folder) as scene:
            await scenario(scene, Targets(scene.repository))

    asyncio.run(in_scene())


def pointers(error: RouteError) -> list[str]:
    return [fault.pointer for fault in error.faults]


def shadow(version: str, model: str = MODEL) -> dict[str, Any]:  # Any: JSON
    return {"model": model, "version": version, "sample": 10}


def of_versions(*versions: str, **fields: Any) -> Route:  # Any: JSON
    """Return a route of one variant per version, `v1` and so on; the first has all the weight."""
    variants = {
        f"v{version}": {"model": MODEL, "version": version, "weight": 0 if n else 100}
        for n, version in enumerate(versions)
    }
    return route(variants=variants, **fields)


@pytest.mark.parametrize(
    ("fields", "versions"),
    [
        ({}, {"1"}),
        ({"fallback": {"to": "v2"}}, {"1", "2"}),
        ({"rules": [{"name": "r", "when": {"tenant": "a"}, "to": "v3"}]}, {"1", "3"}),
        (
            {"rules": [{"name": "r", "when": {"tenant": "a"}, "to": "v3", "enabled": False}]},
            {"1"},
        ),
        (
            {
                "rules": [
                    {
                        "name": "r",
                        "when": {"header": {"x-v": {"in": ["v2", "v3"]}}, "role": "tester"},
                        "to": "$header",
                    }
                ]
            },
            {"1", "2", "3"},
        ),
        ({"shadows": {"s": shadow("3")}}, {"1"}),
    ],
    ids=["weight", "fallback", "rule", "disabled rule", "rule by header", "shadow"],
)
def test_needed_is_what_can_get_traffic(fields: dict[str, Any], versions: set[str]) -> None:
    assert needed(of_versions("1", "2", "3", **fields)) == {(MODEL, v) for v in versions}


def test_a_version_that_is_not_on_disk_is_a_fault_at_its_place(tmp_path: Path) -> None:
    async def scenario(scene: Scene, targets: Targets) -> None:
        asked = of_versions("1", "9", shadows={"s": shadow("8"), "t": shadow("1", "nobody")})
        with pytest.raises(RouteError, match="no version '9' in the repository") as caught:
            targets.check_exists(asked)
        assert pointers(caught.value) == [
            "/variants/v9/version",
            "/shadows/s/version",
            "/shadows/t/version",
        ]
        targets.check_exists(of_versions("1", "2", shadows={"s": shadow("3")}))

    run(tmp_path, scenario)


def test_every_version_that_does_not_load_is_a_fault_and_the_others_come_up(
    tmp_path: Path,
) -> None:
    async def scenario(scene: Scene, targets: Targets) -> None:
        (scene.shelf.root / MODEL / "2" / "model.json").write_text("no script")
        with pytest.raises(RouteError) as caught:
            await targets.load(of_versions("1", "2", "9", "3"))
        assert pointers(caught.value) == ["/variants/v2/version", "/variants/v9/version"]
        assert targets.is_ready(MODEL, "3")

    run(tmp_path, scenario)


def test_only_what_is_asked_for_is_loaded(tmp_path: Path) -> None:
    async def scenario(scene: Scene, targets: Targets) -> None:
        asked = of_versions("1", "2", "3")
        assert targets.missing(of_versions("2", "3")) == [(MODEL, "2")]
        await targets.load(asked, only={(MODEL, "2")})
        assert targets.is_ready(MODEL, "2")
        assert not targets.is_ready(MODEL, "3")
        assert targets.missing(of_versions("2", "3")) == []
        assert not targets.is_ready("nobody", "1")

    run(tmp_path, scenario)


def test_what_would_be_loaded_is_what_is_not_there_and_copies_for_new_shadows(
    tmp_path: Path,
) -> None:
    async def scenario(scene: Scene, targets: Targets) -> None:
        (before,) = revisions(of_versions("1", shadows={"s": shadow("1")}))
        after = of_versions("1", "2", shadows={"s": shadow("1"), "t": shadow("3")})
        assert targets.loads(after, before) == ((MODEL, "2"), (MODEL, "3"))
        assert targets.loads(after, None) == ((MODEL, "1"), (MODEL, "2"), (MODEL, "3"))

    run(tmp_path, scenario)


def test_a_variant_that_cannot_stand_in_for_the_stable_one_is_refused(tmp_path: Path) -> None:
    async def scenario(scene: Scene, targets: Targets) -> None:
        put(scene, "2", inputs=[{"name": "x", **WIDE}])
        put(scene, "3", outputs=[{"name": "other", **ROWS}])
        asked = of_versions("1", "2", "3")
        await targets.load(asked)
        with pytest.raises(RouteError, match="cannot stand in for digits/1: ") as caught:
            await targets.check_signatures(asked, None)
        assert pointers(caught.value) == ["/variants/v2/version", "/variants/v3/version"]

    run(tmp_path, scenario)


def put(scene: Scene, version: str, **sides: object) -> None:
    """Put another model into a version's folder."""
    both = {"inputs": [{"name": "x", **ROWS}], "outputs": [{"name": "y", **ROWS}]} | sides
    write_fake(scene.shelf.root / MODEL / version / "model.json", **both)


def test_a_shadow_is_checked_on_a_copy_that_nobody_keeps(tmp_path: Path) -> None:
    async def scenario(scene: Scene, targets: Targets) -> None:
        put(scene, "2", inputs=[{"name": "x", **WIDE}])
        asked = of_versions("1", shadows={"s": shadow("2"), "t": shadow("3")})
        with pytest.raises(RouteError, match="cannot stand in") as caught:
            await targets.check_signatures(asked, None)
        assert pointers(caught.value) == ["/shadows/s/version"]
        assert not targets.is_ready(MODEL, "2")
        assert not targets.is_ready(MODEL, "3")
        copies = scene.shelf.fakes[1:]
        assert len(copies) == 2
        assert all(copy.is_closed for copy in copies)

    run(tmp_path, scenario)


def test_a_shadow_that_does_not_come_up_is_refused(tmp_path: Path) -> None:
    async def scenario(scene: Scene, targets: Targets) -> None:
        (scene.shelf.root / MODEL / "2" / "model.json").write_text("no script")
        asked = of_versions("1", shadows={"s": shadow("2")})
        with pytest.raises(RouteError) as caught:
            await targets.check_signatures(asked, None)
        assert pointers(caught.value) == ["/shadows/s/version"]

    run(tmp_path, scenario)


def test_shadows_that_the_route_had_are_not_loaded_to_be_checked_again(tmp_path: Path) -> None:
    async def scenario(scene: Scene, targets: Targets) -> None:
        known = of_versions("1", shadows={"s": shadow("2")})
        await targets.check_signatures(of_versions("1", shadows={"s": shadow("2")}), known)
        await targets.check_signatures(of_versions("1", shadows={"s": shadow("1")}), known)
        assert len(scene.shelf.fakes) == 1

    run(tmp_path, scenario)


def test_a_version_that_is_unloaded_between_load_and_check_is_a_fault_and_no_crash(
    tmp_path: Path,
) -> None:
    async def scenario(scene: Scene, targets: Targets) -> None:
        asked = of_versions("1", "2")
        await targets.load(asked)
        await scene.repository.release({})
        with pytest.raises(RouteError) as caught:
            await targets.check_signatures(asked, None)
        assert pointers(caught.value) == ["/variants/v2/version"]
        await scene.repository.unload(MODEL)
        with pytest.raises(RouteError) as caught:
            await targets.check_signatures(asked, None)
        assert pointers(caught.value) == ["/variants/v1/version"]

    run(tmp_path, scenario)


def test_pinned_is_what_routes_name_keep_warm_or_are_about_to_name(tmp_path: Path) -> None:
    async def scenario(scene: Scene, targets: Targets) -> None:
        (named,) = revisions(of_versions("1", "2", shadows={"s": shadow("7")}))
        warm = replace(named, warm=(Warm(model="other", version="5", until_ms=T0_MS),))
        gone = replace(named, route=of_versions("3"), is_deleted=True)
        assert targets.pins([warm, gone], T0_MS - 1) == {MODEL: {"1", "2"}, "other": {"5"}}
        assert targets.pins([warm, gone], T0_MS) == {MODEL: {"1", "2"}}
        with targets.keeping(of_versions("8")), targets.keeping(of_versions("8")):
            assert targets.pins([], T0_MS) == {MODEL: {"8"}}
        assert targets.pins([], T0_MS) == {}

    run(tmp_path, scenario)


def test_what_is_kept_is_let_go_when_the_write_fails(tmp_path: Path) -> None:
    async def scenario(scene: Scene, targets: Targets) -> None:
        with pytest.raises(RuntimeError), targets.keeping(of_versions("8")):  # noqa: PT012
            assert targets.pins([], T0_MS) == {MODEL: {"8"}}
            raise RuntimeError
        assert targets.pins([], T0_MS) == {}

    run(tmp_path, scenario)


def test_a_write_under_way_keeps_the_versions_that_it_has_loaded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            released: list[list[tuple[str, str]]] = []

            async def release() -> None:
                pins = replica.targets.pins(replica.sync.revisions, T0_MS)
                released.append(await scene.repository.release(pins))

            replica.store.before["write"] = release
            await replica.create(20)
            assert released == [[]]
            assert replica.targets.is_ready(MODEL, "2")

    asyncio.run(scenario())


def test_a_version_stays_warm_for_the_window_after_a_promotion_and_then_goes(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            await replica.create(20, version="2")
            await replica.change(20, version="3", rollback_window_s=60)
            revision = replica.in_force.held[NAME].revision
            (warm,) = revision.warm
            assert (warm.model, warm.version) == (MODEL, "2")

            async def release(now_ms: int) -> list[tuple[str, str]]:
                pins = replica.targets.pins(replica.sync.revisions, now_ms)
                return await scene.repository.release(pins)

            assert await release(warm.until_ms - 1) == []
            assert replica.targets.is_ready(MODEL, "2")
            assert await release(warm.until_ms) == [(MODEL, "2")]
            await until(lambda: scene.shelf.fakes[1].is_closed)
            assert replica.targets.is_ready(MODEL, "3")

    asyncio.run(scenario())


def test_versions_of_a_revision_that_waits_are_pinned(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = await scene.serving()
            scene.shelf.may_load.clear()
            await replica.hear(route(10, version="3"))
            pins = replica.targets.pins(replica.sync.revisions, T0_MS)
            assert pins == {MODEL: {"1", "2", "3"}}

    asyncio.run(scenario())


def test_a_shadow_whose_version_serves_already_needs_no_copy_for_the_check(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with open_scene(tmp_path) as scene:
            replica = scene.replica()
            await replica.create(20)
            loaded = len(scene.shelf.fakes)
            await replica.change(20, shadows={"s": shadow("2")})
            assert len(scene.shelf.fakes) == loaded

    asyncio.run(scenario())
