"""Routes for tests: a document to start from, revisions of it, and random valid routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

from hypothesis import strategies as st

from router import changes, document
from router.faults import RouteError
from router.revisions import Origin, Revision
from router.routes import (
    EXPERIMENT,
    KINDS,
    MISSING_KEY,
    Fallback,
    KeySource,
    Route,
    Shadow,
    Variant,
)
from router.rules import BY_HEADER, TESTER, HeaderCondition, Rule, When
from router.slots import SLOTS

Plain = dict[str, Any]  # Any: decoded JSON
NAME: Final = "digits"
NOON_MS: Final = 1_800_000_000_000
"""The Unix time at which tests make their first revision: 15 January 2027, 8 o'clock UTC."""
HOUR_MS: Final = 3_600_000
MAX_WINDOW_S: Final = 366 * 24 * 3_600
"""The longest rollback window."""


def variants(**weights: object) -> Plain:
    """Return variants whose versions are 1, 2, ... in the order given."""
    return {
        name: {"model": NAME, "version": str(n), "weight": weight}
        for n, (name, weight) in enumerate(weights.items(), start=1)
    }


def plain(**fields: object) -> Plain:
    """Return a document: stable 90, canary 10, and the fields given."""
    return {"variants": variants(stable=90, canary=10)} | fields


def rule(to: str = "canary", name: str = "internal", **fields: object) -> Plain:
    """Return a rule; without `when` about the tenant acme."""
    return {"name": name, "when": {"tenant": "acme"}, "to": to} | fields


def shadow(**fields: object) -> Plain:
    """Return a shadow."""
    return {"model": NAME, "version": "3", "sample": 10} | fields


def route(**fields: object) -> Route:
    """Return the route of `plain`."""
    return document.read(plain(**fields), name=NAME)


def weighing(base: Route, **weights: object) -> Route:
    """Return a route with all its weights replaced."""
    return changes.with_weights(base, {n: Decimal(str(w)) for n, w in weights.items()})


def origin(verb: str = "create", *, at_ms: int = NOON_MS, parent: int = 0) -> Origin:
    """Return who made a revision."""
    return Origin(verb=verb, actor="ann", reason="a test", created_ms=at_ms, parent=parent)


def first(**fields: object) -> Revision:
    """Return the first revision of the route of `plain`."""
    return changes.first(route(**fields), origin())


def faults_of(refused: RouteError) -> list[tuple[str, str]]:
    """Return the pointer and the sentence of each fault."""
    return [(fault.pointer, fault.sentence) for fault in refused.faults]


def at(value: Any, *path: str | int) -> Any:  # Any: decoded JSON
    """Return the part of a document at a path."""
    for key in path:
        value = value[key]
    return value


# Random routes. Texts are any Unicode text, as operators write them.

texts = st.text(min_size=1, max_size=8)
names = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789_.-", min_size=1, max_size=12).filter(
    lambda text: text[0] not in ".-"
)
header_names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=10)
versions = st.integers(1, 10**18 - 1).map(str)
instants_ms = st.integers(0, 253_370_764_799_999)  # what can be written: 1970 to 9998
some_texts = st.frozensets(texts, max_size=3)


@st.composite
def sizes(draw: st.DrawFn, count: int) -> list[int]:
    """Draw numbers of slots that make up all of them; zeros among them."""
    unit = draw(st.sampled_from([1, 10_000]))
    points = st.integers(0, SLOTS // unit).map(lambda n: n * unit)
    cuts = sorted(draw(st.lists(points, min_size=count - 1, max_size=count - 1)))
    return [b - a for a, b in pairwise([0, *cuts, SLOTS])]


@st.composite
def conditions(draw: st.DrawFn, name: str) -> HeaderCondition:
    """Draw what a header must be."""
    match draw(st.sampled_from(["in", "prefix", "present"])):
        case "in":
            one_of = draw(st.frozensets(texts, min_size=1, max_size=3))
            return HeaderCondition(name=name, one_of=one_of)
        case "prefix":
            return HeaderCondition(name=name, prefix=draw(texts))
        case _:
            return HeaderCondition(name=name)


@st.composite
def whens(draw: st.DrawFn) -> When:
    """Draw conditions."""
    asked = sorted(draw(st.sets(header_names, max_size=2)))
    return When(
        headers=tuple(draw(conditions(name)) for name in asked),
        tenants=draw(some_texts),
        role=draw(st.sampled_from(["", TESTER, "viewer"])),
        keys=draw(some_texts),
    )


@st.composite
def rules(draw: st.DrawFn, arms: Sequence[str]) -> Rule:
    """Draw a rule about some requests; not all of them fit every route."""
    name = draw(names)
    expires_ms = draw(st.none() | instants_ms)
    is_enabled = draw(st.booleans())
    if draw(st.booleans()):
        one_of = draw(st.frozensets(st.sampled_from(arms), min_size=1))
        header = HeaderCondition(name=draw(header_names), one_of=one_of)
        when, to = When(headers=(header,), role=TESTER), BY_HEADER
    else:
        when, to = draw(whens()), draw(st.sampled_from(arms))
    return Rule(
        name=name,
        when=when,
        to=to,
        reason=draw(st.text(max_size=8)),
        expires_ms=expires_ms,
        is_enabled=is_enabled,
    )


@st.composite
def shadows(draw: st.DrawFn, name: str, arms: Sequence[str]) -> Shadow:
    """Draw a shadow."""
    return Shadow(
        name=name,
        model=draw(names),
        version=draw(versions),
        sample_slots=draw(st.integers(0, SLOTS)),
        of=tuple(draw(st.lists(st.sampled_from(arms), max_size=2, unique=True))),
        queue_items=draw(st.integers(1, 1 << 20)),
        queue_bytes=draw(st.integers(1, 1 << 40)),
        deadline_ms=draw(st.integers(1, 1 << 20)),
    )


key_sources = st.one_of(
    header_names.map(lambda name: KeySource(kind="header", name=name)),
    names.map(lambda name: KeySource(kind="parameter", name=name)),
    st.just(KeySource(kind="principal")),
)


@st.composite
def routes(draw: st.DrawFn, asked_rules: int = 0) -> Route:
    """Draw a valid route with everything that a route may have."""
    arms = sorted(draw(st.sets(names, min_size=1, max_size=5)))
    owned = draw(sizes(len(arms)))
    fallback = draw(st.none() | st.sampled_from(arms).map(lambda arm: Fallback(to=arm)))
    made = Route(
        name=draw(names),
        revision=draw(st.integers(0, 1 << 50)),
        salt=draw(texts),
        key=tuple(draw(st.lists(key_sources, max_size=3))),
        variants=tuple(
            Variant(name=arm, model=draw(names), version=draw(versions), slots=n)
            for arm, n in zip(arms, owned, strict=True)
        ),
        kind=draw(st.sampled_from(KINDS)),
        missing_key=draw(st.sampled_from(MISSING_KEY)),
        stable=draw(st.sampled_from(arms)),
        shadows=tuple(
            draw(shadows(name, arms)) for name in sorted(draw(st.sets(names, max_size=2)))
        ),
        fallback=fallback,
        rollback_window_s=draw(st.integers(0, MAX_WINDOW_S)),
    )
    for candidate in draw(st.lists(rules(arms), min_size=asked_rules, max_size=4)):
        made = _with_rule(made, candidate)
    return made


def _with_rule(base: Route, candidate: Rule) -> Route:
    """Return the route with one more rule, or as it was where that cannot be."""
    try:
        return replace(base, rules=(*base.rules, candidate))
    except RouteError:
        return base


@st.composite
def histories(draw: st.DrawFn) -> Revision:
    """Draw a revision with a past: changed weights, warm versions, carry-overs."""
    revision = changes.first(draw(routes()), origin(at_ms=draw(st.integers(0, 1 << 42))))
    for _ in range(draw(st.integers(0, 3))):
        old = revision.route
        arms = [v.name for v in old.variants]
        owned: Mapping[str, int] = dict(zip(arms, draw(sizes(len(arms))), strict=True))
        version = draw(versions)
        new = replace(
            old,
            variants=tuple(replace(v, slots=owned[v.name], version=version) for v in old.variants),
        )
        parent = old.revision
        made_by = Origin(
            verb=draw(st.sampled_from(["patch", "setWeights"])),
            actor=draw(texts),
            reason=draw(texts),
            created_ms=revision.origin.created_ms,
            parent=parent,
        )
        revision = changes.follow(revision, new, made_by, changes.ALWAYS)
    is_experiment = revision.route.kind == EXPERIMENT
    assert is_experiment or not revision.carryover
    return revision if draw(st.booleans()) else changes.deleted(revision, origin("delete"))
