"""Audits from counts."""

from __future__ import annotations

import pytest

from gateway.prediction_log.record import AuditCounts, LoggedAudit, decode_any, encode_logged
from gateway.prediction_log.shipping.audit import (
    SpoolState,
    final_audits,
    imbalance,
    make_audit,
)
from gateway.prediction_log.streams import StreamKind


def test_an_audit_says_what_was_counted_and_comes_back_from_its_bytes() -> None:
    live = AuditCounts(answered=10, sampled_out=3, shipped=4, spooled=2, dropped={"refused": 1})
    audit = make_audit(
        "gw-1@1",
        "digits",
        5_000,
        kinds={StreamKind.LIVE: live, StreamKind.BIG: AuditCounts()},
        state=SpoolState(trimmed_unread=7, spool_bytes=99, oldest_unshipped_ms=3_500),
    )
    assert audit.kinds == {"live": live}
    assert (audit.ts_us, audit.oldest_unshipped_us, audit.trimmed_unread) == (
        5_000_000,
        1_500_000,
        7,
    )
    assert not audit.is_final
    assert decode_any(encode_logged(audit)) == audit


@pytest.mark.parametrize(("now_ms", "oldest_ms"), [(5_000, 0), (5_000, 9_000)])
def test_nothing_waiting_and_a_clock_set_back_have_no_age(now_ms: int, oldest_ms: int) -> None:
    state = SpoolState(oldest_unshipped_ms=oldest_ms)
    assert make_audit("w", "digits", now_ms, kinds={}, state=state).oldest_unshipped_us == 0


def test_what_is_not_accounted_for_is_seen() -> None:
    counts = AuditCounts(
        answered=10, recovered=5, sampled_out=3, shipped=4, spooled=6, dropped={"a": 1, "b": 1}
    )
    assert imbalance(counts) == 0
    assert imbalance(AuditCounts(answered=1)) == 1


def test_a_worker_that_did_not_live_to_write_them_gets_its_last_audits() -> None:
    sequences = {
        ("digits", StreamKind.LIVE): 7,
        ("digits", StreamKind.LABELS): 2,
        ("faces", StreamKind.LIVE): 9,
    }
    digits, faces = final_audits("gw-1@1", sequences, 5_000)
    assert digits == LoggedAudit(
        schema=1,
        worker="gw-1@1",
        ts_us=5_000_000,
        name="digits",
        kinds={"live": AuditCounts(sequence=7), "labels": AuditCounts(sequence=2)},
        is_final=True,
    )
    assert (faces.name, faces.kinds) == ("faces", {"live": AuditCounts(sequence=9)})
