"""Why numbers are missing, by what audits say: only where the counts leave no choice."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.prediction_log.reader.tally import Tally
from gateway.prediction_log.record import LoggedAudit
from gateway.prediction_log.streams import StreamKind
from tests.support.log_streams import KEY, STARTED_MS, WORKER, audit, prediction

OTHER = f"gw-2@{STARTED_MS:x}"


def causes(
    missing: Iterable[int], audits: Iterable[LoggedAudit], *, first: int = 1, last: int = 30
) -> list[tuple[str, str]]:
    """Return the gaps of a window of numbers without these, and their causes."""
    tally = Tally(StreamKind.LIVE)
    tally.begin(StreamKind.LIVE, KEY, 0 if first == 1 else STARTED_MS + first)
    left_out = set(missing)
    records = [prediction(n) for n in range(first, last + 1) if n not in left_out]
    tally.predictions(KEY, records)
    for one in audits:
        tally.audit(one, KEY)
    found = tally.completeness()
    assert found.missing == len(left_out)
    return [(str(gap.numbers), gap.cause) for worker in found.workers for gap in worker.gaps]


def test_as_many_dropped_as_missing_is_the_cause() -> None:
    assert causes([5, 6, 9], [audit(40, 30, {"queue_bytes": 3})]) == [
        ("5-6", "queue_bytes"),
        ("9", "queue_bytes"),
    ]


def test_several_reasons_are_all_named() -> None:
    audits = [audit(40, 30, {"queue_bytes": 2, "disk_full": 1})]
    assert causes([5, 6, 9], audits)[0] == ("5-6", "disk_full+queue_bytes")


def test_without_an_audit_it_is_only_known_that_they_are_not_there() -> None:
    assert causes([5], []) == [("5", "not in the stream")]
    assert causes([5], [audit(40, 30)]) == [("5", "not in the stream")]


def test_each_pair_of_audits_speaks_of_what_lies_between_them() -> None:
    audits = [
        audit(11, 10, {"queue_bytes": 2}),
        audit(21, 20, {"queue_bytes": 2}),
        audit(31, 30, {"queue_bytes": 2, "disk_full": 1}),
    ]
    assert causes([5, 6, 15, 25], audits) == [
        ("5-6", "queue_bytes"),
        ("15", "not in the stream"),
        ("25", "disk_full"),
    ]


def test_a_gap_across_an_audit_is_told_in_its_parts() -> None:
    audits = [audit(11, 10, {"queue_bytes": 2}), audit(31, 30, {"queue_bytes": 2})]
    assert causes([9, 10, 11], audits) == [("9-10", "queue_bytes"), ("11", "not in the stream")]


def test_a_gap_whose_parts_have_one_cause_is_one_gap() -> None:
    assert causes([9, 10, 11], [audit(11, 10), audit(31, 30)]) == [("9-11", "not in the stream")]


def test_what_was_spooled_may_be_dropped_long_after_it_got_its_number() -> None:
    audits = [audit(11, 10), audit(21, 20, {"oldest_segment": 3}), audit(31, 30)]
    audits[2] = audit(31, 30, {"oldest_segment": 3})
    assert causes([4, 5, 6], audits) == [("4-6", "oldest_segment")]


def test_more_missing_than_dropped_leaves_both_open() -> None:
    assert causes([5, 6, 9], [audit(40, 30, {"queue_bytes": 2})]) == [
        ("5-6", "not in the stream or queue_bytes"),
        ("9", "not in the stream or queue_bytes"),
    ]


def test_numbers_behind_the_last_audit_have_no_cause_yet() -> None:
    assert causes([5, 25], [audit(11, 10, {"queue_bytes": 1})]) == [
        ("5", "queue_bytes"),
        ("25", "not in the stream"),
    ]


def test_what_was_dropped_before_the_window_may_be_the_cause_and_is_not_said_to_be() -> None:
    audits = [audit(22, 21, {"queue_bytes": 1}), audit(31, 30, {"queue_bytes": 2})]
    assert causes([17, 25], audits, first=15) == [
        ("17", "not in the stream or queue_bytes"),
        ("25", "queue_bytes"),
    ]


def test_a_successor_counts_what_it_found_damaged() -> None:
    ended = audit(40, 30, is_final=True)
    successor = audit(41, 0, {"corrupt": 2}, worker=OTHER)
    assert causes([7, 8], [ended, successor]) == [("7-8", "corrupt")]
    assert WORKER != OTHER
