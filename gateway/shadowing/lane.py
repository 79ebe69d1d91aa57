"""One shadow's lane: a private copy of a version, what is in flight in it, and the count of both.

Knows the copy's batcher and the prediction log; knows no route and loads nothing. Read first:
shadows.py (who makes lanes), twin.py (who holds which tensors). Event loop's thread only.

Theory. A live request of the lane's route is *eligible*. It is dropped at once, or it goes into the
copy's own batcher with a deadline and is *in flight* until exactly one outcome: *sent* (the copy
answered, and its record was offered to the log), or dropped for one of the reasons below. There is
no task and no future per request, only a callback.

Invariants, whenever nobody is inside a method:
  - eligible = sent + sum(dropped) + in_flight;
  - in_flight <= queue_items, and the tensor bytes charged <= queue_bytes, when a request is let in
    (a limit that is lowered applies from then on; nothing is displaced);
  - the lane refers to a request's tensors only while it is in flight.

Bytes are charged from the offer to the outcome, with one exception. A request whose deadline passes
while the engine has it is counted as `timeout` at its deadline, but nothing can take its tensors
away from the engine: they stay charged until the engine gives the batch back
(`LoadedCopy.late_bytes`). A copy has one instance, and an instance runs one batch, so that is at
most one batch of a copy: behind an engine that hangs the rest expires in the queue and goes, and
the lane stays within its bounds for ever. A lane that is shut charges nothing any more; a batch in
a hung engine is left behind with its daemon thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from engines.errors import (
    Cancelled,
    DeadlineExpired,
    EngineError,
    InvalidInput,
    QueueFull,
    VersionNotReady,
)
from engines.executed import Executed
from engines.served import ServedVersion
from gateway import ids
from gateway.prediction_log.record import Origin, PredictionRecord
from gateway.prediction_log.record_sink import RecordSink
from gateway.shadowing.counts import Mirrored, ShadowDrop, ShadowStatistics
from gateway.shadowing.twin import LoadedCopy, Twin
from router.routes import Shadow

REASON_SHADOW: Final = "shadow"
"""Reason in the prediction records of shadows."""
LOADING: Final = "it is being loaded"
SHUT: Final = "it is shut down"
_US: Final = 1_000
# After these outcomes the engine may still read the inputs.
_MAY_EXECUTE: Final = frozenset((ShadowDrop.TIMEOUT, ShadowDrop.SHUTDOWN, ShadowDrop.INTERNAL))

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Counts:
    eligible: int = 0
    sent: int = 0
    dropped: dict[ShadowDrop, int] = field(default_factory=lambda: dict.fromkeys(ShadowDrop, 0))


class ShadowLane:
    """The queue, the copy and the counters of one shadow of one route.

    At a limit the new request is dropped and counted; what is in flight is never displaced.

    Cost of `offer`: a few additions and comparisons where it drops; else one check of the inputs
    against the copy's signature and one push into its queue.
    """

    def __init__(
        self,
        shadow: Shadow,
        *,
        log: RecordSink,
        on_answer: Callable[[Mirrored, Executed], None] | None = None,
    ) -> None:
        self.shadow = shadow
        """Its limits may be replaced while requests are in flight."""
        self.reason = LOADING
        """Why the version, or its newest load, is not there."""
        self.is_shut = False
        self._prediction_log = log
        self._on_answer = on_answer
        self._current: LoadedCopy | None = None
        self._copies: list[LoadedCopy] = []
        """The current one, and those replaced that are not closed yet."""
        self._in_flight: set[Twin] = set()
        self._charged_bytes = 0
        self._counts = _Counts()
        self._has_warned = False

    def __repr__(self) -> str:
        shadow = self.shadow
        state = f"{len(self._in_flight)} in flight"
        return f"<ShadowLane {shadow.name} {shadow.model}/{shadow.version} {state}>"

    @property
    def held_bytes(self) -> int:
        """Tensor bytes charged: in flight, and in an engine past their deadline."""
        return self._charged_bytes + sum(copy.late_bytes for copy in self._copies)

    def offer(self, mirrored: Mirrored, is_sampled: bool) -> None:
        """Send a copy of a live request, or drop and count it. Never raises, never waits."""
        self._counts.eligible += 1
        try:
            reason = self._admit(mirrored) if is_sampled else ShadowDrop.NOT_SAMPLED
        except Exception as exc:  # a shadow's fault must not be felt by the live request
            self._note_fault(exc)
            reason = ShadowDrop.INTERNAL
        if reason is not None:
            self._counts.dropped[reason] += 1

    def use(self, served: ServedVersion) -> None:
        """Take a copy into service; those in flight in the one before end there."""
        self._current = LoadedCopy(served)
        self._copies.append(self._current)
        self.reason = ""

    def forget(self, served: ServedVersion) -> None:
        """Charge nothing any more for a copy that is closed."""
        self._copies = [copy for copy in self._copies if copy.served is not served]

    def serving(self) -> ServedVersion | None:
        """Return the copy in service."""
        return self._current.served if self._current is not None else None

    def shut(self) -> None:
        """Give up what is in flight and refuse the rest, as `shutdown`. The copies stay open."""
        self.is_shut = True
        self.reason = SHUT
        self._current = None
        for twin in list(self._in_flight):
            if twin.queued is not None:
                twin.copy.batcher.cancel(twin.queued)
        for twin in list(self._in_flight):  # a queue that is out of order has not called back
            self.finish(twin, Cancelled())
        self._copies.clear()

    def statistics(self) -> ShadowStatistics:
        """Return a frozen copy of the counters."""
        counts = self._counts
        return ShadowStatistics(
            model=self.shadow.model,
            version=self.shadow.version,
            is_ready=self._current is not None and self._current.served.is_ready,
            reason=self.reason,
            eligible=counts.eligible,
            sent=counts.sent,
            dropped=dict(counts.dropped),
            in_flight=len(self._in_flight),
            held_bytes=self.held_bytes,
        )

    def finish(self, twin: Twin, outcome: object) -> None:
        """Count the one outcome of a request in flight; what comes after it is ignored."""
        mirrored = twin.mirrored
        if mirrored is None:
            return
        try:
            reason = self._conclude(twin, mirrored, outcome)
        except Exception as exc:  # the log's or the observer's: the batcher goes on
            self._note_fault(exc)
            reason = ShadowDrop.INTERNAL
        if isinstance(outcome, Exception):
            outcome.__traceback__ = outcome.__context__ = None  # whose frames refer to tensors
        self._release(twin, reason)
        if reason is None:
            self._counts.sent += 1
        else:
            self._counts.dropped[reason] += 1

    def _admit(self, mirrored: Mirrored) -> ShadowDrop | None:
        """Bring a request in flight, or return why not."""
        copy, shadow = self._current, self.shadow
        if copy is None:
            return ShadowDrop.SHUTDOWN if self.is_shut else ShadowDrop.NOT_READY
        if len(self._in_flight) >= shadow.queue_items:
            return ShadowDrop.QUEUE_FULL
        held_bytes = 0
        for tensor in mirrored.inputs:
            held_bytes += len(tensor.data)
        if self.held_bytes + held_bytes > shadow.queue_bytes:
            return ShadowDrop.BYTES_FULL
        twin = Twin(mirrored, copy=copy, held_bytes=held_bytes, finish=self.finish)
        self._in_flight.add(twin)
        self._charged_bytes += held_bytes
        try:
            twin.submit(mirrored, shadow.deadline_ms)
        except Exception as exc:  # whatever it is, it must be counted
            reason = _refusal(exc)
            if reason is ShadowDrop.INTERNAL:
                self._note_fault(exc)
            self._release(twin, reason)
            return reason
        return None

    def _conclude(self, twin: Twin, mirrored: Mirrored, outcome: object) -> ShadowDrop | None:
        """Offer the record of an outcome that has one; return why there is no answer."""
        if isinstance(outcome, Executed):
            self._prediction_log.offer(self._record(twin, mirrored, outcome))
            if self._on_answer is not None:
                self._observe(mirrored, outcome)
            return None
        if isinstance(outcome, DeadlineExpired):
            return ShadowDrop.EXPIRED if outcome.stage == "queued" else ShadowDrop.TIMEOUT
        if isinstance(outcome, Cancelled):
            return ShadowDrop.SHUTDOWN
        if isinstance(outcome, InvalidInput):
            return ShadowDrop.BAD_INPUT
        if isinstance(outcome, EngineError):
            self._prediction_log.offer(self._record(twin, mirrored, outcome))
            return ShadowDrop.ENGINE_ERROR
        raise TypeError(f"no outcome of a batcher: {outcome!r}")

    def _observe(self, mirrored: Mirrored, executed: Executed) -> None:
        """Show an answer to whoever compares; it is sent, whatever becomes of that."""
        try:
            if self._on_answer is not None:
                self._on_answer(mirrored, executed)
        except Exception as exc:  # the observer's own
            self._note_fault(exc)

    def _record(
        self, twin: Twin, mirrored: Mirrored, outcome: Executed | EngineError
    ) -> PredictionRecord:
        shadow, copy = self.shadow, twin.copy
        executed = outcome if isinstance(outcome, Executed) else None
        origin = Origin(
            name=mirrored.name,
            model=shadow.model,
            version=shadow.version,
            artefact=copy.artefact,
            revision=mirrored.revision,
            variant=mirrored.variant,
            served=shadow.name,
            propensity=1.0,
            reason=REASON_SHADOW,
            device=copy.device,
            is_shadow=True,
        )
        return PredictionRecord(
            origin,
            ids.new_id(),
            mirrored.ts_us,
            status=200 if executed else 500,
            total_us=(time.monotonic_ns() - twin.started_ns) // _US,
            cid=mirrored.cid,
            error="" if executed else type(outcome).__name__,
            queue_us=executed.queue_ns // _US if executed else 0,
            execution=executed.execution if executed else None,
            outputs=executed.outputs if executed else (),
            parent_rid=mirrored.rid,
            subject=mirrored.subject,
        )

    def _release(self, twin: Twin, reason: ShadowDrop | None) -> None:
        """Take a request out of flight, with its bytes, unless the engine still has them."""
        self._in_flight.discard(twin)
        self._charged_bytes -= twin.held_bytes
        if reason is ShadowDrop.TIMEOUT:
            twin.copy.keep_late(twin.held_bytes)
        twin.let_go(may_execute=reason in _MAY_EXECUTE)

    def _note_fault(self, exc: Exception) -> None:
        """Log the first fault of our own; all of them are counted."""
        if not self._has_warned:
            self._has_warned = True
            extra = {"shadow": self.shadow.name, "model": self.shadow.model}
            _log.error("shadow failed", exc_info=exc, extra=extra)


def _refusal(exc: Exception) -> ShadowDrop:
    """Return what the refusal of a copy's batcher counts as."""
    if isinstance(exc, InvalidInput):
        return ShadowDrop.BAD_INPUT
    if isinstance(exc, QueueFull):
        return ShadowDrop.QUEUE_FULL
    return ShadowDrop.NOT_READY if isinstance(exc, VersionNotReady) else ShadowDrop.INTERNAL
