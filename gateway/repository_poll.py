"""Watches the model repository's folder and loads what changed in it.

Knows files, their sizes and their times; knows no engine: loading and unloading are handed in. The
rules, of a look every `poll_s` seconds:

  a model is new, or changed, and the same in two looks    it is loaded (again)
  a model is gone in two looks                             it is unloaded
  no model is left at all                                  a fault, such as a lost disk: do nothing

Two looks, so that a file that is still being copied is left alone for as long as it grows. A load
that fails is tried again when the files change, not before. A file that is replaced by one of the
same size and the same time is not noticed.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

from engines.folders import model_names, version_names
from engines.threads import in_daemon_thread
from gateway.model_config.read import FILENAME

logger = logging.getLogger(__name__)

Fingerprint = tuple[tuple[str, int, int], ...]
"""The files of a model that count: path inside its folder, size in bytes, mtime in ns; sorted."""


def fingerprint(root: Path) -> dict[str, Fingerprint]:
    """Return what every model of the repository is made of. Blocking.

    Raises:
        OSError: the root folder cannot be read.
    """
    return {name: tuple(sorted(_files(root / name))) for name in model_names(root)}


def _files(directory: Path) -> Iterator[tuple[str, int, int]]:
    """Yield a model's files; what disappears under the eyes of this is not there."""
    paths = [directory / FILENAME]
    try:
        versions = version_names(directory)
    except OSError:
        versions = []
    for version in versions:
        for folder, subfolders, names in os.walk(directory / version):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            paths.extend(Path(folder, name) for name in names if not name.startswith("."))
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            continue
        yield path.relative_to(directory).as_posix(), status.st_size, status.st_mtime_ns


class Watch:
    """Compares one look with those before it.

    Args:
        loaded: the fingerprints of what is loaded, taken before it was.
    """

    def __init__(self, loaded: Mapping[str, Fingerprint]) -> None:
        self._loaded = dict(loaded)
        self._last = dict(loaded)

    @property
    def is_watching(self) -> bool:
        """Whether any model is loaded."""
        return bool(self._loaded)

    def changes(self, found: Mapping[str, Fingerprint]) -> list[tuple[str, bool]]:
        """Take a look into account: what is to be done, as (model, whether it still exists)."""
        changes = []
        for model in sorted(found.keys() | self._loaded.keys()):
            now = found.get(model)
            if now == self._loaded.get(model) or now != self._last.get(model):
                continue  # nothing new, or not yet sure
            if now is None:
                del self._loaded[model]
            else:
                self._loaded[model] = now
            changes.append((model, now is not None))
        self._last = dict(found)
        return changes


class RepositoryPoll:
    """The loop that looks, compares, and has models loaded and unloaded.

    Args:
        root: the repository's folder.
        poll_s: time between two looks, > 0.
        loaded: `fingerprint(root)`, taken before the models were loaded: what changed since then
            is loaded again.
        load: loads a model, or loads it again.
        unload: unloads a model.
        sleep: stands in for asyncio.sleep in tests.
    """

    def __init__(
        self,
        root: Path,
        *,
        poll_s: float,
        loaded: Mapping[str, Fingerprint],
        load: Callable[[str], Awaitable[None]],
        unload: Callable[[str], Awaitable[None]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._root = root
        self._poll_s = poll_s
        self._watch = Watch(loaded)
        self._load = load
        self._unload = unload
        self._sleep = sleep
        self._trouble = ""

    async def run(self) -> None:
        """Look for ever. A load that takes long, or hangs, does not keep this from looking.

        Cancellation: ends the looking, and the waiting for loads and unloads under way.
        """
        async with asyncio.TaskGroup() as group:
            while True:
                await self._sleep(self._poll_s)
                for model, exists in await self._look():
                    group.create_task(self._act(model, exists=exists))

    async def _look(self) -> list[tuple[str, bool]]:
        try:
            found = await in_daemon_thread("sluice-poll", lambda: fingerprint(self._root))
        except Exception as exc:  # a folder or a thread that cannot be had now: the next look may
            self._report(str(exc) or repr(exc))
            return []
        if self._watch.is_watching and not found:
            self._report("no model is left in it")
            return []
        self._report("")
        return self._watch.changes(found)

    def _report(self, trouble: str) -> None:
        """Log what is wrong with the folder, once, and not at every look."""
        if trouble and trouble != self._trouble:
            extra = {"folder": str(self._root), "reason": trouble}
            logger.error("the model repository cannot be polled", extra=extra)
        self._trouble = trouble

    async def _act(self, model: str, *, exists: bool) -> None:
        logger.info("a model changed on disk", extra={"model": model, "exists": exists})
        try:
            await (self._load(model) if exists else self._unload(model))
        except Exception as exc:  # whatever one model's trouble is, the others are still watched
            extra = {"model": model, "reason": str(exc) or repr(exc)}
            logger.error("a changed model was not loaded", extra=extra)
