"""How fast a backlog is sent."""

from __future__ import annotations

import pytest

from gateway.prediction_log.shipping.pacing import BEHIND_MS, FLOOR_PER_S, Pace


def send_for(pace: Pace, seconds: float, *, batch: int = 250, age_ms: int = BEHIND_MS) -> int:
    """Send batches from time 100 on, waiting as told; return how many records went."""
    now_s, sent = 100.0, 0
    while now_s < 100.0 + seconds:
        sent += batch
        now_s += 0.001 + pace.delay_s(batch, age_ms, now_s)
    return sent


def test_what_is_not_late_is_never_held_back() -> None:
    pace = Pace(5.0)
    assert [pace.delay_s(512, BEHIND_MS - 1, 100.0) for _ in range(1_000)] == [0.0] * 1_000


def test_a_backlog_without_traffic_goes_at_the_floor() -> None:
    assert send_for(Pace(5.0), 10.0) == pytest.approx(10 * FLOOR_PER_S, rel=0.03)


@pytest.mark.parametrize(("incoming_per_s", "expected_per_s"), [(1_000, 10_000), (6_000, 30_000)])
def test_a_backlog_goes_at_a_multiple_of_what_comes_in(
    incoming_per_s: int, expected_per_s: int
) -> None:
    pace = Pace(5.0)
    for second in range(60):
        pace.note(incoming_per_s * second, float(second))
        pace.note(incoming_per_s * second, second + 0.5)  # within a window: not looked at
    assert pace.incoming_per_s == pytest.approx(incoming_per_s, rel=0.01)
    assert send_for(pace, 10.0) == pytest.approx(10 * expected_per_s, rel=0.03)


def test_records_that_were_wound_back_are_not_taken_for_new_ones() -> None:
    pace = Pace(5.0)
    pace.note(0, 0.0)
    pace.rebase(1_000_000, 0.5)
    pace.note(1_000_000, 10.0)
    assert pace.incoming_per_s == 0.0


def test_after_a_pause_at_most_a_tenth_of_a_second_is_made_up_for() -> None:
    pace = Pace(1.0)
    send_for(pace, 1.0)
    delays = [pace.delay_s(250, BEHIND_MS, 500.0) for _ in range(8)]
    assert delays[:4] == [0.0] * 4
    assert delays[4:] == pytest.approx([0.025, 0.05, 0.075, 0.1])
