"""The engines by the name of their backend; each is imported at its first load.

Knows where every engine is and what has to be installed for it, so that a server without a runtime
still serves the models of the others, and says what is missing for the rest. A new runtime is one
package beside ort/ and one line here.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engines import devices
from engines.base import Engine, EngineConfig, EngineLoader
from engines.errors import EngineError, ModelLoadError

DISTRIBUTION: Final = "sluice-gateway"


@dataclass(frozen=True, slots=True)
class Runtime:
    """Where one engine is, and what it needs."""

    module: str
    loader: str
    packages: tuple[str, ...] = ()
    """Modules that have to be installed, the runtime's own first."""
    extra: str = ""
    """Of this distribution: what installs them."""
    gpu_extra: str = ""
    """The same where a GPU is wanted; empty: it makes no difference."""
    gpu_packages: tuple[str, ...] = ()
    """Modules that have to be installed besides where a GPU is wanted."""

    def needs(self, device: str) -> tuple[str, ...]:
        """Return the modules that have to be installed for a device."""
        return self.packages + (self.gpu_packages if _is_gpu(device) else ())


RUNTIMES: Final[Mapping[str, Runtime]] = {
    "onnxruntime": Runtime("engines.ort", "load", ("onnxruntime",), "cpu", "gpu"),
    "tensorrt": Runtime("engines.trt", "load_tensorrt", ("tensorrt", "cuda.bindings"), "tensorrt"),
    "tensorrt_rtx": Runtime(
        "engines.trt", "load_rtx", ("tensorrt_rtx", "cuda.bindings"), "tensorrt-rtx"
    ),
    "pytorch": Runtime(
        "engines.pytorch", "load", ("torch",), "torch", gpu_packages=("cuda.bindings",)
    ),
    "fake": Runtime("engines.fake", "load"),
}


def loaders() -> Mapping[str, EngineLoader]:
    """Return a loader for every backend, whatever is installed."""
    return {backend: _Loader(backend) for backend in RUNTIMES}


def missing(backend: str, device: str) -> str:
    """Return what has to be installed before this backend can load, in one sentence; or nothing.

    Looks for packages and imports none of them.
    """
    for package in RUNTIMES[backend].needs(device):
        if not _is_installed(package):
            return _not_installed(backend, package, device)
    return ""


def lacking(backend: str, config: EngineConfig) -> str:
    """Return what the installed runtime has not for the GPU that is asked for; or nothing.

    Imports onnxruntime, which alone comes in builds with and without a GPU; loads no model.
    """
    kind, index = devices.parse(config.device)
    if backend != "onnxruntime" or kind != "cuda" or missing(backend, config.device):
        return ""
    from engines.ort import presence, providers

    try:
        presence.require(providers.wanted(config), index)
    except EngineError as exc:
        return str(exc)
    except ImportError as exc:
        return _not_imported(backend, exc)
    return ""


@dataclass(frozen=True, slots=True)
class _Loader:
    """An EngineLoader that imports the engine when it is called."""

    backend: str

    def __call__(self, path: Path, config: EngineConfig) -> Engine:
        """Load; see `engines.base.EngineLoader`."""
        runtime = RUNTIMES[self.backend]
        try:
            module = importlib.import_module(runtime.module)
            load: EngineLoader = getattr(module, runtime.loader)
            return load(path, config)
        except ImportError as exc:
            name = exc.name or ""
            needs = runtime.needs(config.device)
            needed = [p for p in needs if name.partition(".")[0] == p.partition(".")[0]]
            if isinstance(exc, ModuleNotFoundError) and needed:
                raise ModelLoadError(
                    _not_installed(self.backend, needed[0], config.device)
                ) from exc
            raise ModelLoadError(_not_imported(self.backend, exc)) from exc


def _is_gpu(device: str) -> bool:
    return devices.parse(device)[0] == "cuda"


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False  # not even what it would be in


def _not_imported(backend: str, exc: ImportError) -> str:
    return f"the backend {backend!r} does not import: {exc}"


def _not_installed(backend: str, package: str, device: str) -> str:
    runtime = RUNTIMES[backend]
    extra = (runtime.gpu_extra if _is_gpu(device) else "") or runtime.extra
    return (
        f"the backend {backend!r} needs {package}, which is not installed: "
        f"install {DISTRIBUTION}[{extra}]"
    )
