"""What is missing and what came twice, worker by worker. No Redis: documents in, counts out."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from gateway.prediction_log.reader import tally as tally_module
from gateway.prediction_log.reader.completeness import Completeness, End
from gateway.prediction_log.reader.numbers import Range
from gateway.prediction_log.reader.tally import Tally
from gateway.prediction_log.record import LoggedAudit, LoggedPrediction, LoggedTensor, Reduced
from gateway.prediction_log.streams import StreamKind
from tests.support.log_streams import KEY, STARTED_MS, WORKER, audit, label, prediction

LIVE = StreamKind.LIVE
LABELS = StreamKind.LABELS
SUCCESSOR = f"gw-1@{STARTED_MS + 500:x}"


def feed(
    tally: Tally, documents: Iterable[LoggedPrediction | LoggedAudit], key: str = KEY
) -> list[int]:
    """Count documents in their order; return the numbers of the records kept."""
    kept = []
    for document in documents:
        if isinstance(document, LoggedAudit):
            tally.audit(document, key)
        else:
            kept += [record.seq for record in tally.predictions(key, [document])]
    return kept


def read(
    documents: Iterable[LoggedPrediction | LoggedAudit],
    *,
    begin_ms: int = 0,
    is_open: bool = True,
) -> Completeness:
    tally = Tally(LIVE, is_open=is_open)
    tally.begin(LIVE, KEY, begin_ms)
    feed(tally, documents)
    return tally.completeness()


def gaps(completeness: Completeness) -> list[tuple[str, str, str]]:
    return [
        (worker.worker, str(gap.numbers), gap.cause)
        for worker in completeness.workers
        for gap in worker.gaps
    ]


def late(number: int) -> LoggedPrediction:
    """Return a record that may have been written later than it was answered."""
    reduced = LoggedTensor("FP32", (1, 9), Reduced(kind="stat"))
    return prediction(number, inputs={"x": reduced})


def predictions(numbers: Iterable[int]) -> list[LoggedPrediction]:
    return [prediction(number) for number in numbers]


def test_all_numbers_up_to_a_final_audit_are_a_complete_window() -> None:
    found = read([*predictions(range(1, 11)), audit(20, 10, is_final=True)])
    assert (found.seen, found.missing, found.expected, found.percent) == (10, 0, 10, 100.0)
    assert found.is_complete
    assert found.unknown_ends == ()
    assert found.workers[0].end is End.FINAL
    assert found.text() == "100 % complete: 10 of 10 live records"


def test_an_empty_window_lacks_nothing() -> None:
    found = read([])
    assert (found.seen, found.expected, found.percent) == (0, 0, 100.0)


def test_missing_numbers_are_named_exactly() -> None:
    numbers = [n for n in range(1, 101) if n not in (7, 8, 50)]
    found = read(predictions(numbers))
    assert gaps(found) == [
        (WORKER, "7-8", "not in the stream"),
        (WORKER, "50", "not in the stream"),
    ]
    assert (found.seen, found.missing, found.expected, found.percent) == (97, 3, 100, 97.0)
    assert "97.00 % complete: 97 of 100 live records" in found.text()
    assert f"missing 2: {WORKER} live 7-8, not in the stream" in found.text()


def test_a_hundred_percent_is_only_said_where_nothing_is_missing() -> None:
    tally = Tally(LIVE)
    tally.begin(LIVE, KEY, 0)
    feed(tally, predictions(n for n in range(1, 30_002) if n != 5))
    assert tally.completeness().text().startswith("99.99 % complete: 30,000 of 30,001")


def test_out_of_order_is_no_gap() -> None:
    numbers = list(range(1, 200))
    random.Random(4).shuffle(numbers)
    found = read([*predictions(numbers), audit(300, 199, is_final=True)])
    assert found.is_complete
    assert found.seen == 199


@pytest.mark.parametrize("begin_ms", [STARTED_MS + 40, STARTED_MS + 41])
def test_a_window_that_starts_in_the_middle_lacks_nothing_before_it(begin_ms: int) -> None:
    found = read(predictions(n for n in range(41, 61) if n != 45), begin_ms=begin_ms)
    assert gaps(found) == [(WORKER, "45", "not in the stream")]
    assert (found.workers[0].first, found.workers[0].last) == (41, 60)


def test_a_late_record_at_the_window_s_begin_proves_nothing_about_those_behind_it() -> None:
    begin_ms = STARTED_MS + 50
    # 40 was answered before the window and written in it; 41 to 49 stand before the window.
    found = read([late(40), *predictions(range(50, 60))], begin_ms=begin_ms)
    assert found.is_complete
    assert found.workers[0].first == 50
    # 51 was answered inside the window: whatever has a greater number has to be here.
    found = read([late(51), prediction(54)], begin_ms=begin_ms)
    assert gaps(found) == [(WORKER, "52-53", "not in the stream")]
    # Ordinary records are written as they are answered.
    found = read([prediction(40), prediction(42)], begin_ms=begin_ms)
    assert gaps(found) == [(WORKER, "41", "not in the stream")]


def test_a_worker_that_began_inside_the_window_has_to_have_its_first_records() -> None:
    successor = [prediction(n, worker=SUCCESSOR, seq=n - 600) for n in range(603, 610)]
    found = read([*predictions(range(400, 410)), *successor], begin_ms=STARTED_MS + 400)
    assert gaps(found) == [(SUCCESSOR, "1-2", "not in the stream")]
    # A clock that was set back proves nothing: this one is said to begin after its own records.
    liar = [prediction(n, worker=f"gw-1@{STARTED_MS + 9_000:x}") for n in range(450, 453)]
    assert read(liar, begin_ms=STARTED_MS + 400).is_complete


def test_in_a_stream_that_was_never_trimmed_every_worker_has_to_have_its_first_records() -> None:
    found = read([prediction(n, worker="gw-1") for n in (3, 4)])
    assert gaps(found) == [("gw-1", "1-2", "not in the stream")]


def test_audits_say_how_far_a_worker_came() -> None:
    found = read([*predictions(range(1, 6)), audit(10, 8)])
    assert gaps(found) == [(WORKER, "6-8", "not in the stream")]
    assert found.workers[0].last == 8
    # Of a worker of which nothing is left, what it gave between two audits is missing.
    found = read([audit(10, 8), audit(20, 11)], begin_ms=STARTED_MS + 5)
    assert gaps(found) == [(WORKER, "9-11", "not in the stream")]
    assert read([audit(10, 8, is_final=True)], begin_ms=STARTED_MS + 5).workers == ()


def test_an_audit_from_before_the_window_of_another_kind_begins_nothing() -> None:
    tally = Tally(LIVE, others=(LABELS,))
    tally.begin(LIVE, KEY, STARTED_MS + 1)
    tally.begin(LABELS, "labels", STARTED_MS + 50)  # trimmed further than the live records
    tally.audit(audit(10, 8, kind=LABELS), KEY)
    for number in (20, 21, 23):
        assert tally.label(label(number, 1), "labels")
    assert gaps(tally.completeness()) == [(WORKER, "22", "not in the stream")]


def test_kinds_that_are_not_read_are_not_missed() -> None:
    assert read([prediction(1), audit(2, 9, kind=StreamKind.SHADOW)]).is_complete


def test_an_unknown_end_is_said() -> None:
    found = read(predictions([1, 2]))
    assert found.unknown_ends == (WORKER,)
    assert found.is_complete
    assert f"unknown end: {WORKER} live still runs, or was killed" in found.text()
    closed = read(predictions([1, 2]), is_open=False)
    assert closed.workers[0].end is End.WINDOW
    assert closed.unknown_ends == ()


def test_repeats_are_dropped_by_worker_and_number_and_by_request() -> None:
    tally = Tally(LIVE)
    tally.begin(LIVE, KEY, 0)
    retried = prediction(3, rid=prediction(1).rid)
    elsewhere = prediction(4, rid=prediction(1).rid, served="stable")
    kept = feed(tally, [prediction(1), prediction(2), prediction(1), retried, elsewhere])
    assert kept == [1, 2, 4]
    found = tally.completeness()
    assert found.repeats == 2
    assert found.seen == 4  # the retried request has its record, which is a repeat and no gap
    assert "2 repeats were left out" in found.text()


def test_a_label_that_came_twice_counts_once() -> None:
    tally = Tally(LABELS)
    tally.begin(LABELS, "labels", 0)
    assert tally.label(label(1, 5), "labels")
    assert not tally.label(label(1, 5), "labels")
    found = tally.completeness()
    assert (found.seen, found.repeats) == (1, 1)


def test_a_name_that_only_looks_like_a_time_is_none() -> None:
    records = [prediction(n, worker="gw-1@soon") for n in (60, 61)]
    assert read(records, begin_ms=STARTED_MS + 50).is_complete


def test_the_memory_of_request_ids_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_module, "REMEMBERED", 10)
    tally = Tally(LIVE)
    feed(tally, predictions(range(1, 26)))
    again = [prediction(n, seq=n + 100) for n in (1, 11, 25)]
    assert feed(tally, again) == [101]  # too long ago
    sizes = len(tally._recent._now) + len(tally._recent._before)
    assert sizes <= 20


def test_large_records_of_a_running_worker_are_under_way_and_no_gap() -> None:
    documents = [late(1), late(4), late(3), late(6)]
    found = read(documents)
    assert found.is_complete
    assert found.workers[0].under_way == 2
    assert "2 large records may still come" in found.text()
    # Nothing comes any more behind a final audit, or where nothing ever came late.
    ended = read([*documents, audit(9, 6, is_final=True)])
    assert gaps(ended) == [(WORKER, "2", "not in the stream"), (WORKER, "5", "not in the stream")]
    assert read(predictions([1, 4, 6])).missing == 3


def test_late_records_behind_a_closed_window_are_no_gap() -> None:
    tally = Tally(LIVE, is_open=False)
    tally.begin(LIVE, KEY, 0)
    feed(tally, predictions([1, 2, 5]))
    assert tally.missing() == {(WORKER, LIVE): [Range(3, 4)]}
    tally.came_later(WORKER, LIVE, 4)
    tally.came_later("nobody", LIVE, 3)
    found = tally.completeness()
    assert gaps(found) == [(WORKER, "3", "not in the stream")]
    assert found.seen == 3


def test_erased_numbers_are_named_and_are_no_loss() -> None:
    tally = Tally(LIVE)
    tally.begin(LIVE, KEY, 0)
    feed(tally, predictions([1, 2, 6]))
    found = tally.completeness({(WORKER, LIVE): [Range(4, 5)]})
    assert gaps(found) == [(WORKER, "3", "not in the stream"), (WORKER, "4-5", "erased")]
    assert (found.missing, found.expected) == (1, 4)
    assert found.workers[0].erased == 2
    assert f"  erased 2: {WORKER} live 4-5" in found.text().splitlines()


def test_workers_do_not_fill_each_other_s_gaps() -> None:
    other = f"gw-2@{STARTED_MS:x}"
    found = read([prediction(1), prediction(3), prediction(2, worker=other)])
    assert gaps(found) == [
        (WORKER, "2", "not in the stream"),
        (other, "1", "not in the stream"),
    ]


def test_the_document_says_the_same() -> None:
    found = read([*predictions([1, 4]), audit(9, 4, {"queue_bytes": 2}, is_final=True)])
    assert found.document() == {
        "kind": "live",
        "percent": 50.0,
        "seen": 2,
        "missing": 2,
        "expected": 4,
        "causes": {"queue_bytes": 2},
        "repeats": 0,
        "unreadable": 0,
        "workers": [
            {
                "worker": WORKER,
                "kind": "live",
                "seen": 2,
                "first": 1,
                "last": 4,
                "missing": 2,
                "erased": 0,
                "under_way": 0,
                "end": "final audit",
                "gaps": [{"first": 2, "last": 3, "cause": "queue_bytes"}],
            }
        ],
    }


def test_only_so_many_gaps_are_listed() -> None:
    found = read(predictions(range(1, 101, 2)))
    assert found.text().count("missing 1:") == 20
    assert "and 29 more gaps" in found.text()
