"""Arenas: who may free a slot, and that memory goes when it is not used."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from gateway.workers.frames import INLINE, FrameError
from gateway.workers.tensors_shared import KEPT_BYTES, Arena, SharedReader

PAGE = 4_096


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(64 << 20)
    yield made
    made.close()


def reader_of(arena: Arena) -> tuple[SharedReader, list[int]]:
    """Return a reader of an arena, and what counts how often it had something to say."""
    told: list[int] = []
    return SharedReader(arena.fd, arena.size_bytes, lambda: told.append(1)), told


def test_a_slot_is_given_back_when_the_last_view_of_it_is_gone(arena: Arena) -> None:
    reader, told = reader_of(arena)
    offset = arena.put(b"abcdef")
    view = memoryview(reader.fetch(offset, 6))
    part = view[2:4]
    del view
    assert (bytes(part), reader.held_slots, told) == (b"cd", 1, [])
    del part
    assert (reader.freed, reader.held_slots, told) == ([offset], 0, [1])
    arena.free(offset)
    assert arena.taken_slots == 0


def test_the_last_view_may_go_in_another_thread(arena: Arena) -> None:
    reader, told = reader_of(arena)
    views = [reader.fetch(arena.put(bytes(100)), 100)]
    thread = threading.Thread(target=views.clear)
    thread.start()
    thread.join()
    assert (len(reader.freed), told) == (1, [1])


def test_views_cannot_be_written_to(arena: Arena) -> None:
    reader, _ = reader_of(arena)
    view = memoryview(reader.fetch(arena.put(b"abc"), 3))
    assert view.readonly


def test_views_live_on_when_both_ends_have_gone() -> None:
    arena = Arena(16 * PAGE)
    reader, _ = reader_of(arena)
    view = reader.fetch(arena.put(b"abc"), 3)
    arena.close()
    del reader
    assert bytes(view) == b"abc"


def test_a_full_arena_says_so_and_overwrites_nothing() -> None:
    arena = Arena(4 * PAGE)
    reader, _ = reader_of(arena)
    first = reader.fetch(arena.put(b"a" * 3 * PAGE), 3 * PAGE)
    assert arena.put(bytes(2 * PAGE)) == INLINE
    assert arena.put(b"b") == 3 * PAGE
    assert bytes(first) == b"a" * 3 * PAGE
    arena.close()


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, 0), (0, (64 << 20) + 1), (64 << 20, 1)])
def test_a_reader_refuses_places_outside_the_arena(arena: Arena, offset: int, size: int) -> None:
    reader, _ = reader_of(arena)
    with pytest.raises(FrameError, match="no slot"):
        reader.fetch(offset, size)


def test_a_slot_that_is_being_read_is_not_handed_out_twice(arena: Arena) -> None:
    reader, _ = reader_of(arena)
    offset = arena.put(b"abc")
    view = reader.fetch(offset, 3)
    with pytest.raises(FrameError, match="no slot"):
        reader.fetch(offset, 3)
    assert bytes(view) == b"abc"


def test_only_slots_that_are_taken_can_be_freed(arena: Arena) -> None:
    with pytest.raises(FrameError, match="no slot at 4096"):
        arena.free(4_096)


def test_an_arena_cannot_be_cut_while_somebody_reads_it(arena: Arena) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, PAGE)


def test_memory_that_was_not_used_for_a_while_goes_back_to_the_system(arena: Arena) -> None:
    offset = arena.put(bytes(48 << 20))
    arena.free(offset)
    arena.trim()  # it was in use since the last time
    assert os.fstat(arena.fd).st_blocks * 512 >= 48 << 20
    arena.trim()
    assert os.fstat(arena.fd).st_blocks * 512 <= KEPT_BYTES


def test_memory_in_use_stays_when_the_rest_goes(arena: Arena) -> None:
    reader, _ = reader_of(arena)
    first, second = arena.put(bytes(40 << 20)), arena.put(b"b" * PAGE)
    view = reader.fetch(second, PAGE)
    arena.free(first)
    arena.trim()
    arena.trim()
    assert bytes(view) == b"b" * PAGE
