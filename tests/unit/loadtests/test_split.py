from __future__ import annotations

import math
import random

import pytest

from loadtests.split import interval, shares


def test_the_interval_is_3_3_standard_deviations_of_a_binomial_share() -> None:
    low, high = interval(0.1, 100_000)
    assert low == pytest.approx(0.0969, abs=5e-5)
    assert high == pytest.approx(0.1031, abs=5e-5)
    low, high = interval(0.5, 400)
    assert (low, high) == pytest.approx((0.5 - 3.3 * 0.025, 0.5 + 3.3 * 0.025))


def test_the_interval_stays_within_0_and_1() -> None:
    low, high = interval(0.01, 10)
    assert low == 0.0
    assert high == pytest.approx(0.01 + 3.3 * math.sqrt(0.0099 / 10))
    assert interval(0.99, 10)[1] == 1.0
    assert interval(0.0, 10) == (0.0, 0.0)
    assert interval(1.0, 10) == (1.0, 1.0)


def test_shares_are_compared_with_the_weights_in_their_order() -> None:
    stable, canary = shares({"canary": 105, "stable": 895}, {"stable": 90.0, "canary": 10.0})
    assert (stable.variant, stable.answered, stable.observed) == ("stable", 895, 0.895)
    assert (canary.variant, canary.expected) == ("canary", 0.1)
    assert stable.is_within
    assert canary.is_within


def test_a_share_beyond_its_interval_is_seen() -> None:
    stable, canary = shares({"stable": 80_000, "canary": 20_000}, {"stable": 90.0, "canary": 10.0})
    assert not stable.is_within
    assert not canary.is_within


def test_a_variant_without_an_answer_is_seen() -> None:
    canary = shares({"stable": 1_000}, {"stable": 90.0, "canary": 10.0})[1]
    assert canary.observed == 0.0
    assert not canary.is_within


def test_a_variant_that_nobody_configured_is_seen() -> None:
    (stable, other) = shares({"stable": 999, "": 1}, {"stable": 100.0})
    assert (other.variant, other.expected) == ("", 0.0)
    assert not stable.is_within
    assert not other.is_within


def test_a_variant_of_weight_0_is_right_with_no_answers() -> None:
    old, new = shares({"old": 5}, {"old": 100.0, "new": 0.0})
    assert old.is_within
    assert new.is_within


def test_without_answers_there_are_no_shares() -> None:
    assert shares({}, {"stable": 100.0}) == []


def test_an_honest_split_seldom_leaves_its_interval() -> None:
    draw = random.Random(3)
    outside = 0
    for _ in range(300):
        canary = sum(draw.random() < 0.1 for _ in range(1_000))
        found = shares({"stable": 1_000 - canary, "canary": canary}, {"stable": 90, "canary": 10})
        outside += not found[1].is_within
    assert outside <= 2
