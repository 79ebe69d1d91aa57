"""A window of the log as a table, with its completeness and the coverage of its labels.

pandas and pyarrow are optional (`sluice-gateway[reader]`) and imported when they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack

import numpy as np
import redis

from engines.tensors import Array
from gateway.prediction_log.reader.columns import CATEGORIES, join_columns, rows_in, take_rows
from gateway.prediction_log.reader.completeness import Completeness
from gateway.prediction_log.reader.entries import When, Window
from gateway.prediction_log.reader.extras import extra, to_arrow
from gateway.prediction_log.reader.groups import Batch, GroupReader
from gateway.prediction_log.reader.labels import LabelCoverage, coverage
from gateway.prediction_log.reader.reading import Opener, Reading, What
from gateway.prediction_log.streams import StreamKind


class Options(TypedDict, total=False):
    """What else `read_frame` can be told."""

    kind: StreamKind
    """Which records: live (default), shadow or big."""
    labels: bool
    """Whether labels are joined; default true."""
    opener: Opener
    """Opens sealed tensors; without it they are absent."""


@dataclass(slots=True)
class Frame:
    """Rows in order of time, one array per column: see columns.py for their names."""

    columns: dict[str, Array]
    completeness: Completeness
    _group: GroupReader | None = field(default=None, repr=False)
    _batches: list[Batch] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return rows_in(self.columns)

    @property
    def coverage(self) -> LabelCoverage:
        """How many records have their label."""
        return coverage(self.columns)

    def pandas(self) -> Any:  # Any: pandas is no dependency
        """Return a pandas DataFrame; text columns of few values are categorical.

        Raises:
            MissingExtra: pandas is not installed.
        """
        pandas = extra("pandas")
        columns = {
            name: pandas.Categorical(column) if name in CATEGORIES else column
            for name, column in self.columns.items()
        }
        return pandas.DataFrame(columns, copy=False)

    def arrow(self) -> Any:  # Any: pyarrow is no dependency
        """Return a pyarrow Table; text columns of few values are dictionaries.

        Raises:
            MissingExtra: pyarrow is not installed.
        """
        return to_arrow(self.columns)

    def acknowledge(self) -> None:
        """Tell the group that these rows were used; of a frame without a group it does nothing."""
        batches, self._batches = self._batches, []
        for batch in batches:
            if self._group is not None:
                self._group.acknowledge(batch)


def read_frame(
    client: redis.Redis,
    name: str,
    *,
    since: When = None,
    until: When = None,
    group: str | None = None,
    **options: Unpack[Options],
) -> Frame:
    """Return the records of a public name from `since` on and before `until`, each once.

    A moment is a datetime (without a zone: UTC), seconds since the epoch, or an entry id; it is
    held against the time of the entry, which is when its request was answered.

    With a `group` it is what this consumer group was not given before, `since` being where a new
    group begins; call `Frame.acknowledge` when the rows were used, or they come again. A group of
    several consumers is read with GroupReader.

    Raises:
        ValueError: a group and `until`.
        RedisError: Redis cannot be read.
    """
    if group is None:
        reading = Reading(client, What(name=name, window=Window.of(since, until), **options))
        columns = _table(reading, list(reading.chunks()))
        return Frame(columns, reading.completeness())
    if until is not None:
        raise ValueError("a group reads on from where it is: it takes no `until`")
    what = What(name=name, **options)
    members = GroupReader(client, name, group, "frame", kinds=(what.kind,))
    members.begin(since)
    batches = list(members.drain())
    reading = Reading(client, what)
    records = [record for batch in batches for record in batch.records]
    arrived_us = min((record.ts_us for record in records), default=0)
    reading.load_labels(Window.of(arrived_us / 1e6, None))
    columns = _table(reading, [reading.columns(records)])
    return Frame(columns, members.completeness(), members, batches)


def _table(reading: Reading, chunks: list[dict[str, Array]]) -> dict[str, Array]:
    """Join chunks and put their rows in order of time."""
    columns: Mapping[str, Array] = join_columns(chunks or [reading.columns([])])
    times = columns["ts"]
    if bool(np.all(times[1:] >= times[:-1])):
        return dict(columns)
    return take_rows(columns, np.argsort(times, kind="stable"))
