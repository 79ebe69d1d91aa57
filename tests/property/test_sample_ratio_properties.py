"""The sample-ratio test: against independent oracles, on healthy splits, and on broken ones.

The simulations are seeded. Their targets are those of the design: a healthy split is flagged at
most once in a hundred hours of looking; 92/8 served for 90/10 planned is found by 6 000 units.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from math import log
from random import Random
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats  # type: ignore[import-untyped]

from router.sample_ratio import ln_bayes_factor, mismatch
from router.slot_map import SlotMap, lay_out
from router.slots import SLOTS, KeySpace

SEED = 20_261_121
PLANNED = (0.9, 0.1)


@st.composite
def splits(draw: st.DrawFn) -> list[int]:
    """Draw slot sizes of two to five variants, none of them zero."""
    cuts = draw(st.lists(st.integers(1, SLOTS - 1), min_size=1, max_size=4, unique=True))
    edges = [0, *sorted(cuts), SLOTS]
    return [b - a for a, b in pairwise(edges)]


@st.composite
def observations(draw: st.DrawFn, most: int) -> tuple[list[int], list[int]]:
    """Draw a split in slots and as many counts."""
    sizes = draw(splits())
    counts = draw(st.lists(st.integers(0, most), min_size=len(sizes), max_size=len(sizes)))
    return counts, sizes


def shares_of(sizes: Sequence[int]) -> list[float]:
    return [size / SLOTS for size in sizes]


def exact_factor(counts: Sequence[int], sizes: Sequence[int]) -> Fraction:
    """Return BF as a product over the units, in whichever order they came: a Polya urn over p."""
    factor, seen = Fraction(1), 0
    for n, size in zip(counts, sizes, strict=True):
        p = Fraction(size, SLOTS)
        for i in range(n):
            factor *= (100 * p + i) / ((100 + seen) * p)
            seen += 1
    return factor


@given(observations(most=30))
def test_the_factor_is_that_of_exact_fractions_unit_by_unit(
    observed: tuple[list[int], list[int]],
) -> None:
    counts, sizes = observed
    exact = exact_factor(counts, sizes)
    ln_exact = log(exact.numerator) - log(exact.denominator)
    assert ln_bayes_factor(counts, shares_of(sizes)) == pytest.approx(ln_exact, abs=1e-9)


@given(observations(most=10_000_000))
def test_the_factor_is_the_formula_with_another_library_s_gamma_function(
    observed: tuple[list[int], list[int]],
) -> None:
    counts, sizes = observed
    n, p = np.array(counts, dtype=np.float64), np.array(sizes, dtype=np.float64) / SLOTS
    alternative = special.gammaln(100 * p + n) - special.gammaln(100 * p)
    whole = special.gammaln(100.0) - special.gammaln(100.0 + n.sum())
    expected = float(whole + alternative.sum() - (n * np.log(p)).sum())
    assert ln_bayes_factor(counts, shares_of(sizes)) == pytest.approx(expected, rel=1e-9, abs=1e-5)


@given(observations(most=2_000))
def test_on_average_over_a_healthy_split_the_next_unit_does_not_change_the_factor(
    observed: tuple[list[int], list[int]],
) -> None:
    """A martingale: what bounds the false alarms however often one looks."""
    counts, sizes = observed
    shares = shares_of(sizes)
    now = ln_bayes_factor(counts, shares)
    ratios = []
    for i, p in enumerate(shares):
        after = [n + (i == k) for k, n in enumerate(counts)]
        ratios.append(p * np.exp(ln_bayes_factor(after, shares) - now))
    assert sum(ratios) == pytest.approx(1, abs=1e-6)


@given(observations(most=100_000), st.randoms(use_true_random=False))
def test_the_order_of_the_variants_does_not_matter(
    observed: tuple[list[int], list[int]], random: Random
) -> None:
    counts, sizes = observed
    pairs = list(zip(counts, sizes, strict=True))
    random.shuffle(pairs)
    mixed = ln_bayes_factor([n for n, _ in pairs], shares_of([size for _, size in pairs]))
    assert mixed == pytest.approx(ln_bayes_factor(counts, shares_of(sizes)), abs=1e-6)


LOOKS = 360
"""One hour, a look every ten seconds."""


def chi_square_tail(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Return the p of the test that must not be looked at twice."""
    total = sum(counts)
    return float(stats.chisquare(counts, [total * p for p in shares]).pvalue)


def looks(
    rng: np.random.Generator, shares: Sequence[float], units: int, times: int
) -> list[list[int]]:
    """Return the growing counts of one run: so many new units before each look."""
    steps = rng.multinomial(units, shares, size=times)
    found: list[list[int]] = steps.cumsum(axis=0).tolist()
    return found


@pytest.mark.parametrize("shares", [PLANNED, (0.5, 0.5), (0.5, 0.3, 0.2)])
def test_a_healthy_split_is_flagged_in_at_most_one_run_of_a_hundred_over_360_looks(
    shares: tuple[float, ...],
) -> None:
    rng, runs = np.random.default_rng(SEED), 1_000
    flagged = 0
    for _ in range(runs):
        flagged += any(mismatch(counts, shares) for counts in looks(rng, shares, 20, LOOKS))
    assert flagged <= runs * 0.01


def test_the_same_looks_would_ruin_a_chi_square_test() -> None:
    """The simulation has teeth: a test without the sequential property fails it."""
    rng, runs = np.random.default_rng(SEED), 300
    flagged = 0
    for _ in range(runs):
        grown = np.array(looks(rng, PLANNED, 20, LOOKS))
        expected = grown.sum(axis=1, keepdims=True) * np.array(PLANNED)
        statistic = ((grown - expected) ** 2 / expected).sum(axis=1)
        flagged += bool((stats.chi2.sf(statistic, 1) < 0.001).any())
    assert flagged > runs * 0.01


def units_until_flagged(rng: np.random.Generator, served: Sequence[float], limit: int) -> int:
    """Return how many units it took, with a look after every 100; over the limit: never."""
    every = 100
    for look, counts in enumerate(looks(rng, served, every, limit // every), start=1):
        if mismatch(counts, PLANNED):
            return look * every
    return limit + 1


def test_92_to_8_for_90_to_10_is_found_by_six_thousand_units() -> None:
    rng = np.random.default_rng(SEED)
    found = sorted(units_until_flagged(rng, (0.92, 0.08), 6_000) for _ in range(1_000))
    assert sum(units <= 6_000 for units in found) >= 950
    # The design's simulation, with coarser looks, had 2 600 to 2 700. Rarer looks find it later.
    assert 2_100 <= median(found) <= 2_900


def heavy_tailed_epoch(salt: str, rng: np.random.Generator, keys: int) -> tuple[list[int], ...]:
    """Split keys as the router does; return units and requests per variant.

    Keys make requests by Zipf's law: most make one, some make thousands.
    """
    slot_map = SlotMap(lay_out({"a": 900_000, "b": 100_000}, 1), {"a": 0, "b": 1})
    space = KeySpace(salt)
    requests = np.minimum(rng.zipf(1.8, size=keys), 10_000)
    units, asked = [0, 0], [0, 0]
    for n in range(keys):
        owner = slot_map.owner(space.slot(b"user-%d" % n))
        units[owner] += 1
        asked[owner] += int(requests[n])
    return units, asked


def test_heavy_keys_flag_the_requests_of_healthy_splits_but_never_their_units() -> None:
    rng, runs = np.random.default_rng(SEED), 200
    units_flagged, requests_flagged, requests_off = 0, 0, 0
    for run in range(runs):
        units, requests = heavy_tailed_epoch(f"epoch-{run}", rng, 3_000)
        units_flagged += mismatch(units, PLANNED)
        requests_flagged += mismatch(requests, PLANNED)
        requests_off += chi_square_tail(requests, PLANNED) < 0.001
    assert units_flagged <= runs * 0.01
    assert requests_flagged >= runs * 0.5
    assert requests_off >= requests_flagged  # the design saw 85 % with a chi-square test
