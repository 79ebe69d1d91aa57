"""Which engine a model folder means, and which file inside each version's folder it loads.

Knows the names of backends, platforms and files, Triton's where Triton has one; knows no engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from engines.errors import ModelLoadError
from engines.folders import version_names
from gateway.model_config.fields import FieldError
from gateway.pb import model_config_pb2 as pb


class Backend(NamedTuple):
    """One engine as a config.pbtxt names it."""

    platform: str
    filenames: tuple[str, ...]
    """Of a model, unless the configuration gives another: the first of these that is there."""
    has_cpu: bool = True
    """False: it runs on a GPU only, and its name alone asks for one."""


# In the order in which a file speaks for a backend: a plan means tensorrt, as in Triton.
BACKENDS: Final[Mapping[str, Backend]] = {
    "onnxruntime": Backend("onnxruntime_onnx", ("model.onnx",)),
    "tensorrt": Backend("tensorrt_plan", ("model.plan",), has_cpu=False),
    "tensorrt_rtx": Backend("tensorrt_rtx_plan", ("model.plan",), has_cpu=False),
    "pytorch": Backend("pytorch_libtorch", ("model.pt2", "model.pt")),
    "fake": Backend("fake", ("model.json",)),
}
_FILENAMES: Final = tuple(dict.fromkeys(f for b in BACKENDS.values() for f in b.filenames))


def backend_of(directory: Path, config: pb.ModelConfig) -> tuple[str, str]:
    """Return the backend's name and the file name inside each version's folder.

    The backend is the one that `backend` names, else the one whose `platform` is given, else the
    one that the file's name, given or found in a version folder, speaks for.

    Raises:
        FieldError: a field that names none of them, or contradicts another one.
        ModelLoadError: nothing is said, and no file is there that says it.
    """
    name = config.backend or _of_platform(config) or _of_files(directory, config)
    if name not in BACKENDS:
        raise FieldError("backend", f"{name!r} is not one of {', '.join(sorted(BACKENDS))}")
    backend = BACKENDS[name]
    if config.platform not in ("", backend.platform):
        sentence = f"{config.platform!r} is not {backend.platform!r}, that of backend {name!r}"
        raise FieldError("platform", sentence)
    filename = config.default_model_filename or _found(directory, backend) or backend.filenames[0]
    path = PurePosixPath(filename)
    if path.is_absolute() or ".." in path.parts:
        raise FieldError("default_model_filename", f"{filename!r} leaves the version's folder")
    return name, filename


def _of_platform(config: pb.ModelConfig) -> str:
    if not config.platform:
        return ""
    for name, backend in BACKENDS.items():
        if backend.platform == config.platform:
            return name
    known = ", ".join(sorted(backend.platform for backend in BACKENDS.values()))
    raise FieldError("platform", f"{config.platform!r} is not one of {known}")


def _of_files(directory: Path, config: pb.ModelConfig) -> str:
    given = config.default_model_filename
    for name, backend in BACKENDS.items():
        if given:
            is_found = PurePosixPath(given).suffix in map(_suffix, backend.filenames)
        else:
            is_found = bool(_found(directory, backend))
        if is_found:
            return name
    if given:
        sentence = f"{given!r} speaks for no backend: name one in the field backend"
        raise FieldError("default_model_filename", sentence)
    known = " or ".join(_FILENAMES)
    raise ModelLoadError(f"no version folder of {directory.name} holds a {known}")


def _found(directory: Path, backend: Backend) -> str:
    """Return the first of the backend's file names that a version has; empty: none has any."""
    versions = version_names(directory)
    for filename in backend.filenames:
        if any((directory / version / filename).exists() for version in versions):
            return filename
    return ""


def _suffix(filename: str) -> str:
    return PurePosixPath(filename).suffix
