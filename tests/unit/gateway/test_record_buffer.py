"""The prediction log's buffer: bounded, and exact about every record."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engines.tensors import Tensor
from gateway.prediction_log.buffer import DropReason, Entry, RecordBuffer
from tests.support.records import make_record

EVERYTHING = 1 << 30


def of_bytes(size: int) -> tuple[Tensor, ...]:
    """Return inputs that make a record of `size` bytes; its output has 8 of them."""
    return (Tensor("x", "UINT8", (size - 8,), bytes(size - 8)),)


def is_exact(buffer: RecordBuffer) -> bool:
    return buffer.offered == buffer.written + sum(buffer.dropped.values()) + buffer.buffered


def test_over_the_limit_of_records_the_new_one_is_dropped_and_counted() -> None:
    buffer = RecordBuffer(limit_records=2, limit_bytes=EVERYTHING)
    for number in range(5):
        buffer.offer(make_record(number))
    assert buffer.buffered == 2
    assert buffer.dropped[DropReason.BUFFER_RECORDS] == 3
    kept = buffer.take(max_records=9, max_bytes=EVERYTHING)
    assert [entry.release().cid for entry in kept] == ["0", "1"]


def test_over_the_limit_of_bytes_the_new_one_is_dropped_and_smaller_ones_still_fit() -> None:
    buffer = RecordBuffer(limit_records=99, limit_bytes=100)
    for size in (60, 41, 40):
        buffer.offer(make_record(inputs=of_bytes(size)))
    assert buffer.held_bytes == 100
    assert buffer.dropped[DropReason.BUFFER_BYTES] == 1


def test_what_is_in_flight_still_takes_room() -> None:
    buffer = RecordBuffer(limit_records=2, limit_bytes=EVERYTHING)
    for number in range(2):
        buffer.offer(make_record(number))
    taken = buffer.take(max_records=2, max_bytes=EVERYTHING)
    buffer.offer(make_record(2))
    assert buffer.dropped[DropReason.BUFFER_RECORDS] == 1
    buffer.settle_written(taken)
    buffer.offer(make_record(3))
    assert (buffer.queued, buffer.written, buffer.offered) == (1, 2, 4)


def test_a_take_is_bounded_in_bytes_but_never_empty() -> None:
    buffer = RecordBuffer(limit_records=9, limit_bytes=EVERYTHING)
    for size in (500, 30, 30, 50):
        buffer.offer(make_record(inputs=of_bytes(size)))
    taken = [len(buffer.take(max_records=9, max_bytes=100)) for _ in range(3)]
    assert taken == [1, 2, 1]
    assert buffer.take(max_records=9, max_bytes=100) == []


def test_a_dropped_record_leaves_a_gap_in_the_numbers_of_its_name() -> None:
    buffer = RecordBuffer(limit_records=3, limit_bytes=EVERYTHING)
    for name in ("a", "b", "a", "a", "b"):
        buffer.offer(make_record(name=name))
    buffer.settle_written(buffer.take(max_records=9, max_bytes=EVERYTHING))
    buffer.offer(make_record(name="a"))
    buffer.offer(make_record(name="b"))
    left = buffer.take(max_records=9, max_bytes=EVERYTHING)
    assert [entry.seq for entry in left] == [4, 3]


def test_live_and_shadow_records_of_a_name_are_numbered_apart_and_counted_together() -> None:
    buffer = RecordBuffer(limit_records=9, limit_bytes=EVERYTHING)
    for is_shadow in (False, True, True, False, True):
        record = make_record()
        record.origin = replace(record.origin, is_shadow=is_shadow)
        buffer.offer(record)
    taken = buffer.take(max_records=9, max_bytes=EVERYTHING)
    assert [entry.seq for entry in taken] == [1, 1, 2, 2, 3]
    assert (buffer.offered, buffer.buffered) == (5, 5)
    assert is_exact(buffer)


def test_a_record_that_breaks_its_type_is_counted_and_raises_nothing() -> None:
    buffer = RecordBuffer(limit_records=3, limit_bytes=EVERYTHING)
    record = make_record()
    record.inputs = cast("tuple[Tensor, ...]", None)
    buffer.offer(record)
    assert buffer.dropped[DropReason.ENCODE_ERROR] == 1
    assert is_exact(buffer)


def test_a_record_is_released_once() -> None:
    entry = Entry(make_record(), 1, 0)
    entry.release()
    with pytest.raises(RuntimeError):
        entry.release()


class BufferMachine(RuleBasedStateMachine):
    """Any order of calls that a writer can make."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = RecordBuffer(limit_records=6, limit_bytes=200)
        self.in_flight: list[Entry] = []
        self.taken: list[int] = []
        self.is_abandoned = False

    @rule(size=st.integers(8, 90))
    def offer(self, size: int) -> None:
        self.buffer.offer(make_record(inputs=of_bytes(size)))

    @precondition(lambda self: not self.is_abandoned)
    @rule(max_records=st.integers(1, 5), max_bytes=st.integers(0, 120))
    def take(self, max_records: int, max_bytes: int) -> None:
        was_queued = self.buffer.queued
        taken = self.buffer.take(max_records=max_records, max_bytes=max_bytes)
        assert len(taken) <= max_records
        assert bool(taken) == bool(was_queued)
        assert len(taken) == 1 or sum(entry.held_bytes for entry in taken) <= max_bytes
        self.taken += [entry.seq for entry in taken]
        self.in_flight += taken

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), reason=st.sampled_from([None, *DropReason]))
    def settle(self, data: st.DataObject, reason: DropReason | None) -> None:
        count = data.draw(st.integers(1, len(self.in_flight)))
        settled, self.in_flight = self.in_flight[:count], self.in_flight[count:]
        if reason is None:
            self.buffer.settle_written(settled)
        else:
            self.buffer.settle_dropped(settled, reason)

    @rule()
    def abandon(self) -> None:
        self.buffer.abandon()
        self.in_flight = []
        self.is_abandoned = True
        assert self.buffer.buffered == 0

    @invariant()
    def every_record_is_accounted_for(self) -> None:
        assert is_exact(self.buffer)
        assert self.buffer.buffered == self.buffer.queued + len(self.in_flight)

    @invariant()
    def the_bounds_hold(self) -> None:
        assert self.buffer.buffered <= 6
        assert 0 <= self.buffer.held_bytes <= 200
        assert self.buffer.buffered or not self.buffer.held_bytes

    @invariant()
    def records_leave_in_the_order_in_which_they_came(self) -> None:
        assert self.taken == sorted(self.taken)


TestBufferMachine = BufferMachine.TestCase
TestBufferMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
