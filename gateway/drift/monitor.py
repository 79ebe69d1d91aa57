"""Windows, one after another: collects records, judges each window, knows how far it has come.

Knows records and verdicts; nothing of Redis, files or clocks. Whoever feeds it acknowledges records
when their window is judged, so that a monitor that is killed reads an open window again.

Memory: one window (at most WINDOW_BYTES of tensors, or it is closed early), the reference's
profiles, and the answers that wait for labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import numpy as np

from gateway.drift import concept, decide, rows
from gateway.drift.awaited import MAX_LABELS, AwaitedLabels
from gateway.drift.decide import Thresholds
from gateway.drift.reference import Reference
from gateway.drift.report import Report
from gateway.drift.rows import Columns, Truth
from gateway.prediction_log.reader.columns import to_columns
from gateway.prediction_log.reader.tensors import ColumnNames
from gateway.prediction_log.record import LoggedLabel, LoggedPrediction

WINDOW_BYTES: Final = 64 << 20
"""A window with more bytes of tensors is closed before it has all its records."""


class Monitor:
    """Judges windows of records against one reference."""

    def __init__(
        self,
        *,
        model: str,
        reference: Reference,
        thresholds: Thresholds,
        window_records: int,
        truth: Truth | None = None,
    ) -> None:
        self.reference = reference
        self._model = model
        self._thresholds = thresholds
        self._window_records = window_records
        self._records: list[LoggedPrediction] = []
        self._bytes = 0
        self._labels: list[LoggedLabel] = []
        self._cut_labels = 0
        self._number = 0
        self._awaited = AwaitedLabels(truth) if truth else None
        self._watch = concept.begin(thresholds.level / 2, reference.wrong)
        self._own_errors = False

    @property
    def windows(self) -> int:
        """Windows judged so far."""
        return self._number

    @property
    def room(self) -> int:
        """Records that the open window still takes; 0: it is to be judged."""
        if self._bytes >= WINDOW_BYTES:
            return 0
        return self._window_records - len(self._records)

    def add(self, records: Sequence[LoggedPrediction]) -> None:
        """Put records into the open window: at most as many as there is room for."""
        self._records += records
        self._bytes += sum(map(_nbytes, records))

    def add_labels(self, labels: Sequence[LoggedLabel]) -> None:
        """Take in labels of this or earlier windows, as far as there is room for them."""
        if self._awaited is not None:
            room = MAX_LABELS - len(self._labels)
            self._labels += labels[:room]
            self._cut_labels += max(0, len(labels) - room)

    def judge(self, names: ColumnNames, completeness: str) -> Report:
        """Close the window and return its report.

        `names` are those of the tensors' columns, by digest; `completeness` is what the reader
        says.

        Raises:
            DriftError: nothing in it can be compared with the reference, or no label with an
                answer.
        """
        records, self._records, self._bytes = self._records, [], 0
        self._number += 1
        window = to_columns(records, names=names)
        is_early = len(records) < self._window_records
        verdict = decide.judge(
            self.reference,
            window,
            self._thresholds,
            number=self._number,
            concept=self._judge_labels(window),
        )
        own_errors = self._learn_errors(window)
        began, ended = times(window)
        return Report(
            model=self._model,
            reference=self.reference,
            thresholds=self._thresholds,
            verdict=verdict,
            records=len(records),
            began=began,
            ended=ended,
            completeness=completeness,
            notes=tuple(self._notes(is_early, own_errors)),
            total_windows=self._number,
        )

    def _judge_labels(self, window: Columns) -> concept.ConceptVerdict | None:
        if self._awaited is None:
            return None
        labels, self._labels = self._labels, []
        self._awaited.expect(rows.answered(window))
        wrong, weights = self._awaited.settle(labels)
        self._watch = concept.observe(self._watch, wrong, weights, self._number)
        return concept.verdict(self._watch, wrong, weights, self._thresholds.wrong_rise)

    def _learn_errors(self, window: Columns) -> bool:
        """Let the first window say how many errors are usual, if the reference cannot."""
        if self.reference.errors is None and (found := rows.error_rate(window)):
            self.reference = replace(self.reference, errors=found[0])
            self._own_errors = True
        return self._own_errors

    def _notes(self, is_early: bool, own_errors: bool) -> list[str]:
        notes = []
        if is_early:
            notes.append(f"the window was closed early: it reached {WINDOW_BYTES >> 20} MiB")
        if own_errors:
            notes.append("the reference knows no statuses: errors are compared with window 1")
        lost = self._cut_labels + (self._awaited.lost if self._awaited is not None else 0)
        if lost:
            notes.append(f"{lost} labels so far found no answer to be held against")
        return notes


def times(columns: Columns) -> tuple[str, str]:
    """Return when the first and the last request of rows arrived, as text; UTC."""
    moments = columns.get("ts")
    if moments is None or not len(moments):
        return "", ""
    as_us = moments.astype("datetime64[us]").astype(np.int64)
    return _text(int(as_us.min())), _text(int(as_us.max()))


def _text(ts_us: int) -> str:
    return f"{datetime.fromtimestamp(ts_us // 1_000_000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _nbytes(record: LoggedPrediction) -> int:
    total = 0
    for tensors in (record.inputs, record.outputs):
        for tensor in tensors.values():
            total += len(tensor.data)
    return total
