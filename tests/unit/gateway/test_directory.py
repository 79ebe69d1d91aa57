"""Who answers to a public name: routes, versions, readiness, and where a key is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.errors import VersionNotReady
from gateway.directory import Directory, read_key
from gateway.errors import UnknownName
from gateway.request import InferRequest, ParameterValue
from router.routes import KeySource, Route
from tests.support.desk import Desk, open_desk, request_of, route_of
from tests.support.repositories import Shelf

SPLIT = route_of("split", ("stable", "echo", "1", 90), ("canary", "echo", "2", 10))
ECHO = route_of("echo", ("only", "echo", "1", 100))
MIXED = route_of("mixed", ("a", "echo", "1", 50), ("b", "other", "1", 25), ("c", "other", "2", 25))
EVEN = route_of("even", ("a", "echo", "1", 50), ("b", "echo", "1", 50))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    made = Shelf(tmp_path)
    for model, version in (("echo", "1"), ("echo", "2"), ("other", "1"), ("other", "2")):
        made.add_fake(model, version)
    made.add_fake("broken", "1").write_text("this is no script")
    return made


def on(shelf: Shelf, check: Callable[[Desk], None], *routes: Route) -> None:
    """Run a check on a directory over the shelf."""

    async def scenario() -> None:
        async with open_desk(shelf, *routes) as desk:
            check(desk)

    asyncio.run(scenario())


def chosen(directory: Directory, request: InferRequest) -> tuple[str, str, str, str, float]:
    """Return model, version, variant, reason and propensity of a choice."""
    target = directory.choose(request)
    served = target.served
    return served.model, served.version, target.variant, target.reason, target.propensity


def test_a_route_draws_where_there_is_no_key(shelf: Shelf) -> None:
    def check(desk: Desk) -> None:
        desk.draws = [0.0, 0.099999, 0.1, 0.999999]  # the slots of canary come first, by name
        found = [chosen(desk.directory, request_of("split")) for _ in range(4)]
        stable, canary = ("echo", "1", "stable"), ("echo", "2", "canary")
        assert found[:2] == [(*canary, "random", 0.1)] * 2
        assert found[2:] == [(*stable, "random", 0.9)] * 2

    on(shelf, check, SPLIT)


def test_a_key_always_gets_the_same_variant_and_nothing_is_drawn(shelf: Shelf) -> None:
    def check(desk: Desk) -> None:
        desk.draws = [0.95]
        requests = [request_of("split", x_user_id="u1") for _ in range(3)]
        assert len({chosen(desk.directory, request) for request in requests}) == 1
        assert chosen(desk.directory, requests[0])[3] == "slot"
        assert desk.draws == [0.95]

    on(shelf, check, SPLIT)


def test_a_target_names_its_route_and_revision_only_where_one_was_involved(shelf: Shelf) -> None:
    def check(desk: Desk) -> None:
        routed = desk.directory.choose(request_of("split"))
        assert (routed.route, routed.revision) == ("split", 3)
        pinned = desk.directory.choose(request_of("split", version="2"))
        assert (pinned.route, pinned.revision, pinned.propensity) == ("split", 3, 1.0)
        plain = desk.directory.choose(request_of("echo"))
        assert (plain.route, plain.variant, plain.revision) == ("", "", 0)

    on(shelf, check, SPLIT)


@pytest.mark.parametrize(
    ("name", "version", "model", "variant"),
    [
        ("split", "1", "echo", "stable"),
        ("split", "2", "echo", "canary"),
        ("echo", "1", "echo", "only"),
        ("echo", "2", "echo", ""),  # no variant names it, but the route bears the model's name
        ("mixed", "2", "other", "c"),
        ("even", "1", "echo", ""),  # two variants, but one and the same version
        ("other", "1", "other", ""),
    ],
)
def test_a_version_reaches_the_one_model_that_the_name_can_mean(
    shelf: Shelf, name: str, version: str, model: str, variant: str
) -> None:
    def check(desk: Desk) -> None:
        request = request_of(name, version=version)
        assert chosen(desk.directory, request) == (model, version, variant, "version", 1.0)

    on(shelf, check, SPLIT, ECHO, MIXED, EVEN)


@pytest.mark.parametrize(
    ("name", "version", "sentence"),
    [
        ("mixed", "1", "is ambiguous: it is that of the variants a (echo), b (other)"),
        ("mixed", "7", "has no variant of version '7' (it has 1, 2), and there is no model"),
        ("echo", "7", "version '7' of model 'echo' is not known"),
        ("nobody", "", "no route and no model is named 'nobody'"),
        ("", "", "no route and no model is named ''"),
    ],
)
def test_what_nothing_answers_to_is_an_unknown_name(
    shelf: Shelf, name: str, version: str, sentence: str
) -> None:
    def check(desk: Desk) -> None:
        with pytest.raises(UnknownName) as caught:
            desk.directory.choose(request_of(name, version=version))
        assert sentence in str(caught.value)

    on(shelf, check, ECHO, MIXED)


def test_a_model_whose_versions_are_all_broken_is_not_ready(shelf: Shelf) -> None:
    def check(desk: Desk) -> None:
        with pytest.raises(VersionNotReady, match="none of its versions is ready"):
            desk.directory.choose(request_of("broken"))
        assert not desk.directory.is_ready("broken")
        assert not desk.directory.is_ready("broken", "1")

    on(shelf, check)


def test_a_route_is_ready_when_every_variant_with_traffic_is(shelf: Shelf) -> None:
    unused = route_of("unused", ("good", "echo", "1", 100), ("bad", "broken", "1", 0))
    used = route_of("used", ("good", "echo", "1", 99), ("bad", "broken", "1", 1))

    def check(desk: Desk) -> None:
        assert desk.directory.is_ready("split")
        assert desk.directory.is_ready("unused")
        assert not desk.directory.is_ready("used")
        assert desk.directory.is_ready("split", "1")
        assert desk.directory.is_ready("echo")
        for name, version in (("nobody", ""), ("split", "7"), ("echo", "7")):
            with pytest.raises(UnknownName):
                desk.directory.is_ready(name, version)

    on(shelf, check, SPLIT, unused, used)


def test_the_heaviest_variant_stands_for_a_route(shelf: Shelf) -> None:
    late = route_of("late", ("small", "echo", "1", 40), ("large", "other", "2", 60))

    def check(desk: Desk) -> None:
        representative = desk.directory.representative("late")
        assert (representative.model, representative.version) == ("other", "2")
        assert desk.directory.representative("late", "1").version == "1"
        assert desk.directory.representative("echo").version == "2"

    on(shelf, check, late)


def test_the_versions_of_a_name_are_a_routes_or_the_ready_ones_of_a_model(shelf: Shelf) -> None:
    def check(desk: Desk) -> None:
        assert desk.directory.versions("mixed") == ["1", "2"]
        assert desk.directory.versions("echo") == ["1"]  # the route's, not the model's
        assert desk.directory.versions("other") == ["1", "2"]
        assert desk.directory.versions("broken") == []

    on(shelf, check, ECHO, MIXED)


def test_a_name_is_known_if_a_route_or_a_model_has_it(shelf: Shelf) -> None:
    def check(desk: Desk) -> None:
        known = [n for n in ("split", "echo", "broken", "nobody", "") if desk.directory.knows(n)]
        assert known == ["split", "echo", "broken"]

    on(shelf, check, SPLIT)


HEADER = KeySource(kind="header", name="x-user-id")
PARAMETER = KeySource(kind="parameter", name="user")


@pytest.mark.parametrize(
    ("sources", "headers", "parameters", "key"),
    [
        ((HEADER,), {"x-user-id": "u1"}, {}, b"u1"),
        ((HEADER,), {"x-user-id": " u1"}, {}, b" u1"),
        ((HEADER,), {"x-user-id": "gr\xf6\xdfer"}, {}, b"gr\xf6\xdfer"),  # byte for byte
        ((HEADER,), {}, {}, None),
        ((HEADER,), {"x-user-id": ""}, {}, None),
        ((HEADER, PARAMETER), {"x-user-id": "h"}, {"user": "p"}, b"h"),
        ((PARAMETER, HEADER), {"x-user-id": "h"}, {"user": "p"}, b"p"),
        ((HEADER, PARAMETER), {"x-user-id": ""}, {"user": "p"}, b"p"),
        ((PARAMETER,), {}, {"user": "größer"}, "größer".encode()),
        ((PARAMETER,), {}, {"user": 7}, b"7"),
        ((PARAMETER,), {}, {"user": 0}, b"0"),
        ((PARAMETER,), {}, {"user": True}, b"true"),
        ((PARAMETER,), {}, {"user": False}, b"false"),
        ((PARAMETER,), {}, {"user": 1.5}, b"1.5"),
        ((PARAMETER,), {}, {"user": ""}, None),
        ((), {"x-user-id": "u1"}, {"user": "p"}, None),
    ],
)
def test_a_key_is_the_first_source_that_is_present_and_not_empty(
    sources: tuple[KeySource, ...],
    headers: dict[str, str],
    parameters: dict[str, ParameterValue],
    key: bytes | None,
) -> None:
    route = Route(name="r", revision=1, salt="r", key=sources, variants=ECHO.variants)
    request = InferRequest(name="r", header=headers.get, parameters=parameters)
    assert read_key(route, request, None) == key
