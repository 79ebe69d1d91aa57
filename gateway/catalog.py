"""What the server says of itself and its models, as neither protocol knows it.

Answers the calls around inference: health, metadata, configuration, statistics, the repository
index, load and unload. A route is a virtual model: each of these works for its name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from engines.base import ModelMetadata, ModelSpec, TensorSpec
from engines.errors import UnknownModel, VersionNotReady
from engines.repository import Repository
from engines.served import IndexEntry, VersionState
from gateway import __version__
from gateway.directory import Directory, nobody
from gateway.errors import Draining, NotAllowed, UnknownName
from gateway.lifecycle import Lifecycle
from gateway.statistics import InferenceStatistics, StatisticsBook

SERVER_NAME: Final = "sluice"
EXTENSIONS: Final = (
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The metadata of a public name."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsRow:
    """One row of the statistics call."""

    name: str
    version: str
    statistics: InferenceStatistics


class ConfigDocument(Protocol):
    """A model's configuration, made elsewhere; opaque here."""

    @property
    def wire(self) -> bytes:
        """A serialized ModelConfig message."""

    @property
    def json(self) -> str:
        """The same as proto JSON, with proto field names."""


class ConfigDescriber(Protocol):
    """Makes configuration documents (gateway/model_config)."""

    def describe(
        self, spec: ModelSpec, metadata: ModelMetadata, version: str, *, name: str
    ) -> ConfigDocument:
        """Describe a version under a public name."""


class Catalog:
    """The calls around inference.

    Args:
        directory: resolves public names.
        lifecycle: the process's phase.
        statistics: the rows that the pipeline feeds.
        configs: makes configuration documents.
        pinned: returns the versions that routes need, by model: they are kept on a load whatever
            the policy says.
        on_load: told of each model that was loaded again.
    """

    def __init__(
        self,
        *,
        directory: Directory,
        lifecycle: Lifecycle,
        statistics: StatisticsBook,
        configs: ConfigDescriber,
        pinned: Callable[[], Mapping[str, Collection[str]]],
        on_load: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._repository: Repository = directory.repository
        self._lifecycle = lifecycle
        self._statistics = statistics
        self._configs = configs
        self._pinned = pinned
        self._on_load = on_load

    def is_server_ready(self) -> bool:
        """Whether new requests are welcome."""
        return self._lifecycle.is_ready

    def is_model_ready(self, name: str, version: str) -> bool:
        """Whether a request to this name would be served now; raises UnknownName."""
        return self._lifecycle.is_ready and self._directory.is_ready(name, version)

    def server_version(self) -> str:
        """Return the version of this software."""
        return __version__

    def metadata(self, name: str, version: str) -> ModelInfo:
        """Return a name's signature; raises UnknownName, VersionNotReady."""
        served = self._directory.representative(name, version)
        metadata = served.metadata
        return ModelInfo(
            name=name,
            versions=(version,) if version else tuple(self._directory.versions(name)),
            platform=metadata.platform,
            inputs=metadata.inputs,
            outputs=metadata.outputs,
        )

    def signature(self, name: str, version: str) -> ModelMetadata:
        """Return the loaded metadata that stands for a name; raises as `metadata`."""
        return self._directory.representative(name, version).metadata

    def config(self, name: str, version: str) -> ConfigDocument:
        """Return a name's configuration; raises UnknownName, VersionNotReady."""
        served = self._directory.representative(name, version)
        return self._configs.describe(served.spec, served.metadata, served.version, name=name)

    def statistics(self, name: str, version: str) -> list[StatisticsRow]:
        """Return the rows of a name, or all of them for an empty name; raises UnknownName.

        A route has one row, under the version of its heaviest variant. Among all rows, a route
        that bears a model's name is left out: its requests are in that model's rows.
        """
        routes = self._directory.routes.snapshot
        if not name:
            rows = [self._version_row(s.model, s.version) for s in self._repository.versions()]
            rows += [
                self._route_row(r) for r in sorted(routes) if not self._repository.has_model(r)
            ]
            return rows
        if name in routes and not version:
            return [self._route_row(name)]
        if version:
            served = self._directory.representative(name, version)
            return [self._version_row(served.model, served.version)]
        if not self._repository.has_model(name):
            raise nobody(name)
        return [self._version_row(name, s.version) for s in self._repository.ready_versions(name)]

    def _version_row(self, model: str, version: str) -> StatisticsRow:
        row = self._statistics.row(model, version)
        return StatisticsRow(name=model, version=version, statistics=row)

    def _route_row(self, route: str) -> StatisticsRow:
        version = self._directory.routes.snapshot[route].route.heaviest.version
        row = self._statistics.row(route, "")
        return StatisticsRow(name=route, version=version, statistics=row)

    def index(self, *, ready_only: bool) -> list[IndexEntry]:
        """Return every version of the repository with its state and reason."""
        rows = self._repository.index()
        return [row for row in rows if row.state is VersionState.READY or not ready_only]

    async def load(self, model: str) -> None:
        """Load a model or load it again.

        Raises:
            Draining: what is loaded now would never be closed.
            UnknownName: there is no such folder.
            VersionNotReady: no version came up; the sentence says why.
        """
        if self._lifecycle.is_draining:
            raise Draining
        try:
            await self._repository.load(model, self._pinned().get(model, ()))
            self._on_load(model)
            if not self._repository.ready_versions(model):
                rows = [row for row in self._repository.index() if row.model == model]
                why = "; ".join(f"{r.version or model}: {r.reason}" for r in rows if r.reason)
                raise VersionNotReady(model=model, why=why or "no version is ready")
        except UnknownModel as exc:
            raise UnknownName(str(exc)) from None

    async def unload(self, model: str) -> None:
        """Drain and close a model's versions; raises UnknownName."""
        try:
            await self._repository.unload(model)
        except UnknownModel as exc:
            raise UnknownName(str(exc)) from None


class RepositoryControl:
    """Load and unload on behalf of predict-port clients: allowed only where configured."""

    def __init__(self, catalog: Catalog, *, is_allowed: bool) -> None:
        self._catalog = catalog
        self._is_allowed = is_allowed

    async def load(self, model: str) -> None:
        """Load a model; raises NotAllowed, or as `Catalog.load`."""
        self._check("load")
        await self._catalog.load(model)

    async def unload(self, model: str) -> None:
        """Unload a model; raises NotAllowed, or as `Catalog.unload`."""
        self._check("unload")
        await self._catalog.unload(model)

    def _check(self, verb: str) -> None:
        if not self._is_allowed:
            raise NotAllowed(
                f"{verb} is not allowed on this port: set models.control to 'explicit', "
                "or use the admin API"
            )
