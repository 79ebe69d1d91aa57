"""Brings one copy of a version up: engines of its file, warmed up, behind a batcher.

Knows the engine registry and the warm-up; knows no other version and no index. The repository
decides when, and what becomes of what fails.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from engines.base import (
    BatchPolicy,
    Engine,
    EngineLoader,
    LanedEngine,
    ModelMetadata,
    ModelSpec,
)
from engines.batcher import Batcher
from engines.errors import EngineError, ModelLoadError
from engines.executed import BatchReport
from engines.instance import Host, Instance
from engines.laned import LanedInstance
from engines.revival import revive
from engines.served import ServedVersion, VersionState
from engines.threads import Places, in_daemon_thread
from engines.warmup import warm_up

logger = logging.getLogger(__name__)

LOADS_AT_ONCE: Final = 2
PATIENCE_S: Final = 60.0
"""A load that takes longer no longer counts as one of those at once: it may hang for ever."""


class Loader:
    """Loads engines on daemon threads, so many at once.

    Args:
        loaders: engine loaders by the spec's `backend`.
    """

    def __init__(self, loaders: Mapping[str, EngineLoader]) -> None:
        self._loaders = loaders
        self._places = Places(LOADS_AT_ONCE, patience_s=PATIENCE_S)

    async def bring_up(
        self,
        served: ServedVersion,
        *,
        label: str = "",
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> EngineError | None:
        """Make a copy ready, or unavailable with the reason that is returned.

        `label` tells a private copy from the version in the names of threads and in the log.
        """
        spec, version = served.spec, served.version
        started_ns = time.monotonic_ns()
        extra: dict[str, object] = {"model": served.model, "version": version}
        extra |= {"copy": label} if label else {}
        try:
            maker = Maker(self._loaders, spec, version, label)
            async with self._places.one():
                engines = await in_daemon_thread(
                    f"sluice-load-{spec.name}/{version}", maker.engines
                )
            batcher = maker.batcher(engines, on_batch=on_batch)
        except Exception as exc:  # also when no thread can be had: nothing may stay LOADING
            error = exc if isinstance(exc, EngineError) else ModelLoadError(f"{version}: {exc!r}")
            served.move(VersionState.UNAVAILABLE, reason=str(error))
            logger.error("version unavailable", extra=extra | {"reason": served.reason})
            return error
        served.move(VersionState.READY, batcher=batcher)
        extra |= {
            "load_ms": (time.monotonic_ns() - started_ns) // 1_000_000,
            "device": batcher.metadata.device,
            "max_batch_size": batcher.metadata.max_batch_size,
        }
        logger.info("version ready", extra=extra)
        return None


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes the engines of one copy of a version, and the instances around them.

    Args:
        label: goes before the number in the instances' names, as threads and logs show them; not
            empty for a private copy.
    """

    loaders: Mapping[str, EngineLoader]
    spec: ModelSpec
    version: str
    label: str = ""

    def engines(self) -> list[Engine]:
        """Load and warm up every instance. Blocking: runs on a loader thread.

        Raises:
            EngineError: one of them does not come up; those before it are closed.
        """
        made: list[Engine] = []
        try:
            made.extend(map(self.engine, range(self.spec.instances)))  # one by one: see below
        except BaseException:
            for engine in made:
                engine.close()
            raise
        return made

    def engine(self, number: int, *, auto: str = "auto") -> Engine:
        """Load and warm up the instance of a number; blocking. What does not warm up is closed.

        Args:
            auto: device of an instance whose configured device is auto.

        Raises:
            EngineError: it does not come up.
        """
        spec = self.spec
        loader = self.loaders.get(spec.backend)
        if loader is None:
            known = ", ".join(sorted(self.loaders))
            raise ModelLoadError(f"backend {spec.backend!r} is not one of {known}")
        path = spec.directory / self.version / spec.filename
        if not path.exists():
            raise ModelLoadError(f"{self.version}/{spec.filename} does not exist")
        config, engine = spec.engine_of(number), None
        if config.device == "auto":
            config = replace(config, device=auto)
        try:
            engine = loader(path, config)
            warm_up(engine, spec)
        except BaseException as exc:
            if engine is not None:
                engine.close()
            if isinstance(exc, EngineError) or not isinstance(exc, Exception):
                raise
            raise ModelLoadError(f"{self.version}/{spec.filename} does not load: {exc!r}") from exc
        return engine

    def host(self, number: int, engine: Engine) -> Host:
        """Give an engine its thread, or a laned one its threads."""
        name, model = self._name(number), self.spec.name
        if isinstance(engine, LanedEngine):
            return LanedInstance(name=name, model=model, version=self.version, engine=engine)
        return Instance(
            name=name,
            model=model,
            version=self.version,
            engine=engine,
            may_run_inline=not self.label,  # a shadow's copy must never hold the event loop
        )

    def batcher(
        self, engines: Sequence[Engine], *, on_batch: Callable[[BatchReport], None] | None
    ) -> Batcher:
        """Give each engine its instance and all of them one queue; on the event loop."""
        return Batcher(
            model=self.spec.name,
            version=self.version,
            policy=batch_policy(self.spec, engines[0].metadata),
            instances=[self.host(number, engine) for number, engine in enumerate(engines)],
            on_batch=on_batch,
            revive=self.revive,
        )

    def revive(self, lost: Host) -> Coroutine[None, None, Host]:
        """Return the making of a new instance for one whose device failed."""
        names = [self._name(number) for number in range(self.spec.instances)]
        number = names.index(lost.name)
        return revive(lost, lambda: self._again(number, lost.engine.metadata))

    def _again(self, number: int, before: ModelMetadata) -> Host:
        """Load an instance once more: on the device that it had, and only what it was.

        The file may be another by now; whoever answers for the version says which one it loaded.
        """
        engine = self.engine(number, auto=before.device)
        try:
            if _identity(engine.metadata) != _identity(before):
                raise ModelLoadError(f"{self.version}/{self.spec.filename} is not what was loaded")
            return self.host(number, engine)
        except BaseException:
            engine.close()
            raise

    def _name(self, number: int) -> str:
        return f"{self.spec.name}/{self.version}#{self.label}{number}"


def _identity(metadata: ModelMetadata) -> tuple[object, ...]:
    """Return what instances of one version have in common."""
    rows = metadata.max_batch_size
    return metadata.artifact_sha256, metadata.inputs, metadata.outputs, rows


def batch_policy(spec: ModelSpec, metadata: ModelMetadata) -> BatchPolicy:
    """Return the configured policy, or the default one for what the engine turned out to be.

    The engine's max_batch_size rules in both: admission checks requests against it.
    """
    rows = metadata.max_batch_size
    policy = spec.batching or BatchPolicy(max_batch_size=1, max_queue_rows=spec.max_queue_rows)
    if rows == 0:
        return replace(policy, max_batch_size=1, dynamic=False)
    return replace(policy, max_batch_size=rows)
