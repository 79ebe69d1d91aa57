"""What the directory remembers between requests: that it is used, and that it is never stale.

The rules by which it chooses are in test_directory.py. Here a second directory, which has nothing
to remember because it is new for every question, says what would be right.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import EngineError, VersionNotReady
from engines.served import VersionState
from gateway import directory as directories
from gateway.directory import Directory, Target
from gateway.principals import Principals
from gateway.request import InferRequest
from router import document
from router.policy import CompiledRoute
from router.routes import Route
from tests.support.desk import Desk, open_desk, request_of, route_of
from tests.support.repositories import Shelf
from tests.support.targets import FIELDS

SPLIT = route_of("split", ("stable", "echo", "1", 50), ("canary", "echo", "2", 50))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    made = Shelf(tmp_path)
    for version in ("1", "2"):
        made.add_fake("echo", version)
    return made


def on(shelf: Shelf, check: Callable[[Desk], Awaitable[None]], *routes: Route) -> None:
    """Run a check on a directory over the shelf."""

    async def scenario() -> None:
        async with open_desk(shelf, *routes) as desk:
            await check(desk)

    asyncio.run(scenario())


def chosen(desk: Desk, name: str, *, draw: float = 0.99, version: str = "") -> Target:
    desk.draws = [draw]
    return desk.directory.resolve(request_of(name, version=version))[0]


def put(desk: Desk, route: Route, revision: int) -> None:
    """Bring a revision of a route into force."""
    desk.directory.routes.put(CompiledRoute.compile(replace(route, revision=revision)))


# One target stands for all requests of one choice


def test_requests_of_one_choice_have_one_target(shelf: Shelf) -> None:
    async def check(desk: Desk) -> None:
        for draw in (0.1, 0.9):
            assert chosen(desk, "split", draw=draw) is chosen(desk, "split", draw=draw)
        assert chosen(desk, "split", draw=0.1) is not chosen(desk, "split", draw=0.9)
        assert chosen(desk, "split", version="2") is chosen(desk, "split", version="2")
        assert chosen(desk, "echo") is chosen(desk, "echo")
        assert chosen(desk, "echo") is not chosen(desk, "echo", version="2")

    on(shelf, check, SPLIT)


def test_a_key_belongs_to_its_request_and_not_to_the_target(shelf: Shelf) -> None:
    async def check(desk: Desk) -> None:
        requests = [request_of("split", x_user_id=f"u{n}") for n in range(40)]
        found = [desk.directory.resolve(request) for request in requests]
        assert [key for _, key in found] == [f"u{n}".encode() for n in range(40)]
        assert len({target for target, _ in found}) == 2
        compiled = desk.directory.routes.snapshot["split"]
        expected = [compiled.decide(key, lambda: 0.0).variant.name for _, key in found]
        assert [target.variant for target, _ in found] == expected

    on(shelf, check, SPLIT)


def test_a_slot_and_a_draw_are_two_choices(shelf: Shelf) -> None:
    async def check(desk: Desk) -> None:
        slot = desk.directory.resolve(request_of("split", x_user_id="u1"))[0]
        drawn = [chosen(desk, "split", draw=draw) for draw in (0.1, 0.9)]
        assert slot not in drawn
        assert {slot.reason} | {target.reason for target in drawn} == {"slot", "random"}

    on(shelf, check, SPLIT)


# What ends a target


@pytest.mark.parametrize(("name", "version"), [("split", ""), ("split", "2"), ("echo", "")])
def test_a_reload_is_served_from_its_first_request_on(
    shelf: Shelf, name: str, version: str
) -> None:
    async def check(desk: Desk) -> None:
        before = chosen(desk, name, draw=0.1, version=version)
        await desk.repository.load("echo")
        after = chosen(desk, name, draw=0.1, version=version)
        assert before.served.version == after.served.version == "2"
        assert before.served is not after.served
        assert after.served is desk.repository.get("echo", "2")
        assert after is chosen(desk, name, draw=0.1, version=version)

    on(shelf, check, SPLIT)


def test_a_new_version_of_a_model_is_served_to_those_who_name_none(shelf: Shelf) -> None:
    async def check(desk: Desk) -> None:
        assert chosen(desk, "echo").served.version == "2"
        shelf.add_fake("echo", "3")
        assert chosen(desk, "echo").served.version == "2"
        await desk.repository.load("echo")
        assert chosen(desk, "echo").served.version == "3"
        shutil.rmtree(shelf.root / "echo" / "3")
        await desk.repository.load("echo")
        assert chosen(desk, "echo").served.version == "2"

    on(shelf, check)


def test_an_unloaded_model_is_not_ready_for_anybody_and_comes_back(shelf: Shelf) -> None:
    async def check(desk: Desk) -> None:
        asked: list[dict[str, Any]] = [  # Any: arguments of `chosen`
            {"name": "split"},
            {"name": "split", "version": "1"},
            {"name": "echo"},
            {"name": "echo", "version": "1"},
        ]
        for _ in range(2):
            for how in asked:
                _ = chosen(desk, **how).served.batcher
            await desk.repository.unload("echo")
            for how in asked:
                with pytest.raises(VersionNotReady):
                    _ = chosen(desk, **how).served.batcher
            await desk.repository.load("echo")

    on(shelf, check, SPLIT)


def test_a_new_revision_is_told_from_its_first_request_on(shelf: Shelf) -> None:
    async def check(desk: Desk) -> None:
        for revision in (4, 5):
            put(desk, SPLIT, revision)
            for version in ("", "2"):
                target = chosen(desk, "split", draw=0.1, version=version)
                assert (target.revision, target.serving.revision) == (revision, revision)
        moved = route_of("split", ("stable", "echo", "2", 50), ("canary", "echo", "1", 50))
        put(desk, moved, 6)
        assert chosen(desk, "split", draw=0.1).served.version == "1"
        assert chosen(desk, "split", version="2").variant == "stable"
        weighed = route_of("split", ("stable", "echo", "1", 20), ("canary", "echo", "2", 80))
        put(desk, weighed, 6)  # not even a number that was there before hides a change
        target = chosen(desk, "split", draw=0.1)
        assert (target.propensity, target.served.version) == (0.8, "2")
        assert chosen(desk, "split", version="2").variant == "canary"

    on(shelf, check, SPLIT)


def test_the_fallback_serves_as_long_as_it_must_and_no_longer(shelf: Shelf) -> None:
    shelf.add_fake("other", "1")
    arms = {
        "stable": {"model": "echo", "version": "1", "weight": 50},
        "canary": {"model": "other", "version": "1", "weight": 50},
    }
    route = document.read({"variants": arms, "fallback": {"to": "stable"}}, name="r", revision=3)

    async def check(desk: Desk) -> None:
        for _ in range(2):
            usual = chosen(desk, "r", draw=0.1)
            assert (usual.variant, usual.reason, usual.serving.assigned) == ("canary", "random", "")
            await desk.repository.unload("other")
            fallen = chosen(desk, "r", draw=0.1)
            assert (fallen.variant, fallen.reason) == ("stable", "fallback")
            assert (fallen.serving.assigned, fallen.propensity) == ("canary", 0.5)
            assert fallen is chosen(desk, "r", draw=0.1)
            await desk.repository.load("echo")
            assert chosen(desk, "r", draw=0.1).served is desk.repository.get("echo", "1")
            await desk.repository.load("other")

    on(shelf, check, route)


def test_a_model_that_gets_a_route_of_its_name_and_loses_it_again(shelf: Shelf) -> None:
    route = route_of("echo", ("only", "echo", "1", 100))

    async def check(desk: Desk) -> None:
        for revision in (0, 1, 2):
            plain = chosen(desk, "echo")
            assert (plain.reason, plain.route, plain.served.version) == ("model", "", "2")
            pinned = chosen(desk, "echo", version="1")
            assert (pinned.route, pinned.variant, pinned.revision) == ("", "", 0)
            assert chosen(desk, "echo", version="2").route == ""
            put(desk, route, revision)
            routed = chosen(desk, "echo")
            assert (routed.reason, routed.route, routed.served.version) == ("random", "echo", "1")
            pinned = chosen(desk, "echo", version="1")
            assert (pinned.route, pinned.variant, pinned.revision) == ("echo", "only", revision)
            unnamed = chosen(desk, "echo", version="2")
            assert (unnamed.route, unnamed.variant) == ("echo", "")
            desk.directory.routes.remove("echo")

    on(shelf, check)


def test_what_is_remembered_is_bounded(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "_MAX_TARGETS", 3)

    async def check(desk: Desk) -> None:
        for _ in range(3):
            for draw in (0.1, 0.9):
                assert chosen(desk, "split", draw=draw).reason == "random"
            for version in ("1", "2"):
                assert chosen(desk, "split", version=version).served.version == version
                assert chosen(desk, "echo", version=version).route == ""
            assert len(desk.directory._targets) <= 3

    on(shelf, check, SPLIT)


# Whatever happens, the answer is that of a directory that remembers nothing

NAMES = ("split", "echo", "other", "falling")
VERSIONS = ("", "1", "2", "3", "9")
DRAWS = (0.05, 0.5, 0.95)
KEYS = ("", "u1", "u2", "u3")


def answer(directory: Directory, request: InferRequest) -> tuple[object, ...]:
    """Return everything that a choice says, or how it was refused."""
    try:
        target, key = directory.resolve(request)
    except Exception as exc:
        return type(exc), str(exc)
    told = target.serving
    serving = told.variant, told.assigned, told.revision, told.reason, told.lines
    return (*(getattr(target, name) for name in FIELDS), target.is_watched, serving, key)


def compare(desk: Desk) -> None:
    """Ask every question of the directory under test and of a new one."""
    for name in NAMES:
        for version in VERSIONS:
            for draw, key in zip((*DRAWS, 0.5), KEYS, strict=True):
                headers = {"x_user_id": key, "x_beta": "yes" if key == "u3" else ""}
                request = request_of(name, version=version, **headers)
                fresh = Directory(
                    routes=desk.directory.routes,
                    repository=desk.repository,
                    principals=Principals({}),
                    draw=lambda draw=draw: draw,  # type: ignore[misc]
                )
                desk.draws = [draw]
                assert answer(desk.directory, request) == answer(fresh, request)
    for target in desk.directory._targets.values():
        if target.served.state is VersionState.READY:
            assert desk.repository.get(target.served.model, target.served.version) is target.served


async def compare_until(desk: Desk, change: Awaitable[None]) -> None:
    """Compare at every step of a change, as requests come in between."""
    task = asyncio.ensure_future(change)
    while not task.done():
        compare(desk)
        await asyncio.wait({task}, timeout=0.001)
    compare(desk)
    if (error := task.exception()) is not None and not isinstance(error, EngineError):
        raise error


def arms(weights: tuple[int, int], versions: tuple[str, str], models: tuple[str, str]) -> Any:
    """Return the variants of a random route."""  # Any: JSON
    names = ("stable", "canary")
    return {
        name: {"model": model, "version": version, "weight": weight}
        for name, model, version, weight in zip(names, models, versions, weights, strict=True)
    }


BETA = {"name": "beta", "when": {"header": {"x-beta": "yes"}}, "to": "canary"}
changes = st.one_of(
    st.tuples(st.just("load"), st.sampled_from(["echo", "other"])),
    st.tuples(st.just("unload"), st.sampled_from(["echo", "other"])),
    st.tuples(st.just("add"), st.sampled_from(["echo", "other"]), st.sampled_from("123")),
    st.tuples(st.just("break"), st.sampled_from(["echo", "other"]), st.sampled_from("123")),
    st.tuples(st.just("remove"), st.sampled_from(["echo", "other"]), st.sampled_from("123")),
    st.tuples(st.just("ensure"), st.sampled_from(["echo", "other"]), st.sampled_from("123")),
    st.tuples(
        st.just("put"),
        st.sampled_from(NAMES),
        st.fixed_dictionaries(
            {
                "variants": st.builds(
                    arms,
                    st.sampled_from([(50, 50), (100, 0), (10, 90)]),
                    st.tuples(st.sampled_from("123"), st.sampled_from("123")),
                    st.tuples(*[st.sampled_from(["echo", "other", "nowhere"])] * 2),
                ),
                "fallback": st.sampled_from([None, {"to": "stable"}, {"to": "canary"}]),
                "rules": st.sampled_from([[], [BETA]]),
                "key": st.sampled_from([[], ["header:x-user-id"]]),
                "missing_key": st.sampled_from(["random", "stable", "reject"]),
                "kind": st.sampled_from(["rollout", "experiment"]),
            }
        ),
        st.integers(0, 3),  # revisions: a number alone does not tell one from another
    ),
    st.tuples(st.just("delete"), st.sampled_from(NAMES)),
)


async def make(desk: Desk, change: tuple[Any, ...]) -> None:  # Any: see `changes`
    """Change something in the world, asking all the while."""
    verb, name, *rest = change
    folder = desk.shelf.root / name
    match verb:
        case "load" if folder.exists():
            await compare_until(desk, desk.repository.load(name))
        case "unload" if desk.repository.has_model(name):
            await compare_until(desk, desk.repository.unload(name))
        case "ensure":
            await compare_until(desk, ensured(desk, name, rest[0]))
        case "add":
            desk.shelf.add_fake(name, rest[0])
        case "break":
            desk.shelf.add_fake(name, rest[0]).write_text("this is no script")
        case "remove":
            shutil.rmtree(folder / rest[0], ignore_errors=True)
        case "put":
            put(desk, document.read(rest[0], name=name), rest[1])
        case "delete":
            desk.directory.routes.remove(name)
    compare(desk)


async def ensured(desk: Desk, model: str, version: str) -> None:
    await desk.repository.ensure(model, version)


@given(history=st.lists(changes, min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_no_answer_is_staler_than_that_of_a_directory_without_a_memory(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[Any, ...]]
) -> None:
    folder = tmp_path_factory.mktemp("models")
    made = Shelf(folder)
    for model in ("echo", "other"):
        for version in "12":
            made.add_fake(model, version)

    async def scenario() -> None:
        falling = document.read(
            {
                "variants": arms((50, 50), ("1", "1"), ("echo", "other")),
                "fallback": {"to": "stable"},
            },
            name="falling",
        )
        async with open_desk(made, SPLIT, falling) as desk:
            compare(desk)
            for change in history:
                await make(desk, change)

    asyncio.run(scenario())
    shutil.rmtree(folder)
