"""What onnxruntime's TensorRT provider is given beside the configuration: caches and a profile.

Without a cache every load builds its engines again, for minutes; without a profile the provider
builds one more at the first request of each new shape. So both are always set, as far as there is a
folder to keep in and the model's shapes tell. The provider checks little of what it finds in its
cache: the folder's name has everything that an engine depends on.

None of this has run on a GPU here.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import onnxruntime as ort

from engines import devices
from engines.base import EngineConfig, TensorSpec
from engines.declared import declare
from engines.ort.datatypes import specs
from engines.ort.providers import PROFILE_KEYS, TENSORRT, in_words
from engines.ort.session import signature

logger = logging.getLogger(__name__)

_FOLDER: Final = "onnxruntime-tensorrt"


def completed(
    options: Mapping[str, str], path: Path, config: EngineConfig, sha256: str
) -> dict[str, str]:
    """Return the provider's options with caches and a profile; those that are given win.

    Raises:
        ModelLoadError: the model does not load, or contradicts its declaration.
        DeviceUnavailable: the GPU is not there.
    """
    out = in_words(TENSORRT, options)
    if PROFILE_KEYS[0] not in options:
        out |= _profile(path, config)
    return {**_caches(out, config, sha256), **out}


def _caches(options: Mapping[str, str], config: EngineConfig, sha256: str) -> dict[str, str]:
    if config.cache is None:
        logger.warning("TensorRT engines are built at every load: no folder to keep them in")
        return {}
    key = {
        "model_sha256": sha256,
        "onnxruntime": ort.__version__,
        "hardware": devices.hardware_key(f"cuda:{options['device_id']}"),
        "options": {name: value for name, value in options.items() if name != "device_id"},
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]
    timings = config.cache / _FOLDER
    engines = timings / digest
    try:
        engines.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        extra = {"folder": str(timings), "reason": exc.strerror}
        logger.warning("TensorRT engines cannot be kept", extra=extra)
        return {}
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(engines),
        "trt_engine_cache_prefix": digest[:8],
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(timings),
    }


def _profile(path: Path, config: EngineConfig) -> dict[str, str]:
    """Return one profile from a row to the largest batch; none where other dimensions vary."""
    session = signature(path, config)
    declared = declare(
        config, specs(session.get_inputs(), "input"), specs(session.get_outputs(), "output")
    )
    if not any(-1 in spec.shape for spec in declared.inputs):
        return {}
    shapes = profile_of(declared.inputs, declared.max_batch_size, declared.buckets)
    if not shapes:
        logger.warning(
            "TensorRT builds an engine at the first request of each new shape: "
            "the model has dimensions that vary and no profile",
            extra={"model": path.name, "options": ", ".join(PROFILE_KEYS)},
        )
    return shapes


def profile_of(
    inputs: tuple[TensorSpec, ...], max_batch_size: int, buckets: tuple[int, ...]
) -> dict[str, str]:
    """Return the options of a profile for these inputs; none if it cannot be told from them."""
    if not max_batch_size or any(-1 in spec.shape[1:] for spec in inputs):
        return {}
    smallest = buckets[0] if buckets else 1
    # Kernels are chosen for the middle one: what a server under load runs is near the largest.
    rows = (smallest, max(smallest, max_batch_size // 2), max_batch_size)
    return {
        key: ",".join(
            f"{spec.name}:{'x'.join(str(dimension) for dimension in (count, *spec.shape[1:]))}"
            for spec in inputs
        )
        for key, count in zip(PROFILE_KEYS, rows, strict=True)
    }
