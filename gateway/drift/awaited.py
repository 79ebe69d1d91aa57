"""Answers that wait for their labels, while a monitor follows the log.

Bounded: of more answers than MAX_ANSWERS the oldest are given up. A label that came before its
answer's window was closed waits for the next one; then it is given up as well. The first label of
an answer holds: a bet that is settled cannot be played again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from gateway.drift import rows
from gateway.drift.column import Values
from gateway.drift.rows import Columns, Truth
from gateway.drift.statistics import Floats
from gateway.ids import as_text
from gateway.prediction_log.record import LoggedLabel

MAX_ANSWERS: Final = 100_000
MAX_LABELS: Final = 100_000
"""Labels that may wait for the next window."""


class _Answer(NamedTuple):
    predicted: list[object]
    """One value per row."""
    weight: float
    cid: str


class AwaitedLabels:
    """Joins labels to the answers of this and earlier windows."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self._answers: dict[str, _Answer] = {}
        self._by_cid: dict[str, str] = {}
        self._waiting: list[LoggedLabel] = []
        self.lost = 0
        """Labels that found no answer, or one with another number of rows."""

    def __len__(self) -> int:
        return len(self._answers)

    def expect(self, answered: Columns) -> None:
        """Take in the answered rows of a window.

        Raises:
            DriftError: it is not clear which column a label is compared with.
        """
        if not rows.length(answered):
            return
        predicted = answered[rows.predicted_column(answered, self._truth)].tolist()
        rids, cids = answered["rid"].tolist(), answered["cid"].tolist()
        weights = rows.weights_of(answered).tolist()
        grouped: dict[str, list[int]] = {}
        for place, rid in enumerate(rids):
            grouped.setdefault(rid, []).append(place)
        for rid, places in grouped.items():
            first = places[0]
            values = [predicted[place] for place in places]
            self._answers[rid] = _Answer(values, weights[first], cids[first] or "")
            if cids[first]:
                self._by_cid[cids[first]] = rid
        while len(self._answers) > MAX_ANSWERS:
            self._forget(next(iter(self._answers)))

    def settle(self, labels: Sequence[LoggedLabel]) -> tuple[Floats, Floats]:
        """Return 1 for each labelled row whose answer is wrong and 0 where it is right; weights.

        Raises:
            DriftError: it is not clear which column a label is compared with.
        """
        predicted: list[object] = []
        targets: list[object] = []
        weights: list[float] = []
        unmatched: list[LoggedLabel] = []
        old = len(self._waiting)
        for number, label in enumerate((*self._waiting, *labels)):
            rid = as_text(label.rid) if label.rid else self._by_cid.get(label.cid, "")
            answer = self._answers.get(rid)
            if answer is None:
                if number >= old and len(unmatched) < MAX_LABELS:
                    unmatched.append(label)
                else:
                    self.lost += 1
                continue
            self._forget(rid)
            rows_of = _per_row(label.target, len(answer.predicted))
            if rows_of is None:
                self.lost += 1
                continue
            predicted += answer.predicted
            targets += rows_of
            weights += [answer.weight] * len(rows_of)
        self._waiting = unmatched
        table = {
            rows.LABEL: _objects(targets),
            _PREDICTED: _objects(predicted),
            "weight": np.array(weights, np.float64),
        }
        return rows.wrong_answers(
            table, Truth(predicted=_PREDICTED, tolerance=self._truth.tolerance)
        )

    def _forget(self, rid: str) -> None:
        answer = self._answers.pop(rid)
        if self._by_cid.get(answer.cid) == rid:
            del self._by_cid[answer.cid]


_PREDICTED: Final = "out.predicted"


def _per_row(target: object, count: int) -> list[object] | None:
    """Return a label's value for each row of its answer; None: they do not fit."""
    if isinstance(target, list):
        return target if len(target) == count else None
    return [target] if count == 1 else None


def _objects(values: list[object]) -> Values:
    made = np.empty(len(values), np.object_)
    for place, value in enumerate(values):  # a list among them must not become an axis
        made[place] = value
    return made
