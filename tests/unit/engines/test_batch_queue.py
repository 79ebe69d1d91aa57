"""Which requests share a batch, when, and in which order: the pure queue, on a clock of its own."""

from __future__ import annotations

import pytest

from engines.base import BatchPolicy
from engines.batch_queue import (
    ORDERING_HORIZON_NS,
    Batch,
    BatchQueue,
    QueuedRequest,
    QueueIsFull,
)
from tests.support.batching import MS, make_request

US = 1_000


def request(
    rows: int = 1,
    *,
    at_ns: int = 0,
    width: int = 1,
    deadline_ns: int | None = None,
    priority: int = 0,
) -> QueuedRequest:
    return make_request(
        [0.0] * rows, width=width, enqueued_ns=at_ns, deadline_ns=deadline_ns, priority=priority
    )


def push_all(queue: BatchQueue, *requests: QueuedRequest) -> None:
    for each in requests:
        queue.push(each)


def taken(queue: BatchQueue, now_ns: int = 0) -> Batch:
    batch = queue.take(now_ns)
    assert batch is not None
    return batch


def test_an_empty_queue_has_no_batch_and_no_instant() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=4))
    assert queue.take(10**18) is None
    assert queue.next_due_ns() is None
    assert len(queue) == 0
    assert repr(queue) == "<BatchQueue 0 requests, 0 rows, 0 shapes>"


def test_without_a_delay_what_is_there_goes_at_once() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=4))
    a, b = request(), request(2)
    push_all(queue, a, b)
    assert taken(queue) == Batch(requests=(a, b), rows=3, reason="delay")
    assert len(queue) == 0


def test_rows_are_counted_and_not_requests() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=4))
    a, b, c = request(2), request(2), request(1)
    push_all(queue, a, b, c)
    assert taken(queue) == Batch(requests=(a, b), rows=4, reason="full")
    assert taken(queue).requests == (c,)


def test_a_request_is_never_split_nor_skipped_to_fill_a_batch() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=4))
    a, big, small = request(3), request(2), request(1)
    push_all(queue, a, big, small)
    assert taken(queue) == Batch(requests=(a,), rows=3, reason="full")
    assert taken(queue).requests == (big, small)


def test_different_shapes_never_share_a_batch_nor_close_each_others() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=2, max_queue_delay_us=1_000))
    narrow, wide, narrow_too = request(width=1), request(width=2), request(width=1)
    push_all(queue, narrow, wide, narrow_too)
    assert queue.statistics().shapes == 2
    assert taken(queue) == Batch(requests=(narrow, narrow_too), rows=2, reason="full")
    assert queue.take(0) is None
    assert taken(queue, 1_000 * US).requests == (wide,)


def test_of_several_due_shapes_the_one_with_the_first_head_goes_first() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=8))
    wide, narrow = request(width=2, at_ns=1), request(width=1, at_ns=2)
    urgent = request(width=3, at_ns=3, deadline_ns=10)
    push_all(queue, wide, narrow, urgent)
    order = [taken(queue, 3).requests[0] for _ in range(3)]
    assert order == [urgent, wide, narrow]


def test_a_batch_waits_for_companions_from_the_oldest_request_on() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=8, max_queue_delay_us=500))
    push_all(queue, request(at_ns=100), request(at_ns=400 * US))
    assert queue.next_due_ns() == 100 + 500 * US
    assert queue.take(100 + 500 * US - 1) is None
    assert taken(queue, 100 + 500 * US).reason == "delay"


def test_the_delay_counts_from_the_oldest_left_after_the_oldest_was_removed() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=8, max_queue_delay_us=500))
    oldest, younger = request(at_ns=0), request(at_ns=300 * US)
    push_all(queue, oldest, younger)
    assert queue.remove(oldest)
    assert queue.next_due_ns() == 800 * US
    assert queue.take(500 * US) is None


def test_removing_a_younger_request_does_not_prolong_the_wait_of_the_oldest() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=8, max_queue_delay_us=500))
    oldest, younger = request(at_ns=0), request(at_ns=300 * US)
    wide = request(at_ns=100 * US, width=2)
    push_all(queue, oldest, younger, wide)
    assert queue.remove(younger)
    assert queue.next_due_ns() == 500 * US
    assert taken(queue, 500 * US).requests == (oldest,)
    assert queue.next_due_ns() == 600 * US


def test_a_full_batch_does_not_wait() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=2, max_queue_delay_us=10**6))
    push_all(queue, request(), request(), request())
    assert taken(queue).reason == "full"
    assert queue.take(0) is None


def test_a_preferred_size_goes_at_once_and_the_largest_reachable_wins() -> None:
    policy = BatchPolicy(max_batch_size=8, preferred_batch_sizes=(2, 4), max_queue_delay_us=10**6)
    queue = BatchQueue(policy)
    requests = [request() for _ in range(5)]
    push_all(queue, *requests[:1])
    assert queue.take(0) is None
    push_all(queue, *requests[1:])
    assert taken(queue) == Batch(requests=tuple(requests[:4]), rows=4, reason="preferred")
    assert queue.take(0) is None


def test_a_preferred_size_must_be_met_exactly() -> None:
    queue = BatchQueue(
        BatchPolicy(max_batch_size=8, preferred_batch_sizes=(4,), max_queue_delay_us=1)
    )
    push_all(queue, request(3), request(2))
    assert queue.take(0) is None
    assert taken(queue, 1 * US).reason == "delay"


def test_a_preferred_size_over_the_maximum_is_never_formed() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=4, preferred_batch_sizes=(6,)))
    push_all(queue, *(request() for _ in range(6)))
    assert [taken(queue).rows, taken(queue).rows] == [4, 2]


def test_without_dynamic_batching_every_request_is_a_batch() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=8, dynamic=False))
    a, b = request(3), request(1)
    push_all(queue, a, b)
    assert taken(queue) == Batch(requests=(a,), rows=3, reason="single")
    assert taken(queue).requests == (b,)


def test_equal_requests_leave_in_order_of_arrival() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=1))
    requests = [request(at_ns=7) for _ in range(20)]
    push_all(queue, *requests)
    assert [taken(queue, 7).requests[0] for _ in requests] == requests


def test_the_earliest_deadline_leaves_first() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=1))
    undated = request(at_ns=0)
    late, soon = request(at_ns=1, deadline_ns=80 * MS), request(at_ns=2, deadline_ns=50 * MS)
    push_all(queue, undated, late, soon)
    assert [taken(queue, 2).requests[0] for _ in range(3)] == [soon, late, undated]


def test_priority_comes_before_the_deadline() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=1, priority_levels=2))
    low = request(priority=2, deadline_ns=1 * MS)
    high = request(priority=1, deadline_ns=90 * MS)
    push_all(queue, low, high)
    assert taken(queue).requests == (high,)


def test_nothing_is_overtaken_by_what_arrives_more_than_the_horizon_later() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=1))
    undated = request(at_ns=0)
    distant = request(at_ns=1, deadline_ns=10 * ORDERING_HORIZON_NS)
    late_at = ORDERING_HORIZON_NS + 2
    latecomer = request(at_ns=late_at, deadline_ns=late_at)
    push_all(queue, undated, distant, latecomer)
    assert [taken(queue, late_at).requests[0] for _ in range(3)] == [undated, distant, latecomer]


def test_the_bound_in_rows_is_exact_and_a_refusal_changes_nothing() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=4, max_queue_rows=5))
    push_all(queue, request(3), request(1))
    with pytest.raises(QueueIsFull) as full:
        queue.push(request(2))
    assert (full.value.limit, full.value.unit) == (5, "rows")
    assert queue.statistics().queued_rows == 4
    queue.push(request(1))
    with pytest.raises(QueueIsFull):
        queue.push(request(1))
    assert queue.statistics().refused == 2
    assert queue.statistics().queued_rows == 5


def test_the_bound_in_requests_is_exact() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=4, max_queue_requests=2))
    push_all(queue, request(), request())
    with pytest.raises(QueueIsFull) as full:
        queue.push(request())
    assert (full.value.limit, full.value.unit) == (2, "requests")
    taken(queue)
    queue.push(request())


@pytest.mark.parametrize("rows", [0, 5])
def test_a_request_that_no_batch_can_hold_is_a_mistake_of_the_caller(rows: int) -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=4))
    with pytest.raises(ValueError, match=f"{rows} rows do not fit into 4"):
        queue.push(request(rows))
    assert len(queue) == 0


def test_a_removed_request_reaches_no_batch() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=8))
    a, b, c = request(), request(2), request()
    push_all(queue, a, b, c)
    assert queue.remove(b)
    assert not queue.remove(b)
    assert queue.statistics().queued_rows == 2
    assert taken(queue).requests == (a, c)


def test_what_was_taken_or_never_pushed_cannot_be_removed() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=1))
    a, b = request(), request()
    push_all(queue, a, b)
    taken(queue)
    assert not queue.remove(a)
    assert not queue.remove(request())
    assert not queue.remove(request(width=9))
    assert len(queue) == 1


def test_removing_the_last_of_a_shape_forgets_the_shape() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=8))
    wide = request(width=2)
    queue.push(wide)
    queue.remove(wide)
    assert queue.statistics().shapes == 0
    assert queue.next_due_ns() is None


def test_while_draining_nobody_waits_for_companions() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=8, max_queue_delay_us=10**9))
    push_all(queue, request(), request())
    assert queue.take(0) is None
    queue.is_draining = True
    assert taken(queue).reason == "drain"


def test_batches_are_counted_by_the_reason_that_sent_them() -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=2, max_queue_delay_us=1))
    push_all(queue, request(), request(), request())
    taken(queue)
    taken(queue, 1 * US)
    assert queue.statistics().batches_by_reason == {"full": 1, "delay": 1}
