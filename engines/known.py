"""What the repository knows of one model folder: its versions, and why each is served.

Knows rows and wishes; loads and closes nothing. Only repository.py changes it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from engines.folders import ascending
from engines.served import IndexEntry, ServedVersion, VersionState


@dataclass(slots=True)
class KnownModel:
    """One model folder.

    A version is served because the policy selected it, because it is pinned, or because the caller
    of the last load said so.
    """

    versions: dict[str, ServedVersion] = field(default_factory=dict)
    reason: str = ""
    """Why no version could even be tried."""
    selected: set[str] = field(default_factory=set)
    """What the version policy selected when it was last asked."""
    pinned: set[str] = field(default_factory=set)
    """Asked for by name."""
    untried: dict[str, str] = field(default_factory=dict)
    """Why versions asked for by name could not even be tried; there is no copy of these."""
    ensuring: dict[str, asyncio.Task[ServedVersion]] = field(default_factory=dict)
    """The loads by name that are under way, shared by all who ask."""
    changes: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whoever loads or swaps: a model changes one step at a time."""

    def ready(self) -> list[ServedVersion]:
        """Return the ready versions in ascending order."""
        return [self.versions[v] for v in ascending(self.versions) if self.versions[v].is_ready]

    def why_none_is_ready(self) -> str:
        """Say why, where there is no ready version; the highest one's reason, if one has any."""
        if live := self.live():
            return live[-1].reason
        if self.reason:
            return self.reason
        why = "none of its versions is ready"
        told = [
            f"{why}; version {row.version}: {row.reason}" for row in self.rows("") if row.reason
        ]
        return told[-1] if told else why

    def live(self) -> list[ServedVersion]:
        """Return the versions that hold engines and are not being closed, in ascending order."""
        return [self.versions[v] for v in ascending(self.versions) if self.versions[v].is_live]

    def surplus(self, keep: frozenset[str]) -> list[str]:
        """Return the live versions that neither the policy, nor a pin, nor `keep` wants."""
        wanted = self.selected | self.pinned | keep
        return [served.version for served in self.live() if served.version not in wanted]

    def rows(self, name: str) -> list[IndexEntry]:
        """Return the model's part of the index."""
        states = {v: (VersionState.UNAVAILABLE, why) for v, why in self.untried.items()}
        states |= {v: (served.state, served.reason) for v, served in self.versions.items()}
        if not states:
            states[""] = (VersionState.UNAVAILABLE, self.reason)
        return [
            IndexEntry(model=name, version=version, state=state, reason=reason)
            for version, (state, reason) in sorted(states.items(), key=lambda s: int(s[0] or 0))
        ]
