"""The heap of deadlines: what expires when, and what is kept in memory."""

from __future__ import annotations

import sys

import pytest

from engines.batch_queue import QueuedRequest
from engines.deadlines import DeadlineIndex
from tests.support.batching import make_request


def due_at(instant_ns: int) -> QueuedRequest:
    return make_request(enqueued_ns=0, deadline_ns=instant_ns)


def settle(index: DeadlineIndex, request: QueuedRequest) -> None:
    request.is_done = True
    index.discard(request)


def test_an_empty_index_has_no_next_deadline() -> None:
    index = DeadlineIndex()
    assert index.next_ns() is None
    assert index.expired(10**18) == []
    assert len(index) == 0


def test_the_earliest_deadline_is_next_whatever_the_order_of_arrival() -> None:
    index = DeadlineIndex()
    for instant_ns in (30, 10, 20):
        index.add(due_at(instant_ns))
    assert index.next_ns() == 10


def test_requests_expire_at_their_instant_in_order_and_not_before() -> None:
    index = DeadlineIndex()
    late, early, latest = due_at(20), due_at(10), due_at(30)
    for request in (late, early, latest):
        index.add(request)
    assert index.expired(9) == []
    assert index.expired(20) == [early, late]
    for request in (early, late):
        settle(index, request)
    assert len(index) == 1
    assert index.next_ns() == 30


def test_equal_deadlines_expire_in_order_of_arrival() -> None:
    index = DeadlineIndex()
    requests = [due_at(5) for _ in range(10)]
    for request in requests:
        index.add(request)
    assert index.expired(5) == requests


def test_an_answered_request_never_expires() -> None:
    index = DeadlineIndex()
    answered, waiting = due_at(10), due_at(20)
    index.add(answered)
    index.add(waiting)
    settle(index, answered)
    assert len(index) == 1
    assert index.next_ns() == 20
    assert index.expired(100) == [waiting]


def test_a_request_without_a_deadline_cannot_be_watched_and_may_be_discarded() -> None:
    index = DeadlineIndex()
    endless = make_request(deadline_ns=None)
    with pytest.raises(ValueError, match="without a deadline"):
        index.add(endless)
    settle(index, endless)
    assert len(index) == 0


def test_answered_requests_are_not_kept_until_their_deadline() -> None:
    def on_done(outcome: object) -> None:
        """Referred to by every request, so its reference count tells how many are alive."""

    index = DeadlineIndex()
    unused = sys.getrefcount(on_done)
    keep = make_request(deadline_ns=10**18, on_done=on_done)
    index.add(keep)
    for n in range(5_000):
        request = make_request(deadline_ns=10**15 + n, on_done=on_done)
        index.add(request)
        settle(index, request)
    del request
    assert len(index) == 1
    assert sys.getrefcount(on_done) - unused <= 2 * len(index) + 64 + 1
    assert index.next_ns() == 10**18
