"""Error rates under continuous watching: no false alarm however long, and drift found soon."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.drift import concept
from gateway.drift.concept import ConceptVerdict, Rate, Watch
from tests.support.drift import weights

RISE = 0.02


def coins(
    random: np.random.Generator, rate: float, rows: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return (random.random(rows) < rate).astype(np.float64)


def played(
    rates: list[float], *, seed: int = 0, rows: int = 200, baseline: Rate | None = None
) -> list[ConceptVerdict]:
    """Return the verdict after each window of answers that are wrong at these rates."""
    random = np.random.default_rng(seed)
    watch = concept.begin(0.025, baseline)
    verdicts = []
    for number, rate in enumerate(rates, 1):
        wrong = coins(random, rate, rows)
        watch = concept.observe(watch, wrong, weights(rows), number)
        verdicts.append(concept.verdict(watch, wrong, weights(rows), RISE))
    return verdicts


def test_a_rate_that_triples_is_found_within_a_few_windows() -> None:
    verdicts = played([0.05] * 20 + [0.15] * 10, baseline=Rate(share=0.05, size=2_000))
    found = [number for number, verdict in enumerate(verdicts, 1) if verdict.is_drifted]
    assert found
    assert 21 <= found[0] <= 24
    first = verdicts[found[0] - 1]
    assert first.evidence >= first.needed
    assert first.recent_rate == pytest.approx(0.15, abs=0.05)


def test_a_long_good_time_does_not_delay_the_alarm() -> None:
    short = played([0.05] * 5 + [0.3] * 10, baseline=Rate(share=0.05, size=2_000))
    long = played([0.05] * 200 + [0.3] * 10, baseline=Rate(share=0.05, size=2_000))
    waited = [
        next(n for n, v in enumerate(verdicts) if v.is_drifted) - good
        for verdicts, good in ((short, 5), (long, 200))
    ]
    assert waited[1] <= waited[0] + 1


def test_without_a_baseline_the_first_labels_make_one() -> None:
    verdicts = played([0.1] * 5 + [0.4] * 5, rows=60)
    assert verdicts[0].baseline is not None
    assert [v.since_window for v in verdicts[:3]] == [None, None, 3]  # 120 labels after two
    assert not verdicts[4].is_drifted
    assert verdicts[-1].is_drifted
    assert not verdicts[-1].is_from_reference


def test_a_model_that_gets_better_is_no_drift() -> None:
    verdicts = played([0.01] * 30, baseline=Rate(share=0.2, size=500))
    assert not any(v.is_drifted for v in verdicts)


def test_false_alarms_of_long_watches_are_rarer_than_the_level() -> None:
    """The baseline is drawn as well: its error is half of what may go wrong."""
    alarms = 0
    for seed in range(120):
        random = np.random.default_rng(seed)
        size = 300
        baseline = Rate(share=float(coins(random, 0.1, size).mean()), size=size)
        verdicts = played([0.1] * 30, seed=1_000 + seed, rows=50, baseline=baseline)
        alarms += any(v.evidence >= v.needed for v in verdicts)
    assert alarms <= 6  # more has probability 0.01 at a true rate of 0.025


def test_windows_without_labels_change_nothing() -> None:
    watch = concept.begin(0.05, Rate(share=0.1, size=100))
    assert concept.observe(watch, np.zeros(0), np.zeros(0), 1) is watch
    verdict = concept.verdict(watch, np.zeros(0), np.zeros(0), RISE)
    assert (verdict.labelled, verdict.rate, verdict.evidence) == (0, None, 1.0)


def test_the_state_stays_small() -> None:
    random = np.random.default_rng(1)
    watch: Watch = concept.begin(0.05, Rate(share=0.1, size=1_000))
    for number in range(1, 200):
        watch = concept.observe(watch, coins(random, 0.1, 20), weights(20), number)
        assert len(watch.games) <= concept.MAX_GAMES
        assert watch.games[-1].since_window == number or any(
            game.since_window == number for game in watch.games
        )


def test_smaller_weights_are_smaller_bets() -> None:
    wrong = np.array([1.0] * 30 + [0.0] * 30)
    start = concept.begin(0.05, Rate(share=0.1, size=1_000))
    full = concept.observe(start, wrong, weights(60), 1)
    # The wrong ones are of requests that were logged for their slowness, and stand for few others.
    light = concept.observe(start, wrong, np.where(wrong > 0, 1.0, 20.0), 1)
    evidence = [concept.verdict(w, wrong, weights(60), RISE).evidence for w in (full, light)]
    assert evidence[0] > 100
    assert evidence[1] < 1
