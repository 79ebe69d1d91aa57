"""The order of answers: whatever is ready first, they leave as they were asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http_api.fast.answers import Output
from gateway.http_api.fast.queue import NEVER, AnswerQueue


class Transport(asyncio.Transport):
    """Keeps what is written, one entry per call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes] = []
        self.unread_bytes = 0
        self.is_lost = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it."""
        self.calls.append(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Keep it."""
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        """Return what the test says."""
        return self.unread_bytes

    def is_closing(self) -> bool:
        """Whether the test says so."""
        return self.is_lost


class Answer:
    """One awaited answer."""

    def __init__(self, text: bytes, *, is_last: bool = False, held_bytes: int = 0) -> None:
        self.text = text
        self.is_last = is_last
        self.held_bytes = held_bytes
        self.output: Output | None = None
        self.is_dropped = False

    def drop(self) -> None:
        """Note it."""
        self.is_dropped = True


class Side:
    """A queue, and everything around it: the owner and the loop."""

    def __init__(self, *, max_bytes: int = 1_000) -> None:
        self.transport = Transport()
        self.events: list[str] = []
        self.soon: list[Callable[[], object]] = []
        self.queue = AnswerQueue(self, self.transport, self.soon.append, max_bytes)

    def last_sent(self) -> None:
        """Note it."""
        self.events.append("last")

    def overflown(self) -> None:
        """Note it."""
        self.events.append("overflown")

    def go_on(self) -> None:
        """Note it."""
        self.events.append("go on")

    def add(self, *texts: bytes, is_last: bool = False) -> list[Answer]:
        """Await answers; only the last of them may be the last of all."""
        answers = [Answer(t, is_last=is_last and t is texts[-1]) for t in texts]
        for answer in answers:
            self.queue.add(answer)
        return answers

    def ready(self, *answers: Answer, pieces: bool = False) -> None:
        """Make answers ready, one after the other."""
        for answer in answers:
            answer.output = (answer.text[:1], answer.text[1:]) if pieces else answer.text
            self.queue.answered(answer)

    def tick(self) -> None:
        """Do what the loop would do next."""
        due, self.soon[:] = list(self.soon), []
        for function in due:
            function()


@pytest.mark.parametrize("pieces", [True, False])
def test_the_only_answer_is_written_at_once(pieces: bool) -> None:
    side = Side()
    (answer,) = side.add(b"one")
    side.ready(answer, pieces=pieces)
    assert side.transport.calls == [b"one"]
    assert side.soon == []
    assert side.queue.awaited == []


def test_answers_that_are_ready_together_leave_with_one_write_at_the_end_of_the_tick() -> None:
    side = Side()
    a, b, c, _ = side.add(b"a", b"b", b"c", b"d")
    side.ready(c, b)
    assert (side.transport.calls, side.soon) == ([], [])
    side.ready(a)
    assert side.transport.calls == []
    assert len(side.soon) == 1
    side.tick()
    assert side.transport.calls == [b"abc"]


def test_when_all_are_answered_nothing_waits_for_the_end_of_the_tick() -> None:
    side = Side()
    side.ready(*side.add(b"a", b"b", b"c"))
    assert side.transport.calls == [b"abc"]
    (late,) = side.add(b"d")
    side.ready(late)
    side.tick()
    assert side.transport.calls == [b"abc", b"d"]


@given(st.permutations(range(8)), st.lists(st.booleans(), min_size=8, max_size=8))
def test_answers_leave_in_the_order_of_requests(order: list[int], ticks: list[bool]) -> None:
    side = Side()
    answers = side.add(*(b"%d" % n for n in range(8)), is_last=True)
    for number, is_tick in zip(order, ticks, strict=True):
        side.ready(answers[number], pieces=is_tick)
        if is_tick:
            side.tick()
    assert b"".join(side.transport.calls) == b"01234567"
    assert side.events == ["last"]
    assert (side.queue.held_bytes, side.queue.ready_bytes) == (0, 0)


def test_nothing_is_told_to_be_last_before_it_was_written() -> None:
    side = Side()
    first, last = side.add(b"a", b"b", is_last=True)
    side.ready(last)
    assert side.events == []
    side.ready(first)
    assert (side.transport.calls, side.events) == ([b"ab"], ["last"])


def test_the_owner_goes_on_when_few_enough_are_left_and_the_peer_reads() -> None:
    side = Side()
    answers = side.add(b"a", b"b", b"c")
    side.queue.wake_at = 1
    side.ready(answers[0])
    side.tick()
    assert side.events == []
    side.queue.is_stuck = True
    side.ready(answers[1])
    side.tick()
    assert side.events == []
    side.queue.is_stuck = False
    side.queue.wake()
    side.queue.wake()
    side.tick()
    assert side.events == ["go on"]
    assert side.queue.wake_at == NEVER


def test_what_is_held_counts_until_it_is_with_the_transport() -> None:
    side = Side(max_bytes=100)
    a, b, c = side.add(b"a" * 30, b"b" * 10, b"c")
    side.queue.hold(a, 90)
    side.queue.hold(b, 11)
    assert side.queue.is_full()
    side.queue.hold(a, 20)
    assert not side.queue.is_full()
    side.ready(b)
    assert (side.queue.held_bytes, side.queue.ready_bytes) == (20, 10)
    side.ready(a)
    assert (side.queue.held_bytes, side.queue.ready_bytes) == (0, 40)
    side.tick()
    assert (side.queue.held_bytes, side.queue.ready_bytes) == (0, 0)
    side.ready(c)
    assert not side.queue.is_full()


def test_requests_behind_large_answers_are_expected_to_have_such_as_well() -> None:
    side = Side(max_bytes=100)
    side.ready(*side.add(b"a" * 60, b"b"))
    (first,) = side.add(b"c")
    assert not side.queue.is_full()
    (second,) = side.add(b"d")
    assert side.queue.is_full()
    side.ready(first, second)
    assert not side.queue.is_full()


def test_the_owner_goes_on_when_little_enough_is_held() -> None:
    side = Side(max_bytes=100)
    a, *_ = side.add(b"a", b"b", b"c")
    side.queue.hold(a, 101)
    side.queue.wake_at = 3
    side.queue.wake()
    side.tick()
    assert side.events == []
    side.queue.hold(a, 100)
    side.tick()
    assert (side.events, side.queue.wake_at) == (["go on"], NEVER)


def test_the_owner_goes_on_when_the_answers_it_waited_for_are_with_the_transport() -> None:
    side = Side(max_bytes=100)
    a, _ = side.add(b"a" * 60, b"b")
    side.queue.wake_at = 1
    side.ready(a)
    assert side.queue.wake_at == 1  # 60 are gathered, and 60 more expected
    side.tick()
    side.tick()
    assert (side.transport.calls, side.events) == ([b"a" * 60], ["go on"])


def test_a_peer_that_makes_us_hold_too_much_is_let_go() -> None:
    side = Side(max_bytes=10)
    _, b, c = side.add(b"a", b"b" * 6, b"c" * 6)
    side.ready(b)
    assert side.events == []
    side.ready(c)
    assert side.events == ["overflown"]
    side = Side(max_bytes=10)
    (only,) = side.add(b"x" * 20)
    side.queue.is_stuck, side.transport.unread_bytes = True, 11
    side.ready(only)
    assert side.events == ["overflown"]


def test_who_has_gone_gets_nothing_and_its_requests_are_dropped() -> None:
    side = Side()
    answers = side.add(b"a", b"b", b"c")
    side.ready(answers[0], answers[2])
    side.transport.is_lost = True
    side.queue.clear()
    side.tick()
    assert side.transport.calls == []
    assert [answer.is_dropped for answer in answers] == [False, True, True]
    assert (side.queue.held_bytes, side.queue.ready_bytes) == (0, 0)
    assert side.queue.awaited == []
