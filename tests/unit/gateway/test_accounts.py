"""The three books of an answered request: metrics, statistics in Triton's shape, routes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.executed import Executed, Execution
from gateway.accounts import MAX_TALLIES, SETTLE_EVERY, Accounts
from gateway.directory import Target
from gateway.errors import Code
from tests.support.targets import like, split_target

TOTAL_NS = 5_000_000


def executed(execution: Execution | None = None) -> Executed:
    """Return the times of a request, in a batch of its own if none is given."""
    return Executed((), 1, execution or Execution(2, 3, 4, 2, 1))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return split_target(tmp_path_factory.mktemp("models"))


def answer(
    accounts: Accounts, target: Target | None, code: Code = Code.OK, *, is_executed: bool = True
) -> None:
    """Count one answer of two rows."""
    times = executed() if is_executed else None
    if target is None or times is None or code is not Code.OK:
        accounts.failed(target, times, "grpc", int(code), TOTAL_NS, 7)
    else:
        accounts.answered(target, times, "grpc", 2, TOTAL_NS, 7)


def cells(accounts: Accounts) -> dict[tuple[str, ...], dict[tuple[str, int], int]]:
    return {key: cell.by_code for key, cell in accounts.metrics.cells.items()}


def successes(accounts: Accounts, name: str, version: str) -> tuple[int, int]:
    """Return the successes and failures of a row of the statistics."""
    row = accounts.statistics.row(name, version)
    return row.success.count, row.fail.count


def test_an_answer_of_a_split_is_in_all_three_books(target: Target) -> None:
    accounts = Accounts()
    answer(accounts, target)
    assert cells(accounts) == {("split", "stable", "echo", "1"): {("grpc", 0): 1}}
    assert successes(accounts, "echo", "1") == successes(accounts, "split", "") == (1, 0)
    assert accounts.statistics.row("split", "").inference_count == 2
    assert accounts.statistics.row("split", "").last_inference_ms == 7
    ((revision, variant, counts),) = accounts.routes.of("split")
    assert (revision, variant, counts.requests, counts.errors) == (1, "stable", 1, 0)
    assert counts.latency.total == pytest.approx(0.005)


def test_what_the_fallback_served_is_the_served_versions_and_the_assigned_variants(
    target: Target,
) -> None:
    accounts = Accounts()
    fallen = like(target, assigned="canary", reason="fallback")
    answer(accounts, fallen)
    assert cells(accounts) == {("split", "stable", "echo", "1"): {("grpc", 0): 1}}
    assert successes(accounts, "echo", "1") == successes(accounts, "split", "") == (1, 0)
    ((_, variant, counts),) = accounts.routes.of("split")
    assert (variant, counts.requests, counts.fallback) == ("canary", 1, 1)


@pytest.mark.parametrize("is_executed", [True, False])
def test_an_error_is_a_failure_whether_or_not_it_was_executed(
    target: Target, is_executed: bool
) -> None:
    accounts = Accounts()
    answer(accounts, target, Code.INVALID_ARGUMENT, is_executed=is_executed)
    assert cells(accounts) == {("split", "stable", "echo", "1"): {("grpc", 3): 1}}
    assert successes(accounts, "echo", "1") == successes(accounts, "split", "") == (0, 1)
    ((_, _, counts),) = accounts.routes.of("split")
    assert (counts.requests, counts.errors) == (1, 1)


def test_what_went_past_the_split_is_its_versions_alone(target: Target) -> None:
    accounts = Accounts()
    answer(accounts, like(target, reason="version", split=None))
    assert cells(accounts) == {("split", "stable", "echo", "1"): {("grpc", 0): 1}}
    assert successes(accounts, "echo", "1") == (1, 0)
    assert successes(accounts, "split", "") == (0, 0)
    assert list(accounts.routes.of("split")) == []


def test_a_model_without_a_route_is_in_no_routes_book(target: Target) -> None:
    accounts = Accounts()
    answer(accounts, like(target, route="", variant="", reason="model", split=None, revision=0))
    assert cells(accounts) == {("", "", "echo", "1"): {("grpc", 0): 1}}
    assert successes(accounts, "echo", "1") == (1, 0)
    assert list(accounts.routes.of("")) == []


def test_what_was_not_resolved_or_not_read_is_counted_without_names() -> None:
    accounts = Accounts()
    answer(accounts, None, Code.NOT_FOUND, is_executed=False)
    accounts.refused("http", int(Code.INVALID_ARGUMENT))
    assert cells(accounts) == {("", "", "", ""): {("grpc", 5): 1, ("http", 3): 1}}


# Successes are noted first and taken into the books in bulk


READERS: dict[str, Callable[[Accounts], int]] = {
    "cells": lambda accounts: cells(accounts)["split", "stable", "echo", "1"]["grpc", 0],
    "version": lambda accounts: successes(accounts, "echo", "1")[0],
    "route": lambda accounts: successes(accounts, "split", "")[0],
    "revisions": lambda accounts: next(accounts.routes.of("split"))[2].requests,
    "totals": lambda accounts: accounts.routes.totals("split")["stable"].requests,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_of_any_book_sees_every_request_that_was_answered_before_it_asked(
    target: Target, reader: str
) -> None:
    accounts = Accounts()
    for count in range(1, 2 * SETTLE_EVERY + 3):
        answer(accounts, target)
        if count in (1, 2, SETTLE_EVERY - 1, SETTLE_EVERY, SETTLE_EVERY + 1):
            assert READERS[reader](accounts) == count
    assert {name: read(accounts) for name, read in READERS.items()} == dict.fromkeys(
        READERS, 2 * SETTLE_EVERY + 2
    )


def test_reading_counts_nothing_twice(target: Target) -> None:
    accounts = Accounts()
    answer(accounts, target)
    for _ in range(3):
        assert {read(accounts) for read in READERS.values()} == {1}


def test_notes_are_bounded_though_nobody_reads(target: Target) -> None:
    accounts = Accounts()
    for _ in range(2 * SETTLE_EVERY + 1):
        answer(accounts, target)
        (tally,) = accounts._tallies.values()
        noted = {len(tally.total_ns), len(tally.queue_ns), len(tally.executions)}
        assert len(noted) == 1
        assert noted.pop() < SETTLE_EVERY


def test_tallies_are_bounded_and_none_is_forgotten_uncounted(target: Target) -> None:
    accounts = Accounts()
    for _ in range(MAX_TALLIES + 5):  # as many choices, each for one request
        answer(accounts, like(target))
        assert len(accounts._tallies) <= MAX_TALLIES
    assert {read(accounts) for read in READERS.values()} == {MAX_TALLIES + 5}


def test_a_batch_is_one_execution_of_each_row_whoever_was_in_it_and_whenever_that_is_counted(
    target: Target,
) -> None:
    accounts = Accounts()
    shared = Execution(2, 3, 4, 6, 1)
    pinned = like(target, reason="version", split=None)
    for asked, protocol in (
        (target, "grpc"),
        (target, "http"),
        (like(target), "grpc"),
        (pinned, "grpc"),
        (like(target, revision=2), "http"),
        (target, "grpc"),
    ):
        accounts.answered(asked, executed(shared), protocol, 1, TOTAL_NS, 7)
        if protocol == "http":
            accounts.settle()
    accounts.answered(target, executed(Execution(2, 3, 4, 6, 2)), "grpc", 1, TOTAL_NS, 7)
    for name, version, requests in (("echo", "1", 7), ("split", "", 6)):
        row = accounts.statistics.row(name, version)
        assert (row.execution_count, row.success.count) == (2, requests)
        assert row.batches[6].compute_infer.count == 2


def test_a_version_that_was_loaded_again_goes_on_counting_in_its_row(target: Target) -> None:
    accounts = Accounts()
    answer(accounts, target)
    answer(accounts, like(target))  # a new choice of the same names, as after a reload
    assert cells(accounts) == {("split", "stable", "echo", "1"): {("grpc", 0): 2}}
    assert successes(accounts, "echo", "1") == (2, 0)


class Answer(NamedTuple):
    """One answer to count."""

    choice: int
    protocol: str
    batch: int
    is_error: bool
    rows: int
    times_ns: tuple[int, int]
    arrived_ms: int


answers = st.lists(
    st.builds(
        Answer,
        choice=st.integers(0, 4),
        protocol=st.sampled_from(["grpc", "http"]),
        batch=st.integers(0, 5),
        is_error=st.booleans(),
        rows=st.integers(1, 9),
        times_ns=st.tuples(st.integers(0, 20_000_000_000), st.integers(0, 20_000_000)),
        arrived_ms=st.integers(0, 100),
    ),
    max_size=30,
)


def counted(accounts: Accounts) -> dict[Any, Any]:  # Any: counters of three kinds
    """Return every number in the books."""
    found: dict[Any, Any] = {}
    for key, cell in accounts.metrics.cells.items():
        stages = (cell.latency, cell.queue, cell.infer)
        found[key] = cell.by_code, [(h.counts, pytest.approx(h.total)) for h in stages]
    for name in (("echo", "1"), ("split", ""), ("other", "")):
        found[name] = astuple(accounts.statistics.row(*name))
    for route in ("split", "other"):
        for revision, variant, counts in accounts.routes.of(route):
            found[route, revision, variant] = (
                (counts.requests, counts.errors, counts.fallback, counts.forced),
                (counts.latency.counts, pytest.approx(counts.latency.total)),
            )
    return found


@given(answers)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_counted_in_bulk_is_what_is_counted_one_by_one(
    target: Target, given_answers: list[Answer]
) -> None:
    choices = (
        target,
        like(target, revision=2, assigned="canary", reason="fallback"),
        like(target, assigned_by="rule:beta", reason="rule:beta"),
        like(target, route="other", split=None),
        like(target, route="other"),
    )
    books = []
    for settles_each in (False, True):
        accounts = Accounts()
        batches = [Execution(10 + n, 1_000_000 * n, 7, 8 + n % 2, n) for n in range(6)]
        for one in given_answers:
            total_ns, queue_ns = one.times_ns
            times = Executed((), queue_ns, batches[one.batch])
            who = choices[one.choice]
            if one.is_error:
                accounts.failed(who, times, one.protocol, 13, total_ns, one.arrived_ms)
            else:
                accounts.answered(who, times, one.protocol, one.rows, total_ns, one.arrived_ms)
            if settles_each:
                accounts.settle()
        books.append(counted(accounts))
    assert books[0] == books[1]
