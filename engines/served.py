"""One loaded copy of a model version, its states, and its row in the repository's index.

Knows its batcher and how it ends; knows neither folders nor how a version is loaded. The table of
states and moves is in repository.py, which makes these and moves them. Use from the event loop's
thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from engines.base import ModelMetadata, ModelSpec
from engines.batcher import Batcher
from engines.errors import EngineError, VersionNotReady


class VersionState(Enum):
    """The state of one version, in the words that RepositoryIndex reports."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


_MOVES: Final[Mapping[VersionState, frozenset[VersionState]]] = {
    VersionState.LOADING: frozenset(
        {VersionState.READY, VersionState.UNAVAILABLE, VersionState.UNLOADING}
    ),
    VersionState.READY: frozenset({VersionState.LOADING, VersionState.UNLOADING}),
    VersionState.UNLOADING: frozenset({VersionState.UNAVAILABLE}),
    VersionState.UNAVAILABLE: frozenset(),
}


class ServedVersion:
    """One loaded copy of a model version: its state, and its batcher once it is ready.

    A reload makes a new one; a request that holds this one keeps the copy it was routed to.
    """

    def __init__(self, *, model: str, version: str, spec: ModelSpec) -> None:
        self.model = model
        self.version = version
        self.spec = spec
        self.state = VersionState.LOADING
        self.reason = ""
        """Why it is not ready; of a version that is: why its last reload failed, if it did."""
        self._batcher: Batcher | None = None
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<ServedVersion {self.model}/{self.version} {self.state.value}>"

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted."""
        return self.state is VersionState.READY

    @property
    def is_live(self) -> bool:
        """Whether it is ready, or was and will be again: a copy that somebody must retire."""
        return self.loaded is not None

    @property
    def loaded(self) -> Batcher | None:
        """The batcher of a live version, also while it refuses requests; None of any other."""
        return self._batcher if self._closing is None else None

    @property
    def is_closed(self) -> bool:
        """Whether it is at its end: closed, or never come up."""
        return self.state is VersionState.UNAVAILABLE

    @property
    def batcher(self) -> Batcher:
        """The batcher of a version that is ready.

        Raises:
            VersionNotReady: with the state's reason.
        """
        if self._batcher is None or self.state is not VersionState.READY:
            why = self.reason or self.state.value.lower()
            raise VersionNotReady(model=self.model, version=self.version, why=why)
        return self._batcher

    @property
    def metadata(self) -> ModelMetadata:
        """Signature and device; raises VersionNotReady as `batcher` does."""
        return self.batcher.metadata

    def move(
        self, state: VersionState, *, reason: str = "", batcher: Batcher | None = None
    ) -> None:
        """Change state along the table in the documentation of repository.py."""
        if state not in _MOVES[self.state]:
            raise ValueError(f"{self!r} cannot become {state.value}")
        self.state, self.reason = state, reason
        if batcher is not None:
            self._batcher = batcher
            batcher.on_trouble = self._note_trouble

    def _note_trouble(self, why: str) -> None:
        """Be not ready while the devices of all instances have failed, and ready again after."""
        if self._closing is None:
            self.move(VersionState.LOADING if why else VersionState.READY, reason=why)

    def note_failed_reload(self, error: EngineError) -> None:
        """Let the index tell why a version that goes on serving is not the newest copy."""
        if self.is_ready:
            self.reason = f"the last reload failed: {error}"

    def retire(self, reason: str) -> None:
        """Refuse new requests from now on; what was accepted is answered in the background.

        Of a copy that is being closed or is closed this changes nothing.

        Raises:
            VersionNotReady: it never was ready.
        """
        if self._closing is None:
            batcher = self._batcher or self.batcher  # which raises
            self.move(VersionState.UNLOADING, reason=reason)
            self._closing = asyncio.get_running_loop().create_task(self._close(batcher, reason))

    async def drained(self) -> None:
        """Wait until a copy that was retired is closed; of any other, return at once.

        Cancellation: the closing goes on.
        """
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def close(self, reason: str) -> None:
        """Refuse new requests, answer the accepted ones, close the engines.

        A second call waits for the end of the first. A hung engine is waited for without limit;
        cancel the waiting to leave it behind.

        Raises:
            VersionNotReady: it never was ready.
        """
        self.retire(reason)
        await self.drained()

    async def _close(self, batcher: Batcher, reason: str) -> None:
        await batcher.close()
        self._batcher = None
        self.move(VersionState.UNAVAILABLE, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """One row of the repository's index."""

    model: str
    version: str
    """Empty where the model as a whole is the trouble."""
    state: VersionState
    reason: str
