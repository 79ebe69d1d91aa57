"""One thing that the doctor has to say."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

DISTRIBUTION: Final = "sluice-gateway"


class Severity(StrEnum):
    """How much a finding matters; the least first."""

    OK = "ok"
    NOTE = "note"
    """Nothing is wrong; something could be had that is not there."""
    WARNING = "warning"
    """Something is installed that does not do what it was probably installed for."""
    ERROR = "error"
    """Models that want this will not be served."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence about one area, and what to do about it."""

    severity: Severity
    area: str
    sentence: str
    fix: str = ""
    """A command or an instruction; empty: there is nothing to do."""


def install(*extras: str) -> str:
    """Return the command that installs extras of this distribution."""
    return f'pip install "{DISTRIBUTION}[{",".join(extras)}]"'
