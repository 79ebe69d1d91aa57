"""ONNX Runtime behind the Engine contract: CPU, CUDA, TensorRT, and providers from libraries.

`load` is the engine loader. Importing this package needs no onnxruntime; `load` does. Read next:
loading.py, the order in which a model comes up.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engines.base import Engine, EngineConfig

if TYPE_CHECKING:
    from engines.ort.engine import OrtEngine

__all__ = ["OrtEngine", "load"]


def load(path: Path, config: EngineConfig) -> Engine:
    """Load an ONNX file. Blocking.

    Raises:
        ModelLoadError: the file is broken or contradicts the declared signature.
        DeviceUnavailable: a device or provider that is asked for is not there or not usable.
        ImportError: onnxruntime is not installed.
    """
    from engines.ort.loading import load as load_file

    return load_file(path, config)


def __getattr__(name: str) -> object:
    if name == "OrtEngine":
        from engines.ort.engine import OrtEngine

        return OrtEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
