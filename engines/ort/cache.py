"""Optimised models, kept: what onnxruntime makes of a file once is loaded as it is from then on.

Knows sessions on the CPU; other providers choose kernels at load and gain nothing. An optimised
model fits one version of onnxruntime and one kind of CPU, so the key has both, with the model's
digest and every session entry. A model whose weights lie in other files is not kept: its digest
does not cover them. What is kept is never trusted to be whole: a file that does not load is made
again, once, and then left alone.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import onnxruntime as ort

from engines import artifacts, devices
from engines.base import EngineConfig
from engines.errors import ModelLoadError
from engines.ort.failures import first_line
from engines.ort.model_file import ModelFile
from engines.ort.providers import CPU, Wanted
from engines.ort.session import entries_of, open_cpu, open_session, session_options

logger = logging.getLogger(__name__)

LEAST_BYTES: Final = 1 << 20
"""A smaller file is optimised faster than a second one is found."""
# Entries that have no say in what an optimised graph looks like.
_IMMATERIAL: Final = ("session.intra_op.", "session.inter_op.", "session.force_spinning_stop")


def open_kept(
    path: Path, config: EngineConfig, sha256: str, file: ModelFile | None
) -> ort.InferenceSession:
    """Make a session on the CPU from the kept optimised model, or from the file itself.

    Args:
        path: the model's file.
        config: with the folder to keep in.
        sha256: the file's digest.
        file: what the file says of itself; None: it is no ONNX file.

    Raises:
        ModelLoadError: the file does not load.
    """
    if not _is_worth_keeping(path, config, file):
        return open_cpu(path, config)
    for is_last in (False, True):
        kept = _keep(path, config, sha256)
        if kept is None:
            break
        try:
            return _open_optimised(kept, config)
        except Exception as exc:  # foreign: see session.open_session
            extra = {"model": path.name, "file": kept.name, "reason": first_line(exc)}
            logger.warning("a kept optimised model does not load", extra=extra)
            _discard(kept)
            if is_last:
                break
    return open_cpu(path, config)


def _is_worth_keeping(path: Path, config: EngineConfig, file: ModelFile | None) -> bool:
    if config.cache is None or file is None or file.has_external_data:
        return False
    return path.stat().st_size >= LEAST_BYTES


def key_of(config: EngineConfig, sha256: str) -> dict[str, object]:
    """Return what an optimised model on the CPU depends on."""
    entries = {k: v for k, v in entries_of(config).items() if not k.startswith(_IMMATERIAL)}
    return {
        "made": "optimised ONNX model",
        "model_sha256": sha256,
        "onnxruntime": ort.__version__,
        "providers": [CPU],
        "hardware": devices.hardware_key("cpu"),
        "entries": entries,
    }


def _keep(path: Path, config: EngineConfig, sha256: str) -> Path | None:
    """Return the kept model, made if need be; None where that cannot be done."""

    def make(to: Path) -> None:
        options = session_options(config)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(to)
        open_session(path, options, [Wanted(CPU, {})])
        if artifacts.sha256_of(path) != sha256:
            raise ModelLoadError(f"{path.name} was replaced while it was read")

    try:
        return artifacts.keep(config.cache, key_of(config, sha256), ".onnx", make)
    except Exception as exc:  # foreign; the file itself is tried next, and says what is wrong
        extra = {"model": path.name, "reason": first_line(exc)}
        logger.warning("a model cannot be kept optimised", extra=extra)
        return None


def _open_optimised(kept: Path, config: EngineConfig) -> ort.InferenceSession:
    options = session_options(config)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return open_session(kept, options, [Wanted(CPU, {})])


def _discard(kept: Path) -> None:
    try:
        kept.unlink(missing_ok=True)
    except OSError as exc:
        extra = {"file": kept.name, "reason": exc.strerror}
        logger.warning("a broken optimised model cannot be removed", extra=extra)
