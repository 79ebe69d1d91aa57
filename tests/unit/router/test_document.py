"""Route documents: what is read and written, and the one sentence for everything that is wrong."""

from __future__ import annotations

import json
import tomllib
from decimal import Decimal
from typing import Any, Final

import pytest

from router import document
from router.document import percent, read, timestamp, write
from router.faults import RouteError
from router.routes import Fallback, KeySource, Shadow
from router.rules import BY_HEADER, TESTER, HeaderCondition, Rule, When
from router.slots import SLOTS
from tests.support.routes import (
    MAX_WINDOW_S,
    NAME,
    Plain,
    faults_of,
    plain,
    route,
    rule,
    shadow,
    variants,
)

WHOLE: Final = """
kind = "experiment"
salt = "spring"
key = ["header:X-User-Id", "parameter:user", "principal"]
missing_key = "stable"
stable = "old"
rollback_window_s = 60

[variants.old]
model = "digits"
version = "1"
weight = 66.6667
[variants.new]
model = "digits-b"
version = "12"
weight = 33.3333

[[rules]]
name = "testers"
when = {header = {X-Variant = {in = ["old", "new"]}}, role = "tester"}
to = "$header"
[[rules]]
name = "acme"
when = {tenant = ["acme", "größer"], key = {in = ["u1", "u2"]}, header = {a = "1", b = {prefix = "x"}, c = {present = true}}}
to = "new"
reason = "contract"
expires = 2026-12-01T01:00:00+01:00
enabled = false

[shadows.next]
model = "digits"
version = "13"
sample = 0.5
of = ["old"]
limits = {queue_items = 1, queue_bytes = 2, deadline_ms = 3}
[shadows.all]
model = "digits"
version = "14"
sample = 100

[fallback]
to = "old"
on = ["not_ready"]
"""  # noqa: E501 - TOML's inline tables stand on one line


def whole() -> dict[str, Any]:  # Any: TOML
    """Return the document with everything in it."""
    return tomllib.loads(WHOLE, parse_float=Decimal)


def test_a_document_with_everything_is_read() -> None:
    made = read(whole(), name=NAME, revision=4)
    assert (made.name, made.revision, made.kind, made.salt) == (NAME, 4, "experiment", "spring")
    assert made.key == (
        KeySource(kind="header", name="x-user-id"),
        KeySource(kind="parameter", name="user"),
        KeySource(kind="principal"),
    )
    assert (made.missing_key, made.stable, made.rollback_window_s) == ("stable", "old", 60)
    assert [(v.name, v.model, v.version, v.slots) for v in made.variants] == [
        ("new", "digits-b", "12", 333_333),
        ("old", "digits", "1", 666_667),
    ]
    assert made.fallback == Fallback(to="old", on=("not_ready",))


def test_rules_are_read_in_their_order() -> None:
    testers, acme = read(whole(), name=NAME).rules
    header = HeaderCondition(name="x-variant", one_of=frozenset({"old", "new"}))
    assert testers == Rule(name="testers", when=When(headers=(header,), role=TESTER), to=BY_HEADER)
    assert acme == Rule(
        name="acme",
        when=When(
            headers=(
                HeaderCondition(name="a", one_of=frozenset({"1"})),
                HeaderCondition(name="b", prefix="x"),
                HeaderCondition(name="c"),
            ),
            tenants=frozenset({"acme", "größer"}),
            keys=frozenset({"u1", "u2"}),
        ),
        to="new",
        reason="contract",
        expires_ms=1_796_083_200_000,
        is_enabled=False,
    )


def test_shadows_are_read_with_their_limits_and_in_the_order_of_their_names() -> None:
    everything, following = read(whole(), name=NAME).shadows
    assert everything == Shadow(name="all", model="digits", version="14", sample_slots=SLOTS)
    assert following == Shadow(
        name="next",
        model="digits",
        version="13",
        sample_slots=5_000,
        of=("old",),
        queue_items=1,
        queue_bytes=2,
        deadline_ms=3,
    )


def test_what_is_not_said_has_a_default() -> None:
    made = route()
    assert (made.kind, made.salt, made.key, made.missing_key) == ("rollout", NAME, (), "random")
    assert (made.stable, made.rules, made.shadows, made.fallback) == ("stable", (), (), None)
    assert (made.revision, made.rollback_window_s) == (0, 3_600)


@pytest.mark.parametrize(
    ("weights", "stable"),
    [
        ({"canary": 90, "stable": 10}, "stable"),
        ({"b": 60, "a": 40}, "b"),
        ({"b": 50, "a": 50}, "a"),  # the first by name of equals
    ],
)
def test_the_stable_variant_is_the_one_of_that_name_or_else_the_heaviest(
    weights: dict[str, int], stable: str
) -> None:
    assert route(variants=variants(**weights)).stable == stable


def test_what_the_store_assigns_may_stand_in_an_input_and_is_ignored() -> None:
    assigned: Plain = {
        "revision": "x",
        "generation": None,
        "derived": 7,
        "meta": [],
        "deleted": True,
    }
    assert route(name=NAME, **assigned) == route()


def test_a_fallback_is_for_versions_that_are_not_ready_unless_it_says_otherwise() -> None:
    assert route(fallback={"to": "stable"}).fallback == Fallback(to="stable", on=("not_ready",))
    assert route(fallback=None).fallback is None


def test_one_text_is_as_good_as_a_list_of_one_tenant() -> None:
    one, listed = (route(rules=[rule(when={"tenant": t})]) for t in ("acme", ["acme"]))
    assert one == listed


@pytest.mark.parametrize("weight", [0.1, Decimal("0.1"), Decimal("0.10")])
def test_a_weight_is_taken_by_its_digits(weight: object) -> None:
    split = variants(canary=weight, stable=Decimal("99.9"))
    assert route(variants=split).sizes == {"canary": 1_000, "stable": 999_000}


NO_NAME: Final = "is no name: letters, digits, '_', '.' and '-', 128 at most"
NO_FORM: Final = "is not of the form 'header:NAME', 'parameter:NAME' or 'principal'"
ONE_OF_THREE: Final = "give a text, or one of 'in', 'prefix' and 'present'"
UNREACHED: Final = "it is never reached: rule 'internal' takes every request it is about"


def arm(**fields: object) -> dict[str, object]:
    """Return variants of which `a`, the only one, has other fields; None removes one."""
    made = {"model": NAME, "version": "1", "weight": 100} | fields
    return {"variants": {"a": {k: v for k, v in made.items() if v is not None}}}


def mirrored(**fields: object) -> dict[str, object]:
    """Return shadows of which `v3`, the only one, has other fields."""
    return {"shadows": {"v3": shadow(**fields)}}


def ruled(**fields: Any) -> dict[str, object]:
    """Return rules of which the only one has other fields; None removes one."""
    made = rule(**fields)
    return {"rules": [{k: v for k, v in made.items() if v is not None}]}


def asking(condition: object) -> dict[str, object]:
    """Return rules of which the only one asks for the header x."""
    return ruled(when={"header": {"x": condition}})


def forcing(**when: object) -> dict[str, object]:
    """Return rules of which the only one takes the variant from a header."""
    return ruled(to="$header", when=when)


# What is given beside (or in the place of) the document of `plain` -> its one fault.
WRONG: Final[dict[str, tuple[dict[str, object], str, str]]] = {
    "unknown key": ({"colour": 1}, "/colour", "unknown key"),
    "unknown key with a slash": ({"a/b~c": 1}, "/a~1b~0c", "unknown key"),
    "another name": ({"name": "x"}, "/name", "'x' is not 'digits': a route keeps its name"),
    "name of another type": ({"name": 7}, "/name", "7 is not 'digits': a route keeps its name"),
    "unknown kind": ({"kind": "ab"}, "/kind", "'ab' is not 'rollout' or 'experiment'"),
    "kind of another type": ({"kind": ["a"]}, "/kind", "['a'] is not 'rollout' or 'experiment'"),
    "unknown missing_key": (
        {"missing_key": "drop"},
        "/missing_key",
        "'drop' is not 'random' or 'stable' or 'reject'",
    ),
    "salt": ({"salt": 1}, "/salt", "expected a text, got a value of type int"),
    "half a character": ({"salt": "\ud800"}, "/salt", "it is no Unicode text"),
    "stable": ({"stable": None}, "/stable", "expected a text, got nothing"),
    "unknown stable": ({"stable": "x"}, "/stable", "there is no variant 'x'"),
    "negative window": (
        {"rollback_window_s": -1},
        "/rollback_window_s",
        "-1 is not a whole number from 0 to 31622400",
    ),
    "window of text": (
        {"rollback_window_s": "1h"},
        "/rollback_window_s",
        "'1h' is not a whole number from 0 to 31622400",
    ),
    "window of more than a year": (
        {"rollback_window_s": MAX_WINDOW_S + 1},
        "/rollback_window_s",
        "31622401 is not a whole number from 0 to 31622400",
    ),
    "key": ({"key": "header:x"}, "/key", "expected a list, got a value of type str"),
    "key source": ({"key": ["principal", 1]}, "/key/1", "expected a text, got a value of type int"),
    "unknown key source": ({"key": ["cookie:y"]}, "/key/0", f"'cookie:y' {NO_FORM}"),
    "key source without a name": ({"key": ["header: "]}, "/key/0", f"'header: ' {NO_FORM}"),
    # Variants
    "variants": ({"variants": []}, "/variants", "expected a table, got a value of type list"),
    "no variants": ({"variants": {}}, "/variants", "a route needs at least one variant"),
    "variant": ({"variants": {"a": 1}}, "/variants/a", "expected a table, got a value of type int"),
    "variant's name": (
        {"variants": {"a b": {"model": NAME, "version": "1", "weight": 100}}},
        "/variants/a b",
        f"'a b' {NO_NAME}",
    ),
    "unknown key of a variant": (arm(wait=1), "/variants/a/wait", "unknown key"),
    "no model": (arm(model=None), "/variants/a/model", "this key is required"),
    "empty model": (arm(model=""), "/variants/a/model", "an empty text"),
    "model": (arm(model=1), "/variants/a/model", "expected a text, got a value of type int"),
    "model that is a path": (arm(model="../m"), "/variants/a/model", f"'../m' {NO_NAME}"),
    "no version": (arm(version=None), "/variants/a/version", "this key is required"),
    "version": (arm(version=1), "/variants/a/version", "expected a text, got a value of type int"),
    "version zero": (
        arm(version="0"),
        "/variants/a/version",
        "'0' is no version: a positive whole number as text",
    ),
    "version with a leading zero": (
        arm(version="01"),
        "/variants/a/version",
        "'01' is no version: a positive whole number as text",
    ),
    "version of 19 digits": (
        arm(version="1" * 19),
        "/variants/a/version",
        f"'{'1' * 19}' is no version: a positive whole number as text",
    ),
    "no weight": (arm(weight=None), "/variants/a/weight", "expected a number, got nothing"),
    "weight of text": (
        arm(weight="100"),
        "/variants/a/weight",
        "expected a number, got a value of type str",
    ),
    "weight that is a flag": (
        arm(weight=True),
        "/variants/a/weight",
        "expected a number, got a value of type bool",
    ),
    "weight over 100": (
        arm(weight=101),
        "/variants/a/weight",
        "weight 101 is not between 0 and 100",
    ),
    "negative weight": (
        arm(weight=Decimal("-0.5")),
        "/variants/a/weight",
        "weight -0.5 is not between 0 and 100",
    ),
    "weight that is no number": (
        arm(weight=float("nan")),
        "/variants/a/weight",
        "weight NaN is not between 0 and 100",
    ),
    "weight too fine": (
        arm(weight=99.99999),
        "/variants/a/weight",
        "weight 99.99999 is finer than 0.0001",
    ),
    "weights under 100": (arm(weight=99.9), "/variants", "weights sum to 99.9, not 100"),
    "weights over 100": (
        {"variants": variants(a=60, b=Decimal("40.0001"))},
        "/variants",
        "weights sum to 100.0001, not 100",
    ),
    # Rules
    "rules": ({"rules": {}}, "/rules", "expected a list, got a value of type dict"),
    "rule": ({"rules": ["x"]}, "/rules/0", "expected a table, got a value of type str"),
    "unknown key of a rule": (ruled(owner="ann"), "/rules/0/owner", "unknown key"),
    "rule without a name": (ruled(name=None), "/rules/0/name", "this key is required"),
    "rule's name": (ruled(name="a b"), "/rules/0/name", f"'a b' {NO_NAME}"),
    "rule without a target": (ruled(to=None), "/rules/0/to", "this key is required"),
    "rule to nobody": (ruled(to="x"), "/rules/0/to", "there is no variant 'x'"),
    "rule's flag": (
        ruled(enabled="yes"),
        "/rules/0/enabled",
        "expected a boolean, got a value of type str",
    ),
    "rule's reason": (
        ruled(reason=1),
        "/rules/0/reason",
        "expected a text, got a value of type int",
    ),
    "rule's end": (
        ruled(expires="soon"),
        "/rules/0/expires",
        "'soon' is no time with a zone, such as 2026-12-01T00:00:00Z",
    ),
    "rule's end without a zone": (
        ruled(expires="2026-12-01T00:00:00"),
        "/rules/0/expires",
        "'2026-12-01T00:00:00' is no time with a zone, such as 2026-12-01T00:00:00Z",
    ),
    "rule's end in the year 9999": (
        ruled(expires="9999-12-31T23:59:59-01:00"),
        "/rules/0/expires",
        "'9999-12-31T23:59:59-01:00' is not between the years 1970 and 9998",
    ),
    "two rules of one name": (
        {"rules": [rule(), rule(when={"tenant": "other"})]},
        "/rules/1/name",
        "two rules are named 'internal'",
    ),
    "rule without a condition": (
        ruled(when=None),
        "/rules/0/when",
        "a rule about every request would hide the weights",
    ),
    "rule about everybody": (
        ruled(when={"header": {}, "tenant": [], "role": ""}),
        "/rules/0/when",
        "a rule about every request would hide the weights",
    ),
    "rule that is never reached": (
        {"rules": [rule(), rule(name="second", to="stable")]},
        "/rules/1",
        UNREACHED,
    ),
    "when": (ruled(when="all"), "/rules/0/when", "expected a table, got a value of type str"),
    "unknown condition": (ruled(when={"path": "/"}), "/rules/0/when/path", "unknown key"),
    "headers": (
        ruled(when={"header": "x"}),
        "/rules/0/when/header",
        "expected a table, got a value of type str",
    ),
    "header's name": (
        ruled(when={"header": {"a b": "1"}}),
        "/rules/0/when/header/a b",
        "'a b' is no name of a header",
    ),
    "empty name of a header": (
        ruled(when={"header": {"": "1"}}),
        "/rules/0/when/header/",
        "'' is no name of a header",
    ),
    "one header twice": (
        ruled(when={"header": {"X-A": "1", "x-a": "2"}}),
        "/rules/0/when/header",
        "two conditions are about one header",
    ),
    "condition of nothing": (asking({}), "/rules/0/when/header/x", ONE_OF_THREE),
    "two conditions in one": (
        asking({"in": ["a"], "prefix": "b"}),
        "/rules/0/when/header/x",
        ONE_OF_THREE,
    ),
    "unknown form of a condition": (
        asking({"suffix": "a"}),
        "/rules/0/when/header/x/suffix",
        "unknown key",
    ),
    "value with half a character": (
        asking("\udc00"),
        "/rules/0/when/header/x",
        "it is no Unicode text",
    ),
    "no values": (asking({"in": []}), "/rules/0/when/header/x/in", "the list is empty"),
    "empty value": (asking({"in": ["a", ""]}), "/rules/0/when/header/x/in/1", "an empty text"),
    "values": (
        asking({"in": "a"}),
        "/rules/0/when/header/x/in",
        "expected a list, got a value of type str",
    ),
    "empty prefix": (asking({"prefix": ""}), "/rules/0/when/header/x/prefix", "an empty text"),
    "absent": (
        asking({"present": False}),
        "/rules/0/when/header/x/present",
        "only true can be asked for",
    ),
    "tenant": (
        ruled(when={"tenant": 1}),
        "/rules/0/when/tenant",
        "expected a list, got a value of type int",
    ),
    "empty tenant": (
        ruled(when={"tenant": ["a", ""]}),
        "/rules/0/when/tenant/1",
        "an empty text",
    ),
    "role": (
        ruled(when={"role": ["tester"]}),
        "/rules/0/when/role",
        "expected a text, got a value of type list",
    ),
    "keys": (
        ruled(when={"key": ["u1"]}),
        "/rules/0/when/key",
        "expected a table, got a value of type list",
    ),
    "no keys": (ruled(when={"key": {"in": []}}), "/rules/0/when/key/in", "the list is empty"),
    "a key that is no text": (
        ruled(when={"key": {"in": [7]}}),
        "/rules/0/when/key/in/0",
        "expected a text, got a value of type int",
    ),
    "unknown form of keys": (
        ruled(when={"key": {"in": ["u1"], "prefix": "u"}}),
        "/rules/0/when/key/prefix",
        "unknown key",
    ),
    # A variant that a header forces
    "forced without a role": (
        forcing(header={"x": {"in": ["canary"]}}),
        "/rules/0/when/role",
        "only the role 'tester' may choose a variant",
    ),
    "forced for another role": (
        forcing(header={"x": {"in": ["canary"]}}, role="viewer"),
        "/rules/0/when/role",
        "only the role 'tester' may choose a variant",
    ),
    "forced without a header": (
        forcing(role="tester"),
        "/rules/0/when/header",
        "'$header' needs exactly one header",
    ),
    "forced by two headers": (
        forcing(role="tester", header={"x": {"in": ["canary"]}, "y": "1"}),
        "/rules/0/when/header",
        "'$header' needs exactly one header",
    ),
    "forced by any value": (
        forcing(role="tester", header={"x": {"present": True}}),
        "/rules/0/when/header/x",
        "'$header' needs the variants listed with 'in'",
    ),
    "forced to nobody": (
        forcing(role="tester", header={"x": {"in": ["canary", "green"]}}),
        "/rules/0/when/header/x",
        "there is no variant 'green'",
    ),
    # Shadows
    "shadows": ({"shadows": []}, "/shadows", "expected a table, got a value of type list"),
    "shadow's name": ({"shadows": {"a/b": shadow()}}, "/shadows/a~1b", f"'a/b' {NO_NAME}"),
    "unknown key of a shadow": (mirrored(weight=1), "/shadows/v3/weight", "unknown key"),
    "shadow's version": (
        mirrored(version="x"),
        "/shadows/v3/version",
        "'x' is no version: a positive whole number as text",
    ),
    "sample": (
        mirrored(sample=None),
        "/shadows/v3/sample",
        "expected a number, got nothing",
    ),
    "sample over 100": (
        mirrored(sample=100.5),
        "/shadows/v3/sample",
        "weight 100.5 is not between 0 and 100",
    ),
    "shadow of": (
        mirrored(of="stable"),
        "/shadows/v3/of",
        "expected a list, got a value of type str",
    ),
    "shadow of nobody": (
        mirrored(of=["stable", "x"]),
        "/shadows/v3/of/1",
        "there is no variant 'x'",
    ),
    "limits": (
        mirrored(limits=1),
        "/shadows/v3/limits",
        "expected a table, got a value of type int",
    ),
    "unknown limit": (mirrored(limits={"rows": 1}), "/shadows/v3/limits/rows", "unknown key"),
    "limit of nothing": (
        mirrored(limits={"queue_items": 0}),
        "/shadows/v3/limits/queue_items",
        "0 is not a whole number from 1 on",
    ),
    "limit with a fraction": (
        mirrored(limits={"queue_bytes": Decimal("1.5")}),
        "/shadows/v3/limits/queue_bytes",
        "Decimal('1.5') is not a whole number from 1 on",
    ),
    "limit that is a flag": (
        mirrored(limits={"deadline_ms": True}),
        "/shadows/v3/limits/deadline_ms",
        "True is not a whole number from 1 on",
    ),
    # Fallback
    "fallback": ({"fallback": "a"}, "/fallback", "expected a table, got a value of type str"),
    "fallback to nowhere": ({"fallback": {}}, "/fallback/to", "this key is required"),
    "fallback to nobody": ({"fallback": {"to": "x"}}, "/fallback/to", "there is no variant 'x'"),
    "fallback on errors": (
        {"fallback": {"to": "stable", "on": ["not_ready", "error"]}},
        "/fallback/on/1",
        "'error' is not 'not_ready'",
    ),
    "fallback on nothing": (
        {"fallback": {"to": "stable", "on": []}},
        "/fallback/on",
        "the list is empty",
    ),
    "unknown key of a fallback": (
        {"fallback": {"to": "stable", "after_s": 1}},
        "/fallback/after_s",
        "unknown key",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_in_a_sentence_under_the_pointer_of_its_field(case: str) -> None:
    fields, pointer, sentence = WRONG[case]
    with pytest.raises(RouteError) as refused:
        route(**fields)
    assert (pointer, sentence) in faults_of(refused.value)
    # Beside it only what follows from it: a value of the wrong type is no text and no table.
    also = {f.pointer for f in refused.value.faults} - {pointer}
    assert all(other.startswith(pointer) for other in also)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 129])
def test_a_routes_own_name_is_checked(name: str) -> None:
    with pytest.raises(RouteError) as refused:
        read(plain(), name=name)
    assert faults_of(refused.value) == [("/name", f"{name!r} {NO_NAME}")]


def test_variants_must_be_there() -> None:
    with pytest.raises(RouteError) as refused:
        read({}, name=NAME)
    assert faults_of(refused.value) == [("/variants", "this key is required")]


def test_a_document_that_is_no_table_is_refused() -> None:
    with pytest.raises(RouteError) as refused:
        read([1, 2], name=NAME)  # type: ignore[arg-type]  # what JSON may decode to
    assert ("", "expected a table, got a value of type list") in faults_of(refused.value)


def test_every_fault_of_a_document_is_told_at_once_and_in_order() -> None:
    with pytest.raises(RouteError) as refused:
        route(
            variants={"a": {"model": "m", "version": 1}, "b": {"model": "", "weight": 200}},
            shadows={"s": {"model": "m", "version": "0", "sample": 10, "limits": {"rows": 1}}},
            rules=[{"name": "r", "when": {"tenant": 7}}],
            key=["cookie:a"],
            kind="other",
        )
    assert [pointer for pointer, _ in faults_of(refused.value)] == [
        "/variants/a/version",
        "/variants/a/weight",
        "/variants/b/model",
        "/variants/b/version",
        "/variants/b/weight",
        "/shadows/s/version",
        "/shadows/s/limits/rows",
        "/rules/0/to",
        "/rules/0/when/tenant",
        "/key/0",
        "/kind",
    ]
    assert str(refused.value).startswith("variants.a.version: expected a text, got ")


def test_every_fault_between_fields_is_told_at_once() -> None:
    with pytest.raises(RouteError) as refused:
        route(
            variants=variants(a=50, b=40),
            stable="x",
            fallback={"to": "y"},
            rules=[rule(to="z"), rule(to="a", name="second")],
            shadows={"v3": shadow(of=["w"])},
        )
    assert faults_of(refused.value) == [
        ("/variants", "weights sum to 90, not 100"),
        ("/stable", "there is no variant 'x'"),
        ("/fallback/to", "there is no variant 'y'"),
        ("/shadows/v3/of/0", "there is no variant 'w'"),
        ("/rules/0/to", "there is no variant 'z'"),
        ("/rules/1", UNREACHED),
    ]


def test_a_route_is_written_with_all_it_has() -> None:
    assert write(read(whole(), name=NAME, revision=4)) == {
        "name": NAME,
        "revision": 4,
        "kind": "experiment",
        "salt": "spring",
        "key": ["header:x-user-id", "parameter:user", "principal"],
        "missing_key": "stable",
        "stable": "old",
        "variants": {
            "new": {"model": "digits-b", "version": "12", "weight": 33.3333},
            "old": {"model": "digits", "version": "1", "weight": 66.6667},
        },
        "rules": [
            {
                "name": "testers",
                "when": {"header": {"x-variant": {"in": ["new", "old"]}}, "role": "tester"},
                "to": "$header",
                "enabled": True,
            },
            {
                "name": "acme",
                "when": {
                    "header": {"a": {"in": ["1"]}, "b": {"prefix": "x"}, "c": {"present": True}},
                    "tenant": ["acme", "größer"],
                    "key": {"in": ["u1", "u2"]},
                },
                "to": "new",
                "reason": "contract",
                "expires": "2026-12-01T00:00:00Z",
                "enabled": False,
            },
        ],
        "shadows": {
            "all": {
                "model": "digits",
                "version": "14",
                "sample": 100,
                "of": [],
                "limits": {"queue_items": 256, "queue_bytes": 64 << 20, "deadline_ms": 2_000},
            },
            "next": {
                "model": "digits",
                "version": "13",
                "sample": 0.5,
                "of": ["old"],
                "limits": {"queue_items": 1, "queue_bytes": 2, "deadline_ms": 3},
            },
        },
        "fallback": {"to": "old", "on": ["not_ready"]},
        "rollback_window_s": 60,
    }


def test_what_is_written_is_read_as_the_same_route_and_so_is_its_json() -> None:
    made = read(whole(), name=NAME)
    assert read(write(made), name=NAME) == made
    text = json.dumps(write(made))
    assert read(json.loads(text), name=NAME) == made
    assert read(json.loads(text, parse_float=Decimal), name=NAME) == made


@pytest.mark.parametrize(
    ("slots", "weight"),
    [(0, "0"), (1, "0.0001"), (100_000, "10"), (333_333, "33.3333"), (SLOTS, "100")],
)
def test_slots_are_written_in_percent_in_the_shortest_form(slots: int, weight: str) -> None:
    assert json.dumps(percent(slots)) == weight


@pytest.mark.parametrize(
    ("unix_ms", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_796_083_200_000, "2026-12-01T00:00:00Z"),
        (1_796_083_200_001, "2026-12-01T00:00:00.001Z"),
        (253_370_764_799_999, "9998-12-31T23:59:59.999Z"),
    ],
)
def test_an_instant_is_written_in_utc_with_milliseconds_where_it_has_some(
    unix_ms: int, text: str
) -> None:
    assert timestamp(unix_ms) == text


def test_the_keys_that_the_store_assigns_are_no_part_of_what_is_written_but_the_revision() -> None:
    assert document.ASSIGNED & write(route()).keys() == {"revision"}
