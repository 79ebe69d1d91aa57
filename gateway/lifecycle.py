"""Where the process is between start and stop; what the health calls report.

Live is true from the first moment to the last, also while draining: a liveness probe must not kill
a process that is finishing what it accepted. Ready is true only in between.
"""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """The phases, in the order in which they pass."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Lifecycle:
    """The process's phase. It only moves forward."""

    def __init__(self) -> None:
        self.phase = Phase.STARTING

    @property
    def is_ready(self) -> bool:
        """Whether new requests are welcome."""
        return self.phase is Phase.SERVING

    @property
    def is_draining(self) -> bool:
        """Whether new requests are refused."""
        return self.phase is Phase.DRAINING

    def serve(self) -> None:
        """The models are loaded."""
        if self.phase is Phase.STARTING:
            self.phase = Phase.SERVING

    def drain(self) -> None:
        """Stop was asked for."""
        self.phase = Phase.DRAINING
