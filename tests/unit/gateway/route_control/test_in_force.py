"""What is in force: only ever forward, always shown by the table, and stored as it was read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.route_control.asked import read_held
from gateway.route_control.in_force import PROVISIONAL, Held, InForce, Verdict, judge
from gateway.route_control.revision import StoredRevision, digest_of
from router import changes
from router.faults import RouteError
from router.table import RouteTable
from tests.support.replicas import NAME, T0_MS, held, origin, revisions, route

AT: Final = held(route(10), route(20))
"""Stands at (1, 2)."""
OTHER: Final = digest_of(b"another content")
EXPIRES: Final = "2023-11-14T22:14:20Z"
EXPIRES_MS: Final = T0_MS + 60_000


def weights(table: RouteTable) -> dict[str, float]:
    found = table.snapshot.get(NAME)
    return {v.name: float(v.weight) for v in found.route.variants} if found else {}


@pytest.mark.parametrize(
    ("position", "digest", "verdict"),
    [
        ((1, 2), AT.digest, Verdict.CURRENT),
        ((1, 2), OTHER, Verdict.SPLIT),
        ((1, 3), OTHER, Verdict.NEWER),
        ((1, 3), AT.digest, Verdict.NEWER),
        ((1, 1), OTHER, Verdict.OLDER),
        ((1, 1), AT.digest, Verdict.OLDER),
        ((2, 1), OTHER, Verdict.NEWER),
        ((2, 2), AT.digest, Verdict.NEWER),
        ((0, 9), OTHER, Verdict.OLDER),
        ((0, 0), "", Verdict.OLDER),
    ],
)
def test_a_revision_is_judged_by_generation_then_number_then_content(
    position: tuple[int, int], digest: str, verdict: Verdict
) -> None:
    assert judge(AT, position, digest) is verdict


def test_whatever_comes_first_is_newer_than_nothing() -> None:
    assert judge(None, (1, 1), OTHER) is Verdict.NEWER
    assert judge(None, (0, 0), "") is Verdict.NEWER


def test_what_no_store_has_numbered_gives_way_to_what_a_store_has() -> None:
    provisional = held(route(10), generation=PROVISIONAL)
    assert judge(provisional, (1, 1), OTHER) is Verdict.NEWER


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 3), st.sampled_from((10, 20))),
        max_size=12,
    )
)
def test_what_is_in_force_never_goes_back(puts: list[tuple[int, int, int]]) -> None:
    table = RouteTable()
    in_force = InForce(table)
    for generation, number, canary in puts:
        made = held(*[route(canary)] * number, generation=generation)
        before = in_force.held.get(NAME)
        if before is None or made.position > before.position:
            in_force.put(made, T0_MS)
        else:
            with pytest.raises(ValueError, match=r"current|older|split"):
                in_force.put(made, T0_MS)
        now = in_force.held[NAME]
        assert now is made or now is before
        assert before is None or now.position >= before.position
        assert weights(table)["canary"] == float(now.revision.route.variant("canary").weight)
        assert table.snapshot[NAME].route.revision == now.position[1]


def test_a_reader_keeps_the_snapshot_that_it_has_read() -> None:
    table = RouteTable()
    in_force = InForce(table)
    in_force.put(held(route(10)), T0_MS)
    snapshot = table.snapshot
    in_force.put(AT, T0_MS)
    assert (snapshot[NAME].route.revision, table.snapshot[NAME].route.revision) == (1, 2)


def test_a_deleted_route_leaves_the_table_and_keeps_its_number() -> None:
    table = RouteTable()
    in_force = InForce(table)
    in_force.put(AT, T0_MS)
    in_force.put(Held.of(changes.deleted(AT.revision, origin("delete"))), T0_MS)
    assert NAME not in table.snapshot
    assert in_force.held[NAME].position == (1, 3)
    with pytest.raises(ValueError, match="older"):
        in_force.put(AT, T0_MS)


def test_a_rule_that_has_expired_is_compiled_away_by_a_refresh() -> None:
    rule = {"name": "r", "when": {"tenant": "acme"}, "to": "canary", "expires": EXPIRES}
    table = RouteTable()
    in_force = InForce(table)
    in_force.put(held(route(10, rules=[rule])), EXPIRES_MS - 2)
    in_force.refresh(EXPIRES_MS - 1)
    compiled = table.snapshot[NAME]
    assert compiled.has_rules
    assert compiled.rules_until_ms == EXPIRES_MS
    in_force.refresh(EXPIRES_MS)
    assert not table.snapshot[NAME].has_rules
    assert table.snapshot[NAME].slot_ranges == compiled.slot_ranges


def test_a_refresh_leaves_routes_alone_that_have_nothing_to_expire() -> None:
    table = RouteTable()
    in_force = InForce(table)
    in_force.put(AT, T0_MS)
    compiled = table.snapshot[NAME]
    in_force.refresh(EXPIRES_MS)
    assert table.snapshot[NAME] is compiled


def test_an_override_is_served_under_the_number_of_the_revision_until_it_ends() -> None:
    table = RouteTable()
    in_force = InForce(table)
    in_force.put(AT, T0_MS)
    in_force.override(NAME, changes.aborted(AT.revision.route), T0_MS)
    assert weights(table) == {"stable": 100, "canary": 0}
    assert table.snapshot[NAME].route.revision == 2
    in_force.override(NAME, None, T0_MS)
    assert weights(table) == {"stable": 80, "canary": 20}
    assert in_force.overridden(NAME) is None


def test_an_override_outlasts_a_newer_revision_and_carries_its_number() -> None:
    table = RouteTable()
    in_force = InForce(table)
    in_force.put(AT, T0_MS)
    in_force.override(NAME, changes.aborted(AT.revision.route), T0_MS)
    in_force.put(held(route(10), route(20), route(50)), T0_MS)
    assert weights(table) == {"stable": 100, "canary": 0}
    assert table.snapshot[NAME].route.revision == 3
    in_force.override(NAME, None, T0_MS)
    assert weights(table) == {"stable": 50, "canary": 50}


def test_a_deletion_ends_what_an_override_serves() -> None:
    table = RouteTable()
    in_force = InForce(table)
    in_force.put(AT, T0_MS)
    in_force.override(NAME, changes.aborted(AT.revision.route), T0_MS)
    in_force.put(Held.of(changes.deleted(AT.revision, origin("delete"))), T0_MS)
    assert NAME not in table.snapshot


def test_overriding_what_is_not_in_force_serves_nothing_and_breaks_nothing() -> None:
    table = RouteTable()
    in_force = InForce(table)
    in_force.override(NAME, None, T0_MS)
    in_force.override(NAME, route(0), T0_MS)
    assert not table.snapshot


def test_what_is_held_is_stored_again_byte_for_byte() -> None:
    (revision,) = revisions(route(10))
    # As a newer or older version of the software might have written it.
    body = json.dumps(json.loads(revision.body()), indent=1).encode()
    stored = StoredRevision(
        name=NAME,
        generation=1,
        revision=1,
        digest=digest_of(body),
        body=body,
        audit_digest=OTHER,
    )
    found = read_held(stored)
    assert found.revision == revision
    assert found.stored() == stored
    assert found.stored().is_intact


def test_a_body_that_contradicts_its_place_is_refused() -> None:
    with pytest.raises(RouteError, match=r"the document says .g1-2., the store .g1-3."):
        read_held(replace(AT.stored(), revision=3))
