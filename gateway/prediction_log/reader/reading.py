"""One pass over a window of one name: pages of entries become columns, and everything is counted.

Puts entries, tally, labels and columns together; frame.py and export.py take what comes out. Memory
of a pass: the records of one chunk, the labels of the window, and the numbers that are missing.

Audits stand in the live streams. They are met on the way there; for another kind the live streams
are searched for them first.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import redis

from engines.tensors import Array
from gateway.prediction_log.reader import about, entries
from gateway.prediction_log.reader.columns import rows_of, to_columns
from gateway.prediction_log.reader.completeness import Completeness
from gateway.prediction_log.reader.documents import Documents, audits_of, numbers_of
from gateway.prediction_log.reader.entries import Page, Window, epoch_ms
from gateway.prediction_log.reader.labels import Labels
from gateway.prediction_log.reader.tally import Tally
from gateway.prediction_log.record import LoggedPrediction
from gateway.prediction_log.streams import StreamKind

CHUNK: Final = 4_096
"""Records that are made into columns at once."""
CHUNK_BYTES: Final = 32 << 20
"""Of entries; a chunk ends at either."""
LATE_MS: Final = 60_000
"""How long behind the end of a window its large records are looked for."""


class Opener(Protocol):
    """Unseals records: gateway/prediction_log/privacy/opener.py."""

    def open(self, records: Sequence[LoggedPrediction]) -> list[LoggedPrediction]:
        """Return records with their sealed tensors opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class What:
    """What is read."""

    name: str
    """The public name."""
    kind: StreamKind = StreamKind.LIVE
    window: Window = entries.EVERYTHING
    labels: bool = True
    """Whether labels are joined."""
    opener: Opener | None = None
    """Opens sealed tensors; without it they are absent."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector from running.

    For a chunk's time, some 20 ms: its records have no cycles, and to search them for some takes
    as long as to read them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Reading:
    """One pass; make it, take its chunks to the end, ask for the completeness."""

    def __init__(self, client: redis.Redis, what: What) -> None:
        self._client = client
        self._what = what
        self._keys = entries.streams(client, [what.name], kind=what.kind)
        self._labels: Labels | None = None
        others = (StreamKind.LABELS,) if what.labels else ()
        self._tally = Tally(what.kind, others=others, is_open=what.window.last == "+")
        about.begin(client, self._tally, what.kind, self._keys, what.window)
        self._names = about.column_names(client, what.name)

    def chunks(self) -> Iterator[dict[str, Array]]:
        """Yield the window's rows as columns, each request once, chunk after chunk."""
        self.load_labels(Window(self._what.window.first))
        if self._what.kind is not StreamKind.LIVE:
            self._read_audits()
        pages = entries.interleaved(self._client, self._keys, self._what.window)
        while True:
            with uncollected():
                records = self._next_records(pages)
                columns = self.columns(records) if records else None
                del records
            if columns is None:
                break
            yield columns
        self._look_behind_the_end()

    def scan(self) -> None:
        """Read and count the window, and make no columns of it."""
        if self._what.kind is not StreamKind.LIVE:
            self._read_audits()
        for page in entries.interleaved(self._client, self._keys, self._what.window):
            with uncollected():
                self._take(page)
        self._look_behind_the_end()

    def columns(self, records: Sequence[LoggedPrediction]) -> dict[str, Array]:
        """Return records as columns, with the labels that were loaded."""
        if self._what.opener is not None:
            records = self._what.opener.open(records)
        rows = rows_of(records)
        columns = to_columns(records, names=self._names, rows=rows)
        return columns if self._labels is None else columns | self._labels.columns(records, rows)

    def completeness(self) -> Completeness:
        """Return how complete the window is; after the last chunk."""
        return self._tally.completeness(about.erased_numbers(self._client, self._what.name))

    def load_labels(self, window: Window) -> None:
        """Read labels, if they are wanted, from a window's begin until now: truth comes late."""
        if not self._what.labels:
            return
        self._labels = Labels()
        keys = entries.streams(self._client, [self._what.name], kind=StreamKind.LABELS)
        about.begin(self._client, self._tally, StreamKind.LABELS, keys, window)
        for page in entries.interleaved(self._client, keys, window):
            for label in Documents.of(page.blobs).labels:
                if self._tally.label(label, page.key):
                    self._labels.add(label)

    def _next_records(self, pages: Iterator[Page]) -> list[LoggedPrediction]:
        """Return the records of the next chunk; none: there are no more pages."""
        waiting: list[LoggedPrediction] = []
        size = 0
        for page in pages:
            waiting += self._take(page)
            size += sum(map(len, page.blobs))
            if len(waiting) >= CHUNK or (waiting and size >= CHUNK_BYTES):
                break
        return waiting

    def _take(self, page: Page) -> list[LoggedPrediction]:
        """Count a page and return those of its records that are new."""
        found = Documents.of(page.blobs)
        kept = self._tally.predictions(page.key, found.predictions)
        for audit in found.audits:
            self._tally.audit(audit, page.key)
        for label in found.labels:
            self._tally.label(label, page.key)
        self._tally.unreadable += found.unreadable
        return kept

    def _read_audits(self) -> None:
        keys = entries.streams(self._client, [self._what.name])
        for page in entries.interleaved(self._client, keys, self._what.window):
            for audit in audits_of(page.blobs):
                self._tally.audit(audit, page.key)

    def _look_behind_the_end(self) -> None:
        """Find missing numbers that were only written after the window: large records are."""
        last = self._what.window.last
        if last == "+" or not any(kind is self._what.kind for _, kind in self._tally.missing()):
            return
        first = last.removeprefix("(") if last.startswith("(") else f"({last}"
        window = Window(first, str((epoch_ms(last) or 0) + LATE_MS))
        for page in entries.interleaved(self._client, self._keys, window):
            for found in numbers_of(page.blobs):
                self._tally.came_later(found.worker, self._what.kind, found.seq)
