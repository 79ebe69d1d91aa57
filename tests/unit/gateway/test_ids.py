"""Request ids: valid UUIDv7 that sort by time."""

from __future__ import annotations

import time
import uuid

from hypothesis import given
from hypothesis import strategies as st

from gateway import ids

STARTED_MS = 1_767_225_600_000


@given(st.integers(0, (1 << 48) - 1), st.integers(0, (1 << 74) - 1))
def test_an_id_is_a_version_seven_uuid_that_holds_its_time_and_randomness(
    unix_ms: int, random_bits: int
) -> None:
    found = uuid.UUID(bytes=ids.uuid7(unix_ms, random_bits))
    assert found.version == 7
    assert found.variant == uuid.RFC_4122
    assert found.int >> 80 == unix_ms
    assert (found.int >> 64 & 0xFFF) << 62 | found.int & (1 << 62) - 1 == random_bits


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.integers(0, (1 << 74) - 1)), min_size=2))
def test_ids_sort_by_time(parts: list[tuple[int, int]]) -> None:
    made = sorted(ids.uuid7(unix_ms, random_bits) for unix_ms, random_bits in parts)
    assert [int.from_bytes(i[:6], "big") for i in made] == sorted(ms for ms, _ in parts)


def test_the_bytes_of_an_id_are_those_that_readers_of_the_log_know() -> None:
    assert ids.uuid7(0x0123_4567_89AB, 0).hex() == "0123456789ab70008000000000000000"
    assert ids.uuid7(0, (1 << 74) - 1).hex() == "0000000000007fffbfffffffffffffff"
    assert ids.uuid7(1, 0x123 << 62 | 0x456).hex() == "00000000000171238000000000000456"


def test_an_id_of_a_given_moment_carries_it() -> None:
    assert ids.new_id(STARTED_MS)[:6] == STARTED_MS.to_bytes(6, "big")


def test_a_time_beyond_48_bits_wraps_and_breaks_no_field() -> None:
    assert uuid.UUID(bytes=ids.uuid7(1 << 48, 0)).version == 7


def test_new_ids_differ_and_carry_the_present() -> None:
    before = time.time_ns() // 1_000_000
    made = {ids.new_id() for _ in range(1_000)}
    after = time.time_ns() // 1_000_000
    assert len(made) == 1_000
    assert all(before <= int.from_bytes(i[:6], "big") <= after for i in made)


def test_the_text_form_is_that_of_the_standard_library() -> None:
    made = ids.new_id()
    assert ids.as_text(made) == str(uuid.UUID(bytes=made))
