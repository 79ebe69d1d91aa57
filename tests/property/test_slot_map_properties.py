"""The stored slot map: exact shares, least movement, and a way back to the same people.

Two kinds of evidence. Over the whole slot space, against an oracle that keeps an owner and a stamp
for every single slot and sorts them; and over 100 000 keys, hashed as the router does.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from router.slot_map import COMPACTED_OVER, SlotMap, SlotRange, change, check, lay_out, moved_slots
from router.slots import SLOTS
from tests.support.slot_maps import (
    Ranges,
    SlotBySlot,
    Slots,
    after_all,
    every_owner,
    least_movement,
    moves,
    owners_of,
    parts_of,
    sizes_of,
    slots_of,
)

KEYS = 100_000
SALTS = 20
ARMS = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def salted_slots() -> list[Slots]:
    """The slots of 100 000 fixed keys under each of 20 salts."""
    texts = [b"user-%d" % n for n in range(KEYS)]
    return [slots_of(f"salt-{n}", texts) for n in range(SALTS)]


PAIR = ("canary", "stable")


@st.composite
def splits(draw: st.DrawFn, names: Sequence[str] = ARMS) -> dict[str, int]:
    """Draw sizes for the names that add up to all slots, in coarse or in single slots."""
    unit = draw(st.sampled_from([1, 10_000, 250_000]))
    points = st.integers(0, SLOTS // unit).map(lambda n: n * unit)
    cuts = sorted(draw(st.lists(points, min_size=len(names) - 1, max_size=len(names) - 1)))
    edges = [0, *cuts, SLOTS]
    return {name: b - a for name, (a, b) in zip(names, pairwise(edges), strict=True)}


sequences = st.lists(splits(), min_size=2, max_size=8)


SPLITS = (
    {"stable": 90.0, "canary": 10.0},
    {"stable": 99.0, "canary": 1.0},
    {"a": 50.0, "b": 30.0, "c": 20.0},
)


def goodness_of_fit(ranges: Ranges, sizes: Mapping[str, int], slots: Slots) -> float:
    owners = owners_of(ranges, slots)
    observed = [int((owners == name).sum()) for name in sizes]
    expected = [len(slots) * size / SLOTS for size in sizes.values()]
    return float(stats.chisquare(observed, expected).pvalue)


def test_over_twenty_salts_many_keys_have_the_shares_of_the_weights(
    salted_slots: list[Slots],
) -> None:
    tails = []
    for weights in SPLITS:
        sizes = sizes_of(weights)
        ranges = lay_out(sizes, 1)
        tails += [goodness_of_fit(ranges, sizes, slots) for slots in salted_slots]
    assert len(tails) == 60
    assert min(tails) > 0.0005
    assert sum(tail < 0.01 for tail in tails) <= 1


def test_shares_are_as_good_when_the_map_is_in_many_pieces(salted_slots: list[Slots]) -> None:
    sizes = sizes_of({"a": 50, "b": 30, "c": 20})
    rng, steps = Random(3), [sizes]
    for _ in range(60):
        edges = [0, *sorted(rng.sample(range(1, SLOTS), 2)), SLOTS]
        steps.append({n: b - a for n, (a, b) in zip("abc", pairwise(edges), strict=True)})
    ranges = after_all(*steps, sizes)
    assert len(ranges) > 20
    tails = [goodness_of_fit(ranges, sizes, slots) for slots in salted_slots]
    assert min(tails) > 0.0005
    assert sum(tail < 0.01 for tail in tails) <= 1


def test_ten_percent_of_many_keys_is_ten_percent(salted_slots: list[Slots]) -> None:
    ranges = lay_out(sizes_of({"stable": 90, "canary": 10}), 1)
    share = float((owners_of(ranges, salted_slots[0]) == "canary").mean())
    assert 0.0969 <= share <= 0.1031


def test_one_percent_of_few_keys_is_binomial_over_many_salts() -> None:
    """200 keys at 1 %: two on average, and not always two: nothing is rounded per salt."""
    texts = [b"k%d" % n for n in range(200)]
    ranges = lay_out(sizes_of({"stable": 99, "canary": 1}), 1)
    found = [
        int((owners_of(ranges, slots_of(f"s{n}", texts)) == "canary").sum()) for n in range(1_000)
    ]
    assert 0.009 <= sum(found) / (200 * len(found)) <= 0.011
    # Kolmogorov-Smirnov at the integers, where a discrete distribution has all its steps.
    steps = np.arange(201)
    empirical = np.searchsorted(np.sort(found), steps, side="right") / len(found)
    distance = float(np.abs(empirical - stats.binom.cdf(steps, 200, 0.01)).max())
    assert float(stats.kstwo.sf(distance, len(found))) > 0.001


@pytest.mark.parametrize("slots", [1, 2, 99])
def test_the_finest_weights_are_not_rounded_to_nothing(slots: int) -> None:
    sizes = {"canary": slots, "stable": SLOTS - slots}
    assert int((every_owner(lay_out(sizes, 1)) == "canary").sum()) == slots
    grown = after_all({"canary": 0, "stable": SLOTS}, sizes)
    assert int((every_owner(grown) == "canary").sum()) == slots


# In name order the canary lies below the stable variant, or above it: which of its slots are the
# newest and which the highest differs between the two.
PAIRS = [("canary", "stable"), ("zcanary", "stable")]


@pytest.mark.parametrize(("canary", "stable"), PAIRS)
def test_from_ten_to_twenty_percent_exactly_ten_move_and_nobody_leaves_the_canary(
    canary: str, stable: str, salted_slots: list[Slots]
) -> None:
    ten, twenty = sizes_of({canary: 10, stable: 90}), sizes_of({canary: 20, stable: 80})
    before, after = after_all(ten), after_all(ten, twenty)
    assert moved_slots(before, after) == 100_000
    assert moves(before, after) == {(stable, canary)}
    was, now = owners_of(before, salted_slots[0]), owners_of(after, salted_slots[0])
    assert 0.097 <= float((was != now).mean()) <= 0.103
    assert not ((was == canary) & (now != canary)).any()


@pytest.mark.parametrize(("canary", "stable"), PAIRS)
def test_there_and_back_everybody_is_where_they_were(canary: str, stable: str) -> None:
    ten, twenty = sizes_of({canary: 10, stable: 90}), sizes_of({canary: 20, stable: 80})
    before = after_all(ten)
    assert moved_slots(before, after_all(ten, twenty, ten)) == 0
    assert moved_slots(after_all(ten, twenty), after_all(ten, twenty, ten, twenty)) == 0


def test_a_release_from_the_top_would_pass_for_minimal_and_swap_the_canary() -> None:
    """Why newest first: the other rule moves as few at each step, and still ends elsewhere."""
    ten, twenty = sizes_of({"zcanary": 10, "stable": 90}), sizes_of({"zcanary": 20, "stable": 80})
    from_the_top = SlotBySlot(ten, is_newest_first=False)
    start = from_the_top.owners.copy()
    for revision, sizes in enumerate((twenty, ten), start=2):
        was = from_the_top.owners.copy()
        from_the_top.change(sizes, revision)
        assert int((was != from_the_top.owners).sum()) == 100_000
    assert int((start != from_the_top.owners).sum()) == 200_000
    back = after_all(ten, twenty, ten)
    assert (every_owner(back) == start).all()
    assert not (every_owner(back) == from_the_top.owners).all()


@settings(max_examples=60)
@given(
    history=st.lists(splits(), min_size=1, max_size=5),
    giver=st.integers(0, 3),
    part=st.integers(0, SLOTS),
    wishes=st.lists(st.integers(0, 100), min_size=3, max_size=3),
)
def test_what_one_variant_gave_away_it_gets_back_slot_for_slot(
    history: list[dict[str, int]], giver: int, part: int, wishes: list[int]
) -> None:
    """From any map with any past, take from one for one or more others, then undo the weights."""
    before = after_all(*history)
    start = history[-1]
    name, others = ARMS[giver], [arm for arm in ARMS if arm != ARMS[giver]]
    given = min(part, start[name] - 1)  # giving all may make one owner of everything: compacted
    if given <= 0 or not any(wishes):
        return
    away = dict(start)
    for other, wish in zip(others, wishes, strict=True):
        away[other] += given * wish // sum(wishes)
    away[name] = SLOTS - sum(away[other] for other in others)
    there = change(before, away, 100)
    back = change(there, start, 101)
    assert moved_slots(before, back) == 0
    assert moved_slots(there, change(back, away, 102)) == 0


@pytest.mark.parametrize("peak", [20, 50, 99])
def test_a_ramp_up_by_steps_comes_down_by_the_same_people(peak: int) -> None:
    up = [sizes_of({"zcanary": w, "stable": 100 - w}) for w in range(1, peak + 1)]
    ranges, seen = lay_out(up[0], 1), [lay_out(up[0], 1)]
    for revision, sizes in enumerate(up[1:], start=2):
        ranges = change(ranges, sizes, revision)
        seen.append(ranges)
    for revision, (sizes, then) in enumerate(
        zip(reversed(up[:-1]), reversed(seen[:-1]), strict=True), start=peak + 1
    ):
        ranges = change(ranges, sizes, revision)
        assert moved_slots(then, ranges) == 0


TABLE = [
    ("90/10 -> 80/20", ("stable", "canary"), (90, 10), ("stable", "canary"), (80, 20), 100_000),
    ("9:1 -> 9:1:1", ("a", "b"), (9, 1), ("a", "b", "c"), (9, 1, 1), 90_909),
    ("90/10 -> 80/10/10", ("a", "b"), (90, 10), ("a", "b", "c"), (80, 10, 10), 100_000),
    ("50/30/20 -> 40/30/30", "abc", (50, 30, 20), "abc", (40, 30, 30), 100_000),
    ("50/30/20 -> 60/40/0", "abc", (50, 30, 20), "abc", (60, 40, 0), 200_000),
    ("50/30/20 -> 60/40", "abc", (50, 30, 20), "ab", (60, 40), 200_000),
    ("1/99 -> 5/95", "ab", (1, 99), "ab", (5, 95), 40_000),
    ("50/50 -> 50/50", "ab", (50, 50), "ab", (50, 50), 0),
]


@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_the_table_of_movement(
    row: tuple[str, Sequence[str], Sequence[int], Sequence[str], Sequence[int], int],
    salted_slots: list[Slots],
) -> None:
    _, old_names, old_parts, new_names, new_parts, expected = row
    before_sizes, after_sizes = parts_of(old_names, old_parts), parts_of(new_names, new_parts)
    before, after = after_all(before_sizes), after_all(before_sizes, after_sizes)
    assert least_movement(before_sizes, after_sizes) == expected
    assert moved_slots(before, after) == expected
    assert int((every_owner(before) != every_owner(after)).sum()) == expected
    was, now = owners_of(before, salted_slots[0]), owners_of(after, salted_slots[0])
    assert float((was != now).mean()) == pytest.approx(expected / SLOTS, abs=0.003)


def test_a_third_arm_at_nine_to_one_to_one_moves_nine_point_one_percent() -> None:
    before_sizes, after_sizes = parts_of("ab", (9, 1)), parts_of("abc", (9, 1, 1))
    moved = moved_slots(after_all(before_sizes), after_all(before_sizes, after_sizes))
    assert round(moved / SLOTS * 100, 1) == 9.1


def test_an_arm_is_added_and_removed_without_a_move_between_the_others() -> None:
    two, three = sizes_of({"a": 90, "b": 10}), sizes_of({"a": 80, "b": 10, "c": 10})
    before, between, after = after_all(two), after_all(two, three), after_all(two, three, two)
    assert moves(before, between) == {("a", "c")}
    assert moves(between, after) == {("c", "a")}
    assert moved_slots(before, after) == 0


@settings(max_examples=150)
@given(sequences)
def test_every_change_moves_half_the_sum_of_the_changes_and_only_from_shrinking_to_growing(
    sequence: list[dict[str, int]],
) -> None:
    ranges = lay_out(sequence[0], 1)
    for revision, (old, new) in enumerate(pairwise(sequence), start=2):
        before, ranges = ranges, change(ranges, new, revision)
        assert check(ranges, new) == ""
        assert moved_slots(before, ranges) == least_movement(old, new)
        gone = {(r.owner, s.owner) for r, s in overlapping(before, ranges) if r.owner != s.owner}
        assert all(new[giver] < old[giver] and new[taker] > old[taker] for giver, taker in gone)


def overlapping(before: Ranges, after: Ranges) -> list[tuple[SlotRange, SlotRange]]:
    """Pair each old range with each new one that shares slots with it."""
    return [(r, s) for r in before for s in after if max(r.start, s.start) < min(r.end, s.end)]


@settings(max_examples=12)
@given(st.lists(splits(), min_size=2, max_size=5))
def test_ranges_do_what_the_rules_do_to_every_slot_on_its_own(
    sequence: list[dict[str, int]],
) -> None:
    oracle, ranges = SlotBySlot(sequence[0]), lay_out(sequence[0], 1)
    for revision, sizes in enumerate(sequence[1:], start=2):
        was = oracle.owners.copy()
        oracle.change(sizes, revision)
        before, ranges = ranges, change(ranges, sizes, revision)
        assert (every_owner(ranges) == oracle.owners).all()
        assert moved_slots(before, ranges) == int((was != oracle.owners).sum())


@settings(max_examples=60)
@given(splits(), splits(names=("b", "c", "e")))
def test_variants_may_come_and_go_in_one_change(old: dict[str, int], new: dict[str, int]) -> None:
    before, after = after_all(old), after_all(old, new)
    assert check(after, new) == ""
    assert {r.owner for r in after} == {name for name, size in new.items() if size}
    assert moved_slots(before, after) == least_movement(old, new)


@given(splits())
def test_the_same_weights_again_change_nothing(sizes: dict[str, int]) -> None:
    ranges = after_all(sizes)
    assert change(ranges, sizes, 9) == ranges


@pytest.mark.parametrize("seed", [1, 2])
def test_five_hundred_random_changes_leave_a_whole_map_of_few_ranges(seed: int) -> None:
    rng = Random(seed)
    sizes = dict.fromkeys(ARMS, SLOTS // 4)
    ranges, most = lay_out(sizes, 1), 0
    for revision in range(2, 502):
        cuts = sorted(rng.randrange(SLOTS + 1) for _ in range(3))
        before, old = ranges, sizes
        sizes = {arm: b - a for arm, (a, b) in zip(ARMS, pairwise([0, *cuts, SLOTS]), strict=True)}
        ranges = change(ranges, sizes, revision)
        assert check(ranges, sizes) == ""
        assert [r.start for r in ranges] == [0, *(r.end for r in ranges[:-1])]
        assert sum(r.end - r.start for r in ranges) == ranges[-1].end == SLOTS
        assert moved_slots(before, ranges) == least_movement(old, sizes)
        most = max(most, len(ranges))
    assert 4 < most <= 500


def test_a_ramp_of_a_hundred_steps_leaves_at_most_a_hundred_ranges() -> None:
    ranges = after_all(*(sizes_of({"stable": 100 - w, "canary": w}) for w in range(1, 100)))
    assert len(ranges) <= 100


@settings(max_examples=40)
@given(sequences, st.lists(st.integers(0, SLOTS - 1), max_size=40))
def test_a_lookup_finds_the_range_that_holds_the_slot(
    sequence: list[dict[str, int]], probes: list[int]
) -> None:
    ranges = after_all(*sequence)
    lookup = SlotMap(ranges, {arm: arm.upper() for arm in ARMS})
    edges = [slot for r in ranges for slot in (r.start, r.end - 1)]
    for slot in (*probes, *edges):
        holder = ranges[bisect_right([r.start for r in ranges], slot) - 1]
        assert holder.start <= slot < holder.end
        assert lookup.owner(slot) == holder.owner.upper()


def test_two_experiments_assign_the_same_keys_independently(salted_slots: list[Slots]) -> None:
    first, second = sizes_of({"a": 50, "b": 30, "c": 20}), sizes_of({"x": 90, "y": 10})
    one = owners_of(lay_out(first, 1), salted_slots[0])
    two = owners_of(lay_out(second, 1), salted_slots[1])
    table = [[int(((one == a) & (two == b)).sum()) for b in second] for a in first]
    assert sum(map(sum, table)) == KEYS
    assert float(stats.chi2_contingency(table).pvalue) > 0.001
    same_salt = owners_of(lay_out(second, 1), salted_slots[0])
    dependent = [[int(((one == a) & (same_salt == b)).sum()) for b in second] for a in first]
    assert min(min(row) for row in dependent) == 0  # the salt is what makes them independent


@settings(max_examples=60)
@given(st.lists(splits(PAIR), min_size=1, max_size=6))
def test_an_abort_and_the_same_weights_again_return_the_same_slots(
    sequence: list[dict[str, int]],
) -> None:
    """Two variants: with more, several givers may take each other's slots back."""
    ranges = after_all(*sequence)
    aborted = change(ranges, {"stable": SLOTS, "canary": 0}, 98)
    again = change(aborted, sequence[-1], 99)
    assert moved_slots(ranges, again) == 0


def test_whoever_owns_everything_in_too_many_ranges_owns_it_in_one() -> None:
    ranges = lay_out({"a": SLOTS, "b": 0}, 1)
    for n in range(COMPACTED_OVER + 1):
        share = (n + 1) * 1_000
        ranges = change(ranges, {"a": SLOTS - share, "b": share}, n + 2)
    assert len(change(ranges, {"a": 0, "b": SLOTS}, 99)) == 1
    few = change(lay_out({"a": 9_000, "b": SLOTS - 9_000}, 1), {"a": 0, "b": SLOTS}, 2)
    assert [r.owner for r in few] == ["b", "b"]


@settings(max_examples=60)
@given(sequences)
def test_no_two_neighbours_could_be_merged(sequence: list[dict[str, int]]) -> None:
    ranges = after_all(*sequence)
    assert all((r.owner, r.revision) != (s.owner, s.revision) for r, s in pairwise(ranges))
