"""What TensorRT says: kept for the sentence of an error, and handed to logging.

Most functions of TensorRT fail by returning None or False, and tell the reason to a logger only.
TensorRT takes the first logger of a process for good, so there is one per module. It may be called
from any thread; what is kept is kept per thread, and a function that fails calls it in its own.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from typing import Final

from engines.trt.surface import Enumerated, Logger, Module

logger = logging.getLogger(__name__)

_KEPT: Final = 20
_LEVELS: Final = {
    "INTERNAL_ERROR": logging.INFO,  # who called the function raises it: no second alarm
    "ERROR": logging.INFO,
    "WARNING": logging.DEBUG,
}
_WRAPPED: Final = re.compile(r"Error Code \d+: [^(]*\((?P<text>.*)\)\s*$", re.DOTALL)
_WHERE: Final = re.compile(r"\s*\bIn \S+ at \S+?:\d+\b", re.DOTALL)


class Log:
    """The logger of one module."""

    def __init__(self, module: Module) -> None:
        self._said = threading.local()
        heard = {"log": lambda _, severity, message: self._hear(severity, message)}
        self.logger: Logger = type("SluiceLogger", (module.ILogger,), heard)()
        """For TensorRT."""

    def forget(self) -> None:
        """Drop what this thread has kept, before a call whose failure is to be explained."""
        self._errors().clear()

    def why(self) -> str:
        """Return the first error that this thread heard since `forget`; empty: none."""
        errors = self._errors()
        return sentence(errors[0]) if errors else ""

    def _errors(self) -> deque[str]:
        found: deque[str] | None = getattr(self._said, "errors", None)
        if found is None:
            found = self._said.errors = deque(maxlen=_KEPT)
        return found

    def _hear(self, severity: Enumerated, message: str) -> None:
        # Called by C++, which an exception would not pass through.
        level = _LEVELS.get(severity.name)
        if level is None:
            return
        if level == logging.INFO and len(self._errors()) < _KEPT:
            self._errors().append(message)
        logger.log(level, "tensorrt says", extra={"said": message})


def sentence(message: str) -> str:
    """Return what a message says, without the places in TensorRT's own source."""
    wrapped = _WRAPPED.search(message)
    text = wrapped["text"] if wrapped else message
    plain = " ".join(_WHERE.sub("", text).split()).rstrip(" .")
    if plain.startswith("(") and plain.endswith(")"):
        plain = plain[1:-1]
    return plain or message
