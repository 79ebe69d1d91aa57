"""The spools of gateways that do not run, as far as their folders are at hand.

Knows folders and locks; no Redis. A folder is opened as a gateway would open it, for as long as it
takes to go through it: a gateway that starts just then is told that its spool is in use. Folders
whose lock is held belong to gateways that run; those do it themselves. Blocking.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from gateway.prediction_log.capture.references import References
from gateway.prediction_log.erasure import spooled
from gateway.prediction_log.erasure.sought import Sought
from gateway.prediction_log.erasure.tombstone import Found
from gateway.prediction_log.spool.lock import LOCK_FILE, SpoolInUse, is_locked, token_of
from gateway.prediction_log.spool.opening import open_spool
from gateway.prediction_log.spool.segment import found_in
from gateway.prediction_log_config import PredictionLogConfig

Tell = Callable[[Iterable[Found]], None]
"""Told of records before they are destroyed, so that a kill loses none; and of intents after it."""


class GoneThrough(NamedTuple):
    """What was done in one spool."""

    destroyed: int
    uris_of_others: set[str]


class Spools:
    """The folders of spools below one folder; each is named after its gateway.

    Args:
        config: of the gateways that these are of.
        folder: of all spools, or of one.
    """

    def __init__(self, config: PredictionLogConfig, folder: Path) -> None:
        self._config = config
        self._is_one = (folder / LOCK_FILE).is_file()
        self._folder = folder

    def __repr__(self) -> str:
        return f"<Spools {self._folder}>"

    def replicas(self) -> dict[str, Path]:
        """Return the spools' folders by the names of their gateways."""
        folders = [self._folder] if self._is_one else sorted(self._below())
        return {path.resolve().name: path for path in folders}

    def in_use(self) -> set[str]:
        """Return the gateways that hold their spools."""
        return {replica for replica, path in self.replicas().items() if is_locked(path)}

    def token(self, replica: str) -> str:
        """Return the identity of a gateway's spool; empty: it is not at hand."""
        directory = self.replicas().get(replica)
        return "" if directory is None else token_of(directory)

    def go_through(self, replica: str, sought: Sought, tell: Tell) -> GoneThrough:
        """Find what one spool holds, tell it, then destroy it; widens `sought`.

        Raises:
            SpoolInUse: a gateway has started meanwhile.
            OSError: it could not be read or overwritten.
        """
        directory = self.replicas()[replica]
        if next(found_in(directory), None) is None:  # of durability memory
            return GoneThrough(0, set())
        return asyncio.run(self._go_through(directory, sought, tell))

    def remove_files(self, uris: Iterable[str]) -> int:
        """Delete files of large tensors; return how many were there."""
        folders = [self._folder, *self.replicas().values()]
        if self._is_one:
            folders.append(self._folder.parent)
        references = [References(f / self._config.capture.references, max_bytes=1) for f in folders]
        return sum(each.remove(uri) for uri in uris for each in references)

    def _below(self) -> Sequence[Path]:
        if not self._folder.is_dir():
            return ()
        return [path for path in self._folder.iterdir() if (path / LOCK_FILE).is_file()]

    async def _go_through(self, directory: Path, sought: Sought, tell: Tell) -> GoneThrough:
        now_ms = time.time_ns() // 1_000_000
        worker = f"erasure@{secrets.token_hex(8)}"
        store, _ = open_spool(self._config, directory, worker=worker, now_ms=now_ms)
        try:
            finding = spooled.find(store, [sought])
            tell(finding.found[0])
            destroyed = spooled.destroy(store, finding)
            tell(finding.found[0])
        finally:
            await store.close()
        return GoneThrough(destroyed, finding.uris_of_others)


__all__ = ["GoneThrough", "SpoolInUse", "Spools", "Tell"]
