"""Follows the log with a consumer group of its own: every record at least once, repeats dropped.

A record is acknowledged when its window was judged and the verdict shown, so that a monitor that is
killed reads an open window again. Where there are more replicas than a window has room left, some
records more may come than it takes; they wait here for the next one.
"""

from __future__ import annotations

from typing import Final

import redis

from gateway.drift.monitor import Monitor
from gateway.drift.report import Report
from gateway.prediction_log.reader import about, entries
from gateway.prediction_log.reader.entries import When
from gateway.prediction_log.reader.groups import Batch, GroupReader, GroupSettings
from gateway.prediction_log.record import LoggedPrediction
from gateway.prediction_log.streams import StreamKind

CONSUMER: Final = "monitor"
MAX_READ: Final = 1_000
_SETTINGS: Final = GroupSettings(max_deliveries=1_000)
"""A window may stay open over many restarts, and no record can kill a monitor."""


class Follower:
    """Feeds one monitor from one group. Blocking; one thread."""

    def __init__(
        self, client: redis.Redis, monitor: Monitor, *, model: str, group: str, labels: bool
    ) -> None:
        self._client = client
        self._monitor = monitor
        self._model = model
        kinds = (StreamKind.LIVE, StreamKind.LABELS) if labels else (StreamKind.LIVE,)
        self._members = GroupReader(client, model, group, CONSUMER, kinds=kinds, settings=_SETTINGS)
        self._held: list[Batch] = []
        """Not acknowledged; the last one may have records in `_spare`."""
        self._spare: list[LoggedPrediction] = []

    def begin(self, since: When) -> None:
        """Make the group, from a moment on; one that is there goes on where it was."""
        self._members.begin(since)

    def step(self) -> Report | None:
        """Read once, waiting for a second at most; return the report of a window that is full.

        Raises:
            DriftError: see Monitor.judge.
            RedisError: Redis cannot be read; call again later.
        """
        self._fill()
        if self._monitor.room > 0:
            batch = self._members.read(self._share())
            self._monitor.add_labels(batch.labels)
            if batch.records:
                self._held.append(batch)
                self._spare = batch.records
                self._fill()
            elif batch:  # labels and audits do not fill windows, so they are not kept waiting
                self._members.acknowledge(batch)
        if self._monitor.room > 0:
            return None
        names = about.column_names(self._client, self._model)
        return self._monitor.judge(names, self._members.completeness().text())

    def settle(self) -> None:
        """Acknowledge what was judged; to be called when the report was shown."""
        kept = self._held[-1:] if self._spare else []
        for batch in self._held[: len(self._held) - len(kept)]:
            self._members.acknowledge(batch)
        self._held = kept

    @property
    def counts(self) -> tuple[int, int]:
        """Records read so far, and how many came again and were dropped."""
        completeness = self._members.completeness()
        return completeness.seen, completeness.repeats

    def _share(self) -> int:
        """Return how much may be read of each stream: together no more than there is room for."""
        replicas = len(entries.streams(self._client, [self._model])) or 1
        return max(1, min(MAX_READ, self._monitor.room // replicas))

    def _fill(self) -> None:
        room = max(0, self._monitor.room)
        self._monitor.add(self._spare[:room])
        self._spare = self._spare[room:]
