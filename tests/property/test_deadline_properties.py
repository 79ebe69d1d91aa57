"""The index of deadlines against a plain dictionary of what is watched."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engines.batch_queue import QueuedRequest
from engines.deadlines import DeadlineIndex
from tests.support.batching import make_request

instants_ns = st.integers(0, 1_000)


class DeadlineMachine(RuleBasedStateMachine):
    """Adds, answers and expires requests as the batcher does, and keeps the books."""

    def __init__(self) -> None:
        super().__init__()
        self.index = DeadlineIndex()
        self.now_ns = 0
        self.live: list[tuple[int, QueuedRequest]] = []
        """Deadline and request, in order of arrival."""

    @rule(deadline_ns=instants_ns, copies=st.integers(1, 40))
    def add(self, deadline_ns: int, copies: int) -> None:
        for _ in range(copies):
            request = make_request(enqueued_ns=self.now_ns, deadline_ns=deadline_ns)
            self.index.add(request)
            self.live.append((deadline_ns, request))

    @rule(data=st.data(), share=st.floats(0, 1))
    @precondition(lambda self: self.live)
    def answer_some(self, data: st.DataObject, share: float) -> None:
        count = max(1, int(share * len(self.live)))
        first = data.draw(st.integers(0, len(self.live) - count))
        for _, request in self.live[first : first + count]:
            request.is_done = True
            self.index.discard(request)
        del self.live[first : first + count]

    @rule(pause_ns=st.integers(0, 200))
    def expire(self, pause_ns: int) -> None:
        self.now_ns += pause_ns
        due = sorted((d, n) for n, (d, _) in enumerate(self.live) if d <= self.now_ns)
        expected = [self.live[n][1] for _, n in due]
        found = self.index.expired(self.now_ns)
        assert len(found) == len(expected)
        assert all(a is b for a, b in zip(found, expected, strict=True))
        for request in found:
            request.is_done = True
            self.index.discard(request)
        self.live = [entry for entry in self.live if entry[0] > self.now_ns]

    @invariant()
    def the_next_deadline_is_the_earliest_of_the_live(self) -> None:
        assert self.index.next_ns() == min((d for d, _ in self.live), default=None)
        assert len(self.index) == len(self.live)


def test_what_expires_is_what_is_live_and_due_in_order() -> None:
    run_state_machine_as_test(
        DeadlineMachine, settings=settings(max_examples=100, stateful_step_count=30, deadline=None)
    )


@settings(deadline=None)
@given(deadlines=st.lists(instants_ns, max_size=60), looks=st.lists(instants_ns, max_size=20))
def test_however_often_one_looks_each_request_expires_once_and_never_early(
    deadlines: list[int], looks: list[int]
) -> None:
    index = DeadlineIndex()
    for deadline_ns in deadlines:
        index.add(make_request(deadline_ns=deadline_ns))
    seen: list[int] = []
    for now_ns in [*sorted(looks), 1_000]:
        for request in index.expired(now_ns):
            assert request.deadline_ns is not None
            assert request.deadline_ns <= now_ns
            request.is_done = True
            index.discard(request)
            seen.append(request.deadline_ns)
    assert seen == sorted(deadlines)
    assert len(index) == 0
