"""Ground truth joined to the predictions that it is about.

A label names its prediction by request id, else by the caller's own id, which all requests of that
id share. Of several labels the one of the highest version holds, then the latest. What shadows
answered is held against the label of the live request. Knows documents and numpy, nothing of Redis.

A target that is a list as long as the record has rows gives each row its element.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from engines.tensors import Array
from gateway.prediction_log.reader.arrays import Rows, blank, text_array
from gateway.prediction_log.reader.columns import TIME
from gateway.prediction_log.record import LoggedLabel, LoggedPrediction

LABEL: Final = "label"
LABEL_TIME: Final = "label_ts"
LABEL_DELAY: Final = "label_delay_s"
_NUMBER: Final = np.dtype(np.float64)
_COLUMNS: Final = {
    LABEL: _NUMBER,
    LABEL_TIME: TIME,
    LABEL_DELAY: _NUMBER,
    "label_version": _NUMBER,
    "label_weight": _NUMBER,
    "label_source": np.dtype(object),
}
_NAT: Final = np.iinfo(np.int64).min
"""A time that is absent, as its number."""


class Truth(NamedTuple):
    """What is kept of a label. Of two the greater one holds: version and times come first."""

    version: int
    ts_us: int
    received_us: int
    order: int
    """In which it was read."""
    target: Any  # Any: a JSON value of the sender's
    source: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCoverage:
    """How many records of a window have their label, and how long it took to come."""

    records: int
    labelled: int
    delay_p50_s: float
    """From the request's arrival to the label's; NaN without labels."""
    delay_p90_s: float

    @property
    def share(self) -> float:
        """Labelled records of all, 0 to 1."""
        return self.labelled / self.records if self.records else 0.0


class Labels:
    """The labels of a window of one name. Memory grows with the labelled requests."""

    def __init__(self) -> None:
        self._by_rid: dict[bytes, Truth] = {}
        self._by_cid: dict[str, Truth] = {}
        self._count = 0
        self._is_numeric = True

    def __len__(self) -> int:
        return len(self._by_rid) + len(self._by_cid)

    def add(self, label: LoggedLabel) -> None:
        """Take in a label."""
        self._count += 1
        truth = Truth(
            label.version,
            label.ts_us,
            label.received_us,
            self._count,
            label.target,
            label.source,
            label.weight,
        )
        self._is_numeric = self._is_numeric and _is_number(label.target)
        # The order differs, so that a comparison never gets as far as the targets.
        if label.rid:
            self._by_rid[label.rid] = max(truth, self._by_rid.get(label.rid, truth))
        elif label.cid:
            self._by_cid[label.cid] = max(truth, self._by_cid.get(label.cid, truth))

    def of(self, record: LoggedPrediction) -> Truth | None:
        """Return the label of a record's request."""
        found = self._by_rid.get(record.parent_rid or record.rid)
        if found is None and record.cid:
            found = self._by_cid.get(record.cid)
        return found

    def columns(self, records: Sequence[LoggedPrediction], rows: Rows) -> dict[str, Array]:
        """Return what is known of the labels of records, one element per row."""
        if not len(self):
            return {name: blank(rows.total, dtype) for name, dtype in _COLUMNS.items()}
        truths = [self.of(record) for record in records]
        arrived_us = [record.ts_us for record in records]
        delays = [
            np.nan if truth is None else (truth.received_us - ts_us) / 1e6
            for truth, ts_us in zip(truths, arrived_us, strict=True)
        ]
        times = [_NAT if truth is None else truth.ts_us for truth in truths]
        columns = {
            LABEL_TIME: np.array(times, np.int64).view(TIME),
            LABEL_DELAY: np.array(delays, np.float64),
            "label_version": np.array([np.nan if t is None else t.version for t in truths]),
            "label_weight": np.array([np.nan if t is None else t.weight for t in truths]),
            "label_source": text_array([None if t is None else t.source for t in truths]),
        }
        spread = {name: rows.spread(column) for name, column in columns.items()}
        return {LABEL: self._targets(truths, rows)} | spread

    def _targets(self, truths: Sequence[Truth | None], rows: Rows) -> Array:
        values: list[object] = []
        for truth, count in zip(truths, rows.counts.tolist(), strict=True):
            target = None if truth is None else truth.target
            if isinstance(target, list) and len(target) == count:
                values += target
            elif isinstance(target, list) and self._is_numeric:
                values += [None] * count  # it does not fit, and one number it is not
            else:
                values += [target] * count
        if self._is_numeric:
            return np.array([np.nan if value is None else value for value in values], np.float64)
        array = np.empty(len(values), object)
        array[:] = values
        return array


def coverage(columns: Mapping[str, Array]) -> LabelCoverage:
    """Return how many of a frame's records are labelled."""
    is_first = columns["row"] == 0
    delays = columns[LABEL_DELAY][is_first] if LABEL_DELAY in columns else np.empty(0)
    known = delays[~np.isnan(delays)]
    return LabelCoverage(
        records=int(is_first.sum()),
        labelled=len(known),
        delay_p50_s=float(np.quantile(known, 0.5)) if len(known) else np.nan,
        delay_p90_s=float(np.quantile(known, 0.9)) if len(known) else np.nan,
    )


def _is_number(target: object) -> bool:
    if isinstance(target, list):
        return all(isinstance(element, int | float) for element in target)
    return isinstance(target, int | float)
