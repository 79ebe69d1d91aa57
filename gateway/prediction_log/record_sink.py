"""What the pipeline and the shadows see of a prediction log, and the log that is none.

Knows no file, no Redis and no thread; log.py is the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gateway.prediction_log.counts import LogStatistics
from gateway.prediction_log.labels import LabelInput
from gateway.prediction_log.record import PredictionRecord
from gateway.prediction_log.spool.store import DropReason
from gateway.request import InferRequest


class RecordSink(Protocol):
    """Where the pipeline puts records; a prediction log or none."""

    is_on: bool
    """Whether records are taken at all; False: none need be made."""
    subject_of: Callable[[InferRequest], str] | None
    """Reads from a request whose data it is; None: nobody asks."""

    async def start(self) -> None:
        """Begin to write, on the running event loop."""

    def offer(self, record: PredictionRecord, is_committed: bool = False) -> None:
        """Take a record; never raises and never waits.

        With `is_committed` the caller calls `commit` in this turn of the loop; otherwise the record
        is written at the end of it in any case.
        """

    def commit(self, done: Callable[[DropReason | None], None]) -> None:
        """Have everything offered so far written, then call `done`, once, on the event loop.

        It is told None, or why it was not written.
        """

    def label(self, label: LabelInput) -> bool:
        """Take ground truth; return whether it was taken."""

    def statistics(self) -> LogStatistics:
        """Return a frozen copy of the counters."""

    async def close(self, timeout_s: float) -> None:
        """Ship what is spooled for at most this long, then stop."""


class NoPredictionLog:
    """Serving without a prediction log: records are not taken and not counted."""

    is_on = False
    subject_of: Callable[[InferRequest], str] | None = None

    async def start(self) -> None:
        """Do nothing."""

    def offer(self, record: PredictionRecord, is_committed: bool = False) -> None:
        """Forget the record."""

    def commit(self, done: Callable[[DropReason | None], None]) -> None:
        """Go on."""
        done(None)

    def label(self, label: LabelInput) -> bool:
        """Refuse it."""
        return False

    def statistics(self) -> LogStatistics:
        """Return zeros."""
        return LogStatistics()

    async def close(self, timeout_s: float) -> None:
        """Do nothing."""
