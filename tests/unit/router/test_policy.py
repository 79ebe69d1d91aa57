"""Decisions: by rule, by key, by a drawn number, and what is said about them; and mirrors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from scipy import stats  # type: ignore[import-untyped]

from router import changes
from router.policy import (
    NO_SLOT,
    REASON_NO_KEY,
    REASON_RANDOM,
    REASON_SLOT,
    CompiledRoute,
    KeyRequired,
)
from router.rules import TESTER, Facts
from router.slots import KeySpace
from tests.support.routes import (
    HOUR_MS,
    NOON_MS,
    Plain,
    first,
    origin,
    route,
    rule,
    shadow,
    variants,
    weighing,
)


def compiled(**fields: object) -> CompiledRoute:
    """Return the route of tests/support/routes.py under the salt of the published vectors."""
    return CompiledRoute.of(first(salt="exp1", **fields), NOON_MS)


SPLIT = compiled()
"""Stable 90, canary 10: by name, the canary has the slots below 100 000."""


def drawing(number: float) -> Callable[[], float]:
    return lambda: number


def never() -> float:
    raise AssertionError("a keyed request draws no number")


@pytest.mark.parametrize(
    ("key", "variant", "slot", "propensity"),
    [
        ("user-0", "stable", 292_417, 0.9),
        ("é", "stable", 962_370, 0.9),
        ("user-6", "canary", 49_257, 0.1),
    ],
)
def test_a_key_is_decided_by_its_slot(key: str, variant: str, slot: int, propensity: float) -> None:
    decision = SPLIT.decide(key.encode(), never)
    assert decision.variant.name == variant
    assert decision[1:] == (REASON_SLOT, slot, propensity, False)


@pytest.mark.parametrize("key", [None, b""])
def test_a_missing_or_empty_key_is_decided_by_the_drawn_number(key: bytes | None) -> None:
    decision = SPLIT.decide(key, drawing(0.05))
    assert decision.variant.name == "canary"
    assert decision[1:] == (REASON_RANDOM, 50_000, 0.1, False)


@pytest.mark.parametrize(
    ("number", "variant"),
    [
        (0.0, "canary"),
        (0.0999999, "canary"),
        (0.1, "stable"),
        (1 - 2**-53, "stable"),
    ],
)
def test_the_whole_range_of_the_drawn_number_is_used(number: float, variant: str) -> None:
    assert SPLIT.decide(None, drawing(number)).variant.name == variant


def test_a_key_is_put_into_the_key_space_of_the_routes_salt() -> None:
    assert SPLIT.decide(b"user-7", never).slot == KeySpace("exp1").slot(b"user-7")


def test_ranges_follow_the_names_and_not_the_order_of_the_document() -> None:
    reversed_split = compiled(variants=variants(z=50, a=50))
    assert reversed_split.decide(None, drawing(0.1)).variant.name == "a"
    assert reversed_split.decide(None, drawing(0.6)).variant.name == "z"


def test_a_stored_revision_decides_by_its_own_slots_and_not_by_new_ones() -> None:
    before = first(salt="exp1")
    grown = changes.follow(before, weighing(before.route, stable=95, canary=5), origin())
    back = changes.follow(grown, weighing(before.route, stable=85, canary=15), origin())
    stored = CompiledRoute.of(back, NOON_MS)
    laid_out = CompiledRoute.compile(back.route)
    assert stored.slot_ranges == back.slots != laid_out.slot_ranges
    assert (stored.epoch, stored.route.revision) == (3, 3)


def test_without_a_key_the_stable_variant_serves_where_the_route_says_so() -> None:
    stable = compiled(missing_key="stable", stable="canary")
    decision = stable.decide(None, never)
    assert decision.variant.name == "canary"
    assert decision[1:] == (REASON_NO_KEY, NO_SLOT, 1.0, False)
    assert stable.decide(b"user-0", never).reason == REASON_SLOT


@pytest.mark.parametrize(
    ("key", "sources"),
    [
        (["header:X-User", "principal"], "header:x-user or principal"),
        ([], "none is configured"),
    ],
)
def test_without_a_key_nobody_serves_where_the_route_says_so(key: list[str], sources: str) -> None:
    strict = compiled(missing_key="reject", key=key)
    with pytest.raises(KeyRequired) as refused:
        strict.decide(None, never)
    assert str(refused.value) == f"route 'digits' needs a key: {sources}"
    assert strict.decide(b"user-0", never).reason == REASON_SLOT


# Rules

ACME = Facts(tenant="acme")


def test_a_rule_comes_before_the_key_and_the_weights() -> None:
    ruled = compiled(rules=[rule(to="canary")])
    decision = ruled.decide(b"user-0", never, ACME)
    assert decision.variant.name == "canary"
    assert decision[1:] == ("rule:internal", NO_SLOT, 1.0, False)
    assert ruled.decide(b"user-0", never).variant.name == "stable"


def test_a_rule_may_lead_to_a_variant_without_weight() -> None:
    ruled = compiled(variants=variants(stable=100, canary=0), rules=[rule(to="canary")])
    assert ruled.decide(b"user-0", never, ACME).variant.name == "canary"
    assert ruled.decide(b"user-0", never).variant.name == "stable"


def test_a_rule_needs_no_key_though_the_route_wants_one() -> None:
    strict = compiled(missing_key="reject", rules=[rule(to="canary")])
    assert strict.decide(None, never, ACME).reason == "rule:internal"


def test_rules_that_are_disabled_or_expired_are_no_rules() -> None:
    ruled = compiled(
        rules=[
            rule(enabled=False),
            rule(name="old", to="canary", expires="2020-01-01T00:00:00Z"),
        ]
    )
    assert not ruled.has_rules
    assert not ruled.asks_who
    assert ruled.decide(b"user-0", never, ACME).reason == REASON_SLOT


def test_a_route_says_until_when_its_rules_hold() -> None:
    ruled = first(
        rules=[
            rule(name="a", when={"tenant": "a"}, expires="2030-01-01T00:00:00Z"),
            rule(name="b", when={"tenant": "b"}, expires="2029-01-01T00:00:00Z"),
            rule(name="c", when={"tenant": "c"}),
            rule(name="d", when={"tenant": "d"}, expires="2028-01-01T00:00:00Z", enabled=False),
        ]
    )
    until_ms = CompiledRoute.of(ruled, NOON_MS).rules_until_ms
    assert until_ms == 1_861_920_000_000  # the first of those that hold
    later = CompiledRoute.of(ruled, until_ms)
    assert later.decide(b"k", never, Facts(tenant="b")).reason == REASON_SLOT
    assert later.decide(b"k", never, Facts(tenant="a")).reason == "rule:a"
    assert later.rules_until_ms == 1_893_456_000_000
    assert CompiledRoute.of(ruled, later.rules_until_ms + HOUR_MS).rules_until_ms is None


@pytest.mark.parametrize(
    ("fields", "asks_who", "has_rules"),
    [
        ({}, False, False),
        ({"key": ["header:x"]}, False, False),
        ({"key": ["header:x", "principal"]}, True, False),
        ({"rules": [rule(when={"header": {"x": "1"}})]}, False, True),
        ({"rules": [rule(when={"key": {"in": ["u"]}})]}, False, True),
        ({"rules": [rule(when={"tenant": "a"})]}, True, True),
        ({"rules": [rule(when={"role": "viewer"})]}, True, True),
        ({"rules": [rule(when={"role": "viewer"}, enabled=False)]}, False, False),
    ],
)
def test_a_route_says_whether_its_caller_matters(
    fields: Plain, asks_who: bool, has_rules: bool
) -> None:
    made = compiled(**fields)
    assert (made.asks_who, made.has_rules) == (asks_who, has_rules)


FORCED = rule(
    name="testers",
    to="$header",
    when={"header": {"x-variant": {"in": ["stable", "canary"]}}, "role": TESTER},
)


@pytest.mark.parametrize("variant", ["stable", "canary"])
def test_a_tester_gets_the_variant_that_the_header_names(variant: str) -> None:
    facts = Facts(header={"x-variant": variant}.get, roles=frozenset({TESTER}))
    decision = compiled(rules=[FORCED]).decide(b"user-0", never, facts)
    assert decision.variant.name == variant
    assert decision[1:] == ("rule:testers", NO_SLOT, 1.0, False)


def test_anybody_else_who_asks_for_a_variant_gets_the_split_and_that_is_told() -> None:
    facts = Facts(header={"x-variant": "canary"}.get, roles=frozenset({"operator"}))
    decision = compiled(rules=[FORCED]).decide(b"user-0", never, facts)
    assert decision.variant.name == "stable"
    assert decision[1:] == (REASON_SLOT, 292_417, 0.9, True)
    unkeyed = compiled(rules=[FORCED], missing_key="stable").decide(None, never, facts)
    assert unkeyed.override_ignored


def test_the_last_of_twenty_rules_is_found() -> None:
    many = [
        rule(name=f"r{n}", when={"header": {"x": f"v{n}"}, "tenant": f"t{n}"}) for n in range(19)
    ]
    ruled = compiled(rules=[*many, rule(name="last", when={"key": {"in": ["user-0"]}})])
    facts = Facts(header={"x": "v7"}.get, tenant="t8")
    assert ruled.decide(b"user-0", never, facts).reason == "rule:last"
    assert ruled.decide(b"user-6", never, facts).reason == REASON_SLOT
    matching = Facts(header={"x": "v7"}.get, tenant="t7")
    assert ruled.decide(b"user-0", never, matching).reason == "rule:r7"


# Mirrors


def mirrored(made: CompiledRoute, variant: str, key: bytes | None) -> dict[str, bool]:
    """Return the shadows that a request is eligible for, and whether it is sampled."""
    return {m.shadow.name: m.is_sampled for m in made.mirrors(variant, key, never)}


def test_a_shadow_is_for_the_variants_that_it_names_or_for_all() -> None:
    made = compiled(
        shadows={
            "all": shadow(sample=100),
            "of_canary": shadow(sample=100, of=["canary"]),
            "none": shadow(sample=0),
        }
    )
    assert mirrored(made, "stable", b"u") == {"all": True, "none": False}
    assert mirrored(made, "canary", b"u") == {"all": True, "of_canary": True, "none": False}


def test_a_route_without_shadows_mirrors_nothing() -> None:
    assert mirrored(SPLIT, "stable", b"u") == {}


@pytest.mark.parametrize(
    ("fields", "is_watched"),
    [({}, False), ({"shadows": {"v3": shadow()}}, True), ({"kind": "experiment"}, True)],
)
def test_only_routes_with_shadows_and_experiments_are_watched(
    fields: Plain, is_watched: bool
) -> None:
    assert compiled(**fields).is_watched == is_watched


def test_a_keyed_request_is_sampled_by_the_shadows_own_salt_whatever_its_variant() -> None:
    made = compiled(shadows={"v3": shadow(sample=30), "v4": shadow(sample=30)})
    spaces = {name: KeySpace(f"exp1/shadow/{name}") for name in ("v3", "v4")}
    for n in range(500):
        key = b"user-%d" % n
        expected = {name: space.slot(key) < 300_000 for name, space in spaces.items()}
        assert mirrored(made, "stable", key) == mirrored(made, "canary", key) == expected


@pytest.mark.parametrize(("number", "is_sampled"), [(0.0, True), (0.2999, True), (0.3, False)])
def test_a_request_without_a_key_is_sampled_by_a_drawn_number(
    number: float, is_sampled: bool
) -> None:
    made = compiled(shadows={"v3": shadow(sample=30)})
    (mirror,) = made.mirrors("stable", None, drawing(number))
    assert mirror.is_sampled == is_sampled


@pytest.mark.parametrize(("sample", "is_sampled"), [(0, False), (100, True)])
@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_a_sample_of_nothing_or_of_all_is_exact(
    sample: int, is_sampled: bool, number: float
) -> None:
    made = compiled(shadows={"v3": shadow(sample=sample)})
    (mirror,) = made.mirrors("stable", None, drawing(number))
    assert mirror.is_sampled == is_sampled
    assert {
        is_mirrored
        for n in range(1_000)
        for is_mirrored in mirrored(made, "stable", b"user-%d" % n).values()
    } == {is_sampled}


def test_who_is_mirrored_is_independent_of_the_variant_and_of_other_shadows() -> None:
    split = variants(a=50, b=30, c=20)
    made = compiled(variants=split, shadows={"v3": shadow(sample=30), "v4": shadow(sample=30)})
    by_variant, by_shadow = Counter[tuple[str, bool]](), Counter[tuple[bool, bool]]()
    for n in range(20_000):
        key = b"user-%d" % n
        variant = made.decide(key, never).variant.name
        sampled = mirrored(made, variant, key)
        by_variant[variant, sampled["v3"]] += 1
        by_shadow[sampled["v3"], sampled["v4"]] += 1
    table = [[by_variant[v, s] for s in (True, False)] for v in "abc"]
    assert float(stats.chi2_contingency(table).pvalue) > 0.001
    table = [[by_shadow[s, t] for s in (True, False)] for t in (True, False)]
    assert float(stats.chi2_contingency(table).pvalue) > 0.001
    share = sum(by_variant[v, True] for v in "abc") / 20_000
    assert 0.29 <= share <= 0.31


def test_a_route_that_is_not_stored_is_laid_out_as_a_new_one() -> None:
    made = CompiledRoute.compile(route(salt="exp1"))
    assert [(r.start, r.end, r.owner) for r in made.slot_ranges] == [
        (0, 100_000, "canary"),
        (100_000, 1_000_000, "stable"),
    ]
    assert made.epoch == 0
