"""Whether the versions that a route names can serve it: on disk, loaded, warm, of one signature.

Knows the repository; knows no store. A version that is not loaded is loaded here, before the route
that names it comes into force: so no weight ever falls on a cold version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager

from engines.base import ModelMetadata
from engines.errors import EngineError, UnknownModel
from engines.repository import Repository
from engines.signature import incompatibility
from router.faults import Fault, Path, RouteError
from router.revisions import Revision
from router.routes import Route, Variant

Pins = dict[str, set[str]]
"""Versions by model."""


def needed(route: Route) -> set[tuple[str, str]]:
    """Return the versions that can get traffic: by weight, by a rule, or as the fallback."""
    names = {v.name for v in route.variants if v.slots}
    if route.fallback:
        names.add(route.fallback.to)
    for rule in route.rules:
        if rule.is_enabled:
            names |= rule.destinations
    return {(v.model, v.version) for v in route.variants if v.name in names}


class Targets:
    """Checks and loads the versions of routes."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._kept: list[Route] = []

    @contextmanager
    def keeping(self, route: Route) -> Iterator[None]:
        """Keep a route's versions pinned for a block: until the route itself pins them."""
        self._kept.append(route)
        try:
            yield
        finally:
            self._kept.remove(route)

    def pins(self, revisions: Iterable[Revision], now_ms: int) -> Pins:
        """Return the versions that must stay loaded: the variants' of these revisions, those that
        they keep warm, and those of routes that are about to be written."""
        found: Pins = {}
        for revision in revisions:
            if revision.is_deleted:
                continue
            for variant in revision.route.variants:
                found.setdefault(variant.model, set()).add(variant.version)
            for warm in revision.warm:
                if warm.until_ms > now_ms:
                    found.setdefault(warm.model, set()).add(warm.version)
        for route in self._kept:
            for variant in route.variants:
                found.setdefault(variant.model, set()).add(variant.version)
        return found

    def is_ready(self, model: str, version: str) -> bool:
        """Whether a version serves now."""
        try:
            return self._repository.get(model, version).is_ready
        except UnknownModel:
            return False

    def why_not_ready(self, model: str, version: str) -> str:
        """Return why a version does not serve now; empty: it does."""
        try:
            served = self._repository.get(model, version)
        except UnknownModel as exc:
            return str(exc)
        return "" if served.is_ready else served.reason or served.state.value.lower()

    def missing(self, route: Route) -> list[tuple[str, str]]:
        """Return the versions that can get traffic and do not serve now, each once."""
        return [target for target in sorted(needed(route)) if not self.is_ready(*target)]

    def loads(self, route: Route, before: Revision | None) -> tuple[tuple[str, str], ...]:
        """Return what a route would have loaded: variants' versions, and copies for shadows."""
        targets = {(v.model, v.version) for v in route.variants}
        found = {target for target in targets if not self.is_ready(*target)}
        had = {s.name: (s.model, s.version) for s in before.route.shadows} if before else {}
        found |= {
            (s.model, s.version) for s in route.shadows if had.get(s.name) != (s.model, s.version)
        }
        return tuple(sorted(found))

    def check_exists(self, route: Route) -> None:
        """Raise RouteError if a version is not on disk."""
        faults = []
        for path, model, version in route.targets():
            if not self._repository.on_disk(model, version):
                sentence = f"model {model!r} has no version {version!r} in the repository"
                faults.append(Fault((*path, "version"), sentence))
        if faults:
            raise RouteError(*faults)

    async def load(self, route: Route, *, only: Container[tuple[str, str]] | None = None) -> None:
        """Have the variants' versions loaded and warm: all of them, or those in `only`.

        Raises:
            RouteError: with one fault per version that does not come up.
        """
        places: dict[tuple[str, str], Path] = {}
        for path, model, version in route.targets():
            if path[0] == "variants" and (only is None or (model, version) in only):
                places.setdefault((model, version), path)
        targets = [target for target in places if not self.is_ready(*target)]
        errors = await asyncio.gather(
            *(self._repository.ensure(*target) for target in targets), return_exceptions=True
        )
        faults = []
        for target, error in zip(targets, errors, strict=True):
            if isinstance(error, EngineError):
                faults.append(Fault((*places[target], "version"), str(error)))
            elif isinstance(error, BaseException):
                raise error
        if faults:
            raise RouteError(*faults)

    def check_loaded_signatures(self, route: Route) -> None:
        """Check what can be checked without loading anything; raises as `check_signatures`."""
        stable = route.variant(route.stable)
        if not self.is_ready(stable.model, stable.version):
            return
        reference = self._repository.get(stable.model, stable.version).metadata
        faults = []
        for path, model, version in route.targets():
            if self.is_ready(model, version):
                metadata = self._repository.get(model, version).metadata
                faults += _unfit(stable, reference, path, metadata)
        if faults:
            raise RouteError(*faults)

    async def check_signatures(self, route: Route, known: Route | None) -> None:
        """Raise RouteError if a version cannot stand in for the stable one.

        Args:
            route: whose variants are loaded.
            known: the route before it; shadows that it had were checked then.
        """
        stable = route.variant(route.stable)
        at: Path = ("variants", stable.name)
        reference = self._metadata(at, stable.model, stable.version)
        checked = {(s.model, s.version) for s in known.shadows} if known else set()
        faults = []
        for path, model, version in route.targets():
            if path[0] == "variants":
                metadata = self._metadata(path, model, version)
            elif (model, version) in checked:
                continue
            else:
                metadata = await self._metadata_of_copy(path, model, version)
            faults += _unfit(stable, reference, path, metadata)
        if faults:
            raise RouteError(*faults)

    def _metadata(self, path: Path, model: str, version: str) -> ModelMetadata:
        """Return what a version that was loaded takes; somebody may have unloaded it since."""
        try:
            return self._repository.get(model, version).metadata
        except EngineError as exc:
            raise RouteError(Fault((*path, "version"), str(exc))) from None

    async def _metadata_of_copy(self, path: Path, model: str, version: str) -> ModelMetadata:
        """Load a version as a shadow would be, to see whether it comes up and what it takes."""
        if self.is_ready(model, version):
            return self._metadata(path, model, version)
        try:
            copy = await self._repository.load_copy(model, version)
        except EngineError as exc:
            raise RouteError(Fault((*path, "version"), str(exc))) from None
        metadata = copy.metadata
        await copy.close("checked")
        return metadata


def _unfit(
    stable: Variant, reference: ModelMetadata, path: Path, metadata: ModelMetadata
) -> list[Fault]:
    """Return what keeps a version from standing in for the stable one."""
    why = incompatibility(reference, metadata)
    if not why:
        return []
    sentence = f"it cannot stand in for {stable.model}/{stable.version}: {why}"
    return [Fault((*path, "version"), sentence)]
