"""Whether an experiment's variants were given the shares of units that its weights promise.

Knows counts and planned shares; knows no route, no key and no time. A split that is off (a variant
that loses its users, a bot in one arm, two replicas that disagree) makes every comparison between
the variants worthless, so a mismatch blanks the result and is never called significant.

The test is sequential: it may be looked at after every unit, for as long as one likes, and a
healthy split is flagged with a probability of at most 1 % over all looks together. A chi-square
test that is looked at again and again has no such bound.

    H0: every unit falls into variant i with probability p_i, the planned share
    H1: the probabilities are unknown, Dirichlet distributed around p with a_i = 100 * p_i

    ln BF = lnG(A) - lnG(A + N) + sum( lnG(a_i + n_i) - lnG(a_i) ) - sum( n_i * ln p_i )

with lnG = ln Gamma, n_i units in variant i, N = sum of n_i and A = sum of a_i = 100. Under H0 the
factor BF is a martingale that starts at 1, so by Ville's inequality it ever reaches 100 with a
probability of at most 1/100.

Use it on units: distinct keys of one epoch, in which salt and split stay the same, counted in the
variant that the split assigned (not the one that served), forced traffic left out. A sample of the
units will do if it is drawn independently of the split (gateway/route_control/units.py). Where
requests have no keys, each request is a unit. Never use it on the request counts of keyed traffic:
requests of one key all go the same way, so a few heavy keys make a healthy split look wrong.

Source: Lindon and Malek, "Anytime-Valid Inference for Multinomial Count Data", arXiv 2011.03567;
Optimizely's package ssrm-test is the same test.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, inf, isfinite, lgamma, log
from typing import Final

CONCENTRATION: Final = 100.0
"""How firmly H1 expects shares near the planned ones: as if it had seen this many units."""
LN_LIMIT: Final = log(100)
"""From this ln BF on the split is a mismatch; its inverse bounds the rate of false alarms."""
_SUM_TOLERANCE: Final = 1e-6


def ln_bayes_factor(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Return ln BF: how much better the counts fit some other split than the planned one.

    0 without units; negative where they speak for the planned split. Infinite if there is a unit in
    a variant of share 0: the planned split cannot have put it there, so one is proof. A variant of
    share 0 without units is left out.

    Args:
        counts: units per variant.
        shares: planned share per variant, in the same order; they sum to 1.

    Raises:
        ValueError: lengths that differ, a negative count, or shares that are no split.
    """
    _check(counts, shares)
    if any(n and not p for n, p in zip(counts, shares, strict=True)):
        return inf
    terms = [lgamma(CONCENTRATION), -lgamma(CONCENTRATION + sum(counts))]
    for n, p in zip(counts, shares, strict=True):
        if n:  # a variant without units, of whatever share, adds nothing
            a = CONCENTRATION * p
            terms += (lgamma(a + n), -lgamma(a), -n * log(p))
    return fsum(terms)


def mismatch(counts: Sequence[int], shares: Sequence[float]) -> bool:
    """Return whether the counts contradict the planned shares: BF is at least 100.

    Says so about this look. Whoever must not miss an alarm between two looks keeps the answer: a
    factor that reached the limit once may fall below it again.

    Raises:
        ValueError: as ln_bayes_factor.
    """
    return ln_bayes_factor(counts, shares) >= LN_LIMIT


def _check(counts: Sequence[int], shares: Sequence[float]) -> None:
    if len(counts) != len(shares):
        raise ValueError(f"{len(counts)} counts do not go with {len(shares)} shares")
    if min(counts, default=0) < 0:
        raise ValueError(f"counts {list(counts)} are not all positive or 0")
    if not all(isfinite(p) and p >= 0 for p in shares) or abs(fsum(shares) - 1) > _SUM_TOLERANCE:
        raise ValueError(f"shares {list(shares)} are not a split: each at least 0, 1 together")
