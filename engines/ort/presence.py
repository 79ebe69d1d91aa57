"""Whether onnxruntime's GPU providers can come up here, and what to install where they cannot.

onnxruntime tells little: a provider whose libraries are missing is left out of the session with a
line in its log. So what a provider needs is looked for before, and named. Libraries that pip
installed lie where the loader does not look; they are loaded from there first.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import re
import warnings
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Final

import onnxruntime as ort

from engines import devices
from engines.errors import DeviceUnavailable
from engines.ort.providers import TENSORRT, Wanted

_TENSORRT_PACKAGES: Final = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
_FAILED: Final = re.compile(r"Failed to load (\S+):")
_NEEDED: Final = re.compile(rb"lib(?:nvinfer|nvonnxparser)\.so\.(\d+)")
_GPU_PACKAGE: Final = "onnxruntime-gpu in place of onnxruntime (the extra sluice-gateway[gpu])"


def require(wanted: Sequence[Wanted], index: int) -> None:
    """Check that the GPU and onnxruntime's own providers for it are there.

    Args:
        wanted: providers; those from libraries are not looked at, but their GPU is.
        index: of the GPU.

    Raises:
        DeviceUnavailable: one is not, with what to do about it.
    """
    driver = devices.why_not(f"cuda:{index}")
    built_in = [one.name for one in wanted if not one.is_library]
    for name in built_in:
        if name not in available():
            raise DeviceUnavailable(
                f"{name} was asked for and this onnxruntime {ort.__version__} has only "
                f"{', '.join(available())}: install {_GPU_PACKAGE}"
                + (f"; {driver}" if driver else "")
            )
    if driver:
        raise DeviceUnavailable(f"{wanted[0].name} was asked for: {driver}")
    missing_libraries()
    if TENSORRT in built_in and (why := why_no_tensorrt(provider_library("tensorrt"))):
        raise DeviceUnavailable(why)


def available() -> list[str]:
    """Return the providers of this process: those built in, and those that libraries brought."""
    built_in = [str(name) for name in ort.get_available_providers()]
    list_devices = getattr(ort, "get_ep_devices", None)
    brought = {str(one.ep_name) for one in list_devices()} if list_devices is not None else set()
    return built_in + sorted(brought - set(built_in))


def provider_library(kind: str) -> Path:
    """Return where onnxruntime keeps the library of one of its providers."""
    return Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{kind}.so"


@functools.cache
def missing_libraries() -> str:
    """Load CUDA's libraries from their packages; return a sentence on those that do not load.

    Once per process. onnxruntime writes the names to standard output, where they are caught.
    """
    preload = getattr(ort, "preload_dlls", None)
    if preload is None:
        return ""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        preload()
    return sentence_on(said.getvalue())


def sentence_on(said: str) -> str:
    """Return what to do about the libraries that onnxruntime failed to load; empty: nothing."""
    names = sorted({Path(name).name for name in _FAILED.findall(said)})
    if not names:
        return ""
    return (
        f"{', '.join(names)} cannot be loaded: install the CUDA and cuDNN libraries that "
        "onnxruntime was built for, such as by onnxruntime-gpu[cuda,cudnn]"
    )


def why_no_tensorrt(library: Path) -> str:
    """Return why TensorRT is not there as onnxruntime's provider needs it; empty: it is.

    Args:
        library: of the provider. Which TensorRT it is linked with is read from it: that differs
            from release to release, and is often older than what pip installs.
    """
    try:
        needed = sorted({found[0].decode() for found in _NEEDED.finditer(library.read_bytes())})
    except OSError:
        return f"{TENSORRT} was asked for and its library {library.name} is not there"
    majors = {name.rpartition(".")[2] for name in needed}
    # The parser is linked with the runtime, which therefore comes first: "libnvinfer" sorts so.
    if all(_loads(name) for name in needed):
        return ""
    major = min(majors)
    installed = _tensorrt_version()
    found = f"; TensorRT {installed} is installed, which does not serve" if installed else ""
    following = f"<{int(major) + 1}"
    return (
        f"{TENSORRT} of onnxruntime {ort.__version__} needs TensorRT {major} "
        f"({', '.join(needed)}){found}: install tensorrt-cu13{following}, "
        "or use the backend tensorrt"
    )


def _loads(name: str) -> bool:
    """Load a TensorRT library for the whole process, from the system or from its package."""
    spec = util.find_spec("tensorrt_libs")
    folders = spec.submodule_search_locations if spec is not None else None
    for candidate in (name, *(str(Path(folder) / name) for folder in folders or ())):
        with contextlib.suppress(OSError):
            ctypes.CDLL(candidate, ctypes.RTLD_GLOBAL)
            return True
    return False


def _tensorrt_version() -> str:
    for package in _TENSORRT_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return ""
