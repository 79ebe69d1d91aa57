"""Which answers are logged and with which weight; the distribution is a property."""

from __future__ import annotations

import pytest

from gateway.prediction_log.capture.sampling import Sampler, WholeShare, place

IDS = [n.to_bytes(16) for n in range(1_000)]


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_errors_are_always_kept_and_count_once(status: int) -> None:
    sampler = Sampler(0.0, 10)
    assert {sampler.weigh(rid, status, 99) for rid in IDS} == {(1.0, "error")}


def test_what_took_longer_than_the_limit_is_always_kept_and_counts_once() -> None:
    sampler = Sampler(0.0, 10)
    assert {sampler.weigh(rid, 200, 11) for rid in IDS} == {(1.0, "slow")}
    assert {sampler.weigh(rid, 200, 10)[0] for rid in IDS} == {0.0}


def test_without_a_limit_nothing_is_slow() -> None:
    assert Sampler(0.0, 0).weigh(IDS[0], 200, 1 << 50)[0] == 0.0


def test_of_a_share_of_one_all_are_kept_and_of_none_none() -> None:
    assert {Sampler(1.0, 0).weigh(rid, 200, 1) for rid in IDS} == {(1.0, "base")}
    assert {Sampler(0.0, 0).weigh(rid, 200, 1)[0] for rid in IDS} == {0.0}


@pytest.mark.parametrize("share", [0.9, 0.1, 0.003])
def test_the_weight_is_one_over_the_share(share: float) -> None:
    found = {Sampler(share, 0).weigh(n.to_bytes(16), 200, 1) for n in range(10_000)}
    assert found == {(1.0 / share, "base"), (0.0, "base")}


def test_a_share_too_small_to_draw_has_the_weight_of_what_is_drawn() -> None:
    assert Sampler(1e-15, 0)._base[0] == 2**32


def test_whoever_asks_again_gets_the_same_answer() -> None:
    assert [Sampler(0.5, 0).weigh(rid, 200, 1) for rid in IDS] == [
        Sampler(0.5, 0).weigh(rid, 201, 9) for rid in IDS
    ]


@pytest.mark.parametrize(
    ("share", "slower_than_us", "is_partial"),
    [(1.0, 0, False), (0.999, 0, True), (0.0, 0, True), (1.0, 1, True)],
)
def test_a_sampler_that_need_not_be_asked_says_so(
    share: float, slower_than_us: int, is_partial: bool
) -> None:
    assert Sampler(share, slower_than_us).is_partial is is_partial


def test_the_share_that_is_kept_whole_is_drawn_apart_from_the_sample() -> None:
    ids = [n.to_bytes(16) for n in range(40_000)]
    sampler, whole = Sampler(0.5, 0), WholeShare(0.5)
    kept = [rid for rid in ids if sampler.weigh(rid, 200, 1)[0]]
    both = sum(whole.takes(rid) for rid in kept)
    assert abs(both / len(kept) - 0.5) < 0.02


def test_all_or_none_are_kept_whole_where_the_share_says_so() -> None:
    assert all(WholeShare(1.0).takes(rid) for rid in IDS)
    assert not any(WholeShare(0.0).takes(rid) for rid in IDS)


def test_places_are_the_same_in_every_process() -> None:
    # Written down: a replica of another build must agree with this one.
    assert [place(bytes(16)), place(bytes(range(16)))] == [1_775_186_254, 494_358_633]
