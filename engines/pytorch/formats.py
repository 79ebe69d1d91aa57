"""What a model file of torch is, told by its zip directory alone: nothing in it is read as code.

Knows the layouts that torch writes; needs no torch. There are three that can be served: a program
of torch.export, a package of AOTInductor, and TorchScript. What `torch.save` writes is a pickle,
and whoever loads a pickle runs the code in it: it is refused, with the way to export instead.

A package of AOTInductor is a compiled library: it is run, like any other one, because whoever wrote
the model folder put it there.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from engines.errors import ModelLoadError

INSTEAD: Final = (
    "a pickle runs the code that is in it and is never loaded; export the model instead: "
    "torch.export.save(torch.export.export(model, example_inputs), 'model.pt2')"
)
_COMPILED: Final = "data/aotinductor/"
_MODELS: Final = "models/"


class Format(Enum):
    """A kind of model file."""

    EXPORTED = "a program of torch.export"
    COMPILED = "a package of AOTInductor"
    SCRIPT = "TorchScript"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What a model file is."""

    path: Path
    format: Format
    model: str = ""
    """Its name inside the archive; TorchScript has none."""
    built_for: Mapping[str, str] = field(default_factory=dict)
    """What a compiled package says of the machine that it was built for."""


def identify(path: Path) -> ModelFile:
    """Return what a file is.

    Raises:
        ModelLoadError: it is nothing that can be served; the sentence says what and why.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _identified(path, archive)
    except zipfile.BadZipFile:
        raise ModelLoadError(f"{path.name} {_no_archive(path)}") from None
    except OSError as exc:
        raise ModelLoadError(f"{path.name} cannot be read: {exc.strerror or exc}") from None
    except (ValueError, NotImplementedError, RuntimeError) as exc:
        raise ModelLoadError(f"{path.name} is a broken archive: {exc}") from None


def _identified(path: Path, archive: zipfile.ZipFile) -> ModelFile:
    names = archive.namelist()
    root = names[0].partition("/")[0] if names else ""
    inside = {name.removeprefix(f"{root}/") for name in names if name.startswith(f"{root}/")}
    # torch reads the archive with a library of its own: it must not find other files than we do.
    if len(inside) != len(names):
        raise ModelLoadError(f"{path.name} is no archive of torch: its files are not in one folder")
    compiled = {_first(name, _COMPILED) for name in inside if name.startswith(_COMPILED)}
    exported = {_first(name, _MODELS) for name in inside if name.startswith(_MODELS)}
    if "archive_format" in inside and compiled | exported:
        if len(compiled) + len(exported) > 1:
            found = ", ".join(sorted(compiled | exported))
            raise ModelLoadError(f"{path.name} holds more than one model: {found}")
        if exported:
            return ModelFile(path, Format.EXPORTED, exported.pop().removesuffix(".json"))
        model = compiled.pop()
        return ModelFile(path, Format.COMPILED, model, _built_for(archive, model))
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        return ModelFile(path, Format.SCRIPT)
    if "data.pkl" in inside:
        raise ModelLoadError(f"{path.name} is a pickle of torch.save: {INSTEAD}")
    kinds = ", ".join(kind.value for kind in Format)
    raise ModelLoadError(f"{path.name} is an archive and none of {kinds}")


def _first(name: str, folder: str) -> str:
    return name.removeprefix(folder).partition("/")[0]


def _built_for(archive: zipfile.ZipFile, model: str) -> Mapping[str, str]:
    """Return what the compiler wrote beside the library."""
    for name in archive.namelist():
        if f"/{_COMPILED}{model}/" in name and name.endswith("wrapper_metadata.json"):
            found = json.loads(archive.read(name))
            if isinstance(found, dict):
                return {str(key): str(value) for key, value in found.items()}
    return {}


def _no_archive(path: Path) -> str:
    """Say what a file is that is no zip archive."""
    with path.open("rb") as opened:
        start = opened.read(2)
    if not start:
        return "is empty"
    # Every pickle since Python 2.3 starts with its protocol's number.
    if start[0] == 0x80 and b"" < start[1:] <= b"\x0f":
        return f"is a pickle: {INSTEAD}"
    return "is no zip archive, or is cut short: torch.export and TorchScript write such"
