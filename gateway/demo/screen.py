"""What a person sees: numbered steps, and lines that say how long a piece of work took.

Knows a text stream and a clock; knows nothing of what is shown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

INDENT: Final = "     "
_WIDTH: Final = 52


class DemoFailed(Exception):
    """The demo cannot go on; the sentence is for the person in front of it."""

    def __init__(self, sentence: str, *details: str) -> None:
        super().__init__(sentence)
        self.details = details
        """Further lines, shown below the sentence."""


def shown(path: Path) -> str:
    """Return a path relative to the current folder where it lies below it."""
    absolute = Path(os.path.abspath(path))
    try:
        return str(absolute.relative_to(Path.cwd()))
    except ValueError:
        return str(absolute)


class Screen:
    """Prints; every line is flushed, so that it shows at once through a pipe as well."""

    def __init__(
        self, stream: TextIO, steps: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._steps = steps
        self._clock = clock
        self._step = 0
        self._is_in_line = False

    @property
    def encoding(self) -> str:
        """The stream's encoding."""
        return self._stream.encoding or "ascii"

    def step(self, title: str) -> None:
        """Begin the next step."""
        self._step += 1
        self.line()
        self.line(f"{self._step}/{self._steps}  {title}", indent="")

    def line(self, text: str = "", *, indent: str = INDENT) -> None:
        """Print a line; work that did not end keeps its line to itself."""
        self._end_line()
        self._print(f"{indent}{text}".rstrip() + "\n")

    @contextmanager
    def work(self, text: str) -> Iterator[None]:
        """Print what takes a while, and behind it how long it took."""
        self._end_line()
        self._print(f"{INDENT}{text} ".ljust(_WIDTH + len(INDENT), "."))
        self._is_in_line = True
        start_s = self._clock()
        yield
        self._is_in_line = False
        self._print(f" {self._clock() - start_s:.1f} s\n")

    def _end_line(self) -> None:
        if self._is_in_line:
            self._is_in_line = False
            self._print("\n")

    def _print(self, text: str) -> None:
        """Write and flush.

        Raises:
            BrokenPipeError: nobody reads any more: a closed pipe, or a terminal that is gone.
        """
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as exc:
            raise BrokenPipeError(exc.errno, exc.strerror) from exc
