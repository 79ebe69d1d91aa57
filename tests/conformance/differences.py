"""Where our transport is meant to differ from grpcio's server, and why: data.

A call that is listed must differ, in no other field than those listed; the test fails otherwise.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

_ALL: Final = frozenset({"status", "head", "messages", "rest", "trailers", "end", "connection"})


@dataclass(frozen=True, slots=True)
class Difference:
    """Calls that differ, by a pattern of their names, in some fields of their outcome."""

    names: str
    reason: str
    fields: frozenset[str] = _ALL
    is_sometimes: bool = False
    """The reference itself is not always the same."""

    def covers(self, name: str) -> bool:
        """Whether a call is meant."""
        return fnmatchcase(name, self.names)


DIFFERENCES: Final[tuple[Difference, ...]] = ()


def reason(name: str, fields: Collection[str]) -> str | None:
    """Return why a call may differ in these fields; None if it may not."""
    for listed in DIFFERENCES:
        if listed.covers(name) and set(fields) <= listed.fields:
            return listed.reason
    return None
