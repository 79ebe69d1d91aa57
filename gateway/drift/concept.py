"""Whether answers are wrong more often than before, looked at as often as one likes.

A game against the claim that answers are wrong at most at the baseline's rate: every labelled
answer is a bet, and if the claim is true no way of betting multiplies the stake by 1/level with
more than probability `level`, however long it is played and whenever one looks (Ville). Several
stakes are played at once, and a new game begins with every window, so that a long good time does
not have to be made up for first; all share one unit of stake.

Two things may be wrong by chance, and each gets half of the level: the baseline's rate, which is
known from a sample (its upper bound is played against), and the game.

Weights below the largest one of a window are smaller bets. Pure; the state is a value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from gateway.drift import statistics
from gateway.drift.statistics import Floats

MIN_BASELINE: Final = 100.0
"""Labelled answers (effective number) that make a baseline where the reference has no labels."""
MAX_GAMES: Final = 64
"""Games that are played at once; the least promising one is given up for a new one."""
STAKES: Final = np.geomspace(0.002, 0.9, 24)
"""How far each bet assumes the rate to have risen, as a share of the way to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How often something happened in a sample."""

    share: float
    size: float
    """Effective number of records or rows."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Game:
    """One game, from the window on in which it began."""

    number: int
    """Counts games from 1."""
    since_window: int
    logs: Floats
    """Logarithm of what each of STAKES has become."""
    wrong: float = 0.0
    size: float = 0.0
    """Of the weights of the answers since it began."""

    @property
    def log_evidence(self) -> float:
        """Logarithm of what the stake of this game has become, with its share of the unit."""
        share = statistics.spent(1.0, self.number)
        return math.log(share) + _log_mean(self.logs)

    @property
    def rate(self) -> float:
        """Share of wrong answers since it began."""
        return self.wrong / self.size if self.size > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Watch:
    """The state between windows."""

    level: float
    baseline: Rate | None
    is_from_reference: bool
    games: tuple[Game, ...] = ()
    begun: int = 0
    """Games begun so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptVerdict:
    """What the labels say after a window."""

    labelled: int
    """Rows of this window that have a label."""
    rate: float | None
    """Share of them that were wrong; None: no labels."""
    baseline: float | None
    upper: float | None
    """What the baseline's true rate is at most."""
    evidence: float
    """How much the stake has become; with the claim true it reaches `needed` too rarely to matter.
    """
    needed: float
    recent_rate: float | None
    """Share of wrong answers since the window below."""
    since_window: int | None
    """Where the most convincing game began."""
    is_drifted: bool
    is_from_reference: bool


def begin(level: float, baseline: Rate | None) -> Watch:
    """Return the state before the first window; without a baseline the first labels make one."""
    return Watch(level=level, baseline=baseline, is_from_reference=baseline is not None)


def observe(watch: Watch, wrong: Floats, weights: Floats, window: int) -> Watch:
    """Return the state after a window's labelled answers: 1 where one was wrong, else 0."""
    if not len(wrong):
        return watch
    if watch.baseline is None or (
        not watch.is_from_reference and not watch.begun and watch.baseline.size < MIN_BASELINE
    ):
        return replace(watch, baseline=_joined(watch.baseline, wrong, weights))
    begun = watch.begun + 1
    fresh = Game(number=begun, since_window=window, logs=np.zeros(len(STAKES)))
    games = sorted((*watch.games, fresh), key=lambda game: game.log_evidence)
    kept = games[-MAX_GAMES:]
    if fresh not in kept:
        kept[0] = fresh
    upper = _upper(watch.baseline, watch.level)
    played = tuple(_play(game, wrong, weights, upper) for game in kept)
    return replace(watch, games=played, begun=begun)


def verdict(watch: Watch, wrong: Floats, weights: Floats, min_rise: float) -> ConceptVerdict:
    """Return what stands after a window, given its labelled answers again."""
    needed = 2 / watch.level
    best = max(watch.games, key=lambda game: game.log_evidence, default=None)
    logs = np.array([game.log_evidence for game in watch.games])
    evidence = math.exp(min(_log_sum(logs), 700.0)) if len(logs) else 1.0
    base = watch.baseline
    has_risen = best is not None and base is not None and best.rate - base.share >= min_rise
    return ConceptVerdict(
        labelled=len(wrong),
        rate=float(np.average(wrong, weights=weights)) if len(wrong) else None,
        baseline=base.share if base else None,
        upper=_upper(base, watch.level) if base else None,
        evidence=evidence,
        needed=needed,
        recent_rate=best.rate if best else None,
        since_window=best.since_window if best else None,
        is_drifted=has_risen and evidence >= needed,
        is_from_reference=watch.is_from_reference,
    )


def _upper(baseline: Rate, level: float) -> float:
    return statistics.rate_upper(baseline.share, baseline.size, level / 2)


def _joined(baseline: Rate | None, wrong: Floats, weights: Floats) -> Rate:
    size = statistics.effective_size(weights)
    share = float(np.average(wrong, weights=weights))
    if baseline is None:
        return Rate(share=share, size=size)
    total = baseline.size + size
    return Rate(share=(baseline.share * baseline.size + share * size) / total, size=total)


def _play(game: Game, wrong: Floats, weights: Floats, upper: float) -> Game:
    if upper >= 1:
        return game
    # A stake of s bets that the rate is upper + s * (1 - upper).
    bets = (weights / weights.max())[:, None]
    gains = np.where(wrong[:, None] > 0, STAKES * (1 - upper) / upper, -STAKES)
    logs = game.logs + np.log1p(bets * gains).sum(axis=0)
    return replace(
        game,
        logs=logs,
        wrong=game.wrong + float((wrong * weights).sum()),
        size=game.size + float(weights.sum()),
    )


def _log_mean(logs: Floats) -> float:
    return _log_sum(logs) - math.log(len(logs))


def _log_sum(logs: Floats) -> float:
    peak = float(logs.max())
    return peak + math.log(float(np.exp(logs - peak).sum()))
