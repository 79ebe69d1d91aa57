"""Rows of ModelStatistics: what is counted per request, and what once per batch."""

from __future__ import annotations

from collections import Counter

from engines.executed import Execution
from gateway.statistics import Duration, InferenceStatistics, StatisticsBook, Successes


def batch(*, number: int = 1, rows: int = 4) -> Execution:
    """Return a batch that ran."""
    return Execution(input_ns=20, infer_ns=30, output_ns=40, rows=rows, number=number)


def add(
    row: InferenceStatistics, *executions: Execution, rows: int = 1, queue_ns: int = 10
) -> None:
    """Count successes together, one of so many rows in each of the batches given."""
    row.add(
        Successes(
            requests=len(executions),
            rows=rows * len(executions),
            last_ms=7,
            total_ns=100 * len(executions),
            queue_ns=queue_ns * len(executions),
            executions=Counter(executions),
        )
    )


def test_each_success_counts_every_stage_and_its_own_rows() -> None:
    row, shared = InferenceStatistics(), batch()
    add(row, shared, rows=3, queue_ns=11)
    add(row, shared, rows=1, queue_ns=13)
    assert row.inference_count == 4
    assert row.success == Duration(count=2, ns=200)
    assert row.queue == Duration(count=2, ns=24)
    assert row.compute_input == Duration(count=2, ns=40)
    assert row.compute_infer == Duration(count=2, ns=60)
    assert row.compute_output == Duration(count=2, ns=80)
    assert row.fail == Duration()
    assert row.last_inference_ms == 7


def test_requests_that_ran_together_are_one_execution() -> None:
    row, shared, alone = InferenceStatistics(), batch(number=1), batch(number=2, rows=1)
    add(row, shared, shared, shared)
    add(row, shared, alone)  # settled later, which makes it no second batch
    assert row.execution_count == 2
    assert set(row.batches) == {4, 1}
    assert row.batches[4].compute_infer == Duration(count=1, ns=30)
    assert row.batches[1].compute_input == Duration(count=1, ns=20)
    assert row.compute_infer == Duration(count=5, ns=150)


def test_batches_of_two_versions_with_the_same_number_are_two_executions() -> None:
    row, one, two = InferenceStatistics(), batch(), batch()  # of a route
    for execution in (one, two, one, two):
        add(row, execution)
    assert row.execution_count == 2
    assert row.batches[4].compute_output == Duration(count=2, ns=80)


def test_a_batch_is_counted_once_in_each_row_that_its_requests_belong_to() -> None:
    route, version, shared = InferenceStatistics(), InferenceStatistics(), batch()
    for row in (route, version, route, version):
        add(row, shared)
    assert (route.execution_count, version.execution_count) == (1, 1)


def test_the_last_request_is_the_latest_whatever_is_counted_last() -> None:
    row = InferenceStatistics()
    row.add_failure(total_ns=1, now_ms=9)
    add(row, batch())
    assert row.last_inference_ms == 9


def test_a_failure_counts_neither_rows_nor_stages() -> None:
    row = InferenceStatistics()
    row.add_failure(total_ns=50, now_ms=9)
    assert row.fail == Duration(count=1, ns=50)
    assert row.last_inference_ms == 9
    assert (row.inference_count, row.execution_count, row.queue.count) == (0, 0, 0)


def test_a_row_is_made_on_first_use_and_kept() -> None:
    book = StatisticsBook()
    book.row("m", "1").add_failure(total_ns=1, now_ms=1)
    assert book.row("m", "1").fail.count == 1
    assert book.row("m", "2").fail.count == 0
