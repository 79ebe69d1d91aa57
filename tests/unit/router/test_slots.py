"""The key-to-slot function and the ranges of slots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from router.slots import SLOTS, KeySpace, SlotMap
from tests.golden import make_slots

GOLDEN = Path(__file__).parents[2] / "golden" / "slots.json"


@pytest.mark.parametrize(
    ("key", "slot"), [("user-0", 292417), ("user-1", 823415), ("é", 962370), ("", 483010)]
)
def test_the_published_vectors_of_salt_exp1_hold(key: str, slot: int) -> None:
    assert KeySpace("exp1").slot(key.encode()) == slot


def test_every_golden_vector_holds() -> None:
    vectors = json.loads(GOLDEN.read_text(encoding="utf-8"))["vectors"]
    assert len(vectors) >= 1_000
    spaces = {salt: KeySpace(salt) for salt, _, _ in vectors}
    wrong = [
        (salt, key, slot)
        for salt, key, slot in vectors
        if spaces[salt].slot(bytes.fromhex(key)) != slot
    ]
    assert wrong == []


def test_the_golden_file_is_what_its_generator_writes() -> None:
    assert GOLDEN.read_text(encoding="utf-8") == make_slots.text()


def test_the_golden_file_holds_the_published_vectors() -> None:
    vectors = json.loads(GOLDEN.read_text(encoding="utf-8"))["vectors"]
    for key, slot in [("user-0", 292417), ("user-1", 823415), ("é", 962370), ("", 483010)]:
        assert ["exp1", key.encode().hex(), slot] in vectors


def test_keys_are_taken_byte_for_byte() -> None:
    space = KeySpace("exp1")
    variations = ["user-0", "User-0", "user-0 ", " user-0", "user-0\0", "é", "e\u0301"]
    assert len({space.slot(text.encode()) for text in variations}) == len(variations)


def test_asking_for_one_key_does_not_change_the_next() -> None:
    space = KeySpace("exp1")
    first = space.slot(b"user-0")
    space.slot(b"something else")
    assert space.slot(b"user-0") == first


def test_salt_and_key_are_kept_apart() -> None:
    assert KeySpace("ab").slot(b"c") != KeySpace("a").slot(b"bc")


def test_owners_have_consecutive_ranges() -> None:
    owners = SlotMap([900_000, 0, 99_999, 1])
    assert [owners.owner(s) for s in (0, 899_999, 900_000, 999_998, 999_999)] == [0, 0, 2, 2, 3]


@pytest.mark.parametrize("sizes", [[0, SLOTS], [SLOTS, 0], [0, 0, SLOTS, 0]])
def test_an_owner_of_no_slots_owns_none_wherever_it_stands(sizes: list[int]) -> None:
    owners = SlotMap(sizes)
    everything = sizes.index(SLOTS)
    assert {owners.owner(slot) for slot in (0, 1, SLOTS // 2, SLOTS - 1)} == {everything}


@pytest.mark.parametrize("sizes", [[], [SLOTS - 1], [SLOTS, 1], [SLOTS + 1, -1], [0]])
def test_sizes_that_do_not_make_up_all_slots_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="do not make 1000000"):
        SlotMap(sizes)
