"""Routes of every kind: what is written is read, what is corrupt is not, and who is chosen.

The routes are drawn with rules, shadows, keys and texts of any script (tests/support/routes.py).
"""

from __future__ import annotations

import json
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router import changes, document, revisions
from router.diff import diff
from router.faults import RouteError
from router.fields import FieldReader
from router.policy import (
    NO_SLOT,
    REASON_NO_KEY,
    REASON_RANDOM,
    REASON_SLOT,
    RULE_PREFIX,
    CompiledRoute,
    KeyRequired,
)
from router.revisions import Revision
from router.routes import REJECT, STABLE, Route
from router.rules import BY_HEADER, TESTER, Facts, When
from router.slot_map import check, moved_slots
from router.slots import SLOTS
from tests.support.routes import NOON_MS, faults_of, histories, instants_ms, origin, routes

Json = Any  # Any: JSON
fractions = st.floats(0, 1, exclude_max=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(routes())
def test_a_written_route_is_read_as_the_same_route(route: Route) -> None:
    written = document.write(route)
    assert document.read(written, name=route.name, revision=route.revision) == route
    text = json.dumps(written)
    for decoded in (json.loads(text), json.loads(text, parse_float=Decimal)):
        assert document.read(decoded, name=route.name, revision=route.revision) == route
    assert diff(written, json.loads(text)) == []


@given(instants_ms)
def test_a_written_instant_is_read_as_the_same_instant(unix_ms: int) -> None:
    text = document.timestamp(unix_ms)
    assert FieldReader().instant(text, ()) == unix_ms


@given(histories())
def test_a_stored_revision_is_read_as_the_same_revision(revision: Revision) -> None:
    body = revision.body()
    again = revisions.read(body, name=revision.route.name)
    assert again == revision
    assert again.body() == body


@given(revision=histories(), cut=fractions)
def test_a_revision_that_was_cut_off_is_never_read(revision: Revision, cut: float) -> None:
    body = revision.body()
    with pytest.raises(RouteError):
        revisions.read(body[: int(cut * len(body))], name=revision.route.name)


@settings(max_examples=300)
@given(revision=histories(), place=st.integers(0), byte=st.integers(0, 255))
def test_a_changed_byte_is_a_refusal_or_a_sound_revision(
    revision: Revision, place: int, byte: int
) -> None:
    """Most changes are found here; that of a letter in a text is for the digest to find."""
    body = bytearray(revision.body())
    body[place % len(body)] = byte
    try:
        read = revisions.read(bytes(body), name=revision.route.name)
    except RouteError:
        return
    assert check(read.slots, read.route.sizes) == ""
    assert revisions.read(read.body(), name=read.route.name) == read


@settings(max_examples=300)
@given(route=routes(), place=st.integers(0), value=json_values)
def test_a_document_with_any_value_anywhere_is_refused_with_its_place_or_is_a_route(
    route: Route, place: int, value: Json
) -> None:
    written = document.write(route)
    places = list(_places(written))
    holder, key = places[place % len(places)]
    holder[key] = value
    told: list[tuple[str, str]] | None = None
    try:
        read = document.read(written, name=route.name)
    except RouteError as refused:
        told = faults_of(refused)
    if told is None:
        assert document.read(document.write(read), name=route.name) == read
    else:
        assert told
        assert all(pointer.startswith("/") and sentence for pointer, sentence in told)


def _places(value: Json) -> list[tuple[Json, str | int]]:
    """Return every place of a document as what holds it and its key."""
    found: list[tuple[Json, str | int]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        found.append((value, key))
        if isinstance(inner, dict | list):
            found += _places(inner)
    return found


@st.composite
def requests(draw: st.DrawFn, route: Route) -> tuple[bytes | None, Facts]:
    """Draw a request: one that a rule is about, but for a condition or two, or any other."""
    anything = When(
        headers=tuple(header for rule in route.rules for header in rule.when.headers),
        role=draw(st.sampled_from(["", TESTER, "viewer"])),
    )
    when = draw(st.sampled_from([anything, *(rule.when for rule in route.rules)]))
    missing = draw(st.sampled_from(["", "", "", "header", "tenant", "role", "key"]))
    headers = {
        header.name: draw(st.sampled_from([*sorted(header.one_of), header.prefix + "x"]))
        for header in when.headers
        if missing != "header"
    }
    received = {name: value.encode().decode("latin-1") for name, value in headers.items()}
    tenants = [] if missing == "tenant" else sorted(when.tenants)
    keys = [] if missing == "key" else sorted(when.keys)
    facts = Facts(
        header=received.get,
        tenant=draw(st.sampled_from(tenants or ["", "other"])),
        roles=frozenset() if missing == "role" else frozenset({when.role}),
    )
    key = draw(st.sampled_from(keys or ["", "u1"]))
    return key.encode() or None, facts


@settings(max_examples=300)
@given(
    data=st.data(), route=routes(asked_rules=2), number=fractions, now_ms=st.just(0) | instants_ms
)
def test_every_request_gets_one_variant_that_has_weight_or_a_rule(
    data: st.DataObject, route: Route, number: float, now_ms: int
) -> None:
    compiled = CompiledRoute.of(changes.first(route, origin()), now_ms)
    key, facts = data.draw(requests(route))
    held = [rule for rule in route.rules if rule.holds_at(now_ms)]
    try:
        decision = compiled.decide(key, lambda: number, facts)
    except KeyRequired:
        assert route.missing_key == REJECT
        assert not key
        return
    assert decision == compiled.decide(key, lambda: number, facts)
    assert decision.variant in route.variants
    if decision.reason.startswith(RULE_PREFIX):
        named = decision.reason.removeprefix(RULE_PREFIX)
        (rule,) = (rule for rule in held if rule.name == named)
        assert decision.variant.name in rule.destinations
        assert rule.to != BY_HEADER or TESTER in facts.roles
        assert (decision.slot, decision.propensity) == (NO_SLOT, 1.0)
    elif decision.reason == REASON_NO_KEY:
        assert not key
        assert (route.missing_key, decision.variant.name) == (STABLE, route.stable)
    else:
        assert decision.reason == (REASON_SLOT if key else REASON_RANDOM)
        assert decision.variant.slots > 0
        assert decision.propensity == decision.variant.slots / SLOTS
        assert compiled.slot_map.owner(decision.slot) == decision.variant


@given(data=st.data(), route=routes(), number=fractions)
def test_every_request_is_mirrored_to_the_shadows_of_its_variant(
    data: st.DataObject, route: Route, number: float
) -> None:
    compiled = CompiledRoute.of(changes.first(route, origin()), NOON_MS)
    variant = data.draw(st.sampled_from(route.variants)).name
    key, _ = data.draw(requests(route))
    mirrors = compiled.mirrors(variant, key, lambda: number)
    assert [m.shadow for m in mirrors] == [
        shadow for shadow in route.shadows if variant in shadow.of or not shadow.of
    ]
    for shadow, is_sampled in mirrors:
        assert is_sampled or shadow.sample_slots < SLOTS
        assert not is_sampled or shadow.sample_slots > 0


@given(histories())
def test_verbs_leave_a_sound_revision_and_an_undo_the_slots_of_the_one_before(
    revision: Revision,
) -> None:
    aborted = changes.follow(
        revision, changes.aborted(revision.route), origin("abort"), changes.ALWAYS
    )
    undone = changes.back_to(aborted, revision, origin("undo"))
    gone = changes.deleted(undone, origin("delete"))
    back = changes.back_to(gone, undone, origin("undo"))
    restored = changes.restored(back, (3, 1 << 51), origin("restore"))
    for before, after in pairwise([revision, aborted, undone, gone, back, restored]):
        assert after.position > before.position
        assert check(after.slots, after.route.sizes) == ""
        assert revisions.read(after.body(), name=after.route.name) == after
    assert aborted.route.sizes[revision.route.stable] == SLOTS
    assert undone.slots == back.slots == restored.slots == revision.slots
    assert moved_slots(revision.slots, aborted.slots) == (
        SLOTS - revision.route.sizes[revision.route.stable]
    )
