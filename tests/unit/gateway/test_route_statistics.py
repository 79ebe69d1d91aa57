"""What each variant of a route did, by revision: who is counted where, and what is forgotten."""

from __future__ import annotations

import pytest

from gateway.directory import Target
from gateway.route_statistics import KEPT_REVISIONS, RouteStatistics, VariantCounts
from tests.support.targets import count_answer, like, split_target

MS_NS = 1_000_000


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return split_target(tmp_path_factory.mktemp("models"))


def row(counts: VariantCounts) -> tuple[int, int, int, int]:
    """Return requests, errors, those that the fallback served, and forced ones."""
    return counts.requests, counts.errors, counts.fallback, counts.forced


def rows(book: RouteStatistics, route: str = "split") -> list[tuple[int, str, tuple[int, ...]]]:
    return [(revision, variant, row(counts)) for revision, variant, counts in book.of(route)]


def test_an_answer_is_counted_under_its_route_revision_and_variant(target: Target) -> None:
    book = RouteStatistics()
    count_answer(book, target, MS_NS)
    count_answer(book, target, MS_NS, is_error=True)
    count_answer(book, like(target, variant="canary", assigned="canary"), MS_NS)
    count_answer(book, like(target, revision=2), MS_NS)
    count_answer(book, like(target, route="other"), MS_NS)
    assert rows(book) == [
        (2, "stable", (1, 0, 0, 0)),
        (1, "canary", (1, 0, 0, 0)),
        (1, "stable", (2, 1, 0, 0)),
    ]
    assert rows(book, "other") == [(1, "stable", (1, 0, 0, 0))]
    assert rows(book, "nobody") == []
    assert book.totals("nobody") == {}


def test_what_the_fallback_serves_counts_for_the_variant_that_was_assigned(target: Target) -> None:
    book = RouteStatistics()
    count_answer(book, like(target, variant="canary", reason="fallback"), MS_NS)
    assert rows(book) == [(1, "stable", (1, 0, 1, 0))]


@pytest.mark.parametrize("reason", ["rule:internal", "fallback"])
@pytest.mark.parametrize("is_error", [False, True])
def test_what_a_rule_chose_is_counted_apart_whoever_serves_it(
    target: Target, reason: str, is_error: bool
) -> None:
    book = RouteStatistics()
    forced = like(target, reason=reason, assigned_by="rule:internal")
    count_answer(book, forced, MS_NS, is_error=is_error)
    assert rows(book) == [(1, "stable", (0, 0, 0, 1))]
    ((_, _, counts),) = book.of("split")
    assert counts.latency.quantile(0.5) is None


def test_latencies_are_in_seconds_and_read_within_a_quarter(target: Target) -> None:
    book = RouteStatistics()
    for ms in range(1, 101):
        count_answer(book, target, ms * MS_NS)
    ((_, _, counts),) = book.of("split")
    for share in (0.5, 0.95, 0.99):
        quantile = counts.latency.quantile(share)
        assert quantile == pytest.approx(share / 10, rel=0.25)


def test_the_oldest_revisions_are_forgotten_and_totals_only_grow(target: Target) -> None:
    book = RouteStatistics()
    for revision in range(1, KEPT_REVISIONS + 11):
        count_answer(book, like(target, revision=revision), MS_NS, is_error=revision % 2 == 0)
        totals = book.totals("split")["stable"]
        assert (totals.requests, totals.errors) == (revision, revision // 2)
    kept = [revision for revision, _, _ in book.of("split")]
    assert kept == list(range(KEPT_REVISIONS + 10, 10, -1))


def test_a_late_answer_of_a_forgotten_revision_is_in_the_totals(target: Target) -> None:
    book = RouteStatistics()
    for revision in range(10, KEPT_REVISIONS + 20):
        count_answer(book, like(target, revision=revision), MS_NS)
    before = row(book.totals("split")["stable"])
    kept = rows(book)
    for _ in range(3):
        count_answer(book, like(target, revision=2, reason="fallback"), MS_NS, is_error=True)
    count_answer(book, like(target, revision=2, assigned="gone"), MS_NS)
    assert rows(book) == kept
    totals = book.totals("split")
    assert row(totals["stable"]) == (before[0] + 3, 3, 3, 0)
    assert row(totals["gone"]) == (1, 0, 0, 0)


def test_a_new_variant_of_the_oldest_kept_revision_forgets_nothing(target: Target) -> None:
    book = RouteStatistics()
    for revision in range(1, KEPT_REVISIONS + 1):
        count_answer(book, like(target, revision=revision), MS_NS)
    count_answer(book, like(target, revision=1, assigned="canary"), MS_NS)
    assert [entry for entry in rows(book) if entry[0] == 1] == [
        (1, "canary", (1, 0, 0, 0)),
        (1, "stable", (1, 0, 0, 0)),
    ]


def test_totals_are_sums_that_can_be_changed_without_changing_the_book(target: Target) -> None:
    book = RouteStatistics()
    count_answer(book, target, MS_NS)
    book.totals("split")["stable"].requests += 100
    assert row(book.totals("split")["stable"]) == (1, 0, 0, 0)
