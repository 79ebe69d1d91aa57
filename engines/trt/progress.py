"""How far a build is: TensorRT's phases within phases, as one fraction that rises.

`Progress` is pure; `monitor_of` puts it behind the class that TensorRT calls.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from engines.trt.surface import Module, ProgressMonitor


class OnProgress(Protocol):
    """Hears of a build: the innermost phase under way, and the share that is done, 0 to 1.

    Returns whether to go on.
    """

    def __call__(self, phase: str, fraction: float, /) -> bool:
        """Hear of a step."""


@dataclass(slots=True)
class _Phase:
    name: str
    steps: int
    done: int = 0


class Progress:
    """Phases under way, outermost first; called by TensorRT, from whatever thread it likes."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._under_way: list[_Phase] = []
        self._fraction = 0.0
        self._lock = threading.Lock()
        self.raised: BaseException | None = None
        """What `on_progress` raised: to be raised where the build returns, as C++ cannot."""
        self.is_cancelled = False

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Enter a phase of so many steps, below its parent."""
        with self._lock:
            while self._under_way and parent and self._under_way[-1].name != parent:
                self._under_way.pop()
            if not parent:
                self._under_way.clear()
            self._under_way.append(_Phase(phase, max(steps, 1)))
        self._tell(phase)

    def step(self, phase: str, number: int) -> bool:
        """Note that a step, counted from 0, is done; return whether to go on."""
        with self._lock:
            for entered in self._under_way:
                if entered.name == phase:
                    entered.done = min(number + 1, entered.steps)
        return self._tell(phase)

    def finish(self, phase: str) -> None:
        """Leave a phase and all within it."""
        with self._lock:
            for depth, entered in enumerate(self._under_way):
                if entered.name == phase:
                    del self._under_way[depth + 1 :]
                    entered.done = entered.steps
                    if depth:
                        self._under_way.pop()
                    break

    def _tell(self, phase: str) -> bool:
        with self._lock:
            self._fraction = max(self._fraction, self._share())
            fraction = self._fraction
        if self.is_cancelled:
            return False
        try:
            self.is_cancelled = not self._on_progress(phase, fraction)
        except BaseException as exc:  # a key press too: it may not enter C++
            self.raised = exc
            self.is_cancelled = True
        return not self.is_cancelled

    def _share(self) -> float:
        """Return the share that is done: each phase fills one step of the one around it."""
        share = 0.0
        for phase in reversed(self._under_way):
            share = min((phase.done + share) / phase.steps, 1.0)
        return share


def monitor_of(module: Module, progress: Progress) -> ProgressMonitor:
    """Return what TensorRT calls."""
    called: dict[str, Callable[..., object]] = {
        "phase_start": lambda _, phase, parent, steps: progress.start(phase, parent, steps),
        "step_complete": lambda _, phase, number: progress.step(phase, number),
        "phase_finish": lambda _, phase: progress.finish(phase),
    }
    made: ProgressMonitor = type("SluiceProgress", (module.IProgressMonitor,), called)()
    return made
