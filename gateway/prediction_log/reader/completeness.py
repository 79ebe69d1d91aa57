"""How complete a window of the log is, exactly: what was seen, what is missing, and why.

Every worker numbers the records of each name and kind from 1, also those that it drops. So a number
that is not in the window, between two that are, is a record that is missing; audits say up to which
number a worker had come, and what it dropped for which reason.

Pure values and their text; tally.py finds them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.prediction_log.reader.numbers import Range
from gateway.prediction_log.streams import StreamKind

NOT_IN_STREAM: Final = "not in the stream"
"""Cause of a gap of which no audit says anything: deleted, trimmed in the middle, or lost."""
ERASED: Final = "erased"
"""Cause of a gap that `sluice log erase` made."""
GAPS_SHOWN: Final = 20


class End(StrEnum):
    """How it is known that a worker gave no numbers beyond the last one."""

    FINAL = "final audit"
    """The worker, or its successor, said so."""
    WINDOW = "end of the window"
    """It may have given more; they are not asked for."""
    UNKNOWN = "unknown"
    """No final audit: it runs still, or was killed and has no successor yet. What it may have given
    beyond the last number is not known."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Numbers of one worker that are missing."""

    numbers: Range
    cause: str
    """`erased`, reasons of the gateway (joined by +) where an audit says them, else
    NOT_IN_STREAM; both, joined by `or`, where the audits' counts leave it open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCompleteness:
    """One worker's records of one kind in the window."""

    worker: str
    kind: StreamKind
    seen: int
    first: int
    """The first number that can be missed: 1 where the worker began inside the window."""
    last: int
    """The last number that the window is known to have had."""
    gaps: tuple[Gap, ...] = ()
    under_way: int = 0
    """Not there yet, and no gap: large records of a running worker come a little later."""
    end: End = End.UNKNOWN

    @property
    def missing(self) -> int:
        """How many are missing; erased ones are meant to be."""
        return sum(gap.numbers.size for gap in self.gaps if gap.cause != ERASED)

    @property
    def erased(self) -> int:
        """How many were erased."""
        return sum(gap.numbers.size for gap in self.gaps if gap.cause == ERASED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completeness:
    """Everything that was counted while a window was read."""

    kind: StreamKind
    """What the window holds; other kinds (labels) are told apart."""
    workers: tuple[WorkerCompleteness, ...] = ()
    repeats: int = 0
    """Records that were there more than once, of which one was kept."""
    unreadable: int = 0
    """Entries that are no records of a known codec."""

    def of(self, kind: StreamKind) -> tuple[WorkerCompleteness, ...]:
        """Return the workers' records of one kind."""
        return tuple(worker for worker in self.workers if worker.kind is kind)

    @property
    def seen(self) -> int:
        """Different records in the window."""
        return sum(worker.seen for worker in self.of(self.kind))

    @property
    def missing(self) -> int:
        """Records that ought to be in the window and are not."""
        return sum(worker.missing for worker in self.of(self.kind))

    @property
    def expected(self) -> int:
        """Records that ought to be in the window."""
        return self.seen + self.missing

    @property
    def percent(self) -> float:
        """Return seen / expected; of an empty window 100."""
        return 100.0 * self.seen / self.expected if self.expected else 100.0

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing. Unknown ends are no loss, but see `unknown_ends`."""
        return self.missing == 0

    @property
    def unknown_ends(self) -> tuple[str, ...]:
        """Workers of which nobody knows how far they came."""
        return tuple(w.worker for w in self.of(self.kind) if w.end is End.UNKNOWN)

    @property
    def causes(self) -> dict[str, int]:
        """Missing and erased records by cause."""
        found: dict[str, int] = {}
        for worker in self.of(self.kind):
            for gap in worker.gaps:
                found[gap.cause] = found.get(gap.cause, 0) + gap.numbers.size
        return found

    def text(self) -> str:
        """Return lines for a person: the share, then each gap by name."""
        kind = self.kind.removesuffix("s")
        share = f"{_share(self.seen, self.expected)} complete: {self.seen:,} of {self.expected:,}"
        lines = [f"{share} {kind} records" if self.expected else f"no {kind} records"]
        gaps = [(worker, gap) for worker in self.workers for gap in worker.gaps]
        lines += [_gap_text(worker, gap) for worker, gap in gaps[:GAPS_SHOWN]]
        if len(gaps) > GAPS_SHOWN:
            lines.append(f"  and {len(gaps) - GAPS_SHOWN:,} more gaps")
        lines += [
            f"  unknown end: {w.worker} {w.kind} still runs, or was killed: whether there were any "
            f"after {w.last:,} is not known"
            for w in self.workers
            if w.end is End.UNKNOWN
        ]
        for count, sentence in (
            (sum(w.under_way for w in self.workers), "large records may still come"),
            (self.repeats, "repeats were left out"),
            (self.unreadable, "entries were no records of a known codec"),
        ):
            if count:
                lines.append(f"  {count:,} {sentence}")
        return "\n".join(lines)

    def document(self) -> dict[str, object]:
        """Return everything as JSON values."""
        return {
            "kind": str(self.kind),
            "percent": self.percent,
            "seen": self.seen,
            "missing": self.missing,
            "expected": self.expected,
            "causes": self.causes,
            "repeats": self.repeats,
            "unreadable": self.unreadable,
            "workers": [_document(worker) for worker in self.workers],
        }


def _gap_text(worker: WorkerCompleteness, gap: Gap) -> str:
    numbers = f"{gap.numbers.size:,}: {worker.worker} {worker.kind} {gap.numbers}"
    return f"  erased {numbers}" if gap.cause == ERASED else f"  missing {numbers}, {gap.cause}"


def _document(worker: WorkerCompleteness) -> dict[str, object]:
    return {
        "worker": worker.worker,
        "kind": str(worker.kind),
        "seen": worker.seen,
        "first": worker.first,
        "last": worker.last,
        "missing": worker.missing,
        "erased": worker.erased,
        "under_way": worker.under_way,
        "end": str(worker.end),
        "gaps": [
            {"first": gap.numbers.first, "last": gap.numbers.last, "cause": gap.cause}
            for gap in worker.gaps
        ],
    }


def _share(seen: int, expected: int) -> str:
    """Return a percentage that says 100 only where nothing is missing."""
    if seen >= expected:
        return "100 %"
    hundredths = seen * 10_000 // expected  # rounded down
    return f"{hundredths // 100}.{hundredths % 100:02d} %"


def joined(gaps: Iterable[Gap]) -> tuple[Gap, ...]:
    """Return gaps in order, those that touch and have one cause as one."""
    result: list[Gap] = []
    for gap in sorted(gaps, key=lambda gap: gap.numbers):
        if result:
            before = result[-1]
            touches = before.numbers.last + 1 == gap.numbers.first
            if touches and before.cause == gap.cause:
                result[-1] = Gap(Range(before.numbers.first, gap.numbers.last), gap.cause)
                continue
        result.append(gap)
    return tuple(result)
