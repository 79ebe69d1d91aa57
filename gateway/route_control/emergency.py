"""Aborts that were made while the store was out of reach, until the store knows of them.

One file, written whole; it outlives a restart. Knows nothing of how an abort is carried out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from gateway.route_control import durable


@dataclass(frozen=True, slots=True, kw_only=True)
class Emergency:
    """One abort that only this replica has carried out."""

    route: str
    generation: int
    revision: int
    """What was in force then."""
    actor: str
    reason: str
    since_ms: int
    """Unix time."""


class EmergencyJournal:
    """The emergencies that are not reconciled yet. Blocking: call it from a thread.

    Args:
        folder: of the route control's state; gateways of one host may share it.
        replica: the name of this one.
    """

    def __init__(self, folder: Path, replica: str) -> None:
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in replica)
        self._path = folder / f"emergency-{safe}.json"

    def load(self) -> list[Emergency]:
        """Return what was kept; nothing if the file is missing or not ours."""
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))
            return [Emergency(**row) for row in rows]
        except (OSError, ValueError, TypeError):
            return []

    def save(self, emergencies: Iterable[Emergency]) -> None:
        """Keep these and no others, durably. Raises OSError."""
        rows = [asdict(emergency) for emergency in emergencies]
        durable.make_folder(self._path.parent)
        durable.replace(self._path, json.dumps(rows).encode())
