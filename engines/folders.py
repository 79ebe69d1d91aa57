"""The layout of a model repository: ``<root>/<model>/<version>/<file>``.

Knows names and folders; knows no configuration and no engine. Everything here looks at the file
system, so an event loop calls it on a thread, except where a single look is all it takes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def model_names(root: Path) -> list[str]:
    """Return the names of the model folders, sorted; hidden ones are no models."""
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def version_names(directory: Path) -> list[str]:
    """Return the version folders of a model, in ascending numeric order."""
    return ascending(p.name for p in directory.iterdir() if is_version(p.name) and p.is_dir())


def has_version(root: Path, model: str, version: str) -> bool:
    """Whether the folder of a version exists; False for what is no name of a model or version."""
    is_name = bool(model) and not model.startswith(".") and Path(model).name == model
    # os.path, not Path: it answers False for names that no file system takes.
    return is_name and is_version(version) and os.path.isdir(root / model / version)


def is_version(name: str) -> bool:
    """Whether a folder of this name is a version: a positive integer as people write it."""
    return name.isascii() and name.isdecimal() and not name.startswith("0")


def ascending(versions: Iterable[str]) -> list[str]:
    """Return version names in numeric order."""
    return sorted(versions, key=int)
