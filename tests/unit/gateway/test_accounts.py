"""The three books of an answered request: metrics, statistics in Triton's shape, routes."""

from __future__ import annotations

import pytest

from engines.batcher import Executed
from gateway.accounts import Accounts
from gateway.directory import Target
from gateway.errors import Code
from tests.support.targets import split_target

TOTAL_NS = 5_000_000
EXECUTED = Executed(
    outputs=(), queue_ns=1, input_ns=2, infer_ns=3, output_ns=4, batch_rows=2, batch_number=1
)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return split_target(tmp_path_factory.mktemp("models"))


def answer(
    accounts: Accounts, target: Target | None, code: Code = Code.OK, *, is_executed: bool = True
) -> None:
    """Count one answer of two rows."""
    accounts.answered(
        target,
        EXECUTED if is_executed else None,
        protocol="grpc",
        code=int(code),
        rows=2,
        total_ns=TOTAL_NS,
        now_ms=7,
    )


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
    fallen = target._replace(assigned="canary", reason="fallback")
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
    answer(accounts, target._replace(reason="version", split=None))
    assert cells(accounts) == {("split", "stable", "echo", "1"): {("grpc", 0): 1}}
    assert successes(accounts, "echo", "1") == (1, 0)
    assert successes(accounts, "split", "") == (0, 0)
    assert list(accounts.routes.of("split")) == []


def test_a_model_without_a_route_is_in_no_routes_book(target: Target) -> None:
    accounts = Accounts()
    answer(accounts, target._replace(route="", variant="", reason="model", split=None, revision=0))
    assert cells(accounts) == {("", "", "echo", "1"): {("grpc", 0): 1}}
    assert successes(accounts, "echo", "1") == (1, 0)
    assert list(accounts.routes.of("")) == []


def test_what_was_not_resolved_or_not_read_is_counted_without_names() -> None:
    accounts = Accounts()
    answer(accounts, None, Code.NOT_FOUND, is_executed=False)
    accounts.refused("http", int(Code.INVALID_ARGUMENT))
    assert cells(accounts) == {("", "", "", ""): {("grpc", 5): 1, ("http", 3): 1}}
