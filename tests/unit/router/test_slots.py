"""The key-to-slot function."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from router.slots import SLOTS, KeySpace
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


def test_the_slot_is_the_high_word_of_the_hash_times_the_slots() -> None:
    space = KeySpace("exp1")
    assert space.slot(b"user-0") == (space.hash(b"user-0") * SLOTS) >> 64
    assert space.hash(b"user-0") < 1 << 64
