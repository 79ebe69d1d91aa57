"""The streams of a `HostMemory`: when queued work runs. Knows no blocks and no faults.

A stream is a queue of steps: work, a mark (an event's record) or a hold (wait for a mark). Steps
run in the order of their stream. `reach` runs no more than what a mark stands for; `hurry` runs a
few more at random, as a device does meanwhile. Used under the memory's lock.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from engines.gpu.memory import CaptureFailed

Work = Callable[[], object]
_HASTE_STEPS: Final = 3


@dataclass(slots=True, eq=False)
class Mark:
    """One record of an event: a place in a stream."""

    stream: int
    is_past: bool = False


@dataclass(slots=True)
class _Step:
    """One thing queued on a stream."""

    work: Work | None = None
    held_by: Mark | None = None
    """What has to come to pass before."""
    marks: Mark | None = None
    """What has come to pass after."""

    def is_ready(self) -> bool:
        return self.held_by is None or self.held_by.is_past


@dataclass(slots=True)
class _Queue:
    """A stream."""

    steps: deque[_Step] = field(default_factory=deque)
    recorded: list[Work] | None = None
    """While it is captured: what was queued."""
    recorder: int = 0
    """The thread that captures it."""
    spoiled: str = ""
    """Why the capture will fail; empty: it will not."""


class Streams:
    """Every stream of one memory.

    Args:
        run: runs one piece of work; false: the device is lost, and nothing runs any more.
        haste: draws how far streams run ahead; None: not at all.
    """

    def __init__(self, run: Callable[[Work], bool], haste: random.Random | None) -> None:
        self._run = run
        self._haste = haste
        self._queues: dict[int, _Queue] = {}
        self._is_lost = False

    def __len__(self) -> int:
        return len(self._queues)

    def __contains__(self, stream: int) -> bool:
        return stream in self._queues

    def add(self, stream: int) -> None:
        """Make a stream."""
        self._queues[stream] = _Queue()

    def remove(self, stream: int) -> bool:
        """Forget a stream and what is queued on it; whether there was one."""
        return self._queues.pop(stream, None) is not None

    def queue(self, stream: int, work: Work) -> None:
        """Put work at the end of a stream, or into what is recorded of it."""
        queue = self._queues[stream]
        if queue.recorded is None:
            queue.steps.append(_Step(work=work))
            self._hurry()
        else:
            queue.recorded.append(work)

    def mark(self, stream: int) -> Mark | None:
        """Mark the end of a stream; None: it is being captured, which this spoils."""
        queue = self._queues[stream]
        if queue.recorded is not None:
            queue.spoiled = "an event was recorded on the stream"
            return None
        mark = Mark(stream)
        queue.steps.append(_Step(marks=mark))
        self._hurry()
        return mark

    def hold(self, stream: int, mark: Mark | None) -> None:
        """Let what comes next on a stream wait for a mark, if there is one."""
        queue = self._queues[stream]
        if queue.recorded is not None:
            queue.spoiled = "the stream was to wait for an event"
        elif mark is not None:
            queue.steps.append(_Step(held_by=mark))

    def begin_capture(self, stream: int) -> None:
        """Record what is queued on a stream from now on."""
        queue = self._queues[stream]
        if queue.recorded is not None:
            raise CaptureFailed("the stream is being captured")
        queue.recorded, queue.spoiled = [], ""
        queue.recorder = threading.get_ident()

    def end_capture(self, stream: int) -> tuple[Work, ...]:
        """Return what was recorded; the stream runs work again, whatever comes of it."""
        queue = self._queues[stream]
        recorded, queue.recorded = queue.recorded, None
        if recorded is None:
            raise CaptureFailed("the stream is not being captured")
        if queue.recorder != threading.get_ident():
            raise CaptureFailed("another thread began to capture")
        if queue.spoiled:
            raise CaptureFailed(queue.spoiled)
        return tuple(recorded)

    def abandon_capture(self, stream: int) -> None:
        """Forget what was recorded, of a stream that may be gone."""
        if stream in self._queues:
            self._queues[stream].recorded = None

    def refuse_in_capture(self, what: str) -> None:
        """Spoil what the calling thread captures, if it does.

        Raises:
            CaptureFailed: it does.
        """
        for queue in self._queues.values():
            if queue.recorded is not None and queue.recorder == threading.get_ident():
                queue.spoiled = f"{what} was called"
                raise CaptureFailed(f"{what} cannot be recorded")

    def reach(self, mark: Mark) -> None:
        """Run a stream up to a mark. Holds mean marks made earlier, so this comes to an end."""
        while not mark.is_past and not self._is_lost:
            queue = self._queues[mark.stream]
            held_by = queue.steps[0].held_by
            if held_by is not None:
                self.reach(held_by)
            self._step(queue)

    def _step(self, queue: _Queue) -> None:
        if self._is_lost:
            return
        step = queue.steps.popleft()
        if step.marks is not None:
            step.marks.is_past = True
        if step.work is not None and not self._run(step.work):
            self._is_lost = True

    def _hurry(self) -> None:
        """Run some steps of streams that need not wait, as a device does meanwhile."""
        if self._haste is None:
            return
        for _ in range(self._haste.randrange(_HASTE_STEPS + 1)):
            queues = [q for q in self._queues.values() if q.steps and q.steps[0].is_ready()]
            if queues:
                self._step(self._haste.choice(queues))
