"""Rows of ModelStatistics: what is counted per request, and what once per batch."""

from __future__ import annotations

from engines.batcher import Executed
from gateway.statistics import Duration, InferenceStatistics, StatisticsBook


def executed(*, number: int = 1, rows: int = 4, queue_ns: int = 10) -> Executed:
    """Return an executed request of a batch."""
    return Executed(
        outputs=(),
        queue_ns=queue_ns,
        input_ns=20,
        infer_ns=30,
        output_ns=40,
        batch_rows=rows,
        batch_number=number,
    )


def add(row: InferenceStatistics, what: Executed, *, rows: int = 1, source: str = "m/1") -> None:
    """Count one success."""
    row.add_success(what, rows=rows, total_ns=100, now_ms=7, source=source)


def test_each_success_counts_every_stage_and_its_own_rows() -> None:
    row = InferenceStatistics()
    add(row, executed(queue_ns=11), rows=3)
    add(row, executed(queue_ns=13), rows=1)
    assert row.inference_count == 4
    assert row.success == Duration(count=2, ns=200)
    assert row.queue == Duration(count=2, ns=24)
    assert row.compute_input == Duration(count=2, ns=40)
    assert row.compute_infer == Duration(count=2, ns=60)
    assert row.compute_output == Duration(count=2, ns=80)
    assert row.fail == Duration()
    assert row.last_inference_ms == 7


def test_requests_that_ran_together_are_one_execution() -> None:
    row = InferenceStatistics()
    for _ in range(4):
        add(row, executed(number=1))
    add(row, executed(number=2, rows=1))
    assert row.execution_count == 2
    assert set(row.batches) == {4, 1}
    assert row.batches[4].compute_infer == Duration(count=1, ns=30)
    assert row.batches[1].compute_input == Duration(count=1, ns=20)


def test_batches_of_two_versions_with_the_same_number_are_two_executions() -> None:
    row = InferenceStatistics()  # of a route
    for source in ("m/1", "m/2", "m/1", "m/2"):
        add(row, executed(number=1), source=source)
    assert row.execution_count == 2
    assert row.batches[4].compute_output == Duration(count=2, ns=80)


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
