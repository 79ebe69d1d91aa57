"""Counts what is read, worker by worker, and finds what is missing and what came twice.

Fed with every record and audit of a window, in the order of their streams; knows ids and documents,
nothing of Redis.

Where a window begins. Numbers before it are not missed. A record that is smaller than one that was
written before the window may still come in it (large tensors are reduced in a thread, and the
record is written then), so a first record proves nothing about the numbers behind it unless it is
*settled*: it came straight, or was answered after the window began. From the first settled number
on, each number was given inside the window and has to stand in it. A worker that began inside the
window (its name ends with the time, or its number 1 is here) has to have them all.

Where it ends. Audits say how far a worker had come. Of a running worker whose records come in late
the newest missing numbers are *under way*. A window that was closed by `until` has its late numbers
behind it; whoever reads tells them with `came_later`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from sys import intern
from typing import Final

from gateway.prediction_log.reader import causes
from gateway.prediction_log.reader.causes import Audited
from gateway.prediction_log.reader.completeness import (
    ERASED,
    Completeness,
    End,
    Gap,
    WorkerCompleteness,
    joined,
)
from gateway.prediction_log.reader.numbers import NumberSet, Range, both, total, without
from gateway.prediction_log.record import (
    LoggedAudit,
    LoggedLabel,
    LoggedPrediction,
    Reduced,
)
from gateway.prediction_log.streams import StreamKind

MOST_UNDER_WAY: Final = 512
"""Numbers from the end on among which missing ones may be under way."""
REMEMBERED: Final = 1_000_000
"""Request ids looked for repeats, at least: so many of the last ones."""


class _Life:
    """One worker's records of one kind."""

    __slots__ = ("audits", "first", "has_settled", "is_final", "later", "numbers")

    def __init__(self) -> None:
        self.numbers = NumberSet()
        self.later = NumberSet()
        """Found behind the window."""
        self.first = 0
        """The first settled number; 0: none yet."""
        self.has_settled = False
        """Whether a record said so, and not only an audit."""
        self.audits: list[Audited] = []
        self.is_final = False

    def settle(self, number: int) -> None:
        """Note that every number from this one on belongs to the window."""
        self.first = min(self.first or number, number)

    def last(self) -> int:
        """Return the greatest number that the window is known to have had."""
        told = max((audit.sequence for audit in self.audits), default=0)
        return max(self.numbers.following - 1, told)

    def missing(self) -> list[Range]:
        found = self.numbers.missing(self.first, self.last()) if self.first else []
        return without(found, self.later.ranges())


class _Recent:
    """Request ids met lately, and who answered them; memory is bounded."""

    __slots__ = ("_before", "_now")

    def __init__(self) -> None:
        self._now: dict[bytes, str] = {}
        self._before: dict[bytes, str] = {}

    def is_repeat(self, rid: bytes, served: str) -> bool:
        """Note a request; return whether the same one was answered by the same variant before."""
        if rid in self._now:
            return self._now[rid] == served
        if rid in self._before:
            return self._before[rid] == served
        if len(self._now) >= REMEMBERED:
            self._before, self._now = self._now, {}
        self._now[rid] = intern(served)
        return False


class Tally:
    """What was read of one window of one name.

    Args:
        kind: what the window holds.
        others: kinds that are read with it; whatever an audit says of still others is left out.
        is_open: it has no end, so that what is missing now may still come.
    """

    def __init__(
        self, kind: StreamKind, *, others: Iterable[StreamKind] = (), is_open: bool = True
    ) -> None:
        self.kind = kind
        self._kinds = (kind, *others)
        self.repeats = 0
        self.unreadable = 0
        self._is_open = is_open
        self._lives: dict[tuple[str, StreamKind], _Life] = {}
        self._begins_ms: dict[StreamKind, dict[str, int]] = {}
        """When the window begins in each stream; 0: nothing ever stood before it."""
        self._recent = _Recent()
        self._worker = ""
        self._life = _Life()

    def begin(self, kind: StreamKind, key: str, ms: int) -> None:
        """Note when the window begins in a stream; 0: nothing ever stood before it."""
        self._begins_ms.setdefault(kind, {})[key] = ms

    def predictions(self, key: str, records: Sequence[LoggedPrediction]) -> list[LoggedPrediction]:
        """Count records of one stream; return them without those that came before."""
        kept = []
        is_repeat = self._recent.is_repeat
        for record in records:
            if record.worker != self._worker:
                self._worker = record.worker
                self._life = self._life_of(record.worker, self.kind, key, record.ts_us)
            life = self._life
            if not life.numbers.add(record.seq) or is_repeat(record.rid, record.served):
                self.repeats += 1
                continue
            if not life.has_settled and self._is_settled(record, key):
                life.has_settled = True
                life.settle(record.seq)
            kept.append(record)
        return kept

    def label(self, label: LoggedLabel, key: str) -> bool:
        """Count a label; return False for one that came before."""
        life = self._life_of(label.worker, StreamKind.LABELS, key, label.received_us)
        if not life.numbers.add(label.seq):
            self.repeats += self.kind is StreamKind.LABELS
            return False
        if not life.has_settled:
            life.has_settled = True
            life.settle(label.seq)
        return True

    def audit(self, audit: LoggedAudit, key: str) -> None:
        """Take in what a worker counted."""
        for kind in self._kinds:
            counts = audit.kinds.get(kind)
            if counts is None:
                continue
            life = self._life_of(audit.worker, kind, key, audit.ts_us)
            life.audits.append(Audited(counts.sequence, counts.dropped))
            life.is_final |= audit.is_final
            if not life.first and audit.ts_us // 1_000 >= self._begin_ms(kind, key):
                life.settle(counts.sequence + 1)  # what it gave from now on belongs to the window

    def missing(self) -> dict[tuple[str, StreamKind], list[Range]]:
        """Return what is missing so far, by worker and kind."""
        found = {at: life.missing() for at, life in self._lives.items()}
        return {at: ranges for at, ranges in found.items() if ranges}

    def came_later(self, worker: str, kind: StreamKind, number: int) -> None:
        """Note a number that stands behind the window."""
        life = self._lives.get((worker, kind))
        if life is not None:
            life.later.add(number)

    def completeness(
        self, erased: Mapping[tuple[str, StreamKind], Iterable[Range]] | None = None
    ) -> Completeness:
        """Return how complete the window is, as far as was read; reading may go on after it."""
        lives = {at: life for at, life in self._lives.items() if life.numbers.count or life.first}
        holes = {at: both(life.missing(), (erased or {}).get(at, ())) for at, life in lives.items()}
        late = {at: self._under_way(life) for at, life in lives.items()}
        open_ = {
            at: causes.of_life(
                without(without(life.missing(), holes[at]), late[at]), life.audits, life.first
            )
            for at, life in lives.items()
        }
        for kind in StreamKind:
            causes.explain_all([one for at, one in open_.items() if at[1] is kind])
        workers = [
            WorkerCompleteness(
                worker=at[0],
                kind=at[1],
                seen=life.numbers.count,
                first=life.first or life.numbers.ranges()[0].first,
                last=life.last(),
                gaps=joined(open_[at].gaps + [Gap(numbers, ERASED) for numbers in holes[at]]),
                under_way=total(late[at]),
                end=self._end(life),
            )
            for at, life in sorted(lives.items())
            if life.numbers.count or life.first <= life.last()
        ]
        return Completeness(
            kind=self.kind,
            workers=tuple(workers),
            repeats=self.repeats,
            unreadable=self.unreadable,
        )

    def _life_of(self, worker: str, kind: StreamKind, key: str, ts_us: int) -> _Life:
        """Return a worker's life; at its first document, which is of this time, begin it."""
        life = self._lives.get((worker, kind))
        if life is None:
            life = self._lives[worker, kind] = _Life()
            begin_ms = self._begin_ms(kind, key)
            if not begin_ms or begin_ms < _start_ms(worker) <= ts_us // 1_000:
                life.settle(1)
        return life

    def _begin_ms(self, kind: StreamKind, key: str) -> int:
        """Return when the window begins for records of a kind that a stream tells of."""
        begins = self._begins_ms.get(kind, {})
        return begins[key] if key in begins else max(begins.values(), default=0)

    def _is_settled(self, record: LoggedPrediction, key: str) -> bool:
        if record.seq == 1 or not any(_is_reduced(record)):
            return True
        return (record.ts_us + record.total_us) // 1_000 >= self._begin_ms(self.kind, key)

    def _under_way(self, life: _Life) -> list[Range]:
        """Return the missing numbers that a running worker may still write."""
        if not self._is_open or life.is_final or not life.numbers.came_late:
            return []
        last = life.last()
        return both(life.missing(), [Range(last - MOST_UNDER_WAY, last)])

    def _end(self, life: _Life) -> End:
        if life.is_final:
            return End.FINAL
        return End.UNKNOWN if self._is_open else End.WINDOW


def _is_reduced(record: LoggedPrediction) -> Iterator[bool]:
    """Tell of each tensor whether it was reduced, so that the record may have come late."""
    for tensors in (record.inputs, record.outputs):
        for tensor in tensors.values():
            yield isinstance(tensor.payload, Reduced)


def _start_ms(worker: str) -> int:
    """Return when a worker began, as its name says: replica@hex-milliseconds; 0: it does not."""
    _, at, start = worker.rpartition("@")
    try:
        return int(start, 16) if at else 0
    except ValueError:
        return 0
