"""The model repository: which versions are on disk, loading, ready, draining or broken.

Knows folders, states and engines; knows no configuration format (a `read_spec` is handed in), no
route and no protocol. Layout: ``<root>/<model>/<version>/<file>``, versions are positive integers.

States of a version, and the only moves between them:

    LOADING -> READY        loaded and warmed up over its batch sizes
    LOADING -> UNAVAILABLE  the file is broken, contradicts its declaration, or wants a missing device
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final, TypeVar

import numpy as np

from engines.base import BatchPolicy, Engine, EngineLoader, ModelMetadata, ModelSpec, TensorSpec
from engines.batcher import Batcher, BatchReport
from engines.errors import EngineError, ModelLoadError, UnknownModel, VersionNotReady
from engines.instance import Instance
from engines.tensors import BYTES, DATATYPES, Array

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

LOADER_THREADS: Final = 2
MAX_WARMUP_ROWS: Final = 1024


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
        """Why it is not ready; empty when it is."""
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

    def move(self, state: VersionState, *, reason: str = "", batcher: Batcher | None = None) -> None:
        """Change state along the table in the module's documentation."""
        if state not in _MOVES[self.state]:
            raise ValueError(f"{self!r} cannot become {state.value}")
        self.state, self.reason = state, reason
        if batcher is not None:
            self._batcher = batcher

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

        Raises:
            UnknownModel: there is no such folder.
        """
        directory = self._root / model
        if model not in model_names(self._root):
            raise UnknownModel(model=model, why="the repository has no such folder")
        known = self._models.setdefault(model, _Model())
        try:
            spec = await self._in_thread(lambda: self._read_spec(directory))
        except ModelLoadError as exc:
            known.reason = str(exc)
            logger.error("model unavailable", extra={"model": model, "reason": known.reason})
            return
        found = version_names(directory)
        pins = set(pinned)
        selected = [v for v in found if v in pins or v in spec.versions.select(found)]
        known.reason = "" if selected else "no version folder is selected"
        async with known.changes:
            gone = [version for version in known.versions if version not in selected]
            await asyncio.gather(*(self._load_version(known, spec, v) for v in selected))
            await asyncio.gather(*(self._retire(known, v) for v in gone))

    async def unload(self, model: str) -> None:
        """Drain and close every version of a model; its rows stay in the index.

        Raises:
            UnknownModel: there is no such model.
        """
        known = self._models.get(model)
        if known is None:
            raise UnknownModel(model=model)
        async with known.changes:
            ready = [served for served in known.versions.values() if served.is_ready]
            await asyncio.gather(*(served.close("unloaded") for served in ready))

    async def close(self) -> None:
        """Drain and close everything."""
        await asyncio.gather(*(served.close("shut down") for served in self.versions() if served.is_ready))
        self._threads.shutdown(wait=False)

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
            if old is not None and old.is_ready:
                old.reason = f"the last reload failed: {exc}"
            return
        batcher = self._make_batcher(served, engines)
        served.move(VersionState.READY, batcher=batcher)
        known.versions[version] = served
        extra |= {"load_ms": (time.monotonic_ns() - started_ns) // 1_000_000}
        extra |= {"device": batcher.metadata.device, "max_batch_size": batcher.metadata.max_batch_size}
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
        except BaseException:
            for engine in engines:
                engine.close()
            raise
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

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def batch_policy(spec: ModelSpec, metadata: ModelMetadata) -> BatchPolicy:
    """Return the configured policy, or the default one for what the engine turned out to be."""
    if metadata.max_batch_size == 0:
        rows = spec.batching.max_queue_rows if spec.batching else spec.max_queue_rows
        return BatchPolicy(max_batch_size=1, dynamic=False, max_queue_rows=rows)
    if spec.batching is not None:
        return spec.batching
    return BatchPolicy(max_batch_size=metadata.max_batch_size, max_queue_rows=spec.max_queue_rows)


def warm_up(engine: Engine, spec: ModelSpec) -> None:
    """Run the engine once per batch size that it is expected to see, the largest first.

    The largest goes first so that arenas are sized once. Dimensions that vary are tried as 1; a
    model that refuses such a made-up shape is warned about, not condemned.

    Raises:
        ModelLoadError: a batch of the model's own fixed shape fails.
    """
    metadata = engine.metadata
    first = 1 if metadata.max_batch_size else 0
    is_guessed = any(-1 in tensor.shape[first:] for tensor in metadata.inputs)
    for rows in warmup_sizes(spec, metadata.max_batch_size):
        try:
            engine.infer({tensor.name: zeros(tensor, rows) for tensor in metadata.inputs})
        except Exception as exc:  # foreign: whatever the runtime raises for a shape it dislikes
            if not is_guessed:
                raise ModelLoadError(f"warm-up with {rows} rows failed: {exc}") from exc
            logger.warning("warm-up skipped", extra={"model": spec.name, "reason": str(exc)})
            return


def warmup_sizes(spec: ModelSpec, max_batch_size: int) -> list[int]:
    """Return the batch sizes to warm up, largest first; one entry without a batch axis."""
    if max_batch_size == 0:
        return [1]
    sizes = set(spec.warmup_batch_sizes)
    if not sizes:
        limit = min(max_batch_size, MAX_WARMUP_ROWS)
        sizes = {limit, *(1 << n for n in range(limit.bit_length()))}
        if spec.batching is not None:
            sizes.update(spec.batching.preferred_batch_sizes)
    return sorted((size for size in sizes if 1 <= size <= max_batch_size), reverse=True)


def zeros(tensor: TensorSpec, rows: int) -> Array:
    """Return an input of zeros (empty strings for BYTES), varying dimensions as `rows`, then 1."""
    shape = [1 if dimension == -1 else dimension for dimension in tensor.shape]
    if tensor.shape and tensor.shape[0] == -1:
        shape[0] = rows
    if tensor.datatype == BYTES:
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, DATATYPES[tensor.datatype].dtype)


def model_names(root: Path) -> list[str]:
    """Return the names of the model folders, sorted; hidden ones are no models."""
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def version_names(directory: Path) -> list[str]:
    """Return the version folders of a model, in ascending numeric order."""
    found = {p.name for p in directory.iterdir() if p.is_dir()}
    return _ascending(name for name in found if name.isdecimal() and not name.startswith("0"))


def _ascending(versions: Iterable[str]) -> list[str]:
    return sorted(versions, key=int)
