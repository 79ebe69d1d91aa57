"""The allowance for frames that do no work."""

from __future__ import annotations

from gateway.http2.budget import Budget

SECOND_NS = 1_000_000_000


def test_time_and_work_bring_tokens_back() -> None:
    budget = Budget(100, 0)
    budget.tokens = -5
    assert budget.refill(100, 10, SECOND_NS, work=20)
    assert budget.tokens == 25


def test_work_counts_once() -> None:
    budget = Budget(100, 0)
    budget.tokens = 0
    budget.refill(100, 0, 0, work=30)
    budget.refill(100, 0, 0, work=30)
    budget.refill(100, 0, 0, work=10)
    assert budget.tokens == 30


def test_there_are_never_more_tokens_than_the_capacity() -> None:
    budget = Budget(100, 0)
    budget.refill(100, 1_000, 60 * SECOND_NS, work=10_000)
    assert budget.tokens == 100


def test_without_time_and_work_the_allowance_is_used_up() -> None:
    budget = Budget(100, 0)
    budget.tokens = -1
    assert not budget.refill(100, 1_000, 0, work=0)


def test_fractions_of_a_token_are_not_lost() -> None:
    budget = Budget(100, 0)
    budget.tokens = 0
    for millisecond in range(1, 1_001):
        budget.refill(100, 10, millisecond * 1_000_000, work=0)
    assert budget.tokens == 10
