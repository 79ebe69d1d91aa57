"""The slot map by example: who is laid out where, who gives what first, and what is no map."""

from __future__ import annotations

import pytest

from router.slot_map import SlotMap, SlotRange, change, check, lay_out
from router.slots import SLOTS
from tests.support.slot_maps import after_all


def test_a_new_route_is_laid_out_in_the_order_of_the_names_from_the_lowest_slot_up() -> None:
    sizes = {"stable": 850_000, "canary": 100_000, "baseline": 50_000, "none": 0}
    assert lay_out(sizes, 7) == (
        SlotRange(0, 50_000, "baseline", 7),
        SlotRange(50_000, 150_000, "canary", 7),
        SlotRange(150_000, SLOTS, "stable", 7),
    )


@pytest.mark.parametrize("owner", ["a", "b", "c"])
def test_an_owner_of_no_slots_owns_none_wherever_its_name_stands(owner: str) -> None:
    sizes = {name: SLOTS if name == owner else 0 for name in ("a", "b", "c")}
    ranges = lay_out(sizes, 1)
    assert ranges == (SlotRange(0, SLOTS, owner, 1),)
    owners = SlotMap(ranges, {name: name for name in sizes})
    assert {owners.owner(slot) for slot in (0, 1, SLOTS // 2, SLOTS - 1)} == {owner}


def test_growing_variants_take_freed_slots_in_the_order_of_their_names() -> None:
    ranges = after_all({"m": SLOTS}, {"m": 700_000, "z": 100_000, "b": 200_000})
    assert [(r.start, r.end, r.owner, r.revision) for r in ranges] == [
        (0, 700_000, "m", 1),
        (700_000, 900_000, "b", 2),
        (900_000, SLOTS, "z", 2),
    ]


def test_newest_slots_go_first_and_of_equally_new_ones_the_highest() -> None:
    start = (
        SlotRange(0, 100_000, "b", 5),
        SlotRange(100_000, 300_000, "a", 1),
        SlotRange(300_000, 400_000, "b", 9),
        SlotRange(400_000, 500_000, "a", 1),
        SlotRange(500_000, SLOTS, "b", 2),
    )
    sizes = {"a": 450_000, "b": 550_000}
    assert change(start, sizes, 10) == (
        SlotRange(0, 50_000, "b", 5),
        SlotRange(50_000, 100_000, "a", 10),
        SlotRange(100_000, 300_000, "a", 1),
        SlotRange(300_000, 400_000, "a", 10),
        SlotRange(400_000, 500_000, "a", 1),
        SlotRange(500_000, SLOTS, "b", 2),
    )


def test_of_equally_new_slots_the_highest_go_and_the_lowest_freed_are_taken_first() -> None:
    start = (
        SlotRange(0, 100_000, "b", 1),
        SlotRange(100_000, 400_000, "a", 1),
        SlotRange(400_000, 500_000, "b", 1),
        SlotRange(500_000, SLOTS, "a", 1),
    )
    sizes = {"a": 750_000, "b": 50_000, "c": 100_000, "d": 100_000}
    assert change(start, sizes, 2) == (
        SlotRange(0, 50_000, "b", 1),
        SlotRange(50_000, 100_000, "c", 2),  # of b's, whose upper range was all given before
        SlotRange(100_000, 400_000, "a", 1),
        SlotRange(400_000, 450_000, "c", 2),
        SlotRange(450_000, 500_000, "d", 2),
        SlotRange(500_000, 950_000, "a", 1),
        SlotRange(950_000, SLOTS, "d", 2),
    )


def test_neighbours_of_one_owner_and_stamp_merge() -> None:
    ranges = after_all({"a": SLOTS}, {"a": 500_000, "b": 300_000, "c": 200_000})
    merged = change(ranges, {"a": 500_000, "d": 500_000}, 3)
    assert merged == (SlotRange(0, 500_000, "a", 1), SlotRange(500_000, SLOTS, "d", 3))


@pytest.mark.parametrize(
    ("ranges", "sizes"),
    [
        ([], {"a": SLOTS}),
        ([(0, SLOTS - 1, "a")], {"a": SLOTS}),
        ([(1, SLOTS, "a")], {"a": SLOTS}),
        ([(0, SLOTS + 1, "a")], {"a": SLOTS + 1}),
        ([(0, 10, "a"), (11, SLOTS, "b")], {"a": 10, "b": SLOTS - 11}),
        ([(0, 10, "a"), (9, SLOTS, "b")], {"a": 10, "b": SLOTS - 9}),
        ([(0, 10, "a"), (10, 10, "c"), (10, SLOTS, "b")], {"a": 10, "b": SLOTS - 10}),
        ([(10, SLOTS, "b"), (0, 10, "a")], {"a": 10, "b": SLOTS - 10}),
        ([(0, 10, "a"), (10, SLOTS, "b")], {"a": 11, "b": SLOTS - 11}),
        ([(0, 10, "a"), (10, SLOTS, "b")], {"b": SLOTS}),
        ([(0, SLOTS, "b")], {"a": 10, "b": SLOTS - 10}),
        ([(0, SLOTS, "b")], {"a": SLOTS}),
    ],
)
def test_a_map_with_a_gap_an_overlap_or_a_wrong_total_is_named(
    ranges: list[tuple[int, int, str]], sizes: dict[str, int]
) -> None:
    assert check([SlotRange(start, end, owner, 1) for start, end, owner in ranges], sizes)


def test_a_sound_map_has_nothing_to_name_and_zero_weights_need_no_range() -> None:
    sizes = {"a": 10, "b": SLOTS - 10, "c": 0}
    assert check(lay_out(sizes, 1), sizes) == ""
    assert check([SlotRange(0, 10, "a", 1), SlotRange(10, SLOTS, "b", 3)], sizes) == ""
