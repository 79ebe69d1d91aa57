"""ONNX to plan: parse, set up, build; each failure a sentence, in the words of who refused.

Knows TensorRT's builder; runs nothing. A build takes from a second to an hour and, but for
TensorRT-RTX, measures kernels on the GPU: one at a time per process, and never beside live traffic.

Precision is what the ONNX file says. Networks are strongly typed (TensorRT 11 and TensorRT-RTX know
nothing else), so there is no switch for half precision: the file is converted beforehand.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from engines import artifacts
from engines.base import TensorSpec
from engines.errors import ModelLoadError
from engines.trt import plans, profiles
from engines.trt.api import Flavour
from engines.trt.parse import builder_of, name_of, parsed, specs
from engines.trt.plans import Sidecar
from engines.trt.progress import OnProgress, Progress, monitor_of
from engines.trt.recipe import (
    Recipe,
    keep_timing_cache,
    replace_file,
    settings_of,
    timing_cache_path,
    use_timing_cache,
)

logger = logging.getLogger(__name__)

_building = threading.Lock()
"""Held while a plan is built: kernels that are timed beside others are chosen by chance."""
_making: Final[dict[str, threading.Lock]] = {}
"""By key: whoever wants a plan that is being built waits for it."""


class BuildCancelled(ModelLoadError):
    """Whoever watches the build asked for its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A plan, and what went into it."""

    plan: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def key(
    flavour: Flavour, model: Path, recipe: Recipe, hardware: Mapping[str, object]
) -> dict[str, object]:
    """Return everything that a plan depends on; reads the whole model.

    Raises:
        OSError: the model cannot be read.
    """
    return {
        "flavour": flavour.name,
        "version": flavour.version,
        "model_sha256": plans.model_sha256(model),
        "precision": plans.precision_of(model),
        "profiles": [plans.profile_json(profile) for profile in recipe.profiles],
        "hardware": dict(hardware),
        **recipe.options(),
    }


def build(
    flavour: Flavour,
    model: Path | bytes,
    recipe: Recipe,
    *,
    timing_cache: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Built:
    """Build a plan. Blocking; one build at a time in a process.

    Args:
        model: an ONNX file, or its content if all weights are in it.
        timing_cache: read and written again; what does not fit this device is begun anew.

    Raises:
        ModelLoadError: the model, the recipe or the build is at fault.
        BuildCancelled: `on_progress` said so.
    """
    with _building:
        builder = builder_of(flavour)
        network, _parser = parsed(flavour, builder, model)  # the parser owns the weights
        inputs, outputs = specs(network)
        profiles.check(recipe.profiles, inputs)
        settings = settings_of(flavour, builder, recipe)
        if timing_cache is not None:
            use_timing_cache(flavour, settings, timing_cache)
        progress = Progress(on_progress or _ignored)
        settings.progress_monitor = monitor_of(flavour.module, progress)
        flavour.log.forget()
        plan = builder.build_serialized_network(network, settings)
        if progress.raised is not None:
            raise progress.raised
        if progress.is_cancelled:
            raise BuildCancelled("the build was cancelled")
        if plan is None:
            why = flavour.log.why() or "it does not say why"
            raise ModelLoadError(f"{flavour} cannot build {name_of(model)}: {why}")
        if timing_cache is not None:
            keep_timing_cache(settings, timing_cache)
        return Built(plan=bytes(plan), inputs=inputs, outputs=outputs)


def kept(
    flavour: Flavour,
    model: Path,
    recipe: Recipe,
    *,
    cache: Path | None,
    hardware: Mapping[str, object],
    built_at: str,
) -> tuple[bytes, Path | None]:
    """Return the plan of a model, and where it is kept if it is; built only if it is not there.

    Raises:
        ModelLoadError: see `build`.
    """
    described = key(flavour, model, recipe, hardware)
    made: list[Built] = []

    def make(path: Path) -> None:
        timing_cache = timing_cache_path(flavour, cache, hardware)
        made.append(build(flavour, model, recipe, timing_cache=timing_cache))
        if plans.model_sha256(model) != described["model_sha256"]:
            raise ModelLoadError(f"{model.name} was replaced while its plan was built")
        path.write_bytes(made[0].plan)

    with _making.setdefault(json.dumps(described, default=str), threading.Lock()):
        plan = artifacts.keep(cache, described, ".plan", make)
        if plan is None and not made:
            made.append(build(flavour, model, recipe))
        if plan is not None and made:
            replace_file(plans.sidecar_path(plan), _sidecar(made[0], described, built_at))
    return made[0].plan if made else cast("Path", plan).read_bytes(), plan


def write(plan: Path, built: Built, described: Mapping[str, object], built_at: str) -> None:
    """Write a plan and its sidecar.

    Args:
        described: the plan's `key`.
        built_at: ISO 8601.

    Raises:
        OSError: they cannot be written.
    """
    replace_file(plan, built.plan)
    replace_file(plans.sidecar_path(plan), _sidecar(built, described, built_at))


def _ignored(phase: str, fraction: float, /) -> bool:
    logger.debug("building", extra={"phase": phase, "fraction": round(fraction, 3)})
    return True


def _sidecar(built: Built, described: Mapping[str, object], built_at: str) -> bytes:
    told = dict(described)
    made = Sidecar(
        flavour=str(told.pop("flavour")),
        version=str(told.pop("version")),
        model_sha256=str(told.pop("model_sha256")),
        plan_sha256=hashlib.sha256(built.plan).hexdigest(),
        built_at=built_at,
        inputs=built.inputs,
        outputs=built.outputs,
        profiles=tuple(map(plans.profile_of, cast("list[plans.Json]", told.pop("profiles")))),
        options=told,
    )
    return made.to_json().encode()
