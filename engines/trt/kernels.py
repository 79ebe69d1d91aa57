"""The kernels that TensorRT-RTX compiles when it first runs a shape, kept for the next start.

A plan of TensorRT-RTX holds no finished kernels: they are compiled for the GPU at the first run of
each shape, which warm-up does for every bucket before a version is ready. `EAGER` makes that first
run wait for the kernels of the shape: otherwise they come later, from another thread, in place of
slower ones, and a recorded graph would not hear of it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from engines.errors import ModelLoadError
from engines.trt.api import Flavour
from engines.trt.recipe import replace_file
from engines.trt.surface import IRuntimeCache, IRuntimeConfig, RtxCudaEngine

logger = logging.getLogger(__name__)


class KernelCache:
    """Compiled kernels of one engine, in a file if there is one."""

    def __init__(self, flavour: Flavour, path: Path | None) -> None:
        self._flavour = flavour
        self._path = path
        self._cache: IRuntimeCache | None = None
        self._read = b""

    def settings(self, engine: RtxCudaEngine) -> IRuntimeConfig:
        """Return how the engine's contexts are to run: with these kernels.

        Raises:
            ModelLoadError: the runtime refuses.
        """
        flavour = self._flavour
        flavour.log.forget()
        settings = engine.create_runtime_config()
        if settings is None:
            why = flavour.log.why() or "it does not say why"
            raise ModelLoadError(f"{flavour} cannot be set up to run: {why}")
        strategies = flavour.rtx.DynamicShapesKernelSpecializationStrategy.__members__
        settings.dynamic_shapes_kernel_specialization_strategy = strategies["EAGER"]
        cache = settings.create_runtime_cache()
        self._fill(cache)
        if settings.set_runtime_cache(cache):
            self._cache = cache
        return settings

    def save(self) -> None:
        """Write the kernels if there are new ones; what cannot be written is logged.

        The last thing that is asked of it.
        """
        cache, self._cache = self._cache, None
        if self._path is None or cache is None:
            return
        content = cache.serialize()
        if content is None or bytes(content) == self._read:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(self._path, bytes(content))
        except OSError as exc:
            extra = {"file": str(self._path), "reason": exc.strerror}
            logger.warning("compiled kernels not kept", extra=extra)

    def _fill(self, cache: IRuntimeCache) -> None:
        if self._path is None:
            return
        try:
            self._read = self._path.read_bytes()
        except OSError:
            return
        if not cache.deserialize(self._read):  # of another driver, say
            logger.info("compiled kernels begun anew", extra={"file": str(self._path)})
