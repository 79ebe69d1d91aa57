"""The model repository: which versions are on disk, loading, ready, draining or broken.

Knows folders, states and engines; knows no configuration format (a `read_spec` is handed in), no
route and no protocol. Read next: served.py (one copy and its end), loading.py (how one is made).

States of a version, and the only moves between them:

    LOADING -> READY        loaded and warmed up over its batch sizes
    LOADING -> UNAVAILABLE  the file is broken, contradicts its declaration, or lacks its device
    READY -> LOADING        the devices of all its instances failed: they are loaded again
    READY, LOADING -> UNLOADING  an unload, a release, or a newer copy has taken over; nothing new
                            is accepted
    UNLOADING -> UNAVAILABLE  its queue is empty and its engines are closed
    UNAVAILABLE -> LOADING  loaded again

A load always makes a new copy, so the last line means: the row of the version shows the new copy.
The same goes for a version that is loaded again while its old copy still drains. A reload loads the
new copy beside the old one, swaps, then drains the old one: no request fails, and a reload that
fails leaves the old copy serving.

Why a version is loaded: the model's version policy selects it, the caller of a load pins it, or it
was asked for by name (`ensure`), which is remembered until `release`. Private copies (`load_copy`)
are no part of this: no row shows them, nobody finds them, whoever asked for one closes it.

The lock of a model is held while versions of it are loaded and swapped, never while one drains: an
engine that hangs holds up who waits for its own end, and nothing else. Loading and closing run on
daemon threads; the event loop only swaps references. Use from the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from engines.base import EngineLoader, ModelSpec
from engines.errors import EngineError, ModelLoadError, UnknownModel, VersionNotReady
from engines.executed import BatchReport
from engines.folders import ascending, has_version, model_names, version_names
from engines.known import KnownModel
from engines.loading import Loader
from engines.served import IndexEntry, ServedVersion
from engines.threads import in_daemon_thread

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

SHUT_DOWN: Final = "shut down"
CLOSED: Final = "the repository is closed"


class Repository:
    """All models below one root folder.

    Args:
        root: the repository folder.
        read_spec: makes a ModelSpec of a model's folder; raises ModelLoadError.
        loaders: engine loaders by the spec's `backend`.
        on_batch: told of each finished batch, on the event loop; not of those of private copies.
    """

    def __init__(
        self,
        *,
        root: Path,
        read_spec: Callable[[Path], ModelSpec],
        loaders: Mapping[str, EngineLoader],
        on_batch: Callable[[ServedVersion, BatchReport], None] | None = None,
    ) -> None:
        self._root = root
        self._read_spec = read_spec
        self._loader = Loader(loaders)
        self._on_batch = on_batch
        self._models: dict[str, KnownModel] = {}
        self._copies: set[ServedVersion] = set()
        self._under_way: set[asyncio.Task[Any]] = set()  # Any: each change has its own result
        self._is_closing = False

    async def start(self, pinned: Mapping[str, Iterable[str]]) -> None:
        """Load every model: the versions its policy selects, and those in `pinned`."""
        loads = (self.load(name, pinned.get(name, ())) for name in model_names(self._root))
        await asyncio.gather(*loads, return_exceptions=False)

    def get(self, model: str, version: str) -> ServedVersion:
        """Return a version whatever its state.

        Raises:
            UnknownModel: it is not in the repository, or nothing has asked for it to be served.
        """
        known = self._models.get(model)
        if known is None:
            raise UnknownModel(model=model)
        found = known.versions.get(version)
        if found is None:
            why = known.untried.get(version, known.reason)
            raise UnknownModel(model=model, version=version, why=why)
        return found

    def highest_ready(self, model: str) -> ServedVersion:
        """Return the highest version that is ready.

        Raises:
            UnknownModel, VersionNotReady: there is none.
        """
        ready = self.ready_versions(model)
        if not ready:
            raise VersionNotReady(model=model, why=self._models[model].why_none_is_ready())
        return ready[-1]

    def ready_versions(self, model: str) -> list[ServedVersion]:
        """Return the ready versions in ascending order; raises UnknownModel."""
        known = self._models.get(model)
        if known is None:
            raise UnknownModel(model=model)
        return known.ready()

    def has_model(self, model: str) -> bool:
        """Whether a folder of that name is known, ready or not."""
        return model in self._models

    def on_disk(self, model: str, version: str) -> bool:
        """Whether the version's folder exists, served or not. One look at the file system."""
        return has_version(self._root, model, version)

    def versions(self) -> list[ServedVersion]:
        """Return every known version of every model, by name and number."""
        return [
            self._models[name].versions[version]
            for name in sorted(self._models)
            for version in ascending(self._models[name].versions)
        ]

    def index(self) -> list[IndexEntry]:
        """Return what RepositoryIndex reports: every version's state and reason."""
        return [row for name in sorted(self._models) for row in self._models[name].rows(name)]

    async def load(self, model: str, pinned: Iterable[str] = ()) -> None:
        """Load a model, or load it again; afterwards `index` tells how each version fared.

        Served are the versions that its policy selects, those in `pinned`, and those asked for by
        name; others, and those no longer on disk, are drained and closed.
        Cancellation: the load goes on to its end, so that no version is left between two states.

        Raises:
            UnknownModel: there is no such folder.
        """
        if model not in await self._look(lambda: model_names(self._root)):
            raise UnknownModel(model=model, why="the repository has no such folder")
        known = self._models.setdefault(model, KnownModel())
        await self._to_the_end(self._load_model(known, model, frozenset(pinned)))

    async def ensure(self, model: str, version: str) -> ServedVersion:
        """Return a version that is ready, loading and warming up just this one if it is not.

        Whatever the model's version policy says, the version is kept from now on until `release`.
        Calls for one version share one load. Cancellation: the load goes on to its end.

        Raises:
            UnknownModel: there is no such folder.
            ModelLoadError: it does not come up; `index` tells why, too.
        """
        known = self._models.get(model)
        served = None if known is None else known.versions.get(version)
        if known is not None and served is not None and served.is_ready:
            known.pinned.add(version)
            return served
        await self._check_folder(model, version)
        known = self._models.setdefault(model, KnownModel())
        known.pinned.add(version)
        task = known.ensuring.get(version)
        if task is None:
            task = known.ensuring[version] = self._start(self._ensure(known, model, version))
            task.add_done_callback(lambda _: known.ensuring.pop(version))
        return await asyncio.shield(task)

    async def release(self, keep: Mapping[str, Collection[str]]) -> list[tuple[str, str]]:
        """Forget what was asked for by name and is not in `keep` (model -> versions).

        Of those, the ready ones that the version policy did not select leave the index at once and
        are drained and closed in the background: an engine that hangs does not hold the caller.

        Returns:
            The versions that are being closed, as (model, version).
        """
        releases = []
        for model, known in sorted(self._models.items()):
            kept = frozenset(keep.get(model, ()))
            known.pinned &= kept | known.ensuring.keys()
            if known.surplus(kept):
                releases.append(self._to_the_end(self._release(known, model, kept)))
        return [retired for some in await asyncio.gather(*releases) for retired in some]

    async def load_copy(self, model: str, version: str) -> ServedVersion:
        """Load and warm up a private copy: one instance and a queue of its own, known to nobody.

        The caller closes it (`ServedVersion.close`); the repository does when it is closed itself.
        Cancellation: the load goes on to its end, and then the copy is closed.

        Raises:
            UnknownModel: there is no such folder.
            ModelLoadError: it does not come up.
        """
        await self._check_folder(model, version)
        task = self._start(self._load_copy(model, version))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._start(_close_unwanted(task))
            raise

    async def unload(self, model: str) -> None:
        """Drain and close every version of a model; its rows stay in the index.

        Cancellation: the unload goes on to its end.

        Raises:
            UnknownModel: there is no such model.
        """
        known = self._models.get(model)
        if known is None:
            raise UnknownModel(model=model)
        await self._to_the_end(self._unload_model(known, "unloaded"))

    async def close(self) -> None:
        """Let the changes under way end, then drain and close everything.

        An engine that hangs is waited for without limit, after all others: cancel the waiting to
        leave it behind.
        """
        self._is_closing = True
        for copy in self._copies:
            copy.retire(SHUT_DOWN)
        models = self._models.values()
        await asyncio.gather(*(self._unload_model(known, SHUT_DOWN) for known in models))
        await asyncio.gather(*(copy.drained() for copy in self._copies))
        while self._under_way:
            await asyncio.wait(self._under_way)

    async def _check_folder(self, model: str, version: str) -> None:
        if not await self._look(lambda: self.on_disk(model, version)):
            why = "the repository has no such folder"
            raise UnknownModel(model=model, version=version, why=why)

    def _check_open(self) -> None:
        if self._is_closing:
            raise ModelLoadError(CLOSED)

    async def _load_model(self, known: KnownModel, model: str, pinned: frozenset[str]) -> None:
        async with known.changes:
            if self._is_closing:
                return
            before = known.live()
            try:
                spec, found = await self._look(lambda: self._read_model(model))
            except ModelLoadError as exc:
                known.reason = str(exc)
                logger.error("model unavailable", extra={"model": model, "reason": known.reason})
                for served in before:
                    served.note_failed_reload(exc)
                return
            known.selected = set(spec.versions.select(found))
            wanted = [v for v in found if v in known.selected | known.pinned | pinned]
            known.reason = "" if wanted else "no version folder is selected"
            known.untried.clear()
            await asyncio.gather(*(self._load_version(known, spec, v) for v in wanted))
            wanted += known.pinned.intersection(found)  # asked for meanwhile
            for version in known.versions.keys() - wanted:
                gone = known.versions.pop(version)
                if gone.is_live:
                    gone.retire("no longer in the repository")
        await asyncio.gather(*(served.drained() for served in before))

    async def _ensure(self, known: KnownModel, model: str, version: str) -> ServedVersion:
        async with known.changes:
            self._check_open()
            served = known.versions.get(version)
            if served is not None and served.is_ready:
                return served
            try:
                spec, found = await self._look(lambda: self._read_model(model))
            except ModelLoadError as exc:
                known.versions.pop(version, None)
                known.untried[version] = str(exc)
                extra = {"model": model, "version": version, "reason": str(exc)}
                logger.error("version unavailable", extra=extra)
                raise
            known.untried.pop(version, None)
            known.selected.update({version}.intersection(spec.versions.select(found)))
            served = await self._load_version(known, spec, version)
        if not served.is_ready:
            raise ModelLoadError(served.reason)
        return served

    def _read_model(self, model: str) -> tuple[ModelSpec, list[str]]:
        directory = self._root / model
        try:
            return self._read_spec(directory), version_names(directory)
        except OSError as exc:
            raise ModelLoadError(f"{model} cannot be read: {exc.strerror}") from exc

    async def _unload_model(self, known: KnownModel, reason: str) -> None:
        async with known.changes:
            live = known.live()
            for served in live:
                served.retire(reason)
        await asyncio.gather(*(served.drained() for served in live))

    async def _release(
        self, known: KnownModel, model: str, keep: frozenset[str]
    ) -> list[tuple[str, str]]:
        async with known.changes:
            surplus = known.surplus(keep)  # without what was asked for meanwhile
            for version in surplus:
                served = known.versions.pop(version)
                served.retire("released")
                self._start(served.drained())
        return [(model, version) for version in surplus]

    async def _load_version(
        self, known: KnownModel, spec: ModelSpec, version: str
    ) -> ServedVersion:
        """Load a version beside the copy that serves, and take over from it once ready."""
        served = ServedVersion(model=spec.name, version=version, spec=spec)
        old = known.versions.get(version)
        if old is None or not old.is_live:
            known.versions[version] = served
        on_batch = self._on_batch
        report = None if on_batch is None else partial(on_batch, served)
        error = await self._loader.bring_up(served, on_batch=report)
        if error is None:
            known.versions[version] = served
            if old is not None and old.is_live:
                old.retire("replaced by a reload")
        elif old is not None:
            old.note_failed_reload(error)
        return served

    async def _load_copy(self, model: str, version: str) -> ServedVersion:
        self._check_open()
        spec, _ = await self._look(lambda: self._read_model(model))
        copy = ServedVersion(model=model, version=version, spec=replace(spec, instances=1))
        error = await self._loader.bring_up(copy, label="copy")
        if error is not None:
            raise ModelLoadError(copy.reason)
        if self._is_closing:
            await copy.close(SHUT_DOWN)
            raise ModelLoadError(CLOSED)
        self._copies = {other for other in self._copies if not other.is_closed} | {copy}
        return copy

    async def _to_the_end(self, change: Coroutine[None, None, _T]) -> _T:
        return await asyncio.shield(self._start(change))

    def _start(self, change: Coroutine[None, None, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(change)
        self._under_way.add(task)  # the event loop itself holds tasks only weakly
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[Any]) -> None:  # Any: see _under_way
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # the caller may be gone: a load that fails is no forgotten exception

    async def _look(self, look: Callable[[], _T]) -> _T:
        """Look at the file system, off the event loop."""
        return await in_daemon_thread("sluice-look", look)


async def _close_unwanted(loading: asyncio.Task[ServedVersion]) -> None:
    with contextlib.suppress(EngineError):
        await (await loading).close("nobody waits for it any more")
