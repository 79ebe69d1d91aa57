"""The batch queue against any sequence of arrivals, removals and instants.

The machine below keeps its own plain list of what waits and checks every batch against it. It knows
the rules of engines/batch_queue.py and none of its data structures.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engines.base import BatchPolicy
from engines.batch_queue import (
    ORDERING_HORIZON_NS,
    Batch,
    BatchQueue,
    QueuedRequest,
    QueueIsFull,
)
from tests.support.batching import MS, make_request

MAX_ROWS = 8
policies = st.builds(
    BatchPolicy,
    max_batch_size=st.integers(1, MAX_ROWS),
    dynamic=st.sampled_from([True, True, True, False]),
    preferred_batch_sizes=st.lists(st.integers(1, MAX_ROWS), max_size=2).map(tuple),
    max_queue_delay_us=st.sampled_from([0, 0, 100, 5_000]),
    max_queue_rows=st.integers(MAX_ROWS, 40),
    max_queue_requests=st.sampled_from([0, 0, 10]),
)
# None: no deadline; beyond the horizon too, because the horizon caps the order.
timeouts_ns = st.one_of(
    st.none(), st.integers(-MS, 20 * MS), st.integers(0, 3 * ORDERING_HORIZON_NS)
)
pauses_ns = st.one_of(st.integers(0, 10 * MS), st.integers(0, 2 * ORDERING_HORIZON_NS))


def order_of(request: QueuedRequest) -> tuple[int, int]:
    """The documented order, as far as it is not arrival."""
    horizon_ns = request.enqueued_ns + ORDERING_HORIZON_NS
    deadline_ns = request.deadline_ns
    return request.priority, horizon_ns if deadline_ns is None else min(deadline_ns, horizon_ns)


class QueueMachine(RuleBasedStateMachine):
    """Drives a queue and keeps the books."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 10 * ORDERING_HORIZON_NS
        self.waiting: list[QueuedRequest] = []
        """In order of arrival."""
        self.pushed = self.removed = self.refused = 0
        self.taken: list[QueuedRequest] = []

    @initialize(policy=policies)
    def open(self, policy: BatchPolicy) -> None:
        self.policy = policy
        self.queue = BatchQueue(policy)

    @rule(
        rows=st.integers(1, MAX_ROWS),
        width=st.integers(1, 3),
        timeout_ns=timeouts_ns,
        priority=st.sampled_from([0, 0, 0, 1, 2]),
    )
    def push(self, rows: int, width: int, timeout_ns: int | None, priority: int) -> None:
        rows = min(rows, self.policy.max_batch_size)
        request = make_request(
            [0.0] * rows,
            width=width,
            enqueued_ns=self.now_ns,
            deadline_ns=None if timeout_ns is None else self.now_ns + timeout_ns,
            priority=priority,
        )
        queued_rows = sum(r.rows for r in self.waiting)
        limit = self.policy.max_queue_requests
        fits = queued_rows + rows <= self.policy.max_queue_rows
        fits = fits and (limit == 0 or len(self.waiting) < limit)
        try:
            self.queue.push(request)
        except QueueIsFull:
            assert not fits
            self.refused += 1
            return
        assert fits
        self.waiting.append(request)
        self.pushed += 1

    @rule(data=st.data())
    @precondition(lambda self: self.waiting)
    def remove(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.waiting))
        assert self.queue.remove(request)
        assert not self.queue.remove(request)
        self.waiting.remove(request)
        self.removed += 1

    @rule(data=st.data())
    @precondition(lambda self: self.taken)
    def remove_what_has_left(self, data: st.DataObject) -> None:
        assert not self.queue.remove(data.draw(st.sampled_from(self.taken)))

    @rule(pause_ns=pauses_ns)
    def wait(self, pause_ns: int) -> None:
        self.now_ns += pause_ns

    @rule()
    def drain(self) -> None:
        self.queue.is_draining = True

    @rule()
    def take(self) -> None:
        batch = self.queue.take(self.now_ns)
        if batch is None:
            self.check_that_nothing_is_due()
        else:
            self.check_batch(batch)

    @rule()
    @precondition(lambda self: self.waiting)
    def take_at_the_announced_instant(self) -> None:
        due_ns = self.queue.next_due_ns()
        assert due_ns is not None
        self.now_ns = max(self.now_ns, due_ns)
        batch = self.queue.take(self.now_ns)
        assert batch is not None
        self.check_batch(batch)

    def check_that_nothing_is_due(self) -> None:
        if not self.waiting:
            return
        assert self.policy.dynamic
        assert not self.queue.is_draining
        due_ns = self.queue.next_due_ns()
        assert due_ns is not None
        assert due_ns > self.now_ns
        for width in {r.shape_key for r in self.waiting}:
            rows = sum(r.rows for r in self.waiting if r.shape_key == width)
            assert rows < self.policy.max_batch_size

    def check_batch(self, batch: Batch) -> None:
        requests = list(batch.requests)
        assert requests
        assert all(any(r is w for w in self.waiting) for r in requests)
        assert batch.rows == sum(r.rows for r in requests) <= self.policy.max_batch_size
        assert len({r.shape_key for r in requests}) == 1
        assert self.policy.dynamic or len(requests) == 1
        left = [w for w in self.waiting if not any(w is r for r in requests)]
        self.check_order(requests, left)
        self.check_reason(batch, left)
        self.waiting = left
        self.taken.extend(requests)

    def check_order(self, requests: list[QueuedRequest], left: list[QueuedRequest]) -> None:
        arrival = {id(r): n for n, r in enumerate(self.waiting)}
        keys = [(*order_of(r), arrival[id(r)]) for r in requests]
        assert keys == sorted(keys), "not in order of priority, instant and arrival"
        for stayed in left:
            if stayed.shape_key != requests[0].shape_key:
                continue
            assert (*order_of(stayed), arrival[id(stayed)]) > keys[-1], "somebody was skipped"
            for went in requests:
                if went.priority == stayed.priority:
                    assert went.enqueued_ns <= stayed.enqueued_ns + ORDERING_HORIZON_NS
                    if went.deadline_ns is None and stayed.deadline_ns is None:
                        assert arrival[id(went)] < arrival[id(stayed)], "not first in, first out"

    def check_reason(self, batch: Batch, left: list[QueuedRequest]) -> None:
        behind = [r for r in left if r.shape_key == batch.requests[0].shape_key]
        if batch.reason == "single":
            assert not self.policy.dynamic
        elif batch.reason == "full":
            smallest_next = (
                min(behind, key=lambda r: (*order_of(r), r.order_key)).rows if behind else 1
            )
            assert batch.rows + smallest_next > self.policy.max_batch_size
        elif batch.reason == "preferred":
            assert batch.rows in self.policy.preferred_batch_sizes
        else:
            assert not behind
            waited_ns = self.now_ns - min(r.enqueued_ns for r in batch.requests)
            is_due = waited_ns >= self.policy.max_queue_delay_us * 1_000
            assert is_due if batch.reason == "delay" else self.queue.is_draining

    @invariant()
    def the_books_balance(self) -> None:
        if not hasattr(self, "queue"):
            return
        found = self.queue.statistics()
        assert found.queued_requests == len(self.queue) == len(self.waiting)
        assert found.queued_rows == sum(r.rows for r in self.waiting) <= self.policy.max_queue_rows
        assert found.shapes == len({r.shape_key for r in self.waiting})
        assert self.pushed == len(self.waiting) + len(self.taken) + self.removed
        assert len({id(r) for r in self.taken}) == len(self.taken), "somebody left twice"
        assert found.refused == self.refused
        oldest_ns = min((r.enqueued_ns for r in self.waiting), default=None)
        delay_ns = self.policy.max_queue_delay_us * 1_000
        assert self.queue.next_due_ns() == (None if oldest_ns is None else oldest_ns + delay_ns)

    def teardown(self) -> None:
        if not hasattr(self, "queue"):
            return
        self.queue.is_draining = True
        while (batch := self.queue.take(self.now_ns)) is not None:
            self.check_batch(batch)
        assert self.waiting == []
        assert len(self.queue) == 0


def test_the_queue_keeps_its_invariants_whatever_happens() -> None:
    run_state_machine_as_test(
        QueueMachine, settings=settings(max_examples=250, stateful_step_count=40, deadline=None)
    )


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 8), min_size=1, max_size=60), maximum=st.integers(8, 16))
def test_undated_requests_of_one_shape_leave_in_the_order_in_which_they_came(
    sizes: list[int], maximum: int
) -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=maximum))
    requests = [make_request([0.0] * rows, enqueued_ns=n) for n, rows in enumerate(sizes)]
    for request in requests:
        queue.push(request)
    left: list[Any] = []  # Any: requests have identity, not equality
    while (batch := queue.take(10**9)) is not None:
        left.extend(batch.requests)
    assert left == requests


@settings(deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 2 * ORDERING_HORIZON_NS), timeouts_ns), min_size=1, max_size=40
    )
)
def test_nobody_waits_behind_a_request_that_came_more_than_the_horizon_later(
    arrivals: list[tuple[int, int | None]],
) -> None:
    queue = BatchQueue(BatchPolicy(max_batch_size=1))
    requests = [
        make_request(
            enqueued_ns=at_ns, deadline_ns=None if timeout_ns is None else at_ns + timeout_ns
        )
        for at_ns, timeout_ns in sorted(arrivals, key=lambda arrival: arrival[0])
    ]
    for request in requests:
        queue.push(request)
    latest_ns = 0
    order = []
    while (batch := queue.take(10**10)) is not None:
        order.append(batch.requests[0].enqueued_ns)
    for enqueued_ns in order:
        assert latest_ns <= enqueued_ns + ORDERING_HORIZON_NS
        latest_ns = max(latest_ns, enqueued_ns)
    assert len(order) == len(requests)
