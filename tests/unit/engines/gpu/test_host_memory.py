"""The host's stand-in for a device: work runs when it is waited for, in order, and not before."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np
import pytest

from engines.errors import DeviceFailed, OutOfMemory
from engines.gpu.host import FREED, FRESH, WORK, HostMemory
from engines.gpu.memory import Block, CaptureFailed, Event, Graph, HostBlock, Memory, Stream
from engines.tensors import Array

SIZE = 16


def as_memory(memory: HostMemory) -> Memory:
    """Let mypy see that the double is a Memory."""
    return memory


class Bench:
    """A pinned block for each end, a device block, two streams."""

    def __init__(self, memory: HostMemory) -> None:
        self.memory = memory
        self.source, self.target = memory.pinned(SIZE), memory.pinned(SIZE)
        self.block = memory.allocate(SIZE)
        self.stream, self.other = memory.stream(), memory.stream()
        self.event = memory.event()

    def give(self, value: int) -> None:
        self.shown(self.source)[...] = value

    def shown(self, block: HostBlock) -> Array:
        return block.array(np.dtype("u1"), (SIZE,))

    def add_one(self) -> None:
        array = self.memory.array_at(self.block.address, np.dtype("u1"), (SIZE,))
        array += 1

    def round_trip(self, stream: Stream | None = None) -> None:
        """Queue a copy in, one added, and a copy out."""
        stream = stream or self.stream
        self.memory.copy_in(self.block, self.source, SIZE, stream)
        self.memory.call(stream, self.add_one)
        self.memory.copy_out(self.target, self.block, SIZE, stream)

    def answer(self) -> int:
        (value,) = set(self.shown(self.target).tolist())
        return int(value)


@pytest.fixture
def bench() -> Bench:
    return Bench(HostMemory())


def test_queued_work_runs_when_an_event_recorded_after_it_is_waited_for(bench: Bench) -> None:
    bench.give(7)
    bench.round_trip()
    bench.memory.record(bench.event, bench.stream)
    assert bench.answer() == FRESH
    bench.memory.wait(bench.event)
    assert bench.answer() == 8


def test_a_wait_for_an_event_that_recorded_nothing_waits_for_nothing(bench: Bench) -> None:
    bench.give(7)
    bench.round_trip()
    bench.memory.wait(bench.event)
    assert bench.answer() == FRESH


def test_a_wait_runs_nothing_that_was_queued_after_the_record(bench: Bench) -> None:
    bench.give(7)
    bench.memory.copy_in(bench.block, bench.source, SIZE, bench.stream)
    bench.memory.record(bench.event, bench.stream)
    bench.memory.copy_out(bench.target, bench.block, SIZE, bench.stream)
    bench.memory.wait(bench.event)
    assert bench.answer() == FRESH


def test_what_is_written_before_the_copy_in_has_come_to_pass_is_what_is_copied(
    bench: Bench,
) -> None:
    bench.give(7)
    bench.round_trip()
    bench.give(40)
    bench.memory.record(bench.event, bench.stream)
    bench.memory.wait(bench.event)
    assert bench.answer() == 41


def test_streams_know_nothing_of_each_other_without_a_hold(bench: Bench) -> None:
    bench.give(7)
    bench.memory.copy_in(bench.block, bench.source, SIZE, bench.other)
    bench.memory.copy_out(bench.target, bench.block, SIZE, bench.stream)
    bench.memory.record(bench.event, bench.stream)
    bench.memory.wait(bench.event)
    assert bench.answer() == FRESH


def test_a_held_stream_waits_for_what_the_event_had_recorded_then(bench: Bench) -> None:
    memory, event = bench.memory, bench.event
    bench.give(7)
    memory.copy_in(bench.block, bench.source, SIZE, bench.other)
    memory.record(event, bench.other)
    memory.hold(bench.stream, event)
    memory.copy_out(bench.target, bench.block, SIZE, bench.stream)
    memory.record(event, bench.stream)  # the same event again: the hold means its first record
    memory.wait(event)
    assert bench.answer() == 7


@pytest.mark.parametrize("seed", range(20))
def test_haste_runs_ahead_and_keeps_the_order_of_streams_and_holds(seed: int) -> None:
    bench = Bench(HostMemory(haste=random.Random(seed)))
    bench.give(7)
    bench.memory.copy_in(bench.block, bench.source, SIZE, bench.other)
    bench.memory.call(bench.other, bench.add_one)
    bench.memory.record(bench.event, bench.other)
    bench.memory.hold(bench.stream, bench.event)
    bench.memory.copy_out(bench.target, bench.block, SIZE, bench.stream)
    bench.memory.record(bench.event, bench.stream)
    bench.memory.wait(bench.event)
    assert bench.answer() == 8


def test_haste_shows_a_host_that_writes_too_late() -> None:
    answers = set()
    for seed in range(20):
        bench = Bench(HostMemory(haste=random.Random(seed)))
        bench.give(7)
        bench.round_trip()
        bench.give(40)
        bench.memory.record(bench.event, bench.stream)
        bench.memory.wait(bench.event)
        answers.add(bench.answer())
    assert answers == {8, 41}


def test_a_graph_runs_what_was_recorded_with_the_bytes_of_its_launch(bench: Bench) -> None:
    memory = bench.memory
    memory.begin_capture(bench.stream)
    bench.round_trip()
    graph = memory.end_capture(bench.stream)
    for value in (3, 9):
        bench.give(value)
        memory.launch(graph, bench.other)
        memory.record(bench.event, bench.other)
        memory.wait(bench.event)
        assert bench.answer() == value + 1


def test_what_is_captured_is_not_run(bench: Bench) -> None:
    memory = bench.memory
    memory.begin_capture(bench.stream)
    bench.round_trip()
    memory.end_capture(bench.stream)
    memory.record(bench.event, bench.stream)
    memory.wait(bench.event)
    assert bench.answer() == FRESH


@pytest.mark.parametrize(
    "spoil",
    [
        lambda b: b.memory.record(b.event, b.stream),
        lambda b: b.memory.hold(b.stream, b.event),
        lambda b: b.memory.allocate(1),
        lambda b: b.memory.free(b.block),
    ],
    ids=["record", "hold", "allocate", "free"],
)
def test_a_capture_with_what_cannot_be_recorded_fails_and_the_stream_runs_again(
    bench: Bench, spoil: Callable[[Bench], object]
) -> None:
    memory = bench.memory
    memory.begin_capture(bench.stream)
    with suppress(CaptureFailed):  # some say it at once, and all at the end
        spoil(bench)
    with pytest.raises(CaptureFailed):
        memory.end_capture(bench.stream)
    memory.record(bench.event, bench.stream)
    memory.wait(bench.event)


def test_another_thread_may_allocate_during_a_capture_and_may_not_end_it(bench: Bench) -> None:
    memory, errors = bench.memory, list[object]()

    def elsewhere() -> None:
        memory.free(memory.allocate(1))
        with pytest.raises(CaptureFailed, match="another thread"):
            memory.end_capture(bench.stream)
        errors.append(None)

    memory.begin_capture(bench.stream)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert errors == [None]


def test_a_capture_is_begun_once_and_ended_once(bench: Bench) -> None:
    with pytest.raises(CaptureFailed, match="not being captured"):
        bench.memory.end_capture(bench.stream)
    bench.memory.begin_capture(bench.stream)
    with pytest.raises(CaptureFailed, match="is being captured"):
        bench.memory.begin_capture(bench.stream)


def test_work_on_freed_memory_loses_the_device_for_every_later_call(bench: Bench) -> None:
    memory = bench.memory
    bench.round_trip()
    memory.free(bench.block)
    memory.record(bench.event, bench.stream)
    with pytest.raises(DeviceFailed, match="freed"):
        memory.wait(bench.event)
    with pytest.raises(DeviceFailed, match="freed"):
        memory.stream()
    with pytest.raises(DeviceFailed, match="freed"):
        memory.free(bench.source)
    assert len([kept for kept in memory.live() if kept.startswith("HostBlock")]) == 1


def test_a_call_that_reads_nobodys_memory_loses_the_device(bench: Bench) -> None:
    memory = bench.memory
    past = bench.block.address + SIZE - 1
    memory.call(bench.stream, partial(memory.array_at, past, np.dtype("<f4"), (1,)))
    memory.record(bench.event, bench.stream)
    with pytest.raises(DeviceFailed, match="illegal access of 4 bytes"):
        memory.wait(bench.event)


def test_freed_memory_is_overwritten_and_its_views_stay_readable(bench: Bench) -> None:
    view = bench.shown(bench.source)
    bench.give(5)
    bench.memory.free(bench.source)
    assert set(view.tolist()) == {FREED}


@pytest.mark.parametrize(
    "misuse",
    [
        lambda b: b.memory.copy_in(b.source, b.source, SIZE, b.stream),
        lambda b: b.memory.copy_out(b.target, b.source, SIZE, b.stream),
        lambda b: b.memory.copy_in(b.block, b.source, SIZE + 1, b.stream),
        lambda b: b.memory.free(Block(12345, 1)),
        lambda b: b.memory.drop(Graph(999)),
        lambda b: b.memory.launch(Graph(999), b.stream),
        lambda b: b.memory.record(Event(999), b.stream),
        lambda b: b.memory.record(b.event, Stream(999)),
    ],
    ids=["in kinds", "out kinds", "past the end", "free", "drop", "launch", "event", "stream"],
)
def test_misuse_is_refused_as_a_device_would(
    bench: Bench, misuse: Callable[[Bench], object]
) -> None:
    with pytest.raises(DeviceFailed):
        misuse(bench)


def test_an_allocation_over_the_devices_memory_is_refused_and_freeing_makes_room() -> None:
    memory = HostMemory(total_bytes=100)
    block = memory.allocate(60)
    assert memory.memory_info() == (40, 100)
    with pytest.raises(OutOfMemory):
        memory.allocate(41)
    memory.pinned(1000)  # the host's, not the device's
    memory.free(block)
    assert memory.memory_info() == (100, 100)


def test_a_fault_comes_once_after_as_many_calls_as_asked(bench: Bench) -> None:
    bench.memory.fail_next("record", OutOfMemory("host"), after=1)
    bench.memory.record(bench.event, bench.stream)
    with pytest.raises(OutOfMemory):
        bench.memory.record(bench.event, bench.stream)
    bench.memory.record(bench.event, bench.stream)


def test_a_fault_in_queued_work_shows_at_the_wait(bench: Bench) -> None:
    bench.memory.fail_next(WORK, ZeroDivisionError("kernel"), after=1)
    bench.round_trip()
    bench.memory.record(bench.event, bench.stream)
    with pytest.raises(DeviceFailed, match="kernel"):
        bench.memory.wait(bench.event)


def test_close_names_what_was_not_given_back_and_ends_every_call(bench: Bench) -> None:
    memory = bench.memory
    memory.free(bench.block)
    memory.drop(bench.event)
    memory.close()
    assert memory.leaks == (*(["HostBlock of 16"] * 2), "Stream", "Stream")
    memory.close()
    with pytest.raises(DeviceFailed, match="closed"):
        memory.stream()
    assert as_memory(memory).device == "host"
