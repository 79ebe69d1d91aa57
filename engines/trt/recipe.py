"""How a plan is to be built, and the builder's settings that say so.

Knows settings; knows no model. Precision is none of them: it is what the ONNX file says. Networks
are strongly typed (TensorRT 11 and TensorRT-RTX know nothing else), so there is no switch for half
precision: the file is converted beforehand.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, cast

from engines.errors import ModelLoadError
from engines.trt.api import Flavour
from engines.trt.profiles import InvalidRecipe, Profile
from engines.trt.surface import Builder, Enumerated, IBuilderConfig, RtxBuilderConfig

logger = logging.getLogger(__name__)

FLAGS: Final = ("SPARSE_WEIGHTS", "STRICT_NANS", "DISTRIBUTIVE_INDEPENDENCE")
"""Flags of the builder that may be set; the others change what a plan is, or are ours to set."""
PRECISION_FLAGS: Final = ("FP16", "BF16", "INT8", "FP8", "INT4", "FP4")
LEVELS: Final = range(6)
NO_TF32: Final = "NO_TF32"
"""Keeps FP32 multiplications at full precision, which they are not by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a plan is to be built; a plan depends on all of it."""

    profiles: tuple[Profile, ...] = ()
    workspace_bytes: int = 0
    """Most scratch memory that a kernel may take; 0: what the device has."""
    level: int | None = None
    """0 to 5, of effort; None: TensorRT's own."""
    capabilities: tuple[str, ...] = ()
    """Compute capabilities such as 8.9 to build for; TensorRT-RTX only, which needs no such GPU."""
    flags: tuple[str, ...] = ()
    """Of FLAGS, and NO_TF32."""

    def options(self) -> dict[str, object]:
        """Return all but the profiles, for a key or a sidecar."""
        return {name: value for name, value in asdict(self).items() if name != "profiles"}


def settings_of(flavour: Flavour, builder: Builder, recipe: Recipe) -> IBuilderConfig:
    """Return the builder's settings for a recipe.

    Raises:
        InvalidRecipe: it asks for what this TensorRT does not do.
    """
    flavour.log.forget()
    settings = builder.create_builder_config()
    if settings is None:
        raise ModelLoadError(
            f"{flavour} cannot be set up: {flavour.log.why() or 'it does not say why'}"
        )
    if recipe.workspace_bytes:
        workspace = flavour.module.MemoryPoolType.__members__["WORKSPACE"]
        settings.set_memory_pool_limit(workspace, recipe.workspace_bytes)
    if recipe.level is not None:
        if recipe.level not in LEVELS:
            raise InvalidRecipe(f"optimisation level {recipe.level} is not one of 0 to 5")
        settings.builder_optimization_level = recipe.level
    _set_flags(flavour, settings, recipe)
    _set_targets(flavour, settings, recipe)
    _add_profiles(flavour, builder, settings, recipe)
    if why := flavour.log.why():
        raise InvalidRecipe(f"{flavour} refuses how it is to build: {why}")
    return settings


def capabilities(flavour: Flavour) -> dict[str, Enumerated]:
    """Return what TensorRT-RTX can build for, such as 8.9."""
    members = flavour.rtx.ComputeCapability.__members__
    numbers = {name.removeprefix("SM"): found for name, found in members.items()}
    return {f"{n[:-1]}.{n[-1]}": found for n, found in numbers.items() if n.isdecimal()}


def untargeted(flavour: Flavour, capability: str) -> str:
    """Return the sentence for a GPU that TensorRT-RTX does not know."""
    known = ", ".join(capabilities(flavour))
    return f"{flavour} has no support for compute capability {capability}, only for {known}"


def timing_cache_path(
    flavour: Flavour, cache: Path | None, hardware: Mapping[str, object]
) -> Path | None:
    """Return where kernels' times are kept for such a device; None: nowhere."""
    if cache is None or not flavour.has_timing_cache:
        return None
    text = json.dumps([flavour.name, flavour.version, hardware], sort_keys=True, default=str)
    return cache / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.timing"


def use_timing_cache(flavour: Flavour, settings: IBuilderConfig, path: Path) -> None:
    """Give the builder the times that are known; those of another device are left aside."""
    flavour.log.forget()
    try:
        known = path.read_bytes()
    except OSError:
        known = b""
    for content in (known, b""):
        cache = settings.create_timing_cache(content)
        if cache is not None and settings.set_timing_cache(cache, False):
            return
        extra = {"file": str(path), "reason": flavour.log.why()}
        logger.warning("timing cache begun anew", extra=extra)
        flavour.log.forget()


def keep_timing_cache(settings: IBuilderConfig, path: Path) -> None:
    """Write what is known of kernels' times after a build."""
    cache = settings.get_timing_cache()
    if cache is None:
        return
    try:
        replace_file(path, bytes(cache.serialize()))
    except OSError as exc:
        extra = {"file": str(path), "reason": exc.strerror}
        logger.warning("timing cache not kept", extra=extra)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that is there wholly or not at all.

    Raises:
        OSError: it cannot be written.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(content)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _set_flags(flavour: Flavour, settings: IBuilderConfig, recipe: Recipe) -> None:
    members = flavour.module.BuilderFlag.__members__
    for name in recipe.flags:
        if name == NO_TF32:
            settings.clear_flag(members["TF32"])
        elif name in PRECISION_FLAGS:
            raise InvalidRecipe(
                f"flag {name}: a plan has the precision of its ONNX file; convert that instead"
            )
        elif name not in FLAGS or name not in members:
            known = ", ".join((*FLAGS, NO_TF32))
            raise InvalidRecipe(f"flag {name!r} is not one of {known}")
        else:
            settings.set_flag(members[name])


def _set_targets(flavour: Flavour, settings: IBuilderConfig, recipe: Recipe) -> None:
    if not recipe.capabilities:
        return
    if not flavour.is_rtx:
        raise InvalidRecipe(
            f"{flavour} builds for the GPU that it runs on: a compute capability cannot be chosen"
        )
    targets = cast("RtxBuilderConfig", settings)
    targets.num_compute_capabilities = len(recipe.capabilities)
    known = capabilities(flavour)
    for index, capability in enumerate(recipe.capabilities):
        if capability not in known:
            raise InvalidRecipe(untargeted(flavour, capability))
        if not targets.set_compute_capability(known[capability], index):
            why = flavour.log.why() or "it does not say why"
            raise ModelLoadError(f"compute capability {capability} is refused: {why}")


def _add_profiles(
    flavour: Flavour, builder: Builder, settings: IBuilderConfig, recipe: Recipe
) -> None:
    for number, ranges in enumerate(recipe.profiles):
        profile = builder.create_optimization_profile()
        for name, of in ranges.items():
            profile.set_shape(name, of.least, of.best, of.most)
        if settings.add_optimization_profile(profile) < 0:
            raise InvalidRecipe(f"profile {number} is refused: {flavour.log.why()}")
