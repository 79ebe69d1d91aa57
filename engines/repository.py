"""The model repository: which versions are on disk, loading, ready, draining or broken.

Knows folders, states and engines; knows no configuration format (a `read_spec` is handed in), no
route and no protocol. Layout: ``<root>/<model>/<version>/<file>``, versions are positive integers.

States of a version, and the only moves between them:

    LOADING -> READY        loaded and warmed up over its batch sizes
    LOADING -> UNAVAILABLE  the file is broken, contradicts its declaration, or lacks its device
    READY -> UNLOADING      an unload, or a newer copy has taken over; nothing new is accepted
    UNLOADING -> UNAVAILABLE  its queue is empty and its engines are closed
    UNAVAILABLE -> LOADING  loaded again

A reload loads the new copy beside the old one, swaps, then drains the old one: no request fails,
and a reload that fails leaves the old copy serving. Loading and closing run on worker threads; the
event loop only swaps references. Use from the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Final, TypeVar

from engines.base import BatchPolicy, Engine, EngineLoader, ModelMetadata, ModelSpec
from engines.batcher import Batcher, BatchReport
from engines.errors import EngineError, ModelLoadError, UnknownModel, VersionNotReady
from engines.instance import Instance
from engines.warmup import warm_up

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

LOADER_THREADS: Final = 2


class VersionState(Enum):
    """The state of one version, in the words that RepositoryIndex reports."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


_MOVES: Final[Mapping[VersionState, frozenset[VersionState]]] = {
    VersionState.LOADING: frozenset({VersionState.READY, VersionState.UNAVAILABLE}),
    VersionState.READY: frozenset({VersionState.UNLOADING}),
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

    def __repr__(self) -> str:
        return f"<ServedVersion {self.model}/{self.version} {self.state.value}>"

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted."""
        return self.state is VersionState.READY

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
        """Change state along the table in the module's documentation."""
        if state not in _MOVES[self.state]:
            raise ValueError(f"{self!r} cannot become {state.value}")
        self.state, self.reason = state, reason
        if batcher is not None:
            self._batcher = batcher

    def note_failed_reload(self, error: EngineError) -> None:
        """Let the index tell why a version that goes on serving is not the newest copy."""
        if self.is_ready:
            self.reason = f"the last reload failed: {error}"

    async def close(self, reason: str) -> None:
        """Refuse new requests, answer the accepted ones, close the engines."""
        batcher = self.batcher
        self.move(VersionState.UNLOADING, reason=reason)
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


@dataclass(slots=True)
class _Model:
    """What is known of one model folder."""

    versions: dict[str, ServedVersion] = field(default_factory=dict)
    reason: str = ""
    """Why no version could even be tried."""
    changes: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by a load or an unload: a model changes one step at a time."""


class Repository:
    """All models below one root folder.

    Args:
        root: the repository folder.
        read_spec: makes a ModelSpec of a model's folder; raises ModelLoadError.
        loaders: engine loaders by the spec's `backend`.
        on_batch: told of each finished batch, on the event loop.
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
        self._loaders = loaders
        self._on_batch = on_batch
        self._models: dict[str, _Model] = {}
        self._under_way: set[asyncio.Future[None]] = set()
        self._threads = ThreadPoolExecutor(LOADER_THREADS, thread_name_prefix="sluice-load")

    async def start(self, pinned: Mapping[str, Iterable[str]]) -> None:
        """Load every model: the versions its policy selects, and those in `pinned`."""
        loads = (self.load(name, pinned.get(name, ())) for name in model_names(self._root))
        await asyncio.gather(*loads, return_exceptions=False)

    def get(self, model: str, version: str) -> ServedVersion:
        """Return a version whatever its state.

        Raises:
            UnknownModel: it is not in the repository, or its policy does not select it.
        """
        known = self._models.get(model)
        if known is None:
            raise UnknownModel(model=model)
        found = known.versions.get(version)
        if found is None:
            raise UnknownModel(model=model, version=version, why=known.reason)
        return found

    def highest_ready(self, model: str) -> ServedVersion:
        """Return the highest version that is ready.

        Raises:
            UnknownModel, VersionNotReady: there is none.
        """
        ready = self.ready_versions(model)
        if not ready:
            why = self._models[model].reason or "none of its versions is ready"
            raise VersionNotReady(model=model, why=why)
        return ready[-1]

    def ready_versions(self, model: str) -> list[ServedVersion]:
        """Return the ready versions in ascending order; raises UnknownModel."""
        known = self._models.get(model)
        if known is None:
            raise UnknownModel(model=model)
        return [known.versions[v] for v in _ascending(known.versions) if known.versions[v].is_ready]

    def has_model(self, model: str) -> bool:
        """Whether a folder of that name is known, ready or not."""
        return model in self._models

    def versions(self) -> list[ServedVersion]:
        """Return every known version of every model, by name and number."""
        return [
            self._models[name].versions[version]
            for name in sorted(self._models)
            for version in _ascending(self._models[name].versions)
        ]

    def index(self) -> list[IndexEntry]:
        """Return what RepositoryIndex reports: every version's state and reason."""
        rows = []
        for name in sorted(self._models):
            known = self._models[name]
            if not known.versions:
                state = VersionState.UNAVAILABLE
                rows.append(IndexEntry(model=name, version="", state=state, reason=known.reason))
            rows.extend(
                IndexEntry(model=name, version=v, state=served.state, reason=served.reason)
                for v in _ascending(known.versions)
                for served in (known.versions[v],)
            )
        return rows

    async def load(self, model: str, pinned: Iterable[str] = ()) -> None:
        """Load a model, or load it again; afterwards `index` tells how each version fared.

        Versions that are no longer on disk or no longer selected are drained and closed.
        Cancellation: the load goes on to its end, so that no version is left between two states.

        Raises:
            UnknownModel: there is no such folder.
        """
        if model not in await self._in_thread(lambda: model_names(self._root)):
            raise UnknownModel(model=model, why="the repository has no such folder")
        known = self._models.setdefault(model, _Model())
        await self._to_the_end(self._load_model(known, model, frozenset(pinned)))

    async def unload(self, model: str) -> None:
        """Drain and close every version of a model; its rows stay in the index.

        Raises:
            UnknownModel: there is no such model.
        """
        known = self._models.get(model)
        if known is None:
            raise UnknownModel(model=model)
        await self._to_the_end(self._unload_model(known, "unloaded"))

    async def close(self) -> None:
        """Let the changes under way end, then drain and close everything."""
        models = self._models.values()
        await asyncio.gather(*(self._unload_model(known, "shut down") for known in models))
        self._threads.shutdown(wait=False)

    async def _load_model(self, known: _Model, model: str, pinned: frozenset[str]) -> None:
        async with known.changes:
            try:
                spec, found = await self._in_thread(lambda: self._read_model(model))
            except ModelLoadError as exc:
                known.reason = str(exc)
                logger.error("model unavailable", extra={"model": model, "reason": known.reason})
                for served in known.versions.values():
                    served.note_failed_reload(exc)
                return
            selected = [v for v in found if v in pinned or v in spec.versions.select(found)]
            known.reason = "" if selected else "no version folder is selected"
            gone = [version for version in known.versions if version not in selected]
            await asyncio.gather(*(self._load_version(known, spec, v) for v in selected))
            await asyncio.gather(*(self._retire(known, v) for v in gone))

    def _read_model(self, model: str) -> tuple[ModelSpec, list[str]]:
        directory = self._root / model
        return self._read_spec(directory), version_names(directory)

    async def _unload_model(self, known: _Model, reason: str) -> None:
        async with known.changes:
            ready = [served for served in known.versions.values() if served.is_ready]
            await asyncio.gather(*(served.close(reason) for served in ready))

    async def _retire(self, known: _Model, version: str) -> None:
        served = known.versions.pop(version)
        if served.is_ready:
            await served.close("no longer in the repository")

    async def _load_version(self, known: _Model, spec: ModelSpec, version: str) -> None:
        served = ServedVersion(model=spec.name, version=version, spec=spec)
        old = known.versions.get(version)
        if old is None or not old.is_ready:
            known.versions[version] = served
        started_ns = time.monotonic_ns()
        extra: dict[str, object] = {"model": spec.name, "version": version}
        try:
            engines = await self._in_thread(lambda: self._load_engines(spec, version))
        except EngineError as exc:
            served.move(VersionState.UNAVAILABLE, reason=str(exc))
            logger.error("version unavailable", extra=extra | {"reason": str(exc)})
            if old is not None:
                old.note_failed_reload(exc)
            return
        batcher = self._make_batcher(served, engines)
        served.move(VersionState.READY, batcher=batcher)
        known.versions[version] = served
        extra |= {"load_ms": (time.monotonic_ns() - started_ns) // 1_000_000}
        extra |= {
            "device": batcher.metadata.device,
            "max_batch_size": batcher.metadata.max_batch_size,
        }
        logger.info("version ready", extra=extra)
        if old is not None and old.is_ready:
            await old.close("replaced by a reload")

    def _load_engines(self, spec: ModelSpec, version: str) -> list[Engine]:
        """Load and warm up every instance of a version. Blocking: runs on a loader thread."""
        loader = self._loaders.get(spec.backend)
        if loader is None:
            known = ", ".join(sorted(self._loaders))
            raise ModelLoadError(f"backend {spec.backend!r} is not one of {known}")
        path = spec.directory / version / spec.filename
        if not path.exists():
            raise ModelLoadError(f"{version}/{spec.filename} does not exist")
        engines: list[Engine] = []
        try:
            for _ in range(spec.instances):
                engines.append(loader(path, spec.engine))
                warm_up(engines[-1], spec)
        except BaseException as exc:
            for engine in engines:
                engine.close()
            if isinstance(exc, EngineError) or not isinstance(exc, Exception):
                raise
            raise ModelLoadError(f"{version}/{spec.filename} does not load: {exc!r}") from exc
        return engines

    def _make_batcher(self, served: ServedVersion, engines: Sequence[Engine]) -> Batcher:
        spec = served.spec
        name = f"{spec.name}/{served.version}"
        instances = [
            Instance(name=f"{name}#{n}", model=spec.name, version=served.version, engine=engine)
            for n, engine in enumerate(engines)
        ]
        on_batch = self._on_batch
        return Batcher(
            model=spec.name,
            version=served.version,
            policy=batch_policy(spec, engines[0].metadata),
            instances=instances,
            on_batch=None if on_batch is None else lambda report: on_batch(served, report),
        )

    async def _to_the_end(self, change: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(change)
        self._under_way.add(task)  # the event loop itself holds tasks only weakly
        task.add_done_callback(self._under_way.discard)
        await asyncio.shield(task)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def batch_policy(spec: ModelSpec, metadata: ModelMetadata) -> BatchPolicy:
    """Return the configured policy, or the default one for what the engine turned out to be.

    The engine's max_batch_size rules in both: admission checks requests against it.
    """
    rows = metadata.max_batch_size
    policy = spec.batching or BatchPolicy(max_batch_size=1, max_queue_rows=spec.max_queue_rows)
    if rows == 0:
        return replace(policy, max_batch_size=1, dynamic=False)
    return replace(policy, max_batch_size=rows)


def model_names(root: Path) -> list[str]:
    """Return the names of the model folders, sorted; hidden ones are no models."""
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def version_names(directory: Path) -> list[str]:
    """Return the version folders of a model, in ascending numeric order."""
    found = {p.name for p in directory.iterdir() if p.is_dir()}
    return _ascending(name for name in found if name.isdecimal() and not name.startswith("0"))


def _ascending(versions: Iterable[str]) -> list[str]:
    return sorted(versions, key=int)
