"""Who answers to a public name: routes, versions, readiness, and where a key is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import pytest

from engines.errors import InvalidInput, VersionNotReady
from gateway.config import PrincipalConfig
from gateway.directory import Directory, read_key
from gateway.errors import UnknownName
from gateway.principals import Principal
from gateway.request import InferRequest, ParameterValue
from router import document as route_document
from router.policy import CompiledRoute
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


def on(
    shelf: Shelf,
    check: Callable[[Desk], None],
    *routes: Route,
    principals: Mapping[str, PrincipalConfig] | None = None,
) -> None:
    """Run a check on a directory over the shelf."""

    async def scenario() -> None:
        async with open_desk(shelf, *routes, principals=principals) as desk:
            check(desk)

    asyncio.run(scenario())


def chosen(directory: Directory, request: InferRequest) -> tuple[str, str, str, str, float]:
    """Return model, version, variant, reason and propensity of a choice."""
    target = directory.resolve(request)[0]
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
        routed = desk.directory.resolve(request_of("split"))[0]
        assert (routed.route, routed.revision) == ("split", 3)
        pinned = desk.directory.resolve(request_of("split", version="2"))[0]
        assert (pinned.route, pinned.revision, pinned.propensity) == ("split", 3, 1.0)
        plain = desk.directory.resolve(request_of("echo"))[0]
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
            desk.directory.resolve(request_of(name, version=version))[0]
        assert sentence in str(caught.value)

    on(shelf, check, ECHO, MIXED)


def test_a_model_whose_versions_are_all_broken_is_not_ready(shelf: Shelf) -> None:
    def check(desk: Desk) -> None:
        with pytest.raises(VersionNotReady, match="none of its versions is ready"):
            desk.directory.resolve(request_of("broken"))[0]
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


# Rules, fallback and keys: what the router decides with, and what is done where it cannot be had

ANN_KEY, BOB_KEY = "a-key", "b-key"
PRINCIPALS = {
    "ann": PrincipalConfig(
        key_sha256=sha256(ANN_KEY.encode()).hexdigest(), tenant="acme", roles=["tester"]
    ),
    "bob": PrincipalConfig(key_sha256=sha256(BOB_KEY.encode()).hexdigest()),
}
ANN, BOB = f"Bearer {ANN_KEY}", f"Bearer {BOB_KEY}"


def read(name: str, *, versions: Sequence[str] = ("1", "2"), **fields: object) -> Route:
    """Return a route whose variants stable and canary are versions of echo, 90 to 10."""
    arms = {
        arm: {"model": "echo", "version": version, "weight": weight}
        for arm, version, weight in zip(("stable", "canary"), versions, (90, 10), strict=True)
    }
    return route_document.read({"variants": arms} | fields, name=name, revision=3)


FORCED = {
    "name": "testers",
    "when": {"header": {"x-variant": {"in": ["stable", "canary"]}}, "role": "tester"},
    "to": "$header",
}
RULED = read(
    "ruled",
    rules=[
        FORCED,
        {"name": "acme", "when": {"tenant": "acme"}, "to": "canary"},
        {"name": "beta", "when": {"header": {"x-channel": "größer"}}, "to": "canary"},
        {"name": "vip", "when": {"key": {"in": ["u7"]}}, "to": "canary"},
    ],
    key=["header:x-user-id"],
    missing_key="stable",
)


@pytest.mark.parametrize(
    ("headers", "variant", "reason"),
    [
        ({}, "stable", "no_key"),
        ({"authorization": ANN}, "canary", "rule:acme"),
        ({"authorization": ANN, "x_variant": "stable"}, "stable", "rule:testers"),
        ({"authorization": BOB}, "stable", "no_key"),
        ({"authorization": BOB, "x_variant": "canary"}, "stable", "no_key"),
        ({"x_variant": "canary"}, "stable", "no_key"),
        ({"x_channel": "größer".encode().decode("latin-1")}, "canary", "rule:beta"),
        ({"x_channel": "größer"}, "stable", "no_key"),
        ({"x_user_id": "u7"}, "canary", "rule:vip"),
    ],
)
def test_rules_see_the_headers_the_key_and_who_calls(
    shelf: Shelf, headers: dict[str, str], variant: str, reason: str
) -> None:
    def check(desk: Desk) -> None:
        target = desk.directory.resolve(request_of("ruled", **headers))[0]
        assert (target.variant, target.assigned) == (variant, variant)
        assert (target.reason, target.assigned_by, target.propensity) == (reason, reason, 1.0)
        assert (target.route, target.revision) == ("ruled", 3)

    on(shelf, check, RULED, principals=PRINCIPALS)


def test_an_override_by_somebody_who_is_no_tester_is_counted_by_its_route(shelf: Shelf) -> None:
    def check(desk: Desk) -> None:
        for headers in ({}, {"authorization": ANN}, {"authorization": BOB}):
            desk.directory.resolve(request_of("ruled", x_variant="canary", **headers))[0]
        desk.directory.resolve(request_of("ruled", x_variant="unknown"))[0]
        desk.directory.resolve(request_of("split", x_variant="canary"))[0]
        assert desk.directory.overrides_ignored == {"ruled": 2}

    on(shelf, check, RULED, SPLIT, principals=PRINCIPALS)


def test_the_principal_is_a_key(shelf: Shelf) -> None:
    route = read("mine", key=["principal"], missing_key="reject")
    variants = {}

    def check(desk: Desk) -> None:
        for who, header in (("ann", ANN), ("bob", BOB)):
            target, key = desk.directory.resolve(request_of("mine", authorization=header))
            assert (key, target.reason) == (who.encode(), "slot")
            variants[who] = target.variant
            expected = CompiledRoute.compile(route).decide(who.encode(), lambda: 0.0)
            assert target.variant == expected.variant.name
        for stranger in ({}, {"authorization": "Bearer unknown"}):
            with pytest.raises(InvalidInput):
                desk.directory.resolve(request_of("mine", **stranger))[0]

    on(shelf, check, route, principals=PRINCIPALS)
    assert variants.keys() == {"ann", "bob"}


def test_who_calls_is_not_asked_where_it_does_not_matter(shelf: Shelf) -> None:
    looked_up: list[str] = []

    def lookup(name: str) -> str | None:
        looked_up.append(name)
        return None

    def check(desk: Desk) -> None:
        desk.directory.resolve(InferRequest(name="split", header=lookup))[0]
        assert looked_up == ["x-user-id"]

    on(shelf, check, SPLIT, principals=PRINCIPALS)


@pytest.mark.parametrize(
    ("missing_key", "variant", "reason", "propensity"),
    [("random", "canary", "random", 0.1), ("stable", "stable", "no_key", 1.0)],
)
def test_a_route_says_who_serves_a_request_without_a_key(
    shelf: Shelf, missing_key: str, variant: str, reason: str, propensity: float
) -> None:
    def check(desk: Desk) -> None:
        desk.draws = [0.05]
        found = chosen(desk.directory, request_of("r"))
        assert found[2:] == (variant, reason, propensity)

    on(shelf, check, read("r", key=["header:x-user-id"], missing_key=missing_key))


def test_a_request_without_a_key_is_the_callers_fault_where_the_route_says_so(
    shelf: Shelf,
) -> None:
    def check(desk: Desk) -> None:
        with pytest.raises(InvalidInput) as refused:
            desk.directory.resolve(request_of("r", x_user_id=""))[0]
        assert str(refused.value) == "route 'r' needs a key: header:x-user-id or parameter:user"
        assert desk.directory.resolve(request_of("r", x_user_id="u1"))[0].reason == "slot"
        assert desk.directory.resolve(request_of("r", version="1"))[0].reason == "version"

    on(shelf, check, read("r", key=["header:x-user-id", "parameter:user"], missing_key="reject"))


BROKEN = {
    "stable": {"model": "echo", "version": "1", "weight": 90},
    "canary": {"model": "broken", "version": "1", "weight": 10},
}


def falling(name: str, variants: dict[str, dict[str, object]], **fields: object) -> Route:
    """Return a route that falls back to stable."""
    fields = {"fallback": {"to": "stable"}, "variants": variants} | fields
    return route_document.read(fields, name=name, revision=3)


def test_a_variant_that_is_not_ready_is_served_by_the_fallback(shelf: Shelf) -> None:
    def check(desk: Desk) -> None:
        desk.draws = [0.05, 0.95]
        target = desk.directory.resolve(request_of("r"))[0]
        assert (target.variant, target.assigned) == ("stable", "canary")
        assert (target.served.model, target.served.version) == ("echo", "1")
        assert (target.reason, target.assigned_by) == ("fallback", "random")
        assert target.propensity == 0.1  # of the assignment
        usual = desk.directory.resolve(request_of("r"))[0]
        assert (usual.variant, usual.assigned, usual.reason) == ("stable", "stable", "random")

    on(shelf, check, falling("r", BROKEN))


@pytest.mark.parametrize("model", ["nowhere", "broken"])
def test_a_variant_that_is_not_there_at_all_falls_back_too(shelf: Shelf, model: str) -> None:
    arms = BROKEN | {"canary": {"model": model, "version": "9", "weight": 10}}

    def check(desk: Desk) -> None:
        desk.draws = [0.05]
        assert desk.directory.resolve(request_of("r"))[0].reason == "fallback"

    on(shelf, check, falling("r", arms))


def test_a_rule_to_a_variant_that_is_not_ready_falls_back_and_the_rule_is_remembered(
    shelf: Shelf,
) -> None:
    ruled = {"name": "acme", "when": {"tenant": "acme"}, "to": "canary"}

    def check(desk: Desk) -> None:
        target = desk.directory.resolve(request_of("r", authorization=ANN))[0]
        assert (target.variant, target.assigned) == ("stable", "canary")
        assert (target.reason, target.assigned_by) == ("fallback", "rule:acme")

    on(shelf, check, falling("r", BROKEN, rules=[ruled]), principals=PRINCIPALS)


def test_without_a_fallback_the_variants_own_version_says_why_it_is_not_ready(
    shelf: Shelf,
) -> None:
    def check(desk: Desk) -> None:
        desk.draws = [0.05, 0.05]
        target = desk.directory.resolve(request_of("loaded"))[0]
        assert (target.variant, target.reason) == ("canary", "random")
        with pytest.raises(VersionNotReady):
            _ = target.served.batcher
        with pytest.raises(VersionNotReady, match="version '9' of model 'echo' is not known"):
            desk.directory.resolve(request_of("gone"))[0]

    gone = BROKEN | {"canary": {"model": "echo", "version": "9", "weight": 10}}
    routes = (falling(n, v, fallback=None) for n, v in (("loaded", BROKEN), ("gone", gone)))
    on(shelf, check, *routes)


def test_a_fallback_that_is_not_ready_either_is_no_fallback(shelf: Shelf) -> None:
    arms = {
        "stable": {"model": "broken", "version": "1", "weight": 10},
        "canary": {"model": "broken", "version": "1", "weight": 90},
    }

    def check(desk: Desk) -> None:
        desk.draws = [0.05]
        target = desk.directory.resolve(request_of("r"))[0]
        assert (target.variant, target.assigned, target.reason) == ("canary", "canary", "random")
        assert not desk.directory.is_ready("r")

    on(shelf, check, falling("r", arms))


def test_a_route_whose_fallback_is_ready_is_ready(shelf: Shelf) -> None:
    def check(desk: Desk) -> None:
        assert desk.directory.is_ready("falling")
        assert not desk.directory.is_ready("strict")

    on(shelf, check, falling("falling", BROKEN), falling("strict", BROKEN, fallback=None))


HEADER = KeySource(kind="header", name="x-user-id")
PRINCIPAL = KeySource(kind="principal")
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


def test_the_principals_name_is_a_key_where_somebody_is_known() -> None:
    route = Route(name="r", revision=1, salt="r", key=(PRINCIPAL, HEADER), variants=ECHO.variants)
    request = InferRequest(name="r", header={"x-user-id": "u1"}.get)
    ann = Principal(name="ann", tenant="", roles=frozenset())
    assert read_key(route, request, ann) == b"ann"
    assert read_key(route, request, None) == b"u1"
