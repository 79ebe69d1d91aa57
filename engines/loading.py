"""Brings one copy of a version up: engines of its file, warmed up, behind a batcher.

Knows the engine registry and the warm-up; knows no other version and no index. The repository
decides when, and what becomes of what fails.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from engines.base import BatchPolicy, Engine, EngineLoader, ModelMetadata, ModelSpec
from engines.batcher import Batcher, BatchReport
from engines.errors import EngineError, ModelLoadError
from engines.instance import Instance
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
            async with self._places.one():
                engines = await in_daemon_thread(
                    f"sluice-load-{spec.name}/{version}",
                    lambda: load_engines(self._loaders, spec, version),
                )
            batcher = make_batcher(spec, version, engines, label=label, on_batch=on_batch)
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


def load_engines(
    loaders: Mapping[str, EngineLoader], spec: ModelSpec, version: str
) -> list[Engine]:
    """Load and warm up every instance of a version. Blocking: runs on a loader thread.

    Raises:
        EngineError: one of them does not come up; those before it are closed.
    """
    loader = loaders.get(spec.backend)
    if loader is None:
        known = ", ".join(sorted(loaders))
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


def make_batcher(
    spec: ModelSpec,
    version: str,
    engines: Sequence[Engine],
    *,
    label: str,
    on_batch: Callable[[BatchReport], None] | None,
) -> Batcher:
    """Give each engine its thread and all of them one queue; on the event loop.

    `label` goes before the number in the instances' names, as threads and logs show them.
    """
    instances = [
        Instance(
            name=f"{spec.name}/{version}#{label}{number}",
            model=spec.name,
            version=version,
            engine=engine,
            may_run_inline=not label,  # a shadow's copy must never hold the event loop
        )
        for number, engine in enumerate(engines)
    ]
    return Batcher(
        model=spec.name,
        version=version,
        policy=batch_policy(spec, engines[0].metadata),
        instances=instances,
        on_batch=on_batch,
    )


def batch_policy(spec: ModelSpec, metadata: ModelMetadata) -> BatchPolicy:
    """Return the configured policy, or the default one for what the engine turned out to be.

    The engine's max_batch_size rules in both: admission checks requests against it.
    """
    rows = metadata.max_batch_size
    policy = spec.batching or BatchPolicy(max_batch_size=1, max_queue_rows=spec.max_queue_rows)
    if rows == 0:
        return replace(policy, max_batch_size=1, dynamic=False)
    return replace(policy, max_batch_size=rows)
