"""Rules: which requests they are about, which comes first, and which is never reached."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from router.faults import RouteError
from router.rules import (
    BY_HEADER,
    NOBODY,
    TESTER,
    Facts,
    HeaderCondition,
    Rule,
    RuleList,
    When,
    no_header,
)
from tests.support.routes import NOON_MS, Plain, faults_of, route, rule


def header(name: str, *one_of: str, prefix: str = "") -> HeaderCondition:
    """Return a condition; without values and prefix: the header is there."""
    return HeaderCondition(name=name, one_of=frozenset(one_of), prefix=prefix)


def when(
    *headers: HeaderCondition, tenants: str = "", role: str = "", keys: tuple[str, ...] = ()
) -> When:
    """Return conditions; tenants are separated by blanks."""
    return When(
        headers=headers, tenants=frozenset(tenants.split()), role=role, keys=frozenset(keys)
    )


def asked(*, tenant: str = "", roles: str = "", headers: Mapping[str, str] | None = None) -> Facts:
    """Return what a request says."""
    lookup = headers.get if headers else no_header
    return Facts(header=lookup, tenant=tenant, roles=frozenset(roles.split()))


def leads(only: When, key: bytes | None, facts: Facts) -> bool:
    """Whether a rule with these conditions holds."""
    found, to, _ = RuleList([Rule(name="r", when=only, to="a")]).first(key, facts)
    assert to == ("a" if found else "")
    return found is not None


@pytest.mark.parametrize(
    ("condition", "value", "holds"),
    [
        (header("x", "a", "b"), "a", True),
        (header("x", "a", "b"), "b", True),
        (header("x", "a", "b"), "c", False),
        (header("x", "a", "b"), "A", False),
        (header("x", "a", "b"), "", False),
        (header("x", "a", "b"), None, False),
        (header("x", prefix="eu-"), "eu-west", True),
        (header("x", prefix="eu-"), "eu-", True),
        (header("x", prefix="eu-"), "us-eu-", False),
        (header("x", prefix="eu-"), None, False),
        (header("x"), "anything", True),
        (header("x"), "", True),
        (header("x"), None, False),
    ],
)
def test_a_header_is_one_of_some_values_or_begins_with_one_or_is_there(
    condition: HeaderCondition, value: str | None, holds: bool
) -> None:
    facts = Facts(header=lambda name: value if name == "x" else "another")
    assert condition.holds(value) == holds
    assert leads(when(condition), None, facts) == holds


@pytest.mark.parametrize(
    ("only", "key", "facts", "holds"),
    [
        (when(tenants="acme other"), None, asked(tenant="acme"), True),
        (when(tenants="acme other"), None, asked(tenant="Acme"), False),
        (when(tenants="acme other"), None, NOBODY, False),
        (when(role="viewer"), None, asked(roles="tester viewer"), True),
        (when(role="viewer"), None, asked(roles="tester"), False),
        (when(role="viewer"), None, NOBODY, False),
        (when(keys=("u1", "größer")), b"u1", NOBODY, True),
        (when(keys=("u1", "größer")), "größer".encode(), NOBODY, True),
        (when(keys=("u1", "größer")), "größer".encode("latin-1"), NOBODY, False),
        (when(keys=("u1", "größer")), b"u2", NOBODY, False),
        (when(keys=("u1", "größer")), None, NOBODY, False),
        (when(), None, NOBODY, True),
    ],
)
def test_each_condition_of_a_rule(only: When, key: bytes | None, facts: Facts, holds: bool) -> None:
    assert leads(only, key, facts) == holds


EVERYTHING = when(header("x", "1"), header("y", prefix="a"), tenants="acme", role="r", keys=("u",))


@pytest.mark.parametrize("missing", ["x", "y", "tenant", "role", "key", ""])
def test_all_conditions_of_a_rule_must_hold(missing: str) -> None:
    headers = {name: value for name, value in (("x", "1"), ("y", "ab")) if name != missing}
    facts = asked(
        headers=headers,
        tenant="" if missing == "tenant" else "acme",
        roles="" if missing == "role" else "r",
    )
    assert leads(EVERYTHING, None if missing == "key" else b"u", facts) == (not missing)


def test_the_first_rule_that_holds_wins() -> None:
    ordered = RuleList(
        [
            Rule(name="one", when=when(tenants="acme"), to="a"),
            Rule(name="two", when=when(header("x")), to="b"),
            Rule(name="three", when=when(tenants="acme other"), to="c"),
        ]
    )

    def first(facts: Facts) -> tuple[str, str]:
        found, to, is_ignored = ordered.first(None, facts)
        assert not is_ignored
        return (found.name if found else "", to)

    assert first(asked(tenant="acme", headers={"x": "1"})) == ("one", "a")
    assert first(asked(tenant="other", headers={"x": "1"})) == ("two", "b")
    assert first(asked(tenant="other")) == ("three", "c")
    assert first(NOBODY) == ("", "")


@pytest.mark.parametrize(
    "condition", [header("x", "größer"), header("x", prefix="grö"), header("x", "日本", "größer")]
)
def test_a_value_beyond_ascii_is_compared_by_the_bytes_of_utf_8(
    condition: HeaderCondition,
) -> None:
    """Headers come as one character per byte: what a client sends as UTF-8 looks like that."""
    received = "größer".encode().decode("latin-1")
    assert leads(when(condition), None, asked(headers={"x": received}))
    assert not leads(when(condition), None, asked(headers={"x": "größer"}))


def test_a_header_is_looked_up_once_however_many_rules_ask_for_it() -> None:
    looked_up: list[str] = []

    def lookup(name: str) -> str:
        looked_up.append(name)
        return "other"

    many = [Rule(name=f"r{n}", when=when(header("x", str(n))), to="a") for n in range(20)]
    assert RuleList(many).first(None, Facts(header=lookup)) == (None, "", False)
    assert looked_up == ["x"]


FORCED = Rule(name="testers", when=when(header("x-variant", "a", "b"), role=TESTER), to=BY_HEADER)


@pytest.mark.parametrize(
    ("roles", "value", "to", "is_ignored"),
    [
        ("tester", "a", "a", False),
        ("tester operator", "b", "b", False),
        ("tester", "c", "", False),
        ("tester", None, "", False),
        ("", "a", "", True),
        ("operator", "b", "", True),
        ("", "c", "", False),
        ("", None, "", False),
    ],
)
def test_a_tester_chooses_the_variant_and_anybody_else_who_tries_is_counted(
    roles: str, value: str | None, to: str, is_ignored: bool
) -> None:
    facts = asked(roles=roles, headers={"x-variant": value} if value else None)
    found, chosen, ignored = RuleList([FORCED]).first(None, facts)
    assert (chosen, ignored) == (to, is_ignored)
    assert (found is not None) == bool(to)


def test_an_override_that_is_passed_over_is_told_though_a_later_rule_holds() -> None:
    later = Rule(name="later", when=when(header("x-variant")), to="b")
    facts = asked(headers={"x-variant": "a"})
    assert RuleList([FORCED, later]).first(None, facts) == (later, "b", True)


def test_a_rule_for_a_role_that_forces_nothing_is_no_override() -> None:
    viewers = Rule(name="viewers", when=when(header("x"), role="viewer"), to="a")
    facts = asked(headers={"x": "1"})
    assert RuleList([viewers]).first(None, facts) == (None, "", False)


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        (header("x", "a"), header("x", "a", "b")),
        (header("x", "a", "b"), header("x", "a", "b")),
        (header("x", "eu-1", "eu-2"), header("x", prefix="eu-")),
        (header("x", "a"), header("x")),
        (header("x", prefix="eu-west"), header("x", prefix="eu-")),
        (header("x", prefix="eu-"), header("x")),
        (header("x"), header("x")),
    ],
)
def test_a_narrower_condition_implies_a_wider_one(
    narrow: HeaderCondition, wide: HeaderCondition
) -> None:
    assert narrow.implies(wide)
    assert wide.implies(narrow) == (narrow == wide)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (header("x", "a"), header("x", "b")),
        (header("x", "a", "c"), header("x", "b", "c")),
        (header("x", "us"), header("x", prefix="eu")),
        (header("x", prefix="eu"), header("x", prefix="us")),
    ],
)
def test_conditions_that_differ_imply_nothing(one: HeaderCondition, other: HeaderCondition) -> None:
    assert not one.implies(other)
    assert not other.implies(one)


@pytest.mark.parametrize(
    ("narrow", "wide", "implies"),
    [
        (when(tenants="a"), when(tenants="a b"), True),
        (when(tenants="a b"), when(tenants="a"), False),
        (when(tenants="a"), when(), True),
        (when(), when(tenants="a"), False),
        (when(role="tester"), when(), True),
        (when(), when(role="tester"), False),
        (when(role="tester"), when(role="viewer"), False),
        (when(keys=("u1",)), when(keys=("u1", "u2")), True),
        (when(keys=("u1", "u3")), when(keys=("u1", "u2")), False),
        (when(), when(keys=("u1",)), False),
        (when(header("x", "a"), header("y")), when(header("x", "a")), True),
        (when(header("x", "a")), when(header("x", "a"), header("y")), False),
        (when(header("x", "a")), when(header("y", "a")), False),
        (when(header("x", "a"), tenants="a"), when(header("x"), tenants="a b"), True),
        (when(header("x", "a"), tenants="c"), when(header("x"), tenants="a b"), False),
    ],
)
def test_conditions_imply_others_where_each_does(narrow: When, wide: When, implies: bool) -> None:
    assert narrow.implies(wide) == implies


@pytest.mark.parametrize(
    ("is_enabled", "expires_ms", "holds"),
    [
        (True, None, True),
        (True, NOON_MS + 1, True),
        (True, NOON_MS, False),
        (True, NOON_MS - 1, False),
        (False, None, False),
        (False, NOON_MS + 1, False),
    ],
)
def test_a_rule_holds_while_it_is_enabled_and_until_it_expires(
    is_enabled: bool, expires_ms: int | None, holds: bool
) -> None:
    made = Rule(name="r", when=when(), to="a", expires_ms=expires_ms, is_enabled=is_enabled)
    assert made.holds_at(NOON_MS) == holds


def test_a_rule_leads_to_its_target_or_to_the_variants_that_its_header_may_name() -> None:
    assert Rule(name="r", when=when(header("x", "a")), to="b").destinations == {"b"}
    assert FORCED.destinations == {"a", "b"}


SOON, LATER = "2027-01-01T00:00:00Z", "2028-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("before", "after", "is_hidden"),
    [
        ({}, {}, True),
        ({"when": {"tenant": ["acme", "b"]}}, {}, True),
        ({"when": {"tenant": "b"}}, {}, False),
        ({}, {"when": {"tenant": "acme", "role": "tester"}}, True),
        ({"when": {"tenant": "acme", "role": "tester"}}, {}, False),
        ({"enabled": False}, {}, False),
        ({}, {"enabled": False}, False),
        ({"expires": SOON}, {}, False),
        ({"expires": SOON}, {"expires": LATER}, False),
        ({"expires": SOON}, {"expires": SOON}, True),
        ({"expires": LATER}, {"expires": SOON}, True),
        ({}, {"expires": LATER}, True),
        ({"when": {"header": {"X": {"prefix": "eu"}}}}, {"when": {"header": {"x": "eu-1"}}}, True),
        ({"when": {"header": {"x": "eu-1"}}}, {"when": {"header": {"x": {"prefix": "eu"}}}}, False),
    ],
)
def test_a_rule_that_is_never_reached_is_refused(
    before: Plain, after: Plain, is_hidden: bool
) -> None:
    ordered = [rule(**before), rule(to="stable", name="second", **after)]
    if not is_hidden:
        assert len(route(rules=ordered).rules) == 2
        return
    with pytest.raises(RouteError) as refused:
        route(rules=ordered)
    sentence = "it is never reached: rule 'internal' takes every request it is about"
    assert faults_of(refused.value) == [("/rules/1", sentence)]


def test_a_rule_between_them_does_not_save_one_that_is_never_reached() -> None:
    between = rule(name="between", when={"header": {"x": "1"}})
    with pytest.raises(RouteError) as refused:
        route(rules=[rule(), between, rule(name="third")])
    assert [pointer for pointer, _ in faults_of(refused.value)] == ["/rules/2"]
