"""The verbs: what each makes of a route, and what the next revision remembers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from router import changes, document
from router.changes import ALWAYS, ExperimentLocked, Permission
from router.faults import RouteError
from router.policy import CompiledRoute
from router.revisions import Origin, Revision, Warm
from router.routes import EXPERIMENT, Route
from router.slot_map import check, moved_slots
from tests.support.routes import (
    HOUR_MS,
    NAME,
    NOON_MS,
    Plain,
    faults_of,
    first,
    origin,
    plain,
    route,
    rule,
    shadow,
    variants,
    weighing,
)
from tests.support.slot_maps import every_owner

MAY_CARRY_OVER = Permission(accepts_carryover=True)


def then(before: Revision, new: Route, *, at_ms: int = NOON_MS) -> Revision:
    """Return the next revision of a rollout."""
    return changes.follow(before, new, origin("patch", at_ms=at_ms))


def weights_of(route: Route) -> dict[str, Decimal]:
    return {v.name: v.weight for v in route.variants}


def versions_of(route: Route) -> dict[str, str]:
    return {v.name: v.version for v in route.variants}


def asked(**weights: str) -> dict[str, Decimal]:
    return {name: Decimal(weight) for name, weight in weights.items()}


# Weights


def test_weights_are_taken_from_one_variant() -> None:
    made = changes.with_weights(route(), asked(canary="20.5"), "stable")
    assert weights_of(made) == asked(canary="20.5", stable="79.5")
    back = changes.with_weights(made, asked(canary="0"), "stable")
    assert weights_of(back) == asked(canary="0", stable="100")


def test_weights_of_others_stay_where_one_gives() -> None:
    three = route(variants=variants(a=50, b=30, c=20))
    made = changes.with_weights(three, asked(a="60"), "c")
    assert weights_of(made) == asked(a="60", b="30", c="10")


def test_all_weights_may_be_given() -> None:
    made = changes.with_weights(route(), asked(canary="33.3333", stable="66.6667"))
    assert weights_of(made) == asked(canary="33.3333", stable="66.6667")


def test_nothing_but_weights_changes() -> None:
    before = route(rules=[rule()], shadows={"v3": shadow()}, stable="canary")
    made = changes.with_weights(before, asked(canary="20"), "stable")
    assert weighing(made, canary=10, stable=90) == before


@pytest.mark.parametrize(
    ("weights", "take_from", "faults"),
    [
        (asked(green="5"), "stable", [("/weights/green", "there is no variant 'green'")]),
        (asked(canary="5"), "blue", [("/take_from", "there is no variant 'blue'")]),
        (
            asked(canary="5", stable="95"),
            "stable",
            [("/take_from", "'stable' is given a weight as well")],
        ),
        (asked(canary="5"), "", [("/weights", "no weight for stable: give all, or take_from")]),
        (asked(), "", [("/weights", "no weight for canary, stable: give all, or take_from")]),
        (
            asked(canary="20", stable="79.9"),
            "",
            [("/weights", "weights sum to 99.9, not 100")],
        ),
        (
            asked(canary="100.1"),
            "stable",
            [("/weights/canary", "weight 100.1 is not between 0 and 100")],
        ),
        (
            asked(canary="0.00001"),
            "stable",
            [("/weights/canary", "weight 0.00001 is finer than 0.0001")],
        ),
        (
            asked(green="5", canary="-1"),
            "blue",
            [
                ("/weights/green", "there is no variant 'green'"),
                ("/weights/canary", "weight -1 is not between 0 and 100"),
                ("/take_from", "there is no variant 'blue'"),
            ],
        ),
    ],
)
def test_weights_that_cannot_be_are_refused(
    weights: dict[str, Decimal], take_from: str, faults: list[tuple[str, str]]
) -> None:
    with pytest.raises(RouteError) as refused:
        changes.with_weights(route(), weights, take_from)
    assert faults_of(refused.value) == faults


def test_a_variant_cannot_give_more_than_it_has() -> None:
    three = route(variants=variants(a=50, b=30, c=20))
    with pytest.raises(RouteError) as refused:
        changes.with_weights(three, asked(a="71"), "c")
    assert faults_of(refused.value) == [("/take_from", "'c' has only 20 % to give")]


# Promote and abort


def test_a_promotion_makes_the_canarys_version_the_stable_one_with_all_traffic() -> None:
    made = changes.promoted(route())
    assert weights_of(made) == asked(canary="0", stable="100")
    assert versions_of(made) == {"canary": "2", "stable": "2"}
    assert made.stable == "stable"


@pytest.mark.parametrize(
    ("weights", "named", "version"),
    [
        ({"stable": 80, "a": 10, "b": 10}, "b", "3"),
        ({"stable": 90, "a": 10, "b": 0}, "", "2"),  # the only one with traffic
        ({"stable": 90, "a": 10, "b": 0}, "b", "3"),
        ({"stable": 100, "a": 0}, "", "2"),
        ({"stable": 0, "a": 100}, "", "2"),
    ],
)
def test_the_variant_to_promote_is_named_or_the_only_candidate(
    weights: dict[str, int], named: str, version: str
) -> None:
    made = changes.promoted(route(variants=variants(**weights)), named)
    assert made.variant("stable").version == version
    assert made.variant("stable").weight == 100


@pytest.mark.parametrize(
    ("weights", "named", "sentence"),
    [
        ({"stable": 80, "a": 10, "b": 10}, "", "say which to promote; beside 'stable': a, b"),
        ({"stable": 100, "a": 0, "b": 0}, "", "say which to promote; beside 'stable': a, b"),
        ({"stable": 100}, "", "say which to promote; beside 'stable': none"),
        ({"stable": 90, "a": 10}, "c", "'c' cannot be promoted; beside 'stable': a"),
        ({"stable": 90, "a": 10}, "stable", "'stable' cannot be promoted; beside 'stable': a"),
    ],
)
def test_what_cannot_be_promoted_is_refused(
    weights: dict[str, int], named: str, sentence: str
) -> None:
    with pytest.raises(RouteError) as refused:
        changes.promoted(route(variants=variants(**weights)), named)
    assert faults_of(refused.value) == [("/variant", sentence)]


def test_an_abort_gives_everything_to_stable_and_disables_rules_that_lead_elsewhere() -> None:
    forced = rule(
        "$header",
        "testers",
        when={"header": {"x-v": {"in": ["canary", "stable"]}}, "role": "tester"},
    )
    before = route(
        variants=variants(stable=60, canary=30, green=10),
        rules=[
            rule("canary", "out"),
            rule("stable", "home", when={"tenant": "b"}),
            forced,
            rule("green", "off", when={"tenant": "c"}, enabled=False),
        ],
    )
    made = changes.aborted(before)
    assert weights_of(made) == asked(stable="100", canary="0", green="0")
    assert {r.name: r.is_enabled for r in made.rules} == {
        "out": False,
        "home": True,
        "testers": True,
        "off": False,
    }
    assert versions_of(made) == versions_of(before)
    assert changes.aborted(made) == made


def test_an_abort_means_the_variant_that_the_route_calls_stable() -> None:
    made = changes.aborted(route(stable="canary", rules=[rule("stable")]))
    assert weights_of(made) == asked(stable="0", canary="100")
    assert not made.rules[0].is_enabled


# Revisions


def test_the_first_revision_is_number_one_with_whole_ranges() -> None:
    made = first()
    assert (made.route.revision, made.generation, made.epoch, made.position) == (1, 1, 1, (1, 1))
    assert [tuple(r) for r in made.slots] == [
        (0, 100_000, "canary", 1),
        (100_000, 1_000_000, "stable", 1),
    ]
    assert (made.carryover, made.warm, made.is_deleted) == ((), (), False)


def test_the_next_revision_moves_only_what_it_must_and_stamps_it() -> None:
    before = first()
    after = then(before, weighing(before.route, canary=20, stable=80))
    assert (after.route.revision, after.generation, after.epoch) == (2, 1, 2)
    assert [tuple(r) for r in after.slots] == [
        (0, 100_000, "canary", 1),
        (100_000, 900_000, "stable", 1),
        (900_000, 1_000_000, "canary", 2),
    ]
    back = then(after, before.route)
    assert moved_slots(before.slots, back.slots) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"rules": [rule()]},
        {"key": ["header:x"]},
        {"shadows": {"v3": shadow()}},
        {"variants": variants(canary=10, stable=90)},  # other versions for the same weights
        {"variants": variants(stable=90, canary=10, new=0)},
    ],
)
def test_an_epoch_lasts_as_long_as_the_salt_and_the_split(fields: Plain) -> None:
    before = first()
    after = then(before, route(**fields))
    assert (after.epoch, after.slots) == (1, before.slots)
    assert then(after, route(**fields, salt="other")).epoch == 3


def test_a_new_salt_of_a_rollout_begins_with_whole_ranges() -> None:
    before = first()
    grown = then(before, weighing(before.route, canary=20, stable=80))
    assert len(grown.slots) == 3
    after = then(grown, replace(grown.route, salt="other"))
    assert [tuple(r) for r in after.slots] == [
        (0, 200_000, "canary", 3),
        (200_000, 1_000_000, "stable", 3),
    ]


def test_who_and_why_is_kept_with_the_revision() -> None:
    why = Origin(verb="patch", actor="bob", reason="größer", created_ms=NOON_MS, parent=1)
    assert changes.follow(first(), route(), why).origin == why


# Versions that stay warm


def version(canary: str, **fields: object) -> Route:
    """Return the route with another version of the canary."""
    split = variants(stable=90, canary=10)
    split["canary"]["version"] = canary
    return route(variants=split, **fields)


def test_a_version_that_the_route_leaves_stays_warm_for_the_rollback_window() -> None:
    after = then(first(), version("3"))
    assert after.warm == (Warm(model=NAME, version="2", until_ms=NOON_MS + HOUR_MS),)


def test_versions_stay_warm_over_later_changes_until_their_time_is_up() -> None:
    after = then(first(), version("3"))
    half = then(after, version("4"), at_ms=NOON_MS + HOUR_MS // 2)
    assert [(w.version, w.until_ms - NOON_MS) for w in half.warm] == [
        ("2", HOUR_MS),
        ("3", HOUR_MS + HOUR_MS // 2),
    ]
    late = then(half, version("4"), at_ms=NOON_MS + HOUR_MS)
    assert [w.version for w in late.warm] == ["3"]


def test_a_version_that_is_used_again_is_no_longer_just_warm() -> None:
    after = then(first(), version("3"))
    again = then(after, version("2"), at_ms=NOON_MS + 1)
    assert [w.version for w in again.warm] == ["3"]
    left_again = then(again, version("3"), at_ms=NOON_MS + 2)
    assert left_again.warm == (Warm(model=NAME, version="2", until_ms=NOON_MS + 2 + HOUR_MS),)


def test_a_version_that_a_shadow_uses_is_not_left() -> None:
    after = then(first(), version("3", shadows={"old": shadow(version="2")}))
    assert after.warm == ()


def test_what_only_a_shadow_used_does_not_stay_warm() -> None:
    mirrored = then(first(), route(shadows={"next": shadow(version="9")}))
    assert then(mirrored, route()).warm == ()


@pytest.mark.parametrize("window_s", [0, 60])
def test_the_window_is_the_new_routes_and_none_means_none(window_s: int) -> None:
    after = then(first(), version("3", rollback_window_s=window_s))
    assert [w.until_ms - NOON_MS for w in after.warm] == ([window_s * 1_000] if window_s else [])


def test_a_change_of_weights_leaves_no_version() -> None:
    before = first()
    assert then(before, weighing(before.route, canary=0, stable=100)).warm == ()


def test_after_a_promotion_the_version_before_stays_warm() -> None:
    before = first()
    after = then(before, changes.promoted(before.route))
    assert [(w.version, w.until_ms) for w in after.warm] == [("1", NOON_MS + HOUR_MS)]


# Undo, delete, restore


def test_an_undo_restores_content_and_slot_map_exactly() -> None:
    """Of three variants two give: weights alone would not find the way back."""
    start = first(variants=variants(a=50, b=30, c=20), rules=[rule("a", "r")])
    moved = then(start, weighing(start.route, a=20, b=20, c=60))
    aborted = changes.follow(moved, changes.aborted(moved.route), origin("abort"), ALWAYS)
    undone = changes.back_to(aborted, moved, origin("undo", parent=3))
    assert undone.slots == moved.slots
    assert undone.route == replace(moved.route, revision=4)
    assert (undone.origin.verb, undone.epoch, undone.generation) == ("undo", 4, 1)
    further = changes.back_to(undone, start, origin("undo"))
    assert (further.slots, further.route) == (start.slots, replace(start.route, revision=5))
    assert check(further.slots, further.route.sizes) == ""


def test_an_undo_enables_the_rules_that_an_abort_disabled() -> None:
    before = first(rules=[rule("canary")])
    aborted = then(before, changes.aborted(before.route))
    assert not aborted.route.rules[0].is_enabled
    assert changes.back_to(aborted, before, origin("undo")).route.rules[0].is_enabled


def test_an_undo_that_moves_nobody_stays_in_its_epoch() -> None:
    before = first()
    after = then(before, route(rules=[rule()]))
    assert changes.back_to(after, before, origin("undo")).epoch == 1


def test_an_undo_keeps_warm_what_it_leaves() -> None:
    before = first()
    after = then(before, version("3"))
    undone = changes.back_to(after, before, origin("undo", at_ms=NOON_MS + 1))
    assert [(w.version, w.until_ms) for w in undone.warm] == [("3", NOON_MS + 1 + HOUR_MS)]


def test_a_delete_keeps_the_content_and_the_slots_and_nothing_warm() -> None:
    before = then(first(), version("3"))
    gone = changes.deleted(before, origin("delete"))
    assert gone.is_deleted
    assert gone.route == replace(before.route, revision=3)
    assert (gone.slots, gone.generation, gone.warm) == (before.slots, 1, ())


def test_a_deleted_route_is_undone_to_what_it_was() -> None:
    before = first()
    gone = changes.deleted(before, origin("delete"))
    back = changes.back_to(gone, before, origin("undo"))
    assert not back.is_deleted
    assert (back.route, back.slots) == (replace(before.route, revision=3), before.slots)
    assert back.epoch == 1


def test_a_name_may_be_used_again_after_a_delete_with_the_next_number() -> None:
    before = replace(first(), generation=4)
    gone = changes.deleted(before, origin("delete"))
    anew = changes.first(route(variants=variants(only=100)), origin(), after=gone)
    assert (anew.position, anew.epoch, anew.is_deleted) == ((4, 3), 3, False)
    assert [tuple(r) for r in anew.slots] == [(0, 1_000_000, "only", 3)]


@pytest.mark.parametrize(
    ("held", "stored", "expected"),
    [((1, 7), (0, 0), (2, 8)), ((1, 7), (1, 3), (2, 8)), ((2, 7), (5, 9), (6, 10))],
)
def test_a_restore_is_above_what_is_held_and_what_is_stored(
    held: tuple[int, int], stored: tuple[int, int], expected: tuple[int, int]
) -> None:
    generation, number = held
    kept = first()
    kept = replace(kept, route=replace(kept.route, revision=number), generation=generation)
    made = changes.restored(kept, stored, origin("restore"))
    assert made.position == expected
    assert (made.slots, made.epoch) == (kept.slots, kept.epoch)
    assert made.origin.verb == "restore"


# Experiments


ANOTHER_CANARY = {"canary": {"model": "digits", "version": "7", "weight": 10}}


def experiment(**fields: object) -> Revision:
    return first(kind=EXPERIMENT, **fields)


@pytest.mark.parametrize(
    ("fields", "permission"),
    [
        ({"variants": variants(stable=89.9999, canary=10.0001)}, Permission()),
        ({"variants": variants(stable=90, canary=10, third=0)}, Permission()),
        ({"variants": variants(stable=90, canary=10) | ANOTHER_CANARY}, Permission()),
        ({"salt": "other"}, Permission()),
        ({"salt": "other"}, MAY_CARRY_OVER),  # nothing is carried over to another salt
    ],
)
def test_the_split_of_an_experiment_is_locked(fields: Plain, permission: Permission) -> None:
    before = experiment()
    with pytest.raises(ExperimentLocked, match="'digits' is an experiment: its weights and"):
        changes.follow(before, route(kind=EXPERIMENT, **fields), origin(), permission)


@pytest.mark.parametrize(
    "fields",
    [
        {"rules": [rule()]},
        {"shadows": {"v3": shadow()}},
        {"fallback": {"to": "stable"}},
        {"rollback_window_s": 1},
    ],
)
def test_all_else_of_an_experiment_may_change(fields: Plain) -> None:
    after = then(experiment(), route(kind=EXPERIMENT, **fields))
    assert (after.route.revision, after.epoch, after.carryover) == (2, 1, ())


def test_weights_of_a_rollout_and_of_what_becomes_or_ends_an_experiment_are_free() -> None:
    moved = {"variants": variants(stable=50, canary=50)}
    assert then(first(), route(**moved)).route.sizes["canary"] == 500_000
    assert then(first(), route(kind=EXPERIMENT, **moved)).carryover == ()
    assert then(experiment(), route(**moved)).carryover == ()


def test_a_reseed_draws_everybody_anew_in_a_new_epoch() -> None:
    before = replace(experiment(), carryover=(1,))
    moved = weighing(before.route, stable=50, canary=50)
    after = changes.follow(before, moved, origin(), Permission(new_salt="digits-2"))
    assert (after.route.salt, after.epoch, after.carryover) == ("digits-2", 2, ())
    assert [tuple(r) for r in after.slots] == [
        (0, 500_000, "canary", 2),
        (500_000, 1_000_000, "stable", 2),
    ]


def test_a_carry_over_keeps_the_salt_and_is_on_the_record_for_ever() -> None:
    before = experiment()
    grown = changes.follow(
        before, weighing(before.route, stable=80, canary=20), origin(), MAY_CARRY_OVER
    )
    assert (grown.route.salt, grown.epoch, grown.carryover) == (NAME, 2, (2,))
    assert moved_slots(before.slots, grown.slots) == 100_000
    patched = then(grown, replace(grown.route, missing_key="stable"))
    assert patched.carryover == (2,)
    again = changes.follow(patched, before.route, origin(), MAY_CARRY_OVER)
    assert again.carryover == (2, 4)


def test_promote_and_abort_need_no_permission_of_the_operator() -> None:
    before = experiment()
    for verb in (changes.aborted, changes.promoted):
        after = changes.follow(before, verb(before.route), origin(), ALWAYS)
        assert after.route.sizes == {"stable": 1_000_000, "canary": 0}
        assert after.carryover == (2,)


def test_an_undo_of_an_experiments_weights_is_a_carry_over_too() -> None:
    before = experiment()
    grown = changes.follow(
        before, weighing(before.route, stable=80, canary=20), origin(), MAY_CARRY_OVER
    )
    undone = changes.back_to(grown, before, origin("undo"))
    assert undone.carryover == (2, 3)
    # The split is that of revision 1 again, and still people have seen both.
    assert changes.back_to(undone, before, origin("undo")).carryover == (2, 3)


def test_an_undo_of_a_reseed_returns_to_the_old_salt_and_what_was_known_of_it() -> None:
    before = replace(experiment(), carryover=(1,))
    reseeded = changes.follow(
        before,
        weighing(before.route, stable=50, canary=50),
        origin(),
        Permission(new_salt="digits-2"),
    )
    undone = changes.back_to(reseeded, before, origin("undo"))
    assert (undone.route.salt, undone.slots, undone.epoch) == (NAME, before.slots, 3)
    assert undone.carryover == (1,)


# Merge patches

RFC_7396: list[tuple[Any, Any, Any]] = [  # Any: JSON
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("before", "patch", "after"), RFC_7396)
def test_the_examples_of_the_rfc_hold_for_a_member_of_a_document(
    before: Any, patch: Any, after: Any
) -> None:
    assert changes.merge({"x": before, "y": 1}, {"x": patch}) == {"x": after, "y": 1}
    if isinstance(before, dict) and isinstance(patch, dict):
        assert changes.merge(before, patch) == after


def test_null_removes_a_member_and_removing_nothing_is_no_error() -> None:
    assert changes.merge({"a": "foo", "b": 1}, {"a": None, "c": None}) == {"b": 1}


def test_a_merge_leaves_what_was_there_as_it_was() -> None:
    before = {"a": {"b": {"c": 1}}, "d": [1]}
    kept = deepcopy(before)
    merged = changes.merge(before, {"a": {"b": {"c": 2}}, "d": [2]})
    assert before == kept
    assert merged == {"a": {"b": {"c": 2}}, "d": [2]}


def test_a_patch_of_weights_is_a_route_again() -> None:
    before = document.write(route(rules=[rule()]))
    patch = {"variants": {"stable": {"weight": 80}, "canary": {"weight": 20}}, "rules": None}
    assert document.read(changes.merge(before, patch), name=NAME) == route(
        **plain(variants=variants(stable=80, canary=20))
    )


# How many move


def test_of_a_new_route_everybody_moves() -> None:
    assert changes.moved_share(None, first()) == 100


@pytest.mark.parametrize(
    ("weights", "share"),
    [
        ({"stable": 90, "canary": 10}, "0"),
        ({"stable": 80, "canary": 20}, "10"),
        ({"stable": 0, "canary": 100}, "90"),
        ({"stable": 80, "canary": 10, "new": 10}, "10"),
        ({"stable": 89.9999, "canary": 10.0001}, "0.0001"),
    ],
)
def test_half_the_sum_of_the_changes_moves(weights: dict[str, float], share: str) -> None:
    before = first()
    after = then(before, route(variants=variants(**weights)))
    assert changes.moved_share(before, after) == Decimal(share)


def test_a_promotion_moves_the_canarys_keys_and_gives_all_others_another_version() -> None:
    before = first()
    after = then(before, changes.promoted(before.route))
    assert changes.moved_share(before, after) == 10
    assert changes.moved_share(before, after, versions=True) == 90


def test_a_flip_back_to_variants_of_the_same_version_moves_nobodys_version() -> None:
    twins = variants(a=50, b=50)
    twins["b"]["version"] = twins["a"]["version"]
    before = first(variants=twins)
    after = then(before, weighing(before.route, a=100, b=0))
    assert changes.moved_share(before, after) == 50
    assert changes.moved_share(before, after, versions=True) == 0


def test_the_share_is_that_of_all_slots_counted_one_by_one() -> None:
    revision = first(variants=variants(a=40, b=30, c=30))
    for weights in ((20, 50, 30), (33.3333, 33.3333, 33.3334), (0, 100, 0), (1, 2, 97)):
        new = weighing(revision.route, **dict(zip("abc", weights, strict=True)))
        before, revision = revision, then(revision, new)
        moved = int((every_owner(before.slots) != every_owner(revision.slots)).sum())
        assert changes.moved_share(before, revision) == Decimal(moved) / 10_000


def test_under_another_salt_those_move_who_meet_another_variant() -> None:
    before = first(variants=variants(a=50, b=30, c=20))
    after = then(before, route(salt="other", variants=variants(a=50, b=30, c=20)))
    share = changes.moved_share(before, after)
    assert share == Decimal(62)  # 100 - (0.25 + 0.09 + 0.04) * 100
    one, other = (CompiledRoute.of(revision, NOON_MS) for revision in (before, after))
    keys = [b"user-%d" % n for n in range(20_000)]
    moved = sum(one.decide(k, float).variant != other.decide(k, float).variant for k in keys)
    assert moved / len(keys) * 100 == pytest.approx(float(share), abs=1)
